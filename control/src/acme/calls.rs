//! How an authority is called: HTTPS by whose roots its ClientPolicy says, a connection for each call (there are a dozen in weeks), everything
//! bounded. What it says of when to come again is noted.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a door: authorities are outside, the time of day at which they want us again too, and simulations order no certificates"
)]

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, RETRY_AFTER};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::decide::RETRY_AFTER_MAX;

/// One call, from the name to the last byte.
const CALL_MAX: Duration = Duration::from_secs(30);
/// One of a host's addresses: a family that leads nowhere must not use up the call.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 4;
/// Longest answer: a chain of certificates has some kilobytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// What a directory has to name (RFC 8555, section 7.1.1), and what it may.
const NAMED: [&str; 3] = ["newNonce", "newAccount", "newOrder"];
const NAMED_AT_WILL: [&str; 4] = ["newAuthz", "revokeCert", "keyChange", "renewalInfo"];

/// When the authority wants us to come again, as it said last.
#[derive(Clone, Default)]
pub(super) struct ComeAgain(Arc<Mutex<Option<Duration>>>);

impl ComeAgain {
    pub(super) fn take(&self) -> Option<Duration> {
        self.0.lock().take()
    }
}

/// An authority was not reached, or what it answered is nothing of ACME.
#[derive(Debug, thiserror::Error)]
#[error("calling {0}: {1}")]
pub(super) struct CallFault(String, String);

/// See the module.
pub(super) struct Calls {
    tls: Arc<ClientConfig>,
    told: ComeAgain,
    directory: Uri,
}

impl Calls {
    /// For the authority with that directory. Believes these roots (PEM), or those of the machine.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn new(directory: &str, roots: Option<&[u8]>, told: ComeAgain) -> Result<Self, String> {
        let directory = directory.parse().map_err(|error: http::uri::InvalidUri| format!("its directory: {error}"))?;
        Ok(Self { tls: believing(roots, "entry `ca.crt` of the account's Secret")?, told, directory })
    }
}

/// Who believes these roots (PEM, from there), or those of the machine.
///
/// # Errors
/// There are none.
pub(crate) fn believing(roots: Option<&[u8]>, from: &str) -> Result<Arc<ClientConfig>, String> {
    let mut store = RootCertStore::empty();
    match roots {
        Some(pem) => {
            for root in CertificateDer::pem_slice_iter(pem) {
                let root = root.map_err(|_| format!("{from} is no PEM of certificates"))?;
                store.add(root).map_err(|error| format!("a certificate of {from}: {error}"))?;
            }
        }
        None => _ = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    if store.is_empty() {
        return Err(format!("no root certificates are known: install the machine's, or give CA certificates in {from}"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(store).with_no_client_auth()))
}

impl HttpClient for Calls {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (tls, told, directory) = (self.tls.clone(), self.told.clone(), self.directory.clone());
        Box::pin(async move {
            let (uri, method) = (request.uri().clone(), request.method().clone());
            let host = uri.host().unwrap_or_default().to_owned();
            let fault = |why: String| Error::Other(Box::new(CallFault(host, why)));
            if !may_lead(&uri, &directory) {
                return Err(fault("the authority leads there without TLS, and is not followed".to_owned()));
            }
            let answer = match timeout(CALL_MAX, called(&tls, request)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(why)) => return Err(fault(why)),
                Err(_) => return Err(fault(format!("no answer within {} s", CALL_MAX.as_secs()))),
            };
            let (mut head, body) = answer.into_parts();
            let again = retry_after(&head.headers, SystemTime::now()).map(|again| again.min(RETRY_AFTER_MAX));
            // Whoever reads on takes any number for a time.
            head.headers.remove(RETRY_AFTER);
            if let Some(again) = again {
                head.headers.insert(RETRY_AFTER, HeaderValue::from(again.as_secs()));
            }
            if head.status.is_client_error() || head.status.is_server_error() {
                *told.0.lock() = again;
            }
            let checked = if method == Method::POST {
                posted(head.status, &body).map_err(fault)
            } else {
                looked_up(head.status, &body).and_then(|()| named(&uri, &directory, &body)).map_err(|wrong| match wrong {
                    Wrong::Refused(problem) => Error::Api(*problem),
                    Wrong::Odd(why) => fault(why),
                })
            };
            checked.map(|()| BytesResponse::from(Response::from_parts(head, Full::new(body))))
        })
    }
}

