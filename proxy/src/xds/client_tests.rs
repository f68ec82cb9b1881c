use std::pin::Pin;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::TokioIo;
use prost::Name as _;
use proto::mesh::{DnsRecord, Epoch, ProxyConfig, Trust};
use proto::xds::core::DataSource;
use proto::xds::core::data_source::Specifier;
use proto::xds::discovery::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};
use proto::xds::discovery::{DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource};
use proto::xds::tls::{CertificateValidationContext, Secret, secret};
use proto::{epoch, names, xds};
use tokio::io::DuplexStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Streaming};
use tower::service_fn;

use super::*;
use crate::io::Clock;
use crate::observe::TelemetryOptions;
use crate::snapshots::{Lookup, NameLookup};
use crate::tls::testing::Authority;

/// One accepted stream of the fake control plane, driven by the test.
struct Heard {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

/// A control plane that hands each stream to the test.
struct Fake(mpsc::Sender<Heard>);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(8);
        let _ = self.0.send(Heard { requests: request.into_inner(), responses }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// A channel whose every connection is a memory pipe to a [`Fake`], and the streams that arrive there.
fn fake() -> (Channel, mpsc::Receiver<Heard>) {
    let (streams, arrived) = mpsc::channel(4);
    let (pipes, incoming) = mpsc::channel::<std::io::Result<DuplexStream>>(4);
    let server = Server::builder().add_service(AggregatedDiscoveryServiceServer::new(Fake(streams)));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    let connector = service_fn(move |_: http::Uri| {
        let pipes = pipes.clone();
        async move {
            let (near, far) = tokio::io::duplex(64 << 10);
            pipes.send(Ok(far)).await.map_err(|_| std::io::Error::other("the fake is gone"))?;
            std::io::Result::Ok(TokioIo::new(near))
        }
    });
    (Endpoint::from_static("http://control").connect_with_connector_lazy(connector), arrived)
}

fn client(channel: Channel) -> Client {
    let credentials = Arc::new(CredentialCell::default());
    credentials.publish(Authority::new("root").issue("spiffe://cluster.local/ns/shop/sa/frontend", "frontend"));
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::simulated(SystemTime::now()));
    let node = NodeIdentity { id: "sidecar/shop/frontend".parse().unwrap(), workload: "frontend".into(), replica: String::new() };
    Client {
        uplink: channel.into(),
        node,
        snapshots: Snapshots::default(),
        trust: Arc::default(),
        credentials,
        hurry: Arc::default(),
        telemetry,
    }
}

/// The next request of that type which `wanted` accepts.
async fn request(heard: &mut Heard, url: &str, wanted: impl Fn(&DeltaDiscoveryRequest) -> bool) -> DeltaDiscoveryRequest {
    loop {
        let request = heard.requests.next().await.unwrap().unwrap();
        if request.type_url == url && wanted(&request) {
            return request;
        }
    }
}

fn settings() -> Resource {
    let config = ProxyConfig {
        trust_domain: "cluster.local".into(),
        mesh_cidrs: vec!["10.96.0.0/12".into()],
        namespace: "shop".into(),
        workload: "frontend".into(),
        service_account: "frontend".into(),
        leaf_life: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        rotate_at_percent: 66,
        metric_series_max: 1000,
        ..ProxyConfig::default()
    };
    resource(names::PROXY, xds::pack(&config))
}

fn resource(name: &str, any: prost_types::Any) -> Resource {
    Resource { name: name.into(), version: epoch::version(&any.value), resource: Some(any), ..Resource::default() }
}

async fn send(heard: &Heard, url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
    let response = DeltaDiscoveryResponse {
        type_url: url.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    heard.responses.send(Ok(response)).await.unwrap();
}

async fn announce(heard: &Heard, number: u64, nonce: &str, sent: &[(&str, &Resource)]) {
    let digest = epoch::digest(sent.iter().map(|(url, resource)| (*url, resource.name.as_str(), resource.version.as_str())));
    let epoch = resource(names::EPOCH, xds::pack(&Epoch { number, digest: digest.into() }));
    send(heard, &Epoch::type_url(), nonce, vec![epoch], &[]).await;
}

/// Aim: from the first request to an acknowledged epoch, a name fetched on first use, a lost stream that changes nothing of what is
/// live, and a new one that says what is held.
#[tokio::test(start_paused = true)]
async fn a_stream_is_kept_and_taken_up_again() {
    let (channel, mut arrived) = fake();
    let client = client(channel);
    let (snapshots, telemetry) = (client.snapshots.clone(), Arc::clone(&client.telemetry));
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.run(Draw::seeded(1), stop.clone()));
    let (proxy_url, dns_url, epoch_url) = (ProxyConfig::type_url(), DnsRecord::type_url(), Epoch::type_url());

    let mut heard = arrived.recv().await.unwrap();
    let first = request(&mut heard, xds::CLUSTER, |_| true).await;
    let node = first.node.unwrap();
    assert_eq!(node.id, "sidecar/shop/frontend");
    assert_eq!(node.metadata.unwrap().fields[NODE_WORKLOAD].kind, Some(Kind::StringValue("shop/frontend".into())));
    let proxy = settings();
    send(&heard, &proxy_url, "1", vec![proxy.clone()], &[]).await;
    announce(&heard, 5, "2", &[(&proxy_url, &proxy)]).await;
    let ack = request(&mut heard, &epoch_url, |request| request.response_nonce == "2").await;
    assert!(ack.error_detail.is_none());
    assert_eq!((snapshots.load().epoch, telemetry.readings.config_epoch.load(Ordering::Relaxed)), (5, 5));

    let asking = tokio::spawn({
        let snapshots = snapshots.clone();
        async move { (snapshots.name("catalog", false).await, snapshots.name("nothing", false).await) }
    });
    request(&mut heard, &dns_url, |request| request.resource_names_subscribe == ["dns/catalog"]).await;
    let dns = resource("dns/catalog", xds::pack(&DnsRecord { addresses: vec!["10.96.0.1".into()], ttl_secs: 30, ..Default::default() }));
    send(&heard, &dns_url, "3", vec![dns.clone()], &[]).await;
    announce(&heard, 5, "4", &[(&proxy_url, &proxy), (&dns_url, &dns)]).await;
    request(&mut heard, &dns_url, |request| request.resource_names_subscribe == ["dns/nothing"]).await;
    send(&heard, &dns_url, "5", vec![], &["dns/nothing"]).await;
    let (found, absent) = asking.await.unwrap();
    assert!(matches!(found, NameLookup::Found(_)) && matches!(absent, NameLookup::Absent), "{found:?} {absent:?}");

    heard.responses.send(Err(Status::unavailable("restarting"))).await.unwrap();
    drop(heard);
    let mut heard = arrived.recv().await.unwrap();
    assert!(matches!(snapshots.name("catalog", false).await, NameLookup::Found(_)), "what is live serves on");
    assert!(matches!(snapshots.outbound("192.0.2.1:80".parse().unwrap()).await, Lookup::Outside), "the way out stays open");
    let again = request(&mut heard, &dns_url, |_| true).await;
    assert_eq!(again.initial_resource_versions["dns/catalog"], dns.version);
    assert_eq!(again.resource_names_subscribe, ["*", "dns/catalog", "dns/nothing"]);
    announce(&heard, 6, "1", &[(&proxy_url, &proxy), (&dns_url, &dns)]).await;
    request(&mut heard, &epoch_url, |request| request.response_nonce == "1").await;
    assert_eq!(snapshots.load().epoch, 6);
    stop.cancel();
    running.await.unwrap();
}

/// Aim: a bad resource is refused by name on its own type and on the epoch, and counted.
#[tokio::test(start_paused = true)]
async fn a_refusal_travels_up() {
    let (channel, mut arrived) = fake();
    let client = client(channel);
    let telemetry = Arc::clone(&client.telemetry);
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.run(Draw::seeded(1), stop.clone()));
    let mut heard = arrived.recv().await.unwrap();
    let bad = resource("shop/b:80", prost_types::Any { type_url: xds::CLUSTER.into(), value: vec![0xff] });
    send(&heard, xds::CLUSTER, "1", vec![bad.clone()], &[]).await;
    announce(&heard, 1, "2", &[(xds::CLUSTER, &bad)]).await;
    for url in [xds::CLUSTER.to_owned(), Epoch::type_url()] {
        let nack = request(&mut heard, &url, |request| !request.response_nonce.is_empty()).await;
        assert!(nack.error_detail.unwrap().message.starts_with("Cluster shop/b:80: "));
    }
    assert_eq!(telemetry.readings.config_rejected.load(Ordering::Relaxed), 1);
    stop.cancel();
    running.await.unwrap();
}

