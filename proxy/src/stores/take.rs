//! Questions as the script takes them, and what it answers; those about sessions stand beside them (`kept`).

use std::sync::Arc;
use std::time::Duration;

use engine::Moment;
use engine::filter::guard::ObjectLimits;
use engine::limit::{Grant, KeyKnown, KeyStanding, Numbers};
use redis::{Cmd, Value};
use tokio::sync::{mpsc, oneshot};

use super::fault::{StoreFault, refused};
use super::kept;
use super::link::ANSWER_BYTES_MAX;
use crate::leases::Unused;
use crate::snapshots::{Posed, PosedCommand, PosedElsewhere};

/// What decides a question, at the server.
pub(super) const SCRIPT: &str = include_str!("take.lua");

/// One question under way: one command about one key.
#[derive(Debug)]
pub(super) enum Asked {
    /// To count.
    Limit(AskedLimit),
    /// To keep a session, or to say what is kept.
    Command(PosedCommand),
}

/// One question about a limit.
#[derive(Debug)]
pub(super) struct AskedLimit {
    object: Arc<ObjectLimits>,
    limit: usize,
    key: u128,
    want: u64,
    back: u64,
    spent: u64,
    known: Option<KeyKnown>,
    told: Option<oneshot::Sender<()>>,
}

/// What became of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// So much of it is there.
    Counted { granted: u64, standing: KeyStanding },
    /// Its window is not the one that is open.
    Turned,
}

impl Asked {
    /// A request's, with what the store is to be told beside it.
    pub(super) fn of(posed: PosedElsewhere, now: Moment) -> Self {
        let Posed { ask, told } = match posed {
            PosedElsewhere::Limit(posed) => posed,
            PosedElsewhere::Command(posed) => return Self::Command(posed),
        };
        let (spent, known) = ask.object.account(ask.key, now);
        Self::Limit(AskedLimit { object: ask.object, limit: ask.limit, key: ask.key, want: ask.want, back: 0, spent, known, told })
    }

    /// What is given back.
    pub(super) fn giving_back((object, limit, key, back): (Arc<ObjectLimits>, usize, u128, u64)) -> Self {
        Self::Limit(AskedLimit { object, limit, key, want: 0, back, spent: 0, known: None, told: None })
    }

    /// What the key is called at a server. `None`: there is no such limit any more.
    pub(super) fn key(&self, key_prefix: &str) -> Option<String> {
        match self {
            Self::Limit(asked) => asked.key(key_prefix),
            Self::Command(posed) => Some(kept::key(posed, key_prefix)),
        }
    }

    /// Runs the script of that digest, or what else is to be done; `wall_secs` is the server's own time. `None`: there is no such limit any more.
    pub(super) fn command(&self, (script, key_prefix): (&str, &str), wall_secs: u64) -> Option<Cmd> {
        match self {
            Self::Limit(asked) => asked.command((script, key_prefix), wall_secs),
            Self::Command(posed) => Some(kept::command(posed, key_prefix)),
        }
    }

    /// How long the answer is at most.
    pub(super) const fn answer_bytes_max(&self) -> u64 {
        match self {
            Self::Limit(_) => ANSWER_BYTES_MAX,
            Self::Command(_) => kept::ANSWER_BYTES_MAX,
        }
    }

    /// There will be no answer.
    pub(super) fn unanswered(self) {
        if let Self::Limit(asked) = self {
            asked.object.unanswered(asked.key, asked.spent);
        }
    }
}

impl AskedLimit {
    fn key(&self, key_prefix: &str) -> Option<String> {
        let limit = self.object.limits.get(self.limit)?;
        Some(format!("{key_prefix}{}/{}:{:032x}", self.object.memory.name, limit.name, self.key))
    }

    fn command(&self, (script, key_prefix): (&str, &str), wall_secs: u64) -> Option<Cmd> {
        let limit = self.object.limits.get(self.limit)?;
        let mut command = redis::cmd("EVALSHA");
        command.arg(script).arg(1).arg(self.key(key_prefix)?);
        match &limit.numbers {
            Numbers::Rate(rate) => {
                let (amount, per) = rate.pace();
                command.arg("rate").arg(rate.burst()).arg(amount).arg(micros(per));
            }
            Numbers::Quota(quota) => {
                let window = quota.window(wall_secs);
                command.arg("quota").arg(quota.amount()).arg(window.begins).arg(window.ends);
            }
        }
        command.arg(self.want).arg(self.back).arg(self.spent);
        match self.known {
            Some(known) => command.arg(known.remaining).arg(micros(known.heard_ago)),
            None => command.arg(-1).arg(0),
        };
        Some(command)
    }

