//! The driver for clusters: etcd v3, or the front of another process's embedded store.
//!
//! What must hold: a watch survives the loss of its connection without losing or repeating a change; no call waits for
//! ever; while enough members work, one that does not costs time, but fails no call that was not under way at it. A
//! write whose answer was lost is not repeated: nobody can know whether it was done, so the caller decides.

mod health;
mod member;
mod members;
mod patience;
#[cfg(test)]
mod tests;
mod verdict;
mod watch;

use super::{Compare, EtcdTls, Kv, KvError, LeaseId, Operation, Range, RangeResult, Txn, TxnResult, Watch, limits};
use async_trait::async_trait;
use etcd_client::{
    CompareOp, DeleteOptions, Error, GetOptions, KvClient, LeaseClient, PutOptions, TxnOp, TxnOpResponse,
};
use member::OfMember;
use members::{Call, Members};
use std::future::Future;
use std::sync::Arc;
use tonic::Code;

const READ: Call = Call { step: "read", repeatable: true };
const WRITE: Call = Call { step: "write", repeatable: false };
// A lease that nobody knows ends by itself, but nobody knows how many there would be.
const GRANT: Call = Call { step: "grant a lease", repeatable: false };
const RENEW: Call = Call { step: "renew a lease", repeatable: true };
const REVOKE: Call = Call { step: "revoke a lease", repeatable: true };
// Done twice it is refused.
const COMPACT: Call = Call { step: "compact", repeatable: false };

/// A store behind etcd's interface.
pub struct EtcdKv {
    members: Arc<Members>,
}

impl EtcdKv {
    /// A driver for the endpoints (`host:port` or URLs), at most 64. Connections are made when they are needed and made
    /// again when they break, so this does not fail because nobody answers yet.
    pub async fn connect(addresses: &[String], tls: Option<&EtcdTls>) -> Result<Self, KvError> {
        Ok(Self { members: Arc::new(Members::new(addresses, tls).await?) })
    }
}

/// A key, its value, and its lease.
type Put = (Vec<u8>, Vec<u8>, Option<LeaseId>);

/// The one write of a transaction that does nothing else: etcd has a shorter way for it.
fn single_put(txn: &mut Txn) -> Option<Put> {
    match txn.success.as_slice() {
        [Operation::Put { .. }] if txn.compare.is_empty() => match txn.success.pop()? {
            Operation::Put { key, value, lease } => Some((key, value, lease)),
            Operation::Delete(_) | Operation::Get(_) => None, // decided above
        },
        _ => None,
    }
}

impl EtcdKv {
    async fn call<C, R, T, F>(
        &self,
        call: Call,
        request: R,
        send: impl Fn(C, R) -> F,
        failed: impl Fn(Error) -> KvError,
    ) -> Result<T, KvError>
    where
        C: OfMember,
        R: Clone,
        F: Future<Output = Result<T, Error>>,
    {
        Ok(self.members.ask(call, request, send, failed).await?.1)
    }

    async fn put_one(&self, (key, value, lease): Put) -> Result<TxnResult, KvError> {
        let options = lease.map(|it| PutOptions::new().with_lease(it));
        let put = |mut client: KvClient, (key, value, options): (Vec<u8>, Vec<u8>, Option<PutOptions>)| async move {
            client.put(key, value, options).await
        };
        let answer = self.call(WRITE, (key, value, options), put, failed(WRITE, 0, lease.unwrap_or(0))).await?;
        let revision = answer.header().map_or(0, |it| it.revision() as u64);
        Ok(TxnResult { succeeded: true, revision, results: vec![Vec::new()] })
    }
}

