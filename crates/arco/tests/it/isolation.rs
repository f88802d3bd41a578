//! What an instance reaches and may do: nothing of other tenants, of the control plane and of the machine.

use crate::behave::{EXECUTABLE, good, source};
use arco_api::client::{Client, Context};
use arco_api::wire::CreateTenant;
use arco_testkit::{Platform, is_root, until};
use std::net::TcpListener;

fn make_tenant(platform: &Platform, name: &str) {
    let context = Context::load(&platform.data_dir().join("admin.toml")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let request = CreateTenant { name: name.to_owned(), memory_quota_mb: 0 };
    runtime.block_on(Client::new(&context).unwrap().create_tenant(&request)).unwrap();
}

/// An instance of a tenant, and what can be asked in it.
struct Inside<'p> {
    platform: &'p Platform,
    tenant: &'static str,
    reference: &'static str,
}

impl Inside<'_> {
    fn status(&self) -> serde_json::Value {
        self.platform.json(&["status", self.reference, "--tenant", self.tenant])
    }

    fn address(&self) -> String {
        self.status()["instances"][0]["address"].as_str().unwrap().to_owned()
    }

    fn run(&self, script: &str) -> (i32, String) {
        let words = ["exec", self.reference, "--tenant", self.tenant, "--", "bash", "-c", script];
        let ended = self.platform.arco(&words);
        (ended.status, ended.stdout + &ended.stderr)
    }

    /// Whether a connection comes about. One that is to come about may take its time.
    fn reaches(&self, host: &str, port: u16, wanted: bool) -> bool {
        let time = if wanted { 120 } else { 1 };
        let script = format!("timeout {time} bash -c 'exec 3<>/dev/tcp/{host}/{port}' && echo reached");
        let (status, text) = self.run(&script);
        assert!(status == 0 || !text.contains("reached"), "{text}");
        text.contains("reached")
    }

    fn resolves(&self, name: &str) -> Option<String> {
        let (_, text) = self.run(&format!("getent ahostsv4 {name} | head -n 1 | cut -d ' ' -f 1"));
        Some(text.trim().to_owned()).filter(|it| it.parse::<std::net::Ipv4Addr>().is_ok())
    }

    fn resolves_at_last(&self, name: &str) -> String {
        until(&format!("{name} resolves"), 60, || self.resolves(name))
    }
}

#[test]
fn an_instance_reaches_only_what_it_may() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::start(EXECUTABLE);
    let folder = source(&platform);
    let folder = folder.to_str().unwrap();
    for tenant in ["ta", "tb"] {
        make_tenant(&platform, tenant);
    }
    let deploy = |tenant, app, component, more: &[&str]| {
        let words = ["deploy", folder, "--tenant", tenant, "--app", app, "--component", component];
        good(&platform, &[&words[..], more].concat());
    };
    deploy("ta", "back", "store", &[]);
    deploy("ta", "front", "web", &["--bind", "back/store=STORE"]);
    deploy("ta", "lone", "web", &[]);
    deploy("tb", "back", "store", &[]);
    let inside = |tenant, reference| Inside { platform: &platform, tenant, reference };
    let (front, back, lone, foreign) =
        (inside("ta", "front/web"), inside("ta", "back/store"), inside("ta", "lone/web"), inside("tb", "back/store"));
    let (back_at, front_at, foreign_at) = (back.address(), front.address(), foreign.address());

    // Names: stable addresses of the own tenant only.
    let name = "store.back.ta.arco.internal";
    let stable = front.resolves_at_last(name);
    assert_ne!(stable, back_at);
    assert_eq!(foreign.resolves(name), None, "names of other tenants do not exist");
    assert_eq!(front.resolves("store.back.tb.arco.internal"), None);
    let foreign_stable = foreign.resolves_at_last("store.back.tb.arco.internal");
    let (_, host) = front.run("echo $STORE_HOST $STORE_PORT");
    assert!(host.contains("8080"), "{host}");

    // Who reaches whom.
    let script = "timeout 120 bash -c 'exec 3<>/dev/tcp/$STORE_HOST/$STORE_PORT' && echo reached";
    assert!(front.run(script).1.contains("reached"));
    for (what, from, to, reached) in [
        ("a bound component", &front, &stable, true),
        ("its instance", &front, &back_at, true),
        ("the other way round", &back, &front_at, false),
        ("not bound", &lone, &stable, false),
        ("not bound, its instance", &lone, &back_at, false),
        ("another tenant", &foreign, &stable, false),
        ("another tenant's instance", &foreign, &back_at, false),
        ("another tenant, the other way", &front, &foreign_stable, false),
        ("another tenant's instance, the other way", &front, &foreign_at, false),
    ] {
        assert_eq!(from.reaches(to, 8080, reached), reached, "{what}: {to}");
    }

    the_machine_is_out_of_reach(&platform, &lone);
    rights_are_few(&platform, &lone);

    for tenant in ["ta", "tb"] {
        for app in ["front", "lone", "back"] {
            let _ = platform.arco(&["delete", app, "--tenant", tenant, "--yes"]);
        }
    }
    assert!(platform.stop(), "the server stops by itself");
    until("nothing is left over", 60, || platform.leftovers().is_empty().then_some(()));
}

