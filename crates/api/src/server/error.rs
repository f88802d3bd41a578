//! Errors on the wire: `application/problem+json` (RFC 9457 media type, our fields), one table from kind to status.

use crate::wire::ErrorBody;
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::OperationId;
use arco_store::blob::BlobError;
use arco_store::secrets::SecretError;
use arco_store::sql::SqlError;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;

/// What a handler fails with.
#[derive(Debug)]
pub(crate) struct ApiError {
    problem: Box<Problem>,
    operation: Option<OperationId>,
    /// For the log, never for the caller.
    cause: Option<String>,
    /// Another writer was faster: decide again on fresh rows.
    stale: bool,
}

impl ApiError {
    /// Says which operation this is about.
    pub(crate) fn about(mut self, operation: &OperationId) -> Self {
        self.operation = Some(operation.clone());
        self
    }

    /// Whether to decide again on fresh rows.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// The problem as it goes out.
    pub(crate) fn body(self) -> ErrorBody {
        ErrorBody { operation: self.operation.map(|it| it.to_string()), ..ErrorBody::from(*self.problem) }
    }

    fn internal(step: &str, cause: impl std::fmt::Display) -> Self {
        Self { cause: Some(cause.to_string()), ..Problem::internal(step).into() }
    }

    /// A store that does not answer; `setting` names which.
    pub(super) fn unavailable(code: &str, message: &str, setting: &str, cause: impl std::fmt::Display) -> Self {
        let advice = format!(
            "try again in a moment; if it stays, check what `{setting}` names: the log of the server has the cause"
        );
        Self::failed(code, message, &advice, cause)
    }

    fn failed(code: &str, message: &str, advice: &str, cause: impl std::fmt::Display) -> Self {
        let cause = cause.to_string();
        let problem = if arco_store::says_full(&cause) {
            let advice = "free space below the data dir, or give the platform a larger disk; then try again";
            let message = format!("{message}: the platform's disk is full");
            Problem::new(ErrorKind::LimitReached, "disk_full", message, advice)
        } else {
            Problem::new(ErrorKind::Unavailable, code, message, advice)
        };
        Self { cause: Some(cause), ..problem.into() }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self { problem: Box::new(problem), operation: None, cause: None, stale: false }
    }
}

impl From<SqlError> for ApiError {
    fn from(error: SqlError) -> Self {
        if arco_store::fence::is_overtaken(&error) {
            let message =
                "the change took so long that one of another server came in between: nothing of it was written";
            return Problem::new(ErrorKind::Unavailable, "no_turn", message, "try again").into();
        }
        let text = error.to_string();
        match error {
            SqlError::Exists { .. } => Self {
                stale: true,
                ..Problem::new(ErrorKind::Conflict, "exists", text, "choose another name, or change the existing one")
                    .into()
            },
            SqlError::Conflict { .. } => Self {
                stale: true,
                ..Problem::new(
                    ErrorKind::Conflict,
                    "changed_meanwhile",
                    text,
                    "look at the present state, then try again",
                )
                .into()
            },
            SqlError::Corrupt { .. } | SqlError::Newer { .. } => Self::internal("read the metadata", text),
            SqlError::Unavailable { .. } => {
                let message = "the metadata store does not answer";
                Self::unavailable("metadata_unavailable", message, "store.metadata", text)
            }
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        let text = error.to_string();
        match error {
            BlobError::NotFound(_) => Problem::not_found("blob", text).into(),
            BlobError::Full(_) => {
                let advice = "free space below the data dir, or give the platform a larger disk";
                Problem::new(ErrorKind::LimitReached, "disk_full", "the platform has no room for more uploads", advice)
                    .into()
            }
            BlobError::Path(_) => Self::internal("name a blob", text),
            BlobError::Io { source, .. } => {
                let message = "the blob store does not work";
                Self::unavailable("blobs_unavailable", message, "store.blobs", format!("{text}: {source}"))
            }
        }
    }
}

impl From<SecretError> for ApiError {
    fn from(error: SecretError) -> Self {
        Self::internal("seal or open a secret", error)
    }
}

impl From<arco_orchestrator::Error> for ApiError {
    fn from(error: arco_orchestrator::Error) -> Self {
        use arco_orchestrator::Error;
        match error {
            Error::NotFound(what) => Problem::not_found("running instance", what).into(),
            Error::Refused(why) => {
                Problem::new(ErrorKind::Conflict, "refused", why, "`arco doctor` checks the machine").into()
            }
            unsupported @ Error::Unsupported(_) => Problem::new(
                ErrorKind::Conflict,
                "not_supported",
                unsupported.to_string(),
                "leave `-i` and `-t` out, or use `arco exec`",
            )
            .into(),
            failed @ Error::Failed { .. } => {
                let advice = "try again in a moment; the server's log has the cause";
                Self::failed("orchestrator_failed", &failed.to_string(), advice, failed.to_string())
            }
        }
    }
}

impl From<arco_mq::QueueError> for ApiError {
    fn from(error: arco_mq::QueueError) -> Self {
        Self::unavailable("queue_unavailable", "the job queue does not accept", "store.coordination", error)
    }
}

impl From<arco_daemon::pki::PkiError> for ApiError {
    fn from(error: arco_daemon::pki::PkiError) -> Self {
        Self::internal("sign a certificate", error)
    }
}

/// The status code of a kind. A reached limit is 409 and not 429: trying again later does not help, something has to be
/// given up first, and clients that repeat a 429 by themselves would repeat it for ever.
pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::LimitReached => StatusCode::CONFLICT,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Failed => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            tracing::error!(code = self.problem.code, message = self.problem.message, cause, "request failed");
        }
        let status = status(self.problem.kind);
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        (status, [(CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_status() {
        let rows = [
            (ErrorKind::InvalidArgument, 400),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 409),
            (ErrorKind::LimitReached, 409),
            (ErrorKind::Denied, 403),
            (ErrorKind::Unavailable, 503),
            (ErrorKind::Failed, 422),
            (ErrorKind::Internal, 500),
        ];
        for (kind, code) in rows {
            let response = ApiError::from(Problem::new(kind, "x", "x", "x")).into_response();
            assert_eq!(response.status().as_u16(), code, "{kind:?}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        }
    }

    #[test]
    fn a_full_disk_is_called_so() {
        let full = SqlError::Unavailable { step: "commit", cause: "(code: 13) database or disk is full".into() };
        let error = ApiError::from(full);
        assert_eq!((error.problem.kind, error.problem.code.as_str()), (ErrorKind::LimitReached, "disk_full"));
        assert!(error.problem.message.contains("full") && error.problem.advice.contains("free space"));
    }

    #[test]
    fn a_store_that_is_away_is_named() {
        let away = || std::io::Error::other("connection refused");
        let blobs = BlobError::Io { step: "look for", path: "content/x".into(), source: away() };
        let rows = [
            (ApiError::from(blobs), "blobs_unavailable", "store.blobs"),
            (
                SqlError::Unavailable { step: "read", cause: "connection refused".into() }.into(),
                "metadata_unavailable",
                "store.metadata",
            ),
        ];
        for (error, code, setting) in rows {
            assert_eq!((error.problem.kind, error.problem.code.as_str()), (ErrorKind::Unavailable, code));
            assert!(error.problem.advice.contains(setting), "{}", error.problem.advice);
        }
    }

    #[test]
    fn causes_stay_in_the_log() {
        let error = ApiError::from(SqlError::Unavailable { step: "open", cause: "/var/lib/x: secret place".into() });
        assert!(!serde_json::to_string(&error.body()).unwrap().contains("secret place"));
    }
}
