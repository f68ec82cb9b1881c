//! Opaque tokens, which an authorization server knows, and client certificates.

use http::StatusCode;

use super::*;
use crate::callout::{CalloutAnswer, CalloutAway};

fn introspection() -> mesh::Introspection {
    mesh::Introspection {
        policy: "shop/tokens".into(),
        url: "https://id.example/introspect".into(),
        client_id: "gw:1".into(),
        secret: "shop/gw/secret".into(),
        remembered: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        from: vec![header("authorization", "Bearer ")],
        consumers: Some(mesh::ConsumerChoice { namespaces: vec!["partners".into()], ..mesh::ConsumerChoice::default() }),
        ..mesh::Introspection::default()
    }
}

fn tokens(introspection: mesh::Introspection) -> mesh::EdgePolicy {
    let tokens = mesh::EdgeTokens { policy: "shop/tokens".into(), introspection: Some(introspection), ..mesh::EdgeTokens::default() };
    mesh::EdgePolicy { tokens: Some(tokens), ..mesh::EdgePolicy::default() }
}

fn people() -> mesh::Consumers {
    let claims = [("client_id".to_owned(), "mobile".to_owned())].into();
    let token = mesh::TokenCredential { issuer: "https://id.example".into(), claims };
    let named = |name: &str, kind| mesh::Credential { name: name.into(), kind: Some(kind), ..mesh::Credential::default() };
    let by = |kind| mesh::credential::Kind::Certificate(mesh::CertificateCredential { kind: Some(kind) });
    use mesh::certificate_credential::Kind as By;
    let off = mesh::Consumer { disabled: true, ..consumer("off", vec![named("c", by(By::Sha256(vec![9; 32].into())))]) };
    mesh::Consumers {
        consumers: vec![
            consumer(
                "acme",
                vec![named("tok", mesh::credential::Kind::Jwt(token)), named("uri", by(By::Uri("spiffe://partner/acme".into())))],
            ),
            consumer("beta", vec![named("dns", by(By::Dns("Beta.example".into()))), key("k1", "good-key-good-key-good-key")]),
            off,
        ],
        secrets: vec![mesh::ShownSecret { name: "shop/gw/secret".into(), value: b"s3cret/".to_vec().into() }],
        ..mesh::Consumers::default()
    }
}

fn says(text: &str) -> CalloutTold {
    CalloutTold::Answer(CalloutAnswer { body: text.to_owned().into(), ..CalloutAnswer::default() })
}

#[test]
fn an_opaque_token_is_what_its_server_says() {
    // Aim: active, not active, expired, not yet; the claims find the consumer; one question while the word counts; the backend sees no token.
    let mut edge = Edge::of(tokens(introspection()), &people());
    let shown = |token: &str| with(&[("authorization", &format!("Bearer {token}")), ("x-meshwright-unchecked", "me")]);
    edge.answers = vec![says(&format!(
        "{{\"active\": true, \"client_id\": \"mobile\", \"sub\": \"ada\", \"scope\": \"read write\", \"exp\": {}}}",
        NOW + 60
    ))];
    for asked in [1, 0] {
        let outcome = edge.ask(shown("opaque-1"));
        assert_eq!((outcome.status, outcome.asked), (None, asked), "{:?}", outcome.denied);
        let who = outcome.found.identified().unwrap();
        assert_eq!(who.consumer.as_ref().map(|consumer| &*consumer.path), Some("partners/acme"));
        assert_eq!((who.method, who.subject().as_deref(), who.has_scope("write")), (AuthMethod::Jwt, Some("ada"), true));
        assert!(!outcome.request.headers.contains_key("authorization") && !outcome.request.headers.contains_key("x-meshwright-unchecked"));
    }
    assert_eq!(edge.forms, ["token=opaque-1&token_type_hint=access_token"]);
    let expired = format!("{{\"active\": true, \"exp\": {}}}", NOW - 60);
    let early = format!("{{\"active\": true, \"nbf\": {}}}", NOW + 60);
    for (token, answer, denied) in
        [("a", "{\"active\": false}", Denied::Inactive), ("b", expired.as_str(), Denied::Expired), ("c", early.as_str(), Denied::Inactive)]
    {
        edge.answers = vec![says(answer)];
        let outcome = edge.ask(shown(token));
        assert_eq!((outcome.status, outcome.denied), (Some(401), Some(denied)), "{answer}");
    }
    assert_eq!(edge.ask(with(&[])).denied, Some(Denied::Nothing));
    assert_eq!(edge.ask(with(&[("authorization", "Bearer a"), ("authorization", "Bearer b")])).denied, Some(Denied::Several));
}

