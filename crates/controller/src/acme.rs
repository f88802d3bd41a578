//! Certificates that are issued and renewed by themselves (RFC 8555): for every host whose routes say `tls: auto`.
//!
//! What must hold: one account, and one order for a host at a time, however many controllers run (a leased lock); a
//! failure never touches the certificate that is there, and is tried again later and later; what went wrong, and what to
//! do about it, stands in the certificate's row, where people see it.
//!
//! Not here: how challenges reach the gateways (`traffic.rs`), which certificate serves a host (there as well).

mod account;
mod order;
mod schedule;
mod trouble;

use crate::Controller;
use arco_daemon::certificate::inspect;
use arco_daemon::{BoxError, CancellationToken};
use arco_model::id::RowId;
use arco_model::name::TenantName;
use arco_model::route::TLS_AUTO;
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::kv::{Compare, KvError, LeaseId, Operation, SharedKv, Txn};
use arco_store::sql::{Batch, CertificateRow, Query, Renewal, RouteRow, Versioned};
use futures_util::StreamExt as _;
use instant_acme::Account;
pub(crate) use schedule::{Next, next};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::Mutex;
use trouble::Trouble;

/// How often hosts are looked at when nothing rings.
const PERIOD: Duration = Duration::from_secs(60);
/// Hosts that are looked after at the same time.
const AT_ONCE: usize = 4;
/// Locks of orders, by host.
const LOCKS: &str = "/acme/locks/";
/// A host whose certificate is looked after.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    host: &'a str,
    tenant: &'a TenantName,
    /// The account of this process, once there is one.
    account: &'a Mutex<Option<Account>>,
}

/// How long the lock of a controller that died stays, in seconds, and how often one that lives renews it.
const LOCK_S: u64 = 15;
const RENEWAL: Duration = Duration::from_secs(5);

impl Controller {
    /// Looks after automatic certificates until the process stops.
    pub(crate) async fn issue(self, token: CancellationToken) -> Result<(), BoxError> {
        if !self.deps.acme.is_on() {
            token.cancelled().await;
            return Ok(());
        }
        let account = Mutex::new(None);
        let period = PERIOD.min(Duration::from_millis(self.deps.acme.renewal_check_ms.max(1000)));
        while !token.is_cancelled() {
            tokio::select! {
                () = token.cancelled() => break,
                looked = self.look_at_certificates(&account) => if let Err(error) = looked {
                    tracing::warn!(%error, "automatic certificates could not be looked at, it is tried again");
                },
            }
            tokio::select! {
                () = token.cancelled() => break,
                () = self.traffic.certificate_wanted() => {}
                () = tokio::time::sleep(period) => {}
            }
        }
        Ok(())
    }

    async fn look_at_certificates(&self, account: &Mutex<Option<Account>>) -> Result<(), BoxError> {
        let wanted = self.wanted().await?;
        self.drop_unwanted(&wanted).await?;
        futures_util::stream::iter(&wanted)
            .for_each_concurrent(AT_ONCE, |(host, tenant)| async move {
                if let Err(error) = self.look_at_host(Wanted { host, tenant, account }).await {
                    tracing::warn!(host, %error, "the certificate of a host could not be looked at, it is tried again");
                }
            })
            .await;
        Ok(())
    }

    async fn look_at_host(&self, wanted: Wanted<'_>) -> Result<(), BoxError> {
        let found = self.automatic(wanted).await?;
        match (next(found.as_ref().map(|it| &it.value), clock::now()), found) {
            (Next::AskWhen, Some(found)) => self.plan_renewal(found, wanted.account).await,
            (Next::Order, _) => self.order_locked(wanted).await,
            _ => Ok(()),
        }
    }

    async fn automatic(&self, wanted: Wanted<'_>) -> Result<Option<Versioned<CertificateRow>>, BoxError> {
        let name = CertificateRow::automatic_name(wanted.host);
        let of_tenant = Query::parent(wanted.tenant.as_str());
        let found = self.deps.metadata.list::<CertificateRow>(&of_tenant).await?.items;
        Ok(found.into_iter().find(|it| it.value.name == name))
    }

    /// Hosts whose routes ask for an automatic certificate, with their tenants.
    async fn wanted(&self) -> Result<BTreeMap<String, TenantName>, BoxError> {
        let routes = self.deps.metadata.list::<RouteRow>(&Query::default()).await?.items;
        let routes = routes.into_iter().map(|it| it.value);
        let automatic = routes.filter(|it| it.route.tls.certificate.as_deref() == Some(TLS_AUTO));
        Ok(automatic.map(|it| (it.host, it.tenant)).collect())
    }

