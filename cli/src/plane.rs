//! A control plane with its authority, from one data folder and one clock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver::client::Client;
use apiserver::keep::{Changes, Keep, Secret};
use apiserver::review::{ReviewError, Reviewer};
use certs_ca::attest::{Attestation, Pod, ServiceAccount, ServiceAccountError, ServiceAccountVerifier, moment};
use certs_ca::audit::{RefusalKind, SIGNING_BOUNDS_MICROS};
use certs_ca::store::{Vault, VaultChanges, VaultRows};
use certs_ca::{Ca, ExternalFiles, Policy, ServerNames};
use control::app::{InTurn, Means, Replica};
use control::publish::trust::{Phase, Root, Roots};
use control::serve::admit::Gate;
use control::serve::authority::{AuditQuery, Authority, Done, Issuance, Issued, Refused, Seat, Step, TokenOrder};
use control::settings::{ControlArgs, ExternalArgs};
use control::traces::Traces;
use control::world::own::Mesh;
use proto::identity::Applicant;
use proxy::io::Clock;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::{Extensions, Status};

/// The shortest life of a leaf that an authority is told.
const LEAF_LIFE_MIN: Duration = Duration::from_secs(1);

/// Opens the authority of a data folder (makes it at the first start), or one of the user's own by files, for a control plane that goes
/// by the same clock.
///
/// # Errors
/// The folder cannot be used, or a file is not what proxies could believe; the sentence names it.
pub fn means(data_dir: &Path, external: &ExternalArgs, clock: Clock) -> anyhow::Result<Means> {
    let time = time_of(clock);
    let ca = match external_files(external) {
        Some(files) => Ca::open_external(data_dir, &files, Policy::default(), time)?,
        None => Ca::open(data_dir, Policy::default(), time)?,
    };
    Ok(joined(ca, clock, None))
}

/// One of several control planes of a cluster, which take turns: the authority's keys are kept there, and pods join by their service
/// account's token. Has to be called within a runtime.
pub fn replica(args: &ControlArgs, client: Client, namespace: &str, me: &str, clock: Clock, in_turn: InTurn) -> Replica {
    let (data_dir, external, asking) = (args.data_dir.clone(), args.external.clone(), clock);
    let leaves_out = apart(me);
    let verifier = Arc::new(Verifier { reviewer: Reviewer::new(client.clone()), runtime: Handle::current() });
    let authority = move |keys: Arc<Keep<Secret>>| {
        let (vault, files) = (Box::new(Safe(keys)), external_files(&external));
        let ca = Ca::open_shared(&data_dir, vault, files.as_ref(), Policy::default(), time_of(asking))?;
        ca.verify_service_accounts(verifier.clone());
        Ok(joined(ca, asking, Some(leaves_out.clone())))
    };
    let (wall, shown) = (clock, clock);
    Replica {
        client,
        namespace: namespace.to_owned(),
        me: me.to_owned(),
        clock: control::clock::Clock::new(move || shown.wall()),
        wall: Arc::new(move || wall.wall()),
        authority: Arc::new(authority),
        worlds: watch::Sender::default(),
        in_turn,
        traces: Traces::default(),
    }
}

/// What replicas that take turns do not share.
fn apart(me: &str) -> String {
    let pod = me.rsplit_once('_').map_or(me, |(pod, _)| pod);
    format!(
        "certificates are listed and counted that replica {pod} has issued or refused: each replica keeps these books in its own data folder, and those of replicas that held the lease before are not here; roots, keys, the step of a rotation, and who believes which root are the whole mesh's"
    )
}

fn time_of(clock: Clock) -> certs_ca::Clock {
    Arc::new(move || OffsetDateTime::from(clock.wall()))
}

pub(crate) fn external_files(external: &ExternalArgs) -> Option<ExternalFiles> {
    external.files().map(|(certificate, key, roots)| ExternalFiles { certificate, key, roots })
}

