//! A second attempt beside the first, where that takes longer than most do.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use engine::Moment;
use engine::failure::Failure;
use engine::health::Outcome;
use engine::model::{Cluster, Endpoint, Policy};
use tokio::time::{Sleep, sleep};

use crate::observe::Account;
use crate::pool::{Freshness, Lease, Resend};
use crate::road::attempt::{Hand, Manner, Spare, Tries, make_within, outcome};
use crate::road::shared::Shared;
use crate::tls::Carries;

/// What a call can race its attempt with. Dropping it gives up the second one, if that is under way.
pub struct Hedging<'a> {
    cluster: &'a Arc<Cluster>,
    timer: Option<Pin<Box<Sleep>>>,
    max_percent: f64,
    /// Of each attempt.
    limit: Option<Duration>,
    spare: Option<&'a Spare>,
    second: Option<Second>,
}

/// The second attempt while it is under way.
struct Second {
    endpoint: Arc<Endpoint>,
    began: Moment,
    making: Pin<Box<dyn Future<Output = Box<MadeBeside>>>>,
}

/// A second attempt that was made, with all that is its own.
pub struct MadeBeside {
    /// What it has in hand.
    pub hand: Hand,
    /// When it began.
    pub began: Instant,
    /// What came of it.
    pub result: Result<(), Failure>,
}

impl<'a> Hedging<'a> {
    /// Set for the latency that most requests stay below; never where that is not known yet, the request cannot be sent twice, or its client's
    /// session says where it goes.
    pub fn of(policy: &Policy, cluster: &'a Arc<Cluster>, tries: &Tries, spare: Option<&'a Spare>) -> Self {
        let mut hedging = Self { cluster, timer: None, max_percent: 0.0, limit: policy.attempt_timeout, spare, second: None };
        if let (Some(hedge), Some(spare)) = (&policy.hedge, spare)
            && !tries.is_at_home()
            && spare.is_complete()
            && hedge.covers(&spare.head.method)
        {
            hedging.timer = cluster.live.sketch.quantile(hedge.quantile * 100.0).map(|after| Box::pin(sleep(after)));
            hedging.max_percent = hedge.max_percent;
        }
        hedging
    }

    /// Whether a second attempt is under way.
    pub const fn waits(&self) -> bool {
        self.second.is_some()
    }

    /// Whether the time for it has come; once.
    pub fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        if due {
            self.timer = None;
        }
        due
    }

    /// Starts it, where there is another endpoint and the budget allows it.
    pub fn start(&mut self, shared: &Rc<Shared>, tries: &mut Tries, carries: Carries, account: &mut Account) {
        let (cluster, limit) = (self.cluster, self.limit);
        let Some(spare) = self.spare else { return };
        let began = shared.clock.now();
        let now = shared.moment(began);
        if !tries.leave(Some(cluster)) || !cluster.live.budget.hedge(&cluster.policy.budget, self.max_percent, now) {
            return;
        }
        let Ok(to) = tries.next(shared, Some(cluster)) else { return };
        account.hedged(to.endpoint.address);
        let (shared, outgoing, endpoint) = (Rc::clone(shared), spare.outgoing(), Arc::clone(&to.endpoint));
        let making = Box::pin(async move {
            let mut hand = Hand { to: Some(to), ..Hand::of(outgoing) };
            // Interim answers are passed on from the first only.
            let manner = Manner { carries, freshness: Freshness::Any, downstream: None, again: Resend::Never };
            let result = make_within(&shared, manner, &mut hand, limit).await;
            Box::new(MadeBeside { hand, began, result })
        });
        self.second = Some(Second { endpoint, began: now, making });
    }

    /// Ready when the second attempt was made.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Box<MadeBeside>> {
        let Some(second) = &mut self.second else { return Poll::Pending };
        let polled = second.making.as_mut().poll(cx);
        if polled.is_ready() {
            self.second = None;
        }
        polled
    }

    /// The second attempt failed: its endpoint is told, and not asked again.
    pub fn failed(&self, shared: &Shared, tries: &mut Tries, made: &MadeBeside, account: &mut Account) {
        let (Some(to), Err(failure)) = (&made.hand.to, &made.result) else { return };
        tries.avoid(to.endpoint.address);
        let outcome = outcome(failure, made.hand.lease.as_ref().is_some_and(Lease::was_kept));
        if let Some(ejected) = self.cluster.told(&to.endpoint, outcome, shared.moment(shared.clock.now())) {
            account.ejected(&to.endpoint, ejected);
        }
    }
}

impl Drop for Hedging<'_> {
    fn drop(&mut self) {
        if let Some(second) = &self.second {
            self.cluster.told(&second.endpoint, Outcome::Cancelled, second.began);
        }
    }
}
