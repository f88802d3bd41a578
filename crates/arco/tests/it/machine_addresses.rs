//! A machine (a network namespace) with several addresses, which come and go while its gateway runs: what is bound to one of
//! them is open exactly while it is there, and never on an interface that is ignored; each is answered from.

use crate::behave::EXECUTABLE;
use crate::shared_address::run;
use arco_testkit::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

struct Machine {
    name: String,
    folder: tempfile::TempDir,
    gateway: Option<Child>,
    /// The namespace of another machine, once there is one.
    other: Option<String>,
}

impl Machine {
    /// One with the interfaces `eth0` and `skip0`, and no address but that of `lo`.
    fn new() -> Self {
        // Others of this process have theirs.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("arco-m{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let this = Self { name, folder: tempfile::tempdir().unwrap(), gateway: None, other: None };
        run(&["ip", "netns", "add", &this.name]);
        run(&["ip", "-n", &this.name, "link", "set", "lo", "up"]);
        for interface in ["eth0", "skip0"] {
            run(&["ip", "-n", &this.name, "link", "add", interface, "type", "bridge"]);
            run(&["ip", "-n", &this.name, "link", "set", interface, "up"]);
        }
        this
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    fn start(&mut self, yaml: &str) {
        let path = self.folder.path().join("gateway.yaml");
        std::fs::write(&path, yaml).unwrap();
        let log = std::fs::File::create(path.with_extension("log")).unwrap();
        let mut command = self.inside(EXECUTABLE);
        command.args(["gateway", "--config"]).arg(&path);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.gateway = Some(command.spawn().unwrap());
    }

    fn address(&self, how: &str, address: &str, interface: &str) {
        run(&["ip", "-n", &self.name, "address", how, &format!("{address}/24"), "dev", interface]);
    }

    /// A wire to another machine: each end has its addresses.
    fn connect(&mut self, here: &[&str], there: &[&str]) {
        let other = format!("{}o", self.name);
        run(&["ip", "netns", "add", &other]);
        let here_in = self.name.as_str();
        let there_in = self.other.insert(other).as_str();
        run(&["ip", "-n", here_in, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", there_in]);
        for namespace in [here_in, there_in] {
            run(&["ip", "-n", namespace, "link", "set", "wire", "up"]);
        }
        for (namespace, addresses) in [(here_in, here), (there_in, there)] {
            for address in addresses {
                let mut words = vec!["ip", "-n", namespace, "address", "add", address, "dev", "wire"];
                // One of IPv6 waits until it was found to be nobody else's, unless one says so.
                words.extend(address.contains(':').then_some("nodad"));
                run(&words);
            }
        }
    }

    fn answers(&self, address: &str) -> Option<()> {
        let mut curl = self.inside("curl");
        let output = curl.args(["-s", "--noproxy", "*", "-m", "60", &format!("http://{address}/")]).output().unwrap();
        (output.status.success() && output.stdout == b"here").then_some(())
    }

    /// Whether somebody listens there, as the kernel tells it.
    fn listens(&self, address: &str, port: u16) -> bool {
        let address: Ipv4Addr = address.parse().unwrap();
        let row = format!(" {:08X}:{port:04X} 00000000:0000 0A ", u32::from_ne_bytes(address.octets()));
        let output = self.inside("cat").arg("/proc/net/tcp").output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stdout).lines().any(|it| it.contains(&row))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("gateway.log"));
            eprintln!("the gateway's log:\n{}", log.unwrap_or_default());
        }
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output();
        let pids = pids.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default();
        for pid in pids.split_whitespace().filter_map(|it| it.parse::<i32>().ok()).filter(|it| *it > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some(child) = &mut self.gateway {
            let _ = child.wait();
        }
        for namespace in [Some(&self.name), self.other.as_ref()].into_iter().flatten() {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

/// A socket of a namespace; it stays there.
fn socket_in(namespace: &str, address: SocketAddr) -> UdpSocket {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    let bind = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind(address).unwrap()
    };
    std::thread::spawn(bind).join().unwrap()
}

#[test]
fn listeners_follow_the_addresses_of_their_machine() {
    if !arco_testkit::is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let mut machine = Machine::new();
    machine.start(
        "listeners: [{name: home, address: \"127.0.0.1:80\", protocol: http}, {name: one, address: \"10.98.0.5:81\", protocol: http}, \
         {name: skipped, address: \"10.98.1.5:82\", protocol: http}, {name: two, address: \"10.98.2.5:83\", protocol: http}]\n\
         routes: [{hosts: [\"*\"], answer: {status: 200, body: here}}]\n\
         ignore_interfaces: [\"skip*\"]\n",
    );
    until("the gateway serves", 60, || machine.answers("127.0.0.1:80"));
    assert!(!machine.listens("10.98.0.5", 81), "there is no such address yet");
    machine.address("add", "10.98.0.5", "eth0");
    until("an address comes", 60, || machine.answers("10.98.0.5:81"));
    machine.address("add", "10.98.1.5", "skip0");
    machine.address("add", "10.98.2.5", "eth0");
    // Whoever has seen this one has seen the one before.
    until("another address comes", 60, || machine.answers("10.98.2.5:83"));
    assert!(!machine.listens("10.98.1.5", 82), "its interface is ignored");
    machine.address("delete", "10.98.0.5", "eth0");
    until("an address goes", 60, || (!machine.listens("10.98.0.5", 81)).then_some(()));
    machine.answers("10.98.2.5:83").expect("the other one is served on");
    machine.address("add", "10.98.0.5", "eth0");
    until("it is back", 60, || machine.answers("10.98.0.5:81"));
    run(&["ip", "-n", &machine.name, "link", "delete", "eth0"]);
    until("its interface goes", 60, || {
        (!machine.listens("10.98.0.5", 81) && !machine.listens("10.98.2.5", 83)).then_some(())
    });
    machine.answers("127.0.0.1:80").expect("what needs no address is served on");
}

#[test]
fn datagrams_are_answered_from_the_address_that_was_asked() {
    if !arco_testkit::is_root() {
        return;
    }
    let ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    if !ipv6 {
        eprintln!("SKIPPED: UDP by IPv6: this machine has none");
    }
    let families = if ipv6 { 2 } else { 1 };
    let mut machine = Machine::new();
    let here = ["10.98.3.5/24", "10.98.3.6/24", "fd98:3::5/64", "fd98:3::6/64"];
    machine.connect(&here[..2 * families], &["10.98.3.1/24", "fd98:3::1/64"][..families]);
    let endpoint = socket_in(&machine.name, ([127, 0, 0, 1], 0).into());
    let mut listeners = "{name: four, address: \"0.0.0.0:5300\", protocol: udp, upstream: u}".to_owned();
    if ipv6 {
        listeners += ", {name: all, address: \"[::]:5301\", protocol: udp, upstream: u}";
    }
    machine.start(&format!(
        "listeners: [{listeners}]\nupstreams: [{{name: u, endpoints: [\"{}\"]}}]\n",
        endpoint.local_addr().unwrap()
    ));
    endpoint.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    std::thread::spawn(move || {
        let mut word = [0; 100];
        while let Ok((length, from)) = endpoint.recv_from(&mut word) {
            endpoint.send_to(&word[..length], from).unwrap();
        }
    });
    let other = machine.other.clone().unwrap();
    // What is for all addresses of IPv6 is for those of IPv4 as well.
    for port in if ipv6 { 5300..5302 } else { 5300..5301 } {
        for address in here[..2 * families].iter().filter(|it| port == 5301 || !it.contains(':')) {
            let address: IpAddr = address.split('/').next().unwrap().parse().unwrap();
            let own = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let client = socket_in(&other, own.parse().unwrap());
            // It takes nothing from any other address.
            client.connect((address, port)).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            until(&format!("an answer of {address} port {port}"), 60, || {
                client.send(b"hello").ok()?;
                let mut answer = [0; 100];
                let length = client.recv(&mut answer).ok()?;
                (&answer[..length] == b"hello").then_some(())
            });
        }
    }
}
