//! From resources to a `Snapshot`, in two steps. [`Parts::put`] checks and compiles one resource by itself, so that a bad one is
//! refused alone and its last good content stays; [`Parts::assemble`] links names to `Arc`s, reusing what the previous snapshot
//! holds where nothing changed.
//!
//! Every field of our proto subset is honoured or makes its resource [`Rejected`]; fields outside the subset are a newer control
//! plane's and are ignored by the decoder.

mod chains;
mod cluster;
mod endpoint;
mod forward;
mod hcm;
mod inbound;
mod link;
mod listener;
mod matches;
mod metadata;
mod own;
mod route;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::{Message, Name};
use prost_types::Any;

use super::{Cluster, ClusterKind, DnsAnswer, EndpointCell, EndpointSet, Protocol, Settings};
use crate::rejected::Wrong;

pub use crate::rejected::Rejected;

/// Most resources of one type.
pub const RESOURCES_MAX: usize = 100_000;
/// Time to connect where a cluster does not say (kinds, "defaults").
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
/// Silence that ends an opaque connection where nothing says one (kinds, "defaults"). An exchange under way has none: a slow answer, a
/// silent event stream and a WebSocket may take what they need, and a dead peer is found by TCP keep-alive.
pub const OPAQUE_IDLE_DEFAULT: Duration = Duration::from_secs(3600);
/// How long both sides of an undeclared protocol are watched before the upstream is opened.
pub const SNIFF_TIMEOUT: Duration = Duration::from_millis(10);
/// Name of the cluster that is the application beside a sidecar.
pub const INBOUND_CLUSTER: &str = proto::names::INBOUND;
/// Longest duration that a resource may name: beyond it, sums of times could overflow.
const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// The staged store of compiled resources: everything a proxy was sent and accepted, whether already live or not.
#[derive(Debug)]
pub struct Parts {
    listeners: BTreeMap<String, Staged<listener::Listener>>,
    tables: BTreeMap<String, Staged<route::RouteTable>>,
    /// With the name of each one's assignment.
    clusters: BTreeMap<String, Staged<(Arc<Cluster>, String)>>,
    names: BTreeMap<String, Staged<Arc<DnsAnswer>>>,
    settings: Option<Staged<Arc<Settings>>>,
    trust_bundle: Option<Staged<Arc<Vec<Vec<u8>>>>>,
    /// Versions of the assignments that are in their cells.
    assignments: BTreeMap<String, String>,
    /// By assignment name; held while an assignment of that name, or a cluster that wants it, is staged.
    cells: BTreeMap<String, Cell>,
    registry: endpoint::LiveEndpoints,
    /// The application beside a sidecar, where no cluster of that name was sent.
    local: Arc<Cluster>,
}

/// Compiled content and the version it came as.
#[derive(Debug)]
struct Staged<T> {
    version: String,
    content: T,
}

/// Where a cluster finds its endpoints, and how many clusters do.
#[derive(Debug, Default)]
struct Cell {
    endpoints: Arc<EndpointCell>,
    clusters: usize,
}

impl Default for Parts {
    fn default() -> Self {
        let local = Cluster {
            name: INBOUND_CLUSTER.into(),
            namespace: "".into(),
            service: "".into(),
            protocol: Protocol::Http,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            kind: ClusterKind::Local,
            endpoints: Arc::default(),
        };
        Self {
            listeners: BTreeMap::new(),
            tables: BTreeMap::new(),
            clusters: BTreeMap::new(),
            names: BTreeMap::new(),
            settings: None,
            trust_bundle: None,
            assignments: BTreeMap::new(),
            cells: BTreeMap::new(),
            registry: endpoint::LiveEndpoints::default(),
            local: Arc::new(local),
        }
    }
}

/// The resource types of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResourceKind {
    Listener,
    Route,
    Cluster,
    Endpoints,
    Secret,
    Proxy,
    Dns,
}

impl ResourceKind {
    fn of(type_url: &str) -> Result<Self, Wrong> {
        let known = [
            (proto::xds::LISTENER.to_owned(), Self::Listener),
            (proto::xds::ROUTE.to_owned(), Self::Route),
            (proto::xds::CLUSTER.to_owned(), Self::Cluster),
            (proto::xds::ENDPOINT.to_owned(), Self::Endpoints),
            (proto::xds::SECRET.to_owned(), Self::Secret),
            (proto::mesh::ProxyConfig::type_url(), Self::Proxy),
            (proto::mesh::DnsRecord::type_url(), Self::Dns),
        ];
        let kind = known.into_iter().find(|(url, _)| url == type_url).map(|(_, kind)| kind);
        kind.ok_or_else(|| Wrong::new("", "resources of this type are no part of a proxy's configuration"))
    }
}

