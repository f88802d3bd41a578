//! The root file system of a container: layers, writable layer, what is bound into it.
//!
//! All mounts are made in the shim's own mount namespace, below `<run root>/m`. What must hold: what is bound is looked
//! up inside the new root (links cannot lead out of it); the image is never written; nothing that the platform adds to
//! the root (`/proc`, `/etc/hosts`, …) appears in the writable layer unless the image gives no other way.

use super::mounts::{
    self, Bind, attach_loop, bind, borrow, make_inside, mount, open_directory, open_inside, step, unmount,
};
use super::protocol::{ID_RANGE, ShimSpec};
use super::user;
use crate::local::cgroup::Cgroup;
use crate::local::container::ContainerFile;
use arco_model::plan::HostMount;
use nix::mount::MsFlags;
use rustix::fs::OFlags;
use std::fs::{self, File};
use std::io::{Error, Result, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

/// Where the static init appears inside.
pub(in crate::local) const INIT_PATH: &str = "/.arco/init";

/// A mounted root file system.
pub(super) struct RootFs {
    base: PathBuf,
    /// The root.
    pub(super) root: PathBuf,
    /// First host id of the container's ids; `None` without a user namespace.
    pub(super) id_base: Option<u32>,
    /// Writable places whose filling up is told: the writable layer and volumes.
    writable: Vec<PathBuf>,
    /// Keeps the loop device until it is mounted.
    _loop_device: Option<File>,
}

/// Folder of the writable layer below the mount point.
pub(in crate::local) const UPPER: &str = "disk/upper";

impl RootFs {
    /// Mounts everything. On an error the mount namespace must be given up.
    pub(super) fn mount(spec: &ShimSpec, cgroup: &Cgroup) -> Result<Self> {
        let base = spec.run_root.join("m");
        let options = format!("mode=755,size={}", 4 * MIB + room_for(&spec.container.files));
        mount("arco", &base, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &options)?;
        for folder in ["l", "disk", "root", "s", "f", "c"] {
            step("make", &base.join(folder), fs::create_dir(base.join(folder)))?;
        }
        let loop_device = mount_disk(spec, &base)?;
        let namespace = spec.id_base.and_then(|id| mounts::user_namespace(id, ID_RANGE).ok());
        let id_base = match bind_layers(spec, &base, namespace.as_ref()) {
            Ok(()) => spec.id_base.filter(|_| namespace.is_some()),
            // This kernel or this file system cannot map ids of lower layers.
            Err(_) if namespace.is_some() => {
                bind_layers(spec, &base, None)?;
                None
            }
            Err(error) => return Err(error),
        };
        let owner = id_base.unwrap_or(0);
        let mut root_fs = Self {
            root: base.join("root"),
            writable: vec![base.join("disk")],
            base,
            id_base,
            _loop_device: loop_device,
        };
        root_fs.mount_overlay(spec, owner)?;
        root_fs.bind_all(spec, owner, namespace.as_ref().filter(|_| id_base.is_some()), cgroup)?;
        Ok(root_fs)
    }

    fn mount_overlay(&self, spec: &ShimSpec, owner: u32) -> Result<()> {
        let skeleton = self.base.join("s");
        make_skeleton(&skeleton, owner)?;
        for (folder, user) in [(UPPER, owner), ("disk/work", 0)] {
            let path = self.base.join(folder);
            step("make", &path, fs::create_dir_all(&path))?;
            step("set the owner of", &path, chown(&path, Some(user), Some(user)))?;
            step("set the mode of", &path, fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))?;
        }
        // Relative names keep the options of a hundred layers below one page.
        let lower: Vec<_> = (0..spec.layers.len()).rev().map(|it| it.to_string()).chain(["../s".to_owned()]).collect();
        let options = format!(
            "lowerdir={},upperdir=../{UPPER},workdir=../disk/work,redirect_dir=off,metacopy=off,index=off",
            lower.join(":")
        );
        step("enter", &self.base, std::env::set_current_dir(self.base.join("l")))?;
        let mounted = mount("overlay", Path::new("../root"), "overlay", MsFlags::MS_NODEV, &options);
        std::env::set_current_dir("/")?;
        mounted?;
        // The overlay holds its layers; their mount points are not needed any more.
        (0..spec.layers.len()).for_each(|it| unmount(&self.base.join("l").join(it.to_string())));
        Ok(())
    }

    fn bind_all(&mut self, spec: &ShimSpec, owner: u32, namespace: Option<&OwnedFd>, cgroup: &Cgroup) -> Result<()> {
        let root = open_directory(&self.root)?;
        let put = |source: &Path, path: &str, folder: bool, how: Bind<'_>| {
            bind(source, borrow(&make_inside(borrow(&root), Path::new(path), folder, owner)?), how)
        };
        let read_only = Bind { read_only: true, ..Bind::default() };
        put(&spec.run_root.join("init"), INIT_PATH, false, read_only)?;
        let container = &spec.container;
        let hosts = container.hosts.clone().unwrap_or_else(|| format!("127.0.0.1 localhost {}\n", container.hostname));
        let files = [
            ("/etc/hosts", Some(hosts)),
            ("/etc/hostname", Some(format!("{}\n", container.hostname))),
            ("/etc/resolv.conf", container.resolv_conf.clone()),
        ];
        for (path, content) in files {
            let Some(content) = content else { continue };
            let file = self.base.join("f").join(Path::new(path).file_name().unwrap_or_default());
            step("write", &file, fs::write(&file, content))?;
            step("set the owner of", &file, chown(&file, Some(owner), Some(owner)))?;
            put(&file, path, false, Bind::default())?;
        }
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let sys = self.root.join("sys");
        drop(make_inside(borrow(&root), Path::new("/sys"), true, owner)?);
        if sys.symlink_metadata().is_ok_and(|it| it.is_dir()) {
            mount("sysfs", &sys, "sysfs", flags, "")?;
            self.bind_cgroups(cgroup)?;
        }
        let files = self.write_files(spec, owner, &root)?;
        // What lies within another one comes after it, or would be hidden below it.
        let mut mounts: Vec<&HostMount> = container.mounts.iter().chain(&files).collect();
        mounts.sort_by_key(|it| Path::new(&it.path).components().count());
        for (at, it) in mounts.iter().enumerate() {
            let folder = step("look at", &it.host_path, fs::metadata(&it.host_path))?.is_dir();
            make_room_within(&mounts[..at], &root, &it.path, folder)?;
            let ours = it.host_path.starts_with(&self.base);
            if ours && open_inside(borrow(&root), Path::new(&it.path), OFlags::PATH | OFlags::DIRECTORY).is_ok() {
                let why = "there is a folder already: give the file another path";
                return Err(Error::other(format!("failed to put the configuration file {}: {why}", it.path)));
            }
            // Files of ours have the owner on disk whom they are to have.
            let namespace = namespace.filter(|_| !ours);
            let how = Bind { user_namespace: namespace.map(borrow), read_only: !it.writable, set_id: false };
            let plain = Bind { user_namespace: None, ..how };
            // A file system without id mapping (tmpfs before Linux 6.3) is bound as it is.
            put(&it.host_path, &it.path, folder, how).or_else(|_| put(&it.host_path, &it.path, folder, plain))?;
            if it.writable {
                self.writable.push(it.host_path.clone());
            }
        }
        let working_dir = if container.working_dir.is_empty() { "/" } else { &container.working_dir };
        make_inside(borrow(&root), Path::new(working_dir), true, owner).map(drop)
    }

    /// Writes the configuration files for the container's user, to be bound.
    fn write_files(&self, spec: &ShimSpec, owner: u32, root: &OwnedFd) -> Result<Vec<HostMount>> {
        let files = &spec.container.files;
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let user = user::resolve(borrow(root), &spec.container.user)?;
        let mut made = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let host_path = self.base.join("c").join(number.to_string());
            let mut options = File::options();
            let new = options.write(true).create_new(true).mode(0o600).open(&host_path);
            step("write", &host_path, new.and_then(|mut it| it.write_all(file.content.as_bytes())))?;
            let (uid, gid) = (owner.saturating_add(user.uid), owner.saturating_add(user.gid));
            step("set the owner of", &host_path, chown(&host_path, Some(uid), Some(gid)))?;
            let mode = fs::Permissions::from_mode(file.mode & 0o777);
            step("set the mode of", &host_path, fs::set_permissions(&host_path, mode))?;
            made.push(HostMount { host_path, path: file.path.clone(), writable: false });
        }
        Ok(made)
    }

    /// Programs size their heaps and thread pools by what they find here.
    fn bind_cgroups(&self, cgroup: &Cgroup) -> Result<()> {
        let at = self.root.join("sys/fs/cgroup");
        if !at.is_dir() {
            return Ok(());
        }
        let read_only = Bind { read_only: true, ..Bind::default() };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if cgroup.directories().any(|(name, _)| name.is_empty()) {
            for (_, directory) in cgroup.directories() {
                bind(directory, borrow(&mounts::target(&at)?), read_only)?;
            }
            return Ok(());
        }
        mount("arco", &at, "tmpfs", flags, "mode=755,size=64k")?;
        for (name, directory) in cgroup.directories() {
            let inside = at.join(&name);
            if !inside.exists() {
                step("make", &inside, fs::create_dir(&inside))?;
                bind(directory, borrow(&mounts::target(&inside)?), read_only)?;
            }
        }
        let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount("arco", &at, "tmpfs", flags, "mode=755,size=64k")
    }

    /// Whether the writable layer or a volume is full: less than 1 % (at most 8 MiB) or 64 KiB free, or no inode left. A program that
    /// `complained` may have been refused one large piece while a little was left, so 10 % (at most 64 MiB) counts
    /// then.
    pub(super) fn is_full(&self, complained: bool) -> bool {
        let (share, most) = if complained { (10, 64 << 20) } else { (100, 8 << 20) };
        self.writable.iter().any(|path| {
            nix::sys::statvfs::statvfs(path).is_ok_and(|it| {
                let free = it.blocks_available() * it.fragment_size();
                let total = it.blocks() * it.fragment_size();
                total > 0
                    && (free < 64 << 10
                        || free < most.min(total / share)
                        || (it.files() > 0 && it.files_available() == 0))
            })
        })
    }

    /// Undoes every mount.
    pub(super) fn unmount(self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points: Vec<PathBuf> =
            mounts.lines().filter_map(mount_point).filter(|it| it.starts_with(&self.base)).collect();
        points.iter().rev().for_each(|it| unmount(it));
    }
}

