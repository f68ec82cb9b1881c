//! Probes of the application (contract, section 4). A kubelet has no identity of the mesh, so under Strict, or where only some callers may,
//! it asks 15021 `/app-health/PORT/PATH` or `/app-health/tcp/PORT`, and the sidecar asks the application. Everybody reaches 15021, so
//! nothing is asked but the probes that the workload declares, and nothing of the answer is passed on but its status.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use engine::model::AppProbe;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::request::Parts;
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ground::limits::HEAD_BYTES_MAX;
use crate::io::{Network, Socket};

/// What the paths of these probes begin with.
pub(super) const PREFIX: &str = "/app-health/";
/// Longest wait for the application; a kubelet that waits less has gone by then.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// The declared probe that is asked for; paths and queries are compared as they are written.
pub(super) fn find<'p>(probes: &'p [AppProbe], asked: &Uri) -> Option<&'p AppProbe> {
    let rest = asked.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    if let Some(port) = rest.strip_prefix("tcp/") {
        let port: u16 = port.parse().ok()?;
        return probes.iter().find(|probe| probe.port == port && probe.path.is_none());
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (port, path) = rest.split_at(digits);
    let port: u16 = port.parse().ok()?;
    let path = if path.is_empty() { "/" } else { path };
    probes.iter().find(|probe| probe.port == port && probe.path.as_deref() == Some(path))
}

/// Asks the application at its own addresses, in turn, and yields its status. Dropping the future gives up.
///
/// # Errors
/// Why there is no answer, in words for a person.
pub(super) async fn ask(network: &Network, addresses: &[IpAddr], probe: &AppProbe, head: &Parts) -> Result<StatusCode, String> {
    let asking = async {
        let (socket, address) = connect(network, addresses, probe.port).await?;
        match &probe.path {
            None => Ok(StatusCode::OK),
            Some(path) => get(socket, address, path, head).await.map_err(|error| format!("the application did not answer: {error}")),
        }
    };
    timeout(ANSWER_WAIT, asking).await.unwrap_or_else(|_| Err(format!("the application did not answer within {ANSWER_WAIT:?}")))
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

/// Of the caller's words only who it is and what it takes are passed on; a redirection is an answer like any other.
async fn get(socket: Socket, address: SocketAddr, path: &str, head: &Parts) -> anyhow::Result<StatusCode> {
    let mut request = Request::builder().method(head.method.clone()).uri(path).header(HOST, address.to_string());
    for name in [USER_AGENT, ACCEPT] {
        if let Some(value) = head.headers.get(&name) {
            request = request.header(name, value);
        }
    }
    let request = request.header(CONNECTION, "close").body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::Builder::new().max_header_size(HEAD_BYTES_MAX).handshake(TokioIo::new(socket)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    Ok(sender.send_request(request).await?.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: only what is declared is asked, letter by letter, whatever the path tries to look like.
    #[test]
    fn only_declared_probes_are_found() {
        let probe = |port, path: Option<&str>| AppProbe { port, path: path.map(str::to_owned) };
        let probes = [probe(8080, Some("/healthz?full=1")), probe(8081, Some("/")), probe(9000, None)];
        for (asked, found) in [
            ("/app-health/8080/healthz?full=1", Some(0)),
            ("/app-health/8081/", Some(1)),
            ("/app-health/8081", Some(1)),
            ("/app-health/tcp/9000", Some(2)),
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
            let wanted = found.map(|place: usize| &probes[place]);
            assert_eq!(find(&probes, &asked.parse().unwrap()), wanted, "{asked}");
        }
    }
}
