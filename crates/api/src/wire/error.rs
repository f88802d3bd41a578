//! The body of every answer that is not a success: `application/problem+json`.

use arco_model::error::Problem;
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
