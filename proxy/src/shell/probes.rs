//! What whoever starts a sidecar says about its application's probes: those that a kubelet had before an injector led them to 15021.

use std::str::FromStr;
use std::time::Duration;

use engine::model::AppProbe;
use http::{HeaderName, HeaderValue};
use serde::Deserialize;

/// Probes at most; a pod has three for each of its containers.
pub const PROBES_MAX: usize = 256;
/// Shortest wait for the application: who asked with less patience has gone by then.
const WAIT_MIN: Duration = Duration::from_secs(10);
/// Longest: a connection to the health port lives no longer than a little more.
const WAIT_MAX: Duration = Duration::from_secs(25);

/// A probe of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The application's port.
    pub port: u16,
    /// What it is asked there.
    pub question: AppQuestion,
    /// How long the application may take.
    pub wait: Duration,
}

/// See [`Probe::question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppQuestion {
    /// A connection is a good answer.
    Tcp,
    /// `GET`.
    Http {
        /// Path and query.
        path: String,
        /// By TLS; like a kubelet, nobody looks at the certificate.
        tls: bool,
        /// Headers that the asker must bear, and the application then sees.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// The health protocol of gRPC, without TLS.
    Grpc {
        /// The service; empty: the whole server.
        service: String,
    },
}

impl From<&AppProbe> for Probe {
    /// The control plane's word.
    fn from(AppProbe { port, path }: &AppProbe) -> Self {
        let http = |path: &String| AppQuestion::Http { path: path.clone(), tls: false, headers: Vec::new() };
        Self { port: *port, question: path.as_ref().map_or(AppQuestion::Tcp, http), wait: WAIT_MIN }
    }
}

/// The value of `--app-probes`: a JSON list of probes in the kubelet's shape, ports as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppProbes(pub Vec<Probe>);

impl FromStr for AppProbes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = r#"give a JSON list such as [{"httpGet": {"port": 8080, "path": "/healthz"}}]"#;
        let raw: Vec<RawProbe> = serde_json::from_str(text).map_err(|error| format!("{error}; {example}"))?;
        if raw.len() > PROBES_MAX {
            return Err(format!("{} probes, at most {PROBES_MAX} are asked", raw.len()));
        }
        Ok(Self(raw.into_iter().map(Probe::try_from).collect::<Result<_, _>>()?))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawProbe {
    http_get: Option<RawHttp>,
    tcp_socket: Option<RawTcp>,
    grpc: Option<RawGrpc>,
    #[serde(default)]
    timeout_seconds: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawHttp {
    port: u16,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<RawHeader>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcp {
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrpc {
    port: u16,
    #[serde(default)]
    service: Option<String>,
}

impl TryFrom<RawProbe> for Probe {
    type Error = String;

    fn try_from(raw: RawProbe) -> Result<Self, String> {
        let wait = Duration::from_secs(raw.timeout_seconds.into()).clamp(WAIT_MIN, WAIT_MAX);
        let (port, question) = match (raw.http_get, raw.tcp_socket, raw.grpc) {
            (Some(get), None, None) => (get.port, AppQuestion::try_from(get)?),
            (None, Some(tcp), None) => (tcp.port, AppQuestion::Tcp),
            (None, None, Some(grpc)) => (grpc.port, AppQuestion::Grpc { service: grpc.service.unwrap_or_default() }),
            _ => return Err("a probe is exactly one of httpGet, tcpSocket and grpc".to_owned()),
        };
        if port == 0 {
            return Err("a probe's port is a number from 1 to 65535".to_owned());
        }
        Ok(Self { port, question, wait })
    }
}

impl TryFrom<RawHttp> for AppQuestion {
    type Error = String;

    fn try_from(raw: RawHttp) -> Result<Self, String> {
        let tls = match raw.scheme.as_str() {
            "" | "HTTP" => false,
            "HTTPS" => true,
            other => return Err(format!("scheme `{other}` is none of HTTP and HTTPS")),
        };
        let path = if raw.path.is_empty() { "/".to_owned() } else { raw.path };
        if !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err() {
            return Err(format!("path `{path}` is none that can be asked for; it begins with / and is percent-encoded"));
        }
        let header = |RawHeader { name, value }: RawHeader| {
            let read = (name.parse::<HeaderName>().ok(), HeaderValue::from_bytes(value.as_bytes()).ok());
            if let (Some(name), Some(value)) = read { Ok((name, value)) } else { Err(format!("header `{name}: {value}` cannot be sent")) }
        };
        Ok(Self::Http { path, tls, headers: raw.http_headers.into_iter().map(header).collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the kubelet's words are understood as the kubelet does, and what makes no sense is refused with what would.
    #[test]
    fn probes_are_read_or_refused() {
        let read = |text: &str| text.parse::<AppProbes>().map(|probes| probes.0);
        let http = |path: &str, tls| AppQuestion::Http { path: path.to_owned(), tls, headers: Vec::new() };
        let probe = |port, question, secs| Probe { port, question, wait: Duration::from_secs(secs) };
        for (text, wanted) in [
            ("[]", vec![]),
            (r#"[{"httpGet": {"port": 80}}]"#, vec![probe(80, http("/", false), 10)]),
            (
                r#"[{"httpGet": {"port": 443, "path": "/a?b", "scheme": "HTTPS"}, "timeoutSeconds": 15}]"#,
                vec![probe(443, http("/a?b", true), 15)],
            ),
            (r#"[{"tcpSocket": {"port": 5432}, "timeoutSeconds": 60}]"#, vec![probe(5432, AppQuestion::Tcp, 25)]),
            (r#"[{"grpc": {"port": 9000, "service": null}}]"#, vec![probe(9000, AppQuestion::Grpc { service: String::new() }, 10)]),
        ] {
            assert_eq!(read(text).unwrap(), wanted, "{text}");
        }
        for (text, word) in [
            ("", "give a JSON list"),
            (r#"[{"httpGet": {"port": "http"}}]"#, "give a JSON list"),
            (r#"[{"exec": {"command": ["true"]}}]"#, "exec"),
            (r#"[{"tcpSocket": {"port": 1}, "grpc": {"port": 1}}]"#, "exactly one"),
            (r#"[{"tcpSocket": {"port": 0}}]"#, "1 to 65535"),
            (r#"[{"httpGet": {"port": 80, "path": "/a b"}}]"#, "percent-encoded"),
            (r#"[{"httpGet": {"port": 80, "path": "a"}}]"#, "begins with /"),
            (r#"[{"httpGet": {"port": 80, "scheme": "GOPHER"}}]"#, "GOPHER"),
            (r#"[{"httpGet": {"port": 80, "httpHeaders": [{"name": "a b"}]}}]"#, "cannot be sent"),
            (&format!("[{}]", [r#"{"tcpSocket": {"port": 1}}"#; PROBES_MAX + 1].join(",")), "at most 256"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
