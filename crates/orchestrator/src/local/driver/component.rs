//! The task of one component: keeps its instances as the plan asks.
//!
//! Events come in, `supervise::step` decides, tasks do what is slow and report back as events. What must hold: an event
//! about an instance that is gone, or about an earlier run of its program, changes nothing.

use super::instance::{self, Order};
use super::record::{self, Record};
use super::scaling::{Load, Scaled};
use super::{Inner, lock};
use crate::local::container::{ContainerPhase, ContainerState};
use crate::local::probe;
use crate::local::supervise::{self, Action, Desired, Member, Progress};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::observed::{InstanceFacts, InstancePhase, Observed, RolloutFacts, ScalingFacts};
use arco_model::plan::WorkloadPlan;
use arco_model::time::Timestamp;
use arco_store::clock;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What a component's task reacts to.
pub(super) enum Event {
    /// A plan; `taken` is told when facts speak of it.
    Plan { plan: Box<WorkloadPlan>, address: Ipv4Addr, taken: oneshot::Sender<()> },
    /// End everything, then the task.
    Remove { ended: oneshot::Sender<()> },
    /// No gateway uses the instance any more.
    Release(InstanceId),
    /// Its container changed.
    Container(InstanceId),
    /// It was prepared, or could not be.
    Prepared { id: InstanceId, outcome: Result<Option<Ipv4Addr>, String> },
    /// A probe's news about one run of its program.
    Probe { id: InstanceId, run: u64, ready: bool, listens_on: Vec<SocketAddr> },
    /// It is gone.
    Gone(InstanceId),
}

struct Instance {
    facts: InstanceFacts,
    /// Its preparation has not reported yet.
    preparing: bool,
    waiting_since: Timestamp,
    ready_since: Option<Timestamp>,
    drain_since: Option<Timestamp>,
    released: bool,
    /// Runs of a job's program before this container.
    earlier_runs: u32,
    grace_ms: u64,
    /// Counts runs of its program, so that news about an earlier one is recognised.
    run: u64,
    probe: Option<DropGuard>,
    ended_at: Option<Timestamp>,
    /// Whether its program is meant to end.
    job: bool,
}

struct Task {
    inner: Arc<Inner>,
    id: ComponentId,
    events: mpsc::UnboundedSender<Event>,
    plan: Option<Arc<WorkloadPlan>>,
    desired: Option<Desired>,
    fingerprint: String,
    address: Option<Ipv4Addr>,
    instances: BTreeMap<InstanceId, Instance>,
    record: Record,
    load: Load,
    progress: Progress,
    wake_at: Option<Timestamp>,
    removing: Vec<oneshot::Sender<()>>,
}

/// Makes the task of a component when it has none. `adopted` are its containers of an earlier process.
pub(super) async fn open(inner: &Arc<Inner>, component: &ComponentId, adopted: Vec<ContainerState>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    {
        let mut tasks = lock(&inner.tasks);
        if tasks.get(component).is_some_and(|it| !it.is_closed()) {
            return;
        }
        tasks.insert(component.clone(), sender.clone());
    }
    let mut task = Task {
        inner: inner.clone(),
        id: component.clone(),
        events: sender,
        plan: None,
        desired: None,
        fingerprint: String::new(),
        address: inner.network.stable_address(component).await,
        instances: BTreeMap::new(),
        record: record::load(&inner.dir, component),
        load: Load::default(),
        progress: Progress::Moving,
        wake_at: None,
        removing: Vec::new(),
    };
    for facts in task.record.ended.clone() {
        let ended_at = facts.last_exit.as_ref().map_or(Timestamp::default(), |it| it.at);
        let runs = facts.restarts;
        let it = Instance {
            ended_at: Some(ended_at),
            earlier_runs: runs,
            job: true,
            ..Instance::new(facts, Timestamp::default())
        };
        task.instances.insert(it.facts.id.clone(), it);
    }
    for state in adopted {
        task.adopt(state).await;
    }
    task.publish();
    inner.tracker.spawn(task.run(receiver));
}

impl Instance {
    fn new(facts: InstanceFacts, now: Timestamp) -> Self {
        Self {
            facts,
            preparing: false,
            waiting_since: now,
            ready_since: None,
            drain_since: None,
            released: false,
            earlier_runs: 0,
            grace_ms: 10_000,
            run: 0,
            probe: None,
            ended_at: None,
            job: false,
        }
    }

