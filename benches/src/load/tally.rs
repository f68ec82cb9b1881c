//! What became of the requests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;

use super::fault::Fault;
use super::schedule::Window;

/// Longest latency that is told apart.
const LATENCY_MAX: Duration = Duration::from_secs(3600);
/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// Counts of one runtime, or of all.
#[derive(Debug)]
pub struct Tally {
    /// Requests sent.
    pub sent: u64,
    /// Answered rightly.
    pub ok: u64,
    /// Not so, by reason.
    pub failed: BTreeMap<Fault, u64>,
    /// Due, and not sent when counting ended.
    pub late: u64,
    /// Bytes of answers' bodies that came while counting.
    pub bytes: u64,
    /// Latency of right answers, nanoseconds.
    pub latency: Histogram<u64>,
}

impl Tally {
    /// All zero.
    ///
    /// # Errors
    /// Never in practice: the bounds of the histogram are fixed.
    pub fn new() -> anyhow::Result<Self> {
        let most = u64::try_from(LATENCY_MAX.as_nanos()).unwrap_or(u64::MAX);
        let latency = Histogram::new_with_bounds(1, most, DIGITS).context("the histogram's bounds")?;
        Ok(Self { sent: 0, ok: 0, failed: BTreeMap::new(), late: 0, bytes: 0, latency })
    }

    /// Counts one outcome.
    pub fn finish(&mut self, outcome: Result<(), Fault>, latency: Duration) {
        match outcome {
            Ok(()) => {
                self.ok += 1;
                self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
            }
            Err(fault) => self.fail(fault, 1),
        }
    }

    /// Counts failures.
    pub fn fail(&mut self, fault: Fault, times: u64) {
        if times > 0 {
            *self.failed.entry(fault).or_default() += times;
        }
    }

    /// What was sent and got no outcome has failed.
    pub fn give_up(&mut self) {
        let unsent = self.failed.get(&Fault::Backlog).copied().unwrap_or(0);
        let answered = self.ok + self.failures() - unsent;
        self.fail(Fault::Unanswered, self.sent.saturating_sub(answered));
    }

    /// All failures.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Adds another runtime's counts.
    ///
    /// # Errors
    /// Never in practice: the histograms have the same bounds.
    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.sent += other.sent;
        self.ok += other.ok;
        self.late += other.late;
        self.bytes += other.bytes;
        other.failed.iter().for_each(|(fault, times)| self.fail(*fault, *times));
        self.latency.add(&other.latency).context("adding histograms")
    }
}

/// The counts of a running runtime, shared by its lanes.
#[derive(Debug)]
pub(super) struct Meter {
    /// When things count. Set before the first request is sent.
    pub window: Cell<Window>,
    /// The counts.
    pub tally: RefCell<Tally>,
}

impl Meter {
    /// Counts nothing until it is given a window.
    ///
    /// # Errors
    /// See [`Tally::new`].
    pub(super) fn new() -> anyhow::Result<Self> {
        let never = Window::new(Instant::now(), Duration::ZERO, Duration::ZERO);
        Ok(Self { window: Cell::new(never), tally: RefCell::new(Tally::new()?) })
    }

    /// Counts body bytes that came just now.
    pub(super) fn bytes(&self, count: usize) {
        if count > 0 && self.window.get().holds(Instant::now()) {
            self.tally.borrow_mut().bytes += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_one_outcome() {
        // Aim: what the backlog refused was never sent; what was sent and not answered is said to be so.
        let mut tally = Tally::new().unwrap();
        tally.sent = 5;
        tally.finish(Ok(()), Duration::from_micros(1));
        tally.fail(Fault::Backlog, 7);
        tally.fail(Fault::Timeout, 1);
        tally.give_up();
        assert_eq!(tally.failed, BTreeMap::from([(Fault::Backlog, 7), (Fault::Timeout, 1), (Fault::Unanswered, 3)]));
    }

    #[test]
    fn tallies_add_up() {
        // Aim: what two runtimes counted is one report, reason by reason.
        let (mut one, mut two) = (Tally::new().unwrap(), Tally::new().unwrap());
        one.finish(Ok(()), Duration::from_micros(50));
        one.finish(Err(Fault::Timeout), Duration::from_secs(10));
        two.finish(Ok(()), Duration::from_micros(150));
        two.finish(Err(Fault::Timeout), Duration::from_secs(10));
        two.fail(Fault::Status(503), 2);
        two.fail(Fault::Reset, 0);
        one.add(&two).unwrap();
        assert_eq!((one.ok, one.failures(), one.latency.len()), (2, 4, 2));
        assert_eq!(one.failed, BTreeMap::from([(Fault::Timeout, 2), (Fault::Status(503), 2)]));
    }
}
