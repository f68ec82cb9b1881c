//! Waiting for another process, which tells a test nothing when it is ready: looking again and again, under a deadline.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Pause between two looks. Short beside what is waited for, long beside a look.
const PAUSE: Duration = Duration::from_millis(50);

/// Ports given to programs under test. Below the range from which Linux takes ports for clients by itself
/// (`ip_local_port_range`, from 32768), so no connection can take one between its choice and its use.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How many ports this process has asked for.
static ASKED: AtomicU16 = AtomicU16::new(0);

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

/// Writes a file that nobody but its owner may read, as one that holds a token has to be.
///
/// # Errors
/// The operating system's.
pub fn write_private(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content.as_ref())
}

/// A TCP port that nothing listens on, other than all given before; test programs beside each other begin at different ones.
///
/// # Panics
/// All are taken.
pub fn free_port() -> u16 {
    let count = PORTS.end - PORTS.start;
    let begin = (std::process::id() % u32::from(count)) as u16;
    (0..count)
        .map(|_| PORTS.start + begin.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed)) % count)
        .find(|&port| TcpListener::bind(("0.0.0.0", port)).is_ok())
        .unwrap_or_else(|| panic!("no free port in {PORTS:?}"))
}
