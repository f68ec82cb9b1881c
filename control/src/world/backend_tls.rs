//! BackendTLSPolicy: how Gateways speak TLS to a Service's own endpoints.

use super::door::{Cursor, Fields};
use super::key::{CORE, Kind};
use super::listener::ObjectRef;

/// Targets of one policy, CA references and names, as the published schema bounds them.
const TARGETS_MAX: usize = 16;
const CAS_MAX: usize = 8;
const NAMES_MAX: usize = 5;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendTlsPolicy {
    /// What it is about.
    pub targets: Vec<TlsTarget>,
    /// Whose certificates are believed.
    pub cas: Vec<ObjectRef>,
    /// `wellKnownCACertificates`, as written.
    pub well_known: Option<String>,
    /// The server name that TLS asks for, and, without [`Self::names`], the name the certificate must have.
    pub hostname: String,
    /// Names of which the certificate must have one.
    pub names: Vec<ServerName>,
    /// Line of its `validation`.
    pub line: u32,
}

/// See [`BackendTlsPolicy::targets`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsTarget {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name, in the policy's own namespace.
    pub name: String,
    /// A port of the Service by name; `None`: all of it.
    pub section: Option<String>,
    /// Line in the file.
    pub line: u32,
}

impl TlsTarget {
    /// Whether it is a Service.
    pub fn is_service(&self) -> bool {
        self.group == CORE && self.kind == Kind::Service.text()
    }
}

/// See [`BackendTlsPolicy::names`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// A DNS name, `*.` allowed as its first label.
    Dns(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
}

impl BackendTlsPolicy {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut targets = Vec::new();
        for at in fields.need("targetRefs").map(|at| at.list(TARGETS_MAX)).unwrap_or_default() {
            let mut target = at.fields();
            let group = target.need("group").and_then(|at| at.text());
            let kind = target.need("kind").and_then(|at| at.text());
            let name = target.need("name").and_then(|at| at.text());
            let section = target.get("sectionName").and_then(|at| at.text());
            target.done();
            if let (Some(group), Some(kind), Some(name)) = (group, kind, name) {
                targets.push(TlsTarget { group, kind, name, section, line: at.line() });
            }
        }
        let validation = fields.need("validation");
        if let Some(at) = fields.get("options") {
            for (name, at) in at.entries() {
                at.warn(format!("the option `{name}` is not supported by this version; it has no effect"), "remove it");
            }
        }
        fields.done();
        Self::validation(&validation?, targets)
    }

    /// What a `validation` says of such targets.
    pub(super) fn validation(at: &Cursor<'_>, targets: Vec<TlsTarget>) -> Option<Self> {
        let mut fields = at.fields();
        let cas = fields.get("caCertificateRefs").map(|at| at.list(CAS_MAX)).unwrap_or_default();
        let well_known = fields.get("wellKnownCACertificates").and_then(|at| at.text()).filter(|word| !word.is_empty());
        let hostname = fields.need("hostname").and_then(|at| super::route::read_hostname(&at));
        let names = fields.get("subjectAltNames").map(|at| at.list(NAMES_MAX)).unwrap_or_default();
        let names = names.iter().filter_map(read_name).collect();
        fields.done();
        let cas: Vec<ObjectRef> = cas.iter().filter_map(|at| ObjectRef::read(at, None)).collect();
        if cas.is_empty() == well_known.is_none() {
            at.error("it does not say whom to believe", "name either `caCertificateRefs` or `wellKnownCACertificates`");
        }
        Some(Self { targets, cas, well_known, hostname: hostname?, names, line: at.line() })
    }
}

fn read_name(at: &Cursor<'_>) -> Option<ServerName> {
    let mut fields = at.fields();
    let kind = fields.need("type").and_then(|at| at.word(&[("Hostname", false), ("URI", true)]));
    let (hostname, uri) = (fields.get("hostname"), fields.get("uri"));
    fields.done();
    let name = match kind? {
        false => hostname.as_ref().and_then(super::route::read_hostname).map(ServerName::Dns),
        true => uri.and_then(|at| at.text()).filter(|uri| !uri.is_empty()).map(ServerName::Uri),
    };
    if name.is_none() {
        at.error("it names nothing", "write the name below `hostname` or `uri`, as its type says");
    }
    name
}