/// Bytes of a tmpfs that files need: whole pages, and a little for each itself.
fn room_for(files: &[ContainerFile]) -> usize {
    const PAGE: usize = 4096;
    files.iter().map(|it| (it.content.len().div_ceil(PAGE) + 1) * PAGE).sum()
}

/// Makes what a mount within another one is bound onto.
///
/// Within an id-mapped mount this process is nobody and may make nothing; the same folder, seen from the machine, takes it.
fn make_room_within(above: &[&HostMount], root: &OwnedFd, path: &str, folder: bool) -> Result<()> {
    let path = Path::new(path);
    let Some(outer) = above.iter().rev().find(|it| path.starts_with(&it.path)) else { return Ok(()) };
    let Ok(rest) = path.strip_prefix(&outer.path) else { return Ok(()) };
    if !outer.host_path.is_dir() || open_inside(borrow(root), path, OFlags::PATH).is_ok() {
        return Ok(());
    }
    // Ids on disk begin at 0, whatever they are mapped to.
    make_inside(borrow(&open_directory(&outer.host_path)?), rest, folder, 0).map(drop)
}

/// The mount point in a line of `mountinfo`.
pub(super) fn mount_point(line: &str) -> Option<PathBuf> {
    let raw = line.split(' ').nth(4)?;
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|it| u8::from_str_radix(std::str::from_utf8(it).ok()?, 8).ok());
        match octal {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Some(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes)))
}

