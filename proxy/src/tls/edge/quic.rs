//! TLS 1.3 inside QUIC (RFC 9001) for clients from outside, ended by the terms of the filter chain that their ClientHello leads to.
//!
//! QUIC wants a session before it knows a name. So one begins undecided: it gathers the ClientHello, asks who has the name, and is from then
//! on what the terms of that chain say; nothing was said to the client before. A name that nobody has is told as over TCP.

use std::any::Any;
use std::fmt;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use engine::model::{Chain, TlsTerms};
use engine::sniff::{ClientHello, hello_of};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig as QuicServer, Session, UnsupportedVersion,
};
use quinn::{ConnectionId, Side};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{TransportError, TransportErrorCode};
use rustls::pki_types::CertificateDer;
use rustls::quic::{self, KeyChange, Secrets, ServerConnection, Version};
use rustls::server::{ClientHello as Hello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;

use super::{Alert, EdgeTls, Proof, Shown, Termination};
use crate::tls::{Tls, TlsFacts, facts};

/// What ALPN calls it (RFC 9114, section 3.1).
const ALPN_H3: &[u8] = b"h3";
/// The only version spoken: RFC 9000.
const QUIC_V1: u32 = 1;

/// Says which chain has a name; `None`: the client names nobody.
type Naming = dyn Fn(Option<&str>) -> Result<Arc<Chain>, Alert> + Send + Sync;

/// Ends TLS of the clients of one port.
pub struct QuicDoor {
    tls: Arc<Tls>,
    /// What is the same for all names: keys of first packets and the seals of Retry, which follow from the RFC.
    usual: Arc<QuicServerConfig>,
    naming: Box<Naming>,
}

/// What a handshake has come to.
pub struct QuicMet {
    /// The chain that the name has led to.
    pub chain: Arc<Chain>,
    /// Its terms.
    pub terms: Arc<TlsTerms>,
    /// The name, lower case.
    pub name: Option<Arc<str>>,
    /// The certificate that the client has shown, if it has.
    pub shown: Option<Shown>,
    /// The same, to be judged again.
    pub proof: Option<Proof>,
    /// How.
    pub facts: TlsFacts,
}

/// A client whose handshake is over and who is not to be let in: what it has shown is not believed.
pub struct QuicUnproved(pub String);

impl fmt::Debug for QuicDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicDoor").finish_non_exhaustive()
    }
}

impl QuicDoor {
    /// A door whose clients are sent where `naming` says.
    ///
    /// # Errors
    /// The crypto library knows nothing of QUIC: a broken build.
    pub fn new(tls: Arc<Tls>, naming: Box<Naming>) -> Result<Arc<Self>, String> {
        let EdgeTls { provider, time } = tls.edge();
        let nobody = ServerConfig::builder_with_details(Arc::clone(provider), Arc::clone(time))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Nobody));
        let usual = QuicServerConfig::try_from(nobody).map_err(|error| error.to_string())?;
        Ok(Arc::new(Self { tls, usual: Arc::new(usual), naming }))
    }
}

impl QuicServer for QuicDoor {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version == QUIC_V1 { self.usual.initial_keys(version, id) } else { Err(UnsupportedVersion) }
    }

    fn retry_tag(&self, version: u32, id: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.usual.retry_tag(version, id, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, parameters: &TransportParameters) -> Box<dyn Session> {
        let mut written = Vec::new();
        parameters.write(&mut written);
        let usual = Arc::clone(&self.usual).start_session(version, parameters);
        Box::new(QuicSession { door: self, usual, parameters: written, heard: Vec::new(), met: None })
    }
}

/// Shows nothing: whoever is served is so by a chain's own configuration.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: Hello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// One client's.
struct QuicSession {
    door: Arc<QuicDoor>,
    /// For keys of first packets.
    usual: Box<dyn Session>,
    /// Of QUIC, for the client.
    parameters: Vec<u8>,
    /// Of a ClientHello that is not complete; one is no longer than [`hello_of`] reads.
    heard: Vec<u8>,
    met: Option<Meeting>,
}

/// From the name on.
struct Meeting {
    connection: quic::Connection,
    chain: Arc<Chain>,
    terms: Arc<TlsTerms>,
    name: Option<Arc<str>>,
    termination: Arc<Termination>,
    /// Of the authorities of clients, before they were looked at.
    stamp: u64,
    /// Keys after the next update.
    next: Option<Secrets>,
}