    fn member(&self) -> Member {
        let facts = &self.facts;
        let ended_now =
            matches!(facts.phase, InstancePhase::BackOff | InstancePhase::Ended) && facts.last_exit.is_some();
        let status = match &facts.fault {
            Some(_) => None,
            None => facts.last_exit.as_ref().map(|it| it.status),
        };
        Member {
            id: facts.id.clone(),
            template: facts.template.clone(),
            place: facts.place,
            phase: facts.phase,
            ends: facts.restarts + u32::from(ended_now),
            waiting_since: self.waiting_since,
            ready_since: self.ready_since,
            drain_since: self.drain_since,
            released: self.released,
            ended: self.ended_at.map(|at| (at, status)),
        }
    }

    fn leaving(&self) -> bool {
        matches!(self.facts.phase, InstancePhase::Draining | InstancePhase::Stopping)
    }
}

impl Task {
    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<Event>) {
        loop {
            let wake_at = self.wake_at.into_iter().chain(self.looks_at()).min();
            let wait = wake_at.map(|it| Duration::from_millis(it.since_ms(clock::now())));
            let event = tokio::select! {
                () = self.inner.stop.cancelled() => return,
                event = receiver.recv() => event,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => None,
            };
            if let Some(event) = event {
                self.handle(event).await;
            }
            self.follow_load().await;
            self.decide().await;
            self.publish();
            if !self.removing.is_empty() && self.instances.is_empty() {
                receiver.close();
                for asked in self.removing {
                    let _ = asked.send(()); // whoever asked may have gone
                }
                return;
            }
        }
    }

    async fn adopt(&mut self, state: ContainerState) {
        let (id, labels) = (state.id.clone(), &state.labels);
        let Ok(revision) = instance::label(labels, "revision").parse() else {
            tracing::warn!(instance = %id, "a container without a revision is not adopted");
            return;
        };
        let was_ready = self.inner.network.was_ready(&id).await;
        let facts = InstanceFacts {
            id: id.clone(),
            revision,
            template: instance::label(labels, "template").to_owned(),
            place: instance::label(labels, "place").parse().unwrap_or_default(),
            phase: InstancePhase::Pending,
            address: instance::label(labels, "address").parse().ok(),
            node: self.inner.node.clone(),
            restarts: 0,
            started_at: None,
            last_exit: None,
            listens_on: Vec::new(),
            fault: None,
            node_silent: false,
        };
        let now = clock::now();
        let mut it = Instance::new(facts, now);
        it.grace_ms = instance::label(labels, "stop_grace_ms").parse().unwrap_or(10_000);
        lock(&self.inner.owners).insert(id.clone(), self.id.clone());
        self.instances.insert(id.clone(), it);
        self.follow(&id, state).await;
        if let Some(it) = self.instances.get_mut(&id)
            && it.facts.phase == InstancePhase::Starting
            && was_ready
        {
            it.facts.phase = InstancePhase::Ready;
            it.ready_since = it.facts.started_at;
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Plan { plan, address, taken } => {
                self.take(*plan, address).await;
                let _ = taken.send(()); // whoever asked may have gone
            }
            Event::Remove { ended } => self.removing.push(ended),
            Event::Release(id) => {
                if let Some(it) = self.instances.get_mut(&id) {
                    it.released = true;
                }
            }
            Event::Container(id) => {
                if self.instances.contains_key(&id)
                    && let Some(state) = self.inner.containers.state(&id).await
                {
                    self.follow(&id, state).await;
                }
            }
            Event::Prepared { id, outcome } => self.prepared(id, outcome).await,
            Event::Probe { id, run, ready, listens_on } => self.probed(id, run, ready, listens_on).await,
            Event::Gone(id) => {
                lock(&self.inner.owners).remove(&id);
                self.instances.remove(&id);
            }
        }
    }

    async fn take(&mut self, plan: WorkloadPlan, address: Ipv4Addr) {
        let fingerprint = plan.fingerprint();
        self.address = (!plan.template.ports.is_empty()).then_some(address);
        if fingerprint == self.fingerprint {
            return;
        }
        let first = self.plan.is_none();
        let scaled = scaled(&plan, self.record.scaled.as_ref());
        self.desired = Some(desired(&plan, scaled.as_ref()));
        if scaled != self.record.scaled {
            self.record.scaled = scaled;
            self.keep_record();
        }
        self.plan = Some(Arc::new(plan));
        self.fingerprint = fingerprint;
        self.progress = Progress::Moving;
        if first {
            // Adopted instances were not probed for want of a probe.
            let running: Vec<_> = self
                .instances
                .iter()
                .filter(|(_, it)| it.facts.started_at.is_some())
                .map(|(id, _)| id.clone())
                .collect();
            running.iter().for_each(|it| self.watch(it));
        }
        self.decide().await;
        self.publish();
    }

    /// Takes over what a container says.
    async fn follow(&mut self, id: &InstanceId, state: ContainerState) {
        let Some(it) = self.instances.get_mut(id) else { return };
        // Its address is not known yet, so nobody could ask it: `prepared` follows what it missed.
        if it.preparing {
            return;
        }
        let restarted =
            state.started_at != it.facts.started_at || state.restarts + it.earlier_runs != it.facts.restarts;
        it.facts.restarts = state.restarts + it.earlier_runs;
        it.facts.started_at = state.started_at;
        it.facts.last_exit = state.last_exit.or(it.facts.last_exit.take());
        if it.leaving() {
            return;
        }
        let before = it.facts.phase;
        it.job = instance::label(&state.labels, "kind") == "job";
        let job = it.job;
        match state.phase {
            ContainerPhase::Preparing => {}
            ContainerPhase::Running if job => it.facts.phase = InstancePhase::Ready,
            ContainerPhase::Running => {
                if restarted || matches!(before, InstancePhase::Pending | InstancePhase::BackOff) {
                    it.facts.phase = InstancePhase::Starting;
                    it.facts.listens_on.clear();
                    it.run += 1;
                    if before != InstancePhase::Pending && before != InstancePhase::BackOff {
                        it.waiting_since = clock::now();
                    }
                    it.ready_since = None;
                    self.watch(id);
                }
            }
            ContainerPhase::BackOff => {
                it.facts.phase = InstancePhase::BackOff;
                (it.probe, it.ready_since) = (None, None);
            }
            ContainerPhase::Exited => {
                it.facts.phase = InstancePhase::Ended;
                it.ended_at = Some(it.facts.last_exit.as_ref().map_or_else(clock::now, |it| it.at));
                (it.probe, it.ready_since) = (None, None);
                if job {
                    self.keep_ended();
                    self.clear(id);
                }
            }
        }
        if before == InstancePhase::Ready
            && self.instances.get(id).is_some_and(|it| it.facts.phase != InstancePhase::Ready)
        {
            self.publish();
            self.spread(id, false, false).await;
        }
    }

    async fn prepared(&mut self, id: InstanceId, outcome: Result<Option<Ipv4Addr>, String>) {
        let Some(it) = self.instances.get_mut(&id) else { return };
        it.preparing = false;
        match outcome {
            Ok(address) => {
                it.facts.address = address;
                if it.facts.phase == InstancePhase::Stopping {
                    return self.end(&id);
                }
                match self.inner.containers.state(&id).await {
                    Some(state) => self.follow(&id, state).await,
                    None => self.fail(&id, "its container is gone".to_owned()),
                }
            }
            Err(fault) => {
                if it.facts.phase == InstancePhase::Stopping {
                    lock(&self.inner.owners).remove(&id);
                    self.instances.remove(&id);
                } else {
                    self.fail(&id, fault);
                }
            }
        }
    }

    fn fail(&mut self, id: &InstanceId, fault: String) {
        tracing::warn!(component = %self.id, instance = %id, fault, "an instance could not be prepared");
        if let Some(it) = self.instances.get_mut(id) {
            it.facts.phase = InstancePhase::Ended;
            it.facts.fault = Some(fault);
            it.ended_at = Some(clock::now());
        }
    }

    async fn probed(&mut self, id: InstanceId, run: u64, ready: bool, listens_on: Vec<SocketAddr>) {
        let Some(it) = self.instances.get_mut(&id) else { return };
        if it.run != run || it.leaving() {
            return;
        }
        let now = clock::now();
        it.facts.listens_on = listens_on;
        let before = it.facts.phase;
        match (before, ready) {
            (InstancePhase::Starting | InstancePhase::Unready | InstancePhase::Ready, true) => {
                it.facts.phase = InstancePhase::Ready;
                it.ready_since = it.ready_since.or(Some(now));
            }
            (InstancePhase::Ready, false) => {
                it.facts.phase = InstancePhase::Unready;
                (it.waiting_since, it.ready_since) = (now, None);
            }
            _ => {}
        }
        if before != it.facts.phase {
            self.judge();
            self.publish();
        }
        self.spread(&id, ready, false).await;
    }

    /// Lets the stable address lead to the instance, or not.
    async fn spread(&self, id: &InstanceId, ready: bool, draining: bool) {
        if let Err(error) = self.inner.network.set_ready(id, ready, draining).await {
            tracing::error!(component = %self.id, instance = %id, %error, "the stable address is not up to date");
        }
    }

    /// Probes this run of an instance's program, until the next run or its end.
    fn watch(&mut self, id: &InstanceId) {
        let (Some(plan), Some(it)) = (&self.plan, self.instances.get_mut(id)) else { return };
        if plan.kind.runs_to_end() || it.leaving() {
            return;
        }
        let stop = CancellationToken::new();
        it.probe = Some(stop.clone().drop_guard());
        let watch = Watch {
            inner: self.inner.clone(),
            events: self.events.clone(),
            plan: plan.clone(),
            id: id.clone(),
            address: it.facts.address,
            run: it.run,
            ready: it.facts.phase == InstancePhase::Ready,
        };
        let end = self.inner.stop.clone();
        self.inner.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = end.cancelled() => {}
                () = watch.run() => {}
            }
        });
    }

    /// What is to be done, and how far the change is; does nothing yet.
    fn judge(&mut self) -> Option<supervise::Step> {
        let desired = self.desired.as_ref()?;
        let completed =
            self.record.completed.as_ref().is_some_and(|it| it.0 == desired.template && it.1 == desired.replicas);
        let members: Vec<_> = self.instances.values().map(Instance::member).collect();
        let step = supervise::step(desired, &members, completed, clock::now());
        self.progress = step.progress.clone();
        Some(step)
    }

    /// When load is to be looked at.
    fn looks_at(&self) -> Option<Timestamp> {
        let follows = self.removing.is_empty() && self.plan.as_ref().is_some_and(|it| it.autoscaling.is_some());
        follows.then(|| self.load.next_look())
    }

    /// Looks at load when it is time, and asks for as many instances as it needs.
    async fn follow_load(&mut self) {
        let now = clock::now();
        if self.looks_at().is_none_or(|it| it > now) {
            return;
        }
        let (Some(plan), Some(scaled)) = (self.plan.clone(), self.record.scaled.as_ref()) else { return };
        let Some(asked) = &plan.autoscaling else { return };
        let now_are = scaled.replicas;
        let mut used = Vec::new();
        for (id, it) in self.instances.iter().filter(|(_, it)| !it.leaving() && it.facts.phase != InstancePhase::Ended)
        {
            let ready = it.facts.phase == InstancePhase::Ready;
            let usage = if ready { self.inner.containers.usage(id).await.ok() } else { None };
            used.push((id.clone(), usage));
        }
        let change = self.load.look(asked, &plan.template.resources, now_are, &used, self.inner.pace, now);
        let Some(change) = change else { return };
        tracing::info!(component = %self.id, reason = change.reason, "the number of instances follows load");
        let scaled = Scaled { replicas: change.replicas, reason: change.reason };
        self.desired = Some(desired(&plan, Some(&scaled)));
        self.record.scaled = Some(scaled);
        self.keep_record();
    }

    async fn decide(&mut self) {
        self.wake_at = None;
        if !self.removing.is_empty() {
            let ids: Vec<_> = self.instances.keys().cloned().collect();
            ids.iter().for_each(|it| self.end(it));
            return;
        }
        let Some(desired) = self.desired.clone() else { return };
        let Some(step) = self.judge() else { return };
        self.wake_at = step.wake_at;
        let reached = (desired.template.clone(), desired.replicas);
        let completed = self.record.completed.as_ref() == Some(&reached);
        if self.progress == Progress::Done && !completed {
            self.record.completed = Some(reached);
            self.keep_record();
        }
        for action in step.actions {
            self.act(action, &desired).await;
        }
    }

    async fn act(&mut self, action: Action, desired: &Desired) {
        match action {
            Action::Start { place } => {
                let place = if desired.kind == arco_model::spec::ComponentKind::Stateless { 0 } else { place };
                self.begin(clock::fresh(), place, 0);
            }
            Action::Drain { id } => {
                let Some(it) = self.instances.get_mut(&id) else { return };
                it.facts.phase = InstancePhase::Draining;
                it.drain_since = Some(clock::now());
                it.probe = None;
                let at = clock::now().plus_ms(desired.rollout.drain_ms);
                self.wake_at = Some(self.wake_at.map_or(at, |it| it.min(at)));
                self.publish();
                self.spread(&id, true, true).await;
            }
            Action::Stop { id } => self.end(&id),
            Action::Discard { id } => {
                self.end(&id);
                self.keep_ended();
            }
            Action::Rerun { id } => {
                let Some(it) = self.instances.get(&id) else { return };
                let (place, runs) = (it.facts.place, it.facts.restarts + 1);
                let inner = self.inner.clone();
                // The container of the ended run makes way; its facts stay in the new one.
                if let Err(error) = instance::unmake(&inner, &id, 0).await {
                    return self.fail(&id, error.to_string());
                }
                let last_exit = it.facts.last_exit.clone();
                self.begin(id.clone(), place, runs);
                if let Some(it) = self.instances.get_mut(&id) {
                    it.facts.last_exit = last_exit;
                }
            }
        }
    }

    fn begin(&mut self, id: InstanceId, place: u32, earlier_runs: u32) {
        let (Some(plan), Some(desired)) = (&self.plan, &self.desired) else { return };
        let facts = InstanceFacts {
            id: id.clone(),
            revision: plan.template.revision.clone(),
            template: desired.template.clone(),
            place,
            phase: InstancePhase::Pending,
            address: None,
            node: self.inner.node.clone(),
            restarts: earlier_runs,
            started_at: None,
            last_exit: None,
            listens_on: Vec::new(),
            fault: None,
            node_silent: false,
        };
        let mut it = Instance::new(facts, clock::now());
        (it.preparing, it.earlier_runs, it.grace_ms) = (true, earlier_runs, plan.rollout.stop_grace_ms);
        lock(&self.inner.owners).insert(id.clone(), self.id.clone());
        self.instances.insert(id.clone(), it);
        let order = Order { id: id.clone(), place, template: desired.template.clone(), plan: plan.clone() };
        let (inner, events) = (self.inner.clone(), self.events.clone());
        self.inner.tracker.spawn(async move {
            let outcome = instance::prepare(&inner, &order).await.map_err(|it| it.to_string());
            let _ = events.send(Event::Prepared { id, outcome }); // a closed task has no instances
        });
    }

    /// Ends an instance, once.
    fn end(&mut self, id: &InstanceId) {
        let Some(it) = self.instances.get_mut(id) else { return };
        let asked_before = it.facts.phase == InstancePhase::Stopping;
        it.probe = None;
        it.facts.phase = InstancePhase::Stopping;
        if it.preparing {
            return; // its preparation reports, then it is ended
        }
        if asked_before && it.run == u64::MAX {
            return;
        }
        it.run = u64::MAX;
        let (inner, events, id, grace_ms) = (self.inner.clone(), self.events.clone(), id.clone(), it.grace_ms);
        self.inner.tracker.spawn(async move {
            while let Err(error) = instance::unmake(&inner, &id, grace_ms).await {
                tracing::error!(instance = %id, %error, "an instance does not go; it is tried again");
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
            let _ = events.send(Event::Gone(id)); // a closed task has no instances
        });
    }

    /// Frees what an ended job holds; its facts stay.
    fn clear(&self, id: &InstanceId) {
        let (inner, id) = (self.inner.clone(), id.clone());
        self.inner.tracker.spawn(async move {
            if let Err(error) = instance::unmake(&inner, &id, 0).await {
                tracing::warn!(instance = %id, %error, "an ended job is not wholly cleared yet");
            }
        });
    }

    fn keep_ended(&mut self) {
        if !self.instances.values().any(|it| it.job) && self.record.ended.is_empty() {
            return;
        }
        let ended = self.instances.values().filter(|it| it.job && it.facts.phase == InstancePhase::Ended);
        self.record.ended = ended.map(|it| it.facts.clone()).collect();
        self.keep_record();
    }

    fn keep_record(&self) {
        if let Err(error) = record::save(&self.inner.dir, &self.id, &self.record) {
            tracing::error!(component = %self.id, %error, "what was reached is not kept");
        }
    }

    fn publish(&self) {
        let instances: Vec<_> = self.instances.values().map(|it| it.facts.clone()).collect();
        let rollout = match &self.progress {
            Progress::Done => RolloutFacts::Done,
            Progress::Moving => RolloutFacts::Progressing,
            Progress::Halted { cause } => {
                let cause = self.instances.get(cause).map(|it| Box::new(it.facts.clone()));
                RolloutFacts::Halted { cause }
            }
        };
        let scaling = self.record.scaled.clone().map(|Scaled { replicas, reason }| ScalingFacts {
            replicas,
            reason,
            problem: None,
        });
        let observed = Observed { plan: self.fingerprint.clone(), instances, rollout, address: self.address, scaling };
        self.inner.publish(&self.id, observed);
    }
}

