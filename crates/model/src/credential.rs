//! Credentials for private Git repositories: where one holds, and which of several is taken.
//!
//! A credential belongs to a tenant, or to one application of it, and to a *scope*: transport, host, port and the
//! beginning of a path. What must hold: it is only ever used for URLs of its scope, so that a link or a redirect to
//! another host never carries it. Values are sealed; nothing here opens them.

use crate::error::Problem;
use crate::id::RowId;
use crate::name::{ApplicationName, TenantName};
use crate::source::git_url;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// What a credential is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A password or access token, sent over https.
    Token,
    /// A private key for ssh.
    SshKey,
}

/// A credential of a tenant.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct GitCredential {
    /// Id.
    pub id: RowId,
    /// Tenant.
    pub tenant: TenantName,
    /// The only application that may use it; `None`: each of the tenant.
    pub application: Option<ApplicationName>,
    /// Where it holds: [`Scope`] as text.
    pub scope: String,
    /// What it is.
    pub kind: CredentialKind,
    /// User name; for ssh only where the URL has none.
    pub user: String,
    /// Keys that the ssh host may show (`type base64`); empty: the first one seen is kept.
    #[serde(default)]
    pub host_keys: Vec<String>,
    /// Which key sealed it.
    pub key_id: String,
    /// Nonce and ciphertext.
    pub sealed: String,
    /// When it was set.
    pub created_at: Timestamp,
}

impl GitCredential {
    /// What the value is sealed for: it opens only for this scope of this tenant.
    pub fn context(&self) -> String {
        let application = self.application.as_ref().map_or("", ApplicationName::as_str);
        format!("git/{}/{application}/{}", self.tenant, self.scope)
    }
}

/// Transport, host, port and the beginning of a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Scope {
    /// `https`, `http`, `ssh` or `git`.
    pub scheme: String,
    /// Host, in lower case.
    pub host: String,
    /// Port, where it is not the usual one.
    pub port: Option<u16>,
    /// Path without slashes at its ends and without `.git`.
    pub path: String,
    /// User in front of the host.
    pub user: Option<String>,
}

impl Scope {
    /// From a Git URL, or the beginning of one.
    pub fn parse(url: &str) -> Result<Self, Problem> {
        let bad = |why: &str| {
            let shown: String = without_user(url).chars().take(200).collect();
            Problem::invalid(
                "git_url_refused",
                format!("`{shown}` is not a scope of repositories: {why}"),
                "give the beginning of their URLs: https://git.example.com/team or git@git.example.com:team",
            )
        };
        let (scheme, user, host, path) = match url.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, it)| (Some(user), it));
                (scheme, user, host, path)
            }
            None => {
                let (authority, path) = url.split_once(':').unwrap_or((url, ""));
                let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, it)| (Some(user), it));
                if user.is_none() && !url.contains(':') {
                    return Err(bad("it names no transport"));
                }
                ("ssh", user, host, path)
            }
        };
        git_url(&format!("{scheme}://{}/x", host)).map_err(|it| bad(&it.to_string()))?;
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| bad("its port is no number"))?)),
            None => (host, None),
        };
        let plain = |it: &str, more: &str| {
            !it.is_empty() && it.chars().all(|it| it.is_ascii_alphanumeric() || more.contains(it))
        };
        if !plain(host, ".-") || host.starts_with('-') {
            return Err(bad("its host has other characters than a-z, 0-9, `.` and `-`"));
        }
        if let Some(user) = user {
            user_name(user).map_err(|_| bad("its user part is not a plain name"))?;
        }
        let usual = match scheme {
            "https" => 443,
            "http" => 80,
            "ssh" => 22,
            _ => 9418,
        };
        let path = path.trim_matches('/');
        Ok(Self {
            scheme: scheme.to_owned(),
            host: host.to_ascii_lowercase(),
            port: port.filter(|it| *it != usual),
            path: path.strip_suffix(".git").unwrap_or(path).to_owned(),
            user: user.map(str::to_owned),
        })
    }

    /// Whether a credential of this scope may be used for `other`.
    pub fn covers(&self, other: &Self) -> bool {
        let below = other.path.strip_prefix(&self.path);
        (&self.scheme, &self.host, self.port) == (&other.scheme, &other.host, other.port)
            && (self.path.is_empty() || below.is_some_and(|it| it.is_empty() || it.starts_with('/')))
    }

    /// `host[:port]`, as URLs have it.
    pub fn authority(&self) -> String {
        self.port.map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }
}

