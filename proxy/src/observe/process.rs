//! What the kernel says about this process. What it does not say is left out.

use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;

use super::cgroup::{CgroupFiles, CgroupReading};
use super::metric::{Metric, MetricKind, MetricUnit, Reading, level};

/// A reading, for `process_…` and `meshwright_cgroup_…` metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProcessReading {
    pub(super) cpu_secs: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) cgroup: CgroupReading,
}

impl ProcessReading {
    /// `files` are opened by the first who reads.
    pub(super) fn read(files: &OnceLock<CgroupFiles>) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            cpu_secs: cpu_secs(),
            resident_bytes: resident_bytes(&status),
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
            cgroup: files.get_or_init(CgroupFiles::open).read(),
        }
    }

    pub(super) fn tell(&self, all: &mut Vec<Metric>) {
        let CgroupReading { periods, throttled_periods, throttled_micros, cpu_limit, memory_bytes, memory_limit_bytes } = self.cgroup;
        let throttled_secs = throttled_micros.map(|micros| Reading::CountReal(Duration::from_micros(micros).as_secs_f64()));
        let (counter, gauge) = (MetricKind::Counter, MetricKind::Gauge);
        let (secs, bytes) = (Some(MetricUnit::Seconds), Some(MetricUnit::Bytes));
        let throttled = "Time for which the control group stopped the process: its CPU quota was used up";
        for (name, unit, help, kind, reading) in [
            ("meshwright_cgroup_periods", None, "Periods of the control group's CPU quota", counter, periods.map(Reading::Count)),
            (
                "meshwright_cgroup_throttled_periods",
                None,
                "Periods in which the CPU quota was used up",
                counter,
                throttled_periods.map(Reading::Count),
            ),
            ("meshwright_cgroup_throttled", secs, throttled, counter, throttled_secs),
            ("meshwright_cgroup_cpu_limit", None, "CPUs that the control group allows", gauge, cpu_limit.map(Reading::GaugeReal)),
            ("meshwright_cgroup_memory", bytes, "Memory of the control group", gauge, memory_bytes.map(level)),
            ("meshwright_cgroup_memory_limit", bytes, "Memory that the control group allows", gauge, memory_limit_bytes.map(level)),
            ("process_cpu", secs, "User and system CPU time", counter, self.cpu_secs.map(Reading::CountReal)),
            ("process_resident_memory", bytes, "Resident memory", gauge, self.resident_bytes.map(level)),
            ("process_open_fds", None, "Open file descriptors", gauge, self.open_fds.map(level)),
            ("process_max_fds", None, "File descriptors that may be open", gauge, self.max_fds.map(level)),
        ] {
            if let Some(reading) = reading {
                all.push(Metric::new(name, unit, help, kind).with(Vec::new(), reading));
            }
        }
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
        let process = ProcessReading::read(&OnceLock::new());
        assert!(process.cpu_secs.is_some() && process.resident_bytes.is_some() && process.open_fds > Some(2), "{process:?}");
        assert!(process.max_fds >= process.open_fds, "{process:?}");
    }
}
