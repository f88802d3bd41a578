//! Whether containerd on the nodes reads the folder in which the DaemonSet of `--trust-registry` writes `hosts.toml`.
//!
//! Only its pods see containerd's settings: each says what stands there in one line of its log ([`HostsSetting::line`]), and
//! here such lines become findings. What must hold: a folder is called bad only where that is sure. Not here: reading the
//! settings, which the pod does.

use super::Finding;
use crate::cluster::words;
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, ListParams, LogParams};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CHECK: &str = "trust";
/// How the line of a pod's log begins.
const LINE: &str = "settings of containerd: ";
/// Labels of the pods.
const PODS: &str = "app.kubernetes.io/name=arco,app.kubernetes.io/component=nodes";
/// How much of a pod's log is looked at, from its beginning.
const LOG_BYTES: i64 = 1 << 20;
/// How long a log may take: its node may not answer.
const LOG_WITHIN: Duration = Duration::from_secs(15);
/// Logs that are read at the same time.
const AT_ONCE: usize = 16;
/// The folder that containerd reads by itself since 2.2, beside Docker's.
const BY_ITSELF: &str = "/etc/containerd/certs.d";

/// What containerd's settings on a node say about the folders of `hosts.toml`. Paths are those of the node.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct HostsSetting {
    /// The folder that we write to.
    pub folder: PathBuf,
    /// What `config_path` says, and the file that says it last; `None` where no file that was read says it.
    pub config_path: Option<(String, PathBuf)>,
    /// The first file of the settings.
    pub file: PathBuf,
    /// The table that `config_path` belongs in, by the version of the settings.
    pub table: String,
    /// Files that could not be read, and why: one of them may say otherwise.
    pub unread: Vec<String>,
    /// Where `config_path` stands without a meaning.
    pub misplaced: Vec<String>,
}

