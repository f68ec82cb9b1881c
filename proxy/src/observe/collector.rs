//! The way to an OTLP/gRPC collector: through the proxy's own network, so that redirection leaves it alone.

use std::io;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::lookup_host;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::io::{Network, Socket};

/// Port where none is given (OTLP specification, "OTLP/gRPC default port").
const PORT: u16 = 4317;
/// Longest wait for name and connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Addresses of the collector's name that are tried.
const ADDRESSES_MAX: usize = 4;

/// An endpoint that spans cannot be sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the OTLP endpoint `{endpoint}` is not usable: {why}; give http://HOST:PORT of an OTLP/gRPC collector")]
pub(super) struct BadEndpoint {
    endpoint: String,
    why: &'static str,
}

/// A channel that connects at its first use and again after each loss.
pub(super) fn channel(endpoint: &str, network: &Network, timeout: Duration) -> Result<Channel, BadEndpoint> {
    let uri = parse(endpoint)?;
    let bad = |_| BadEndpoint { endpoint: endpoint.to_owned(), why: "it is no URL" };
    let target = Endpoint::from_shared(uri.to_string()).map_err(bad)?.timeout(timeout);
    let network = network.clone();
    Ok(target.connect_with_connector_lazy(service_fn(move |uri: Uri| {
        let network = network.clone();
        async move {
            let opened = tokio::time::timeout(CONNECT_MAX, open(&network, &uri));
            opened.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s"))?.map(TokioIo::new)
        }
    })))
}

/// With a scheme and a port; only plaintext collectors are spoken to.
fn parse(endpoint: &str) -> Result<Uri, BadEndpoint> {
    let bad = |why| BadEndpoint { endpoint: endpoint.to_owned(), why };
    let text = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let uri: Uri = text.parse().map_err(|_| bad("it is no URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(bad("TLS to collectors is not spoken")),
        _ => return Err(bad("its scheme is not http")),
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("it names no host"))?;
    let port = uri.port_u16().unwrap_or(PORT);
    format!("http://{host}:{port}").parse().map_err(|_| bad("it is no URL"))
}

async fn open(network: &Network, uri: &Uri) -> io::Result<Socket> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(PORT);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse() {
        return network.connect(std::net::SocketAddr::new(ip, port)).await;
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in lookup_host((bare, port)).await?.take(ADDRESSES_MAX) {
        match network.connect(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: every usual spelling leads to one form; what cannot work is refused with the reason, never spoken to in another way.
    #[test]
    fn endpoints_are_read_or_refused() {
        for (given, wanted) in [
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317/"),
            ("http://collector.telemetry", "http://collector.telemetry:4317/"),
            ("10.77.0.1:4317", "http://10.77.0.1:4317/"),
            ("http://[fd00::1]:4317/v1/traces", "http://[fd00::1]:4317/"),
        ] {
            assert_eq!(parse(given).unwrap().to_string(), wanted);
        }
        for (given, why) in [("https://c:4317", "TLS"), ("ftp://c", "scheme"), ("http://", "URL"), ("", "URL"), ("http://a b", "URL")] {
            assert!(parse(given).unwrap_err().why.contains(why), "{given}: {:?}", parse(given));
        }
    }
}
