//! One line that tells which round, phase and topology are on, and the time left: on a terminal only, on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::pair::plan::minutes;

/// How often the line moves.
const TICK: Duration = Duration::from_millis(200);

/// Estimated seconds that must be over before their true length corrects the rest.
const LEARN_SECS: f64 = 15.0;

/// The line; gone without a trace when dropped, and never there in a pipe.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    since: Instant,
    /// Estimated seconds of all readings, and of those done.
    all: f64,
    done: f64,
}

impl Progress {
    /// A line for readings that will take `all` seconds.
    pub(super) fn new(all: f64) -> Self {
        let bar = ProgressBar::new(all.ceil() as u64);
        // The template is a constant of ours; should it ever be wrong, the bar's own is good enough.
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:24}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(TICK);
        Self { bar, since: Instant::now(), all, done: 0.0 }
    }

    /// What happens now.
    pub(super) fn say(&self, text: &str) {
        let left = time_left(self.since.elapsed().as_secs_f64(), self.done, self.all);
        self.bar.set_message(format!("{text}, about {} left", minutes(left)));
    }

    /// A reading of `secs` estimated seconds is done.
    pub(super) fn advance(&mut self, secs: f64) {
        self.done += secs;
        self.bar.set_position(self.done as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Seconds left: the estimate, corrected by how long its first part really took.
fn time_left(elapsed: f64, done: f64, all: f64) -> f64 {
    // Before there is something to learn from, the estimate stands.
    let pace = if done > LEARN_SECS { elapsed / done } else { 1.0 };
    (all - done).max(0.0) * pace
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the time left learns from the time taken.
    #[test]
    fn time_left_learns() {
        for (elapsed, done, all, left) in
            [(0.0, 0.0, 100.0, 100.0), (3.0, 1.0, 100.0, 99.0), (30.0, 20.0, 100.0, 120.0), (9.0, 120.0, 100.0, 0.0)]
        {
            assert_eq!(time_left(elapsed, done, all), left);
        }
    }
}
