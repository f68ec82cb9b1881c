//! Mesh TLS: TLS 1.3, mutual, both ends proved by SPIFFE identity against one trust bundle.
//!
//! [`Tls::connect`] opens a connection to an endpoint that must prove one identity; [`Tls::accept`] takes one from any peer of our
//! trust domain or of one that it federates with. A [`Bond`] cuts it when its peer is revoked. Credential and trust bundle are read from cells, so a rotation needs no new configuration and cuts nothing: new
//! handshakes use the new leaf, and [`Tls::generation`] tells pools which connections were opened with an older one.
//! [`Tls::connect_named`] opens plain TLS to a server outside the mesh, which proves a name.

mod bonds;
mod control;
mod credential;
pub mod dial;
mod edge;
mod named;
mod peer;
mod proves;
mod sessions;
#[doc(hidden)]
pub mod testing;
mod trust;
mod unproved;
mod verify;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use engine::failure::{Failure, Reason};
use engine::model::Named;
use parking_lot::Mutex;
use proto::identity::Identity;
use proto::names::{ALPN_H1, ALPN_H2, ALPN_TCP};
use rustls::client::{ResolvesClientCert, TicketRequest};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ResolvesServerCert, ServerConfig};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, CommonState, HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use bonds::{Bond, Bonds, bound};
pub use control::{ControlTls, ControlTlsError};
pub use credential::{Credential, CredentialCell, CredentialError};
pub use edge::{Alert, EdgeAccepted, EdgeTls, Proof, Shown};
#[cfg(feature = "http3")]
pub use edge::{QuicDoor, QuicMet, QuicUnproved};
pub use peer::{Peer, PeerError, read_peer};
pub use trust::{TrustCell, TrustError};
#[cfg(test)]
pub(crate) use unproved::Anybody;
pub use unproved::unproved;

use crate::ground::limits::TLS_UNSENT_BYTES_MAX;
use crate::io::Clock;
use credential::CredentialResolver;
use named::NamedTls;
use sessions::{BoundedTickets, Sessions};
use verify::{ClientVerifier, ServerVerifier, Verify};

/// Client configurations kept, one per identity called. A proxy that calls more than this many identities starts afresh.
const IDENTITIES_MAX: usize = 1024;

/// Tickets a server gives a client that does not say how many it wants: those of other makes take one per connection.
const TICKETS_UNASKED: usize = 1;

/// The one crypto provider: aws-lc, X25519MLKEM768 first, AES-128-GCM preferred (half the key schedule of AES-256, same hardware path).
pub fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// Wall time for rustls, from our own clock.
#[derive(Debug)]
pub struct WallTime(pub Clock);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.unix()))
    }
}

/// Whether a chain (leaf first) ends in one of `roots` at that time; for a server's use, which every leaf of the mesh has.
///
/// # Errors
/// What is wrong with it.
pub fn verify_chain(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'static>], now: UnixTime) -> Result<(), rustls::Error> {
    let [leaf, intermediates @ ..] = chain else { return Err(rustls::Error::NoCertificatesPresented) };
    let anchors = trust::anchors(roots).map_err(|error| rustls::Error::General(error.to_string()))?;
    verify::chain(leaf, intermediates, &anchors, now, verify::PeerRole::Server, provider().signature_verification_algorithms)
}

/// What a mesh connection carries; said by ALPN (contract, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    /// HTTP/1.1: `mw-h1`.
    H1,
    /// HTTP/2: `mw-h2`.
    H2,
    /// Opaque bytes: `mw-tcp`.
    Tcp,
}

impl Carries {
    /// The protocol name on the wire.
    pub const fn alpn(self) -> &'static str {
        match self {
            Self::H1 => ALPN_H1,
            Self::H2 => ALPN_H2,
            Self::Tcp => ALPN_TCP,
        }
    }
}

/// Facts of a finished handshake, for access log and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// IANA name of the cipher suite.
    pub cipher: &'static str,
    /// IANA name of the key exchange group.
    pub group: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// What it carries is TLS once more, which the peer's application ends: no proxy of the mesh answers what is asked.
    pub holds_tls: bool,
}

impl TlsFacts {
    /// Whether requests on it are answered by a proxy of the mesh.
    pub const fn is_hop(&self) -> bool {
        !self.holds_tls
    }
}

