//! What happens to components when one of several nodes falls silent. The nodes are fake (`tests/kubernetes/cluster.py run
//! --fake-nodes 3`) and shared by the tests, which therefore run one after the other (`--test-threads=1`). Not here: pods
//! that really run.

mod drain;
mod parts;

use crate::cluster::control_plane::{let_go, of_components};
use crate::cluster::place::{Place, kubeconfig, network_of_node, on_a_platform, without_content};
use crate::installation::connect;
use arco_model::component::{Component, ObservedState, Power};
use arco_model::id::InstanceId;
use arco_model::observed::{InstanceFacts, InstancePhase, Observed, RolloutFacts};
use arco_model::plan::WorkloadPlan;
use arco_model::source::Source;
use arco_model::spec::scheduling::Scheduling;
use arco_model::spec::{APP_CONTAINER, ComponentKind, ComponentSpec};
use arco_model::status::{self, Status, StatusContext, StatusReport};
use arco_orchestrator::contract::{in_time, one_shot, plan, reached, ready, until, until_within};
use arco_orchestrator::{Orchestrator as _, Removal};
use arco_store::clock;
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// The label by which a fake node is told how to behave.
const TOLD: &str = "kubetest/pods";
/// How long the cluster may take: it waits 20 s for a node and 30 s more for its pods, or a minute for those of a removed one.
const PATIENCE: Duration = Duration::from_secs(300);

/// The fake nodes of the cluster.
struct Nodes {
    client: Client,
    /// Hands on the first answer: the other one asks again for minutes while a disruption budget refuses.
    asks_once: Client,
    api: Api<Node>,
    names: Vec<String>,
}

impl Nodes {
    /// All of them, when they are well; `None` where there are not enough.
    async fn found() -> Option<Self> {
        let file = kubeconfig()?;
        let fake = network_of_node(&file).is_none();
        let file = Kubeconfig::read_from(file).unwrap();
        let client = connect(&file).await;
        let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        let asks_once = Client::try_from(config).unwrap();
        let api: Api<Node> = Api::all(client.clone());
        let listed = api.list_metadata(&ListParams::default().labels(TOLD)).await.unwrap().items;
        let mut names: Vec<String> = listed.into_iter().filter_map(|it| it.metadata.name).collect();
        names.sort();
        if !fake || names.len() < 3 {
            eprintln!("SKIPPED: needs three fake nodes (tests/kubernetes/cluster.py run --fake-nodes 3)");
            return None;
        }
        let nodes = Self { client, asks_once, api, names };
        nodes.all_well().await;
        Some(nodes)
    }

    /// `ready`, `manual` or `silent`.
    async fn tell(&self, name: &str, word: &str) {
        let label = Patch::Merge(json!({ "metadata": { "labels": { (TOLD): word } } }));
        self.api.patch(name, &PatchParams::default(), &label).await.unwrap();
    }

    async fn all_well(&self) {
        let is_well = |it: &Node| {
            let mut conditions = it.status.iter().flat_map(|it| it.conditions.iter().flatten());
            let taints = it.spec.iter().flat_map(|it| it.taints.iter().flatten()).count();
            taints == 0 && conditions.any(|it| it.type_ == "Ready" && it.status == "True")
        };
        eventually("every node is well", async || {
            let found = self.api.list(&ListParams::default().labels(TOLD)).await.unwrap().items;
            found.len() >= self.names.len() && found.iter().all(is_well)
        })
        .await;
    }

    /// Every node is there, speaks, and takes pods.
    async fn restore(&self) {
        for name in &self.names {
            if self.api.get_opt(name).await.unwrap().is_none() {
                let labels = json!({ "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" });
                let node = json!({ "metadata": { "name": name, "labels": labels } });
                let node: Node = serde_json::from_value(node).unwrap();
                self.api.create(&PostParams::default(), &node).await.unwrap();
            }
            self.cordon(name, false).await;
            self.tell(name, "ready").await;
        }
        self.all_well().await;
    }
}

/// Waits for something that the cluster does.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + in_time(PATIENCE);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: waited in vain");
        tokio::time::sleep(Duration::from_millis(100)).await; // the pace of looking
    }
}

