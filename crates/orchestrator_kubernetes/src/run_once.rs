//! Workloads that run once: steps of builds, and `arco run`. Each is a pod of its own, never privileged.
//!
//! A workload without folders and export *is* its pod: the pod's program is the workload's. One with them runs inside a
//! pod that waits ([`session`]): folders are copied in, the program is started, what it wrote is copied out.
//! What must hold: however it ends (by itself, time limit, cancel, fault), nothing of it is left in the cluster; its exit
//! is told only after its last line of output. How it ends its pod says, never a connection to the API server: while that one is
//! away, a workload waits for it within its own time.

mod layer;
mod output;
mod session;

use crate::cluster::{Verdict, failed, verdict, words};
use crate::driver::Inner;
use crate::facts;
use crate::render::{self, Kind, Object, Surroundings};
use crate::seen::{PodSeen, Program};
use crate::{exec, names};
use arco_model::artifact::{ImageConfig, ImageRef};
use arco_model::id::ComponentId;
use arco_model::name::TenantName;
use arco_model::observed::ExitFacts;
use arco_model::plan::OneShot;
use arco_orchestrator::{Error, ExecRequest, ExecSession, OneShotResult, OutputLine, one_off};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams};
use output::Output;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;

/// The pause before a cluster that does not do what is needed is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Faults that do not pass by themselves.
const HOPELESS: [&str; 3] = ["InvalidImageName", "CreateContainerConfigError", "cannot be started"];

/// How far a workload has come.
#[derive(Default)]
struct Begun {
    started: bool,
    /// What the cluster said last while it did not do what a start needs.
    hindrance: String,
}

/// Runs it to its end.
pub(crate) async fn run(
    inner: Arc<Inner>,
    work: OneShot,
    output: mpsc::Sender<OutputLine>,
    mut cancel: oneshot::Receiver<()>,
) -> Result<OneShotResult, Error> {
    let namespace = names::namespace(&inner.config.namespace_prefix, &work.tenant);
    let deadline = Instant::now() + Duration::from_millis(work.timeout_ms);
    let mut begun = Begun::default();
    let by_itself = tokio::select! {
        outcome = attempt(&inner, &namespace, &work, output, deadline, &mut begun) => Some(outcome),
        _ = &mut cancel => None,
        () = inner.stop.cancelled() => None,
        () = tokio::time::sleep_until(deadline) => None,
    };
    let (name, files) = (names::one_shot(&work.id), !work.files.is_empty());
    let (outcome, cleared) = match by_itself {
        Some(outcome) => {
            // Its end is known; that the cluster is away in this moment must not change it.
            let given_up = async {
                tokio::select! {
                    _ = cancel => {}
                    () = inner.stop.cancelled() => {}
                    () = tokio::time::sleep_until(deadline) => {}
                }
            };
            (outcome, clear_patiently(&inner, &namespace, &name, files, given_up).await)
        }
        None => {
            let outcome = if Instant::now() >= deadline {
                ended(&begun, "its time was over before it could start", true)
            } else if inner.stop.is_cancelled() {
                ended(&begun, "the server stops", false)
            } else {
                ended(&begun, "it was cancelled", false)
            };
            (outcome, clear_one(&inner, &namespace, &name, files).await)
        }
    };
    match cleared {
        Ok(()) => outcome,
        Err(error) => {
            let error = failed("delete the pod of a one-shot workload", &error);
            tracing::error!(instance = %work.id, %error, "a one-shot workload is not wholly cleared");
            outcome.and(Err(error))
        }
    }
}

/// We ended it.
fn ended(begun: &Begun, why: &str, timed_out: bool) -> Result<OneShotResult, Error> {
    if !begun.started {
        let hindrance = &begun.hindrance;
        let why = if hindrance.is_empty() { why.to_owned() } else { format!("{why}: {hindrance}") };
        return Err(Error::Refused(why));
    }
    let exit =
        ExitFacts { status: 137, signal: Some(9), asked: true, at: arco_store::clock::now(), ..ExitFacts::default() };
    Ok(OneShotResult { exit, timed_out, layer: None })
}

/// Removes the objects of a one-shot. `files`: whether it may have configuration files.
async fn clear_one(inner: &Inner, namespace: &str, name: &str, files: bool) -> Result<(), kube::Error> {
    let now = DeleteParams::default().grace_period(0);
    let pod = inner.cluster().delete(Kind::Pod, namespace, name, &now).await;
    // Also when the pod stays for now: opened secrets lie nowhere longer than they must.
    let mut rest = inner.cluster().delete(Kind::Secret, namespace, name, &DeleteParams::default()).await;
    if files {
        let map = inner.cluster().delete(Kind::ConfigMap, namespace, name, &DeleteParams::default()).await;
        rest = rest.and(map);
    }
    pod.and(rest)
}

