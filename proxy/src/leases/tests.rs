//! The keeper of leases before control planes that count, refuse, hang and answer nonsense.

use std::pin::Pin;
use std::time::SystemTime;

use engine::limit::Numbers;
use hyper_util::rt::TokioIo;
use proto::mesh::limit_leases_server::{LimitLeases, LimitLeasesServer};
use proto::mesh::{LimitAsks, LimitGrant, LimitGrants};
use tokio::io::DuplexStream;
use tokio::time::sleep;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Streaming};
use tower::service_fn;

use super::*;
use crate::io::Clock;
use crate::observe::TelemetryOptions;
use crate::tls::testing::Authority;

/// One stream of the fake control plane, driven by the test.
struct Heard {
    asks: Streaming<LimitAsks>,
    grants: mpsc::Sender<Result<LimitGrants, Status>>,
}

struct Fake(mpsc::Sender<Heard>);

#[tonic::async_trait]
impl LimitLeases for Fake {
    type LeaseStream = Pin<Box<dyn Stream<Item = Result<LimitGrants, Status>> + Send>>;

    async fn lease(&self, request: Request<Streaming<LimitAsks>>) -> Result<Response<Self::LeaseStream>, Status> {
        let (grants, outgoing) = mpsc::channel(8);
        let _ = self.0.send(Heard { asks: request.into_inner(), grants }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

fn fake() -> (Channel, mpsc::Receiver<Heard>) {
    let (streams, arrived) = mpsc::channel(4);
    let (pipes, incoming) = mpsc::channel::<std::io::Result<DuplexStream>>(4);
    tokio::spawn(Server::builder().add_service(LimitLeasesServer::new(Fake(streams))).serve_with_incoming(ReceiverStream::new(incoming)));
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

/// A proxy that has one shared limit of ten in a minute, and its control plane.
async fn started() -> (Snapshots, mpsc::Receiver<Heard>, JoinSetGuard) {
    let (channel, heard) = fake();
    let credentials = Arc::new(CredentialCell::default());
    credentials.publish(Authority::new("root").issue("spiffe://cluster.local/ns/shop/sa/edge", "edge"));
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::simulated(SystemTime::now()));
    let node = NodeIdentity { id: "edge/shop/edge".parse().unwrap(), workload: "edge".into(), replica: String::new() };
    let snapshots = Snapshots::default();
    let keeper = LeaseKeeper { uplink: channel.into(), node, snapshots: snapshots.clone(), telemetry, credentials };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(keeper.run(Draw::seeded(7), CancellationToken::new()));
    (snapshots, heard, JoinSetGuard(tasks))
}

/// Ends the keeper with the test.
struct JoinSetGuard(#[allow(dead_code, reason = "dropped with the test")] tokio::task::JoinSet<()>);

fn limits() -> proto::mesh::EdgeLimits {
    use proto::mesh::{EdgeLimit, EdgeLimits, LeaseStore, LimitRate, LimitStore, edge_limit, limit_store};
    let per = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let numbers = Some(edge_limit::Numbers::Rate(LimitRate { requests: 10, per, burst: 10 }));
    EdgeLimits {
        policy: "shop/limits".into(),
        memory: "shop/limits".into(),
        limits: vec![EdgeLimit { name: "all".into(), numbers, cost: 1, shared: true, ..EdgeLimit::default() }],
        store: Some(LimitStore { kind: Some(limit_store::Kind::Leases(LeaseStore { ahead_percent: 10 })) }),
        ..EdgeLimits::default()
    }
}

/// The object as a proxy has it, in a snapshot that is live.
fn object(snapshots: &Snapshots) -> Arc<engine::filter::guard::ObjectLimits> {
    let memories = Arc::new(engine::limit::LimitMemories::default());
    let object = Arc::new(engine::filter::guard::read(&limits(), &memories).unwrap());
    let snapshot = engine::model::Snapshot { limits: memories, ..engine::model::Snapshot::default() };
    snapshots.publish(Arc::new(snapshot));
    object
}

async fn settle() {
    sleep(Duration::from_millis(20)).await;
}

fn grant(id: u64, granted: u64) -> LimitGrant {
    let lasts = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    LimitGrant { id, granted, lasts, remaining: 8, ..LimitGrant::default() }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_is_granted() {
    // Aim: the proxy says who it is, asks by name, key and numbers, and has what it was given; replicas are what the store says.
    let (snapshots, mut heard, _tasks) = started().await;
    let object = object(&snapshots);
    let mut stream = heard.recv().await.unwrap();
    assert_eq!(stream.asks.next().await.unwrap().unwrap().node_id, "edge/shop/edge");
    stream.grants.send(Ok(LimitGrants { replicas: 3, grants: Vec::new() })).await.unwrap();
    settle().await;
    assert_eq!((object.store.away_since(), object.store.replicas()), (None, 3));
    let ask = engine::filter::guard::LimitAsk { object: Arc::clone(&object), limit: 0, key: 7, want: 2 };
    let answer = snapshots.limit_questions().ask(ask).unwrap();
    let asks = stream.asks.next().await.unwrap().unwrap().asks;
    let [ask] = asks.as_slice() else { panic!("{asks:?}") };
    assert_eq!((ask.memory.as_str(), ask.limit.as_str(), ask.want, &*ask.key), ("shop/limits", "all", 2, &7_u128.to_be_bytes()[..]));
    assert!(matches!(engine::limit::numbers_of(ask.numbers.as_ref().unwrap()), Ok(Numbers::Rate(_))));
    stream.grants.send(Ok(LimitGrants { replicas: 3, grants: vec![grant(ask.id, 2)] })).await.unwrap();
    answer.await.unwrap();
    assert_eq!(object.memory.rows.peek(7, |row| row.shared().have()), Some(2));
    sleep(Duration::from_secs(6)).await;
    let back = stream.asks.next().await.unwrap().unwrap().asks;
    assert_eq!(back.iter().map(|ask| (ask.want, ask.back)).collect::<Vec<_>>(), [(0, 2)], "what lies idle goes back");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_is_gone_is_away_and_one_that_comes_back_is_told_all() {
    // Aim: the end of a stream, an error and silence each make the store away; the next stream hears what is known of a key.
    let (snapshots, mut heard, _tasks) = started().await;
    let object = object(&snapshots);
    let ask = || engine::filter::guard::LimitAsk { object: Arc::clone(&object), limit: 0, key: 7, want: 2 };
    let mut stream = heard.recv().await.unwrap();
    stream.grants.send(Ok(LimitGrants { replicas: 1, grants: Vec::new() })).await.unwrap();
    settle().await;
    let first = snapshots.limit_questions().ask(ask()).unwrap();
    stream.asks.next().await.unwrap().unwrap();
    let id = stream.asks.next().await.unwrap().unwrap().asks[0].id;
    let reset_in = Some(prost_types::Duration { seconds: 30, nanos: 0 });
    stream.grants.send(Ok(LimitGrants { replicas: 1, grants: vec![LimitGrant { reset_in, ..grant(id, 2) }] })).await.unwrap();
    first.await.unwrap();
    let second = snapshots.limit_questions().ask(ask()).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(object.store.away_since().is_some(), "it says nothing");
    stream.grants.send(Err(Status::internal("nonsense"))).await.unwrap();
    assert!(second.await.is_err(), "nobody answers any more");
    let mut stream = heard.recv().await.unwrap();
    stream.grants.send(Ok(LimitGrants { replicas: 1, grants: Vec::new() })).await.unwrap();
    settle().await;
    assert!(object.store.away_since().is_none());
    let _third = snapshots.limit_questions().ask(ask()).unwrap();
    stream.asks.next().await.unwrap().unwrap();
    let again = stream.asks.next().await.unwrap().unwrap().asks;
    let known = again[0].known.as_ref().unwrap();
    assert_eq!(known.remaining, 8, "what was heard last");
    drop(stream);
    settle().await;
    assert!(object.store.away_since().is_some(), "its stream has ended");
}

#[tokio::test(start_paused = true)]
async fn nonsense_harms_nobody() {
    // Aim: grants of questions that nobody asked, refusals, negative times and absurd amounts; the keeper goes on.
    let (snapshots, mut heard, _tasks) = started().await;
    let object = object(&snapshots);
    let mut stream = heard.recv().await.unwrap();
    let negative = Some(prost_types::Duration { seconds: -5, nanos: 0 });
    let mad = LimitGrant { lasts: negative, reset_in: negative, retry_in: negative, ..grant(99, u64::MAX) };
    stream.grants.send(Ok(LimitGrants { replicas: 0, grants: vec![mad] })).await.unwrap();
    settle().await;
    assert_eq!(object.store.replicas(), 1);
    let asked = snapshots
        .limit_questions()
        .ask(engine::filter::guard::LimitAsk { object: Arc::clone(&object), limit: 0, key: 7, want: 1 })
        .unwrap();
    stream.asks.next().await.unwrap().unwrap();
    let id = stream.asks.next().await.unwrap().unwrap().asks[0].id;
    stream.grants.send(Ok(LimitGrants { replicas: 1, grants: vec![LimitGrant { id, refused: true, ..mad }] })).await.unwrap();
    assert!(asked.await.is_err(), "refused: nobody counts it");
    let _again = snapshots.limit_questions().ask(engine::filter::guard::LimitAsk { object, limit: 9, key: 7, want: 1 }).unwrap();
    settle().await;
    assert!(stream.grants.send(Ok(LimitGrants::default())).await.is_ok());
}
