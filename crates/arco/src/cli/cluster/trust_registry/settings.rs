//! containerd's settings on this node, as far as they say where it looks for `hosts.toml`.
//!
//! `config.toml` and what it imports, the last one that says it counts, as in containerd. What must hold: nothing is written,
//! and what cannot be read is told instead of being taken for nothing. Not here: what it means (`preflight::judge_hosts`).

use arco_orchestrator_kubernetes::preflight::HostsSetting;
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The plugin that `registry.config_path` belongs to, by the version of the settings: 1, 2, 3.
const PLUGINS: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];

/// What the settings say that are mounted at `mount` from the folder `node` of the node; we write to its folder `hosts`.
pub(super) fn look(mount: &Path, node: &Path, hosts: &Path) -> HostsSetting {
    let file = node.join("config.toml");
    let mut found = HostsSetting { folder: hosts.to_owned(), file: file.clone(), ..HostsSetting::default() };
    let mut version = 0;
    let (mut todo, mut known) = (VecDeque::from([file]), BTreeSet::new());
    while let Some(file) = todo.pop_front() {
        if !known.insert(file.clone()) {
            continue;
        }
        let settings = match read(mount, node, &file) {
            Ok(Some(settings)) => settings,
            Ok(None) => continue,
            Err(why) => {
                found.unread.push(format!("{}: {why}", file.display()));
                continue;
            }
        };
        let own = settings.get("version").and_then(Value::as_integer);
        if version == 0 {
            version = own.unwrap_or(1).clamp(1, 3);
        }
        let own = own.unwrap_or(version).clamp(1, 3);
        for (number, plugin) in (1..).zip(PLUGINS) {
            let Some(said) = config_path(&settings, plugin) else { continue };
            if number == own {
                found.config_path = Some((said.to_owned(), file.clone()));
            } else if !said.is_empty() {
                found.misplaced.push(format!(
                    "`config_path` of `{plugin}` in {} does not count in settings of version {own}",
                    file.display()
                ));
            }
        }
        for import in settings.get("imports").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            let import = file.parent().unwrap_or(node).join(import);
            match imported(mount, node, &import) {
                Ok(files) => todo.extend(files),
                Err(why) => found.unread.push(format!("{}: {why}", import.display())),
            }
        }
    }
    // Without settings: as a new containerd writes them.
    let plugin = PLUGINS.get((if version == 0 { 2 } else { version - 1 }) as usize).copied().unwrap_or_default();
    found.table = format!("plugins.\"{plugin}\".registry");
    found
}

fn config_path<'a>(settings: &'a Table, plugin: &str) -> Option<&'a str> {
    settings.get("plugins")?.get(plugin)?.get("registry")?.get("config_path")?.as_str()
}

/// The place here of a file of the node.
fn here(mount: &Path, node: &Path, file: &Path) -> Result<PathBuf, String> {
    let inside = file.strip_prefix(node).ok().filter(|it| !it.components().any(|it| it.as_os_str() == ".."));
    inside.map(|it| mount.join(it)).ok_or_else(|| format!("only {} is seen here", node.display()))
}

