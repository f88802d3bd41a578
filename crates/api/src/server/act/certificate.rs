//! Certificates of hosts, brought by people. (`auto` is refused as long as nothing issues any.) Gateways get them from the controller, which is
//! rung after each change.

use super::super::Api;
use super::super::error::ApiError;
use crate::wire::{HostCertificateDocument, SetHostCertificate};
use arco_daemon::certificate::{covers, inspect};
use arco_model::component::Component;
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::TenantName;
use arco_model::route::{TLS_AUTO, TLS_OFF};
use arco_store::clock;
use arco_store::sql::{Batch, CertificateRow, Query, RouteRow};

const DAY_MS: i64 = 86_400_000;

impl Api {
    /// Keeps a certificate, new or in place of the one of that name.
    pub(in super::super) async fn set_certificate(
        &self,
        tenant: &TenantName,
        name: &str,
        request: SetHostCertificate,
    ) -> Result<HostCertificateDocument, ApiError> {
        self.tenant_exists(tenant).await?;
        check_name(name)?;
        let now = clock::now();
        let facts = inspect(&request.chain, &request.key.0, now)?;
        let _one_at_a_time = self.changing.lock().await;
        let found = self.deps.metadata.find::<CertificateRow>(tenant.as_str(), name).await?;
        let id = found.as_ref().map_or_else(clock::fresh, |it| it.value.id.clone());
        let sealed = self
            .deps
            .secrets
            .seal(&CertificateRow::key_context(&id), request.key.0.as_bytes())
            .map_err(|_| Problem::internal("seal the key"))?;
        let mut affected = facts.hosts.clone();
        let row = CertificateRow {
            id,
            tenant: tenant.clone(),
            name: name.to_owned(),
            automatic: false,
            hosts: facts.hosts,
            issuer: facts.issuer,
            not_before: facts.not_before,
            not_after: facts.not_after,
            chain_pem: request.chain,
            key_id: sealed.key_id,
            sealed_key: sealed.text,
            created_at: found.as_ref().map_or(now, |it| it.value.created_at),
            issued_at: now,
        };
        match found {
            Some(mut found) => {
                affected.extend(std::mem::replace(&mut found.value, row.clone()).hosts);
                self.deps.metadata.update(&found).await?;
            }
            None => self.deps.metadata.insert(&row).await?,
        }
        self.wake_users(tenant, name, &affected).await?;
        let routes = self.routes_of_tenant(tenant).await?;
        Ok(document(&row, &routes))
    }

    /// Certificates of a tenant, with who uses them.
    pub(in super::super) async fn certificates(
        &self,
        tenant: &TenantName,
    ) -> Result<Vec<HostCertificateDocument>, ApiError> {
        self.tenant_exists(tenant).await?;
        let rows = self.deps.metadata.list::<CertificateRow>(&Query::parent(tenant.as_str())).await?.items;
        let routes = self.routes_of_tenant(tenant).await?;
        let mut documents: Vec<_> = rows.iter().map(|it| document(&it.value, &routes)).collect();
        documents.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(documents)
    }

    /// Takes a certificate away that no route names.
    pub(in super::super) async fn delete_certificate(&self, tenant: &TenantName, name: &str) -> Result<(), ApiError> {
        let _one_at_a_time = self.changing.lock().await;
        let found = self.deps.metadata.find::<CertificateRow>(tenant.as_str(), name).await?;
        let found = found.ok_or_else(|| {
            Problem::new(
                ErrorKind::NotFound,
                "not_found",
                format!("certificate `{name}` does not exist"),
                "`arco certificate list` shows which there are",
            )
        })?;
        let routes = self.routes_of_tenant(tenant).await?;
        let by_name = routes.iter().filter(|it| match it.route.tls.certificate.as_deref() {
            Some(TLS_AUTO) => CertificateRow::automatic_name(&it.host) == name,
            named => named == Some(name),
        });
        let users: Vec<_> = by_name.map(|it| it.host.as_str()).collect();
        if !users.is_empty() {
            return Err(Problem::new(
                ErrorKind::Conflict,
                "certificate_in_use",
                format!("certificate `{name}` is named by the routes of {}", users.join(", ")),
                "give these another first: `arco route set APP/COMPONENT DOMAIN --tls …`",
            )
            .into());
        }
        let mut batch = Batch::default();
        batch.delete(&found);
        self.deps.metadata.commit(batch).await?;
        self.wake_users(tenant, name, &found.value.hosts).await
    }

