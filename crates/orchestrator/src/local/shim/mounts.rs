//! Mount calls that `nix` does not have: bind with id mapping, loop devices, paths that stay inside a root.
//!
//! Everything happens in the shim's own mount namespace, so that whatever goes wrong, the kernel cleans up with it.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Puts the path and the step before an error.
pub(super) fn step<T, E: std::fmt::Display>(what: &str, path: &Path, result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| Error::other(format!("failed to {what} {}: {error}", path.display())))
}

/// Plain mount.
pub(super) fn mount(source: &str, at: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    step(&format!("mount {kind} at"), at, nix::mount::mount(Some(source), at, Some(kind), flags, Some(options)))
}

/// Takes a mount away; lazily when it is busy.
pub(super) fn unmount(at: &Path) {
    for _ in 0..50 {
        match nix::mount::umount2(at, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => std::thread::sleep(std::time::Duration::from_millis(4)),
            _ => return,
        }
    }
    let _ = nix::mount::umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
}

/// How a tree of the host is bound.
#[derive(Clone, Copy, Default)]
pub(super) struct Bind<'a> {
    /// Ids on disk 0… appear as those that this user namespace maps.
    pub(super) user_namespace: Option<BorrowedFd<'a>>,
    /// Refuse writes.
    pub(super) read_only: bool,
    /// Whether set-user-id bits count (only within layers).
    pub(super) set_id: bool,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const ATTR_READ_ONLY: u64 = 0x1;
const ATTR_NO_SET_ID: u64 = 0x2;
const ATTR_NO_DEVICES: u64 = 0x4;
const ATTR_ID_MAPPED: u64 = 0x0010_0000;

/// Binds `source` onto what `at` refers to (an `O_PATH` descriptor).
pub(super) fn bind(source: &Path, at: BorrowedFd<'_>, how: Bind<'_>) -> Result<()> {
    let mut attributes = MountAttr { set: ATTR_NO_DEVICES, clear: 0, propagation: 0, user_namespace: 0 };
    if how.read_only {
        attributes.set |= ATTR_READ_ONLY;
    }
    if !how.set_id {
        attributes.set |= ATTR_NO_SET_ID;
    }
    if let Some(namespace) = how.user_namespace {
        attributes.set |= ATTR_ID_MAPPED;
        attributes.user_namespace = namespace.as_raw_fd() as u64;
    }
    let open = || {
        let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
        step("open", source, rustix::mount::open_tree(rustix::fs::CWD, source, flags))
    };
    let tree = open()?;
    // SAFETY: an empty path with AT_EMPTY_PATH means `tree`; the pointer and size are those of one live value.
    let done = unsafe {
        let empty = c"";
        let size = std::mem::size_of::<MountAttr>();
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    if done != 0 {
        return step("set attributes of the mount of", source, Err(Error::last_os_error()));
    }
    let flags =
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | rustix::mount::MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    step("bind", source, rustix::mount::move_mount(&tree, "", at, "", flags))
}

/// Opens a path of ours for binding onto it.
pub(super) fn target(path: &Path) -> Result<OwnedFd> {
    step("open", path, rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(Error::from))
}

/// Opens `path` as it is inside `root`; links cannot lead out of it.
pub(super) fn open_inside(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(Error::from)
}

/// Opens `path` inside `root` for binding; makes it, owned by `owner`, when it is missing.
pub(super) fn make_inside(root: BorrowedFd<'_>, path: &Path, folder: bool, owner: u32) -> Result<OwnedFd> {
    if let Ok(found) = open_inside(root, path, OFlags::PATH) {
        return Ok(found);
    }
    let mut walked = PathBuf::from("/");
    let names: Vec<_> =
        path.components().filter_map(|it| if let Component::Normal(name) = it { Some(name) } else { None }).collect();
    for (index, name) in names.iter().enumerate() {
        let parent = step("open", &walked, open_inside(root, &walked, OFlags::PATH | OFlags::DIRECTORY))?;
        walked.push(name);
        if open_inside(root, &walked, OFlags::PATH).is_ok() {
            continue;
        }
        // What is there but cannot be opened is a link that leads nowhere: it makes room.
        let _ = rustix::fs::unlinkat(&parent, *name, rustix::fs::AtFlags::empty());
        let made = if folder || index + 1 < names.len() {
            rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755))
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&parent, *name, flags, Mode::from_raw_mode(0o644)).map(drop)
        };
        step("make", &walked, made)?;
        let (user, group) = (rustix::fs::Uid::from_raw(owner), rustix::fs::Gid::from_raw(owner));
        let _ = rustix::fs::chownat(&parent, *name, Some(user), Some(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    }
    step("open", path, open_inside(root, path, OFlags::PATH))
}