fn the_machine_is_out_of_reach(platform: &Platform, from: &Inside<'_>) {
    let gateway = from.run("sed -n 's/^nameserver //p' /etc/resolv.conf | head -n 1").1.trim().to_owned();
    assert!(from.reaches(&gateway, 53, true), "DNS is");
    let own = std::process::Command::new("hostname").arg("-I").output().map(|it| it.stdout).unwrap_or_default();
    let own = String::from_utf8_lossy(&own).split_whitespace().find(|it| it.contains('.')).map(str::to_owned);
    let anywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ports: Vec<u16> = ["api", "console", "registry", "http", "https"]
        .iter()
        .filter_map(|it| platform.address(it))
        .map(|it| it.port())
        .collect();
    ports.extend([&anywhere, &loopback].map(|it| it.local_addr().unwrap().port()));
    // All at once: most of these packets are dropped, and each attempt waits its whole time.
    let hosts = [Some(gateway), own, Some("127.0.0.1".to_owned()), Some("169.254.169.254".to_owned())];
    let hosts = hosts.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" ");
    let (_, text) = from.run(&format!(
        "for host in {hosts}; do for port in {ports}; do \
         timeout 3 bash -c \"exec 3<>/dev/tcp/$host/$port\" 2>/dev/null && echo REACHED $host $port & done; done; wait; echo looked"
    ));
    assert!(text.contains("looked") && !text.contains("REACHED"), "{text}");
    assert!(!from.reaches("169.254.169.254", 80, false));
    assert!(
        [&anywhere, &loopback].iter().all(|it| it.set_nonblocking(true).is_ok() && it.accept().is_err()),
        "nobody came"
    );
}

fn rights_are_few(platform: &Platform, inside: &Inside<'_>) {
    let (_, text) = inside.run("cat /proc/1/status /proc/self/status /proc/self/uid_map; ls /proc | grep -c '^[0-9]'");
    for wanted in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert_eq!(text.matches(wanted).count(), 2, "{wanted}: {text}");
    }
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SETFCAP, no more.
    let bounds: Vec<u64> = text
        .lines()
        .filter_map(|it| it.strip_prefix("CapBnd:\t"))
        .map(|it| u64::from_str_radix(it.trim(), 16).unwrap())
        .collect();
    let allowed = [0, 1, 3, 4, 5, 6, 7, 8, 10, 31].iter().fold(0u64, |all, bit| all | 1 << bit);
    assert!(bounds.len() == 2 && bounds.iter().all(|it| it & !allowed == 0), "{bounds:x?}");
    let map: Vec<&str> =
        text.lines().rev().find(|it| it.split_whitespace().count() == 3).unwrap().split_whitespace().collect();
    assert!(map[0] == "0" && map[1] != "0", "a user namespace of its own: {map:?}");
    let count: u32 = text.lines().last().unwrap().trim().parse().unwrap();
    assert!(count < 12, "it sees its own processes only: {count}");
    let data = platform.data_dir().display().to_string();
    let (_, text) =
        inside.run(&format!("ls -d {data} /var/lib/arco /var/cache/arco /run/arco; cat /proc/self/mountinfo"));
    let visible: Vec<_> = text.lines().filter(|it| !it.contains("No such file")).collect();
    assert!(
        !visible.iter().any(|it| it.starts_with(&data) || it.starts_with("/var/") || it.starts_with("/run/arco")),
        "{text}"
    );
    for forbidden in [
        "mount -t tmpfs none /mnt",
        "unshare -n true",
        "mknod /tmp/null c 1 3",
        "chroot / true",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ] {
        let (status, text) = inside.run(forbidden);
        assert_ne!(status, 0, "{forbidden}: {text}");
    }
}
