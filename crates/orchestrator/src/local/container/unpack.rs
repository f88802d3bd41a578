//! One layer's tar onto a folder, in the form that overlayfs reads. The tar is not trusted.
//!
//! What must hold: nothing outside the folder is touched, whatever names and links the tar has (each path is opened by
//! the kernel with the folder as its root); no devices are made but whiteouts; size and number of entries are bounded.

use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::collections::BTreeMap;
use std::io::{Error, Read, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// Most bytes of one unpacked layer.
const BYTES_MAX: u64 = 32 << 30;
/// Most entries of one layer.
const ENTRIES_MAX: u64 = 4_000_000;

/// Unpacks.
pub(super) fn unpack(reader: &mut dyn Read, folder: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut target =
        Target { root: rustix::fs::open(folder, flags, Mode::empty())?, parent: None, times: BTreeMap::new() };
    let (mut bytes, mut count) = (0u64, 0u64);
    let mut archive = Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        bytes = bytes.saturating_add(entry.size());
        count += 1;
        if bytes > BYTES_MAX || count > ENTRIES_MAX {
            return Err(Error::other("it is too large: more than 32 GiB or 4 million files"));
        }
        let path = entry.path()?.into_owned();
        target.put(&path, &mut entry).map_err(|error| Error::other(format!("entry `{}`: {error}", path.display())))?;
    }
    target.finish()
}

struct Target {
    root: OwnedFd,
    /// The folder of the entry before, which is mostly that of the next one too.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times of folders, set last because filling them changes them.
    times: BTreeMap<PathBuf, i64>,
}

/// The names of a path, without `.` and a leading `/`.
fn normal(path: &Path) -> Result<PathBuf> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Error::other("its name leads out of the layer")),
        }
    }
    Ok(out)
}

impl Target {
    fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Opens the folder that an entry goes into, making it when the tar did not.
    fn open_parent(&mut self, path: &Path) -> Result<OwnedFd> {
        let folder = path.parent().unwrap_or(Path::new(""));
        if let Some((known, descriptor)) = &self.parent
            && known == folder
        {
            return descriptor.try_clone();
        }
        let opened = match self.open(folder) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT) => {
                let mut walked = PathBuf::new();
                for name in folder {
                    let parent = self.open(&walked)?;
                    walked.push(name);
                    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                self.open(folder)?
            }
            Err(error) => return Err(error.into()),
        };
        self.parent = Some((folder.to_owned(), opened.try_clone()?));
        Ok(opened)
    }

    fn put(&mut self, path: &Path, entry: &mut Entry<'_, &mut dyn Read>) -> Result<()> {
        let path = normal(path)?;
        let Some(name) = path.file_name().map(ToOwned::to_owned) else {
            return self.put_root(entry);
        };
        let parent = self.open_parent(&path)?;
        let bytes = name.as_bytes();
        if bytes == b".wh..wh..opq" {
            return Ok(set_attribute(&parent, "trusted.overlay.opaque", b"y")?);
        }
        if let Some(hidden) = bytes.strip_prefix(b".wh.") {
            if bytes.starts_with(b".wh..wh.") {
                return Ok(()); // left over from another storage driver
            }
            let hidden = Path::new(std::ffi::OsStr::from_bytes(hidden));
            remove(&parent, hidden)?;
            let device: Dev = rustix::fs::makedev(0, 0);
            return Ok(rustix::fs::mknodat(&parent, hidden, FileType::CharacterDevice, Mode::empty(), device)?);
        }
        let name = Path::new(&name);
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => self.put_folder(&parent, name)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(&parent, name)?;
                put_file(&parent, name, entry)?;
            }
            EntryType::Symlink => {
                remove(&parent, name)?;
                let link = entry.link_name_bytes().ok_or_else(|| Error::other("a link without a target"))?;
                // A link may lead anywhere: it is only ever followed inside a container.
                rustix::fs::symlinkat(std::ffi::OsStr::from_bytes(&link), &parent, name)?;
            }
            EntryType::Link => return self.put_link(&parent, name, entry),
            EntryType::Fifo => {
                remove(&parent, name)?;
                rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::empty(), 0)?;
            }
            // Devices are of no use in a container that may not open them.
            _ => return Ok(()),
        }
        let modified = set_metadata(&parent, name, entry, kind)?;
        if kind == EntryType::Directory {
            self.times.insert(path, modified);
        }
        Ok(())
    }

    fn put_root(&mut self, entry: &mut Entry<'_, &mut dyn Read>) -> Result<()> {
        if entry.header().entry_type() == EntryType::Directory {
            let mode = Mode::from_raw_mode(entry.header().mode()? & 0o7777);
            rustix::fs::chmodat(&self.root, ".", mode, AtFlags::empty())?;
        }
        Ok(())
    }

    fn put_folder(&mut self, parent: &OwnedFd, name: &Path) -> Result<()> {
        self.parent = None;
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    remove(parent, name)?;
                    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn put_link(&mut self, parent: &OwnedFd, name: &Path, entry: &Entry<'_, &mut dyn Read>) -> Result<()> {
        let link = entry.link_name()?.ok_or_else(|| Error::other("a link without a target"))?;
        let link = normal(&link)?;
        let from = self.open(link.parent().unwrap_or(Path::new("")))?;
        let target = link.file_name().ok_or_else(|| Error::other("a link to the root"))?;
        remove(parent, name)?;
        Ok(rustix::fs::linkat(&from, target, parent, name, AtFlags::empty())?)
    }

    fn finish(self) -> Result<()> {
        for (path, modified) in self.times.iter().rev() {
            if let Ok(folder) = self.open(path) {
                let _ = rustix::fs::utimensat(&folder, ".", &times(*modified), AtFlags::empty());
            }
        }
        Ok(())
    }
}

