//! Services that policies ask before a request goes on: how many questions are under way, what came of them, and whether one is away. What is
//! known of one outlives pushes, by its kind and name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// Most questions that one service is asked at a time, of all workers; who comes beyond goes by what its object says for "away".
pub const CALLOUTS_UNDER_WAY_MAX: usize = 1_000;
/// Largest answer that is read.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What kind of object asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CalloutKind {
    /// Whether a request may go on.
    ExternalAuth,
    /// What an opaque token is.
    Introspection,
    /// Who has logged in, and whether a session goes on.
    OidcLogin,
}

impl CalloutKind {
    /// As metrics spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::ExternalAuth => "ExternalAuth",
            Self::Introspection => "Introspection",
            Self::OidcLogin => "OidcLogin",
        }
    }
}

/// What came of asking. `Remembered` and `Unchecked` are counted beside what else there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CalloutOutcome {
    /// It says yes.
    Allowed,
    /// It says no.
    Denied,
    /// It says no, and is on trial.
    WouldDeny,
    /// What it said before still counts.
    Remembered,
    /// It is not reached, or breaks off.
    Unreached,
    /// It does not answer in time.
    Silent,
    /// Its answer is none.
    Garbled,
    /// As many ask it as may.
    Full,
    /// A request went on without its word.
    Unchecked,
}

impl CalloutOutcome {
    /// Every one, in order; `outcome as usize` is its place.
    pub const ALL: [Self; 9] = [
        Self::Allowed,
        Self::Denied,
        Self::WouldDeny,
        Self::Remembered,
        Self::Unreached,
        Self::Silent,
        Self::Garbled,
        Self::Full,
        Self::Unchecked,
    ];

    /// As metrics spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldDeny => "would_deny",
            Self::Remembered => "remembered",
            Self::Unreached => "unreached",
            Self::Silent => "silent",
            Self::Garbled => "garbled",
            Self::Full => "full",
            Self::Unchecked => "unchecked",
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalloutAway {
    /// It is not reached, or breaks off.
    Unreached,
    /// Its time is over.
    Silent,
    /// What it says is too long, or nothing that can be read.
    Garbled,
    /// As many ask it as may, or there is no room for what it is to be shown.
    Full,
}

impl From<CalloutAway> for CalloutOutcome {
    fn from(away: CalloutAway) -> Self {
        match away {
            CalloutAway::Unreached => Self::Unreached,
            CalloutAway::Silent => Self::Silent,
            CalloutAway::Garbled => Self::Garbled,
            CalloutAway::Full => Self::Full,
        }
    }
}

/// An answer as it came.
#[derive(Clone, Debug, Default)]
pub struct CalloutAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// At most [`ANSWER_BYTES_MAX`].
    pub body: Bytes,
    /// What came behind the body.
    pub trailers: HeaderMap,
}

/// What came of a question.
#[allow(clippy::large_enum_variant, reason = "it is boxed where it is kept, and nearly all are the large one")]
#[derive(Clone, Debug)]
pub enum CalloutTold {
    /// There is an answer.
    Answer(CalloutAnswer),
    /// There is none.
    Away(CalloutAway),
    /// The client's body is longer than the service is shown.
    TooLong,
}

/// What is known of one service.
#[derive(Debug)]
pub struct CalloutLive {
    kind: CalloutKind,
    name: Arc<str>,
    under_way: AtomicUsize,
    counts: [AtomicU64; CalloutOutcome::ALL.len()],
    away: AtomicBool,
}

/// One question under way; it counts while it lives.
#[derive(Debug)]
pub struct CalloutPlace(Arc<CalloutLive>);

impl CalloutLive {
    /// Nobody was asked anything yet.
    pub fn new(kind: CalloutKind, name: &str) -> Arc<Self> {
        let (under_way, counts, away) = (AtomicUsize::new(0), Default::default(), AtomicBool::new(false));
        Arc::new(Self { kind, name: name.into(), under_way, counts, away })
    }

