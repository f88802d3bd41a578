//! Certificates from the coordination store: opened with the gateways' key, made ready once, shared by all their hosts;
//! and the keys of session tickets, which all gateways share.

use crate::engine::{CertificateEntry, Certificates};
use crate::tickets::Tickets;
use arco_model::id::RowId;
use arco_model::traffic::{
    CERTIFICATES, CHALLENGES, CLUSTER_CERTIFICATES, CertificateEntry as Sealed, HostTls, certificate_context,
};
use arco_store::kv::mirror::View;
use arco_store::secrets::{Sealed as SealedText, SecretBox};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::Arc;

type Ready = HashMap<(RowId, Option<String>), (u64, Option<Arc<CertificateEntry>>)>;

/// See the module.
pub(super) struct CertificateSource {
    keys: Arc<SecretBox>,
    tickets: Tickets,
    /// Which revision of their keys is in use.
    tickets_seen: u64,
    /// By certificate and authority of clients: the revision that it was made of, and what was made, if anything could.
    ready: Ready,
    /// Stands for what the table in use was made of: hosts, certificates and challenges with their revisions.
    made_of: Option<u64>,
    hashes: RandomState,
}

impl CertificateSource {
    pub(super) fn new(keys: Arc<SecretBox>) -> Self {
        Self {
            keys,
            tickets: Tickets::default(),
            tickets_seen: 0,
            ready: HashMap::new(),
            made_of: None,
            hashes: RandomState::new(),
        }
    }

    /// The table for `view`; `None` while it is as before. `hosts` are all that are served over TLS.
    pub(super) fn table<'a>(
        &mut self,
        view: &View,
        hosts: impl Iterator<Item = (&'a [u8], u64, &'a Arc<str>, &'a HostTls)>,
    ) -> Option<Certificates> {
        self.tickets_seen = self.tickets.follow(view, &self.keys, self.tickets_seen);
        let hosts: Vec<_> = hosts.collect();
        let mut made_of = self.hashes.build_hasher();
        hosts.iter().for_each(|it| (it.0, it.1).hash(&mut made_of));
        for prefix in [CERTIFICATES, CLUSTER_CERTIFICATES, CHALLENGES] {
            super::store::below(view, prefix).for_each(|(key, entry)| (key, entry.mod_revision).hash(&mut made_of));
        }
        let made_of = made_of.finish();
        if self.made_of == Some(made_of) {
            return None;
        }
        let mut before = std::mem::take(&mut self.ready);
        let mut by_host = HashMap::new();
        for (_, _, host, tls) in hosts {
            let Some(id) = &tls.certificate else { continue };
            let key = (id.clone(), tls.client_ca.clone());
            if !self.ready.contains_key(&key) {
                let made = self.make(view, &key, before.remove(&key));
                self.ready.insert(key.clone(), made);
            }
            if let Some((_, Some(entry))) = self.ready.get(&key) {
                by_host.insert(Arc::clone(host), Arc::clone(entry));
            }
        }
        let mut table = Certificates::by_host(by_host);
        for (key, entry) in super::store::below(view, CHALLENGES) {
            let host = String::from_utf8_lossy(&key[CHALLENGES.len()..]).into_owned();
            let added = self.open(&host, &entry.value).and_then(|(chain, key)| table.challenge(&host, &chain, &key));
            if let Err(why) = added {
                tracing::error!(host, why, "a challenge cannot be answered");
            }
        }
        self.made_of = Some(made_of);
        Some(table)
    }

    fn make(
        &self,
        view: &View,
        (id, client_ca): &(RowId, Option<String>),
        before: Option<(u64, Option<Arc<CertificateEntry>>)>,
    ) -> (u64, Option<Arc<CertificateEntry>>) {
        let known = |prefix| view.entries.get(format!("{prefix}{id}").as_bytes());
        let Some(entry) = known(CERTIFICATES).or_else(|| known(CLUSTER_CERTIFICATES)) else { return (0, None) };
        let old = match before {
            Some(known) if known.0 == entry.mod_revision => return known,
            other => other.and_then(|it| it.1),
        };
        let policy = format!("{id} {}", client_ca.as_deref().unwrap_or_default());
        let made = self
            .open(id.as_str(), &entry.value)
            .and_then(|(chain, key)| CertificateEntry::new(&policy, &chain, &key, client_ca.as_deref()));
        match made {
            Ok(made) => (entry.mod_revision, Some(Arc::new(made.with_tickets(&self.tickets, client_ca.as_deref())))),
            Err(why) => {
                tracing::error!(certificate = %id, why, "a certificate cannot be served; the one before stays");
                (entry.mod_revision, old)
            }
        }
    }

    /// Chain and key (PEM).
    fn open(&self, id: &str, value: &[u8]) -> Result<(String, String), String> {
        let sealed: Sealed = serde_json::from_slice(value).map_err(|it| it.to_string())?;
        let text = SealedText { key_id: sealed.key_id, text: sealed.sealed_key };
        let key = self.keys.unseal(&certificate_context(id), &text).map_err(|it| it.to_string())?;
        Ok((sealed.chain_pem, String::from_utf8(key).map_err(|it| it.to_string())?))
    }
}
