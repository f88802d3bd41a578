//! Parts of a pod that components have not, and what to do instead.

use super::super::Objects;
use super::{Workload, selector};
use arco_model::spec::{Port, Protocol, RolloutSpec};
use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use std::collections::BTreeSet;

/// What `kubectl rollout restart` leaves behind.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// Labels and annotations of pods that somebody else may look for.
pub(super) fn marks(of: &Workload<'_>, objects: &Objects) -> Option<String> {
    let metadata = of.template.metadata.as_ref()?;
    let by_services = of.services(objects).into_iter().filter_map(selector).flat_map(|it| it.keys());
    let by_itself = of.selector.match_labels.iter().flat_map(|it| it.keys());
    let selected: BTreeSet<&String> = by_itself.chain(by_services).collect();
    let labels = metadata.labels.iter().flat_map(|it| it.keys()).filter(|it| !selected.contains(it));
    let annotations = metadata.annotations.iter().flat_map(|it| it.keys()).filter(|it| *it != RESTARTED);
    let all: Vec<&str> = labels.chain(annotations).map(String::as_str).collect();
    (!all.is_empty())
        .then(|| format!("labels and annotations of its pods (`{}`): put them into `overlay`", all.join("`, `")))
}

/// Resources that only some nodes have.
pub(super) fn resources(container: &Container) -> Vec<String> {
    let limits = container.resources.iter().flat_map(|it| it.limits.iter()).flat_map(|it| it.keys());
    let further = limits.filter(|it| !matches!(it.as_str(), "cpu" | "memory" | "ephemeral-storage"));
    further.map(|it| format!("the resource `{it}`: put it into `overlay`")).collect()
}

/// Ports that were open outside, beside the one that gets a host by itself.
pub(super) fn doors(ports: &[Port]) -> Vec<String> {
    let (mut lost, mut has_host) = (Vec::new(), false);
    for it in ports.iter().filter(|it| it.outer) {
        let how = match it.protocol {
            Protocol::Tcp => "--tcp",
            Protocol::Udp => "--udp",
            _ if has_host => "HOST",
            _ => {
                has_host = true;
                continue;
            }
        };
        lost.push(format!("port {0} outside: `arco route add … {how} --port {0}`", it.port));
    }
    lost
}

/// Whether a probe gives more or less time than one that says nothing of it.
fn is_timed(probe: &Probe) -> bool {
    let said = [probe.initial_delay_seconds, probe.period_seconds, probe.timeout_seconds, probe.failure_threshold];
    said.into_iter().zip([0, 10, 1, 3]).any(|(said, usual)| said.is_some_and(|it| it != usual))
}

/// What of a pod no component has.
pub(super) fn beyond(of: &Workload<'_>, pod: &PodSpec, container: &Container) -> Vec<String> {
    let account = pod.service_account_name.as_deref().filter(|it| *it != "default");
    let own = container.security_context.as_ref();
    let of_pod = pod.security_context.as_ref();
    let runs_as = own.and_then(|it| it.run_as_user).or(of_pod.and_then(|it| it.run_as_user));
    let adds = own.and_then(|it| it.capabilities.as_ref()).and_then(|it| it.add.as_ref());
    let mut ports = container.ports.iter().flatten();
    let some = |it: Option<usize>| it.is_some_and(|it| it > 0);
    let timed = container.readiness_probe.as_ref().is_some_and(is_timed) || container.startup_probe.is_some();
    let parts = [
        (
            some(pod.init_containers.as_ref().map(Vec::len)),
            "init containers: do their work in the image or the program, or put them into `overlay`",
        ),
        (account.is_some(), "its service account: instances get none"),
        (
            pod.host_network == Some(true) || pod.host_pid == Some(true) || pod.host_ipc == Some(true),
            "the node's network or processes: instances never have them",
        ),
        (
            ports.any(|it| it.host_port.is_some_and(|it| it > 0)),
            "ports of the node: `arco route add … --tcp` opens one",
        ),
        (
            own.and_then(|it| it.privileged) == Some(true) || some(adds.map(Vec::len)),
            "privileges: instances never have more than the platform's",
        ),
        (runs_as.is_some(), "its user: instances run as the image says"),
        (container.working_dir.is_some(), "its working folder: the image's is used"),
        (container.lifecycle.is_some(), "its hooks at start and end: do their work in the program"),
        (
            pod.termination_grace_period_seconds.is_some_and(|it| it != 30),
            "its time to end: `rollout` says it (`stop_grace_ms`)",
        ),
        (
            some(pod.image_pull_secrets.as_ref().map(Vec::len)),
            "its login for the image's registry: the platform pulls without one",
        ),
        (
            pod.affinity.is_some()
                || some(pod.tolerations.as_ref().map(Vec::len))
                || some(pod.topology_spread_constraints.as_ref().map(Vec::len))
                || pod.priority_class_name.is_some(),
            "affinity, spread, tolerations and priority: `scheduling` says them",
        ),
        (
            container.liveness_probe.is_some() || container.startup_probe.is_some(),
            "liveness and startup probes: a program that ends is started again",
        ),
        (of.recreates, "`strategy: Recreate`: new instances start before old ones end"),
        (
            of_pod.is_some_and(|it| it.fs_group.is_some() || some(it.supplemental_groups.as_ref().map(Vec::len)))
                || own.and_then(|it| it.read_only_root_filesystem) == Some(true),
            "groups and a read-only root (`fsGroup`, `readOnlyRootFilesystem`): put them into `overlay`",
        ),
        (
            of_pod.is_some_and(|it| {
                some(it.sysctls.as_ref().map(Vec::len))
                    || it.se_linux_options.is_some()
                    || it.app_armor_profile.is_some()
            }) || own.is_some_and(|it| it.se_linux_options.is_some() || it.app_armor_profile.is_some()),
            "sysctls, SELinux and AppArmor: instances have the platform's",
        ),
        (
            pod.dns_config.is_some()
                || pod.dns_policy.as_deref().is_some_and(|it| it != "ClusterFirst")
                || some(pod.host_aliases.as_ref().map(Vec::len))
                || pod.hostname.is_some()
                || pod.subdomain.is_some(),
            "its own name, names of others and DNS settings: put them into `overlay`",
        ),
        (pod.runtime_class_name.is_some(), "its runtime class: the nodes' usual runtime is used"),
        (pod.node_name.is_some(), "its node: `scheduling` chooses one by labels"),
        (
            pod.share_process_namespace == Some(true),
            "processes that its containers share: put `shareProcessNamespace` into `overlay`, with them",
        ),
    ];
    let mut lost: Vec<String> = parts.into_iter().filter(|it| it.0).map(|it| it.1.to_owned()).collect();
    if timed {
        let deadline_s = RolloutSpec::default().start_deadline_ms / 1000;
        lost.push(format!(
            "times of its probes: it is to be ready within {deadline_s} s; `rollout` gives it longer (`start_deadline_ms`)"
        ));
    }
    lost
}
