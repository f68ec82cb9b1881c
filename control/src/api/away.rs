//! The condition `Degraded`: what an object relies on is away from some proxy. It changes no configuration.

use std::collections::BTreeMap;

use proto::mesh::Traffic;
use serde_json::Value;

use crate::publish::board::Board;
use crate::publish::epoch::moment;
use crate::publish::peer::{edge_key, gateway_of};
use crate::translate::{Condition, Status};
use crate::world::edge::EdgeRateLimit;
use crate::world::{Object, Spec};

/// What some proxy does not reach, by kind and name as `meshwright_degraded` has them.
#[derive(Debug, Default)]
pub(crate) struct Away(BTreeMap<(String, String), Vec<AwayFrom>>);

/// From whom, why, and since when.
#[derive(Debug)]
struct AwayFrom {
    proxy: String,
    error: String,
    since_secs: u64,
}

impl Away {
    /// What connected proxies say now.
    pub(crate) fn read(board: &Board) -> Self {
        let mut away: BTreeMap<_, Vec<AwayFrom>> = BTreeMap::new();
        for proxy in board.correspondents() {
            let told = |traffic: &Traffic| (traffic.stores_away.clone(), traffic.services_away.clone());
            let Some((stores, services)) = board.correspondent(&proxy, |correspondent| told(&correspondent.traffic)) else { continue };
            let stores = stores.into_iter().map(|row| ((RATE_LIMIT.to_owned(), row.store), row.error, row.since_secs));
            let services = services.into_iter().map(|row| ((row.kind, row.name), row.error, row.since_secs));
            for (what, error, since_secs) in stores.chain(services) {
                away.entry(what).or_default().push(AwayFrom { proxy: proxy.clone(), error, since_secs });
            }
        }
        Self(away)
    }

    /// Adds the condition where what an object relies on is away from a proxy that has it: one of the Gateway that an entry is about, or where that is
    /// another thing any.
    pub(crate) fn complete(&self, object: &Object, status: &mut Status) {
        let (kind, name, reason) = match &object.spec {
            Spec::RateLimit(spec) => match store(spec, &object.key.namespace) {
                Some(store) => (RATE_LIMIT, store, "StoreAway"),
                None => return,
            },
            Spec::ExternalAuth(_) => ("ExternalAuth", object.key.path(), "ServiceAway"),
            // It is told by port: a Gateway's proxies have no HTTP/3 but what is wanted of it.
            Spec::ClientPolicy(spec) if spec.http3 == Some(true) => return self.without_http3(status),
            Spec::RequestAuthentication(spec) if spec.introspection.is_some() => ("Introspection", object.key.path(), "ServiceAway"),
            _ => return,
        };
        let Some(away) = self.0.get(&(kind.to_owned(), name.clone())) else { return };
        let what = if reason == "StoreAway" { name } else { "what it asks".to_owned() };
        for ancestor in &mut status.ancestors {
            let gateway = gateway(&ancestor.ancestor_ref);
            let from: Vec<&AwayFrom> = away.iter().filter(|from| gateway.as_ref().is_none_or(|gateway| from.is_of(gateway))).collect();
            ancestor.conditions.extend(degraded(&from, reason, ancestor.conditions.first(), |count, since| {
                format!("{what} is away from {count} since {since}")
            }));
        }
    }

    /// The same where a proxy of the Gateway that an entry is about does not serve HTTP/3 as it should.
    fn without_http3(&self, status: &mut Status) {
        let away: Vec<&AwayFrom> = self.0.iter().filter(|((kind, _), _)| kind == HTTP3).flat_map(|(_, away)| away).collect();
        for ancestor in &mut status.ancestors {
            let Some(gateway) = gateway(&ancestor.ancestor_ref) else { continue };
            let from: Vec<&AwayFrom> = away.iter().copied().filter(|from| from.is_of(&gateway)).collect();
            ancestor.conditions.extend(degraded(&from, "Http3Away", ancestor.conditions.first(), |count, since| {
                format!("http3.enabled: {count} does not serve HTTP/3 since {since}")
            }));
        }
    }
}

