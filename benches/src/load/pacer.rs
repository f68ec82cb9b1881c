//! Wakes at each step of a schedule. A runtime's own timers know milliseconds; a timer descriptor knows nanoseconds, for one read a step.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Shortest interval: at higher rates several requests are sent per wake-up.
const STEP_MIN: Duration = Duration::from_micros(20);

/// A periodic timer.
pub(super) struct Pacer {
    timer: AsyncFd<Descriptor>,
}

struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Pacer {
    /// Ticks at `first` and then every `step`, never early. Inside a runtime.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub(super) fn new(first: Instant, step: Duration) -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // Zero would switch the timer off.
        let wait = first.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let expiration = Expiration::IntervalDelayed(TimeSpec::from(wait), TimeSpec::from(step.max(STEP_MIN)));
        timer.set(expiration, TimerSetTimeFlags::empty())?;
        #[expect(deprecated, reason = "its successor is unsafe code; a descriptor that is owned and stays the same is all it asks for")]
        let timer = AsyncFd::with_interest(Descriptor(timer), Interest::READABLE)?;
        Ok(Self { timer })
    }

    /// Waits for the next step; steps that were missed make one.
    ///
    /// # Errors
    /// The timer cannot be read.
    pub(super) async fn tick(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            if let Ok(read) = ready.try_io(|timer| timer.get_ref().0.wait().map_err(io::Error::from)) {
                return read;
            }
        }
    }
}
