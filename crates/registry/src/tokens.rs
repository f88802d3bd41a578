//! Tokens: what a bearer may do with which repositories, signed with a key of this registry (HMAC-SHA-256).
//!
//! A *credential* is issued for a person or a machine and lives as long as was asked; at `/token` it is exchanged for an
//! *access token* of a few minutes with at most the same rights. Both are signed alike; a credential also works as bearer.

use crate::RegistryError;
use arco_model::name::TenantName;
use arco_store::clock;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// Whom tokens are for; also the `service` of the challenge.
pub(crate) const SERVICE: &str = "arco-registry";
/// Life of an access token.
pub(crate) const ACCESS_LIFE: Duration = Duration::from_secs(600);

/// What may be done with a repository.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read.
    Pull,
    /// Write.
    Push,
    /// Delete manifests, tags and blobs.
    Delete,
}

impl Action {
    /// The word of scopes.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// Actions on repositories.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// A repository, where `*` stands for one word (`default/shop/*`), or `*` alone for all.
    repository: String,
    actions: BTreeSet<Action>,
}

/// All that a token allows.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scope(Vec<Grant>);

impl Scope {
    /// Actions on one repository, `<tenant>/<application>/<component>`.
    pub fn repository(name: &str, actions: &[Action]) -> Self {
        Self(vec![Grant { repository: name.to_owned(), actions: actions.iter().copied().collect() }])
    }

    /// Actions on every component of a tenant.
    pub fn tenant(tenant: &TenantName, actions: &[Action]) -> Self {
        Self::repository(&format!("{tenant}/*/*"), actions)
    }

    /// Actions on every repository, base stacks included.
    pub fn everything(actions: &[Action]) -> Self {
        Self::repository("*", actions)
    }

    /// Both.
    pub fn and(mut self, other: Scope) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether it allows `action` on a repository.
    pub fn allows(&self, repository: &str, action: Action) -> bool {
        self.0.iter().any(|it| it.actions.contains(&action) && matches(&it.repository, repository))
    }

    /// What of the asked scopes (`repository:NAME:pull,push`, several parted by spaces) it allows.
    pub(crate) fn narrowed<'a>(&self, asked: impl Iterator<Item = &'a str>) -> Scope {
        let mut narrowed = Scope::default();
        for asked in asked.flat_map(str::split_whitespace) {
            let Some((name, actions)) = asked.strip_prefix("repository:").and_then(|it| it.rsplit_once(':')) else {
                continue;
            };
            if !crate::route::is_name(name) {
                continue;
            }
            let asked: BTreeSet<&str> = actions.split(',').collect();
            let wanted = |it: &Action| asked.contains("*") || asked.contains(it.as_str());
            let all = [Action::Pull, Action::Push, Action::Delete];
            let actions: BTreeSet<Action> = all.into_iter().filter(|it| wanted(it) && self.allows(name, *it)).collect();
            if !actions.is_empty() {
                narrowed.0.push(Grant { repository: name.to_owned(), actions });
            }
        }
        narrowed
    }
}

fn matches(pattern: &str, repository: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let (mut pattern, mut words) = (pattern.split('/'), repository.split('/'));
    loop {
        match (pattern.next(), words.next()) {
            (None, None) => return true,
            (Some(want), Some(word)) if want == "*" || want == word => {}
            _ => return false,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    exp: u64,
    iat: u64,
    scope: Scope,
}

/// Issues and checks tokens.
pub struct Tokens {
    sign: EncodingKey,
    check: DecodingKey,
}

impl Tokens {
    /// Reads the key file (64 hex digits), or makes it with mode 0600.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_key(path)?,
            other => other.map_err(|it| RegistryError::io("read the token key", path, it))?,
        };
        let key = decode_hex(text.trim()).ok_or_else(|| RegistryError::Key(path.to_owned()))?;
        Ok(Self { sign: EncodingKey::from_secret(&key), check: DecodingKey::from_secret(&key) })
    }

    /// A token for `scope` that is good for `life`.
    pub fn issue(&self, scope: &Scope, life: Duration) -> String {
        let now = clock::now().0 / 1000;
        let claims =
            Claims { aud: SERVICE.to_owned(), iat: now, exp: now.saturating_add(life.as_secs()), scope: scope.clone() };
        // Plain fields and a key of the right family always sign; an empty token is good for nothing.
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign).unwrap_or_default()
    }

    /// What a token allows; `None` when it is not ours or its time is over.
    pub fn check(&self, token: &str) -> Option<Scope> {
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_audience(&[SERVICE]);
        rules.set_required_spec_claims(&["exp", "aud"]);
        rules.leeway = 0;
        jsonwebtoken::decode::<Claims>(token, &self.check, &rules).ok().map(|it| it.claims.scope)
    }
}

