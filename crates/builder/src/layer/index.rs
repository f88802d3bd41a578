//! Which paths a stack of layers holds, and which layer each comes from: a file tree without unpacking anything.

use super::read_tar;
use arco_model::artifact::Layer;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

/// What a path is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link to this target.
    Link(String),
}

/// A path of the tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Found {
    /// What it is.
    pub(crate) seen: Seen,
    /// Number of the layer that it comes from, 0 is the lowest.
    pub(crate) layer: usize,
    /// Where its content lies in that layer, when it is a second name of another path.
    pub(crate) content_of: Option<String>,
}

/// A file tree; paths are relative (`usr/bin/env`).
#[derive(Clone, Debug, Default)]
pub(crate) struct FileTree {
    entries: BTreeMap<String, Found>,
}

/// How often a link leads to a link before we give up.
const LINKS_MAX: usize = 40;

impl FileTree {
    /// Adds a layer on top. Blocking.
    pub(crate) fn add(&mut self, layer: &Layer, number: usize, file: File) -> io::Result<()> {
        let mut archive = tar::Archive::new(read_tar(file, &layer.blob.media_type)?);
        for entry in archive.entries()? {
            let entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_start_matches("./").trim_matches('/').to_owned();
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == ".wh..wh..opq" {
                self.remove_below(parent, number);
            } else if let Some(gone) = name.strip_prefix(".wh.") {
                let gone = if parent.is_empty() { gone.to_owned() } else { format!("{parent}/{gone}") };
                self.remove_below(&gone, usize::MAX);
                self.entries.remove(&gone);
            } else if !path.is_empty() {
                let target =
                    || entry.link_name().ok().flatten().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
                let (seen, content_of) = match entry.header().entry_type() {
                    tar::EntryType::Directory => (Seen::Folder, None),
                    tar::EntryType::Symlink => (Seen::Link(target()), None),
                    tar::EntryType::Link => {
                        (Seen::File, Some(target().trim_start_matches("./").trim_matches('/').to_owned()))
                    }
                    _ => (Seen::File, None),
                };
                if seen != Seen::Folder {
                    self.remove_below(&path, usize::MAX);
                }
                self.entries.insert(path, Found { seen, layer: number, content_of });
            }
        }
        Ok(())
    }

    /// Removes what lies below `folder` and comes from a layer below `before`.
    fn remove_below(&mut self, folder: &str, before: usize) {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let gone: Vec<String> = self
            .entries
            .range(prefix.clone()..)
            .take_while(|(path, _)| path.starts_with(&prefix))
            .filter(|(_, it)| it.layer < before)
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.entries.remove(&path);
        }
    }

    /// What is at a path, links in its folders followed, a link at its end as well. The second is where it really is.
    pub(crate) fn resolve(&self, path: &str) -> (String, Option<&Found>) {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let (mut at, mut links) = (String::new(), 0);
        while let Some(word) = todo.pop() {
            match word.as_str() {
                "" | "." => continue,
                ".." => {
                    at.truncate(at.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = if at.is_empty() { word } else { format!("{at}/{word}") };
            match self.entries.get(&next) {
                Some(Found { seen: Seen::Link(target), .. }) if links < LINKS_MAX => {
                    links += 1;
                    if target.starts_with('/') {
                        at.clear();
                    }
                    todo.extend(target.split('/').rev().map(str::to_owned));
                }
                _ => at = next,
            }
        }
        let found = self.entries.get(&at);
        (at, found)
    }

    /// Whether a path is a folder, listed or implied.
    pub(crate) fn is_folder(&self, path: &str) -> bool {
        let (real, found) = self.resolve(path);
        real.is_empty() || found.is_some_and(|it| it.seen == Seen::Folder) || self.below(&real).next().is_some()
    }

    /// Everything below a real path, without it.
    pub(crate) fn below(&self, real: &str) -> impl Iterator<Item = (&str, &Found)> {
        let prefix = if real.is_empty() { String::new() } else { format!("{real}/") };
        let start = prefix.clone();
        self.entries
            .range(start..)
            .take_while(move |(path, _)| path.starts_with(&prefix))
            .map(|(path, it)| (path.as_str(), it))
    }

    /// Every path with what it is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Found)> {
        self.entries.iter().map(|(path, it)| (path.as_str(), it))
    }
}
