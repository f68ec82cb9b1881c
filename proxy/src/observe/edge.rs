//! What an edge counts of its clients' TLS and datagrams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use engine::client::NotAdmitted;
use parking_lot::Mutex;

use super::metric::{Metric, MetricKind, Reading};
use crate::tls::TlsFacts;

/// Version, cipher suite, and whether a session was resumed: as many as there are suites.
type How = (&'static str, &'static str, bool);

/// Written by the roads; nothing here is on the way of a request.
#[derive(Debug, Default)]
pub struct EdgeReadings {
    handshakes: Mutex<BTreeMap<How, u64>>,
    /// Handshakes of clients that failed.
    pub handshakes_failed: AtomicU64,
    /// How often a handshake waited because as many were under way as may be.
    pub handshakes_full: AtomicU64,
    /// Clients that did not say where they come from as they must.
    pub proxy_refused: AtomicU64,
    /// Clients that were not let in, by the bound: all, one address, new ones.
    not_admitted: [AtomicU64; 3],
    /// Clients that asked for a name that nobody has.
    pub unnamed: AtomicU64,
    /// Connections of HTTP/3 now.
    pub http3_open: AtomicI64,
    /// Connections of HTTP/3 that began.
    pub http3_connections: AtomicU64,
    /// Handshakes over QUIC that failed.
    pub http3_handshakes_failed: AtomicU64,
    /// Clients of HTTP/3 that had to prove their address first.
    pub http3_retries: AtomicU64,
    /// Connections of HTTP/3 that were ended because too many requests were taken back.
    pub http3_floods: AtomicU64,
    /// Ports where HTTP/3 is wanted and not served, why, and since when (seconds since 1970).
    http3_away: Mutex<BTreeMap<u16, (String, u64)>>,
    /// Sessions of datagrams now.
    pub sessions: AtomicI64,
    /// Sessions of datagrams that were not begun: a worker had as many as it may.
    pub sessions_full: AtomicU64,
    /// Datagrams from clients that were passed on.
    pub datagrams_received: AtomicU64,
    /// Datagrams to clients.
    pub datagrams_sent: AtomicU64,
    /// Datagrams that were dropped: no backend, no session, or no room in the kernel.
    pub datagrams_dropped: AtomicU64,
}

impl EdgeReadings {
    /// A client's handshake has succeeded.
    pub fn handshake(&self, facts: &TlsFacts) {
        *self.handshakes.lock().entry((facts.version, facts.cipher, facts.resumed)).or_default() += 1;
    }

