use proto::mesh::RoutePolicy;
use proto::xds::route::RouteAction;

use super::*;
use crate::source::{FileChange, Folder};
use crate::translate::{protocol, statuses, wire};
use crate::world::traffic::Caller;
use crate::world::{Allocations, World, WorldSettings};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: same, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {addresses: [10.1.0.1], ports: [{port: 8080}, {port: 8081}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{name: one, backendRefs: [{name: web, port: 80}]}]}
";

/// One policy: its name, its age (higher: younger), its target (nothing: its namespace) and its spec.
type Written<'a> = (&'a str, u32, &'a str, &'a str);

fn world(policies: &[Written<'_>]) -> World {
    let mut text = SHOP.to_owned();
    for (name, age, target, spec) in policies {
        let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
        let target = match *target {
            "" => String::new(),
            selector if selector.starts_with("selector") => format!("{selector}, "),
            target => format!("targetRefs: [{{{target}}}], "),
        };
        text += &format!(
            "---\napiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-01T00:00:{age:02}Z'}}\nspec: {{{target}{spec}}}\n"
        );
    }
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
    world
}

const WEB: &str = "group: '', kind: Service, name: web";
const PORT: &str = "group: '', kind: Service, name: web, sectionName: http";
const ROUTE: &str = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: route";
const RULE: &str = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: route, sectionName: one";

fn backend(port: u16) -> Backend {
    Backend { service: ("shop".to_owned(), "web".to_owned()), port }
}

fn caller(namespace: &str, account: &str) -> Caller {
    Caller { namespace: namespace.to_owned(), service_account: Some(account.to_owned()) }
}

/// What the one rule of the route ends up with, where the route says `action` and `policy` itself.
fn filled(world: &World, caller: &Caller, mut action: RouteAction, mut policy: RoutePolicy) -> (RouteAction, RoutePolicy) {
    let index = world.index();
    let (parent, route) = (backend(80), index.routes[0].clone());
    let place = RulePlace { caller, route: Some((&route, Some("one"))), listener: None, parent: Some(&parent), backend: Some(&parent) };
    fill(index, place, &mut action, &mut policy);
    (action, policy)
}

fn seconds(duration: Option<prost_types::Duration>) -> i64 {
    duration.unwrap_or_default().seconds
}

#[test]
fn the_narrowest_place_wins_field_by_field() {
    // Aim: rule before route before port before Service before namespace before mesh, each for the fields that it says and no other.
    let levels: [(&str, &str); 6] =
        [("meshwright-system/mesh", ""), ("namespace", ""), ("service", WEB), ("port", PORT), ("route", ROUTE), ("rule", RULE)];
    for widest in 0..levels.len() {
        let specs: Vec<String> = (0..=widest)
            .map(|level| {
                // Each level says the whole-request timeout, and the two widest say one field more, which nobody overrides.
                let more = match level {
                    0 => ", stream: 100s",
                    1 => ", streamIdle: 50s",
                    _ => "",
                };
                format!("timeouts: {{request: {}s{more}}}", level + 1)
            })
            .collect();
        let policies: Vec<Written<'_>> =
            specs.iter().enumerate().map(|(level, spec)| (levels[level].0, 0, levels[level].1, spec.as_str())).collect();
        let world = world(&policies);
        let (action, _) = filled(&world, &caller("shop", "default"), RouteAction::default(), RoutePolicy::default());
        assert_eq!(seconds(action.timeout), i64::try_from(widest).unwrap() + 1, "{}", levels[widest].0);
        assert_eq!(seconds(action.max_stream_duration.unwrap().max_stream_duration), 100);
        assert_eq!(seconds(action.idle_timeout), if widest >= 1 { 50 } else { 0 });
        // Another port has nothing of the rule, the route and the first port.
        let other = of_service(world.index(), &backend(81));
        assert_eq!(other.request.unwrap().as_secs(), u64::try_from(widest.min(2)).unwrap() + 1);
    }
}

#[test]
fn at_one_place_the_older_wins_what_both_say() {
    // Aim: same field, same place: the older holds and the younger is told, by field; different fields hold side by side.
    for (one, other, request, attempts, reason) in [
        ("timeouts: {request: 1s}", "timeouts: {request: 2s}", 1, 0, "TrafficPolicy shop/b-old is older and wins in timeouts.request"),
        ("timeouts: {request: 1s}", "retry: {attempts: 2}", 1, 2, ""),
        (
            "timeouts: {request: 1s}",
            "timeouts: {request: 2s}, retry: {attempts: 3}",
            1,
            3,
            "TrafficPolicy shop/b-old is older and wins in timeouts.request; what else this one says holds",
        ),
        ("faults: []", "faults: [{abort: {reset: {}}}]", 0, 0, "TrafficPolicy shop/b-old is older and wins in faults"),
    ] {
        for target in ["", WEB, PORT, ROUTE, RULE] {
            let world = world(&[("b-old", 1, target, one), ("a-young", 2, target, other)]);
            let (action, policy) = filled(&world, &caller("shop", "default"), RouteAction::default(), RoutePolicy::default());
            assert_eq!((seconds(action.timeout), policy.retry.map_or(0, |retry| retry.attempts)), (request, attempts), "{target} {other}");
            assert!(policy.faults.is_empty());
            let statuses = statuses(&world);
            let accepted = |name: &str| {
                let condition = &statuses[&ObjectKey::new(Kind::TrafficPolicy, "shop", name)].ancestors[0].conditions[0];
                (condition.status, condition.reason.clone(), condition.message.clone())
            };
            assert_eq!(accepted("b-old").0, "True");
            let wanted = if reason.is_empty() { ("True", "Accepted") } else { ("False", "Conflicted") };
            assert_eq!(accepted("a-young"), (wanted.0, wanted.1.to_owned(), reason.to_owned()), "{target} {other}");
        }
    }
}

#[test]
fn policies_of_different_places_do_not_conflict() {
    // Aim: overriding is no conflict, whatever the ages.
    let world = world(&[
        ("namespace", 1, "", "timeouts: {request: 1s}"),
        ("service", 2, WEB, "timeouts: {request: 2s}"),
        ("port", 3, PORT, "timeouts: {request: 3s}"),
        ("selected", 4, "selector: {matchLabels: {app: web}}", "rateLimits: [{requests: 1, per: 1s}]"),
        ("other", 5, "selector: {matchLabels: {app: other}}", "rateLimits: [{requests: 1, per: 1s}]"),
        ("too", 6, "selector: {matchLabels: {app: web}}", "rateLimits: [{requests: 2, per: 1s}]"),
    ]);
    for (key, status) in statuses(&world).iter().filter(|(key, _)| key.kind == Kind::TrafficPolicy) {
        let condition = &status.ancestors[0].conditions[0];
        // Two selectors that meet at a workload are at one place.
        assert_eq!(condition.status, if key.name == "too" { "False" } else { "True" }, "{key}: {}", condition.message);
    }
}

#[test]
fn a_routes_own_word_is_kept() {
    // Aim: timeouts, retry and session of the route itself hold; a policy fills what is absent; `0s` of a route is none.
    let policy = "timeouts: {request: 9s, backendRequest: 8s}, retry: {attempts: 5, bodyBufferBytes: 7}, sessionPersistence: {}";
    let world = world(&[("namespace", 0, "", policy)]);
    let own = RoutePolicy {
        attempt_timeout: Some(wire::seconds(2)),
        retry: Some(proto::mesh::Retry { attempts: 1, ..Default::default() }),
        session: Some(proto::mesh::Session { name: "mine".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let action = RouteAction { timeout: Some(wire::seconds(3)), ..RouteAction::default() };
    let audience = caller("shop", "default");
    let (action, kept) = filled(&world, &audience, action, own);
    assert_eq!((seconds(action.timeout), seconds(kept.attempt_timeout)), (3, 2));
    let retry = kept.retry.unwrap();
    assert_eq!((retry.attempts, retry.body_buffer_bytes, kept.session.unwrap().name.as_str()), (1, 7, "mine"));
    let none = RoutePolicy { attempt_timeout: Some(wire::seconds(0)), ..Default::default() };
    let lifted = RouteAction { timeout: Some(wire::seconds(0)), ..RouteAction::default() };
    let (action, kept) = filled(&world, &audience, lifted, none);
    assert_eq!((action.timeout, kept.attempt_timeout), (Some(wire::seconds(0)), None));
    let (action, given) = filled(&world, &audience, RouteAction::default(), RoutePolicy::default());
    assert_eq!((seconds(action.timeout), seconds(given.attempt_timeout)), (9, 8));
    assert_eq!((given.retry.unwrap().attempts, given.session.unwrap().name.as_str()), (5, "mw-session"));
}

#[test]
fn a_policy_bounds_a_routes_own_retry() {
    // Aim: what is tried again and how often is the route's word; waits, the body and a try's time are the policy's where it is silent.
    let own = |wait: Option<i64>| RoutePolicy {
        retry: Some(proto::mesh::Retry { attempts: 1, backoff_base: wait.map(wire::seconds), ..Default::default() }),
        ..Default::default()
    };
    for (spec, wait, base, longest, body, tried) in [
        ("timeouts: {request: 9s}", None, 25, 250, 65_536, 0),
        ("timeouts: {request: 9s}", Some(1), 1_000, 10_000, 65_536, 0),
        ("retry: {attempts: 5, backoff: {base: 2s}}", None, 2_000, 20_000, 65_536, 0),
        ("retry: {attempts: 5, backoff: {base: 2s, max: 3s}}", Some(1), 1_000, 3_000, 65_536, 0),
        ("retry: {attempts: 5, backoff: {max: 500ms}}", Some(1), 1_000, 1_000, 65_536, 0),
        ("retry: {attempts: 0, on: [], bodyBufferBytes: 0}", None, 25, 250, 0, 0),
        ("retry: {perTryTimeout: 2s}", None, 25, 250, 65_536, 2),
        ("retry: {backoff: {max: 10ms}}", None, 10, 10, 65_536, 0),
        ("retry: {backoff: {base: 2s}}", Some(0), 0, 0, 65_536, 0),
    ] {
        let world = world(&[("namespace", 0, "", spec)]);
        let (_, policy) = filled(&world, &caller("shop", "default"), RouteAction::default(), own(wait));
        let millis = |wait: Option<prost_types::Duration>| wait.map(|wait| wait.seconds * 1000 + i64::from(wait.nanos / 1_000_000));
        let retry = policy.retry.unwrap();
        assert_eq!((retry.attempts, retry.statuses, retry.body_buffer_bytes), (1, vec![], body), "{spec}");
        assert_eq!((millis(retry.backoff_base), millis(retry.backoff_max)), (Some(base), Some(longest)), "{spec}");
        assert_eq!(seconds(policy.attempt_timeout), tried, "{spec}");
    }
    // Without any policy it is as whole.
    let retry = filled(&world(&[]), &caller("shop", "default"), RouteAction::default(), own(None)).1.retry.unwrap();
    assert_eq!((retry.backoff_base.unwrap().nanos, retry.backoff_max.unwrap().nanos), (25_000_000, 250_000_000));
    assert_eq!(retry.body_buffer_bytes, 65_536);
}

#[test]
fn a_retry_says_everything() {
    // Aim: what a policy leaves out of `retry` is as the guide says, and an attempt's timeout is the shorter of the two.
    let retry = |spec: &str| {
        let world = world(&[("namespace", 0, "", spec)]);
        filled(&world, &caller("shop", "default"), RouteAction::default(), RoutePolicy::default()).1
    };
    let policy = retry("retry: {attempts: 1}");
    let all = policy.retry.unwrap();
    assert!(all.connect_failure && all.reset && all.refused_stream && !all.attempt_timeout);
    assert_eq!((all.statuses, all.grpc_statuses, all.body_buffer_bytes), (vec![502, 503, 504], vec![14], 65_536));
    assert_eq!((all.backoff_base.unwrap().nanos, all.backoff_max.unwrap().nanos), (25_000_000, 250_000_000));
    let policy =
        retry("retry: {attempts: 1, on: [RetriableStatus], statusCodes: [500], perTryTimeout: 2s}, timeouts: {backendRequest: 1s}");
    let some = policy.retry.unwrap();
    assert!(!some.connect_failure && !some.reset && some.attempt_timeout && some.grpc_statuses.is_empty());
    assert_eq!((some.statuses, seconds(policy.attempt_timeout)), (vec![500], 1));
    for spec in ["retry: {attempts: 0, perTryTimeout: 2s}", "retry: {perTryTimeout: 2s}", "retry: {budget: {percent: 1}}"] {
        assert_eq!(retry(spec), RoutePolicy::default(), "{spec}");
    }
    assert_eq!(retry("retry: {attempts: 1, backoff: {base: 1s}}").retry.unwrap().backoff_max, Some(wire::seconds(1)));
}

#[test]
fn faults_are_for_the_callers_they_name() {
    // Aim: by namespace, by namespace and account, or for everybody; nobody else is sent the fault at all.
    let faults = "faults: [{from: [{namespace: a}], abort: {httpStatus: 500}}, {from: [{namespace: b, serviceAccount: x}], \
                  abort: {httpStatus: 501}}, {abort: {httpStatus: 502}}]";
    let world = world(&[("faulty", 0, WEB, faults)]);
    for (namespace, account, wanted) in
        [("a", "x", vec![500, 502]), ("b", "x", vec![501, 502]), ("b", "y", vec![502]), ("c", "x", vec![502])]
    {
        let (_, policy) = filled(&world, &caller(namespace, account), RouteAction::default(), RoutePolicy::default());
        let status = |fault: &proto::mesh::Fault| match fault.abort.as_ref().unwrap().kind {
            Some(proto::mesh::abort::Kind::HttpStatus(status)) => status,
            _ => 0,
        };
        assert_eq!(policy.faults.iter().map(status).collect::<Vec<_>>(), wanted, "{namespace}/{account}");
    }
}

#[test]
fn rate_limits_stand_where_they_are_kept() {
    // Aim: those of a route with its callers, those of a Service at its servers, each under a name of its own; a port that two Services
    // lead to keeps both, a selector's replace them, and undeclared ports have the namespace's.
    let limit = |requests: u32| format!("rateLimits: [{{requests: {requests}, per: 1s}}]");
    let (one, two, three, four, five) = (limit(1), limit(2), limit(3), limit(4), limit(5));
    let same = "group: '', kind: Service, name: same";
    let mut policies = vec![
        ("namespace", 0, "", one.as_str()),
        ("web", 0, PORT, two.as_str()),
        ("same", 0, same, three.as_str()),
        ("route", 0, ROUTE, four.as_str()),
    ];
    let names = |policy: &RoutePolicy| policy.rate_limits.iter().map(|limit| limit.name.clone()).collect::<Vec<_>>();
    let world_of = world(&policies);
    let (_, policy) = filled(&world_of, &caller("shop", "default"), RouteAction::default(), RoutePolicy::default());
    assert_eq!(names(&policy), ["TrafficPolicy/shop/route/0@HTTPRoute/shop/route"]);
    let inbound = |world: &World, port: Option<u16>| {
        let instance = world.index().instances.values().next().unwrap().clone();
        let index = world.index();
        let fronts = port.into_iter().flat_map(|port| protocol::in_front(index, &instance, port));
        names(&of_inbound(index, &instance, port, fronts).policy)
    };
    assert_eq!(inbound(&world_of, Some(8080)), ["TrafficPolicy/shop/same/0:8080", "TrafficPolicy/shop/web/0:8080"]);
    assert_eq!(inbound(&world_of, Some(8081)), ["TrafficPolicy/shop/namespace/0:8081"]);
    assert_eq!(inbound(&world_of, None), ["TrafficPolicy/shop/namespace/0:*"]);
    policies.push(("selected", 0, "selector: {matchLabels: {app: web}}", &five));
    let world_of = world(&policies);
    assert_eq!(inbound(&world_of, Some(8080)), ["TrafficPolicy/shop/selected/0:8080"]);
}

#[test]
fn a_cluster_says_all_its_defaults() {
    // Aim: nothing is left for a proxy to guess; an address of an instance's own is one endpoint, which nothing ejects.
    let world_of = world(&[]);
    let service = of_cluster(world_of.index(), Some(&backend(80)), false);
    let outlier = service.policy.outlier.unwrap();
    assert_eq!((outlier.consecutive_errors, outlier.consecutive_connect_failures, outlier.max_ejected_percent), (5, 3, 50.0));
    assert_eq!((seconds(outlier.interval), seconds(outlier.eject_for)), (10, 30));
    let budget = service.policy.budget.unwrap();
    assert_eq!((budget.percent, budget.min_per_second, service.connect), (20.0, 10, CONNECT));
    assert_eq!((service.policy.limits, service.policy.check, service.protocol), (None, None, None));
    let instance = of_cluster(world_of.index(), None, false);
    assert_eq!((instance.policy.outlier, instance.policy.budget), (None, Some(budget)));
    // Off is off.
    let off =
        world(&[("off", 0, WEB, "health: {outlier: {consecutiveErrors: 0, consecutiveConnectFailures: 0}}, timeouts: {connect: 250ms}")]);
    let service = of_cluster(off.index(), Some(&backend(80)), true);
    assert_eq!((service.policy.outlier, service.policy.sessions, service.connect), (None, true, Duration::from_millis(250)));
}

#[test]
fn a_hash_travels_where_something_is_hashed() {
    // Aim: cookies are not made for algorithms that never look at them.
    let hash = "hash: [{cookie: {name: sid, ttl: 1h}}]";
    for (algorithm, sent) in [("LeastRequest", 0), ("RoundRobin", 0), ("RingHash", 1), ("Maglev", 1)] {
        let world = world(&[("web", 0, WEB, &format!("loadBalancer: {{algorithm: {algorithm}, {hash}}}"))]);
        let (_, policy) = filled(&world, &caller("shop", "default"), RouteAction::default(), RoutePolicy::default());
        assert_eq!(policy.hash.len(), sent, "{algorithm}");
    }
}

#[test]
fn what_has_no_effect_is_told() {
    // Aim: fields about requests of a port that carries bytes, of a Service that another one's route leads to, and parts of a retry that
    // nothing asks for; and silence where a route's own retry uses them.
    const TCP: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: web}, ports: [{name: tcp, port: 5, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: same}], rules: [{retry: {attempts: 1}, backendRefs: [{name: two, port: 80}]}]}
";
    let told = |target: &str, spec: &str| -> Vec<String> {
        let policy = format!(
            "---\napiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, name: {target}}}], {spec}}}\n"
        );
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(format!("{SHOP}{TCP}{policy}"))) };
        world.apply(Folder::default().update(vec![change], 0));
        let problems = crate::translate::audit(&world).into_iter().filter(|problem| problem.name == "p");
        problems.map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
    };
    for (target, spec, wanted) in [
        ("db", "timeouts: {request: 1s}, limits: {requests: 5}", "spec.timeouts.request: Service shop/db carries bytes there"),
        ("db", "upstreamProtocol: Http2", "spec.upstreamProtocol: Service shop/db carries bytes"),
        ("db", "timeouts: {connect: 1s, idle: 1h}, limits: {connections: 5}", ""),
        ("two", "timeouts: {request: 1s}", "spec.timeouts.request: requests that HTTPRoute shop/split leads to Service shop/two go by"),
        ("two", "timeouts: {connect: 1s}", ""),
        ("web", "timeouts: {request: 1s}", ""),
        ("web", "retry: {bodyBufferBytes: 5, backoff: {base: 1s}}", "spec.retry: no effect without `attempts`: backoff, bodyBufferBytes"),
        ("web", "retry: {attempts: 1, on: []}", "spec.retry.on: it lists no reason"),
        ("same", "retry: {perTryTimeout: 1s, backoff: {base: 1s}}", ""),
        ("same", "retry: {perTryTimeout: 1s, statusCodes: [503]}", "spec.retry: no effect without `attempts`: statusCodes"),
    ] {
        let found = told(target, spec);
        match wanted {
            "" => assert!(found.is_empty(), "{target} {spec}: {found:?}"),
            wanted => assert!(found.len() == 1 && found[0].starts_with(wanted), "{target} {spec}: {found:?}"),
        }
    }
}

