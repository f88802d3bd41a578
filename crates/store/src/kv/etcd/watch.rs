//! One watch over many connections: it remembers the next revision that it must see and asks from there again, the member
//! that is asked for everything then.
//!
//! What must hold: a stream on which nothing can come is left. Connections that died are found by pings, members without
//! a leader end their streams (`member`), and from whoever says nothing at all a word is asked for.

use super::members::{Call, Members};
use super::verdict::{Verdict, verdict, words};
use super::{failed, key_value, selected};
use crate::kv::{Event, KvError, Range, Watch, WatchBatch};
use etcd_client::{EventType, WatchClient, WatchOptions, WatchResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const OPEN: Call = Call { step: "watch", repeatable: true };
/// A stream that said nothing for so long is asked whether it is alive, and left when it says nothing for as long again.
pub(super) const QUIET: Duration = Duration::from_secs(20);
/// Pauses between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Batches that wait for a slow receiver.
const BUFFER: usize = 64;

type Batches = mpsc::Sender<Result<WatchBatch, KvError>>;

pub(super) fn start(members: Arc<Members>, range: Range, next: u64, quiet: Duration) -> Watch {
    let (batches, receiver) = mpsc::channel(BUFFER);
    tokio::spawn(follow(members, range, next, quiet, batches));
    Watch { receiver }
}

/// How one connection's turn ended.
enum Turn {
    /// Try again; `true` when something had been received.
    Again(bool),
    /// The watch is over: nobody listens, or its last word was said.
    Over,
}

async fn follow(members: Arc<Members>, range: Range, mut next: u64, quiet: Duration, batches: Batches) {
    let mut pause = PAUSE.0;
    loop {
        let closed = batches.clone();
        let turn = tokio::select! {
            turn = turn(&members, &range, &mut next, quiet, &batches) => turn,
            () = closed.closed() => return,
        };
        match turn {
            Turn::Over => return,
            Turn::Again(true) => pause = PAUSE.0,
            Turn::Again(false) => pause = (pause * 2).min(PAUSE.1),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = batches.closed() => return,
        }
    }
}

async fn turn(members: &Members, range: &Range, next: &mut u64, quiet: Duration, batches: &Batches) -> Turn {
    let options = WatchOptions::new().with_start_revision(*next as i64).with_progress_notify();
    let open = |mut client: WatchClient, (key, options): (Vec<u8>, WatchOptions)| async move {
        client.watch(key, Some(options)).await
    };
    let (at, mut stream) = match members.ask(OPEN, selected(range, options), open, failed(OPEN, 0, 0)).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%error, "a watch waits for its store");
            return Turn::Again(false);
        }
    };
    let (mut received, mut asked) = (false, false);
    loop {
        let message = match tokio::time::timeout(quiet, stream.message()).await {
            Ok(message) => message,
            Err(_) if asked => {
                members.leave_out(at, "a watch of it says nothing");
                return Turn::Again(received);
            }
            Err(_) => {
                asked = true;
                if stream.request_progress().await.is_err() {
                    return Turn::Again(received);
                }
                continue;
            }
        };
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => {
                members.leave_out(at, "it ended a watch");
                return Turn::Again(received);
            }
            Err(error) => {
                tracing::debug!(%error, next, "a watch lost its connection and goes on from where it was");
                if verdict(&error) != Verdict::Answer {
                    members.leave_out(at, &words(&error));
                }
                return Turn::Again(received);
            }
        };
        if response.canceled() {
            let error = match response.compact_revision() {
                0 => KvError::Unavailable { step: "watch", cause: response.cancel_reason().to_owned() },
                oldest => KvError::Compacted { asked: *next, oldest: oldest as u64 },
            };
            let _ = batches.send(Err(error)).await;
            return Turn::Over;
        }
        (received, asked) = (true, false);
        for batch in batches_of(&response, *next) {
            let after = batch.revision + 1;
            if batches.send(Ok(batch)).await.is_err() {
                return Turn::Over;
            }
            *next = after;
        }
        // A response without events that is not the first one says that everything up to it has been sent. Not one that was
        // asked for, which is of no watch: etcd before 3.4.25 and 3.5.8 says in it what it has not sent yet.
        if response.events().is_empty() && !response.created() && response.watch_id() >= 0 {
            *next = (*next).max(response.header().map_or(0, |it| it.revision() as u64) + 1);
        }
    }
}

/// A response may hold several revisions; each becomes a batch. What was seen already is left out.
fn batches_of(response: &WatchResponse, next: u64) -> Vec<WatchBatch> {
    let mut batches: Vec<WatchBatch> = Vec::new();
    for (kind, kv) in response.events().iter().filter_map(|it| Some((it.event_type(), it.kv()?.clone()))) {
        let kv = key_value(kv);
        let revision = kv.mod_revision;
        if revision < next {
            continue;
        }
        let event = match kind {
            EventType::Put => Event::Put(kv),
            EventType::Delete => Event::Delete { key: kv.key, revision },
        };
        match batches.last_mut().filter(|it| it.revision == revision) {
            Some(batch) => batch.events.push(event),
            None => batches.push(WatchBatch { revision, events: vec![event] }),
        }
    }
    batches
}
