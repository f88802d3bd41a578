//! Watches of the kinds that are read, each of which feeds [`World`] and rings.
//!
//! What must hold: a watch that ends or is cut is taken up again or listed anew, with growing pauses; what vanished
//! meanwhile is forgotten; a kind of the Gateway API that may not be listed, or cannot, holds back nothing but what needs it;
//! contents of secrets do not come here.

use super::kind::{GATEWAY_GROUP, Kind};
use super::world::{Name, World};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A kind that fails so often before it was listed once is not waited for.
const FAILURES: u32 = 3;

/// What the watches share.
#[derive(Clone)]
pub(super) struct Followed {
    client: Client,
    world: Arc<Mutex<World>>,
    /// Kinds that were listed once.
    listed: Arc<Mutex<BTreeSet<Kind>>>,
    /// How often in a row others could not be.
    failed: Arc<Mutex<BTreeMap<Kind, u32>>>,
    /// Versions by which kinds are followed, and what ends that.
    versions: BTreeMap<Kind, (&'static str, CancellationToken)>,
    /// Rung when something that is read has changed.
    pub(super) bell: Arc<Notify>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Followed {
    /// Follows what every cluster has. `manager` is the name under which we write.
    pub(super) fn start(client: &Client, manager: &str, stop: &CancellationToken) -> Self {
        let world = World { manager: manager.to_owned(), ..World::default() };
        let mut this = Self {
            client: client.clone(),
            world: Arc::new(Mutex::new(world)),
            listed: Arc::default(),
            failed: Arc::default(),
            versions: BTreeMap::new(),
            bell: Arc::default(),
            stop: stop.clone(),
            tracker: TaskTracker::new(),
        };
        for kind in Kind::ALL.into_iter().filter(|it| !it.optional()) {
            this.follow(kind, kind.wire().3[0]);
        }
        this
    }

    /// What is known.
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kinds that have to be done without, because the cluster does not let them be listed; `None` while some are still to be
    /// listed for the first time. What every cluster has is always waited for.
    pub(super) fn withheld(&self) -> Option<BTreeSet<Kind>> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut withheld = BTreeSet::new();
        for kind in self.versions.keys().filter(|it| !listed.contains(it)) {
            if !kind.optional() || failed.get(kind).is_none_or(|it| *it < FAILURES) {
                return None;
            }
            withheld.insert(*kind);
        }
        Some(withheld)
    }

    /// Kinds that the cluster did not have when it was asked last.
    pub(super) fn missing(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|it| !self.versions.contains_key(it)).collect()
    }

    /// How a kind that is followed is addressed.
    pub(super) fn resource(&self, kind: Kind) -> Option<ApiResource> {
        let (group, word, plural, _) = kind.wire();
        let (version, _) = self.versions.get(&kind)?;
        Some(ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, word), plural))
    }

    /// Looks which kinds of the Gateway API the cluster has, and follows those that are new, and those of which it now has another
    /// version instead of the one that is followed. One of which it has none stays as it is known: what the API server does not
    /// tell just after its start is not gone.
    pub(super) async fn discover(&mut self) -> Result<(), kube::Error> {
        let groups = self.client.list_api_groups().await?;
        let group = groups.groups.into_iter().find(|it| it.name == GATEWAY_GROUP);
        let mut served: HashSet<(String, String)> = HashSet::new();
        for version in group.into_iter().flat_map(|it| it.versions) {
            let list = self.client.list_api_group_resources(&version.group_version).await?;
            served.extend(list.resources.into_iter().map(|it| (it.name, version.version.clone())));
        }
        for kind in Kind::ALL.into_iter().filter(|it| it.optional()) {
            let (_, _, plural, versions) = kind.wire();
            let is_served = |it: &str| served.contains(&(plural.to_owned(), it.to_owned()));
            if self.versions.get(&kind).is_some_and(|it| is_served(it.0)) {
                continue;
            }
            if let Some(version) = versions.iter().find(|it| is_served(it)) {
                self.follow(kind, version);
            }
        }
        Ok(())
    }

    fn follow(&mut self, kind: Kind, version: &'static str) {
        let end = self.stop.child_token();
        if let Some((_, before)) = self.versions.insert(kind, (version, end.clone())) {
            before.cancel();
        }
        let this = Self { stop: end, ..self.clone() };
        if kind == Kind::Secret {
            let config = watcher::Config::default().fields("type=kubernetes.io/tls");
            let api = Api::<PartialObjectMeta<Secret>>::all(self.client.clone());
            let events = watcher(api, config).default_backoff();
            let plain = |it: PartialObjectMeta<Secret>| DynamicObject {
                types: None,
                metadata: it.metadata,
                data: serde_json::Value::Null,
            };
            self.tracker.spawn(this.take(kind, events, plain));
        } else if let Some(resource) = self.resource(kind) {
            let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
            let events = watcher(api, watcher::Config::default()).default_backoff();
            self.tracker.spawn(this.take(kind, events, |it| it));
        }
    }

    async fn take<T>(
        self,
        kind: Kind,
        events: impl Stream<Item = Result<Event<T>, watcher::Error>> + Send,
        plain: impl Fn(T) -> DynamicObject + Send,
    ) {
        let mut events = pin!(events);
        let mut listed: HashSet<Name> = HashSet::new();
        let mut said = String::new();
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.next() => event,
            };
            let rings = match event {
                None => return,
                Some(Ok(Event::Init)) => {
                    listed.clear();
                    false
                }
                Some(Ok(Event::InitApply(it))) => {
                    let it = plain(it);
                    listed.insert(name(&it));
                    self.put(kind, it)
                }
                Some(Ok(Event::Apply(it))) => self.put(kind, plain(it)),
                Some(Ok(Event::Delete(it))) => self.world().gone(kind, &name(&plain(it))),
                Some(Ok(Event::InitDone)) => {
                    let mut world = self.world();
                    for it in world.names(kind).into_iter().filter(|it| !listed.contains(it)) {
                        world.gone(kind, &it);
                    }
                    listed = HashSet::new();
                    said.clear();
                    self.listed.lock().unwrap_or_else(PoisonError::into_inner).insert(kind);
                    true
                }
                Some(Err(error)) => {
                    let why = crate::watch::why(&error);
                    // Once for all that follow: it is tried for ever.
                    if said != why {
                        tracing::warn!(
                            kind = kind.word(),
                            error = why,
                            "a watch for routes of the cluster is taken up again"
                        );
                        said = why;
                    }
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    let times = failed.entry(kind).or_default();
                    *times = times.saturating_add(1);
                    *times == FAILURES
                }
            };
            if rings {
                self.bell.notify_one();
            }
        }
    }

    /// Takes an object over; whether something changed.
    pub(super) fn put(&self, kind: Kind, object: DynamicObject) -> bool {
        put(&mut self.world(), kind, object)
    }

    /// Takes over what the cluster answers to a change of `version`, unless a watch has told of a newer one meanwhile.
    pub(super) fn answered(&self, kind: Kind, name: &Name, version: &str, object: DynamicObject) {
        let mut world = self.world();
        if world.version(kind, name) == Some(version) {
            put(&mut world, kind, object);
        }
    }
}

