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

/// Number of the last note of a gateway.
async fn last(store: &Arc<Store>, id: &str) -> u64 {
    let seen: Option<RatesSeen> = store.value(&format!("{RATES_PREFIX}{id}")).await;
    seen.and_then(|it| it.notes.last().map(|it| it.number)).unwrap_or_default()
}

/// Waits until a gateway has told everything so far, and counted what the other one had told before.
async fn exchanged(store: &Arc<Store>, plane: &Plane, id: &str, known: &mut u64) {
    *known = last(store, id).await.max(*known);
    // The first note may be of an exchange that began before; that of the second began after.
    for _ in 0..2 {
        assert_eq!(asked(plane, "marker", 1).await, [200]);
        let before = *known;
        eventually("another note", || async { last(store, id).await > before }).await;
        *known = last(store, id).await.max(before + 1);
    }
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
    let (mut of_one, mut of_two) = (0, 0);
    exchanged(&store, &one, "one", &mut of_one).await;
    exchanged(&store, &two, "two", &mut of_two).await;
    assert_eq!(asked(&two, "a", 1).await, [429]);
    assert_eq!(asked(&two, "b", 1).await, [200], "another key has its own count");

    // Without the store each counts exactly what it sees.
    store.silence(true);
    assert_eq!(asked(&two, "c", LIMIT + 1).await, [vec![200; LIMIT], vec![429]].concat());
    assert_eq!(asked(&one, "c", 1).await, [200]);
    store.silence(false);
    exchanged(&store, &two, "two", &mut of_two).await;
    exchanged(&store, &one, "one", &mut of_one).await;
    assert_eq!(asked(&one, "c", 1).await, [429]);
}
