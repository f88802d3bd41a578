//! Why a call failed, seen from the client.

use super::ContextError;
use crate::wire::ErrorBody;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The context cannot be used.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Nothing answers at the address, or not as our platform would.
    #[error("the platform at {api} cannot be reached: {cause}")]
    Unreachable {
        /// Address of the API.
        api: String,
        /// Why not.
        cause: String,
    },
    /// The platform said no.
    #[error("{}", .body.message)]
    Refused {
        /// HTTP status code.
        status: u16,
        /// What it said.
        body: ErrorBody,
    },
    /// The answer is not what this version expects.
    #[error("the platform's answer is not understood: {0}")]
    Answer(String),
    /// A local file or pipe failed.
    #[error("{0}")]
    Local(String),
}

impl ClientError {
    pub(super) fn from_http(api: &str, error: reqwest::Error) -> Self {
        let mut cause = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            cause = error.to_string();
            source = error.source();
        }
        if error.is_timeout() {
            cause = "it did not answer in time".to_owned();
        }
        Self::Unreachable { api: api.to_owned(), cause }
    }

    /// Whether trying again may help: the platform is away or says that a part of it is.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { status: 502..=504, .. })
    }

    /// Whether the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// As the error document that people and scripts see.
    pub fn body(&self) -> ErrorBody {
        let (code, advice) = match self {
            Self::Refused { body, .. } => return body.clone(),
            Self::Context(ContextError::Missing(_)) => (
                "no_context",
                "start a platform with `arco server`, or name its context with `--context FILE` or ARCO_CONTEXT"
                    .to_owned(),
            ),
            Self::Context(ContextError::Denied(_)) => (
                "context_denied",
                "run as root, or ask for a context of your own (`arco context create --name YOU`)".to_owned(),
            ),
            Self::Context(_) => ("context_invalid", "write it again with `arco context create`".to_owned()),
            Self::Unreachable { .. } => (
                "unreachable",
                "check that `arco server` runs there, and that the context is its own (`--context FILE`)".to_owned(),
            ),
            Self::Answer(_) => {
                ("unexpected_answer", "use a command line of the same version as the platform".to_owned())
            }
            Self::Local(_) => ("local", "check the file or pipe".to_owned()),
        };
        ErrorBody { code: code.to_owned(), message: self.to_string(), advice, operation: None }
    }
}
