//! Log lines of a platform with several servers: each stream has one server with the role `eventlog` that everybody sends
//! its lines to, and that is asked for them.
//!
//! What must hold: a sender that waits for durability hears of it when the keeper has the lines on disk, whoever that is;
//! lines arrive in the order in which they were sent, and once as long as their keeper lives; those of senders that look
//! what is kept ([`LogSink::append_once`]) are sent once and then left to them; while no keeper answers, memory is bounded
//! and what is left out is said. When the servers with the role change, a stream may go on at another one: a query asks
//! all of them ([`Whole`]: or fails), following begins at the present one.

mod pages;

use super::peers::{Peers, answer, guarded};
use arco_config::Role;
use arco_daemon::CancellationToken;
use arco_daemon::discovery::Server;
use arco_model::error::Problem;
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_store::clock;
use arco_store::logs::{LogBatch, LogSink};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use pages::Place;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

/// Where a keeper takes lines, and where it is asked for them.
const BATCHES: &str = "/logs/batches";
const READ: &str = "/logs";
/// Batches that are sent together.
const TOGETHER: usize = 128;
/// Bytes of lines that are sent together, unless one batch alone has more. A byte takes at most six in JSON.
const TOGETHER_BYTES: usize = REQUEST_MAX / 8;
/// Bytes of lines that wait while no keeper answers; beyond, lines whose senders do not wait for them are left out.
const WAITING_BYTES: usize = 16 << 20;
/// Pause before lines are sent again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a keeper may take to have lines on disk.
const KEEPING: Duration = Duration::from_secs(30);
/// Largest request of one server to another.
const REQUEST_MAX: usize = 64 << 20;
/// Largest answer to a query that is merged with others.
const ANSWER_MAX: usize = 64 << 20;

/// Lines on their way to their keeper.
#[derive(Serialize, Deserialize)]
struct Sent {
    /// Who sends, and which of its requests this is: a request that came twice is kept once.
    sender: String,
    number: u64,
    batches: Vec<(LogStream, Vec<LogLine>)>,
}

/// What decides who keeps a stream.
fn key(stream: &LogStream) -> String {
    match stream {
        LogStream::Operation { id } => format!("operation/{id}"),
        LogStream::Component { id } => format!("component/{id}"),
    }
}

/// Sends lines to their keepers until nothing more comes; `here` takes those that this server keeps itself.
pub(super) async fn forward(
    mut from: mpsc::Receiver<LogBatch>,
    here: Option<LogSink>,
    peers: Peers,
    stop: CancellationToken,
) {
    let mut waiting = Waiting::default();
    let mut number = 0;
    let mut again: Option<(String, usize)> = None;
    let mut open = true;
    loop {
        if waiting.queue.is_empty() {
            tokio::select! {
                batch = from.recv() => match batch {
                    Some(batch) => waiting.push(batch),
                    None => return,
                },
                () = stop.cancelled(), if open => {
                    from.close();
                    open = false;
                }
            }
        }
        while waiting.queue.len() < TOGETHER
            && let Ok(batch) = from.try_recv()
        {
            waiting.push(batch);
        }
        waiting.leave_out(TOGETHER, LogBatch::is_abandoned, &mut again);
        let Some(first) = waiting.queue.front() else { continue };
        let owner = peers.directory().owner(Role::Eventlog, &key(&first.stream));
        let local = owner.as_ref().is_none_or(|it| it.name == peers.directory().me());
        if let (true, Some(here)) = (local, &here) {
            if let Some(batch) = waiting.pop_here(&mut again) {
                here.hand_on(batch).await;
            }
            continue;
        }
        let sent = match &owner {
            Some(owner) => {
                let together = |it: &&LogBatch| {
                    peers.directory().owner(Role::Eventlog, &key(&it.stream)).is_some_and(|it| it.name == owner.name)
                };
                let count = || fitting(waiting.queue.iter().take(TOGETHER).take_while(together));
                let count = next_request(&owner.name, &mut number, &again, count);
                let batches = waiting.queue.iter().take(count).map(|it| (it.stream.clone(), it.lines.clone()));
                let sent = Sent { sender: peers.me().to_owned(), number, batches: batches.collect() };
                let outcome = post(&peers, owner, &sent).await;
                again = Some((owner.name.clone(), count));
                outcome.map(|()| count).map_err(|why| (why, count))
            }
            None => Err(("no server of this platform runs the role `eventlog`".to_owned(), usize::MAX)),
        };
        match sent {
            Ok(count) => {
                again = None;
                waiting.kept(count);
            }
            Err((why, count)) => {
                waiting.complain(&why);
                waiting.leave_out(count, |it| it.once, &mut again);
                let pause = tokio::time::sleep(AGAIN);
                tokio::pin!(pause);
                loop {
                    tokio::select! {
                        () = &mut pause => break,
                        batch = from.recv(), if open => match batch {
                            Some(batch) => waiting.push(batch),
                            None => open = false,
                        },
                        () = stop.cancelled(), if open => {
                            from.close();
                            open = false;
                        }
                    }
                }
            }
        }
    }
}