    /// The store has answered.
    fn granted(self, (granted, standing): (u64, KeyStanding), now: Moment) -> Option<Given> {
        let limit = self.object.limits.get(self.limit)?;
        let granted = granted.min(self.want);
        if self.want > 0 {
            self.object.granted(self.key, &Grant::of(granted, standing, &limit.numbers), now);
        }
        // Who asked may have left.
        let _ = self.told.map(|told| told.send(()));
        (granted > 0).then_some((self.object, self.limit, self.key))
    }
}

/// What an answer comes to.
#[derive(Debug)]
pub(super) enum Settled {
    /// It is noted.
    Done,
    /// The server's window is another one, by its clock, seconds since 1970: the question is put once more.
    Again(Asked, u64),
    /// It is none, or the server refuses; who asked knows that there is none.
    Wrong(StoreFault),
}

/// Notes what a server says to a question.
pub(super) fn settle(asked: Asked, value: &Value, now: Moment, unused: &mut Unused) -> Settled {
    let asked = match asked {
        Asked::Limit(asked) => asked,
        Asked::Command(posed) => return kept::told(posed, value).map_or_else(Settled::Wrong, |()| Settled::Done),
    };
    match answer(value) {
        Ok((Answer::Counted { granted, standing }, _)) => {
            if let Some((object, limit, key)) = asked.granted((granted, standing), now) {
                unused.watch((&object, limit, key), now);
            }
            Settled::Done
        }
        Ok((Answer::Turned, secs)) => Settled::Again(Asked::Limit(asked), secs),
        Err(fault) => {
            Asked::Limit(asked).unanswered();
            Settled::Wrong(fault)
        }
    }
}

/// Waits for something, while nobody who asks is kept waiting. `None`: nobody can ask any more.
pub(super) async fn meanwhile<T>(questions: &mut mpsc::Receiver<PosedElsewhere>, what: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(what);
    loop {
        tokio::select! {
            biased;
            done = &mut what => return Some(done),
            posed = questions.recv() => posed?.unanswered(),
        }
    }
}

/// Whose share has grown.
pub(super) type Given = (Arc<ObjectLimits>, usize, u128);

/// Microseconds with what is left of nanoseconds, as Lua reads numbers.
fn micros(time: Duration) -> String {
    format!("{}.{:03}", time.as_micros(), time.subsec_nanos() % 1_000)
}

/// Reads an answer of the script, and when it was given, seconds since 1970.
pub(super) fn answer(value: &Value) -> Result<(Answer, u64), StoreFault> {
    let numbers = match value {
        Value::ServerError(error) => return Err(refused(error)),
        Value::Array(numbers) => numbers.as_slice(),
        _ => return Err(StoreFault::unreadable("it does not answer as the script does")),
    };
    let number = |value: &Value| if let Value::Int(number) = value { u64::try_from(*number).ok() } else { None };
    let read: Option<Vec<u64>> = numbers.iter().map(number).collect();
    match read.as_deref() {
        Some([0, granted, remaining, reset, retry, secs, _]) => {
            let standing =
                KeyStanding { remaining: *remaining, reset: Duration::from_micros(*reset), retry: Duration::from_micros(*retry) };
            Ok((Answer::Counted { granted: *granted, standing }, *secs))
        }
        Some([1, _, _, _, _, secs, _]) => Ok((Answer::Turned, *secs)),
        _ => Err(StoreFault::unreadable("it does not answer as the script does")),
    }
}

/// The server's clock, out of the answer to TIME: seconds since 1970.
pub(super) fn clock(value: &Value) -> Result<u64, StoreFault> {
    let first = match value {
        Value::ServerError(error) => return Err(refused(error)),
        Value::Array(parts) => parts.first(),
        _ => None,
    };
    match first {
        Some(Value::BulkString(secs)) => std::str::from_utf8(secs).ok().and_then(|secs| secs.parse().ok()),
        Some(Value::Int(secs)) => u64::try_from(*secs).ok(),
        _ => None,
    }
    .ok_or_else(|| StoreFault::unreadable("it does not say what time it is"))
}
