//! Cleans an archive from outside while it is copied into a layer.

use crate::layer::{FinishedLayer, LayerWriter, Meta};
use crate::tree::{ENTRIES_MAX, EntryKind, Tree};
use arco_model::error::Problem;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Component, Path};

/// What an archive may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of all files together.
    pub(crate) total_bytes: u64,
}

/// Files up to this size are read into memory, larger ones go through a temporary file.
const IN_MEMORY: u64 = 4 << 20;
/// Longest path, in bytes.
const PATH_MAX: usize = 1024;
/// Most warnings that are kept.
const WARNINGS_MAX: usize = 10;

/// A cleaned archive.
pub(crate) struct Clean {
    pub(crate) layer: FinishedLayer,
    pub(crate) tree: Tree,
    pub(crate) warnings: Vec<String>,
}

fn refuse(message: String) -> Problem {
    Problem::invalid("source_refused", message, "remove it from the source, and deploy again")
}

fn unreadable(error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::StorageFull {
        return Problem::new(
            arco_model::error::ErrorKind::LimitReached,
            "disk_full",
            "the disk is full while the source is unpacked",
            "free space in the data dir",
        );
    }
    Problem::invalid(
        "source_unreadable",
        format!("the source archive cannot be read: {error}"),
        "upload it again; it must be a tar archive",
    )
}

/// Reads a tar, keeps what lies below `strip` and `dir` (both relative, may be empty), and writes it below `app/`.
/// Blocking.
pub(crate) fn clean(tar: impl Read, strip: &str, dir: &str, limits: Limits, work: &Path) -> Result<Clean, Problem> {
    let inside = [strip, dir]
        .map(|it| it.trim_matches('/'))
        .into_iter()
        .filter(|it| !it.is_empty() && *it != ".")
        .collect::<Vec<_>>()
        .join("/");
    let mut state = State {
        writer: LayerWriter::new(work).map_err(|it| unreadable(&it))?,
        tree: Tree::default(),
        outside: Tree::default(),
        warnings: Vec::new(),
        folders: BTreeSet::new(),
        files: BTreeSet::new(),
        left: limits.total_bytes,
        limit: limits.total_bytes,
    };
    state.folder("app").map_err(|it| unreadable(&it))?;
    let mut archive = tar::Archive::new(tar);
    for (count, entry) in archive.entries().map_err(|it| unreadable(&it))?.enumerate() {
        if count >= ENTRIES_MAX {
            return Err(refuse(format!("the source holds more than {ENTRIES_MAX} entries")));
        }
        let mut entry = entry.map_err(|it| unreadable(&it))?;
        let path = safe_path(&entry.path_bytes())?;
        let Some(path) = path else { continue };
        let below = match inside.as_str() {
            "" => Some(path.as_str()),
            inside => path.strip_prefix(inside).and_then(|it| it.strip_prefix('/')),
        };
        match below {
            Some(below) if below != ".git" && !below.starts_with(".git/") => {
                state.entry(below, &inside, &mut entry, work)?
            }
            Some(_) => {}
            None => {
                state.outside.add(path.strip_prefix(strip).unwrap_or(&path).trim_matches('/'), EntryKind::File, None)
            }
        }
    }
    if !dir.is_empty() && state.tree.file_count() == 0 {
        return Err(crate::detect::missing_dir(dir, &state.outside));
    }
    let layer = state.writer.finish().map_err(|it| unreadable(&it))?;
    Ok(Clean { layer, tree: state.tree, warnings: state.warnings })
}

/// The path of an entry, relative and without dots; `None` for the root itself.
fn safe_path(bytes: &[u8]) -> Result<Option<String>, Problem> {
    let shown = || String::from_utf8_lossy(bytes).chars().take(200).collect::<String>();
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(refuse(format!("the source holds a file whose name is not UTF-8: `{}`", shown())));
    };
    if text.len() > PATH_MAX || text.split('/').any(|it| it.len() > 255) {
        return Err(refuse(format!("the source holds a path that is too long: `{}…`", shown())));
    }
    if text.contains('\0') {
        return Err(refuse("the source holds a name with a NUL byte".to_owned()));
    }
    let mut words = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(word) => words.push(word.to_string_lossy().into_owned()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refuse(format!("the source holds a path that leaves it: `{}`", shown())));
            }
        }
    }
    Ok((!words.is_empty()).then(|| words.join("/")))
}

