//! Who reaches whom: real bridge, rules and namespaces, inside a network namespace that each test makes for itself.

use crate::host_root::in_time;
use arco_model::id::{ComponentId, InstanceId};
use arco_orchestrator::local::network::rules::{BuildWay, InstanceRole};
use arco_orchestrator::local::network::{Network, NetworkOptions};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long to wait for an answer that must come; only a failed test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait for one that must not come: packets are lost, not refused.
const SHORT: Duration = Duration::from_millis(400);

/// Runs a test on a thread in a fresh network namespace that stands for the machine.
fn on_a_machine<F: Future<Output = ()>>(test: impl FnOnce(Machine) -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() || Command::new("nft").arg("-v").output().is_err() {
        eprintln!("SKIPPED: needs root and nft");
        return;
    }
    let work = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let machine = Machine::new();
        runtime.block_on(test(machine));
    };
    std::thread::spawn(work).join().unwrap();
}

/// A machine with one neighbour, "the world", that has public and private addresses.
struct Machine {
    dir: tempfile::TempDir,
    world: File,
}

impl Machine {
    fn new() -> Self {
        ip("link set lo up");
        let world = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let world = world.join().unwrap();
        // `ip link set netns` takes a pid or a name; /proc/self/fd names the open namespace.
        let name = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&world));
        ip(&format!("link add up0 type veth peer name down0 netns {name}"));
        ip("addr add 198.51.100.2/24 dev up0");
        ip("link set up0 up");
        ip("route add default via 198.51.100.1");
        inside(&world, || {
            for address in
                ["198.51.100.1/24", "203.0.113.80/32", "192.168.77.1/32", "10.200.0.1/32", "169.254.169.254/32"]
            {
                ip(&format!("addr add {address} dev down0"));
            }
            ip("link set down0 up");
        });
        Self { dir: tempfile::tempdir().unwrap(), world }
    }

    async fn network(&self, alive: &BTreeSet<InstanceId>) -> Network {
        let options = NetworkOptions {
            dir: self.dir.path().join("network"),
            owner: self.dir.path().to_string_lossy().into_owned(),
            pool: None,
            allowed_networks: vec!["192.168.77.0/24".parse().unwrap()],
            allowed_endpoints: vec!["10.200.0.1:3128".parse().unwrap()],
            resolvers: Vec::new(),
            build_way: BuildWay::Direct,
        };
        Network::open(options, alive).await.unwrap()
    }
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Runs something on a thread inside a namespace. Sockets made there stay there.
fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Answers every connection with a name.
fn serve(namespace: &File, address: &str, name: &'static str) {
    let listener = inside(namespace, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
        }
    });
}

fn connect(namespace: &File, to: SocketAddrV4) -> std::io::Result<String> {
    connect_within(namespace, to, PATIENCE)
}

fn is_cut_off(namespace: &File, to: SocketAddrV4) -> bool {
    connect_within(namespace, to, SHORT).is_err()
}

