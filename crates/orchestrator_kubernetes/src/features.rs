//! What of Kubernetes depends on its version. Pure.
//!
//! What must hold: what was not stable in the oldest version is sent only to a cluster that knows it, from the version on in
//! which it is switched on by default; a cluster drops a field of a feature that is switched off without a word, so to send
//! and see is no way to find out. What was stable then is used without being asked for here.

/// Oldest and newest minor version of Kubernetes 1 that we know; only the newest is tested.
pub(crate) const OLDEST: u32 = 28;
pub(crate) const NEWEST: u32 = 36;

/// From which version on pods have user namespaces without a feature gate (`hostUsers`).
pub(crate) const USER_NAMESPACES: u32 = 33;
/// From which version on a job counts the failures of each of its places (`backoffLimitPerIndex`).
pub(crate) const PLACES_OF_JOBS: u32 = 29;
/// From which version on a node can wait before it ends a program (`lifecycle.preStop.sleep`).
pub(crate) const PAUSES: u32 = 30;

/// What a cluster has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Features {
    /// See [`USER_NAMESPACES`].
    pub(crate) user_namespaces: bool,
    /// See [`PLACES_OF_JOBS`].
    pub(crate) places_of_jobs: bool,
    /// See [`PAUSES`].
    pub(crate) pauses: bool,
}

impl Features {
    /// By what the API server says of itself; a version that cannot be read counts as a new one.
    pub(crate) fn of(major: &str, minor: &str) -> Self {
        let has = |since: u32| minor_version(major, minor).is_none_or(|it| it >= since);
        Self { user_namespaces: has(USER_NAMESPACES), places_of_jobs: has(PLACES_OF_JOBS), pauses: has(PAUSES) }
    }
}

/// The minor version of Kubernetes 1; `None` for anything else. Providers write `28+`.
pub(crate) fn minor_version(major: &str, minor: &str) -> Option<u32> {
    let number = |it: &str| it.trim_end_matches(|it: char| !it.is_ascii_digit()).parse::<u32>().ok();
    number(minor).filter(|_| number(major) == Some(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_has() {
        for (major, minor, user_namespaces, places_of_jobs, pauses) in [
            ("1", "28", false, false, false),
            ("1", "28+", false, false, false),
            ("1", "29", false, true, false),
            ("1", "30", false, true, true),
            ("1", "32+", false, true, true),
            ("1", "33", true, true, true),
            ("1", "36", true, true, true),
            ("2", "0", true, true, true),
            ("", "", true, true, true),
        ] {
            let wanted = Features { user_namespaces, places_of_jobs, pauses };
            assert_eq!(Features::of(major, minor), wanted, "{major}.{minor}");
        }
    }
}
