//! Who calls: every credential against every object, and hostile ones.

mod login;
mod opaque;
mod stored;

use http::{HeaderMap, HeaderValue, Request};
use proto::mesh;

use super::{Denied, Found, Guard, Passed, Question, Watch};
use crate::authenticate::Remembered;
use crate::callout::CalloutTold;
use crate::claims::Claims;
use crate::consumers::{AuthMethod, BookCell, CONSUMER_HEADER, ClientCertificate, Verified, digest};
use crate::filter::{Stage, tests::exchange};
use crate::fixture::put;
use crate::model::build::Parts;
use crate::model::{Action, Snapshot};

const NOW: u64 = 1_800_000_000;
/// What `argon2` and others made of `secret`, with costs that a test can wait for.
const ARGON: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$j6ZHcm1XaZ2Zo0Qv4T9ENA";
const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu5Y1VZ0ZzUcgRt0XhZC4eqaPzoWQVPpe";

fn key(name: &str, secret: &str) -> mesh::Credential {
    mesh::Credential {
        name: name.into(),
        kind: Some(mesh::credential::Kind::ApiKey(mesh::KeyCredential {
            sha256: digest(secret.as_bytes()).to_vec().into(),
            prefix: format!("mw_{name}"),
        })),
        ..mesh::Credential::default()
    }
}

fn consumer(name: &str, credentials: Vec<mesh::Credential>) -> mesh::Consumer {
    mesh::Consumer {
        namespace: "partners".into(),
        name: name.into(),
        team: "partners".into(),
        groups: vec!["gold".into(), "mobile".into()],
        attributes: [("plan".to_owned(), "gold".to_owned())].into(),
        credentials,
        ..mesh::Consumer::default()
    }
}

fn consumers() -> mesh::Consumers {
    let expired = mesh::Credential { expires_secs: NOW, ..key("old", "old-key-old-key-old-key") };
    let early = mesh::Credential { not_before_secs: NOW + 1, ..key("early", "early-key-early-key-early") };
    let read = mesh::Credential { scopes: vec!["read".into()], ..key("read", "read-key-read-key-read-key") };
    let elsewhere = mesh::Consumer { namespace: "elsewhere".into(), ..consumer("far", vec![key("far", "far-key-far-key-far-key")]) };
    let off = mesh::Consumer { disabled: true, ..consumer("off", vec![key("off", "off-key-off-key-off-key")]) };
    mesh::Consumers {
        consumers: vec![consumer("acme", vec![key("k1", "good-key-good-key-good-key"), expired, early, read]), elsewhere, off],
        ..mesh::Consumers::default()
    }
}

fn header(name: &str, prefix: &str) -> mesh::CredentialPlace {
    let header = mesh::CredentialHeader { name: name.into(), prefix: prefix.into() };
    mesh::CredentialPlace { kind: Some(mesh::credential_place::Kind::Header(header)) }
}

fn keys() -> mesh::ApiKeys {
    mesh::ApiKeys {
        policy: "shop/keys".into(),
        from: vec![
            header("x-api-key", ""),
            header("authorization", "Bearer "),
            mesh::CredentialPlace { kind: Some(mesh::credential_place::Kind::Query("api_key".into())) },
            mesh::CredentialPlace { kind: Some(mesh::credential_place::Kind::Cookie("key".into())) },
        ],
        consumers: Some(mesh::ConsumerChoice { namespaces: vec!["partners".into()], ..mesh::ConsumerChoice::default() }),
        ..mesh::ApiKeys::default()
    }
}

/// Guards of a policy, and who may call.
struct Edge {
    guards: Vec<Guard>,
    cell: std::sync::Arc<BookCell>,
    verified: Verified,
    /// What an authorization server answers, the last first.
    answers: Vec<CalloutTold>,
    certificate: Option<ClientCertificate>,
    /// What it was asked.
    forms: Vec<String>,
    /// Where people log in.
    providers: Vec<std::sync::Arc<crate::login::ProviderCell>>,
    /// Unix time.
    now: u64,
    /// Sessions that are to be refreshed beside the road.
    refreshes: Vec<std::sync::Arc<crate::login::LoginAsk>>,
    /// Who keeps sessions.
    kept: stored::Kept,
    /// The body of the next request.
    content: String,
}

