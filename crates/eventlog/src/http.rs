//! The logs over HTTP: as one JSON document, as server-sent events, or over a WebSocket.
//!
//! `api` nests this router behind its own checks of who may read what; nothing is checked here.

use crate::{Event, Eventlog, EventlogError, Filter};
use arco_model::error::{ErrorKind, Problem};
use arco_model::log::{LogLine, LogStream};
use arco_model::time::Timestamp;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{Stream, StreamExt as _};
use serde::Serialize;
use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

/// Longest time without a sign of life on a connection that follows.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

impl Eventlog {
    /// `GET` and `DELETE` of `/streams/component/{id}` and `/streams/operation/{id}`.
    pub fn router(&self) -> Router {
        Router::new().route("/streams/{kind}/{id}", get(read).delete(remove)).with_state(self.clone())
    }
}

/// The JSON answer.
#[derive(Serialize)]
struct Lines {
    lines: Vec<LogLine>,
    /// More lines match: after these, or with `tail` before these.
    more: bool,
    /// What `from` of the next request should be.
    next: u64,
}

type Words = HashMap<String, String>;

async fn read(
    State(log): State<Eventlog>,
    Path((kind, id)): Path<(String, String)>,
    Query(words): Query<Words>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let asked = stream_of(&kind, &id).and_then(|stream| Ok((stream, Asked::parse(&words, &headers)?)));
    let (stream, asked) = match asked {
        Ok(asked) => asked,
        Err(problem) => return answer(problem),
    };
    if headers.contains_key(header::UPGRADE) {
        return match upgrade {
            Ok(upgrade) => upgrade.on_upgrade(move |socket| talk(socket, log, stream, asked)),
            Err(rejection) => rejection.into_response(),
        };
    }
    let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or("");
    if accept.contains("text/event-stream") {
        let events = log.watch(&stream, asked.filter, asked.follow);
        return Sse::new(sent(events)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    }
    match log.query(&stream, &asked.filter).await {
        Ok(found) => {
            let lines = found.lines.into_iter().map(|it| it.1).collect();
            Json(Lines { lines, more: found.more, next: found.next }).into_response()
        }
        Err(error) => answer(fault("read the log", &error)),
    }
}

async fn remove(State(log): State<Eventlog>, Path((kind, id)): Path<(String, String)>) -> Response {
    match stream_of(&kind, &id) {
        Ok(stream) => match log.remove(&stream).await {
            Ok(()) => StatusCode::NO_CONTENT.into_response(),
            Err(error) => answer(fault("remove the log", &error)),
        },
        Err(problem) => answer(problem),
    }
}

/// What a request asks for.
struct Asked {
    filter: Filter,
    follow: bool,
}

impl Asked {
    fn parse(words: &Words, headers: &HeaderMap) -> Result<Self, Problem> {
        const KNOWN: [&str; 9] = ["follow", "since_ms", "until_ms", "tail", "instance", "own", "grep", "limit", "from"];
        if let Some(unknown) = words.keys().find(|it| !KNOWN.contains(&it.as_str())) {
            return Err(wrong(unknown, "is not known here"));
        }
        let number = |name: &'static str| match words.get(name) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| wrong(name, "is not a number")),
        };
        let switch = |name: &'static str| match words.get(name).map(String::as_str) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(wrong(name, "is neither true nor false")),
        };
        let follow = switch("follow")?;
        let instance = words.get("instance").filter(|it| !it.is_empty()).map(|it| it.parse());
        // A browser that lost its connection says which line it saw last.
        let seen = headers.get("last-event-id").and_then(|it| it.to_str().ok()).and_then(|it| it.parse::<u64>().ok());
        let tail = number("tail")?.map(|it| it as usize).filter(|_| seen.is_none());
        let filter = Filter {
            since: number("since_ms")?.map(Timestamp),
            until: number("until_ms")?.map(Timestamp),
            instance: instance.transpose().map_err(|_| wrong("instance", "is not an instance id"))?,
            own: switch("own")?,
            grep: words.get("grep").filter(|it| !it.is_empty()).cloned(),
            tail,
            limit: number("limit")?.unwrap_or(0) as usize,
            from: seen.map(|it| it.saturating_add(1)).or(number("from")?).unwrap_or(0),
        };
        Ok(Self { filter, follow })
    }
}

/// Events as server-sent events: `line` (with its number as id), `missed`, `end`.
fn sent(
    events: impl Stream<Item = Event> + Send + 'static,
) -> impl Stream<Item = Result<axum::response::sse::Event, Infallible>> + Send + 'static {
    use axum::response::sse::Event as Sent;
    events.map(|event| {
        Ok(match event {
            Event::Line { number, line } => Sent::default().event("line").id(number.to_string()).data(json(&line)),
            Event::Missed(lines) => Sent::default().event("missed").data(json(&serde_json::json!({ "missed": lines }))),
            Event::End => Sent::default().event("end").data("{}"),
        })
    })
}

/// Sends lines over a WebSocket, a JSON document each; `{"missed":N}` where lines are gone.
async fn talk(mut socket: WebSocket, log: Eventlog, stream: LogStream, asked: Asked) {
    let mut events = pin!(log.watch(&stream, asked.filter, asked.follow));
    let mut alive = tokio::time::interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    loop {
        let message = tokio::select! {
            event = events.next() => match event {
                Some(Event::Line { line, .. }) => Message::Text(json(&line).into()),
                Some(Event::Missed(lines)) => Message::Text(json(&serde_json::json!({ "missed": lines })).into()),
                Some(Event::End) | None => break,
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue, // we only talk; pings are answered below us
            },
            _ = alive.tick() => Message::Ping(bytes::Bytes::new()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() // plain fields always serialise
}

fn stream_of(kind: &str, id: &str) -> Result<LogStream, Problem> {
    let wrong =
        |_| Problem::invalid("invalid_id", format!("`{id}` is not the id of a {kind}"), "take the id from a list");
    match kind {
        "operation" => Ok(LogStream::Operation { id: id.parse().map_err(wrong)? }),
        "component" => Ok(LogStream::Component { id: id.parse().map_err(wrong)? }),
        _ => Err(Problem::not_found("kind of log", kind)),
    }
}

fn wrong(name: &str, why: &str) -> Problem {
    let name: String = name.chars().take(60).collect();
    Problem::invalid(
        "invalid_parameter",
        format!("the parameter `{name}` {why}"),
        "see the description of this address for what it takes",
    )
}

fn fault(step: &str, error: &EventlogError) -> Problem {
    tracing::error!(error = %error, "failed to {step}");
    Problem::internal(step)
}

fn answer(problem: Problem) -> Response {
    let status = match problem.kind {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, [(header::CONTENT_TYPE, "application/problem+json")], json(&problem)).into_response()
}
