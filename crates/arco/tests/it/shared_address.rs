//! Two machines (network namespaces) whose gateways share an address: it moves when a machine dies, when its gateway
//! does, and when it is stopped.

use crate::behave::EXECUTABLE;
use arco_testkit::until;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const SHARED: &str = "10.99.0.10";

pub(crate) fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A client `c` with a bridge, and two machines on it.
struct Network {
    names: [String; 3],
    folder: tempfile::TempDir,
}

impl Network {
    /// `None` where there can be none, which is said.
    fn new() -> Option<Self> {
        if !arco_testkit::is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        if Command::new("keepalived").arg("--version").output().is_err() {
            eprintln!("SKIPPED: shared addresses: keepalived is not installed (`apt install keepalived`)");
            return None;
        }
        // Others of this process have theirs.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |letter: &str| format!("arco-t{}-{number}{letter}", std::process::id());
        let this = Self { names: [name("a"), name("b"), name("c")], folder: tempfile::tempdir().unwrap() };
        for name in &this.names {
            run(&["ip", "netns", "add", name]);
            run(&["ip", "-n", name, "link", "set", "lo", "up"]);
        }
        let client = &this.names[2];
        run(&["ip", "-n", client, "link", "add", "br0", "type", "bridge"]);
        run(&["ip", "-n", client, "address", "add", "10.99.0.1/24", "dev", "br0"]);
        run(&["ip", "-n", client, "link", "set", "br0", "up"]);
        for (at, port) in [(0, "va"), (1, "vb")] {
            let machine = &this.names[at];
            run(&["ip", "-n", client, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine]);
            run(&["ip", "-n", client, "link", "set", port, "master", "br0", "up"]);
            run(&["ip", "-n", machine, "address", "add", &format!("10.99.0.{}/24", at + 2), "dev", "eth0"]);
            run(&["ip", "-n", machine, "link", "set", "eth0", "up"]);
        }
        Some(this)
    }

