//! Days and times of reports, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// The day, `2026-01-31`.
pub fn date(time: SystemTime) -> String {
    let (year, month, day) = civil(seconds(time) / 86400);
    format!("{year}-{month:02}-{day:02}")
}

/// A time as vLLM writes it, `20260131-235959`.
pub(crate) fn date_time(time: SystemTime) -> String {
    let seconds = seconds(time);
    let ((year, month, day), clock) = (civil(seconds / 86400), seconds % 86400);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Year, month and day, from 1, of a number of days since 1970.
fn civil(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "19700101-000000"),
            (951_782_399, "20000228-235959"),
            (951_782_400, "20000229-000000"),
            (1_735_689_599, "20241231-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(date_time(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(date(UNIX_EPOCH + Duration::from_secs(951_782_400)), "2000-02-29");
    }
}
