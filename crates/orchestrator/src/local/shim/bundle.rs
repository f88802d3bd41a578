//! The OCI runtime configuration of a container: namespaces, rights, limits. Deny first.
//!
//! Pure but for reading our own hard limits. Mounts that need the host's rights are made by `rootfs` before.

use super::protocol::{ID_RANGE, ShimSpec};
use super::rootfs::INIT_PATH;
use super::user::User;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResourcesBuilder,
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall,
    LinuxSyscallBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Where programs are looked up when nothing else is said.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Architecture §9: what a root inside may do.
const CAPABILITIES: [Capability; 10] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Setuid,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setfcap,
    Capability::Kill,
    Capability::NetBindService,
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Variables as the program gets them.
pub(super) fn environment(given: &BTreeMap<String, String>, home: &str) -> Vec<String> {
    let mut variables = given.clone();
    variables.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    variables.entry("HOME".to_owned()).or_insert_with(|| home.to_owned());
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The whole configuration.
pub(super) fn build(spec: &ShimSpec, user: &User, root: &Path, id_base: Option<u32>) -> Result<Spec, OciSpecError> {
    let container = &spec.container;
    let all: Capabilities = CAPABILITIES.into_iter().collect();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(all.clone())
        .effective(all.clone())
        .permitted(all)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()?;
    let mut argv = vec![INIT_PATH.to_owned()];
    argv.extend(container.argv.iter().cloned());
    let working_dir = if container.working_dir.is_empty() { "/" } else { &container.working_dir };
    let process = ProcessBuilder::default()
        .args(argv)
        .env(environment(&container.env, &user.home))
        .cwd(working_dir)
        .user(UserBuilder::default().uid(user.uid).gid(user.gid).additional_gids(user.groups.clone()).build()?)
        .capabilities(capabilities)
        .rlimits(rlimits()?)
        .no_new_privileges(true)
        // When the machine runs out of memory, an application goes before the platform.
        .oom_score_adj(100)
        .terminal(false)
        .build()?;
    SpecBuilder::default()
        .version("1.0.2")
        .process(process)
        .root(RootBuilder::default().path(root).readonly(false).build()?)
        .hostname(container.hostname.clone())
        .mounts(mounts()?)
        .linux(linux(spec, id_base)?)
        .build()
}

fn linux(spec: &ShimSpec, id_base: Option<u32>) -> Result<Linux, OciSpecError> {
    use LinuxNamespaceType as Type;
    // The shim is in the container's network namespace already.
    let mut kinds = vec![Type::Pid, Type::Mount, Type::Ipc, Type::Uts, Type::Cgroup];
    kinds.extend(id_base.map(|_| Type::User));
    let namespaces =
        kinds.into_iter().map(|it| LinuxNamespaceBuilder::default().typ(it).build()).collect::<Result<Vec<_>, _>>()?;
    let limits = &spec.container.resources;
    let memory = i64::from(limits.memory_mb.max(8)) << 20;
    let mut memory_limits = LinuxMemoryBuilder::default().limit(memory);
    let swap = swap_limit(&spec.cgroup);
    if swap == Some(SwapLimit::WithMemory) {
        memory_limits = memory_limits.swap(memory);
    }
    let mut resources = LinuxResourcesBuilder::default()
        .memory(memory_limits.build()?)
        .pids(LinuxPidsBuilder::default().limit(i64::from(limits.pids.max(2))).build()?);
    if swap == Some(SwapLimit::Alone) {
        // As a limit of memory and swap together, libcontainer would leave this file alone when the rest is zero.
        resources = resources.unified(HashMap::from([(SWAP_MAX.to_owned(), "0".to_owned())]));
    }
    if limits.cpu_milli > 0 {
        let quota = i64::from(limits.cpu_milli.max(10)) * 100;
        resources = resources.cpu(LinuxCpuBuilder::default().period(100_000u64).quota(quota).build()?);
    }
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources.build()?)
        .cgroups_path(Path::new("/").join(&spec.cgroup))
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec())
        .seccomp(seccomp()?);
    if let Some(base) = id_base {
        let map = vec![LinuxIdMappingBuilder::default().host_id(base).container_id(0u32).size(ID_RANGE).build()?];
        linux = linux.uid_mappings(map.clone()).gid_mappings(map);
    }
    linux.build()
}

/// What the kernel counts as swap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SwapLimit {
    /// v1: memory and swap together.
    WithMemory,
    /// v2: swap only.
    Alone,
}

/// File of the limit of swap on v2.
const SWAP_MAX: &str = "memory.swap.max";

/// Without swap accounting there is no file, and asking for it fails the start. The cgroup is made already.
fn swap_limit(cgroup: &str) -> Option<SwapLimit> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("memory/memory.memsw.limit_in_bytes").exists() {
        return Some(SwapLimit::WithMemory);
    }
    root.join(cgroup).join(SWAP_MAX).exists().then_some(SwapLimit::Alone)
}

/// More open files than the usual 1024, never above what we may.
fn rlimits() -> Result<Vec<PosixRlimit>, OciSpecError> {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let files = hard.min(1 << 20);
    let limit = |kind, value: u64| PosixRlimitBuilder::default().typ(kind).soft(value).hard(value).build();
    Ok(vec![limit(PosixRlimitType::RlimitNofile, files)?, limit(PosixRlimitType::RlimitCore, 0)?])
}

fn mounts() -> Result<Vec<Mount>, OciSpecError> {
    let rows: [(&str, &str, &[&str]); 5] = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=64m"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    rows.into_iter()
        .map(|(at, kind, options)| {
            let options: Vec<String> = options.iter().map(|it| (*it).to_owned()).collect();
            MountBuilder::default().destination(at).typ(kind).source(kind).options(options).build()
        })
        .collect()
}

/// System calls: those listed work, the refused say EPERM, and what is newer than our list says ENOSYS, so that
/// programs fall back to what is known.
fn seccomp() -> Result<LinuxSeccomp, OciSpecError> {
    let names = |list: &str| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let row = |names: Vec<String>, action| LinuxSyscallBuilder::default().names(names).action(action);
    let equal = |index: usize, value: u64, operator, two: u64| {
        LinuxSeccompArgBuilder::default().index(index).value(value).value_two(two).op(operator).build()
    };
    let mut rows: Vec<LinuxSyscall> = vec![
        row(names(include_str!("allowed_syscalls.txt")), LinuxSeccompAction::ScmpActAllow).build()?,
        row(names(include_str!("refused_syscalls.txt")), LinuxSeccompAction::ScmpActErrno)
            .errno_ret(libc::EPERM as u32)
            .build()?,
    ];
    // No new namespaces: all CLONE_NEW* bits but CLONE_NEWTIME, which shares its bit with the exit signal.
    const NEW_NAMESPACES: u64 = 0x7e02_0000;
    let allow = |name: &str, arg| row(vec![name.to_owned()], LinuxSeccompAction::ScmpActAllow).args(vec![arg]).build();
    rows.push(allow("clone", equal(0, NEW_NAMESPACES, LinuxSeccompOperator::ScmpCmpMaskedEq, 0)?)?);
    // AF_VSOCK reaches the hypervisor.
    rows.push(allow("socket", equal(0, libc::AF_VSOCK as u64, LinuxSeccompOperator::ScmpCmpNe, 0)?)?);
    for personality in [0, 0x0002_0000, 0xffff_ffff] {
        rows.push(allow("personality", equal(0, personality, LinuxSeccompOperator::ScmpCmpEq, 0)?)?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::ENOSYS as u32)
        .syscalls(rows)
        .build()
}
