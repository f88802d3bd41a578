//! Archives that are whole, and what is refused.

use super::super::{Seal, Writer};
use super::*;
use arco_api::wire::CarriedApplication;
use arco_model::spec::{ComponentKind, VolumeKind};

const BLOB: &[u8] = b"a layer";

fn manifest_of(volumes: bool) -> Manifest {
    let spec = serde_json::json!({
        "source": { "kind": "image", "reference": "x" },
        "volumes": [{ "name": "files", "path": "/data" }, { "name": "fast", "path": "/fast", "kind": "memory" }],
    });
    let digest = Digest::of(BLOB);
    let application: CarriedApplication = serde_json::from_value(serde_json::json!({
        "name": "demo", "driver": "local", "domain": "test", "certificates": [],
        "components": [{
            "name": "web", "spec": spec, "generation": 1, "runs": true, "secrets": [], "routes": [], "streams": [],
            "revision": {
                "number": 1, "artifact": digest, "media_type": "m", "architecture": "", "defaults": {}, "spec": spec,
                "build_key": "", "commit": null, "cause": "deploy", "created_at": 1,
            },
            "blobs": [{ "media_type": "m", "digest": digest, "size": BLOB.len() }],
        }],
    }))
    .unwrap();
    Manifest::new("1", 1, None, volumes, vec![application])
}

/// The same of a stateful component with that many places.
fn manifest_with_places(places: u32) -> Manifest {
    let mut application = manifest_of(true).applications.remove(0);
    let component = &mut application.components[0];
    let revision = component.revision.as_mut().unwrap();
    for spec in [&mut component.spec, &mut revision.spec] {
        (spec.kind, spec.replicas) = (ComponentKind::Stateful, places);
        spec.volumes[0].kind = VolumeKind::Local;
    }
    component.places = places;
    Manifest::new("1", 1, None, true, vec![application])
}

fn archive(volumes: bool, steps: impl FnOnce(&mut Writer<Vec<u8>>)) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &manifest_of(volumes)).unwrap();
    steps(&mut writer);
    writer.finish().unwrap()
}

fn blob(writer: &mut Writer<Vec<u8>>) {
    let digest = Digest::of(BLOB);
    writer.blob(&digest, BLOB.len() as u64).unwrap();
    writer.bytes(BLOB).unwrap();
    writer.blob_end(&digest).unwrap();
}

fn volume(writer: &mut Writer<Vec<u8>>) {
    writer.volume_piece("volumes/demo/web/files", &vec![7; PIECE]).unwrap();
    writer.volume_piece("volumes/demo/web/files", b"rest").unwrap();
}

