//! Cuts the rights of a process that speaks to the outside down to what it needs, before it has said a word.
//!
//! What must hold afterwards, for this process and whatever it might become: another user without groups; no capability
//! but the one for low ports, and no way to another; one folder as its whole file system; no new programs, no mounts, no
//! look into other processes. Each step that fails ends the process: half a cage is none.
//!
//! Not here: what is in the folder, and who owns it.

mod filter;

use rustix::thread::{CapabilitySet, CapabilitySets};
use std::io::{Error, Result};
use std::path::Path;

pub use filter::forbid;

/// The kernel knows fewer; those that it does not know are refused by it.
const CAPABILITIES: u32 = 64;

/// Why the rights cannot be cut.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up the rights of root ({step}): {cause}")]
pub struct ConfineError {
    step: &'static str,
    cause: Error,
}

fn fail<E: Into<Error>>(step: &'static str) -> impl Fn(E) -> ConfineError {
    move |cause| ConfineError { step, cause: cause.into() }
}

/// Confines this process, which must be root's and have one thread, to `user_id` and `folder`; it finds itself in `/`,
/// which is `folder`. System calls are still free: see [`forbid`].
pub fn confine(user_id: u32, folder: &Path) -> std::result::Result<(), ConfineError> {
    alone().map_err(fail("one thread"))?;
    rustix::thread::set_no_new_privs(true).map_err(fail("no new privileges"))?;
    // The bounding set first: it takes a capability to shrink it.
    for number in 0..CAPABILITIES {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if one == CapabilitySet::NET_BIND_SERVICE {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(fail("shrink the bounding set")(error)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(fail("clear the ambient set"))?;
    nix::unistd::chroot(folder).map_err(fail("enter its folder"))?;
    std::env::set_current_dir("/").map_err(fail("enter its folder"))?;
    rustix::thread::set_keep_capabilities(true).map_err(fail("keep a capability"))?;
    nix::unistd::setgroups(&[]).map_err(fail("leave all groups"))?;
    let (user, group) = (nix::unistd::Uid::from_raw(user_id), nix::unistd::Gid::from_raw(user_id));
    nix::unistd::setresgid(group, group, group).map_err(fail("change the group"))?;
    nix::unistd::setresuid(user, user, user).map_err(fail("change the user"))?;
    rustix::thread::set_keep_capabilities(false).map_err(fail("keep a capability"))?;
    let ports = CapabilitySet::NET_BIND_SERVICE;
    let sets = CapabilitySets { effective: ports, permitted: ports, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(fail("drop capabilities"))?;
    // Keys are in its memory: nobody of the same user may look into it.
    nix::sys::prctl::set_dumpable(false).map_err(fail("hide its memory"))?;
    Ok(())
}

/// Rights belong to threads: others would keep theirs.
fn alone() -> Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        more => Err(Error::other(format!("there are {more}"))),
    }
}

/// A number for the user of what serves `folder`: in the range that systemd takes for dynamic users, so that it is no
/// person's and no package's; other folders have other numbers, mostly.
pub fn derived_user(folder: &Path) -> u32 {
    const RANGE: std::ops::RangeInclusive<u32> = 61_184..=65_519;
    // FNV-1a: the same for ever, on every machine.
    let hash = folder
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let width = u64::from(RANGE.end() - RANGE.start() + 1);
    RANGE.start() + u32::try_from(hash % width).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// System calls are forbidden to a thread: this test's own, which ends with it.
    #[test]
    fn a_forbidden_thread_serves_and_does_nothing_else() {
        use std::io::{ErrorKind, Read as _, Write as _};
        let forbidden = || {
            forbid().unwrap();
            let denied = |outcome: Result<()>, what| {
                assert_eq!(outcome.err().map(|it| it.kind()), Some(ErrorKind::PermissionDenied), "{what}");
            };
            denied(std::process::Command::new("/bin/true").status().map(drop), "a new program");
            let (mut ours, theirs) = ([0u8; 1], [0u8; 1]);
            let remote = nix::sys::uio::RemoteIoVec { base: theirs.as_ptr() as usize, len: 1 };
            let own = nix::unistd::getpid();
            let read = nix::sys::uio::process_vm_readv(own, &mut [std::io::IoSliceMut::new(&mut ours)], &[remote]);
            denied(read.map(drop).map_err(Error::from), "memory of processes");
            let none: Option<&str> = None;
            let mount = nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_PRIVATE, none);
            denied(mount.map_err(Error::from), "a mount");
            denied(nix::unistd::chroot("/").map_err(Error::from), "another root");
            denied(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(Error::from), "a namespace");
            let other = nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None);
            denied(other.map_err(Error::from), "signals to others");
            use rustix::net::{AddressFamily, SocketType, socket};
            let packets = socket(AddressFamily::PACKET, SocketType::RAW, None);
            denied(packets.map(drop).map_err(Error::from), "packets of others");
            // What it lives of goes on: sockets, files, threads, memory, time.
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::thread::spawn(move || {
                let mut text = String::new();
                std::net::TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
                text
            });
            listener.accept().unwrap().0.write_all(b"hello").unwrap();
            assert_eq!(client.join().unwrap(), "hello");
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a"), vec![7u8; 1 << 20]).unwrap();
            std::fs::rename(folder.path().join("a"), folder.path().join("b")).unwrap();
            assert_eq!(std::fs::read(folder.path().join("b")).unwrap().len(), 1 << 20);
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                tokio::task::spawn_blocking(|| ()).await.unwrap();
            });
        };
        std::thread::spawn(forbidden).join().unwrap();
    }

    #[test]
    fn users_are_in_range_stable_and_mostly_different() {
        let users: std::collections::BTreeSet<u32> =
            (0..50).map(|it| derived_user(Path::new(&format!("/var/lib/arco-{it}")))).collect();
        assert!(users.len() > 45, "{users:?}");
        assert!(users.iter().all(|it| (61_184..=65_519).contains(it)));
        assert_eq!(derived_user(Path::new("/var/lib/arco")), derived_user(Path::new("/var/lib/arco")));
    }
}