fn joined(ca: Ca, clock: Clock, leaves_out: Option<String>) -> Means {
    let ca = Arc::new(ca);
    let signing = ca.clone();
    Means {
        clock: control::clock::Clock::new(move || clock.wall()),
        authority: Arc::new(Joined { ca, leaves_out }),
        certificates: Box::new(move |routes, gate, stop| routes.add_service(certs_ca::serve::service(signing, Arc::new(Door(gate)), stop))),
        cluster: None,
        traces: Traces::default(),
    }
}

/// The Secret of a cluster as the authority's vault. Rows of others in it are none of its business.
struct Safe(Arc<Keep<Secret>>);

impl Vault for Safe {
    fn place(&self) -> String {
        self.0.place().to_owned()
    }

    fn load(&self) -> Result<VaultRows, String> {
        let rows = self.0.rows_blocking().ok_or_else(|| format!("{} is being written; try again", self.0.place()))?;
        Ok(rows.into_iter().map(|(name, value)| (name, value.into())).collect())
    }

    fn keep(&self, changes: VaultChanges) -> Result<(), String> {
        let changes: Changes = changes.into_iter().map(|(name, value)| (name, value.map(|value| value.to_vec()))).collect();
        self.0.write_blocking(changes).map_err(|error| error.to_string())
    }
}

/// The cluster's word on service-account tokens.
struct Verifier {
    reviewer: Reviewer,
    runtime: Handle,
}

impl ServiceAccountVerifier for Verifier {
    fn verify(&self, token: &str, audience: &str) -> Result<ServiceAccount, ServiceAccountError> {
        let reviewed = self.runtime.block_on(self.reviewer.review(token, audience)).map_err(|error| match error {
            ReviewError::Refused(why) => ServiceAccountError::Refused(why),
            ReviewError::Unreachable(why) => ServiceAccountError::Unreachable(why),
        })?;
        Ok(ServiceAccount {
            namespace: reviewed.namespace,
            account: reviewed.account,
            pod: reviewed.pod.map(|(name, uid)| Pod { name, uid }),
            audiences: reviewed.audiences,
        })
    }
}

/// The control plane's gate as the authority asks it.
struct Door(Gate);

impl certs_ca::serve::Gate for Door {
    fn admit(&self, extensions: &Extensions, applicant: &Applicant<'_>) -> Result<Option<CertificateDer<'static>>, Status> {
        self.0.leaf(extensions, applicant)
    }

    fn holder(&self, extensions: &Extensions) -> Result<CertificateDer<'static>, Status> {
        self.0.holder(extensions)
    }

    fn pod_uid(&self, applicant: &Applicant<'_>) -> Option<String> {
        self.0.pod_uid(applicant)
    }

    fn address(&self, extensions: &Extensions) -> Option<IpAddr> {
        self.0.address(extensions)
    }
}

/// The authority as the control plane sees it.
struct Joined {
    ca: Arc<Ca>,
    leaves_out: Option<String>,
}

impl Authority for Joined {
    fn roots(&self) -> Arc<Roots> {
        let roots = self.ca.roots();
        let root = |der: &CertificateDer<'static>| Root { der: der.clone(), sha256: certs_ca::roots::digest_of(der) };
        let phase = match roots.phase() {
            certs_ca::roots::Phase::Steady => Phase::Steady,
            certs_ca::roots::Phase::Trusting => Phase::Trusting,
            certs_ca::roots::Phase::Issuing => Phase::Issuing,
        };
        let (others, retired) = (roots.der()[1..].iter().map(root).collect(), roots.retired().iter().map(root).collect());
        Arc::new(Roots { issuing: root(roots.issuing()), others, retired, phase, pem: roots.pem().into() })
    }

    fn rotate(&self, step: Step) -> Result<(), String> {
        let step = match step {
            Step::Trust => certs_ca::Step::Trust,
            Step::Issue => certs_ca::Step::Issue,
            Step::Drop => certs_ca::Step::Drop,
        };
        self.ca.rotate(step).map(|_| ()).map_err(|error| error.to_string())
    }

    fn refresh(&self) -> Result<bool, String> {
        self.ca.refresh().map_err(|error| error.to_string())
    }