fn make_key(path: &Path) -> Result<String, RegistryError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let fail = |it| RegistryError::io("make the token key", path, it);
    let mut key = [0u8; 32];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| fail(std::io::Error::other("no randomness")))?;
    let text: String = key.iter().map(|it| format!("{it:02x}")).collect();
    let partial = path.with_extension("partial");
    let _ = std::fs::remove_file(&partial); // of a start that was interrupted
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&partial).map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&partial, path).map_err(fail)?;
    Ok(text)
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut key = [0; 32];
    for (slot, place) in key.iter_mut().zip((0..64).step_by(2)) {
        *slot = u8::from_str_radix(&text[place..place + 2], 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::*;

    #[test]
    fn scopes_allow_what_they_name_and_no_more() {
        let tenant = TenantName::new("stack").unwrap();
        for (scope, repository, action, allowed) in [
            (Scope::repository("a/b/c", &[Pull]), "a/b/c", Pull, true),
            (Scope::repository("a/b/c", &[Pull]), "a/b/c", Push, false),
            (Scope::repository("a/b/c", &[Pull]), "a/b/cc", Pull, false),
            (Scope::repository("a/b/c", &[Pull]), "a/b", Pull, false),
            (Scope::repository("a/b/*", &[Pull]), "a/b/c/d", Pull, false),
            (Scope::tenant(&tenant, &[Pull]), "stack/x/y", Pull, true),
            (Scope::tenant(&tenant, &[Pull]), "stack/base", Pull, false),
            (Scope::everything(&[Pull]), "stack/base", Pull, true),
            (Scope::everything(&[Pull]), "stack/base", Delete, false),
            (Scope::default(), "a", Pull, false),
        ] {
            assert_eq!(scope.allows(repository, action), allowed, "{scope:?} {repository} {action:?}");
        }
    }

    #[test]
    fn an_exchange_never_widens() {
        let scope = Scope::tenant(&TenantName::new("a").unwrap(), &[Pull, Push]);
        let narrowed = scope.narrowed(
            ["repository:a/b/c:pull,push,delete repository:b/b/c:pull", "registry:catalog:*", "x", "repository:*:pull"]
                .into_iter(),
        );
        assert_eq!(narrowed, Scope::repository("a/b/c", &[Pull, Push]));
    }

    #[test]
    fn tokens_are_ours_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (folder.path().join("a"), folder.path().join("b"));
        let (tokens, other) = (Tokens::open(&ours).unwrap(), Tokens::open(&theirs).unwrap());
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(ours.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let scope = Scope::everything(&[Pull]);
        let token = tokens.issue(&scope, Duration::from_secs(3600));
        assert_eq!(Tokens::open(&ours).unwrap().check(&token), Some(scope.clone()));
        assert_eq!(other.check(&token), None);
        assert_eq!(tokens.check("x.y.z"), None);
        assert_eq!(tokens.check(""), None);
        let none = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &serde_json::json!({ "aud": SERVICE, "scope": scope }),
            &tokens.sign,
        )
        .unwrap();
        assert_eq!(tokens.check(&none), None, "a token without an end");
        let over = Claims { aud: SERVICE.to_owned(), exp: clock::now().0 / 1000 - 5, iat: 0, scope };
        let over = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &over, &tokens.sign).unwrap();
        assert_eq!(tokens.check(&over), None, "a token whose time is over");
        std::fs::write(&ours, "nonsense").unwrap();
        assert!(matches!(Tokens::open(&ours), Err(RegistryError::Key(_))));
    }
}
