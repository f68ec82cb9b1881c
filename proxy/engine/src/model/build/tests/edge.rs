//! An edge's listeners, secrets and clusters that are met by TLS of their own.

use std::sync::Arc;

use proto::xds::cluster::Cluster;
use proto::xds::cluster::cluster::TransportSocketMatch;
use proto::xds::core::TransportSocket;
use proto::xds::listener::{Filter, FilterChain, Listener, filter};
use proto::xds::tls::tls_parameters::TlsProtocol;
use proto::xds::tls::{CommonTlsContext, DownstreamTlsContext, Secret, TlsParameters, UpstreamTlsContext, secret};

use crate::fixture::{self, by_name, chain, edge, edge_tls, put, rds, tcp_to};
use crate::model::build::Parts;
use crate::model::{Chain, Port, Secret as Content, Serves, Snapshot, TlsVersion};

const CERTIFICATE: &str = "tls/shop/a";

fn refusal<M: prost::Message + prost::Name>(name: &str, message: &M) -> String {
    put(&mut Parts::default(), name, message).expect_err("it should be refused").to_string()
}

fn https(name: &str, names: &[&str]) -> FilterChain {
    by_name(name, names, Some(&edge_tls(&[CERTIFICATE], None, &["h2", "http/1.1"])), chain(&rds(&format!("edge/443/{name}"))))
}

fn chain_of(snapshot: &Snapshot, name: &str) -> Arc<Chain> {
    let Port::Tls(chains) = &snapshot.edges[&443].port else { panic!("no TLS") };
    Arc::clone(chains.lookup(Some(name)).unwrap())
}

/// A chain that asks first who may.
fn asking(mut chain: FilterChain) -> FilterChain {
    let policy = proto::mesh::AuthorizationPolicy { name: "shop/p".into(), ..proto::mesh::AuthorizationPolicy::default() };
    let asked = proto::mesh::Authorization { policies: vec![policy], dry_run: false };
    let config_type = Some(filter::ConfigType::TypedConfig(proto::xds::pack(&asked)));
    chain.filters.insert(0, Filter { name: "asks".into(), config_type });
    chain
}

#[test]
fn a_chain_of_bytes_may_ask_who_comes() {
    // Aim: policies stand before what carries bytes; the others at the port ask nobody.
    let bytes = |name: &str, host: &str| by_name(name, &[host], None, chain(&tcp_to("c")));
    let mut parts = Parts::default();
    put(&mut parts, "edge/443", &edge(443, vec![asking(bytes("a", "a.example")), bytes("b", "b.example")])).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let asked = ["a.example", "b.example"].map(|name| chain_of(&snapshot, name).policies.is_some());
    assert_eq!(asked, [true, false]);
}

