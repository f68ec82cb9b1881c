//! Whether what came of requests is what a case wants; the same for every consumer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{bail, ensure};
use http::HeaderMap;

use super::objects::backend_of;
use super::table::Want;

/// How far a share may be from what is wanted, in standard deviations: one run of 30,000 fails by chance.
const SIGMAS: f64 = 4.0;
/// How much longer than wanted something may take.
const SLACK: Duration = Duration::from_millis(200);

/// A request as a backend saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The pod.
    pub pod: String,
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Host or authority.
    pub host: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: String,
}

/// What came of one request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Status of the answer; 0: there was none.
    pub status: u16,
    /// Headers of the answer.
    pub headers: HeaderMap,
    /// The pod that answered; empty: none did.
    pub pod: String,
    /// What backends saw on its behalf, mirrors aside; empty where nobody looked.
    pub seen: Vec<Seen>,
    /// Who got copies.
    pub mirrored: Vec<Seen>,
    /// How long it took.
    pub took: Duration,
    /// The rule that decided, where the consumer knows: `NAMESPACE/NAME/RULE`.
    pub rule: Option<String>,
    /// The code of a gRPC answer.
    pub grpc: Option<u8>,
}

impl Outcome {
    /// Who answered: a backend, or a status in its place.
    pub fn answered_by(&self) -> String {
        if self.pod.is_empty() { self.status.to_string() } else { backend_of(&self.pod).to_owned() }
    }
}

/// Values of a header, joined as one; `None` where it is absent.
pub fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// Judges all requests of one case.
///
/// # Errors
/// Says what is not as wanted.
pub fn judge(want: &Want, outcomes: &[Outcome]) -> anyhow::Result<()> {
    shares(&want.share, outcomes, |outcome| vec![outcome.answered_by()])?;
    if !want.count.is_empty() {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        outcomes.iter().for_each(|outcome| *counts.entry(outcome.answered_by()).or_default() += 1);
        ensure!(counts == want.count, "{counts:?}, not {:?}", want.count);
    }
    let copies = |outcome: &Outcome| outcome.mirrored.iter().map(|seen| backend_of(&seen.pod).to_owned()).collect::<Vec<_>>();
    shares(&want.mirrored, outcomes, copies)?;
    if want.sticky {
        let pods: Vec<&str> = outcomes.iter().map(|outcome| &*outcome.pod).collect();
        ensure!(pods.windows(2).all(|two| two[0] == two[1]) && !pods[0].is_empty(), "not one pod: {pods:?}");
    }
    outcomes.iter().try_for_each(|outcome| one(want, outcome))
}

/// Whether counts are within chance of the shares that are wanted.
fn shares(wanted: &BTreeMap<String, f64>, outcomes: &[Outcome], names: impl Fn(&Outcome) -> Vec<String>) -> anyhow::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    outcomes.iter().flat_map(names).for_each(|name| *counts.entry(name).or_default() += 1.0);
    let all = f64::from(u32::try_from(outcomes.len())?);
    for name in wanted.keys().chain(counts.keys()) {
        let share = wanted.get(name).copied().unwrap_or_default();
        let count = counts.get(name).copied().unwrap_or_default();
        let far = (count - all * share).abs();
        ensure!(far <= SIGMAS * (all * share * (1.0 - share).max(0.0)).sqrt(), "{name}: {count} of {all}, not {share}; all: {counts:?}");
    }
    Ok(())
}

fn one(want: &Want, outcome: &Outcome) -> anyhow::Result<()> {
    let Want { status, reason, backend, seen, headers, absent, redirect, took_ms, attempts, grpc, closed, rule, .. } = want;
    let brief = || format!("{} by `{}`, {:?}", outcome.status, outcome.pod, outcome.headers);
    ensure!(*closed == (outcome.status == 0), "closed is not {closed}: {}", brief());
    let usual = backend.is_some().then_some(200);
    if let Some(status) = status.or(usual) {
        ensure!(outcome.status == status, "the status is not {status}: {}", brief());
    }
    if let Some(backend) = backend {
        ensure!(backend_of(&outcome.pod) == backend, "not answered by {backend}: {}", brief());
    }
    let expect = |what: &str, name: &str, found: Option<String>, wanted: &str| -> anyhow::Result<()> {
        ensure!(found.as_deref() == Some(wanted), "{what} {name} is {found:?}, not {wanted:?}; {}", brief());
        Ok(())
    };
    if let Some(reason) = reason {
        expect("header", "x-meshwright-reason", joined(&outcome.headers, "x-meshwright-reason"), reason)?;
    }
    if let Some(location) = redirect {
        expect("header", "location", joined(&outcome.headers, "location"), location)?;
    }
    for (name, value) in headers {
        expect("header", name, joined(&outcome.headers, name), value)?;
    }
    for name in absent {
        ensure!(!outcome.headers.contains_key(&**name), "the answer has {name}: {}", brief());
    }
    if let (Some(wanted), Some(rule)) = (rule, &outcome.rule) {
        ensure!(rule == wanted, "decided by {rule}, not {wanted}");
    }
    if grpc.is_some() {
        ensure!(outcome.grpc == *grpc, "grpc-status is {:?}, not {grpc:?}; {}", outcome.grpc, brief());
    }
    if let Some(ms) = took_ms {
        let least = Duration::from_millis(*ms);
        ensure!(outcome.took >= least && outcome.took <= least + SLACK, "took {:?}, not {least:?}", outcome.took);
    }
    if let Some(attempts) = attempts {
        ensure!(outcome.seen.len() == *attempts as usize, "{} attempts were seen, not {attempts}", outcome.seen.len());
    }
    self::seen(seen, outcome.seen.last())
}

fn seen(want: &super::table::WantSeen, seen: Option<&Seen>) -> anyhow::Result<()> {
    let super::table::WantSeen { path, host, method, headers, absent, body } = want;
    let asked = path.is_some() || host.is_some() || method.is_some() || body.is_some() || !headers.is_empty() || !absent.is_empty();
    let seen = match seen {
        Some(seen) => seen,
        None if asked => bail!("no backend saw it"),
        None => return Ok(()),
    };
    let pairs = [("path", path, &seen.path), ("host", host, &seen.host), ("method", method, &seen.method), ("body", body, &seen.body)];
    for (what, wanted, found) in pairs {
        ensure!(wanted.as_ref().is_none_or(|wanted| wanted == found), "the backend saw {what} {found:?}, not {wanted:?}");
    }
    for (name, value) in headers {
        let found = joined(&seen.headers, name);
        ensure!(found.as_ref() == Some(value), "the backend saw {name}: {found:?}, not {value:?}");
    }
    for name in absent {
        ensure!(!seen.headers.contains_key(&**name), "the backend saw {name}");
    }
    Ok(())
}