/// Runs a test; afterwards every node speaks again, also when it failed.
async fn restoring(nodes: &Nodes, test: Pin<Box<impl Future<Output = ()>>>) {
    let outcome = std::panic::AssertUnwindSafe(test).catch_unwind().await;
    nodes.restore().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn on_three_nodes<F: Future<Output = ()>>(test: impl FnOnce(Arc<Place>, Arc<Nodes>) -> F) {
    let Some(nodes) = Nodes::found().await else { return };
    let nodes = Arc::new(nodes);
    let (images, image) = without_content().await;
    on_a_platform(images, image, "registry.invalid:5000", None, |place| async move {
        restoring(&nodes, Box::pin(test(place, nodes.clone()))).await;
    })
    .await;
}

/// Each instance on a node of its own.
fn apart() -> Scheduling {
    serde_json::from_value(json!({ "anti_affinity": [{ "component": "web" }] })).unwrap()
}

fn find<'a>(seen: &'a Observed, id: &InstanceId) -> Option<&'a InstanceFacts> {
    seen.instances.iter().find(|it| it.id == *id)
}

/// What people are told of a component with this plan.
fn told(plan: &WorkloadPlan, seen: &Observed) -> StatusReport {
    let mut spec = ComponentSpec::new(Source::Image { reference: "stack/base".to_owned() });
    (spec.kind, spec.replicas) = (plan.kind, plan.replicas);
    let component = Component {
        id: plan.component.clone(),
        tenant: plan.tenant.clone(),
        application_id: clock::fresh(),
        application: plan.application.clone(),
        name: plan.name.clone(),
        spec,
        generation: 1,
        power: Power::On,
        restarts_asked: 0,
        desired_revision: Some(plan.template.revision.clone()),
        last_revision_number: 1,
        observed: ObservedState::default(),
        created_at: clock::now(),
        arriving: None,
        arriving_places: 0,
    };
    let start_deadline_ms = plan.rollout.start_deadline_ms;
    let context = StatusContext { start_deadline_ms, now: clock::now(), ..StatusContext::default() };
    status::decide(&component, seen, &context)
}

