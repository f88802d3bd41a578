//! An orchestrator in memory, for tests of what stands on top of the seam.
//!
//! It decides with the same `supervise::step` as the local driver; instances become ready at once, or as scripted.
//! What must hold: it never sleeps and never starts a process; [`FakeOrchestrator::tick`] moves its clock.

use crate::local::supervise::{self, Action, Desired, Member, Progress};
use crate::{Connection, Error, ExecRequest, ExecSession, OneShotResult, Orchestrator, OutputLine, Removal, Usage};
use arco_model::id::{ComponentId, InstanceId};
use arco_model::name::TenantName;
use arco_model::observed::{ExitFacts, InstanceFacts, InstancePhase, Observed, RolloutFacts, ScalingFacts};
use arco_model::plan::{OneShot, WorkloadPlan};
use arco_model::spec::ComponentKind;
use arco_model::time::Timestamp;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{broadcast, mpsc, oneshot};

/// How new instances of a component behave.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Behaviour {
    /// Ready at once; a job ends at once with status 0.
    #[default]
    Ready,
    /// Stays starting; it listens nowhere.
    Starting,
    /// Ends again and again with this status.
    Crash(ExitFacts),
    /// Cannot be prepared, with this fault.
    Fault(String),
}

type OneShotScript = Box<dyn Fn(&OneShot) -> Result<(Vec<String>, OneShotResult), String> + Send>;

#[derive(Default)]
struct State {
    components: BTreeMap<ComponentId, Component>,
    behaviours: BTreeMap<ComponentId, Behaviour>,
    volumes: BTreeSet<ComponentId>,
    /// With what stays of each.
    tenants: BTreeMap<TenantName, Option<String>>,
    runs: Option<OneShotScript>,
    ran: Vec<OneShot>,
    held: bool,
    keeps: bool,
    refuses: Option<String>,
    made: u64,
    now: Timestamp,
}

struct Component {
    plan: WorkloadPlan,
    address: Ipv4Addr,
    instances: BTreeMap<InstanceId, (InstanceFacts, Member)>,
    completed: Option<(String, u32)>,
    rollout: RolloutFacts,
}

/// The orchestrator in memory.
pub struct FakeOrchestrator {
    state: Mutex<State>,
    bell: broadcast::Sender<ComponentId>,
}

impl Default for FakeOrchestrator {
    fn default() -> Self {
        let state = State { now: Timestamp(1_000_000), ..State::default() };
        Self { state: Mutex::new(state), bell: broadcast::channel(1024).0 }
    }
}

impl FakeOrchestrator {
    /// Nothing runs yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A tenant has something here; `stays`: what stays of it when it is removed.
    pub fn has_tenant(&self, tenant: &TenantName, stays: Option<&str>) {
        self.lock().tenants.insert(tenant.clone(), stays.map(str::to_owned));
    }

    /// How instances of a component that are made from now on behave.
    pub fn script(&self, component: &ComponentId, behaviour: Behaviour) {
        self.lock().behaviours.insert(component.clone(), behaviour);
    }

    /// What one-shots do: their lines of output and result, or why they could not run. Without it they end with 0.
    pub fn script_runs(
        &self,
        script: impl Fn(&OneShot) -> Result<(Vec<String>, OneShotResult), String> + Send + 'static,
    ) {
        self.lock().runs = Some(Box::new(script));
    }

    /// One-shots go on until they are cancelled.
    pub fn hold_runs(&self) {
        self.lock().held = true;
    }

    /// Whether what is removed stays for now.
    pub fn hold_removals(&self, held: bool) {
        self.lock().keeps = held;
    }

    /// Why plans cannot be taken over for now; `None`: they can.
    pub fn refuse_plans(&self, why: Option<&str>) {
        self.lock().refuses = why.map(str::to_owned);
    }

    /// Every one-shot that was run.
    pub fn ran(&self) -> Vec<OneShot> {
        self.lock().ran.clone()
    }

    /// The plan that was applied last.
    pub fn plan(&self, component: &ComponentId) -> Option<WorkloadPlan> {
        self.lock().components.get(component).map(|it| it.plan.clone())
    }

