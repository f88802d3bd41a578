//! Pods as the API server shows them, and what they mean.

use super::*;
use crate::seen::Record;
use crate::seen::convert::Recorded as _;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// A pod that runs and is ready, with changes of its status.
pub(crate) fn pod(name: &str, status: Value) -> PodSeen {
    let mut whole = json!({
        "phase": "Running",
        "podIP": "10.0.0.7",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" }],
        "containerStatuses": [{ "name": "app", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": "2026-01-01T00:00:02Z" } } }],
    });
    for (field, value) in status.as_object().cloned().unwrap_or_default() {
        whole[field] = value;
    }
    let pod = json!({
        "metadata": {
            "name": name, "namespace": "arco-acme", "uid": format!("uid-{name}"), "resourceVersion": "5",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "arco.internal/key": "k1", "arco.internal/role": "instance", "apps.kubernetes.io/pod-index": "0" },
            "annotations": { "arco.internal/template": "t1", "arco.internal/revision": "01h00000000000000000" },
        },
        "spec": { "nodeName": "n1", "containers": [] },
        "status": whole,
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    match pod.record() {
        Record::Pod(pod) => *pod,
        Record::Object(..) => unreachable!("a pod is a pod"),
    }
}

fn container(state: Value, last: Value, restarts: u32) -> Value {
    let status = json!({ "name": "app", "image": "i", "imageID": "", "ready": false, "restartCount": restarts,
        "state": state, "lastState": last });
    json!({ "containerStatuses": [status], "conditions": [{ "type": "Ready", "status": "False" }] })
}

fn waiting(reason: &str, message: &str) -> Value {
    container(json!({ "waiting": { "reason": reason, "message": message } }), json!({}), 0)
}

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    json!({ "terminated": { "exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-01-01T00:00:09Z" } })
}

#[test]
fn container_states_become_phases_exits_and_faults() {
    use InstancePhase::*;
    let unschedulable = json!({ "phase": "Pending", "podIP": null, "containerStatuses": [], "conditions": [
        { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available:\n 3 Insufficient memory." }] });
    let evicted =
        |message: &str| json!({ "phase": "Failed", "reason": "Evicted", "message": message, "containerStatuses": [] });
    for (what, status, phase, exit, fault) in [
        ("ready", json!({}), Ready, None, None),
        (
            "on a node that is silent",
            json!({ "conditions": [
                { "type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:01:00Z" },
                { "type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" },
            ] }),
            Unready,
            None,
            Some("its node `n1` does not answer"),
        ),
        (
            "starting",
            container(json!({ "running": { "startedAt": "2026-01-01T00:00:02Z" } }), json!({}), 0),
            Starting,
            None,
            None,
        ),
        ("being made", waiting("ContainerCreating", ""), Pending, None, None),
        (
            "image",
            waiting("ImagePullBackOff", "not found"),
            Pending,
            None,
            Some("its image cannot be pulled (ImagePullBackOff): not found"),
        ),
        (
            "secret",
            waiting("CreateContainerConfigError", "secret \"x\" not found"),
            Pending,
            None,
            Some("its container cannot be made (CreateContainerConfigError): secret \"x\" not found"),
        ),
        (
            "nodes",
            unschedulable,
            Pending,
            None,
            Some("no node of the cluster can take it: 0/3 nodes are available: 3 Insufficient memory."),
        ),
        ("crash", container(terminated(3, "Error", "boom\n"), json!({}), 0), BackOff, Some((3, None, false)), None),
        (
            "crash loop",
            container(json!({ "waiting": { "reason": "CrashLoopBackOff" } }), terminated(1, "Error", ""), 4),
            BackOff,
            Some((1, None, false)),
            None,
        ),
        (
            "memory",
            container(
                json!({ "running": { "startedAt": "2026-01-01T00:00:09Z" } }),
                terminated(137, "OOMKilled", ""),
                1,
            ),
            Starting,
            Some((137, Some(9), true)),
            None,
        ),
        (
            "no program",
            container(terminated(128, "StartError", "exec: \"x\": not found"), json!({}), 0),
            BackOff,
            Some((128, None, false)),
            Some("its program cannot be started: exec: \"x\": not found"),
        ),
        (
            "evicted",
            evicted("node is low on memory"),
            Ended,
            None,
            Some("the node ended it (Evicted): node is low on memory"),
        ),
        (
            "disk",
            evicted("Pod ephemeral local storage usage exceeds the total limit"),
            Ended,
            Some((137, Some(9), false)),
            None,
        ),
    ] {
        let facts = instance(&pod("a", status), Leaving::default(), false);
        let told = facts.last_exit.as_ref().map(|it| (it.status, it.signal, it.out_of_memory));
        assert_eq!((facts.phase, told, facts.fault.as_deref()), (phase, exit, fault), "{what}");
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    let status = json!({ "phase": "Failed", "reason": "Evicted", "message": "ephemeral-storage usage exceeds", "containerStatuses": [] });
    assert!(instance(&pod("a", status), Leaving::default(), false).last_exit.unwrap().disk_full);
}

#[test]
fn a_pod_that_was_ready_is_unready_and_one_that_leaves_drains() {
    let mut it = pod("a", container(json!({ "running": { "startedAt": "2026-01-01T00:00:02Z" } }), json!({}), 0));
    it.was_ready = true;
    assert_eq!(instance(&it, Leaving::default(), false).phase, InstancePhase::Unready);
    let since = Leaving { since: Some(Timestamp(1)), released: true, overdue: false };
    let member = member(&it, since, false);
    assert_eq!(
        (member.phase, member.drain_since, member.released),
        (InstancePhase::Draining, Some(Timestamp(1)), true)
    );
    it.deleting = true;
    assert_eq!(instance(&it, since, false).phase, InstancePhase::Stopping);
    it.over = Some((String::new(), String::new()));
    assert_eq!(instance(&it, since, false).phase, InstancePhase::Stopping, "until it is gone");
}

#[test]
fn only_a_silent_node_is_told_to_be_silent() {
    let silent = json!({ "conditions": [
        { "type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:01:00Z" },
        { "type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" },
    ] });
    let mut it = pod("a", silent);
    for job in [false, true] {
        let facts = instance(&it, Leaving::default(), job);
        assert_eq!((facts.phase, facts.node_silent), (InstancePhase::Unready, true), "its program may be at its end");
        let member = member(&it, Leaving::default(), job);
        assert_eq!(member.phase, InstancePhase::Pending, "nothing is known of it: it neither serves nor fails");
    }

    // Told to end, which nobody confirms.
    (it.deleting, it.gone_by) = (true, Some(Timestamp(1_000)));
    let facts = instance(&it, Leaving::default(), false);
    assert_eq!((facts.phase, facts.fault.as_deref()), (InstancePhase::Stopping, Some("its node `n1` does not answer")));
    it.lost = false;
    let facts = instance(&it, Leaving::default(), false);
    assert_eq!((facts.fault, facts.node_silent), (None, false), "it has time to end");
    assert_eq!(overdue_at(&it), Some(Timestamp(61_000)));
    let facts = instance(&it, Leaving { overdue: true, ..Leaving::default() }, false);
    assert!(facts.node_silent && facts.fault.unwrap().contains("does not say that it has ended"));
}

#[test]
fn what_had_not_come_up_when_its_node_fell_silent_is_lost_and_has_not_failed() {
    let long_ago = json!({ "running": { "startedAt": "2020-01-01T00:00:00Z" } });
    for (what, status, phase) in [
        ("starting", container(long_ago, json!({}), 0), InstancePhase::Starting),
        ("being made", waiting("ContainerCreating", ""), InstancePhase::Pending),
        ("image", waiting("ImagePullBackOff", "not found"), InstancePhase::Pending),
        ("crash loop", container(terminated(1, "Error", ""), terminated(1, "Error", ""), 4), InstancePhase::BackOff),
        ("ready", json!({}), InstancePhase::Unready),
    ] {
        let it = PodSeen { lost: true, ..pod("a", status) };
        let facts = instance(&it, Leaving::default(), false);
        let told = (facts.phase, facts.fault.as_deref(), facts.node_silent);
        assert_eq!(told, (phase, Some("its node `n1` does not answer"), true), "{what}");
        assert_eq!(member(&it, Leaving::default(), false).phase, InstancePhase::Pending, "{what}");
    }
    let running = container(json!({ "running": { "startedAt": "2026-01-01T00:00:02Z" } }), json!({}), 0);
    let job = PodSeen { lost: true, ..pod("a", running) };
    assert_eq!(instance(&job, Leaving::default(), true).phase, InstancePhase::Unready);
}

#[test]
fn a_pod_that_waits_for_a_gate_is_on_a_node_that_answers() {
    let of = |gate: &str| {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "a", "uid": "u" },
            "spec": { "nodeName": "n1", "containers": [], "readinessGates": [{ "conditionType": "example.com/listed" }] },
            "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:05Z" },
                { "type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" },
                { "type": "example.com/listed", "status": gate },
            ] },
        }))
        .unwrap();
        let Record::Pod(pod) = pod.record() else { unreachable!("a pod is a pod") };
        pod.lost
    };
    assert_eq!((of("False"), of("True")), (false, true));
}

#[test]
fn one_that_cannot_be_prepared_counts_as_starting_since_it_was_made() {
    let stuck = member(&pod("a", waiting("ErrImagePull", "no such host")), Leaving::default(), false);
    assert_eq!((stuck.phase, stuck.waiting_since.0), (InstancePhase::Starting, 1_767_225_600_000));
    let coming = member(&pod("a", waiting("ContainerCreating", "")), Leaving::default(), false);
    assert_eq!(coming.phase, InstancePhase::Pending);
}

#[test]
fn the_program_of_a_job_runs_until_it_ends() {
    let running = container(json!({ "running": { "startedAt": "2026-01-01T00:00:02Z" } }), json!({}), 0);
    assert_eq!(instance(&pod("a", running), Leaving::default(), true).phase, InstancePhase::Ready);
    let mut ended = container(terminated(0, "Completed", ""), json!({}), 0);
    ended["phase"] = "Succeeded".into();
    let facts = instance(&pod("a", ended), Leaving::default(), true);
    assert_eq!((facts.phase, facts.last_exit.unwrap().status), (InstancePhase::Ended, 0));
}
