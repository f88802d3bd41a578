//! The rows that the entries of hosts are made from, read for many hosts with few calls: a component may have thousands.

use super::{HttpProof, PROOFS, PublishError, Published, Publisher};
use arco_model::component::Component;
use arco_model::id::ComponentId;
use arco_model::name::TenantName;
use arco_model::route::{TLS_AUTO, TLS_OFF, TLS_PASSTHROUGH};
use arco_store::sql::{CertificateRow, Query, RouteRow};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most hosts that are read together. Each is a parameter of a statement, of which SQLite takes 32,766.
pub(super) const AT_ONCE: usize = 500;

/// See the module.
#[derive(Default)]
pub(super) struct Rows {
    /// Routes of a host, oldest first.
    routes: HashMap<String, Vec<RouteRow>>,
    /// Components that a route leads to and that are there.
    components: BTreeSet<ComponentId>,
    /// Certificates that routes name, by tenant and name.
    named: BTreeMap<TenantName, HashMap<String, CertificateRow>>,
    /// Certificates that nobody has to name: those that were not issued automatically.
    unnamed: BTreeMap<TenantName, Vec<CertificateRow>>,
    /// What proves a host over plain HTTP just now.
    proofs: HashMap<String, HttpProof>,
}

/// What the routes of a host say about its certificate.
pub(super) enum Wanted {
    /// It needs none here.
    None,
    /// The best that there is.
    Best,
    /// This one; an automatic one may be replaced by the best while it is not there.
    Named { name: String, automatic: bool },
}

/// What these routes say about the certificate of their host.
pub(super) fn wanted(host: &str, routes: &[RouteRow]) -> Wanted {
    match routes.iter().find_map(|it| it.route.tls.certificate.as_deref()) {
        None => Wanted::Best,
        Some(TLS_OFF | TLS_PASSTHROUGH) => Wanted::None,
        Some(TLS_AUTO) => Wanted::Named { name: CertificateRow::automatic_name(host), automatic: true },
        Some(name) => Wanted::Named { name: name.to_owned(), automatic: false },
    }
}

impl Rows {
    /// The routes of a host, oldest first.
    pub(super) fn routes(&self, host: &str) -> &[RouteRow] {
        self.routes.get(host).map_or(&[], Vec::as_slice)
    }

    /// Whether a component that some route leads to is there.
    pub(super) fn is_there(&self, component: &ComponentId) -> bool {
        self.components.contains(component)
    }

    /// The certificate of a tenant by its name.
    pub(super) fn named(&self, tenant: &TenantName, name: &str) -> Option<&CertificateRow> {
        self.named.get(tenant)?.get(name)
    }

    /// The certificates of a tenant that nobody has to name.
    pub(super) fn unnamed(&self, tenant: &TenantName) -> &[CertificateRow] {
        self.unnamed.get(tenant).map_or(&[], Vec::as_slice)
    }

    /// What proves a host over plain HTTP just now.
    pub(super) fn proof(&self, host: &str) -> Option<&HttpProof> {
        self.proofs.get(host)
    }
}

impl Publisher {
    /// Reads what the entries of these hosts are made from; the routes of a component that is `leaving` are not there.
    pub(super) async fn read(
        &self,
        published: &Published,
        hosts: &[String],
        leaving: Option<&ComponentId>,
    ) -> Result<Rows, PublishError> {
        let mut rows = Rows::default();
        let parents = hosts.iter().map(|it| RouteRow::host_parent(it)).collect();
        // Also those of other hosts with the same parent: nobody asks for them.
        let found = self.metadata.list::<RouteRow>(&Query { parents, ..Query::default() }).await?.items;
        for row in found.into_iter().map(|it| it.value).filter(|it| leaving != Some(&it.component_id)) {
            rows.routes.entry(row.host.clone()).or_default().push(row);
        }
        let callees = rows.routes.values().flatten().flat_map(|it| it.route.callees());
        let callees: BTreeSet<_> = callees.map(|it| it.component.clone()).filter(|it| leaving != Some(it)).collect();
        for id in callees {
            if self.metadata.get::<Component>(id.as_str()).await?.is_some() {
                rows.components.insert(id);
            }
        }
        let (mut names, mut open) = (BTreeMap::<_, Vec<_>>::new(), BTreeSet::new());
        let mut proves = false;
        for host in hosts {
            let routes = rows.routes(host);
            let Some(tenant) = published.tenant(host, routes) else { continue };
            let wanted = wanted(host, routes);
            if let Wanted::Named { name, automatic } = &wanted {
                names.entry(tenant.clone()).or_default().push(CertificateRow::stored_name(name));
                proves |= automatic;
            }
            if matches!(wanted, Wanted::Best | Wanted::Named { automatic: true, .. }) {
                open.extend([tenant.clone(), TenantName::default_tenant()]);
            }
        }
        for (tenant, names) in names {
            let query = Query { names, ..Query::parent(tenant.as_str()) };
            let found = self.metadata.list::<CertificateRow>(&query).await?.items;
            rows.named.insert(tenant, found.into_iter().map(|it| (it.value.name.clone(), it.value)).collect());
        }
        for tenant in open {
            let query = Query { tags: vec![String::new()], ..Query::parent(tenant.as_str()) };
            let found = self.metadata.list::<CertificateRow>(&query).await?.items;
            rows.unnamed.insert(tenant, found.into_iter().map(|it| it.value).collect());
        }
        if proves {
            for item in self.kv.list(PROOFS).await?.items {
                let key = String::from_utf8_lossy(&item.key);
                if let (Some(host), Ok(proof)) = (key.strip_prefix(PROOFS), serde_json::from_slice(&item.value)) {
                    rows.proofs.insert(host.to_owned(), proof);
                }
            }
        }
        Ok(rows)
    }
}
