//! The body of every answer that is not a success: `application/problem+json`.

use arco_model::error::{ErrorKind, Problem};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong and what to do next.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Stable, `snake_case`.
    pub code: String,
    /// What happened, to which thing, in which step.
    pub message: String,
    /// What to do next.
    #[serde(default)]
    pub advice: String,
    /// The operation that this is about, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

impl From<Problem> for ErrorBody {
    fn from(problem: Problem) -> Self {
        Self { code: problem.code, message: problem.message, advice: problem.advice, operation: None }
    }
}

impl ErrorBody {
    /// The problem again, with the kind that the status code of the answer told.
    pub fn into_problem(self, kind: ErrorKind) -> Problem {
        Problem { kind, code: self.code, message: self.message, advice: self.advice }
    }
}
