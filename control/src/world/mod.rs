//! What the mesh is made of: every object in force, what runs of it, and which addresses it has. Our own input types, parsed at
//! the door (`door`); one immutable value per moment, cheap to clone; changed by [`World::apply`] only.
//!
//! An object may have several origins ([`Origin`]): the cluster's version is in force unless the folder has one, and the folder's unless
//! an applied one lies over it; a refused version never replaces a good one.

pub mod acme;
mod addressing;
mod advance;
mod allocations;
pub mod backend_tls;
pub mod canary;
pub mod certificate;
mod change;
pub mod content;
pub mod core;
mod credentials;
mod door;
pub mod edge;
pub mod external_backend;
mod families;
pub mod federation;
pub mod gateway;
mod index;
mod instance;
pub mod key;
pub mod list;
pub mod listener;
pub mod login_keys;
pub mod object;
mod origin;
pub mod own;
pub mod pod;
pub mod problem;
mod references;
mod resolve;
pub mod revocation;
pub mod route;
pub mod security;
pub mod sorted;
mod staple;
pub mod telemetry;
pub mod tickets;
pub mod traffic;
pub mod tree;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use addressing::{Addressing, Slots};
pub use allocations::{AddressNeeds, Allocations, Ranges, gateway_name};
use certificate::{Certificate, CertificateFault};
pub use change::{Applied, Change, Outcome};
pub use credentials::{KEPT_MS, KeptCertificate};
pub use door::Judge;
pub(crate) use door::is_label;
pub use families::Families;
pub use index::{Address, Index, Name, NamespaceView, ServiceView};
pub use instance::{GatewayState, Instance, InstanceState, reported};
pub use key::{Kind, ObjectKey};
pub use object::{Candidate, Object, Spec};
pub use origin::{Held, Origin, Versions};
pub use problem::{Problem, Severity};
pub use references::references;
use sorted::Sorted;

/// What problems of references are filed under: some Secrets or ConfigMaps that objects of a cluster refer to are not read.
pub const REFERENCES: &str = "kubernetes/references";

/// What the control plane is told at its start and never changes.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldSettings {
    /// Who must have been read once before anything is published.
    pub origins: BTreeSet<Origin>,
    /// The objects are a cluster's: their addresses are served by its network whatever they are, and nobody is given one of ours in
    /// place of its own.
    pub in_cluster: bool,
    /// Ranges in a cluster that only its own Services and pods can have addresses of, as far as somebody said so.
    pub cluster_ranges: Vec<IpNet>,
    /// Where addresses come from.
    pub ranges: Ranges,
    /// The fabric's own address, where a node agent relays loopback OTLP endpoints; `None`: nobody relays.
    pub bridge: Option<IpAddr>,
    /// Where spans of proxies whose Telemetry says nothing go (flags, or `OTEL_EXPORTER_OTLP_…`).
    pub otlp: Option<telemetry::Otlp>,
    /// The manifests' folder, absolute: relative working directories start there.
    pub folder: PathBuf,
    /// What tokens of sessions are made with.
    pub session_key: SessionKey,
    /// Offline: count every instance as ready, since nothing runs.
    pub assume_ready: bool,
}

impl Default for WorldSettings {
    /// A folder alone.
    fn default() -> Self {
        Self {
            origins: BTreeSet::from([Origin::Folder]),
            in_cluster: false,
            cluster_ranges: Vec::new(),
            ranges: Ranges::default(),
            bridge: None,
            otlp: None,
            folder: PathBuf::default(),
            session_key: SessionKey::default(),
            assume_ready: false,
        }
    }
}

impl WorldSettings {
    /// Whether packets for an address that a Service's author (or the cluster) chose find their way out of an instance.
    pub(crate) fn serve(&self, address: &IpAddr) -> bool {
        self.in_cluster || self.ranges.serve(address)
    }

    /// Ranges in which an address that nobody has is one that somebody of the mesh is about to have.
    pub fn mesh_ranges(&self) -> Vec<IpNet> {
        let Ranges { services, instances } = &self.ranges;
        if self.in_cluster {
            return self.cluster_ranges.clone();
        }
        vec![services.0.into(), services.1.into(), instances.0.into(), instances.1.into()]
    }
}

/// A key that outlives restarts, the same for all proxies of the mesh; it is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SessionKey(pub [u8; 32]);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey")
    }
}

