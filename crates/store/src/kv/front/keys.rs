//! etcd's KV service: range, put, delete, transaction, compaction.

use super::access::{Access, Grant};
use super::compare;
use super::convert::{header, key_value, range, revision, status};
use crate::kv::{KeyValue, LeaseId, Operation, SharedKv, Txn};
use arco_etcd_proto::etcdserverpb::kv_server::Kv;
use arco_etcd_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use arco_etcd_proto::etcdserverpb::request_op::Request as Step;
use arco_etcd_proto::etcdserverpb::response_op::Response as Answer;
use arco_etcd_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// How often a transaction whose conditions had to be read first is tried while others change its keys.
const ATTEMPTS: usize = 32;

pub(super) struct Keys {
    pub kv: SharedKv,
    pub access: Arc<Access>,
}

#[tonic::async_trait]
impl Kv for Keys {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let grant = self.access.of(&request)?;
        let asked = request.into_inner();
        let keys = range(&asked.key, &asked.range_end)?;
        grant.may_read(&keys)?;
        let at = u64::try_from(asked.revision).ok().filter(|it| *it != 0);
        let limit = if asked.count_only {
            1
        } else if is_plain(&asked) {
            limit(&asked)
        } else {
            0
        };
        let found = self.kv.range(keys, limit, at).await.map_err(status)?;
        let (count, more) = (found.count as i64, found.more);
        let mut answer = choose(&asked, found.items);
        answer.header = Some(header(found.revision));
        answer.count = count;
        answer.more |= more && !asked.count_only;
        Ok(Response::new(answer))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let grant = self.access.of(&request)?;
        let step = Step::RequestPut(request.into_inner());
        match self.one(&grant, step).await? {
            (revision, Some(Answer::ResponsePut(mut answer))) => {
                answer.header = Some(header(revision));
                Ok(Response::new(answer))
            }
            _ => Err(Status::internal("a put was answered otherwise")),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let grant = self.access.of(&request)?;
        let step = Step::RequestDeleteRange(request.into_inner());
        match self.one(&grant, step).await? {
            (revision, Some(Answer::ResponseDeleteRange(mut answer))) => {
                answer.header = Some(header(revision));
                Ok(Response::new(answer))
            }
            _ => Err(Status::internal("a deletion was answered otherwise")),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let grant = self.access.of(&request)?;
        let asked = request.into_inner();
        for condition in &asked.compare {
            if !condition.range_end.is_empty() {
                return Err(Status::unimplemented("conditions on ranges are not supported"));
            }
            grant.may_read(&range(&condition.key, &[])?)?;
        }
        let (success, failure) = (steps(&grant, &asked.success)?, steps(&grant, &asked.failure)?);
        for _ in 0..ATTEMPTS {
            let decided = compare::decide(&self.kv, &asked.compare).await?;
            let (first, second) = if decided.holds { (&success, &failure) } else { (&failure, &success) };
            // What was only pinned may do nothing when the pin does not hold.
            let otherwise = if decided.pinned { Vec::new() } else { second.clone() };
            let txn = Txn { compare: decided.compare, success: first.clone(), failure: otherwise };
            let done = self.kv.txn(txn).await.map_err(status)?;
            if decided.pinned && !done.succeeded {
                continue;
            }
            let succeeded = done.succeeded == decided.holds;
            let asked = if succeeded { &asked.success } else { &asked.failure };
            let responses = answers(asked, done.results, done.revision);
            return Ok(Response::new(TxnResponse { header: Some(header(done.revision)), succeeded, responses }));
        }
        Err(Status::unavailable("others change the same keys all the time; try again"))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let grant = self.access.of(&request)?;
        if !grant.writes_all() {
            return Err(super::access::denied());
        }
        let asked = request.into_inner();
        self.kv.compact(u64::try_from(asked.revision).unwrap_or(0)).await.map_err(status)?;
        Ok(Response::new(CompactionResponse { header: Some(header(revision(&self.kv).await?)) }))
    }
}

impl Keys {
    /// A transaction of one step.
    async fn one(&self, grant: &Grant, step: Step) -> Result<(u64, Option<Answer>), Status> {
        let asked = [RequestOp { request: Some(step) }];
        let txn = Txn { success: steps(grant, &asked)?, ..Txn::default() };
        let done = self.kv.txn(txn).await.map_err(status)?;
        let answer = answers(&asked, done.results, done.revision).pop().and_then(|it| it.response);
        Ok((done.revision, answer))
    }
}

/// The seam's steps. A put that wants the previous value becomes two: read, write.
fn steps(grant: &Grant, asked: &[RequestOp]) -> Result<Vec<Operation>, Status> {
    let mut steps = Vec::with_capacity(asked.len());
    for step in asked {
        match step.request.as_ref() {
            Some(Step::RequestRange(it)) => {
                let keys = range(&it.key, &it.range_end)?;
                grant.may_read(&keys)?;
                if it.revision > 0 {
                    return Err(Status::unimplemented("reading an old revision in a transaction is not supported"));
                }
                steps.push(Operation::Get(keys));
            }
            Some(Step::RequestPut(it)) => {
                let key = range(&it.key, &[])?;
                grant.may_write(&key)?;
                if it.ignore_value || it.ignore_lease {
                    return Err(Status::unimplemented("ignore_value and ignore_lease are not supported"));
                }
                if it.prev_kv {
                    grant.may_read(&key)?;
                    steps.push(Operation::Get(key));
                }
                let lease = Some(it.lease).filter(|it: &LeaseId| *it != 0);
                steps.push(Operation::Put { key: it.key.clone(), value: it.value.clone(), lease });
            }
            Some(Step::RequestDeleteRange(it)) => {
                let keys = range(&it.key, &it.range_end)?;
                grant.may_write(&keys)?;
                if it.prev_kv {
                    grant.may_read(&keys)?;
                }
                steps.push(Operation::Delete(keys));
            }
            Some(Step::RequestTxn(_)) => {
                return Err(Status::unimplemented("a transaction within a transaction is not supported"));
            }
            None => return Err(Status::invalid_argument("etcdserver: key not found")),
        }
    }
    Ok(steps)
}

/// etcd's answers from the results of [`steps`].
fn answers(asked: &[RequestOp], results: Vec<Vec<KeyValue>>, revision: u64) -> Vec<ResponseOp> {
    let mut results = results.into_iter();
    let mut next = || results.next().unwrap_or_default();
    let header = Some(header(revision));
    let answer = |step: &RequestOp| match step.request.as_ref()? {
        Step::RequestRange(it) => {
            let found = next();
            let count = found.len() as i64;
            Some(Answer::ResponseRange(RangeResponse { header, count, ..choose(it, found) }))
        }
        Step::RequestPut(it) => {
            let previous = if it.prev_kv { next().pop().map(key_value) } else { None };
            next();
            Some(Answer::ResponsePut(PutResponse { header, prev_kv: previous }))
        }
        Step::RequestDeleteRange(it) => {
            let gone = next();
            let deleted = gone.len() as i64;
            let prev_kvs = if it.prev_kv { gone.into_iter().map(key_value).collect() } else { Vec::new() };
            Some(Answer::ResponseDeleteRange(DeleteRangeResponse { header, deleted, prev_kvs }))
        }
        Step::RequestTxn(_) => None,
    };
    asked.iter().map(answer).map(|response| ResponseOp { response }).collect()
}

fn limit(asked: &RangeRequest) -> usize {
    usize::try_from(asked.limit).unwrap_or(0)
}

/// Whether the store's own order and limit are what was asked for.
fn is_plain(it: &RangeRequest) -> bool {
    let by_key = it.sort_target() == SortTarget::Key && it.sort_order() != SortOrder::Descend;
    by_key && (it.min_mod_revision, it.max_mod_revision, it.min_create_revision, it.max_create_revision) == (0, 0, 0, 0)
}

/// Filters, sorts and cuts as asked.
fn choose(asked: &RangeRequest, mut found: Vec<KeyValue>) -> RangeResponse {
    if asked.count_only {
        return RangeResponse::default();
    }
    let within = |at: u64, least: i64, most: i64| at as i64 >= least && (most == 0 || at as i64 <= most);
    found.retain(|it| {
        within(it.mod_revision, asked.min_mod_revision, asked.max_mod_revision)
            && within(it.create_revision, asked.min_create_revision, asked.max_create_revision)
    });
    match asked.sort_target() {
        SortTarget::Key => {}
        SortTarget::Version => found.sort_by_key(|it| it.version),
        SortTarget::Create => found.sort_by_key(|it| it.create_revision),
        SortTarget::Mod => found.sort_by_key(|it| it.mod_revision),
        SortTarget::Value => found.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if asked.sort_order() == SortOrder::Descend {
        found.reverse();
    }
    let limit = limit(asked);
    let more = limit != 0 && found.len() > limit;
    if more {
        found.truncate(limit);
    }
    let mut kvs: Vec<_> = found.into_iter().map(key_value).collect();
    if asked.keys_only {
        kvs.iter_mut().for_each(|it| it.value.clear());
    }
    RangeResponse { kvs, more, ..RangeResponse::default() }
}
