//! `get consumers`: who may call from outside, without what is secret of their credentials.

use serde_json::{Value, json};

use crate::publish::edition::Edition;
use crate::publish::epoch::moment;
use crate::world::edge::{Consumer, Credential, CredentialKind};
use crate::world::{Kind, Spec};

/// A consumer's credential says that it ends soon from so many milliseconds before.
pub(super) const EXPIRING_MS: i64 = 30 * 24 * 3600 * 1000;

/// One row per Consumer in force.
pub(super) fn rows(edition: &Edition, fits: impl Fn(&str, &str) -> bool) -> Value {
    let mut rows = Vec::new();
    for (key, slot) in edition.world.of_kind(Kind::Consumer).filter(|(key, _)| fits(&key.namespace, &key.name)) {
        let Some(object) = slot.live().and_then(|live| live.object.as_ref()) else { continue };
        let Spec::Consumer(consumer) = &object.spec else { continue };
        let Consumer { team, groups, disabled, expires_ms, credentials, .. } = &**consumer;
        rows.push(json!({
            "namespace": key.namespace,
            "name": key.name,
            "team": team.as_ref().unwrap_or(&key.namespace),
            "groups": groups,
            "disabled": disabled,
            "expires_at": time(*expires_ms),
            "credentials": credentials.iter().map(credential).collect::<Vec<_>>(),
        }));
    }
    Value::Array(rows)
}

fn credential(credential: &Credential) -> Value {
    let (kind, prefix) = match &credential.kind {
        CredentialKind::Key { prefix, .. } => ("ApiKey", prefix.as_str()),
        CredentialKind::KeyIn(_) => ("ApiKey", ""),
        CredentialKind::Basic { username, .. } => ("Basic", username.as_str()),
        CredentialKind::Jwt { issuer, .. } => ("Jwt", issuer.as_str()),
        CredentialKind::CertificateUri(name) | CredentialKind::CertificateDns(name) => ("Cert", name.as_str()),
        CredentialKind::CertificateHash(_) => ("Cert", ""),
    };
    json!({
        "name": credential.name,
        "kind": kind,
        "prefix": prefix,
        "not_before": time(credential.not_before_ms),
        "expires_at": time(credential.expires_ms),
        "scopes": credential.scopes,
        // Proxies count credentials by kind and verdict alone: which one it was stands in the access log.
        "last_used": Value::Null,
    })
}

fn time(at_ms: Option<i64>) -> Value {
    at_ms.and_then(|at| u64::try_from(at).ok()).map_or(Value::Null, |at| moment(at).into())
}

/// The first credential of a Consumer, or itself, that ends within a month, or has ended: its name and when. Nothing is told of what was replaced
/// by another key that goes on for longer.
pub(super) fn ending(consumer: &Consumer, now_ms: i64) -> Option<(String, String)> {
    let soon = |at: &Option<i64>| at.filter(|at| *at - now_ms <= EXPIRING_MS);
    if let Some(at) = soon(&consumer.expires_ms) {
        return Some(("the consumer".to_owned(), moment(u64::try_from(at).unwrap_or_default())));
    }
    let lasting = consumer
        .credentials
        .iter()
        .any(|one| matches!(one.kind, CredentialKind::Key { .. } | CredentialKind::KeyIn(_)) && soon(&one.expires_ms).is_none());
    let key = |one: &&Credential| !(lasting && matches!(one.kind, CredentialKind::Key { .. } | CredentialKind::KeyIn(_)));
    let first = consumer.credentials.iter().filter(key).filter_map(|one| Some((one, soon(&one.expires_ms)?))).min_by_key(|(_, at)| *at)?;
    Some((format!("credential `{}`", first.0.name), moment(u64::try_from(first.1).unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;

    fn consumer(credentials: &str) -> Consumer {
        let text = format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: Consumer\nmetadata: {{name: a, namespace: b}}\nspec: {{credentials: [{credentials}]}}\n"
        );
        let candidate = parse("f", &text).candidates.remove(0);
        let object = candidate.object.unwrap_or_else(|| panic!("{:?}", candidate.problems));
        let Spec::Consumer(consumer) = &object.spec else { panic!("{object:?}") };
        (**consumer).clone()
    }

    #[test]
    fn what_ends_within_a_month_is_told_unless_it_was_replaced() {
        // Aim: thirty days ahead and no more; a key beside one that goes on is no news; other credentials are.
        let hash = "sha256: \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"";
        let key = |name: &str, until: &str| format!("{{name: {name}, apiKey: {{{hash}}}, expiresAt: \"{until}\"}}");
        let now_ms = 1_800_000_000_000;
        let at = |days: i64| moment(u64::try_from(now_ms + days * 24 * 3600 * 1000).unwrap());
        let told = |credentials: &str| ending(&consumer(credentials), now_ms).map(|(what, _)| what);
        assert_eq!(told(&key("k1", &at(31))), None);
        assert_eq!(told(&key("k1", &at(29))).as_deref(), Some("credential `k1`"));
        assert_eq!(told(&format!("{}, {{name: k2, apiKey: {{{hash}}}}}", key("k1", &at(1)))), None);
        assert_eq!(
            told(&format!("{}, {{name: c, certificate: {{dns: a.example}}, expiresAt: \"{}\"}}", key("k1", &at(40)), at(2))).as_deref(),
            Some("credential `c`")
        );
    }
}
