//! What the cluster says of our objects, cut down to what is needed, by component.
//!
//! What must hold: an older version of an object never replaces a newer one, whether it came from a watch or as the
//! answer to a change of ours; a pod costs about a kilobyte. Nothing here asks the cluster; `watch` feeds it.

pub(crate) mod convert;
pub(crate) mod scaler;

use crate::names;
use crate::render::Kind;
use arco_model::id::{ComponentId, InstanceId, RevisionId};
use arco_model::observed::ExitFacts;
use arco_model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most pods that are remembered after they went.
const DEPARTED: usize = 2048;

/// What of the program in a pod is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Program {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It does not run, for this reason and message.
    Waiting(String, String),
    /// It runs since.
    Running(Timestamp),
    /// It ended; the reason is the runtime's word.
    Ended(ExitFacts, String),
}

/// A pod of ours.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodSeen {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) id: InstanceId,
    pub(crate) one_shot: bool,
    pub(crate) key: String,
    pub(crate) template: String,
    pub(crate) revision: RevisionId,
    pub(crate) place: u32,
    pub(crate) created: Timestamp,
    pub(crate) deleting: bool,
    /// When its grace is over, of one that was told to end.
    pub(crate) gone_by: Option<Timestamp>,
    pub(crate) draining_since: Option<Timestamp>,
    pub(crate) node: String,
    pub(crate) address: Option<Ipv4Addr>,
    /// Ended for good, with what the node says of it (`Evicted`, …) where it says something.
    pub(crate) over: Option<(String, String)>,
    pub(crate) program: Program,
    pub(crate) last_exit: Option<(ExitFacts, String)>,
    pub(crate) restarts: u32,
    pub(crate) ready: bool,
    /// When it became ready, or stopped being it.
    pub(crate) ready_changed: Option<Timestamp>,
    /// Whether its node was said to be silent when it was ready: the cluster itself took that back.
    pub(crate) unheard: bool,
    /// Whether its node does not answer, as the pod or the node says it.
    pub(crate) lost: bool,
    /// Whether this run of its program was ready before.
    pub(crate) was_ready: bool,
    /// Why no node takes it.
    pub(crate) unschedulable: Option<String>,
    /// The last warning about it.
    pub(crate) warning: Option<String>,
}

/// What of another object is needed beyond its version.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Detail {
    /// Pods asked of a workload, or by load.
    pub(crate) replicas: u32,
    /// Digest of the fields that cannot be changed.
    pub(crate) fixed: String,
    /// Why a workload cannot make pods.
    pub(crate) failure: Option<String>,
    /// Whether a job has ended well.
    pub(crate) complete: bool,
    /// Address of a service.
    pub(crate) address: Option<Ipv4Addr>,
    /// Whether a service was made without an address.
    pub(crate) headless: bool,
    /// Whether a service has an address that we have no use for: of version 6.
    pub(crate) odd_address: bool,
    /// Name inside the platform, of a service.
    pub(crate) host: String,
    /// Volume that a claim holds, and its size in MiB.
    pub(crate) volume: Option<(String, u32)>,
    /// Storage class of a claim.
    pub(crate) class: String,
    /// Uid of a claim, a stateful set or a job.
    pub(crate) uid: String,
    /// When the cluster last refused to make a pod of a stateful set or a job, which do not say so themselves, and why; forgotten
    /// when it makes one.
    pub(crate) refused: Option<(Timestamp, String)>,
    /// When the newest pod of a stateful set or a job was made that was seen.
    pub(crate) last_made: Timestamp,
    /// What an autoscaler says of load.
    pub(crate) scaler: Option<Box<scaler::Scaler>>,
}

/// Another object of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ObjectSeen {
    pub(crate) namespace: String,
    pub(crate) key: String,
    /// Digest of what was applied.
    pub(crate) applied: String,
    pub(crate) deleting: bool,
    pub(crate) version: u64,
    pub(crate) detail: Detail,
}

impl ObjectSeen {
    /// Why the cluster makes no pods of a workload.
    pub(crate) fn failure(&self) -> Option<&str> {
        let refused = self.detail.refused.as_ref().map(|it| it.1.as_str());
        self.detail.failure.as_deref().or(refused)
    }

    /// Whether this, of that kind, makes the pod.
    fn makes(&self, kind: Kind, pod: &PodSeen) -> bool {
        match kind {
            Kind::StatefulSet => !pod.one_shot,
            Kind::Job => !pod.one_shot && pod.key == self.key,
            _ => false,
        }
    }