/// Everything, at one moment. A clone shares all of it.
#[derive(Clone, Debug)]
pub struct World {
    settings: Arc<WorldSettings>,
    slots: Slots,
    /// Of all objects in force but what a cluster says of what runs: the sum of their hashes.
    content: u128,
    files: Sorted<String, Vec<Problem>>,
    ages: Sorted<ObjectKey, i64>,
    instances: Arc<BTreeMap<(String, String), InstanceState>>,
    gateways: Arc<BTreeMap<(String, String), GatewayState>>,
    draining: Sorted<(String, String), ()>,
    addressing: Addressing,
    bundles: Arc<federation::Bundles>,
    credentials: credentials::Credentials,
    /// What session tickets of edges are made with.
    tickets: Arc<tickets::Seeds>,
    /// How orders of certificates stand.
    acme: Arc<acme::AcmeBook>,
    /// How canaries stand.
    canaries: Arc<canary::CanaryBook>,
    /// What sessions of logins are sealed with.
    login_seeds: Arc<login_keys::LoginSeeds>,
    /// Who has not been read to the end yet.
    unread: BTreeSet<Origin>,
    index: Arc<OnceLock<Index>>,
    /// The last world before this one that has an index, until this one has its own.
    former: Arc<Mutex<Option<World>>>,
}

impl World {
    /// An empty world that remembers which addresses it gave.
    pub fn new(settings: WorldSettings, allocations: Allocations) -> Self {
        Self {
            unread: settings.origins.clone(),
            settings: Arc::new(settings),
            slots: Sorted::default(),
            content: 0,
            files: Sorted::default(),
            ages: Sorted::default(),
            instances: Arc::default(),
            gateways: Arc::default(),
            draining: Sorted::default(),
            addressing: Addressing::new(allocations),
            bundles: Arc::default(),
            credentials: credentials::Credentials::default(),
            tickets: Arc::default(),
            acme: Arc::default(),
            canaries: Arc::default(),
            login_seeds: Arc::default(),
            index: Arc::default(),
            former: Arc::default(),
        }
    }

    /// Applies changes, in order, as one step.
    pub fn apply(&mut self, changes: Vec<Change>) -> Applied {
        let mut applied = Applied::default();
        let former = match self.index.get() {
            Some(_) => Some(Self { former: Arc::default(), ..self.clone() }),
            None => self.former.lock().clone(),
        };
        let before = self.slots.clone();
        for change in changes {
            self.apply_one(change, &mut applied);
        }
        if !applied.changed.is_empty() {
            applied.book = true;
            applied.problems.extend(self.addressing.follow(&self.settings, (&before, &self.slots), &applied.changed));
            if applied.changed.iter().any(|key| matches!(key.kind, Kind::Mesh | Kind::Secret | Kind::ConfigMap)) {
                self.bundles = Arc::new(self.federate());
            }
            self.credentials.follow(&self.slots, &applied.changed);
        }
        (self.index, self.former) = (Arc::default(), Arc::new(Mutex::new(former)));
        applied
    }

