//! TLS of clients from outside, ended at an edge by the terms of a filter chain.
//!
//! What rustls needs of terms is made once, when the first client comes after they or a secret that they speak of have changed, and is kept
//! with them: no connection pays for another's certificates, and a certificate that rotates changes no configuration.

mod certificates;
mod challenge;
mod clients;
#[cfg(feature = "http3")]
mod quic;
mod tickets;

use std::fmt;
use std::io;
use std::sync::Arc;
#[cfg(feature = "http3")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::failure::{Failure, Reason};
use engine::model::{ApplicationProtocol, Held, Secret, SecretCell, TlsTerms, TlsVersion};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{CommonState, HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::{TlsFacts, facts};
use crate::ground::limits::TLS_UNSENT_BYTES_MAX;
use certificates::Certificates;
use clients::{Anyhow, verifier};
use tickets::{SharedTickets, binding};

pub use clients::Shown;
#[cfg(feature = "http3")]
pub use quic::{QuicDoor, QuicMet, QuicUnproved};

/// Tickets for a client that does not say how many it wants: browsers open two connections at once.
const TICKETS_UNASKED: usize = 2;

/// HTTP/1.0 as ALPN names it (RFC 7301, section 6).
const ALPN_HTTP_10: &[u8] = b"http/1.0";

/// Ends TLS of clients from outside. One per process, shared by all workers.
pub struct EdgeTls {
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
}

impl fmt::Debug for EdgeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeTls").finish_non_exhaustive()
    }
}

/// A client whose TLS was ended.
#[derive(Debug)]
pub struct EdgeAccepted<S> {
    /// What is inside.
    pub stream: tokio_rustls::server::TlsStream<S>,
    /// The protocol agreed on, if any: `h2` or `http/1.1`. `http/1.0` is as none: what comes says its version.
    pub alpn: Option<&'static str>,
    /// The certificate that the client has shown, if it has.
    pub shown: Option<Shown>,
    /// The same, to be judged again.
    pub proof: Option<Proof>,
    /// How.
    pub facts: TlsFacts,
}

/// The certificates that a client has shown, for as long as its connection lasts: authorities come and go without an epoch.
#[derive(Debug)]
pub struct Proof {
    chain: Vec<CertificateDer<'static>>,
    /// Of the authorities by which it was judged last.
    stamp: AtomicU64,
}

/// Why a client's TLS is told goodbye before a handshake (RFC 8446, section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alert {
    /// Nobody here has the name that it asks for.
    UnrecognizedName,
    /// What its chain needs has not come yet.
    InternalError,
}

impl Alert {
    /// Its number.
    const fn description(self) -> u8 {
        match self {
            Self::UnrecognizedName => 112,
            Self::InternalError => 80,
        }
    }

    /// One record, as every version reads it: fatal.
    const fn record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self.description()]
    }

    /// Tells the client, and ends our side. What does not arrive is told by the end of the connection.
    pub async fn tell<S: AsyncWrite + Unpin>(self, socket: &mut S) {
        if socket.write_all(&self.record()).await.is_ok() {
            let _ = socket.shutdown().await;
        }
    }
}

/// Made of terms.
struct Termination {
    config: Arc<ServerConfig>,
    /// Who judges clients once more where rustls did not.
    judge: Option<Arc<dyn ClientCertVerifier>>,
    /// The same for HTTP/3.
    #[cfg(feature = "http3")]
    quic: OnceLock<Arc<ServerConfig>>,
}

impl EdgeTls {
    pub(super) const fn new(provider: Arc<CryptoProvider>, time: Arc<dyn TimeProvider>) -> Self {
        Self { provider, time }
    }

    /// Whether a client can be let in by these terms now.
    ///
    /// # Errors
    /// [`Reason::ConfigPending`]: what they speak of has not come yet.
    pub fn ready(&self, terms: &TlsTerms) -> Result<(), Failure> {
        self.server(terms).map(|_| ())
    }

