//! Rendered plans as snapshots; and that the types of the API know every field of them.

use super::*;
use arco_model::id::{ComponentId, RevisionId};
use arco_model::plan::{InstanceTemplate, OneShot, OneShotNetwork};
use arco_model::spec::autoscaling::Autoscaling;
use arco_model::spec::scheduling::Scheduling;
use arco_model::spec::{Port, Probe, Protocol, Resources, RolloutSpec, VolumeKind, VolumeSpec};
use k8s_openapi::api::{
    apps::v1 as apps, autoscaling::v2 as autoscaling, batch::v1 as batch, core::v1 as core, networking::v1 as net,
    policy::v1 as policy,
};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;

/// A web server with a secret and two instances.
pub(crate) fn plan() -> WorkloadPlan {
    let digest = Digest::of(b"image");
    WorkloadPlan {
        component: ComponentId::from_parts(1_700_000_000_000, 7),
        tenant: "acme".parse().unwrap(),
        application: "shop".parse().unwrap(),
        name: "web".parse().unwrap(),
        kind: ComponentKind::Stateless,
        replicas: 2,
        template: InstanceTemplate {
            revision: RevisionId::from_parts(1_700_000_000_000, 8),
            revision_number: 3,
            image: arco_model::artifact::ImageRef { repository: "acme/shop/web".to_owned(), digest },
            argv: ["serve", "$(HOME)"].map(str::to_owned).to_vec(),
            env: [("PASSWORD".to_owned(), "hunter2".to_owned())].into(),
            working_dir: "/app".to_owned(),
            user: "1000:1001".to_owned(),
            stop_signal: String::new(),
            resources: Resources { cpu_milli: 500, memory_mb: 256, disk_mb: 1024, pids: 64 },
            ports: vec![
                Port { port: 8080, protocol: Protocol::Http, outer: true },
                Port { port: 53, protocol: Protocol::Udp, outer: false },
            ],
            probe: Some(Probe::Http { path: "/healthz".to_owned(), port: None }),
            volumes: vec![volume("cache", VolumeKind::Memory), volume("files", VolumeKind::Shared)],
            files: Vec::new(),
            restarts_asked: 0,
            scheduling: Scheduling::default(),
            overlay: None,
        },
        rollout: RolloutSpec::default(),
        autoscaling: None,
        may_call: BTreeSet::from([ComponentId::from_parts(1_700_000_000_000, 9)]),
        hold: false,
        prepared_places: 0,
    }
}

pub(crate) fn volume(name: &str, kind: VolumeKind) -> VolumeSpec {
    VolumeSpec { name: name.parse().unwrap(), path: format!("/var/{name}"), size_mb: 100, kind, class: None }
}

pub(crate) fn config() -> KubernetesConfig {
    KubernetesConfig { registry: "registry.example:5000".to_owned(), ..KubernetesConfig::default() }
}

pub(crate) fn rendered(plan: &WorkloadPlan) -> Rendered {
    let hosts = [("db.shop.acme.arco.internal".to_owned(), Ipv4Addr::new(10, 96, 0, 9))].into();
    let (config, image) = (config(), ImageConfig::default());
    component(plan, &around(&config, &image, &hosts)).unwrap()
}

/// On the newest cluster, with a pull credential.
pub(crate) fn around<'a>(
    config: &'a KubernetesConfig,
    image: &'a ImageConfig,
    hosts: &'a BTreeMap<String, Ipv4Addr>,
) -> Surroundings<'a> {
    Surroundings { config, image, hosts, pull_secret: true, features: Features::of("1", "36") }
}

fn all(it: &Rendered, replicas: u32) -> Vec<Value> {
    let objects = it.claims.iter().chain(&it.others).map(|it| it.unpack().body);
    objects.chain([it.workload(replicas).body]).collect()
}

/// Whether the API's own type says the same: a misspelt field would be lost in it.
pub(super) fn known<T: DeserializeOwned + Serialize>(body: &Value) {
    let typed: T = serde_json::from_value(body.clone()).unwrap();
    let mut back = serde_json::to_value(typed).unwrap();
    let mut body = body.clone();
    without_nothing(&mut body);
    without_nothing(&mut back);
    assert_eq!(back, body);
}

