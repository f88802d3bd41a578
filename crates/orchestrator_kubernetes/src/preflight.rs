//! Looks whether a cluster is what the platform needs, and says for each finding how to mend it. Changes nothing, but for
//! one pod on each node when an image is given to be pulled, which it removes again.
//!
//! What must hold: what is asked for is what [`crate::access`] says, line by line. What a finding means is decided by pure
//! functions; only [`preflight`] and [`pull`] act.

mod hosts;
mod networks;
mod pull;

pub use hosts::{HostsSetting, judge_hosts};

use crate::access::{self, GROUPS, OF_USAGE, Rule};
use crate::cluster::{Cluster, words};
use crate::features::{Features, NEWEST, OLDEST, PAUSES, PLACES_OF_JOBS, USER_NAMESPACES, minor_version};
use crate::local_storage::PROVISIONER;
use arco_config::KubernetesConfig;
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

/// Questions to the API server at the same time.
const AT_ONCE: usize = 8;
/// A clock that differs more is worth a word, in seconds.
const CLOCK_WARNING_S: u64 = 3;
/// A clock that differs more breaks certificates and leases, in seconds.
const CLOCK_BAD_S: u64 = 30;
/// How long the API server may take to say which version it is.
const FIRST_ANSWER: Duration = Duration::from_secs(15);

/// How a finding matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Weight {
    /// As it should be.
    Good,
    /// It works, but not everything or not as well.
    Warning,
    /// Must be mended.
    Bad,
}

/// What was looked at, what was found, and how to mend it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it matters.
    pub weight: Weight,
    /// What was found.
    pub found: String,
    /// How to mend it; empty when nothing is to be mended.
    pub advice: String,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, weight: Weight::Good, found: found.into(), advice: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, weight: Weight::Warning, found: found.into(), advice: advice.into() }
    }

    fn bad(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, weight: Weight::Bad, found: found.into(), advice: advice.into() }
    }
}

/// An image to be pulled once on each node.
#[derive(Clone, Debug)]
pub struct PullTrial {
    /// Image.
    pub image: String,
    /// Namespace of the pods.
    pub namespace: String,
    /// Secret there with the login; empty when none is needed.
    pub secret: String,
    /// How long all nodes together may take.
    pub deadline: Duration,
}

/// Looks at everything; stops at the first thing without which nothing else can be looked at.
pub async fn preflight(config: &KubernetesConfig, trial: Option<&PullTrial>) -> Vec<Finding> {
    let cluster = match Cluster::connect(config).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let advice = "set `kubernetes.kubeconfig` (or $KUBECONFIG) to a file that `kubectl` can use";
            return vec![Finding::bad("cluster", error.to_string(), advice)];
        }
    };
    let client = &cluster.client;
    let unreachable = "check the address in the kubeconfig, the network to it, and whether the credential has expired";
    let version = match tokio::time::timeout(FIRST_ANSWER, client.apiserver_version()).await {
        Ok(Ok(version)) => version,
        Ok(Err(error)) => return vec![Finding::bad("cluster", words(&error), unreachable)],
        Err(_) => {
            let found = format!("the API server does not answer within {} s", FIRST_ANSWER.as_secs());
            return vec![Finding::bad("cluster", found, unreachable)];
        }
    };
    let features = Features::of(&version.major, &version.minor);
    let mut findings = vec![judge_version(&version.major, &version.minor, &version.git_version)];
    findings.extend(judge_features(features, config));
    findings.extend(clock(client).await);
    match served(client).await {
        Ok(served) => findings.extend([judge_groups(&served), judge_metrics(&served)]),
        Err(error) => {
            let advice = "let this account read the API groups (system:discovery)";
            findings.push(Finding::bad("APIs", words(&error), advice));
        }
    }
    findings.push(permissions(client, config).await);
    findings.push(usage(client).await);
    findings.push(storage(client, config).await);
    findings.push(nodes(&cluster, config, features).await);
    findings.extend(networks::networks(client, config).await);
    findings.extend(hosts::hosts(client).await);
    match trial {
        Some(trial) => findings.extend(pull::pull(client, trial).await),
        None => findings.push(Finding::warning(
            "registry",
            "whether nodes can pull was not tried",
            "`--image REF` pulls that image once on each node",
        )),
    }
    findings
}

