//! Pods: what runs, how confined, how asked whether it is ready.

use super::{Kind, Object, Surroundings, files, overlay, placement};
use crate::names;
use arco_config::KubernetesConfig;
use arco_model::artifact::{ImageConfig, ImageRef};
use arco_model::plan::{InstanceTemplate, OneShot, OneShotNetwork, WorkloadPlan};
use arco_model::spec::{ComponentKind, Port, Probe, Protocol, Resources, VolumeKind, VolumeSpec};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Capabilities of every instance; the same as on one machine.
pub(super) const CAPABILITIES: [&str; 10] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID"];

/// The grace of a pod that says nothing of it, in seconds.
const DEFAULT_GRACE_S: u64 = 30;

/// The pod template of a plan, without its key.
pub(super) fn template(plan: &WorkloadPlan, around: &Surroundings<'_>) -> Result<Value, String> {
    let it = &plan.template;
    let config = around.config;
    let user = user(&it.user, around.image)?;
    let mut container = container(config, &it.image, &it.argv, &it.working_dir, &it.resources);
    container["env"] =
        json!([{ "name": "ARCO_INSTANCE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]);
    if !it.ports.is_empty() {
        container["ports"] = it.ports.iter().map(container_port).collect();
    }
    if !plan.kind.runs_to_end()
        && let Some(probe) = it.effective_probe()
    {
        container["readinessProbe"] = readiness(&probe, it);
    }
    let (mounts, volumes) = volumes(&it.volumes, |it| {
        let by_place = it.kind == VolumeKind::Local && plan.kind == ComponentKind::Stateful;
        (!by_place).then(|| super::volumes::claim_name(&plan.component, it))
    });
    if !mounts.is_empty() {
        container["volumeMounts"] = mounts.into();
    }
    let mut spec = pod_spec(config, around.pull_secret, user, container);
    if !volumes.is_empty() {
        spec["volumes"] = volumes.into();
    }
    spec["terminationGracePeriodSeconds"] = plan.rollout.stop_grace_ms.div_ceil(1000).max(1).into();
    if plan.kind.runs_to_end() {
        spec["restartPolicy"] = "Never".into();
    }
    placement::of_plan(&mut spec, plan, config)?;
    let search = [format!("{}.{}", plan.application, plan.tenant), plan.tenant.to_string()];
    names_of_others(&mut spec, config, &search, around.hosts);
    let mut labels = names::component_labels(&config.namespace_prefix, plan);
    labels.insert(names::ROLE.to_owned(), "instance".into());
    labels.insert(names::SERVING.to_owned(), "true".into());
    let annotations = json!({ (names::TEMPLATE): it.fingerprint(), (names::REVISION): it.revision.as_str() });
    let mut pod = json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": spec });
    if let Some(asked) = &it.overlay {
        overlay::put_over(&mut pod, asked, config)?;
    }
    // Another pod takes over for a stateless one at once; the place of a stateful one would be empty for longer at each change.
    if plan.kind == ComponentKind::Stateless && !it.ports.is_empty() && around.features.pauses {
        pause(&mut pod["spec"], config.eviction_pause_s);
    }
    Ok(pod)
}

/// Lets a pod that is told to end go on for a while, so that nobody calls it any more when its programs get the stop signal: what
/// the cluster itself ends, as when a node is drained, has not drained before. A hook of the component's own takes its place.
fn pause(spec: &mut Value, pause_s: u32) {
    let grace_s = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(DEFAULT_GRACE_S);
    let Some(containers) = spec["containers"].as_array_mut() else { return };
    let has_hook = |it: &Value| !it["lifecycle"]["preStop"].is_null();
    if pause_s == 0 || containers.iter().any(|it| it["name"] == names::CONTAINER && has_hook(it)) {
        return;
    }
    for container in containers.iter_mut().filter(|it| !has_hook(it)) {
        container["lifecycle"]["preStop"] = json!({ "sleep": { "seconds": pause_s } });
    }
    spec["terminationGracePeriodSeconds"] = (grace_s + u64::from(pause_s)).into();
}

/// The template with its key, its variables from a Secret, and its configuration files from objects of that name.
pub(super) fn keyed(mut pod: Value, key: &str, name: &str, plan: &WorkloadPlan, image: &ImageConfig) -> Value {
    let it = &plan.template;
    pod["metadata"]["labels"][names::KEY] = key.into();
    placement::keyed(&mut pod["spec"], key);
    if !it.env.is_empty() {
        variables_of(&mut pod["spec"], name);
    }
    files::mount(&mut pod["spec"], &it.files, name, is_root(&it.user, image));
    pod
}

/// Variables from a Secret, behind those of an overlay: the last one wins.
fn variables_of(spec: &mut Value, secret: &str) {
    let container = &mut spec["containers"][0];
    let own = json!({ "secretRef": { "name": secret } });
    match container["envFrom"].as_array_mut() {
        Some(others) => others.push(own),
        None => container["envFrom"] = json!([own]),
    }
}

/// What every pod of ours is, whatever runs in it.
fn pod_spec(config: &KubernetesConfig, pull_secret: bool, user: Option<(u32, u32)>, container: Value) -> Value {
    let mut security = json!({ "seccompProfile": { "type": "RuntimeDefault" } });
    if let Some((user, group)) = user {
        security["runAsUser"] = user.into();
        security["runAsGroup"] = group.into();
        if user != 0 {
            // Volumes belong to root at first; and ports below 1024 are open to everybody, as on one machine.
            security["fsGroup"] = group.into();
            security["fsGroupChangePolicy"] = "OnRootMismatch".into();
            security["sysctls"] = json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }]);
        }
    }
    let mut spec = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": security,
        "containers": [container],
    });
    if config.user_namespaces {
        spec["hostUsers"] = false.into();
    }
    if pull_secret {
        spec["imagePullSecrets"] = json!([{ "name": names::PULL_SECRET }]);
    }
    spec
}

