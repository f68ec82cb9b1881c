//! What is to be done next for a name, and what is remembered of it. Pure: time and chance come from outside.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::world::acme::{AcmeOrder, AcmeStanding};

/// The pause after a first failure; each further one in a row doubles it.
const BACKOFF_MIN: Duration = Duration::from_secs(60);
/// The longest of them (`edge-kinds.md`).
const BACKOFF_MAX: Duration = Duration::from_secs(12 * 3600);
/// The longest time for which an authority may tell us to stay away.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long after an order what came of it is waited for: in a cluster its Secret comes back by a watch.
const SEEN_AFTER: Duration = Duration::from_secs(60);
/// How often an authority is asked when it wants a certificate renewed (RFC 9773, section 4.3.3), and where it does not say when to ask again.
const ASK_MIN: Duration = Duration::from_secs(60);
const ASK_MAX: Duration = Duration::from_secs(24 * 3600);
const ASK: Duration = Duration::from_secs(6 * 3600);
/// Of a certificate's life: certificates of one day are not all renewed in one moment.
const SPREAD: f64 = 0.02;
/// A certificate of which less than that is over has been renewed in haste: somebody takes it away, or its authority knows no end.
const HASTE: f64 = 0.25;
/// What is told of an order of which nobody has heard the end.
const CUT_SHORT: &str = "the order before came to no end: the control plane has been restarted, or nobody wanted the name for a while";
/// Longest text of a problem.
const PROBLEM_BYTES_MAX: usize = 512;

/// What is remembered of a name. It outlives the process: an authority is not asked the same again because of a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Track {
    /// Serial number of the certificate that was ordered last.
    pub serial: String,
    /// Tries in a row that failed.
    pub failures: u32,
    /// Nothing is ordered before, milliseconds since 1970.
    pub not_before_ms: i64,
    /// Why the last try failed.
    pub problem: Option<String>,
    /// When the authority wants it renewed.
    pub window: Option<Window>,
    /// When it is asked again.
    pub ask_at_ms: i64,
    /// Of which certificate (serial number) that is.
    pub asked_of: String,
    /// Drawn when it was ordered: 0 to 1.
    pub spread: f64,
    /// When the last certificate came, milliseconds since 1970; 0: none has.
    #[serde(default)]
    pub obtained_ms: i64,
    /// Certificates in a row that came long before the one before should have been renewed.
    #[serde(default)]
    pub hasty: u32,
}

/// A window of renewal (RFC 9773, section 4.2), and the moment in it that was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Window {
    /// Milliseconds since 1970.
    pub start_ms: i64,
    /// Milliseconds since 1970.
    pub end_ms: i64,
    /// Milliseconds since 1970.
    pub drawn_ms: i64,
}

/// A certificate in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// Serial number.
    pub serial: String,
    /// Milliseconds since 1970.
    pub begins_ms: i64,
    /// Milliseconds since 1970.
    pub ends_ms: i64,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToDo {
    /// A certificate is to be ordered; it has been due since then.
    Order(i64),
    /// The authority is to be asked when it wants this one renewed.
    Ask,
    /// Nothing before that moment.
    Rest(i64),
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A part of so many milliseconds.
fn part(whole_ms: i64, share: f64) -> i64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "lives of certificates are far below 2^52 ms")]
    let part = (whole_ms as f64 * share) as i64;
    part
}

/// When a certificate is due: when its authority says, else after so much of its life. Whatever an authority says, it is not let run out.
pub(super) fn due_ms(life: &Lifetime, renew_at_percent: f64, track: &Track) -> i64 {
    let window = track.window.filter(|_| track.asked_of == life.serial);
    window.map_or_else(
        || life.begins_ms + part(life.ends_ms - life.begins_ms, renew_at_percent / 100.0 - SPREAD * track.spread),
        |window| window.drawn_ms.min(late_ms(life, renew_at_percent)),
    )
}

/// When half of the time between a usual renewal and the end is over.
fn late_ms(life: &Lifetime, renew_at_percent: f64) -> i64 {
    life.ends_ms - part(life.ends_ms - life.begins_ms, (100.0 - renew_at_percent) / 200.0)
}

