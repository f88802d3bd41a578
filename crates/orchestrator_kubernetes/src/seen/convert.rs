//! From the API's types to records. Pure.

use super::{Detail, ObjectSeen, PodSeen, Program, Record};
use crate::names;
use crate::render::Kind;
use arco_model::component::INTERNAL_DOMAIN;
use arco_model::id::{ComponentId, RevisionId};
use arco_model::observed::ExitFacts;
use arco_model::time::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;

/// Most of a program's last output that is kept, in bytes.
const OUTPUT_MAX: usize = 1024;

/// A label or annotation; empty when there is none.
pub(crate) fn word<'a>(of: &'a Option<BTreeMap<String, String>>, name: &str) -> &'a str {
    of.as_ref().and_then(|it| it.get(name)).map_or("", String::as_str)
}

/// The component that an object belongs to, if it is ours.
pub(crate) fn owner(meta: &ObjectMeta) -> Option<ComponentId> {
    word(&meta.labels, names::COMPONENT).parse().ok()
}

/// The version of an object, as a number that grows.
pub(crate) fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|it| it.parse().ok()).unwrap_or_default()
}

pub(crate) fn stamp(time: &Time) -> Timestamp {
    Timestamp(u64::try_from(time.0.as_millisecond()).unwrap_or_default())
}

/// The same moment as Kubernetes counts it.
pub(crate) fn instant(at: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(i64::try_from(at.0).unwrap_or_default()).unwrap_or_default()
}

/// What every object has.
fn object(meta: &ObjectMeta, detail: Detail) -> ObjectSeen {
    ObjectSeen {
        namespace: meta.namespace.clone().unwrap_or_default(),
        key: word(&meta.labels, names::KEY).to_owned(),
        applied: word(&meta.annotations, names::APPLIED).to_owned(),
        deleting: meta.deletion_timestamp.is_some(),
        version: version(meta),
        detail,
    }
}

/// An object of which nothing but its metadata counts.
pub(crate) fn plain(kind: Kind, meta: &ObjectMeta) -> Record {
    Record::Object(kind, meta.name.clone().unwrap_or_default(), Box::new(object(meta, Detail::default())))
}

pub(super) fn detailed(kind: Kind, meta: &ObjectMeta, detail: Detail) -> Record {
    Record::Object(kind, meta.name.clone().unwrap_or_default(), Box::new(object(meta, detail)))
}

/// A type of the API that becomes a record.
pub(crate) trait Recorded {
    /// What it is here.
    const KIND: Kind;
    /// Its record.
    fn record(&self) -> Record;
}

impl Recorded for Deployment {
    const KIND: Kind = Kind::Deployment;
    fn record(&self) -> Record {
        let mut conditions = self.status.iter().flat_map(|it| it.conditions.iter().flatten());
        let failure = conditions.find(|it| it.type_ == "ReplicaFailure" && it.status == "True");
        let detail = Detail {
            replicas: replicas(self.spec.as_ref().and_then(|it| it.replicas)),
            failure: failure.and_then(|it| it.message.clone()),
            ..Detail::default()
        };
        detailed(Self::KIND, &self.metadata, detail)
    }
}

impl Recorded for StatefulSet {
    const KIND: Kind = Kind::StatefulSet;
    fn record(&self) -> Record {
        let detail = Detail {
            replicas: replicas(self.spec.as_ref().and_then(|it| it.replicas)),
            fixed: word(&self.metadata.annotations, names::FIXED).to_owned(),
            uid: self.metadata.uid.clone().unwrap_or_default(),
            ..Detail::default()
        };
        detailed(Self::KIND, &self.metadata, detail)
    }
}

impl Recorded for Job {
    const KIND: Kind = Kind::Job;
    fn record(&self) -> Record {
        let holds = |what: &str| {
            let mut conditions = self.status.iter().flat_map(|it| it.conditions.iter().flatten());
            conditions.find(|it| it.type_ == what && it.status == "True")
        };
        let detail = Detail {
            replicas: replicas(self.spec.as_ref().and_then(|it| it.completions)),
            failure: holds("Failed").and_then(|it| it.message.clone()),
            complete: holds("Complete").is_some(),
            uid: self.metadata.uid.clone().unwrap_or_default(),
            ..Detail::default()
        };
        detailed(Self::KIND, &self.metadata, detail)
    }
}