fn judge_version(major: &str, minor: &str, shown: &str) -> Finding {
    let check = "version";
    match minor_version(major, minor) {
        Some(NEWEST) => Finding::good(check, format!("Kubernetes {shown}")),
        Some(OLDEST..NEWEST) => {
            let found = format!("Kubernetes {shown}; its APIs are known, but only 1.{NEWEST} is tested");
            Finding::good(check, found)
        }
        Some(0..OLDEST) => Finding::bad(
            check,
            format!("Kubernetes {shown} is older than 1.{OLDEST}, whose APIs the platform uses"),
            format!("upgrade the cluster to 1.{OLDEST} or newer"),
        ),
        _ => Finding::warning(
            check,
            format!("Kubernetes {shown} is newer than 1.{NEWEST}, the last that was tested"),
            "try on a cluster that may break, or wait for a newer version of the platform",
        ),
    }
}

/// What the cluster's version lacks, each by its own name, with what is done instead.
fn judge_features(has: Features, config: &KubernetesConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !has.user_namespaces {
        let found = format!("Kubernetes before 1.{USER_NAMESPACES} gives pods none (`hostUsers`)");
        findings.push(if config.user_namespaces {
            let advice = "upgrade the cluster, or set `kubernetes.user_namespaces = false` (`arco cluster manifest --no-user-namespaces`): root of a pod is then root of its node, and Dockerfiles may have no RUN";
            Finding::bad("user namespaces", found, advice)
        } else {
            let advice = "upgrade the cluster, then leave `--no-user-namespaces` out of `arco cluster manifest`";
            Finding::warning(
                "user namespaces",
                format!("{found}: root of a pod is root of its node, and Dockerfiles may have no RUN"),
                advice,
            )
        });
    }
    if !has.places_of_jobs {
        findings.push(Finding::warning(
            "jobs",
            format!(
                "Kubernetes before 1.{PLACES_OF_JOBS} counts failures of a job as a whole (no `backoffLimitPerIndex`): an instance that fails again and again ends the others"
            ),
            "upgrade the cluster, or give such jobs one instance each",
        ));
    }
    if !has.pauses && config.eviction_pause_s > 0 {
        findings.push(Finding::warning(
            "drained nodes",
            format!(
                "Kubernetes before 1.{PAUSES} ends instances without a pause (no `preStop.sleep`): requests fail when a node is drained"
            ),
            "upgrade the cluster, or set `kubernetes.eviction_pause_s = 0`, and drain nodes when few requests come",
        ));
    }
    findings
}

/// The difference between the API server's clock (its `Date`, to a second) and ours.
async fn clock(client: &Client) -> Option<Finding> {
    let request = http::Request::get("/version").body(kube::client::Body::empty()).ok()?;
    let before = SystemTime::now();
    let answer = client.send(request).await.ok()?;
    let after = SystemTime::now();
    let date = answer.headers().get(http::header::DATE)?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    Some(judge_clock(apart(theirs, before, after).as_secs()))
}

/// How far a moment lies outside of the time in which it was told: an answer that takes long says nothing of clocks.
fn apart(theirs: SystemTime, before: SystemTime, after: SystemTime) -> Duration {
    before.duration_since(theirs).or_else(|_| theirs.duration_since(after)).unwrap_or_default()
}

fn judge_clock(difference_s: u64) -> Finding {
    let advice = "run a time service (chrony, systemd-timesyncd) here and on the nodes";
    match difference_s {
        0..=CLOCK_WARNING_S => Finding::good("clock", "agrees with the API server's"),
        it if it <= CLOCK_BAD_S => {
            Finding::warning("clock", format!("differs by {it} s from the API server's"), advice)
        }
        it => Finding::bad(
            "clock",
            format!("differs by {it} s from the API server's: certificates and leases break"),
            advice,
        ),
    }
}

/// `group/version` of everything that the API server serves.
async fn served(client: &Client) -> Result<BTreeSet<String>, kube::Error> {
    let groups = client.list_api_groups().await?;
    Ok(groups.groups.into_iter().flat_map(|it| it.versions).map(|it| it.group_version).collect())
}

fn judge_groups(served: &BTreeSet<String>) -> Finding {
    let missing: Vec<String> = GROUPS
        .iter()
        .filter(|(group, _)| !served.contains(*group))
        .map(|(group, why)| format!("{group} ({why})"))
        .collect();
    if missing.is_empty() {
        return Finding::good("APIs", "all that the platform uses are served");
    }
    Finding::bad(
        "APIs",
        format!("not served: {}", missing.join(", ")),
        "look for `--runtime-config` of the API server, and upgrade the cluster",
    )
}

/// Whether the cluster measures load.
fn judge_metrics(served: &BTreeSet<String>) -> Finding {
    if served.iter().any(|it| it.starts_with("metrics.k8s.io/")) {
        return Finding::good("load", "the metrics API tells what pods use");
    }
    Finding::warning(
        "load",
        "there is no metrics API (metrics.k8s.io): components that are scaled by load keep their number",
        "install metrics-server",
    )
}

