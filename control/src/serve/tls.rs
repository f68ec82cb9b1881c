//! TLS of port 15012: our own leaf, renewed in place; client certificates asked for, verified when shown, not demanded.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::SharedAuthority;
use crate::clock::Clock;
use crate::publish::edition::Edition;
use crate::publish::peer::Proven;
use crate::publish::trust::{Root, Roots};

/// A leaf that ended less than this ago may still ask for the next one, as the authority says.
pub const EXPIRED_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Wait this long before asking again for a leaf that could not be had.
const RETRY: Duration = Duration::from_secs(10);
/// Look this often whether the leaf is due: a machine may have slept, or its clock been set.
const LOOK: Duration = Duration::from_secs(15);
/// A leaf may begin so much later than now: others' clocks differ as much.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Holds the leaf in use.
#[derive(Debug, Default)]
pub struct LeafCell(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for LeafCell {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Whose leaves are let in, as the roots of now say. A leaf that ended a short while ago is let in too, and one below a retired root, so
/// that it can be renewed; nothing else is answered to either (`peer::Proven`).
#[derive(Debug)]
pub struct ClientRoots {
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Verifiers>,
}

#[derive(Debug)]
struct Verifiers {
    /// By what is believed.
    believed: Arc<dyn ClientCertVerifier>,
    /// By what was believed once, too.
    lenient: Arc<dyn ClientCertVerifier>,
    /// By the issuing root alone, whose hash this is.
    issuing: (Arc<dyn ClientCertVerifier>, [u8; 32]),
}

impl ClientRoots {
    fn new(roots: &Roots, provider: Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let current = ArcSwap::from_pointee(verifiers(roots, &provider)?);
        Ok(Self { provider, current })
    }

    /// Judges new connections by these roots from now on; open ones stay as they are.
    ///
    /// # Errors
    /// A root cannot be read: the former ones stay.
    pub fn follow(&self, roots: &Roots) -> anyhow::Result<()> {
        self.current.store(Arc::new(verifiers(roots, &self.provider)?));
        Ok(())
    }

    /// What a chain that was let in ends in: whether that is a retired root only, and whether it is the issuing root, which is named then.
    fn place(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> (bool, Option<[u8; 32]>) {
        let Some((leaf, intermediates)) = chain.split_first() else { return (true, None) };
        let at = last_second(leaf).map_or(now, |end| UnixTime::since_unix_epoch(Duration::from_secs(end.min(now.as_secs()))));
        let current = self.current.load();
        let holds = |by: &Arc<dyn ClientCertVerifier>| by.verify_client_cert(leaf, intermediates, at).is_ok();
        let (issuing, sha256) = &current.issuing;
        (!holds(&current.believed), holds(issuing).then_some(*sha256))
    }
}

fn verifiers(roots: &Roots, provider: &Arc<CryptoProvider>) -> anyhow::Result<Verifiers> {
    let believed = verifier(roots.trusted(), provider)?;
    let issuing = (verifier(std::iter::once(&roots.issuing), provider)?, roots.issuing.sha256);
    Ok(Verifiers { believed, lenient: verifier(roots.trusted().chain(&roots.retired), provider)?, issuing })
}

fn verifier<'r>(roots: impl Iterator<Item = &'r Root>, provider: &Arc<CryptoProvider>) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.der.clone())?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    Ok(builder.allow_unauthenticated().build()?)
}

impl ClientCertVerifier for ClientRoots {
    /// No hints: they change with the roots, and a client of ours has one certificate only.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let lenient = self.current.load().lenient.clone();
        let verdict = lenient.verify_client_cert(leaf, intermediates, now);
        let Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) = &verdict else {
            return verdict;
        };
        match last_second(leaf) {
            // Everything else must hold as it did in its last second.
            Some(end) if now.as_secs() < end + EXPIRED_GRACE.as_secs() => {
                lenient.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(end)))
            }
            _ => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.load().lenient.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.load().lenient.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current.load().lenient.supported_verify_schemes()
    }
}

fn first_second(leaf: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    u64::try_from(parsed.validity().not_before.timestamp()).ok()
}

fn last_second(leaf: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}

/// Names on the control plane's certificate.
#[derive(Clone, Debug, Default)]
pub struct CertificateNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a TLS door needs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Whom it lets in, and as whom it answers.
    pub config: Arc<ServerConfig>,
    /// Whether a leaf has ended is judged by this.
    pub clock: Clock,
    /// Whether it ends in a retired root, by this.
    pub roots: Arc<ClientRoots>,
    /// Whether our own leaf is of the mesh's trust domain, which the objects say.
    seated: watch::Receiver<bool>,
}