/// What became of a request, and what it looks like by then.
struct Outcome {
    status: Option<u16>,
    denied: Option<Denied>,
    found: Found,
    request: http::request::Parts,
    challenges: Vec<String>,
    asked: usize,
    /// Of the answer, whoever makes it.
    headers: HeaderMap,
    /// Of the guard's answer.
    body: String,
}

impl Edge {
    fn of(policy: mesh::EdgePolicy, consumers: &mesh::Consumers) -> Self {
        let mut parts = Parts::default();
        put(&mut parts, "consumers/00", consumers).unwrap();
        parts.settle();
        let snapshot = with_policy(&mut parts, policy);
        let table = snapshot.routes.get("t").unwrap();
        let Action::Forward(forward) = &table.hosts[0].rules[0].action else { panic!("it leads somewhere") };
        let guards = forward.gates(None).filter_map(|stage| if let Stage::Guard(guard) = stage { Some(guard.clone()) } else { None });
        Self {
            guards: guards.collect(),
            cell: snapshot.consumers.clone(),
            verified: Verified::new([7; 32]),
            answers: Vec::new(),
            certificate: None,
            forms: Vec::new(),
            providers: snapshot.providers.clone(),
            now: NOW,
            refreshes: Vec::new(),
            kept: stored::Kept::default(),
            content: String::new(),
        }
    }

    fn ask(&mut self, request: Request<()>) -> Outcome {
        let (mut parts, ()) = request.into_parts();
        let (mut tokens, mut found, mut asked) = (Remembered::new(1), Found::default(), 0);
        let (book, mut counted) = (self.cell.load(), super::Counted::default());
        let (mut status, mut challenges) = (None, Vec::new());
        let (mut headers, mut body) = (HeaderMap::new(), String::new());
        'guards: for guard in &self.guards {
            loop {
                let mut exchange = exchange(&mut parts);
                exchange.watch = Some(Watch {
                    book: &book,
                    tokens: &mut tokens,
                    peer: exchange.address,
                    port: 40_000,
                    certificate: self.certificate.as_ref(),
                    verified: &mut self.verified,
                    wall_secs: self.now,
                    found: &mut found,
                    counted: &mut counted,
                });
                match guard.on_request(&mut exchange) {
                    Passed::On => continue 'guards,
                    Passed::Answered(reply) => {
                        status = Some(reply.status.as_u16());
                        headers.extend(reply.headers.iter().cloned());
                        body = String::from_utf8(reply.body.to_vec()).unwrap();
                        challenges = reply.headers.iter().map(|(_, value)| value.to_str().unwrap().to_owned()).collect();
                        break 'guards;
                    }
                    Passed::Asks(question) => {
                        asked += 1;
                        match *question {
                            Question::Password(password) => found.tell(&password, password.verify()),
                            Question::Token(ask) => {
                                self.forms.push(String::from_utf8(ask.request().unwrap().into_body().to_vec()).unwrap());
                                found.tell_callout(self.answers.pop().expect("nobody asks"));
                            }
                            Question::Login(ask) => {
                                self.forms.push(String::from_utf8(ask.request().into_body().to_vec()).unwrap());
                                found.tell_callout(self.answers.pop().expect("nobody asks"));
                            }
                            Question::Session(ask) => {
                                let answers = self.kept.answer(&ask.ask, self.now);
                                let means = crate::login::LoginMeans { book: &book, now_secs: self.now };
                                found.tell_session(ask.told(answers.as_deref(), means));
                            }
                            Question::Logout(ask) => found.tell_session(match ask.read(self.content.as_bytes(), self.now) {
                                Ok(ask) => {
                                    let answers = self.kept.answer(&ask.ask, self.now);
                                    ask.told(answers.as_deref(), crate::login::LoginMeans { book: &book, now_secs: self.now })
                                }
                                Err(told) => told,
                            }),
                            other => panic!("{other:?}"),
                        }
                    }
                }
            }
        }
        self.refreshes.extend(found.take_refresh());
        counted.tell(&mut headers);
        Outcome { status, denied: found.denied(), found, request: parts, challenges, asked, headers, body }
    }
}

