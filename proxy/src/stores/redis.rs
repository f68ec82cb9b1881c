//! One server of the Redis protocol, while an object names it: connected, asked in batches, given up and met again.

use std::sync::Arc;
use std::time::Duration;

use engine::authenticate::KeysUri;
use engine::consumers::ShownSecret;
use engine::limit::{RedisPlace, RemotePlace, StoreLive, StoreTrouble};
use redis::{Cmd, Value};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::fault::StoreFault;
use super::link::Link;
use super::take::{Answer, Asked, SCRIPT, answer, clock, refused};
use crate::callout::Callout;
use crate::io::Draw;
use crate::leases::Unused;
use crate::observe::Telemetry;
use crate::snapshots::{Posed, Snapshots, unanswered};
use crate::tls::Carries;
use crate::xds::Backoff;

/// Questions that go out together, while those that come meanwhile wait for the next turn.
const BATCH_MAX: usize = 512;
/// Time to connect and to say who we are.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// A batch is waited for so long at least, whatever a request's own patience is: one late answer is no reason to part.
const SILENCE_MIN: Duration = Duration::from_millis(250);
/// Between two looks at what lies idle.
const LOOK: Duration = Duration::from_millis(250);
/// A server that was not asked for so long is asked whether it is still there.
const PROBED_AFTER: Duration = Duration::from_secs(1);
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

/// A connection on which the script is known.
struct Session {
    link: Link,
    script: String,
    /// The server's clock less ours, in seconds.
    ahead_secs: i64,
    /// When it was heard last.
    heard: Instant,
    unused: Unused,
}