#[async_trait]
impl Kv for EtcdKv {
    fn name(&self) -> &'static str {
        "etcd"
    }

    async fn range(&self, range: Range, limit: usize, at: Option<u64>) -> Result<RangeResult, KvError> {
        let at = at.map(|it| it.max(1));
        let (key, mut options) = selected(&range, GetOptions::new());
        options = options.with_limit(limit as i64);
        if let Some(at) = at {
            options = options.with_revision(at as i64);
        }
        let get = |mut client: KvClient, (key, options): (Vec<u8>, GetOptions)| async move {
            client.get(key, Some(options)).await
        };
        let mut answer = self.call(READ, (key, options), get, failed(READ, at.unwrap_or(0), 0)).await?;
        Ok(RangeResult {
            revision: answer.header().map_or(0, |it| it.revision() as u64),
            more: answer.more(),
            count: answer.count() as u64,
            items: answer.take_kvs().into_iter().map(key_value).collect(),
        })
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResult, KvError> {
        limits::check(&txn)?;
        if let Some(put) = single_put(&mut txn) {
            return self.put_one(put).await;
        }
        let lease = txn.success.iter().chain(&txn.failure).find_map(|it| match it {
            Operation::Put { lease, .. } => *lease,
            _ => None,
        });
        let reads = txn.success.iter().chain(&txn.failure).all(|it| matches!(it, Operation::Get(_)));
        let call = if reads { READ } else { WRITE };
        let request = etcd_client::Txn::new()
            .when(txn.compare.iter().map(compare).collect::<Vec<_>>())
            .and_then(txn.success.into_iter().map(operation).collect::<Vec<_>>())
            .or_else(txn.failure.into_iter().map(operation).collect::<Vec<_>>());
        let send = |mut client: KvClient, request| async move { client.txn(request).await };
        let answer = self.call(call, request, send, failed(call, 0, lease.unwrap_or(0))).await?;
        let results = answer.op_responses().into_iter().map(|it| match it {
            TxnOpResponse::Get(mut it) => it.take_kvs().into_iter().map(key_value).collect(),
            TxnOpResponse::Delete(mut it) => it.take_prev_kvs().into_iter().map(key_value).collect(),
            TxnOpResponse::Put(_) | TxnOpResponse::Txn(_) => Vec::new(),
        });
        Ok(TxnResult {
            succeeded: answer.succeeded(),
            revision: answer.header().map_or(0, |it| it.revision() as u64),
            results: results.collect(),
        })
    }

    async fn watch(&self, range: Range, from: Option<u64>) -> Result<Watch, KvError> {
        let next = match from {
            Some(from) => from.max(1),
            None => self.range(Range::Key(vec![0]), 1, None).await?.revision + 1,
        };
        Ok(watch::start(self.members.clone(), range, next, watch::QUIET))
    }

    async fn lease_grant(&self, ttl_s: u64) -> Result<LeaseId, KvError> {
        let ttl = i64::try_from(ttl_s).unwrap_or(i64::MAX);
        let grant = |mut client: LeaseClient, ttl| async move { client.grant(ttl, None).await };
        Ok(self.call(GRANT, ttl, grant, failed(GRANT, 0, 0)).await?.id())
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<u64, KvError> {
        let renew = |mut client: LeaseClient, lease| async move {
            // The first answer is the library's to see; the second one says for how long.
            let (mut keeper, mut answers) = client.keep_alive(lease).await?;
            keeper.keep_alive().await?;
            Ok(answers.message().await?.map_or(0, |it| it.ttl()))
        };
        let ttl = self.call(RENEW, lease, renew, failed(RENEW, 0, lease)).await?;
        u64::try_from(ttl).ok().filter(|it| *it != 0).ok_or(KvError::NoLease(lease))
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), KvError> {
        let revoke = |mut client: LeaseClient, lease| async move { client.revoke(lease).await };
        match self.call(REVOKE, lease, revoke, failed(REVOKE, 0, lease)).await {
            Ok(_) | Err(KvError::NoLease(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn compact(&self, revision: u64) -> Result<(), KvError> {
        let at = i64::try_from(revision).unwrap_or(i64::MAX);
        let compact = |mut client: KvClient, at| async move { client.compact(at, None).await };
        self.call(COMPACT, at, compact, failed(COMPACT, at as u64, 0)).await.map(drop)
    }
}

/// The seam's error. etcd does not tell the oldest revision when it refuses a read: it is at least the next one.
fn failed(call: Call, asked: u64, lease: LeaseId) -> impl Fn(Error) -> KvError {
    move |error| match &error {
        Error::GRpcStatus(status) => match status.code() {
            Code::OutOfRange if status.message().contains("compacted") => {
                KvError::Compacted { asked, oldest: asked + 1 }
            }
            Code::NotFound if status.message().contains("lease") => KvError::NoLease(lease),
            Code::InvalidArgument | Code::OutOfRange => KvError::Refused(status.message().to_owned()),
            _ => KvError::Unavailable { step: call.step, cause: verdict::words(&error) },
        },
        Error::LeaseKeepAliveError(cause) if cause.contains("not found") => KvError::NoLease(lease),
        _ => KvError::Unavailable { step: call.step, cause: verdict::words(&error) },
    }
}

/// What the options of reading, deleting and watching have in common.
trait Selecting: Sized {
    fn to(self, end: Vec<u8>) -> Self;
    fn prefixed(self) -> Self;
    fn endless(self) -> Self;
}

macro_rules! selecting {
    ($($options:ty)*) => {$(
        impl Selecting for $options {
            fn to(self, end: Vec<u8>) -> Self { self.with_range(end) }
            fn prefixed(self) -> Self { self.with_prefix() }
            fn endless(self) -> Self { self.with_from_key() }
        }
    )*};
}

selecting! { GetOptions DeleteOptions etcd_client::WatchOptions }

fn selected<O: Selecting>(range: &Range, options: O) -> (Vec<u8>, O) {
    match range {
        Range::Key(key) => (key.clone(), options),
        Range::Prefix(prefix) => (prefix.clone(), options.prefixed()),
        Range::Between(from, to) if to.is_empty() => (from.clone(), options.endless()),
        // etcd knows no empty key; none sorts before this one.
        Range::Between(from, to) if from.is_empty() => (vec![0], options.to(to.clone())),
        Range::Between(from, to) => (from.clone(), options.to(to.clone())),
    }
}

fn compare(it: &Compare) -> etcd_client::Compare {
    match it.clone() {
        Compare::Absent(key) => etcd_client::Compare::version(key, CompareOp::Equal, 0),
        Compare::Present(key) => etcd_client::Compare::version(key, CompareOp::Greater, 0),
        Compare::ModRevision(key, at) => etcd_client::Compare::mod_revision(key, CompareOp::Equal, at as i64),
        Compare::Value(key, value) => etcd_client::Compare::value(key, CompareOp::Equal, value),
    }
}

fn operation(it: Operation) -> TxnOp {
    match it {
        Operation::Put { key, value, lease } => {
            TxnOp::put(key, value, lease.map(|it| PutOptions::new().with_lease(it)))
        }
        Operation::Delete(range) => {
            let (key, options) = selected(&range, DeleteOptions::new().with_prev_key());
            TxnOp::delete(key, Some(options))
        }
        Operation::Get(range) => {
            let (key, options) = selected(&range, GetOptions::new());
            TxnOp::get(key, Some(options))
        }
    }
}

fn key_value(it: etcd_client::KeyValue) -> super::KeyValue {
    let (create_revision, mod_revision) = (it.create_revision() as u64, it.mod_revision() as u64);
    let (version, lease) = (it.version() as u64, Some(it.lease()).filter(|it| *it != 0));
    let (key, value) = it.into_key_value();
    super::KeyValue { key, value, create_revision, mod_revision, version, lease }
}
