//! How many instances load asks for. Pure: no clock, no I/O; everything is a row of a table test.
//!
//! The decision is that of Kubernetes' HorizontalPodAutoscaler, so that a component behaves the same on a cluster: the
//! ratio of what is used to what is asked, nothing within a tenth of it, instances whose use is not known yet count
//! against a change, at most twice as many (or four more) in 15 s, and fewer only after fewer have been enough for the
//! whole `down_after_s`. What must hold: the number stays within the asked bounds.

use arco_model::spec::Resources;
use arco_model::spec::autoscaling::Autoscaling;
use arco_model::time::Timestamp;
use std::collections::VecDeque;

/// A ratio this near to 1 is no reason for a change.
const TOLERANCE: f64 = 0.1;
/// In this time, in ms, …
const GROWTH_MS: u64 = 15_000;
/// … there may be this many more instances, …
const GROWTH_COUNT: u32 = 4;
/// … or this many times as many, whatever is more.
const GROWTH_FACTOR: u32 = 2;

/// What one instance uses; absent while that is not known: it is not ready, or has not been for long enough.
pub type Reading = Option<Used>;

/// What an instance uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Used {
    /// Thousandths of a core, on average since it was looked at first.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// What was asked for before, which holds back what comes next.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// What load asked for, oldest first.
    asked_for: VecDeque<(Timestamp, u32)>,
    /// By how many instances there were more, oldest first.
    grown: VecDeque<(Timestamp, u32)>,
}

/// Another number of instances.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// How many.
    pub replicas: u32,
    /// Why, for people.
    pub reason: String,
}

/// A kind of load, compared with what is asked of it.
struct Load {
    name: &'static str,
    asked_percent: u32,
    ratios: Vec<Option<f64>>,
}

/// Decides; `None`: as many as now. `now_are` is how many there are to be now.
pub fn decide(
    asked: &Autoscaling,
    limits: &Resources,
    now_are: u32,
    readings: &[Reading],
    past: &mut Past,
    now: Timestamp,
) -> Option<Change> {
    if past.asked_for.is_empty() {
        past.asked_for.push_back((now, now_are)); // nobody knows what came before: it does not shrink at once
    }
    let bounded = asked.within(now_are);
    if bounded != now_are {
        past.note(now, now_are, bounded);
        return Some(Change { replicas: bounded, reason: asked.reason(now_are, bounded, None) });
    }
    let loads = loads(asked, limits, readings);
    let (wanted, why) = loads.iter().map(|it| (recommend(now_are, &it.ratios), it)).max_by_key(|it| it.0)?;
    past.asked_for.push_back((now, wanted));
    let since = Timestamp(now.0.saturating_sub(u64::from(asked.down_after_s) * 1000));
    past.asked_for.retain(|(at, _)| *at >= since);
    let steady = past.asked_for.iter().map(|(_, count)| *count).max().unwrap_or(wanted);
    let next = if wanted >= now_are { wanted } else { steady.min(now_are) };
    let next = asked.within(next).min(past.ceiling(now, now_are));
    if next == now_are {
        return None;
    }
    past.note(now, now_are, next);
    let used = mean(&why.ratios).unwrap_or_default() * f64::from(why.asked_percent);
    let load = (why.name, used.round() as u64, why.asked_percent);
    Some(Change { replicas: next, reason: asked.reason(now_are, next, Some(load)) })
}

impl Past {
    /// The most instances that there may be now.
    fn ceiling(&mut self, now: Timestamp, now_are: u32) -> u32 {
        self.grown.retain(|(at, _)| now.since_ms(*at) < GROWTH_MS);
        let grown: u32 = self.grown.iter().map(|(_, count)| *count).sum();
        let before = now_are.saturating_sub(grown);
        (before + GROWTH_COUNT).max(before * GROWTH_FACTOR).max(now_are)
    }

    fn note(&mut self, now: Timestamp, from: u32, to: u32) {
        if to > from {
            self.grown.push_back((now, to - from));
        }
    }
}

fn loads(asked: &Autoscaling, limits: &Resources, readings: &[Reading]) -> Vec<Load> {
    let ratios = |target: f64, used: fn(&Used) -> f64| {
        readings.iter().map(|it| it.as_ref().map(|it| used(it) / target)).collect::<Vec<_>>()
    };
    let cpu = asked.cpu_percent.zip(asked.cpu_target_milli(limits)).map(|(asked_percent, target)| Load {
        name: "CPU",
        asked_percent,
        ratios: ratios(f64::from(target), |it| it.cpu_milli as f64),
    });
    let memory = asked.memory_percent.zip(asked.memory_target_mb(limits)).map(|(asked_percent, target)| Load {
        name: "memory",
        asked_percent,
        ratios: ratios(f64::from(target) * 1_048_576.0, |it| it.memory_bytes as f64),
    });
    cpu.into_iter().chain(memory).collect()
}

