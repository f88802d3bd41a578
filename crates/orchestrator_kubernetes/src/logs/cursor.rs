//! How far the output of a program is read, by the runtime's own timestamps. Pure.
//!
//! What must hold: however often it is read again, from the line on that was read last or from an earlier one, each piece of a
//! line comes once; a line that a connection broke off comes whole, from the next one.

use crate::lines::{End, Piece};
use arco_model::time::Timestamp;
use k8s_openapi::jiff;
use std::cmp::Ordering;

/// A line, or a part of a long one.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    pub(crate) text: String,
}

/// How far it is read.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// When the newest line was written; `None`: nothing is read.
    last: Option<jiff::Timestamp>,
    /// How many pieces that were written then are read.
    read: usize,
    /// How many of them this connection has brought.
    met: usize,
    /// Whether this connection has brought something new: then all that follows is, also with an older time, as when the two
    /// outputs of a program are written at once, or a clock is set back.
    passed: bool,
    /// When the line was written that this connection is at.
    current: Option<jiff::Timestamp>,
    /// Whether more of that line comes.
    goes_on: bool,
    /// What this connection ended with, without a line end.
    rest: Option<Line>,
}

impl Cursor {
    /// Behind everything that was written until then.
    pub(crate) fn after(last: jiff::Timestamp) -> Self {
        Self { last: Some(last), read: usize::MAX, ..Self::default() }
    }

    /// When the newest line was written, if one is read.
    pub(crate) fn last(&self) -> Option<jiff::Timestamp> {
        self.last
    }

    /// From when on the API server is asked. It counts whole seconds, and would round up: lines up to the cursor come again.
    pub(super) fn since(&self) -> Option<jiff::Timestamp> {
        self.last.map(|it| jiff::Timestamp::from_second(it.as_second()).unwrap_or(it))
    }

    /// Another connection begins.
    pub(super) fn connect(&mut self) {
        (self.met, self.passed) = (0, false);
        (self.current, self.goes_on, self.rest) = (None, false, None);
    }

    /// What the last connection ended with, when nothing more can come.
    pub(super) fn rest(&mut self) -> Option<Line> {
        self.rest.take()
    }

