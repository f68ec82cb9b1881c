//! Where what is told about traffic goes, and how that is reached: as the objects say, past the node agent's relays where it is its host's.

use std::collections::{BTreeMap, BTreeSet};

use engine::model::MetricLabel;
use proto::mesh::tracing::OtlpProtocol as WireProtocol;
use proto::mesh::{Metrics, RelayOrder, Tracing};
use xxhash_rust::xxh3::xxh3_64;

use crate::world::World;
use crate::world::telemetry::{LogTarget, Otlp, OtlpProtocol, Telemetry, content};

/// First port at which the node agent relays loopback endpoints.
const RELAY_PORT_FIRST: u16 = 15400;
/// Most relays.
const RELAYS_MAX: usize = 100;
/// Share of new traces where nobody says one.
const SAMPLE_PERCENT_DEFAULT: f64 = 100.0;

/// Endpoints that one object names.
fn endpoints(spec: &Telemetry) -> impl Iterator<Item = &str> {
    let otlp = spec.otlp.as_ref().map(|otlp| otlp.endpoint.as_str());
    let logs = spec.log_sinks.iter().flatten().filter_map(|sink| match sink {
        LogTarget::Otlp(endpoint) => Some(endpoint.as_str()),
        LogTarget::Stdout | LogTarget::File(_) | LogTarget::Als(_) => None,
    });
    let metrics = spec.metrics_otlp.as_ref().map(|(endpoint, _)| endpoint.as_str());
    otlp.into_iter().chain(spec.zipkin_endpoint.as_deref()).chain(metrics).chain(logs)
}

/// The relays that the node agent runs: one per loopback endpoint, which means the host's. None without a bridge.
///
/// A relay's port follows from its target, so that it stays where it is whatever other endpoints come and go: who has a connection through
/// it need not be told.
pub(super) fn relays(world: &World) -> Vec<RelayOrder> {
    if world.settings().bridge.is_none() {
        return Vec::new();
    }
    let told = world.index().telemetries.iter().filter_map(|object| content(object)).flat_map(endpoints);
    let own = world.settings().otlp.as_ref().map(|otlp| otlp.endpoint.as_str());
    let targets: BTreeSet<&str> = told.chain(own).filter_map(loopback).collect();
    let mut taken = BTreeMap::new();
    for target in targets.into_iter().take(RELAYS_MAX) {
        let first = (xxh3_64(target.as_bytes()) % RELAYS_MAX as u64) as usize;
        // There are as many places as targets at most.
        if let Some(place) = (first..RELAYS_MAX).chain(0..first).find(|place| !taken.contains_key(place)) {
            taken.insert(place, target);
        }
    }
    let order = |(place, target): (usize, &str)| RelayOrder { port: u32::from(RELAY_PORT_FIRST) + place as u32, target: target.to_owned() };
    taken.into_iter().map(order).collect()
}

/// `HOST:PORT` of an endpoint in plaintext at loopback: nobody proves a name there that would not fit the relay's.
fn loopback(endpoint: &str) -> Option<&str> {
    let authority = authority(endpoint)?;
    let (host, _) = authority.rsplit_once(':')?;
    let bare = host.trim_matches(['[', ']']);
    let loopback = bare == "localhost" || bare.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    loopback.then_some(authority)
}

fn authority(endpoint: &str) -> Option<&str> {
    endpoint.strip_prefix("http://")?.split(['/', '?']).next()
}

/// What is meant by an endpoint, seen from inside the fabric.
pub(super) fn relayed(world: &World, endpoint: &str) -> String {
    let Some((target, bridge)) = loopback(endpoint).zip(world.settings().bridge) else { return endpoint.to_owned() };
    let relay = relays(world).into_iter().find(|relay| relay.target == target);
    let Some(port) = relay.and_then(|relay| u16::try_from(relay.port).ok()) else { return endpoint.to_owned() };
    endpoint.replacen(target, &std::net::SocketAddr::new(bridge, port).to_string(), 1)
}

/// What a proxy is told of spans, by the object that holds for it.
pub(super) fn tracing(world: &World, telemetry: &Telemetry) -> Tracing {
    let otlp = telemetry.otlp.as_ref().or(world.settings().otlp.as_ref());
    let protocol = match otlp.map(|otlp| otlp.protocol).unwrap_or_default() {
        OtlpProtocol::Grpc => WireProtocol::Grpc,
        OtlpProtocol::Http => WireProtocol::Http,
    };
    Tracing {
        otlp_endpoint: otlp.map(|Otlp { endpoint, .. }| relayed(world, endpoint)).unwrap_or_default(),
        sample_percent: telemetry.sample_percent.unwrap_or(SAMPLE_PERCENT_DEFAULT),
        attributes: telemetry.attributes.clone().unwrap_or_default(),
        keep_errors: telemetry.keep_errors.unwrap_or(false),
        keep_slower: telemetry.keep_slower.and_then(|bound| prost_types::Duration::try_from(bound).ok()),
        infer_links: telemetry.infer_links.unwrap_or(true),
        protocol: protocol.into(),
        zipkin_endpoint: telemetry.zipkin_endpoint.as_deref().map(|endpoint| relayed(world, endpoint)).unwrap_or_default(),
    }
}

/// What a proxy is told of metrics, likewise.
pub(super) fn metrics(world: &World, telemetry: &Telemetry) -> Metrics {
    let names = |labels: &Option<Vec<MetricLabel>>| labels.iter().flatten().map(|label| label.text().to_owned()).collect();
    let (endpoint, interval) = telemetry.metrics_otlp.as_ref().map(|(endpoint, interval)| (relayed(world, endpoint), *interval)).unzip();
    Metrics {
        dropped_labels: names(&telemetry.dropped_labels),
        added_labels: names(&telemetry.added_labels),
        otlp_endpoint: endpoint.unwrap_or_default(),
        otlp_interval: interval.and_then(|interval| prost_types::Duration::try_from(interval).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plaintext_at_loopback_is_relayed() {
        // Aim: every spelling of the host's own loopback leads to one target, whatever is behind it; others are left as they are.
        for (endpoint, wanted) in [
            ("http://127.0.0.1:4317", Some("127.0.0.1:4317")),
            ("http://localhost:9411/api/v2/spans", Some("localhost:9411")),
            ("http://[::1]:4318/base", Some("[::1]:4318")),
            ("https://127.0.0.1:4317", None),
            ("http://collector.obs:4317", None),
            ("http://127.0.0.1", None),
        ] {
            assert_eq!(loopback(endpoint), wanted, "{endpoint}");
        }
    }
}