impl std::fmt::Display for Scope {
    /// One text for one scope; the user does not belong to it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority())?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

/// A URL without what stands before its host.
pub fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
            let host = host.rsplit('@').next().unwrap_or(host);
            path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
        }
        None => url.rsplit_once('@').map_or(url, |it| it.1).to_owned(),
    }
}

/// The credential for a URL of an application: its own before the tenant's, the longer path before the shorter.
pub fn choose<'c>(
    credentials: impl IntoIterator<Item = &'c GitCredential>,
    application: &ApplicationName,
    url: &str,
) -> Option<&'c GitCredential> {
    let wanted = Scope::parse(url).ok()?;
    let fits = |it: &&GitCredential| {
        it.application.as_ref().is_none_or(|it| it == application)
            && Scope::parse(&it.scope).is_ok_and(|it| it.covers(&wanted))
    };
    credentials.into_iter().filter(fits).max_by_key(|it| (it.application.is_some(), it.scope.len()))
}

/// Checks a user name: it stands in a configuration of ssh.
pub fn user_name(user: &str) -> Result<(), Problem> {
    let plain = user.chars().all(|it| it.is_ascii_alphanumeric() || "._@+-".contains(it));
    if plain && !user.is_empty() && user.len() <= 100 && !user.starts_with('-') {
        return Ok(());
    }
    let message = "the user name of a credential has other characters than a-z, 0-9 and `._@+-`, or is too long";
    Err(Problem::invalid("credential_invalid", message, "give the name that the Git server knows"))
}

/// Checks a token.
pub fn token(value: &str) -> Result<(), Problem> {
    if !value.is_empty() && value.len() <= 16_384 && value.chars().all(|it| it.is_ascii_graphic()) {
        return Ok(());
    }
    let message = "a token is one word of printable ASCII of at most 16 KiB";
    Err(Problem::invalid("credential_invalid", message, "check the file: it must hold the token and nothing else"))
}

/// Checks that a text is a private key that can be used without anybody at a keyboard.
pub fn ssh_key(value: &str) -> Result<(), Problem> {
    let bad = |message: &str, advice: &str| Err(Problem::invalid("credential_invalid", message, advice));
    let lines: Vec<&str> = value.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    let whole = lines.first().is_some_and(|it| it.starts_with("-----BEGIN ") && it.ends_with("PRIVATE KEY-----"))
        && lines.last().is_some_and(|it| it.starts_with("-----END ") && it.ends_with("PRIVATE KEY-----"));
    if !whole || value.len() > 16_384 || value.contains('\0') {
        return bad(
            "this is not a private ssh key: it does not begin and end as one",
            "give the private half of a deploy key: `ssh-keygen -t ed25519 -N '' -f deploy_key` makes one",
        );
    }
    // `openssh-key-v1\0`, then the cipher's name: `none` where there is no passphrase (PROTOCOL.key of OpenSSH).
    let open = lines.get(1).is_some_and(|it| it.starts_with("b3BlbnNzaC1rZXktdjEAAAAABG5vbmU"));
    let sealed = if lines[0].contains("OPENSSH") { !open } else { value.contains("ENCRYPTED") };
    if sealed {
        return bad(
            "the ssh key is protected by a passphrase, and nobody is there to type it when a build fetches",
            "give a deploy key without one; it is encrypted here",
        );
    }
    Ok(())
}

