//! Tells the orchestrator which lines of instances the platform keeps, so that reading them goes on where it ended.

use super::keepers::Keepers;
use super::keeping::Keeping;
use super::logs::Whole;
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
        let mut answer = self.ask(component, instance, most).await?;
        if answer.is_err() {
            // Very long lines: the last few tell as well where to go on.
            answer = self.ask(component, instance, (most / 16).max(1)).await?;
        }
        answer
    }
}

impl Kept {
    /// The inner error: there is an answer, but it is too long or breaks off.
    async fn ask(
        &self,
        component: &ComponentId,
        instance: &InstanceId,
        most: usize,
    ) -> Result<Result<Vec<LogLine>, String>, String> {
        // Without what the platform says beside: a flood of another instance is told each second.
        let uri = format!("/streams/component/{component}?instance={instance}&own=true&tail={most}");
        let mut request = Request::builder().uri(uri).body(Body::empty()).map_err(|it| it.to_string())?;
        request.extensions_mut().insert(Whole);
        let asked = async {
            let Ok(response) = self.router.clone().oneshot(request).await;
            (response.status(), axum::body::to_bytes(response.into_body(), ANSWER_MAX).await)
        };
        let answered = tokio::time::timeout(ANSWER, asked).await;
        let (status, bytes) = answered.map_err(|_| format!("no answer within {} s", ANSWER.as_secs()))?;
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error.to_string())),
        };
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&bytes)));
        }
        Ok(Ok(serde_json::from_slice::<Lines>(&bytes).map_err(|it| it.to_string())?.lines))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::log::LogOrigin;
    use arco_model::time::Timestamp;
    use axum::Json;
    use axum::extract::Query;
    use std::collections::HashMap;

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_never_answers_is_not_waited_for() {
        let router = Router::new().fallback(std::future::pending::<String>);
        let kept = Kept { router, keepers: None };
        let (component, instance) = (ComponentId::from_parts(1, 1), InstanceId::from_parts(1, 1));
        let why = kept.last(&component, &instance, 10).await.unwrap_err();
        assert!(why.contains("no answer within"), "{why}");
    }

    #[tokio::test]
    async fn of_very_long_lines_the_last_few_are_told() {
        let answers = |Query(words): Query<HashMap<String, String>>| async move {
            assert_eq!(words["own"], "true", "flood notes are none of its lines");
            let count: u64 = words["tail"].parse().unwrap();
            let text = "x".repeat(ANSWER_MAX / 100);
            let line =
                |at| LogLine { at: Timestamp(at), instance: None, origin: LogOrigin::Stdout, text: text.clone() };
            let lines: Vec<_> = (256 - count..256).map(line).collect();
            Json(serde_json::json!({ "lines": lines }))
        };
        let router = Router::new().fallback(answers);
        let kept = Kept { router, keepers: None };
        let (component, instance) = (ComponentId::from_parts(1, 1), InstanceId::from_parts(1, 1));
        for (most, told) in [(64, 64), (256, 16)] {
            let lines = kept.last(&component, &instance, most).await.unwrap();
            assert_eq!((lines.len(), lines.last().map(|it| it.at)), (told, Some(Timestamp(255))));
        }
    }
}
