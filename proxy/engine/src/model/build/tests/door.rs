//! What the door takes and what it refuses.

use std::time::Duration;

use prost_types::Any;
use proto::xds::cluster::Cluster;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy, TransportSocketMatch};
use proto::xds::core::HealthStatus;
use proto::xds::hcm::http_connection_manager::CodecType;
use proto::xds::hcm::{HttpConnectionManager, HttpFilter};
use proto::xds::listener::{FilterChain, Listener};
use proto::xds::route::{DirectResponseAction, RedirectAction, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, route};
use proto::xds::tls::common_tls_context::ValidationContextType;
use proto::xds::tls::{CertificateValidationContext, UpstreamTlsContext};

use crate::fixture::{self, chain, host, inbound_chain, prefix, put, rule, table, tcp_to};
use crate::model::build::{Parts, RESOURCES_MAX};
use crate::model::{Action, ClusterKind, MtlsMode, Protocol, Snapshot, Target};

fn refusal<M: prost::Message + prost::Name>(name: &str, message: &M) -> String {
    put(&mut Parts::default(), name, message).expect_err("must be refused").to_string()
}

fn with_action(action: RouteAction) -> RouteConfiguration {
    let Some(route::Action::Route(whole)) = rule("r", prefix("/"), &[("a", 1)]).action else { unreachable!() };
    let action = RouteAction { cluster_specifier: whole.cluster_specifier, ..action };
    let rule = Route { action: Some(route::Action::Route(action)), ..rule("r", prefix("/"), &[]) };
    table("t", vec![host(&["*"], vec![rule])])
}

fn with_match(wanted: RouteMatch) -> RouteConfiguration {
    table("t", vec![host(&["*"], vec![rule("r", wanted, &[("a", 1)])])])
}

