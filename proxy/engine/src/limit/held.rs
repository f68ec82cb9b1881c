//! One key's share of a limit that is kept elsewhere, as a replica holds it.
//!
//! A replica takes some of a key's share ahead and spends it by itself; when half of that is spent it asks for more beside the road. Only who
//! finds nothing in hand waits for the store. What is held and not used for a while is given back ([`HeldShare::idle`]).

use std::time::Duration;

use super::book::{Grant, KeyKnown};
use super::numbers::{KeyStanding, Meter, Now, Numbers};
use crate::Moment;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldShare {
    /// In hand.
    have: u64,
    /// What is in hand is no good from then on: its window is over.
    have_until: Moment,
    /// A question is under way since.
    asked: Option<Moment>,
    /// The store has nothing before.
    empty_until: Moment,
    /// What the store had left when it was heard last, without what is in hand; when that was, and when all of it is there again.
    left: u64,
    heard: Moment,
    reset_at: Moment,
    /// When the key was used last.
    used: Moment,
    /// While the store is away, until it answers again: the key's count by this replica alone.
    alone: Option<Meter>,
    /// What was let through by that, and is to be told to the store.
    owed: u64,
    /// The store that has been told what is known of the key; another one has to be.
    told: u32,
    /// The numbers that the store was heard about ([`Numbers::terms`]).
    terms: u64,
}

/// What becomes of a request that wants a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// It was in hand. More is to be asked for beside the road, if any.
    Taken {
        /// How the key stands.
        standing: KeyStanding,
        /// So much.
        more: u64,
    },
    /// The store has none.
    Empty(KeyStanding),
    /// Nothing is in hand: the store is to be asked for so much, and the request to try again.
    Ask(u64),
}

/// A question that nobody has answered for so long is asked again.
const ASKED_AGAIN: Duration = Duration::from_millis(500);
/// A store that has nothing is let be for so long at least.
const EMPTY_REST: Duration = Duration::from_millis(5);

impl HeldShare {
    /// Of a limit with these numbers. That the store has nothing holds for the numbers it was asked about: after an edit it is asked again.
    pub fn under(&mut self, numbers: &Numbers) -> &mut Self {
        let terms = numbers.terms();
        if std::mem::replace(&mut self.terms, terms) != terms {
            self.empty_until = Moment::default();
        }
        self
    }

    /// Takes `cost`, of a limit of which up to `ahead` are taken ahead. With zero, each request asks.
    pub fn take(&mut self, cost: u64, ahead: u64, now: Moment) -> Taking {
        self.used = now;
        self.expire(now);
        if cost <= self.have {
            self.have -= cost;
            let low = self.have <= ahead / 2 && ahead > 0 && now >= self.empty_until;
            let more = if low && self.may_ask(now) { ahead - self.have } else { 0 };
            if more > 0 {
                self.asked = Some(now);
            }
            return Taking::Taken { standing: self.standing(now), more };
        }
        if now < self.empty_until {
            return Taking::Empty(KeyStanding { retry: self.empty_until.since(now), ..self.standing(now) });
        }
        // Each that waits asks for its own part; only the first asks for what is to be ahead.
        let more = if self.may_ask(now) { ahead } else { 0 };
        self.asked = Some(now);
        Taking::Ask((cost - self.have).saturating_add(more))
    }

    /// Until `cost` is there, of a store that has nothing: it says when one is, and of a rate the others come back after that, one by one. What is
    /// in hand has to come back no more.
    pub fn until(&self, cost: u64, numbers: &Numbers, now: Moment) -> Duration {
        let short = cost.min(numbers.whole()).saturating_sub(self.have);
        self.empty_until.since(now).saturating_add(numbers.comes_back_in(short.saturating_sub(1)))
    }

    /// The store has answered.
    pub fn granted(&mut self, grant: &Grant, now: Moment) {
        self.expire(now);
        (self.asked, self.alone) = (None, None);
        self.have = self.have.saturating_add(grant.granted);
        // An answer to what was asked before the store went away: what went out meanwhile is paid from it.
        let paid = self.owed.min(self.have);
        (self.have, self.owed) = (self.have - paid, self.owed - paid);
        if grant.granted > 0 {
            self.have_until = now.plus(grant.lasts);
        }
        self.left = grant.standing.remaining;
        (self.heard, self.reset_at) = (now, now.plus(grant.standing.reset));
        // A partial grant says that there is no more, too. Where there is more, no moment says otherwise: who waited for this answer goes by
        // the moment at which it came, which is before it.
        let retry = grant.standing.retry;
        self.empty_until = if retry.is_zero() { Moment::default() } else { now.plus(retry.max(EMPTY_REST)) };
    }

