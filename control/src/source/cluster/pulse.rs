//! How a watch fares: what is counted of it, and when it was last heard.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::table::plural;
use crate::world::Kind;

/// One watch.
#[derive(Debug)]
pub(super) struct Pulse {
    kind: Kind,
    pub(super) objects: AtomicU64,
    pub(super) relists: AtomicU64,
    pub(super) errors: AtomicU64,
    heard: Mutex<Instant>,
    /// Wakes whoever waits to hear that calls are answered again.
    pub(super) answered: Notify,
}

impl Pulse {
    /// Notes the head of an answer.
    pub(super) fn answer(&self, status: StatusCode) {
        if status.is_success() {
            self.beat();
            self.answered.notify_one();
        }
    }

    /// Notes that something came.
    pub(super) fn beat(&self) {
        *self.heard.lock() = Instant::now();
    }
}

/// What all watches come to, by kind. A clone shares it.
#[derive(Clone, Debug, Default)]
pub struct Pulses(Arc<Mutex<BTreeMap<u64, Arc<Pulse>>>>);

impl Pulses {
    pub(super) fn begin(&self, watch: u64, kind: Kind) -> Arc<Pulse> {
        let (objects, relists, errors) = Default::default();
        let pulse = Arc::new(Pulse { kind, objects, relists, errors, heard: Mutex::new(Instant::now()), answered: Notify::new() });
        self.0.lock().insert(watch, pulse.clone());
        pulse
    }

    pub(super) fn end(&self, watch: u64) {
        self.0.lock().remove(&watch);
    }
}

/// The figures of one kind.
#[derive(Clone, Copy, Default)]
struct Sum {
    objects: u64,
    relists: u64,
    errors: u64,
    silent_secs: u64,
}

impl Collector for Pulses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        for pulse in self.0.lock().values() {
            let sum = sums.entry(plural(pulse.kind)).or_default();
            sum.objects += pulse.objects.load(Ordering::Relaxed);
            sum.relists += pulse.relists.load(Ordering::Relaxed);
            sum.errors += pulse.errors.load(Ordering::Relaxed);
            sum.silent_secs = sum.silent_secs.max(pulse.heard.lock().elapsed().as_secs());
        }
        let gauges: [(&str, &str, fn(&Sum) -> u64); 2] = [
            ("cluster_objects", "Objects of the cluster that are watched", |sum| sum.objects),
            ("cluster_silence_seconds", "Since the API server last sent anything for this kind", |sum| sum.silent_secs),
        ];
        for (name, help, of) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (kind, sum) in &sums {
                ConstGauge::new(of(sum)).encode(family.encode_family(&[("resource", *kind)])?)?;
            }
        }
        let counters: [(&str, &str, fn(&Sum) -> u64); 2] = [
            ("cluster_relists", "Lists read from the API server", |sum| sum.relists),
            ("cluster_watch_errors", "Errors of lists and watches", |sum| sum.errors),
        ];
        for (name, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (kind, sum) in &sums {
                ConstCounter::new(of(sum)).encode(family.encode_family(&[("resource", *kind)])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn figures_are_by_kind() {
        // Aim: watches of one kind are one row, silence is that of the longest silent, and a watch that has ended counts no more.
        let pulses = Pulses::default();
        let mut registry = Registry::with_prefix("meshwright_control");
        registry.register_collector(Box::new(pulses.clone()));
        let (pods, one, two) = (pulses.begin(1, Kind::Pod), pulses.begin(2, Kind::Secret), pulses.begin(3, Kind::Secret));
        pods.objects.store(7, Ordering::Relaxed);
        one.errors.store(2, Ordering::Relaxed);
        two.errors.store(3, Ordering::Relaxed);
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        pods.answer(StatusCode::OK);
        two.answer(StatusCode::FORBIDDEN);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "meshwright_control_cluster_objects{resource=\"pods\"} 7",
            "meshwright_control_cluster_silence_seconds{resource=\"pods\"} 0",
            "meshwright_control_cluster_silence_seconds{resource=\"secrets\"} 5",
            "meshwright_control_cluster_watch_errors_total{resource=\"secrets\"} 5",
            "meshwright_control_cluster_relists_total{resource=\"pods\"} 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        pulses.end(2);
        text.clear();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("meshwright_control_cluster_watch_errors_total{resource=\"secrets\"} 3"), "{text}");
    }
}
