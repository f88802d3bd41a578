//! The file of a mirror: what comes back after a restart, after a torn tail, after corruption and with a full disk.

use super::journal::{Change, Journal};
use super::*;
use crate::kv::contract::PATIENCE as LONG;

fn put(key: &str, value: &str, mod_revision: u64) -> Change {
    Change { key: key.into(), entry: Some(Entry { value: value.as_bytes().into(), mod_revision }) }
}

/// Writes a base and three changes; returns the states after each.
fn written(path: &Path) -> Vec<View> {
    let (mut journal, mut view) = Journal::open(path, true).unwrap();
    let mut states = Vec::new();
    for (revision, change) in
        [put("/a", "1", 1), put("/b", "secret-value", 2), put("/a", "2", 3)].into_iter().enumerate()
    {
        view.revision = revision as u64 + 1;
        change.apply(&mut view.entries);
        journal.append(&view, &[change]);
        states.push(view.clone());
    }
    view.revision = 4;
    view.entries.remove(b"/b".as_slice());
    journal.append(&view, &[Change { key: b"/b".to_vec(), entry: None }]);
    states.push(view);
    states
}

#[test]
fn what_was_written_comes_back_and_is_not_readable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    let states = written(&path);
    assert_eq!(&Journal::open(&path, true).unwrap().1, states.last().unwrap());
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(12).any(|it| it == b"secret-value"));
    use std::os::unix::fs::PermissionsExt as _;
    for file in ["routes.journal", "routes.key"] {
        let mode = folder.path().join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_key_that_was_never_whole_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    std::fs::write(folder.path().join("routes.key-new"), [7u8; 40]).unwrap();
    let states = written(&path);
    assert_eq!(&Journal::open(&path, true).unwrap().1, states.last().unwrap());
    assert_eq!(std::fs::read(folder.path().join("routes.key")).unwrap().len(), 32);
    assert!(!folder.path().join("routes.key-new").exists());
}

#[test]
fn every_truncation_gives_a_past_state_and_can_be_continued() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    let mut states = written(&path);
    states.insert(0, View::default());
    let bytes = std::fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (mut journal, mut view) = Journal::open(&path, true).unwrap();
        assert!(states.contains(&view), "cut at {length}: {view:?}");
        let change = put("/later", "x", 9);
        view.revision = 9;
        change.apply(&mut view.entries);
        journal.append(&view, &[change]);
        assert_eq!(Journal::open(&path, true).unwrap().1, view, "continued after a cut at {length}");
    }
}

#[test]
fn every_flipped_byte_gives_a_past_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    let mut states = written(&path);
    states.insert(0, View::default());
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        let view = Journal::open(&path, true).unwrap().1;
        assert!(states.contains(&view), "flipped {at}: {view:?}");
    }
}

#[test]
fn a_foreign_key_gives_nothing_and_a_short_key_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    written(&path);
    std::fs::write(folder.path().join("routes.key"), [7u8; 32]).unwrap();
    assert_eq!(Journal::open(&path, true).unwrap().1, View::default());
    std::fs::write(folder.path().join("routes.key"), [7u8; 31]).unwrap();
    assert!(Journal::open(&path, true).err().unwrap().to_string().contains("routes.key"));
}

#[test]
fn changes_are_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    let (mut journal, mut view) = Journal::open(&path, true).unwrap();
    for revision in 0..2_000u64 {
        let change = put("/a", &"x".repeat(1_000), revision);
        view.revision = revision;
        change.apply(&mut view.entries);
        journal.append(&view, &[change]);
    }
    assert!(path.metadata().unwrap().len() < 400_000);
    assert_eq!(Journal::open(&path, true).unwrap().1, view);
}

#[test]
fn a_failing_disk_is_survived_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub").join("routes.journal");
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let (mut journal, mut view) = Journal::open(&path, true).unwrap();
    std::fs::remove_dir_all(folder.path().join("sub")).unwrap();
    let change = put("/a", "1", 1);
    change.apply(&mut view.entries);
    view.revision = 1;
    journal.append(&view, &[change]);
    assert!(!path.exists());
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    journal.append(&view, &[]);
    assert!(path.exists());
}

async fn store(kv: &SharedKv, key: &str, value: &str) -> u64 {
    kv.put(key, value.as_bytes().to_vec(), None).await.unwrap()
}

