//! The end of a tenant in the cluster: its namespace goes when nothing of others is in it, else what is ours goes out of it.
//!
//! What must hold: nothing is touched that belongs to a component, as a volume that was kept, or to others; a namespace is
//! deleted only as it was looked at; each step may be done again. Others are known by the kinds of [`LOOKED_AT`]: an account
//! that may list everything would be too much for this. Not here: which tenants are to go (rows say it).

use super::Tenants;
use crate::cluster::{Verdict, failed, verdict};
use crate::names;
use crate::render::{Kind, Object};
use crate::seen::convert::{owner, word};
use arco_model::name::TenantName;
use arco_orchestrator::Error;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DeleteParams, Preconditions};
use kube::core::GroupVersionKind;
use serde_json::{Map, json};
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// Group with version, kind, and plural of what a namespace may hold that somebody could miss.
const LOOKED_AT: [(&str, &str, &str); 18] = [
    ("v1", "Pod", "pods"),
    ("v1", "Service", "services"),
    ("v1", "Secret", "secrets"),
    ("v1", "ConfigMap", "configmaps"),
    ("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("v1", "ResourceQuota", "resourcequotas"),
    ("v1", "LimitRange", "limitranges"),
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("apps/v1", "DaemonSet", "daemonsets"),
    ("batch/v1", "Job", "jobs"),
    ("batch/v1", "CronJob", "cronjobs"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ("networking.k8s.io/v1", "Ingress", "ingresses"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("rbac.authorization.k8s.io/v1", "Role", "roles"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
];
/// What a tenant has itself.
const OWN: [Kind; 3] = [Kind::Secret, Kind::Quota, Kind::NetworkPolicy];
/// What the cluster puts into each namespace.
const OF_THE_CLUSTER: [(&str, &str); 2] = [("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")];
/// Whose token a secret is (Kubernetes' own annotation); older clusters made one for each account.
const TOKEN_OF: &str = "kubernetes.io/service-account.name";
/// Most objects that are named to people.
const NAMED: usize = 5;

/// Whose an object is.
#[derive(Debug, PartialEq)]
enum Whose {
    /// The tenant's own, made by us.
    Tenant(Kind),
    /// Of a component.
    Component,
    /// It is in each namespace.
    Cluster,
    Others,
}

fn whose(kind: &str, meta: &ObjectMeta, is_ours: bool) -> Whose {
    let name = meta.name.as_deref().unwrap_or_default();
    if is_ours {
        return match OWN.into_iter().find(|it| it.wire().1 == kind) {
            _ if owner(meta).is_some() => Whose::Component,
            Some(own) => Whose::Tenant(own),
            None => Whose::Others,
        };
    }
    let token = kind == "Secret" && word(&meta.annotations, TOKEN_OF) == "default";
    if token || OF_THE_CLUSTER.contains(&(kind, name)) { Whose::Cluster } else { Whose::Others }
}

/// What becomes of a namespace.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It goes with all that is in it.
    Goes,
    /// It stays because of these; what is ours goes.
    Stays { ours: Vec<(Kind, String)>, others: Vec<String> },
    /// These of components must go first.
    Waits(Vec<String>),
}

fn fate(found: Vec<(&str, String, Whose)>) -> Fate {
    let (mut ours, mut others, mut components) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, name, whose) in found {
        match whose {
            Whose::Tenant(kind) => ours.push((kind, name)),
            Whose::Component => components.push(format!("{kind} `{name}`")),
            Whose::Cluster => {}
            Whose::Others => others.push(format!("{kind} `{name}`")),
        }
    }
    match (components.is_empty(), others.is_empty()) {
        (false, _) => Fate::Waits(components),
        (true, true) => Fate::Goes,
        (true, false) => Fate::Stays { ours, others },
    }
}

/// The first of them, and how many more there are.
fn named(all: &[String]) -> String {
    let first = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

impl Tenants {
    /// Tenants that have a namespace of ours.
    pub(crate) async fn all(&self) -> Result<BTreeSet<TenantName>, kube::Error> {
        let selector = names::platform_selector(&self.config.namespace_prefix);
        let found = self.cluster.labelled(Kind::Namespace, &selector).await?;
        let there = found.iter().filter(|it| it.deletion_timestamp.is_none());
        Ok(there.filter_map(|it| word(&it.labels, names::TENANT).parse().ok()).collect())
    }

    /// Removes what a tenant has; says what stays of it, and why. `acting`: whether this may still be done, asked before each
    /// change.
    pub(crate) async fn remove(
        &self,
        tenant: &TenantName,
        acting: impl Fn() -> Result<(), Error>,
    ) -> Result<Option<String>, Error> {
        let namespace = names::namespace(&self.config.namespace_prefix, tenant);
        let step = || format!("remove the namespace `{namespace}`");
        // Nobody here makes it meanwhile.
        let _making = self.making.lock().await;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
        let there = self.cluster.get(Kind::Namespace, "", &namespace).await.map_err(|it| failed(step(), &it))?;
        let is_left = |it: &ObjectMeta| self.cluster.is_ours(it) && it.deletion_timestamp.is_none();
        let Some(there) = there.map(|it| it.metadata).filter(is_left) else { return Ok(None) };
        match fate(self.found(&namespace).await?) {
            Fate::Waits(components) => {
                Err(Error::failed(step(), format!("components still have {} in it", named(&components))))
            }
            Fate::Goes => {
                acting()?;
                let seen = Preconditions { uid: there.uid, resource_version: there.resource_version };
                let how = DeleteParams::default().preconditions(seen);
                let done = self.cluster.delete(Kind::Namespace, "", &namespace, &how).await;
                done.map_err(|it| failed(step(), &it))?;
                Ok(None)
            }
            Fate::Stays { ours, others } => {
                for (kind, name) in ours {
                    acting()?;
                    let done = self.cluster.delete(kind, &namespace, &name, &DeleteParams::default()).await;
                    done.map_err(|it| failed(format!("delete {} `{name}`", kind.wire().1), &it))?;
                }
                // Our labels last: by them it is found again when this is cut off. Applied without them, they are gone.
                acting()?;
                let bare = Object::new(Kind::Namespace, "", &namespace, Map::new(), json!({}));
                self.cluster.apply(&bare).await.map_err(|it| failed(step(), &it))?;
                let others = named(&others);
                Ok(Some(format!(
                    "the namespace `{namespace}` stays, without what was the platform's: others have {others} in it; when nobody needs that, `kubectl delete namespace {namespace}`"
                )))
            }
        }
    }

    /// What is in a namespace, and whose.
    async fn found(&self, namespace: &str) -> Result<Vec<(&'static str, String, Whose)>, Error> {
        let mut found = Vec::new();
        for (version, kind, plural) in LOOKED_AT {
            let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
            let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
            let all = match self.cluster.everything(&resource, namespace).await {
                Err(error) if verdict(&error) == Verdict::Missing => continue, // this cluster has no such kind
                other => {
                    other.map_err(|it| failed(format!("look for {plural} in the namespace `{namespace}`"), &it))?
                }
            };
            found.extend(all.into_iter().map(|it| {
                let whose = whose(kind, &it, self.cluster.is_ours(&it));
                (kind, it.name.unwrap_or_default(), whose)
            }));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::RULES;

    #[test]
    fn whose_an_object_is_its_labels_and_name_say() {
        let of = |kind: &str, name: &str, ours: bool, component: bool, token_of: &str| {
            let mut meta = json!({ "name": name, "annotations": { (TOKEN_OF): token_of }, "labels": {} });
            if component {
                meta["labels"][names::COMPONENT] = "01h00000000000000000".into();
            }
            whose(kind, &serde_json::from_value(meta).unwrap(), ours)
        };
        for (kind, name, ours, component, token_of, wanted) in [
            ("Secret", "arco-registry", true, false, "", Whose::Tenant(Kind::Secret)),
            ("ResourceQuota", "arco", true, false, "", Whose::Tenant(Kind::Quota)),
            ("NetworkPolicy", "arco-closed", true, false, "", Whose::Tenant(Kind::NetworkPolicy)),
            ("NetworkPolicy", "shop-web", true, true, "", Whose::Component),
            ("PersistentVolumeClaim", "files", true, true, "", Whose::Component),
            ("ConfigMap", "odd", true, false, "", Whose::Others), // nobody here makes such a thing
            ("Secret", "arco-registry", false, false, "", Whose::Others),
            ("Pod", "labelled", false, true, "", Whose::Others),
            ("ConfigMap", "kube-root-ca.crt", false, false, "", Whose::Cluster),
            ("Secret", "kube-root-ca.crt", false, false, "", Whose::Others),
            ("ServiceAccount", "default", false, false, "", Whose::Cluster),
            ("ServiceAccount", "deployer", false, false, "", Whose::Others),
            ("Secret", "default-token-x", false, false, "default", Whose::Cluster),
            ("Secret", "deployer-token-x", false, false, "deployer", Whose::Others),
        ] {
            assert_eq!(of(kind, name, ours, component, token_of), wanted, "{kind} {name}");
        }
    }

    #[test]
    fn what_components_have_comes_before_what_others_have() {
        let secret = || ("Secret", "arco-registry".to_owned(), Whose::Tenant(Kind::Secret));
        let default = || ("ServiceAccount", "default".to_owned(), Whose::Cluster);
        let claim = || ("PersistentVolumeClaim", "files".to_owned(), Whose::Component);
        let mine = || ("ConfigMap", "mine".to_owned(), Whose::Others);
        assert_eq!(fate(vec![]), Fate::Goes);
        assert_eq!(fate(vec![secret(), default()]), Fate::Goes);
        let ours = vec![(Kind::Secret, "arco-registry".to_owned())];
        let others = vec!["ConfigMap `mine`".to_owned()];
        assert_eq!(fate(vec![secret(), mine(), default()]), Fate::Stays { ours, others });
        let waits = Fate::Waits(vec!["PersistentVolumeClaim `files`".to_owned()]);
        assert_eq!(fate(vec![secret(), mine(), claim()]), waits);
    }

    #[test]
    fn of_many_objects_some_are_named() {
        let all: Vec<String> = (0..7).map(|it| it.to_string()).collect();
        assert_eq!((named(&all[..5]).as_str(), named(&all).as_str()), ("0, 1, 2, 3, 4", "0, 1, 2, 3, 4 and 2 more"));
    }

    #[test]
    fn everything_that_is_looked_for_may_be_listed() {
        for (version, _, plural) in LOOKED_AT {
            let group = version.rsplit_once('/').map_or("", |it| it.0);
            let may = RULES
                .iter()
                .any(|it| it.group == group && it.resources.contains(&plural) && it.verbs.contains(&"list"));
            assert!(may, "{plural}");
        }
    }
}
