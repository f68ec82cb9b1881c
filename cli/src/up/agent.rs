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
    shape: String,
    phase: watch::Sender<Phase>,
    /// To a Gateway's life: what it follows without an end.
    orders: Option<watch::Sender<GatewayOrder>>,
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
    /// What cannot change while it runs: all of an instance, of a Gateway its addresses on the fabric alone.
    fn shape(&self) -> String {
        match self {
            Self::Instance(order) => order.fingerprint.clone(),
            Self::Gateway(order) => order.addresses.join(" "),
        }
    }
}

impl Tracked {
    /// Tells a Gateway that goes on what changed of it. One of another shape hears nothing: its successor does.
    fn told(&self, order: &Order) {
        if let (Some(orders), Order::Gateway(order)) = (&self.orders, order)
            && self.shape == order.addresses.join(" ")
        {
            orders.send_if_modified(|before| {
                let differs = *before != **order;
                if differs {
                    before.clone_from(order);
                }
                differs
            });
        }
    }
}

/// What has to happen to one member.
#[derive(Debug, PartialEq, Eq)]
enum MemberChange<K> {
    Start(K),
    Drain(K),
}

/// Compares what runs (with whether it is on its way out) with what is wanted. Pure. What changed its shape is drained now and started
/// when it has gone.
fn steps<K: Clone + Ord>(running: &BTreeMap<K, (&str, bool)>, wanted: &BTreeMap<K, String>) -> Vec<MemberChange<K>> {
    let drains = running
        .iter()
        .filter(|(key, (shape, leaving))| !leaving && wanted.get(key).map(String::as_str) != Some(*shape))
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
                        self.take(mesh, zone, order).await;
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

    async fn take(&mut self, mesh: &Rc<Mesh>, zone: &LiveZone, order: NodeOrder) {
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
        self.relay(mesh, &order.relays).await;
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
        let running =
            self.members.iter().map(|(key, member)| (key.clone(), (member.shape.as_str(), *member.phase.borrow() != Phase::Run))).collect();
        let wanted = self.wanted.iter().map(|(key, order)| (key.clone(), order.shape())).collect();
        for step in steps(&running, &wanted) {
            match step {
                MemberChange::Drain(key) => drop(self.members.get(&key).map(|member| member.phase.send_replace(Phase::Drain))),
                MemberChange::Start(key) => self.start(mesh, key),
            }
        }
        for (key, member) in &self.members {
            if let Some(order) = self.wanted.get(key) {
                member.told(order);
            }
        }
    }

    fn start(&mut self, mesh: &Rc<Mesh>, key: (MemberKind, Key)) {
        let Some(order) = self.wanted.get(&key) else { return };
        let (phase, receiver) = watch::channel(Phase::Run);
        let shape = order.shape();
        let mesh = Rc::clone(mesh);
        match order {
            Order::Instance(order) => {
                self.members.insert(key.clone(), Tracked { shape, phase, orders: None });
                let order = order.as_ref().clone();
                self.lives.spawn_local(async move {
                    instance::live(mesh, order, receiver).await;
                    key
                });
            }
            Order::Gateway(order) => {
                let (orders, followed) = watch::channel(order.as_ref().clone());
                self.members.insert(key.clone(), Tracked { shape, phase, orders: Some(orders) });
                self.lives.spawn_local(async move {
                    gateway::live(mesh, followed, receiver).await;
                    key
                });
            }
        }
    }

    /// A loopback OTLP endpoint means the host's: listens on the bridge and dials from the host.
    async fn relay(&mut self, mesh: &Rc<Mesh>, wanted: &[RelayOrder]) {
        let stays = |port: u32, target: &str| wanted.iter().any(|order| order.port == port && order.target == target);
        let (kept, gone) = std::mem::take(&mut self.relays)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(port, (target, task))| stays(*port, target) && !task.is_finished());
        self.relays = kept;
        for (_, task) in gone.into_values() {
            task.abort();
            // Its port is free when it has ended, and no sooner: the next one may be for the same.
            let _ = task.await;
        }
        for order in wanted {
            if self.relays.contains_key(&order.port) {
                continue;
            }
            match relay_to_host(mesh, order.port, &order.target) {
                Ok(task) => drop(self.relays.insert(order.port, (order.target.clone(), task))),
                Err(error) => mesh.screen.notice(format!("telemetry to {} is not relayed: {error:#}", order.target)),
            }
        }
        let running =
            self.relays.iter().filter_map(|(port, (target, _))| Some((relay::authority(target).to_owned(), u16::try_from(*port).ok()?)));
        mesh.relays.replace(running.collect());
    }
}

/// Starts a relay from the bridge's addresses to a target that the host reaches.
pub(crate) fn relay_to_host(mesh: &Rc<Mesh>, port: u32, target: &str) -> anyhow::Result<JoinHandle<()>> {
    let port = u16::try_from(port).with_context(|| format!("{port} is not a port"))?;
    let mut listeners = Vec::new();
    for address in mesh.settings.ranges.bridge_here() {
        listeners.push(mesh.fabric.borrow().listen(SocketAddr::new(address.addr(), port))?);
    }
    let target = relay::authority(target).to_owned();
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
        let wanted = [("same", "1"), ("changed", "2"), ("new", "1"), ("back", "1")].map(|(key, shape)| (key, shape.to_owned())).into();
        assert_eq!(steps(&running, &wanted), [MemberChange::Drain("changed"), MemberChange::Drain("gone"), MemberChange::Start("new")]);
    }

    /// Aim: a Gateway's ports and the machine's addresses that it serves at reach the life that runs; other addresses on the fabric do not,
    /// for they ask for a new one; and what is the same wakes nobody.
    #[test]
    fn a_gateways_ports_change_while_it_lives() {
        let order = |ports: &[u32], bind: &[&str], addresses: &[&str]| {
            let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            Order::Gateway(Box::new(GatewayOrder {
                ports: ports.to_vec(),
                bind: text(bind),
                addresses: text(addresses),
                ..GatewayOrder::default()
            }))
        };
        let first = order(&[80], &[], &["10.77.0.9"]);
        let Order::Gateway(running) = &first else { unreachable!() };
        let (orders, mut followed) = watch::channel(running.as_ref().clone());
        let tracked = Tracked { shape: first.shape(), phase: watch::Sender::new(Phase::Run), orders: Some(orders) };
        for (order, heard, same_shape) in [
            (order(&[80], &[], &["10.77.0.9"]), false, true),
            (order(&[80, 443], &[], &["10.77.0.9"]), true, true),
            (order(&[80, 443], &["192.0.2.1"], &["10.77.0.9"]), true, true),
            (order(&[443], &["192.0.2.1"], &["10.77.0.10"]), false, false),
        ] {
            tracked.told(&order);
            assert_eq!(followed.has_changed().unwrap(), heard, "{order:?}");
            assert_eq!(order.shape() == tracked.shape, same_shape, "{order:?}");
            followed.borrow_and_update();
        }
    }
}
