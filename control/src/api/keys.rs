//! The condition `KeysFetched` of a RequestAuthentication: whether every proxy that has it reaches its issuers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::consumers::ending;
use crate::publish::board::Board;
use crate::translate::{Condition, Status};
use crate::world::edge::{Consumer, OidcLogin};
use crate::world::security::authentication::JwtKeys;
use crate::world::{Object, Spec};

/// Places of keys that some proxy does not reach: proxy and cause, by address.
#[derive(Debug, Default)]
pub(super) struct KeysAway {
    away: BTreeMap<String, (String, String)>,
    now_ms: i64,
}

impl KeysAway {
    /// What connected proxies say now.
    pub(super) fn read(board: &Arc<Board>) -> Self {
        let mut away = BTreeMap::new();
        for proxy in board.correspondents() {
            let rows = board.correspondent(&proxy, |correspondent| correspondent.traffic.keys_away.clone()).unwrap_or_default();
            for row in rows {
                away.entry(row.uri).or_insert_with(|| (proxy.clone(), row.error));
            }
        }
        Self { away, now_ms: i64::try_from(board.clock.ms()).unwrap_or(i64::MAX) }
    }

    /// Adds the condition where an object has keys fetched, beside `Accepted`.
    pub(super) fn complete(&self, object: &Object, status: &mut Status) {
        if let Spec::Consumer(consumer) = &object.spec {
            expiring(consumer, self.now_ms, status);
            return;
        }
        if let Spec::OidcLogin(login) = &object.spec {
            self.provider(login, status);
            return;
        }
        let Spec::RequestAuthentication(spec) = &object.spec else { return };
        // At an edge requests are answered for want of keys; inside, where only tokens are refused, the word is older.
        let kind = if spec.attachment.targets.is_empty() { "KeysFetched" } else { "KeysAvailable" };
        let uris: Vec<String> = spec
            .rules
            .iter()
            .filter_map(|rule| if let JwtKeys::Fetched(uri) = &rule.keys { Some(uri.uri().to_string()) } else { None })
            .collect();
        if uris.is_empty() {
            return;
        }
        let found = uris.iter().find_map(|uri| Some((uri, self.away.get(uri)?)));
        let (reason, message) = match found {
            Some((uri, (proxy, error))) => ("Unreachable", format!("{proxy} cannot fetch {uri}: {error}")),
            None => ("Fetched", String::new()),
        };
        say(status, (kind, found.is_none()), reason, &message);
    }

    /// Adds `ProviderReady` where an object names a provider.
    fn provider(&self, login: &OidcLogin, status: &mut Status) {
        let Some(issuer) = &login.issuer else { return };
        match self.away.get(issuer) {
            Some((proxy, error)) => {
                say(status, ("ProviderReady", false), "Unreachable", &format!("{proxy} does not find {issuer}: {error}"))
            }
            None => say(status, ("ProviderReady", true), "Found", ""),
        }
    }
}

/// Adds a condition to every ancestor.
fn say(status: &mut Status, (kind, holds): (&str, bool), reason: &str, message: &str) {
    for ancestor in &mut status.ancestors {
        let Some(generation) = ancestor.conditions.first().map(|accepted| accepted.observed_generation) else { continue };
        ancestor.conditions.push(Condition {
            kind: kind.to_owned(),
            status: if holds { "True" } else { "False" },
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: generation,
        });
    }
}

/// Adds the condition `Expiring` where a credential ends soon.
fn expiring(consumer: &Consumer, now_ms: i64, status: &mut Status) {
    let Some(generation) = status.conditions.first().map(|accepted| accepted.observed_generation) else { return };
    let Some((what, when)) = ending(consumer, now_ms) else { return };
    status.conditions.push(Condition {
        kind: "Expiring".to_owned(),
        status: "True",
        reason: "Expiring".to_owned(),
        message: format!("{what} ends at {when}"),
        observed_generation: generation,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::translate::statuses;
    use crate::world::{Allocations, World, WorldSettings};

    #[test]
    fn a_condition_says_who_does_not_reach_its_issuer() {
        // Aim: only objects with fetched keys have it, and only those whose place is away are told so, with proxy and cause.
        let rule = |name: &str, keys: &str| {
            format!(
                "apiVersion: meshwright.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{jwtRules: [{{issuer: i, {keys}}}]}}\n---\n"
            )
        };
        let given = r#"jwks: '{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}'"#;
        let text = rule("given", given) + &rule("near", "jwksUri: 'https://near/'") + &rule("far", "jwksUri: 'https://far/'");
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
        let away =
            KeysAway { away: BTreeMap::from([("https://far/".to_owned(), ("a/store".to_owned(), "refused".to_owned()))]), now_ms: 0 };
        let mut said = BTreeMap::new();
        for (key, mut status) in statuses(&world) {
            away.complete(world.get(&key).unwrap(), &mut status);
            let told = status.ancestors[0].conditions.iter().find(|condition| condition.kind == "KeysFetched").cloned();
            said.insert(key.name, told.map(|condition| (condition.status, condition.message)));
        }
        assert_eq!(said["given"], None);
        assert_eq!(said["near"], Some(("True", String::new())));
        assert_eq!(said["far"], Some(("False", "a/store cannot fetch https://far/: refused".to_owned())));
    }
}
