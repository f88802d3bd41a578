//! Rate limits that two gateways on one store hold together, and each by itself while the store is silent.

use crate::kit::*;
use crate::rolling::{Plane, put};
use arco_config::GatewayConfig;
use arco_model::route::{Route, UpstreamTarget};
use arco_model::traffic::*;
use std::sync::Arc;

const LIMIT: usize = 20;

/// Statuses of `count` requests with this key.
async fn asked(plane: &Plane, key: &str, count: usize) -> Vec<u16> {
    let mut wire = Wire::connect(plane.http).await;
    let mut statuses = Vec::new();
    for _ in 0..count {
        let request = format!("GET / HTTP/1.1\r\nHost: r.test\r\nX-Key: {key}\r\n\r\n");
        statuses.push(wire.ask(&request).await.status());
    }
    statuses
}

/// How many requests a gateway has told of.
async fn told(store: &Arc<Store>, id: &str) -> u64 {
    let seen: Option<RatesSeen> = store.value(&format!("{RATES_PREFIX}{id}")).await;
    let notes = seen.map(|it| it.notes).unwrap_or_default();
    notes.iter().flat_map(|it| &it.counts).map(|it| u64::from(it.2)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_hold_one_limit() {
    let (folder, store) = (tempfile::tempdir().unwrap(), Store::new());
    let limits = serde_json::json!([{"key": "header", "header": "x-key", "requests": LIMIT, "per_ms": 3_600_000}]);
    let rule = serde_json::json!({"answer": {"status": 200}, "rate_limits": limits});
    let rules: Vec<Route<UpstreamTarget>> = vec![serde_json::from_value(rule).unwrap()];
    let entry = HostEntry { host: "r.test".to_owned(), rules, ..HostEntry::default() };
    put(&store, format!("{HOSTS}r.test"), &entry).await;
    let start = |id: &str| {
        let any = "127.0.0.1:0".parse().unwrap();
        let config = GatewayConfig { http_listen: any, https_listen: any, ..GatewayConfig::default() };
        Plane::start_as(&store, &folder.path().join(id), id, config)
    };
    let (one, two) = (start("one"), start("two"));
    for id in ["one", "two"] {
        let key = format!("{RATES_PREFIX}{id}");
        eventually("each knows of the other", || async { store.value::<RatesSeen>(&key).await.is_some() }).await;
    }

    // What one let through is gone at the other.
    assert_eq!(asked(&one, "a", LIMIT + 1).await, [vec![200; LIMIT], vec![429]].concat());
    eventually("it is told", || async { told(&store, "one").await == LIMIT as u64 }).await;
    // What is told now is read by an exchange that began before or after; the one after that began later.
    for number in 1..=2 {
        assert_eq!(asked(&two, "marker", 1).await, [200]);
        eventually("the other one has looked", || async { told(&store, "two").await >= number }).await;
    }
    assert_eq!(asked(&two, "a", 1).await, [429]);
    assert_eq!(asked(&two, "b", 1).await, [200], "another key has its own count");

    // Without the store each counts exactly what it sees.
    store.silence(true);
    assert_eq!(asked(&two, "c", LIMIT + 1).await, [vec![200; LIMIT], vec![429]].concat());
    assert_eq!(asked(&one, "c", 1).await, [200]);
    store.silence(false);
    let before = told(&store, "one").await;
    eventually("what was let through meanwhile is told", || async {
        told(&store, "two").await >= LIMIT as u64 && told(&store, "one").await > before
    })
    .await;
    for number in 1..=2 {
        assert_eq!(asked(&one, "marker", 1).await, [200]);
        eventually("it has looked", || async { told(&store, "one").await >= before + 1 + number }).await;
    }
    assert_eq!(asked(&one, "c", 1).await, [429]);
}
