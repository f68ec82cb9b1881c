//! The traffic summary that goes to the control plane: bounded rows, cumulative since the start.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use engine::model::Settings;
use proto::mesh::{PlaintextPeer, ServiceTraffic, Traffic};

use super::labels::{CODE_NONE, Direction, Family, Labels};
use super::line::Rfc3339;
use super::series::{BUCKETS, Sum};
use super::telemetry::Telemetry;

/// Rows of each list.
const ROWS_MAX: usize = 256;

/// Who spoke plaintext to which inbound port. When full, the peer not seen for longest makes room.
#[derive(Debug, Default)]
pub(super) struct PlaintextPeers(BTreeMap<(IpAddr, u16), Plaintext>);

#[derive(Debug)]
struct Plaintext {
    destination: String,
    connections: u64,
    last_seen: SystemTime,
}

impl PlaintextPeers {
    pub(super) fn note(&mut self, source: IpAddr, port: u16, own: Option<&Settings>, now: SystemTime) {
        let source = source.to_canonical();
        if self.0.len() >= ROWS_MAX && !self.0.contains_key(&(source, port)) {
            let oldest = self.0.iter().min_by_key(|(_, peer)| peer.last_seen).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        let peer = self.0.entry((source, port)).or_insert_with(|| Plaintext {
            destination: own.map(|own| format!("{}/{}", own.namespace, own.workload)).unwrap_or_default(),
            connections: 0,
            last_seen: now,
        });
        peer.connections += 1;
        peer.last_seen = now;
    }

    fn rows(&self) -> Vec<PlaintextPeer> {
        let row = |((source, port), peer): (&(IpAddr, u16), &Plaintext)| PlaintextPeer {
            source: source.to_string(),
            destination: peer.destination.clone(),
            port: u32::from(*port),
            connections: peer.connections,
            last_seen: Rfc3339(peer.last_seen).to_string(),
        };
        self.0.iter().map(row).collect()
    }
}

impl Telemetry {
    /// HTTP traffic per direction and service, and plaintext peers, since the start. At most 256 rows of each: the busiest services.
    pub fn traffic(&self) -> Traffic {
        let sums = self.registry.lock().sums();
        Traffic { services: services(&sums), plaintext: self.plaintext.lock().rows() }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a sum of seconds")]
fn services(sums: &[(Arc<Labels>, Sum)]) -> Vec<ServiceTraffic> {
    let mut rows: BTreeMap<(Direction, &str, &str), ServiceTraffic> = BTreeMap::new();
    for (labels, sum) in sums.iter().filter(|(labels, _)| labels.family == Family::Http) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Aim: plaintext peers are bounded, and the one unseen for longest makes room.
    #[test]
    fn plaintext_peers_are_bounded() {
        let mut peers = PlaintextPeers::default();
        for n in 0..300u16 {
            peers.note(IpAddr::from([10, 0, 0, 1]), n, None, SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(n)));
        }
        peers.note(IpAddr::from([10, 0, 0, 1]), 299, None, SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        let rows = peers.rows();
        assert_eq!(rows.len(), ROWS_MAX);
        assert_eq!((rows[0].port, rows[255].port, rows[255].connections), (44, 299, 2));
        assert_eq!(rows[255].last_seen, "1970-01-01T00:16:40.000000Z");
    }
}
