//! Programs inside a pod, through the API server.
//!
//! What must hold: the exit status comes once, after the last output; dropping the session ends the connection. A program
//! without a terminal may go on in the instance when its connection ends: Kubernetes has no way to end it.

use crate::cluster::{Cluster, failed};
use crate::names;
use arco_orchestrator::{Error, ExecRequest, ExecSession};
use futures_util::SinkExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, TerminalSize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// Bytes on their way between a person and a program.
const BUFFER: usize = 64 << 10;
/// Exit status when the connection broke before the program's own came.
pub(crate) const BROKEN: i32 = 255;

/// Starts a program.
pub(crate) async fn start(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    request: ExecRequest,
) -> Result<ExecSession, Error> {
    let terminal = request.terminal.is_some();
    let how = AttachParams {
        container: Some(names::CONTAINER.to_owned()),
        tty: terminal,
        stdin: true,
        stdout: true,
        stderr: !terminal,
        max_stdin_buf_size: Some(BUFFER),
        max_stdout_buf_size: Some(BUFFER),
        max_stderr_buf_size: Some(BUFFER),
    };
    let step = || format!("run a program in {pod}");
    let mut attached =
        cluster.typed::<Pod>(namespace).exec(pod, request.argv, &how).await.map_err(|it| failed(step(), &it))?;
    let stdin: Box<dyn AsyncWrite + Send + Unpin> = match attached.stdin() {
        Some(it) => Box::new(it),
        None => Box::new(tokio::io::sink()),
    };
    let stdout: Box<dyn AsyncRead + Send + Unpin> = match attached.stdout() {
        Some(it) => Box::new(it),
        None => Box::new(tokio::io::empty()),
    };
    let stderr: Box<dyn AsyncRead + Send + Unpin> = match attached.stderr() {
        Some(it) => Box::new(it),
        None => Box::new(tokio::io::empty()),
    };
    let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(4);
    let (mut tell, exit) = oneshot::channel();
    let (status, screen) = (attached.take_status(), attached.terminal_size());
    let first = request.terminal;
    tokio::spawn(async move {
        let sizing = async move {
            let Some(mut screen) = screen else { return };
            let mut size = first;
            while let Some((width, height)) = size {
                if screen.send(TerminalSize { width, height }).await.is_err() {
                    return;
                }
                size = sizes.recv().await;
            }
        };
        let ended = async move {
            match status {
                Some(status) => status.await.map_or(BROKEN, |it| exit_status(&it)),
                None => BROKEN,
            }
        };
        let ended = async {
            tokio::pin!(ended);
            tokio::pin!(sizing);
            tokio::select! {
                status = &mut ended => status,
                () = &mut sizing => ended.await,
            }
        };
        tokio::select! {
            status = ended => {
                let _ = tell.send(status); // the session may be gone
                let _ = attached.join().await; // what it wrote last is still on its way
            }
            () = tell.closed() => attached.abort(),
        }
    });
    Ok(ExecSession { stdin, stdout, stderr, resize, exit })
}

/// The program's exit status in the API server's words.
fn exit_status(status: &Status) -> i32 {
    if status.status.as_deref() == Some("Success") {
        return 0;
    }
    let causes = status.details.iter().flat_map(|it| it.causes.iter().flatten());
    let mut code = causes.filter(|it| it.reason.as_deref() == Some("ExitCode"));
    match code.next().and_then(|it| it.message.as_deref()).map(str::parse) {
        Some(Ok(code)) => code,
        // The runtime could not start it: as a shell says it.
        _ if status.message.as_deref().is_some_and(|it| it.contains("not found") || it.contains("no such file")) => 127,
        _ => 126,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_read_from_the_answer() {
        for (text, wanted) in [
            (r#"{"status":"Success"}"#, 0),
            (r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#, 7),
            (r#"{"status":"Failure","message":"exec: \"x\": executable file not found in $PATH"}"#, 127),
            (r#"{"status":"Failure","message":"permission denied"}"#, 126),
        ] {
            assert_eq!(exit_status(&serde_json::from_str(text).unwrap()), wanted, "{text}");
        }
    }
}
