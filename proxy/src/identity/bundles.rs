//! What certificates and tokens of the mesh are verified by, as the authority tells it on a stream of its own.

use std::sync::Arc;
use std::time::Duration;

use proto::mesh::certificates_client::CertificatesClient;
use proto::mesh::{BundlesRequest, BundlesResponse};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{debug, warn};

use crate::io::Draw;
use crate::tls::CredentialCell;
use crate::tls::dial::{DialError, Dialer};

/// First and longest pause before the stream is opened again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Largest bundle that is taken.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The bundles of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundles {
    /// Whose they are.
    pub trust_domain: String,
    /// Roots; the first is the one that issues.
    pub roots: Vec<CertificateDer<'static>>,
    /// A JWKS document.
    pub token_keys: String,
}

impl From<BundlesResponse> for Bundles {
    fn from(told: BundlesResponse) -> Self {
        let roots = told.roots_der.into_iter().map(|root| CertificateDer::from(root.to_vec())).collect();
        Self { trust_domain: told.trust_domain, roots, token_keys: told.token_keys }
    }
}

/// Keeps `told` at what the authority says, as long as there is a leaf to ask with; what was told stays while it is away. A leaf that is
/// refused (its root was retired meanwhile) is renewed by `hurry`. Ends with `stop`.
pub async fn follow(
    dialer: Dialer,
    (credentials, hurry): (Arc<CredentialCell>, Arc<Notify>),
    told: watch::Sender<Option<Arc<Bundles>>>,
    draw: Draw,
    stop: CancellationToken,
) {
    let mut failures = 0_u32;
    loop {
        let mut leaves = credentials.changes();
        if credentials.current().is_none() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = leaves.changed() => continue,
            }
        }
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            outcome = listen(&dialer, &told, &mut failures) => outcome,
        };
        if let Err(error) = outcome {
            if matches!(&error, Unheard::Refused(status) if status.code() == Code::Unauthenticated) {
                hurry.notify_one();
            }
            if failures == 0 {
                warn!("the bundles are not told by the control plane at {}: {error}", dialer.target());
            } else {
                debug!("the bundles are not told by the control plane at {}: {error}", dialer.target());
            }
        }
        let grown = PAUSE.0.saturating_mul(1 << failures.min(16)).min(PAUSE.1);
        failures = failures.saturating_add(1);
        let chance = f64::from((draw.next() >> 32) as u32) / f64::from(u32::MAX);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(grown.mul_f64(0.5 + chance / 2.0)) => {}
        }
    }
}

/// Why nothing is told.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{}", .0.message())]
    Refused(#[from] Status),
}

async fn listen(dialer: &Dialer, told: &watch::Sender<Option<Arc<Bundles>>>, failures: &mut u32) -> Result<(), Unheard> {
    let channel = dialer.connect(true).await?;
    let mut client = CertificatesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let stream = client.bundles(BundlesRequest {}).await?;
    let mut stream = stream.into_inner();
    while let Some(message) = stream.message().await? {
        *failures = 0;
        let fresh = Bundles::from(message);
        told.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&fresh);
            if changed {
                *known = Some(Arc::new(fresh));
            }
            changed
        });
    }
    Ok(())
}
