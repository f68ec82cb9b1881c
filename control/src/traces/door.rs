//! The way to a collector: a connection, in TLS where the endpoint says so, and one post of HTTP over it.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a door: where the control plane's own spans leave")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest wait for name and connection, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Largest head and body of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;
const BODY_BYTES_MAX: usize = 64 << 10;

/// A connection, whatever protects it.
pub(super) trait Line: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Line for S {}

/// Connects to where a URL leads; `alpn` is what is to be spoken.
pub(super) async fn connect(uri: &Uri, alpn: &'static [u8]) -> io::Result<Box<dyn Line>> {
    let connected = timeout(CONNECT_MAX, connect_unbounded(uri, alpn)).await;
    connected.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} s", CONNECT_MAX.as_secs())))?
}

async fn connect_unbounded(uri: &Uri, alpn: &'static [u8]) -> io::Result<Box<dyn Line>> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    if !secure {
        return Ok(Box::new(stream));
    }
    let config = spawn_blocking(move || trusting_the_machine(alpn)).await.map_err(io::Error::other)?;
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(Arc::new(config.map_err(io::Error::other)?)).connect(name, stream).await?))
}

/// Whoever proves its name below the roots of this machine.
fn trusting_the_machine(alpn: &[u8]) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// Posts over a connection of its own: spans of the control plane are few.
#[derive(Debug)]
pub(super) struct Posts;

#[async_trait]
impl HttpClient for Posts {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        Ok(timeout(CONNECT_MAX + ANSWER_MAX, post(request)).await??)
    }
}

async fn post(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut head, body) = request.into_parts();
    let line = connect(&head.uri, b"http/1.1").await?;
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    head.headers.insert(HOST, HeaderValue::from_str(authority)?);
    if let Some(path) = head.uri.path_and_query() {
        head.uri = path.as_str().parse()?;
    }
    let (mut sender, connection) = Builder::new().max_header_size(HEAD_BYTES_MAX).handshake(TokioIo::new(line)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async { drop(connection.await) });
    let (head, body) = sender.send_request(Request::from_parts(head, Full::new(body))).await?.into_parts();
    Ok(Response::from_parts(head, Limited::new(body, BODY_BYTES_MAX).collect().await?.to_bytes()))
}
