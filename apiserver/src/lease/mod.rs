//! Which replica holds: a `coordination.k8s.io/v1` Lease, as Kubernetes' own controllers use it.
//!
//! [`Election::win`] stands by until the Lease is ours. The [`Term`] that it returns renews it; [`Tenure::lost`] says when it is over,
//! a second at least before anybody else may begin. Whatever is done in its name stops then, or has stopped before [`Term::release`].
//! A process that stood still in the middle of something learns it too late: what it writes is refused by the API server (see
//! [`crate::keep`]).

mod decide;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::{CallError, Fault, within};
pub use decide::{Bid, Candidate, DURATION_MAX, Outcome, Seen, Step, TERMS, Terms};

/// A renewal that comes so long after the one before is told: a second more, and the lease would be lost.
pub const RENEWAL_LATE: Duration = Duration::from_secs(2);

/// Where wall time comes from: for the times that a Lease shows, and for machines that were asleep.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// One replica's standing for a Lease.
pub struct Election {
    desk: Desk,
    candidate: Candidate,
}

/// What a candidate's calls need.
#[derive(Clone)]
struct Desk {
    leases: Api<Lease>,
    name: String,
    me: String,
    terms: Terms,
    wall: WallClock,
    /// The last error that was told.
    told: String,
}

impl Election {
    /// Stands for the Lease of that name. `me` is the holder's identity as people see it, and nobody else's: another life of the same pod
    /// must have another.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str, wall: WallClock) -> Self {
        let leases = Api::namespaced(client, namespace);
        let desk = Desk { leases, name: name.to_owned(), me: me.to_owned(), terms: TERMS, wall, told: String::new() };
        Self { desk, candidate: Candidate::new(me, TERMS, Instant::now()) }
    }

    /// Waits until the Lease is ours, however long the API server is away; what is wrong with it is logged when it changes. Dropped
    /// mid-way, it may be ours all the same: it ends by itself then.
    pub async fn win(&mut self) -> Term {
        loop {
            let now = Instant::now();
            if let Some(until) = self.candidate.holds(now) {
                // What it knows of the Lease is the term's; the next time it begins with a look.
                let won = std::mem::replace(&mut self.candidate, Candidate::new(&self.desk.me, self.desk.terms, now));
                return Term::begin(self.desk.clone(), won, until);
            }
            self.desk.step(&mut self.candidate).await;
        }
    }

    /// Who holds it, as far as is known.
    pub fn holder(&self) -> Option<&str> {
        self.candidate.holder()
    }
}

impl Desk {
    async fn step(&mut self, candidate: &mut Candidate) {
        let called = match candidate.next(Instant::now()) {
            Step::Wait(until) => return sleep_until(until).await,
            Step::Read => self.read().await.map(Outcome::Read),
            Step::Write(bid) => self.write(&bid, true).await.map(|lease| Outcome::Written(seen(&lease))),
        };
        let outcome = match called {
            Ok(outcome) => {
                self.told.clear();
                outcome
            }
            Err(CallError { fault: Fault::Conflict, .. }) => Outcome::Overtaken,
            Err(error) => {
                if self.told != error.text {
                    tracing::warn!(lease = self.name, me = self.me, "cannot stand for the lease: {error}");
                    self.told.clone_from(&error.text);
                }
                if error.fault == Fault::Forbidden { Outcome::Forbidden } else { Outcome::Failed }
            }
        };
        candidate.on(outcome, Instant::now());
    }

    async fn read(&self) -> Result<Option<Seen>, CallError> {
        Ok(within(self.terms.call, self.leases.get_opt(&self.name)).await?.as_ref().map(seen))
    }

