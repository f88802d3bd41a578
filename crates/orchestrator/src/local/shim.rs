//! The process that owns one container: `arco shim run DIRECTORY`, and `arco shim exec DIRECTORY FD` for a program in it.
//!
//! It is the same executable, single-threaded, in a session and mount namespace of its own, and outlives the server. It
//! holds the program's pipes, keeps its log, waits for its exit status, starts it again with back-off, and answers the
//! server on a socket. What must hold: no thread exists when [`shim_main`] is called; nothing secret is in arguments or
//! environment; whatever a shim mounted is gone when it ends.

mod bundle;
mod exec;
mod launch;
mod mounts;
pub(super) mod output;
pub(super) mod protocol;
pub(super) mod rootfs;
mod serve;
mod surroundings;
mod user;

pub(super) use exec::ExecOrder;
pub(super) use rootfs::INIT_PATH;
use std::ffi::OsString;
use std::path::Path;

/// The static PID 1 of containers.
pub(super) static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Entry point of `shim`; `args` are those behind it. Call it before any thread exists. Returns the exit status.
pub fn shim_main(args: &[OsString]) -> i32 {
    let words: Vec<_> = args.iter().filter_map(|it| it.to_str()).collect();
    match words[..] {
        ["run", directory] => serve::run(Path::new(directory)),
        ["exec", directory, control] => match control.parse() {
            Ok(control) => exec::run(Path::new(directory), control),
            Err(_) => 2,
        },
        _ => 2,
    }
}
