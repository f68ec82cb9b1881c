//! One delta ADS stream as a pure state machine (`xds.md` section 1.4, and the epoch barrier of the contract, section 4).
//!
//! Requests go in by [`Session::request`], what the client should have by [`Session::show`], and whenever the transport has room,
//! [`Session::next_response`] says what to send: the difference between what should be and what the client holds *now*. So there is never a
//! queue: a client that reads slowly costs one response and skips the states between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use prost::Name;
use proto::mesh::{Authentication, Authorization, Consumers, DnsRecord, Egress, Epoch, ProxyConfig, Trust};
use proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use proto::{epoch, names, xds};

use crate::translate::Encoded;

/// A response is cut before it grows beyond this; stock gRPC refuses 4 MiB.
pub const RESPONSE_BYTES_MAX: usize = 3 << 20;
/// Most names one stream may subscribe, per type.
pub const NAMES_MAX: usize = 20_000;
/// Longest name.
pub const NAME_BYTES_MAX: usize = 1024;
/// Most versions that a client may say at first that it has, per type.
pub const HELD_MAX: usize = 100_000;
/// Most `Epoch`s sent and not yet answered that are remembered.
const BARRIERS_MAX: usize = 64;

/// What a client should have: type URL, then name.
pub type Content = BTreeMap<&'static str, BTreeMap<String, Arc<Encoded>>>;

/// Other versions of resources that are there: type URL, name and resource.
pub type Patch = Vec<(&'static str, String, Arc<Encoded>)>;

/// Type URL and name of what there is and cannot be sent.
pub type Withheld = BTreeSet<(&'static str, String)>;

/// The types that a listener or table leads to. Where an older one stays in place of one that cannot be sent, what it leads to stays,
/// too: the content only has what the new one needs.
pub fn leads_to(url: &str) -> &'static [&'static str] {
    match url {
        xds::LISTENER => &[xds::ROUTE, xds::CLUSTER, xds::ENDPOINT],
        xds::ROUTE => &[xds::CLUSTER, xds::ENDPOINT],
        _ => &[],
    }
}

/// The types we serve, in the order in which they are added: what is referred to comes before what refers to it
/// (`xds.md` section 1.5). Removals go the other way round, after all additions.
pub fn types() -> [String; 12] {
    [
        xds::SECRET.to_owned(),
        Trust::type_url(),
        ProxyConfig::type_url(),
        Egress::type_url(),
        Authentication::type_url(),
        Authorization::type_url(),
        Consumers::type_url(),
        xds::CLUSTER.to_owned(),
        xds::ENDPOINT.to_owned(),
        xds::LISTENER.to_owned(),
        xds::ROUTE.to_owned(),
        DnsRecord::type_url(),
    ]
}

/// What a request meant, beside its subscriptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meaning {
    /// The names wanted by name changed: the content has to be computed anew and shown.
    pub wants_changed: bool,
    /// The client runs this epoch.
    pub acknowledged: Option<u64>,
    /// The client runs this epoch without what it refused, and says what.
    pub refused: Option<(u64, String)>,
    /// A response of some type was refused in part or whole; the barrier decides about the epoch.
    pub rejected: Option<String>,
    /// A type we do not serve; said once per stream and type.
    pub unknown_type: Option<String>,
}

/// A request beyond a bound; the stream has to end with `RESOURCE_EXHAUSTED`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// See [`NAMES_MAX`].
    #[error("more than {NAMES_MAX} names subscribed of {0}")]
    Names(String),
    /// See [`NAME_BYTES_MAX`]; versions have the same bound.
    #[error("a resource name or version of more than {NAME_BYTES_MAX} bytes")]
    Name,
    /// See [`HELD_MAX`].
    #[error("more than {HELD_MAX} versions held of {0}")]
    Held(String),
}

/// State of one type on the stream.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Name to version: what was sent and not removed, accepted or not.
    held: BTreeMap<String, String>,
    /// Names that must be answered although the client holds their version.
    owed: BTreeSet<String>,
    /// Something may differ from `held`.
    dirty: bool,
    nonce: u64,
}

