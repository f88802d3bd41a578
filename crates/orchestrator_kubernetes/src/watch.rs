//! Watches of the cluster, each of which feeds [`Seen`] and rings for the components that changed.
//!
//! What must hold: a watch that ends, is cut or falls out of the server's window (410) is taken up again or listed anew,
//! with growing pauses; what vanished meanwhile is forgotten; objects are cut down before they are kept.

use crate::names;
use crate::render::Kind;
use crate::scale::ComponentScale;
use crate::seen::convert::{Recorded, is_silent, owner, plain, stamp, version};
use crate::seen::{Record, Seen};
use crate::trimmed::Trimmed;
use arco_model::id::ComponentId;
use arco_model::time::Timestamp;
use arco_orchestrator::Error;
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event as Warning, Node, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most objects of a kind that are listed at once: a pod of a list takes tens of kilobytes until it is cut down.
const PAGE: u32 = 100;
/// How long the first lists may take.
const FIRST_LISTS: Duration = Duration::from_secs(120);

/// What warnings are about, in Kubernetes' words.
const POD: &str = "Pod";
const CLAIM: &str = "PersistentVolumeClaim";
/// Why a workload has no pod: the reason of warnings about it.
const NOT_MADE: &str = "FailedCreate";

/// Told which component changed.
pub(crate) type Bell = Arc<dyn Fn(&ComponentId) + Send + Sync>;

/// What every watch needs.
#[derive(Clone)]
struct Watch {
    seen: Arc<Seen>,
    bell: Bell,
    /// `Ok` once listed; errors as they come.
    news: mpsc::UnboundedSender<Result<Kind, String>>,
    stop: CancellationToken,
}

/// Starts all watches; returns when each has listed everything once. `by_load`: whether the cluster has what scales by load.
pub(crate) async fn start(
    client: &Client,
    prefix: &str,
    by_load: bool,
    seen: &Arc<Seen>,
    bell: Bell,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> Result<(), Error> {
    let (news, mut told) = mpsc::unbounded_channel();
    let watch = Watch { seen: seen.clone(), bell, news, stop: stop.clone() };
    let config = watcher::Config::default().page_size(PAGE).labels(&names::platform_selector(prefix));
    tracker.spawn(whole::<Pod>(client, config.clone(), watch.clone()));
    tracker.spawn(whole::<Deployment>(client, config.clone(), watch.clone()));
    tracker.spawn(whole::<StatefulSet>(client, config.clone(), watch.clone()));
    tracker.spawn(whole::<Job>(client, config.clone(), watch.clone()));
    tracker.spawn(whole::<Service>(client, config.clone(), watch.clone()));
    tracker.spawn(whole::<PersistentVolumeClaim>(client, config.clone(), watch.clone()));
    tracker.spawn(metadata::<Secret>(client, config.clone(), Kind::Secret, watch.clone()));
    tracker.spawn(metadata::<ConfigMap>(client, config.clone(), Kind::ConfigMap, watch.clone()));
    tracker.spawn(metadata::<NetworkPolicy>(client, config.clone(), Kind::NetworkPolicy, watch.clone()));
    tracker.spawn(metadata::<PodDisruptionBudget>(client, config.clone(), Kind::DisruptionBudget, watch.clone()));
    if by_load {
        tracker.spawn(whole::<ComponentScale>(client, config.clone(), watch.clone()));
        tracker.spawn(whole::<HorizontalPodAutoscaler>(client, config, watch.clone()));
    }
    tracker.spawn(nodes(client.clone(), watch.clone()));

    let mut missing = HashSet::from([
        Kind::Pod,
        Kind::Deployment,
        Kind::StatefulSet,
        Kind::Job,
        Kind::Service,
        Kind::Claim,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::NetworkPolicy,
        Kind::DisruptionBudget,
    ]);
    missing.extend([Kind::Scale, Kind::Autoscaler].into_iter().filter(|_| by_load));
    let mut last = "no answer".to_owned();
    let deadline = tokio::time::Instant::now() + FIRST_LISTS;
    while !missing.is_empty() {
        match tokio::time::timeout_at(deadline, told.recv()).await {
            Ok(Some(Ok(kind))) => drop(missing.remove(&kind)),
            Ok(Some(Err(why))) => last = why,
            Ok(None) | Err(_) => return Err(Error::failed("list what is in the cluster", last)),
        }
    }
    // After what they are about.
    let of = |kind: &str| format!("type=Warning,involvedObject.kind={kind}");
    for which in [of(POD), of(CLAIM), format!("type=Warning,reason={NOT_MADE}")] {
        tracker.spawn(warnings(client.clone(), prefix.to_owned(), which, watch.clone()));
    }
    Ok(())
}

/// Follows a kind with everything of its objects that a record needs.
fn whole<K>(client: &Client, config: watcher::Config, watch: Watch) -> impl Future<Output = ()> + Send + use<K>
where
    K: Recorded + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let events = watcher(Api::<Trimmed<K>>::all(client.clone()), config).default_backoff();
    follow(events, K::KIND, |Trimmed(it): &Trimmed<K>| (it.meta().clone(), it.record()), watch)
}

/// Follows a kind by metadata alone: contents (secrets, files) never come here.
fn metadata<K>(
    client: &Client,
    config: watcher::Config,
    kind: Kind,
    watch: Watch,
) -> impl Future<Output = ()> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let events = watcher(Api::<Trimmed<PartialObjectMeta<K>>>::all(client.clone()), config).default_backoff();
    let record = move |Trimmed(it): &Trimmed<PartialObjectMeta<K>>| (it.metadata.clone(), plain(kind, &it.metadata));
    follow(events, kind, record, watch)
}

