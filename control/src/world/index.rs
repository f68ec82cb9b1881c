//! What translation looks up, one for each [`World`]: objects by what they are about, instances by Service, everything by
//! address. Ordered throughout, and lists of rivals have the oldest first, so that equal worlds translate to equal bytes.
//!
//! The index of a world is that of the world before it, advanced by what has changed since (`advance`); they share the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::canary::CanaryIndex;
use super::content::Contents;
use super::core::Service;
use super::edge::Claims;
use super::instance::Instance;
use super::object::Object;
use super::own::Mesh;
use super::revocation::Revoked;
use super::sorted::Sorted;
use super::traffic::{Caller, Place};
use super::{ObjectKey, Spec};

/// (namespace, name).
pub type Name = (String, String);

/// Objects in some order.
pub(super) type Objects = Arc<Vec<Arc<Object>>>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The mesh's switches.
    pub mesh: Arc<Mesh>,
    /// Whether the objects are a cluster's.
    pub in_cluster: bool,
    /// Labels and annotations of every namespace that anything lives in.
    pub namespaces: Arc<BTreeMap<String, NamespaceView>>,
    /// How many objects live in each namespace.
    pub(super) population: Sorted<String, usize>,
    /// Services with what is behind them.
    pub services: Sorted<Name, ServiceView>,
    /// Services with a selector, by namespace and the selector's first label with its value.
    pub(super) choosers: Sorted<(String, String, String, String), ()>,
    /// Instances by (namespace, instance).
    pub instances: Sorted<Name, Instance>,
    /// Those that a node agent is to start, with a sidecar.
    pub(crate) started: Sorted<Name, ()>,
    /// Instances of each Workload, by (namespace, workload), in order.
    pub workloads: Sorted<Name, Vec<Name>>,
    /// Services in front of each instance, in order.
    pub fronts: Sorted<Name, Vec<Name>>,
    /// Who has an address.
    pub addresses: Sorted<IpAddr, Address>,
    /// All that claim an address, where it is more than one: the first has it.
    pub(super) contested: Sorted<IpAddr, Vec<AddressClaim>>,
    /// EndpointSlices by (namespace, Service).
    pub slices: Sorted<Name, Vec<Arc<Object>>>,
    /// Which EndpointSlices have an address: Service and slice, all of one namespace.
    pub listed: Sorted<IpAddr, BTreeSet<(Name, String)>>,
    /// Every route of whatever kind, the oldest first.
    pub routes: Objects,
    /// Routes by the Service they name as a parent, the oldest first.
    pub service_routes: Sorted<Name, Vec<Arc<Object>>>,
    /// Service ports that a GRPCRoute leads to; translation, which knows what attaches, says so at its first use.
    pub(crate) grpc_ports: Arc<OnceLock<BTreeSet<(Name, u16)>>>,
    /// Names of the GatewayClasses that we serve.
    pub(super) classes: Arc<Vec<String>>,
    /// Gateways of our classes.
    pub gateways: Sorted<Name, Arc<Object>>,
    /// ListenerSets, by namespace and name.
    pub listener_sets: Sorted<Name, Arc<Object>>,
    /// ListenerSets by the Gateway they name as a parent, the oldest first.
    pub gateway_sets: Sorted<Name, Vec<Arc<Object>>>,
    /// BackendTLSPolicies by each Service they are about, the oldest first.
    pub backend_tls: Sorted<Name, Vec<Arc<Object>>>,
    /// Backends outside the mesh.
    pub externals: Sorted<Name, Arc<Object>>,
    /// Own addresses of our Gateways' proxies, IPv4 first.
    pub gateway_addresses: Sorted<Name, Vec<IpAddr>>,
    /// Gateways of other controllers' classes.
    pub foreign_gateways: Arc<BTreeSet<Name>>,
    /// PeerAuthentications, the oldest first.
    pub peer_authentications: Objects,
    /// RequestAuthentications, the oldest first.
    pub request_authentications: Objects,
    /// Telemetries, the oldest first.
    pub telemetries: Objects,
    /// Those about routes and Services by each of them, the oldest first.
    pub call_telemetries: Sorted<Place, Vec<Arc<Object>>>,
    /// Revocations, the oldest first.
    pub revocations: Objects,
    /// Canaries, the oldest first.
    pub canaries: Objects,
    /// What they come to.
    pub canaried: Arc<CanaryIndex>,
    /// What they come to.
    pub revoked: Arc<Revoked>,
    /// TrafficPolicies by each place they are about, the oldest first.
    pub traffic: Sorted<Place, Vec<Arc<Object>>>,
    /// Objects of edge kinds by each place they are about, the oldest first; where no version of one was ever good, what stands for it.
    pub edge: Sorted<Place, Vec<Arc<Object>>>,
    /// Consumers by the page that they stand on, the oldest first.
    pub consumers: Sorted<u8, Vec<Arc<Object>>>,
    /// Credentials that several of them claim; translation says so at its first use.
    pub(crate) claims: OnceLock<Arc<Claims>>,
    /// Whether there is an OidcLogin; said at its first use.
    pub(super) logins: OnceLock<bool>,
    /// Callers that some fault is for.
    pub fault_callers: Arc<BTreeSet<Caller>>,
    /// TrafficPolicies with a selector, the oldest first.
    pub traffic_selectors: Objects,
    /// EgressPolicies, by namespace and name.
    pub egress: Objects,
    /// AuthorizationPolicies for the inbound side, in the order in which they are asked: Deny, Allow, Audit, each by name.
    pub authorizations: Objects,
    /// Policies that are left out, and at which workloads; translation says so at its first use.
    pub(crate) left_out: OnceLock<BTreeMap<ObjectKey, BTreeSet<Name>>>,
    /// ReferenceGrants by namespace.
    pub grants: Arc<BTreeMap<String, Vec<Arc<Object>>>>,
    /// Secrets and ConfigMaps, which others refer to.
    pub contents: Objects,
    /// Instances that another Workload's instance of the same name hides: (namespace, instance, hidden Workload).
    pub hidden: Arc<BTreeSet<(String, String, String)>>,
}