impl Subscription {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

/// An `Epoch` on its way.
#[derive(Debug)]
struct Barrier {
    nonce: u64,
    number: u64,
}

/// The server's side of one delta stream.
#[derive(Debug, Default)]
pub struct Session {
    order: Vec<&'static str>,
    types: BTreeMap<String, Subscription>,
    unknown: BTreeSet<String>,
    content: Content,
    /// What there is and cannot be sent: nothing is said of it.
    withheld: Withheld,
    number: u64,
    shown: bool,
    nonce: u64,
    barriers: VecDeque<Barrier>,
    /// Digest of the last `Epoch` sent.
    digest: Option<Vec<u8>>,
    /// Nothing that it covers has been sent, removed or given up since.
    digest_holds: bool,
    /// An `Epoch` must follow even if the digest stays.
    owes_epoch: bool,
    /// The client asks for every type at its start.
    whole: bool,
    /// Nonce of the newest endpoints that were sent and are not answered. They are no part of an epoch.
    endpoints: Option<u64>,
}

impl Session {
    /// A stream on which nothing was said yet.
    pub fn new() -> Self {
        Self { order: type_urls().to_vec(), ..Self::default() }
    }

    /// The client asks for every type at its start, as our proxies do. Before the last request has come it is not known what its names
    /// imply, so nothing that it holds is taken back: the next request may give it again, and to a client that asks for it just then the
    /// removal would read as a denial.
    pub fn asks_for_all(&mut self) {
        self.whole = true;
    }

    /// Names subscribed by name, all types together: what [`crate::translate::view`] needs beside the audience.
    pub fn wants(&self) -> BTreeSet<String> {
        self.types.iter().filter(|(url, _)| !is_epoch(url)).flat_map(|(_, subscription)| subscription.names.iter().cloned()).collect()
    }

    /// Takes in one request: its subscriptions, and its ACK or NACK. The two are independent; a stale nonce cancels neither.
    ///
    /// # Errors
    /// [`TooMuch`]; the session must not be used any more.
    pub fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Meaning, TooMuch> {
        let mut heard = Meaning::default();
        let url = request.type_url.clone();
        if !is_epoch(&url) && !self.order.contains(&url.as_str()) {
            if self.unknown.len() < BARRIERS_MAX && self.unknown.insert(url.clone()) {
                heard.unknown_type = Some(url);
            }
            return Ok(heard);
        }
        self.answer(&request, &mut heard);
        self.subscribe(request, &mut heard)?;
        Ok(heard)
    }

    fn answer(&mut self, request: &DeltaDiscoveryRequest, heard: &mut Meaning) {
        if request.response_nonce.is_empty() {
            return;
        }
        let refusal = request.error_detail.as_ref().map(|status| status.message.clone());
        if is_epoch(&request.type_url) {
            let Some(at) = self.barriers.iter().position(|barrier| barrier.nonce.to_string() == request.response_nonce) else {
                return;
            };
            let number = self.barriers[at].number;
            self.barriers.drain(..=at);
            match refusal {
                Some(message) => heard.refused = Some((number, message)),
                None => heard.acknowledged = Some(number),
            }
        } else {
            heard.rejected = refusal;
            if request.type_url == xds::ENDPOINT && self.endpoints.is_some_and(|nonce| nonce.to_string() == request.response_nonce) {
                self.endpoints = None;
            }
        }
    }

