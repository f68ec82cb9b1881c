//! What comes of a request from outside at a Gateway, by the words of `gateway-api.md` 1.4, 4.3.4 to 4.3.7, 4.3.19 and 4.3.25 alone: which listener,
//! which routes, which rule. As the oracle of calls inside, it is as slow as it is plain.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::Value;

use super::objects::Destination;
use super::oracle::{Candidate, Oracle, Verdict, candidates, covers, namespace_of};
use super::reading::{Request, grpc_holds, http_holds, items, text};
use super::table::Proto;

/// A listener of a Gateway, or of a ListenerSet of it.
#[derive(Clone, Copy, Debug)]
struct Listener<'m> {
    owner: &'m Value,
    said: &'m Value,
}

/// What asks: the name of its TLS, if it is that, and what it speaks.
#[derive(Clone, Copy, Debug)]
pub struct Knock<'a> {
    /// See the table's `sni`.
    pub sni: Option<&'a str>,
    /// What it speaks.
    pub proto: Proto,
}

impl Listener<'_> {
    fn hostname(&self) -> &str {
        match text(self.said, "hostname") {
            "" => "*",
            name => name,
        }
    }

    /// Whether it ends TLS, or passes it on, and so has a name to choose it by.
    fn has_tls(&self) -> bool {
        matches!(text(self.said, "protocol"), "HTTPS" | "TLS")
    }
}

/// An exact name before a longer wildcard before a shorter one before none.
fn specificity(host: &str) -> (bool, Reverse<usize>) {
    (host.starts_with('*'), Reverse(host.len()))
}

/// What both names cover: the narrower one; `None`: nothing.
fn common<'h>(one: &'h str, other: &'h str) -> Option<&'h str> {
    let within = |wide: &str, name: &str| match name.strip_prefix('*') {
        Some(rest) => wide.strip_prefix('*').is_some_and(|suffix| rest.ends_with(suffix)),
        None => covers(wide, name),
    };
    match (within(one, other), within(other, one)) {
        (true, _) => Some(other),
        (_, true) => Some(one),
        _ => None,
    }
}

fn nobody(what: &str) -> Verdict {
    Verdict { shares: BTreeMap::from([(what.to_owned(), 1.0)]), ..Verdict::default() }
}

