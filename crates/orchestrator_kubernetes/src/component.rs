//! One component: its plan, and the look that brings the cluster nearer to it.
//!
//! A look reads what was seen, decides (pure), sends what differs, and tells facts. What must hold: one look at a time
//! for a component; what is equal to what was applied before is not sent; everything that can be refused is sent before
//! anything that replaces instances; a request that the cluster refuses becomes a fault in the facts, not a loop.

use crate::cluster::{Cluster, Verdict, verdict, words};
use crate::decide::{self, Decision, Situation};
use crate::facts::{self, Leaving};
use crate::names;
use crate::render::{Kind, Object, Packed, Rendered};
use crate::scale::ComponentScale;
use crate::seen::convert::{Recorded, owner, version};
use crate::seen::{ComponentSeen, ObjectSeen, Record, Seen};
use crate::tenant::Tenants;
use arco_model::id::ComponentId;
use arco_model::observed::{InstanceFacts, Observed, RolloutFacts, ScalingFacts};
use arco_model::plan::WorkloadPlan;
use arco_model::spec::VolumeSpec;
use arco_model::time::Timestamp;
use arco_orchestrator::local::supervise::{Desired, Progress};
use arco_store::clock;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Service};
use kube::api::{DeleteParams, DynamicObject};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

/// The first pause before a failed look is tried again; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How long a workload may fail to make pods before it is told, in ms.
const PASSING_MS: u64 = 3_000;

/// Whether this process leads, asked at any time.
pub type Leads = Arc<dyn Fn() -> bool + Send + Sync>;

/// What looks share.
pub(crate) struct Shared {
    pub(crate) cluster: Cluster,
    pub(crate) seen: Arc<Seen>,
    pub(crate) tenants: Tenants,
    pub(crate) bell: broadcast::Sender<ComponentId>,
    /// Components that talk with the API server at the same time.
    pub(crate) talking: Semaphore,
    /// Asked before each change of the cluster; `None` while another process leads.
    leads: Mutex<Option<Leads>>,
}

impl Shared {
    /// What looks share; nobody leads yet. `talking`: components that talk with the API server at the same time.
    pub(crate) fn new(
        cluster: Cluster,
        seen: Arc<Seen>,
        tenants: Tenants,
        bell: broadcast::Sender<ComponentId>,
        talking: usize,
    ) -> Self {
        Self { cluster, seen, tenants, bell, talking: Semaphore::new(talking), leads: Mutex::default() }
    }

    pub(crate) fn lead(&self, leads: Option<Leads>) {
        *self.leads.lock().unwrap_or_else(PoisonError::into_inner) = leads;
    }

    /// Whether this process leads; asked before each change of the cluster.
    pub(crate) fn leads(&self) -> bool {
        let leads = self.leads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        leads.is_some_and(|it| it())
    }

    /// A process that was paused may not know yet that another one leads: its look must end before its next change.
    fn acting(&self) -> Result<(), Fault> {
        if self.leads() { Ok(()) } else { Err(Fault::Later("another server leads".to_owned())) }
    }
}

/// A plan with what was made of it.
struct Asked {
    plan: Arc<WorkloadPlan>,
    fingerprint: String,
    rendered: Result<Arc<Rendered>, String>,
    /// What the cluster refuses of it.
    refusal: Option<String>,
    since: Timestamp,
}

#[derive(Default)]
struct State {
    asked: Option<Asked>,
    /// Pods that drain, by uid; kept here too because the mark on the pod comes back later.
    leaving: BTreeMap<String, Leaving>,
    completed: Option<(String, u32)>,
    progress: Option<Progress>,
    /// Why a plan that was given could not be taken over for now, as facts tell it.
    held_up: Option<InstanceFacts>,
    /// How many instances load asked for last, and why.
    scaled: Option<(u32, String)>,
    removing: bool,
    told: Observed,
}

/// A component.
pub(crate) struct Component {
    id: ComponentId,
    shared: Arc<Shared>,
    state: Mutex<State>,
    turn: tokio::sync::Mutex<()>,
    pub(crate) wake: Notify,
    /// Ends its task.
    pub(crate) end: CancellationToken,
}

