//! Gateway API's order of precedence (`gateway-api.md` 4.3.1, 4.3.23): the matches of all routes that meet somewhere, sorted once, so
//! that the first that matches wins. A regular expression ranks after Exact and before PathPrefix. A gRPC call is a POST to the path
//! `/SERVICE/METHOD`, and ranks as a match on that.

use std::cmp::Reverse;
use std::sync::Arc;

use proto::names;

use super::attach::{self, content};
use crate::world::route::{Match, PathMatch, Rule};
use crate::world::{Kind, Object, World};

/// One match of one rule with all that decides its rank.
pub(super) struct RankedMatch<'a> {
    rank: Rank,
    /// The object that wrote it.
    pub route: &'a Arc<Object>,
    /// The rule.
    pub rule: &'a Rule,
    /// Index of the rule.
    pub number: usize,
    /// The match.
    pub matched: &'a Match,
    /// The host it came in by.
    pub host: String,
}

impl RankedMatch<'_> {
    /// Where it stands in its route: rule and match.
    pub(super) fn place(&self) -> (usize, usize) {
        self.rank.6
    }

    /// What the rule is called in proxies.
    pub(super) fn name(&self) -> String {
        let key = &self.route.key;
        let rule = self.rule.name.clone().unwrap_or_else(|| self.number.to_string());
        names::rule(key.kind.text(), &key.namespace, &key.name, &rule)
    }
}

/// Smaller comes first. No two entries of one host rank the same.
type Rank = (Reverse<(bool, usize)>, PathRank, Reverse<bool>, Reverse<usize>, Reverse<usize>, (i64, Arc<str>, Kind), (usize, usize));
type PathRank = (u8, Reverse<usize>, Reverse<usize>);

fn path_rank(path: &PathMatch) -> PathRank {
    let (class, most, then) = match path {
        PathMatch::Exact(path) => (0, path.len(), 0),
        PathMatch::Regex(pattern) => (1, pattern.len(), 0),
        PathMatch::Prefix(prefix) => (2, prefix.len(), 0),
        // With its slash, as a prefix would be written.
        PathMatch::Service(service) => (2, service.len() + 1, 0),
        // No character of the service: behind every prefix but the root. Expressions behind names.
        PathMatch::Method(method) => (2, 1, if method.starts_with('(') { 0 } else { method.len() }),
    };
    (class, Reverse(most), Reverse(then))
}

/// The entries of routes, each with the hosts it comes in by, in order of precedence.
pub(super) fn entries<'a>(world: &World, routes: impl IntoIterator<Item = (&'a Arc<Object>, String)>) -> Vec<RankedMatch<'a>> {
    let mut entries = Vec::new();
    for (route, host) in routes {
        let Some(spec) = content(route) else { continue };
        let origin = (world.created_ms(route), Arc::<str>::from(route.key.path()), route.key.kind);
        // A rule keeps its place also where some of its matches cannot be read: a broader one must not have its requests.
        for (number, rule) in spec.rules.iter().enumerate() {
            for (place, matched) in rule.matches.iter().enumerate() {
                let rank = (
                    Reverse(attach::narrowness(&host)),
                    path_rank(&matched.path),
                    Reverse(matched.method.is_some() || route.key.kind == Kind::GRPCRoute),
                    Reverse(matched.headers.len()),
                    Reverse(matched.query.len()),
                    origin.clone(),
                    (number, place),
                );
                entries.push(RankedMatch { rank, route, rule, number, matched, host: host.clone() });
            }
        }
    }
    entries.sort_by(|a, b| a.rank.cmp(&b.rank));
    entries
}

#[cfg(test)]
#[path = "rank_tests.rs"]
mod tests;
