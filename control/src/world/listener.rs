//! What a Gateway and a ListenerSet share: listeners, who may attach to them, and references to certificates. Read leniently
//! (`gateway-api.md`): what a newer schema may say is kept as text and judged where status is made.

use std::collections::BTreeMap;

use proto::annotations::{ACME, ACME_ON};

use super::door::{Cursor, Fields, is_label};
use super::key::{CORE, GATEWAY_API, Kind, ObjectKey};

/// Certificates of one listener, as the published schema bounds them.
const CERTIFICATES_MAX: usize = 64;
/// TLS options of one listener, likewise.
const OPTIONS_MAX: usize = 16;

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its name, unique in its object.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Its protocol, as written.
    pub protocol: String,
    /// The hosts it serves; `None`: all.
    pub hostname: Option<String>,
    /// What it does about TLS.
    pub tls: Option<ListenerTls>,
    /// Which namespaces' routes may attach.
    pub from: From,
    /// Which kinds of routes may attach, as (group, kind); `None`: those its protocol can carry.
    pub kinds: Option<Vec<(String, String)>>,
    /// Line in the file.
    pub line: u32,
}

/// See [`Listener::tls`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListenerTls {
    /// As written; `None`: Terminate.
    pub mode: Option<String>,
    /// The certificates it has.
    pub certificates: Vec<ObjectRef>,
    /// No certificate is to be ordered.
    pub acme_off: bool,
    /// Line in the file.
    pub line: u32,
}

/// A reference to an object that holds certificates: by the standard's defaults a Secret, of the CAs a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// As written; `None`: that of the object that refers.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Line in the file.
    pub line: u32,
}

impl ObjectRef {
    /// Reads a reference; `kind`: what it means where it names none, `None`: it must name one.
    pub(super) fn read(at: &Cursor<'_>, kind: Option<Kind>) -> Option<Self> {
        let mut fields = at.fields();
        let group = match kind {
            Some(_) => fields.get("group").map_or(Some(CORE.to_owned()), |at| at.text()),
            None => fields.need("group").and_then(|at| at.text()),
        };
        let kind = match kind {
            Some(kind) => fields.get("kind").map_or(Some(kind.text().to_owned()), |at| at.text()),
            None => fields.need("kind").and_then(|at| at.text()),
        };
        let namespace = fields.get("namespace").and_then(|at| at.text());
        let name = fields.need("name").and_then(|at| at.text());
        fields.done();
        if namespace.as_ref().is_some_and(|namespace| !is_label(namespace)) {
            at.error("the namespace is no valid name", "");
        }
        Some(Self { group: group?, kind: kind?, namespace, name: name?, line: at.line() })
    }

    /// What it names, seen from a namespace; `None`: nothing that holds certificates.
    pub fn object(&self, namespace: &str) -> Option<ObjectKey> {
        let kind = Kind::find(&self.group, &self.kind).filter(|kind| matches!(kind, Kind::Secret | Kind::ConfigMap))?;
        Some(ObjectKey::new(kind, self.namespace.as_deref().unwrap_or(namespace), &self.name))
    }
}

/// See [`Listener::from`].
#[derive(Clone, Debug, PartialEq)]
pub enum From {
    /// Every namespace.
    All,
    /// The object's own.
    Same,
    /// None.
    None,
    /// Those whose labels fit.
    Selector(LabelSelector),
    /// A word we do not know.
    Unknown(String),
}

/// Kubernetes' label selector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelSelector {
    /// Equal labels.
    pub labels: BTreeMap<String, String>,
    /// Further demands: key, operator, values.
    pub expressions: Vec<(String, Operator, Vec<String>)>,
}

/// See [`LabelSelector::expressions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The value is one of these.
    In,
    /// It is none of these, or there is no such label.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is none.
    DoesNotExist,
}

impl LabelSelector {
    fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        let labels = fields.get("matchLabels").map(|at| at.text_map()).unwrap_or_default();
        let mut expressions = Vec::new();
        let words =
            [("In", Operator::In), ("NotIn", Operator::NotIn), ("Exists", Operator::Exists), ("DoesNotExist", Operator::DoesNotExist)];
        for at in fields.get("matchExpressions").map(|at| at.list(64)).unwrap_or_default() {
            let mut expression = at.fields();
            let key = expression.need("key").and_then(|at| at.text());
            let operator = expression.need("operator").and_then(|at| at.word(&words));
            let values = expression.get("values").map(|at| at.texts(64)).unwrap_or_default();
            expression.done();
            if let (Some(key), Some(operator)) = (key, operator) {
                expressions.push((key, operator, values));
            }
        }
        fields.done();
        Self { labels, expressions }
    }

    /// Whether these labels fit.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let expression = |(key, operator, values): &(String, Operator, Vec<String>)| {
            let value = labels.get(key);
            match operator {
                Operator::In => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value)) && self.expressions.iter().all(expression)
    }
}