/// What is left to do after a look.
enum Next {
    /// Nothing until the bell rings, or until then.
    Wait(Option<Timestamp>),
    /// It failed: again after a pause.
    Again,
}

impl Component {
    pub(crate) fn new(id: ComponentId, shared: Arc<Shared>) -> Self {
        let (state, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { id, shared, state, turn, wake: Notify::new(), end: CancellationToken::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves whole values behind: facts are put together again at the next look.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a plan; facts speak of it at once. `render` is asked only when the plan is new.
    pub(crate) fn take(&self, plan: &WorkloadPlan, render: impl FnOnce() -> Result<Rendered, String>) {
        let fingerprint = plan.fingerprint();
        {
            let mut state = self.lock();
            if state.asked.as_ref().is_some_and(|it| it.fingerprint == fingerprint) {
                return;
            }
            let rendered = render().map(Arc::new);
            state.held_up = None;
            state.asked =
                Some(Asked { plan: Arc::new(plan.clone()), fingerprint, rendered, refusal: None, since: clock::now() });
            state.removing = false;
        }
        self.decide();
        // Not rung: who asked observes next, and would look once more for nothing.
        self.gather();
        self.wake.notify_one();
    }

    /// A plan cannot be taken over for now; the one before it, if any, stays in force. Facts say why, and speak of no plan, so
    /// that one is given again.
    pub(crate) fn hold_up(&self, plan: &WorkloadPlan, why: &str) {
        let (made, template) = (names::instance_id(0, self.id.as_str()), &plan.template);
        let cause = facts::unmade(made, template.revision.clone(), template.fingerprint(), why.to_owned());
        self.lock().held_up = Some(cause);
        self.tell();
    }

    /// Whether the plan with this fingerprint is worked on; then no other one is held up any more.
    pub(crate) fn has(&self, fingerprint: &str) -> bool {
        let mut state = self.lock();
        let has = state.asked.as_ref().is_some_and(|it| it.fingerprint == fingerprint);
        let freed = has && state.held_up.take().is_some();
        drop(state);
        if freed {
            self.tell();
        }
        has
    }

    /// Whether it has a plan.
    pub(crate) fn is_asked(&self) -> bool {
        self.lock().asked.is_some()
    }

    /// No gateway uses the pod any more.
    pub(crate) fn release(&self, uid: &str) {
        self.lock().leaving.entry(uid.to_owned()).or_default().released = true;
        self.wake.notify_one();
    }

    /// Forgets the plan; no look sends anything any more once this returns.
    pub(crate) async fn begin_removal(&self) {
        self.lock().removing = true;
        let _turn = self.turn.lock().await;
        let mut state = self.lock();
        (state.asked, state.progress, state.completed, state.scaled) = (None, None, None, None);
        state.held_up = None;
    }

    /// Facts as last told.
    pub(crate) fn observed(&self) -> Observed {
        self.lock().told.clone()
    }

    /// Looks again and again: when the bell rings, when the decision asked for it, and after failures.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let next = self.look().await;
            let wait = match next {
                Next::Wait(at) => {
                    pause = FIRST_PAUSE;
                    at.map(|it| Duration::from_millis(it.since_ms(clock::now())))
                }
                Next::Again => {
                    let wait = pause;
                    pause = (pause * 2).min(LAST_PAUSE);
                    Some(wait)
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Decides by what was seen, and remembers what begins to drain and how the change goes.
    fn decide(&self) -> Option<(Arc<WorkloadPlan>, Arc<Rendered>, Decision)> {
        let mut state = self.lock();
        let (seen, now) = (self.shared.seen.component(&self.id), clock::now());
        let uids: BTreeSet<&str> = seen.instances().map(|it| it.uid.as_str()).collect();
        state.leaving.retain(|uid, _| uids.contains(uid.as_str()));
        for pod in seen.instances() {
            if let Some(since) = pod.draining_since {
                state.leaving.entry(pod.uid.clone()).or_default().since.get_or_insert(since);
            }
            if facts::overdue_at(pod).is_some_and(|at| at <= now) {
                state.leaving.entry(pod.uid.clone()).or_default().overdue = true;
            }
        }
        if state.removing {
            return None;
        }
        let asked = state.asked.as_ref()?;
        let (plan, rendered) = (asked.plan.clone(), asked.rendered.as_ref().ok()?.clone());
        let desired = Desired { template: rendered.key.clone(), replicas: wanted(&plan, &seen), ..Desired::of(&plan) };
        let reached = (desired.template.clone(), desired.replicas);
        let situation = Situation {
            desired: &desired,
            seen: &seen,
            leaving: &state.leaving,
            completed: state.completed.as_ref() == Some(&reached),
            now,
        };
        let mut decision = decide::decide(&situation);
        if decide::workload_kind(plan.kind) == Kind::StatefulSet {
            decide::send_first(&mut decision, &rendered, &seen, now);
        }
        for name in &decision.drain {
            if let Some((_, pod)) = seen.pods.get(name) {
                state.leaving.entry(pod.uid.clone()).or_default().since = Some(now);
            }
        }
        if decision.progress == Some(Progress::Done) {
            state.completed = Some(reached);
        }
        state.progress.clone_from(&decision.progress);
        Some((plan, rendered, decision))
    }

    /// Puts facts together; rings when they say something new.
    pub(crate) fn tell(&self) {
        // Whoever ended it says so itself.
        if self.gather() && !self.end.is_cancelled() {
            let _ = self.shared.bell.send(self.id.clone()); // nobody may listen
        }
    }

    /// Puts facts together; whether they say something new.
    fn gather(&self) -> bool {
        // Under the lock: who looked before another one must not tell after it.
        let mut state = self.lock();
        let seen = self.shared.seen.component(&self.id);
        let job = state.asked.as_ref().is_some_and(|it| it.plan.kind.runs_to_end())
            || state.asked.is_none() && seen.of(Kind::Job).next().is_some();
        let fact = |pod: &crate::seen::PodSeen| {
            facts::instance(pod, state.leaving.get(&pod.uid).copied().unwrap_or_default(), job)
        };
        let mut instances: Vec<InstanceFacts> = decide::shown(&seen, job).iter().map(fact).collect();
        let mut rollout = match &state.progress {
            Some(Progress::Done) => RolloutFacts::Done,
            Some(Progress::Halted { cause }) => {
                let cause = instances.iter().find(|it| it.id == *cause).cloned().map(Box::new);
                RolloutFacts::Halted { cause }
            }
            Some(Progress::Moving) | None => RolloutFacts::Progressing,
        };
        let mut plan = String::new();
        let scaling = state.scaling(&seen);
        let mut address = seen.of(Kind::Service).find_map(|(_, it)| it.detail.address);
        if let Some(asked) = &state.asked {
            plan.clone_from(&asked.fingerprint);
            if asked.plan.template.ports.is_empty() {
                address = None;
            }
            if let Some((fault, lasting)) = fault(asked, &seen, &instances) {
                let made = names::instance_id(0, self.id.as_str());
                let template = &asked.plan.template;
                let cause = facts::unmade(made, template.revision.clone(), template.fingerprint(), fault);
                instances.push(cause.clone());
                if lasting {
                    rollout = RolloutFacts::Halted { cause: Some(Box::new(cause)) };
                }
            }
        } else if seen.objects.is_empty() && instances.is_empty() {
            rollout = RolloutFacts::default();
        }
        if let Some(cause) = &state.held_up {
            plan.clear();
            instances.retain(|it| it.id != cause.id);
            instances.push(cause.clone());
            rollout = RolloutFacts::Progressing;
        }
        let observed = Observed { plan, instances, rollout, address, scaling };
        let changed = state.told != observed;
        state.told = observed;
        changed
    }

    /// When facts change although nothing happens: a workload that makes no pods becomes a fault.
    fn deadlines(&self) -> Option<Timestamp> {
        let state = self.lock();
        let asked = state.asked.as_ref().filter(|_| state.progress == Some(Progress::Moving))?;
        let marks = [PASSING_MS, asked.plan.rollout.start_deadline_ms].map(|it| asked.since.plus_ms(it + 1));
        marks.into_iter().filter(|it| *it > clock::now()).min()
    }

    async fn look(&self) -> Next {
        let _turn = self.turn.lock().await;
        let decided = self.decide();
        self.tell();
        let Some((plan, rendered, decision)) = decided else { return Next::Wait(None) };
        let _talking = self.shared.talking.acquire().await;
        let outcome = self.act(&plan, &rendered, &decision).await;
        let wake_at = self.deadlines().into_iter().chain(decision.wake_at).min();
        let refusal = match &outcome {
            Ok(()) => None,
            Err(Fault::Refused(why)) => Some(why.clone()),
            Err(Fault::Later(why)) => {
                tracing::warn!(component = %self.id, error = why, "the cluster does not follow; it is tried again");
                return Next::Again;
            }
        };
        let refused = refusal.is_some();
        if let Some(asked) = &mut self.lock().asked
            && asked.fingerprint == plan.fingerprint()
        {
            asked.refusal = refusal;
        }
        self.tell();
        if refused { Next::Again } else { Next::Wait(wake_at) }
    }

    async fn act(&self, plan: &WorkloadPlan, rendered: &Rendered, decision: &Decision) -> Result<(), Fault> {
        let seen = self.shared.seen.component(&self.id);
        let idle = plan.replicas == 0 && seen.objects.is_empty();
        // A component that never ran needs nothing of the cluster but its volumes, which an import fills in before.
        if idle && rendered.claims.is_empty() {
            return Ok(());
        }
        self.shared.acting()?;
        self.shared.tenants.ensure(&plan.tenant).await.map_err(|it| Fault::of("make the tenant's namespace", &it))?;
        self.mark(rendered, decision, &seen).await?;
        self.storage(plan, rendered, &seen).await?;
        self.scale(rendered, &seen).await?;
        for object in &rendered.others {
            self.ensure(object, &seen).await?;
        }
        self.workloads(plan, rendered, decision, &seen).await?;
        for (kind, name) in &decision.delete {
            self.delete(*kind, &rendered.namespace, name, &DeleteParams::background()).await?;
        }
        for name in &decision.delete_pods {
            self.delete(Kind::Pod, &rendered.namespace, name, &DeleteParams::default()).await?;
        }
        self.leftovers(rendered, &seen).await
    }

    /// Marks pods that begin to leave, before anything ends them.
    async fn mark(&self, rendered: &Rendered, decision: &Decision, seen: &ComponentSeen) -> Result<(), Fault> {
        let leaving = self.lock().leaving.clone();
        let marked: Vec<_> = seen
            .instances()
            .filter(|it| it.draining_since.is_none())
            .filter_map(|it| Some((it, leaving.get(&it.uid)?.since?)))
            .collect();
        for (pod, since) in marked {
            let fields = json!({ "metadata": {
                "labels": { (names::SERVING): "false" },
                "annotations": { (names::DRAINING_SINCE): since.0.to_string(), (names::DELETION_COST): "-1000" },
            }});
            self.change(Kind::Pod, &rendered.namespace, &pod.name, &fields).await?;
        }
        for name in &decision.first {
            let fields = json!({ "metadata": { "annotations": { (names::DELETION_COST): "-2000" } } });
            self.change(Kind::Pod, &rendered.namespace, name, &fields).await?;
        }
        Ok(())
    }

    /// Makes and grows claims. What cannot be was refused when the plan came ([`fits`]).
    async fn storage(&self, plan: &WorkloadPlan, rendered: &Rendered, seen: &ComponentSeen) -> Result<(), Fault> {
        for (name, held_mb, volume) in held(plan, seen) {
            if volume.size_mb > held_mb {
                let size = format!("{}Mi", volume.size_mb);
                let fields = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
                self.change(Kind::Claim, &rendered.namespace, name, &fields).await?;
            }
        }
        for claim in &rendered.claims {
            // Storage class and access of one that is there cannot be changed: it stays as it was made.
            if !seen.objects.contains_key(&(Kind::Claim, claim.name.clone())) {
                self.apply(&claim.unpack()).await?;
            }
        }
        Ok(())
    }

    /// Makes what load writes the number of pods into. Its number is not ours afterwards, so it is never applied again.
    async fn scale(&self, rendered: &Rendered, seen: &ComponentSeen) -> Result<(), Fault> {
        let Some(object) = &rendered.scale else { return Ok(()) };
        if seen.objects.contains_key(&(Kind::Scale, object.name.clone())) {
            return Ok(());
        }
        self.shared.acting()?;
        match self.shared.cluster.make(&object.unpack()).await {
            Ok(Some(made)) => self.took(object.kind, made),
            Ok(None) => {} // its watch tells of it
            Err(error) => {
                if verdict(&error) == Verdict::Missing {
                    self.shared.tenants.forget(); // its namespace was deleted behind our back
                }
                return Err(Fault::of(format!("make {} `{}`", object.kind.wire().1, object.name), &error));
            }
        }
        Ok(())
    }

    async fn workloads(
        &self,
        plan: &WorkloadPlan,
        rendered: &Rendered,
        decision: &Decision,
        seen: &ComponentSeen,
    ) -> Result<(), Fault> {
        let kind = decide::workload_kind(plan.kind);
        for (key, pods) in &decision.pods {
            let name = rendered.workload_name(key);
            let there = seen.objects.get(&(kind, name.clone()));
            if *key == rendered.key {
                if there.is_some_and(|it| it.deleting) {
                    continue; // it is made anew when it is gone
                }
                if kind == Kind::StatefulSet && there.is_some_and(|it| it.detail.fixed != rendered.fixed()) {
                    // Its claims cannot be changed: it makes way, its pods stay and are taken over.
                    self.delete(kind, &rendered.namespace, &name, &DeleteParams::orphan()).await?;
                    continue;
                }
                let object = rendered.workload(*pods);
                let same = there.is_some_and(|it| it.applied == object.applied() && it.detail.replicas == *pods);
                if !same {
                    self.apply(&object).await?;
                }
            } else if there.is_some_and(|it| !it.deleting && it.detail.replicas != *pods) {
                self.change(kind, &rendered.namespace, &name, &json!({ "spec": { "replicas": pods } })).await?;
            }
        }
        Ok(())
    }

    /// Deletes what the plan no longer needs: variables and files of templates that no pod has, addresses without ports.
    async fn leftovers(&self, rendered: &Rendered, seen: &ComponentSeen) -> Result<(), Fault> {
        let all = rendered.others.iter().chain(&rendered.scale);
        let wanted: BTreeSet<(Kind, &str)> = all.map(|it| (it.kind, it.name.as_str())).collect();
        let used: BTreeSet<&str> = seen.instances().map(|it| it.key.as_str()).collect();
        let used_by = |key: &str| {
            used.contains(key)
                || seen
                    .objects
                    .iter()
                    .any(|((kind, _), it)| matches!(kind, Kind::Deployment | Kind::Job) && it.key == key)
        };
        for ((kind, name), it) in &seen.objects {
            let auxiliary = matches!(
                kind,
                Kind::Secret
                    | Kind::ConfigMap
                    | Kind::Service
                    | Kind::NetworkPolicy
                    | Kind::DisruptionBudget
                    | Kind::Autoscaler
                    | Kind::Scale
            );
            let one_shot = names::of_one_shot(name).is_some();
            if auxiliary && !one_shot && !it.deleting && !wanted.contains(&(*kind, name)) {
                if matches!(kind, Kind::Secret | Kind::ConfigMap) && used_by(&it.key) {
                    continue;
                }
                self.delete(*kind, &it.namespace, name, &DeleteParams::background()).await?;
            }
        }
        Ok(())
    }

    async fn ensure(&self, object: &Packed, seen: &ComponentSeen) -> Result<(), Fault> {
        let there = seen.objects.get(&(object.kind, object.name.clone()));
        let odd = |it: &ObjectSeen| (it.detail.headless || it.detail.odd_address) && !it.deleting;
        if there.is_some_and(odd) && !object.headless {
            // A Service that was made without an address never gets one, nor one of another version: it makes way.
            self.delete(object.kind, &object.namespace, &object.name, &DeleteParams::background()).await?;
            return self.apply(&object.unpack()).await;
        }
        match there {
            Some(it) if it.applied == object.applied && !it.deleting => Ok(()),
            _ => self.apply(&object.unpack()).await,
        }
    }

    async fn apply(&self, object: &Object) -> Result<(), Fault> {
        self.shared.acting()?;
        let step = || format!("apply {} `{}`", object.kind.wire().1, object.name);
        match self.shared.cluster.apply(object).await {
            Ok(answer) => {
                self.took(object.kind, answer);
                Ok(())
            }
            Err(error) => {
                if verdict(&error) == Verdict::Missing {
                    self.shared.tenants.forget(); // its namespace was deleted behind our back
                }
                Err(Fault::of(step(), &error))
            }
        }
    }

    async fn change(&self, kind: Kind, namespace: &str, name: &str, fields: &serde_json::Value) -> Result<(), Fault> {
        self.shared.acting()?;
        match self.shared.cluster.change(kind, namespace, name, fields).await {
            Ok(answer) => {
                self.took(kind, answer);
                Ok(())
            }
            Err(error) if verdict(&error) == Verdict::Missing => Ok(()),
            Err(error) => Err(Fault::of(format!("change {} `{name}`", kind.wire().1), &error)),
        }
    }

    async fn delete(&self, kind: Kind, namespace: &str, name: &str, how: &DeleteParams) -> Result<(), Fault> {
        self.shared.acting()?;
        let done = self.shared.cluster.delete(kind, namespace, name, how).await;
        done.map_err(|it| Fault::of(format!("delete {} `{name}`", kind.wire().1), &it))
    }

    /// What the cluster answers counts at once; its watch says the same later.
    fn took(&self, kind: Kind, answer: DynamicObject) {
        let meta = answer.metadata.clone();
        if owner(&meta).as_ref() != Some(&self.id) {
            return;
        }
        let record = match kind {
            Kind::Deployment => typed::<Deployment>(answer),
            Kind::StatefulSet => typed::<StatefulSet>(answer),
            Kind::Job => typed::<Job>(answer),
            Kind::Service => typed::<Service>(answer),
            Kind::Claim => typed::<PersistentVolumeClaim>(answer),
            Kind::Scale => typed::<ComponentScale>(answer),
            Kind::Autoscaler => typed::<HorizontalPodAutoscaler>(answer),
            Kind::Pod => typed::<k8s_openapi::api::core::v1::Pod>(answer),
            _ => Some(crate::seen::convert::plain(kind, &meta)),
        };
        if let Some(record) = record {
            self.shared.seen.put(&self.id, version(&meta), record);
        }
    }
}

/// How many pods a plan asks for: as load does, within its bounds, where it decides.
fn wanted(plan: &WorkloadPlan, seen: &ComponentSeen) -> u32 {
    let Some(asked) = &plan.autoscaling else { return plan.replicas };
    let scale = seen.of(Kind::Scale).find(|(_, it)| !it.deleting);
    asked.within(scale.map_or(plan.replicas, |(_, it)| it.detail.replicas))
}

impl State {
    /// How many instances load asks for. Why is known a moment later than how many: the autoscaler says so afterwards.
    fn scaling(&mut self, seen: &ComponentSeen) -> Option<ScalingFacts> {
        let plan = self.asked.as_ref()?.plan.clone();
        let Some(asked) = &plan.autoscaling else {
            self.scaled = None;
            return None;
        };
        let replicas = wanted(&plan, seen);
        let scaler = seen.of(Kind::Autoscaler).find_map(|(_, it)| it.detail.scaler.as_deref());
        let (before, reason) = self.scaled.clone().unwrap_or((replicas, String::new()));
        let why = scaler.and_then(|it| it.reason(before, replicas, asked, &plan.template.resources));
        let reason = match why {
            Some(why) => {
                self.scaled = Some((replicas, why.clone()));
                why
            }
            None if before == replicas => {
                self.scaled = Some((replicas, reason.clone()));
                reason
            }
            None => String::new(),
        };
        Some(ScalingFacts { replicas, reason, problem: scaler.and_then(|it| it.problem.clone()) })
    }
}

/// Why not even a pod is made, and whether that ends the change.
fn fault(asked: &Asked, seen: &ComponentSeen, instances: &[InstanceFacts]) -> Option<(String, bool)> {
    let rendered = match &asked.rendered {
        Ok(rendered) => rendered,
        Err(why) => return Some((why.clone(), true)),
    };
    if let Some(refusal) = &asked.refusal {
        return Some((refusal.clone(), true));
    }
    let kind = decide::workload_kind(asked.plan.kind);
    // A stateful component has only one, whatever its key.
    let workload = seen.of(kind).find(|(_, it)| kind == Kind::StatefulSet || it.key == rendered.key);
    let failure = workload.and_then(|(_, it)| it.failure())?;
    let fingerprint = asked.plan.template.fingerprint();
    let made = instances.iter().filter(|it| it.template == fingerprint).count();
    // In a new namespace the first tries fail: what passes by itself is not told.
    let waited_ms = clock::now().since_ms(asked.since);
    let told = made < asked.plan.replicas as usize && waited_ms > PASSING_MS;
    told.then(|| {
        (format!("the cluster makes no instance: {failure}"), waited_ms > asked.plan.rollout.start_deadline_ms)
    })
}

/// Claims that hold volumes of a plan: name, size in MiB, volume.
fn held<'a>(plan: &'a WorkloadPlan, seen: &'a ComponentSeen) -> impl Iterator<Item = (&'a str, u32, &'a VolumeSpec)> {
    seen.of(Kind::Claim).filter_map(|(name, claim)| {
        let (of, size_mb) = claim.detail.volume.as_ref()?;
        let volume = plan.template.volumes.iter().find(|it| it.name.as_str() == of)?;
        Some((name, *size_mb, volume))
    })
}

/// Whether the plan can be had with the volumes that are there; the error says why not, before anything is changed.
pub(crate) fn fits(plan: &WorkloadPlan, seen: &ComponentSeen) -> Result<(), String> {
    for (claim, _, VolumeSpec { name, class, .. }) in held(plan, seen) {
        let has = seen.objects.get(&(Kind::Claim, claim.to_owned())).map_or("", |it| it.detail.class.as_str());
        if let Some(asked) = class.as_deref().filter(|it| *it != has) {
            return Err(format!(
                "volume `{name}` is of class `{has}` and cannot become `{asked}`: ask for a volume of another name, and move the content"
            ));
        }
    }
    let shrunk = held(plan, seen).find(|(_, held_mb, volume)| volume.size_mb < *held_mb);
    let Some((_, held_mb, VolumeSpec { name, size_mb, .. })) = shrunk else { return Ok(()) };
    Err(format!(
        "volume `{name}` has {held_mb} MB and cannot shrink to {size_mb}: ask for {held_mb} MB or more, or for a volume of another name"
    ))
}

fn typed<K: Recorded + DeserializeOwned>(answer: DynamicObject) -> Option<Record> {
    let value = serde_json::to_value(answer).ok()?;
    Some(serde_json::from_value::<K>(value).ok()?.record())
}

/// Why a look did not do all.
enum Fault {
    /// The same again cannot succeed; what people read.
    Refused(String),
    /// Later it may.
    Later(String),
}

impl Fault {
    fn of(step: impl std::fmt::Display, error: &kube::Error) -> Self {
        let text = format!("failed to {step}: {}", words(error));
        match verdict(error) {
            Verdict::Refused => Self::Refused(text),
            Verdict::Missing | Verdict::Later => Self::Later(text),
        }
    }
}
