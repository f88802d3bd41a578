//! What files in the source say about running it: `arco.yaml`, `Procfile`, and the seeds' `rainbondfile`.

use super::{DEFAULT_PORT, Detection, http_port};
use crate::tree::Tree;
use arco_model::error::Problem;
use arco_model::manifest::ApplicationManifest;
use arco_model::spec::{Command, Port, Protocol};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What such files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Hints {
    /// What runs.
    pub(super) command: Option<Command>,
    /// Other commands.
    pub(super) commands: BTreeMap<String, Command>,
    /// Ports; `Some` of nothing means: it listens on none.
    pub(super) ports: Option<Vec<Port>>,
    /// Variables.
    pub(super) env: BTreeMap<String, String>,
}

/// The old system's file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rainbondfile {
    ports: Vec<RainbondPort>,
    envs: BTreeMap<String, serde_json::Value>,
    cmd: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RainbondPort {
    port: u16,
    #[serde(default)]
    protocol: String,
}

/// Reads them; later ones win.
pub(super) fn read(tree: &Tree) -> Result<Hints, Problem> {
    let mut hints = Hints::default();
    if let Some(text) = tree.text("rainbondfile") {
        rainbondfile(text, &mut hints)?;
    }
    if let Some(text) = tree.text("Procfile") {
        procfile(text, &mut hints)?;
    }
    for name in ["arco.yaml", "arco.yml"] {
        if let Some(text) = tree.text(name) {
            manifest(name, text, &mut hints)?;
        }
    }
    Ok(hints)
}

fn unreadable(file: &str, why: impl std::fmt::Display) -> Problem {
    Problem::invalid(
        "file_invalid",
        format!("`{file}` cannot be read: {why}"),
        format!("correct `{file}`, or remove it"),
    )
}

fn rainbondfile(text: &str, hints: &mut Hints) -> Result<(), Problem> {
    let file: Rainbondfile = serde_yaml_ng::from_str(text).map_err(|it| unreadable("rainbondfile", it))?;
    hints.command = file.cmd.filter(|it| !it.trim().is_empty()).map(Command::Shell);
    let protocol = |it: &str| match it {
        "tcp" | "mysql" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "https" => Protocol::Https,
        "grpc" => Protocol::Grpc,
        "grpcs" => Protocol::Grpcs,
        _ => Protocol::Http,
    };
    if !file.ports.is_empty() {
        hints.ports = Some(
            file.ports.iter().map(|it| Port { port: it.port, protocol: protocol(&it.protocol), outer: true }).collect(),
        );
    }
    hints.env.extend(file.envs.into_iter().map(|(name, value)| match value {
        serde_json::Value::String(text) => (name, text),
        other => (name, other.to_string()),
    }));
    Ok(())
}

/// `name: command` lines; `web` is what runs, the rest can be chosen. A `worker` alone runs without a port.
fn procfile(text: &str, hints: &mut Hints) -> Result<(), Problem> {
    let mut commands = BTreeMap::new();
    for (at, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line.split_once(':').map(|(name, command)| (name.trim(), command.trim()));
        match parsed {
            Some((name, command)) if !command.is_empty() && !name.is_empty() && !name.contains(char::is_whitespace) => {
                commands.insert(name.to_owned(), Command::Shell(command.to_owned()));
            }
            _ => return Err(unreadable("Procfile", format!("line {at} is not `name: command`"))),
        }
    }
    if let Some(web) = commands.remove("web") {
        hints.command = Some(web);
    } else if let Some(worker) = commands.remove("worker") {
        hints.command = Some(worker);
        hints.ports.get_or_insert_default();
    } else if commands.len() == 1
        && let Some((_, only)) = commands.pop_first()
    {
        hints.command = Some(only);
        hints.ports.get_or_insert_default();
    }
    hints.commands = commands;
    Ok(())
}

/// Of a manifest only what says how to run *this* source: its one component, or the one whose source is here.
fn manifest(name: &str, text: &str, hints: &mut Hints) -> Result<(), Problem> {
    let manifest: ApplicationManifest = serde_yaml_ng::from_str(text).map_err(|it| unreadable(name, it))?;
    let here = |it: &&arco_model::manifest::ComponentManifest| {
        it.dir.is_empty() && it.source.as_deref().is_none_or(|it| matches!(it, "." | "./"))
    };
    let mut candidates = manifest.components.values().filter(here);
    if let (Some(component), None) = (candidates.next(), candidates.next()) {
        if component.command.is_some() {
            hints.command.clone_from(&component.command);
        }
        if !component.ports.is_empty() {
            hints.ports = Some(component.ports.clone());
        }
        hints.env.extend(component.env.clone());
    }
    Ok(())
}

impl Hints {
    /// Puts what the files say over what the language found.
    pub(super) fn apply(&self, found: &mut Detection) {
        if self.command.is_some() {
            found.command.clone_from(&self.command);
            if found.ports.is_empty() && self.ports.is_none() && found.language != "dockerfile" {
                found.ports = http_port(DEFAULT_PORT);
            }
        }
        if let Some(ports) = &self.ports {
            found.ports.clone_from(ports);
        }
        found.commands.extend(self.commands.clone());
        found.env.extend(self.env.clone());
    }
}
