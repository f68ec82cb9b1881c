//! What the mesh is made of: every object in force, what runs of it, and which addresses it has. Our own input types, parsed at
//! the door (`door`); one immutable value per moment, cheap to clone; changed by [`World::apply`] only.
//!
//! An object has two layers. The folder's version is in force unless an applied one lies over it; a refused version never
//! replaces a good one.

mod advance;
mod allocations;
pub mod content;
pub mod core;
mod door;
mod families;
pub mod federation;
pub mod gateway;
mod index;
mod instance;
pub mod key;
pub mod list;
pub mod object;
pub mod own;
pub mod problem;
mod resolve;
pub mod revocation;
pub mod route;
pub mod security;
pub mod sorted;
pub mod traffic;
pub mod tree;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use allocations::{AddressNeeds, Allocations, Ranges, gateway_name};
pub(crate) use door::is_label;
pub use families::Families;
pub use index::{Address, Index, Name, NamespaceView, ServiceView};
pub use instance::{GatewayState, Instance, InstanceState, reported};
pub use key::{Kind, ObjectKey};
pub use object::{Candidate, Object, Spec};
pub use problem::{Problem, Severity};

/// What the control plane is told at its start and never changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorldSettings {
    /// Where addresses come from.
    pub ranges: Ranges,
    /// The fabric's own address, where a node agent relays loopback OTLP endpoints; `None`: nobody relays.
    pub bridge: Option<IpAddr>,
    /// OTLP endpoint for proxies whose Telemetry names none (flag or `OTEL_EXPORTER_OTLP_ENDPOINT`).
    pub otlp_endpoint: Option<String>,
    /// The manifests' folder, absolute: relative working directories start there.
    pub folder: PathBuf,
    /// What tokens of sessions are made with.
    pub session_key: SessionKey,
    /// Offline: count every instance as ready, since nothing runs.
    pub assume_ready: bool,
}

/// A key that outlives restarts, the same for all proxies of the mesh; it is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SessionKey(pub [u8; 32]);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey")
    }
}

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// The folder of manifests.
    Folder,
    /// `apply -f`.
    Applied,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Change {
    /// Somebody handed us a version of an object, good or refused.
    Put {
        /// Who.
        layer: Layer,
        /// The version.
        candidate: Candidate,
        /// Now, milliseconds since 1970: the object's age, unless it says so itself.
        now_ms: i64,
    },
    /// Somebody took an object back.
    Remove {
        /// Who.
        layer: Layer,
        /// Which.
        key: ObjectKey,
    },
    /// An applied object comes back from the store.
    Restore {
        /// The version.
        candidate: Candidate,
        /// Digest of the folder's version that it lies over, from [`Held::over`].
        over: Option<String>,
    },
    /// All problems of a file that belong to no object; replaces those before.
    File {
        /// The file.
        file: String,
        /// Its problems now.
        problems: Vec<Problem>,
    },
    /// The folder has been read once, to its end.
    FolderRead,
    /// The age of an object comes back from the store.
    Age {
        /// Which object.
        key: ObjectKey,
        /// Milliseconds since 1970.
        created_ms: i64,
    },
    /// All that the node agent runs; replaces what it said before.
    Node {
        /// Instances by (namespace, instance).
        instances: BTreeMap<(String, String), InstanceState>,
        /// Gateways by (namespace, name).
        gateways: BTreeMap<(String, String), GatewayState>,
    },
    /// A proxy says that it is leaving, or is back.
    Draining {
        /// Its (namespace, instance).
        instance: (String, String),
        /// Leaving.
        draining: bool,
    },
}

/// What a `Put` or `Remove` came to, as `apply -o json` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none.
    Created,
    /// Another version is in force now.
    Changed,
    /// Nothing changed.
    Unchanged,
    /// It is gone, or the folder's version is back.
    Deleted,
    /// The version is refused; the last good one, if any, stays in force.
    Refused,
}

/// What [`World::apply`] came to.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Objects whose version in force changed.
    pub changed: BTreeSet<ObjectKey>,
    /// One row per `Put`, `Restore` and `Remove`, in order.
    pub outcomes: Vec<(ObjectKey, Outcome)>,
    /// What is wrong with what came.
    pub problems: Vec<Problem>,
    /// Whether what runs changed: states of instances or Gateways.
    pub runtime: bool,
    /// Whether [`World::allocations`] or [`World::ages`] changed and should be stored.
    pub book: bool,
}

