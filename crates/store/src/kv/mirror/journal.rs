//! The file of a mirror: a header, then records, each encrypted with AES-256-GCM.
//!
//! `magic ‖ file id (16)`, then per record `length (u32 le) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`. File id and the
//! record's number are authenticated, so records cannot be moved, repeated or taken from another file. The first record
//! holds everything; later ones hold changes. When these outgrow the live state, the file is written anew beside the
//! old one and renamed over it. Appends are not flushed to the medium: after a power cut the tail may be missing, and
//! the store tells it again.

use super::{Entry, MirrorError, View};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"ARCOMIR1";
const HEADER: usize = MAGIC.len() + 16;
/// Changes may use this much before a compaction is worth it, however small the live state is.
const SLACK: u64 = 256 * 1024;

/// One changed key; no entry means that it is gone.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) key: Vec<u8>,
    pub(super) entry: Option<Entry>,
}

impl Change {
    pub(super) fn apply(&self, entries: &mut BTreeMap<Vec<u8>, Entry>) {
        match &self.entry {
            Some(entry) => entries.insert(self.key.clone(), entry.clone()),
            None => entries.remove(&self.key),
        };
    }
}

pub(super) struct Journal {
    path: PathBuf,
    key: RandomizedNonceKey,
    /// The file to append to; `None` after a failure, until a compaction succeeds.
    open: Option<OpenFile>,
    /// Whether this process may write.
    pub(super) owned: bool,
    failing: bool,
}

struct OpenFile {
    file: File,
    id: [u8; 16],
    next_record: u64,
    length: u64,
    base_length: u64,
}

impl Journal {
    /// Opens the journal and reads what is whole in it; what is not `owned` is left as it is.
    pub(super) fn open(path: &Path, owned: bool) -> Result<(Self, View), MirrorError> {
        let key = load_key(&path.with_extension("key"))?;
        let mut view = View::default();
        let whole = match std::fs::read(path) {
            Ok(bytes) => replay(&key, &bytes, &mut view),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the last snapshot cannot be read; it is made anew");
                None
            }
        };
        let open = whole.filter(|_| owned).and_then(|it| reopen(path, it));
        Ok((Self { path: path.to_owned(), key, open, owned, failing: false }, view))
    }

    /// Appends changes; `view` is the state after them.
    pub(super) fn append(&mut self, view: &View, changes: &[Change]) {
        if !self.owned {
            return;
        }
        let Some(open) = &mut self.open else { return self.compact(view) };
        if open.length > open.base_length * 2 + SLACK {
            return self.compact(view);
        }
        let plain = encode(view.revision, changes.iter().map(|it| (it.key.as_slice(), it.entry.as_ref())));
        let written = seal(&self.key, &open.id, open.next_record, plain).and_then(|record| {
            open.file.write_all(&record)?;
            Ok(record.len() as u64)
        });
        match written {
            Ok(length) => {
                open.next_record += 1;
                open.length += length;
            }
            Err(error) => {
                self.open = None;
                self.failed(&error);
            }
        }
    }

    /// Writes the whole state into a new file and puts it in the place of the old one.
    pub(super) fn compact(&mut self, view: &View) {
        if !self.owned {
            return;
        }
        match self.rewrite(view) {
            Ok(open) => {
                self.open = Some(open);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(path = %self.path.display(), "the last snapshot is written again");
                }
            }
            Err(error) => {
                self.open = None;
                self.failed(&error);
            }
        }
    }

    fn failed(&mut self, error: &std::io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the last snapshot cannot be written; routing goes on from memory");
        }
    }

    fn rewrite(&self, view: &View) -> std::io::Result<OpenFile> {
        let mut id = [0u8; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| std::io::Error::other("no randomness"))?;
        let plain = encode(view.revision, view.entries.iter().map(|(key, entry)| (key.as_slice(), Some(entry))));
        let record = seal(&self.key, &id, 0, plain)?;
        let temporary = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&[MAGIC.as_slice(), &id, &record].concat())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        let length = (HEADER + record.len()) as u64;
        Ok(OpenFile { file, id, next_record: 1, length, base_length: length })
    }
}

/// What `replay` found whole.
struct Whole {
    id: [u8; 16],
    records: u64,
    length: u64,
    base_length: u64,
}

/// Cuts off a torn tail and opens the file for appending.
fn reopen(path: &Path, whole: Whole) -> Option<OpenFile> {
    let file = OpenOptions::new().append(true).open(path).ok()?;
    file.set_len(whole.length).ok()?;
    Some(OpenFile {
        file,
        id: whole.id,
        next_record: whole.records,
        length: whole.length,
        base_length: whole.base_length,
    })
}

