//! Golden metrics of the whole mesh as one line: rate, success and p99 per Service, from two looks at cumulative counters. Pure.

use std::collections::BTreeMap;

use proxy::observe::BUCKET_BOUNDS_SECS;
use serde_json::Value;

/// Services on the line; a terminal is about that wide.
const SERVICES_MAX: usize = 4;

/// Counters of one Service, summed over its callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ServiceTotal {
    requests: u64,
    failures: u64,
    buckets: Vec<u64>,
}

/// One look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    services: BTreeMap<String, ServiceTotal>,
}

impl Sample {
    /// Reads `get traffic`: what the callers' proxies (and edges) saw, for they see failures that never reached a server.
    pub(crate) fn read(answer: &Value) -> Self {
        let mut services: BTreeMap<String, ServiceTotal> = BTreeMap::new();
        let rows = answer.as_object().into_iter().flat_map(|proxies| proxies.values()).filter_map(Value::as_array).flatten();
        for row in rows.filter(|row| row["direction"] == "outbound") {
            let text = |field: &str| row[field].as_str().unwrap_or_default();
            let number = |field: &str| row[field].as_u64().unwrap_or_default();
            let sum = services.entry(format!("{}/{}", text("namespace"), text("service"))).or_default();
            sum.requests += number("requests");
            sum.failures += number("failures");
            let counts = row["duration_buckets"].as_array().into_iter().flatten().map(|count| count.as_u64().unwrap_or_default());
            for (at, count) in counts.enumerate() {
                if sum.buckets.len() <= at {
                    sum.buckets.push(0);
                }
                sum.buckets[at] += count;
            }
        }
        Self { services }
    }

    /// The line for what happened since `before`, busiest Services first.
    pub(crate) fn line(&self, before: &Self, secs: f64) -> String {
        let none = ServiceTotal::default();
        let mut rows: Vec<(u64, String)> = self
            .services
            .iter()
            .filter_map(|(name, now)| {
                let then = before.services.get(name).unwrap_or(&none);
                // A proxy that started anew counts from zero.
                let requests = now.requests.checked_sub(then.requests).filter(|requests| *requests > 0)?;
                let failures = now.failures.saturating_sub(then.failures).min(requests);
                let success = 100.0 * (1.0 - failures as f64 / requests as f64);
                let p99 = quantile(now, then, 0.99).map(|ms| format!(" p99 {ms}")).unwrap_or_default();
                Some((requests, format!("{name} {:.0}/s {success:.1}%{p99}", requests as f64 / secs)))
            })
            .collect();
        if rows.is_empty() {
            return "no requests now".to_owned();
        }
        rows.sort_by(|a, b| b.cmp(a));
        let more = rows.len().saturating_sub(SERVICES_MAX);
        let mut parts: Vec<String> = rows.into_iter().take(SERVICES_MAX).map(|(_, text)| text).collect();
        if more > 0 {
            parts.push(format!("{more} more"));
        }
        parts.join(" · ")
    }
}

/// The upper bound of the bucket that the quantile falls into, as text with its unit.
fn quantile(now: &ServiceTotal, then: &ServiceTotal, q: f64) -> Option<String> {
    let fresh: Vec<u64> =
        now.buckets.iter().enumerate().map(|(at, count)| count.saturating_sub(then.buckets.get(at).copied().unwrap_or(0))).collect();
    let total: u64 = fresh.iter().sum();
    if total == 0 {
        return None;
    }
    let mut seen = 0;
    let at = fresh.iter().position(|count| {
        seen += count;
        seen as f64 >= q * total as f64
    })?;
    Some(BUCKET_BOUNDS_SECS.get(at).map_or_else(|| "> 10 s".to_owned(), |secs| format!("< {} ms", secs * 1000.0)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Aim: rates are differences, callers are summed, inbound rows do not count twice, and a restarted proxy does not yield nonsense.
    #[test]
    fn a_line_from_two_looks() {
        let row = |direction: &str, requests: u64, failures: u64, buckets: [u64; 3]| json!({"direction": direction, "namespace": "shop", "service": "catalog", "requests": requests, "failures": failures, "duration_buckets": buckets});
        let before = Sample::read(&json!({"shop/web": [row("outbound", 10, 0, [10, 0, 0])]}));
        let after = Sample::read(&json!({
            "shop/web": [row("outbound", 20, 1, [19, 0, 1])],
            "shop/edge": [row("outbound", 10, 0, [10, 0, 0])],
            "shop/catalog": [row("inbound", 30, 1, [30, 0, 0])],
        }));
        assert_eq!(after.line(&before, 2.0), "shop/catalog 10/s 95.0% p99 < 2.5 ms");
        assert_eq!(before.line(&after, 1.0), "no requests now");
        assert_eq!(Sample::read(&json!([])).line(&Sample::default(), 1.0), "no requests now");
    }
}