/// An open connection to a peer that proved the identity asked for.
#[derive(Debug)]
pub struct TlsConnected<S> {
    /// The encrypted stream.
    pub stream: tokio_rustls::client::TlsStream<S>,
    /// Who answered.
    pub peer: Arc<Peer>,
    /// How.
    pub facts: TlsFacts,
}

/// An accepted connection of a peer that proved an identity that we believe.
#[derive(Debug)]
pub struct TlsAccepted<S> {
    /// The encrypted stream.
    pub stream: tokio_rustls::server::TlsStream<S>,
    /// Mesh ALPN; `None` for a foreign one (or none), see `alpn`.
    pub carries: Option<Carries>,
    /// The protocol agreed on: one of [`Carries::alpn`], `h2` or `http/1.1`; `None` if the client offered nothing.
    pub alpn: Option<&'static str>,
    /// Who called.
    pub peer: Arc<Peer>,
    /// How.
    pub facts: TlsFacts,
}

/// Opens and accepts mesh connections. One per process, shared by all workers.
pub struct Tls {
    credentials: Arc<CredentialCell>,
    trust: Arc<TrustCell>,
    verify: Arc<Verify>,
    resolver: Arc<dyn ResolvesClientCert>,
    sessions: Arc<Sessions>,
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
    clients: Mutex<HashMap<Arc<Identity>, ClientConfigs>>,
    server: Arc<ServerConfig>,
    named: NamedTls,
    edge: EdgeTls,
}

