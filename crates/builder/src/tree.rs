//! A source as detection sees it: which files there are, and what the small ones say.
//!
//! Built from a folder or while an archive is read. Nothing is followed: a link is an entry like any other, so that
//! nothing outside of the source can be read through it.

use std::collections::BTreeMap;
use std::path::Path;

/// Largest file whose content is kept, in bytes.
const CONTENT_MAX: u64 = 256 << 10;
/// Most bytes of content that are kept altogether.
const CONTENT_TOTAL: usize = 16 << 20;
/// Most entries of a source.
pub const ENTRIES_MAX: usize = 200_000;

/// What an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link; never followed.
    Link,
}

#[derive(Clone, Debug)]
struct Entry {
    kind: EntryKind,
    content: Option<Vec<u8>>,
}

/// Files of a source by relative path (`src/main.py`), with the content of the small ones that detection may ask for.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
    kept: usize,
}

impl Tree {
    /// Adds an entry. Content is kept only where [`Tree::wants`] said so.
    pub fn add(&mut self, path: &str, kind: EntryKind, content: Option<Vec<u8>>) {
        let content = content.filter(|it| self.kept + it.len() <= CONTENT_TOTAL);
        self.kept += content.as_ref().map_or(0, Vec::len);
        self.entries.insert(path.to_owned(), Entry { kind, content });
    }

    /// Whether the content of this file may be asked for.
    pub fn wants(path: &str, size: u64) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let extension = name.rsplit_once('.').map_or("", |it| it.1);
        let foreign =
            path.split('/').any(|it| matches!(it, "node_modules" | "vendor" | ".venv" | "venv" | "dist" | ".git"));
        let text = matches!(
            extension,
            "json"
                | "toml"
                | "txt"
                | "yaml"
                | "yml"
                | "py"
                | "js"
                | "mjs"
                | "cjs"
                | "ts"
                | "mts"
                | "go"
                | "mod"
                | "cfg"
                | "jsx"
                | "tsx"
        ) || matches!(
            name,
            "Procfile"
                | "Dockerfile"
                | "Pipfile"
                | "rainbondfile"
                | ".nvmrc"
                | ".node-version"
                | ".python-version"
                | "yarn.lock"
                | ".dockerignore"
        );
        size <= CONTENT_MAX && text && !foreign && path.matches('/').count() <= 6
    }

    /// Reads a folder of this machine. `.gitignore` and `.arcoignore` are obeyed; `.git` is left out.
    pub fn read_folder(root: &Path) -> std::io::Result<Self> {
        let mut tree = Self::default();
        let walk = ignore::WalkBuilder::new(root)
            .hidden(false)
            .require_git(false)
            .git_global(false)
            .follow_links(false)
            .add_custom_ignore_filename(".arcoignore")
            .filter_entry(|it| it.file_name() != ".git")
            .build();
        for entry in walk {
            let entry = entry.map_err(std::io::Error::other)?;
            let Some(path) = entry.path().strip_prefix(root).ok().and_then(Path::to_str).filter(|it| !it.is_empty())
            else {
                continue;
            };
            let Some(kind) = entry.file_type() else { continue };
            if tree.entries.len() >= ENTRIES_MAX {
                return Err(std::io::Error::other(format!("it holds more than {ENTRIES_MAX} files")));
            }
            if kind.is_dir() {
                tree.add(path, EntryKind::Folder, None);
            } else if kind.is_symlink() {
                tree.add(path, EntryKind::Link, None);
            } else if kind.is_file() {
                let size = entry.metadata().map_err(std::io::Error::other)?.len();
                let content = if Self::wants(path, size) { Some(std::fs::read(entry.path())?) } else { None };
                tree.add(path, EntryKind::File, content);
            }
        }
        Ok(tree)
    }

    /// Whether there is a file (or a link) of this path.
    pub fn has(&self, path: &str) -> bool {
        self.entries.get(path).is_some_and(|it| it.kind != EntryKind::Folder)
    }

    /// Whether there is a folder of this path, listed or implied by a file in it.
    pub fn has_folder(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.entries.get(path).is_some_and(|it| it.kind == EntryKind::Folder)
            || self.entries.range(below.clone()..).next().is_some_and(|(it, _)| it.starts_with(&below))
    }

    /// The text of a small file.
    pub fn text(&self, path: &str) -> Option<&str> {
        let content = self.entries.get(path)?.content.as_deref()?;
        std::str::from_utf8(content).ok().map(|it| it.trim_start_matches('\u{feff}'))
    }

    /// Paths of all files and links, in order.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|(_, it)| it.kind != EntryKind::Folder).map(|(path, _)| path.as_str())
    }

    /// Small text files with one of these extensions, their text beside them; nearest to the root first.
    pub fn texts(&self, extensions: &[&str]) -> Vec<(&str, &str)> {
        let wanted = |path: &str| path.rsplit_once('.').is_some_and(|(_, it)| extensions.contains(&it));
        let mut found: Vec<_> =
            self.entries.keys().filter(|it| wanted(it)).filter_map(|it| Some((it.as_str(), self.text(it)?))).collect();
        found.sort_by_key(|(path, _)| (path.matches('/').count(), *path));
        found
    }

    /// How many files and links there are.
    pub fn file_count(&self) -> usize {
        self.files().count()
    }

    /// Up to `limit` names at the root, for error texts.
    pub fn root_names(&self, limit: usize) -> String {
        let mut names: Vec<&str> = self.entries.keys().map(|it| it.split('/').next().unwrap_or(it)).collect();
        names.dedup();
        let more = if names.len() > limit { ", …" } else { "" };
        format!("{}{more}", names[..names.len().min(limit)].join(", "))
    }

    /// The part of the tree below a folder, with paths relative to it.
    pub fn below(&self, folder: &str) -> Self {
        let folder = folder.trim_matches('/');
        if folder.is_empty() || folder == "." {
            return self.clone();
        }
        let prefix = format!("{folder}/");
        let entries =
            self.entries.iter().filter_map(|(path, it)| Some((path.strip_prefix(&prefix)?.to_owned(), it.clone())));
        Self { entries: entries.collect(), kept: self.kept }
    }

    /// A tree of texts, for tables of tests.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (path, text) in files {
            tree.add(path, EntryKind::File, Some(text.as_bytes().to_vec()));
        }
        tree
    }
}
