//! CustomResourceDefinitions of our own kinds, for a cluster's API server: [`all`] makes them. `kinds` says what each kind looks like,
//! `structural` brings that into the form that Kubernetes demands, and here stands how each is called and listed.
//!
//! The schema refuses at once, and for every client, what can be told from one object alone; the rest (other objects, texts with a grammar
//! of their own) is for the world's door and the admission webhook that asks it. `tests` holds schema and door together.

mod kinds;
mod status;
mod structural;

use serde_json::{Map, Value, json};

use crate::world::{Kind, key::OWN};

/// How one kind is called, listed and described.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The kind.
    pub kind: Kind,
    /// The name in paths of the API and in RBAC.
    pub plural: &'static str,
    /// What kubectl's users type.
    pub short: &'static str,
    /// Columns of `kubectl get` before the age: title, type, JSON path.
    columns: &'static [(&'static str, &'static str, &'static str)],
    /// Makes the schema of `spec`.
    spec: fn() -> Value,
}

/// Of every kind whose status speaks of what it applies to. Refused objects have the condition at the top, others below `ancestors`.
const ACCEPTED: (&str, &str, &str) = ("Accepted", "string", ".status..conditions[?(@.type==\"Accepted\")].status");
const LIVE: (&str, &str, &str) = ("Live", "string", ".status..conditions[?(@.type==\"Live\")].status");
const TARGET: (&str, &str, &str) = ("Target", "string", ".spec.targetRefs[0].name");

