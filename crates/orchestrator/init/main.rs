//! PID 1 of every container: starts the program, hands signals on, reaps what nobody waits for, and ends with the
//! program's status (128 + signal when a signal ended it).
//!
//! Without a program it holds the container open until SIGTERM or SIGINT comes, for programs that are run in it.
//!
//! Built static by `build.rs` and embedded, so that it runs in empty and musl images. What must hold: no allocation,
//! no files, nothing but this. Statuses as a shell gives them: 127 not found, 126 not executable.

#![no_std]
#![no_main]

use core::ffi::{c_char, c_int, c_long, c_void};

#[repr(C)]
struct SigSet([u64; 16]);

#[link(name = "c")]
unsafe extern "C" {
    fn fork() -> c_int;
    fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn sigfillset(set: *mut SigSet) -> c_int;
    fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    fn sigwaitinfo(set: *const SigSet, info: *mut c_void) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, count: usize) -> c_long;
    fn setsid() -> c_int;
    fn _exit(status: c_int) -> !;
    fn __errno_location() -> *mut c_int;
}

const SIG_SETMASK: c_int = 2;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const SIGTSTP: c_int = 20;
const SIGTTIN: c_int = 21;
const SIGTTOU: c_int = 22;
const WNOHANG: c_int = 1;
const ENOENT: c_int = 2;
const ENOTDIR: c_int = 20;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: ends the process.
    unsafe { _exit(125) }
}

fn say(text: &[u8]) {
    // SAFETY: pointer and length of one slice. A full pipe loses the line, nothing else.
    unsafe { write(2, text.as_ptr().cast(), text.len()) };
}

fn length(text: *const c_char) -> usize {
    let mut count = 0;
    // SAFETY: arguments end with a zero byte.
    while unsafe { *text.add(count) } != 0 {
        count += 1;
    }
    count
}

/// Entry point.
///
/// # Safety
/// Called once by the C start code with the arguments of the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let mut all = SigSet([0; 16]);
    // The starter blocks every signal, so that one which comes before this point waits here instead of being lost.
    let none = SigSet([0; 16]);
    if argc < 2 {
        // SAFETY: plain calls with pointers to live values.
        unsafe {
            sigfillset(&mut all);
            sigprocmask(SIG_SETMASK, &all, core::ptr::null_mut());
            while !matches!(sigwaitinfo(&all, core::ptr::null_mut()), SIGTERM | SIGINT) {}
        }
        return 0;
    }
    // SAFETY: plain calls with pointers to live values; `argv` ends with a null pointer.
    unsafe {
        sigfillset(&mut all);
        sigprocmask(SIG_SETMASK, &all, core::ptr::null_mut());
        let program = fork();
        if program < 0 {
            say(b"arco: failed to start the program: no process left under the limit\n");
            return 126;
        }
        if program == 0 {
            setsid();
            sigprocmask(SIG_SETMASK, &none, core::ptr::null_mut());
            let args = argv.add(1);
            execvp(*args, args);
            let errno = *__errno_location();
            let missing = errno == ENOENT || errno == ENOTDIR;
            say(b"arco: cannot start `");
            say(core::slice::from_raw_parts((*args).cast(), length(*args)));
            say(if missing { b"`: no such program in the image\n" } else { b"`: it is not executable\n" });
            _exit(if missing { 127 } else { 126 });
        }
        loop {
            let signal = sigwaitinfo(&all, core::ptr::null_mut());
            match signal {
                SIGCHLD => loop {
                    let mut status = 0;
                    let pid = waitpid(-1, &mut status, WNOHANG);
                    if pid <= 0 {
                        break;
                    }
                    if pid == program {
                        return if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
                    }
                },
                // Nobody can continue a stopped program here.
                SIGTSTP | SIGTTIN | SIGTTOU => {}
                signal if signal > 0 => {
                    kill(program, signal);
                }
                _ => {}
            }
        }
    }
}