    /// Fails when a route could not be served as it says: a certificate that is not there or does not cover the host, or
    /// a redirect to an HTTPS that nobody serves.
    pub(super) async fn certificate_for(
        &self,
        tenant: &TenantName,
        host: &str,
        tls: &arco_model::route::RouteTls,
    ) -> Result<(), ApiError> {
        let bad = |code: &str, message: String, advice: &str| Problem::invalid(code, message, advice);
        match tls.certificate.as_deref() {
            Some(TLS_AUTO) => {
                let advice = "bring one: `arco certificate add NAME --cert @FILE --key @FILE`";
                Err(bad("acme_off", "no certificates are issued automatically here".to_owned(), advice).into())
            }
            Some(TLS_OFF) if tls.redirect || tls.client_ca.is_some() => {
                let message = format!("`{host}` cannot do without TLS and ask for it at once");
                Err(bad("tls_contradiction", message, "leave out `--tls off`, or the other TLS flags").into())
            }
            Some(TLS_OFF) => Ok(()),
            Some(name) => {
                let found = self.deps.metadata.find::<CertificateRow>(tenant.as_str(), name).await?;
                let Some(found) = found else {
                    let message = format!("certificate `{name}` does not exist");
                    return Err(bad("certificate_missing", message, "add it first: `arco certificate add`").into());
                };
                if covers(&found.value.hosts, host) {
                    return Ok(());
                }
                let message = format!("certificate `{name}` is for {}, not for `{host}`", found.value.hosts.join(", "));
                Err(bad("certificate_mismatch", message, "choose another, or leave `--tls` out to take one that fits")
                    .into())
            }
            None if !tls.redirect && tls.client_ca.is_none() => Ok(()),
            None => {
                let own = self.deps.metadata.list::<CertificateRow>(&Query::parent(tenant.as_str())).await?.items;
                let all = TenantName::default_tenant();
                let shared = self.deps.metadata.list::<CertificateRow>(&Query::parent(all.as_str())).await?.items;
                if own.iter().chain(&shared).any(|it| covers(&it.value.hosts, host)) {
                    return Ok(());
                }
                let message = format!("no certificate covers `{host}`: it could not be served over HTTPS");
                Err(bad(
                    "certificate_missing",
                    message,
                    "bring one first: `arco certificate add NAME --cert @FILE --key @FILE`",
                )
                .into())
            }
        }
    }

    async fn routes_of_tenant(&self, tenant: &TenantName) -> Result<Vec<RouteRow>, ApiError> {
        let rows = self.deps.metadata.list::<RouteRow>(&Query::default()).await?.items;
        Ok(rows.into_iter().map(|it| it.value).filter(|it| it.tenant == *tenant).collect())
    }

    /// Rings the controller for every component whose hosts a certificate is or was for, or that names it.
    async fn wake_users(&self, tenant: &TenantName, name: &str, hosts: &[String]) -> Result<(), ApiError> {
        let domain = &self.deps.config.server.domain;
        // Certificates of the default tenant are the platform's: they serve everybody's hosts.
        let everybody = *tenant == TenantName::default_tenant();
        let routes = self.deps.metadata.list::<RouteRow>(&Query::default()).await?.items;
        let components = self.deps.metadata.list::<Component>(&Query::default()).await?.items;
        let affected = |component: &Component| {
            let mut own = routes.iter().map(|it| &it.value).filter(|it| it.component_id == component.id);
            let named = |it: &RouteRow| it.tenant == *tenant && it.route.tls.certificate.as_deref() == Some(name);
            (everybody || component.tenant == *tenant)
                && (own.any(|it| named(it) || covers(hosts, &it.host))
                    || component.default_hosts(domain).iter().any(|it| covers(hosts, it)))
        };
        let affected: Vec<_> = components.into_iter().filter(|it| affected(&it.value)).map(|it| it.value.id).collect();
        for component in &affected {
            self.wake(component).await?;
        }
        Ok(())
    }
}

fn document(row: &CertificateRow, routes: &[RouteRow]) -> HostCertificateDocument {
    let mut used_by: Vec<String> = routes
        .iter()
        .filter(|it| match it.route.tls.certificate.as_deref() {
            None => covers(&row.hosts, &it.host),
            Some(TLS_AUTO) => CertificateRow::automatic_name(&it.host) == row.name,
            named => named == Some(&row.name),
        })
        .map(|it| it.host.clone())
        .collect();
    used_by.sort();
    used_by.dedup();
    let left = row.not_after.0.cast_signed() - clock::now().0.cast_signed();
    HostCertificateDocument {
        name: row.name.clone(),
        automatic: row.automatic,
        hosts: row.hosts.clone(),
        issuer: row.issuer.clone(),
        not_after: row.not_after.rfc3339(),
        days_left: left.div_euclid(DAY_MS),
        used_by,
        problem: String::new(),
    }
}

/// A name that people can tell from `auto` and `off`.
fn check_name(name: &str) -> Result<(), Problem> {
    let fine = (1..=60).contains(&name.len())
        && name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || b"-._".contains(&it))
        && ![TLS_AUTO, TLS_OFF].contains(&name);
    if fine {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    let advice = "give 1 to 60 of a-z, 0-9, `-`, `.` and `_`; `auto` and `off` mean something else";
    Err(Problem::invalid("name_invalid", format!("`{shown}` is not a name for a certificate"), advice))
}