    /// Writes the Lease, or makes it; what others have written on it stays. `mine`: else it is given back.
    async fn write(&self, bid: &Bid, mine: bool) -> Result<Lease, CallError> {
        let now = Timestamp::try_from((self.wall)()).map(MicroTime).ok();
        let mut spec = json!({
            "holderIdentity": mine.then_some(&self.me),
            "leaseDurationSeconds": self.terms.duration.as_secs(),
            "renewTime": now,
            "leaseTransitions": bid.transitions,
        });
        if !bid.renewal {
            spec["acquireTime"] = json!(now);
        }
        let Some(version) = &bid.over else {
            let made = json!({"metadata": {"name": self.name}, "spec": spec});
            let made = serde_json::from_value(made).map_err(kube::Error::SerdeError)?;
            return within(self.terms.call, self.leases.create(&PostParams::default(), &made)).await;
        };
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": spec}));
        within(self.terms.call, self.leases.patch(&self.name, &PatchParams::default(), &patch)).await
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    Seen {
        version: lease.resource_version().unwrap_or_default(),
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        duration: spec.lease_duration_seconds.and_then(|secs| u64::try_from(secs).ok()).map(Duration::from_secs),
        transitions: spec.lease_transitions.and_then(|times| u32::try_from(times).ok()).unwrap_or_default(),
    }
}

/// The time in which the Lease is ours, as whoever acts in its name sees it. Clones are one.
#[derive(Clone)]
pub struct Tenure {
    me: Arc<str>,
    number: u32,
    wall: WallClock,
    until: watch::Receiver<(Instant, SystemTime)>,
    lost: CancellationToken,
    gap: Arc<Gap>,
}

/// The largest gap between two renewals so far, in microseconds.
#[derive(Default)]
struct Gap(AtomicU64);

impl Gap {
    /// Between when a renewal that was taken was sent, and when the next one was, or the lease was lost for want of one.
    fn note(&self, gap: Duration) {
        self.0.fetch_max(u64::try_from(gap.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Tenure {
    /// Whether it lasts, at this moment. The wall clock counts, too: the other one stands still while a machine sleeps.
    pub fn holds(&self) -> bool {
        let (until, wall_until) = *self.until.borrow();
        !self.lost.is_cancelled() && Instant::now() < until && (self.wall)() < wall_until
    }

    /// Cancelled when it is over, for good; whatever is done in its name stops within a second.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// The largest gap between two renewals so far; from [`Terms::hold`] on it is lost.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_micros(self.gap.0.load(Ordering::Relaxed))
    }

    /// Ends it before its time: without its claims nothing can be done in its name. Who holds the [`Term`] gives the Lease back.
    pub(crate) fn give_up(&self) {
        self.lost.cancel();
    }

    /// Whose it is.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// How often the Lease had changed hands when it began: for people.
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// A lease won: renewed by a task of its own until it is lost, released, or dropped (then it is ours until it ends by itself).
pub struct Term {
    tenure: Tenure,
    /// No more renewals.
    end: DropGuard,
    task: JoinHandle<(Desk, Candidate)>,
}

impl Term {
    fn begin(desk: Desk, candidate: Candidate, until: Instant) -> Self {
        let (lost, end) = (CancellationToken::new(), CancellationToken::new());
        let wall_until = desk.wall_until(until);
        let (sender, receiver) = watch::channel((until, wall_until));
        let gap = Arc::<Gap>::default();
        let tenure = Tenure {
            me: desk.me.as_str().into(),
            number: candidate.transitions(),
            wall: desk.wall.clone(),
            until: receiver,
            lost: lost.clone(),
            gap: gap.clone(),
        };
        let task = tokio::spawn(renew(desk, candidate, (sender, gap), lost, end.clone()));
        Self { tenure, end: end.drop_guard(), task }
    }

    /// As it is handed on.
    pub fn tenure(&self) -> &Tenure {
        &self.tenure
    }

    /// Gives the Lease back, if it still is ours: whoever stands by takes it at its next look. For when nothing is done in its name any
    /// more. Takes as long as one call, or two.
    pub async fn release(self) {
        let Self { tenure, end, task } = self;
        drop(end);
        let Ok((desk, candidate)) = task.await else { return };
        tenure.lost.cancel();
        if let Some(bid) = candidate.release(Instant::now())
            && let Err(error) = desk.write(&bid, false).await
        {
            tracing::warn!(lease = desk.name, "the lease could not be given back, and ends by itself: {error}");
        }
    }
}

impl Desk {
    /// The same moment by the wall clock.
    fn wall_until(&self, until: Instant) -> SystemTime {
        (self.wall)() + until.saturating_duration_since(Instant::now())
    }
}

/// Renews until the end or the loss; the latter is told at the moment when it happens, whatever call is under way.
async fn renew(
    mut desk: Desk,
    mut candidate: Candidate,
    (until, gap): (watch::Sender<(Instant, SystemTime)>, Arc<Gap>),
    lost: CancellationToken,
    end: CancellationToken,
) -> (Desk, Candidate) {
    loop {
        let (mine_until, wall_until) = *until.borrow();
        let asleep = (desk.wall)() >= wall_until;
        let Some(held_until) = candidate.holds(Instant::now()).filter(|_| !asleep) else {
            // What was held until then was asked for so long before.
            gap.note(desk.terms.hold + Instant::now().saturating_duration_since(mine_until));
            tracing::warn!(lease = desk.name, me = desk.me, holder = candidate.holder(), "the lease is lost");
            lost.cancel();
            return (desk, candidate);
        };
        if held_until != mine_until {
            // Each is held as long from when it was sent: their ends are as far apart as they are.
            let apart = held_until.saturating_duration_since(mine_until);
            gap.note(apart);
            if apart >= RENEWAL_LATE {
                let (apart_ms, hold_ms) = (apart.as_millis(), desk.terms.hold.as_millis());
                tracing::warn!(lease = desk.name, apart_ms, hold_ms, "the lease was renewed late; this machine or the API server is slow");
            }
            until.send_replace((held_until, desk.wall_until(held_until)));
        }
        if end.is_cancelled() {
            return (desk, candidate);
        }
        // A wait may be broken off at any time; a call is not, but by the loss: what it did decides what is given back.
        if let Step::Wait(next) = candidate.next(Instant::now()) {
            tokio::select! {
                biased;
                () = end.cancelled() => {}
                () = sleep_until(next.min(held_until)) => {}
            }
            continue;
        }
        tokio::select! {
            biased;
            () = sleep_until(held_until) => {}
            () = desk.step(&mut candidate) => {}
        }
    }
}

#[cfg(test)]
mod tests;
