//! What a port declares that it speaks.

use proto::words::Protocol;

/// Words of `appProtocol` (GEP-1911, Kubernetes' own and Istio's) and of port names up to their first `-`.
const WORDS: [(&str, Protocol); 29] = [
    ("http", Protocol::Http),
    ("http1", Protocol::Http1),
    ("http/1.1", Protocol::Http1),
    ("ws", Protocol::Http1),
    ("kubernetes.io/ws", Protocol::Http1),
    ("http2", Protocol::Http2),
    ("h2c", Protocol::Http2),
    ("kubernetes.io/h2c", Protocol::Http2),
    ("grpc", Protocol::Http2),
    ("grpc-web", Protocol::Http),
    ("tcp", Protocol::Tcp),
    ("tls", Protocol::Tcp),
    ("https", Protocol::Tcp),
    ("wss", Protocol::Tcp),
    ("kubernetes.io/wss", Protocol::Tcp),
    ("mysql", Protocol::Tcp),
    ("postgres", Protocol::Tcp),
    ("postgresql", Protocol::Tcp),
    ("redis", Protocol::Tcp),
    ("mongo", Protocol::Tcp),
    ("mongodb", Protocol::Tcp),
    ("mssql", Protocol::Tcp),
    ("kafka", Protocol::Tcp),
    ("amqp", Protocol::Tcp),
    ("nats", Protocol::Tcp),
    ("memcached", Protocol::Tcp),
    ("smtp", Protocol::Tcp),
    ("ldap", Protocol::Tcp),
    ("ssh", Protocol::Tcp),
];

fn word(text: &str) -> Option<Protocol> {
    WORDS.iter().find(|(word, _)| *word == text).map(|(_, protocol)| *protocol)
}

/// `appProtocol` where it is a word we know, else the port's name, else undeclared.
pub(super) fn declared(app_protocol: Option<&str>, name: &str) -> Protocol {
    let by_name = || word(name).or_else(|| word(name.split('-').next().unwrap_or_default()));
    app_protocol.and_then(|text| word(&text.to_lowercase())).or_else(by_name).unwrap_or(Protocol::Auto)
}

/// Whether an HTTPRoute may lead to a port with this `appProtocol`: none, or one that is HTTP without TLS.
pub(super) fn routable(app_protocol: Option<&str>) -> bool {
    app_protocol.is_none_or(|text| word(&text.to_lowercase()).is_some_and(Protocol::is_http))
}

/// Whether a port says that it speaks HTTP inside TLS, which a BackendTLSPolicy opens.
pub(super) fn encrypted(app_protocol: Option<&str>) -> bool {
    app_protocol.is_some_and(|text| matches!(text.to_lowercase().as_str(), "https" | "wss" | "kubernetes.io/wss"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_understood() {
        // Aim: appProtocol first, then the port's name by prefix; what is unknown is watched, not guessed.
        for (app_protocol, name, wanted) in [
            (None, "http", Protocol::Http),
            (None, "http-web", Protocol::Http),
            (None, "https", Protocol::Tcp),
            (None, "grpc-api", Protocol::Http2),
            (None, "grpc-web", Protocol::Http),
            (None, "httpd", Protocol::Auto),
            (None, "", Protocol::Auto),
            (None, "mysql", Protocol::Tcp),
            (Some("kubernetes.io/h2c"), "http", Protocol::Http2),
            (Some("kubernetes.io/ws"), "", Protocol::Http1),
            (Some("HTTP"), "tcp", Protocol::Http),
            (Some("acme.io/quark"), "", Protocol::Auto),
        ] {
            assert_eq!(declared(app_protocol, name), wanted, "{app_protocol:?} {name}");
        }
        assert!(routable(None) && routable(Some("h2c")));
        assert!(!routable(Some("kubernetes.io/wss")) && !routable(Some("acme.io/quark")));
        assert!(encrypted(Some("HTTPS")) && encrypted(Some("kubernetes.io/wss")));
        assert!(!encrypted(None) && !encrypted(Some("http")) && !encrypted(Some("tls")));
    }
}
