//! Who attaches where, and in which order rules are tried.

use proptest::prelude::*;

use super::super::attach::Attachment;
use super::*;
use crate::source::{FileChange, Folder};
use crate::world::{Allocations, ObjectKey, WorldSettings};

fn world(documents: &[String]) -> World {
    let change = FileChange { file: "f".to_owned(), text: Some(Ok(documents.join("\n---\n"))) };
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    world.apply(Folder::default().update(vec![change], 0));
    world
}

fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}")
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: api, namespace: a}
spec: {selector: {app: api}, ports: [{name: one, port: 1}, {name: two, port: 2, appProtocol: kubernetes.io/wss}, {name: old, port: 3, appProtocol: http1}]}";

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: a}
spec:
  gatewayClassName: meshwright
  listeners:
    - {name: http, port: 80, protocol: HTTP}
    - {name: grpc, port: 81, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}
    - {name: tls, port: 443, protocol: TLS}
    - {name: tcp, port: 5432, protocol: TCP}";

/// What became of a route's one parent: `gateway` and its listeners, `service` and its ports, or the reason why not.
fn standing(documents: &[String], kind: Kind, namespace: &str) -> String {
    let world = world(documents);
    let object = world.get(&ObjectKey::new(kind, namespace, "x")).expect("the route is accepted");
    match attach::standing(world.index(), object, &content(object).expect("a route").parents[0]) {
        Attachment::Foreign => "foreign".to_owned(),
        Attachment::Refused(refusal) => refusal.reason.to_owned(),
        Attachment::Gateway(_, listeners) => format!("gateway {:?}", listeners.iter().map(|(place, _)| *place).collect::<Vec<_>>()),
        Attachment::Service(_, ports, _) => format!("service {ports:?}"),
    }
}

#[test]
fn each_kind_attaches_where_it_can_be_carried() {
    // Aim: listeners by protocol and allowedRoutes.kinds, Service ports by appProtocol; a Service without its group is none.
    let service = "{group: '', kind: Service, name: api}";
    for (kind, parent, wanted) in [
        (Kind::HTTPRoute, "{name: edge}", "gateway [0]"),
        (Kind::GRPCRoute, "{name: edge}", "gateway [0, 1]"),
        (Kind::HTTPRoute, "{name: edge, sectionName: grpc}", "NotAllowedByListeners"),
        (Kind::TLSRoute, "{name: edge}", "gateway [2]"),
        (Kind::TLSRoute, "{name: edge, sectionName: tcp}", "NotAllowedByListeners"),
        (Kind::TCPRoute, "{name: edge, port: 5432}", "gateway [3]"),
        (Kind::UDPRoute, "{name: edge}", "NotAllowedByListeners"),
        (Kind::UDPRoute, service, "UnsupportedValue"),
        (Kind::TCPRoute, "{name: edge, port: 99}", "NoMatchingParent"),
        (Kind::HTTPRoute, service, "service [1, 3]"),
        (Kind::GRPCRoute, service, "service [1]"),
        (Kind::TLSRoute, service, "service [1, 2, 3]"),
        (Kind::TCPRoute, service, "service [1, 2, 3]"),
        (Kind::HTTPRoute, "{group: '', kind: Service, name: api, sectionName: two}", "UnsupportedValue"),
        (Kind::GRPCRoute, "{group: '', kind: Service, name: api, port: 3}", "UnsupportedValue"),
        (Kind::TCPRoute, "{kind: Service, name: api}", "NoMatchingParent"),
        (Kind::TCPRoute, "{group: '', kind: Service, name: nobody}", "NoMatchingParent"),
    ] {
        let own = route(kind.text(), "a", "x", &format!("{{parentRefs: [{parent}], rules: [{{}}]}}"));
        assert_eq!(standing(&[SERVICE.to_owned(), GATEWAY.to_owned(), own], kind, "a"), wanted, "{kind} at {parent}");
    }
}