/// What is to be done for a name. `known`: whether it would be seen by now if there were a certificate.
pub(super) fn next(life: Option<&Lifetime>, renew_at_percent: f64, track: &Track, known: bool, now_ms: i64) -> ToDo {
    // A clock that was wrong for a while must not bar anything until its year comes.
    let paused_ms = Some(track.not_before_ms).filter(|at| *at <= now_ms.saturating_add(ms(RETRY_AFTER_MAX))).unwrap_or_default();
    let order = |due_ms: i64| match due_ms.max(paused_ms) {
        at if at <= now_ms => ToDo::Order(due_ms),
        at => ToDo::Rest(at),
    };
    let Some(life) = life else {
        // One that was ordered is about to be read.
        return if track.serial.is_empty() || known { order(0) } else { ToDo::Rest(now_ms + ms(SEEN_AFTER)) };
    };
    if track.asked_of != life.serial || track.ask_at_ms <= now_ms || track.ask_at_ms > now_ms.saturating_add(ms(ASK_MAX)) {
        return ToDo::Ask;
    }
    match order(due_ms(life, renew_at_percent, track)) {
        ToDo::Rest(at) => ToDo::Rest(at.min(track.ask_at_ms)),
        step => step,
    }
}

impl Track {
    /// An authority's answer about a certificate: from when to when it is to be renewed, and when to ask again. A window that is as it was keeps
    /// the moment that was drawn; one that is over has come.
    pub(super) fn answered(&mut self, serial: &str, (start_ms, end_ms): (i64, i64), again: Duration, draw: f64, now_ms: i64) {
        let same = |window: &Window| self.asked_of == serial && (window.start_ms, window.end_ms) == (start_ms, end_ms);
        if !self.window.as_ref().is_some_and(same) {
            let drawn_ms = start_ms + part(end_ms.saturating_sub(start_ms).max(0), draw);
            self.window = Some(Window { start_ms, end_ms, drawn_ms });
        }
        serial.clone_into(&mut self.asked_of);
        self.ask_at_ms = now_ms + ms(again.clamp(ASK_MIN, ASK_MAX));
    }

    /// It said nothing of use: what was known of this certificate stays, and it is asked again in some hours.
    pub(super) fn unanswered(&mut self, serial: &str, now_ms: i64) {
        if self.asked_of != serial {
            self.window = None;
        }
        serial.clone_into(&mut self.asked_of);
        self.ask_at_ms = now_ms + ms(ASK);
    }

    /// A try failed; the authority may have said when to come again.
    pub(super) fn failed(&mut self, why: &str, retry_after: Option<Duration>, draw: f64, now_ms: i64) {
        let pause = part(doubled_ms(self.failures), 0.2f64.mul_add(draw, 0.8));
        self.failures = self.failures.saturating_add(1);
        let told = retry_after.map_or(0, |told| ms(told.min(RETRY_AFTER_MAX)));
        self.not_before_ms = now_ms + pause.max(told);
        let line: String = why.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
        let end = (0..=line.len().min(PROBLEM_BYTES_MAX)).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        self.problem = Some(line[..end].to_owned());
    }

    /// As it is where an order came to no end. So it is written down while one is under way: whoever is restarted in the middle of it, again and
    /// again, is not quicker for that.
    pub(super) fn cut_short(&self, draw: f64, now_ms: i64) -> Self {
        let mut track = self.clone();
        track.failed(CUT_SHORT, None, draw, now_ms);
        track
    }

    /// A certificate came, with a life of so long. One that comes again and again in haste is waited for ever longer, however well each order ends:
    /// authorities count certificates.
    pub(super) fn obtained(&mut self, serial: &str, life_ms: i64, draw: f64, now_ms: i64) {
        let in_haste = self.obtained_ms > 0 && now_ms - self.obtained_ms < part(life_ms, HASTE);
        let hasty = if in_haste { self.hasty.saturating_add(1) } else { 0 };
        let pause_ms = if in_haste { doubled_ms(self.hasty) } else { 0 };
        *self = Self {
            serial: serial.to_owned(),
            not_before_ms: now_ms + pause_ms.max(ms(SEEN_AFTER)),
            spread: draw,
            obtained_ms: now_ms,
            hasty,
            ..Self::default()
        };
    }

    /// Whether it is worth being remembered although nobody wants the name: who wants it again soon must not find a clean slate.
    pub(super) fn lasts(&self, now_ms: i64) -> bool {
        self.not_before_ms > now_ms && self.not_before_ms <= now_ms.saturating_add(ms(RETRY_AFTER_MAX))
    }

    /// As others are told.
    pub(super) fn standing(&self, life: Option<&Lifetime>, renew_at_percent: f64, ordering: bool, step: ToDo, now_ms: i64) -> AcmeStanding {
        let order = match (ordering, &self.problem, life) {
            (true, ..) => AcmeOrder::Ordering,
            (false, Some(_), _) => AcmeOrder::Failing,
            (false, None, Some(_)) => AcmeOrder::Ready,
            (false, None, None) => AcmeOrder::Pending,
        };
        let next_try_ms = match (step, life) {
            (_, Some(life)) => due_ms(life, renew_at_percent, self).max(self.not_before_ms),
            (ToDo::Rest(at), None) => at,
            (ToDo::Order(_) | ToDo::Ask, None) => now_ms,
        };
        let expiring = life.is_some_and(|life| now_ms > late_ms(life, renew_at_percent));
        // The past is no time to try again, and who looks twice sees the same.
        let next_try_ms = if next_try_ms <= now_ms || ordering { 0 } else { next_try_ms };
        AcmeStanding { order, next_try_ms, problem: self.problem.clone(), expiring }
    }
}

