//! What every driver of the orchestrator must do: one suite, run on each of them, and what tests of drivers share.
//!
//! Only for tests (feature `contract`); panics are findings. Bounds of time grow with `ARCO_TEST_SLOWNESS`.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a panic is the finding of a test")]

use crate::{Error, ExecRequest, Orchestrator, OutputLine, Removal, SharedOrchestrator};
use arco_model::id::{ComponentId, InstanceId, RevisionId};
use arco_model::observed::{InstancePhase, Observed, RolloutFacts};
use arco_model::plan::{CacheFolder, InstanceTemplate, OneShot, OneShotNetwork, WorkloadPlan};
use arco_model::spec::scheduling::Scheduling;
use arco_model::spec::{ComponentKind, Port, Protocol, Resources, RolloutSpec};
use arco_store::clock;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

/// A bound of time, longer on an emulated machine: `ARCO_TEST_SLOWNESS` (1 when not set) says how many times.
pub fn in_time(limit: Duration) -> Duration {
    limit * std::env::var("ARCO_TEST_SLOWNESS").map_or(1, |it| it.parse().unwrap())
}

/// A web server with one port.
pub fn plan(image: arco_model::artifact::ImageRef, argv: &[&str]) -> WorkloadPlan {
    WorkloadPlan {
        component: clock::fresh(),
        tenant: "default".parse().unwrap(),
        application: "demo".parse().unwrap(),
        name: "web".parse().unwrap(),
        kind: ComponentKind::Stateless,
        replicas: 1,
        template: InstanceTemplate {
            revision: clock::fresh::<RevisionId>(),
            revision_number: 1,
            image,
            argv: argv.iter().map(|it| (*it).to_owned()).collect(),
            env: [("COLOUR".to_owned(), "blue".to_owned())].into(),
            working_dir: String::new(),
            user: String::new(),
            stop_signal: String::new(),
            resources: Resources { cpu_milli: 0, memory_mb: 64, disk_mb: 32, pids: 64 },
            ports: vec![Port { port: 8080, protocol: Protocol::Http, outer: true }],
            probe: None,
            volumes: Vec::new(),
            files: Vec::new(),
            restarts_asked: 0,
            scheduling: Scheduling::default(),
            overlay: None,
        },
        rollout: RolloutSpec {
            // Long: who tests that they pass sets them. A busy machine must not look like a program that does not start.
            start_deadline_ms: in_time(Duration::from_secs(300)).as_millis() as u64,
            drain_ms: in_time(Duration::from_secs(600)).as_millis() as u64,
            stop_grace_ms: 2_000,
            max_surge: 1,
            min_ready_ms: 0,
        },
        autoscaling: None,
        may_call: BTreeSet::new(),
        hold: false,
    }
}

/// How long something may take that happens at once on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the facts of a component are as wanted.
pub async fn until(
    driver: &dyn Orchestrator,
    id: &ComponentId,
    what: &str,
    wanted: impl Fn(&Observed) -> bool,
) -> Observed {
    until_within(PATIENCE, driver, id, what, wanted).await
}

/// As [`until`], for what takes longer.
pub async fn until_within(
    limit: Duration,
    driver: &dyn Orchestrator,
    id: &ComponentId,
    what: &str,
    wanted: impl Fn(&Observed) -> bool,
) -> Observed {
    let mut bell = driver.changes();
    let wait = async {
        loop {
            let found = driver.observe(id).await.unwrap();
            if wanted(&found) {
                return found;
            }
            let _ = bell.recv().await; // a lagged bell is a bell
        }
    };
    match tokio::time::timeout(in_time(limit), wait).await {
        Ok(found) => found,
        Err(_) => panic!("{what}: waited in vain; {:#?}", driver.observe(id).await),
    }
}

/// Instances that are ready.
pub fn ready(found: &Observed) -> BTreeSet<InstanceId> {
    found.instances.iter().filter(|it| it.phase == InstancePhase::Ready).map(|it| it.id.clone()).collect()
}

/// Waits until the plan is reached.
pub async fn reached(driver: &dyn Orchestrator, plan: &WorkloadPlan) -> Observed {
    let fingerprint = plan.fingerprint();
    until(driver, &plan.component, "the plan is reached", |it| {
        it.plan == fingerprint && it.rollout == RolloutFacts::Done
    })
    .await
}

