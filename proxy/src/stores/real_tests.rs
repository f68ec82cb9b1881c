//! The keeper of stores before servers that nobody here wrote: `redis-server` under sentinels, and as a cluster. Ports are free ones of this
//! machine; the clock is the real one, for the servers' own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::filter::guard::{LimitAsk, ObjectLimits};
use engine::limit::{LimitMemories, Taking};
use engine::login::{PutOnly, StoreAsk, StoreCommand, StoreTold};
use engine::model::{Roots, Snapshot};
use proto::mesh::{
    EdgeLimit, EdgeLimits, LimitRate, LimitStore, RedisMode, RedisStore as Sent, WithoutStore, edge_limit::Numbers, limit_store::Kind,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::StoreKeeper;
use crate::callout::Callout;
use crate::io::{Clock, Draw, Network};
use crate::observe::{Telemetry, TelemetryOptions};
use crate::snapshots::Snapshots;
use crate::tls::testing::{Authority, party};
use crate::xds::NodeIdentity;

const PASSWORD: &str = "s3cret";
/// How long anything may take: a failover is a matter of seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ports that nobody has, with room above for a cluster's own.
fn ports(count: usize) -> Vec<u16> {
    let draw = Draw::from_entropy();
    let mut held = Vec::new();
    while held.len() < count {
        // With that of its bus, 10,000 above, below those that connections take by themselves.
        let port = 10_500 + u16::try_from(draw.next() % 9_500).unwrap();
        let both = TcpListener::bind(("127.0.0.1", port)).and_then(|own| Ok((own, TcpListener::bind(("127.0.0.1", port + 10_000))?)));
        held.extend(both);
    }
    held.iter().map(|(own, _)| own.local_addr().unwrap().port()).collect()
}

fn server(folder: &Path, port: u16, more: &[&str]) -> Running {
    let port = port.to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]);
    // A replica is served at once, not with others that might come within five seconds.
    command.args(["--repl-diskless-sync-delay", "0"]).args(more);
    Running(command.current_dir(folder).stdout(Stdio::null()).spawn().expect("redis-server is there; tests/run-all says which"))
}

fn cli(port: u16, words: &[&str]) -> String {
    let output =
        Command::new("redis-cli").args(["-p", &port.to_string(), "-a", PASSWORD, "--no-auth-warning"]).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for it.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A proxy whose object counts there.
struct Counting {
    object: Arc<ObjectLimits>,
    snapshots: Snapshots,
    telemetry: Arc<Telemetry>,
    stop: CancellationToken,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn counting(addresses: &[u16], mode: RedisMode, master: &str) -> Counting {
    let sent = Sent {
        addresses: addresses.iter().map(|port| format!("127.0.0.1:{port}")).collect(),
        mode: mode.into(),
        master: master.into(),
        password: "shop/redis/password".into(),
        key_prefix: "edge:".into(),
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
        ..Sent::default()
    };
    let numbers =
        Numbers::Rate(LimitRate { requests: 1_000, per: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }), burst: 1_000 });
    let limits = EdgeLimits {
        policy: "shop/limits".into(),
        memory: "shop/limits".into(),
        limits: vec![EdgeLimit { name: "all".into(), numbers: Some(numbers), cost: 1, shared: true, ..EdgeLimit::default() }],
        store: Some(LimitStore { kind: Some(Kind::Redis(sent)) }),
        without_store: WithoutStore::Deny.into(),
        ..EdgeLimits::default()
    };
    let memories = Arc::new(LimitMemories::default());
    let object = Arc::new(engine::filter::guard::read(&limits, &memories).unwrap());
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::simulated(SystemTime::now()));
    *telemetry.readings.limits.lock() = Arc::clone(&memories);
    let snapshots = Snapshots::default();
    let own = party(&Authority::new("root"), "spiffe://cluster.local/ns/shop/sa/edge", "edge");
    let keeper = StoreKeeper {
        callout: Callout::new(Network::Kernel { mark: None }, own.tls, snapshots.clone(), Roots::System),
        snapshots: snapshots.clone(),
        telemetry: Arc::clone(&telemetry),
        node: NodeIdentity { id: "edge/shop/edge".parse().unwrap(), workload: "edge".into(), replica: String::new() },
    };
    let mut parts = engine::model::build::Parts::default();
    let secret = proto::mesh::ShownSecret { name: "shop/redis/password".into(), value: PASSWORD.as_bytes().to_vec().into() };
    let page = proto::mesh::Consumers { secrets: vec![secret], ..proto::mesh::Consumers::default() };
    let kind = <proto::mesh::Consumers as prost::Name>::type_url();
    parts.put(&kind, "consumers/00", "1", &proto::xds::pack(&page)).unwrap();
    parts.settle();
    let consumers = Arc::clone(&parts.assemble(1, &Snapshot::default()).consumers);
    snapshots.publish(Arc::new(Snapshot { limits: memories, consumers, ..Snapshot::default() }));
    let stop = CancellationToken::new();
    tokio::spawn(keeper.run(Draw::seeded(7), stop.clone()));
    Counting { object, snapshots, telemetry, stop }
}

