//! One place of the Redis protocol, while an object names it: its server connected, asked in batches, given up and met again. Of a place of
//! sentinels it is the server that they name; a cluster has several (`cluster`).

use std::sync::Arc;
use std::time::Duration;

use engine::consumers::ShownSecret;
use engine::limit::{RedisMode, RedisPlace, RemotePlace, StoreLive, StoreTrouble};
use redis::Cmd;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::cluster;
use super::fault::StoreFault;
use super::sentinel;
use super::server::{CountingServer, Meeting, OPEN_MAX};
use super::take::{Asked, Settled, meanwhile, settle};
use crate::callout::Callout;
use crate::io::Draw;
use crate::leases::Unused;
use crate::observe::Telemetry;
use crate::snapshots::{PosedElsewhere, Snapshots};
use crate::xds::Backoff;

/// Questions that go out together, while those that come meanwhile wait for the next turn.
const BATCH_MAX: usize = 512;
/// Between two looks at what lies idle.
const LOOK: Duration = Duration::from_millis(250);
/// Longest pause before it is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a question is put whose window is not the server's: it may turn between two.
const ROUNDS: usize = 3;

/// See the module.
pub(super) struct RedisStore {
    pub(super) place: Arc<RedisPlace>,
    pub(super) live: Arc<StoreLive>,
    pub(super) trouble: Arc<StoreTrouble>,
    pub(super) callout: Callout,
    pub(super) snapshots: Snapshots,
    pub(super) telemetry: Arc<Telemetry>,
    /// The last one that was told: one that vanishes is used on.
    pub(super) password: Option<ShownSecret>,
}

