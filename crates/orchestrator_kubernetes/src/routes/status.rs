//! Conditions as the Gateway API words them, and the statuses that objects get. Pure.

use super::kind::Kind;
use super::world::Name;
use arco_model::time::Timestamp;
use serde_json::{Value, json};

/// A condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Condition {
    pub(super) fn new(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds, reason, message: message.into() }
    }

    /// One that holds, for the usual reason: its own name.
    pub(super) fn good(kind: &'static str) -> Self {
        Self::new(kind, true, kind, "")
    }
}

/// Types of conditions that we write. Those of others on the same object stay: two who each remove what the other one says
/// would never end.
const OURS: [&str; 5] = ["Accepted", "Programmed", "ResolvedRefs", "Conflicted", "PartiallyInvalid"];

/// What an object of the cluster should say about itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Status {
    pub(super) kind: Kind,
    pub(super) name: Name,
    /// Fields of `status` that are replaced.
    pub(super) body: Value,
}

/// Conditions as they are written. The time of one that says the same as in `before` stays, and so does what others say.
pub(super) fn conditions(wanted: &[Condition], before: &Value, generation: i64, now: Timestamp) -> Value {
    let before = before.as_array().map(Vec::as_slice).unwrap_or_default();
    let seconds = Timestamp(now.0 / 1000 * 1000).rfc3339().replace(".000Z", "Z");
    let written = wanted.iter().map(|it| {
        let status = if it.holds { "True" } else { "False" };
        let known = before.iter().find(|old| old["type"] == it.kind && old["status"] == status);
        let since = known.and_then(|it| it["lastTransitionTime"].as_str()).unwrap_or(&seconds);
        json!({
            "type": it.kind, "status": status, "reason": it.reason, "message": it.message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    });
    let others = before.iter().filter(|old| !old["type"].as_str().is_some_and(|it| OURS.contains(&it)));
    Value::Array(written.chain(others.cloned()).collect())
}

/// The conditions of an object that is not ours any more without those that we wrote last (`said`, as the cluster has it
/// down).
pub(super) fn others(before: &Value, said: &Value) -> Vec<Value> {
    let whole = said.as_object().is_some_and(serde_json::Map::is_empty);
    let ours = |it: &Value| {
        let kind = it["type"].as_str().unwrap_or_default();
        // Whoever speaks of the object as it is now writes that field of a condition, if no other.
        let field = format!("k:{}", json!({ "type": kind }));
        OURS.contains(&kind) && (whole || said[field.as_str()]["f:observedGeneration"].is_object())
    };
    before.as_array().into_iter().flatten().filter(|it| !ours(it)).cloned().collect()
}

/// The status when `body` is other than what the cluster has.
pub(super) fn changed(kind: Kind, name: &Name, body: Value, before: &Value) -> Option<Status> {
    let same = body.as_object().into_iter().flatten().all(|(field, value)| {
        let old = before.get(field).unwrap_or(&Value::Null);
        old == value || (old.is_null() && value.as_array().is_some_and(Vec::is_empty))
    });
    (!same).then(|| Status { kind, name: name.clone(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_others_stay_and_ours_that_hold_no_more_go() {
        let (now, later) = (Timestamp(1_790_000_000_000), Timestamp(1_790_000_060_000));
        let partly = Condition::new("PartiallyInvalid", true, "UnsupportedValue", "a filter");
        let first = conditions(&[Condition::good("Accepted"), partly], &Value::Null, 1, now);
        let theirs = json!({ "type": "example.com/PolicyAffected", "status": "True", "reason": "Accepted" });
        let mut before = first.as_array().cloned().unwrap();
        before.insert(0, theirs.clone());
        let after = conditions(&[Condition::good("Accepted")], &before.into(), 1, later);
        assert_eq!(after, json!([first[0], theirs]));
        // Written once, it is not written again.
        assert_eq!(conditions(&[Condition::good("Accepted")], &after, 1, later), after);
    }
}
