//! Where a call of the proxy's own goes.

#![allow(clippy::disallowed_methods, reason = "a door: names of token issuers are the host's, where they are not the mesh's")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use engine::authenticate::KeysUri;
use engine::balance::{Choice, pick};
use engine::decide::{self, Decision, RequestHead};
use engine::dns::Place as Home;
use engine::model::{Cluster, ClusterKind, Endpoint, Outbound, Snapshot, Target};
use http::{HeaderMap, Method};
use proto::identity::Identity;
use tokio::net::lookup_host;

use crate::dns::Names as _;
use crate::io::is_this_machine;
use crate::snapshots::{Lookup, NameLookup, Snapshots};

/// An address, and who must be there.
#[derive(Debug)]
pub struct Place {
    /// Where.
    pub address: SocketAddr,
    /// It is a peer of the mesh.
    pub identity: Option<Arc<Identity>>,
}

/// Where an address of keys leads, the first choice first; nowhere, where that is not known and its server would not prove itself. To this machine
/// itself leads its own address alone and `localhost`, never what somebody's DNS says; neither where the control plane bars that. Waits for the
/// control plane and for DNS as long as these do.
pub async fn places(snapshots: &Snapshots, at: &KeysUri, draw: u64) -> Vec<Place> {
    let (mut addresses, of_mesh) = addresses(snapshots, at).await;
    if !of_mesh {
        addresses = led(addresses, at, snapshots.load().settings.as_ref().is_some_and(|settings| settings.loopback_barred));
    }
    let mut places = Vec::new();
    for ip in addresses {
        places.extend(place(snapshots, (SocketAddr::new(ip, at.port()), of_mesh), at, draw).await);
    }
    places
}

/// What is left of addresses that are not the mesh's.
pub(super) fn led(mut addresses: Vec<IpAddr>, at: &KeysUri, barred: bool) -> Vec<IpAddr> {
    addresses.retain(|ip| !is_this_machine(*ip) || (at.is_loopback() && !barred));
    addresses
}

/// The addresses of its host, and whether it is the mesh that has the name. What the mesh alone may have nobody else is asked for; neither,
/// for a call in plaintext, what it may have and does not tell.
async fn addresses(snapshots: &Snapshots, at: &KeysUri) -> (Vec<IpAddr>, bool) {
    let host = at.host();
    if let Ok(ip) = host.parse() {
        return (vec![ip], false);
    }
    let home = if at.is_loopback() { Home::Elsewhere } else { snapshots.place(host) };
    if home != Home::Elsewhere {
        let elsewhere = home == Home::Perhaps && at.is_secure();
        match snapshots.name(host, elsewhere).await {
            NameLookup::Found(answer) => return (answer.addresses.clone(), true),
            NameLookup::Absent if home == Home::Perhaps => {}
            NameLookup::Unknown if elsewhere => {}
            NameLookup::Absent | NameLookup::Unknown => return (Vec::new(), true),
        }
    }
    let found = lookup_host((host, 0)).await;
    (found.map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default(), false)
}

/// An address of the mesh's leads to an endpoint behind it, others to themselves. So does what cannot be led, where its server proves itself
/// by a name; a call in plaintext would believe whoever is there.
async fn place(snapshots: &Snapshots, (address, named): (SocketAddr, bool), at: &KeysUri, draw: u64) -> Option<Place> {
    let itself = Place { address, identity: None };
    let unled = || at.is_secure().then_some(Place { address, identity: None });
    let of_mesh = match &snapshots.load().settings {
        Some(settings) => named || settings.mesh_holds(address.ip()),
        // Nobody has said yet what is the mesh's.
        None => !at.is_secure() && !at.is_loopback(),
    };
    if !of_mesh {
        return Some(itself);
    }
    let Lookup::Found(outbound) = snapshots.outbound(address).await else { return unled() };
    let snapshot = snapshots.load();
    let endpoint = cluster(&outbound, at, draw).and_then(|cluster| endpoint(&snapshot, cluster, draw));
    endpoint.map_or_else(unled, |endpoint| Some(Place { address: endpoint.address, identity: endpoint.identity.clone() }))
}

/// The cluster that a request to this address of keys would be led to.
fn cluster<'o>(outbound: &'o Outbound, at: &KeysUri, draw: u64) -> Option<&'o Arc<Cluster>> {
    // Where nobody said what a port speaks, its bytes have a way of their own.
    let opaque = at.is_opaque() && outbound.tcp.is_some();
    if let Some(table) = outbound.http.as_ref().filter(|_| !at.is_secure() && !opaque) {
        let headers = HeaderMap::new();
        let head = RequestHead::new(&Method::GET, at.uri(), &headers);
        return match decide::decide(table, &head, draw) {
            Decision::Forward(plan) => plan.target.ok(),
            Decision::Reply { .. } => None,
        };
    }
    let forward = match &outbound.tls {
        Some(names) if !opaque || at.is_secure() => names.lookup(Some(at.host())),
        _ => outbound.tcp.as_ref(),
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