    fn apply_one(&mut self, change: Change, applied: &mut Applied) {
        applied.shown |= match &change {
            Change::Put { origin, .. } | Change::Remove { origin, .. } | Change::Relisted { origin, .. } => *origin != Origin::Cluster,
            Change::Node { .. } | Change::Draining { .. } | Change::Clock { .. } => false,
            Change::Tickets(_) | Change::Acme(_) | Change::Canaries(_) | Change::LoginSeeds(_) => false,
            _ => true,
        };
        match change {
            Change::Put { origin, candidate, now_ms } => {
                // What an API server dates needs no date of ours.
                let dated = |object: &Arc<Object>| origin == Origin::Cluster && object.metadata.created_ms.is_some();
                if candidate.object.as_ref().is_some_and(|object| !dated(object)) && !self.ages.contains_key(&candidate.key) {
                    self.ages.insert(candidate.key.clone(), now_ms);
                }
                self.put(origin, candidate, None, applied);
            }
            Change::Restore { candidate, over } => self.put(Origin::Applied, candidate, Some(over), applied),
            Change::Remove { origin, key } => self.remove(origin, &key, applied),
            Change::Relisted { origin, kind, keys } => self.relisted(origin, kind, &keys, applied),
            Change::Synced(origin) => self.origin_read(origin, applied),
            Change::File { file, problems } => {
                applied.problems.extend(problems.iter().cloned());
                self.files.edit(&file, |said| *said = problems);
            }
            Change::Age { key, created_ms } => {
                self.ages.insert(key, created_ms);
            }
            Change::Node { instances, gateways } => {
                applied.runtime |= *self.instances != instances || *self.gateways != gateways;
                self.instances = Arc::new(instances);
                self.gateways = Arc::new(gateways);
            }
            Change::Clock { now_ms } => applied.runtime |= self.credentials.turn(now_ms),
            Change::Tickets(seeds) => {
                applied.runtime |= *self.tickets != seeds;
                self.tickets = Arc::new(seeds);
            }
            Change::Acme(book) => {
                applied.runtime |= *self.acme != *book;
                self.acme = book;
            }
            Change::Canaries(book) => {
                applied.runtime |= *self.canaries != *book;
                self.canaries = book;
            }
            Change::LoginSeeds(seeds) => {
                applied.runtime |= *self.login_seeds != seeds;
                self.login_seeds = Arc::new(seeds);
            }
            Change::Draining { instance, draining } => {
                applied.runtime |= self.draining.contains_key(&instance) != draining;
                if draining {
                    self.draining.insert(instance, ());
                } else {
                    self.draining.remove(&instance);
                }
            }
        }
    }

    /// `over`: for an object from the store, what it lay over; `None`: whatever is there now.
    fn put(&mut self, origin: Origin, candidate: Candidate, over: Option<Option<String>>, applied: &mut Applied) {
        let candidate = resolve::bounded(self, candidate);
        if !self.told_before(origin, &candidate) {
            applied.problems.extend(candidate.problems.iter().cloned());
        }
        let key = candidate.key.clone();
        let good = candidate.object.is_some();
        if origin == Origin::Applied && !good {
            // Whoever applied it hears so at once; nothing is kept.
            applied.outcomes.push((key, Outcome::Refused));
            return;
        }
        self.change(key, applied, |slot| {
            let candidate = Arc::new(candidate);
            if origin == Origin::Applied {
                let now = slot.folder_digest().cloned();
                let stale = over.as_ref().is_some_and(|over| now.is_some() && *over != now);
                if !stale {
                    *slot.held_mut(origin) = Some(Held { good: Some(candidate), refused: None, over: over.unwrap_or(now) });
                }
                return None;
            }
            if origin == Origin::Folder && good && slot.folder_digest() != Some(&candidate.digest) {
                // The folder's content changed: what was applied over the old one is over.
                slot.held_mut(Origin::Applied).take_if(|held| held.over.as_ref() != Some(&candidate.digest));
            }
            let held = slot.held_mut(origin).get_or_insert_default();
            if good {
                *held = Held { good: Some(candidate), ..Held::default() };
                return None;
            }
            held.refused = Some(candidate);
            Some(Outcome::Refused)
        });
    }

    /// Whether the problems of a version have been told already: an API server sends an object again whenever anything at it changes.
    fn told_before(&self, origin: Origin, candidate: &Candidate) -> bool {
        let held = || self.slots.get(&candidate.key)?.held(origin);
        let known = |version: &Option<Arc<Candidate>>| version.as_ref().is_some_and(|version| version.digest == candidate.digest);
        origin == Origin::Cluster && held().is_some_and(|held| known(&held.good) || known(&held.refused))
    }

    fn remove(&mut self, origin: Origin, key: &ObjectKey, applied: &mut Applied) {
        if !self.slots.contains_key(key) {
            applied.outcomes.push((key.clone(), Outcome::Unchanged));
            return;
        }
        self.change(key.clone(), applied, |slot| {
            *slot.held_mut(origin) = None;
            if origin == Origin::Folder {
                *slot.held_mut(Origin::Applied) = None;
            }
            None
        });
    }