/// Empty maps and lists may be left out.
fn without_nothing(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(without_nothing);
            map.retain(|_, it| !matches!(it, Value::Object(it) if it.is_empty()) && !it.is_null());
        }
        Value::Array(list) => list.iter_mut().for_each(without_nothing),
        _ => {}
    }
}

fn checked(objects: &[Value]) {
    for body in objects {
        match body["kind"].as_str().unwrap() {
            "Deployment" => known::<apps::Deployment>(body),
            "StatefulSet" => known::<apps::StatefulSet>(body),
            "Job" => known::<batch::Job>(body),
            "Service" => known::<core::Service>(body),
            "Secret" => known::<core::Secret>(body),
            "PersistentVolumeClaim" => known::<core::PersistentVolumeClaim>(body),
            "NetworkPolicy" => known::<net::NetworkPolicy>(body),
            "PodDisruptionBudget" => known::<policy::PodDisruptionBudget>(body),
            "HorizontalPodAutoscaler" => known::<autoscaling::HorizontalPodAutoscaler>(body),
            "ComponentScale" => {} // ours: the API server checks it against its definition
            "Namespace" => known::<core::Namespace>(body),
            "ResourceQuota" => known::<core::ResourceQuota>(body),
            "Pod" => known::<core::Pod>(body),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_stateless_component() {
    let objects = all(&rendered(&plan()), 2);
    checked(&objects);
    insta::assert_json_snapshot!(objects);
}

#[test]
fn a_port_that_speaks_tls_is_asked_over_it() {
    for (protocol, scheme) in
        [(Protocol::Http, "HTTP"), (Protocol::Grpc, "HTTP"), (Protocol::Https, "HTTPS"), (Protocol::Grpcs, "HTTPS")]
    {
        let mut plan = plan();
        plan.template.ports[0].protocol = protocol;
        let pod = rendered(&plan).workload(1).body["spec"]["template"]["spec"].clone();
        assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["scheme"], scheme, "{protocol:?}");
    }
}

#[test]
fn a_stateful_component() {
    let mut plan = plan();
    plan.kind = ComponentKind::Stateful;
    plan.template.volumes = vec![volume("data", VolumeKind::Local)];
    plan.template.probe = Some(Probe::Exec { argv: vec!["check".to_owned()] });
    let objects = all(&rendered(&plan), 3);
    checked(&objects);
    insta::assert_json_snapshot!(objects);
}

#[test]
fn places_that_are_filled_in_before_anything_runs_have_the_claims_of_their_set() {
    let mut plan = plan();
    (plan.kind, plan.prepared_places) = (ComponentKind::Stateful, 2);
    plan.template.volumes = vec![volume("data", VolumeKind::Local), volume("files", VolumeKind::Shared)];
    let prepared = rendered(&plan);
    let names: Vec<_> = prepared.claims.iter().map(|it| it.name.as_str()).collect();
    let set = prepared.workload(2).body;
    let shared = format!("files-{}", plan.component);
    assert_eq!(names, ["data-shop-web-00000007-0", "data-shop-web-00000007-1", shared.as_str()]);
    assert_eq!((&set["metadata"]["name"], &set["kind"]), (&json!("shop-web-00000007"), &json!("StatefulSet")));
    let template = &set["spec"]["volumeClaimTemplates"][0];
    let claim = &prepared.claims[0].unpack().body;
    assert_eq!((&claim["spec"], &claim["metadata"]["labels"]), (&template["spec"], &template["metadata"]["labels"]));
    plan.prepared_places = 0;
    assert_eq!((rendered(&plan).claims.len(), rendered(&plan).key), (1, prepared.key));
}

#[test]
fn a_component_that_follows_load() {
    let mut plan = plan();
    let by = Autoscaling { memory_percent: Some(75), down_after_s: 60, ..Autoscaling::by_cpu(2, 10) };
    plan.autoscaling = Some(by);
    let by_load = rendered(&plan);
    let autoscaler = by_load.others.iter().find(|it| it.kind == Kind::Autoscaler).unwrap();
    let objects = [by_load.scale.as_ref().unwrap().unpack().body, autoscaler.unpack().body];
    checked(&objects);
    insta::assert_json_snapshot!(objects);
    plan.autoscaling = None;
    let fixed = rendered(&plan);
    assert!(fixed.scale.is_none() && fixed.key == by_load.key, "instances stay when it begins or ends");
}

#[test]
fn a_job() {
    let mut plan = plan();
    plan.kind = ComponentKind::Job;
    plan.template.ports.clear();
    plan.template.volumes.clear();
    let objects = all(&rendered(&plan), 2);
    checked(&objects);
    insta::assert_json_snapshot!(objects);

    // An older cluster counts failures of the job as a whole; its pods are the same.
    let (config, image, hosts) = (config(), ImageConfig::default(), BTreeMap::new());
    let of = |minor: &str| {
        let around = Surroundings { features: Features::of("1", minor), ..around(&config, &image, &hosts) };
        let rendered = component(&plan, &around).unwrap();
        (rendered.key.clone(), rendered.workload(2).body["spec"].clone())
    };
    let (old, new) = (of("28"), of("29"));
    assert_eq!((&old.0, &old.1["template"]), (&new.0, &new.1["template"]), "an upgrade of the cluster repeats no job");
    let fields = |it: &Value| {
        let names =
            ["backoffLimit", "backoffLimitPerIndex", "completionMode", "maxFailedIndexes", "podReplacementPolicy"];
        names.map(|name| it[name].clone())
    };
    assert_eq!(fields(&old.1), [json!(4), json!(null), json!("Indexed"), json!(null), json!(null)]);
    assert_eq!(fields(&new.1), [json!(null), json!(2), json!("Indexed"), json!(2), json!("Failed")]);
}

#[test]
fn a_tenant() {
    let name = "acme".parse().unwrap();
    let mut objects = tenant::tenant(&name, &config(), &["10.9.0.0/16".parse().unwrap()]);
    objects.push(pull_secret(&name, &config(), "token", arco_model::time::Timestamp(1)));
    let objects: Vec<_> = objects.into_iter().map(|it| it.body).collect();
    checked(&objects);
    insta::assert_json_snapshot!(objects);
}

#[test]
fn a_one_shot() {
    let plan = plan();
    let (config, image, hosts) = (config(), ImageConfig::default(), BTreeMap::new());
    let around = around(&config, &image, &hosts);
    let mut work = OneShot::of_template(
        arco_model::id::InstanceId::from_parts(1_700_000_000_000, 1),
        plan.tenant.clone(),
        plan.component.clone(),
        plan.template.clone(),
        60_000,
    );
    work.network = OneShotNetwork::Build;
    let claims = [("files".to_owned(), "files-claim".to_owned())].into();
    // What it takes over of the component: where it may run, and an overlay that does not stand before its variables.
    let asked = json!({"tolerations": [{"key": "gpu", "operator": "exists"}], "node_selector": {"disk": "ssd"}});
    work.scheduling = serde_json::from_value(asked).unwrap();
    work.overlay = Some(json!({"metadata": {"annotations": {"example.com/a": "b"}}, "spec": {
        "containers": [{"name": "app", "envFrom": [{"configMapRef": {"name": "mine"}}], "livenessProbe": {}}, {"name": "proxy"}]
    }}));
    let object = one_shot(&work, &around, &work.image, &work.argv, &claims).unwrap().body;
    checked(std::slice::from_ref(&object));
    insta::assert_json_snapshot!(object);
    assert!(one_shot(&work, &around, &work.image, &work.argv, &BTreeMap::new()).unwrap_err().contains("`files`"));
}

/// Where a component may run, with everything that can be asked.
fn everywhere() -> Scheduling {
    let asked = json!({
        "node_selector": {"disk": "ssd"},
        "node_affinity": [
            {"key": "kubernetes.io/arch", "operator": "in", "values": ["amd64"]},
            {"key": "example.com/old", "operator": "does_not_exist"},
            {"key": "example.com/cores", "operator": "gt", "values": ["8"], "weight": 10}
        ],
        "affinity": [{"component": "db", "topology": "zone", "weight": 50}],
        "anti_affinity": [{"component": "web"}, {"component": "other/batch", "topology": "example.com/rack"}],
        "topology_spread": [{"topology": "zone", "when_unsatisfiable": "do_not_schedule"}, {"max_skew": 2}],
        "tolerations": [
            {"key": "gpu", "value": "yes", "effect": "no_schedule"},
            {"operator": "exists", "effect": "no_execute", "toleration_seconds": 30}
        ],
        "priority_class": "high"
    });
    serde_json::from_value(asked).unwrap()
}

#[test]
fn a_component_that_says_where_it_runs() {
    let mut plan = plan();
    plan.template.scheduling = everywhere();
    let mut config = config();
    config.node_selector = [("pool".to_owned(), "apps".to_owned())].into();
    let (image, hosts) = (ImageConfig::default(), BTreeMap::new());
    let ask = |plan: &WorkloadPlan, config: &KubernetesConfig| {
        component(plan, &Surroundings { pull_secret: false, ..around(config, &image, &hosts) })
    };
    let refused = ask(&plan, &config).unwrap_err();
    assert!(refused.contains("`high`") && refused.contains("`kubernetes.priority_classes`"), "{refused}");
    config.priority_classes = vec!["high".to_owned()];
    let placed = ask(&plan, &config).unwrap();
    let pod = placed.workload(1).body["spec"]["template"].clone();
    known::<core::PodTemplateSpec>(&pod);
    assert_eq!(pod["metadata"]["labels"][names::KEY], placed.key.as_str());
    let mut spec: Value = serde_json::from_str(&pod["spec"].to_string().replace(&placed.key, "KEY")).unwrap();
    spec.as_object_mut().unwrap().retain(|name, _| {
        ["affinity", "nodeSelector", "priorityClassName", "tolerations", "topologySpreadConstraints"]
            .contains(&name.as_str())
    });
    insta::assert_json_snapshot!(spec);

    config.node_selector = [("disk".to_owned(), "hdd".to_owned())].into();
    let refused = ask(&plan, &config).unwrap_err();
    assert!(refused.contains("`disk=ssd`") && refused.contains("`disk=hdd`"), "{refused}");
    assert_ne!(rendered(&plan_of(Scheduling::default())).key, rendered(&plan_of(only_spread())).key);
}

fn plan_of(scheduling: Scheduling) -> WorkloadPlan {
    let mut plan = plan();
    plan.template.scheduling = scheduling;
    plan
}

fn only_spread() -> Scheduling {
    Scheduling { topology_spread: everywhere().topology_spread, ..Scheduling::default() }
}

#[test]
fn secrets_stand_only_in_secrets() {
    for object in all(&rendered(&plan()), 2) {
        let text = object.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(text.contains("aHVudGVyMg=="), object["kind"] == "Secret", "{text}");
    }
}

#[test]
fn the_key_stands_for_what_replaces_instances() {
    let before = rendered(&plan());
    let changed = |change: fn(&mut WorkloadPlan)| {
        let mut plan = plan();
        change(&mut plan);
        rendered(&plan).key != before.key
    };
    assert!(!changed(|_| {}), "the same plan has the same key");
    assert!(!changed(|it| it.replicas = 5), "a number of instances replaces none");
    assert!(!changed(|it| it.rollout.drain_ms = 1), "how they are replaced replaces none");
    assert!(!changed(|it| it.may_call = BTreeSet::new()), "what they may call replaces none");
    assert!(changed(|it| it.template.restarts_asked = 1), "a restart replaces them");
    assert!(changed(|it| it.template.env.insert("PASSWORD".to_owned(), "other".to_owned()).map(drop).unwrap()));
    assert!(changed(|it| it.template.resources.memory_mb = 1));
}

#[test]
fn who_is_called_goes_on_for_a_while_when_the_cluster_ends_it() {
    let of = |minor: &str, pause_s: u32, change: fn(&mut WorkloadPlan)| {
        let mut plan = plan();
        plan.template.volumes.clear();
        change(&mut plan);
        let config = KubernetesConfig { eviction_pause_s: pause_s, ..config() };
        let (image, hosts) = (ImageConfig::default(), BTreeMap::new());
        let around = Surroundings { features: Features::of("1", minor), ..around(&config, &image, &hosts) };
        let spec = component(&plan, &around).unwrap().workload(1).body["spec"]["template"]["spec"].take();
        let hooks = spec["containers"].as_array().unwrap().iter().map(|it| it["lifecycle"]["preStop"].clone());
        (hooks.collect::<Vec<_>>(), spec["terminationGracePeriodSeconds"].as_u64())
    };
    let sleep = |seconds: u32| json!({ "sleep": { "seconds": seconds } });
    let with_overlay = |it: &mut WorkloadPlan| {
        it.template.overlay = Some(json!({ "spec": { "terminationGracePeriodSeconds": 60, "containers": [
            { "name": "app", "lifecycle": { "postStart": { "exec": { "command": ["x"] } } } },
            { "name": "proxy", "image": "proxy:1", "resources": { "limits": { "memory": "64Mi" } } },
        ]}}));
    };
    let with_a_hook = |it: &mut WorkloadPlan| {
        it.template.overlay = Some(json!({ "spec": { "containers": [
            { "name": "app", "lifecycle": { "preStop": { "exec": { "command": ["x"] } } } },
        ]}}));
    };
    let exec = json!({ "exec": { "command": ["x"] } });
    assert_eq!(of("30", 5, |_| {}), (vec![sleep(5)], Some(15)), "the program has the same time as ever");
    assert_eq!(of("36", 5, with_overlay), (vec![sleep(5), sleep(5)], Some(65)), "what is beside it goes on with it");
    for (why, found, wanted) in [
        ("an older cluster does not know it", of("29", 5, |_| {}), Value::Null),
        ("it is switched off", of("36", 0, |_| {}), Value::Null),
        ("nobody calls it", of("36", 5, |it| it.template.ports.clear()), Value::Null),
        ("nothing else takes its place", of("36", 5, |it| it.kind = ComponentKind::Stateful), Value::Null),
        ("it ends by itself", of("36", 5, |it| it.kind = ComponentKind::Job), Value::Null),
        ("it says itself how it leaves", of("36", 5, with_a_hook), exec),
    ] {
        assert_eq!(found, (vec![wanted], Some(10)), "{why}");
    }
}

#[test]
fn a_user_by_name_is_refused_unless_it_is_the_images_own() {
    let mut plan = plan();
    plan.template.user = "node".to_owned();
    let (config, hosts) = (config(), BTreeMap::new());
    let ask = |user: &str| {
        let image = ImageConfig { user: user.to_owned(), ..ImageConfig::default() };
        component(&plan, &Surroundings { pull_secret: false, ..around(&config, &image, &hosts) }).map(drop)
    };
    assert!(ask("node").is_ok());
    assert!(ask("").unwrap_err().contains("by number"));
}

#[test]
fn components_to_be_kept_away_alike_are_one_term() {
    let mut plan = plan();
    let apart = ["api", "db", "other/api", "web"].map(|it| json!({ "component": it }));
    plan.template.scheduling = serde_json::from_value(json!({ "anti_affinity": apart })).unwrap();
    let pod = rendered(&plan).workload(1).body["spec"]["template"]["spec"].take();
    let rules = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(rules.as_array().map(Vec::len), Some(3), "{rules}");
    assert_eq!(rules[0]["labelSelector"]["matchExpressions"][0]["values"], json!(["api", "db"]));
    assert_eq!(rules[1]["labelSelector"]["matchLabels"][names::NAME], "api", "of another application");
    assert_eq!(rules[2]["labelSelector"]["matchLabels"][names::NAME], "web", "those of the same key");
}