    /// A client was not let in.
    pub fn not_admitted(&self, why: NotAdmitted) {
        self.not_admitted[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Where HTTP/3 is wanted and not served by now, and why.
    pub(super) fn http3_away(&self, away: BTreeMap<u16, String>, now_secs: u64) {
        let mut known = self.http3_away.lock();
        let since = |port: &u16| known.get(port).map_or(now_secs, |(_, since_secs)| *since_secs);
        let away = away.into_iter().map(|(port, why)| (port, (why, since(&port)))).collect();
        *known = away;
    }

    /// The same, and since when, to be told.
    pub(super) fn http3_not_served(&self) -> BTreeMap<u16, (String, u64)> {
        self.http3_away.lock().clone()
    }

    /// Nothing where there was nothing: a sidecar has no such clients.
    pub(super) fn tell(&self, all: &mut Vec<Metric>) {
        let handshakes = self.handshakes.lock().clone();
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        if !handshakes.is_empty() || of(&self.handshakes_failed) + of(&self.unnamed) > 0 {
            let family = Metric::new("meshwright_edge_handshakes", None, "TLS handshakes of clients from outside", MetricKind::Counter);
            all.push(handshakes.into_iter().fold(family, |family, ((version, cipher, resumed), count)| {
                let labels = [("version", version), ("cipher", cipher), ("resumed", if resumed { "true" } else { "false" })];
                family.with(labels.map(|(name, value)| (name, value.to_owned())).to_vec(), Reading::Count(count))
            }));
            count(
                all,
                &[
                    ("meshwright_edge_handshakes_failed", "TLS handshakes of clients from outside that failed", &self.handshakes_failed),
                    (
                        "meshwright_edge_handshakes_full",
                        "TLS handshakes that waited: as many were under way as may be",
                        &self.handshakes_full,
                    ),
                    ("meshwright_edge_unrecognized_names", "Clients whose TLS asked for a name that nobody has", &self.unnamed),
                ],
            );
        }
        if of(&self.proxy_refused) > 0 {
            let help = "Clients closed: the PROXY protocol was missing, broken or not theirs to send";
            count(all, &[("meshwright_edge_proxy_protocol_refused", help, &self.proxy_refused)]);
        }
        if self.not_admitted.iter().any(|bound| of(bound) > 0) {
            let help = "Clients closed: as many were connected, or new, as may be";
            let family = Metric::new("meshwright_edge_clients_refused", None, help, MetricKind::Counter);
            all.push([NotAdmitted::Full, NotAdmitted::Address, NotAdmitted::Rate].into_iter().fold(family, |family, why| {
                family.with(vec![("bound", why.text().to_owned())], Reading::Count(of(&self.not_admitted[why as usize])))
            }));
        }
        self.tell_http3(all);
        let datagrams = of(&self.datagrams_received) + of(&self.datagrams_dropped) + of(&self.sessions_full);
        if datagrams > 0 {
            let sessions = Reading::Gauge(self.sessions.load(Ordering::Relaxed));
            all.push(Metric::gauge("meshwright_udp_sessions", None, "Clients' sessions of datagrams now", sessions));
            count(
                all,
                &[
                    ("meshwright_udp_sessions_full", "Sessions not begun: a worker had as many as it may", &self.sessions_full),
                    ("meshwright_udp_datagrams_received", "Datagrams from clients that were passed on", &self.datagrams_received),
                    ("meshwright_udp_datagrams_sent", "Datagrams that were sent to clients", &self.datagrams_sent),
                    (
                        "meshwright_udp_datagrams_dropped",
                        "Datagrams dropped for want of a backend, a session or room",
                        &self.datagrams_dropped,
                    ),
                ],
            );
        }
    }

    fn tell_http3(&self, all: &mut Vec<Metric>) {
        let counters = [
            ("meshwright_http3_connections", "Connections of HTTP/3 that began", &self.http3_connections),
            ("meshwright_http3_handshakes_failed", "Handshakes over QUIC that failed", &self.http3_handshakes_failed),
            ("meshwright_http3_retries", "Clients of HTTP/3 that had to prove their address first", &self.http3_retries),
            ("meshwright_http3_floods", "Connections of HTTP/3 ended for requests taken back", &self.http3_floods),
        ];
        if counters.iter().all(|(.., counter)| counter.load(Ordering::Relaxed) == 0) {
            return;
        }
        let open = Reading::Gauge(self.http3_open.load(Ordering::Relaxed));
        all.push(Metric::gauge("meshwright_http3_open", None, "Connections of HTTP/3 now", open));
        count(all, &counters);
    }
}

fn count(all: &mut Vec<Metric>, counters: &[(&'static str, &'static str, &AtomicU64)]) {
    all.extend(counters.iter().map(|(name, help, counter)| Metric::number(name, help, counter.load(Ordering::Relaxed))));
}

/// What the access log says of a client's TLS, written once for each connection: JSON.
pub fn client_tls(facts: &TlsFacts, server_name: Option<&str>, certificate: Option<(&str, bool)>) -> Arc<str> {
    let certificate = certificate.map(|(sha256, verified)| serde_json::json!({"sha256": sha256, "verified": verified}));
    let told = serde_json::json!({
        "version": facts.version,
        "cipher": facts.cipher,
        "group": facts.group,
        "resumed": facts.resumed,
        "server_name": server_name,
        "client_certificate": certificate,
    });
    told.to_string().into()
}
