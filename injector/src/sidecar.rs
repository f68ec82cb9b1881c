//! The containers, volumes and marks that make a pod part of the mesh.

use std::net::IpAddr;

use proto::{annotations, ports};
use serde_json::{Map, Value, json};

/// Name of the sidecar.
pub const PROXY_CONTAINER: &str = "meshwright-proxy";
/// Name of the container that installs the redirection.
pub const INTERCEPT_CONTAINER: &str = "meshwright-intercept";
/// Annotation that says which version's sidecar a pod carries.
pub const INJECTED: &str = "meshwright.dev/injected";
/// The uid whose traffic is not redirected (contract, section 3).
const PROXY_UID: u32 = 1337;
const TOKEN_VOLUME: &str = "meshwright-token";
const CA_VOLUME: &str = "meshwright-ca";
const TOKEN_DIR: &str = "/var/run/meshwright/token";
const CA_DIR: &str = "/var/run/meshwright/ca";
/// Life of the pod's join token; the kubelet renews it.
const TOKEN_LIFE_SECS: u32 = 3600;
/// Seconds that the first epoch and certificate may take before the pod is restarted.
const STARTUP_SECS_MAX: u32 = 120;
const CPU_DEFAULT: &str = "10m";
const MEMORY_DEFAULT: &str = "24Mi";

/// What every sidecar of a mesh has in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarSettings {
    /// The image that holds `meshwright`.
    pub image: String,
    /// `HOST:PORT` of the control plane.
    pub control: String,
    /// ConfigMap, in each namespace, whose key `ca.pem` holds the mesh's roots.
    pub ca_config_map: String,
    /// Audience of the service account token with which the sidecar joins.
    pub token_audience: String,
    /// Version written into the pod's annotation.
    pub version: String,
}

impl Default for SidecarSettings {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            image: format!("meshwright:{version}"),
            control: "meshwright-control.meshwright-system.svc:15012".to_owned(),
            ca_config_map: "meshwright-ca".to_owned(),
            token_audience: "meshwright.dev".to_owned(),
            version: version.to_owned(),
        }
    }
}

/// An annotation of ours with an impossible value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name}: `{value}` is not {expected}")]
pub struct BadAnnotation {
    /// The annotation.
    pub name: &'static str,
    /// The part that is wrong.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

/// Adds the sidecar to a pod (or template): `metadata` and `spec` in, the same with a sidecar out. `workload` is the name of the object
/// that owns the pod. What the pod had stays; ours comes first among the init containers, so that the pod's own have the mesh already.
///
/// # Errors
/// An annotation of ours has an impossible value.
pub fn add(pod: &Value, workload: &str, settings: &SidecarSettings) -> Result<Value, BadAnnotation> {
    let mut pod = pod.clone();
    let notes = pod["metadata"]["annotations"].clone();
    let ours = [intercept(&notes, settings)?, proxy(&notes, workload, settings)];
    let volumes = volumes(settings);
    let Some(object) = pod.as_object_mut() else { return Ok(pod) };
    let spec = field(object, "spec");
    prepend(spec, "initContainers", &ours);
    append(spec, "volumes", &volumes);
    field(field(object, "metadata"), "annotations").insert(INJECTED.to_owned(), settings.version.clone().into());
    Ok(pod)
}

/// A field that is an object; made where it is not there.
fn field<'a>(object: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(name.to_owned()).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made an object above")
}

fn prepend(spec: &mut Map<String, Value>, name: &str, ours: &[Value]) {
    let theirs = spec.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    spec.insert(name.to_owned(), ours.iter().cloned().chain(theirs).collect());
}

fn append(spec: &mut Map<String, Value>, name: &str, ours: &[Value]) {
    let theirs = spec.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    spec.insert(name.to_owned(), theirs.into_iter().chain(ours.iter().cloned()).collect());
}

/// Installs the redirection before anything else of the pod runs; ends at once.
fn intercept(notes: &Value, settings: &SidecarSettings) -> Result<Value, BadAnnotation> {
    let mut args = vec!["intercept".to_owned(), "install".to_owned(), format!("--exempt-uid={PROXY_UID}")];
    args.extend(list(notes, annotations::EXCLUDE_OUTBOUND_PORTS, port)?.map(|ports| format!("--exclude-outbound-ports={ports}")));
    args.extend(list(notes, annotations::EXCLUDE_INBOUND_PORTS, port)?.map(|ports| format!("--exclude-inbound-ports={ports}")));
    args.extend(list(notes, annotations::EXCLUDE_OUTBOUND_CIDRS, cidr)?.map(|cidrs| format!("--exclude-outbound-cidrs={cidrs}")));
    Ok(json!({
        "name": INTERCEPT_CONTAINER,
        "image": settings.image,
        "command": ["meshwright"],
        "args": args,
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": CPU_DEFAULT, "memory": MEMORY_DEFAULT}},
    }))
}