fn mount_disk(spec: &ShimSpec, base: &Path) -> Result<Option<File>> {
    let at = base.join("disk");
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let Some(image) = &spec.disk_image else {
        step("make", &spec.disk_dir, fs::create_dir_all(&spec.disk_dir))?;
        return bind(&spec.disk_dir, borrow(&mounts::target(&at)?), Bind { set_id: true, ..Bind::default() })
            .map(|()| None);
    };
    let (path, device) = attach_loop(image)?;
    let path = path.to_str().ok_or_else(|| Error::other("a loop device has a strange name"))?;
    mount(path, &at, "ext4", flags, "noinit_itable,errors=remount-ro")?;
    Ok(Some(device))
}

fn bind_layers(spec: &ShimSpec, base: &Path, namespace: Option<&OwnedFd>) -> Result<()> {
    for (number, layer) in spec.layers.iter().enumerate() {
        let at = base.join("l").join(number.to_string());
        if !at.exists() {
            step("make", &at, fs::create_dir(&at))?;
        }
        let how = Bind { user_namespace: namespace.map(borrow), read_only: true, set_id: true };
        bind(layer, borrow(&mounts::target(&at)?), how)?;
    }
    Ok(())
}

/// The lowest layer: mount points that an image may lack.
fn make_skeleton(at: &Path, owner: u32) -> Result<()> {
    let own = |path: &Path| step("set the owner of", path, chown(path, Some(owner), Some(owner)));
    own(at)?;
    for (name, mode) in
        [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("tmp", 0o1777), ("etc", 0o755), (".arco", 0o755)]
    {
        let path = at.join(name);
        step("make", &path, fs::create_dir(&path))?;
        step("set the mode of", &path, fs::set_permissions(&path, fs::Permissions::from_mode(mode)))?;
        own(&path)?;
    }
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf", &INIT_PATH[1..]] {
        let path = at.join(name);
        step("make", &path, File::create(&path))?;
        own(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let line = r"36 35 98:0 / /a\040b/c rw,noatime - ext4 /dev/x rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/a b/c")));
        assert_eq!(mount_point("36 35"), None);
    }
}
