//! Whether a request is sent again. Pure: the road keeps count of its attempts, the endpoints tried and what of the request is still at hand.
//!
//! Two kinds cost nothing to decide: what was never written upstream is sent again, whatever its method, for nothing can have happened
//! twice (RFC 9110, section 9.2.2); and a safe request without a byte of an answer, once. Everything else a route has to ask for. All but the first kind
//! draw on the destination's budget, and where a layer before this one retries already, this one does not.

use std::time::Duration;

use http::StatusCode;

use super::{ATTEMPTS_MAX, Causes, Policy};
use crate::failure::{Failure, Reason, Retry};

/// Longest wait that a server may ask for before it is asked again (RFC 9110, section 10.2.3).
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Ended<'a> {
    /// Without an answer.
    Failed(&'a Failure),
    /// With one.
    Answered {
        /// Its status.
        status: StatusCode,
        /// Its code of gRPC, where its head says one.
        grpc: Option<u32>,
        /// When it asks to be asked again.
        retry_after: Option<Duration>,
    },
}

/// Where another attempt could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// To an endpoint that was not tried.
    Another,
    /// To the same one, of which only a kept connection proved dead: a new one may well work.
    AnewToTheSame,
    /// Nowhere that was not dialled already.
    Nowhere,
}

/// What is known after an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// Attempts made, this one included.
    pub attempts: u32,
    /// Where another one could go.
    pub left: Left,
    /// What is left of the request's time, if that is bounded.
    pub time: Option<Duration>,
    /// The request is still at hand as it was.
    pub at_hand: bool,
    /// It may arrive twice: a safe method without a body.
    pub safe: bool,
    /// A layer before this one sends it again by itself.
    pub layered: bool,
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pick again, away from the endpoints tried while there is another, after that wait.
    Again(Duration),
    /// Tell the caller.
    Stop(Stop),
}

/// Why a request is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nobody asks for it, or it is not worth it.
    Final,
    /// All attempts were made.
    Exhausted,
    /// Its body was too large to be kept.
    NotAtHand,
    /// The budget is spent.
    Budget,
    /// A layer before this one retries.
    Layered,
    /// The server asks for more time than is given.
    TooLate,
    /// The wait before it would outlast the request's time.
    NoTime,
}

impl Stop {
    /// As logs spell it; `None`: nothing worth telling.
    pub const fn text(self) -> Option<&'static str> {
        match self {
            Self::Final | Self::Exhausted => None,
            Self::NotAtHand => Some("not retried: its body was larger than is kept"),
            Self::Budget => Some("not retried: the budget for retries is spent"),
            Self::Layered => Some("not retried: a layer before this one retries"),
            Self::TooLate => Some("not retried: the server asked for more time than is given"),
            Self::NoTime => Some("not retried: its time would be over before the next attempt"),
        }
    }
}

/// Who pays for an attempt.
enum Price {
    /// Nobody.
    Free,
    /// The budget; with a wait before it if the route asked for it.
    Budget { waits: bool },
}

/// Judges an attempt. `spend` takes one from the destination's budget, and is asked last; `draw` is uniform over all of `u64`.
pub fn next(policy: &Policy, ended: Ended<'_>, now: Situation, draw: u64, spend: impl FnOnce() -> bool) -> Next {
    match priced(policy, ended, now) {
        Err(stop) => Next::Stop(stop),
        Ok(Price::Free) => Next::Again(Duration::ZERO),
        Ok(Price::Budget { waits }) => {
            let asked = match ended {
                Ended::Answered { retry_after: Some(after), .. } => after,
                _ => Duration::ZERO,
            };
            if asked > RETRY_AFTER_MAX {
                return Next::Stop(Stop::TooLate);
            }
            let wait = if waits { policy.backoff(now.attempts, draw).max(asked) } else { Duration::ZERO };
            if now.time.is_some_and(|left| wait >= left) {
                return Next::Stop(Stop::NoTime);
            }
            if spend() { Next::Again(wait) } else { Next::Stop(Stop::Budget) }
        }
    }
}

