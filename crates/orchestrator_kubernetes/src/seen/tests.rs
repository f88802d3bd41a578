//! What is kept of the cluster's news, in the order in which it may come.

use super::*;
use crate::facts::tests::pod;
use serde_json::json;

fn component() -> ComponentId {
    ComponentId::from_parts(1, 1)
}

fn object(applied: &str) -> Record {
    let object = ObjectSeen { applied: applied.to_owned(), ..ObjectSeen::default() };
    Record::Object(Kind::Deployment, "web".to_owned(), Box::new(object))
}

fn applied(seen: &Seen) -> Option<String> {
    seen.with(&component(), |it| it.of(Kind::Deployment).map(|(_, it)| it.applied.clone()).next())
}

#[test]
fn an_older_version_never_replaces_a_newer_one() {
    let seen = Seen::default();
    assert!(seen.put(&component(), 7, object("new")));
    assert!(!seen.put(&component(), 6, object("old")), "a watch that lags says nothing new");
    assert!(!seen.put(&component(), 8, object("new")), "a version alone is no news");
    assert_eq!(applied(&seen).as_deref(), Some("new"));
}

#[test]
fn after_a_full_list_what_was_not_in_it_is_forgotten() {
    let seen = Seen::default();
    seen.put(&component(), 1, object("a"));
    seen.put(&component(), 1, Record::Pod(Box::new(pod("p", json!({})))));
    let listed = HashSet::from([(component(), "other".to_owned())]);
    assert_eq!(seen.keep_only(Kind::Deployment, &listed), [component()]);
    assert_eq!((applied(&seen), seen.component(&component()).pods.len()), (None, 1));
    let id = pod("p", json!({})).id;
    assert_eq!(seen.whereabouts(&id).unwrap().pod, "p");
    assert_eq!(seen.keep_only(Kind::Pod, &HashSet::new()), [component()]);
    assert!(seen.whereabouts(&id).is_none() && seen.components().is_empty() && seen.everything().is_empty());
}

#[test]
fn whether_a_run_was_ready_is_remembered_until_its_program_is_run_again() {
    let seen = Seen::default();
    let put = |version, change: fn(&mut PodSeen)| {
        let mut it = pod("p", json!({}));
        change(&mut it);
        seen.put(&component(), version, Record::Pod(Box::new(it)));
        seen.component(&component()).pods["p"].1.was_ready
    };
    assert!(!put(1, |it| it.ready = false));
    put(2, |_| {});
    assert!(put(3, |it| it.ready = false));
    assert!(put(4, |it| it.ready = false));
    assert!(!put(5, |it| (it.ready, it.restarts) = (false, 1)));
}

#[test]
fn a_warning_stays_with_its_pod_until_that_is_ready() {
    let seen = Seen::default();
    let mut it = pod("p", json!({}));
    it.ready = false;
    seen.put(&component(), 1, Record::Pod(Box::new(it.clone())));
    assert!(seen.warn("arco-acme", "p", "another", "x".to_owned()).is_none());
    assert_eq!(seen.warn("arco-acme", "p", &it.uid, "FailedMount: x".to_owned()), Some(component()));
    assert!(seen.warn("arco-acme", "p", &it.uid, "FailedMount: x".to_owned()).is_none(), "the same is no news");
    seen.put(&component(), 2, Record::Pod(Box::new(it)));
    assert_eq!(seen.component(&component()).pods["p"].1.warning.as_deref(), Some("FailedMount: x"));
    seen.put(&component(), 3, Record::Pod(Box::new(pod("p", json!({})))));
    assert_eq!(seen.component(&component()).pods["p"].1.warning, None);
}

