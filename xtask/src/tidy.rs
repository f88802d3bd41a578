//! Checks the rules of the house that a machine can check: edges between crates, file length, headers, names,
//! error codes.

use crate::error_codes;
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest file outside tests, in lines.
const MAX_LINES: usize = 800;

/// Floors of the house, top first. A crate may depend on crates of lower floors only.
const FLOORS: [&[&str]; 8] = [
    &["arco"],
    &[
        "arco-api",
        "arco-builder",
        "arco-controller",
        "arco-eventlog",
        "arco-gateway",
        "arco-mesh",
        "arco-node",
        "arco-registry",
    ],
    &["arco-orchestrator-kubernetes"],
    &["arco-mq", "arco-orchestrator", "arco-daemon"],
    &["arco-store"],
    &["arco-config", "arco-etcd-proto"],
    &["arco-model"],
    &[],
];

/// Stands on no floor: tests of every floor use it, products of none.
const TEST_ONLY: &str = "arco-testkit";

/// Libraries that only one crate may use, with the reason.
const WRAPPED: [(&str, &[&str], &str); 9] = [
    ("sea-orm", &["arco-store"], "SQL lives in store::sql"),
    ("rusqlite", &["arco-store"], "the embedded KV lives in store::kv"),
    ("etcd-client", &["arco-store"], "etcd lives in store::kv"),
    ("kube", &["arco-orchestrator-kubernetes"], "the cluster lives in orchestrator_kubernetes"),
    ("k8s-openapi", &["arco-orchestrator-kubernetes"], "the cluster lives in orchestrator_kubernetes"),
    ("libcontainer", &["arco-orchestrator"], "containers live in orchestrator::local"),
    ("rtnetlink", &["arco-orchestrator"], "networks live in orchestrator::local"),
    ("hickory-server", &["arco-mesh"], "DNS lives in mesh"),
    ("clap", &["arco"], "only the executable has a command line"),
];

/// Words that say nothing about what a thing is.
const BANNED_WORDS: [&str; 7] = ["manager", "helper", "util", "utils", "common", "misc", "processor"];

/// Runs every check; fails with all findings.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = crate::root();
    let mut findings = edges(&root)?;
    let mut sources = Vec::new();
    for file in tracked(&root)? {
        findings.extend(check_file(&root, &file)?);
        if file.starts_with("crates") && !is_test(&file) {
            let text = std::fs::read_to_string(root.join(&file)).unwrap_or_default(); // deleted, not yet committed
            sources.push((file.display().to_string(), text));
        }
    }
    findings.extend(error_codes::unexplained(&root, &sources)?);
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} findings:\n{}", findings.len(), findings.join("\n"))
}

/// Dependencies between our crates, and on wrapped libraries.
fn edges(root: &Path) -> anyhow::Result<Vec<String>> {
    let output =
        Command::new("cargo").args(["metadata", "--format-version=1", "--no-deps"]).current_dir(root).output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let floor = |name: &str| FLOORS.iter().position(|it| it.contains(&name));
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        if ["xtask", TEST_ONLY].contains(&name) {
            continue;
        }
        let Some(own) = floor(name) else {
            findings.push(format!("{name}: stands on no floor of the house (xtask/src/tidy.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev";
            if let Some(below) = floor(other)
                && below <= own
                && !for_tests
            {
                findings.push(format!("{name} -> {other}: arrows only point down"));
            }
            if other == TEST_ONLY && !for_tests {
                findings.push(format!("{name} -> {other}: only tests may use it"));
            }
            for (library, owners, reason) in WRAPPED {
                if other == library && !owners.contains(&name) && !for_tests {
                    findings.push(format!("{name} -> {library}: {reason}"));
                }
            }
        }
    }
    Ok(findings)
}

/// Files that git knows.
fn tracked(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git").args(["ls-files", "-z", "*.rs"]).current_dir(root).output()?;
    let names = String::from_utf8(output.stdout).context("git ls-files printed no text")?;
    Ok(names.split('\0').filter(|it| !it.is_empty()).map(PathBuf::from).collect())
}

fn is_test(file: &Path) -> bool {
    file.components().any(|it| it.as_os_str() == "tests") || file.file_stem().is_some_and(|it| it == "tests")
}

fn check_file(root: &Path, file: &Path) -> anyhow::Result<Vec<String>> {
    let shown = file.display();
    let Ok(text) = std::fs::read_to_string(root.join(file)) else { return Ok(Vec::new()) }; // deleted, not yet committed
    let generated = shown.to_string().contains("/generated");
    let test = is_test(file);
    let mut findings = Vec::new();
    if generated {
        return Ok(findings);
    }
    let lines = text.lines().count();
    if lines > MAX_LINES && !test {
        findings.push(format!("{shown}: {lines} lines, at most {MAX_LINES}"));
    }
    if !text.starts_with("//!") {
        findings.push(format!("{shown}: does not begin with `//!`"));
    }
    if file.file_name().is_some_and(|it| it == "mod.rs") {
        findings.push(format!("{shown}: use `foo.rs` beside `foo/`"));
    }
    let stem = file.file_stem().and_then(|it| it.to_str()).unwrap_or_default();
    if stem.split('_').any(|it| BANNED_WORDS.contains(&it)) {
        findings.push(format!("{shown}: its name says nothing; name what it is"));
    }
    let patterns: BTreeMap<&str, &str> = [
        (concat!("todo", "!("), "finish it"),
        (concat!("unimplemented", "!("), "finish it"),
        ("// TODO", "finish it or write an issue"),
        ("pub use self::*", "no glob re-exports"),
    ]
    .into();
    for (number, line) in text.lines().enumerate() {
        for (pattern, advice) in &patterns {
            if line.trim_start().contains(pattern) && !shown.to_string().starts_with("xtask/") {
                findings.push(format!("{shown}:{}: `{pattern}`: {advice}", number + 1));
            }
        }
        if line.trim_start().starts_with("pub use ") && line.contains("::*;") {
            findings.push(format!("{shown}:{}: no glob re-exports", number + 1));
        }
    }
    Ok(findings)
}
