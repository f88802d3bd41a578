//! Seconds since 1970 as a date of the calendar, in UTC. Pure.

use arco_model::time::date_of_day;

/// Months as they are abbreviated everywhere.
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// One second.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Moment {
    pub(crate) year: u64,
    /// 1 to 12.
    pub(crate) month: u64,
    /// 1 to 31.
    pub(crate) day: u64,
    pub(crate) hour: u64,
    pub(crate) minute: u64,
    pub(crate) second: u64,
}

impl Moment {
    /// The second so many after the beginning of 1970.
    pub(crate) fn of(seconds: u64) -> Self {
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date_of_day(days);
        Self { year, month, day, hour: second / 3_600, minute: second / 60 % 60, second: second % 60 }
    }

    /// Its month as text.
    pub(crate) fn month_name(&self) -> &'static str {
        MONTHS[(self.month - 1) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, (year, month, day), (hour, minute, second)) in [
            (0, (1970, 1, 1), (0, 0, 0)),
            (784_111_777, (1994, 11, 6), (8, 49, 37)),
            (951_782_399, (2000, 2, 28), (23, 59, 59)),
            (951_782_400, (2000, 2, 29), (0, 0, 0)),
            (1_735_689_599, (2024, 12, 31), (23, 59, 59)),
            (1_740_787_200, (2025, 3, 1), (0, 0, 0)),
        ] {
            assert_eq!(Moment::of(seconds), Moment { year, month, day, hour, minute, second });
        }
        assert_eq!(Moment::of(784_111_777).month_name(), "Nov");
    }
}
