//! Names that people choose: DNS-1123 labels of at most 30 characters without `--`.
//!
//! The default host of a component joins names with `-`, hence the length and the ban of `--` (RFC 1123 §2.1,
//! RFC 5891 §4.2.3.1 for the reserved `--`).

use serde::{Deserialize, Serialize};

/// Most characters of a name.
pub const NAME_MAX: usize = 30;

/// Why a text is not a name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not a valid {what} name: {why}")]
pub struct NameError {
    what: &'static str,
    text: String,
    why: &'static str,
}

/// Checks the rule that all names share; `what` says whose name it is.
fn check(what: &'static str, text: &str) -> Result<(), NameError> {
    let fail = |why| Err(NameError { what, text: text.chars().take(60).collect(), why });
    let alphanumeric = |byte: Option<u8>| byte.is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
    if text.is_empty() {
        fail("it is empty")
    } else if text.len() > NAME_MAX {
        fail("it has more than 30 characters")
    } else if !text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-') {
        fail("only a-z, 0-9 and - are allowed")
    } else if !alphanumeric(text.bytes().next()) || !alphanumeric(text.bytes().last()) {
        fail("it must begin and end with a letter or digit")
    } else if text.contains("--") {
        fail("`--` is reserved")
    } else {
        Ok(())
    }
}

/// The name nearest to `text` (of a folder or a repository), if any character of it can stay.
pub fn nearest(text: &str) -> Option<String> {
    let mut name = String::new();
    for character in text.chars().map(|it| it.to_ascii_lowercase()) {
        if character.is_ascii_alphanumeric() {
            name.push(character);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
        if name.len() == NAME_MAX {
            break;
        }
    }
    let name = name.trim_matches('-').to_owned();
    (!name.is_empty()).then_some(name)
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident $what:literal)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str { &self.0 }
            /// Parses a name.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> { Self::try_from(text.into()) }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> { check($what, &text)?; Ok(Self(text)) }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> { Self::try_from(text.to_owned()) }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String { name.0 }
        }
    )*};
}

names! {
    /// Isolation and quota boundary.
    TenantName "tenant"
    /// A named group of components.
    ApplicationName "application"
    /// One deployable unit.
    ComponentName "component"
    /// A volume of a component.
    VolumeName "volume"
}

impl TenantName {
    /// The tenant that is there from the start, and that commands without `--tenant` mean.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_of_at_most_30_characters() {
        for good in ["a", "web", "web-2", "0a", &"a".repeat(30)] {
            assert!(ComponentName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a--b", "a.b", "ü", &"a".repeat(31), "a/../b", "a b"] {
            assert!(ComponentName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_name_keeps_what_it_can() {
        for (text, name) in [("My App_2", Some("my-app-2")), ("..", None), ("a--b", Some("a-b")), ("-x-", Some("x"))] {
            assert_eq!(nearest(text).as_deref(), name);
        }
    }
}
