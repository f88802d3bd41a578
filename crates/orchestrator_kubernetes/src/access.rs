//! What the platform may do in a cluster, in one table: the manifest makes its role of it, and preflight asks for each line.
//!
//! What must hold: no line that no code needs. Workloads and secrets are watched in every namespace, because tenants get
//! theirs at run time; everything is asked for by the label of this platform, which RBAC cannot say.

/// Things of one API group, and what is done with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) group: &'static str,
    pub(crate) resources: &'static [&'static str],
    pub(crate) verbs: &'static [&'static str],
}

/// Made, changed and removed by us.
const OURS: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
/// Only looked at.
const SEEN: &[&str] = &["get", "list", "watch"];

/// All of it.
pub(crate) const RULES: &[Rule] = &[
    Rule { group: "", resources: &["namespaces", "resourcequotas"], verbs: OURS },
    Rule {
        group: "",
        resources: &["pods", "services", "secrets", "configmaps", "persistentvolumeclaims"],
        verbs: OURS,
    },
    // Deployment and Job are removed with their pods by the cluster; a pod that drained is removed by us.
    Rule { group: "", resources: &["pods/log"], verbs: &["get"] },
    Rule { group: "", resources: &["pods/exec", "pods/portforward"], verbs: &["get", "create"] },
    Rule { group: "", resources: &["events", "nodes"], verbs: SEEN },
    Rule { group: "apps", resources: &["deployments", "statefulsets"], verbs: OURS },
    Rule { group: "batch", resources: &["jobs"], verbs: OURS },
    Rule { group: "autoscaling", resources: &["horizontalpodautoscalers"], verbs: OURS },
    Rule {
        group: "arco.internal",
        resources: &["componentscales"],
        verbs: &["get", "list", "watch", "create", "delete"],
    },
    Rule { group: "networking.k8s.io", resources: &["networkpolicies"], verbs: OURS },
    Rule { group: "policy", resources: &["poddisruptionbudgets"], verbs: OURS },
    Rule { group: "storage.k8s.io", resources: &["storageclasses"], verbs: SEEN },
    Rule { group: "snapshot.storage.k8s.io", resources: &["volumesnapshotclasses"], verbs: &["list"] },
    // What others may have in the namespace of a tenant that goes.
    Rule { group: "", resources: &["limitranges", "serviceaccounts"], verbs: &["list"] },
    Rule { group: "apps", resources: &["daemonsets"], verbs: &["list"] },
    Rule { group: "batch", resources: &["cronjobs"], verbs: &["list"] },
    Rule { group: "networking.k8s.io", resources: &["ingresses"], verbs: &["list"] },
    Rule { group: "rbac.authorization.k8s.io", resources: &["roles", "rolebindings"], verbs: &["list"] },
];

/// Enough for a server with the roles `api`, `registry` or `builder` and without `controller`: it sees what there is, runs
/// programs once, makes the tenants' namespaces for that, and empties kept volumes.
pub(crate) const OF_RUNNERS: &[Rule] = &[
    Rule {
        group: "",
        resources: &["namespaces", "resourcequotas"],
        verbs: &["get", "list", "watch", "create", "patch"],
    },
    Rule { group: "", resources: &["pods", "secrets", "configmaps"], verbs: OURS },
    Rule { group: "", resources: &["pods/log"], verbs: &["get"] },
    Rule { group: "", resources: &["pods/exec", "pods/portforward"], verbs: &["get", "create"] },
    Rule { group: "", resources: &["services", "events", "nodes"], verbs: SEEN },
    Rule { group: "", resources: &["persistentvolumeclaims"], verbs: &["get", "list", "watch", "delete"] },
    Rule { group: "apps", resources: &["deployments", "statefulsets"], verbs: SEEN },
    Rule { group: "batch", resources: &["jobs"], verbs: SEEN },
    Rule { group: "autoscaling", resources: &["horizontalpodautoscalers"], verbs: SEEN },
    Rule { group: "arco.internal", resources: &["componentscales"], verbs: SEEN },
    Rule {
        group: "networking.k8s.io",
        resources: &["networkpolicies"],
        verbs: &["get", "list", "watch", "create", "patch"],
    },
    Rule { group: "policy", resources: &["poddisruptionbudgets"], verbs: SEEN },
    Rule { group: "storage.k8s.io", resources: &["storageclasses"], verbs: &["list"] },
    Rule { group: "snapshot.storage.k8s.io", resources: &["volumesnapshotclasses"], verbs: &["list"] },
];

/// Needed beside [`RULES`] where the gateway serves the cluster's Ingress and Gateway API objects (`kubernetes.route_class`).
const OF_ROUTES: &[Rule] = &[
    Rule { group: "networking.k8s.io", resources: &["ingresses"], verbs: SEEN },
    Rule { group: "networking.k8s.io", resources: &["ingresses/status"], verbs: &["patch"] },
    Rule { group: "discovery.k8s.io", resources: &["endpointslices"], verbs: SEEN },
    Rule {
        group: "gateway.networking.k8s.io",
        resources: &[
            "gatewayclasses",
            "gateways",
            "httproutes",
            "grpcroutes",
            "tlsroutes",
            "tcproutes",
            "referencegrants",
        ],
        verbs: SEEN,
    },
    Rule {
        group: "gateway.networking.k8s.io",
        resources: &[
            "gatewayclasses/status",
            "gateways/status",
            "httproutes/status",
            "grpcroutes/status",
            "tlsroutes/status",
            "tcproutes/status",
        ],
        verbs: &["patch"],
    },
];

/// Needed beside [`RULES`] where the leading controller makes volumes of the nodes' folders (`kubernetes.local_storage_class`).
const OF_LOCAL_STORAGE: &[Rule] = &[
    Rule { group: "", resources: &["persistentvolumes"], verbs: &["get", "list", "watch", "create", "delete"] },
    // Why a claim gets no volume, and why one is not removed.
    Rule { group: "", resources: &["events"], verbs: &["create", "patch"] },
];

/// What whoever controls components may do, where routes of the cluster are served or not, and volumes made of folders or not.
pub(crate) fn rules(routes: bool, local_storage: bool) -> Vec<Rule> {
    let of_routes = if routes { OF_ROUTES } else { &[] };
    let of_storage = if local_storage { OF_LOCAL_STORAGE } else { &[] };
    RULES.iter().chain(of_routes).chain(of_storage).copied().collect()
}

/// Not given by the manifest: what nodes say of the use of CPU, memory and volumes comes by a right that also opens their
/// other doors.
pub(crate) const OF_USAGE: Rule = Rule { group: "", resources: &["nodes/proxy"], verbs: &["get"] };

/// Groups and versions that must be served, with the reason; all are stable since Kubernetes 1.23 or earlier.
pub(crate) const GROUPS: &[(&str, &str)] = &[
    ("apps/v1", "components run as Deployments and StatefulSets"),
    ("batch/v1", "jobs and builds run as Jobs"),
    ("autoscaling/v2", "HorizontalPodAutoscalers follow load"),
    ("networking.k8s.io/v1", "tenants are kept apart by NetworkPolicies"),
    ("policy/v1", "PodDisruptionBudgets keep components up while nodes are drained"),
    ("storage.k8s.io/v1", "volumes are made by StorageClasses"),
];
