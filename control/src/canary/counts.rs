//! What canaries come to, as numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::decide::TurnKind;
use crate::publish::board::Board;

/// Tallied so far, shared with whoever is scraped.
#[derive(Clone)]
pub struct CanaryMetrics {
    tallied: Arc<Mutex<Tallied>>,
    board: Arc<Board>,
}

#[derive(Default)]
struct Tallied {
    decisions: BTreeMap<&'static str, u64>,
    phases: BTreeMap<&'static str, i64>,
}

impl fmt::Debug for CanaryMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CanaryMetrics")
    }
}

impl CanaryMetrics {
    pub(super) fn new(board: Arc<Board>) -> Self {
        Self { tallied: Arc::default(), board }
    }

    pub(super) fn decided(&self, kind: TurnKind) {
        *self.tallied.lock().decisions.entry(kind.text()).or_default() += 1;
    }

    /// How many are in each phase.
    pub(super) fn there(&self, phases: BTreeMap<&'static str, i64>) {
        self.tallied.lock().phases = phases;
    }
}

impl Collector for CanaryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let tallied = self.tallied.lock();
        let counter = ConstCounter::new(0_u64).metric_type();
        let mut decisions = encoder.encode_descriptor("canary_decisions", "What was decided about canaries", None, counter)?;
        for (decision, count) in &tallied.decisions {
            ConstCounter::new(*count).encode(decisions.encode_family(&[("decision", *decision)])?)?;
        }
        let gauge = ConstGauge::new(0_i64).metric_type();
        let mut phases = encoder.encode_descriptor("canaries", "Canaries by where they are", None, gauge)?;
        for (phase, count) in &tallied.phases {
            ConstGauge::new(*count).encode(phases.encode_family(&[("phase", *phase)])?)?;
        }
        let dropped = self.board.versions.lock().dropped();
        let help = "Rows of proxies about canaries that counted nowhere, because there were too many";
        ConstCounter::new(dropped).encode(encoder.encode_descriptor("canary_rows_dropped", help, None, counter)?)
    }
}