    fn seat(&self, dns: &[String], addresses: &[IpAddr]) -> Result<Seat, String> {
        let names = ServerNames { dns: dns.to_vec(), addresses: addresses.to_vec() };
        let seat = self.ca.seat(&names).map_err(|error| error.to_string())?;
        let key = PrivatePkcs8KeyDer::from(seat.key.to_vec()).into();
        Ok(Seat { chain: seat.chain, key, lasts: seat.lasts })
    }

    fn create_token(&self, order: &TokenOrder) -> Result<String, String> {
        let TokenOrder { workload, identity, instance, life } = order.clone();
        self.ca.issue_token(&certs_ca::TokenOrder { workload, identity, instance, life }).map_err(|error| error.to_string())
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
            for_application: entry.for_application,
            root: entry.root,
        };
        self.ca.certs().into_iter().map(row).collect()
    }

    fn roots_of_leaves(&self) -> BTreeMap<String, String> {
        self.ca.roots_of_leaves()
    }

    fn listeners(&self) -> usize {
        self.ca.listeners()
    }

    fn audit(&self, query: &AuditQuery, rows_max: usize) -> Result<Vec<Issuance>, String> {
        let row = |row: certs_ca::audit::Issuance| Issuance {
            time: moment(row.time),
            attestation: row.attestation.text(),
            peer: row.peer,
            issued: Issued {
                namespace: row.namespace,
                workload: row.workload,
                instance: row.instance,
                identity: row.identity,
                serial: row.serial,
                not_before: moment(row.time),
                not_after: moment(row.not_after),
                issuer: row.issuer,
                root: String::new(),
                for_application: row.for_application,
            },
        };
        let rows = self.ca.issuances(&wanted(query), rows_max).map_err(|error| error.to_string())?;
        Ok(rows.into_iter().map(row).collect())
    }

    fn refusals(&self, query: &AuditQuery) -> Vec<Refused> {
        let row = |row: certs_ca::audit::Refusal| Refused {
            time: moment(row.time),
            identity: row.identity,
            namespace: row.namespace,
            workload: row.workload,
            instance: row.instance,
            attestation: row.attestation.text(),
            peer: row.peer,
            reason: row.reason,
        };
        self.ca.refusals(&wanted(query)).into_iter().map(row).collect()
    }

    fn leaves_out(&self) -> Option<String> {
        self.leaves_out.clone()
    }

    fn counts(&self) -> Done {
        let counts = self.ca.counts();
        let issued = [
            (Attestation::Token, counts.by_token),
            (Attestation::Certificate, counts.by_certificate),
            (Attestation::ServiceAccount, counts.by_service_account),
        ];
        let secs = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        let bounds = SIGNING_BOUNDS_MICROS.iter().map(|bound| secs(*bound)).chain([f64::INFINITY]);
        Done {
            issued: issued.into_iter().map(|(attestation, count)| (attestation.text(), count)).collect(),
            refused: RefusalKind::ALL.iter().map(|kind| kind.text()).zip(counts.refused_by).collect(),
            signing: (bounds.zip(counts.signing.buckets).collect(), secs(counts.signing.micros)),
            tokens_minted: counts.tokens_minted,
            audit_lost: counts.lost,
        }
    }

    fn ends(&self) -> Vec<(&'static str, i64)> {
        let ends = self.ca.ends();
        ends.into_iter().flat_map(|(root, issuing)| [("root", root.unix_timestamp()), ("issuing", issuing.unix_timestamp())]).collect()
    }

    fn failure(&self) -> Option<String> {
        self.ca.failure()
    }

    fn follow(&self, mesh: &Mesh) {
        self.ca.set_policy(Policy {
            trust_domain: mesh.trust_domain.clone(),
            leaf_life: mesh.leaf_life.max(LEAF_LIFE_MIN),
            intermediate_life: mesh.intermediate_life,
            root_life: mesh.root_life,
        });
    }
}

fn wanted(query: &AuditQuery) -> certs_ca::audit::Query {
    certs_ca::audit::Query { namespace: query.namespace.clone(), name: query.name.clone(), since: query.since_unix_secs }
}
