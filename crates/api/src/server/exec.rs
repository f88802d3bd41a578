//! Programs in instances over a WebSocket: in a running one (`exec`), or in one of its own (`run`).
//!
//! Messages are [`Frame`]s. The program ends with the connection; the connection ends with the program.

use super::Api;
use super::act::Target;
use super::error::ApiError;
use crate::wire::{Channel, ErrorBody, ExecControl, Frame};
use arco_model::component::{Component, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::InstanceId;
use arco_model::observed::InstancePhase;
use arco_model::plan::{self, BoundComponent, InstanceTemplate, OneShot, PlanContext};
use arco_model::secret::SecretVersion;
use arco_orchestrator::{ExecRequest, ExecSession, OutputLine};
use arco_store::clock;
use arco_store::secrets::Sealed;
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

/// Longest `arco run`, in ms: a day.
const RUN_MS: u64 = 86_400_000;
/// How long output may still come after the program ended.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// How long a client may go on sending after the last word.
const FAREWELL: Duration = Duration::from_secs(30);
/// Most arguments, and most bytes of them together.
const ARGV_MAX: (usize, usize) = (1024, 65_536);

/// What to run, parsed from a query.
#[derive(Debug)]
pub(super) struct ExecAsked {
    argv: Vec<String>,
    terminal: Option<(u16, u16)>,
    input: bool,
    instance: Option<InstanceId>,
    place: u32,
}

/// How a one-off instance is connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    terminal: Option<(u16, u16)>,
    input: bool,
}

impl ExecAsked {
    /// How its program is connected.
    pub(super) fn how(&self) -> How {
        How { terminal: self.terminal, input: self.input }
    }

    /// `argv` repeats; all else stands once.
    pub(super) fn parse(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let bad = |message: String| Problem::invalid("exec_invalid", message, "name a program after `--`");
        let (mut argv, mut tty, mut input, mut columns, mut rows, mut instance, mut place) =
            (Vec::new(), false, true, 80, 24, None, 0);
        for (key, value) in query {
            let size =
                |value: &str| value.parse::<u16>().map_err(|_| bad(format!("`{key}` is not a number up to 65535")));
            match key.as_str() {
                "argv" => argv.push(value),
                "tty" => tty = value == "true",
                "input" => input = value == "true",
                "columns" => columns = size(&value)?,
                "rows" => rows = size(&value)?,
                "instance" => {
                    instance = Some(value.parse().map_err(|it: arco_model::id::IdError| bad(it.to_string()))?)
                }
                "place" => place = u32::from(size(&value)?),
                other => return Err(bad(format!("`{other}` is not a parameter"))),
            }
        }
        let bytes: usize = argv.iter().map(String::len).sum();
        if argv.first().is_none_or(String::is_empty) {
            return Err(bad("no program is named".to_owned()));
        }
        if argv.len() > ARGV_MAX.0 || bytes > ARGV_MAX.1 || argv.iter().any(|it| it.contains('\0')) {
            return Err(bad("the arguments are too many, too long, or hold a NUL".to_owned()));
        }
        Ok(Self { argv, terminal: tty.then_some((columns, rows)), input, instance, place })
    }
}

impl Api {
    /// Begins a program in a running instance: the asked one, else the first ready one, else one that starts.
    pub(super) async fn exec(&self, target: &Target, asked: ExecAsked) -> Result<ExecSession, ApiError> {
        let (component, _) = self.serving(target).await?;
        let instance = running(&component, asked.instance.as_ref())?;
        let request = ExecRequest { argv: asked.argv, terminal: asked.terminal };
        Ok(self.deps.orchestrator.exec(&instance, request).await?)
    }

    /// The workload of `arco run`: what serves now, with its variables and volumes, and another program.
    pub(super) async fn one_off(&self, target: &Target, asked: ExecAsked) -> Result<OneShot, ApiError> {
        let (component, revision) = self.serving(target).await?;
        let revision = revision.ok_or_else(|| {
            let message = format!("`{}` has no revision yet", component.reference());
            Problem::new(ErrorKind::Conflict, "no_revision", message, "deploy it first")
        })?;
        let kind = revision.spec.kind;
        let mut places = component.places(kind).max(component.prepared_places(kind));
        if asked.place >= places {
            // What is left of a place that it was scaled down from can be looked at, and exported.
            places = self.places_held(&component, &revision, places).await?;
        }
        if asked.place >= places {
            let message = format!("`{}` has no place {}, it has {places}", component.reference(), asked.place);
            return Err(Problem::invalid("exec_invalid", message, "places count from 0").into());
        }
        let context = PlanContext {
            bound: self.bound(&component, &revision).await?,
            secrets: self.opened(&revision).await?,
            already_runs: true,
        };
        let template = plan::build(&component, &revision, &context).template;
        let template = InstanceTemplate { argv: asked.argv, ..template };
        let run = OneShot::of_template(clock::fresh(), component.tenant, component.id, template, RUN_MS);
        Ok(OneShot { place: asked.place, ..run })
    }