    /// Deletes automatic certificates that no route asks for and that serve nobody: ended, or never issued.
    async fn drop_unwanted(&self, wanted: &BTreeMap<String, TenantName>) -> Result<(), BoxError> {
        let now = clock::now();
        for found in self.deps.metadata.list::<CertificateRow>(&Query::tag("automatic")).await?.items {
            let it = &found.value;
            let asked = it.hosts.iter().any(|host| wanted.get(host) == Some(&it.tenant));
            if !asked && it.not_after <= now {
                let mut batch = Batch::default();
                batch.delete(&found);
                self.deps.metadata.commit(batch).await?;
            }
        }
        Ok(())
    }

    /// Orders a certificate, unless another controller does.
    async fn order_locked(&self, wanted: Wanted<'_>) -> Result<(), BoxError> {
        let Some(lock) = Lock::take(&self.deps.kv, wanted.host).await? else { return Ok(()) };
        let ordered = tokio::select! {
            ordered = self.order_now(wanted) => ordered,
            // Another controller may order by now.
            () = lock.lost() => Err("its lock ended while it was ordered".into()),
        };
        lock.release().await;
        ordered
    }

    async fn order_now(&self, wanted: Wanted<'_>) -> Result<(), BoxError> {
        // Another controller may have had the lock until now: what it left counts.
        let found = self.automatic(wanted).await?;
        let before = found.as_ref().map(|it| &it.value);
        if next(before, clock::now()) != Next::Order {
            return Ok(());
        }
        let timeout_ms = self.deps.acme.order_timeout_ms;
        let ordering = async {
            let account = self.account(wanted.account).await?;
            self.order(&account, wanted.host, before).await
        };
        let ordered = tokio::time::timeout(Duration::from_millis(timeout_ms), ordering).await;
        let outcome = ordered.unwrap_or(Err(Trouble::Slow(timeout_ms)));
        if outcome.as_ref().is_err_and(Trouble::is_account_gone) {
            self.forget_account(wanted.account).await?;
        }
        let kept = self.keep(wanted, found, outcome).await;
        // What proved the host is needed no more, however it ended; the host is published with its certificate.
        if let Err(error) = self.traffic.prove(wanted.host, None).await {
            tracing::warn!(host = wanted.host, %error, "the host is not published anew yet, it is tried again");
        }
        kept
    }

    /// Keeps what came of an order: the certificate, or why there is none.
    async fn keep(
        &self,
        Wanted { host, tenant, .. }: Wanted<'_>,
        found: Option<Versioned<CertificateRow>>,
        outcome: Result<(String, String), Trouble>,
    ) -> Result<(), BoxError> {
        let now = clock::now();
        let fresh = found.is_none();
        let mut row = found.unwrap_or_else(|| Versioned { value: empty(host, tenant, now), version: 0 });
        let it = &mut row.value;
        let checked = outcome.and_then(|(chain, key)| {
            let facts = inspect(&chain, &key, now).map_err(|it| Trouble::Unusable(it.message))?;
            let sealed = self.deps.secrets.seal(&CertificateRow::key_context(&it.id), key.as_bytes())?;
            Ok((chain, sealed, facts))
        });
        match checked {
            Ok((chain, sealed, facts)) => {
                (it.hosts, it.issuer) = (facts.hosts, facts.issuer);
                (it.not_before, it.not_after) = (facts.not_before, facts.not_after);
                (it.chain_pem, it.key_id, it.sealed_key) = (chain, sealed.key_id, sealed.text);
                it.issued_at = now;
                let renew_at = schedule::usual_renewal(it.not_before, it.not_after);
                it.renewal = Renewal { renew_at, next_at: now, ..Renewal::default() };
                tracing::info!(host, until = it.not_after.rfc3339(), "a certificate was issued");
            }
            Err(trouble) => {
                let renewal = &mut it.renewal;
                renewal.failures = renewal.failures.saturating_add(1);
                renewal.problem = trouble.to_string();
                renewal.advice = trouble.advice(host, self.deps.acme.challenge);
                renewal.next_at = now.plus_ms(schedule::back_off_ms(renewal.failures, trouble.is_rate_limited()));
                tracing::warn!(host, %trouble, again_at = renewal.next_at.rfc3339(), "no certificate was issued");
            }
        }
        if fresh {
            self.deps.metadata.insert(&row.value).await?;
        } else {
            self.deps.metadata.update(&row).await?;
        }
        Ok(())
    }

