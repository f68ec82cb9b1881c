//! The kernel's account of processes: CPU by `schedstat`, memory by `smaps_rollup`. Reading is thin, parsing is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

/// Ticks per second of `/proc/PID/stat` and `/proc/stat`: part of the kernel's interface to user space on Linux (USER_HZ).
const TICKS_PER_SEC: f64 = 100.0;
/// Descendants of one process that are looked at.
const DESCENDANTS_MAX: usize = 1000;

/// CPU of a set of processes at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cpu {
    /// Time on a CPU by (process, thread), nanoseconds.
    threads: BTreeMap<(u32, u32), u64>,
    /// User and system time of the processes, ended threads included, ticks of 10 ms.
    ticks: u64,
}

impl Cpu {
    /// Reads it; processes that are gone count nothing.
    pub(crate) fn read(pids: &[u32]) -> Self {
        let mut cpu = Self::default();
        for pid in pids {
            cpu.ticks += fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|text| ticks(&text)).unwrap_or(0);
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let run = fs::read_to_string(task.path().join("schedstat")).ok().and_then(|text| nanoseconds(&text));
                if let (Some(thread), Some(run)) = (task.file_name().to_str().and_then(|name| name.parse().ok()), run) {
                    cpu.threads.insert((*pid, thread), run);
                }
            }
        }
        cpu
    }

    /// Seconds on a CPU since `before`: fine where the threads of `before` are all still there, else in ticks, which keep the ended.
    pub(crate) fn secs_since(&self, before: &Self) -> f64 {
        let all_there = !before.threads.is_empty() && before.threads.keys().all(|thread| self.threads.contains_key(thread));
        if !all_there {
            return self.ticks.saturating_sub(before.ticks) as f64 / TICKS_PER_SEC;
        }
        let more = self.threads.iter().map(|(thread, now)| now.saturating_sub(before.threads.get(thread).copied().unwrap_or(0)));
        more.sum::<u64>() as f64 / 1e9
    }
}

/// User and system time of `/proc/PID/stat`; the command's name in parentheses may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let fields: Vec<_> = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Parent of `/proc/PID/stat`.
fn parent(stat: &str) -> Option<u32> {
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn nanoseconds(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

/// The whole machine's CPU at one moment, seconds since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Machine {
    /// Not idle.
    pub(super) busy: f64,
    /// Kept by the hypervisor for others; part of `busy`.
    pub(super) steal: f64,
}

impl Machine {
    /// Reads it.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/stat")?).unwrap_or_default())
    }

    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<f64> = stat.lines().next()?.split_ascii_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest time is within user time.
        let all: f64 = fields.iter().take(8).sum();
        Some(Self { busy: (all - fields.get(3)? - fields.get(4)?) / TICKS_PER_SEC, steal: fields.get(7)? / TICKS_PER_SEC })
    }
}

/// Memory of a set of processes, MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Memory {
    /// Resident.
    pub(super) rss: f64,
    /// Resident, shared pages divided among those who map them.
    pub(super) pss: f64,
    /// Written by them alone.
    pub(super) dirty: f64,
}

impl Memory {
    /// Reads it; processes that are gone count nothing.
    pub(crate) fn read(pids: &[u32]) -> Self {
        let texts = pids.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok());
        texts.fold(Self::default(), |sum, text| {
            let one = Self::parse(&text);
            Self { rss: sum.rss + one.rss, pss: sum.pss + one.pss, dirty: sum.dirty + one.dirty }
        })
    }

    fn parse(rollup: &str) -> Self {
        let mib = |key: &str| {
            let value = rollup.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.and_then(|text| text.split_ascii_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
        };
        Self { rss: mib("Rss"), pss: mib("Pss"), dirty: mib("Private_Dirty") }
    }
}

/// A process and all that descend from it.
pub(super) fn family(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = fs::read_to_string(entry.path().join("stat")).ok().and_then(|text| parent(&text)) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (BTreeSet::from([root]), vec![root]);
    while let Some(pid) = next.pop()
        && found.len() < DESCENDANTS_MAX
    {
        let fresh = children.remove(&pid).unwrap_or_default().into_iter().filter(|child| found.insert(*child));
        next.extend(fresh.collect::<Vec<_>>());
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(threads: &[(u32, u64)], ticks: u64) -> Cpu {
        Cpu { threads: threads.iter().map(|(thread, run)| ((1, *thread), *run)).collect(), ticks }
    }

    /// Aim: nanoseconds while the threads stay, a new thread from its start, and ticks as soon as one has ended.
    #[test]
    fn threads_that_end_make_the_account_coarse() {
        let before = cpu(&[(1, 1_000_000_000), (2, 0)], 100);
        for (after, expected) in [
            (cpu(&[(1, 1_500_000_000), (2, 250_000_000)], 190), 0.75),
            (cpu(&[(1, 1_500_000_000), (2, 0), (3, 100_000_000)], 190), 0.6),
            (cpu(&[(1, 1_500_000_000)], 190), 0.9),
        ] {
            assert!((after.secs_since(&before) - expected).abs() < 1e-9, "{after:?}");
        }
        assert!((cpu(&[], 5).secs_since(&Cpu::default()) - 0.05).abs() < 1e-9);
    }

    /// Aim: the kernel's formats are read by position and name, odd command names included.
    #[test]
    fn formats_of_the_kernel() {
        let stat = "42 (a) b) S 7 42 42 0 -1 4194560 100 0 0 0 31 12 0 0 20 0 3 0 1 1 1";
        assert_eq!((ticks(stat), parent(stat), nanoseconds("123 4 5\n")), (Some(43), Some(7), Some(123)));
        assert_eq!((ticks(""), parent("x"), nanoseconds("")), (None, None, None));
        let machine = Machine::parse("cpu  100 0 50 1000 10 0 5 45 3 0\ncpu0 1 2").unwrap();
        assert_eq!(machine, Machine { busy: 2.0, steal: 0.45 });
        let rollup = "00400000-7ff [rollup]\nRss:    2048 kB\nPss:  1024 kB\nPss_Dirty: 9 kB\nPrivate_Dirty:   512 kB\n";
        assert_eq!(Memory::parse(rollup), Memory { rss: 2.0, pss: 1.0, dirty: 0.5 });
    }

    /// Aim: we find ourselves.
    #[test]
    fn a_family_holds_its_root() {
        assert!(family(std::process::id()).contains(&std::process::id()));
        assert!(Memory::read(&[std::process::id()]).rss > 0.0);
        assert!(!Cpu::read(&[std::process::id()]).threads.is_empty());
    }
}
