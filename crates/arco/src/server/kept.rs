//! Tells the orchestrator which lines of instances the platform keeps, so that reading them goes on where it ended.

use super::keepers::Keepers;
use super::keeping::Keeping;
use arco_model::id::{ComponentId, InstanceId};
use arco_model::log::LogLine;
use arco_orchestrator_kubernetes::KeptLines;
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use serde::Deserialize;
use std::time::Duration;
use tower::ServiceExt as _;

/// Largest answer, in bytes.
const ANSWER_MAX: usize = 8 << 20;
/// How long an answer may take: one that never comes must not end the reading of output.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks the router that answers for every log of the platform; nothing is concluded while one of several keepers is away.
#[derive(Clone)]
pub(super) struct Kept {
    router: Router,
    keepers: Option<Keepers>,
}

impl Kept {
    pub(super) fn new(keeping: &Keeping) -> Self {
        Self { router: keeping.router.clone(), keepers: keeping.keepers.clone() }
    }
}

#[derive(Deserialize)]
struct Lines {
    lines: Vec<LogLine>,
}

#[async_trait]
impl KeptLines for Kept {
    async fn last(&self, component: &ComponentId, instance: &InstanceId, most: usize) -> Result<Vec<LogLine>, String> {
        if let Some(keepers) = &self.keepers
            && let Some(name) = keepers.away().await.map_err(|it| it.to_string())?
        {
            return Err(format!("{name}, which keeps logs, is away"));
        }
        let uri = format!("/streams/component/{component}?instance={instance}&tail={most}");
        let request = Request::builder().uri(uri).body(Body::empty()).map_err(|it| it.to_string())?;
        let asked = async {
            let Ok(response) = self.router.clone().oneshot(request).await;
            (response.status(), axum::body::to_bytes(response.into_body(), ANSWER_MAX).await)
        };
        let answered = tokio::time::timeout(ANSWER, asked).await;
        let (status, bytes) = answered.map_err(|_| format!("no answer within {} s", ANSWER.as_secs()))?;
        let bytes = bytes.map_err(|it| it.to_string())?;
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&bytes)));
        }
        Ok(serde_json::from_slice::<Lines>(&bytes).map_err(|it| it.to_string())?.lines)
    }
}
