//! The system calls that a network program needs; all others fail with `EPERM`.
//!
//! An allow list: what the kernel learns tomorrow is refused. Refused rather than killed: a library that tries something
//! nice takes its other way. What must never be on it: new programs, other processes' memory, mounts, namespaces, modules,
//! keys, kernel programs, executable memory.

use super::{ConfineError, fail};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use std::collections::BTreeMap;
use std::io::Error;

/// Calls that are free, whatever their arguments.
const FREE: &[i64] = &[
    // Memory, threads, time.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Refused by the second filter with the word that makes libraries use `clone`.
    libc::SYS_clone3,
    // A further filter only takes away.
    libc::SYS_seccomp,
    // Signals of its own.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Files, all of them in its folder.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_umask,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_socketpair,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
];

/// The old forms of some of them, which this architecture still has.
#[cfg(target_arch = "x86_64")]
const OLD_FORMS: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_FORMS: &[i64] = &[];

const NUMBER: SeccompCmpArgLen = SeccompCmpArgLen::Dword;

/// Leaves this process, and all that it starts, only the system calls of a network program. `set_no_new_privs` comes
/// with it.
pub fn forbid() -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(fail("no new privileges"))?;
    let step = fail("forbid system calls");
    for program in programs().map_err(&step)? {
        apply_filter(&program).map_err(|it| step(Error::other(it)))?;
    }
    Ok(())
}

fn programs() -> Result<[BpfProgram; 2], Error> {
    let compile = |rules, other, listed| -> Result<BpfProgram, seccompiler::BackendError> {
        let architecture = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(rules, other, listed, architecture)?.try_into()
    };
    let number = |it: i32| it.cast_unsigned();
    let allowed =
        compile(rules().map_err(Error::other)?, SeccompAction::Errno(number(libc::EPERM)), SeccompAction::Allow);
    // Its flags lie in memory, where no filter can see them; `ENOSYS` makes the C library use `clone`.
    let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let hidden = compile(hidden, SeccompAction::Allow, SeccompAction::Errno(number(libc::ENOSYS)));
    Ok([allowed.map_err(Error::other)?, hidden.map_err(Error::other)?])
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FREE.iter().chain(OLD_FORMS).map(|call| (*call, Vec::new())).collect();
    let bits = |it: i32| u64::from(it.cast_unsigned());
    // Argument, which of its bits, and what they must be.
    let only = |argument, mask: u64, value: u64| {
        SeccompRule::new(vec![SeccompCondition::new(argument, NUMBER, SeccompCmpOp::MaskedEq(mask), value)?])
    };
    let all = u64::from(u32::MAX);
    let one_of = |argument, values: &[i32]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        values.iter().map(|it| only(argument, all, bits(*it))).collect()
    };
    // Threads, not processes.
    rules.insert(libc::SYS_clone, vec![only(0, bits(libc::CLONE_THREAD), bits(libc::CLONE_THREAD))?]);
    // No code from outside.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only(2, bits(libc::PROT_EXEC), 0)?]);
    }
    // Addresses and links of the machine may be read; packets of others may not.
    rules.insert(libc::SYS_socket, one_of(0, &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX])?);
    rules.entry(libc::SYS_socket).or_default().push(SeccompRule::new(vec![
        SeccompCondition::new(0, NUMBER, SeccompCmpOp::Eq, bits(libc::AF_NETLINK))?,
        SeccompCondition::new(2, NUMBER, SeccompCmpOp::Eq, bits(libc::NETLINK_ROUTE))?,
    ])?);
    let requests = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TIOCGWINSZ, libc::TCGETS];
    let requests: Result<Vec<_>, _> = requests.iter().map(|it| only(1, all, u64::from(*it as u32))).collect();
    rules.insert(libc::SYS_ioctl, requests?);
    // PR_SET_VMA is what allocators name their memory with.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS];
    rules.insert(libc::SYS_prctl, one_of(0, &names)?);
    // To itself: how a program ends that found itself broken.
    rules.insert(libc::SYS_tgkill, vec![only(0, all, u64::from(std::process::id()))?]);
    Ok(rules)
}
