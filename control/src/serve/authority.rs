//! What the control plane needs of a certificate authority. The authority itself is another crate; `cli` brings the two together.

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
    /// SHA-256 of the root it is below, lower-case hex.
    pub root: String,
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

    /// Takes over lives and trust domain of the `Mesh` object.
    fn follow(&self, mesh: &Mesh);
}

/// Shared by everything that serves.
pub type SharedAuthority = Arc<dyn Authority>;
