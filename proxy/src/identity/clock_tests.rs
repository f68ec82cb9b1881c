//! Leaves and clocks that are set.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use proto::mesh::certificates_server::{Certificates, CertificatesServer};
use proto::mesh::{BundlesRequest, BundlesResponse, MintTokenRequest, MintTokenResponse, SignRequest, SignResponse};
use rcgen::SanType;
use rustls::server::ServerConfig;
use rustls::time_provider::TimeProvider;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Agent, Subject};
use crate::io::{Clock, Draw, Network, Socket, VirtualListening, VirtualNetwork, pipe};
use crate::snapshots::Snapshots;
use crate::tls::dial::Dialer;
use crate::tls::testing::Authority;
use crate::tls::{ControlTls, CredentialCell, TrustCell, WallTime, provider};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An authority whose leaves begin a minute ago and last a day, by that clock.
#[derive(Clone)]
struct Signer {
    authority: Arc<Authority>,
    clock: Clock,
    signed: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Certificates for Signer {
    type BundlesStream = Pin<Box<dyn Stream<Item = Result<BundlesResponse, Status>> + Send>>;

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        self.signed.fetch_add(1, Ordering::SeqCst);
        let now = self.clock.wall();
        let leaf = self.authority.sign(&request.get_ref().csr_der, now - Duration::from_secs(60), now + DAY);
        let bundle_der = self.authority.roots().into_iter().map(|root| root.to_vec().into()).collect();
        Ok(Response::new(SignResponse { chain_der: vec![leaf.to_vec().into()], bundle_der, ..Default::default() }))
    }

    async fn mint_token(&self, _: Request<MintTokenRequest>) -> Result<Response<MintTokenResponse>, Status> {
        Err(Status::unimplemented("certificates only"))
    }

    async fn bundles(&self, _: Request<BundlesRequest>) -> Result<Response<Self::BundlesStream>, Status> {
        Err(Status::unimplemented("certificates only"))
    }
}

/// A network that has nothing but that control plane.
struct Plane {
    tls: Arc<ServerConfig>,
    signer: Signer,
}

#[async_trait]
impl VirtualNetwork for Plane {
    async fn connect(&self, _: SocketAddr) -> io::Result<Socket> {
        let (near, far) = pipe();
        let (tls, service) = (Arc::clone(&self.tls), CertificatesServer::new(self.signer.clone()));
        tokio::spawn(async move {
            let Ok(stream) = TlsAcceptor::from(tls).accept(far).await else { return };
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // It ends with its caller.
            let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
        });
        Ok(near)
    }

    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Aim: a machine that slept, or whose clock was set, has a leaf that holds within a minute, whatever the monotonic clock says; nothing is
/// renewed that needs no renewal, and a clock that goes back a little is no reason.
#[tokio::test(start_paused = true)]
async fn leaves_are_renewed_by_the_wall_clock() {
    static BY_MS: AtomicI64 = AtomicI64::new(0);
    let clock = Clock::Stepped { wall: SystemTime::now(), started: tokio::time::Instant::now(), by_ms: &BY_MS };
    let authority = Arc::new(Authority::new("root"));
    let control = SanType::URI("spiffe://cluster.local/ns/meshwright-system/sa/control".try_into().unwrap());
    let (chain, key) = authority.leaf(&[control], "control", SystemTime::UNIX_EPOCH, clock.wall() + DAY * 365);
    let builder = ServerConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions().unwrap();
    let mut tls = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let signer = Signer { authority: Arc::clone(&authority), clock, signed: Arc::default() };
    let signed = Arc::clone(&signer.signed);
    let (credentials, trust) = (Arc::new(CredentialCell::default()), Arc::new(TrustCell::default()));
    let time: Arc<dyn TimeProvider> = Arc::new(WallTime(clock));
    let control = ControlTls::new(authority.roots(), &credentials, &trust, &time).unwrap();
    credentials.publish(authority.issue_for(
        "spiffe://cluster.local/ns/shop/sa/catalog",
        "catalog",
        clock.wall() - Duration::from_secs(60),
        clock.wall() + DAY,
    ));
    let agent = Agent {
        dialer: Dialer::new(Network::Virtual(Arc::new(Plane { tls: Arc::new(tls), signer })), "10.0.0.1:15012".parse().unwrap(), control),
        bearer: Arc::clone(&credentials),
        exposed: None,
        hurry: Arc::default(),
        credentials: Arc::clone(&credentials),
        trust,
        snapshots: Snapshots::default(),
        clock,
        subject: Subject {
            namespace: "shop".into(),
            workload: "catalog".into(),
            instance: "catalog".into(),
            service_account: "catalog".into(),
        },
        token: None,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(agent.run(Draw::seeded(7), stop.clone()));
    let (minute, hour_ms) = (Duration::from_secs(60), 3_600_000);
    for (by_ms, sleep, renewals, case) in [
        (0, minute, 1, "the first one at once"),
        (18 * hour_ms, minute, 1, "a sleep past the renewal point"),
        (18 * hour_ms, minute, 0, "and once is enough"),
        (48 * hour_ms, minute, 1, "a sleep past the end"),
        (48 * hour_ms - 90_000, minute, 0, "a clock that was corrected a little"),
        (46 * hour_ms, minute, 1, "one that went back: the leaf of now has not begun"),
        (46 * hour_ms, DAY * 3 / 4, 1, "and no step at all"),
    ] {
        let before = signed.load(Ordering::SeqCst);
        BY_MS.store(by_ms, Ordering::Relaxed);
        tokio::time::sleep(sleep).await;
        assert_eq!(signed.load(Ordering::SeqCst) - before, renewals, "{case}");
        let (leaf, now) = (credentials.current().unwrap(), clock.wall());
        assert!(leaf.not_before <= now + minute && now < leaf.not_after, "{case}");
    }
    stop.cancel();
    running.await.unwrap();
}
