//! The server's end of a program inside a container; the other end is `shim exec`.

use super::ContainerPhase;
use super::state::Inner;
use crate::local::shim::ExecOrder;
use crate::{Error, ExecRequest, ExecSession};
use arco_model::id::InstanceId;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};

/// Starts a program in a running container.
pub(super) async fn exec(inner: &Arc<Inner>, id: &InstanceId, request: ExecRequest) -> Result<ExecSession, Error> {
    let state = inner.state(id).ok_or_else(|| Error::NotFound(id.to_string()))?;
    if state.phase != ContainerPhase::Running || request.argv.is_empty() {
        let why = if request.argv.is_empty() { "no program given" } else { "its program does not run now" };
        return Err(Error::Refused(format!("cannot run a program in instance {id}: {why}")));
    }
    let failed = |error: std::io::Error| Error::failed(format!("run a program in instance {id}"), error);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    let theirs = OwnedFd::from(theirs);
    let number = theirs.as_raw_fd();
    let terminal = request.terminal.is_some();
    let mut command = Command::new(&inner.config.executable);
    command
        .args(["shim", "exec"])
        .arg(inner.run_directory(id))
        .arg(number.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if terminal { Stdio::null() } else { Stdio::piped() });
    // SAFETY: between fork and exec only `fcntl` is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().map_err(failed)?;
    drop(theirs);
    let order = ExecOrder { argv: request.argv, terminal: request.terminal };
    let mut line = serde_json::to_vec(&order).map_err(|error| Error::failed("write the request", error))?;
    line.push(b'\n');
    ours.write_all(&line).await.map_err(failed)?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Error::failed(format!("run a program in instance {id}"), "it has no pipes"));
    };
    let stderr: Box<dyn tokio::io::AsyncRead + Send + Unpin> = match child.stderr.take() {
        Some(stderr) => Box::new(stderr),
        None => Box::new(tokio::io::empty()),
    };
    let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(8);
    let (mut told, exit) = oneshot::channel();
    inner.spawn(async move {
        let mut open = true;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.ok().and_then(|it| it.code()).unwrap_or(125),
                // Nobody wants the result: the closed socket makes the other end kill the program.
                () = told.closed() => {
                    drop(ours);
                    let _ = child.wait().await;
                    return;
                }
                size = sizes.recv(), if open => match size {
                    Some(size) => {
                        let line = format!("[{},{}]\n", size.0, size.1);
                        let _ = ours.write_all(line.as_bytes()).await;
                    }
                    None => open = false,
                },
            }
        };
        let _ = told.send(status);
    });
    Ok(ExecSession { stdin: Box::new(stdin), stdout: Box::new(stdout), stderr, resize, exit })
}
