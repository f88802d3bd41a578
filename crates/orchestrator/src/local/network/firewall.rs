//! Runs `nft`: our own table in one transaction, and marked rules in foreign chains that drop by default.
//!
//! What must hold: rules go in through standard input; a foreign rule of ours carries our table's name as comment and
//! goes at close. Not here: what the rules are (`rules`).

use super::NetworkError;
use serde::Deserialize;
use std::net::Ipv4Addr;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Loads a ruleset text.
pub(super) async fn load(text: &str) -> Result<(), NetworkError> {
    let (ok, _, problem) = nft(&["-f", "-"], Some(text)).await?;
    if ok { Ok(()) } else { Err(NetworkError::step("load its rules", problem)) }
}

/// Removes our table; fine when there is none.
pub(super) async fn delete_table(table: &str) -> Result<(), NetworkError> {
    load(&format!("table ip {table} {{ }}\ndelete table ip {table}\n")).await
}

/// Forgets the kernel's notes on connections from, to and by way of an address that an instance had: whoever gets it
/// next must not answer for the old ones, and a sender of UDP must not be led to nobody.
pub(super) async fn forget_connections(address: Ipv4Addr) {
    let address = address.to_string();
    for side in ["--orig-src", "--orig-dst", "--reply-src"] {
        let mut command = Command::new("conntrack");
        command.args(["-D", "-f", "ipv4", side, &address]).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // It fails when there was nothing to forget.
        if let Err(error) = command.status().await {
            tracing::warn!(%error, "`conntrack` cannot be run: install the package; connections of instances that ended stay in the kernel's table until they time out");
            return;
        }
    }
}

async fn nft(arguments: &[&str], input: Option<&str>) -> Result<(bool, Vec<u8>, String), NetworkError> {
    let failed = |it: std::io::Error| match it.kind() {
        std::io::ErrorKind::NotFound => {
            NetworkError::step("run `nft`", "it is not installed: install the package `nftables`")
        }
        _ => NetworkError::step("run `nft`", it),
    };
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it ends early, its own words in standard error say more than the broken pipe.
        let _ = stdin.write_all(input.unwrap_or("").as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    let problem = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
    Ok((output.status.success(), output.stdout, problem))
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    chain: Option<Chain>,
    rule: Option<Rule>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    #[serde(default)]
    hook: String,
    #[serde(default)]
    policy: String,
}

#[derive(Deserialize)]
struct Rule {
    family: String,
    table: String,
    chain: String,
    handle: u64,
    #[serde(default)]
    comment: String,
}

async fn list(arguments: &[&str]) -> Vec<Item> {
    let listing = match nft(arguments, None).await {
        Ok((true, text, _)) => serde_json::from_slice::<Listing>(&text).ok(),
        _ => None,
    };
    listing.map(|it| it.nftables).unwrap_or_default()
}

/// Lets our packets through chains of others that drop what they do not know (Docker, ufw, firewalld).
pub(super) async fn open_foreign_chains(table: &str, links: &str) {
    let dropping = |it: &Chain| {
        let ours = it.table.starts_with("arco_");
        // nft takes no quoted names; a name that is not plain cannot be spoken of.
        let plain =
            |it: &str| it.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'_' | b'-' | b'.' | b'/'));
        !ours
            && plain(&it.table)
            && plain(&it.name)
            && matches!(it.family.as_str(), "ip" | "inet")
            && it.policy == "drop"
            && matches!(it.hook.as_str(), "forward" | "input")
    };
    let chains: Vec<_> =
        list(&["-j", "list", "chains"]).await.into_iter().filter_map(|it| it.chain).filter(dropping).collect();
    if chains.is_empty() {
        return;
    }
    close_foreign_chains(table).await;
    for Chain { family, table: foreign, name, hook, .. } in chains {
        let head = format!("insert rule {family} {foreign} {name}");
        // What may pass is decided by our own table, which sees every packet before.
        let rules = if hook == "forward" {
            format!(
                "{head} iifname \"{links}\" accept comment \"{table}\"\n{head} oifname \"{links}\" accept comment \"{table}\"\n"
            )
        } else {
            format!("{head} iifname \"{links}\" meta l4proto {{ tcp, udp }} th dport 53 accept comment \"{table}\"\n")
        };
        match load(&rules).await {
            Ok(()) => tracing::info!(
                family,
                table = foreign,
                chain = name,
                "a foreign chain drops by default; rules of ours let instances through"
            ),
            Err(error) => {
                tracing::warn!(%error, family, table = foreign, chain = name, "a foreign chain drops by default and takes no rule of ours")
            }
        }
    }
}

/// Removes what [`open_foreign_chains`] added.
pub(super) async fn close_foreign_chains(table: &str) {
    let rules = list(&["-j", "-a", "list", "ruleset"]).await.into_iter().filter_map(|it| it.rule);
    let ours = rules.filter(|it| it.comment == table && it.table != table);
    let text: String =
        ours.map(|it| format!("delete rule {} {} {} handle {}\n", it.family, it.table, it.chain, it.handle)).collect();
    if !text.is_empty()
        && let Err(error) = load(&text).await
    {
        tracing::warn!(%error, "rules of ours stay in foreign chains; they carry the comment {table}");
    }
}
