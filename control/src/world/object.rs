//! One object: what every kind has in common, and the way from a document to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend_tls::BackendTlsPolicy;
use super::canary::Canary;
use super::content::Contents;
use super::core::{EndpointSlice, Service};
use super::door::{Cursor, Fields, Intake, Judge, is_label, is_subdomain};
use super::edge::{ApiKeyAuth, BasicAuth, ClientPolicy, Consumer, EdgeAttachment, EdgeRateLimit, ExternalAuth, OidcLogin};
use super::external_backend::ExternalBackend;
use super::gateway::{Gateway, GatewayClass, ReferenceGrant};
use super::key::{Kind, ObjectKey};
use super::listener::ListenerSet;
use super::own::{Mesh, PeerAuthentication};
use super::pod::Pod;
use super::problem::{Problem, Severity, nearest};
use super::revocation::Revocation;
use super::route::Route;
use super::security::authentication::RequestAuthentication;
use super::security::authorization::AuthorizationPolicy;
use super::security::egress::EgressPolicy;
use super::telemetry::Telemetry;
use super::traffic::TrafficPolicy;
use super::tree::{Node, Part};
use super::workload::Workload;

/// An accepted object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its name.
    pub key: ObjectKey,
    /// Labels, annotations, age.
    pub metadata: Metadata,
    /// What its author wants.
    pub spec: Spec,
}

/// The parts of `metadata` that matter to us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp`, milliseconds since 1970.
    pub created_ms: Option<i64>,
    /// `generation`, where an API server counts it.
    pub generation: Option<i64>,
    /// `uid`, which tells it from a former one of the same name.
    pub uid: Option<String>,
}

/// The typed content of each kind.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is the kind of that name")]
pub enum Spec {
    Namespace,
    ServiceAccount,
    Service(Service),
    EndpointSlice(EndpointSlice),
    Node,
    Pod(Box<Pod>),
    Secret(Contents),
    ConfigMap(Contents),
    Workload(Workload),
    Mesh(Mesh),
    PeerAuthentication(PeerAuthentication),
    Telemetry(Telemetry),
    GatewayClass(GatewayClass),
    Gateway(Box<Gateway>),
    ListenerSet(ListenerSet),
    BackendTlsPolicy(BackendTlsPolicy),
    ExternalBackend(Box<ExternalBackend>),
    Route(Route),
    ReferenceGrant(ReferenceGrant),
    TrafficPolicy(Box<TrafficPolicy>),
    EgressPolicy(Box<EgressPolicy>),
    Revocation(Revocation),
    Canary(Box<Canary>),
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    RequestAuthentication(RequestAuthentication),
    ApiKeyAuth(Box<ApiKeyAuth>),
    RateLimit(Box<EdgeRateLimit>),
    ClientPolicy(Box<ClientPolicy>),
    Consumer(Box<Consumer>),
    BasicAuth(Box<BasicAuth>),
    ExternalAuth(Box<ExternalAuth>),
    OidcLogin(Box<OidcLogin>),
    /// Stands at edges for an object that fails closed and of which no version was ever good: what it is about is answered 500.
    Broken(EdgeAttachment),
}

/// One version of an object as somebody handed it to us: good, or refused with reasons.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub key: ObjectKey,
    /// File it came from, as named to us.
    pub file: String,
    /// Line of its document.
    pub line: u32,
    /// The typed object; `None` when a problem of severity Error refuses it.
    pub object: Option<Arc<Object>>,
    /// What stands for it at edges where it is refused and no version was good before.
    pub stand_in: Option<Arc<Object>>,
    /// Everything that is wrong with it, warnings included.
    pub problems: Vec<Problem>,
    /// The document as the text of JSON: a cluster's objects are many, and few are ever looked at.
    pub raw: Arc<str>,
    /// Hash of the document's content, without `status` where that is only what controllers write: equal content, equal digest.
    pub digest: String,
}

/// Reads one object that nobody has judged before.
///
/// # Errors
/// The text names no object: no `kind`, no `metadata.name`, a kind we do not know (a warning).
pub fn read(file: &str, part: &Part) -> Result<Candidate, Box<Problem>> {
    read_judged(file, part, Judge::Nobody)
}

