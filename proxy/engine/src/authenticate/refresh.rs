//! When keys are fetched again: a state machine without I/O, one per place that keys come from.

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

use super::cell::MISSED_PAUSE_SECS;
use crate::Moment;

/// How long a set is fresh where its server does not say.
const FRESH_DEFAULT: Duration = Duration::from_secs(300);
/// Shortest, whatever the server says.
pub const FRESH_MIN: Duration = Duration::from_secs(60);
/// Longest.
pub const FRESH_MAX: Duration = Duration::from_secs(24 * 3600);
/// First pause after a failure; it doubles from there.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The same where nothing has come yet: a proxy that starts may not know yet where the mesh's own names lead, and meanwhile nobody is let in.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause after failures.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What is known of fetching from one place.
#[derive(Clone, Debug)]
pub struct Refresh {
    due: Moment,
    asked: Option<Moment>,
    fetched: Option<Moment>,
    failures: u32,
}

impl Refresh {
    /// Never fetched: due at once.
    pub const fn new(now: Moment) -> Self {
        Self { due: now, asked: None, fetched: None, failures: 0 }
    }

    /// When the next fetch is due.
    pub const fn due(&self) -> Moment {
        self.due
    }

    /// A fetch begins. It is due no more until its end is told.
    pub fn begun(&mut self, now: Moment) {
        self.asked = Some(now);
        self.due = Moment::of_nanos(u64::MAX);
    }

    /// The keys came, and are fresh so long ([`fresh_for`]). They are fetched again before that is over: after three quarters of it, less up to
    /// an eighth by chance (`draw`, uniform), so that not all proxies ask at once.
    pub fn came(&mut self, fresh: Duration, now: Moment, draw: u64) {
        self.fetched = Some(now);
        self.failures = 0;
        self.due = now.plus(spread(fresh * 3 / 4, draw));
    }

    /// They did not come. Returns the pause until the next attempt.
    pub fn failed(&mut self, now: Moment, draw: u64) -> Duration {
        let least = if self.fetched.is_some() { RETRY_MIN } else { RETRY_FIRST };
        let doubled = least.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        let pause = spread(doubled, draw);
        self.due = now.plus(pause);
        pause
    }

    /// Somebody shows a token of a key that is not at hand: due at once, if the last fetch is some time ago.
    pub fn missed(&mut self) {
        let earliest = self.asked.map_or(Moment::default(), |asked| asked.plus(Duration::from_secs(MISSED_PAUSE_SECS)));
        let under_way = self.due == Moment::of_nanos(u64::MAX);
        if !under_way {
            self.due = self.due.min(earliest);
        }
    }

    /// Whether the keys at hand are too old to be believed, which they are for so long.
    pub fn is_over(&self, now: Moment, kept: Duration) -> bool {
        self.fetched.is_some_and(|fetched| now.since(fetched) >= kept)
    }

    /// When they will be.
    pub fn over(&self, kept: Duration) -> Option<Moment> {
        self.fetched.map(|fetched| fetched.plus(kept))
    }
}

/// An eighth less at most.
fn spread(time: Duration, draw: u64) -> Duration {
    time - (time / 8).mul_f64(draw as f64 / u64::MAX as f64)
}

/// How long an answer is fresh by its `cache-control` (RFC 9111, section 5.2.2), within bounds.
pub fn fresh_for(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut fresh = FRESH_DEFAULT;
    for directive in values.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_ascii_lowercase()) {
        if matches!(directive.as_str(), "no-store" | "no-cache") {
            return FRESH_MIN;
        }
        let told = directive.strip_prefix("max-age=").and_then(|secs| secs.trim_matches('"').parse().ok());
        fresh = told.map_or(fresh, Duration::from_secs);
    }
    fresh.clamp(FRESH_MIN, FRESH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::KEPT_MAX;

    const fn at(secs: u64) -> Moment {
        Moment::of_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn keys_are_fetched_before_they_are_stale() {
        // Aim: three quarters of the time that a server says, a little less by chance; none of its words is taken beyond the bounds.
        let mut refresh = Refresh::new(at(5));
        assert_eq!(refresh.due(), at(5));
        refresh.begun(at(5));
        assert!(refresh.due() > at(1 << 30));
        refresh.came(Duration::from_secs(800), at(6), 0);
        assert_eq!(refresh.due(), at(606));
        refresh.came(Duration::from_secs(800), at(6), u64::MAX);
        assert_eq!(refresh.due(), at(531));
        let told =
            |value: &'static str| fresh_for(&HeaderMap::from_iter([(CACHE_CONTROL, http::HeaderValue::from_static(value))])).as_secs();
        for (value, secs) in [
            ("max-age=600", 600),
            ("public, Max-Age=3600, must-revalidate", 3600),
            ("max-age=1", 60),
            ("max-age=999999999", 86400),
            ("max-age=99999999999999999999999", 300),
            ("no-store, max-age=600", 60),
            ("private", 300),
        ] {
            assert_eq!(told(value), secs, "{value}");
        }
        assert_eq!(fresh_for(&HeaderMap::new()).as_secs(), 300);
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly() {
        // Aim: 1 s doubled up to a minute; a success starts afresh; keys are kept a day and no longer.
        let mut refresh = Refresh::new(at(0));
        refresh.came(FRESH_MIN, at(0), 0);
        let pauses: Vec<u64> = (0..8).map(|_| refresh.failed(at(100), 0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(!refresh.is_over(at(86_399), KEPT_MAX) && refresh.is_over(at(86_400), KEPT_MAX));
        refresh.came(FRESH_MIN, at(90_000), 0);
        assert_eq!((refresh.failed(at(90_001), 0).as_secs(), refresh.is_over(at(90_001), KEPT_MAX)), (1, false));
    }

    #[test]
    fn what_never_came_is_tried_again_soon() {
        // Aim: before anything has come the pauses begin at a tenth of a second.
        let mut refresh = Refresh::new(at(0));
        let pauses: Vec<u128> = (0..11).map(|_| refresh.failed(at(1), 0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000]);
    }

    #[test]
    fn an_unknown_key_hurries_a_fetch_now_and_then() {
        // Aim: at once where the last fetch is ten seconds ago, else then; not beside one under way; never later than planned.
        let mut refresh = Refresh::new(at(0));
        refresh.begun(at(0));
        refresh.missed();
        assert!(refresh.due() > at(1 << 30));
        refresh.came(Duration::from_secs(800), at(1), 0);
        refresh.missed();
        assert_eq!(refresh.due(), at(10));
        refresh.begun(at(20));
        refresh.failed(at(20), 0);
        refresh.missed();
        assert_eq!(refresh.due(), at(21));
    }
}
