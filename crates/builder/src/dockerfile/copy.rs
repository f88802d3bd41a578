//! COPY and ADD: which entries of which layers go where, and the layer that they make.
//!
//! Nothing is unpacked: entries are read from the tars of the layers they come from. Targets go through links of the
//! image (`/bin` is `usr/bin`), because a folder in a layer would hide the link below it.

use crate::layer::{FileTree, FinishedLayer, LayerWriter, Meta, Seen, above, read_tar};
use arco_model::artifact::Layer;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Where copied files come from.
pub(super) struct From<'a> {
    /// Its files.
    pub(super) tree: &'a FileTree,
    /// Folder of the tree that is the root: `app` for the source, empty for an image.
    pub(super) root: &'a str,
    /// Whether a path (relative to the root) is there at all.
    pub(super) visible: &'a (dyn Fn(&str, bool) -> bool + Send + Sync),
}

/// What is to be copied: in layer `.0`, path → targets.
#[derive(Debug, Default)]
pub(super) struct CopyPlan {
    pub(super) entries: BTreeMap<usize, BTreeMap<String, Vec<String>>>,
    /// Archives to unpack (ADD): layer, path, target folder.
    pub(super) archives: Vec<(usize, String, String)>,
    folders: BTreeSet<String>,
}

/// Owner and mode that were asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ownership {
    pub(super) user: u64,
    pub(super) group: u64,
    pub(super) mode: Option<u32>,
}

/// Whether a name is an archive that ADD unpacks.
fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|it| name.ends_with(it))
}

/// Finds the entries. `sources` are words of the instruction, `target` is absolute; the error is a text.
pub(super) fn plan(
    from: &From<'_>,
    into: &FileTree,
    sources: &[String],
    target: &str,
    unpack: bool,
) -> Result<CopyPlan, String> {
    let mut plan = CopyPlan::default();
    let many = sources.len() > 1 || sources.iter().any(|it| it.contains(['*', '?', '[']));
    let trailing = target.ends_with('/') || target.ends_with("/.");
    if sources.len() > 1 && !trailing && !into.is_folder(target) {
        return Err(format!("with several sources the target `{target}` must be a folder and end with `/`"));
    }
    let (real_target, _) = into.resolve(target);
    let target_is_folder = trailing || into.is_folder(target);
    for source in sources {
        let matches = find(from, source);
        if matches.is_empty() {
            return Err(format!("`{source}` was not found, or .dockerignore leaves it out"));
        }
        for path in matches {
            let full = join(from.root, &path);
            let (real, found) = from.tree.resolve(&full);
            let is_folder = real.is_empty() || found.is_none() || found.is_some_and(|it| it.seen == Seen::Folder);
            if is_folder {
                plan.folder(into, &real_target);
                for (below, entry) in from.tree.below(&real) {
                    let relative = below[real.len()..].trim_start_matches('/');
                    let seen_path = join(&path, relative);
                    if !(from.visible)(&seen_path, entry.seen == Seen::Folder) {
                        continue;
                    }
                    let place = into_place(into, &real_target, relative);
                    plan.entries
                        .entry(entry.layer)
                        .or_default()
                        .entry(entry.content_of.clone().unwrap_or_else(|| below.to_owned()))
                        .or_default()
                        .push(place);
                }
            } else if let Some(entry) = found {
                let name = path.rsplit('/').next().unwrap_or(&path);
                if unpack && is_archive(name) {
                    plan.archives.push((
                        entry.layer,
                        entry.content_of.clone().unwrap_or(real.clone()),
                        real_target.clone(),
                    ));
                    continue;
                }
                let place =
                    if target_is_folder || many { into_place(into, &real_target, name) } else { real_target.clone() };
                plan.entries
                    .entry(entry.layer)
                    .or_default()
                    .entry(entry.content_of.clone().unwrap_or(real.clone()))
                    .or_default()
                    .push(place);
            }
        }
    }
    Ok(plan)
}

