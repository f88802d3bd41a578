//! What is written can be read, and what cannot be a file of stacks is refused.

use super::*;
use arco_model::artifact::{Descriptor, ImageConfig, Layer};
use arco_store::images::{Image, LAYER_GZIP_TYPE};

fn stack(folder: &std::path::Path, name: &str, layers: &[&str]) -> MachineStack {
    let mut files = BTreeMap::new();
    let mut found = Vec::new();
    for content in layers {
        let digest = Digest::of(content.as_bytes());
        let path = folder.join(digest.hex());
        std::fs::write(&path, content).unwrap();
        files.insert(digest.clone(), path);
        let blob =
            Descriptor { media_type: LAYER_GZIP_TYPE.to_owned(), digest: digest.clone(), size: content.len() as u64 };
        found.push(Layer { blob, diff_id: digest });
    }
    let image = Image { layers: found, config: ImageConfig::default() };
    MachineStack { name: name.to_owned(), edition: 7, image, files }
}

fn written(stacks: &[MachineStack]) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, stacks).unwrap();
    out
}

fn read(bytes: &[u8]) -> Result<Layout, String> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    Layout::read(file)
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let stacks = [stack(folder.path(), "base", &["debian"]), stack(folder.path(), "node-22", &["debian", "node"])];
    let bytes = written(&stacks);
    assert_eq!(bytes, written(&stacks), "the same stacks give the same file");
    let layout = read(&bytes).unwrap();
    let names: Vec<_> = layout.stacks.iter().map(|it| (it.name.as_str(), it.edition, it.blobs.len())).collect();
    assert_eq!(names, [("base", 7, 3), ("node-22", 7, 4)]);
    for digest in layout.stacks.iter().flat_map(|it| &it.blobs) {
        let (file, size) = layout.blob(digest).unwrap();
        let mut content = Vec::new();
        file.take(size).read_to_end(&mut content).unwrap();
        assert_eq!(Digest::of(&content), *digest);
    }
    assert_eq!(layout.places.len(), 6, "each blob lies in it once: two layers, two configurations, two manifests");
}

#[test]
fn what_is_no_file_of_stacks_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = written(&[stack(folder.path(), "base", &["debian"])]);
    let other = String::from_utf8_lossy(&good).replace("arco.local/stack/base:7", "arco.local/other/base:7");
    let mut empty = tar::Builder::new(Vec::new());
    empty.append_data(&mut header(16), "index.json", &b"{\"manifests\":[]}"[..]).unwrap();
    let empty = empty.into_inner().unwrap();
    let rows: [(&[u8], &str); 6] = [
        (b"", "no index.json"),
        (b"no tar at all", ""),
        (&good[..1536], "index.json"),
        (&good[..good.len() - 2048], "missing"),
        (other.as_bytes(), "no stack"),
        (&empty, "holds no stack"),
    ];
    for (number, (bytes, wanted)) in rows.into_iter().enumerate() {
        let refused = read(bytes).unwrap_err();
        assert!(refused.contains(wanted), "{number}: {refused}");
    }
}
