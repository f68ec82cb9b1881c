//! One proxy: a delta stream that asks as ours do, acknowledges everything and keeps nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use prost::Name as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::mesh::{Authentication, Authorization, DnsRecord, Egress, Epoch, ProxyConfig, Trust};
use proto::names::{Mode, NODE_CLIENT, NODE_WORKLOAD, NodeId, outbound};
use proto::xds;
use proto::xds::core::Node;
use proto::xds::discovery::DeltaDiscoveryRequest;
use proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;

use super::folder::NAMESPACES;
use super::{nanos_since, store_first};

/// Requests that wait for the control plane.
const REQUESTS_MAX: usize = 64;
/// Pause before a stream is asked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// When each proxy was told something, since the last mark.
#[derive(Debug)]
pub(super) struct Told {
    begin: Instant,
    begun: AtomicU64,
    times: Vec<AtomicU64>,
}

impl Told {
    /// Nobody was told anything.
    pub(super) fn new(streams: usize) -> Self {
        Self { begin: Instant::now(), begun: AtomicU64::new(0), times: (0..streams).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Proxies whose first configuration is whole.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// From here on it counts anew.
    pub(super) fn mark(&self) {
        self.times.iter().for_each(|time| time.store(0, Ordering::Relaxed));
    }

    /// Proxies that were told something since the mark.
    pub(super) fn count(&self) -> u64 {
        self.times.iter().filter(|time| time.load(Ordering::Relaxed) > 0).count() as u64
    }

    /// Seconds from `at` until each of them was told, ascending.
    pub(super) fn times(&self, at: Instant) -> Vec<f64> {
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

fn node(number: u32) -> Node {
    let (namespace, instance) = (format!("n{}", number % NAMESPACES), format!("w{number}"));
    let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
    let workload = format!("{namespace}/{instance}");
    let fields = [(NODE_CLIENT.to_owned(), text("proxy".to_owned())), (NODE_WORKLOAD.to_owned(), text(workload))];
    let id = NodeId { mode: Mode::Sidecar, namespace, instance };
    Node { id: id.to_string(), metadata: Some(Struct { fields: fields.into_iter().collect() }), ..Node::default() }
}

/// Runs until the control plane ends the stream.
///
/// # Errors
/// It cannot be reached, or refuses.
pub(super) async fn run(address: SocketAddr, number: u32, wants: Vec<SocketAddr>, door: &Semaphore, told: &Told) -> anyhow::Result<()> {
    let place = door.acquire().await?;
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await.context("connecting")?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let (sender, mut answers) = loop {
        let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
        let mut first = Some(node(number));
        for url in types() {
            let mut names = vec!["*".to_owned()];
            if url == xds::LISTENER {
                names.extend(wants.iter().map(|address| outbound(*address)));
            }
            let node = first.take();
            let request =
                DeltaDiscoveryRequest { node, resource_names_subscribe: names, type_url: url, ..DeltaDiscoveryRequest::default() };
            sender.send(request).await?;
        }
        match client.delta_aggregated_resources(ReceiverStream::new(receiver)).await {
            Ok(answers) => break (sender, answers.into_inner()),
            // It has not read its folder yet.
            Err(status) if status.code() == Code::Unavailable => tokio::time::sleep(AGAIN).await,
            Err(status) => return Err(status.into()),
        }
    };
    let mut place = Some(place);
    while let Some(answer) = answers.message().await? {
        let epoch = answer.type_url == Epoch::type_url();
        if epoch && place.take().is_some() {
            told.begun.fetch_add(1, Ordering::Relaxed);
        }
        // The epoch follows what it is about; alone it is a number.
        if !epoch && let Some(time) = told.times.get(number as usize) {
            store_first(time, nanos_since(told.begin));
        }
        let request = DeltaDiscoveryRequest { type_url: answer.type_url, response_nonce: answer.nonce, ..DeltaDiscoveryRequest::default() };
        sender.send(request).await?;
    }
    Ok(())
}
