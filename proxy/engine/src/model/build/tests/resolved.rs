//! Clusters whose endpoints are the addresses of a name.

use std::net::IpAddr;

use proto::xds::cluster::Cluster as Raw;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType};
use proto::xds::core::{Address, SocketAddress, address, socket_address};
use proto::xds::endpoint::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint};

use crate::fixture;
use crate::model::{RESOLVED_MAX, Snapshot};

/// Of a host outside the mesh.
pub(super) fn resolved(name: &str, host: &str) -> Raw {
    let address = SocketAddress {
        address: host.into(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(443)),
        ..SocketAddress::default()
    };
    let address = Some(Address { address: Some(address::Address::SocketAddress(address)) });
    let host = Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint { address, ..Endpoint::default() }));
    let lb_endpoints = vec![LbEndpoint { host_identifier: host, ..LbEndpoint::default() }];
    let endpoints = vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }];
    Raw {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into())),
        load_assignment: Some(ClusterLoadAssignment { cluster_name: name.into(), endpoints, policy: None }),
        respect_dns_ttl: true,
        ..fixture::cluster(name)
    }
}

fn addresses(count: u8) -> Vec<IpAddr> {
    (0..count).map(|last| IpAddr::from([192, 0, 2, last])).collect()
}

#[test]
fn what_was_resolved_outlives_epochs() {
    // Aim: a push of the same cluster, of another policy, and of an assignment that nobody wanted leave the addresses that were found; they are
    // spoken to at the port that is named.
    let mut parts = fixture::shop();
    let name = "shop/external/api:443";
    fixture::put(&mut parts, name, &resolved(name, "API.example")).unwrap();
    let first = parts.assemble(1, &Snapshot::default());
    let cluster = first.clusters.get(name).unwrap();
    assert_eq!(&*cluster.policy.resolves.as_ref().unwrap().host, "api.example");
    cluster.resolved(&addresses(2));
    let other = Raw { connect_timeout: Some(prost_types::Duration { seconds: 7, nanos: 0 }), ..resolved(name, "api.example") };
    fixture::put(&mut parts, name, &other).unwrap();
    fixture::put(&mut parts, name, &ClusterLoadAssignment { cluster_name: name.into(), ..ClusterLoadAssignment::default() }).unwrap();
    let second = parts.assemble(2, &first);
    let set = second.clusters.get(name).unwrap().endpoints.load_full();
    let found: Vec<String> = set.ready.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(found, ["192.0.2.0:443", "192.0.2.1:443"]);
    assert!(set.ready.iter().all(|endpoint| &*endpoint.namespace == "shop" && endpoint.identity.is_none()));
}

#[test]
fn an_outside_names_addresses_are_bounded() {
    // Aim: each address once, and no more than the bound; what is not a name is refused.
    let mut parts = fixture::shop();
    let name = "shop/external/api:443";
    fixture::put(&mut parts, name, &resolved(name, "api.example")).unwrap();
    let cluster = std::sync::Arc::clone(parts.assemble(1, &Snapshot::default()).clusters.get(name).unwrap());
    let mut twice = addresses(200);
    twice.extend(addresses(200));
    cluster.resolved(&twice);
    assert_eq!(cluster.endpoints.load().ready.len(), RESOLVED_MAX);
    cluster.resolved(&[]);
    assert!(cluster.endpoints.load().ready.is_empty());
    for host in ["192.0.2.1", "", "a b"] {
        assert!(fixture::put(&mut parts, name, &resolved(name, host)).unwrap_err().why.contains("no name with a port"), "{host}");
    }
}
