//! What was cut of the application's calls past the mesh, and what an EgressPolicy that only audits would cut.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use proto::mesh::EgressCall;

use super::line::Rfc3339;
use super::plaintext::ROWS_MAX;

/// Longest name that is told.
const NAME_BYTES_MAX: usize = 255;

/// When full, the call not seen for longest makes room.
#[derive(Debug, Default)]
pub(super) struct EgressCalls(BTreeMap<(String, u16, bool), Calls>);

#[derive(Debug)]
struct Calls {
    why: &'static str,
    count: u64,
    last_seen: SystemTime,
}

impl EgressCalls {
    /// `name` is what was asked for there, if anything was.
    pub(super) fn note(&mut self, to: SocketAddr, name: &str, (why, cut): (&'static str, bool), now: SystemTime) {
        let destination = match name {
            "" => to.ip().to_canonical().to_string(),
            name => name.chars().take(NAME_BYTES_MAX).collect(),
        };
        let key = (destination, to.port(), cut);
        if self.0.len() >= ROWS_MAX && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, calls)| calls.last_seen).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        let calls = self.0.entry(key).or_insert(Calls { why, count: 0, last_seen: now });
        (calls.why, calls.count, calls.last_seen) = (why, calls.count + 1, now);
    }

    pub(super) fn rows(&self) -> Vec<EgressCall> {
        let row = |((destination, port, cut), calls): (&(String, u16, bool), &Calls)| EgressCall {
            destination: destination.clone(),
            port: u32::from(*port),
            cut: *cut,
            why: calls.why.to_owned(),
            count: calls.count,
            last_seen: Rfc3339(calls.last_seen).to_string(),
        };
        self.0.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_past_the_mesh_are_counted_within_bounds() {
        // Aim: by name where one was asked for, else by address; what is cut apart from what would be; the oldest makes room.
        let mut calls = EgressCalls::default();
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let to: SocketAddr = "[::ffff:192.0.2.1]:443".parse().unwrap();
        calls.note(to, "a.example", ("first", true), at(1));
        calls.note(to, "a.example", ("second", true), at(2));
        calls.note(to, "", ("why", false), at(3));
        let rows: Vec<_> = calls.rows().into_iter().map(|row| (row.destination, row.cut, row.count, row.why)).collect();
        assert_eq!(rows, [("192.0.2.1".into(), false, 1, "why".into()), ("a.example".to_owned(), true, 2, "second".to_owned())]);
        for n in 0..300u64 {
            calls.note(to, &format!("{n}.example"), ("why", true), at(10 + n));
        }
        assert_eq!(calls.rows().len(), ROWS_MAX);
        assert!(calls.rows().iter().all(|row| row.destination != "a.example"));
    }
}
