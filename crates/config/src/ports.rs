//! A range of ports, as `10000-10999`.

use serde::{Deserialize, Serialize};

/// Ports from `first` to `last`, both included; never empty, never 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl PortRange {
    /// All of them.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// Whether it is one of them.
    pub fn holds(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let parsed = first.trim().parse().ok().zip(last.trim().parse().ok());
        let range = parsed.map(|(first, last)| Self { first, last }).filter(|it| it.first > 0 && it.first <= it.last);
        range.ok_or_else(|| format!("`{text}` is not a range of ports; write it as `10000-10999`"))
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written() {
        for (text, range) in [
            ("10000-10999", Some((10_000, 10_999))),
            (" 5 - 5", Some((5, 5))),
            ("7", Some((7, 7))),
            ("0-9", None),
            ("9-8", None),
            ("x", None),
            ("1-70000", None),
        ] {
            let read = PortRange::try_from(text.to_owned()).ok();
            assert_eq!(read.map(|it| (it.first, it.last)), range, "{text}");
        }
        let range = PortRange { first: 3, last: 5 };
        assert_eq!((String::from(range), range.ports().count()), ("3-5".to_owned(), 3));
        assert!(range.holds(3) && range.holds(5) && !range.holds(6));
    }
}