    /// A place for one more question; `None` at [`CALLOUTS_UNDER_WAY_MAX`].
    pub fn enter(self: &Arc<Self>) -> Option<CalloutPlace> {
        let place = CalloutPlace(Arc::clone(self));
        (self.under_way.fetch_add(1, Ordering::Relaxed) < CALLOUTS_UNDER_WAY_MAX).then_some(place)
    }

    /// Counts what came of a question.
    pub fn count(&self, outcome: CalloutOutcome) {
        if let Some(count) = self.counts.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        match outcome {
            CalloutOutcome::Allowed | CalloutOutcome::Denied | CalloutOutcome::WouldDeny => self.away.store(false, Ordering::Relaxed),
            CalloutOutcome::Unreached | CalloutOutcome::Silent | CalloutOutcome::Garbled => self.away.store(true, Ordering::Relaxed),
            CalloutOutcome::Remembered | CalloutOutcome::Full | CalloutOutcome::Unchecked => {}
        }
    }

    /// How often that came of it.
    pub fn counted(&self, outcome: CalloutOutcome) -> u64 {
        self.counts.get(outcome as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Whether the last question brought no answer.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }
}

impl Drop for CalloutPlace {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All services that somebody asks.
#[derive(Debug, Default)]
pub struct Callouts(Mutex<BTreeMap<CalloutName, Weak<CalloutLive>>>);

/// Kind and name of the object that asks.
type CalloutName = (CalloutKind, Arc<str>);

/// What is known of one service, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalloutReading {
    /// What asks.
    pub kind: CalloutKind,
    /// The object, or the rule.
    pub name: Arc<str>,
    /// Questions under way.
    pub under_way: usize,
    /// The last one brought no answer.
    pub away: bool,
    /// By place in [`CalloutOutcome::ALL`].
    pub counts: [u64; CalloutOutcome::ALL.len()],
}

impl Callouts {
    /// What is known of one service, which goes on as long as somebody asks it.
    pub fn adopt(&self, kind: CalloutKind, name: &str) -> Arc<CalloutLive> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key: CalloutName = (kind, name.into());
        if let Some(live) = known.get(&key).and_then(Weak::upgrade) {
            return live;
        }
        known.retain(|_, live| live.strong_count() > 0);
        let live = CalloutLive::new(kind, name);
        known.insert(key, Arc::downgrade(&live));
        live
    }

    /// What is known of each, in order.
    pub fn readings(&self) -> Vec<CalloutReading> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = |live: Arc<CalloutLive>| CalloutReading {
            kind: live.kind,
            name: Arc::clone(&live.name),
            under_way: live.under_way.load(Ordering::Relaxed),
            away: live.is_away(),
            counts: CalloutOutcome::ALL.map(|outcome| live.counted(outcome)),
        };
        known.values().filter_map(Weak::upgrade).map(reading).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_asked_so_much_at_a_time() {
        // Aim: the bound is of one service, a place comes free with its question, and what is known goes with whoever asks.
        let callouts = Callouts::default();
        let live = callouts.adopt(CalloutKind::ExternalAuth, "shop/a");
        let other = callouts.adopt(CalloutKind::Introspection, "shop/a");
        assert!(Arc::ptr_eq(&live, &callouts.adopt(CalloutKind::ExternalAuth, "shop/a")));
        let mut places: Vec<_> = (0..CALLOUTS_UNDER_WAY_MAX).map(|_| live.enter().unwrap()).collect();
        assert!(live.enter().is_none() && other.enter().is_some());
        places.pop();
        assert!(live.enter().is_some());
        live.count(CalloutOutcome::Silent);
        assert!(live.is_away());
        live.count(CalloutOutcome::Full);
        assert!(live.is_away());
        live.count(CalloutOutcome::Denied);
        assert!(!live.is_away());
        drop(places);
        let read = callouts.readings();
        assert_eq!(
            read.iter().map(|read| (read.kind.text(), read.under_way)).collect::<Vec<_>>(),
            [("ExternalAuth", 0), ("Introspection", 0)]
        );
        assert_eq!((read[0].counts[1], read[0].counts[5]), (1, 1));
        drop((live, other));
        assert!(callouts.readings().is_empty());
    }
}
