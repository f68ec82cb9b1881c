//! TLS to servers that are not of the mesh, which prove a name below roots that are not ours.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use engine::failure::{Failure, Reason};
use engine::model::{Named, Roots};
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Carries;
use super::proves::{AnyOf, ShownOwn};
use crate::ground::limits::TLS_UNSENT_BYTES_MAX;

/// Client configurations kept, one per name and roots. A proxy that calls more than so many starts afresh.
const NAMED_MAX: usize = 256;
/// Servers whose sessions one configuration keeps; it has one name only.
const SESSIONS_MAX: usize = 4;

/// Opens TLS to servers that prove a name. One per process, shared by all workers.
pub(super) struct NamedTls {
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
    /// What the machine believes, read at the first need.
    system: OnceCell<Arc<RootCertStore>>,
    clients: Mutex<HashMap<Arc<Named>, Configs>>,
}

/// One server's configurations. They share verifier and sessions, and nobody else does: a session of one name or of other roots is never
/// resumed as another's.
#[derive(Clone)]
struct Configs {
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
}

impl Configs {
    fn of(&self, carries: Carries) -> &Arc<ClientConfig> {
        match carries {
            Carries::H1 => &self.h1,
            Carries::H2 => &self.h2,
            Carries::Tcp => &self.tcp,
        }
    }
}

impl NamedTls {
    pub(super) fn new(provider: Arc<CryptoProvider>, time: Arc<dyn TimeProvider>) -> Self {
        Self { provider, time, system: OnceCell::new(), clients: Mutex::default() }
    }

    /// See [`super::Tls::connect_named`].
    pub(super) async fn connect<S>(
        &self,
        named: &Arc<Named>,
        address: SocketAddr,
        carries: Carries,
        socket: S,
    ) -> Result<TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let failed = |reason, why: String| Failure::never_written(reason, format!("TLS to {address} ({}): {why}", named.name()));
        let name = ServerName::try_from(named.name().to_owned()).map_err(|error| failed(Reason::TlsFailed, error.to_string()))?;
        let configs = match self.known(named) {
            Some(configs) => configs,
            None => self.make(named).await.map_err(|why| failed(Reason::TlsFailed, why))?,
        };
        let connected = TlsConnector::from(Arc::clone(configs.of(carries))).connect(name, socket).await;
        let mut stream = connected.map_err(|error| failed(reason(&error), error.to_string()))?;
        let state = stream.get_mut().1;
        state.set_buffer_limit(Some(TLS_UNSENT_BYTES_MAX));
        if carries == Carries::H2 && state.alpn_protocol() != Some(b"h2") {
            return Err(failed(Reason::TlsFailed, "the server does not speak HTTP/2".to_owned()));
        }
        Ok(stream)
    }

    fn known(&self, named: &Arc<Named>) -> Option<Configs> {
        self.clients.lock().get(named).cloned()
    }

    async fn make(&self, named: &Arc<Named>) -> Result<Configs, String> {
        let roots = match named.roots() {
            Roots::System => self.system.get_or_try_init(system_roots).await?.clone(),
            Roots::Given(given) => Arc::new(store(given.iter().map(|root| CertificateDer::from(root.as_slice())))),
        };
        if roots.is_empty() {
            return Err("none of the root certificates that were given for it can be read".to_owned());
        }
        let configs = self.configs(named, roots).map_err(|error| format!("it cannot be configured: {error}"))?;
        let mut clients = self.clients.lock();
        if clients.len() >= NAMED_MAX {
            clients.clear();
        }
        // Who came first meanwhile has sessions already.
        Ok(clients.entry(Arc::clone(named)).or_insert(configs).clone())
    }

    fn configs(&self, named: &Named, roots: Arc<RootCertStore>) -> Result<Configs, Error> {
        let mut base = ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.time))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_root_certificates(Arc::clone(&roots))
            .with_no_client_auth();
        base.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        if let Some(verifier) = AnyOf::of(named, &roots, &self.provider) {
            base.dangerous().set_certificate_verifier(verifier);
        }
        if let Some(cell) = named.shows() {
            base.client_auth_cert_resolver = ShownOwn::of(cell);
            // A session would go on with a certificate that has been replaced since.
            base.resumption = Resumption::disabled();
        }
        let with = |alpn: &[&[u8]]| {
            let mut config = base.clone();
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Configs { h1: with(&[b"http/1.1"]), h2: with(&[b"h2"]), tcp: with(&[]) })
    }
}

/// Whether somebody else has answered, or TLS has failed.
fn reason(error: &io::Error) -> Reason {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => {
            Reason::IdentityMismatch
        }
        _ => Reason::TlsFailed,
    }
}

/// Those that can be read: machines have a few that cannot.
fn store<'c>(certificates: impl IntoIterator<Item = CertificateDer<'c>>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    store
}

/// The machine's roots, read off the data path: files, and some hundred certificates.
async fn system_roots() -> Result<Arc<RootCertStore>, String> {
    let loaded = tokio::task::spawn_blocking(|| {
        let loaded = rustls_native_certs::load_native_certs();
        (store(loaded.certs), loaded.errors)
    });
    let (store, errors) = loaded.await.map_err(|error| format!("this machine's root certificates were not read: {error}"))?;
    if store.is_empty() {
        let why = errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!(
            "this machine has no root certificates{why}; install its package of them (ca-certificates), or set SSL_CERT_FILE or SSL_CERT_DIR"
        ));
    }
    tracing::info!(roots = store.len(), "the machine's root certificates are read");
    Ok(Arc::new(store))
}
