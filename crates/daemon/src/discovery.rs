//! Which servers there are and which roles they run: a key for each in the coordination store, under a lease.
//!
//! What must hold: a server that died is forgotten when its lease ends; while the store is silent the last known servers
//! stay, because forgetting all of them would help nobody. Not here: how servers talk to each other.

use crate::supervisor::{OnExit, Supervisor};
use arco_config::Role;
use arco_model::time::Timestamp;
use arco_store::kv::{Event, KvError, Range, SharedKv};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where the keys lie.
pub const SERVERS: &str = "/servers/";
/// How long a server that is silent stays known, in seconds.
const LIFE_S: u64 = 10;
/// Pause after the store failed.
const AGAIN: Duration = Duration::from_millis(500);

/// A server, as others know it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// A name that no other server has, and that it keeps over starts.
    pub name: String,
    /// What runs there.
    pub roles: Vec<Role>,
    /// `HOST:PORT` where other servers reach it.
    pub address: String,
    /// Where its gateway answers plain HTTP and HTTPS, when it runs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<(SocketAddr, SocketAddr)>,
    /// Its version.
    pub version: String,
    /// When it started.
    pub since: Timestamp,
}

type Known = Arc<BTreeMap<String, Server>>;

/// The servers that are known; cheap to clone.
#[derive(Clone)]
pub struct Directory {
    kv: SharedKv,
    me: String,
    known: watch::Receiver<Known>,
}

impl Directory {
    /// Follows the servers until the supervisor's token is cancelled; `me` is this one's name. Returns when they are
    /// known.
    pub async fn follow(kv: SharedKv, me: &str, supervisor: &Supervisor) -> Result<Self, KvError> {
        let (sender, known) = watch::channel(Known::default());
        let listed = list(&kv, &sender).await?;
        let token = supervisor.token().clone();
        supervisor.spawn("directory", OnExit::Continue, follow(kv.clone(), listed, sender, token));
        Ok(Self { kv, me: me.to_owned(), known })
    }

    /// Tells the others of this server, whose roles are ready, until the supervisor's token is cancelled.
    pub fn enter(&self, me: Server, supervisor: &Supervisor) {
        let (kv, token) = (self.kv.clone(), supervisor.token().clone());
        supervisor.spawn("directory entry", OnExit::Continue, async move {
            while !token.is_cancelled() {
                if let Err(error) = stay(&kv, &me, &token).await {
                    tracing::warn!(%error, "other servers may not know this one, it is entered again");
                    token.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
                }
            }
            Ok(())
        });
    }

    /// Name of this server.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Servers that run a role, this one included, by name.
    pub fn with(&self, role: Role) -> Vec<Server> {
        self.known.borrow().values().filter(|it| it.roles.contains(&role)).cloned().collect()
    }

    /// Other servers that run a role.
    pub fn others(&self, role: Role) -> Vec<Server> {
        self.with(role).into_iter().filter(|it| it.name != self.me).collect()
    }

    /// The server with this role that everybody takes for `key`, as long as everybody knows the same servers.
    pub fn owner(&self, role: Role, key: &str) -> Option<Server> {
        self.with(role).into_iter().max_by_key(|it| weight(&it.name, key))
    }

    /// Whether a server with this name is known.
    pub fn knows(&self, name: &str) -> bool {
        self.known.borrow().contains_key(name)
    }

    /// Waits until the known servers are others than when it was called last on this clone.
    pub async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            std::future::pending::<()>().await; // nobody follows any more: the process stops
        }
    }
}

/// Rendezvous hashing: when a server comes or goes, only keys that are its own move. FNV-1a, then mixed, because names
/// of servers differ in few letters. The same in all versions.
fn weight(server: &str, key: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in server.bytes().chain([0]).chain(key.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ (hash >> 29)
}

/// Is entered until the token is cancelled, then leaves.
async fn stay(kv: &SharedKv, me: &Server, token: &CancellationToken) -> Result<(), KvError> {
    let lease = kv.lease_grant(LIFE_S).await?;
    // Plain fields always serialise.
    let value = serde_json::to_vec(me).unwrap_or_default();
    kv.put(&format!("{SERVERS}{}", me.name), value, Some(lease)).await?;
    let pause = Duration::from_secs(LIFE_S) / 4;
    while token.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        match kv.lease_keep_alive(lease).await {
            Ok(_) => {}
            Err(error @ KvError::NoLease(_)) => return Err(error),
            Err(error) => tracing::debug!(%error, "the entry of this server was not renewed, trying again"),
        }
    }
    kv.lease_revoke(lease).await
}

