//! Forgets operations that ended long ago, or of which there are too many, with their logs.
//!
//! What must hold: nothing that goes on is forgotten; the last deploy of each component stays, because it says why a
//! component that never ran does not.

use crate::{Controller, Gone, ReconcileError, pause};
use arco_daemon::{BoxError, CancellationToken};
use arco_model::id::ComponentId;
use arco_model::operation::{Operation, OperationKind};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::sql::{Batch, Query, SqlError, Versioned};
use std::collections::HashMap;
use std::time::Duration;

/// How often to look; the first time at once.
const PERIOD: Duration = Duration::from_secs(3600);
/// Rows that are read or deleted at once.
const PAGE: usize = 500;
const DAY_MS: u64 = 86_400_000;

/// How long and how many are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// In days after their end.
    pub days: u32,
    /// At most; the oldest go first.
    pub count: u32,
}

impl Controller {
    /// Forgets from time to time.
    pub(crate) async fn forget_operations(self, token: CancellationToken) -> Result<(), BoxError> {
        while !token.is_cancelled() {
            match self.forget_old_operations().await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "old operations and their logs were removed"),
                Err(error) => tracing::warn!(error = %error.chain(), "old operations are not removed now"),
            }
            pause(&token, PERIOD).await;
        }
        Ok(())
    }

    async fn forget_old_operations(&self) -> Result<usize, ReconcileError> {
        let mut ended = Vec::new();
        let mut after = None;
        loop {
            let query = Query { limit: PAGE, ..Query::tag("final") }.after(after);
            let page = self.deps.metadata.list::<Operation>(&query).await?;
            ended.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let due = due(&ended, clock::now(), self.deps.retention);
        for some in due.chunks(PAGE) {
            let mut batch = Batch::default();
            for operation in some {
                batch.delete(operation);
            }
            match self.deps.metadata.commit(batch).await {
                // Somebody else was faster with one of them: the next look sees which.
                Ok(()) | Err(SqlError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            for operation in some {
                // The keeper of logs removes by age as well, should this be lost.
                let _ = self.deps.gone.send(Gone::Operation(operation.value.id.clone())).await;
            }
        }
        Ok(due.len())
    }
}

/// Which of the ended operations (oldest first) are forgotten now.
fn due(ended: &[Versioned<Operation>], now: Timestamp, keep: Retention) -> Vec<&Versioned<Operation>> {
    let mut last_deploys: HashMap<&ComponentId, &Operation> = HashMap::new();
    for operation in ended.iter().map(|it| &it.value).filter(|it| it.kind == OperationKind::Deploy) {
        last_deploys.insert(&operation.component_id, operation);
    }
    let too_many = ended.len().saturating_sub(keep.count as usize);
    let old = |it: &Operation| {
        let end = it.ended_at.unwrap_or(it.created_at);
        now.since_ms(end) > u64::from(keep.days).saturating_mul(DAY_MS)
    };
    let is_last = |it: &Operation| last_deploys.get(&it.component_id).is_some_and(|last| last.id == it.id);
    let rows = ended.iter().enumerate();
    rows.filter(|(at, it)| (*at < too_many || old(&it.value)) && !is_last(&it.value)).map(|(_, it)| it).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::operation::OperationStatus;
    use arco_model::sample;

    fn operation(number: u64, component: u64, kind: OperationKind, ended_day: u64) -> Versioned<Operation> {
        let at = Timestamp(ended_day * DAY_MS);
        let value = Operation {
            id: arco_model::id::OperationId::from_parts(number, number),
            component_id: ComponentId::from_parts(component, component),
            status: OperationStatus::Succeeded,
            created_at: at,
            ended_at: Some(at),
            ..sample::operation(&sample::component(), kind)
        };
        Versioned { value, version: 1 }
    }

    #[test]
    fn the_old_and_the_many_go_but_the_last_deploy_stays() {
        use OperationKind::{Deploy, Scale};
        let ended = [
            operation(1, 1, Deploy, 0),
            operation(2, 1, Scale, 1),
            operation(3, 1, Deploy, 2),
            operation(4, 2, Deploy, 3),
            operation(5, 1, Scale, 40),
            operation(6, 1, Scale, 41),
        ];
        let gone = |days, count| {
            let due = due(&ended, Timestamp(42 * DAY_MS), Retention { days, count });
            due.iter().map(|it| ended.iter().position(|other| other == *it).unwrap() + 1).collect::<Vec<_>>()
        };
        assert_eq!(gone(30, 100), [1, 2]);
        assert_eq!(gone(100, 100), Vec::<usize>::new());
        assert_eq!(gone(100, 1), [1, 2, 5]);
        assert_eq!(gone(0, 0), [1, 2, 5, 6]);
    }
}
