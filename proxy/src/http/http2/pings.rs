//! Questions to a client whether it lives (RFC 9113, section 6.7): a machine that has died says nothing, and its connection would be kept for as long
//! as the kernel believes in it.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::ground::limits::PING_WAIT;

/// See the module. One per connection that is to be asked; it must be polled by the connection's task.
pub(super) struct Pings {
    pings: PingPong,
    every: Duration,
    timer: Pin<Box<Sleep>>,
    /// A question is under way.
    asked: bool,
    unanswered: bool,
}

impl Pings {
    /// The first question comes after `every`.
    pub(super) fn new(pings: PingPong, every: Duration) -> Self {
        Self { pings, every, timer: Box::pin(sleep(every)), asked: false, unanswered: false }
    }

    /// The client did not answer in time.
    pub(super) const fn unanswered(&self) -> bool {
        self.unanswered
    }

    /// Whether there is a question that the connection has to send. Wakes the task when there is more to do.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        // An error is the connection's end, which it tells itself.
        if self.asked && matches!(self.pings.poll_pong(cx), Poll::Ready(Ok(_))) {
            self.asked = false;
            self.timer.as_mut().reset(Instant::now() + self.every);
        }
        if self.unanswered || self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        if self.asked {
            tracing::debug!("an HTTP/2 client does not answer any more");
            self.unanswered = true;
            return false;
        }
        self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
        self.timer.as_mut().reset(Instant::now() + PING_WAIT);
        // For the deadline.
        let _ = self.timer.as_mut().poll(cx);
        self.asked
    }
}