/// The same, again and again while the cluster does not answer, until `given_up`.
async fn clear_patiently(
    inner: &Inner,
    namespace: &str,
    name: &str,
    files: bool,
    given_up: impl Future<Output = ()>,
) -> Result<(), kube::Error> {
    let mut given_up = pin!(given_up);
    loop {
        let cleared = clear_one(inner, namespace, name, files).await;
        if cleared.as_ref().err().is_none_or(|it| verdict(it) != Verdict::Later) {
            return cleared;
        }
        tokio::select! {
            () = &mut given_up => return cleared,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Removes what runs of an earlier process left: whoever asked for them went with it.
pub(crate) async fn clear(inner: &Inner) {
    let prefix = &inner.config.namespace_prefix;
    for id in inner.seen().everything() {
        let left = inner.seen().component(&id);
        let pods =
            left.pods.values().filter(|(_, it)| it.one_shot).map(|(_, it)| (it.namespace.clone(), it.name.clone()));
        let others = [Kind::Secret, Kind::ConfigMap].into_iter().flat_map(|it| left.of(it));
        let others = others.filter(|(name, _)| names::of_one_shot(name).is_some());
        let all: BTreeSet<_> = pods.chain(others.map(|(name, it)| (it.namespace.clone(), name.to_owned()))).collect();
        for (namespace, name) in all.into_iter().filter(|it| it.0.starts_with(prefix)) {
            if let Err(error) = clear_one(inner, &namespace, &name, true).await {
                let error = words(&error);
                tracing::warn!(namespace, name, error, "a one-shot workload of an earlier run is not cleared");
            }
        }
    }
}

/// Pods, secrets and files of one-shots by the server that waits for them: namespace and name.
pub(crate) async fn by_server(inner: &Inner) -> Result<BTreeMap<String, BTreeSet<(String, String)>>, kube::Error> {
    let platform = names::platform(&inner.config.namespace_prefix);
    let (ours, server) = (names::OURS, names::SERVER);
    let selector = format!("{}={ours},{}={platform},{server}", names::MANAGED_BY, names::PLATFORM);
    let wanted = ListParams::default().labels(&selector);
    let pods = Api::<Pod>::all(inner.cluster().client.clone()).list_metadata(&wanted).await?;
    let secrets = Api::<Secret>::all(inner.cluster().client.clone()).list_metadata(&wanted).await?;
    let files = Api::<ConfigMap>::all(inner.cluster().client.clone()).list_metadata(&wanted).await?;
    let metadata = pods.items.into_iter().map(|it| it.metadata).chain(secrets.items.into_iter().map(|it| it.metadata));
    let metadata = metadata.chain(files.items.into_iter().map(|it| it.metadata));
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for it in
        metadata.filter(|it| it.namespace.as_ref().is_some_and(|it| it.starts_with(&inner.config.namespace_prefix)))
    {
        let server = it.labels.unwrap_or_default().remove(names::SERVER).unwrap_or_default();
        found.entry(server).or_default().extend(it.namespace.zip(it.name));
    }
    Ok(found)
}

/// Removes the one-shots of a server that is not there any more.
pub(crate) async fn clear_of(inner: &Inner, server: &str) -> Result<(), kube::Error> {
    for (namespace, name) in by_server(inner).await?.remove(server).unwrap_or_default() {
        tracing::info!(namespace, name, server, "a one-shot workload of a server that is gone is removed");
        clear_one(inner, &namespace, &name, true).await?;
    }
    Ok(())
}

/// Makes objects in the namespace of a tenant, which is made if it is not there. `step`: which of it is under way.
async fn make(inner: &Inner, tenant: &TenantName, objects: &[&Object], step: &mut String) -> Result<(), kube::Error> {
    "make the tenant's namespace".clone_into(step);
    inner.shared.tenants.ensure(tenant).await?;
    for object in objects {
        *step = format!("make {} `{}`", object.kind.wire().1, object.name);
        inner.cluster().apply(object).await?;
    }
    Ok(())
}

/// Makes the pod and waits until its program runs, or ran. `hindrance`: what the cluster said when it did not follow. Whoever
/// waits for it has a limit of its own.
async fn begin(
    inner: &Inner,
    namespace: &str,
    work: &OneShot,
    in_session: bool,
    changed: &mut broadcast::Receiver<ComponentId>,
    hindrance: &mut String,
) -> Result<(), Error> {
    let (image, config) = image(inner, work).await?;
    let object = pod(inner, work, &image, &config, in_session)?;
    let secret = variables(namespace, work, &object);
    let labels = object.body["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let files = render::config_map(&work.files, namespace, &object.name, labels);
    let objects: Vec<&Object> = [Some(&secret), files.as_ref(), Some(&object)].into_iter().flatten().collect();
    let mut step = String::new();
    while let Err(error) = make(inner, &work.tenant, &objects, &mut step).await {
        match verdict(&error) {
            Verdict::Refused => return Err(failed(step, &error)),
            Verdict::Missing => inner.shared.tenants.forget(), // its namespace was deleted behind our back
            Verdict::Later => {}
        }
        *hindrance = format!("failed to {step}: {}", words(&error));
        tracing::debug!(hindrance = hindrance.as_str(), "a one-shot workload cannot begin yet");
        tokio::time::sleep(PAUSE).await;
    }
    hindrance.clear();
    let begun = |pod: &PodSeen| {
        if pod.over.is_some() || matches!(pod.program, Program::Running(_) | Program::Ended(..)) {
            return Some(Ok(()));
        }
        let fault = facts::fault(pod, facts::Leaving::default())?;
        HOPELESS.iter().any(|it| fault.contains(it)).then_some(Err(Error::Refused(fault)))
    };
    until(inner, &work.component, &names::one_shot(&work.id), changed, begun).await?
}

/// Runs it with its input and output connected: its pod waits, and the program is started in there as an instance's
/// would be. The image needs `/bin/sh`.
pub(crate) async fn attach(
    inner: Arc<Inner>,
    work: OneShot,
    terminal: Option<(u16, u16)>,
) -> Result<ExecSession, Error> {
    let namespace = names::namespace(&inner.config.namespace_prefix, &work.tenant);
    let name = names::one_shot(&work.id);
    let deadline = Instant::now() + Duration::from_millis(work.timeout_ms);
    let request = ExecRequest { argv: work.argv.clone(), terminal };
    let waiting = OneShot { argv: session::waiting(), ..work };
    let begun = async {
        let mut changed = inner.changed.subscribe();
        begin(&inner, &namespace, &waiting, false, &mut changed, &mut String::new()).await?;
        exec::start(inner.cluster(), &namespace, &name, request).await
    };
    let session = match one_off::begun(begun, deadline, &inner.stop).await {
        Ok(session) => session,
        Err(error) => {
            leave(&inner, &namespace, &waiting).await;
            return Err(error);
        }
    };
    let (work, stop) = (inner.clone(), inner.stop.clone());
    let leaving = async move { leave(&work, &namespace, &waiting).await };
    let (session, beside) = one_off::tied(session, deadline, stop, leaving);
    inner.tracker.spawn(beside);
    Ok(session)
}

async fn leave(inner: &Inner, namespace: &str, work: &OneShot) {
    let name = names::one_shot(&work.id);
    if let Err(error) = clear_one(inner, namespace, &name, !work.files.is_empty()).await {
        let error = words(&error);
        tracing::error!(instance = %work.id, error, "a one-off instance is not wholly cleared; the next start clears it");
    }
}

async fn attempt(
    inner: &Arc<Inner>,
    namespace: &str,
    work: &OneShot,
    output: mpsc::Sender<OutputLine>,
    deadline: Instant,
    begun: &mut Begun,
) -> Result<OneShotResult, Error> {
    let copies = !work.mounts.is_empty() || !work.caches.is_empty() || work.export.is_some();
    let in_session = copies || work.unprivileged;
    let name = names::one_shot(&work.id);
    let mut changed = inner.changed.subscribe();
    begin(inner, namespace, work, in_session, &mut changed, &mut begun.hindrance).await?;
    begun.started = true;
    if in_session {
        return Box::pin(session::run(inner, namespace, &name, work, output, deadline, &mut changed)).await;
    }
    let over = until(inner, &work.component, &name, &mut changed, |pod| pod.over.as_ref().map(|_| pod.clone()));
    let said = Output { inner, namespace, component: &work.component, pod: &name, to: &output, mark: None };
    Box::pin(output::told(&said, over)).await.map(|pod| result(&pod))
}

/// How a pod's program ended.
fn result(pod: &PodSeen) -> OneShotResult {
    let exit = facts::instance(pod, facts::Leaving::default(), true).last_exit;
    let timed_out = pod.over.as_ref().is_some_and(|it| it.0 == "DeadlineExceeded");
    let exit = exit.unwrap_or_else(|| ExitFacts { status: 255, asked: timed_out, ..ExitFacts::default() });
    OneShotResult { exit, timed_out, layer: None }
}

/// Waits until a pod is as wanted.
async fn until<T>(
    inner: &Inner,
    component: &ComponentId,
    name: &str,
    changed: &mut broadcast::Receiver<ComponentId>,
    wanted: impl Fn(&PodSeen) -> Option<T>,
) -> Result<T, Error> {
    let mut known = false;
    loop {
        let pod = inner.seen().with(component, |it| it.pods.get(name).map(|(_, pod)| pod.clone()));
        match pod {
            Some(pod) => {
                known = true;
                if let Some(found) = wanted(&pod) {
                    return Ok(found);
                }
                // Given up by the cluster, and nobody will say that it has ended.
                if pod.deleting
                    && let Some(why) = facts::fault(&pod, facts::Leaving::default())
                {
                    return Err(Error::failed("run a one-shot workload", why));
                }
            }
            None if known => return Err(Error::failed("run a one-shot workload", "its pod was deleted")),
            None => {}
        }
        loop {
            match changed.recv().await {
                Ok(other) if other != *component => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(Error::failed("run a one-shot workload", "the server stops"));
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => break,
            }
        }
    }
}

/// The image as nodes can pull it: with further layers, a manifest of its own.
async fn image(inner: &Inner, work: &OneShot) -> Result<(ImageRef, ImageConfig), Error> {
    let mut image = inner.image(&work.image).await?;
    if work.extra_layers.is_empty() {
        return Ok((work.image.clone(), image.config));
    }
    image.layers.extend(work.extra_layers.iter().cloned());
    let repository = format!("{}/build/{}", work.tenant, work.component);
    let written = inner.images.write(&repository, &image).await;
    let written = written.map_err(|it| Error::failed("write the half-built image", it))?;
    Ok((written, image.config))
}

fn pod(
    inner: &Inner,
    work: &OneShot,
    image: &ImageRef,
    config: &ImageConfig,
    in_session: bool,
) -> Result<Object, Error> {
    let hosts = inner.hosts(std::iter::empty());
    let claims = inner.seen().with(&work.component, |it| {
        let place = |name: &str, volume: &str| (volume.to_owned(), name.to_owned());
        let claims = it.of(Kind::Claim).filter_map(|(name, claim)| Some(place(name, &claim.detail.volume.as_ref()?.0)));
        // Of the claims of a stateful component's places, that of place 0: it comes last here, so it stays.
        let mut claims: Vec<_> = claims.collect();
        claims.sort_by_key(|(_, name)| name.ends_with("-0"));
        claims.into_iter().collect::<BTreeMap<_, _>>()
    });
    let around = Surroundings {
        config: &inner.config,
        image: config,
        hosts: &hosts,
        pull_secret: inner.shared.tenants.have_credentials(),
        features: inner.features,
    };
    let argv = if in_session { session::holding(work) } else { work.argv.clone() };
    let rendered = if in_session {
        // The session is root of its pod; the program gets its own user.
        let root = OneShot { user: String::new(), ..work.clone() };
        render::one_shot(&root, &around, image, &argv, &claims).map(session::as_root)
    } else {
        render::one_shot(work, &around, image, &argv, &claims)
    };
    let mut object = rendered.map_err(Error::Refused)?;
    if !inner.server.is_empty() {
        object.body["metadata"]["labels"][names::SERVER] = inner.server.as_str().into();
    }
    Ok(object)
}

/// The variables, in a Secret that goes with the pod. Of an unprivileged one its session hands them to the program alone: in
/// the pod they would also be those of our own programs there, which are root (`PATH`, `LD_PRELOAD`, `TAR_OPTIONS`).
fn variables(namespace: &str, work: &OneShot, pod: &Object) -> Object {
    let name = names::one_shot(&work.id);
    let data = if work.unprivileged { json!({}) } else { render::encoded(&work.env) };
    let body = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "namespace": namespace, "labels": pod.body["metadata"]["labels"] },
        "type": "Opaque",
        "data": data,
    });
    Object { kind: Kind::Secret, namespace: namespace.to_owned(), name, body }
}
