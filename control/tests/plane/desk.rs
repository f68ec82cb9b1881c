//! A control plane in this process, with a small authority, and clients for every door.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use clap::Parser;
use control::app::{Means, Running, start};
use control::clock::Clock;
use control::publish::trust::{Phase, Root, Roots};
use control::serve::authority::{AuditQuery, Authority, Done, Issuance, Issued, Refused, Seat, Step, TokenOrder};
use control::settings::ControlArgs;
use control::traces::Traces;
use control::world::own::Mesh;
use hyper_util::rt::TokioIo;
use prost::Name;
use proto::generated::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::mesh::control_client::ControlClient;
use proto::mesh::node_client::NodeClient;
use proto::mesh::reports_client::ReportsClient;
use proto::mesh::{
    ApplyRequest, Command, Document, Epoch, GetRequest, Hello, Progress, Report, RootsRequest, RotateRootRequest, WaitRequest, report,
};
use proto::names::{NODE_CLIENT, NODE_REPLICA, NODE_WORKLOAD};
use proto::xds;
use proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

/// Life of the control plane's own leaf.
pub(crate) const SEAT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Signs anything for the tests.
pub(crate) struct TestAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    next: CertifiedIssuer<'static, KeyPair>,
    /// Steps taken in the rotation to the next root.
    steps: AtomicUsize,
    /// The book.
    pub(crate) issued: Mutex<Vec<Issued>>,
    /// As the Mesh object says.
    trust_domain: Mutex<String>,
    /// How many follow the bundles.
    pub(crate) listeners: AtomicUsize,
    /// How often somebody asked whether it was changed from outside, which follows each look of a rotation that rests.
    pub(crate) looks: AtomicUsize,
    /// Leaves that the control plane took for itself.
    pub(crate) seats: AtomicUsize,
    /// By which those begin; without one, long ago.
    pub(crate) clock: Mutex<Option<Clock>>,
}

