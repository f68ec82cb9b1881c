//! A proxy of the month: the shipping core (identity, configuration, reports) without its data path, on a tether that can be cut and
//! held, by a clock that can be set.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use proto::names::{Mode, NodeId};
use proxy::identity::{Subject, TokenFile};
use proxy::io::{Clock, Network, Socket, VirtualListening, VirtualNetwork, pipe};
use proxy::observe::{LogLines, TelemetryOptions};
use proxy::shell::app::{Core, Membership};
use proxy::snapshots::Snapshots;
use proxy::status::logs::LogFilter;
use proxy::tls::dial::ControlAddress;
use proxy::tls::{CredentialCell, Tls, TrustCell};
use proxy::xds::NodeIdentity;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes that a tether passes on at once.
const PIECE: usize = 16 << 10;

/// A proxy's way to the control plane.
pub(super) struct Tether {
    inner: Network,
    open: watch::Sender<bool>,
    /// What comes down waits while this is set.
    held: watch::Sender<bool>,
    relays: Mutex<JoinSet<()>>,
}

impl Tether {
    pub(super) fn new(inner: Network) -> Arc<Self> {
        Arc::new(Self { inner, open: watch::Sender::new(true), held: watch::Sender::new(false), relays: Mutex::default() })
    }

    pub(super) fn open(&self, open: bool) {
        self.open.send_replace(open);
        if !open {
            self.snap();
        }
    }

    /// Cuts what is connected now.
    pub(super) fn snap(&self) {
        *self.relays.lock().unwrap_or_else(PoisonError::into_inner) = JoinSet::new();
    }

    pub(super) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
}

#[async_trait]
impl VirtualNetwork for Tether {
    async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        if !*self.open.borrow() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let far = self.inner.connect(address).await?;
        let (near, middle) = pipe();
        let held = self.held.subscribe();
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        while relays.try_join_next().is_some() {}
        relays.spawn(relay(middle, far, held));
        Ok(near)
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        let _ = address;
        Err(io::ErrorKind::Unsupported.into())
    }
}

async fn relay(near: Socket, far: Socket, held: watch::Receiver<bool>) {
    let ((up_from, down_to), (down_from, up_to)) = (split(near), split(far));
    tokio::select! {
        () = pass(up_from, up_to, None) => {}
        () = pass(down_from, down_to, Some(held)) => {}
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut held: Option<watch::Receiver<bool>>) {
    let mut piece = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        if let Some(held) = &mut held
            && held.wait_for(|held| !held).await.is_err()
        {
            return;
        }
        if to.write_all(&piece[..read]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

/// What a proxy process has in memory; gone with it.
pub(super) struct Process {
    pub(super) credentials: Arc<CredentialCell>,
    pub(super) trust: Arc<TrustCell>,
    pub(super) tls: Arc<Tls>,
    pub(super) snapshots: Snapshots,
    _tasks: JoinSet<()>,
    _stop: DropGuard,
}

/// See the module.
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) address: IpAddr,
    pub(super) clock: Clock,
    pub(super) by_ms: &'static AtomicI64,
    pub(super) tether: Arc<Tether>,
    pub(super) token: PathBuf,
    pub(super) process: Option<Process>,
    /// Roots that it gave up: never to be believed again.
    pub(super) forsworn: BTreeSet<Vec<u8>>,
    /// Roots that it believed at the last look.
    pub(super) believed: BTreeSet<Vec<u8>>,
    /// Serial of the leaf at the last look.
    pub(super) serial: String,
    /// When that leaf was first seen.
    pub(super) leaf_seen: Option<tokio::time::Instant>,
}

impl Member {
    pub(super) fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/shop/sa/{}", self.name)
    }

    /// Starts the process by this bundle.
    pub(super) fn start(&mut self, bundle: &str, control: SocketAddr, seed: u64) -> anyhow::Result<()> {
        let id = NodeId { mode: Mode::Sidecar, namespace: "shop".into(), instance: self.name.into() };
        let name = || self.name.to_owned();
        let member = Membership {
            node: NodeIdentity { id, workload: name(), replica: String::new() },
            subject: Subject { namespace: "shop".into(), workload: name(), instance: name(), service_account: name() },
            control: ControlAddress { host: control.ip().to_string(), port: control.port() },
            control_roots: CertificateDer::pem_slice_iter(bundle.as_bytes()).collect::<Result<_, _>>()?,
            token: Some(TokenFile::new(Path::new(&self.token))),
        };
        let options = TelemetryOptions { instance: name(), log: LogLines::Memory(Arc::default()), ..TelemetryOptions::default() };
        let network = Network::Virtual(Arc::clone(&self.tether) as Arc<dyn VirtualNetwork>);
        let core = Core::new(member, network, self.clock, options)?;
        let (credentials, trust) = (Arc::clone(&core.credentials), Arc::clone(&core.trust));
        let (tls, snapshots) = (Arc::clone(&core.means.tls), core.means.snapshots.clone());
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        core.start(&mut tasks, LogFilter::default(), seed, &stop)?;
        self.process = Some(Process { credentials, trust, tls, snapshots, _tasks: tasks, _stop: stop.drop_guard() });
        Ok(())
    }
}
