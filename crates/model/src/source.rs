//! Where a component comes from.

use crate::artifact::Digest;
use serde::{Deserialize, Serialize};

/// Where a component comes from. The client turns folders and `file:` URLs into uploads.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// An uploaded archive: a gzip-compressed tar in the blob store.
    Upload {
        /// Digest of the stored archive, as `POST …/uploads` answered.
        digest: Digest,
        /// What the person named it (folder or URL), for display only.
        #[serde(default)]
        origin: String,
        /// Commit that the folder stood at, when it was a repository.
        #[serde(default)]
        commit: Option<String>,
        /// Sub-directory to build.
        #[serde(default)]
        dir: String,
    },
    /// A repository that the server fetches.
    Git {
        /// https, http, ssh or git URL (checked by [`git_url`]).
        url: String,
        /// Branch, tag or commit; empty means the default branch.
        #[serde(default)]
        reference: String,
        /// Sub-directory to build.
        #[serde(default)]
        dir: String,
    },
    /// An image of our registry or of a configured one.
    Image {
        /// `repository[:tag|@digest]`.
        reference: String,
    },
}

/// Why a Git URL is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the Git URL `{url}` is refused: {why}")]
pub struct GitUrlError {
    url: String,
    why: &'static str,
}

/// Accepts only transports that can neither run a command nor read the server's files.
///
/// `ext::` and other remote helpers run commands (gitremote-helpers(7)), a leading `-` becomes an option of `git`,
/// and `file:` reads the server. Which *addresses* may be reached is decided by the firewall of the build network.
pub fn git_url(url: &str) -> Result<(), GitUrlError> {
    let fail = |why| Err(GitUrlError { url: crate::credential::without_user(url).chars().take(200).collect(), why });
    if url.starts_with('-') {
        return fail("it begins with `-`");
    }
    if url.contains("::") && !url.contains('[') {
        return fail("remote helpers (`helper::address`) could run commands on the server");
    }
    if url.chars().any(|it| it.is_control() || it.is_whitespace()) {
        return fail("it contains white space or control characters");
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        // scp-like syntax: [user@]host:path
        return match url.split_once(':') {
            Some((host, path)) if !host.is_empty() && !host.contains('/') && !path.is_empty() => {
                if host.rsplit('@').next().is_some_and(|it| it.starts_with('-')) {
                    fail("its host begins with `-`")
                } else {
                    Ok(())
                }
            }
            _ => fail("it names no host; a folder is deployed by `arco deploy FOLDER`"),
        };
    };
    match scheme {
        "https" | "http" | "ssh" | "git" => {}
        "file" => return fail("the server does not read its own files; `arco deploy file:…` uploads from the client"),
        _ => return fail("only https, http, ssh and git are allowed"),
    }
    let authority = rest.split('/').next().unwrap_or("");
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |it| it);
    if user.contains(':') || !user.is_empty() && matches!(scheme, "http" | "https") {
        fail(
            "it holds a user or a password, which would be kept with every revision; leave them out and keep them with `arco credential set`",
        )
    } else if host.is_empty() {
        fail("it names no host")
    } else if host.starts_with('-') {
        fail("its host begins with `-`")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_urls_that_run_commands_or_read_files_are_refused() {
        for good in ["https://example.com/a.git", "ssh://git@example.com:22/a", "git@example.com:a/b.git", "git://h/a"]
        {
            assert_eq!(git_url(good), Ok(()), "{good}");
        }
        for bad in [
            "ext::sh -c id",
            "ext::sh",
            "--upload-pack=id",
            "-u",
            "file:///etc",
            "/etc",
            "https://",
            "ssh://-oProxyCommand=id/x",
            "a@-oProxyCommand=id:x",
            "https://a b/c",
            "ftp://h/a",
            "fd::7",
            "https:///x",
            "http://a\n/b",
            "https://user:hunter2@h/x",
            "https://token@h/x",
            "ssh://git:hunter2@h/x",
            "../x",
        ] {
            let refused = git_url(bad).unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
