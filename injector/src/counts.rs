//! Metrics of the webhook.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Bounds of the histogram, seconds.
const BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 8.0];

/// Which webhook, and what it said: one of a dozen words of our own.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verdict {
    webhook: String,
    verdict: &'static str,
}

/// See the module.
pub struct Counts {
    reviews: Family<Verdict, Counter>,
    seconds: Histogram,
    handshakes_failed: Counter,
    registry: Mutex<Registry>,
}

impl Default for Counts {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("meshwright_webhook");
        let (reviews, seconds, handshakes_failed) = (Family::default(), Histogram::new(BOUNDS), Counter::default());
        registry.register("reviews", "Admission reviews by their outcome", Clone::clone(&reviews));
        registry.register_with_unit("review_duration", "Time from the head of a review to its answer", Unit::Seconds, seconds.clone());
        let failed: &Counter = &handshakes_failed;
        registry.register(
            "handshakes_failed",
            "Connections that came to no TLS: API servers may not believe the certificate",
            failed.clone(),
        );
        Self { reviews, seconds, handshakes_failed, registry: Mutex::new(registry) }
    }
}

impl Counts {
    pub(crate) fn reviewed(&self, webhook: &str, verdict: &'static str, took: Duration) {
        self.reviews.get_or_create(&Verdict { webhook: webhook.to_owned(), verdict }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// All of it, as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry.lock());
        text
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counts")
    }
}
