//! The way from a document to a [`Canary`].

use std::time::Duration;

use super::{Canary, CanaryAnalysis, CanaryGate, CanaryShare, CanaryStep, GATES_MAX, OnFailure, STEPS_MAX};
use crate::world::door::{Cursor, Fields, is_label};
use crate::world::traffic::header_matches;

/// Longest time that a step may be held.
const HOLD_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Shortest time that is waited anywhere.
const SECOND: Duration = Duration::from_secs(1);
/// How long a gate may take.
const GATE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take at most.
const GATE_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Longest address or query of a gate.
const TEXT_BYTES_MAX: usize = 4096;
/// Requests that may be asked for at most.
const REQUESTS_MAX: i64 = 1_000_000;

impl Canary {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let called = fields.need("serviceRef").and_then(|at| {
            let mut fields = at.fields();
            let name = fields.need("name").and_then(|at| service(&at));
            let port = fields.need("port").and_then(|at| at.port());
            fields.done();
            name.zip(port)
        });
        let stable = fields.need("stable").and_then(|at| service(&at));
        let candidate_at = fields.need("candidate");
        let candidate = candidate_at.as_ref().and_then(service);
        if let Some(at) = candidate_at
            && stable.is_some()
            && stable == candidate
        {
            at.error("stable and candidate are one Service", "give each version a Service of its own");
        }
        let (listed, counted) = (fields.get("steps"), fields.get("continuous"));
        let steps = match (&listed, &counted) {
            (Some(at), None) => steps(at),
            (None, Some(at)) => continuous(at),
            _ => {
                fields
                    .at()
                    .error("exactly one of steps and continuous is needed", "write for example `continuous: {increment: 10, every: 1m}`");
                Vec::new()
            }
        };
        let analysis = fields.get("analysis").map(|at| analysis(at.fields())).unwrap_or_default();
        let gates = fields.get("gates").map(|at| at.list(GATES_MAX).iter().filter_map(gate).collect()).unwrap_or_default();
        let words = [("Rollback", OnFailure::Rollback), ("Pause", OnFailure::Pause)];
        let on_failure = fields.get("onFailure").and_then(|at| at.word(&words)).unwrap_or_default();
        fields.done();
        let (service, port) = called?;
        Some(Self { service, port, stable: stable?, candidate: candidate?, steps, analysis, gates, on_failure })
    }
}

fn service(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if !is_label(&text) {
        at.error(format!("`{text}` is no name of a Service"), "name a Service of the same namespace");
        return None;
    }
    Some(text)
}

fn steps(at: &Cursor<'_>) -> Vec<CanaryStep> {
    let listed = at.list(STEPS_MAX);
    if listed.is_empty() {
        at.error("there are no steps", "write for example `[{weight: 10}, {weight: 50}]`");
    }
    let mut steps: Vec<CanaryStep> = Vec::new();
    for at in &listed {
        let Some(step) = step(at) else { continue };
        let last = steps.iter().rev().find_map(|step| if let CanaryShare::Weight(weight) = step.share { Some(weight) } else { None });
        if let CanaryShare::Weight(weight) = step.share {
            if last.is_some_and(|last| weight <= last) {
                at.error(format!("{weight} is no more than the step before has"), "let weights grow from step to step");
            }
            if weight == 100 && steps.is_empty() {
                at.error("nothing before it shows how the candidate does", "begin with a smaller weight");
            }
            if weight == 100 && (step.hold.is_some() || step.approve) {
                at.error("at a weight of 100 nothing is left to compare with", "put hold and approve into the step before");
            }
        }
        if last == Some(100) {
            at.error("nothing comes after a weight of 100", "remove it");
        }
        steps.push(step);
    }
    steps
}

fn step(at: &Cursor<'_>) -> Option<CanaryStep> {
    let mut fields = at.fields();
    let mut shares = Vec::new();
    if let Some(at) = fields.get("match") {
        let mut inner = at.fields();
        let headers = inner.need("headers").map(|at| (header_matches(&at), at));
        inner.done();
        if let Some((matches, at)) = &headers
            && matches.is_empty()
            && !at.refused()
        {
            at.error("it names no header", "name one, such as {name: x-beta, value: \"1\"}");
        }
        shares.push(headers.map(|(headers, _)| CanaryShare::Match(headers)));
    }
    if let Some(at) = fields.get("mirrorPercent") {
        shares.push(at.percent().map(|percent| {
            if percent < 0.0001 {
                at.error("that is nobody's", "mirror at least 0.0001 per cent");
            }
            CanaryShare::Mirror(per_million(percent))
        }));
    }
    if let Some(at) = fields.get("weight") {
        shares.push(weight(&at).map(CanaryShare::Weight));
    }
    let hold = fields.get("hold").and_then(|at| time(&at, SECOND, HOLD_MAX));
    let approve = fields.get("approve").and_then(|at| at.flag()).unwrap_or(false);
    fields.done();
    if shares.len() != 1 {
        at.error("a step is exactly one of match, mirrorPercent and weight", "write for example `{weight: 10, hold: 2m}`");
        return None;
    }
    Some(CanaryStep { share: shares.pop()??, hold, approve })
}

