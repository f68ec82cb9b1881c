//! The containers, volumes and marks that make a pod part of the mesh.

pub use proto::pods::PROXY_CONTAINER;
use proto::pods::WORKLOAD_VARIABLE;
use proto::{annotations, ports};
use serde_json::{Value, json};

use crate::ending::GRACE_SECS_DEFAULT;
use crate::notes::Notes;
use crate::settings::SidecarSettings;

/// Name of the container that installs the redirection.
pub const INTERCEPT_CONTAINER: &str = "meshwright-intercept";
/// The uid whose traffic is not redirected (contract, section 3).
pub const PROXY_UID: u64 = 1337;
/// Where the application finds the SPIFFE Workload API (contract, section 4).
pub const SPIFFE_DIR: &str = "/run/meshwright";
/// Ports that are the sidecar's own (contract, section 3).
pub const OWN_PORTS: [u64; 6] = [15000, 15001, 15006, 15020, 15021, 15053];
/// The sidecar's environment variable that says what the application's probes were.
pub(crate) const APP_PROBES: &str = "MESHWRIGHT_APP_PROBES";
pub(crate) const SPIFFE_VOLUME: &str = "meshwright-spiffe";
const SPIFFE_SOCKET: &str = "/run/meshwright/spiffe.sock";
const TOKEN_VOLUME: &str = "meshwright-token";
const CA_VOLUME: &str = "meshwright-ca";
const TOKEN_DIR: &str = "/etc/meshwright/token";
const CA_DIR: &str = "/etc/meshwright/ca";
/// Life of the pod's join token; the kubelet renews it.
const TOKEN_LIFE_SECS: u32 = 3600;
/// Seconds that the first epoch and certificate may take before the sidecar is restarted.
const STARTUP_SECS_MAX: u32 = 120;
/// Longest drain of a sidecar.
const DRAIN_SECS_MAX: u64 = 30;
/// The same where it begins after the application's end.
const DRAIN_SECS_ORDINARY_MAX: u64 = 5;
const CPU_DEFAULT: &str = "10m";
const MEMORY_DEFAULT: &str = "24Mi";

/// How the sidecar runs beside the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// An init container that stays (Kubernetes 1.29): it starts before the application and ends after it.
    Native,
    /// An ordinary container, which holds the application back while it starts, and ends after it by what it sees.
    Ordinary {
        /// The pod ends with its application, so the sidecar must.
        ends: Option<Ends>,
    },
}

/// How a pod ends that is no server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// With the first end of its containers.
    Once,
    /// When they ended well: one that failed starts again, after five minutes at most.
    WhenDone,
}

impl Ends {
    /// Without any process of the application for so long, its containers have ended for good.
    const fn quiet_secs(self) -> u32 {
        match self {
            Self::Once => 2,
            Self::WhenDone => 330,
        }
    }
}

/// Installs the redirection before anything else of the pod runs; ends at once. The only part that needs a right that Kubernetes' `baseline`
/// pods do not have.
pub(crate) fn intercept(notes: &Notes, settings: &SidecarSettings) -> Value {
    let mut args = vec!["intercept".to_owned(), "install".to_owned(), format!("--exempt-uid={PROXY_UID}")];
    let ports = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    for (flag, value) in [
        ("--exclude-outbound-ports", ports(&notes.exclude_outbound_ports)),
        ("--exclude-inbound-ports", ports(&notes.exclude_inbound_ports)),
        ("--exclude-outbound-cidrs", notes.exclude_outbound_cidrs.join(",")),
    ] {
        if !value.is_empty() {
            args.push(format!("{flag}={value}"));
        }
    }
    let mut container = json!({
        "name": INTERCEPT_CONTAINER,
        "image": settings.image,
        "command": ["meshwright"],
        "args": args,
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {"cpu": CPU_DEFAULT, "memory": MEMORY_DEFAULT}},
    });
    pull(&mut container, settings);
    container
}

