//! What workloads of a namespace that are not ours would be as components: read, and translated purely.
//!
//! What must hold: nothing is changed here; whatever a component cannot be is named, with what to do; nothing becomes
//! reachable from outside that was not; values of Secrets are not read. It is asked with the rights of whoever runs it.

mod translate;

use crate::cluster::{Cluster, failed};
use crate::names;
use arco_config::KubernetesConfig;
use arco_model::manifest::ComponentManifest;
use arco_model::name::ComponentName;
use arco_orchestrator::Error;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Resource;
use kube::api::{Api, ListParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// A workload as a component.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Adopted {
    /// The workload: `Deployment/web`.
    pub from: String,
    /// What the component would be; its source is the image.
    pub component: ComponentManifest,
    /// What of the workload it would not have, and what to do.
    pub lost: Vec<String>,
}

/// What is in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Found {
    /// Components by name.
    pub components: BTreeMap<ComponentName, Adopted>,
    /// Objects that become no component, and what to do.
    pub left: Vec<String>,
}

/// Objects of a namespace that count.
#[derive(Default)]
struct Objects {
    deployments: Vec<Deployment>,
    stateful_sets: Vec<StatefulSet>,
    services: Vec<Service>,
    ingresses: Vec<Ingress>,
    claims: Vec<PersistentVolumeClaim>,
    config_maps: Vec<ConfigMap>,
    autoscalers: Vec<HorizontalPodAutoscaler>,
    /// `Kind/name` of workloads that have no counterpart.
    others: Vec<String>,
}

/// Reads a namespace.
pub async fn read(config: &KubernetesConfig, namespace: &str) -> Result<Found, Error> {
    let cluster = Cluster::connect(config).await?;
    let known = Api::<Namespace>::all(cluster.client.clone()).get_opt(namespace).await;
    if known.map_err(|it| failed(format!("read the namespace `{namespace}`"), &it))?.is_none() {
        return Err(Error::Refused(format!("the cluster has no namespace `{namespace}`")));
    }
    let mut objects = Objects {
        deployments: list(&cluster, namespace).await?,
        stateful_sets: list(&cluster, namespace).await?,
        services: list(&cluster, namespace).await?,
        ingresses: list(&cluster, namespace).await?,
        claims: list(&cluster, namespace).await?,
        config_maps: list(&cluster, namespace).await?,
        autoscalers: list(&cluster, namespace).await?,
        others: Vec::new(),
    };
    objects.others.extend(by_themselves(&list::<DaemonSet>(&cluster, namespace).await?));
    objects.others.extend(by_themselves(&list::<CronJob>(&cluster, namespace).await?));
    objects.others.extend(by_themselves(&list::<Job>(&cluster, namespace).await?));
    objects.others.extend(by_themselves(&list::<ReplicaSet>(&cluster, namespace).await?));
    objects.others.extend(by_themselves(&list::<Pod>(&cluster, namespace).await?));
    Ok(translate::found(&objects))
}

async fn list<K>(cluster: &Cluster, namespace: &str) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let foreign = ListParams::default().labels(&format!("{}!={}", names::MANAGED_BY, names::OURS));
    let listed = Api::<K>::namespaced(cluster.client.clone(), namespace).list(&foreign).await;
    let step = || format!("list {} of the namespace `{namespace}`", K::plural(&()));
    listed.map(|it| it.items).map_err(|it| failed(step(), &it))
}

/// `Kind/name` of objects that no other object made.
fn by_themselves<K: Resource<DynamicType = ()>>(objects: &[K]) -> Vec<String> {
    let made = objects.iter().map(Resource::meta).filter(|it| it.owner_references.as_ref().is_none_or(Vec::is_empty));
    made.map(|it| format!("{}/{}", K::kind(&()), it.name.as_deref().unwrap_or_default())).collect()
}
