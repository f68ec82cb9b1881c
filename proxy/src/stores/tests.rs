//! The keeper of stores before servers that count, are gone, hang, refuse and answer garbage, over memory pipes.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::SystemTime;

use async_trait::async_trait;
use engine::filter::guard::{LimitAsk, ObjectLimits};
use engine::limit::{Grant, LimitBook, LimitMemories, Now, ShareAsk};
use engine::model::{Roots, Snapshot};
use proto::mesh::{
    CalendarPeriod, EdgeLimit, EdgeLimits, LimitQuota, LimitRate, LimitStore, RedisStore as Sent, edge_limit::Numbers, limit_store::Kind,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::sleep;

use super::*;
use crate::io::{Clock, Network, Socket, VirtualListening, VirtualNetwork, pipe};
use crate::observe::TelemetryOptions;
use crate::tls::testing::{Authority, party};

/// How the server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Counts,
    Gone,
    Hangs,
    Closes,
    Garbage,
    Refuses,
    Endless,
    Miscounts,
}

/// A server on a network of its own. It counts as the control plane would, by a clock of its own.
struct Server {
    manner: Mutex<Manner>,
    book: LimitBook,
    numbers: engine::limit::Numbers,
    wall_secs: u64,
    password: Option<&'static str>,
    heard: Mutex<Vec<Vec<String>>>,
}

/// The network that leads to it.
struct Wires(Arc<Server>);

