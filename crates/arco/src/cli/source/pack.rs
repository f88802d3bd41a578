//! A folder as a gzip-compressed tar: the same content gives the same bytes.
//!
//! Entries are sorted; owner and time are fixed, modes reduced to "executable or not". `.gitignore` and `.arcoignore` are
//! respected, `.git` never goes along, links stay links and are not followed.

use super::progress::Passed;
use crate::cli::failure::Failure;
use arco_model::artifact::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use ignore::WalkBuilder;
use sha2::Digest as _;
use std::fs::File;
use std::io::{BufWriter, Read, Seek as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// 1980-01-01T00:00:00Z, the oldest time that zip files can hold; builds that make some would fail on 1970.
const TIME: u64 = 315_532_800;

/// Which files go along.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rules {
    /// All but what `.gitignore` and `.arcoignore` name.
    Ignore,
    /// All but what `.arcoignore` names (a checkout holds only what was committed).
    All,
}

/// A packed folder.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The archive, at its begin; it has no name and goes away when it is closed.
    pub(crate) file: File,
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Files, links and folders in it.
    pub(crate) files: usize,
    /// What was left out and why.
    pub(crate) skipped: Vec<Skipped>,
}

/// A thing that was left out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Skipped {
    /// Path in the folder.
    pub(crate) path: String,
    /// Why.
    pub(crate) why: String,
}

/// Packs `folder`; what is read of its files is counted.
pub(crate) fn pack(folder: &Path, rules: Rules, read: &Passed) -> Result<Packed, Failure> {
    let failed = |step: &str, path: &Path, error: &dyn std::fmt::Display| {
        Failure::local(
            format!("failed to {step} `{}`: {error}", path.display()),
            "check the file, or name it in `.arcoignore`",
        )
    };
    let mut skipped = Vec::new();
    let mut paths = list(folder, rules, &mut skipped)?;
    paths.sort();
    let file = tempfile::tempfile().map_err(|it| failed("make a temporary file for", folder, &it))?;
    let hashing = Hashing { inner: BufWriter::with_capacity(1 << 18, file), hash: sha2::Sha256::new(), size: 0 };
    let mut archive = tar::Builder::new(GzEncoder::new(hashing, Compression::fast()));
    archive.mode(tar::HeaderMode::Deterministic);
    let mut files = 0;
    for path in &paths {
        let full = folder.join(path);
        let metadata = std::fs::symlink_metadata(&full).map_err(|it| failed("read", &full, &it))?;
        let mut header = tar::Header::new_gnu();
        header.set_mtime(TIME);
        header.set_uid(0);
        header.set_gid(0);
        let kind = metadata.file_type();
        if kind.is_symlink() {
            let target = std::fs::read_link(&full).map_err(|it| failed("read", &full, &it))?;
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            archive.append_link(&mut header, path, &target).map_err(|it| failed("pack", &full, &it))?;
        } else if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            archive.append_data(&mut header, path, std::io::empty()).map_err(|it| failed("pack", &full, &it))?;
        } else if kind.is_file() {
            let content = File::open(&full).map_err(|it| failed("read", &full, &it))?;
            // The size may have changed since the listing; what counts is the opened file.
            let metadata = content.metadata().map_err(|it| failed("read", &full, &it))?;
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(if metadata.mode() & 0o111 == 0 { 0o644 } else { 0o755 });
            header.set_size(metadata.len());
            let mut exact = Exact { inner: content, left: metadata.len(), read };
            archive.append_data(&mut header, path, &mut exact).map_err(|it| failed("pack", &full, &it))?;
        } else {
            skipped.push(Skipped {
                path: path.display().to_string(),
                why: "it is neither file, folder nor link".to_owned(),
            });
            continue;
        }
        files += 1;
    }
    let end = |it: std::io::Error| failed("write the archive of", folder, &it);
    let hashing = archive.into_inner().map_err(end)?.finish().map_err(end)?;
    let (digest, size) = (Digest::from_sha256(&hashing.hash.finalize().into()), hashing.size);
    let mut file = hashing.inner.into_inner().map_err(|it| end(it.into_error()))?;
    file.rewind().map_err(end)?;
    Ok(Packed { file, digest, size, files, skipped })
}