struct State {
    writer: LayerWriter,
    tree: Tree,
    /// What lies outside of the asked folder, for the error text.
    outside: Tree,
    warnings: Vec<String>,
    folders: BTreeSet<String>,
    files: BTreeSet<String>,
    left: u64,
    limit: u64,
}

impl State {
    fn warn(&mut self, text: String) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(text);
        }
    }

    /// Writes the folder and those above it, each once.
    fn folder(&mut self, path: &str) -> io::Result<()> {
        if self.folders.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.folders.insert(path.to_owned());
        self.writer.folder(path, Meta::root(0o755))
    }

    fn entry(
        &mut self,
        path: &str,
        inside: &str,
        entry: &mut tar::Entry<'_, impl Read>,
        work: &Path,
    ) -> Result<(), Problem> {
        let target = format!("app/{path}");
        let io = |it: io::Error| unreadable(&it);
        let kind = entry.header().entry_type();
        // A later entry must not go through what an earlier one made a file or a link of.
        let mut above = target.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if self.files.contains(parent) {
                return Err(refuse(format!("the source holds `{path}` below something that is not a folder")));
            }
            above = parent;
        }
        if self.files.contains(&target) || (self.folders.contains(&target) && !kind.is_dir()) {
            return Err(refuse(format!("the source holds `{path}` twice")));
        }
        if kind.is_dir() {
            self.folder(&target).map_err(io)?;
            self.tree.add(path, EntryKind::Folder, None);
            return Ok(());
        }
        if let Some((parent, _)) = target.rsplit_once('/') {
            self.folder(parent).map_err(io)?;
        }
        if kind.is_symlink() {
            let link = entry.link_name().map_err(io)?.unwrap_or_default().into_owned();
            if !stays_inside(path, &link) {
                self.warn(format!("the link `{path}` points outside of the source and was left out"));
                return Ok(());
            }
            self.writer.link(&target, Meta::root(0o777), &link).map_err(io)?;
            self.tree.add(path, EntryKind::Link, None);
            self.files.insert(target);
        } else if kind.is_hard_link() {
            let link = entry.link_name_bytes().map(|it| safe_path(&it)).transpose()?.flatten().unwrap_or_default();
            let inner = if inside.is_empty() {
                Some(link.as_str())
            } else {
                link.strip_prefix(inside).and_then(|it| it.strip_prefix('/'))
            };
            let first = inner.map(|it| format!("app/{it}"));
            match first.filter(|it| self.files.contains(it)) {
                Some(first) => {
                    self.writer.hard_link(&target, Meta::root(0o644), &first).map_err(io)?;
                    self.tree.add(path, EntryKind::File, None);
                    self.files.insert(target);
                }
                None => self.warn(format!("the hard link `{path}` names nothing in the source and was left out")),
            }
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            self.file(path, target, entry, work)?;
        } else if !matches!(kind, tar::EntryType::XGlobalHeader) {
            self.warn(format!("`{path}` is a device, pipe or socket and was left out"));
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: &str,
        target: String,
        entry: &mut tar::Entry<'_, impl Read>,
        work: &Path,
    ) -> Result<(), Problem> {
        let io = |it: io::Error| unreadable(&it);
        let size = entry.size();
        if size > self.left {
            let message = format!("the source is larger than {} MB", self.limit >> 20);
            return Err(Problem::new(
                arco_model::error::ErrorKind::LimitReached,
                "source_too_large",
                message,
                "leave files out with .arcoignore, or raise `builder.disk_mb`",
            ));
        }
        self.left -= size;
        let executable = entry.header().mode().unwrap_or(0) & 0o111 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        if size <= IN_MEMORY {
            let mut content = Vec::with_capacity(size as usize);
            entry.read_to_end(&mut content).map_err(io)?;
            let meta = Meta { mtime: mtime(&Sha256::digest(&content)), ..Meta::root(mode) };
            self.writer.file(&target, meta, content.len() as u64, content.as_slice()).map_err(io)?;
            let keep = Tree::wants(path, size).then_some(content);
            self.tree.add(path, EntryKind::File, keep);
        } else {
            let (mut spool, mut hash) = (tempfile::tempfile_in(work).map_err(io)?, Sha256::new());
            let mut buffer = vec![0u8; 256 << 10];
            loop {
                let read = entry.read(&mut buffer).map_err(io)?;
                if read == 0 {
                    break;
                }
                hash.update(&buffer[..read]);
                spool.write_all(&buffer[..read]).map_err(io)?;
            }
            spool.rewind().map_err(io)?;
            let meta = Meta { mtime: mtime(&hash.finalize()), ..Meta::root(mode) };
            self.writer.file(&target, meta, size, spool).map_err(io)?;
            self.tree.add(path, EntryKind::File, None);
        }
        self.files.insert(target);
        Ok(())
    }
}

