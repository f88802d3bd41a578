//! What a HorizontalPodAutoscaler says of load, cut down. Pure.

use super::Detail;
use super::convert::{Recorded, detailed};
use crate::render::Kind;
use crate::scale::ComponentScale;
use arco_model::spec::Resources;
use arco_model::spec::autoscaling::Autoscaling;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What load is, and what is made of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scaler {
    /// How many instances it asks for.
    pub(crate) replicas: u32,
    /// Use of one instance on average, in thousandths of a core.
    pub(crate) cpu_milli: Option<u64>,
    /// Use of one instance on average, in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Why it cannot follow load, and what to do.
    pub(crate) problem: Option<String>,
}

impl Scaler {
    /// Why there are that many instead of `from`, when this is what asked for them.
    pub(crate) fn reason(&self, from: u32, to: u32, asked: &Autoscaling, limits: &Resources) -> Option<String> {
        let cpu = asked.cpu_percent.zip(self.cpu_milli).zip(asked.cpu_target_milli(limits));
        let memory = asked.memory_percent.zip(self.memory_bytes).zip(asked.memory_target_mb(limits));
        let of = |percent: u32, used: u64, target: u64| u64::from(percent) * used / target.max(1);
        let cpu = cpu.map(|((asked, used), target)| ("CPU", of(asked, used, target.into()), asked));
        let memory = memory.map(|((asked, used), target)| ("memory", of(asked, used, u64::from(target) << 20), asked));
        // The load that is furthest above what is asked decides.
        let by = cpu.into_iter().chain(memory).max_by_key(|(_, now, asked)| now * 100 / u64::from(*asked).max(1));
        (self.replicas == to && from != to).then(|| asked.reason(from, to, by))
    }
}

impl Recorded for ComponentScale {
    const KIND: Kind = Kind::Scale;
    fn record(&self) -> super::Record {
        detailed(Self::KIND, &self.metadata, Detail { replicas: self.spec.replicas, ..Detail::default() })
    }
}

impl Recorded for HorizontalPodAutoscaler {
    const KIND: Kind = Kind::Autoscaler;
    fn record(&self) -> super::Record {
        let Some(status) = &self.status else {
            return detailed(Self::KIND, &self.metadata, Detail::default());
        };
        let mut scaler = Scaler {
            replicas: u32::try_from(status.desired_replicas).unwrap_or_default(),
            problem: status.conditions.iter().flatten().find_map(problem),
            ..Scaler::default()
        };
        for it in status.current_metrics.iter().flatten().filter_map(|it| it.resource.as_ref()) {
            let used = it.current.average_value.as_ref().and_then(thousandths);
            match it.name.as_str() {
                "cpu" => scaler.cpu_milli = used,
                "memory" => scaler.memory_bytes = used.map(|it| it / 1000),
                _ => {}
            }
        }
        detailed(Self::KIND, &self.metadata, Detail { scaler: Some(Box::new(scaler)), ..Detail::default() })
    }
}

/// What of a condition people must know. That there are no figures of pods that have just started passes by itself.
fn problem(it: &HorizontalPodAutoscalerCondition) -> Option<String> {
    let fails = matches!(it.type_.as_str(), "AbleToScale" | "ScalingActive") && it.status == "False";
    let (reason, message) = (it.reason.as_deref().unwrap_or_default(), it.message.as_deref().unwrap_or_default());
    let passes = ["did not receive metrics", "no metrics returned", "missing or not ready"];
    if !fails || reason == "ScalingDisabled" || passes.iter().any(|it| message.contains(it)) {
        return None;
    }
    let message = message.trim_start_matches("the HPA was unable to compute the replica count: ");
    let no_metrics = message.contains("metrics.k8s.io") || message.contains("resource metrics API");
    Some(match no_metrics {
        true => format!("the cluster's metrics API does not answer (install metrics-server): {message}"),
        false => message.to_owned(),
    })
}

