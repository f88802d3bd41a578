//! Who a program runs as: `user[:group]` by number or by name in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to the image, so they are opened inside its root and read up to 1 MiB.

use super::mounts::{file_of, open_inside};
use rustix::fs::OFlags;
use std::io::{Error, Read as _, Result};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Ids of a program.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct User {
    /// User id inside.
    pub(super) uid: u32,
    /// Group id inside.
    pub(super) gid: u32,
    /// Further groups.
    pub(super) groups: Vec<u32>,
    /// Home directory.
    pub(super) home: String,
}

/// Looks `asked` up in the image below `root`.
pub(super) fn resolve(root: BorrowedFd<'_>, asked: &str) -> Result<User> {
    find(asked, &read(root, "/etc/passwd"), &read(root, "/etc/group")).map_err(Error::other)
}

fn read(root: BorrowedFd<'_>, path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = open_inside(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK) {
        let _ = file_of(file).take(1 << 20).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find(asked: &str, passwd: &str, group: &str) -> std::result::Result<User, String> {
    let (name, group_name) = asked.split_once(':').map_or((asked, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let number: Option<u32> = name.parse().ok();
    let mut user = User { uid: number.unwrap_or(0), home: "/".to_owned(), ..User::default() };
    let mut login = None;
    for line in passwd.lines() {
        let words: Vec<_> = line.split(':').collect();
        let [entry, _, uid, gid, _, home, ..] = words[..] else { continue };
        let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else { continue };
        if entry == name || number == Some(uid) {
            user = User { uid, gid, groups: Vec::new(), home: home.to_owned() };
            login = Some(entry);
            break;
        }
    }
    if login.is_none() {
        match number {
            Some(0) => user.home = "/root".to_owned(),
            Some(_) => {}
            None => {
                return Err(format!("the image has no user `{name}` in /etc/passwd; give a number or another user"));
            }
        }
    }
    let groups = || {
        group.lines().filter_map(|line| {
            let words: Vec<_> = line.split(':').collect();
            let [entry, _, gid, members, ..] = words[..] else { return None };
            Some((entry, gid.parse::<u32>().ok()?, members))
        })
    };
    match group_name.filter(|it| !it.is_empty()) {
        Some(wanted) => {
            let found =
                wanted.parse().ok().or_else(|| groups().find(|(entry, ..)| *entry == wanted).map(|(_, gid, _)| gid));
            user.gid = found.ok_or_else(|| format!("the image has no group `{wanted}` in /etc/group"))?;
        }
        None => {
            let member = |members: &str| login.is_some_and(|it| members.split(',').any(|member| member == it));
            user.groups =
                groups().filter(|(_, gid, members)| *gid != user.gid && member(members)).map(|it| it.1).collect();
        }
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\nbroken\n";
        let group = "root:x:0:\nweb:x:34:\nextra:x:50:web,other\n";
        let row = |asked: &str| find(asked, passwd, group).map(|it| (it.uid, it.gid, it.groups, it.home));
        let home = |it: &str| it.to_owned();
        assert_eq!(row(""), Ok((0, 0, vec![], home("/root"))));
        assert_eq!(row("web"), Ok((33, 34, vec![50], home("/srv"))));
        assert_eq!(row("33:extra"), Ok((33, 50, vec![], home("/srv"))));
        assert_eq!(row("1000"), Ok((1000, 0, vec![], home("/"))));
        assert_eq!(row("1000:7"), Ok((1000, 7, vec![], home("/"))));
        assert!(row("nobody").is_err() && row("web:none").is_err());
    }
}
