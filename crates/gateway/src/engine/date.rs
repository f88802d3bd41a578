//! The `Date` field (RFC 9110 §6.6.1), made once a second.

use crate::calendar::Moment;
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Appends the field for now.
pub(super) fn push(out: &mut Vec<u8>) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    NOW.with_borrow_mut(|(known, text)| {
        if *known != seconds || text.is_empty() {
            (*known, *text) = (seconds, format!("date: {}\r\n", imf_fixdate(seconds)));
        }
        out.extend_from_slice(text.as_bytes());
    });
}

/// Seconds since 1970 as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn imf_fixdate(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let moment = Moment::of(seconds);
    let Moment { year, day, hour, minute, second, .. } = moment;
    let (weekday, month) = (DAYS[(seconds / 86_400 % 7) as usize], moment.month_name());
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (1_740_787_200, "Sat, 01 Mar 2025 00:00:00 GMT"),
        ] {
            assert_eq!(super::imf_fixdate(seconds), text);
        }
    }
}
