use std::time::Duration;

use super::*;
use crate::source::parse;
use crate::world::{Candidate, Spec};

const SERVICE: &str = "targetRefs: [{group: '', kind: Service, name: web}]";

fn candidate(spec: &str) -> Candidate {
    let text =
        format!("apiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n");
    parse("f.yaml", &text).candidates.remove(0)
}

/// What is wrong with a spec, warnings too, without file and object.
fn wrong(spec: &str) -> Vec<String> {
    let problems = candidate(spec).problems;
    problems.iter().map(|problem| format!("{}: {} ({})", problem.field, problem.message, problem.remedy)).collect()
}

fn good(spec: &str) -> TrafficPolicy {
    let candidate = candidate(spec);
    assert!(candidate.problems.is_empty(), "{spec}: {:?}", candidate.problems);
    let Some(Spec::TrafficPolicy(policy)) = candidate.object.map(|object| object.spec.clone()) else { panic!("{spec}") };
    *policy
}

#[test]
fn every_field_is_read() {
    // Aim: the example of every block is taken whole, and each field keeps its value.
    let all = "\
        loadBalancer: {algorithm: Maglev, hash: [{header: X-User}, {cookie: {name: sid, ttl: 1h}}, {sourceAddress: {}}, {query: user}], \
          slowStart: 30s, locality: {prefer: Zone, failoverBelowHealthyPercent: 70}, panicBelowHealthyPercent: 0.5}, \
        sessionPersistence: {type: Header, sessionName: X-Session, absoluteTimeout: 24h, idleTimeout: 1h}, \
        timeouts: {connect: 1s, request: 15s, backendRequest: 5s, idle: 1h, streamIdle: 5m, stream: 0s}, \
        retry: {attempts: 2, perTryTimeout: 2s, on: [ConnectFailure, Reset, RefusedStream, RetriableStatus, GrpcStatus], \
          statusCodes: [502, 503], grpcStatuses: [UNAVAILABLE], backoff: {base: 25ms, max: 250ms}, bodyBufferBytes: 65536, \
          budget: {percent: 20, minPerSecond: 10}, hedge: {atQuantile: 99.9, maxPercent: 5, methods: [GET]}}, \
        limits: {connections: 1, requests: 2, pending: 3, pendingTimeout: 1s, requestsPerConnection: 4}, \
        health: {outlier: {consecutiveErrors: 5, consecutiveConnectFailures: 3, successRateMinPercent: 80, latencyFactor: 2.5, interval: 10s, \
          ejectFor: 30s, maxEjectedPercent: 50}, active: {grpc: {service: shop.Web}, interval: 5s, timeout: 1s, healthyAfter: 1, unhealthyAfter: 2}}, \
        faults: [{match: {headers: [{name: x-a, value: b}], methods: [GET], paths: [{value: /c}]}, from: [{namespace: shop}], percent: 10, \
          delay: {fixed: 2s}, abort: {grpcStatus: UNAVAILABLE}}], \
        rateLimits: [{requests: 100, per: 1s, burst: 20, key: [{sourceIdentity: {}}, {header: X-Tenant}]}], \
        priority: {header: X-Priority, classes: [high, low], default: high, shed: LowestFirst}, \
        upstreamProtocol: Http2";
    let policy = good(&format!("{SERVICE}, {all}"));
    let said = &policy.settings;
    let read: Vec<&str> = said.fields().iter().map(|field| field.path).collect();
    assert_eq!(read, TrafficSettings::PATHS, "every field that there is has been read");
    assert_eq!(said.shown().len(), read.len());
    assert_eq!((said.algorithm, said.prefer, said.panic_percent), (Some(Algorithm::Maglev), Some(Prefer::Zone), Some(0.5)));
    assert_eq!((said.stream, said.stream_idle), (Some(Duration::ZERO), Some(Duration::from_secs(300))));
    assert_eq!((said.attempts, said.status_codes.clone(), said.grpc_statuses.clone()), (Some(2), Some(vec![502, 503]), Some(vec![14])));
    assert_eq!(said.causes.as_ref().map(Vec::len), Some(5));
    assert_eq!(said.latency_factor, Some(2.5));
    let session = said.session.as_ref().unwrap();
    assert_eq!((session.name.as_str(), session.header, session.path.as_str()), ("x-session", true, ""));
    let fault = &said.faults.as_ref().unwrap()[0];
    assert_eq!((fault.fault.per_million, fault.fault.policy.as_str(), fault.from.len()), (100_000, "shop/p", 1));
    let limit = &said.rate_limits.as_ref().unwrap()[0];
    assert_eq!((limit.name.as_str(), limit.requests, limit.burst, limit.key.len()), ("TrafficPolicy/shop/p/0", 100, 20, 2));
    assert_eq!(said.priority.as_ref().unwrap().default_class, 0);
    assert_eq!(said.upstream_protocol, Some(UpstreamProtocol::Http2));
    assert_eq!(policy.targets, [PolicyTarget { kind: Kind::Service, name: "web".into(), section: None, line: policy.targets[0].line }]);
}