/// Takes away what a former entry of the same name left.
fn remove(parent: &OwnedFd, name: &Path) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            // Reached through the descriptor: the name itself is one component and not a link.
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(parent));
            std::fs::remove_dir_all(Path::new(&path).join(name))
        }
        Err(error) => Err(error.into()),
    }
}

fn put_file(parent: &OwnedFd, name: &Path, entry: &mut Entry<'_, &mut dyn Read>) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?;
    std::io::copy(entry, &mut std::fs::File::from(file)).map(drop)
}

/// Owner, attributes, mode, time; returns the time.
fn set_metadata(parent: &OwnedFd, name: &Path, entry: &mut Entry<'_, &mut dyn Read>, kind: EntryType) -> Result<i64> {
    let header = entry.header();
    let id = |it: u64| u32::try_from(it).map_err(|_| Error::other("its owner's number is too large"));
    // Some writers leave fields empty; that means zero.
    let (uid, gid) = (id(header.uid().unwrap_or(0))?, id(header.gid().unwrap_or(0))?);
    let (mode, modified) = (header.mode()?, header.mtime().unwrap_or(0) as i64);
    rustix::fs::chownat(parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != EntryType::Symlink {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
    }
    if matches!(kind, EntryType::Regular | EntryType::Directory | EntryType::Continuous) {
        let mut attributes = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions.flatten() {
                let key = extension.key().unwrap_or_default().strip_prefix("SCHILY.xattr.").unwrap_or_default();
                if key == "security.capability" || key.starts_with("user.") {
                    attributes.push((key.to_owned(), extension.value_bytes().to_vec()));
                }
            }
        }
        if !attributes.is_empty() {
            let file =
                rustix::fs::openat(parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            for (key, value) in attributes {
                set_attribute(&file, &key, &value)?;
            }
        }
    }
    rustix::fs::utimensat(parent, name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(modified)
}

fn times(modified: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Sets an extended attribute, also through an `O_PATH` descriptor.
fn set_attribute(file: impl AsFd, key: &str, value: &[u8]) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()));
    rustix::fs::setxattr(path, key, value, XattrFlags::empty())
}

#[cfg(test)]
mod tests;
