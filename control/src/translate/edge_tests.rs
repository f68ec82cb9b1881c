use super::*;
use crate::source::{FileChange, Folder};
use crate::translate::attach::standing;
use crate::world::{Allocations, World, WorldSettings};

fn world(text: &str) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let change = FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) };
    let applied = world.apply(Folder::default().update(vec![change], 0));
    assert!(!applied.problems.iter().any(|problem| problem.severity == crate::world::Severity::Error), "{:?}", applied.problems);
    world
}

fn gateway(listeners: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\n\
         spec: {{gatewayClassName: meshwright, allowedListeners: {{namespaces: {{from: All}}}}, listeners: [{listeners}]}}\n"
    )
}

/// A set of another namespace, as old as that.
fn set(name: &str, age: u32, listeners: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\n\
         metadata: {{name: {name}, namespace: b, creationTimestamp: '2020-01-01T00:00:{age:02}Z'}}\n\
         spec: {{parentRef: {{name: g, namespace: a}}, listeners: [{listeners}]}}\n"
    )
}

fn listener(name: &str, port: u16, protocol: &str, hostname: &str) -> String {
    let hostname = if hostname.is_empty() { String::new() } else { format!(", hostname: '{hostname}'") };
    format!("{{name: {name}, port: {port}, protocol: {protocol}{hostname}}}")
}

/// Each listener with what became of it.
fn told(world: &World) -> Vec<String> {
    let judged = listeners(world.index(), &("a".to_owned(), "g".to_owned()));
    judged.iter().map(|one| format!("{} {}", one.name(), one.refused.as_ref().map_or("ok", |refusal| refusal.reason))).collect()
}

#[test]
fn listeners_in_one_anothers_way_are_refused() {
    // Aim: of a Gateway's own listeners all that conflict, whichever stands first; datagrams are in nobody's way; ports of the proxy's own
    // and what a protocol cannot have are refused.
    for (text, wanted) in [
        ([listener("a", 80, "HTTP", ""), listener("b", 80, "HTTP", "x.example")].join(", "), "a ok, b ok"),
        ([listener("a", 80, "HTTP", ""), listener("b", 80, "HTTP", "")].join(", "), "a HostnameConflict, b HostnameConflict"),
        ([listener("a", 80, "HTTP", ""), listener("b", 80, "HTTPS", "x.example")].join(", "), "a ProtocolConflict, b ProtocolConflict"),
        ([listener("a", 443, "TLS", "y.example"), listener("b", 443, "HTTPS", "x.example")].join(", "), "a ok, b ok"),
        ([listener("a", 443, "TLS", ""), listener("b", 443, "TCP", "")].join(", "), "a ProtocolConflict, b ProtocolConflict"),
        ([listener("a", 53, "TCP", ""), listener("b", 53, "UDP", "")].join(", "), "a ok, b ok"),
        ([listener("a", 53, "TCP", ""), listener("b", 53, "TCP", "")].join(", "), "a HostnameConflict, b HostnameConflict"),
        (listener("a", 15021, "TCP", ""), "a PortUnavailable"),
        (listener("a", 15021, "UDP", ""), "a ok"),
        (listener("a", 80, "SCTP", ""), "a UnsupportedProtocol"),
        ("{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}".to_owned(), "a UnsupportedValue"),
        ("{name: a, port: 443, protocol: TLS, tls: {mode: Passthrough}}".to_owned(), "a ok"),
        ("{name: a, port: 443, protocol: TLS, tls: {mode: Other}}".to_owned(), "a UnsupportedValue"),
        ("{name: a, port: 80, protocol: HTTP, tls: {}}".to_owned(), "a UnsupportedValue"),
        (listener("a", 80, "TCP", "x.example"), "a UnsupportedValue"),
    ] {
        assert_eq!(told(&world(&gateway(&text))).join(", "), wanted, "{text}");
    }
}

#[test]
fn sets_come_by_age_after_the_gateways_own() {
    // Aim: a Gateway's listeners win, then the older set, then the set's own order; a loser leaves the rest of its set as it is.
    let own = gateway(&listener("own", 80, "HTTP", "own.example"));
    let young = set("young", 2, &[listener("x", 80, "HTTP", "x.example"), listener("y", 80, "HTTP", "y.example")].join(", "));
    let old = set("old", 1, &[listener("x", 80, "HTTP", "x.example"), listener("o", 80, "HTTP", "own.example")].join(", "));
    let bytes = set("zz", 3, &[listener("t", 80, "TCP", ""), listener("u", 90, "TCP", ""), listener("v", 90, "TCP", "")].join(", "));
    assert_eq!(
        told(&world(&[own, young, old, bytes].concat())),
        [
            "own ok",
            "b/old/x ok",
            "b/old/o HostnameConflict",
            "b/young/x HostnameConflict",
            "b/young/y ok",
            "b/zz/t ProtocolConflict",
            "b/zz/u ok",
            "b/zz/v HostnameConflict"
        ]
    );
}

