//! The node agent: told by the control plane what should run here, it makes it so and reports what does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use proto::mesh::node_client::NodeClient;
use proto::mesh::{GatewayOrder, InstanceOrder, NodeOrder, NodeReport, RelayOrder};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::dns::LiveZone;
use super::mesh::{Key, Mesh, Phase};
use super::{gateway, instance, relay};
use crate::state::CONTROL_SOCKET;

/// Pause between two attempts to reach the control plane.
const RETRY: Duration = Duration::from_millis(200);
/// Reports under way; each one replaces the one before, so one and the next are enough.
const REPORTS_MAX: usize = 2;
/// Largest order: thousands of instances and Services.
const ORDER_BYTES_MAX: usize = 64 << 20;
/// Changes within this time travel as one report.
const GATHER: Duration = Duration::from_millis(10);

/// What kind of thing a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MemberKind {
    Instance,
    Gateway,
}

#[derive(Debug)]
enum Order {
    Instance(Box<InstanceOrder>),
    Gateway(Box<GatewayOrder>),
}

#[derive(Debug)]
struct Tracked {
    fingerprint: String,
    phase: watch::Sender<Phase>,
}

/// Everything that runs on this node.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    wanted: BTreeMap<(MemberKind, Key), Order>,
    members: BTreeMap<(MemberKind, Key), Tracked>,
    lives: JoinSet<(MemberKind, Key)>,
    relays: BTreeMap<u32, (String, JoinHandle<()>)>,
}

impl Order {
    fn fingerprint(&self) -> &str {
        match self {
            Self::Instance(order) => &order.fingerprint,
            Self::Gateway(order) => &order.fingerprint,
        }
    }
}

/// What has to happen to one member.
#[derive(Debug, PartialEq, Eq)]
enum MemberChange<K> {
    Start(K),
    Drain(K),
}

/// Compares what runs (with whether it is on its way out) with what is wanted. Pure. What changed its fingerprint is drained now and started
/// when it has gone.
fn steps<K: Clone + Ord>(running: &BTreeMap<K, (&str, bool)>, wanted: &BTreeMap<K, &str>) -> Vec<MemberChange<K>> {
    let drains = running
        .iter()
        .filter(|(key, (fingerprint, leaving))| !leaving && wanted.get(key) != Some(fingerprint))
        .map(|(key, _)| MemberChange::Drain(key.clone()));
    let starts = wanted.keys().filter(|key| !running.contains_key(key)).map(|key| MemberChange::Start(key.clone()));
    drains.chain(starts).collect()
}

impl Fleet {
    /// Ends everything, each as fast as the whole mesh's end allows.
    pub(crate) async fn stop(&mut self, limit: Duration) {
        self.wanted.clear();
        for member in self.members.values() {
            member.phase.send_replace(Phase::Stop);
        }
        for (_, task) in self.relays.values() {
            task.abort();
        }
        let all = async { while self.lives.join_next().await.is_some() {} };
        // What is late is killed with its group by the drop of the set.
        let _ = timeout(limit, all).await;
        self.lives.abort_all();
    }

    /// Runs what should run, until the control plane's stream breaks; then tries again, for ever.
    pub(crate) async fn attend(&mut self, mesh: &Rc<Mesh>, zone: &LiveZone) {
        loop {
            // A control plane that is away is told by whoever keeps it running.
            let _ = self.attached(mesh, zone).await;
            let gone = sleep(RETRY);
            tokio::pin!(gone);
            loop {
                tokio::select! {
                    () = &mut gone => break,
                    Some(done) = self.lives.join_next() => self.left(mesh, done.ok()),
                }
            }
        }
    }

    async fn attached(&mut self, mesh: &Rc<Mesh>, zone: &LiveZone) -> anyhow::Result<()> {
        let mut node = connect(mesh.state.join(CONTROL_SOCKET)).await?;
        let (reports, stream) = mpsc::channel(REPORTS_MAX);
        reports.try_send(report(mesh)).context("the channel is new")?;
        let mut orders = node.attach(ReceiverStream::new(stream)).await?.into_inner();
        // One future for all turns of the loop: dropped between notice and report, it would lose the notice.
        let change = changed(mesh);
        tokio::pin!(change);
        loop {
            tokio::select! {
                order = orders.message() => {
                    let order = order?.context("the control plane ended the stream")?;
                    if order.synced {
                        self.take(mesh, zone, order);
                    }
                }
                () = &mut change => {
                    change.set(changed(mesh));
                    reports.send(report(mesh)).await.context("the stream has ended")?;
                }
                Some(done) = self.lives.join_next() => self.left(mesh, done.ok()),
            }
        }
    }

    fn take(&mut self, mesh: &Rc<Mesh>, zone: &LiveZone, order: NodeOrder) {
        zone.take(&order.services, instance::askers(&order.instances));
        mesh.services.send_if_modified(|before| {
            let differs = **before != order.services;
            if differs {
                *before = Arc::new(order.services);
            }
            differs
        });
        let instances = order
            .instances
            .into_iter()
            .map(|order| ((MemberKind::Instance, (order.namespace.clone(), order.instance.clone())), Order::Instance(Box::new(order))));
        let gateways = order
            .gateways
            .into_iter()
            .map(|order| ((MemberKind::Gateway, (order.namespace.clone(), order.name.clone())), Order::Gateway(Box::new(order))));
        self.wanted = instances.chain(gateways).collect();
        self.relay(mesh, &order.relays);
        self.step(mesh);
    }

