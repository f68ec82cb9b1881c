//! A proxy without its doors: cells, and the tasks that talk with the control plane. The binary and simulations start the same.

use std::sync::Arc;

use anyhow::Context;
use engine::model::Roots;
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::callout::keys::KeyKeeper;
use crate::callout::providers::ProviderKeeper;
use crate::callout::{CalledServices, Callout};
use crate::identity::{Agent, Subject, TokenFile};
use crate::io::{Clock, Draw, Network};
use crate::leases::LeaseKeeper;
use crate::observe::{Exporter, MetricsExporter, Telemetry, TelemetryOptions};
use crate::reports::{Reporter, answering};
use crate::road::hashing::Hashing;
use crate::shell::admin::Admin;
use crate::shell::worker::Means;
use crate::snapshots::Snapshots;
use crate::status::lifecycle::Lifecycle;
use crate::status::logs::LogFilter;
use crate::stores::StoreKeeper;
use crate::tls::dial::{ControlAddress, Dialer};
use crate::tls::{ControlTls, CredentialCell, Tls, TrustCell, WallTime};
use crate::workload_api::WorkloadApi;
use crate::xds::{Client, NodeIdentity};

/// Who a proxy is and whom it asks.
#[derive(Debug)]
pub struct Membership {
    /// Its node.
    pub node: NodeIdentity,
    /// Whom its certificate is for.
    pub subject: Subject,
    /// Control plane.
    pub control: ControlAddress,
    /// Roots the control plane must prove itself by.
    pub control_roots: Vec<CertificateDer<'static>>,
    /// Where a token may lie.
    pub token: Option<TokenFile>,
}

/// See the module.
pub struct Core {
    /// What workers need.
    pub means: Means,
    /// Start, readiness, drain.
    pub lifecycle: Lifecycle,
    /// The leaf in use.
    pub credentials: Arc<CredentialCell>,
    /// The roots in use.
    pub trust: Arc<TrustCell>,
    clock: Clock,
    exporter: Exporter,
    dialer: Dialer,
    node: NodeIdentity,
    subject: Subject,
    token: Option<TokenFile>,
}

impl Core {
    /// Makes the cells; nothing runs yet and nothing is connected.
    ///
    /// # Errors
    /// The roots are unusable, or the crypto library is.
    pub fn new(member: Membership, network: Network, clock: Clock, options: TelemetryOptions) -> anyhow::Result<Self> {
        let (credentials, trust) = (Arc::new(CredentialCell::default()), Arc::new(TrustCell::default()));
        let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::new(WallTime(clock));
        let tls = Tls::new(Arc::clone(&credentials), Arc::clone(&trust), Arc::clone(&time)).context("mesh TLS cannot be set up")?;
        let control = ControlTls::new(member.control_roots, &credentials, &trust, &time).context("--control-ca")?;
        let tls = Arc::new(tls);
        let options = TelemetryOptions { network: network.clone(), tls: Some(Arc::clone(&tls)), ..options };
        let (telemetry, exporter) = crate::observe::start(options, clock);
        let snapshots = Snapshots::default();
        Ok(Self {
            lifecycle: Lifecycle::new(snapshots.clone(), Arc::clone(&credentials), Arc::clone(&trust)),
            dialer: Dialer::new(network.clone(), member.control, control),
            means: Means {
                snapshots,
                tls,
                telemetry,
                network,
                hashing: Hashing::of(std::thread::available_parallelism().map_or(1, usize::from)),
                connections_max: usize::MAX,
            },
            credentials,
            trust,
            clock,
            exporter,
            node: member.node,
            subject: member.subject,
            token: member.token,
        })
    }

    /// The admin pages of this proxy.
    pub fn admin(&self, logs: &LogFilter) -> Admin {
        Admin {
            snapshots: self.means.snapshots.clone(),
            telemetry: Arc::clone(&self.means.telemetry),
            credentials: Arc::clone(&self.credentials),
            trust: Arc::clone(&self.trust),
            lifecycle: self.lifecycle.clone(),
            logs: logs.clone(),
            node: self.node.id.clone(),
            network: self.means.network.clone(),
            probes: Arc::default(),
        }
    }

