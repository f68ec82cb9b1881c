//! Matches and misses as sentences.

use std::sync::Arc;

use crate::decide::RequestHead;
use crate::filter::chance::MILLION;
use crate::matching::{Miss, misses};
use crate::model::{Forward, Match, Mirror, PathMatch, Policy, Rule, RuleSource, Target, ValueMatch};
use crate::retry::{self, Causes};

/// Most rules that are said to have been passed over.
const PASSED_OVER_MAX: usize = 8;

/// "matches path below /v1 and method GET".
pub(super) fn matched(rule: &Match, head: &RequestHead<'_>) -> String {
    let asks = if misses(rule, head).is_some() { "is the preflight of a request that " } else { "" };
    format!("{asks}matches {}", conditions(rule))
}

/// The conditions of a match in words.
pub(super) fn conditions(rule: &Match) -> String {
    let mut parts = Vec::new();
    if let Some(path) = path(&rule.path) {
        parts.push(path);
    }
    parts.extend(rule.method.as_ref().map(|method| format!("method {method}")));
    parts.extend(rule.headers.iter().map(|(name, wanted)| format!("header {name} {}", value(wanted))));
    parts.extend(rule.query.iter().map(|(name, wanted)| format!("query parameter {name} {}", value(wanted))));
    if parts.is_empty() { "every request".to_owned() } else { parts.join(" and ") }
}

/// What a rule says of its requests beside its stages, by name.
pub(super) fn policy(forward: &Forward) -> Vec<(&'static str, String)> {
    let Policy {
        steps: _,
        request_timeout,
        attempt_timeout,
        idle_timeout,
        stream_timeout,
        retry,
        hedge,
        session,
        priority,
        body_bytes_max,
        hash,
        telemetry,
    } = &*forward.policy;
    let times = [("request", request_timeout), ("attempt", attempt_timeout), ("idle", idle_timeout), ("stream", stream_timeout)];
    let times: Vec<String> = times.into_iter().filter_map(|(name, time)| time.map(|time| format!("{name} {time:?}"))).collect();
    let mut all = Vec::new();
    let mut say = |name: &'static str, why: Option<String>| all.extend(why.map(|why| (name, why)));
    say("timeouts", (!times.is_empty()).then(|| times.join(", ")));
    say("retry", retry.explicit.then(|| retries(retry)));
    say(
        "hedge",
        hedge.as_ref().map(|hedge| {
            format!("a second attempt after the {} % quantile, for at most {} % of requests", hedge.quantile * 100.0, hedge.max_percent)
        }),
    );
    say("session", session.as_ref().map(crate::model::Session::story));
    say("priority", priority.as_ref().map(crate::model::Priority::story));
    say("body", (*body_bytes_max > 0).then(|| format!("of at most {body_bytes_max} bytes")));
    let keys: Vec<String> = hash.iter().map(ToString::to_string).collect();
    say("hash", (!keys.is_empty()).then(|| format!("by {}", keys.join(", else "))));
    say("telemetry", telemetry.as_ref().map(crate::model::RuleTelemetry::story));
    let mirrors = forward.mirrors.iter().map(copies);
    all.extend(mirrors.map(|why| ("mirror", why)));
    all
}

/// "copies 10 % to shop/catalog-v2:80".
pub(super) fn copies(mirror: &Mirror) -> String {
    let share = if mirror.per_million == MILLION { String::new() } else { format!(" {} %", f64::from(mirror.per_million) / 10_000.0) };
    match &mirror.target {
        Target::Cluster(cluster) => format!("copies{share} to {}", cluster.name),
        Target::Reply(_) => format!("copies{share} to nobody: the reference leads nowhere"),
    }
}

fn retries(policy: &retry::Policy) -> String {
    let causes = [
        (Causes::CONNECT_FAILURE, "connect failure"),
        (Causes::RESET, "reset"),
        (Causes::REFUSED_STREAM, "refused stream"),
        (Causes::ATTEMPT_TIMEOUT, "attempt timeout"),
    ];
    let mut on: Vec<String> = causes.into_iter().filter(|(cause, _)| policy.on.has(*cause)).map(|(_, text)| text.to_owned()).collect();
    on.extend((400..600).filter(|status| policy.statuses.has(*status)).map(|status| format!("status {status}")));
    on.extend((1..=16).filter(|code| policy.grpc & (1 << code) != 0).map(|code| format!("gRPC status {code}")));
    let on = if on.is_empty() { "nothing".to_owned() } else { on.join(", ") };
    format!("{} more attempts on {on}, after {:?} to {:?}", policy.attempts, policy.backoff_base, policy.backoff_max)
}

/// "; not HTTPRoute shop/catalog rule 0: path is not below /v2", for each rule before.
pub(super) fn passed_over(rules: &[Arc<Rule>], head: &RequestHead<'_>) -> String {
    let reason = |rule: &Arc<Rule>| {
        let miss = misses(&rule.matches, head)?;
        Some(format!("; not {}: {}", object(&rule.source), missed(&rule.matches, miss)))
    };
    let mut text: String = rules.iter().filter_map(reason).take(PASSED_OVER_MAX).collect();
    if rules.len() > PASSED_OVER_MAX {
        text.push_str(&format!("; nor {} more", rules.len() - PASSED_OVER_MAX));
    }
    text
}

fn object(source: &RuleSource) -> String {
    if source.kind.is_empty() {
        return format!("rule {}", source.rule);
    }
    format!("{} {}/{} rule {}", source.kind, source.namespace, source.name, source.rule)
}

fn missed(rule: &Match, miss: Miss<'_>) -> String {
    match miss {
        Miss::Path => format!("wants {}", path(&rule.path).unwrap_or_default()),
        Miss::Method => format!("wants method {}", rule.method.as_ref().map_or("", |method| method.as_str())),
        Miss::Header(name) => {
            let wanted = rule.headers.iter().find(|(other, _)| other == name).map(|(_, wanted)| value(wanted));
            format!("wants header {name} {}", wanted.unwrap_or_default())
        }
        Miss::Query(name) => {
            let wanted = rule.query.iter().find(|(other, _)| other == name).map(|(_, wanted)| value(wanted));
            format!("wants query parameter {name} {}", wanted.unwrap_or_default())
        }
    }
}

fn path(wanted: &PathMatch) -> Option<String> {
    Some(match wanted {
        PathMatch::Any => return None,
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(prefix) => format!("path {prefix} or below"),
        PathMatch::StringPrefix(prefix) => format!("a path that starts with {prefix}"),
        PathMatch::Regex(regex) => format!("a path like {}", pattern(regex)),
    })
}

fn value(wanted: &ValueMatch) -> String {
    match wanted {
        ValueMatch::Exact(text) => format!("= {text:?}"),
        ValueMatch::Regex(regex) => format!("like {}", pattern(regex)),
        ValueMatch::Prefix(text) => format!("starting with {text:?}"),
        ValueMatch::Suffix(text) => format!("ending with {text:?}"),
        ValueMatch::Contains(text) => format!("containing {text:?}"),
        ValueMatch::Present(true) => "present".to_owned(),
        ValueMatch::Present(false) => "absent".to_owned(),
        ValueMatch::Not(inner) => format!("not {}", value(inner)),
    }
}

/// As the user wrote it, without our anchors.
fn pattern(regex: &regex::Regex) -> &str {
    let text = regex.as_str();
    text.strip_prefix(r"\A(?:").and_then(|text| text.strip_suffix(r")\z")).unwrap_or(text)
}