async fn list(kv: &SharedKv, known: &watch::Sender<Known>) -> Result<u64, KvError> {
    let listed = kv.list(SERVERS).await?;
    let servers = listed.items.iter().filter_map(|it| serde_json::from_slice::<Server>(&it.value).ok());
    let servers = Arc::new(servers.map(|it| (it.name.clone(), it)).collect());
    known.send_replace(servers);
    Ok(listed.revision)
}

async fn follow(
    kv: SharedKv,
    mut revision: u64,
    known: watch::Sender<Known>,
    token: CancellationToken,
) -> Result<(), crate::BoxError> {
    loop {
        let cut = tokio::select! {
            () = token.cancelled() => return Ok(()),
            cut = follow_once(&kv, revision, &known) => cut,
        };
        if let Err(error) = cut {
            tracing::warn!(%error, "other servers are not followed, it is tried again; those that are known stay");
        }
        loop {
            if token.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                return Ok(());
            }
            if let Ok(listed) = list(&kv, &known).await {
                revision = listed;
                break;
            }
        }
    }
}

async fn follow_once(kv: &SharedKv, revision: u64, known: &watch::Sender<Known>) -> Result<(), KvError> {
    let mut watch = kv.watch(Range::Prefix(SERVERS.as_bytes().to_vec()), Some(revision + 1)).await?;
    while let Some(batch) = watch.next().await {
        let events = batch?.events;
        known.send_modify(|known| {
            let known = Arc::make_mut(known);
            for event in &events {
                match event {
                    Event::Put(item) => match serde_json::from_slice::<Server>(&item.value) {
                        Ok(server) => drop(known.insert(server.name.clone(), server)),
                        Err(error) => tracing::warn!(%error, "a server's entry is not readable"),
                    },
                    Event::Delete { key, .. } => {
                        let name = String::from_utf8_lossy(key);
                        known.remove(name.strip_prefix(SERVERS).unwrap_or_default());
                    }
                }
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::kv::MemoryKv;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn server(name: &str, roles: &[Role]) -> Server {
        Server {
            name: name.to_owned(),
            roles: roles.to_vec(),
            address: format!("{name}:1"),
            gateway: None,
            version: "1".to_owned(),
            since: Timestamp(1),
        }
    }

    async fn until(directory: &mut Directory, role: Role, names: &[&str]) {
        let seen = async {
            while directory.with(role).iter().map(|it| it.name.as_str()).ne(names.iter().copied()) {
                directory.changed().await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.unwrap();
    }

    #[tokio::test]
    async fn servers_come_and_go() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let (a, b) = (Supervisor::new(), Supervisor::new());
        let mut of_a = Directory::follow(kv.clone(), "a", &a).await.unwrap();
        of_a.enter(server("a", &[Role::Api]), &a);
        let mut of_b = Directory::follow(kv.clone(), "b", &b).await.unwrap();
        of_b.enter(server("b", &[Role::Api, Role::Eventlog]), &b);
        until(&mut of_a, Role::Api, &["a", "b"]).await;
        until(&mut of_b, Role::Api, &["a", "b"]).await;
        until(&mut of_a, Role::Eventlog, &["b"]).await;
        assert_eq!(of_a.others(Role::Api).len(), 1);
        assert_eq!(of_a.owner(Role::Eventlog, "x").unwrap().address, "b:1");
        assert!(of_a.owner(Role::Builder, "x").is_none() && of_a.knows("b"));
        assert!(b.shutdown(PATIENCE).await);
        until(&mut of_a, Role::Api, &["a"]).await;
        assert!(a.shutdown(PATIENCE).await);
    }

    #[test]
    fn keys_spread_and_only_those_of_a_server_that_goes_move() {
        let names = ["host-1", "host-2", "host-3"];
        let owner = |names: &[&'static str], key: &str| *names.iter().max_by_key(|it| weight(it, key)).unwrap();
        let keys: Vec<_> = (0..3000).map(|it| format!("key-{it}")).collect();
        for name in names {
            let count = keys.iter().filter(|it| owner(&names, it) == name).count();
            assert!((800..1200).contains(&count), "{name} {count}");
        }
        for key in keys.iter().filter(|it| owner(&names, it) != "host-2") {
            assert_eq!(owner(&names, key), owner(&["host-1", "host-3"], key));
        }
    }
}