#[test]
fn the_stronger_kind_has_a_service_port() {
    // Aim: gRPC before HTTP before TLS before TCP, port by port, whatever is older; producers and consumers are no rivals, and a
    // route that is dropped whole is nobody's.
    let spec = |port: &str| format!("{{parentRefs: [{{group: '', kind: Service, name: api, namespace: a{port}}}], rules: [{{}}]}}");
    let dropped = "{parentRefs: [{group: '', kind: Service, name: api}], rules: [{matches: [{method: {type: Glob}}]}]}";
    for (kind, namespace, rival, wanted) in [
        (Kind::HTTPRoute, "a", route("GRPCRoute", "a", "y", &spec("")), "service [3]"),
        (Kind::TLSRoute, "a", route("GRPCRoute", "a", "y", &spec(", port: 1")), "service [2, 3]"),
        (Kind::TLSRoute, "a", route("HTTPRoute", "a", "y", &spec("")), "service [2]"),
        (Kind::TCPRoute, "a", route("TLSRoute", "a", "y", &spec("")), "Conflicted"),
        (Kind::GRPCRoute, "a", route("HTTPRoute", "a", "y", &spec("")), "service [1]"),
        (Kind::TCPRoute, "a", route("TCPRoute", "a", "y", &spec("")), "service [1, 2, 3]"),
        (Kind::TCPRoute, "b", route("GRPCRoute", "a", "y", &spec("")), "service [1, 2, 3]"),
        (Kind::HTTPRoute, "a", route("GRPCRoute", "a", "y", dropped), "service [1, 3]"),
    ] {
        let own = route(kind.text(), namespace, "x", &spec(""));
        assert_eq!(standing(&[SERVICE.to_owned(), own, rival.clone()], kind, namespace), wanted, "{kind} beside {rival}");
    }
}

#[test]
fn calls_and_requests_are_ranked_together() {
    // Aim: the order of one table of both kinds (`gateway-api.md` 4.3.1, 4.3.23), first to last.
    let http = "{rules: [
        {name: any}, {name: prefix, matches: [{path: {value: /shop.Cart}}]}, {name: longer, matches: [{path: {value: /shop.Cart/Add}}]},
        {name: exact, matches: [{path: {type: Exact, value: /shop.Cart/Add}}]},
        {name: regex, matches: [{path: {type: RegularExpression, value: '/shop.*'}}]}]}";
    let grpc = "{rules: [
        {name: all}, {name: method, matches: [{method: {method: Add}}]},
        {name: methods, matches: [{method: {type: RegularExpression, method: '.*d'}}]},
        {name: service, matches: [{method: {service: shop.Cart}}]},
        {name: header, matches: [{method: {service: shop.Cart}, headers: [{name: a, value: b}]}]},
        {name: call, matches: [{method: {service: shop.Cart, method: Add}}]}]}";
    let world = world(&[route("HTTPRoute", "a", "h", http), route("GRPCRoute", "a", "g", grpc)]);
    let entries = entries(&world, world.index().routes.iter().map(|route| (route, "*".to_owned())));
    let names: Vec<_> = entries.iter().filter_map(|entry| entry.rule.name.as_deref()).collect();
    let wanted = ["call", "exact", "regex", "longer", "header", "service", "prefix", "method", "methods", "all", "any"];
    assert_eq!(names, wanted);
}

#[test]
fn a_rule_keeps_the_requests_of_its_readable_matches() {
    // Aim: one unreadable match does not hand what the others match to a broader rule: it is answered 500. A rule with no other is dropped.
    let spec = "{parentRefs: [{group: '', kind: Service, name: api}], rules: [
        {name: some, matches: [{path: {type: Glob, value: /x}}, {path: {value: /admin}}], backendRefs: [{name: api, port: 1}]},
        {name: none, matches: [{path: {type: Glob, value: /y}}]},
        {name: rest, backendRefs: [{name: api, port: 1}]}]}";
    let world = world(&[SERVICE.to_owned(), route("HTTPRoute", "a", "x", spec)]);
    let entries = entries(&world, world.index().routes.iter().map(|route| (route, "*".to_owned())));
    let told: Vec<_> = entries.iter().map(|entry| (entry.rule.name.as_deref().unwrap(), entry.rule.fails())).collect();
    assert_eq!(told, [("some", true), ("rest", false)]);
    let status = &crate::translate::statuses(&world)[&ObjectKey::new(Kind::HTTPRoute, "a", "x")];
    let partly = status.parents[0].conditions.iter().find(|condition| condition.kind == "PartiallyInvalid").unwrap();
    assert!(partly.message.contains("Dropped Rule 0: unknown type of path match `Glob`; what its other matches match"), "{partly:?}");
}

