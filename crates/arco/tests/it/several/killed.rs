//! Every role in processes of its own, two of each; one at random is killed again and again, while components are deployed,
//! scaled, started anew and deleted on a cluster with fake nodes.
//!
//! What must hold: every operation succeeds, every component has what was asked of it last, and nothing is left of those
//! that were deleted. `ARCO_FAULT_SECONDS` says for how long, `ARCO_SEED` repeats a run.

use super::control_plane::{fake_nodes, image, on_kubernetes};
use super::{Shared, begun};
use arco_testkit::{Platform, Random, until};
use std::collections::{BTreeMap, VecDeque};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long it goes on when nothing is said.
const SECONDS: u64 = 60;
/// Most components at a time.
const COMPONENTS: usize = 10;
/// Rounds after which an operation must have ended.
const ROUNDS_OPEN: usize = 2;

/// What was asked of the components.
struct Asked {
    /// Instances of each that is there.
    there: BTreeMap<String, u64>,
    made: usize,
}

impl Asked {
    /// Asks for one change at random of a component with which nothing is under way; returns the component, its operation
    /// and what was asked.
    fn change(&mut self, through: &Platform, image: &str, busy: &[&str], random: &mut Random) -> [String; 3] {
        let calm: Vec<String> = self.there.keys().filter(|it| !busy.contains(&it.as_str())).cloned().collect();
        let name = match random.below(calm.len() as u64 + 1) as usize {
            at if at < calm.len() => calm[at].clone(),
            _ if self.there.len() < COMPONENTS => {
                self.made += 1;
                format!("c{}", self.made)
            }
            _ => calm.first().cloned().unwrap_or_else(|| panic!("{busy:?} are all that is there")),
        };
        let reference = format!("demo/{name}");
        let replicas = (1 + random.below(3)).to_string();
        let deploy = ["deploy", image, "--app", "demo", "--component", &name, "--port", "8080", "--detach"];
        let words: &[&str] = match (self.there.contains_key(&name), random.below(4)) {
            (false, _) => &deploy,
            (true, 0) => &["restart", &reference, "--detach"],
            (true, 1) => &["delete", &reference, "--yes", "--detach"],
            (true, _) => &["scale", &reference, "--replicas", &replicas, "--detach"],
        };
        let operation = begun(through, words);
        let said = words.join(" ");
        match words[0] {
            "deploy" => self.there.insert(name.clone(), 1),
            "delete" => self.there.remove(&name),
            "scale" => self.there.insert(name.clone(), replicas.parse().unwrap()),
            _ => None,
        };
        [name, operation, said]
    }
}

/// Workloads of the tenant by the name of their component, and their pods that are to stay.
fn in_the_cluster(kubeconfig: &str, namespace: &str) -> BTreeMap<String, (usize, usize)> {
    let mut found = BTreeMap::<String, (usize, usize)>::new();
    for kind in ["deployments", "pods"] {
        let template = "{range .items[*]}{.metadata.labels.arco\\.internal/name}{\"\\n\"}{end}";
        let output = Command::new("kubectl")
            .args(["--kubeconfig", kubeconfig, "-n", namespace, "get", kind, "-l", "arco.internal/component", "-o"])
            .arg(format!("jsonpath={template}"))
            .output()
            .expect("kubectl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for name in String::from_utf8_lossy(&output.stdout).lines() {
            let of = found.entry(name.to_owned()).or_default();
            if kind == "pods" { of.1 += 1 } else { of.0 += 1 }
        }
    }
    found
}

#[test]
#[ignore = "kills roles for ARCO_FAULT_SECONDS: make test-faults-cluster"]
fn random_roles_are_killed_and_every_operation_ends_with_the_truth() {
    let Some(kubeconfig) = fake_nodes() else { return };
    let Some(shared) = Shared::make() else { return };
    let seconds = std::env::var("ARCO_FAULT_SECONDS").ok().and_then(|it| it.parse().ok()).unwrap_or(SECONDS);
    let mut random = Random::seeded();
    let prefix = format!("k{}-", std::process::id());
    let settings = on_kubernetes(&kubeconfig, &prefix);
    let (api, controller) = (["api", "registry", "console"], ["controller", "console"]);
    let (builder, keeper) = (["builder", "console"], ["eventlog", "console"]);
    let roles = [&api[..], &api, &controller, &controller, &builder, &builder, &keeper, &keeper];
    let mut servers: Vec<Platform> = roles.iter().map(|it| shared.server(it, &settings)).collect();
    let image = image(&shared);

    let mut asked = Asked { there: BTreeMap::new(), made: 0 };
    let mut open: VecDeque<Vec<[String; 3]>> = VecDeque::new();
    let (mut operations, mut kills) = (0, [0; 8]);
    let (began, wanted) = (Instant::now(), Duration::from_secs(seconds));
    while began.elapsed() < wanted || !open.is_empty() {
        let goes_on = began.elapsed() < wanted;
        let victim = random.below(servers.len() as u64) as usize;
        let through = usize::from(victim == 0);
        let mut round = Vec::new();
        for _ in 0..if goes_on { 1 + random.below(4) } else { 0 } {
            let busy: Vec<&str> = open.iter().flatten().chain(&round).map(|it: &[String; 3]| it[0].as_str()).collect();
            if busy.len() < COMPONENTS {
                round.push(asked.change(&servers[through], &image, &busy, &mut random));
            }
        }
        operations += round.len();
        if goes_on {
            open.push_back(round);
            std::thread::sleep(Duration::from_millis(random.below(2_000))); // the moment of the fault
            servers[victim].kill();
            kills[victim] += 1;
        }
        if open.len() > ROUNDS_OPEN || !goes_on {
            for [_, operation, words] in open.pop_front().unwrap() {
                let ended = servers[through].ended(&operation, 180);
                let at = began.elapsed();
                assert_eq!(ended["status"], "succeeded", "{words}, at {at:?} with {:?} killed: {ended}", roles[victim]);
            }
        }
        if goes_on {
            servers[victim].boot();
        }
    }
    eprintln!("{operations} operations in {:?}; killed: {kills:?}", began.elapsed());

    for (name, replicas) in &asked.there {
        let reference = format!("demo/{name}");
        let status = until(&format!("{reference} runs with {replicas}"), 120, || {
            Some(servers[0].status(&reference))
                .filter(|it| it["status"] == "running" && it["ready_replicas"] == *replicas)
                .filter(|it| it["instances"].as_array().is_some_and(|it| it.len() as u64 == *replicas))
        });
        assert_eq!(status["replicas"], *replicas, "{status}");
    }
    let namespace = format!("{prefix}default");
    let wanted: BTreeMap<_, _> = asked.there.iter().map(|(name, pods)| (name.clone(), (1, *pods as usize))).collect();
    until("the cluster has exactly what was asked", 120, || {
        (in_the_cluster(&kubeconfig, &namespace) == wanted).then_some(())
    });
    if !asked.there.is_empty() {
        let outcome = servers[0].arco(&["delete", "demo", "--yes"]);
        assert_eq!(outcome.status, 0, "{outcome:?}");
    }
    until("nothing is left in the cluster", 120, || in_the_cluster(&kubeconfig, &namespace).is_empty().then_some(()));
    for it in &mut servers {
        assert!(it.stop(), "{}", it.log());
    }
}
