//! The way to a collector: through the proxy's own network, so that redirection leaves it alone. Which one is said by a URL.

#![allow(clippy::disallowed_methods, reason = "a door: names of collectors are the host's")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use engine::model::{Named, Roots};
use http::Uri;
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use crate::io::{Network, one_of};
use crate::tls::{Carries, Tls};

/// Longest wait for name and connection, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Addresses of the collector's name that are tried.
const ADDRESSES_MAX: usize = 4;

/// An endpoint that nothing can be sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{endpoint}` is not usable: {why}; give http://HOST:PORT")]
pub(super) struct BadEndpoint {
    endpoint: String,
    pub(super) why: &'static str,
}

/// Where a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CollectorPlace {
    pub(super) secure: bool,
    /// `HOST:PORT`, as a request names it.
    pub(super) authority: String,
    host: String,
    port: u16,
    /// Path and query, without the last slash; empty for the root.
    pub(super) path: String,
}

impl CollectorPlace {
    /// Reads `http://HOST:PORT/PATH`; without a scheme it is plaintext, without a port the protocol's usual one.
    pub(super) fn read(endpoint: &str, usual_port: u16) -> Result<Self, BadEndpoint> {
        let bad = |why| BadEndpoint { endpoint: endpoint.to_owned(), why };
        let text = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
        let uri: Uri = text.parse().map_err(|_| bad("it is no URL"))?;
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(bad("its scheme is not http")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("it names no host"))?;
        let port = uri.port_u16().unwrap_or(usual_port);
        let path = uri.path_and_query().map_or("", |path| path.as_str()).trim_end_matches('/').to_owned();
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { secure, authority: format!("{host}:{port}"), host: bare, port, path })
    }

    /// The same as a URL without a path.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.authority)
    }
}

/// A connection, whatever protects it.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// How collectors are reached. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) network: Network,
    /// For those that prove a name, below the roots that this machine believes.
    pub(super) tls: Option<Arc<Tls>>,
}

impl Way {
    /// A connection that is to carry this. Dropping the future gives it up.
    pub(super) async fn open(&self, place: &CollectorPlace, carries: Carries) -> io::Result<Box<dyn Duplex>> {
        let opened = timeout(CONNECT_MAX, self.open_unbounded(place, carries));
        opened.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} s", CONNECT_MAX.as_secs())))?
    }

    async fn open_unbounded(&self, place: &CollectorPlace, carries: Carries) -> io::Result<Box<dyn Duplex>> {
        let addresses: Vec<SocketAddr> = match place.host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, place.port)],
            Err(_) => lookup_host((place.host.as_str(), place.port)).await?.take(ADDRESSES_MAX).collect(),
        };
        one_of(&addresses, Instant::now() + CONNECT_MAX, |address| self.open_at(place, address, carries)).await
    }

    async fn open_at(&self, place: &CollectorPlace, address: SocketAddr, carries: Carries) -> io::Result<Box<dyn Duplex>> {
        let socket = self.network.connect(address).await?;
        if !place.secure {
            return Ok(Box::new(socket));
        }
        let named = Named::new(&place.host, Roots::System).map(Arc::new);
        let (tls, named) = self.tls.as_ref().zip(named).ok_or_else(|| io::Error::other("its host is no name that can be proved"))?;
        let stream = tls.connect_named(&named, address, carries, socket).await;
        Ok(Box::new(stream.map_err(|failure| io::Error::other(failure.to_string()))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: every usual spelling leads to one form; what cannot work is refused with the reason, never spoken to in another way.
    #[test]
    fn endpoints_are_read_or_refused() {
        for (given, origin, path) in [
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317", ""),
            ("http://collector.telemetry", "http://collector.telemetry:4317", ""),
            ("10.77.0.1:4317", "http://10.77.0.1:4317", ""),
            ("http://[fd00::1]:4317/v1/", "http://[fd00::1]:4317", "/v1"),
            ("https://c:443/api/v2/spans?key=a", "https://c:443", "/api/v2/spans?key=a"),
        ] {
            let place = CollectorPlace::read(given, 4317).unwrap();
            assert_eq!((place.origin().as_str(), place.path.as_str()), (origin, path), "{given}");
        }
        for (given, why) in [("ftp://c", "scheme"), ("http://", "URL"), ("", "URL"), ("http://a b", "URL")] {
            let refused = CollectorPlace::read(given, 4317).unwrap_err();
            assert!(refused.why.contains(why), "{given}: {refused}");
        }
    }
}
