//! A pod in, the same pod with a sidecar out.

use proto::annotations;
use serde_json::{Map, Value};

use crate::bounds::{self, TooMuch};
use crate::notes::{BadAnnotation, Notes};
use crate::probes::Probes;
use crate::settings::SidecarSettings;
use crate::sidecar::{self, APP_PROBES, Ends, Form, INTERCEPT_CONTAINER, OWN_PORTS, PROXY_CONTAINER, PROXY_UID, SPIFFE_DIR, SPIFFE_VOLUME};
use crate::{ending, merge};

/// Which of several containers `kubectl logs` and `exec` mean when nobody says.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// A pod with a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// `metadata` and `spec`, as they were and with ours.
    pub pod: Value,
    /// What its owner should know.
    pub warnings: Vec<String>,
}

/// Why a pod cannot have a sidecar that works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An annotation of ours is impossible.
    #[error(transparent)]
    Annotation(#[from] BadAnnotation),
    /// The application's traffic would pass for the sidecar's.
    #[error(
        "container {container} runs as user {PROXY_UID}, which is the sidecar's own: its traffic would go around the mesh; choose another"
    )]
    ProxyUser {
        /// Its name.
        container: String,
    },
    /// Both cannot listen there.
    #[error("container {container} listens on port {port}, which is the sidecar's own; choose another")]
    ProxyPort {
        /// Its name.
        container: String,
        /// The port.
        port: u64,
    },
    /// What overrides the sidecar's declared probes cannot be read.
    #[error("container {PROXY_CONTAINER}: {APP_PROBES} is no JSON list of probes; leave it out, the injector writes it")]
    AppProbes,
    /// There is more of something than anybody needs.
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
}

/// Adds the sidecar to a pod (or template). `workload` is the name of the object that owns the pod. What the pod had stays; what it has of
/// ours already stays as well, and only what is missing is added: doing it twice is doing it once.
///
/// # Errors
/// The pod cannot have a sidecar that works.
pub fn add(pod: &Value, workload: &str, settings: &SidecarSettings) -> Result<Added, Refused> {
    bounds::check(&pod["spec"])?;
    let notes = Notes::read(&pod["metadata"]["annotations"])?;
    let spec = pod["spec"].as_object().cloned().unwrap_or_default();
    let mut theirs = Theirs::take(&spec);
    theirs.check(&spec)?;
    let mut probes = Probes { declared: theirs.declared()?, warnings: Vec::new() };
    bounds::probes(&probes.declared)?;
    for container in theirs.init.iter_mut().chain(&mut theirs.containers).filter_map(Value::as_object_mut) {
        probes.lead(container, &notes.exclude_inbound_ports);
        bounds::probes(&probes.declared)?;
        give_identity(container, &mut probes.warnings);
    }
    let (delay, futile) = ending::delay_secs(&notes, &spec, settings)?;
    probes.warnings.extend(futile);
    for container in theirs.containers.iter_mut().filter_map(Value::as_object_mut) {
        delay.into_iter().for_each(|secs| ending::sleep(container, secs));
    }
    let form = form(&spec, settings);
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
    let intercept = laid_over(sidecar::intercept(&notes, settings), theirs.intercept.as_ref());
    let proxy = laid_over(sidecar::proxy(&notes, workload, settings, form, grace, &probes.declared), theirs.proxy.as_ref());
    let default_container = theirs.containers.first().map(|container| container["name"].clone());
    let Theirs { init, containers, .. } = theirs;

    let mut added = pod.clone();
    let Some(object) = added.as_object_mut() else { return Ok(Added { pod: added, warnings: probes.warnings }) };
    edit(object, "metadata", |metadata| edit(metadata, "annotations", |marks| mark(marks, form, default_container, settings)));
    edit(object, "spec", |spec| {
        let (init, containers) = match form {
            // Their own have the mesh already.
            Form::Native => ([vec![intercept, proxy], init].concat(), containers),
            // Their own come before the redirection, because nobody would answer behind it yet.
            Form::Ordinary { .. } => ([init, vec![intercept]].concat(), [vec![proxy], containers].concat()),
        };
        spec.insert("initContainers".to_owned(), init.into());
        if !containers.is_empty() || spec.contains_key("containers") {
            spec.insert("containers".to_owned(), containers.into());
        }
        merge::missing(spec, "volumes", "name", &sidecar::volumes(settings));
        if matches!(form, Form::Ordinary { ends: Some(_) }) && spec.get("shareProcessNamespace").is_none_or(Value::is_null) {
            spec.insert("shareProcessNamespace".to_owned(), true.into());
        }
        probes.warnings.extend(surprises(spec, form, settings));
    });
    Ok(Added { pod: added, warnings: probes.warnings })
}

/// The annotations of a pod that carries a sidecar.
fn mark(marks: &mut Map<String, Value>, form: Form, default_container: Option<Value>, settings: &SidecarSettings) {
    marks.entry(annotations::INJECTED).or_insert_with(|| settings.version.clone().into());
    marks.remove(annotations::NOT_INJECTED);
    if let (Form::Ordinary { .. }, Some(name)) = (form, default_container) {
        marks.entry(DEFAULT_CONTAINER).or_insert(name);
    }
}

/// The containers of a pod, ours apart.
struct Theirs {
    init: Vec<Value>,
    containers: Vec<Value>,
    intercept: Option<Map<String, Value>>,
    proxy: Option<Map<String, Value>>,
}