#[test]
fn age_and_then_the_whole_name_decide() {
    // Aim: between objects of one age `namespace/name` is compared as one text, so that `a-b/x` comes before `a/x`.
    let rules = "{rules: [{matches: [{path: {value: /p}}]}]}";
    let world = world(&[route("HTTPRoute", "a", "x", rules), route("HTTPRoute", "a-b", "x", rules)]);
    let entries = entries(&world, world.index().routes.iter().map(|route| (route, "*".to_owned())));
    let order: Vec<_> = entries.iter().map(|entry| entry.route.key.namespace.as_str()).collect();
    assert_eq!(order, ["a-b", "a"]);
    assert_eq!(world.index().routes[0].key.namespace, "a-b");
}

#[test]
fn nobody_says_what_others_ports_speak() {
    // Aim: a GRPCRoute makes gRPC of a port only where it is attached and may lead there; a consumer's HTTPRoute makes HTTP of a port for
    // its own namespace alone.
    let bytes = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: a}\n\
                 spec: {selector: {app: db}, ports: [{name: tcp, port: 5}, {name: tcp-two, port: 6}]}";
    let (api, parent) = (("a".to_owned(), "api".to_owned()), "group: '', kind: Service, name: api, namespace: a");
    let to = "rules: [{backendRefs: [{name: api, namespace: a, port: 1}]}]";
    for (namespace, spec, takes) in [
        ("a", format!("{{parentRefs: [{{name: edge}}], {to}}}"), true),
        ("a", format!("{{parentRefs: [{{{parent}, port: 1}}]}}"), true),
        ("a", format!("{{parentRefs: [{{{parent}, sectionName: old}}]}}"), false),
        ("a", format!("{{parentRefs: [], {to}}}"), false),
        ("a", format!("{{parentRefs: [{{name: nobody}}], {to}}}"), false),
        ("b", format!("{{parentRefs: [{{name: edge, namespace: a}}], {to}}}"), false),
        ("b", format!("{{parentRefs: [{{{parent}}}], {to}}}"), false),
    ] {
        let world = world(&[SERVICE.to_owned(), GATEWAY.to_owned(), route("GRPCRoute", namespace, "x", &spec)]);
        assert_eq!(attach::takes_grpc(world.index(), &api, 1), takes, "{namespace}: {spec}");
    }
    let spec = "{parentRefs: [{group: '', kind: Service, name: db, namespace: a, port: 5}], rules: [{}]}";
    let world = world(&[bytes.to_owned(), route("HTTPRoute", "b", "x", spec)]);
    let (index, db) = (world.index(), ("a".to_owned(), "db".to_owned()));
    assert_eq!(attach::kind_at(index, &db, 5, "b"), Some(Kind::HTTPRoute));
    assert_eq!((attach::kind_at(index, &db, 5, "a"), attach::kind_at(index, &db, 5, "c")), (None, None));
    assert!(attach::consumed_as_http(index, &db, 5) && !attach::consumed_as_http(index, &db, 6));
    let view = &index.services[&db];
    let port = &view.service().unwrap().ports[0];
    let speaks = |client: &str| crate::translate::protocol::of_service(index, view, port, client);
    use crate::translate::protocol::Protocol;
    assert_eq!((speaks("b"), speaks("a"), speaks("c")), (Protocol::Http, Protocol::Tcp, Protocol::Tcp));
}

#[test]
fn a_policy_goes_by_the_first_backend_that_has_a_weight() {
    // Aim: a backend of weight 0 decides only where none has any.
    for (weights, wanted) in [((0, 1), 2), ((1, 1), 1), ((0, 0), 1)] {
        let backends = format!("[{{name: api, port: 1, weight: {}}}, {{name: web, port: 2, weight: {}}}]", weights.0, weights.1);
        let web = SERVICE.replace("name: api", "name: web").replace(", appProtocol: kubernetes.io/wss", "");
        let own = route("HTTPRoute", "a", "x", &format!("{{rules: [{{backendRefs: {backends}}}]}}"));
        let world = world(&[SERVICE.to_owned(), web, own]);
        let object = &world.index().routes[0];
        let first = attach::first(world.index(), object, &content(object).unwrap().rules[0], false);
        assert_eq!(first.unwrap().port, wanted, "{weights:?}");
    }
}