fn connect_within(namespace: &File, to: SocketAddrV4, limit: Duration) -> std::io::Result<String> {
    inside(namespace, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(to), limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

struct Instance {
    id: InstanceId,
    address: Ipv4Addr,
    netns: PathBuf,
}

impl Instance {
    fn ns(&self) -> File {
        File::open(&self.netns).unwrap()
    }
}

fn component(number: u64) -> ComponentId {
    ComponentId::from_parts(number, number)
}

async fn known(network: &Network, number: u64, application: &str, may_call: &[u64]) -> Ipv4Addr {
    let may_call = may_call.iter().map(|it| component(*it)).collect();
    let (tenant, application) = ("default".parse().unwrap(), application.parse().unwrap());
    network.component(&component(number), &tenant, &application, &may_call).await.unwrap()
}

async fn attach(network: &Network, owner: u64, number: u64, role: InstanceRole) -> Instance {
    let id = InstanceId::from_parts(number, number * 77);
    let it = network.attach(&id, &component(owner), Some(role)).await.unwrap();
    Instance { id, address: it.address.unwrap(), netns: it.netns }
}

async fn close(network: Network, instances: &[&Instance]) {
    for it in instances {
        network.detach(&it.id).await.unwrap();
        assert!(!it.netns.exists());
    }
    network.close().await.unwrap();
    let links = String::from_utf8(Command::new("ip").args(["-o", "link"]).output().unwrap().stdout).unwrap();
    assert!(!links.contains("arco-") && !links.contains("eth0"), "{links}");
    let rules = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("arco_"));
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

#[test]
fn instances_reach_their_application_what_they_are_bound_to_and_the_outside() {
    on_a_machine(|machine| async move {
        let network = machine.network(&BTreeSet::new()).await;
        let here = File::open("/proc/thread-self/ns/net").unwrap();
        let (web_at, _, other_at) = (
            known(&network, 1, "shop", &[]).await,
            known(&network, 2, "shop", &[]).await,
            known(&network, 3, "blog", &[]).await,
        );
        let web = attach(&network, 1, 11, InstanceRole::Service).await;
        let store = attach(&network, 2, 12, InstanceRole::Service).await;
        let blog = attach(&network, 3, 13, InstanceRole::Service).await;
        let build = attach(&network, 3, 14, InstanceRole::Build).await;
        for it in [&web, &store, &blog] {
            serve(&it.ns(), "0.0.0.0:80", "instance");
            network.set_ready(&it.id, true, false).await.unwrap();
        }
        serve(&here, "0.0.0.0:7070", "machine");
        let gateway = network.gateway().await;
        serve(&here, &format!("{gateway}:53"), "dns");
        for address in ["0.0.0.0:443", "0.0.0.0:3128"] {
            serve(&machine.world, address, "world");
        }
        let own: Ipv4Addr = "198.51.100.2".parse().unwrap();
        let to = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        let rows = [
            ("same application", &web, at(store.address, 80), true),
            ("same application, stable address", &store, at(web_at, 80), true),
            ("itself by its stable address", &web, at(web_at, 80), true),
            ("another application", &web, at(blog.address, 80), false),
            ("another application, stable address", &web, at(other_at, 80), false),
            ("DNS", &web, at(gateway, 53), true),
            ("the machine on the bridge", &web, at(gateway, 7070), false),
            ("the machine on another address", &web, at(own, 7070), false),
            ("metadata", &web, to("169.254.169.254:443"), false),
            ("public", &web, to("203.0.113.80:443"), true),
            ("a private network", &web, to("10.200.0.1:443"), true),
            ("build: DNS", &build, at(gateway, 53), true),
            ("build: public", &build, to("203.0.113.80:443"), true),
            ("build: private", &build, to("10.200.0.1:443"), false),
            ("build: allowed network", &build, to("192.168.77.1:443"), true),
            ("build: allowed endpoint", &build, to("10.200.0.1:3128"), true),
            ("build: metadata", &build, to("169.254.169.254:443"), false),
            ("build: the machine", &build, at(own, 7070), false),
            ("build: an instance of its component", &build, at(blog.address, 80), false),
            ("build: a stable address", &build, at(other_at, 80), false),
            ("an instance to a build", &blog, at(build.address, 80), false),
        ];
        for (what, from, to, reached) in rows {
            let found = connect_within(&from.ns(), to, if reached { PATIENCE } else { SHORT });
            assert_eq!(found.is_ok(), reached, "{what}: {found:?}");
        }
        // Packets that leave carry the machine's address.
        assert_eq!(connect(&web.ns(), to("203.0.113.80:443")).unwrap(), format!("world {own}"));
        // A binding opens the way, in that direction only.
        known(&network, 1, "shop", &[3]).await;
        assert!(connect(&web.ns(), at(other_at, 80)).is_ok());
        assert!(is_cut_off(&blog.ns(), at(web_at, 80)));
        // The machine itself (the gateway) dials instances and stable addresses.
        assert!(connect(&here, at(blog.address, 80)).is_ok());
        assert!(connect(&here, at(web_at, 80)).is_ok());
        // Published ports of the machine.
        network.publish([7070].into()).await.unwrap();
        assert!(connect(&web.ns(), at(own, 7070)).is_ok());
        assert!(is_cut_off(&build.ns(), at(own, 7070)));
        // The world cannot route into instances.
        inside(&machine.world, || ip("route add 10.64.0.0/10 via 198.51.100.2"));
        assert!(is_cut_off(&machine.world, at(web.address, 80)));
        close(network, &[&web, &store, &blog, &build]).await;
    });
}

#[test]
fn a_stable_address_leads_to_ready_instances_only() {
    on_a_machine(|machine| async move {
        let network = machine.network(&BTreeSet::new()).await;
        let address = known(&network, 1, "shop", &[]).await;
        known(&network, 2, "shop", &[]).await;
        let (one, two) = (
            attach(&network, 1, 21, InstanceRole::Service).await,
            attach(&network, 1, 22, InstanceRole::Service).await,
        );
        let caller = attach(&network, 2, 23, InstanceRole::Service).await;
        serve(&one.ns(), "0.0.0.0:80", "one");
        serve(&two.ns(), "0.0.0.0:80", "two");
        let answers = || {
            let found = (0..8).map(|_| connect(&caller.ns(), at(address, 80)).map(|it| it[..3].to_owned()));
            found.collect::<Result<BTreeSet<_>, _>>()
        };
        assert_eq!(answers().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "refused, not lost");
        network.set_ready(&one.id, true, false).await.unwrap();
        assert_eq!(answers().unwrap(), ["one".to_owned()].into());
        network.set_ready(&two.id, true, false).await.unwrap();
        assert_eq!(answers().unwrap(), ["one".to_owned(), "two".to_owned()].into());
        network.set_ready(&one.id, true, true).await.unwrap();
        assert_eq!(answers().unwrap(), ["two".to_owned()].into());
        // Better a leaving one than none.
        network.set_ready(&two.id, false, false).await.unwrap();
        assert_eq!(answers().unwrap(), ["one".to_owned()].into());
        // UDP as well.
        let server = inside(&one.ns(), || UdpSocket::bind("0.0.0.0:5353").unwrap());
        let client = inside(&caller.ns(), || UdpSocket::bind("0.0.0.0:0").unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(b"hello", (address, 5353)).unwrap();
        let mut buffer = [0; 16];
        let (_, peer) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"answer", peer).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, (address, 5353).into()));

        // Another process takes over: same addresses, and what was ready still is.
        drop(network);
        let network = machine.network(&[one.id.clone(), caller.id.clone()].into()).await;
        assert!(!two.netns.exists() && one.netns.exists());
        assert_eq!(network.stable_address(&component(1)).await, Some(address));
        assert_eq!(connect(&caller.ns(), at(address, 80)).unwrap(), format!("one {}", caller.address));
        close(network, &[&one, &caller]).await;
    });
}

