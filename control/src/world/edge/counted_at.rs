//! `store` of a RateLimit: who keeps what is counted together.

use std::time::Duration;

use engine::limit::{KEY_PREFIX_BYTES_MAX, RedisPlace, STORE_TIMEOUT_MAX};

use super::Cursor;
use super::consumer::entry;
use crate::world::content::ContentRef;
use crate::world::door::Fields;

/// What names of keys begin with where nobody says so.
const KEY_PREFIX: &str = "meshwright:";
/// How long a request waits for a store where nobody says so.
const TIMEOUT: Duration = Duration::from_millis(50);
/// What proxies take ahead where nobody says so, per cent.
const AHEAD_PERCENT: u32 = 1;
/// Most addresses; a single server has one.
const ADDRESSES_MAX: usize = 16;

/// Who counts, and how much of it proxies take ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedAt {
    /// Per cent of a whole limit.
    pub ahead_percent: u32,
    /// A server elsewhere; `None`: the control plane.
    pub redis: Option<RedisServer>,
}

/// A server of the Redis protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisServer {
    /// HOST:PORT.
    pub address: String,
    /// It proves itself.
    pub tls: bool,
    /// As whom proxies speak; empty: its default user.
    pub username: String,
    /// Their password.
    pub password: Option<ContentRef>,
    /// What names of keys begin with.
    pub key_prefix: String,
    /// How long a request waits.
    pub timeout: Duration,
}

impl Default for CountedAt {
    fn default() -> Self {
        Self { ahead_percent: AHEAD_PERCENT, redis: None }
    }
}

impl CountedAt {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        fields.unsupported(&["rls"]);
        let (leases, redis) = (fields.get("leases"), fields.get("redis"));
        fields.done();
        match (leases, redis) {
            (Some(_), Some(at)) => {
                at.error("one store counts, not two", "write either `leases` or `redis`");
                Self::default()
            }
            (Some(at), None) => {
                let mut leases = at.fields();
                let ahead_percent = ahead(&mut leases);
                leases.done();
                Self { ahead_percent, redis: None }
            }
            (None, Some(at)) => {
                let mut redis = at.fields();
                let ahead_percent = ahead(&mut redis);
                Self { ahead_percent, redis: RedisServer::read(redis) }
            }
            (None, None) => Self::default(),
        }
    }

    /// The entry of a Secret that proxies are told.
    pub fn password(&self) -> Option<&ContentRef> {
        self.redis.as_ref()?.password.as_ref()
    }
}

fn ahead(fields: &mut Fields<'_>) -> u32 {
    let ahead = fields.get("aheadPercent").and_then(|at| at.int(0..=100)).and_then(|percent| u32::try_from(percent).ok());
    ahead.unwrap_or(AHEAD_PERCENT)
}

impl RedisServer {
    fn read(mut fields: Fields<'_>) -> Option<Self> {
        if let Some(at) = fields.get("mode") {
            match at.word(&[("Single", "Single"), ("Sentinel", "Sentinel"), ("Cluster", "Cluster")]) {
                Some("Single") | None => {}
                Some(mode) => at.error(
                    format!("{mode} is not supported by this version"),
                    "name one server, or what leads to the one that is written to, such as a Service or a proxy of the Redis protocol",
                ),
            }
        }
        let address = fields.need("addresses").and_then(|at| {
            let mut all: Vec<(String, Cursor<'_>)> = at.list(ADDRESSES_MAX).into_iter().filter_map(|at| Some((at.text()?, at))).collect();
            if all.len() != 1 && !at.refused() {
                at.error(format!("a single server has one address, not {}", all.len()), "name one HOST:PORT");
            }
            all.pop()
        });
        let tls = fields.get("tls").and_then(|at| at.flag()).unwrap_or_default();
        let username = fields.get("username").and_then(|at| Some((at.text()?, at)));
        let password = fields.get("authRef").and_then(|at| entry(&at));
        let key_prefix = fields.get("keyPrefix").and_then(|at| Some((at.text()?, at)));
        let timeout = fields.get("timeout").and_then(|at| Some((at.duration()?, at)));
        let whole = fields.at().clone();
        fields.done();
        let (address, address_at) = address?;
        let read = Self {
            address,
            tls,
            username: username.as_ref().map(|(text, _)| text.clone()).unwrap_or_default(),
            password,
            key_prefix: key_prefix.as_ref().map_or_else(|| KEY_PREFIX.to_owned(), |(text, _)| text.clone()),
            timeout: timeout.as_ref().map_or(TIMEOUT, |(time, _)| *time),
        };
        // The proxy's own judgement.
        if let Err((field, why)) = read.place("password") {
            let (at, remedy) = match field {
                "address" => (Some(address_at), "use for example redis.shop:6379".to_owned()),
                "username" => (username.map(|(_, at)| at), "name an ACL user of at most 256 bytes, and its password with authRef".to_owned()),
                "key_prefix" => (key_prefix.map(|(_, at)| at), format!("use at most {KEY_PREFIX_BYTES_MAX} visible ASCII characters")),
                _ => (timeout.map(|(_, at)| at), format!("use a time above zero and up to {} ms", STORE_TIMEOUT_MAX.as_millis())),
            };
            at.unwrap_or(whole).error(format!("it {why}"), remedy);
            return None;
        }
        Some(read)
    }

    fn place(&self, password: &str) -> Result<RedisPlace, (&'static str, &'static str)> {
        let password = if self.password.is_some() { password } else { "" };
        RedisPlace::new((&self.address, self.tls), (&self.username, password), &self.key_prefix, self.timeout)
    }
}