/// Asks for each right that the table has.
async fn permissions(client: &Client, config: &KubernetesConfig) -> Finding {
    let rules = access::rules(!config.route_class.is_empty(), !config.local_storage_class.is_empty());
    match missing(client, &rules).await {
        Ok((count, missing)) => judge_permissions(count, &missing),
        Err(error) => {
            Finding::bad("permissions", words(&error), "let this account ask what it may do (system:basic-user)")
        }
    }
}

/// Whether nodes may be asked what instances use.
async fn usage(client: &Client) -> Finding {
    match missing(client, &[OF_USAGE]).await {
        Ok((_, missing)) if missing.is_empty() => Finding::good("usage", "nodes tell what instances use"),
        _ => Finding::warning(
            "usage",
            "this account may not ask nodes what instances use: `arco ps` shows no CPU and memory, `arco volume list` no use",
            "`get` on `nodes/proxy` lets it; that is a strong right, which also opens the other doors of a node",
        ),
    }
}

/// How many rights the rules have, and which this account lacks: verbs by what they are for.
async fn missing(client: &Client, rules: &[Rule]) -> Result<(usize, BTreeMap<String, Vec<&'static str>>), kube::Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let of_rule = |rule: &Rule| {
        let (group, verbs) = (rule.group, rule.verbs);
        rule.resources.iter().flat_map(move |it| verbs.iter().map(move |verb| (group, *it, *verb)))
    };
    let questions: Vec<(&str, &str, &'static str)> = rules.iter().flat_map(of_rule).collect();
    let count = questions.len();
    let answers = stream::iter(questions).map(|(group, resource, verb)| {
        let reviews = reviews.clone();
        async move {
            let answer = reviews.create(&PostParams::default(), &question(group, resource, verb)).await?;
            Ok::<_, kube::Error>((shown(group, resource), verb, answer.status.is_some_and(|it| it.allowed)))
        }
    });
    let answers: Vec<_> = answers.buffered(AT_ONCE).collect().await;
    let mut missing: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    for answer in answers {
        let (what, verb, allowed) = answer?;
        if !allowed {
            missing.entry(what).or_default().push(verb);
        }
    }
    Ok((count, missing))
}

fn question(group: &str, resource: &str, verb: &str) -> SelfSubjectAccessReview {
    let (resource, part) = resource.split_once('/').map_or((resource, None), |(it, part)| (it, Some(part)));
    let asked = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: part.map(str::to_owned),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(asked), ..SelfSubjectAccessReviewSpec::default() };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}