#[test]
fn builds_behind_a_proxy_reach_nothing_else() {
    on_a_machine(|machine| async move {
        let network = machine.network(&BTreeSet::new()).await;
        let here = File::open("/proc/thread-self/ns/net").unwrap();
        known(&network, 1, "shop", &[]).await;
        let web = attach(&network, 1, 51, InstanceRole::Service).await;
        let build = attach(&network, 1, 52, InstanceRole::Build).await;
        let gateway = network.gateway().await;
        for port in [53, 3100, 7070] {
            serve(&here, &format!("{gateway}:{port}"), "machine");
        }
        for address in ["0.0.0.0:443", "0.0.0.0:3128"] {
            serve(&machine.world, address, "world");
        }
        network.set_build_proxy(3100).await.unwrap();
        let to = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        for (what, from, to, reached) in [
            ("build: the proxy", &build, at(gateway, 3100), true),
            ("build: another port", &build, at(gateway, 7070), false),
            ("build: DNS", &build, at(gateway, 53), false),
            ("build: public", &build, to("203.0.113.80:443"), false),
            ("build: allowed network", &build, to("192.168.77.1:443"), false),
            ("build: allowed endpoint", &build, to("10.200.0.1:3128"), false),
            ("an instance: the proxy", &web, at(gateway, 3100), false),
            ("an instance: DNS", &web, at(gateway, 53), true),
            ("an instance: public", &web, to("203.0.113.80:443"), true),
        ] {
            let found = connect(&from.ns(), to);
            assert_eq!(found.is_ok(), reached, "{what}: {found:?}");
        }
        close(network, &[&web, &build]).await;
    });
}

#[test]
fn connections_of_an_instance_that_ended_are_forgotten() {
    if Command::new("conntrack").arg("-V").output().is_err() {
        eprintln!("SKIPPED: needs conntrack");
        return;
    }
    on_a_machine(|machine| async move {
        let network = machine.network(&BTreeSet::new()).await;
        let stable = known(&network, 1, "shop", &[]).await;
        known(&network, 2, "shop", &[]).await;
        let (web, store) = (
            attach(&network, 1, 61, InstanceRole::Service).await,
            attach(&network, 2, 62, InstanceRole::Service).await,
        );
        serve(&web.ns(), "0.0.0.0:80", "web");
        serve(&machine.world, "0.0.0.0:443", "world");
        network.set_ready(&web.id, true, false).await.unwrap();
        connect(&web.ns(), "203.0.113.80:443".parse().unwrap()).unwrap();
        connect(&store.ns(), at(stable, 80)).unwrap();
        let noted = || {
            let listed = Command::new("conntrack").args(["-L", "-f", "ipv4"]).output().unwrap().stdout;
            let listed = String::from_utf8_lossy(&listed).into_owned();
            listed.lines().filter(|it| it.contains(&format!("src={} ", web.address))).count()
        };
        assert_eq!(noted(), 2, "one from it, one to it by its stable address");
        network.detach(&web.id).await.unwrap();
        assert_eq!(noted(), 0);
        close(network, &[&store]).await;
    });
}

