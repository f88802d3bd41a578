//! Time and fresh ids. The only place that reads the wall clock.

use arco_model::time::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// Now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_millis() as u64)
}

/// 64 random bits.
pub fn random() -> u64 {
    let mut bytes = [0u8; 8];
    // The system's generator does not fail on Linux once the machine has booted; zeroes would only repeat an id,
    // which every unique key refuses.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Types that can be made fresh: `clock::fresh::<InstanceId>()`.
pub trait FreshId {
    /// From a time and randomness.
    fn from_parts(millis: u64, random: u64) -> Self;
}

macro_rules! fresh {
    ($($name:ident)*) => {$(
        impl FreshId for arco_model::id::$name {
            fn from_parts(millis: u64, random: u64) -> Self { arco_model::id::$name::from_parts(millis, random) }
        }
    )*};
}

fresh! { ComponentId RevisionId OperationId InstanceId JobId ApplicationId RowId }

/// A new id.
pub fn fresh<T: FreshId>() -> T {
    T::from_parts(now().0, random())
}
