//! Looking at operations and ending them.

use super::super::Api;
use super::super::change::builds;
use super::super::error::ApiError;
use super::super::identity::Caller;
use crate::wire::OperationDocument;
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::OperationId;
use arco_model::operation::{Operation, OperationStatus};
use arco_store::clock;

impl Api {
    /// An operation that the caller may see.
    pub(in super::super) async fn operation(&self, caller: &Caller, id: &str) -> Result<Operation, ApiError> {
        let missing = || {
            Problem::new(
                ErrorKind::NotFound,
                "not_found",
                format!("operation `{id}` does not exist"),
                "`arco operations` lists them",
            )
        };
        let id: OperationId = id.parse().map_err(|_| missing())?;
        let found = self.deps.metadata.get::<Operation>(id.as_str()).await?.ok_or_else(missing)?.value;
        if caller.sees(found.tenant.as_str()) { Ok(found) } else { Err(missing().into()) }
    }

    /// Ends a build: at once when nobody has begun with it, else the builder does.
    pub(in super::super) async fn cancel(&self, caller: &Caller, id: &str) -> Result<OperationDocument, ApiError> {
        let operation = self.operation(caller, id).await?;
        let now = clock::now();
        let cancel = |it: &mut Operation| {
            if !builds(it) || it.cancel_asked {
                return false;
            }
            it.cancel_asked = true;
            // What still waits in the outbox has no job: nobody else would end it.
            if it.status == OperationStatus::Pending && !it.enqueued {
                it.status = OperationStatus::Cancelled;
                it.enqueued = true;
                it.ended_at = Some(now);
            }
            true
        };
        let after = self.deps.metadata.modify::<Operation>(operation.id.as_str(), cancel).await?.unwrap_or(operation);
        self.wake(&after.component_id).await?;
        if after.cancel_asked || after.status == OperationStatus::Cancelled {
            return Ok(OperationDocument::from(&after));
        }
        Err(ApiError::from(not_cancellable(&after)).about(&after.id))
    }
}

fn not_cancellable(operation: &Operation) -> Problem {
    let reference = format!("{}/{}", operation.application, operation.component);
    let (what, advice) = match operation.status {
        OperationStatus::RollingOut => (
            "is being rolled out",
            format!("`arco rollback {reference}` serves the revision before; a newer deploy overtakes it"),
        ),
        _ => ("has ended", format!("`arco status {reference}` shows what runs")),
    };
    Problem::new(
        ErrorKind::Conflict,
        "not_cancellable",
        format!("operation {} {what} and cannot be cancelled", operation.id),
        advice,
    )
}