/// Whether an address that an authority names may be called: as its own, by TLS, unless the authority itself is on this machine, and without.
fn may_lead(uri: &Uri, directory: &Uri) -> bool {
    let plain = |uri: &Uri| uri.scheme() == Some(&Scheme::HTTP);
    let near = |uri: &Uri| {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    !plain(uri) || plain(directory) && near(uri)
}

/// What is wrong with an answer.
enum Wrong {
    /// The authority says no.
    Refused(Box<Problem>),
    /// It is nothing of ACME.
    Odd(String),
}

/// Of what an authority is asked without a signature there is an answer, or none.
fn looked_up(status: http::StatusCode, body: &[u8]) -> Result<(), Wrong> {
    if status.is_success() {
        return Ok(());
    }
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) if problem.detail.is_some() || problem.r#type.is_some() => Err(Wrong::Refused(Box::new(problem))),
        _ => Err(Wrong::Odd(format!("it answers {status}"))),
    }
}

/// What it says no with has to be a problem (RFC 8555, section 6.7).
fn posted(status: http::StatusCode, body: &[u8]) -> Result<(), String> {
    let refused = status.is_client_error() || status.is_server_error();
    if status.is_redirection() || refused && serde_json::from_slice::<Map<String, Value>>(body).is_err() {
        return Err(format!("it answers {status}"));
    }
    Ok(())
}

/// A directory names addresses.
fn named(uri: &Uri, directory: &Uri, body: &[u8]) -> Result<(), Wrong> {
    if uri != directory {
        return Ok(());
    }
    let Ok(said) = serde_json::from_slice::<Map<String, Value>>(body) else {
        return Err(Wrong::Odd("what it answers is no directory of an authority (RFC 8555, section 7.1.1)".to_owned()));
    };
    let good = |text: &str| text.parse::<Uri>().is_ok_and(|uri| uri.host().is_some() && uri.scheme().is_some());
    let bad = |name: &&&str| match said.get(**name) {
        None => NAMED.contains(*name),
        Some(value) => !value.as_str().is_some_and(good),
    };
    match NAMED.iter().chain(&NAMED_AT_WILL).find(bad) {
        Some(name) => Err(Wrong::Odd(format!("its directory names no address as `{name}`"))),
        None => Ok(()),
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3); zero: a moment that is over.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()?;
    Some(SystemTime::from(at).duration_since(now).unwrap_or_default())
}

async fn called(tls: &Arc<ClientConfig>, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Bytes>, String> {
    let secure = request.uri().scheme() != Some(&Scheme::HTTP);
    call(secure.then_some(tls), None, request).await
}

/// Calls where the request's address leads: by TLS whoever is of that name, or in plaintext; at these addresses, or at those that its name
/// has. Not bounded in time.
///
/// # Errors
/// The name has no address, nobody takes the call, or there is no answer.
pub(crate) async fn call<B>(
    tls: Option<&Arc<ClientConfig>>,
    known: Option<&[SocketAddr]>,
    request: Request<B>,
) -> Result<Response<Bytes>, String>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let uri = request.uri().clone();
    let host = uri.host().ok_or("its address names no host")?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let addresses: Vec<SocketAddr> = match known {
        Some(known) => known.to_vec(),
        None => lookup_host((host.as_str(), port)).await.map_err(|error| format!("its name: {error}"))?.take(ADDRESSES_MAX).collect(),
    };
    send(tls.map(|tls| (tls, host.as_str())), &addresses, request).await
}

/// Sends a request to the first of some addresses that takes a connection; by TLS to whoever is of that name. Not bounded in time.
///
/// # Errors
/// Nobody takes it, or there is no answer.
pub(super) async fn send<B>(
    tls: Option<(&Arc<ClientConfig>, &str)>,
    addresses: &[SocketAddr],
    request: Request<B>,
) -> Result<Response<Bytes>, String>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut why = "its name has no address".to_owned();
    for address in addresses {
        let socket = match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                why = format!("{address}: {error}");
                continue;
            }
            Err(_) => {
                why = format!("{address}: no connection within {} s", CONNECT_MAX.as_secs());
                continue;
            }
        };
        let Some((tls, host)) = tls else { return exchange(socket, request).await };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(tls.clone()).connect(name, socket).await;
        return exchange(stream.map_err(|error| format!("TLS: {error}"))?, request).await;
    }
    Err(why)
}