#[test]
fn routes_that_we_cannot_carry_out_are_refused_by_field() {
    // Aim: no field of the subset is ignored; the message names type, object, place and reason.
    let redirect = Route { action: Some(route::Action::Redirect(RedirectAction::default())), ..rule("r", prefix("/"), &[]) };
    let cases: Vec<(RouteConfiguration, &str)> = vec![
        (with_action(RouteAction { prefix_rewrite: "/x".into(), ..Default::default() }), "routes[0].route.prefix_rewrite"),
        (with_action(RouteAction { retry_policy: Some(RetryPolicy::default()), ..Default::default() }), "route.retry_policy"),
        (
            with_action(RouteAction { timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }), ..Default::default() }),
            "timeout: is neg",
        ),
        (with_action(RouteAction { cluster_not_found_response_code: 1, ..Default::default() }), "cluster_not_found_response_code"),
        (table("t", vec![host(&["*"], vec![redirect])]), "routes[0].redirect"),
        (table("t", vec![host(&["a", "A"], vec![])]), "virtual_hosts[0].domains[1]: `a` is listed twice"),
        (table("t", vec![host(&["*.a"], vec![]), host(&["*.A"], vec![])]), "virtual_hosts[1].domains[0]"),
        (table("t", vec![host(&["a:80"], vec![])]), "names a port"),
        (table("t", vec![host(&["a.*"], vec![])]), "not supported"),
        (with_match(RouteMatch::default()), "match.path_specifier"),
        (with_match(fixture::exact("x")), "does not start with `/`"),
        (with_match(fixture::path_regex("(")), "is not a regular expression"),
        (with_match(fixture::path_regex("a)|(b")), "is not a regular expression"),
        (with_match(fixture::path_regex(r"[\pL]{5000}")), "needs more than"),
        (with_match(fixture::path_regex(&"a".repeat(5000))), "longer than 4096 bytes"),
        (with_match(RouteMatch { headers: vec![fixture::header("a b", "1")], ..prefix("/") }), "match.headers[0].name"),
        (with_match(RouteMatch { headers: vec![fixture::header(":path", "1")], ..prefix("/") }), "pseudo header"),
        (with_match(RouteMatch { case_sensitive: Some(false), ..prefix("/") }), "match.case_sensitive"),
        (table("t", vec![host(&["*"], vec![rule("r", prefix("/"), &[("a", u32::MAX), ("b", 1)])])]), "weights add up"),
        (RouteConfiguration { validate_clusters: Some(true), ..table("t", vec![]) }, "validate_clusters"),
        (table("other", vec![]), "is `other`, but the resource is named `t`"),
    ];
    for (raw, part) in cases {
        let text = refusal("t", &raw);
        assert!(text.starts_with("RouteConfiguration t: ") && text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn timeouts_and_fixed_answers_arrive() {
    // Aim: 0s is none and so is an absent idle, direct responses carry status, body, reason and response headers.
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let mut parts = Parts::default();
    let forward = |parts: &mut Parts, action| {
        put(parts, "t", &with_action(action)).unwrap();
        match &parts.assemble(1, &Snapshot::default()).routes["t"].hosts[0].rules[0].action {
            Action::Forward(forward) => (forward.policy.request_timeout, forward.policy.idle_timeout),
            Action::Reply(_) => unreachable!(),
        }
    };
    let none = RouteAction { timeout: seconds(0), idle_timeout: seconds(0), ..Default::default() };
    assert_eq!(forward(&mut parts, none), (None, None));
    let some = RouteAction { timeout: seconds(2), ..Default::default() };
    assert_eq!(forward(&mut parts, some), (Some(Duration::from_secs(2)), None));

    let fixed = |status, reason: Option<&str>| Route {
        action: Some(route::Action::DirectResponse(DirectResponseAction { status, body: None })),
        metadata: reason.map(|reason| fixture::facts(&[("reason", reason)])),
        ..rule("r", prefix("/"), &[])
    };
    for (status, given, wanted) in
        [(500, None, Some("bad_backend")), (418, None, None), (503, Some("config_pending"), Some("config_pending"))]
    {
        put(&mut parts, "t", &table("t", vec![host(&["*"], vec![fixed(status, given)])])).unwrap();
        let snapshot = parts.assemble(1, &Snapshot::default());
        let Action::Reply(reply) = &snapshot.routes["t"].hosts[0].rules[0].action else { unreachable!() };
        assert_eq!((u32::from(reply.status.as_u16()), reply.reason.map(|reason| reason.text())), (status, wanted));
    }
    for (bad, part) in [(fixed(99, None), "direct_response.status"), (fixed(500, Some("odd")), "metadata.reason")] {
        assert!(refusal("t", &table("t", vec![host(&["*"], vec![bad])])).contains(part));
    }
}

#[test]
fn clusters_are_of_known_types_and_policies() {
    // Aim: EDS and ORIGINAL_DST only, least request only, no limits that would be ignored.
    let edit = |change: fn(&mut Cluster)| {
        let mut raw = fixture::cluster("c");
        change(&mut raw);
        raw
    };
    let cases: Vec<(Cluster, &str)> = vec![
        (edit(|c| c.cluster_discovery_type = None), "type: is missing"),
        (edit(|c| c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns.into()))), "type LOGICAL_DNS"),
        (edit(|c| c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into()))), "respect_dns_ttl"),
        (edit(|c| c.respect_dns_ttl = true), "respect_dns_ttl"),
        (edit(|c| c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(77))), "unknown value 77"),
        (edit(|c| c.lb_policy = LbPolicy::Maglev.into()), "MAGLEV is not supported"),
        (edit(|c| c.connect_timeout = Some(prost_types::Duration::default())), "connect_timeout: must be longer"),
        (edit(|c| c.metadata = Some(fixture::facts(&[("protocol", "h3")]))), "`h3` is not one of"),
        (
            edit(|c| {
                let threshold = proto::xds::cluster::circuit_breakers::Thresholds { max_requests: Some(5), ..Default::default() };
                c.circuit_breakers = Some(proto::xds::cluster::CircuitBreakers { thresholds: vec![threshold] });
            }),
            "circuit_breakers.thresholds[0]",
        ),
        (
            edit(|c| {
                c.typed_extension_protocol_options.insert("x".into(), Any::default());
            }),
            "typed_extension_protocol_options[\"x\"]",
        ),
    ];
    for (raw, part) in cases {
        let text = refusal("c", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
    let mut parts = Parts::default();
    for (name, kind) in [("inbound", ClusterKind::Local), ("outside", ClusterKind::OriginalDestination)] {
        let raw = Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
            lb_policy: LbPolicy::ClusterProvided.into(),
            ..fixture::cluster(name)
        };
        put(&mut parts, name, &raw).unwrap();
        assert_eq!(parts.assemble(1, &Snapshot::default()).clusters[name].kind, kind);
    }
}

