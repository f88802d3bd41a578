//! Local storage: volumes that the leading controller makes of folders of the nodes, for claims of one storage class.
//!
//! `world` is what the cluster says, `decide` what is done about it (both pure), `render` the pods and volumes (pure); here
//! is what follows and acts. What must hold: only who leads does anything, asked before each change; everything that was
//! begun is in the cluster, so the next leader goes on with it; before a folder is removed the cluster is asked again
//! whether its volume is released. Not here: a limit of size, which folders have not; the work on the node, which
//! `arco cluster volume-folder` does in the pods.

mod decide;
mod render;
mod world;

pub(crate) use render::{confined, folder_of_node};
pub(crate) use world::PROVISIONER;

use crate::cluster::{Verdict, verdict, words};
use crate::driver::Inner;
use crate::names;
use crate::render::Kind;
use crate::seen::convert::instant;
use arco_config::KubernetesConfig;
use arco_model::artifact::Digest;
use arco_model::time::Timestamp;
use arco_orchestrator::Error;
use arco_store::clock;
use decide::{About, Step, Sure};
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Event as Told, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use world::{Task, World};

/// Requests to the API server at the same time.
const AT_ONCE: usize = 8;
/// The first pause after a step failed; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How often the same is told of the same at most, in ms.
const TOLD_AGAIN_MS: u64 = 50_000;
/// Longest part of a name in that of an event.
const NAME_MAX: usize = 200;
/// What is followed.
const KINDS: [&str; 4] = ["persistentvolumeclaims", "persistentvolumes", "nodes", "pods"];

/// Whether this process provides local storage now.
pub(crate) struct LocalStorage {
    asked: bool,
    /// Ends the work; `None` while another process leads.
    leading: Mutex<Option<CancellationToken>>,
}

impl LocalStorage {
    /// By the settings; refused when some of them are missing.
    pub(crate) fn new(config: &KubernetesConfig) -> Result<Self, Error> {
        let asked = !config.local_storage_class.is_empty();
        let folder = &config.local_storage_folder;
        let settings = [
            ("local_storage_namespace", config.local_storage_namespace.is_empty()),
            ("local_storage_image", config.local_storage_image.is_empty()),
            ("local_storage_folder", !folder.is_absolute() || folder.parent().is_none()),
        ];
        if let Some((missing, _)) = settings.into_iter().find(|it| asked && it.1) {
            return Err(Error::Refused(format!(
                "`kubernetes.local_storage_class` needs `kubernetes.{missing}`: `arco cluster manifest --local-storage` writes all that belongs to it, or leave the class out"
            )));
        }
        Ok(Self { asked, leading: Mutex::default() })
    }

    /// From now on this process leads, or another one does.
    pub(crate) fn lead_here(inner: &Arc<Inner>, here: bool) {
        let mut leading = inner.local_storage.leading.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.local_storage.asked || leading.is_some() == here {
            return;
        }
        if let Some(ended) = leading.take() {
            ended.cancel();
        }
        if here {
            let end = inner.stop.child_token();
            *leading = Some(end.clone());
            inner.tracker.spawn(run(inner.clone(), end));
        }
    }
}

/// What the watches have told.
#[derive(Default)]
struct State {
    world: World,
    /// Kinds that were listed once.
    listed: BTreeSet<&'static str>,
}

/// What the watches share.
#[derive(Clone)]
struct Followed {
    state: Arc<Mutex<State>>,
    bell: Arc<Notify>,
    end: CancellationToken,
}