#[test]
fn what_is_left_out_has_its_default() {
    // Aim: parts of a block that may be left out are filled in as the guide says.
    let said = good(&format!(
        "{SERVICE}, sessionPersistence: {{}}, health: {{active: {{http: {{}}}}}}, retry: {{hedge: {{}}}}, \
         priority: {{header: x, classes: [a, b, c]}}, faults: [{{abort: {{reset: {{}}}}}}], rateLimits: [{{requests: 1, per: 1m}}]"
    ));
    let said = said.settings;
    let session = said.session.unwrap();
    assert_eq!((session.name.as_str(), session.header, session.permanent, session.path.as_str()), ("mw-session", false, false, "/"));
    let check = said.active.unwrap();
    let seconds = |duration: Option<prost_types::Duration>| duration.unwrap().seconds;
    assert_eq!((seconds(check.interval), seconds(check.timeout), check.healthy_after, check.unhealthy_after), (5, 1, 2, 3));
    let Some(proto::mesh::active_check::Kind::Http(http)) = check.kind else { panic!("http") };
    assert_eq!((http.path.as_str(), http.expect), ("/", vec![200]));
    let hedge = said.hedge.unwrap();
    assert_eq!((hedge.at_quantile, hedge.max_percent, hedge.methods), (95.0, 5.0, vec!["GET".to_owned(), "HEAD".to_owned()]));
    assert_eq!(said.priority.unwrap().default_class, 2);
    assert_eq!(said.faults.unwrap()[0].fault.per_million, 1_000_000);
    assert_eq!((said.rate_limits.as_ref().unwrap()[0].burst, said.rate_limits.unwrap()[0].key.len()), (0, 0));
}

#[test]
fn targets_say_what_may_be_said() {
    // Aim: a policy has targets, a selector or neither; a selector carries rateLimits only, a route or Gateway nothing of a destination.
    assert_eq!(good("timeouts: {request: 1s}").places(&ObjectKey::new(Kind::TrafficPolicy, "a", "p")), [Place::Namespace("a".into())]);
    assert_eq!(good("timeouts: {request: 1s}").places(&ObjectKey::new(Kind::TrafficPolicy, "meshwright-system", "p")), [Place::Mesh]);
    let key = ObjectKey::new(Kind::HTTPRoute, "shop", "r");
    let route = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: s}]";
    let policy = good(&format!("{route}, timeouts: {{request: 1s}}"));
    assert_eq!(policy.places(&ObjectKey::new(Kind::TrafficPolicy, "shop", "p")), [Place::Section(key, "s".into())]);
    assert!(good("selector: {matchLabels: {a: b}}, rateLimits: [{requests: 1, per: 1s}]").selector.is_some());
    for (spec, said) in [
        (
            "selector: {matchLabels: {a: b}}, timeouts: {request: 1s}".to_owned(),
            "spec.timeouts.request: `timeouts.request` is about callers",
        ),
        (format!("{SERVICE}, selector: {{matchLabels: {{a: b}}}}, rateLimits: []"), "spec: it has both targetRefs and a selector"),
        (format!("{route}, limits: {{connections: 1}}"), "spec.limits.connections: `limits.connections` belongs to a destination"),
        (format!("{route}, loadBalancer: {{algorithm: Random}}"), "spec.loadBalancer.algorithm: `loadBalancer.algorithm` belongs"),
        (format!("{route}, retry: {{budget: {{percent: 1}}}}"), "spec.retry.budget.percent: `retry.budget.percent` belongs"),
        (format!("{route}, timeouts: {{connect: 1s}}"), "spec.timeouts.connect: `timeouts.connect` belongs"),
        (format!("{route}, health: {{active: {{tcp: {{}}}}}}"), "spec.health.active: `health.active` belongs"),
        (format!("{route}, upstreamProtocol: Tcp"), "spec.upstreamProtocol: `upstreamProtocol` belongs"),
        ("targetRefs: [{kind: Servise, name: a}], timeouts: {request: 1s}".to_owned(), "(did you mean `Service`?)"),
        ("targetRefs: [{kind: Service, name: a, namespace: b}], timeouts: {request: 1s}".to_owned(), "objects of its own namespace"),
        ("targetRefs: [{group: apps, kind: Service, name: a}], timeouts: {request: 1s}".to_owned(), "`apps` has no kind Service"),
        (SERVICE.to_owned(), "spec: it says nothing"),
    ] {
        let found = wrong(&spec);
        assert!(found.len() == 1 && found[0].contains(said), "{spec}: {found:?}");
    }
}

