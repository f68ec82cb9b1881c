//! A control plane with its authority, from one data folder and one clock.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use certs_ca::attest::moment;
use certs_ca::{Ca, Policy, ServerNames};
use control::app::Means;
use control::publish::trust::{Root, Roots};
use control::serve::authority::{Authority, Issued, Seat, TokenOrder};
use control::world::own::Mesh;
use proto::identity::Applicant;
use proxy::io::Clock;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tonic::Extensions;

/// The shortest life of a leaf that an authority is told.
const LEAF_LIFE_MIN: Duration = Duration::from_secs(1);

/// Opens the authority of a data folder (makes it at the first start) for a control plane that goes by the same clock.
///
/// # Errors
/// The folder cannot be used; the sentence names it.
pub fn means(data_dir: &Path, clock: Clock) -> anyhow::Result<Means> {
    let ca = Arc::new(Ca::open(data_dir, Policy::default(), Arc::new(move || OffsetDateTime::from(clock.wall())))?);
    let signing = ca.clone();
    Ok(Means {
        clock: control::clock::Clock::new(move || clock.wall()),
        authority: Arc::new(Joined(ca)),
        certificates: Box::new(move |routes, gate| {
            let gate = Arc::new(move |extensions: &Extensions, applicant: &Applicant<'_>| gate.leaf(extensions, applicant));
            routes.add_service(certs_ca::serve::service(signing, gate))
        }),
    })
}

/// The authority as the control plane sees it.
struct Joined(Arc<Ca>);

impl Authority for Joined {
    fn roots(&self) -> Arc<Roots> {
        let root = |der: &CertificateDer<'static>| Root { der: der.clone(), sha256: certs_ca::roots::digest_of(der) };
        let issuing = root(self.0.roots().issuing());
        Arc::new(Roots { issuing, others: Vec::new(), retired: Vec::new(), pem: self.0.bundle_pem().into() })
    }

    fn seat(&self, dns: &[String], addresses: &[IpAddr]) -> Result<Seat, String> {
        let names = ServerNames { dns: dns.to_vec(), addresses: addresses.to_vec() };
        let seat = self.0.seat(&names).map_err(|error| error.to_string())?;
        let key = PrivatePkcs8KeyDer::from(seat.key.to_vec()).into();
        Ok(Seat { chain: seat.chain, key, lasts: seat.lasts })
    }

    fn create_token(&self, order: &TokenOrder) -> Result<String, String> {
        let TokenOrder { workload, identity, instance, life } = order.clone();
        self.0.issue_token(&certs_ca::TokenOrder { workload, identity, instance, life }).map_err(|error| error.to_string())
    }

    fn issued(&self) -> Vec<Issued> {
        let row = |entry: certs_ca::book::IssuedLeaf| Issued {
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
            leaf_life: mesh.leaf_life.max(LEAF_LIFE_MIN),
            intermediate_life: mesh.intermediate_life,
            root_life: mesh.root_life,
        });
    }
}