impl Counting {
    fn is_away(&self) -> bool {
        self.object.store.away_since().is_some()
    }

    /// What is told of the place. There is no control plane, whose own store is told of beside it.
    fn why(&self) -> String {
        let away = self.telemetry.traffic().stores_away.into_iter();
        away.filter(|row| row.store != "leases").map(|row| format!("{}: {}", row.store, row.error)).collect()
    }

    /// Asks for one of a key; whether the store has answered.
    async fn ask(&self, key: u128) -> bool {
        let ask = LimitAsk { object: Arc::clone(&self.object), limit: 0, key, want: 1 };
        let Some(answer) = self.snapshots.limit_questions().ask(ask) else { return false };
        answer.await.is_ok()
    }

    /// What the store had left of a key when it answered last.
    fn left(&self, key: u128) -> u64 {
        let now = self.telemetry.moment();
        self.object.memory.rows.peek(key, |row| row.shared().standing(now).remaining).unwrap_or_default()
    }

    /// Takes one of a key, as soon as the store answers.
    async fn answers(&self, key: u128) {
        let began = Instant::now();
        while !self.ask(key).await {
            assert!(began.elapsed() < PATIENCE, "{key} is not answered: {}", self.why());
            sleep(Duration::from_millis(100)).await;
        }
        let now = self.telemetry.moment();
        let taken = self.object.memory.rows.peek(key, |row| row.shared().take(1, 0, now));
        assert!(matches!(taken, Some(Taking::Taken { .. })), "{key}: {taken:?}");
    }
}

/// A session's whole life at a store, asked as workers ask.
async fn keeps_a_session(edge: &Counting) {
    let store = edge.object.remote.clone().unwrap();
    let said = async |commands: Vec<StoreCommand>| {
        let ask = StoreAsk { store: Arc::clone(&store), commands };
        let mut told = Vec::new();
        for answer in edge.snapshots.limit_questions().command(&ask).unwrap() {
            told.push(answer.await.expect("the store answers"));
        }
        told
    };
    let put = |only, value: &str| StoreCommand::Put { key: "login:{a}".into(), value: value.into(), life_secs: 60, only };
    let turn = || StoreCommand::Put { key: "login:{a}:turn".into(), value: "1".into(), life_secs: 30, only: PutOnly::New };
    let (get, nothing, done) = (StoreCommand::Get("login:{a}".into()), StoreTold::Nothing, StoreTold::Done);
    let text = |value: &str| StoreTold::Text(value.to_owned().into());
    // As long as a session may be, and as its answer is.
    let long = "x".repeat((engine::login::SEALED_BYTES_MAX + 512) / 3 * 4);
    assert_eq!(said(vec![put(PutOnly::Known, "lost"), get.clone()]).await, [nothing.clone(), nothing.clone()]);
    assert_eq!(said(vec![put(PutOnly::Always, &long), get.clone()]).await, [done.clone(), text(&long)]);
    assert_eq!(said(vec![turn(), get.clone(), turn()]).await, [done.clone(), text(&long), nothing.clone()]);
    let put_back = said(vec![put(PutOnly::Known, "newer"), StoreCommand::Remove("login:{a}:turn".into()), get.clone()]).await;
    assert_eq!(put_back, [done.clone(), done.clone(), text("newer")]);
    assert_eq!(said(vec![StoreCommand::Live("login:{a}".into(), 30)]).await, std::slice::from_ref(&done));
    let raise = |number| StoreCommand::Raise("login:sub:b".into(), number, 60);
    let ended = StoreCommand::Get("login:sub:b".into());
    assert_eq!(said(vec![raise(1_800_000_000), raise(1_700_000_000), ended]).await, [done.clone(), done.clone(), text("1800000000")]);
    let gone = said(vec![StoreCommand::Remove("login:{a}".into()), get, StoreCommand::Live("login:{a}".into(), 30)]).await;
    assert_eq!(gone, [done, nothing.clone(), nothing]);
    assert!(!edge.is_away(), "{}", edge.why());
}

