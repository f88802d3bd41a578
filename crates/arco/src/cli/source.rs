//! What a person means by SOURCE, and how it reaches the platform.
//!
//! Folders and `file:` repositories are read here, packed and uploaded (once: the same content has the same digest).
//! Everything else is named to the server.

mod git;
mod pack;
mod progress;

use super::failure::Failure;
use super::session::Session;
use super::text;
use arco_model::source::{Source, git_url};
use progress::{Counted, Passed, sending, shown};
use std::path::{Path, PathBuf};
use tokio::time::Instant;

/// A source as it was written, sorted by kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Asked {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A repository of this machine: its path, and what to check out (empty: `HEAD`).
    Repository(PathBuf, String),
    /// A repository that the server fetches: URL and branch, tag or commit (empty: its default).
    Git(String, String),
    /// An image.
    Image(String),
}

impl Asked {
    /// Sorts `text`; `reference` is `--ref`.
    pub(crate) fn parse(text: &str, reference: Option<&str>) -> Result<Self, Failure> {
        let (location, fragment) = match text.split_once('#') {
            Some((location, fragment)) if !Path::new(text).exists() => (location, Some(fragment)),
            _ => (text, None),
        };
        let reference = reference.or(fragment).unwrap_or("").to_owned();
        if let Some(image) = text.strip_prefix("image:") {
            return if image.is_empty() {
                Err(Failure::usage("source_invalid", "`image:` names no image", "give `image:REPOSITORY[:TAG]`"))
            } else {
                Ok(Self::Image(image.to_owned()))
            };
        }
        if let Some(path) = location.strip_prefix("file:") {
            return Ok(Self::Repository(file_path(path)?, reference));
        }
        let path = Path::new(location);
        if path.is_dir() {
            return if reference.is_empty() {
                Ok(Self::Folder(path.to_owned()))
            } else {
                let advice = format!("deploy the repository itself: `file://{}`", absolute(path).display());
                Err(Failure::usage(
                    "ref_unused",
                    "`--ref` does not go with a folder, which is taken as it stands",
                    advice,
                ))
            };
        }
        if path.is_file() {
            let message = format!("`{location}` is a file; package files cannot be deployed yet");
            return Err(Failure::usage("source_unsupported", message, "unpack it and deploy the folder"));
        }
        if location.starts_with("svn://") || location.starts_with("svn+ssh://") {
            let message = format!("`{location}` is a Subversion URL, which cannot be fetched yet");
            return Err(Failure::usage("source_unsupported", message, "check it out and deploy the folder"));
        }
        if !location.contains("://") && !location.contains(':') {
            let message = format!("there is no folder `{}`", text::clean(location));
            return Err(Failure::usage("source_not_found", message, "give a folder, a Git URL or `image:REFERENCE`"));
        }
        match git_url(location) {
            Ok(()) => Ok(Self::Git(location.to_owned(), reference)),
            Err(error) => {
                let advice = "give a folder, an https, http, ssh or git URL, or `image:REFERENCE`";
                Err(Failure::usage("git_url_refused", error.to_string(), advice))
            }
        }
    }

    /// The name that a component gets when none is given: the nearest to the base name.
    pub(crate) fn component_name(&self) -> Option<String> {
        let base = match self {
            Self::Folder(path) => absolute(path).file_name()?.to_str()?.to_owned(),
            Self::Repository(path, _) => absolute(path).file_name()?.to_str()?.to_owned(),
            Self::Git(url, _) => url.trim_end_matches('/').rsplit(['/', ':']).next()?.to_owned(),
            Self::Image(reference) => {
                let name = reference.split('@').next()?.rsplit('/').next()?;
                name.split(':').next()?.to_owned()
            }
        };
        arco_model::name::nearest(base.strip_suffix(".git").unwrap_or(&base))
    }

    /// Brings the source to the platform and says how to name it there.
    pub(crate) async fn resolve(&self, dir: &str, session: &Session<'_>) -> Result<Source, Failure> {
        match self {
            Self::Image(reference) => Ok(Source::Image { reference: reference.clone() }),
            Self::Git(url, reference) => {
                Ok(Source::Git { url: url.clone(), reference: reference.clone(), dir: dir.to_owned() })
            }
            Self::Folder(path) => {
                let commit = git::head(path);
                upload(path, pack::Rules::Ignore, dir, absolute(path).display().to_string(), commit, session).await
            }
            Self::Repository(path, reference) => {
                let checkout = git::check_out(path, reference)?;
                let origin = format!("file://{}", absolute(path).display());
                upload(&checkout.path(), pack::Rules::All, dir, origin, Some(checkout.commit().to_owned()), session)
                    .await
            }
        }
    }
}

