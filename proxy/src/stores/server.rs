//! One server that counts: met, told who we are, taught the script, and asked.

use std::sync::Arc;
use std::time::Duration;

use engine::authenticate::KeysUri;
use engine::consumers::ShownSecret;
use engine::limit::{RedisMode, RedisPlace};
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::fault::{StoreFault, refused};
use super::link::{ANSWER_BYTES_MAX, Link};
use super::take::{SCRIPT, clock};
use crate::callout::Callout;
use crate::observe::Telemetry;
use crate::tls::Carries;

/// Time to connect and to say who we are.
pub(super) const OPEN_MAX: Duration = Duration::from_secs(2);
/// A batch is waited for so long at least, whatever a request's own patience is: one late answer is no reason to part.
const SILENCE_MIN: Duration = Duration::from_millis(250);
/// A server that was not asked for so long is asked whether it is still there.
const PROBED_AFTER: Duration = Duration::from_secs(1);
/// Longest answer while we get to know one another: a server's role names its replicas.
const HELLO_BYTES_MAX: u64 = 16 << 10;

/// What it takes to meet a server of one place.
#[derive(Clone)]
pub(super) struct Meeting {
    pub(super) place: Arc<RedisPlace>,
    pub(super) callout: Callout,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) password: Option<ShownSecret>,
}

/// A connection on which the script is known.
pub(super) struct CountingServer {
    link: Link,
    script: String,
    /// The server's clock less ours, in seconds.
    ahead_secs: i64,
    /// When it was heard last.
    heard: Instant,
    telemetry: Arc<Telemetry>,
}

impl Meeting {
    /// A connection on which nothing was said.
    ///
    /// # Errors
    /// Nobody is reached there.
    pub(super) async fn link(&self, address: &str, draw: u64) -> Result<Link, StoreFault> {
        let at = KeysUri::of_store(address, self.place.tls).map_err(StoreFault::unreadable)?;
        Link::new(self.callout.open(&at, Carries::Tcp, draw).await?).await
    }

    /// Says who we are; `None`: nobody wants to know.
    ///
    /// # Errors
    /// We do not know it.
    pub(super) fn introduction(&self) -> Result<Option<Cmd>, StoreFault> {
        if self.place.password.is_empty() {
            return Ok(None);
        }
        let password = self.password.as_ref().ok_or_else(|| StoreFault::NoPassword(self.place.password.to_string()))?;
        let mut auth = redis::cmd("AUTH");
        if !self.place.username.is_empty() {
            auth.arg(&*self.place.username);
        }
        auth.arg(&**password);
        Ok(Some(auth))
    }

    /// How long an answer is waited for.
    pub(super) fn patience(&self) -> Duration {
        SILENCE_MIN.max(self.place.timeout)
    }

    /// Connects, says who we are, and teaches it the script.
    ///
    /// # Errors
    /// It is not reached, refuses, or is not what it is to be.
    pub(super) async fn meet(&self, address: &str, draw: u64) -> Result<CountingServer, StoreFault> {
        let mut hello: Vec<Cmd> = self.introduction()?.into_iter().collect();
        let asks_role = matches!(self.place.mode, RedisMode::Sentinel(_));
        hello.extend(asks_role.then(|| redis::cmd("ROLE")));
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(SCRIPT);
        hello.extend([load, redis::cmd("TIME")]);
        let mut link = self.link(address, draw).await?;
        let answers = link.exchange_long(hello.into_iter(), OPEN_MAX, HELLO_BYTES_MAX).await?;
        if let Some(Value::ServerError(error)) = answers.iter().find(|answer| matches!(answer, Value::ServerError(_))) {
            return Err(refused(error));
        }
        let unknown = || StoreFault::unreadable("it does not say what the script is known by");
        let [before @ .., Value::BulkString(script), time] = answers.as_slice() else { return Err(unknown()) };
        if asks_role && !before.last().is_some_and(is_master) {
            return Err(StoreFault::unknown("the server that sentinels name is a replica by its own word: wait until they have chosen"));
        }
        let script = String::from_utf8(script.clone()).map_err(|_| unknown())?;
        let mut server = CountingServer { link, script, ahead_secs: 0, heard: Instant::now(), telemetry: Arc::clone(&self.telemetry) };
        server.set_clock(clock(time)?);
        Ok(server)
    }
}

/// Whether the answer to ROLE is that of a server that is written to.
fn is_master(role: &Value) -> bool {
    matches!(role, Value::Array(parts) if matches!(parts.first(), Some(Value::BulkString(word)) if word == b"master"))
}

impl CountingServer {
    /// By what it knows the script.
    pub(super) fn script(&self) -> &str {
        &self.script
    }

    /// What time it is there, seconds since 1970.
    pub(super) fn wall_secs(&self) -> u64 {
        self.telemetry.times().0.unix().as_secs().saturating_add_signed(self.ahead_secs)
    }

    /// It says that it is that late.
    pub(super) fn set_clock(&mut self, wall_secs: u64) {
        let own = self.telemetry.times().0.unix().as_secs();
        let signed = |secs: u64| i64::try_from(secs).unwrap_or(i64::MAX);
        self.ahead_secs = signed(wall_secs).saturating_sub(signed(own));
    }

    /// Puts questions, whose answers are so long each at most. After a fault it is of no use any more.
    ///
    /// # Errors
    /// See [`Link::exchange`].
    pub(super) async fn put(
        &mut self,
        (commands, answer_bytes_max): (impl Iterator<Item = Cmd>, u64),
        within: Duration,
    ) -> Result<Vec<Value>, StoreFault> {
        let answers = self.link.exchange_long(commands, within, answer_bytes_max).await?;
        self.heard = Instant::now();
        Ok(answers)
    }

    /// Finds out whether a server that nobody asks is still there.
    ///
    /// # Errors
    /// It is not.
    pub(super) async fn probe(&mut self, within: Duration) -> Result<(), StoreFault> {
        if self.heard.elapsed() < PROBED_AFTER {
            return Ok(());
        }
        let answers = self.put(([redis::cmd("TIME")].into_iter(), ANSWER_BYTES_MAX), within).await?;
        self.set_clock(clock(answers.first().unwrap_or(&Value::Nil))?);
        Ok(())
    }
}
