//! What can go wrong with logs.

use std::path::{Path, PathBuf};

/// Why a log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum EventlogError {
    /// A file cannot be used.
    #[error("failed to {step} `{}`: {source}", .path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A segment is not what its name says; its lines count as missed.
    #[error("the log segment `{}` is damaged: {why}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The process stops.
    #[error("the log is closing")]
    Stopped,
}

impl EventlogError {
    /// A step on a file failed.
    pub(crate) fn io(step: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { step, path: path.to_owned(), source }
    }

    /// Whether the file went away meanwhile (sealed or deleted): look again.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// Whether lines cannot be read although they should be there. A file that stays away is lost as well, once it was
    /// looked for long enough.
    pub(crate) fn is_loss(&self, patient: bool) -> bool {
        matches!(self, Self::Damaged { .. }) || (self.is_gone() && !patient)
    }
}
