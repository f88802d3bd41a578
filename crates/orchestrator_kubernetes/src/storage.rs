//! Storage classes with what each can, and the claims of components with what they use.
//!
//! What must hold: what a cluster does not say is not made up; how full a volume is comes from its node, and is absent where
//! this account may not ask nodes.

use crate::cluster::{Verdict, failed, verdict};
use crate::driver::{Inner, KubernetesOrchestrator};
use crate::local_storage::PROVISIONER;
use crate::names;
use crate::seen::convert::{owner, word};
use crate::usage;
use arco_model::id::ComponentId;
use arco_model::storage::{AccessMode, VolumeClass, VolumeFacts};
use arco_orchestrator::{Error, Storage, Telling};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use std::collections::{BTreeMap, BTreeSet};

/// Provisioners of which it is known who may use a volume at the same time, and whether its size is a limit; a StorageClass
/// says neither.
const KNOWN: &[(&str, &[AccessMode], bool)] = &[
    (PROVISIONER, &[AccessMode::ReadWriteOnce], false),
    ("disk.csi.azure.com", &[AccessMode::ReadWriteOnce], true),
    ("driver.longhorn.io", &[AccessMode::ReadWriteOnce, AccessMode::ReadWriteMany], true),
    ("ebs.csi.aws.com", &[AccessMode::ReadWriteOnce], true),
    ("efs.csi.aws.com", &[AccessMode::ReadWriteOnce, AccessMode::ReadWriteMany], false),
    ("file.csi.azure.com", &[AccessMode::ReadWriteOnce, AccessMode::ReadWriteMany], true),
    ("nfs.csi.k8s.io", &[AccessMode::ReadWriteOnce, AccessMode::ReadWriteMany], false),
    ("pd.csi.storage.gke.io", &[AccessMode::ReadWriteOnce], true),
    ("rancher.io/local-path", &[AccessMode::ReadWriteOnce], false),
];

/// The annotation of the class that claims without one get.
const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

#[async_trait]
impl Storage for KubernetesOrchestrator {
    async fn classes(&self) -> Result<Vec<VolumeClass>, Error> {
        let (inner, all) = (self.inner(), ListParams::default());
        let classes = Api::<StorageClass>::all(inner.cluster().client.clone()).list(&all).await;
        let classes = classes.map_err(|it| failed("list the cluster's storage classes", &it))?;
        let taken = drivers_of_snapshots(inner).await?;
        Ok(classes.items.iter().map(|it| class(it, &inner.config.storage_class, taken.as_ref())).collect())
    }

    async fn volumes(&self, of: Option<&ComponentId>, telling: Telling) -> Result<Vec<VolumeFacts>, Error> {
        let inner = self.inner();
        let mut labels = names::platform_selector(&inner.config.namespace_prefix);
        if let Some(component) = of {
            labels.push_str(&format!(",{}={component}", names::COMPONENT));
        }
        let claims = Api::<PersistentVolumeClaim>::all(inner.cluster().client.clone());
        let claims = claims.list(&ListParams::default().labels(&labels)).await;
        let claims = claims.map_err(|it| failed("list the claims of volumes", &it))?.items;
        let used = match telling {
            Telling::Use if !claims.is_empty() => usage::of_claims(inner, of).await,
            _ => BTreeMap::new(),
        };
        Ok(claims.iter().filter_map(|it| facts(it, &used)).collect())
    }
}

/// Drivers that can take snapshots: none where the cluster does not know snapshots, `None` where this account may not ask.
async fn drivers_of_snapshots(inner: &Inner) -> Result<Option<BTreeSet<String>>, Error> {
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotClass");
    let kind = ApiResource::from_gvk_with_plural(&kind, "volumesnapshotclasses");
    let found =
        Api::<DynamicObject>::all_with(inner.cluster().client.clone(), &kind).list(&ListParams::default()).await;
    match found {
        Ok(found) => {
            let drivers = found.items.iter().filter_map(|it| Some(it.data.get("driver")?.as_str()?.to_owned()));
            Ok(Some(drivers.collect()))
        }
        Err(error) => match verdict(&error) {
            Verdict::Missing => Ok(Some(BTreeSet::new())),
            Verdict::Refused => Ok(None),
            Verdict::Later => Err(failed("list the classes of snapshots", &error)),
        },
    }
}

fn class(it: &StorageClass, preferred: &str, snapshots: Option<&BTreeSet<String>>) -> VolumeClass {
    let name = it.metadata.name.clone().unwrap_or_default();
    let default = match preferred {
        "" => word(&it.metadata.annotations, IS_DEFAULT) == "true",
        preferred => name == preferred,
    };
    let known = KNOWN.iter().find(|(provisioner, ..)| *provisioner == it.provisioner);
    let ours = it.provisioner == PROVISIONER;
    VolumeClass {
        default,
        access: known.map(|it| it.1.to_vec()).unwrap_or_default(),
        grows: it.allow_volume_expansion == Some(true) && !ours,
        snapshots: snapshots.map(|known| known.contains(&it.provisioner)).or(ours.then_some(false)),
        limits: known.map(|it| it.2),
        retains: it.reclaim_policy.as_deref() == Some("Retain"),
        provisioner: it.provisioner.clone(),
        name,
    }
}