/// A world with Telemetries: each with its age (higher: younger), its target and its spec.
fn telling(objects: &[(&str, u32, &str, &str)]) -> World {
    let mut text = SHOP.to_owned();
    for (name, age, target, spec) in objects {
        let target = if target.is_empty() { String::new() } else { format!("targetRefs: [{{{target}}}], ") };
        text += &format!(
            "---\napiVersion: meshwright.dev/v1alpha1\nkind: Telemetry\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-01T00:00:{age:02}Z'}}\nspec: {{{target}{spec}}}\n"
        );
    }
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
    world
}

#[test]
fn what_is_told_of_calls_is_the_narrowest_word() {
    // Aim: rule before route before port before Service, at one place the older, field by field; what is said of workloads is no rule's.
    let told = |objects: &[(&str, u32, &str, &str)]| {
        let world = telling(objects);
        assert_eq!(world.problems(), [], "{objects:?}");
        filled(&world, &caller("shop", "default"), RouteAction::default(), RoutePolicy::default()).1.telemetry
    };
    assert_eq!(told(&[("all", 0, "", "tracing: {samplePercent: 3, keepErrors: true}")]), None);
    let all = told(&[
        ("service", 0, WEB, "tracing: {samplePercent: 1, keepErrors: true, keepSlowerThan: 3s}, accessLog: {sampleSuccessPercent: 7}"),
        ("port", 0, PORT, "tracing: {samplePercent: 2, keepErrors: false}, accessLog: {filter: 'true'}"),
        ("route", 0, ROUTE, "tracing: {samplePercent: 3}, accessLog: {enabled: false}"),
        ("young", 2, RULE, "tracing: {samplePercent: 4, keepSlowerThan: 0s}"),
        ("old", 1, RULE, "tracing: {samplePercent: 5}"),
    ]);
    let wanted = proto::mesh::RouteTelemetry {
        sample_percent: Some(5.0),
        keep_errors: Some(false),
        keep_slower: Some(prost_types::Duration::default()),
        log_enabled: Some(false),
        log_filter: Some("true".to_owned()),
        log_sample_success_percent: Some(7.0),
    };
    assert_eq!(all, Some(wanted));
}

