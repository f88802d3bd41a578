//! Pages of a log that several servers keep: one keeper after the other. Pure.
//!
//! Numbers of lines are each keeper's own, so a place in such a log names its keeper as well, in the upper bits of `from`
//! and `next`. What must hold: every line comes once as long as the keepers stay; when one went away between two pages, the
//! others are read on; a place is a number that JSON carries everywhere (2^53).

use axum::http::Uri;
use std::collections::BTreeMap;

/// Bits for the number of a line at its keeper.
const NUMBER_BITS: u32 = 40;
/// Bits for the keeper.
const KEEPER_BITS: u32 = 12;

/// Where a page begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// 0: the first one.
    keeper: u64,
    number: u64,
}

/// What one page is asked of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Asked<'n> {
    /// Name of the keeper.
    pub(super) name: &'n str,
    /// `from` as it counts.
    pub(super) from: u64,
    keeper: u64,
    following: Option<u64>,
}

/// Keepers by what places call them: a number that stays with a name, whoever else comes and goes.
pub(super) fn keepers<'n>(names: impl IntoIterator<Item = &'n str>) -> BTreeMap<u64, &'n str> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    let (mut found, most) = (BTreeMap::new(), (1 << KEEPER_BITS) - 1);
    for name in names.into_iter().take(most as usize) {
        let mut number = short(name) % most + 1;
        while found.contains_key(&number) {
            number = number % most + 1;
        }
        found.insert(number, name);
    }
    found
}

/// FNV-1a.
fn short(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, it| (hash ^ u64::from(it)).wrapping_mul(0x0100_0000_01b3))
}

impl Place {
    /// Where a query goes on with pages, if it does.
    pub(super) fn of(query: &str) -> Option<Self> {
        let place = Self::read(query);
        (place.keeper > 0).then_some(place)
    }

    /// Where pages begin for a query that asked all keepers.
    pub(super) fn first(query: &str) -> Self {
        Self { keeper: 0, ..Self::read(query) }
    }

    fn read(query: &str) -> Self {
        let from: u64 = query.split('&').find_map(|it| it.strip_prefix("from=")?.parse().ok()).unwrap_or(0);
        Self { keeper: from >> NUMBER_BITS, number: from & ((1 << NUMBER_BITS) - 1) }
    }

    /// Whom to ask: the keeper of this place, or the one after it when that is gone; `None` after the last.
    pub(super) fn find<'n>(&self, keepers: &BTreeMap<u64, &'n str>) -> Option<Asked<'n>> {
        let mut rest = keepers.range(self.keeper..);
        let (keeper, name) = rest.next().map(|it| (*it.0, *it.1))?;
        let from = if self.keeper == 0 || self.keeper == keeper { self.number } else { 0 };
        Some(Asked { name, from, keeper, following: rest.next().map(|it| *it.0) })
    }
}

impl Asked<'_> {
    /// `more` and `next` for whoever asks, from what the keeper said.
    pub(super) fn onward(&self, more: bool, next: u64) -> (bool, u64) {
        match self.following {
            Some(following) if !more => (true, following << NUMBER_BITS),
            _ => (more, (self.keeper << NUMBER_BITS) | next),
        }
    }

    /// The address of a query for this page.
    pub(super) fn address(&self, uri: &Uri) -> String {
        let query = uri.query().unwrap_or_default();
        let rest = query.split('&').filter(|it| !it.is_empty() && !it.starts_with("from="));
        let words: Vec<String> = rest.map(str::to_owned).chain([format!("from={}", self.from)]).collect();
        format!("{}?{}", uri.path(), words.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads page by page, `most` lines each, as a client does; `gone` is not there any more after the first page.
    fn read(logs: &[(&str, Vec<u32>)], most: usize, gone: Option<&str>) -> Vec<u32> {
        let (mut lines, mut query, mut last) = (Vec::new(), format!("limit={most}"), None);
        loop {
            let there = logs.iter().map(|it| it.0).filter(|it| last.is_none() || Some(*it) != gone);
            let keepers = keepers(there);
            let place = if last.is_none() { Place::first(&query) } else { Place::of(&query).unwrap() };
            let Some(asked) = place.find(&keepers) else { return lines };
            let own = &logs.iter().find(|it| it.0 == asked.name).unwrap().1;
            let page: Vec<u32> = own.iter().copied().skip(asked.from as usize).take(most).collect();
            let end = asked.from + page.len() as u64;
            lines.extend(page);
            let (more, next) = asked.onward(end < own.len() as u64, end);
            assert!(last.is_none_or(|it| next > it) && next < 1 << 53, "each page brings us further: {next}");
            if !more {
                return lines;
            }
            last = Some(next);
            query = format!("limit={most}&from={next}");
        }
    }

    #[test]
    fn every_line_of_every_keeper_comes_once() {
        let logs = [("a", (0..25).collect()), ("b", (100..107).collect()), ("c", vec![]), ("d", (200..230).collect())];
        let mut all: Vec<u32> = logs.iter().flat_map(|it: &(&str, Vec<u32>)| it.1.clone()).collect();
        for most in [1, 7, 10, 100] {
            let mut found = read(&logs, most, None);
            found.sort_unstable();
            assert_eq!(found, all, "{most} a page");
        }
        // One that is gone takes no line of the others along.
        all.retain(|it| *it < 200);
        let mut found = read(&logs, 10, Some("d"));
        found.sort_unstable();
        found.retain(|it| *it < 200);
        assert_eq!(found, all);
    }

    #[test]
    fn a_keeper_keeps_its_number_and_no_two_have_one() {
        let names: Vec<String> = (0..1000).map(|it| format!("server-{it}")).collect();
        let found = keepers(names.iter().map(String::as_str));
        assert_eq!(found.len(), names.len());
        assert!(found.keys().all(|it| (1..1 << KEEPER_BITS).contains(it)));
        let few = keepers(["a", "b", "c"]);
        let fewer = keepers(["c", "a"]);
        assert!(fewer.iter().all(|it| few.get(it.0) == Some(it.1)), "{few:?} {fewer:?}");
    }

    #[test]
    fn only_from_changes_in_the_address() {
        let keepers = keepers(["a"]);
        let asked = Place::first("from=7").find(&keepers).unwrap();
        for (uri, address) in [
            ("/streams/component/x", "/streams/component/x?from=7"),
            ("/s?grep=a%26b&from=3&limit=10", "/s?grep=a%26b&limit=10&from=7"),
        ] {
            assert_eq!(asked.address(&uri.parse().unwrap()), address);
        }
        assert_eq!((Place::of(""), Place::of("from=12")), (None, None), "numbers of a keeper alone are no places");
    }
}
