//! What of a component must outlive the server although no container tells it: whether a change was reached, which
//! jobs have ended, and how many instances load asked for.

use super::scaling::Scaled;
use arco_model::id::ComponentId;
use arco_model::observed::InstanceFacts;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Kept for each component.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// Template that was reached, and with how many replicas.
    pub(super) completed: Option<(String, u32)>,
    /// Instances of jobs that have ended.
    pub(super) ended: Vec<InstanceFacts>,
    /// How many instances load asked for, when it is scaled by load.
    pub(super) scaled: Option<Scaled>,
}

fn path(dir: &Path, component: &ComponentId) -> PathBuf {
    dir.join(format!("{component}.json"))
}

/// Reads it; an empty one when there is none.
pub(super) fn load(dir: &Path, component: &ComponentId) -> Record {
    let found = std::fs::read(path(dir, component)).ok();
    found.and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default()
}

/// Keeps it.
pub(super) fn save(dir: &Path, component: &ComponentId, record: &Record) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let path = path(dir, component);
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(record)?)?;
    std::fs::rename(fresh, path)
}

/// Forgets it.
pub(super) fn remove(dir: &Path, component: &ComponentId) {
    let _ = std::fs::remove_file(path(dir, component)); // none is as good
}