    /// The SPIFFE Workload API of this proxy, not yet served.
    pub fn workload_api(&self) -> WorkloadApi {
        WorkloadApi {
            dialer: self.dialer.clone(),
            credentials: Arc::clone(&self.credentials),
            trust: Arc::clone(&self.trust),
            snapshots: self.means.snapshots.clone(),
            clock: self.clock,
            subject: self.subject.clone(),
        }
    }

    /// Starts identity, xDS, reports and telemetry export on the current runtime; they end soon after `stop`. `seed` feeds all their
    /// chance.
    ///
    /// # Errors
    /// The control plane's address cannot be dialled at all.
    pub fn start(self, tasks: &mut JoinSet<()>, logs: LogFilter, seed: u64, stop: &CancellationToken) -> anyhow::Result<()> {
        let draw = Draw::seeded(seed);
        let uplink = self.dialer.uplink()?;
        let Means { snapshots, telemetry, tls, network, .. } = self.means;
        let hurry = Arc::<Notify>::default();
        let agent = Agent {
            dialer: self.dialer,
            bearer: Arc::clone(&self.credentials),
            exposed: None,
            hurry: Arc::clone(&hurry),
            credentials: Arc::clone(&self.credentials),
            trust: Arc::clone(&self.trust),
            snapshots: snapshots.clone(),
            clock: self.clock,
            subject: self.subject,
            token: self.token,
        };
        let client = Client {
            uplink: uplink.clone(),
            node: self.node.clone(),
            snapshots: snapshots.clone(),
            trust: Arc::clone(&self.trust),
            credentials: Arc::clone(&self.credentials),
            hurry,
            telemetry: Arc::clone(&telemetry),
        };
        tasks.spawn(expiry(Arc::clone(&self.credentials), Arc::clone(&telemetry), stop.clone()));
        let leases = LeaseKeeper {
            uplink: uplink.clone(),
            node: self.node.clone(),
            snapshots: snapshots.clone(),
            telemetry: Arc::clone(&telemetry),
            credentials: Arc::clone(&self.credentials),
        };
        let callout = Callout::new(network, tls, snapshots.clone(), Roots::System);
        let stores = StoreKeeper {
            callout: callout.clone(),
            snapshots: snapshots.clone(),
            telemetry: Arc::clone(&telemetry),
            node: self.node.clone(),
        };
        let node = self.node.id.to_string();
        let reporter = Reporter {
            uplink,
            node: self.node,
            snapshots: snapshots.clone(),
            telemetry: Arc::clone(&telemetry),
            credentials: self.credentials,
            trust: self.trust,
            lifecycle: self.lifecycle,
            logs,
            answering: answering(),
        };
        tasks.spawn(agent.run(Draw::seeded(draw.next()), stop.clone()));
        tasks.spawn(client.run(Draw::seeded(draw.next()), stop.clone()));
        tasks.spawn(reporter.run(Draw::seeded(draw.next()), stop.clone()));
        tasks.spawn(leases.run(Draw::seeded(draw.next()), stop.clone()));
        tasks.spawn(stores.run(Draw::seeded(draw.next()), stop.clone()));
        let providers = ProviderKeeper { callout: callout.clone(), snapshots: snapshots.clone(), telemetry: Arc::clone(&telemetry) };
        tasks.spawn(providers.run(Draw::seeded(draw.next()), stop.clone()));
        let keeper = KeyKeeper { callout: callout.clone(), snapshots, telemetry: Arc::clone(&telemetry) };
        tasks.spawn(keeper.run(Draw::seeded(draw.next()), stop.clone()));
        telemetry.reach_services(Arc::new(CalledServices::new(callout, node, draw.next())));
        let metrics = MetricsExporter::new(telemetry);
        let ended = stop.clone();
        tasks.spawn(metrics.run(async move { ended.cancelled().await }));
        let stop = stop.clone();
        tasks.spawn(self.exporter.run(async move { stop.cancelled().await }));
        Ok(())
    }
}

/// Keeps the expiry metric at the leaf in use.
async fn expiry(credentials: Arc<CredentialCell>, telemetry: Arc<Telemetry>, stop: CancellationToken) {
    let mut leaves = credentials.changes();
    loop {
        if let Some(leaf) = credentials.current() {
            let end = leaf.not_after.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            telemetry.readings.cert_expiry_unix_secs.store(i64::try_from(end).unwrap_or(i64::MAX), std::sync::atomic::Ordering::Relaxed);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = leaves.changed() => {}
        }
    }
}
