//! What the control group allows this process, and what it took away from it (Documentation/admin-guide/cgroup-v2). Files are opened once, when somebody
//! first asks, and read only when somebody asks.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// Longest text of a file that is read.
const TEXT_BYTES_MAX: usize = 4096;

/// Files of this process's group.
#[derive(Debug, Default)]
pub(super) struct CgroupFiles {
    cpu_stat: Option<File>,
    cpu_max: Option<File>,
    memory_now: Option<File>,
    memory_max: Option<File>,
}

/// What they say; what they do not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct CgroupReading {
    /// Periods of the CPU's quota, how many of them ended with the process stopped, and for how long it was, in microseconds.
    pub(super) periods: Option<u64>,
    pub(super) throttled_periods: Option<u64>,
    pub(super) throttled_micros: Option<u64>,
    /// How many CPUs it may use.
    pub(super) cpu_limit: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) memory_limit_bytes: Option<u64>,
}

impl CgroupFiles {
    /// Those of this process's group, as far as they can be seen from here.
    pub(super) fn open() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let cpu = folders(&groups, "cpu");
        let memory = folders(&groups, "memory");
        let first = |folders: &[PathBuf], names: &[&str]| {
            let paths = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
            paths.filter_map(|path| File::open(path).ok()).next()
        };
        Self {
            cpu_stat: first(&cpu, &["cpu.stat"]),
            cpu_max: first(&cpu, &["cpu.max"]),
            memory_now: first(&memory, &["memory.current", "memory.usage_in_bytes"]),
            memory_max: first(&memory, &["memory.max", "memory.limit_in_bytes"]),
        }
    }

    pub(super) fn read(&self) -> CgroupReading {
        let text = |file: &Option<File>| file.as_ref().and_then(text_of).unwrap_or_default();
        let number = |file: &Option<File>| text(file).trim().parse().ok();
        let stat = text(&self.cpu_stat);
        CgroupReading {
            periods: field(&stat, "nr_periods"),
            throttled_periods: field(&stat, "nr_throttled"),
            // The first version counts nanoseconds.
            throttled_micros: field(&stat, "throttled_usec").or_else(|| field(&stat, "throttled_time").map(|nanos| nanos / 1000)),
            cpu_limit: cpu_limit(&text(&self.cpu_max)),
            memory_bytes: number(&self.memory_now),
            // "max", and the first version's largest number, are no limit.
            memory_limit_bytes: number(&self.memory_max).filter(|bytes| *bytes < 1 << 60),
        }
    }
}

/// Where the files of a controller may lie, the likeliest first: the group's own folder of the second version, of the first, and, where a namespace
/// hides what is above, the mount itself.
fn folders(groups: &str, controller: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let below = |mount: &Path| mount.join(path.trim_start_matches('/'));
        if controllers.is_empty() {
            found.insert(0, below(Path::new(MOUNT)));
        } else if controllers.split(',').any(|one| one == controller) {
            let mount = Path::new(MOUNT).join(controllers);
            found.extend([below(&mount), mount, below(&Path::new(MOUNT).join(controller))]);
        }
    }
    found.push(MOUNT.into());
    found
}

fn text_of(file: &File) -> Option<String> {
    let mut room = [0; TEXT_BYTES_MAX];
    let length = file.read_at(&mut room, 0).ok()?;
    Some(String::from_utf8_lossy(&room[..length]).into_owned())
}

/// `NAME NUMBER`, one a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `QUOTA PERIOD`, in microseconds; `max` is no limit.
fn cpu_limit(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u32, u32) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| f64::from(quota) / f64::from(period))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: both versions' files are found and read, and no limit is none.
    #[test]
    fn groups_are_read() {
        let as_text = |folders: Vec<PathBuf>| folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(as_text(folders("0::/kubepods/pod1\n", "cpu")), "/sys/fs/cgroup/kubepods/pod1 /sys/fs/cgroup");
        assert_eq!(
            as_text(folders("4:cpu,cpuacct:/a\n3:memory:/b\n0::/\n", "cpu")),
            "/sys/fs/cgroup/ /sys/fs/cgroup/cpu,cpuacct/a /sys/fs/cgroup/cpu,cpuacct /sys/fs/cgroup/cpu/a /sys/fs/cgroup"
        );
        let second = "usage_usec 1\nnr_periods 10\nnr_throttled 3\nthrottled_usec 4500\n";
        assert_eq!((field(second, "nr_throttled"), field(second, "throttled_usec")), (Some(3), Some(4500)));
        assert_eq!(field(second, "nr_thr"), None);
        for (text, limit) in [("200000 100000\n", Some(2.0)), ("max 100000\n", None), ("", None), ("1 0\n", None)] {
            assert_eq!(cpu_limit(text), limit, "{text}");
        }
    }

    /// Aim: files are read again where they are, and show what has changed.
    #[test]
    fn files_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cpu.stat");
        std::fs::write(&path, "nr_periods 1\nnr_throttled 0\nthrottled_time 7000\n").unwrap();
        let files = CgroupFiles { cpu_stat: File::open(&path).ok(), ..CgroupFiles::default() };
        assert_eq!(files.read().throttled_micros, Some(7));
        std::fs::write(&path, "nr_periods 2\nnr_throttled 1\nthrottled_time 9000\n").unwrap();
        let reading = files.read();
        assert_eq!((reading.periods, reading.throttled_periods, reading.throttled_micros), (Some(2), Some(1), Some(9)));
        assert_eq!(reading.memory_limit_bytes, None);
        CgroupFiles::open().read();
    }
}