#[test]
fn what_an_edge_cannot_tell_apart_is_refused() {
    // Aim: one kind of thing a port, a name once, a chain's name once; requests need TLS that is ended, bytes no ALPN.
    let ended = edge_tls(&[CERTIFICATE], None, &["h2"]);
    let with = |change: fn(&mut DownstreamTlsContext)| {
        let mut context = edge_tls(&[CERTIFICATE], Some("ca/x"), &["h2"]);
        change(&mut context);
        edge(443, vec![by_name("a", &[], Some(&context), chain(&rds("t")))])
    };
    let common = |change: fn(&mut CommonTlsContext)| {
        let mut context = edge_tls(&[CERTIFICATE], None, &["h2"]);
        change(context.common_tls_context.as_mut().unwrap());
        edge(443, vec![by_name("a", &[], Some(&context), chain(&rds("t")))])
    };
    let cases: Vec<(Listener, &str)> = vec![
        (edge(443, vec![chain(&rds("t")), chain(&tcp_to("c"))]), "are several in plaintext"),
        (edge(443, vec![https("a", &[]), chain(&rds("t"))]), "filter_chains[1].filter_chain_match: must be for tls"),
        (edge(443, vec![https("a", &["x.example"]), https("b", &["x.example"])]), "is listed twice"),
        (edge(443, vec![https("a", &["x.example"]), https("a", &["y.example"])]), "name: is missing, or another chain's"),
        (edge(443, vec![https("", &["x.example"])]), "name: is missing, or another chain's"),
        (edge(443, vec![by_name("a", &[], None, chain(&rds("t")))]), "TLS passes untouched here"),
        (edge(443, vec![by_name("a", &[], Some(&ended), chain(&tcp_to("c")))]), "alpn_protocols: must be none"),
        (edge(443, vec![asking(https("a", &["x.example"]))]), "filters[0]"),
        (edge(443, vec![chain(&fixture::telling_client(rds("t")))]), "in plaintext nobody shows a certificate"),
        (
            edge(443, vec![by_name("a", &[], Some(&ended), chain(&fixture::telling_client(rds("t"))))]),
            "nobody is asked for a certificate here",
        ),
        (edge(443, vec![by_name("a", &[], Some(&ended), chain(&fixture::telling(rds("t"))))]), "must be subject, dns and uri"),
        (with(|context| context.common_tls_context = None), "common_tls_context: is missing"),
        (common(|common| common.tls_certificate_sds_secret_configs.clear()), "are 0, not 1 to 64"),
        (common(|common| common.tls_certificate_sds_secret_configs[0].name = "default".into()), "is the mesh's own"),
        (common(|common| common.alpn_protocols = vec!["h3".into()]), "`h3` is not one of h2, http/1.1"),
        (
            common(|common| {
                common.tls_params = Some(TlsParameters { tls_minimum_protocol_version: TlsProtocol::TlSv10.into(), ..Default::default() });
            }),
            "tls_minimum_protocol_version: is no longer spoken",
        ),
        (
            common(|common| {
                common.tls_params = Some(TlsParameters {
                    tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
                    tls_maximum_protocol_version: TlsProtocol::TlSv12.into(),
                });
            }),
            "is older than the minimum",
        ),
        (
            with(|context| context.common_tls_context.as_mut().unwrap().validation_context_type = None),
            "require_client_certificate: needs a validation context",
        ),
    ];
    for (raw, part) in cases {
        let text = refusal("edge/443", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn chains_are_found_by_name_and_keep_their_terms() {
    // Aim: exact, longest wildcard, any; terms that say the same are the same, across listeners and epochs; a chain whose table is missing is there.
    let mut parts = Parts::default();
    let pass = by_name("pass", &["*.b.example"], None, chain(&tcp_to("c")));
    let listener = edge(443, vec![https("a", &["a.example"]), https("wild", &["*.example"]), pass, https("any", &[])]);
    put(&mut parts, "edge/443", &listener).unwrap();
    put(&mut parts, "edge/443/a", &fixture::table("edge/443/a", vec![])).unwrap();
    let first = parts.assemble(1, &Snapshot::default());
    let Port::Tls(chains) = &first.edges[&443].port else { panic!("no TLS") };
    let name = |asked: Option<&str>| chains.lookup(asked).map(|chain| chain.name.to_string());
    for (asked, found) in
        [("a.example", "a"), ("x.example", "wild"), ("x.a.example", "wild"), ("x.b.example", "pass"), ("example", "any"), ("x", "any")]
    {
        assert_eq!(name(Some(asked)).as_deref(), Some(found), "{asked}");
    }
    assert_eq!(name(None).as_deref(), Some("any"));
    let one = chain_of(&first, "a.example");
    assert!(matches!(&one.serves, Serves::Http(Some(table)) if &*table.name == "edge/443/a"));
    assert!(matches!(chain_of(&first, "x.example").serves, Serves::Http(None)));
    let terms = one.terms.as_ref().unwrap();
    assert_eq!(terms.versions, (TlsVersion::V12, TlsVersion::V13));
    assert!(Arc::ptr_eq(terms, chain_of(&first, "x.example").terms.as_ref().unwrap()));
    // Nothing changed: the very same port.
    let second = parts.assemble(2, &first);
    assert!(Arc::ptr_eq(&first.edges[&443], &second.edges[&443]));
    // One chain more: the terms stay what they are, and what was made of them.
    let more = Listener { filter_chains: [listener.filter_chains, vec![https("new", &["new.example"])]].concat(), ..edge(443, vec![]) };
    put(&mut parts, "edge/443", &more).unwrap();
    let third = parts.assemble(3, &second);
    assert!(Arc::ptr_eq(terms, chain_of(&third, "new.example").terms.as_ref().unwrap()));
    // A table that comes changes its chain alone.
    put(&mut parts, "edge/443/wild", &fixture::table("edge/443/wild", vec![])).unwrap();
    let fourth = parts.assemble(4, &third);
    assert!(Arc::ptr_eq(&chain_of(&third, "a.example"), &chain_of(&fourth, "a.example")));
    assert!(matches!(chain_of(&fourth, "x.example").serves, Serves::Http(Some(_))));
}

#[test]
fn secrets_are_live_at_once_and_leave_with_the_swap() {
    // Aim: a certificate shows in a snapshot that is already live, whichever came first; what is taken away is held until the next epoch.
    let mut parts = Parts::default();
    put(&mut parts, "edge/443", &edge(443, vec![https("a", &["a.example"])])).unwrap();
    let first = parts.assemble(1, &Snapshot::default());
    let terms = Arc::clone(chain_of(&first, "a.example").terms.as_ref().unwrap());
    let holds = || matches!(&terms.certificates[0].load().secret, Some(Content::Certificate(own)) if own.ocsp == b"good");
    assert!(!holds() && terms.stamp() == 0);
    put(&mut parts, CERTIFICATE, &fixture::certificate(CERTIFICATE, 1)).unwrap();
    let came = terms.stamp();
    assert!(holds() && came > 0);
    // The same version again changes nothing, another one does, a bad one leaves the good one.
    put(&mut parts, CERTIFICATE, &fixture::certificate(CERTIFICATE, 1)).unwrap();
    assert_eq!(terms.stamp(), came);
    put(&mut parts, CERTIFICATE, &fixture::certificate(CERTIFICATE, 2)).unwrap();
    let renewed = terms.stamp();
    assert!(renewed > came);
    let bad = Secret { name: CERTIFICATE.into(), r#type: None };
    assert!(put(&mut parts, CERTIFICATE, &bad).unwrap_err().to_string().contains("type: is missing"));
    assert_eq!(terms.stamp(), renewed);
    parts.remove(proto::xds::SECRET, CERTIFICATE);
    assert!(holds());
    parts.assemble(2, &first);
    assert!(!holds() && terms.stamp() > renewed);
}

#[test]
fn secrets_that_cannot_be_used_are_refused_by_field() {
    // Aim: each kind says what is wrong with it, and nothing of a key is repeated.
    let certificate = |change: fn(&mut proto::xds::tls::TlsCertificate)| {
        let mut raw = fixture::certificate("tls/a/b", 1);
        if let Some(secret::Type::TlsCertificate(inner)) = &mut raw.r#type {
            change(inner);
        }
        raw
    };
    let mut short = fixture::ticket_keys("tls/a/b", 1);
    if let Some(secret::Type::SessionTicketKeys(inner)) = &mut short.r#type {
        inner.keys[1] = inner.keys[1].clone();
        inner.keys.truncate(0);
    }
    for (raw, part) in [
        (certificate(|raw| raw.certificate_chain = None), "tls_certificate.certificate_chain: is missing"),
        (certificate(|raw| raw.private_key = raw.certificate_chain.clone()), "private_key: holds no private key"),
        (certificate(|raw| raw.certificate_chain = raw.private_key.clone()), "certificate_chain: holds no certificate"),
        (short, "session_ticket_keys.keys: are 0, not 1 to 16"),
        (Secret { name: "other".into(), ..fixture::certificate("x", 1) }, "name: is `other`"),
    ] {
        let text = refusal("tls/a/b", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
}

fn met_by(socket: TransportSocket) -> Cluster {
    let rest = TransportSocketMatch { name: "tls".into(), r#match: None, transport_socket: Some(socket) };
    let mesh =
        TransportSocketMatch { name: "mesh".into(), r#match: Some(fixture::mesh_mode()), transport_socket: Some(fixture::upstream_tls()) };
    Cluster { transport_socket_matches: vec![mesh, rest], ..fixture::cluster("shop/c:443") }
}

#[test]
fn what_a_backend_proves_is_one_value_while_it_stays() {
    // Aim: a cluster that comes anew has the very same terms, so that its connections are kept; other terms are another value.
    let mut parts = Parts::default();
    let tls = |parts: &Parts| parts.assemble(1, &Snapshot::default()).clusters["shop/c:443"].tls.clone().unwrap();
    put(&mut parts, "shop/c:443", &met_by(fixture::backend_tls())).unwrap();
    let first = tls(&parts);
    assert_eq!((first.name(), first.proves().len()), ("a.b.example", 2));
    assert_eq!(first.shows().unwrap().name(), "tls/shop/own");
    let slower = Cluster { connect_timeout: Some(prost_types::Duration { seconds: 5, nanos: 0 }), ..met_by(fixture::backend_tls()) };
    put(&mut parts, "shop/c:443", &slower).unwrap();
    assert!(Arc::ptr_eq(&first, &tls(&parts)));
    put(&mut parts, "shop/c:443", &met_by(fixture::plaintext())).unwrap();
    assert!(parts.assemble(1, &Snapshot::default()).clusters["shop/c:443"].tls.is_none());
}

#[test]
fn a_backend_without_a_name_or_somebody_to_believe_is_refused() {
    // Aim: TLS that would prove nothing never goes live, and fields that nobody reads are refused.
    let edit = |change: fn(&mut UpstreamTlsContext)| {
        let Some(proto::xds::core::transport_socket::ConfigType::TypedConfig(any)) = fixture::backend_tls().config_type else { panic!() };
        let mut context: UpstreamTlsContext = proto::xds::unpack(&any).unwrap();
        change(&mut context);
        met_by(fixture::socket_of("tls", &context))
    };
    for (raw, part) in [
        (edit(|context| context.sni = String::new()), "sni: `` is not a host"),
        (edit(|context| context.common_tls_context = None), "common_tls_context: is missing"),
        (edit(|context| context.common_tls_context.as_mut().unwrap().alpn_protocols = vec!["h2".into()]), "alpn_protocols"),
        (
            edit(|context| context.common_tls_context.as_mut().unwrap().validation_context_type = None),
            "validation_context: is missing: whom to believe",
        ),
    ] {
        let text = refusal("shop/c:443", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn datagrams_have_a_port_of_their_own() {
    // Aim: weights and idle arrive; what is no such listener is refused by field.
    let mut parts = Parts::default();
    put(&mut parts, "edge/53/udp", &fixture::edge_datagrams(53, &[("a", 2), ("b", 1)])).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let served = &snapshot.datagrams[&53];
    assert_eq!(served.forward.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(served.forward.policy.idle_timeout, Some(std::time::Duration::from_secs(30)));
    assert!(Arc::ptr_eq(served, &parts.assemble(2, &snapshot).datagrams[&53]));
    let good = || fixture::edge_datagrams(53, &[("a", 1)]);
    for (raw, part) in [
        (Listener { address: Some(fixture::address("0.0.0.0:53")), ..good() }, "protocol: must be UDP"),
        (Listener { udp_listener_config: None, ..good() }, "udp_listener_config: is missing"),
        (Listener { listener_filters: Vec::new(), ..good() }, "listener_filters: must be one, a UdpProxy"),
        (Listener { filter_chains: vec![chain(&tcp_to("c"))], ..good() }, "filter_chains"),
    ] {
        let text = refusal("edge/53/udp", &raw);
        assert!(text.contains(part), "{text} should hold {part}");
    }
}

#[test]
fn challenges_are_answered_at_once_and_over_at_once() {
    // Aim: what an authority asks for is answered by a snapshot that is already live, until it is taken away, without a swap; what its name does
    // not promise is refused, and so is one too many; nothing of it is a certificate of a listener.
    use proto::xds::core::{DataSource, data_source::Specifier};
    use proto::xds::tls::GenericSecret;
    let answer = |name: &str, text: &str| {
        let secret = Some(DataSource { specifier: Some(Specifier::InlineString(text.into())) });
        Secret { name: name.into(), r#type: Some(secret::Type::GenericSecret(GenericSecret { secret })) }
    };
    let mut parts = Parts::default();
    let live = parts.assemble(1, &Snapshot::default());
    put(&mut parts, "acme/http/a.example/t", &answer("acme/http/a.example/t", "t.hash")).unwrap();
    assert_eq!(live.challenges.answer("a.example", "/.well-known/acme-challenge/t").as_deref(), Some(&b"t.hash"[..]));
    put(&mut parts, "acme/tls/a.example", &fixture::certificate("acme/tls/a.example", 1)).unwrap();
    assert!(live.challenges.certificate("a.example").is_some() && live.challenges.certificate("b.example").is_none());
    for (name, raw, part) in [
        ("acme/http/a.example/u", fixture::certificate("acme/http/a.example/u", 1), "type: must be generic_secret"),
        ("acme/tls/b", answer("acme/tls/b", "x"), "type: must be tls_certificate"),
        ("acme/http/a.example/v", answer("acme/http/a.example/v", ""), "has 0 bytes, not 1 to 1024"),
        ("tls/a/b", answer("tls/a/b", "x"), "generic_secret: is not supported"),
    ] {
        let text = put(&mut parts, name, &raw).unwrap_err().to_string();
        assert!(text.contains(part), "{text} should hold {part}");
    }
    parts.remove(proto::xds::SECRET, "acme/http/a.example/t");
    assert!(live.challenges.answer("a.example", "/.well-known/acme-challenge/t").is_none() && live.challenges.are_pending());
    for number in 1..crate::model::CHALLENGES_MAX {
        let name = format!("acme/http/a.example/{number}");
        put(&mut parts, &name, &answer(&name, "x")).unwrap();
    }
    assert!(
        put(&mut parts, "acme/http/a.example/t", &answer("acme/http/a.example/t", "x"))
            .unwrap_err()
            .to_string()
            .contains("are pending already")
    );
    parts.remove(proto::xds::SECRET, "acme/tls/a.example");
    assert!(live.challenges.certificate("a.example").is_none());
}