/// How many instances a plan that is scaled by load begins with: as many as there were, within its bounds.
fn scaled(plan: &WorkloadPlan, before: Option<&Scaled>) -> Option<Scaled> {
    let asked = plan.autoscaling.as_ref()?;
    let before = before.cloned().unwrap_or_else(|| Scaled { replicas: plan.replicas, reason: String::new() });
    Some(Scaled { replicas: asked.within(before.replicas), ..before })
}

fn desired(plan: &WorkloadPlan, scaled: Option<&Scaled>) -> Desired {
    let desired = Desired::of(plan);
    Desired { replicas: scaled.map_or(desired.replicas, |it| it.replicas), ..desired }
}

/// Asks one run of a program again and again.
struct Watch {
    inner: Arc<Inner>,
    events: mpsc::UnboundedSender<Event>,
    plan: Arc<WorkloadPlan>,
    id: InstanceId,
    address: Option<Ipv4Addr>,
    run: u64,
    ready: bool,
}

/// Between attempts while starting; at first quicker.
const STARTING: Duration = Duration::from_millis(200);
/// Between attempts while ready.
const READY: Duration = Duration::from_secs(2);
/// Attempts that must fail one after another before a ready instance is called unready.
const FAILURES: u32 = 3;
/// A program that has nothing to ask is ready when it has run this long.
const STEADY: Duration = Duration::from_secs(1);
/// After this time without success it is looked up where the program listens instead.
const LOOK_UP: Duration = Duration::from_secs(3);

