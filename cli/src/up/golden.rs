//! Golden metrics of the whole mesh as one line: rate, success and p99 per Service, out of what `stat` says. Pure.

use serde_json::Value;

use crate::output::milliseconds;

/// Services on the line; a terminal is about that wide.
const SERVICES_MAX: usize = 4;
/// Where the histogram ends: what takes longer takes at least so long.
const LATENCY_MAX_MS: f64 = 10_000.0;

/// The line for rows of `stat services`, busiest Services first.
pub(crate) fn line(rows: &Value) -> String {
    let rate = |row: &Value| row["rps"].as_f64().unwrap_or_default();
    let mut rows: Vec<&Value> = rows.as_array().into_iter().flatten().filter(|row| rate(row) > 0.0 && row["service"].is_string()).collect();
    if rows.is_empty() {
        return "no requests now".to_owned();
    }
    rows.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    let more = rows.len().saturating_sub(SERVICES_MAX);
    let mut parts: Vec<String> = rows.into_iter().take(SERVICES_MAX).map(service).collect();
    if more > 0 {
        parts.push(format!("{more} more"));
    }
    parts.join(" · ")
}

fn service(row: &Value) -> String {
    let text = |field: &str| row[field].as_str().unwrap_or_default();
    let number = |field: &str| row[field].as_f64();
    // Cut and not rounded: a failure never reads as 100 %.
    let success = number("success").map(|success| format!(" {:.1}%", (success * 10.0).floor() / 10.0)).unwrap_or_default();
    let latency = |ms: f64| if ms < LATENCY_MAX_MS { milliseconds(ms) } else { "> 10 s".to_owned() };
    let p99 = number("p99_ms").map(|ms| format!(" p99 {}", latency(ms))).unwrap_or_default();
    format!("{}/{} {:.0}/s{success}{p99}", text("namespace"), text("service"), number("rps").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Aim: the busiest come first, idle ones and what is no answer are left out, a failure never reads as 100 %.
    #[test]
    fn rows_make_a_line() {
        let row = |service: &str, rps: f64, success: f64, p99_ms: f64| json!({"namespace": "shop", "service": service, "rps": rps, "success": success, "p99_ms": p99_ms});
        let rows = json!([row("store", 1.0, 100.0, 20_000.0), row("catalog", 10.0, 99.99, 2.25), row("idle", 0.0, 100.0, 1.0)]);
        assert_eq!(line(&rows), "shop/catalog 10/s 99.9% p99 2.2 ms · shop/store 1/s 100.0% p99 > 10 s");
        let many: Value = (0..6).map(|n| row(&format!("s{n}"), 1.0, 100.0, 1.0)).collect();
        assert!(line(&many).ends_with(" · 2 more"), "{}", line(&many));
        for none in [json!([]), json!({}), json!([1, "x"])] {
            assert_eq!(line(&none), "no requests now");
        }
    }
}