/// Applies every whole record to `view`; `None` when not even the first one is.
fn replay(key: &RandomizedNonceKey, bytes: &[u8], view: &mut View) -> Option<Whole> {
    let id: [u8; 16] = bytes.strip_prefix(MAGIC)?.get(..16)?.try_into().ok()?;
    let mut whole = Whole { id, records: 0, length: HEADER as u64, base_length: 0 };
    let mut rest = &bytes[HEADER..];
    while !rest.is_empty() {
        let Some((record, after)) = split_record(rest) else { break };
        let Some(plain) = unseal(key, &id, whole.records, record) else { break };
        let Some((revision, changes)) = decode(&plain) else { break };
        view.revision = revision;
        for change in changes {
            change.apply(&mut view.entries);
        }
        whole.length += (rest.len() - after.len()) as u64;
        whole.records += 1;
        if whole.records == 1 {
            whole.base_length = whole.length;
        }
        rest = after;
    }
    if !rest.is_empty() {
        tracing::warn!(lost_bytes = rest.len(), "the end of the last snapshot is torn; the store will tell it again");
    }
    (whole.records > 0).then_some(whole)
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn authenticated(id: &[u8; 16], record: u64) -> [u8; 24] {
    let mut out = [0u8; 24];
    out[..16].copy_from_slice(id);
    out[16..].copy_from_slice(&record.to_le_bytes());
    out
}

fn seal(key: &RandomizedNonceKey, id: &[u8; 16], record: u64, mut plain: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let nonce = key
        .seal_in_place_append_tag(Aad::from(authenticated(id, record)), &mut plain)
        .map_err(|_| std::io::Error::other("the record cannot be encrypted"))?;
    let length =
        u32::try_from(NONCE_LEN + plain.len()).map_err(|_| std::io::Error::other("more than 4 GB of routes"))?;
    Ok([length.to_le_bytes().as_slice(), nonce.as_ref(), &plain].concat())
}

fn unseal(key: &RandomizedNonceKey, id: &[u8; 16], record: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
    let mut buffer = sealed.to_vec();
    let aad = Aad::from(authenticated(id, record));
    let length = key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut buffer).ok()?.len();
    buffer.truncate(length);
    Some(buffer)
}

/// `revision ‖ { key length ‖ key ‖ 0 | 1 ‖ mod revision ‖ value length ‖ value }…`, numbers little endian.
fn encode<'a>(revision: u64, changes: impl Iterator<Item = (&'a [u8], Option<&'a Entry>)>) -> Vec<u8> {
    let mut out = revision.to_le_bytes().to_vec();
    for (key, entry) in changes {
        out.extend((key.len() as u32).to_le_bytes());
        out.extend(key);
        out.push(u8::from(entry.is_some()));
        if let Some(entry) = entry {
            out.extend(entry.mod_revision.to_le_bytes());
            out.extend((entry.value.len() as u32).to_le_bytes());
            out.extend(entry.value.iter());
        }
    }
    out
}

fn decode(bytes: &[u8]) -> Option<(u64, Vec<Change>)> {
    let (revision, mut rest) = bytes.split_first_chunk::<8>()?;
    let mut changes = Vec::new();
    while !rest.is_empty() {
        let (key, after) = split_record(rest)?;
        let (present, after) = after.split_first()?;
        rest = after;
        let mut entry = None;
        if *present == 1 {
            let (mod_revision, after) = rest.split_first_chunk::<8>()?;
            let (value, after) = split_record(after)?;
            rest = after;
            entry = Some(Entry { value: value.into(), mod_revision: u64::from_le_bytes(*mod_revision) });
        }
        changes.push(Change { key: key.to_vec(), entry });
    }
    Some((u64::from_le_bytes(*revision), changes))
}

/// Reads the key file, or makes it with mode 0600.
fn load_key(path: &Path) -> Result<RandomizedNonceKey, MirrorError> {
    let fail = |step, cause: String| MirrorError::Key { step, path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => {
            file.take(33).read_to_end(&mut bytes).map_err(|it| fail("read", it.to_string()))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bytes = vec![0; 32];
            aws_lc_rs::rand::fill(&mut bytes).map_err(|_| fail("make", "no randomness".to_owned()))?;
            make_key(path, &bytes).map_err(|it| fail("make", it.to_string()))?;
        }
        Err(error) => return Err(fail("read", error.to_string())),
    }
    if bytes.len() != 32 {
        return Err(fail("use", "it does not hold 32 bytes; delete it, the snapshot is then made anew".to_owned()));
    }
    RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| fail("use", "it is no AES-256 key".to_owned()))
}

/// Whole or not at all: half of a key, left by a crash, would keep the process from starting until somebody deletes it.
fn make_key(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("key-new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
