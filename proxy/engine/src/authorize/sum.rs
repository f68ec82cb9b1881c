//! What policies come to together: it is bounded over all that select one workload, not over each.

use proto::mesh::{Authorization, AuthorizationRule, CallSource, CallTarget};

/// Most policies of one workload.
pub const POLICIES_MAX: usize = 10_000;
/// Most rules of all of them.
pub const RULES_MAX: usize = 20_000;
/// Most items of all of them.
pub const ITEMS_OF_ALL_MAX: usize = 500_000;
/// Most conditions in CEL of all of them.
pub const CONDITIONS_MAX: usize = 2_000;

/// What policies come to together, as far as that is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicySum {
    /// How many they are; at most [`POLICIES_MAX`].
    pub policies: usize,
    /// Their rules; at most [`RULES_MAX`].
    pub rules: usize,
    /// What the lists of the rules hold; at most [`ITEMS_OF_ALL_MAX`].
    pub items: usize,
    /// Their conditions in CEL; at most [`CONDITIONS_MAX`].
    pub conditions: usize,
}

impl PolicySum {
    /// What one policy of these rules comes to.
    pub fn of<'r>(rules: impl IntoIterator<Item = &'r AuthorizationRule>) -> Self {
        let mut sum = Self { policies: 1, ..Self::default() };
        for rule in rules {
            let sources = rule.from.iter().chain(&rule.not_from).map(|source| 1 + of_source(source));
            let targets = rule.to.iter().chain(&rule.not_to).map(|target| 1 + of_target(target));
            sum.rules += 1;
            sum.items += sources.chain(targets).sum::<usize>();
            sum.conditions += usize::from(!rule.when.is_empty());
        }
        sum
    }

    /// What all policies of a workload come to.
    pub fn of_all(all: &Authorization) -> Self {
        all.policies.iter().map(|policy| Self::of(&policy.rules)).fold(Self::default(), Self::and)
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            policies: self.policies + other.policies,
            rules: self.rules + other.rules,
            items: self.items + other.items,
            conditions: self.conditions + other.conditions,
        }
    }

    /// The first that is more than a proxy takes: what, how many there are, and how many may be.
    pub fn beyond(&self) -> Option<(&'static str, usize, usize)> {
        let bounds = [
            ("policies", self.policies, POLICIES_MAX),
            ("rules", self.rules, RULES_MAX),
            ("items", self.items, ITEMS_OF_ALL_MAX),
            ("conditions", self.conditions, CONDITIONS_MAX),
        ];
        bounds.into_iter().find(|(_, count, most)| count > most)
    }
}

fn of_source(source: &CallSource) -> usize {
    let CallSource { principals, namespaces, ip_blocks, token, consumers, consumer_groups, scopes, auth_methods, ip_lists, peer_ip_blocks } =
        source;
    let values = token.iter().flat_map(|token| token.claims.values()).map(|claim| claim.values.len());
    let texts = [principals, namespaces, ip_blocks, consumers, consumer_groups, scopes, auth_methods, ip_lists, peer_ip_blocks];
    texts.iter().map(|texts| texts.len()).sum::<usize>() + values.sum::<usize>()
}

fn of_target(target: &CallTarget) -> usize {
    let CallTarget { ports, hosts, methods, paths, headers } = target;
    ports.len() + hosts.len() + methods.len() + paths.len() + headers.len()
}
