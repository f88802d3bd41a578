//! Whether the gateways do what was asked. A change of a route is a row and a bell; this waits for what comes of it.
//!
//! What must hold: `true` is said only when every gateway that was live routes by each change that had been answered
//! before the question.

use super::super::Api;
use super::super::error::ApiError;
use crate::wire::Applied;
use arco_model::job::Topic;
use arco_model::traffic::{GatewayStatus, MARK, STATUS_PREFIX};
use arco_mq::QueueError;
use arco_store::kv::{KvError, Range};
use std::time::Duration;

/// How long is waited for gateways: longer than the lease of one that is away, which counts as live until it ends.
const PATIENCE: Duration = Duration::from_secs(30);

impl Api {
    /// Waits until every live gateway routes by what was changed before; whether it came to that.
    pub(in super::super) async fn gateways_follow(&self) -> Result<Applied, ApiError> {
        match tokio::time::timeout(PATIENCE, self.followed()).await {
            Ok(followed) => Ok(followed.map(|()| Applied { applied: true })?),
            Err(_) => Ok(Applied { applied: false }),
        }
    }

    async fn followed(&self) -> Result<(), QueueError> {
        let failed = |source: KvError| QueueError::Store { step: "follow the gateways", source };
        let queue = &self.deps.queue;
        let kv = queue.kv();
        if kv.list(STATUS_PREFIX).await.map_err(failed)?.items.is_empty() {
            return Ok(());
        }
        // The controller has published a change when its look is over, and a gateway that has come to the mark has come to
        // all that was written before it: a deletion leaves no revision that one could ask for.
        queue.passed(Topic::Controller).await?;
        let revision = kv.put(MARK, Vec::new(), None).await.map_err(failed)?;
        loop {
            let now = kv.list(STATUS_PREFIX).await.map_err(failed)?;
            let behind = |value: &[u8]| {
                serde_json::from_slice::<GatewayStatus>(value).is_ok_and(|it| it.applied_revision < revision)
            };
            if !now.items.iter().any(|it| behind(&it.value)) {
                return Ok(());
            }
            let range = Range::Prefix(STATUS_PREFIX.as_bytes().to_vec());
            let mut watch = kv.watch(range, Some(now.revision + 1)).await.map_err(failed)?;
            if let Some(batch) = watch.next().await {
                batch.map_err(failed)?;
            }
        }
    }
}
