//! Parts of a pod that components have not, and what to do instead.

use k8s_openapi::api::core::v1::{Container, PodSpec};

/// What of a pod no component has.
pub(super) fn beyond(pod: &PodSpec, container: &Container) -> Vec<String> {
    let account = pod.service_account_name.as_deref().filter(|it| *it != "default");
    let own = container.security_context.as_ref();
    let of_pod = pod.security_context.as_ref();
    let runs_as = own.and_then(|it| it.run_as_user).or(of_pod.and_then(|it| it.run_as_user));
    let adds = own.and_then(|it| it.capabilities.as_ref()).and_then(|it| it.add.as_ref());
    let mut ports = container.ports.iter().flatten();
    let some = |it: Option<usize>| it.is_some_and(|it| it > 0);
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
    ];
    parts.into_iter().filter(|it| it.0).map(|it| it.1.to_owned()).collect()
}
