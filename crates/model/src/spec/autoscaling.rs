//! Between how many instances a component runs, and what load decides how many.
//!
//! What must hold: a percentage means the same everywhere: of the component's own limit, and of one core where CPU has no
//! limit. Not here: how the number is found; an orchestrator does that, within these bounds.

use super::{ComponentKind, ComponentSpec, REPLICAS_MAX, Resources};
use crate::error::Problem;
use serde::{Deserialize, Serialize};

/// What CPU is a percentage of when the component has no limit of it, in thousandths of a core.
const ONE_CORE_MILLI: u32 = 1000;
/// Load that is asked when nothing is said, in percent of CPU.
const DEFAULT_CPU_PERCENT: u32 = 80;
/// Longest `down_after_s`: what Kubernetes takes.
const DOWN_AFTER_MAX_S: u32 = 3600;

/// How many instances there are, by load.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoscaling {
    /// Never fewer; 1 to 100.
    #[serde(default = "one")]
    pub min_replicas: u32,
    /// Never more; 1 to 100.
    pub max_replicas: u32,
    /// CPU that instances use on average when their number is right, in percent of their limit, or of one core without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Memory that instances use on average when their number is right, in percent of their limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
    /// How long fewer instances must have been enough before there are fewer, in seconds.
    #[serde(default = "Autoscaling::default_down_after_s")]
    pub down_after_s: u32,
}

fn one() -> u32 {
    1
}

impl Autoscaling {
    /// Between these, by CPU alone.
    pub fn by_cpu(min_replicas: u32, max_replicas: u32) -> Self {
        let down_after_s = Self::default_down_after_s();
        Self { min_replicas, max_replicas, cpu_percent: Some(DEFAULT_CPU_PERCENT), memory_percent: None, down_after_s }
    }

    fn default_down_after_s() -> u32 {
        300
    }

    /// The nearest number that is allowed.
    pub fn within(&self, replicas: u32) -> u32 {
        replicas.max(self.min_replicas).min(self.max_replicas.max(self.min_replicas))
    }

    /// CPU of one instance that is asked, in thousandths of a core.
    pub fn cpu_target_milli(&self, resources: &Resources) -> Option<u32> {
        let whole = if resources.cpu_milli == 0 { ONE_CORE_MILLI } else { resources.cpu_milli };
        self.cpu_percent.map(|it| share(whole, it))
    }

    /// Memory of one instance that is asked, in MiB.
    pub fn memory_target_mb(&self, resources: &Resources) -> Option<u32> {
        self.memory_percent.map(|it| share(resources.memory_mb, it))
    }

    /// Why there are `to` instances instead of `from`: the load that decided, its percentage now and as asked; without one,
    /// the bounds.
    pub fn reason(&self, from: u32, to: u32, load: Option<(&str, u64, u32)>) -> String {
        let Some((name, now, asked)) = load else {
            return format!("scaled from {from} to {to}: {} to {} are asked for", self.min_replicas, self.max_replicas);
        };
        let why = format!("scaled from {from} to {to}: {name} is at {now} % per instance, {asked} % is asked");
        if to < from { format!("{why}; fewer have been enough for {} s", self.down_after_s) } else { why }
    }

    /// `2 to 10 instances by CPU (70 %)`.
    pub fn describe(&self) -> String {
        let cpu = self.cpu_percent.map(|it| format!("CPU ({it} %)"));
        let memory = self.memory_percent.map(|it| format!("memory ({it} %)"));
        let by: Vec<String> = cpu.into_iter().chain(memory).collect();
        format!("{} to {} instances by {}", self.min_replicas, self.max_replicas, by.join(" and "))
    }
}

/// A percentage of a whole, at least 1.
fn share(whole: u32, percent: u32) -> u32 {
    u32::try_from(u64::from(whole) * u64::from(percent) / 100).unwrap_or(u32::MAX).max(1)
}

