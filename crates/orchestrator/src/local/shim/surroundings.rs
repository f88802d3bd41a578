//! Where a shim lives: session, mount namespace without the mounts of others, network namespace of its container.
//!
//! The shim stays in the container's network namespace: the container inherits it, and sysfs mounted by the shim shows
//! its devices. As that namespace belongs to the host's user namespace, nobody inside can reconfigure it.

use super::mounts::step;
use super::protocol::ShimSpec;
use super::rootfs::mount_point;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use std::fs::File;
use std::io::{Error, Result};
use std::path::Path;

/// Leaves the server's surroundings.
pub(super) fn leave(spec: &ShimSpec) -> Result<()> {
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true)?;
    let _ = nix::sys::prctl::set_name(c"arco-shim");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    std::env::set_current_dir("/")?;
    match &spec.container.netns {
        Some(path) => {
            let file = step("open", path, File::open(path))?;
            step("enter", path, nix::sched::setns(file, CloneFlags::CLONE_NEWNET))?;
        }
        None => {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            raise_loopback()?;
        }
    }
    // Capabilities over the namespace's ports do not exist in the container's user namespace.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    // Slave: what the host unmounts later goes away here too.
    let none: Option<&str> = None;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    forget_others(spec)
}

/// Lets go of mounts of other containers, volumes and network namespaces, which would stay busy because of us.
fn forget_others(spec: &ShimSpec) -> Result<()> {
    let needed = |point: &Path| {
        let ours = [&spec.log_dir, &spec.disk_dir];
        let mounts = spec.container.mounts.iter().map(|it| &it.host_path);
        let layers = spec.layers.iter().chain(&spec.disk_image);
        ours.into_iter().chain(mounts).chain(layers).any(|it| it.starts_with(point))
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    for line in table.lines().rev() {
        let Some(point) = mount_point(line) else { continue };
        // `<kind> <source> <options>`; loop devices are volumes, perhaps those of another server.
        let mut words = line.split(" - ").nth(1).unwrap_or_default().split(' ');
        let is_namespace = words.next() == Some("nsfs");
        let is_loop = words.next().is_some_and(|it| it.starts_with("/dev/loop"));
        if is_namespace || (is_loop && !needed(&point)) || (point.starts_with(&spec.data_dir) && !needed(&point)) {
            let _ = nix::mount::umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
    Ok(())
}

/// Brings up `lo`.
fn raise_loopback() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd as _;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero `ifreq` is valid; the ioctl reads the name and the flags of one live value.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    if done == 0 { Ok(()) } else { Err(Error::other(format!("failed to bring up lo: {}", Error::last_os_error()))) }
}
