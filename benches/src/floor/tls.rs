//! TLS 1.3, both ends with certificates: rustls as it comes, with its own session stores.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, NamedGroup, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Args;

/// What the files hold.
pub(super) struct Files {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl Files {
    /// Reads them.
    pub(super) fn of(args: &Args) -> anyhow::Result<Self> {
        let path = |given: &Option<PathBuf>, name: &str| given.clone().with_context(|| format!("this mode needs --{name}"));
        let (cert, key, ca) = (path(&args.cert, "cert")?, path(&args.key, "key")?, path(&args.ca, "ca")?);
        let certificates = |path: &PathBuf| -> anyhow::Result<Vec<CertificateDer<'static>>> {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            read.with_context(|| format!("reading certificates from {}", path.display()))
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&ca)? {
            roots.add(root).with_context(|| format!("a root in {}", ca.display()))?;
        }
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups.sort_by_key(|group| (group.name() == NamedGroup::X25519MLKEM768) != args.post_quantum);
        Ok(Self {
            chain: certificates(&cert)?,
            key: PrivateKeyDer::from_pem_file(&key).with_context(|| format!("reading the key from {}", key.display()))?,
            roots,
            provider: Arc::new(provider),
        })
    }

    /// For the side that dials.
    pub(super) fn dial(&self, args: &Args) -> anyhow::Result<Dial> {
        let name = ServerName::try_from(args.name.clone()).with_context(|| format!("--name {}", args.name))?;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .context("the client's certificate and key")?;
        config.alpn_protocols = protocols(args);
        if args.full_handshakes {
            config.resumption = Resumption::disabled();
        }
        Ok(Dial { connector: Arc::new(config).into(), name })
    }

    /// For the side that is dialled: whoever has no certificate of the roots is refused, unless callers are anonymous.
    pub(super) fn acceptor(&self, args: &Args) -> anyhow::Result<TlsAcceptor> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider)).with_protocol_versions(&[&TLS13])?;
        let builder = if args.anonymous {
            builder.with_no_client_auth()
        } else {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots.clone()), Arc::clone(&self.provider));
            builder.with_client_cert_verifier(verifier.build().context("verifying clients")?)
        };
        let mut config = builder.with_single_cert(self.chain.clone(), self.key.clone_key()).context("the server's certificate and key")?;
        config.alpn_protocols = protocols(args);
        Ok(Arc::new(config).into())
    }
}

fn protocols(args: &Args) -> Vec<Vec<u8>> {
    args.alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// Opens mTLS to one server.
#[derive(Clone)]
pub(super) struct Dial {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Dial {
    pub(super) async fn open(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}
