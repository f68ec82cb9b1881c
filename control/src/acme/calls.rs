//! How an authority is called: HTTPS by whose roots its ClientPolicy says, a connection for each call (there are a dozen in weeks), everything
//! bounded. What it says of when to come again is noted.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a door: authorities are outside, the time of day at which they want us again too, and simulations order no certificates"
)]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, RETRY_AFTER};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// One call, from the name to the last byte.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Longest answer: a chain of certificates has some kilobytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// When the authority wants us to come again, as it said last.
#[derive(Clone, Default)]
pub(super) struct ComeAgain(Arc<Mutex<Option<Duration>>>);

impl ComeAgain {
    pub(super) fn take(&self) -> Option<Duration> {
        self.0.lock().take()
    }
}

/// See the module.
pub(super) struct Calls {
    tls: Arc<ClientConfig>,
    told: ComeAgain,
}

impl Calls {
    /// Believes these roots (PEM), or those of the machine.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn new(roots: Option<&[u8]>, told: ComeAgain) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        match roots {
            Some(pem) => {
                for root in CertificateDer::pem_slice_iter(pem) {
                    let root = root.map_err(|_| "entry `ca.crt` of the account's Secret is no PEM of certificates".to_owned())?;
                    store.add(root).map_err(|error| format!("a certificate of entry `ca.crt` of the account's Secret: {error}"))?;
                }
            }
            None => _ = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        }
        if store.is_empty() {
            return Err("no root certificates are known: install the machine's, or put the directory's CA into entry `ca.crt` of the Secret that accountSecretRef names".to_owned());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        Ok(Self { tls: Arc::new(builder.with_root_certificates(store).with_no_client_auth()), told })
    }
}

impl HttpClient for Calls {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (tls, told) = (self.tls.clone(), self.told.clone());
        Box::pin(async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let answer = match timeout(CALL_MAX, call(&tls, request)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", CALL_MAX.as_secs())),
            };
            let answer = answer.map_err(|why| Error::Other(format!("calling {host}: {why}").into()))?;
            if answer.status().is_client_error() || answer.status().is_server_error() {
                *told.0.lock() = retry_after(answer.headers(), SystemTime::now());
            }
            Ok(BytesResponse::from(answer))
        })
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()?;
    SystemTime::from(at).duration_since(now).ok()
}

async fn call(tls: &Arc<ClientConfig>, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, String> {
    let uri = request.uri().clone();
    let host = uri.host().ok_or("its address names no host")?.trim_matches(['[', ']']).to_owned();
    let secure = uri.scheme() != Some(&Scheme::HTTP);
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let socket = TcpStream::connect((host.as_str(), port)).await.map_err(|error| format!("port {port}: {error}"))?;
    if !secure {
        return exchange(socket, request, &uri).await;
    }
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(tls.clone()).connect(name, socket).await;
    exchange(stream.map_err(|error| format!("TLS: {error}"))?, request, &uri).await
}

async fn exchange<S>(stream: S, request: Request<BodyWrapper<Bytes>>, uri: &Uri) -> Result<Response<Full<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let (mut parts, body) = request.into_parts();
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    parts.headers.insert(HOST, HeaderValue::from_str(authority).map_err(|error| error.to_string())?);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let asking = async {
        let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| format!("its answer: {error}"))?;
        Ok(Response::from_parts(head, Full::new(body.to_bytes())))
    };
    // The connection is driven for as long as the answer takes, and no longer.
    tokio::pin!(asking, connection);
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = &mut connection => match ended {
            // What it has read by then is still to be taken.
            Ok(()) => asking.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_again_is_read_in_both_forms() {
        // Aim: seconds, and a date; the past and nonsense say nothing.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text: &'static str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]), now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!((read("Sun, 06 Nov 1994 08:48:37 GMT"), read("soon"), read("-1")), (None, None, None));
    }

    #[test]
    fn roots_have_to_be_certificates() {
        // Aim: what is no CA is said, by the name of its entry.
        for (pem, told) in
            [("nonsense", "no root certificates"), ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ca.crt")]
        {
            let error = Calls::new(Some(pem.as_bytes()), ComeAgain::default()).err().unwrap();
            assert!(error.contains(told), "{error}");
        }
    }
}
