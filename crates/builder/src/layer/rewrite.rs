//! Layers made of other layers: the same entries at other paths.

use super::{FinishedLayer, LayerWriter, Meta, read_tar};
use arco_model::artifact::Layer;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

/// Writes the entries for which `place` gives a new path. Hard links whose target is left out become nothing; folders
/// above are made. Blocking.
pub(crate) fn rewrite(
    layer: &Layer,
    file: File,
    work: &Path,
    place: &dyn Fn(&str) -> Option<String>,
) -> io::Result<FinishedLayer> {
    let mut writer = LayerWriter::new(work)?;
    let (mut folders, mut files) = (BTreeSet::new(), BTreeSet::new());
    let mut archive = tar::Archive::new(read_tar(file, &layer.blob.media_type)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().trim_start_matches("./").trim_matches('/').to_owned();
        let Some(target) = place(&path) else { continue };
        let header = entry.header();
        let meta = Meta { mode: header.mode()?, uid: header.uid()?, gid: header.gid()?, mtime: header.mtime()? };
        let kind = header.entry_type();
        if kind.is_dir() {
            if !target.is_empty() {
                above(&mut writer, &mut folders, &target)?;
                if folders.insert(target.clone()) {
                    writer.folder(&target, meta)?;
                }
            }
            continue;
        }
        above(&mut writer, &mut folders, &target)?;
        if kind.is_symlink() {
            let link = entry.link_name()?.unwrap_or_default().into_owned();
            writer.link(&target, meta, &link)?;
        } else if kind.is_hard_link() {
            let link = entry.link_name()?.unwrap_or_default().to_string_lossy().into_owned();
            if let Some(first) = place(link.trim_start_matches("./")).filter(|it| files.contains(it)) {
                writer.hard_link(&target, meta, &first)?;
            }
        } else if kind.is_file() {
            let size = entry.size();
            writer.file(&target, meta, size, &mut entry)?;
            files.insert(target);
        }
    }
    writer.finish()
}

/// Writes the folders above a path, each once.
pub(crate) fn above(writer: &mut LayerWriter, folders: &mut BTreeSet<String>, path: &str) -> io::Result<()> {
    let ends: Vec<usize> = path.match_indices('/').map(|it| it.0).collect();
    for end in ends {
        let folder = &path[..end];
        if folders.insert(folder.to_owned()) {
            writer.folder(folder, Meta::root(0o755))?;
        }
    }
    Ok(())
}
