//! Reading of routes: what each field becomes, and what each slip is told.

use super::*;
use crate::source::{FileChange, Folder};
use crate::world::{Allocations, Problem, Severity, World, WorldSettings};

/// The first rule of the spec below a kind, and what is said about it.
fn read(kind: &str, spec: &str) -> (Option<Rule>, Vec<Problem>) {
    let text = format!("apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: a}}\nspec: {spec}\n");
    let change = FileChange { file: "f".to_owned(), text: Some(Ok(text)) };
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let problems = world.apply(Folder::default().update(vec![change], 0)).problems;
    let rule = world.index().routes.first().map(|route| match &route.spec {
        crate::world::Spec::Route(route) => route.rules[0].clone(),
        other => panic!("{other:?} is no route"),
    });
    (rule, problems)
}

fn rule(kind: &str, rule: &str) -> Rule {
    let (read, problems) = read(kind, &format!("{{rules: [{rule}]}}"));
    let errors: Vec<_> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{rule}: {errors:?}");
    read.unwrap()
}

#[test]
fn a_grpc_method_is_a_path() {
    // Aim: every form of a method match, also the empty ones, becomes the path that calls of it have.
    let any = || PathMatch::Prefix(String::new());
    for (method, wanted) in [
        ("", any()),
        ("method: {}", any()),
        ("method: {service: '', method: ''}", any()),
        ("method: {type: RegularExpression}", any()),
        ("method: {type: RegularExpression, service: '', method: ''}", any()),
        ("method: {service: shop.Cart, method: Add}", PathMatch::Exact("/shop.Cart/Add".to_owned())),
        ("method: {service: shop.Cart}", PathMatch::Service("shop.Cart".to_owned())),
        ("method: {method: Add}", PathMatch::Method("Add".to_owned())),
        ("method: {type: RegularExpression, method: 'Add|Take'}", PathMatch::Method("(?:Add|Take)".to_owned())),
        ("method: {type: RegularExpression, service: 'shop\\..*'}", PathMatch::Regex("/(?:shop\\..*)/[^/]+".to_owned())),
    ] {
        assert_eq!(rule("GRPCRoute", &format!("{{matches: [{{{method}}}]}}")).matches[0].path, wanted, "{method}");
    }
    assert_eq!(rule("GRPCRoute", "{}").matches, vec![Match::any()]);
    assert_eq!(rule("GRPCRoute", "{matches: []}").matches, vec![Match::any()]);
    for bad in ["service: 'a/b'", "method: 'a.b'", "service: 1a", "service: a..b"] {
        let (read, _) = read("GRPCRoute", &format!("{{rules: [{{matches: [{{method: {{{bad}}}}}]}}]}}"));
        assert_eq!(read, None, "{bad}");
    }
    for bad in ["type: Glob, service: a", "type: RegularExpression, service: 'a)|(b'"] {
        assert_eq!(rule("GRPCRoute", &format!("{{matches: [{{method: {{{bad}}}}}]}}")).unmatchable.len(), 1, "{bad}");
    }
}

#[test]
fn zero_durations_mean_none() {
    // Aim: both timeouts are kept apart, and zero from absence; zero in any unit is no limit, and does not make the other too long.
    let secs = |secs| Some(std::time::Duration::from_secs(secs));
    for (timeouts, request, backend_request) in [
        ("{request: 10s, backendRequest: 2s}", secs(10), secs(2)),
        ("{request: 0s, backendRequest: 2s}", secs(0), secs(2)),
        ("{request: 1s1s, backendRequest: 0ms}", secs(2), secs(0)),
        ("{backendRequest: 0h}", None, secs(0)),
        ("{}", None, None),
    ] {
        let read = rule("HTTPRoute", &format!("{{timeouts: {timeouts}}}"));
        assert_eq!(read.timeouts, RouteTimeouts { request, backend_request }, "{timeouts}");
    }
}