impl RedisStore {
    /// Runs until nobody can ask any more.
    pub(super) async fn run(mut self, mut questions: mpsc::Receiver<PosedElsewhere>, draw: Draw) {
        let mut backoff = Backoff::default();
        loop {
            let meeting = self.meeting();
            let served = match &self.place.mode {
                RedisMode::Cluster => {
                    let means =
                        cluster::ClusterMeans { meeting, live: &self.live, trouble: &self.trouble, draw: Draw::seeded(draw.next()) };
                    cluster::serve(means, &mut questions, &mut backoff).await
                }
                RedisMode::Single | RedisMode::Sentinel(_) => self.serve(&meeting, &mut questions, &mut backoff, draw.next()).await,
            };
            let Some(fault) = served else { return };
            let (store, now) = (RemotePlace::Redis(Arc::clone(&self.place)).name(), self.telemetry.moment());
            self.trouble.failed(&fault.to_string(), self.telemetry.times().0.unix().as_secs());
            if self.live.is_away(now) || backoff.failures() == 0 {
                tracing::warn!(store, why = %fault, "a store does not answer: each limit there goes by its onError, and sessions there are not known");
            }
            let pause = backoff.next(draw.next()).min(PAUSE_MAX);
            if meanwhile(&mut questions, sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    fn meeting(&mut self) -> Meeting {
        let known = self.snapshots.load().consumers.with(|book| book.secret(&self.place.password).cloned());
        self.password = known.or(self.password.take());
        Meeting {
            place: Arc::clone(&self.place),
            callout: self.callout.clone(),
            telemetry: Arc::clone(&self.telemetry),
            password: self.password.clone(),
        }
    }

    /// One connection, from its beginning to its end. `None`: nobody can ask any more.
    async fn serve(
        &self,
        meeting: &Meeting,
        questions: &mut mpsc::Receiver<PosedElsewhere>,
        backoff: &mut Backoff,
        draw: u64,
    ) -> Option<StoreFault> {
        let opening = timeout(OPEN_MAX, async {
            let address = match &self.place.mode {
                RedisMode::Sentinel(name) => sentinel::master(meeting, name, draw).await?,
                RedisMode::Single | RedisMode::Cluster => self.place.address().into(),
            };
            Ok::<_, StoreFault>((meeting.meet(&address, draw).await?, address))
        });
        let (server, address) = match meanwhile(questions, opening).await? {
            Ok(Ok(met)) => met,
            Ok(Err(fault)) => return Some(fault),
            Err(_) => return Some(StoreFault::Silent(OPEN_MAX)),
        };
        self.live.begins();
        self.live.is_here();
        self.trouble.over();
        tracing::info!(store = RemotePlace::Redis(Arc::clone(&self.place)).name(), server = &*address, "a store has what proxies share");
        let mut session = Session { server, unused: Unused::default() };
        let moved = async {
            match &self.place.mode {
                RedisMode::Sentinel(name) => sentinel::moved(meeting, name, (&address, draw)).await,
                RedisMode::Single | RedisMode::Cluster => std::future::pending().await,
            }
        };
        tokio::pin!(moved);
        let mut every = interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut posed = Vec::with_capacity(BATCH_MAX);
        loop {
            let done = tokio::select! {
                biased;
                fault = &mut moved => Err(fault),
                _ = every.tick() => session.look(meeting).await,
                count = questions.recv_many(&mut posed, BATCH_MAX) => {
                    if count == 0 {
                        return None;
                    }
                    let now = self.telemetry.moment();
                    let asked = posed.drain(..).map(|posed| Asked::of(posed, now)).collect();
                    let counted = session.count(meeting, asked).await;
                    // Not before it has counted something: one that only lets us in is met with pauses that grow.
                    counted.inspect(|()| backoff.reset())
                }
            };
            if let Err(fault) = done {
                return Some(fault);
            }
        }
    }
}

/// A server that counts, and what it has given that may come to lie idle.
struct Session {
    server: CountingServer,
    unused: Unused,
}

impl Session {
    /// Puts questions, and gives each its answer.
    async fn count(&mut self, meeting: &Meeting, mut asked: Vec<Asked>) -> Result<(), StoreFault> {
        for _ in 0..ROUNDS {
            let (script, wall_secs) = (self.server.script().to_owned(), self.server.wall_secs());
            let command = |asked: Asked| {
                let command = asked.command((&script, &meeting.place.key_prefix), wall_secs)?;
                Some((asked, command))
            };
            let (put, commands): (Vec<Asked>, Vec<Cmd>) = asked.into_iter().filter_map(command).unzip();
            let answer_bytes_max = put.iter().map(Asked::answer_bytes_max).max().unwrap_or_default();
            let answers = match self.server.put((commands.into_iter(), answer_bytes_max), meeting.patience()).await {
                Ok(answers) => answers,
                Err(fault) => {
                    put.into_iter().for_each(Asked::unanswered);
                    return Err(fault);
                }
            };
            let (mut again, mut wrong) = (Vec::new(), None);
            let now = meeting.telemetry.moment();
            for (asked, value) in put.into_iter().zip(&answers) {
                match settle(asked, value, now, &mut self.unused) {
                    Settled::Done => {}
                    Settled::Again(asked, secs) => {
                        self.server.set_clock(secs);
                        again.push(asked);
                    }
                    Settled::Wrong(fault) => wrong = Some(fault),
                }
            }
            asked = again;
            if wrong.is_some() || asked.is_empty() {
                asked.into_iter().for_each(Asked::unanswered);
                return wrong.map_or(Ok(()), Err);
            }
        }
        asked.into_iter().for_each(Asked::unanswered);
        Ok(())
    }

    /// Gives back what lies idle, and finds out whether a server that nobody asks is still there.
    async fn look(&mut self, meeting: &Meeting) -> Result<(), StoreFault> {
        let mut idle: Vec<Asked> = self.unused.due(meeting.telemetry.moment()).into_iter().map(Asked::giving_back).collect();
        while !idle.is_empty() {
            let rest = idle.split_off(idle.len().min(BATCH_MAX));
            self.count(meeting, idle).await?;
            idle = rest;
        }
        self.server.probe(meeting.patience()).await
    }
}
