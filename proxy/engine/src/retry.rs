//! Whether a failed attempt is made again. Pure: the road keeps the count and the list of endpoints tried.

use crate::failure::{Failure, Retry};

/// Most attempts of one request, the first included. Each goes to another endpoint.
pub const ATTEMPTS_MAX: u32 = 3;

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pick again, away from the endpoints tried.
    Again,
    /// Tell the caller.
    Stop,
}

/// Where another attempt could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// To an endpoint that was not tried.
    Another,
    /// To the same one, of which only a kept connection proved dead: a new one may well work.
    AnewToTheSame,
    /// Nowhere that was not dialled already: who dialled in vain once would dial in vain again, and the caller waits.
    Nowhere,
}

/// Judges attempt number `attempts` (1 for the first), which ended in `failure`. Only what was never written upstream is made
/// again, and that for any method: nothing can have happened twice (RFC 9110, section 9.2.2).
pub fn next(attempts: u32, failure: &Failure, left: Left) -> Next {
    match (failure.retry, left) {
        (Retry::NeverWritten, Left::Another | Left::AnewToTheSame) if attempts < ATTEMPTS_MAX => Next::Again,
        (Retry::NeverWritten | Retry::No, _) => Next::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Reason;

    #[test]
    fn only_what_was_never_written_is_replayed_and_not_for_ever() {
        // Aim: the free replay, its bound, where it may go, and nothing else.
        let free = Failure::never_written(Reason::ConnectFailed, "refused");
        for (left, wanted) in [
            (Left::Another, [Next::Again, Next::Again, Next::Stop, Next::Stop]),
            (Left::AnewToTheSame, [Next::Again, Next::Again, Next::Stop, Next::Stop]),
            (Left::Nowhere, [Next::Stop; 4]),
        ] {
            assert_eq!([1, 2, 3, 4].map(|n| next(n, &free, left)), wanted, "{left:?}");
        }
        assert_eq!(next(1, &Failure::new(Reason::UpstreamReset, "reset"), Left::Another), Next::Stop);
    }
}
