//! Routes of every kind, read leniently: an unknown word refuses its rule with the standard's condition, not the object. What the
//! kinds share stands here; what one of them alone says, in the file of its name.

mod backend;
mod exchange;
mod external;
mod filters;
mod grpc;
mod http;
mod matches;
mod reference;
mod stream;

use std::net::IpAddr;

pub use backend::BackendRef;
pub(super) use exchange::session_timeout;
pub use exchange::{RouteRetry, RouteTimeouts, SessionPersistence};
pub use external::RouteExternal;
pub use filters::{Cors, Filters, HeaderOps, Mirror, PROTECTED, PathChange, Redirect, Rewrite};
pub use matches::{Match, PathMatch, ValueMatch};
pub(super) use matches::{PATH_REMEDY, is_path};
pub use reference::Reference;

use super::door::{Cursor, Fields, is_subdomain};
use super::key::{CORE, GATEWAY_API, Kind};

/// Bounds of the published schema.
const PARENTS_MAX: usize = 32;
const HOSTNAMES_MAX: usize = 16;
const HOSTNAME_BYTES_MAX: usize = 253;
const SNI_NAMES_MAX: usize = 1024;
const RULES_MAX: usize = 16;
const ITEMS_MAX: usize = 16;

/// A route. Which kind it is says its object's key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    /// What it attaches to.
    pub parents: Vec<ParentRef>,
    /// Hosts it is about; empty: those of its listener. On a Service only a TLSRoute's mean something: the names that TLS asks for.
    pub hostnames: Vec<String>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A reference to a parent, echoed in status as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// As written; `None`: Gateway API's group.
    pub group: Option<String>,
    /// As written; `None`: Gateway.
    pub kind: Option<String>,
    /// As written; `None`: the route's own.
    pub namespace: Option<String>,
    /// Name of the parent.
    pub name: String,
    /// Listener (or Service port) by name.
    pub section: Option<String>,
    /// Listener or Service port by number.
    pub port: Option<u16>,
    /// Line in the file.
    pub line: u32,
}

impl ParentRef {
    /// Whether this names a Gateway.
    pub fn is_gateway(&self) -> bool {
        self.group() == GATEWAY_API && self.kind.as_deref().unwrap_or("Gateway") == "Gateway"
    }

    /// Whether this names a Service.
    pub fn is_service(&self) -> bool {
        self.group() == CORE && self.kind.as_deref() == Some("Service")
    }

    /// Whether this names a ListenerSet.
    pub fn is_listener_set(&self) -> bool {
        self.group() == GATEWAY_API && self.kind.as_deref() == Some("ListenerSet")
    }

    /// The group it means; absent it is Gateway API's, for a Service too.
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(GATEWAY_API)
    }

    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let mut text = |name| fields.get(name).and_then(|at| at.text());
        let (group, kind, namespace, section) =
            (text("group"), text("kind"), text("namespace"), text("sectionName").filter(|name| !name.is_empty()));
        let name = fields.need("name").and_then(|at| at.text());
        let port = fields.get("port").and_then(|at| at.port());
        fields.done();
        Some(Self { group, kind, namespace, name: name?, section, port, line: at.line() })
    }
}

/// One rule. Of a TCPRoute, TLSRoute or UDPRoute it has backends and nothing else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Its name, if it has one. Names may repeat.
    pub name: Option<String>,
    /// Any of these; empty only where no rule has matches, or none of them can be read.
    pub matches: Vec<Match>,
    /// What happens to its requests.
    pub filters: Filters,
    /// Where they go; `None`: not said, which on a Service means its own endpoints.
    pub backends: Option<Vec<BackendRef>>,
    /// How long they may take.
    pub timeouts: RouteTimeouts,
    /// Whether they are tried again.
    pub retry: Option<RouteRetry>,
    /// Whether those of one client stay with one endpoint.
    pub session: Option<SessionPersistence>,
    /// Why some of its matches cannot be read. What the others match is answered 500; without others the rule is dropped.
    pub unmatchable: Vec<Unsupported>,
    /// Why its requests must fail: they would be served without what the author asked for.
    pub failing: Vec<Unsupported>,
    /// Line in the file.
    pub line: u32,
}

impl Rule {
    /// The backends that it names.
    pub fn backends(&self) -> &[BackendRef] {
        self.backends.as_deref().unwrap_or_default()
    }

    /// Whether its requests are answered 500: serving them would do something else than its author asked for.
    pub fn fails(&self) -> bool {
        !self.failing.is_empty() || !self.unmatchable.is_empty()
    }