/// A loop device on a file; the kernel frees it when its last user is gone.
pub(super) fn attach_loop(image: &Path) -> Result<(PathBuf, File)> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
    const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    #[repr(C)]
    struct LoopConfig {
        fd: u32,
        block_size: u32,
        before_flags: [u64; 5],
        words: [u32; 4],
        names: [u8; 64 + 64 + 32],
        init: [u64; 2],
        reserved: [u64; 8],
    }
    let control =
        step("open", Path::new("/dev/loop-control"), File::options().read(true).write(true).open("/dev/loop-control"))?;
    let backing = step("open", image, File::options().read(true).write(true).open(image))?;
    for _ in 0..100 {
        // SAFETY: this call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return step("find a free loop device for", image, Err(Error::last_os_error()));
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        if !path.exists() {
            let device = nix::sys::stat::makedev(7, number as u64);
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
            let _ = nix::sys::stat::mknod(&path, nix::sys::stat::SFlag::S_IFBLK, mode, device);
        }
        let device = step("open", &path, File::options().read(true).write(true).open(&path))?;
        for flags in [AUTOCLEAR | DIRECT_IO, AUTOCLEAR] {
            let config = LoopConfig {
                fd: backing.as_raw_fd() as u32,
                block_size: 0,
                before_flags: [0; 5],
                words: [0, 0, 0, flags],
                names: [0; 160],
                init: [0; 2],
                reserved: [0; 8],
            };
            // SAFETY: the structure has the layout of `struct loop_config` and lives through the call.
            if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
                return Ok((path, device));
            }
            if Error::last_os_error().raw_os_error() == Some(libc::EBUSY) {
                break; // somebody was quicker
            }
        }
    }
    step("attach a loop device to", image, Err("all are busy"))
}

/// A user namespace that maps 0… to `base`…, for id-mapped mounts.
pub(super) fn user_namespace(base: u32, count: u32) -> Result<OwnedFd> {
    use std::io::{Read as _, Write as _};
    let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    // SAFETY: this process has one thread; the child makes only system calls and ends with `_exit`.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => {
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_ok();
            let _ = theirs.write_all(&[u8::from(made)]);
            drop(ours);
            let _ = theirs.read(&mut [0]);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(theirs);
            let mut answer = [0];
            let result = ours.read_exact(&mut answer).and_then(|()| {
                if answer != [1] {
                    return Err(Error::other("this kernel allows no user namespaces"));
                }
                let map = format!("0 {base} {count}\n");
                std::fs::write(format!("/proc/{pid}/uid_map"), &map)?;
                std::fs::write(format!("/proc/{pid}/gid_map"), &map)?;
                File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
            });
            drop(ours);
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
            result
        }
    }
}

/// Opens a directory of ours.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd> {
    step(
        "open",
        path,
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::from),
    )
}

/// A descriptor as a standard file.
pub(super) fn file_of(descriptor: OwnedFd) -> File {
    // SAFETY: ownership moves from one type to the other.
    unsafe { File::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(descriptor)) }
}

/// The borrowed form, for brevity at call sites.
pub(super) fn borrow(descriptor: &OwnedFd) -> BorrowedFd<'_> {
    descriptor.as_fd()
}
