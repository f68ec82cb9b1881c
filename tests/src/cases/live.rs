//! The table over a whole mesh: the control plane and the proxies of the binary's own code in one thread and in virtual time, over
//! memory pipes. Nothing is tried twice: a case begins when every proxy has acknowledged what it is about.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proxy::io::{Network, Socket};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::backend::{ANSWER, Ledger, POD, TAG, serve, serve_bytes};
use super::judge::{Outcome, Seen, joined, judge};
use super::objects::{Destination, Pod, Stage, completed, destination, full, key, manifests};
use super::table::{Ask, Case, Change, Only, Proto, Table};
use super::unit::head;
use crate::mesh::Mesh;
use crate::sidecar::{Sidecar, Spec, resolve};
use crate::wire::Medium;

/// The control plane's host.
const CONTROL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
/// Who asks from outside.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 250));
/// Where the proxy of the first Gateway is.
const FIRST_EDGE: u8 = 240;
/// Feeds all chance.
const SEED: u64 = 9;
/// When mirrors have come to where they go.
const MIRRORED: Duration = Duration::from_millis(500);
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest run of one table, in virtual time.
const RUN_MAX: Duration = Duration::from_secs(24 * 3600);

/// Runs every case of a table that a whole mesh can tell; how many those were.
///
/// # Errors
/// The mesh does not come up; or says which cases are not as wanted, all of them at once.
pub fn run(table: &Table) -> anyhow::Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    let bounded = async { tokio::time::timeout(RUN_MAX, all(table)).await };
    tokio::task::LocalSet::new().block_on(&runtime, bounded).context("it hangs")?
}

struct Town {
    stage: Stage,
    mesh: Mesh,
    ledger: Ledger,
    sidecars: Vec<(Pod, Sidecar)>,
    /// Proxies of Gateways, by `NAMESPACE/NAME`, and where they are.
    edges: Vec<(String, IpAddr, Sidecar)>,
}

