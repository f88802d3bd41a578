//! Each row: what is there, and what is done about it.

use super::super::world::Node;
use super::*;

const NOW: Timestamp = Timestamp(1_000_000);

/// A claim that chose `node`.
fn claim(node: &str) -> Claim {
    let (namespace, name) = ("arco-acme".to_owned(), "data".to_owned());
    Claim { namespace, name, uid: "u1".into(), node: node.into(), size: "1Gi".into(), ..Claim::default() }
}

fn world(claims: &[Claim]) -> World {
    let node = |hostname: &str, ready| Node { hostname: hostname.to_owned(), ready };
    let nodes = [("n1", node("host-1", true)), ("n2", node("host-2", true)), ("down", node("down", false))];
    World {
        claims: claims.iter().map(|it| (it.uid.clone(), it.clone())).collect(),
        nodes: nodes.map(|(name, it)| (name.to_owned(), it)).into(),
        ..World::default()
    }
}

/// With a pod for the volume of [`claim`].
fn with_pod(mut world: World, task: Task, node: &str, state: State) -> World {
    let pod = Pod {
        uid: format!("{}-uid", task.word()),
        task,
        volume: "pvc-u1".into(),
        node: node.into(),
        folder: "/folders".into(),
        created: Timestamp(NOW.0 - 1_000),
        state,
        deleting: false,
    };
    world.pods.insert(task.pod("pvc-u1"), pod);
    world
}

/// With the volume of [`claim`].
fn with_volume(mut world: World, node: &str, released: bool) -> World {
    let folder = Some("/folders".to_owned());
    let volume = Volume { uid: "v1".into(), node: node.into(), folder, released, goes: true, deleting: false };
    world.volumes.insert("pvc-u1".into(), volume);
    world
}

/// The steps in short.
fn steps(world: &World) -> Vec<String> {
    let short = |it: &Step| match it {
        Step::Make { volume, node, .. } => format!("make {volume} on {node}"),
        Step::Remove { volume, node, folder, sure, .. } => format!("remove {folder}/{volume} on {node} if {sure:?}"),
        Step::End(pod, uid) => format!("end {pod} {uid}"),
        Step::Publish { claim, folder, hostname } => format!("publish {folder}/{} on {hostname}", claim.volume()),
        Step::Withdraw(volume, uid) => format!("withdraw {volume} {uid}"),
        Step::ChooseAgain(claim) => format!("choose again for {}", claim.name),
        Step::Tell(About::Claim(_, name, _), text) => format!("tell {name}: {text}"),
        Step::Tell(About::Volume(name, _), text) => format!("tell {name}: {text}"),
    };
    decide(world, NOW).steps.iter().map(short).collect()
}

const BEGUN: State = State::Begun(None);

fn failed(ago_ms: u64) -> State {
    State::Failed("read-only file system".to_owned(), Timestamp(NOW.0 - ago_ms))
}

#[test]
fn a_claim_becomes_a_volume_by_steps_that_any_leader_can_go_on_with() {
    let made = |state| with_pod(world(&[claim("n1")]), Task::Make, "n1", state);
    let bound = Claim { bound: true, ..claim("n1") };
    let impossible = Claim { impossible: Some("it cannot be"), ..claim("n1") };
    let refused = "tell data: its folder cannot be made on node `n1`: read-only file system";
    let table: Vec<(&str, World, Vec<&str>)> = vec![
        ("no pod waits for it", world(&[claim("")]), vec![]),
        ("its node is chosen", world(&[claim("n1")]), vec!["make pvc-u1 on n1"]),
        ("it is impossible", world(&[impossible]), vec!["tell data: it cannot be"]),
        ("it is deleted", world(&[Claim { deleting: true, ..claim("n1") }]), vec![]),
        ("it has its volume", world(std::slice::from_ref(&bound)), vec![]),
        ("the pod works", made(BEGUN), vec![]),
        ("the folder is there", made(State::Done), vec!["publish /folders/pvc-u1 on host-1"]),
        ("the volume is there", with_volume(made(State::Done), "n1", false), vec!["end make-pvc-u1 make-uid"]),
        ("bound before the volume is seen", with_pod(world(&[bound]), Task::Make, "n1", State::Done), vec![]),
        ("it failed just now", made(failed(1_000)), vec![refused]),
        (
            "it failed some time ago",
            made(failed(RETRY_MS)),
            vec![refused, "end make-pvc-u1 make-uid", "choose again for data"],
        ),
        (
            "its image cannot be had",
            made(State::Begun(Some("ErrImagePull: not found".into()))),
            vec!["tell data: its folder is not made yet: node `n1` says ErrImagePull: not found"],
        ),
        (
            "its node is gone",
            world(&[claim("gone")]),
            vec!["tell data: node `gone` is gone: another one is chosen", "choose again for data"],
        ),
    ];
    for (what, world, wanted) in table {
        assert_eq!(steps(&world), wanted, "{what}");
    }
}

