//! `arco exec` and `arco run`: a program in a running instance, or in one of its own.

use super::failure::{Failure, exit};
use super::reference::Reference;
use super::session::Session;
use arco_api::client::{ClientError, ExecCall, ExecReceiver, ExecSender};
use arco_api::wire::{Channel, ExecControl, Frame};
use clap::Args;
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Flags of `exec` and `run`.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Send standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// A certain instance [default: any that is ready]
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Flags of `run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Send standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl RunArgs {
    /// The same call with an instance of its own.
    pub(crate) fn call(self) -> ExecArgs {
        let Self { reference, interactive, tty, command } = self;
        ExecArgs { reference, interactive, tty, instance: None, command }
    }
}

/// Runs a program; `one_off` gives it an instance of its own. Ends with the program's exit status.
pub(crate) async fn run(args: &ExecArgs, one_off: bool, session: &Session<'_>) -> Result<ExitCode, Failure> {
    if args.tty && !std::io::stdin().is_terminal() {
        let message = "standard input is not a terminal";
        return Err(Failure::usage("no_terminal", message, "leave `-t` out; `-i` alone sends standard input"));
    }
    let named = session.component(&args.reference).await?;
    let terminal = args.tty.then(size);
    let call = ExecCall {
        tenant: &session.tenant,
        name: named.pair(),
        one_off,
        argv: &args.command,
        terminal,
        input: args.interactive,
        instance: args.instance.as_deref(),
        place: 0,
    };
    let (sender, receiver) = session.client.exec(&call).await?;
    // Put back when this value goes, also on errors.
    let _raw = args.tty.then(Raw::begin);
    tokio::select! {
        never = send(sender, args) => match never {},
        end = receive(receiver, session) => end,
    }
}

/// Standard input, its end, and new sizes of the terminal; goes on until the program ends.
async fn send(mut sender: ExecSender, args: &ExecArgs) -> std::convert::Infallible {
    let mut input = args.interactive.then(standard_input);
    if input.is_none() {
        sender.send(&Frame::Bytes(Channel::Stdin, Vec::new().into())).await;
    }
    let mut resized = if args.tty { signal(SignalKind::window_change()).ok() } else { None };
    loop {
        let frame = tokio::select! {
            bytes = read(&mut input) => {
                if bytes.is_empty() {
                    input = None;
                }
                Frame::Bytes(Channel::Stdin, bytes.into())
            }
            () = wait(&mut resized) => {
                let (columns, rows) = size();
                Frame::Control(ExecControl::Resize { columns, rows })
            }
        };
        if !sender.send(&frame).await {
            std::future::pending::<()>().await;
        }
    }
}

/// Standard input in pieces, read in a thread of its own: a read of a terminal cannot be called off.
fn standard_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = std::io::stdin().lock().read(&mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..read].to_vec()).is_err() || read == 0 {
                return;
            }
        }
    });
    receiver
}

/// The next piece; empty at the end, and never again after it.
async fn read(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Vec<u8> {
    match input {
        Some(input) => input.recv().await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

async fn wait(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

async fn receive(mut receiver: ExecReceiver, session: &Session<'_>) -> Result<ExitCode, Failure> {
    while let Some(frame) = receiver.next().await {
        match frame.map_err(cut)? {
            Frame::Bytes(Channel::Stderr, bytes) => session.ui.error_bytes(&bytes),
            Frame::Bytes(_, bytes) => session.ui.bytes(&bytes),
            Frame::Control(ExecControl::Exit { status }) => {
                return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
            }
            Frame::Control(ExecControl::Error(body)) => return Err(Failure { status: exit::FAILED, body }),
            Frame::Control(ExecControl::Resize { .. }) => {}
        }
    }
    Err(gone())
}

/// A connection that ended while the program ran; how it did, in the words of TLS, helps nobody.
fn cut(error: ClientError) -> Failure {
    match error {
        ClientError::Unreachable { .. } => gone(),
        other => other.into(),
    }
}

fn gone() -> Failure {
    let message = "the server went away while the program ran";
    let advice = "when it is back, `arco ps` says whether the instance still runs; then do it again";
    Failure::new(exit::FAILED, "connection_lost", message, advice)
}

/// Columns and rows of our terminal; 80 by 24 when they are not known.
fn size() -> (u16, u16) {
    match terminal_size::terminal_size() {
        Some((terminal_size::Width(columns), terminal_size::Height(rows))) if columns > 0 && rows > 0 => {
            (columns, rows)
        }
        _ => (80, 24),
    }
}

/// Our terminal hands every key on as it is, until this value is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let before = termios::tcgetattr(std::io::stdin()).ok();
        if let Some(mut raw) = before.clone() {
            termios::cfmakeraw(&mut raw);
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

/// What is typed is not shown, until this value is dropped.
pub(crate) struct NoEcho(Option<Termios>);

impl NoEcho {
    /// From now on.
    pub(crate) fn begin() -> Self {
        let before = termios::tcgetattr(std::io::stdin()).ok();
        if let Some(mut hidden) = before.clone() {
            hidden.local_flags.remove(LocalFlags::ECHO);
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &hidden);
        }
        Self(before)
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_goes_away_is_said_in_plain_words() {
        let cause = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/".to_owned();
        let failure = cut(ClientError::Unreachable { api: "127.0.0.1:1".to_owned(), cause });
        assert_eq!((failure.status, failure.body.code.as_str()), (exit::FAILED, "connection_lost"));
        assert!(!failure.body.message.contains("close_notify"), "{}", failure.body.message);
        assert_eq!(cut(ClientError::Answer("x".to_owned())).body.message, "the platform's answer is not understood: x");
    }
}
