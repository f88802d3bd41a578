//! Typed ids: 20 characters of lower-case Crockford base 32, sortable by time of making.
//!
//! An id is `48 bits of milliseconds ‖ 52 bits of randomness`. Making one needs a clock and randomness, so it happens
//! in `store::clock`; here they are only named, parsed and printed.

use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Number of characters of an id.
pub const ID_LENGTH: usize = 20;

/// The text of an id from its two parts; only the low 48 and 52 bits count.
pub fn encode(millis: u64, random: u64) -> String {
    let mut bits = (u128::from(millis & 0xffff_ffff_ffff) << 52) | u128::from(random & 0xf_ffff_ffff_ffff);
    let mut out = [0u8; ID_LENGTH];
    for slot in out.iter_mut().rev() {
        *slot = ALPHABET[(bits & 31) as usize];
        bits >>= 5;
    }
    out.iter().map(|byte| *byte as char).collect()
}

/// Whether `text` has the form of an id.
pub fn is_valid(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

/// A text that is not an id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an id (20 characters of 0-9 a-z without i, l, o, u)")]
pub struct IdError(pub String);

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str { &self.0 }
            /// The id made of a time and randomness.
            pub fn from_parts(millis: u64, random: u64) -> Self { Self(encode(millis, random)) }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                if is_valid(&text) { Ok(Self(text)) } else { Err(IdError(text)) }
            }
        }
        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> { Self::try_from(text.to_owned()) }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String { id.0 }
        }
    )*};
}

ids! {
    /// A component.
    ComponentId
    /// An immutable snapshot of a component: artifact and spec.
    RevisionId
    /// A user's asynchronous action.
    OperationId
    /// One running copy of a component, or a one-shot workload.
    InstanceId
    /// A message in `mq`.
    JobId
    /// An application.
    ApplicationId
    /// Any other row (routes, volumes, secrets).
    RowId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_come_back() {
        let (early, late) = (encode(1_000, u64::MAX), encode(1_001, 0));
        assert!(early < late);
        assert!(is_valid(&early) && !is_valid("short") && !is_valid("iiiiiiiiiiiiiiiiiiii"));
        assert_eq!(early.parse::<InstanceId>().unwrap().as_str(), early);
    }
}
