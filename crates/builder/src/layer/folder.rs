//! A folder of this machine as a layer: a root file system, or the upper folder of an overlay with its deletions.

use super::{FinishedLayer, LayerWriter, Meta};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Writes everything below `root` that `keep` wants (asked with the relative path), in order of names.
///
/// Deletions of an overlay become whiteouts (OCI image spec, layer.md). Devices and sockets are left out.
pub(crate) fn from_folder(root: &Path, work: &Path, keep: &dyn Fn(&str) -> bool) -> io::Result<FinishedLayer> {
    let mut writer = LayerWriter::new(work)?;
    let mut seen = BTreeMap::new();
    walk(root, "", &mut writer, keep, &mut seen)?;
    writer.finish()
}

fn walk(
    folder: &Path,
    prefix: &str,
    writer: &mut LayerWriter,
    keep: &dyn Fn(&str) -> bool,
    seen: &mut BTreeMap<(u64, u64), String>,
) -> io::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|it| Ok(it?.path())).collect::<io::Result<_>>()?;
    entries.sort();
    for path in entries {
        let Some(name) = path.file_name().and_then(|it| it.to_str()) else { continue };
        let relative = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        if !keep(&relative) {
            continue;
        }
        let found = std::fs::symlink_metadata(&path)?;
        let meta = Meta {
            mode: found.mode(),
            uid: found.uid().into(),
            gid: found.gid().into(),
            mtime: found.mtime().max(0) as u64,
        };
        let kind = found.file_type();
        if kind.is_dir() {
            writer.folder(&relative, meta)?;
            if is_opaque(&path) {
                writer.file(&format!("{relative}/.wh..wh..opq"), Meta::root(0o600), 0, io::empty())?;
            }
            walk(&path, &relative, writer, keep, seen)?;
        } else if kind.is_symlink() {
            writer.link(&relative, meta, &std::fs::read_link(&path)?)?;
        } else if kind.is_file() {
            if found.nlink() > 1 {
                if let Some(first) = seen.get(&(found.dev(), found.ino())) {
                    writer.hard_link(&relative, meta, first)?;
                    continue;
                }
                seen.insert((found.dev(), found.ino()), relative.clone());
            }
            writer.file(&relative, meta, found.size(), File::open(&path)?)?;
        } else if kind.is_char_device() && found.rdev() == 0 {
            let whiteout = if prefix.is_empty() { format!(".wh.{name}") } else { format!("{prefix}/.wh.{name}") };
            writer.file(&whiteout, Meta::root(0o600), 0, io::empty())?;
        }
    }
    Ok(())
}

fn is_opaque(folder: &Path) -> bool {
    let mut value = [0u8; 1];
    matches!(rustix::fs::lgetxattr(folder, "trusted.overlay.opaque", &mut value), Ok(1)) && value[0] == b'y'
}