fn with_policy(parts: &mut Parts, policy: mesh::EdgePolicy) -> Snapshot {
    use crate::fixture::{host, prefix, rule, table};
    let mut route = rule("HTTPRoute/shop/r/0", prefix("/"), &[("bad_backend", 1)]);
    let policy = mesh::RoutePolicy { edge: Some(policy), ..mesh::RoutePolicy::default() };
    route.typed_per_filter_config.insert(proto::names::POLICY.to_owned(), proto::xds::pack(&policy));
    put(parts, "t", &table("t", vec![host(&["*"], vec![route])])).unwrap();
    parts.assemble(1, &Snapshot::default())
}

fn with(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get("http://a.example/x?a=1&api_key=&b=2").body(()).unwrap();
    for (name, value) in headers {
        request
            .headers_mut()
            .append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request
}

#[test]
fn each_key_opens_what_it_is_for_and_nothing_else() {
    // Aim: credential × outcome: unknown, foreign, disabled, expired, early, without the scope; the first place that has one counts; what is
    // there and bad is refused although a good one stands elsewhere.
    let long = "x".repeat(64 << 10);
    type Row<'r> = (&'r [(&'r str, &'r str)], Option<u16>, Option<Denied>);
    let rows: &[Row<'_>] = &[
        (&[("x-api-key", "good-key-good-key-good-key")], None, None),
        (&[("authorization", "bearer  good-key-good-key-good-key")], None, None),
        (&[("cookie", "a=b; key=good-key-good-key-good-key")], None, None),
        (&[], Some(401), Some(Denied::Nothing)),
        (&[("x-api-key", "")], Some(401), Some(Denied::Nothing)),
        (&[("authorization", "Basic Zm9vOmJhcg==")], Some(401), Some(Denied::Nothing)),
        (&[("x-api-key", "bad-key"), ("authorization", "Bearer good-key-good-key-good-key")], Some(401), Some(Denied::Unknown)),
        (&[("x-api-key", "good-key-good-key-good-key"), ("x-api-key", "good-key-good-key-good-key")], None, None),
        (&[("x-api-key", "good-key-good-key-good-key"), ("x-api-key", "bad")], Some(401), Some(Denied::Several)),
        (&[("authorization", "Bearer a"), ("authorization", "Bearer b")], Some(401), Some(Denied::Several)),
        (&[("x-api-key", &long)], Some(401), Some(Denied::TooLong)),
        (&[("x-api-key", "g\u{f6}\u{f6}d")], Some(401), Some(Denied::Unknown)),
        (&[("x-api-key", "far-key-far-key-far-key")], Some(401), Some(Denied::Elsewhere)),
        (&[("x-api-key", "off-key-off-key-off-key")], Some(401), Some(Denied::Disabled)),
        (&[("x-api-key", "old-key-old-key-old-key")], Some(401), Some(Denied::Expired)),
        (&[("x-api-key", "early-key-early-key-early")], Some(401), Some(Denied::TooEarly)),
    ];
    let mut edge = Edge::of(mesh::EdgePolicy { api_keys: Some(keys()), ..mesh::EdgePolicy::default() }, &consumers());
    for (headers, status, denied) in rows {
        let outcome = edge.ask(with(headers));
        assert_eq!((outcome.status, outcome.denied), (*status, *denied), "{headers:?}");
        if *status == Some(401) {
            assert_eq!(outcome.challenges, ["Bearer"], "{headers:?}");
        }
    }
    let scoped = mesh::ApiKeys { scopes: vec!["read".into()], ..keys() };
    let mut edge = Edge::of(mesh::EdgePolicy { api_keys: Some(scoped), ..mesh::EdgePolicy::default() }, &consumers());
    assert_eq!(edge.ask(with(&[("x-api-key", "read-key-read-key-read-key")])).status, None);
    assert_eq!(edge.ask(with(&[("x-api-key", "good-key-good-key-good-key")])).denied, Some(Denied::Scope));
    let optional = mesh::ApiKeys { optional: true, ..keys() };
    let mut edge = Edge::of(mesh::EdgePolicy { api_keys: Some(optional), ..mesh::EdgePolicy::default() }, &consumers());
    assert_eq!((edge.ask(with(&[])).status, edge.ask(with(&[("x-api-key", "bad")])).status), (None, Some(401)));
}

