//! XBackend: a host outside the mesh that Gateways' routes lead to (Gateway API, experimental channel, v1alpha1).

use super::backend_tls::BackendTlsPolicy;
use super::door::{Cursor, Fields};
use super::key::Kind;
use super::listener::ObjectRef;

/// The zone of a cluster's own names, which are Services' (the type's own text forbids it).
const CLUSTER_ZONE: &str = ".cluster.local";

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct ExternalBackend {
    /// Its host, in lower case.
    pub hostname: String,
    /// The port there.
    pub port: u16,
    /// What it speaks; `None`: as the route has it.
    pub protocol: Option<BackendProtocol>,
    /// What it proves by TLS; `None`: it is met in plaintext.
    pub tls: Option<BackendTlsPolicy>,
    /// What it is shown there, in place of what the Gateway shows to whoever asks (`ClientAndServer`).
    pub certificate: Option<ObjectRef>,
    /// Line of its spec.
    pub line: u32,
}

/// See [`ExternalBackend::protocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendProtocol {
    /// Bytes.
    Tcp,
    /// HTTP of whatever version.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, in TLS or without.
    Http2,
}

impl ExternalBackend {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let line = fields.at().line();
        fields.need("type").and_then(|at| at.word(&[("ExternalHostname", ())]));
        let port = fields.need("port").and_then(|at| read_port(&at));
        let hostname = fields.need("externalHostname").and_then(|at| read_host(&at));
        let words = [
            ("TCP", Some(BackendProtocol::Tcp)),
            ("HTTP", Some(BackendProtocol::Http)),
            ("HTTP11", Some(BackendProtocol::Http1)),
            ("HTTP2", Some(BackendProtocol::Http2)),
            ("H2C", Some(BackendProtocol::Http2)),
            ("GRPC", Some(BackendProtocol::Http2)),
            ("MCP", None),
        ];
        let said = fields.get("protocol").and_then(|at| Some((at.text()?, at.word(&words)?, at)));
        if let Some((_, None, at)) = &said {
            at.error("MCP is not supported by this version", "write HTTP, which carries it");
        }
        let tls = fields.get("tls");
        fields.done();
        let hostname = hostname?;
        let (tls, certificate) = tls.map(|at| read_tls(&at, &hostname, line)).unwrap_or_default();
        if let Some((word, ..)) = said.as_ref().filter(|(word, ..)| word == "H2C" && tls.is_some())
            && let Some((.., at)) = &said
        {
            at.error(format!("{word} is HTTP/2 without TLS"), "write HTTP2, or remove `tls`");
        }
        let protocol = said.and_then(|(_, protocol, _)| protocol);
        Some(Self { hostname, port: port?, protocol, tls, certificate, line })
    }
}

fn read_port(at: &Cursor<'_>) -> Option<u16> {
    let mut port = at.fields();
    // The name is a label.
    let _ = port.get("name").and_then(|at| at.text());
    let number = port.need("port").and_then(|at| at.port());
    port.done();
    number
}

fn read_host(at: &Cursor<'_>) -> Option<String> {
    let mut named = at.fields();
    let hostname = named.need("hostname");
    named.done();
    let at = hostname?;
    let host = super::route::read_hostname(&at)?;
    if host.contains('*') || host.ends_with(CLUSTER_ZONE) || host.parse::<std::net::IpAddr>().is_ok() {
        at.error(format!("`{host}` is no name of a host outside the cluster"), "write a whole DNS name; a Service is a backendRef itself");
        return None;
    }
    Some(host)
}

