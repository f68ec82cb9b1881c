//! A cluster that counts: each key has one server (`slots`), and each server that is written to has a connection. What one of them does not
//! answer goes by each limit's `onError` while the others count on; who has which keys is asked for again until all are there.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use engine::limit::{StoreLive, StoreTrouble};
use redis::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::fault::{StoreFault, refused};
use super::server::{CountingServer, Meeting};
use super::slots::{Elsewhere, SlotMap, elsewhere, slot};
use super::take::{Asked, Settled, meanwhile, settle};
use crate::io::Draw;
use crate::leases::Unused;
use crate::snapshots::PosedElsewhere;
use crate::xds::Backoff;

/// Questions that are taken up together.
const BATCH_MAX: usize = 512;
/// Between two looks at what lies idle.
const LOOK: Duration = Duration::from_millis(250);
/// How long a server is waited for that is asked who has which slots, and one that is met.
const LOOK_UP_MAX: Duration = Duration::from_secs(1);
/// Longest pause before that is asked again while a server is missing.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest answer to that question.
const SLOTS_BYTES_MAX: u64 = 512 << 10;
/// How often a question is put that is sent on, or whose window is not the server's.
const ROUNDS: usize = 4;

/// What it takes to serve.
pub(super) struct ClusterMeans<'s> {
    pub(super) meeting: Meeting,
    pub(super) live: &'s StoreLive,
    pub(super) trouble: &'s StoreTrouble,
    pub(super) draw: Draw,
}

/// Who has which slots, and servers that were met for that.
struct Looked {
    map: SlotMap,
    met: Vec<(Box<str>, Result<CountingServer, StoreFault>)>,
}

/// Looking for servers, beside the counting.
type Looking = Pin<Box<dyn Future<Output = Result<Looked, StoreFault>> + Send>>;

/// See the module.
struct CountingCluster<'s> {
    means: ClusterMeans<'s>,
    map: SlotMap,
    servers: BTreeMap<Box<str>, CountingServer>,
    unused: Unused,
    /// Why somebody is missing; then it is asked again who has which slots.
    missing: Option<StoreFault>,
}

/// Runs until no server of it counts; `None`: nobody can ask any more.
pub(super) async fn serve(
    means: ClusterMeans<'_>,
    questions: &mut mpsc::Receiver<PosedElsewhere>,
    backoff: &mut Backoff,
) -> Option<StoreFault> {
    let seeds = means.meeting.place.addresses.clone();
    let looking = look(means.meeting.clone(), (seeds, Vec::new()), means.draw.next());
    let found = match meanwhile(questions, looking).await? {
        Ok(found) => found,
        Err(fault) => return Some(fault),
    };
    let (servers, unused) = (BTreeMap::new(), Unused::default());
    let mut cluster = CountingCluster { means, map: SlotMap::default(), servers, unused, missing: None };
    cluster.adopt(found);
    let name = engine::limit::RemotePlace::Redis(std::sync::Arc::clone(&cluster.means.meeting.place)).name();
    tracing::info!(store = name, servers = cluster.servers.len(), "a cluster has what proxies share");
    let (mut every, mut posed) = (interval(LOOK), Vec::with_capacity(BATCH_MAX));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looking: Option<Looking> = None;
    let (mut pauses, mut next_look) = (Backoff::default(), Instant::now());
    loop {
        if cluster.servers.is_empty() {
            let nobody = || StoreFault::unknown("no server of the cluster is reached");
            return Some(cluster.missing.unwrap_or_else(nobody));
        }
        if cluster.missing.is_none() {
            pauses.reset();
        } else if looking.is_none() && Instant::now() >= next_look {
            next_look = Instant::now() + pauses.next(cluster.means.draw.next()).min(PAUSE_MAX);
            looking = Some(cluster.look_again());
        }
        tokio::select! {
            biased;
            found = async { match &mut looking { Some(looking) => looking.await, None => std::future::pending().await } } => {
                looking = None;
                match found {
                    Ok(found) => cluster.adopt(found),
                    Err(fault) => cluster.misses(fault),
                }
            }
            _ = every.tick() => cluster.tidy().await,
            count = questions.recv_many(&mut posed, BATCH_MAX) => {
                if count == 0 {
                    return None;
                }
                let now = cluster.means.meeting.telemetry.moment();
                let asked = posed.drain(..).map(|posed| Asked::of(posed, now)).collect();
                if cluster.count(asked).await {
                    backoff.reset();
                }
            }
        }
    }
}