impl Recorded for Service {
    const KIND: Kind = Kind::Service;
    fn record(&self) -> Record {
        let label = |name| word(&self.metadata.labels, name);
        let (name, application, tenant) = (label(names::NAME), label(names::APPLICATION), label(names::TENANT));
        let address = self.spec.as_ref().and_then(|it| it.cluster_ip.as_deref());
        let detail = Detail {
            address: address.and_then(|it| it.parse().ok()),
            headless: address == Some("None"),
            odd_address: address.is_some_and(|it| it.parse::<Ipv6Addr>().is_ok()),
            host: format!("{name}.{application}.{tenant}.{INTERNAL_DOMAIN}"),
            ..Detail::default()
        };
        detailed(Self::KIND, &self.metadata, detail)
    }
}

impl Recorded for PersistentVolumeClaim {
    const KIND: Kind = Kind::Claim;
    fn record(&self) -> Record {
        let asked = self.spec.as_ref().and_then(|it| it.resources.as_ref()).and_then(|it| it.requests.as_ref());
        let size = asked.and_then(|it| it.get("storage")).and_then(mebibytes).unwrap_or_default();
        let volume = Some((word(&self.metadata.labels, names::VOLUME).to_owned(), size));
        let class = self.spec.as_ref().and_then(|it| it.storage_class_name.clone()).unwrap_or_default();
        let uid = self.metadata.uid.clone().unwrap_or_default();
        detailed(Self::KIND, &self.metadata, Detail { volume, class, uid, ..Detail::default() })
    }
}

fn replicas(asked: Option<i32>) -> u32 {
    asked.and_then(|it| u32::try_from(it).ok()).unwrap_or(1)
}

/// A size in MiB, rounded down; the API server writes `1024Mi` as `1Gi`.
fn mebibytes(quantity: &Quantity) -> Option<u32> {
    u32::try_from((super::scaler::thousandths(quantity)? / 1000) >> 20).ok()
}

impl Recorded for Pod {
    const KIND: Kind = Kind::Pod;
    fn record(&self) -> Record {
        let meta = &self.metadata;
        let (name, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
        let created = meta.creation_timestamp.as_ref().map(stamp).unwrap_or_default();
        let one_shot = word(&meta.labels, names::ROLE) == "one-shot";
        // A one-shot is called by the id that it was asked with.
        let id = match names::of_one_shot(&name) {
            Some(id) if one_shot => id,
            _ => names::instance_id(created.0, &uid),
        };
        let place = [names::JOB_INDEX, names::POD_INDEX].map(|it| word(&meta.labels, it).parse().ok());
        let revision = word(&meta.annotations, names::REVISION).parse();
        let mut pod = PodSeen {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name,
            uid,
            id,
            one_shot,
            key: word(&meta.labels, names::KEY).to_owned(),
            template: word(&meta.annotations, names::TEMPLATE).to_owned(),
            revision: revision.unwrap_or_else(|_| RevisionId::from_parts(0, 0)),
            place: place.into_iter().flatten().next().unwrap_or_default(),
            created,
            deleting: meta.deletion_timestamp.is_some(),
            gone_by: meta.deletion_timestamp.as_ref().map(stamp),
            draining_since: word(&meta.annotations, names::DRAINING_SINCE).parse().ok().map(Timestamp),
            node: self.spec.as_ref().and_then(|it| it.node_name.clone()).unwrap_or_default(),
            address: None,
            over: None,
            program: Program::Unknown,
            last_exit: None,
            restarts: 0,
            ready: false,
            ready_changed: None,
            unheard: false,
            lost: false,
            was_ready: false,
            unschedulable: None,
            warning: None,
        };
        let Some(status) = &self.status else { return Record::Pod(Box::new(pod)) };
        // Of a cluster with both versions of addresses either may be the first.
        let others = status.pod_ips.iter().flatten().map(|it| &it.ip);
        pod.address = status.pod_ip.iter().chain(others).find_map(|it| it.parse().ok());
        if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            pod.over = Some((status.reason.clone().unwrap_or_default(), status.message.clone().unwrap_or_default()));
        }
        let mut containers_ready = false;
        for condition in status.conditions.iter().flatten() {
            match condition.type_.as_str() {
                "Ready" => {
                    pod.ready = condition.status == "True";
                    pod.ready_changed = condition.last_transition_time.as_ref().map(stamp);
                }
                "ContainersReady" => containers_ready = condition.status == "True",
                "PodScheduled" if condition.reason.as_deref() == Some("Unschedulable") => {
                    pod.unschedulable = Some(condition.message.clone().unwrap_or_default());
                }
                _ => {}
            }
        }
        // A node says both; of one that is silent the cluster itself takes back the first. A closed gate does that, too.
        pod.unheard = containers_ready && !pod.ready && pod.ready_changed.is_some() && !is_gated(self);
        pod.lost = pod.unheard;
        if let Some(it) = status.container_statuses.iter().flatten().find(|it| it.name == names::CONTAINER) {
            pod.restarts = u32::try_from(it.restart_count).unwrap_or_default();
            pod.program = it.state.as_ref().map(program).unwrap_or_default();
            let last = it.last_state.as_ref().and_then(|it| it.terminated.as_ref());
            pod.last_exit = last.map(|it| (exit(it), it.reason.clone().unwrap_or_default()));
        }
        if status.phase.as_deref() == Some("Succeeded") && pod.program == Program::Unknown {
            pod.program = Program::Ended(ExitFacts { at: created, ..ExitFacts::default() }, String::new());
        }
        Record::Pod(Box::new(pod))
    }
}

