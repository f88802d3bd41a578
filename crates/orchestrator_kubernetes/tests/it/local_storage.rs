//! Local storage on a real API server: scheduler and controllers of Kubernetes, and volumes that we provide. Nodes are fake:
//! what lies in folders is seen by `tests/kubernetes/high_availability.py`.

mod control_plane {
    use crate::cluster::place::{Place, kubeconfig, network_of_node, on_a_platform, without_content};
    use arco_config::{KubernetesConfig, VolumeAccess};
    use arco_model::spec::{ComponentKind, VolumeKind, VolumeSpec};
    use arco_orchestrator::contract::{in_time, plan, reached, until};
    use arco_orchestrator::{Orchestrator as _, Removal};
    use futures_util::FutureExt as _;
    use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
    use k8s_openapi::api::storage::v1::StorageClass;
    use kube::api::{Api, DeleteParams, ListParams, PostParams};
    use serde_json::{Value, json};
    use std::time::{Duration, Instant};

    fn settings(place: &Place) -> KubernetesConfig {
        let prefix = &place.config.namespace_prefix;
        KubernetesConfig {
            storage_class: format!("{prefix}local"),
            shared_access: VolumeAccess::ReadWriteMany,
            local_storage_class: format!("{prefix}local"),
            local_storage_folder: "/folders".into(),
            local_storage_namespace: format!("{prefix}nodes"),
            local_storage_image: "registry.invalid/arco:1".to_owned(),
            ..place.config.clone()
        }
    }

    fn volume(kind: VolumeKind) -> VolumeSpec {
        let (name, path) = ("data".parse().unwrap(), "/data".to_owned());
        VolumeSpec { name, path, size_mb: 100, kind, class: None }
    }

    async fn holds(what: &str, it: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + in_time(Duration::from_secs(60));
        while !it().await {
            assert!(Instant::now() < deadline, "{what}");
        }
    }

    /// The class and the namespace that the manifest makes.
    async fn prepared(place: &Place, config: &KubernetesConfig) {
        let class = json!({
            "metadata": { "name": config.local_storage_class }, "provisioner": "arco.internal/local",
            "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
        });
        let classes = Api::<StorageClass>::all(place.client.clone());
        classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
        let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
        let namespace = json!({ "metadata": { "name": config.local_storage_namespace, "labels": labels } });
        let namespaces = Api::<Namespace>::all(place.client.clone());
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    }

    async fn cleared(place: &Place, config: &KubernetesConfig) {
        let (client, now) = (&place.client, DeleteParams::default());
        let _ = Api::<StorageClass>::all(client.clone()).delete(&config.local_storage_class, &now).await;
        let _ = Api::<Namespace>::all(client.clone()).delete(&config.local_storage_namespace, &now).await;
        let platform = config.namespace_prefix.trim_end_matches('-');
        let ours = ListParams::default().labels(&format!("arco.internal/platform={platform}"));
        let _ = Api::<PersistentVolume>::all(client.clone()).delete_collection(&now, &ours).await;
    }

    async fn provided(place: &Place, config: &KubernetesConfig) {
        let driver = place.another(config.clone(), None).await;
        let mut asked = plan(place.image.clone(), &["serve"]);
        (asked.kind, asked.template.volumes) = (ComponentKind::Stateful, vec![volume(VolumeKind::Local)]);
        driver.apply(&asked).await.unwrap();
        reached(driver.as_ref(), &asked).await;

        let claims: Api<PersistentVolumeClaim> = place.api();
        let claim = claims.list(&ListParams::default()).await.unwrap().items.remove(0);
        let name = format!("pvc-{}", claim.metadata.uid.unwrap());
        assert_eq!(claim.spec.unwrap().volume_name.as_deref(), Some(name.as_str()));
        let volumes = Api::<PersistentVolume>::all(place.client.clone());
        let made = volumes.get(&name).await.unwrap().spec.unwrap();
        assert_eq!(made.local.unwrap().path, format!("/folders/{name}"));
        assert_eq!(made.capacity.unwrap()["storage"].0, "100Mi");
        let affinity = serde_json::to_value(made.node_affinity).unwrap();
        let term = &affinity["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        assert_eq!(term["key"], "kubernetes.io/hostname");
        let pods: Api<Pod> = place.api();
        let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0);
        assert_eq!(term["values"], json!([pod.spec.unwrap().node_name.unwrap()]), "where its first pod is");
        let work = Api::<Pod>::namespaced(place.client.clone(), &config.local_storage_namespace);
        let idle = async || work.list(&ListParams::default()).await.unwrap().items.is_empty();
        holds("the pod that made the folder goes", &idle).await;

        // Another process goes on with what the first one made.
        driver.shutdown(false).await.unwrap();
        let driver = place.another(config.clone(), None).await;
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        holds("the volume goes", async || volumes.get_opt(&name).await.unwrap().is_none()).await;
        holds("the pod that removed the folder goes", &idle).await;

        let mut shared = plan(place.image.clone(), &["serve"]);
        shared.template.volumes = vec![volume(VolumeKind::Shared)];
        driver.apply(&shared).await.unwrap();
        until(driver.as_ref(), &shared.component, "it says why there is no volume", |it| {
            let fault = it.instances.iter().find_map(|it| it.fault.as_deref()).unwrap_or_default();
            fault.contains("its volume `data` cannot be made") && fault.contains("`ReadWriteOnce`")
        })
        .await;
        driver.remove(&shared.component, &Removal::Everything).await.unwrap();
        driver.shutdown(false).await.unwrap();
    }

    /// A claim by hand, of a namespace that is not the platform's, whose node is gone; and one that is deleted before its
    /// folder became a volume.
    async fn in_the_way(place: &Place, config: &KubernetesConfig) {
        let driver = place.another(config.clone(), None).await;
        let claims = Api::<PersistentVolumeClaim>::namespaced(place.client.clone(), &config.local_storage_namespace);
        let asked: Value = json!({
            "metadata": { "name": "by-hand", "annotations": { "volume.kubernetes.io/selected-node": "gone" } },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } },
                "storageClassName": config.local_storage_class,
            },
        });
        claims.create(&PostParams::default(), &serde_json::from_value(asked).unwrap()).await.unwrap();
        let chosen_anew = async || {
            let annotations = claims.get("by-hand").await.unwrap().metadata.annotations.unwrap_or_default();
            !annotations.contains_key("volume.kubernetes.io/selected-node")
        };
        holds("another node is chosen", chosen_anew).await;
        claims.delete("by-hand", &DeleteParams::default()).await.unwrap();
        driver.shutdown(false).await.unwrap();
    }

    async fn with_local_storage(test: impl AsyncFnOnce(&Place, &KubernetesConfig)) {
        if kubeconfig().is_some_and(|it| network_of_node(&it).is_some()) {
            eprintln!("SKIPPED: needs fake nodes, which run nothing (tests/kubernetes/cluster.py run --fake-nodes 1)");
            return;
        }
        let (images, image) = without_content().await;
        on_a_platform(images, image, "registry.invalid:5000", None, |place| async move {
            let config = settings(&place);
            prepared(&place, &config).await;
            let outcome = std::panic::AssertUnwindSafe(test(place.as_ref(), &config)).catch_unwind().await;
            cleared(&place, &config).await;
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_claim_gets_a_folder_of_its_node_and_leaves_nothing() {
        Box::pin(with_local_storage(provided)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_claim_whose_node_is_gone_gets_another_one() {
        with_local_storage(in_the_way).await;
    }
}