/// A claim of ours. `used`: by namespace and name.
fn facts(it: &PersistentVolumeClaim, used: &BTreeMap<(String, String), u64>) -> Option<VolumeFacts> {
    let (spec, status) = (it.spec.as_ref()?, it.status.as_ref());
    let name = it.metadata.name.clone()?;
    let volume: arco_model::name::VolumeName = word(&it.metadata.labels, names::VOLUME).parse().ok()?;
    let component = owner(&it.metadata)?;
    // Claims of places end with their number: `<volume>-<set>-<place>`; shared ones with the component's id.
    let shared = name.ends_with(component.as_str());
    let place = name.rsplit_once('-').and_then(|(_, it)| it.parse().ok()).filter(|_| !shared);
    let capacity = status.and_then(|it| it.capacity.as_ref()).and_then(|it| it.get("storage"));
    let modes = status.and_then(|it| it.access_modes.as_ref()).or(spec.access_modes.as_ref());
    let key = (it.metadata.namespace.clone().unwrap_or_default(), name);
    Some(VolumeFacts {
        volume,
        place,
        class: spec.storage_class_name.clone().unwrap_or_default(),
        access: modes.into_iter().flatten().filter_map(|it| mode(it)).collect(),
        size_bytes: capacity.and_then(bytes).unwrap_or_default(),
        used_bytes: used.get(&key).copied(),
        component,
    })
}

fn mode(word: &str) -> Option<AccessMode> {
    match word {
        "ReadWriteOnce" => Some(AccessMode::ReadWriteOnce),
        "ReadWriteOncePod" => Some(AccessMode::ReadWriteOncePod),
        "ReadOnlyMany" => Some(AccessMode::ReadOnlyMany),
        "ReadWriteMany" => Some(AccessMode::ReadWriteMany),
        _ => None,
    }
}

fn bytes(quantity: &Quantity) -> Option<u64> {
    crate::seen::scaler::thousandths(quantity).map(|it| it / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_says_what_it_can_and_nothing_is_made_up() {
        let of = |name: &str, provisioner: &str, default: &str| -> StorageClass {
            serde_json::from_value(json!({
                "metadata": { "name": name, "annotations": { (IS_DEFAULT): default } }, "provisioner": provisioner,
                "allowVolumeExpansion": true, "reclaimPolicy": "Retain",
            }))
            .unwrap()
        };
        let snapshots = BTreeSet::from(["nfs.csi.k8s.io".to_owned()]);
        let nfs = class(&of("files", "nfs.csi.k8s.io", "true"), "", Some(&snapshots));
        assert_eq!(nfs.access, [AccessMode::ReadWriteOnce, AccessMode::ReadWriteMany]);
        assert!(nfs.default && nfs.grows && nfs.retains);
        assert_eq!(nfs.snapshots, Some(true));
        let other = class(&of("other", "example.com/any", "true"), "files", Some(&snapshots));
        assert!(!other.default && other.snapshots == Some(false) && other.access.is_empty());
        let preferred = class(&of("files", "nfs.csi.k8s.io", "false"), "files", None);
        assert!(preferred.default && preferred.snapshots.is_none(), "who may not ask does not say no");
        assert_eq!((nfs.limits, other.limits), (Some(false), None));
        let ours = class(&of("arco-local", PROVISIONER, "false"), "arco-local", None);
        assert_eq!((ours.access, ours.grows), (vec![AccessMode::ReadWriteOnce], false));
        assert_eq!((ours.limits, ours.snapshots), (Some(false), Some(false)));
    }

    #[test]
    fn a_claim_is_a_volume_of_a_component_or_one_place_of_it() {
        let component = arco_model::id::ComponentId::from_parts(1, 2);
        let labels = json!({ (names::COMPONENT): component.as_str(), (names::VOLUME): "data" });
        let claim = |name: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({
                "metadata": { "name": name, "namespace": "n", "labels": labels },
                "spec": { "storageClassName": "fast", "accessModes": ["ReadWriteOnce"] },
                "status": { "capacity": { "storage": "1Gi" } },
            }))
            .unwrap()
        };
        let (shared, of_place) = (format!("data-{component}"), "data-shop-db-12345678-2");
        let used = [(("n".to_owned(), shared.clone()), 7)].into();
        let found = facts(&claim(&shared), &used).unwrap();
        assert_eq!((found.place, found.size_bytes, found.used_bytes), (None, 1 << 30, Some(7)));
        let found = facts(&claim(of_place), &used).unwrap();
        assert_eq!((found.place, found.class.as_str(), found.used_bytes), (Some(2), "fast", None));
        assert_eq!(found.access, [AccessMode::ReadWriteOnce]);
    }
}