    fn subscribe(&mut self, request: DeltaDiscoveryRequest, heard: &mut Meaning) -> Result<(), TooMuch> {
        let first = !self.types.contains_key(&request.type_url);
        // An acknowledgement alone changes nothing that is held.
        self.digest_holds &= !first && request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
        let subscription = self.types.entry(request.type_url.clone()).or_default();
        let (added, dropped) = (request.resource_names_subscribe, request.resource_names_unsubscribe);
        if first {
            let held = request.initial_resource_versions;
            if held.len() > HELD_MAX {
                return Err(TooMuch::Held(request.type_url));
            }
            if held.iter().any(|(name, version)| name.len().max(version.len()) > NAME_BYTES_MAX) {
                return Err(TooMuch::Name);
            }
            subscription.held = held;
            subscription.wildcard = added.is_empty() && dropped.is_empty();
            subscription.dirty = true;
            self.owes_epoch = true;
        }
        for name in added {
            if name.len() > NAME_BYTES_MAX {
                return Err(TooMuch::Name);
            }
            subscription.dirty = true;
            self.owes_epoch = true;
            if name == "*" {
                subscription.wildcard = true;
                continue;
            }
            // In the first request the versions say what the client has; later a name asked for again may have been dropped.
            if !(first && subscription.held.contains_key(&name)) {
                subscription.owed.insert(name.clone());
            }
            heard.wants_changed |= subscription.names.insert(name);
            if subscription.names.len() > NAMES_MAX {
                return Err(TooMuch::Names(request.type_url));
            }
        }
        for name in dropped {
            subscription.dirty = true;
            if name == "*" {
                subscription.wildcard = false;
                let names = &subscription.names;
                subscription.held.retain(|held, _| names.contains(held));
            } else if subscription.names.remove(&name) {
                heard.wants_changed = true;
                if subscription.wildcard {
                    subscription.owed.insert(name);
                } else {
                    subscription.held.remove(&name);
                    subscription.owed.remove(&name);
                }
            } else if subscription.wildcard && subscription.held.contains_key(&name) {
                subscription.owed.insert(name);
            }
        }
        Ok(())
    }

    /// Says what there is and cannot be sent: a client that holds some version of it keeps it, and all that this may lead to.
    pub fn withhold(&mut self, withheld: Withheld) {
        for (url, _) in self.withheld.symmetric_difference(&withheld) {
            for url in leads_to(url).iter().chain([url]) {
                if let Some(subscription) = self.types.get_mut(*url) {
                    subscription.dirty = true;
                }
            }
        }
        self.withheld = withheld;
    }

    /// Says what the client should have from now on, and as which epoch. Returns whether this epoch concerns it: whether anything
    /// that an epoch covers differs from what was shown before, or an earlier epoch is not answered yet.
    pub fn show(&mut self, content: Content, number: u64) -> bool {
        let changed = !self.shown || differs(&self.content, &content);
        for (url, subscription) in &mut self.types {
            if !same(self.content.get(url.as_str()), content.get(url.as_str())) {
                subscription.dirty = true;
            }
        }
        self.content = content;
        self.shown = true;
        self.begin(number, changed)
    }

    /// The same, where nothing but versions of these resources differs from what was shown last.
    pub fn patch(&mut self, patch: Patch, number: u64) -> bool {
        let mut changed = false;
        for (url, name, item) in patch {
            let Some(held) = self.content.get_mut(url).and_then(|items| items.get_mut(&name)) else { continue };
            if held.version != item.version {
                changed |= epoch::awaited(url);
                if let Some(subscription) = self.types.get_mut(url) {
                    subscription.dirty = true;
                }
            }
            *held = item;
        }
        self.begin(number, changed)
    }

    /// As which epoch the content counts from now on; whether that concerns the client.
    fn begin(&mut self, number: u64, changed: bool) -> bool {
        let concerned = number > self.number && (changed || self.owes_epoch || !self.barriers.is_empty());
        self.owes_epoch |= concerned;
        self.number = number;
        concerned
    }

    /// What was shown last.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Nothing is owed, and everything sent that an epoch covers is answered: what changes nothing for this client needs no word of it.
    pub fn at_rest(&self) -> bool {
        self.shown && !self.owes_epoch && self.barriers.is_empty()
    }

    /// The client has answered all endpoints that it should have.
    pub fn endpoints_taken(&self) -> bool {
        self.shown && self.endpoints.is_none() && !self.types.get(xds::ENDPOINT).is_some_and(|subscription| subscription.dirty)
    }

