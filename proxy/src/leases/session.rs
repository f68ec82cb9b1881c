//! One stream's questions and answers, without the stream.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use engine::Moment;
use engine::filter::guard::ObjectLimits;
use engine::limit::{Grant, KeyKnown, KeyStanding, numbers_sent};
use proto::mesh::{LimitAsk as Sent, LimitAsks, LimitGrant, LimitGrants, LimitKnown};
use tokio::sync::oneshot;

use super::unused::Unused;
use crate::snapshots::{Posed, unanswered};

/// Questions under way, and waiting to be sent; beyond it further ones wait where they come from.
const UNDER_WAY_MAX: usize = 16_384;
/// A question without an answer for so long: the store does not answer.
const SILENCE: Duration = Duration::from_millis(250);
/// A question without an answer for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct LeaseSession {
    node: String,
    next: u64,
    heard: bool,
    waiting: VecDeque<(u64, Sent)>,
    asked: BTreeMap<u64, Asked>,
    unused: Unused,
}

#[derive(Debug)]
struct Asked {
    posed: Posed,
    spent: u64,
    at: Moment,
}

impl LeaseSession {
    pub(super) fn new(node: String) -> Self {
        Self { node, next: 0, heard: false, waiting: VecDeque::new(), asked: BTreeMap::new(), unused: Unused::default() }
    }

    /// Says who asks.
    pub(super) fn hello(&self) -> LimitAsks {
        LimitAsks { node_id: self.node.clone(), asks: Vec::new() }
    }

    /// Whether the store has said anything; from the first asking on it has.
    pub(super) fn is_heard(&mut self) -> bool {
        std::mem::replace(&mut self.heard, true)
    }

    /// Whether no more questions are to be taken up.
    pub(super) fn is_full(&self) -> bool {
        self.asked.len() >= UNDER_WAY_MAX
    }

    /// Whether there is something to send.
    pub(super) fn has_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes questions up.
    pub(super) fn ask(&mut self, posed: impl Iterator<Item = Posed>, now: Moment) {
        for posed in posed {
            let ask = &posed.ask;
            let Some(sent) = sent(&ask.object, ask.limit, ask.key) else { continue };
            self.next += 1;
            self.waiting.push_back((self.next, Sent { id: self.next, want: ask.want, ..sent }));
            self.asked.insert(self.next, Asked { posed, spent: 0, at: now });
        }
    }

    /// The next questions to be sent, with what is to be told beside each.
    pub(super) fn batch(&mut self, most: usize, now: Moment) -> LimitAsks {
        let mut asks = Vec::with_capacity(self.waiting.len().min(most));
        for (id, mut sent) in self.waiting.drain(..self.waiting.len().min(most)) {
            if let Some(asked) = self.asked.get_mut(&id) {
                let (spent, known) = asked.posed.ask.object.account(asked.posed.ask.key, now);
                asked.spent = spent;
                sent.spent = spent;
                sent.known = known.map(known_sent);
            }
            asks.push(sent);
        }
        LimitAsks { node_id: String::new(), asks }
    }

    /// The store has answered.
    pub(super) fn granted(&mut self, told: LimitGrants, now: Moment) {
        for told in told.grants {
            let Some(Asked { posed, .. }) = self.asked.remove(&told.id) else { continue };
            if told.refused {
                unanswered(&posed);
                continue;
            }
            let ask = &posed.ask;
            ask.object.granted(ask.key, &grant(&told), now);
            if told.granted > 0 {
                self.unused.watch((&ask.object, ask.limit, ask.key), now);
            }
            // Who asked may have left.
            let _ = posed.told.map(|told: oneshot::Sender<()>| told.send(()));
        }
    }

    /// Whether a question has been without an answer for too long.
    pub(super) fn is_silent(&self, now: Moment) -> bool {
        self.asked.first_key_value().is_some_and(|(_, asked)| now.since(asked.at) >= SILENCE)
    }

    /// Forgets what was not answered, and gives back what lies idle.
    pub(super) fn look(&mut self, now: Moment) {
        while self.asked.first_key_value().is_some_and(|(_, asked)| now.since(asked.at) >= FORGOTTEN) {
            if let Some((_, asked)) = self.asked.pop_first() {
                // It may have been counted; told twice, it would be counted twice, so what was let through is lost.
                unanswered(&asked.posed);
            }
        }
        for (object, limit, key, back) in self.unused.due(now) {
            self.next += 1;
            let sent = sent(&object, limit, key);
            self.waiting.extend(sent.map(|sent| (self.next, Sent { id: self.next, back, ..sent })));
        }
    }
}

impl Drop for LeaseSession {
    /// Nobody answers any more. What was told of is told again: the store that heard it may be gone.
    fn drop(&mut self) {
        for (_, asked) in std::mem::take(&mut self.asked) {
            asked.posed.ask.object.unanswered(asked.posed.ask.key, asked.spent);
        }
    }
}

fn sent(object: &ObjectLimits, limit: usize, key: u128) -> Option<Sent> {
    let limit = object.limits.get(limit)?;
    Some(Sent {
        memory: object.memory.name.to_string(),
        limit: limit.name.to_string(),
        key: Bytes::copy_from_slice(&key.to_be_bytes()),
        numbers: Some(numbers_sent(&limit.numbers)),
        ..Sent::default()
    })
}

fn known_sent(known: KeyKnown) -> LimitKnown {
    let time = |time: Duration| prost_types::Duration::try_from(time).ok();
    LimitKnown { remaining: known.remaining, heard_ago: time(known.heard_ago), reset_in: time(known.reset_in) }
}

/// Times that are none count as no time.
fn grant(told: &LimitGrant) -> Grant {
    let time = |time: Option<prost_types::Duration>| time.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default();
    let standing = KeyStanding { remaining: told.remaining, reset: time(told.reset_in), retry: time(told.retry_in) };
    Grant { granted: told.granted, lasts: time(told.lasts), standing }
}
