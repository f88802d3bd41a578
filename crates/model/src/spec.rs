//! What was asked of a component: its spec, with the defaults and the rules that every writer obeys.

pub mod autoscaling;
pub mod files;
mod overlay;
pub mod scheduling;

pub use overlay::{APP_CONTAINER, container_memory_mb};

use crate::error::Problem;
use crate::name::{ApplicationName, ComponentName, VolumeName};
use crate::source::Source;
use autoscaling::Autoscaling;
use files::FileSpec;
use scheduling::Scheduling;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything asked of a component. A change raises the component's `generation`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentSpec {
    /// Where it comes from.
    pub source: Source,
    /// How it is built.
    #[serde(default)]
    pub build: BuildSpec,
    /// How its instances live.
    #[serde(default)]
    pub kind: ComponentKind,
    /// When it runs, for `cron`: five fields, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// How many instances; for jobs, how many run side by side. 0 to 100. With `autoscaling`: how many at first.
    #[serde(default = "one")]
    pub replicas: u32,
    /// How many instances by load, instead of a fixed number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Limits of one instance.
    #[serde(default)]
    pub resources: Resources,
    /// Ports it listens on; empty means: as detected by the build.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Variables of the running instances.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Secret variables: name → version. Values are elsewhere, encrypted.
    #[serde(default)]
    pub secrets: BTreeMap<String, u64>,
    /// Storage that outlives instances.
    #[serde(default)]
    pub volumes: Vec<VolumeSpec>,
    /// Configuration files, read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileSpec>,
    /// Components that this one calls.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// What runs, instead of what the build found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// How readiness is asked; without it: a TCP connect to the first port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// How a change reaches the instances.
    #[serde(default)]
    pub rollout: RolloutSpec,
    /// Where instances may run, on a cluster.
    #[serde(default, skip_serializing_if = "Scheduling::is_empty")]
    pub scheduling: Scheduling,
    /// A raw part of a pod template, put over what is made of the component on Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<serde_json::Value>,
}

fn one() -> u32 {
    1
}

impl ComponentSpec {
    /// A spec with nothing asked but the source.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            build: BuildSpec::default(),
            kind: ComponentKind::default(),
            schedule: None,
            replicas: 1,
            autoscaling: None,
            resources: Resources::default(),
            ports: Vec::new(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            volumes: Vec::new(),
            files: Vec::new(),
            bindings: Vec::new(),
            command: None,
            probe: None,
            rollout: RolloutSpec::default(),
            scheduling: Scheduling::default(),
            overlay: None,
        }
    }

    /// The most instances that there will be, but for a rollout.
    pub fn most_replicas(&self) -> u32 {
        self.autoscaling.map_or(self.replicas, |it| it.max_replicas)
    }

    /// Memory that one instance may use, in MiB, with the containers that its overlay puts beside it.
    pub fn instance_memory_mb(&self) -> u64 {
        let own = u64::from(self.resources.memory_mb);
        self.overlay.as_ref().map_or(own, |it| overlay::memory_mb(it, own))
    }

    /// What is asked that only a cluster can do, by the name of its field.
    pub fn of_clusters(&self) -> Vec<&'static str> {
        let asked = [("scheduling", !self.scheduling.is_empty()), ("overlay", self.overlay.is_some())];
        asked.into_iter().filter(|it| it.1).map(|it| it.0).collect()
    }
}

/// How a component is built.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuildSpec {
    /// Variables that only the build sees.
    pub env: BTreeMap<String, String>,
    /// A strategy by name (`node`, `python`, `go`, `static`, `dockerfile`) instead of detection.
    pub strategy: Option<String>,
    /// Path of the Dockerfile inside the source.
    pub dockerfile: Option<String>,
}

/// How the instances of a component live.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    /// Interchangeable instances; rolled out with one more than asked.
    #[default]
    Stateless,
    /// Instances with a place and a volume of their own; rolled out one after another, old stops first.
    Stateful,
    /// Runs to its end once for each revision.
    Job,
    /// Runs to its end at each time of its schedule.
    Cron,
}

impl ComponentKind {
    /// Whether its instances are meant to end.
    pub fn runs_to_end(self) -> bool {
        matches!(self, Self::Job | Self::Cron)
    }
}

