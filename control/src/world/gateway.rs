//! Gateway API's north-south kinds but the routes: GatewayClass, Gateway, ReferenceGrant. Read leniently (`gateway-api.md`):
//! what a newer schema may say is kept as text and judged where status is made.

use std::collections::BTreeMap;

use proto::annotations::ROOT_NAMESPACE;
use proto::identity::CONTROL_ACCOUNT;

use super::door::{Cursor, Fields};

/// A class of Gateways.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayClass {
    /// Who serves it.
    pub controller: String,
    /// Whether it refers to parameters; we have none.
    pub parameters: bool,
}

impl GatewayClass {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let controller = fields.need("controllerName").and_then(|at| at.text());
        let parameters = fields.get("parametersRef").is_some();
        fields.ignore(&["description"]);
        fields.done();
        Some(Self { controller: controller?, parameters })
    }
}

/// A door into the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Name of its class.
    pub class: String,
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// Whether it asks for certain addresses, or such of another kind than ours; we cannot pin any.
    pub addresses: bool,
    /// Whether it refers to parameters; we have none.
    pub parameters: bool,
    /// Fields we cannot honour, with their lines.
    pub unsupported: Vec<(String, u32)>,
}

/// One listener of a [`Gateway`].
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its name, unique in the Gateway.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Its protocol, as written.
    pub protocol: String,
    /// The hosts it serves; `None`: all.
    pub hostname: Option<String>,
    /// Which namespaces' routes may attach.
    pub from: From,
    /// Which kinds of routes may attach, as (group, kind); `None`: those its protocol can carry.
    pub kinds: Option<Vec<(String, String)>>,
    /// Line in the file.
    pub line: u32,
}

/// See [`Listener::from`].
#[derive(Clone, Debug, PartialEq)]
pub enum From {
    /// Every namespace.
    All,
    /// The Gateway's own.
    Same,
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

impl Gateway {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let key = fields.at().key();
        if (key.namespace.as_str(), key.name.as_str()) == (ROOT_NAMESPACE, CONTROL_ACCOUNT) {
            // A Gateway's account is its name.
            fields.at().error(
                "its proxy would have the control plane's own account, which nobody else gets a certificate of",
                "give it another name",
            );
        }
        let class = fields.need("gatewayClassName").and_then(|at| at.text());
        let mut listeners: Vec<Listener> = Vec::new();
        for at in fields.need("listeners").map(|at| at.list(64)).unwrap_or_default() {
            let Some(listener) = Listener::read(&at) else { continue };
            if listeners.iter().any(|known| known.name == listener.name) {
                at.error(format!("the name `{}` stands twice", listener.name), "give each listener its own name");
            } else {
                listeners.push(listener);
            }
        }
        let addresses = fields.get("addresses").is_some_and(|at| at.list(16).iter().filter(|at| pins(at)).count() > 0);
        let mut parameters = false;
        if let Some(at) = fields.get("infrastructure") {
            let mut infrastructure = at.fields();
            parameters = infrastructure.get("parametersRef").is_some();
            infrastructure.without(&["labels", "annotations"]);
            infrastructure.done();
        }
        let mut unsupported = Vec::new();
        for name in ["tls", "allowedListeners", "defaultScope"] {
            if let Some(at) = fields.get(name) {
                at.warn("not supported by this version; it has no effect", "remove it");
                unsupported.push((at.path().to_owned(), at.line()));
            }
        }
        fields.done();
        Some(Self { class: class?, listeners, addresses, parameters, unsupported })
    }
}

impl Listener {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let name = fields.need("name").and_then(|at| at.text());
        let port = fields.need("port").and_then(|at| at.port());
        let protocol = fields.need("protocol").and_then(|at| at.text());
        let hostname = fields.get("hostname").and_then(|at| super::route::read_hostname(&at));
        let (mut from, mut kinds) = (From::Same, None);
        if let Some(at) = fields.get("allowedRoutes") {
            let mut allowed = at.fields();
            if let Some(at) = allowed.get("namespaces") {
                from = read_from(&at);
            }
            kinds =
                allowed.get("kinds").map(|at| at.list(8).iter().filter_map(read_kind).collect()).filter(|kinds: &Vec<_>| !kinds.is_empty());
            allowed.done();
        }
        // Certificates of a protocol that is refused anyway need no second word.
        fields.ignore(&["tls"]);
        fields.done();
        Some(Self { name: name?, port: port?, protocol: protocol?, hostname, from, kinds, line: at.line() })
    }
}

/// Whether an entry of `addresses` leaves us no choice. An IP address without a value is whichever there is.
fn pins(at: &Cursor<'_>) -> bool {
    let mut fields = at.fields();
    let kind = fields.get("type").and_then(|at| at.text());
    let value = fields.get("value").and_then(|at| at.text());
    fields.done();
    kind.is_some_and(|kind| kind != "IPAddress") || value.is_some_and(|value| !value.is_empty())
}

fn read_from(at: &Cursor<'_>) -> From {
    let mut fields = at.fields();
    let word = fields.get("from").and_then(|at| at.text());
    let selector = fields.get("selector").map(|at| LabelSelector::read(&at));
    let from = match word.as_deref() {
        None | Some("Same") => From::Same,
        Some("All") => From::All,
        Some("Selector") => {
            if selector.is_none() {
                fields.at().error("`from: Selector` needs a selector", "add `selector`");
            }
            From::Selector(selector.unwrap_or_default())
        }
        Some(other) => From::Unknown(other.to_owned()),
    };
    fields.done();
    from
}

fn read_kind(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let group = fields.get("group").map_or(Some(super::key::GATEWAY_API.to_owned()), |at| at.text());
    let kind = fields.need("kind").and_then(|at| at.text());
    fields.done();
    Some((group?, kind?))
}

/// Leave to refer into its namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceGrant {
    /// Who may refer: group, kind, namespace.
    pub from: Vec<(String, String, String)>,
    /// To what: group, kind, name (`None`: any).
    pub to: Vec<(String, String, Option<String>)>,
}

impl ReferenceGrant {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut grant = Self::default();
        for at in fields.need("from")?.list(16) {
            let mut from = at.fields();
            let group = from.need("group").and_then(|at| at.text());
            let kind = from.need("kind").and_then(|at| at.text());
            let namespace = from.need("namespace").and_then(|at| at.text());
            from.done();
            grant.from.push((group?, kind?, namespace?));
        }
        for at in fields.need("to")?.list(16) {
            let mut to = at.fields();
            let group = to.need("group").and_then(|at| at.text());
            let kind = to.need("kind").and_then(|at| at.text());
            let name = to.get("name").and_then(|at| at.text());
            to.done();
            grant.to.push((group?, kind?, name));
        }
        fields.done();
        Some(grant)
    }
}
