//! Rules that span components: bindings, quotas, hosts. Pure; every change is checked by them before it is written.

use super::act::route::STRANGER;
use arco_model::application::Tenant;
use arco_model::component::{Component, Power};
use arco_model::error::{ErrorKind, Problem};
use arco_model::id::ComponentId;
use arco_model::name::TenantName;
use arco_model::spec::Binding;
use arco_store::sql::RouteRow;
use std::collections::BTreeSet;

/// Longest DNS label (RFC 1035 §2.3.4).
const LABEL_MAX: usize = 63;

/// Components as they will be, and which of them changed.
pub(super) struct After<'a> {
    pub(super) all: Vec<&'a Component>,
    pub(super) changed: BTreeSet<&'a ComponentId>,
    pub(super) created: BTreeSet<&'a ComponentId>,
}

/// Memory that a component's instances ask for at most, in MiB; nothing while it is not to run.
pub(super) fn memory_asked_mb(component: &Component) -> u64 {
    match component.power {
        Power::On => u64::from(component.spec.most_replicas()).saturating_mul(component.spec.instance_memory_mb()),
        Power::Off | Power::Deleting { .. } => 0,
    }
}

fn leaving(component: &Component) -> bool {
    matches!(component.power, Power::Deleting { .. })
}

impl<'a> After<'a> {
    fn of_tenant(&self, tenant: &TenantName) -> impl Iterator<Item = &&'a Component> {
        self.all.iter().filter(move |it| it.tenant == *tenant && !leaving(it))
    }

    fn target(&self, tenant: &TenantName, binding: &Binding) -> Option<&&'a Component> {
        self.of_tenant(tenant).find(|it| it.application == binding.application && it.name == binding.component)
    }

    /// Bindings of what changed lead to components that exist, and nothing waits for itself.
    pub(super) fn bindings(&self, tenant: &TenantName) -> Result<(), Problem> {
        for component in self.of_tenant(tenant).filter(|it| self.changed.contains(&it.id)) {
            for binding in &component.spec.bindings {
                let name = format!("{}/{}", binding.application, binding.component);
                if self.target(tenant, binding).is_none() {
                    let message = format!("`{}` cannot be bound to `{name}`: there is none", component.reference());
                    return Err(Problem::invalid(
                        "binding_target_missing",
                        message,
                        "deploy that component first, or correct the binding",
                    ));
                }
            }
            if let Some(path) = self.path_back(tenant, component, component, &mut BTreeSet::new()) {
                let path: Vec<String> = path.iter().rev().map(|it| it.reference()).collect();
                let message = format!("bindings would make a circle: {} → {}", component.reference(), path.join(" → "));
                return Err(Problem::invalid(
                    "binding_cycle",
                    message,
                    "each would wait for the other to start: leave one binding out",
                ));
            }
        }
        Ok(())
    }

    /// The components on a way from `from` back to `to`, last first.
    fn path_back(
        &self,
        tenant: &TenantName,
        from: &'a Component,
        to: &Component,
        seen: &mut BTreeSet<&'a ComponentId>,
    ) -> Option<Vec<&'a Component>> {
        for binding in &from.spec.bindings {
            let Some(next) = self.target(tenant, binding) else { continue };
            if next.id == to.id {
                return Some(vec![next]);
            }
            if seen.insert(&next.id)
                && let Some(mut path) = self.path_back(tenant, next, to, seen)
            {
                path.push(next);
                return Some(path);
            }
        }
        None
    }

    /// Nothing that stays is bound to what is being deleted now.
    pub(super) fn deletions(&self, tenant: &TenantName) -> Result<(), Problem> {
        for gone in self.all.iter().filter(|it| leaving(it) && self.changed.contains(&it.id)) {
            let bound = |it: &&&Component| {
                it.spec.bindings.iter().any(|to| to.application == gone.application && to.component == gone.name)
            };
            let callers: Vec<String> = self.of_tenant(tenant).filter(bound).map(|it| it.reference()).collect();
            if !callers.is_empty() {
                let message = format!("`{}` cannot be deleted: bound to it: {}", gone.reference(), callers.join(", "));
                let advice =
                    format!("`arco unbind {} {}` first, or delete them together", callers[0], gone.reference());
                return Err(Problem::new(ErrorKind::Conflict, "bound_to", message, advice));
            }
        }
        Ok(())
    }

    /// Memory that the tenant asks for stays within its quota; what makes it less is always allowed.
    pub(super) fn quota(&self, tenant: &Tenant, before: &[&Component]) -> Result<(), Problem> {
        let asked = |components: &[&Component]| -> u64 {
            components.iter().filter(|it| it.tenant == tenant.name).map(|it| memory_asked_mb(it)).sum()
        };
        let (now, then) = (asked(before), asked(&self.all));
        if tenant.memory_quota_mb > 0 && then > tenant.memory_quota_mb && then > now {
            let message = format!(
                "tenant `{}` may use {} MB of memory; this change asks for {then} MB in all",
                tenant.name, tenant.memory_quota_mb
            );
            let advice = format!(
                "ask for fewer or smaller instances, stop others, or have an administrator raise the quota: \
                 `arco tenant set {} --memory-quota-mb N`",
                tenant.name
            );
            return Err(Problem::new(ErrorKind::LimitReached, "quota_reached", message, advice));
        }
        Ok(())
    }

    /// Default hosts of what is made now are free and fit into a DNS label.
    pub(super) fn hosts(&self, domain: &str, routes: &[RouteRow]) -> Result<(), Problem> {
        let created = self.all.iter().filter(|it| self.created.contains(&it.id));
        for (new, host) in created.flat_map(|it| it.default_hosts(domain).map(|host| (it, host))) {
            if let Some(label) = host.split('.').find(|it| it.len() > LABEL_MAX) {
                let message =
                    format!("the host `{host}` has a part of {} characters; DNS allows {LABEL_MAX}", label.len());
                return Err(Problem::invalid(
                    "host_too_long",
                    message,
                    "choose shorter names for application and component",
                ));
            }
            let other = self
                .all
                .iter()
                .find(|it| it.id != new.id && it.default_hosts(domain).contains(&host))
                .map(|it| (&it.tenant, it.reference()));
            let other = other.or_else(|| {
                let route = routes.iter().find(|it| it.host == host)?;
                Some((&route.tenant, format!("{}/{}", route.application, route.component)))
            });
            if let Some((tenant, other)) = other {
                // Who has it is told to those alone who may know.
                let other = if *tenant == new.tenant { format!("`{other}`") } else { STRANGER.to_owned() };
                let message = format!("the host `{host}` of `{}` already leads to {other}", new.reference());
                return Err(Problem::new(
                    ErrorKind::Conflict,
                    "host_taken",
                    message,
                    "choose another name for the component or application",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