impl CopyPlan {
    fn folder(&mut self, into: &FileTree, path: &str) {
        if !path.is_empty() && !into.is_folder(path) {
            self.folders.insert(path.to_owned());
        }
    }
}

fn join(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("", name) => name.to_owned(),
        (folder, "") => folder.to_owned(),
        (folder, name) => format!("{folder}/{name}"),
    }
}

/// A path below the target, through links that lead to folders of the image.
fn into_place(into: &FileTree, target: &str, relative: &str) -> String {
    let path = join(target, relative);
    match path.rsplit_once('/') {
        Some((parent, name)) => join(&into.resolve(parent).0, name),
        None => path,
    }
}

/// Paths (relative to the root) that a source word means.
fn find(from: &From<'_>, source: &str) -> Vec<String> {
    let clean: Vec<&str> = source.split('/').filter(|it| !it.is_empty() && *it != "." && *it != "..").collect();
    let clean = clean.join("/");
    if clean.is_empty() {
        return vec![String::new()];
    }
    if !clean.contains(['*', '?', '[']) {
        let full = join(from.root, &clean);
        let (real, found) = from.tree.resolve(&full);
        let there = found.is_some() || from.tree.is_folder(&full);
        let inside = from.root.is_empty() || real == from.root || real.starts_with(&format!("{}/", from.root));
        let shown = (from.visible)(&clean, from.tree.is_folder(&full)) || from.tree.is_folder(&full);
        return if there && inside && shown { vec![clean] } else { Vec::new() };
    }
    let depth = clean.matches('/').count();
    let candidates = from.tree.iter().filter_map(|(path, it)| {
        let path = if from.root.is_empty() { path } else { path.strip_prefix(from.root)?.strip_prefix('/')? };
        Some((path, it))
    });
    candidates
        .filter(|(path, _)| path.matches('/').count() == depth)
        .filter(|(path, _)| {
            path.split('/').zip(clean.split('/')).all(|(name, pattern)| matches(pattern.as_bytes(), name.as_bytes()))
        })
        .filter(|(path, it)| (from.visible)(path, it.seen == Seen::Folder))
        .map(|it| it.0.to_owned())
        .collect()
}

/// Whether a name fits a pattern with `*`, `?` and `[a-z]` (Go's filepath.Match).
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&pattern[1..], name) || (!name.is_empty() && matches(pattern, &name[1..])),
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &name[1..]),
        (Some(b'['), Some(byte)) => {
            let Some(end) = pattern.iter().position(|it| *it == b']') else { return false };
            let (negated, set) =
                if pattern.get(1) == Some(&b'^') { (true, &pattern[2..end]) } else { (false, &pattern[1..end]) };
            let range = set.windows(3).any(|it| it[1] == b'-' && (it[0]..=it[2]).contains(byte));
            (set.contains(byte) || range) != negated && matches(&pattern[end + 1..], &name[1..])
        }
        (Some(it), Some(byte)) => it == byte && matches(&pattern[1..], &name[1..]),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Writes the layer. `open` gives the blob of a layer by its number; `inline` are files by their absolute target.