/// The sidecar. `grace` is the pod's time to end, `declared` what the application's probes were.
pub(crate) fn proxy(
    notes: &Notes,
    workload: &str,
    settings: &SidecarSettings,
    form: Form,
    grace: Option<u64>,
    declared: &[Value],
) -> Value {
    let probe = |path: &str, period: u32, failures: u32| json!({"httpGet": {"path": path, "port": ports::HEALTH}, "periodSeconds": period, "failureThreshold": failures});
    let grace = grace.unwrap_or(GRACE_SECS_DEFAULT);
    let mut container = json!({
        "name": PROXY_CONTAINER,
        "image": settings.image,
        "command": ["meshwright"],
        "args": ["proxy"],
        "env": environment(notes, workload, settings, form, grace, declared),
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
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {
            "cpu": notes.cpu.as_deref().unwrap_or(CPU_DEFAULT),
            "memory": notes.memory.as_deref().unwrap_or(MEMORY_DEFAULT),
        }},
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true},
            {"name": CA_VOLUME, "mountPath": CA_DIR, "readOnly": true},
            {"name": SPIFFE_VOLUME, "mountPath": SPIFFE_DIR},
        ],
    });
    match form {
        Form::Native => {
            container["restartPolicy"] = "Always".into();
            // The kubelet runs the hooks of all containers at once, long before it is this one's turn to end.
            container["lifecycle"] = json!({"preStop": {"exec": {"command": ["meshwright", "hook", "leaving"]}}});
        }
        // The kubelet starts containers in their order, each after the former's postStart.
        Form::Ordinary { .. } => {
            container["lifecycle"] = json!({
                "postStart": {"exec": {"command": ["meshwright", "hook", "started", format!("--timeout={STARTUP_SECS_MAX}s")]}},
                "preStop": {"exec": {"command": ["meshwright", "hook", "ending", format!("--timeout={}s", linger_secs(grace))]}},
            });
        }
    }
    pull(&mut container, settings);
    container
}

fn environment(notes: &Notes, workload: &str, settings: &SidecarSettings, form: Form, grace: u64, declared: &[Value]) -> Vec<Value> {
    let downward = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let plain = |name: &str, value: String| json!({"name": name, "value": value});
    let mut env = vec![
        downward("POD_NAMESPACE", "metadata.namespace"),
        downward("MESHWRIGHT_INSTANCE", "metadata.name"),
        downward("MESHWRIGHT_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        plain(WORKLOAD_VARIABLE, format!("$(POD_NAMESPACE)/{workload}")),
        plain("MESHWRIGHT_CONTROL", settings.control.clone()),
        plain("MESHWRIGHT_CONTROL_CA", format!("{CA_DIR}/{}", annotations::CA_KEY)),
        plain("MESHWRIGHT_TOKEN_FILE", format!("{TOKEN_DIR}/token")),
        plain("MESHWRIGHT_SPIFFE_SOCKET", SPIFFE_SOCKET.to_owned()),
        // The application has another uid; nobody else sees the volume.
        plain("MESHWRIGHT_SPIFFE_SOCKET_MODE", "666".to_owned()),
        plain("MESHWRIGHT_DRAIN_SECS", drain_secs(form, grace).to_string()),
    ];
    if !declared.is_empty() {
        // `$(` would be a reference to another variable.
        env.push(plain(APP_PROBES, Value::from(declared.to_vec()).to_string().replace("$(", "$$(")));
    }
    if let Form::Ordinary { ends: Some(ends) } = form {
        env.push(plain("MESHWRIGHT_END_WITH_APPLICATION_SECS", ends.quiet_secs().to_string()));
    }
    env.extend(notes.log_level.clone().map(|level| plain("MESHWRIGHT_LOG_LEVEL", level)));
    env
}

/// A drain that the pod's time to end allows for. A native sidecar has what the application has left; an ordinary one has waited for it.
fn drain_secs(form: Form, grace: u64) -> u64 {
    match form {
        Form::Native => grace.saturating_sub(1).clamp(1, DRAIN_SECS_MAX),
        Form::Ordinary { .. } => grace.saturating_sub(1).clamp(1, DRAIN_SECS_ORDINARY_MAX),
    }
}

/// How long an ordinary sidecar waits for the application's end before its own.
fn linger_secs(grace: u64) -> u64 {
    grace.saturating_sub(drain_secs(Form::Ordinary { ends: None }, grace) + 1)
}

fn pull(container: &mut Value, settings: &SidecarSettings) {
    if let Some(policy) = settings.pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
}

/// Token, roots, and the folder that the application's socket is in. The last is memory: a disk's would keep a node from being drained.
pub(crate) fn volumes(settings: &SidecarSettings) -> [Value; 3] {
    let token =
        json!({"serviceAccountToken": {"audience": settings.token_audience, "expirationSeconds": TOKEN_LIFE_SECS, "path": "token"}});
    [
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [token]}}),
        json!({"name": CA_VOLUME, "configMap": {"name": settings.ca_config_map}}),
        json!({"name": SPIFFE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
    ]
}

/// What an application's container gets to find its identity.
pub(crate) fn spiffe() -> (Value, Value) {
    let mount = json!({"name": SPIFFE_VOLUME, "mountPath": SPIFFE_DIR, "readOnly": true});
    (mount, json!({"name": "SPIFFE_ENDPOINT_SOCKET", "value": format!("unix://{SPIFFE_SOCKET}")}))
}