#[test]
fn why_there_is_no_volume_is_told_of_the_pods_that_wait_for_it() {
    let seen = Seen::default();
    let waiting = |name: &str, node: &str| {
        let it = PodSeen { node: node.into(), ready: false, ..pod(name, json!({})) };
        seen.put(&component(), 1, Record::Pod(Box::new(it)));
    };
    waiting("db-0", "");
    waiting("db-1", "");
    waiting("db-2", "n1");
    let claim = |name: &str, uid: &str| {
        let detail = Detail { volume: Some(("data".into(), 1)), uid: uid.into(), ..Detail::default() };
        let it = ObjectSeen { namespace: "arco-acme".into(), detail, ..ObjectSeen::default() };
        seen.put(&component(), 1, Record::Object(Kind::Claim, name.to_owned(), Box::new(it)));
    };
    let shared = format!("data-{}", component());
    claim("data-db-1", "c1");
    claim(&shared, "c2");
    let warned = |name: &str, uid: &str| seen.warn_of_claim("arco-acme", name, uid, "no room");
    let warnings = || {
        let of = seen.component(&component());
        of.pods.values().map(|(_, it)| it.warning.clone()).collect::<Vec<_>>()
    };
    assert_eq!(warned("data-db-1", "earlier"), None, "the claim before it");
    assert_eq!(warned("data-db-0", "c1"), None, "no such claim");
    let why = Some("its volume `data` cannot be made: no room".to_owned());
    assert_eq!(warned("data-db-1", "c1"), Some(component()));
    assert_eq!(warnings(), [None, why.clone(), None]);
    assert_eq!(warned("data-db-1", "c1"), None, "the same is no news");
    assert_eq!(warned(&shared, "c2"), Some(component()));
    assert_eq!(warnings(), [why.clone(), why, None], "one that has its node has its volumes");
}

#[test]
fn why_no_pod_is_made_is_known_until_one_is() {
    for kind in [Kind::StatefulSet, Kind::Job] {
        let seen = Seen::default();
        let workload = |version: u64, uid: &str| {
            let detail = Detail { uid: uid.into(), ..Detail::default() };
            let (namespace, key) = ("arco-acme".to_owned(), "k1".to_owned());
            let it = ObjectSeen { namespace, key, detail, ..ObjectSeen::default() };
            seen.put(&component(), version, Record::Object(kind, "db".to_owned(), Box::new(it)))
        };
        let made = |version: u64, name: &str, at: u64| {
            let it = PodSeen { created: Timestamp(at), ..pod(name, json!({})) };
            seen.put(&component(), version, Record::Pod(Box::new(it)));
        };
        let refused = |uid: &str, at: u64, text: &str| {
            seen.refused(kind, "arco-acme", "db", uid, (Timestamp(at), text)).is_some()
        };
        let failure = || seen.with(&component(), |it| it.of(kind).find_map(|(_, it)| it.failure().map(str::to_owned)));
        let why = || Some("quota".to_owned());
        made(1, "db-0", 1_000);
        workload(1, "u1");
        assert!(!refused("u1", 1_000, "quota"), "{kind:?}: a pod was made at that moment");
        assert!(!refused("u0", 2_000, "quota") && failure().is_none(), "{kind:?}: of the one before it");
        assert!(refused("u1", 2_000, "quota") && failure() == why(), "{kind:?}");
        assert!(!refused("u1", 3_000, "quota"), "{kind:?}: the same is no news");
        assert!(!workload(2, "u1") && failure() == why(), "{kind:?}: a new version says nothing else");
        made(1, "db-1", 2_000);
        assert_eq!(failure(), why(), "{kind:?}: refused again after that");
        made(1, "db-2", 3_000);
        assert_eq!(failure(), None, "{kind:?}");
        // The pod goes, and what was said before is listed once more.
        seen.gone(&component(), Kind::Pod, "db-2");
        assert!(!refused("u1", 3_000, "quota") && failure().is_none(), "{kind:?}: it is over");
        assert!(refused("u1", 4_000, "quota") && workload(3, "u2") && failure().is_none(), "{kind:?}: made anew");
    }
    let seen = Seen::default();
    assert_eq!(seen.refused(Kind::Job, "arco-acme", "db", "", (Timestamp(1), "x")), None, "not ours");
}