/// Hands the files of a local source to `look`.
pub(crate) fn with_folder<T>(asked: &Asked, look: impl FnOnce(&Path) -> Result<T, Failure>) -> Result<T, Failure> {
    match asked {
        Asked::Folder(path) => look(path),
        Asked::Repository(path, reference) => look(&git::check_out(path, reference)?.path()),
        Asked::Git(..) | Asked::Image(_) => {
            let message = "only folders and `file:` repositories can be looked at here";
            Err(Failure::usage("source_unsupported", message, "fetch it, and give the folder"))
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The path of a `file:` URL: `file:///a/b`, `file:/a/b`, `file:a/b`; percent-encoded bytes are decoded.
fn file_path(rest: &str) -> Result<PathBuf, Failure> {
    let path = rest.strip_prefix("//localhost/").map(|it| format!("/{it}"));
    let path = path.unwrap_or_else(|| rest.strip_prefix("//").unwrap_or(rest).to_owned());
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|it| std::str::from_utf8(it).ok());
        match code.and_then(|it| u8::from_str_radix(it, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    use std::os::unix::ffi::OsStringExt as _;
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    if path.is_dir() {
        Ok(path)
    } else {
        let message = format!("there is no repository `{}`", path.display());
        Err(Failure::usage("source_not_found", message, "give `file:///absolute/path` of a Git repository"))
    }
}

async fn upload(
    folder: &Path,
    rules: pack::Rules,
    dir: &str,
    origin: String,
    commit: Option<String>,
    session: &Session<'_>,
) -> Result<Source, Failure> {
    session.ui.progress(format!("packing {origin}"));
    let (owned, read) = (folder.to_owned(), Passed::default());
    let counted = read.clone();
    let packing = tokio::task::spawn_blocking(move || pack::pack(&owned, rules, &counted));
    let packed = shown(session.ui, || format!("packing {origin}: {} read", text::megabytes(read.bytes())), packing)
        .await
        .map_err(|it| Failure::local(format!("failed to pack: {it}"), "try again"))??;
    for skipped in packed.skipped.iter().take(5) {
        session.ui.warn(&format!("left out `{}`: {}", text::clean(&skipped.path), skipped.why));
    }
    let digest = packed.digest.clone();
    if !session.client.has_upload(&session.tenant, digest.as_str()).await? {
        session.ui.progress(format!("sending {} ({} files)", text::megabytes(packed.size), packed.files));
        let (sent, begun) = (Passed::default(), Instant::now());
        let archive = Counted::new(tokio::fs::File::from_std(packed.file), sent.clone());
        let upload = session.client.upload(&session.tenant, packed.size, archive);
        let receipt = shown(session.ui, || sending(sent.bytes(), packed.size, begun.elapsed()), upload).await?;
        if receipt.digest != digest.as_str() {
            let message = "what arrived at the platform is not what was sent";
            return Err(Failure::local(message, "try again; if it stays, check the network between"));
        }
    }
    session.ui.progress_done();
    Ok(Source::Upload { digest, origin, commit, dir: dir.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_sorted_by_how_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().to_str().unwrap();
        let url = "https://example.com/a/shop.git";
        assert_eq!(Asked::parse(here, None).unwrap(), Asked::Folder(here.into()));
        assert_eq!(
            Asked::parse(&format!("file://{here}#v1"), None).unwrap(),
            Asked::Repository(here.into(), "v1".into())
        );
        assert_eq!(Asked::parse(&format!("{url}#main"), Some("v2")).unwrap(), Asked::Git(url.into(), "v2".into()));
        assert_eq!(Asked::parse("image:a/b:1", None).unwrap(), Asked::Image("a/b:1".into()));
        assert_eq!(Asked::parse("git@h:a/b.git", None).unwrap().component_name().as_deref(), Some("b"));
        for (text, code) in [
            ("/no/such/folder", "source_not_found"),
            ("file:///no/such", "source_not_found"),
            ("ext::sh -c id", "git_url_refused"),
            ("svn://h/a", "source_unsupported"),
            ("image:", "source_invalid"),
            ("ftp://h/a", "git_url_refused"),
        ] {
            assert_eq!(Asked::parse(text, None).unwrap_err().body.code, code, "{text}");
        }
        assert_eq!(Asked::parse(here, Some("main")).unwrap_err().body.code, "ref_unused");
    }

    #[test]
    fn a_component_is_named_after_its_source() {
        for (asked, name) in [
            (Asked::Git("https://h/a/My_Shop.git".into(), String::new()), Some("my-shop")),
            (Asked::Image("library/nginx:1.25".into()), Some("nginx")),
            (Asked::Image("r:5000/a/web@sha256:00".into()), Some("web")),
            (Asked::Folder("/".into()), None),
        ] {
            assert_eq!(asked.component_name().as_deref(), name);
        }
    }
}
