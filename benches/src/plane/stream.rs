//! One proxy: a delta stream that asks as ours do, acknowledges everything and keeps nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use h2::client::SendRequest;
use prost::Name as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::mesh::{Authentication, Authorization, DnsRecord, Egress, Epoch, ProxyConfig, Trust};
use proto::names::{Mode, NODE_CLIENT, NODE_WORKLOAD, NodeId, outbound};
use proto::xds;
use proto::xds::core::Node;
use proto::xds::discovery::DeltaDiscoveryRequest;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Code, Status};

use super::call::{Call, dial};
use super::{nanos_since, store_first};

/// Pause before a stream is asked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// When each proxy was told something, since the last mark.
#[derive(Debug)]
pub(crate) struct Told {
    begin: Instant,
    begun: AtomicU64,
    answers: AtomicU64,
    times: Vec<AtomicU64>,
}

/// Who asks, and for what.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    /// Its place in [`Told`].
    pub(crate) number: usize,
    pub(crate) namespace: String,
    pub(crate) workload: String,
    pub(crate) instance: String,
    /// Addresses that it calls.
    pub(crate) wants: Vec<SocketAddr>,
}

impl Told {
    /// Nobody was told anything.
    pub(crate) fn new(streams: usize) -> Self {
        let times = (0..streams).map(|_| AtomicU64::new(0)).collect();
        Self { begin: Instant::now(), begun: AtomicU64::new(0), answers: AtomicU64::new(0), times }
    }

    /// Proxies whose first configuration is whole.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Answers to all of them since the begin.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// From here on it counts anew.
    pub(crate) fn mark(&self) {
        self.times.iter().for_each(|time| time.store(0, Ordering::Relaxed));
    }

    /// Proxies that were told something since the mark.
    pub(crate) fn count(&self) -> u64 {
        self.times.iter().filter(|time| time.load(Ordering::Relaxed) > 0).count() as u64
    }

    /// Seconds from `at` until each of them was told, ascending.
    pub(crate) fn times(&self, at: Instant) -> Vec<f64> {
        let zero = at.duration_since(self.begin).as_secs_f64();
        let told = self.times.iter().map(|time| time.load(Ordering::Relaxed)).filter(|nanos| *nanos > 0);
        let mut secs: Vec<f64> = told.map(|nanos| Duration::from_nanos(nanos).as_secs_f64() - zero).collect();
        secs.sort_by(f64::total_cmp);
        secs
    }
}

/// The types of a proxy's stream, in the order in which it asks.
fn types() -> [String; 12] {
    [
        xds::CLUSTER.to_owned(),
        xds::LISTENER.to_owned(),
        ProxyConfig::type_url(),
        Egress::type_url(),
        Trust::type_url(),
        Authentication::type_url(),
        Authorization::type_url(),
        xds::SECRET.to_owned(),
        xds::ENDPOINT.to_owned(),
        xds::ROUTE.to_owned(),
        DnsRecord::type_url(),
        Epoch::type_url(),
    ]
}

fn node(proxy: &Proxy) -> Node {
    let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
    let workload = format!("{}/{}", proxy.namespace, proxy.workload);
    let fields = [(NODE_CLIENT.to_owned(), text("proxy".to_owned())), (NODE_WORKLOAD.to_owned(), text(workload))];
    let id = NodeId { mode: Mode::Sidecar, namespace: proxy.namespace.clone(), instance: proxy.instance.clone() };
    Node { id: id.to_string(), metadata: Some(Struct { fields: fields.into_iter().collect() }), ..Node::default() }
}

/// Runs until the control plane ends the stream.
///
/// # Errors
/// It cannot be reached, or refuses.
pub(crate) async fn run(address: SocketAddr, proxy: Proxy, door: &Semaphore, told: &Told) -> anyhow::Result<()> {
    let mut place = Some(door.acquire().await?);
    let (client, connection) = dial(address).await.context("connecting")?;
    let following = async {
        // It has not read its objects yet, or not this proxy's pod.
        while let Err(status) = follow((&client, address), &proxy, &mut place, told).await {
            match status.code() {
                Code::Unavailable | Code::FailedPrecondition if place.is_some() => tokio::time::sleep(AGAIN).await,
                _ => return Err(status),
            }
        }
        Ok(())
    };
    // Both in one task: what has come is read, and answered, without waking anybody.
    tokio::select! {
        biased;
        ended = Box::pin(connection) => Ok(ended?),
        ended = following => Ok(ended?),
    }
}

/// One stream, to its end. It gives its place at the door up once its first configuration is whole.
async fn follow(
    (client, address): (&SendRequest<Bytes>, SocketAddr),
    proxy: &Proxy,
    place: &mut Option<SemaphorePermit<'_>>,
    told: &Told,
) -> Result<(), Status> {
    let mut first = Some(node(proxy));
    let requests = types().map(|url| {
        let mut names = vec!["*".to_owned()];
        if url == xds::LISTENER {
            names.extend(proxy.wants.iter().map(|address| outbound(*address)));
        }
        DeltaDiscoveryRequest { node: first.take(), resource_names_subscribe: names, type_url: url, ..DeltaDiscoveryRequest::default() }
    });
    let (mut call, barrier) = (Call::open(client, address, requests.into_iter()).await?, Epoch::type_url());
    while let Some(answer) = call.answer().await? {
        told.answers.fetch_add(1, Ordering::Relaxed);
        let epoch = answer.type_url == barrier;
        if epoch && place.take().is_some() {
            told.begun.fetch_add(1, Ordering::Relaxed);
        }
        // The epoch follows what it is about; alone it is a number.
        if !epoch && let Some(time) = told.times.get(proxy.number) {
            store_first(time, nanos_since(told.begin));
        }
        call.acknowledge(answer)?;
    }
    Ok(())
}
