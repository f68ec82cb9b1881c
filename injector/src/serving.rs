//! The webhook's own certificate: taken from whoever issues it, used by the next handshake, renewed long before its end.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

/// Between two looks at wall time and at what the issuer has: a machine may have slept, or files have been exchanged.
const LOOK: Duration = Duration::from_secs(5);
/// First wait after a failure; it doubles.
const RETRY_MIN: Duration = Duration::from_secs(5);
/// Longest wait after failures.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Wall time, given from outside.
pub type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A certificate with its key.
#[derive(Debug)]
pub struct Issued {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// Since 1970; the next one is wanted two thirds of the way to `not_after`.
    pub not_before: Duration,
    /// Since 1970.
    pub not_after: Duration,
}

impl Issued {
    /// A chain with its key; the dates are the leaf's.
    ///
    /// # Errors
    /// The leaf cannot be read, in words for a person.
    pub fn read(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, String> {
        let leaf = chain.first().ok_or("there is no certificate")?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let unix = |at: ASN1Time| Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or_default());
        let (not_before, not_after) = (unix(leaf.validity().not_before), unix(leaf.validity().not_after));
        Ok(Self { chain, key, not_before, not_after })
    }
}

/// Who gives certificates, and says by which roots they are believed. May block on a disk.
pub trait Issuer: Send + Sync {
    /// A certificate to serve with from now on.
    ///
    /// # Errors
    /// Why there is none, in words for a person.
    fn issue(&self) -> Result<Issued, String>;

    /// All roots by which present and next certificates are believed, PEM: during a rotation the old one and the new one.
    ///
    /// # Errors
    /// Why they are not known.
    fn roots(&self) -> Result<String, String>;

    /// Whether another certificate should be asked for although the last one still holds: files may have been exchanged.
    fn has_news(&self) -> bool;
}

/// When to renew, pure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Renewal {
    due: Duration,
    not_after: Duration,
    failures: u32,
}

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is none yet.
    Missing,
    /// It holds.
    Fresh,
    /// It holds, but should have been renewed.
    Overdue,
    /// Nobody believes it any more.
    Expired,
}

impl Renewal {
    /// A certificate with these dates is in use, all since 1970.
    pub fn issued(not_before: Duration, not_after: Duration) -> Self {
        let life = not_after.saturating_sub(not_before);
        Self { due: not_before + life / 3 * 2, not_after, failures: 0 }
    }

    /// Renewing failed at this time.
    pub fn failed(self, now: Duration) -> Self {
        let wait = RETRY_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        Self { due: now + wait, failures: self.failures.saturating_add(1), ..self }
    }

    /// Whether the next one is to be asked for.
    pub fn is_due(self, now: Duration) -> bool {
        now >= self.due
    }

    /// How things stand.
    pub fn standing(self, now: Duration) -> Standing {
        match self {
            Self { not_after: Duration::ZERO, .. } => Standing::Missing,
            Self { not_after, .. } if now >= not_after => Standing::Expired,
            Self { failures: 1.., .. } => Standing::Overdue,
            _ => Standing::Fresh,
        }
    }
}

/// The certificate in use, and how it stands.
pub struct ServingCell {
    certificate: ArcSwapOption<CertifiedKey>,
    renewal: watch::Sender<Renewal>,
    now: Now,
}

impl ServingCell {
    /// Nothing yet: handshakes fail until [`keep`] has something.
    pub fn new(now: Now) -> Self {
        Self { certificate: ArcSwapOption::empty(), renewal: watch::Sender::default(), now }
    }

    /// How the certificate stands now.
    pub fn standing(&self) -> Standing {
        self.renewal.borrow().standing(self.unix())
    }

    /// Waits for the first certificate.
    pub async fn first(&self) {
        // The sender is our own.
        let _ = self.renewal.subscribe().wait_for(|renewal| renewal.not_after > Duration::ZERO).await;
    }

    fn unix(&self) -> Duration {
        (self.now)().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

impl fmt::Debug for ServingCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServingCell({:?})", self.standing())
    }
}

impl ResolvesServerCert for ServingCell {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate.load_full()
    }
}

/// Keeps the cell's certificate fresh and tells the roots, until `stop`. A certificate that cannot be renewed is used to its end and beyond:
/// the caller's error then says what is wrong, and asking goes on.
pub async fn keep(cell: Arc<ServingCell>, issuer: Arc<dyn Issuer>, roots: watch::Sender<String>, stop: CancellationToken) {
    loop {
        let (asked, by, renewal) = (Arc::clone(&issuer), Arc::clone(&cell), *cell.renewal.borrow());
        let taken = tokio::task::spawn_blocking(move || {
            // News first, so that the roots are those by which the next certificate is believed.
            let wanted = asked.has_news() || renewal.is_due(by.unix());
            (asked.roots(), wanted.then(|| take(&by, &*asked)))
        });
        // It neither panics nor is aborted, but for the end of the runtime.
        let Ok((known, taken)) = taken.await else { return };
        match known {
            Ok(pem) => drop(roots.send_if_modified(|known| {
                let other = *known != pem;
                *known = pem;
                other
            })),
            Err(error) => tracing::error!(%error, "the webhook's roots are not known; API servers go on with the former ones"),
        }
        match taken {
            None => {}
            Some(Ok(next)) => drop(cell.renewal.send_replace(next)),
            Some(Err(error)) => {
                tracing::error!(%error, standing = ?cell.standing(), "the webhook's certificate was not renewed");
                cell.renewal.send_replace(renewal.failed(cell.unix()));
            }
        }
        let left = cell.renewal.borrow().due.saturating_sub(cell.unix());
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(left.clamp(Duration::from_secs(1), LOOK)) => {}
        }
    }
}

/// Takes a certificate into use, unless it is the one that is.
fn take(cell: &ServingCell, issuer: &dyn Issuer) -> Result<Renewal, String> {
    let Issued { chain, key, not_before, not_after } = issuer.issue()?;
    let renewal = Renewal::issued(not_before, not_after);
    if cell.certificate.load().as_ref().is_some_and(|own| own.cert == chain) {
        return if renewal.is_due(cell.unix()) { Err("what there is should have been exchanged by now".to_owned()) } else { Ok(renewal) };
    }
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let certified =
        CertifiedKey::from_der(chain, key, &provider).map_err(|error| format!("certificate and key do not belong together: {error}"))?;
    cell.certificate.store(Some(Arc::new(certified)));
    Ok(renewal)
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
