use std::collections::BTreeSet;

use ::control::world::Kind;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

fn all_wishes() -> Vec<Wishes> {
    let plain = Wishes::default();
    let own = Wishes {
        image: "registry.example/meshwright:1".to_owned(),
        replicas: 3,
        trust_domain: Some("mesh.example.com".to_owned()),
        failure_policy: FailurePolicy::Ignore,
        ca_secret: Some("corporate-ca".to_owned()),
    };
    vec![plain, own]
}

/// Reads an object as Kubernetes' own type and writes it again.
fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let read: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{object}: {error}"));
    serde_json::to_value(read).unwrap()
}

/// Aim: every field of every object is one that Kubernetes' published types have: nothing is lost on the way through them, so no server
/// that checks strictly refuses one.
#[test]
fn objects_are_what_kubernetes_knows() {
    for object in all_wishes().iter().flat_map(objects) {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let back = match kind.as_str() {
            "Namespace" => typed::<Namespace>(&object),
            "ServiceAccount" => typed::<ServiceAccount>(&object),
            "Service" => typed::<Service>(&object),
            "Deployment" => typed::<Deployment>(&object),
            "PodDisruptionBudget" => typed::<PodDisruptionBudget>(&object),
            "NetworkPolicy" => typed::<NetworkPolicy>(&object),
            "ClusterRole" => typed::<ClusterRole>(&object),
            "ClusterRoleBinding" => typed::<ClusterRoleBinding>(&object),
            "Role" => typed::<Role>(&object),
            "RoleBinding" => typed::<RoleBinding>(&object),
            "MutatingWebhookConfiguration" => typed::<MutatingWebhookConfiguration>(&object),
            "ValidatingWebhookConfiguration" => typed::<ValidatingWebhookConfiguration>(&object),
            // Its numbers become floating ones.
            "CustomResourceDefinition" => {
                typed::<CustomResourceDefinition>(&object);
                object.clone()
            }
            "GatewayClass" | "Mesh" => object.clone(),
            other => panic!("{other} is not known here"),
        };
        assert_eq!(lost(&object, &back), None, "{kind}");
    }
}

/// A place of an object that is not in another.
fn lost(object: &Value, other: &Value) -> Option<String> {
    match (object, other) {
        (Value::Object(fields), Value::Object(others)) => fields.iter().find_map(|(name, inner)| match others.get(name) {
            Some(other) => lost(inner, other).map(|place| format!(".{name}{place}")),
            // Empty selectors and lists are left out.
            None if inner.as_object().is_some_and(serde_json::Map::is_empty) || inner == "" => None,
            None => Some(format!(".{name}")),
        }),
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => items
            .iter()
            .zip(others)
            .enumerate()
            .find_map(|(index, (inner, other))| lost(inner, other).map(|place| format!("[{index}]{place}"))),
        _ => (object != other).then(|| format!(" = {object}, not {other}")),
    }
}

/// Aim: the pods fit their own namespace, which is `restricted` (Kubernetes' Pod Security Standards), and no key lies on a disk.
#[test]
fn pods_are_restricted() {
    for object in all_wishes().iter().flat_map(objects).filter(|object| object["kind"] == "Deployment") {
        let pod = &object["spec"]["template"]["spec"];
        let security = &pod["securityContext"];
        assert_eq!((&security["runAsNonRoot"], &security["seccompProfile"]["type"]), (&json!(true), &json!("RuntimeDefault")));
        for container in pod["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        }
        let allowed: BTreeSet<&str> = ["name", "emptyDir", "projected", "secret"].into();
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume.as_object().unwrap().keys().all(|name| allowed.contains(name.as_str())), "{volume}");
            assert!(volume["emptyDir"].is_null() || volume["emptyDir"]["medium"] == "Memory");
        }
    }
}