#[test]
fn a_node_that_is_silent_is_told_after_a_while_and_left() {
    let mut silent = with_pod(world(&[claim("down")]), Task::Make, "down", BEGUN);
    let soon = decide(&silent, NOW);
    assert_eq!((soon.steps, soon.wake_at), (vec![], Some(Timestamp(NOW.0 - 1_000 + PATIENCE_MS))));
    silent.pods.get_mut("make-pvc-u1").unwrap().created = Timestamp(NOW.0 - PATIENCE_MS);
    let told = "tell data: its folder is not made yet: node `down` does not answer, start it again";
    assert_eq!(steps(&silent), [told, "choose again for data"]);
    silent.claims.get_mut("u1").unwrap().node.clear();
    assert_eq!(steps(&silent), ["end make-pvc-u1 make-uid"], "nothing was made there");
}

#[test]
fn a_released_volume_goes_after_its_folder() {
    let released = |node| with_volume(world(&[]), node, true);
    let removes = |state| with_pod(released("n1"), Task::Remove, "n1", state);
    let kept = |change: fn(&mut Volume)| {
        let mut world = released("n1");
        change(world.volumes.get_mut("pvc-u1").unwrap());
        world
    };
    let refused = "tell pvc-u1: its folder cannot be removed on node `n1`: read-only file system";
    let table: Vec<(&str, World, Vec<&str>)> = vec![
        ("it is used", with_volume(world(&[]), "n1", false), vec![]),
        ("it is kept", kept(|it| it.goes = false), vec![]),
        ("it is deleted by hand", kept(|it| it.deleting = true), vec![]),
        ("it is released", released("n1"), vec!["remove /folders/pvc-u1 on n1 if Released(\"v1\")"]),
        ("the pod works", removes(BEGUN), vec![]),
        ("the folder is gone", removes(State::Done), vec!["withdraw pvc-u1 v1"]),
        ("it failed just now", removes(failed(1_000)), vec![refused]),
        ("it failed some time ago", removes(failed(RETRY_MS)), vec![refused, "end remove-pvc-u1 remove-uid"]),
        ("all is done", with_pod(world(&[]), Task::Remove, "n1", State::Done), vec!["end remove-pvc-u1 remove-uid"]),
        (
            "its node is gone",
            released("gone"),
            vec![
                "tell pvc-u1: its node `gone` is gone: its folder is removed when that is back; when it does not come back, `kubectl delete pv pvc-u1`",
            ],
        ),
        (
            "its folder is not ours",
            kept(|it| it.folder = None),
            vec![
                "tell pvc-u1: its folder does not lie where volumes are made: remove it by hand, then `kubectl delete pv pvc-u1`",
            ],
        ),
    ];
    for (what, world, wanted) in table {
        assert_eq!(steps(&world), wanted, "{what}");
    }
}

#[test]
fn a_folder_that_no_volume_was_made_of_is_removed() {
    let left = |claims: &[Claim], state| with_pod(world(claims), Task::Make, "n1", state);
    let remove = "remove /folders/pvc-u1 on n1 if NoVolume";
    let both = |removes| with_pod(left(&[], State::Done), Task::Remove, "n1", removes);
    let table: Vec<(&str, World, Vec<&str>)> = vec![
        ("its claim is gone", left(&[], State::Done), vec![remove]),
        ("no node is chosen any more", left(&[claim("")], State::Done), vec![remove]),
        ("another node is chosen", left(&[claim("n2")], State::Done), vec![remove]),
        ("it is not made yet", left(&[], BEGUN), vec![]),
        ("it was not made", left(&[], failed(0)), vec!["end make-pvc-u1 make-uid"]),
        ("the pod works", both(BEGUN), vec![]),
        ("it is removed", both(State::Done), vec!["end make-pvc-u1 make-uid"]),
        ("it cannot be removed now", both(failed(0)), vec![]),
        ("it is tried again", both(failed(RETRY_MS)), vec!["end remove-pvc-u1 remove-uid"]),
        (
            "the node is chosen again before all of it is gone",
            with_pod(left(&[claim("n1")], State::Done), Task::Remove, "n1", State::Done),
            vec!["end make-pvc-u1 make-uid", "end remove-pvc-u1 remove-uid"],
        ),
        (
            "the node is chosen again while it is removed",
            with_pod(left(&[claim("n1")], State::Done), Task::Remove, "n1", BEGUN),
            vec![],
        ),
    ];
    for (what, world, wanted) in table {
        assert_eq!(steps(&world), wanted, "{what}");
    }
}

#[test]
fn a_node_is_not_flooded_with_pods() {
    let claims: Vec<Claim> = (0..AT_ONCE + 3).map(|it| Claim { uid: format!("c{it}"), ..claim("n1") }).collect();
    let mut many = world(&claims);
    assert_eq!(steps(&many).len(), AT_ONCE);
    many = with_pod(many, Task::Make, "n1", BEGUN);
    assert_eq!(steps(&many).len(), AT_ONCE - 1, "one is at work");
}