fn priced(policy: &Policy, ended: Ended<'_>, now: Situation) -> Result<Price, Stop> {
    if let Ended::Failed(Failure { retry: Retry::NeverWritten, .. }) = ended
        && now.at_hand
        && now.left != Left::Nowhere
        && now.attempts < ATTEMPTS_MAX.max(1 + policy.attempts)
    {
        return Ok(Price::Free);
    }
    if policy.retries() && asked_for(policy, ended) {
        return match () {
            () if now.layered => once_more(ended, now).ok_or(Stop::Layered),
            () if now.attempts > policy.attempts => Err(Stop::Exhausted),
            () if !now.at_hand => Err(Stop::NotAtHand),
            () => Ok(Price::Budget { waits: true }),
        };
    }
    once_more(ended, now).ok_or(Stop::Final)
}

/// Whether the route asks for another attempt after such an end.
fn asked_for(policy: &Policy, ended: Ended<'_>) -> bool {
    match ended {
        Ended::Answered { status, grpc, .. } => policy.wants_again(status, grpc),
        Ended::Failed(failure) => match failure.reason {
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => policy.on.has(Causes::CONNECT_FAILURE),
            Reason::AttemptTimeout => policy.on.has(Causes::ATTEMPT_TIMEOUT),
            Reason::UpstreamReset if failure.retry == Retry::NeverWritten => {
                policy.on.has(Causes::REFUSED_STREAM) || policy.on.has(Causes::RESET)
            }
            Reason::UpstreamReset => policy.on.has(Causes::RESET),
            _ => false,
        },
    }
}

