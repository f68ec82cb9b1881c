//! How busy the proxy itself is: its workers' event loops, its pools, its queues. Nothing here asks for a timer or a system call of its own: workers
//! note what they see at a tick that is due anyway, and the kernel is asked when somebody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;

use super::metric::{Metric, MetricKind, MetricUnit, Reading, level, secs};
use super::series::Count;

/// Upper bounds of the histogram of event-loop lag, in milliseconds; one without bound follows. A timer is up to a millisecond late by itself.
const LAG_BOUNDS_MS: [u64; 9] = [2, 5, 10, 25, 50, 100, 250, 500, 1000];
const LAG_BUCKETS: usize = LAG_BOUNDS_MS.len() + 1;

/// Of one worker; written by it alone.
#[derive(Debug)]
pub(super) struct WorkerLoad {
    thread: Pid,
    lag: [Count; LAG_BUCKETS],
    lag_nanos: Count,
    pool_open: AtomicU64,
    pool_waiting: AtomicU64,
}

impl WorkerLoad {
    /// A tick came so late.
    pub(super) fn lagged(&self, lag: Duration) {
        let bucket = LAG_BOUNDS_MS.iter().position(|bound| lag <= Duration::from_millis(*bound)).unwrap_or(LAG_BUCKETS - 1);
        self.lag[bucket].add(1);
        self.lag_nanos.add(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many connections its pool has, and how many requests wait for one.
    pub(super) fn pooled(&self, open: usize, waiting: usize) {
        self.pool_open.store(open as u64, Ordering::Relaxed);
        self.pool_waiting.store(waiting as u64, Ordering::Relaxed);
    }
}

/// Of all workers.
#[derive(Debug, Default)]
pub(super) struct Load(Mutex<Vec<Arc<WorkerLoad>>>);

impl Load {
    /// The worker that runs on this thread.
    pub(super) fn add_worker(&self) -> Arc<WorkerLoad> {
        let worker = Arc::new(WorkerLoad {
            thread: gettid(),
            lag: Default::default(),
            lag_nanos: Count::default(),
            pool_open: AtomicU64::new(0),
            pool_waiting: AtomicU64::new(0),
        });
        self.0.lock().push(Arc::clone(&worker));
        worker
    }

    pub(super) fn read(&self, queues: Vec<(&'static str, u64)>) -> LoadReading {
        let mut read = LoadReading { queues, ..LoadReading::default() };
        for worker in self.0.lock().iter() {
            for (sum, bucket) in read.lag.iter_mut().zip(&worker.lag) {
                *sum += bucket.get();
            }
            read.lag_nanos = read.lag_nanos.wrapping_add(worker.lag_nanos.get());
            read.pool_open += worker.pool_open.load(Ordering::Relaxed);
            read.pool_waiting += worker.pool_waiting.load(Ordering::Relaxed);
            read.threads.push(scheduled(worker.thread));
        }
        read
    }
}

/// All of it at one moment.
#[derive(Debug, Default)]
pub(super) struct LoadReading {
    lag: [u64; LAG_BUCKETS],
    lag_nanos: u64,
    pool_open: u64,
    pool_waiting: u64,
    /// Of each worker: nanoseconds on a CPU, and waiting for one.
    threads: Vec<Option<(u64, u64)>>,
    queues: Vec<(&'static str, u64)>,
}

impl LoadReading {
    pub(super) fn tell(&self, all: &mut Vec<Metric>) {
        let bounds = LAG_BOUNDS_MS.iter().map(|bound| Duration::from_millis(*bound).as_secs_f64()).chain([f64::INFINITY]);
        let lag = Reading::Buckets(bounds.zip(self.lag).collect(), secs(self.lag_nanos));
        let help = "How late a worker's tick came, four times a second while it has work";
        let family = Metric::new("meshwright_event_loop_lag", Some(MetricUnit::Seconds), help, MetricKind::Histogram);
        all.push(family.with(Vec::new(), lag));
        let help = "CPU time of each worker's thread";
        let mut cpu = Metric::new("meshwright_worker_cpu", Some(MetricUnit::Seconds), help, MetricKind::Counter);
        let help = "Time in which a worker's thread could have run and no CPU was free for it";
        let mut wait = Metric::new("meshwright_worker_wait", Some(MetricUnit::Seconds), help, MetricKind::Counter);
        for (number, told) in self.threads.iter().enumerate() {
            let Some((on_cpu, waited)) = told else { continue };
            let labels = || vec![("worker", number.to_string())];
            cpu = cpu.with(labels(), Reading::CountReal(secs(*on_cpu)));
            wait = wait.with(labels(), Reading::CountReal(secs(*waited)));
        }
        all.extend([cpu, wait]);
        let help = "Connections to endpoints and to the application, as workers saw them last";
        all.push(Metric::gauge("meshwright_pool_connections", None, help, level(self.pool_open)));
        let help = "Requests that wait for a connection, as workers saw them last";
        all.push(Metric::gauge("meshwright_pool_waiting", None, help, level(self.pool_waiting)));
        let help = "What waits in queues of the proxy: records for log and collector, resources that are not in force yet";
        let queued = Metric::new("meshwright_queue_length", None, help, MetricKind::Gauge);
        all.push(
            self.queues.iter().fold(queued, |family, (queue, length)| family.with(vec![("queue", (*queue).to_owned())], level(*length))),
        );
    }
}

/// What the kernel's scheduler says of a thread of this process.
fn scheduled(thread: Pid) -> Option<(u64, u64)> {
    schedstat(&std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?)
}

/// `ON_CPU WAITED SLICES`, in nanoseconds (Documentation/scheduler/sched-stats).
fn schedstat(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: lags land in the first bucket whose bound they do not exceed, and all workers are one histogram.
    #[test]
    fn lags_are_counted() {
        let load = Load::default();
        let (one, other) = (load.add_worker(), load.add_worker());
        for (worker, ms) in [(&one, 0), (&one, 2), (&other, 3), (&other, 1000), (&one, 1001)] {
            worker.lagged(Duration::from_millis(ms));
        }
        one.pooled(3, 1);
        other.pooled(4, 0);
        let read = load.read(vec![("spans", 7)]);
        assert_eq!(read.lag, [2, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((read.lag_nanos, read.pool_open, read.pool_waiting), (2_006_000_000, 7, 1));
        let mut all = Vec::new();
        read.tell(&mut all);
        assert_eq!(all.iter().map(|family| family.name).filter(|name| name.contains("queue")).count(), 1);
    }

    /// Aim: the kernel's line is read, anything else is left out.
    #[test]
    fn threads_are_measured() {
        assert_eq!(schedstat("12 34 5\n"), Some((12, 34)));
        assert_eq!(schedstat("12\n"), None);
        assert_eq!(schedstat("a b c\n"), None);
    }
}