#[test]
fn servers_that_start_at_once_take_different_pools() {
    on_a_machine(|machine| async move {
        let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
        let open = |dir: &tempfile::TempDir| {
            let options = NetworkOptions {
                dir: dir.path().join("network"),
                owner: dir.path().to_string_lossy().into_owned(),
                pool: None,
                allowed_networks: Vec::new(),
                allowed_endpoints: Vec::new(),
                resolvers: Vec::new(),
                build_way: BuildWay::Direct,
            };
            async move { Network::open(options, &BTreeSet::new()).await.unwrap() }
        };
        let all = futures_util::future::join_all(dirs.iter().map(open)).await;
        let mut pools = BTreeSet::new();
        for network in &all {
            pools.insert(network.pool().await);
        }
        assert_eq!(pools.len(), all.len());
        for network in &all {
            network.close().await.unwrap();
        }
        drop(machine);
    });
}

#[test]
fn a_foreign_chain_that_drops_gets_marked_rules_and_loses_them() {
    on_a_machine(|machine| async move {
        let foreign =
            "table ip filter {\n chain FORWARD {\n type filter hook forward priority 0\n policy drop\n }\n}\n";
        let path = machine.dir.path().join("foreign.nft");
        std::fs::write(&path, foreign).unwrap();
        assert!(Command::new("nft").arg("-f").arg(&path).status().unwrap().success());
        let network = machine.network(&BTreeSet::new()).await;
        known(&network, 1, "shop", &[]).await;
        let web = attach(&network, 1, 31, InstanceRole::Service).await;
        serve(&machine.world, "0.0.0.0:443", "world");
        assert!(connect(&web.ns(), "203.0.113.80:443".parse().unwrap()).is_ok());
        close(network, &[&web]).await;
    });
}

#[test]
fn an_instance_is_connected_quickly() {
    on_a_machine(|machine| async move {
        let network = machine.network(&BTreeSet::new()).await;
        known(&network, 1, "shop", &[]).await;
        let mut times = Vec::new();
        let mut made = Vec::new();
        for number in 41..51 {
            let began = Instant::now();
            made.push(attach(&network, 1, number, InstanceRole::Service).await);
            times.push(began.elapsed());
        }
        times.sort();
        eprintln!("attach: median {:?}, worst {:?}", times[5], times[9]);
        // What grows with the number of instances would show; the figure itself is the benchmark's.
        assert!(times[5] < in_time(Duration::from_secs(20)));
        assert!(Path::new(&made[0].netns).exists());
        close(network, &made.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn two_hundred_components_load_quickly() {
    on_a_machine(|machine| async move {
        use arco_orchestrator::local::network::rules::{ComponentNet, InstanceNet, State, ruleset};
        let mut state = State::new("10.64.0.0/20".parse().unwrap(), "abcdef");
        for number in 0..200u64 {
            let address = state.free_stable().unwrap();
            let (tenant, application) = ("default".to_owned(), format!("app-{}", number / 10));
            let may_call = [component((number + 37) % 200)].into();
            state.components.insert(component(number), ComponentNet { address, tenant, application, may_call });
            for copy in 0..3 {
                let address = state.free_instance().unwrap();
                let role = InstanceRole::Service;
                let it = InstanceNet { address, component: component(number), role, ready: true, draining: false };
                state.instances.insert(InstanceId::from_parts(number, copy), it);
            }
        }
        assert_eq!(ruleset(&state), ruleset(&state.clone()), "equal states give equal text");
        let path = machine.dir.path().join("large.nft");
        std::fs::write(&path, ruleset(&state)).unwrap();
        let mut times: Vec<_> = (0..3)
            .map(|_| {
                let began = Instant::now();
                let done = Command::new("nft").arg("-f").arg(&path).output().unwrap();
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                began.elapsed()
            })
            .collect();
        times.sort();
        eprintln!("200 components, 600 instances: {:?}", times[1]);
        assert!(times[1] < in_time(Duration::from_secs(30)));
    });
}
