//! What an installation in a cluster consists of: [`objects`] makes all of it, pure, from a few [`Wishes`]. `meshwright install` prints or
//! applies it, `meshwright uninstall` takes it away, and the chart in `deploy/helm` gives the same (a test compares them).
//!
//! One file per concern: `rights` (accounts and RBAC), `control` (the control plane itself), `admission` (webhooks), and here what is
//! around them. Each says why it is as it is.

mod admission;
pub(crate) mod apply;
mod control;
mod rights;

#[cfg(test)]
mod tests;

use clap::ValueEnum;
use kube::core::{ApiResource, GroupVersionKind};
use proto::annotations::{CONTROLLER, GATEWAY_CLASS, ROOT_NAMESPACE};
use serde_json::{Value, json};

/// Name of everything that the control plane is made of: Deployment, Service, roles, webhooks.
pub(crate) const NAME: &str = cli::hooks::ROLE;
/// Kinds of Gateway API that the world reads.
const GATEWAY_API: [&str; 10] = [
    "backendtlspolicies",
    "gatewayclasses",
    "gateways",
    "grpcroutes",
    "httproutes",
    "listenersets",
    "referencegrants",
    "tcproutes",
    "tlsroutes",
    "udproutes",
];
/// The kind that defines kinds.
const DEFINITION: &str = "CustomResourceDefinition";
/// How the names of both kinds of webhook configurations end.
const HOOKS: &str = "WebhookConfiguration";
/// Our field manager: whose fields a server-side apply owns.
pub(crate) const FIELD_MANAGER: &str = "meshwright-install";
/// Replicas at most: one serves, the others stand by.
pub(crate) const REPLICAS_MAX: u32 = 5;

/// What an installation is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The image that holds `meshwright`.
    pub(crate) image: String,
    /// Of the control plane.
    pub(crate) replicas: u32,
    /// SPIFFE trust domain, where it is not the default: then a Mesh object says so.
    pub(crate) trust_domain: Option<String>,
    /// What becomes of new pods of the mesh while the webhook does not answer.
    pub(crate) failure_policy: FailurePolicy,
    /// A Secret with an authority of the user's own.
    pub(crate) ca_secret: Option<String>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            image: format!("meshwright:{}", env!("CARGO_PKG_VERSION")),
            replicas: 2,
            trust_domain: None,
            failure_policy: FailurePolicy::Fail,
            ca_secret: None,
        }
    }
}

/// What an API server does when a webhook does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum FailurePolicy {
    /// The pod is refused, and its controller tries again: none of the mesh's pods ever runs without a sidecar.
    Fail,
    /// The pod starts without a sidecar.
    Ignore,
}

impl FailurePolicy {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Fail => "Fail",
            Self::Ignore => "Ignore",
        }
    }
}

/// All objects in the order in which they are applied: what others need comes first.
pub(crate) fn objects(wishes: &Wishes) -> Vec<Value> {
    let mut objects = vec![namespace()];
    objects.extend(::control::crds::all());
    objects.extend(rights::objects());
    objects.extend(control::objects(wishes));
    objects.extend(admission::objects(wishes));
    objects.push(gateway_class());
    objects.extend(wishes.trust_domain.as_deref().map(mesh));
    objects
}

/// One object by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    api_version: String,
    /// Its kind.
    pub(crate) kind: String,
    /// `None`: it is of the whole cluster.
    pub(crate) namespace: Option<String>,
    /// Its name.
    pub(crate) name: String,
}

impl Target {
    pub(crate) fn new(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Self {
        Self { api_version: api_version.to_owned(), kind: kind.to_owned(), namespace: namespace.map(str::to_owned), name: name.to_owned() }
    }

    /// The name of one of our own objects.
    pub(crate) fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        Self { api_version: text(&object["apiVersion"]), kind: text(&object["kind"]), namespace, name: text(&object["metadata"]["name"]) }
    }

    /// Where its kind stands in the API.
    pub(crate) fn resource(&self) -> ApiResource {
        let (group, version) = self.api_version.rsplit_once('/').unwrap_or(("", &self.api_version));
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &self.kind))
    }

    /// `KIND NAMESPACE/NAME`, as messages name it.
    pub(crate) fn shown(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} {namespace}/{}", self.kind, self.name),
            None => format!("{} {}", self.kind, self.name),
        }
    }
}

/// What is deleted, in this order: first who is asked about pods, so that none waits for an answer; last the namespace, and with it the
/// keys of the mesh's own authority. With `crds` every object of our kinds, too.
pub(crate) fn removal(crds: bool) -> Vec<Target> {
    let all = objects(&Wishes::default());
    let mut targets: Vec<Target> = all.iter().map(Target::of).filter(|target| crds || target.kind != DEFINITION).collect();
    targets.reverse();
    targets.sort_by_key(|target| !target.kind.ends_with(HOOKS));
    targets
}

/// Labels of all that is ours.
fn labels() -> Value {
    json!({"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "meshwright"})
}

/// `metadata` of an object in our namespace.
fn named(name: &str) -> Value {
    json!({"name": name, "namespace": ROOT_NAMESPACE, "labels": labels()})
}

/// `metadata` of an object of the whole cluster.
fn cluster_wide(name: &str) -> Value {
    json!({"name": name, "labels": labels()})
}

/// Its pods must be `restricted`, as ours are. It never gets sidecars: the control plane would wait for itself.
fn namespace() -> Value {
    let mut labels = labels();
    labels["meshwright.dev/inject"] = json!("disabled");
    for mode in ["enforce", "audit", "warn"] {
        labels[format!("pod-security.kubernetes.io/{mode}")] = json!("restricted");
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ROOT_NAMESPACE, "labels": labels}})
}

/// Gateways name it. The class exists where Gateway API is installed; everywhere else it would be an error.
fn gateway_class() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": cluster_wide(GATEWAY_CLASS),
        "spec": {"controllerName": CONTROLLER, "description": "Meshwright's edge proxy"},
    })
}

fn mesh(trust_domain: &str) -> Value {
    json!({
        "apiVersion": "meshwright.dev/v1alpha1",
        "kind": "Mesh",
        "metadata": named("default"),
        "spec": {"trustDomain": trust_domain},
    })
}