/// The suite. `plan` is a web server.
pub async fn contract(driver: SharedOrchestrator, mut plan: WorkloadPlan) {
    let driver = driver.as_ref();
    let id = plan.component.clone();
    assert_eq!(driver.observe(&id).await.unwrap(), Observed::default());
    assert!(driver.components().await.unwrap().is_empty());

    driver.apply(&plan).await.unwrap();
    assert_eq!(driver.observe(&id).await.unwrap().plan, plan.fingerprint(), "facts speak of the plan at once");
    let first = reached(driver, &plan).await;
    assert_eq!(ready(&first).len(), 1);
    assert!(first.address.is_some() && first.instances[0].address.is_some());
    assert_eq!(first.instances[0].template, plan.template.fingerprint());
    assert_eq!(driver.components().await.unwrap(), std::slice::from_ref(&id));

    driver.apply(&plan).await.unwrap();
    assert_eq!(ready(&reached(driver, &plan).await), ready(&first), "the same plan again does nothing");

    plan.replicas = 2;
    driver.apply(&plan).await.unwrap();
    let two = reached(driver, &plan).await;
    assert!(ready(&two).len() == 2 && ready(&two).is_superset(&ready(&first)), "what runs stays");

    // Rolled out one by one; an old one leaves only when it is released.
    plan.template.env.insert("COLOUR".to_owned(), "green".to_owned());
    driver.apply(&plan).await.unwrap();
    let template = plan.template.fingerprint();
    loop {
        let found = until(driver, &id, "an old one drains", |it| {
            it.rollout == RolloutFacts::Done || it.instances.iter().any(|it| it.phase == InstancePhase::Draining)
        });
        let found = found.await;
        assert!(ready(&found).len() >= 2, "as many serve as were asked: {found:#?}");
        let Some(leaving) = found.instances.iter().find(|it| it.phase == InstancePhase::Draining) else { break };
        assert_ne!(leaving.template, template);
        driver.release(&leaving.id).await.unwrap();
        let leaving = leaving.id.clone();
        let gone =
            |it: &Observed| !it.instances.iter().any(|it| it.id == leaving && it.phase == InstancePhase::Draining);
        until(driver, &id, "the released one is stopped", gone).await;
    }
    let green = reached(driver, &plan).await;
    assert!(ready(&green).is_disjoint(&ready(&two)));
    assert!(green.instances.iter().all(|it| it.template == template));
    assert_eq!(green.address, first.address, "the stable address stays");

    let instance = ready(&green).into_iter().next().unwrap();
    let request = ExecRequest { argv: vec!["true".to_owned()], terminal: None };
    let session = driver.exec(&instance, request.clone()).await.unwrap();
    assert_eq!(session.exit.await, Ok(0));
    assert!(driver.usage(&instance).await.is_ok());
    let nobody = clock::fresh::<InstanceId>();
    assert!(matches!(driver.release(&nobody).await, Err(Error::NotFound(_))));
    assert!(driver.exec(&nobody, request).await.is_err());

    let mut web = driver.connect(&instance, 8080).await.unwrap();
    web.stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = [0; 7];
    web.stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.");
    // Where nothing listens it is refused, or ends with the reason.
    let why = match driver.connect(&instance, 9).await {
        Ok(nothing) => nothing.failure.await.unwrap(),
        Err(error) => error.to_string(),
    };
    assert!(why.contains("nothing listens on port 9 inside"), "{why}");
    assert!(driver.connect(&nobody, 8080).await.is_err());

    let once = one_shot(&plan, &["true"]);
    let (output, _lines) = mpsc::channel(64);
    let (_keep, cancel) = oneshot::channel();
    let result = driver.run(&once, output, cancel).await.unwrap();
    assert_eq!((result.exit.status, result.timed_out), (0, false));

    plan.replicas = 0;
    driver.apply(&plan).await.unwrap();
    let leave = |it: &Observed| it.instances.iter().all(|it| it.phase == InstancePhase::Draining);
    let draining = until(driver, &id, "all drain", leave).await;
    for leaving in &draining.instances {
        driver.release(&leaving.id).await.unwrap();
    }
    until(driver, &id, "everything ended", |it| it.instances.is_empty()).await;
    reached(driver, &plan).await;

    driver.remove(&id, &Removal::Everything).await.unwrap();
    assert_eq!(driver.observe(&id).await.unwrap(), Observed::default());
    assert!(driver.components().await.unwrap().is_empty());
    // A bell for what is not there would make whoever listens ask for its removal for ever.
    let mut bell = driver.changes();
    driver.remove(&id, &Removal::Everything).await.unwrap();
    assert!(bell.try_recv().is_err(), "nothing was there, so nothing changed");
    driver.shutdown(true).await.unwrap();
}

/// What drivers that run programs do with the caches of one-shots. `host_path` is an empty folder, open to all.
pub async fn caches(driver: &dyn Orchestrator, plan: &WorkloadPlan, host_path: &Path) {
    let steps = [
        "test ! -e /cache/packages/one && echo a > /cache/packages/one && echo made > /made",
        "test \"$(cat /cache/packages/one)\" = a && test ! -e /made && rm /cache/packages/one && echo b > /cache/packages/two",
        "test ! -e /cache/packages/one && test \"$(cat /cache/packages/two)\" = b",
    ];
    for script in steps {
        let mut once = one_shot(plan, &["sh", "-c", script]);
        once.network = OneShotNetwork::None;
        once.timeout_ms = in_time(Duration::from_secs(300)).as_millis() as u64;
        once.caches = vec![CacheFolder {
            name: "packages".to_owned(),
            path: "/cache/packages".to_owned(),
            host_path: host_path.to_owned(),
        }];
        let (output, mut lines) = mpsc::channel(64);
        let (_keep, cancel) = oneshot::channel();
        let said = async {
            let mut said = Vec::new();
            while let Some(OutputLine { text, .. }) = lines.recv().await {
                said.push(text);
            }
            said
        };
        let (result, said) = tokio::join!(driver.run(&once, output, cancel), said);
        let result = result.unwrap();
        assert_eq!(result.exit.status, 0, "`{script}`: {result:?} {said:?}");
    }
}

/// A one-shot of the image of a plan, in the build network.
pub fn one_shot(plan: &WorkloadPlan, argv: &[&str]) -> OneShot {
    OneShot {
        id: clock::fresh(),
        tenant: plan.tenant.clone(),
        component: plan.component.clone(),
        image: plan.template.image.clone(),
        extra_layers: Vec::new(),
        argv: argv.iter().map(|it| (*it).to_owned()).collect(),
        env: [("COLOUR".to_owned(), "red".to_owned())].into(),
        working_dir: String::new(),
        user: String::new(),
        unprivileged: false,
        resources: plan.template.resources,
        timeout_ms: in_time(Duration::from_secs(300)).as_millis() as u64,
        network: OneShotNetwork::Build,
        mounts: Vec::new(),
        caches: Vec::new(),
        cache_mb: 64,
        volumes: Vec::new(),
        files: Vec::new(),
        export: None,
        scheduling: Scheduling::default(),
        overlay: None,
    }
}
