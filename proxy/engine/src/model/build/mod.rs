//! From resources to a `Snapshot`, in two steps. [`Parts::put`] checks and compiles one resource by itself, so that a bad one is
//! refused alone and its last good content stays; [`Parts::assemble`] links names to `Arc`s, reusing what the previous snapshot
//! holds where nothing changed.
//!
//! Every field of our proto subset is honoured or makes its resource [`Rejected`]; fields outside the subset are a newer control
//! plane's and are ignored by the decoder.

mod access_log;
mod authentication;
mod chains;
mod client;
mod cluster;
mod cluster_policy;
mod consumers;
mod edge;
pub(super) mod egress;
mod endpoint;
mod forward;
mod guards;
mod hcm;
mod inbound;
mod interned;
mod link;
mod listener;
mod metadata;
mod own;
mod pem;
mod policy;
mod route;
mod secret;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use prost::{Message, Name};
use prost_types::Any;

use super::{Cluster, ClusterKind, DnsAnswer, Egress, EndpointFacts, Home, Protocol, Settings, Trust, stamp};
use crate::authenticate::Authentication;
use crate::authorize::{self, Authorization};
use crate::raw::duration;
use crate::rejected::Wrong;

pub use self::authentication::WITHHELD_MAX;
pub use self::cluster_policy::INTERVAL_MIN;
pub use self::egress::{EGRESS_ITEMS_MAX, EGRESS_POLICIES_MAX, EGRESS_RULES_MAX, EgressSum, is_outside_host, is_server_name};
pub use self::route::TABLE_MAX;
pub use crate::authenticate::{PREFIX_BYTES_MAX, claim_header};
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

/// The staged store of compiled resources: everything a proxy was sent and accepted, whether already live or not.
#[derive(Debug)]
pub struct Parts {
    listeners: BTreeMap<String, Staged<listener::Listener>>,
    tables: BTreeMap<String, Staged<route::RouteTable>>,
    /// With the name of each one's assignment.
    clusters: BTreeMap<String, Staged<(Arc<Cluster>, String)>>,
    names: BTreeMap<String, Staged<Arc<DnsAnswer>>>,
    settings: Option<Staged<Arc<Settings>>>,
    trust: Option<Staged<Arc<Trust>>>,
    trust_bundle: Option<Staged<Arc<Vec<Vec<u8>>>>>,
    egress: Staged<Arc<Egress>>,
    /// What could not be read and was not known before lets nobody in.
    authorization: Option<Staged<Arc<Authorization>>>,
    authentication: Option<Staged<Arc<Authentication>>>,
    /// The same for a Gateway's ports.
    doors: BTreeMap<u16, Staged<Arc<Authorization>>>,
    consumers: consumers::Consumers,
    /// Held while an assignment of that name, or a cluster that wants it, is staged.
    assignments: BTreeMap<String, Assignment>,
    /// How many of them are staged.
    listed: usize,
    workloads: endpoint::Workloads,
    /// What outlives clusters, by their name.
    lives: cluster::Lives,
    policies: policy::Policies,
    secrets: secret::Secrets,
    /// The application beside a sidecar, where no cluster of that name was sent.
    local: Arc<Cluster>,
}

/// Compiled content and the version it came as.
#[derive(Debug, Default)]
struct Staged<T> {
    version: String,
    content: T,
}

/// A list of endpoints, and which clusters want it.
#[derive(Debug, Default)]
struct Assignment {
    staged: Option<Staged<Arc<[EndpointFacts]>>>,
    clusters: BTreeSet<String>,
    /// Of the list, unique in this process; 0 for none.
    content: u64,
}