#[test]
fn what_belongs_to_a_proxy_is_not_said_of_calls() {
    // Aim: each field that one exporter or one log has is refused by name; a target that is not there, and an older object, are told.
    let told = |objects: &[(&str, u32, &str, &str)]| -> Vec<String> {
        let world = telling(objects);
        let audited = crate::translate::audit(&world);
        let all = world.problems().into_iter().chain(audited).filter(|problem| problem.name == "p");
        let all: std::collections::BTreeSet<String> = all.map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
        all.into_iter().collect()
    };
    for (target, spec, wanted) in [
        (ROUTE, "tracing: {otlp: {endpoint: 'http://h:1'}}", "spec.tracing.otlp: `tracing.otlp` belongs to a whole proxy"),
        (ROUTE, "tracing: {attributes: {a: b}}", "spec.tracing.attributes: `tracing.attributes` belongs"),
        (WEB, "tracing: {inferLinks: true}", "spec.tracing.inferLinks: `tracing.inferLinks` belongs"),
        (WEB, "accessLog: {format: Json}", "spec.accessLog.format: `accessLog.format` belongs"),
        (WEB, "metrics: {seriesMax: 5}", "spec.metrics: `metrics` belongs to a whole proxy, and not to Service web"),
        ("kind: Service, name: nobody", "tracing: {samplePercent: 1}", "spec.targetRefs: there is no Service shop/nobody"),
        (
            "kind: HTTPRoute, name: route, sectionName: two",
            "tracing: {samplePercent: 1}",
            "spec.targetRefs: HTTPRoute shop/route has no rule",
        ),
        ("kind: Gateway, name: nobody", "metrics: {seriesMax: 5}", "spec.targetRefs: there is no Gateway shop/nobody"),
        (ROUTE, "tracing: {samplePercent: 1}", "spec: Telemetry shop/older is older and wins where both say something"),
        (ROUTE, "tracing: {keepErrors: true}", ""),
        (RULE, "tracing: {samplePercent: 1}", ""),
    ] {
        let found = told(&[("older", 1, ROUTE, "tracing: {samplePercent: 9}"), ("p", 2, target, spec)]);
        match wanted {
            "" => assert_eq!(found, [""; 0], "{target} {spec}"),
            wanted => assert!(found.len() == 1 && found[0].starts_with(wanted), "{target} {spec}: {found:?}"),
        }
    }
    let world = telling(&[("older", 1, ROUTE, "tracing: {samplePercent: 9}"), ("p", 2, ROUTE, "tracing: {samplePercent: 1}")]);
    let key = ObjectKey::new(Kind::Telemetry, "shop", "p");
    let status = format!("{:?}", statuses(&world)[&key]);
    assert!(status.contains("HTTPRoute") && status.contains("Conflicted"), "{status}");
}