    /// Asks the authority when a certificate is best renewed (RFC 9773), where it says so.
    async fn plan_renewal(
        &self,
        mut row: Versioned<CertificateRow>,
        account: &Mutex<Option<Account>>,
    ) -> Result<(), BoxError> {
        let now = clock::now();
        let it = &mut row.value;
        let asked = match self.account(account).await {
            Ok(account) => order::suggested(&account, &it.chain_pem).await,
            Err(trouble) => Err(trouble),
        };
        let at_most_ms = self.deps.acme.renewal_check_ms;
        let again_ms = match asked {
            Ok(Some((start, end, again_ms))) => {
                let latest = schedule::latest_renewal(it.not_before, it.not_after);
                it.renewal.renew_at = schedule::within(start, end, &it.id).min(latest);
                schedule::check_ms(Some(again_ms), at_most_ms)
            }
            Ok(None) => schedule::check_ms(None, at_most_ms),
            Err(trouble) => {
                tracing::debug!(certificate = it.name, %trouble, "the authority does not say when to renew");
                schedule::check_ms(None, at_most_ms)
            }
        };
        it.renewal.next_at = now.plus_ms(again_ms);
        Ok(self.deps.metadata.update(&row).await?)
    }
}

/// The right to order for a host. It ends with its lease when this process does.
struct Lock {
    kv: SharedKv,
    lease: LeaseId,
}

impl Lock {
    /// Takes it; `None` when another one has it.
    async fn take(kv: &SharedKv, host: &str) -> Result<Option<Self>, KvError> {
        let key = format!("{LOCKS}{host}").into_bytes();
        let lease = kv.lease_grant(LOCK_S).await?;
        let put = Operation::Put { key: key.clone(), value: Vec::new(), lease: Some(lease) };
        let txn = Txn { compare: vec![Compare::Absent(key)], success: vec![put], failure: Vec::new() };
        let lock = Self { kv: kv.clone(), lease };
        if kv.txn(txn).await?.succeeded {
            return Ok(Some(lock));
        }
        lock.release().await;
        Ok(None)
    }

    /// Renews it, and returns when it is lost.
    async fn lost(&self) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            match self.kv.lease_keep_alive(self.lease).await {
                Ok(_) => {}
                Err(KvError::NoLease(_)) => return,
                Err(error) => tracing::debug!(%error, "the lock of an order was not renewed, it is tried again"),
            }
        }
    }

    async fn release(self) {
        if let Err(error) = self.kv.lease_revoke(self.lease).await {
            tracing::debug!(%error, "a lock stays until its lease ends");
        }
    }
}

/// A row without a certificate yet.
fn empty(host: &str, tenant: &TenantName, now: Timestamp) -> CertificateRow {
    CertificateRow {
        id: clock::fresh::<RowId>(),
        tenant: tenant.clone(),
        name: CertificateRow::automatic_name(host),
        automatic: true,
        hosts: vec![host.to_owned()],
        issuer: String::new(),
        not_before: Timestamp::default(),
        not_after: Timestamp::default(),
        chain_pem: String::new(),
        key_id: String::new(),
        sealed_key: String::new(),
        created_at: now,
        issued_at: now,
        renewal: Renewal::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_store::kv::MemoryKv;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn one_order_for_a_host_at_a_time() {
        let kv: SharedKv = Arc::new(MemoryKv::new());
        let first = Lock::take(&kv, "a.test").await.unwrap().expect("nobody has it");
        assert!(Lock::take(&kv, "a.test").await.unwrap().is_none());
        let other = Lock::take(&kv, "b.test").await.unwrap().expect("another host");
        first.release().await;
        let again = Lock::take(&kv, "a.test").await.unwrap().expect("it was given back");
        // By the paused clock: it is not lost while the store has its lease.
        assert!(tokio::time::timeout(3 * RENEWAL, again.lost()).await.is_err());
        kv.lease_revoke(again.lease).await.unwrap();
        again.lost().await;
        again.release().await;
        other.release().await;
        assert!(kv.list(LOCKS).await.unwrap().items.is_empty());
    }
}
