//! A rate-limit service as the keeper of stores meets it: it answers, refuses, hangs, is gone, and says what is no answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use engine::limit::{ServicePlace, StoreLive, StoreTrouble};
use engine::model::Roots;
use proto::xds::core::HeaderValue as RawHeader;
use proto::xds::ratelimit::rate_limit_response::{Code, DescriptorStatus};
use proto::xds::ratelimit::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use proto::xds::ratelimit::{RateLimitRequest, RateLimitResponse};
use tokio::io::{DuplexStream, copy_bidirectional};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::service::{ServiceStore, answer};
use super::*;
use crate::io::{Clock, Network, Socket, VirtualListening, VirtualNetwork, pipe};
use crate::observe::TelemetryOptions;
use crate::tls::testing::{Authority, party};

/// What the service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Allow,
    Refuse,
    Hang,
    Gone,
    Nonsense,
}

struct Fake {
    does: Arc<Mutex<Does>>,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl RateLimitService for Fake {
    async fn should_rate_limit(&self, request: Request<RateLimitRequest>) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        assert_eq!((request.domain.as_str(), request.descriptors[0].entries[0].key.as_str()), ("edge", "plan"));
        self.asked.fetch_add(1, Ordering::Relaxed);
        let does = *self.does.lock().unwrap();
        let code = match does {
            Does::Allow => Code::Ok,
            Does::Nonsense => Code::Unknown,
            Does::Hang => return std::future::pending().await,
            Does::Refuse | Does::Gone => return Err(Status::internal("no configuration")),
        };
        Ok(Response::new(RateLimitResponse { overall_code: code.into(), ..RateLimitResponse::default() }))
    }
}

/// A network that leads to it.
struct Wires(Arc<Mutex<Does>>, mpsc::Sender<io::Result<DuplexStream>>);

#[async_trait]
impl VirtualNetwork for Wires {
    async fn connect(&self, _: SocketAddr) -> io::Result<Socket> {
        if *self.0.lock().unwrap() == Does::Gone {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, mut far) = pipe();
        let (mut left, right) = tokio::io::duplex(64 << 10);
        self.1.send(Ok(right)).await.map_err(io::Error::other)?;
        tokio::spawn(async move { copy_bidirectional(&mut far, &mut left).await });
        Ok(near)
    }

    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A service store and what it speaks with.
struct Met {
    does: Arc<Mutex<Does>>,
    asked: Arc<AtomicUsize>,
    live: Arc<StoreLive>,
    trouble: Arc<StoreTrouble>,
    object: Arc<engine::filter::guard::ObjectLimits>,
    questions: mpsc::Sender<Posed>,
    _tasks: JoinSet<()>,
}

fn met(does: Does) -> Met {
    let (does, asked) = (Arc::new(Mutex::new(does)), Arc::<AtomicUsize>::default());
    let (pipes, incoming) = mpsc::channel(4);
    let mut tasks = JoinSet::new();
    let fake = Fake { does: Arc::clone(&does), asked: Arc::clone(&asked) };
    tasks.spawn(async move {
        let served = Server::builder().add_service(RateLimitServiceServer::new(fake)).serve_with_incoming(ReceiverStream::new(incoming));
        served.await.unwrap();
    });
    let entry =
        proto::mesh::DescriptorEntry { key: "plan".into(), value: Some(proto::mesh::descriptor_entry::Value::Literal("gold".into())) };
    let service = proto::mesh::RateLimitService {
        address: "127.0.0.1:8081".into(),
        domain: "edge".into(),
        descriptors: vec![proto::mesh::LimitDescriptor { entries: vec![entry] }],
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
    };
    let limits = proto::mesh::EdgeLimits {
        policy: "shop/limits".into(),
        memory: "shop/limits".into(),
        store: Some(proto::mesh::LimitStore { kind: Some(proto::mesh::limit_store::Kind::Service(service)) }),
        without_store: proto::mesh::WithoutStore::Deny.into(),
        ..proto::mesh::EdgeLimits::default()
    };
    let object = Arc::new(engine::filter::guard::read(&limits, &engine::limit::LimitMemories::default()).unwrap());
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::simulated(SystemTime::now()));
    let own = party(&Authority::new("root"), "spiffe://cluster.local/ns/shop/sa/edge", "edge");
    let callout = Callout::new(Network::Virtual(Arc::new(Wires(Arc::clone(&does), pipes))), own.tls, Snapshots::default(), Roots::System);
    let (questions, arriving) = mpsc::channel(8);
    let place = Arc::new(ServicePlace::new("127.0.0.1:8081", Duration::from_millis(50)).unwrap());
    let (live, trouble) = (Arc::<StoreLive>::default(), Arc::<StoreTrouble>::default());
    let store = ServiceStore { place, live: Arc::clone(&live), trouble: Arc::clone(&trouble), callout, telemetry };
    tasks.spawn(store.run(arriving, Draw::seeded(7)));
    Met { does, asked, live, trouble, object, questions, _tasks: tasks }
}

