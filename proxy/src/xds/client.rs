//! The task that keeps the stream to the control plane open and carries out what the [`Session`] decides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::names::{self, METADATA, Mode, NODE_CLIENT, NODE_REPLICA, NODE_WORKLOAD, NodeId};
use proto::xds::core::Node;
use proto::xds::core::node::UserAgentVersionType;
use proto::xds::discovery::DeltaDiscoveryRequest;
use proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{debug, error, info, info_span, warn};

use super::backoff::Backoff;
use super::session::{Effect, Session};
use crate::io::Draw;
use crate::observe::Telemetry;
use crate::snapshots::Snapshots;
use crate::tls::dial::Uplink;
use crate::tls::{CredentialCell, TrustCell, TrustError};

/// Largest response taken. Ours are cut at 3 MiB; one resource may be larger.
const RESPONSE_BYTES_MAX: usize = 64 << 20;
/// Requests handed to the connection ahead of its window.
const REQUESTS_AHEAD: usize = 8;
/// How often idle names are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(20);
/// Failures in a row after which the log is quiet.
const LOUD_FAILURES: u32 = 5;

/// Who this proxy says it is.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Mode, namespace, instance.
    pub id: NodeId,
    /// Workload (or Gateway).
    pub workload: String,
    /// Of a Gateway's proxy that is one of several: its instance; empty: it has no other name than its Gateway's, or is a sidecar.
    pub replica: String,
}

impl NodeIdentity {
    fn node(&self) -> Node {
        let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
        let workload = format!("{}/{}", self.id.namespace, self.workload);
        let mut fields = BTreeMap::from([(NODE_CLIENT.to_owned(), text("proxy".to_owned())), (NODE_WORKLOAD.to_owned(), text(workload))]);
        if !self.replica.is_empty() {
            fields.insert(NODE_REPLICA.to_owned(), text(self.replica.clone()));
        }
        Node {
            id: self.id.to_string(),
            cluster: self.workload.clone(),
            metadata: Some(Struct { fields }),
            user_agent_name: METADATA.to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").to_owned())),
            ..Node::default()
        }
    }