impl Parts {
    /// Checks, compiles and stages one resource. Endpoints go into their cluster's cell, live at once; everything else waits for
    /// [`Parts::assemble`]. A version that is already staged is not compiled again.
    ///
    /// # Errors
    /// [`Rejected`] names the field and the reason; what was staged under that name before stays.
    pub fn put(&mut self, type_url: &str, name: &str, version: &str, resource: &Any) -> Result<(), Rejected> {
        self.stage(type_url, name, version, resource).map_err(|wrong| wrong.of(type_url, name))
    }

    /// Takes a resource away; what is live keeps it until the next [`Parts::assemble`]. An unknown name is no fault.
    pub fn remove(&mut self, type_url: &str, name: &str) {
        match ResourceKind::of(type_url) {
            Ok(ResourceKind::Listener) => drop(self.listeners.remove(name)),
            Ok(ResourceKind::Route) => drop(self.tables.remove(name)),
            Ok(ResourceKind::Dns) => drop(self.names.remove(name)),
            Ok(ResourceKind::Proxy) => self.settings = None,
            Ok(ResourceKind::Secret) if name == proto::names::ROOT_CA => self.trust_bundle = None,
            Ok(ResourceKind::Cluster) => {
                if let Some(staged) = self.clusters.remove(name) {
                    self.let_go(&staged.content.1);
                }
            }
            Ok(ResourceKind::Endpoints) => {
                self.assignments.remove(name);
                self.drop_unused_cell(name);
            }
            Ok(ResourceKind::Secret) | Err(_) => {}
        }
    }

    /// The staged trust bundle, DER roots. Like endpoints it travels at once and is no part of an epoch.
    pub fn trust_bundle(&self) -> Arc<Vec<Vec<u8>>> {
        self.trust_bundle.as_ref().map(|staged| staged.content.clone()).unwrap_or_default()
    }

    fn stage(&mut self, type_url: &str, name: &str, version: &str, resource: &Any) -> Result<(), Wrong> {
        let kind = ResourceKind::of(type_url)?;
        if self.version(kind, name) == Some(version) {
            return Ok(());
        }
        self.room(kind, name)?;
        let version = version.to_owned();
        match kind {
            ResourceKind::Listener => {
                let content = listener::compile(name, &unpack(resource)?)?;
                self.listeners.insert(name.to_owned(), Staged { version, content });
            }
            ResourceKind::Route => {
                let previous = self.tables.get(name).map(|staged| &staged.content);
                let content = route::compile_named(name, &unpack(resource)?, previous)?;
                self.tables.insert(name.to_owned(), Staged { version, content });
            }
            ResourceKind::Cluster => {
                let draft = cluster::compile(name, &unpack(resource)?)?;
                let assignment = draft.assignment.clone();
                let cell = self.cells.entry(assignment.clone()).or_default();
                cell.clusters += 1;
                let content = (Arc::new(draft.with_endpoints(cell.endpoints.clone())), assignment);
                if let Some(former) = self.clusters.insert(name.to_owned(), Staged { version, content }) {
                    self.let_go(&former.content.1);
                }
            }
            ResourceKind::Endpoints => self.put_endpoints(name, version, &unpack(resource)?)?,
            ResourceKind::Secret => {
                let content = Arc::new(own::trust_bundle(name, &unpack(resource)?)?);
                self.trust_bundle = Some(Staged { version, content });
            }
            ResourceKind::Proxy => {
                let content = Arc::new(own::settings(name, &unpack(resource)?)?);
                self.settings = Some(Staged { version, content });
            }
            ResourceKind::Dns => {
                let content = Arc::new(own::dns(name, &unpack(resource)?)?);
                self.names.insert(name.to_owned(), Staged { version, content });
            }
        }
        Ok(())
    }

