//! TLS by which a certificate authority convinces itself that a name is ours (RFC 8737): it is shown one certificate, and nothing comes after.

use std::sync::Arc;

use engine::failure::{Failure, Reason};
use engine::model::{CHALLENGE_ALPN, OwnCertificate};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::EdgeTls;

impl EdgeTls {
    /// Shows an authority the certificate that it asks for, and says goodbye. What is made for that is made anew each time: it happens a few times
    /// in weeks. Dropping the future closes the socket.
    ///
    /// # Errors
    /// [`Reason::TlsFailed`]: the handshake fails, or ends in another protocol than the one that this is for.
    pub async fn prove<S>(&self, own: &OwnCertificate, socket: S) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let failed = |why: String| Failure::new(Reason::TlsFailed, format!("proving a name to a certificate authority: {why}"));
        let builder = ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.time));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| failed(error.to_string()))?.with_no_client_auth();
        // Its extension is critical and known to nobody but authorities, so it is not looked into as certificates of listeners are.
        let key = self.provider.key_provider.load_private_key(own.key.clone_key()).map_err(|error| failed(error.to_string()))?;
        let shown = SingleCertAndKey::from(CertifiedKey::new(own.chain.clone(), key));
        let mut config = builder.with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![CHALLENGE_ALPN.as_bytes().to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(socket).await;
        let mut stream = accepted.map_err(|error| failed(error.to_string()))?;
        // Whoever asks has seen what it wanted: how the connection ends is of no matter.
        let _ = stream.shutdown().await;
        Ok(())
    }
}
