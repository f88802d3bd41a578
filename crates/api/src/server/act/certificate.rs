//! Certificates of hosts, brought by people or issued by the controller. Gateways get them from the controller, which is
//! rung after each change.

use super::super::Api;
use super::super::error::ApiError;
use crate::wire::{HostCertificateDocument, SetHostCertificate};
use arco_daemon::certificate::{covers, inspect};
use arco_model::component::Component;
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::TenantName;
use arco_model::route::{TLS_AUTO, TLS_OFF, TLS_PASSTHROUGH};
use arco_store::clock;
use arco_store::sql::{Batch, CertificateRow, Query, Renewal, RouteRow, Versioned};

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
        let turn = self.changing.lock().await?;
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
            renewal: Renewal::default(),
        };
        match found {
            Some(mut found) => {
                affected.extend(std::mem::replace(&mut found.value, row.clone()).hosts);
                turn.metadata().update(&found).await?;
            }
            None => turn.metadata().insert(&row).await?,
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
        // Those that are asked for and not even begun.
        let asked = routes.iter().filter(|it| it.route.tls.certificate.as_deref() == Some(TLS_AUTO));
        for host in asked.map(|it| &it.host) {
            let name = CertificateRow::automatic_name(host);
            if documents.iter().all(|it| it.name != name) {
                documents.push(HostCertificateDocument {
                    name,
                    automatic: true,
                    hosts: vec![host.clone()],
                    used_by: vec![host.clone()],
                    problem: "it is being issued".to_owned(),
                    ..HostCertificateDocument::default()
                });
            }
        }
        documents.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(documents)
    }

    /// Has an automatic certificate issued anew at once, whatever its time is.
    pub(in super::super) async fn renew_certificate(
        &self,
        tenant: &TenantName,
        name: &str,
    ) -> Result<HostCertificateDocument, ApiError> {
        let turn = self.changing.lock().await?;
        let Some(found) = self.certificate_row(tenant, name).await? else { return Err(missing(name).into()) };
        if !found.value.automatic {
            let message = format!("certificate `{name}` was brought, the platform cannot renew it");
            let advice = "add the new one under the same name: `arco certificate add`";
            return Err(Problem::invalid("certificate_not_automatic", message, advice).into());
        }
        let now = clock::now();
        let renewed = turn.metadata().modify::<CertificateRow>(found.value.id.as_str(), |it| {
            (it.renewal.next_at, it.renewal.renew_at) = (now, now);
            true
        });
        let Some(row) = renewed.await? else { return Err(missing(name).into()) };
        self.wake_users(tenant, name, &row.hosts).await?;
        Ok(document(&row, &self.routes_of_tenant(tenant).await?))
    }

    async fn certificate_row(
        &self,
        tenant: &TenantName,
        name: &str,
    ) -> Result<Option<Versioned<CertificateRow>>, ApiError> {
        let found = self.deps.metadata.list::<CertificateRow>(&Query::parent(tenant.as_str())).await?.items;
        Ok(found.into_iter().find(|it| it.value.name == name))
    }

    /// What is wrong with the certificates of hosts, as sentences.
    pub(in super::super) async fn certificate_warnings(
        &self,
        tenant: &TenantName,
        hosts: &[&str],
    ) -> Result<Vec<String>, ApiError> {
        let query = Query { tags: vec!["automatic".to_owned()], ..Query::parent(tenant.as_str()) };
        let found = self.deps.metadata.list::<CertificateRow>(&query).await?.items;
        let bad = found.into_iter().map(|it| it.value).filter(|it| !it.renewal.problem.is_empty());
        let of_hosts = bad.filter(|it| it.hosts.iter().any(|host| hosts.contains(&host.as_str())));
        Ok(of_hosts
            .map(|it| {
                let what = if it.chain_pem.is_empty() { "issued" } else { "renewed" };
                let (hosts, Renewal { problem, advice, .. }) = (it.hosts.join(", "), &it.renewal);
                format!("the certificate of `{hosts}` was not {what}: {problem}; {advice}")
            })
            .collect())
    }

    /// Takes a certificate away that no route names.
    pub(in super::super) async fn delete_certificate(&self, tenant: &TenantName, name: &str) -> Result<(), ApiError> {
        let turn = self.changing.lock().await?;
        let Some(found) = self.certificate_row(tenant, name).await? else { return Err(missing(name).into()) };
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
        turn.metadata().commit(batch).await?;
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
            Some(TLS_AUTO) if !self.deps.config.acme.is_on() => {
                let advice = "set `agree_to_terms = true` (and `contact`) in `[acme]` of the server's settings, or bring one: `arco certificate add NAME --cert @FILE --key @FILE`";
                Err(bad("acme_off", "automatic certificates are not switched on".to_owned(), advice).into())
            }
            Some(TLS_AUTO) if host.contains('*') || !host.contains('.') || host.parse::<std::net::IpAddr>().is_ok() => {
                let message =
                    format!("no certificate for `{host}` can be issued automatically: only for one full name");
                let advice = "bring one: `arco certificate add NAME --cert @FILE --key @FILE`";
                Err(bad("acme_host", message, advice).into())
            }
            Some(TLS_AUTO) => Ok(()),
            Some(TLS_OFF) if tls.redirect || tls.client_ca.is_some() => {
                let message = format!("`{host}` cannot do without TLS and ask for it at once");
                Err(bad("tls_contradiction", message, "leave out `--tls off`, or the other TLS flags").into())
            }
            Some(TLS_OFF | TLS_PASSTHROUGH) => Ok(()),
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

fn missing(name: &str) -> Problem {
    Problem::new(
        ErrorKind::NotFound,
        "not_found",
        format!("certificate `{name}` does not exist"),
        "`arco certificate list` shows which there are",
    )
}

fn document(row: &CertificateRow, routes: &[RouteRow]) -> HostCertificateDocument {
    let mut used_by: Vec<String> = routes
        .iter()
        .filter(|it| match it.route.tls.certificate.as_deref() {
            None => !row.automatic && covers(&row.hosts, &it.host),
            Some(TLS_AUTO) => CertificateRow::automatic_name(&it.host) == row.name,
            named => named == Some(&row.name),
        })
        .map(|it| it.host.clone())
        .collect();
    used_by.sort();
    used_by.dedup();
    let there = !row.chain_pem.is_empty();
    let left = row.not_after.0.cast_signed() - clock::now().0.cast_signed();
    HostCertificateDocument {
        name: row.name.clone(),
        automatic: row.automatic,
        hosts: row.hosts.clone(),
        issuer: row.issuer.clone(),
        not_after: if there { row.not_after.rfc3339() } else { String::new() },
        days_left: if there { left.div_euclid(DAY_MS) } else { 0 },
        used_by,
        problem: row.renewal.problem.clone(),
        advice: row.renewal.advice.clone(),
        renews_at: if there && row.automatic { row.renewal.renew_at.rfc3339() } else { String::new() },
    }
}

/// A name that people can tell from `auto` and `off`.
fn check_name(name: &str) -> Result<(), Problem> {
    let fine = (1..=60).contains(&name.len())
        && name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || b"-._".contains(&it))
        && ![TLS_AUTO, TLS_OFF, TLS_PASSTHROUGH].contains(&name);
    if fine {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    let advice = "give 1 to 60 of a-z, 0-9, `-`, `.` and `_`; `auto`, `off` and `passthrough` mean something else";
    Err(Problem::invalid("name_invalid", format!("`{shown}` is not a name for a certificate"), advice))
}