/// Blocking.
pub(super) fn write(
    plan: &CopyPlan,
    layers: &[Layer],
    files: Vec<(usize, File)>,
    inline: &[(String, String)],
    owner: Ownership,
    work: &Path,
) -> io::Result<FinishedLayer> {
    let mut writer = LayerWriter::new(work)?;
    let mut folders = BTreeSet::new();
    let owned = |header: &tar::Header| -> io::Result<Meta> {
        Ok(Meta {
            mode: owner.mode.unwrap_or(header.mode()?),
            uid: owner.user,
            gid: owner.group,
            mtime: header.mtime()?,
        })
    };
    let new_folder = Meta { mode: 0o755, uid: owner.user, gid: owner.group, mtime: 0 };
    for folder in &plan.folders {
        above(&mut writer, &mut folders, folder)?;
        if folders.insert(folder.clone()) {
            writer.folder(folder, new_folder)?;
        }
    }
    for (number, file) in files {
        let wanted = plan.entries.get(&number);
        let mut archive = tar::Archive::new(read_tar(file, &layers[number].blob.media_type)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_start_matches("./").trim_matches('/').to_owned();
            let kind = entry.header().entry_type();
            if let Some((_, _, target)) = plan.archives.iter().find(|it| it.0 == number && it.1 == path) {
                unpack(&mut writer, &mut folders, &path, &mut entry, target)?;
                continue;
            }
            let Some(targets) = wanted.and_then(|it| it.get(&path)) else { continue };
            let meta = owned(entry.header())?;
            for target in targets {
                above(&mut writer, &mut folders, target)?;
            }
            if kind.is_dir() {
                let mode = entry.header().mode()?;
                for target in targets.iter().filter(|it| !it.is_empty()) {
                    if folders.insert(target.clone()) {
                        writer.folder(target, Meta { mode, ..meta })?;
                    }
                }
            } else if kind.is_symlink() {
                let link = entry.link_name()?.unwrap_or_default().into_owned();
                for target in targets {
                    writer.link(target, Meta { mode: 0o777, ..meta }, &link)?;
                }
            } else if kind.is_file() {
                let size = entry.size();
                if let [target] = targets.as_slice() {
                    writer.file(target, meta, size, &mut entry)?;
                } else {
                    let mut content = Vec::with_capacity(size as usize);
                    entry.read_to_end(&mut content)?;
                    for target in targets {
                        writer.file(target, meta, size, content.as_slice())?;
                    }
                }
            }
        }
    }
    for (target, content) in inline {
        above(&mut writer, &mut folders, target)?;
        let meta = Meta { mode: owner.mode.unwrap_or(0o644), uid: owner.user, gid: owner.group, mtime: 0 };
        writer.file(target, meta, content.len() as u64, content.as_bytes())?;
    }
    writer.finish()
}

/// Unpacks an archive of the source below a folder; what would leave it is refused.
fn unpack(
    writer: &mut LayerWriter,
    folders: &mut BTreeSet<String>,
    name: &str,
    content: &mut dyn Read,
    target: &str,
) -> io::Result<()> {
    let reader: Box<dyn Read + '_> = match name {
        it if it.ends_with("gz") => Box::new(flate2::read::MultiGzDecoder::new(content)),
        it if it.ends_with("zst") => Box::new(zstd::stream::read::Decoder::new(content)?),
        _ => Box::new(content),
    };
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let climbs =
            path.components().any(|it| !matches!(it, std::path::Component::Normal(_) | std::path::Component::CurDir));
        if climbs {
            return Err(io::Error::other(format!("`{name}` holds the path `{}`, which leaves it", path.display())));
        }
        let place = join(target, path.to_string_lossy().trim_start_matches("./").trim_matches('/'));
        let meta = Meta { mode: entry.header().mode()?, uid: 0, gid: 0, mtime: entry.header().mtime()? };
        let kind = entry.header().entry_type();
        if place.is_empty() {
            continue;
        }
        above(writer, folders, &place)?;
        if kind.is_dir() {
            if folders.insert(place.clone()) {
                writer.folder(&place, meta)?;
            }
        } else if kind.is_symlink() {
            writer.link(&place, meta, &entry.link_name()?.unwrap_or_default())?;
        } else if kind.is_hard_link() {
            let link = join(target, entry.link_name()?.unwrap_or_default().to_string_lossy().trim_start_matches("./"));
            writer.hard_link(&place, meta, &link)?;
        } else if kind.is_file() {
            let size = entry.size();
            writer.file(&place, meta, size, &mut entry)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, name, expected) in [
            ("*.go", "a.go", true),
            ("a*", "b", false),
            ("?.c", "x.c", true),
            ("[a-c]x", "bx", true),
            ("[^a]x", "ax", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