/// One layer's versions of an object.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The last good one.
    pub good: Option<Arc<Candidate>>,
    /// A newer one that was refused.
    pub refused: Option<Arc<Candidate>>,
    /// Applied layer only: digest of the folder's version that this one lies over.
    pub over: Option<String>,
}

/// All versions of one object.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    /// The folder's.
    pub folder: Option<Held>,
    /// The applied one's.
    pub applied: Option<Held>,
    /// How many versions have been in force.
    generation: i64,
}

impl Versions {
    /// The version in force.
    pub fn live(&self) -> Option<&Arc<Candidate>> {
        [&self.applied, &self.folder].into_iter().flatten().find_map(|held| held.good.as_ref())
    }

    /// The layer of the version in force.
    pub fn layer(&self) -> Option<Layer> {
        let layers = [(Layer::Applied, &self.applied), (Layer::Folder, &self.folder)];
        layers.into_iter().find(|(_, held)| held.as_ref().is_some_and(|held| held.good.is_some())).map(|(layer, _)| layer)
    }

    /// A newer version that was refused.
    pub fn refused(&self) -> Option<&Arc<Candidate>> {
        [&self.applied, &self.folder].into_iter().flatten().find_map(|held| held.refused.as_ref())
    }

    /// The last good version of each layer.
    fn good(&self) -> impl Iterator<Item = &Arc<Candidate>> {
        [&self.folder, &self.applied].into_iter().flatten().filter_map(|held| held.good.as_ref())
    }

    /// What `observedGeneration` says: the API server's count, else ours.
    pub fn generation(&self) -> i64 {
        let told = self.live().and_then(|live| live.object.as_ref()).and_then(|object| object.metadata.generation);
        told.unwrap_or(self.generation.max(1))
    }

    fn folder_digest(&self) -> Option<&String> {
        self.folder.as_ref().and_then(|held| held.good.as_ref()).map(|good| &good.digest)
    }
}

/// Everything, at one moment. A clone shares all of it.
#[derive(Clone, Debug)]
pub struct World {
    settings: Arc<WorldSettings>,
    slots: Arc<BTreeMap<ObjectKey, Versions>>,
    files: Arc<BTreeMap<String, Vec<Problem>>>,
    ages: Arc<BTreeMap<ObjectKey, i64>>,
    instances: Arc<BTreeMap<(String, String), InstanceState>>,
    gateways: Arc<BTreeMap<(String, String), GatewayState>>,
    draining: Arc<BTreeSet<(String, String)>>,
    allocations: Arc<Allocations>,
    /// Who has no address, or another one than was chosen.
    addressing: Arc<Vec<Problem>>,
    bundles: Arc<federation::Bundles>,
    synced: bool,
    index: Arc<OnceLock<Index>>,
    /// The last world before this one that has an index, until this one has its own.
    former: Arc<Mutex<Option<World>>>,
}

