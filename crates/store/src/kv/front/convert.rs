//! Between etcd's messages and the seam's values.

use crate::kv::{Event, KeyValue, KvError, Range, SharedKv};
use arco_etcd_proto::etcdserverpb::ResponseHeader;
use arco_etcd_proto::mvccpb;
use tonic::Status;

/// etcd names its members; here is one, always the same.
const MEMBER: u64 = 0x6172_636f;

pub(super) fn header(revision: u64) -> ResponseHeader {
    ResponseHeader { cluster_id: MEMBER, member_id: MEMBER, revision: revision as i64, raft_term: 1 }
}

/// The store's present revision.
pub(super) async fn revision(kv: &SharedKv) -> Result<u64, Status> {
    Ok(kv.range(Range::Key(vec![0]), 1, None).await.map_err(status)?.revision)
}

/// etcd's pair of a key and an end.
pub(super) fn range(key: &[u8], end: &[u8]) -> Result<Range, Status> {
    match end {
        _ if key.is_empty() => Err(Status::invalid_argument("etcdserver: key is not provided")),
        [] => Ok(Range::Key(key.to_vec())),
        [0] if key == [0] => Ok(Range::Prefix(Vec::new())),
        [0] => Ok(Range::Between(key.to_vec(), Vec::new())),
        _ => Ok(Range::Between(key.to_vec(), end.to_vec())),
    }
}

pub(super) fn key_value(it: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: it.key,
        value: it.value,
        create_revision: it.create_revision as i64,
        mod_revision: it.mod_revision as i64,
        version: it.version as i64,
        lease: it.lease.unwrap_or(0),
    }
}

pub(super) fn event(it: Event, previous: Option<KeyValue>) -> mvccpb::Event {
    let (kind, kv) = match it {
        Event::Put(kv) => (mvccpb::event::EventType::Put, key_value(kv)),
        Event::Delete { key, revision } => {
            let gone = mvccpb::KeyValue { key, mod_revision: revision as i64, ..mvccpb::KeyValue::default() };
            (mvccpb::event::EventType::Delete, gone)
        }
    };
    mvccpb::Event { r#type: kind.into(), kv: Some(kv), prev_kv: previous.map(key_value) }
}

/// etcd's words where it has some: clients compare them.
pub(super) fn status(error: KvError) -> Status {
    match &error {
        KvError::Compacted { .. } => Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
        KvError::NoLease(_) => Status::not_found("etcdserver: requested lease not found"),
        KvError::Refused(cause) if cause.contains("future") => {
            Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
        }
        KvError::Refused(cause) if cause.contains("twice") || cause.contains("both") => {
            Status::invalid_argument("etcdserver: duplicate key given in txn request")
        }
        KvError::Refused(cause) if cause.contains("operations") => {
            Status::invalid_argument("etcdserver: too many operations in txn request")
        }
        KvError::Refused(cause) if cause.contains("bytes") => {
            Status::invalid_argument("etcdserver: request is too large")
        }
        KvError::Refused(cause) => Status::invalid_argument(cause),
        KvError::Unavailable { .. } => Status::unavailable(error.to_string()),
    }
}
