//! `arco cluster volume-folder`: makes or removes the folder of one volume on this node. Run by short-lived pods, which the
//! leading controller starts; for the volume of the one server by a DaemonSet of the manifest.
//!
//! What must hold: nothing but that folder is touched, whatever lies in it; doing it twice is doing it once. Nobody on the node
//! but root gets below the folder of volumes, so that each volume can be open to whoever its instances run as.

use super::{Failure, end_of_pod};
use clap::{Args, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Modes of the folder of volumes, and of a volume.
const CLOSED: u32 = 0o700;
const OPEN: u32 = 0o777;
/// How many folders the library may hold open; without a limit it would use up its stack first.
const HELD: u64 = 1024;
/// Folders above what is removed one by one.
const DEEPEST: u32 = 12;
/// Longest name of a volume.
const NAME_MAX: usize = 63;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeFolderCommand {
    /// Make it, empty, unless it is there
    Make {
        #[command(flatten)]
        which: FolderArgs,
        /// Then wait until told to end
        #[arg(long)]
        stay: bool,
    },
    /// Remove it with its content, if it is there
    Remove(FolderArgs),
}

/// Which folder.
#[derive(Args, Debug)]
pub(crate) struct FolderArgs {
    /// The folder of volumes, as it is mounted here
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// Name of the volume
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs.
pub(super) async fn run(command: &VolumeFolderCommand) -> Result<(), Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((HELD, HELD));
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(HELD), hard); // lower is always allowed
    act(command)?;
    if !matches!(command, VolumeFolderCommand::Make { stay: true, .. }) {
        return Ok(());
    }
    end_of_pod()?.recv().await;
    Ok(())
}

fn act(command: &VolumeFolderCommand) -> Result<(), Failure> {
    let (VolumeFolderCommand::Make { which: args, .. } | VolumeFolderCommand::Remove(args)) = command;
    let path = path(args)?;
    let (step, done, advice) = match command {
        VolumeFolderCommand::Make { .. } => (
            "making",
            make(&args.folder, &path),
            "the folder of volumes must be root's, on a file system that can be written",
        ),
        VolumeFolderCommand::Remove(_) => {
            ("removing", remove(&path), "look at the file system of the node; it is tried again")
        }
    };
    done.map_err(|it| Failure::local(format!("{step} {} failed: {it}", args.name), advice))
}

/// The volume's folder; its name cannot lead elsewhere.
fn path(args: &FolderArgs) -> Result<PathBuf, Failure> {
    let name = args.name.as_str();
    let plain = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        return Err(Failure::usage("name_invalid", format!("`{name}` is not the name of a volume"), "give pvc-UID"));
    }
    Ok(args.folder.join(name))
}

fn make(folder: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(folder, Permissions::from_mode(CLOSED))?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => made?,
    }
    // The mode goes through the process's mask; of one that is in use, what the node added to it stays.
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & OPEN == OPEN { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(mode | OPEN)) }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::EMFILE) => remove_deep(path),
        done => done,
    }
}

/// The library holds each folder above the one that it removes open: an instance that nested more of them than that must not
/// keep its volume for ever. What lies deep is moved up first, so that no path grows too long either.
fn remove_deep(root: &Path) -> std::io::Result<()> {
    let (mut at, mut depth, mut moved) = (root.to_owned(), 0, 0_u64);
    loop {
        let mut below = None;
        for entry in std::fs::read_dir(&at)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                below = Some(entry.path());
                break;
            }
            std::fs::remove_file(entry.path())?;
        }
        match below {
            Some(deep) if depth == DEEPEST => {
                let mut up = root.join(format!("moved-{moved}"));
                while up.symlink_metadata().is_ok() {
                    moved += 1;
                    up = root.join(format!("moved-{moved}"));
                }
                std::fs::rename(deep, up)?;
            }
            Some(next) => (at, depth) = (next, depth + 1),
            None => {
                std::fs::remove_dir(&at)?;
                if depth == 0 {
                    return Ok(());
                }
                at.pop();
                depth -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(folder: &Path, name: &str) -> [VolumeFolderCommand; 2] {
        let args = || FolderArgs { folder: folder.to_owned(), name: name.to_owned() };
        [VolumeFolderCommand::Make { which: args(), stay: false }, VolumeFolderCommand::Remove(args())]
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_volume_is_made_once_and_removed_with_all_that_lies_in_it() {
        let root = tempfile::tempdir().unwrap();
        let (folder, outside) = (root.path().join("volumes"), root.path().join("outside"));
        for it in [&folder, &outside] {
            std::fs::create_dir(it).unwrap();
        }
        std::fs::write(outside.join("kept"), "x").unwrap();
        let [make, remove] = asked(&folder, "pvc-u1");
        act(&make).unwrap();
        let volume = folder.join("pvc-u1");
        assert_eq!((mode(&folder), mode(&volume)), (CLOSED, OPEN));
        std::fs::write(volume.join("file"), "content").unwrap();
        std::fs::set_permissions(&volume, Permissions::from_mode(0o2777)).unwrap();
        act(&make).unwrap();
        assert_eq!(mode(&volume), 0o2777, "as the node keeps it for a group");
        assert_eq!(std::fs::read_to_string(volume.join("file")).unwrap(), "content", "it is there already");

        let closed = volume.join("closed");
        std::fs::create_dir_all(closed.join("deep")).unwrap();
        std::os::unix::fs::symlink(&outside, closed.join("deep/link")).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        act(&remove).unwrap();
        assert!(!volume.exists() && outside.join("kept").exists(), "links are not followed");
        act(&remove).unwrap();
        assert!(folder.exists());
    }

    #[test]
    fn what_is_nested_too_deep_is_removed_too() {
        let root = tempfile::tempdir().unwrap();
        let (volume, outside) = (root.path().join("pvc-u1"), root.path().join("outside"));
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        for chain in ["a", "b"] {
            let mut deep = volume.join(chain);
            (0..100).for_each(|_| deep.push("d"));
            std::fs::create_dir_all(&deep).unwrap();
            std::fs::write(deep.join("file"), "x").unwrap();
            std::os::unix::fs::symlink(&outside, deep.join("link")).unwrap();
        }
        std::fs::write(volume.join("moved-0"), "in its way").unwrap();
        remove_deep(&volume).unwrap();
        assert!(!volume.exists() && outside.join("kept").exists());
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("volumes");
        std::fs::create_dir(&folder).unwrap();
        for name in ["", ".", "..", "pvc-/../../x", "pvc-..", "/etc", "pvc-A", "pvc-a/b"] {
            for it in asked(&folder, name) {
                assert_eq!(act(&it).unwrap_err().body.code, "name_invalid", "{name}");
            }
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_failure_names_the_volume_and_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let [make, _] = asked(&root.path().join("missing"), "pvc-u1");
        let failure = act(&make).unwrap_err().body;
        assert!(failure.message.starts_with("making pvc-u1 failed: ") && !failure.advice.is_empty(), "{failure:?}");
    }
}
