//! Stores that are not the control plane: a server of the Redis protocol that several proxies count at, a rate-limit service that decides.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::uri::Authority;

use super::live::StoreLive;
use super::rests::ServiceRests;
use crate::callout::{CalloutKind, CalloutLive};
use crate::raw::is_host;

/// Most stores that a proxy speaks with, each with one connection; one beyond is away.
pub const STORES_MAX: usize = 256;
/// Most of them that objects of one namespace name: nobody takes the others' places.
pub const NAMESPACE_STORES_MAX: usize = 16;
/// Longest wait of a request for a store.
pub const STORE_TIMEOUT_MAX: Duration = Duration::from_secs(1);
/// Longest beginning of the names of keys, in bytes.
pub const KEY_PREFIX_BYTES_MAX: usize = 64;
/// Longest name of a user.
const USER_BYTES_MAX: usize = 256;

/// Most addresses of one place.
pub const STORE_ADDRESSES_MAX: usize = 16;
/// Longest name by which sentinels know a server.
const MASTER_BYTES_MAX: usize = 256;

/// What the addresses of a place are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RedisMode {
    /// The server.
    #[default]
    Single,
    /// Sentinels, which say which server is written to. By what name they know it; empty: they know one.
    Sentinel(Box<str>),
    /// Some servers of a cluster, each of which knows who has which keys.
    Cluster,
}

/// Where a server is and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisPlace {
    /// HOST:PORT, in lower case; one where the mode is single.
    pub addresses: Vec<Box<str>>,
    /// What they are.
    pub mode: RedisMode,
    /// It proves itself by the name, or the address, by which it is called.
    pub tls: bool,
    /// As whom; empty: the server's default user.
    pub username: Box<str>,
    /// Which secret is the password; empty: there is none.
    pub password: Box<str>,
    /// What names of keys begin with.
    pub key_prefix: Box<str>,
    /// How long a request waits for it.
    pub timeout: Duration,
}

impl RedisPlace {
    /// Checks what was written.
    ///
    /// # Errors
    /// The field's name, and what is wrong with it.
    pub fn new(
        (address, tls): (&str, bool),
        (username, password): (&str, &str),
        key_prefix: &str,
        timeout: Duration,
    ) -> Result<Self, (&'static str, &'static str)> {
        let addresses = vec![read_address(address)?];
        if username.len() > USER_BYTES_MAX || username.chars().any(char::is_control) {
            return Err(("username", "is longer than 256 bytes, or holds control characters"));
        }
        if !username.is_empty() && password.is_empty() {
            return Err(("username", "is nobody without a password"));
        }
        if key_prefix.len() > KEY_PREFIX_BYTES_MAX || !key_prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(("key_prefix", "is longer than 64 bytes, or holds more than visible ASCII"));
        }
        if timeout.is_zero() || timeout > STORE_TIMEOUT_MAX {
            return Err(("timeout", "is not above zero and up to 1s"));
        }
        let (mode, key_prefix) = (RedisMode::Single, key_prefix.into());
        Ok(Self { addresses, mode, tls, username: username.into(), password: password.into(), key_prefix, timeout })
    }

    /// The same, at these addresses, of that mode.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(self, mode: RedisMode, addresses: &[String]) -> Result<Self, (&'static str, &'static str)> {
        if addresses.is_empty() || addresses.len() > STORE_ADDRESSES_MAX {
            return Err(("address", "is missing, or one of more than 16"));
        }
        if mode == RedisMode::Single && addresses.len() > 1 {
            return Err(("address", "is one of several: a single server has one"));
        }
        if let RedisMode::Sentinel(master) = &mode
            && (master.len() > MASTER_BYTES_MAX || master.chars().any(|letter| letter.is_control() || letter.is_whitespace()))
        {
            return Err(("master", "is longer than 256 bytes, or holds control characters or spaces"));
        }
        let addresses = addresses.iter().map(|address| read_address(address)).collect::<Result<_, _>>()?;
        Ok(Self { addresses, mode, ..self })
    }

    /// The first address, by which the place is known.
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", |address| address)
    }
}

fn read_address(address: &str) -> Result<Box<str>, (&'static str, &'static str)> {
    let (host, port) = address.rsplit_once(':').ok_or(("address", "names no port: write HOST:PORT"))?;
    if port.starts_with('+') || port.parse().map_or(true, |port: u16| port == 0) {
        return Err(("address", "names no port: write HOST:PORT"));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if !is_host(bare.unwrap_or(host)) || bare.is_some() != host.contains(':') {
        return Err(("address", "names no host: write HOST:PORT, an IPv6 address in brackets"));
    }
    Ok(address.to_ascii_lowercase().into())
}

/// Where a rate-limit service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlace {
    /// HOST:PORT, in lower case, by which it is called.
    pub address: Authority,
    /// The cluster that it is behind.
    pub cluster: Box<str>,
    /// How long a request waits for it.
    pub timeout: Duration,
}

