//! Addresses that the gateway is to have: those that this machine lacks, interfaces that do not count, and the one that it
//! shares with other machines.

use super::Finding;
use super::programs::find;
use arco_config::{Config, VirtualAddress};
use arco_gateway::addresses::{interfaces, is_ignored};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// How much of the end of keepalived's log is looked at, in bytes.
const TAIL: u64 = 64 * 1024;
/// What keepalived says when machines of one group are set up differently, and what that means.
const COMPLAINTS: [(&str, &str); 5] = [
    ("equal priority advert", "another machine has the same `priority`: give each its own"),
    (
        "not present in MASTER advert",
        "another group has the same `router_id`, or another `address`: both must be its machines' alone",
    ),
    ("received an invalid ip number", "another machine has another `address`: all of a group have the same"),
    ("advertisement interval mismatch", "another machine has another `advert_ms`: all of a group have the same"),
    ("received an invalid passwd", "another program uses this `router_id` with a password: choose another number"),
];

/// Interfaces with their addresses.
type Interfaces = [(String, IpAddr)];

/// What there is of keepalived.
#[derive(Clone, Debug, Default)]
struct Keepalived {
    installed: bool,
    /// Process that runs for this data dir.
    pid: Option<u32>,
    log: String,
}

/// Everything about addresses.
pub(super) fn all(config: &Config) -> Vec<Finding> {
    let Ok(interfaces) = interfaces() else {
        let advice = "is this a container without netlink? Routes with an address count as being here then";
        return vec![Finding::warning("addresses", "the kernel does not tell them", advice)];
    };
    let mut findings = listeners(config, &interfaces);
    findings.extend(ignored(&config.gateway.ignore_interfaces, &interfaces));
    if let Some(settings) = &config.gateway.virtual_address {
        let folder = config.server.data_dir.join("run").join("shared-address");
        let seen = Keepalived { installed: find("keepalived").is_some(), pid: running(&folder), log: tail(&folder) };
        findings.extend(shared(settings, &interfaces, &seen));
    }
    findings
}

fn shown(interfaces: &Interfaces) -> String {
    let all: Vec<String> = interfaces.iter().map(|(name, address)| format!("{address} ({name})")).collect();
    all.join(", ")
}