/// Limits of one instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a CPU core; 0 means no limit.
    pub cpu_milli: u32,
    /// Memory in MiB; the instance is ended when it needs more.
    pub memory_mb: u32,
    /// Writable layer in MiB.
    pub disk_mb: u32,
    /// Most processes and threads.
    pub pids: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_milli: 0, memory_mb: 512, disk_mb: 1024, pids: 1024 }
    }
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1, with WebSocket.
    #[default]
    Http,
    /// HTTP/1.1 over TLS spoken by the instance itself. Gateways accept any certificate, but where a route asks for one
    /// (`upstream_tls`).
    Https,
    /// HTTP/2 without TLS.
    H2c,
    /// gRPC.
    Grpc,
    /// gRPC over TLS spoken by the instance itself; of certificates the same holds.
    Grpcs,
    /// Any TCP.
    Tcp,
    /// UDP; never probed.
    Udp,
}

impl Protocol {
    /// Whether the gateway can route it by host and path.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https) || self.is_http2()
    }

    /// Whether it is HTTP/2, whatever is offered.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::Grpc | Self::Grpcs)
    }

    /// Whether the instance itself speaks TLS, so that it is asked over it.
    pub fn is_over_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }
}

/// A port that the instances listen on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Number inside the instance.
    pub port: u16,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether it can be reached from outside through the gateway.
    #[serde(default = "yes")]
    pub outer: bool,
}

fn yes() -> bool {
    true
}

/// Where a volume's content lives.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// One volume that all instances of the component share.
    #[default]
    Shared,
    /// One volume for each place of a stateful component.
    Local,
    /// Memory; gone with the instance.
    Memory,
}

/// Storage that outlives instances.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Name, unique in the component.
    pub name: VolumeName,
    /// Absolute path inside the instance.
    pub path: String,
    /// Size in MiB, enforced.
    #[serde(default = "VolumeSpec::default_size_mb")]
    pub size_mb: u32,
    /// Where the content lives.
    #[serde(default)]
    pub kind: VolumeKind,
    /// What it is made of (`arco volume classes`); the platform's choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

impl VolumeSpec {
    /// Size of a volume when none is asked: 1 GiB.
    pub fn default_size_mb() -> u32 {
        1024
    }
}

/// A component may call another, under an alias.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Application of the called component.
    pub application: ApplicationName,
    /// The called component.
    pub component: ComponentName,
    /// Prefix of the injected variables: `<ALIAS>_HOST`, `_PORT`, `_URL`; upper case.
    pub alias: String,
}

/// What an instance runs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// A line for `/bin/sh -c` inside the instance.
    Shell(String),
    /// Program and arguments.
    Exec(Vec<String>),
}

impl Command {
    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        match self {
            // `exec` so that signals reach the program itself and no shell stays in memory.
            Self::Shell(line) if is_simple(line) => {
                ["/bin/sh", "-c", &format!("exec {line}")].map(str::to_owned).to_vec()
            }
            Self::Shell(line) => ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
            Self::Exec(argv) => argv.clone(),
        }
    }
}

/// Whether a shell line is one program call, so that `exec` may stand in front of it.
fn is_simple(line: &str) -> bool {
    let first = line.split_whitespace().next().unwrap_or("");
    let keyword = matches!(
        first,
        "exec" | "cd" | "if" | "for" | "while" | "case" | "export" | "set" | "test" | "[" | "until" | "."
    );
    !first.is_empty()
        && !keyword
        && !first.contains('=')
        && !line.contains(['|', '&', ';', '\n', '(', ')', '{', '}', '<', '>', '`'])
}

/// How readiness is asked.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// A GET on this path must answer 200 to 399.
    Http {
        /// Absolute path with query.
        path: String,
        /// Port; the first one when absent.
        #[serde(default)]
        port: Option<u16>,
    },
    /// A TCP connect must succeed.
    Tcp {
        /// Port; the first one when absent.
        #[serde(default)]
        port: Option<u16>,
    },
    /// A command inside the instance must end with 0.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// How a change reaches the instances.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutSpec {
    /// How long a new instance may take until it is ready.
    pub start_deadline_ms: u64,
    /// How long a new instance must be ready until it counts: only then an old one leaves for it, and the change has
    /// succeeded. Five times as long after its program ended once. A port that answers says little about a program that
    /// opens it first and then looks for its database.
    pub min_ready_ms: u64,
    /// How long a leaving instance may finish its requests.
    pub drain_ms: u64,
    /// How long after SIGTERM an instance may take to end before SIGKILL.
    pub stop_grace_ms: u64,
    /// How many instances more than asked may exist while rolling.
    pub max_surge: u32,
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self { start_deadline_ms: 60_000, min_ready_ms: 2_000, drain_ms: 10_000, stop_grace_ms: 10_000, max_surge: 1 }
    }
}

