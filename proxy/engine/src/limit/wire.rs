//! Numbers on the wire: in a policy, and in a question to whoever counts for all proxies.

use proto::mesh::{self, CalendarPeriod};

use super::calendar::{Calendar, Every};
use super::numbers::{AMOUNT_MAX, Numbers, PERIOD_MAX, Quota, Rate};
use crate::raw::duration;
use crate::rejected::Wrong;

pub(crate) fn rate(raw: &mesh::LimitRate) -> Result<Numbers, Wrong> {
    let mesh::LimitRate { requests, per, burst } = raw;
    let per = duration(per.as_ref(), "per")?.unwrap_or_default();
    let rate = Rate::new((*requests).into(), per, (*burst).into());
    let most = PERIOD_MAX.as_secs() / (24 * 3600);
    rate.map(Numbers::Rate)
        .ok_or_else(|| Wrong::new("", format!("is beyond the bounds: 1 to {AMOUNT_MAX} requests and burst, above 0 and up to {most} days")))
}

pub(crate) fn quota(raw: &mesh::LimitQuota) -> Result<Numbers, Wrong> {
    let mesh::LimitQuota { requests, per, time_zone, week_start } = raw;
    let every = match CalendarPeriod::try_from(*per) {
        Ok(CalendarPeriod::Hour) => Every::Hour,
        Ok(CalendarPeriod::Day) => Every::Day,
        Ok(CalendarPeriod::Week) => Every::Week(u8::try_from(*week_start).unwrap_or(0)),
        Ok(CalendarPeriod::Month) => Every::Month,
        Ok(CalendarPeriod::Year) => Every::Year,
        Err(_) => return Err(Wrong::new("per", format!("{per} is not known"))),
    };
    let calendar = Calendar::new(every, time_zone).map_err(|unknown| Wrong::new("time_zone", unknown.to_string()))?;
    Quota::new((*requests).into(), calendar)
        .map(Numbers::Quota)
        .ok_or_else(|| Wrong::new("requests", format!("{requests} is not from 1 to {AMOUNT_MAX}")))
}

/// The numbers of a question to the control plane, as its store counts by them.
///
/// # Errors
/// They are beyond their bounds.
pub fn numbers_of(raw: &mesh::limit_ask::Numbers) -> Result<Numbers, String> {
    use mesh::limit_ask::Numbers as Raw;
    let read = match raw {
        Raw::Rate(raw) => rate(raw),
        Raw::Quota(raw) => quota(raw),
    };
    read.map_err(Wrong::text)
}

/// The same the other way round.
pub fn numbers_sent(numbers: &Numbers) -> mesh::limit_ask::Numbers {
    use mesh::limit_ask::Numbers as Raw;
    let count = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
    match numbers {
        Numbers::Rate(rate) => {
            let (amount, per) = rate.pace();
            let per = prost_types::Duration::try_from(per).ok();
            Raw::Rate(mesh::LimitRate { requests: count(amount), per, burst: count(rate.burst()) })
        }
        Numbers::Quota(quota) => {
            let (per, week_start) = match quota.calendar().every() {
                Every::Hour => (CalendarPeriod::Hour, 0),
                Every::Day => (CalendarPeriod::Day, 0),
                Every::Week(day) => (CalendarPeriod::Week, day.into()),
                Every::Month => (CalendarPeriod::Month, 0),
                Every::Year => (CalendarPeriod::Year, 0),
            };
            let time_zone = quota.calendar().zone().to_owned();
            Raw::Quota(mesh::LimitQuota { requests: count(quota.amount()), per: per.into(), time_zone, week_start })
        }
    }
}