    /// There is certainly nothing to send, which is cheaper to know than by [`Self::next_response`].
    pub fn is_settled(&self) -> bool {
        // The barrier's own subscription is none of those that have anything to add.
        let owes = |url: &&str| self.types.get(*url).is_some_and(|subscription| subscription.dirty);
        self.at_rest() && self.digest_holds && !self.order.iter().any(owes)
    }

    /// What to send next, if anything: additions, then removals, then the barrier. The result counts as sent.
    pub fn next_response(&mut self) -> Option<DeltaDiscoveryResponse> {
        if !self.shown {
            return None;
        }
        for index in 0..self.order.len() {
            if let Some(response) = self.additions(self.order[index]) {
                return Some(response);
            }
        }
        if self.whole && !self.has_asked_for_all() {
            return None;
        }
        for index in (0..self.order.len()).rev() {
            if let Some(response) = self.removals(self.order[index]) {
                return Some(response);
            }
        }
        self.barrier()
    }

    fn additions(&mut self, url: &'static str) -> Option<DeltaDiscoveryResponse> {
        let subscription = self.types.get_mut(url).filter(|subscription| subscription.dirty)?;
        let mut resources = Vec::new();
        let (mut bytes, mut cut) = (0, false);
        let content = self.content.get(url);
        for (name, item) in content.into_iter().flatten() {
            let fresh = subscription.held.get(name) != Some(&item.version);
            if !subscription.covers(name) || !(fresh || subscription.owed.contains(name)) {
                continue;
            }
            let size = item.any.value.len() + name.len() + 128;
            if bytes + size > RESPONSE_BYTES_MAX && !resources.is_empty() {
                cut = true;
                break;
            }
            bytes += size;
            subscription.owed.remove(name);
            subscription.held.insert(name.clone(), item.version.clone());
            resources.push(resource(name, &item.version, item.any.clone()));
        }
        if resources.is_empty() {
            return None;
        }
        // All of it is held now: where that is all that is held, nothing is to be taken back.
        let same = subscription.held.len() == content.map_or(0, BTreeMap::len);
        subscription.dirty = cut || !(subscription.wildcard && same && subscription.owed.is_empty());
        if url == xds::CLUSTER {
            self.owe_endpoints(&resources);
        }
        Some(self.response(url, resources, Vec::new()))
    }

    /// A cluster that is sent again warms again, and some clients wait for endpoints they do not ask for a second time.
    fn owe_endpoints(&mut self, clusters: &[Resource]) {
        if let Some(endpoints) = self.types.get_mut(xds::ENDPOINT) {
            for cluster in clusters.iter().filter(|cluster| endpoints.wildcard || endpoints.names.contains(&cluster.name)) {
                if self.content.get(xds::ENDPOINT).is_some_and(|known| known.contains_key(&cluster.name)) {
                    endpoints.owed.insert(cluster.name.clone());
                    endpoints.dirty = true;
                }
            }
        }
    }

    /// What is held and gone, and what was asked for and is not there. Everything to add has been added by now.
    fn removals(&mut self, url: &'static str) -> Option<DeltaDiscoveryResponse> {
        let subscription = self.types.get_mut(url).filter(|subscription| subscription.dirty)?;
        subscription.dirty = false;
        let content = self.content.get(url);
        let absent = |name: &&String| !content.is_some_and(|content| content.contains_key(*name));
        let led_to = self.withheld.iter().any(|(from, _)| leads_to(from).contains(&url));
        let kept = |name: &&String| subscription.held.contains_key(*name) && (led_to || self.withheld.contains(&(url, (*name).clone())));
        let owed = subscription.owed.iter().filter(absent);
        let held = subscription.held.keys().filter(|name| subscription.covers(name)).filter(absent);
        let gone: BTreeSet<String> = held.chain(owed).filter(|name| !kept(name)).cloned().collect();
        subscription.owed.clear();
        if gone.is_empty() {
            return None;
        }
        subscription.held.retain(|name, _| !gone.contains(name));
        Some(self.response(url, Vec::new(), gone.into_iter().collect()))
    }