/// How the environment variables begin that the platform sets itself.
const RESERVED_ENV: &str = "ARCO_";

/// Most instances of a component.
pub const REPLICAS_MAX: u32 = 100;

/// Checks every rule that needs only the spec itself.
pub fn validate(spec: &ComponentSpec) -> Result<(), Problem> {
    let bad = |code: &str, message: String, advice: &str| Err(Problem::invalid(code, message, advice));
    if let Source::Git { url, .. } = &spec.source
        && let Err(error) = crate::source::git_url(url)
    {
        return bad("git_url_refused", error.to_string(), "use an https, http, ssh or git URL");
    }
    if let Source::Git { reference, .. } = &spec.source
        && (reference.starts_with('-')
            || reference.contains("..")
            || reference.chars().any(|it| it.is_control() || it == ' '))
    {
        return bad(
            "ref_invalid",
            format!("`{reference}` is not a branch, tag or commit"),
            "give an existing one, as `--ref main`",
        );
    }
    if let Source::Git { dir, .. } | Source::Upload { dir, .. } = &spec.source
        && (dir.starts_with('/') || dir.split('/').any(|it| it == ".."))
    {
        return bad("dir_invalid", format!("`{dir}` leaves the source"), "`--dir` is a folder inside the source");
    }
    if spec.replicas > REPLICAS_MAX {
        let message = format!("{} replicas are too many", spec.replicas);
        return bad("replicas_invalid", message, &format!("ask for 0 to {REPLICAS_MAX}"));
    }
    let Resources { memory_mb, cpu_milli, .. } = spec.resources;
    if !(16..=1_048_576).contains(&memory_mb) {
        return bad("memory_invalid", format!("{memory_mb} MB of memory"), "`--memory-mb` is 16 to 1048576");
    }
    if cpu_milli != 0 && !(10..=1_024_000).contains(&cpu_milli) {
        return bad(
            "cpu_invalid",
            format!("{cpu_milli} thousandths of a core"),
            "`--cpu-milli` is 10 to 1024000, or 0 for no limit",
        );
    }
    for (at, port) in spec.ports.iter().enumerate() {
        if port.port == 0 {
            return bad("port_invalid", "port 0".to_owned(), "`--port` is 1 to 65535");
        }
        if spec.ports[..at]
            .iter()
            .any(|it| it.port == port.port && (it.protocol == Protocol::Udp) == (port.protocol == Protocol::Udp))
        {
            return bad("port_duplicate", format!("port {} is given twice", port.port), "give each port once");
        }
    }
    for name in spec.env.keys().chain(spec.secrets.keys()).chain(spec.build.env.keys()) {
        env_name(name)?;
    }
    // Instances are asked on the declared port, whatever the program was told.
    if spec.env.contains_key("PORT") || spec.secrets.contains_key("PORT") {
        return bad(
            "env_name_reserved",
            "`PORT` is set by the platform: it is the first port of the component".to_owned(),
            "name the port by `--port` of `arco deploy` (`ports` in a file); `arco env unset APP/COMPONENT PORT` takes it out",
        );
    }
    if let Some((name, _)) =
        spec.env.iter().chain(&spec.build.env).find(|(_, value)| value.contains('\0') || value.len() > 131_072)
    {
        return bad(
            "env_value_invalid",
            format!("the value of `{name}` holds a NUL or is longer than 128 KiB"),
            "give a shorter text value",
        );
    }
    if let Some(name) = spec.env.keys().find(|it| spec.secrets.contains_key(*it)) {
        return bad("env_duplicate", format!("`{name}` is both a variable and a secret"), "unset one of them");
    }
    for (at, volume) in spec.volumes.iter().enumerate() {
        if !is_volume_path(&volume.path) {
            return bad(
                "volume_path_invalid",
                format!("volume `{}` has the path `{}`", volume.name, volume.path),
                "give an absolute path below `/`, as `/data`, outside /proc, /sys and /dev",
            );
        }
        if let Some(class) = &volume.class
            && (volume.kind == VolumeKind::Memory || !is_class(class))
        {
            return bad(
                "class_invalid",
                format!("volume `{}` is to be of class `{}`", volume.name, class.chars().take(80).collect::<String>()),
                "`arco volume classes` lists them; memory has none",
            );
        }
        if !(1..=16_777_216).contains(&volume.size_mb) {
            return bad(
                "volume_size_invalid",
                format!("volume `{}` has {} MB", volume.name, volume.size_mb),
                "give 1 MB to 16 TB",
            );
        }
        if spec.volumes[..at].iter().any(|it| it.name == volume.name || it.path == volume.path) {
            return bad(
                "volume_duplicate",
                format!("volume `{}` or its path is given twice", volume.name),
                "give each name and path once",
            );
        }
    }
    files::validate(&spec.files, &spec.volumes, &spec.secrets)?;
    for (at, binding) in spec.bindings.iter().enumerate() {
        env_name(&binding.alias)?;
        if spec.bindings[..at].iter().any(|it| it.alias == binding.alias) {
            return bad(
                "binding_duplicate",
                format!("alias `{}` is given twice", binding.alias),
                "give each binding its own alias: `--bind APP/COMPONENT=ALIAS`",
            );
        }
    }
    match (&spec.schedule, spec.kind) {
        (None, ComponentKind::Cron) => {
            return bad(
                "schedule_missing",
                "a cron component needs a schedule".to_owned(),
                "add `--schedule '*/5 * * * *'`",
            );
        }
        (Some(_), kind) if kind != ComponentKind::Cron => {
            return bad(
                "schedule_unused",
                "only cron components have a schedule".to_owned(),
                "add `--kind cron`, or leave the schedule out",
            );
        }
        (Some(text), _) => {
            if let Err(error) = text.parse::<croner::Cron>() {
                return bad(
                    "schedule_invalid",
                    format!("`{text}` is not a schedule: {error}"),
                    "give five fields: minute hour day month weekday",
                );
            }
        }
        (None, _) => {}
    }
    if let Some(Command::Exec(argv)) = &spec.command
        && argv.is_empty()
    {
        return bad("command_empty", "the command is empty".to_owned(), "give a program, or leave the command out");
    }
    autoscaling::validate(spec)?;
    scheduling::validate(&spec.scheduling)?;
    spec.overlay.iter().try_for_each(overlay::validate)
}

