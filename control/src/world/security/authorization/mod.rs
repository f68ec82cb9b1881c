//! AuthorizationPolicy: who may call (`kinds.md`). Every field is honoured or refused here, an empty list too: nobody can tell whether it
//! means all or none. What its reader yields is what travels to proxies, rule by rule.

mod call;

use engine::authorize::PolicySum;
pub use proto::mesh::authorization_policy::Action;
use proto::mesh::{Authorization, AuthorizationPolicy as Sent, AuthorizationRule};
use proto::names;

use super::taken;
use crate::world::ObjectKey;
use crate::world::door::{Cursor, Fields};
use crate::world::edge::EdgeAttachment;
use crate::world::own::{Selector, read_selector};

/// Most rules of a policy.
pub const RULES_MAX: usize = 1_000;
/// Most callers or targets of a rule.
const BLOCKS_MAX: usize = 64;
/// Most items of one of their lists.
const ITEMS_MAX: usize = 256;
/// Longest name of a rule.
pub const NAME_BYTES_MAX: usize = 63;

/// Who may call. Policies add up: none overrides another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthorizationPolicy {
    /// Gateways and routes, where an edge judges; by itself, nothing.
    pub attachment: EdgeAttachment,
    /// Serving workloads, by their labels; never together with targets.
    pub selector: Selector,
    /// What it does to a call that one of its rules holds for.
    pub action: Action,
    /// Whether it only logs and counts.
    pub dry_run: bool,
    /// One of them must hold.
    pub rules: Vec<WrittenRule>,
}

/// A rule and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenRule {
    /// Line in the file.
    pub line: u32,
    /// As proxies are told.
    pub rule: AuthorizationRule,
}

impl AuthorizationPolicy {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let attachment = EdgeAttachment::read_targets(&mut fields);
        let selector = read_selector(&mut fields);
        if selector.is_some() && !attachment.targets.is_empty() {
            fields.at().error("it has both targetRefs and a selector", "keep one of them");
        }
        let words = [("Allow", Action::Allow), ("Deny", Action::Deny), ("Audit", Action::Audit)];
        let action = fields.get("action").map_or(Some(Action::Allow), |at| at.word(&words));
        let dry_run = fields.get("dryRun").is_some_and(|at| at.flag() == Some(true));
        let rules = fields.get("rules").map(|at| rules(&at)).unwrap_or_default();
        let at = fields.at().clone();
        fields.done();
        let lists = rules
            .iter()
            .flat_map(|written| written.rule.from.iter().chain(&written.rule.not_from))
            .any(|source| !source.ip_lists.is_empty());
        if lists && attachment.targets.is_empty() {
            at.error("lists of addresses are judged at Gateways only", "name a Gateway or a route in targetRefs, or write ipBlocks");
        }
        let policy = Self { attachment, selector, action: action?, dry_run, rules };
        if !at.refused()
            && let Err(wrong) = policy.judged(at.key())
        {
            at.error(format!("proxies would not take it: {wrong}"), "correct it, or make it smaller");
        }
        Some(policy)
    }

    /// As proxies are told.
    pub fn sent(&self, key: &ObjectKey) -> Sent {
        let rules = self.rules.iter().map(|written| written.rule.clone()).collect();
        Sent { name: key.path(), action: self.action.into(), dry_run: self.dry_run, rules }
    }

    /// What the proxy's engine says of it. Conditions were asked where they stand, and are not compiled again.
    fn judged(&self, key: &ObjectKey) -> Result<(), String> {
        let mut policy = self.sent(key);
        policy.rules.iter_mut().for_each(|rule| rule.when.clear());
        taken(names::INBOUND, &Authorization { policies: vec![policy], dry_run: false })
    }

    /// What it takes of what a proxy has room for.
    pub fn sum(&self) -> PolicySum {
        PolicySum::of(self.rules.iter().map(|written| &written.rule))
    }

    /// Whether a selector, or neither, says whom it is about: then the servers' sidecars judge.
    pub fn inbound(&self) -> bool {
        self.attachment.targets.is_empty()
    }
}

/// The ConfigMaps whose lists of addresses a policy asks.
pub fn lists(policy: &AuthorizationPolicy) -> impl Iterator<Item = &String> {
    let rules = policy.rules.iter().map(|written| &written.rule);
    rules.flat_map(|rule| rule.from.iter().chain(&rule.not_from)).flat_map(|source| &source.ip_lists)
}

fn rules(at: &Cursor<'_>) -> Vec<WrittenRule> {
    let mut rules: Vec<WrittenRule> = Vec::new();
    for (number, at) in at.list(RULES_MAX).iter().enumerate() {
        let Some(rule) = rule(number, at) else { continue };
        if rules.iter().any(|known| known.rule.name == rule.name) {
            at.error(format!("a rule `{}` stands twice", rule.name), "give each its own name: logs name rules by it");
        }
        rules.push(WrittenRule { line: at.line(), rule });
    }
    rules
}

/// Its name is the given one, else its place.
fn rule(number: usize, at: &Cursor<'_>) -> Option<AuthorizationRule> {
    let mut fields = at.fields();
    let name = fields.get("name").map_or_else(|| Some(number.to_string()), |at| name(&at));
    let from = fields.get("from").map(|at| blocks(&at, call::source));
    let to = fields.get("to").map(|at| blocks(&at, call::target));
    let (mut not_from, mut not_to) = (None, None);
    if let Some(at) = fields.get("not") {
        let mut not = at.fields();
        not_from = not.get("from").map(|at| blocks(&at, call::source));
        not_to = not.get("to").map(|at| blocks(&at, call::target));
        not.done();
        if not_from.is_none() && not_to.is_none() {
            at.error("it excludes nothing", "add `from` or `to` below it, or remove it");
        }
    }
    let when = fields.get("when").map_or_else(|| Some(String::new()), |at| condition(&at));
    fields.done();
    // A block that does not read is an error already: it never widens the rule.
    Some(AuthorizationRule {
        name: name?,
        from: from.unwrap_or_default(),
        to: to.unwrap_or_default(),
        not_from: not_from.unwrap_or_default(),
        not_to: not_to.unwrap_or_default(),
        when: when?,
    })
}

fn name(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let fits =
        (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !fits {
        at.error(
            format!("`{}` is no name of a rule", text.chars().take(NAME_BYTES_MAX).collect::<String>()),
            "use 1 to 63 letters, digits, `-`, `_` and `.`",
        );
        return None;
    }
    Some(text)
}

fn blocks<T>(at: &Cursor<'_>, read: fn(&Cursor<'_>) -> Option<T>) -> Vec<T> {
    some(at, BLOCKS_MAX).iter().filter_map(read).collect()
}

/// The items of a list that has some.
fn some<'a>(at: &Cursor<'a>, max: usize) -> Vec<Cursor<'a>> {
    let items = at.list(max);
    if items.is_empty() && at.is_list() {
        at.error("an empty list: does it mean all, or none?", "list something, or remove it");
    }
    items
}

/// An expression that the proxy's own engine takes.
fn condition(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if let Err(wrong) = engine::authorize::check(&text) {
        at.error(format!("the condition {wrong}"), "see docs/authorization.md for what it may say");
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests;
