//! Two servers on one machine, each with a gateway: people see one platform, and nobody takes one gateway for the other.

use super::Shared;
use arco_model::traffic::STATUS_PREFIX;
use arco_store::kv::{EtcdKv, SharedKv};
use arco_testkit::{Platform, is_root, until};
use std::collections::BTreeSet;
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
}

/// By which others know a server.
fn name(platform: &Platform) -> String {
    std::fs::read_to_string(platform.data_dir().join("name")).unwrap().trim().to_owned()
}

#[test]
fn gateways_of_one_machine_are_one_platform() {
    if !is_root() {
        return;
    }
    let Some(shared) = Shared::make() else { return };
    let roles = ["api", "controller", "builder", "eventlog", "registry", "gateway", "console"];
    let mut here = shared.server(&roles, &[]);
    let mut there = shared.server(&["gateway", "console"], &[]);
    let store = Store::of(&shared);

    // Whoever ends an instance waits for both.
    let both = BTreeSet::from([name(&here), name(&there)]);
    until("both gateways are live", 60, || (store.gateways() == both).then_some(()));

    // One that leaves is waited for no more.
    let left = BTreeSet::from([name(&here)]);
    assert!(there.stop(), "{}", there.log());
    until("one gateway is left", 60, || (store.gateways() == left).then_some(()));
    assert!(here.stop(), "{}", here.log());
    for it in [here, there] {
        until("nothing is left over", 60, || it.leftovers().is_empty().then_some(()));
    }
}
