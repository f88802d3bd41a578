//! What an ended container wrote, as an image layer in the blob store.
//!
//! The shim keeps the writable layer mounted until the container is removed; it is read through the shim's own root.
//! Entries are sorted, ids are those inside, times whole seconds, so equal content gives an equal layer. What the
//! platform itself put in (`/etc/hosts`, `/.arco`, mount points) is left out.

use super::ContainerPhase;
use super::state::Inner;
use crate::local::shim::protocol::ID_RANGE;
use crate::local::shim::rootfs::UPPER;
use crate::{Error, layer};
use arco_model::artifact::Layer;
use arco_model::id::InstanceId;
use arco_model::plan::LayerExport;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{Result, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Never part of a layer.
const OURS: [&str; 7] = ["/.arco", "/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Writes the layer.
pub(super) async fn export_layer(
    inner: &Inner,
    id: &InstanceId,
    export: &LayerExport,
) -> std::result::Result<Layer, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::failed(format!("export what container {id} wrote"), error);
    let known = inner.with(id, |entry| (entry.shim.clone(), entry.requests.is_some(), entry.id_base));
    let Some((shim, connected, id_base)) = known else { return Err(Error::NotFound(id.to_string())) };
    if shim.phase != ContainerPhase::Exited || !connected {
        return Err(failed(&"it has not ended, or its files are gone"));
    }
    let upper = PathBuf::from(format!("/proc/{}/root", shim.shim_pid))
        .join(inner.run_root.strip_prefix("/").unwrap_or(&inner.run_root));
    let upper = upper.join("m").join(UPPER);
    let spec = inner.read_spec(id).ok_or_else(|| failed(&"its specification is gone"))?;
    let mut exclude: Vec<PathBuf> = OURS.iter().map(PathBuf::from).collect();
    exclude.extend(spec.container.mounts.iter().map(|it| PathBuf::from(&it.path)));
    exclude.extend(export.exclude.iter().map(PathBuf::from));
    let walk = Walk {
        id_base: id_base.filter(|_| shim.user_namespace).unwrap_or(0),
        include: export.include.iter().map(PathBuf::from).collect(),
        exclude,
    };
    let file = inner.folder(id).join("export.tar.zst");
    let written = {
        let file = file.clone();
        tokio::task::spawn_blocking(move || write_layer(&walk, &upper, &file)).await
    };
    let layer = written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    layer::keep(&inner.images, &file, &layer).await.map_err(|error| failed(&error))?;
    let _ = tokio::fs::remove_file(&file).await;
    Ok(layer)
}

struct Walk {
    id_base: u32,
    include: Vec<PathBuf>,
    exclude: Vec<PathBuf>,
}

fn write_layer(walk: &Walk, upper: &Path, file: &Path) -> Result<Layer> {
    layer::pack(file, |builder| walk.folder(builder, upper, Path::new("/"), &mut HashMap::new()))
}

impl Walk {
    /// Whether a path is wanted, or leads to one that is.
    fn wants(&self, path: &Path) -> bool {
        let excluded = self.exclude.iter().any(|it| path.starts_with(it));
        let included =
            self.include.is_empty() || self.include.iter().any(|it| path.starts_with(it) || it.starts_with(path));
        included && !excluded
    }

    fn folder<W: Write>(
        &self,
        builder: &mut Builder<W>,
        folder: &Path,
        inside: &Path,
        links: &mut HashMap<(u64, u64), PathBuf>,
    ) -> Result<()> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder)?.map(|it| it.map(|it| it.file_name())).collect::<Result<_>>()?;
        names.sort();
        for name in names {
            let (path, inside) = (folder.join(&name), inside.join(&name));
            if !self.wants(&inside) {
                continue;
            }
            let metadata = path.symlink_metadata()?;
            let kind = metadata.file_type();
            let tar_path = inside.strip_prefix("/").unwrap_or(&inside);
            if kind.is_char_device() {
                if metadata.rdev() == 0 {
                    let whiteout = [b".wh.", name.as_bytes()].concat();
                    let at = tar_path.with_file_name(std::ffi::OsStr::from_bytes(&whiteout));
                    builder.append_data(&mut Header::new_gnu_file(), at, std::io::empty())?;
                }
                continue;
            }
            if kind.is_block_device() || kind.is_socket() {
                continue;
            }
            let mut header = self.header(&metadata);
            if !kind.is_dir() && metadata.nlink() > 1 {
                let first = links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| tar_path.to_owned());
                if first != tar_path {
                    header.set_entry_type(EntryType::Link);
                    builder.append_link(&mut header, tar_path, &*first)?;
                    continue;
                }
            }
            self.attributes(builder, &path, kind.is_symlink())?;
            if kind.is_dir() {
                header.set_entry_type(EntryType::Directory);
                builder.append_data(&mut header, tar_path, std::io::empty())?;
                if attribute(&path, "trusted.overlay.opaque").is_some_and(|it| it == b"y") {
                    builder.append_data(
                        &mut Header::new_gnu_file(),
                        tar_path.join(".wh..wh..opq"),
                        std::io::empty(),
                    )?;
                }
                self.folder(builder, &path, &inside, links)?;
            } else if kind.is_symlink() {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, tar_path, std::fs::read_link(&path)?)?;
            } else if kind.is_fifo() {
                header.set_entry_type(EntryType::Fifo);
                builder.append_data(&mut header, tar_path, std::io::empty())?;
            } else {
                header.set_size(metadata.len());
                builder.append_data(&mut header, tar_path, std::io::Read::take(File::open(&path)?, metadata.len()))?;
            }
        }
        Ok(())
    }

    fn header(&self, metadata: &Metadata) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(self.inside_id(metadata.uid()).into());
        header.set_gid(self.inside_id(metadata.gid()).into());
        header.set_mtime(metadata.mtime().max(0) as u64);
        header.set_size(0);
        header
    }

    fn inside_id(&self, id: u32) -> u32 {
        id.checked_sub(self.id_base).filter(|it| *it < ID_RANGE).unwrap_or(id)
    }

    /// Attributes that an image keeps.
    fn attributes<W: Write>(&self, builder: &mut Builder<W>, path: &Path, is_link: bool) -> Result<()> {
        if is_link {
            return Ok(());
        }
        let mut list = vec![0; 4096];
        let Ok(length) = rustix::fs::llistxattr(path, &mut list) else { return Ok(()) };
        let mut found = Vec::new();
        for key in list[..length].split(|it| *it == 0).filter_map(|it| std::str::from_utf8(it).ok()) {
            if (key == "security.capability" || key.starts_with("user."))
                && let Some(value) = attribute(path, key)
            {
                let value = if key == "security.capability" { plain_capability(&value) } else { value };
                found.push((format!("SCHILY.xattr.{key}"), value));
            }
        }
        found.sort();
        if found.is_empty() {
            return Ok(());
        }
        builder.append_pax_extensions(found.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
    }
}

fn attribute(path: &Path, key: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, key, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

/// A capability set inside a user namespace names that namespace's root (version 3); an image has none (version 2).
fn plain_capability(value: &[u8]) -> Vec<u8> {
    if value.len() == 24 && value[3] == 3 {
        let mut plain = value[..20].to_vec();
        plain[3] = 2;
        return plain;
    }
    value.to_vec()
}

/// Headers of empty regular files.
trait EmptyFile {
    fn new_gnu_file() -> Header;
}

impl EmptyFile for Header {
    fn new_gnu_file() -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_size(0);
        header
    }
}
