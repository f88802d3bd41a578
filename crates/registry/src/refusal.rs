//! What a request is answered when it is not done: the status and the error document of the distribution spec.

use crate::RegistryError;
use crate::route::Unroutable;
use arco_store::blob::BlobError;
use arco_store::images::ImageError;
use arco_store::sql::SqlError;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use oci_spec::distribution::ErrorCode;

/// An answer that says why not.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: Option<ErrorCode>,
    message: String,
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { status, code: Some(code), message: message.into(), header: None }
    }

    pub(crate) fn not_found(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(crate) fn invalid(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message)
    }

    /// A fault of ours: the cause goes to the log, not to the client.
    pub(crate) fn internal(step: &str, error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %error, step, "a registry request failed");
        let message = format!("the registry failed to {step}; try again, and look into the server's log if it stays");
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, code: None, message, header: None }
    }

    pub(crate) fn full() -> Self {
        let message = "the server's disk is nearly full: free some space, then push again";
        Self::new(StatusCode::INSUFFICIENT_STORAGE, ErrorCode::BlobUploadInvalid, message)
    }

    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.code.map_or_else(|| "UNKNOWN".into(), |it| serde_json::to_value(it).unwrap_or_default());
        let body = serde_json::json!({ "errors": [{ "code": code, "message": self.message }] });
        let mut answer = (self.status, Json(body)).into_response();
        if let Some(header) = self.header {
            answer.headers_mut().insert(header.0, header.1);
        }
        answer
    }
}

impl From<Unroutable> for Refusal {
    fn from(it: Unroutable) -> Self {
        match it {
            Unroutable::Unknown => Self::not_found(ErrorCode::Unsupported, "there is nothing at this address"),
            Unroutable::Name => Self::invalid(ErrorCode::NameInvalid, "the repository name is not valid"),
            Unroutable::Digest => {
                Self::invalid(ErrorCode::DigestInvalid, "the digest is not `sha256:` and 64 hex digits")
            }
            Unroutable::Tag => Self::invalid(ErrorCode::ManifestInvalid, "the tag is not valid"),
        }
    }
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::NotFound(name) => {
                Self::not_found(ErrorCode::ManifestUnknown, format!("the manifest `{name}` does not exist"))
            }
            ImageError::Invalid { why, .. } => Self::invalid(ErrorCode::ManifestInvalid, why),
            ImageError::Sql(error) => error.into(),
            ImageError::Blob(error) => error.into(),
        }
    }
}

impl From<BlobError> for Refusal {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::NotFound(_) => Self::not_found(ErrorCode::BlobUnknown, "the blob does not exist"),
            BlobError::Full(_) => Self::full(),
            error => Self::internal("use its blobs", &error),
        }
    }
}

impl From<SqlError> for Refusal {
    fn from(error: SqlError) -> Self {
        Self::internal("use its database", &error)
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Io { source, .. }
                if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) =>
            {
                Self::full()
            }
            RegistryError::Sql(error) => error.into(),
            RegistryError::Blob(error) => error.into(),
            RegistryError::Image(error) => error.into(),
            error => Self::internal("use its files", &error),
        }
    }
}