/// The field of a spec of one bad field that is refused, and what is said of it.
fn refused_at_its_place(spec: &str, said: &str) {
    let found = wrong(&format!("{SERVICE}, {spec}"));
    let found: Vec<_> = found.iter().filter(|line| !line.contains("it says nothing")).collect();
    assert!(found.len() == 1 && found[0].contains(&format!("spec.{said}")), "{spec}: {found:?}");
}

#[test]
fn bad_fields_are_refused_at_their_place() {
    // Aim: an unknown word, a bound or a contradiction is an error that names the field, the cause and what to write instead.
    for (spec, said) in [
        (
            "loadBalancer: {algorithm: LeastRequests}",
            "loadBalancer.algorithm: unknown value `LeastRequests` (did you mean `LeastRequest`?)",
        ),
        ("loadBalancer: {algoritm: Random}", "loadBalancer.algoritm: unknown field `algoritm` (did you mean `algorithm`?)"),
        ("loadBalancer: {hash: [{header: a, query: b}]}", "loadBalancer.hash[0]: a part of a hash is exactly one thing"),
        ("loadBalancer: {hash: [{header: 'a b'}]}", "loadBalancer.hash[0].header: `a b` is no header name"),
        ("loadBalancer: {hash: [{cookie: {name: 'a;b'}}]}", "loadBalancer.hash[0].cookie.name: `a;b` is no such name"),
        ("loadBalancer: {panicBelowHealthyPercent: 101}", "loadBalancer.panicBelowHealthyPercent: 101 is no percentage"),
        ("loadBalancer: {locality: {prefer: Rack}}", "loadBalancer.locality.prefer: unknown value `Rack`"),
        ("loadBalancer: {slowStart: 1.5s}", "loadBalancer.slowStart: `1.5s` is no duration"),
        ("sessionPersistence: {type: Query}", "sessionPersistence.type: unknown value `Query`"),
        ("sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}", "sessionPersistence: a permanent cookie needs absoluteTimeout"),
        ("sessionPersistence: {absoluteTimeout: 1m, idleTimeout: 1h}", "sessionPersistence: idleTimeout is longer than absoluteTimeout"),
        ("sessionPersistence: {type: Header, cookieConfig: {}}", "sessionPersistence.cookieConfig: a header has no cookieConfig"),
        ("sessionPersistence: {idleTimeout: 500ms}", "sessionPersistence.idleTimeout: sessions are counted in seconds: it is taken for 1s"),
        (
            "sessionPersistence: {type: Header, sessionName: Content-Length}",
            "sessionPersistence.sessionName: the header `Content-Length` belongs to the connection",
        ),
        ("timeouts: {connect: 0s}", "timeouts.connect: it is no time at all"),
        ("timeouts: {request: 100us}", "timeouts.request: `100us` is no duration"),
        ("timeouts: {request: 5}", "timeouts.request: expected text, found"),
        ("retry: {attempts: 11}", "retry.attempts: 11 is out of range (use 0 to 10)"),
        ("retry: {on: [Rest]}", "retry.on[0]: unknown value `Rest` (did you mean `Reset`?)"),
        ("retry: {on: [Reset, Reset]}", "retry.on[1]: Reset stands twice"),
        ("retry: {statusCodes: [302]}", "retry.statusCodes[0]: 302 is out of range (use 400 to 599)"),
        ("retry: {grpcStatuses: [UNAVAILABEL]}", "retry.grpcStatuses[0]: unknown value `UNAVAILABEL` (did you mean `UNAVAILABLE`?)"),
        ("retry: {on: [Reset], statusCodes: [503]}", "retry.statusCodes: without RetriableStatus in `on` it has no effect"),
        ("retry: {backoff: {base: 1s, max: 1ms}}", "retry.backoff: base is longer than max"),
        ("retry: {bodyBufferBytes: 9999999}", "retry.bodyBufferBytes: 9999999 is out of range"),
        ("retry: {budget: {percent: -1}}", "retry.budget.percent: -1 is no percentage"),
        ("retry: {hedge: {atQuantile: 100}}", "retry.hedge.atQuantile: a quantile lies between 0 and 100"),
        ("retry: {hedge: {methods: [POST]}}", "retry.hedge.methods: POST may be carried out twice"),
        ("retry: {hedge: {methods: [get]}}", "retry.hedge.methods[0]: unknown value `get`"),
        ("limits: {connections: -1}", "limits.connections: -1 is out of range"),
        ("limits: {conections: 1}", "limits.conections: unknown field `conections` (did you mean `connections`?)"),
        ("health: {outlier: {latencyFactor: 0.5}}", "health.outlier.latencyFactor: a factor is 0 (off) or more than 1"),
        ("health: {outlier: {interval: 0s}}", "health.outlier.interval: it is no time at all"),
        ("health: {outlier: {ejectFor: 9ms}}", "health.outlier.ejectFor: it is too short (use at least 10ms)"),
        ("health: {active: {tcp: {}, timeout: 1ms}}", "health.active.timeout: it is too short (use at least 10ms)"),
        ("health: {active: {http: {}, tcp: {}}}", "health.active: a probe is exactly one of http, grpc and tcp"),
        ("health: {active: {http: {path: healthz}}}", "health.active.http.path: `healthz` is no path"),
        ("health: {active: {http: {expect: [99]}}}", "health.active.http.expect[0]: 99 is out of range"),
        ("health: {active: {http: {expect: []}}}", "health.active.http.expect: no answer would be a success"),
    ] {
        refused_at_its_place(spec, said);
    }
}