impl From {
    /// Reads `namespaces`; `absent`: what it means where it does not say.
    pub(super) fn read(at: &Cursor<'_>, absent: Self) -> Self {
        let mut fields = at.fields();
        let word = fields.get("from").and_then(|at| at.text());
        let selector = fields.get("selector").map(|at| LabelSelector::read(&at));
        let from = match word.as_deref() {
            None => absent,
            Some("Same") => Self::Same,
            Some("None") => Self::None,
            Some("All") => Self::All,
            Some("Selector") => {
                if selector.is_none() {
                    fields.at().error("`from: Selector` needs a selector", "add `selector`");
                }
                Self::Selector(selector.unwrap_or_default())
            }
            Some(other) => Self::Unknown(other.to_owned()),
        };
        fields.done();
        from
    }
}

impl Listener {
    /// The listeners of an object's spec, each name once.
    pub(super) fn read_all(fields: &mut Fields<'_>) -> Vec<Self> {
        let mut listeners: Vec<Self> = Vec::new();
        for at in fields.need("listeners").map(|at| at.list(64)).unwrap_or_default() {
            let Some(listener) = Self::read(&at) else { continue };
            if listeners.iter().any(|known| known.name == listener.name) {
                at.error(format!("the name `{}` stands twice", listener.name), "give each listener its own name");
            } else {
                listeners.push(listener);
            }
        }
        listeners
    }

    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let name = fields.need("name").and_then(|at| at.text());
        let port = fields.need("port").and_then(|at| at.port());
        let protocol = fields.need("protocol").and_then(|at| at.text());
        let hostname = fields.get("hostname").and_then(|at| super::route::read_hostname(&at));
        let tls = fields.get("tls").map(|at| ListenerTls::read(&at));
        let (mut from, mut kinds) = (From::Same, None);
        if let Some(at) = fields.get("allowedRoutes") {
            let mut allowed = at.fields();
            if let Some(at) = allowed.get("namespaces") {
                from = From::read(&at, From::Same);
            }
            kinds =
                allowed.get("kinds").map(|at| at.list(8).iter().filter_map(read_kind).collect()).filter(|kinds: &Vec<_>| !kinds.is_empty());
            allowed.done();
        }
        fields.done();
        Some(Self { name: name?, port: port?, protocol: protocol?, hostname, tls, from, kinds, line: at.line() })
    }
}

impl ListenerTls {
    fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        let mode = fields.get("mode").and_then(|at| at.text());
        let mut certificates = Vec::new();
        for at in fields.get("certificateRefs").map(|at| at.list(CERTIFICATES_MAX)).unwrap_or_default() {
            certificates.extend(ObjectRef::read(&at, Some(Kind::Secret)));
        }
        let mut acme_off = false;
        if let Some(at) = fields.get("options") {
            let options = at.entries();
            if options.len() > OPTIONS_MAX {
                at.error(format!("{} options", options.len()), format!("at most {OPTIONS_MAX} are allowed"));
            }
            for (name, at) in options {
                if name == ACME {
                    acme_off = at.word(&[(ACME_ON, false), ("off", true)]).unwrap_or(true);
                    continue;
                }
                at.warn(format!("the option `{name}` is not supported by this version; it has no effect"), "remove it");
            }
        }
        fields.done();
        Self { mode, certificates, acme_off, line: at.line() }
    }
}

fn read_kind(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let group = fields.get("group").map_or(Some(GATEWAY_API.to_owned()), |at| at.text());
    let kind = fields.need("kind").and_then(|at| at.text());
    fields.done();
    Some((group?, kind?))
}

/// Listeners for a Gateway by somebody else than its owner.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerSet {
    /// Group of its parent, as written.
    pub group: Option<String>,
    /// Kind of its parent, as written.
    pub kind: Option<String>,
    /// Namespace of its parent; `None`: its own.
    pub namespace: Option<String>,
    /// Name of its parent.
    pub gateway: String,
    /// Its listeners.
    pub listeners: Vec<Listener>,
}

impl ListenerSet {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let parent = fields.need("parentRef");
        let listeners = Listener::read_all(&mut fields);
        fields.done();
        let mut parent = parent?.fields();
        let group = parent.get("group").and_then(|at| at.text());
        let kind = parent.get("kind").and_then(|at| at.text());
        let namespace = parent.get("namespace").and_then(|at| at.text());
        let gateway = parent.need("name").and_then(|at| at.text());
        parent.done();
        Some(Self { group, kind, namespace, gateway: gateway?, listeners })
    }

    /// The Gateway that it is for, where `namespace` is the set's own; `None`: its parent is none.
    pub fn parent(&self, namespace: &str) -> Option<(String, String)> {
        let gateway = self.group.as_deref().is_none_or(|group| group == GATEWAY_API)
            && self.kind.as_deref().is_none_or(|kind| kind == Kind::Gateway.text());
        gateway.then(|| (self.namespace.clone().unwrap_or_else(|| namespace.to_owned()), self.gateway.clone()))
    }
}
