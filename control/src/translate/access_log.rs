//! What a proxy is told of its access log.

use proto::mesh::access_log::Format;
use proto::mesh::log_sink::{Als, File, Kind, Otlp, Stdout};
use proto::mesh::{AccessLog, LogSink};

use super::advice::Finding;
use super::collectors::relayed;
use crate::world::problem::Severity;
use crate::world::route::Reference;
use crate::world::telemetry::{LogForm, LogTarget, Telemetry};
use crate::world::{Index, World};

/// The zone that Services' names are in.
const ZONE: &str = "svc.cluster.local";

/// By the objects that hold for it.
pub(super) fn sent(world: &World, telemetry: &Telemetry) -> AccessLog {
    let (mut template, mut fields) = (String::new(), Vec::new());
    let format = match telemetry.log_format.as_ref() {
        Some(LogForm::Combined) => Format::Combined,
        Some(LogForm::Text(text)) => {
            template.clone_from(text);
            Format::Text
        }
        Some(LogForm::Fields(names)) => {
            fields.clone_from(names);
            Format::Json
        }
        Some(LogForm::Json) | None => Format::Json,
    };
    AccessLog {
        enabled: telemetry.access_log.unwrap_or(true),
        format: format.into(),
        template,
        fields,
        filter: telemetry.log_filter.clone().unwrap_or_default(),
        sample_success_percent: telemetry.log_success_percent,
        sinks: telemetry.log_sinks.iter().flatten().map(|target| LogSink { kind: Some(sink(world, target)) }).collect(),
    }
}

fn sink(world: &World, target: &LogTarget) -> Kind {
    match target {
        LogTarget::Stdout => Kind::Stdout(Stdout {}),
        LogTarget::File(file) => Kind::File(File { path: file.path.clone(), bytes_max: file.bytes_max, keep: file.keep }),
        LogTarget::Otlp(endpoint) => Kind::Otlp(Otlp { endpoint: relayed(world, endpoint) }),
        LogTarget::Als(reference) => Kind::Als(Als { address: address(reference) }),
    }
}

/// By name: where that leads each proxy finds out by itself, as for any call of its own.
fn address(reference: &Reference) -> String {
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    format!("http://{}.{namespace}.{ZONE}:{}", reference.name, reference.port.unwrap_or_default())
}

/// Whether lines go to Services.
pub(super) fn refers(spec: &Telemetry) -> bool {
    spec.log_sinks.iter().flatten().any(|target| matches!(target, LogTarget::Als(_)))
}

/// What is worth to be told about sinks of one object: Services that are not there.
pub(super) fn findings(index: &Index, spec: &Telemetry) -> Vec<Finding> {
    let absent = |target: &LogTarget| {
        let LogTarget::Als(reference) = target else { return None };
        let namespace = reference.namespace.clone().unwrap_or_default();
        let there = index.services.get(&(namespace.clone(), reference.name.clone())).and_then(|view| view.service());
        let message = match there {
            None => format!("there is no Service {namespace}/{}", reference.name),
            Some(service) if service.ports.iter().all(|port| Some(port.port) != reference.port) => {
                format!("Service {namespace}/{} has no port {}", reference.name, reference.port.unwrap_or_default())
            }
            Some(_) => return None,
        };
        Some(Finding {
            severity: Severity::Warning,
            field: ("spec.accessLog.sinks".to_owned(), reference.line),
            message: format!("{message}, and lines for it are dropped"),
            remedy: "correct the reference".to_owned(),
        })
    };
    spec.log_sinks.iter().flatten().filter_map(absent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, WorldSettings};

    fn made(sinks: &str) -> World {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: als, namespace: shop}}\nspec: {{ports: [{{port: 9000}}]}}\n---\n\
             apiVersion: meshwright.dev/v1alpha1\nkind: Telemetry\nmetadata: {{name: log, namespace: shop}}\nspec: {{accessLog: {{sinks: [{sinks}]}}}}\n"
        );
        let bridge = Some("10.77.0.1".parse().unwrap());
        let mut world = World::new(WorldSettings { bridge, ..WorldSettings::default() }, Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
        world
    }

    fn telemetry(world: &World) -> Telemetry {
        let object = &world.index().telemetries[0];
        crate::world::telemetry::content(object).unwrap().clone()
    }

    /// Aim: a Service is told by its name in the mesh, a loopback collector by the relay that the node agent runs for it.
    #[test]
    fn sinks_are_told_as_proxies_reach_them() {
        let world = made(
            "{als: {backendRef: {name: als, port: 9000}}}, {otlp: {endpoint: 'http://127.0.0.1:4317'}}, {otlp: {endpoint: 'http://c.obs:4317'}}",
        );
        let sent = sent(&world, &telemetry(&world));
        let relay = super::super::collectors::relays(&world).remove(0);
        assert_eq!(relay.target, "127.0.0.1:4317");
        let kinds: Vec<Kind> = sent.sinks.into_iter().map(|sink| sink.kind.unwrap()).collect();
        let otlp = |endpoint: String| Kind::Otlp(Otlp { endpoint });
        let als = Kind::Als(Als { address: "http://als.shop.svc.cluster.local:9000".into() });
        assert_eq!(kinds, [als, otlp(format!("http://10.77.0.1:{}", relay.port)), otlp("http://c.obs:4317".into())]);
    }

    /// Aim: a Service or port that is not there is told; one that is there is not.
    #[test]
    fn services_that_are_not_there_are_told() {
        for (reference, wanted) in [
            ("name: als, port: 9000", None),
            ("name: als, port: 9001", Some("Service shop/als has no port 9001")),
            ("name: none, port: 9000", Some("there is no Service shop/none")),
        ] {
            let world = made(&format!("{{als: {{backendRef: {{{reference}}}}}}}"));
            let found = findings(world.index(), &telemetry(&world));
            assert_eq!(found.len(), usize::from(wanted.is_some()), "{reference}");
            assert!(wanted.is_none_or(|wanted| found[0].message.starts_with(wanted)), "{found:?}");
            let status = format!("{:?}", crate::translate::statuses(&world));
            assert!(status.contains("ResolvedRefs") && status.contains("BackendNotFound") == wanted.is_some(), "{status}");
        }
    }
}
