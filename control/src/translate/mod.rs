//! From a [`World`] to what each proxy runs, what each object's status says and what the node agent starts. Pure: same world,
//! same answer, whatever the order in which it came about.

mod access_log;
mod advice;
mod analyze;
mod attach;
mod authorities;
mod backend_tls;
mod canary;
mod cluster;
mod collectors;
mod conflict;
mod declared;
mod dns;
mod edge;
mod edge_advice;
mod edge_listeners;
mod edge_port;
mod edge_tls;
mod endpoint;
mod engine_verdict;
mod external_backend;
mod frontend;
mod judged;
mod listener;
mod mtls;
mod node;
mod part;
mod policy;
mod protocol;
mod rank;
mod reached;
mod refusal;
mod route;
mod rule;
mod security;
mod settings;
mod status;
mod status_edge;
mod status_words;
mod stream;
mod subject;
mod tls_policy;
mod touched;
mod trust;
mod usable;
mod view;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use prost_types::Any;
use proto::names::{Mode, NodeId};

pub use analyze::{analyze, analyze_at, audit, audit_of};
pub use attach::Backend;
pub use canary::{canary_trouble, canary_unready};
pub use cluster::{Calling, Destination};
pub use edge::acme::{AcmeName, acme_names, acme_row};
pub(crate) use edge::counted::{LimitPlaces, limit_exists};
pub use edge::webhook::AcmeWebhook;
pub(crate) use edge::webhook::called_endpoints;
pub use edge_tls::{EdgeCertificate, edge_certificates};
pub(crate) use endpoint::arrives_untouched;
pub use mtls::is_strict;
pub use node::{gateway_ports, instance_fingerprint, node_order};
pub use part::{PartKey, ViewPart};
pub use policy::{ResolvedSetting, resolved};
pub use security::{Observed, ObservedCall, SuggestedPolicy, Suggestion, suggest};
pub use settings::own_tracing;
pub use status::{AncestorStatus, CanaryStatus, Condition, ListenerStatus, ParentStatus, Status, statuses};
pub use subject::{Affected, Subject};
pub use touched::touched;
pub use trust::trust;
pub use usable::Usable;
pub use view::{compose, view};

use crate::world::World;

/// Type URL of [`proto::mesh::ProxyConfig`].
pub const PROXY_CONFIG: &str = "type.googleapis.com/meshwright.v1.ProxyConfig";
/// Type URL of [`proto::mesh::Trust`].
pub const TRUST: &str = "type.googleapis.com/meshwright.v1.Trust";
/// Type URL of [`proto::mesh::Authentication`].
pub const AUTHENTICATION: &str = "type.googleapis.com/meshwright.v1.Authentication";
/// Type URL of [`proto::mesh::DnsRecord`].
pub const DNS_RECORD: &str = "type.googleapis.com/meshwright.v1.DnsRecord";

/// Type URL of [`proto::mesh::Egress`].
pub const EGRESS: &str = "type.googleapis.com/meshwright.v1.Egress";
/// Type URL of [`proto::mesh::Authorization`].
pub const AUTHORIZATION: &str = "type.googleapis.com/meshwright.v1.Authorization";

/// Type URL of [`proto::mesh::Consumers`].
pub const CONSUMERS: &str = "type.googleapis.com/meshwright.v1.Consumers";

/// Whom a view is for. Translation sees nothing else of a client, so this is the whole key of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Audience {
    /// Node id: sidecar or edge, namespace, instance.
    pub node: NodeId,
    /// Name of its workload (of its Gateway, for an edge).
    pub workload: String,
    /// Labels of its workload.
    pub labels: BTreeMap<String, String>,
    /// Account of its identity.
    pub service_account: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

/// A resource ready to be sent.
#[derive(Debug)]
pub struct Encoded {
    /// [`proto::epoch::version`] of the bytes.
    pub version: String,
    /// The resource.
    pub any: Any,
    /// Why the proxy's engine would refuse it; asked once, however many streams have it.
    verdict: OnceLock<Option<String>>,
}

impl Encoded {
    /// With the version of its bytes.
    pub fn new(any: Any) -> Self {
        Self::of_version(proto::epoch::version(&any.value), any)
    }

    /// With a version of somebody's choice.
    pub fn of_version(version: String, any: Any) -> Self {
        Self { version, any, verdict: OnceLock::new() }
    }

    /// Why it is refused, if it is; `ask` says so at the first use.
    pub fn refused(&self, ask: impl FnOnce() -> Option<String>) -> Option<&str> {
        self.verdict.get_or_init(ask).as_deref()
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.any == other.any
    }
}

/// Everything that one proxy should hold now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// By (type URL, name).
    pub resources: BTreeMap<(&'static str, String), Arc<Encoded>>,
    /// Names asked for that lead nowhere.
    pub missing: BTreeSet<String>,
}

/// The audience that a node id stands for: a declared instance that is meshed, or a Gateway of ours; `None` if there is none.
pub fn audience(world: &World, node: &NodeId) -> Option<Audience> {
    let index = world.index();
    let name = (node.namespace.clone(), node.instance.clone());
    match node.mode {
        Mode::Sidecar => {
            let instance = index.instances.get(&name).filter(|instance| instance.meshed)?;
            Some(Audience {
                node: node.clone(),
                workload: instance.workload.clone(),
                labels: instance.labels().clone(),
                service_account: instance.workload()?.service_account.clone(),
                addresses: instance.addresses.clone(),
            })
        }
        Mode::Edge => {
            let gateway = index.gateways.get(&name)?;
            Some(Audience {
                node: node.clone(),
                workload: node.instance.clone(),
                labels: gateway.metadata.labels.clone(),
                service_account: edge_account(&node.instance),
                addresses: index.gateway_addresses.get(&name).cloned().unwrap_or_default(),
            })
        }
    }
}

/// Every audience that the world declares, in order.
pub fn audiences(world: &World) -> Vec<Audience> {
    let index = world.index();
    let node = |mode, name: &(String, String)| NodeId { mode, namespace: name.0.clone(), instance: name.1.clone() };
    let sidecars = index.instances.keys().map(|name| node(Mode::Sidecar, name));
    let edges = index.gateways.keys().map(|name| node(Mode::Edge, name));
    sidecars.chain(edges).filter_map(|node| audience(world, &node)).collect()
}

/// The service account of a Gateway's proxy: its own name, so that policies can name it.
fn edge_account(gateway: &str) -> String {
    gateway.to_owned()
}