    fn has_asked_for_all(&self) -> bool {
        self.types.contains_key(&Epoch::type_url()) && self.order.iter().all(|url| !epoch::counts(url) || self.types.contains_key(*url))
    }

    fn barrier(&mut self) -> Option<DeltaDiscoveryResponse> {
        let url = Epoch::type_url();
        // Before the last type has been asked for, no digest can fit.
        if !self.has_asked_for_all() {
            return None;
        }
        if self.digest_holds && !self.owes_epoch {
            return None;
        }
        let known = self.digest.clone().filter(|_| self.digest_holds);
        let digest = known.unwrap_or_else(|| self.held_digest());
        self.digest_holds = true;
        if !self.owes_epoch && self.digest.as_ref() == Some(&digest) {
            return None;
        }
        self.owes_epoch = false;
        self.digest = Some(digest.clone());
        let any = xds::pack(&Epoch { number: self.number, digest: digest.into() });
        let version = epoch::version(&any.value);
        let response = self.response(&url, vec![resource(names::EPOCH, &version, any)], Vec::new());
        self.barriers.push_back(Barrier { nonce: self.nonce, number: self.number });
        if self.barriers.len() > BARRIERS_MAX {
            self.barriers.pop_front();
        }
        Some(response)
    }

    /// The digest of what the client holds, as far as an epoch covers it.
    pub fn held_digest(&self) -> Vec<u8> {
        epoch::digest(self.types.iter().flat_map(|(url, subscription)| {
            subscription.held.iter().map(move |(name, version)| (url.as_str(), name.as_str(), version.as_str()))
        }))
    }

    /// How many resources the client holds.
    pub fn held_count(&self) -> usize {
        self.types.values().map(|subscription| subscription.held.len()).sum()
    }

    fn response(&mut self, url: &str, resources: Vec<Resource>, removed_resources: Vec<String>) -> DeltaDiscoveryResponse {
        self.nonce += 1;
        self.digest_holds &= !epoch::counts(url);
        if url == xds::ENDPOINT {
            self.endpoints = Some(self.nonce);
        }
        if let Some(subscription) = self.types.get_mut(url) {
            subscription.nonce = self.nonce;
        }
        DeltaDiscoveryResponse {
            system_version_info: self.number.to_string(),
            resources,
            type_url: url.to_owned(),
            removed_resources,
            nonce: self.nonce.to_string(),
            control_plane: None,
        }
    }
}

fn resource(name: &str, version: &str, any: prost_types::Any) -> Resource {
    Resource { name: name.to_owned(), version: version.to_owned(), resource: Some(any), ..Resource::default() }
}

fn is_epoch(url: &str) -> bool {
    url.strip_prefix("type.googleapis.com/").is_some_and(|name| name == Epoch::full_name())
}

/// [`types`] as static text: interned once.
pub fn type_urls() -> &'static [&'static str; 12] {
    static URLS: std::sync::OnceLock<[&'static str; 12]> = std::sync::OnceLock::new();
    URLS.get_or_init(|| types().map(|url| &*url.leak()))
}

/// Whether two contents differ in what somebody waits for.
fn differs(a: &Content, b: &Content) -> bool {
    type_urls().iter().filter(|url| epoch::awaited(url)).any(|url| !same(a.get(url), b.get(url)))
}

/// Whether two sets of resources have the same names and versions.
fn same(a: Option<&BTreeMap<String, Arc<Encoded>>>, b: Option<&BTreeMap<String, Arc<Encoded>>>) -> bool {
    let count = |items: Option<&BTreeMap<String, Arc<Encoded>>>| items.map_or(0, BTreeMap::len);
    let mut pairs = a.into_iter().flatten().zip(b.into_iter().flatten());
    count(a) == count(b)
        && pairs.all(|((name, item), (other, now))| name == other && (Arc::ptr_eq(item, now) || item.version == now.version))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
