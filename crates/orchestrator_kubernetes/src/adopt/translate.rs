//! Workloads as components. Pure.
//!
//! What must hold: what the platform would refuse of a component is left out and named, so that one variable or one path of
//! a workload does not keep all of them away.

mod files;
mod lost;
#[cfg(test)]
mod tests;

use super::{Adopted, Found, Objects};
use crate::seen::scaler::thousandths;
use arco_model::manifest::ComponentManifest;
use arco_model::name::{ComponentName, VolumeName};
use arco_model::spec::scheduling::Scheduling;
use arco_model::spec::{
    Command, ComponentKind, Port, Probe, Protocol, Resources, VolumeKind, VolumeSpec, is_env_name, is_volume_path,
};
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec, Probe as PodProbe, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};

/// Most instances of a component.
const INSTANCES_MAX: u32 = 100;

/// One workload, whatever its kind.
struct Workload<'a> {
    kind: &'static str,
    name: &'a str,
    replicas: u32,
    template: &'a PodTemplateSpec,
    /// By which its pods are found.
    selector: &'a LabelSelector,
    /// Claims that each place has.
    claims: &'a [PersistentVolumeClaim],
    /// Whether its old pods end before new ones start.
    recreates: bool,
    owners: &'a [OwnerReference],
}

impl<'a> Workload<'a> {
    fn new(
        kind: &'static str,
        metadata: &'a ObjectMeta,
        replicas: Option<i32>,
        template: &'a PodTemplateSpec,
        selector: &'a LabelSelector,
    ) -> Option<Self> {
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let replicas = replicas.and_then(|it| u32::try_from(it).ok()).unwrap_or(1);
        let name = metadata.name.as_deref()?;
        Some(Self { kind, name, replicas, template, selector, claims: &[], recreates: false, owners })
    }

    /// Services that lead to it.
    fn services<'b>(&self, objects: &'b Objects) -> Vec<&'b Service> {
        let labels = self.template.metadata.as_ref().and_then(|it| it.labels.as_ref());
        let has = |name: &String, value: &String| labels.and_then(|it| it.get(name)) == Some(value);
        let leads = |it: &&Service| selector(it).is_some_and(|it| it.iter().all(|(name, value)| has(name, value)));
        objects.services.iter().filter(leads).collect()
    }
}

fn selector(of: &Service) -> Option<&BTreeMap<String, String>> {
    of.spec.as_ref().and_then(|it| it.selector.as_ref()).filter(|it| !it.is_empty())
}

/// Everything of a namespace.
pub(super) fn found(objects: &Objects) -> Found {
    let mut found = Found::default();
    let deployments = objects.deployments.iter().filter_map(|it| {
        let spec = it.spec.as_ref()?;
        let found = Workload::new("Deployment", &it.metadata, spec.replicas, &spec.template, &spec.selector)?;
        let strategy = spec.strategy.as_ref().and_then(|it| it.type_.as_deref());
        Some(Workload { recreates: strategy == Some("Recreate"), ..found })
    });
    let sets = objects.stateful_sets.iter().filter_map(|it| {
        let spec = it.spec.as_ref()?;
        let found = Workload::new("StatefulSet", &it.metadata, spec.replicas, &spec.template, &spec.selector)?;
        Some(Workload { claims: spec.volume_claim_templates.as_deref().unwrap_or_default(), ..found })
    });
    let mut led = BTreeSet::new();
    for it in deployments.chain(sets) {
        let from = format!("{}/{}", it.kind, it.name);
        match ComponentName::new(it.name) {
            Err(error) => found.left.push(format!("{from}: {error}; deploy its image under another name")),
            Ok(name) if found.components.contains_key(&name) => {
                found.left.push(format!("{from}: another workload has that name; deploy its image under another one"));
            }
            Ok(name) => match component(&it, objects) {
                Some((component, lost)) => {
                    led.extend(it.services(objects).iter().filter_map(|it| it.metadata.name.clone()));
                    found.components.insert(name, Adopted { from, component, lost });
                }
                None => found.left.push(format!("{from}: it has no container")),
            },
        }
    }
    for it in &objects.others {
        found.left.push(format!("{it}: make it anew, as a component of kind `job` or `cron` where it is one"));
    }
    for it in objects.services.iter().filter_map(|it| it.metadata.name.as_ref()).filter(|it| !led.contains(*it)) {
        found.left.push(format!("Service/{it}: it leads to none of these; give its address as a variable"));
    }
    for it in &objects.ingresses {
        let rules = it.spec.iter().flat_map(|it| it.rules.iter().flatten());
        let hosts: BTreeSet<&str> = rules.filter_map(|it| it.host.as_deref()).collect();
        let hosts: Vec<&str> = hosts.into_iter().collect();
        let hosts = if hosts.is_empty() { "every host".to_owned() } else { hosts.join(", ") };
        let name = it.metadata.name.as_deref().unwrap_or_default();
        found.left.push(format!("Ingress/{name}: `arco route add` for {hosts}"));
    }
    found
}

