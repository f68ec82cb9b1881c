//! Gateway API's north-south kinds but the routes: GatewayClass, Gateway, ReferenceGrant. Read leniently (`gateway-api.md`):
//! what a newer schema may say is kept as text and judged where status is made.

use proto::annotations::ROOT_NAMESPACE;
use proto::identity::CONTROL_ACCOUNT;

use super::door::{Cursor, Fields};
use super::key::Kind;
use super::listener::{From, Listener, ObjectRef};

/// Ports with demands of their own on clients' certificates, as the published schema bounds them.
const PER_PORT_MAX: usize = 64;
/// CA references of one demand, likewise.
const CAS_MAX: usize = 16;

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
    /// Its own listeners.
    pub listeners: Vec<Listener>,
    /// Addresses it asks for: kind and value. An IP address without a value is whichever there is, and stands here not.
    pub addresses: Vec<(String, String)>,
    /// Whether it refers to parameters; we have none.
    pub parameters: bool,
    /// Which namespaces' ListenerSets may attach.
    pub sets: From,
    /// What it asks of clients' certificates.
    pub clients: ClientDemands,
    /// What it shows backends that ask for a certificate.
    pub client_certificate: Option<ObjectRef>,
}

/// What a Gateway asks of its clients' certificates, on listeners for HTTPS.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientDemands {
    /// On every port without a word of its own.
    pub default: Option<ClientDemand>,
    /// On these ports; `None`: nothing is asked there.
    pub ports: Vec<(u16, Option<ClientDemand>)>,
}

impl ClientDemands {
    /// What is asked on a port, and the port that says so (0: the default).
    pub fn on(&self, port: u16) -> Option<(u16, &ClientDemand)> {
        match self.ports.iter().find(|(known, _)| *known == port) {
            Some((port, demand)) => Some((*port, demand.as_ref()?)),
            None => Some((0, self.default.as_ref()?)),
        }
    }

    /// All demands, with the port of each (0: the default).
    pub fn all(&self) -> impl Iterator<Item = (u16, &ClientDemand)> {
        let ports = self.ports.iter().filter_map(|(port, demand)| Some((*port, demand.as_ref()?)));
        self.default.iter().map(|demand| (0, demand)).chain(ports)
    }
}

/// See [`ClientDemands`].
#[derive(Clone, Debug, PartialEq)]
pub struct ClientDemand {
    /// Whose certificates are believed.
    pub cas: Vec<ObjectRef>,
    /// `AllowInsecureFallback`: whoever has none, or another's, comes in all the same.
    pub insecure: bool,
    /// A mode we do not know.
    pub unknown: Option<String>,
    /// Line in the file.
    pub line: u32,
}

impl ClientDemand {
    /// Reads `{validation}`; `None`: nothing is asked.
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let validation = fields.get("validation");
        fields.done();
        let at = validation?;
        let mut fields = at.fields();
        let cas = fields.need("caCertificateRefs").map(|at| at.list(CAS_MAX)).unwrap_or_default();
        let mode = fields.get("mode").and_then(|at| at.text());
        fields.done();
        Some(Self {
            cas: cas.iter().filter_map(|at| ObjectRef::read(at, None)).collect(),
            insecure: mode.as_deref() == Some("AllowInsecureFallback"),
            unknown: mode.filter(|mode| !matches!(mode.as_str(), "AllowValidOnly" | "AllowInsecureFallback")),
            line: at.line(),
        })
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
        let listeners = Listener::read_all(&mut fields);
        let addresses = fields.get("addresses").map(|at| at.list(16).iter().filter_map(pinned).collect()).unwrap_or_default();
        let mut parameters = false;
        if let Some(at) = fields.get("infrastructure") {
            let mut infrastructure = at.fields();
            parameters = infrastructure.get("parametersRef").is_some();
            infrastructure.without(&["labels", "annotations"]);
            infrastructure.done();
        }
        let mut sets = From::None;
        if let Some(at) = fields.get("allowedListeners") {
            let mut allowed = at.fields();
            if let Some(at) = allowed.get("namespaces") {
                sets = From::read(&at, From::None);
            }
            allowed.done();
        }
        let (clients, client_certificate) = fields.get("tls").map(|at| read_tls(&at)).unwrap_or_default();
        fields.without(&["defaultScope"]);
        fields.done();
        Some(Self { class: class?, listeners, addresses, parameters, sets, clients, client_certificate })
    }
}

fn read_tls(at: &Cursor<'_>) -> (ClientDemands, Option<ObjectRef>) {
    let mut fields = at.fields();
    let mut clients = ClientDemands::default();
    if let Some(at) = fields.get("frontend") {
        let mut frontend = at.fields();
        clients.default = frontend.get("default").and_then(|at| ClientDemand::read(&at));
        for at in frontend.get("perPort").map(|at| at.list(PER_PORT_MAX)).unwrap_or_default() {
            let mut entry = at.fields();
            let port = entry.need("port").and_then(|at| at.port());
            let demand = entry.need("tls").and_then(|at| ClientDemand::read(&at));
            entry.done();
            let Some(port) = port else { continue };
            if clients.ports.iter().any(|(known, _)| *known == port) {
                at.error(format!("port {port} stands twice"), "say once what is asked there");
            } else {
                clients.ports.push((port, demand));
            }
        }
        frontend.done();
    }
    let mut certificate = None;
    if let Some(at) = fields.get("backend") {
        let mut backend = at.fields();
        certificate = backend.get("clientCertificateRef").and_then(|at| ObjectRef::read(&at, Some(Kind::Secret)));
        backend.done();
    }
    fields.done();
    (clients, certificate)
}

/// An entry of `addresses`, if it leaves us no choice.
fn pinned(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let kind = fields.get("type").and_then(|at| at.text()).unwrap_or_else(|| "IPAddress".to_owned());
    let value = fields.get("value").and_then(|at| at.text()).unwrap_or_default();
    fields.done();
    (kind != "IPAddress" || !value.is_empty()).then_some((kind, value))
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