    /// What of a piece is new. A line is time, space, text; what has no time is not of the program: the node says that it
    /// cannot read on.
    pub(super) fn take(&mut self, piece: Piece) -> Option<Line> {
        let Piece { mut text, end } = piece;
        let continues = std::mem::replace(&mut self.goes_on, end == End::Part);
        if !continues {
            self.current = None;
            let length = text.find(' ')?;
            self.current = Some(text[..length].parse().ok()?);
            text.drain(..=length);
        } else if text.is_empty() {
            return None; // only the end of a line that was as long as a piece
        }
        let at = self.current?;
        let line = Line { at: Timestamp(u64::try_from(at.as_millisecond()).unwrap_or_default()), text };
        let order = self.last.map_or(Ordering::Greater, |it| at.cmp(&it));
        let is_new = match order {
            Ordering::Less => self.passed,
            Ordering::Equal => self.passed || self.met >= self.read,
            Ordering::Greater => true,
        };
        if end == End::Reader {
            self.rest = is_new.then_some(line);
            return None;
        }
        match order {
            Ordering::Less => {}
            Ordering::Equal => {
                self.met += 1;
                self.read = self.read.max(self.met);
            }
            Ordering::Greater => (self.last, self.read, self.met) = (Some(at), 1, 1),
        }
        self.passed |= is_new;
        is_new.then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines;
    use futures_util::{FutureExt as _, StreamExt as _};

    /// What is taken of a connection that brings these bytes and ends.
    fn taken(cursor: &mut Cursor, bytes: &[u8]) -> Vec<(u64, String)> {
        cursor.connect();
        let pieces: Vec<Piece> = lines::of(bytes).map(Result::unwrap).collect().now_or_never().unwrap();
        pieces.into_iter().filter_map(|it| cursor.take(it)).map(|it| (it.at.0 - 1_767_225_600_000, it.text)).collect()
    }

    #[test]
    fn every_part_of_a_new_line_is_taken() {
        // The second piece of the long line looks like a line of its own.
        let time = "2026-01-01T00:00:03.250999Z";
        let long = format!("{}2026-01-01T00:00:09Z not a line", "x".repeat((16 << 10) - time.len() - 1));
        let text = [
            "unable to retrieve container logs",
            "2026-01-01T00:00:01.5Z known",
            "2026-01-01T00:00:02Z known",
            &format!("{time} {long}"),
            &format!("{time} at the same time"),
            "failed to watch",
            "2026-01-01T00:00:04Z ",
            "",
        ];
        let text = text.join("\n");
        let mut cursor = Cursor::after("2026-01-01T00:00:02Z".parse().unwrap());
        let found = taken(&mut cursor, text.as_bytes());
        let times: Vec<u64> = found.iter().map(|it| it.0).collect();
        assert_eq!(times, [3250, 3250, 3250, 4000]);
        assert_eq!(format!("{}{}", found[0].1, found[1].1), long);
        assert_eq!((found[2].1.as_str(), found[3].1.as_str()), ("at the same time", ""));
        assert!(taken(&mut cursor, text.as_bytes()).is_empty());
    }

    #[test]
    fn a_cut_anywhere_loses_and_doubles_nothing() {
        let long = "y".repeat(40_000);
        let whole = [
            "2026-01-01T00:00:01.1Z one",
            "2026-01-01T00:00:01.2Z ",
            "2026-01-01T00:00:01.2Z same time",
            &format!("2026-01-01T00:00:02Z {long}"),
            "2026-01-01T00:00:02.000000001Z three",
            "",
        ];
        let whole = whole.join("\n");
        let whole = whole.as_bytes();
        let wanted = taken(&mut Cursor::default(), whole);
        assert_eq!(wanted.len(), 7);
        // Each byte of the short lines, and some of the long one.
        let cuts = (0..whole.len()).filter(|it| it % 997 == 0 || *it < 120 || *it + 60 > whole.len());
        for cut in cuts {
            let mut cursor = Cursor::default();
            let mut found = taken(&mut cursor, &whole[..cut]);
            // Once more into the same line, then all of it.
            found.extend(taken(&mut cursor, &whole[..cut.saturating_sub(1)]));
            found.extend(taken(&mut cursor, whole));
            assert_eq!(found, wanted, "cut after {cut} bytes");
            assert_eq!(cursor.rest(), None);
        }
    }

    #[test]
    fn a_line_with_an_older_time_than_the_one_before_it_is_not_lost() {
        let whole = b"2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:01.4Z two\n2026-01-01T00:00:01.6Z three\n";
        let mut cursor = Cursor::default();
        let texts = |found: Vec<(u64, String)>| found.into_iter().map(|it| it.1).collect::<Vec<_>>();
        assert_eq!(texts(taken(&mut cursor, &whole[..54])), ["one", "two"]);
        assert_eq!(texts(taken(&mut cursor, whole)), ["three"]);
        assert!(taken(&mut cursor, whole).is_empty());
    }

    #[test]
    fn what_has_no_line_end_comes_when_nothing_more_can() {
        let mut cursor = Cursor::default();
        let whole = b"2026-01-01T00:00:01Z one\n2026-01-01T00:00:02Z last wor";
        assert_eq!(taken(&mut cursor, whole).len(), 1);
        assert_eq!(cursor.rest().map(|it| it.text), Some("last wor".to_owned()));
        assert_eq!(taken(&mut cursor, b"2026-01-01T00:00:02Z last words\n"), [(2000, "last words".to_owned())]);
        assert_eq!(cursor.rest(), None);
    }

    #[test]
    fn the_api_server_is_asked_from_a_whole_second_on() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        assert_eq!(Cursor::default().since(), None);
        let cursor = Cursor::after(at("2026-01-01T00:00:01.999Z"));
        assert_eq!(cursor.since(), Some(at("2026-01-01T00:00:01Z")));
    }
}
