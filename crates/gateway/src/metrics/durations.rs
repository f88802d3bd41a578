//! A histogram of times that all cores count into without a lock, as Prometheus reads it.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// See the module; cheap to clone, all clones count together.
#[derive(Clone, Debug)]
pub struct Durations {
    /// Upper ends of the buckets in seconds, ascending; one more bucket has the rest.
    bounds: &'static [f64],
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    counts: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

impl Durations {
    /// An empty one with these upper ends of buckets, in seconds and ascending.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, inner: Arc::new(Inner { counts, sum_us: AtomicU64::new(0) }) }
    }

    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = self.bounds.partition_point(|it| *it < seconds);
        self.inner.counts[at].fetch_add(1, Ordering::Relaxed);
        self.inner.sum_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ends = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.inner.counts.iter().map(|it| it.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = ends.zip(counts).collect();
        // Of the same counts: the whole must not be less than its parts.
        let count: u64 = buckets.iter().map(|it| it.1).sum();
        let sum = self.inner.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[test]
    fn times_are_counted_where_they_belong() {
        let times = Durations::new(&[0.001, 0.1]);
        for (count, took) in
            [(2, Duration::from_millis(1)), (3, Duration::from_millis(20)), (1, Duration::from_secs(2))]
        {
            (0..count).for_each(|_| times.observe(took));
        }
        let mut registry = Registry::default();
        registry.register("t", "help", times.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "t_sum 2.062",
            "t_count 6",
            "t_bucket{le=\"0.001\"} 2",
            "t_bucket{le=\"0.1\"} 5",
            "t_bucket{le=\"+Inf\"} 6",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
    }
}
