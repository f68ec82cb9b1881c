//! Narrower objects that let in more than wider ones do: who is told what.

use super::tests::world;
use crate::translate::{audit, statuses};
use crate::world::ObjectKey;

const ROUTE: &str = "targetRefs: [{kind: HTTPRoute, name: r}]";
const GATEWAY: &str = "targetRefs: [{kind: Gateway, name: edge}]";

fn object(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!("kind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}")
}

/// What becomes of a Gateway's object of shop and a route's of team: the messages of `Accepted`, and how often `analyze` warns of each.
fn told(kind: &str, wide: &str, narrow: &str) -> (String, String, usize) {
    let texts =
        [object(kind, "wide", "shop", &format!("{GATEWAY}, {wide}")), object(kind, "narrow", "team", &format!("{ROUTE}, {narrow}"))];
    let world = world(&[&texts[0], &texts[1]]);
    let said = |namespace: &str, name: &str| {
        let key =
            world.live().map(|(key, _)| key.clone()).find(|key| key.kind.text() == kind && key.namespace == namespace && key.name == name);
        let status = &statuses(&world)[&key.unwrap_or_else(|| panic!("{kind} {name} is good: {wide}; {narrow}"))];
        let accepted = status.ancestors[0].conditions.iter().find(|condition| condition.kind == "Accepted").unwrap();
        accepted.message.clone()
    };
    let warned = audit(&world).iter().map(ToString::to_string).filter(|line| line.contains("loosen")).count();
    (said("shop", "wide"), said("team", "narrow"), warned)
}

#[test]
fn both_are_told_of_what_a_narrower_object_lets_in() {
    // Aim: every field of each kind that guards by which a route's author gets around what a Gateway's says; both objects' status says so, and
    // `analyze` warns at both.
    for (kind, wide, narrow, fields) in [
        ("ExternalAuth", "backendRef: {name: s, port: 80}", "onError: Allow, dryRun: true", "dryRun, onError"),
        ("ExternalAuth", "backendRef: {name: s, port: 80}", "backendRef: {name: s, port: 80}", "backendRef"),
        ("ExternalAuth", "backendRef: {name: s, port: 80}", "when: 'request.method == \"POST\"'", "when"),
        ("ExternalAuth", "backendRef: {name: s, port: 80}, forwardBody: {maxBytes: 10}", "forwardBody: {maxBytes: 0}", "forwardBody"),
        ("ExternalAuth", "backendRef: {name: s, port: 80}, onError: Allow", "timeout: 1ms", "timeout"),
        ("ExternalAuth", "backendRef: {name: s, port: 80}", "cache: {ttl: 1h, key: [{path: {}}]}", "cache"),
        (
            "ExternalAuth",
            "backendRef: {name: s, port: 80}, protocol: Http, http: {allowedResponseHeaders: [x-user]}",
            "protocol: Http, http: {path: /open, allowedResponseHeaders: []}",
            "http.allowedResponseHeaders, http.path",
        ),
        ("ApiKeyAuth", "mode: Required, scopes: [pay]", "mode: Optional, scopes: []", "mode, scopes"),
        ("ApiKeyAuth", "consumers: {namespaces: Same}", "consumers: {namespaces: Same}", "consumers"),
        (
            "ApiKeyAuth",
            "forward: {headers: [{name: x-a, value: b}]}",
            "forward: {credential: Keep, headers: []}",
            "forward.credential, forward.headers",
        ),
        ("BasicAuth", "realm: a", "mode: Optional, failures: {perMinute: 1000, key: [{clientAddress: {}}]}", "failures, mode"),
        (
            "RequestAuthentication",
            "mode: Required, jwtRules: [{issuer: a, jwksUri: 'https://id.example/k'}]",
            "mode: Optional, jwtRules: [{issuer: a, jwksUri: 'https://id.example/k'}]",
            "mode",
        ),
        (
            "RequestAuthentication",
            "jwtRules: [{issuer: a, jwksUri: 'https://id.example/k'}]",
            "jwtRules: [{issuer: b, jwksUri: 'https://id.example/k'}]",
            "jwtRules",
        ),
        ("OidcLogin", "issuer: 'https://a.example', clientId: c", "mode: Optional, issuer: 'https://b.example'", "issuer, mode"),
        ("OidcLogin", "issuer: 'https://a.example', clientId: c", "session: {idle: 2h, max: 24h}", "session.idle, session.max"),
    ] {
        let (of_wide, of_narrow, warned) = told(kind, wide, narrow);
        assert_eq!(of_wide, format!("is loosened by {kind} team/narrow ({fields})"), "{kind} {narrow}");
        assert_eq!(of_narrow, format!("loosens what is said by {kind} shop/wide ({fields})"), "{kind} {narrow}");
        assert_eq!(warned, 2, "{kind} {narrow}");
    }
}

