//! What one who stands for a lease does next, pure: what was seen of it, the local steady time, who I am -> wait, read, write.
//!
//! No clock of another machine is believed. Whoever stands by counts from when it saw the Lease change for the last time, the holder from
//! before it sent the last write that was taken. As the server took the write between the two, the holder's time ends first, by
//! [`Terms::duration`] less [`Terms::hold`].

use std::time::Duration;

use tokio::time::Instant;

/// How long things last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who stands by takes over when the Lease has not changed for so long. In whole seconds, as the Lease says it.
    pub duration: Duration,
    /// The holder holds for so long from each renewal.
    pub hold: Duration,
    /// Renewals are so far apart.
    pub renew: Duration,
    /// Who stands by looks this often.
    pub look: Duration,
    /// One call takes no longer.
    pub call: Duration,
}

impl Terms {
    /// Who makes a Lease where there was none holds so long after that: another may believe still that it is the holder, or make it anew in
    /// its turn if it is deleted again. One renewal more than `duration`, so that a holder whose Lease is deleted goes on.
    fn probation(&self) -> Duration {
        self.duration + self.renew
    }
}

/// A takeover within 5 s of a death: at most `duration` and a `look` after the last renewal. A clean stop is seen at the next look. Where there
/// is no Lease (the first start, or somebody deleted it) its maker holds after 5 s.
pub const TERMS: Terms = Terms {
    duration: Duration::from_secs(4),
    hold: Duration::from_secs(3),
    renew: Duration::from_secs(1),
    look: Duration::from_millis(250),
    call: Duration::from_millis(1500),
};

/// A Lease that says it lasts longer is believed for so long only: a slip of the hand must not keep everybody out for ever.
pub const DURATION_MAX: Duration = Duration::from_secs(60);
/// After a write that met another version: whoever wrote it may do so again.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(20);
/// After a call that is not allowed to one who stands by: nothing but a person mends that. A holder asks again as after any failure: an API
/// server that has just started may not know its rights yet.
const FORBIDDEN_PAUSE: Duration = Duration::from_secs(2);

/// The Lease, as read. `None` in place of it: there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its `resourceVersion`: a write names it, and is refused when the Lease has changed since.
    pub version: String,
    /// Who holds it; empty: nobody, it was given back.
    pub holder: String,
    /// When its holder says that it renewed it, or gave it back. Only compared with itself; empty: nobody has ever held it.
    pub renewed: String,
    /// How long it lasts, as it says.
    pub duration: Option<Duration>,
    /// How often it has changed hands.
    pub transitions: u32,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bid {
    /// Over which version; `None`: the Lease is made.
    pub over: Option<String>,
    /// How often it will have changed hands.
    pub transitions: u32,
    /// It is mine already, and stays so.
    pub renewal: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before then.
    Wait(Instant),
    /// Read the Lease.
    Read,
    /// Write it.
    Write(Bid),
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The Lease as it is, or none.
    Read(Option<Seen>),
    /// A write was taken.
    Written(Seen),
    /// The Lease is not as the write took it to be.
    Overtaken,
    /// No answer, or none of use: what a write did is unknown.
    Failed,
    /// It is not allowed.
    Forbidden,
}

/// One who stands for a lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    me: String,
    terms: Terms,
    /// The Lease as it was last seen, and since when it is so.
    sighting: Option<(Option<Seen>, Instant)>,
    /// What is seen is up to date as far as we know: a write may name its version.
    fresh: bool,
    /// Mine until then.
    until: Option<Instant>,
    /// And not before then.
    from: Instant,
    /// The Lease is new, or somebody has made it anew: another may believe still that it is the holder.
    new: bool,
    /// The next call is not made before.
    pause: Instant,
    /// When the call under way was sent.
    sent: Instant,
}

impl Candidate {
    /// One that has seen nothing yet. `me` is nobody else's, in another life of the same pod either.
    pub fn new(me: &str, terms: Terms, now: Instant) -> Self {
        Self { me: me.to_owned(), terms, sighting: None, fresh: false, until: None, from: now, new: false, pause: now, sent: now }
    }

