//! Probes of the application (contract, section 4). A kubelet has no identity of the mesh, so under Strict, or where only some callers may,
//! it asks 15021 `/app-health/PORT/PATH`, `/app-health/tcp/PORT` or `/app-health/grpc/PORT/SERVICE`, and the sidecar asks the application.
//! Everybody reaches 15021, so nothing is asked but the probes that are declared, and nothing of the answer is passed on but its status.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::ground::limits::HEAD_BYTES_MAX;
use crate::http::health;
use crate::io::{Network, Socket};
use crate::shell::probes::{AppQuestion, Probe};
use crate::tls::unproved;

/// What the paths of these probes begin with.
pub(super) const PREFIX: &str = "/app-health/";

/// The declared probe that is asked for; paths and queries are compared as they are written. Where several differ in their headers only,
/// it is the one with most of them, all of which the question bears.
pub(super) fn find(probes: impl Iterator<Item = Probe>, asked: &Parts) -> Option<Probe> {
    let rest = asked.uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    if let Some(port) = rest.strip_prefix("tcp/") {
        let port: u16 = port.parse().ok()?;
        return { probes }.find(|probe| probe.port == port && probe.question == AppQuestion::Tcp);
    }
    if let Some(rest) = rest.strip_prefix("grpc/") {
        let (port, service) = rest.split_once('/').unwrap_or((rest, ""));
        let port: u16 = port.parse().ok()?;
        return { probes }
            .find(|probe| probe.port == port && matches!(&probe.question, AppQuestion::Grpc { service: own } if own == service));
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (port, wanted) = rest.split_at(digits);
    let port: u16 = port.parse().ok()?;
    let wanted = if wanted.is_empty() { "/" } else { wanted };
    let borne = |(name, value): &(HeaderName, HeaderValue)| asked.headers.get_all(name).iter().any(|found| found == value);
    let fits = |probe: &Probe| match &probe.question {
        AppQuestion::Http { path, headers, .. } => probe.port == port && path == wanted && headers.iter().all(borne),
        _ => false,
    };
    let headers = |probe: &Probe| if let AppQuestion::Http { headers, .. } = &probe.question { headers.len() } else { 0 };
    probes.filter(fits).max_by_key(headers)
}

/// Asks the application at its own addresses, in turn, and yields its status. Dropping the future gives up.
///
/// # Errors
/// Why there is no good answer, in words for a person.
pub(super) async fn ask(network: &Network, addresses: &[IpAddr], probe: &Probe, head: &Parts) -> Result<StatusCode, String> {
    let told = |error: anyhow::Error| format!("the application did not answer: {error:#}");
    let asking = async {
        let (socket, address) = connect(network, addresses, probe.port).await?;
        match &probe.question {
            AppQuestion::Tcp => Ok(StatusCode::OK),
            AppQuestion::Grpc { service } => serving(socket, address, service).await,
            AppQuestion::Http { path, tls: false, headers } => get(socket, address, path, headers, head).await.map_err(told),
            AppQuestion::Http { path, tls: true, headers } => {
                let asking = async {
                    let tls = TlsConnector::from(Arc::new(unproved()?));
                    get(tls.connect(ServerName::from(address.ip()), socket).await?, address, path, headers, head).await
                };
                asking.await.map_err(told)
            }
        }
    };
    timeout(probe.wait, asking).await.unwrap_or_else(|_| Err(format!("the application did not answer within {:?}", probe.wait)))
}

/// A program may listen on one family only.
async fn connect(network: &Network, addresses: &[IpAddr], port: u16) -> Result<(Socket, SocketAddr), String> {
    let mut last = "the instance has no address of its own".to_owned();
    for address in addresses.iter().map(|address| SocketAddr::new(*address, port)) {
        match network.connect(address).await {
            Ok(socket) => return Ok((socket, address)),
            Err(error) => last = format!("nothing answers at {address}: {error}"),
        }
    }
    Err(last)
}

/// Of the caller's words only who it is, what it takes and what is declared are passed on; a redirection is an answer like any other.
async fn get<S>(
    stream: S,
    address: SocketAddr,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
    head: &Parts,
) -> anyhow::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut request = Request::builder().method(head.method.clone()).uri(path);
    let declared = |wanted: &HeaderName| headers.iter().any(|(name, _)| name == wanted);
    if !declared(&HOST) {
        request = request.header(HOST, address.to_string());
    }
    for name in [USER_AGENT, ACCEPT].into_iter().filter(|name| !declared(name)) {
        if let Some(value) = head.headers.get(&name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in headers.iter().filter(|(name, _)| *name != CONNECTION) {
        request = request.header(name, value);
    }
    let request = request.header(CONNECTION, "close").body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::Builder::new().max_header_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    Ok(sender.send_request(request).await?.status())
}

/// 200 where the service says that it is serving.
async fn serving(socket: Socket, address: SocketAddr, service: &str) -> Result<StatusCode, String> {
    let told = |error: h2::Error| format!("the application did not answer: {error}");
    let request = health::question(&address.to_string()).body(()).map_err(|error| error.to_string())?;
    let mut builder = h2::client::Builder::new();
    builder.max_header_list_size(HEAD_BYTES_MAX as u32).enable_push(false);
    let (sender, connection) = builder.handshake::<_, Bytes>(socket).await.map_err(told)?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut sender = sender.ready().await.map_err(told)?;
    let (answer, mut upload) = sender.send_request(request, false).map_err(told)?;
    upload.send_data(health::framed(service), true).map_err(told)?;
    health::serving(answer.await.map_err(told)?).await.map(|()| StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::probes::AppProbes;

    const DECLARED: &str = r#"[
        {"httpGet": {"port": 8080, "path": "/healthz?full=1"}},
        {"httpGet": {"port": 8081}},
        {"tcpSocket": {"port": 9000}},
        {"grpc": {"port": 9001}},
        {"grpc": {"port": 9001, "service": "shop.Catalog"}},
        {"httpGet": {"port": 8082, "httpHeaders": [{"name": "X-Who", "value": "a"}]}},
        {"httpGet": {"port": 8082, "httpHeaders": [{"name": "x-who", "value": "a"}, {"name": "Host", "value": "h"}]}}
    ]"#;

    fn found(asked: &str, headers: &[(&str, &str)]) -> Option<usize> {
        let probes = DECLARED.parse::<AppProbes>().unwrap().0;
        let request = headers.iter().fold(Request::get(asked), |request, (name, value)| request.header(*name, *value));
        let found = find(probes.iter().cloned(), &request.body(()).unwrap().into_parts().0)?;
        probes.iter().position(|probe| *probe == found)
    }

    /// Aim: only what is declared is asked, letter by letter, whatever the path tries to look like.
    #[test]
    fn only_declared_probes_are_found() {
        for (asked, wanted) in [
            ("/app-health/8080/healthz?full=1", Some(0)),
            ("/app-health/8081/", Some(1)),
            ("/app-health/8081", Some(1)),
            ("/app-health/tcp/9000", Some(2)),
            ("/app-health/grpc/9001", Some(3)),
            ("/app-health/grpc/9001/", Some(3)),
            ("/app-health/grpc/9001/shop.Catalog", Some(4)),
            ("/app-health/grpc/9001/shop.Store", None),
            ("/app-health/grpc/9000", None),
            ("/app-health/9001", None),
            ("/app-health/8082", None),
            ("/app-health/8080/healthz", None),
            ("/app-health/8080/healthz?full=1&x", None),
            ("/app-health/8080/healthz/?full=1", None),
            ("/app-health/8080//healthz?full=1", None),
            ("/app-health/8080/./healthz?full=1", None),
            ("/app-health/8080/%68ealthz?full=1", None),
            ("/app-health/8081/admin", None),
            ("/app-health/9000/", None),
            ("/app-health/tcp/8080", None),
            ("/app-health/tcp/9000/", None),
            ("/app-health/65616/healthz?full=1", None),
            ("/app-health/+8081/", None),
            ("/app-health/", None),
            ("/app-healthz/8081/", None),
        ] {
            assert_eq!(found(asked, &[]), wanted, "{asked}");
        }
    }

    /// Aim: where probes differ in their headers only, the question's tell which one it is; others' headers make no new one.
    #[test]
    fn headers_tell_probes_apart() {
        for (headers, wanted) in [
            (&[("x-who", "a")][..], Some(5)),
            (&[("x-who", "a"), ("host", "h")], Some(6)),
            (&[("x-who", "a"), ("host", "other")], Some(5)),
            (&[("x-who", "b"), ("host", "h")], None),
        ] {
            assert_eq!(found("/app-health/8082/", headers), wanted, "{headers:?}");
        }
    }
}
