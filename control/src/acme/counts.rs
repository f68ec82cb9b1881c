//! What orders come to, as numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::clock::Clock;

/// What an order came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OrderEnd {
    Issued,
    Renewed,
    Failed,
}

impl OrderEnd {
    const ALL: [(Self, &'static str); 3] = [(Self::Issued, "issued"), (Self::Renewed, "renewed"), (Self::Failed, "failed")];
}

/// Tallied so far, shared with whoever is scraped.
#[derive(Clone)]
pub struct AcmeCounts(Arc<Mutex<Tallied>>, Clock);

#[derive(Default)]
struct Tallied {
    orders: BTreeMap<OrderEnd, u64>,
    /// When each name's certificate ends, milliseconds since 1970.
    ends_ms: BTreeMap<String, i64>,
    barred: usize,
}

impl fmt::Debug for AcmeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AcmeCounts")
    }
}

impl AcmeCounts {
    pub(super) fn new(clock: Clock) -> Self {
        Self(Arc::default(), clock)
    }

    pub(super) fn ended(&self, outcome: OrderEnd) {
        *self.0.lock().orders.entry(outcome).or_default() += 1;
    }

    /// What is there: when the certificates of names end, and how many names cannot be ordered.
    pub(super) fn there(&self, ends_ms: BTreeMap<String, i64>, barred: usize) {
        let mut counted = self.0.lock();
        (counted.ends_ms, counted.barred) = (ends_ms, barred);
    }
}

impl Collector for AcmeCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (counted, now_ms) = (self.0.lock(), self.1.age_ms());
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut orders = encoder.encode_descriptor("acme_orders", "Orders of certificates that came to an end", None, kind)?;
        for (outcome, text) in OrderEnd::ALL {
            let count = counted.orders.get(&outcome).copied().unwrap_or_default();
            ConstCounter::new(count).encode(orders.encode_family(&[("outcome", text)])?)?;
        }
        let gauge = ConstGauge::new(0_i64).metric_type();
        let barred = i64::try_from(counted.barred).unwrap_or(i64::MAX);
        let help = "Names for which no certificate can be ordered as they are configured";
        ConstGauge::new(barred).encode(encoder.encode_descriptor("acme_names_barred", help, None, gauge)?)?;
        if counted.ends_ms.is_empty() {
            return Ok(());
        }
        let help = "Seconds until an ordered certificate ends";
        let mut ends = encoder.encode_descriptor("acme_expiry_seconds", help, None, gauge)?;
        for (host, ends_ms) in &counted.ends_ms {
            let left = ends_ms.saturating_sub(now_ms) / 1000;
            ConstGauge::new(left).encode(ends.encode_family(&[("host", host.as_str())])?)?;
        }
        Ok(())
    }
}