impl RedisStore {
    /// Runs until nobody can ask any more.
    pub(super) async fn run(mut self, mut questions: mpsc::Receiver<Posed>, draw: Draw) {
        let mut backoff = Backoff::default();
        loop {
            let Some(fault) = self.serve(&mut questions, &mut backoff, draw.next()).await else { return };
            let (store, now) = (self.name(), self.telemetry.moment());
            self.trouble.failed(&fault.to_string(), self.telemetry.times().0.unix().as_secs());
            if self.live.is_away(now) || backoff.failures() == 0 {
                tracing::warn!(store, why = %fault, "a store of limits does not count; each limit there goes by its onError");
            }
            let pause = backoff.next(draw.next()).min(PAUSE_MAX);
            if meanwhile(&mut questions, sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// One connection, from its beginning to its end. `None`: nobody can ask any more.
    async fn serve(&mut self, questions: &mut mpsc::Receiver<Posed>, backoff: &mut Backoff, draw: u64) -> Option<StoreFault> {
        let known = self.snapshots.load().consumers.with(|book| book.secret(&self.place.password).cloned());
        self.password = known.or(self.password.take());
        let opening = timeout(OPEN_MAX, self.open(draw));
        let mut session = match meanwhile(questions, opening).await? {
            Ok(Ok(session)) => session,
            Ok(Err(fault)) => return Some(fault),
            Err(_) => return Some(StoreFault::Silent(OPEN_MAX)),
        };
        self.live.begins();
        self.live.is_here();
        self.trouble.over();
        tracing::info!(store = self.name(), "a store counts limits that proxies share");
        let mut every = interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut posed = Vec::with_capacity(BATCH_MAX);
        loop {
            let done = tokio::select! {
                biased;
                _ = every.tick() => self.look(&mut session).await,
                count = questions.recv_many(&mut posed, BATCH_MAX) => {
                    if count == 0 {
                        return None;
                    }
                    let now = self.telemetry.moment();
                    let asked = posed.drain(..).map(|posed| Asked::of(posed, now)).collect();
                    let counted = self.count(&mut session, asked).await;
                    // Not before it has counted something: one that only lets us in is met with pauses that grow.
                    counted.inspect(|()| backoff.reset())
                }
            };
            if let Err(fault) = done {
                return Some(fault);
            }
        }
    }

    /// Connects, says who we are, and teaches it the script.
    async fn open(&self, draw: u64) -> Result<Session, StoreFault> {
        let mut hello = Vec::new();
        if !self.place.password.is_empty() {
            let password = self.password.as_ref().ok_or_else(|| StoreFault::NoPassword(self.place.password.to_string()))?;
            let mut auth = redis::cmd("AUTH");
            if !self.place.username.is_empty() {
                auth.arg(&*self.place.username);
            }
            auth.arg(&**password);
            hello.push(auth);
        }
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(SCRIPT);
        hello.extend([load, redis::cmd("TIME")]);
        let at = KeysUri::of_store(&self.place.address, self.place.tls).map_err(StoreFault::unreadable)?;
        let mut link = Link::new(self.callout.open(&at, Carries::Tcp, draw).await?).await?;
        let answers = link.exchange(hello.into_iter(), OPEN_MAX).await?;
        if let Some(Value::ServerError(error)) = answers.iter().find(|answer| matches!(answer, Value::ServerError(_))) {
            return Err(refused(error));
        }
        let [.., Value::BulkString(script), time] = answers.as_slice() else {
            return Err(StoreFault::unreadable("it does not say what the script is known by"));
        };
        let script =
            String::from_utf8(script.clone()).map_err(|_| StoreFault::unreadable("it does not say what the script is known by"))?;
        let ahead_secs = self.ahead_secs(clock(time)?);
        Ok(Session { link, script, ahead_secs, heard: Instant::now(), unused: Unused::default() })
    }

    /// Puts questions, and gives each its answer.
    async fn count(&self, session: &mut Session, mut asked: Vec<Asked>) -> Result<(), StoreFault> {
        for _ in 0..ROUNDS {
            let wall_secs = self.telemetry.times().0.unix().as_secs().saturating_add_signed(session.ahead_secs);
            let command = |asked: Asked| {
                let command = asked.command((&session.script, &self.place.key_prefix), wall_secs)?;
                Some((asked, command))
            };
            let (put, commands): (Vec<Asked>, Vec<Cmd>) = asked.into_iter().filter_map(command).unzip();
            let patience = SILENCE_MIN.max(self.place.timeout);
            let answers = match session.link.exchange(commands.into_iter(), patience).await {
                Ok(answers) => answers,
                Err(fault) => {
                    put.into_iter().for_each(Asked::unanswered);
                    return Err(fault);
                }
            };
            session.heard = Instant::now();
            let (mut again, mut wrong) = (Vec::new(), None);
            let now = self.telemetry.moment();
            for (asked, value) in put.into_iter().zip(&answers) {
                match answer(value) {
                    Ok((Answer::Counted { granted, standing }, _)) => {
                        if let Some((object, limit, key)) = asked.granted((granted, standing), now) {
                            session.unused.watch((&object, limit, key), now);
                        }
                    }
                    Ok((Answer::Turned, secs)) => {
                        session.ahead_secs = self.ahead_secs(secs);
                        again.push(asked);
                    }
                    Err(fault) => {
                        asked.unanswered();
                        wrong = Some(fault);
                    }
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
    async fn look(&self, session: &mut Session) -> Result<(), StoreFault> {
        let mut idle: Vec<Asked> = session.unused.due(self.telemetry.moment()).into_iter().map(Asked::giving_back).collect();
        while !idle.is_empty() {
            let rest = idle.split_off(idle.len().min(BATCH_MAX));
            self.count(session, idle).await?;
            idle = rest;
        }
        if session.heard.elapsed() >= PROBED_AFTER {
            let answers = session.link.exchange([redis::cmd("TIME")].into_iter(), SILENCE_MIN.max(self.place.timeout)).await?;
            session.ahead_secs = self.ahead_secs(clock(answers.first().unwrap_or(&Value::Nil))?);
            session.heard = Instant::now();
        }
        Ok(())
    }

    fn name(&self) -> String {
        RemotePlace::Redis(Arc::clone(&self.place)).name()
    }

    fn ahead_secs(&self, server_secs: u64) -> i64 {
        let own = self.telemetry.times().0.unix().as_secs();
        let signed = |secs: u64| i64::try_from(secs).unwrap_or(i64::MAX);
        signed(server_secs).saturating_sub(signed(own))
    }
}

/// Waits for something, while nobody who asks is kept waiting. `None`: nobody can ask any more.
async fn meanwhile<T>(questions: &mut mpsc::Receiver<Posed>, what: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(what);
    loop {
        tokio::select! {
            biased;
            done = &mut what => return Some(done),
            posed = questions.recv() => unanswered(&posed?),
        }
    }
}