/// A tar of any entries.
fn tar_of(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_entry_type(*kind);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

#[test]
fn what_is_written_is_read() {
    let bytes = archive(true, |it| {
        blob(it);
        volume(it);
    });
    let contents = verify(&bytes[..]).unwrap();
    assert_eq!(contents.manifest, manifest_of(true));
    let (offset, size) = contents.blobs[&Digest::of(BLOB)];
    assert_eq!(&bytes[offset as usize..(offset + size) as usize], BLOB);
    let pieces = &contents.volumes["volumes/demo/web/files"];
    assert_eq!(pieces.iter().map(|it| it.1).collect::<Vec<_>>(), [PIECE as u64, 4]);
    assert_eq!(&bytes[pieces[1].0 as usize..][..4], b"rest");
    assert!(verify(&archive(false, blob)[..]).unwrap().volumes.is_empty());
}

#[test]
fn each_place_has_its_own_content_and_older_archives_have_the_first() {
    let of = |manifest: &Manifest, places: &[&str]| {
        let mut writer = Writer::new(Vec::new(), manifest).unwrap();
        blob(&mut writer);
        for it in places {
            writer.volume_piece(&format!("volumes/demo/web/files{it}"), it.as_bytes()).unwrap();
        }
        verify(&writer.finish().unwrap()[..])
    };
    let three = manifest_with_places(3);
    assert_eq!((three.version, three.is_halved(&three.applications[0].components[0])), (2, false));
    let contents = of(&three, &[".0", ".1", ".2"]);
    assert!(contents.unwrap_err().contains("not of a volume"), "the first is called as ever");
    let mut writer = Writer::new(Vec::new(), &three).unwrap();
    blob(&mut writer);
    for path in three.volume_paths() {
        writer.volume_piece(&path, path.as_bytes()).unwrap();
    }
    let contents = verify(&writer.finish().unwrap()[..]).unwrap();
    let paths: Vec<&str> = contents.volumes.keys().map(String::as_str).collect();
    assert_eq!(paths, ["volumes/demo/web/files", "volumes/demo/web/files.1", "volumes/demo/web/files.2"]);

    // As a program wrote it that knew nothing of places.
    let mut older = manifest_with_places(1);
    older.applications[0].components[0].spec.replicas = 3;
    let text = serde_json::to_string(&older).unwrap();
    assert!(older.version == 1 && !text.contains("places"), "{text}");
    assert!(older.is_halved(&older.applications[0].components[0]));
    assert_eq!(older.volume_paths().len(), 1);
    assert!(of(&manifest_with_places(u32::MAX), &[]).unwrap_err().contains("contents of volumes"));
}

#[test]
fn a_blob_that_is_not_what_it_is_called_is_not_written() {
    let mut writer = Writer::new(Vec::new(), &manifest_of(false)).unwrap();
    let digest = Digest::of(BLOB);
    writer.blob(&digest, 3).unwrap();
    assert!(writer.bytes(b"long").is_err());
    writer.bytes(b"abc").unwrap();
    assert!(writer.blob_end(&digest).is_err());
    writer.blob(&digest, 3).unwrap();
    writer.bytes(b"ab").unwrap();
    assert!(writer.blob_end(&digest).is_err());
}

#[test]
fn what_is_missing_changed_or_foreign_is_refused() {
    use tar::EntryType::{Directory, Link, Regular, Symlink, XHeader};
    let whole = archive(true, |it| {
        blob(it);
        volume(it);
    });
    let manifest = serde_json::to_vec(&manifest_of(false)).unwrap();
    let later = String::from_utf8(manifest.clone()).unwrap().replace("\"version\":1", "\"version\":3").into_bytes();
    let first = ("manifest.json", Regular, &manifest[..]);
    let name = format!("blobs/sha256/{}", Digest::of(BLOB).hex());
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", Vec::new(), "cut off"),
        ("no tar", b"hello".repeat(200), "not a tar"),
        ("no blob", archive(true, volume), "is missing"),
        ("no volume", archive(true, blob), "is missing"),
        (
            "a volume of nobody",
            archive(true, |it| it.volume_piece("volumes/demo/web/other", b"x").unwrap()),
            "not of a volume",
        ),
        ("a volume that is not carried", archive(false, volume), "not of a volume"),
        (
            "pieces that are too short",
            archive(true, |it| {
                blob(it);
                it.volume_piece("volumes/demo/web/files", b"a").unwrap();
                it.volume_piece("volumes/demo/web/files", b"b").unwrap();
            }),
            "not in order",
        ),
        (
            "a blob twice",
            archive(false, |it| {
                blob(it);
                blob(it);
            }),
            "twice",
        ),
        ("no manifest", tar_of(&[("end.json", Regular, b"{}")]), "begins with"),
        ("another format", tar_of(&[("manifest.json", Regular, b"{\"format\":\"x\"}")]), "not an archive"),
        ("a later version", tar_of(&[("manifest.json", Regular, &later)]), "version 3"),
        ("a manifest that is none", tar_of(&[("manifest.json", Regular, b"[")]), "is none"),
        ("a folder", tar_of(&[first, ("blobs", Directory, b"")]), "not a regular file"),
        ("a link", tar_of(&[first, (&name, Symlink, b"")]), "not a regular file"),
        ("a hard link", tar_of(&[first, (&name, Link, b"")]), "not a regular file"),
        ("another size in a further header", tar_of(&[first, ("x", XHeader, b"12 size=9999\n")]), "not a regular file"),
        (
            "a volume that is a way out",
            tar_of(&[first, ("volumes/../../etc/00000000", Regular, b"x")]),
            "not of a volume",
        ),
        ("a way out", tar_of(&[first, ("../../etc/passwd", Regular, b"x")]), "does not belong"),
        ("a blob of another size", tar_of(&[first, (&name, Regular, b"x")]), "size"),
        ("a blob of other content", tar_of(&[first, (&name, Regular, b"a lay3r")]), "damaged"),
        ("a blob of nobody", tar_of(&[first, ("blobs/sha256/../x", Regular, b"x")]), "not a blob"),
        ("no end", tar_of(&[first, (&name, Regular, BLOB)]), "end is missing"),
        (
            "an end of another",
            tar_of(&[
                first,
                ("end.json", Regular, format!("{{\"manifest\":\"{}\",\"volumes\":[]}}", Digest::of(b"x")).as_bytes()),
            ]),
            "another manifest",
        ),
    ];
    for (what, bytes, why) in rows {
        let refused = verify(&bytes[..]).expect_err(what);
        assert!(refused.contains(why), "{what}: {refused}");
    }
    // Cut off anywhere, it is refused (the two zero blocks at the end are for the tar alone).
    for length in (0..whole.len() - 1024).step_by(whole.len() / 37) {
        assert!(verify(&whole[..length]).is_err(), "cut off at {length}");
    }
    // A changed piece.
    let place = verify(&whole[..]).unwrap().volumes["volumes/demo/web/files"][0].0 as usize;
    let mut changed = whole;
    changed[place + 5] ^= 1;
    assert!(verify(&changed[..]).unwrap_err().contains("volumes"));
}

#[test]
fn only_the_passphrase_opens_a_seal() {
    let (seal, key) = Seal::new("correct horse battery").unwrap();
    assert_eq!(seal.key("correct horse battery").unwrap(), key);
    assert!(seal.key("incorrect horse").unwrap_err().contains("passphrase"));
    assert_ne!(Seal::new("correct horse battery").unwrap().1, key, "each archive has a salt of its own");
    for rounds in [0, 1, u32::MAX] {
        assert!(Seal { rounds, ..seal.clone() }.key("correct horse battery").is_err(), "{rounds}");
    }
}