#[test]
fn the_backend_sees_who_called_and_not_with_what() {
    // Aim: the key is taken out of header, query and cookie, others stay; the mesh is told who it is; what the caller says in filled headers goes,
    // in whichever spelling.
    let fill = |name: &str, cel: &str| mesh::FilledHeader { name: name.into(), value: Some(mesh::filled_header::Value::Cel(cel.into())) };
    let headers = vec![
        fill("x-consumer", "consumer.namespace + '/' + consumer.name"),
        fill("x-plan", "consumer.attributes.plan"),
        fill("x-gold", "string('gold' in consumer.groups)"),
        fill("x-method", "auth.method"),
    ];
    let policy = mesh::ApiKeys { headers, ..keys() };
    let mut edge = Edge::of(mesh::EdgePolicy { api_keys: Some(policy), ..mesh::EdgePolicy::default() }, &consumers());
    let smuggled = [
        ("x-meshwright-consumer", "partners/other;groups=admin;method=ApiKey"),
        ("x_meshwright_consumer", "partners/other"),
        ("x-consumer", "me"),
        ("x_consumer", "me"),
        ("authorization", "Bearer of-the-backend"),
    ];
    let mut request = with(&smuggled);
    *request.uri_mut() =
        "http://a.example/x?a=1&api_key=good-key-good-key-good-key&b=2&api_key=good-key-good-key-good-key".parse().unwrap();
    request.headers_mut().remove("authorization");
    let outcome = edge.ask(request);
    assert_eq!(outcome.status, None, "{:?}", outcome.denied);
    let text = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let headers = &outcome.request.headers;
    assert_eq!(outcome.request.uri.path_and_query().unwrap().as_str(), "/x?a=1&b=2");
    assert_eq!(text(headers, CONSUMER_HEADER.as_str()).as_deref(), Some("partners/acme;groups=gold,mobile;method=ApiKey"));
    assert_eq!(text(headers, "x-consumer").as_deref(), Some("partners/acme"));
    assert_eq!(text(headers, "x-plan").as_deref(), Some("gold"));
    assert_eq!(text(headers, "x-method").as_deref(), Some("ApiKey"));
    assert!(!headers.contains_key("x_consumer") && !headers.contains_key("x_meshwright_consumer"), "{headers:?}");
    let who = outcome.found.identified().unwrap();
    assert_eq!((who.method, who.credential_name()), (AuthMethod::ApiKey, "mw_k1"));
    // With another place first, what the backend is to see stays.
    let outcome = edge.ask(with(&[("x-api-key", "good-key-good-key-good-key"), ("authorization", "Bearer of-the-backend")]));
    assert_eq!(text(&outcome.request.headers, "authorization").as_deref(), Some("Bearer of-the-backend"));
    assert!(!outcome.request.headers.contains_key("x-api-key"));
}

