//! A line of a container's log file, as runtimes behind Kubernetes write it: `TIME stdout|stderr P|F TEXT`. A program's line
//! that was too long for the runtime comes as parts (`P`) and a last one (`F`).
//!
//! What must hold: memory is bounded whatever a file says, and a record that is none is left out; times of lines do not go
//! back where records of two pipes crossed, because reading goes on after a time. Pure.

use crate::wire::Line;
use arco_model::log::LogOrigin;
use arco_model::time::{Timestamp, day_of_date};

/// Longest line, in bytes; a longer one comes in pieces, as elsewhere in the platform.
const LINE_MAX: usize = 16 << 10;
/// Longest text of a piece: bytes that are no text grow when they become one, and keepers would cut what is longer.
const TEXT_MAX: usize = 32 << 10;
/// Records of two pipes are written one after the other, but their times may have been taken in the other order.
const CROSSED_MS: u64 = 1000;

/// One record of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Record<'a> {
    at: Timestamp,
    origin: LogOrigin,
    /// Whether the program's line ends with it.
    ends: bool,
    text: &'a [u8],
}

/// Reads a record without its line feed.
pub(crate) fn record(line: &[u8]) -> Option<Record<'_>> {
    let mut words = line.splitn(4, |it| *it == b' ');
    let at = instant(std::str::from_utf8(words.next()?).ok()?)?;
    let origin = match words.next()? {
        b"stdout" => LogOrigin::Stdout,
        b"stderr" => LogOrigin::Stderr,
        _ => return None,
    };
    // Tags are divided by colons; the first one says whether the line ends.
    let ends = match words.next()?.split(|it| *it == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record { at, origin, ends, text: words.next().unwrap_or_default() })
}

/// Lines of a program from records, each pipe for itself.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    parts: [Vec<u8>; 2],
    last: Timestamp,
}

impl Joiner {
    /// Takes the next record; returns a line that it ends, or a piece of one that is too long. The time of a line is that
    /// of its last record, so that times have the order of lines.
    pub(crate) fn push(&mut self, record: Record<'_>) -> Option<Line> {
        let parts = &mut self.parts[usize::from(record.origin == LogOrigin::Stderr)];
        parts.extend_from_slice(record.text);
        if !record.ends && parts.len() < LINE_MAX {
            return None;
        }
        let text = std::mem::take(parts);
        // A piece of a long line may end with any byte.
        let text = if record.ends { text.strip_suffix(b"\r").unwrap_or(&text) } else { &text[..] };
        let mut text = String::from_utf8_lossy(text).into_owned();
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        // A greater step back is a clock that was set.
        let crossed = record.at < self.last && self.last.0 - record.at.0 < CROSSED_MS;
        if !crossed {
            self.last = record.at;
        }
        Some(Line { at: self.last, origin: record.origin, text })
    }
}

/// RFC 3339 with any fraction and offset.
fn instant(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once('T')?;
    let (clock, offset_min) = match time.strip_suffix('Z') {
        Some(clock) => (clock, 0),
        None => {
            let (clock, offset) = time.split_at_checked(time.rfind(['+', '-'])?)?;
            let (hours, minutes) = offset.get(1..)?.split_once(':')?;
            let minutes = number(hours)? * 60 + number(minutes)?;
            (clock, if offset.starts_with('-') { -minutes } else { minutes })
        }
    };
    let mut fields = date.splitn(3, '-').map(number);
    let (year, month, day) = (fields.next()??, fields.next()??, fields.next()??);
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut fields = whole.splitn(3, ':').map(number);
    let (hour, minute, second) = (fields.next()??, fields.next()??, fields.next()??);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let digits = fraction.bytes().chain(*b"000").take(3);
    let ms = digits.fold(0, |sum, it| sum * 10 + i64::from(it.wrapping_sub(b'0') % 10));
    let seconds = ((day_of_date(year, month, day) * 24 + hour) * 60 + minute - offset_min) * 60 + second;
    u64::try_from(seconds * 1000 + ms).ok().map(Timestamp)
}