/// The sidecar: an init container that stays (Kubernetes 1.29), so that it starts before the application and ends after it.
fn proxy(notes: &Value, workload: &str, settings: &SidecarSettings) -> Value {
    let note = |name: &str| notes[name].as_str();
    let downward = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let probe = |path: &str, period: u32, failures: u32| json!({"httpGet": {"path": path, "port": ports::HEALTH}, "periodSeconds": period, "failureThreshold": failures});
    let mut env = vec![
        downward("POD_NAMESPACE", "metadata.namespace"),
        downward("MESHWRIGHT_INSTANCE", "metadata.name"),
        downward("MESHWRIGHT_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        json!({"name": "MESHWRIGHT_WORKLOAD", "value": format!("$(POD_NAMESPACE)/{workload}")}),
        json!({"name": "MESHWRIGHT_CONTROL", "value": settings.control}),
        json!({"name": "MESHWRIGHT_CONTROL_CA", "value": format!("{CA_DIR}/ca.pem")}),
        json!({"name": "MESHWRIGHT_TOKEN_FILE", "value": format!("{TOKEN_DIR}/token")}),
    ];
    env.extend(note(annotations::LOG_LEVEL).map(|level| json!({"name": "MESHWRIGHT_LOG_LEVEL", "value": level})));
    json!({
        "name": PROXY_CONTAINER,
        "image": settings.image,
        "command": ["meshwright"],
        "args": ["proxy"],
        "restartPolicy": "Always",
        "env": env,
        "ports": [
            {"name": "mw-metrics", "containerPort": ports::METRICS, "protocol": "TCP"},
            {"name": "mw-health", "containerPort": ports::HEALTH, "protocol": "TCP"},
        ],
        "startupProbe": probe("/healthz/startup", 1, STARTUP_SECS_MAX),
        "readinessProbe": probe("/healthz/ready", 5, 3),
        "livenessProbe": probe("/healthz/live", 10, 3),
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {
            "cpu": note(annotations::PROXY_CPU).unwrap_or(CPU_DEFAULT),
            "memory": note(annotations::PROXY_MEMORY).unwrap_or(MEMORY_DEFAULT),
        }},
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true},
            {"name": CA_VOLUME, "mountPath": CA_DIR, "readOnly": true},
        ],
    })
}

fn volumes(settings: &SidecarSettings) -> [Value; 2] {
    let token =
        json!({"serviceAccountToken": {"audience": settings.token_audience, "expirationSeconds": TOKEN_LIFE_SECS, "path": "token"}});
    [
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [token]}}),
        json!({"name": CA_VOLUME, "configMap": {"name": settings.ca_config_map}}),
    ]
}

/// A comma-separated annotation, each part checked, without blanks; `None` where it is absent or empty.
fn list(notes: &Value, name: &'static str, check: fn(&str) -> Result<(), &'static str>) -> Result<Option<String>, BadAnnotation> {
    let parts: Vec<&str> = notes[name].as_str().unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    for part in &parts {
        check(part).map_err(|expected| BadAnnotation { name, value: (*part).to_owned(), expected })?;
    }
    Ok((!parts.is_empty()).then(|| parts.join(",")))
}

fn port(text: &str) -> Result<(), &'static str> {
    text.parse::<u16>().ok().filter(|port| *port > 0).map(|_| ()).ok_or("a port from 1 to 65535")
}

fn cidr(text: &str) -> Result<(), &'static str> {
    let right = text.split_once('/').is_some_and(|(address, bits)| match (address.parse::<IpAddr>(), bits.parse::<u8>()) {
        (Ok(address), Ok(bits)) => bits <= if address.is_ipv4() { 32 } else { 128 },
        _ => false,
    });
    if right { Ok(()) } else { Err("an address range such as 192.0.2.0/24") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: annotations reach the containers, impossible ones are refused by name, and what the pod had stays behind ours.
    #[test]
    fn annotations_are_honoured_or_refused() {
        let pod = |notes: Value| json!({"metadata": {"annotations": notes}, "spec": {"initContainers": [{"name": "migrate"}]}});
        let notes = json!({"meshwright.dev/exclude-outbound-ports": "5432, 6379", "meshwright.dev/proxy-cpu": "1",
            "meshwright.dev/exclude-outbound-cidrs": "fd00::/8", "meshwright.dev/log-level": "debug"});
        let added = add(&pod(notes), "catalog", &SidecarSettings::default()).unwrap();
        let containers = &added["spec"]["initContainers"];
        assert_eq!(containers[0]["args"][3], "--exclude-outbound-ports=5432,6379");
        assert_eq!(containers[0]["args"][4], "--exclude-outbound-cidrs=fd00::/8");
        assert_eq!(containers[1]["resources"]["requests"]["cpu"], "1");
        assert_eq!(containers[2]["name"], "migrate");
        for (name, value) in [
            ("meshwright.dev/exclude-inbound-ports", "0"),
            ("meshwright.dev/exclude-outbound-ports", "http"),
            ("meshwright.dev/exclude-outbound-cidrs", "10.0.0.0/33"),
        ] {
            let error = add(&pod(json!({name: value})), "x", &SidecarSettings::default()).unwrap_err();
            assert_eq!(error.name, name);
        }
    }
}