/// Waits until the silence of an instance's node is known.
async fn until_silent(place: &Place, plan: &WorkloadPlan, lost: &InstanceFacts) -> Observed {
    let what = "its node is known to be silent";
    let is_silent = |it: &Observed| find(it, &lost.id).is_some_and(|it| it.node_silent);
    let seen = until_within(PATIENCE, place.driver.as_ref(), &plan.component, what, is_silent).await;
    assert!(!ready(&seen).contains(&lost.id), "nobody is led to it any more: {seen:#?}");
    let reason = told(plan, &seen).reason;
    assert!(reason.contains(&format!("its node `{}` does not answer", lost.node)), "{reason}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_of_a_silent_node_are_made_elsewhere_and_none_is_doubled_when_it_comes_back() {
    on_three_nodes(|place, nodes| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        (asked.replicas, asked.template.scheduling) = (2, apart());
        let id = asked.component.clone();
        driver.apply(&asked).await.unwrap();
        let first = reached(driver, &asked).await;
        let lost = first.instances[0].clone();
        assert_ne!(lost.node, first.instances[1].node);

        nodes.tell(&lost.node, "silent").await;
        let seen = until_silent(&place, &asked, &lost).await;
        let report = told(&asked, &seen);
        assert_eq!(report.status, Status::Degraded, "{report:?}");
        assert!(report.advice.contains(&format!("kubectl delete node {}", lost.node)), "{report:?}");

        // The cluster tells its pod to end, which nobody confirms: the component is as asked all the same.
        let is_replaced = |it: &Observed| it.rollout == RolloutFacts::Done && ready(it).len() == 2;
        let replaced = until_within(PATIENCE, driver, &id, "another node takes its instance", is_replaced).await;
        let left = find(&replaced, &lost.id).expect("nobody has confirmed its end");
        assert_eq!((left.phase, left.node_silent), (InstancePhase::Stopping, true));
        assert!(replaced.instances.iter().filter(|it| it.id != lost.id).all(|it| it.node != lost.node));
        let report = told(&asked, &replaced);
        assert_eq!((report.status, report.reason.as_str()), (Status::Running, ""));

        // Changes go on meanwhile.
        asked.template.env.insert("COLOUR".to_owned(), "green".to_owned());
        driver.apply(&asked).await.unwrap();
        let green = let_go(driver, &asked).await;
        assert!(ready(&green).len() == 2 && ready(&green).is_disjoint(&ready(&replaced)), "{green:#?}");
        assert!(find(&green, &lost.id).is_some());

        nodes.tell(&lost.node, "ready").await;
        let back = until(driver, &id, "the node confirms the end", |it| find(it, &lost.id).is_none()).await;
        assert_eq!((back.instances.len(), ready(&back)), (2, ready(&green)), "what was made elsewhere stays");
        let pods: Api<Pod> = place.api();
        assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 2);
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_instance_that_was_not_ready_when_its_node_fell_silent_halts_no_change() {
    on_three_nodes(|place, nodes| async move {
        let driver = place.driver.as_ref();
        let on = |node: &str| -> Scheduling {
            let here = json!({ "key": "kubernetes.io/hostname", "operator": "in", "values": [node] });
            // It is not made elsewhere meanwhile.
            let stays = json!({ "key": "node.kubernetes.io/unreachable", "operator": "exists", "effect": "no_execute", "toleration_seconds": 3600 });
            serde_json::from_value(json!({ "node_affinity": [here], "tolerations": [stays] })).unwrap()
        };
        let (first, second) = (&nodes.names[0], &nodes.names[1]);
        let mut asked = plan(place.image.clone(), &["serve"]);
        asked.template.scheduling = on(first);
        let id = asked.component.clone();
        driver.apply(&asked).await.unwrap();
        let before = reached(driver, &asked).await;

        // The new instance is on its node, and has not begun when that falls silent.
        nodes.tell(second, "manual").await;
        asked.template.scheduling = on(second);
        driver.apply(&asked).await.unwrap();
        let new = |it: &Observed| it.instances.iter().find(|it| it.node == *second).cloned();
        until(driver, &id, "the new instance has its node", |it| new(it).is_some()).await;
        nodes.tell(second, "silent").await;
        let is_silent = |it: &Observed| new(it).is_some_and(|it| it.node_silent);
        until_within(PATIENCE, driver, &id, "its node is known to be silent", is_silent).await;

        // As far as anybody knows it runs since long ago, and was never ready.
        let pods: Api<Pod> = place.api();
        let there = ListParams::default().fields(&format!("spec.nodeName={second}"));
        let pod = pods.list(&there).await.unwrap().items.remove(0).metadata.name.unwrap();
        let running = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
        let container = json!({ "name": APP_CONTAINER, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": running });
        let status = json!({ "status": { "phase": "Running", "containerStatuses": [container] } });
        pods.patch_status(&pod, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        let runs = |it: &Observed| new(it).is_some_and(|it| it.started_at.is_some());
        let seen = until(driver, &id, "its program is seen", runs).await;
        assert_eq!((&seen.rollout, ready(&seen)), (&RolloutFacts::Progressing, ready(&before)), "{seen:#?}");
        let report = told(&asked, &seen);
        assert!(report.reason.contains(&format!("its node `{second}` does not answer")), "{report:?}");

        nodes.tell(second, "ready").await;
        let after = let_go(driver, &asked).await;
        assert!(ready(&after).len() == 1 && new(&after).is_some(), "{after:#?}");
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_on_a_silent_node_waits_and_its_change_goes_on_when_the_node_is_back() {
    on_three_nodes(|place, nodes| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        (asked.kind, asked.replicas, asked.template.scheduling) = (ComponentKind::Stateful, 2, apart());
        let id = asked.component.clone();
        driver.apply(&asked).await.unwrap();
        let first = reached(driver, &asked).await;
        let of_place = |seen: &Observed, place: u32| -> Vec<InstanceFacts> {
            seen.instances.iter().filter(|it| it.place == place).cloned().collect()
        };
        let (lost, other) = (of_place(&first, 0).remove(0), of_place(&first, 1).remove(0));
        assert_ne!(lost.node, other.node);

        nodes.tell(&lost.node, "silent").await;
        let seen = until_silent(&place, &asked, &lost).await;
        let report = told(&asked, &seen);
        assert!(report.status == Status::Degraded && report.advice.contains("never runs twice"), "{report:?}");

        // A change tells the place to end, and goes no further: it does not run twice, and the other place serves.
        asked.template.env.insert("COLOUR".to_owned(), "green".to_owned());
        driver.apply(&asked).await.unwrap();
        let ends = |it: &Observed| find(it, &lost.id).is_some_and(|it| it.phase == InstancePhase::Stopping);
        let waits = until(driver, &id, "the place is told to end", ends).await;
        assert_eq!((of_place(&waits, 0).len(), of_place(&waits, 1)[0].id == other.id), (1, true), "{waits:#?}");
        let report = told(&asked, &waits);
        assert!(report.status == Status::Degraded && report.advice.contains("never runs twice"), "{report:?}");

        nodes.tell(&lost.node, "ready").await;
        let green = let_go(driver, &asked).await;
        let places: Vec<u32> = green.instances.iter().map(|it| it.place).collect();
        assert!(ready(&green).len() == 2 && ready(&green).is_disjoint(&ready(&first)), "{green:#?}");
        assert!(places.contains(&0) && places.contains(&1) && places.len() == 2, "{places:?}");
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_gives_its_places_to_another() {
    on_three_nodes(|place, nodes| async move {
        let driver = place.driver.as_ref();
        let mut asked = plan(place.image.clone(), &["serve"]);
        asked.kind = ComponentKind::Stateful;
        let id = asked.component.clone();
        driver.apply(&asked).await.unwrap();
        let lost = reached(driver, &asked).await.instances.remove(0);
        nodes.tell(&lost.node, "silent").await;
        let seen = until_silent(&place, &asked, &lost).await;
        let report = told(&asked, &seen);
        assert_eq!(report.status, Status::Abnormal, "{report:?}");

        // What the advice says.
        nodes.api.delete(&lost.node, &DeleteParams::default()).await.unwrap();
        let is_moved = |it: &Observed| it.rollout == RolloutFacts::Done && ready(it).len() == 1;
        let moved = until_within(PATIENCE, driver, &id, "another node takes the place", is_moved).await;
        let [it] = moved.instances.as_slice() else { panic!("one place, {moved:#?}") };
        assert!(it.place == 0 && it.id != lost.id && it.node != lost.node, "{it:?}");
        driver.remove(&id, &Removal::Everything).await.unwrap();
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_that_do_not_want_each_other_run_apart_and_one_without_room_waits() {
    on_three_nodes(|place, nodes| async move {
        let driver = place.driver.as_ref();
        let two =
            json!({ "key": "kubernetes.io/hostname", "operator": "in", "values": [nodes.names[0], nodes.names[1]] });
        let of = |name: &str, apart: &[&str]| {
            let mut asked = plan(place.image.clone(), &["serve"]);
            asked.name = name.parse().unwrap();
            let apart: Vec<_> = apart.iter().map(|it| json!({ "component": it })).collect();
            let scheduling = json!({ "node_affinity": [two], "anti_affinity": apart });
            asked.template.scheduling = serde_json::from_value(scheduling).unwrap();
            asked
        };
        let (a, b, c) = (of("a", &[]), of("b", &["a"]), of("c", &["a", "b"]));
        let mut on = Vec::new();
        for asked in [&a, &b] {
            driver.apply(asked).await.unwrap();
            on.push(reached(driver, asked).await.instances.remove(0).node);
        }
        assert_ne!(on[0], on[1]);
        driver.apply(&c).await.unwrap();
        let waits = |it: &Observed| {
            let fault = it.instances.iter().find_map(|it| it.fault.as_deref()).unwrap_or_default();
            fault.contains("no node of the cluster can take it") && fault.contains("anti-affinity")
        };
        until(driver, &c.component, "the third waits, with the reason", waits).await;
        driver.remove(&a.component, &Removal::Everything).await.unwrap();
        let found = reached(driver, &c).await;
        assert_eq!(found.instances[0].node, on[0], "where there is room now");
        for asked in [&b, &c] {
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        }
        assert_eq!(of_components(&place).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_on_a_silent_node_ends_when_the_cluster_gives_it_up() {
    on_three_nodes(|place, nodes| async move {
        // It runs as long as nobody says that it has ended.
        for node in &nodes.names {
            nodes.tell(node, "manual").await;
        }
        let asked = plan(place.image.clone(), &["serve"]);
        let mut work = one_shot(&asked, &["work"]);
        let taint = "node.kubernetes.io/unreachable";
        let soon = json!({ "key": taint, "operator": "exists", "effect": "no_execute", "toleration_seconds": 5 });
        work.scheduling = serde_json::from_value(json!({ "tolerations": [soon] })).unwrap();
        work.timeout_ms = in_time(PATIENCE).as_millis() as u64;
        let (sink, _lines) = mpsc::channel(16);
        let (_keep, cancelled) = oneshot::channel();
        let driver = place.driver.clone();
        let running = tokio::spawn(async move { driver.run(&work, sink, cancelled).await });

        let pods: Api<Pod> = place.api();
        let its = async || {
            let found = pods.list(&ListParams::default().labels("arco.internal/role=one-shot")).await.unwrap().items;
            found.into_iter().find_map(|it| Some((it.metadata.name?, it.spec?.node_name?)))
        };
        eventually("it has a node", async || its().await.is_some()).await;
        let (name, node) = its().await.unwrap();
        let began = "2026-01-01T00:00:00Z";
        let holds = |what: &str| json!({ "type": what, "status": "True", "lastTransitionTime": began });
        let container = json!({ "name": "app", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": began } } });
        let status = json!({ "status": { "phase": "Running", "startTime": began, "containerStatuses": [container],
            "conditions": [holds("PodScheduled"), holds("Initialized"), holds("ContainersReady"), holds("Ready")] } });
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();

        nodes.tell(&node, "silent").await;
        let why = running.await.unwrap().unwrap_err().to_string();
        assert!(why.contains(&format!("its node `{node}` does not answer")), "{why}");
    })
    .await;
}