/// Reads one object.
///
/// # Errors
/// As [`read`].
pub fn read_judged(file: &str, part: &Part, judge: Judge) -> Result<Candidate, Box<Problem>> {
    let node = &part.node;
    // A problem that belongs to no object is known by its place alone.
    let placed = |mut problem: Box<Problem>| {
        let dot = if part.place.is_empty() || problem.field.is_empty() { "" } else { "." };
        problem.field = format!("{}{dot}{}", part.place, problem.field);
        problem
    };
    let kind = kind_of(file, node).map_err(placed)?;
    let key = key_of(file, node, kind).map_err(placed)?;
    let mut raw = node.json();
    // Everywhere else it is what controllers write about an object; of a pod it is the object, and of a Service where it is reached.
    if let (false, serde_json::Value::Object(map)) = (matches!(kind, Kind::Pod | Kind::Service), &mut raw) {
        map.remove("status");
    }
    let mut text = raw.to_string();
    let digest = proto::epoch::version(text.as_bytes());
    if kind == Kind::Secret {
        redact(&mut raw);
        text = raw.to_string();
    }
    let door = Intake::new(file, key.clone(), judge);
    let (metadata, spec) = read_object(&door, part, kind);
    let problems = door.problems();
    let refused = problems.iter().any(|problem| problem.severity == Severity::Error);
    let broken = if refused { EdgeAttachment::of_refused(&key, node) } else { None };
    let stand_in = broken.map(|at| Arc::new(Object { key: key.clone(), metadata: metadata.clone(), spec: Spec::Broken(at) }));
    let object = spec.filter(|_| !refused).map(|spec| Arc::new(Object { key: key.clone(), metadata, spec }));
    Ok(Candidate { key, file: file.to_owned(), line: node.line, object, stand_in, problems, raw: text.into(), digest })
}

impl Candidate {
    /// The document.
    pub fn document(&self) -> serde_json::Value {
        serde_json::from_str(&self.raw).unwrap_or_default()
    }
}

/// Takes the values out of a Secret: what is kept is printed and stored.
fn redact(raw: &mut serde_json::Value) {
    for part in ["data", "stringData"] {
        if let Some(entries) = raw.get_mut(part).and_then(serde_json::Value::as_object_mut) {
            entries.values_mut().for_each(|value| *value = "REDACTED".into());
        }
    }
}

/// Group, version and kind of a text that has them.
pub(super) fn type_of(node: &Node) -> Option<(&str, &str, &str)> {
    let text = |name| node.get(name).and_then(Node::text);
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    Some((group, version, kind))
}

fn kind_of(file: &str, node: &Node) -> Result<Kind, Box<Problem>> {
    let wrong = |line, message: String, remedy: String| Box::new(Problem::of_file(Severity::Error, file, line, message, remedy));
    let Some((group, version, kind)) = type_of(node) else {
        let missing = if node.get("kind").and_then(Node::text).is_none() { "kind" } else { "apiVersion" };
        return Err(wrong(
            node.line,
            format!("the document has no `{missing}`"),
            format!("add `{missing}`, as in every Kubernetes manifest"),
        ));
    };
    if let Some(found) = Kind::find(group, kind) {
        if found.versions().contains(&version) {
            return Ok(found);
        }
        let message = format!("{kind} has no version `{version}`");
        return Err(wrong(node.line, message, format!("use {}", api_version(found))));
    }
    let remedy = meant(group, kind).unwrap_or_else(|| "it has no effect on the mesh".to_owned());
    // In our own group an unknown kind is a slip; elsewhere it belongs to somebody else.
    let severity = if group == super::key::OWN { Severity::Error } else { Severity::Warning };
    let shown: String = kind.chars().take(80).collect();
    let message = if group.is_empty() { format!("unknown kind `{shown}`") } else { format!("unknown kind `{shown}` of group `{group}`") };
    Err(Box::new(Problem::of_file(severity, file, node.line, message, remedy)))
}

/// What somebody may have meant who wrote a kind that does not exist. Of a group that is not near one of ours only a kind's own name is
/// taken for a slip: the others' kinds are many, and some of their names are like ours.
fn meant(group: &str, kind: &str) -> Option<String> {
    if let Some(known) = Kind::ALL.into_iter().find(|known| known.text() == kind) {
        return Some(format!("did you mean apiVersion {}?", api_version(known)));
    }
    let near_group = nearest(group, Kind::ALL.into_iter().map(Kind::group))?;
    let near = nearest(kind, Kind::ALL.into_iter().map(Kind::text))?;
    let known = Kind::ALL.into_iter().find(|known| known.text() == near)?;
    let elsewhere = known.group() != group || near_group != group;
    Some(if elsewhere { format!("did you mean `{near}` of {}?", api_version(known)) } else { format!("did you mean `{near}`?") })
}

/// `group/version` of a kind, as manifests write it.
pub fn api_version(kind: Kind) -> String {
    let version = kind.versions().first().copied().unwrap_or("v1");
    if kind.group().is_empty() { version.to_owned() } else { format!("{}/{version}", kind.group()) }
}

