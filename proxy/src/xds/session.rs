//! The delta protocol as the proxy speaks it (`envoy.service.discovery.v3`, with our `Epoch` as barrier). Pure: responses and wishes go
//! in, requests and effects come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engine::model::Snapshot;
use engine::model::build::{Parts, Rejected};
use prost::Name as _;
use proto::mesh::{Authentication, Authorization, Consumers, DnsRecord, Egress, Epoch, ProxyConfig, Trust};
use proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proto::xds::rpc;
use proto::{epoch, names, refusal, xds};
use tokio::time::Instant;

use crate::snapshots::{Want, WantedChange};

/// How long an epoch may wait for its resources before everything is asked for anew.
pub const FIT_WAIT: Duration = Duration::from_secs(15);
/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// What the task has to do, in order.
#[derive(Debug)]
pub enum Effect {
    /// Send this request.
    Send(Box<DeltaDiscoveryRequest>),
    /// Make this snapshot live.
    Publish(Arc<Snapshot>),
    /// Others may call from outside the mesh from now on, or others vouch for them: what stands open is to be looked at again.
    Consumers,
    /// Judge peers by these roots from now on: those of an older control plane, which sends no `Trust`.
    TrustBundle(Arc<Vec<Vec<u8>>>),
    /// The control plane said whether a name exists.
    Answered(Want, bool),
    /// Resources were refused: for the log and the metric.
    Refused(Vec<Rejected>),
    /// What is held and what was announced do not fit: end the stream and open another.
    StartOver,
}

/// One type's state.
#[derive(Debug, Default)]
struct TypeState {
    /// Name to version: what was sent and not removed, accepted or not.
    versions: BTreeMap<String, String>,
    /// Subscribed beside `*`.
    names: BTreeSet<String>,
    /// Unsubscribed, and not yet confirmed.
    leaving: BTreeSet<String>,
    /// Wanted again while leaving: subscribed when that is confirmed. Earlier, its removal would read as "there is no such thing".
    returning: BTreeSet<String>,
}

/// An `Epoch` that waits for its digest to fit.
#[derive(Debug)]
struct Barrier {
    number: u64,
    digest: Vec<u8>,
    nonce: String,
    since: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    node: xds::core::Node,
    parts: Parts,
    types: BTreeMap<String, TypeState>,
    refused: BTreeMap<(String, String), Rejected>,
    /// Staged from an earlier stream and not confirmed on this one.
    stale: BTreeSet<(String, String)>,
    barrier: Option<Barrier>,
    live: Arc<Snapshot>,
    trust_bundle: Arc<Vec<Vec<u8>>>,
}

/// The types of our stream, in the order of their first requests: parents before what they imply.
fn types() -> [String; 13] {
    [
        xds::CLUSTER.to_owned(),
        xds::LISTENER.to_owned(),
        ProxyConfig::type_url(),
        Egress::type_url(),
        Trust::type_url(),
        Authentication::type_url(),
        Authorization::type_url(),
        Consumers::type_url(),
        xds::SECRET.to_owned(),
        xds::ENDPOINT.to_owned(),
        xds::ROUTE.to_owned(),
        DnsRecord::type_url(),
        Epoch::type_url(),
    ]
}

impl Session {
    /// A session that has nothing yet.
    pub fn new(node: xds::core::Node) -> Self {
        Self {
            node,
            parts: Parts::default(),
            types: types().into_iter().map(|url| (url, TypeState::default())).collect(),
            refused: BTreeMap::new(),
            stale: BTreeSet::new(),
            barrier: None,
            live: Arc::default(),
            trust_bundle: Arc::default(),
        }
    }

    /// The first requests of a new stream: `*` and all wanted names, with the versions held, so that only differences are sent.
    pub fn open(&mut self, wants: &[Want]) -> Vec<DeltaDiscoveryRequest> {
        self.barrier = None;
        for held in self.types.values_mut() {
            held.names.clear();
            held.leaving.clear();
            held.returning.clear();
        }
        for want in wants {
            let (url, name) = want.resource();
            self.types.entry(url).or_default().names.insert(name);
        }
        let mut node = Some(self.node.clone());
        let request = |url: String| {
            let held = self.types.get(&url).unwrap_or(&NOTHING);
            DeltaDiscoveryRequest {
                node: node.take(),
                resource_names_subscribe: std::iter::once("*".to_owned()).chain(held.names.iter().cloned()).collect(),
                initial_resource_versions: held.versions.clone(),
                type_url: url,
                ..Default::default()
            }
        };
        types().into_iter().map(request).collect()
    }

