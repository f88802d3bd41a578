//! The archive of `arco export`: one tar, its manifest first, then blobs by digest (each once), then the content of
//! volumes in pieces, and at last what makes it whole.
//!
//! ```text
//! manifest.json                                  Manifest
//! blobs/sha256/HEX                               images and sources
//! volumes/APP/COMPONENT/VOLUME/00000000 …        a tar, cut into pieces
//! volumes/APP/COMPONENT/VOLUME.1/00000000 …      of a further place of a stateful component (version 2)
//! end.json                                       End
//! ```
//! What must hold: secrets stand in it only sealed; whoever reads it ([`read`]) believes nothing in it.

pub(crate) mod read;

use arco_api::wire::{CarriedApplication, CarriedComponent};
use arco_model::artifact::Digest;
use arco_model::spec::{ComponentKind, ComponentSpec, VolumeKind, VolumeSpec};
use arco_store::secrets::{Sealed, SecretBox, key_of_passphrase};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Write};
use std::num::NonZeroU32;

/// What the first line of a manifest says.
const FORMAT: &str = "arco-archive";
/// The newest version; older ones are read.
const VERSION: u32 = 2;
/// The version of an archive without content of further places, which older programs read, too.
const FIRST_VERSION: u32 = 1;
/// Most contents of volumes of one archive.
const CONTENTS_MAX: u64 = 100_000;
/// Bytes of a piece of a volume.
pub(crate) const PIECE: usize = 4 << 20;
/// Rounds of PBKDF2-HMAC-SHA-256 (OWASP's figure), and how few and many are believed.
const ROUNDS: u32 = 600_000;
const ROUNDS_BELIEVED: std::ops::RangeInclusive<u32> = 100_000..=10_000_000;
/// What a wrong passphrase is known by.
const CHECK: &str = "arco archive";

/// What an archive holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) format: String,
    pub(crate) version: u32,
    /// Version of the platform that it comes from.
    pub(crate) platform: String,
    /// Time of the export, in ms since 1970.
    pub(crate) created_at_ms: u64,
    pub(crate) seal: Option<Seal>,
    /// Whether the content of volumes is in it.
    pub(crate) volumes: bool,
    pub(crate) applications: Vec<CarriedApplication>,
}

/// How the passphrase becomes the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seal {
    salt: String,
    rounds: u32,
    check: String,
}

/// The last entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    manifest: Digest,
    volumes: Vec<VolumeEnd>,
}

/// A volume that is whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeEnd {
    path: String,
    size: u64,
    digest: Digest,
}

impl Manifest {
    /// Of these applications.
    pub(crate) fn new(
        platform: &str,
        created_at_ms: u64,
        seal: Option<Seal>,
        volumes: bool,
        applications: Vec<CarriedApplication>,
    ) -> Self {
        let platform = platform.to_owned();
        let further = applications.iter().flat_map(|it| &it.components).any(|it| it.places != 1);
        let version = if further { VERSION } else { FIRST_VERSION };
        Self { format: FORMAT.to_owned(), version, platform, created_at_ms, seal, volumes, applications }
    }

    /// Whether an older program wrote of a component the content of its first place alone.
    pub(crate) fn is_halved(&self, component: &CarriedComponent) -> bool {
        let ComponentSpec { kind, replicas, autoscaling, .. } = &component.spec;
        let several = *kind == ComponentKind::Stateful && *replicas > 1 && autoscaling.is_none();
        let own = component.volumes().any(|it| it.kind == VolumeKind::Local);
        self.version == FIRST_VERSION && self.volumes && several && own
    }

    /// How many contents of volumes it names.
    fn contents(&self) -> u64 {
        let of = |it: &CarriedComponent| -> u64 { it.volumes().map(|volume| u64::from(it.contents_of(volume))).sum() };
        self.components().map(|(_, it)| of(it)).sum()
    }

    fn components(&self) -> impl Iterator<Item = (&CarriedApplication, &CarriedComponent)> {
        self.applications.iter().flat_map(|application| application.components.iter().map(move |it| (application, it)))
    }

    /// Blobs that belong to it, each once, with their sizes.
    pub(crate) fn blobs(&self) -> BTreeMap<&Digest, u64> {
        self.components().flat_map(|(_, it)| &it.blobs).map(|it| (&it.digest, it.size)).collect()
    }

    /// Folders of the volumes whose content belongs to it.
    pub(crate) fn volume_paths(&self) -> BTreeSet<String> {
        let all = self.components().filter(|_| self.volumes);
        all.flat_map(|(application, component)| {
            component
                .contents()
                .map(|(it, place)| volume_path(application.name.as_str(), component.name.as_str(), it, place))
        })
        .collect()
    }
}

