//! Who may read and write which keys.

use crate::kv::{Range, limits, tls};
use std::collections::HashMap;
use std::sync::Arc;
use tonic::{Request, Status};

/// What the bearer of a certificate may do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Grant {
    /// Common name of the certificate.
    pub common_name: String,
    /// Prefixes that may be read and watched; the empty one means every key.
    pub read: Vec<String>,
    /// Prefixes that may be written; the empty one means every key. Writing does not include reading.
    pub write: Vec<String>,
}

impl Grant {
    /// Everything.
    pub fn all(common_name: impl Into<String>) -> Self {
        Self { common_name: common_name.into(), read: vec![String::new()], write: vec![String::new()] }
    }

    /// Some prefixes.
    pub fn new(common_name: impl Into<String>, read: &[&str], write: &[&str]) -> Self {
        let owned = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect();
        Self { common_name: common_name.into(), read: owned(read), write: owned(write) }
    }

    pub(super) fn may_read(&self, range: &Range) -> Result<(), Status> {
        allowed(&self.read, range)
    }

    pub(super) fn may_write(&self, range: &Range) -> Result<(), Status> {
        allowed(&self.write, range)
    }

    /// Whether every key may be written.
    pub(super) fn writes_all(&self) -> bool {
        self.write.iter().any(String::is_empty)
    }
}

fn allowed(prefixes: &[String], range: &Range) -> Result<(), Status> {
    let (from, to) = limits::bounds(range);
    let fits = |prefix: &String| {
        let end = limits::prefix_end(prefix.as_bytes());
        from.starts_with(prefix.as_bytes()) && end.is_none_or(|end| to.as_ref().is_some_and(|to| *to <= end))
    };
    if prefixes.iter().any(fits) { Ok(()) } else { Err(denied()) }
}

pub(super) fn denied() -> Status {
    Status::permission_denied("etcdserver: permission denied")
}

/// The grants by name.
pub(super) struct Access(HashMap<String, Arc<Grant>>);

impl Access {
    pub(super) fn new(grants: Vec<Grant>) -> Self {
        Self(grants.into_iter().map(|it| (it.common_name.clone(), Arc::new(it))).collect())
    }

    /// The grant of whoever sent this.
    pub(super) fn of<T>(&self, request: &Request<T>) -> Result<Arc<Grant>, Status> {
        let certificates = request.peer_certs().ok_or_else(denied)?;
        let name = certificates.first().and_then(|it| tls::common_name(it)).ok_or_else(denied)?;
        self.0.get(&name).cloned().ok_or_else(denied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_lie_within_a_granted_prefix() {
        let grant = Grant::new("gateway", &["/gateway/"], &["/gateway-status/"]);
        let key = |it: &str| Range::Key(it.as_bytes().to_vec());
        let prefix = |it: &str| Range::Prefix(it.as_bytes().to_vec());
        let between = |a: &[u8], b: &[u8]| Range::Between(a.to_vec(), b.to_vec());
        for (range, read, write) in [
            (key("/gateway/a"), true, false),
            (key("/gateway"), false, false),
            (key("/gateway-status/x"), false, true),
            (prefix("/gateway/"), true, false),
            (prefix("/gateway/routes/"), true, false),
            (prefix("/gateway"), false, false),
            (prefix(""), false, false),
            (between(b"/gateway/", b"/gateway0"), true, false),
            (between(b"/gateway/", b"/gateway1"), false, false),
            (between(b"/gateway/", b""), false, false),
            (between(b"/a", b"/gateway/x"), false, false),
        ] {
            assert_eq!(grant.may_read(&range).is_ok(), read, "read {range:?}");
            assert_eq!(grant.may_write(&range).is_ok(), write, "write {range:?}");
            assert!(Grant::all("admin").may_write(&range).is_ok());
        }
    }
}
