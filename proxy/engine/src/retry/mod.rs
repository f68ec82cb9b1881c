//! Whether a request is sent again: what a route says of it, and what is always so.

mod next;

use std::time::Duration;

use http::StatusCode;

use crate::raw::duration;
use crate::rejected::Wrong;

pub use next::{Ended, Left, Next, RETRY_AFTER_MAX, Situation, Stop, next};

/// Most attempts of one request, the first included. Each goes to another endpoint.
pub const ATTEMPTS_MAX: u32 = 3;

/// Most attempts beyond the first that a policy may ask for.
pub const RETRIES_MAX: u32 = 16;
/// Largest body that a policy may ask to keep, in bytes.
pub const BODY_BUFFER_BYTES_MAX: u32 = 1 << 20;
/// Least wait before another attempt (kinds, "defaults").
pub const BACKOFF_BASE_DEFAULT: Duration = Duration::from_millis(25);
/// Longest wait before another attempt (kinds, "defaults").
pub const BACKOFF_MAX_DEFAULT: Duration = Duration::from_millis(250);

/// What may be tried again of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most attempts beyond the first.
    pub attempts: u32,
    /// Failures that are tried again.
    pub on: Causes,
    /// HTTP statuses that are.
    pub statuses: Statuses,
    /// gRPC codes that are, as bits.
    pub grpc: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub backoff_base: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
    /// Largest body that is kept to be sent again.
    pub body_buffer_bytes: u32,
    /// Somebody asked for it. Else what was never written is made again for free, and safe methods before the first byte of an answer.
    pub explicit: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: ATTEMPTS_MAX - 1,
            on: Causes::default(),
            statuses: Statuses::default(),
            grpc: 0,
            backoff_base: BACKOFF_BASE_DEFAULT,
            backoff_max: BACKOFF_MAX_DEFAULT,
            body_buffer_bytes: 0,
            explicit: false,
        }
    }
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes(u8);

impl Causes {
    /// No connection was made.
    pub const CONNECT_FAILURE: Self = Self(1);
    /// The connection or stream broke off before the head of an answer.
    pub const RESET: Self = Self(2);
    /// The peer said that it did nothing with the stream.
    pub const REFUSED_STREAM: Self = Self(4);
    /// The attempt took longer than its timeout.
    pub const ATTEMPT_TIMEOUT: Self = Self(8);

    /// These and those.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether all of those are among these.
    pub const fn has(self, those: Self) -> bool {
        self.0 & those.0 == those.0
    }

    const fn told(set: bool, which: Self) -> Self {
        if set { which } else { Self(0) }
    }
}

/// Statuses from 400 to 599.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statuses([u64; 4]);

impl Statuses {
    /// Adds one; says whether it is of the range.
    fn add(&mut self, status: u32) -> bool {
        let place = status.checked_sub(400).filter(|place| *place < 200);
        let word = place.and_then(|place| self.0.get_mut(place as usize / 64));
        word.zip(place).map(|(word, place)| *word |= 1 << (place % 64)).is_some()
    }

    /// Whether it is among these.
    pub fn has(self, status: u16) -> bool {
        let Some(place) = status.checked_sub(400) else { return false };
        self.0.get(usize::from(place) / 64).is_some_and(|word| word & (1 << (place % 64)) != 0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Policy {
    /// Whether attempts are asked for beyond those that are always made.
    pub const fn retries(&self) -> bool {
        self.explicit && self.attempts > 0
    }

    /// Whether an answer is worth asking again for.
    pub fn wants_again(&self, status: StatusCode, grpc: Option<u32>) -> bool {
        let coded = grpc.is_some_and(|code| code < u32::BITS && self.grpc & (1 << code) != 0);
        coded || self.statuses.has(status.as_u16())
    }

    /// Wait before the next attempt, after so many: doubled each time, and up to half as much again by chance, so that callers who failed
    /// together do not come back together; all of it within its bound. Never less than the base, which GEP-1731 calls a minimum.
    pub fn backoff(&self, attempts: u32, draw: u64) -> Duration {
        let most = (self.backoff_max * 2 / 3).max(self.backoff_base);
        let doubled = self.backoff_base.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(most);
        doubled + Duration::from_nanos(((u128::from(draw) * (doubled / 2).as_nanos()) >> 64) as u64)
    }

    /// `None`: nobody asked for anything.
    pub(crate) fn compile(raw: Option<&proto::mesh::Retry>) -> Result<Self, Wrong> {
        let Some(raw) = raw else { return Ok(Self::default()) };
        let proto::mesh::Retry {
            attempts,
            connect_failure,
            reset,
            refused_stream,
            attempt_timeout,
            statuses: raw_statuses,
            grpc_statuses,
            backoff_base,
            backoff_max,
            body_buffer_bytes,
        } = raw;
        for (field, value, most) in [("attempts", *attempts, RETRIES_MAX), ("body_buffer_bytes", *body_buffer_bytes, BODY_BUFFER_BYTES_MAX)]
        {
            if value > most {
                return Err(Wrong::new(field, format!("{value} is more than {most}")));
            }
        }
        let mut statuses = Statuses::default();
        if let Some(odd) = raw_statuses.iter().find(|status| !statuses.add(**status)) {
            return Err(Wrong::new("statuses", format!("{odd} is not a status from 400 to 599")));
        }
        if let Some(odd) = grpc_statuses.iter().find(|code| !(1..=16).contains(*code)) {
            return Err(Wrong::new("grpc_statuses", format!("{odd} is not a code from 1 to 16")));
        }
        let backoff_base = duration(backoff_base.as_ref(), "backoff_base")?.unwrap_or(BACKOFF_BASE_DEFAULT);
        let backoff_max = duration(backoff_max.as_ref(), "backoff_max")?.unwrap_or(BACKOFF_MAX_DEFAULT.max(backoff_base));
        if backoff_max < backoff_base {
            return Err(Wrong::new("backoff_max", "is shorter than backoff_base"));
        }
        Ok(Self {
            attempts: *attempts,
            on: Causes::told(*connect_failure, Causes::CONNECT_FAILURE)
                .with(Causes::told(*reset, Causes::RESET))
                .with(Causes::told(*refused_stream, Causes::REFUSED_STREAM))
                .with(Causes::told(*attempt_timeout, Causes::ATTEMPT_TIMEOUT)),
            statuses,
            grpc: grpc_statuses.iter().fold(0, |bits, code| bits | 1 << code),
            backoff_base,
            backoff_max,
            body_buffer_bytes: *body_buffer_bytes,
            explicit: true,
        })
    }
}
