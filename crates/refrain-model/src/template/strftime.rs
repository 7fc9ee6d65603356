//! `strftime_now(format)`: the date for a system prompt, in UTC.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, now.as_secs())
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats seconds since 1970 with Python's directives, English names.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let weekday = DAYS[(days as usize + 3) % 7];
    let month_name = MONTHS[month as usize - 1];
    let hour_of_twelve = (hour + 11) % 12 + 1;
    let day_of_year = days - days_before(year, 1, 1) + 1;
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut directive = chars.next();
        // glibc's `%-d` leaves out leading zeros.
        let pad = directive != Some('-');
        if !pad {
            directive = chars.next();
        }
        let mut number = |value: u64, width: usize| {
            let width = if pad { width } else { 0 };
            write!(text, "{value:0width$}").expect("writing to a string does not fail");
        };
        match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('j') => number(day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_of_twelve, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('f') => number(0, 6),
            Some('F') => write!(text, "{year:04}-{month:02}-{day:02}").expect("writing to a string does not fail"),
            Some('T') => write!(text, "{hour:02}:{minute:02}:{second:02}").expect("writing to a string does not fail"),
            Some('e') => write!(text, "{day:2}").expect("writing to a string does not fail"),
            Some('B') => text.push_str(month_name),
            Some('b' | 'h') => text.push_str(&month_name[..3]),
            Some('A') => text.push_str(weekday),
            Some('a') => text.push_str(&weekday[..3]),
            Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('z') => text.push_str("+0000"),
            Some('Z') => text.push_str("UTC"),
            Some('%') => text.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let problem = format!("strftime_now: `%{directive}` is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
    }
    Ok(text)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let years: u64 = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum();
    let months: u64 = (1..month).map(|month| days_of_month(year, month)).sum();
    years + months + day - 1
}

/// Year, month, day of a number of days since 1970-01-01.
fn civil_date(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    while days >= days_of_month(year, month) {
        days -= days_of_month(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let text = |seconds| strftime("%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I %p %-d %e %F %T %%", seconds).unwrap();
        let expected = "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 12 AM 1  1 1970-01-01 00:00:00 %";
        assert_eq!(text(0), expected);
        let expected = "2024-02-29 23:59:59 Thu Thursday Feb February 060 24 11 PM 29 29 2024-02-29 23:59:59 %";
        assert_eq!(text(1_709_251_199), expected);
        assert!(text(4_102_444_800).starts_with("2100-01-01 00:00:00 Fri"));
        assert!(text(4_107_542_400).starts_with("2100-03-01"), "2100 is no leap year");
        assert!(text(951_782_400).starts_with("2000-02-29"));
    }

    #[test]
    fn unknown_directives_are_errors() {
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
    }
}
