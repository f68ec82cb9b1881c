//! A sidecar on a host of a [`Wire`]: the binary's own core, worker and doors, on the current thread.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use proto::names::{Mode, NodeId};
use proxy::identity::{Subject, TokenFile};
use proxy::io::Clock;
use proxy::observe::{LogLines, TelemetryOptions};
use proxy::shell::app::{Core, Membership};
use proxy::shell::listener::{Purpose, listen};
use proxy::shell::worker::{Means, shared};
use proxy::snapshots::{NameLookup, Snapshots};
use proxy::status::logs::LogFilter;
use proxy::tls::CredentialCell;
use proxy::tls::dial::ControlAddress;
use proxy::workload_api::WorkloadApi;
use proxy::xds::NodeIdentity;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::wire::{INBOUND_PORT, OUTBOUND_PORT, Wire};

/// Who a sidecar is.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Namespace of its workload.
    pub namespace: &'static str,
    /// Its workload, and its only instance.
    pub workload: &'static str,
    /// Account of its identity.
    pub service_account: &'static str,
    /// Its host.
    pub ip: IpAddr,
}

/// The access log of one or several sidecars. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Every line so far, parsed.
    pub fn lines(&self) -> Vec<Value> {
        self.0.lock().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// A running sidecar; its tasks end when it is dropped.
pub struct Sidecar {
    /// Cells shared with its worker.
    pub means: Means,
    /// Its leaf.
    pub credentials: Arc<CredentialCell>,
    /// Its application's way to an identity, not yet served.
    pub workload_api: WorkloadApi,
    _tasks: JoinSet<()>,
    _stop: tokio_util::sync::DropGuard,
}

impl Sidecar {
    /// Starts a sidecar. Must be called inside a local task set.
    ///
    /// # Errors
    /// The bundle cannot be read, or a port is taken.
    pub async fn start(spec: Spec, place: (SocketAddr, &Path, &Path), wire: &Wire, times: (Clock, u64), log: &Log) -> anyhow::Result<Self> {
        wire.mesh(spec.ip);
        let doors = [(Purpose::Outbound, OUTBOUND_PORT), (Purpose::Inbound, INBOUND_PORT)];
        Self::of(Mode::Sidecar, (spec, &doors), place, wire, times, log).await
    }

    /// Starts a Gateway's proxy, which is open at these ports of its host. Must be called inside a local task set.
    ///
    /// # Errors
    /// As of a sidecar.
    pub async fn edge(
        spec: Spec,
        ports: &[u16],
        place: (SocketAddr, &Path, &Path),
        wire: &Wire,
        times: (Clock, u64),
        log: &Log,
    ) -> anyhow::Result<Self> {
        let doors: Vec<_> = ports.iter().map(|port| (Purpose::Edge { port: *port }, *port)).collect();
        Self::of(Mode::Edge, (spec, &doors), place, wire, times, log).await
    }

    async fn of(
        mode: Mode,
        (spec, doors): (Spec, &[(Purpose, u16)]),
        (control, bundle, token): (SocketAddr, &Path, &Path),
        wire: &Wire,
        (clock, seed): (Clock, u64),
        log: &Log,
    ) -> anyhow::Result<Self> {
        let network = wire.exempt(spec.ip);
        let pem = std::fs::read(bundle).with_context(|| format!("{} cannot be read", bundle.display()))?;
        let (namespace, workload) = (spec.namespace.to_owned(), spec.workload.to_owned());
        let id = NodeId { mode, namespace: namespace.clone(), instance: workload.clone() };
        let service_account = spec.service_account.to_owned();
        let member = Membership {
            node: NodeIdentity { id, workload: workload.clone(), replica: String::new() },
            subject: Subject { namespace, workload: workload.clone(), instance: workload.clone(), service_account },
            control: ControlAddress { host: control.ip().to_string(), port: control.port() },
            control_roots: CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?,
            token: Some(TokenFile::new(token)),
        };
        let options = TelemetryOptions { instance: workload, log: LogLines::Memory(Arc::clone(&log.0)), ..TelemetryOptions::default() };
        let core = Core::new(member, network.clone(), clock, options)?;
        let (means, credentials) = (core.means.clone(), Arc::clone(&core.credentials));
        let (worker, workload_api) = (shared(&means, seed), core.workload_api());
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        core.start(&mut tasks, LogFilter::default(), seed ^ 1, &stop)?;
        for (door, port) in doors {
            let listening = network.listen(SocketAddr::new(spec.ip, *port)).await?;
            tasks.spawn_local(listen(listening, *door, std::rc::Rc::clone(&worker)));
        }
        Ok(Self { means, credentials, workload_api, _tasks: tasks, _stop: stop.drop_guard() })
    }

    /// Until it has its leaf and its first configuration.
    ///
    /// # Errors
    /// Not within a minute.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let ready = async {
            let told = || {
                let live = self.means.snapshots.load();
                live.inbound.is_some() || !live.edges.is_empty()
            };
            while self.credentials.current().is_none() || !told() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ready).await.context("a sidecar is not ready within a minute")
    }
}

/// What the sidecar's resolver answers for a name: its IPv4 address.
///
/// # Errors
/// The mesh does not know it.
pub async fn resolve(snapshots: &Snapshots, name: &str) -> anyhow::Result<IpAddr> {
    match snapshots.name(name, false).await {
        NameLookup::Found(answer) => answer.addresses.iter().find(|ip| ip.is_ipv4()).copied().context("no IPv4 address"),
        other => anyhow::bail!("{name} is {other:?}"),
    }
}
