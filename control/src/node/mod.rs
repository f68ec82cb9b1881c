//! `meshwright.v1.Node`: the node agent (which `up` is) is told what should run, and tells what does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use proto::mesh::node_server::{Node, NodeServer};
use proto::mesh::{BoundPort, GatewayState, InstanceState, NodeOrder, NodeReport};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::publish::board::{Board, Errand};
use crate::publish::edition::Edition;
use crate::publish::peer::sidecar_key;
use crate::translate::node_order;
use crate::world::{Change, World, reported};

/// An agent that is gone may be restarting: what it ran keeps its state this long.
const GRACE: Duration = Duration::from_secs(10);
/// Largest report.
const REPORT_BYTES_MAX: usize = 16 << 20;

/// The service.
pub struct Agents {
    board: Arc<Board>,
    stop: CancellationToken,
    /// Counts attachments: the newest one speaks.
    newest: Arc<AtomicU64>,
    takeover: watch::Sender<u64>,
}

impl Agents {
    /// To be added to the server of the Unix socket.
    pub fn service(board: Arc<Board>, stop: CancellationToken) -> NodeServer<Self> {
        let agents = Self { board, stop, newest: Arc::default(), takeover: watch::Sender::new(0) };
        agents.expect_one();
        NodeServer::new(agents).max_decoding_message_size(REPORT_BYTES_MAX)
    }

    /// The states of before a restart hold until an agent reports; if none does, they end like those of an agent that is gone.
    fn expect_one(&self) {
        let (board, newest, stop) = (self.board.clone(), self.newest.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            if newest.load(Ordering::Relaxed) == 0 && !stop.is_cancelled() {
                abandon(&board).await;
            }
        });
    }
}

#[tonic::async_trait]
impl Node for Agents {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<NodeOrder, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<NodeReport>>) -> Result<Response<Self::AttachStream>, Status> {
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        self.takeover.send_replace(number);
        let (sender, receiver) = mpsc::channel(1);
        let (board, stop, newest, takeover) = (self.board.clone(), self.stop.clone(), self.newest.clone(), self.takeover.subscribe());
        tokio::spawn(async move {
            tracing::info!("a node agent attached");
            if let Err(status) = attend(&board, number, request.into_inner(), &sender, takeover, &stop).await {
                // The agent may be gone already.
                let _ = sender.try_send(Err(status));
            }
            tokio::time::sleep(GRACE).await;
            if newest.load(Ordering::Relaxed) == number && !stop.is_cancelled() {
                tracing::warn!("the node agent has been gone for {GRACE:?}");
                abandon(&board).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn attend(
    board: &Arc<Board>,
    number: u64,
    mut reports: Streaming<NodeReport>,
    sender: &mpsc::Sender<Result<NodeOrder, Status>>,
    mut takeover: watch::Receiver<u64>,
    stop: &CancellationToken,
) -> Result<(), Status> {
    let mut editions = board.editions();
    let mut sent: Option<NodeOrder> = None;
    let mut wanted = Some(order(board.edition().as_deref()));
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Status::unavailable("the control plane is stopping; attach again")),
            () = async { drop(takeover.wait_for(|newest| *newest != number).await) } => {
                return Err(Status::aborted("another node agent attached"));
            }
            report = reports.message() => match report {
                Ok(Some(report)) => {
                    if !board.send(Errand::Runtime(reported(&report))).await {
                        return Err(Status::unavailable("the control plane is stopping; attach again"));
                    }
                }
                Ok(None) | Err(_) => return Ok(()),
            },
            changed = editions.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let newest = order(editions.borrow_and_update().as_deref());
                // The newest order wins; what was not sent yet is replaced.
                wanted = (sent.as_ref() != Some(&newest)).then_some(newest);
            }
            permit = sender.reserve(), if wanted.is_some() => {
                let Ok(permit) = permit else { return Ok(()) };
                if let Some(order) = wanted.take() {
                    sent = Some(order.clone());
                    permit.send(Ok(order));
                }
            }
        }
    }
}

fn order(edition: Option<&Edition>) -> NodeOrder {
    // Without an edition the order says `synced: false`: nothing is to be stopped.
    edition.map(|edition| NodeOrder { epoch: edition.epoch, ..node_order(&edition.world) }).unwrap_or_default()
}

/// What runs as a report, to be kept across a restart: resynchronising must never go through "nothing is ready".
pub(crate) fn remembered(world: &World) -> NodeReport {
    let instances = world.instance_states().iter().map(|((namespace, instance), state)| InstanceState {
        namespace: namespace.clone(),
        instance: instance.clone(),
        started: state.started,
        ready: state.ready,
        message: state.message.clone(),
        pid: state.pid,
        proxy_pid: state.proxy_pid,
        restarts: state.restarts,
        fingerprint: state.fingerprint.clone(),
    });
    let gateways = world.gateway_states().iter().map(|((namespace, name), state)| GatewayState {
        namespace: namespace.clone(),
        name: name.clone(),
        ready: state.ready,
        message: state.message.clone(),
        proxy_pid: state.proxy_pid,
        bound: state
            .bound
            .iter()
            .map(|((listener, udp), host)| BoundPort { listener_port: (*listener).into(), host_port: (*host).into(), udp: *udp })
            .collect(),
    });
    NodeReport { instances: instances.collect(), gateways: gateways.collect() }
}

/// Nobody watches over the instances any more: those whose proxy is gone too are not ready.
async fn abandon(board: &Arc<Board>) {
    let Some(edition) = board.edition() else { return };
    let mut instances = edition.world.instance_states().clone();
    for ((namespace, instance), state) in &mut instances {
        if !board.is_present(&sidecar_key(namespace, instance)) {
            state.started = false;
            state.ready = false;
            "the node agent is gone".clone_into(&mut state.message);
        }
    }
    let mut gateways = edition.world.gateway_states().clone();
    for ((namespace, name), state) in &mut gateways {
        if board.gateway_proxies(namespace, name).is_empty() {
            state.ready = false;
            "the node agent is gone".clone_into(&mut state.message);
        }
    }
    board.send(Errand::Runtime(Change::Node { instances, gateways })).await;
}
