//! A machine (a network namespace) whose addresses come and go while its gateway runs: what is bound to one of them is
//! open exactly while it is there, and never on an interface that is ignored.

use crate::behave::EXECUTABLE;
use crate::shared_address::run;
use arco_testkit::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

struct Machine {
    name: String,
    folder: tempfile::TempDir,
    gateway: Option<Child>,
}

impl Machine {
    /// One with the interfaces `eth0` and `skip0`, and no address but that of `lo`.
    fn new() -> Self {
        let name = format!("arco-m{}", std::process::id());
        let this = Self { name, folder: tempfile::tempdir().unwrap(), gateway: None };
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
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
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