#[test]
fn passwords_are_asked_about_once_and_unknown_users_cost_the_same() {
    // Aim: a good pair is verified once and remembered, a bad one asked about each time and refused, an unknown user is asked about as well;
    // after the allowed failures nobody is asked any more.
    let hashes: Vec<String> = ["secret"].iter().map(|secret| bcrypt::hash_with_salt(secret, 4, [7; 16]).unwrap().to_string()).collect();
    let user = |name: &str, hash: &str| mesh::Credential {
        name: name.into(),
        kind: Some(mesh::credential::Kind::Basic(mesh::PasswordCredential { username: name.into(), hash: hash.into() })),
        ..mesh::Credential::default()
    };
    let all = mesh::Consumers { consumers: vec![consumer("acme", vec![user("ada", &hashes[0])])], ..mesh::Consumers::default() };
    let basic = mesh::BasicAuth {
        policy: "shop/basic".into(),
        consumers: Some(mesh::ConsumerChoice { namespaces: vec!["partners".into()], ..mesh::ConsumerChoice::default() }),
        realm: "part\"ners".into(),
        remembered: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        failures: Some(mesh::FailureLimit { per_minute: 2, client_address: true, ipv6_prefix: 64, username: true }),
        ..mesh::BasicAuth::default()
    };
    let mut edge = Edge::of(mesh::EdgePolicy { basic: Some(basic), ..mesh::EdgePolicy::default() }, &all);
    let shown = |pair: &str| {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    };
    let good = shown("ada:secret");
    let first = edge.ask(with(&[("authorization", &good)]));
    assert_eq!((first.status, first.asked, first.request.headers.contains_key("authorization")), (None, 1, false), "{:?}", first.denied);
    assert_eq!(edge.ask(with(&[("authorization", &good)])).asked, 0);
    for pair in ["ada:wrong", "nobody:secret"] {
        let outcome = edge.ask(with(&[("authorization", &shown(pair))]));
        assert_eq!((outcome.status, outcome.denied, outcome.asked), (Some(401), Some(Denied::Unknown), 1), "{pair}");
        assert_eq!(outcome.challenges, ["Basic realm=\"part\\\"ners\", charset=\"UTF-8\""]);
    }
    edge.ask(with(&[("authorization", &shown("ada:wrong again"))]));
    let beyond = edge.ask(with(&[("authorization", &shown("ada:wrong still"))]));
    assert_eq!((beyond.status, beyond.denied, beyond.asked), (Some(429), Some(Denied::TooMany), 0));
    assert_eq!(edge.ask(with(&[("authorization", &good)])).status, None, "who is remembered is not kept out by others' failures");
    for (wrong, denied) in [("Basic !", Denied::Malformed), ("Basic bm9jb2xvbg==", Denied::Malformed), ("basic", Denied::Malformed)] {
        assert_eq!(edge.ask(with(&[("authorization", wrong)])).denied, Some(denied), "{wrong}");
    }
}