fn mean(ratios: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = ratios.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// How many instances one kind of load asks for: `ratios` are use by what is asked, absent where it is not known.
fn recommend(now_are: u32, ratios: &[Option<f64>]) -> u32 {
    let Some(ratio) = mean(ratios) else { return now_are };
    let near = |it: f64| (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&it);
    let unknown = ratios.iter().filter(|it| it.is_none()).count() as f64;
    let known = ratios.len() as f64 - unknown;
    // Those that are not known use nothing when there are to be more, and all that is asked when there are to be fewer.
    let assumed = if ratio > 1.0 { 0.0 } else { unknown };
    let careful = (ratio * known + assumed) / (known + unknown);
    if near(ratio) || near(careful) || (ratio > 1.0) != (careful > 1.0) {
        return now_are;
    }
    let wanted = ((careful * (known + unknown)).ceil() as u32).max(1);
    match ratio > 1.0 {
        true => wanted.max(now_are),
        false => wanted.min(now_are),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Autoscaling = Autoscaling {
        min_replicas: 1,
        max_replicas: 20,
        cpu_percent: Some(50),
        memory_percent: None,
        down_after_s: 300,
    };

    fn used(cpu_milli: u64) -> Reading {
        Some(Used { cpu_milli, memory_bytes: 0 })
    }

    #[test]
    fn the_ratio_says_how_many() {
        // Half a core is asked of each.
        for (name, now_are, cpu, wanted) in [
            ("as asked", 2, vec![Some(500), Some(500)], 2),
            ("within a tenth above", 2, vec![Some(550), Some(545)], 2),
            ("within a tenth below", 10, vec![Some(455); 10], 10),
            ("above", 2, vec![Some(560), Some(560)], 3),
            ("twice as much", 2, vec![Some(1000), Some(1000)], 4),
            ("uneven", 2, vec![Some(1000), Some(0)], 2),
            ("a little less", 4, vec![Some(400); 4], 4),
            ("less", 4, vec![Some(370); 4], 3),
            ("nothing", 3, vec![Some(0); 3], 1),
            ("nothing is known", 3, vec![None; 3], 3),
            ("none is there", 3, vec![], 3),
            ("a new one is thought idle when there is much", 2, vec![Some(1000), None], 2),
            ("much more even so", 2, vec![Some(1600), None], 4),
            ("a new one is thought busy when there is little", 3, vec![Some(100), Some(100), None], 2),
            ("fewer are there than are to be", 6, vec![Some(600), Some(600)], 6),
        ] {
            let ratios: Vec<_> = cpu.into_iter().map(|it: Option<u32>| it.map(|it| f64::from(it) / 500.0)).collect();
            assert_eq!(recommend(now_are, &ratios), wanted, "{name}");
        }
    }

    #[test]
    fn it_grows_at_once_but_not_without_bound() {
        let (limits, mut past) = (Resources::default(), Past::default());
        let mut go = |now_are: u32, cpu, at| {
            let readings = vec![used(cpu); now_are as usize];
            decide(&ASKED, &limits, now_are, &readings, &mut past, Timestamp(at)).map(|it| it.replicas)
        };
        assert_eq!(go(1, 5000, 0), Some(5), "four more");
        assert_eq!(go(5, 5000, 5_000), None, "again only after a while");
        assert_eq!(go(5, 5000, 15_000), Some(10), "twice as many");
        assert_eq!(go(10, 5000, 30_000), Some(20), "and no more than asked");
        assert_eq!(go(20, 5000, 60_000), None);
    }

    #[test]
    fn it_shrinks_when_fewer_were_enough_for_long() {
        let (limits, mut past) = (Resources::default(), Past::default());
        let mut go = |now_are: u32, cpu, at_s: u64| {
            let readings = vec![used(cpu); now_are as usize];
            decide(&ASKED, &limits, now_are, &readings, &mut past, Timestamp(at_s * 1000))
        };
        assert_eq!(go(4, 100, 1), None, "it is not known what was before");
        assert_eq!(go(4, 300, 100), None);
        assert_eq!(go(4, 100, 301), None, "three were needed 201 s ago, and four when it began");
        let change = go(4, 100, 302).unwrap();
        assert_eq!(change.replicas, 3, "{change:?}");
        let why = "scaled from 4 to 3: CPU is at 10 % per instance, 50 % is asked; fewer have been enough for 300 s";
        assert_eq!(change.reason, why);
        assert_eq!(go(3, 100, 401).unwrap().replicas, 1);
    }

    #[test]
    fn bounds_hold_before_anything_else() {
        let asked = Autoscaling { min_replicas: 3, max_replicas: 5, ..ASKED };
        for (now_are, wanted) in [(1, Some(3)), (3, None), (9, Some(5))] {
            let mut past = Past::default();
            let change = decide(&asked, &Resources::default(), now_are, &[], &mut past, Timestamp(1));
            assert_eq!(change.as_ref().map(|it| it.replicas), wanted);
            assert!(change.is_none_or(|it| it.reason.ends_with("3 to 5 are asked for")));
        }
    }

    #[test]
    fn of_two_loads_the_larger_number_counts() {
        let asked = Autoscaling { memory_percent: Some(50), ..ASKED };
        let limits = Resources { memory_mb: 100, cpu_milli: 200, ..Resources::default() };
        let readings = [Some(Used { cpu_milli: 50, memory_bytes: 90 << 20 }); 2];
        let change = decide(&asked, &limits, 2, &readings, &mut Past::default(), Timestamp(1)).unwrap();
        let why = "scaled from 2 to 4: memory is at 90 % per instance, 50 % is asked";
        assert_eq!((change.replicas, change.reason.as_str()), (4, why));
    }
}
