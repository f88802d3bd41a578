//! Hostile and ordinary tars.

use super::*;
use tar::{Builder, Header};

fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: Option<&str>, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(nix::unistd::geteuid().as_raw().into());
    header.set_gid(nix::unistd::getegid().as_raw().into());
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    if let Some(link) = link {
        header.set_link_name(link).unwrap();
    }
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

fn unpacked(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> (tempfile::TempDir, Result<()>) {
    let mut builder = Builder::new(Vec::new());
    fill(&mut builder);
    let bytes = builder.into_inner().unwrap();
    let outer = tempfile::tempdir().unwrap();
    std::fs::create_dir(outer.path().join("layer")).unwrap();
    let result = unpack(&mut &bytes[..], &outer.path().join("layer"));
    (outer, result)
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [&b"../evil"[..], b"a/../../evil", b"/../evil"] {
        let (outer, result) = unpacked(|it| entry(it, EntryType::Regular, name, None, b"x"));
        assert!(result.is_err(), "{name:?}");
        assert!(!outer.path().join("evil").exists());
    }
}

#[test]
fn links_that_lead_out_stay_inside() {
    let (outer, result) = unpacked(|it| {
        entry(it, EntryType::Symlink, b"up", Some(".."), b"");
        entry(it, EntryType::Symlink, b"root", Some("/"), b"");
        entry(it, EntryType::Regular, b"up/evil", None, b"x");
        entry(it, EntryType::Regular, b"root/evil2", None, b"x");
    });
    result.unwrap();
    assert!(!outer.path().join("evil").exists() && !Path::new("/evil2").exists());
    assert!(outer.path().join("layer/evil").exists() && outer.path().join("layer/evil2").exists());
    let (_outer, result) = unpacked(|it| entry(it, EntryType::Link, b"hard", Some("../../../etc/passwd"), b""));
    assert!(result.is_err());
}

#[test]
fn ordinary_entries_come_out_as_they_are() {
    let (outer, result) = unpacked(|it| {
        entry(it, EntryType::Regular, b"deep/er/file", None, b"content");
        entry(it, EntryType::Link, b"same", Some("deep/er/file"), b"");
        entry(it, EntryType::Regular, b"deep/er/file2", None, b"1");
        entry(it, EntryType::Regular, b"deep/er/file2", None, b"22");
        entry(it, EntryType::Char, b"device", None, b"");
    });
    result.unwrap();
    let layer = outer.path().join("layer");
    assert_eq!(std::fs::read(layer.join("same")).unwrap(), b"content");
    assert_eq!(std::fs::read(layer.join("deep/er/file2")).unwrap(), b"22");
    assert!(!layer.join("device").exists());
}
