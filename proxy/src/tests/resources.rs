//! A client's proxy configured by resources, as a control plane sends them: one rule with a policy, clusters with theirs, endpoints without
//! mesh TLS, which the test itself plays.

use std::collections::BTreeMap;

use engine::model::build::Parts;
use prost::{Message, Name};
use prost_types::Any;
use proto::mesh::{BackendPolicy, ClusterPolicy, ProxyConfig, RoutePolicy, Tracing};
use proto::xds::cluster::Cluster as RawCluster;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use proto::xds::core::{Address, SocketAddress, address, socket_address};
use proto::xds::endpoint::{ClusterLoadAssignment, Endpoint as RawEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint};
use proto::xds::hcm::http_connection_manager::RouteSpecifier;
use proto::xds::hcm::{HttpConnectionManager, HttpFilter, Rds, http_filter};
use proto::xds::listener::{Filter, FilterChain, Listener, filter};
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::{Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route, weighted_cluster};
use proto::xds::{core, router};

use super::*;

/// What a client's proxy is told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) policy: RoutePolicy,
    /// Of every cluster.
    pub(crate) cluster: ClusterPolicy,
    pub(crate) timeout: Option<Duration>,
    /// Of the proxy.
    pub(crate) tracing: Option<Tracing>,
    /// Name, weight, policy and endpoints of each backend. Those of weight 0 are mirrors as well.
    pub(crate) backends: Vec<(&'static str, u32, BackendPolicy, Vec<&'static str>)>,
}

impl Told {
    /// One backend with these endpoints.
    pub(crate) fn to(endpoints: Vec<&'static str>) -> Self {
        Self { backends: vec![("shop/a:80", 1, BackendPolicy::default(), endpoints)], ..Self::default() }
    }

    fn put<M: Message + Name>(parts: &mut Parts, name: &str, message: &M) {
        let any = proto::xds::pack(message);
        parts.put(&M::type_url(), name, &proto::epoch::version(&any.value), &any).unwrap();
    }

    /// What a proxy runs that is told so.
    pub(crate) fn snapshot(&self, parts: &mut Parts, previous: &Snapshot) -> Arc<Snapshot> {
        let config = ProxyConfig {
            trust_domain: "cluster.local".into(),
            mesh_cidrs: vec!["10.96.0.0/12".into()],
            namespace: "shop".into(),
            workload: "frontend".into(),
            service_account: "frontend".into(),
            own_addresses: vec!["10.77.0.1".into()],
            session_key: vec![7; 32].into(),
            tracing: self.tracing.clone(),
            ..ProxyConfig::default()
        };
        Self::put(parts, "proxy", &config);
        Self::put(parts, &format!("out/{SERVICE}"), &listener());
        Self::put(parts, "shop/a:80", &self.table());
        for (name, _, _, endpoints) in &self.backends {
            Self::put(parts, name, &self.cluster(name));
            Self::put(parts, name, &assignment(name, endpoints));
        }
        Arc::new(parts.assemble(previous.epoch + 1, previous))
    }

    fn table(&self) -> RouteConfiguration {
        let weight = |(name, weight, policy, _): &(&str, u32, BackendPolicy, Vec<&str>)| weighted_cluster::ClusterWeight {
            name: (*name).to_owned(),
            weight: Some(*weight),
            typed_per_filter_config: extension(policy),
            ..Default::default()
        };
        let clusters = self.backends.iter().map(weight).collect();
        let action = RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })),
            timeout: self.timeout.and_then(|timeout| timeout.try_into().ok()),
            ..RouteAction::default()
        };
        let rule = Route {
            name: "HTTPRoute/shop/a/0".into(),
            r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }),
            action: Some(route::Action::Route(action)),
            typed_per_filter_config: extension(&self.policy),
            ..Route::default()
        };
        let host = VirtualHost { name: "*".into(), domains: vec!["*".into()], routes: vec![rule], ..VirtualHost::default() };
        let virtual_hosts = vec![host];
        RouteConfiguration { name: "shop/a:80".into(), virtual_hosts, ignore_port_in_host_matching: true, ..Default::default() }
    }

    fn cluster(&self, name: &str) -> RawCluster {
        RawCluster {
            name: name.to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            lb_policy: LbPolicy::LeastRequest.into(),
            typed_extension_protocol_options: extension(&self.cluster),
            metadata: Some(core::Metadata::default()),
            ..RawCluster::default()
        }
    }
}

fn extension<M: Message + Name + Default + PartialEq>(policy: &M) -> BTreeMap<String, Any> {
    let extension = (*policy != M::default()).then(|| (proto::names::POLICY.to_owned(), proto::xds::pack(policy)));
    extension.into_iter().collect()
}

fn address(text: &str) -> Address {
    let socket: SocketAddr = text.parse().unwrap();
    let port_specifier = Some(socket_address::PortSpecifier::PortValue(socket.port().into()));
    let socket = SocketAddress { address: socket.ip().to_string(), port_specifier, ..SocketAddress::default() };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn listener() -> Listener {
    let ads = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..core::ConfigSource::default()
    };
    let router = HttpFilter {
        name: "router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(proto::xds::pack(&router::Router {}))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds { config_source: Some(ads), route_config_name: "shop/a:80".into() })),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    let typed = filter::ConfigType::TypedConfig(proto::xds::pack(&manager));
    Listener {
        name: format!("out/{SERVICE}"),
        address: Some(address(SERVICE)),
        bind_to_port: Some(false),
        traffic_direction: core::TrafficDirection::Outbound.into(),
        filter_chains: vec![FilterChain { filters: vec![Filter { name: "hcm".into(), config_type: Some(typed) }], ..Default::default() }],
        ..Listener::default()
    }
}

fn assignment(name: &str, endpoints: &[&str]) -> ClusterLoadAssignment {
    let one = |text: &&str| LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(RawEndpoint { address: Some(address(text)), ..Default::default() })),
        health_status: core::HealthStatus::Healthy.into(),
        ..LbEndpoint::default()
    };
    let lb_endpoints = endpoints.iter().map(one).collect();
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }],
        ..ClusterLoadAssignment::default()
    }
}

/// A world whose client's proxy is told so, and what it was told with.
pub(crate) fn told(told: &Told) -> (World, Parts) {
    let world = World::new(Setup { meshed: false, ..Setup::default() });
    let mut parts = Parts::default();
    let snapshot = told.snapshot(&mut parts, &Snapshot::default());
    *world.client_means.telemetry.readings.limits.lock() = Arc::clone(&snapshot.limits);
    *world.client_means.telemetry.readings.callouts.lock() = Arc::clone(&snapshot.callouts);
    world.client_means.snapshots.publish(snapshot);
    (world, parts)
}
