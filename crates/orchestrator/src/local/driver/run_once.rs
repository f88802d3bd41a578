//! Workloads that run once: steps of builds, and `arco run`.
//!
//! What must hold: however it ends (by itself, time limit, cancel, fault), nothing of it is left afterwards; its exit
//! is told only after its last line of output.

use super::Inner;
use super::instance::{self, blank};
use crate::local::container::{ContainerPhase, ContainerSpec, ContainerState};
use crate::local::network::rules::InstanceRole;
use crate::local::shim::INIT_PATH;
use crate::{Error, ExecRequest, ExecSession, OneShotResult, OutputLine, one_off};
use arco_model::id::InstanceId;
use arco_model::observed::ExitFacts;
use arco_model::plan::{HostMount, OneShot, OneShotNetwork};
use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};

/// Time for the program to end by itself when it is cancelled or its time is over, in ms.
const GRACE_MS: u64 = 500;
/// How long the last output may take after the program's end; only where nobody can hand it on it takes so long.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// Runs it to its end.
pub(super) async fn run(
    inner: Arc<Inner>,
    workload: OneShot,
    output: mpsc::Sender<OutputLine>,
    cancel: oneshot::Receiver<()>,
) -> Result<OneShotResult, Error> {
    let outcome = run_and_leave(&inner, &workload, output, cancel).await;
    match instance::unmake(&inner, &workload.id, 0).await {
        Ok(()) => outcome,
        Err(error) => {
            tracing::error!(instance = %workload.id, %error, "a one-shot workload is not wholly cleared");
            outcome.and(Err(error))
        }
    }
}

/// Runs it with its input and output connected: a container that holds still, and the program in it.
pub(super) async fn attach(
    inner: Arc<Inner>,
    workload: OneShot,
    terminal: Option<(u16, u16)>,
) -> Result<ExecSession, Error> {
    let id = workload.id.clone();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(workload.timeout_ms);
    let request = ExecRequest { argv: workload.argv.clone(), terminal };
    let holding = OneShot { argv: vec![INIT_PATH.to_owned()], ..workload };
    let begun = async {
        inner.containers.create(prepare(&inner, &holding).await?).await?;
        inner.containers.exec(&id, request).await
    };
    let session = match one_off::begun(begun, deadline, &inner.stop).await {
        Ok(session) => session,
        Err(error) => {
            leave(&inner, &id).await;
            return Err(error);
        }
    };
    let (work, stop) = (inner.clone(), inner.stop.clone());
    let (session, beside) = one_off::tied(session, deadline, stop, async move { leave(&work, &id).await });
    inner.tracker.spawn(beside);
    Ok(session)
}

async fn leave(inner: &Inner, id: &InstanceId) {
    if let Err(error) = instance::unmake(inner, id, 0).await {
        tracing::error!(instance = %id, %error, "a one-off instance is not wholly cleared");
    }
}

async fn run_and_leave(
    inner: &Inner,
    workload: &OneShot,
    output: mpsc::Sender<OutputLine>,
    mut cancel: oneshot::Receiver<()>,
) -> Result<OneShotResult, Error> {
    let id = &workload.id;
    let deadline = tokio::time::Instant::now() + Duration::from_millis(workload.timeout_ms);
    let mut bell = inner.containers.changes();
    let mut lines = inner.containers.output(id).await;
    let forward = async {
        while let Some(line) = lines.recv().await {
            // Nobody listens any more: read on, so that the program is not held up.
            let _ = output.send(line).await;
        }
    };
    let spec = prepare(inner, workload).await?;
    let work = async {
        tokio::select! {
            made = inner.containers.create(spec) => made?,
            _ = &mut cancel => return Err(Error::Refused("it was cancelled".to_owned())),
            () = tokio::time::sleep_until(deadline) => return Err(Error::Refused("its time was over before it could start".to_owned())),
        }
        let mut timed_out = false;
        let ended = tokio::select! {
            state = ended(inner, id, &mut bell) => Some(state?),
            _ = &mut cancel => None,
            () = tokio::time::sleep_until(deadline) => {
                timed_out = true;
                None
            }
            () = inner.stop.cancelled() => None,
        };
        match ended {
            Some(state) => Ok((state, false)),
            None => {
                inner.containers.stop(id, GRACE_MS).await?;
                let mut state = ended_state(inner, id).await?;
                if let Some(exit) = &mut state.last_exit {
                    exit.asked = true;
                }
                Ok((state, timed_out))
            }
        }
    };
    let work = {
        let mut forward = std::pin::pin!(forward.fuse());
        let mut work = std::pin::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = &mut forward, if !forward.is_terminated() => {}
            }
        };
        // The output ends after the program; a broken end of it must not hold up the result for ever.
        if done.is_ok() && !forward.is_terminated() {
            let _ = tokio::time::timeout(LAST_WORDS, forward).await;
        }
        done
    };
    let (state, timed_out) = work?;
    let exit = state.last_exit.unwrap_or_else(|| ExitFacts { status: 255, ..ExitFacts::default() });
    let layer = match &workload.export {
        Some(export) if exit.status == 0 && !timed_out => Some(inner.containers.export_layer(id, export).await?),
        _ => None,
    };
    Ok(OneShotResult { exit, timed_out, layer })
}