/// The first time of a schedule after `after`; `None` when it has none (a 30 February) or cannot be read.
pub fn next_run(schedule: &str, after: crate::time::Timestamp) -> Option<crate::time::Timestamp> {
    let cron: croner::Cron = schedule.parse().ok()?;
    let after = chrono::DateTime::from_timestamp_millis(after.0 as i64)?;
    let next = cron.find_next_occurrence(&after, false).ok()?;
    Some(crate::time::Timestamp(next.timestamp_millis() as u64))
}

/// A name that a storage class can have: a DNS subdomain (RFC 1123).
fn is_class(name: &str) -> bool {
    let good = |part: &str| {
        part.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
            && !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(good)
}

/// Whether a volume can be mounted there: an absolute path below `/`, outside /proc, /sys and /dev.
pub fn is_volume_path(path: &str) -> bool {
    let inner = path.strip_prefix('/').unwrap_or("");
    let hostile = path.contains('\0') || inner.split('/').any(|it| matches!(it, "" | "." | ".."));
    !hostile && !["proc", "sys", "dev"].contains(&inner.split('/').next().unwrap_or(""))
}

/// Whether a component can have a variable of this name.
pub fn is_env_name(name: &str) -> bool {
    env_name(name).is_ok()
}

/// A name that a shell accepts (POSIX.1 §8.1) and that the platform does not set itself.
fn env_name(name: &str) -> Result<(), Problem> {
    let mut bytes = name.bytes();
    let good = bytes.next().is_some_and(|it| it.is_ascii_alphabetic() || it == b'_')
        && bytes.all(|it| it.is_ascii_alphanumeric() || it == b'_')
        && name.len() <= 256;
    if !good {
        let message = format!("`{}` is not a variable name", name.chars().take(80).collect::<String>());
        return Err(Problem::invalid(
            "env_name_invalid",
            message,
            "use letters, digits and `_`, not beginning with a digit",
        ));
    }
    if name.starts_with(RESERVED_ENV) {
        return Err(Problem::invalid(
            "env_name_reserved",
            format!("`{name}`: variables that begin with `{RESERVED_ENV}` are the platform's"),
            "choose another name; `arco env unset APP/COMPONENT NAME` takes one out that is there",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
