//! Our own policy on routes, from resource to snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request};
use prost::{Message, Name};
use prost_types::Any;
use proto::mesh::{self, BackendPolicy, Filters, RoutePolicy};
use proto::names::POLICY;
use proto::xds::route::route_action::{ClusterSpecifier, MaxStreamDuration};
use proto::xds::route::{Route, RouteAction, RouteConfiguration, RouteMatch, route};

use crate::decide::{Decision, RequestHead, decide};
use crate::filter::tests::exchange;
use crate::filter::{FAULTS_MAX, Filter, LIMITS_MAX, Passage, Resume, Stage};
use crate::fixture::{self, exact, host, prefix, put, rule, table};
use crate::model::build::Parts;
use crate::model::{Action, Forward, RouteTable, Snapshot};

fn extension<M: Message + Name>(policy: &M) -> BTreeMap<String, Any> {
    BTreeMap::from([(POLICY.to_owned(), proto::xds::pack(policy))])
}

fn with(policy: &RoutePolicy, name: &str, wanted: RouteMatch, to: &[(&str, u32)]) -> Route {
    Route { typed_per_filter_config: extension(policy), ..rule(name, wanted, to) }
}

fn cors(origin: &str) -> mesh::Cors {
    mesh::Cors { allow_origins: vec![origin.to_owned()], ..mesh::Cors::default() }
}

fn limit(name: &str, requests: u32) -> mesh::RateLimit {
    let per = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    mesh::RateLimit { name: name.to_owned(), requests, per, ..mesh::RateLimit::default() }
}

fn fault() -> mesh::Fault {
    let abort = mesh::Abort { kind: Some(mesh::abort::Kind::HttpStatus(503)) };
    let delay = mesh::Delay { min: None, max: None };
    mesh::Fault { per_million: 1_000_000, delay: Some(delay), abort: Some(abort), ..mesh::Fault::default() }
}

fn redirect() -> mesh::Redirect {
    mesh::Redirect { status: 302, ..mesh::Redirect::default() }
}

fn everywhere(routes: Vec<Route>) -> RouteConfiguration {
    table("t", vec![host(&["*"], routes)])
}

fn live(parts: &mut Parts, raw: &RouteConfiguration, before: &Snapshot) -> Snapshot {
    put(parts, "t", raw).unwrap();
    parts.assemble(1, before)
}

fn forward(table: &RouteTable, place: usize) -> &Arc<Forward> {
    let Action::Forward(forward) = &table.hosts[0].rules[place].action else { unreachable!() };
    forward
}

fn refusal(raw: Route) -> String {
    put(&mut Parts::default(), "t", &everywhere(vec![raw])).unwrap_err().to_string()
}

#[test]
fn steps_have_one_order_whatever_they_were_written_in() {
    // Aim: cors, rate limits, delays, aborts, redirect; then rewrite and headers; the rule's gates first, the backend's changes first.
    let rewrite = |hostname: &str| Some(mesh::Rewrite { hostname: hostname.to_owned(), path: None });
    let policy = RoutePolicy {
        filters: Some(Filters { cors: Some(cors("*")), rewrite: rewrite("rule"), ..Filters::default() }),
        faults: vec![fault(), fault()],
        rate_limits: vec![limit("a", 1)],
        ..RoutePolicy::default()
    };
    let mut raw = with(&policy, "r", prefix("/"), &[("a", 1), ("b", 1)]);
    raw.request_headers_to_remove = vec!["x-a".into()];
    raw.response_headers_to_remove = vec!["x-b".into()];
    let Some(route::Action::Route(RouteAction { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(all)), .. })) = &mut raw.action
    else {
        unreachable!()
    };
    let own = Filters { redirect: Some(redirect()), ..Filters::default() };
    all.clusters[0].typed_per_filter_config = extension(&BackendPolicy { filters: Some(own), canary: None });
    let own = Filters { rewrite: rewrite("backend"), ..Filters::default() };
    all.clusters[1].typed_per_filter_config = extension(&BackendPolicy { filters: Some(own), canary: None });
    let snapshot = live(&mut Parts::default(), &everywhere(vec![raw]), &Snapshot::default());
    let forward = forward(&snapshot.routes["t"], 0);
    let gates = |place| forward.gates(place).map(Stage::name).collect::<Vec<_>>();
    assert_eq!(gates(Some(0)), ["cors", "rate_limit", "fault", "fault", "fault", "fault", "redirect"]);
    assert_eq!(gates(None), ["cors", "rate_limit", "fault", "fault", "fault", "fault"]);
    let waits = forward.gates(None).map(|stage| matches!(stage, Stage::Remote(_))).collect::<Vec<_>>();
    assert_eq!(waits, [false, false, true, true, false, false]);
    let changes: Vec<String> = forward.changes(Some(1)).map(Filter::story).collect();
    assert_eq!(changes, ["puts host backend", "puts host rule", "removes x-a", "removes x-b"]);
}

