//! The one line of JSON a run ends with.

use std::collections::BTreeMap;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use serde::Serialize;

use super::plan::Plan;
use super::tally::Tally;

/// What a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `h1`, `h2`, `grpc` or `tcp`.
    pub protocol: &'static str,
    /// `rate`, `closed`, `bulk`, `connections` or `hold`.
    pub mode: &'static str,
    /// Requests per second asked for; 0 in a closed loop.
    pub rate: u64,
    /// Connections kept, or open at once where each request has its own.
    pub connections: usize,
    /// Requests sent. Open loop: of those due while counting. Closed loop: those begun while counting.
    pub sent: u64,
    /// Answered rightly. Closed loop: of those whose answer ended while counting.
    pub ok: u64,
    /// All others that were sent or refused by the backlog.
    pub failed: u64,
    /// Due while counting, and not sent when counting ended.
    pub late: u64,
    /// Failures by reason.
    pub errors: BTreeMap<String, u64>,
    /// Seconds that counted.
    pub secs: f64,
    /// Right answers per second.
    pub per_sec: f64,
    /// Bytes of bodies received while counting.
    pub bytes: u64,
    /// Latency of right answers, microseconds: from when the request was due; closed loop: from when it was begun.
    pub latency_us: Latency,
    /// `HdrHistogram` V2, base64.
    pub histogram: String,
    /// Unit of the histogram's values.
    pub histogram_unit: &'static str,
}

/// Microseconds.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    fn of(nanos: &Histogram<u64>) -> Self {
        let micros = |nanos: f64| (nanos / 10.0).round() / 100.0;
        let at = |quantile: f64| micros(nanos.value_at_quantile(quantile) as f64);
        Self { mean: micros(nanos.mean()), p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: micros(nanos.max() as f64) }
    }
}

impl Report {
    /// Of a run after `plan`.
    ///
    /// # Errors
    /// The histogram cannot be encoded: never in practice.
    pub fn new(plan: &Plan, tally: &Tally) -> anyhow::Result<Self> {
        let secs = plan.counted.as_secs_f64();
        Ok(Self {
            protocol: plan.protocol.name(),
            mode: plan.mode.name(),
            rate: plan.rate.unwrap_or(0),
            connections: plan.connections,
            sent: tally.sent,
            ok: tally.ok,
            failed: tally.failures(),
            late: tally.late,
            errors: tally.failed.iter().map(|(fault, times)| (fault.to_string(), *times)).collect(),
            secs,
            per_sec: (tally.ok as f64 / secs * 10.0).round() / 10.0,
            bytes: tally.bytes,
            latency_us: Latency::of(&tally.latency),
            histogram: encode(&tally.latency)?,
            histogram_unit: "ns",
        })
    }
}

fn encode(histogram: &Histogram<u64>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(histogram, &mut bytes).context("encoding the histogram")?;
    Ok(STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    #[test]
    fn a_histogram_survives_the_report() {
        // Aim: another program gets the same counts and quantiles out of the base64 text.
        let mut tally = Tally::new().unwrap();
        (1..=1000).for_each(|micros| tally.latency.record(micros * 1000).unwrap());
        let bytes = STANDARD.decode(encode(&tally.latency).unwrap()).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(read, tally.latency);
        let told = Latency::of(&read);
        assert!((told.p50 - 500.0).abs() < 1.0 && (told.p99 - 990.0).abs() < 1.0 && (told.max - 1000.0).abs() < 1.0, "{told:?}");
    }
}