/// Waits until the mirror shows `revision`, and returns its keys.
async fn keys_at(mirror: &Mirror, revision: u64) -> Vec<String> {
    let mut changed = mirror.changed();
    let reached = async {
        while mirror.read(|view| view.revision < revision || !view.live) {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LONG, reached).await.expect("the mirror follows");
    mirror.read(|view| view.entries.keys().map(|it| String::from_utf8_lossy(it).into_owned()).collect())
}

#[tokio::test]
async fn a_mirror_follows_its_prefix_and_comes_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    let kv: SharedKv = Arc::new(crate::kv::MemoryKv::new());
    store(&kv, "/a/1", "one").await;
    store(&kv, "/b/1", "other").await;
    let stop = CancellationToken::new();
    let mirror = Mirror::open("/a/", &path).unwrap();
    let following = tokio::spawn(Arc::clone(&mirror).run(Arc::clone(&kv), stop.clone()));
    assert_eq!(keys_at(&mirror, 2).await, ["/a/1"]);
    store(&kv, "/b/2", "other").await;
    let revision = store(&kv, "/a/2", "two").await;
    assert_eq!(keys_at(&mirror, revision).await, ["/a/1", "/a/2"]);
    kv.delete("/a/1").await.unwrap();
    assert_eq!(keys_at(&mirror, revision + 1).await, ["/a/2"]);
    stop.cancel();
    following.await.unwrap();
    // While nobody looked, keys went and history was forgotten.
    kv.delete("/a/2").await.unwrap();
    let revision = store(&kv, "/a/3", "three").await;
    kv.compact(revision).await.unwrap();
    let mirror = Mirror::open("/a/", &path).unwrap();
    mirror.read(|view| {
        assert!(!view.live && view.entries.len() == 1);
        assert_eq!(&*view.entries[b"/a/2".as_slice()].value, b"two");
    });
    let stop = CancellationToken::new();
    tokio::spawn(Arc::clone(&mirror).run(Arc::clone(&kv), stop.clone()));
    assert_eq!(keys_at(&mirror, revision).await, ["/a/3"]);
    stop.cancel();
}

#[tokio::test]
async fn a_large_prefix_is_read_page_by_page_at_one_revision() {
    let kv: SharedKv = Arc::new(crate::kv::MemoryKv::new());
    let mut revision = 0;
    for number in 0..PAGE * 2 + 7 {
        revision = store(&kv, &format!("/a/{number:05}"), "x").await;
    }
    let mirror = Mirror::in_memory("/a/");
    let stop = CancellationToken::new();
    tokio::spawn(Arc::clone(&mirror).run(Arc::clone(&kv), stop.clone()));
    assert_eq!(keys_at(&mirror, revision).await.len(), PAGE * 2 + 7);
    stop.cancel();
}

#[tokio::test]
async fn two_processes_share_a_file_and_only_the_owner_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.journal");
    let kv: SharedKv = Arc::new(crate::kv::MemoryKv::new());
    let stop = CancellationToken::new();
    let old = Mirror::open("/a/", &path).unwrap();
    let following = tokio::spawn(Arc::clone(&old).run(Arc::clone(&kv), stop.clone()));
    let sees = async |mirror: &Mirror, count: usize| {
        let mut changed = mirror.changed();
        while mirror.read(|view| view.entries.len()) < count {
            tokio::time::timeout(LONG, changed.changed()).await.unwrap().unwrap();
        }
    };
    let on_disk = || Journal::open(&path, false).unwrap().1.entries.len();
    kv.put("/a/1", b"x".to_vec(), None).await.unwrap();
    sees(&old, 1).await;
    old.release().await;
    assert_eq!(on_disk(), 1);
    let new = Mirror::open_shared("/a/", &path).unwrap();
    assert_eq!(new.read(|view| view.entries.len()), 1);
    kv.put("/a/2", b"x".to_vec(), None).await.unwrap();
    sees(&old, 2).await;
    old.release().await;
    assert_eq!(on_disk(), 1, "released: nothing is written");
    let also = tokio::spawn(Arc::clone(&new).run(Arc::clone(&kv), stop.clone()));
    sees(&new, 2).await;
    assert_eq!(on_disk(), 1, "not owned yet: nothing is written");
    new.own().await;
    assert_eq!(on_disk(), 2);
    stop.cancel();
    following.await.unwrap();
    also.await.unwrap();
}

#[test]
fn what_changed_since_a_mark_is_known_or_said_to_be_unknown() {
    let mut recent = Recent { keys: VecDeque::new(), next: 1 };
    assert_eq!(recent.since(Mark::default()), None);
    let first = Mark(recent.next);
    assert_eq!(recent.since(first), Some(BTreeSet::new()));
    ["a", "b", "a"].iter().for_each(|it| recent.add(it.as_bytes()));
    assert_eq!(recent.since(first), Some(BTreeSet::from([b"a".to_vec(), b"b".to_vec()])));
    let second = Mark(recent.next);
    (0..Recent::MOST).for_each(|it| recent.add(&it.to_be_bytes()));
    assert_eq!(recent.since(first), None);
    assert_eq!(recent.since(second).map(|it| it.len()), Some(Recent::MOST));
    let third = Mark(recent.next);
    recent.forget();
    assert_eq!(recent.since(third), None);
    assert_eq!(recent.since(Mark(recent.next)), Some(BTreeSet::new()));
}
