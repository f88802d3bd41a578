//! Why a command failed: an exit status and the document that says what, why and what to do.

use arco_api::client::{ClientError, ContextError};
use arco_api::wire::ErrorBody;
use arco_model::error::{ErrorKind, Problem};

/// Exit statuses of the contract.
pub(crate) mod exit {
    /// The operation failed.
    pub(crate) const FAILED: u8 = 1;
    /// Wrong usage.
    pub(crate) const USAGE: u8 = 2;
    /// The platform cannot be reached.
    pub(crate) const UNREACHABLE: u8 = 3;
    /// Not allowed.
    pub(crate) const DENIED: u8 = 4;
    /// Not found.
    pub(crate) const NOT_FOUND: u8 = 5;
    /// Conflict.
    pub(crate) const CONFLICT: u8 = 6;
    /// A person interrupted it (128 + SIGINT, as shells say it).
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    /// Exit status.
    pub(crate) status: u8,
    /// What to print.
    pub(crate) body: ErrorBody,
}

impl Failure {
    /// A failure with a stable code.
    pub(crate) fn new(status: u8, code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        let body = ErrorBody { code: code.to_owned(), message: message.into(), advice: advice.into(), operation: None };
        Self { status, body }
    }

    /// Wrong usage.
    pub(crate) fn usage(code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(exit::USAGE, code, message, advice)
    }

    /// Something on this machine failed.
    pub(crate) fn local(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(exit::FAILED, "local", message, advice)
    }

    /// With the operation that it is about.
    pub(crate) fn of_operation(mut self, id: &str) -> Self {
        self.body.operation = Some(id.to_owned());
        self
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let status = match &error {
            ClientError::Refused { status, .. } => of_http(*status),
            ClientError::Context(ContextError::Denied(_)) => exit::DENIED,
            ClientError::Context(_) | ClientError::Unreachable { .. } => exit::UNREACHABLE,
            ClientError::Answer(_) | ClientError::Local(_) => exit::FAILED,
        };
        Self { status, body: error.body() }
    }
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let status = match problem.kind {
            ErrorKind::InvalidArgument => exit::USAGE,
            ErrorKind::NotFound => exit::NOT_FOUND,
            ErrorKind::Conflict => exit::CONFLICT,
            ErrorKind::Denied => exit::DENIED,
            ErrorKind::Unavailable => exit::UNREACHABLE,
            ErrorKind::LimitReached | ErrorKind::Failed | ErrorKind::Internal => exit::FAILED,
        };
        Self { status, body: problem.into() }
    }
}

/// The exit status for a status code of the API.
fn of_http(status: u16) -> u8 {
    match status {
        400 | 413 | 415 => exit::USAGE,
        401 | 403 => exit::DENIED,
        404 | 410 => exit::NOT_FOUND,
        409 | 412 => exit::CONFLICT,
        502..=504 => exit::UNREACHABLE,
        _ => exit::FAILED,
    }
}
