use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;
use proto::mesh::authorization_policy::Action as Does;
use proto::mesh::path_pattern::Kind;
use proto::mesh::{AuthorizationPolicy, AuthorizationRule, CallSource, CallTarget, ClaimValues, PathPattern, TokenSource};
use proto::xds::matcher::string_matcher::MatchPattern;
use proto::xds::matcher::{RegexMatcher, StringMatcher};
use proto::xds::route::HeaderMatcher;
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use serde_json::json;

use super::*;

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const CHECKOUT: &str = "spiffe://cluster.local/ns/shop/sa/checkout";
const STRANGER: &str = "spiffe://partner.example/ns/shop/sa/frontend";

/// What a test asks about.
#[derive(Clone, Debug)]
struct Ask {
    peer: Option<&'static str>,
    source: &'static str,
    port: u16,
    /// Method, path and host.
    head: Option<(Method, &'static str, &'static str)>,
    tenant: Option<&'static str>,
    groups: Option<Vec<&'static str>>,
}

impl Default for Ask {
    fn default() -> Self {
        let head = Some((Method::GET, "/v1/items", "store.shop"));
        Self { peer: Some(FRONTEND), source: "10.1.2.3:999", port: 8080, head, tenant: None, groups: None }
    }
}

impl Ask {
    fn with<T>(&self, look: impl FnOnce(&Call<'_>) -> T) -> T {
        let peer: Option<Identity> = self.peer.map(|peer| peer.parse().unwrap());
        let mut headers = HeaderMap::new();
        if let Some(tenant) = self.tenant {
            headers.insert("x-tenant", HeaderValue::from_static(tenant));
        }
        let head = self.head.as_ref().map(|(method, path, host)| RequestHead { method, path, query: None, host, headers: &headers });
        let claims = self.groups.as_ref().map(|groups| {
            let serde_json::Value::Object(content) = json!({"groups": groups}) else { unreachable!() };
            Claims { issuer: "https://id.example".into(), content }
        });
        let own = Own { trust_domain: "cluster.local", namespace: "shop", workload: "store" };
        look(&Call {
            peer: peer.as_ref(),
            workload: "",
            source: self.source.parse().unwrap(),
            port: self.port,
            head: head.as_ref(),
            claims: claims.as_ref(),
            auth: None,
            edge: None,
            own,
        })
    }
}

fn policy(name: &str, action: Does, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { name: format!("shop/{name}"), action: action.into(), dry_run: false, rules }
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

fn from(principals: &[&str]) -> AuthorizationRule {
    let source = CallSource { principals: texts(principals), ..CallSource::default() };
    AuthorizationRule { name: "r".into(), from: vec![source], ..AuthorizationRule::default() }
}

fn to(target: CallTarget) -> AuthorizationRule {
    AuthorizationRule { name: "t".into(), to: vec![target], ..AuthorizationRule::default() }
}

fn prefix(path: &str) -> PathPattern {
    PathPattern { kind: Some(Kind::Prefix(path.into())) }
}

fn below(path: &str) -> CallTarget {
    CallTarget { paths: vec![prefix(path)], ..CallTarget::default() }
}

fn compiled(policies: Vec<AuthorizationPolicy>, dry_run: bool) -> Authorization {
    compile(&proto::mesh::Authorization { policies, dry_run }).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

/// What is told of a call, in one line.
fn judged(policies: Vec<AuthorizationPolicy>, ask: &Ask) -> String {
    told(&compiled(policies, false), ask)
}

fn told(authorization: &Authorization, ask: &Ask) -> String {
    ask.with(|call| {
        let judgement = authorization.judge(call);
        let mut text = match judgement.verdict {
            CallVerdict::Allowed => "allowed".to_owned(),
            CallVerdict::Denied(ruling) => format!("denied by {}", ruling.label),
            CallVerdict::Unavailable => "unavailable".to_owned(),
        };
        if let Some(ruling) = judgement.would_deny {
            text += &format!(", {} would deny", ruling.label);
        }
        for ruling in &judgement.audited {
            text += &format!(", {} audits", ruling.label);
        }
        if judgement.unanswered > 0 {
            text += &format!(", {} unanswered", judgement.unanswered);
        }
        text
    })
}

#[test]
fn deny_goes_before_allow_and_an_allow_denies_the_rest() {
    // Aim: the order of policies and the default are those of kinds.md.
    let ask = Ask::default();
    let allow = || policy("a", Does::Allow, vec![from(&[FRONTEND])]);
    let deny = || policy("d", Does::Deny, vec![to(below("/v1"))]);
    assert_eq!(judged(vec![], &ask), "allowed");
    assert_eq!(judged(vec![allow()], &ask), "allowed");
    assert_eq!(judged(vec![allow(), deny()], &ask), "denied by shop/d/t");
    assert_eq!(judged(vec![deny()], &Ask { head: Some((Method::GET, "/v2", "a")), ..ask.clone() }), "allowed");
    assert_eq!(judged(vec![allow()], &Ask { peer: Some(CHECKOUT), ..ask.clone() }), "denied by shop/a");
    assert_eq!(judged(vec![allow()], &Ask { peer: None, ..ask.clone() }), "denied by shop/a");
    let two = vec![allow(), policy("b", Does::Allow, vec![])];
    assert_eq!(judged(two, &Ask { peer: None, ..ask.clone() }), "denied by shop/a,shop/b");
    // Without rules nothing matches: an Allow allows nobody, the others do nothing.
    assert_eq!(judged(vec![policy("e", Does::Allow, vec![])], &ask), "denied by shop/e");
    assert_eq!(judged(vec![policy("e", Does::Deny, vec![])], &ask), "allowed");
    assert_eq!(judged(vec![policy("e", Does::Audit, vec![])], &ask), "allowed");
    // A rule without blocks is for all.
    assert_eq!(judged(vec![policy("e", Does::Deny, vec![AuthorizationRule::default()])], &ask), "denied by shop/e/0");
    assert_eq!(told(&Authorization::refused(), &ask), "unavailable");
}

#[test]
fn audits_and_trials_decide_nothing() {
    // Aim: what would be denied is told with the rule's name, policy by policy or for the whole mesh, and nothing is.
    let ask = Ask::default();
    let trial = |policy: AuthorizationPolicy| AuthorizationPolicy { dry_run: true, ..policy };
    let deny = || policy("d", Does::Deny, vec![to(below("/v1"))]);
    let other = || policy("o", Does::Allow, vec![from(&[CHECKOUT])]);
    let own = || policy("w", Does::Allow, vec![from(&[FRONTEND])]);
    assert_eq!(judged(vec![policy("u", Does::Audit, vec![to(below("/v1"))])], &ask), "allowed, shop/u/t audits");
    assert_eq!(judged(vec![trial(deny())], &ask), "allowed, shop/d/t would deny");
    assert_eq!(judged(vec![trial(other())], &ask), "allowed, shop/o would deny");
    assert_eq!(judged(vec![trial(other()), trial(own())], &ask), "allowed");
    // What allows in earnest allows it whatever is on trial; and what denies in earnest needs no trial.
    assert_eq!(judged(vec![trial(other()), own()], &ask), "allowed");
    assert_eq!(judged(vec![other(), trial(deny())], &ask), "denied by shop/o");
    assert_eq!(told(&compiled(vec![deny(), other()], true), &ask), "allowed, shop/d/t would deny");
    assert_eq!(told(&compiled(vec![other()], true), &ask), "allowed, shop/o would deny");
    let audits = (0..6).map(|n| policy(&format!("u{n}"), Does::Audit, vec![AuthorizationRule::default(); 2])).collect();
    assert_eq!(judged(audits, &ask), "allowed, shop/u0/0 audits, shop/u1/0 audits, shop/u2/0 audits, shop/u3/0 audits");
}

/// Whether one denying rule holds.
fn holds(rule: AuthorizationRule, ask: &Ask) -> bool {
    judged(vec![policy("d", Does::Deny, vec![rule])], ask) != "allowed"
}

#[test]
fn who_calls() {
    // Aim: principals, namespaces of our own domain only, addresses of both families, and what a token says.
    let ask = Ask::default();
    let source = |source: CallSource| AuthorizationRule { from: vec![source], ..AuthorizationRule::default() };
    let plain = Ask { peer: None, ..ask.clone() };
    for (principal, wanted) in
        [(FRONTEND, true), (CHECKOUT, false), ("*", true), ("*/sa/frontend", true), ("spiffe://cluster.local/*", true)]
    {
        assert_eq!(holds(from(&[principal]), &ask), wanted, "{principal}");
        assert!(!holds(from(&[principal]), &plain), "{principal}");
    }
    let shop = || source(CallSource { namespaces: texts(&["shop"]), ..CallSource::default() });
    assert!(holds(shop(), &ask) && !holds(shop(), &plain));
    assert!(!holds(shop(), &Ask { peer: Some(STRANGER), ..ask.clone() }));
    for (block, from, wanted) in [
        ("10.0.0.0/8", "10.1.2.3:1", true),
        ("10.0.0.0/8", "[::ffff:10.1.2.3]:1", true),
        ("::ffff:10.0.0.0/104", "10.1.2.3:1", true),
        ("10.1.2.3", "10.1.2.3:1", true),
        ("10.1.2.4", "10.1.2.3:1", false),
        ("2001:db8::/32", "[2001:db8::7]:1", true),
        ("::/0", "10.1.2.3:1", false),
    ] {
        let rule = source(CallSource { ip_blocks: texts(&[block]), ..CallSource::default() });
        assert_eq!(holds(rule, &Ask { source: from, ..plain.clone() }), wanted, "{block} {from}");
    }
    let token = |issuer: &str, group: &str| {
        let claims = BTreeMap::from([("groups".to_owned(), ClaimValues { values: texts(&[group, "x"]) })]);
        source(CallSource { token: Some(TokenSource { issuer: issuer.into(), claims }), ..CallSource::default() })
    };
    let staff = Ask { groups: Some(vec!["ops", "staff"]), ..ask.clone() };
    assert!(holds(token("https://id.example", "staff"), &staff) && holds(token("", "staff"), &staff));
    assert!(!holds(token("https://other.example", "staff"), &staff) && !holds(token("", "boss"), &staff));
    assert!(!holds(token("", "staff"), &ask));
    // Both parts of one item must hold, of several items one.
    let both = CallSource { principals: texts(&[FRONTEND]), ip_blocks: texts(&["192.0.2.0/24"]), ..CallSource::default() };
    assert!(!holds(source(both.clone()), &ask));
    let either = AuthorizationRule { from: vec![both, from(&["*"]).from[0].clone()], ..AuthorizationRule::default() };
    assert!(holds(either, &ask));
    let not = AuthorizationRule { not_from: from(&[FRONTEND]).from, ..AuthorizationRule::default() };
    assert!(!holds(not.clone(), &ask) && holds(not, &plain));
}

#[test]
fn what_is_asked_for() {
    // Aim: ports, hosts without port, case and last dot, methods, paths and headers; and their opposite.
    let ask = Ask { head: Some((Method::GET, "/v1/items", "Store.Shop.:8080")), tenant: Some("a"), ..Ask::default() };
    let tenant = |value: &str| CallTarget { headers: vec![crate::fixture::header("X-Tenant", value)], ..CallTarget::default() };
    let hosts = |all: &[&str]| CallTarget { hosts: texts(all), ..CallTarget::default() };
    let rows = [
        (CallTarget { ports: vec![80, 8080], ..CallTarget::default() }, true),
        (CallTarget { ports: vec![80], ..CallTarget::default() }, false),
        (hosts(&["store.shop"]), true),
        (hosts(&["*.shop"]), true),
        (hosts(&["store*"]), true),
        (hosts(&["Store.Shop."]), true),
        (hosts(&["shop", "*.store.shop"]), false),
        (CallTarget { methods: texts(&["PUT", "GET"]), ..CallTarget::default() }, true),
        (CallTarget { methods: texts(&["HEAD"]), ..CallTarget::default() }, false),
        (below("/v1"), true),
        (below("/v"), false),
        (tenant("a"), true),
        (tenant("A"), false),
        (CallTarget { ports: vec![8080], ..below("/v2") }, false),
    ];
    for (target, wanted) in rows {
        assert_eq!(holds(to(target.clone()), &ask), wanted, "{target:?}");
        let not = AuthorizationRule { not_to: vec![target.clone()], ..AuthorizationRule::default() };
        assert_eq!(holds(not, &ask), !wanted, "not {target:?}");
    }
}

#[test]
fn headers_that_may_be_read_in_several_ways_are_judged_for_the_worst() {
    // Aim: what denies holds for any value that an application may read of a repeated header, and for bytes that are no text; what allows holds
    // for all of it or not at all; the opposite of a match (`not`, and an inverted one) is the other way round.
    let said = |values: &[&[u8]], target: &CallTarget, action, negated: bool| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-debug", HeaderValue::from_bytes(value).unwrap());
        }
        let head = RequestHead { method: &Method::GET, path: "/", query: None, host: "a", headers: &headers };
        let rule =
            if negated { AuthorizationRule { not_to: vec![target.clone()], ..AuthorizationRule::default() } } else { to(target.clone()) };
        let authorization = compiled(vec![policy("p", action, vec![rule])], false);
        Ask::default().with(|call| authorization.judge(&Call { head: Some(&head), ..*call }).allows())
    };
    let header = |matcher: HeaderMatcher| CallTarget { headers: vec![matcher], ..CallTarget::default() };
    let one = header(crate::fixture::header("x-debug", "1"));
    let no_one = header(HeaderMatcher { invert_match: true, ..crate::fixture::header("x-debug", "1") });
    let pattern = Some(MatchPattern::SafeRegex(RegexMatcher { regex: ".*curl.*".into() }));
    let matched = StringMatcher { match_pattern: pattern, ..StringMatcher::default() };
    let specifier = Some(HeaderMatchSpecifier::StringMatch(matched));
    let curl = header(HeaderMatcher { name: "x-debug".into(), header_match_specifier: specifier, ..HeaderMatcher::default() });
    let rows: [(&[&[u8]], &CallTarget, bool, bool); 10] = [
        // Values, target; whether a rule that denies holds, and one that allows.
        (&[b"1"], &one, true, true),
        (&[b"0"], &one, false, false),
        (&[b"1", b"0"], &one, true, false),
        (&[b"0", b"1"], &one, true, false),
        (&[b"0", b"2"], &one, false, false),
        (&[], &one, false, false),
        (&[b"1", b"0"], &no_one, true, false),
        (&[b"curl\xff"], &curl, true, false),
        (&[b"wget", b"curl"], &curl, true, true),
        (&[b"wget"], &curl, false, false),
    ];
    for (values, target, denies, allows) in rows {
        assert_eq!(!said(values, target, Does::Deny, false), denies, "deny {values:?} {target:?}");
        assert_eq!(said(values, target, Does::Allow, false), allows, "allow {values:?} {target:?}");
        assert_eq!(said(values, target, Does::Allow, true), !denies, "allow what is not {values:?} {target:?}");
        assert_eq!(!said(values, target, Does::Deny, true), !allows, "deny what is not {values:?} {target:?}");
    }
}

#[test]
fn opaque_bytes_are_judged_for_the_worst() {
    // Aim: where there is no request, what asks for one allows nothing and denies everything that the rest of it holds for.
    let ask = Ask { head: None, ..Ask::default() };
    let allow = |rule| judged(vec![policy("a", Does::Allow, vec![rule])], &ask);
    let port = |port| CallTarget { ports: vec![port], ..CallTarget::default() };
    assert_eq!(allow(from(&[FRONTEND])), "allowed");
    assert_eq!(allow(to(port(8080))), "allowed");
    assert_eq!(allow(to(below("/"))), "denied by shop/a");
    assert_eq!(allow(to(below("/v1"))), "denied by shop/a");
    assert_eq!(allow(AuthorizationRule { not_to: vec![below("/v1")], ..from(&["*"]) }), "denied by shop/a");
    assert_eq!(allow(AuthorizationRule { when: "request.path == '/'".into(), ..from(&["*"]) }), "denied by shop/a");
    assert_eq!(allow(AuthorizationRule { when: "source.namespace == 'shop'".into(), ..from(&["*"]) }), "allowed");
    assert!(holds(to(below("/v1")), &ask));
    assert!(!holds(to(CallTarget { ports: vec![80], ..below("/v1") }), &ask));
    assert!(!holds(AuthorizationRule { to: vec![below("/v1")], ..from(&[CHECKOUT]) }, &ask));
    assert!(holds(AuthorizationRule { not_to: vec![below("/v1")], ..from(&[FRONTEND]) }, &ask));
    assert!(holds(AuthorizationRule { when: "request.path == '/'".into(), ..from(&[FRONTEND]) }, &ask));
    let token = TokenSource { issuer: "https://id.example".into(), claims: BTreeMap::new() };
    let token = CallSource { token: Some(token), ..CallSource::default() };
    assert!(holds(AuthorizationRule { from: vec![token], ..AuthorizationRule::default() }, &ask));
    // Ten denying rules for paths: the index by path must not hide them.
    let many = (0..10).map(|n| AuthorizationRule { to: vec![below(&format!("/{n}"))], ..from(&[FRONTEND]) }).collect();
    assert_eq!(judged(vec![policy("d", Does::Deny, many)], &ask), "denied by shop/d/r");
}

#[test]
fn a_condition_comes_last_and_fails_closed() {
    // Aim: conditions are asked only where the rest holds, at most so many; one that cannot be answered denies and never allows.
    let ask = Ask { tenant: Some("a"), ..Ask::default() };
    let when = |text: &str| AuthorizationRule { when: text.into(), ..from(&[FRONTEND]) };
    assert!(holds(when("request.headers['x-tenant'] == 'a'"), &ask) && !holds(when("request.headers['x-tenant'] == 'b'"), &ask));
    let absent = "request.headers['x-none'] == 'a'";
    assert_eq!(judged(vec![policy("d", Does::Deny, vec![when(absent)])], &ask), "denied by shop/d/r, 1 unanswered");
    assert_eq!(judged(vec![policy("a", Does::Allow, vec![when(absent)])], &ask), "denied by shop/a, 1 unanswered");
    assert_eq!(judged(vec![policy("u", Does::Audit, vec![when(absent)])], &ask), "allowed, 1 unanswered");
    assert_eq!(judged(vec![policy("d", Does::Deny, vec![when(absent)])], &Ask { peer: Some(CHECKOUT), ..ask.clone() }), "allowed");
    let many = vec![when("request.method == 'PUT'"); CONDITIONS_ASKED_MAX as usize + 1];
    assert_eq!(judged(vec![policy("d", Does::Deny, many)], &ask), "denied by shop/d/r, 1 unanswered");
}

#[test]
fn what_only_tells_spends_nothing_of_what_decides() {
    // Aim: conditions of policies that audit, or are on trial, never take from those that decide.
    let ask = Ask::default();
    let when = |text: &str| AuthorizationRule { when: text.into(), ..from(&[FRONTEND]) };
    let many = || vec![when("request.method == 'PUT'"); CONDITIONS_ASKED_MAX as usize + 1];
    let allow = || policy("a", Does::Allow, vec![when("request.method == 'GET'")]);
    let deny = || policy("d", Does::Deny, vec![when("request.method == 'PUT'")]);
    assert_eq!(judged(vec![policy("u", Does::Audit, many()), allow(), deny()], &ask), "allowed, 1 unanswered");
    let trial = AuthorizationPolicy { dry_run: true, ..policy("t", Does::Deny, many()) };
    assert_eq!(judged(vec![trial, allow()], &ask), "allowed, shop/t/r would deny, 1 unanswered");
}

#[test]
fn a_condition_is_asked_once() {
    // Aim: a rule that the index finds under several of its alternatives spends one condition, so the bound is that of asking all.
    let target = CallTarget { paths: ["/a", "/a/b", "/a/b/c"].map(prefix).to_vec(), ..CallTarget::default() };
    let rule = || AuthorizationRule { when: "request.method == 'PUT'".into(), ..to(target.clone()) };
    let mut rules = vec![rule(); 22];
    rules.extend((0..8).map(|n| to(below(&format!("/other/{n}")))));
    let ask = Ask { head: Some((Method::GET, "/a/b/c", "a")), ..Ask::default() };
    assert_eq!(judged(vec![policy("d", Does::Deny, rules)], &ask), "allowed");
}

#[test]
fn what_policies_come_to_is_counted_together() {
    // Aim: each bound is of the sum; what a proxy counts is what is told to whoever shares the room out.
    let claims = BTreeMap::from([("a".to_owned(), ClaimValues { values: texts(&["1", "2"]) })]);
    let token = CallSource { token: Some(TokenSource { issuer: String::new(), claims }), ..CallSource::default() };
    let rule = AuthorizationRule { when: "true".into(), from: vec![token], not_to: vec![below("/x")], ..AuthorizationRule::default() };
    assert_eq!(PolicySum::of(&[rule]), PolicySum { policies: 1, rules: 1, items: 5, conditions: 1 });
    let when = AuthorizationRule { when: "true".into(), ..AuthorizationRule::default() };
    let many = proto::mesh::Authorization { policies: vec![policy("a", Does::Deny, vec![when; 700]); 3], dry_run: false };
    let refused = compile(&many).unwrap_err().of("t", "inbound").to_string();
    assert!(refused.contains("policies: holds 2100 conditions, which is more than 2000"), "{refused}");
}

#[test]
fn what_cannot_be_carried_out_is_refused_by_name() {
    // Aim: every refusal names the field, and says what would be right.
    let one = |rule: AuthorizationRule| proto::mesh::Authorization { policies: vec![policy("a", Does::Allow, vec![rule])], dry_run: false };
    let source = |source| one(AuthorizationRule { from: vec![source], ..AuthorizationRule::default() });
    let target = |target| one(to(target));
    let claims = |values: &[&str]| {
        let claims = BTreeMap::from([("groups".to_owned(), ClaimValues { values: texts(values) })]);
        source(CallSource { token: Some(TokenSource { issuer: String::new(), claims }), ..CallSource::default() })
    };
    let path = |kind| target(CallTarget { paths: vec![PathPattern { kind }], ..CallTarget::default() });
    let named = |name: &str| {
        let policies = vec![AuthorizationPolicy { name: name.into(), ..AuthorizationPolicy::default() }];
        proto::mesh::Authorization { policies, dry_run: false }
    };
    let many = proto::mesh::Authorization { policies: vec![policy("a", Does::Deny, vec![]); POLICIES_MAX + 1], dry_run: false };
    let principals = vec![FRONTEND.to_owned(); ITEMS_MAX + 1];
    let rows = [
        (source(CallSource::default()), "policies[0].rules[0].from[0]: says nothing"),
        (one(to(CallTarget::default())), "policies[0].rules[0].to[0]: says nothing"),
        (one(from(&["frontend"])), "principals[0]: `frontend` is no identity"),
        (one(from(&["a*b"])), "`*` may stand at one end only"),
        (source(CallSource { ip_blocks: texts(&["10.0.0.0/33"]), ..CallSource::default() }), "ip_blocks[0]: `10.0.0.0/33` is not a range"),
        (source(CallSource { principals, ..CallSource::default() }), "principals: holds 1025"),
        (claims(&[]), "token.claims[groups]: needs a name"),
        (target(CallTarget { ports: vec![0], ..CallTarget::default() }), "ports[0]: 0 is not from 1 to 65535"),
        (target(CallTarget { hosts: texts(&["a:80"]), ..CallTarget::default() }), "holds a port or path"),
        (target(CallTarget { hosts: texts(&["*a"]), ..CallTarget::default() }), "is neither NAME"),
        (target(CallTarget { methods: texts(&["G T"]), ..CallTarget::default() }), "methods[0]: `G T` is not a method"),
        (target(CallTarget { headers: vec![crate::fixture::header(":path", "/")], ..CallTarget::default() }), "headers[0].name"),
        (target(CallTarget { headers: vec![crate::fixture::header("Host", "a")], ..CallTarget::default() }), "write it into `hosts`"),
        (path(None), "paths[0].kind: is missing"),
        (path(Some(Kind::Exact("a".into()))), "`a` does not start with `/`"),
        (path(Some(Kind::Template("/{a=**}/b".into()))), "is no template"),
        (one(AuthorizationRule { when: "a".into(), ..AuthorizationRule::default() }), "rules[0].when: `a` is not known here"),
        (named("a"), "policies[0].name: `a` is not of the form NAMESPACE/NAME"),
        (named("a/b/c"), "is not of the form"),
        (many, "policies: holds 10001"),
    ];
    for (raw, wanted) in rows {
        let refused = compile(&raw).expect_err(wanted).of("t", "inbound").to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
    let mut odd = policy("a", Does::Allow, vec![]);
    odd.action = 7;
    assert!(compile(&proto::mesh::Authorization { policies: vec![odd], dry_run: false }).is_err());
}

const PRINCIPALS: [&str; 9] = [
    FRONTEND,
    CHECKOUT,
    STRANGER,
    "*",
    "*/sa/frontend",
    "*/ns/shop/sa/checkout",
    "spiffe://cluster.local/*",
    "spiffe://cluster.local/ns/shop/*",
    "*t",
];
const PATHS: [&str; 9] = ["/", "/v1", "/v1/", "/v1/items", "/v1/items/7", "/v2", "//v1", "*", "/v1x"];

fn some<T: Clone + std::fmt::Debug + 'static>(all: &'static [T], most: usize) -> impl Strategy<Value = Vec<T>> {
    proptest::collection::vec(prop::sample::select(all), 0..=most)
}

fn owned(all: &[&str]) -> Vec<String> {
    texts(all)
}

fn any_source() -> impl Strategy<Value = CallSource> {
    let token = prop::option::weighted(0.1, Just(TokenSource { issuer: "https://id.example".into(), claims: BTreeMap::new() }));
    let blocks = some(&["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"], 1);
    (some(&PRINCIPALS, 3), some(&["shop", "pay", "s*", "*"], 1), blocks, token).prop_map(|(principals, namespaces, blocks, token)| {
        let principals = if namespaces.is_empty() && blocks.is_empty() && principals.is_empty() { vec!["*"] } else { principals };
        CallSource {
            principals: owned(&principals),
            namespaces: owned(&namespaces),
            ip_blocks: owned(&blocks),
            token,
            ..CallSource::default()
        }
    })
}

fn any_path() -> impl Strategy<Value = PathPattern> {
    let some = prop::sample::select(&PATHS[..7]);
    prop_oneof![
        3 => some.clone().prop_map(|path| Kind::Exact(path.into())),
        3 => some.prop_map(|path| Kind::Prefix(path.into())),
        1 => prop::sample::select(&["items", "/7", "1"][..]).prop_map(|path| Kind::Suffix(path.into())),
        1 => prop::sample::select(&["/{a}", "/v1/{a}", "/v1/{a}/{b}", "/{r=**}", "/v1/{r=**}"][..]).prop_map(|path| Kind::Template(path.into())),
    ]
    .prop_map(|kind| PathPattern { kind: Some(kind) })
}

fn any_target() -> impl Strategy<Value = CallTarget> {
    let hosts = some(&["store.shop", "*.shop", "store*", "a.example", "*"], 2);
    let paths = proptest::collection::vec(any_path(), 0..3);
    let tenant = prop::option::weighted(0.2, prop::sample::select(&["a", "b"][..]));
    (some(&[80_u32, 8080], 1), hosts, some(&["GET", "PUT"], 1), paths, tenant).prop_map(|(ports, hosts, methods, paths, tenant)| {
        let paths = if ports.is_empty() && hosts.is_empty() && methods.is_empty() && tenant.is_none() && paths.is_empty() {
            vec![prefix("/")]
        } else {
            paths
        };
        let headers = tenant.map(|value| crate::fixture::header("x-tenant", value)).into_iter().collect();
        CallTarget { ports, hosts: owned(&hosts), methods: owned(&methods), paths, headers }
    })
}

fn any_rule() -> impl Strategy<Value = AuthorizationRule> {
    let sources = |most| proptest::collection::vec(any_source(), 0..most);
    let targets = |most| proptest::collection::vec(any_target(), 0..most);
    let when = prop_oneof![
        9 => Just(""),
        1 => prop::sample::select(&["request.method == 'GET'", "source.namespace == 'shop'", "request.headers['x-tenant'] == 'a'"][..])
    ];
    (sources(3), targets(3), sources(2), targets(2), when).prop_map(|(from, to, not_from, not_to, when)| AuthorizationRule {
        name: String::new(),
        from,
        to,
        not_from,
        not_to,
        when: when.into(),
    })
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let methods = prop::sample::select(&[Method::GET, Method::PUT, Method::OPTIONS][..]);
    let hosts = prop::sample::select(&["store.shop", "Store.Shop:80", "a.example.", "shop", ""][..]);
    let head = prop::option::weighted(0.8, (methods, prop::sample::select(&PATHS[..]), hosts));
    let peer = prop::option::weighted(0.8, prop::sample::select(&[FRONTEND, CHECKOUT, STRANGER][..]));
    let source = prop::sample::select(&["10.1.2.3:1", "192.0.2.7:1", "[2001:db8::1]:1", "[::ffff:192.0.2.7]:1"][..]);
    let groups = prop::option::weighted(0.3, Just(vec!["staff"]));
    (peer, source, prop::sample::select(&[80_u16, 8080, 9090][..]), head, prop::option::of(prop::sample::select(&["a", "b"][..])), groups)
        .prop_map(|(peer, source, port, head, tenant, groups)| Ask { peer, source, port, head, tenant, groups })
}

/// The same by asking every rule of every policy, as kinds.md has it.
fn naive(authorization: &Authorization, call: &Call<'_>) -> (bool, Option<String>, bool, Vec<String>) {
    let told = authorization.told(call);
    let by = |verdict| told.iter().find(move |told| told.verdict == verdict);
    let label = |told: &Told<'_>| told.rule.map(|rule| rule.label.to_string()).unwrap_or_default();
    let denied = by(ToldVerdict::Deny).is_some();
    let named = told.iter().find(|told| told.verdict == ToldVerdict::Deny && told.rule.is_some()).map(label);
    let audits = told.iter().filter(|told| told.verdict == ToldVerdict::Audit).take(AUDITS_TOLD_MAX).map(label).collect();
    (denied, named, by(ToldVerdict::WouldDeny).is_some(), audits)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Aim: over policies and calls of every shape, the index comes to what asking every rule comes to, name by name.
    #[test]
    fn what_is_judged_is_what_a_walk_finds(
        policies in proptest::collection::vec(
            (proptest::collection::vec(any_rule(), 0..30), prop::sample::select(&[Does::Allow, Does::Deny, Does::Audit][..]), any::<bool>()),
            0..5,
        ),
        asks in proptest::collection::vec(any_ask(), 1..30),
    ) {
        let policies = policies.into_iter().enumerate();
        let policies = policies.map(|(n, (rules, action, dry_run))| AuthorizationPolicy { dry_run, ..policy(&n.to_string(), action, rules) });
        let authorization = compiled(policies.collect(), false);
        for ask in &asks {
            ask.with(|call| {
                let (denied, named, would_deny, audits) = naive(&authorization, call);
                let judgement = authorization.judge(call);
                let found = match judgement.verdict {
                    CallVerdict::Denied(ruling) if !ruling.rule.is_empty() => Some(ruling.label.to_string()),
                    _ => None,
                };
                prop_assert_eq!(judgement.allows(), !denied, "{:?}", ask);
                prop_assert_eq!(found, named, "{:?}", ask);
                prop_assert_eq!(judgement.would_deny.is_some(), would_deny && !denied, "{:?}", ask);
                let mut audited: Vec<String> = judgement.audited.iter().map(|ruling| ruling.policy.to_string()).collect();
                audited.sort();
                let mut audits: Vec<String> = audits.iter().map(|label| label.rsplit_once('/').unwrap().0.to_owned()).collect();
                audits.sort();
                prop_assert_eq!(audited, audits, "{:?}", ask);
                Ok(())
            })?;
        }
    }
}

#[test]
fn few_rules_are_asked_among_many() {
    // Aim: by principal, namespace, path, host or method, alone and together, a call meets a handful of ten thousand rules.
    let rule = |source: Option<CallSource>, target: Option<CallTarget>| AuthorizationRule {
        from: source.into_iter().collect(),
        to: target.into_iter().collect(),
        ..AuthorizationRule::default()
    };
    let principal = |n: usize| CallSource { principals: vec![format!("spiffe://cluster.local/ns/n{n}/sa/a")], ..CallSource::default() };
    let host = |n: usize| CallTarget { hosts: vec![format!("h{n}.shop")], ..CallTarget::default() };
    let kinds: [Box<dyn Fn(usize) -> AuthorizationRule>; 6] = [
        Box::new(|n| rule(Some(principal(n)), None)),
        Box::new(|n| rule(Some(CallSource { namespaces: vec![format!("n{n}")], ..CallSource::default() }), None)),
        Box::new(|n| rule(None, Some(below(&format!("/area/{n}"))))),
        Box::new(|n| rule(None, Some(host(n)))),
        Box::new(|n| rule(Some(principal(n % 100)), Some(below(&format!("/area/{}", n / 100))))),
        Box::new(|n| rule(Some(CallSource { principals: texts(&["*/sa/a"]), ..CallSource::default() }), Some(host(n)))),
    ];
    for (number, kind) in kinds.iter().enumerate() {
        let authorization = compiled(vec![policy("a", Does::Allow, (0..10_000).map(kind).collect())], false);
        let mut asked = 0;
        let peer = if number == 4 { "spiffe://cluster.local/ns/n99/sa/a" } else { "spiffe://cluster.local/ns/n9999/sa/a" };
        let path = if number == 4 { "/area/99/x" } else { "/area/9999/x" };
        let ask = Ask { peer: Some(peer), head: Some((Method::GET, path, "h9999.shop")), ..Ask::default() };
        ask.with(|call| authorization.allow.count(call, &mut asked));
        assert!((1..=5).contains(&asked), "{asked} rules were asked of kind {number}");
        assert_eq!(told(&authorization, &ask), "allowed");
    }
}
