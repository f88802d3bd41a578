//! `arco config`: the server's configuration, and the JSON Schema of `arco.yaml`.

use super::failure::Failure;
use super::ui::Ui;
use arco_config::{Config, ConfigError};
use clap::Subcommand;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// JSON Schema of `arco.yaml`.
const SCHEMA: &str = include_str!("config/arco.schema.json");

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every setting with its default
    #[command(after_help = "Example:\n  arco config template > /etc/arco.toml")]
    Template,
    /// Check a configuration file, and the ARCO_SECTION__KEY variables of this environment
    #[command(after_help = "Example:\n  arco config check /etc/arco.toml")]
    Check {
        /// Configuration file
        file: Option<PathBuf>,
    },
    /// Print the settings as a server started here would see them
    #[command(after_help = "Example:\n  arco config dump --config /etc/arco.toml")]
    Dump {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the JSON Schema of arco.yaml
    #[command(after_help = "Example:\n  arco config schema > arco.schema.json")]
    Schema,
}

/// Runs.
pub(crate) fn run(command: &ConfigCommand, ui: &Ui) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Template => ui.bytes(arco_config::template().as_bytes()),
        ConfigCommand::Schema => ui.bytes(SCHEMA.as_bytes()),
        ConfigCommand::Check { file } => {
            read(file.as_deref())?;
            ui.document(&serde_json::json!({"valid": true}), |ui| ui.line("the configuration is valid"));
        }
        ConfigCommand::Dump { config } => {
            let mut config = read(config.as_deref())?;
            config.store = config.store.shown();
            let toml = toml::to_string_pretty(&config).map_err(|it| Failure::local(it.to_string(), "report this"))?;
            ui.document(&config, |ui| ui.bytes(toml.as_bytes()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The settings of a file, if one is given, and of this environment.
pub(crate) fn read(file: Option<&Path>) -> Result<Config, Failure> {
    let read = arco_config::environment().and_then(|it| arco_config::from_sources(file, it, Vec::new()));
    read.map_err(|error| {
        let mut message = error.to_string();
        if let ConfigError::Read(_, cause) = &error {
            message.push_str(&format!(": {cause}"));
        }
        Failure::usage("config_invalid", message, "`arco config template` prints every setting with its default")
    })
}

#[cfg(test)]
mod tests {
    use super::SCHEMA;
    use arco_model::manifest::ApplicationManifest;
    use serde_json::{Value, json};

    /// Every value of the manifest, so that a field that the schema lacks shows.
    fn full() -> Value {
        json!({
            "application": "demo",
            "components": {"web": {
                "source": ".", "dir": "sub", "kind": "cron", "schedule": "* * * * *", "replicas": 2,
                "autoscaling": {
                    "min_replicas": 1, "max_replicas": 4, "cpu_percent": 70, "memory_percent": 80, "down_after_s": 60
                },
                "resources": {"cpu_milli": 100, "memory_mb": 64, "disk_mb": 64, "pids": 64},
                "ports": [{"port": 80, "protocol": "http", "outer": true}],
                "env": {"A": "1"}, "secrets": ["B"], "build_env": {"C": "1"},
                "volumes": [{"name": "v", "path": "/v", "size_mb": 1, "kind": "shared", "class": "fast"}],
                "files": [{"path": "/etc/a", "content": "b", "secret": "B", "mode": "0400"}],
                "bind": ["store=STORE"], "command": "run", "probe": {"kind": "http", "path": "/", "port": 80},
                "rollout": {"start_deadline_ms": 1, "min_ready_ms": 1, "drain_ms": 1, "stop_grace_ms": 1, "max_surge": 1},
                "scheduling": {
                    "node_selector": {"disk": "ssd"},
                    "node_affinity": [{"key": "a", "operator": "in", "values": ["b"], "weight": 1}],
                    "affinity": [{"component": "db", "topology": "zone", "weight": 1}],
                    "anti_affinity": [{"component": "db"}],
                    "topology_spread": [{"topology": "zone", "max_skew": 1, "when_unsatisfiable": "do_not_schedule"}],
                    "tolerations": [{
                        "key": "a", "operator": "equal", "value": "b", "effect": "no_execute", "toleration_seconds": 1
                    }],
                    "priority_class": "high"
                },
                "overlay": {"spec": {"hostname": "web"}},
                "routes": [{"hosts": ["a.test"]}],
                "streams": [{"protocol": "tcp", "port": 10000, "target_port": 5432, "address": "192.0.2.1"}]
            }}
        })
    }

    #[test]
    fn the_schema_names_exactly_the_fields_of_the_manifest() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let manifest: ApplicationManifest = serde_json::from_value(full()).unwrap();
        let value = serde_json::to_value(&manifest).unwrap();
        let keys = |it: &Value| it.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&schema["properties"]), keys(&value));
        let component = &value["components"]["web"];
        let known = &schema["$defs"]["component"]["properties"];
        assert_eq!(keys(known), keys(component));
        assert_eq!(keys(&schema["$defs"]["resources"]["properties"]), keys(&component["resources"]));
        assert_eq!(keys(&schema["$defs"]["port"]["properties"]), keys(&component["ports"][0]));
        assert_eq!(keys(&schema["$defs"]["volume"]["properties"]), keys(&component["volumes"][0]));
        assert_eq!(keys(&schema["$defs"]["file"]["properties"]), keys(&component["files"][0]));
        assert_eq!(keys(&schema["$defs"]["stream"]["properties"]), keys(&component["streams"][0]));
        let load = &schema["$defs"]["autoscaling"]["properties"];
        assert_eq!(keys(load), keys(&component["autoscaling"]));
        assert_eq!(keys(&schema["$defs"]["rollout"]["properties"]), keys(&component["rollout"]));
        let (known, asked) = (&schema["$defs"]["scheduling"]["properties"], &component["scheduling"]);
        assert_eq!(keys(known), keys(asked));
        for list in ["node_affinity", "affinity", "topology_spread", "tolerations"] {
            let known = known[list]["items"]["$ref"].as_str().unwrap().strip_prefix("#/$defs/").unwrap();
            assert_eq!(keys(&schema["$defs"][known]["properties"]), keys(&asked[list][0]), "{list}");
        }
    }
}