impl QuicSession {
    /// Begins, with the whole ClientHello.
    fn meet(&self, hello: ClientHello) -> Result<Meeting, TransportError> {
        let name: Option<Arc<str>> = hello.sni.as_deref().map(Into::into);
        let chain = (self.door.naming)(name.as_deref()).map_err(|alert| told(alert.description(), "no listener has that name"))?;
        let terms =
            chain.terms.clone().ok_or_else(|| told(Alert::UnrecognizedName.description(), "TLS of that name passes by TCP alone"))?;
        let stamp = terms.clients.as_ref().map_or(0, |clients| clients.authorities.stamp());
        let away = |error: &dyn fmt::Display| told(Alert::InternalError.description(), &error.to_string());
        let termination = self.door.tls.edge().server(&terms).map_err(|error| away(&error))?;
        let connection = ServerConnection::new(Arc::clone(termination.over_quic()), Version::V1, self.parameters.clone());
        let connection = quic::Connection::Server(connection.map_err(|error| away(&error))?);
        Ok(Meeting { connection, chain, terms, name, termination, stamp, next: None })
    }
}

/// An alert of TLS, as QUIC tells it (RFC 9001, section 4.8).
fn told(alert: u8, why: &str) -> TransportError {
    let mut error = TransportError::from(TransportErrorCode::crypto(alert));
    why.clone_into(&mut error.reason);
    error
}

impl Meeting {
    fn read(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        let read = self.connection.read_hs(bytes);
        read.map_err(|error| told(self.connection.alert().map_or(Alert::InternalError.description(), u8::from), &error.to_string()))
    }

    /// What has come of it; asked once the handshake is over.
    fn outcome(&self, edge: &EdgeTls) -> Result<QuicMet, QuicUnproved> {
        let shown = edge.shown(&self.termination, &self.terms, &self.connection).map_err(|error| QuicUnproved(error.to_string()))?;
        let chain = shown.as_ref().and_then(|_| self.connection.peer_certificates()).map(<[CertificateDer<'static>]>::to_vec);
        let proof = chain.map(|chain| Proof { chain, stamp: AtomicU64::new(self.stamp) });
        let facts = facts(&self.connection);
        let (chain, terms, name) = (Arc::clone(&self.chain), Arc::clone(&self.terms), self.name.clone());
        Ok(QuicMet { chain, terms, name, shown, proof, facts })
    }
}

fn keys(keys: quic::Keys) -> Keys {
    let quic::Keys { local, remote } = keys;
    Keys {
        header: KeyPair { local: Box::new(local.header), remote: Box::new(remote.header) },
        packet: KeyPair { local: Box::new(local.packet), remote: Box::new(remote.packet) },
    }
}

impl Session for QuicSession {
    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        self.usual.initial_keys(id, side)
    }

    /// A `Result<QuicMet, QuicUnproved>`, of a handshake that is over.
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let met = self.met.as_ref().filter(|met| !met.connection.is_handshaking())?;
        Some(Box::new(met.outcome(self.door.tls.edge())))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    /// There is no 0-RTT: what comes before the handshake could be said again by anybody (RFC 8470).
    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.met.as_ref().is_none_or(|met| met.connection.is_handshaking())
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        if let Some(met) = &mut self.met {
            met.read(bytes)?;
            return Ok(false);
        }
        self.heard.extend_from_slice(bytes);
        let Some(hello) = hello_of(&self.heard) else { return Ok(false) };
        let mut met = self.meet(hello)?;
        met.read(&std::mem::take(&mut self.heard))?;
        self.met = Some(met);
        Ok(true)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let said = self.met.as_ref().and_then(|met| met.connection.quic_transport_parameters());
        let read = said.map(|said| TransportParameters::read(Side::Server, &mut Cursor::new(said)));
        Ok(read.transpose()?)
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        let met = self.met.as_mut()?;
        match met.connection.write_hs(buffer)? {
            KeyChange::Handshake { keys: fresh } => Some(keys(fresh)),
            KeyChange::OneRtt { keys: fresh, next } => {
                met.next = Some(next);
                Some(keys(fresh))
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let fresh = self.met.as_mut()?.next.as_mut()?.next_packet_keys();
        Some(KeyPair { local: Box::new(fresh.local), remote: Box::new(fresh.remote) })
    }

    /// A server gets none.
    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn export_keying_material(&self, output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), ExportKeyingMaterialError> {
        let met = self.met.as_ref().ok_or(ExportKeyingMaterialError)?;
        met.connection.export_keying_material(output, label, Some(context)).map(|_| ()).map_err(|_| ExportKeyingMaterialError)
    }
}

impl Termination {
    /// The same for QUIC: TLS 1.3 alone, which rustls sees to, and HTTP/3. Made when the first client comes.
    fn over_quic(&self) -> &Arc<ServerConfig> {
        self.quic.get_or_init(|| {
            let mut config = ServerConfig::clone(&self.config);
            config.alpn_protocols = vec![ALPN_H3.to_vec()];
            config.max_early_data_size = 0;
            Arc::new(config)
        })
    }
}
