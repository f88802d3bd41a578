//! Puts settings together from file, environment and flags, and prints the template.

use crate::{Config, KubernetesConfig, OrchestratorDriver};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read the configuration file `{}`", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is not TOML, from this line on.
    #[error("the configuration file `{}` is not valid TOML, in line {}: {}", .0.display(), .1, .2.message())]
    Syntax(PathBuf, usize, #[source] toml::de::Error),
    /// A key is unknown or a value has the wrong form.
    #[error("a setting is wrong: {0}")]
    Value(String),
    /// A variable `ARCO_…__…` that names no setting.
    #[error("the environment variable `{0}` is not a setting (ARCO_SECTION__KEY); `arco config template` lists them")]
    Variable(String),
    /// A variable `ARCO_…__…` whose value is no text.
    #[error("the environment variable `{0}` is not valid UTF-8")]
    NotText(String),
}

/// Least life of a leader's lock, in seconds.
const LEADER_LEASE_MIN_S: u32 = 5;

/// The variables of this process that may be settings.
pub fn environment() -> Result<std::vec::IntoIter<(String, String)>, ConfigError> {
    settings(std::env::vars_os())
}

/// Other variables may hold whatever they like.
fn settings(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<std::vec::IntoIter<(String, String)>, ConfigError> {
    let mut found = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|it| it.starts_with("ARCO_") && it.contains("__")) else { continue };
        let value = value.into_string().map_err(|_| ConfigError::NotText(name.to_owned()))?;
        found.push((name.to_owned(), value));
    }
    Ok(found.into_iter())
}

/// Settings from a file (if given), environment variables and flags, the later winning.
///
/// `flags` are pairs of `section.key` and value.
pub fn from_sources(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: Vec<(&str, Value)>,
) -> Result<Config, ConfigError> {
    let mut table = match file {
        None => Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|it| ConfigError::Read(path.to_owned(), it))?;
            parse_file(path, &text)?
        }
    };
    let known = Table::try_from(Config::default()).map_err(|it| ConfigError::Value(it.to_string()))?;
    for (name, text) in environment {
        let Some((section, key)) = name.strip_prefix("ARCO_").and_then(|it| it.split_once("__")) else { continue };
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let is_section = known.get(&section).is_some_and(|it| it.is_table());
        if !is_section {
            return Err(ConfigError::Variable(name));
        }
        set(&mut table, &section, &key, parse(&text));
    }
    for (path, value) in flags {
        if let Some((section, key)) = path.split_once('.') {
            set(&mut table, section, key, value);
        }
    }
    from_table(table)
}

fn parse_file(path: &Path, text: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>().map_err(|error| {
        let before = error.span().and_then(|it| text.get(..it.start)).unwrap_or_default();
        ConfigError::Syntax(path.to_owned(), before.matches('\n').count() + 1, error)
    })
}

/// Settings from a table of sections; the rest are defaults.
pub fn from_table(table: Table) -> Result<Config, ConfigError> {
    // Its second line is the name of the setting.
    let named = |it: toml::de::Error| ConfigError::Value(it.to_string().trim_end().replace('\n', ", "));
    let config: Config = serde::Deserialize::deserialize(table).map_err(named)?;
    config.agrees()?;
    Ok(config)
}

impl Config {
    /// Rules that a value's type does not hold, and those that span settings.
    fn agrees(&self) -> Result<(), ConfigError> {
        let shared = self.orchestrator.driver == OrchestratorDriver::Kubernetes
            && self.store.coordination.trim_start().starts_with("etcd:");
        if shared && self.server.stop_instances {
            let why = "`server.stop_instances` is for a server that is alone: the instances of a cluster belong to all servers on \
                       its stores, and go on with the others. `arco stop` ends those of a component";
            return Err(ConfigError::Value(why.to_owned()));
        }
        let life_s = self.server.leader_lease_s;
        if life_s < LEADER_LEASE_MIN_S {
            let why = format!("`server.leader_lease_s` is {life_s}; give at least {LEADER_LEASE_MIN_S}");
            return Err(ConfigError::Value(why));
        }
        self.gateway.check().map_err(|it| ConfigError::Value(format!("[gateway] {it}")))?;
        if self.orchestrator.driver == OrchestratorDriver::Kubernetes {
            let prefix = &self.kubernetes.namespace_prefix;
            let wrong = |why| ConfigError::Value(format!("`kubernetes.namespace_prefix` cannot be `{prefix}`: {why}"));
            KubernetesConfig::check_prefix(prefix).map_err(wrong)?;
        }
        let log = &self.gateway.access_log;
        if let Some(file) = log.file().filter(|it| !it.is_absolute()) {
            // Who serves has another folder than who reads this.
            let why = format!("[gateway] `access_log.destination`: `{}` is not a whole path", file.display());
            return Err(ConfigError::Value(why));
        }
        Ok(())
    }
}

