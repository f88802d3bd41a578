//! What of a platform is still there: processes, mounts, cgroups, links, rules, files of network namespaces.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long processes that were killed may take to be gone.
const ENDING: Duration = Duration::from_secs(60);

/// Everything that mentions the data dir, or is named by one of the instances.
pub(crate) fn find(data: &Path, instances: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let names = cgroup_names(data, instances);
    for pid in all_processes(data, &names) {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.push(format!("process {pid} {}", String::from_utf8_lossy(&line).replace('\0', " ")));
    }
    found.extend(mounts(data).into_iter().map(|it| format!("mount {}", it.display())));
    found.extend(
        cgroups(Path::new("/sys/fs/cgroup"), &names, 0).into_iter().map(|it| format!("cgroup {}", it.display())),
    );
    found.extend(links(data).into_iter().map(|it| format!("link {it}")));
    found.extend(tables(data).into_iter().map(|it| format!("table {it}")));
    found.extend(run_folders(data).into_iter().map(|it| format!("folder {}", it.display())));
    found
}

/// Ends and removes what [`find`] found.
pub(crate) fn clean(data: &Path, instances: &[String]) {
    let names = cgroup_names(data, instances);
    // A shim that is killed while it starts a program may have forked since the look, so look again until none is left.
    let end = Instant::now() + ENDING;
    while Instant::now() < end {
        let pids = all_processes(data, &names);
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
    for mount in mounts(data).into_iter().rev() {
        let _ = Command::new("umount").arg("-l").arg(mount).status();
    }
    for cgroup in cgroups(Path::new("/sys/fs/cgroup"), &names, 0).into_iter().rev() {
        remove_cgroup(&cgroup);
    }
    for link in links(data) {
        let _ = Command::new("ip").args(["link", "delete", &link]).status();
    }
    for table in tables(data) {
        let _ = Command::new("nft").args(["delete", "table", "ip", &table]).status();
    }
    for folder in run_folders(data) {
        for entry in std::fs::read_dir(folder.join("netns")).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("-l").arg(entry.path()).status();
        }
        let _ = Command::new("umount").arg("-l").arg(&folder).stderr(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Processes that [`processes`] knows, and those in the control groups of these names.
fn all_processes(data: &Path, names: &[String]) -> BTreeSet<u32> {
    let groups = cgroups(Path::new("/sys/fs/cgroup"), names, 0);
    processes(data).into_iter().chain(groups.iter().flat_map(|it| members(it))).collect()
}

/// Processes whose command line, or whose root file system, is of this data dir.
fn processes(data: &Path) -> Vec<u32> {
    let run = digits(data).map(|it| format!("/run/arco/{it}/"));
    let data = data.display().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            let root = mounts.lines().any(|it| it.contains(&data) && it.split(' ').nth(4) == Some("/"));
            let line = String::from_utf8_lossy(&line);
            root || line.contains(&data) || run.as_ref().is_some_and(|it| line.contains(it))
        })
        .collect()
}

fn mounts(data: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let data = data.display().to_string();
    text.lines().filter(|it| it.contains(&data)).filter_map(|it| it.split(' ').nth(1)).map(PathBuf::from).collect()
}

/// Processes in a control group and in those below it: the program of a container whose shim is gone is only found here.
fn members(folder: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = text.lines().filter_map(|it| it.parse().ok()).collect();
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    pids.extend(below.filter(|it| it.file_type().is_ok_and(|it| it.is_dir())).flat_map(|it| members(&it.path())));
    pids
}

/// A control group goes after those below it.
fn remove_cgroup(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

fn cgroup_names(data: &Path, instances: &[String]) -> Vec<String> {
    let own = digits(data).map(|it| format!("arco-{it}"));
    instances.iter().cloned().chain(own).collect()
}

fn cgroups(folder: &Path, instances: &[String], depth: usize) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten().filter(|it| it.file_type().is_ok_and(|it| it.is_dir())) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if instances.iter().any(|it| name.contains(it.as_str())) {
            found.push(entry.path());
        } else if depth < 6 {
            found.extend(cgroups(&entry.path(), instances, depth + 1));
        }
    }
    found
}

/// The six digits that links, rules and run folders of this data dir are named with.
fn digits(data: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data.join("network/state.json")).ok()?;
    let state: serde_json::Value = serde_json::from_str(&text).ok()?;
    state["bridge"].as_str()?.strip_prefix("arco-").map(str::to_owned)
}

/// The bridge and the outer ends of the instances' links.
fn links(data: &Path) -> Vec<String> {
    let Some(digits) = digits(data) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    let names = entries.flatten().filter_map(|it| it.file_name().into_string().ok());
    names.filter(|it| *it == format!("arco-{digits}") || it.starts_with(&format!("v{digits}"))).collect()
}

/// Tables of rules.
fn tables(data: &Path) -> Vec<String> {
    let Some(digits) = digits(data) else { return Vec::new() };
    let listed = Command::new("nft").args(["list", "tables"]).output();
    let listed = listed.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default();
    let name = format!("arco_{digits}");
    listed
        .lines()
        .filter(|it| it.ends_with(&name))
        .filter_map(|it| it.split(' ').next_back())
        .map(str::to_owned)
        .collect()
}

/// The run folder with the network namespaces.
fn run_folders(data: &Path) -> Vec<PathBuf> {
    let folder = digits(data).map(|it| Path::new("/run/arco").join(it));
    folder.filter(|it| it.exists()).into_iter().collect()
}
