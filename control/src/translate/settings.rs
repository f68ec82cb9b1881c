//! ProxyConfig: what a proxy must know about itself, and what it is to tell about its traffic.

use std::collections::BTreeMap;

use proto::defaults::METRIC_SERIES_MAX;
use proto::identity::Identity;
use proto::mesh::{AppProbe, ProxyConfig, Tracing};
use proto::names::{Mode, NodeId};

use super::mtls::{AppliesTo, applies, place};
use super::{Audience, access_log, collectors, edge_account};
use crate::world::telemetry::{Telemetry, content};
use crate::world::workload::{ProbeKind, Workload};
use crate::world::{Index, Kind, Name, Object, World};

/// Whether it names a Gateway of its namespace.
pub(super) fn names(spec: &Telemetry, gateway: &str) -> bool {
    spec.targets.iter().any(|target| target.kind == Kind::Gateway && target.name == gateway)
}

/// Everything that Telemetry objects say of one workload: more specific wins per field, at one place the oldest.
fn telemetry(index: &Index, audience: &Audience) -> Telemetry {
    let (namespace, labels) = (&audience.node.namespace, &audience.labels);
    let about = |object: &Object, spec: &Telemetry| match spec.targets.is_empty() {
        true => applies(object, &spec.selector, namespace, labels),
        false => audience.node.mode == Mode::Edge && object.key.namespace == *namespace && names(spec, &audience.workload),
    };
    // One that names the Gateway goes before those that select it by labels, or that hold for its namespace.
    let at = |object: &Object, spec: &Telemetry| (spec.targets.is_empty(), place(object, &spec.selector));
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
        all.otlp = all.otlp.take().or_else(|| spec.otlp.clone());
        all.zipkin_endpoint = all.zipkin_endpoint.take().or_else(|| spec.zipkin_endpoint.clone());
        all.sample_percent = all.sample_percent.or(spec.sample_percent);
        all.attributes = all.attributes.take().or_else(|| spec.attributes.clone());
        all.series_max = all.series_max.or(spec.series_max);
        all.keep_errors = all.keep_errors.or(spec.keep_errors);
        all.keep_slower = all.keep_slower.or(spec.keep_slower);
        all.infer_links = all.infer_links.or(spec.infer_links);
        all.log_filter = all.log_filter.take().or_else(|| spec.log_filter.clone());
        all.log_success_percent = all.log_success_percent.or(spec.log_success_percent);
        all.log_sinks = all.log_sinks.take().or_else(|| spec.log_sinks.clone());
        all.dropped_labels = all.dropped_labels.take().or_else(|| spec.dropped_labels.clone());
        all.added_labels = all.added_labels.take().or_else(|| spec.added_labels.clone());
        all.metrics_otlp = all.metrics_otlp.take().or_else(|| spec.metrics_otlp.clone());
    }
    all
}

/// What the control plane is told of its own spans: what holds for a workload of the mesh's own namespace that nothing selects.
pub fn own_tracing(world: &World) -> Tracing {
    let namespace = proto::annotations::ROOT_NAMESPACE.to_owned();
    let audience = Audience {
        node: NodeId { mode: Mode::Sidecar, namespace, instance: String::new() },
        workload: String::new(),
        labels: BTreeMap::new(),
        service_account: String::new(),
        addresses: Vec::new(),
    };
    collectors::tracing(world, &telemetry(world.index(), &audience))
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

/// Whose word on callers from outside is believed.
fn gateways(index: &Index) -> Vec<String> {
    let identity = |name: &Name| Identity::new(&index.mesh.trust_domain, &name.0, &edge_account(&name.1)).ok();
    index.gateways.keys().filter_map(identity).map(|identity| identity.to_string()).collect()
}

/// The resource for one audience.
pub(super) fn proxy_config(world: &World, audience: &Audience) -> ProxyConfig {
    let index = world.index();
    let telemetry = telemetry(index, audience);
    let instance = index.instances.get(&(audience.node.namespace.clone(), audience.node.instance.clone()));
    let sidecar = instance.filter(|_| audience.node.mode == Mode::Sidecar);
    let (region, zone) = sidecar.map_or(("", ""), |one| (&one.locality.0, &one.locality.1));
    ProxyConfig {
        trust_domain: index.mesh.trust_domain.clone(),
        outside_mesh_denied: index.mesh.outside_denied,
        mesh_cidrs: world.settings().mesh_ranges().iter().map(ToString::to_string).collect(),
        dns_zones: engine::dns::ZONES.map(str::to_owned).to_vec(),
        access_log: Some(access_log::sent(world, &telemetry)),
        tracing: Some(collectors::tracing(world, &telemetry)),
        metrics: Some(collectors::metrics(world, &telemetry)),
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
