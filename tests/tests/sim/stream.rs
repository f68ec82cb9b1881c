//! Both ends of one ADS stream, without tasks, sockets and TLS: the proxy's session and its wants against the control plane's session,
//! with every order of asking, forgetting, changing, delivering and losing that a seed makes up. Hundreds of seeds take some seconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use control::publish::session::{Content, Session as Server, type_urls};
use control::translate::Encoded;
use prost::Name as _;
use proto::mesh::{DnsRecord, ProxyConfig};
use proto::xds::core::{Address, Node, SocketAddress, TrafficDirection, address, socket_address};
use proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proto::xds::listener::Listener;
use proto::{names, xds};
use proxy::io::Draw;
use proxy::snapshots::{IDLE, IDLE_ABSENT, Snapshots, Want, WantState};
use proxy::xds::{Effect, Session as Client};
use tests::sim::seeds;
use tokio::time::Instant;

/// Steps of one seed.
const STEPS: usize = 400;
/// Lines of the story that are kept.
const STORY_MAX: usize = 60;
/// Hosts that somebody may ask for. The first third always exists, the second never does, the third comes and goes.
const HOSTS: u64 = 9;

/// The world, both ends, and what is on its way between them.
struct Stream {
    draw: Draw,
    now: Instant,
    hosts: BTreeMap<u64, u32>,
    number: u64,
    snapshots: Snapshots,
    client: Client,
    server: Server,
    up: VecDeque<DeltaDiscoveryRequest>,
    down: VecDeque<DeltaDiscoveryResponse>,
    /// What happened last, for whoever has to find out why.
    story: VecDeque<String>,
}

fn host(number: u64) -> String {
    format!("h{number}")
}

fn address(number: u64) -> SocketAddr {
    format!("10.96.0.{number}:80").parse().expect("an address")
}

fn encoded(message: &impl prost::Name) -> Arc<Encoded> {
    let any = xds::pack(message);
    Arc::new(Encoded::new(any))
}

fn record(version: u32) -> Arc<Encoded> {
    encoded(&DnsRecord { addresses: vec![format!("10.96.{version}.1")], ttl_secs: 5, ..Default::default() })
}

fn listener(number: u64) -> Arc<Encoded> {
    let at = address(number);
    let socket = SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
        ..Default::default()
    };
    encoded(&Listener {
        name: names::outbound(at),
        address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
        bind_to_port: Some(false),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Default::default()
    })
}

impl Stream {
    fn new(seed: u64) -> Self {
        let draw = Draw::seeded(seed);
        let node = Node { id: "sidecar/shop/frontend".into(), ..Default::default() };
        let mut stream = Self {
            draw,
            now: Instant::now(),
            hosts: (0..HOSTS / 3).map(|number| (number, 0)).collect(),
            number: 1,
            snapshots: Snapshots::default(),
            client: Client::new(node),
            server: Server::new(),
            up: VecDeque::new(),
            down: VecDeque::new(),
            story: VecDeque::new(),
        };
        stream.connect();
        stream
    }

    fn tell(&mut self, line: String) {
        if self.story.len() == STORY_MAX {
            self.story.pop_front();
        }
        self.story.push_back(line);
    }

    fn below(&self, bound: u64) -> u64 {
        self.draw.next() % bound
    }

    /// A new stream, as after any loss.
    fn connect(&mut self) {
        self.tell("a new stream".to_owned());
        self.server = Server::new();
        self.server.asks_for_all();
        self.down.clear();
        self.up = self.client.open(&self.snapshots.wanted().all()).into();
        self.snapshots.wanted().connected(true);
        self.show();
    }

