use prost::Message as _;

use super::*;
use crate::source::parse;
use crate::translate::edge_port;
use crate::translate::statuses;
use crate::world::traffic::Caller;
use crate::world::{Allocations, Change, Origin, World, WorldSettings};

const GATEWAY: &str = "\
kind: Gateway
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshwright
  listeners:
    - {name: web, port: 80, protocol: HTTP}
    - {name: a, port: 81, protocol: HTTP, hostname: a.example}
    - {name: b, port: 81, protocol: HTTP, hostname: b.example}
    - {name: tls, port: 443, protocol: HTTPS, hostname: c.example, tls: {certificateRefs: [{name: c}]}}
    - {name: other, port: 443, protocol: HTTPS, hostname: d.example, tls: {certificateRefs: [{name: d}]}}
";

fn world(policies: &[(&str, &str, &str)]) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let texts = policies.iter().map(|(name, namespace, spec)| {
        format!("apiVersion: meshwright.dev/v1alpha1\nkind: ClientPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n")
    });
    for (age, text) in std::iter::once(GATEWAY.to_owned()).chain(texts).enumerate() {
        let candidates = parse("f.yaml", &text).candidates.into_iter();
        let put = |candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: i64::try_from(age).unwrap() };
        world.apply(candidates.map(put).collect());
    }
    world
}

