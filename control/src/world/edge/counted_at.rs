//! `store` of a RateLimit: who keeps what is counted together.

use std::time::Duration;

use engine::filter::guard::{DESCRIPTOR_BYTES_MAX, DESCRIPTOR_ENTRIES_MAX, DESCRIPTORS_MAX};
use engine::limit::{KEY_PREFIX_BYTES_MAX, RedisMode, RedisPlace, STORE_ADDRESSES_MAX, STORE_TIMEOUT_MAX};
use proto::mesh::{DescriptorEntry, EdgeKey, LimitDescriptor, descriptor_entry, edge_key};

use super::Cursor;
use super::consumer::entry;
use crate::world::content::ContentRef;
use crate::world::door::Fields;
use crate::world::route::Reference;

/// What names of keys begin with where nobody says so.
const KEY_PREFIX: &str = "meshwright:";
/// How long a request waits for a store where nobody says so.
const TIMEOUT: Duration = Duration::from_millis(50);
/// What proxies take ahead where nobody says so, per cent.
const AHEAD_PERCENT: u32 = 1;

/// Headers whose values are nobody's to know.
const SECRET_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Who counts, and how much of it proxies take ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedAt {
    /// Per cent of a whole limit.
    pub ahead_percent: u32,
    /// A server elsewhere, or a service; neither: the control plane.
    pub redis: Option<RedisServer>,
    /// See above.
    pub rls: Option<RateService>,
}

/// A rate-limit service, which has the numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct RateService {
    /// The Service, and its port.
    pub to: Reference,
    /// Whose limits it is asked for.
    pub domain: String,
    /// How long a request waits.
    pub timeout: Duration,
    /// What it is asked about.
    pub descriptors: Vec<LimitDescriptor>,
}

/// A server of the Redis protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisServer {
    /// HOST:PORT.
    pub addresses: Vec<String>,
    /// What they are.
    pub mode: RedisMode,
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
        Self { ahead_percent: AHEAD_PERCENT, redis: None, rls: None }
    }
}

