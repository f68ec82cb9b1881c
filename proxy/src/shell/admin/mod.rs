//! Three small HTTP/1.1 servers: admin on loopback, metrics and health probes for everybody.

mod local;
mod pages;
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
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::io::{Listening, Network};
use crate::observe::Telemetry;
use crate::snapshots::Snapshots;
use crate::status::lifecycle::Lifecycle;
use crate::status::logs::LogFilter;
use crate::tls::{CredentialCell, TrustCell};

/// Connections at once per port; more are closed.
const CONNECTIONS_MAX: usize = 64;
/// Longest wait for a request's head.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// Buffer of one connection: heads are small.
const BUFFER_BYTES: usize = 16 << 10;
/// Pause after the kernel refused to give the next connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which pages a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// `/config_dump`, `/stats`, `/explain`, `/drain`, `/quitquitquit`, `/logging`.
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
}

impl Admin {
    /// Serves one port until `stop`.
    pub async fn serve(self, mut listening: Listening, pages: Pages, stop: CancellationToken) {
        let admin = Arc::new(self);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
            let admin = Arc::clone(&admin);
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let admin = Arc::clone(&admin);
                    async move { Ok::<_, Infallible>(admin.page(pages, &request.into_parts().0).await) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT).max_buf_size(BUFFER_BYTES);
                // A client that goes away is no news.
                let _ = builder.serve_connection(TokioIo::new(accepted.socket), service).await;
                drop(permit);
            });
        }
    }
}

#[cfg(test)]
mod tests;
