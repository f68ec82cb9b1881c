//! The control plane's doors and what answers behind them.
//!
//! | Door | Who | What answers |
//! |---|---|---|
//! | TLS, 15012 | clients with a certificate of the mesh | ADS, Reports, LimitLeases, Certificates |
//! | TLS, 15012 | clients without | Certificates, by token |
//! | TLS, 15012 | commands that show an API token: one looks, the other changes | Control |
//! | plaintext, loopback | stock clients on this machine | ADS, routing only |
//! | Unix socket, 0600 | commands, the node agent | Control, Node |

pub mod admit;
pub mod ads;
pub mod authority;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod reports;
pub mod strangers;
pub mod tls;
pub mod token;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use listen::Incoming;
use strangers::Reception;

/// Requests that one connection may have open.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
/// Pings to a silent peer, and how long it may take to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Until the head of an answer; streams go on beyond it.
const ANSWER: Duration = Duration::from_secs(30);

/// Serves `routes` on `incoming` until `stop`, then lets open requests end.
///
/// # Errors
/// The HTTP/2 server gives up; a single connection's failure does not make it.
pub async fn serve(routes: Routes, incoming: Incoming, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .layer(Reception)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .concurrency_limit_per_connection(STREAMS_PER_CONNECTION_MAX as usize)
        .load_shed(true)
        .timeout(ANSWER)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}
