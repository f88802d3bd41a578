//! Sources: an uploaded archive or a fetched repository becomes a clean layer below `app/`, and a [`Tree`] to look at.
//!
//! What must hold: nothing outside of the archive can be named by it. Paths that are absolute or climb, and devices are
//! refused; links that leave the source are left out with a warning. Sizes are bounded before anything is written. The
//! same files give the same layer: owners and times of the archive do not count.

mod archive;
mod git;

pub(crate) use archive::{Limits, clean};
pub(crate) use git::fetch;

use crate::tree::Tree;
use arco_model::artifact::Layer;

/// A source, ready to be built.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Its files below `app/`.
    pub(crate) layer: Layer,
    /// Its files, to look at.
    pub(crate) tree: Tree,
    /// Commit, when it has one.
    pub(crate) commit: Option<String>,
}