    /// Until when the lease is mine; `None`: it is not, at `now`.
    pub fn holds(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| self.from <= now && now < *until)
    }

    /// How often the Lease has changed hands, as last seen.
    pub fn transitions(&self) -> u32 {
        self.seen().map_or(0, |seen| seen.transitions)
    }

    /// Who holds it as far as is known; for messages.
    pub fn holder(&self) -> Option<&str> {
        self.seen().map(|seen| seen.holder.as_str()).filter(|holder| !holder.is_empty())
    }

    /// What is next. A call that it says is to be sent at `now`.
    pub fn next(&mut self, now: Instant) -> Step {
        if now < self.pause {
            return Step::Wait(if now < self.from { self.pause.min(self.from) } else { self.pause });
        }
        self.sent = now;
        let Some((seen, _)) = &self.sighting else { return Step::Read };
        if !self.fresh {
            return Step::Read;
        }
        let Some(seen) = seen else { return Step::Write(Bid { over: None, transitions: 0, renewal: false }) };
        let over = Some(seen.version.clone());
        if seen.holder == self.me {
            return Step::Write(Bid { over, transitions: seen.transitions, renewal: true });
        }
        Step::Write(Bid { over, transitions: seen.transitions.saturating_add(1), renewal: false })
    }

    /// Takes in what became of the call that [`Candidate::next`] asked for.
    pub fn on(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Read(seen) => self.saw(seen, now),
            Outcome::Written(seen) => {
                if std::mem::take(&mut self.new) && !self.nobody_held_since(now) {
                    self.from = now + self.terms.probation();
                }
                // From before the write was sent: whoever looks at the Lease saw it later.
                self.until = Some(self.sent + self.terms.hold);
                self.sighting = Some((Some(seen), now));
                self.fresh = true;
                self.pause = self.sent + self.terms.renew;
            }
            Outcome::Overtaken => {
                self.fresh = false;
                self.pause = now + OVERTAKEN_PAUSE;
            }
            // What was sent may have been taken: it is read before anything else is written.
            Outcome::Failed => {
                self.fresh = false;
                self.pause = now + self.terms.look;
            }
            Outcome::Forbidden => {
                self.fresh = false;
                let mine = self.until.is_some_and(|until| now < until);
                self.pause = now + if mine { self.terms.look } else { FORBIDDEN_PAUSE };
            }
        }
    }

    /// What gives the lease back, if it is mine: whoever stands by takes it at once. To be sent when nothing is done in its name any more.
    pub fn release(&self, now: Instant) -> Option<Bid> {
        let seen = self.seen().filter(|seen| seen.holder == self.me && self.fresh)?;
        self.holds(now).map(|_| Bid { over: Some(seen.version.clone()), transitions: seen.transitions, renewal: true })
    }

    fn saw(&mut self, seen: Option<Seen>, now: Instant) {
        let mark = |seen: &Option<Seen>| seen.as_ref().map(|seen| (seen.holder.clone(), seen.renewed.clone(), seen.transitions));
        // Someone may write labels on a Lease: that is no sign of life.
        let since = match &self.sighting {
            Some((before, since)) if mark(before) == mark(&seen) => *since,
            _ => now,
        };
        let taken = match &seen {
            Some(seen) if seen.holder == self.me => None,
            Some(seen) if seen.holder.is_empty() && !seen.renewed.is_empty() => {
                self.new = false;
                None
            }
            Some(seen) if !seen.holder.is_empty() => {
                (self.until, self.new) = (None, false);
                Some(seen.duration.unwrap_or(self.terms.duration).min(DURATION_MAX))
            }
            // Nobody has held it as it is: it was never used, or deleted under its holder. It is taken, which tells that holder, and held
            // once that one's time is over.
            _ => {
                self.new = true;
                None
            }
        };
        let free_at = taken.map(|lasts| since + lasts);
        self.fresh = free_at.is_none_or(|at| now >= at);
        self.pause = free_at.filter(|_| !self.fresh).map_or(now, |at| at.min(now + self.terms.look));
        self.sighting = Some((seen, since));
    }

    /// I hold, and wrote so lately that nobody can have held a Lease of its own since, though it was deleted: who made that one waits for
    /// [`Terms::probation`] from its answer, later than my write, and holds no longer than `hold` after its last renewal, before `now`.
    fn nobody_held_since(&self, now: Instant) -> bool {
        let unseen = self.terms.probation().saturating_sub(self.terms.hold);
        self.until.is_some_and(|until| self.holds(now).is_some() && now + self.terms.hold <= until + unseen)
    }

    fn seen(&self) -> Option<&Seen> {
        self.sighting.as_ref().and_then(|(seen, _)| seen.as_ref())
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