/// A namespace's labels and annotations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamespaceView {
    /// Labels, with the one Kubernetes adds by itself.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A Service and what is behind it.
#[derive(Clone, Debug)]
pub struct ServiceView {
    /// The Service.
    pub object: Arc<Object>,
    /// Its virtual addresses, IPv4 first; none for a headless one.
    pub addresses: Vec<IpAddr>,
    /// The instances that its selector picks.
    pub instances: Vec<Name>,
}

/// Of the same version of the Service: it is the object itself that counts.
impl PartialEq for ServiceView {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.object, &other.object) && self.addresses == other.addresses && self.instances == other.instances
    }
}

impl ServiceView {
    /// The Service's content.
    pub fn service(&self) -> Option<&Service> {
        if let Spec::Service(service) = &self.object.spec { Some(service) } else { None }
    }

    /// (namespace, name).
    pub fn name(&self) -> (&str, &str) {
        (&self.object.key.namespace, &self.object.key.name)
    }
}

/// A claim to an address. The smaller wins: Services before instances, what a cluster gave before what somebody wrote, then the older.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AddressClaim {
    /// Gateways, whose addresses are given to nobody else, before all others.
    pub rank: u8,
    /// A Workload's: whoever may write one writes any address into it, also that of another tenant's pod.
    pub declared: bool,
    /// Age of the claimant, milliseconds since 1970.
    pub created_ms: i64,
    /// Who claims it.
    pub name: Name,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Service, as its virtual address.
    Service(Name),
    /// An instance.
    Instance(Name),
    /// A Gateway's proxy.
    Gateway(Name),
}

impl Index {
    /// From nothing, whatever was before.
    #[cfg(test)]
    pub(crate) fn rebuilt(world: &super::World) -> Self {
        Self::build(world)
    }

    /// All of it as text, but what is found at the first use.
    #[cfg(test)]
    pub(crate) fn plain(&self) -> String {
        format!(
            "{:#?}",
            Self {
                grpc_ports: Arc::default(),
                left_out: OnceLock::new(),
                claims: OnceLock::new(),
                logins: OnceLock::new(),
                ..self.clone()
            }
        )
    }

    /// Whether people log in somewhere: then the cookies of logins go no further, anywhere.
    pub fn has_logins(&self) -> bool {
        *self.logins.get_or_init(|| self.edge.values().flatten().any(|object| matches!(object.spec, Spec::OidcLogin(_))))
    }

    /// Whether Gateways of that class are ours.
    pub fn serves(&self, class: &str) -> bool {
        self.classes.iter().any(|ours| ours == class)
    }

    /// What a Secret or ConfigMap holds.
    pub fn content(&self, key: &ObjectKey) -> Option<&Contents> {
        let place = self.contents.binary_search_by(|object| object.key.cmp(key)).ok()?;
        match &self.contents[place].spec {
            Spec::Secret(contents) | Spec::ConfigMap(contents) => Some(contents),
            _ => None,
        }
    }

    /// A label of a namespace.
    pub fn namespace_label(&self, namespace: &str, label: &str) -> Option<&str> {
        self.namespaces.get(namespace)?.labels.get(label).map(String::as_str)
    }

    /// Whether a grant in `to_namespace` lets objects of `from` (group, kind, namespace) refer to every `to` (group, kind) there.
    pub fn granted_all(&self, from: (&str, &str, &str), to_namespace: &str, to: (&str, &str)) -> bool {
        // No object has an empty name.
        self.granted(from, to_namespace, (to.0, to.1, ""))
    }

    /// Whether a grant in `to_namespace` lets objects of `from` (group, kind, namespace) refer to `to` (group, kind, name).
    pub fn granted(&self, from: (&str, &str, &str), to_namespace: &str, to: (&str, &str, &str)) -> bool {
        self.grants.get(to_namespace).into_iter().flatten().any(|object| {
            let Spec::ReferenceGrant(grant) = &object.spec else { return false };
            grant.from.iter().any(|(group, kind, namespace)| (group.as_str(), kind.as_str(), namespace.as_str()) == from)
                && grant.to.iter().any(|(group, kind, name)| {
                    (group.as_str(), kind.as_str()) == (to.0, to.1) && name.as_deref().is_none_or(|name| name == to.2)
                })
        })
    }
}