/// Folder of a volume in the archive.
pub(crate) fn volume_path(application: &str, component: &str, volume: &VolumeSpec, place: u32) -> String {
    let further = if place == 0 { String::new() } else { format!(".{place}") };
    format!("volumes/{application}/{component}/{}{further}", volume.name)
}

impl Seal {
    /// A new salt; with it the text of the key, as the API takes it.
    pub(crate) fn new(passphrase: &str) -> Result<(Self, String), String> {
        let salt = format!("{:016x}{:016x}", arco_store::clock::random(), arco_store::clock::random());
        let mut seal = Self { salt, rounds: ROUNDS, check: String::new() };
        let key = seal.derive(passphrase)?;
        let sealed = SecretBox::parse(&key).map_err(str::to_owned)?.seal(CHECK, b"").map_err(|it| it.to_string())?;
        seal.check = sealed.text;
        Ok((seal, key))
    }

    /// The text of the key, if the passphrase is the one that it was made of.
    pub(crate) fn key(&self, passphrase: &str) -> Result<String, String> {
        if !ROUNDS_BELIEVED.contains(&self.rounds) {
            return Err(format!("its passphrase is stretched {} times", self.rounds));
        }
        let key = self.derive(passphrase)?;
        let sealed = Sealed { key_id: "archive".to_owned(), text: self.check.clone() };
        let opened = SecretBox::parse(&key).map_err(str::to_owned)?.unseal(CHECK, &sealed);
        opened.map(|_| key).map_err(|_| "the passphrase is not the one of the export".to_owned())
    }

    fn derive(&self, passphrase: &str) -> Result<String, String> {
        let rounds = NonZeroU32::new(self.rounds).ok_or("its passphrase is stretched 0 times")?;
        Ok(key_of_passphrase("archive", passphrase, self.salt.as_bytes(), rounds))
    }
}

/// Writes an archive.
pub(crate) struct Writer<W: Write> {
    out: W,
    end: End,
    /// Bytes of the present entry that are still to come, and what came.
    missing: u64,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with the manifest.
    pub(crate) fn new(out: W, manifest: &Manifest) -> Result<Self, Error> {
        let document = serde_json::to_vec(manifest)?;
        let end = End { manifest: Digest::of(&document), volumes: Vec::new() };
        let mut writer = Self { out, end, missing: 0, hash: Sha256::new(), size: 0 };
        writer.whole("manifest.json", &document)?;
        Ok(writer)
    }

    /// Begins a blob; its bytes follow by [`Writer::bytes`].
    pub(crate) fn blob(&mut self, digest: &Digest, size: u64) -> Result<(), Error> {
        self.begin(&format!("blobs/sha256/{}", digest.hex()), size)
    }

    /// Bytes of a blob.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.missing =
            self.missing.checked_sub(bytes.len() as u64).ok_or_else(|| Error::other("it is longer than it was"))?;
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }

    /// Ends a blob; fails when it is not what it is called.
    pub(crate) fn blob_end(&mut self, digest: &Digest) -> Result<(), Error> {
        if self.missing > 0 {
            return Err(Error::other("it broke off"));
        }
        self.pad()?;
        let found = Digest::from_sha256(&std::mem::take(&mut self.hash).finalize().into());
        if found == *digest { Ok(()) } else { Err(Error::other(format!("its content is {found}"))) }
    }

    /// Writes a piece of a volume's content, in order; all but the last have [`PIECE`] bytes.
    pub(crate) fn volume_piece(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        if self.end.volumes.last().is_none_or(|it| it.path != path) {
            self.end.volumes.push(VolumeEnd { path: path.to_owned(), size: 0, digest: Digest::of(b"") });
        }
        let Some(volume) = self.end.volumes.last_mut() else { return Ok(()) };
        let number = volume.size / PIECE as u64;
        volume.size += bytes.len() as u64;
        volume.digest = chained(&volume.digest, &Digest::of(bytes));
        self.whole(&format!("{path}/{number:08}"), bytes)
    }

    /// What makes it whole.
    pub(crate) fn finish(mut self) -> Result<W, Error> {
        let end = serde_json::to_vec(&self.end)?;
        self.whole("end.json", &end)?;
        self.out.write_all(&[0; 1024])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn whole(&mut self, path: &str, content: &[u8]) -> Result<(), Error> {
        self.begin(path, content.len() as u64)?;
        self.out.write_all(content)?;
        self.missing = 0;
        self.pad()
    }

    fn begin(&mut self, path: &str, size: u64) -> Result<(), Error> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_size(size);
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        (self.missing, self.size, self.hash) = (size, size, Sha256::new());
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self) -> Result<(), Error> {
        let rest = (512 - self.size % 512) % 512;
        self.out.write_all(&[0; 512][..rest as usize])
    }
}

/// The digest of pieces: each one chained to those before.
fn chained(before: &Digest, piece: &Digest) -> Digest {
    Digest::of(format!("{before}{piece}").as_bytes())
}