/// The pause after so many others in a row, milliseconds.
fn doubled_ms(before: u32) -> i64 {
    ms(BACKOFF_MIN.saturating_mul(1_u32.checked_shl(before.min(16)).unwrap_or(u32::MAX)).min(BACKOFF_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;

    fn life(serial: &str, begins_ms: i64, days: i64) -> Lifetime {
        Lifetime { serial: serial.into(), begins_ms, ends_ms: begins_ms + days * DAY }
    }

    #[test]
    fn failures_are_tried_again_ever_more_rarely() {
        // Aim: a minute, doubled, 12 h at most, less up to a fifth by chance; what an authority says counts where it is longer, for a week at
        // most; a certificate forgets it all.
        let mut track = Track::default();
        for wanted in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 720, 720, 720] {
            track.failed("no", None, 1.0, 0);
            assert_eq!(track.not_before_ms, wanted * MINUTE, "{}", track.failures);
        }
        let mut track = Track::default();
        track.failed("a\nb", None, 0.0, 7);
        assert_eq!((track.not_before_ms, track.problem.as_deref()), (7 + 48_000, Some("a b")));
        for (told, wanted) in [(Duration::from_secs(3), 96_000), (Duration::from_secs(7200), 2 * HOUR), (Duration::MAX, 7 * DAY)] {
            let mut track = track.clone();
            track.failed(&"é".repeat(1000), Some(told), 0.0, 0);
            assert_eq!(track.not_before_ms, wanted, "{told:?}");
            assert_eq!(track.problem.unwrap().len(), 512);
        }
        track.obtained("s", 90 * DAY, 0.5, 0);
        assert_eq!((track.failures, track.problem, track.not_before_ms), (0, None, MINUTE));
    }

    #[test]
    fn what_is_next_follows_from_what_is_there() {
        // Aim: nothing there: ordered at once, after a pause where it failed; one that was ordered and is not read yet is waited for; one that is
        // there is asked about first, then rests until it is due, by its authority's window before its share of life; a failing renewal waits for
        // its pause and never says more than that.
        let at = |life: Option<&Lifetime>, track: &Track, now_ms| next(life, 66.0, track, false, now_ms);
        let fresh = Track::default();
        assert_eq!(at(None, &fresh, 5), ToDo::Order(0));
        let mut failing = Track::default();
        failing.failed("no", None, 1.0, 0);
        assert_eq!((at(None, &failing, 5), at(None, &failing, MINUTE)), (ToDo::Rest(MINUTE), ToDo::Order(0)));
        let mut had = Track::default();
        had.obtained("a", 100 * DAY, 0.0, 0);
        assert_eq!(at(None, &had, 5), ToDo::Rest(5 + MINUTE));
        assert_eq!(next(None, 66.0, &had, true, MINUTE), ToDo::Order(0));
        let own = life("a", 0, 100);
        assert_eq!(at(Some(&own), &had, DAY), ToDo::Ask);
        had.unanswered("a", DAY);
        assert_eq!(at(Some(&own), &had, DAY), ToDo::Rest(DAY + 6 * HOUR));
        had.ask_at_ms = 66 * DAY + HOUR;
        assert_eq!(at(Some(&own), &had, 66 * DAY - HOUR), ToDo::Rest(66 * DAY));
        assert_eq!(at(Some(&own), &had, 66 * DAY), ToDo::Order(66 * DAY));
        had.failed("no", None, 1.0, 66 * DAY);
        assert_eq!(at(Some(&own), &had, 66 * DAY), ToDo::Rest(66 * DAY + MINUTE));
        // A certificate that somebody else renewed is another one.
        assert_eq!(at(Some(&life("b", 60 * DAY, 100)), &had, 66 * DAY + MINUTE), ToDo::Ask);
    }

    #[test]
    fn an_authority_says_when_to_renew() {
        // Aim: a moment drawn in its window, the same until the window is another; a window in the past is now (RFC 9773, section 4.2); it is
        // asked again when it says, within a minute and a day; a question without an answer keeps what is known.
        let own = life("a", 0, 100);
        let mut track = Track::default();
        track.answered("a", (10 * DAY, 20 * DAY), Duration::from_secs(3600), 0.5, DAY);
        assert_eq!(due_ms(&own, 66.0, &track), 15 * DAY);
        assert_eq!(next(Some(&own), 66.0, &track, true, DAY), ToDo::Rest(DAY + HOUR));
        track.answered("a", (10 * DAY, 20 * DAY), Duration::from_secs(1), 0.9, DAY);
        assert_eq!((due_ms(&own, 66.0, &track), track.ask_at_ms), (15 * DAY, DAY + MINUTE));
        track.answered("a", (-5 * DAY, -4 * DAY), Duration::MAX, 0.9, DAY);
        assert_eq!((track.ask_at_ms, next(Some(&own), 66.0, &track, true, DAY)), (2 * DAY, ToDo::Order(-5 * DAY + 9 * DAY / 10)));
        // One that comes too late, or never, lets no certificate run out.
        track.answered("a", (2000 * DAY, 3000 * DAY), ASK, 0.5, DAY);
        assert_eq!(due_ms(&own, 66.0, &track), 83 * DAY);
        track.answered("a", (10 * DAY, 20 * DAY), ASK, 0.0, DAY);
        track.unanswered("a", 2 * DAY);
        assert_eq!(due_ms(&own, 66.0, &track), 10 * DAY);
        track.unanswered("b", 2 * DAY);
        assert_eq!(due_ms(&life("b", 0, 100), 66.0, &track), 66 * DAY);
    }

    #[test]
    fn certificates_that_never_last_are_ordered_ever_more_rarely() {
        // Aim: an authority whose window is always over, or somebody who takes the Secret away each time, does not make us order for ever: a minute,
        // doubled, 12 h at most; one that has lasted makes it as before.
        let mut track = Track::default();
        let mut now_ms = 1;
        for wanted in [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 720, 720] {
            track.obtained("s", 90 * DAY, 0.0, now_ms);
            assert_eq!(track.not_before_ms - now_ms, wanted * MINUTE, "{}", track.hasty);
            track.answered("s", (-2 * DAY, -DAY), ASK, 0.5, now_ms);
            assert_eq!(
                next(Some(&life("s", now_ms, 90)), 66.0, &track, true, now_ms),
                ToDo::Rest(track.not_before_ms.min(track.ask_at_ms))
            );
            now_ms = track.not_before_ms;
        }
        now_ms += 60 * DAY;
        track.obtained("t", 90 * DAY, 0.0, now_ms);
        assert_eq!((track.not_before_ms - now_ms, track.hasty), (MINUTE, 0));
    }

    #[test]
    fn an_order_counts_before_its_end() {
        // Aim: whoever is restarted in an order waits as if it had failed, longer each time; a name that nobody wants for a moment keeps its pause.
        let track = Track::default().cut_short(1.0, 0);
        assert_eq!(next(None, 66.0, &track, true, 5), ToDo::Rest(MINUTE));
        assert!(track.problem.as_deref().is_some_and(|told| told.contains("came to no end")));
        assert!(track.lasts(5) && !track.lasts(MINUTE));
        assert_eq!(track.cut_short(1.0, MINUTE).not_before_ms, 3 * MINUTE);
    }

    #[test]
    fn a_clock_that_was_wrong_bars_nothing() {
        // Aim: what was written down at a time of years ahead is no reason to wait for that time, neither to order nor to ask.
        let year = 365 * DAY;
        let mut track = Track::default();
        track.failed("no", None, 1.0, 14 * year);
        assert_eq!(next(None, 66.0, &track, true, 5), ToDo::Order(0));
        assert!(!track.lasts(5));
        track.answered("a", (10 * DAY, 20 * DAY), ASK, 0.5, 14 * year);
        assert_eq!(next(Some(&life("a", 0, 100)), 66.0, &track, true, DAY), ToDo::Ask);
    }

    #[test]
    fn a_standing_says_what_is_done_and_when() {
        // Aim: pending, ordering, failing, ready; a time only where it is to come; late once half of the time between renewal and end is over.
        let own = life("a", 0, 100);
        let mut track = Track::default();
        let told = |track: &Track, life: Option<&Lifetime>, ordering, now_ms| {
            let standing = track.standing(life, 66.0, ordering, next(life, 66.0, track, true, now_ms), now_ms);
            (standing.order, standing.next_try_ms, standing.expiring)
        };
        assert_eq!(told(&track, None, false, 5), (AcmeOrder::Pending, 0, false));
        assert_eq!(told(&track, None, true, 5), (AcmeOrder::Ordering, 0, false));
        assert_eq!(told(&track, Some(&own), false, DAY), (AcmeOrder::Ready, 66 * DAY, false));
        track.failed("no", None, 1.0, 82 * DAY);
        assert_eq!(told(&track, Some(&own), false, 82 * DAY), (AcmeOrder::Failing, 82 * DAY + MINUTE, false));
        assert!(told(&track, Some(&own), false, 84 * DAY).2);
    }
}