impl AwayFrom {
    fn is_of(&self, gateway: &str) -> bool {
        gateway_of(&self.proxy).unwrap_or(self.proxy.as_str()) == gateway
    }
}

/// `accepted` is of the same entry. `None`: nobody says so.
fn degraded(from: &[&AwayFrom], reason: &str, accepted: Option<&Condition>, words: impl FnOnce(&str, &str) -> String) -> Option<Condition> {
    let (first, since_secs) = (from.first()?, from.iter().map(|from| from.since_secs).min()?);
    let since = moment(since_secs.saturating_mul(1000));
    let count = if from.len() == 1 { "1 proxy".to_owned() } else { format!("{} proxies", from.len()) };
    Some(Condition {
        kind: "Degraded".to_owned(),
        status: "True",
        reason: reason.to_owned(),
        message: format!("{}; {}: {}", words(&count, &since), first.proxy, first.error),
        observed_generation: accepted?.observed_generation,
    })
}

/// The kind under which proxies tell of ports without HTTP/3.
const HTTP3: &str = "Http3";
/// The kind under which proxies tell of stores.
const RATE_LIMIT: &str = "RateLimit";

/// Who counts for all proxies, as they name it; `None`: nobody does.
fn store(spec: &EdgeRateLimit, namespace: &str) -> Option<String> {
    match (&spec.store.redis, &spec.store.rls) {
        (Some(redis), _) => Some(format!("redis/{}", redis.address().to_ascii_lowercase())),
        (None, Some(rls)) => Some(format!("rls/{}", rls.address(namespace))),
        (None, None) => spec.limits.iter().any(|limit| limit.shared).then(|| "leases".to_owned()),
    }
}

