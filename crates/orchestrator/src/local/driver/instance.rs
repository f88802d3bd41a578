//! How an instance of a plan becomes a container: specification, labels, name service files; made and unmade.

use super::Inner;
use crate::Error;
use crate::local::container::{ContainerFile, ContainerSpec, RestartPolicy};
use crate::local::network::Attachment;
use crate::local::network::rules::InstanceRole;
use arco_model::id::InstanceId;
use arco_model::name::{ApplicationName, TenantName};
use arco_model::plan::{InstanceFile, WorkloadPlan};
use arco_store::images::Image;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Whether a container found at start belongs to a component's instances (and not to a one-shot).
pub(super) fn is_adoptable(labels: &BTreeMap<String, String>) -> bool {
    matches!(labels.get("kind").map(String::as_str), Some("service" | "job"))
}

/// Volumes that a container found at start uses.
pub(super) fn volume_paths(labels: &BTreeMap<String, String>) -> Vec<PathBuf> {
    labels.get("volumes").and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default()
}

/// Content of `/etc/resolv.conf`. `tenant` and `application` of a build are not known to it.
pub(super) fn resolv_conf(servers: &[Ipv4Addr], place: Option<(&TenantName, &ApplicationName)>) -> String {
    let mut text: String = servers.iter().map(|it| format!("nameserver {it}\n")).collect();
    if let Some((tenant, application)) = place {
        text += &format!(
            "search {application}.{tenant}.arco.internal {tenant}.arco.internal arco.internal\noptions ndots:3\n"
        );
    }
    text
}

/// Content of `/etc/hosts`.
pub(super) fn hosts(address: Option<Ipv4Addr>, hostname: &str) -> String {
    let own = address.unwrap_or(Ipv4Addr::LOCALHOST);
    format!("127.0.0.1\tlocalhost\n{own}\t{hostname}\n")
}

/// Configuration files with what is in them.
pub(super) fn files(files: &[InstanceFile], env: &BTreeMap<String, String>) -> Result<Vec<ContainerFile>, Error> {
    let made = |it: &InstanceFile| -> Result<ContainerFile, Error> {
        let missing = || format!("the secret of the file `{}` is not set: set it (`arco secret set`)", it.path);
        let content = it.text(env).ok_or_else(|| Error::Refused(missing()))?.to_owned();
        Ok(ContainerFile { path: it.path.clone(), content, mode: it.mode.bits() })
    };
    files.iter().map(made).collect()
}

/// Fills in from the image's configuration what the caller left open.
pub(super) fn complete(spec: &mut ContainerSpec, image: &Image) {
    let config = &image.config;
    for line in &config.env {
        if let Some((name, value)) = line.split_once('=') {
            spec.env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    if spec.argv.is_empty() {
        spec.argv = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    }
    for (own, default) in [
        (&mut spec.working_dir, &config.working_dir),
        (&mut spec.user, &config.user),
        (&mut spec.stop_signal, &config.stop_signal),
    ] {
        if own.is_empty() {
            own.clone_from(default);
        }
    }
}

/// An empty specification.
pub(super) fn blank(id: InstanceId) -> ContainerSpec {
    ContainerSpec {
        id,
        component: None,
        layers: Vec::new(),
        disk_mb: 0,
        argv: Vec::new(),
        env: BTreeMap::new(),
        working_dir: String::new(),
        user: String::new(),
        stop_signal: String::new(),
        resources: arco_model::spec::Resources::default(),
        mounts: Vec::new(),
        files: Vec::new(),
        netns: None,
        hostname: String::new(),
        resolv_conf: None,
        hosts: None,
        restart: RestartPolicy::Never,
        labels: BTreeMap::new(),
    }
}

/// What is to be made.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) id: InstanceId,
    pub(super) place: u32,
    pub(super) template: String,
    pub(super) plan: std::sync::Arc<WorkloadPlan>,
}

/// Makes and starts an instance; returns its address. When it fails nothing is left of it.
pub(super) async fn prepare(inner: &Inner, order: &Order) -> Result<Option<Ipv4Addr>, Error> {
    let _turn = inner.preparing.acquire().await;
    let made = make(inner, order).await;
    if made.is_err()
        && let Err(error) = unmake(inner, &order.id, 0).await
    {
        tracing::warn!(instance = %order.id, %error, "a half-made instance is not wholly cleared");
    }
    made
}

async fn make(inner: &Inner, order: &Order) -> Result<Option<Ipv4Addr>, Error> {
    let Order { id, place, template, plan } = order;
    let it = &plan.template;
    let component = &plan.component;
    let (image, attached, mounts) = tokio::join!(
        inner.images.read(&it.image),
        inner.network.attach(id, component, Some(InstanceRole::Service)),
        inner.volumes.provide(component, &it.volumes, *place, id),
    );
    let image = image.map_err(|error| Error::failed(format!("read the image {}", it.image.repository), error))?;
    let Attachment { netns, address } = attached.map_err(|error| Error::failed("connect the instance", error))?;
    let mounts = mounts?;
    let short = &id.as_str()[id.as_str().len() - 5..];
    let hostname = match plan.kind {
        arco_model::spec::ComponentKind::Stateful => format!("{}-{place}", plan.name),
        _ => format!("{}-{short}", plan.name),
    };
    let job = plan.kind.runs_to_end();
    let volumes: Vec<_> = mounts.iter().map(|it| it.host_path.clone()).collect();
    let labels = [
        ("kind", if job { "job" } else { "service" }.to_owned()),
        ("tenant", plan.tenant.to_string()),
        ("application", plan.application.to_string()),
        ("component", component.to_string()),
        ("template", template.clone()),
        ("revision", it.revision.to_string()),
        ("place", place.to_string()),
        ("address", address.map(|it| it.to_string()).unwrap_or_default()),
        ("volumes", serde_json::to_string(&volumes).unwrap_or_default()),
        ("stop_grace_ms", plan.rollout.stop_grace_ms.to_string()),
    ];
    let mut env = it.env.clone();
    env.insert("ARCO_INSTANCE".to_owned(), id.to_string());
    let files = files(&it.files, &env)?;
    let mut spec = ContainerSpec {
        component: Some(component.clone()),
        layers: image.layers.clone(),
        disk_mb: it.resources.disk_mb,
        argv: it.argv.clone(),
        env,
        working_dir: it.working_dir.clone(),
        user: it.user.clone(),
        stop_signal: it.stop_signal.clone(),
        resources: it.resources,
        mounts,
        files,
        netns: Some(netns),
        resolv_conf: Some(resolv_conf(&[inner.gateway], Some((&plan.tenant, &plan.application)))),
        hosts: Some(hosts(address, &hostname)),
        hostname,
        restart: if job { RestartPolicy::Never } else { RestartPolicy::BackOff },
        labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..blank(id.clone())
    };
    complete(&mut spec, &image);
    if spec.argv.is_empty() {
        return Err(Error::Refused("the image names no program to run; give one with `--command`".to_owned()));
    }
    inner.containers.create(spec).await?;
    Ok(address)
}

/// Ends an instance and removes everything of it.
pub(super) async fn unmake(inner: &Inner, id: &InstanceId, grace_ms: u64) -> Result<(), Error> {
    if inner.containers.state(id).await.is_some() {
        inner.containers.stop(id, grace_ms).await?;
        inner.containers.remove(id).await?;
    }
    inner.volumes.release(id).await?;
    inner.network.detach(id).await.map_err(|it| Error::failed("disconnect the instance", it))
}

/// A label; empty when there is none.
pub(super) fn label<'a>(labels: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    labels.get(name).map_or("", String::as_str)
}