/// The component, and what it would not have.
fn component(of: &Workload<'_>, objects: &Objects) -> Option<(ComponentManifest, Vec<String>)> {
    let pod = of.template.spec.as_ref()?;
    let (container, others) = pod.containers.split_first()?;
    let mut lost = Vec::new();
    let mut manifest = ComponentManifest {
        source: Some(format!("image:{}", container.image.as_deref().unwrap_or_default())),
        kind: if of.kind == "StatefulSet" { ComponentKind::Stateful } else { ComponentKind::Stateless },
        replicas: Some(of.replicas.min(INSTANCES_MAX)),
        resources: Some(resources(container, &mut lost)),
        ports: ports(of, container, objects),
        ..ComponentManifest::default()
    };
    if of.replicas > INSTANCES_MAX {
        lost.push(format!("{} of its {} instances: split it", of.replicas - INSTANCES_MAX, of.replicas));
    }
    match container.readiness_probe.as_ref().map(|it| probe(it, container)) {
        Some(None) => lost.push("its readiness probe: `probe` knows plain HTTP, TCP and programs".to_owned()),
        other => manifest.probe = other.flatten(),
    }
    if let Some(labels) = pod.node_selector.clone().filter(|it| !it.is_empty()) {
        manifest.scheduling = Some(Scheduling { node_selector: labels, ..Scheduling::default() });
    }
    command(container, &mut manifest, &mut lost);
    environment(container, &mut manifest, &mut lost);
    volumes(of, pod, objects, &mut manifest, &mut lost);
    lost.extend(others.iter().map(|it| format!("container `{}`: put it into `overlay`", it.name)));
    lost.extend(lost::beyond(of, pod, container));
    lost.extend(lost::marks(of, objects));
    lost.extend(lost::resources(container));
    lost.extend(lost::doors(&manifest.ports));
    for it in of.services(objects).iter().filter_map(|it| it.metadata.name.as_ref()) {
        lost.push(format!(
            "the name `{it}` for others: bind them to it (`arco bind`, variables `<ALIAS>_HOST`, `_PORT`)"
        ));
    }
    for it in &objects.autoscalers {
        let target = &it.spec.scale_target_ref;
        if target.kind == of.kind && target.name == of.name {
            let least = it.spec.min_replicas.unwrap_or(1);
            lost.push(format!("its autoscaler: `arco scale … --min {least} --max {}`", it.spec.max_replicas));
        }
    }
    for it in of.owners {
        lost.push(format!("what `{}/{}` does for it, which made it and would make it again", it.kind, it.name));
    }
    Some((manifest, lost))
}

/// Whether the cluster puts something else into a text before a program sees it.
fn is_filled_in(text: &str) -> bool {
    text.contains("$(")
}

fn command(container: &Container, manifest: &mut ComponentManifest, lost: &mut Vec<String>) {
    let command = container.command.clone().unwrap_or_default();
    let arguments = container.args.clone().unwrap_or_default();
    if command.is_empty() && !arguments.is_empty() {
        lost.push(format!(
            "arguments `{}`: give the whole `command`, with the image's own program",
            arguments.join(" ")
        ));
    } else if command.iter().chain(&arguments).any(|it| is_filled_in(it)) {
        lost.push("a command with `$(NAME)`: give `command` for a shell, with `$NAME`".to_owned());
    } else if !command.is_empty() {
        manifest.command = Some(Command::Exec([command, arguments].concat()));
    }
}

fn environment(container: &Container, manifest: &mut ComponentManifest, lost: &mut Vec<String>) {
    for it in container.env.iter().flatten() {
        let (name, value) = (&it.name, it.value.clone().unwrap_or_default());
        if name == "PORT" {
            lost.push("variable `PORT`: the platform sets it to the first port".to_owned());
        } else if !is_env_name(name) {
            lost.push(format!("variable `{name}`: the program must take another name"));
        } else if it.value_from.is_some() {
            lost.push(format!("variable `{name}` from elsewhere: set it (`arco secret set`, `arco env set`)"));
        } else if is_filled_in(&value) {
            lost.push(format!("variable `{name}`, which is made of others: set it (`arco env set`)"));
        } else {
            manifest.env.insert(name.clone(), value);
        }
    }
    for it in container.env_from.iter().flatten() {
        let secret = it.secret_ref.as_ref().map(|it| format!("Secret/{}", it.name));
        let map = it.config_map_ref.as_ref().map(|it| format!("ConfigMap/{}", it.name));
        if let Some(from) = secret.or(map) {
            lost.push(format!("variables of `{from}`: set them (`arco secret set`, `arco env set`)"));
        }
    }
}