/// An amount in thousandths, rounded down, in every way that the API server keeps one: whole numbers with a unit, or with a power
/// of ten (`129e6`).
pub(crate) fn thousandths(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.as_str();
    let digits = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let times = |of: u64, power: u32| number.checked_mul(of.checked_pow(power)?);
    match &text[digits..] {
        "n" => Some(number / 1_000_000),
        "u" => Some(number / 1000),
        "m" => Some(number),
        "" => times(1000, 1),
        "k" => times(1000, 2),
        "M" => times(1000, 3),
        "G" => times(1000, 4),
        "T" => times(1000, 5),
        "P" => times(1000, 6),
        "Ki" => number.checked_mul(1000 << 10),
        "Mi" => number.checked_mul(1000 << 20),
        "Gi" => number.checked_mul(1000 << 30),
        "Ti" => number.checked_mul(1000 << 40),
        "Pi" => number.checked_mul(1000 << 50),
        power => {
            let power: i32 = power.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = power.checked_add(3)?;
            match u32::try_from(power) {
                Ok(power) => times(10, power),
                Err(_) => Some(number / 10_u64.checked_pow(power.unsigned_abs())?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::Record;
    use serde_json::{Value, json};

    fn seen(status: Value) -> Scaler {
        let spec = json!({ "scaleTargetRef": { "kind": "ComponentScale", "name": "a" }, "maxReplicas": 4 });
        let it: HorizontalPodAutoscaler =
            serde_json::from_value(json!({ "metadata": { "name": "a" }, "spec": spec, "status": status })).unwrap();
        let Record::Object(Kind::Autoscaler, _, object) = it.record() else { panic!("{it:?}") };
        *object.detail.scaler.unwrap()
    }

    #[test]
    fn load_and_its_reason_are_read() {
        let used = |name: &str, value: &str| json!({ "type": "Resource", "resource": { "name": name, "current": { "averageValue": value } } });
        let found = seen(json!({
            "desiredReplicas": 3, "currentReplicas": 2,
            "currentMetrics": [used("cpu", "465m"), used("memory", "52428800")],
            "conditions": [{ "type": "ScalingActive", "status": "True", "reason": "ValidMetricFound" }],
        }));
        assert_eq!((found.cpu_milli, found.memory_bytes, &found.problem), (Some(465), Some(50 << 20), &None));
        let asked = Autoscaling { memory_percent: Some(50), cpu_percent: Some(70), ..Autoscaling::by_cpu(1, 4) };
        let limits = Resources { cpu_milli: 500, memory_mb: 256, ..Resources::default() };
        let why = "scaled from 2 to 3: CPU is at 93 % per instance, 70 % is asked";
        assert_eq!(found.reason(2, 3, &asked, &limits).as_deref(), Some(why));
        assert_eq!((found.reason(3, 3, &asked, &limits), found.reason(2, 4, &asked, &limits)), (None, None));
    }

    #[test]
    fn what_keeps_it_from_following_load_is_told_unless_it_passes() {
        let of = |kind: &str, reason: &str, message: &str| {
            let it = json!({ "type": kind, "status": "False", "reason": reason, "message": message });
            seen(json!({ "desiredReplicas": 1, "conditions": [it] })).problem
        };
        let none = "the HPA was unable to compute the replica count: unable to fetch metrics from resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)";
        let told = of("ScalingActive", "FailedGetResourceMetric", none).unwrap();
        assert!(told.contains("install metrics-server") && !told.contains("replica count"), "{told}");
        assert!(of("AbleToScale", "FailedGetScale", "not found").unwrap().contains("not found"));
        for (kind, reason, message) in [
            (
                "ScalingActive",
                "FailedGetResourceMetric",
                "did not receive metrics for targeted pods (pods might be unready)",
            ),
            ("ScalingActive", "FailedGetResourceMetric", "no metrics returned from resource metrics API"),
            ("ScalingActive", "ScalingDisabled", "scaling is disabled"),
            ("ScalingLimited", "DesiredWithinRange", "fine"),
        ] {
            assert_eq!(of(kind, reason, message), None, "{message}");
        }
    }

    #[test]
    fn amounts_are_read_however_they_are_written() {
        for (text, wanted) in [
            ("500m", Some(500)),
            ("2", Some(2000)),
            ("1500000n", Some(1)),
            ("1Ki", Some(1_024_000)),
            ("x", None),
            ("129e6", Some(129_000_000_000)),
            ("2E3", Some(2_000_000)),
            ("15e-1", Some(1500)),
            ("25e-4", Some(2)),
            ("2Pi", Some(2_251_799_813_685_248_000)),
            ("1e99", None),
            ("1e-99", None),
            ("1e", None),
            ("", None),
        ] {
            assert_eq!(thousandths(&Quantity(text.to_owned())), wanted, "{text}");
        }
    }
}