fn key_of(file: &str, node: &Node, kind: Kind) -> Result<ObjectKey, Box<Problem>> {
    let metadata = node.get("metadata");
    let line = metadata.map_or(node.line, |metadata| metadata.line);
    let wrong = |message: String, remedy: &str| {
        let problem = Problem::of_file(Severity::Error, file, line, message, remedy);
        Box::new(Problem { kind: kind.text().to_owned(), field: "metadata.name".to_owned(), ..problem })
    };
    let Some(name) = metadata.and_then(|metadata| metadata.get("name")).and_then(Node::text) else {
        return Err(wrong("the object has no name".to_owned(), "add metadata.name, as text"));
    };
    let labelled = matches!(kind, Kind::Namespace | Kind::Service | Kind::Workload);
    let fits = if labelled { is_label(name) } else { is_subdomain(name) };
    let shown: String = name.chars().take(300).collect();
    if !fits {
        return Err(wrong(
            format!("`{shown}` is no valid name"),
            "use lower-case letters, digits and `-`, starting and ending with a letter or digit",
        ));
    }
    if kind.cluster_scoped() {
        return Ok(ObjectKey::new(kind, "", name));
    }
    let namespace = metadata.and_then(|metadata| metadata.get("namespace")).map_or(Some("default"), Node::text);
    match namespace.filter(|namespace| is_label(namespace)) {
        Some(namespace) => Ok(ObjectKey::new(kind, namespace, name)),
        None => Err(Box::new(Problem {
            name: shown,
            field: "metadata.namespace".to_owned(),
            ..*wrong("the namespace is no valid name".to_owned(), "use lower-case letters, digits and `-`")
        })),
    }
}

fn read_object(door: &Intake<'_>, part: &Part, kind: Kind) -> (Metadata, Option<Spec>) {
    let mut fields = Cursor::new(&part.node, part.place.as_str(), door).fields();
    fields.ignore(&["apiVersion", "kind", "status"]);
    let metadata = fields.get("metadata").map(|metadata| read_metadata(&metadata)).unwrap_or_default();
    match kind {
        // The kubelet's and the cluster's own: whatever else stands there is none of our business.
        Kind::Node => return (metadata, Some(Spec::Node)),
        Kind::Pod => {
            if fields.get("status").is_none() {
                fields.at().warn("nothing here runs a pod; it has no effect on the mesh", "declare a Workload");
            }
            return (metadata, Some(Spec::Pod(Box::new(Pod::read(&part.node)))));
        }
        _ => {}
    }
    let mut spec = read_spec(kind, &mut fields);
    if let Some(Spec::Service(service)) = &mut spec {
        service.balanced(&part.node);
    }
    fields.done();
    (metadata, spec)
}

fn read_spec(kind: Kind, fields: &mut Fields<'_>) -> Option<Spec> {
    Some(match kind {
        Kind::Namespace => {
            fields.ignore(&["spec"]);
            Spec::Namespace
        }
        Kind::ServiceAccount => {
            fields.ignore(&["secrets", "imagePullSecrets", "automountServiceAccountToken"]);
            Spec::ServiceAccount
        }
        Kind::Secret => Spec::Secret(Contents::secret(fields)),
        Kind::ConfigMap => Spec::ConfigMap(Contents::config_map(fields)),
        Kind::EndpointSlice => Spec::EndpointSlice(EndpointSlice::read(fields)?),
        Kind::Service => Spec::Service(Service::read(fields.need("spec")?.fields())?),
        Kind::Workload => Spec::Workload(Workload::read(fields.need("spec")?.fields())?),
        Kind::Mesh => Spec::Mesh(read_mesh(fields)?),
        Kind::PeerAuthentication => Spec::PeerAuthentication(PeerAuthentication::read(fields.need("spec")?.fields())?),
        Kind::Telemetry => Spec::Telemetry(Telemetry::read(fields.need("spec")?.fields())?),
        Kind::GatewayClass => Spec::GatewayClass(GatewayClass::read(fields.need("spec")?.fields())?),
        Kind::Gateway => Spec::Gateway(Box::new(Gateway::read(fields.need("spec")?.fields())?)),
        Kind::ListenerSet => Spec::ListenerSet(ListenerSet::read(fields.need("spec")?.fields())?),
        Kind::BackendTLSPolicy => Spec::BackendTlsPolicy(BackendTlsPolicy::read(fields.need("spec")?.fields())?),
        Kind::XBackend => Spec::ExternalBackend(Box::new(ExternalBackend::read(fields.need("spec")?.fields())?)),
        Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute | Kind::UDPRoute => {
            Spec::Route(Route::read(fields.need("spec")?.fields())?)
        }
        Kind::ReferenceGrant => Spec::ReferenceGrant(ReferenceGrant::read(fields.need("spec")?.fields())?),
        Kind::AuthorizationPolicy => Spec::AuthorizationPolicy(Box::new(AuthorizationPolicy::read(fields.need("spec")?.fields())?)),
        Kind::TrafficPolicy => Spec::TrafficPolicy(Box::new(TrafficPolicy::read(fields.need("spec")?.fields())?)),
        Kind::EgressPolicy => Spec::EgressPolicy(Box::new(EgressPolicy::read(fields.need("spec")?.fields())?)),
        Kind::Revocation => Spec::Revocation(Revocation::read(fields.need("spec")?.fields())?),
        Kind::Canary => Spec::Canary(Box::new(Canary::read(fields.need("spec")?.fields())?)),
        Kind::BasicAuth => Spec::BasicAuth(Box::new(BasicAuth::read(fields.need("spec")?.fields())?)),
        Kind::ExternalAuth => Spec::ExternalAuth(Box::new(ExternalAuth::read(fields.need("spec")?.fields())?)),
        Kind::OidcLogin => Spec::OidcLogin(Box::new(OidcLogin::read(fields.need("spec")?.fields())?)),
        Kind::Consumer => Spec::Consumer(Box::new(Consumer::read(fields.need("spec")?.fields())?)),
        Kind::ApiKeyAuth => Spec::ApiKeyAuth(Box::new(ApiKeyAuth::read(fields.need("spec")?.fields())?)),
        Kind::ClientPolicy => Spec::ClientPolicy(Box::new(ClientPolicy::read(fields.need("spec")?.fields())?)),
        Kind::RateLimit => Spec::RateLimit(Box::new(EdgeRateLimit::read(fields.need("spec")?.fields())?)),
        Kind::RequestAuthentication => Spec::RequestAuthentication(RequestAuthentication::read(fields.need("spec")?.fields())?),
        // What runs is read before.
        Kind::Node | Kind::Pod => return None,
    })
}

