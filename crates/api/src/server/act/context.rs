//! Contexts of people: who has a certificate, and whose is revoked.
//!
//! A revoked certificate is good for nothing at once in this process, which keeps the list in memory; other processes
//! on the same store read it again every [`REREAD`]. TLS still accepts it: the answer says why it is refused.

use super::super::Api;
use super::super::error::ApiError;
use super::super::identity::Role;
use super::super::routes::not_here;
use crate::wire::{CertificateAnswer, CertificateRequest, ContextDocument};
use arco_daemon::pki::Subject;
use arco_model::artifact::Digest;
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::{ComponentName, TenantName};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::sql::{Batch, ContextRow, Query, SharedMetadata, SqlError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How old the list of revoked certificates may be.
const REREAD: Duration = Duration::from_secs(5);

/// Fingerprints of revoked certificates, as last read.
#[derive(Default)]
pub(in super::super) struct Revoked(tokio::sync::RwLock<Option<(Instant, HashSet<String>)>>);

impl Revoked {
    /// Whether a certificate is revoked. When the store does not answer, what was read last counts; without any, nobody
    /// is let in.
    pub(in super::super) async fn holds(
        &self,
        certificate: &CertificateDer<'_>,
        metadata: &SharedMetadata,
    ) -> Result<bool, ApiError> {
        let fingerprint = fingerprint(certificate);
        if let Some((read_at, known)) = &*self.0.read().await
            && read_at.elapsed() < REREAD
        {
            return Ok(known.contains(&fingerprint));
        }
        let mut kept = self.0.write().await;
        if kept.as_ref().is_none_or(|it| it.0.elapsed() >= REREAD) {
            match read(metadata).await {
                Ok(fresh) => *kept = Some((Instant::now(), fresh)),
                Err(error) if kept.is_none() => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "the list of revoked certificates is not read again"),
            }
        }
        Ok(kept.as_ref().is_some_and(|it| it.1.contains(&fingerprint)))
    }

    async fn forget(&self) {
        *self.0.write().await = None;
    }
}

async fn read(metadata: &SharedMetadata) -> Result<HashSet<String>, SqlError> {
    let now = clock::now();
    let rows = metadata.list::<ContextRow>(&Query::tag("revoked")).await?.items;
    Ok(rows.into_iter().map(|it| it.value).filter(|it| it.expires_at > now).map(|it| it.fingerprint).collect())
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Digest::of(certificate).hex().to_owned()
}

impl Api {
    pub(in super::super) async fn create_context(
        &self,
        request: CertificateRequest,
    ) -> Result<CertificateAnswer, ApiError> {
        let pki = self.deps.pki.as_ref().ok_or_else(|| not_here("the certificate authority"))?;
        let subject = subject(request)?;
        let turn = self.changing.lock().await?;
        for tenant in &subject.tenants {
            let name = TenantName::new(tenant.clone()).map_err(|it| Problem::internal(&it.to_string()))?;
            self.tenant_exists(&name).await?;
        }
        let leaf = pki.client(&subject)?;
        let der = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes())
            .map_err(|_| Problem::internal("read the certificate that was made"))?;
        let Subject { name, role, tenants } = subject;
        let (fingerprint, created_at, expires_at) = (fingerprint(&der), clock::now(), leaf.expires_at);
        // Noted before it is given away: what is not in the list cannot be revoked.
        let row = ContextRow { fingerprint, name, role, tenants, created_at, expires_at, revoked_at: None };
        turn.metadata().insert(&row).await?;
        let ca = pki.authority_pem().to_owned();
        Ok(CertificateAnswer { ca, certificate: leaf.certificate_pem, key: leaf.key_pem })
    }

    pub(in super::super) async fn contexts(&self) -> Result<Vec<ContextDocument>, ApiError> {
        let rows = self.deps.metadata.list::<ContextRow>(&Query::default()).await?.items;
        Ok(rows.iter().map(|it| document(&it.value)).collect())
    }

    /// Revokes every certificate of a person.
    pub(in super::super) async fn revoke_context(&self, name: &str) -> Result<Vec<ContextDocument>, ApiError> {
        let rows = self.deps.metadata.list::<ContextRow>(&Query::parent(name)).await?.items;
        if rows.is_empty() {
            let message = format!("no context was made for `{name}`");
            return Err(Problem::new(
                ErrorKind::NotFound,
                "not_found",
                message,
                "`arco context list` shows whose there are",
            )
            .into());
        }
        let (mut batch, mut documents) = (Batch::default(), Vec::new());
        for mut row in rows {
            if row.value.revoked_at.is_none() {
                row.value.revoked_at = Some(clock::now());
                batch.update(&row)?;
            }
            documents.push(document(&row.value));
        }
        self.deps.metadata.commit(batch).await?;
        self.revoked.forget().await;
        Ok(documents)
    }
}

fn subject(request: CertificateRequest) -> Result<Subject, Problem> {
    let bad = |message: String| {
        Problem::invalid(
            "certificate_invalid",
            message,
            "give a name, a role (viewer, developer, operator) and tenants",
        )
    };
    // The rule of component names serves for people as well: short, printable, nothing to quote.
    ComponentName::new(request.name.clone())
        .map_err(|_| bad(format!("`{}` is not a name of a-z, 0-9 and -", request.name)))?;
    match Role::parse(&request.role) {
        None => return Err(bad(format!("`{}` is not a role", request.role))),
        Some(Role::Admin) => return Err(bad("administrators use the context of the server itself".to_owned())),
        Some(Role::Viewer | Role::Developer | Role::Operator) => {}
    }
    if request.tenants.is_empty() {
        return Err(bad("no tenant is named".to_owned()));
    }
    for tenant in &request.tenants {
        TenantName::new(tenant.clone()).map_err(|it| bad(it.to_string()))?;
    }
    Ok(Subject { name: request.name, role: request.role, tenants: request.tenants })
}

fn document(row: &ContextRow) -> ContextDocument {
    ContextDocument {
        name: row.name.clone(),
        role: row.role.clone(),
        tenants: row.tenants.clone(),
        fingerprint: row.fingerprint.clone(),
        created_at: row.created_at.rfc3339(),
        expires_at: row.expires_at.rfc3339(),
        revoked_at: row.revoked_at.map(Timestamp::rfc3339),
    }
}
