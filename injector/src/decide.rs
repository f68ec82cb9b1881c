//! Whether a pod gets a sidecar.

use std::fmt;

use proto::annotations;
use serde_json::Value;

/// Namespaces whose own label does not count: what keeps the cluster and the mesh alive must not wait for a sidecar.
pub const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", annotations::ROOT_NAMESPACE];

/// What is known of a pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its `meshwright.dev/inject` label.
    pub label: Label<'a>,
}

/// What is known of a namespace's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label<'a> {
    /// Nothing: whoever asks has chosen the pod, and only the pod's own label can say no.
    Unknown,
    /// There is none.
    Absent,
    /// Its value.
    Is(&'a str),
}

impl<'a> From<Option<&'a str>> for Label<'a> {
    fn from(label: Option<&'a str>) -> Self {
        label.map_or(Self::Absent, Self::Is)
    }
}

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
    /// The sidecar is there already, and nothing is missing.
    AlreadyInjected,
    /// It shares the node's network, whose rules are not ours to change.
    HostNetwork,
    /// It runs on Windows.
    NotLinux,
    /// Its namespace is the cluster's or the mesh's own, and the pod's own label does not say yes.
    SystemNamespace,
}

impl Skip {
    /// One word, for metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OptedOut => "opted_out",
            Self::NamespaceNotMeshed => "namespace_not_meshed",
            Self::AlreadyInjected => "already_injected",
            Self::HostNetwork => "host_network",
            Self::NotLinux => "not_linux",
            Self::SystemNamespace => "system_namespace",
        }
    }

    /// Whether the pod itself is to say why it has no sidecar: somebody expects one, or asked for none.
    pub const fn is_worth_a_note(self) -> bool {
        matches!(self, Self::OptedOut | Self::HostNetwork | Self::NotLinux | Self::SystemNamespace)
    }

    /// Whether the mesh was asked for and cannot be had, so that whoever creates the pod should hear of it.
    pub const fn is_a_surprise(self) -> bool {
        matches!(self, Self::HostNetwork | Self::NotLinux | Self::SystemNamespace)
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OptedOut => "its own label meshwright.dev/inject is not `enabled`",
            Self::NamespaceNotMeshed => "its namespace is not labelled meshwright.dev/inject: enabled",
            Self::AlreadyInjected => "the sidecar is there already",
            Self::HostNetwork => "it uses the node's network (hostNetwork: true)",
            Self::NotLinux => "it does not run on Linux",
            Self::SystemNamespace => "its namespace is the cluster's or the mesh's own; only a pod's own label counts there",
        })
    }
}

/// Judges a pod by its `metadata` and `spec`.
pub fn decide(namespace: Namespace<'_>, metadata: &Value, spec: &Value) -> Injection {
    let own = metadata["labels"][annotations::INJECT].as_str();
    let (wanted, why_not) = match (own, namespace.label) {
        (Some(own), _) => (own == annotations::ENABLED, Skip::OptedOut),
        (None, Label::Unknown) => (true, Skip::NamespaceNotMeshed),
        (None, Label::Absent) => (false, Skip::NamespaceNotMeshed),
        (None, Label::Is(label)) => (label == annotations::ENABLED, Skip::NamespaceNotMeshed),
    };
    if !wanted {
        return Injection::Skip(why_not);
    }
    if own.is_none() && SYSTEM_NAMESPACES.contains(&namespace.name) {
        return Injection::Skip(Skip::SystemNamespace);
    }
    if spec["hostNetwork"].as_bool() == Some(true) {
        return Injection::Skip(Skip::HostNetwork);
    }
    let system = [&spec["os"]["name"], &spec["nodeSelector"]["kubernetes.io/os"]];
    if system.into_iter().filter_map(Value::as_str).any(|name| name != "linux") {
        return Injection::Skip(Skip::NotLinux);
    }
    Injection::Inject
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
        let (none, yes) = (json!({}), Label::Is("enabled"));
        let skip = Injection::Skip;
        for (name, label, metadata, spec, expected) in [
            ("shop", yes, &none, &plain, Injection::Inject),
            ("shop", Label::Unknown, &none, &plain, Injection::Inject),
            ("shop", Label::Absent, &none, &plain, skip(Skip::NamespaceNotMeshed)),
            ("shop", Label::Is("disabled"), &none, &plain, skip(Skip::NamespaceNotMeshed)),
            ("shop", Label::Absent, &labelled("enabled"), &plain, Injection::Inject),
            ("shop", yes, &labelled("disabled"), &plain, skip(Skip::OptedOut)),
            ("shop", Label::Unknown, &labelled("no"), &plain, skip(Skip::OptedOut)),
            ("shop", yes, &none, &json!({"hostNetwork": true}), skip(Skip::HostNetwork)),
            ("shop", yes, &none, &json!({"hostNetwork": false}), Injection::Inject),
            ("shop", yes, &labelled("disabled"), &json!({"hostNetwork": true}), skip(Skip::OptedOut)),
            ("shop", yes, &none, &json!({"os": {"name": "windows"}}), skip(Skip::NotLinux)),
            ("shop", yes, &none, &json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), skip(Skip::NotLinux)),
            ("shop", yes, &none, &json!({"nodeSelector": {"kubernetes.io/os": "linux"}}), Injection::Inject),
            ("kube-system", Label::Absent, &none, &plain, skip(Skip::NamespaceNotMeshed)),
            ("kube-system", yes, &none, &plain, skip(Skip::SystemNamespace)),
            ("kube-system", Label::Absent, &labelled("enabled"), &plain, Injection::Inject),
            ("meshwright-system", Label::Unknown, &none, &plain, skip(Skip::SystemNamespace)),
        ] {
            assert_eq!(decide(Namespace { name, label }, metadata, spec), expected, "{name} {label:?} {metadata} {spec}");
        }
    }
}