/// What a proxy is told of a port.
fn told(world: &World, port: u16, family: Family) -> Option<mesh::ClientPolicy> {
    let name = ("shop".to_owned(), "edge".to_owned());
    let edge = Edge::of(world.index(), &name).unwrap();
    let built = edge_port::port(world, &edge, (port, family), &Caller { namespace: "shop".to_owned(), service_account: None });
    let filter = built.listener.listener_filters.iter().find(|filter| filter.name == "meshwright.client_policy")?;
    let Some(listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type else { panic!("{filter:?}") };
    Some(mesh::ClientPolicy::decode(any.value.as_slice()).unwrap())
}

fn standing(world: &World, name: &str) -> String {
    let status = &statuses(world)[&ObjectKey::new(Kind::ClientPolicy, "shop", name)];
    let conditions = status.ancestors.iter().flat_map(|ancestor| &ancestor.conditions);
    conditions.map(|told| format!("{}={} {} {}", told.kind, told.status, told.reason, told.message)).collect::<Vec<_>>().join("; ")
}

const EDGE: &str = "targetRefs: [{kind: Gateway, name: edge}]";

#[test]
fn the_narrowest_says_each_field_of_a_chain() {
    // Aim: listener > Gateway > mesh, per field, for each chain of TLS and for the one of plaintext; without any object nothing is sent.
    let policies = [
        ("mesh", "meshwright-system", "limits: {headers: 50}, timeouts: {bodyIdle: 9s}".to_owned()),
        (
            "gateway",
            "shop",
            format!("{EDGE}, limits: {{headers: 40}}, proxyProtocol: {{mode: Require}}, connections: {{max: 7, idle: 1m}}"),
        ),
        (
            "tls",
            "shop",
            "targetRefs: [{kind: Gateway, name: edge, sectionName: tls}], limits: {headers: 30}, http1: {enabled: false}".to_owned(),
        ),
    ];
    let policies: Vec<_> = policies.iter().map(|(name, namespace, spec)| (*name, *namespace, spec.as_str())).collect();
    let built = world(&policies);
    let of = |port, family| {
        let told = told(&built, port, family).unwrap();
        assert!(told.proxy_protocol.as_ref().unwrap().required && told.connections.as_ref().unwrap().max == 7, "{told:?}");
        let one = |chain: &ClientChain| {
            let limits = chain.limits.as_ref().unwrap();
            assert_eq!(chain.timeouts.as_ref().unwrap().body_idle.unwrap().seconds, 9);
            (chain.chain.clone(), chain.policy.clone(), limits.headers, chain.http1.is_some_and(|http1| http1.disabled))
        };
        told.chains.iter().map(one).collect::<Vec<_>>()
    };
    let chain = |name: &str, policy: &str, headers, disabled| (name.to_owned(), policy.to_owned(), headers, disabled);
    assert_eq!(of(80, Family::Http), [chain("edge/80", "shop/gateway", 40, false)]);
    assert_eq!(of(81, Family::Http), [chain("edge/81", "shop/gateway", 40, false)]);
    assert_eq!(of(443, Family::Tls), [chain("tls", "shop/tls", 30, true), chain("other", "shop/gateway", 40, false)]);
    assert_eq!(told(&world(&[]), 80, Family::Http), None);
    assert!(standing(&built, "gateway").starts_with("Accepted=True"), "{}", standing(&built, "gateway"));
}

#[test]
fn what_cannot_hold_at_a_place_is_told() {
    // Aim: a socket that several listeners share is its Gateway's, and plaintext listeners of one port have no rules of their own; the rest holds.
    let of = |section: &str, spec: &str| {
        let spec = format!("targetRefs: [{{kind: Gateway, name: edge, sectionName: {section}}}], {spec}");
        standing(&world(&[("p", "shop", &spec)]), "p")
    };
    let spec = "proxyProtocol: {mode: Require}, limits: {headers: 1}";
    assert_eq!(of("web", spec), "Accepted=True Accepted ");
    let shared = of("tls", spec);
    assert!(shared.contains("PartiallyInvalid=True UnsupportedValue proxyProtocol: a port's socket is its Gateway's"), "{shared}");
    let plain = of("a", spec);
    assert!(plain.contains("UnsupportedValue limits.headers, proxyProtocol: in plaintext"), "{plain}");
    let of_shared = world(&[("p", "shop", "targetRefs: [{kind: Gateway, name: edge, sectionName: a}], limits: {headers: 1}")]);
    assert_eq!(told(&of_shared, 81, Family::Http), None);
}

#[test]
fn what_a_gateway_locks_stays() {
    // Aim: a listener's own policy cannot undo what is locked above it, and is told so.
    let locked = format!("{EDGE}, locked: true, limits: {{headers: 40}}");
    let own = "targetRefs: [{kind: Gateway, name: edge, sectionName: tls}], limits: {headers: 99, uriBytes: 5}";
    let world = world(&[("gateway", "shop", &locked), ("own", "shop", own)]);
    let told = told(&world, 443, Family::Tls).unwrap();
    assert_eq!(told.chains[0].limits.as_ref().map(|limits| (limits.headers, limits.uri_bytes)), Some((40, 5)));
    let standing = standing(&world, "own");
    assert!(standing.contains("PartiallyInvalid=True Locked ClientPolicy shop/gateway locks limits.headers"), "{standing}");
}

#[test]
fn an_end_is_as_long_as_its_gateways_ports_say() {
    // Aim: the socket's own fields reach the proxy, the longest of all ports is what its pods and `up` go by, and nothing is said where nobody says anything.
    let gateway = ("shop".to_owned(), "edge".to_owned());
    assert_eq!(ending(world(&[]).index(), &gateway), None);
    let both = format!("{EDGE}, connections: {{readinessGrace: 5s, goAwayGrace: 20s}}");
    let own = "targetRefs: [{kind: Gateway, name: edge, sectionName: web}], connections: {goAwayGrace: 45s}";
    let built = world(&[("p", "shop", &both), ("own", "shop", own)]);
    let connections = |port, family| told(&built, port, family).unwrap().connections.unwrap();
    let secs = |duration: Option<prost_types::Duration>| duration.map(|duration| duration.seconds);
    for (port, family, readiness, go_away) in [(80, Family::Http, 5, 45), (81, Family::Http, 5, 20), (443, Family::Tls, 5, 20)] {
        let told = connections(port, family);
        assert_eq!((secs(told.readiness_grace), secs(told.go_away_grace)), (Some(readiness), Some(go_away)), "{port}");
    }
    assert_eq!(ending(built.index(), &gateway), Some(Duration::from_secs(50)));
    let readiness = world(&[("p", "shop", &format!("{EDGE}, connections: {{readinessGrace: 5s}}"))]);
    assert_eq!(ending(readiness.index(), &gateway), Some(Duration::from_secs(35)));
}

#[test]
fn what_tls_and_pings_are_to_be_reaches_each_chain() {
    // Aim: a profile, pings and the turn of tickets' keys are each listener's own; a narrower place takes a profile back.
    let wide = format!("{EDGE}, tls: {{profile: Compatible, sessionTickets: {{rotate: 1h}}}}, http2: {{pingInterval: 30s}}");
    let narrow = "targetRefs: [{kind: Gateway, name: edge, sectionName: other}], tls: {profile: Modern}, http2: {pingInterval: 0s}";
    let built = world(&[("wide", "shop", &wide), ("narrow", "shop", narrow)]);
    let told = told(&built, 443, Family::Tls).unwrap();
    let said = |chain: &ClientChain| {
        let every = chain.http2.as_ref().and_then(|http2| http2.ping_interval).map(|every| every.seconds);
        (chain.chain.clone(), chain.tls.is_some_and(|tls| tls.plain_master_secret), every)
    };
    // Of the other nothing is left to say.
    let wanted = [("tls".to_owned(), true, Some(30))];
    assert_eq!(told.chains.iter().map(said).collect::<Vec<_>>(), wanted);
}