    /// Forgets the versions held, so that the next stream sends everything; what is live stays live meanwhile.
    pub fn start_over(&mut self) {
        self.barrier = None;
        for (url, held) in &mut self.types {
            for name in std::mem::take(&mut held.versions).into_keys() {
                self.stale.insert((url.clone(), name));
            }
        }
    }

    /// Changed wishes become requests: what is wanted first, so that what came along with a name is never without a reason to stay; then
    /// what is not, names before the listeners behind them, so that a listener's end is said once and not by the name's as well.
    pub fn want(&mut self, change: WantedChange) -> Vec<DeltaDiscoveryRequest> {
        let (mut wanted, mut unwanted) = (BTreeMap::<String, Vec<String>>::new(), BTreeMap::<String, Vec<String>>::new());
        for want in change.unsubscribe {
            let (url, name) = want.resource();
            let held = self.types.entry(url.clone()).or_default();
            held.returning.remove(&name);
            if held.names.remove(&name) {
                held.leaving.insert(name.clone());
                unwanted.entry(url).or_default().push(name);
            }
        }
        for want in change.subscribe {
            let (url, name) = want.resource();
            let held = self.types.entry(url.clone()).or_default();
            if held.leaving.contains(&name) {
                held.returning.insert(name);
            } else if held.names.insert(name.clone()) {
                wanted.entry(url).or_default().push(name);
            }
        }
        let request = |type_url| DeltaDiscoveryRequest { type_url, ..Default::default() };
        let subscribe = |(url, resource_names_subscribe)| DeltaDiscoveryRequest { resource_names_subscribe, ..request(url) };
        let unsubscribe = |(url, resource_names_unsubscribe)| DeltaDiscoveryRequest { resource_names_unsubscribe, ..request(url) };
        let names = unwanted.remove_entry(&DnsRecord::type_url());
        wanted.into_iter().map(subscribe).chain(names.into_iter().chain(unwanted).map(unsubscribe)).collect()
    }

    /// Takes in one response. Every one is acknowledged or refused, except that an `Epoch` waits until its digest fits.
    pub fn on(&mut self, response: DeltaDiscoveryResponse, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        if response.type_url == Epoch::type_url() {
            self.announced(&response, now, &mut effects);
        } else {
            let refused = self.stage(&response, &mut effects);
            effects.push(Effect::Send(answer(&response.type_url, response.nonce, &refused)));
            if !refused.is_empty() {
                effects.push(Effect::Refused(refused));
            }
        }
        self.swap(&mut effects);
        effects
    }

    /// When [`Session::tick`] wants to be called.
    pub fn due(&self) -> Option<Instant> {
        self.barrier.as_ref().map(|barrier| barrier.since + FIT_WAIT)
    }

    /// An epoch whose resources did not come in time: one side has lost something.
    pub fn tick(&mut self, now: Instant) -> Vec<Effect> {
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.start_over();
        vec![Effect::StartOver]
    }

    /// The snapshot last published.
    pub fn live(&self) -> &Arc<Snapshot> {
        &self.live
    }

    fn stage(&mut self, response: &DeltaDiscoveryResponse, effects: &mut Vec<Effect>) -> Vec<Rejected> {
        let url = &response.type_url;
        let mut refused = Vec::new();
        let Some(held) = self.types.get_mut(url) else {
            let why = "resources of this type were not asked for".to_owned();
            return vec![Rejected { type_url: url.clone(), name: String::new(), field: String::new(), why }];
        };
        for resource in &response.resources {
            let key = (url.clone(), resource.name.clone());
            held.versions.insert(resource.name.clone(), resource.version.clone());
            effects.extend(held.left(url, &resource.name).1);
            self.stale.remove(&key);
            // A resource without a body is a heartbeat of the version we hold.
            let Some(body) = &resource.resource else { continue };
            match self.parts.put(url, &resource.name, &resource.version, body) {
                Ok(()) => drop(self.refused.remove(&key)),
                Err(rejected) => {
                    refused.push(rejected.clone());
                    self.refused.insert(key, rejected);
                }
            }
            effects.extend(Want::of(&resource.name).map(|want| Effect::Answered(want, true)));
        }
        for name in &response.removed_resources {
            let key = (url.clone(), name.clone());
            held.versions.remove(name);
            let (was_leaving, again) = held.left(url, name);
            self.stale.remove(&key);
            self.parts.remove(url, name);
            self.refused.remove(&key);
            // The end of an unsubscription says nothing about what exists, nor does that of what came along with another name.
            let denied = !was_leaving && held.names.contains(name);
            effects.extend(Want::of(name).filter(|_| denied).map(|want| Effect::Answered(want, false)));
            effects.extend(again);
        }
        // Who vouches for an edge's clients comes and goes by secrets.
        if self.parts.settle() || url == xds::SECRET {
            effects.push(Effect::Consumers);
        }
        let bundle = self.parts.trust_bundle();
        if *bundle != *self.trust_bundle && !bundle.is_empty() && self.parts.trust().is_none() {
            self.trust_bundle = Arc::clone(&bundle);
            effects.push(Effect::TrustBundle(bundle));
        }
        refused
    }