impl CountedAt {
    /// `part` reads a part of a key.
    pub(super) fn read(at: &Cursor<'_>, part: ReadPart<'_>) -> Self {
        let mut fields = at.fields();
        let (leases, redis, rls) = (fields.get("leases"), fields.get("redis"), fields.get("rls"));
        fields.done();
        if [&leases, &redis, &rls].into_iter().flatten().count() > 1 {
            at.error("one store counts, not two", "write one of `leases`, `redis` and `rls`");
            return Self::default();
        }
        let mut read = Self::default();
        if let Some(at) = leases {
            let mut leases = at.fields();
            read.ahead_percent = ahead(&mut leases);
            leases.done();
        } else if let Some(at) = redis {
            let mut redis = at.fields();
            read.ahead_percent = ahead(&mut redis);
            read.redis = RedisServer::read(redis);
        } else if let Some(at) = rls {
            read.rls = RateService::read(&at, part);
        }
        read
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

/// Reads a part of a key.
type ReadPart<'r> = &'r dyn Fn(&Cursor<'_>) -> Option<EdgeKey>;

impl RateService {
    fn read(at: &Cursor<'_>, part: ReadPart<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let backend = fields.need("backendRef").and_then(|at| backend(&at));
        let domain = fields.need("domain").and_then(|at| short(&at));
        let timeout = fields.get("timeout").map_or(Some(TIMEOUT), |at| {
            let time = at.duration()?;
            if time.is_zero() || time > STORE_TIMEOUT_MAX {
                at.error("no such wait", format!("use a time above zero and up to {} ms", STORE_TIMEOUT_MAX.as_millis()));
                return None;
            }
            Some(time)
        });
        let listed = fields.need("descriptors").map(|at| (at.list(DESCRIPTORS_MAX), at));
        fields.done();
        let (listed, descriptors_at) = listed?;
        if listed.is_empty() {
            descriptors_at.error("a service that is asked about nothing limits nothing", "write a descriptor");
        }
        let descriptors: Option<Vec<LimitDescriptor>> =
            listed.iter().map(|at| descriptor(at, part)).collect::<Vec<_>>().into_iter().collect();
        Some(Self { to: backend?, domain: domain?, timeout: timeout?, descriptors: descriptors? })
    }

    /// What it is called by. `own`: the object's namespace.
    pub fn address(&self, own: &str) -> String {
        format!("{}.{}:{}", self.to.name, self.to.namespace.as_deref().unwrap_or(own), self.to.port.unwrap_or_default())
    }
}

/// `{name, namespace, port}` of a Service.
fn backend(at: &Cursor<'_>) -> Option<Reference> {
    let mut fields = at.fields();
    let read = Reference::read(&mut fields);
    fields.done();
    let read = read?;
    if !read.group.is_empty() || read.kind != "Service" {
        at.error("a rate-limit service is a Service", "remove `group` and `kind`");
        return None;
    }
    read.port.is_some().then_some(read)
}

fn descriptor(at: &Cursor<'_>, part: ReadPart<'_>) -> Option<LimitDescriptor> {
    let mut fields = at.fields();
    let listed = fields.need("entries").map(|at| at.list(DESCRIPTOR_ENTRIES_MAX)).unwrap_or_default();
    fields.done();
    if listed.is_empty() && !at.refused() {
        at.error("a descriptor has an entry at least", "write for example `{key: user, from: {consumer: {}}}`");
    }
    let entries: Option<Vec<DescriptorEntry>> = listed.iter().map(|at| described(at, part)).collect::<Vec<_>>().into_iter().collect();
    Some(LimitDescriptor { entries: entries? })
}

/// `{key, value}` or `{key, from}`.
fn described(at: &Cursor<'_>, part: ReadPart<'_>) -> Option<DescriptorEntry> {
    let mut fields = at.fields();
    let key = fields.need("key").and_then(|at| short(&at));
    let (value, from) = (fields.get("value"), fields.get("from"));
    fields.done();
    let value = match (value, from) {
        (Some(at), None) => short(&at).map(descriptor_entry::Value::Literal),
        (None, Some(at)) => {
            let read = part(&at)?;
            if let Some(edge_key::Kind::Header(name)) = &read.kind
                && SECRET_HEADERS.contains(&name.as_str())
            {
                at.error(format!("`{name}` holds credentials, which a service would be told"), "use for example consumer");
                return None;
            }
            Some(descriptor_entry::Value::Part(read))
        }
        _ => {
            at.error("an entry has either `value` or `from`", "write for example `{key: user, from: {consumer: {}}}`");
            None
        }
    };
    Some(DescriptorEntry { key: key?, value: Some(value?) })
}

fn short(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.is_empty() || text.len() > DESCRIPTOR_BYTES_MAX {
        at.error(format!("{} bytes", text.len()), format!("use 1 to {DESCRIPTOR_BYTES_MAX}"));
        return None;
    }
    Some(text)
}

impl RedisServer {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mode = fields.get("mode").and_then(|at| at.word(&[("Single", "Single"), ("Sentinel", "Sentinel"), ("Cluster", "Cluster")]));
        let master = fields.get("master").and_then(|at| Some((at.text()?, at)));
        let named = || master.as_ref().map_or("", |(name, _)| name);
        let mode = match mode {
            Some("Sentinel") => RedisMode::Sentinel(named().into()),
            Some("Cluster") => RedisMode::Cluster,
            _ => RedisMode::Single,
        };
        if let Some((name, at)) = &master
            && (name.is_empty() || !matches!(mode, RedisMode::Sentinel(_)))
        {
            at.error("it is a name by which sentinels know a server", "remove it, or write `mode: Sentinel` and the name");
        }
        let listed = fields.need("addresses");
        let tls = fields.get("tls").and_then(|at| at.flag()).unwrap_or_default();
        let username = fields.get("username").and_then(|at| {
            let text = at.text()?;
            if text.is_empty() {
                at.error("nobody has no name", "leave it out for the server's default user");
            }
            Some((text, at))
        });
        let password = fields.get("authRef").and_then(|at| entry(&at));
        let key_prefix = fields.get("keyPrefix").and_then(|at| Some((at.text()?, at)));
        let timeout = fields.get("timeout").and_then(|at| Some((at.duration()?, at)));
        let whole = fields.at().clone();
        fields.done();
        let listed = listed?;
        let addresses: Vec<String> = listed.list(STORE_ADDRESSES_MAX).iter().filter_map(Cursor::text).collect();
        if listed.refused() {
            return None;
        }
        let read = Self {
            addresses,
            mode,
            tls,
            username: username.as_ref().map(|(text, _)| text.clone()).unwrap_or_default(),
            password,
            key_prefix: key_prefix.as_ref().map_or_else(|| KEY_PREFIX.to_owned(), |(text, _)| text.clone()),
            timeout: timeout.as_ref().map_or(TIMEOUT, |(time, _)| *time),
        };
        // The proxy's own judgement.
        if let Err((field, why)) = read.place("password") {
            let (at, remedy) = match field {
                "address" => (Some(listed), "use for example redis.shop:6379, and one address of a single server".to_owned()),
                "master" => (master.map(|(_, at)| at), "use the name that `SENTINEL MASTERS` shows".to_owned()),
                "username" => {
                    (username.map(|(_, at)| at), "name an ACL user of at most 256 bytes, and its password with authRef".to_owned())
                }
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
        let read = RedisPlace::new((self.address(), self.tls), (&self.username, password), &self.key_prefix, self.timeout)?;
        read.of(self.mode.clone(), &self.addresses)
    }

    /// The first address, by which the store is known.
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }
}