impl Theirs {
    fn take(spec: &Map<String, Value>) -> Self {
        let mut theirs = Self { init: Vec::new(), containers: Vec::new(), intercept: None, proxy: None };
        for list in ["initContainers", "containers"] {
            for container in spec.get(list).and_then(Value::as_array).into_iter().flatten() {
                match container["name"].as_str() {
                    Some(PROXY_CONTAINER) => theirs.proxy = container.as_object().cloned(),
                    Some(INTERCEPT_CONTAINER) => theirs.intercept = container.as_object().cloned(),
                    _ if list == "containers" => theirs.containers.push(container.clone()),
                    _ => theirs.init.push(container.clone()),
                }
            }
        }
        theirs
    }

    /// Nothing of theirs may pass for the sidecar or take its place.
    fn check(&self, spec: &Map<String, Value>) -> Result<(), Refused> {
        let pod_user = spec.get("securityContext").and_then(|context| context["runAsUser"].as_u64());
        for container in self.init.iter().chain(&self.containers) {
            let name = || container["name"].as_str().unwrap_or_default().to_owned();
            if container["securityContext"]["runAsUser"].as_u64().or(pod_user) == Some(PROXY_UID) {
                return Err(Refused::ProxyUser { container: name() });
            }
            let mut ports = container["ports"].as_array().into_iter().flatten().filter_map(|port| port["containerPort"].as_u64());
            if let Some(port) = ports.find(|port| OWN_PORTS.contains(port)) {
                return Err(Refused::ProxyPort { container: name(), port });
            }
        }
        Ok(())
    }

    /// What an earlier injection has told the sidecar of the probes that it led there.
    fn declared(&self) -> Result<Vec<Value>, Refused> {
        let env = self.proxy.as_ref().and_then(|proxy| proxy.get("env")?.as_array());
        let Some(told) = env.into_iter().flatten().find(|one| one["name"] == APP_PROBES) else { return Ok(Vec::new()) };
        let text = told["value"].as_str().ok_or(Refused::AppProbes)?.replace("$$(", "$(");
        serde_json::from_str(&text).map_err(|_| Refused::AppProbes)
    }
}

/// What is there of one of our containers stays; only what we tell of the probes is always ours.
fn laid_over(ours: Value, there: Option<&Map<String, Value>>) -> Value {
    let Some(there) = there else { return ours };
    let mut there = there.clone();
    if let Some(env) = there.get_mut("env").and_then(Value::as_array_mut) {
        env.retain(|one| one["name"] != APP_PROBES);
    }
    merge::container(ours, &there)
}

/// Gives a container of the application the way to its identity, unless it has something else there.
fn give_identity(container: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    let mounts = container.get("volumeMounts").and_then(Value::as_array).into_iter().flatten();
    let below = |path: &str, of: &str| path == of || path.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
    let taken = mounts.filter(|mount| mount["name"] != SPIFFE_VOLUME).find(|mount| {
        let path = mount["mountPath"].as_str().unwrap_or_default().trim_end_matches('/');
        // Nothing can be mounted into what is read only.
        below(path, SPIFFE_DIR) || (mount["readOnly"] == true && !path.is_empty() && below(SPIFFE_DIR, path))
    });
    if let Some(mount) = taken {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        let path = mount["mountPath"].as_str().unwrap_or_default();
        warnings.push(format!("container {name}: {path} is a volume of its own, so it has no SPIFFE Workload API"));
        return;
    }
    let (mount, env) = sidecar::spiffe();
    merge::missing(container, "volumeMounts", "mountPath", &[mount]);
    merge::missing(container, "env", "name", &[env]);
}

fn form(spec: &Map<String, Value>, settings: &SidecarSettings) -> Form {
    if settings.kubernetes.has_native_sidecars() {
        return Form::Native;
    }
    let ends = match spec.get("restartPolicy").and_then(Value::as_str) {
        Some("Never") => Some(Ends::Once),
        Some("OnFailure") => Some(Ends::WhenDone),
        _ => None,
    };
    Form::Ordinary { ends }
}

/// What works otherwise than one may think.
fn surprises(spec: &Map<String, Value>, form: Form, settings: &SidecarSettings) -> Vec<String> {
    let mut surprises = Vec::new();
    let policy = spec.get("dnsPolicy").and_then(Value::as_str).unwrap_or("ClusterFirst");
    let host = settings.control.rsplit_once(':').map_or(settings.control.as_str(), |(host, _)| host);
    let is_address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    if matches!(policy, "Default" | "None") && !is_address {
        surprises.push(format!("dnsPolicy: {policy}: the sidecar starts only if the pod's own resolvers know {host}, the control plane"));
    }
    let init = spec.get("initContainers").and_then(Value::as_array).map_or(0, Vec::len);
    if let Form::Ordinary { ends } = form {
        if init > 1 {
            let version = settings.kubernetes;
            surprises.push(format!("on Kubernetes {version} init containers run before the sidecar: outside the mesh, without mutual TLS"));
        }
        if ends.is_some() && spec.get("shareProcessNamespace").and_then(Value::as_bool) == Some(false) {
            surprises.push(
                "shareProcessNamespace: false: the sidecar cannot see the application end; let it POST to http://127.0.0.1:15000/quitquitquit"
                    .to_owned(),
            );
        }
    }
    surprises
}

/// Changes a field that is an object; made where it is not there.
fn edit(object: &mut Map<String, Value>, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let mut inner = match object.get_mut(name).map(Value::take) {
        Some(Value::Object(inner)) => inner,
        _ => Map::new(),
    };
    change(&mut inner);
    object.insert(name.to_owned(), inner.into());
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