fn set(table: &mut Table, section: &str, key: &str, value: Value) {
    let entry = table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(entry) = entry {
        entry.insert(key.to_owned(), value);
    }
}

/// A value as TOML would read it, else as text.
fn parse(text: &str) -> Value {
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut it| it.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The defaults as a file that can be edited.
pub fn template() -> String {
    toml::to_string_pretty(&Config::default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn flags_win_over_environment_and_environment_over_defaults() {
        let variables = [("ARCO_SERVER__DOMAIN", "env.example"), ("ARCO_BUILDER__PIDS", "7"), ("ARCO_SEED", "1")];
        let flags = vec![("server.domain", Value::String("flag.example".into()))];
        let config = from_sources(None, environment(&variables), flags).unwrap();
        assert_eq!((config.server.domain.as_str(), config.builder.pids), ("flag.example", 7));
    }

    #[test]
    fn what_is_unknown_or_wrong_is_named() {
        for (variable, value, part) in [
            ("ARCO_SERVER__NO_SUCH", "1", "unknown field `no_such`"),
            ("ARCO_SERVER__NO_SUCH", "1", "in `server`"),
            ("ARCO_GATEWAY__IDLE_MS", "soon", "in `gateway.idle_ms`"),
            ("ARCO_GATEWAY__ACCESS_LOG", "{ sample = 'all' }", "in `gateway.access_log.sample`"),
            ("ARCO_NO__SUCH", "1", "`ARCO_NO__SUCH` is not a setting"),
        ] {
            let error = from_sources(None, environment(&[(variable, value)]), vec![]).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{variable}: {error}");
        }
    }

    #[test]
    fn only_variables_that_are_settings_must_be_text() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = || OsString::from_vec(vec![b'a', 0xff]);
        let other = [(odd(), "1".into()), ("LESS".into(), odd()), ("ARCO_SEED".into(), odd())];
        let domain = [("ARCO_SERVER__DOMAIN".into(), "a.test".into())];
        let found: Vec<_> = settings(other.into_iter().chain(domain)).unwrap().collect();
        assert_eq!(found, [("ARCO_SERVER__DOMAIN".to_owned(), "a.test".to_owned())]);
        let error = settings([("ARCO_SERVER__DOMAIN".into(), odd())].into_iter()).unwrap_err().to_string();
        assert!(error.contains("`ARCO_SERVER__DOMAIN` is not valid UTF-8"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_toml_is_named_with_its_line() {
        let error = parse_file(Path::new("arco.toml"), "[server]\n\ndomain = a b\n").unwrap_err().to_string();
        assert!(error.contains("`arco.toml`") && error.contains("in line 3"), "{error}");
    }

    #[test]
    fn what_the_server_would_refuse_is_refused_by_the_check() {
        let shared = |priority: u8| {
            format!("{{ address = '192.0.2.10/24', interface = 'eth0', router_id = 51, priority = {priority} }}")
        };
        for (variable, value, part) in [
            ("ARCO_SERVER__LEADER_LEASE_S", "5".to_owned(), None),
            ("ARCO_SERVER__LEADER_LEASE_S", "4".to_owned(), Some("give at least 5")),
            ("ARCO_GATEWAY__VIRTUAL_ADDRESS", shared(100), None),
            ("ARCO_GATEWAY__VIRTUAL_ADDRESS", shared(255), Some("virtual_address.priority")),
            ("ARCO_GATEWAY__MAX_HEADER_BYTES", "1024".to_owned(), None),
            ("ARCO_GATEWAY__MAX_HEADER_BYTES", "64".to_owned(), Some("`max_header_bytes` is at least 1024")),
            ("ARCO_GATEWAY__RESPONSE_MS", "0".to_owned(), Some("`response_ms`")),
            ("ARCO_GATEWAY__PROXY_PROTOCOL", "true".to_owned(), Some("`trusted_proxies`")),
        ] {
            let error =
                from_sources(None, environment(&[(variable, value.as_str())]), vec![]).err().map(|it| it.to_string());
            let told = match (&error, part) {
                (Some(error), Some(part)) => error.contains(part),
                (error, part) => error.is_none() && part.is_none(),
            };
            assert!(told, "{variable}={value}: {error:?}");
        }
    }

    #[test]
    fn a_prefix_that_tells_no_platforms_apart_is_refused_where_it_counts() {
        let cluster = ("ARCO_ORCHESTRATOR__DRIVER", "kubernetes");
        let prefix = ("ARCO_KUBERNETES__NAMESPACE_PREFIX", "x");
        for (settings, refused) in [(vec![prefix], false), (vec![cluster], false), (vec![cluster, prefix], true)] {
            let outcome = from_sources(None, environment(&settings), vec![]);
            let told = outcome.err().map(|it| it.to_string()).unwrap_or_default();
            assert_eq!(told.contains("`kubernetes.namespace_prefix` cannot be `x`"), refused, "{settings:?}: {told}");
        }
    }

    #[test]
    fn one_of_several_servers_does_not_end_the_instances_of_all() {
        let stop = ("ARCO_SERVER__STOP_INSTANCES", "true");
        let cluster = ("ARCO_ORCHESTRATOR__DRIVER", "kubernetes");
        let shared = ("ARCO_STORE__COORDINATION", "etcd://a:2379,b:2379");
        for (settings, refused) in [
            (vec![stop], false),
            (vec![stop, cluster], false),
            (vec![stop, shared], false),
            (vec![cluster, shared], false),
            (vec![stop, cluster, shared], true),
        ] {
            let read = from_sources(None, environment(&settings), vec![]);
            assert_eq!(read.is_err_and(|it| it.to_string().contains("server.stop_instances")), refused, "{settings:?}");
        }
    }

    #[test]
    fn an_access_log_is_a_whole_path_and_a_share() {
        for (text, is_read) in [
            ("{ destination = \"/var/log/a.log\", sample = 1 }", true),
            ("{ destination = \"stdout\", format = \"combined\", errors = \"sampled\" }", true),
            ("{ destination = \"a.log\" }", false),
            ("{ sample = 2.0 }", false),
            ("{ where = \"stdout\" }", false),
        ] {
            let read = from_sources(None, environment(&[("ARCO_GATEWAY__ACCESS_LOG", text)]), vec![]);
            assert_eq!(read.is_ok(), is_read, "{text}: {:?}", read.err());
        }
    }

    /// Settings that have no default, so that the template has them not.
    const WITHOUT_DEFAULT: [&str; 6] = [
        "gateway.public_http_port",
        "gateway.public_https_port",
        "gateway.virtual_address",
        "kubernetes.dns_address",
        "kubernetes.registry_listen",
        "network.pool",
    ];

    #[test]
    fn every_setting_is_described_with_its_default() {
        let mut described = std::collections::BTreeMap::new();
        let mut section = String::new();
        for line in include_str!("../../../docs/operations/settings.md").lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                // Below several sections, rows name their own.
                let one = heading.strip_prefix("`[").and_then(|it| it.strip_suffix("]`"));
                section = one.filter(|it| !it.contains(']')).map_or(String::new(), |it| format!("{it}."));
            } else if let Some((name, rest)) = line.strip_prefix("| `").and_then(|it| it.split_once("` | ")) {
                described.insert(format!("{section}{name}"), rest.split(" | ").next().unwrap_or_default());
            }
        }
        let mut settings: Vec<(String, Value)> = Table::try_from(Config::default()).unwrap().into_iter().collect();
        while let Some((name, value)) = settings.pop() {
            match value {
                Value::Table(fields) if !name.contains('.') || name == "gateway.access_log" => {
                    settings.extend(fields.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
                }
                value => {
                    let said = described.remove(&name).unwrap_or_else(|| panic!("`{name}` is not described"));
                    if !matches!(value, Value::Array(_) | Value::Table(_)) {
                        assert_eq!(said, format!("`{value}`"), "{name}");
                    }
                }
            }
        }
        assert_eq!(described.into_keys().collect::<Vec<_>>(), WITHOUT_DEFAULT);
    }

    #[test]
    fn the_template_reads_back_as_the_defaults() {
        let table: Table = template().parse().unwrap();
        assert_eq!(from_table(table).unwrap(), Config::default());
    }
}