async fn follow<T>(
    events: impl Stream<Item = Result<Event<T>, watcher::Error>> + Send,
    kind: Kind,
    record: impl Fn(&T) -> (ObjectMeta, Record) + Send,
    watch: Watch,
) {
    let mut events = pin!(events);
    let mut listed = HashSet::new();
    loop {
        let event = tokio::select! {
            () = watch.stop.cancelled() => return,
            event = events.next() => event,
        };
        let put = |it: &T| {
            let (meta, record) = record(it);
            let component = owner(&meta)?;
            if watch.seen.put(&component, version(&meta), record) {
                (watch.bell)(&component);
            }
            Some((component, meta.name.unwrap_or_default()))
        };
        match event {
            None => return,
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(it))) => listed.extend(put(&it)),
            Some(Ok(Event::Apply(it))) => drop(put(&it)),
            Some(Ok(Event::Delete(it))) => {
                let (meta, _) = record(&it);
                if let Some(component) = owner(&meta)
                    && watch.seen.gone(&component, kind, meta.name.as_deref().unwrap_or_default())
                {
                    (watch.bell)(&component);
                }
            }
            Some(Ok(Event::InitDone)) => {
                let lost = watch.seen.keep_only(kind, &listed);
                lost.iter().for_each(|it| (watch.bell)(it));
                listed = HashSet::new();
                let _ = watch.news.send(Ok(kind)); // nobody listens after the start
            }
            Some(Err(error)) => {
                let why = why(&error);
                tracing::warn!(kind = kind.wire().1, error = why, "a watch of the cluster is taken up again");
                let _ = watch.news.send(Err(format!("{}: {why}", kind.wire().2))); // nobody listens after the start
            }
        }
    }
}

pub(crate) fn why(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => crate::cluster::words(error),
        other => other.to_string(),
    }
}

/// Follows which nodes answer. Of a pod that was not ready yet the cluster itself says nothing when its node falls silent.
async fn nodes(client: Client, watch: Watch) {
    let mut events = pin!(watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let mut silent = BTreeSet::new();
    loop {
        let event = tokio::select! {
            () = watch.stop.cancelled() => return,
            event = events.next() => event,
        };
        let name = |it: &Node| it.metadata.name.clone().unwrap_or_default();
        let news = match event {
            None => return,
            Some(Ok(Event::Init)) => {
                silent.clear();
                continue;
            }
            Some(Ok(Event::InitApply(it))) => {
                silent.extend(is_silent(&it).then(|| name(&it)));
                continue;
            }
            Some(Ok(Event::InitDone)) => watch.seen.silent_nodes(std::mem::take(&mut silent)),
            Some(Ok(Event::Apply(it))) => watch.seen.node(&name(&it), is_silent(&it)),
            Some(Ok(Event::Delete(it))) => watch.seen.node(&name(&it), false),
            Some(Err(error)) => {
                tracing::warn!(error = why(&error), "nodes of the cluster are asked for again");
                continue;
            }
        };
        news.iter().for_each(|it| (watch.bell)(it));
    }
}

/// Follows some warnings: why a volume of a pod is not mounted or its sandbox not made; why there is no volume for a claim; why
/// no pod is made of a stateful set or a job, which have no condition that says so.
async fn warnings(client: Client, prefix: String, which: String, watch: Watch) {
    let config = watcher::Config::default().fields(&which);
    let mut events = pin!(watcher(Api::<Warning>::all(client), config).default_backoff());
    loop {
        let event = tokio::select! {
            () = watch.stop.cancelled() => return,
            event = events.next() => event,
        };
        let warning = match event {
            None => return,
            Some(Ok(Event::Apply(it) | Event::InitApply(it))) => it,
            Some(Ok(_)) => continue,
            Some(Err(error)) => {
                tracing::warn!(error = why(&error), "warnings of the cluster are asked for again");
                continue;
            }
        };
        // Probes that fail while a program starts are no news; whether it is ready is seen elsewhere.
        let reason = warning.reason.as_deref().unwrap_or_default();
        if ["Unhealthy", "BackOff", "FailedScheduling"].contains(&reason) {
            continue;
        }
        let about = &warning.involved_object;
        let part = |it: &Option<String>| it.clone().unwrap_or_default();
        let (namespace, name, uid) = (part(&about.namespace), part(&about.name), part(&about.uid));
        if !namespace.starts_with(&prefix) {
            continue;
        }
        let message = part(&warning.message);
        let seen = &watch.seen;
        let told = match about.kind.as_deref().unwrap_or_default() {
            POD => seen.warn(&namespace, &name, &uid, format!("{reason}: {message}")),
            CLAIM if reason == "ProvisioningFailed" => seen.warn_of_claim(&namespace, &name, &uid, &message),
            "StatefulSet" if reason == NOT_MADE => {
                let when = (last(&warning), message.as_str());
                seen.refused(Kind::StatefulSet, &namespace, &name, &uid, when)
            }
            "Job" if reason == NOT_MADE => {
                let when = (last(&warning), message.as_str());
                seen.refused(Kind::Job, &namespace, &name, &uid, when)
            }
            _ => None, // a claim has a volume, which does not grow, …
        };
        if let Some(component) = told {
            (watch.bell)(&component);
        }
    }
}

/// When a warning was given last: one that is repeated is counted.
fn last(of: &Warning) -> Timestamp {
    let at = of.last_timestamp.as_ref().or(of.metadata.creation_timestamp.as_ref());
    at.map(stamp).unwrap_or_default()
}