async fn all(table: &Table) -> anyhow::Result<usize> {
    let mut town = Town::open(Stage::of(table)?).await?;
    let (mut count, mut wrong) = (0, Vec::new());
    let first = Change { apply: Vec::new(), delete: Vec::new(), status: Vec::new(), cases: table.cases.clone() };
    for step in std::iter::once(&first).chain(&table.steps) {
        town.change(step).await?;
        for case in step.cases.iter().filter(|case| case.only != Some(Only::Unit)) {
            count += 1;
            let result = town.one(case, count).await;
            wrong.extend(result.err().map(|error| format!("{}: {}: {error:#}", table.name, case.name)));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(count)
}

impl Town {
    async fn open(stage: Stage) -> anyhow::Result<Self> {
        let mesh = Mesh::new(Medium::Memory, CONTROL, &stage.manifests(), SEED)?;
        let clock = mesh.clock(Duration::ZERO);
        let (plane, network) = (mesh.plane.clone(), mesh.wire.exempt(CONTROL));
        tokio::task::spawn_local(async move { plane.run(network, clock).await });
        let (ledger, mut sidecars) = (Ledger::default(), Vec::new());
        for pod in stage.pods.iter().chain(&stage.clients) {
            for port in &pod.ports {
                let (network, address) = (mesh.wire.application(pod.ip), SocketAddr::new(pod.ip, *port));
                let (name, ledger, bytes) = (pod.name.clone(), ledger.clone(), pod.bytes);
                tokio::task::spawn_local(async move {
                    // It ends with the mesh.
                    if bytes {
                        serve_bytes(network, address, name, ledger).await.map(drop)
                    } else {
                        serve(network, address, name, ledger).await
                    }
                });
            }
            if pod.meshed {
                sidecars.push((pod.clone(), mesh.sidecar(spec(pod), clock).await?));
            }
        }
        for (pod, sidecar) in &sidecars {
            sidecar.ready().await.with_context(|| pod.name.clone())?;
        }
        let mut edges = Vec::new();
        for (number, gateway) in (FIRST_EDGE..).zip(stage.objects.values().filter(|object| object["kind"] == "Gateway")) {
            let (spec, ports) = of_gateway(gateway, Ipv4Addr::new(10, 9, 0, number).into())?;
            let edge = mesh.edge(spec, &ports, clock).await?;
            edge.ready().await.with_context(|| spec.workload.to_owned())?;
            edges.push((format!("{}/{}", spec.namespace, spec.workload), spec.ip, edge));
        }
        let town = Self { stage, mesh, ledger, sidecars, edges };
        // A change that concerns nobody: live when everybody has acknowledged what was before it.
        town.apply("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: begun}\n").await?;
        Ok(town)
    }

    async fn apply(&self, text: &str) -> anyhow::Result<()> {
        let live = self.mesh.desk().apply(text).await?;
        ensure!(live["live"] == true, "not live: {live}");
        Ok(())
    }

    async fn change(&mut self, step: &Change) -> anyhow::Result<()> {
        let mut come = Vec::new();
        for object in &step.apply {
            let object = completed(object)?;
            self.stage.objects.insert(key(&object)?, object.clone());
            come.push(object);
        }
        if !come.is_empty() {
            self.apply(&manifests(&come)).await?;
        }
        let mut gone: Vec<Value> = Vec::new();
        for name in &step.delete {
            gone.push(self.stage.objects.remove(&full(name)).with_context(|| format!("{name} is not there"))?);
        }
        if !gone.is_empty() {
            let live = self.mesh.desk().delete(&manifests(&gone)).await?;
            ensure!(live["live"] == true, "not live: {live}");
        }
        Ok(())
    }

    async fn one(&self, case: &Case, number: usize) -> anyhow::Result<()> {
        let (pod, sidecar) = self.sidecars.iter().find(|(pod, _)| pod.name == case.get.from).context("nobody asks")?;
        let to = destination(&case.get.to)?;
        let of_gateway = || self.edges.iter().find(|(name, ..)| *name == format!("{}/{}", to.namespace, to.name)).map(|(_, ip, _)| *ip);
        let ip = match self.stage.pod(&to.name) {
            _ if to.gateway => of_gateway().context("no such Gateway")?,
            Some(pod) if to.pod => pod.ip,
            _ => resolve(&sidecar.means.snapshots, &format!("{}.{}", to.name, to.namespace)).await?,
        };
        let network = self.mesh.wire.application(if to.gateway { OUTSIDE } else { pod.ip });
        let caller = Caller { network, address: SocketAddr::new(ip, to.port), to, tag: number.to_string() };
        let mut outcomes = Vec::new();
        let mut kept = None;
        self.ledger.take();
        for _ in 0..case.get.repeat {
            let mut outcome = caller.ask(&case.get, kept.as_ref()).await?;
            if !case.want.mirrored.is_empty() {
                tokio::time::sleep(MIRRORED).await;
            }
            let seen = |seen: &Seen| case.want.mirrored.contains_key(super::objects::backend_of(&seen.pod)) && seen.pod != outcome.pod;
            (outcome.mirrored, outcome.seen) = self.ledger.take().into_iter().partition(seen);
            if let (Some(name), None) = (&case.get.keep, &kept) {
                kept = Some(keep(name, &outcome)?);
            }
            outcomes.push(outcome);
        }
        judge(&case.want, &outcomes)
    }
}

/// Names of the proxies of this crate live as long as the process.
fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

/// The proxy of a Gateway, and its ports for connections.
fn of_gateway(gateway: &Value, ip: IpAddr) -> anyhow::Result<(Spec, Vec<u16>)> {
    let named = |field: &str| gateway["metadata"][field].as_str().map(leak).with_context(|| format!("a Gateway without {field}"));
    let name = named("name")?;
    let listeners = gateway["spec"]["listeners"].as_array().into_iter().flatten().filter(|listener| listener["protocol"] != "UDP");
    let ports: BTreeSet<u16> = listeners.filter_map(|listener| listener["port"].as_u64()?.try_into().ok()).collect();
    // A Gateway's account is its name.
    Ok((Spec { namespace: named("namespace")?, workload: name, service_account: name, ip }, ports.into_iter().collect()))
}

fn spec(pod: &Pod) -> Spec {
    Spec { namespace: leak(&pod.namespace), workload: leak(&pod.name), service_account: "default", ip: pod.ip }
}

/// What goes along with further requests.
fn keep(name: &str, outcome: &Outcome) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let value = joined(&outcome.headers, name).with_context(|| format!("no {name} to keep: {:?}", outcome.headers))?;
    if name == "set-cookie" {
        let cookie = value.split(';').next().unwrap_or_default();
        return Ok((http::header::COOKIE, cookie.parse()?));
    }
    Ok((name.parse()?, value.parse()?))
}

struct Caller {
    network: Network,
    address: SocketAddr,
    to: Destination,
    tag: String,
}

impl Caller {
    async fn ask(&self, ask: &Ask, kept: Option<&(HeaderName, HeaderValue)>) -> anyhow::Result<Outcome> {
        let begun = Instant::now();
        let mut socket = self.network.connect(self.address).await?;
        if let Some(from) = ask.proxied {
            let introduction = format!("PROXY TCP4 {from} 192.0.2.1 1000 {}\r\n", self.to.port);
            // Who is cut off is told so by what it asks.
            let _ = socket.write_all(introduction.as_bytes()).await;
        }
        if ask.proto.is_opaque() {
            let name = ask.host.as_deref().unwrap_or_default();
            let first = if ask.proto == Proto::Tls { client_hello(name) } else { b"who are you?".to_vec() };
            return bounded(bytes(socket, first)).await;
        }
        let mut head = head(ask, &self.to)?;
        head.headers.insert(TAG, self.tag.parse()?);
        if let Some(answer) = &ask.answer {
            head.headers.insert(ANSWER, serde_json::to_string(answer)?.parse()?);
        }
        if let Some((name, value)) = kept {
            head.headers.insert(name, value.clone());
        }
        let mut outcome = match &ask.sni {
            None => bounded(exchange(socket, ask, head)).await?,
            Some(name) => match bounded(tls(socket, name, ask.proto)).await? {
                Some(stream) => bounded(Box::pin(exchange(stream, ask, head))).await?,
                None => Outcome::default(),
            },
        };
        outcome.took = begun.elapsed();
        Ok(outcome)
    }
}

async fn bounded<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.context("no answer at all")?
}

