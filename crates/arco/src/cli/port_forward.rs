//! `arco port-forward`: ports of this machine that lead to ports inside an instance.
//!
//! What must hold: every connection is one of its own; one that fails is told at once and ends no other.

use super::failure::Failure;
use super::reference::Reference;
use super::session::Session;
use arco_api::client::{ExecReceiver, ExecSender, ForwardCall};
use arco_api::wire::{Channel, ExecControl, Frame};
use clap::Args;
use futures_util::future::select_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// Pause after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);
/// How long whoever asked may go on sending after the end of the answer.
const FAREWELL: Duration = Duration::from_secs(30);

/// Flags of `port-forward`.
#[derive(Args, Debug)]
pub(crate) struct ForwardArgs {
    /// APP/COMPONENT
    #[arg(value_name = "APP/COMPONENT")]
    reference: Reference,
    /// Port of this machine and port inside the instance; `:80` takes a free one here
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = ports)]
    ports: Vec<(u16, u16)>,
    /// A certain instance [default: any that is ready, chosen for each connection]
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Address of this machine to listen on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
}

/// `8080`, `8080:80`, `:80`.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let number = |it: &str| it.parse::<u16>().map_err(|_| format!("`{it}` is not a port from 1 to 65535"));
    let remote =
        number(remote).and_then(|it| if it == 0 { Err("port 0 is none of an instance".to_owned()) } else { Ok(it) })?;
    Ok((if local.is_empty() { 0 } else { number(local)? }, remote))
}

/// A port of this machine that leads to a port inside an instance.
struct Lane {
    listener: TcpListener,
    remote: u16,
}

/// Forwards until it is interrupted.
pub(crate) async fn run(args: &ForwardArgs, session: &Session<'_>) -> Result<(), Failure> {
    let named = session.component(&args.reference).await?;
    let pair = named.pair();
    // A component that is not there is told at once, not at the first connection.
    session.client.component(&session.tenant, pair).await?;
    let failed = |step: &str, it: &std::io::Error| Failure::local(format!("failed to {step}: {it}"), "try again");
    let mut lanes = Vec::new();
    for (local, remote) in &args.ports {
        let listener = TcpListener::bind((args.address, *local)).await.map_err(|error| {
            let message = format!("port {local} of {} cannot be listened on: {error}", args.address);
            Failure::usage("port_unavailable", message, format!("choose another one, as `:{remote}` for any free one"))
        })?;
        lanes.push(Lane { listener, remote: *remote });
    }
    let mut told = Vec::new();
    for lane in &lanes {
        let local = lane.listener.local_addr().map_err(|it| failed("say which port is listened on", &it))?;
        session.ui.note(&format!("{local} leads to port {} of {}/{}", lane.remote, named.application, named.component));
        told.push(serde_json::json!({ "local": local.to_string(), "remote": lane.remote }));
    }
    if session.ui.json() {
        session.ui.json_line(&serde_json::json!({ "forwards": told }));
    }
    let mut interrupted = signal(SignalKind::interrupt()).map_err(|it| failed("listen to Ctrl-C", &it))?;
    let mut ended = signal(SignalKind::terminate()).map_err(|it| failed("listen to signals", &it))?;
    let mut open = FuturesUnordered::new();
    let accept = async || {
        let accepts = lanes.iter().map(|lane| Box::pin(async move { (lane.listener.accept().await, lane.remote) }));
        select_all(accepts).await.0
    };
    loop {
        tokio::select! {
            _ = interrupted.recv() => return Ok(()),
            _ = ended.recv() => return Ok(()),
            ((stream, _), port) = taken(&accept, |why| session.ui.warn(why)) => {
                let call = ForwardCall { tenant: &session.tenant, name: pair, port, instance: args.instance.as_deref() };
                open.push(carry(stream, call, session));
            }
            Some(()) = open.next(), if !open.is_empty() => {}
        }
    }
}

