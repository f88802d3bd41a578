//! etcd's Watch service: many watches on one stream, each fed by a task of its own that ends with the stream.

use super::access::{Access, Grant};
use super::convert::{event, header, range, revision};
use crate::kv::{Event, KvError, Range, SharedKv, WatchBatch};
use arco_etcd_proto::etcdserverpb::watch_create_request::FilterType;
use arco_etcd_proto::etcdserverpb::watch_request::RequestUnion;
use arco_etcd_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse, watch_server};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

/// Responses that wait for one slow client; beyond, its watches wait and read from history later.
const BUFFER: usize = 64;
/// Most watches on one stream.
const WATCHES: usize = 1024;

pub(super) struct Watches {
    pub kv: SharedKv,
    pub access: Arc<Access>,
    pub stop: CancellationToken,
}

type Responses = mpsc::Sender<Result<WatchResponse, Status>>;

#[tonic::async_trait]
impl watch_server::Watch for Watches {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let grant = self.access.of(&request)?;
        let (responses, receiver) = mpsc::channel(BUFFER);
        let stream = Stream { kv: self.kv.clone(), grant, responses, watches: HashMap::new(), next_id: 0 };
        tokio::spawn(stream.run(request.into_inner(), self.stop.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Stream {
    kv: SharedKv,
    grant: Arc<Grant>,
    responses: Responses,
    watches: HashMap<i64, AbortOnDropHandle<()>>,
    next_id: i64,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<WatchRequest>, stop: CancellationToken) {
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                () = self.responses.closed() => return,
                () = stop.cancelled() => return,
            };
            let Ok(Some(request)) = request else { return };
            let sent = match request.request_union {
                Some(RequestUnion::CreateRequest(asked)) => self.create(asked).await,
                Some(RequestUnion::CancelRequest(asked)) => self.cancel(asked.watch_id).await,
                Some(RequestUnion::ProgressRequest(_)) => self.progress().await,
                None => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// For whoever asks whether the stream is alive. Another revision than 0 would promise that everything up to it was
    /// delivered, which nobody here knows.
    async fn progress(&self) -> Result<(), mpsc::error::SendError<()>> {
        let response = WatchResponse { header: Some(header(0)), watch_id: -1, ..Default::default() };
        self.responses.send(Ok(response)).await.map_err(|_| mpsc::error::SendError(()))
    }

    async fn create(&mut self, asked: WatchCreateRequest) -> Result<(), mpsc::error::SendError<()>> {
        self.watches.retain(|_, task| !task.is_finished());
        let (watch_id, outcome) = self.begin(&asked).await;
        let response = match &outcome {
            Ok((now, _)) => WatchResponse { header: Some(header(*now)), watch_id, created: true, ..Default::default() },
            Err(status) => WatchResponse {
                header: Some(header(0)),
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
                ..Default::default()
            },
        };
        self.responses.send(Ok(response)).await.map_err(|_| mpsc::error::SendError(()))?;
        if let Ok((now, keys)) = outcome {
            let from = u64::try_from(asked.start_revision).ok().filter(|it| *it != 0).unwrap_or(now + 1);
            let task = feed(self.kv.clone(), keys, from, watch_id, asked, self.responses.clone());
            self.watches.insert(watch_id, AbortOnDropHandle::new(tokio::spawn(task)));
        }
        Ok(())
    }

    /// The watch's id, and the present revision and its keys if it may be.
    async fn begin(&mut self, asked: &WatchCreateRequest) -> (i64, Result<(u64, Range), Status>) {
        let id = if asked.watch_id == 0 {
            while self.watches.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            self.next_id += 1;
            self.next_id - 1
        } else {
            asked.watch_id
        };
        if self.watches.contains_key(&id) || self.watches.len() >= WATCHES {
            return (id, Err(Status::failed_precondition("the watch's id is taken, or there are too many watches")));
        }
        // A client of etcd asks for the key "\0" when it means all; an empty one with an end means the same.
        let key: &[u8] = if asked.key.is_empty() { &[0] } else { &asked.key };
        let keys = match range(key, &asked.range_end) {
            Ok(keys) => keys,
            Err(status) => return (id, Err(status)),
        };
        if let Err(status) = self.grant.may_read(&keys) {
            return (id, Err(status));
        }
        (id, revision(&self.kv).await.map(|now| (now, keys)))
    }

    async fn cancel(&mut self, watch_id: i64) -> Result<(), mpsc::error::SendError<()>> {
        if self.watches.remove(&watch_id).is_none() {
            return Ok(());
        }
        let now = revision(&self.kv).await.unwrap_or(0);
        let response = WatchResponse { header: Some(header(now)), watch_id, canceled: true, ..Default::default() };
        self.responses.send(Ok(response)).await.map_err(|_| mpsc::error::SendError(()))
    }
}

/// Brings one watch's changes to the stream.
async fn feed(kv: SharedKv, keys: Range, from: u64, watch_id: i64, asked: WatchCreateRequest, responses: Responses) {
    let ended = match kv.watch(keys, Some(from)).await {
        Err(error) => error,
        Ok(mut watch) => loop {
            match watch.next().await {
                Some(Ok(batch)) => {
                    let response = response(&kv, batch, watch_id, &asked).await;
                    if !response.events.is_empty() && responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                Some(Err(error)) => break error,
                None => break KvError::Unavailable { step: "watch", cause: "it is closed".to_owned() },
            }
        },
    };
    let last = match ended {
        KvError::Compacted { oldest, .. } => Ok(WatchResponse {
            header: Some(header(revision(&kv).await.unwrap_or(oldest))),
            watch_id,
            canceled: true,
            compact_revision: oldest as i64,
            ..Default::default()
        }),
        // The client opens another stream and goes on from what it has.
        error => Err(super::convert::status(error)),
    };
    let _ = responses.send(last).await;
}

async fn response(kv: &SharedKv, batch: WatchBatch, watch_id: i64, asked: &WatchCreateRequest) -> WatchResponse {
    let mut events = Vec::with_capacity(batch.events.len());
    for change in batch.events {
        let (unwanted, key) = match &change {
            Event::Put(it) => (FilterType::Noput, it.key.clone()),
            Event::Delete { key, .. } => (FilterType::Nodelete, key.clone()),
        };
        if asked.filters.contains(&unwanted.into()) {
            continue;
        }
        // Compacted meanwhile: then there is no previous value, as with etcd.
        let previous = if asked.prev_kv {
            kv.range(Range::Key(key), 1, Some(batch.revision - 1)).await.ok().and_then(|mut it| it.items.pop())
        } else {
            None
        };
        events.push(event(change, previous));
    }
    WatchResponse { header: Some(header(batch.revision)), watch_id, events, ..Default::default() }
}