#[test]
fn a_request_waits_goes_on_and_is_answered_where_it_was() {
    // Aim: after a delay the stages before it do not run again, and the answer of a later one is the request's.
    let policy = RoutePolicy { faults: vec![fault()], rate_limits: vec![limit("once", 1)], ..RoutePolicy::default() };
    let snapshot = live(&mut Parts::default(), &everywhere(vec![with(&policy, "r", prefix("/"), &[("a", 1)])]), &Snapshot::default());
    let forward = forward(&snapshot.routes["t"], 0);
    let mut parts = Request::get("/").body(()).unwrap().into_parts().0;
    let Passage::Wait { next, .. } = forward.forth(Some(0), Resume::START, &mut exchange(&mut parts)) else { panic!() };
    let Passage::Aborted { reply, policy } = forward.forth(Some(0), next, &mut exchange(&mut parts)) else { panic!() };
    assert_eq!((reply.status.as_u16(), policy), (503, ""), "the fault's, not the limit's");
    let Passage::Answered(reply) = forward.forth(Some(0), Resume::START, &mut exchange(&mut parts)) else { panic!() };
    assert_eq!(reply.status, 429);
}

#[test]
fn what_says_the_same_is_one() {
    // Aim: policies, backends' steps and matches are shared by content between rules, hosts and pushes; other words make others.
    let policy = RoutePolicy { rate_limits: vec![limit("a", 1)], ..RoutePolicy::default() };
    let other = RoutePolicy { rate_limits: vec![limit("a", 2)], ..RoutePolicy::default() };
    let rules = vec![
        with(&policy, "r0", prefix("/a"), &[("a", 1)]),
        with(&policy, "r1", prefix("/a"), &[("b", 1)]),
        with(&other, "r2", prefix("/b"), &[("a", 1)]),
    ];
    let mut parts = Parts::default();
    let first = live(&mut parts, &everywhere(rules.clone()), &Snapshot::default());
    let table = &first.routes["t"];
    let policy = |place| &forward(table, place).policy;
    assert!(Arc::ptr_eq(policy(0), policy(1)) && !Arc::ptr_eq(policy(0), policy(2)));
    assert!(Arc::ptr_eq(&forward(table, 0).backends[0].steps, &forward(table, 2).backends[0].steps));
    let matches = |table: &RouteTable, place: usize| Arc::clone(&table.hosts[0].rules[place].matches);
    assert!(Arc::ptr_eq(&matches(table, 0), &matches(table, 1)) && !Arc::ptr_eq(&matches(table, 0), &matches(table, 2)));
    let mut changed = rules;
    changed[1].typed_per_filter_config.clear();
    let second = live(&mut parts, &everywhere(changed), &first);
    let after = &second.routes["t"];
    assert!(
        Arc::ptr_eq(&table.hosts[0].rules[0], &after.hosts[0].rules[0]) && Arc::ptr_eq(&table.hosts[0].rules[2], &after.hosts[0].rules[2])
    );
    assert!(Arc::ptr_eq(&matches(table, 1), &matches(after, 1)), "the match says the same, the rule does not");
    assert!(std::ptr::eq(table.hosts[0].index(), after.hosts[0].index()), "and so does what finds it");
}

