//! What an error of a call says: whether the request was sent, whether the member answered, and in which words to tell
//! it.
//!
//! What must hold: [`Verdict::NotSent`] only with proof, for whatever it is said of is sent to another member, writes
//! too.

use etcd_client::Error;
use std::error::Error as Cause;
use tonic::{Code, ConnectError};

/// What came of a call that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The member answered: any other one would say the same.
    Answer,
    /// The request did not leave this process.
    NotSent,
    /// The member cannot at the moment, or was lost on the way: what was asked for may have been done.
    Unknown,
}

pub(super) fn verdict(error: &Error) -> Verdict {
    match error {
        Error::GRpcStatus(status) if causes(status).any(is_unsent) => Verdict::NotSent,
        // A status with a cause was made here, of a connection that broke.
        Error::GRpcStatus(status) if status.source().is_none() && is_answer(status.code()) => Verdict::Answer,
        Error::LeaseKeepAliveError(cause) if cause.contains("not found") => Verdict::Answer,
        Error::GRpcStatus(_)
        | Error::LeaseKeepAliveError(_)
        | Error::WatchError(_)
        | Error::TransportError(_)
        | Error::IoError(_) => Verdict::Unknown,
        _ => Verdict::Answer,
    }
}

/// No connection could be made, or it had ended before the request was taken from its queue: hyper says so of nothing
/// else in HTTP/2.
fn is_unsent(cause: &(dyn Cause + 'static)) -> bool {
    cause.is::<ConnectError>() || cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
}

/// What a member says of the request, not of itself.
fn is_answer(code: Code) -> bool {
    !matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::DataLoss
    )
}

fn causes<'a>(error: &'a (dyn Cause + 'static)) -> impl Iterator<Item = &'a (dyn Cause + 'static)> {
    std::iter::successors(error.source(), |&it| it.source())
}

/// For people: what the member said, or what became of the connection.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => match status.source() {
            // Above it stands only that it is an error of transport.
            Some(cause) => chain(cause.source().unwrap_or(cause)),
            None => format!("{}: {}", status.code(), status.message()),
        },
        other => other.to_string(),
    }
}

/// An error and its causes, each said once.
pub(super) fn chain(error: &(dyn Cause + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error).map(|it| it.to_string()) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    /// As tonic makes it of what it does not know.
    fn broken(cause: impl Into<Box<dyn Cause + Send + Sync>>) -> Error {
        Error::GRpcStatus(Status::from_error(cause.into()))
    }

    #[test]
    fn only_what_was_not_sent_may_be_sent_again() {
        let says = |code, text: &str| Error::GRpcStatus(Status::new(code, text));
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        for (error, wanted) in [
            (broken(ConnectError(refused().into())), Verdict::NotSent),
            (broken(refused()), Verdict::Unknown),
            (says(Code::Unavailable, "etcdserver: leader changed"), Verdict::Unknown),
            (says(Code::Unknown, "raft: stopped"), Verdict::Unknown),
            (says(Code::Internal, "Missing response message."), Verdict::Unknown),
            (says(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"), Verdict::Answer),
            (says(Code::NotFound, "etcdserver: requested lease not found"), Verdict::Answer),
            (says(Code::PermissionDenied, "etcdserver: permission denied"), Verdict::Answer),
            (Error::LeaseKeepAliveError("lease not found".to_owned()), Verdict::Answer),
            (Error::WatchError("failed to create lease keeper".to_owned()), Verdict::Unknown),
        ] {
            assert_eq!(verdict(&error), wanted, "{error:?}");
        }
    }

    #[test]
    fn each_cause_is_told_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(words(&broken(ConnectError(refused.into()))), "connection refused");
        let said = Error::GRpcStatus(Status::new(Code::PermissionDenied, "etcdserver: permission denied"));
        assert!(words(&said).ends_with(": etcdserver: permission denied"), "{}", words(&said));
    }
}