impl ServerTls {
    /// Does the handshake, once our own leaf is what callers expect.
    ///
    /// # Errors
    /// The handshake fails, or the control plane is stopping.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        self.seated.clone().wait_for(|seated| *seated).await.map_err(|_| io::ErrorKind::ConnectionAborted)?;
        TlsAcceptor::from(self.config.clone()).accept(stream).await
    }

    /// What the other end of a connection has proved; `None`: nothing, or it is no workload.
    pub fn proven(&self, connection: &rustls::ServerConnection) -> Option<Arc<Proven>> {
        let chain = connection.peer_certificates()?;
        let now = self.clock.unix();
        let place = self.roots.place(chain, UnixTime::since_unix_epoch(now));
        let leaf = chain.first()?.clone().into_owned();
        Proven::read(leaf, i64::try_from(now.as_secs()).unwrap_or(i64::MAX), place).map(Arc::new)
    }
}

/// The control plane's own leaf: whence it comes and where it goes.
pub struct Seating {
    authority: SharedAuthority,
    names: CertificateNames,
    provider: Arc<CryptoProvider>,
    leaf: Arc<LeafCell>,
    /// One after the other, so that the leaf asked for last is the one in use.
    renewing: Mutex<()>,
    /// Whether the leaf is of the mesh's trust domain.
    seated: watch::Sender<bool>,
    clock: Clock,
}

impl Seating {
    /// Takes a fresh leaf, which new connections see at once; open ones stay as they are. Returns how long it lasts. May block on a disk.
    ///
    /// # Errors
    /// The authority gives none: the former one stays.
    pub fn renew(&self) -> anyhow::Result<Duration> {
        let _turn = self.renewing.lock();
        let seat = self.authority.seat(&self.names.dns, &self.names.addresses).map_err(anyhow::Error::msg)?;
        let key = self.provider.key_provider.load_private_key(seat.key)?;
        self.leaf.0.store(Some(Arc::new(CertifiedKey::new(seat.chain, key))));
        Ok(seat.lasts)
    }

    /// Renews the leaf when the mesh is of another trust domain, which the objects say, the first ones too; the door opens then. Ends with
    /// `stop`.
    pub async fn follow(self: Arc<Self>, mut editions: watch::Receiver<Option<Arc<Edition>>>, stop: CancellationToken) {
        let mut seated = String::new();
        loop {
            let edition = editions.borrow_and_update().clone();
            let wanted =
                edition.as_deref().map(|edition| edition.world.index().mesh.trust_domain.as_str()).filter(|wanted| *wanted != seated);
            let mut failed = false;
            if let Some(wanted) = wanted {
                let seating = self.clone();
                match tokio::task::spawn_blocking(move || seating.renew()).await {
                    Ok(Ok(_)) => {
                        wanted.clone_into(&mut seated);
                        self.seated.send_replace(true);
                    }
                    Ok(Err(error)) => {
                        tracing::error!(%error, trust_domain = wanted, "the control plane has no certificate of the mesh's trust domain");
                        failed = true;
                    }
                    Err(_) => failed = true,
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = editions.changed() => {}
                () = tokio::time::sleep(RETRY), if failed => {}
                else => return,
            }
        }
    }

    /// Whether the leaf in use is of a time that has not come: it was made before the clock was set back.
    fn is_early(&self) -> bool {
        let leaf = self.leaf.0.load();
        let begin = leaf.as_ref().and_then(|leaf| first_second(leaf.cert.first()?));
        begin.is_some_and(|begin| begin > self.clock.unix().saturating_add(CLOCK_SKEW).as_secs())
    }

    /// Renews the leaf again and again. Ends with `stop`.
    pub async fn keep(self: Arc<Self>, mut lasts: Duration, stop: CancellationToken) {
        let mut taken = self.clock.moment();
        loop {
            let left = lasts.saturating_sub(self.clock.since(taken));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(left.min(LOOK)) => {}
            }
            if self.clock.since(taken) < lasts && !self.is_early() {
                continue;
            }
            taken = self.clock.moment();
            let seating = self.clone();
            lasts = match tokio::task::spawn_blocking(move || seating.renew()).await {
                Ok(Ok(lasts)) => lasts,
                Ok(Err(error)) => {
                    tracing::error!(%error, "the control plane's own certificate was not renewed");
                    RETRY
                }
                Err(_) => RETRY,
            };
        }
    }
}

/// The server's side of TLS, with a first leaf in it, and how long that lasts.
///
/// # Errors
/// The authority gives no leaf, or the bundle holds no root.
pub fn config(authority: &SharedAuthority, names: CertificateNames, clock: &Clock) -> anyhow::Result<(ServerTls, Arc<Seating>, Duration)> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(ClientRoots::new(&authority.roots(), provider.clone())?);
    let leaf = Arc::new(LeafCell::default());
    let seated = watch::Sender::new(false);
    let opened = seated.subscribe();
    let (authority, renewing) = (authority.clone(), Mutex::default());
    let (seats, by) = (leaf.clone(), clock.clone());
    let seating = Arc::new(Seating { authority, names, provider: provider.clone(), leaf: seats, renewing, seated, clock: by });
    let lasts = seating.renew()?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(roots.clone())
        .with_cert_resolver(leaf);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session is verified by nobody: it would outlive its root.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((ServerTls { config: Arc::new(config), clock: clock.clone(), roots, seated: opened }, seating, lasts))
}
