//! What volumes are made of and how full they are: asked of whoever runs instances, and changes nothing.

use crate::Error;
use arco_model::id::ComponentId;
use arco_model::storage::{VolumeClass, VolumeFacts};
use async_trait::async_trait;
use std::sync::Arc;

/// Storage that can be asked.
pub type SharedStorage = Arc<dyn Storage>;

/// How much is told of volumes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Telling {
    /// What they are.
    Facts,
    /// Also how much of them is used, which may need an answer of every node that has one.
    Use,
}

/// Storage of the machine or the cluster that runs instances.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Every class that volumes can be made of.
    async fn classes(&self) -> Result<Vec<VolumeClass>, Error>;
    /// Every volume of the platform, or of one component, that exists.
    async fn volumes(&self, of: Option<&ComponentId>, telling: Telling) -> Result<Vec<VolumeFacts>, Error>;
}