/// A file of the settings; `None` where there is none.
fn read(mount: &Path, node: &Path, file: &Path) -> Result<Option<Table>, String> {
    let at = here(mount, node, file)?;
    match std::fs::read_to_string(&at) {
        Ok(text) => text.parse::<Table>().map(Some).map_err(|it| it.message().to_owned()),
        // A link that leads out of the folder is a file there, and none here.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && at.symlink_metadata().is_err() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// The files that an import means, in order: one, or those of a folder that a pattern `before*after` fits.
fn imported(mount: &Path, node: &Path, import: &Path) -> Result<Vec<PathBuf>, String> {
    let is_pattern = |it: &str| it.contains(['*', '?', '[']);
    let name = import.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = import.parent().unwrap_or(node);
    if is_pattern(&folder.to_string_lossy()) {
        return Err("patterns of folders are not followed here".to_owned());
    }
    if !is_pattern(&name) {
        return Ok(vec![import.to_owned()]);
    }
    let (before, after) = name
        .split_once('*')
        .filter(|(a, b)| !is_pattern(a) && !is_pattern(b))
        .ok_or("this pattern is not followed here")?;
    let entries = match std::fs::read_dir(here(mount, node, folder)?) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let names = entries.filter_map(|it| it.ok()?.file_name().into_string().ok());
    let fits = |it: &String| it.len() >= before.len() + after.len() && it.starts_with(before) && it.ends_with(after);
    let files: BTreeSet<PathBuf> = names.filter(fits).map(|it| folder.join(it)).collect();
    Ok(files.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "/etc/containerd/certs.d";

    fn looked(files: &[(&str, &str)]) -> HostsSetting {
        let mount = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = mount.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        look(mount.path(), Path::new("/etc/containerd"), Path::new(HOSTS))
    }

    #[test]
    fn each_layout_has_its_table() {
        let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a\"\n";
        let new = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/a'\n";
        let oldest = "[plugins.cri.registry]\nconfig_path = \"/a\"\n";
        let mixed = old.replace("version = 2", "version = 3");
        for (text, path, table, misplaced) in [
            (old, Some("/a"), "plugins.\"io.containerd.grpc.v1.cri\".registry", 0),
            (new, Some("/a"), "plugins.\"io.containerd.cri.v1.images\".registry", 0),
            (oldest, Some("/a"), "plugins.\"cri\".registry", 0),
            (mixed.as_str(), None, "plugins.\"io.containerd.cri.v1.images\".registry", 1),
            ("version = 2\n", None, "plugins.\"io.containerd.grpc.v1.cri\".registry", 0),
            ("version = 3\n[plugins]\n", None, "plugins.\"io.containerd.cri.v1.images\".registry", 0),
        ] {
            let found = looked(&[("config.toml", text)]);
            assert_eq!(found.config_path.as_ref().map(|it| it.0.as_str()), path, "{text}");
            assert_eq!((found.table.as_str(), found.misplaced.len()), (table, misplaced), "{text}");
            assert!(found.unread.is_empty() && found.folder == Path::new(HOSTS), "{found:?}");
        }
        let none = looked(&[]);
        assert!(none.config_path.is_none() && none.unread.is_empty() && !none.table.is_empty(), "{none:?}");
    }

    #[test]
    fn imports_are_followed_in_order() {
        let own = |path: &str| {
            format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{path}\"\n")
        };
        let first = format!("imports = [\"/etc/containerd/conf.d/*.toml\", \"more.toml\"]\n{}", own("/first"));
        let (second, third) = (own("/second"), own("/third"));
        let files = [
            ("config.toml", first.as_str()),
            ("conf.d/10.toml", third.as_str()),
            ("conf.d/20.toml", second.as_str()),
            ("conf.d/30.txt", "not read ["),
        ];
        let found = looked(&files);
        assert_eq!(found.config_path, Some(("/second".to_owned(), "/etc/containerd/conf.d/20.toml".into())));
        assert!(found.unread.is_empty(), "an import that is not there is none: {found:?}");
        // One that imports itself ends.
        let around = looked(&[("config.toml", "imports = [\"config.toml\", \"./config.toml\"]\nversion = 2\n")]);
        assert!(around.config_path.is_none() && around.unread.is_empty(), "{around:?}");
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        for (text, part) in [
            ("version = [\n", "/etc/containerd/config.toml: "),
            ("imports = [\"/opt/containerd/*.toml\"]\n", "/opt/containerd/*.toml: only /etc/containerd is seen here"),
            ("imports = [\"../other.toml\"]\n", "other.toml: only /etc/containerd is seen here"),
            ("imports = [\"*/x.toml\"]\n", "patterns of folders"),
            ("imports = [\"conf.d/[ab]*.toml\"]\n", "this pattern"),
        ] {
            let found = looked(&[("config.toml", text)]);
            assert!(found.unread.len() == 1 && found.unread[0].contains(part), "{text}: {found:?}");
        }
        let mount = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/elsewhere/config.toml", mount.path().join("config.toml")).unwrap();
        let found = look(mount.path(), Path::new("/etc/containerd"), Path::new(HOSTS));
        assert_eq!(found.unread.len(), 1, "a link that leads out is not nothing: {found:?}");
    }
}
