//! Which servers keep logs, also while one is away for a short time, as when its pod is replaced: what it has cannot be asked
//! then, so nobody may conclude from the others what is kept.
//!
//! What must hold: a server that keeps logs is known from before its first line until [`AWAY_S`] after it went.

use super::peers::Peers;
use arco_config::Role;
use arco_daemon::{OnExit, Supervisor};
use arco_store::kv::{KvError, SharedKv};
use std::time::Duration;

/// Where the keys lie, under a lease of so many seconds.
const KEEPERS: &str = "/keepers/";
const AWAY_S: u64 = 120;
/// Pause after the store failed.
const AGAIN: Duration = Duration::from_millis(500);

/// The keepers of a platform with several servers.
#[derive(Clone)]
pub(super) struct Keepers {
    kv: SharedKv,
    peers: Peers,
}

impl Keepers {
    pub(super) fn new(kv: SharedKv, peers: Peers) -> Self {
        Self { kv, peers }
    }

    /// Makes this server known as one; returns when it is.
    pub(super) async fn enter(&self, supervisor: &Supervisor) -> Result<(), KvError> {
        let (kv, key) = (self.kv.clone(), format!("{KEEPERS}{}", self.peers.directory().me()));
        let mut lease = enter(&kv, &key).await?;
        let token = supervisor.token().clone();
        supervisor.spawn("known as a keeper of logs", OnExit::Continue, async move {
            let mut pause = Duration::from_secs(AWAY_S) / 4;
            while token.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                let renewed = match kv.lease_keep_alive(lease).await {
                    Err(KvError::NoLease(_)) => enter(&kv, &key).await.map(|it| lease = it),
                    other => other.map(drop),
                };
                pause = if renewed.is_ok() { Duration::from_secs(AWAY_S) / 4 } else { AGAIN };
            }
            Ok(()) // its lines are still there: the lease goes on without it
        });
        Ok(())
    }

    /// One that is away; without one, all that keep lines can be asked.
    pub(super) async fn away(&self) -> Result<Option<String>, KvError> {
        let known = self.kv.list(KEEPERS).await?;
        let here = self.peers.directory().with(Role::Eventlog);
        let names = known.items.iter().filter_map(|it| std::str::from_utf8(&it.key).ok()?.strip_prefix(KEEPERS));
        Ok(names.into_iter().find(|name| !here.iter().any(|it| it.name == *name)).map(str::to_owned))
    }
}

async fn enter(kv: &SharedKv, key: &str) -> Result<i64, KvError> {
    let lease = kv.lease_grant(AWAY_S).await?;
    kv.put(key, Vec::new(), Some(lease)).await?;
    Ok(lease)
}
