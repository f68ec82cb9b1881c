//! Whether a failed attempt is made again. Pure: the road keeps the count and the list of endpoints tried.

use crate::failure::{Failure, Retry};

/// Most attempts of one request, the first included. Each goes to another endpoint while there is one.
pub const ATTEMPTS_MAX: u32 = 3;

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pick again, away from the endpoints tried.
    Again,
    /// Tell the caller.
    Stop,
}

/// Judges attempt number `attempts` (1 for the first), which ended in `failure`. Only what was never written upstream is made
/// again, and that for any method: nothing can have happened twice (RFC 9110, section 9.2.2).
pub fn next(attempts: u32, failure: &Failure) -> Next {
    match failure.retry {
        Retry::NeverWritten if attempts < ATTEMPTS_MAX => Next::Again,
        Retry::NeverWritten | Retry::No => Next::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Reason;

    #[test]
    fn only_what_was_never_written_is_replayed_and_not_for_ever() {
        // Aim: the free replay, its bound, and nothing else.
        let free = Failure::never_written(Reason::ConnectFailed, "refused");
        assert_eq!((1..=4).map(|n| next(n, &free)).collect::<Vec<_>>(), [Next::Again, Next::Again, Next::Stop, Next::Stop]);
        assert_eq!(next(1, &Failure::new(Reason::UpstreamReset, "reset")), Next::Stop);
    }
}