/// The key of the Gateway that an entry is about.
fn gateway(ancestor: &Value) -> Option<String> {
    let text = |field: &str| ancestor.get(field).and_then(Value::as_str);
    Some(edge_key(text("namespace")?, text("name")?)).filter(|_| text("kind") == Some("Gateway"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::translate::{AncestorStatus, statuses};
    use crate::world::{Allocations, World, WorldSettings};

    #[test]
    fn a_condition_says_from_whom_a_store_is_away() {
        // Aim: only objects with that very store have it, with how many proxies, since when and why.
        let limit = |name: &str, store: &str| {
            format!(
                "apiVersion: meshwright.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{limits: [{{name: all, requests: 1, per: 1s}}], store: {store}}}\n---\n"
            )
        };
        let asks = |name: &str| {
            format!(
                "apiVersion: meshwright.dev/v1alpha1\nkind: ExternalAuth\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{backendRef: {{name: s, port: 1}}}}\n---\n"
            )
        };
        let text = asks("asks")
            + &asks("idle")
            + &limit("leases", "{leases: {}}")
            + &limit("near", "{redis: {addresses: ['near:1']}}")
            + &limit("far", "{redis: {addresses: ['Far:1']}}");
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
        let from = |proxy: &str, error: &str, since_secs| AwayFrom { proxy: proxy.to_owned(), error: error.to_owned(), since_secs };
        let named = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
        let closed = || vec![from("edge/a/edge", "it has closed the connection", 60), from("edge/a/edge/two", "refused", 0)];
        let away = Away(
            [
                (named("RateLimit", "redis/far:1"), closed()),
                (named("RateLimit", "leases"), vec![from("edge/a/edge", "silent", 0)]),
                (named("ExternalAuth", "a/asks"), vec![from("edge/a/edge", "it does not answer in time", 0)]),
            ]
            .into(),
        );
        for (key, mut status) in statuses(&world) {
            away.complete(world.get(&key).unwrap(), &mut status);
            let told = status.ancestors[0].conditions.iter().find(|condition| condition.kind == "Degraded").cloned();
            let told = told.map(|condition| (condition.status, condition.message));
            let wanted = match key.name.as_str() {
                "far" => "redis/far:1 is away from 2 proxies since 1970-01-01T00:00:00Z; edge/a/edge: it has closed the connection",
                "leases" => "leases is away from 1 proxy since 1970-01-01T00:00:00Z; edge/a/edge: silent",
                "asks" => "what it asks is away from 1 proxy since 1970-01-01T00:00:00Z; edge/a/edge: it does not answer in time",
                _ => {
                    assert_eq!(told, None, "{key}");
                    continue;
                }
            };
            assert_eq!(told, Some(("True", wanted.to_owned())), "{key}");
        }
    }

    #[test]
    fn a_gateways_entry_speaks_of_its_own_proxies() {
        // Aim: of an object at two Gateways only the one whose proxy, or replica, is cut off has the condition.
        let ancestor = |name: &str| AncestorStatus {
            ancestor_ref: serde_json::json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "a", "name": name}),
            controller_name: "c",
            conditions: vec![Condition {
                kind: "Accepted".to_owned(),
                status: "True",
                reason: String::new(),
                message: String::new(),
                observed_generation: 3,
            }],
        };
        let text = "apiVersion: meshwright.dev/v1alpha1\nkind: ExternalAuth\nmetadata: {name: e, namespace: a}\nspec: {backendRef: {name: s, port: 1}}\n";
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) }], 0));
        let (key, _) = statuses(&world).into_iter().next().unwrap();
        let from = AwayFrom { proxy: "edge/a/one/pod-7".to_owned(), error: "x".to_owned(), since_secs: 0 };
        let away = Away([(("ExternalAuth".to_owned(), "a/e".to_owned()), vec![from])].into());
        let mut status = Status { ancestors: vec![ancestor("one"), ancestor("two")], ..Status::default() };
        away.complete(world.get(&key).unwrap(), &mut status);
        let degraded: Vec<usize> = status.ancestors.iter().map(|ancestor| ancestor.conditions.len()).collect();
        assert_eq!(degraded, [2, 1]);
        assert_eq!(status.ancestors[0].conditions[1].observed_generation, 3);
    }

    #[test]
    fn a_policy_says_where_its_http3_is_not_served() {
        // Aim: of a policy that turns HTTP/3 on the entry of the Gateway has the condition whose proxies do not serve it, with how many and why; one
        // that does not has none.
        let text = |http3: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: one, namespace: a}}\nspec:\n  gatewayClassName: meshwright\n  \
                 listeners: [{{name: web, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: c}}]}}}}]\n---\n\
                 apiVersion: meshwright.dev/v1alpha1\nkind: ClientPolicy\nmetadata: {{name: p, namespace: a}}\n\
                 spec: {{targetRefs: [{{kind: Gateway, name: one}}], http3: {{enabled: {http3}}}}}\n"
            )
        };
        let from =
            |proxy: &str| AwayFrom { proxy: proxy.to_owned(), error: "this proxy is built without HTTP/3".to_owned(), since_secs: 0 };
        let away = Away([(("Http3".to_owned(), "443".to_owned()), vec![from("edge/a/one/pod-1"), from("edge/a/other")])].into());
        for (enabled, wanted) in [
            (
                "true",
                Some(
                    "http3.enabled: 1 proxy does not serve HTTP/3 since 1970-01-01T00:00:00Z; edge/a/one/pod-1: this proxy is built without HTTP/3",
                ),
            ),
            ("false", None),
        ] {
            let mut world = World::new(WorldSettings::default(), Allocations::default());
            world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text(enabled))) }], 0));
            let (key, mut status) = statuses(&world).into_iter().find(|(key, _)| key.kind == crate::world::Kind::ClientPolicy).unwrap();
            away.complete(world.get(&key).unwrap(), &mut status);
            let told: Vec<&Condition> = status.ancestors.iter().flat_map(|ancestor| &ancestor.conditions).collect();
            let told = told.into_iter().find(|condition| condition.kind == "Degraded");
            assert_eq!(
                told.map(|condition| (condition.reason.as_str(), condition.message.as_str())),
                wanted.map(|words| ("Http3Away", words))
            );
        }
    }
}