/// Aim: whom to believe goes live with the epoch that says so, not when the resource comes, and a bad one is refused while the good one stays;
/// the Secret of an older control plane counts only until then.
#[tokio::test(start_paused = true)]
async fn trust_goes_live_with_its_epoch() {
    let (channel, mut arrived) = fake();
    let client = client(channel);
    let trust = Arc::clone(&client.trust);
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.run(Draw::seeded(1), stop.clone()));
    let mut heard = arrived.recv().await.unwrap();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (old, new) = (old.roots().remove(0), new.roots().remove(0));
    let secret = |root: &CertificateDer<'static>| {
        let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(root));
        let trusted_ca = Some(DataSource { specifier: Some(Specifier::InlineString(pem)) });
        let context = CertificateValidationContext { trusted_ca, ..Default::default() };
        let r#type = Some(secret::Type::ValidationContext(context));
        resource(names::ROOT_CA, xds::pack(&Secret { name: names::ROOT_CA.to_owned(), r#type }))
    };
    let say = |roots: Vec<bytes::Bytes>, issuing: &CertificateDer<'static>| {
        let issuing_root = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, issuing).as_ref().to_vec().into();
        resource(names::TRUST, xds::pack(&Trust { roots, issuing_root, ..Default::default() }))
    };
    let url = Trust::type_url();
    send(&heard, xds::SECRET, "1", vec![secret(&old)], &[]).await;
    request(&mut heard, xds::SECRET, |request| request.response_nonce == "1").await;
    assert_eq!(trust.roots(), std::slice::from_ref(&old), "there is nothing else yet");

    let both = say(vec![old.to_vec().into(), new.to_vec().into()], &old);
    send(&heard, &url, "2", vec![both.clone()], &[]).await;
    request(&mut heard, &url, |request| request.response_nonce == "2").await;
    assert_eq!(trust.roots(), std::slice::from_ref(&old), "its epoch has not come");
    announce(&heard, 1, "3", &[(&url, &both)]).await;
    request(&mut heard, &Epoch::type_url(), |request| request.response_nonce == "3").await;
    assert_eq!(trust.roots(), [old.clone(), new.clone()]);
    send(&heard, xds::SECRET, "4", vec![secret(&new)], &[]).await;
    request(&mut heard, xds::SECRET, |request| request.response_nonce == "4").await;
    assert_eq!(trust.roots().len(), 2, "the Secret counts no more");

    let bad = say(vec![new.to_vec().into()], &old);
    send(&heard, &url, "5", vec![bad.clone()], &[]).await;
    announce(&heard, 2, "6", &[(&url, &bad)]).await;
    let nack = request(&mut heard, &Epoch::type_url(), |request| request.response_nonce == "6").await;
    assert!(nack.error_detail.unwrap().message.contains("Trust trust: issuing_root"));
    assert_eq!(trust.roots().len(), 2, "the last good one stays");
    stop.cancel();
    running.await.unwrap();
}

