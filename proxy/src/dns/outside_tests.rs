//! The keeper of names outside the mesh, before a resolver that answers, is silent, and changes its mind.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use engine::model::{Cluster, ClusterKind, ClusterPolicy, OutsideName, Snapshot};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{OutsideKeeper, Upstream};
use crate::io::{Clock, Draw, Network};
use crate::observe::TelemetryOptions;
use crate::snapshots::Snapshots;

/// What the resolver says: addresses and their seconds, no such name, a failure, or nothing at all.
#[derive(Clone, Debug)]
enum Says {
    Has(Vec<&'static str>, u32),
    NoName,
    Fails,
    Silence,
}

struct Zone {
    says: Mutex<BTreeMap<RecordType, Says>>,
    asked: Mutex<Vec<String>>,
}

impl Zone {
    fn say(&self, four: Says, six: Says) {
        *self.says.lock().unwrap() = BTreeMap::from([(RecordType::A, four), (RecordType::AAAA, six)]);
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut message = Message::from_vec(bytes).unwrap();
        let query = message.queries[0].clone();
        self.asked.lock().unwrap().push(format!("{} {}", query.name(), query.query_type()));
        message = message.into_response();
        match self.says.lock().unwrap().get(&query.query_type()).cloned()? {
            Says::Silence => return None,
            Says::Fails => message.metadata.response_code = ResponseCode::ServFail,
            Says::NoName => message.metadata.response_code = ResponseCode::NXDomain,
            Says::Has(addresses, secs) => {
                for address in addresses {
                    let data = match address.parse().unwrap() {
                        IpAddr::V4(ip) => RData::A(A(ip)),
                        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
                    };
                    message.add_answer(Record::from_rdata(query.name().clone(), secs, data));
                }
            }
        }
        Some(message.to_vec().unwrap())
    }
}

/// A resolver, and a cluster whose endpoints are a name's.
async fn kept(four: Says, six: Says) -> (Arc<Zone>, Arc<Cluster>, Snapshots, CancellationToken) {
    let zone = Arc::new(Zone { says: Mutex::default(), asked: Mutex::default() });
    zone.say(four, six);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (server, own) = (socket.local_addr().unwrap(), Arc::clone(&zone));
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(answer) = own.answer(&buffer[..length]) {
                socket.send_to(&answer, client).await.unwrap();
            }
        }
    });
    let name = OutsideName { host: "api.example".into(), port: 443 };
    let cluster = Arc::new(Cluster {
        name: "shop/external/api:443".into(),
        namespace: "shop".into(),
        service: "external/api".into(),
        protocol: engine::model::Protocol::Http1,
        connect_timeout: Duration::from_secs(1),
        kind: ClusterKind::Endpoints,
        tls: None,
        policy: Arc::new(ClusterPolicy { resolves: Some(Box::new(name)), ..ClusterPolicy::default() }),
        endpoints: Arc::default(),
        live: Arc::default(),
    });
    let snapshots = Snapshots::default();
    let mut snapshot = Snapshot::default();
    snapshot.clusters.insert(cluster.name.to_string(), Arc::clone(&cluster));
    snapshots.publish(Arc::new(snapshot));
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::simulated(SystemTime::now()));
    let upstream = Upstream::new(Network::Kernel { mark: None }, vec![server]);
    let stop = CancellationToken::new();
    let keeper = OutsideKeeper { snapshots: snapshots.clone(), upstream, telemetry };
    tokio::spawn(keeper.run(Draw::seeded(7), stop.clone()));
    (zone, cluster, snapshots, stop)
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    let set = cluster.endpoints.load();
    let mut all: Vec<SocketAddr> = set.ready.iter().chain(&set.other).map(|endpoint| endpoint.address).collect();
    all.sort_unstable();
    all.iter().map(ToString::to_string).collect()
}

/// Waits until the endpoints are these.
async fn become_these(cluster: &Cluster, wanted: &[&str]) {
    let began = Instant::now();
    while endpoints(cluster) != wanted {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}, not {wanted:?}", endpoints(cluster));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn addresses_follow_their_records() {
    // Aim: both families, before anybody calls; asked again when the shortest time is over; what stays keeps what is known of it, what is gone is
    // none; nobody's records lead to this machine itself; a name that is no more has nobody.
    let (zone, cluster, _snapshots, stop) = kept(Says::Has(vec!["192.0.2.1", "192.0.2.2"], 1), Says::Has(vec!["2001:db8::1"], 60)).await;
    become_these(&cluster, &["192.0.2.1:443", "192.0.2.2:443", "[2001:db8::1]:443"]).await;
    assert_eq!(zone.asked.lock().unwrap()[0].to_lowercase().trim_end_matches(" aaaa").trim_end_matches(" a"), "api.example.");
    let stays = cluster.endpoints.load().ready.iter().find(|endpoint| endpoint.address.to_string() == "192.0.2.2:443").cloned().unwrap();
    zone.say(Says::Has(vec!["192.0.2.2", "192.0.2.3"], 1), Says::Has(Vec::new(), 0));
    become_these(&cluster, &["192.0.2.2:443", "192.0.2.3:443"]).await;
    let now = cluster.endpoints.load().ready.iter().find(|endpoint| endpoint.address == stays.address).cloned().unwrap();
    assert!(Arc::ptr_eq(&now.live, &stays.live));
    zone.say(Says::Has(vec!["127.0.0.1", "0.0.0.0", "192.0.2.4"], 1), Says::Has(vec!["::1", "::ffff:127.0.0.1"], 1));
    become_these(&cluster, &["192.0.2.4:443"]).await;
    zone.say(Says::NoName, Says::NoName);
    become_these(&cluster, &[]).await;
    stop.cancel();
}

#[tokio::test]
async fn while_nobody_answers_the_last_addresses_stay() {
    // Aim: a failure of one family leaves that family as it was and takes up the other; silence leaves both; questions come with growing pauses.
    let (zone, cluster, _snapshots, stop) = kept(Says::Has(vec!["192.0.2.1"], 1), Says::Has(vec!["2001:db8::1"], 1)).await;
    become_these(&cluster, &["192.0.2.1:443", "[2001:db8::1]:443"]).await;
    zone.say(Says::Has(vec!["192.0.2.9"], 1), Says::Fails);
    become_these(&cluster, &["192.0.2.9:443", "[2001:db8::1]:443"]).await;
    zone.say(Says::Silence, Says::Silence);
    let before = zone.asked();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(endpoints(&cluster), ["192.0.2.9:443", "[2001:db8::1]:443"]);
    assert!(zone.asked() > before);
    zone.say(Says::Has(vec!["192.0.2.7"], 1), Says::NoName);
    become_these(&cluster, &["192.0.2.7:443"]).await;
    stop.cancel();
}

#[tokio::test]
async fn a_time_of_nothing_is_a_second() {
    // Aim: records without any time are asked for once a second, not for ever.
    let (zone, cluster, _snapshots, stop) = kept(Says::Has(vec!["192.0.2.1"], 0), Says::NoName).await;
    become_these(&cluster, &["192.0.2.1:443"]).await;
    let before = zone.asked();
    sleep(Duration::from_millis(2_500)).await;
    assert!((2..=6).contains(&(zone.asked() - before)), "{}", zone.asked() - before);
    stop.cancel();
}
