use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;
use proto::identity::Identity;
use serde_json::json;

use super::*;
use crate::authorize::Own;
use crate::claims::Claims;
use crate::matching::RequestHead;

/// Evaluates a condition for one call that has all there is.
fn ask(text: &str) -> Result<bool, Unanswered> {
    ask_as("cluster.local", text)
}

/// The same for a caller of a trust domain.
fn ask_as(trust_domain: &str, text: &str) -> Result<bool, Unanswered> {
    let condition = Condition::compile(text).unwrap_or_else(|why| panic!("{text}: {why}"));
    let mut headers = HeaderMap::new();
    headers.insert("x-tenant", HeaderValue::from_static("a"));
    headers.append("x-many", HeaderValue::from_static("1"));
    headers.append("x-many", HeaderValue::from_static("2"));
    headers.append("cookie", HeaderValue::from_static("a=1"));
    headers.append("cookie", HeaderValue::from_static("b=2"));
    headers.append("x-bytes", HeaderValue::from_bytes(b"curl\xff").unwrap());
    let head = RequestHead { method: &Method::PUT, path: "/v1/items", query: Some("q=1"), host: "Store.Shop.:8080", headers: &headers };
    let peer = Identity::new(trust_domain, "shop", "frontend").unwrap();
    let serde_json::Value::Object(content) = json!({
        "sub": "ada", "groups": ["staff", "ops"], "level": 3, "rate": 1.5, "admin": true, "big": u64::MAX, "long": vec!["x"; CLAIM_ITEMS_MAX + 1],
        "realm": {"roles": ["r1"]}, "https://id.example/team": "blue", "mixed": ["a", {"b": 1}],
    }) else {
        unreachable!()
    };
    let claims = Claims { issuer: "https://id.example".into(), content };
    let source: SocketAddr = "[::ffff:10.1.2.3]:4567".parse().unwrap();
    let own = Own { trust_domain: "cluster.local", namespace: "shop", workload: "store" };
    let call = Call {
        peer: Some(&peer),
        workload: "frontend-v1",
        source,
        port: 8080,
        head: Some(&head),
        claims: Some(&claims),
        auth: None,
        edge: None,
        own,
    };
    condition.holds(&call)
}

#[test]
fn conditions_say_what_they_say() {
    // Aim: every attribute and function that is documented, with the value that it has.
    let rows = [
        ("request.headers[\"x-tenant\"] == \"a\" && source.namespace != \"test\"", true),
        ("request.method == 'PUT' && request.path == '/v1/items' && request.query == 'q=1'", true),
        ("request.host == 'store.shop'", true),
        ("request.headers['X-Tenant'] == 'a'", true),
        ("request.headers['cookie'] == 'a=1; b=2' && 'x-many' in request.headers", true),
        ("'x-tenant' in request.headers && !('x-none' in request.headers)", true),
        ("has(request.headers.accept) || request.method in ['PUT', 'POST']", true),
        ("source.principal == 'spiffe://cluster.local/ns/shop/sa/frontend' && source.trust_domain == 'cluster.local'", true),
        ("source.service_account == 'frontend' && source.workload == 'frontend-v1'", true),
        ("source.address == '10.1.2.3' && source.port > 1024", true),
        ("destination.port == 8080 && destination.namespace == 'shop' && destination.workload.startsWith('sto')", true),
        ("token.issuer == 'https://id.example' && token.claims.sub == 'ada'", true),
        ("'staff' in token.claims.groups && size(token.claims.groups) == 2", true),
        ("token.claims.groups.exists(g, g.endsWith('ps')) && token.claims.groups.all(g, size(g) > 2)", true),
        ("token.claims.groups.exists_one(g, g == source.namespace)", false),
        ("token.claims.level >= 3 && token.claims.rate < 2.0 && token.claims.admin", true),
        ("token.claims.big == 18446744073709551615u", true),
        ("token.claims.realm.roles[0] == 'r1' && token.claims['realm']['roles'][0] == 'r1'", true),
        ("token.claims['https://id.example/team'] == 'blue'", true),
        ("has(token.claims.realm.roles) && !has(token.claims.realm.none) && !('none' in token.claims)", true),
        ("request.path.matches('^/v[0-9]+/') && !token.claims.sub.matches('b')", true),
        ("request.path.contains('items') ? true : false", true),
        ("string(token.claims.level) == '3' && int('7') % 4 == 3", true),
        // What is absent leaves the other side to decide, where that is enough.
        ("request.headers['x-none'] == 'a' || request.method == 'PUT'", true),
        ("request.method == 'GET' && request.headers['x-none'] == 'a'", false),
    ];
    for (text, wanted) in rows {
        assert_eq!(ask(text), Ok(wanted), "{text}");
    }
}