impl Followed {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves whole values behind: each use is one insertion or one look.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a kind until the end; what vanished while a watch was cut is forgotten.
    async fn follow<K, T>(
        self,
        api: Api<K>,
        config: watcher::Config,
        kind: &'static str,
        read: impl Fn(&K) -> (String, Option<T>) + Send,
        place: fn(&mut World) -> &mut BTreeMap<String, T>,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        T: PartialEq + Send,
    {
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut fresh = BTreeMap::new();
        loop {
            let event = tokio::select! {
                () = self.end.cancelled() => return,
                event = events.next() => event,
            };
            let rings = match event {
                None => return,
                Some(Ok(Event::Init)) => {
                    fresh = BTreeMap::new();
                    false
                }
                Some(Ok(Event::InitApply(it))) => {
                    if let (key, Some(record)) = read(&it) {
                        fresh.insert(key, record);
                    }
                    false
                }
                Some(Ok(Event::InitDone)) => {
                    let mut state = self.lock();
                    let known = place(&mut state.world);
                    let changed = *known != fresh;
                    *known = std::mem::take(&mut fresh);
                    state.listed.insert(kind) || changed
                }
                Some(Ok(Event::Apply(it))) => {
                    let (key, record) = read(&it);
                    let mut state = self.lock();
                    let known = place(&mut state.world);
                    match record {
                        Some(record) if known.get(&key) == Some(&record) => false,
                        Some(record) => {
                            known.insert(key, record);
                            true
                        }
                        None => known.remove(&key).is_some(),
                    }
                }
                Some(Ok(Event::Delete(it))) => {
                    let (key, _) = read(&it);
                    place(&mut self.lock().world).remove(&key).is_some()
                }
                Some(Err(error)) => {
                    let why = crate::watch::why(&error);
                    tracing::warn!(kind, error = why, "a watch for local storage is taken up again");
                    false
                }
            };
            if rings {
                self.bell.notify_one();
            }
        }
    }
}

/// Provides it until the end.
async fn run(inner: Arc<Inner>, end: CancellationToken) {
    let followed = Followed { state: Arc::default(), bell: Arc::default(), end: end.clone() };
    let (client, config) = (&inner.cluster().client, &inner.config);
    let class = config.local_storage_class.clone();
    let (all, [claims, volumes, nodes, pods]) = (watcher::Config::default(), KINDS);
    let ours = watcher::Config::default().labels(&names::platform_selector(&config.namespace_prefix));
    let work = watcher::Config::default().labels(&world::pods_selector(&config.namespace_prefix));
    let api = Api::<PersistentVolumeClaim>::all(client.clone());
    let read = move |it: &PersistentVolumeClaim| world::claim(it, &class);
    inner.tracker.spawn(followed.clone().follow(api, all.clone(), claims, read, |it| &mut it.claims));
    let api = Api::<PersistentVolume>::all(client.clone());
    inner.tracker.spawn(followed.clone().follow(api, ours, volumes, world::volume, |it| &mut it.volumes));
    let api = Api::<Node>::all(client.clone());
    inner.tracker.spawn(followed.clone().follow(api, all, nodes, world::node, |it| &mut it.nodes));
    let api = inner.cluster().typed::<Pod>(&config.local_storage_namespace);
    inner.tracker.spawn(followed.clone().follow(api, work, pods, world::pod, |it| &mut it.pods));
    tracing::info!(class = config.local_storage_class, "this server provides local storage");

    let provider = Provider { inner, followed, told: Mutex::default() };
    let mut pause = FIRST_PAUSE;
    loop {
        let (wait, hears) = match provider.look().await {
            Look::Done(at) => {
                pause = FIRST_PAUSE;
                (at.map(|it| Duration::from_millis(it.since_ms(clock::now()))), true)
            }
            Look::Failed => {
                let wait = pause;
                pause = (pause * 2).min(LAST_PAUSE);
                (Some(wait), false) // what failed is not helped by news of others
            }
        };
        tokio::select! {
            () = end.cancelled() => return,
            () = provider.followed.bell.notified(), if hears => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

/// How a look ended.
enum Look {
    /// Well; again when the bell rings, or then.
    Done(Option<Timestamp>),
    /// A step failed that may succeed later.
    Failed,
}

struct Provider {
    inner: Arc<Inner>,
    followed: Followed,
    /// When what was told last, by uid and text.
    told: Mutex<BTreeMap<(String, String), Timestamp>>,
}

impl Provider {
    async fn look(&self) -> Look {
        let decision = {
            let state = self.followed.lock();
            if state.listed.len() < KINDS.len() {
                return Look::Done(None);
            }
            decide::decide(&state.world, clock::now())
        };
        let acts: Vec<_> = decision.steps.into_iter().map(|it| self.act(it)).collect();
        let well: Vec<bool> = stream::iter(acts).buffer_unordered(AT_ONCE).collect().await;
        if well.into_iter().all(|it| it) { Look::Done(decision.wake_at) } else { Look::Failed }
    }

    /// Does one thing; whether that is over, or must be tried again.
    async fn act(&self, step: Step) -> bool {
        // One that was paused may not know yet that another server leads.
        if self.followed.end.is_cancelled() || !self.inner.shared.leads() {
            return true;
        }
        let config = &self.inner.config;
        let (cluster, namespace) = (self.inner.cluster(), config.local_storage_namespace.as_str());
        let (what, about, done) = match &step {
            Step::Tell(about, text) => {
                self.tell(about, text).await;
                return true;
            }
            Step::Make { volume, node, about } => {
                let folder = config.local_storage_folder.to_string_lossy();
                let done = self.start(Task::Make, volume, node, folder.trim_end_matches('/')).await;
                (format!("start the pod that makes the folder of `{volume}` in `{namespace}`"), Some(about), done)
            }
            Step::Remove { volume, node, folder, sure, about } => {
                let done = self.remove(volume, node, folder, sure).await;
                (format!("start the pod that removes the folder of `{volume}` in `{namespace}`"), about.as_ref(), done)
            }
            Step::Publish { claim, folder, hostname } => {
                let about = About::Claim(claim.namespace.clone(), claim.name.clone(), claim.uid.clone());
                if let Err(error) = self.publish(claim, folder, hostname).await {
                    return self.failed(&format!("make the volume `{}`", claim.volume()), Some(&about), &error).await;
                }
                return true;
            }
            Step::End(pod, uid) => {
                let done = cluster.delete(Kind::Pod, namespace, pod, &exactly(uid).grace_period(0)).await;
                (format!("remove the pod `{pod}`"), None, done)
            }
            Step::Withdraw(volume, uid) => {
                tracing::info!(volume, "the folder of a volume is removed, the volume goes");
                let done = cluster.delete(Kind::Volume, "", volume, &exactly(uid)).await;
                (format!("remove the volume `{volume}`"), None, done)
            }
            Step::ChooseAgain(claim) => {
                let fields = render::choose_again(claim);
                let done = cluster.change(Kind::Claim, &claim.namespace, &claim.name, &fields).await;
                (format!("let another node be chosen for the claim `{}`", claim.name), None, done.map(drop))
            }
        };
        match done {
            Ok(()) => true,
            Err(error) => self.failed(&what, about, &error).await,
        }
    }

    /// A step failed: tells whom it concerns, unless the watches tell better in a moment.
    async fn failed(&self, what: &str, about: Option<&About>, error: &kube::Error) -> bool {
        let conflict = matches!(error, kube::Error::Api(status) if status.code == 409);
        if conflict || about.is_none() && verdict(error) == Verdict::Missing {
            return true;
        }
        let text = format!("failed to {what}: {}", words(error));
        match (about, verdict(error)) {
            (Some(about), Verdict::Missing | Verdict::Refused) => {
                let advice = "apply the documents of `arco cluster manifest --local-storage`";
                self.tell(about, &format!("{text}; {advice}")).await;
            }
            _ => tracing::warn!(error = text, "local storage waits; it is tried again"),
        }
        false
    }

    async fn start(&self, task: Task, volume: &str, node: &str, folder: &str) -> Result<(), kube::Error> {
        let object = render::pod(task, volume, node, folder, &self.inner.config);
        let Some(made) = self.inner.cluster().make(&object).await? else { return Ok(()) };
        // It counts at once; its watch says the same later.
        let made =
            serde_json::to_value(made).and_then(serde_json::from_value::<Pod>).map_err(kube::Error::SerdeError)?;
        if let (name, Some(it)) = world::pod(&made) {
            self.followed.lock().world.pods.entry(name).or_insert(it);
        }
        Ok(())
    }

    /// Starts the pod that removes a folder, if the cluster itself says that it may go.
    async fn remove(&self, volume: &str, node: &str, folder: &str, sure: &Sure) -> Result<(), kube::Error> {
        let volumes = Api::<PersistentVolume>::all(self.inner.cluster().client.clone());
        let found = volumes.get_opt(volume).await?;
        let goes = match sure {
            Sure::NoVolume => found.is_none(),
            Sure::Released(uid) => {
                let now = found.and_then(|it| world::volume(&it).1);
                now.is_some_and(|it| it.uid == *uid && it.released && it.goes && !it.deleting)
            }
        };
        // What was seen is old: the watch tells the rest.
        if goes { self.start(Task::Remove, volume, node, folder).await } else { Ok(()) }
    }

    async fn publish(&self, claim: &world::Claim, folder: &str, hostname: &str) -> Result<(), kube::Error> {
        let (cluster, config) = (self.inner.cluster(), &self.inner.config);
        let classes = Api::<StorageClass>::all(cluster.client.clone());
        let class = classes.get_opt(&config.local_storage_class).await?;
        let reclaim = class.and_then(|it| it.reclaim_policy).unwrap_or_else(|| "Delete".to_owned());
        let object = render::volume(claim, folder, hostname, &reclaim, config);
        if cluster.make(&object).await?.is_some() {
            let (volume, node) = (&object.name, &claim.node);
            tracing::info!(volume, node, namespace = claim.namespace, claim = claim.name, "a volume is made");
        }
        Ok(())
    }

    /// Tells what is in the way as an event, which `kubectl describe` shows, and the reason of a component has.
    async fn tell(&self, about: &About, text: &str) {
        let now = clock::now();
        let (namespace, event) = event(about, text, now);
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.retain(|_, at| now.since_ms(*at) < TOLD_AGAIN_MS);
            let key = (event.involved_object.uid.clone().unwrap_or_default(), text.to_owned());
            if told.contains_key(&key) {
                return;
            }
            told.insert(key, now);
        }
        let name = event.metadata.name.clone().unwrap_or_default();
        tracing::warn!(event = name, text, "local storage is not as asked");
        let events = self.inner.cluster().typed::<Told>(&namespace);
        let done = match events.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let again = json!({ "lastTimestamp": event.last_timestamp });
                events.patch(&name, &PatchParams::default(), &Patch::Merge(again)).await
            }
            other => other,
        };
        if let Err(error) = done {
            tracing::warn!(event = name, error = words(&error), "an event is not written");
        }
    }
}

/// Deletes the object of this uid, and no later one of its name.
fn exactly(uid: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() })
}