    fn version(&self, kind: ResourceKind, name: &str) -> Option<&str> {
        match kind {
            ResourceKind::Listener => self.listeners.get(name).map(|staged| staged.version.as_str()),
            ResourceKind::Route => self.tables.get(name).map(|staged| staged.version.as_str()),
            ResourceKind::Cluster => self.clusters.get(name).map(|staged| staged.version.as_str()),
            ResourceKind::Endpoints => self.assignments.get(name).map(String::as_str),
            ResourceKind::Secret => {
                self.trust_bundle.as_ref().filter(|_| name == proto::names::ROOT_CA).map(|staged| staged.version.as_str())
            }
            ResourceKind::Proxy => self.settings.as_ref().filter(|_| name == proto::names::PROXY).map(|staged| staged.version.as_str()),
            ResourceKind::Dns => self.names.get(name).map(|staged| staged.version.as_str()),
        }
    }

    fn room(&self, kind: ResourceKind, name: &str) -> Result<(), Wrong> {
        let held = match kind {
            ResourceKind::Listener => self.listeners.len(),
            ResourceKind::Route => self.tables.len(),
            ResourceKind::Cluster => self.clusters.len(),
            ResourceKind::Endpoints => self.assignments.len(),
            ResourceKind::Dns => self.names.len(),
            ResourceKind::Secret | ResourceKind::Proxy => 0,
        };
        if held >= RESOURCES_MAX && self.version(kind, name).is_none() {
            return Err(Wrong::new("", format!("this proxy holds {RESOURCES_MAX} resources of this type already")));
        }
        Ok(())
    }

    fn put_endpoints(&mut self, name: &str, version: String, raw: &proto::xds::endpoint::ClusterLoadAssignment) -> Result<(), Wrong> {
        let drafts = endpoint::compile(name, raw)?;
        let cell = self.cells.entry(name.to_owned()).or_default().endpoints.clone();
        let previous = cell.0.load_full();
        cell.0.store(Arc::new(self.registry.set(drafts, &previous)));
        drop(previous);
        self.registry.prune(self.cells.values().map(|cell| &cell.endpoints));
        self.assignments.insert(name.to_owned(), version);
        Ok(())
    }

    /// A cluster does not want this assignment any more.
    fn let_go(&mut self, assignment: &str) {
        if let Some(cell) = self.cells.get_mut(assignment) {
            cell.clusters = cell.clusters.saturating_sub(1);
        }
        self.drop_unused_cell(assignment);
    }

    /// A cell that nothing staged wants leaves the store; a live snapshot may still use it.
    fn drop_unused_cell(&mut self, assignment: &str) {
        let unused = self.cells.get(assignment).is_some_and(|cell| cell.clusters == 0);
        if unused && !self.assignments.contains_key(assignment) {
            self.cells.remove(assignment);
        }
    }

    /// Clusters whose assignment was taken away have no endpoints any more.
    fn empty_abandoned_cells(&self) {
        for (_, cell) in self.cells.iter().filter(|(name, _)| !self.assignments.contains_key(*name)) {
            let set = cell.endpoints.0.load();
            if !set.ready.is_empty() || !set.other.is_empty() {
                cell.endpoints.0.store(Arc::new(EndpointSet::default()));
            }
        }
    }

    fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        let built_in = || (name == INBOUND_CLUSTER).then_some(&self.local);
        self.clusters.get(name).map(|staged| &staged.content.0).or_else(built_in)
    }
}

/// Decodes a resource.
fn unpack<M: Message + Name + Default>(resource: &Any) -> Result<M, Wrong> {
    proto::xds::unpack(resource).map_err(|error| Wrong::new("", error.to_string()))
}

/// Every resource carries its own name, and it must be the one on the envelope.
fn same_name(name: &str, inner: &str, field: &str) -> Result<(), Wrong> {
    if name == inner {
        return Ok(());
    }
    Err(Wrong::new(field, format!("is `{}`, but the resource is named `{}`", inner.escape_debug(), name.escape_debug())))
}

/// A stamp for content, unique in this process.
fn stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A duration that may be absent; negative and absurd ones are refused.
fn duration(raw: Option<&prost_types::Duration>, field: &str) -> Result<Option<Duration>, Wrong> {
    let Some(raw) = raw else { return Ok(None) };
    let value = Duration::try_from(*raw).map_err(|_| Wrong::new(field, "is negative"))?;
    if value > DURATION_MAX {
        return Err(Wrong::new(field, "is longer than 100 years"));
    }
    Ok(Some(value))
}

/// A timeout whose zero means "none" and whose absence means `default`.
fn timeout(raw: Option<&prost_types::Duration>, field: &str, default: Option<Duration>) -> Result<Option<Duration>, Wrong> {
    Ok(match duration(raw, field)? {
        None => default,
        Some(Duration::ZERO) => None,
        Some(value) => Some(value),
    })
}
