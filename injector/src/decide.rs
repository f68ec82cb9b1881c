//! Whether a pod gets a sidecar.

use std::fmt;

use proto::annotations;
use serde_json::Value;

use crate::sidecar::{INTERCEPT_CONTAINER, PROXY_CONTAINER};

/// The verdict about one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// It gets a sidecar.
    Inject,
    /// It stays as it is.
    Skip(Skip),
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Its own label says no.
    OptedOut,
    /// Its namespace's label does not say yes, and the pod's own says nothing.
    NamespaceNotMeshed,
    /// The sidecar is there already.
    AlreadyInjected,
    /// It shares the node's network, whose rules are not ours to change.
    HostNetwork,
    /// It runs on Windows.
    NotLinux,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OptedOut => "its own label meshwright.dev/inject is not `enabled`",
            Self::NamespaceNotMeshed => "its namespace is not labelled meshwright.dev/inject: enabled",
            Self::AlreadyInjected => "the sidecar is there already",
            Self::HostNetwork => "it uses the node's network (hostNetwork: true)",
            Self::NotLinux => "it does not run on Linux",
        })
    }
}

/// Judges a pod by its `metadata` and `spec`. `namespace` is the value of its namespace's `meshwright.dev/inject` label: `None` where the
/// namespace is not known (then only the pod's own label can say no), `Some(None)` where it is known and has no such label.
pub fn decide(namespace: Option<Option<&str>>, metadata: &Value, spec: &Value) -> Injection {
    if [&spec["initContainers"], &spec["containers"]].into_iter().any(has_ours) {
        return Injection::Skip(Skip::AlreadyInjected);
    }
    if spec["hostNetwork"].as_bool() == Some(true) {
        return Injection::Skip(Skip::HostNetwork);
    }
    if spec["os"]["name"].as_str().is_some_and(|name| name != "linux") {
        return Injection::Skip(Skip::NotLinux);
    }
    let own = metadata["labels"][annotations::INJECT].as_str();
    match (own, namespace) {
        (Some(annotations::ENABLED), _) | (None, None | Some(Some(annotations::ENABLED))) => Injection::Inject,
        (Some(_), _) => Injection::Skip(Skip::OptedOut),
        (None, Some(_)) => Injection::Skip(Skip::NamespaceNotMeshed),
    }
}

fn has_ours(containers: &Value) -> bool {
    let names = containers.as_array().into_iter().flatten().filter_map(|container| container["name"].as_str());
    names.into_iter().any(|name| name == PROXY_CONTAINER || name == INTERCEPT_CONTAINER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: the pod's own label goes before its namespace's, and what cannot carry a sidecar never gets one.
    #[test]
    fn the_nearest_label_decides() {
        let labelled = |value: &str| json!({"labels": {"meshwright.dev/inject": value}});
        let plain = json!({"containers": [{"name": "app"}]});
        let yes = Some(Some("enabled"));
        for (namespace, metadata, spec, expected) in [
            (yes, json!({}), plain.clone(), Injection::Inject),
            (None, json!({}), plain.clone(), Injection::Inject),
            (Some(None), json!({}), plain.clone(), Injection::Skip(Skip::NamespaceNotMeshed)),
            (Some(Some("disabled")), json!({}), plain.clone(), Injection::Skip(Skip::NamespaceNotMeshed)),
            (Some(None), labelled("enabled"), plain.clone(), Injection::Inject),
            (yes, labelled("disabled"), plain.clone(), Injection::Skip(Skip::OptedOut)),
            (None, labelled("no"), plain.clone(), Injection::Skip(Skip::OptedOut)),
            (yes, json!({}), json!({"hostNetwork": true}), Injection::Skip(Skip::HostNetwork)),
            (yes, json!({}), json!({"os": {"name": "windows"}}), Injection::Skip(Skip::NotLinux)),
            (yes, json!({}), json!({"initContainers": [{"name": "meshwright-proxy"}]}), Injection::Skip(Skip::AlreadyInjected)),
        ] {
            assert_eq!(decide(namespace, &metadata, &spec), expected, "{namespace:?} {metadata} {spec}");
        }
    }
}