/// A safe request whose answer did not begin, once. Below a layer that retries only where a kept connection proved dead, which is no
/// fault of the server's.
fn once_more(ended: Ended<'_>, now: Situation) -> Option<Price> {
    let Ended::Failed(Failure { retry: Retry::Unanswered, .. }) = ended else { return None };
    let raced = now.left == Left::AnewToTheSame;
    let first = now.attempts == 1 && now.safe && now.at_hand;
    (first && (raced || (!now.layered && now.left == Left::Another))).then_some(Price::Budget { waits: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Situation = Situation { attempts: 1, left: Left::Another, time: None, at_hand: true, safe: false, layered: false };

    fn policy() -> Policy {
        let seconds = |nanos| Some(prost_types::Duration { seconds: 0, nanos });
        let raw = proto::mesh::Retry {
            attempts: 2,
            connect_failure: true,
            reset: true,
            refused_stream: true,
            attempt_timeout: true,
            statuses: vec![502, 503],
            grpc_statuses: vec![14],
            backoff_base: seconds(25_000_000),
            backoff_max: seconds(250_000_000),
            body_buffer_bytes: 65536,
        };
        Policy::compile(Some(&raw)).unwrap()
    }

    fn failed(reason: Reason, retry: Retry) -> Failure {
        Failure { retry, ..Failure::new(reason, "it failed") }
    }

    fn judged(policy: &Policy, failure: &Failure, now: Situation) -> Next {
        next(policy, Ended::Failed(failure), now, 0, || true)
    }

    fn again(next: Next) -> bool {
        matches!(next, Next::Again(_))
    }

    #[test]
    fn what_was_never_written_is_replayed_and_not_for_ever() {
        // Aim: the free replay, its bound, where it may go, whatever the method, and that it asks no budget.
        let free = failed(Reason::ConnectFailed, Retry::NeverWritten);
        for (left, wanted) in
            [(Left::Another, [true, true, false, false]), (Left::AnewToTheSame, [true, true, false, false]), (Left::Nowhere, [false; 4])]
        {
            let one = |attempts| next(&Policy::default(), Ended::Failed(&free), Situation { attempts, left, ..NOW }, 0, || unreachable!());
            assert_eq!([1, 2, 3, 4].map(|attempts| again(one(attempts))), wanted, "{left:?}");
        }
        assert!(!again(judged(&Policy::default(), &failed(Reason::UpstreamReset, Retry::No), NOW)));
    }

    #[test]
    fn a_safe_request_without_an_answer_is_sent_once_more() {
        // Aim: once, elsewhere or anew to the same, only while it is safe and at hand, only from the budget, and below a retrying layer
        // only where a kept connection was dead.
        let unanswered = failed(Reason::UpstreamReset, Retry::Unanswered);
        let safe = Situation { safe: true, ..NOW };
        let by_default = |now| judged(&Policy::default(), &unanswered, now);
        assert_eq!(by_default(safe), Next::Again(Duration::ZERO));
        assert_eq!(by_default(Situation { left: Left::AnewToTheSame, layered: true, ..safe }), Next::Again(Duration::ZERO));
        for now in [
            NOW,
            Situation { attempts: 2, ..safe },
            Situation { at_hand: false, ..safe },
            Situation { left: Left::Nowhere, ..safe },
            Situation { layered: true, ..safe },
        ] {
            assert_eq!(by_default(now), Next::Stop(Stop::Final), "{now:?}");
        }
        assert_eq!(next(&Policy::default(), Ended::Failed(&unanswered), safe, 0, || false), Next::Stop(Stop::Budget));
    }

    #[test]
    fn a_route_is_given_what_it_asks_for() {
        // Aim: each cause and status, the number of attempts, the same endpoint where there is no other, and why not.
        let policy = policy();
        let answered = |status: u16, grpc| {
            let status = StatusCode::from_u16(status).unwrap();
            next(&policy, Ended::Answered { status, grpc, retry_after: None }, NOW, 0, || true)
        };
        assert!(again(answered(503, None)) && again(answered(200, Some(14))));
        assert!(!again(answered(500, None)) && !again(answered(200, Some(13))) && !again(answered(200, Some(40))));
        for (reason, retry) in [
            (Reason::UpstreamReset, Retry::No),
            (Reason::AttemptTimeout, Retry::No),
            (Reason::UpstreamReset, Retry::Unanswered),
            (Reason::ConnectFailed, Retry::NeverWritten),
        ] {
            let failure = failed(reason, retry);
            assert!(again(judged(&policy, &failure, Situation { left: Left::Nowhere, ..NOW })), "{reason:?}");
            let quiet = Policy { on: Causes::default(), ..policy.clone() };
            assert!(!again(judged(&quiet, &failure, Situation { left: Left::Nowhere, ..NOW })), "{reason:?}");
        }
        let reset = failed(Reason::UpstreamReset, Retry::No);
        let stopped = |now| judged(&policy, &reset, now);
        assert_eq!(stopped(Situation { attempts: 3, ..NOW }), Next::Stop(Stop::Exhausted));
        assert_eq!(stopped(Situation { at_hand: false, ..NOW }), Next::Stop(Stop::NotAtHand));
        assert_eq!(stopped(Situation { layered: true, ..NOW }), Next::Stop(Stop::Layered));
        assert_eq!(next(&policy, Ended::Failed(&reset), NOW, 0, || false), Next::Stop(Stop::Budget));
        assert_eq!(judged(&policy, &failed(Reason::ClientGone, Retry::No), NOW), Next::Stop(Stop::Final));
    }

    #[test]
    fn waits_grow_to_their_bound_and_differ_by_chance() {
        // Aim: doubled, up to half more by chance, never beyond the bound nor below the base; a server's own wish counts, up to a bound.
        let policy = policy();
        let millis = |attempts, draw| policy.backoff(attempts, draw).as_micros() / 100;
        assert_eq!([1, 2, 3, 4, 5, 40].map(|n| millis(n, 0)), [250, 500, 1000, 1666, 1666, 1666]);
        assert_eq!([1, 2, 5].map(|n| millis(n, u64::MAX)), [374, 749, 2499]);
        let after = |secs| {
            let ended =
                Ended::Answered { status: StatusCode::SERVICE_UNAVAILABLE, grpc: None, retry_after: Some(Duration::from_secs(secs)) };
            next(&policy, ended, NOW, 0, || true)
        };
        assert_eq!(after(2), Next::Again(Duration::from_secs(2)));
        assert_eq!(after(31), Next::Stop(Stop::TooLate));
        assert!(Policy::default().backoff(30, u64::MAX) < Duration::from_millis(250));
    }

    #[test]
    fn no_wait_outlasts_the_time_that_is_left() {
        // Aim: what would be waited for in vain is not begun, and asks no budget.
        let policy = policy();
        let reset = failed(Reason::UpstreamReset, Retry::No);
        let within = |millis| Situation { time: Some(Duration::from_millis(millis)), ..NOW };
        assert_eq!(judged(&policy, &reset, within(26)), Next::Again(Duration::from_millis(25)));
        let judged = next(&policy, Ended::Failed(&reset), within(25), 0, || unreachable!());
        assert_eq!(judged, Next::Stop(Stop::NoTime));
        let asked = Ended::Answered { status: StatusCode::SERVICE_UNAVAILABLE, grpc: None, retry_after: Some(Duration::from_secs(5)) };
        assert_eq!(next(&policy, asked, within(4000), 0, || unreachable!()), Next::Stop(Stop::NoTime));
    }
}
