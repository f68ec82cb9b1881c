//! Windows by the calendar of a place.

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan as _};

/// How often a window begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// At each full hour of the place.
    Hour,
    /// At the beginning of each day.
    Day,
    /// At the beginning of each week, which is that of this day: 1 is Monday, 7 Sunday.
    Week(u8),
    /// At the beginning of each month.
    Month,
    /// At the beginning of each year.
    Year,
}

impl Every {
    /// Seconds that a window usually has.
    pub const fn usual_secs(self) -> u64 {
        const DAY: u64 = 24 * 3600;
        match self {
            Self::Hour => 3600,
            Self::Day => DAY,
            Self::Week(_) => 7 * DAY,
            Self::Month => 30 * DAY,
            Self::Year => 365 * DAY,
        }
    }
}

/// Windows of a place.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    every: Every,
    zone: TimeZone,
}

/// From one second on, up to another, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first second.
    pub begins: u64,
    /// The first that is not its own.
    pub ends: u64,
}

/// There is no such time zone, or no such day of a week.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time zone of the IANA database, and no weekday from 1 to 7")]
pub struct ZoneUnknown(String);

impl Window {
    /// Whether it is open.
    pub const fn holds(&self, wall_secs: u64) -> bool {
        self.begins <= wall_secs && wall_secs < self.ends
    }
}

impl Calendar {
    /// By the time zone of this name, of the database that is built in: all replicas, whatever their machines know, have the same windows.
    ///
    /// # Errors
    /// There is no such zone.
    pub fn new(every: Every, zone: &str) -> Result<Self, ZoneUnknown> {
        let unknown = |what: &dyn ToString| ZoneUnknown(what.to_string().escape_debug().to_string());
        if let Every::Week(day) = every
            && !(1..=7).contains(&day)
        {
            return Err(unknown(&day));
        }
        let zone = if zone == "UTC" { TimeZone::UTC } else { TimeZoneDatabase::bundled().get(zone).map_err(|_| unknown(&zone))? };
        Ok(Self { every, zone })
    }

    /// How often a window begins.
    pub const fn every(&self) -> Every {
        self.every
    }

    /// The name of the time zone.
    pub fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// The window that is open at a time. A day that a change of clocks makes longer or shorter is one all the same.
    pub fn window(&self, wall_secs: u64) -> Window {
        // Beyond the year 9999 nothing begins any more.
        self.window_of(wall_secs).unwrap_or(Window { begins: 0, ends: u64::MAX })
    }

    fn window_of(&self, wall_secs: u64) -> Option<Window> {
        let now = Timestamp::from_second(i64::try_from(wall_secs).ok()?).ok()?;
        let there = now.to_zoned(self.zone.clone());
        let today = there.date();
        let (first, next) = match self.every {
            Every::Hour => {
                let ahead = i64::from(there.offset().seconds());
                let begins = (now.as_second() + ahead).div_euclid(3600) * 3600 - ahead;
                let begins = u64::try_from(begins).unwrap_or(0);
                return Some(Window { begins, ends: begins + 3600 });
            }
            Every::Day => (today, today.tomorrow().ok()?),
            Every::Week(day) => {
                let begin = Weekday::from_monday_one_offset(i8::try_from(day).ok()?).ok()?;
                let first = today.checked_sub(i32::from(begin.until(today.weekday())).days()).ok()?;
                (first, first.checked_add(7.days()).ok()?)
            }
            Every::Month => (today.first_of_month(), today.first_of_month().checked_add(1.month()).ok()?),
            Every::Year => (today.first_of_year(), today.first_of_year().checked_add(1.year()).ok()?),
        };
        Some(Window { begins: self.midnight(first)?, ends: self.midnight(next)? })
    }

    /// The first second of a day there. Before 1970 it is 0.
    fn midnight(&self, day: Date) -> Option<u64> {
        let begins = day.to_zoned(self.zone.clone()).ok()?.start_of_day().ok()?;
        Some(u64::try_from(begins.timestamp().as_second()).unwrap_or(0))
    }
}

/// Whether there is a time zone of that name.
pub fn check_zone(zone: &str) -> bool {
    Calendar::new(Every::Day, zone).is_ok()
}