/// How many of these, from the first on, fit into one request.
fn fitting<'a>(batches: impl Iterator<Item = &'a LogBatch>) -> usize {
    let mut bytes = 0;
    let fits = |it: &&LogBatch| {
        let fits = bytes == 0 || bytes + size(it) <= TOGETHER_BYTES;
        bytes += size(it);
        fits
    };
    batches.take_while(fits).count()
}

/// How many batches go out to a keeper. Again exactly what was sent, under its number, when nobody knows whether that
/// came: the keeper may have it already, and knows it by its number.
fn next_request(to: &str, number: &mut u64, again: &Option<(String, usize)>, count: impl FnOnce() -> usize) -> usize {
    match again {
        Some((name, count)) if name == to => *count,
        _ => {
            *number += 1;
            count()
        }
    }
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<LogBatch>,
    bytes: usize,
    left_out: u64,
    complained: bool,
}

fn size(batch: &LogBatch) -> usize {
    batch.lines.iter().map(|it| it.text.len() + 64).sum()
}

impl Waiting {
    /// Batches whose senders wait are never left out: they send no more meanwhile.
    fn push(&mut self, batch: LogBatch) {
        if self.bytes > WAITING_BYTES && batch.written.is_none() {
            self.left_out += batch.lines.len() as u64;
            return;
        }
        self.bytes += size(&batch);
        self.queue.push_back(batch);
    }

    fn pop(&mut self) -> Option<LogBatch> {
        let batch = self.queue.pop_front()?;
        self.bytes -= size(&batch);
        Some(batch)
    }

    /// The next one, for this server itself: what went out under a number is not at the front any more.
    fn pop_here(&mut self, again: &mut Option<(String, usize)>) -> Option<LogBatch> {
        *again = None;
        self.pop()
    }

    /// Leaves out some of the first `most`, also of those that are sent again: their keeper knows these by their number,
    /// whatever is in it.
    fn leave_out(&mut self, most: usize, leaves: fn(&LogBatch) -> bool, again: &mut Option<(String, usize)>) {
        let most = most.min(self.queue.len());
        if !self.queue.iter().take(most).any(leaves) {
            return;
        }
        let together = again.as_ref().map_or(0, |it| it.1);
        let (mut stay, mut fewer) = (Vec::with_capacity(most), 0);
        for (place, batch) in self.queue.drain(..most).enumerate() {
            if leaves(&batch) {
                self.bytes -= size(&batch);
                fewer += usize::from(place < together);
            } else {
                stay.push(batch);
            }
        }
        stay.into_iter().rev().for_each(|it| self.queue.push_front(it));
        *again = again.take().map(|(name, count)| (name, count - fewer)).filter(|it| it.1 > 0);
    }

    /// The first ones are kept.
    fn kept(&mut self, count: usize) {
        for _ in 0..count {
            let Some(batch) = self.pop() else { break };
            let stream = batch.stream.clone();
            if let Some(written) = batch.written {
                let _ = written.send(()); // who waited may have gone
            }
            if self.left_out > 0 {
                let text = format!("{} lines are missing here: no server kept logs", self.left_out);
                let line = LogLine { at: clock::now(), instance: None, origin: LogOrigin::Platform, text };
                self.left_out = 0;
                let note = LogBatch { stream, lines: vec![line], written: None, once: false };
                self.bytes += size(&note);
                self.queue.push_back(note); // whatever else waits
            }
        }
        if std::mem::take(&mut self.complained) {
            tracing::info!("log lines are kept again");
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(why, "log lines wait for their keeper; it is tried again");
        }
    }
}