#[test]
fn what_is_not_there_is_no_answer() {
    // Aim: absent headers and claims, objects, lists that are too long and values that do not compare are an error, never a silent false.
    for text in [
        "request.headers['x-none'] == 'a'",
        "request.headers['x-many'] == '1'",
        "request.headers['x-many'] != '1'",
        "request.headers['x-many'].matches('2')",
        "request.headers['x-bytes'].contains('curl')",
        "token.claims.none == 'a'",
        "token.claims.realm == 'a'",
        "size(token.claims.long) > 1",
        "'a' in token.claims.mixed",
        "token.claims.sub > 3",
        "token.claims.sub",
        "token.claims.level + token.claims.sub == 'a'",
        "1 / (token.claims.level - 3) == 1",
    ] {
        assert_eq!(ask(text), Err(Unanswered), "{text}");
    }
}

#[test]
fn a_foreign_authority_names_none_of_our_workloads() {
    // Aim: namespace, account and workload are those of our own trust domain, whatever stands in a certificate of another.
    for text in ["source.namespace == 'shop'", "source.service_account == 'frontend'", "source.workload == 'frontend-v1'"] {
        assert_eq!((ask(text), ask_as("partner.example", text)), (Ok(true), Err(Unanswered)), "{text}");
    }
    assert_eq!(ask_as("partner.example", "source.trust_domain == 'partner.example'"), Ok(true));
}

#[test]
fn what_cannot_be_evaluated_within_bounds_is_refused() {
    // Aim: unknown names, foreign functions, loops in loops and sizes beyond the bounds are refused with a sentence that helps.
    let deep = format!("{}true{}", "(".repeat(200), ")".repeat(200));
    let nots = format!("{}true", "!".repeat(1000));
    let rows = [
        ("", "is not CEL"),
        ("request.path ==", "is not CEL"),
        ("request.body == 'a'", "`request.body` is no attribute; there are request.method,"),
        ("source.pricipal == 'a'", "source.principal"),
        ("principal == 'a'", "`principal` is not known here"),
        ("request == 'a'", "`request` is not known here"),
        ("request.path", "neither true nor false"),
        ("'a'", "neither true nor false"),
        ("1 + 2", "neither true nor false"),
        ("request.path.replace('a', 'b') == ''", "`replace` is no function here"),
        ("request.path.matches(request.query)", "`matches` takes an attribute and one regular expression"),
        ("request.path.matches('(')", "is not a regular expression"),
        ("request.headers[request.path] == 'a'", "a name that is written down"),
        ("request.headers['a b'] == 'a'", "is not a header name"),
        ("request.headers['Host'] == 'a'", "ask for request.host"),
        ("token.claims.a.map(x, x).size() > 1", "there are `all`, `exists` and `exists_one`"),
        ("token.claims.a.exists(x, token.claims.b.exists(y, x == y))", "a loop within a loop"),
        ("has(source.principal)", "asks for a header or a claim"),
        ("{'a': 1} == {'a': 2}", "map or a message"),
        ("[1].exists(x, @not_strictly_false(true))", "is not CEL"),
        (&deep, "opens more than 64 brackets"),
        (&nots, "more than 256 operators"),
        (&format!("[{}]", vec!["1"; 250].join(", ")), "neither true nor false"),
        (&format!("request.port in [{}]", vec!["1"; 250].join(", ")), "`request.port` is no attribute"),
        (&format!("destination.port in [{}] && true", vec!["1"; 253].join(", ")), "of more than 256 parts"),
        (&"a".repeat(CONDITION_BYTES_MAX + 1), "longer than"),
    ];
    for (text, wanted) in rows {
        let why = check(text).expect_err(text);
        assert!(why.contains(wanted), "{text}: {why}");
    }
}

#[test]
fn the_deepest_texts_are_survived() {
    // Aim: whatever nests as deep as the bounds on brackets and operators let it ends in a refusal or an answer, on a usual stack.
    let chain =
        |part: &str| format!("true{}", part.repeat(MARKS_MAX / part.bytes().filter(|byte| !byte.is_ascii_alphanumeric()).count().max(1)));
    let nested = |open: &str, close: &str| format!("{}true{}", open.repeat(OPENED_MAX), close.repeat(OPENED_MAX));
    for text in [
        nested("(", ")"),
        nested("[", "]"),
        nested("size(", ")"),
        nested("{1:", "}"),
        nested("!(", ")"),
        format!("true{}", "[0]".repeat(OPENED_MAX)),
        "(".repeat(OPENED_MAX),
        "!".repeat(MARKS_MAX),
        format!("{}1", "-".repeat(MARKS_MAX)),
        chain(".a"),
        chain("+1"),
        chain("<1"),
        chain("==1"),
        chain("&&a"),
        chain("||a"),
        chain("?a:a"),
        format!("{}a{}", "a?".repeat(MARKS_MAX / 2), ":a".repeat(MARKS_MAX / 2)),
    ] {
        let _ = check(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Aim: no text ends the program, whether it is a condition or not, and what is one can be evaluated.
    #[test]
    fn any_text_is_survived(text in prop_oneof![
        "\\PC{0,80}",
        "(request|token|source)(\\.(path|headers|claims|a|port)|\\[('a'|0|\"x\")\\]){0,4}( (==|in|<|\\+|&&) ('a'|1|\\[1\\]|true|request\\.path)){0,4}",
        "[-!(\\[]{0,200}(true|1)?",
    ]) {
        if check(&text).is_ok() {
            let _ = ask(&text);
        }
    }
}