    /// A life ended: it was drained, or it panicked, and then it starts again like anything that died.
    fn left(&mut self, mesh: &Rc<Mesh>, done: Option<(MemberKind, Key)>) {
        match done {
            Some(key) => drop(self.members.remove(&key)),
            None => self.members.retain(|_, member| !member.phase.is_closed()),
        }
        self.step(mesh);
    }

    fn step(&mut self, mesh: &Rc<Mesh>) {
        let running = self
            .members
            .iter()
            .map(|(key, member)| (key.clone(), (member.fingerprint.as_str(), *member.phase.borrow() != Phase::Run)))
            .collect();
        let wanted = self.wanted.iter().map(|(key, order)| (key.clone(), order.fingerprint())).collect();
        for step in steps(&running, &wanted) {
            match step {
                MemberChange::Drain(key) => drop(self.members.get(&key).map(|member| member.phase.send_replace(Phase::Drain))),
                MemberChange::Start(key) => self.start(mesh, key),
            }
        }
    }

    fn start(&mut self, mesh: &Rc<Mesh>, key: (MemberKind, Key)) {
        let Some(order) = self.wanted.get(&key) else { return };
        let (phase, receiver) = watch::channel(Phase::Run);
        self.members.insert(key.clone(), Tracked { fingerprint: order.fingerprint().to_owned(), phase });
        let mesh = Rc::clone(mesh);
        match order {
            Order::Instance(order) => {
                let order = order.as_ref().clone();
                self.lives.spawn_local(async move {
                    instance::live(mesh, order, receiver).await;
                    key
                });
            }
            Order::Gateway(order) => {
                let order = order.as_ref().clone();
                self.lives.spawn_local(async move {
                    gateway::live(mesh, order, receiver).await;
                    key
                });
            }
        }
    }

    /// A loopback OTLP endpoint means the host's: listens on the bridge and dials from the host.
    fn relay(&mut self, mesh: &Rc<Mesh>, wanted: &[RelayOrder]) {
        self.relays.retain(|port, (target, task)| {
            let stays = wanted.iter().any(|order| order.port == *port && order.target == *target) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for order in wanted {
            if self.relays.contains_key(&order.port) {
                continue;
            }
            match relay_to_host(mesh, order.port, &order.target) {
                Ok(task) => drop(self.relays.insert(order.port, (order.target.clone(), task))),
                Err(error) => mesh.screen.notice(format!("telemetry to {} is not relayed: {error:#}", order.target)),
            }
        }
        let running = self.relays.iter().filter_map(|(port, (target, _))| Some((authority(target).to_owned(), u16::try_from(*port).ok()?)));
        mesh.relays.replace(running.collect());
    }
}

/// `HOST:PORT` of an endpoint.
pub(crate) fn authority(endpoint: &str) -> &str {
    endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/')
}

/// Starts a relay from the bridge's addresses to a target that the host reaches.
pub(crate) fn relay_to_host(mesh: &Rc<Mesh>, port: u32, target: &str) -> anyhow::Result<JoinHandle<()>> {
    let port = u16::try_from(port).with_context(|| format!("{port} is not a port"))?;
    let mut listeners = Vec::new();
    for address in mesh.settings.ranges.bridge_here() {
        listeners.push(mesh.fabric.borrow().listen(SocketAddr::new(address.addr(), port))?);
    }
    let target = authority(target).to_owned();
    Ok(spawn_local(async move {
        let relays = listeners.into_iter().map(|listener| {
            let target = target.clone();
            relay::run(listener, move |_| relay::from_host(target.clone()))
        });
        futures::future::join_all(relays).await;
    }))
}

async fn connect(socket: PathBuf) -> anyhow::Result<NodeClient<Channel>> {
    // One try by hand: tonic would try for ever.
    drop(UnixStream::connect(&socket).await?);
    let connector = tower::service_fn(move |_: Uri| {
        let path = socket.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://control.sock").connect_with_connector(connector).await?;
    Ok(NodeClient::new(channel).max_decoding_message_size(ORDER_BYTES_MAX))
}

async fn changed(mesh: &Mesh) {
    mesh.report.notified().await;
    sleep(GATHER).await;
}

fn report(mesh: &Mesh) -> NodeReport {
    let roster = mesh.roster.borrow();
    NodeReport { instances: roster.instances.values().cloned().collect(), gateways: roster.gateways.values().cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the table of what happens to each member: new, gone, changed, unchanged, and already leaving.
    #[test]
    fn steps_follow_the_difference() {
        let running =
            [("same", ("1", false)), ("gone", ("1", false)), ("changed", ("1", false)), ("leaving", ("1", true)), ("back", ("1", true))]
                .into();
        let wanted = [("same", "1"), ("changed", "2"), ("new", "1"), ("back", "1")].into();
        assert_eq!(steps(&running, &wanted), [MemberChange::Drain("changed"), MemberChange::Drain("gone"), MemberChange::Start("new")]);
    }
}