async fn exchange<S, B>(stream: S, request: Request<B>) -> Result<Response<Bytes>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    parts.headers.insert(HOST, HeaderValue::from_str(authority).map_err(|error| error.to_string())?);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let asking = async {
        let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| format!("its answer: {error}"))?;
        Ok(Response::from_parts(head, body.to_bytes()))
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
        // Aim: seconds, and a date; the past is now, and nonsense says nothing.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text: &'static str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]), now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!((read("Sun, 06 Nov 1994 08:48:37 GMT"), read("soon"), read("-1")), (Some(Duration::ZERO), None, None));
    }

    #[test]
    fn roots_have_to_be_certificates() {
        // Aim: what is no CA is said, by the name of its entry.
        for (pem, told) in
            [("nonsense", "no root certificates"), ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ca.crt")]
        {
            let error = Calls::new("https://a.example", Some(pem.as_bytes()), ComeAgain::default()).err().unwrap();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn an_authority_leads_nowhere_without_tls() {
        // Aim: an address in plaintext is called where the directory itself is one of this machine, and is of this machine too.
        let at = |text: &str| text.parse::<Uri>().unwrap();
        for (uri, directory, may) in [
            ("https://b.example/x", "https://a.example/dir", true),
            ("http://b.example/x", "https://a.example/dir", false),
            ("http://127.0.0.1/x", "https://a.example/dir", false),
            ("http://169.254.169.254/x", "http://127.0.0.1:14000/dir", false),
            ("http://127.0.0.1:1/x", "http://localhost:14000/dir", true),
            ("http://[::1]/x", "http://[::1]:14000/dir", true),
        ] {
            assert_eq!(may_lead(&at(uri), &at(directory)), may, "{uri} of {directory}");
        }
    }

    #[test]
    fn answers_that_are_nothing_of_acme_are_said() {
        // Aim: a proxy's page, a redirect, a directory without addresses, or with some that are none, which would end whoever reads on; a problem is
        // the authority's own word.
        use http::StatusCode;
        let (at, elsewhere) = ("https://a.example/dir".parse::<Uri>().unwrap(), "https://a.example/x".parse::<Uri>().unwrap());
        let odd = |wrong: Result<(), Wrong>| match wrong {
            Err(Wrong::Odd(why)) => why,
            Err(Wrong::Refused(problem)) => format!("refused: {}", problem.detail.unwrap_or_default()),
            Ok(()) => String::new(),
        };
        assert_eq!(odd(looked_up(StatusCode::SERVICE_UNAVAILABLE, b"<html>")), "it answers 503 Service Unavailable");
        assert_eq!(odd(looked_up(StatusCode::MOVED_PERMANENTLY, b"")), "it answers 301 Moved Permanently");
        assert_eq!(odd(looked_up(StatusCode::TOO_MANY_REQUESTS, b"{\"detail\": \"slow\"}")), "refused: slow");
        assert_eq!(posted(StatusCode::BAD_GATEWAY, b"<html>"), Err("it answers 502 Bad Gateway".to_owned()));
        assert_eq!(posted(StatusCode::FORBIDDEN, b"{\"detail\": \"no\"}"), Ok(()));
        let good =
            r#"{"newNonce": "https://a.example/n", "newAccount": "https://a.example/a", "newOrder": "https://a.example/o", "meta": {}}"#;
        assert_eq!(odd(named(&at, &at, good.as_bytes())), "");
        assert_eq!(odd(named(&elsewhere, &at, b"<html>")), "");
        for (text, told) in [
            ("<html>".to_owned(), "no directory"),
            ("{}".to_owned(), "`newNonce`"),
            (good.replace("https://a.example/n", ""), "`newNonce`"),
            (good.replace("https://a.example/o", "ht tp"), "`newOrder`"),
            (good.replace("{}", "{}, \"renewalInfo\": 7"), "`renewalInfo`"),
        ] {
            let why = odd(named(&at, &at, text.as_bytes()));
            assert!(why.contains(told), "{text}: {why}");
        }
    }
}
