//! What a request must come to, by the words of `gateway-api.md` 4.3 alone: read from the manifests, route by route and match by match.
//! It shares no code with the translator and the engine, and is as slow as it is plain.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::objects::Destination;
use super::reading::{Rank, Request, grpc_holds, grpc_rank, http_holds, http_rank, items, path_of, text};

/// What a request must come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The rule that decides, `NAMESPACE/NAME/RULE`; `None`: none matches, or nothing is attached.
    pub rule: Option<String>,
    /// Shares by `NAME.NAMESPACE` of a Service, or by status where there is no backend.
    pub shares: BTreeMap<String, f64>,
    /// Where it is sent, if the rule does that.
    pub redirect: Option<String>,
    /// Path and query that the backend sees, where the rule's own filters say so.
    pub path: Option<String>,
    /// Host that the backend sees, where the rule's own filters say so.
    pub host: Option<String>,
}

/// Manifests, complete, in any order.
#[derive(Clone, Copy, Debug)]
pub struct Oracle<'m> {
    /// All of them.
    pub objects: &'m [Value],
}

pub(super) struct Candidate<'m> {
    pub(super) rank: Rank,
    /// Creation time, and `namespace/name` as one text.
    pub(super) age: (String, String),
    pub(super) place: (usize, usize),
    pub(super) route: &'m Value,
    rule: &'m Value,
    pub(super) matched: Value,
}

