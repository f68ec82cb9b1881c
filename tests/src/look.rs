//! Waiting for another process, which tells a test nothing when it is ready: looking again and again, under a deadline.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Pause between two looks. Short beside what is waited for, long beside a look.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` finds what is waited for.
///
/// # Errors
/// What the last look said, when `max` has passed.
pub fn until<T>(max: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let end = Instant::now() + max;
    loop {
        match look() {
            Err(last) if Instant::now() >= end => return Err(last),
            // The one place where a test sleeps to look again: files, answers and kernel figures of another process raise no event here.
            Err(_) => std::thread::sleep(PAUSE),
            found => return found,
        }
    }
}

/// The binary beside the running test, as `cargo build -p cli` leaves it.
///
/// # Panics
/// It is not there.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let program = own.ancestors().nth(2).map(|folder| folder.join("meshwright")).unwrap_or_default();
    assert!(program.is_file(), "{} is missing: build it with `cargo build -p cli` first", program.display());
    program
}