#[test]
fn endpoints_must_have_addresses_of_their_own() {
    // Aim: IP and port, no duplicates, weight at least 1, identities of ours.
    let good = || fixture::endpoint("10.0.0.1:80", "w", HealthStatus::Healthy);
    let mut named = good();
    if let Some(proto::xds::endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &mut named.host_identifier
        && let Some(proto::xds::core::address::Address::SocketAddress(socket)) =
            endpoint.address.as_mut().and_then(|address| address.address.as_mut())
    {
        socket.address = "catalog.shop".into();
    }
    let mut weightless = good();
    weightless.load_balancing_weight = Some(0);
    let mut stranger = good();
    stranger.metadata = Some(fixture::facts(&[("identity", "spiffe://x/y")]));
    for (bad, part) in [
        (vec![good(), good()], "lb_endpoints[1].endpoint.address: 10.0.0.1:80 is listed twice"),
        (vec![named], "`catalog.shop` is not an IP address"),
        (vec![weightless], "load_balancing_weight: must be at least 1"),
        (vec![stranger], "metadata.identity"),
    ] {
        let text = refusal("c", &fixture::assignment("c", bad));
        assert!(text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn outbound_listeners_declare_http_tcp_or_neither() {
    // Aim: the three forms of the architecture, and names that fit addresses; unknown filters by name.
    let at = "10.0.0.1:80";
    let tcp = Listener { filter_chains: vec![chain(&tcp_to("c"))], ..fixture::out_http(at, "t") };
    let mut parts = Parts::default();
    put(&mut parts, "t", &table("t", vec![])).unwrap();
    for (raw, protocol, both) in [
        (fixture::out_http(at, "t"), Protocol::Http, (true, false)),
        (tcp, Protocol::Tcp, (false, true)),
        (fixture::out_auto(at, "t", "c"), Protocol::Auto, (true, true)),
    ] {
        put(&mut parts, &raw.name.clone(), &raw).unwrap();
        let listener = parts.assemble(1, &Snapshot::default()).outbound[&at.parse().unwrap()].clone();
        assert_eq!((listener.protocol, (listener.http.is_some(), listener.tcp.is_some())), (protocol, both));
    }
    let mut extra = fixture::rds("t");
    extra.http_filters.insert(0, HttpFilter { name: "envoy.filters.http.lua".into(), ..Default::default() });
    let edit = |change: fn(&mut Listener)| {
        let mut raw = fixture::out_http("10.0.0.1:80", "t");
        change(&mut raw);
        raw
    };
    for (raw, part) in [
        (
            Listener { filter_chains: vec![chain(&extra)], ..edit(|_| {}) },
            "filter `envoy.filters.http.lua` (no typed_config) is not supported",
        ),
        (
            Listener { filter_chains: vec![chain(&fixture::cluster("c"))], ..edit(|_| {}) },
            "envoy.config.cluster.v3.Cluster) is not supported",
        ),
        (edit(|raw| raw.address = Some(fixture::address("10.0.0.2:80"))), "does not fit the name"),
        (edit(|raw| raw.traffic_direction = 1), "traffic_direction"),
        (edit(|raw| raw.bind_to_port = Some(true)), "bind_to_port"),
        (edit(|raw| raw.default_filter_chain = Some(chain(&tcp_to("c")))), "spell neither"),
    ] {
        let text = refusal("out/10.0.0.1:80", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
    let edge = Listener { name: "edge/80".into(), bind_to_port: None, ..fixture::out_nowhere("0.0.0.0:80") };
    put(&mut Parts::default(), "edge/80", &edge).expect("TLS of names that nobody leads anywhere yet");
}

#[test]
fn tls_by_name_is_one_chain_a_name() {
    // Aim: chains for TLS stand alone, carry bytes, and take no name twice; nothing takes the rest.
    let good = || fixture::out_tls("10.0.0.1:443", &[("a.example", "c"), ("*.example", "bad_backend"), ("", "c")]);
    let mut parts = Parts::default();
    put(&mut parts, "out/10.0.0.1:443", &good()).unwrap();
    let first = parts.assemble(1, &Snapshot::default());
    let at = "10.0.0.1:443".parse().unwrap();
    assert!(first.outbound[&at].tls.is_some() && first.outbound[&at].tcp.is_none());
    let second = parts.assemble(2, &first);
    assert!(std::sync::Arc::ptr_eq(&first.outbound[&at], &second.outbound[&at]), "what did not change stays");
    put(&mut parts, "c", &fixture::cluster("c")).unwrap();
    assert!(!std::sync::Arc::ptr_eq(&first.outbound[&at], &parts.assemble(3, &second).outbound[&at]), "a cluster that comes is linked");
    let edit = |change: fn(&mut Listener)| {
        let mut raw = good();
        change(&mut raw);
        raw
    };
    for (raw, part) in [
        (edit(|raw| raw.default_filter_chain = Some(chain(&tcp_to("c")))), "default_filter_chain"),
        (edit(|raw| raw.filter_chains.push(chain(&tcp_to("c")))), "filter_chains[3].filter_chain_match: must be for tls"),
        (edit(|raw| raw.filter_chains.push(raw.filter_chains[0].clone())), "server_names[0]: `a.example` is listed twice"),
        (edit(|raw| raw.filter_chains.push(raw.filter_chains[2].clone())), "another chain takes every name"),
        (edit(|raw| raw.filter_chains[0].filters = chain(&fixture::rds("t")).filters), "filter_chains[0].filters: TLS passes untouched"),
        (
            edit(|raw| raw.filter_chains[0].filter_chain_match.as_mut().unwrap().application_protocols = vec!["h2".into()]),
            "filter_chain_match.application_protocols",
        ),
        (edit(|raw| raw.filter_chains[0].filter_chain_match.as_mut().unwrap().server_names = vec!["*".into()]), "server_names[0]"),
        (
            edit(|raw| raw.filter_chains[0].filter_chain_match.as_mut().unwrap().server_names = vec!["a*.example".into()]),
            "is not supported: an exact host",
        ),
    ] {
        let text = refusal("out/10.0.0.1:443", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn what_would_be_dropped_is_refused() {
    // Aim: an edge's codec, TLS details of either side, ports in host matching, facts that nobody reads.
    let edge = |filters: FilterChain| Listener {
        name: "edge/80".into(),
        bind_to_port: None,
        filter_chains: vec![filters],
        ..fixture::out_nowhere("0.0.0.0:80")
    };
    let http1 = HttpConnectionManager { codec_type: CodecType::Http1.into(), ..fixture::rds("t") };
    let text = refusal("edge/80", &edge(chain(&http1)));
    assert!(text.contains("filters[0].codec_type: must be AUTO at an edge"), "{text}");
    let mesh = |change: fn(&mut UpstreamTlsContext)| {
        let mut context = UpstreamTlsContext { common_tls_context: Some(fixture::mesh_tls()), sni: String::new() };
        change(&mut context);
        let entry = TransportSocketMatch {
            name: "mesh".into(),
            r#match: Some(fixture::mesh_mode()),
            transport_socket: Some(fixture::socket_of("tls", &context)),
        };
        Cluster { transport_socket_matches: vec![entry], ..fixture::cluster("c") }
    };
    assert!(put(&mut Parts::default(), "c", &mesh(|_| ())).is_ok());
    for (raw, part) in [
        (mesh(|context| context.sni = "a".into()), "transport_socket_matches[0].transport_socket.sni"),
        (mesh(|context| context.common_tls_context.get_or_insert_default().alpn_protocols = vec!["h2".into()]), "alpn_protocols: must be"),
        (
            mesh(|context| {
                let peers = CertificateValidationContext { match_typed_subject_alt_names: vec![Default::default()], ..Default::default() };
                context.common_tls_context.get_or_insert_default().validation_context_type =
                    Some(ValidationContextType::ValidationContext(peers));
            }),
            "match_typed_subject_alt_names: must be the one URI prefix",
        ),
        (
            Cluster { metadata: Some(fixture::facts(&[("color", "red")])), ..fixture::cluster("c") },
            "metadata[\"meshwright.dev\"].color: is not read here; known facts: namespace, service, protocol",
        ),
    ] {
        let text = refusal("c", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
    let by_port = RouteConfiguration { ignore_port_in_host_matching: false, ..table("t", vec![host(&["a"], vec![])]) };
    assert!(refusal("t", &by_port).contains("ignore_port_in_host_matching: must be true"));
}

#[test]
fn inbound_chains_fold_into_modes() {
    // Aim: Strict, Permissive and Disabled per port, protocols declared or not, the rule for the rest, labels.
    let disabled = |port| vec![inbound_chain(port, "raw_buffer", &[], false, chain(&tcp_to("inbound")))];
    let mut labelled = fixture::strict(Some(8080));
    labelled[0].metadata = Some(fixture::facts(&[("service", "shop/catalog")]));
    let chains = [labelled, fixture::permissive(Some(8081)), disabled(Some(8082)), fixture::strict(None)].concat();
    let mut parts = Parts::default();
    put(&mut parts, "inbound", &fixture::inbound(chains)).unwrap();
    let inbound = parts.assemble(1, &Snapshot::default()).inbound.unwrap();
    let seen = |port| (inbound.port(port).mode, inbound.port(port).protocol);
    assert_eq!(seen(8080), (MtlsMode::Strict, Protocol::Http));
    assert_eq!(seen(8081), (MtlsMode::Permissive, Protocol::Auto));
    assert_eq!(seen(8082), (MtlsMode::Disabled, Protocol::Tcp));
    assert_eq!(seen(1), (MtlsMode::Strict, Protocol::Http));
    assert_eq!((&*inbound.port(8080).service_namespace, &*inbound.port(8080).service), ("shop", "catalog"));
    for port in [8080, 8082] {
        let Action::Forward(forward) = &inbound.port(port).http.hosts[0].rules[0].action else { unreachable!() };
        let Target::Cluster(cluster) = &forward.backends[0].target else { unreachable!() };
        assert_eq!(cluster.kind, ClusterKind::Local, "the application is there without a cluster resource");
    }
}

#[test]
fn inbound_chains_that_spell_no_mode_are_refused() {
    // Aim: half a mode, a missing rule for the rest, one-sided TLS and foreign clusters never go live.
    let plain = |inner: FilterChain| inbound_chain(Some(80), "raw_buffer", &[], false, inner);
    let rest = || fixture::strict(None);
    let one_sided = {
        let context = proto::xds::tls::DownstreamTlsContext::default();
        let mut chain = inbound_chain(Some(80), "tls", &[], true, fixture::to_application());
        chain.transport_socket = Some(proto::xds::core::TransportSocket {
            name: "tls".into(),
            config_type: Some(proto::xds::core::transport_socket::ConfigType::TypedConfig(proto::xds::pack(&context))),
        });
        chain
    };
    let marked = inbound_chain(Some(80), "tls", &fixture::MESH_ALPN, true, fixture::to_application());
    for (chains, part) in [
        (fixture::strict(Some(80)), "every other port is missing"),
        ([rest(), vec![marked]].concat(), "chains of port 80 spell none"),
        ([rest(), vec![plain(fixture::to_application()), plain(fixture::to_application())]].concat(), "match the same"),
        ([rest(), vec![one_sided]].concat(), "require_client_certificate"),
        ([rest(), vec![plain(chain(&tcp_to("elsewhere")))]].concat(), "must be `inbound`"),
        ([rest(), vec![plain(chain(&fixture::telling(fixture::rds("t"))))]].concat(), "must be inline"),
    ] {
        let text = refusal("inbound", &fixture::inbound(chains));
        assert!(text.starts_with("Listener inbound: ") && text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn fields_of_a_newer_control_plane_are_ignored() {
    // Aim: version skew: unknown fields decode away, unknown types are refused, a malformed one is named.
    let mut parts = Parts::default();
    let mut any = proto::xds::pack(&fixture::cluster("c"));
    // Field 1000, varint 1.
    any.value.extend([0xc0, 0x3e, 1]);
    parts.put(proto::xds::CLUSTER, "c", "1", &any).unwrap();
    any.value.push(0xff);
    let malformed = parts.put(proto::xds::CLUSTER, "c", "2", &any).unwrap_err();
    assert!(malformed.to_string().contains("malformed"), "{malformed}");
    assert!(parts.put("type.googleapis.com/x.Y", "c", "2", &any).is_err());
    assert!(parts.put(proto::xds::ROUTE, "c", "2", &any).unwrap_err().why.contains("expected"));
    assert_eq!(parts.assemble(1, &Snapshot::default()).clusters.len(), 1, "the last good one stays");
    const { assert!(RESOURCES_MAX >= 10_000) };
}
