//! What the program of a pod says, read through connections to the API server that may break.
//!
//! What must hold: each line is handed over once, however long the API server is away; reading ends when the program has ended
//! and all of it is read, when the listener wants no more, or when the API server says again and again that it knows no such
//! container. Not here: whose pods are read, and what is read already when a process begins.

use super::cursor::{Cursor, Line};
use super::tries::{Ended, Tries};
use crate::{lines, names};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

/// How long the beginning of one stream may hold up that of the next: a node sends it with the first line, which may come
/// much later.
const OPENED: Duration = Duration::from_millis(250);
/// Most lines that are handed over together.
const BATCH: usize = 256;

/// What is read.
pub(crate) struct Source<'a> {
    pub(crate) pods: Api<Pod>,
    /// Name of the pod.
    pub(crate) pod: &'a str,
    /// A stream without a line for so long is opened anew: nobody says so when its connection is dead.
    pub(crate) idle: Duration,
    /// How many streams may be opened at the same time.
    pub(crate) opening: Option<&'a Semaphore>,
    /// Ends a pause between connections.
    pub(crate) again: Option<&'a Notify>,
}

/// Who reads.
#[async_trait]
pub(crate) trait Listener: Send {
    /// Takes over lines, up to the cursor; whether it wants more.
    async fn take(&mut self, lines: Vec<Line>, cursor: &Cursor) -> bool;
    /// Whether the program runs, as far as is known; `None` when there is nothing more to read, because its pod is gone.
    fn runs(&self) -> Option<bool>;
}

/// How a connection ended that did not break.
#[derive(Debug)]
enum Over {
    /// All is read that there was.
    Output,
    /// Nothing was said for long.
    Silence,
    /// The listener wants no more.
    Enough,
}

/// Reads from the cursor on until there is no more; `false` when it was given up before.
pub(crate) async fn read(source: &Source<'_>, cursor: &mut Cursor, listener: &mut impl Listener) -> bool {
    let mut tries = Tries::default();
    loop {
        let (before, since) = (cursor.last(), Instant::now());
        let went = connection(source, cursor, listener).await;
        if let Err(error) = &went {
            let error = crate::cluster::words(error);
            tracing::debug!(pod = source.pod, error, "its output cannot be read now");
        }
        match (listener.runs(), &went) {
            (_, Ok(Over::Enough)) => return true,
            (None, _) | (Some(false), Ok(Over::Output)) => break,
            _ => {}
        }
        let Some(pause) = tries.after(Ended::of(&went, cursor.last() > before, since.elapsed())) else { return false };
        let woken = async {
            match source.again {
                Some(again) => again.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = woken => {}
        }
    }
    if let Some(rest) = cursor.rest() {
        listener.take(vec![rest], cursor).await;
    }
    true
}

/// Hands over what one connection says.
async fn connection(
    source: &Source<'_>,
    cursor: &mut Cursor,
    listener: &mut impl Listener,
) -> Result<Over, kube::Error> {
    cursor.connect();
    let how = LogParams {
        follow: true,
        timestamps: true,
        since_time: cursor.since(),
        container: Some(names::CONTAINER.to_owned()),
        ..LogParams::default()
    };
    let mut opened = Box::pin(source.pods.log_stream(source.pod, &how));
    let mut early = None;
    if let Some(opening) = source.opening {
        let _turn = opening.acquire().await;
        early = tokio::time::timeout(OPENED, opened.as_mut()).await.ok();
    }
    let from = match early {
        Some(opened) => opened?,
        None => match tokio::time::timeout(source.idle, opened).await {
            Ok(opened) => opened?,
            Err(_) => return Ok(Over::Silence),
        },
    };
    let mut lines = Box::pin(lines::of(from.compat()).ready_chunks(BATCH));
    loop {
        let chunk = match tokio::time::timeout(source.idle, lines.next()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(Over::Output),
            Err(_) => return Ok(Over::Silence),
        };
        let (mut batch, mut broken) = (Vec::with_capacity(chunk.len()), None);
        for piece in chunk {
            match piece {
                Ok(piece) => batch.extend(cursor.take(piece)),
                Err(error) => broken = Some(error),
            }
        }
        if !batch.is_empty() && !listener.take(batch, cursor).await {
            return Ok(Over::Enough);
        }
        if let Some(error) = broken {
            return Err(kube::Error::Service(error.into()));
        }
    }
}