impl Met {
    /// Asks, and says what came of it.
    async fn ask(&self) -> Option<engine::filter::guard::ServiceAnswer> {
        let ask = engine::filter::guard::ServiceAsk::new(vec![vec![("plan".into(), "gold".into())]]);
        let (told, answer) = tokio::sync::oneshot::channel();
        let object = Arc::clone(&self.object);
        let ask_of = engine::filter::guard::LimitAsk { object, limit: usize::MAX, key: 0, want: 0, service: Some(ask.clone()) };
        self.questions.send(Posed { ask: ask_of, told: Some(told) }).await.unwrap();
        answer.await.ok()?;
        ask.answer()
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_is_asked_and_answers() {
    // Aim: each request is a call; what it says comes back to whoever asked.
    let met = met(Does::Allow);
    for count in 1..=3 {
        assert_eq!(met.ask().await.map(|answer| answer.over), Some(false));
        assert_eq!(met.asked.load(Ordering::Relaxed), count);
    }
    assert!(met.live.away_since().is_none() && met.trouble.away().is_none());
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_a_service_it_is_away_for_a_while() {
    // Aim: refusing, gone and nonsense at once, hanging after three calls; asked again after a pause, and met again.
    for (does, calls, word) in [
        (Does::Refuse, 1, "it refuses: Internal no configuration"),
        (Does::Gone, 1, "it refuses: Unavailable"),
        (Does::Nonsense, 1, "its answer has the code 0"),
        (Does::Hang, 3, "no answer within 50 ms"),
    ] {
        let met = met(does);
        for call in 1..=calls {
            assert!(met.ask().await.is_none(), "{does:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(met.live.away_since().is_some(), call == calls, "{does:?}: {call}");
        }
        let (why, _) = met.trouble.away().unwrap();
        assert!(why.contains(word), "{does:?}: {why}");
        let before = met.asked.load(Ordering::Relaxed);
        assert!(met.ask().await.is_none());
        assert_eq!(met.asked.load(Ordering::Relaxed), before, "{does:?}: nobody is asked while it is away");
        *met.does.lock().unwrap() = Does::Allow;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(met.live.away_since().is_none(), "{does:?}");
        assert_eq!(met.ask().await.map(|answer| answer.over), Some(false), "{does:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(met.trouble.away().is_none(), "{does:?}");
    }
}

#[test]
fn an_answer_is_read_with_what_it_may_say() {
    // Aim: the longest time of limits that are full; headers that are none, or none of its business, are left out; an unknown code is no answer.
    let status = |code: Code, seconds| DescriptorStatus {
        code: code.into(),
        duration_until_reset: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..DescriptorStatus::default()
    };
    let header = |key: &str, value: &str| RawHeader { key: key.into(), value: value.into() };
    let read = answer(RateLimitResponse {
        overall_code: Code::OverLimit.into(),
        statuses: vec![status(Code::OverLimit, 5), status(Code::Ok, 90), status(Code::OverLimit, 30), status(Code::OverLimit, -7)],
        response_headers_to_add: [
            ("x-ratelimit-limit", "10"),
            ("Content-Length", "7"),
            ("transfer-encoding", "chunked"),
            ("x-meshwright-reason", "x"),
            ("a b", "c"),
            ("x-a", "b\r\nc: d"),
        ]
        .map(|(key, value)| header(key, value))
        .to_vec(),
        request_headers_to_add: vec![
            header("X-Plan", "gold"),
            header("x-forwarded-client-cert", "URI=spiffe://partner/acme"),
            header("x-forwarded-for", "127.0.0.1"),
            header("expect", "100-continue"),
        ],
    })
    .unwrap();
    let names = |headers: &[(http::HeaderName, http::HeaderValue)]| headers.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!((read.over, read.retry), (true, Duration::from_secs(30)));
    assert_eq!((names(&read.response), names(&read.request)), (vec!["x-ratelimit-limit".to_owned()], vec!["x-plan".to_owned()]));
    for code in [0, 3, -1] {
        assert!(answer(RateLimitResponse { overall_code: code, ..RateLimitResponse::default() }).is_err());
    }
}
