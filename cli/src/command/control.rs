//! `meshwright control`: the control plane and its certificate authority in one server.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use certs_ca::attest::moment;
use certs_ca::serve::service;
use certs_ca::{Ca, Clock, Policy, ServerNames};
use control::publish::peer::leaf_of;
use control::serve::authority::{Authority, Issued, Seat, TokenOrder};
use control::settings::ControlArgs as Flags;
use control::world::own::Mesh;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tracing_subscriber::EnvFilter;

use crate::output;

/// Arguments of `meshwright control`.
pub(crate) type ControlArgs = Flags;

/// Threads of the control plane: it must leave the machine to the mesh.
const THREADS: usize = 2;

pub(crate) fn run(mut args: ControlArgs) -> anyhow::Result<ExitCode> {
    if args.api_socket.is_none() {
        args.api_socket = Some(crate::state::create()?.join(crate::state::CONTROL_SOCKET));
    }
    let filter = EnvFilter::try_new(&args.log_level)
        .map_err(|error| output::usage(format!("--log-level {}: {error}; use `info`, or `control=debug`", args.log_level)))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(async {
        let clock: Clock = Arc::new(time::OffsetDateTime::now_utc);
        let ca = Arc::new(Ca::open(&args.data_dir, Policy::default(), clock)?);
        let certificates = service(ca.clone(), leaf_of);
        control::app::run(args, Arc::new(Joined(ca)), move |routes| routes.add_service(certificates)).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The authority as the control plane sees it.
struct Joined(Arc<Ca>);

impl Authority for Joined {
    fn bundle_pem(&self) -> String {
        self.0.bundle_pem()
    }

    fn bundle_der(&self) -> Vec<CertificateDer<'static>> {
        self.0.roots().der().to_vec()
    }

    fn bundle_hashes(&self) -> Vec<String> {
        self.0.roots().hashes()
    }

    fn seat(&self, dns: &[String], addresses: &[IpAddr]) -> Result<Seat, String> {
        let names = ServerNames { dns: dns.to_vec(), addresses: addresses.to_vec() };
        let seat = self.0.seat(&names).map_err(|error| error.to_string())?;
        let key = PrivatePkcs8KeyDer::from(seat.key.to_vec()).into();
        Ok(Seat { chain: seat.chain, key, lasts: seat.lasts })
    }

    fn create_token(&self, order: &TokenOrder) -> Result<String, String> {
        let order = certs_ca::TokenOrder {
            workload: order.workload.clone(),
            identity: order.identity.clone(),
            instance: order.instance.clone(),
            life: order.life,
        };
        self.0.issue_token(&order).map_err(|error| error.to_string())
    }

    fn issued(&self) -> Vec<Issued> {
        let row = |entry: certs_ca::book::Entry| Issued {
            namespace: entry.namespace,
            workload: entry.workload,
            instance: entry.instance,
            identity: entry.identity,
            serial: entry.serial,
            not_before: moment(entry.not_before),
            not_after: moment(entry.not_after),
            issuer: entry.issuer,
        };
        self.0.certs().into_iter().map(row).collect()
    }

    fn follow(&self, mesh: &Mesh) {
        self.0.set_policy(Policy {
            trust_domain: mesh.trust_domain.clone(),
            leaf_life: mesh.leaf_life.max(Duration::from_secs(1)),
            intermediate_life: mesh.intermediate_life,
            root_life: mesh.root_life,
        });
    }
}
