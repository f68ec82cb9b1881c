//! Policies that say different things about the same workloads at the same place: the older wins, field by field (`kinds.md`).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::mtls::{self, applies, place};
use crate::world::own::Selector;
use crate::world::traffic::PolicyTarget;
use crate::world::{Index, Kind, Object, ObjectKey, telemetry};

/// How a policy loses.
pub(super) struct Conflict {
    /// The (oldest) one that wins.
    pub winner: ObjectKey,
    /// Whether nothing of the loser is left.
    pub whole: bool,
}

/// What a policy sets, and for whom.
fn said(object: &Object) -> Option<(&Selector, BTreeSet<String>)> {
    if let Some(spec) = mtls::content(object) {
        let ports = spec.ports.keys().map(|port| format!("portLevelMtls.{port}"));
        return Some((&spec.selector, spec.mode.iter().map(|_| "mtls".to_owned()).chain(ports).collect()));
    }
    let spec = telemetry::content(object)?;
    let fields = [
        ("accessLog.enabled", spec.access_log.is_some()),
        ("accessLog.format", spec.log_format.is_some()),
        ("tracing.otlp", spec.otlp.is_some()),
        ("tracing.zipkin", spec.zipkin_endpoint.is_some()),
        ("tracing.samplePercent", spec.sample_percent.is_some()),
        ("tracing.attributes", spec.attributes.is_some()),
        ("metrics.seriesMax", spec.series_max.is_some()),
        ("tracing.keepErrors", spec.keep_errors.is_some()),
        ("tracing.keepSlowerThan", spec.keep_slower.is_some()),
        ("tracing.inferLinks", spec.infer_links.is_some()),
        ("accessLog.filter", spec.log_filter.is_some()),
        ("accessLog.sampleSuccessPercent", spec.log_success_percent.is_some()),
        ("accessLog.sinks", spec.log_sinks.is_some()),
        ("metrics.labels.drop", spec.dropped_labels.is_some()),
        ("metrics.labels.add", spec.added_labels.is_some()),
        ("metrics.otlp", spec.metrics_otlp.is_some()),
    ];
    Some((&spec.selector, fields.into_iter().filter(|(_, set)| *set).map(|(name, _)| name.to_owned()).collect()))
}

/// Whether, and to whom, a PeerAuthentication or Telemetry loses.
pub(super) fn of(index: &Index, object: &Object) -> Option<Conflict> {
    let rivals: &[Arc<Object>] = match object.key.kind {
        Kind::PeerAuthentication => &index.peer_authentications,
        Kind::Telemetry => &index.telemetries,
        _ => return None,
    };
    let (selector, fields) = said(object)?;
    let named = telemetry::content(object).map_or(&[][..], |spec| &spec.targets);
    if !named.is_empty() {
        return of_named(rivals, object, named, &fields);
    }
    let own = place(object, selector);
    let workloads = index.instances.values().filter(|instance| applies(object, selector, &instance.namespace, instance.labels()));
    let mut about: Vec<Option<_>> = workloads.map(|instance| Some((&instance.namespace, instance.labels()))).collect();
    if selector.is_none() {
        // A namespace is a namespace, also before anything lives in it.
        about = vec![None];
    }
    let (mut lost, mut kept, mut winner) = (0_usize, 0_usize, None);
    for one in &about {
        for field in &fields {
            let stronger = rivals.iter().take_while(|rival| rival.key != object.key).find(|rival| {
                let Some((theirs, set)) = said(rival).filter(|(theirs, _)| place(rival, theirs) == own) else { return false };
                if telemetry::content(rival).is_some_and(|spec| !spec.targets.is_empty()) {
                    return false;
                }
                let meets = match one {
                    Some((namespace, labels)) => applies(rival, theirs, namespace, labels),
                    None => rival.key.namespace == object.key.namespace,
                };
                meets && set.contains(field)
            });
            match stronger {
                Some(rival) => {
                    lost += 1;
                    winner.get_or_insert_with(|| rival.key.clone());
                }
                None => kept += 1,
            }
        }
    }
    winner.filter(|_| lost > 0).map(|winner| Conflict { winner, whole: kept == 0 })
}

/// The same of a Telemetry that says by name what it is about.
fn of_named(rivals: &[Arc<Object>], object: &Object, named: &[PolicyTarget], fields: &BTreeSet<String>) -> Option<Conflict> {
    let (mut kept, mut winner) = (0_usize, None);
    for (target, field) in named.iter().flat_map(|target| fields.iter().map(move |field| (target, field))) {
        let stronger = rivals.iter().take_while(|rival| rival.key != object.key).find(|rival| {
            let names = telemetry::content(rival).is_some_and(|spec| spec.targets.iter().any(|other| other.place("") == target.place("")));
            names && rival.key.namespace == object.key.namespace && said(rival).is_some_and(|(_, set)| set.contains(field))
        });
        match stronger {
            Some(rival) => _ = winner.get_or_insert_with(|| rival.key.clone()),
            None => kept += 1,
        }
    }
    winner.map(|winner| Conflict { winner, whole: kept == 0 })
}
