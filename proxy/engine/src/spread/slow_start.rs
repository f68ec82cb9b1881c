//! Slow start: how warm a new endpoint is.

use std::time::Duration;

use crate::Moment;

/// Whole weight.
const WHOLE: u64 = 100;
/// What an endpoint begins with.
const BEGINNING: u64 = 10;
/// Parts by which it grows: each is a new set, so they are few.
const STEP: u64 = 5;
const STEPS: u64 = (WHOLE - BEGINNING) / STEP;

/// The part of its weight, per cent, that an endpoint has that became ready at `since`: from a tenth to the whole, linear over the window.
/// `None`: it is not known yet when that was.
pub(crate) fn warmth(since: Option<Moment>, window: Duration, now: Moment) -> u64 {
    let Some(since) = since else { return BEGINNING };
    BEGINNING + STEP * taken(since, window, now)
}

/// When it grows next, while it does.
pub(crate) fn next_step(since: Moment, window: Duration, now: Moment) -> Option<Moment> {
    let next = taken(since, window, now) + 1;
    (next <= STEPS).then(|| {
        let after = window.as_nanos() * u128::from(next) / u128::from(STEPS);
        // Not before the step is taken, whatever was rounded.
        since.plus(Duration::from_nanos(u64::try_from(after).unwrap_or(u64::MAX).saturating_add(1)))
    })
}

fn taken(since: Moment, window: Duration, now: Moment) -> u64 {
    let (past, window) = (now.since(since).as_nanos(), window.as_nanos().max(1));
    u64::try_from(past * u128::from(STEPS) / window).unwrap_or(STEPS).min(STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_warms_from_a_tenth_to_the_whole() {
        // Aim: linear over the window, a step at each announced time, and then never again.
        let at = |secs: u64| Moment::after_start(Duration::from_secs(secs));
        let window = Duration::from_secs(180);
        for (secs, wanted) in [(100, 10), (101, 10), (110, 15), (190, 55), (279, 95), (280, 100), (999, 100)] {
            assert_eq!(warmth(Some(at(100)), window, at(secs)), wanted, "{secs}");
        }
        assert_eq!(warmth(None, window, at(999)), 10);
        let (mut now, mut steps) = (at(100), 0);
        while let Some(next) = next_step(at(100), window, now) {
            assert!(warmth(Some(at(100)), window, next) > warmth(Some(at(100)), window, now), "{next:?}");
            (now, steps) = (next, steps + 1);
        }
        assert_eq!((steps, warmth(Some(at(100)), window, now)), (18, 100));
        assert_eq!(warmth(Some(at(0)), Duration::MAX, at(1)), 10);
    }
}