fn resources(container: &Container, lost: &mut Vec<String>) -> Resources {
    let limits = container.resources.as_ref().and_then(|it| it.limits.as_ref());
    let limit = |name: &str| limits.and_then(|it| it.get(name)).and_then(thousandths);
    let fits = |it: u64| u32::try_from(it).unwrap_or(u32::MAX);
    let default = Resources::default();
    let memory = limit("memory").map(|it| fits((it / 1000).div_ceil(1 << 20)).clamp(16, 1_048_576));
    if memory.is_none() {
        lost.push(format!("memory without a limit: it has {} MB (`memory_mb`)", default.memory_mb));
    }
    Resources {
        cpu_milli: limit("cpu").map_or(default.cpu_milli, |it| fits(it).clamp(10, 1_024_000)),
        memory_mb: memory.unwrap_or(default.memory_mb),
        ..default
    }
}

/// Ports that the container names or Services lead to; outer ones are those that were open outside of the cluster. The first
/// one is the component's own: those that are open outside come first, then those with a Service.
fn ports(of: &Workload<'_>, container: &Container, objects: &Objects) -> Vec<Port> {
    let routed: BTreeSet<&str> = objects
        .ingresses
        .iter()
        .filter_map(|it| it.spec.as_ref())
        .flat_map(|spec| {
            let rules = spec.rules.iter().flatten().filter_map(|it| it.http.as_ref());
            let backends = rules.flat_map(|it| it.paths.iter()).map(|it| &it.backend).chain(&spec.default_backend);
            backends.filter_map(|it| it.service.as_ref()).map(|it| it.name.as_str())
        })
        .collect();
    let mut found: BTreeMap<(u16, bool), (Port, bool)> = BTreeMap::new();
    for it in container.ports.iter().flatten() {
        let (Ok(port), Some(udp)) = (u16::try_from(it.container_port), is_udp(it.protocol.as_deref())) else {
            continue;
        };
        let protocol = protocol(udp, it.name.as_deref(), port);
        found.insert((port, udp), (Port { port, protocol, outer: false }, false));
    }
    for service in of.services(objects) {
        let Some(spec) = &service.spec else { continue };
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let open = matches!(spec.type_.as_deref(), Some("LoadBalancer" | "NodePort")) || routed.contains(name);
        for it in spec.ports.iter().flatten() {
            let target = match &it.target_port {
                None => Some(it.port),
                Some(target) => number(target, container),
            };
            let (Some(port), Some(udp)) =
                (target.and_then(|it| u16::try_from(it).ok()), is_udp(it.protocol.as_deref()))
            else {
                continue;
            };
            let said = it.app_protocol.as_deref().or(it.name.as_deref());
            let new = || (Port { port, protocol: protocol(udp, said, port), outer: false }, true);
            let (entry, led) = found.entry((port, udp)).or_insert_with(new);
            entry.outer |= open;
            *led = true;
        }
    }
    let mut found: Vec<(Port, bool)> = found.into_values().filter(|it| it.0.port != 0).collect();
    found.sort_by_key(|(port, led)| (!port.outer, !led)); // stable: by number else
    found.into_iter().map(|it| it.0).collect()
}

/// Whether a port is one of UDP; `None` for what is neither that nor TCP.
fn is_udp(protocol: Option<&str>) -> Option<bool> {
    match protocol {
        Some("UDP") => Some(true),
        Some("TCP") | None => Some(false),
        Some(_) => None,
    }
}

fn protocol(udp: bool, said: Option<&str>, port: u16) -> Protocol {
    let said = said.unwrap_or_default().to_ascii_lowercase();
    if udp {
        Protocol::Udp
    } else if said == "grpcs" || said.starts_with("grpcs-") {
        Protocol::Grpcs
    } else if said.starts_with("grpc") {
        Protocol::Grpc
    } else if said.contains("h2c") {
        Protocol::H2c
    } else if said.starts_with("https") || port == 443 {
        Protocol::Https
    } else if said.starts_with("http") || said == "web" || matches!(port, 80 | 3000 | 5000 | 8000 | 8080) {
        Protocol::Http
    } else {
        Protocol::Tcp
    }
}

/// The number of a port that may be named.
fn number(port: &IntOrString, container: &Container) -> Option<i32> {
    match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|it| it.name.as_ref() == Some(name));
            named.map(|it| it.container_port)
        }
    }
}