    async fn bound(&self, component: &Component, revision: &Revision) -> Result<Vec<BoundComponent>, ApiError> {
        let mut bound = Vec::new();
        for binding in &revision.spec.bindings {
            let (tenant, application) = (component.tenant.clone(), binding.application.clone());
            let target = Target { tenant, application, component: binding.component.clone() };
            // A binding whose component is gone gives no variables, as for the instances themselves.
            let Ok(found) = self.component(&target).await else { continue };
            let port = self.ports(&found).await?.first().copied();
            let ready = found.observed.ready_replicas > 0;
            bound.push(BoundComponent {
                alias: binding.alias.clone(),
                host: found.internal_host(),
                port,
                ready,
                id: found.id,
            });
        }
        Ok(bound)
    }

    async fn opened(&self, revision: &Revision) -> Result<BTreeMap<String, String>, ApiError> {
        let mut values = BTreeMap::new();
        for (name, version) in &revision.spec.secrets {
            let key = SecretVersion::row_key(&revision.component_id, name, *version);
            let missing = || Problem::internal(&format!("find version {version} of secret `{name}`"));
            let row = self.deps.metadata.get::<SecretVersion>(&key).await?.ok_or_else(missing)?.value;
            let sealed = Sealed { key_id: row.key_id.clone(), text: row.sealed.clone() };
            let opened = self.deps.secrets.unseal(&row.context(), &sealed)?;
            values.insert(name.clone(), String::from_utf8(opened).map_err(|_| missing())?);
        }
        Ok(values)
    }

    /// Runs a workload in the socket: attached, or by its lines of output where the driver cannot and no input is sent.
    pub(super) async fn run(self, workload: OneShot, asked: How, socket: WebSocket) {
        match self.deps.orchestrator.attach(&workload, asked.terminal).await {
            Ok(session) => carry(session, socket).await,
            Err(arco_orchestrator::Error::Unsupported(_)) if asked.terminal.is_none() && !asked.input => {
                self.run_lines(workload, socket).await;
            }
            Err(error) => {
                let (sink, stream) = socket.split();
                farewell(sink, stream, ExecControl::Error(ApiError::from(error).body())).await;
            }
        }
    }

    /// Runs a workload to its end, its output going to the socket. Standard input is not connected.
    async fn run_lines(self, workload: OneShot, socket: WebSocket) {
        let (mut sink, mut stream) = socket.split();
        let (lines, mut output) = mpsc::channel::<OutputLine>(64);
        let (cancel, cancelled) = oneshot::channel();
        let mut work = std::pin::pin!(self.deps.orchestrator.run(&workload, lines, cancelled));
        let mut cancel = Some(cancel);
        let last = loop {
            tokio::select! {
                biased;
                Some(line) = output.recv() => {
                    let channel = if line.stderr { Channel::Stderr } else { Channel::Stdout };
                    send(&mut sink, Frame::Bytes(channel, Bytes::from(line.text + "\n"))).await;
                }
                result = &mut work => break result,
                message = stream.next(), if cancel.is_some() => {
                    if !matches!(message, Some(Ok(Message::Binary(_) | Message::Text(_) | Message::Ping(_) | Message::Pong(_)))) {
                        drop(cancel.take());
                    }
                }
            }
        };
        // The sender is gone with the work: this ends.
        while let Some(line) = output.recv().await {
            let channel = if line.stderr { Channel::Stderr } else { Channel::Stdout };
            send(&mut sink, Frame::Bytes(channel, Bytes::from(line.text + "\n"))).await;
        }
        let control = match last {
            Ok(result) => ExecControl::Exit { status: result.exit.status },
            Err(error) => ExecControl::Error(ApiError::from(error).body()),
        };
        farewell(sink, stream, control).await;
    }
}

/// A running instance: the asked one, else the first ready one, else one that starts.
pub(super) fn running(component: &Component, asked: Option<&InstanceId>) -> Result<InstanceId, Problem> {
    let runs = |phase: InstancePhase| match phase {
        InstancePhase::Ready => 0,
        InstancePhase::Unready | InstancePhase::Starting => 1,
        InstancePhase::Draining | InstancePhase::Stopping => 2,
        InstancePhase::Pending | InstancePhase::BackOff | InstancePhase::Ended => 9,
    };
    let wanted = component.observed.instances.iter().filter(|it| asked.is_none_or(|id| it.id == *id));
    let found = wanted.min_by_key(|it| runs(it.phase)).filter(|it| runs(it.phase) < 9);
    found.map(|it| it.id.clone()).ok_or_else(|| not_running(component, asked))
}