fn read_mesh(fields: &mut Fields<'_>) -> Option<Mesh> {
    let key = fields.at().key();
    if key.name != "default" || key.namespace != proto::annotations::ROOT_NAMESPACE {
        let remedy = format!("name it `default` in namespace `{}`", proto::annotations::ROOT_NAMESPACE);
        fields.at().error("there is one Mesh object only", remedy);
    }
    match fields.get("spec") {
        Some(spec) => Mesh::read(spec.fields()),
        None => Some(Mesh::default()),
    }
}

fn read_metadata(at: &Cursor<'_>) -> Metadata {
    let mut fields = at.fields();
    fields.ignore(&[
        "name",
        "namespace",
        "resourceVersion",
        "managedFields",
        "finalizers",
        "ownerReferences",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "selfLink",
    ]);
    let metadata = Metadata {
        labels: fields.get("labels").map(|labels| labels.text_map()).unwrap_or_default(),
        annotations: fields.get("annotations").map(|annotations| annotations.text_map()).unwrap_or_default(),
        created_ms: fields.get("creationTimestamp").and_then(|created| created.timestamp()),
        generation: fields.get("generation").and_then(|generation| generation.int(0..=i64::MAX)),
        uid: fields.get("uid").and_then(|uid| uid.text()),
    };
    fields.done();
    metadata
}

impl Object {
    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.get(name).map(String::as_str)
    }

    /// An annotation's value.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.get(name).map(String::as_str)
    }

    /// The ports of a comma-separated annotation; what is no port is left out (and reported by `analyze`).
    pub fn annotated_ports(&self, name: &str) -> Vec<u16> {
        let parts = self.annotation(name).into_iter().flat_map(|value| value.split(','));
        parts.filter_map(|part| part.trim().parse().ok()).collect()
    }
}

/// Where an object holds at edges; `None`: it is none of an edge.
pub fn attachment(object: &Object) -> Option<&EdgeAttachment> {
    match &object.spec {
        Spec::ApiKeyAuth(spec) => Some(&spec.attachment),
        Spec::BasicAuth(spec) => Some(&spec.attachment),
        Spec::RateLimit(spec) => Some(&spec.attachment),
        Spec::ExternalAuth(spec) => Some(&spec.attachment),
        Spec::OidcLogin(spec) => Some(&spec.attachment),
        Spec::ClientPolicy(spec) => Some(&spec.attachment),
        Spec::AuthorizationPolicy(spec) => Some(&spec.attachment).filter(|at| !at.targets.is_empty()),
        Spec::RequestAuthentication(spec) => Some(&spec.attachment).filter(|at| !at.targets.is_empty()),
        Spec::Broken(attachment) => Some(attachment),
        _ => None,
    }
}