    /// `sidecar` or `edge`.
    pub fn mode(&self) -> &'static str {
        match self.id.mode {
            Mode::Sidecar => "sidecar",
            Mode::Edge => "edge",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    /// Reconnects by itself.
    pub uplink: Uplink,
    /// Who we are.
    pub node: NodeIdentity,
    /// Where snapshots go live, and what is wanted.
    pub snapshots: Snapshots,
    /// Where the roots go.
    pub trust: Arc<TrustCell>,
    /// Nothing is asked before the first leaf.
    pub credentials: Arc<CredentialCell>,
    /// Has the leaf renewed at once: the control plane takes it for nothing else any more.
    pub hurry: Arc<Notify>,
    /// Epoch and refusals, as metrics.
    pub telemetry: Arc<Telemetry>,
}

/// How a stream came to its end.
enum StreamEnd {
    Stopped,
    StartOver,
    Lost(Status),
}

impl Client {
    /// Runs until `stop`. What is live stays live when it ends.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        let mut session = Session::new(self.node.node());
        let mut backoff = Backoff::default();
        let mut leaves = self.credentials.changes();
        while self.credentials.current().is_none() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = leaves.changed() => {}
            }
        }
        loop {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => StreamEnd::Stopped,
                ended = self.stream(&mut session, &mut backoff) => ended,
            };
            self.snapshots.wanted().connected(false);
            self.snapshots.wake();
            if matches!(&ended, StreamEnd::Lost(status) if status.code() == Code::Unauthenticated) {
                self.uplink.open_anew();
                // Its root may have been retired meanwhile, which its dates do not say.
                self.hurry.notify_one();
            }
            let loud = backoff.failures() < LOUD_FAILURES;
            match ended {
                StreamEnd::Stopped => return,
                StreamEnd::Lost(status) if self.outcast(&status) => {}
                StreamEnd::StartOver => warn!("an epoch did not fit what was sent for 15 s: asking for everything anew"),
                StreamEnd::Lost(status) if loud => {
                    info!(
                        "the control plane's stream ended ({:?}: {}); serving the last good configuration",
                        status.code(),
                        status.message()
                    );
                }
                StreamEnd::Lost(status) => debug!("no stream to the control plane yet ({:?}: {})", status.code(), status.message()),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(backoff.next(draw.next())) => {}
            }
        }
    }

    async fn stream(&self, session: &mut Session, backoff: &mut Backoff) -> StreamEnd {
        let (requests, outgoing) = mpsc::channel(REQUESTS_AHEAD);
        let wanted = self.snapshots.wanted();
        let mut waiting: VecDeque<DeltaDiscoveryRequest> = session.open(&wanted.all()).into();
        // The first requests go in before the call: some servers answer nothing, not even headers, before they have heard something.
        while waiting.len() > 1 && requests.capacity() > 0 {
            let Some(request) = waiting.pop_front() else { break };
            let _ = requests.try_send(request);
        }
        let client = AggregatedDiscoveryServiceClient::new(self.uplink.channel());
        let mut client = client.max_decoding_message_size(RESPONSE_BYTES_MAX);
        let mut responses = match client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await {
            Ok(responses) => responses.into_inner(),
            Err(status) => return StreamEnd::Lost(status),
        };
        let mut expire = interval(EXPIRE_EVERY);
        expire.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = session.due();
            let effects = tokio::select! {
                biased;
                permit = requests.reserve(), if !waiting.is_empty() => {
                    let Ok(permit) = permit else { return StreamEnd::Lost(Status::unavailable("the stream was closed")) };
                    if let Some(request) = waiting.pop_front() {
                        permit.send(request);
                    }
                    continue;
                }
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        if backoff.failures() > 0 {
                            info!("the control plane answers again");
                        }
                        backoff.reset();
                        wanted.connected(true);
                        if self.trust.cast_out(None) {
                            info!("this proxy is believed again");
                        }
                        if !matches!(response.type_url.as_str(), proto::xds::ENDPOINT | proto::xds::SECRET) {
                            self.telemetry.readings.config_staged.fetch_add(response.resources.len() as u64, Ordering::Relaxed);
                        }
                        session.on(response, Instant::now())
                    }
                    Ok(None) => return StreamEnd::Lost(Status::unavailable("the control plane closed the stream")),
                    Err(status) => return StreamEnd::Lost(status),
                },
                () = wanted.changed() => {
                    waiting.extend(session.want(wanted.take()));
                    continue;
                }
                _ = expire.tick() => {
                    wanted.expire(Instant::now());
                    continue;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => session.tick(Instant::now()),
            };
            for effect in effects {
                match effect {
                    Effect::Send(request) => waiting.push_back(*request),
                    Effect::StartOver => return StreamEnd::StartOver,
                    other => self.carry_out(other),
                }
            }
        }
    }

    /// Whether the control plane says that this proxy itself is revoked. Then it is not ready any more, and says so aloud; what it runs it
    /// runs on, for callers that have not heard yet are cut by themselves.
    fn outcast(&self, status: &Status) -> bool {
        if status.metadata().get(names::REVOKED).is_none() {
            return false;
        }
        // A new leaf proves nothing on an old connection.
        self.uplink.open_anew();
        if self.trust.cast_out(Some(status.message())) {
            error!("this proxy is no longer believed, so it is not ready: {}", status.message());
        }
        true
    }

    fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::Publish(snapshot) => {
                let _span = info_span!("configuration", epoch = i64::try_from(snapshot.epoch).unwrap_or(i64::MAX)).entered();
                let readings = &self.telemetry.readings;
                readings.config_staged.store(0, Ordering::Relaxed);
                let before = readings.config_epoch.swap(snapshot.epoch, Ordering::Relaxed);
                *readings.limits.lock() = Arc::clone(&snapshot.limits);
                *readings.callouts.lock() = Arc::clone(&snapshot.callouts);
                if let Some(settings) = &snapshot.settings {
                    self.telemetry.configured(settings);
                }
                if before != snapshot.epoch {
                    info!(epoch = snapshot.epoch, routes = snapshot.routes.len(), clusters = snapshot.clusters.len(), "configuration live");
                }
                // Whom to believe comes first: what goes live next may lead to somebody new.
                if let Some(trust) = &snapshot.trust {
                    told(self.trust.believe(trust), trust.roots.len());
                }
                self.snapshots.publish(snapshot);
            }
            Effect::Consumers => self.snapshots.wake(),
            Effect::TrustBundle(bundle) => {
                let roots = bundle.iter().map(|der| CertificateDer::from(der.clone())).collect();
                told(self.trust.publish(roots), bundle.len());
            }
            Effect::Answered(want, exists) => {
                self.snapshots.wanted().answered(&want, exists);
                if !exists {
                    self.snapshots.wake();
                }
            }
            Effect::Refused(refused) => {
                self.telemetry.readings.config_rejected.fetch_add(refused.len() as u64, Ordering::Relaxed);
                for rejected in refused {
                    warn!("refused: {rejected}; its last good version stays in force");
                }
            }
            Effect::Send(_) | Effect::StartOver => {}
        }
    }
}

fn told(changed: Result<bool, TrustError>, roots: usize) {
    match changed {
        Ok(true) => info!(roots, "whom to believe is live"),
        Ok(false) => {}
        Err(error) => warn!("the control plane's trust bundle is not taken, the former one stays: {error}"),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