/// The next connection that can be taken, with where it goes. One that cannot is told and ends nothing.
async fn taken<S>(mut accept: impl AsyncFnMut() -> (std::io::Result<S>, u16), told: impl Fn(&str)) -> (S, u16) {
    loop {
        match accept().await {
            (Ok(stream), port) => return (stream, port),
            (Err(error), _) => {
                told(&format!("a connection could not be taken: {error}"));
                tokio::time::sleep(PAUSE).await; // out of descriptors, it fails again at once
            }
        }
    }
}

/// One connection, until both directions have ended or either end is gone.
async fn carry(stream: TcpStream, call: ForwardCall<'_>, session: &Session<'_>) {
    let _ = stream.set_nodelay(true);
    let (mut from, mut to) = stream.into_split();
    let end = match session.client.forward(&call).await {
        Err(error) => Err(error.into()),
        Ok((sender, receiver)) => tokio::select! {
            () = send(&mut from, sender) => return,
            end = receive(receiver, &mut to) => end,
        },
    };
    if let Err(Failure { body, .. }) = end {
        session.ui.warn(&format!("a connection failed: {}. {}", body.message, body.advice));
    }
    last(from, to).await;
}

/// Ends a connection of which nothing more comes. Whoever asked may still be sending: closing on what nobody read resets the
/// connection, and what was not yet read of the answer is lost with it.
async fn last(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = to.shutdown().await; // whoever asked may have gone
    let mut rest = vec![0; 32_768];
    let gone = async { while let Ok(1..) = from.read(&mut rest).await {} };
    let _ = tokio::time::timeout(FAREWELL, gone).await;
}

/// What comes in here; ends when this end is broken, not when it is finished.
async fn send(from: &mut OwnedReadHalf, mut sender: ExecSender) {
    let mut buffer = vec![0; 32_768];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        let frame = Frame::Bytes(Channel::Stdin, bytes::Bytes::copy_from_slice(&buffer[..count]));
        if !sender.send(&frame).await || count == 0 {
            // The other direction goes on; it also says how it ended.
            return std::future::pending().await;
        }
    }
}

async fn receive(mut receiver: ExecReceiver, to: &mut OwnedWriteHalf) -> Result<(), Failure> {
    while let Some(frame) = receiver.next().await {
        let gone = match frame? {
            Frame::Bytes(Channel::Stdout, bytes) if bytes.is_empty() => {
                let _ = to.shutdown().await; // whoever asked may have gone
                false
            }
            Frame::Bytes(Channel::Stdout, bytes) => to.write_all(&bytes).await.is_err(),
            Frame::Control(ExecControl::Error(body)) => {
                return Err(Failure { status: super::failure::exit::FAILED, body });
            }
            _ => false,
        };
        if gone {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_cannot_be_taken_is_told_and_the_next_is_taken() {
        let told = std::cell::RefCell::new(Vec::new());
        let mut accepted = vec![(Ok("stream"), 81), (Err(std::io::Error::other("too many open files")), 80)];
        let next = async || accepted.pop().unwrap();
        assert_eq!(taken(next, |why| told.borrow_mut().push(why.to_owned())).await, ("stream", 81));
        assert_eq!(told.into_inner(), ["a connection could not be taken: too many open files"]);
    }

    #[tokio::test]
    async fn an_answer_arrives_although_its_asker_still_sends() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut asker = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (from, mut to) = listener.accept().await.unwrap().0.into_split();
        to.write_all(b"answer").await.unwrap();
        let asking = async move {
            asker.write_all(&vec![0; 8 << 20]).await.unwrap(); // more than the sockets hold
            let mut answer = Vec::new();
            asker.read_to_end(&mut answer).await.unwrap();
            answer
        };
        assert_eq!(tokio::join!(last(from, to), asking).1, b"answer");
    }

    #[test]
    fn ports_are_read() {
        for (text, wanted) in [("80", Some((80, 80))), ("8080:80", Some((8080, 80))), (":80", Some((0, 80)))] {
            assert_eq!(ports(text).ok(), wanted, "{text}");
        }
        for bad in ["", ":", "0", "80:0", "x", "80:x", "65536", "1:2:3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
