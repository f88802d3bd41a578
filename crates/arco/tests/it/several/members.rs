//! Two servers on an etcd of three members, of which one is away: nobody notices.

use super::{Shared, leads};
use crate::behave::good;
use arco_store::kv::{EtcdKv, SharedKv};
use arco_store::leader::LEADERS;
use arco_testkit::servers::RestartableEtcd;
use arco_testkit::{is_root, until};
use std::sync::Arc;

/// Changes in each round: each is a dozen calls to the store.
const CHANGES: usize = 20;

/// What a key is at one member alone, when it answers: its value and when it was made.
fn at(member: &RestartableEtcd, key: &str) -> Option<(String, u64)> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let kv: SharedKv = Arc::new(EtcdKv::connect(std::slice::from_ref(&member.url), None).await.unwrap());
        let found = kv.get(key).await.ok()??;
        Some((String::from_utf8(found.value).unwrap(), found.create_revision))
    })
}

#[test]
fn a_member_of_etcd_that_is_away_is_not_noticed() {
    if !is_root() {
        return;
    }
    let Some((shared, mut members)) = Shared::with_members() else { return };
    let mut here = shared.server(&["api", "controller", "builder", "eventlog", "registry", "gateway", "console"], &[]);
    until("it leads", 60, || leads(&here).then_some(()));
    let source = here.folder("site", &[("index.html", "<h1>calm</h1>")]).display().to_string();
    good(&here, &["deploy", &source, "--app", "calm", "--component", "site"]);
    let first = until("a member that leads the others", 60, || members.iter().position(RestartableEtcd::leads));
    let lock = format!("{LEADERS}controller");
    let term = at(&members[first], &lock).expect("somebody leads");

    for round in 1..3 {
        let away = (first + round) % 3;
        members[away].kill();
        // A server starts without it, as after the loss of a node.
        let mut there = shared.server(&["api", "console"], &[]);
        for number in 0..CHANGES {
            let through = if number % 2 == 0 { &here } else { &there };
            let outcome = through.arco(&["tenant", "create", &format!("t{round}{number}")]);
            assert_eq!(outcome.status, 0, "change {number} with member {away} away: {outcome:?}");
        }
        good(&there, &["scale", "calm/site", "--replicas", &(round + 1).to_string()]);
        until("it is scaled", 60, || (here.status("calm/site")["ready_replicas"] == round + 1).then_some(()));
        assert!(leads(&here), "{}", here.log());
        assert_eq!(at(&members[first], &lock), Some(term.clone()), "the same server has led all the time");
        assert!(there.stop(), "{}", there.log());
        // The next one goes when this one knows what the others know.
        members[away].boot();
        until("the member is back", 60, || at(&members[away], &lock));
    }
    good(&here, &["delete", "calm", "--yes"]);
    assert!(here.stop(), "{}", here.log());
    until("nothing is left over", 60, || here.leftovers().is_empty().then_some(()));
}
