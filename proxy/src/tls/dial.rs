//! Connections to the control plane: gRPC over our own TLS and sockets.

#![allow(clippy::disallowed_methods, reason = "a door: names of the control plane and of collectors are the host's")]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::net::lookup_host;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::io::{Network, Socket, one_of};
use crate::tls::ControlTls;

/// Longest wait for name, connection and handshake, over all addresses of the name.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Pings on a silent connection: half-dead ones are the commonest cause of stale proxies.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A ping unanswered for this long ends the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of the control plane's name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Where the control plane listens: `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddress {
    /// Name or IP address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Not a `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form HOST:PORT (an IPv6 address stands in brackets)")]
pub struct NotAnAddress(String);

impl FromStr for ControlAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = || NotAnAddress(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() || host.contains([':', '/', '[', ']']) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// Why the control plane was not reached.
#[derive(Debug, thiserror::Error)]
#[error("the control plane at {target} is not reached: {cause}")]
pub struct DialError {
    target: ControlAddress,
    cause: String,
}

/// Opens channels to the control plane.
#[derive(Clone, Debug)]
pub struct Dialer {
    network: Network,
    target: ControlAddress,
    tls: ControlTls,
}

impl Dialer {
    /// Dials `target` through `network`.
    pub fn new(network: Network, target: ControlAddress, tls: ControlTls) -> Self {
        Self { network, target, tls }
    }

    /// Where it dials.
    pub fn target(&self) -> &ControlAddress {
        &self.target
    }

    /// How it proves both ends.
    pub fn tls(&self) -> &ControlTls {
        &self.tls
    }

    /// A channel that is connected now, with the proxy's leaf as client certificate or without.
    ///
    /// # Errors
    /// The control plane does not answer or does not prove itself.
    pub async fn connect(&self, with_leaf: bool) -> Result<Channel, DialError> {
        let endpoint = self.endpoint().map_err(|error| self.failed(&error))?;
        endpoint.connect_with_connector(self.connector(with_leaf)).await.map_err(|error| self.failed(&error))
    }

    /// An uplink that connects at its first use, with the proxy's leaf, and again by itself after each loss.
    ///
    /// # Errors
    /// The target is no URI authority.
    pub fn uplink(&self) -> Result<Uplink, DialError> {
        Ok(Uplink { current: Arc::new(Mutex::new(self.channel()?)), dialer: Some(self.clone()) })
    }

    fn channel(&self) -> Result<Channel, DialError> {
        let endpoint = self.endpoint().map_err(|error| self.failed(&error))?;
        Ok(endpoint.connect_with_connector_lazy(self.connector(true)))
    }

    fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.target))?;
        Ok(endpoint
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .buffer_size(16))
    }

    fn connector(
        &self,
        with_leaf: bool,
    ) -> impl tower::Service<Uri, Response = TokioIo<TlsStream<Socket>>, Error = io::Error, Future: Send> + Send + 'static {
        let dialer = self.clone();
        service_fn(move |_: Uri| {
            let dialer = dialer.clone();
            async move {
                let opened = tokio::time::timeout(CONNECT_MAX, dialer.open(with_leaf));
                let stream = opened.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s"))??;
                Ok(TokioIo::new(stream))
            }
        })
    }

    async fn open(&self, with_leaf: bool) -> io::Result<TlsStream<Socket>> {
        let until = Instant::now() + CONNECT_MAX;
        let addresses = self.resolve().await?;
        one_of(&addresses[..addresses.len().min(ADDRESSES_MAX)], until, |address| self.open_at(address, with_leaf)).await
    }

    /// The address must prove itself, too: it may be somebody else's by now.
    async fn open_at(&self, address: SocketAddr, with_leaf: bool) -> io::Result<TlsStream<Socket>> {
        let name = ServerName::try_from(self.target.host.clone()).map_err(io::Error::other)?;
        let socket = self.network.connect(address).await?;
        TlsConnector::from(self.tls.config(with_leaf)).connect(name, socket).await
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = self.target.host.parse() {
            return Ok(vec![SocketAddr::new(ip, self.target.port)]);
        }
        Ok(lookup_host((self.target.host.as_str(), self.target.port)).await?.collect())
    }

    fn failed(&self, error: &dyn std::error::Error) -> DialError {
        // tonic says "transport error" and keeps the reason below.
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        DialError { target: self.target.clone(), cause: cause.to_string() }
    }
}

