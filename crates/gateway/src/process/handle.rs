//! The server's hand on a data plane: started by it, or found alive after a crash.

use super::{FAILURE, LOCK, SOCKET, Status, folder, short};
use crate::data_plane::{GatewayError, system};
use arco_model::traffic::{HostRates, RouteQuestion};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Longest answer that is read from the control socket, in bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// Longest time for such an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a process that starts or ends is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A data plane that answers on its control socket.
#[derive(Clone, Debug)]
pub struct Handle {
    run: PathBuf,
    /// What it said when it was found.
    pub status: Status,
}

/// Starts `command` (the executable with its arguments) as the data plane of `data_dir`, writing to `log`, and waits at
/// most `patience` until it serves.
pub async fn spawn(
    mut command: Command,
    data_dir: &Path,
    log: std::fs::File,
    patience: Duration,
) -> Result<Handle, GatewayError> {
    let run = folder(&data_dir.join("run"))?;
    let _ = std::fs::remove_file(run.join(FAILURE));
    let errors = log.try_clone().map_err(system("share its log"))?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let mut child = tokio::process::Command::from(command).spawn().map_err(system("start its process"))?;
    let began = Instant::now();
    loop {
        if let Some(handle) = adopt(data_dir).await
            && Some(handle.status.pid) == child.id()
        {
            return Ok(handle);
        }
        if let Some(status) = child.try_wait().map_err(system("watch its process"))? {
            let said = std::fs::read_to_string(run.join(FAILURE)).ok().filter(|it| !it.is_empty());
            return Err(GatewayError::NotStarted(
                said.unwrap_or_else(|| format!("it ended with {status}; see its log")),
            ));
        }
        if began.elapsed() > patience {
            let _ = child.kill().await;
            return Err(GatewayError::NotStarted(format!("it did not serve within {patience:?}; see its log")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The data plane that serves `data_dir`, if one answers.
pub async fn adopt(data_dir: &Path) -> Option<Handle> {
    let run = data_dir.join("run");
    let answer = ask(&run, "GET", "/status", "").await.ok()?;
    let status = serde_json::from_str(&answer).ok()?;
    Some(Handle { run, status })
}

impl Handle {
    /// What it says now.
    pub async fn refresh(&self) -> Option<Status> {
        serde_json::from_str(&ask(&self.run, "GET", "/status", "").await.ok()?).ok()
    }

    /// Counters as text.
    pub async fn metrics(&self) -> Option<String> {
        ask(&self.run, "GET", "/metrics", "").await.ok()
    }

    /// What passed through `hosts` in the last seconds; those that it does not know are left out.
    pub async fn rates(&self, hosts: &[String]) -> std::io::Result<BTreeMap<String, HostRates>> {
        let answer = ask(&self.run, "POST", "/rates", &serde_json::to_string(hosts)?).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// The way of a request, a line per decision. `InvalidInput` when the question cannot be understood.
    pub async fn explain(&self, question: &RouteQuestion) -> std::io::Result<Vec<String>> {
        let answer = ask(&self.run, "POST", "/explain", &serde_json::to_string(question)?).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Returns when the process has ended, however it did. Children of this process are reaped by the runtime.
    pub async fn ended(&self) {
        if let Ok(mut stream) = connect(&self.run).await {
            let request = "GET /hold HTTP/1.1\r\nHost: data-plane\r\n\r\n";
            if stream.write_all(request.as_bytes()).await.is_ok() {
                let mut byte = [0u8; 1];
                // Nothing is ever answered: whatever ends this, the process has ended.
                let _ = stream.read(&mut byte).await;
            }
        }
    }

    /// Asks it to drain and stop, waits at most `grace`, then ends it. Returns whether it stopped by itself.
    pub async fn stop(&self, grace: Duration) -> bool {
        let grace = match ask(&self.run, "POST", "/stop", "").await {
            Ok(_) => grace,
            // It does not answer: it is gone, or it hangs and will not drain either.
            Err(_) => Duration::ZERO,
        };
        let ended = async {
            while is_locked(&self.run) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(grace, ended).await.is_ok() {
            return true;
        }
        // The lock is held, so the number still means that process.
        if is_locked(&self.run) {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(self.status.pid).unwrap_or(0));
            if pid.as_raw() > 1 {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        false
    }
}

/// Whether a data plane holds the lock: the kernel lets go of it when the process ends.
fn is_locked(run: &Path) -> bool {
    let Ok(file) = std::fs::File::open(run.join(LOCK)) else { return false };
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockSharedNonblock).is_err()
}

async fn connect(run: &Path) -> std::io::Result<UnixStream> {
    let (_folder, path) = short(run, SOCKET)?;
    UnixStream::connect(&path).await
}

/// One request on the control socket; the body of its answer.
async fn ask(run: &Path, method: &str, path: &str, document: &str) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = connect(run).await?;
        let length = document.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: data-plane\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{document}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
        match head.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(body.to_owned()),
            Some("400") => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, body.trim().to_owned())),
            _ => Err(std::io::Error::other(head.to_owned())),
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