/// Aim: a proxy that the control plane calls revoked knows it, for as long as it is so: until a stream is answered again.
#[tokio::test(start_paused = true)]
async fn who_is_revoked_knows_it() {
    let (channel, mut arrived) = fake();
    let client = client(channel);
    let mut outcast = client.trust.outcast();
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.run(Draw::seeded(1), stop.clone()));
    let heard = arrived.recv().await.unwrap();
    let mut status = Status::permission_denied("spiffe://cluster.local/ns/shop/sa/web is revoked by Revocation meshwright-system/r");
    status.metadata_mut().insert(names::REVOKED, "identity".parse().unwrap());
    heard.responses.send(Err(status)).await.unwrap();
    outcast.changed().await.unwrap();
    assert!(outcast.borrow_and_update().as_deref().unwrap().contains("is revoked by"));
    // Any other end says nothing of that.
    let heard = arrived.recv().await.unwrap();
    heard.responses.send(Err(Status::unavailable("stopping"))).await.unwrap();
    let heard = arrived.recv().await.unwrap();
    assert!(!outcast.has_changed().unwrap());
    let config = resource(names::PROXY, xds::pack(&ProxyConfig::default()));
    send(&heard, &ProxyConfig::type_url(), "1", vec![config], &[]).await;
    outcast.changed().await.unwrap();
    assert_eq!(*outcast.borrow_and_update(), None);
    stop.cancel();
    running.await.unwrap();
}
