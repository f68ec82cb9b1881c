//! `store` of a RateLimit: who keeps what is counted together.

use std::time::Duration;

use engine::filter::guard::{DESCRIPTOR_BYTES_MAX, DESCRIPTOR_ENTRIES_MAX, DESCRIPTORS_MAX};
use engine::limit::{KEY_PREFIX_BYTES_MAX, RedisPlace, STORE_TIMEOUT_MAX};
use proto::mesh::{DescriptorEntry, EdgeKey, LimitDescriptor, descriptor_entry, edge_key};

use super::Cursor;
use super::consumer::entry;
use crate::world::content::ContentRef;
use crate::world::door::Fields;
use crate::world::key::{Kind, ObjectKey};

/// What names of keys begin with where nobody says so.
const KEY_PREFIX: &str = "meshwright:";
/// How long a request waits for a store where nobody says so.
const TIMEOUT: Duration = Duration::from_millis(50);
/// What proxies take ahead where nobody says so, per cent.
const AHEAD_PERCENT: u32 = 1;
/// Most addresses; a single server has one.
const ADDRESSES_MAX: usize = 16;

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
    /// The Service.
    pub service: ObjectKey,
    /// Its port.
    pub port: u16,
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
        let (service, port) = backend?;
        Some(Self { service, port, domain: domain?, timeout: timeout?, descriptors: descriptors? })
    }

    /// As proxies find it.
    pub fn address(&self) -> String {
        format!("{}.{}:{}", self.service.name, self.service.namespace, self.port)
    }
}

/// `{name, namespace, port}` of a Service.
fn backend(at: &Cursor<'_>) -> Option<(ObjectKey, u16)> {
    let mut fields = at.fields();
    let name = fields.need("name").and_then(|at| at.text());
    let namespace = fields.get("namespace").map_or(Some(at.key().namespace.clone()), |at| at.text());
    let port = fields.need("port").and_then(|at| at.port());
    for (field, only) in [("group", ""), ("kind", "Service")] {
        if let Some(at) = fields.get(field)
            && at.text().is_some_and(|text| text != only)
        {
            at.error("a rate-limit service is a Service", "remove it");
        }
    }
    fields.done();
    Some((ObjectKey::new(Kind::Service, &namespace?, name?), port?))
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
        RedisPlace::new((&self.address, self.tls), (&self.username, password), &self.key_prefix, self.timeout)
    }
}
