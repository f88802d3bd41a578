//! Conditions of etcd's transactions. The seam knows the few that matter; every other one is decided by reading the key
//! and then insisting, within the transaction, that it has not changed since.

use crate::kv::{Compare, KeyValue, SharedKv};
use arco_etcd_proto::etcdserverpb::Compare as Asked;
use arco_etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use std::cmp::Ordering;
use tonic::Status;

/// The conditions, and whether they say that the asked ones hold (`false`: that they do not).
pub(super) struct Decided {
    pub compare: Vec<Compare>,
    pub holds: bool,
    /// Whether the conditions are only a pin of what was read: when they fail, decide again.
    pub pinned: bool,
}

pub(super) async fn decide(kv: &SharedKv, asked: &[Asked]) -> Result<Decided, Status> {
    if let Some(compare) = asked.iter().map(direct).collect() {
        return Ok(Decided { compare, holds: true, pinned: false });
    }
    let (mut compare, mut holds) = (Vec::new(), true);
    for condition in asked {
        let range = super::convert::range(&condition.key, &[])?;
        let found = kv.range(range, 1, None).await.map_err(super::convert::status)?.items.pop();
        holds &= evaluate(condition, found.as_ref())?;
        compare.push(match found {
            Some(it) => Compare::ModRevision(it.key, it.mod_revision),
            None => Compare::Absent(condition.key.clone()),
        });
    }
    Ok(Decided { compare, holds, pinned: true })
}

/// The same condition in the seam's words, if it has them.
fn direct(asked: &Asked) -> Option<Compare> {
    use CompareResult::{Equal, Greater, NotEqual};
    use TargetUnion::{CreateRevision, ModRevision, Value, Version};
    let key = asked.key.clone();
    match (asked.result(), asked.target_union.as_ref()?) {
        (Equal, Version(0) | CreateRevision(0) | ModRevision(0)) => Some(Compare::Absent(key)),
        (Greater | NotEqual, Version(0) | CreateRevision(0) | ModRevision(0)) => Some(Compare::Present(key)),
        (Equal, ModRevision(revision)) => Some(Compare::ModRevision(key, u64::try_from(*revision).ok()?)),
        (Equal, Value(value)) => Some(Compare::Value(key, value.clone())),
        _ => None,
    }
}

/// As etcd does: a key that is not there has zeroes for numbers, and no value that anything could be true of.
fn evaluate(asked: &Asked, found: Option<&KeyValue>) -> Result<bool, Status> {
    let number = |it: fn(&KeyValue) -> u64| found.map_or(0, |kv| it(kv) as i64);
    let order = match (asked.target(), &asked.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(it))) => number(|kv| kv.version).cmp(it),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(it))) => number(|kv| kv.create_revision).cmp(it),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(it))) => number(|kv| kv.mod_revision).cmp(it),
        (CompareTarget::Lease, Some(TargetUnion::Lease(it))) => found.and_then(|kv| kv.lease).unwrap_or(0).cmp(it),
        (CompareTarget::Value, Some(TargetUnion::Value(it))) => match found {
            Some(kv) => kv.value.cmp(it),
            None => return Ok(false),
        },
        _ => return Err(Status::invalid_argument("a condition's target and value do not fit each other")),
    };
    Ok(match asked.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    })
}
