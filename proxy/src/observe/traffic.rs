//! The traffic summary that goes to the control plane: bounded rows, cumulative since the start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::Moment;
use engine::limit::RemoteStore;
use proto::mesh::{Calls, KeysAway, ServiceAway, ServiceTraffic, StoreAway, Traffic};

use super::calls::CallsTold;
use super::labels::{Direction, Labels, MetricFamily, is_failure};
use super::plaintext::ROWS_MAX;
use super::series::{BUCKETS, Sum};
use super::telemetry::Telemetry;

/// The control plane's store, as `meshwright_degraded` names it.
const LEASES: &str = "leases";
/// A port's HTTP/3, in the same place.
const HTTP3: &str = "Http3";
/// A proxy that starts, or changes its control plane, has asked nobody yet.
const LEASES_PATIENCE: Duration = Duration::from_secs(5);

impl Telemetry {
    /// HTTP traffic per direction and service, plaintext peers, and calls past the mesh that were or would be cut, since the start. At most 256
    /// rows of each: the busiest services.
    pub fn traffic(&self) -> Traffic {
        let sums = {
            let mut registry = self.registry.lock();
            registry.sweep(self.clock.now());
            registry.sums()
        };
        let away = |(uri, error): (&String, &String)| KeysAway { uri: uri.clone(), error: error.clone() };
        let mut keys_away: Vec<KeysAway> = self.readings.keys_away.lock().iter().map(away).collect();
        keys_away.extend(self.readings.providers_away.lock().iter().map(away));
        let stores = Arc::clone(&self.readings.limits.lock()).stores_of();
        let store = |(object, store): (Arc<str>, Arc<RemoteStore>)| {
            let (error, since_secs) = store.trouble.away()?;
            Some(StoreAway { store: store.place.name(), error, since_secs, object: object.to_string() })
        };
        let stores_away = self.leases_away().into_iter().chain(stores.into_iter().filter_map(store)).take(ROWS_MAX).collect();
        Traffic {
            services: services(&sums),
            plaintext: self.plaintext.lock().rows(),
            egress: self.egress.lock().rows(),
            keys_away,
            stores_away,
            services_away: self.services_away(),
            ..Traffic::default()
        }
    }

    /// The control plane as a store of limits: it may be reached for this and not for that.
    fn leases_away(&self) -> Option<StoreAway> {
        let limits = Arc::clone(&self.readings.limits.lock());
        let since = limits.leases().away_since().filter(|_| limits.is_used())?;
        let ago = self.moment().since(Moment::of_nanos(since));
        if ago < LEASES_PATIENCE {
            return None;
        }
        let since_secs = self.clock.unix().saturating_sub(ago).as_secs();
        Some(StoreAway {
            store: LEASES.to_owned(),
            error: "the control plane does not answer questions about limits".to_owned(),
            since_secs,
            object: String::new(),
        })
    }

    /// Services that did not answer when they were asked last, since that was first seen, and ports without the HTTP/3 that is wanted of them. At
    /// most 256.
    fn services_away(&self) -> Vec<ServiceAway> {
        let readings = Arc::clone(&self.readings.callouts.lock()).readings();
        let now_secs = self.clock.unix().as_secs();
        let mut seen = self.services_away.lock();
        let away = readings.into_iter().filter_map(|reading| Some(((reading.kind, reading.name), reading.why?)));
        let (mut rows, mut still) = (Vec::new(), BTreeMap::new());
        for ((kind, name), why) in away.take(ROWS_MAX) {
            let since_secs = seen.get(&(kind, Arc::clone(&name))).copied().unwrap_or(now_secs);
            rows.push(ServiceAway { kind: kind.text().to_owned(), name: name.to_string(), error: why.words().to_owned(), since_secs });
            still.insert((kind, name), since_secs);
        }
        *seen = still;
        let ports = self.readings.edge.http3_not_served().into_iter();
        rows.extend(ports.take(ROWS_MAX - rows.len()).map(|(port, (error, since_secs))| ServiceAway {
            kind: HTTP3.to_owned(),
            name: port.to_string(),
            error,
            since_secs,
        }));
        rows
    }

    /// Ports where HTTP/3 is wanted and not served by now, and why. It is told as what is away.
    pub fn http3_away(&self, away: BTreeMap<u16, String>) {
        self.readings.edge.http3_away(away, self.clock.unix().as_secs());
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
        row.failures += if is_failure(labels.code, labels.grpc_code, labels.reason) { sum.count } else { 0 };
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