    /// Everything that it refers to: backends, whom copies go to, and who is asked.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        let filters = std::iter::once(&self.filters).chain(self.backends().iter().map(|backend| &backend.filters));
        let copies = filters.flat_map(|filters| &filters.mirrors).map(|mirror| &mirror.to);
        let asked = self.filters.external.iter().map(|external| &external.to);
        self.backends().iter().map(|backend| &backend.to).chain(copies).chain(asked)
    }

    /// What all rules have: a name, and backends.
    fn read(fields: &mut Fields<'_>) -> Self {
        let mut rule = Self { line: fields.at().line(), ..Self::default() };
        if let Some(at) = fields.get("name") {
            rule.name = at.text().filter(|name| is_subdomain(name));
            if rule.name.is_none() {
                at.error("no valid name of a rule", "use lower-case letters, digits and `-`");
            }
        }
        if let Some(at) = fields.get("backendRefs") {
            rule.backends = Some(at.list(ITEMS_MAX).iter().filter_map(BackendRef::read).collect());
        }
        rule
    }

    /// Every request, with nothing said about it.
    fn implied(line: u32) -> Self {
        Self { matches: vec![Match::any()], line, ..Self::default() }
    }
}

/// Something in a rule that this version cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Path of the field.
    pub field: String,
    /// What about it.
    pub message: String,
    /// Line in the file.
    pub line: u32,
}

fn fault(at: &Cursor<'_>, message: impl Into<String>) -> Unsupported {
    Unsupported { field: at.path().to_owned(), message: message.into(), line: at.line() }
}

impl Route {
    /// Reads the spec of a route of the object's kind.
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let kind = fields.at().key().kind;
        let mut route = Self::default();
        for at in fields.get("parentRefs").map(|at| at.list(PARENTS_MAX)).unwrap_or_default() {
            route.parents.extend(ParentRef::read(&at));
        }
        let hostnames_max = if kind == Kind::TLSRoute { SNI_NAMES_MAX } else { HOSTNAMES_MAX };
        // Bytes and datagrams have none: there they are an unknown field.
        let hostnames = if matches!(kind, Kind::TCPRoute | Kind::UDPRoute) { None } else { fields.get("hostnames") };
        for at in hostnames.map(|at| at.list(hostnames_max)).unwrap_or_default() {
            let read = read_hostname(&at);
            if read.is_none() && at.is_empty() {
                at.error("an empty host is none", "name a host, or leave hostnames out for all of the listener's");
            }
            route.hostnames.extend(read);
        }
        let streams = kind.routes_streams();
        let listed = if streams { fields.need("rules") } else { fields.get("rules") };
        for at in listed.map(|at| at.list(if streams { 1 } else { RULES_MAX })).unwrap_or_default() {
            let rule = match kind {
                Kind::GRPCRoute => grpc::read(&at),
                Kind::TCPRoute | Kind::TLSRoute | Kind::UDPRoute => stream::read(&at),
                _ => http::read(&at),
            };
            if rule.name.is_some() && route.rules.iter().any(|known| known.name == rule.name) {
                at.warn("the rule's name stands twice: logs and metrics cannot tell the two apart", "give each rule its own name");
            }
            route.rules.push(rule);
        }
        if route.rules.is_empty() {
            route.rules.push(Rule::implied(fields.at().line()));
        }
        if route.parents.iter().any(ParentRef::is_service) {
            for (number, rule) in route.rules.iter_mut().enumerate().filter(|(_, rule)| rule.filters.external.is_some()) {
                let message = "the filter ExternalAuth is carried out at Gateways only, and a Service is a parent".to_owned();
                rule.failing.push(Unsupported { field: format!("spec.rules[{number}].filters"), message, line: rule.line });
            }
        }
        fields.without(&["useDefaultGateways"]);
        fields.done();
        Some(route)
    }
}

/// Checks and lowers a host: no port, no address, a wildcard only as its first label.
pub(super) fn read_hostname(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?.to_lowercase();
    if text.is_empty() {
        return None;
    }
    let rest = text.strip_prefix("*.").unwrap_or(&text);
    if rest.parse::<IpAddr>().is_ok() || !is_subdomain(rest) || text.len() > HOSTNAME_BYTES_MAX {
        at.error(format!("`{text}` is no host name"), "write it as www.example.com or *.example.com, without a port");
        return None;
    }
    Some(text)
}

/// For a field that only Gateway API's experimental channel has: it works from files.
fn experimental(at: &Cursor<'_>, name: &str) {
    let message = format!("{name} is a field of Gateway API's experimental channel: a cluster with the standard one drops it unsaid");
    at.info(message, "in a cluster, install the experimental channel");
}

#[cfg(test)]
mod tests;
