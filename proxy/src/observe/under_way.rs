//! What the application is answering just now, so that what it asks for meanwhile can be taken for a part of that where it says nothing
//! itself. A guess, and told as one: `meshwright.link`.

use std::time::{Duration, Instant};

use super::trace::Context;

/// Requests that one worker remembers while they are under way; further ones are counted.
const UNDER_WAY_MAX: usize = 64;
/// A request that takes longer (a stream, a tunnel) says nothing of what the application asks for besides.
const INFERRED_WITHIN: Duration = Duration::from_secs(30);

/// Where a request stands among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnderWayPlace(u8);

impl UnderWayPlace {
    /// It is not among them.
    pub(super) const NONE: Self = Self(u8::MAX);
    /// It is counted only.
    const BEYOND: Self = Self(u8::MAX - 1);
}

/// How a request that brought no trace came by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TraceLink {
    /// It brought one, or nothing could be guessed.
    #[default]
    None,
    /// It is taken for a part of the only request that the application is answering.
    Inferred,
    /// The application is answering so many: no guess is made.
    Candidates(u8),
}

/// What can be said of a request that brought no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guess {
    /// The application answers nothing.
    Nothing,
    /// It answers one request only: its span.
    Only(Context),
    /// It answers several.
    Several(u8),
}

/// Requests to the application that are under way at one worker.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    places: Vec<Option<(Context, Instant)>>,
    free: Vec<u8>,
    beyond: u32,
}

impl UnderWay {
    /// One begins. `context`: what the application finds in its head.
    pub(super) fn enter(&mut self, context: Context, now: Instant) -> UnderWayPlace {
        let entered = Some((context, now));
        if let Some(place) = self.free.pop() {
            self.places[usize::from(place)] = entered;
            return UnderWayPlace(place);
        }
        if self.places.len() >= UNDER_WAY_MAX {
            self.beyond += 1;
            return UnderWayPlace::BEYOND;
        }
        self.places.push(entered);
        UnderWayPlace(u8::try_from(self.places.len() - 1).unwrap_or(u8::MAX))
    }

    /// It ends.
    pub(super) fn leave(&mut self, place: UnderWayPlace) {
        match place {
            UnderWayPlace::NONE => {}
            UnderWayPlace::BEYOND => self.beyond -= 1,
            UnderWayPlace(place) => {
                self.places[usize::from(place)] = None;
                self.free.push(place);
            }
        }
    }

    /// What a request that begins now may be a part of.
    pub(super) fn guess(&self, now: Instant) -> Guess {
        let recent = |began: Instant| now.saturating_duration_since(began) <= INFERRED_WITHIN;
        let mut found = self.places.iter().flatten().filter(|(_, began)| recent(*began));
        let Some((context, _)) = found.next() else {
            return if self.beyond == 0 { Guess::Nothing } else { Guess::Several(u8::MAX) };
        };
        match found.count() + self.beyond as usize {
            0 => Guess::Only(*context),
            more => Guess::Several(u8::try_from(more + 1).unwrap_or(u8::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: one alone is the guess, several are their number, streams and what is over count no more, and what is beyond the bound is counted.
    #[test]
    fn only_the_only_one_is_guessed() {
        let start = Instant::now();
        let context = |span_id| Context { trace_id: 1, span_id, parent: None, sampled: true };
        let mut all = UnderWay::default();
        assert_eq!(all.guess(start), Guess::Nothing);
        let stream = all.enter(context(1), start);
        assert_eq!(all.guess(start), Guess::Only(context(1)));
        let later = start + INFERRED_WITHIN + Duration::from_millis(1);
        assert_eq!(all.guess(later), Guess::Nothing);
        let second = all.enter(context(2), later);
        assert_eq!(all.guess(later), Guess::Only(context(2)));
        let third = all.enter(context(3), later);
        assert_eq!(all.guess(later), Guess::Several(2));
        all.leave(second);
        assert_eq!(all.guess(later), Guess::Only(context(3)));
        all.leave(stream);
        all.leave(third);
        all.leave(UnderWayPlace::NONE);
        assert_eq!(all.guess(later), Guess::Nothing);
        let many: Vec<_> = (0..UNDER_WAY_MAX as u64 + 5).map(|id| all.enter(context(id), later)).collect();
        assert_eq!(all.guess(later), Guess::Several(UNDER_WAY_MAX as u8 + 5));
        assert_eq!(all.places.len(), UNDER_WAY_MAX);
        many.into_iter().for_each(|place| all.leave(place));
        assert_eq!((all.guess(later), all.beyond, all.free.len()), (Guess::Nothing, 0, UNDER_WAY_MAX));
    }
}