#[tokio::test]
async fn whom_sentinels_name_counts_and_the_next_one_goes_on() {
    // Aim: the server is found by its sentinels, with its name and without; it is killed, questions are refused at once meanwhile, and in seconds
    // the replica counts on from what was counted.
    let folder = TempDir::new().unwrap();
    let ports = ports(5);
    let [first, second, sentinels @ ..] = ports.as_slice() else { unreachable!() };
    let secret = ["--requirepass", PASSWORD, "--masterauth", PASSWORD];
    let master = server(folder.path(), *first, &secret);
    let of = format!("127.0.0.1 {first}");
    let _replica = server(folder.path(), *second, &[&secret[..], &["--replicaof", &of]].concat());
    until("the replica follows", || cli(*second, &["info", "replication"]).contains("master_link_status:up")).await;
    let _sentinels: Vec<Running> = sentinels
        .iter()
        .map(|port| {
            let file = folder.path().join(format!("sentinel-{port}.conf"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {first} 2\nsentinel auth-pass shop {PASSWORD}\n\
                 sentinel down-after-milliseconds shop 800\nsentinel failover-timeout shop 3000\n"
            );
            std::fs::write(&file, text).unwrap();
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").current_dir(folder.path()).stdout(Stdio::null());
            Running(command.spawn().unwrap())
        })
        .collect();
    for port in sentinels {
        let known = || {
            let output = Command::new("redis-cli").args(["-p", &port.to_string(), "sentinel", "master", "shop"]).output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines: Vec<&str> = told.lines().collect();
            let number = |name: &str| lines.iter().position(|line| *line == name).and_then(|at| lines.get(at + 1)?.parse::<u32>().ok());
            number("num-slaves") == Some(1) && number("num-other-sentinels") == Some(2)
        };
        until("sentinels know one another", known).await;
    }
    let (named, unnamed) = (counting(sentinels, RedisMode::Sentinel, "shop"), counting(sentinels, RedisMode::Sentinel, ""));
    for one in [&named, &unnamed] {
        until("the server is met", || !one.is_away()).await;
        one.answers(7).await;
    }
    assert_eq!(unnamed.left(7), 998, "both count at one server");
    keeps_a_session(&named).await;
    cli(*first, &["del", "edge:login:sub:b"]);
    let unknown = counting(sentinels, RedisMode::Sentinel, "nobody");
    until("nobody is known by that name", || unknown.why().contains("knows no server named")).await;
    assert!(unknown.is_away());

    until("the replica has it", || cli(*second, &["dbsize"]).trim() == "1").await;
    drop(master);
    until("it is away", || named.is_away()).await;
    let began = Instant::now();
    assert!(!named.ask(7).await && began.elapsed() < Duration::from_millis(250), "nobody waits for it: {:?}", began.elapsed());
    named.answers(7).await;
    assert!(cli(*second, &["role"]).starts_with("master"));
    assert_eq!(named.left(7), 997, "the replica has counted on");
    until("nothing is said any more", || named.why().is_empty()).await;
}

/// Servers that are to be one cluster.
fn clustered(folder: &Path, ports: &[u16]) -> Vec<Option<Running>> {
    let one = |port: &u16| {
        let (file, bus) = (format!("nodes-{port}.conf"), (port + 10_000).to_string());
        let secret = ["--requirepass", PASSWORD, "--masterauth", PASSWORD];
        let cluster =
            ["--cluster-enabled", "yes", "--cluster-config-file", &file, "--cluster-node-timeout", "1000", "--cluster-port", &bus];
        Some(server(folder, *port, &[&secret[..], &cluster].concat()))
    };
    ports.iter().map(one).collect()
}

#[tokio::test]
async fn a_cluster_counts_each_key_where_it_is() {
    // Aim: keys go to the servers that have them; one server's slots move away under way, announced and for good; a server is killed, the others'
    // keys are counted on, and in seconds its replica counts on, too.
    let folder = TempDir::new().unwrap();
    let ports = ports(6);
    let mut servers = clustered(folder.path(), &ports);
    for port in &ports {
        until("servers answer", || cli(*port, &["ping"]).contains("PONG")).await;
    }
    let all: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let words: Vec<&str> = ["--cluster", "create"].into_iter().chain(all.iter().map(String::as_str)).collect();
    cli(ports[0], &[&words[..], &["--cluster-replicas", "1", "--cluster-yes"]].concat());
    let well = || ports.iter().all(|port| cli(*port, &["cluster", "info"]).contains("cluster_state:ok"));
    until("the cluster is one", well).await;

    let edge = counting(&ports[..2], RedisMode::Cluster, "");
    until("the cluster is met", || !edge.is_away()).await;
    for key in 0..60 {
        edge.answers(key).await;
        assert_eq!(edge.left(key), 999, "{key}");
    }
    let counted: Vec<usize> = ports[..3].iter().map(|port| cli(*port, &["dbsize"]).trim().parse().unwrap()).collect();
    assert!(counted.iter().all(|count| *count > 0) && counted.iter().sum::<usize>() == 60, "{counted:?}");

    keeps_a_session(&edge).await;

    // A slot moves: while it does, the key that has moved already is asked for elsewhere, once; then it has moved.
    let key = format!("edge:shop/limits/all:{:032x}", 1);
    let slot = cli(ports[0], &["cluster", "keyslot", &key]).trim().to_owned();
    let home = ports[..3].iter().copied().find(|port| cli(*port, &["cluster", "countkeysinslot", &slot]).trim() != "0").unwrap();
    let other = ports[..3].iter().copied().find(|port| *port != home).unwrap();
    let id = |port: u16| cli(port, &["cluster", "myid"]).trim().to_owned();
    cli(other, &["cluster", "setslot", &slot, "importing", &id(home)]);
    cli(home, &["cluster", "setslot", &slot, "migrating", &id(other)]);
    let keys = cli(home, &["cluster", "getkeysinslot", &slot, "100"]);
    for moving in keys.lines() {
        cli(home, &["migrate", "127.0.0.1", &other.to_string(), moving, "0", "5000", "auth", PASSWORD]);
    }
    edge.answers(1).await;
    assert_eq!(edge.left(1), 998, "asked for elsewhere");
    for port in [other, home] {
        cli(port, &["cluster", "setslot", &slot, "node", &id(other)]);
    }
    edge.answers(1).await;
    assert_eq!(edge.left(1), 997, "moved");

    // One of the three is killed.
    let dead = home;
    let of_dead = |key: u128| {
        let slot = cli(other, &["cluster", "keyslot", &format!("edge:shop/limits/all:{key:032x}")]).trim().to_owned();
        cli(dead, &["cluster", "countkeysinslot", &slot]).trim().parse::<u32>().unwrap_or_default() > 0
    };
    let lost = (2..60).find(|key| of_dead(*key)).unwrap();
    let kept = (2..60).find(|key| !of_dead(*key)).unwrap();
    let place = ports.iter().position(|port| *port == dead).unwrap();
    // One that has never been in step with its server does not stand in for it.
    let follows = |port: &u16| cli(*port, &["info", "replication"]).contains("master_link_status:up");
    until("replicas follow", || ports[3..].iter().all(follows)).await;
    let sizes = |ports: &[u16]| {
        let mut sizes: Vec<u32> = ports.iter().map(|port| cli(*port, &["dbsize"]).trim().parse().unwrap()).collect();
        sizes.sort_unstable();
        sizes
    };
    until("replicas have what was counted", || sizes(&ports[3..]) == sizes(&ports[..3])).await;
    drop(servers[place].take());
    let began = Instant::now();
    until("it is missed", || !edge.why().is_empty()).await;
    assert!(!edge.is_away(), "the others are there");
    let answered = edge.ask(kept).await;
    edge.answers(lost).await;
    eprintln!("a server of a cluster was replaced within {:?}; others answered meanwhile: {answered}", began.elapsed());
    assert_eq!(edge.left(lost), 998, "its replica has counted on");
    edge.answers(kept).await;
    until("nothing is said any more", || edge.why().is_empty()).await;
}