    fn relisted(&mut self, origin: Origin, kind: Kind, keys: &BTreeSet<ObjectKey>, applied: &mut Applied) {
        let gone = |(key, slot): &(&ObjectKey, &Versions)| slot.held(origin).is_some() && !keys.contains(*key);
        let gone: Vec<_> = self.of_kind(kind).filter(gone).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(origin, &key, applied);
        }
    }

    /// Runs one edit of a slot and books what it came to.
    fn change(&mut self, key: ObjectKey, applied: &mut Applied, edit: impl FnOnce(&mut Versions) -> Option<Outcome>) {
        let mut slot = self.slots.get(&key).cloned().unwrap_or_default();
        let (before, from) = (slot.live().cloned(), slot.origin());
        let stood = digest(slot.in_force()).map(str::to_owned);
        let (refused, counted) = (slot.refused().cloned(), hash(&key, &slot));
        let told = edit(&mut slot);
        let (after, to) = (slot.live().cloned(), slot.origin());
        let same = digest(before.as_ref()) == digest(after.as_ref());
        applied.shown |= digest(refused.as_ref()) != digest(slot.refused());
        let outcome = match (&before, &after) {
            _ if same => Outcome::Unchanged,
            (None, _) => Outcome::Created,
            (Some(_), None) => Outcome::Deleted,
            (Some(_), Some(_)) => Outcome::Changed,
        };
        if !same || stood.as_deref() != digest(slot.in_force()) {
            slot.generation += i64::from(!same);
            // What the cluster itself keeps writing about what runs is nobody's change of the mesh.
            if key.kind.runs() && [from, to].into_iter().flatten().all(|origin| origin == Origin::Cluster) {
                applied.runtime = true;
            } else {
                applied.changed.insert(key.clone());
            }
        }
        self.content = self.content.wrapping_sub(counted).wrapping_add(hash(&key, &slot));
        if slot.is_empty() {
            self.slots.remove(&key);
            self.ages.remove(&key);
            if key.kind == Kind::Pod {
                // Nobody comes back by that name to say that it stays.
                self.draining.remove(&(key.namespace.clone(), key.name.clone()));
            }
        } else {
            self.slots.insert(key.clone(), slot);
        }
        applied.outcomes.push((key, told.unwrap_or(outcome)));
    }

    /// What came from the store and lay over something that the folder no longer has is over; so are ages of what is gone.
    fn origin_read(&mut self, origin: Origin, applied: &mut Applied) {
        self.unread.remove(&origin);
        if origin == Origin::Folder {
            let orphan =
                |slot: &Versions| slot.held(Origin::Folder).is_none() && slot.held(Origin::Applied).is_some_and(|held| held.over.is_some());
            let orphans: Vec<_> = self.slots.iter().filter(|(_, slot)| orphan(slot)).map(|(key, _)| key.clone()).collect();
            for key in orphans {
                self.remove(Origin::Applied, &key, applied);
            }
        }
        if self.synced() {
            let gone: Vec<ObjectKey> = self.ages.keys().filter(|key| !self.slots.contains_key(*key)).cloned().collect();
            gone.iter().for_each(|key| self.ages.remove(key));
        }
    }

    /// Takes over the key of sessions, where it was not known at the start.
    pub fn set_session_key(&mut self, key: SessionKey) {
        Arc::make_mut(&mut self.settings).session_key = key;
    }

    /// The certificate that a Secret holds, and what is wrong with the Secret now, where that one is kept from before.
    ///
    /// # Errors
    /// There is none in force.
    pub fn credential(&self, secret: &ObjectKey) -> Result<(&Arc<Certificate>, Option<&CertificateFault>), CertificateFault> {
        let Some(KeptCertificate { good, fault }) = self.credentials.known.get(secret) else {
            return Err(if self.get(secret).is_some() { CertificateFault::NoEntry("tls.crt") } else { CertificateFault::NoSecret });
        };
        match (good, fault) {
            (Some(good), fault) => Ok((good, fault.as_ref().map(|(fault, _)| fault))),
            (None, Some((fault, _))) => Err(fault.clone()),
            (None, None) => Err(CertificateFault::NoSecret),
        }
    }

    /// Every Secret with a certificate, good or not.
    pub fn credentials(&self) -> &Sorted<ObjectKey, KeptCertificate> {
        &self.credentials.known
    }

    /// Why a Secret may be missing that is there: more are referred to than are read.
    pub fn crowded(&self) -> Option<&str> {
        self.files.get(REFERENCES)?.first().map(|problem| problem.message.as_str())
    }

    /// The clock as it was told last, milliseconds since 1970; 0: never.
    pub fn now_ms(&self) -> i64 {
        self.credentials.now_ms
    }

    /// What session tickets of edges are made with.
    pub fn tickets(&self) -> &Arc<tickets::Seeds> {
        &self.tickets
    }

    /// How orders of certificates stand.
    pub fn acme(&self) -> &Arc<acme::AcmeBook> {
        &self.acme
    }

    /// How canaries stand.
    pub fn canaries(&self) -> &Arc<canary::CanaryBook> {
        &self.canaries
    }

    /// What sessions of logins are sealed with.
    pub fn login_seeds(&self) -> &Arc<login_keys::LoginSeeds> {
        &self.login_seeds
    }

    /// What it was told at the start.
    pub fn settings(&self) -> &WorldSettings {
        &self.settings
    }

    /// Every object with all its versions.
    pub fn slots(&self) -> &Sorted<ObjectKey, Versions> {
        &self.slots
    }

    /// Those of one kind, in the order of keys.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Versions)> {
        self.slots.from(&ObjectKey::new(kind, "", "")).take_while(move |(key, _)| key.kind == kind)
    }

    /// What all objects in force come to, without what a cluster says of what runs: worlds with the same ones have the same.
    pub fn content_hash(&self) -> u128 {
        self.content
    }

    /// Every object in force, in the order of keys.
    pub fn live(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.slots.iter().filter_map(|(key, slot)| Some((key, slot.live()?.object.as_ref()?)))
    }

    /// The same, with what stands for objects of which no version was ever good.
    pub(crate) fn standing(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.slots.iter().filter_map(|(key, slot)| Some((key, slot.standing()?)))
    }

    /// One object in force.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.slots.get(key)?.live()?.object.as_ref()
    }

    /// [`World::content_hash`] from nothing.
    #[cfg(test)]
    pub(crate) fn content_anew(&self) -> u128 {
        self.slots.iter().fold(0, |sum, (key, slot)| sum.wrapping_add(hash(key, slot)))
    }

    /// The age of an object, milliseconds since 1970: its `creationTimestamp`, else when we first accepted it.
    pub fn created_ms(&self, object: &Object) -> i64 {
        object.metadata.created_ms.or_else(|| self.ages.get(&object.key).copied()).unwrap_or(i64::MAX)
    }

    /// When each object was first accepted; to be stored.
    pub fn ages(&self) -> &Sorted<ObjectKey, i64> {
        &self.ages
    }

    /// Which addresses were given; to be stored.
    pub fn allocations(&self) -> &Allocations {
        &self.addressing.allocations
    }

    /// Whether every origin has been read once.
    pub fn synced(&self) -> bool {
        self.unread.is_empty()
    }

    /// Whether an object is the cluster's own word about what runs, which travels at once and is no part of an epoch.
    pub fn is_running(&self, key: &ObjectKey) -> bool {
        self.slots.get(key).is_some_and(|slot| runs(key, slot))
    }

    /// What the node agent last said of its instances.
    pub fn instance_states(&self) -> &BTreeMap<(String, String), InstanceState> {
        &self.instances
    }

    /// What the node agent last said of its Gateways.
    pub fn gateway_states(&self) -> &BTreeMap<(String, String), GatewayState> {
        &self.gateways
    }

    /// Every problem of everything that was handed to us and is still there, sorted.
    pub fn problems(&self) -> Vec<Problem> {
        let held = self.slots.values().flat_map(Versions::all);
        let versions = held.flat_map(|(_, held)| held.good.iter().chain(&held.refused));
        let mut problems: Vec<_> =
            versions.flat_map(|version| version.problems.iter()).chain(self.files.values().flatten()).cloned().collect();
        problems.extend(self.addressing.problems());
        problems.sort();
        problems.dedup();
        problems
    }

    /// Everything that translation looks up; built at its first use, once per world.
    pub fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let former = self.former.lock().take();
            former.map_or_else(|| Index::build(self), |former| Index::advanced(&former, self))
        })
    }
}

fn digest(version: Option<&Arc<Candidate>>) -> Option<&str> {
    version.map(|version| version.digest.as_str())
}

/// Whether an object in force is the cluster's own word about what runs.
fn runs(key: &ObjectKey, slot: &Versions) -> bool {
    key.kind.runs() && slot.origin() == Some(Origin::Cluster)
}

/// What an object adds to [`World::content_hash`].
fn hash(key: &ObjectKey, slot: &Versions) -> u128 {
    match slot.in_force() {
        Some(live) if !runs(key, slot) => xxh3_128(format!("{key} {}", live.digest).as_bytes()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