#[test]
fn what_proves_us_is_encoded_and_not_told() {
    // Aim: RFC 6749, section 2.3.1; nothing that is printed has the token or the secret in it.
    let mut edge = Edge::of(tokens(introspection()), &people());
    let (mut parts, ()) = with(&[("authorization", "Bearer a+b")]).into_parts();
    let (mut remembered, mut found, mut counted, book) =
        (Remembered::new(1), Found::default(), super::super::Counted::default(), edge.cell.load());
    let mut exchange = exchange(&mut parts);
    exchange.watch = Some(Watch {
        book: &book,
        tokens: &mut remembered,
        peer: exchange.address,
        port: 1,
        certificate: None,
        verified: &mut edge.verified,
        wall_secs: NOW,
        found: &mut found,
        counted: &mut counted,
    });
    let Passed::Asks(question) = edge.guards[0].on_request(&mut exchange) else { panic!("it asks") };
    let Question::Token(ask) = *question else { panic!("about a token") };
    let request = ask.request().unwrap();
    assert_eq!(
        (request.uri().to_string().as_str(), request.body().as_ref()),
        ("/introspect", &b"token=a%2Bb&token_type_hint=access_token"[..])
    );
    // gw%3A1:s3cret%2F
    assert_eq!(request.headers()["authorization"], "Basic Z3clM0ExOnMzY3JldCUyRg==");
    let printed = format!("{ask:?} {book:?} {:?}", request.headers());
    assert!(!printed.contains("s3cret") && !printed.contains("a+b") && !printed.contains("Z3cl"), "{printed}");
}

#[test]
fn a_server_that_is_away_goes_by_on_error() {
    // Aim: gone, hanging and nonsense are 503 under Deny, and nobody's request under Allow, with the mesh's mark.
    let status =
        |status: u16| CalloutTold::Answer(CalloutAnswer { status: StatusCode::from_u16(status).unwrap(), ..CalloutAnswer::default() });
    for told in [
        CalloutTold::Away(CalloutAway::Unreached),
        CalloutTold::Away(CalloutAway::Silent),
        CalloutTold::Away(CalloutAway::Full),
        status(401),
        status(500),
        says("SSH-2.0"),
        says("{}"),
        says("{\"active\": \"yes\"}"),
        says("{\"active\": true, \"exp\": \"soon\"}"),
    ] {
        for (allow_without, status, denied) in [(false, Some(503), Some(Denied::Away)), (true, None, None)] {
            let mut edge = Edge::of(tokens(mesh::Introspection { allow_without, ..introspection() }), &people());
            edge.answers = vec![told.clone()];
            let outcome = edge.ask(with(&[("authorization", "Bearer opaque")]));
            assert_eq!((outcome.status, outcome.denied), (status, denied), "{told:?}");
            assert!(outcome.found.identified().is_none());
            let mark = outcome.request.headers.get("x-meshwright-unchecked").map(|value| value.to_str().unwrap());
            assert_eq!(mark, allow_without.then_some("Introspection"));
            assert_eq!(outcome.request.headers.contains_key("authorization"), !allow_without, "what goes on goes on without the token");
        }
    }
    let mut edge = Edge::of(tokens(mesh::Introspection { allow_without: true, keep: true, ..introspection() }), &people());
    edge.answers = vec![CalloutTold::Away(CalloutAway::Unreached)];
    assert!(edge.ask(with(&[("authorization", "Bearer opaque")])).request.headers.contains_key("authorization"), "forwardToken");
    for unusable in [
        mesh::Introspection { barred: "no EgressPolicy allows it".into(), ..introspection() },
        mesh::Introspection { secret: "shop/other/secret".into(), ..introspection() },
    ] {
        let outcome = Edge::of(tokens(unusable), &people()).ask(with(&[("authorization", "Bearer opaque")]));
        assert_eq!((outcome.status, outcome.denied, outcome.asked), (Some(503), Some(Denied::Away), 0));
    }
}