impl World {
    /// An empty world that remembers which addresses it gave.
    pub fn new(settings: WorldSettings, allocations: Allocations) -> Self {
        Self {
            settings: Arc::new(settings),
            slots: Arc::default(),
            files: Arc::default(),
            ages: Arc::default(),
            instances: Arc::default(),
            gateways: Arc::default(),
            draining: Arc::default(),
            allocations: Arc::new(allocations),
            addressing: Arc::default(),
            bundles: Arc::default(),
            synced: false,
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
        for change in changes {
            self.apply_one(change, &mut applied);
        }
        if !applied.changed.is_empty() {
            applied.book = true;
            let before = Arc::clone(&self.addressing);
            self.allocate();
            self.bundles = Arc::new(self.federate());
            applied.problems.extend(self.addressing.iter().filter(|problem| !before.contains(problem)).cloned());
        }
        (self.index, self.former) = (Arc::default(), Arc::new(Mutex::new(former)));
        applied
    }

    fn apply_one(&mut self, change: Change, applied: &mut Applied) {
        match change {
            Change::Put { layer, candidate, now_ms } => {
                if candidate.object.is_some() {
                    Arc::make_mut(&mut self.ages).entry(candidate.key.clone()).or_insert(now_ms);
                }
                self.put(layer, candidate, None, applied);
            }
            Change::Restore { candidate, over } => self.put(Layer::Applied, candidate, Some(over), applied),
            Change::Remove { layer, key } => self.remove(layer, &key, applied),
            Change::File { file, problems } => {
                applied.problems.extend(problems.iter().cloned());
                let files = Arc::make_mut(&mut self.files);
                if problems.is_empty() {
                    files.remove(&file);
                } else {
                    files.insert(file, problems);
                }
            }
            Change::FolderRead => self.folder_read(applied),
            Change::Age { key, created_ms } => {
                Arc::make_mut(&mut self.ages).insert(key, created_ms);
            }
            Change::Node { instances, gateways } => {
                applied.runtime |= *self.instances != instances || *self.gateways != gateways;
                self.instances = Arc::new(instances);
                self.gateways = Arc::new(gateways);
            }
            Change::Draining { instance, draining } => {
                let book = Arc::make_mut(&mut self.draining);
                applied.runtime |= if draining { book.insert(instance) } else { book.remove(&instance) };
            }
        }
    }

    /// `over`: for an object from the store, what it lay over; `None`: whatever is there now.
    fn put(&mut self, layer: Layer, candidate: Candidate, over: Option<Option<String>>, applied: &mut Applied) {
        let candidate = resolve::bounded(&self.slots, candidate);
        applied.problems.extend(candidate.problems.iter().cloned());
        let key = candidate.key.clone();
        let good = candidate.object.is_some();
        if layer == Layer::Applied && !good {
            // Whoever applied it hears so at once; nothing is kept.
            applied.outcomes.push((key, Outcome::Refused));
            return;
        }
        self.change(key, applied, |slot| {
            let candidate = Arc::new(candidate);
            match layer {
                Layer::Folder => {
                    if good && slot.folder_digest() != Some(&candidate.digest) {
                        // The folder's content changed: what was applied over the old one is over.
                        slot.applied.take_if(|held| held.over.as_ref() != Some(&candidate.digest));
                    }
                    let held = slot.folder.get_or_insert_default();
                    if good {
                        *held = Held { good: Some(candidate), ..Held::default() };
                    } else {
                        held.refused = Some(candidate);
                    }
                }
                Layer::Applied => {
                    let now = slot.folder_digest().cloned();
                    let stale = over.as_ref().is_some_and(|over| now.is_some() && *over != now);
                    if !stale {
                        slot.applied = Some(Held { good: Some(candidate), refused: None, over: over.unwrap_or(now) });
                    }
                }
            }
            if good { None } else { Some(Outcome::Refused) }
        });
    }

    fn remove(&mut self, layer: Layer, key: &ObjectKey, applied: &mut Applied) {
        if !self.slots.contains_key(key) {
            applied.outcomes.push((key.clone(), Outcome::Unchanged));
            return;
        }
        self.change(key.clone(), applied, |slot| {
            if layer == Layer::Folder {
                slot.folder = None;
            }
            slot.applied = None;
            None
        });
    }

    /// Runs one edit of a slot and books what it came to.
    fn change(&mut self, key: ObjectKey, applied: &mut Applied, edit: impl FnOnce(&mut Versions) -> Option<Outcome>) {
        let slots = Arc::make_mut(&mut self.slots);
        let slot = slots.entry(key.clone()).or_default();
        let before = slot.live().cloned();
        let told = edit(slot);
        let after = slot.live().cloned();
        let same = before.as_ref().map(|version| &version.digest) == after.as_ref().map(|version| &version.digest);
        let outcome = match (&before, &after) {
            _ if same => Outcome::Unchanged,
            (None, _) => Outcome::Created,
            (Some(_), None) => Outcome::Deleted,
            (Some(_), Some(_)) => Outcome::Changed,
        };
        if !same {
            slot.generation += 1;
            applied.changed.insert(key.clone());
        }
        if slot.folder.is_none() && slot.applied.is_none() {
            slots.remove(&key);
            Arc::make_mut(&mut self.ages).remove(&key);
        }
        applied.outcomes.push((key, told.unwrap_or(outcome)));
    }

    /// What came from the store and lay over something that the folder no longer has is over; so are ages of what is gone.
    fn folder_read(&mut self, applied: &mut Applied) {
        self.synced = true;
        let orphan = |slot: &Versions| slot.folder.is_none() && slot.applied.as_ref().is_some_and(|held| held.over.is_some());
        let orphans: Vec<_> = self.slots.iter().filter(|(_, slot)| orphan(slot)).map(|(key, _)| key.clone()).collect();
        for key in orphans {
            self.remove(Layer::Applied, &key, applied);
        }
        let slots = Arc::clone(&self.slots);
        Arc::make_mut(&mut self.ages).retain(|key, _| slots.contains_key(key));
    }

    fn allocate(&mut self) {
        let (mut wanted, settings) = (AddressNeeds::default(), Arc::clone(&self.settings));
        for (key, object) in self.live() {
            match &object.spec {
                Spec::Service(service) => {
                    wanted.chosen.extend(&service.cluster_ips);
                    if service.wants_address(&settings.ranges) {
                        wanted.services.insert(format!("{}/{}", key.namespace, key.name));
                    }
                }
                Spec::Workload(workload) if workload.addresses.is_empty() => {
                    wanted.instances.extend(instance::names(&key.name, workload).map(|name| format!("{}/{name}", key.namespace)));
                }
                Spec::Workload(workload) => wanted.chosen.extend(&workload.addresses),
                Spec::Gateway(_) => {
                    wanted.instances.insert(gateway_name(&key.namespace, &key.name));
                }
                _ => {}
            }
        }
        let (_, left) = Arc::make_mut(&mut self.allocations).allocate(&settings.ranges, &wanted);
        let none = |name: String| Problem::of_file(Severity::Error, "", 0, format!("no address is left for {name}"), "use a larger range");
        let mut problems: Vec<Problem> = left.into_iter().map(none).collect();
        problems
            .extend(self.slots.iter().filter_map(|(key, slot)| Some((key, slot.live()?))).flat_map(|(key, live)| self.replaced(key, live)));
        self.addressing = Arc::new(problems);
    }

    /// Addresses that a Service's author chose and that lead nowhere, each with what it has instead.
    fn replaced(&self, key: &ObjectKey, live: &Candidate) -> Vec<Problem> {
        let ranges = &self.settings.ranges;
        let Some(Spec::Service(service)) = live.object.as_ref().map(|object| &object.spec) else { return Vec::new() };
        let given = self.allocations.service(ranges, &format!("{}/{}", key.namespace, key.name));
        let has = service.addresses(ranges, given);
        let problem = |address: &IpAddr| {
            let instead = has.iter().find(|own| own.is_ipv4() == address.is_ipv4());
            let instead = instead.map_or_else(|| "no address".to_owned(), ToString::to_string);
            let (v4, v6) = ranges.services;
            let message = format!("{address} lies outside the mesh's ranges {v4} and {v6}; the Service has {instead} instead");
            let remedy = "remove it, choose one of those ranges, or move them with --service-cidr";
            Problem::of_object(Severity::Warning, (&live.file, live.line), key, "spec.clusterIP", message, remedy)
        };
        service.unserved(ranges).map(problem).collect()
    }

    /// What it was told at the start.
    pub fn settings(&self) -> &WorldSettings {
        &self.settings
    }

    /// Every object with all its versions.
    pub fn slots(&self) -> &BTreeMap<ObjectKey, Versions> {
        &self.slots
    }

    /// Every object in force, in the order of keys.
    pub fn live(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.slots.iter().filter_map(|(key, slot)| Some((key, slot.live()?.object.as_ref()?)))
    }

    /// One object in force.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.slots.get(key)?.live()?.object.as_ref()
    }

    /// The age of an object, milliseconds since 1970: its `creationTimestamp`, else when we first accepted it.
    pub fn created_ms(&self, object: &Object) -> i64 {
        object.metadata.created_ms.or_else(|| self.ages.get(&object.key).copied()).unwrap_or(i64::MAX)
    }

    /// When each object was first accepted; to be stored.
    pub fn ages(&self) -> &BTreeMap<ObjectKey, i64> {
        &self.ages
    }

    /// Which addresses were given; to be stored.
    pub fn allocations(&self) -> &Allocations {
        &self.allocations
    }

    /// Whether the folder has been read once.
    pub fn synced(&self) -> bool {
        self.synced
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
        let held = self.slots.values().flat_map(|slot| [&slot.folder, &slot.applied]).flatten();
        let versions = held.flat_map(|held| held.good.iter().chain(&held.refused));
        let mut problems: Vec<_> =
            versions.flat_map(|version| version.problems.iter()).chain(self.files.values().flatten()).cloned().collect();
        problems.extend(self.addressing.iter().cloned());
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

#[cfg(test)]
mod tests;
