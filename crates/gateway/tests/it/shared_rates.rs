//! Rate limits that two gateways on one store hold together, and each by itself while the store is silent.

use crate::kit::*;
use crate::rolling::{Plane, patient, put};
use arco_model::route::{Route, UpstreamTarget};
use arco_model::traffic::*;
use arco_store::secrets::Sealed;
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

/// What a gateway has told.
async fn told(store: &Arc<Store>, id: &str) -> Option<RatesSeen> {
    let key = format!("{RATES_PREFIX}{id}");
    let sealed: serde_json::Value = store.value(&key).await?;
    let part = |name: &str| sealed[name].as_str().unwrap().to_owned();
    let sealed = Sealed { key_id: part("key_id"), text: part("text") };
    serde_json::from_slice(&keys().unseal(&key, &sealed).unwrap()).ok()
}

/// The last note of a gateway: its series and number.
async fn last(store: &Arc<Store>, id: &str) -> Option<(u64, u64)> {
    let seen = told(store, id).await?;
    seen.notes.last().map(|it| (seen.epoch, it.number))
}

/// Waits until a gateway has told everything so far, and counted what the other one had told before.
async fn exchanged(store: &Arc<Store>, plane: &Plane, id: &str, known: &mut Option<(u64, u64)>) {
    *known = last(store, id).await.or(*known);
    // The first note may be of an exchange that began before; that of the second began after.
    for _ in 0..2 {
        assert_eq!(asked(plane, "marker", 1).await, [200]);
        let before = *known;
        eventually("another note", || async { last(store, id).await.is_some_and(|it| Some(it) != before) }).await;
        *known = last(store, id).await.or(*known);
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
    let start = |id: &str| Plane::start_as(&store, &folder.path().join(id), id, patient());
    let (one, two) = (start("one"), start("two"));
    for id in ["one", "two"] {
        eventually("each knows of the other", || async { told(&store, id).await.is_some() }).await;
    }

    // What one let through is gone at the other.
    assert_eq!(asked(&one, "a", LIMIT + 1).await, [vec![200; LIMIT], vec![429]].concat());
    let (mut of_one, mut of_two) = (None, None);
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