#[test]
fn all_that_is_shown_is_judged_and_none_of_it_goes_on() {
    // Aim: beside a good credential a bad one is 401, whichever comes first in the order; of several good ones the first says who it is, and the
    // backend sees none; a token of the application's own, at a place that says nothing here, stays.
    use crate::authenticate::tests::{rule, token};
    let hash = bcrypt::hash_with_salt("secret", 4, [7; 16]).unwrap().to_string();
    let users = vec![mesh::PasswordCredential { username: "ada".into(), hash }];
    let files = vec![mesh::UserFile { name: "shop/users/all".into(), users }];
    let basic = mesh::BasicAuth { policy: "shop/basic".into(), users: "shop/users/all".into(), ..mesh::BasicAuth::default() };
    let tokens = mesh::EdgeTokens { policy: "shop/tokens".into(), rules: vec![rule()], optional: true, ..mesh::EdgeTokens::default() };
    let keys = mesh::ApiKeys { from: vec![header("x-api-key", "")], ..keys() };
    let policy = mesh::EdgePolicy { api_keys: Some(keys), basic: Some(basic), tokens: Some(tokens), ..mesh::EdgePolicy::default() };
    let mut edge = Edge::of(policy, &mesh::Consumers { files, ..consumers() });
    let bearer = |claims: serde_json::Value| format!("Bearer {}", token(claims));
    let fresh = bearer(serde_json::json!({"exp": NOW + 600}));
    let old = bearer(serde_json::json!({"exp": NOW - 600}));
    // ada:secret, ada:wrong
    let (good, bad) = ("Basic YWRhOnNlY3JldA==", "Basic YWRhOndyb25n");
    let key = "good-key-good-key-good-key";
    type Row<'r> = (&'r [(&'r str, &'r str)], Result<AuthMethod, Denied>);
    let rows: &[Row<'_>] = &[
        (&[("x-api-key", key), ("authorization", bad)], Err(Denied::Unknown)),
        (&[("x-api-key", "bad"), ("authorization", good)], Err(Denied::Unknown)),
        (&[("authorization", &fresh), ("x-api-key", "bad")], Err(Denied::Unknown)),
        (&[("authorization", &fresh), ("authorization", bad)], Err(Denied::Unknown)),
        (&[("authorization", &old), ("x-api-key", key)], Err(Denied::Expired)),
        (&[("x-api-key", key), ("authorization", good)], Ok(AuthMethod::ApiKey)),
        (&[("authorization", &fresh), ("x-api-key", key)], Ok(AuthMethod::Jwt)),
        (&[("authorization", &fresh), ("authorization", good), ("x-api-key", key)], Ok(AuthMethod::Jwt)),
        (&[("authorization", good)], Ok(AuthMethod::Basic)),
    ];
    for (headers, wanted) in rows {
        let mut all = headers.to_vec();
        all.extend([("x-own-token", "of-the-application"), ("proxy-authorization", bad)]);
        let outcome = edge.ask(with(&all));
        let found = outcome.denied.map_or_else(|| Ok(outcome.found.identified().unwrap().method), Err);
        assert_eq!(found, *wanted, "{headers:?}");
        assert_eq!(outcome.status, wanted.is_err().then_some(401), "{headers:?}");
        if wanted.is_ok() {
            let left = ["authorization", "x-api-key", "x-own-token"].map(|name| outcome.request.headers.contains_key(name));
            assert_eq!(left, [false, false, true], "{headers:?}");
        }
    }
}

#[test]
fn what_is_replaced_in_its_place_is_not_what_was_shown() {
    // Aim: a key behind the same name, and a user's password in a file, end what stands open by the former one when they are others or gone;
    // what stays as it was does not.
    let secret = bcrypt::hash_with_salt("secret", 4, [7; 16]).unwrap().to_string();
    let other = bcrypt::hash_with_salt("other", 4, [7; 16]).unwrap().to_string();
    let known = |key_text: &str, hash: Option<&str>| {
        let user = |hash: &str| mesh::PasswordCredential { username: "ada".into(), hash: hash.into() };
        let files = vec![mesh::UserFile { name: "shop/users/all".into(), users: hash.map(user).into_iter().collect() }];
        mesh::Consumers { consumers: vec![consumer("acme", vec![key("k1", key_text)])], files, ..mesh::Consumers::default() }
    };
    let basic = mesh::BasicAuth { policy: "shop/basic".into(), users: "shop/users/all".into(), ..mesh::BasicAuth::default() };
    let policy = mesh::EdgePolicy { api_keys: Some(keys()), basic: Some(basic), ..mesh::EdgePolicy::default() };
    let good = "good-key-good-key-good-key";
    let mut edge = Edge::of(policy, &known(good, Some(&secret)));
    // ada:secret
    let asked = [("x-api-key", good), ("authorization", "Basic YWRhOnNlY3JldA==")].map(|shown| edge.ask(with(&[shown])).found);
    let [by_key, by_password] = asked.map(|found| found.identified().cloned().unwrap());
    for (now, key_holds, password_holds) in [
        (known(good, Some(&secret)), true, true),
        (known("another-another-another-key", Some(&secret)), false, true),
        (known(good, Some(&other)), true, false),
        (known(good, None), true, false),
    ] {
        let mut parts = Parts::default();
        put(&mut parts, "consumers/00", &now).unwrap();
        parts.settle();
        let book = with_policy(&mut parts, mesh::EdgePolicy::default()).consumers.load();
        assert_eq!((book.still_has(&by_key), book.still_has(&by_password)), (key_holds, password_holds));
    }
}

