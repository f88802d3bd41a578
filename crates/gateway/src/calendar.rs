//! Seconds since 1970 as a date of the calendar, in UTC. Pure.

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
        // Years that begin in March have their leap day at the end.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + u64::from(month < 3);
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