/// Waits for the end of a container's program.
async fn ended(
    inner: &Inner,
    id: &InstanceId,
    bell: &mut broadcast::Receiver<InstanceId>,
) -> Result<ContainerState, Error> {
    loop {
        match inner.containers.state(id).await {
            Some(state) if state.phase == ContainerPhase::Exited => return Ok(state),
            Some(_) => {}
            None => return Err(Error::failed("run a one-shot workload", "its container is gone")),
        }
        loop {
            match bell.recv().await {
                Ok(changed) if changed != *id => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(Error::failed("run a one-shot workload", "the server stops"));
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => break,
            }
        }
    }
}

async fn ended_state(inner: &Inner, id: &InstanceId) -> Result<ContainerState, Error> {
    let state = inner.containers.state(id).await;
    state.ok_or_else(|| Error::failed("end a one-shot workload", "its container is gone"))
}

async fn prepare(inner: &Inner, workload: &OneShot) -> Result<ContainerSpec, Error> {
    let OneShot { id, component, .. } = workload;
    let role = match workload.network {
        OneShotNetwork::None => None,
        OneShotNetwork::Build => Some(InstanceRole::Build),
        OneShotNetwork::Instance => Some(InstanceRole::Run),
    };
    let (image, attached, volumes) = tokio::join!(
        inner.images.read(&workload.image),
        inner.network.attach(id, component, role),
        inner.volumes.provide(component, &workload.volumes, 0, id),
    );
    let image = image.map_err(|error| Error::failed(format!("read the image {}", workload.image.repository), error))?;
    let attached = attached.map_err(|error| Error::failed("connect the workload", error))?;
    let mut mounts = workload.mounts.clone();
    mounts.extend(workload.caches.iter().map(|it| HostMount {
        host_path: it.host_path.clone(),
        path: it.path.clone(),
        writable: true,
    }));
    mounts.extend(volumes?);
    let name_servers = match role {
        None => Vec::new(),
        Some(InstanceRole::Build) => build_name_servers(inner).await,
        Some(_) => vec![inner.gateway],
    };
    let application = if role == Some(InstanceRole::Run) { application_of(inner, component).await } else { None };
    let place = application.as_ref().map(|it| (&workload.tenant, it));
    let hostname = if role == Some(InstanceRole::Run) { "run" } else { "build" };
    let mut layers = image.layers.clone();
    layers.extend(workload.extra_layers.iter().cloned());
    let kind = if role == Some(InstanceRole::Run) { "run" } else { "build" };
    let labels =
        [("kind", kind.to_owned()), ("component", component.to_string()), ("tenant", workload.tenant.to_string())];
    let files = instance::files(&workload.files, &workload.env)?;
    let mut spec = ContainerSpec {
        layers,
        disk_mb: workload.resources.disk_mb,
        argv: workload.argv.clone(),
        env: workload.env.clone(),
        working_dir: workload.working_dir.clone(),
        user: workload.user.clone(),
        resources: workload.resources,
        mounts,
        files,
        netns: Some(attached.netns),
        hostname: hostname.to_owned(),
        resolv_conf: Some(instance::resolv_conf(&name_servers, place)),
        hosts: Some(instance::hosts(attached.address, hostname)),
        labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..blank(id.clone())
    };
    instance::complete(&mut spec, &image);
    Ok(spec)
}

/// Ours, when it answers; otherwise those of the machine, which the build network may ask on port 53.
async fn build_name_servers(inner: &Inner) -> Vec<Ipv4Addr> {
    let ours = SocketAddr::from((inner.gateway, 53));
    let connect = tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(ours)).await;
    if matches!(connect, Ok(Ok(_))) {
        return vec![inner.gateway];
    }
    let mut found = inner.network.resolvers().await;
    if found.is_empty() {
        found.push(inner.gateway);
    }
    found
}

async fn application_of(
    inner: &Inner,
    component: &arco_model::id::ComponentId,
) -> Option<arco_model::name::ApplicationName> {
    inner.network.application(component).await?.parse().ok()
}
