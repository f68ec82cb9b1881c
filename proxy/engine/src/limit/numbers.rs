//! The numbers of a limit, and what one key has used up.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::calendar::{Calendar, Window};
use crate::Moment;

/// Most of anything in one period, or at once.
pub const AMOUNT_MAX: u64 = 1_000_000_000;
/// Longest period of a rate.
pub const PERIOD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// What a bucket counts in: the 10^9th part of a unit, so that neither a slow rate nor an odd one loses anything to rounding.
const PART: u64 = 1_000_000_000;

/// Both clocks, as the shell hands them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic.
    pub moment: Moment,
    /// Seconds since 1970.
    pub wall_secs: u64,
}

/// How much there is, and when it comes back.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// Comes back all the time.
    Rate(Rate),
    /// Comes back when the calendar says so.
    Quota(Quota),
}

/// A token bucket: `amount` come back in each `per`, `burst` may be there at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    amount: u64,
    per_nanos: u64,
    burst: u64,
}

/// So much in each window of a calendar.
#[derive(Clone, Debug)]
pub struct Quota {
    amount: u64,
    calendar: Calendar,
    /// The window that is open, so that the calendar is asked once in each.
    open: Arc<ArcSwap<Window>>,
}

/// What one key has used up: of a rate in parts up to a moment, of a quota in units within a window. It says nothing of the numbers, so it
/// outlives their edits, and nobody's share comes back with one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    used: u64,
    at: u64,
}

/// How a key stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyStanding {
    /// What is left at once.
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
    /// Until what was asked for is there; zero where it was.
    pub retry: Duration,
}

impl Rate {
    /// `None`: `amount` or `burst` is not from 1 to [`AMOUNT_MAX`], or `per` not above zero and up to [`PERIOD_MAX`].
    pub fn new(amount: u64, per: Duration, burst: u64) -> Option<Self> {
        let counts = |number: u64| (1..=AMOUNT_MAX).contains(&number);
        let per_nanos = u64::try_from(per.as_nanos()).ok().filter(|_| !per.is_zero() && per <= PERIOD_MAX)?;
        (counts(amount) && counts(burst)).then_some(Self { amount, per_nanos, burst })
    }

    /// What may be there at once.
    pub const fn burst(&self) -> u64 {
        self.burst
    }

    /// What comes back, and in which time.
    pub const fn pace(&self) -> (u64, Duration) {
        (self.amount, Duration::from_nanos(self.per_nanos))
    }

    /// Parts that come back in so many nanoseconds.
    fn parts_in(&self, nanos: u64) -> u128 {
        // At most 2^64 * 2^30 * 2^30: it fits.
        u128::from(nanos) * u128::from(self.amount) * u128::from(PART) / u128::from(self.per_nanos)
    }

    /// Nanoseconds in which so many parts come back, rounded up.
    fn nanos_of(&self, parts: u128) -> u64 {
        let nanos = (parts * u128::from(self.per_nanos)).div_ceil(u128::from(self.amount) * u128::from(PART));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// Lets come back what has by now. Time that made no whole part is not counted yet, so nothing is lost however often this is asked.
    fn drain(&self, meter: &mut Meter, now: Moment) {
        // What an edit made too much of: no bucket is emptier than empty.
        meter.used = meter.used.min(self.burst * PART);
        let elapsed = now.nanos().saturating_sub(meter.at);
        let back = self.parts_in(elapsed);
        match u64::try_from(back).ok().and_then(|back| meter.used.checked_sub(back)) {
            None | Some(0) => *meter = Meter { used: 0, at: now.nanos().max(meter.at) },
            Some(used) => *meter = Meter { used, at: meter.at + self.nanos_of(back) },
        }
    }

    fn standing(&self, meter: &Meter, cost: u64, now: Moment) -> KeyStanding {
        let begun = now.nanos().saturating_sub(meter.at);
        let whole = self.burst * PART;
        let wanted = cost.saturating_mul(PART);
        let until = |parts: u64| Duration::from_nanos(self.nanos_of(parts.into()).saturating_sub(begun));
        let short = meter.used.saturating_add(wanted.min(whole)).saturating_sub(whole);
        let retry = if short == 0 && wanted <= whole { Duration::ZERO } else { until(short.max(1)) };
        let reset = if meter.used == 0 { Duration::ZERO } else { until(meter.used) };
        KeyStanding { remaining: (whole - meter.used) / PART, reset, retry }
    }
}

impl Quota {
    /// `None`: `amount` is not from 1 to [`AMOUNT_MAX`].
    pub fn new(amount: u64, calendar: Calendar) -> Option<Self> {
        let open = Arc::new(ArcSwap::from_pointee(Window { begins: 0, ends: 0 }));
        (1..=AMOUNT_MAX).contains(&amount).then_some(Self { amount, calendar, open })
    }

    /// What each window holds.
    pub const fn amount(&self) -> u64 {
        self.amount
    }

    /// Whose windows they are.
    pub const fn calendar(&self) -> &Calendar {
        &self.calendar
    }

    /// The window that is open.
    pub fn window(&self, wall_secs: u64) -> Window {
        let open = **self.open.load();
        if open.holds(wall_secs) {
            return open;
        }
        let window = self.calendar.window(wall_secs);
        self.open.store(Arc::new(window));
        window
    }

    /// A new window begins with nothing used. Where a clock was set back, what was used stays so: it is never given twice.
    fn turn(&self, meter: &mut Meter, wall_secs: u64) -> Window {
        let window = self.window(wall_secs);
        if window.begins > meter.at {
            meter.used = 0;
        }
        meter.at = window.begins;
        meter.used = meter.used.min(self.amount);
        window
    }