impl ServicePlace {
    /// Checks what was written.
    ///
    /// # Errors
    /// The field's name, and what is wrong with it.
    pub fn new(address: &str, cluster: &str, timeout: Duration) -> Result<Self, (&'static str, &'static str)> {
        let address = read_address(address)?;
        if cluster.is_empty() {
            return Err(("cluster", "is missing"));
        }
        if timeout.is_zero() || timeout > STORE_TIMEOUT_MAX {
            return Err(("timeout", "is not above zero and up to 1s"));
        }
        Ok(Self { address: address.parse().map_err(|_| ("address", "is no host"))?, cluster: cluster.into(), timeout })
    }
}

/// What a store is, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemotePlace {
    /// A server of the Redis protocol.
    Redis(Arc<RedisPlace>),
    /// A rate-limit service.
    Service(Arc<ServicePlace>),
}

impl RemotePlace {
    /// As metrics and reports name it.
    pub fn name(&self) -> String {
        match self {
            Self::Redis(place) => format!("redis/{}", place.address()),
            Self::Service(place) => format!("rls/{}", place.address),
        }
    }

    /// How long a request waits for it.
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Redis(place) => place.timeout,
            Self::Service(place) => place.timeout,
        }
    }
}

/// What goes wrong with a store.
#[derive(Debug, Default)]
pub struct StoreTrouble {
    failures: AtomicU64,
    /// Why it is away, and since when, seconds since 1970.
    away: Mutex<Option<(String, u64)>>,
    /// It is known why.
    told: AtomicBool,
}

impl StoreTrouble {
    /// It failed: a connection, or an exchange on one.
    pub fn failed(&self, why: &str, wall_secs: u64) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let since = away.as_ref().map_or(wall_secs, |(_, since)| *since);
        *away = Some((why.to_owned(), since));
        self.told.store(true, Ordering::Relaxed);
    }

    /// Whether there is something that may be over.
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// It answers.
    pub fn over(&self) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.told.store(false, Ordering::Relaxed);
    }

    /// How often it failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Why it is away, and since when, seconds since 1970.
    pub fn away(&self) -> Option<(String, u64)> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One store, shared by all objects of a namespace that name the same.
#[derive(Debug)]
pub struct RemoteStore {
    /// Where it is.
    pub place: RemotePlace,
    /// The namespace whose objects name it.
    by: Box<str>,
    /// Whether it answers.
    pub live: Arc<StoreLive>,
    /// Why it does not.
    pub trouble: Arc<StoreTrouble>,
    /// Of a service: when it is asked.
    pub rests: ServiceRests,
    /// Of a service: who asks it now.
    pub callout: Arc<CalloutLive>,
}

/// What metrics say of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreReading {
    /// See [`RemotePlace::name`].
    pub store: String,
    /// It does not answer now.
    pub away: bool,
    /// How often it failed.
    pub failures: u64,
}

/// Stores, for as long as an object names them.
#[derive(Debug, Default)]
pub(super) struct RemoteStores(Mutex<Vec<Weak<RemoteStore>>>);

impl RemoteStores {
    /// The store at that place, which an object of `namespace` names.
    pub(super) fn adopt(&self, place: RemotePlace, namespace: &str) -> Arc<RemoteStore> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|store| store.strong_count() > 0);
        if let Some(store) = held.iter().filter_map(Weak::upgrade).find(|store| store.place == place && *store.by == *namespace) {
            return store;
        }
        let callout = CalloutLive::new(CalloutKind::RateLimit, &place.name());
        let fresh = Arc::new(RemoteStore {
            place,
            by: namespace.into(),
            live: Arc::default(),
            trouble: Arc::default(),
            rests: ServiceRests::default(),
            callout,
        });
        if matches!(fresh.place, RemotePlace::Service(_)) {
            // There is no connection of its own that would have to be there first.
            fresh.live.is_here();
        }
        held.push(Arc::downgrade(&fresh));
        fresh
    }

    pub(super) fn all(&self) -> Vec<Arc<RemoteStore>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// Those that there is a place for, and those beyond the bounds. Who came first stays; a service has no connection of its own, and needs no place.
    pub(super) fn placed(&self) -> (Vec<Arc<RemoteStore>>, Vec<Arc<RemoteStore>>) {
        let (mut near, mut beyond) = (Vec::new(), Vec::new());
        let mut of: BTreeMap<Box<str>, usize> = BTreeMap::new();
        for store in self.all().into_iter().filter(|store| matches!(store.place, RemotePlace::Redis(_))) {
            let count = of.entry(store.by.clone()).or_default();
            if near.len() < STORES_MAX && *count < NAMESPACE_STORES_MAX {
                *count += 1;
                near.push(store);
            } else {
                beyond.push(store);
            }
        }
        (near, beyond)
    }
}