/// Listeners on addresses that are not here, or do not count.
fn listeners(config: &Config, interfaces: &Interfaces) -> Vec<Finding> {
    let stream = SocketAddr::new(config.gateway.stream_listen, 0);
    let listeners = [
        ("gateway.http_listen", config.gateway.http_listen),
        ("gateway.https_listen", config.gateway.https_listen),
        ("gateway.stream_listen", stream),
        ("api.listen", config.api.listen),
        ("console.listen", config.console.listen),
        ("registry.listen", config.registry.listen),
    ];
    let mut findings = Vec::new();
    for (setting, address) in listeners.map(|(setting, it)| (setting, it.ip())) {
        let shared = config.gateway.virtual_address.as_ref().is_some_and(|it| it.address.addr() == address);
        let found: Vec<_> = interfaces.iter().filter(|it| it.1 == address.to_canonical()).collect();
        if address.is_unspecified() || address.is_loopback() {
            continue;
        } else if shared {
            let found =
                format!("`{setting}` is the shared address {address}: it cannot be bound while another machine has it");
            findings.push(Finding::bad(
                "addresses",
                found,
                format!("set `{setting}` to 0.0.0.0; the shared address is served there too"),
            ));
        } else if found.is_empty() {
            let found = format!("`{setting}` is {address}, which no interface has; there are {}", shown(interfaces));
            let advice = "give the address to an interface (`ip address add`), or set 0.0.0.0 or one of these";
            findings.push(Finding::bad("addresses", found, advice));
        } else if found.iter().all(|it| is_ignored(&it.0, &config.gateway.ignore_interfaces)) {
            let found =
                format!("`{setting}` is {address} of {}, which `gateway.ignore_interfaces` leaves out", found[0].0);
            findings.push(Finding::warning(
                "addresses",
                found,
                "take the interface off the list, or choose another address",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good("addresses", "this machine has those of every listener"));
    }
    findings
}

/// What the list of ignored interfaces does here.
fn ignored(patterns: &[String], interfaces: &Interfaces) -> Vec<Finding> {
    let finding = |pattern: &String| {
        let one = std::slice::from_ref(pattern);
        let of: Vec<_> = interfaces.iter().filter(|it| is_ignored(&it.0, one)).cloned().collect();
        if of.is_empty() {
            let found = format!("`{pattern}` of `gateway.ignore_interfaces` is no interface with an address");
            let advice = format!("nothing to do if it comes later; there are {}", shown(interfaces));
            return Finding::warning("ignored interfaces", found, advice);
        }
        Finding::good("ignored interfaces", format!("`{pattern}`: {} do not count", shown(&of)))
    };
    patterns.iter().map(finding).collect()
}

/// The address that machines share.
fn shared(settings: &VirtualAddress, interfaces: &Interfaces, seen: &Keepalived) -> Vec<Finding> {
    let check = "shared address";
    if let Err(why) = settings.check() {
        return vec![Finding::bad(check, why, "docs/operations/shared-address.md has an example")];
    }
    let (address, mut findings) = (settings.address.addr(), Vec::new());
    if !seen.installed {
        findings.push(Finding::bad(check, "keepalived is missing", "install it: `apt-get install keepalived`"));
    }
    let own: Vec<IpAddr> = interfaces.iter().map(|it| it.1).filter(|it| *it != address).collect();
    if !interfaces.iter().any(|it| it.0 == settings.interface) {
        let found = format!("the interface `{}` has no address, or is not there", settings.interface);
        findings.push(Finding::bad(check, found, format!("name one of {}", shown(interfaces))));
    }
    if let Some(peer) = settings.peers.iter().find(|it| own.contains(it)) {
        let found = format!("`peers` names {peer}, which is this machine");
        findings.push(Finding::bad(check, found, "name the other machines only"));
    }
    let here = interfaces.iter().any(|it| it.1 == address);
    let group = format!("group {} on {}, priority {}", settings.router_id, settings.interface, settings.priority);
    findings.push(match (seen.pid, here) {
        (Some(pid), true) => Finding::good(check, format!("this machine has {address} ({group}; keepalived is process {pid})")),
        (Some(pid), false) => {
            Finding::good(check, format!("another machine has {address} ({group}; keepalived is process {pid})"))
        }
        (None, true) => {
            let advice = "take it away (`ip address delete`): keepalived gives it to one machine at a time";
            Finding::bad(check, format!("this machine has {address}, but keepalived does not run for it"), advice)
        }
        (None, false) => {
            let advice = "`arco server` starts it; if one runs with this data dir, its `run/shared-address/keepalived.log` says why not";
            Finding::warning(check, format!("keepalived does not run for {address} ({group})"), advice)
        }
    });
    for (said, meaning) in COMPLAINTS {
        if let Some(line) = seen.log.lines().rev().find(|it| it.contains(said)) {
            findings.push(Finding::warning(check, format!("keepalived said: {}", line.trim()), meaning));
        }
    }
    findings
}

/// The keepalived that was started for this folder.
fn running(folder: &Path) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(folder.join("keepalived.pid")).ok()?.trim().parse().ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let folder = std::path::absolute(folder).ok()?;
    // The number may be another process' by now.
    let config = folder.join("keepalived.conf");
    line.split(|it| *it == 0).any(|it| it == config.as_os_str().as_encoded_bytes()).then_some(pid)
}

fn tail(folder: &Path) -> String {
    let read = || {
        let mut file = std::fs::File::open(folder.join("keepalived.log"))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    fn here() -> Vec<(String, IpAddr)> {
        let named = [("lo", "127.0.0.1"), ("eth0", "192.0.2.1"), ("docker0", "172.17.0.1")];
        named.map(|(name, address)| (name.to_owned(), address.parse().unwrap())).to_vec()
    }

    fn settings() -> VirtualAddress {
        VirtualAddress {
            address: "192.0.2.10/24".parse().unwrap(),
            interface: "eth0".to_owned(),
            router_id: 51,
            priority: 120,
            peers: vec!["192.0.2.2".parse().unwrap()],
            advert_ms: 250,
        }
    }

    #[test]
    fn addresses_of_listeners_are_here_or_not() {
        for (address, level, part) in [
            ("0.0.0.0:80", Level::Good, "every listener"),
            ("127.0.0.2:80", Level::Good, "every listener"),
            ("192.0.2.1:80", Level::Good, "every listener"),
            ("192.0.2.7:80", Level::Bad, "no interface has; there are 127.0.0.1 (lo), 192.0.2.1 (eth0)"),
            ("192.0.2.10:80", Level::Bad, "is the shared address"),
            ("172.17.0.1:80", Level::Warning, "leaves out"),
        ] {
            let mut config = Config::default();
            config.gateway.http_listen = address.parse().unwrap();
            config.gateway.virtual_address = Some(settings());
            config.gateway.ignore_interfaces = vec!["docker*".to_owned()];
            let findings = listeners(&config, &here());
            assert_eq!((findings.len(), findings[0].level), (1, level), "{findings:?}");
            assert!(findings[0].found.contains(part), "{findings:?}");
        }
    }

    #[test]
    fn ignored_interfaces_are_told() {
        let findings = ignored(&["docker*".to_owned(), "wlan0".to_owned()], &here());
        assert!(findings[0].level == Level::Good && findings[0].found.contains("172.17.0.1 (docker0) do not count"));
        assert!(findings[1].level == Level::Warning && findings[1].found.contains("`wlan0`"), "{findings:?}");
    }

    #[test]
    fn what_is_wrong_with_a_shared_address_is_told() {
        let well = Keepalived { installed: true, pid: Some(7), log: String::new() };
        let missing = Keepalived::default();
        let quarrel = "x: (arco) ip address associated with VRID 51 not present in MASTER advert : 192.0.2.10\n";
        let quarrel = Keepalived { log: quarrel.to_owned(), ..well.clone() };
        type Change = fn(&mut VirtualAddress);
        let cases: [(&Keepalived, Change, Level, &str); 8] = [
            (&well, |_| (), Level::Good, "another machine has 192.0.2.10 (group 51 on eth0, priority 120"),
            (&well, |it| it.address = "192.0.2.1/24".parse().unwrap(), Level::Good, "this machine has 192.0.2.1"),
            (&missing, |_| (), Level::Bad, "keepalived is missing"),
            (&missing, |_| (), Level::Warning, "does not run for 192.0.2.10"),
            (&missing, |it| it.address = "192.0.2.1/24".parse().unwrap(), Level::Bad, "but keepalived does not run"),
            (&well, |it| it.interface = "eth9".to_owned(), Level::Bad, "`eth9`"),
            (&well, |it| it.peers = vec!["192.0.2.1".parse().unwrap()], Level::Bad, "which is this machine"),
            (&quarrel, |_| (), Level::Warning, "not present in MASTER advert"),
        ];
        for (seen, change, level, part) in cases {
            let mut settings = settings();
            change(&mut settings);
            let findings = shared(&settings, &here(), seen);
            assert!(findings.iter().any(|it| it.level == level && it.found.contains(part)), "{part}: {findings:?}");
        }
        let wrong = VirtualAddress { priority: 1, ..settings() };
        assert!(shared(&wrong, &here(), &well)[0].found.contains("priority"));
    }
}
