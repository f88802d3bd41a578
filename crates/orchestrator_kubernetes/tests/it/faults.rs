//! What the driver makes of an API server that fails: it goes on where it was, and does nothing twice.

mod slow;

mod control_plane {
    use crate::cluster::place::{Place, kubeconfig, network_of_node, on_a_platform, without_content};
    use crate::faulty::{Fault, Faulty};
    use arco_config::KubernetesConfig;
    use arco_model::observed::{Observed, RolloutFacts};
    use arco_model::plan::OneShot;
    use arco_model::spec::APP_CONTAINER;
    use arco_orchestrator::contract::{one_shot, plan, reached, ready, until, until_within};
    use arco_orchestrator::{Orchestrator, Removal};
    use arco_orchestrator_kubernetes::{KubernetesOptions, KubernetesOrchestrator};
    use arco_store::logs::{LogBatch, LogSink};
    use futures_util::StreamExt as _;
    use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
    use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};
    use tokio::sync::{mpsc, oneshot};

    pub(super) const PATIENCE: Duration = Duration::from_secs(120);

    pub(super) async fn on_a_faulty_server<F: Future<Output = ()>>(
        test: impl FnOnce(Arc<Place>, Arc<KubernetesOrchestrator>, Faulty) -> F,
    ) {
        with_output(|place, driver, faulty, output| {
            let run = Box::pin(test(place, driver, faulty));
            async move {
                run.await;
                drop(output);
            }
        })
        .await;
    }

    /// The same, with what the driver reads of instances.
    async fn with_output<F: Future<Output = ()>>(
        test: impl FnOnce(Arc<Place>, Arc<KubernetesOrchestrator>, Faulty, mpsc::Receiver<LogBatch>) -> F,
    ) {
        if kubeconfig().is_some_and(|it| network_of_node(&it).is_some()) {
            eprintln!("SKIPPED: needs fake nodes, which run nothing (tests/kubernetes/cluster.py run --fake-nodes 1)");
            return;
        }
        let (images, image) = without_content().await;
        on_a_platform(images, image, "registry.invalid:5000", None, |place| async move {
            let folder = tempfile::tempdir().unwrap();
            let faulty = Faulty::before(place.client.clone(), folder.path()).await;
            let config = KubernetesConfig { kubeconfig: faulty.kubeconfig.clone(), ..place.config.clone() };
            let options =
                KubernetesOptions { config, allowed_networks: Vec::new(), pull_credentials: None, kept_lines: None };
            let (sink, output) = LogSink::channel(64);
            let driver = KubernetesOrchestrator::start(options, place.images.clone(), sink).await.unwrap();
            test(place, driver.clone(), faulty, output).await;
            driver.shutdown(false).await.unwrap();
        })
        .await;
    }

    /// Waits until requests met the fault.
    pub(super) async fn met(faulty: &Faulty, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        while faulty.failed() < count {
            assert!(Instant::now() < deadline, "{} requests failed, wanted {count}", faulty.failed());
            tokio::time::sleep(Duration::from_millis(20)).await; // the pace of looking
        }
    }

    pub(super) async fn pods(place: &Place) -> Vec<Pod> {
        let api: Api<Pod> = place.api();
        let found = api.list(&ListParams::default().labels("arco.internal/role=instance")).await.unwrap();
        found.items.into_iter().filter(|it| it.metadata.deletion_timestamp.is_none()).collect()
    }

    pub(super) async fn as_asked(
        place: &Place,
        driver: &KubernetesOrchestrator,
        asked: &arco_model::plan::WorkloadPlan,
    ) -> Observed {
        let found = reached(driver, asked).await;
        assert_eq!(ready(&found).len(), asked.replicas as usize, "{found:#?}");
        let deadline = Instant::now() + PATIENCE;
        while pods(place).await.len() != asked.replicas as usize {
            assert!(Instant::now() < deadline, "{:#?}", pods(place).await);
            tokio::time::sleep(Duration::from_millis(50)).await; // the pace of looking
        }
        found
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_arrives_once_whatever_the_api_server_does() {
        on_a_faulty_server(|place, driver, faulty| async move {
            let mut asked = plan(place.image.clone(), &["serve"]);
            driver.apply(&asked).await.unwrap();
            let mut before = as_asked(&place, &driver, &asked).await;
            for (fault, count) in
                [(Fault::Down, 5), (Fault::Overloaded, 1), (Fault::Conflicts, 1), (Fault::Expired, 5), (Fault::Gone, 3)]
            {
                faulty.fail(fault);
                // The number changes, so that what runs stays.
                asked.replicas = if asked.replicas == 1 { 3 } else { asked.replicas + 1 };
                driver.apply(&asked).await.unwrap();
                met(&faulty, count).await;
                let seen = driver.observe(&asked.component).await.unwrap();
                assert!(ready(&seen).is_superset(&ready(&before)), "{fault:?}: what was known stays known: {seen:#?}");
                if !matches!(fault, Fault::Overloaded | Fault::Conflicts) {
                    faulty.fail(Fault::None);
                }
                let after = as_asked(&place, &driver, &asked).await;
                assert!(ready(&after).is_superset(&ready(&before)), "{fault:?}: what ran stays");
                faulty.fail(Fault::None);
                before = after;
            }
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
            assert!(pods(&place).await.is_empty());
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_vanished_while_nobody_watched_is_forgotten() {
        on_a_faulty_server(|place, driver, faulty| async move {
            let mut asked = plan(place.image.clone(), &["serve"]);
            asked.replicas = 2;
            driver.apply(&asked).await.unwrap();
            let before = as_asked(&place, &driver, &asked).await;
            faulty.fail(Fault::Down);
            met(&faulty, 3).await;
            let api: Api<Pod> = place.api();
            let victim = pods(&place).await.remove(0).metadata.name.unwrap();
            api.delete(&victim, &DeleteParams::default().grace_period(0)).await.unwrap();
            faulty.fail(Fault::None);
            let after = until(driver.as_ref(), &asked.component, "another one runs in its place", |it| {
                it.rollout == RolloutFacts::Done && ready(it).len() == 2 && ready(it) != ready(&before)
            })
            .await;
            assert_eq!(ready(&after).intersection(&ready(&before)).count(), 1);
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_webhook_that_rejects_is_named_and_tried_again() {
        on_a_faulty_server(|place, driver, faulty| async move {
            faulty.fail(Fault::Rejecting);
            let asked = plan(place.image.clone(), &["serve"]);
            driver.apply(&asked).await.unwrap();
            until(driver.as_ref(), &asked.component, "the webhook is named", |it| {
                format!("{it:?}").contains("no.example")
            })
            .await;
            assert!(pods(&place).await.is_empty());
            faulty.fail(Fault::None);
            as_asked(&place, &driver, &asked).await;
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_namespace_that_is_being_deleted_is_made_again() {
        on_a_faulty_server(|place, driver, _faulty| async move {
            let asked = plan(place.image.clone(), &["serve"]);
            driver.apply(&asked).await.unwrap();
            let before = as_asked(&place, &driver, &asked).await;
            let namespaces: Api<Namespace> = Api::all(place.client.clone());
            namespaces.delete(&place.namespace(), &DeleteParams::default()).await.unwrap();
            // The cluster empties a namespace in rounds, with growing pauses between them.
            let limit = Duration::from_secs(300);
            let after = until_within(limit, driver.as_ref(), &asked.component, "it runs in a new namespace", |it| {
                it.rollout == RolloutFacts::Done && ready(it).len() == 1 && ready(it).is_disjoint(&ready(&before))
            })
            .await;
            assert_eq!(after.plan, asked.fingerprint());
            as_asked(&place, &driver, &asked).await;
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_does_not_lead_any_more_changes_nothing() {
        on_a_faulty_server(|place, driver, faulty| async move {
            let mut asked = plan(place.image.clone(), &["serve"]);
            driver.apply(&asked).await.unwrap();
            as_asked(&place, &driver, &asked).await;
            let (leads, questions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
            let (answer, count) = (leads.clone(), questions.clone());
            driver.lead(Some(Arc::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
                answer.load(Ordering::SeqCst)
            })));
            faulty.fail(Fault::Rejecting); // counts the writes
            asked.replicas = 3;
            driver.apply(&asked).await.unwrap();
            let deadline = Instant::now() + PATIENCE;
            while questions.load(Ordering::SeqCst) < 2 {
                assert!(
                    Instant::now() < deadline,
                    "nobody asks whether this process leads before it changes something"
                );
                tokio::time::sleep(Duration::from_millis(20)).await; // the pace of looking
            }
            assert_eq!((faulty.failed(), pods(&place).await.len()), (0, 1));
            faulty.fail(Fault::None);
            leads.store(true, Ordering::SeqCst);
            as_asked(&place, &driver, &asked).await;
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        })
        .await;
    }

    /// Says four words, two of them while nobody is answered, and reads until each has come; all that was read.
    async fn read_across_faults(faulty: &Faulty, mut more: impl AsyncFnMut() -> Vec<String>) -> Vec<String> {
        let mut read: Vec<String> = Vec::new();
        for (fault, count, text) in
            [(Fault::None, 0, "one"), (Fault::Mute, 3, "two"), (Fault::Down, 8, "three"), (Fault::None, 0, "four")]
        {
            faulty.fail(fault);
            met(faulty, count).await;
            faulty.say(text);
            faulty.fail(Fault::None);
            while read.last().is_none_or(|it| it != text) {
                let more = tokio::time::timeout(PATIENCE, more()).await;
                read.extend(more.unwrap_or_else(|_| panic!("{text} is not read after {fault:?}: {read:?}")));
            }
        }
        read
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn output_comes_once_also_when_nobody_tells_it_for_a_while() {
        with_output(|place, driver, faulty, mut output| async move {
            let asked = plan(place.image.clone(), &["serve"]);
            driver.apply(&asked).await.unwrap();
            as_asked(&place, &driver, &asked).await;
            let more = async || output.recv().await.unwrap().lines.into_iter().map(|it| it.text).collect();
            let read = read_across_faults(&faulty, more).await;
            assert_eq!(read, ["one", "two", "three", "four"]);
            driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_run_goes_on_while_nobody_answers_and_each_of_its_lines_comes_once() {
        on_a_faulty_server(|place, driver, faulty| async move {
            let asked = plan(place.image.clone(), &["serve"]);
            // No node takes it: what becomes of its pod says this test.
            let scheduling = serde_json::from_value(json!({ "node_selector": { "kubetest/has-it": "nobody" } })).unwrap();
            let timeout_ms = 600_000;
            let work = OneShot { scheduling, timeout_ms, ..one_shot(&asked, &["work"]) };
            let name = format!("run-{}", work.id);
            let (sink, mut lines) = mpsc::channel(64);
            let (_keep, cancelled) = oneshot::channel();
            faulty.fail(Fault::Down);
            let running = tokio::spawn(async move { driver.run(&work, sink, cancelled).await });
            met(&faulty, 3).await;
            faulty.fail(Fault::None);
            let pods: Api<Pod> = place.api();
            let deadline = Instant::now() + PATIENCE;
            while pods.get_opt(&name).await.unwrap().is_none() {
                assert!(Instant::now() < deadline, "it is not made when the API server answers again");
                tokio::time::sleep(Duration::from_millis(20)).await; // the pace of looking
            }
            let becomes = async |phase: &str, state: serde_json::Value| {
                let container = json!({ "name": APP_CONTAINER, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state });
                let status = json!({ "status": { "phase": phase, "containerStatuses": [container] } });
                pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
            };
            becomes("Running", json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } })).await;
            let more = async || vec![lines.recv().await.expect("it has not ended").text];
            let mut read = read_across_faults(&faulty, more).await;
            // It ends while nobody answers, with a last word.
            faulty.fail(Fault::Down);
            faulty.say("five");
            let ended = json!({ "terminated": { "exitCode": 3, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:09Z" } });
            becomes("Failed", ended).await;
            faulty.say_no_more();
            met(&faulty, 8).await;
            faulty.fail(Fault::None);
            let result = tokio::time::timeout(2 * PATIENCE, running).await.expect("it ends").unwrap().unwrap();
            while let Ok(line) = lines.try_recv() {
                read.push(line.text);
            }
            assert_eq!((result.exit.status, result.timed_out), (3, false));
            assert_eq!(read, ["one", "two", "three", "four", "five"]);
            assert!(pods.get_opt(&name).await.unwrap().is_none(), "nothing of it is left");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_run_whose_pod_stays_leaves_no_opened_secret() {
        on_a_faulty_server(|place, driver, faulty| async move {
            faulty.fail(Fault::Undeletable);
            let asked = plan(place.image.clone(), &["serve"]);
            let env = [("TOKEN".to_owned(), "opened".to_owned())].into();
            let work = OneShot { env, ..one_shot(&asked, &["serve"]) };
            let name = format!("run-{}", work.id);
            let secrets: Api<Secret> = place.api();
            let now = secrets.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
            let its = WatchParams::default().fields(&format!("metadata.name={name}")).disable_bookmarks();
            let mut events = Box::pin(secrets.watch(&its, &now).await.unwrap());
            let (sink, _lines) = mpsc::channel(16);
            let (cancel, cancelled) = oneshot::channel();
            let running = tokio::spawn(async move { driver.run(&work, sink, cancelled).await });
            let first = tokio::time::timeout(PATIENCE, events.next()).await;
            assert!(matches!(first, Ok(Some(Ok(WatchEvent::Added(_))))), "the run has no secret: {first:?}");
            // Its output is asked for once it runs.
            let deadline = Instant::now() + PATIENCE;
            while faulty.followed() == 0 {
                assert!(Instant::now() < deadline, "the run does not begin");
                tokio::time::sleep(Duration::from_millis(20)).await; // the pace of looking
            }
            drop(cancel);
            let why = running.await.unwrap().unwrap_err().to_string();
            assert!(why.contains("delete the pod of a one-shot workload"), "its pod is still there: {why}");
            assert!(faulty.failed() > 0 && secrets.get_opt(&name).await.unwrap().is_none());
            faulty.fail(Fault::None);
        })
        .await;
    }
}