/// A warning about a claim or a volume, and its namespace. The same text is the same event.
fn event(about: &About, text: &str, now: Timestamp) -> (String, Told) {
    let (of, reason) = match about {
        About::Claim(namespace, name, uid) => {
            (("PersistentVolumeClaim", Some(namespace.clone()), name, uid), "ProvisioningFailed")
        }
        About::Volume(name, uid) => (("PersistentVolume", None, name, uid), "VolumeFailedDelete"),
    };
    let (kind, namespace, name, uid) = of;
    // Where Kubernetes keeps the events of what has no namespace.
    let own = namespace.clone().unwrap_or_else(|| "default".to_owned());
    let digest = Digest::of(format!("{uid} {text}").as_bytes());
    let begin: String = name.chars().take(NAME_MAX).collect();
    let at = Some(Time(instant(now)));
    let event = Told {
        metadata: ObjectMeta {
            name: Some(format!("{begin}.{}", &digest.hex()[..16])),
            namespace: Some(own.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(text.chars().take(1024).collect()),
        reporting_component: Some(PROVISIONER.to_owned()),
        first_timestamp: at.clone(),
        last_timestamp: at,
        count: Some(1),
        ..Told::default()
    };
    (own, event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_missing_are_named() {
        let with = |change: fn(&mut KubernetesConfig)| {
            let mut config = KubernetesConfig {
                local_storage_class: "arco-local".into(),
                local_storage_namespace: "n".into(),
                local_storage_image: "i".into(),
                ..KubernetesConfig::default()
            };
            change(&mut config);
            LocalStorage::new(&config).map(|it| it.asked).map_err(|it| it.to_string())
        };
        assert_eq!(with(|_| {}), Ok(true));
        assert_eq!(with(|it| *it = KubernetesConfig::default()), Ok(false));
        let missing = with(|it| it.local_storage_image.clear()).unwrap_err();
        assert!(missing.contains("`kubernetes.local_storage_image`"), "{missing}");
        let relative = with(|it| it.local_storage_folder = "volumes".into()).unwrap_err();
        assert!(relative.contains("`kubernetes.local_storage_folder`"), "{relative}");
    }

    #[test]
    fn the_same_text_about_the_same_claim_is_the_same_event() {
        let about = |uid: &str| About::Claim("arco-acme".into(), "data".into(), uid.into());
        let name = |uid: &str, text: &str| event(&about(uid), text, Timestamp(1)).1.metadata.name;
        assert_eq!(name("u1", "a"), name("u1", "a"));
        assert!(name("u1", "a") != name("u2", "a") && name("u1", "a") != name("u1", "b"));
        let (namespace, told) = event(&About::Volume("pvc-u1".into(), "v1".into()), "a", Timestamp(1_000));
        assert_eq!((namespace.as_str(), told.involved_object.namespace), ("default", None));
        assert_eq!(told.reason.as_deref(), Some("VolumeFailedDelete"));
        assert_eq!(serde_json::to_value(told.last_timestamp).unwrap(), "1970-01-01T00:00:01Z");
    }
}