/// Checks what is asked together with the rest of the spec.
pub(super) fn validate(spec: &ComponentSpec) -> Result<(), Problem> {
    let Some(asked) = &spec.autoscaling else { return Ok(()) };
    let bad = |message: String, advice: &str| Err(Problem::invalid("autoscaling_invalid", message, advice));
    let Autoscaling { min_replicas, max_replicas, cpu_percent, memory_percent, down_after_s } = *asked;
    if !matches!(spec.kind, ComponentKind::Stateless | ComponentKind::Stateful) {
        return bad(
            "only stateless and stateful components are scaled by load".to_owned(),
            "leave `autoscaling` out; `replicas` of a job says how many run side by side",
        );
    }
    if min_replicas < 1 || max_replicas > REPLICAS_MAX {
        return bad(
            format!("{min_replicas} to {max_replicas} instances by load"),
            &format!(
                "`min_replicas` is 1 or more, `max_replicas` {REPLICAS_MAX} or less; `arco stop` ends every instance"
            ),
        );
    }
    if min_replicas > max_replicas {
        return bad(
            format!("at least {min_replicas} and at most {max_replicas} instances"),
            "`max_replicas` is `min_replicas` or more",
        );
    }
    for (name, percent) in [("cpu_percent", cpu_percent), ("memory_percent", memory_percent)] {
        if percent.is_some_and(|it| !(1..=100).contains(&it)) {
            return bad(
                format!("`{name}` is {}", percent.unwrap_or_default()),
                "a percentage is 1 to 100; `--memory-mb` and `--cpu-milli` say how large one instance is",
            );
        }
    }
    if cpu_percent.is_none() && memory_percent.is_none() {
        return bad(
            "`autoscaling` names no load".to_owned(),
            "give `cpu_percent`, `memory_percent`, or both: the larger number of instances counts",
        );
    }
    if down_after_s > DOWN_AFTER_MAX_S {
        return bad(format!("`down_after_s` is {down_after_s}"), "give 0 to 3600 seconds");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn spec(autoscaling: Autoscaling) -> ComponentSpec {
        let source = Source::Image { reference: "a".into() };
        ComponentSpec { autoscaling: Some(autoscaling), ..ComponentSpec::new(source) }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let good = Autoscaling::by_cpu(2, 10);
        assert!(validate(&spec(good)).is_ok() && validate(&spec(Autoscaling::by_cpu(3, 3))).is_ok());
        for (asked, says) in [
            (Autoscaling { min_replicas: 0, ..good }, "0 to 10"),
            (Autoscaling { max_replicas: 101, ..good }, "2 to 101"),
            (Autoscaling { min_replicas: 11, ..good }, "at least 11 and at most 10"),
            (Autoscaling { cpu_percent: Some(0), ..good }, "`cpu_percent` is 0"),
            (Autoscaling { memory_percent: Some(512), ..good }, "`memory_percent` is 512"),
            (Autoscaling { cpu_percent: None, ..good }, "no load"),
            (Autoscaling { down_after_s: 3601, ..good }, "3601"),
        ] {
            let problem = validate(&spec(asked)).unwrap_err();
            assert!(problem.message.contains(says) && problem.code == "autoscaling_invalid", "{problem:?}");
        }
        let job = ComponentSpec { kind: ComponentKind::Job, ..spec(good) };
        assert!(validate(&job).unwrap_err().message.contains("stateless and stateful"));
    }

    #[test]
    fn percentages_are_of_the_limit_or_of_one_core() {
        let asked = Autoscaling { memory_percent: Some(50), cpu_percent: Some(70), ..Autoscaling::by_cpu(1, 4) };
        let limits = |cpu_milli| Resources { cpu_milli, memory_mb: 512, ..Resources::default() };
        assert_eq!(asked.cpu_target_milli(&limits(0)), Some(700));
        assert_eq!(asked.cpu_target_milli(&limits(200)), Some(140));
        assert_eq!(asked.memory_target_mb(&limits(0)), Some(256));
        assert_eq!(asked.describe(), "1 to 4 instances by CPU (70 %) and memory (50 %)");
        assert_eq!([0, 1, 3, 9].map(|it| asked.within(it)), [1, 1, 3, 4]);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let read: Autoscaling = serde_json::from_str(r#"{"max_replicas": 10, "cpu_percent": 80}"#).unwrap();
        assert_eq!(read, Autoscaling::by_cpu(1, 10));
        assert!(serde_json::from_str::<Autoscaling>(r#"{"max_replicas": 10, "cpu": 80}"#).is_err());
    }
}