#[test]
fn an_instance_has_the_claims_of_its_place_and_those_of_all() {
    let seen = Seen::default();
    for (name, volume) in [
        (format!("files-{}", component()), "files"),
        ("data-shop-db-1".to_owned(), "data"),
        ("data-shop-db-0".to_owned(), "data"),
        ("data-shop-db-10".to_owned(), "data"),
        // Of a time when it was another kind.
        (format!("data-{}", component()), "data"),
    ] {
        let detail = Detail { volume: Some((volume.into(), 1)), ..Detail::default() };
        let it = ObjectSeen { detail, ..ObjectSeen::default() };
        seen.put(&component(), 1, Record::Object(Kind::Claim, name, Box::new(it)));
    }
    let of = |place: u32| seen.component(&component()).claims_of(&component(), place);
    for place in [0, 1, 10] {
        assert_eq!(of(place)["data"], format!("data-shop-db-{place}"));
        assert_eq!(of(place)["files"], format!("files-{}", component()));
    }
    assert_eq!(of(2)["data"], format!("data-{}", component()));
}

#[test]
fn pods_of_a_silent_node_are_lost_whatever_is_known_of_them() {
    let seen = Seen::default();
    let other = ComponentId::from_parts(2, 2);
    let put = |of: &ComponentId, version: u64, name: &str, node: &str| {
        let it = PodSeen { node: node.into(), ready: false, ..pod(name, json!({})) };
        seen.put(of, version, Record::Pod(Box::new(it)))
    };
    let lost = |of: &ComponentId, name: &str| seen.component(of).pods[name].1.lost;
    put(&component(), 1, "a", "n1");
    put(&component(), 1, "b", "n2");
    put(&other, 1, "c", "n2");
    assert!(seen.node("n1", false).is_empty() && seen.node("n3", true).is_empty(), "no news for anybody");
    assert_eq!(seen.node("n1", true), [component()]);
    assert!(seen.node("n1", true).is_empty(), "the same is no news");
    assert!(lost(&component(), "a") && !lost(&component(), "b"));
    assert!(!put(&component(), 2, "a", "n1"), "a new version says nothing else");
    assert!(lost(&component(), "a"));
    put(&other, 1, "d", "n1");
    assert!(lost(&other, "d"), "one that is heard of later");

    // A new list: another node is silent.
    assert_eq!(seen.silent_nodes(["n2".to_owned()].into()), [component(), other.clone()]);
    assert!(!lost(&component(), "a") && lost(&component(), "b") && lost(&other, "c") && !lost(&other, "d"));
    assert_eq!(seen.node("n2", false), [component(), other]);
}

#[test]
fn whose_a_pod_was_is_known_a_while_after_it_went() {
    let seen = Seen::default();
    let it = pod("p", json!({}));
    let whose = Whose { namespace: it.namespace.clone(), component: component(), instance: it.id.clone() };
    let told = || seen.whose("arco-acme", "uid-p");
    seen.put(&component(), 1, Record::Pod(Box::new(it.clone())));
    assert_eq!(told(), Some(whose.clone()));
    assert_eq!(seen.whose("arco-other", "uid-p"), None, "a namespace of somebody else");
    seen.put(
        &component(),
        1,
        Record::Pod(Box::new(PodSeen { name: "run".into(), uid: "once".into(), one_shot: true, ..it })),
    );
    assert_eq!(seen.whose("arco-acme", "once"), None, "builds tell their output to whoever waits");
    seen.gone(&component(), Kind::Pod, "p");
    assert_eq!(told(), Some(whose.clone()));
    for number in 0..DEPARTED {
        let name = format!("p{number}");
        seen.put(&component(), 1, Record::Pod(Box::new(pod(&name, json!({})))));
        assert_eq!(told(), Some(whose.clone()), "{number}");
        seen.gone(&component(), Kind::Pod, &name);
    }
    assert_eq!(told(), None, "not for ever");
}
