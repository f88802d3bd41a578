//! What the instances of one component used lately, and how many of them load asks for.
//!
//! What must hold: an instance counts only when it was looked at over a whole window, so that its start is no load; how
//! many there were survives the server ([`Record`](super::record::Record)).

use crate::Usage;
use crate::local::autoscale::{self, Change, Past, Reading, Used};
use arco_model::id::InstanceId;
use arco_model::spec::Resources;
use arco_model::spec::autoscaling::Autoscaling;
use arco_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// How often load is looked at, and over how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks, in ms.
    pub look_ms: u64,
    /// Use is an average over this time, in ms.
    pub window_ms: u64,
}

impl Default for Pace {
    /// As HorizontalPodAutoscalers of a cluster.
    fn default() -> Self {
        Self { look_ms: 5_000, window_ms: 15_000 }
    }
}

/// How many instances load asked for last.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct Scaled {
    /// How many.
    pub(super) replicas: u32,
    /// What changed it last; empty when nothing has.
    pub(super) reason: String,
}

/// What is remembered between looks.
#[derive(Default)]
pub(super) struct Load {
    seen: BTreeMap<InstanceId, VecDeque<(Timestamp, Usage)>>,
    past: Past,
    next_look: Option<Timestamp>,
}

impl Load {
    /// When to look again; at first, at once.
    pub(super) fn next_look(&self) -> Timestamp {
        self.next_look.unwrap_or_default()
    }

    /// Takes over what instances use now: `ready` with their use, and all others that are to serve. Says whether another
    /// number of instances is asked for.
    pub(super) fn look(
        &mut self,
        asked: &Autoscaling,
        limits: &Resources,
        now_are: u32,
        instances: &[(InstanceId, Option<Usage>)],
        pace: Pace,
        now: Timestamp,
    ) -> Option<Change> {
        self.next_look = Some(now.plus_ms(pace.look_ms));
        self.seen.retain(|id, _| instances.iter().any(|(it, usage)| it == id && usage.is_some()));
        let readings: Vec<Reading> =
            instances.iter().map(|(id, usage)| self.reading(id, (*usage)?, pace.window_ms, now)).collect();
        autoscale::decide(asked, limits, now_are, &readings, &mut self.past, now)
    }

    fn reading(&mut self, id: &InstanceId, usage: Usage, window_ms: u64, now: Timestamp) -> Reading {
        let seen = self.seen.entry(id.clone()).or_default();
        if seen.back().is_some_and(|(_, before)| before.cpu_ms > usage.cpu_ms) {
            seen.clear(); // its program was started again
        }
        seen.push_back((now, usage));
        // One that is as old as the window stays: use is the average since then.
        while seen.get(1).is_some_and(|(at, _)| now.since_ms(*at) >= window_ms) {
            seen.pop_front();
        }
        let (since, before) = seen.front()?;
        let ms = now.since_ms(*since);
        let cpu_milli = (usage.cpu_ms - before.cpu_ms) * 1000 / ms.max(1);
        (ms >= window_ms).then_some(Used { cpu_milli, memory_bytes: usage.memory_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_an_average_over_the_window() {
        let (mut load, id) = (Load::default(), InstanceId::from_parts(1, 1));
        let mut go = |at: u64, cpu_ms| {
            let usage = Usage { cpu_ms, ..Usage::default() };
            load.reading(&id, usage, 15_000, Timestamp(at)).map(|it| it.cpu_milli)
        };
        assert_eq!([go(0, 9_000), go(5_000, 9_500), go(10_000, 10_000)], [None; 3], "its start is no load");
        assert_eq!(go(15_000, 10_500), Some(100));
        assert_eq!(go(20_000, 15_500), Some(400), "since 5 s");
        assert_eq!(go(25_000, 10), None, "another run of its program");
    }
}
