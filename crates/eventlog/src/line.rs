//! A line as it lies in a segment: `<ms> <o|e|p> <instance|-> <text>\n`, readable with ordinary tools.
//!
//! A text holds no line feed (a batch line that has some becomes several), so a program cannot forge a line.

use arco_model::log::{LogLine, LogOrigin};
use arco_model::time::Timestamp;
use std::io::Write as _;

/// Longest text of a line, in bytes; the rest is cut and the cut is said.
pub(crate) const TEXT_MAX: usize = 32 << 10;

/// A line in a segment, not yet copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Parsed<'a> {
    pub(crate) at: u64,
    pub(crate) origin: LogOrigin,
    pub(crate) instance: Option<&'a str>,
    pub(crate) text: &'a str,
}

/// Appends the form of one line; `text` must not hold a line feed.
pub(crate) fn encode(line: &LogLine, text: &str, out: &mut Vec<u8>) {
    let origin = match line.origin {
        LogOrigin::Stdout => 'o',
        LogOrigin::Stderr => 'e',
        LogOrigin::Platform => 'p',
    };
    let instance = line.instance.as_ref().map_or("-", |it| it.as_str());
    let (text, cut) =
        if text.len() > TEXT_MAX { (&text[..text.floor_char_boundary(TEXT_MAX)], " … (cut)") } else { (text, "") };
    // Writing into memory does not fail.
    let _ = writeln!(out, "{} {origin} {instance} {text}{cut}", line.at.0);
}

/// Reads the form of one line, without its line feed.
pub(crate) fn decode(line: &str) -> Option<Parsed<'_>> {
    let (at, rest) = line.split_once(' ')?;
    let (origin, rest) = rest.split_once(' ')?;
    let (instance, text) = rest.split_once(' ')?;
    let origin = match origin {
        "o" => LogOrigin::Stdout,
        "e" => LogOrigin::Stderr,
        "p" => LogOrigin::Platform,
        _ => return None,
    };
    let instance = (instance != "-").then_some(instance);
    Some(Parsed { at: at.parse().ok()?, origin, instance, text })
}

impl Parsed<'_> {
    /// The line itself.
    pub(crate) fn to_line(self) -> LogLine {
        let instance = self.instance.and_then(|it| it.parse().ok());
        LogLine { at: Timestamp(self.at), instance, origin: self.origin, text: self.text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were() {
        let instance = Some("01hzy3v7k8m9n0p1q2r3".parse().unwrap());
        for (instance, origin, text) in [
            (None, LogOrigin::Stdout, ""),
            (instance.clone(), LogOrigin::Stderr, " two  spaces "),
            (instance, LogOrigin::Platform, "ünï\u{0}\r\t\\n"),
        ] {
            let line = LogLine { at: Timestamp(1_769_850_300_250), instance, origin, text: text.to_owned() };
            let mut out = Vec::new();
            encode(&line, &line.text, &mut out);
            let text = std::str::from_utf8(&out).unwrap().strip_suffix('\n').unwrap();
            assert_eq!(decode(text).unwrap().to_line(), line);
        }
    }

    #[test]
    fn what_is_no_line_is_refused_and_long_texts_are_cut_between_characters() {
        for bad in ["", "1", "1 o", "1 o -", "x o - a", "1 x - a", "\0\0\0\0"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
        let text = "é".repeat(TEXT_MAX);
        let line = LogLine { at: Timestamp(1), instance: None, origin: LogOrigin::Stdout, text };
        let mut out = Vec::new();
        encode(&line, &line.text, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.len() < TEXT_MAX + 50 && text.ends_with("é … (cut)\n"));
    }
}
