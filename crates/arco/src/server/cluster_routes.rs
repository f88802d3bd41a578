//! Gives the gateways what Ingress and Gateway API objects of a cluster ask for: one KV key per host, upstream, certificate and
//! port, below a prefix of its own.
//!
//! What must hold: only what differs is written; what a host leads to is there before the host, and goes after it; keys of
//! certificates are sealed for the gateways. What objects ask for is the driver's business (`routes`); that the platform's
//! own hosts win is the gateway's.

use anyhow::Context as _;
use arco_config::Config;
use arco_daemon::{OnExit, Supervisor};
use arco_model::traffic::{
    CLUSTER_CERTIFICATES, CLUSTER_HOSTS, CLUSTER_PREFIX, CLUSTER_STREAMS, CLUSTER_UPSTREAMS, CertificateEntry,
    GATEWAY_KEYS, certificate_context,
};
use arco_orchestrator_kubernetes::routes::{GatewayPorts, RouteTable, ServedCertificate, follow};
use arco_store::clock;
use arco_store::kv::{KvError, Operation, Range, SharedKv, Txn};
use arco_store::secrets::{Sealed, SecretBox};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// After a failed write, the next attempt comes after this.
const AGAIN: Duration = Duration::from_secs(2);
/// Most keys that one transaction writes, and most bytes: both well below what the store takes.
const BATCH: (usize, usize) = (64, 512 << 10);

/// Serves the class of the settings until the supervisor stops; without one, takes away what was served before.
pub(super) async fn serve(
    config: &Config,
    kv: SharedKv,
    secrets: &SecretBox,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    let keys = SecretBox::parse(&secrets.derive(GATEWAY_KEYS))
        .map_err(|it| anyhow::anyhow!("failed to derive the keys of the gateways: {it}"))?;
    let mut publisher = Publisher { kv, keys, known: BTreeMap::new() };
    if config.kubernetes.route_class.is_empty() {
        publisher.load().await.context("failed to read what the gateway serves for the cluster")?;
        return publisher.publish(&RouteTable::default()).await.context("failed to take the cluster's routes away");
    }
    let gateway = &config.gateway;
    let ports = GatewayPorts {
        http: seen(80, gateway.http_listen.port(), gateway.public_http_port),
        https: seen(443, gateway.https_listen.port(), gateway.public_https_port),
        streams: gateway.stream_ports.first..=gateway.stream_ports.last,
    };
    let token = supervisor.token().clone();
    let (told, work) = follow(&config.kubernetes, ports, token.clone())
        .await
        .context("failed to follow the cluster's routes; see `kubernetes.route_class` in the settings")?;
    supervisor.spawn("cluster routes", OnExit::Shutdown, async move {
        work.await;
        Ok(())
    });
    supervisor.spawn("cluster routes for gateways", OnExit::Shutdown, async move {
        tokio::select! {
            () = token.cancelled() => {}
            () = publisher.follow(told) => {}
        }
        Ok(())
    });
    Ok(())
}

/// Ports by which objects may name a listener.
fn seen(usual: u16, own: u16, public: Option<u16>) -> Vec<u16> {
    BTreeSet::from_iter([usual, own].into_iter().chain(public)).into_iter().collect()
}

/// The only writer below [`CLUSTER_PREFIX`].
struct Publisher {
    kv: SharedKv,
    /// Seal private keys for gateways.
    keys: SecretBox,
    /// Every key with its value.
    known: BTreeMap<String, Vec<u8>>,
}

