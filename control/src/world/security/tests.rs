use std::time::Duration;

use super::authentication::{JwtKeys, RequestAuthentication};
use crate::source::parse;
use crate::world::{Candidate, Spec};

const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"bench","x":"hwJCQ_O__uuFcIs9bTETs-FQYoaLEsm_LUBbLD_gWbM","y":"CKIBB8_1R6ny99dCtrvfCH1GTfDKS_SW5sgFf6XzC74"}]}"#;

fn candidate(spec: &str) -> Candidate {
    let text = format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: t, namespace: shop}}\nspec: {{{spec}}}\n"
    );
    parse("f.yaml", &text).candidates.remove(0)
}

/// What is wrong with a rule, warnings too: field, message, remedy.
fn wrong(rule: &str) -> Vec<String> {
    let problems = candidate(&format!("jwtRules: [{{{rule}}}]")).problems;
    problems.iter().map(|problem| format!("{}: {} ({})", problem.field, problem.message, problem.remedy)).collect()
}

fn good(spec: &str) -> RequestAuthentication {
    let candidate = candidate(spec);
    assert!(candidate.problems.is_empty(), "{spec}: {:?}", candidate.problems);
    let Some(Spec::RequestAuthentication(read)) = candidate.object.map(|object| object.spec.clone()) else { panic!("{spec}") };
    read
}

#[test]
fn every_field_of_a_rule_is_read() {
    // Aim: the schema's example keeps each of its values; what is not said has its documented default.
    let keys = format!("jwks: '{JWKS}'");
    let all = format!(
        "selector: {{matchLabels: {{app: store}}}}, jwtRules: [{{issuer: 'https://id.example', audiences: [store], {keys}, \
         fromHeaders: [{{name: X-Token}}, {{name: Authorization, prefix: 'Token '}}], fromQuery: [token], fromCookies: [sid], forwardToken: true, \
         claimsToHeaders: [{{claim: realm.roles, header: X-Roles}}], clockSkew: 1m}}]"
    );
    let read = good(&all);
    let rule = &read.rules[0];
    assert_eq!(read.selector.as_ref().map(|labels| labels["app"].as_str()), Some("store"));
    assert_eq!((rule.issuer.as_str(), rule.audiences.as_slice()), ("https://id.example", &["store".to_owned()][..]));
    assert_eq!(rule.keys, JwtKeys::Given(JWKS.to_owned()));
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(rule.headers, [pair("x-token", ""), pair("authorization", "Token ")]);
    assert_eq!((rule.query.as_slice(), rule.cookies.as_slice()), (&["token".to_owned()][..], &["sid".to_owned()][..]));
    assert_eq!((rule.forward, rule.skew), (true, Duration::from_secs(60)));
    assert_eq!(rule.fills, [pair("realm.roles", "x-roles")]);
    let bare = good("jwtRules: [{issuer: a, jwksUri: 'https://id.example:8443/keys?a=b'}]");
    let rule = &bare.rules[0];
    let JwtKeys::Fetched(uri) = &rule.keys else { panic!("fetched") };
    assert_eq!((uri.host(), uri.port(), uri.is_secure()), ("id.example", 8443, true));
    assert_eq!(rule.headers, [pair("authorization", "Bearer ")]);
    assert_eq!((rule.forward, rule.skew, bare.selector), (false, Duration::from_secs(30), None));
}

#[test]
fn what_cannot_be_carried_out_is_refused_at_the_door() {
    // Aim: each mistake is named at its field, with what to do about it.
    let uri = "jwksUri: 'https://id.example/'";
    let rows = [
        (uri.to_owned(), "spec.jwtRules[0]: `issuer` is missing"),
        ("issuer: a".to_owned(), "spec.jwtRules[0]: nothing says where the keys are"),
        (format!("issuer: a, {uri}, jwks: '{JWKS}'"), "spec.jwtRules[0].jwksUri: jwks says already"),
        ("issuer: a, jwks: '{}'".to_owned(), "spec.jwtRules[0].jwks: no key set"),
        ("issuer: a, jwksUri: 'ftp://a/'".to_owned(), "spec.jwtRules[0].jwksUri: it is not of the form"),
        ("issuer: a, jwksUri: 'https://u:p@a/'".to_owned(), "spec.jwtRules[0].jwksUri: it holds a user's name"),
        (format!("issuer: a, {uri}, clockSkew: 1h"), "spec.jwtRules[0].clockSkew: no clocks differ"),
        (format!("issuer: a, {uri}, fromHeaders: [{{name: 'a b'}}]"), "spec.jwtRules[0].fromHeaders[0].name: `a b`"),
        (format!("issuer: a, {uri}, fromHeaders: [{{name: authorization}}]"), "spec.jwtRules[0].fromHeaders[0]: the whole of"),
        (
            format!("issuer: a, {uri}, fromHeaders: [{{name: x-a, prefix: '{}'}}]", "p".repeat(2049)),
            "spec.jwtRules[0].fromHeaders[0].prefix: 2049 bytes",
        ),
        (format!("issuer: a, {uri}, fromCookies: ['a=b']"), "spec.jwtRules[0].fromCookies[0]: `a=b`"),
        (format!("issuer: a, {uri}, fromQuery: []"), "spec.jwtRules[0]: nothing says where a token is"),
        (
            format!("issuer: a, {uri}, claimsToHeaders: [{{claim: sub, header: Host}}]"),
            "spec.jwtRules[0].claimsToHeaders[0].header: `host`",
        ),
        (format!("issuer: a, {uri}, claimsToHeader: []"), "spec.jwtRules[0].claimsToHeader: unknown field"),
    ];
    for (rule, begin) in rows {
        let wrong = wrong(&rule);
        assert!(wrong.len() == 1 && wrong[0].starts_with(begin), "{rule}: {wrong:?}");
    }
    assert!(candidate("jwtRules: []").problems[0].message.contains("no rules"));
    let symmetric = JWKS.replacen("[{", r#"[{"kty":"oct","k":"AA","kid":"s"},{"#, 1);
    assert!(wrong(&format!("issuer: a, jwks: '{symmetric}'"))[0].contains("left out: key s"));
}