#[test]
fn keys_and_opaque_tokens_stand_behind_bearer_together() {
    // Aim: what is one of our keys is no token, whatever else is asked about.
    let policy = mesh::EdgePolicy { api_keys: Some(keys()), ..tokens(introspection()) };
    let mut edge = Edge::of(policy, &people());
    let outcome = edge.ask(with(&[("authorization", "Bearer good-key-good-key-good-key")]));
    assert_eq!((outcome.status, outcome.asked), (None, 0), "{:?}", outcome.denied);
    edge.answers = vec![says("{\"active\": false}")];
    assert_eq!(edge.ask(with(&[("authorization", "Bearer unknown")])).denied, Some(Denied::Inactive));
    assert_eq!(edge.ask(with(&[("x-api-key", "good-key-good-key-good-key")])).status, None);
}

#[test]
fn an_opaque_token_and_a_key_are_both_judged() {
    // Aim: the server is asked though a good key stands elsewhere, and not where that one is bad; the token says who it is, and nobody of another
    // namespace may be that; neither is sent on. Without an answer the key does.
    let policy = |introspection| mesh::EdgePolicy { api_keys: Some(keys()), ..tokens(introspection) };
    let good = "good-key-good-key-good-key";
    let shown = |key: &str| with(&[("authorization", "Bearer opaque"), ("x-api-key", key)]);
    let who = |outcome: &Outcome| {
        let found = outcome.found.identified().expect("somebody");
        (found.method, found.consumer.as_ref().map(|consumer| consumer.path.to_string()))
    };
    let active = || says("{\"active\": true, \"client_id\": \"mobile\"}");
    let mut edge = Edge::of(policy(introspection()), &people());
    assert_eq!(edge.ask(shown("bad")).denied, Some(Denied::Unknown));
    edge.answers = vec![active()];
    let outcome = edge.ask(shown(good));
    assert_eq!((outcome.status, outcome.asked), (None, 1), "{:?}", outcome.denied);
    assert_eq!(who(&outcome), (AuthMethod::Jwt, Some("partners/acme".to_owned())));
    assert!(!outcome.request.headers.contains_key("authorization") && !outcome.request.headers.contains_key("x-api-key"));
    let mut edge = Edge::of(policy(mesh::Introspection { consumers: None, ..introspection() }), &people());
    edge.answers = vec![active()];
    assert_eq!(who(&edge.ask(shown(good))), (AuthMethod::Jwt, None));
    let mut edge = Edge::of(policy(mesh::Introspection { allow_without: true, ..introspection() }), &people());
    edge.answers = vec![CalloutTold::Away(CalloutAway::Silent)];
    let outcome = edge.ask(shown(good));
    assert_eq!(who(&outcome), (AuthMethod::ApiKey, Some("partners/beta".to_owned())));
    assert_eq!(outcome.request.headers["x-meshwright-unchecked"], "Introspection");
}

#[test]
fn a_certificate_says_who_calls() {
    // Aim: by URI, DNS name and hash; nobody's says nothing; what the request shows goes before it; one whose consumer may not call is 401.
    let choice = mesh::ConsumerChoice { namespaces: vec!["partners".into()], ..mesh::ConsumerChoice::default() };
    let policy = mesh::EdgePolicy { certificates: Some(choice), ..mesh::EdgePolicy::default() };
    let shown = |hash: u8, uri: &str, dns: &str| {
        let some = |text: &str| Some(Box::<str>::from(text)).filter(|text| !text.is_empty());
        Some(ClientCertificate::new([hash; 32], "CN=x", some(uri), some(dns)))
    };
    let asked = |policy: &mesh::EdgePolicy, certificate: Option<ClientCertificate>, headers: &[(&str, &str)]| {
        let mut edge = Edge::of(policy.clone(), &people());
        edge.certificate = certificate;
        edge.ask(with(headers))
    };
    for (certificate, consumer) in [
        (shown(1, "spiffe://partner/acme", ""), Some("partners/acme")),
        (shown(1, "", "beta.example"), Some("partners/beta")),
        (shown(1, "spiffe://partner/other", "other.example"), None),
        (None, None),
    ] {
        let outcome = asked(&policy, certificate, &[]);
        let who = outcome.found.identified();
        assert_eq!(outcome.status, None);
        assert_eq!(who.and_then(|who| who.consumer.as_ref()).map(|consumer| &*consumer.path), consumer);
        assert!(who.is_none_or(|who| who.method == AuthMethod::Cert));
    }
    assert_eq!(asked(&policy, shown(9, "", ""), &[]).denied, Some(Denied::Disabled));
    let both = mesh::EdgePolicy { api_keys: Some(keys()), ..policy };
    assert_eq!(asked(&both, shown(1, "spiffe://partner/acme", ""), &[]).status, None, "it is one of what is attached");
    let key = asked(&both, shown(1, "spiffe://partner/acme", ""), &[("x-api-key", "good-key-good-key-good-key")]);
    assert_eq!(key.found.identified().map(|who| who.method), Some(AuthMethod::ApiKey));
    assert_eq!(asked(&both, shown(1, "", ""), &[]).denied, Some(Denied::Nothing));
    assert_eq!(asked(&both, shown(1, "spiffe://partner/acme", ""), &[("x-api-key", "bad")]).denied, Some(Denied::Unknown));
}

