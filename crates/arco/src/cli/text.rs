//! Small texts for people: ages, sizes, durations, and keeping foreign text harmless on a terminal.

use arco_model::time::day_of_date;
use std::time::{SystemTime, UNIX_EPOCH};

/// Text without characters that a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|it| if it.is_control() && it != '\t' { '\u{fffd}' } else { it }).collect()
}

/// As one line: line ends become ` · `.
pub(crate) fn one_line(text: &str) -> String {
    clean(&text.lines().map(str::trim).filter(|it| !it.is_empty()).collect::<Vec<_>>().join(" · "))
}

/// Milliseconds since 1970, now.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}

/// How long ago an RFC 3339 time was, as `5m` or `3d`; `-` when there is none.
pub(crate) fn age(at: Option<&str>) -> String {
    match at.and_then(parse_rfc3339) {
        Some(at) => short_duration(now_ms().saturating_sub(at) / 1000),
        None => "-".to_owned(),
    }
}

/// Seconds as one number and a unit.
pub(crate) fn short_duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes as MiB, with one digit below 10.
pub(crate) fn megabytes(bytes: u64) -> String {
    let tenths = bytes * 10 / 1_048_576;
    if tenths < 100 { format!("{}.{} MB", tenths / 10, tenths % 10) } else { format!("{} MB", tenths / 10) }
}

/// Milliseconds since 1970 of `2026-01-31T09:05:00.250Z`, as `Timestamp::rfc3339` writes it.
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    let part = |from: usize, to: usize| text.get(from..to).and_then(|it| it.parse::<i64>().ok());
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hours, minutes, seconds) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let ms = if text.as_bytes().get(19) == Some(&b'.') { part(20, 23)? } else { 0 };
    let days = day_of_date(year, month, day);
    u64::try_from(((days * 24 + hours) * 60 + minutes) * 60_000 + seconds * 1000 + ms).ok()
}

/// Milliseconds of `90s`, `10m`, `2h`, `1d`; seconds without a unit.
pub(crate) fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("give a number and s, m, h or d, as `10m`".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "give a number and s, m, h or d, as `10m`".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "it is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::time::Timestamp;

    #[test]
    fn times_come_back_from_their_text() {
        for ms in [0, 951_782_400_000, 1_769_850_300_250, 1_709_164_799_999] {
            assert_eq!(parse_rfc3339(&Timestamp(ms).rfc3339()), Some(ms));
        }
        assert_eq!(parse_rfc3339("soon"), None);
        assert_eq!(parse_rfc3339(""), None);
    }

    #[test]
    fn durations_sizes_and_ages() {
        for (text, ms) in
            [("10m", Some(600_000)), ("2h", Some(7_200_000)), ("5", Some(5_000)), ("x", None), ("5w", None), ("", None)]
        {
            assert_eq!(parse_duration_ms(text).ok(), ms, "{text}");
        }
        assert_eq!((megabytes(5_767_168).as_str(), megabytes(104_857_600).as_str()), ("5.5 MB", "100 MB"));
        assert_eq!(
            (short_duration(59).as_str(), short_duration(7_199).as_str(), short_duration(200_000).as_str()),
            ("59s", "119m", "2d")
        );
        assert_eq!(one_line("a\n\n  b\x1b[31m"), "a · b\u{fffd}[31m");
    }
}