/// Aim: no right to anything by wildcard, none to make or change what runs (pods, deployments, roles), and Secrets are changed nowhere but at
/// home, by name.
#[test]
fn rights_are_few() {
    for wishes in all_wishes() {
        for object in objects(&wishes) {
            for rule in object["rules"].as_array().into_iter().flatten() {
                let texts = |name: &str| rule[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
                let (resources, verbs) = (texts("resources"), texts("verbs"));
                assert!(!resources.contains(&"*") && !verbs.contains(&"*") && !texts("apiGroups").contains(&"*"), "{rule}");
                let changes = verbs.iter().any(|verb| !["get", "list", "watch"].contains(verb));
                let changeable = |resource: &&str| {
                    resource.ends_with("/status")
                        || ["tokenreviews", "configmaps", "leases", "secrets"].contains(resource)
                        || resource.ends_with("webhookconfigurations")
                };
                assert!(!changes || resources.iter().all(changeable), "{rule}");
                if changes && resources.contains(&"secrets") {
                    assert_eq!(object["kind"], "Role", "{rule}");
                }
                if verbs.iter().any(|verb| ["patch", "update"].contains(verb)) {
                    assert!(!texts("resourceNames").is_empty() || resources.iter().all(|resource| resource.ends_with("/status")), "{rule}");
                }
            }
        }
    }
}

/// Aim: what would be asked about a pod, by its labels and its namespace's, as an API server matches selectors: those that could get a
/// sidecar, and nothing of the cluster's own namespaces.
#[test]
fn the_injector_is_asked_about_the_meshs_pods_only() {
    fn holds(expressions: &Value, labels: &[(&str, &str)]) -> bool {
        expressions.as_array().unwrap().iter().all(|expression| {
            let value = labels.iter().find(|(key, _)| expression["key"] == *key).map(|(_, value)| *value);
            let listed = value.is_some_and(|value| expression["values"].as_array().unwrap().iter().any(|item| item == value));
            if expression["operator"] == "In" { listed } else { !listed }
        })
    }
    let configuration = objects(&Wishes::default()).into_iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
    for (namespace, labels, pod, asked) in [
        ("shop", &[("meshwright.dev/inject", "enabled")][..], None, 1),
        ("shop", &[("meshwright.dev/inject", "enabled")], Some("enabled"), 1),
        ("shop", &[("meshwright.dev/inject", "enabled")], Some("disabled"), 0),
        ("shop", &[], None, 0),
        ("shop", &[], Some("enabled"), 1),
        ("shop", &[("meshwright.dev/inject", "disabled")], Some("enabled"), 1),
        ("kube-system", &[("meshwright.dev/inject", "enabled")], Some("enabled"), 0),
        (ROOT_NAMESPACE, &[], Some("enabled"), 0),
        ("kube-public", &[], Some("enabled"), 0),
    ] {
        let mut labels = labels.to_vec();
        labels.push(("kubernetes.io/metadata.name", namespace));
        let own: Vec<_> = pod.map(|value| ("meshwright.dev/inject", value)).into_iter().collect();
        let times = configuration["webhooks"].as_array().unwrap().iter().filter(|webhook| {
            holds(&webhook["namespaceSelector"]["matchExpressions"], &labels) && holds(&webhook["objectSelector"]["matchExpressions"], &own)
        });
        assert_eq!(times.count(), asked, "{namespace} {labels:?} {pod:?}");
    }
}

/// Ours, and Gateway API's.
const GROUPS: [&str; 3] = ["gateway.networking.k8s.io", "gateway.networking.x-k8s.io", "meshwright.dev"];

/// Aim: the analyzer is asked about every kind of ours and of Gateway API that the world reads, whichever are added.
#[test]
fn every_kind_of_the_world_is_analyzed() {
    let configuration = objects(&Wishes::default()).into_iter().find(|object| object["kind"] == "ValidatingWebhookConfiguration").unwrap();
    let asked: BTreeSet<String> = configuration["webhooks"][0]["rules"].as_array().unwrap().iter().flat_map(plurals).collect();
    let read = Kind::ALL.into_iter().filter(|kind| GROUPS.contains(&kind.group()));
    let named = |kind: Kind| json!({"apiVersion": format!("{}/v1", kind.group()), "kind": kind.text(), "metadata": {"name": "x"}});
    assert_eq!(asked, read.map(|kind| Target::of(&named(kind)).resource().plural).collect());
}

fn plurals(rule: &Value) -> Vec<String> {
    serde_json::from_value(rule["resources"].clone()).unwrap()
}

/// Aim: the same bytes at every call, each object once, in an order in which nothing waits for what comes later; removal is all of it, the
/// webhooks first and the namespace last; paths of the API are right for every kind.
#[test]
fn the_order_is_safe_both_ways() {
    for wishes in all_wishes() {
        let all = objects(&wishes);
        assert_eq!(all, objects(&wishes));
        let named: BTreeSet<String> = all.iter().map(|object| Target::of(object).shown()).collect();
        assert_eq!(named.len(), all.len());
        let place = |kind: &str| all.iter().position(|object| object["kind"] == kind).unwrap_or(usize::MAX);
        assert_eq!(place("Namespace"), 0);
        assert!(place("ClusterRole") < place("Deployment") && place("ServiceAccount") < place("Deployment"));
        assert!(place("CustomResourceDefinition") < place("Mesh") && place("Deployment") < place("MutatingWebhookConfiguration"));
    }
    let with = removal(true);
    assert_eq!(with.len(), objects(&Wishes::default()).len());
    assert!(with[..2].iter().all(|target| target.kind.ends_with("WebhookConfiguration")));
    assert_eq!(with.last().unwrap().shown(), "Namespace meshwright-system");
    assert!(removal(false).iter().all(|target| target.kind != "CustomResourceDefinition"));
    let plurals: BTreeSet<String> = all_wishes().iter().flat_map(objects).map(|object| Target::of(&object).resource().plural).collect();
    let right = [
        "clusterrolebindings",
        "clusterroles",
        "customresourcedefinitions",
        "deployments",
        "gatewayclasses",
        "meshes",
        "mutatingwebhookconfigurations",
        "namespaces",
        "networkpolicies",
        "poddisruptionbudgets",
        "rolebindings",
        "roles",
        "serviceaccounts",
        "services",
        "validatingwebhookconfigurations",
    ];
    assert_eq!(plurals, right.map(str::to_owned).into());
}

/// Aim: an installation is complete when every webhook has the roots by which it is believed, not when the first has; a configuration without
/// webhooks waits for nothing.
#[test]
fn an_installation_waits_until_its_webhooks_are_believed() {
    let mut object = objects(&Wishes::default()).into_iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
    let wanting = |object: &Value| apply::believed(object).unwrap_or_default();
    assert!(wanting(&object).contains("namespace.inject.meshwright.dev"), "{}", wanting(&object));
    object["webhooks"][0]["clientConfig"]["caBundle"] = json!("cGVt");
    assert!(wanting(&object).contains("pod.inject.meshwright.dev"), "{}", wanting(&object));
    object["webhooks"][1]["clientConfig"]["caBundle"] = json!("");
    assert!(wanting(&object).contains("pod.inject.meshwright.dev"));
    object["webhooks"][1]["clientConfig"]["caBundle"] = json!("cGVt");
    assert_eq!((apply::believed(&object), apply::believed(&json!({}))), (None, None));
}

/// Aim: the image that `deploy/build-images` makes holds what the manifests run, where its `PATH` finds it, as the user that they name; and it
/// tells their ports.
#[test]
fn the_image_is_what_the_manifests_run() {
    let file = include_str!("../../../deploy/Containerfile");
    let stage = file.split("\nFROM ").find(|stage| stage.starts_with("scratch AS meshwright\n")).unwrap();
    let said = |word: &str| stage.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("no {word}: {stage}"));
    assert!(
        stage.contains("\nCOPY --chmod=0755 meshwright /usr/local/bin/meshwright\n") && said("ENV ").starts_with("PATH=/usr/local/bin ")
    );
    let exposed: BTreeSet<&str> = said("EXPOSE ").split(' ').collect();
    for object in all_wishes().iter().flat_map(objects).filter(|object| object["kind"] == "Deployment") {
        let pod = &object["spec"]["template"]["spec"];
        let user = format!("{}:{}", pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]);
        assert_eq!(user, said("USER "));
        for container in pod["containers"].as_array().unwrap() {
            assert_eq!(container["command"].to_string(), said("ENTRYPOINT "));
            let ports = container["ports"].as_array().unwrap().iter().map(|port| port["containerPort"].to_string());
            ports.for_each(|port| assert!(exposed.contains(port.as_str()), "{port}"));
        }
    }
}