impl<'m> Oracle<'m> {
    pub(super) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &'m Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// Whether a Service has that port.
    fn has_port(&self, namespace: &str, name: &str, port: u64) -> Option<&'m Value> {
        let service = self.find("Service", namespace, name)?;
        items(&service["spec"], "ports").iter().find(|entry| entry["port"] == port)
    }

    fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&'m Value> {
        self.of_kind(kind).find(|object| object["metadata"]["name"] == name && namespace_of(object) == namespace)
    }

    /// Whether anything is behind a Service.
    fn has_endpoints(&self, namespace: &str, name: &str) -> bool {
        let Some(service) = self.find("Service", namespace, name) else { return false };
        let app = &service["spec"]["selector"]["app"];
        self.of_kind("Workload").any(|pod| namespace_of(pod) == namespace && pod["metadata"]["labels"]["app"] == *app)
    }

    /// Routes that decide for a caller, of the one kind that goes first: the caller's own namespace's, else the Service's.
    fn routes(&self, to: &Destination, client: &str) -> Vec<&'m Value> {
        let of = |namespace: &str| -> Vec<&'m Value> {
            let kinds = ["GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute"];
            let attached = |kind: &str| -> Vec<&'m Value> {
                self.of_kind(kind).filter(|route| namespace_of(route) == namespace && is_attached(route, to)).collect()
            };
            kinds.iter().map(|kind| attached(kind)).find(|routes| !routes.is_empty()).unwrap_or_default()
        };
        let consumer = if client == to.namespace { Vec::new() } else { of(client) };
        if consumer.is_empty() { of(&to.namespace) } else { consumer }
    }

    /// What a request must come to; `Host` has no part in it.
    pub fn ask(&self, to: &Destination, client: &str, request: &Request, host: &str) -> Verdict {
        let own = || BTreeMap::from([(self.target(&to.namespace, &to.name, u64::from(to.port)), 1.0)]);
        if to.pod {
            return Verdict { shares: BTreeMap::from([(to.name.clone(), 1.0)]), ..Verdict::default() };
        }
        let routes = self.routes(to, client);
        if self.has_port(&to.namespace, &to.name, to.port.into()).is_none() {
            return Verdict { shares: BTreeMap::from([("404".to_owned(), 1.0)]), ..Verdict::default() };
        }
        if routes.is_empty() {
            return Verdict { shares: own(), ..Verdict::default() };
        }
        let mut all: Vec<Candidate<'_>> = routes.into_iter().flat_map(candidates).collect();
        all.sort_by(|a, b| (a.rank, &a.age, a.place).cmp(&(b.rank, &b.age, b.place)));
        let holds = |candidate: &&Candidate<'_>| match text(candidate.route, "kind") {
            "GRPCRoute" => grpc_holds(&candidate.matched, request),
            "HTTPRoute" => http_holds(&candidate.matched, request),
            "TLSRoute" => covers(text(&candidate.matched, "host"), host),
            _ => true,
        };
        let Some(found) = all.iter().find(holds) else {
            return Verdict { shares: BTreeMap::from([("404".to_owned(), 1.0)]), ..Verdict::default() };
        };
        self.decided(found, own, ("http", to, request, host))
    }

    /// What comes of a rule that decides. `own` is whom it is for where it names nobody.
    pub(super) fn decided(
        &self,
        found: &Candidate<'_>,
        own: impl Fn() -> BTreeMap<String, f64>,
        (scheme, to, request, host): (&str, &Destination, &Request, &str),
    ) -> Verdict {
        let name = found.rule["name"].as_str().map_or_else(|| found.place.0.to_string(), str::to_owned);
        let shares = self.shares(found, to.gateway, own);
        let mut verdict = Verdict { rule: Some(format!("{}/{name}", found.age.1)), shares, ..Verdict::default() };
        act(&mut verdict, found, (scheme, to, request, host));
        verdict
    }

    /// Whether a Service's namespace lets routes of that kind and namespace lead to it (4.3.16).
    fn is_granted(&self, route: &Value, namespace: &str, name: &str) -> bool {
        let grants = self.of_kind("ReferenceGrant").filter(|grant| namespace_of(grant) == namespace);
        grants.into_iter().any(|grant| {
            let from =
                items(&grant["spec"], "from").iter().any(|from| from["kind"] == route["kind"] && from["namespace"] == namespace_of(route));
            let to = items(&grant["spec"], "to").iter();
            from && to.into_iter().any(|to| to["kind"] == "Service" && to["name"].as_str().is_none_or(|only| only == name))
        })
    }

    /// `granted`: backends of other namespaces want a grant, as they do at Gateways (4.3.24).
    fn shares(&self, found: &Candidate<'_>, granted: bool, own: impl Fn() -> BTreeMap<String, f64>) -> BTreeMap<String, f64> {
        if items(found.rule, "filters").iter().any(is_beyond_us) {
            return BTreeMap::from([("500".to_owned(), 1.0)]);
        }
        if !found.rule["backendRefs"].is_array() {
            return own();
        }
        let refs = items(found.rule, "backendRefs");
        let weight = |entry: &Value| entry["weight"].as_f64().unwrap_or(1.0);
        let sum: f64 = refs.iter().map(weight).sum();
        if sum == 0.0 {
            return BTreeMap::from([("500".to_owned(), 1.0)]);
        }
        let mut shares = BTreeMap::new();
        for entry in refs.iter().filter(|entry| weight(entry) > 0.0) {
            let is_service = entry["kind"].as_str().is_none_or(|kind| kind == "Service") && text(entry, "group").is_empty();
            let namespace = entry["namespace"].as_str().unwrap_or(namespace_of(found.route));
            let target = match entry["port"].as_u64() {
                _ if items(entry, "filters").iter().any(is_beyond_us) => "500".to_owned(),
                _ if granted && namespace != namespace_of(found.route) && !self.is_granted(found.route, namespace, text(entry, "name")) => {
                    "500".to_owned()
                }
                Some(port) if is_service => self.target(namespace, text(entry, "name"), port),
                _ => "500".to_owned(),
            };
            *shares.entry(target).or_default() += weight(entry) / sum;
        }
        shares
    }

    /// Who answers for a backend: itself, 500 for one that is none, 503 for one that nobody is behind.
    fn target(&self, namespace: &str, name: &str, port: u64) -> String {
        match self.has_port(namespace, name, port) {
            None => "500".to_owned(),
            Some(entry) if matches!(text(entry, "appProtocol"), "https" | "tls" | "kubernetes.io/wss") => "500".to_owned(),
            Some(_) if self.has_endpoints(namespace, name) => format!("{name}.{namespace}"),
            Some(_) => "503".to_owned(),
        }
    }
}

/// Namespace of an object.
pub(super) fn namespace_of(object: &Value) -> &str {
    text(&object["metadata"], "namespace")
}

fn is_attached(route: &Value, to: &Destination) -> bool {
    items(&route["spec"], "parentRefs").iter().any(|parent| {
        let namespace = parent["namespace"].as_str().unwrap_or_else(|| namespace_of(route));
        let port = parent["port"].as_u64().is_none_or(|port| port == u64::from(to.port));
        parent["kind"] == "Service" && parent["group"] == "" && parent["name"] == *to.name && namespace == to.namespace && port
    })
}

/// Whether a host of a TLSRoute, `*` for none, is the name that is asked for.
pub(super) fn covers(host: &str, name: &str) -> bool {
    match host.strip_prefix('*') {
        Some(suffix) => suffix.is_empty() || (name.len() > suffix.len() && name.ends_with(suffix)),
        None => host == name,
    }
}