    /// A pod of it was made then.
    fn made(&mut self, at: Timestamp) {
        let newest = self.detail.last_made.max(at);
        self.detail.last_made = newest;
        if self.detail.refused.as_ref().is_some_and(|it| it.0 <= newest) {
            self.detail.refused = None;
        }
    }
}

/// Everything of one component.
#[derive(Clone, Debug, Default)]
pub(crate) struct ComponentSeen {
    /// By name.
    pub(crate) pods: BTreeMap<String, (u64, PodSeen)>,
    /// By kind and name.
    pub(crate) objects: BTreeMap<(Kind, String), ObjectSeen>,
}

impl ComponentSeen {
    fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.objects.is_empty()
    }

    /// Pods that are instances.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &PodSeen> {
        self.pods.values().map(|(_, it)| it).filter(|it| !it.one_shot)
    }

    /// Objects of a kind, by name.
    pub(crate) fn of(&self, kind: Kind) -> impl Iterator<Item = (&str, &ObjectSeen)> {
        self.objects.iter().filter(move |(it, _)| it.0 == kind).map(|((_, name), it)| (name.as_str(), it))
    }

    /// Names of the claims of an instance of this place, by volume: its own, and those that all instances share.
    pub(crate) fn claims_of(&self, component: &ComponentId, place: u32) -> BTreeMap<String, String> {
        let own = format!("-{place}");
        let mut claims: Vec<(String, String)> = self
            .of(Kind::Claim)
            .filter(|(name, _)| name.ends_with(component.as_str()) || name.ends_with(&own))
            .filter_map(|(name, it)| Some((it.detail.volume.as_ref()?.0.clone(), name.to_owned())))
            .collect();
        // Its own come last, so they stay.
        claims.sort_by_key(|(_, name)| name.ends_with(&own));
        claims.into_iter().collect()
    }
}

/// Something that was seen: a pod, or another object.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// A pod.
    Pod(Box<PodSeen>),
    /// Another object of this kind and name.
    Object(Kind, String, Box<ObjectSeen>),
}

/// Where a pod is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Whereabouts {
    pub(crate) component: ComponentId,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) node: String,
}

#[derive(Default)]
struct Store {
    components: BTreeMap<ComponentId, ComponentSeen>,
    instances: BTreeMap<InstanceId, (ComponentId, String)>,
    /// By the uid of their pod, instances only.
    by_uid: HashMap<String, Whose>,
    /// Uids of pods that went, oldest first: their last output may still be on its way.
    departed: VecDeque<String>,
    /// Names of nodes that do not answer.
    silent: BTreeSet<String>,
}

impl Store {
    /// Looks at every pod again by what nodes say; the components for which that is news.
    fn hear(&mut self) -> Vec<ComponentId> {
        let mut news = Vec::new();
        for (id, of) in &mut self.components {
            let mut changed = false;
            for (_, pod) in of.pods.values_mut() {
                let lost = pod.unheard || self.silent.contains(&pod.node);
                changed |= std::mem::replace(&mut pod.lost, lost) != lost;
            }
            if changed {
                news.push(id.clone());
            }
        }
        news
    }

    fn depart(&mut self, pod: &PodSeen) {
        self.instances.remove(&pod.id);
        if !self.by_uid.contains_key(&pod.uid) {
            return;
        }
        self.departed.push_back(pod.uid.clone());
        while self.departed.len() > DEPARTED
            && let Some(oldest) = self.departed.pop_front()
        {
            // One that a list had left out by mistake is there again.
            if self.by_uid.get(&oldest).is_some_and(|it| !self.instances.contains_key(&it.instance)) {
                self.by_uid.remove(&oldest);
            }
        }
    }
}

/// A component and its instance, with the namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Whose {
    pub(crate) namespace: String,
    pub(crate) component: ComponentId,
    pub(crate) instance: InstanceId,
}