#[test]
fn a_certificate_is_one_consumers_among_those_that_count() {
    // Aim: somebody of a namespace that does not count here takes nobody's certificate away, by whatever name, and whoever comes first in the book.
    let policy = |namespace: &str| mesh::EdgePolicy {
        certificates: Some(mesh::ConsumerChoice { namespaces: vec![namespace.into()], ..mesh::ConsumerChoice::default() }),
        ..mesh::EdgePolicy::default()
    };
    let uri = mesh::CertificateCredential { kind: Some(mesh::certificate_credential::Kind::Uri("spiffe://partner/acme".into())) };
    let claim = || mesh::Credential {
        name: "uri".into(),
        kind: Some(mesh::credential::Kind::Certificate(uri.clone())),
        ..mesh::Credential::default()
    };
    let thief = mesh::Consumer { namespace: "elsewhere".into(), ..consumer("thief", vec![claim()]) };
    let all = mesh::Consumers { consumers: vec![thief, consumer("acme", vec![claim()])], ..mesh::Consumers::default() };
    for (namespace, wanted) in [("partners", Some("partners/acme")), ("elsewhere", Some("elsewhere/thief")), ("nowhere", None)] {
        let mut edge = Edge::of(policy(namespace), &all);
        edge.certificate = Some(ClientCertificate::new([1; 32], "CN=x", [Box::<str>::from("spiffe://partner/acme")], []));
        let outcome = edge.ask(with(&[]));
        let who = outcome.found.identified().and_then(|who| who.consumer.as_ref()).map(|consumer| consumer.path.to_string());
        assert_eq!(who.as_deref(), wanted);
    }
}

#[test]
fn an_opaque_token_beside_one_that_holds_is_nobodys_word() {
    // Aim: two tokens are 401 whether a rule claims one of them or not, nobody is asked and nothing is sent on; the same token twice is one, and one of our
    // own keys beside a token is a key.
    use crate::authenticate::tests::{rule, token};
    let tokens = mesh::EdgeTokens {
        policy: "shop/tokens".into(),
        rules: vec![rule()],
        introspection: Some(introspection()),
        ..mesh::EdgeTokens::default()
    };
    let policy = mesh::EdgePolicy { tokens: Some(tokens), ..mesh::EdgePolicy::default() };
    let bearer = format!("Bearer {}", token(serde_json::json!({"exp": NOW + 600})));
    let mut edge = Edge::of(policy.clone(), &people());
    assert_eq!(edge.ask(with(&[("authorization", &bearer)])).status, None);
    assert_eq!(edge.ask(with(&[("authorization", &bearer), ("authorization", &bearer)])).status, None);
    for other in ["Bearer opaque", "bearer opaque"] {
        for headers in
            [[("authorization", bearer.as_str()), ("authorization", other)], [("authorization", other), ("authorization", bearer.as_str())]]
        {
            let outcome = edge.ask(with(&headers));
            assert_eq!((outcome.status, outcome.denied, outcome.asked), (Some(401), Some(Denied::Several), 0), "{headers:?}");
        }
    }
    let mut edge = Edge::of(mesh::EdgePolicy { api_keys: Some(keys()), ..policy }, &people());
    let outcome = edge.ask(with(&[("authorization", &bearer), ("authorization", "Bearer good-key-good-key-good-key")]));
    assert_eq!((outcome.status, outcome.asked), (None, 0), "{:?}", outcome.denied);
    assert!(!outcome.request.headers.contains_key("authorization"));
}