#[test]
fn a_refused_version_shows_and_the_last_good_one_holds() {
    // Aim: a newer version that is refused is told at every parent and ancestor, of its own generation; others' parents are not spoken of.
    let change = |text: String| FileChange { file: "f".to_owned(), text: Some(Ok(text)) };
    let own = |filter: &str| {
        let parents = "[{group: '', kind: Service, name: api, port: 1}, {group: example.com, kind: Else, name: e}]";
        let spec = format!("{{parentRefs: {parents}, rules: [{{{filter}backendRefs: [{{name: api, port: 1}}]}}]}}");
        let policy = "apiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: a}\n\
                      spec: {targetRefs: [{group: '', kind: Service, name: api}], timeouts: {request: TIME}}";
        let policy = policy.replace("TIME", if filter.is_empty() { "1s" } else { "soon" });
        [SERVICE.to_owned(), route("HTTPRoute", "a", "x", &spec), policy].join("\n---\n")
    };
    let (mut world, mut folder) = (World::new(WorldSettings::default(), Allocations::default()), Folder::default());
    world.apply(folder.update(vec![change(own(""))], 0));
    let said = |world: &World| {
        let statuses = crate::translate::statuses(world);
        let of = |kind, name: &str| statuses[&ObjectKey::new(kind, "a", name)].clone();
        let (route, policy) = (of(Kind::HTTPRoute, "x"), of(Kind::TrafficPolicy, "p"));
        assert_eq!(route.parents.len(), 1, "of our own parents alone");
        let first = |conditions: &[crate::translate::Condition]| {
            let accepted = conditions.iter().find(|condition| condition.kind == "Accepted").unwrap();
            (accepted.status, accepted.reason.clone(), accepted.observed_generation)
        };
        assert!(route.parents[0].conditions.iter().any(|condition| condition.kind == "ResolvedRefs"));
        [first(&route.parents[0].conditions), first(&policy.ancestors[0].conditions)]
    };
    assert_eq!(said(&world), [("True", "Accepted".to_owned(), 1), ("True", "Accepted".to_owned(), 1)]);
    world.apply(folder.update(vec![change(own("timeouts: {request: soon}, "))], 0));
    assert_eq!(said(&world), [("False", "Invalid".to_owned(), 2), ("False", "Invalid".to_owned(), 2)]);
    assert_eq!(world.index().routes.len(), 1);
    world.apply(folder.update(vec![change(own(""))], 0));
    assert_eq!(said(&world)[0].0, "True");
}

/// Rules that often tie.
fn rules() -> impl Strategy<Value = (bool, String)> {
    let path = prop::sample::select(vec!["/a", "/a/b", "/"]);
    let http = (path, any::<bool>(), any::<bool>()).prop_map(|(path, method, header)| {
        let method = if method { ", method: GET" } else { "" };
        let header = if header { ", headers: [{name: x, value: y}]" } else { "" };
        (false, format!("{{matches: [{{path: {{value: {path}}}{method}{header}}}]}}"))
    });
    let method = prop::sample::select(vec!["service: s", "method: m", "service: s, method: m", "type: RegularExpression, service: s"]);
    let grpc = method.prop_map(|method| (true, format!("{{matches: [{{method: {{{method}}}}}]}}")));
    prop_oneof![http, grpc]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_order_of_rules_is_total(rules in prop::collection::vec((rules(), 0_usize..3), 1..10)) {
        // Aim: no two entries rank the same, so that their order never depends on how they came, whatever they have in common.
        let document = |((grpc, rule), place): &((bool, String), usize)| {
            let kind = if *grpc { "GRPCRoute" } else { "HTTPRoute" };
            route(kind, ["a", "b", "c"][*place], "x", &format!("{{rules: [{rule}, {rule}]}}"))
        };
        let world = world(&rules.iter().map(document).collect::<Vec<_>>());
        let hosts = ["*", "*.example.com", "a.example.com"];
        let pairs: Vec<_> = world.index().routes.iter().flat_map(|route| hosts.map(|host| (route, host.to_owned()))).collect();
        let forth = entries(&world, pairs.clone());
        let back = entries(&world, pairs.into_iter().rev());
        prop_assert!(forth.is_sorted_by(|a, b| a.rank < b.rank));
        let named = |entries: &[RankedMatch<'_>]| -> Vec<_> { entries.iter().map(|entry| (entry.name(), entry.host.clone())).collect() };
        prop_assert_eq!(named(&forth), named(&back));
    }
}
