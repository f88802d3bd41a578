//! Metrics of the process in the OpenMetrics text format.
//!
//! Roles register their families at start, below a prefix of their own; names and units follow prometheus.io/docs/practices/naming.

use axum::extract::State;
use http::header::CONTENT_TYPE;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};

/// Media type of the text.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every family of this process; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    resident: Gauge,
    descriptors: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The families that every process has.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("arco");
        let (resident, descriptors) = (Gauge::default(), Gauge::default());
        registry.register("process_resident_memory_bytes", "Memory of this process that is in RAM", resident.clone());
        registry.register("process_open_fds", "Open file descriptors of this process", descriptors.clone());
        Self { registry: Arc::new(Mutex::new(registry)), resident, descriptors }
    }

    /// Lets a role add families below `arco_<role>_`.
    pub fn register(&self, role: &str, add: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        add(registry.sub_registry_with_prefix(role));
    }

    /// All families as text.
    pub fn encode(&self) -> String {
        // statm counts pages; 4 KiB on every machine that we support.
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: i64 = statm.split_whitespace().nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
        self.resident.set(pages * 4096);
        self.descriptors.set(std::fs::read_dir("/proc/self/fd").map_or(0, |it| it.count() as i64));
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = encode(&mut text, &registry) {
            tracing::error!(%error, "metrics not encoded");
        }
        text
    }
}

/// Handler of `GET /metrics`.
pub async fn metrics(State(metrics): State<Metrics>) -> ([(http::HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, OPEN_METRICS)], metrics.encode())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn families_of_roles_stand_below_their_prefix() {
        let metrics = Metrics::new();
        let requests = Counter::<u64>::default();
        metrics.register("api", |it| it.register("requests", "Requests", requests.clone()));
        requests.inc();
        let text = metrics.encode();
        assert!(
            text.contains("arco_api_requests_total 1") && text.contains("arco_process_resident_memory_bytes"),
            "{text}"
        );
    }
}
