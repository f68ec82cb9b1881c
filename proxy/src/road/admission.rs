//! Room at a destination: who is under way there, who waits for that, and who is turned away.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;

use engine::failure::{Failure, Reason};
use engine::gate::{Enter, Pass};
use engine::model::Cluster;
use tokio::time::sleep;

use crate::ground::patience::Overdue;
use crate::road::reply::too_late;

/// A request's place at its destination. Dropping it leaves it to the next.
pub struct Admission {
    /// 0 is the highest.
    class: u8,
    pass: Option<Pass>,
}

impl Admission {
    /// None yet.
    pub const fn of(class: u8) -> Self {
        Self { class, pass: None }
    }

    /// Waits for a place, as long as the destination's policy allows, within the time of the whole request. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Reason::Overflow`]: too many wait, the wait was too long, or a more important request took the place.
    pub async fn enter(&mut self, cluster: &Cluster, overdue: &mut Overdue) -> Result<(), Failure> {
        let limits = &cluster.policy.limits;
        let ticket = match cluster.live.gate.enter(limits, self.class) {
            Enter::In(pass) => {
                self.pass = Some(pass);
                return Ok(());
            }
            Enter::Full => return Err(full(cluster, "as many as may wait already")),
            Enter::Wait(ticket) => ticket,
        };
        let mut patience = limits.pending_timeout.map(|wait| Box::pin(sleep(wait)));
        let mut ticket = pin!(ticket);
        let pass = poll_fn(|cx| {
            if let Poll::Ready(called) = ticket.as_mut().poll(cx) {
                return Poll::Ready(called.map_err(|_| full(cluster, "a more important request took its place")));
            }
            if let Poll::Ready(reason) = overdue.poll(cx) {
                return Poll::Ready(Err(too_late(reason)));
            }
            if patience.as_mut().is_some_and(|patience| patience.as_mut().poll(cx).is_ready()) {
                return Poll::Ready(Err(full(cluster, "it waited as long as it may")));
            }
            Poll::Pending
        })
        .await?;
        self.pass = Some(pass);
        Ok(())
    }
}

#[cold]
fn full(cluster: &Cluster, why: &str) -> Failure {
    let limit = cluster.policy.limits.requests.unwrap_or_default();
    Failure::new(Reason::Overflow, format!("cluster {} has {limit} requests under way, which is its limit, and {why}", cluster.name))
}