impl Assignment {
    fn listed(&self) -> (u64, &[EndpointFacts]) {
        (self.content, self.staged.as_ref().map_or(&[], |staged| &staged.content))
    }
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
            tls: None,
            policy: Arc::default(),
            endpoints: Arc::default(),
            live: Arc::default(),
        };
        Self {
            listeners: BTreeMap::new(),
            tables: BTreeMap::new(),
            clusters: BTreeMap::new(),
            names: BTreeMap::new(),
            settings: None,
            trust: None,
            trust_bundle: None,
            egress: Staged::default(),
            authorization: None,
            authentication: None,
            doors: BTreeMap::new(),
            consumers: consumers::Consumers::default(),
            assignments: BTreeMap::new(),
            listed: 0,
            workloads: endpoint::Workloads::default(),
            lives: cluster::Lives::default(),
            policies: policy::Policies::default(),
            secrets: secret::Secrets::default(),
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
    Trust,
    Dns,
    Egress,
    Authorization,
    Authentication,
    Consumers,
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
            (proto::mesh::Trust::type_url(), Self::Trust),
            (proto::mesh::DnsRecord::type_url(), Self::Dns),
            (proto::mesh::Egress::type_url(), Self::Egress),
            (proto::mesh::Authorization::type_url(), Self::Authorization),
            (proto::mesh::Authentication::type_url(), Self::Authentication),
            (proto::mesh::Consumers::type_url(), Self::Consumers),
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
    /// [`Rejected`] names the field and the reason; what was staged under that name before stays. Where that is nothing and the resource says
    /// who may call, nobody may.
    pub fn put(&mut self, type_url: &str, name: &str, version: &str, resource: &Any) -> Result<(), Rejected> {
        self.stage(type_url, name, version, resource).map_err(|wrong| {
            self.close(type_url, name);
            wrong.of(type_url, name)
        })
    }

    /// Lets nobody in by a policy that was refused and has no last good content.
    fn close(&mut self, type_url: &str, name: &str) {
        if !matches!(ResourceKind::of(type_url), Ok(ResourceKind::Authorization)) {
            return;
        }
        let closed = || Staged { version: String::new(), content: Arc::new(Authorization::refused()) };
        if name == proto::names::INBOUND {
            self.authorization.get_or_insert_with(closed);
        } else if let Some(port) = proto::names::edge_port(name) {
            self.doors.entry(port).or_insert_with(closed);
        }
    }

    /// Takes a resource away; what is live keeps it until the next [`Parts::assemble`]. An unknown name is no fault.
    pub fn remove(&mut self, type_url: &str, name: &str) {
        match ResourceKind::of(type_url) {
            Ok(ResourceKind::Listener) => drop(self.listeners.remove(name)),
            Ok(ResourceKind::Route) => drop(self.tables.remove(name)),
            Ok(ResourceKind::Dns) => drop(self.names.remove(name)),
            Ok(ResourceKind::Proxy) => self.settings = None,
            Ok(ResourceKind::Egress) => self.egress = Staged::default(),
            Ok(ResourceKind::Trust) => self.trust = None,
            Ok(ResourceKind::Authorization) if name == proto::names::INBOUND => self.authorization = None,
            Ok(ResourceKind::Authentication) => self.authentication = None,
            Ok(ResourceKind::Consumers) => self.consumers.remove(name),
            Ok(ResourceKind::Secret) if name == proto::names::ROOT_CA => self.trust_bundle = None,
            Ok(ResourceKind::Secret) => self.secrets.remove(name),
            Ok(ResourceKind::Cluster) => {
                if let Some(staged) = self.clusters.remove(name) {
                    self.let_go(name, &staged.content.1);
                }
            }
            Ok(ResourceKind::Endpoints) => {
                if let Some(assignment) = self.assignments.get_mut(name) {
                    self.listed -= usize::from(assignment.staged.take().is_some());
                    assignment.content = 0;
                }
                self.drop_unused_assignment(name);
            }
            Ok(ResourceKind::Authorization) => {
                if let Some(port) = proto::names::edge_port(name) {
                    self.doors.remove(&port);
                }
            }
            Err(_) => {}
        }
    }

    /// Makes what was put of consumers, or taken away, the book in force; whether there was anything. To be called after each answer's
    /// resources.
    pub fn settle(&mut self) -> bool {
        self.consumers.settle()
    }

    /// Whom the mesh believes, as staged.
    pub fn trust(&self) -> Option<Arc<Trust>> {
        self.trust.as_ref().map(|staged| staged.content.clone())
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
                let before = self.listeners.get(name).and_then(|staged| staged.content.clients()).cloned();
                let content = listener::compile(name, &unpack(resource)?, (&mut self.policies, &mut self.secrets), before.as_deref())?;
                self.listeners.insert(name.to_owned(), Staged { version, content });
            }
            ResourceKind::Route => {
                let previous = self.tables.get(name).map(|staged| &staged.content);
                let content = route::compile_named(name, &unpack(resource)?, previous, &mut self.policies)?;
                self.tables.insert(name.to_owned(), Staged { version, content });
            }
            ResourceKind::Cluster => {
                let draft = cluster::compile(name, &unpack(resource)?, &mut self.secrets)?;
                self.put_cluster(name, version, draft);
            }
            ResourceKind::Endpoints => self.put_endpoints(name, version, &unpack(resource)?)?,
            ResourceKind::Secret if name != proto::names::ROOT_CA => self.secrets.put(name, version, &unpack(resource)?)?,
            ResourceKind::Secret => {
                let content = Arc::new(own::trust_bundle(name, &unpack(resource)?)?);
                self.trust_bundle = Some(Staged { version, content });
            }
            ResourceKind::Proxy => {
                let content = Arc::new(own::settings(name, &unpack(resource)?)?);
                self.settings = Some(Staged { version, content });
            }
            ResourceKind::Egress => self.put_egress(name, version, resource)?,
            ResourceKind::Trust => {
                let content = Arc::new(trust::compile(name, &unpack(resource)?)?);
                self.trust = Some(Staged { version, content });
            }
            ResourceKind::Authorization => {
                let port = proto::names::edge_port(name);
                if name != proto::names::INBOUND && port.is_none() {
                    return Err(Wrong::new("", format!("it is named neither `{}` nor `edge/PORT`", proto::names::INBOUND)));
                }
                let content = Arc::new(authorize::compile(&unpack(resource)?)?);
                let staged = Staged { version, content };
                match port {
                    Some(port) => _ = self.doors.insert(port, staged),
                    None => self.authorization = Some(staged),
                }
            }
            ResourceKind::Authentication => self.put_authentication(name, version, resource)?,
            ResourceKind::Consumers => self.consumers.put(name, version, &unpack(resource)?)?,
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
            ResourceKind::Endpoints => {
                self.assignments.get(name).and_then(|held| held.staged.as_ref()).map(|staged| staged.version.as_str())
            }
            ResourceKind::Secret if name == proto::names::ROOT_CA => self.trust_bundle.as_ref().map(|staged| staged.version.as_str()),
            ResourceKind::Secret => self.secrets.version(name),
            ResourceKind::Proxy => self.settings.as_ref().filter(|_| name == proto::names::PROXY).map(|staged| staged.version.as_str()),
            ResourceKind::Trust => self.trust.as_ref().filter(|_| name == proto::names::TRUST).map(|staged| staged.version.as_str()),
            ResourceKind::Dns => self.names.get(name).map(|staged| staged.version.as_str()),
            ResourceKind::Egress => Some(self.egress.version.as_str()).filter(|_| name == proto::names::EGRESS),
            ResourceKind::Authorization => {
                let door = || self.doors.get(&proto::names::edge_port(name)?);
                self.authorization.as_ref().filter(|_| name == proto::names::INBOUND).or_else(door).map(|staged| staged.version.as_str())
            }
            ResourceKind::Consumers => self.consumers.version(name),
            ResourceKind::Authentication => {
                self.authentication.as_ref().filter(|_| name == proto::names::INBOUND).map(|staged| staged.version.as_str())
            }
        }
    }

    fn room(&self, kind: ResourceKind, name: &str) -> Result<(), Wrong> {
        let held = match kind {
            ResourceKind::Listener => self.listeners.len(),
            ResourceKind::Route => self.tables.len(),
            ResourceKind::Cluster => self.clusters.len(),
            ResourceKind::Endpoints => self.listed,
            ResourceKind::Dns => self.names.len(),
            ResourceKind::Secret => self.secrets.len(),
            ResourceKind::Consumers => self.consumers.len(),
            ResourceKind::Proxy
            | ResourceKind::Egress
            | ResourceKind::Trust
            | ResourceKind::Authorization
            | ResourceKind::Authentication => 0,
        };
        if held >= RESOURCES_MAX && self.version(kind, name).is_none() {
            return Err(Wrong::new("", format!("this proxy holds {RESOURCES_MAX} resources of this type already")));
        }
        Ok(())
    }

    /// Where nothing good was said before, what cannot be understood allows nothing.
    fn put_egress(&mut self, name: &str, version: String, resource: &Any) -> Result<(), Wrong> {
        match unpack(resource).and_then(|raw| egress::compile(name, &raw)) {
            Ok(content) => self.egress = Staged { version, content: Arc::new(content) },
            Err(wrong) => {
                if name == proto::names::EGRESS && self.egress.version.is_empty() {
                    self.egress.content = Arc::new(Egress::closed());
                }
                return Err(wrong);
            }
        }
        Ok(())
    }

    fn put_cluster(&mut self, name: &str, version: String, draft: cluster::ClusterDraft) {
        let assignment = draft.assignment.clone();
        let former = self.clusters.get(name).map(|staged| staged.content.1.clone()).filter(|former| *former != assignment);
        let (cluster, new) = self.lives.adopt(draft);
        let home = self.home();
        let wanted = self.assignments.entry(assignment.clone()).or_default();
        wanted.clusters.insert(name.to_owned());
        if new {
            // Nothing live has this cell. One that is live learns of a change of policy at the swap.
            feed(&cluster, wanted.listed(), &home);
        }
        self.clusters.insert(name.to_owned(), Staged { version, content: (Arc::new(cluster), assignment) });
        if let Some(former) = former {
            self.let_go(name, &former);
        }
    }

    fn put_endpoints(&mut self, name: &str, version: String, raw: &proto::xds::endpoint::ClusterLoadAssignment) -> Result<(), Wrong> {
        let content = self.workloads.facts(endpoint::compile(name, raw)?);
        let assignment = self.assignments.entry(name.to_owned()).or_default();
        let former = assignment.staged.replace(Staged { version, content });
        assignment.content = stamp();
        self.listed += usize::from(former.is_none());
        let listed = |staged: &&Staged<(Arc<Cluster>, String)>| staged.content.0.policy.resolves.is_none();
        for cluster in assignment.clusters.iter().filter_map(|name| self.clusters.get(name)).filter(listed) {
            cluster.content.0.endpoints.list(&cluster.content.0.name, assignment.listed());
        }
        let lists = self.assignments.values().filter_map(|assignment| assignment.staged.as_ref());
        self.workloads.prune(lists.map(|staged| &staged.content));
        Ok(())
    }

    /// A cluster does not want this assignment any more.
    fn let_go(&mut self, cluster: &str, assignment: &str) {
        if let Some(held) = self.assignments.get_mut(assignment) {
            held.clusters.remove(cluster);
        }
        self.drop_unused_assignment(assignment);
    }

    fn drop_unused_assignment(&mut self, name: &str) {
        if self.assignments.get(name).is_some_and(|held| held.clusters.is_empty() && held.staged.is_none()) {
            self.assignments.remove(name);
        }
    }

    /// What goes live with the swap: policies, and that clusters whose assignment was taken away have no endpoints any more.
    fn feed_cells(&self) {
        self.secrets.forget();
        let home = self.home();
        for Staged { content: (cluster, assignment), .. } in self.clusters.values() {
            let listed = self.assignments.get(assignment).map_or((0, &[][..]), Assignment::listed);
            feed(cluster, listed, &home);
        }
    }

    /// What clusters need to know of this proxy.
    fn home(&self) -> Home {
        let Some(Staged { content: settings, .. }) = &self.settings else { return Home::default() };
        Home { locality: settings.locality.clone(), session_key: settings.session_key.clone() }
    }

    fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        let built_in = || (name == INBOUND_CLUSTER).then_some(&self.local);
        self.clusters.get(name).map(|staged| &staged.content.0).or_else(built_in)
    }
}

/// Takes what the control plane says of a cluster, and the endpoints that it lists, unless the proxy finds them out.
fn feed(cluster: &Cluster, listed: (u64, &[EndpointFacts]), home: &Home) {
    match cluster.policy.resolves {
        Some(_) => cluster.endpoints.govern(&cluster.name, &cluster.policy, home),
        None => cluster.endpoints.feed(&cluster.name, listed, &cluster.policy, home),
    }
}

/// The certificates of a PEM text, DER: at least one, and none beyond what a proxy takes.
///
/// # Errors
/// What is wrong with it.
pub fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    pem::certificates(pem, own::ROOTS_MAX).map_err(|wrong| wrong.of("", "").why)
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

/// A timeout whose zero means "none" and whose absence means `default`.
fn timeout(raw: Option<&prost_types::Duration>, field: &str, default: Option<Duration>) -> Result<Option<Duration>, Wrong> {
    Ok(match duration(raw, field)? {
        None => default,
        Some(Duration::ZERO) => None,
        Some(value) => Some(value),
    })
}