/// Paths relative to `folder`.
fn list(folder: &Path, rules: Rules, skipped: &mut Vec<Skipped>) -> Result<Vec<PathBuf>, Failure> {
    let git = rules == Rules::Ignore;
    let walk = WalkBuilder::new(folder)
        .hidden(false)
        .ignore(false)
        .git_global(false)
        .git_exclude(git)
        .git_ignore(git)
        .require_git(false)
        // Rules above the folder count only inside the repository that the folder is part of.
        .parents(git && inside_repository(folder))
        .add_custom_ignore_filename(".arcoignore")
        .follow_links(false)
        .filter_entry(|it| it.file_name() != ".git")
        .build();
    let mut paths = Vec::new();
    for entry in walk {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let advice = "make it readable, or name it in `.arcoignore`";
                return Err(Failure::local(
                    format!("failed to read the folder `{}`: {error}", folder.display()),
                    advice,
                ));
            }
        };
        if let Some(error) = entry.error() {
            skipped.push(Skipped { path: "(an ignore rule)".to_owned(), why: error.to_string() });
        }
        match entry.path().strip_prefix(folder) {
            Ok(path) if !path.as_os_str().is_empty() => paths.push(path.to_owned()),
            _ => {}
        }
    }
    Ok(paths)
}

fn inside_repository(folder: &Path) -> bool {
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    folder.ancestors().any(|it| it.join(".git").exists())
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    inner: W,
    hash: sha2::Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Exactly as many bytes as the header promised, although somebody may write to the file meanwhile.
struct Exact<'r> {
    inner: File,
    left: u64,
    read: &'r Passed,
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(std::io::Error::other("it became shorter while it was read"));
        }
        self.left -= read as u64;
        self.read.add(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn of(folder: &Path, rules: Rules) -> Packed {
        pack(folder, rules, &Passed::default()).unwrap()
    }

    fn names(packed: Packed) -> Vec<String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.file));
        let name = |it: tar::Entry<'_, _>| it.path().unwrap().display().to_string();
        archive.entries().unwrap().map(|it| name(it.unwrap())).collect()
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["src", ".git/objects", "node_modules/x", "sub/.git"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        for (path, text) in [
            (".gitignore", "node_modules\n*.log\n"),
            (".arcoignore", "secret.txt\n!keep.log\n"),
            ("secret.txt", "x"),
            ("keep.log", "x"),
            ("drop.log", "x"),
            ("src/main.py", "print()"),
            (".env", "A=1"),
            ("node_modules/x/i.js", "x"),
            (".git/HEAD", "x"),
            ("sub/.git/HEAD", "x"),
        ] {
            std::fs::write(at(path), text).unwrap();
        }
        symlink("../../etc/passwd", at("link")).unwrap();
        dir
    }

    #[test]
    fn ignored_files_stay_and_links_stay_links() {
        let dir = folder();
        let packed = of(dir.path(), Rules::Ignore);
        let wanted = [".arcoignore", ".env", ".gitignore", "keep.log", "link", "src", "src/main.py", "sub"];
        assert_eq!(names(packed), wanted);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(of(dir.path(), Rules::Ignore).file));
        let link =
            archive.entries().unwrap().map(Result::unwrap).find(|it| it.path().unwrap() == Path::new("link")).unwrap();
        assert!(link.header().entry_type().is_symlink());
        assert_eq!(link.link_name().unwrap().unwrap(), Path::new("../../etc/passwd"));
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let (one, two) = (folder(), folder());
        let first = of(one.path(), Rules::Ignore);
        // Neither time nor rights beyond "executable" count.
        std::fs::set_permissions(two.path().join("src/main.py"), std::fs::Permissions::from_mode(0o600)).unwrap();
        File::open(two.path().join("src/main.py")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(first.digest, of(two.path(), Rules::Ignore).digest);
        std::fs::write(two.path().join("src/main.py"), "print(2)").unwrap();
        assert_ne!(first.digest, of(two.path(), Rules::Ignore).digest);
        assert_eq!(first.size, first.file.metadata().unwrap().len());
        let read = Passed::default();
        pack(two.path(), Rules::All, &read).unwrap();
        let all = [".gitignore", ".arcoignore", "src/main.py", ".env", "keep.log", "node_modules/x/i.js", "drop.log"];
        let length = |it: &&str| two.path().join(it).metadata().unwrap().len();
        assert_eq!(read.bytes(), all.iter().map(length).sum::<u64>(), "what is left out is not read");
    }

    #[test]
    fn rules_above_the_folder_count_only_inside_a_repository() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("app");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(dir.path().join(".gitignore"), "*.js\n").unwrap();
        std::fs::write(inner.join("a.js"), "x").unwrap();
        assert_eq!(names(of(&inner, Rules::Ignore)), ["a.js"]);
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        assert!(names(of(&inner, Rules::Ignore)).is_empty());
        assert_eq!(names(of(&inner, Rules::All)), ["a.js"]);
    }

    #[test]
    fn what_is_no_file_is_left_out_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let packed = of(dir.path(), Rules::Ignore);
        assert_eq!((packed.files, packed.skipped.len(), packed.skipped[0].path.as_str()), (0, 1, "s"));
    }
}
