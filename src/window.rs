//! Calendar windows in UTC: the period a budget or a quota counts over, as `[start, end)`.
//!
//! A window is named by its start, so the next one is another row and nothing is ever reset.

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, date},
    tz::TimeZone,
};
use serde::{Deserialize, Serialize};

use crate::clock::Time;

/// How long a window lasts. Weeks start on Monday; `Lifetime` has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    Daily,
    Weekly,
    Monthly,
    Yearly,
    Lifetime,
}

impl Period {
    pub const ALL: [Period; 5] =
        [Period::Daily, Period::Weekly, Period::Monthly, Period::Yearly, Period::Lifetime];

    pub fn as_str(self) -> &'static str {
        match self {
            Period::Daily => "daily",
            Period::Weekly => "weekly",
            Period::Monthly => "monthly",
            Period::Yearly => "yearly",
            Period::Lifetime => "lifetime",
        }
    }

    /// The period of that name, as it stands in requests and in the database.
    pub fn parse(name: &str) -> Option<Period> {
        Period::ALL.into_iter().find(|period| period.as_str() == name)
    }

    /// The window of this period that holds `at`.
    pub fn window(self, at: Time) -> Window {
        let day = day_of(at);
        let (first, next) = match self {
            Period::Daily => (day, day.checked_add(1.day())),
            Period::Weekly => {
                let monday = day.saturating_sub(i64::from(day.weekday().to_monday_zero_offset()).days());
                (monday, monday.checked_add(7.days()))
            }
            Period::Monthly => (day.first_of_month(), day.last_of_month().checked_add(1.day())),
            Period::Yearly => (day.first_of_year(), day.last_of_year().checked_add(1.day())),
            Period::Lifetime => return Window { start: Time(0), end: None },
        };
        Window { start: midnight(first), end: next.ok().map(midnight) }
    }
}

/// `[start, end)`; without an end for [`Period::Lifetime`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: Time,
    pub end: Option<Time>,
}

/// The calendar day in UTC that holds `at`; the nearest one that a calendar knows if none does.
pub fn day_of(at: Time) -> Date {
    Timestamp::from_millisecond(at.0).map(|at| at.to_zoned(TimeZone::UTC).date()).unwrap_or(if at.0 < 0 {
        Date::MIN
    } else {
        date(9999, 12, 30)
    })
}

/// 00:00 UTC of that day.
pub fn midnight(day: Date) -> Time {
    day.to_zoned(TimeZone::UTC).map_or(Time(0), |at| Time(at.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(period: Period, at: &str) -> (String, Option<String>) {
        let window = period.window(Time::parse(at).unwrap());
        (window.start.to_string(), window.end.map(|end| end.to_string()))
    }

    #[test]
    fn windows_start_and_end_on_the_calendar() {
        let day = |text: &str| format!("{text}T00:00:00.000Z");
        for (period, at, start, end) in [
            (Period::Daily, "2024-02-28T23:59:59.999Z", "2024-02-28", "2024-02-29"),
            (Period::Weekly, "2026-11-22T12:00:00Z", "2026-11-16", "2026-11-23"),
            (Period::Weekly, "2026-11-23T00:00:00Z", "2026-11-23", "2026-11-30"),
            (Period::Monthly, "2024-02-29T12:00:00Z", "2024-02-01", "2024-03-01"),
            (Period::Monthly, "2026-12-31T23:59:59Z", "2026-12-01", "2027-01-01"),
            (Period::Yearly, "2026-12-31T23:59:59Z", "2026-01-01", "2027-01-01"),
        ] {
            assert_eq!(window(period, at), (day(start), Some(day(end))), "{period:?} at {at}");
        }
        assert_eq!(window(Period::Lifetime, "2026-11-22T12:00:00Z"), (day("1970-01-01"), None));
    }

    proptest! {
        #[test]
        fn a_window_holds_its_moment_and_the_next_one_starts_where_it_ends(ms in 0i64..4_000_000_000_000) {
            for period in Period::ALL {
                let window = period.window(Time(ms));
                prop_assert!(window.start.0 <= ms);
                if let Some(end) = window.end {
                    prop_assert!(ms < end.0);
                    prop_assert_eq!(period.window(end).start, end);
                    prop_assert_eq!(period.window(Time(end.0 - 1)), window);
                }
            }
        }
    }
}