fn number(text: &str) -> Option<i64> {
    (text.len() <= 4 && text.bytes().all(|it| it.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_every_fraction_and_offset() {
        for (text, wanted) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T00:00:00.000000001Z", Some(951_782_400_000)),
            ("2026-01-31T09:05:00.250999999Z", Some(1_769_850_300_250)),
            ("2026-01-31T10:05:00.25+01:00", Some(1_769_850_300_250)),
            ("2026-01-31T03:35:00.2509-05:30", Some(1_769_850_300_250)),
            ("2026-13-31T09:05:00Z", None),
            ("2026-01-31 09:05:00Z", None),
            ("2026-01-31T09:05Z", None),
            ("2026-01-31T09:05:00", None),
            ("x", None),
        ] {
            assert_eq!(instant(text).map(|it| it.0), wanted, "{text}");
        }
    }

    #[test]
    fn records_are_read_and_what_is_none_is_left_out() {
        let good = record(b"2026-01-31T09:05:00.250Z stderr F  two  spaces ").unwrap();
        assert_eq!((good.origin, good.ends, good.text), (LogOrigin::Stderr, true, &b" two  spaces "[..]));
        assert_eq!(record(b"2026-01-31T09:05:00.250Z stdout P:x a").map(|it| it.ends), Some(false));
        assert_eq!(record(b"2026-01-31T09:05:00.250Z stdout F").map(|it| it.text), Some(&b""[..]));
        for bad in
            ["", "a", "2026-01-31T09:05:00Z", "2026-01-31T09:05:00Z stdin F a", "2026-01-31T09:05:00Z stdout X a"]
        {
            assert_eq!(record(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn parts_are_joined_for_each_pipe_and_long_lines_come_in_pieces() {
        let mut joiner = Joiner::default();
        let mut lines = Vec::new();
        for text in [
            "2026-01-31T09:05:00.001Z stdout P one ",
            "2026-01-31T09:05:00.002Z stderr F other",
            "2026-01-31T09:05:00.003Z stdout P two ",
            "2026-01-31T09:05:00.004Z stdout F three\r",
            "2026-01-31T09:05:00.005Z stdout F ",
        ] {
            lines.extend(joiner.push(record(text.as_bytes()).unwrap()));
        }
        let told: Vec<_> = lines.iter().map(|it| (it.at.0 % 10, it.text.as_str())).collect();
        assert_eq!(told, [(2, "other"), (4, "one two three"), (5, "")]);

        let part = format!("2026-01-31T09:05:00.001Z stdout P {}", "x".repeat(9 << 10));
        let part = record(part.as_bytes()).unwrap();
        let lengths: Vec<_> = (0..5).map(|_| joiner.push(part).map_or(0, |it| it.text.len())).collect();
        assert_eq!(lengths, [0, 18 << 10, 0, 18 << 10, 0]);

        let part = format!("2026-01-31T09:05:00.001Z stdout P {}\r", "x".repeat(LINE_MAX - 1));
        let piece = Joiner::default().push(record(part.as_bytes()).unwrap()).unwrap().text;
        assert!(piece.len() == LINE_MAX && piece.ends_with("x\r"), "{}", piece.len());

        let binary = [b"2026-01-31T09:05:00.001Z stdout F ".to_vec(), vec![0xff; 16 << 10]].concat();
        let text = Joiner::default().push(record(&binary).unwrap()).unwrap().text;
        assert!(text.len() > TEXT_MAX - 3 && text.len() <= TEXT_MAX, "{}", text.len());
    }

    #[test]
    fn times_do_not_go_back_unless_the_clock_was_set() {
        let mut joiner = Joiner::default();
        let mut at = |text: &str| joiner.push(record(text.as_bytes()).unwrap()).map(|it| it.at.0 - 1_769_850_300_000);
        assert_eq!(at("2026-01-31T09:05:05.002Z stdout F a"), Some(5002));
        assert_eq!(at("2026-01-31T09:05:05.001Z stderr F crossed"), Some(5002));
        assert_eq!(at("2026-01-31T09:05:05.003Z stdout F b"), Some(5003));
        assert_eq!(at("2026-01-31T09:05:01.003Z stdout F set back"), Some(1003));
        assert_eq!(at("2026-01-31T09:05:01.004Z stdout F c"), Some(1004));
    }
}
