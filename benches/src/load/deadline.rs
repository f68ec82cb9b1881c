//! A deadline per request without a timer per request: one timer per lane, moved only when it fires.

use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The time was over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Elapsed;

/// One lane's timer.
pub(super) struct Deadline {
    each: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Deadline {
    /// Gives each future `each` long. Inside a runtime.
    pub(super) fn new(each: Duration) -> Self {
        Self { each, timer: Box::pin(sleep_until(Instant::now() + each)) }
    }

    /// Runs `work`, which is dropped when its time is over.
    ///
    /// # Errors
    /// [`Elapsed`]: it was.
    pub(super) async fn within<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        let until = Instant::now() + self.each;
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            // The timer is still set for an earlier request's end: it fires once per `each`, and only then is it moved.
            while self.timer.as_mut().poll(context).is_ready() {
                if self.timer.deadline() >= until {
                    return Poll::Ready(Err(Elapsed));
                }
                self.timer.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_deadline_serves_one_request_after_another() {
        // Aim: each request has its whole time, although the timer was set for an earlier one; a slow one is cut off at its end.
        let each = Duration::from_millis(200);
        let mut deadline = Deadline::new(each);
        for _ in 0..4 {
            assert_eq!(deadline.within(sleep(Duration::from_millis(60))).await, Ok(()));
        }
        let begun = Instant::now();
        assert_eq!(deadline.within(sleep(Duration::from_secs(60))).await, Err(Elapsed));
        assert!(begun.elapsed() >= each);
    }
}
