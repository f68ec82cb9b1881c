//! Memory at rest: what the start or a busy time has used goes back to the kernel when the process is quiet. Workers give back their own
//! heaps with their tick; here is the rest: the program's pages and the control thread's heap.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::io::{Free, cpu_used, give_back_heap, give_back_program};
use crate::status::lifecycle::Lifecycle;

/// Pause between two looks until the start is over.
const LOOK_AT_START: Duration = Duration::from_millis(500);
/// Pause between two looks afterwards.
const LOOK: Duration = Duration::from_secs(10);
/// A process that uses no more than this share of one CPU is quiet.
const QUIET_PERCENT: u32 = 2;
/// So much work since the last time makes it worth to give back again: a hundred times what the faults afterwards cost.
const WORTH: Duration = Duration::from_millis(20);

/// When to give back: a quiet time after work.
#[derive(Debug, Default)]
struct Rest {
    seen: Duration,
    given_back: Duration,
}

impl Rest {
    /// `used` is the CPU time of the process so far, `pause` the time since the last look.
    fn look(&mut self, used: Duration, pause: Duration) -> bool {
        let quiet = used.saturating_sub(self.seen) <= pause * QUIET_PERCENT / 100;
        self.seen = used;
        let rests = quiet && used.saturating_sub(self.given_back) >= WORTH;
        if rests {
            self.given_back = used;
        }
        rests
    }
}

/// Gives back for the first time soon after the proxy is ready, then after every busy time; ends with `stop`.
pub(super) async fn give_back_at_rest(lifecycle: Lifecycle, stop: CancellationToken) {
    let mut rest = Rest::default();
    let mut pause = LOOK_AT_START;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if lifecycle.started().is_err() || !rest.look(cpu_used(), pause) {
            continue;
        }
        pause = LOOK;
        give_back_heap(Free::Now);
        match give_back_program() {
            Ok(kib) => debug!(kib, "the program's pages were given back"),
            Err(error) => debug!(%error, "the program's pages cannot be given back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: nothing is given back under load or when nothing was done since; once per busy time otherwise.
    #[test]
    fn quiet_after_work_is_rest() {
        let mut rest = Rest::default();
        let second = Duration::from_secs(1);
        let at = Duration::from_millis;
        for (used, wanted) in [(90, false), (95, true), (96, false), (99, false), (600, false), (620, true), (640, true), (641, false)] {
            assert_eq!(rest.look(at(used), second), wanted, "{used} ms");
        }
    }
}