    /// What the translator would say to these wants in this world.
    fn show(&mut self) {
        let url = |wanted: &str| *type_urls().iter().find(|url| **url == wanted).expect("a type that is served");
        let mut content = Content::new();
        let proxy = ProxyConfig { trust_domain: "cluster.local".into(), ..Default::default() };
        content.entry(url(&ProxyConfig::type_url())).or_default().insert(names::PROXY.to_owned(), encoded(&proxy));
        let wants = self.server.wants();
        for (number, version) in &self.hosts {
            let (dns, out) = (names::dns(&host(*number)), names::outbound(address(*number)));
            if wants.contains(&dns) || wants.contains(&out) {
                content.entry(url(xds::LISTENER)).or_default().insert(out, listener(*number));
            }
            if wants.contains(&dns) {
                content.entry(url(&DnsRecord::type_url())).or_default().insert(dns, record(*version));
            }
        }
        self.server.show(content, self.number);
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let number = self.below(HOSTS);
        match self.below(20) {
            0..6 => self.ask(number)?,
            6..8 => self.wish(),
            8..11 => self.hear()?,
            11..14 => self.say(),
            14..17 => self.learn()?,
            17 => self.change(number),
            18 => self.wait()?,
            _ if self.below(4) == 0 => self.connect(),
            _ => {}
        }
        Ok(())
    }

    /// An application uses a name, or an address.
    fn ask(&mut self, number: u64) -> anyhow::Result<()> {
        let by_name = self.below(2) == 0;
        let want = if by_name { Want::Name(host(number).into()) } else { Want::Outbound(address(number)) };
        let live = self.snapshots.load();
        let known = if by_name { live.names.contains_key(&host(number)) } else { live.outbound.contains_key(&address(number)) };
        self.tell(format!("{want:?} is used, known: {known}"));
        if known {
            ensure!(!(HOSTS / 3..2 * (HOSTS / 3)).contains(&number), "{want:?} never existed and is served");
            self.snapshots.wanted().used(&want, self.now);
        } else if self.snapshots.wanted().ask(&want, self.now) == WantState::Absent {
            ensure!(number >= HOSTS / 3, "{want:?} has always existed and is denied");
        }
        Ok(())
    }

    /// The client turns what was asked for into requests.
    fn wish(&mut self) {
        let change = self.snapshots.wanted().take();
        self.tell(format!("{change:?}"));
        self.up.extend(self.client.want(change));
    }

    /// The server takes in a request.
    fn hear(&mut self) -> anyhow::Result<()> {
        let Some(request) = self.up.pop_front() else { return Ok(()) };
        let (more, less) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        if !(more.is_empty() && less.is_empty()) {
            self.tell(format!("the server hears of {more:?}, no longer {less:?}"));
        }
        if self.server.request(request).context("a request is too much")?.wants_changed {
            self.show();
        }
        Ok(())
    }

    /// The server says what there is to say, unless much is on its way.
    fn say(&mut self) {
        if self.down.len() < 3 {
            self.down.extend(self.server.next_response());
        }
    }

    /// The client takes in a response.
    fn learn(&mut self) -> anyhow::Result<()> {
        let Some(response) = self.down.pop_front() else { return Ok(()) };
        let given: Vec<&str> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
        self.tell(format!("the client gets {given:?}, no longer {:?}", response.removed_resources));
        for effect in self.client.on(response, self.now) {
            match effect {
                Effect::Send(request) => {
                    ensure!(request.error_detail.is_none(), "refused: {:?}", request.error_detail);
                    self.up.push_back(*request);
                }
                Effect::Publish(snapshot) => self.snapshots.publish(snapshot),
                Effect::Answered(want, exists) => {
                    let fixed = match &want {
                        Want::Name(name) => name[1..].parse::<u64>()?,
                        Want::Outbound(at) => at.ip().to_string().rsplit('.').next().unwrap_or_default().parse()?,
                    };
                    ensure!(exists || fixed >= HOSTS / 3, "{want:?} has always existed and is said not to");
                    self.snapshots.wanted().answered(&want, exists);
                }
                Effect::StartOver | Effect::Refused(_) => bail!("{effect:?}"),
                Effect::TrustBundle(_) | Effect::Consumers => {}
            }
        }
        // Responses come in order, and the epoch last: what does not fit when it comes never will.
        ensure!(self.client.due().is_none(), "an epoch does not fit what was sent");
        Ok(())
    }