    fn announced(&mut self, response: &DeltaDiscoveryResponse, now: Instant, effects: &mut Vec<Effect>) {
        let held = self.types.entry(response.type_url.clone()).or_default();
        for resource in &response.resources {
            held.versions.insert(resource.name.clone(), resource.version.clone());
        }
        let body = response.resources.iter().find(|resource| resource.name == names::EPOCH).and_then(|resource| resource.resource.as_ref());
        match body.map(xds::unpack::<Epoch>) {
            // A later one takes the place of one that still waits; its ACK stands for both.
            Some(Ok(Epoch { number, digest })) => {
                // What does not fit stays so however many epochs follow: the wait began with the first.
                let since = self.barrier.take().map_or(now, |waits| waits.since);
                self.barrier = Some(Barrier { number, digest: digest.to_vec(), nonce: response.nonce.clone(), since });
            }
            Some(Err(error)) => {
                let rejected = Rejected {
                    type_url: response.type_url.clone(),
                    name: names::EPOCH.to_owned(),
                    field: String::new(),
                    why: error.to_string(),
                };
                effects.push(Effect::Send(answer(&response.type_url, response.nonce.clone(), &[rejected])));
            }
            None => effects.push(Effect::Send(answer(&response.type_url, response.nonce.clone(), &[]))),
        }
    }

    /// Swaps if the waiting epoch's digest fits what is held.
    fn swap(&mut self, effects: &mut Vec<Effect>) {
        let Some(barrier) = &self.barrier else { return };
        if self.digest(false) != barrier.digest {
            // The server may count what we left as gone before it says so.
            if self.digest(true) != barrier.digest {
                return;
            }
            for (url, held) in &mut self.types {
                for name in held.leaving.clone() {
                    effects.extend(held.left(url, &name).1);
                    held.versions.remove(&name);
                    self.parts.remove(url, &name);
                    self.refused.remove(&(url.clone(), name));
                }
            }
        }
        let Some(Barrier { number, nonce, .. }) = self.barrier.take() else { return };
        for (url, name) in std::mem::take(&mut self.stale) {
            self.parts.remove(&url, &name);
            self.refused.remove(&(url, name));
        }
        self.live = Arc::new(self.parts.assemble(number, &self.live));
        effects.push(Effect::Publish(Arc::clone(&self.live)));
        let refused: Vec<Rejected> = self.refused.values().cloned().collect();
        effects.push(Effect::Send(answer(&Epoch::type_url(), nonce, &refused)));
    }

    fn digest(&self, without_leaving: bool) -> Vec<u8> {
        epoch::digest(self.types.iter().flat_map(|(url, held)| {
            let counted = held.versions.iter().filter(move |(name, _)| !(without_leaving && held.leaving.contains(*name)));
            counted.map(move |(name, version)| (url.as_str(), name.as_str(), version.as_str()))
        }))
    }
}

static NOTHING: TypeState =
    TypeState { versions: BTreeMap::new(), names: BTreeSet::new(), leaving: BTreeSet::new(), returning: BTreeSet::new() };

impl TypeState {
    /// The server has heard of an unsubscription. Returns whether there was one, and the request for a name that is wanted again.
    fn left(&mut self, url: &str, name: &str) -> (bool, Option<Effect>) {
        let was_leaving = self.leaving.remove(name);
        let again = self.returning.remove(name).then(|| {
            self.names.insert(name.to_owned());
            Effect::Send(Box::new(DeltaDiscoveryRequest {
                type_url: url.to_owned(),
                resource_names_subscribe: vec![name.to_owned()],
                ..Default::default()
            }))
        });
        (was_leaving, again)
    }
}

/// An ACK, or a NACK that names everything refused.
fn answer(type_url: &str, nonce: String, refused: &[Rejected]) -> Box<DeltaDiscoveryRequest> {
    let error_detail = (!refused.is_empty()).then(|| {
        let lines: Vec<String> = refused.iter().map(Rejected::to_string).collect();
        let message = refusal::write(lines.iter().map(String::as_str));
        rpc::Status { code: INVALID_ARGUMENT, message, details: Vec::new() }
    });
    Box::new(DeltaDiscoveryRequest { type_url: type_url.to_owned(), response_nonce: nonce, error_detail, ..Default::default() })
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