/// An exact name before a longer wildcard before a shorter one before none.
fn host_rank(matched: &Value) -> Rank {
    let host = text(matched, "host");
    (u8::from(host.starts_with('*')), Reverse(host.len()), Reverse(0), Reverse(false), Reverse(0), Reverse(0))
}

pub(super) fn candidates(route: &Value) -> Vec<Candidate<'_>> {
    let mut all = Vec::new();
    let rank = match text(route, "kind") {
        "GRPCRoute" => grpc_rank,
        "TLSRoute" => host_rank,
        _ => http_rank,
    };
    let hosts = items(&route["spec"], "hostnames").iter().map(|host| json!({"host": host})).collect::<Vec<_>>();
    // An object that does not say when it was made was made when it was read, after all that say so.
    let created = route["metadata"]["creationTimestamp"].as_str().unwrap_or("9").to_owned();
    for (number, rule) in items(&route["spec"], "rules").iter().enumerate() {
        let matches = match items(rule, "matches") {
            [] if route["kind"] == "TLSRoute" && !hosts.is_empty() => hosts.clone(),
            [] => vec![json!({"host": "*"})],
            some => some.to_vec(),
        };
        for (place, matched) in matches.into_iter().enumerate() {
            let age = (created.clone(), format!("{}/{}", namespace_of(route), text(&route["metadata"], "name")));
            all.push(Candidate { rank: rank(&matched), age, place: (number, place), route, rule, matched });
        }
    }
    all
}

/// Whether nobody can do what a filter asks for: its requests must fail.
fn is_beyond_us(filter: &Value) -> bool {
    match text(filter, "type") {
        "RequestHeaderModifier" => items(&filter["requestHeaderModifier"], "set").iter().any(|header| text(header, "name") == "Host"),
        "RequestRedirect" => !matches!(filter["requestRedirect"]["statusCode"].as_u64(), None | Some(301 | 302 | 303 | 307 | 308)),
        "ResponseHeaderModifier" | "URLRewrite" | "RequestMirror" | "CORS" => false,
        _ => true,
    }
}

/// What the rule's own filters make of it.
fn act(verdict: &mut Verdict, found: &Candidate<'_>, (usual, to, request, host): (&str, &Destination, &Request, &str)) {
    let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
    let changed = |change: &Value| -> Option<String> {
        match text(change, "type") {
            "ReplaceFullPath" => Some(text(change, "replaceFullPath").to_owned()),
            "ReplacePrefixMatch" => Some(replaced(path_of(&found.matched).1, text(change, "replacePrefixMatch"), &request.path)),
            _ => None,
        }
    };
    for filter in items(found.rule, "filters") {
        match text(filter, "type") {
            "RequestRedirect" if !is_beyond_us(filter) => {
                let redirect = &filter["requestRedirect"];
                let scheme = redirect["scheme"].as_str();
                let well_known = |scheme: &str| if scheme == "https" { 443 } else { 80 };
                let port = redirect["port"].as_u64().or(scheme.map(well_known)).unwrap_or_else(|| to.port.into());
                let name = redirect["hostname"].as_str().unwrap_or_else(|| host.split(':').next().unwrap_or_default());
                let scheme = scheme.unwrap_or(usual);
                let port = if port == well_known(scheme) { String::new() } else { format!(":{port}") };
                let path = changed(&redirect["path"]).unwrap_or_else(|| request.path.clone());
                verdict.redirect = Some(format!("{scheme}://{name}{port}{path}{query}"));
                verdict.shares = BTreeMap::from([(redirect["statusCode"].as_u64().unwrap_or(302).to_string(), 1.0)]);
            }
            "URLRewrite" => {
                verdict.host = filter["urlRewrite"]["hostname"].as_str().map(str::to_owned);
                verdict.path = changed(&filter["urlRewrite"]["path"]).map(|path| path + &query);
            }
            _ => {}
        }
    }
}

/// The path with other elements in front in place of those that matched.
fn replaced(prefix: &str, replacement: &str, path: &str) -> String {
    let rest = path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix)).unwrap_or(path);
    let front = replacement.trim_end_matches('/');
    let whole = if rest.is_empty() { front.to_owned() } else { format!("{front}/{}", rest.trim_start_matches('/')) };
    if whole.is_empty() { "/".to_owned() } else { whole }
}
