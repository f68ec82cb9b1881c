//! Lines that are written now or never: a log that nobody reads must not stop who writes it.
#![allow(unsafe_code, reason = "the kernel is asked by C's rules whether a descriptor takes bytes; the one block says why it holds")]

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A pipe that says it takes bytes takes so many at once (pipe(7)); longer lines are cut.
const LINE_BYTES_MAX: usize = 4096;

/// Writes each line whole and at once, or drops it where that would wait: a worker's thread carries traffic. The next line that is
/// written comes after a word on how many were lost.
#[derive(Debug)]
pub struct Lossy<W> {
    out: Mutex<W>,
    lost: AtomicU64,
}

impl<W> Lossy<W> {
    /// Lines for `out`, usually standard error.
    pub const fn new(out: W) -> Self {
        Self { out: Mutex::new(out), lost: AtomicU64::new(0) }
    }
}

impl<W: Write + AsFd> Write for &Lossy<W> {
    /// One line per call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut out = self.out.lock();
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 && takes_bytes(out.as_fd()) {
            writeln!(out, "{lost} lines of this log were lost: nobody read it")?;
            self.lost.store(0, Ordering::Relaxed);
        }
        if takes_bytes(out.as_fd()) {
            match line.get(..LINE_BYTES_MAX - 1) {
                Some(cut) if line.len() > LINE_BYTES_MAX => out.write_all(&[cut, b"\n"].concat())?,
                _ => out.write_all(line)?,
            }
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write would not wait. What cannot be asked is written to.
fn takes_bytes(out: BorrowedFd<'_>) -> bool {
    let mut asked = libc::pollfd { fd: out.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: the kernel reads and writes the one structure that `asked` is, for the time of the call, which does not wait.
    let answered = unsafe { libc::poll(&raw mut asked, 1, 0) };
    answered != 0
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Aim: a full pipe stops nobody; what it lost is told once it is read again, and lines come whole.
    #[test]
    fn a_log_that_nobody_reads_stops_nobody() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lossy = Lossy::new(writer);
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..1000 {
            (&lossy).write_all(line.as_bytes()).unwrap();
        }
        let lost = lossy.lost.load(Ordering::Relaxed);
        assert!((900..1000).contains(&lost), "{lost}");
        let mut early = vec![0; (1000 - lost as usize) * 1000];
        reader.read_exact(&mut early).unwrap();
        assert!(early.chunks(1000).all(|chunk| chunk == line.as_bytes()));
        (&lossy).write_all("y".repeat(10_000).as_bytes()).unwrap();
        drop(lossy);
        let mut late = String::new();
        reader.read_to_string(&mut late).unwrap();
        assert_eq!(late, format!("{lost} lines of this log were lost: nobody read it\n{}\n", "y".repeat(LINE_BYTES_MAX - 1)));
    }
}