/// Host keys of a `known_hosts` file or of `ssh-keyscan`, as `type base64`.
pub fn host_keys(text: &str) -> Result<Vec<String>, Problem> {
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim).filter(|it| !it.is_empty() && !it.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let known = |it: &str| it.starts_with("ssh-") || it.starts_with("ecdsa-") || it.starts_with("sk-");
        let base64 = |it: &str| it.len() >= 40 && it.chars().all(|it| it.is_ascii_alphanumeric() || "+/=".contains(it));
        let at = words.iter().position(|it| known(it)).filter(|at| words.get(at + 1).is_some_and(|it| base64(it)));
        let Some(at) = at else {
            let shown: String = line.chars().take(60).collect();
            return Err(Problem::invalid(
                "credential_invalid",
                format!("`{shown}` is not a host key"),
                "give lines as `ssh-keyscan HOST` prints them, checked against what the host's owner publishes",
            ));
        };
        keys.push(format!("{} {}", words[at], words[at + 1]));
    }
    keys.truncate(16);
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(application: Option<&str>, url: &str) -> GitCredential {
        GitCredential {
            id: "00000000000000000000".parse().unwrap(),
            tenant: TenantName::default_tenant(),
            application: application.map(|it| ApplicationName::new(it).unwrap()),
            scope: Scope::parse(url).unwrap().to_string(),
            kind: CredentialKind::Token,
            user: "git".to_owned(),
            host_keys: Vec::new(),
            key_id: String::new(),
            sealed: String::new(),
            created_at: Timestamp(0),
        }
    }

    #[test]
    fn places_have_one_form() {
        for (url, text) in [
            ("https://Git.Example.com/team/", "https://git.example.com/team"),
            ("https://git.example.com:443/team/a.git", "https://git.example.com/team/a"),
            ("https://git.example.com:8443", "https://git.example.com:8443"),
            ("git@git.example.com:team/a.git", "ssh://git.example.com/team/a"),
            ("git@git.example.com:", "ssh://git.example.com"),
            ("git@git.example.com", "ssh://git.example.com"),
            ("ssh://git@git.example.com:2222/team", "ssh://git.example.com:2222/team"),
        ] {
            assert_eq!(Scope::parse(url).unwrap().to_string(), text, "{url}");
        }
        for bad in [
            "",
            "team",
            "https://",
            "ftp://h/a",
            "https://a b/",
            "https://h:x/",
            "ssh://-oProxyCommand=x/",
            "git@-h:a",
            "https://h\n/a",
            "https://u:p@h/a",
        ] {
            assert!(Scope::parse(bad).is_err(), "{bad}");
        }
        assert!(!Scope::parse("https://u:hunter2@h/a").unwrap_err().message.contains("hunter2"));
    }

    #[test]
    fn the_nearest_credential_is_taken_and_no_other_host_gets_one() {
        let rows = [
            credential(None, "https://h/"),
            credential(None, "https://h/team"),
            credential(Some("shop"), "https://h/"),
            credential(None, "git@h:team"),
        ];
        let taken = |application: &str, url: &str| {
            let found = choose(&rows, &ApplicationName::new(application).unwrap(), url);
            found.map(|found| rows.iter().position(|it| std::ptr::eq(it, found)).unwrap())
        };
        for (application, url, expected) in [
            ("blog", "https://h/team/a.git", Some(1)),
            ("blog", "https://h/team", Some(1)),
            ("blog", "https://h/teams/a", Some(0)),
            ("shop", "https://h/team/a", Some(2)),
            ("blog", "git@h:team/a", Some(3)),
            ("blog", "ssh://git@h/team/a", Some(3)),
            ("blog", "git@h:other/a", None),
            ("blog", "http://h/team/a", None),
            ("blog", "https://h:444/team/a", None),
            ("blog", "https://h.evil/team/a", None),
            ("blog", "https://evil/h/team/a", None),
            ("blog", "https://h@evil/team", None),
        ] {
            assert_eq!(taken(application, url), expected, "{application} {url}");
        }
    }

    #[test]
    fn keys_with_a_passphrase_and_what_is_no_key_are_refused() {
        let key = |kind: &str, body: &str| {
            format!("-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----\n")
        };
        assert!(ssh_key(&key("OPENSSH ", "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ")).is_ok());
        assert!(ssh_key(&key("RSA ", "MIIE")).is_ok());
        for (bad, word) in [
            (key("OPENSSH ", "b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAG"), "passphrase"),
            (key("RSA ", "Proc-Type: 4,ENCRYPTED"), "passphrase"),
            ("ssh-ed25519 AAAA me".to_owned(), "not a private"),
            (String::new(), "not a private"),
        ] {
            assert!(ssh_key(&bad).unwrap_err().message.contains(word), "{bad}");
        }
    }

    #[test]
    fn host_keys_are_read_from_what_tools_print() {
        let base64 = "AAAAC3NzaC1lZDI1NTE5AAAAIGvYGsGxJmG4EIHV8TVuUP3KoZxhvFnT";
        let text = format!(
            "# host:22 SSH-2.0\nhost ssh-ed25519 {base64}\n[host]:2222,1.2.3.4 ssh-rsa {base64} x\nssh-ed25519 {base64}\n"
        );
        assert_eq!(
            host_keys(&text).unwrap(),
            [format!("ssh-ed25519 {base64}"), format!("ssh-rsa {base64}"), format!("ssh-ed25519 {base64}")]
        );
        assert!(host_keys("host key").is_err());
        assert_eq!(host_keys("").unwrap(), Vec::<String>::new());
    }
}