impl CountingCluster<'_> {
    /// Asks again who has which slots: whom we know first.
    fn look_again(&self) -> Looking {
        let known = self.servers.keys().chain(&self.means.meeting.place.addresses);
        let (mut asked, draw) = (Vec::new(), self.means.draw.next());
        for address in known.filter(|address| !address.is_empty()) {
            if !asked.contains(address) {
                asked.push(address.clone());
            }
        }
        Box::pin(look(self.means.meeting.clone(), (asked, self.servers.keys().cloned().collect()), draw))
    }

    /// Goes by what was found.
    fn adopt(&mut self, Looked { map, met }: Looked) {
        self.missing = None;
        self.map = map;
        let named = self.map.servers();
        self.servers.retain(|address, _| named.contains(&&**address));
        for (address, met) in met {
            match met {
                Ok(server) => {
                    // It may not know what another one counted before it.
                    self.means.live.begins();
                    self.servers.insert(address, server);
                }
                Err(fault) => self.missing = Some(StoreFault::unknown(&format!("{address}: {fault}"))),
            }
        }
        if self.servers.is_empty() {
            return;
        }
        self.means.live.is_here();
        match self.missing.take() {
            Some(fault) => self.misses(fault),
            None => self.means.trouble.over(),
        }
    }

    /// Somebody does not count.
    fn misses(&mut self, fault: StoreFault) {
        self.means.trouble.failed(&fault.to_string(), self.means.meeting.telemetry.times().0.unix().as_secs());
        if self.missing.is_none() {
            tracing::warn!(why = %fault, "a server of a cluster does not answer: limits of its keys go by their onError, and sessions there are not known");
        }
        self.missing = Some(fault);
    }

    /// Puts questions to whoever has their keys, to all at once. Whether something was counted.
    async fn count(&mut self, asked: Vec<Asked>) -> bool {
        let (mut todo, mut counted): (Vec<(Asked, Option<Elsewhere>)>, bool) =
            (asked.into_iter().map(|asked| (asked, None)).collect(), false);
        for _ in 0..ROUNDS {
            let mut asking = JoinSet::new();
            for (address, group) in self.grouped(std::mem::take(&mut todo)) {
                let Some(server) = self.server(&address).await else {
                    group.into_iter().for_each(|(asked, _)| asked.unanswered());
                    continue;
                };
                asking.spawn(put(server, (address, group), self.means.meeting.clone()));
            }
            while let Some(done) = asking.join_next().await {
                let Ok(Put { address, server, group, answers }) = done else { continue };
                match answers {
                    Ok(answers) => {
                        let again = self.settle((address, server), group.into_iter().zip(answers));
                        counted |= again.1;
                        todo.extend(again.0);
                    }
                    Err(fault) => {
                        group.into_iter().for_each(|(asked, _)| asked.unanswered());
                        self.misses(StoreFault::unknown(&format!("{address}: {fault}")));
                    }
                }
            }
            if todo.is_empty() {
                return counted;
            }
        }
        todo.into_iter().for_each(|(asked, _)| asked.unanswered());
        counted
    }

    /// Questions by the server that has their keys. What nobody has is not answered.
    fn grouped(&mut self, todo: Vec<(Asked, Option<Elsewhere>)>) -> BTreeMap<Box<str>, Vec<(Asked, bool)>> {
        let mut groups: BTreeMap<Box<str>, Vec<(Asked, bool)>> = BTreeMap::new();
        for (asked, to) in todo {
            let Some(key) = asked.key(&self.means.meeting.place.key_prefix) else {
                asked.unanswered();
                continue;
            };
            let (address, once) = match to {
                Some(Elsewhere { address, once }) => (Some(address), once),
                None => (self.map.of(slot(key.as_bytes())).map(Into::into), false),
            };
            match address {
                Some(address) => groups.entry(address).or_default().push((asked, once)),
                None => {
                    asked.unanswered();
                    self.misses(StoreFault::unknown("nobody has the slots of some keys"));
                }
            }
        }
        groups
    }

    /// A server's connection. One that another has named is met first; whoever is missing is met beside the counting.
    async fn server(&mut self, address: &str) -> Option<CountingServer> {
        if let Some(server) = self.servers.remove(address) {
            return Some(server);
        }
        if self.map.servers().contains(&address) {
            return None;
        }
        let meeting = self.means.meeting.meet(address, self.means.draw.next());
        match timeout(self.means.meeting.patience(), meeting).await {
            Ok(Ok(server)) => Some(server),
            Ok(Err(fault)) => {
                self.misses(StoreFault::unknown(&format!("{address}: {fault}")));
                None
            }
            Err(_) => {
                self.misses(StoreFault::unknown(&format!("{address} is not met in time")));
                None
            }
        }
    }

    /// Goes by a server's answers: what is to be put again, and whether it has counted something.
    fn settle(
        &mut self,
        (address, mut server): (Box<str>, CountingServer),
        answers: impl Iterator<Item = ((Asked, bool), Value)>,
    ) -> (Vec<(Asked, Option<Elsewhere>)>, bool) {
        let (mut again, mut counted, mut wrong) = (Vec::new(), false, None);
        let now = self.means.meeting.telemetry.moment();
        for ((asked, _), value) in answers {
            if let Some(elsewhere) = elsewhere(&value, &address) {
                if !elsewhere.once && self.missing.is_none() {
                    // The map is another one by now: nobody is away.
                    self.missing = Some(StoreFault::unknown("slots have moved"));
                }
                again.push((asked, Some(elsewhere)));
                continue;
            }
            match settle(asked, &value, now, &mut self.unused) {
                Settled::Done => counted = true,
                Settled::Again(asked, secs) => {
                    server.set_clock(secs);
                    again.push((asked, None));
                }
                Settled::Wrong(fault) => wrong = Some(fault),
            }
        }
        match wrong {
            // It is met anew, by whom it then is.
            Some(fault) => self.misses(StoreFault::unknown(&format!("{address}: {fault}"))),
            None => _ = self.servers.insert(address, server),
        }
        (again, counted)
    }

    /// Gives back what lies idle, and finds out whether servers that nobody asks are still there.
    async fn tidy(&mut self) {
        let mut idle: Vec<Asked> = self.unused.due(self.means.meeting.telemetry.moment()).into_iter().map(Asked::giving_back).collect();
        while !idle.is_empty() {
            let rest = idle.split_off(idle.len().min(BATCH_MAX));
            self.count(idle).await;
            idle = rest;
        }
        let mut probing = JoinSet::new();
        for (address, mut server) in std::mem::take(&mut self.servers) {
            let patience = self.means.meeting.patience();
            probing.spawn(async move {
                let probed = server.probe(patience).await;
                (address, server, probed)
            });
        }
        while let Some(done) = probing.join_next().await {
            match done {
                Ok((address, server, Ok(()))) => _ = self.servers.insert(address, server),
                Ok((address, _, Err(fault))) => self.misses(StoreFault::unknown(&format!("{address}: {fault}"))),
                Err(_) => {}
            }
        }
    }
}

