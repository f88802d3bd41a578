//! `ComponentScale`, a kind of ours: how many instances a component is to have, for who scales it.
//!
//! A HorizontalPodAutoscaler (or KEDA, or `kubectl scale`) writes its `spec.replicas` by the scale subresource, and the
//! driver reads it: so the number of a workload's pods has one owner, the driver, and no pod ends before it has drained.
//! What must hold: the platform writes `spec.replicas` once, when it makes the object.

use crate::cluster::{Cluster, Verdict, verdict, words};
use crate::render::{Kind, Object};
use arco_model::spec::REPLICAS_MAX;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::Instant;

/// Group of the kind.
pub(crate) const GROUP: &str = "arco.internal";
const VERSION: &str = "v1";
const KIND: &str = "ComponentScale";
const PLURAL: &str = "componentscales";

/// How long the cluster may take to serve a kind that it has just learnt, and to say whether it does.
const LEARNING: Duration = Duration::from_secs(120);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(200);

/// How many instances a component is to have.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ComponentScale {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: ScaleSpec,
}

/// What is asked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ScaleSpec {
    /// How many.
    #[serde(default)]
    pub(crate) replicas: u32,
}

impl Resource for ComponentScale {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The definition of the kind, for the cluster.
pub(crate) fn definition() -> Value {
    let replicas = json!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": REPLICAS_MAX });
    let schema = json!({ "type": "object", "required": ["spec"], "properties": {
        "spec": { "type": "object", "required": ["replicas"], "properties": { "replicas": replicas } },
        "status": { "type": "object", "properties": {
            "replicas": { "type": "integer", "format": "int32" },
            "selector": { "type": "string" },
        }},
    }});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{PLURAL}.{GROUP}") },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": { "kind": KIND, "listKind": "ComponentScaleList", "plural": PLURAL, "singular": "componentscale" },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": { "openAPIV3Schema": schema },
                "subresources": { "scale": {
                    "specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector",
                }},
                "additionalPrinterColumns": [
                    { "name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas" },
                    { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
                ],
            }],
        },
    })
}

/// Whether components can be scaled by load here; the error says what is missing and what to do. A cluster that does not
/// know the kind is taught, where this account may do that.
pub(crate) async fn ready(cluster: &Cluster) -> Result<(), String> {
    let advice = "apply the documents of this version's `arco cluster manifest`";
    let fails = |what: &str, error: &kube::Error| format!("{what}: {}; {advice}", words(error));
    if let Err(error) = listed::<HorizontalPodAutoscaler>(&cluster.client).await {
        return Err(fails("HorizontalPodAutoscalers cannot be listed", &error));
    }
    match listed::<ComponentScale>(&cluster.client).await {
        Ok(()) => return Ok(()),
        Err(error) if verdict(&error) == Verdict::Missing => {}
        Err(error) => return Err(fails("ComponentScales cannot be listed", &error)),
    }
    let taught = cluster.apply(&Object::of_cluster(Kind::Definition, definition())).await;
    match taught {
        // Another server of ours taught it at the same moment.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        taught => {
            taught.map_err(|it| fails(&format!("the cluster does not know the kind {PLURAL}.{GROUP}"), &it))?;
        }
    }
    let serves = async {
        while first::<ComponentScale>(&cluster.client).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let served = tokio::time::timeout(LEARNING, serves).await;
    served.map_err(|_| format!("the cluster does not serve {PLURAL}.{GROUP} after {} s", LEARNING.as_secs()))
}

/// As [`first`], asked again while it is not known: what is said here counts as long as this process runs.
async fn listed<K>(client: &Client) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let end = Instant::now() + LEARNING;
    loop {
        match first::<K>(client).await {
            Err(error) if verdict(&error) == Verdict::Later && Instant::now() < end => tokio::time::sleep(LOOK).await,
            answer => return answer,
        }
    }
}

async fn first<K>(client: &Client) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    Api::<K>::all(client.clone()).list_metadata(&ListParams::default().limit(1)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access;

    #[test]
    fn the_definition_is_of_the_kind_that_is_rendered_and_allowed() {
        let definition = definition();
        assert_eq!(Kind::Scale.wire(), ("arco.internal/v1", KIND, PLURAL));
        assert_eq!(definition["metadata"]["name"], "componentscales.arco.internal");
        assert!(access::RULES.iter().any(|it| it.group == GROUP && it.resources == [PLURAL]));
        let scale: ComponentScale =
            serde_json::from_value(json!({ "metadata": {}, "spec": { "replicas": 3 } })).unwrap();
        assert_eq!(scale.spec.replicas, 3);
    }
}
