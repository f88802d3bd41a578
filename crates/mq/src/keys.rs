//! Names of the queue's keys in the store, and what their values look like.
//!
//! `/mq/<topic>/jobs/<id>` the job · `/mq/<topic>/dedup/<dedup id>` → id · `/mq/<topic>/claims/<key>` who has the key
//! (hangs on the worker's lease) · `/mq/<topic>/dead/<id>` the dead letters. Free text in a key is escaped, so that no
//! name can reach into another part.

use crate::QueueError;
use arco_model::id::JobId;
use arco_model::job::{Job, Topic};
use arco_model::time::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A job as it is stored.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// What workers see.
    pub job: Job,
    /// How many attempts failed.
    pub failures: u32,
    /// How many attempts ended without a word (the worker died).
    pub losses: u32,
    /// Whether an attempt is under way or was cut off.
    pub running: bool,
}

/// Who has a key.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The job.
    pub id: JobId,
    /// Name of the worker, for people.
    pub worker: String,
    /// When it was given.
    pub at: Timestamp,
}

pub(crate) fn prefix(topic: Topic) -> String {
    format!("/mq/{}/", topic.as_str())
}

pub(crate) fn job(topic: Topic, id: &JobId) -> String {
    format!("/mq/{}/jobs/{id}", topic.as_str())
}

pub(crate) fn jobs_prefix(topic: Topic) -> String {
    format!("/mq/{}/jobs/", topic.as_str())
}

pub(crate) fn dedup(topic: Topic, dedup_id: &str) -> String {
    format!("/mq/{}/dedup/{}", topic.as_str(), escape(dedup_id))
}

pub(crate) fn claim(topic: Topic, key: &str) -> String {
    format!("/mq/{}/claims/{}", topic.as_str(), escape(key))
}

pub(crate) fn dead(topic: Topic, id: &JobId) -> String {
    format!("/mq/{}/dead/{id}", topic.as_str())
}

pub(crate) fn dead_prefix(topic: Topic) -> String {
    format!("/mq/{}/dead/", topic.as_str())
}

/// What a key of a topic is about.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Part<'a> {
    Job(&'a str),
    /// The key, escaped.
    Claim(&'a str),
    Other,
}

pub(crate) fn parse<'a>(topic: Topic, key: &'a [u8]) -> Part<'a> {
    let Ok(text) = std::str::from_utf8(key) else { return Part::Other };
    let Some(rest) = text.strip_prefix("/mq/").and_then(|it| it.strip_prefix(topic.as_str())) else {
        return Part::Other;
    };
    if let Some(id) = rest.strip_prefix("/jobs/") {
        Part::Job(id)
    } else if let Some(key) = rest.strip_prefix("/claims/") {
        Part::Claim(key)
    } else {
        Part::Other
    }
}

/// Letters, digits, `-`, `_` and `.` stay; every other byte becomes `%XX`.
pub(crate) fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

pub(crate) fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, QueueError> {
    serde_json::to_vec(value).map_err(|it| QueueError::Corrupt { key: key.to_owned(), cause: it.to_string() })
}

pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, QueueError> {
    serde_json::from_slice(value)
        .map_err(|it| QueueError::Corrupt { key: String::from_utf8_lossy(key).into_owned(), cause: it.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_reaches_into_another_part() {
        assert_eq!(escape("a/b%c\u{e9}"), "a%2Fb%25c%C3%A9");
        assert_eq!(dedup(Topic::Builder, "../claims/x"), "/mq/builder/dedup/..%2Fclaims%2Fx");
        assert_eq!(parse(Topic::Builder, claim(Topic::Builder, "a/b").as_bytes()), Part::Claim("a%2Fb"));
        assert_eq!(parse(Topic::Controller, b"/mq/builder/jobs/x"), Part::Other);
    }
}
