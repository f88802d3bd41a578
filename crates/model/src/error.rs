//! What a caller can do about an error, and the text that people read.
//!
//! Every crate has its own `Error`; what crosses a border to a person becomes a [`Problem`]: code, message, advice.

use serde::{Deserialize, Serialize};

/// What a caller can do about an error. Add a kind only if some caller acts on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong; sending it again cannot help.
    InvalidArgument,
    /// The named thing does not exist.
    NotFound,
    /// The thing exists already, or somebody else changed it meanwhile.
    Conflict,
    /// The caller is known but may not do this.
    Denied,
    /// A quota or limit of the tenant or of the platform is reached.
    LimitReached,
    /// Not now: a part is down or busy. Trying again later can help.
    Unavailable,
    /// The operation itself failed (a build failed, an instance is not healthy).
    Failed,
    /// A fault of ours.
    Internal,
}

/// An error as a person sees it: what, which, why (`message`) and what to do next (`advice`).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Decides status codes at the edges.
    pub kind: ErrorKind,
    /// Stable, `snake_case`, one page in `docs/errors/` when an operator can mend it.
    pub code: String,
    /// What happened, to which thing, in which step.
    pub message: String,
    /// What to do next; never empty.
    pub advice: String,
}

impl Problem {
    /// A problem of `kind` with a stable `code`.
    pub fn new(kind: ErrorKind, code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { kind, code: code.to_owned(), message: message.into(), advice: advice.into() }
    }

    /// The request is wrong.
    pub fn invalid(code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, code, message, advice)
    }

    /// `what` (a kind, as `component`) of this name does not exist.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        let message = format!("{what} `{name}` does not exist");
        let advice = match what {
            "tenant" => format!(
                "`arco tenant list` shows which there are; `arco tenant create {name}` (administrators) makes it"
            ),
            "volume" => "`arco volume list` shows which there are, with their ids".to_owned(),
            "route" | "stream" => "`arco route list` shows which there are".to_owned(),
            _ => "check the name; `arco list` shows what there is".to_owned(),
        };
        Self::new(ErrorKind::NotFound, "not_found", message, advice)
    }

    /// A fault of ours; the cause belongs into the log, not here.
    pub fn internal(step: &str) -> Self {
        let message = format!("the platform failed to {step}");
        Self::new(ErrorKind::Internal, "internal", message, "try again; if it stays, look into the server's log")
    }
}
