//! The image itself: one gzip layer, its configuration and manifest (OCI image spec 1.1), and the tar that holds all of it
//! as an OCI layout, with the index that older `docker load` reads. Pure but for the writer.

use super::root::{File, Files, PROGRAM, USER};
use arco_model::artifact::Digest;
use arco_store::images::{CONFIG_TYPE, LAYER_GZIP_TYPE, MANIFEST_TYPE};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::io::Write;
use tar::{EntryType, Header};

/// An image of one layer, in memory.
pub(super) struct Image {
    layer: (Digest, Vec<u8>),
    config: (Digest, Vec<u8>),
    manifest: (Digest, Vec<u8>),
}

impl Image {
    /// Of the files.
    pub(super) fn of(files: &Files) -> std::io::Result<Self> {
        let tar = layer_tar(files)?;
        let diff = Digest::of(&tar);
        let mut gzip = GzEncoder::new(Vec::with_capacity(tar.len() / 2), Compression::default());
        gzip.write_all(&tar)?;
        let layer = addressed(gzip.finish()?);
        drop(tar);
        let config = addressed(document(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": format!("{USER}:{USER}"),
                "Entrypoint": [format!("/{PROGRAM}")],
                "Env": ["PATH=/usr/bin:/bin"],
                "WorkingDir": "/var/lib/arco",
                "Labels": {"org.opencontainers.image.title": "arco", "org.opencontainers.image.version": env!("CARGO_PKG_VERSION")},
            },
            "rootfs": {"type": "layers", "diff_ids": [diff]},
            "history": [{"created_by": "arco cluster image"}],
        })));
        let manifest = addressed(document(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config.0, "size": config.1.len()},
            "layers": [{"mediaType": LAYER_GZIP_TYPE, "digest": layer.0, "size": layer.1.len()}],
        })));
        Ok(Self { layer, config, manifest })
    }

    /// Digest of the manifest.
    pub(super) fn digest(&self) -> &Digest {
        &self.manifest.0
    }

    /// The manifest's bytes.
    pub(super) fn manifest(&self) -> &[u8] {
        &self.manifest.1
    }

    /// What the manifest names: layer and configuration.
    pub(super) fn blobs(&self) -> [&(Digest, Vec<u8>); 2] {
        [&self.layer, &self.config]
    }

    /// Bytes that a registry keeps for it.
    pub(super) fn size_bytes(&self) -> u64 {
        (self.layer.1.len() + self.config.1.len() + self.manifest.1.len()) as u64
    }

    /// Writes the OCI layout as a tar; `name` is what it is called where it is loaded.
    pub(super) fn write_layout(&self, out: &mut impl Write, name: &str) -> std::io::Result<()> {
        let tag = name.rsplit_once(':').map(|(_, tag)| tag).filter(|it| !it.contains('/')).unwrap_or("latest");
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": MANIFEST_TYPE, "digest": self.manifest.0, "size": self.manifest.1.len(),
                "platform": {"architecture": architecture(), "os": "linux"},
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag},
            }],
        });
        let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let docker = json!([{"Config": blob(&self.config.0), "RepoTags": [name], "Layers": [blob(&self.layer.0)]}]);
        let mut tar = tar::Builder::new(out);
        let mut put = |path: &str, bytes: &[u8]| tar.append_data(&mut header(0o644, 0, bytes.len()), path, bytes);
        put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put("index.json", &document(&index))?;
        put("manifest.json", &document(&docker))?;
        for (digest, bytes) in [&self.manifest, &self.config, &self.layer] {
            put(&blob(digest), bytes)?;
        }
        tar.into_inner()?.flush()
    }
}

fn layer_tar(files: &Files) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, file) in files {
        match file {
            File::Folder { mode, owner } => {
                let mut header = header(*mode, *owner, 0);
                header.set_entry_type(EntryType::Directory);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            File::Link(target) => {
                let mut header = header(0o777, 0, 0);
                header.set_entry_type(EntryType::Symlink);
                tar.append_link(&mut header, path, target)?;
            }
            File::Content { bytes, mode } => {
                tar.append_data(&mut header(*mode, 0, bytes.len()), path, bytes.as_slice())?;
            }
        }
    }
    tar.into_inner()
}

/// A header without a time: the same files give the same digest.
fn header(mode: u32, owner: u64, bytes: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(0);
    header.set_size(bytes as u64);
    header
}

fn addressed(bytes: Vec<u8>) -> (Digest, Vec<u8>) {
    (Digest::of(&bytes), bytes)
}

fn document(value: &serde_json::Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// What OCI calls this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    fn files() -> Files {
        BTreeMap::from([
            ("tmp".to_owned(), File::Folder { mode: 0o1777, owner: 0 }),
            ("bin".to_owned(), File::Link("usr/bin".to_owned())),
            ("a".to_owned(), File::Content { bytes: b"hello".to_vec(), mode: 0o755 }),
        ])
    }

    #[test]
    fn the_same_files_give_the_same_image() {
        let one = Image::of(&files()).unwrap();
        assert_eq!(one.digest(), Image::of(&files()).unwrap().digest());
        let mut other = files();
        other.insert("a".to_owned(), File::Content { bytes: b"hello".to_vec(), mode: 0o644 });
        assert_ne!(one.digest(), Image::of(&other).unwrap().digest());
    }

    #[test]
    fn every_blob_of_the_layout_is_named_by_its_digest_and_by_the_manifest() {
        let image = Image::of(&files()).unwrap();
        let mut out = Vec::new();
        image.write_layout(&mut out, "registry.test/arco:9").unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(out.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(Digest::of(&bytes).hex(), hex);
            }
            found.insert(path, bytes);
        }
        let index: serde_json::Value = serde_json::from_slice(&found["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], image.digest().as_str());
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "9");
        let manifest: serde_json::Value = serde_json::from_slice(image.manifest()).unwrap();
        for named in [&manifest["config"], &manifest["layers"][0]] {
            let hex = named["digest"].as_str().unwrap().trim_start_matches("sha256:");
            assert_eq!(found[&format!("blobs/sha256/{hex}")].len() as u64, named["size"].as_u64().unwrap());
        }
    }
}
