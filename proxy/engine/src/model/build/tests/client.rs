//! What is said of an edge's clients.

use std::sync::Arc;

use proto::mesh::{self, ClientAddress, ClientChain, ClientPolicy, ProxyProtocol};

use crate::fixture::{chain, clients, edge, put, rds, table, tcp_to, with_clients};
use crate::model::build::Parts;
use crate::model::{ClientRules, Snapshot};

fn hops(trusted_hops: u32) -> ClientAddress {
    ClientAddress { trusted_hops, ..ClientAddress::default() }
}

fn refusal(name: &str, policy: &ClientPolicy) -> String {
    let named = proto::xds::listener::FilterChain { name: "web".into(), ..chain(&rds("edge/80")) };
    let listener = with_clients(edge(80, vec![named]), policy);
    put(&mut Parts::default(), name, &listener).expect_err("it should be refused").to_string()
}

#[test]
fn what_cannot_hold_is_refused_by_name() {
    // Aim: each bound and each contradiction names its field; nothing of it is for sidecars.
    type Change = fn(&mut ClientPolicy);
    fn of_chain(policy: &mut ClientPolicy) -> &mut ClientChain {
        &mut policy.chains[0]
    }
    let cases: Vec<(Change, &str)> = vec![
        (|policy| of_chain(policy).chain = "other".into(), "chains[0].chain: `other` is no filter chain"),
        (|policy| policy.chains.push(policy.chains[0].clone()), "chains[1].chain: `web` is no filter chain"),
        (|policy| of_chain(policy).address = Some(hops(17)), "chains[0].address.trusted_hops: are more than 16"),
        (
            |policy| of_chain(policy).address.as_mut().unwrap().trusted_cidrs = vec!["10.0.0.0/8".into()],
            "trusted_cidrs: stand beside trusted_hops",
        ),
        (|policy| of_chain(policy).address = Some(ClientAddress { header: 7, ..hops(1) }), "header: unknown value 7"),
        (|policy| policy.proxy_protocol = Some(ProxyProtocol::default()), "proxy_protocol.trusted_cidrs: are missing"),
        (|policy| policy.proxy_protocol.as_mut().unwrap().trusted_cidrs = vec!["# all".into()], "trusted_cidrs[0]: `# all` is no range"),
        (
            |policy| of_chain(policy).timeouts.as_mut().unwrap().request_headers = Some(prost_types::Duration::default()),
            "timeouts.request_headers: is no time",
        ),
        (|policy| of_chain(policy).limits.as_mut().unwrap().headers = 101, "limits.headers: is more than 100"),
        (|policy| of_chain(policy).http2.as_mut().unwrap().connection_window = 0, "said together"),
        (|policy| of_chain(policy).http2.as_mut().unwrap().max_streams = 11, "would stop the others"),
        (|policy| of_chain(policy).http2.as_mut().unwrap().stream_window = 10, "are 65535 to"),
        (|policy| policy.http3 = Some(mesh::ClientHttp3::default()), "http3: stands beside a required proxy_protocol"),
        (
            |policy| {
                policy.proxy_protocol = None;
                policy.http3 = Some(mesh::ClientHttp3::default());
            },
            "ask for HTTP/3, where no chain ends TLS",
        ),
        (
            |policy| {
                policy.proxy_protocol = None;
                policy.http3 = Some(mesh::ClientHttp3 { alt_svc_max_age: Some(prost_types::Duration { seconds: 1, nanos: 1 }) });
            },
            "http3.alt_svc_max_age: is no whole number of seconds",
        ),
        (|policy| of_chain(policy).paths.as_mut().unwrap().escaped_slashes = 9, "escaped_slashes: unknown value 9"),
        (|policy| of_chain(policy).headers.as_mut().unwrap().remove = vec!["host".into()], "headers.remove[0]: `host`"),
        (|policy| of_chain(policy).headers.as_mut().unwrap().set[0].value = "\n".into(), "set[0].value: is no header"),
    ];
    for (change, part) in cases {
        let mut policy = clients("web", hops(1));
        change(&mut policy);
        let text = refusal("edge/80", &policy);
        assert!(text.contains(part), "{text} should hold {part}");
    }
    let out = with_clients(crate::fixture::out_http("10.0.0.1:80", "t"), &ClientPolicy::default());
    let text = put(&mut Parts::default(), "out/10.0.0.1:80", &out).expect_err("of no sidecar").to_string();
    assert!(text.contains("is not supported"), "{text}");
}

#[test]
fn counts_outlive_what_is_said_of_them() {
    // Aim: other bounds at the same port go on with the clients that are there; a chain of which nothing is said goes by the defaults.
    let mut parts = Parts::default();
    let named = |name: &str| proto::xds::listener::FilterChain { name: name.into(), ..chain(&tcp_to("c")) };
    let with = |max: u32| ClientPolicy {
        connections: Some(mesh::ClientConnections { max, ..mesh::ClientConnections::default() }),
        ..ClientPolicy::default()
    };
    put(&mut parts, "edge/80", &with_clients(edge(80, vec![named("a")]), &with(5))).unwrap();
    let first = parts.assemble(1, &Snapshot::default());
    let before = first.edges[&80].clients.admission.clone().unwrap();
    let kept = before.enter("192.0.2.1".parse().unwrap(), crate::Moment::default()).unwrap();
    let raw = with_clients(edge(80, vec![named("a")]), &with(1));
    parts.put(proto::xds::LISTENER, "edge/80", "2", &proto::xds::pack(&raw)).unwrap();
    let second = parts.assemble(2, &first);
    let after = second.edges[&80].clients.admission.clone().unwrap();
    assert_eq!((after.open(), after.bounds().max), (1, 1));
    assert!(after.enter("192.0.2.2".parse().unwrap(), crate::Moment::default()).is_err());
    drop(kept);
    assert_eq!(after.open(), 0);
    let usual = ClientRules::default();
    let rules: &Arc<ClientRules> = second.edges[&80].clients.on("a");
    assert_eq!((rules.timeouts, rules.limits, rules.lives), (usual.timeouts, usual.limits, usual.lives));
}

#[test]
fn what_is_said_holds_on_its_chain() {
    // Aim: the message's values, as the proxy goes by them.
    let mut parts = Parts::default();
    let named = proto::xds::listener::FilterChain { name: "web".into(), ..chain(&rds("edge/80")) };
    put(&mut parts, "edge/80", &with_clients(edge(80, vec![named]), &clients("web", hops(2)))).unwrap();
    put(&mut parts, "edge/80", &table("edge/80", vec![])).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let policy = &snapshot.edges[&80].clients;
    let rules = policy.only();
    assert!(Arc::ptr_eq(rules, policy.on("web")) && &*rules.policy == "shop/edge");
    assert_eq!((rules.http2.max_streams, rules.http2.windows, rules.limits.uri_bytes), (10, Some((70_000, 700_000)), 200));
    assert_eq!(rules.headers.hsts.as_ref().unwrap(), "max-age=60");
    assert!(policy.proxy.as_ref().is_some_and(|proxy| proxy.required));
    assert_eq!(policy.admission.as_ref().unwrap().bounds().per_address, 10);
}