/// Every kind of ours that this version gives an effect, in the order in which they are printed.
pub const DEFINITIONS: [Definition; 17] = [
    Definition {
        kind: Kind::ApiKeyAuth,
        plural: "apikeyauths",
        short: "mwaka",
        columns: &[("Mode", "string", ".spec.mode"), TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::ApiKeyAuthSpec>,
    },
    Definition {
        kind: Kind::AuthorizationPolicy,
        plural: "authorizationpolicies",
        short: "mwap",
        columns: &[("Action", "string", ".spec.action"), ("Dry-Run", "boolean", ".spec.dryRun"), TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::AuthorizationPolicySpec>,
    },
    Definition {
        kind: Kind::BasicAuth,
        plural: "basicauths",
        short: "mwba",
        columns: &[("Mode", "string", ".spec.mode"), TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::BasicAuthSpec>,
    },
    Definition {
        kind: Kind::Canary,
        plural: "canaries",
        short: "mwcan",
        columns: &[
            ("Service", "string", ".spec.serviceRef.name"),
            ("Phase", "string", ".status.phase"),
            ("Step", "integer", ".status.step"),
            ("Weight", "integer", ".status.weight"),
            ACCEPTED,
            LIVE,
        ],
        spec: structural::of::<kinds::CanarySpec>,
    },
    Definition {
        kind: Kind::ClientPolicy,
        plural: "clientpolicies",
        short: "mwcp",
        columns: &[TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::ClientPolicySpec>,
    },
    Definition {
        kind: Kind::Consumer,
        plural: "consumers",
        short: "mwc",
        columns: &[
            ("Team", "string", ".spec.team"),
            ("Disabled", "boolean", ".spec.disabled"),
            ("Expires", "date", ".spec.expiresAt"),
            ACCEPTED,
        ],
        spec: structural::of::<kinds::ConsumerSpec>,
    },
    Definition {
        kind: Kind::EgressPolicy,
        plural: "egresspolicies",
        short: "mwep",
        columns: &[("Mode", "string", ".spec.mode"), ACCEPTED, LIVE],
        spec: structural::of::<kinds::EgressPolicySpec>,
    },
    Definition {
        kind: Kind::ExternalAuth,
        plural: "externalauths",
        short: "mwea",
        columns: &[("Service", "string", ".spec.backendRef.name"), ("Dry-Run", "boolean", ".spec.dryRun"), TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::ExternalAuthSpec>,
    },
    Definition {
        kind: Kind::Mesh,
        plural: "meshes",
        short: "mwmesh",
        columns: &[("Trust-Domain", "string", ".spec.trustDomain"), ("Outside", "string", ".spec.outsideMesh"), ACCEPTED, LIVE],
        spec: structural::of::<kinds::MeshSpec>,
    },
    Definition {
        kind: Kind::OidcLogin,
        plural: "oidclogins",
        short: "mwol",
        columns: &[("Issuer", "string", ".spec.issuer"), ("Mode", "string", ".spec.mode"), TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::OidcLoginSpec>,
    },
    Definition {
        kind: Kind::PeerAuthentication,
        plural: "peerauthentications",
        short: "mwpa",
        columns: &[("Mode", "string", ".spec.mtls.mode"), ACCEPTED, LIVE],
        spec: structural::of::<kinds::PeerAuthenticationSpec>,
    },
    Definition {
        kind: Kind::RateLimit,
        plural: "ratelimits",
        short: "mwrl",
        columns: &[TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::RateLimitSpec>,
    },
    Definition {
        kind: Kind::RequestAuthentication,
        plural: "requestauthentications",
        short: "mwra",
        columns: &[("Issuer", "string", ".spec.jwtRules[0].issuer"), ACCEPTED, LIVE],
        spec: structural::of::<kinds::RequestAuthenticationSpec>,
    },
    Definition {
        kind: Kind::Revocation,
        plural: "revocations",
        short: "mwrev",
        columns: &[("Until", "string", ".spec.until"), ACCEPTED, LIVE],
        spec: structural::of::<kinds::RevocationSpec>,
    },
    Definition {
        kind: Kind::Telemetry,
        plural: "telemetries",
        short: "mwtel",
        columns: &[("Sample-Percent", "number", ".spec.tracing.samplePercent"), ACCEPTED, LIVE],
        spec: structural::of::<kinds::TelemetrySpec>,
    },
    Definition {
        kind: Kind::TrafficPolicy,
        plural: "trafficpolicies",
        short: "mwtp",
        columns: &[("Kind", "string", ".spec.targetRefs[0].kind"), TARGET, ACCEPTED, LIVE],
        spec: structural::of::<kinds::TrafficPolicySpec>,
    },
    Definition {
        kind: Kind::Workload,
        plural: "workloads",
        short: "mwwl",
        columns: &[
            ("Account", "string", ".spec.serviceAccount"),
            ("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status"),
            ACCEPTED,
        ],
        spec: structural::of::<kinds::WorkloadSpec>,
    },
];

/// The definitions as an API server takes them, the same bytes at every call.
pub fn all() -> Vec<Value> {
    DEFINITIONS.iter().map(Definition::resource).collect()
}

impl Definition {
    /// The name of its CustomResourceDefinition.
    pub fn name(&self) -> String {
        format!("{}.{OWN}", self.plural)
    }

    /// Its CustomResourceDefinition.
    pub fn resource(&self) -> Value {
        let kind = self.kind.text();
        let version = self.kind.versions().first().copied().unwrap_or_default();
        let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"});
        let columns = self.columns.iter().map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}));
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name(), "labels": {"app.kubernetes.io/part-of": "meshwright"}},
            "spec": {
                "group": OWN,
                "scope": "Namespaced",
                "names": {
                    "kind": kind,
                    "listKind": format!("{kind}List"),
                    "plural": self.plural,
                    "singular": kind.to_lowercase(),
                    "shortNames": [self.short],
                    "categories": ["meshwright"],
                },
                "versions": [{
                    "name": version,
                    "served": true,
                    "storage": true,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns.chain([age]).collect::<Vec<_>>(),
                    "schema": {"openAPIV3Schema": self.schema()},
                }],
            },
        })
    }

    /// The schema of a whole object.
    fn schema(&self) -> Value {
        let mut spec = (self.spec)();
        let about = spec.as_object_mut().and_then(|spec| spec.remove("description")).unwrap_or_default();
        let status = if self.kind == Kind::Canary { structural::of::<status::CanaryState>() } else { structural::of::<status::Standing>() };
        let mut schema = Map::from_iter([
            ("type".to_owned(), json!("object")),
            ("description".to_owned(), about),
            (
                "properties".to_owned(),
                json!({
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                    "spec": spec,
                    "status": status,
                }),
            ),
        ]);
        if self.kind == Kind::Mesh {
            // Its namespace is nothing that a rule could see.
            let only = json!([{"rule": "self.metadata.name == 'default'", "message": "there is one Mesh object only; name it `default`"}]);
            schema.insert("x-kubernetes-validations".to_owned(), only);
        } else {
            schema.insert("required".to_owned(), json!(["spec"]));
        }
        Value::Object(schema)
    }
}

#[cfg(test)]
mod tests;
