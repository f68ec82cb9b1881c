use super::*;
use crate::source::parse;
use crate::world::{Candidate, Spec};

fn candidate(namespace: &str, spec: &str) -> Candidate {
    let text = format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: ClientPolicy\nmetadata: {{name: c, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    );
    parse("f.yaml", &text).candidates.remove(0)
}

fn good(spec: &str) -> ClientPolicy {
    let candidate = candidate("meshwright-system", spec);
    assert!(candidate.problems.is_empty(), "{spec}: {:?}", candidate.problems);
    let Some(Spec::ClientPolicy(read)) = candidate.object.map(|object| object.spec.clone()) else { panic!("{spec}") };
    *read
}

fn wrong(namespace: &str, spec: &str) -> String {
    let candidate = candidate(namespace, spec);
    assert!(candidate.object.is_none(), "{spec} is taken");
    candidate.problems.iter().map(|problem| format!("{}: {}; ", problem.field, problem.message)).collect()
}

#[test]
fn every_field_is_read() {
    // Aim: each word of the kind keeps its value, and says that it was said.
    let read = good(
        "clientAddress: {trustedHops: 2, header: Forwarded}, \
         proxyProtocol: {mode: Optional, trustedCidrs: [10.0.0.0/8], timeout: 1s}, \
         connections: {max: 10, perAddress: 2, newPerSecond: 3, idle: 1m, maxAge: 1h, maxRequests: 7, readinessGrace: 5s, goAwayGrace: 1m}, \
         timeouts: {tlsHandshake: 1s, requestHeaders: 2s, bodyIdle: 3s, writeStall: 4s, minBytesPerSecond: 5}, \
         limits: {headerBytes: 2048, headers: 20, uriBytes: 100, bodyBytes: 1000}, \
         http1: {enabled: true, allow10: false, keepHeaderCase: false}, \
         http2: {enabled: true, maxStreams: 10, streamWindow: 65536, connectionWindow: 655360, resetsPerMinute: 9, pingInterval: 0s}, \
         http3: {enabled: true, altSvcMaxAge: 1h}, path: {escapedSlashes: Decode, underscoreHeaders: Keep}, \
         headers: {early: {set: [{name: X-A, value: b}], remove: [X-C]}, requestId: KeepTrusted, hsts: 24h, forwardClientCert: Drop}, \
         tls: {profile: Strict13, sessionTickets: {rotate: 12h}, ocspStapling: IfGiven}",
    );
    assert_eq!(read.said().len(), 40);
    assert_eq!((read.http3, read.alt_svc_max_age), (Some(true), Some(Duration::from_secs(3600))));
    let address = read.address.clone().unwrap();
    assert_eq!((address.trusted_hops, address.header), (2, Header::Forwarded.into()));
    assert!(!read.proxy.as_ref().unwrap().required);
    assert_eq!((read.max, read.max_requests, read.idle), (Some(10), Some(7), Some(Duration::from_secs(60))));
    assert_eq!((read.readiness_grace, read.go_away_grace), (Some(Duration::from_secs(5)), Some(Duration::from_secs(60))));
    assert_eq!((read.plain_master_secret, read.ticket_hours, read.ping_interval), (Some(false), Some(12), Some(Duration::ZERO)));
    assert_eq!((read.body_bytes, read.uri_bytes, read.tls12), (Some(1000), Some(100), Some(false)));
    assert_eq!(read.early_set.as_ref().unwrap()[0].name, "x-a");
    let mut other = ClientPolicy::default();
    read.said().into_iter().for_each(|(field, _)| other.take(&read, field));
    assert_eq!(other.said(), read.said(), "what is said can be taken over");
    assert!(good("targetRefs: [{kind: Gateway, name: edge}]").said().is_empty());
    assert_eq!(good("proxyProtocol: {}").proxy, Some(ProxyProtocol::default()), "off");
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    // Aim: each bound, each contradiction, each field without effect is told by name.
    let root = "meshwright-system";
    for (spec, told) in [
        ("clientAddress: {trustedHops: 17}", "out of range"),
        ("clientAddress: {trustedHops: 1, trustedCidrs: [10.0.0.0/8]}", "two ways"),
        ("clientAddress: {trustedCidrs: [shop]}", "is no range"),
        ("clientAddress: {trustedCidrs: [\"10.0.0.1 # us\"]}", "is no range"),
        ("clientAddress: {header: XRealIp}", "unknown value"),
        ("proxyProtocol: {mode: Optional}", "could choose its address"),
        ("proxyProtocol: {mode: Require, timeout: 0s}", "no such time"),
        ("connections: {max: 0}", "out of range"),
        ("connections: {idle: 0s}", "no such time"),
        ("connections: {readinessGrace: 2h}", "no such time"),
        ("connections: {goAwayGrace: 2h}", "no such time"),
        ("http2: {pingInterval: 10ms}", "no such time"),
        ("tls: {profile: Compatible, minVersion: \"1.3\"}", "about TLS 1.2"),
        ("tls: {sessionTickets: {rotate: 90m}}", "not turned by that"),
        ("tls: {sessionTickets: {rotate: 169h}}", "not turned by that"),
        ("timeouts: {tlsHandshake: 0s}", "no such time"),
        ("timeouts: {requestHeaders: 2h}", "no such time"),
        ("limits: {headers: 101}", "out of range"),
        ("limits: {headerBytes: 65537}", "out of range"),
        ("limits: {bodyBytes: -1}", "out of range"),
        ("http2: {maxStreams: 200, streamWindow: 65536, connectionWindow: 6553600}", "would stop the others"),
        ("http2: {streamWindow: 65536}", "one choice"),
        ("http1: {enabled: false}, http2: {enabled: false}", "no version"),
        ("http3: {enabled: true}, proxyProtocol: {mode: Require}", "no balancer says by UDP"),
        ("http3: {altSvcMaxAge: 10ms}", "no such time"),
        ("acme: {email: a@b.example}", "directory"),
        ("acme: {directory: \"http://ca.example/dir\"}", "no address of a directory"),
        ("acme: {directory: \"https://me:secret@ca.example/dir\"}", "no address of a directory"),
        ("acme: {directory: \"https://ca.example/dir\", challenge: Dns01}", "needs somebody who writes DNS"),
        ("acme: {directory: \"https://ca.example/dir\", dns01: {webhook: {backendRef: {name: a, port: 1}}}}", "another one is used"),
        ("acme: {directory: \"https://ca.example/dir\", challenge: Dns01, dns01: {webhook: {}}}", "backendRef"),
        ("acme: {directory: \"https://ca.example/dir\", challenge: Dns01, dns01: {webhook: {backendRef: {name: a}}}}", "needs a port"),
        (
            "acme: {directory: \"https://ca.example/dir\", challenge: Dns01, dns01: {webhook: {backendRef: {name: a, port: 1}, timeout: 3m}}}",
            "no such time",
        ),
        (
            "acme: {directory: \"https://ca.example/dir\", challenge: Dns01, dns01: {webhook: {backendRef: {name: a, port: 1}}, resolvers: [dns.example]}}",
            "no address of a resolver",
        ),
        ("acme: {directory: \"https://ca.example/dir\", email: nobody}", "no address of a mailbox"),
        ("acme: {directory: \"https://ca.example/dir\", renewAtPercent: 99}", "neither at once nor at its end"),
        ("acme: {directory: \"https://ca.example/dir\", keyType: Dsa}", "unknown value"),
        ("tls: {profile: Strict13, minVersion: \"1.2\"}", "has no TLS 1.2"),
        ("tls: {minVersion: \"1.1\"}", "unknown value"),
        ("headers: {early: {set: [{name: host, value: a}]}}", "not a policy's"),
        ("headers: {early: {remove: [x-forwarded-for]}}", "not a policy's"),
        ("path: {escapedSlashes: Maybe}", "unknown value"),
        ("limit: {}", "unknown field"),
    ] {
        let found = wrong(root, spec);
        assert!(found.contains(told), "{spec}: {found}");
    }
    for spec in ["http1: {allow10: false}", "targetRefs: [{kind: HTTPRoute, name: r}], limits: {bodyBytes: 1, headers: 1}"] {
        assert!(wrong("shop", spec).contains("only limits.bodyBytes"), "{spec}");
    }
    let of_routes = candidate("shop", "limits: {bodyBytes: 1}");
    assert!(of_routes.problems.is_empty(), "{:?}", of_routes.problems);
}