async fn post(peers: &Peers, to: &Server, sent: &Sent) -> Result<(), String> {
    let body = serde_json::to_vec(sent).map_err(|it| it.to_string())?;
    let request = Request::builder().method(Method::POST).uri(BATCHES).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(Body::from(body)).map_err(|it| it.to_string())?;
    let answered = tokio::time::timeout(KEEPING, peers.send(to, request)).await;
    let response = answered.map_err(|_| format!("{} did not keep them within {} s", to.name, KEEPING.as_secs()))?;
    match response.status() {
        StatusCode::NO_CONTENT => Ok(()),
        status => Err(format!("{} at {} answered with {status}", to.name, to.address)),
    }
}

/// What other servers ask of this one, when it keeps logs: `router` answers queries.
pub(super) fn keeper(router: Router, sink: LogSink) -> Router {
    let state = Keeper { sink, seen: Arc::default() };
    let take = Router::new().route(BATCHES, axum::routing::post(take)).with_state(state);
    let take = take.layer(axum::extract::DefaultBodyLimit::max(REQUEST_MAX));
    guarded(take.nest(READ, router))
}

type Seen = Arc<tokio::sync::Mutex<u64>>;

#[derive(Clone)]
struct Keeper {
    sink: LogSink,
    /// The last request of each sender.
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

async fn take(State(keeper): State<Keeper>, Json(sent): Json<Sent>) -> StatusCode {
    let seen =
        keeper.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(sent.sender.clone()).or_default().clone();
    // A task of its own: who sent it may give up while the lines are on their way to the disk.
    let kept = tokio::spawn(async move {
        let mut seen = seen.lock().await;
        if sent.number <= *seen {
            return true;
        }
        let batches = sent.batches.into_iter().map(|(stream, lines)| keeper.sink.append_durably(stream, lines));
        // Polled in order, so the lines of a stream stay in order.
        let kept = futures_util::future::join_all(batches).await;
        // Lines that the keeper refuses (a flood) are its own to tell of; when it stops, none are kept.
        let kept = kept.is_empty() || kept.iter().any(|it| *it);
        if kept {
            *seen = sent.number;
        }
        kept
    });
    match kept.await {
        Ok(true) => StatusCode::NO_CONTENT,
        Ok(false) | Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Marks a request that is to fail when one of several keepers does not answer: from the others nobody may conclude what
/// is kept.
#[derive(Clone, Copy)]
pub(super) struct Whole;

/// Answers for the logs of the whole platform, as [`arco_eventlog::Eventlog::router`] does for one server's.
pub(super) fn reader(peers: Peers, here: Option<Router>) -> Router {
    Router::new().fallback(read).with_state(Reader { peers, here })
}

#[derive(Clone)]
struct Reader {
    peers: Peers,
    here: Option<Router>,
}

impl Reader {
    async fn ask(&self, server: Option<&Server>, mut request: Request) -> Response {
        let foreign = server.filter(|it| self.here.is_none() || it.name != self.peers.directory().me());
        match (foreign, &self.here) {
            (Some(server), _) => {
                let path = request.uri().path_and_query().map_or("", |it| it.as_str());
                match format!("{READ}{path}").parse() {
                    Ok(uri) => *request.uri_mut() = uri,
                    Err(_) => return answer(Problem::internal("ask another server for a log")),
                }
                self.peers.send(server, request).await
            }
            (None, Some(here)) => {
                let Ok(response) = here.clone().oneshot(request).await;
                response
            }
            (None, None) => answer(Problem::internal("find who keeps a log")),
        }
    }

    /// Asks every keeper the same. When it is to read, one that does not answer well is left out as long as another does;
    /// what changes something must be done by each, and [`Whole`] be told by each.
    async fn ask_all(&self, servers: &[Server], request: Request) -> Vec<Response> {
        let (parts, _) = request.into_parts();
        let copies = servers.iter().map(|server| {
            let mut copy = Request::new(Body::empty());
            (*copy.method_mut(), *copy.uri_mut()) = (parts.method.clone(), parts.uri.clone());
            *copy.headers_mut() = parts.headers.clone();
            self.ask(Some(server), copy)
        });
        let answers = futures_util::future::join_all(copies).await;
        let (good, mut bad): (Vec<_>, Vec<_>) = answers.into_iter().partition(|it| it.status().is_success());
        bad.truncate(1);
        let all = parts.method != Method::GET || parts.extensions.get::<Whole>().is_some();
        let enough = if all { bad.is_empty() } else { !good.is_empty() };
        if enough { good } else { bad }
    }
}

/// The document of a query, as far as merging needs it.
#[derive(Default, Serialize, Deserialize)]
struct Lines {
    lines: Vec<LogLine>,
    more: bool,
    next: u64,
}

async fn read(State(reader): State<Reader>, request: Request) -> Response {
    let servers = reader.peers.directory().with(Role::Eventlog);
    let stream = request.uri().path().trim_start_matches("/streams/").to_owned();
    let owner = match reader.peers.find(Role::Eventlog, &stream) {
        Ok(owner) => Some(owner),
        Err(_) if reader.here.is_some() => None,
        Err(missing) => return answer(missing),
    };
    let accept = request.headers().get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let streams = accept.contains("text/event-stream") || request.headers().contains_key(header::UPGRADE);
    let query = request.uri().query().unwrap_or_default().to_owned();
    if let Some(place) = Place::of(&query).filter(|_| !streams) {
        return page(&reader, &servers, place, request).await;
    }
    if servers.len() < 2 || streams {
        return reader.ask(owner.as_ref(), request).await;
    }
    let (method, tail, again) = (request.method().clone(), tail(&query), copy(&request));
    let whole = request.extensions().get::<Whole>().is_some();
    let mut found = reader.ask_all(&servers, request).await;
    if found.first().is_some_and(|it| !it.status().is_success()) {
        return found.remove(0);
    }
    if method != Method::GET {
        return StatusCode::NO_CONTENT.into_response();
    }
    let mut all = Vec::new();
    for response in found {
        let bytes = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await.ok();
        match bytes.and_then(|it| serde_json::from_slice::<Lines>(&it).ok()) {
            None if whole => return answer(Problem::internal("read all of a log that several servers keep")),
            lines => all.extend(lines.filter(|it| !it.lines.is_empty() || it.next > 0)),
        }
    }
    let all = merged(all, tail);
    if all.more && tail.is_none() {
        return page(&reader, &servers, Place::first(&query), again).await;
    }
    Json(all).into_response()
}

/// A request without a body once more.
fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::empty());
    (*copy.method_mut(), *copy.uri_mut()) = (request.method().clone(), request.uri().clone());
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// One page of one keeper's lines: of more than fits into one answer, numbers of several keepers make no order.
async fn page(reader: &Reader, servers: &[Server], place: Place, mut request: Request) -> Response {
    let broken = || answer(Problem::internal("read a page of a log that another server keeps"));
    let keepers = pages::keepers(servers.iter().map(|it| it.name.as_str()));
    let Some(asked) = place.find(&keepers) else { return Json(Lines::default()).into_response() };
    let Ok(uri) = asked.address(request.uri()).parse() else { return broken() };
    *request.uri_mut() = uri;
    let response = reader.ask(servers.iter().find(|it| it.name == asked.name), request).await;
    if !response.status().is_success() {
        return response;
    }
    let Ok(bytes) = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await else { return broken() };
    let Ok(mut lines) = serde_json::from_slice::<Lines>(&bytes) else { return broken() };
    (lines.more, lines.next) = asked.onward(lines.more, lines.next);
    Json(lines).into_response()
}

/// `tail=N` of a query.
fn tail(query: &str) -> Option<usize> {
    query.split('&').find_map(|it| it.strip_prefix("tail=")?.parse().ok())
}

/// One document of several keepers' lines: by time, those of one keeper in their own order.
fn merged(all: Vec<Lines>, tail: Option<usize>) -> Lines {
    let mut out = Lines::default();
    for it in all {
        out.more |= it.more;
        out.next = out.next.max(it.next);
        out.lines.extend(it.lines);
    }
    out.lines.sort_by_key(|it| it.at); // stable
    if let Some(tail) = tail
        && out.lines.len() > tail
    {
        out.lines.drain(..out.lines.len() - tail);
        out.more = true;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_daemon::Supervisor;
    use arco_daemon::discovery::Directory;
    use arco_daemon::pki::Pki;
    use arco_model::id::ComponentId;
    use arco_model::time::Timestamp;
    use arco_store::kv::{MemoryKv, SharedKv};

    fn line(at: u64, text: &str) -> LogLine {
        LogLine { at: Timestamp(at), instance: None, origin: LogOrigin::Stdout, text: text.to_owned() }
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|it| it.text.as_str()).collect()
    }

    #[test]
    fn a_request_is_taken_by_its_keeper_however_much_waits() {
        let stream = LogStream::Component { id: ComponentId::from_parts(1, 1) };
        // What takes the most room in JSON.
        let batch = |bytes: usize| LogBatch {
            stream: stream.clone(),
            lines: vec![line(1, &"\u{1}".repeat(bytes))],
            written: None,
            once: false,
        };
        let most: Vec<LogBatch> = std::iter::repeat_with(|| batch(1 << 20)).take(9).collect();
        let count = fitting(most.iter());
        assert_eq!(count, 7);
        let batches = most.into_iter().take(count).map(|it| (it.stream, it.lines)).collect();
        let sent = Sent { sender: "a".to_owned(), number: 1, batches };
        assert!(serde_json::to_vec(&sent).unwrap().len() < REQUEST_MAX);
        let large = [batch(TOGETHER_BYTES + 1), batch(1)];
        assert_eq!(fitting(large.iter()), 1, "alone");
        assert_eq!(fitting([batch(1), batch(1)].iter()), 2);
        assert_eq!(fitting([].iter()), 0);
    }

    #[test]
    fn lines_of_several_keepers_are_one_log() {
        let all = || {
            vec![
                Lines { lines: vec![line(1, "a"), line(3, "c"), line(3, "d")], more: false, next: 3 },
                Lines { lines: vec![line(2, "b"), line(4, "e")], more: false, next: 2 },
            ]
        };
        let whole = merged(all(), None);
        assert_eq!((texts(&whole.lines), whole.more, whole.next), (vec!["a", "b", "c", "d", "e"], false, 3));
        let last = merged(all(), tail("since_ms=1&tail=2"));
        assert_eq!((texts(&last.lines), last.more), (vec!["d", "e"], true));
    }

    #[tokio::test]
    async fn who_must_know_the_whole_hears_of_a_keeper_that_is_silent() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let (supervisor, folder) = (Supervisor::new(), tempfile::tempdir().unwrap());
        let mut directory = Directory::follow(kv, "here", &supervisor).await.unwrap();
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for name in ["here", "silent"] {
            let server = Server {
                name: name.to_owned(),
                roles: vec![Role::Eventlog],
                address: silent.to_string(),
                gateway: None,
                version: "1".to_owned(),
                since: Timestamp(1),
            };
            directory.enter(server, &supervisor);
        }
        let known = async {
            while directory.with(Role::Eventlog).len() < 2 {
                directory.changed().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), known).await.unwrap();
        let pki = Arc::new(Pki::open(folder.path()).unwrap());
        let peers = Peers::new(directory, "here", &pki, &supervisor).unwrap();
        let router = reader(peers, Some(Router::new().fallback(|| async { Json(Lines::default()) })));
        let asked = |whole: bool| {
            let mut request = Request::builder().uri("/streams/component/x").body(Body::empty()).unwrap();
            if whole {
                request.extensions_mut().insert(Whole);
            }
            router.clone().oneshot(request)
        };
        assert_eq!(asked(false).await.unwrap().status(), StatusCode::OK);
        assert_eq!(asked(true).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        // What removes a log must be done by each.
        let remove = Request::builder().method(Method::DELETE).uri("/streams/component/x").body(Body::empty()).unwrap();
        assert_eq!(router.clone().oneshot(remove).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(supervisor.shutdown(Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn a_request_that_came_twice_is_kept_once() {
        let (sink, mut kept) = LogSink::channel(8);
        let keeper = Keeper { sink, seen: Arc::default() };
        let lines = tokio::spawn(async move {
            let mut lines = Vec::new();
            while let Some(batch) = kept.recv().await {
                lines.extend(batch.lines);
                let _ = batch.written.map(|it| it.send(()));
            }
            lines
        });
        let stream = LogStream::Component { id: ComponentId::from_parts(1, 1) };
        let sent = |number, texts: &[&str]| {
            let batches = texts.iter().map(|it| (stream.clone(), vec![line(1, it)])).collect();
            Json(Sent { sender: "a".to_owned(), number, batches })
        };
        for (number, texts) in [(1, ["a", "b"]), (1, ["a", "b"]), (2, ["c", "d"]), (1, ["a", "b"])] {
            assert_eq!(take(State(keeper.clone()), sent(number, &texts)).await, StatusCode::NO_CONTENT);
        }
        drop(keeper);
        assert_eq!(texts(&lines.await.unwrap()), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_number_is_not_used_again_for_what_comes_after_what_was_kept_here() {
        let stream = LogStream::Component { id: ComponentId::from_parts(1, 1) };
        let (mut waiting, mut number, mut again) = (Waiting::default(), 0, None);
        for text in ["a", "b", "c"] {
            waiting.push(LogBatch { stream: stream.clone(), lines: vec![line(1, text)], written: None, once: false });
        }
        assert_eq!((next_request("keeper", &mut number, &again, || 3), number), (3, 1));
        again = Some(("keeper".to_owned(), 3));
        assert_eq!((next_request("keeper", &mut number, &again, || 9), number), (3, 1), "as it was");
        assert_eq!((next_request("other", &mut number, &again, || 2), number), (2, 2), "another one has not seen it");
        // One was kept here meanwhile: under the old number the keeper would take the rest for what it has.
        waiting.pop_here(&mut again).unwrap();
        assert_eq!((next_request("keeper", &mut number, &again, || 2), number), (2, 3));
    }

    #[test]
    fn what_nobody_waits_for_or_may_be_kept_is_not_sent_again() {
        let stream = LogStream::Component { id: ComponentId::from_parts(1, 1) };
        let mut waiting = Waiting::default();
        let mut senders = Vec::new();
        for (text, once) in [("a", false), ("b", true), ("c", false), ("d", true), ("e", true)] {
            let (written, sender) = tokio::sync::oneshot::channel();
            waiting.push(LogBatch { stream: stream.clone(), lines: vec![line(1, text)], written: Some(written), once });
            senders.push(sender);
        }
        let left = |it: &Waiting| -> String { it.queue.iter().map(|it| it.lines[0].text.as_str()).collect() };
        // The first three went out, and nobody knows whether they came.
        let mut again = Some(("keeper".to_owned(), 3));
        waiting.leave_out(3, |it| it.once, &mut again);
        assert_eq!((left(&waiting).as_str(), again.as_ref().map(|it| it.1)), ("acde", Some(2)));
        assert!(senders[1].try_recv().is_err_and(|it| it == tokio::sync::oneshot::error::TryRecvError::Closed));
        // Senders that gave up: one that says its lines again, and one that does not.
        drop(senders.drain(2..4));
        waiting.leave_out(TOGETHER, LogBatch::is_abandoned, &mut again);
        assert_eq!((left(&waiting).as_str(), again.as_ref().map(|it| it.1)), ("ace", Some(2)));
        waiting.leave_out(TOGETHER, |_| true, &mut again);
        assert_eq!((waiting.bytes, again), (0, None));
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_left_out_is_said() {
        let stream = LogStream::Component { id: ComponentId::from_parts(1, 1) };
        let text = "x".repeat(1 << 20);
        let batch = |written| LogBatch { stream: stream.clone(), lines: vec![line(1, &text)], written, once: false };
        let mut waiting = Waiting::default();
        for _ in 0..40 {
            waiting.push(batch(None));
        }
        let full = waiting.queue.len();
        assert!(full < 20 && waiting.left_out == 40 - full as u64);
        let (written, mut durable) = tokio::sync::oneshot::channel();
        waiting.push(batch(Some(written)));
        assert_eq!(waiting.queue.len(), full + 1, "who waits is never left out");
        waiting.kept(full + 1);
        assert!(durable.try_recv().is_ok());
        let last = waiting.pop().unwrap();
        assert!(
            last.lines[0].text.starts_with(&format!("{} lines are missing", 40 - full)),
            "{:?}",
            last.lines[0].text
        );
        assert!(waiting.pop().is_none() && waiting.bytes == 0);
    }
}