fn probe(of: &PodProbe, container: &Container) -> Option<Probe> {
    let port = |it: &IntOrString| number(it, container).and_then(|it| u16::try_from(it).ok());
    if let Some(it) = &of.http_get {
        let path = it.path.clone().unwrap_or_else(|| "/".to_owned());
        let plain = it.scheme.as_deref() != Some("HTTPS") && path.starts_with('/');
        return plain.then(|| Probe::Http { path, port: port(&it.port) });
    }
    if let Some(it) = &of.tcp_socket {
        return Some(Probe::Tcp { port: port(&it.port) });
    }
    let argv = of.exec.as_ref()?.command.clone()?;
    Some(Probe::Exec { argv })
}

/// Size in MiB and class that a claim asks for.
fn asked(of: &PersistentVolumeClaimSpec) -> (u32, Option<String>) {
    let size = of.resources.as_ref().and_then(|it| it.requests.as_ref()).and_then(|it| it.get("storage"));
    let size_mb = size.and_then(thousandths).map(|it| (it / 1000).div_ceil(1 << 20));
    let size_mb = size_mb.and_then(|it| u32::try_from(it).ok()).unwrap_or_else(VolumeSpec::default_size_mb);
    (size_mb.max(1), of.storage_class_name.clone().filter(|it| !it.is_empty()))
}

fn volumes(
    of: &Workload<'_>,
    pod: &PodSpec,
    objects: &Objects,
    manifest: &mut ComponentManifest,
    lost: &mut Vec<String>,
) {
    let mut texts = Vec::new();
    for mount in pod.containers[0].volume_mounts.iter().flatten() {
        let (name, path) = (&mount.name, mount.mount_path.trim_end_matches('/'));
        let of_place = of.claims.iter().find(|it| it.metadata.name.as_ref() == Some(name));
        let volume = pod.volumes.iter().flatten().find(|it| it.name == *name);
        let claim = volume.and_then(|it| it.persistent_volume_claim.as_ref()).map(|it| it.claim_name.as_str());
        let scratch = volume.and_then(|it| it.empty_dir.as_ref());
        let (kind, size_mb, class) = if let Some(it) = of_place {
            let (size_mb, class) = it.spec.as_ref().map_or((VolumeSpec::default_size_mb(), None), asked);
            (VolumeKind::Local, size_mb, class)
        } else if let Some(claim) = claim {
            let it = objects.claims.iter().find(|it| it.metadata.name.as_deref() == Some(claim));
            let (size_mb, class) =
                it.and_then(|it| it.spec.as_ref()).map_or((VolumeSpec::default_size_mb(), None), asked);
            (VolumeKind::Shared, size_mb, class)
        } else if let Some(it) = scratch {
            if it.medium.as_deref() != Some("Memory") {
                // Every instance has a layer of its own to write to.
                let others = pod.containers[1..].iter().chain(pod.init_containers.iter().flatten());
                if others.flat_map(|it| it.volume_mounts.iter().flatten()).any(|it| it.name == *name) {
                    lost.push(format!(
                        "volume `{name}` at {path}, which its containers share: put it into `overlay`, with them"
                    ));
                } else if it.size_limit.is_some() {
                    lost.push(format!("the size of what is at {path}: `disk_mb` limits all that an instance writes"));
                }
                continue;
            }
            let limit = it.size_limit.as_ref().and_then(thousandths).map(|it| (it / 1000).div_ceil(1 << 20));
            (VolumeKind::Memory, limit.and_then(|it| u32::try_from(it).ok()).unwrap_or(64).max(1), None)
        } else if let Some(secret) = volume.and_then(|it| it.secret.as_ref()).and_then(|it| it.secret_name.as_ref()) {
            lost.push(format!(
                "files of `Secret/{secret}` at {path}: set secrets (`arco secret set`), and files with them (`arco file set`)"
            ));
            continue;
        } else {
            let map = volume.and_then(|it| it.config_map.as_ref());
            match map.and_then(|it| files::mounted(mount, it, objects, lost)) {
                Some(found) => texts.extend(found),
                None => lost.push(format!(
                    "what is mounted at {path}: bring it with the image, as files (`arco file set`), or by a variable"
                )),
            }
            continue;
        };
        let again = manifest.volumes.iter().any(|it| it.name.as_str() == name);
        match VolumeName::new(name.as_str()) {
            Ok(name) if mount.sub_path.is_none() && !again && is_volume_path(path) => {
                if kind != VolumeKind::Memory {
                    lost.push(format!("the content of volume `{name}`: copy it (`arco exec`)"));
                }
                manifest.volumes.push(VolumeSpec { name, path: path.to_owned(), size_mb, kind, class });
            }
            _ => lost.push(format!("volume `{name}` at {path}: add one (`arco volume add`), and copy the content")),
        }
    }
    // A volume that is there comes before a file in its place.
    files::take_over(texts, manifest, lost);
}