/// What became of questions to one server.
struct Put {
    address: Box<str>,
    server: CountingServer,
    group: Vec<(Asked, bool)>,
    answers: Result<Vec<Value>, StoreFault>,
}

/// Puts questions to one server. What it is asked once in another's stead is announced.
async fn put(mut server: CountingServer, (address, group): (Box<str>, Vec<(Asked, bool)>), meeting: Meeting) -> Put {
    let (mut commands, mut kept, mut announced) = (Vec::new(), Vec::new(), Vec::new());
    for (asked, once) in group {
        let Some(command) = asked.command((server.script(), &meeting.place.key_prefix), server.wall_secs()) else {
            asked.unanswered();
            continue;
        };
        if once {
            announced.push(commands.len());
            commands.push(redis::cmd("ASKING"));
        }
        commands.push(command);
        kept.push((asked, once));
    }
    let answer_bytes_max = kept.iter().map(|(asked, _)| asked.answer_bytes_max()).max().unwrap_or_default();
    let answers = server.put((commands.into_iter(), answer_bytes_max), meeting.patience()).await.map(|answers| {
        let own = answers.into_iter().enumerate().filter(|(place, _)| announced.binary_search(place).is_err());
        own.map(|(_, answer)| answer).collect()
    });
    Put { address, server, group: kept, answers }
}

/// Asks the first of these that answers who has which slots, and meets whoever of them is not known.
async fn look(meeting: Meeting, (asked, known): (Vec<Box<str>>, Vec<Box<str>>), draw: u64) -> Result<Looked, StoreFault> {
    let (mut map, mut why) = (None, StoreFault::Gone);
    let first = usize::try_from(draw % (asked.len().max(1) as u64)).unwrap_or_default();
    for address in asked.iter().cycle().skip(first).take(asked.len()) {
        match timeout(LOOK_UP_MAX, slots_of(&meeting, address, draw)).await.unwrap_or(Err(StoreFault::Silent(LOOK_UP_MAX))) {
            Ok(read) => {
                map = Some(read);
                break;
            }
            Err(fault) => why = fault,
        }
    }
    let map: SlotMap = map.ok_or(why)?;
    let mut meeting_all = JoinSet::new();
    for address in map.servers() {
        if known.iter().any(|known| **known == *address) {
            continue;
        }
        let (meeting, address) = (meeting.clone(), Box::<str>::from(address));
        meeting_all.spawn(async move {
            let met = timeout(LOOK_UP_MAX, meeting.meet(&address, draw)).await;
            (address, met.unwrap_or(Err(StoreFault::Silent(LOOK_UP_MAX))))
        });
    }
    let mut met = Vec::new();
    while let Some(done) = meeting_all.join_next().await {
        met.extend(done.ok());
    }
    Ok(Looked { map, met })
}

async fn slots_of(meeting: &Meeting, address: &str, draw: u64) -> Result<SlotMap, StoreFault> {
    let mut link = meeting.link(address, draw).await?;
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("SLOTS");
    let commands = meeting.introduction()?.into_iter().chain([slots]);
    let answers = link.exchange_long(commands, LOOK_UP_MAX, SLOTS_BYTES_MAX).await?;
    if let Some(Value::ServerError(error)) = answers.iter().find(|answer| matches!(answer, Value::ServerError(_))) {
        return Err(refused(error));
    }
    SlotMap::read(answers.last().unwrap_or(&Value::Nil), address)
}