/// Whether a node does not answer, or says that it can run nothing now. One that has not said anything yet has no pods.
pub(crate) fn is_silent(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|it| it.conditions.iter().flatten());
    conditions.any(|it| it.type_ == "Ready" && it.status != "True")
}

/// Whether a condition that the pod waits for before it is ready does not hold.
fn is_gated(pod: &Pod) -> bool {
    let mut gates = pod.spec.iter().flat_map(|it| it.readiness_gates.iter().flatten());
    let holds = |what: &str| {
        let mut conditions = pod.status.iter().flat_map(|it| it.conditions.iter().flatten());
        conditions.any(|it| it.type_ == what && it.status == "True")
    };
    gates.any(|it| !holds(&it.condition_type))
}

fn program(state: &ContainerState) -> Program {
    if let Some(it) = &state.running {
        Program::Running(it.started_at.as_ref().map(stamp).unwrap_or_default())
    } else if let Some(it) = &state.terminated {
        Program::Ended(exit(it), it.reason.clone().unwrap_or_default())
    } else if let Some(it) = &state.waiting {
        Program::Waiting(it.reason.clone().unwrap_or_default(), it.message.clone().unwrap_or_default())
    } else {
        Program::Unknown
    }
}

fn exit(it: &ContainerStateTerminated) -> ExitFacts {
    let signal = it.signal.filter(|it| *it > 0).or((129..=192).contains(&it.exit_code).then(|| it.exit_code - 128));
    let output = it.message.as_deref().unwrap_or_default().trim_end();
    let mut from = output.len().saturating_sub(OUTPUT_MAX);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    ExitFacts {
        status: it.exit_code,
        signal,
        out_of_memory: it.reason.as_deref() == Some("OOMKilled"),
        disk_full: false,
        asked: false,
        last_output: output[from..].to_owned(),
        at: it.finished_at.as_ref().map(stamp).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::net::Ipv4Addr;

    #[test]
    fn sizes_are_read_however_they_are_written() {
        for (text, mib) in [
            ("100Mi", Some(100)),
            ("1Gi", Some(1024)),
            ("1048576", Some(1)),
            ("2G", Some(1907)),
            ("2e9", Some(1907)),
            ("x", None),
        ] {
            assert_eq!(mebibytes(&Quantity(text.to_owned())), mib, "{text}");
        }
    }

    #[test]
    fn addresses_of_version_4_count_wherever_they_stand() {
        let four = Some(Ipv4Addr::new(10, 0, 0, 7));
        for (first, all, wanted) in [
            ("10.0.0.7", json!([{ "ip": "10.0.0.7" }]), four),
            ("fd00::7", json!([{ "ip": "fd00::7" }, { "ip": "10.0.0.7" }]), four),
            ("fd00::7", json!([{ "ip": "fd00::7" }]), None),
        ] {
            let it =
                json!({ "metadata": {}, "spec": { "containers": [] }, "status": { "podIP": first, "podIPs": all } });
            let Record::Pod(pod) = serde_json::from_value::<Pod>(it).unwrap().record() else { panic!("{first}") };
            assert_eq!(pod.address, wanted, "{first}");
        }
        for (address, known, headless, odd) in
            [("10.0.0.7", four, false, false), ("fd00::7", None, false, true), ("None", None, true, false)]
        {
            let it = json!({ "metadata": { "name": "web" }, "spec": { "clusterIP": address } });
            let Record::Object(_, _, it) = serde_json::from_value::<Service>(it).unwrap().record() else {
                panic!("{address}")
            };
            let detail = it.detail;
            assert_eq!((detail.address, detail.headless, detail.odd_address), (known, headless, odd), "{address}");
        }
    }
}
