//! The SPIFFE Workload API: identities for the application, on a Unix socket beside it (spiffe.io; `docs/identity.md`).
//!
//! A call's road: `authority` (can it be read at all) -> `service` (is it meant for this API) -> `svid` (certificates and bundles, checked before they are served) or `token`
//! (JWT-SVIDs, kept and judged). The application's certificate has a key of its own: the proxy's never leaves its process. Nothing of
//! this runs before somebody asks.

mod authority;
mod service;
mod svid;
mod token;
mod token_keys;

use std::sync::Arc;
use std::time::Duration;

use proto::generated::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::warn;

use crate::identity::{Agent, Bundles, Exposed, Subject, follow};
use crate::io::{Clock, Draw, LocalDoor};
use crate::snapshots::Snapshots;
use crate::tls::dial::Dialer;
use crate::tls::{CredentialCell, TrustCell};
use authority::Mended;
use service::Service;
use token::Tokens;

/// Connections at a time; more wait.
pub const CONNECTIONS_MAX: usize = 128;
/// Streams at a time, over all connections.
pub const STREAMS_MAX: usize = 512;
/// Streams of one connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Largest message that is taken: a token to be judged.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// How long a first call waits for what it asks for, before it is told to come again.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Longest header block.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// The API of one proxy's application.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    /// Way to the control plane, with the proxy's leaf.
    pub dialer: Dialer,
    /// The proxy's leaf: it speaks for the application's.
    pub credentials: Arc<CredentialCell>,
    /// The roots in use.
    pub trust: Arc<TrustCell>,
    /// Lives of leaves.
    pub snapshots: Snapshots,
    /// Wall time.
    pub clock: Clock,
    /// Whose application it is.
    pub subject: Subject,
}

/// Wakes what an application wants for the first time; from then on it is kept fresh.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand(CancellationToken);

impl Demand {
    fn raise(&self) {
        self.0.cancel();
    }

    async fn raised(&self, stop: &CancellationToken) -> bool {
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = self.0.cancelled() => true,
        }
    }
}

impl WorkloadApi {
    /// Serves the API on that socket until `stop`, in tasks of its own.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn start(self, tasks: &mut JoinSet<()>, door: LocalDoor, draw: &Draw, stop: &CancellationToken) -> anyhow::Result<()> {
        let (leaf, bundles) = (Demand::default(), Demand::default());
        let (exposed, told) = (watch::Sender::new(None), watch::Sender::new(None));
        let service = Service {
            tokens: Tokens::new(self.dialer.clone(), Arc::clone(&self.credentials), self.clock, self.subject.instance.clone()),
            exposed: exposed.subscribe(),
            bundles: told.subscribe(),
            want_leaf: leaf.clone(),
            want_bundles: bundles.clone(),
            trust: Arc::clone(&self.trust),
            clock: self.clock,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            stop: stop.clone(),
        };
        let incoming = door.accept(CONNECTIONS_MAX, stop.clone())?.map(|accepted| accepted.map(Mended::new));
        let api = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADERS_BYTES_MAX)
            .add_service(api);
        let end = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, end.cancelled_owned()).await {
                warn!(%error, "the SPIFFE Workload API has ended");
            }
        });
        tasks.spawn(keep_bundles(bundles, self.clone(), told, Draw::seeded(draw.next()), stop.clone()));
        tasks.spawn(keep_leaf(leaf, self, exposed, Draw::seeded(draw.next()), stop.clone()));
        Ok(())
    }
}

/// From the first demand on, keeps a leaf with a key of its own for the application.
async fn keep_leaf(demand: Demand, api: WorkloadApi, exposed: watch::Sender<Option<Arc<Exposed>>>, draw: Draw, stop: CancellationToken) {
    // The proxy's own leaf comes first: it is what asks.
    let first = async { api.credentials.changes().wait_for(|_| api.credentials.current().is_some()).await.is_ok() };
    if !demand.raised(&stop).await || !stop.run_until_cancelled(first).await.unwrap_or(false) {
        return;
    }
    let agent = Agent {
        dialer: api.dialer,
        bearer: api.credentials,
        exposed: Some(exposed),
        hurry: Arc::new(Notify::new()),
        credentials: Arc::new(CredentialCell::default()),
        trust: api.trust,
        snapshots: api.snapshots,
        clock: api.clock,
        subject: api.subject,
        token: None,
    };
    agent.run(draw, stop).await;
}

async fn keep_bundles(demand: Demand, api: WorkloadApi, told: watch::Sender<Option<Arc<Bundles>>>, draw: Draw, stop: CancellationToken) {
    if demand.raised(&stop).await {
        // The proxy's own stream of configuration has the leaf renewed.
        follow(api.dialer, (api.credentials, Arc::default()), told, draw, stop).await;
    }
}
