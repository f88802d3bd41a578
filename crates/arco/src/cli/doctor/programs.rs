//! Programs that the platform calls, and firewalls that drop what instances send.

use super::Finding;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program, its package in Debian, what it is for, and whether nothing works without it.
const PROGRAMS: [(&str, &str, &str, bool); 6] = [
    ("nft", "nftables", "networks of instances", true),
    ("ip", "iproute2", "networks of instances", true),
    ("mkfs.ext4", "e2fsprogs", "volumes and writable layers of a fixed size", true),
    ("debootstrap", "debootstrap", "the base stack of builds", true),
    ("conntrack", "conntrack", "forgetting the connections of instances that ended", false),
    ("git", "git", "Git sources that the command line reads (`file:`)", false),
];

/// All programs, and what the firewall says.
pub(super) fn all() -> Vec<Finding> {
    let mut findings: Vec<Finding> = PROGRAMS
        .iter()
        .map(|(program, package, purpose, needed)| match find(program) {
            Some(path) => Finding::good("program", format!("{program} ({})", path.display())),
            None => {
                let advice = format!("install it: `apt-get install {package}`; it is for {purpose}");
                let found = format!("{program} is missing");
                if *needed {
                    Finding::bad("program", found, advice)
                } else {
                    Finding::warning("program", found, advice)
                }
            }
        })
        .collect();
    findings.push(firewall());
    findings
}

pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|it| it.join(program)).find(|it| it.is_file())
}

fn firewall() -> Finding {
    let Some(nft) = find("nft") else {
        return Finding::warning("firewall", "not looked at: nft is missing", "install nftables");
    };
    let output = Command::new(nft).args(["-j", "list", "ruleset"]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => judge(&serde_json::from_slice(&output.stdout).unwrap_or_default()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("nothing").to_owned();
            Finding::bad(
                "firewall",
                format!("nft does not work: {said}"),
                "run as root, with a kernel that has nf_tables (`modprobe nf_tables`)",
            )
        }
        Err(error) => Finding::bad("firewall", format!("nft cannot be run: {error}"), "reinstall nftables"),
    }
}

/// Chains of others that drop forwarded packets unless told otherwise (Docker, ufw, firewalld).
fn judge(ruleset: &Value) -> Finding {
    let chains = ruleset["nftables"].as_array().into_iter().flatten().filter_map(|it| it.get("chain"));
    let foreign: Vec<String> = chains
        .filter(|it| it["hook"] == "forward" && it["policy"] == "drop")
        .filter(|it| !it["table"].as_str().unwrap_or("").starts_with("arco"))
        .map(|it| format!("{} {} {}", word(&it["family"]), word(&it["table"]), word(&it["name"])))
        .collect();
    if foreign.is_empty() {
        Finding::good("firewall", "nftables works, and no other chain drops forwarded packets")
    } else {
        let advice = "nothing to do: the server adds accept rules of its own there, and takes them away when it stops";
        Finding::warning("firewall", format!("other chains drop forwarded packets: {}", foreign.join(", ")), advice)
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;
    use serde_json::json;

    #[test]
    fn foreign_chains_that_drop_are_found() {
        let chain = |table: &str, policy: &str| json!({"chain": {"family": "ip", "table": table, "name": "FORWARD", "hook": "forward", "policy": policy}});
        let ruleset = |chains: &[Value]| json!({"nftables": chains});
        assert_eq!(judge(&ruleset(&[chain("filter", "accept"), chain("arco-1", "drop")])).level, Level::Good);
        let finding = judge(&ruleset(&[chain("filter", "drop")]));
        assert!(finding.level == Level::Warning && finding.found.contains("ip filter FORWARD"));
        assert_eq!(judge(&Value::Null).level, Level::Good);
    }
}
