//! Rules of HTTPRoute.

use super::filters::Filters;
use super::matches::{Match, PathMatch};
use super::{PathChange, RouteRetry, RouteTimeouts, Rule, SessionPersistence, experimental};
use crate::world::door::Cursor;

const MATCHES_MAX: usize = 64;

pub(super) fn read(at: &Cursor<'_>) -> Rule {
    let mut fields = at.fields();
    let mut rule = Rule::read(&mut fields);
    for at in fields.get("matches").map(|at| at.list(MATCHES_MAX)).unwrap_or_default() {
        match Match::read(&at) {
            Ok(read) => rule.matches.push(read),
            Err(fault) => rule.unmatchable.extend(fault),
        }
    }
    if rule.matches.is_empty() && rule.unmatchable.is_empty() {
        rule.matches.push(Match::any());
    }
    if let Some(at) = fields.get("filters") {
        rule.filters = Filters::read(&at, &mut rule.failing);
    }
    if rule.filters.redirect.is_some() && !rule.backends().is_empty() {
        at.error("a rule that redirects has no backends", "remove backendRefs, or the RequestRedirect");
    }
    rule.timeouts = fields.get("timeouts").map(|at| RouteTimeouts::read(&at)).unwrap_or_default();
    if let Some(at) = fields.get("retry") {
        experimental(&at, "retry");
        rule.retry = Some(RouteRetry::read(&at));
    }
    if let Some(at) = fields.get("sessionPersistence") {
        experimental(&at, "sessionPersistence");
        rule.session = SessionPersistence::read(&at, &mut rule.failing);
    }
    fields.done();
    prefixes(at, &rule);
    rule
}

/// What replaces a prefix must know which one.
fn prefixes(at: &Cursor<'_>, rule: &Rule) {
    let replaces = |filters: &Filters| {
        let redirect = filters.redirect.as_ref().and_then(|redirect| redirect.path.as_ref());
        let rewrite = filters.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
        [redirect, rewrite].into_iter().flatten().any(|path| matches!(path, PathChange::Prefix(_)))
    };
    let used = replaces(&rule.filters) || rule.backends().iter().any(|backend| replaces(&backend.filters));
    let one = matches!(rule.matches.as_slice(), [Match { path: PathMatch::Prefix(_), .. }]);
    if used && !one && rule.unmatchable.is_empty() {
        at.error("ReplacePrefixMatch needs exactly one match in its rule, and that of type PathPrefix", "split the rule");
    }
}
