//! Number and size of instances, and whether the number follows load.
//!
//! What must hold: a number that follows load is not set by hand beside it; whoever ends the following keeps the number
//! that there is.

use super::super::Api;
use super::super::change::SecretEdits;
use super::super::error::ApiError;
use super::super::identity::Caller;
use super::Target;
use crate::wire::{OperationDocument, ScaleRequest, SpecPatch};
use arco_model::component::Component;
use arco_model::error::{ErrorKind, Problem};
use arco_model::operation::OperationKind;
use arco_model::spec::ComponentSpec;
use arco_model::spec::autoscaling::Autoscaling;

impl Api {
    pub(in super::super) async fn scale(
        &self,
        caller: &Caller,
        target: &Target,
        request: &ScaleRequest,
    ) -> Result<OperationDocument, ApiError> {
        if request == &ScaleRequest::default() {
            let advice = "give `--replicas`, `--memory-mb`, `--cpu-milli`, or `--min` and `--max`";
            return Err(Problem::invalid("scale_empty", "there is nothing to scale", advice).into());
        }
        let ScaleRequest { memory_mb, cpu_milli, .. } = *request;
        let component = self.component(target).await?;
        let (replicas, autoscaling) = number(&component, request)?;
        let patch = SpecPatch { replicas, memory_mb, cpu_milli, autoscaling, ..SpecPatch::default() };
        let edit = |spec: &mut ComponentSpec| patch.apply(spec);
        self.one(caller, target, |it| {
            it.configure(&target.component, OperationKind::Scale, "scale", &edit, &SecretEdits::new())
        })
        .await
    }
}

/// What of the number of instances changes: how many, and how they follow load.
type Number = (Option<u32>, Option<Option<Autoscaling>>);

fn number(component: &Component, request: &ScaleRequest) -> Result<Number, Problem> {
    let (before, now_are) =
        (component.spec.autoscaling, component.wanted_replicas(component.observed.scaling.as_ref()));
    let bounds =
        [request.min_replicas, request.max_replicas, request.cpu_percent, request.memory_percent, request.down_after_s];
    let on = request.autoscaling == Some(true) || bounds.iter().any(Option::is_some);
    match (request.autoscaling, on) {
        (Some(false), _) if bounds.iter().any(Option::is_some) => Err(Problem::invalid(
            "autoscaling_invalid",
            "the number of instances cannot follow load and not follow it",
            "leave out `--off`, or everything that says how load is followed",
        )),
        (Some(false), _) => Ok((Some(request.replicas.unwrap_or(now_are)), Some(None))),
        (_, false) => Ok((request.replicas, None)),
        (_, true) if request.replicas.is_some() && before.is_some() => Err(follows_load(component)),
        (_, true) => Ok((request.replicas, Some(Some(merged(component, before, request)?)))),
    }
}

/// What is asked anew over what was asked.
fn merged(component: &Component, before: Option<Autoscaling>, request: &ScaleRequest) -> Result<Autoscaling, Problem> {
    let Some(max_replicas) = request.max_replicas.or(before.map(|it| it.max_replicas)) else {
        return Err(Problem::invalid(
            "autoscaling_invalid",
            "how many instances there may be at most is not given",
            format!("`arco scale {} --min 2 --max 10 --cpu 80`", component.reference()),
        ));
    };
    let mut asked = before.unwrap_or_else(|| Autoscaling::by_cpu(1, max_replicas));
    asked.max_replicas = max_replicas;
    asked.min_replicas = request.min_replicas.unwrap_or(asked.min_replicas);
    asked.down_after_s = request.down_after_s.unwrap_or(asked.down_after_s);
    if before.is_none() && request.memory_percent.is_some() {
        asked.cpu_percent = None; // memory was named instead of the default
    }
    for (percent, to) in
        [(request.cpu_percent, &mut asked.cpu_percent), (request.memory_percent, &mut asked.memory_percent)]
    {
        if let Some(percent) = percent {
            *to = Some(percent).filter(|it| *it > 0);
        }
    }
    Ok(asked)
}

/// The number is asked for by hand although it follows load.
pub(in super::super) fn follows_load(component: &Component) -> Problem {
    let reference = component.reference();
    let asked = component.spec.autoscaling.map(|it| it.describe()).unwrap_or_default();
    let message = format!("the number of instances of `{reference}` follows load: {asked}");
    let advice = format!(
        "`arco scale {reference} --min N --max N` changes the bounds, `arco scale {reference} --off --replicas N` ends it"
    );
    Problem::new(ErrorKind::Conflict, "follows_load", message, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::observed::ScalingFacts;
    use arco_model::sample;

    fn component(autoscaling: Option<Autoscaling>, replicas: u32) -> Component {
        let mut it = sample::component();
        it.spec.autoscaling = autoscaling;
        it.observed.scaling = autoscaling.map(|_| ScalingFacts { replicas, ..ScalingFacts::default() });
        it
    }

    #[test]
    fn a_number_is_fixed_or_follows_load() {
        let (fixed, by_load) = (component(None, 1), component(Some(Autoscaling::by_cpu(2, 10)), 7));
        let ask = ScaleRequest::default;
        let load = |min, max, cpu, memory| Autoscaling {
            cpu_percent: cpu,
            memory_percent: memory,
            ..Autoscaling::by_cpu(min, max)
        };
        for (name, component, request, wanted) in [
            ("by hand", &fixed, ScaleRequest { replicas: Some(3), ..ask() }, Ok((Some(3), None))),
            ("size alone", &by_load, ScaleRequest { memory_mb: Some(64), ..ask() }, Ok((None, None))),
            (
                "it begins",
                &fixed,
                ScaleRequest { min_replicas: Some(2), max_replicas: Some(9), ..ask() },
                Ok((None, Some(Some(load(2, 9, Some(80), None))))),
            ),
            (
                "by memory instead",
                &fixed,
                ScaleRequest { max_replicas: Some(9), memory_percent: Some(70), ..ask() },
                Ok((None, Some(Some(load(1, 9, None, Some(70)))))),
            ),
            (
                "one bound",
                &by_load,
                ScaleRequest { max_replicas: Some(12), ..ask() },
                Ok((None, Some(Some(load(2, 12, Some(80), None))))),
            ),
            (
                "another load",
                &by_load,
                ScaleRequest { cpu_percent: Some(0), memory_percent: Some(60), ..ask() },
                Ok((None, Some(Some(load(2, 10, None, Some(60)))))),
            ),
            ("no most", &fixed, ScaleRequest { min_replicas: Some(2), ..ask() }, Err("autoscaling_invalid")),
            (
                "as many as there are",
                &by_load,
                ScaleRequest { autoscaling: Some(false), ..ask() },
                Ok((Some(7), Some(None))),
            ),
            (
                "as many as asked",
                &by_load,
                ScaleRequest { autoscaling: Some(false), replicas: Some(1), ..ask() },
                Ok((Some(1), Some(None))),
            ),
            (
                "on and off",
                &by_load,
                ScaleRequest { autoscaling: Some(false), max_replicas: Some(3), ..ask() },
                Err("autoscaling_invalid"),
            ),
            ("both", &by_load, ScaleRequest { replicas: Some(3), max_replicas: Some(9), ..ask() }, Err("follows_load")),
        ] {
            let found = number(component, &request).map_err(|it| it.code);
            assert_eq!(found, wanted.map_err(str::to_owned), "{name}");
        }
    }
}
