//! Cgroups of containers, on v1, hybrid and v2: made, read, emptied, removed through their files.
//!
//! Limits are applied by libcontainer at the start of a program; this is for what it does not do. A cgroup is named
//! `arco-<server>/<container id>` below the root of each hierarchy. No systemd is needed.

use crate::Usage;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";
/// How long killed processes may take to leave a cgroup; it is a moment, unless they get no time to end.
const LEAVING: Duration = Duration::from_secs(15);

/// The cgroup of one container in every hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    /// `(controllers, directory)`; one without controllers named on v2.
    directories: Vec<(String, PathBuf)>,
}

impl Cgroup {
    /// The cgroup `name`, whether it exists or not.
    pub(super) fn new(name: &str) -> Self {
        let join = |root: &Path| root.join(name);
        if is_unified() {
            return Self { directories: vec![(String::new(), join(Path::new(ROOT)))] };
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let directories = mounts
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let (_, at, kind, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
                let named = options.split(',').any(|it| it.starts_with("name="));
                (kind == "cgroup" && !named).then(|| (options.to_owned(), join(Path::new(at))))
            })
            .collect();
        Self { directories }
    }

    /// Makes it where it is missing.
    pub(super) fn make(&self) -> std::io::Result<()> {
        for (options, directory) in &self.directories {
            if let Some(parent) = directory.parent() {
                make_directory(parent)?;
                if options.is_empty() {
                    // v2: a child has a controller only if its parent hands it down.
                    for level in [Path::new(ROOT), parent] {
                        for controller in ["cpu", "memory", "pids", "io"] {
                            let _ = std::fs::write(level.join("cgroup.subtree_control"), format!("+{controller}"));
                        }
                    }
                } else if options.split(',').any(|it| it == "cpuset") {
                    // v1: a fresh cpuset is empty and takes no process.
                    inherit_cpuset(parent);
                }
            }
            make_directory(directory)?;
            if options.split(',').any(|it| it == "cpuset") {
                inherit_cpuset(directory);
            }
        }
        Ok(())
    }

    /// Every directory, with the last word of its hierarchy's mount point (empty on v2).
    pub(super) fn directories(&self) -> impl Iterator<Item = (String, &Path)> {
        self.directories.iter().map(|(options, directory)| {
            let hierarchy = directory.ancestors().nth(2).and_then(Path::file_name);
            let name = if options.is_empty() {
                String::new()
            } else {
                hierarchy.unwrap_or_default().to_string_lossy().into_owned()
            };
            (name, directory.as_path())
        })
    }

    fn of(&self, controller: &str) -> Option<&Path> {
        let has = |options: &str| options.is_empty() || options.split(',').any(|it| it == controller);
        self.directories.iter().find(|(options, _)| has(options)).map(|(_, directory)| directory.as_path())
    }

    fn unified(&self) -> bool {
        self.directories.iter().any(|(options, _)| options.is_empty())
    }

    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        std::fs::read_to_string(self.of(controller)?.join(file)).ok()?.trim().parse().ok()
    }

    fn field(&self, controller: &str, file: &str, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.of(controller)?.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// How often the kernel ended a process of it for want of memory.
    pub(super) fn oom_kills(&self) -> u64 {
        let file = if self.unified() { "memory.events" } else { "memory.oom_control" };
        self.field("memory", file, "oom_kill").unwrap_or(0)
    }

    /// What it uses now; zero for what cannot be read.
    pub(super) fn usage(&self) -> Usage {
        let (cpu_ms, memory, cache) = if self.unified() {
            (
                self.field("cpu", "cpu.stat", "usage_usec").unwrap_or(0) / 1000,
                self.number("memory", "memory.current"),
                self.field("memory", "memory.stat", "inactive_file"),
            )
        } else {
            (
                self.number("cpuacct", "cpuacct.usage").unwrap_or(0) / 1_000_000,
                self.number("memory", "memory.usage_in_bytes"),
                self.field("memory", "memory.stat", "total_inactive_file"),
            )
        };
        Usage {
            cpu_ms,
            memory_bytes: memory.unwrap_or(0).saturating_sub(cache.unwrap_or(0)),
            pids: self.number("pids", "pids.current").unwrap_or(0) as u32,
        }
    }

    /// Ends every process in it and removes it. Returns whether it is gone everywhere.
    pub(super) fn remove(&self) -> bool {
        let (mut gone, end) = (true, Instant::now() + LEAVING);
        for (_, directory) in &self.directories {
            // A killed process leaves its cgroup a moment after the signal.
            let mut pause = Duration::ZERO;
            while std::fs::remove_dir(directory).is_err_and(|it| it.raw_os_error() == Some(libc::EBUSY)) {
                kill_all(directory);
                if Instant::now() >= end {
                    break;
                }
                std::thread::sleep(pause);
                pause = (pause + Duration::from_millis(1)).min(Duration::from_millis(10));
            }
            gone &= !directory.exists();
        }
        gone
    }

    /// Files that take a process into it, opened for writing.
    pub(super) fn entries(&self) -> Vec<std::fs::File> {
        let open = |directory: &Path| std::fs::OpenOptions::new().write(true).open(directory.join("cgroup.procs")).ok();
        self.directories.iter().filter_map(|(_, directory)| open(directory)).collect()
    }
}

/// Removes the parent of a server's cgroups, if it is empty.
pub(super) fn remove_parent(name: &str) {
    for (_, directory) in &Cgroup::new(name).directories {
        let _ = std::fs::remove_dir(directory);
    }
}

fn is_unified() -> bool {
    nix::sys::statfs::statfs(ROOT).is_ok_and(|it| it.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn inherit_cpuset(directory: &Path) {
    let Some(parent) = directory.parent() else { return };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if std::fs::read_to_string(directory.join(file)).is_ok_and(|it| it.trim().is_empty()) {
            let _ = std::fs::read(parent.join(file)).and_then(|it| std::fs::write(directory.join(file), it));
        }
    }
}

fn kill_all(directory: &Path) {
    // v2 since Linux 5.14: all at once, also those that are being born.
    if std::fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for line in std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Ok(pid) = line.parse::<i32>()
            && pid > 0
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