    /// Changes the facts of an instance (phase, exit, …).
    pub fn alter(&self, instance: &InstanceId, change: impl FnOnce(&mut InstanceFacts)) {
        let mut state = self.lock();
        let Some((component, facts)) = find(&mut state, instance) else { return };
        let now = state_now(&state);
        let Some((facts_of, member)) = state.components.get_mut(&component).and_then(|it| it.instances.get_mut(&facts))
        else {
            return;
        };
        change(facts_of);
        adjust(member, facts_of, now);
        drop(state);
        self.settle(&component);
    }

    /// Lets time pass.
    pub fn tick(&self, ms: u64) {
        let components: Vec<_> = {
            let mut state = self.lock();
            state.now = state.now.plus_ms(ms);
            state.components.keys().cloned().collect()
        };
        components.iter().for_each(|it| self.settle(it));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Does what `step` says until it says nothing more.
    fn settle(&self, id: &ComponentId) {
        let mut state = self.lock();
        let State { components, behaviours, made, now, .. } = &mut *state;
        let Some(component) = components.get_mut(id) else { return };
        let mut desired = Desired::of(&component.plan);
        desired.rollout.min_ready_ms = 0; // no time passes here by itself
        let behaviour = behaviours.get(id).cloned().unwrap_or_default();
        let reached = (desired.template.clone(), desired.replicas);
        loop {
            let members: Vec<_> = component.instances.values().map(|(_, it)| it.clone()).collect();
            let step = supervise::step(&desired, &members, component.completed.as_ref() == Some(&reached), *now);
            component.rollout = match &step.progress {
                Progress::Done => RolloutFacts::Done,
                Progress::Moving => RolloutFacts::Progressing,
                Progress::Halted { cause } => {
                    RolloutFacts::Halted { cause: component.instances.get(cause).map(|(it, _)| Box::new(it.clone())) }
                }
            };
            if step.progress == Progress::Done {
                component.completed = Some(reached.clone());
            }
            if step.actions.is_empty() {
                break;
            }
            for action in step.actions {
                component.act(action, &desired, &behaviour, made, *now);
            }
        }
        drop(state);
        let _ = self.bell.send(id.clone());
    }
}

fn state_now(state: &State) -> Timestamp {
    state.now
}

fn find(state: &mut State, instance: &InstanceId) -> Option<(ComponentId, InstanceId)> {
    let found = state.components.iter().find(|(_, it)| it.instances.contains_key(instance));
    found.map(|(id, _)| (id.clone(), instance.clone()))
}

fn adjust(member: &mut Member, facts: &InstanceFacts, now: Timestamp) {
    member.phase = facts.phase;
    let down = matches!(facts.phase, InstancePhase::BackOff | InstancePhase::Ended) && facts.last_exit.is_some();
    member.ends = facts.restarts + u32::from(down);
    member.ready_since = (facts.phase == InstancePhase::Ready).then(|| member.ready_since.unwrap_or(now));
    let status = if facts.fault.is_some() { None } else { facts.last_exit.as_ref().map(|it| it.status) };
    member.ended = (facts.phase == InstancePhase::Ended).then_some((now, status));
}

impl Component {
    fn act(&mut self, action: Action, desired: &Desired, behaviour: &Behaviour, made: &mut u64, now: Timestamp) {
        match action {
            Action::Start { place } => {
                *made += 1;
                let place = if desired.kind == ComponentKind::Stateless { 0 } else { place };
                self.begin(InstanceId::from_parts(now.0, *made), place, 0, desired, behaviour, *made, now);
            }
            Action::Rerun { id } => {
                let Some((facts, _)) = self.instances.remove(&id) else { return };
                *made += 1;
                self.begin(id, facts.place, facts.restarts + 1, desired, behaviour, *made, now);
            }
            Action::Drain { id } => {
                if let Some((facts, member)) = self.instances.get_mut(&id) {
                    (facts.phase, member.phase, member.drain_since) =
                        (InstancePhase::Draining, InstancePhase::Draining, Some(now));
                }
            }
            Action::Stop { id } | Action::Discard { id } => {
                self.instances.remove(&id);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one caller, and a struct would only name them again")]
    fn begin(
        &mut self,
        id: InstanceId,
        place: u32,
        restarts: u32,
        desired: &Desired,
        behaviour: &Behaviour,
        number: u64,
        now: Timestamp,
    ) {
        let mut facts = InstanceFacts {
            id: id.clone(),
            revision: self.plan.template.revision.clone(),
            template: desired.template.clone(),
            place,
            phase: InstancePhase::Ready,
            address: Some(Ipv4Addr::from(0x0a40_0002 + (number as u32 % 2000))),
            node: "fake".to_owned(),
            restarts,
            started_at: Some(now),
            last_exit: None,
            listens_on: Vec::new(),
            fault: None,
            node_silent: false,
        };
        match behaviour {
            Behaviour::Ready if desired.kind.runs_to_end() => {
                facts.phase = InstancePhase::Ended;
                facts.last_exit = Some(ExitFacts { at: now, ..ExitFacts::default() });
            }
            Behaviour::Ready => {}
            Behaviour::Starting => facts.phase = InstancePhase::Starting,
            Behaviour::Crash(exit) => {
                let job = desired.kind.runs_to_end();
                facts.phase = if job { InstancePhase::Ended } else { InstancePhase::BackOff };
                facts.restarts = if job { restarts } else { 3 };
                facts.last_exit = Some(ExitFacts { at: now, ..exit.clone() });
            }
            Behaviour::Fault(fault) => (facts.phase, facts.fault) = (InstancePhase::Ended, Some(fault.clone())),
        }
        let mut member = Member {
            id: id.clone(),
            template: desired.template.clone(),
            place,
            phase: facts.phase,
            ends: 0,
            waiting_since: now,
            ready_since: None,
            drain_since: None,
            released: false,
            ended: None,
        };
        adjust(&mut member, &facts, now);
        self.instances.insert(id, (facts, member));
    }
}

#[async_trait]
impl Orchestrator for FakeOrchestrator {
    async fn apply(&self, plan: &WorkloadPlan) -> Result<(), Error> {
        {
            let mut state = self.lock();
            if let Some(why) = &state.refuses {
                return Err(Error::failed("apply a plan", why));
            }
            let number = state.components.len() as u32 + 1;
            if plan.template.volumes.iter().any(|it| it.kind != arco_model::spec::VolumeKind::Memory) {
                state.volumes.insert(plan.component.clone());
            }
            match state.components.get_mut(&plan.component) {
                Some(found) if found.plan == *plan => return Ok(()),
                Some(found) => found.plan = plan.clone(),
                None => {
                    let component = Component {
                        plan: plan.clone(),
                        address: Ipv4Addr::from(0x0a40_0800 + number),
                        instances: BTreeMap::new(),
                        completed: None,
                        rollout: RolloutFacts::Progressing,
                    };
                    state.components.insert(plan.component.clone(), component);
                }
            }
        }
        self.settle(&plan.component);
        Ok(())
    }

    async fn remove(&self, component: &ComponentId, what: &Removal) -> Result<(), Error> {
        if matches!(what, Removal::Volume(_)) {
            return Ok(()); // it keeps no content
        }
        let keeps = self.lock().keeps;
        if keeps {
            std::future::pending::<()>().await;
        }
        let known = {
            let mut state = self.lock();
            if *what == Removal::Everything {
                state.volumes.remove(component);
            }
            state.components.remove(component).is_some()
        };
        if known {
            let _ = self.bell.send(component.clone()); // nobody may listen
        }
        Ok(())
    }

    async fn observe(&self, component: &ComponentId) -> Result<Observed, Error> {
        let state = self.lock();
        let Some(found) = state.components.get(component) else { return Ok(Observed::default()) };
        Ok(Observed {
            plan: found.plan.fingerprint(),
            instances: found.instances.values().map(|(it, _)| it.clone()).collect(),
            rollout: found.rollout.clone(),
            address: (!found.plan.template.ports.is_empty()).then_some(found.address),
            scaling: found
                .plan
                .autoscaling
                .map(|it| ScalingFacts { replicas: it.within(found.plan.replicas), ..ScalingFacts::default() }),
        })
    }

    async fn components(&self) -> Result<Vec<ComponentId>, Error> {
        let state = self.lock();
        Ok(state.components.keys().chain(&state.volumes).cloned().collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn tenants(&self) -> Result<BTreeSet<TenantName>, Error> {
        Ok(self.lock().tenants.keys().cloned().collect())
    }

    async fn remove_tenant(&self, tenant: &TenantName) -> Result<Option<String>, Error> {
        Ok(self.lock().tenants.remove(tenant).flatten())
    }

    fn changes(&self) -> broadcast::Receiver<ComponentId> {
        self.bell.subscribe()
    }

    async fn release(&self, instance: &InstanceId) -> Result<(), Error> {
        let component = {
            let mut state = self.lock();
            let Some((component, id)) = find(&mut state, instance) else {
                return Err(Error::NotFound(format!("instance {instance}")));
            };
            if let Some((_, member)) = state.components.get_mut(&component).and_then(|it| it.instances.get_mut(&id)) {
                member.released = true;
            }
            component
        };
        self.settle(&component);
        Ok(())
    }

    async fn run(
        &self,
        workload: &OneShot,
        output: mpsc::Sender<OutputLine>,
        cancel: oneshot::Receiver<()>,
    ) -> Result<OneShotResult, Error> {
        let (held, answer) = {
            let mut state = self.lock();
            state.ran.push(workload.clone());
            (state.held, state.runs.as_ref().map(|it| it(workload)))
        };
        if held {
            let _ = cancel.await; // fired or dropped: both mean the same
            let exit = ExitFacts { status: 137, signal: Some(9), asked: true, ..ExitFacts::default() };
            return Ok(OneShotResult { exit, timed_out: false, layer: None });
        }
        let ended = OneShotResult { exit: ExitFacts::default(), timed_out: false, layer: None };
        let (lines, result) = answer.unwrap_or_else(|| Ok((Vec::new(), ended))).map_err(Error::Refused)?;
        for text in lines {
            let _ = output.send(OutputLine { stderr: false, text }).await; // the caller may not listen
        }
        Ok(result)
    }

    async fn exec(&self, instance: &InstanceId, _request: ExecRequest) -> Result<ExecSession, Error> {
        if find(&mut self.lock(), instance).is_none() {
            return Err(Error::NotFound(format!("instance {instance}")));
        }
        let (status, exit) = oneshot::channel();
        let _ = status.send(0); // the receiver is below
        Ok(ExecSession {
            stdin: Box::new(tokio::io::sink()),
            stdout: Box::new(tokio::io::empty()),
            stderr: Box::new(tokio::io::empty()),
            resize: mpsc::channel(1).0,
            exit,
        })
    }

    async fn connect(&self, instance: &InstanceId, port: u16) -> Result<Connection, Error> {
        let mut state = self.lock();
        let Some((component, _)) = find(&mut state, instance) else {
            return Err(Error::NotFound(format!("instance {instance}")));
        };
        let ports = state.components.get(&component).map(|it| it.plan.template.ports.as_slice()).unwrap_or_default();
        if !ports.iter().any(|it| it.port == port) {
            return Err(Error::Refused(format!("nothing listens on port {port} inside instance {instance}")));
        }
        let (ours, mut theirs) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut asked, mut answer) = ([0; 1024], b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".as_slice());
            let _ = theirs.read(&mut asked).await; // whatever is asked
            let _ = tokio::io::copy(&mut answer, &mut theirs).await; // nobody may listen
        });
        Ok(Connection { stream: Box::new(ours), failure: oneshot::channel().1 })
    }

    async fn usage(&self, instance: &InstanceId) -> Result<Usage, Error> {
        match find(&mut self.lock(), instance) {
            Some(_) => Ok(Usage { cpu_ms: 10, memory_bytes: 1 << 20, pids: 1 }),
            None => Err(Error::NotFound(format!("instance {instance}"))),
        }
    }

    async fn shutdown(&self, stop_instances: bool) -> Result<(), Error> {
        if stop_instances {
            self.lock().components.clear();
        }
        Ok(())
    }
}
