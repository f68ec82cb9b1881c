//! ProxyConfig: what a proxy must know about itself, and what it is to tell about its traffic.

use std::collections::BTreeSet;

use engine::model::MetricLabel;
use proto::defaults::METRIC_SERIES_MAX;
use proto::identity::Identity;
use proto::mesh::access_log::Format;
use proto::mesh::{AccessLog, AppProbe, Metrics, ProxyConfig, RelayOrder, Tracing};
use proto::names::Mode;

use super::mtls::{AppliesTo, applies, place};
use super::{Audience, edge_account};
use crate::world::telemetry::{LogForm, Telemetry};
use crate::world::workload::{ProbeKind, Workload};
use crate::world::{Index, Name, Object, Spec, World};

/// First port at which the node agent relays loopback OTLP endpoints.
const RELAY_PORT_FIRST: u16 = 15400;
/// Most relays.
const RELAYS_MAX: usize = 100;
/// Share of new traces where nobody says one.
const SAMPLE_PERCENT_DEFAULT: f64 = 100.0;

/// The content of a Telemetry.
pub(super) fn content(object: &Object) -> Option<&Telemetry> {
    if let Spec::Telemetry(spec) = &object.spec { Some(spec) } else { None }
}

/// Whether it names a Gateway of its namespace.
pub(super) fn names(spec: &Telemetry, gateway: &str) -> bool {
    spec.gateways.iter().any(|target| target.name == gateway)
}

fn access_log(telemetry: &Telemetry) -> AccessLog {
    let enabled = telemetry.access_log.unwrap_or(true);
    let (format, template) = match telemetry.log_format.as_ref() {
        Some(LogForm::Combined) => (Format::Combined, String::new()),
        Some(LogForm::Text(template)) => (Format::Text, template.clone()),
        Some(LogForm::Json) | None => (Format::Json, String::new()),
    };
    AccessLog { enabled, format: format.into(), template }
}

/// Everything that Telemetry objects say of one workload: more specific wins per field, at one place the oldest.
fn telemetry(index: &Index, audience: &Audience) -> Telemetry {
    let (namespace, labels) = (&audience.node.namespace, &audience.labels);
    let about = |object: &Object, spec: &Telemetry| match spec.gateways.is_empty() {
        true => applies(object, &spec.selector, namespace, labels),
        false => audience.node.mode == Mode::Edge && object.key.namespace == *namespace && names(spec, &audience.workload),
    };
    // One that names the Gateway goes before those that select it by labels, or that hold for its namespace.
    let at = |object: &Object, spec: &Telemetry| (spec.gateways.is_empty(), place(object, &spec.selector));
    let mut found: Vec<((bool, AppliesTo), &Telemetry)> = index
        .telemetries
        .iter()
        .filter_map(|object| content(object).filter(|spec| about(object, spec)).map(|spec| (at(object, spec), spec)))
        .collect();
    // Stable: at one place the oldest stays first.
    found.sort_by_key(|(place, _)| *place);
    let mut all = Telemetry::default();
    for (_, spec) in found {
        all.access_log = all.access_log.or(spec.access_log);
        all.log_format = all.log_format.take().or_else(|| spec.log_format.clone());
        all.otlp_endpoint = all.otlp_endpoint.take().or_else(|| spec.otlp_endpoint.clone());
        all.sample_percent = all.sample_percent.or(spec.sample_percent);
        all.attributes = all.attributes.take().or_else(|| spec.attributes.clone());
        all.series_max = all.series_max.or(spec.series_max);
        all.dropped_labels = all.dropped_labels.take().or_else(|| spec.dropped_labels.clone());
        all.added_labels = all.added_labels.take().or_else(|| spec.added_labels.clone());
        all.metrics_otlp = all.metrics_otlp.take().or_else(|| spec.metrics_otlp.clone());
    }
    all
}

/// The relays that the node agent runs: one per loopback OTLP endpoint, which means the host's. None without a bridge.
pub(super) fn relays(world: &World) -> Vec<RelayOrder> {
    if world.settings().bridge.is_none() {
        return Vec::new();
    }
    let endpoints = |spec: &'_ Telemetry| [spec.otlp_endpoint.clone(), spec.metrics_otlp.as_ref().map(|(endpoint, _)| endpoint.clone())];
    let told = world.index().telemetries.iter().filter_map(|object| content(object)).flat_map(endpoints).flatten();
    let targets: BTreeSet<String> = told.chain(world.settings().otlp_endpoint.clone()).filter(|endpoint| is_loopback(endpoint)).collect();
    let order = |(place, endpoint): (u16, String)| {
        let target = endpoint.trim_start_matches("http://").to_owned();
        RelayOrder { port: u32::from(RELAY_PORT_FIRST + place), target }
    };
    (0..).zip(targets).take(RELAYS_MAX).map(order).collect()
}

