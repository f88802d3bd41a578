//! Names at and below the platform's own domain: whose they are, whether somebody has them already or not. Pure.
//!
//! What must hold: nobody gets requests for, or sets cookies below, another's application; whoever deploys an
//! application later finds its names free. Nothing said here tells whether somebody else's application exists.

use arco_model::component::Component;
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::TenantName;

/// Fails when `component` may not have a route for `host` because of `domain`; `tenants` are all that there are.
pub(super) fn check(
    host: &str,
    domain: &str,
    component: &Component,
    tenants: &[TenantName],
    is_admin: bool,
) -> Result<(), Problem> {
    let domain = domain.to_ascii_lowercase();
    // Also one further up, which the domain falls under.
    let takes_all = host.strip_prefix("*.").is_some_and(|it| domain == it || domain.ends_with(&format!(".{it}")));
    if host == domain || takes_all {
        let message = format!("`{host}` takes names of the platform's own domain; only an administrator may");
        return if is_admin { Ok(()) } else { Err(reserved(message, component, &domain)) };
    }
    let Some(below) = host.strip_suffix(domain.as_str()).and_then(|it| it.strip_suffix('.')) else { return Ok(()) };
    let labels: Vec<&str> = below.split('.').collect();
    let own = match &labels[..] {
        [label] => is_admin || free_label(label, &component.tenant, tenants),
        labels => is_below(labels, component, tenants),
    };
    if own {
        return Ok(());
    }
    let of = component.reference();
    let message = format!("`{host}` is not a name of `{of}`: those below `{domain}` belong to applications");
    Err(reserved(message, component, &domain))
}

/// Whether labels end with the application, and the tenant unless it is the default one.
fn is_below(labels: &[&str], component: &Component, tenants: &[TenantName]) -> bool {
    let application = component.application.as_str();
    if component.tenant == TenantName::default_tenant() {
        let [names @ .., last] = labels else { return false };
        // Where a tenant is called like the application, what is further below is the tenant's.
        let is_tenant = tenants.iter().any(|it| it.as_str() == *last && *it != component.tenant);
        return *last == application && (!is_tenant || matches!(names, [one] if *one != "*"));
    }
    matches!(labels, [_, .., of, tenant] if *of == application && *tenant == component.tenant.as_str())
}

/// Whether one label cannot become the short default host (`web-shop-team`) of somebody else's component.
fn free_label(label: &str, tenant: &TenantName, tenants: &[TenantName]) -> bool {
    let ends_with = |it: &TenantName| label.strip_suffix(it.as_str()).is_some_and(|it| it.ends_with('-'));
    if *tenant == TenantName::default_tenant() {
        !tenants.iter().any(|it| it != tenant && ends_with(it))
    } else {
        !label.contains('-') || ends_with(tenant)
    }
}

fn reserved(message: String, component: &Component, domain: &str) -> Problem {
    let default = TenantName::default_tenant();
    let tenant = if component.tenant == default { String::new() } else { format!(".{}", component.tenant) };
    let advice = format!("choose `NAME.{}{tenant}.{domain}`, or a host of a domain of your own", component.application);
    Problem::new(ErrorKind::Denied, "host_reserved", message, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::sample;

    fn component(tenant: &str, application: &str) -> Component {
        let (tenant, application) = (tenant.parse().unwrap(), application.parse().unwrap());
        Component { tenant, application, ..sample::component() }
    }

    #[test]
    fn names_below_the_domain_belong_to_their_applications() {
        let tenants: Vec<TenantName> = ["default", "team-b", "shop"].map(|it| TenantName::new(it).unwrap()).into();
        for (owner, host, person, admin) in [
            ("default/demo", "www.other.test", true, true),
            ("default/demo", "notapps.test", true, true),
            // The domain, and what it falls under.
            ("default/demo", "apps.test", false, true),
            ("default/demo", "*.apps.test", false, true),
            ("team-b/own", "*.test", false, true),
            ("team-b/own", "test", true, true),
            // Names of applications.
            ("default/demo", "web.demo.apps.test", true, true),
            ("default/demo", "a.b.demo.apps.test", true, true),
            ("default/demo", "*.demo.apps.test", true, true),
            ("default/demo", "web.future.apps.test", false, false),
            ("default/demo", "a.own.team-b.apps.test", false, false),
            ("team-b/own", "a.own.team-b.apps.test", true, true),
            ("team-b/own", "*.own.team-b.apps.test", true, true),
            ("team-b/own", "*.team-b.apps.test", false, false),
            ("team-b/own", "own.team-b.apps.test", false, false),
            ("team-b/own", "foo.demo.apps.test", false, false),
            ("team-b/own", "foo.own.apps.test", false, false),
            ("team-b/own", "foo.other.team-b.apps.test", false, false),
            // An application that is called like a tenant.
            ("default/shop", "web.shop.apps.test", true, true),
            ("default/shop", "*.shop.apps.test", false, false),
            ("default/shop", "a.b.shop.apps.test", false, false),
            // One label: not the short default host of somebody else, whether that is there or not.
            ("default/demo", "demo.apps.test", true, true),
            ("default/demo", "web-demo.apps.test", true, true),
            ("default/demo", "web-own-team-b.apps.test", false, true),
            ("team-b/own", "own.apps.test", true, true),
            ("team-b/own", "web-own-team-b.apps.test", true, true),
            ("team-b/own", "web-future.apps.test", false, true),
        ] {
            let (tenant, application) = owner.split_once('/').unwrap();
            let component = component(tenant, application);
            for (is_admin, expected) in [(false, person), (true, admin)] {
                let checked = check(host, "Apps.test", &component, &tenants, is_admin);
                assert_eq!(checked.is_ok(), expected, "{owner} {host} {is_admin}");
                assert!(checked.is_err_and(|it| it.code == "host_reserved") || expected);
            }
        }
        let said = check("x.demo.apps.test", "apps.test", &component("team-b", "own"), &tenants, false).unwrap_err();
        assert!(said.advice.contains("`NAME.own.team-b.apps.test`"), "{said:?}");
    }
}
