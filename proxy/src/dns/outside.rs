//! Names outside the mesh whose addresses are a cluster's endpoints: asked for before anybody calls, and again when their records' time is over.
//! While nobody answers, the last addresses stay.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::model::Cluster;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Transport, Upstream, answer};
use crate::io::{Draw, is_this_machine};
use crate::observe::Telemetry;
use crate::snapshots::Snapshots;

/// An answer counts for so long at least, whatever its records say.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// And no longer than that.
pub const TTL_MAX: Duration = Duration::from_secs(300);
/// After an answer that there is no address.
const NOBODY: Duration = Duration::from_secs(5);
/// First pause after nobody answered; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Names that are asked for at once; others wait.
const LOOKUPS_MAX: usize = 32;
/// Longest answer by UDP that is asked for.
const UDP_BYTES_MAX: u16 = 1_232;

/// See the module.
pub struct OutsideKeeper {
    /// Says which names there are.
    pub snapshots: Snapshots,
    /// Who is asked.
    pub upstream: Upstream,
    /// Counts.
    pub telemetry: Arc<Telemetry>,
}

/// What is known of one name.
#[derive(Debug)]
struct Asked {
    /// When it is asked for next.
    due: Instant,
    /// It is asked for now.
    under_way: bool,
    /// Questions one after the other that nobody has answered.
    failures: u32,
    /// By family: one may be answered without the other.
    addresses: [Vec<IpAddr>; 2],
}

/// What became of the two questions for one name: addresses with their seconds, in either family; none: there is no such record.
type Found = [Option<Vec<(IpAddr, u32)>>; 2];

impl OutsideKeeper {
    /// Runs until `stop`.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        let mut changes = self.snapshots.changes();
        let (mut names, mut asking) = (HashMap::<Box<str>, Asked>::new(), JoinSet::new());
        loop {
            let next = self.ask(&mut names, &mut asking, &draw);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(done) = asking.join_next(), if !asking.is_empty() => {
                    let Ok((host, found)) = done else { continue };
                    self.tell(&mut names, &host, found);
                }
                () = async { match next { Some(next) => sleep_until(next).await, None => std::future::pending().await } } => {}
            }
        }
    }

    /// Asks for what is due; when something is next.
    fn ask(&self, names: &mut HashMap<Box<str>, Asked>, asking: &mut JoinSet<(Box<str>, Found)>, draw: &Draw) -> Option<Instant> {
        let clusters = self.clusters();
        names.retain(|host, asked| asked.under_way || clusters.iter().any(|(wanted, _)| wanted == host));
        let now = Instant::now();
        for (host, cluster) in &clusters {
            match names.get(host) {
                // A cluster that is new under a name that is known.
                Some(known) if cluster.endpoints.load().ready.is_empty() => settle(cluster, known),
                Some(_) => {}
                None => {
                    let addresses = Default::default();
                    names.insert(host.clone(), Asked { due: now, under_way: false, failures: 0, addresses });
                }
            }
        }
        for (host, asked) in names.iter_mut().filter(|(_, asked)| !asked.under_way && asked.due <= now) {
            if asking.len() >= LOOKUPS_MAX {
                break;
            }
            asked.under_way = true;
            asking.spawn(look_up(self.upstream.clone(), host.clone(), draw.next()));
        }
        // Whoever found no place is looked at when one comes free.
        let waiting = names.values().filter(|asked| !asked.under_way && (asked.due > now || asking.len() < LOOKUPS_MAX));
        waiting.map(|asked| asked.due).min()
    }

    /// The clusters of the live snapshot whose endpoints are names.
    fn clusters(&self) -> Vec<(Box<str>, Arc<Cluster>)> {
        let live = self.snapshots.load();
        let named =
            live.clusters.values().filter_map(|cluster| Some((cluster.policy.resolves.as_ref()?.host.clone(), Arc::clone(cluster))));
        named.collect()
    }

    /// Goes by what was found.
    fn tell(&self, names: &mut HashMap<Box<str>, Asked>, host: &str, found: Found) {
        let Some(asked) = names.get_mut(host) else { return };
        asked.under_way = false;
        let answered = found.iter().all(Option::is_some);
        let ttl_secs = found.iter().flatten().flatten().map(|(_, secs)| *secs).min();
        for (known, found) in asked.addresses.iter_mut().zip(found) {
            if let Some(found) = found {
                // Whoever writes a zone leads nobody to what is on this machine.
                *known = found.into_iter().map(|(address, _)| address).filter(|address| !is_this_machine(*address)).collect();
            }
        }
        let readings = &self.telemetry.readings;
        if answered {
            asked.failures = 0;
            let ttl = ttl_secs.map_or(NOBODY, |secs| Duration::from_secs(secs.into()));
            asked.due = Instant::now() + ttl.clamp(TTL_MIN, TTL_MAX);
        } else {
            readings.outside_lookups_failed.fetch_add(1, Ordering::Relaxed);
            if asked.failures == 0 {
                tracing::warn!(host, "a name outside the mesh is not resolved; its last addresses are used on");
            }
            asked.due = Instant::now() + PAUSE_MIN.saturating_mul(1 << asked.failures.min(5)).min(PAUSE_MAX);
            asked.failures = asked.failures.saturating_add(1);
        }
        readings.outside_lookups.fetch_add(1, Ordering::Relaxed);
        for (_, cluster) in self.clusters().iter().filter(|(wanted, _)| **wanted == *host) {
            settle(cluster, asked);
        }
    }
}

fn settle(cluster: &Cluster, asked: &Asked) {
    let all: Vec<IpAddr> = asked.addresses.concat();
    cluster.resolved(&all);
}

/// Asks for a name's addresses, in both families at once.
async fn look_up(upstream: Upstream, host: Box<str>, draw: u64) -> (Box<str>, Found) {
    let [a, b, c, d, ..] = draw.to_be_bytes();
    let (v4, v6) = tokio::join!(
        records(&upstream, &host, RecordType::A, u16::from_be_bytes([a, b])),
        records(&upstream, &host, RecordType::AAAA, u16::from_be_bytes([c, d])),
    );
    (host, [v4, v6])
}

/// The records of one type; `None`: nobody says.
async fn records(upstream: &Upstream, host: &str, kind: RecordType, id: u16) -> Option<Vec<(IpAddr, u32)>> {
    let mut name = Name::from_str(host).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX);
    message.set_edns(edns);
    let question = message.to_vec().ok()?;
    let mut reply = upstream.ask(&question, id, Transport::Udp).await;
    let cut = |reply: &[u8]| Message::from_vec(reply).is_ok_and(|reply| reply.metadata.truncation);
    if reply.as_ref().is_ok_and(|reply| cut(reply)) {
        reply = upstream.ask(&question, id, Transport::Tcp).await;
    }
    let reply = reply.inspect_err(|error| tracing::debug!(host, %error, "a name outside the mesh is not resolved")).ok()?;
    let code = Message::from_vec(&reply).ok()?.metadata.response_code;
    // That there is none is an answer, too.
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain).then(|| answer::found(&reply, host))
}
