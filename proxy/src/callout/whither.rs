//! Where a call of the proxy's own goes.

#![allow(clippy::disallowed_methods, reason = "a door: names of token issuers are the host's, where they are not the mesh's")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use engine::authenticate::KeysUri;
use engine::balance::{Choice, pick};
use engine::decide::{self, Decision, RequestHead};
use engine::model::{Cluster, ClusterKind, Endpoint, Outbound, Snapshot, Target};
use http::{HeaderMap, Method};
use proto::identity::Identity;
use tokio::net::lookup_host;

use crate::dns::Names as _;
use crate::snapshots::{Lookup, NameLookup, Snapshots};

/// An address, and who must be there.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) address: SocketAddr,
    /// It is a peer of the mesh.
    pub(super) identity: Option<Arc<Identity>>,
}

/// Where an address of keys leads, the first choice first. Waits for the control plane and for DNS as long as these do.
pub(super) async fn places(snapshots: &Snapshots, at: &KeysUri, draw: u64) -> Vec<Place> {
    let mut places = Vec::new();
    for ip in addresses(snapshots, at.host()).await {
        places.push(place(snapshots, SocketAddr::new(ip, at.port()), at, draw).await);
    }
    places
}

async fn addresses(snapshots: &Snapshots, host: &str) -> Vec<IpAddr> {
    if let Ok(ip) = host.parse() {
        return vec![ip];
    }
    let elsewhere = snapshots.place(host) != engine::dns::Place::Mesh;
    if snapshots.place(host) != engine::dns::Place::Elsewhere
        && let NameLookup::Found(answer) = snapshots.name(host, elsewhere).await
    {
        return answer.addresses.clone();
    }
    let found = lookup_host((host, 0)).await;
    found.map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

/// An address of the mesh's leads to an endpoint behind it; others, and what cannot be led, to themselves.
async fn place(snapshots: &Snapshots, address: SocketAddr, at: &KeysUri, draw: u64) -> Place {
    let itself = Place { address, identity: None };
    let of_mesh = snapshots.load().settings.as_ref().is_some_and(|settings| settings.mesh_holds(address.ip()));
    if !of_mesh {
        return itself;
    }
    let Lookup::Found(outbound) = snapshots.outbound(address).await else { return itself };
    let snapshot = snapshots.load();
    let endpoint = cluster(&outbound, at, draw).and_then(|cluster| endpoint(&snapshot, cluster, draw));
    endpoint.map_or(itself, |endpoint| Place { address: endpoint.address, identity: endpoint.identity.clone() })
}

/// The cluster that a request to this address of keys would be led to.
fn cluster<'o>(outbound: &'o Outbound, at: &KeysUri, draw: u64) -> Option<&'o Arc<Cluster>> {
    if let Some(table) = outbound.http.as_ref().filter(|_| !at.is_secure()) {
        let headers = HeaderMap::new();
        let head = RequestHead::new(&Method::GET, at.uri(), &headers);
        return match decide::decide(table, &head, draw) {
            Decision::Forward(plan) => plan.target.ok(),
            Decision::Reply { .. } => None,
        };
    }
    let forward = match &outbound.tls {
        Some(names) => names.lookup(Some(at.host())),
        None => outbound.tcp.as_ref(),
    };
    match forward.and_then(|forward| decide::choose(forward, draw)).map(|backend| &backend.target) {
        Some(Target::Cluster(cluster)) => Some(cluster),
        _ => None,
    }
}

fn endpoint(snapshot: &Snapshot, cluster: &Arc<Cluster>, draw: u64) -> Option<Arc<Endpoint>> {
    if cluster.kind != ClusterKind::Endpoints || snapshot.settings.is_none() {
        return None;
    }
    let set = cluster.endpoints.load();
    let choice = Choice { draw, hash: None, tried: &[], now: engine::Moment::default(), trials: false };
    pick(cluster, &set, &choice).cloned()
}
