//! What does not need programs that really run: objects, rollouts, adoption, removal. Nodes may be fake.

mod calls;
mod held_up;
mod places;

use super::place::{Place, kubeconfig, network_of_node, on_a_platform, without_content};
use crate::several_nodes::eventually;
use arco_model::artifact::ImageRef;
use arco_model::name::ComponentName;
use arco_model::observed::{InstancePhase, Observed, RolloutFacts};
use arco_model::plan::{FileContent, InstanceFile, OneShot, WorkloadPlan};
use arco_model::spec::autoscaling::Autoscaling;
use arco_model::spec::{ComponentKind, VolumeKind, VolumeSpec};
use arco_model::storage::{AccessMode, VolumeFacts};
use arco_orchestrator::contract::{in_time, one_shot, plan, reached, ready, until};
use arco_orchestrator::{Orchestrator, Removal, Storage as _, Telling};
use arco_orchestrator_kubernetes::adopt;
use arco_store::clock;
use arco_store::images::Images;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, ResourceQuota, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

async fn on_fake_nodes<F: Future<Output = ()>>(test: impl FnOnce(Arc<Place>) -> F) {
    on_fake_nodes_with(without_content().await, test).await;
}

/// As [`on_fake_nodes`], with stores of the test's own and an image in them.
async fn on_fake_nodes_with<F: Future<Output = ()>>(
    (images, image): (Images, ImageRef),
    test: impl FnOnce(Arc<Place>) -> F,
) {
    if kubeconfig().is_some_and(|it| network_of_node(&it).is_some()) {
        eprintln!("SKIPPED: needs fake nodes, which run nothing (tests/kubernetes/cluster.py run --fake-nodes 1)");
        return;
    }
    on_a_platform(images, image, "registry.invalid:5000", None, test).await;
}

/// Versions of everything of ours in the namespace but pods, which others write too.
async fn versions(place: &Place) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let wanted = ListParams::default().labels("app.kubernetes.io/managed-by=arco");
    macro_rules! add {
        ($($kind:ty)*) => {$(
            let api: Api<$kind> = place.api();
            for PartialObjectMeta::<$kind> { metadata, .. } in api.list_metadata(&wanted).await.unwrap() {
                let name = format!("{}/{}", stringify!($kind), metadata.name.unwrap());
                // Status of workloads moves by itself: the generation counts what was asked.
                all.insert(name, metadata.generation.map_or(metadata.resource_version.unwrap(), |it| it.to_string()));
            }
        )*};
    }
    add!(Deployment StatefulSet Job Service Secret ConfigMap NetworkPolicy PodDisruptionBudget);
    // What follows counts no generations, and its status moves by itself.
    let claims: Api<PersistentVolumeClaim> = place.api();
    for PersistentVolumeClaim { metadata, spec, .. } in claims.list(&wanted).await.unwrap() {
        let mut annotations = metadata.annotations.unwrap_or_default();
        annotations.retain(|it, _| it.contains("arco.internal/"));
        let asked = json!([metadata.uid, metadata.labels, annotations, spec]);
        all.insert(format!("PersistentVolumeClaim/{}", metadata.name.unwrap()), asked.to_string());
    }
    let autoscalers: Api<HorizontalPodAutoscaler> = place.api();
    for it in autoscalers.list_metadata(&wanted).await.unwrap() {
        let name = format!("HorizontalPodAutoscaler/{}", it.metadata.name.unwrap());
        all.insert(name, it.metadata.uid.unwrap());
    }
    for it in place.scales().list_metadata(&wanted).await.unwrap() {
        let name = format!("ComponentScale/{}", it.metadata.name.unwrap());
        all.insert(name, it.metadata.resource_version.unwrap());
    }
    all
}

/// Everything of ours that belongs to components.
pub(crate) async fn of_components(place: &Place) -> Vec<String> {
    let tenant = ["arco-closed", "arco-build", "arco-registry"];
    let found = versions(place).await.into_keys();
    found.filter(|it| !tenant.iter().any(|tenant| it.ends_with(tenant))).collect()
}

