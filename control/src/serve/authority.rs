//! What the control plane needs of a certificate authority. The authority itself is another crate; `cli` brings the two together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::identity::Identity;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::publish::trust::Roots;
use crate::world::own::Mesh;

/// The control plane's own leaf and key.
pub struct Seat {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Ask for the next one after this time.
    pub lasts: Duration,
}

/// One issued leaf, for `get certs`.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Namespace of the workload.
    pub namespace: String,
    /// Its name.
    pub workload: String,
    /// The instance that asked.
    pub instance: String,
    /// SPIFFE URI.
    pub identity: String,
    /// Lower-case hex.
    pub serial: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// Subject of the issuer.
    pub issuer: String,
    /// SHA-256 of the root it is below, lower-case hex; empty in the audit log, which names the issuer.
    pub root: String,
    /// For the application beside the proxy.
    pub for_application: bool,
}

impl Issued {
    /// Namespace, instance and workload.
    pub fn place(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.instance, &self.workload)
    }
}

/// What an authority did since its start.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Certificates given out, by attestation.
    pub issued: Vec<(&'static str, u64)>,
    /// Requests refused, by why.
    pub refused: Vec<(&'static str, u64)>,
    /// How many signatures took how long: upper bounds in seconds, the last one infinite, and the sum of all.
    pub signing: (Vec<(f64, u64)>, f64),
    /// JWT-SVIDs given out.
    pub tokens_minted: u64,
    /// Rows of the audit log that no disk took.
    pub audit_lost: u64,
}

/// Which rows of the audit log are wanted.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Of this namespace; empty: of all.
    pub namespace: String,
    /// Of this workload or instance; empty: of all.
    pub name: String,
    /// Nothing older, in seconds since 1970.
    pub since_unix_secs: i64,
}

/// One certificate given out.
#[derive(Clone, Debug)]
pub struct Issuance {
    /// Whose, and until when.
    pub issued: Issued,
    /// RFC 3339.
    pub time: String,
    /// `Token`, `Certificate` or `ServiceAccount`.
    pub attestation: &'static str,
    /// Address of the caller.
    pub peer: Option<IpAddr>,
}

/// One request that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// RFC 3339.
    pub time: String,
    /// As asked for; empty where the request could not be read.
    pub identity: String,
    /// Namespace, as asked for.
    pub namespace: String,
    /// Workload, as asked for.
    pub workload: String,
    /// Instance, as asked for.
    pub instance: String,
    /// What spoke for it, as in [`Issuance`].
    pub attestation: &'static str,
    /// Address of the caller.
    pub peer: Option<IpAddr>,
    /// Why.
    pub reason: String,
}

/// A step of a rotation of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the next root and believe it.
    Trust,
    /// Issue below the next root.
    Issue,
    /// Believe the former root no more.
    Drop,
}

impl Step {
    /// As `ca rotate-root --plan` prints it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Trust => "Trust",
            Self::Issue => "Issue",
            Self::Drop => "Drop",
        }
    }
}

/// A join token to be made.
#[derive(Clone, Debug)]
pub struct TokenOrder {
    /// `NAMESPACE/NAME`.
    pub workload: String,
    /// Whose leaf the bearer gets.
    pub identity: Identity,
    /// The only instance that may use it.
    pub instance: Option<String>,
    /// The authority's default where absent.
    pub life: Option<Duration>,
}

/// A certificate authority. Every call may block on a disk: call it off the runtime.
pub trait Authority: Send + Sync + 'static {
    /// The roots of now.
    fn roots(&self) -> Arc<Roots>;

    /// Takes a step of a rotation, which lasts from when this returns. One that was taken, or whose turn it is not, changes nothing.
    ///
    /// # Errors
    /// What failed and what to do, as text; nothing has changed then.
    fn rotate(&self, step: Step) -> Result<(), String>;

    /// Looks whether roots or issuer were changed from outside; returns whether they were.
    ///
    /// # Errors
    /// What is wrong with the change, as text; the former ones stay.
    fn refresh(&self) -> Result<bool, String>;

    /// A fresh leaf for the control plane.
    ///
    /// # Errors
    /// What failed and what to do, as text.
    fn seat(&self, dns: &[String], addresses: &[IpAddr]) -> Result<Seat, String>;

    /// A one-time join token.
    ///
    /// # Errors
    /// What failed and what to do, as text.
    fn create_token(&self, order: &TokenOrder) -> Result<String, String>;

    /// The newest unexpired leaf of each instance.
    fn issued(&self) -> Vec<Issued>;

    /// Below which root each unexpired leaf is, by serial number: all of them, because not every instance uses its newest. SHA-256,
    /// lower-case hex.
    fn roots_of_leaves(&self) -> BTreeMap<String, String> {
        self.issued().into_iter().map(|leaf| (leaf.serial, leaf.root)).collect()
    }

    /// How many follow the bundles at present, by streams of the authority's own. Never blocks.
    fn listeners(&self) -> usize {
        0
    }

    /// Certificates given out, newest first, at most `rows_max`.
    ///
    /// # Errors
    /// The log cannot be read: what failed and what to do, as text.
    fn audit(&self, query: &AuditQuery, rows_max: usize) -> Result<Vec<Issuance>, String>;

    /// The last refusals, newest first.
    fn refusals(&self, query: &AuditQuery) -> Vec<Refused>;

    /// What the books of certificates ([`Self::issued`], [`Self::audit`], [`Self::refusals`]) leave out, as a sentence for people; `None`: they
    /// are the whole mesh's.
    fn leaves_out(&self) -> Option<String> {
        None
    }

    /// What was done since the start. Never blocks.
    fn counts(&self) -> Done;

    /// When the root that issues ends, and when the certificate that signs leaves does, in seconds since 1970.
    fn ends(&self) -> Vec<(&'static str, i64)> {
        Vec::new()
    }

    /// What is wrong with keeping the audit log, if anything is.
    fn failure(&self) -> Option<String>;

    /// Takes over lives and trust domain of the `Mesh` object.
    fn follow(&self, mesh: &Mesh);
}

/// Shared by everything that serves.
pub type SharedAuthority = Arc<dyn Authority>;
