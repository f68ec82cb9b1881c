//! From a [`World`] to what each proxy runs, what each object's status says and what the node agent starts. Pure: same world,
//! same answer, whatever the order in which it came about.

mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use prost_types::Any;
use proto::names::NodeId;

pub use status::{Condition, Status};

use crate::world::{ObjectKey, World};

/// Whom a view is for. Translation sees nothing else of a client, so this is the whole key of a cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// [`proto::epoch::version`] of the bytes.
    pub version: String,
    /// The resource.
    pub any: Any,
}

/// Everything that one proxy should hold now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// By (type URL, name).
    pub resources: BTreeMap<(&'static str, String), Arc<Encoded>>,
    /// Names asked for that lead nowhere.
    pub missing: BTreeSet<String>,
}

/// The audience that a node id stands for: a declared instance or Gateway; `None` if there is none of that name.
pub fn audience(world: &World, node: &NodeId) -> Option<Audience> {
    let _ = (world, node);
    None
}

/// What a proxy should hold: what its own listeners imply, and the closure of the names it `wants` (`out/IP:PORT`, `dns/NAME`).
pub fn view(world: &World, audience: &Audience, wants: &BTreeSet<String>) -> View {
    let _ = (world, audience);
    View { missing: wants.clone(), ..View::default() }
}

/// What the status of every object says.
pub fn statuses(world: &World) -> BTreeMap<ObjectKey, Status> {
    let _ = world;
    BTreeMap::new()
}

/// What the node agent should run now; the epoch's number is the caller's to fill in.
pub fn node_order(world: &World) -> proto::mesh::NodeOrder {
    proto::mesh::NodeOrder { synced: world.synced(), ..Default::default() }
}