impl Watch {
    async fn run(self) {
        let Some(probe) = self.plan.template.effective_probe() else {
            tokio::time::sleep(STEADY).await;
            return self.say(true, Vec::new());
        };
        let Some(address) = self.address else {
            tracing::error!(instance = %self.id, "it has no address: it cannot be asked whether it is ready");
            return self.say(false, Vec::new());
        };
        let began = tokio::time::Instant::now();
        let (mut ready, mut was_ready, mut failures) = (self.ready, self.ready, 0);
        let (mut pause, mut said) = (Duration::from_millis(5), None);
        loop {
            let good = probe::ask(&probe, &self.plan.template.ports, address, &self.inner.containers, &self.id).await;
            failures = if good { 0 } else { failures + 1 };
            if good || failures >= FAILURES {
                ready = good;
            }
            was_ready |= ready;
            let lost = !ready && (was_ready || began.elapsed() > LOOK_UP);
            let listens_on = if lost { self.listens_on().await } else { Vec::new() };
            let news = (ready, listens_on);
            if (ready || lost) && said.as_ref() != Some(&news) {
                self.say(news.0, news.1.clone());
                said = Some(news);
            }
            pause = if ready { READY } else { (pause * 2).min(STARTING) };
            tokio::time::sleep(pause).await;
        }
    }

    async fn listens_on(&self) -> Vec<SocketAddr> {
        let pid = self.inner.containers.state(&self.id).await.and_then(|it| it.pid);
        pid.map(probe::listens_on).unwrap_or_default()
    }

    fn say(&self, ready: bool, listens_on: Vec<SocketAddr>) {
        let _ = self.events.send(Event::Probe { id: self.id.clone(), run: self.run, ready, listens_on });
    }
}
