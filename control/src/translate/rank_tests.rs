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
        (Kind::TLSRoute, "{name: edge}", "NotAllowedByListeners"),
        (Kind::TLSRoute, "{name: edge, sectionName: tls}", "NotAllowedByListeners"),
        (Kind::TCPRoute, "{name: edge, port: 5432}", "NotAllowedByListeners"),
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