impl Publisher {
    async fn follow(&mut self, mut told: watch::Receiver<Option<Arc<RouteTable>>>) {
        let mut loaded = false;
        loop {
            let table = told.borrow_and_update().clone();
            let mut outcome = Ok(());
            if let Some(table) = table {
                if !loaded {
                    outcome = self.load().await.map_err(anyhow::Error::from);
                    loaded = outcome.is_ok();
                }
                if loaded {
                    outcome = self.publish(&table).await;
                }
            }
            match outcome {
                Ok(()) => {
                    if told.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the cluster's routes are given to the gateways later");
                    loaded = false;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Reads what is there.
    async fn load(&mut self) -> Result<(), KvError> {
        let items = self.kv.list(CLUSTER_PREFIX).await?.items;
        self.known = items.into_iter().map(|it| (String::from_utf8_lossy(&it.key).into_owned(), it.value)).collect();
        Ok(())
    }

    /// Writes what differs.
    async fn publish(&mut self, table: &RouteTable) -> anyhow::Result<()> {
        let mut behind: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (id, upstream) in &table.upstreams {
            behind.insert(format!("{CLUSTER_UPSTREAMS}{id}"), serde_json::to_vec(upstream)?);
        }
        for (id, certificate) in &table.certificates {
            let key = format!("{CLUSTER_CERTIFICATES}{id}");
            let value = match self.known.get(&key).filter(|it| self.opens(id.as_str(), it)) {
                Some(known) => known.clone(),
                None => self.seal(id.as_str(), certificate)?,
            };
            behind.insert(key, value);
        }
        let mut front: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (host, entry) in &table.hosts {
            front.insert(format!("{CLUSTER_HOSTS}{host}"), serde_json::to_vec(entry)?);
        }
        for (stream, entry) in &table.streams {
            front.insert(format!("{CLUSTER_STREAMS}{stream}"), serde_json::to_vec(entry)?);
        }
        let wanted: BTreeSet<String> = behind.keys().chain(front.keys()).cloned().collect();
        self.put(behind).await?;
        self.put(front).await?;
        if table.partial {
            return Ok(());
        }
        let gone = |fronts: bool| {
            let is_front = |key: &str| key.starts_with(CLUSTER_HOSTS) || key.starts_with(CLUSTER_STREAMS);
            let stale = self.known.keys().filter(|it| !wanted.contains(*it) && is_front(it) == fronts);
            stale.cloned().collect::<Vec<_>>()
        };
        let (hosts, others) = (gone(true), gone(false));
        self.delete(hosts).await?;
        self.delete(others).await?;
        Ok(())
    }

    async fn put(&mut self, wanted: BTreeMap<String, Vec<u8>>) -> Result<(), KvError> {
        let differ = wanted.into_iter().filter(|(key, value)| self.known.get(key) != Some(value));
        let mut batches: Vec<Vec<(String, Vec<u8>)>> = vec![Vec::new()];
        let mut bytes = 0;
        for (key, value) in differ {
            let full = batches
                .last()
                .is_some_and(|it| it.len() >= BATCH.0 || (!it.is_empty() && bytes + value.len() > BATCH.1));
            if full {
                batches.push(Vec::new());
                bytes = 0;
            }
            bytes += value.len();
            if let Some(batch) = batches.last_mut() {
                batch.push((key, value));
            }
        }
        for batch in batches.into_iter().filter(|it| !it.is_empty()) {
            let one = |(key, value): &(String, Vec<u8>)| Operation::Put {
                key: key.as_bytes().to_vec(),
                value: value.clone(),
                lease: None,
            };
            let success = batch.iter().map(one).collect();
            self.kv.txn(Txn { success, ..Txn::default() }).await?;
            self.known.extend(batch);
        }
        Ok(())
    }

    async fn delete(&mut self, stale: Vec<String>) -> Result<(), KvError> {
        for batch in stale.chunks(BATCH.0) {
            let one = |key: &String| Operation::Delete(Range::Key(key.as_bytes().to_vec()));
            self.kv.txn(Txn { success: batch.iter().map(one).collect(), ..Txn::default() }).await?;
            batch.iter().for_each(|it| drop(self.known.remove(it)));
        }
        Ok(())
    }

    /// Whether the gateways can open what is there: the platform's key may have been changed since.
    fn opens(&self, id: &str, value: &[u8]) -> bool {
        let Ok(entry) = serde_json::from_slice::<CertificateEntry>(value) else { return false };
        let sealed = Sealed { key_id: entry.key_id, text: entry.sealed_key };
        self.keys.unseal(&certificate_context(id), &sealed).is_ok()
    }

    fn seal(&self, id: &str, certificate: &ServedCertificate) -> anyhow::Result<Vec<u8>> {
        let sealed = self.keys.seal(&certificate_context(id), certificate.key_pem.as_bytes())?;
        Ok(serde_json::to_vec(&CertificateEntry {
            issued_at: clock::now(),
            chain_pem: certificate.chain_pem.clone(),
            key_id: sealed.key_id,
            sealed_key: sealed.text,
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::id::RowId;
    use arco_model::traffic::HostEntry;
    use arco_store::kv::MemoryKv;

    fn table(hosts: &[&str], key: &str) -> RouteTable {
        let mut table = RouteTable::default();
        for host in hosts {
            let entry = HostEntry { host: (*host).to_owned(), ..HostEntry::default() };
            table.hosts.insert((*host).to_owned(), entry);
        }
        let certificate = ServedCertificate { chain_pem: "chain".to_owned(), key_pem: key.to_owned() };
        table.certificates.insert(RowId::from_parts(1, 1), certificate);
        table
    }

    #[tokio::test]
    async fn only_differences_are_written_and_keys_are_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = SecretBox::open(&folder.path().join("secret.key")).unwrap();
        let keys = || SecretBox::parse(&secrets.derive(GATEWAY_KEYS)).unwrap();
        let kv: SharedKv = Arc::new(MemoryKv::new());
        kv.put("/gateway/hosts/ours.test", b"{}".to_vec(), None).await.unwrap();
        let mut publisher = Publisher { kv: kv.clone(), keys: keys(), known: BTreeMap::new() };
        publisher.publish(&table(&["a.test", "b.test"], "secret of a key")).await.unwrap();
        let all = kv.list(CLUSTER_PREFIX).await.unwrap();
        assert_eq!(all.items.len(), 3);
        assert!(!all.items.iter().any(|it| String::from_utf8_lossy(&it.value).contains("secret of a key")));

        // Another process finds it as it is: nothing is written.
        let mut again = Publisher { kv: kv.clone(), keys: keys(), known: BTreeMap::new() };
        again.load().await.unwrap();
        again.publish(&table(&["a.test", "b.test"], "secret of a key")).await.unwrap();
        assert_eq!(kv.list(CLUSTER_PREFIX).await.unwrap().revision, all.revision);

        // With another key of the platform, certificates are sealed anew; what is not asked for goes.
        let other = SecretBox::open(&folder.path().join("other.key")).unwrap();
        let mut after = Publisher { keys: SecretBox::parse(&other.derive(GATEWAY_KEYS)).unwrap(), ..again };
        after.publish(&table(&["b.test"], "secret of a key")).await.unwrap();
        let keys_now: Vec<_> = kv.list("/gateway/").await.unwrap().items.into_iter().map(|it| it.key).collect();
        assert_eq!(keys_now.len(), 3, "b.test, its certificate, and the platform's own host");
        let id = RowId::from_parts(1, 1);
        let value = kv.get(&format!("{CLUSTER_CERTIFICATES}{id}")).await.unwrap().unwrap().value;
        assert!(after.opens(id.as_str(), &value));
        // Who does not know everything takes nothing away.
        after.publish(&RouteTable { partial: true, ..RouteTable::default() }).await.unwrap();
        assert_eq!(kv.list("/gateway/").await.unwrap().items.len(), 3);
        after.publish(&RouteTable::default()).await.unwrap();
        assert_eq!(kv.list("/gateway/").await.unwrap().items.len(), 1);
    }
}