#[test]
fn filters_become_what_they_say() {
    // Aim: the content of every filter, with the standard's defaults.
    let filters = |text: &str| rule("HTTPRoute", &format!("{{filters: [{text}]}}")).filters;
    let redirect = filters("{type: RequestRedirect, requestRedirect: {}}").redirect;
    assert_eq!(redirect, Some(Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 }));
    let redirect = filters(
        "{type: RequestRedirect, requestRedirect: {scheme: https, hostname: B.example, port: 8443, statusCode: 308, \
         path: {type: ReplacePrefixMatch, replacePrefixMatch: /new/}}}",
    );
    let path = Some(PathChange::Prefix("/new".to_owned()));
    let (scheme, hostname) = (Some("https".to_owned()), Some("b.example".to_owned()));
    assert_eq!(redirect.redirect, Some(Redirect { scheme, hostname, path, port: Some(8443), status: 308 }));
    for (path, wanted) in [
        ("{type: ReplaceFullPath, replaceFullPath: /all}", PathChange::Full("/all".to_owned())),
        ("{type: ReplacePrefixMatch, replacePrefixMatch: ''}", PathChange::Prefix(String::new())),
        ("{type: ReplacePrefixMatch, replacePrefixMatch: /}", PathChange::Prefix(String::new())),
    ] {
        let rewrite = filters(&format!("{{type: URLRewrite, urlRewrite: {{path: {path}}}}}")).rewrite.unwrap();
        assert_eq!(rewrite, Rewrite { hostname: None, path: Some(wanted) }, "{path}");
    }
    for (share, per_million) in [
        ("", 1_000_000),
        (", percent: 0", 0),
        (", percent: 42", 420_000),
        (", fraction: {numerator: 1}", 10_000),
        (", fraction: {numerator: 1, denominator: 3}", 333_333),
    ] {
        let mirrors = filters(&format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: y, port: 80}}{share}}}}}")).mirrors;
        assert_eq!(mirrors[0].per_million, per_million, "{share}");
    }
    let cors =
        filters("{type: CORS, cors: {allowOrigins: ['https://*.Example.com', 'http://a:8080'], exposeHeaders: ['X-A']}}").cors.unwrap();
    assert_eq!(cors.allow_origins, ["https://*.example.com", "http://a:8080"]);
    assert_eq!((cors.expose_headers, cors.max_age_secs, cors.allow_credentials), (vec!["x-a".to_owned()], 5, false));
}

#[test]
fn what_the_schema_forbids_is_refused_here_too() {
    // Aim: rules that Kubernetes would not take are refused with a sentence, since files never meet its validation.
    let redirect = "{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}";
    for (text, says) in [
        ("{filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}]}".to_owned(), "exclude each other"),
        ("{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: y, port: 80}]}".to_owned(), "no backends"),
        ("{filters: [{type: CORS, cors: {}}, {type: CORS, cors: {}}]}".to_owned(), "stands twice"),
        (format!("{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{redirect}]}}"), "exactly one match"),
        (format!("{{matches: [{{path: {{value: /a}}}}, {{path: {{value: /b}}}}], filters: [{redirect}]}}"), "exactly one match"),
        (
            format!("{{matches: [{{path: {{type: Exact, value: /a}}}}], backendRefs: [{{name: y, port: 80, filters: [{redirect}]}}]}}"),
            "exactly one match",
        ),
        ("{filters: [{type: CORS, cors: {}, urlRewrite: {}}]}".to_owned(), "belongs to the type URLRewrite"),
        ("{filters: [{type: CORS, cors: {allowMethods: ['*', GET]}}]}".to_owned(), "stands alone"),
        ("{filters: [{type: URLRewrite, urlRewrite: {hostname: '*.x'}}]}".to_owned(), "no host name"),
        ("{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: 'a b'}}}]}".to_owned(), "no path"),
        (
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: y, port: 80}, percent: 1, fraction: {numerator: 1}}}]}"
                .to_owned(),
            "exclude each other",
        ),
        ("{timeouts: {request: 1s, backendRequest: 2s}}".to_owned(), "longer than request"),
        ("{timeouts: {request: 1us}}".to_owned(), "no duration"),
        ("{retry: {codes: [500, 500]}}".to_owned(), "stands twice"),
        ("{retry: {codes: [200]}}".to_owned(), "out of range"),
        ("{retry: {attempts: 0}}".to_owned(), "out of range"),
        ("{sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}}".to_owned(), "needs an absoluteTimeout"),
        ("{sessionPersistence: {type: Header, cookieConfig: {}}}".to_owned(), "belongs to the type Cookie"),
        ("{sessionPersistence: {type: Header, sessionName: Host}}".to_owned(), "cannot name a session"),
        ("{sessionPersistence: {sessionName: 'a b'}}".to_owned(), "cannot name a session"),
    ] {
        let (read, problems) = read("HTTPRoute", &format!("{{rules: [{text}]}}"));
        let told = problems.iter().any(|problem| problem.severity == Severity::Error && problem.message.contains(says));
        assert!(read.is_none() && told, "{text}: {problems:?}");
    }
}

