//! Matches and misses as sentences.

use std::sync::Arc;

use crate::decide::RequestHead;
use crate::decide::matching::{Miss, misses};
use crate::model::{Match, PathMatch, Rule, RuleSource, ValueMatch};

/// Most rules that are said to have been passed over.
const PASSED_OVER_MAX: usize = 8;

/// "matches path below /v1 and method GET".
pub(super) fn matched(rule: &Match) -> String {
    format!("matches {}", conditions(rule))
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
