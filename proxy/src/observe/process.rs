//! What the kernel says about this process. What it does not say is left out.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// A reading, for `process_…` metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProcessReading {
    pub(super) cpu_secs: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
}

impl ProcessReading {
    pub(super) fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { cpu_secs: cpu_secs(), resident_bytes: resident_bytes(&status), open_fds: open_fds() }
    }
}

#[allow(clippy::cast_precision_loss, reason = "seconds since the start are few")]
fn cpu_secs() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let secs = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(secs(usage.user_time()) + secs(usage.system_time()))
}

/// `VmRSS:    1234 kB` (proc(5)).
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Without the one that lists them.
fn open_fds() -> Option<u64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(count.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the kernel's text is read, anything else is left out, and this very process can be measured.
    #[test]
    fn the_process_is_measured() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(resident_bytes("VmRSS:\tmany\n"), None);
        let process = ProcessReading::read();
        assert!(process.cpu_secs.is_some() && process.resident_bytes.is_some() && process.open_fds > Some(2), "{process:?}");
    }
}
