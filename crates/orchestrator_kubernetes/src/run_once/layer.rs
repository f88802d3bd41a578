//! From a plain tar of a pod to a layer in the blob store.
//!
//! What must hold: equal content gives an equal layer: entries are sorted, times whole seconds, owners by number alone;
//! what is gone is marked as the OCI image specification says (`.wh.NAME`).

use arco_model::artifact::Layer;
use arco_orchestrator::{Error, layer};
use arco_store::images::Images;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read as _, Result, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use tar::{Archive, EntryType, Header};

/// What the tar does not say.
pub(super) struct Change {
    /// Absolute paths that were there before and are not any more; nothing below them.
    pub(super) gone: BTreeSet<Vec<u8>>,
}

/// Paths of `before` that are not in `after`, without those below others that are gone.
pub(super) fn gone(before: &BTreeSet<Vec<u8>>, after: &BTreeSet<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    let mut gone: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in before.difference(after) {
        let parents = path.iter().enumerate().filter(|(at, it)| **it == b'/' && *at > 0).map(|(at, _)| &path[..at]);
        if !parents.into_iter().any(|it| gone.contains(it)) {
            gone.insert(path.clone());
        }
    }
    gone
}

/// Writes the layer.
pub(super) async fn write(images: &Images, tar: &Path, change: Change) -> std::result::Result<Layer, Error> {
    let failed = |it: &dyn std::fmt::Display| Error::failed("write what a one-shot workload wrote as a layer", it);
    let packed = tar.with_extension("zst");
    let (from, to) = (tar.to_owned(), packed.clone());
    let written = tokio::task::spawn_blocking(move || repack(&from, &to, &change)).await;
    let layer = written.map_err(|it| failed(&it))?.map_err(|it| failed(&it))?;
    layer::keep(images, &packed, &layer).await.map_err(|it| failed(&it))?;
    Ok(layer)
}

/// One entry of the tar, as far as it is kept.
struct Kept {
    header: Header,
    link: Option<PathBuf>,
    at: u64,
}

/// The tar, sorted and compressed.
fn repack(from: &Path, to: &Path, change: &Change) -> Result<Layer> {
    let mut kept: BTreeMap<PathBuf, Kept> = BTreeMap::new();
    let mut archive = Archive::new(BufReader::with_capacity(256 << 10, File::open(from)?));
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = clean(&entry.path()?);
        let mut header = Header::new_gnu();
        let old = entry.header();
        header.set_entry_type(old.entry_type());
        header.set_mode(old.mode()?);
        header.set_uid(old.uid()?);
        header.set_gid(old.gid()?);
        header.set_mtime(old.mtime()?);
        header.set_size(if old.entry_type() == EntryType::Regular { entry.size() } else { 0 });
        if matches!(old.entry_type(), EntryType::Char | EntryType::Block) {
            header.set_device_major(old.device_major()?.unwrap_or_default())?;
            header.set_device_minor(old.device_minor()?.unwrap_or_default())?;
        }
        let link = entry.link_name()?.map(|it| it.into_owned());
        kept.insert(path, Kept { header, link, at: entry.raw_file_position() });
    }
    let mut file = File::open(from)?;
    // A hard link stands after what it links to: links come last, in order.
    let (links, others): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|(_, it)| it.header.entry_type() == EntryType::Link);
    layer::pack(to, |builder| {
        for (path, Kept { mut header, link, at }) in others.into_iter().chain(links) {
            match link {
                Some(link) if header.entry_type() == EntryType::Link => {
                    builder.append_link(&mut header, &path, clean(&link))?
                }
                Some(link) => builder.append_link(&mut header, &path, link)?,
                None => {
                    file.seek(SeekFrom::Start(at))?;
                    let size = header.size()?;
                    builder.append_data(&mut header, &path, (&mut file).take(size))?;
                }
            }
        }
        for path in &change.gone {
            use std::os::unix::ffi::OsStrExt as _;
            let path = clean(Path::new(std::ffi::OsStr::from_bytes(path)));
            let Some(name) = path.file_name() else { continue };
            let mut mark = std::ffi::OsString::from(".wh.");
            mark.push(name);
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o600);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(0);
            builder.append_data(&mut header, path.with_file_name(mark), std::io::empty())?;
        }
        Ok(())
    })
}

/// A path inside the layer: without the first slash, and with nothing that climbs.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|it| matches!(it, std::path::Component::Normal(_))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::Builder;

    fn paths(of: &[&str]) -> BTreeSet<Vec<u8>> {
        of.iter().map(|it| it.as_bytes().to_vec()).collect()
    }

    #[test]
    fn what_is_below_something_gone_is_not_named() {
        let before = paths(&["/a", "/a/b", "/a/b/c", "/d", "/d/e", "/dd"]);
        let after = paths(&["/d", "/new"]);
        assert_eq!(gone(&before, &after), paths(&["/a", "/d/e", "/dd"]));
    }

    #[test]
    fn equal_content_gives_an_equal_layer() {
        let folder = tempfile::tempdir().unwrap();
        let pack = |name: &str, order: &[&str]| {
            let mut tar = Builder::new(File::create(folder.path().join(name)).unwrap());
            for path in order {
                let mut header = Header::new_gnu();
                header.set_mode(0o644);
                header.set_mtime(7);
                header.set_uid(0);
                header.set_gid(0);
                header.set_size(3);
                tar.append_data(&mut header, path, &b"abc"[..]).unwrap();
            }
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Link);
            header.set_mode(0o644);
            header.set_mtime(7);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            tar.append_link(&mut header, "a-link", order[0]).unwrap();
            tar.finish().unwrap();
        };
        let change = Change { gone: paths(&["/old/x"]) };
        pack("one.tar", &["b/c", "b/d"]);
        let one = repack(&folder.path().join("one.tar"), &folder.path().join("one.zst"), &change).unwrap();
        pack("two.tar", &["b/c", "b/d"]);
        let two = repack(&folder.path().join("two.tar"), &folder.path().join("two.zst"), &change).unwrap();
        assert_eq!(one, two);
        let packed = File::open(folder.path().join("one.zst")).unwrap();
        let mut archive = Archive::new(zstd::Decoder::new(packed).unwrap());
        let names: Vec<_> =
            archive.entries().unwrap().map(|it| it.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["b/c", "b/d", "a-link", "old/.wh.x"]);
    }
}
