//! Which request a path means. Pure; repository names hold slashes, so a path is read from its end.

use arco_model::artifact::Digest;

/// Longest repository name.
const NAME_MAX: usize = 255;

/// What a path below `/v2/` names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    /// `/v2/`
    Base,
    /// A manifest by tag or digest.
    Manifest(String, Reference),
    /// A blob.
    Blob(String, Digest),
    /// Where uploads begin.
    Uploads(String),
    /// An upload that has begun.
    Upload(String, String),
    /// Tags.
    Tags(String),
    /// Manifests that speak of another.
    Referrers(String, Digest),
}

/// Tag or digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Tag(tag) => tag,
            Self::Digest(digest) => digest.as_str(),
        }
    }
}

/// Why a path means nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unroutable {
    Unknown,
    Name,
    Digest,
    Tag,
}

/// Reads the path after `/v2/`.
pub(crate) fn parse(path: &str) -> Result<Target, Unroutable> {
    if path.is_empty() {
        return Ok(Target::Base);
    }
    let words: Vec<&str> = path.split('/').collect();
    let name = |words: &[&str]| {
        let name = words.join("/");
        if is_name(&name) { Ok(name) } else { Err(Unroutable::Name) }
    };
    let digest = |text: &str| text.parse::<Digest>().map_err(|_| Unroutable::Digest);
    match words.as_slice() {
        [before @ .., "blobs", "uploads", ""] | [before @ .., "blobs", "uploads"] => Ok(Target::Uploads(name(before)?)),
        [before @ .., "blobs", "uploads", id] => Ok(Target::Upload(name(before)?, (*id).to_owned())),
        [before @ .., "blobs", text] => Ok(Target::Blob(name(before)?, digest(text)?)),
        [before @ .., "manifests", text] => Ok(Target::Manifest(name(before)?, reference(text)?)),
        [before @ .., "tags", "list"] => Ok(Target::Tags(name(before)?)),
        [before @ .., "referrers", text] => Ok(Target::Referrers(name(before)?, digest(text)?)),
        _ => Err(Unroutable::Unknown),
    }
}

fn reference(text: &str) -> Result<Reference, Unroutable> {
    if text.contains(':') {
        return text.parse().map(Reference::Digest).map_err(|_| Unroutable::Digest);
    }
    if is_tag(text) { Ok(Reference::Tag(text.to_owned())) } else { Err(Unroutable::Tag) }
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(text: &str) -> bool {
    let word = |it: u8| it.is_ascii_alphanumeric() || it == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|it| word(it) || it == b'.' || it == b'-')
}

/// Words of `[a-z0-9]+` joined by `.`, `_`, `__` or dashes; slashes between.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= NAME_MAX && text.split('/').all(is_name_word)
}

fn is_name_word(word: &str) -> bool {
    let alphanumeric = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    let separators = word.split(alphanumeric).filter(|it| !it.is_empty());
    word.starts_with(alphanumeric)
        && word.ends_with(alphanumeric)
        && separators.clone().all(|it| matches!(it, "." | "_" | "__") || it.bytes().all(|it| it == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let digest: Digest = Digest::of(b"x");
        let tag = |name: &str, tag: &str| Target::Manifest(name.to_owned(), Reference::Tag(tag.to_owned()));
        let name = || "a/b/c".to_owned();
        for (path, target) in [
            (String::new(), Target::Base),
            ("a/b/c/manifests/v1".into(), tag("a/b/c", "v1")),
            ("manifests/manifests/latest".into(), tag("manifests", "latest")),
            (format!("a/b/c/manifests/{digest}"), Target::Manifest(name(), Reference::Digest(digest.clone()))),
            (format!("a/b/c/blobs/{digest}"), Target::Blob(name(), digest.clone())),
            ("a/b/c/blobs/uploads/".into(), Target::Uploads(name())),
            ("a/b/c/blobs/uploads".into(), Target::Uploads(name())),
            ("a/b/c/blobs/uploads/1-f".into(), Target::Upload(name(), "1-f".into())),
            ("a/b/c/tags/list".into(), Target::Tags(name())),
            (format!("a/b/c/referrers/{digest}"), Target::Referrers(name(), digest.clone())),
        ] {
            assert_eq!(parse(&path), Ok(target), "{path}");
        }
        for (path, error) in [
            ("_catalog", Unroutable::Unknown),
            ("a/b", Unroutable::Unknown),
            ("manifests/v1", Unroutable::Name),
            ("A/manifests/v1", Unroutable::Name),
            ("a/../b/manifests/v1", Unroutable::Name),
            ("a//b/manifests/v1", Unroutable::Name),
            ("a/manifests/-v", Unroutable::Tag),
            ("a/manifests/", Unroutable::Tag),
            ("a/manifests/sha256:1", Unroutable::Digest),
            ("a/blobs/v1", Unroutable::Digest),
            ("a/referrers/sha512:1", Unroutable::Digest),
        ] {
            assert_eq!(parse(path), Err(error), "{path}");
        }
    }

    #[test]
    fn repository_names_follow_the_specification() {
        for good in ["a", "a/b/c", "a.b", "a_b", "a__b", "a--b", "a-b/0.9", &"a".repeat(255)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "A", "a..b", "a___b", "-a", "a-", "a._b", "a b", "a:b", "ä", &"a".repeat(256)]
        {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