fn put(world: &mut World, kind: Kind, object: DynamicObject) -> bool {
    let name = name(&object);
    match world.put(kind, object) {
        Ok(changed) => changed,
        Err(why) => {
            tracing::warn!(kind = kind.word(), object = %name, why, "an object cannot be read; what it said before stays");
            false
        }
    }
}

fn name(it: &DynamicObject) -> Name {
    let part = |it: &Option<String>| it.clone().unwrap_or_default();
    Name { namespace: part(&it.metadata.namespace), name: part(&it.metadata.name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::client::Body;
    use serde_json::json;

    /// A cluster that has gateways by a version; nobody ever hears more of it.
    fn cluster(version: Arc<Mutex<&'static str>>) -> Client {
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (version, path) = (*version.lock().unwrap(), request.uri().path().to_owned());
            async move {
                let of_group = format!("{GATEWAY_GROUP}/{version}");
                let answer = match path.as_str() {
                    "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [{
                        "name": GATEWAY_GROUP, "versions": [{ "groupVersion": of_group, "version": version }],
                    }]}),
                    path if path == format!("/apis/{of_group}") => json!({
                        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": of_group,
                        "resources": [{
                            "name": "gateways", "singularName": "gateway", "namespaced": true, "kind": "Gateway", "verbs": [],
                        }],
                    }),
                    _ => std::future::pending().await,
                };
                Ok::<_, kube::Error>(http::Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn a_kind_of_the_gateway_api_that_cannot_be_listed_is_not_waited_for() {
        let stop = CancellationToken::new();
        let mut followed = Followed::start(&cluster(Arc::new(Mutex::new("v1"))), "arco", &stop);
        followed.discover().await.unwrap();
        let hears = |it: &Followed, kind: Kind, events: Vec<Result<Event<DynamicObject>, watcher::Error>>| {
            it.clone().take(kind, futures_util::stream::iter(events), |it| it)
        };
        let fails = || Err(watcher::Error::NoResourceVersion);
        for kind in Kind::ALL.into_iter().filter(|it| !it.optional() && *it != Kind::Ingress) {
            hears(&followed, kind, vec![Ok(Event::InitDone)]).await;
        }
        hears(&followed, Kind::Gateway, vec![fails(), fails(), fails()]).await;
        hears(&followed, Kind::Ingress, vec![fails(), fails(), fails()]).await;
        assert_eq!(followed.withheld(), None, "nothing goes without what every cluster has");
        hears(&followed, Kind::Ingress, vec![Ok(Event::InitDone)]).await;
        assert_eq!(followed.withheld(), Some(BTreeSet::from([Kind::Gateway])));
        hears(&followed, Kind::Gateway, vec![Ok(Event::InitDone), fails(), fails(), fails()]).await;
        assert_eq!(followed.withheld(), Some(BTreeSet::new()), "what was listed once is known");
        stop.cancel();
        followed.tracker.close();
        followed.tracker.wait().await;
    }

    #[tokio::test]
    async fn a_kind_is_followed_by_a_version_that_the_cluster_has() {
        let version = Arc::new(Mutex::new("v1beta1"));
        let stop = CancellationToken::new();
        let mut followed = Followed::start(&cluster(version.clone()), "arco", &stop);
        let by = |it: &Followed| it.resource(Kind::Gateway).map(|it| it.version);
        assert_eq!(by(&followed), None);
        for (has, wanted) in [("v1beta1", "v1beta1"), ("v1", "v1"), ("v9", "v1"), ("v1beta1", "v1beta1")] {
            let before = followed.versions.get(&Kind::Gateway).cloned();
            *version.lock().unwrap() = has;
            followed.discover().await.unwrap();
            assert_eq!(by(&followed).as_deref(), Some(wanted), "{has}");
            // What is followed no more ends; what stays goes on.
            let ended = before.as_ref().map(|it| it.1.is_cancelled());
            assert_eq!(ended.unwrap_or_default(), before.is_some_and(|it| it.0 != wanted), "{has}");
        }
        assert_eq!(followed.missing().len(), 6);
        stop.cancel();
        followed.tracker.close();
        followed.tracker.wait().await;
    }
}
