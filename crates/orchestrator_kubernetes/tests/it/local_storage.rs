//! Local storage on a real API server: scheduler and controllers of Kubernetes, and volumes that we provide. Nodes are fake:
//! what lies in folders is seen by `tests/kubernetes/high_availability.py`.

mod control_plane {
    use crate::cluster::place::{Place, kubeconfig, network_of_node, on_a_platform, without_content};
    use arco_config::{KubernetesConfig, VolumeAccess};
    use arco_model::spec::{ComponentKind, VolumeKind, VolumeSpec};
    use arco_orchestrator::contract::{in_time, plan, reached, until};
    use arco_orchestrator::{Orchestrator as _, Removal};
    use futures_util::FutureExt as _;
    use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
    use k8s_openapi::api::storage::v1::StorageClass;
    use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
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
        let deadline = Instant::now() + in_time(Duration::from_secs(120));
        while !it().await {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await; // the pace of looking
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
        let _ = Api::<Node>::all(client.clone()).delete(&node_of(config), &now).await;
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

    /// A claim by hand, of a namespace that is not a tenant's, for which a node is chosen; and the name of its volume.
    async fn claimed(place: &Place, config: &KubernetesConfig, node: &str) -> (Api<PersistentVolumeClaim>, String) {
        let asked: Value = json!({
            "metadata": { "name": "by-hand", "annotations": { "volume.kubernetes.io/selected-node": node } },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } },
                "storageClassName": config.local_storage_class,
            },
        });
        let claims = Api::<PersistentVolumeClaim>::namespaced(place.client.clone(), &config.local_storage_namespace);
        let made = claims.create(&PostParams::default(), &serde_json::from_value(asked).unwrap()).await.unwrap();
        (claims, format!("pvc-{}", made.metadata.uid.unwrap()))
    }

    /// A node of its own, closed for pods of other tests: on it nothing runs.
    fn node_of(config: &KubernetesConfig) -> String {
        format!("{}node", config.namespace_prefix)
    }

    /// Each process ends when it has begun something; what ends well meanwhile is what the next one goes on with.
    async fn taken_over(place: &Place, config: &KubernetesConfig) {
        let name = node_of(config);
        let nodes = Api::<Node>::all(place.client.clone());
        let labels = json!({ "kubernetes.io/hostname": "the-host" });
        let node = json!({ "metadata": { "name": name, "labels": labels }, "spec": { "unschedulable": true } });
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
        let work = Api::<Pod>::namespaced(place.client.clone(), &config.local_storage_namespace);
        let volumes = Api::<PersistentVolume>::all(place.client.clone());
        let (claims, volume) = claimed(place, config, &name).await;
        let [make, remove] = ["make", "remove"].map(|it| format!("{it}-{volume}"));

        let first = place.another(config.clone(), None).await;
        holds("a pod is to make the folder", async || work.get_opt(&make).await.unwrap().is_some()).await;
        first.shutdown(false).await.unwrap();
        let done = Patch::Merge(json!({ "status": { "phase": "Succeeded" } }));
        work.patch_status(&make, &PatchParams::default(), &done).await.unwrap();
        assert!(volumes.get_opt(&volume).await.unwrap().is_none());

        let second = place.another(config.clone(), None).await;
        holds("the next one makes the volume", async || volumes.get_opt(&volume).await.unwrap().is_some()).await;
        let made = serde_json::to_value(volumes.get(&volume).await.unwrap().spec.unwrap().node_affinity).unwrap();
        let term = &made["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        assert_eq!(term["values"], json!(["the-host"]), "what volumes call the node");
        holds("and ends the pod", async || work.get_opt(&make).await.unwrap().is_none()).await;
        claims.delete("by-hand", &DeleteParams::default()).await.unwrap();
        holds("a pod is to remove the folder", async || work.get_opt(&remove).await.unwrap().is_some()).await;
        second.shutdown(false).await.unwrap();
        work.patch_status(&remove, &PatchParams::default(), &done).await.unwrap();
        assert!(volumes.get_opt(&volume).await.unwrap().is_some(), "it goes after its folder");

        let third = place.another(config.clone(), None).await;
        holds("the volume goes", async || volumes.get_opt(&volume).await.unwrap().is_none()).await;
        holds("with the pod", async || work.get_opt(&remove).await.unwrap().is_none()).await;
        third.shutdown(false).await.unwrap();
    }

    /// The scheduler is asked again for a claim whose node is gone.
    async fn in_the_way(place: &Place, config: &KubernetesConfig) {
        let driver = place.another(config.clone(), None).await;
        let (claims, _) = claimed(place, config, "gone").await;
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
    async fn the_next_leader_goes_on_where_one_ended() {
        with_local_storage(taken_over).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_claim_whose_node_is_gone_gets_another_one() {
        with_local_storage(in_the_way).await;
    }
}
