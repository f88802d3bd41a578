//! What the kernel and the disk offer, and which addresses are taken.

use super::Finding;
use arco_config::Config;
use nix::sys::statvfs::statvfs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

/// Free space below which builds and logs are in danger, in bytes.
const LITTLE_SPACE: u64 = 10 << 30;
/// Free space below which nothing can be built, in bytes.
const NO_SPACE: u64 = 2 << 30;

/// The kernel.
pub(super) fn machine() -> Vec<Finding> {
    vec![root(), cgroups(), overlay(), user_namespaces(), seccomp(), loop_devices(), forwarding()]
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn root() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::good("user", "root")
    } else {
        Finding::bad("user", "not root", "run `sudo arco doctor`; `arco server` needs root for containers and networks")
    }
}

fn cgroups() -> Finding {
    judge_cgroups(&read("/proc/self/mountinfo"), &read("/proc/cgroups"), &read("/sys/fs/cgroup/cgroup.controllers"))
}

/// `mounts` is mountinfo, `v1` is /proc/cgroups, `v2` the controllers of the unified hierarchy.
fn judge_cgroups(mounts: &str, v1: &str, v2: &str) -> Finding {
    let types: Vec<&str> = mounts.lines().filter_map(|it| it.split(" - ").nth(1)?.split(' ').next()).collect();
    let (has_v1, has_v2) = (types.contains(&"cgroup"), types.contains(&"cgroup2"));
    let mode = match (has_v1, has_v2) {
        (true, true) => "v1 with a v2 hierarchy (hybrid)",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => {
            return Finding::bad(
                "cgroups",
                "not mounted",
                "mount them: `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd",
            );
        }
    };
    let offered: Vec<&str> = if has_v1 {
        // Columns: name, hierarchy, number, enabled.
        v1.lines()
            .filter(|it| !it.starts_with('#') && it.trim_end().ends_with('1'))
            .filter_map(|it| it.split_whitespace().next())
            .collect()
    } else {
        v2.split_whitespace().collect()
    };
    let missing: Vec<&str> = ["cpu", "memory", "pids"].into_iter().filter(|it| !offered.contains(it)).collect();
    if missing.is_empty() {
        Finding::good("cgroups", mode)
    } else {
        let advice = "enable them on the kernel's command line (`cgroup_enable=memory`), or in the parent group's cgroup.subtree_control";
        Finding::bad("cgroups", format!("{mode}, without {}", missing.join(", ")), advice)
    }
}

fn overlay() -> Finding {
    let known =
        read("/proc/filesystems").lines().any(|it| it.trim() == "nodev\toverlay" || it.trim().ends_with("\toverlay"));
    if known {
        Finding::good("overlayfs", "known to the kernel")
    } else {
        Finding::bad("overlayfs", "not known to the kernel", "load it: `modprobe overlay`")
    }
}

fn user_namespaces() -> Finding {
    let most = read("/proc/sys/user/max_user_namespaces");
    if !Path::new("/proc/self/ns/user").exists() {
        Finding::warning("user namespaces", "not in this kernel", "builds need them: use a kernel with CONFIG_USER_NS")
    } else if most.trim() == "0" {
        Finding::warning(
            "user namespaces",
            "switched off",
            "switch them on: `sysctl -w user.max_user_namespaces=15000`",
        )
    } else {
        Finding::good("user namespaces", "available")
    }
}

fn seccomp() -> Finding {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        Finding::good("seccomp", "available")
    } else {
        Finding::bad(
            "seccomp",
            "not in this kernel",
            "use a kernel with CONFIG_SECCOMP_FILTER; no instance starts without",
        )
    }
}

fn loop_devices() -> Finding {
    if Path::new("/dev/loop-control").exists() {
        Finding::good("loop devices", "available")
    } else {
        let advice = "load them: `modprobe loop`; without, the size of volumes and writable layers is a soft limit";
        Finding::warning("loop devices", "not available", advice)
    }
}

fn forwarding() -> Finding {
    if read("/proc/sys/net/ipv4/ip_forward").trim() == "1" {
        Finding::good("ip forwarding", "on")
    } else {
        let advice = "nothing to do: the server switches it on; to keep it after a reboot, set `net.ipv4.ip_forward=1` in /etc/sysctl.d/";
        Finding::warning("ip forwarding", "off", advice)
    }
}

/// The disk below the data dir (or below the nearest folder above that exists).
pub(super) fn disk(data_dir: &Path) -> Vec<Finding> {
    let Some(folder) = data_dir.ancestors().find(|it| it.exists()) else { return Vec::new() };
    let shown = folder.display();
    let Ok(space) = statvfs(folder) else {
        return vec![Finding::bad("disk", format!("`{shown}` cannot be looked at"), "check the file system")];
    };
    #[allow(clippy::unnecessary_cast)] // their width differs between machines
    let free = space.blocks_available() as u64 * space.fragment_size() as u64;
    let found = format!("{} free below `{shown}`", crate::cli::text::megabytes(free));
    vec![if free < NO_SPACE {
        Finding::bad("disk", found, "free at least 2 GB, or choose another place with `--data-dir`")
    } else if free < LITTLE_SPACE {
        Finding::warning("disk", found, "10 GB or more are better: builds, images and logs need room")
    } else {
        Finding::good("disk", found)
    }]
}

/// The default addresses, and who holds those that are taken.
pub(super) fn ports(config: &Config) -> Vec<Finding> {
    let addresses = [
        ("--http-listen", config.gateway.http_listen),
        ("--https-listen", config.gateway.https_listen),
        ("--api-listen", config.api.listen),
        ("--console-listen", config.console.listen),
        ("--registry-listen", config.registry.listen),
    ];
    addresses.into_iter().map(|(flag, address)| port(flag, address)).collect()
}

fn port(flag: &str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::good("address", format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = arco_daemon::listener::holder(address);
            match holder {
                Some(it) if it.name.contains("arco") => Finding::good(
                    "address",
                    format!("{address} is held by `{}` (process {}): a platform runs", it.name, it.pid),
                ),
                Some(it) => {
                    let found = format!("{address} is held by `{}` (process {})", it.name, it.pid);
                    Finding::bad(
                        "address",
                        found,
                        format!("stop that process, or choose another address with `arco server {flag} ADDRESS`"),
                    )
                }
                None => Finding::bad(
                    "address",
                    format!("{address} is in use"),
                    format!("choose another address with `arco server {flag} ADDRESS`"),
                ),
            }
        }
        Err(error) => Finding::warning(
            "address",
            format!("{address} cannot be bound: {error}"),
            "run as root, or choose another address",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn cgroup_modes_are_told_apart() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let v2 = "31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let all = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t2\t1\nmemory\t2\t3\t1\npids\t3\t4\t1\n";
        let no_memory = "cpu\t1\t2\t1\nmemory\t0\t3\t0\npids\t3\t4\t1\n";
        for (mounts, controllers, unified, level, text) in [
            (format!("{v1}{v2}"), all, "", Level::Good, "hybrid"),
            (v1.to_owned(), no_memory, "", Level::Bad, "without memory"),
            (v2.to_owned(), all, "cpuset cpu io memory pids", Level::Good, "v2"),
            (v2.to_owned(), all, "cpu", Level::Bad, "without memory, pids"),
            (String::new(), all, "", Level::Bad, "not mounted"),
        ] {
            let finding = judge_cgroups(&mounts, controllers, unified);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(text), "{finding:?}");
        }
    }

    #[test]
    fn a_taken_address_is_told_with_its_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let finding = port("--api-listen", address);
        assert!(finding.found.contains(&format!("process {}", std::process::id())), "{finding:?}");
    }
}
