//! Stacks in one file: an OCI layout as a tar, with an image for each stack, called `arco.local/stack/NAME:EDITION`. Tools
//! that read such files (`skopeo`, `ctr images import`) read it, too.
//!
//! What must hold: whoever reads it believes nothing in it: digests are checked where blobs arrive, no path of it becomes a
//! path of ours, and memory does not grow with what it says about itself.

use arco_builder::MachineStack;
use arco_model::artifact::Digest;
use arco_store::images::{MANIFEST_MAX, MANIFEST_TYPE, documents};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};

/// What names begin with.
const NAMES: &str = "arco.local/stack/";
/// Where an index says what a manifest is called.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd looks for it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Writes the file.
pub(super) fn write(out: &mut dyn Write, stacks: &[MachineStack]) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut manifests = Vec::new();
    let mut small: BTreeMap<Digest, bytes::Bytes> = BTreeMap::new();
    for stack in stacks {
        let documents = documents(&stack.image)?;
        let name = format!("{NAMES}{}:{}", stack.name, stack.edition);
        let digest = Digest::of(&documents.manifest);
        manifests.push(serde_json::json!({
            "mediaType": MANIFEST_TYPE, "digest": digest, "size": documents.manifest.len(),
            "annotations": { (NAME): name, (CONTAINERD_NAME): name },
        }));
        small.insert(digest, documents.manifest);
        small.insert(Digest::of(&documents.config), documents.config);
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    });
    tar.append_data(&mut header(30), "oci-layout", &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
    let index = serde_json::to_vec(&index)?;
    tar.append_data(&mut header(index.len() as u64), "index.json", index.as_slice())?;
    for (digest, bytes) in &small {
        tar.append_data(&mut header(bytes.len() as u64), blob_path(digest), &bytes[..])?;
    }
    let mut written = BTreeSet::new();
    for (digest, path) in stacks.iter().flat_map(|it| &it.files) {
        if written.insert(digest) {
            let file = File::open(path)?;
            tar.append_data(&mut header(file.metadata()?.len()), blob_path(digest), file)?;
        }
    }
    tar.into_inner()?.flush()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A header without a time: the same stacks give the same file.
fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(bytes);
    header.set_mtime(0);
    header
}

/// A stack of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FoundStack {
    pub(super) name: String,
    pub(super) edition: u32,
    /// Its manifest.
    pub(super) digest: Digest,
    /// What the manifest names, and the manifest itself last.
    pub(super) blobs: Vec<Digest>,
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct Layout {
    file: File,
    /// Where blobs lie: offset and size.
    places: BTreeMap<Digest, (u64, u64)>,
    pub(super) stacks: Vec<FoundStack>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    digest: Digest,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Named,
    layers: Vec<Named>,
}

impl Layout {
    /// Reads what the file holds; says what is wrong with it.
    pub(super) fn read(file: File) -> Result<Self, String> {
        let mut index = None;
        let mut places = BTreeMap::new();
        let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 16, &file));
        // With seek: the layers themselves are not read now.
        for entry in archive.entries_with_seek().map_err(broken)?.raw(true) {
            let mut entry = entry.map_err(broken)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let (offset, size) = (entry.raw_file_position(), entry.header().entry_size().map_err(broken)?);
            if path == "index.json" {
                let mut text = Vec::new();
                (&mut entry).take(MANIFEST_MAX as u64).read_to_end(&mut text).map_err(broken)?;
                let read: Index = serde_json::from_slice(&text).map_err(|it| format!("its index.json: {it}"))?;
                index = Some(read);
            } else if let Some(digest) =
                path.strip_prefix("blobs/sha256/").and_then(|it| format!("sha256:{it}").parse::<Digest>().ok())
            {
                places.insert(digest, (offset, size));
            }
        }
        let index = index.ok_or("it holds no index.json")?;
        let mut layout = Self { file, places, stacks: Vec::new() };
        for Named { digest, annotations } in index.manifests {
            let name = annotations.get(NAME).or_else(|| annotations.get(CONTAINERD_NAME));
            let parts = name.and_then(|it| it.strip_prefix(NAMES)?.rsplit_once(':'));
            let Some((name, Ok(edition))) = parts.map(|(name, edition)| (name, edition.parse::<u32>())) else {
                return Err(format!(
                    "it holds an image that is no stack: {}",
                    name.map_or("without a name", String::as_str)
                ));
            };
            let text = layout.bytes(&digest)?;
            let read: Manifest =
                serde_json::from_slice(&text).map_err(|it| format!("the manifest of `{name}`: {it}"))?;
            let named = std::iter::once(read.config).chain(read.layers).map(|it| it.digest);
            let blobs: Vec<Digest> = named.chain([digest.clone()]).collect();
            if let Some(missing) = blobs.iter().find(|it| !layout.places.contains_key(it)) {
                return Err(format!("blob {missing} of `{name}` is missing: it is cut off"));
            }
            layout.stacks.push(FoundStack { name: name.to_owned(), edition, digest, blobs });
        }
        match layout.stacks.is_empty() {
            true => Err("it holds no stack".to_owned()),
            false => Ok(layout),
        }
    }

    /// A blob as a file that stands at its beginning, and its size. One at a time: they share their place in the file.
    pub(super) fn blob(&self, digest: &Digest) -> io::Result<(File, u64)> {
        let missing = || io::Error::other(format!("blob {digest} is not in it"));
        let &(offset, size) = self.places.get(digest).ok_or_else(missing)?;
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(offset))?;
        Ok((file, size))
    }

    /// A small blob.
    fn bytes(&self, digest: &Digest) -> Result<Vec<u8>, String> {
        let (file, size) = self.blob(digest).map_err(|it| it.to_string())?;
        if size > MANIFEST_MAX as u64 {
            return Err(format!("manifest {digest} has {size} bytes; {MANIFEST_MAX} are the most"));
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).map_err(broken)?;
        match Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(format!("manifest {digest} is damaged")),
        }
    }
}

fn broken(error: io::Error) -> String {
    format!("it is not a tar, or cut off: {error}")
}

#[cfg(test)]
mod tests;
