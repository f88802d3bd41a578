//! Which major version of Node.js a range such as `^20.11 || >=22` asks for.

/// Versions that we offer, the preferred first.
const OFFERED: [u32; 7] = [22, 24, 20, 26, 18, 16, 14];

/// The preferred version.
pub(super) const DEFAULT: u32 = OFFERED[0];

/// The preferred major version that a range allows; `None` when none of ours does.
pub(super) fn choose(range: &str) -> Option<u32> {
    let range = range.trim();
    if range.is_empty() || matches!(range, "*" | "x" | "latest" | "lts/*" | "node" | "current" | "stable") {
        return Some(DEFAULT);
    }
    OFFERED.into_iter().find(|major| range.split("||").any(|set| allows(set, *major)))
}

/// Whether the newest release of `major` is inside a set of comparators that must all hold.
fn allows(set: &str, major: u32) -> bool {
    if let Some((low, high)) = set.split_once(" - ") {
        return at_least(low, major) && at_most(high, major, true);
    }
    // `>= 18` is written as two words
    let joined = ["<=", ">=", "<", ">", "^", "~", "="]
        .into_iter()
        .fold(set.to_owned(), |it, op| it.replace(&format!("{op} "), op));
    let mut words = joined.split([' ', ',']).filter(|it| !it.is_empty()).peekable();
    words.peek().is_some() && words.all(|word| comparator(word, major))
}

fn comparator(word: &str, major: u32) -> bool {
    if let Some(version) = word.strip_prefix(">=") {
        at_least(version, major)
    } else if let Some(version) = word.strip_prefix("<=") {
        at_most(version, major, true)
    } else if let Some(version) = word.strip_prefix('>') {
        // `>18` means 19 and later, `>18.2` any later one
        parts(version).is_some_and(|it| if it.1.is_none() { major > it.0 } else { major >= it.0 })
    } else if let Some(version) = word.strip_prefix('<') {
        at_most(version, major, false)
    } else {
        let version = word.trim_start_matches(['^', '~', '=', 'v']);
        matches!(version, "*" | "x") || parts(version).is_some_and(|it| it.0 == major)
    }
}

fn at_least(version: &str, major: u32) -> bool {
    parts(version).is_some_and(|it| major >= it.0)
}

fn at_most(version: &str, major: u32, inclusive: bool) -> bool {
    let Some((top, rest)) = parts(version) else { return false };
    let beyond_zero = rest.is_some_and(|it| it.bytes().any(|it| (b'1'..=b'9').contains(&it)));
    major < top || (major == top && (inclusive || beyond_zero))
}

/// Major version, and what follows it.
fn parts(version: &str) -> Option<(u32, Option<&str>)> {
    let version = version.trim().trim_start_matches('v');
    let (major, rest) = match version.split_once('.') {
        Some((major, rest)) => (major, Some(rest)),
        None => (version, None),
    };
    Some((major.parse().ok()?, rest.filter(|it| !it.starts_with(['x', '*']))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_choose_a_major_version() {
        for (range, major) in [
            ("", Some(22)),
            (">=18", Some(22)),
            (">= 18.0.0", Some(22)),
            ("20.x", Some(20)),
            ("^20.11.0 || >=24", Some(24)),
            (">=18 <21", Some(20)),
            ("<20.0.0", Some(18)),
            ("18", Some(18)),
            ("v20.1.0", Some(20)),
            ("~24.1", Some(24)),
            ("16 - 18", Some(18)),
            (">22", Some(24)),
            ("4.x", None),
            ("nonsense", None),
        ] {
            assert_eq!(choose(range), major, "{range}");
        }
    }
}
