//! The two Services of a stateful component: names of its places, always; an address, while it has ports. Whether a Service
//! has an address and which one a set names cannot be changed, and earlier versions made one Service for both.

use super::{let_go, on_fake_nodes, volume};
use crate::cluster::place::Place;
use arco_model::id::ComponentId;
use arco_model::plan::WorkloadPlan;
use arco_model::spec::{ComponentKind, Port};
use arco_orchestrator::contract::{in_time, plan, reached, ready};
use arco_orchestrator::{Orchestrator as _, Removal};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Service};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn ours() -> ListParams {
    ListParams::default().labels("app.kubernetes.io/managed-by=arco")
}

/// The part of its name that tells a Service from others of the component, and whether it has an address.
type Services = BTreeMap<String, bool>;

async fn services(place: &Place) -> Services {
    let api: Api<Service> = place.api();
    let found = api.list(&ours()).await.unwrap().items.into_iter();
    let of = |it: Service| {
        let name = it.metadata.name.unwrap();
        let kind = if name.ends_with("-places") { "places" } else { "ordinary" };
        let address = it.spec.unwrap().cluster_ip.unwrap_or_default();
        (kind.to_owned(), address.parse::<std::net::Ipv4Addr>().is_ok())
    };
    found.map(of).collect()
}

async fn set(place: &Place) -> Option<StatefulSet> {
    let api: Api<StatefulSet> = place.api();
    api.list(&ours()).await.unwrap().items.pop()
}

/// Waits until the Services are these, and the set names the one of its places.
async fn until_services(place: &Place, what: &str, wanted: &[(&str, bool)]) {
    let wanted: Services = wanted.iter().map(|(kind, address)| ((*kind).to_owned(), *address)).collect();
    let deadline = Instant::now() + in_time(Duration::from_secs(60));
    loop {
        let (services, set) = (services(place).await, set(place).await);
        let named = set.and_then(|it| it.spec?.service_name).unwrap_or_default();
        if services == wanted && named.ends_with("-places") {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {services:?}, the set names `{named}`");
    }
}

/// What was made by an earlier version of a component without ports: a set that names the ordinary Service, which has no
/// address. Nobody acts meanwhile.
async fn as_before(place: &Place, id: &ComponentId) {
    let (sets, services): (Api<StatefulSet>, Api<Service>) = (place.api(), place.api());
    let mut old = set(place).await.unwrap();
    let name = old.metadata.name.clone().unwrap();
    sets.delete(&name, &DeleteParams::orphan()).await.unwrap();
    let deadline = Instant::now() + in_time(Duration::from_secs(60));
    while sets.get_opt(&name).await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "the set is not gone");
    }
    let noted = ["applied", "fixed"].map(|it| (format!("arco.internal/{it}"), "by an earlier version".to_owned()));
    let labels = old.metadata.labels.take().unwrap();
    old.metadata = ObjectMeta {
        name: Some(name.clone()),
        labels: Some(labels.clone()),
        annotations: Some(noted.into()),
        ..ObjectMeta::default()
    };
    old.status = None;
    old.spec.as_mut().unwrap().service_name = Some(name.clone());
    sets.create(&PostParams::default(), &old).await.unwrap();
    for it in services.list(&ours()).await.unwrap() {
        services.delete(&it.metadata.name.unwrap(), &DeleteParams::default()).await.unwrap();
    }
    let headless = json!({
        "metadata": { "name": name, "labels": labels },
        "spec": { "clusterIP": "None", "selector": { "arco.internal/component": id.as_str(), "arco.internal/serving": "true" } },
    });
    services.create(&PostParams::default(), &serde_json::from_value(headless).unwrap()).await.unwrap();
}

/// A stateful component with a volume and without ports.
fn without_ports(place: &Place) -> (WorkloadPlan, Vec<Port>) {
    let mut asked = plan(place.image.clone(), &["serve"]);
    (asked.kind, asked.replicas, asked.template.volumes) = (ComponentKind::Stateful, 2, vec![volume(100)]);
    let ports = std::mem::take(&mut asked.template.ports);
    (asked, ports)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_component_gets_and_loses_its_ports() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let (mut asked, ports) = without_ports(&place);
        driver.apply(&asked).await.unwrap();
        let found = reached(driver, &asked).await;
        assert_eq!((ready(&found).len(), found.address), (2, None));
        until_services(&place, "at first", &[("places", false)]).await;

        asked.template.ports = ports;
        driver.apply(&asked).await.unwrap();
        let found = let_go(driver, &asked).await;
        assert!(ready(&found).len() == 2 && found.address.is_some(), "{found:#?}");
        until_services(&place, "with a port", &[("ordinary", true), ("places", false)]).await;

        asked.template.ports.clear();
        driver.apply(&asked).await.unwrap();
        let found = let_go(driver, &asked).await;
        assert_eq!((ready(&found).len(), found.address), (2, None));
        until_services(&place, "without it", &[("places", false)]).await;
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
        assert_eq!((services(&place).await.len(), set(&place).await), (0, None));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_version_made_of_a_stateful_component_is_taken_over() {
    on_fake_nodes(|place| async move {
        let driver = place.driver.as_ref();
        let (mut asked, ports) = without_ports(&place);
        driver.apply(&asked).await.unwrap();
        let first = reached(driver, &asked).await;
        until_services(&place, "at first", &[("places", false)]).await;
        let claims: Api<PersistentVolumeClaim> = place.api();
        let held = async || {
            let found = claims.list_metadata(&ours()).await.unwrap().items.into_iter();
            found.map(|it| it.metadata.uid.unwrap()).collect::<Vec<_>>()
        };
        let before = held().await;
        assert_eq!(before.len(), 2);

        // Nothing changes but the version of the platform: no instance is replaced, and no volume.
        driver.shutdown(false).await.unwrap();
        as_before(&place, &asked.component).await;
        let next = place.restarted().await;
        next.apply(&asked).await.unwrap();
        until_services(&place, "after an upgrade", &[("places", false)]).await;
        assert_eq!(ready(&reached(next.as_ref(), &asked).await), ready(&first));

        // The first port comes together with the version: the Service without an address makes way for one with it.
        next.shutdown(false).await.unwrap();
        as_before(&place, &asked.component).await;
        asked.template.ports = ports;
        let next = place.restarted().await;
        next.apply(&asked).await.unwrap();
        let found = let_go(next.as_ref(), &asked).await;
        assert_eq!(ready(&found).len(), 2);
        until_services(&place, "with a port", &[("ordinary", true), ("places", false)]).await;
        let address = next.observe(&asked.component).await.unwrap().address;
        assert!(address.is_some(), "{found:#?}");
        assert_eq!(held().await, before);
        next.remove(&asked.component, &Removal::Everything).await.unwrap();
        next.shutdown(false).await.unwrap();
    })
    .await;
}