#[test]
fn unknown_words_fail_their_rule_alone() {
    // Aim: what a newer schema may say keeps the object and fails the rule, or the share of the backend, that says it.
    for text in [
        "{filters: [{type: Teleport}]}",
        "{filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}]}",
        "{filters: [{type: ExternalAuth, externalAuth: {protocol: SMOKE, backendRef: {name: y, port: 80}}}]}",
        "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]}",
        "{filters: [{type: RequestRedirect, requestRedirect: {scheme: gopher}}]}",
        "{filters: [{type: URLRewrite, urlRewrite: {path: {type: Reverse}}}]}",
        "{filters: [{type: CORS, cors: {allowOrigins: ['ftp://x']}}]}",
        "{filters: [{type: CORS, cors: {allowMethods: [BREW]}}]}",
        "{sessionPersistence: {type: Smell}}",
        "{sessionPersistence: {cookieConfig: {lifetimeType: Eternal}, absoluteTimeout: 1h}}",
    ] {
        assert_eq!(rule("HTTPRoute", text).failing.len(), 1, "{text}");
    }
    // What HTTPRoutes have and GRPCRoutes do not is as unknown there.
    assert_eq!(rule("GRPCRoute", "{filters: [{type: CORS}]}").failing.len(), 1);
    let backend = rule("HTTPRoute", "{backendRefs: [{name: y, port: 80, filters: [{type: Teleport}]}]}").backends()[0].clone();
    assert_eq!(backend.failing.len(), 1);
}

#[test]
fn absent_backends_are_told_from_none() {
    // Aim: an absent key, an empty list and no rules at all are three things, for a Service's own endpoints depend on it.
    assert_eq!(rule("HTTPRoute", "{}").backends, None);
    assert_eq!(rule("HTTPRoute", "{backendRefs: []}").backends, Some(Vec::new()));
    assert_eq!(read("HTTPRoute", "{}").0.unwrap(), Rule { line: 4, ..Rule::implied(0) });
    assert_eq!(read("TCPRoute", "{}").0, None);
    assert_eq!(read("TLSRoute", "{rules: [{backendRefs: []}, {}]}").0, None);
}

#[test]
fn fields_of_the_other_channel_are_named() {
    // Aim: from a file they work, and whoever means a cluster hears what becomes of them there.
    for (kind, text, severity) in [
        ("HTTPRoute", "{retry: {attempts: 2}}", Severity::Info),
        ("HTTPRoute", "{sessionPersistence: {}}", Severity::Info),
        ("GRPCRoute", "{sessionPersistence: {}}", Severity::Info),
        ("GRPCRoute", "{timeouts: {request: 1s}}", Severity::Warning),
    ] {
        let (read, problems) = read(kind, &format!("{{rules: [{text}]}}"));
        assert!(read.is_some(), "{text}");
        assert_eq!(problems.iter().map(|problem| problem.severity).collect::<Vec<_>>(), [severity], "{text}");
    }
}

