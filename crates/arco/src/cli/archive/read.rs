//! Reading an archive as if an enemy had written it: every entry is looked at before anything is done with one.
//!
//! What must hold: no path of it becomes a path of ours; memory does not grow with what it says about itself.

use super::{CONTENTS_MAX, End, FORMAT, Manifest, PIECE, VERSION, VolumeEnd, chained};
use arco_model::artifact::Digest;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::Read;

/// Largest manifest, and largest last entry, in bytes.
const MANIFEST_MAX: u64 = 64 << 20;

/// Where content lies in the file: offset and size.
pub(crate) type Place = (u64, u64);

/// An archive that is whole.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) manifest: Manifest,
    /// Digest of the manifest.
    pub(crate) id: Digest,
    /// Blobs.
    pub(crate) blobs: BTreeMap<Digest, Place>,
    /// Pieces of each volume in order, by its folder.
    pub(crate) volumes: BTreeMap<String, Vec<Place>>,
}

/// Reads all of it; says what is wrong with it.
pub(crate) fn verify(file: impl Read) -> Result<Contents, String> {
    let mut archive = tar::Archive::new(file);
    let mut found: Option<Contents> = None;
    let mut ends: Vec<VolumeEnd> = Vec::new();
    let mut whole = false;
    // Raw: names and sizes are those of the headers, and nothing but regular files is let through.
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        let path = String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| "a path is not text".to_owned())?;
        let shown: String = path.chars().take(200).collect();
        if whole {
            return Err(format!("`{shown}` comes after its end"));
        }
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(format!("`{shown}` is not a regular file"));
        }
        let (offset, size) = (entry.raw_file_position(), entry.header().entry_size().map_err(broken)?);
        let Some(contents) = &mut found else {
            if path != "manifest.json" {
                return Err(format!("it begins with `{shown}`, not with its manifest"));
            }
            found = Some(manifest(&bounded(&mut entry, size, MANIFEST_MAX, &shown)?)?);
            continue;
        };
        if let Some(hex) = path.strip_prefix("blobs/sha256/") {
            let digest: Digest = format!("sha256:{hex}").parse().map_err(|_| format!("`{shown}` is not a blob"))?;
            if contents.manifest.blobs().get(&digest) != Some(&size) {
                return Err(format!("blob {digest} is not of the size that the manifest says, or not in it"));
            }
            let mut hash = Sha256::new();
            std::io::copy(&mut entry, &mut hash).map_err(broken)?;
            let real = Digest::from_sha256(&hash.finalize().into());
            if real != digest {
                return Err(format!("blob {digest} is damaged: its content is {real}"));
            }
            if contents.blobs.insert(digest.clone(), (offset, size)).is_some() {
                return Err(format!("blob {digest} stands in it twice"));
            }
        } else if path.starts_with("volumes/") {
            let bytes = bounded(&mut entry, size, PIECE as u64, &shown)?;
            piece(contents, &mut ends, &path, &bytes, (offset, size))?;
        } else if path == "end.json" {
            let end: End = serde_json::from_slice(&bounded(&mut entry, size, MANIFEST_MAX, &shown)?)
                .map_err(|it| format!("its end is not readable: {it}"))?;
            check_end(contents, &ends, &end)?;
            whole = true;
        } else {
            return Err(format!("`{shown}` does not belong into it"));
        }
    }
    found.filter(|_| whole).ok_or_else(|| "it is cut off: its end is missing".to_owned())
}

fn broken(error: std::io::Error) -> String {
    format!("it is not a tar, or cut off: {error}")
}

fn bounded(from: &mut impl Read, size: u64, limit: u64, shown: &str) -> Result<Vec<u8>, String> {
    if size > limit {
        return Err(format!("`{shown}` has {size} bytes; {limit} are the most"));
    }
    let mut bytes = Vec::new();
    from.take(limit).read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(format!("`{shown}` is cut off")) }
}

fn manifest(bytes: &[u8]) -> Result<Contents, String> {
    // The version comes first: a later one may have other fields.
    let head: serde_json::Value = serde_json::from_slice(bytes).map_err(|it| format!("its manifest is none: {it}"))?;
    if head["format"] != FORMAT {
        return Err("it is not an archive of `arco export`".to_owned());
    }
    match head["version"].as_u64() {
        Some(version) if (1..=u64::from(VERSION)).contains(&version) => {}
        Some(version) => return Err(format!("it has version {version}; this program reads up to {VERSION}")),
        None => return Err("its manifest names no version".to_owned()),
    }
    let manifest: Manifest = serde_json::from_value(head).map_err(|it| format!("its manifest is none: {it}"))?;
    if manifest.contents() > CONTENTS_MAX {
        return Err(format!("its manifest names more than {CONTENTS_MAX} contents of volumes"));
    }
    Ok(Contents { manifest, id: Digest::of(bytes), blobs: BTreeMap::new(), volumes: BTreeMap::new() })
}

/// A piece of a volume, which comes after all the pieces before it.
fn piece(
    contents: &mut Contents,
    ends: &mut Vec<VolumeEnd>,
    path: &str,
    bytes: &[u8],
    place: Place,
) -> Result<(), String> {
    let shown: String = path.chars().take(200).collect();
    let Some((volume, number)) = path.rsplit_once('/') else { return Err(format!("`{shown}` is not a volume")) };
    if ends.last().is_none_or(|it| it.path != volume) {
        if !contents.manifest.volume_paths().contains(volume) || contents.volumes.contains_key(volume) {
            return Err(format!("`{shown}` is not of a volume of the manifest, or not in order"));
        }
        ends.push(VolumeEnd { path: volume.to_owned(), size: 0, digest: Digest::of(b"") });
    }
    let Some(end) = ends.last_mut() else { return Ok(()) };
    let pieces = contents.volumes.entry(volume.to_owned()).or_default();
    // Only the last may be shorter.
    if number != format!("{:08}", pieces.len()) || !end.size.is_multiple_of(PIECE as u64) || bytes.is_empty() {
        return Err(format!("`{shown}` is not in order"));
    }
    end.size += place.1;
    end.digest = chained(&end.digest, &Digest::of(bytes));
    pieces.push(place);
    Ok(())
}

fn check_end(contents: &Contents, ends: &[VolumeEnd], end: &End) -> Result<(), String> {
    if end.manifest != contents.id {
        return Err("its end belongs to another manifest".to_owned());
    }
    if end.volumes != ends {
        return Err("the content of its volumes is not what its end says".to_owned());
    }
    if let Some(missing) = contents.manifest.blobs().keys().find(|it| !contents.blobs.contains_key(**it)) {
        return Err(format!("blob {missing} is missing"));
    }
    if let Some(missing) = contents.manifest.volume_paths().iter().find(|it| !contents.volumes.contains_key(*it)) {
        return Err(format!("`{missing}` is missing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