fn container(
    config: &KubernetesConfig,
    image: &ImageRef,
    argv: &[String],
    working_dir: &str,
    resources: &Resources,
) -> Value {
    let mut container = json!({
        "name": names::CONTAINER,
        "image": format!("{}/{}@{}", config.registry, image.repository, image.digest),
        "imagePullPolicy": "IfNotPresent",
        "resources": limits(resources, config.request_percent),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"], "add": CAPABILITIES },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if !argv.is_empty() {
        container["command"] = argv.iter().map(|it| literal(it)).collect();
    }
    if !working_dir.is_empty() {
        container["workingDir"] = working_dir.into();
    }
    container
}

/// As Kubernetes hands it to the program unchanged. It puts variables in the place of `$(NAME)`, makes one dollar of two, and breaks
/// what is not ASCII behind one; two dollars stand for one that means itself.
fn literal(argument: &str) -> Value {
    let mut text = String::with_capacity(argument.len());
    let mut rest = argument.chars().peekable();
    while let Some(it) = rest.next() {
        text.push(it);
        if it == '$' && rest.peek().is_some_and(|next| matches!(next, '$' | '(') || !next.is_ascii()) {
            text.push('$');
        }
    }
    text.into()
}

fn limits(it: &Resources, percent: u32) -> Value {
    let share = |of: u32| (u64::from(of) * u64::from(percent.min(100)) / 100).max(1);
    let mut limits =
        json!({ "memory": format!("{}Mi", it.memory_mb), "ephemeral-storage": format!("{}Mi", it.disk_mb) });
    // Said for the disk, too: what is not is promised whole.
    let mut requests = json!({
        "memory": format!("{}Mi", share(it.memory_mb)),
        "ephemeral-storage": format!("{}Mi", share(it.disk_mb)),
        "cpu": "10m",
    });
    if it.cpu_milli > 0 {
        limits["cpu"] = format!("{}m", it.cpu_milli).into();
        requests["cpu"] = format!("{}m", share(it.cpu_milli)).into();
    }
    json!({ "limits": limits, "requests": requests })
}

fn container_port(port: &Port) -> Value {
    json!({ "name": super::network::port_name(port), "containerPort": port.port, "protocol": super::network::transport(port) })
}

fn readiness(probe: &Probe, template: &InstanceTemplate) -> Value {
    let first = template.ports.iter().find(|it| it.protocol != Protocol::Udp).map(|it| it.port);
    let mut asked = match probe {
        Probe::Http { path, port } => {
            let port = port.or(first).unwrap_or_default();
            let tls = template.ports.iter().any(|it| it.port == port && it.protocol.is_over_tls());
            json!({ "httpGet": { "path": path, "port": port, "scheme": if tls { "HTTPS" } else { "HTTP" } } })
        }
        Probe::Tcp { port } => json!({ "tcpSocket": { "port": port.or(first).unwrap_or_default() } }),
        Probe::Exec { argv } => json!({ "exec": { "command": argv } }),
    };
    let exec = matches!(probe, Probe::Exec { .. });
    asked["periodSeconds"] = if exec { 3 } else { 1 }.into();
    asked["timeoutSeconds"] = 2.into();
    asked["failureThreshold"] = if exec { 3 } else { 5 }.into();
    asked
}

/// Mounts and volumes. `claim` names the claim of a volume; `None` where a stateful set makes one for each place.
fn volumes(asked: &[VolumeSpec], claim: impl Fn(&VolumeSpec) -> Option<String>) -> (Vec<Value>, Vec<Value>) {
    let mounts = asked.iter().map(|it| json!({ "name": it.name.as_str(), "mountPath": it.path })).collect();
    let volumes = asked.iter().filter_map(|it| match it.kind {
        VolumeKind::Memory => {
            let empty = json!({ "medium": "Memory", "sizeLimit": format!("{}Mi", it.size_mb) });
            Some(json!({ "name": it.name.as_str(), "emptyDir": empty }))
        }
        VolumeKind::Local | VolumeKind::Shared => {
            let claim = json!({ "claimName": claim(it)? });
            Some(json!({ "name": it.name.as_str(), "persistentVolumeClaim": claim }))
        }
    });
    (mounts, volumes.collect())
}

/// How names inside the platform are found: by our DNS, else from `/etc/hosts`.
fn names_of_others(spec: &mut Value, config: &KubernetesConfig, search: &[String], hosts: &BTreeMap<String, Ipv4Addr>) {
    const DOMAIN: &str = arco_model::component::INTERNAL_DOMAIN;
    if let Some(address) = config.dns_address {
        let mut searches: Vec<_> = search.iter().map(|it| format!("{it}.{DOMAIN}")).collect();
        searches.push(DOMAIN.to_owned());
        spec["dnsPolicy"] = "None".into();
        spec["dnsConfig"] = json!({
            "nameservers": [address.to_string()],
            "searches": searches,
            "options": [{ "name": "ndots", "value": "3" }],
        });
        return;
    }
    let mut by_address: BTreeMap<Ipv4Addr, Vec<&str>> = BTreeMap::new();
    for (name, address) in hosts {
        by_address.entry(*address).or_default().push(name);
    }
    if !by_address.is_empty() {
        spec["hostAliases"] =
            by_address.into_iter().map(|(ip, names)| json!({ "ip": ip.to_string(), "hostnames": names })).collect();
    }
}

/// User and group by number; `None` means what the image says.
fn user(asked: &str, image: &ImageConfig) -> Result<Option<(u32, u32)>, String> {
    if asked.is_empty() || asked == image.user {
        return Ok(None);
    }
    let (user, group) = asked.split_once(':').unwrap_or((asked, asked));
    match (user.parse(), group.parse()) {
        (Ok(user), Ok(group)) => Ok(Some((user, group))),
        _ => Err(format!(
            "Kubernetes takes users by number only, not `{asked}`: name a number, as `1000:1000`, or let the image's own USER stand"
        )),
    }
}

/// Whether a program runs as root, as far as the image says.
fn is_root(asked: &str, image: &ImageConfig) -> bool {
    let user = if asked.is_empty() { image.user.as_str() } else { asked };
    matches!(user.split(':').next().unwrap_or_default(), "" | "0" | "root")
}

/// The pod of a one-shot workload. `argv` is what really runs in it; the image is one that nodes can pull; `claims` are
/// the claims of the component by the name of the volume.
pub(crate) fn one_shot(
    work: &OneShot,
    around: &Surroundings<'_>,
    image: &ImageRef,
    argv: &[String],
    claims: &BTreeMap<String, String>,
) -> Result<Object, String> {
    let config = around.config;
    let user = user(&work.user, around.image)?;
    let mut container = container(config, image, argv, &work.working_dir, &work.resources);
    if let Some(missing) =
        work.volumes.iter().find(|it| it.kind != VolumeKind::Memory && !claims.contains_key(it.name.as_str()))
    {
        return Err(format!("volume `{}` does not exist yet: start the component once before this", missing.name));
    }
    let (mounts, volumes) = volumes(&work.volumes, |it| claims.get(it.name.as_str()).cloned());
    if !mounts.is_empty() {
        container["volumeMounts"] = mounts.into();
    }
    let mut spec = pod_spec(config, around.pull_secret, user, container);
    if !volumes.is_empty() {
        spec["volumes"] = volumes.into();
    }
    spec["restartPolicy"] = "Never".into();
    spec["terminationGracePeriodSeconds"] = 1.into();
    spec["activeDeadlineSeconds"] = work.timeout_ms.div_ceil(1000).max(1).into();
    if work.network == OneShotNetwork::Instance {
        names_of_others(&mut spec, config, &[work.tenant.to_string()], around.hosts);
    }
    let mut labels: Map<String, Value> = names::platform_labels(&config.namespace_prefix);
    let network = match work.network {
        OneShotNetwork::None => "none",
        OneShotNetwork::Build => "build",
        OneShotNetwork::Instance => "instance",
    };
    for (name, value) in [
        (names::TENANT, work.tenant.as_str()),
        (names::COMPONENT, work.component.as_str()),
        (names::ROLE, "one-shot"),
        (super::network::NETWORK, network),
    ] {
        labels.insert(name.to_owned(), value.into());
    }
    placement::of_node(&mut spec, &work.scheduling, config)?;
    let mut pod = json!({ "metadata": { "labels": labels, "annotations": {} }, "spec": spec });
    if let Some(asked) = &work.overlay {
        overlay::put_over(&mut pod, &overlay::of_run(asked), config)?;
    }
    let namespace = names::namespace(&config.namespace_prefix, &work.tenant);
    let labels = pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (annotations, mut spec) = (pod["metadata"]["annotations"].take(), pod["spec"].take());
    variables_of(&mut spec, &names::one_shot(&work.id));
    files::mount(&mut spec, &work.files, &names::one_shot(&work.id), is_root(&work.user, around.image));
    let mut object = Object::new(Kind::Pod, &namespace, &names::one_shot(&work.id), labels, json!({ "spec": spec }));
    object.body["metadata"]["annotations"] = annotations;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_reach_the_program_as_they_are() {
        for (argument, wanted) in [
            ("echo $HOME > a$", "echo $HOME > a$"),
            ("$(HOME)", "$$(HOME)"),
            ("echo $$", "echo $$$"),
            ("$$(HOME) $$a", "$$$$(HOME) $$$a"),
            ("5 $é", "5 $$é"),
        ] {
            assert_eq!(literal(argument), wanted, "{argument}");
        }
    }
}