    /// A command in one of the namespaces.
    fn inside(&self, at: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.names[at])).arg(program);
        command
    }

    fn start(&self, at: usize, priority: u8) -> Gateway<'_> {
        self.start_behind(at, priority, false)
    }

    /// The same; when it is `proxied`, the client is a proxy that writes PROXY headers to port 80.
    fn start_behind(&self, at: usize, priority: u8, proxied: bool) -> Gateway<'_> {
        let path = self.folder.path().join(format!("{at}.yaml"));
        let (letter, peer) = (["a", "b"][at], 3 - at);
        let yaml = format!(
            "listeners: [{{name: web, address: \"0.0.0.0:80\", protocol: http, proxy_protocol: {proxied}}}, \
             {{name: shared, address: \"{SHARED}:8080\", protocol: http}}]\n\
             routes: [{{hosts: [\"*\"], answer: {{status: 200, body: {letter}}}}}]\n\
             virtual_address: {{address: {SHARED}/24, interface: eth0, router_id: 51, priority: {priority}, \
             peers: [10.99.0.{peer}], advert_ms: 250}}\n\
             trusted_proxies: [10.99.0.1/32]\nadmin: {{address: \"127.0.0.1:9901\"}}\n"
        );
        std::fs::write(&path, yaml).unwrap();
        let log = std::fs::File::create(path.with_extension("log")).unwrap();
        let mut command = self.inside(at, EXECUTABLE);
        command.args(["gateway", "--config"]).arg(&path);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Gateway { network: self, at, child }
    }

    /// Who answers the client at the shared address.
    fn answer(&self, port: u16) -> Option<String> {
        self.answer_to(&[&format!("http://{SHARED}:{port}/")])
    }

    fn answer_to(&self, words: &[&str]) -> Option<String> {
        let mut curl = self.inside(2, "curl");
        curl.args(["-s", "-m", "5"]).args(words);
        let output = curl.output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn answered_by(&self, letter: &str, what: &str) {
        let began = Instant::now();
        for port in [80, 8080] {
            until(what, 60, || self.answer(port).filter(|it| it == letter));
        }
        eprintln!("{what}: `{letter}` answers after {:?}", began.elapsed());
    }

    fn standing(&self, at: usize) -> Option<String> {
        self.metric(at, "arco_gateway_virtual_address{")
    }

    /// The value of the first metric of a machine's gateway that begins so.
    fn metric(&self, at: usize, begin: &str) -> Option<String> {
        let mut curl = self.inside(at, "curl");
        let output = curl.args(["-s", "-m", "5", "http://127.0.0.1:9901/metrics"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|it| it.starts_with(begin))?;
        line.split(' ').next_back().map(str::to_owned)
    }

    fn pids(&self, at: usize) -> Vec<i32> {
        let output = Command::new("ip").args(["netns", "pids", &self.names[at]]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|it| it.parse().ok()).collect()
    }

    /// Ends what runs on a machine, or only what is called so.
    fn kill(&self, at: usize, only: Option<&str>) {
        for pid in self.pids(at) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if only.is_none_or(|it| line.contains(it))
                && let Some(pid) = (pid > 0).then_some(pid)
            {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for at in 0..2 {
            self.kill(at, None);
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
        for at in 0..2 {
            let file = self.folder.path().join(format!("{at}.yaml"));
            let token = arco_gateway::snapshot::StickyCookie::token(&file.to_string_lossy());
            let _ = std::fs::remove_dir_all(std::path::Path::new("/run/arco-gateway").join(token));
        }
    }
}

struct Gateway<'n> {
    network: &'n Network,
    at: usize,
    child: Child,
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        self.network.kill(self.at, None);
        let _ = self.child.wait();
    }
}

#[test]
fn a_shared_address_moves_to_the_machine_that_is_well() {
    let Some(network) = Network::new() else { return };
    let b = network.start(1, 100);
    network.answered_by("b", "the only machine has it");
    let a = network.start(0, 150);
    network.answered_by("a", "the machine with the higher priority takes it");
    until("both say so", 60, || (network.standing(0)? == "2" && network.standing(1)? == "1").then_some(()));

    // The machine is gone: neither wire nor processes.
    run(&["ip", "-n", &network.names[2], "link", "set", "va", "down"]);
    network.answered_by("b", "a machine dies");
    drop(a);
    run(&["ip", "-n", &network.names[0], "address", "flush", "dev", "eth0"]);
    run(&["ip", "-n", &network.names[0], "address", "add", "10.99.0.2/24", "dev", "eth0"]);
    run(&["ip", "-n", &network.names[2], "link", "set", "va", "up"]);

    // Its gateway is gone, keepalived is there.
    let a = network.start(0, 150);
    network.answered_by("a", "the machine is back");
    network.kill(0, Some("--config"));
    network.answered_by("b", "only the gateway dies");
    assert!(!network.pids(0).is_empty(), "keepalived outlives the gateway");
    drop(a);
    run(&["ip", "-n", &network.names[0], "address", "flush", "dev", "eth0"]);
    run(&["ip", "-n", &network.names[0], "address", "add", "10.99.0.2/24", "dev", "eth0"]);

    // It is stopped: the address goes first, and nothing stays.
    let mut a = network.start(0, 150);
    network.answered_by("a", "the gateway is back");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(a.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    network.answered_by("b", "a gateway is stopped");
    assert!(a.child.wait().unwrap().success());
    until("nothing is left", 60, || network.pids(0).is_empty().then_some(()));
    drop((a, b));
}

#[test]
fn a_gateway_behind_a_proxy_keeps_its_address_while_it_is_well() {
    let Some(network) = Network::new() else { return };
    let b = network.start(1, 100);
    network.answered_by("b", "the only machine has it");
    let a = network.start_behind(0, 150, true);
    let proxied = || network.answer_to(&["--haproxy-protocol", &format!("http://{SHARED}/")]);
    until("the machine behind the proxy takes it", 60, || proxied().filter(|it| it == "a"));
    // Nobody else asks now: what is answered is keepalived's question, which more than two silences would have ended.
    let count = || network.metric(0, "arco_gateway_requests_total{host=\"*\",class=\"2xx\"}")?.parse::<u64>().ok();
    let before = until("it counts", 60, count);
    until("keepalived has asked and was answered", 60, || count().filter(|it| *it > before + 3));
    until("both say so", 60, || (network.standing(0)? == "2" && network.standing(1)? == "1").then_some(()));
    network.kill(0, Some("--config"));
    network.answered_by("b", "only the gateway behind the proxy dies");
    drop((a, b));
}

/// Whether a client gets a connection there.
fn opens(network: &Network, address: &str) -> bool {
    let mut curl = network.inside(2, "curl");
    let output = curl.args(["-s", "-m", "5", "-o", "/dev/null", &format!("http://{address}/")]).output().unwrap();
    // 52: connected, and nothing was answered; 56: and the connection was reset. 7: refused.
    [Some(0), Some(52), Some(56)].contains(&output.status.code())
}

#[test]
fn a_whole_server_shares_its_address_and_serves_a_port_on_it_alone() {
    let Some(network) = Network::new() else { return };
    let (config, data_dir) = (network.folder.path().join("arco.toml"), network.folder.path().join("data"));
    std::fs::write(
        &config,
        format!(
            "[server]\ndata_dir = \"{}\"\n[gateway.virtual_address]\naddress = \"{SHARED}/24\"\ninterface = \"eth0\"\n\
             router_id = 53\npriority = 100\npeers = [\"10.99.0.3\"]\n",
            data_dir.display()
        ),
    )
    .unwrap();
    let log = std::fs::File::create(network.folder.path().join("server.log")).unwrap();
    let mut command = network.inside(0, EXECUTABLE);
    command.arg("server").arg("--config").arg(&config).args(["--http-listen", "0.0.0.0:80"]);
    for listener in ["https", "console", "api", "registry"] {
        command.args([&format!("--{listener}-listen"), "127.0.0.1:0"]);
    }
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let mut server = Gateway { network: &network, at: 0, child };
    let arco = |words: &[&str]| {
        let mut command = network.inside(0, EXECUTABLE);
        command.args(words).env("ARCO_CONTEXT", data_dir.join("admin.toml")).env("NO_COLOR", "1").stdin(Stdio::null());
        let output = command.output().unwrap();
        (
            output.status.code(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    until("the platform answers", 60, || (arco(&["list"]).0 == Some(0)).then_some(()));
    until("the gateway answers at the shared address", 60, || opens(&network, SHARED).then_some(()));
    let config = config.to_str().unwrap();
    let told = arco(&["doctor", "--config", config]).1;
    assert!(told.contains(&format!("this machine has {SHARED} (group 53 on eth0, priority 100; keepalived")), "{told}");

    // A component is enough: what it would run has nobody to come from here.
    let words = [
        "deploy",
        "image:registry.invalid/db:1",
        "--app",
        "shop",
        "--component",
        "db",
        "--port",
        "9000/tcp",
        "--detach",
    ];
    let (status, said) = arco(&words);
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = arco(&["route", "add", "shop/db", "--tcp", "10042", "--address", SHARED]);
    assert_eq!(status, Some(0), "{said}");
    until("the port is open at the shared address", 60, || opens(&network, &format!("{SHARED}:10042")).then_some(()));
    assert!(!opens(&network, "10.99.0.2:10042"), "and at no other");
    assert_eq!(arco(&["delete", "shop", "--yes"]).0, Some(0));
    until("the port is closed", 60, || (!opens(&network, &format!("{SHARED}:10042"))).then_some(()));

    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    until("the address is given away", 60, || (!opens(&network, SHARED)).then_some(()));
    assert!(server.child.wait().unwrap().success());
    until("nothing is left", 60, || network.pids(0).is_empty().then_some(()));
}
