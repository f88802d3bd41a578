//! The server's hand on a data plane: started by it, or found alive after a crash, renewed, stopped.

use super::hold::{folder, holder, short};
use super::{FAILURE, SOCKET, Status};
use crate::data_plane::{GatewayError, system};
use crate::rates::HostSeen;
use arco_model::traffic::{RouteQuestion, StreamProtocol};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Longest answer that is read from the control socket, in bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// Longest time for such an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a process that starts or ends is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How much longer than it may drain a process is waited for.
const MERCY: Duration = Duration::from_secs(2);

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
        // What answers is this one: nobody else has the lock that it took.
        if holder(&run).map(|it| it.as_raw_nonzero().get().cast_unsigned()) == child.id()
            && let Some(handle) = adopt(data_dir).await
        {
            return Ok(handle);
        }
        if let Some(status) = child.try_wait().map_err(system("watch its process"))? {
            return Err(GatewayError::NotStarted(
                failure(&run).unwrap_or_else(|| format!("it ended with {status}; see its log")),
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

/// The same; one that runs and does not answer is asked again for at most `patience`. On a busy machine it may only be
/// late, and who ends it cuts what it serves.
pub async fn find(data_dir: &Path, patience: Duration) -> Option<Handle> {
    let run = data_dir.join("run");
    let began = Instant::now();
    loop {
        if let Some(found) = adopt(data_dir).await {
            return Some(found);
        }
        if holder(&run).is_none() || began.elapsed() >= patience {
            return None;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Ends a data plane of `data_dir` that runs but does not answer.
pub async fn end_mute(data_dir: &Path) {
    let run = data_dir.join("run");
    if let Some(pid) = holder(&run) {
        tracing::warn!(pid = pid.as_raw_nonzero().get(), "the data plane runs but does not answer, it is ended");
        end(&run, pid, Duration::ZERO).await;
    }
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
    pub async fn rates(&self, hosts: &[String]) -> std::io::Result<BTreeMap<String, HostSeen>> {
        let answer = ask(&self.run, "POST", "/rates", &serde_json::to_string(hosts)?).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Ports for components that are not open, and why.
    pub async fn stream_problems(&self) -> std::io::Result<Vec<(StreamProtocol, u16, String)>> {
        Ok(serde_json::from_str(&ask(&self.run, "POST", "/streams", "null").await?)?)
    }

    /// The way of a request, a line per decision. `InvalidInput` when the question cannot be understood.
    pub async fn explain(&self, question: &RouteQuestion) -> std::io::Result<Vec<String>> {
        let answer = ask(&self.run, "POST", "/explain", &serde_json::to_string(question)?).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Returns when the data plane has ended, however it did; a worker that is replaced is no end.
    pub async fn ended(&self) {
        let Some(pid) = holder(&self.run) else { return };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        // Its number may have gone to another process in between.
        if holder(&self.run) == Some(pid) {
            has_ended(process).await;
        }
    }

    /// Lets a new worker of the executable that the holder is told take over, without a refused or cut connection, and
    /// waits at most `patience` until one of this `build` serves. When it does not, the old one goes on.
    pub async fn hand_over(&self, build: &str, patience: Duration) -> Result<Self, GatewayError> {
        let _ = std::fs::remove_file(self.run.join(FAILURE));
        let gone = || GatewayError::NotStarted("the data plane ended meanwhile".to_owned());
        let pid = holder(&self.run).ok_or_else(gone)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|it| system("find its process")(it.into()))?;
        pidfd_send_signal(&process, Signal::USR2).map_err(|it| system("be asked to hand over")(it.into()))?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.refresh().await
                && (status.pid != self.status.pid && status.build == build)
            {
                return Ok(Self { run: self.run.clone(), status });
            }
            if let Some(why) = failure(&self.run) {
                return Err(GatewayError::NotStarted(why));
            }
            if holder(&self.run) != Some(pid) {
                return Err(gone());
            }
            if began.elapsed() > patience {
                return Err(GatewayError::NotStarted(format!("it did not serve within {patience:?}; see its log")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks it to drain and stop, waits at most `grace`, then ends it. Returns whether it stopped by itself.
    pub async fn stop(&self, grace: Duration) -> bool {
        match holder(&self.run) {
            Some(pid) => end(&self.run, pid, grace).await,
            None => true,
        }
    }
}

/// Ends the data plane of `holder_pid` and its workers.
async fn end(run: &Path, holder_pid: Pid, grace: Duration) -> bool {
    let Ok(process) = pidfd_open(holder_pid, PidfdFlags::empty()) else { return true };
    if holder(run) != Some(holder_pid) || pidfd_send_signal(&process, Signal::TERM).is_err() {
        return true;
    }
    if tokio::time::timeout(grace + MERCY, has_ended(process)).await.is_ok() {
        return true;
    }
    // The lock is held, so the number still means that process, and its session is its own.
    if holder(run) == Some(holder_pid) {
        let _ = kill_process_group(holder_pid, Signal::KILL);
        let dead = async {
            while holder(run) == Some(holder_pid) {
                tokio::time::sleep(LOOK).await;
            }
        };
        // A process that the kernel cannot end now will end.
        let _ = tokio::time::timeout(PATIENCE, dead).await;
    }
    false
}

async fn has_ended(process: OwnedFd) {
    // SAFETY: the descriptor is owned by what watches it, and is always the same one.
    match unsafe { AsyncFd::register_with_interest(process, tokio::io::Interest::READABLE) } {
        Ok(process) => drop(process.readable().await),
        Err(error) => {
            tracing::error!(%error, "the data plane cannot be watched");
            std::future::pending().await
        }
    }
}

/// Why a start failed, as the holder wrote it.
fn failure(run: &Path) -> Option<String> {
    std::fs::read_to_string(run.join(FAILURE)).ok().filter(|it| !it.is_empty())
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