#[test]
fn a_push_refills_no_bucket() {
    // Aim: a limit of the same name goes on where it was, also with another rate; of another name, or after its end, it begins anew.
    let mut parts = Parts::default();
    let through = |snapshot: &Snapshot| {
        let mut head = Request::get("/").body(()).unwrap().into_parts().0;
        let forward = forward(&snapshot.routes["t"], 0);
        (0..100).filter(|_| matches!(forward.forth(None, Resume::START, &mut exchange(&mut head)), Passage::Through)).count()
    };
    let with = |name: &str, requests| {
        let policy = RoutePolicy { rate_limits: vec![limit(name, requests)], ..RoutePolicy::default() };
        everywhere(vec![with(&policy, "r", prefix("/"), &[("a", 1)])])
    };
    let first = live(&mut parts, &with("a", 10), &Snapshot::default());
    assert_eq!(through(&first), 10);
    let second = live(&mut parts, &with("a", 20), &first);
    assert_eq!(through(&second), 0);
    let third = live(&mut parts, &with("b", 20), &second);
    assert_eq!(through(&third), 20);
    drop((first, second));
    assert_eq!(through(&live(&mut parts, &with("a", 10), &third)), 10);
}

#[test]
fn mirrors_lead_to_clusters_and_fire_by_chance() {
    // Aim: of rule and backend, each by its own share; a reference that leads nowhere copies nothing and hurts nobody.
    let mirror = |cluster: &str, per_million| mesh::Mirror { cluster: cluster.to_owned(), per_million, canary: None };
    let mirrors = vec![mirror("b", 1_000_000), mirror("c", 500_000), mirror("gone", 1_000_000), mirror("bad_backend", 1_000_000)];
    let policy = RoutePolicy { filters: Some(Filters { mirrors, ..Filters::default() }), ..RoutePolicy::default() };
    let mut raw = with(&policy, "r", prefix("/"), &[("a", 1), ("b", 0)]);
    let Some(route::Action::Route(RouteAction { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(all)), .. })) = &mut raw.action
    else {
        unreachable!()
    };
    let own = Filters { mirrors: vec![mirror("c", 500_000)], ..Filters::default() };
    all.clusters[0].typed_per_filter_config = extension(&BackendPolicy { filters: Some(own), canary: None });
    let mut parts = Parts::default();
    for name in ["a", "b", "c"] {
        put(&mut parts, name, &fixture::cluster(name)).unwrap();
    }
    let snapshot = live(&mut parts, &everywhere(vec![raw]), &Snapshot::default());
    let forward = forward(&snapshot.routes["t"], 0);
    assert_eq!((forward.backends.len(), forward.weight_total), (2, 1), "a backend of weight 0 is kept");
    let fired = |place| {
        let mut shares: BTreeMap<String, u32> = BTreeMap::new();
        for n in 0..1000_u64 {
            let all = forward.mirrors_for(place, n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            all.for_each(|(cluster, _)| *shares.entry(cluster.name.to_string()).or_default() += 1);
        }
        shares
    };
    let (with, without) = (fired(Some(0)), fired(None));
    assert_eq!((with.len(), without["b"]), (2, 1000));
    assert!(without["c"].abs_diff(500) < 60 && with["c"].abs_diff(1000) < 60, "{with:?} {without:?}");
}

#[test]
fn a_preflight_meets_the_rule_of_the_request_it_asks_for() {
    // Aim: by the requested method, only rules that answer preflights, in order of precedence; answered whatever the backend is.
    let policy =
        |origin: &str| RoutePolicy { filters: Some(Filters { cors: Some(cors(origin)), ..Filters::default() }), ..RoutePolicy::default() };
    let by = |method: &str| RouteMatch { headers: vec![fixture::header(":method", method)], ..exact("/x") };
    let rules = vec![
        rule("plain", by("PUT"), &[("a", 1)]),
        with(&policy("https://put.example"), "put", by("PUT"), &[("bad_backend", 1)]),
        with(&policy("https://get.example"), "get", by("GET"), &[]),
        rule("options", by("OPTIONS"), &[("a", 1)]),
        rule("any", prefix("/"), &[("a", 1)]),
    ];
    let snapshot = live(&mut Parts::default(), &everywhere(rules), &Snapshot::default());
    let asked = |asked: Option<&'static str>, origin: bool| {
        let mut request = Request::options("/x");
        if let Some(asked) = asked {
            request = request.header("access-control-request-method", asked);
        }
        if origin {
            request = request.header("origin", "https://put.example");
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let plan = match decide(&snapshot.routes["t"], &RequestHead::new(&parts.method, &parts.uri, &parts.headers), 0) {
            Decision::Forward(plan) => plan,
            Decision::Reply { .. } => unreachable!(),
        };
        let passage = plan.forward.forth(plan.place, Resume::START, &mut exchange(&mut parts));
        let status = if let Passage::Answered(reply) = passage { reply.status.as_u16() } else { 0 };
        (plan.rule.source.rule.to_string(), status)
    };
    assert_eq!(asked(Some("PUT"), true), ("put".to_owned(), 204));
    assert_eq!(asked(Some("GET"), true), ("get".to_owned(), 204));
    for other in [asked(Some("POST"), true), asked(Some("PUT"), false), asked(None, true), asked(Some("b d"), true)] {
        assert_eq!(other, ("options".to_owned(), 0));
    }
}