/// One identity's configurations. They share verifier, resolver and session store, else rustls would not resume.
#[derive(Clone)]
struct ClientConfigs {
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
    /// The same, where tickets run low.
    tcp_low: Arc<ClientConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

impl Tls {
    /// Builds both sides over the cells that the identity agent and the control plane's bundle fill.
    ///
    /// # Errors
    /// The crypto library refuses TLS 1.3 or has no randomness: a broken build or machine.
    pub fn new(credentials: Arc<CredentialCell>, trust: Arc<TrustCell>, time: Arc<dyn TimeProvider>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        let verify = Arc::new(Verify::new(Arc::clone(&credentials), Arc::clone(&trust), provider.signature_verification_algorithms));
        let resolver = Arc::new(CredentialResolver(Arc::clone(&credentials)));
        let sessions = Arc::new(Sessions::new(Arc::clone(&credentials), Arc::clone(&trust), Arc::clone(&time)));
        let mut server = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&time))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(ClientVerifier(Arc::clone(&verify))))
            .with_cert_resolver(Arc::clone(&resolver) as Arc<dyn ResolvesServerCert>);
        server.alpn_protocols = SERVER_ALPN.iter().map(|name| name.as_bytes().to_vec()).collect();
        server.send_tls13_tickets = TICKETS_UNASKED;
        server.max_tls13_tickets = sessions::TICKETS_PER_SERVER_MAX;
        server.ticketer = Arc::new(BoundedTickets::new(Arc::clone(&credentials))?);
        let named = NamedTls::new(Arc::clone(&provider), Arc::clone(&time));
        let edge = EdgeTls::new(Arc::clone(&provider), Arc::clone(&time));
        let (clients, server) = (Mutex::default(), Arc::new(server));
        Ok(Self { credentials, trust, verify, resolver, sessions, provider, time, clients, server, named, edge })
    }

    /// What ends TLS of clients from outside.
    pub const fn edge(&self) -> &EdgeTls {
        &self.edge
    }

    /// Counts credentials: grows by one whenever a new leaf is published. 0 before the first.
    pub fn generation(&self) -> u64 {
        self.credentials.generation()
    }

    /// The credential in use, if there is one yet.
    pub fn credential(&self) -> Option<Arc<Credential>> {
        self.credentials.current()
    }

    /// Wakes whenever what is believed changes.
    pub fn beliefs(&self) -> watch::Receiver<u64> {
        self.trust.changes()
    }

    /// Whether a peer that has proved itself is still believed: its trust domain is, and nobody has revoked it.
    ///
    /// # Errors
    /// Why not.
    pub fn stands(&self, peer: &Peer) -> Result<(), PeerError> {
        match self.time.current_time() {
            Some(now) => self.verify.stands(peer, now),
            None => Ok(()),
        }
    }

    /// Who shows this chain, leaf first, if a handshake with it would be believed now, on either side.
    ///
    /// # Errors
    /// Why it would not.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<Peer>, rustls::Error> {
        let [leaf, intermediates @ ..] = chain else { return Err(rustls::Error::NoCertificatesPresented) };
        let now = self.time.current_time().ok_or(rustls::Error::FailedToGetCurrentTime)?;
        self.verify.check(leaf, intermediates, now, verify::PeerRole::Server)?;
        self.verify.check(leaf, intermediates, now, verify::PeerRole::Client).map(|(peer, _)| peer)
    }

    /// Opens mesh TLS over `socket` to the endpoint at `address`, which must prove `identity`. Dropping the future closes the socket.
    ///
    /// # Errors
    /// [`Reason::ConfigPending`] before the first certificate; [`Reason::IdentityMismatch`] when the peer is someone else;
    /// [`Reason::TlsFailed`] otherwise. In every case nothing of a request has been written.
    pub async fn connect<S>(
        &self,
        identity: &Arc<Identity>,
        address: SocketAddr,
        carries: Carries,
        socket: S,
    ) -> Result<TlsConnected<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(credential) = self.credentials.current() else {
            return Err(Failure::never_written(Reason::ConfigPending, "this proxy has no certificate yet, so it cannot open mesh TLS"));
        };
        // An IP address as name: nothing is sent as SNI, and sessions are kept per address.
        let name = ServerName::IpAddress(address.ip().into());
        let config = self.client_config(identity, carries, &name).map_err(|error| {
            Failure::never_written(Reason::TlsFailed, format!("TLS to {address} ({identity}) cannot be configured: {error}"))
        })?;
        let generation = self.credentials.generation();
        let failed = |error: std::io::Error| connect_failure(&error, address, identity);
        let mut stream = TlsConnector::from(config).connect(name.clone(), socket).await.map_err(failed)?;
        stream.get_mut().1.set_buffer_limit(Some(TLS_UNSENT_BYTES_MAX));
        let state: &CommonState = stream.get_ref().1;
        let (peer, until) = self
            .prove(state, verify::PeerRole::Server)
            .and_then(|(peer, until)| if *peer.identity == **identity { Ok((peer, until)) } else { Err(mismatch(identity, &peer)) })
            .map_err(|error| failed(std::io::Error::other(error)))?;
        self.sessions.note(&name, generation, until.min(credential.not_after_unix()));
        let facts = facts(state);
        Ok(TlsConnected { stream, peer, facts })
    }

    /// Opens TLS 1.3 or 1.2 over `socket` to the server at `address`, which must prove a name. What it carries is asked for by ALPN: `h2`,
    /// `http/1.1`, or nothing. The first call to a server judged by the machine's roots has them read. Dropping the future closes the socket.
    ///
    /// # Errors
    /// [`Reason::IdentityMismatch`] when its certificate is for another name; [`Reason::TlsFailed`] otherwise, also where HTTP/2 is wanted and
    /// it has none. In every case nothing of a request has been written.
    pub async fn connect_named<S>(
        &self,
        named: &Arc<Named>,
        address: SocketAddr,
        carries: Carries,
        socket: S,
    ) -> Result<tokio_rustls::client::TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.named.connect(named, address, carries, socket).await
    }

    /// Accepts mesh TLS on `socket`. Dropping the future closes the socket.
    ///
    /// # Errors
    /// [`Reason::IdentityMismatch`] when the peer belongs to a trust domain that is not believed, [`Reason::TlsFailed`] otherwise.
    pub async fn accept<S>(&self, socket: S) -> Result<TlsAccepted<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = TlsAcceptor::from(Arc::clone(&self.server)).accept(socket).await.map_err(|error| accept_failure(&error))?;
        stream.get_mut().1.set_buffer_limit(Some(TLS_UNSENT_BYTES_MAX));
        let state: &CommonState = stream.get_ref().1;
        let (peer, _) = self.prove(state, verify::PeerRole::Client).map_err(|error| accept_failure(&std::io::Error::other(error)))?;
        let alpn = state.alpn_protocol().and_then(|name| SERVER_ALPN.into_iter().find(|known| known.as_bytes() == name));
        let carries = [Carries::H1, Carries::H2, Carries::Tcp].into_iter().find(|carries| Some(carries.alpn()) == alpn);
        let facts = facts(state);
        Ok(TlsAccepted { stream, carries, alpn, peer, facts })
    }

    /// The peer of a finished handshake. After a resumed one rustls has verified nothing anew, so bundle and dates are judged here.
    fn prove(&self, state: &CommonState, side: verify::PeerRole) -> Result<(Arc<Peer>, u64), rustls::Error> {
        let [leaf, intermediates @ ..] = state.peer_certificates().unwrap_or_default() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let now = self.time.current_time().ok_or(rustls::Error::FailedToGetCurrentTime)?;
        self.verify.check(leaf, intermediates, now, side)
    }

    fn client_config(
        &self,
        identity: &Arc<Identity>,
        carries: Carries,
        name: &ServerName<'static>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut clients = self.clients.lock();
        let configs = match clients.get(identity) {
            Some(configs) => configs.clone(),
            None => {
                if clients.len() >= IDENTITIES_MAX {
                    clients.clear();
                }
                let configs = self.new_client_configs(identity)?;
                clients.insert(Arc::clone(identity), configs.clone());
                configs
            }
        };
        Ok(match carries {
            Carries::H1 => configs.h1,
            Carries::H2 => configs.h2,
            Carries::Tcp if self.sessions.low(name) => configs.tcp_low,
            Carries::Tcp => configs.tcp,
        })
    }

    fn new_client_configs(&self, identity: &Arc<Identity>) -> Result<ClientConfigs, rustls::Error> {
        let verifier = Arc::new(ServerVerifier { verify: Arc::clone(&self.verify), expected: Arc::clone(identity) });
        let mut base = ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.time))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::clone(&self.resolver));
        base.resumption = rustls::client::Resumption::store(Arc::clone(&self.sessions) as Arc<dyn rustls::client::ClientSessionStore>);
        let with = |carries: Carries, resumed: u8| {
            let mut config = base.clone();
            config.alpn_protocols = vec![carries.alpn().as_bytes().to_vec()];
            config.send_ticket_request = Some(TicketRequest { new_session_count: 1, resumption_count: resumed });
            Arc::new(config)
        };
        Ok(ClientConfigs {
            h1: with(Carries::H1, 1),
            h2: with(Carries::H2, 1),
            tcp: with(Carries::Tcp, 0),
            tcp_low: with(Carries::Tcp, sessions::TICKETS_PER_BATCH),
        })
    }
}