    fn standing(&self, meter: &Meter, cost: u64, window: Window, wall_secs: u64) -> KeyStanding {
        let reset = Duration::from_secs(window.ends.saturating_sub(wall_secs).max(1));
        let remaining = self.amount.saturating_sub(meter.used);
        KeyStanding { remaining, reset, retry: if cost <= remaining { Duration::ZERO } else { reset } }
    }
}

impl Numbers {
    /// The most that is there at once.
    pub const fn whole(&self) -> u64 {
        match self {
            Self::Rate(rate) => rate.burst,
            Self::Quota(quota) => quota.amount,
        }
    }

    /// Takes `cost`, or nothing of it.
    ///
    /// # Errors
    /// It is not there; what costs more than the whole never is.
    pub fn take(&self, meter: &mut Meter, cost: u64, now: Now) -> Result<KeyStanding, KeyStanding> {
        let before = self.look(meter, cost, now);
        if cost > before.remaining {
            return Err(before);
        }
        meter.used += self.written(cost);
        Ok(self.look(meter, 0, now))
    }

    /// Takes as much of `want` as there is.
    pub fn take_some(&self, meter: &mut Meter, want: u64, now: Now) -> (u64, KeyStanding) {
        let granted = self.look(meter, 1, now).remaining.min(want);
        meter.used += self.written(granted);
        (granted, self.look(meter, 1, now))
    }

    /// Puts back what was taken and not used, of the window that is open.
    pub fn give_back(&self, meter: &mut Meter, amount: u64, now: Now) {
        self.look(meter, 0, now);
        meter.used = meter.used.saturating_sub(self.written(amount));
    }

    /// Counts what was used in any case: where more was used than there is, all is.
    pub fn charge(&self, meter: &mut Meter, amount: u64, now: Now) {
        self.look(meter, 0, now);
        meter.used = meter.used.saturating_add(self.written(amount)).min(self.written(self.whole()));
    }

    /// How a key stands, for whom `cost` is wanted.
    pub fn look(&self, meter: &mut Meter, cost: u64, now: Now) -> KeyStanding {
        match self {
            Self::Rate(rate) => {
                rate.drain(meter, now.moment);
                rate.standing(meter, cost, now.moment)
            }
            Self::Quota(quota) => {
                let window = quota.turn(meter, now.wall_secs);
                quota.standing(meter, cost, window, now.wall_secs)
            }
        }
    }

    /// In which time so many come back, one after the other. Of a window all come at once.
    pub fn comes_back_in(&self, amount: u64) -> Duration {
        match self {
            Self::Rate(rate) => Duration::from_nanos(rate.nanos_of(u128::from(amount) * u128::from(PART))),
            Self::Quota(_) => Duration::ZERO,
        }
    }

    /// What is used up now at least, of which `remaining` are left.
    pub fn at_least(&self, meter: &mut Meter, remaining: u64, now: Now) {
        self.look(meter, 0, now);
        meter.used = meter.used.max(self.written(self.whole().saturating_sub(remaining)));
    }

    /// One of so many equal shares; each has one unit at least.
    #[must_use]
    pub fn share(&self, of: u64) -> Self {
        let of = of.max(1);
        let part = |amount: u64| (amount / of).max(1);
        match self {
            // Of less than one for each in a period, each has one in a longer one.
            Self::Rate(rate) if rate.amount < of => {
                let per_nanos = u64::try_from(u128::from(rate.per_nanos) * u128::from(of) / u128::from(rate.amount)).unwrap_or(u64::MAX);
                Self::Rate(Rate { amount: 1, per_nanos, burst: part(rate.burst) })
            }
            Self::Rate(rate) => Self::Rate(Rate { amount: part(rate.amount), burst: part(rate.burst), ..*rate }),
            Self::Quota(quota) => Self::Quota(Quota { amount: part(quota.amount), ..quota.clone() }),
        }
    }

    /// What clients are told of it: the quota, and the seconds of its window. Of a rate these are what may be there at once and the time in
    /// which that comes back; of a calendar's windows, which differ, the usual ones.
    pub fn nominal(&self) -> (u64, u64) {
        match self {
            Self::Rate(rate) => (rate.burst, rate.nanos_of(u128::from(rate.burst) * u128::from(PART)).div_ceil(1_000_000_000)),
            Self::Quota(quota) => (quota.amount, quota.calendar.every().usual_secs()),
        }
    }

    /// By which an edit of the numbers is noticed: other numbers have another one. Of a quota's time zone alone it says nothing; that is met
    /// when the window ends.
    pub const fn terms(&self) -> u64 {
        match self {
            Self::Rate(rate) => rate.per_nanos ^ rate.amount.rotate_left(42) ^ rate.burst.rotate_left(21),
            Self::Quota(quota) => !quota.amount ^ quota.calendar.every().usual_secs().rotate_left(32),
        }
    }

    /// As a meter counts it.
    const fn written(&self, amount: u64) -> u64 {
        match self {
            Self::Rate(_) => amount.saturating_mul(PART),
            Self::Quota(_) => amount,
        }
    }
}

impl PartialEq for Numbers {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Rate(one), Self::Rate(other)) => one == other,
            (Self::Quota(one), Self::Quota(other)) => one.amount == other.amount && one.calendar == other.calendar,
            _ => false,
        }
    }
}