#[test]
fn what_is_stricter_or_locked_is_nobodys_trouble() {
    // Aim: a narrower word that lets in less, or only otherwise, is no warning; nor is one that the wider object has locked, which does not hold.
    for (kind, wide, narrow) in [
        ("ExternalAuth", "backendRef: {name: s, port: 80}, onError: Allow, dryRun: true", "onError: Deny, dryRun: false, timeout: 1s"),
        ("ExternalAuth", "backendRef: {name: s, port: 80}, locked: true, onError: Deny", "onError: Allow"),
        ("ApiKeyAuth", "mode: Optional, scopes: [a]", "mode: Required, scopes: [a, b], from: [{query: key}]"),
        ("BasicAuth", "realm: a", "realm: b, failures: {perMinute: 5, key: [{clientAddress: {}}]}"),
        (
            "RequestAuthentication",
            "mode: Optional, jwtRules: [{issuer: a, jwksUri: 'https://id.example/k'}]",
            "mode: Required, jwtRules: [{issuer: a, jwksUri: 'https://id.example/k'}]",
        ),
        (
            "RequestAuthentication",
            "jwtRules: [{issuer: a, jwksUri: 'https://id.example/k'}]",
            "jwtRules: [{issuer: a, audiences: [b], jwksUri: 'https://id.example/k'}]",
        ),
        ("OidcLogin", "issuer: 'https://a.example', clientId: c", "session: {idle: 10m}, when: Never"),
    ] {
        let (of_wide, of_narrow, warned) = told(kind, wide, narrow);
        assert!(!of_wide.contains("loosen") && !of_narrow.contains("loosen") && warned == 0, "{kind} {narrow}: {of_wide} {of_narrow}");
    }
}

#[test]
fn who_loosens_is_named_up_to_a_bound() {
    // Aim: of ten narrower objects eight are named, and how many more there are.
    let mut texts = vec![object("ExternalAuth", "wide", "shop", &format!("{GATEWAY}, backendRef: {{name: s, port: 80}}"))];
    let rule = "targetRefs: [{kind: HTTPRoute, name: r, sectionName: one}]";
    texts.push(object("ExternalAuth", "n", "team", &format!("{rule}, onError: Allow")));
    texts.extend((0..9).map(|number| {
        let route = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{number}, namespace: team}}\nspec:\n  \
             parentRefs: [{{name: edge, namespace: shop, sectionName: web}}]\n  rules: [{{backendRefs: [{{name: s, port: 80}}]}}]\n---\n"
        );
        let own = object(
            "ExternalAuth",
            &format!("n{number}"),
            "team",
            &format!("targetRefs: [{{kind: HTTPRoute, name: r{number}}}], onError: Allow"),
        );
        format!("{route}apiVersion: meshwright.dev/v1alpha1\n{own}\n")
    }));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let world = world(&texts);
    let status = &statuses(&world)[&ObjectKey::new(crate::world::Kind::ExternalAuth, "shop", "wide")];
    let message = &status.ancestors[0].conditions[0].message;
    assert_eq!(message.matches("(onError)").count(), 8, "{message}");
    assert!(message.ends_with(", 2 more"), "{message}");
}