/// Lets go of everything that drains until the plan is reached.
pub(crate) async fn let_go(driver: &dyn Orchestrator, plan: &WorkloadPlan) -> Observed {
    let fingerprint = plan.fingerprint();
    loop {
        let found = until(driver, &plan.component, "something drains or the plan is reached", |it| {
            let done = it.plan == fingerprint && it.rollout == RolloutFacts::Done;
            done || it.instances.iter().any(|it| it.phase == InstancePhase::Draining)
        });
        let found = found.await;
        let mut draining = found.instances.iter().filter(|it| it.phase == InstancePhase::Draining).peekable();
        if draining.peek().is_none() {
            return found;
        }
        for it in draining {
            let _ = driver.release(&it.id).await; // it may be gone by now
        }
        let leaving: Vec<_> = found.instances.iter().filter(|it| it.phase == InstancePhase::Draining).collect();
        until(driver, &plan.component, "what was let go of is stopped", |now| {
            !leaving
                .iter()
                .any(|it| now.instances.iter().any(|now| now.id == it.id && now.phase == InstancePhase::Draining))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateless_component_lives_and_leaves_nothing() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let foreign: Api<ConfigMap> = place.api();
        let mut asked = plan(place.image.clone(), &["serve"]);
        asked.replicas = 2;
        let id = asked.component.clone();
        assert_eq!(driver.observe(&id).await.unwrap(), Observed::default());
        let began = Instant::now();
        driver.apply(&asked).await.unwrap();
        assert_eq!(driver.observe(&id).await.unwrap().plan, asked.fingerprint(), "facts speak of the plan at once");
        let first = reached(driver, &asked).await;
        eprintln!("two instances ready after {:?}", began.elapsed());
        assert_eq!(ready(&first).len(), 2);
        assert!(first.address.is_some() && first.instances[0].address.is_some());
        assert_eq!(first.instances[0].template, asked.template.fingerprint());
        let mine = serde_json::from_str(r#"{"metadata":{"name":"mine"}}"#).unwrap();
        foreign.create(&PostParams::default(), &mine).await.unwrap();

        let before = versions(&place).await;
        driver.apply(&asked).await.unwrap();
        let again = place.restarted().await;
        assert_eq!(again.components().await.unwrap(), std::slice::from_ref(&id));
        let adopted = again.observe(&id).await.unwrap();
        assert_eq!((ready(&adopted), adopted.plan.as_str()), (ready(&first), ""), "adopted as it stands");
        again.apply(&asked).await.unwrap();
        assert_eq!(ready(&reached(again.as_ref(), &asked).await), ready(&first));
        assert_eq!(versions(&place).await, before, "nothing is sent when nothing changed, also by another process");
        again.shutdown(false).await.unwrap();

        asked.template.env.insert("COLOUR".to_owned(), "green".to_owned());
        driver.apply(&asked).await.unwrap();
        let template = asked.template.fingerprint();
        let found = until(driver, &id, "an old one drains", |it| {
            it.instances.iter().any(|it| it.phase == InstancePhase::Draining)
        });
        let found = found.await;
        assert!(ready(&found).len() >= 2, "as many serve as were asked: {found:#?}");
        let pods: Api<Pod> = place.api();
        let unmarked = ListParams::default().labels("arco.internal/serving=true");
        let draining = found.instances.iter().find(|it| it.phase == InstancePhase::Draining).unwrap();
        assert_ne!(draining.template, template);
        let green = let_go(driver, &asked).await;
        assert!(ready(&green).is_disjoint(&ready(&first)) && ready(&green).len() == 2);
        assert_eq!(green.address, first.address, "the stable address stays");
        assert_eq!(pods.list(&unmarked).await.unwrap().items.len(), 2);
        until_objects(&place, "the old template's objects go", |it| count_of(it, "Secret") == 1).await;

        asked.replicas = 1;
        driver.apply(&asked).await.unwrap();
        let one = let_go(driver, &asked).await;
        assert!(ready(&one).len() == 1 && ready(&one).is_subset(&ready(&green)), "what runs stays");
        until_objects(&place, "one instance needs no budget", |it| !it.iter().any(|it| it.contains("Budget"))).await;

        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
        assert!(driver.components().await.unwrap().is_empty());
        assert_eq!(driver.observe(&id).await.unwrap(), Observed::default());
        assert!(foreign.get("mine").await.is_ok(), "what is not ours stays");
        driver.remove(&id, &Removal::Everything).await.unwrap();
    })
    .await;
}

/// Waits until the names of our objects are as wanted.
async fn until_objects(place: &Place, what: &str, wanted: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + in_time(Duration::from_secs(120));
    loop {
        let found = of_components(place).await;
        if wanted(&found) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await; // the pace of looking
    }
}

/// How many of the objects are of a kind.
fn count_of(objects: &[String], kind: &str) -> usize {
    objects.iter().filter(|it| it.split('/').next() == Some(kind)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_files_come_and_go_with_their_template() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        let id = asked.component.clone();
        let file = |path: &str, mode: &str, content| InstanceFile {
            path: path.to_owned(),
            mode: mode.parse().unwrap(),
            content,
        };
        asked.template.files = vec![
            file("/etc/app/app.conf", "0444", FileContent::Text("a=1\n".to_owned())),
            file("/etc/app/key.pem", "0400", FileContent::Variable("COLOUR".to_owned())),
        ];
        driver.apply(&asked).await.unwrap();
        let first = reached(driver, &asked).await;
        let maps: Api<ConfigMap> = place.api();
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=arco");
        let found = maps.list(&ours).await.unwrap().items;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].data.as_ref().unwrap()["file-0"], "a=1\n");
        let pods: Api<Pod> = place.api();
        let instances = ListParams::default().labels("arco.internal/role=instance");
        let pod = pods.list(&instances).await.unwrap().items.remove(0).spec.unwrap();
        let paths: Vec<_> = pod.containers[0].volume_mounts.iter().flatten().map(|it| it.mount_path.as_str()).collect();
        assert_eq!(paths, ["/etc/app/app.conf", "/etc/app/key.pem"]);
        let projected = pod.volumes.unwrap().into_iter().find_map(|it| it.projected).unwrap();
        let sources = projected.sources.unwrap();
        assert_eq!(sources[0].config_map.as_ref().unwrap().name, found[0].metadata.name.clone().unwrap());
        assert_eq!(sources[1].secret.as_ref().unwrap().items.as_ref().unwrap()[0].key, "COLOUR");

        let before = versions(&place).await;
        let again = place.restarted().await;
        again.apply(&asked).await.unwrap();
        reached(again.as_ref(), &asked).await;
        assert_eq!(versions(&place).await, before, "nothing is sent when nothing changed, also by another process");
        again.shutdown(false).await.unwrap();

        // Another text: other instances, and the old one goes with the last of the old.
        asked.template.files[0].content = FileContent::Text("a=2\n".to_owned());
        driver.apply(&asked).await.unwrap();
        let second = let_go(driver, &asked).await;
        assert!(ready(&second).is_disjoint(&ready(&first)));
        let maps_of = |it: &[String]| count_of(it, "ConfigMap");
        until_objects(&place, "the old files go", |it| maps_of(it) == 1).await;
        assert_eq!(maps.list(&ours).await.unwrap().items[0].data.as_ref().unwrap()["file-0"], "a=2\n");

        // A run of its own has the files too, and leaves none behind. No node takes it, so that it does not end by itself.
        let mut work = OneShot { files: asked.template.files.clone(), ..one_shot(&asked, &["serve"]) };
        work.scheduling = serde_json::from_value(json!({"node_selector": {"disk": "none-has-it"}})).unwrap();
        let made = format!("ConfigMap/run-{}", work.id);
        let (output, _lines) = mpsc::channel(64);
        let (cancel, cancelled) = oneshot::channel();
        let runner = place.driver.clone();
        let running = tokio::spawn(async move { runner.run(&work, output, cancelled).await });
        until_objects(&place, "the run has no files", |it| it.contains(&made)).await;
        drop(cancel);
        assert!(running.await.unwrap().is_err(), "it was cancelled before it could begin");
        until_objects(&place, "the run leaves files", |it| !it.contains(&made)).await;

        asked.template.files.clear();
        driver.apply(&asked).await.unwrap();
        let_go(driver, &asked).await;
        until_objects(&place, "without files there is no object", |it| maps_of(it) == 0).await;
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

fn volume(size_mb: u32) -> VolumeSpec {
    let (name, path) = ("data".parse().unwrap(), "/data".to_owned());
    VolumeSpec { name, path, size_mb, kind: VolumeKind::Local, class: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_decides_how_many_and_none_ends_before_it_has_drained() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        (asked.replicas, asked.autoscaling) = (2, Some(Autoscaling::by_cpu(2, 4)));
        let id = asked.component.clone();
        driver.apply(&asked).await.unwrap();
        assert_eq!(ready(&reached(driver, &asked).await).len(), 2);
        let autoscalers: Api<HorizontalPodAutoscaler> = place.api();
        let autoscaler = autoscalers.list(&ListParams::default()).await.unwrap().items.remove(0);
        let (name, spec) = (autoscaler.metadata.name.unwrap(), autoscaler.spec);
        assert_eq!((spec.min_replicas, spec.max_replicas, spec.metrics.unwrap().len()), (Some(2), 4, 1));
        assert_eq!(spec.scale_target_ref.name, name);

        // What an autoscaler does: it reads and writes the number by the scale subresource.
        let scales = place.scales();
        let scale = scales.get_scale(&name).await.unwrap();
        let selector = scale.status.unwrap().selector.unwrap();
        let pods: Api<Pod> = place.api();
        let selected = pods.list_metadata(&ListParams::default().labels(&selector)).await.unwrap().items.len();
        assert_eq!((scale.spec.unwrap().replicas, selected), (Some(2), 2));
        let asks = async |replicas: u32| {
            let number = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
            scales.patch_scale(&name, &PatchParams::default(), &number).await.unwrap();
        };
        asks(4).await;
        let four = until(driver, &id, "load asks for four", |it| ready(it).len() == 4).await;
        assert_eq!(four.scaling.unwrap().replicas, 4);

        // Another process goes on with as many, and sends nothing.
        let before = versions(&place).await;
        let again = place.restarted().await;
        again.apply(&asked).await.unwrap();
        let found = reached(again.as_ref(), &asked).await;
        assert_eq!((ready(&found).len(), found.scaling.unwrap().replicas), (4, 4));
        assert_eq!(versions(&place).await, before);
        again.shutdown(false).await.unwrap();

        // Fewer, and not fewer than asked: they drain first.
        asks(1).await;
        let leaving = |it: &Observed| it.instances.iter().filter(|it| it.phase == InstancePhase::Draining).count();
        let found = until(driver, &id, "two drain", |it| leaving(it) == 2).await;
        assert_eq!((found.scaling.as_ref().unwrap().replicas, ready(&found).len()), (2, 2));
        let_go(driver, &asked).await;

        // By hand again.
        (asked.replicas, asked.autoscaling) = (3, None);
        driver.apply(&asked).await.unwrap();
        let found = let_go(driver, &asked).await;
        assert_eq!((ready(&found).len(), found.scaling), (3, None));
        let by_load = |it: &String| it.starts_with("ComponentScale/") || it.starts_with("HorizontalPodAutoscaler/");
        until_objects(&place, "nothing follows load", |it| !it.iter().any(by_load)).await;

        asked.autoscaling = Some(Autoscaling::by_cpu(1, 3));
        driver.apply(&asked).await.unwrap();
        let_go(driver, &asked).await;
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_never_ran_has_its_volumes() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        (asked.replicas, asked.template.volumes) = (0, vec![volume(100)]);
        driver.apply(&asked).await.unwrap();
        let claim = |it: &String| it.starts_with("PersistentVolumeClaim/");
        until_objects(&place, "there is no claim", |it| it.iter().any(claim)).await;
        assert!(driver.observe(&asked.component).await.unwrap().instances.is_empty());
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_component_keeps_its_places_and_volumes() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        (asked.kind, asked.replicas, asked.template.volumes) = (ComponentKind::Stateful, 2, vec![volume(100)]);
        let id = asked.component.clone();
        driver.apply(&asked).await.unwrap();
        let first = reached(driver, &asked).await;
        let places: Vec<u32> = first.instances.iter().map(|it| it.place).collect();
        assert_eq!((places, ready(&first).len()), (vec![0, 1], 2));

        // From the highest place on: the lower one is as it was until the higher one serves again.
        asked.template.env.insert("COLOUR".to_owned(), "green".to_owned());
        driver.apply(&asked).await.unwrap();
        let at = |it: &Observed, place: u32| it.instances.iter().find(|it| it.place == place).cloned().unwrap();
        let drains = |it: &Observed, place: u32| {
            it.instances.iter().any(|it| it.place == place && it.phase == InstancePhase::Draining)
        };
        let higher = until(driver, &id, "the higher place drains", |it| drains(it, 1)).await;
        assert_eq!((at(&higher, 0).id, at(&higher, 0).phase), (at(&first, 0).id, InstancePhase::Ready));
        driver.release(&at(&higher, 1).id).await.unwrap();
        let lower = until(driver, &id, "the lower place drains", |it| drains(it, 0)).await;
        let new = at(&lower, 1);
        assert_eq!((new.phase, new.template), (InstancePhase::Ready, asked.template.fingerprint()));
        let green = let_go(driver, &asked).await;
        assert!(ready(&green).is_disjoint(&ready(&first)) && ready(&green).len() == 2);

        // A larger volume: the set is made anew, its pods and claims stay.
        asked.template.volumes = vec![volume(200)];
        driver.apply(&asked).await.unwrap();
        let_go(driver, &asked).await;
        let claims: Api<PersistentVolumeClaim> = place.api();
        let sizes = || async {
            let found = claims.list(&ListParams::default()).await.unwrap().items.into_iter();
            let size =
                |it: PersistentVolumeClaim| it.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0.clone();
            found.map(size).collect::<Vec<_>>()
        };
        assert_eq!(sizes().await, ["200Mi", "200Mi"]);

        // What each place is made of is told, also where no node tells how full it is.
        let classes = driver.classes().await.unwrap();
        let class = classes.iter().find(|it| it.default).expect("the cluster has a default class");
        assert!(class.grows && class.snapshots == Some(false), "{class:?}");
        let mut held = driver.volumes(Some(&id), Telling::Use).await.unwrap();
        held.sort_by_key(|it| it.place);
        assert_eq!(held.iter().map(|it| it.place).collect::<Vec<_>>(), [Some(0), Some(1)]);
        let whole = |it: &VolumeFacts| it.component == id && it.class == class.name && it.size_bytes >= 100 << 20;
        assert!(held.iter().all(|it| whole(it) && it.access == [AccessMode::ReadWriteOnce]), "{held:#?}");
        assert!(driver.volumes(Some(&clock::fresh()), Telling::Facts).await.unwrap().is_empty());

        // A smaller one and another class are refused, with a reason, and nothing is changed.
        let before = versions(&place).await;
        let another = VolumeSpec { class: Some("another".to_owned()), ..volume(200) };
        for (wrong, why) in [(volume(50), "cannot shrink"), (another, "cannot become `another`")] {
            let mut wished = asked.clone();
            wished.template.volumes = vec![wrong];
            driver.apply(&wished).await.unwrap();
            let is_halted = |it: &Observed| matches!(it.rollout, RolloutFacts::Halted { .. });
            let refused = until(driver, &id, "it is refused", is_halted).await;
            let RolloutFacts::Halted { cause: Some(cause) } = refused.rollout else { panic!("no cause") };
            assert!(cause.fault.as_ref().unwrap().contains(why), "{cause:?}");
            assert_eq!(versions(&place).await, before);
            driver.apply(&asked).await.unwrap();
            reached(driver, &asked).await;
        }

        asked.replicas = 1;
        driver.apply(&asked).await.unwrap();
        let one = let_go(driver, &asked).await;
        assert_eq!(one.instances.iter().map(|it| it.place).collect::<Vec<_>>(), [0]);

        driver.remove(&id, &Removal::KeepVolumes).await.unwrap();
        assert_eq!(
            (driver.components().await.unwrap(), sizes().await.len()),
            (vec![id.clone()], 2),
            "volumes stay when asked"
        );
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert!(driver.components().await.unwrap().is_empty() && of_components(&place).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_runs_where_it_asks_with_what_its_overlay_adds() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        let id = asked.component.clone();
        asked.template.scheduling = serde_json::from_value(json!({"node_selector": {"disk": "none-has-it"}})).unwrap();
        driver.apply(&asked).await.unwrap();
        until(driver, &id, "no node takes it", |it| {
            let fault = it.instances.iter().find_map(|it| it.fault.as_deref()).unwrap_or_default();
            fault.contains("no node of the cluster can take it")
        })
        .await;

        let everything = json!({
            "node_selector": {"kubernetes.io/os": "linux"},
            "node_affinity": [
                {"key": "kubernetes.io/arch", "operator": "in", "values": ["amd64"]},
                {"key": "disk", "operator": "exists", "weight": 10}
            ],
            "affinity": [{"component": "db", "topology": "zone", "weight": 50}],
            "anti_affinity": [{"component": "web"}, {"component": "other/batch", "weight": 1}],
            "topology_spread": [{"topology": "zone"}, {"max_skew": 2, "when_unsatisfiable": "do_not_schedule"}],
            "tolerations": [{"key": "gpu", "operator": "exists", "effect": "no_execute", "toleration_seconds": 30}]
        });
        asked.template.scheduling = serde_json::from_value(everything).unwrap();
        asked.template.overlay = Some(json!({
            "metadata": {"labels": {"team": "blue"}},
            "spec": {
                "hostname": "web",
                "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "16Mi"}}],
                "containers": [{"name": "app", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                    "resources": {"limits": {"example.com/none": 0}}}]
            }
        }));
        driver.apply(&asked).await.unwrap();
        let_go(driver, &asked).await;
        let pods: Api<Pod> = place.api();
        let found =
            pods.list(&ListParams::default().labels("team=blue,arco.internal/serving=true")).await.unwrap().items;
        assert_eq!(found.len(), 1);
        let spec = found[0].spec.as_ref().unwrap();
        let app = &spec.containers[0];
        assert_eq!((spec.hostname.as_deref(), app.volume_mounts.as_ref().map(Vec::len)), (Some("web"), Some(1)));
        assert_eq!(spec.topology_spread_constraints.as_ref().map(Vec::len), Some(2));
        let apart = spec.affinity.as_ref().unwrap().pod_anti_affinity.as_ref().unwrap();
        let apart = &apart.required_during_scheduling_ignored_during_execution.as_ref().unwrap()[0];
        let alike = apart.label_selector.as_ref().and_then(|it| it.match_labels.as_ref());
        let key = found[0].metadata.labels.as_ref().and_then(|it| it.get("arco.internal/key"));
        assert!(key.is_some() && alike.and_then(|it| it.get("arco.internal/key")) == key, "{apart:?}");

        // What the overlay must not set is refused, with its path, and nothing is changed.
        let alone = |it: &[String]| count_of(it, "Deployment") == 1 && count_of(it, "Secret") == 1;
        until_objects(&place, "the one before it is gone", alone).await;
        let before = versions(&place).await;
        let mut loose = asked.clone();
        loose.template.overlay = Some(json!({"spec": {"hostNetwork": true}}));
        driver.apply(&loose).await.unwrap();
        let refused = until(driver, &id, "it is refused", |it| matches!(it.rollout, RolloutFacts::Halted { .. })).await;
        let RolloutFacts::Halted { cause: Some(cause) } = refused.rollout else { panic!("no cause") };
        let fault = cause.fault.unwrap();
        assert!(fault.contains("`overlay.spec.hostNetwork`") && fault.contains("`kubernetes.any_overlay"), "{fault}");
        assert_eq!(versions(&place).await, before);
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert!(of_components(&place).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_to_its_end_once() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["work"]);
        (asked.kind, asked.replicas) = (ComponentKind::Job, 2);
        asked.template.ports.clear();
        driver.apply(&asked).await.unwrap();
        reached(driver, &asked).await;
        // The job and its pods are watched apart: what the job says may be known before the last of its pods.
        let have_ended =
            |it: &Observed| it.instances.len() == 2 && it.instances.iter().all(|it| it.phase == InstancePhase::Ended);
        until(driver, &asked.component, "both instances have ended", have_ended).await;
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        assert!(of_components(&place).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_not_ours_is_refused_and_left_alone() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let namespaces: Api<Namespace> = Api::all(place.client.clone());
        let name = place.namespace();
        let foreign = serde_json::from_value(serde_json::json!({ "metadata": { "name": name } })).unwrap();
        namespaces.create(&PostParams::default(), &foreign).await.unwrap();
        let asked = plan(place.image.clone(), &["serve"]);
        driver.apply(&asked).await.unwrap();
        let refused =
            until(driver, &asked.component, "it is refused", |it| matches!(it.rollout, RolloutFacts::Halted { .. }));
        let refused = refused.await;
        let fault = refused.instances[0].fault.clone().unwrap();
        assert!(fault.contains(&name) && fault.contains("kubernetes.namespace_prefix"), "{fault}");
        assert!(versions(&place).await.is_empty());
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_goes_leaves_nothing_of_ours_and_everything_of_others() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let namespaces: Api<Namespace> = Api::all(place.client.clone());
        let (asked, name) = (plan(place.image.clone(), &["serve"]), place.namespace());
        let tenant = asked.tenant.clone();
        driver.apply(&asked).await.unwrap();
        reached(driver, &asked).await;
        assert!(driver.tenants().await.unwrap().contains(&tenant));
        let waits = driver.remove_tenant(&tenant).await.unwrap_err().to_string();
        assert!(waits.contains(&name) && waits.contains("components still have Pod `"), "{waits}");
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();

        // Who does not lead any more removes nothing; another process does what one began.
        place.driver.lead(None);
        let refused = driver.remove_tenant(&tenant).await.unwrap_err().to_string();
        assert!(refused.contains("another server leads now"), "{refused}");
        place.driver.lead(Some(Arc::new(|| true)));
        assert_eq!(driver.remove_tenant(&tenant).await.unwrap(), None);
        let again = place.restarted().await;
        assert!(again.tenants().await.unwrap().is_empty(), "it is going, or gone");
        assert_eq!(again.remove_tenant(&tenant).await.unwrap(), None);
        again.shutdown(false).await.unwrap();
        eventually("the namespace goes", async || namespaces.get_opt(&name).await.unwrap().is_none()).await;

        // Made again, with something of others: that stays.
        driver.apply(&asked).await.unwrap();
        reached(driver, &asked).await;
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        let maps: Api<ConfigMap> = place.api();
        let mine = serde_json::from_value(json!({ "metadata": { "name": "mine" } })).unwrap();
        maps.create(&PostParams::default(), &mine).await.unwrap();
        let left = driver.remove_tenant(&tenant).await.unwrap().expect("others have something in it");
        assert!(
            left.contains("ConfigMap `mine`") && left.contains(&format!("kubectl delete namespace {name}")),
            "{left}"
        );
        let there = namespaces.get(&name).await.unwrap().metadata;
        assert!(there.deletion_timestamp.is_none() && maps.get("mine").await.is_ok());
        let marks: Vec<String> = there.labels.into_iter().chain(there.annotations).flatten().map(|it| it.0).collect();
        assert!(marks.iter().all(|it| !it.contains("arco") && !it.contains("managed-by")), "{marks:?}");
        assert!(versions(&place).await.is_empty(), "nothing of ours is in it");
        let quotas: Api<ResourceQuota> = place.api();
        assert!(quotas.list(&ListParams::default()).await.unwrap().items.is_empty());
        assert!(driver.tenants().await.unwrap().is_empty());
        assert_eq!(driver.remove_tenant(&tenant).await.unwrap(), None, "done again, it touches nothing");
        assert!(maps.get("mine").await.is_ok());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_made_is_shown_as_components_and_left_alone() {
    on_fake_nodes(|place| async move {
        let namespaces: Api<Namespace> = Api::all(place.client.clone());
        let name = format!("{}foreign", place.config.namespace_prefix);
        let missing = adopt::read(&place.config, &name).await.unwrap_err().to_string();
        assert!(missing.contains(&name), "{missing}");
        let foreign = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        namespaces.create(&PostParams::default(), &foreign).await.unwrap();
        let deployments: Api<Deployment> = Api::namespaced(place.client.clone(), &name);
        let made = json!({ "metadata": { "name": "web" }, "spec": {
            "replicas": 2, "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [
                { "name": "web", "image": "registry.invalid/web:1", "ports": [{ "containerPort": 8080 }] },
            ]}},
        }});
        let made = deployments.create(&PostParams::default(), &serde_json::from_value(made).unwrap()).await.unwrap();
        let found = adopt::read(&place.config, &name).await.unwrap();
        let web = &found.components[&"web".parse::<ComponentName>().unwrap()];
        assert_eq!(web.component.source.as_deref(), Some("image:registry.invalid/web:1"));
        assert_eq!((web.component.replicas, web.component.ports[0].port), (Some(2), 8080));
        assert!(found.left.is_empty() && web.lost.len() == 1 && web.lost[0].contains("memory"), "{found:#?}");
        let now = deployments.get("web").await.unwrap();
        assert_eq!((now.metadata.generation, now.metadata.uid), (made.metadata.generation, made.metadata.uid));
        namespaces.delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
    })
    .await;
}
