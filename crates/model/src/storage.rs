//! What volumes can be made of, and how they are: facts of a machine or a cluster, no judgement.

use crate::id::ComponentId;
use crate::name::VolumeName;
use serde::{Deserialize, Serialize};

/// Who may use a volume at the same time. The words are Kubernetes' own.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessMode {
    /// Instances on one node.
    ReadWriteOnce,
    /// One instance.
    ReadWriteOncePod,
    /// Instances on every node, which only read.
    ReadOnlyMany,
    /// Instances on every node.
    ReadWriteMany,
}

impl AccessMode {
    /// `RWO` and the like.
    pub fn short(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "RWO",
            Self::ReadWriteOncePod => "RWOP",
            Self::ReadOnlyMany => "ROX",
            Self::ReadWriteMany => "RWX",
        }
    }
}

/// What volumes can be made of, and what they can then.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct VolumeClass {
    /// Name, as a volume's `class` says it.
    pub name: String,
    /// What makes the volumes.
    pub provisioner: String,
    /// Whether volumes are made of it that name no class.
    pub default: bool,
    /// Who may use a volume at the same time; empty: nobody knows before it is tried.
    pub access: Vec<AccessMode>,
    /// Whether a volume can grow.
    pub grows: bool,
    /// Whether snapshots can be taken; `None`: it may not be asked.
    pub snapshots: Option<bool>,
    /// Whether the content stays where it is when the volume is deleted.
    pub retains: bool,
    /// Whether no more than a volume's size can be written to it; `None`: nobody knows.
    pub limits: Option<bool>,
}

/// A volume that exists, or one place of it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct VolumeFacts {
    /// Whose it is.
    pub component: ComponentId,
    /// Its name.
    pub volume: VolumeName,
    /// Which place has it; `None`: all instances share it.
    pub place: Option<u32>,
    /// What it was made of; empty: of no class.
    pub class: String,
    /// Who may use it at the same time.
    pub access: Vec<AccessMode>,
    /// Its size, in bytes; 0 while it is being made.
    pub size_bytes: u64,
    /// How much of it is used, in bytes; `None`: it was not asked, or nobody can tell now.
    pub used_bytes: Option<u64>,
}