/// What the sidecar asks the application for a kubelet: just what the workload's readiness probe asks. A command is the node's to run.
fn probes(workload: &Workload) -> Vec<AppProbe> {
    let first = workload.ports.first().map(|port| AppProbe { port: port.port.into(), http_path: String::new() });
    let probe = match workload.readiness.as_ref().map(|probe| &probe.kind) {
        Some(ProbeKind::Http { path, port }) => Some(AppProbe { port: (*port).into(), http_path: path.clone() }),
        Some(ProbeKind::Tcp(port)) => Some(AppProbe { port: (*port).into(), http_path: String::new() }),
        Some(ProbeKind::Exec(_)) => None,
        Some(ProbeKind::Default) | None => first,
    };
    probe.into_iter().collect()
}

fn is_loopback(endpoint: &str) -> bool {
    let uri: Option<http::Uri> = endpoint.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// What is meant by an endpoint, seen from inside the fabric.
fn relayed(world: &World, endpoint: &str) -> String {
    let target = endpoint.trim_start_matches("http://");
    let relay = relays(world).into_iter().find(|relay| relay.target == target);
    match (relay, world.settings().bridge) {
        (Some(relay), Some(bridge)) => {
            let port = u16::try_from(relay.port).unwrap_or(RELAY_PORT_FIRST);
            format!("http://{}", std::net::SocketAddr::new(bridge, port))
        }
        _ => endpoint.to_owned(),
    }
}

fn metrics(world: &World, telemetry: &Telemetry) -> Metrics {
    let names = |labels: &Option<Vec<MetricLabel>>| labels.iter().flatten().map(|label| label.text().to_owned()).collect();
    let (endpoint, interval) = telemetry.metrics_otlp.as_ref().map(|(endpoint, interval)| (relayed(world, endpoint), *interval)).unzip();
    Metrics {
        dropped_labels: names(&telemetry.dropped_labels),
        added_labels: names(&telemetry.added_labels),
        otlp_endpoint: endpoint.unwrap_or_default(),
        otlp_interval: interval.and_then(|interval| prost_types::Duration::try_from(interval).ok()),
    }
}

/// Whose word on callers from outside is believed.
fn gateways(index: &Index) -> Vec<String> {
    let identity = |name: &Name| Identity::new(&index.mesh.trust_domain, &name.0, &edge_account(&name.1)).ok();
    index.gateways.keys().filter_map(identity).map(|identity| identity.to_string()).collect()
}

/// The resource for one audience.
pub(super) fn proxy_config(world: &World, audience: &Audience) -> ProxyConfig {
    let index = world.index();
    let telemetry = telemetry(index, audience);
    let endpoint = telemetry.otlp_endpoint.as_ref().or(world.settings().otlp_endpoint.as_ref());
    let instance = index.instances.get(&(audience.node.namespace.clone(), audience.node.instance.clone()));
    let sidecar = instance.filter(|_| audience.node.mode == Mode::Sidecar);
    let (region, zone) = sidecar.map_or(("", ""), |one| (&one.locality.0, &one.locality.1));
    ProxyConfig {
        trust_domain: index.mesh.trust_domain.clone(),
        outside_mesh_denied: index.mesh.outside_denied,
        mesh_cidrs: world.settings().mesh_ranges().iter().map(ToString::to_string).collect(),
        dns_zones: engine::dns::ZONES.map(str::to_owned).to_vec(),
        access_log: Some(access_log(&telemetry)),
        tracing: Some(Tracing {
            otlp_endpoint: endpoint.map(|endpoint| relayed(world, endpoint)).unwrap_or_default(),
            sample_percent: telemetry.sample_percent.unwrap_or(SAMPLE_PERCENT_DEFAULT),
            attributes: telemetry.attributes.clone().unwrap_or_default(),
        }),
        metrics: Some(metrics(world, &telemetry)),
        leaf_life: prost_types::Duration::try_from(index.mesh.leaf_life).ok(),
        rotate_at_percent: index.mesh.rotate_at_percent,
        metric_series_max: telemetry.series_max.unwrap_or(METRIC_SERIES_MAX.into()),
        namespace: audience.node.namespace.clone(),
        workload: audience.workload.clone(),
        service_account: audience.service_account.clone(),
        region: region.to_owned(),
        zone: zone.to_owned(),
        session_key: world.settings().session_key.0.to_vec().into(),
        probes: sidecar.and_then(|one| one.workload()).map(probes).unwrap_or_default(),
        gateways: sidecar.map(|_| gateways(index)).unwrap_or_default(),
        // Objects in a cluster are many people's, and what else runs beside an edge is not theirs.
        loopback_barred: audience.node.mode == Mode::Edge && index.in_cluster,
        own_addresses: audience.addresses.iter().map(ToString::to_string).collect(),
    }
}
