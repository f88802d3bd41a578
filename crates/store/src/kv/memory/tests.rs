//! The fake keeps the contract.

use super::MemoryKv;
use crate::kv::contract::{Fixture, suite};
use std::sync::Arc;

async fn make() -> Option<Fixture> {
    Some(Fixture { kv: Arc::new(MemoryKv::new()), _keep: Box::new(()) })
}

suite!(make);