#[test]
fn a_token_is_nobodys_of_whom_no_consumer_counts() {
    // Aim: a Consumer of a namespace that does not count claims no token, though it comes first and is disabled; one that counts does.
    let jwt = || mesh::Credential {
        name: "tok".into(),
        kind: Some(mesh::credential::Kind::Jwt(mesh::TokenCredential {
            issuer: "https://id.example".into(),
            claims: [("azp".to_owned(), "app".to_owned())].into(),
        })),
        ..mesh::Credential::default()
    };
    let thief = mesh::Consumer { namespace: "elsewhere".into(), disabled: true, ..consumer("thief", vec![jwt()]) };
    let all = mesh::Consumers { consumers: vec![thief, consumer("acme", vec![jwt()])], ..mesh::Consumers::default() };
    let mut parts = Parts::default();
    put(&mut parts, "consumers/00", &all).unwrap();
    parts.settle();
    let book = with_policy(&mut parts, mesh::EdgePolicy::default()).consumers.load();
    let content = serde_json::json!({"iss": "https://id.example", "azp": "app"}).as_object().cloned().unwrap();
    let claims = Claims { issuer: "https://id.example".into(), content };
    let of = |namespace: &str| {
        let found = book.by_token(&claims, None, |consumer| *consumer.namespace == *namespace);
        found.map(|(consumer, _)| consumer.path.to_string())
    };
    assert_eq!(of("partners").as_deref(), Some("partners/acme"));
    assert_eq!(of("nobody"), None);
}

#[test]
fn a_list_that_is_not_there_lets_nobody_past() {
    // Aim: a Deny by a list that nobody has sent, or that is gone, holds for everybody, and so does what an Allow excepts; one that is there is asked.
    use mesh::authorization_policy::Action;
    for (action, except, list, status) in [
        (Action::Deny, false, "shop/far", None),
        (Action::Deny, false, "shop/gone", Some(403)),
        (Action::Allow, true, "shop/far", None),
        (Action::Allow, true, "shop/gone", Some(403)),
        (Action::Allow, false, "shop/gone", Some(403)),
    ] {
        let source = vec![mesh::CallSource { ip_lists: vec![list.to_owned()], ..mesh::CallSource::default() }];
        let (from, not_from) = if except { (Vec::new(), source) } else { (source, Vec::new()) };
        let rule = mesh::AuthorizationRule { from, not_from, ..mesh::AuthorizationRule::default() };
        let policy = mesh::AuthorizationPolicy {
            name: "shop/p".into(),
            action: action.into(),
            rules: vec![rule],
            ..mesh::AuthorizationPolicy::default()
        };
        let authorization = Some(mesh::Authorization { policies: vec![policy], dry_run: false });
        let lists = vec![mesh::AddressList { name: "shop/far".into(), ranges: "192.0.2.0/24\n".into() }];
        let mut edge =
            Edge::of(mesh::EdgePolicy { authorization, ..mesh::EdgePolicy::default() }, &mesh::Consumers { lists, ..consumers() });
        assert_eq!(edge.ask(with(&[])).status, status, "{action:?} {except} {list}");
    }
}

#[test]
fn only_hashes_that_cost_something_and_not_too_much_are_taken() {
    // Aim: argon2id, bcrypt and scrypt within bounds; passwords themselves, unsalted hashes and those that would cost everybody are refused.
    for good in [ARGON, BCRYPT, "$scrypt$ln=10,r=8,p=1$c29tZXNhbHQ$bWFkZSB1cCBtYWRlIHVwIG1hZGUgdXA"] {
        assert_eq!(crate::consumers::check_password_hash(good), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("secret", "is no hash that is taken"),
        ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "is no hash that is taken"),
        ("$apr1$abcdefgh$rOioh4Wh1VJIr3oLbkqMx0", "is no hash that is taken"),
        ("$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$j6ZHcm1XaZ2Zo0Qv4T9ENA", "is no hash that is taken"),
        ("$argon2id$v=19$m=1048576,t=1,p=1$c29tZXNhbHQ$j6ZHcm1XaZ2Zo0Qv4T9ENA", "costs more"),
        ("$argon2id$v=19$m=8,t=1,p=1$c29t$j6ZHcm1XaZ2Zo0Qv4T9ENA", "is no PHC string"),
        ("$scrypt$ln=30,r=8,p=1$c29tZXNhbHQ$bWFkZSB1cCBtYWRlIHVwIG1hZGUgdXA", "costs more"),
        ("$2b$31$abcdefghijklmnopqrstuu5Y1VZ0ZzUcgRt0XhZC4eqaPzoWQVPpe", "has the cost 31"),
    ] {
        let told = crate::consumers::check_password_hash(bad).unwrap_err();
        assert!(told.contains(why), "{bad}: {told}");
    }
}