/// TLS to an edge by a name, or by none; `None`: it is not let in. Whose certificate is shown is looked at elsewhere.
async fn tls(socket: Socket, name: &str, proto: Proto) -> anyhow::Result<Option<TlsStream<Socket>>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![if proto == Proto::Http1 { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
    // An address is not named.
    let name = if name.is_empty() { ServerName::from(IpAddr::from([192, 0, 2, 1])) } else { ServerName::try_from(name.to_owned())? };
    Ok(TlsConnector::from(Arc::new(config)).connect(name, socket).await.ok())
}

/// Believes anybody.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn exchange<S>(socket: S, ask: &Ask, head: request::Parts) -> anyhow::Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::from_parts(head, Full::<Bytes>::from(ask.body.clone()));
    let io = TokioIo::new(socket);
    let answer = if ask.proto == Proto::Http1 {
        let (mut sender, connection) = http1::handshake(io).await?;
        tokio::task::spawn_local(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::task::spawn_local(connection);
        sender.send_request(request).await
    };
    // Cut off: no answer.
    let Ok(answer) = answer else { return Ok(Outcome::default()) };
    let (parts, body) = answer.into_parts();
    let Ok(body) = body.collect().await else { return Ok(Outcome::default()) };
    let code = |headers: &http::HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    let grpc = code(&parts.headers).or_else(|| body.trailers().and_then(code));
    let pod = joined(&parts.headers, POD).unwrap_or_default();
    Ok(Outcome { status: parts.status.as_u16(), headers: parts.headers, pod, grpc, ..Outcome::default() })
}

/// The first words of TLS (RFC 8446, section 4.1.2) that ask for a name, or for none.
fn client_hello(name: &str) -> Vec<u8> {
    let sized = |bytes: Vec<u8>| [&u16::try_from(bytes.len()).unwrap_or_default().to_be_bytes(), &*bytes].concat();
    let host = [&[0][..], &sized(name.as_bytes().to_vec())].concat();
    let extension = if name.is_empty() { Vec::new() } else { [&[0, 0][..], &sized(sized(host))].concat() };
    let hello = [&[3, 3][..], &[7; 32], &[0], &sized(vec![0x13, 1]), &[1, 0], &sized(extension)].concat();
    let message = [&[1, 0][..], &sized(hello)].concat();
    [&[0x16, 3, 1][..], &sized(message)].concat()
}

async fn bytes(mut socket: Socket, first: Vec<u8>) -> anyhow::Result<Outcome> {
    // Whoever is cut off says nothing.
    let _ = socket.write_all(&first).await;
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer).await;
    let status = if answer.is_empty() { 0 } else { 200 };
    Ok(Outcome { status, pod: answer, ..Outcome::default() })
}
