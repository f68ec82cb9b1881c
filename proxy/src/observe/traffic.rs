//! The traffic summary that goes to the control plane: bounded rows, cumulative since the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::limit::RemoteStore;
use proto::mesh::{Calls, KeysAway, ServiceTraffic, StoreAway, Traffic};

use super::calls::CallsTold;
use super::labels::{CODE_NONE, Direction, Labels, MetricFamily};
use super::plaintext::ROWS_MAX;
use super::series::{BUCKETS, Sum};
use super::telemetry::Telemetry;

impl Telemetry {
    /// HTTP traffic per direction and service, plaintext peers, and calls past the mesh that were or would be cut, since the start. At most 256
    /// rows of each: the busiest services.
    pub fn traffic(&self) -> Traffic {
        let sums = self.registry.lock().sums();
        let away = |(uri, error): (&String, &String)| KeysAway { uri: uri.clone(), error: error.clone() };
        let mut keys_away: Vec<KeysAway> = self.readings.keys_away.lock().iter().map(away).collect();
        keys_away.extend(self.readings.providers_away.lock().iter().map(away));
        let stores = Arc::clone(&self.readings.limits.lock()).stores();
        let store = |store: &Arc<RemoteStore>| {
            let (error, since_secs) = store.trouble.away()?;
            Some(StoreAway { store: store.place.name(), error, since_secs })
        };
        Traffic {
            services: services(&sums),
            plaintext: self.plaintext.lock().rows(),
            egress: self.egress.lock().rows(),
            keys_away,
            stores_away: stores.iter().filter_map(store).collect(),
        }
    }

    /// Who called the application for what: rows that are new or have changed since they were told, at most 256 at once. `None`: there is
    /// nothing to tell.
    pub fn calls(&self, told: &mut CallsTold) -> Option<Calls> {
        let shards = self.calls.lock().clone();
        told.news(&shards)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a sum of seconds")]
fn services(sums: &[(Arc<Labels>, Sum)]) -> Vec<ServiceTraffic> {
    let mut rows: BTreeMap<(Direction, &str, &str), ServiceTraffic> = BTreeMap::new();
    for (labels, sum) in sums.iter().filter(|(labels, _)| labels.family == MetricFamily::Http) {
        let row =
            rows.entry((labels.direction, &labels.destination_namespace, &labels.destination_service)).or_insert_with(|| ServiceTraffic {
                direction: labels.direction.text().to_owned(),
                namespace: labels.destination_namespace.to_string(),
                service: labels.destination_service.to_string(),
                duration_buckets: vec![0; BUCKETS],
                ..ServiceTraffic::default()
            });
        row.requests += sum.count;
        row.failures += if is_failure(labels) { sum.count } else { 0 };
        for (total, bucket) in row.duration_buckets.iter_mut().zip(sum.buckets) {
            *total += bucket;
        }
        row.duration_sum_secs += sum.nanos as f64 / 1e9;
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    if rows.len() > ROWS_MAX {
        rows.sort_by_key(|row| std::cmp::Reverse(row.requests));
        rows.truncate(ROWS_MAX);
    }
    rows
}

/// The server's or the mesh's fault: 5xx, no answer, or one of gRPC's server errors (UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED,
/// INTERNAL, UNAVAILABLE, DATA_LOSS, as in OpenTelemetry's rules for server spans).
fn is_failure(labels: &Labels) -> bool {
    let no_answer = labels.code == CODE_NONE && labels.reason.is_some_and(|reason| reason.blame() != engine::failure::Blame::Client);
    let server_error = labels.code != CODE_NONE && labels.code >= 500;
    no_answer || server_error || matches!(labels.grpc_code, 2 | 4 | 12 | 13 | 14 | 15)
}