#[async_trait]
impl VirtualNetwork for Wires {
    async fn connect(&self, _: SocketAddr) -> io::Result<Socket> {
        if self.0.manner() == Manner::Gone {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = pipe();
        tokio::spawn(Arc::clone(&self.0).serve(far));
        Ok(near)
    }

    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Server {
    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    async fn serve(self: Arc<Self>, far: Socket) {
        let mut far = BufReader::new(far);
        while let Some(command) = command(&mut far).await {
            self.heard.lock().unwrap().push(command.clone());
            let answer = match self.manner() {
                Manner::Counts | Manner::Miscounts => self.answer(&command),
                Manner::Gone | Manner::Closes => return,
                Manner::Hangs => return std::future::pending().await,
                Manner::Garbage => "HTTP/1.1 400 Bad Request\r\n\r\n".to_owned(),
                Manner::Refuses => "-OOM command not allowed when used memory > 'maxmemory'.\r\n".to_owned(),
                Manner::Endless => format!("${}\r\n{}", 1_u64 << 40, "x".repeat(1 << 20)),
            };
            if far.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, command: &[String]) -> String {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["AUTH", shown @ ..] if shown.last().copied() == self.password => "+OK\r\n".to_owned(),
            ["AUTH", ..] => "-WRONGPASS invalid username-password pair or user is disabled.\r\n".to_owned(),
            ["SCRIPT", "LOAD", _] => "$3\r\nsha\r\n".to_owned(),
            ["TIME"] => format!("*2\r\n$10\r\n{:010}\r\n$1\r\n0\r\n", self.wall_secs),
            ["EVALSHA", "sha", "1", _, "quota", _, begins, ends, ..]
                if !(begins.parse::<u64>().unwrap()..ends.parse().unwrap()).contains(&self.wall_secs) =>
            {
                format!("*7\r\n:1\r\n:0\r\n:0\r\n:0\r\n:0\r\n:{}\r\n:0\r\n", self.wall_secs)
            }
            ["EVALSHA", "sha", "1", key, _, _, _, _, want, back, spent, ..] => {
                if self.manner() == Manner::Miscounts {
                    return "*7\r\n:0\r\n:999\r\n:-5\r\n:0\r\n:0\r\n:0\r\n:0\r\n".to_owned();
                }
                let number = |text: &str| text.parse().unwrap();
                let ask =
                    ShareAsk { limit: (*key).into(), key: 0, want: number(want), back: number(back), spent: number(spent), known: None };
                let now = Now { moment: engine::Moment::of_nanos(1), wall_secs: self.wall_secs };
                let Grant { granted, standing, .. } = self.book.take(&ask, &self.numbers, now).unwrap();
                let (reset, retry) = (standing.reset.as_micros(), standing.retry.as_micros());
                format!("*7\r\n:0\r\n:{granted}\r\n:{}\r\n:{reset}\r\n:{retry}\r\n:{}\r\n:0\r\n", standing.remaining, self.wall_secs)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The commands of one name, as they came.
    fn heard(&self, name: &str) -> Vec<Vec<String>> {
        self.heard.lock().unwrap().iter().filter(|command| command[0] == name).cloned().collect()
    }
}

/// The next command: an array of texts.
async fn command(far: &mut BufReader<Socket>) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for _ in 0..count(far, '*').await? {
        let mut bytes = vec![0; count(far, '$').await? + 2];
        far.read_exact(&mut bytes).await.ok()?;
        words.push(String::from_utf8(bytes[..bytes.len() - 2].to_vec()).unwrap());
    }
    Some(words)
}

async fn count(far: &mut BufReader<Socket>, mark: char) -> Option<usize> {
    let mut line = String::new();
    far.read_line(&mut line).await.ok()?;
    line.trim_end().strip_prefix(mark)?.parse().ok()
}

/// What runs, and the object as a proxy has it.
struct Kept {
    server: Arc<Server>,
    snapshots: Snapshots,
    object: Arc<ObjectLimits>,
    telemetry: Arc<Telemetry>,
    _tasks: JoinSet<()>,
}

fn rate() -> Numbers {
    Numbers::Rate(LimitRate { requests: 10, per: Some(prost_types::Duration { seconds: 60, nanos: 0 }), burst: 10 })
}

fn day() -> Numbers {
    Numbers::Quota(LimitQuota { requests: 10, per: CalendarPeriod::Day.into(), time_zone: "UTC".into(), week_start: 1 })
}

fn numbers(raw: &Numbers) -> engine::limit::Numbers {
    let raw = match raw.clone() {
        Numbers::Rate(rate) => proto::mesh::limit_ask::Numbers::Rate(rate),
        Numbers::Quota(quota) => proto::mesh::limit_ask::Numbers::Quota(quota),
    };
    engine::limit::numbers_of(&raw).unwrap()
}

/// A proxy whose object counts at a server that behaves so, with a password that the proxy knows or not.
fn started(manner: Manner, raw: Numbers, (wanted, known): (Option<&'static str>, Option<&str>), ahead_secs: u64) -> Kept {
    let wall_secs = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + ahead_secs;
    let (book, heard) = (LimitBook::new(4, 100), Mutex::default());
    let server = Arc::new(Server { manner: Mutex::new(manner), book, numbers: numbers(&raw), wall_secs, password: wanted, heard });
    let sent = Sent {
        address: "127.0.0.1:6379".into(),
        password: wanted.map(|_| "shop/redis/password".to_owned()).unwrap_or_default(),
        username: wanted.map(|_| "edge".to_owned()).unwrap_or_default(),
        key_prefix: "edge:".into(),
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
        ahead_percent: 20,
        ..Sent::default()
    };
    let limits = EdgeLimits {
        policy: "shop/limits".into(),
        memory: "shop/limits".into(),
        limits: vec![EdgeLimit { name: "all".into(), numbers: Some(raw), cost: 1, shared: true, ..EdgeLimit::default() }],
        store: Some(LimitStore { kind: Some(Kind::Redis(sent)) }),
        ..EdgeLimits::default()
    };
    let memories = Arc::new(LimitMemories::default());
    let object = Arc::new(engine::filter::guard::read(&limits, &memories).unwrap());
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::simulated(SystemTime::now()));
    *telemetry.readings.limits.lock() = Arc::clone(&memories);
    let snapshots = Snapshots::default();
    let own = party(&Authority::new("root"), "spiffe://cluster.local/ns/shop/sa/edge", "edge");
    let network = Network::Virtual(Arc::new(Wires(Arc::clone(&server))));
    let keeper = StoreKeeper {
        callout: Callout::new(network, own.tls, snapshots.clone(), Roots::System),
        snapshots: snapshots.clone(),
        telemetry: Arc::clone(&telemetry),
        node: NodeIdentity { id: "edge/shop/edge".parse().unwrap(), workload: "edge".into(), replica: String::new() },
    };
    let mut parts = engine::model::build::Parts::default();
    let secrets = known.map(|value| proto::mesh::ShownSecret { name: "shop/redis/password".into(), value: value.to_owned().into() });
    let page = proto::mesh::Consumers { secrets: secrets.into_iter().collect(), ..proto::mesh::Consumers::default() };
    let kind = <proto::mesh::Consumers as prost::Name>::type_url();
    parts.put(&kind, "consumers/00", "1", &proto::xds::pack(&page)).unwrap();
    parts.settle();
    let consumers = Arc::clone(&parts.assemble(1, &Snapshot::default()).consumers);
    snapshots.publish(Arc::new(Snapshot { limits: memories, consumers, ..Snapshot::default() }));
    let mut tasks = JoinSet::new();
    tasks.spawn(keeper.run(Draw::seeded(7), CancellationToken::new()));
    Kept { server, snapshots, object, telemetry, _tasks: tasks }
}

impl Kept {
    fn ask(&self, want: u64) -> tokio::sync::oneshot::Receiver<()> {
        let ask = LimitAsk { object: Arc::clone(&self.object), limit: 0, key: 7, want, service: None };
        self.snapshots.limit_questions().ask(ask).unwrap()
    }

    fn have(&self) -> Option<u64> {
        self.object.memory.rows.peek(7, |row| row.shared().have())
    }

    fn is_away(&self) -> bool {
        self.object.store.away_since().is_some()
    }

    /// Why, as the control plane is told.
    fn why(&self) -> String {
        let stores = self.telemetry.traffic().stores_away.into_iter().filter(|row| row.store != "leases");
        stores.map(|row| format!("{}: {}", row.store, row.error)).collect()
    }
}

/// Runs until it holds, in time that is simulated.
async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(25)).await;
    }
    panic!("not within 10 s: {what}");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_is_counted_and_what_lies_idle_goes_back() {
    // Aim: the server is met before anybody asks; a question names the key, hashed, the numbers and how much; what was not used goes back.
    let kept = started(Manner::Counts, rate(), (None, None), 0);
    until("the server is met", || !kept.is_away()).await;
    kept.ask(4).await.unwrap();
    assert_eq!(kept.have(), Some(4));
    let heard = kept.server.heard("EVALSHA");
    let key = format!("edge:shop/limits/all:{:032x}", 7);
    let wanted = ["EVALSHA", "sha", "1", &key, "rate", "10", "10", "60000000.000", "4", "0", "0", "-1", "0"];
    assert_eq!(heard, [wanted.map(str::to_owned).to_vec()]);
    until("four go back", || kept.server.heard("EVALSHA").len() == 2).await;
    assert_eq!(kept.server.heard("EVALSHA")[1][8..10], ["0", "4"]);
    assert_eq!(kept.have(), Some(0));
    kept.ask(50).await.unwrap();
    assert_eq!(kept.have(), Some(10), "no more than there is");
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_a_server_it_is_away_and_met_again() {
    // Aim: gone, silent, closing, garbage, refusing, endless, nonsense of the right form: each is told by its own words, holds nobody up for
    // longer than a batch may take, and a server that is itself again counts again.
    for (manner, word) in [
        (Manner::Gone, "connection refused"),
        (Manner::Hangs, "no answer within"),
        (Manner::Closes, "closed the connection"),
        (Manner::Garbage, "it speaks another protocol"),
        (Manner::Refuses, "it refuses: OOM command not allowed"),
        (Manner::Endless, "says more than it was asked"),
    ] {
        let kept = started(manner, rate(), (None, None), 0);
        until("it failed twice", || kept.object.remote.as_ref().unwrap().trouble.failures() > 1).await;
        let why = kept.why();
        assert!(kept.is_away() && why.starts_with("redis/127.0.0.1:6379: ") && why.contains(word), "{manner:?}: {why}");
        kept.server.behave(Manner::Counts);
        until("it counts again", || !kept.is_away()).await;
        assert_eq!(kept.why(), "", "{manner:?}");
        kept.ask(1).await.unwrap();
    }
    for manner in [Manner::Hangs, Manner::Closes, Manner::Garbage, Manner::Refuses, Manner::Endless, Manner::Miscounts] {
        let kept = started(Manner::Counts, rate(), (None, None), 0);
        until("the server is met", || !kept.is_away()).await;
        kept.ask(1).await.unwrap();
        kept.server.behave(manner);
        let began = tokio::time::Instant::now();
        assert!(kept.ask(5).await.is_err(), "{manner:?}");
        assert!(began.elapsed() <= Duration::from_millis(250), "{manner:?}");
        until("it is away", || kept.is_away()).await;
        assert!(kept.have() <= Some(1), "{manner:?}: nothing was granted");
        assert!(kept.telemetry.render().contains("meshwright_degraded{kind=\"RateLimit\",name=\"redis/127.0.0.1:6379\"} 1\n"));
        kept.server.behave(Manner::Counts);
        until("it counts again", || !kept.is_away()).await;
        kept.ask(1).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_nobody_asks_is_found_away_all_the_same() {
    // Aim: one that hangs or goes while nothing is asked is known to be away before the next request.
    for manner in [Manner::Hangs, Manner::Closes] {
        let kept = started(Manner::Counts, rate(), (None, None), 0);
        until("the server is met", || !kept.is_away()).await;
        kept.server.behave(manner);
        until("it is away", || kept.is_away()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_password_is_shown_first() {
    // Aim: user and password before anything else; a wrong one and one that is not there are told, and never printed.
    let good = started(Manner::Counts, rate(), (Some("s3cret"), Some("s3cret")), 0);
    until("the server is met", || !good.is_away()).await;
    assert_eq!(good.server.heard.lock().unwrap()[0], ["AUTH", "edge", "s3cret"]);
    for (known, word) in [(Some("other"), "WRONGPASS"), (None, "its password, shop/redis/password, is not there")] {
        let kept = started(Manner::Counts, rate(), (Some("s3cret"), known), 0);
        until("it failed", || !kept.why().is_empty()).await;
        assert!(kept.is_away() && kept.why().contains(word), "{}", kept.why());
        assert!(!kept.why().contains("other") && !format!("{:?}", kept.snapshots.load().consumers).contains("other"));
    }
}

#[tokio::test(start_paused = true)]
async fn windows_follow_the_servers_clock() {
    // Aim: a server whose day is another one than ours is asked for its own; nobody asks twice for nothing after that.
    let kept = started(Manner::Counts, day(), (None, None), 2 * 24 * 3600);
    until("the server is met", || !kept.is_away()).await;
    kept.ask(3).await.unwrap();
    assert_eq!(kept.have(), Some(3));
    let [asked] = &kept.server.heard("EVALSHA")[..] else { panic!("{:?}", kept.server.heard("EVALSHA")) };
    let (begins, ends): (u64, u64) = (asked[6].parse().unwrap(), asked[7].parse().unwrap());
    assert!((begins..ends).contains(&kept.server.wall_secs) && ends - begins == 24 * 3600, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_nobody_names_any_more_is_left() {
    // Aim: with its last object a store's connection goes, and one of the same address that comes later is met anew.
    let kept = started(Manner::Counts, rate(), (None, None), 0);
    until("the server is met", || !kept.is_away()).await;
    let Kept { server, snapshots, object, telemetry, _tasks } = kept;
    let memories = Arc::clone(&snapshots.load().limits);
    drop(object);
    snapshots.publish(Arc::new(Snapshot { limits: Arc::clone(&memories), ..Snapshot::default() }));
    sleep(Duration::from_secs(11)).await;
    let probes = server.heard("TIME").len();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(server.heard("TIME").len(), probes, "nobody speaks with it any more");
    assert!(memories.stores().is_empty() && telemetry.traffic().stores_away.is_empty());
}