fn shown(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn judge_permissions(count: usize, missing: &BTreeMap<String, Vec<&'static str>>) -> Finding {
    if missing.is_empty() {
        return Finding::good("permissions", format!("all {count} rights that the platform needs"));
    }
    let lines: Vec<String> = missing.iter().map(|(what, verbs)| format!("{} {what}", verbs.join("/"))).collect();
    Finding::bad(
        "permissions",
        format!("this account may not: {}", lines.join(", ")),
        "apply the ClusterRole and ClusterRoleBinding of `arco cluster manifest`, and use that account",
    )
}

/// The storage class that volumes will be made with.
async fn storage(client: &Client, config: &KubernetesConfig) -> Finding {
    match Api::<StorageClass>::all(client.clone()).list(&ListParams::default()).await {
        Ok(classes) => judge_storage(&classes.items, &config.storage_class, &config.local_storage_class),
        Err(error) => Finding::bad("storage", words(&error), "let this account list storage classes"),
    }
}

/// `wanted`: the class of the settings; `local`: the one that the platform provides itself. Empty means none.
fn judge_storage(classes: &[StorageClass], wanted: &str, local: &str) -> Finding {
    let name = |it: &StorageClass| it.metadata.name.clone().unwrap_or_default();
    let is_default = |it: &&StorageClass| {
        let annotations = it.metadata.annotations.as_ref();
        annotations.and_then(|it| it.get("storageclass.kubernetes.io/is-default-class")).is_some_and(|it| it == "true")
    };
    let names: Vec<String> = classes.iter().map(name).collect();
    let there =
        if names.is_empty() { "the cluster has none".to_owned() } else { format!("there are {}", names.join(", ")) };
    let found = match wanted {
        "" => classes.iter().find(is_default),
        wanted => classes.iter().find(|it| name(it) == wanted),
    };
    let Some(class) = found else {
        return match wanted {
            "" => Finding::bad(
                "storage",
                format!("no storage class is the default; {there}"),
                "let the platform make volumes of the nodes' disks (`arco cluster manifest --local-storage`), set `kubernetes.storage_class`, or install a provisioner and mark its class as default",
            ),
            wanted if wanted == local => Finding::bad(
                "storage",
                format!("storage class `{wanted}`, whose volumes the platform makes itself, does not exist; {there}"),
                "apply the documents of `arco cluster manifest --local-storage`",
            ),
            wanted => Finding::bad(
                "storage",
                format!("storage class `{wanted}` does not exist; {there}"),
                "correct `kubernetes.storage_class`",
            ),
        };
    };
    let others: Vec<String> = classes.iter().filter(|it| name(it) != name(class)).map(able).collect();
    let others = if others.is_empty() { String::new() } else { format!("; also there: {}", others.join(", ")) };
    let shown = format!("class {} is used{others}", able(class));
    if class.provisioner == PROVISIONER {
        let found = format!("{shown}; volumes of `{}` are folders of one node, and not limited in size", name(class));
        let advice = "what must outlive a node needs a class whose volumes do; look after the free space of the nodes";
        return Finding::warning("storage", found, advice);
    }
    if class.allow_volume_expansion != Some(true) {
        let advice = "volumes keep their first size; set `allowVolumeExpansion: true` where the provisioner can do it";
        return Finding::warning("storage", format!("{shown}; volumes of `{}` cannot grow", name(class)), advice);
    }
    Finding::good("storage", shown)
}

/// A storage class and what it can.
fn able(class: &StorageClass) -> String {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    let grows = if class.allow_volume_expansion == Some(true) { "can grow" } else { "keeps its size" };
    let when = match class.volume_binding_mode.as_deref() {
        Some("WaitForFirstConsumer") => "made on the node of the first pod",
        _ => "made at once",
    };
    let kept = if class.reclaim_policy.as_deref() == Some("Retain") { ", kept when deleted" } else { "" };
    format!("`{name}` of {} ({grows}, {when}{kept})", class.provisioner)
}

/// The nodes that instances may run on.
async fn nodes(cluster: &Cluster, config: &KubernetesConfig, features: Features) -> Finding {
    let selector: Vec<String> = config.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let listed = ListParams::default().labels(&selector.join(","));
    match Api::<Node>::all(cluster.client.clone()).list(&listed).await {
        Ok(nodes) => judge_nodes(&nodes.items, config, features),
        Err(error) => Finding::bad("nodes", words(&error), "let this account list nodes"),
    }
}

fn judge_nodes(nodes: &[Node], config: &KubernetesConfig, features: Features) -> Finding {
    let ready: Vec<&Node> = nodes.iter().filter(|it| is_usable(it)).collect();
    let chosen = if config.node_selector.is_empty() { "" } else { " that `kubernetes.node_selector` chooses" };
    if ready.is_empty() {
        let found = format!("none of {} nodes{chosen} is ready and takes pods", nodes.len());
        return Finding::bad("nodes", found, "look at `kubectl describe nodes`");
    }
    let confined = ready.iter().all(|node| {
        let handlers = node.status.iter().flat_map(|it| it.runtime_handlers.iter().flatten());
        handlers.filter_map(|it| it.features.as_ref()).any(|it| it.user_namespaces == Some(true))
    });
    let shown = format!("{} of {}{chosen} are ready", ready.len(), nodes.len());
    if !features.user_namespaces {
        return Finding::good("nodes", shown); // whatever their runtime can: see `judge_features`
    }
    if config.user_namespaces && !confined {
        return Finding::bad(
            "nodes",
            format!("{shown}; not all give pods a user namespace"),
            "containerd 2.0 and Linux 6.3 have them; else install with `arco cluster manifest --no-user-namespaces` (`kubernetes.user_namespaces = false`)",
        );
    }
    if !config.user_namespaces && confined {
        return Finding::warning(
            "nodes",
            format!(
                "{shown}; all can give pods a user namespace, and `kubernetes.user_namespaces = false` asks for none"
            ),
            "leave `--no-user-namespaces` out of `arco cluster manifest`: root of a pod is then nobody on its node, and Dockerfiles may have RUN",
        );
    }
    Finding::good("nodes", shown)
}

/// Whether a node is ready and not closed for new pods.
fn is_usable(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|it| it.conditions.iter().flatten());
    let ready = conditions.any(|it| it.type_ == "Ready" && it.status == "True");
    ready && node.spec.as_ref().is_none_or(|it| it.unschedulable != Some(true))
}

#[cfg(test)]
mod tests;