impl HostsSetting {
    /// The line of a pod's log.
    pub fn line(&self) -> String {
        format!("{LINE}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// The last such line of a log.
    fn of_log(log: &str) -> Option<Self> {
        log.lines().rev().find_map(|it| serde_json::from_str(it.strip_prefix(LINE)?).ok())
    }
}

/// One finding for each thing that nodes have in common; none where no DaemonSet is.
pub(super) async fn hosts(client: &Client) -> Vec<Finding> {
    let unknown = |it: &kube::Error| {
        let advice = "let this account list nodes and pods, and read logs of pods";
        vec![Finding::warning(
            CHECK,
            format!("whether containerd finds our registry is not known: {}", words(it)),
            advice,
        )]
    };
    let pods = match Api::<Pod>::all(client.clone()).list(&ListParams::default().labels(PODS)).await {
        Ok(pods) if pods.items.is_empty() => return Vec::new(),
        Ok(pods) => pods.items,
        Err(error) => return unknown(&error),
    };
    let runtimes: BTreeMap<String, String> = match Api::<Node>::all(client.clone()).list(&ListParams::default()).await {
        Ok(nodes) => nodes.items.iter().filter_map(runtime).collect(),
        Err(error) => return unknown(&error),
    };
    let looked = stream::iter(pods).map(|pod| async move {
        let name = pod.metadata.name.unwrap_or_default();
        let node = pod.spec.and_then(|it| it.node_name).unwrap_or_default();
        let logs: Api<Pod> = Api::namespaced(client.clone(), &pod.metadata.namespace.unwrap_or_default());
        let params = LogParams { limit_bytes: Some(LOG_BYTES), ..LogParams::default() };
        let said = match tokio::time::timeout(LOG_WITHIN, logs.logs(&name, &params)).await {
            Ok(log) => log.map(|it| HostsSetting::of_log(&it)).map_err(|it| words(&it)),
            Err(_) => Err(format!("the log of `{name}` did not come within {} s", LOG_WITHIN.as_secs())),
        };
        (node, said)
    });
    let looked: Vec<_> = looked.buffered(AT_ONCE).collect().await;
    let judged = looked.into_iter().map(|(node, said)| {
        let finding = match said {
            Ok(Some(setting)) => judge_hosts(&setting, runtimes.get(&node).map(String::as_str)),
            Ok(None) => silent("its pod of `arco-trust-registry` has not said it"),
            Err(why) => silent(&why),
        };
        (node, finding)
    });
    together(judged)
}

fn silent(why: &str) -> Finding {
    Finding::warning(
        CHECK,
        format!("whether containerd finds our registry is not known: {why}"),
        "look at the pods of the DaemonSet `arco-trust-registry`, and apply the manifest of this version",
    )
}

/// The runtime of a node, by its name.
fn runtime(node: &Node) -> Option<(String, String)> {
    let runtime = node.status.as_ref()?.node_info.as_ref()?.container_runtime_version.clone();
    Some((node.metadata.name.clone()?, runtime))
}

/// Findings that say the same, once, with their nodes.
fn together(judged: impl Iterator<Item = (String, Finding)>) -> Vec<Finding> {
    let mut found: Vec<(Vec<String>, Finding)> = Vec::new();
    for (node, finding) in judged {
        match found.iter_mut().find(|it| it.1 == finding) {
            Some((nodes, _)) => nodes.push(node),
            None => found.push((vec![node], finding)),
        }
    }
    let named =
        |(nodes, it): (Vec<String>, Finding)| Finding { found: format!("{}: {}", nodes.join(", "), it.found), ..it };
    found.into_iter().map(named).collect()
}

/// Whether containerd finds what we write; `runtime` is what the node says of itself (`containerd://1.7.27`), if it is known.
pub fn judge_hosts(it: &HostsSetting, runtime: Option<&str>) -> Finding {
    let folder = it.folder.display();
    let version = match runtime.map(|it| (it, it.strip_prefix("containerd://"))) {
        Some((other, None)) => {
            return Finding::bad(
                CHECK,
                format!("`{other}` runs its pods; `hosts.toml` is for containerd"),
                "give a registry that nodes reach and trust by themselves: `arco cluster manifest --registry HOST:PORT`",
            );
        }
        Some((_, Some(version))) => Some(number(version)),
        None => None,
    };
    let alone = format!(
        "write `config_path = \"{folder}\"` under `[{}]` in {} on the node and start containerd again; or name the folder that it \
         reads: `arco cluster manifest --trust-registry FOLDER`",
        it.table,
        it.file.display()
    );
    const LIST: &str = "a list of folders, which containerd 2.1 and newer take for one folder when they pull";
    match &it.config_path {
        Some((said, by)) if Path::new(said) == it.folder => {
            Finding::good(CHECK, format!("containerd reads {folder} (`config_path` in {})", by.display()))
        }
        Some((said, by)) if said.split(':').any(|one| Path::new(one) == it.folder) => match version {
            Some(version) if version < (2, 1) => {
                Finding::good(CHECK, format!("containerd reads {folder} (`config_path` in {})", by.display()))
            }
            _ => Finding::warning(CHECK, format!("`config_path` in {} is `{said}`: {LIST}", by.display()), alone),
        },
        Some((said, by)) => Finding::bad(
            CHECK,
            format!("containerd does not read {folder}: `config_path` in {} is `{said}`", by.display()),
            alone,
        ),
        None if !it.unread.is_empty() => Finding::warning(
            CHECK,
            format!("whether containerd reads {folder} is not known: {}", it.unread.join("; ")),
            format!("if nodes cannot pull what is built: {alone}"),
        ),
        None if version.is_some_and(|it| it >= (2, 2)) && it.folder == Path::new(BY_ITSELF) => Finding::warning(
            CHECK,
            format!("containerd has no `config_path` in its settings; its own is {LIST}"),
            alone,
        ),
        None => {
            let misplaced: String = it.misplaced.iter().map(|it| format!("; {it}")).collect();
            let found = format!("containerd does not read {folder}: its settings have no `config_path`{misplaced}");
            Finding::bad(CHECK, found, alone)
        }
    }
}

/// Major and minor of `1.6.20~ds1`.
fn number(version: &str) -> (u32, u32) {
    let mut parts = version.trim_start_matches('v').split('.').map(|it| {
        let digits = it.find(|it: char| !it.is_ascii_digit()).map_or(it, |end| &it[..end]);
        digits.parse().unwrap_or_default()
    });
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Weight;

    fn says(config_path: Option<&str>) -> HostsSetting {
        HostsSetting {
            folder: BY_ITSELF.into(),
            config_path: config_path.map(|it| (it.to_owned(), "/etc/containerd/conf.d/own.toml".into())),
            file: "/etc/containerd/config.toml".into(),
            table: "plugins.\"x\".registry".to_owned(),
            ..HostsSetting::default()
        }
    }

    #[test]
    fn containerd_reads_what_its_settings_name() {
        let list = Some("/etc/containerd/certs.d:/etc/docker/certs.d");
        let (old, new) = (Some("containerd://1.6.20~ds1"), Some("containerd://2.2.0"));
        for (config_path, runtime, weight, part) in [
            (Some("/etc/containerd/certs.d"), old, Weight::Good, "conf.d/own.toml"),
            (Some("/etc/containerd/certs.d/"), new, Weight::Good, "reads /etc/containerd/certs.d"),
            (Some("/etc/containerd/certs.d"), None, Weight::Good, "reads"),
            (list, old, Weight::Good, "reads"),
            (list, Some("containerd://v2.1.4"), Weight::Warning, "for one folder"),
            (list, None, Weight::Warning, "for one folder"),
            (Some("/etc/certs.d"), old, Weight::Bad, "own.toml is `/etc/certs.d`"),
            (Some(""), new, Weight::Bad, "own.toml is ``"),
            (None, old, Weight::Bad, "have no `config_path`"),
            (None, Some("containerd://2.1.4"), Weight::Bad, "have no `config_path`"),
            (None, None, Weight::Bad, "have no `config_path`"),
            (None, new, Weight::Warning, "for one folder"),
            (list, Some("cri-o://1.33.0"), Weight::Bad, "`cri-o://1.33.0`"),
        ] {
            let found = judge_hosts(&says(config_path), runtime);
            assert!(found.weight == weight && found.found.contains(part), "{config_path:?} {runtime:?}: {found:?}");
            let mended = weight == Weight::Good || found.advice.contains("arco cluster manifest --");
            assert!(mended, "{found:?}");
        }
        let other = HostsSetting { folder: "/srv/hosts".into(), ..says(None) };
        assert_eq!(judge_hosts(&other, new).weight, Weight::Bad, "another folder is nobody's default");
    }

    #[test]
    fn what_was_not_read_is_no_proof() {
        let unread = HostsSetting { unread: vec!["/x.toml: why".to_owned()], ..says(None) };
        let found = judge_hosts(&unread, Some("containerd://1.7.0"));
        assert!(found.weight == Weight::Warning && found.found.ends_with("not known: /x.toml: why"), "{found:?}");
        let misplaced = HostsSetting { misplaced: vec!["it stands elsewhere".to_owned()], ..says(None) };
        let found = judge_hosts(&misplaced, Some("containerd://1.7.0"));
        assert!(found.weight == Weight::Bad && found.found.ends_with("; it stands elsewhere"), "{found:?}");
        assert!(found.advice.contains("under `[plugins.\"x\".registry]` in /etc/containerd/config.toml"), "{found:?}");
    }

    #[test]
    fn the_last_line_of_a_log_counts() {
        let (first, last) = (says(None), says(Some("/a")));
        let log = format!("{}\nname is at 10.0.0.1:5000\n{}\nname is not known\n", first.line(), last.line());
        assert_eq!(HostsSetting::of_log(&log), Some(last));
        assert_eq!(HostsSetting::of_log("name is at 10.0.0.1:5000\n"), None);
        assert!(!first.line().contains('\n'));
    }

    #[test]
    fn nodes_that_are_alike_are_told_together() {
        let judged = [("a", says(None)), ("b", says(Some("/etc/containerd/certs.d"))), ("c", says(None))]
            .map(|(node, it)| (node.to_owned(), judge_hosts(&it, None)));
        let found: Vec<String> = together(judged.into_iter()).into_iter().map(|it| it.found).collect();
        assert!(found.len() == 2 && found[0].starts_with("a, c: containerd does not read"), "{found:?}");
        assert!(found[1].starts_with("b: containerd reads"), "{found:?}");
    }

    #[test]
    fn versions() {
        for (text, wanted) in [("1.6.20~ds1", (1, 6)), ("v2.1.0-rc.1", (2, 1)), ("2.2+k3s1", (2, 2)), ("", (0, 0))] {
            assert_eq!(number(text), wanted, "{text}");
        }
    }
}