/// All that was seen; told by [`Seen::put`] and the like, each of which says whether something changed.
#[derive(Default)]
pub(crate) struct Seen(Mutex<Store>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Store> {
        // A panic while it was held leaves whole values behind: each use is one insertion or one look.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything of a component.
    pub(crate) fn component(&self, id: &ComponentId) -> ComponentSeen {
        self.lock().components.get(id).cloned().unwrap_or_default()
    }

    /// Looks at everything of a component without copying it.
    pub(crate) fn with<T>(&self, id: &ComponentId, look: impl FnOnce(&ComponentSeen) -> T) -> T {
        let empty = ComponentSeen::default();
        look(self.lock().components.get(id).unwrap_or(&empty))
    }

    /// Every component of which something exists, one-shots not counted.
    pub(crate) fn components(&self) -> BTreeSet<ComponentId> {
        let exists = |it: &ComponentSeen| {
            let lasts = |(kind, name): &(Kind, String)| *kind == Kind::Claim || names::of_one_shot(name).is_none();
            it.objects.keys().any(lasts) || it.instances().next().is_some()
        };
        self.lock().components.iter().filter(|(_, it)| exists(it)).map(|(id, _)| id.clone()).collect()
    }

    /// Every component of which anything is known.
    pub(crate) fn everything(&self) -> Vec<ComponentId> {
        self.lock().components.keys().cloned().collect()
    }

    /// Whose instance a pod is, or was until a short time ago.
    pub(crate) fn whose(&self, namespace: &str, uid: &str) -> Option<Whose> {
        self.lock().by_uid.get(uid).filter(|it| it.namespace == namespace).cloned()
    }

    /// Nodes that pods of ours are on, or those of one component.
    pub(crate) fn nodes(&self, of: Option<&ComponentId>) -> BTreeSet<String> {
        let store = self.lock();
        let asked = store.components.iter().filter(|(id, _)| of.is_none_or(|of| of == *id));
        let pods = asked.flat_map(|(_, it)| it.pods.values());
        pods.map(|(_, it)| it.node.clone()).filter(|it| !it.is_empty()).collect()
    }

    /// Where an instance is.
    pub(crate) fn whereabouts(&self, id: &InstanceId) -> Option<Whereabouts> {
        let store = self.lock();
        let (component, name) = store.instances.get(id)?;
        let (_, pod) = store.components.get(component)?.pods.get(name)?;
        let (namespace, node) = (pod.namespace.clone(), pod.node.clone());
        Some(Whereabouts { component: component.clone(), namespace, pod: name.clone(), node })
    }

    /// Takes over a record; whether it says something new.
    pub(crate) fn put(&self, component: &ComponentId, version: u64, record: Record) -> bool {
        let mut store = self.lock();
        let store = &mut *store;
        let of = store.components.entry(component.clone()).or_default();
        match record {
            Record::Pod(mut pod) => {
                pod.lost = pod.unheard || store.silent.contains(&pod.node);
                if let Some((known, before)) = of.pods.get(&pod.name) {
                    if *known > version {
                        return false;
                    }
                    if before.uid == pod.uid {
                        let same_run = before.restarts == pod.restarts && matches!(pod.program, Program::Running(_));
                        pod.was_ready = same_run && (before.ready || before.was_ready);
                        pod.warning = before.warning.clone().filter(|_| !pod.ready);
                        if *before == *pod {
                            return false;
                        }
                    } else {
                        let before = before.clone();
                        store.depart(&before); // a new pod of the same name: a place made again
                    }
                }
                store.instances.insert(pod.id.clone(), (component.clone(), pod.name.clone()));
                if !pod.one_shot {
                    let (namespace, instance) = (pod.namespace.clone(), pod.id.clone());
                    let whose = Whose { namespace, component: component.clone(), instance };
                    store.by_uid.insert(pod.uid.clone(), whose);
                }
                let of = store.components.entry(component.clone()).or_default();
                for ((kind, _), it) in &mut of.objects {
                    if it.makes(*kind, &pod) {
                        it.made(pod.created);
                    }
                }
                of.pods.insert(pod.name.clone(), (version, *pod));
                true
            }
            Record::Object(kind, name, mut object) => {
                object.version = version;
                let before = of.objects.get(&(kind, name.clone()));
                if before.is_some_and(|it| it.version > version) {
                    return false;
                }
                if let Some(before) = before.filter(|it| it.detail.uid == object.detail.uid) {
                    object.detail.refused.clone_from(&before.detail.refused);
                    object.detail.last_made = before.detail.last_made;
                }
                let changed = before.is_none_or(|it| ObjectSeen { version, ..it.clone() } != *object);
                of.objects.insert((kind, name), *object);
                changed
            }
        }
    }

    /// A node answers, or does not; the components with pods for which that is news.
    pub(crate) fn node(&self, name: &str, silent: bool) -> Vec<ComponentId> {
        let mut store = self.lock();
        let changed = if silent { store.silent.insert(name.to_owned()) } else { store.silent.remove(name) };
        if changed { store.hear() } else { Vec::new() }
    }

    /// After a full list of nodes: these do not answer. The components with pods for which that is news.
    pub(crate) fn silent_nodes(&self, names: BTreeSet<String>) -> Vec<ComponentId> {
        let mut store = self.lock();
        store.silent = names;
        store.hear()
    }

    /// A pod or another object is gone; whether it was known.
    pub(crate) fn gone(&self, component: &ComponentId, kind: Kind, name: &str) -> bool {
        let mut store = self.lock();
        let store = &mut *store;
        let Some(of) = store.components.get_mut(component) else { return false };
        let known = if kind == Kind::Pod {
            let pod = of.pods.remove(name);
            if let Some((_, pod)) = &pod {
                store.depart(pod);
            }
            pod.is_some()
        } else {
            of.objects.remove(&(kind, name.to_owned())).is_some()
        };
        if store.components.get(component).is_some_and(ComponentSeen::is_empty) {
            store.components.remove(component);
        }
        known
    }

    /// After a full list of a kind: forgets what was not in it; the components that lost something.
    pub(crate) fn keep_only(&self, kind: Kind, listed: &HashSet<(ComponentId, String)>) -> Vec<ComponentId> {
        let lost: Vec<_> = {
            let store = self.lock();
            let names = |id: &ComponentId, of: &ComponentSeen| -> Vec<(ComponentId, String)> {
                if kind == Kind::Pod {
                    of.pods.keys().map(|it| (id.clone(), it.clone())).collect()
                } else {
                    of.of(kind).map(|(name, _)| (id.clone(), name.to_owned())).collect()
                }
            };
            let all = store.components.iter().flat_map(|(id, of)| names(id, of));
            all.filter(|it| !listed.contains(it)).collect()
        };
        lost.into_iter().filter(|(id, name)| self.gone(id, kind, name)).map(|(id, _)| id).collect()
    }

    /// A warning about a pod, found by its name in its namespace; the component, if the pod is ours.
    pub(crate) fn warn(&self, namespace: &str, name: &str, uid: &str, text: String) -> Option<ComponentId> {
        let mut store = self.lock();
        let found = store.components.iter_mut().find_map(|(id, of)| {
            let (_, pod) = of.pods.get_mut(name)?;
            (pod.namespace == namespace && pod.uid == uid).then_some((id, pod))
        });
        let (id, pod) = found?;
        if pod.ready || pod.warning.as_ref() == Some(&text) {
            return None;
        }
        pod.warning = Some(text);
        Some(id.clone())
    }

    /// The cluster refused to make a pod of a workload, found by its name in its namespace. The component, if that is news: not
    /// when a pod was made since.
    pub(crate) fn refused(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        (at, text): (Timestamp, &str),
    ) -> Option<ComponentId> {
        let mut store = self.lock();
        let place = (kind, name.to_owned());
        let (id, of) = store.components.iter_mut().find(|(_, of)| {
            let found = of.objects.get(&place);
            found.is_some_and(|it| it.namespace == namespace && it.detail.uid == uid)
        })?;
        let workload = of.objects.get_mut(&place)?;
        let pods = of.pods.values().map(|(_, it)| it).filter(|it| workload.makes(kind, it));
        let newest = pods.map(|it| it.created).max().unwrap_or_default().max(workload.detail.last_made);
        if at <= newest {
            return None;
        }
        let before = workload.detail.refused.replace((at, text.to_owned()));
        before.is_none_or(|it| it.1 != text).then(|| id.clone())
    }

    /// A warning about a claim, found by its name in its namespace: why there is no volume for it is why pods that use it wait
    /// for a node. The component, if one of its pods does.
    pub(crate) fn warn_of_claim(&self, namespace: &str, name: &str, uid: &str, text: &str) -> Option<ComponentId> {
        let mut store = self.lock();
        let (id, of, volume) = store.components.iter_mut().find_map(|(id, of)| {
            let claim = of.objects.get(&(Kind::Claim, name.to_owned()))?;
            let volume = claim.detail.volume.as_ref()?.0.clone();
            (claim.namespace == namespace && claim.detail.uid == uid).then_some((id.clone(), of, volume))
        })?;
        let warning = format!("its volume `{volume}` cannot be made: {text}");
        // The claim of a place is called as the volume and the pod are; others are shared by all.
        let shared = name.ends_with(id.as_str());
        let uses = |pod: &str| shared || name.strip_suffix(pod).is_some_and(|it| it.ends_with('-'));
        let mut told = false;
        for (pod, (_, it)) in &mut of.pods {
            if it.node.is_empty() && uses(pod) && it.warning.as_ref() != Some(&warning) {
                it.warning = Some(warning.clone());
                told = true;
            }
        }
        told.then_some(id)
    }
}

#[cfg(test)]
mod tests;
