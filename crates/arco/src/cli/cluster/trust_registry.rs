//! `arco cluster trust-registry`: keeps one `hosts.toml` of containerd on this node, so that it finds the platform's registry
//! by the name that images carry. Run by a DaemonSet; removes the file when it is told to end, unless its successor has taken
//! the file over: a rollout starts the new pod first, so that nodes can pull meanwhile.
//!
//! What must hold: only that one file is touched, and removed by whom it names alone. Nodes do not know the cluster's
//! names, so the file has the address of the service, which is asked for again: a service that was made anew has another.
//! Whether containerd reads the file at all is looked up in its settings ([`settings`]) and said in the log, where
//! `arco doctor --cluster` reads it.

mod settings;

use super::{Failure, end_of_pod};
use arco_orchestrator_kubernetes::preflight::{Weight, judge_hosts};
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a file of ours begins.
const MARK: &str = "# of the pod ";
/// How often the address is asked for.
const AGAIN: Duration = Duration::from_secs(30);

/// Flags.
#[derive(Args, Debug)]
pub(crate) struct TrustArgs {
    /// How images name the registry
    #[arg(long, value_name = "HOST:PORT")]
    name: String,
    /// Where it answers inside the cluster
    #[arg(long, value_name = "HOST:PORT")]
    service: String,
    /// containerd's folder of hosts, as it is mounted here
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// The same folder, as the node calls it
    #[arg(long, value_name = "FOLDER")]
    node_folder: PathBuf,
    /// The folder of containerd's `config.toml`, as it is mounted here
    #[arg(long, value_name = "FOLDER")]
    settings: PathBuf,
    /// The same folder, as the node calls it
    #[arg(long, value_name = "FOLDER")]
    node_settings: PathBuf,
}

/// Runs until it is told to end.
pub(super) async fn run(args: &TrustArgs) -> Result<(), Failure> {
    if args.name.contains('/') || args.name.starts_with('.') {
        return Err(Failure::usage("name_invalid", format!("`{}` is not HOST:PORT", args.name), "give HOST:PORT"));
    }
    let mut terminate = end_of_pod()?;
    let folder = args.folder.join(&args.name);
    let mine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    take_over(&folder, &mine).map_err(|it| unwritten(&folder, &it))?;
    let (mut written, mut told) = (None, None);
    loop {
        let setting = settings::look(&args.settings, &args.node_settings, &args.node_folder);
        if told.as_ref() != Some(&setting) {
            let judged = judge_hosts(&setting, None);
            let todo = if judged.weight == Weight::Good { String::new() } else { format!("; {}", judged.advice) };
            eprintln!("{}{todo}\n{}", judged.found, setting.line());
            told = Some(setting);
        }
        match tokio::net::lookup_host(&args.service).await.map(|mut it| it.next()) {
            Ok(Some(address)) if written != Some(address) => {
                write(&folder, &hosts_toml(&mine, address)).map_err(|it| unwritten(&folder, &it))?;
                eprintln!("{} is at {address}", args.name);
                written = Some(address);
            }
            Ok(Some(_)) => {}
            Ok(None) => eprintln!("{} has no address yet", args.service),
            Err(error) => eprintln!("{} is not known: {error}", args.service),
        }
        tokio::select! {
            _ = terminate.recv() => break,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
    leave(&folder, &mine);
    Ok(())
}

fn unwritten(folder: &Path, error: &std::io::Error) -> Failure {
    let advice = "check the folder's mount, and that containerd reads it (`config_path` of its registry)";
    Failure::local(format!("writing {}: {error}", folder.join("hosts.toml").display()), advice)
}

/// The whole file or none: containerd reads it at each pull.
fn write(folder: &Path, text: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let part = folder.join(".hosts.toml.part");
    std::fs::write(&part, text)?;
    std::fs::rename(part, folder.join("hosts.toml"))
}

/// A file with the name of the pod whose it is in its first line.
fn hosts_toml(mine: &str, address: SocketAddr) -> String {
    format!(
        "{MARK}{mine}\nserver = \"http://{address}\"\n\n[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    )
}

/// Whose file a text is, and the rest of it; nothing for one that is not ours.
fn owner(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix(MARK)?.split_once('\n')
}

/// Makes the file of a predecessor, who may still be there, our own; what it says stays.
fn take_over(folder: &Path, mine: &str) -> std::io::Result<()> {
    let text = std::fs::read_to_string(folder.join("hosts.toml")).unwrap_or_default();
    match owner(&text) {
        Some((_, rest)) => write(folder, &format!("{MARK}{mine}\n{rest}")),
        None => Ok(()),
    }
}

/// Removes our own file. A folder in which something else lies stays.
fn leave(folder: &Path, mine: &str) {
    let file = folder.join("hosts.toml");
    if std::fs::read_to_string(&file).is_ok_and(|it| owner(&it).is_some_and(|it| it.0 == mine)) {
        let _ = std::fs::remove_file(file);
        let _ = std::fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_whole_and_names_the_address() {
        let folder = tempfile::tempdir().unwrap();
        let mine = folder.path().join("arco-registry.arco-system.svc:5000");
        write(&mine, &hosts_toml("pod-1", "10.96.0.7:5000".parse().unwrap())).unwrap();
        let text = std::fs::read_to_string(mine.join("hosts.toml")).unwrap();
        let parsed: toml::Table = text.parse().unwrap();
        assert_eq!(parsed["server"].as_str(), Some("http://10.96.0.7:5000"));
        assert!(parsed["host"].as_table().unwrap().contains_key("http://10.96.0.7:5000"));
        assert_eq!(std::fs::read_dir(&mine).unwrap().count(), 1, "no part is left");
    }

    #[test]
    fn who_leaves_removes_only_what_nobody_took_over() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("arco-registry.arco-system.svc:5000");
        let file = place.join("hosts.toml");
        take_over(&place, "pod-1").unwrap();
        assert!(!place.exists(), "there is nothing to take over");
        let text = |pod| hosts_toml(pod, "10.96.0.7:5000".parse().unwrap());
        write(&place, &text("pod-1")).unwrap();
        take_over(&place, "pod-2").unwrap();
        leave(&place, "pod-1");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text("pod-2"), "nodes can pull while pods are replaced");
        leave(&place, "pod-2");
        assert!(!place.exists());
        write(&place, "server = \"https://by.hand\"\n").unwrap();
        take_over(&place, "pod-3").unwrap();
        leave(&place, "pod-3");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "server = \"https://by.hand\"\n");
    }
}