impl<'m> Oracle<'m> {
    /// The Gateway's own listeners, then those of its ListenerSets: the older first.
    fn listeners(&self, to: &Destination) -> Vec<Listener<'m>> {
        let is_it = |gateway: &&Value| gateway["metadata"]["name"] == *to.name && namespace_of(gateway) == to.namespace;
        let Some(gateway) = self.of_kind("Gateway").find(is_it) else { return Vec::new() };
        let lets_in = |set: &&Value| {
            let parent = &set["spec"]["parentRef"];
            let namespace = parent["namespace"].as_str().unwrap_or_else(|| namespace_of(set));
            let from = gateway["spec"]["allowedListeners"]["namespaces"]["from"].as_str().unwrap_or("None");
            let near = namespace_of(set) == to.namespace;
            parent["name"] == *to.name && namespace == to.namespace && (from == "All" || from == "Same" && near)
        };
        let mut sets: Vec<&Value> = self.of_kind("ListenerSet").filter(lets_in).collect();
        let age = |set: &&Value| {
            let meta = &set["metadata"];
            (meta["creationTimestamp"].as_str().unwrap_or("9").to_owned(), namespace_of(set).to_owned(), text(meta, "name").to_owned())
        };
        sets.sort_by_key(age);
        let mut all: Vec<Listener<'m>> = Vec::new();
        for owner in std::iter::once(gateway).chain(sets) {
            for said in items(&owner["spec"], "listeners") {
                let listener = Listener { owner, said };
                let taken = |other: &Listener<'_>| other.said["port"] == said["port"] && other.hostname() == listener.hostname();
                if !all.iter().any(taken) {
                    all.push(listener);
                }
            }
        }
        all.retain(|listener| listener.said["port"] == u64::from(to.port));
        all
    }

    fn labels(&self, namespace: &str) -> Option<&'m Value> {
        self.of_kind("Namespace").find(|object| object["metadata"]["name"] == namespace).map(|object| &object["metadata"]["labels"])
    }

    /// Whether routes of a namespace and kind may attach.
    fn admits(&self, listener: &Listener<'_>, route: &Value) -> bool {
        let allowed = &listener.said["allowedRoutes"];
        let from = &allowed["namespaces"];
        let namespace = match from["from"].as_str().unwrap_or("Same") {
            "All" => true,
            "Selector" => from["selector"]["matchLabels"].as_object().is_some_and(|wanted| {
                let labels = self.labels(namespace_of(route));
                wanted.iter().all(|(name, value)| labels.is_some_and(|labels| labels[name] == *value))
            }),
            _ => namespace_of(route) == namespace_of(listener.owner),
        };
        let kinds = items(allowed, "kinds");
        namespace && (kinds.is_empty() || kinds.iter().any(|kind| kind["kind"] == route["kind"]))
    }

    fn is_attached(&self, listener: &Listener<'_>, route: &Value) -> bool {
        let meets = |parent: &Value| {
            let namespace = parent["namespace"].as_str().unwrap_or_else(|| namespace_of(route));
            let section = parent["sectionName"].as_str().is_none_or(|section| listener.said["name"] == section);
            let port = parent["port"].as_u64().is_none_or(|port| listener.said["port"] == port);
            let kind = parent["kind"].as_str().unwrap_or("Gateway");
            let owner = &listener.owner["metadata"];
            listener.owner["kind"] == kind
                && owner["name"] == parent["name"]
                && namespace_of(listener.owner) == namespace
                && section
                && port
        };
        items(&route["spec"], "parentRefs").iter().any(meets) && self.admits(listener, route)
    }

    /// Hosts that a route serves at a listener.
    fn hosts<'h>(listener: &'h Listener<'m>, route: &'h Value) -> Vec<&'h str> {
        let own: Vec<&str> = items(&route["spec"], "hostnames").iter().filter_map(Value::as_str).collect();
        if own.is_empty() {
            vec![listener.hostname()]
        } else {
            own.into_iter().filter_map(|host| common(listener.hostname(), host)).collect()
        }
    }

    /// What a request from outside must come to. What is cut off is for `closed`.
    pub fn at_gateway(&self, to: &Destination, knock: Knock<'_>, request: &Request, host: &str) -> Verdict {
        let listeners = self.listeners(to);
        let host = host.split(':').next().unwrap_or_default().to_lowercase();
        let best = |name: &str| listeners.iter().filter(|one| covers(one.hostname(), name)).min_by_key(|one| specificity(one.hostname()));
        if knock.proto.is_opaque() {
            return self.opaque(best(if knock.proto == Proto::Tls { &host } else { "" }), &host, knock.proto);
        }
        let chosen = match knock.sni {
            None => best(&host).filter(|listener| !listener.has_tls()),
            Some(name) => {
                let Some(shown) = best(&name.to_lowercase()).filter(|listener| listener.has_tls()) else { return nobody("closed") };
                match best(&host) {
                    Some(asked) if !std::ptr::eq(asked, shown) => return nobody("421"),
                    asked => asked,
                }
            }
        };
        let Some(listener) = chosen else { return nobody("404") };
        let mut all: Vec<(&str, Candidate<'_>)> = Vec::new();
        for route in ["HTTPRoute", "GRPCRoute"].into_iter().flat_map(|kind| self.of_kind(kind)) {
            let hosts = if self.is_attached(listener, route) { Self::hosts(listener, route) } else { Vec::new() };
            for served in hosts.into_iter().filter(|served| covers(served, &host)) {
                all.extend(candidates(route).into_iter().map(|candidate| (served, candidate)));
            }
        }
        all.sort_by(|(a_host, a), (b_host, b)| {
            (specificity(a_host), a.rank, &a.age, a.place).cmp(&(specificity(b_host), b.rank, &b.age, b.place))
        });
        let holds = |(_, candidate): &&(&str, Candidate<'_>)| match text(candidate.route, "kind") {
            "GRPCRoute" => knock.proto == Proto::Grpc && grpc_holds(&candidate.matched, request),
            _ => http_holds(&candidate.matched, request),
        };
        let Some((_, found)) = all.iter().find(holds) else { return nobody("404") };
        let scheme = if knock.sni.is_some() { "https" } else { "http" };
        self.decided(found, || BTreeMap::from([("500".to_owned(), 1.0)]), (scheme, to, request, &host))
    }

    /// Bytes: the oldest route of the listener, of TLS by its name.
    fn opaque(&self, listener: Option<&Listener<'m>>, name: &str, proto: Proto) -> Verdict {
        let Some(listener) = listener else { return nobody("closed") };
        let kind = match (text(listener.said, "protocol"), proto) {
            ("TLS", Proto::Tls) => "TLSRoute",
            ("TCP", Proto::Tcp | Proto::Tls) => "TCPRoute",
            ("UDP", Proto::Udp) => "UDPRoute",
            _ => return nobody("closed"),
        };
        let mut all: Vec<((bool, Reverse<usize>), Candidate<'_>)> = Vec::new();
        for route in self.of_kind(kind).filter(|route| self.is_attached(listener, route)) {
            let hosts = if kind == "TLSRoute" { Self::hosts(listener, route) } else { vec!["*"] };
            for host in hosts.into_iter().filter(|host| covers(host, name)) {
                all.extend(candidates(route).into_iter().take(1).map(|candidate| (specificity(host), candidate)));
            }
        }
        all.sort_by(|(a_host, a), (b_host, b)| (a_host, &a.age).cmp(&(b_host, &b.age)));
        let Some((_, found)) = all.first() else { return nobody("closed") };
        let request = Request { method: String::new(), path: String::new(), query: String::new(), headers: http::HeaderMap::new() };
        let to = Destination { pod: false, gateway: true, namespace: String::new(), name: String::new(), port: 0 };
        let verdict = self.decided(found, || BTreeMap::from([("closed".to_owned(), 1.0)]), ("", &to, &request, name));
        // Bytes meet no rule that the engine would know by name, and who is not there has no status to be told by.
        let mut shares = BTreeMap::new();
        for (place, share) in verdict.shares {
            *shares.entry(if place.starts_with('5') { "closed".to_owned() } else { place }).or_default() += share;
        }
        Verdict { shares, ..Verdict::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_names_have_in_common_is_the_narrower() {
        // Aim: 4.3.6: exact within a wildcard, a wildcard within a wider one, anything within none; else nothing.
        for (one, other, wanted) in [
            ("*", "a.b", Some("a.b")),
            ("a.b", "a.b", Some("a.b")),
            ("*.b", "a.b", Some("a.b")),
            ("*.b", "b", None),
            ("*.b", "*.a.b", Some("*.a.b")),
            ("*.a.b", "*.b", Some("*.a.b")),
            ("*.a", "*.b", None),
            ("a.b", "c.b", None),
        ] {
            assert_eq!(common(one, other), wanted, "{one} {other}");
        }
    }
}