    /// Ends a client's TLS on `socket`. Dropping the future closes the socket.
    ///
    /// # Errors
    /// [`Reason::ConfigPending`] where a secret is missing (nothing was written), [`Reason::TlsFailed`] where the client's handshake fails or
    /// its certificate is not believed and has to be.
    pub async fn accept<S>(&self, terms: &TlsTerms, socket: S) -> Result<EdgeAccepted<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // Before they are looked at: what changes meanwhile is judged by the first request.
        let stamp = terms.clients.as_ref().map_or(0, |clients| clients.authorities.stamp());
        let server = self.server(terms)?;
        let failed = |error: &dyn fmt::Display| Failure::new(Reason::TlsFailed, format!("TLS from the client: {error}"));
        let accepted = TlsAcceptor::from(Arc::clone(&server.config)).accept(socket).await;
        let mut stream = accepted.map_err(|error: io::Error| failed(&error))?;
        stream.get_mut().1.set_buffer_limit(Some(TLS_UNSENT_BYTES_MAX));
        let state: &CommonState = stream.get_ref().1;
        let shown = self.shown(&server, terms, state).map_err(|error| failed(&error))?;
        let chain = shown.as_ref().and_then(|_| state.peer_certificates()).map(<[CertificateDer<'static>]>::to_vec);
        let proof = chain.map(|chain| Proof { chain, stamp: AtomicU64::new(stamp) });
        let agreed = state.alpn_protocol();
        let alpn = terms.alpn.iter().map(|protocol| protocol.text()).find(|known| Some(known.as_bytes()) == agreed);
        let facts = facts(state);
        Ok(EdgeAccepted { stream, alpn, shown, proof, facts })
    }

    /// Whether what a client has shown is worth as much by now as when its TLS was ended. Costs one load while its authorities stay the same.
    pub fn stands(&self, terms: &TlsTerms, shown: &Shown, proof: &Proof) -> bool {
        let Some(clients) = &terms.clients else { return true };
        let stamp = clients.authorities.stamp();
        if proof.stamp.load(Ordering::Relaxed) == stamp {
            return true;
        }
        let judge = self.server(terms).ok().and_then(|server| server.judge.clone());
        let believed = match (judge, proof.chain.as_slice(), self.time.current_time()) {
            (Some(judge), [leaf, intermediates @ ..], Some(now)) => judge.verify_client_cert(leaf, intermediates, now).is_ok(),
            _ => false,
        };
        if believed == shown.believed {
            proof.stamp.store(stamp, Ordering::Relaxed);
        }
        believed == shown.believed
    }

    /// What the client has shown. Of a session that is resumed rustls has judged nothing anew: it is judged here, as is what anybody may show.
    fn shown(&self, server: &Termination, terms: &TlsTerms, state: &CommonState) -> Result<Option<Shown>, rustls::Error> {
        let (Some(clients), Some(judge)) = (&terms.clients, &server.judge) else { return Ok(None) };
        let [leaf, intermediates @ ..] = state.peer_certificates().unwrap_or_default() else { return Ok(None) };
        let judged = clients.untrusted || state.handshake_kind() == Some(HandshakeKind::Resumed);
        let now = self.time.current_time().ok_or(rustls::Error::FailedToGetCurrentTime)?;
        let believed = if judged { judge.verify_client_cert(leaf, intermediates, now).map(|_| ()) } else { Ok(()) };
        match believed {
            Err(error) if !clients.untrusted => Err(error),
            believed => Ok(Some(Shown::read(leaf, believed.is_ok()))),
        }
    }

    fn server(&self, terms: &TlsTerms) -> Result<Arc<Termination>, Failure> {
        let stamp = terms.stamp();
        let last = terms.made.last::<Termination>();
        if let Some((_, made)) = last.as_ref().filter(|(of, _)| *of == stamp) {
            return Ok(Arc::clone(made));
        }
        match (self.make(terms), last) {
            (Ok(made), _) => {
                let made = Arc::new(made);
                terms.made.keep(stamp, Arc::clone(&made));
                Ok(made)
            }
            // A secret that is there and no good is no reason to send clients away who were served before.
            (Err(Unmade::Unusable(why)), Some((_, made))) => {
                tracing::warn!("a certificate of an edge's listener cannot be used, the former one stays: {why}");
                terms.made.keep(stamp, Arc::clone(&made));
                Ok(made)
            }
            (Err(unmade), _) => Err(Failure::new(Reason::ConfigPending, unmade.to_string())),
        }
    }

    fn make(&self, terms: &TlsTerms) -> Result<Termination, Unmade> {
        let unusable = |error: rustls::Error| Unmade::Unusable(error.to_string());
        let certificates: Vec<Arc<Held>> = terms.certificates.iter().map(|cell| cell.load()).collect();
        let own = certificates.iter().filter_map(|held| if let Some(Secret::Certificate(own)) = &held.secret { Some(own) } else { None });
        let certificates = Certificates::of(own).map_err(unusable)?;
        if certificates.is_empty() {
            return Err(Unmade::Missing(terms.certificates.first().map(Arc::clone)));
        }
        let (mut believed, mut judge) = (None, None);
        if let Some(clients) = &terms.clients {
            let held = clients.authorities.load();
            let Some(Secret::Authorities(authorities)) = &held.secret else {
                return Err(Unmade::Missing(Some(Arc::clone(&clients.authorities))));
            };
            let strict = verifier(authorities, clients.required, &self.provider).map_err(Unmade::Unusable)?;
            believed = Some(if clients.untrusted { Arc::new(Anyhow(Arc::clone(&strict))) as Arc<_> } else { Arc::clone(&strict) });
            judge = Some((strict, authorities.clone()));
        }
        let versions: &[&SupportedProtocolVersion] = match terms.versions {
            (TlsVersion::V12, TlsVersion::V13) => &[&TLS13, &TLS12],
            (TlsVersion::V12, TlsVersion::V12) => &[&TLS12],
            _ => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.time));
        let builder = builder.with_protocol_versions(versions).map_err(unusable)?;
        let builder = match believed {
            Some(believed) => builder.with_client_cert_verifier(believed),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.require_ems = !terms.plain_master_secret;
        config.alpn_protocols = terms.alpn.iter().map(|protocol| protocol.text().as_bytes().to_vec()).collect();
        if terms.alpn.contains(&ApplicationProtocol::Http1) {
            // Who speaks nothing newer is served as in plaintext.
            config.alpn_protocols.push(ALPN_HTTP_10.to_vec());
        }
        // Nothing is remembered of a session but by its client, in a ticket.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if let Some(held) = terms.tickets.as_ref().map(|cell| cell.load())
            && let Some(Secret::TicketKeys(keys)) = &held.secret
        {
            let authorities = judge.as_ref().map(|(_, authorities)| authorities.as_slice());
            config.ticketer = Arc::new(SharedTickets::new(keys, &binding(terms, authorities)));
            config.send_tls13_tickets = TICKETS_UNASKED;
        }
        Ok(Termination {
            config: Arc::new(config),
            judge: judge.map(|(judge, _)| judge),
            #[cfg(feature = "http3")]
            quic: OnceLock::new(),
        })
    }
}

/// Why nobody can be served by terms.
enum Unmade {
    /// A secret has not come yet.
    Missing(Option<Arc<SecretCell>>),
    /// One is no good.
    Unusable(String),
}

impl fmt::Display for Unmade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(cell) => {
                let name = cell.as_ref().map_or("", |cell| cell.name());
                write!(f, "the secret {name} of this listener has not come yet: does its Secret exist, and is it permitted?")
            }
            Self::Unusable(why) => write!(f, "a certificate of this listener cannot be used: {why}"),
        }
    }
}
