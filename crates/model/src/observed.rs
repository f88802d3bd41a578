//! What an orchestrator sees of a component's instances: facts, no judgement.

use crate::id::{InstanceId, RevisionId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};

/// Facts about all instances of one component.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// Fingerprint of the plan that the orchestrator works on; empty when it has none.
    pub plan: String,
    /// Every instance that is not gone, leaving ones included.
    pub instances: Vec<InstanceFacts>,
    /// How the change to the plan goes.
    pub rollout: RolloutFacts,
    /// The component's stable address, when it has a port.
    pub address: Option<Ipv4Addr>,
    /// How many instances its load asks for, when it is scaled by load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingFacts>,
}

/// How many instances load asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScalingFacts {
    /// How many there are to be, within the asked bounds.
    pub replicas: u32,
    /// What changed that number last; empty when it has not changed, or that is not known (yet).
    pub reason: String,
    /// Why load is not followed now, and what to do.
    pub problem: Option<String>,
}

/// How the change to the asked plan goes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RolloutFacts {
    /// Every instance is as asked.
    #[default]
    Done,
    /// Instances are being replaced or started.
    Progressing,
    /// A new instance did not become ready; older ones keep serving. `cause` is the instance that shows why.
    Halted {
        /// The new instance that failed, if it is still known.
        cause: Option<Box<InstanceFacts>>,
    },
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstancePhase {
    /// Being prepared: image, volumes, network.
    #[default]
    Pending,
    /// Its process runs, the probe has not succeeded yet.
    Starting,
    /// May get requests.
    Ready,
    /// Was ready; the probe fails now.
    Unready,
    /// Ended and will be started again after a pause.
    BackOff,
    /// Finishing its requests before it is stopped.
    Draining,
    /// Was told to end.
    Stopping,
    /// Ended for good (jobs, and what could not be prepared).
    Ended,
}

impl InstancePhase {
    /// The word that people read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Ready => "running",
            Self::Unready => "unready",
            Self::BackOff => "back_off",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        }
    }
}

/// Facts about one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFacts {
    /// Id.
    pub id: InstanceId,
    /// The revision that it runs.
    pub revision: RevisionId,
    /// Fingerprint of the plan's template that it was made from.
    pub template: String,
    /// Place of a stateful instance: 0, 1, 2, …
    pub place: u32,
    /// How far it is.
    pub phase: InstancePhase,
    /// Address inside the platform's network.
    pub address: Option<Ipv4Addr>,
    /// The machine that it runs on.
    pub node: String,
    /// How often its program was started again.
    pub restarts: u32,
    /// When its program was started last.
    pub started_at: Option<Timestamp>,
    /// How its program ended last.
    pub last_exit: Option<ExitFacts>,
    /// Where its program listens although no declared port answers (`127.0.0.1:3000`); for the advice.
    #[serde(default)]
    pub listens_on: Vec<SocketAddr>,
    /// Why it could not be prepared, in the words of the step that failed; or what is wrong with its node.
    #[serde(default)]
    pub fault: Option<String>,
    /// Whether its node does not answer: `fault` says so, and the rest is from before.
    #[serde(default)]
    pub node_silent: bool,
}

/// How a program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitFacts {
    /// Exit status; `128 + signal` when a signal ended it.
    pub status: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it reached its memory limit.
    pub out_of_memory: bool,
    /// Whether it filled its writable layer or a volume.
    pub disk_full: bool,
    /// Whether we ended it (stop, time limit).
    pub asked: bool,
    /// Its last lines of output, at most 2 KiB.
    pub last_output: String,
    /// When.
    pub at: Timestamp,
}