/// The channel that long streams share. A connection is as good as the leaf it was opened with, so it can be opened anew. Clones share it.
#[derive(Clone, Debug)]
pub struct Uplink {
    current: Arc<Mutex<Channel>>,
    dialer: Option<Dialer>,
}

impl Uplink {
    /// The channel of now.
    pub fn channel(&self) -> Channel {
        self.current.lock().clone()
    }

    /// What is asked for next goes over a connection of its own, with the leaf of then: the present one's was refused.
    pub fn open_anew(&self) {
        if let Some(Ok(channel)) = self.dialer.as_ref().map(Dialer::channel) {
            *self.current.lock() = channel;
        }
    }
}

/// A channel of somebody else's making, which is what it is.
impl From<Channel> for Uplink {
    fn from(channel: Channel) -> Self {
        Self { current: Arc::new(Mutex::new(channel)), dialer: None }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use rustls::server::ServerConfig;
    use rustls::time_provider::TimeProvider;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::io::{VirtualListening, VirtualNetwork, pipe};
    use crate::tls::provider;
    use crate::tls::testing::{Authority, FixedTime};

    /// Each address by its last byte: 1 is silent, 2 is a stranger's, 3 refuses, any other is the control plane.
    struct Hosts {
        own: Arc<ServerConfig>,
        strange: Arc<ServerConfig>,
    }

    #[async_trait]
    impl VirtualNetwork for Hosts {
        async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
            let number = if let SocketAddr::V4(address) = address { address.ip().octets()[3] } else { 0 };
            let tls = match number {
                1 => return std::future::pending().await,
                2 => &self.strange,
                3 => return Err(io::ErrorKind::ConnectionRefused.into()),
                _ => &self.own,
            };
            let (near, far) = pipe();
            let accepted = TlsAcceptor::from(Arc::clone(tls)).accept(far);
            tokio::spawn(async move {
                let _held = accepted.await;
                std::future::pending::<()>().await;
            });
            Ok(near)
        }

        async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Aim: addresses of the control plane's name that are silent, refuse, or are somebody else's do not hide the one behind them, and all of
    /// them together take no longer than one.
    #[tokio::test(start_paused = true)]
    async fn a_dead_address_hides_no_other() {
        let (authority, stranger) = (Authority::new("root"), Authority::new("stranger"));
        let serves = |authority: &Authority| {
            let identity = "spiffe://cluster.local/ns/meshwright-system/sa/control";
            let (chain, key) = authority.shaped(identity, |_| {});
            let builder = ServerConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions().unwrap();
            let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
            config.alpn_protocols = vec![b"h2".to_vec()];
            Arc::new(config)
        };
        let time: Arc<dyn TimeProvider> = FixedTime::now();
        let tls = ControlTls::new(authority.roots(), &Arc::default(), &Arc::default(), &time).unwrap();
        let network = Network::Virtual(Arc::new(Hosts { own: serves(&authority), strange: serves(&stranger) }));
        let dialer = Dialer::new(network, "control.example:15012".parse().unwrap(), tls);
        for (numbers, reached) in [
            (&[9][..], true),
            (&[1, 9], true),
            (&[2, 9], true),
            (&[3, 2, 1, 1, 1, 1, 2, 9], true),
            (&[1, 1], false),
            (&[2], false),
            (&[], false),
        ] {
            let began = Instant::now();
            let addresses: Vec<_> = numbers.iter().map(|number| SocketAddr::from(([10, 0, 0, *number], 15012))).collect();
            let opened = one_of(&addresses, began + CONNECT_MAX, |address| dialer.open_at(address, false)).await;
            assert_eq!(opened.is_ok(), reached, "{numbers:?}: {:?}", opened.err());
            assert!(began.elapsed() <= CONNECT_MAX + Duration::from_millis(10), "{numbers:?}: {:?}", began.elapsed());
        }
    }

    /// Aim: names and both address families are read and printed alike; nonsense is refused with the form.
    #[test]
    fn targets_round_trip() {
        for text in ["10.77.0.1:15012", "[fd00::1]:15012", "control.meshwright-system:15012"] {
            assert_eq!(text.parse::<ControlAddress>().unwrap().to_string(), text);
        }
        for bad in ["", "control", "control:", ":1", "control:99999", "http://control:1", "fd00::1"] {
            assert!(bad.parse::<ControlAddress>().unwrap_err().to_string().contains("HOST:PORT"), "{bad}");
        }
    }
}
