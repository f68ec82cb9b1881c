//! Three small HTTP/1.1 servers: admin on loopback, metrics and health probes for everybody.

mod local;
mod pages;
mod places;
mod probe;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::names::NodeId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::io::{Listening, Network, Socket};
use crate::observe::Telemetry;
use crate::shell::probes::Probe;
use crate::snapshots::Snapshots;
use crate::status::lifecycle::Lifecycle;
use crate::status::logs::LogFilter;
use crate::tls::{CredentialCell, TrustCell};
use places::Places;

/// Longest life of a connection to a port that is open to everybody: nobody may hold a place for ever. Longer than an answer takes,
/// that of the application to its own probe included.
const OPEN_LIFE: Duration = Duration::from_secs(30);
/// Longest wait for a request's head.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// Buffer of one connection: heads are small.
const BUFFER_BYTES: usize = 16 << 10;
/// Pause after the kernel refused to give the next connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which pages a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// `/config_dump`, `/stats`, `/explain`, `/parting`, `/drain`, `/quitquitquit`, `/logging`.
    Admin,
    /// `/metrics`.
    Metrics,
    /// `/healthz/ready`, `/healthz/live`, `/healthz/startup`, and `/app-health/…`: the application's own probes.
    Health,
}

/// What the pages show and move.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The live configuration.
    pub snapshots: Snapshots,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// The leaf in use.
    pub credentials: Arc<CredentialCell>,
    /// The roots in use.
    pub trust: Arc<TrustCell>,
    /// Readiness and drain.
    pub lifecycle: Lifecycle,
    /// The log's filter.
    pub logs: LogFilter,
    /// Who this is.
    pub node: NodeId,
    /// The way to the application.
    pub network: Network,
    /// What may be asked of the application beside what the control plane says: the word of whoever started the proxy.
    pub probes: Arc<[Probe]>,
}

impl Admin {
    /// Serves one port until `stop`.
    pub async fn serve(self, mut listening: Listening, pages: Pages, stop: CancellationToken) {
        let admin = Arc::new(self);
        let mut places = Places::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listening.accept() => accepted,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!("{pages:?} port: no connection can be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            places.make_room(accepted.peer.ip());
            let conversation = tokio::spawn(Arc::clone(&admin).converse(accepted.socket, pages));
            places.take(accepted.peer.ip(), conversation.abort_handle());
        }
    }

    /// Answers on one connection: one request, where the port is open to everybody.
    async fn converse(self: Arc<Self>, socket: Socket, pages: Pages) {
        let service = service_fn(|request: Request<Incoming>| {
            let admin = Arc::clone(&self);
            async move { Ok::<_, Infallible>(admin.page(pages, &request.into_parts().0).await) }
        });
        let own = pages == Pages::Admin;
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT).max_buf_size(BUFFER_BYTES).keep_alive(own);
        let serving = builder.serve_connection(TokioIo::new(socket), service);
        // A client that goes away is no news.
        if own {
            let _ = serving.await;
        } else {
            let _ = timeout(OPEN_LIFE, serving).await;
        }
    }
}

#[cfg(test)]
mod tests;