#[test]
fn what_never_was_good_answers_500() {
    // Aim: an object that fails closed and has no good version answers every request by itself.
    let mut edge = Edge::of(mesh::EdgePolicy { unavailable: "ApiKeyAuth shop/keys".into(), ..mesh::EdgePolicy::default() }, &consumers());
    assert_eq!(edge.ask(with(&[("x-api-key", "good-key-good-key-good-key")])).status, Some(500));
}

#[test]
fn policies_judge_by_consumer_group_scope_and_method() {
    // Aim: each new word of an AuthorizationPolicy, alone and against another caller.
    let judged = |source: mesh::CallSource, key: &str| {
        let rule = mesh::AuthorizationRule { from: vec![source], ..mesh::AuthorizationRule::default() };
        let policy = mesh::AuthorizationPolicy { name: "shop/p".into(), rules: vec![rule], ..mesh::AuthorizationPolicy::default() };
        let authorization = Some(mesh::Authorization { policies: vec![policy], dry_run: false });
        let lists = vec![mesh::AddressList { name: "shop/list".into(), ranges: "10.9.8.0/24\n".into() }];
        let mut edge = Edge::of(
            mesh::EdgePolicy { api_keys: Some(mesh::ApiKeys { optional: true, ..keys() }), authorization, ..mesh::EdgePolicy::default() },
            &mesh::Consumers { lists, ..consumers() },
        );
        edge.ask(if key.is_empty() { with(&[]) } else { with(&[("x-api-key", key)]) }).status
    };
    let source = || mesh::CallSource::default();
    let text = |text: &str| vec![text.to_owned()];
    let good = "good-key-good-key-good-key";
    for (what, source, key, status) in [
        ("consumer", mesh::CallSource { consumers: text("partners/ac*"), ..source() }, good, None),
        ("another consumer", mesh::CallSource { consumers: text("partners/b*"), ..source() }, good, Some(403)),
        ("nobody", mesh::CallSource { consumers: text("*"), ..source() }, "", Some(403)),
        ("group", mesh::CallSource { consumer_groups: text("mobile"), ..source() }, good, None),
        ("another group", mesh::CallSource { consumer_groups: text("silver"), ..source() }, good, Some(403)),
        ("scope", mesh::CallSource { scopes: text("read"), ..source() }, "read-key-read-key-read-key", None),
        ("no scope", mesh::CallSource { scopes: text("read"), ..source() }, good, Some(403)),
        ("method", mesh::CallSource { auth_methods: text("ApiKey"), ..source() }, good, None),
        ("another method", mesh::CallSource { auth_methods: text("Jwt"), ..source() }, good, Some(403)),
        ("listed", mesh::CallSource { ip_lists: text("shop/list"), ..source() }, "", None),
        ("not listed", mesh::CallSource { ip_lists: text("shop/other"), ..source() }, "", Some(403)),
        ("peer", mesh::CallSource { peer_ip_blocks: text("10.0.0.0/8"), ..source() }, "", None),
        ("another peer", mesh::CallSource { peer_ip_blocks: text("192.0.2.0/24"), ..source() }, "", Some(403)),
    ] {
        assert_eq!(judged(source, key), status, "{what}");
    }
}
