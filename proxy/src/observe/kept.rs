//! Requests that failed or were slow of late, each as its line of the access log: for `meshwright explain ID`. Of those only of which notes
//! were taken: the log or a trace wanted them, or a tap.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;

use super::labels::is_failure;
use super::record::{Detail, Outline};
use super::tap::{Allowance, line_of};

/// Requests kept, and the bytes of their lines; the oldest go.
const KEPT_MAX: usize = 256;
const KEPT_BYTES_MAX: usize = 256 << 10;
/// Requests kept in a second: an outage makes more than anybody can ask for.
const KEPT_PER_SEC: u32 = 100;
/// What takes so long is slow.
const SLOW: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct KeptRequests {
    allowance: Allowance,
    lines: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Default for KeptRequests {
    fn default() -> Self {
        Self { allowance: Allowance::new(KEPT_PER_SEC), lines: Mutex::default() }
    }
}

impl KeptRequests {
    /// Keeps an exchange that ended, if it is worth it. `now`: nanoseconds since the proxy's start.
    pub(super) fn note(&self, now: impl FnOnce() -> u64, seen: &Outline, detail: &Detail, times: (Duration, SystemTime)) {
        let worth_it = times.0 >= SLOW || seen.reason.is_some() || is_failure(seen.code, seen.grpc, seen.reason);
        if worth_it && self.allowance.take(now()) {
            self.keep(line_of(seen, detail, times));
        }
    }

    #[cold]
    fn keep(&self, line: String) {
        let mut kept = self.lines.lock();
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.lines.len() > KEPT_MAX || kept.bytes > KEPT_BYTES_MAX {
            let Some(oldest) = kept.lines.pop_front() else { return };
            kept.bytes -= oldest.len();
        }
    }

    /// Lines of requests with that `x-request-id` or trace id, oldest first.
    pub(super) fn find(&self, id: &str) -> Value {
        let lines: Vec<String> = self.lines.lock().lines.iter().filter(|line| line.contains(id)).cloned().collect();
        let read = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
        read.filter(|line: &Value| line["request_id"] == id || line["trace_id"] == id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what is asked for is found by either id and nothing else is, and old ones give way by number and by bytes.
    #[test]
    fn the_last_ones_are_found() {
        let kept = KeptRequests::default();
        let line = |id: usize| format!(r#"{{"request_id":"r{id}","trace_id":"t{id}","path":"/r9999"}}"#);
        (0..KEPT_MAX + 10).for_each(|id| kept.keep(line(id)));
        assert_eq!(kept.find("r9").as_array().unwrap().len(), 0);
        for id in ["r10", "t265"] {
            assert_eq!(kept.find(id).as_array().unwrap().len(), 1, "{id}");
        }
        assert_eq!(kept.find("r9999").as_array().unwrap().len(), 0);
        kept.keep("x".repeat(KEPT_BYTES_MAX - 10));
        assert_eq!(kept.lines.lock().lines.len(), 1);
    }
}
