//! Who speaks plaintext to this instance.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use engine::model::Settings;
use proto::mesh::PlaintextPeer;

use super::line::Rfc3339;

/// Rows of each list that goes to the control plane.
pub(super) const ROWS_MAX: usize = 256;

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

    pub(super) fn rows(&self) -> Vec<PlaintextPeer> {
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