fn issuer(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn root(issuer: &CertifiedIssuer<'static, KeyPair>) -> Root {
    let der = issuer.der().clone();
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    Root { sha256: suite.common.hash_provider.hash(&der).as_ref().try_into().unwrap(), der }
}

impl TestAuthority {
    pub(crate) fn new() -> Self {
        Self {
            issuer: issuer("test root"),
            next: issuer("next root"),
            steps: AtomicUsize::new(0),
            issued: Mutex::default(),
            listeners: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            seats: AtomicUsize::new(0),
            clock: Mutex::default(),
            trust_domain: Mutex::new("cluster.local".to_owned()),
        }
    }

    /// Writes a leaf into the book, below the root of now.
    pub(crate) fn note(&self, workload: &str, serial: &str) {
        self.issued.lock().unwrap().push(Issued {
            namespace: "shop".into(),
            workload: workload.into(),
            instance: workload.into(),
            identity: format!("spiffe://cluster.local/ns/shop/sa/{workload}"),
            serial: serial.into(),
            not_before: String::new(),
            not_after: String::new(),
            issuer: "test".into(),
            root: self.roots().issuing.fingerprint(),
            for_application: false,
        });
    }

    pub(crate) fn leaf(
        &self,
        identity: &str,
        workload: &str,
        addresses: &[IpAddr],
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        self.leaf_until(identity, workload, addresses, time::OffsetDateTime::now_utc() + Duration::from_secs(3600))
    }

    /// A leaf below the next root.
    pub(crate) fn next_leaf(&self, identity: &str, workload: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        signed(&self.next, identity, workload, &[], (None, time::OffsetDateTime::now_utc() + Duration::from_secs(3600)))
    }

    pub(crate) fn leaf_until(
        &self,
        identity: &str,
        workload: &str,
        addresses: &[IpAddr],
        end: time::OffsetDateTime,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        signed(&self.issuer, identity, workload, addresses, (None, end))
    }
}

fn signed(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    identity: &str,
    workload: &str,
    addresses: &[IpAddr],
    (begin, end): (Option<time::OffsetDateTime>, time::OffsetDateTime),
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, workload);
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    params.not_after = end;
    params.not_before = begin.unwrap_or(params.not_before);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

impl Authority for TestAuthority {
    fn roots(&self) -> Arc<Roots> {
        let (old, new) = (root(&self.issuer), root(&self.next));
        let (issuing, others, retired, phase) = match self.steps.load(Ordering::SeqCst) {
            0 => (old, vec![], vec![], Phase::Steady),
            1 => (old, vec![new], vec![], Phase::Trusting),
            2 => (new, vec![old], vec![], Phase::Issuing),
            _ => (new, vec![], vec![old], Phase::Steady),
        };
        Arc::new(Roots { issuing, others, retired, phase, pem: self.issuer.pem().into() })
    }
    fn rotate(&self, step: Step) -> Result<(), String> {
        let turn = match step {
            Step::Trust => 0,
            Step::Issue => 1,
            Step::Drop => 2,
        };
        // Out of turn it changes nothing.
        let _ = self.steps.compare_exchange(turn, turn + 1, Ordering::SeqCst, Ordering::SeqCst);
        Ok(())
    }

    fn refresh(&self) -> Result<bool, String> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        Ok(false)
    }

    fn seat(&self, _dns: &[String], addresses: &[IpAddr]) -> Result<Seat, String> {
        self.seats.fetch_add(1, Ordering::SeqCst);
        let clock = self.clock.lock().unwrap().clone();
        let begin = clock.map(|clock| time::OffsetDateTime::UNIX_EPOCH + clock.unix());
        let end = begin.unwrap_or_else(time::OffsetDateTime::now_utc) + SEAT_LIFE;
        let identity = format!("spiffe://{}/ns/meshwright-system/sa/control", self.trust_domain.lock().unwrap());
        let (chain, key) = signed(&self.issuer, &identity, "control", addresses, (begin, end));
        Ok(Seat { chain, key, lasts: SEAT_LIFE * 2 / 3 })
    }
    fn create_token(&self, order: &TokenOrder) -> Result<String, String> {
        Ok(format!("mw1.{}.{}", order.workload, order.identity))
    }
    fn issued(&self) -> Vec<Issued> {
        self.issued.lock().unwrap().clone()
    }
    fn listeners(&self) -> usize {
        self.listeners.load(Ordering::SeqCst)
    }
    fn audit(&self, _query: &AuditQuery, _rows_max: usize) -> Result<Vec<Issuance>, String> {
        Ok(Vec::new())
    }
    fn refusals(&self, _query: &AuditQuery) -> Vec<Refused> {
        Vec::new()
    }
    fn counts(&self) -> Done {
        Done::default()
    }
    fn failure(&self) -> Option<String> {
        None
    }
    fn follow(&self, mesh: &Mesh) {
        self.trust_domain.lock().unwrap().clone_from(&mesh.trust_domain);
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ControlArgs,
}

/// One control plane over one folder; `data` outlives it.
pub(crate) struct Plane {
    pub(crate) authority: Arc<TestAuthority>,
    pub(crate) listen: SocketAddr,
    socket: std::path::PathBuf,
    stop: CancellationToken,
    running: Running,
}

impl Plane {
    pub(crate) async fn start(folder: &Path, data: &Path, authority: &Arc<TestAuthority>) -> Self {
        Self::start_by(Clock::new(SystemTime::now), folder, data, authority).await
    }

    /// With a clock of its own.
    pub(crate) async fn start_by(clock: Clock, folder: &Path, data: &Path, authority: &Arc<TestAuthority>) -> Self {
        let text = |path: &Path| path.display().to_string();
        let flags = ["control", "--config", &text(folder), "--data-dir", &text(data), "--listen", "127.0.0.1:0"];
        let more = ["--metrics-listen", "127.0.0.1:0", "--plaintext-xds=127.0.0.1:0"];
        let args = Cli::try_parse_from([&flags[..], &more[..]].concat()).unwrap().args;
        let stop = CancellationToken::new();
        let means = Means {
            clock,
            authority: authority.clone(),
            certificates: Box::new(|routes, _, _| routes),
            cluster: None,
            traces: Traces::default(),
        };
        let running = start(&args, means, &stop).await.unwrap();
        let plane = Self { authority: authority.clone(), listen: running.listen, socket: args.socket(), stop, running };
        plane.settle().await;
        plane
    }

    /// Until the folder has been read.
    async fn settle(&self) {
        let wait = async {
            while self.get("epochs").await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.running.tasks.join_next().await.is_some() {}
    }

    async fn local(&self) -> Channel {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://control").connect_with_connector(connector).await.unwrap()
    }

    pub(crate) async fn api(&self) -> ControlClient<Channel> {
        ControlClient::new(self.local().await)
    }

    pub(crate) async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.local().await)
    }

    pub(crate) async fn get(&self, kind: &str) -> Result<Value, Status> {
        let request = GetRequest { kind: kind.into(), ..Default::default() };
        Ok(serde_json::from_str(&self.api().await.get(request).await?.into_inner().json).unwrap())
    }

    pub(crate) async fn apply(&self, text: &str, delete: bool, wait: bool) -> (Value, bool) {
        self.change(text, delete, wait, 5).await
    }

    /// `apply --wait --timeout`.
    pub(crate) async fn apply_within(&self, text: &str, seconds: i64) -> (Value, bool) {
        self.change(text, false, true, seconds).await
    }

    async fn change(&self, text: &str, delete: bool, wait: bool, seconds: i64) -> (Value, bool) {
        let documents = vec![Document { path: "given.yaml".into(), text: text.into() }];
        let timeout = Some(prost_types::Duration { seconds, nanos: 0 });
        let stream = self.api().await.apply(ApplyRequest { documents, delete, wait, timeout }).await.unwrap().into_inner();
        last(stream).await
    }

    pub(crate) async fn wait(&self, seconds: i64) -> (Value, bool) {
        let request = WaitRequest { epoch: 0, timeout: Some(prost_types::Duration { seconds, nanos: 0 }) };
        last(self.api().await.wait(request).await.unwrap().into_inner()).await
    }

    /// `ca rotate-root`.
    pub(crate) async fn rotate(&self, wait: bool) -> (Value, bool) {
        let request = RotateRootRequest { wait, ..Default::default() };
        last(self.api().await.rotate_root(request).await.unwrap().into_inner()).await
    }

    /// `ca show`, until something holds.
    pub(crate) async fn shows(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let look = async {
            loop {
                let shown = self.api().await.roots(RootsRequest {}).await.unwrap().into_inner().json;
                let shown = serde_json::from_str(&shown).unwrap();
                if holds(&shown) {
                    return shown;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), look).await.unwrap()
    }

    /// A channel through the TLS door; with a leaf (identity, workload) or without.
    pub(crate) async fn tls(&self, leaf: Option<(&str, &str)>) -> Channel {
        self.tls_with(leaf.map(|(identity, workload)| self.authority.leaf(identity, workload, &[]))).await.unwrap()
    }

    /// TLS to the control plane, with a leaf or without.
    pub(crate) fn client(&self, leaf: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> tokio_rustls::TlsConnector {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.issuer.der().clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match leaf {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config).into()
    }

    pub(crate) async fn tls_with(
        &self,
        leaf: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Channel, tonic::transport::Error> {
        let (connector, address) = (self.client(leaf), self.listen);
        let service = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                connector.connect(ServerName::IpAddress(address.ip().into()), stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://control").connect_with_connector(service).await
    }

    /// A channel through the door without TLS.
    pub(crate) async fn plaintext(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.running.plaintext.unwrap())).unwrap().connect().await.unwrap()
    }

    /// An ADS stream of one of our sidecars, every type subscribed.
    pub(crate) async fn sidecar(&self, workload: &str, instance: &str) -> Sidecar {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{workload}");
        let channel = self.tls(Some((&identity, workload))).await;
        Sidecar::open(channel, "shop", workload, instance).await.unwrap()
    }
}

async fn last(mut stream: Streaming<Progress>) -> (Value, bool) {
    loop {
        let progress = stream.message().await.unwrap().unwrap();
        if progress.done {
            return (serde_json::from_str(&progress.json).unwrap(), progress.ok);
        }
    }
}

/// The proxy's end of a Reports stream.
pub(crate) struct Reporter {
    reports: mpsc::Sender<Report>,
    pub(crate) commands: Streaming<Command>,
}

impl Reporter {
    /// Opens a stream as that node. The answer's head says nothing yet: a refusal is the first message.
    pub(crate) async fn open(channel: Channel, node_id: &str, workload: &str) -> Self {
        Self::open_replica(channel, node_id, workload, "").await
    }

    /// The same as one of several proxies of that node.
    pub(crate) async fn open_replica(channel: Channel, node_id: &str, workload: &str, replica: &str) -> Self {
        let (reports, receiver) = mpsc::channel(8);
        let [node_id, workload, replica] = [node_id, workload, replica].map(str::to_owned);
        let hello = Hello { node_id, workload, replica, version: "1".into(), ..Default::default() };
        reports.send(Report { kind: Some(report::Kind::Hello(hello)) }).await.unwrap();
        let commands = ReportsClient::new(channel).stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { reports, commands }
    }

    /// Opens a stream and says nothing yet.
    pub(crate) async fn silent(channel: Channel) -> Self {
        let (reports, receiver) = mpsc::channel(8);
        let commands = ReportsClient::new(channel).stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { reports, commands }
    }

    pub(crate) async fn say(&self, kind: report::Kind) {
        self.reports.send(Report { kind: Some(kind) }).await.unwrap();
    }
}

/// The proxy's end of an ADS stream.
pub(crate) struct Sidecar {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub(crate) seen: Vec<DeltaDiscoveryResponse>,
}

pub(crate) fn all_types() -> Vec<String> {
    control::publish::session::types().into_iter().chain([Epoch::type_url()]).collect()
}

impl Sidecar {
    pub(crate) async fn open(channel: Channel, namespace: &str, workload: &str, instance: &str) -> Result<Self, Status> {
        Self::open_as(channel, "proxy", &format!("sidecar/{namespace}/{instance}"), &format!("{namespace}/{workload}")).await
    }

    /// As a node of that kind, id and workload.
    pub(crate) async fn open_as(channel: Channel, client: &str, id: &str, workload: &str) -> Result<Self, Status> {
        Self::open_with(channel, id, &[(NODE_CLIENT, client), (NODE_WORKLOAD, workload)]).await
    }

    /// As one of several proxies of ours of that node.
    pub(crate) async fn open_replica(channel: Channel, id: &str, workload: &str, replica: &str) -> Result<Self, Status> {
        Self::open_with(channel, id, &[(NODE_CLIENT, "proxy"), (NODE_WORKLOAD, workload), (NODE_REPLICA, replica)]).await
    }

    async fn open_with(channel: Channel, id: &str, fields: &[(&str, &str)]) -> Result<Self, Status> {
        let value = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
        let node = xds::core::Node {
            id: id.to_owned(),
            metadata: Some(prost_types::Struct { fields: fields.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect() }),
            ..Default::default()
        };
        let (requests, receiver) = mpsc::channel(32);
        for (index, type_url) in all_types().into_iter().enumerate() {
            let node = (index == 0).then(|| node.clone());
            requests
                .send(DeltaDiscoveryRequest { node, type_url, resource_names_subscribe: vec!["*".into()], ..Default::default() })
                .await
                .unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, responses, seen: Vec::new() })
    }

    pub(crate) async fn subscribe(&self, type_url: &str, name: &str) {
        self.subscribe_all(type_url, vec![name.to_owned()]).await;
    }

    pub(crate) async fn subscribe_all(&self, type_url: &str, names: Vec<String>) {
        self.requests
            .send(DeltaDiscoveryRequest { type_url: type_url.into(), resource_names_subscribe: names, ..Default::default() })
            .await
            .unwrap();
    }

    /// Acknowledges everything up to the next `Epoch`, which is returned unanswered.
    pub(crate) async fn next_epoch(&mut self) -> Result<(String, Epoch), Status> {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(10), self.responses.message()).await.expect("an epoch within 10 s")?;
            let response = message.ok_or_else(|| Status::aborted("the stream ended"))?;
            if response.type_url == Epoch::type_url() {
                let epoch = xds::unpack(response.resources[0].resource.as_ref().unwrap()).unwrap();
                return Ok((response.nonce, epoch));
            }
            self.answer(&response.type_url, &response.nonce, None).await;
            self.seen.push(response);
        }
    }

    pub(crate) async fn answer(&self, type_url: &str, nonce: &str, error: Option<&str>) {
        let error_detail = error.map(|message| xds::rpc::Status { code: 3, message: message.into(), ..Default::default() });
        let request = DeltaDiscoveryRequest { type_url: type_url.into(), response_nonce: nonce.into(), error_detail, ..Default::default() };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn take_epoch(&mut self, error: Option<&str>) -> u64 {
        let (nonce, epoch) = self.next_epoch().await.unwrap();
        self.answer(&Epoch::type_url(), &nonce, error).await;
        epoch.number
    }
}