    /// One of the last third comes, goes, or changes.
    fn change(&mut self, number: u64) {
        let number = 2 * (HOSTS / 3) + number % (HOSTS / 3);
        self.number += 1;
        if self.hosts.remove(&number).is_none() || self.below(2) == 0 {
            self.hosts.insert(number, u32::try_from(self.number % 200).unwrap_or_default());
        }
        self.show();
    }

    /// Time passes, up to and beyond what makes names be forgotten; nothing is on its way for that long.
    fn wait(&mut self) -> anyhow::Result<()> {
        self.deliver()?;
        let spans = [Duration::from_secs(1), IDLE_ABSENT / 2, IDLE_ABSENT, IDLE];
        self.tell("time passes".to_owned());
        self.now += spans[usize::try_from(self.below(4))?];
        self.snapshots.wanted().expire(self.now);
        ensure!(self.client.tick(self.now).is_empty(), "everything is asked for anew");
        Ok(())
    }

    /// Until nothing is on its way.
    fn deliver(&mut self) -> anyhow::Result<()> {
        for _ in 0..1_000 {
            let before = (self.up.len(), self.down.len());
            self.hear()?;
            self.say();
            self.learn()?;
            if before == (0, 0) && self.up.is_empty() && self.down.is_empty() {
                return Ok(());
            }
        }
        bail!("the two never come to rest")
    }

    /// Until nobody has anything to say.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.deliver()?;
        self.wish();
        self.deliver()
    }

    /// What is wanted is there, or known not to be; what nobody wants is gone.
    fn check(&self) -> anyhow::Result<()> {
        let (live, wanted) = (self.snapshots.load(), self.snapshots.wanted());
        let mut names = BTreeSet::new();
        for want in wanted.all() {
            let exists = match &want {
                Want::Name(name) => {
                    names.insert(name.to_string());
                    live.names.contains_key(&**name)
                }
                Want::Outbound(at) => live.outbound.contains_key(at),
            };
            let known = (0..HOSTS).find(|number| match &want {
                Want::Name(name) => **name == *host(*number),
                Want::Outbound(at) => *at == address(*number),
            });
            let should = known.is_some_and(|number| self.hosts.contains_key(&number));
            ensure!(exists == should, "{want:?}: served {exists}, exists {should}");
            ensure!(exists || wanted.ask(&want, self.now) == WantState::Absent, "{want:?} is waited for, and nobody will answer");
        }
        let served: BTreeSet<String> = live.names.keys().cloned().collect();
        ensure!(served.is_subset(&names), "{served:?} are served, {names:?} are wanted");
        for (number, version) in &self.hosts {
            if let Some(answer) = live.names.get(&host(*number)) {
                ensure!(answer.addresses[0].to_string() == format!("10.96.{version}.1"), "{} is stale", host(*number));
            }
        }
        Ok(())
    }
}

/// Aim: whatever is asked for, forgotten, changed and lost, in whatever order: every epoch fits what was sent before it, nothing that
/// exists is ever denied, nothing is waited for that nobody will answer, and at rest both ends agree.
#[test]
fn every_order_of_asking_and_forgetting_ends_in_agreement() -> anyhow::Result<()> {
    for seed in seeds(1, 600) {
        let mut stream = Stream::new(seed);
        let run = (0..STEPS).try_for_each(|step| {
            stream.step()?;
            if step % 100 == 99 {
                stream.settle()?;
                stream.check()?;
            }
            anyhow::Ok(())
        });
        let mut story = || Vec::from(std::mem::take(&mut stream.story)).join("\n");
        run.with_context(|| format!("{}\nreplay it with MESHWRIGHT_SIM_SEED={seed}", story()))?;
    }
    Ok(())
}