#[test]
fn a_gateway_says_whose_sets_it_takes() {
    // Aim: without a word none; Same, Selector and None as they say.
    for (allowed, wanted) in [
        ("", 1),
        ("allowedListeners: {namespaces: {from: None}},", 1),
        ("allowedListeners: {namespaces: {from: Same}},", 1),
        ("allowedListeners: {namespaces: {from: All}},", 2),
        ("allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: b}}}},", 2),
        ("allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: c}}}},", 1),
    ] {
        let text = gateway(&listener("own", 80, "HTTP", "")).replace("allowedListeners: {namespaces: {from: All}},", allowed);
        let text = text + &set("s", 0, &listener("x", 81, "HTTP", ""));
        assert_eq!(told(&world(&text)).len(), wanted, "{allowed}");
    }
}

#[test]
fn listeners_of_one_gateway_are_bounded() {
    // Aim: beyond the bound listeners of the youngest sets are refused, and say so.
    let many = |set: usize| {
        let each = (0..64_usize).map(|number| listener(&format!("l{number}"), 80, "HTTP", &format!("h{number}.s{set}.example")));
        each.collect::<Vec<_>>().join(", ")
    };
    let sets: String = (0..17).map(|number| set(&format!("s{number:02}"), number, &many(number as usize))).collect();
    let told = told(&world(&(gateway(&listener("own", 80, "HTTP", "")) + &sets)));
    assert_eq!(told.iter().filter(|line| line.ends_with(" ok")).count(), LISTENERS_MAX);
    assert!(told.last().unwrap().ends_with("TooManyListeners"), "{:?}", told.last());
}

#[test]
fn routes_attach_to_what_they_name() {
    // Aim: a Gateway's listeners are not its sets', and the other way round; a section, a port, kinds and namespaces choose among them.
    let tls =
        "{name: tls, port: 443, protocol: TLS, hostname: '*.example', tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}";
    let tcp = "{name: tcp, port: 90, protocol: TCP, allowedRoutes: {namespaces: {from: All}}}";
    let udp = "{name: udp, port: 90, protocol: UDP, allowedRoutes: {namespaces: {from: All}}}";
    let base = gateway(&[tls, tcp, udp].join(", ")) + &set("s", 0, "{name: tls, port: 443, protocol: TLS, hostname: x.example}");
    for (kind, namespace, spec, parent, wanted) in [
        ("TLSRoute", "b", "hostnames: [a.example]", "{name: g, namespace: a}", "0 a.example"),
        ("TLSRoute", "b", "hostnames: [a.other]", "{name: g, namespace: a}", "NoMatchingListenerHostname"),
        ("TLSRoute", "b", "hostnames: [x.example]", "{kind: ListenerSet, name: s}", "3 x.example"),
        ("TLSRoute", "a", "hostnames: [x.example]", "{kind: ListenerSet, name: s, namespace: b}", "NotAllowedByListeners"),
        ("TLSRoute", "b", "hostnames: [x.example]", "{kind: ListenerSet, name: none}", "NoMatchingParent"),
        ("TLSRoute", "b", "hostnames: [x.example]", "{kind: ListenerSet, name: s, sectionName: other}", "NoMatchingParent"),
        ("TCPRoute", "a", "", "{name: g}", "1 *"),
        ("TCPRoute", "a", "", "{name: g, port: 90}", "1 *"),
        ("TCPRoute", "a", "", "{name: g, sectionName: tls}", "NotAllowedByListeners"),
        ("UDPRoute", "a", "", "{name: g, port: 90}", "2 *"),
        ("UDPRoute", "a", "", "{name: g, port: 91}", "NoMatchingParent"),
        ("HTTPRoute", "a", "", "{name: g}", "NotAllowedByListeners"),
    ] {
        let comma = if spec.is_empty() { "" } else { ", " };
        let route = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: {namespace}}}\n\
             spec: {{{spec}{comma}parentRefs: [{parent}], rules: [{{backendRefs: []}}]}}\n"
        );
        let world = world(&format!("{base}{route}"));
        let route = &world.index().routes[0];
        let told = match standing(world.index(), route, &content(route).unwrap().parents[0]) {
            Attachment::Gateway(name, places) => {
                assert_eq!(name, ("a".to_owned(), "g".to_owned()));
                places.iter().map(|(place, hosts)| format!("{place} {}", hosts.join(" "))).collect::<Vec<_>>().join(", ")
            }
            Attachment::Refused(refusal) => refusal.reason.to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(told, wanted, "{kind} of {namespace} {spec} at {parent}");
    }
}