#[test]
fn what_is_said_twice_or_too_much_is_told_and_taken_as_far_as_it_goes() {
    // Aim: the standard's own values are taken, what proxies do not do of them is told, and of equal header names the first counts.
    let told = |text: &str| -> (Rule, Vec<String>) {
        let (read, problems) = read("HTTPRoute", &format!("{{rules: [{text}]}}"));
        let warnings = problems.iter().filter(|problem| problem.severity == Severity::Warning);
        (read.unwrap(), warnings.map(|problem| problem.message.clone()).collect())
    };
    for (attempts, made) in [(16, 16), (17, 16), (100, 16)] {
        let (rule, warnings) = told(&format!("{{retry: {{attempts: {attempts}}}}}"));
        assert_eq!((rule.retry.unwrap().attempts, warnings.len()), (Some(made), usize::from(attempts > 16)));
    }
    let (rule, warnings) = told("{retry: {backoff: 0s}}");
    assert_eq!((rule.retry.unwrap().backoff, warnings), (Some(std::time::Duration::ZERO), vec![]));
    let (rule, warnings) = told("{sessionPersistence: {absoluteTimeout: 500ms, idleTimeout: 0s}}");
    let session = rule.session.unwrap();
    assert_eq!((session.absolute_timeout, session.idle_timeout), (Some(std::time::Duration::from_secs(1)), None));
    assert_eq!(warnings, ["sessions are counted in seconds: it is taken for 1s"]);
    let (_, warnings) = told("{sessionPersistence: {absoluteTimeout: 1m, idleTimeout: 1h}}");
    assert!(warnings[0].contains("idleTimeout is longer"), "{warnings:?}");
    let set = "{name: X-A, value: one}, {name: x-a, value: two}, {name: x-b, value: three}";
    let (rule, warnings) = told(&format!("{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{set}]}}}}]}}"));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(rule.filters.request.set, [pair("x-a", "one"), pair("x-b", "three")]);
    assert_eq!(warnings, ["the header `x-a` stands twice: the first counts"]);
    let (rule, warnings) = told("{filters: [{type: URLRewrite, urlRewrite: {}}]}");
    assert_eq!((rule.filters.rewrite, warnings.len()), (None, 1));
    let (_, warnings) = told("{filters: [{type: CORS, cors: {allowMethods: [GET]}}]}");
    assert!(warnings[0].contains("without allowOrigins"), "{warnings:?}");
    let mirror = "{backendRef: {name: b, port: 1}, fraction: {numerator: 1, denominator: 2000000}}";
    let (_, warnings) = told(&format!("{{filters: [{{type: RequestMirror, requestMirror: {mirror}}}]}}"));
    assert!(warnings[0].contains("nothing is mirrored"), "{warnings:?}");
}

#[test]
fn no_filter_speaks_for_the_mesh() {
    // Aim: sidecars believe a Gateway who called at the edge, so whoever writes a route must not say it: the rule fails, in any spelling of
    // the header and whatever is done to it. An answer's headers are the author's.
    for (name, fails) in
        [("x-meshwright-consumer", true), ("X_Meshwright_Consumer", true), ("x-meshwright-deadline-ms", true), ("x-tenant", false)]
    {
        for said in
            [format!("set: [{{name: {name}, value: a}}]"), format!("add: [{{name: {name}, value: a}}]"), format!("remove: [{name}]")]
        {
            let filter = format!("{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{said}}}}}]}}");
            assert_eq!(rule("HTTPRoute", &filter).fails(), fails, "{said}");
        }
    }
    let answers = "{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-meshwright-reason]}}]}";
    assert!(!rule("HTTPRoute", answers).fails());
}

#[test]
fn what_no_request_line_holds_is_no_path() {
    // Aim: the characters of the standard's schema, in matches and in what replaces paths; an empty host is none, an empty section absent.
    let refused = |spec: &str| read("HTTPRoute", spec).0.is_none();
    for path in ["/é", "/a b", "/%zz", "/{x}", "/a?b", "/a/../b"] {
        assert!(refused(&format!("{{rules: [{{matches: [{{path: {{value: '{path}'}}}}]}}]}}")), "{path}");
    }
    let full = |path: &str| {
        let change = format!("{{type: ReplaceFullPath, replaceFullPath: '{path}'}}");
        refused(&format!("{{rules: [{{filters: [{{type: URLRewrite, urlRewrite: {{path: {change}}}}}]}}]}}"))
    };
    assert!(full("/é") && !full("/%C3%A9"));
    assert!(refused("{hostnames: ['']}") && !refused("{hostnames: ['*.example.com']}"));
    let long = ["x".repeat(63), "y".repeat(63), "z".repeat(63), "w".repeat(61)].join(".");
    assert!(!refused(&format!("{{hostnames: ['{long}']}}")) && refused(&format!("{{hostnames: ['*.{long}']}}")));
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: x, namespace: a}\n\
                spec: {parentRefs: [{name: g, sectionName: ''}]}\n";
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) }], 0));
    let crate::world::Spec::Route(route) = &world.index().routes[0].spec else { panic!("no route") };
    assert_eq!(route.parents[0].section, None);
}