    /// There will be no answer: it may be asked again, and told again of what was let through.
    pub fn unanswered(&mut self, spent: u64) {
        self.asked = None;
        self.owed = self.owed.saturating_add(spent);
        // It may not have heard what is known, either.
        self.told = 0;
    }

    /// What a replica that is on its own lets through: its share of the limit, beginning with its share of what was left.
    ///
    /// # Errors
    /// That is used up.
    pub fn alone(&mut self, cost: u64, share: &Numbers, replicas: u64, now: Now) -> Result<KeyStanding, KeyStanding> {
        self.used = now.moment;
        let begun = self.alone.is_some();
        let mut meter = self.alone.unwrap_or_default();
        if !begun && self.heard > Moment::default() && now.moment < self.reset_at {
            let left = (self.left / replicas.max(1)).saturating_add(self.have);
            share.at_least(&mut meter, left, now);
        }
        let taken = share.take(&mut meter, cost, now);
        self.alone = Some(meter);
        if taken.is_ok() {
            self.owed = self.owed.saturating_add(cost.saturating_sub(self.have));
            self.have = self.have.saturating_sub(cost);
        }
        taken
    }

    /// What was let through without the store's knowing, which it is told now.
    pub const fn owed(&mut self) -> u64 {
        std::mem::replace(&mut self.owed, 0)
    }

    /// A request took more in the end than at first, or less.
    pub fn settle(&mut self, cost: u64, took: u64) {
        self.have = self.have.saturating_add(cost.saturating_sub(took));
        let more = took.saturating_sub(cost);
        self.owed = self.owed.saturating_add(more.saturating_sub(self.have));
        self.have = self.have.saturating_sub(more);
    }

    /// Puts a part back that was taken for a request which was not let through.
    pub fn untake(&mut self, cost: u64) {
        self.have = self.have.saturating_add(cost);
    }

    /// What is in hand of a key that was not used for `rest`, to be given back.
    pub fn idle(&mut self, rest: Duration, now: Moment) -> Option<u64> {
        self.expire(now);
        (self.have > 0 && now.since(self.used) >= rest).then(|| std::mem::take(&mut self.have))
    }

    /// Whether the store has nothing now.
    pub fn is_empty(&self, now: Moment) -> bool {
        now < self.empty_until
    }

    /// In hand.
    pub const fn have(&self) -> u64 {
        self.have
    }

    /// What this replica knows of the key, for a store that has not heard it from here: it may be one that begins anew.
    pub fn known(&mut self, store: u32, now: Moment) -> Option<KeyKnown> {
        if std::mem::replace(&mut self.told, store) == store {
            return None;
        }
        let reset_in = self.reset_at.since(now);
        (self.heard > Moment::default() && !reset_in.is_zero()).then_some(KeyKnown {
            remaining: self.left,
            heard_ago: now.since(self.heard),
            reset_in,
        })
    }

    /// Whether a store that has not heard from here what is known of the key is to be told without being asked for anything: one that begins
    /// anew would give to others what this replica knows to be used up.
    pub fn tells(&mut self, store: u32, now: Moment) -> bool {
        let tells = self.told != store && self.heard > Moment::default() && self.may_ask(now);
        if tells {
            self.asked = Some(now);
        }
        tells
    }

    /// How the key stands, as far as this replica knows.
    pub fn standing(&self, now: Moment) -> KeyStanding {
        KeyStanding { remaining: self.left.saturating_add(self.have), reset: self.reset_at.since(now), retry: Duration::ZERO }
    }

    fn may_ask(&self, now: Moment) -> bool {
        self.asked.is_none_or(|asked| now.since(asked) >= ASKED_AGAIN)
    }

    fn expire(&mut self, now: Moment) {
        if self.have > 0 && now >= self.have_until {
            self.have = 0;
        }
    }
}