#[test]
fn bad_rules_for_requests_are_refused_at_their_place() {
    // Aim: the same of faults, limits, classes and protocols.
    for (spec, said) in [
        ("faults: [{percent: 1}]", "faults[0]: the fault does nothing"),
        ("faults: [{percent: 101, abort: {reset: {}}}]", "faults[0].percent: 101 is no percentage"),
        ("faults: [{percent: 0.00001, abort: {reset: {}}}]", "faults[0].percent: it is less than one in a million"),
        ("faults: [{abort: {httpStatus: 99}}]", "faults[0].abort.httpStatus: 99 is out of range (use 200 to 599)"),
        ("faults: [{abort: {httpStatus: 503, reset: {}}}]", "faults[0].abort: an abort is exactly one of"),
        ("faults: [{delay: {fixed: 1s, uniform: {min: 1s, max: 2s}}}]", "faults[0].delay: a delay is exactly one of fixed and uniform"),
        ("faults: [{delay: {uniform: {min: 2s, max: 1s}}}]", "faults[0].delay.uniform: min is longer than max"),
        ("faults: [{delay: {fixed: 2h}}]", "faults[0].delay.fixed: a delay lasts some time, at most 1h"),
        ("faults: [{abort: {reset: {}}, from: [{serviceAccount: a}]}]", "faults[0].from[0]: `namespace` is missing"),
        ("faults: [{abort: {reset: {}}, match: {methods: [FETCH]}}]", "faults[0].match.methods[0]: unknown value `FETCH`"),
        ("faults: [{abort: {reset: {}}, match: {paths: [{value: a}]}}]", "faults[0].match.paths[0].value: `a` is no path"),
        (
            "faults: [{abort: {reset: {}}, match: {headers: [{type: RegularExpression, name: a, value: '('}]}}]",
            "faults[0].match.headers[0].value: `(` is no regular expression",
        ),
        ("rateLimits: [{requests: 0, per: 1s}]", "rateLimits[0].requests: 0 is out of range"),
        ("rateLimits: [{requests: 1}]", "rateLimits[0]: `per` is missing"),
        ("rateLimits: [{requests: 1, per: 48h}]", "rateLimits[0].per: it is longer than a day (use at most 24h)"),
        ("rateLimits: [{requests: 1, per: 24h, burst: 1000000000}]", "rateLimits[0]: so large a burst takes centuries to come back"),
        ("rateLimits: [{requests: 1, per: 1s, key: [{}]}]", "rateLimits[0].key[0]: a part of a key is exactly one of"),
        ("priority: {header: x, classes: [a, a, b]}", "priority.classes[1]: a stands twice"),
        ("priority: {header: x, classes: [a]}", "priority.classes: one class alone ranks nobody"),
        ("priority: {header: x, classes: [a, b], default: c}", "priority.default: unknown value `c`"),
        ("priority: {header: x, classes: [a, b], shed: Random}", "priority.shed: unknown value `Random`"),
        ("upstreamProtocol: http2", "upstreamProtocol: unknown value `http2` (did you mean `Http2`?)"),
        ("timeout: {request: 1s}, limits: {requests: 1}", "timeout: unknown field `timeout` (did you mean `timeouts`?)"),
    ] {
        refused_at_its_place(spec, said);
    }
}

#[test]
fn what_cannot_be_read_never_widens() {
    // Aim: a fault for callers that do not read, or a limit by a key that does not, is no fault for everybody and no limit for all.
    for spec in ["faults: [{abort: {reset: {}}, from: [{namespace: 7}]}]", "rateLimits: [{requests: 1, per: 1s, key: [{header: ''}]}]"] {
        assert!(candidate(spec).object.is_none(), "{spec}");
    }
}