/// What the inbound side agrees to, mesh first.
const SERVER_ALPN: [&str; 5] = [ALPN_H1, ALPN_H2, ALPN_TCP, "h2", "http/1.1"];

fn mismatch(expected: &Arc<Identity>, peer: &Peer) -> rustls::Error {
    PeerError::WrongIdentity { expected: Arc::clone(expected), found: Arc::clone(&peer.identity) }.into()
}

fn connect_failure(error: &std::io::Error, address: SocketAddr, identity: &Identity) -> Failure {
    let Some(peer) = PeerError::of(error) else {
        return Failure::never_written(Reason::TlsFailed, format!("TLS to {address} (expected {identity}): {error}"));
    };
    let reason = match peer {
        PeerError::WrongIdentity { .. } | PeerError::OtherTrustDomain { .. } => Reason::IdentityMismatch,
        _ => Reason::TlsFailed,
    };
    Failure::never_written(reason, format!("TLS to {address} (expected {identity}): {peer}"))
}

fn accept_failure(error: &std::io::Error) -> Failure {
    match PeerError::of(error) {
        Some(peer @ PeerError::OtherTrustDomain { .. }) => Failure::new(Reason::IdentityMismatch, format!("TLS from the peer: {peer}")),
        Some(peer) => Failure::new(Reason::TlsFailed, format!("TLS from the peer: {peer}")),
        None => Failure::new(Reason::TlsFailed, format!("TLS from the peer: {error}")),
    }
}

fn facts(state: &CommonState) -> TlsFacts {
    let version = match state.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "unknown",
    };
    let cipher = match state.negotiated_cipher_suite().map(|suite| suite.suite()) {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384) => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256) => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256) => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        _ => "unknown",
    };
    let group = match state.negotiated_key_exchange_group().map(|group| group.name()) {
        Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(NamedGroup::X25519) => "x25519",
        Some(NamedGroup::secp256r1) => "secp256r1",
        Some(NamedGroup::secp384r1) => "secp384r1",
        _ => "unknown",
    };
    TlsFacts { version, cipher, group, resumed: state.handshake_kind() == Some(HandshakeKind::Resumed), holds_tls: false }
}

#[cfg(test)]
mod named_tests;
#[cfg(test)]
mod tests;