#[test]
fn answers_get_what_their_requests_asked_for() {
    // Aim: allowed origins and made cookies find their way to the answer, and a plain request keeps nothing.
    let cookie = mesh::HashCookie { name: "sid".into(), ttl: Some(prost_types::Duration { seconds: 60, nanos: 0 }), path: String::new() };
    let policy = RoutePolicy {
        filters: Some(Filters { cors: Some(cors("https://a.example")), ..Filters::default() }),
        hash: vec![mesh::HashKey { kind: Some(mesh::hash_key::Kind::Cookie(cookie)) }],
        ..RoutePolicy::default()
    };
    let rules = vec![with(&policy, "r", exact("/x"), &[("a", 1)]), rule("plain", prefix("/"), &[("a", 1)])];
    let snapshot = live(&mut Parts::default(), &everywhere(rules), &Snapshot::default());
    let mut parts = Request::get("/x").header("origin", "https://a.example").body(()).unwrap().into_parts().0;
    let answer = |place: usize, parts: &mut http::request::Parts| {
        let forward = forward(&snapshot.routes["t"], place);
        let answered = forward.answered(&exchange(parts));
        let mut headers = HeaderMap::from_iter([(http::header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"))]);
        forward.back(Some(0), &answered, &mut headers);
        headers
    };
    let headers = answer(0, &mut parts);
    assert_eq!(headers["access-control-allow-origin"], "https://a.example");
    assert!(headers["set-cookie"].to_str().unwrap().starts_with("sid="));
    assert_eq!(answer(1, &mut parts).len(), 1);
    assert_eq!(parts.method, Method::GET);
}

#[test]
fn the_meshs_own_answers_say_who_may_see_them() {
    // Aim: as an upstream's, and nothing else is done to them; a preflight's answer stays as it is, and a rule without CORS says nothing.
    let policy =
        RoutePolicy { filters: Some(Filters { cors: Some(cors("https://a.example")), ..Filters::default() }), ..RoutePolicy::default() };
    let mut shared = with(&policy, "r", exact("/x"), &[("a", 1)]);
    shared.response_headers_to_remove = vec!["x-meshwright-reason".into()];
    let rules = vec![shared, rule("plain", prefix("/"), &[("a", 1)])];
    let snapshot = live(&mut Parts::default(), &everywhere(rules), &Snapshot::default());
    let told = |place: usize, method: &str, origin: &str| {
        let request = Request::builder().method(method).header("origin", origin).header("access-control-request-method", "PUT");
        let forward = forward(&snapshot.routes["t"], place);
        let answered = forward.answered(&exchange(&mut request.body(()).unwrap().into_parts().0));
        let mut headers = HeaderMap::from_iter([(http::HeaderName::from_static("x-meshwright-reason"), HeaderValue::from_static("x"))]);
        forward.show(Some(0), &answered, &mut headers);
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    let reason = "x-meshwright-reason";
    assert_eq!(told(0, "GET", "https://a.example"), ["access-control-allow-origin", "vary", reason]);
    assert_eq!(told(0, "GET", "https://b.example"), ["vary", reason]);
    assert_eq!(
        (told(0, "OPTIONS", "https://a.example"), told(1, "GET", "https://a.example")),
        (vec![reason.to_owned()], vec![reason.to_owned()])
    );
}

#[test]
fn timeouts_of_both_kinds_arrive() {
    // Aim: Envoy's own fields and ours stand in one policy; zero is none.
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let of = |stream, attempt| {
        let policy = RoutePolicy { attempt_timeout: attempt, ..RoutePolicy::default() };
        let mut raw = with(&policy, "r", prefix("/"), &[("a", 1)]);
        let Some(route::Action::Route(action)) = &mut raw.action else { unreachable!() };
        action.max_stream_duration = Some(MaxStreamDuration { max_stream_duration: stream, grpc_timeout_header_max: None });
        let snapshot = live(&mut Parts::default(), &everywhere(vec![raw]), &Snapshot::default());
        let policy = Arc::clone(&forward(&snapshot.routes["t"], 0).policy);
        (policy.stream_timeout.map(|time| time.as_secs()), policy.attempt_timeout.map(|time| time.as_secs()))
    };
    assert_eq!(of(seconds(7), seconds(3)), (Some(7), Some(3)));
    assert_eq!(of(seconds(0), seconds(0)), (None, None));
    assert_eq!(of(None, None), (None, None));
}

#[test]
fn what_is_not_carried_out_is_refused_by_name() {
    // Aim: other filters' settings, policy on fixed answers, what excludes each other, and every bound.
    let plain = |policy: &RoutePolicy| with(policy, "r", prefix("/"), &[("a", 1)]);
    let other = Route {
        typed_per_filter_config: BTreeMap::from([("envoy.filters.http.lua".to_owned(), proto::xds::pack(&RoutePolicy::default()))]),
        ..rule("r", prefix("/"), &[("a", 1)])
    };
    let wrong = Route { typed_per_filter_config: extension(&BackendPolicy::default()), ..rule("r", prefix("/"), &[("a", 1)]) };
    let fixed = Route {
        action: Some(route::Action::DirectResponse(proto::xds::route::DirectResponseAction { status: 500, body: None })),
        ..plain(&RoutePolicy::default())
    };
    let both =
        Filters { redirect: Some(redirect()), rewrite: Some(mesh::Rewrite { hostname: "a".into(), path: None }), ..Filters::default() };
    let mirror = mesh::Mirror { cluster: "a".into(), per_million: 1, canary: None };
    let mirrors = |mirrors| RoutePolicy { filters: Some(Filters { mirrors, ..Filters::default() }), ..RoutePolicy::default() };
    let limits = (0..=LIMITS_MAX).map(|n| limit(&n.to_string(), 1)).collect();
    let cases = [
        (other, "typed_per_filter_config[\"envoy.filters.http.lua\"]"),
        (wrong, "typed_per_filter_config[\"meshwright.dev/policy\"]"),
        (fixed, "typed_per_filter_config"),
        (plain(&RoutePolicy { filters: Some(both), ..RoutePolicy::default() }), "filters.rewrite"),
        (plain(&RoutePolicy { rate_limits: limits, ..RoutePolicy::default() }), "rate_limits: holds more than"),
        (plain(&RoutePolicy { rate_limits: vec![limit("", 1)], ..RoutePolicy::default() }), "rate_limits[0].name"),
        (plain(&RoutePolicy { faults: vec![fault(); FAULTS_MAX + 1], ..RoutePolicy::default() }), "faults: holds more than"),
        (plain(&mirrors(vec![mirror.clone(); 17])), "filters.mirrors: holds more than"),
        (plain(&mirrors(vec![mesh::Mirror { per_million: 1_000_001, ..mirror.clone() }])), "filters.mirrors[0].per_million"),
        (plain(&mirrors(vec![mesh::Mirror { cluster: String::new(), ..mirror }])), "filters.mirrors[0].cluster"),
    ];
    for (raw, part) in cases {
        let text = refusal(raw);
        assert!(text.contains("virtual_hosts[0].routes[0].") && text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn a_table_has_a_bound() {
    // Aim: rules and domains together, and the size of one compiled expression.
    let many = everywhere(vec![rule("r", prefix("/"), &[("a", 1)]); 65_536]);
    assert!(put(&mut Parts::default(), "t", &many).unwrap_err().to_string().contains("more than 65536"));
    let heavy = rule("r", fixture::path_regex("/(a{100}){100}(b{100}){100}"), &[("a", 1)]);
    assert!(refusal(heavy).contains("match.safe_regex.regex"));
}