fn not_running(component: &Component, instance: Option<&InstanceId>) -> Problem {
    let reference = component.reference();
    let advice =
        format!("`arco ps {reference}` shows its instances; `arco run {reference} -- …` starts one of its own");
    match instance {
        Some(id) => Problem::new(
            ErrorKind::NotFound,
            "instance_not_running",
            format!("`{reference}` has no running instance {id}"),
            advice,
        ),
        None => {
            Problem::new(ErrorKind::Conflict, "nothing_runs", format!("`{reference}` has no running instance"), advice)
        }
    }
}

/// Carries bytes both ways until the program ended or the client went away.
pub(super) async fn carry(session: ExecSession, socket: WebSocket) {
    let ExecSession { stdin, stdout, stderr, resize, mut exit } = session;
    let (mut sink, mut stream) = socket.split();
    let (frames, mut out) = mpsc::channel::<Frame>(16);
    let pipes = async {
        let both = (pump(stdout, Channel::Stdout, frames.clone()), pump(stderr, Channel::Stderr, frames));
        tokio::join!(both.0, both.1);
    };
    let writer = async {
        let mut status = None;
        loop {
            // What the program left behind may hold its pipes open for ever: its end counts, and a moment for the rest.
            let frame = tokio::select! {
                biased;
                frame = out.recv() => frame,
                ended = &mut exit, if status.is_none() => {
                    status = Some(ended);
                    continue;
                }
                () = tokio::time::sleep(LAST_OUTPUT), if status.is_some() => None,
            };
            let Some(frame) = frame else { break };
            if !send(&mut sink, frame).await {
                break;
            }
        }
        let status = match status {
            Some(status) => status,
            None => (&mut exit).await,
        };
        match status {
            Ok(status) => ExecControl::Exit { status },
            Err(_) => ExecControl::Error(ErrorBody::from(Problem::internal("learn how the program ended"))),
        }
    };
    let pipes_then_nothing = async {
        pipes.await;
        std::future::pending::<()>().await;
    };
    // What is there to be read is read before the moment is over.
    let control = tokio::select! {
        biased;
        () = pipes_then_nothing => return,
        control = writer => control,
        () = receive(&mut stream, stdin, resize) => return,
    };
    farewell(sink, stream, control).await;
}

/// Says the last word and lets the client go.
async fn farewell(mut sink: SplitSink<WebSocket, Message>, stream: SplitStream<WebSocket>, control: ExecControl) {
    send(&mut sink, Frame::Control(control)).await;
    let _ = sink.close().await;
    until_gone(stream).await;
}

/// Reads what a client still sends after the last word, until it is gone. Closing on input that nobody read resets the
/// connection: the word may be lost, and what carries connections for others (`kubectl port-forward`) ends.
pub(super) async fn until_gone(mut stream: SplitStream<WebSocket>) {
    let gone = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = tokio::time::timeout(FAREWELL, gone).await;
}

async fn pump(mut from: Box<dyn AsyncRead + Send + Unpin>, channel: Channel, to: mpsc::Sender<Frame>) {
    let mut buffer = vec![0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(Frame::Bytes(channel, Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
            return;
        }
    }
}

/// Ends when the client is gone.
async fn receive(
    stream: &mut SplitStream<WebSocket>,
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    resize: mpsc::Sender<(u16, u16)>,
) {
    let mut stdin = Some(stdin);
    while let Some(Ok(message)) = stream.next().await {
        let Message::Binary(bytes) = message else { continue };
        match Frame::decode(bytes) {
            Ok(Frame::Bytes(Channel::Stdin, bytes)) if bytes.is_empty() => {
                if let Some(mut pipe) = stdin.take() {
                    let _ = pipe.shutdown().await;
                }
            }
            Ok(Frame::Bytes(Channel::Stdin, bytes)) => {
                if let Some(pipe) = &mut stdin
                    && (pipe.write_all(&bytes).await.is_err() || pipe.flush().await.is_err())
                {
                    stdin = None; // the program closed its input; it may still write
                }
            }
            Ok(Frame::Control(ExecControl::Resize { columns, rows })) => drop(resize.try_send((columns, rows))),
            Ok(_) | Err(_) => {}
        }
    }
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, frame: Frame) -> bool {
    sink.send(Message::Binary(frame.encode())).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read() {
        let pairs =
            |text: &[(&str, &str)]| text.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let asked =
            ExecAsked::parse(pairs(&[("argv", "sh"), ("argv", "-c"), ("tty", "true"), ("rows", "50")])).unwrap();
        assert_eq!((asked.argv, asked.terminal), (vec!["sh".to_owned(), "-c".to_owned()], Some((80, 50))));
        for bad in [
            &[][..],
            &[("argv", "")],
            &[("argv", "a\0")],
            &[("argv", "a"), ("rows", "x")],
            &[("argv", "a"), ("instance", "../")],
            &[("argv", "a"), ("x", "y")],
        ] {
            assert_eq!(ExecAsked::parse(pairs(bad)).unwrap_err().code, "exec_invalid");
        }
    }
}
