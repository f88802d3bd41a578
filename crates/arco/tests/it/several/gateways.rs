//! Two servers on one machine, each with a gateway: people see one platform, and nobody takes one gateway for the other.

use super::Shared;
use crate::behave::good;
use crate::streams::{DOCKERFILE, PROGRAM, said};
use arco_model::traffic::{DataPlaneSettings, SETTINGS, STATUS_PREFIX};
use arco_store::kv::{EtcdKv, SharedKv};
use arco_testkit::servers::free_port;
use arco_testkit::{Platform, get, is_root, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::sync::Arc;

/// The coordination store of the servers, as an operator sees it.
struct Store {
    runtime: tokio::runtime::Runtime,
    kv: SharedKv,
}

impl Store {
    fn of(shared: &Shared) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let url = shared.etcd.replace("etcd://", "http://");
        let kv = runtime.block_on(EtcdKv::connect(&[url], None)).unwrap();
        Self { runtime, kv: Arc::new(kv) }
    }

    /// Names of the gateways that are live.
    fn gateways(&self) -> BTreeSet<String> {
        let listed = self.runtime.block_on(self.kv.list(STATUS_PREFIX)).unwrap();
        let key = |it: Vec<u8>| String::from_utf8(it).unwrap().split_off(STATUS_PREFIX.len());
        listed.items.into_iter().map(|it| key(it.key)).collect()
    }

    /// Where names are asked for.
    fn dns(&self) -> Option<SocketAddrV4> {
        let found = self.runtime.block_on(self.kv.get(SETTINGS)).unwrap()?;
        serde_json::from_slice::<DataPlaneSettings>(&found.value).unwrap().dns_listen
    }
}

/// By which others know a server.
fn name(platform: &Platform) -> String {
    std::fs::read_to_string(platform.data_dir().join("name")).unwrap().trim().to_owned()
}

/// What `arco route list` says of a component: its first entry with this field.
fn listed(platform: &Platform, reference: &str, field: &str) -> Value {
    let listed = good(platform, &["route", "list", reference]);
    let items = listed["items"].as_array().unwrap();
    items.iter().find(|it| !it[field].is_null()).cloned().unwrap_or_default()
}

#[test]
fn gateways_of_one_machine_are_one_platform() {
    if !is_root() {
        return;
    }
    let Some(shared) = Shared::make() else { return };
    let roles = ["api", "controller", "builder", "eventlog", "registry", "gateway", "console"];
    let port = free_port();
    let ports = [
        ("ARCO_GATEWAY__STREAM_LISTEN", "127.0.0.1".to_owned()),
        ("ARCO_GATEWAY__STREAM_PORTS", format!("{port}-{port}")),
    ];
    let mut here = shared.server(&roles, &ports);
    let store = Store::of(&shared);
    let dns = store.dns();
    assert!(dns.is_some());
    let mut there = shared.server(&["gateway", "console"], &ports);
    assert_eq!(store.dns(), dns, "instances ask the controller's machine, whoever came last");

    // Whoever ends an instance waits for both.
    let both = BTreeSet::from([name(&here), name(&there)]);
    until("both gateways are live", 60, || (store.gateways() == both).then_some(()));

    // Requests that only the other server's gateway has are told as well.
    let source = here.folder("site", &[("index.html", "<h1>shared</h1>")]).display().to_string();
    good(&here, &["deploy", &source, "--app", "calm", "--component", "site"]);
    let rates = until("what passes through the other gateway", 60, || {
        let answer = get(there.address("http").unwrap(), "site.calm.test.localhost", "/").ok();
        answer.filter(|it| it.status == 200)?;
        let rates = listed(&here, "calm/site", "rates")["rates"].clone();
        (rates["requests_per_s"].as_f64()? > 0.0 && rates["p99_ms"].is_f64()).then_some(rates)
    });
    assert_eq!(rates["errors_per_s"], 0.0, "{rates}");

    // A port that only one of them can open leads there all the same, and which one cannot is said.
    let source = here.folder("echo", &[("Dockerfile", DOCKERFILE), ("echo.pl", PROGRAM)]).display().to_string();
    good(&here, &["deploy", &source, "--app", "calm", "--component", "db", "--port", "9000/tcp", "--port", "9001/udp"]);
    good(&here, &["route", "add", "calm/db", "--tcp"]);
    let stream = until("one cannot open the port", 60, || {
        Some(listed(&here, "calm/db", "protocol")).filter(|it| it["open_elsewhere"] == true)
    });
    let problem = stream["problem"].as_str().unwrap();
    assert!(both.iter().any(|it| problem.starts_with(&format!("{it}: "))), "{stream}");
    let shown = here.arco(&["route", "list", "calm/db"]).stdout;
    assert!(shown.contains("calm/db:9000, but not at "), "{shown}");
    assert_eq!(until("an answer of the port", 60, || said(port, "a").ok()), "db a");

    let ask = ["exec", "calm/db", "--", "getent", "hosts", "site.calm.default.arco.internal"];
    until("names inside resolve", 60, || (here.arco(&ask).status == 0).then_some(()));

    // One that leaves is waited for no more.
    let left = BTreeSet::from([name(&here)]);
    assert!(there.stop(), "{}", there.log());
    until("one gateway is left", 60, || (store.gateways() == left).then_some(()));
    until("the other one has the port", 60, || (listed(&here, "calm/db", "protocol")["problem"] == "").then_some(()));
    assert_eq!(until("an answer of the port", 60, || said(port, "b").ok()), "db b");
    good(&here, &["delete", "calm", "--yes"]);
    assert!(here.stop(), "{}", here.log());
    for it in [here, there] {
        until("nothing is left over", 60, || it.leftovers().is_empty().then_some(()));
    }
}