/// A weight that grows by itself.
fn continuous(at: &Cursor<'_>) -> Vec<CanaryStep> {
    let mut fields = at.fields();
    let mut whole = |name: &'static str, most, default| match fields.get(name) {
        Some(at) => at.int(1..=most).and_then(|weight| u8::try_from(weight).ok()),
        None => Some(default),
    };
    let (from, to, increment) = (whole("from", 99, 1), whole("to", 100, 100), whole("increment", 100, 5));
    let every = fields.get("every").map_or(Some(Duration::from_secs(60)), |at| time(&at, SECOND, HOLD_MAX));
    fields.done();
    let (Some(from), Some(to), Some(increment), Some(every)) = (from, to, increment, every) else { return Vec::new() };
    if from > to {
        at.error("from is more than to", "begin below the end");
        return Vec::new();
    }
    let mut weights: Vec<u8> = (from..=to).step_by(usize::from(increment)).collect();
    if weights.last() != Some(&to) {
        weights.push(to);
    }
    let hold = |weight: u8| (weight < 100).then_some(every);
    weights.into_iter().map(|weight| CanaryStep { share: CanaryShare::Weight(weight), hold: hold(weight), approve: false }).collect()
}

fn weight(at: &Cursor<'_>) -> Option<u8> {
    at.int(1..=100).and_then(|weight| u8::try_from(weight).ok())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage is between 0 and 100")]
fn per_million(percent: f64) -> u32 {
    (percent * 10_000.0).round() as u32
}

fn time(at: &Cursor<'_>, min: Duration, max: Duration) -> Option<Duration> {
    let time = at.duration()?;
    if time < min || time > max {
        at.error("no such time to wait", format!("use {}s to {}h", min.as_secs(), max.as_secs() / 3600));
        return None;
    }
    Some(time)
}

fn analysis(mut fields: Fields<'_>) -> CanaryAnalysis {
    let mut analysis = CanaryAnalysis::default();
    if let Some(at) = fields.get("errorRate") {
        let mut inner = at.fields();
        if let Some(percent) = inner.need("maxIncreasePercent").and_then(|at| number(&at, 0.01..=100.0)) {
            analysis.errors_max_increase_percent = percent;
        }
        inner.done();
    }
    if let Some(at) = fields.get("latency") {
        let mut inner = at.fields();
        if let Some(quantile) = inner.get("quantile").and_then(|at| number(&at, 1.0..=99.9)) {
            analysis.latency_quantile = quantile;
        }
        if let Some(ratio) = inner.get("maxRatio").and_then(|at| number(&at, 1.01..=100.0)) {
            analysis.latency_max_ratio = ratio;
        }
        inner.done();
    }
    if let Some(confidence) = fields.get("confidence").and_then(|at| number(&at, 0.8..=0.9999)) {
        analysis.confidence = confidence;
    }
    if let Some(requests) = fields.get("minRequests").and_then(|at| at.int(1..=REQUESTS_MAX)) {
        analysis.min_requests = requests.unsigned_abs();
    }
    fields.done();
    analysis
}

fn number(at: &Cursor<'_>, range: std::ops::RangeInclusive<f64>) -> Option<f64> {
    let number = at.number()?;
    if !range.contains(&number) {
        at.error(format!("{number} is out of range"), format!("use {} to {}", range.start(), range.end()));
        return None;
    }
    Some(number)
}

fn gate(at: &Cursor<'_>) -> Option<CanaryGate> {
    let mut fields = at.fields();
    let mut gates = Vec::new();
    if let Some(at) = fields.get("webhook") {
        let mut inner = at.fields();
        let url = inner.need("url").and_then(|at| url(&at));
        let timeout = inner.get("timeout").map_or(Some(GATE_TIMEOUT), |at| time(&at, SECOND, GATE_TIMEOUT_MAX));
        inner.done();
        gates.push(url.zip(timeout).map(|(url, timeout)| CanaryGate::Webhook { url, timeout }));
    }
    if let Some(at) = fields.get("prometheus") {
        gates.push(prometheus(&at));
    }
    fields.unsupported(&["shadowDiff"]);
    fields.done();
    if gates.len() != 1 && !at.has("shadowDiff") {
        at.error("a gate is exactly one of webhook and prometheus", "write for example `webhook: {url: \"http://tests.shop/verify\"}`");
        return None;
    }
    gates.pop().flatten()
}

fn prometheus(at: &Cursor<'_>) -> Option<CanaryGate> {
    let mut fields = at.fields();
    let url = fields.need("url").and_then(|at| url(&at));
    let query = fields.need("query").and_then(|at| {
        let text = at.text()?;
        if text.trim().is_empty() || text.len() > TEXT_BYTES_MAX {
            at.error("it is no query", format!("write PromQL of 1 to {TEXT_BYTES_MAX} bytes"));
            return None;
        }
        Some(text)
    });
    let (low, high) = (fields.get("min"), fields.get("max"));
    let (min, max) = (low.as_ref().and_then(|at| at.number()), high.as_ref().and_then(|at| at.number()));
    fields.done();
    if low.is_none() && high.is_none() {
        at.error("every number is good", "say min, max or both");
    }
    if min.zip(max).is_some_and(|(min, max)| min > max) {
        at.error("min is more than max", "make it less");
    }
    Some(CanaryGate::Prometheus { url: url?, query: query?, min, max })
}

/// Where a gate is asked.
fn url(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let good = text.len() <= TEXT_BYTES_MAX
        && text
            .parse::<http::Uri>()
            .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty()));
    if !good {
        at.error(
            format!("`{}` is no address to ask", text.chars().take(80).collect::<String>()),
            "write it as http://NAME[:PORT]/PATH or https://…",
        );
        return None;
    }
    Some(text)
}