/// A time that changes when the content does, some day of 2001 to 2017.
///
/// What compares times only for being equal (entity tags of web servers, compiled Python) is right with it, and the
/// layer is the same for the same content.
fn mtime(hash: &[u8]) -> u64 {
    let bytes = hash.first_chunk::<4>().copied().unwrap_or_default();
    978_307_200 + u64::from(u32::from_be_bytes(bytes)) % (1 << 29)
}

/// Whether a link at `path` leads to a place inside of the source, by its words alone.
fn stays_inside(path: &str, target: &Path) -> bool {
    let mut depth = path.matches('/').count() as i64;
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let link = kind.is_symlink() || kind.is_hard_link();
            if link {
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let body = if link { "" } else { content };
            header.set_size(body.len() as u64);
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn run(entries: &[(&str, tar::EntryType, &str)], dir: &str) -> Result<Clean, Problem> {
        let work = tempfile::tempdir().unwrap();
        clean(archive(entries).as_slice(), "", dir, Limits { total_bytes: 1000 }, work.path())
    }

    #[test]
    fn hostile_archives_are_refused_or_cleaned() {
        use tar::EntryType as T;
        for bad in [
            vec![("../evil", T::Regular, "x")],
            vec![("/etc/passwd", T::Regular, "x")],
            vec![("a/../../b", T::Regular, "x")],
            vec![("a", T::Symlink, "b"), ("a/b", T::Regular, "x")],
            vec![("a", T::Regular, "x"), ("a", T::Regular, "y")],
        ] {
            let found = run(&bad, "");
            assert_eq!(found.err().map(|it| it.code), Some("source_refused".to_owned()), "{bad:?}");
        }
        let clean = run(
            &[
                ("out", T::Symlink, "/etc/passwd"),
                ("up", T::Symlink, "../x"),
                ("dev", T::Char, ""),
                ("h", T::Link, "/etc/shadow"),
                ("in", T::Symlink, "a"),
            ],
            "",
        );
        assert_eq!(
            clean.err().map(|it| it.code),
            Some("source_refused".to_owned()),
            "a hard link to the root is refused"
        );
        let clean = run(
            &[
                ("out", T::Symlink, "/etc/passwd"),
                ("up", T::Symlink, "../x"),
                ("dev", T::Char, ""),
                ("in", T::Symlink, "a"),
            ],
            "",
        )
        .unwrap();
        assert_eq!(clean.tree.files().collect::<Vec<_>>(), ["in"]);
        assert_eq!(clean.warnings.len(), 3);
        let large = "x".repeat(1001);
        assert_eq!(
            run(&[("big", T::Regular, &large)], "").err().map(|it| it.code),
            Some("source_too_large".to_owned())
        );
    }

    #[test]
    fn the_same_files_give_the_same_layer_and_a_folder_can_be_chosen() {
        use tar::EntryType as T;
        let one = run(&[("s/a", T::Regular, "1"), (".git/config", T::Regular, "2")], "s").unwrap();
        let two =
            run(&[("./s", T::Directory, ""), ("./s/a", T::Regular, "1"), ("other", T::Regular, "1")], "s").unwrap();
        assert_eq!(one.layer.layer, two.layer.layer);
        assert_eq!(one.tree.text("a"), None);
        assert_eq!(run(&[("s/a", T::Regular, "1")], "none").err().map(|it| it.code), Some("dir_missing".to_owned()));
    }
}