/// What it proves, and what it is shown.
fn read_tls(at: &Cursor<'_>, hostname: &str, line: u32) -> (Option<BackendTlsPolicy>, Option<ObjectRef>) {
    let mut tls = at.fields();
    let modes = [("None", "None"), ("ServerOnly", "ServerOnly"), ("ClientAndServer", "ClientAndServer")];
    let mode = tls.need("mode").and_then(|at| at.word(&modes));
    let certificate = tls.get("clientCertificateRef").and_then(|at| ObjectRef::read(&at, Some(Kind::Secret)));
    let validation = tls.get("validation");
    tls.done();
    let Some(mode) = mode else { return (None, None) };
    // The type's own rule (CEL of its definition), which files have nobody to judge.
    if (mode == "ClientAndServer") != certificate.is_some() {
        at.error(
            "clientCertificateRef stands beside `mode: ClientAndServer`, and only there",
            "name the Secret, or write `mode: ServerOnly`: the Gateway's tls.backend.clientCertificateRef is shown to whoever asks for one",
        );
    }
    let proves = match (mode, validation) {
        ("None", None) => None,
        ("None", Some(at)) => {
            at.error("nobody is verified without TLS", "remove it, or write `mode: ServerOnly`");
            None
        }
        (_, Some(at)) => BackendTlsPolicy::validation(&at, Vec::new()),
        (_, None) => Some(BackendTlsPolicy {
            targets: Vec::new(),
            cas: Vec::new(),
            well_known: Some("System".to_owned()),
            hostname: hostname.to_owned(),
            names: Vec::new(),
            line,
        }),
    };
    (proves, certificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::Spec;

    fn read(spec: &str) -> (Option<ExternalBackend>, String) {
        let text = format!(
            "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackend\nmetadata: {{name: api, namespace: shop}}\nspec: {{{spec}}}\n"
        );
        let candidate = parse("f.yaml", &text).candidates.remove(0);
        let told = candidate.problems.iter().map(ToString::to_string).collect();
        let object = candidate.object.map(|object| match &object.spec {
            Spec::ExternalBackend(spec) => (**spec).clone(),
            other => panic!("{other:?}"),
        });
        (object, told)
    }

    const HOST: &str = "type: ExternalHostname, port: {port: 443}, externalHostname: {hostname: API.example}";

    #[test]
    fn a_backend_outside_is_read() {
        // Aim: host, port, each protocol, and TLS: without validation the host's own name below the machine's roots; what it is shown.
        let (plain, told) = read(HOST);
        let plain = plain.unwrap_or_else(|| panic!("{told}"));
        assert_eq!((plain.hostname.as_str(), plain.port, plain.protocol, plain.tls.is_none()), ("api.example", 443, None, true));
        for (word, protocol) in [
            ("TCP", BackendProtocol::Tcp),
            ("HTTP", BackendProtocol::Http),
            ("HTTP11", BackendProtocol::Http1),
            ("HTTP2", BackendProtocol::Http2),
            ("H2C", BackendProtocol::Http2),
        ] {
            assert_eq!(read(&format!("{HOST}, protocol: {word}")).0.unwrap().protocol, Some(protocol));
        }
        let tls = |spec: &str| read(&format!("{HOST}, tls: {{{spec}}}")).0.unwrap().tls;
        assert_eq!(tls("mode: None"), None);
        let own = tls("mode: ServerOnly").unwrap();
        assert_eq!((own.hostname.as_str(), own.well_known.as_deref()), ("api.example", Some("System")));
        let mutual = read(&format!("{HOST}, tls: {{mode: ClientAndServer, clientCertificateRef: {{name: me}}}}")).0.unwrap();
        assert_eq!((mutual.certificate.map(|to| (to.kind, to.name)), mutual.tls), (Some(("Secret".into(), "me".into())), Some(own)));
        let other =
            tls("mode: ServerOnly, validation: {hostname: b.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}")
                .unwrap();
        assert_eq!((other.hostname.as_str(), other.cas.len()), ("b.example", 1));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        // Aim: other types, hosts that are none or the cluster's, protocols and certificates that this version lacks, each by name.
        for (spec, wanted) in [
            (HOST.replace("type: ExternalHostname", "type: EndpointSelector"), "unknown value `EndpointSelector`"),
            (HOST.replace("API.example", "web.shop.svc.cluster.local"), "no name of a host outside"),
            (HOST.replace("API.example", "'*.example'"), "no name of a host outside"),
            (HOST.replace("port: {port: 443}", "port: {name: a}"), "`port` is missing"),
            (format!("{HOST}, protocol: MCP"), "MCP is not supported"),
            (format!("{HOST}, protocol: H2C, tls: {{mode: ServerOnly}}"), "without TLS"),
            (format!("{HOST}, tls: {{mode: None, validation: {{hostname: a.b, wellKnownCACertificates: System}}}}"), "nobody is verified"),
            (format!("{HOST}, tls: {{mode: ClientAndServer}}"), "and only there"),
            (format!("{HOST}, tls: {{mode: ServerOnly, clientCertificateRef: {{name: me}}}}"), "and only there"),
            (format!("{HOST}, tls: {{mode: None, clientCertificateRef: {{name: me}}}}"), "and only there"),
        ] {
            let (object, told) = read(&spec);
            assert!(object.is_none() && told.contains(wanted), "{spec}: {told}");
        }
    }
}
