//! EgressPolicy: where a workload may call outside the mesh (`kinds.md`). Every field is honoured or refused here.

use engine::model::build::{EgressSum, is_outside_host, is_server_name};
use ipnet::IpNet;
use proto::mesh::{Egress, EgressPolicy as Sent, EgressRule as SentRule, Originate as SentOriginate};
use proto::names;

use super::{canonical, taken};
use crate::world::door::{Cursor, Fields};
use crate::world::key::{Kind, ObjectKey};
use crate::world::own::{Selector, read_selector};

/// Most rules of one policy.
const RULES_MAX: usize = 256;
/// Most hosts, ranges or ports of one rule.
const ITEMS_MAX: usize = 256;
/// Most references to roots.
const ROOTS_MAX: usize = 8;
/// The entry of a Secret or ConfigMap that holds roots, as in Gateway API's BackendTLSPolicy.
pub const ROOTS_KEY: &str = "ca.crt";

/// Where a workload may call outside the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressPolicy {
    /// For whom.
    pub selector: Selector,
    /// Nothing is cut; what would be is told.
    pub audit: bool,
    /// What is allowed.
    pub allow: Vec<EgressRule>,
}

/// One thing that is allowed: of every list that is there, one item must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressRule {
    /// `NAME`, `*.SUFFIX` or `*`, lower case.
    pub hosts: Vec<String>,
    /// Ranges.
    pub cidrs: Vec<IpNet>,
    /// Ports.
    pub ports: Vec<u16>,
    /// Its requests leave by TLS.
    pub originate: Option<Originate>,
}

/// TLS towards a server outside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Originate {
    /// Whom it is asked for, and must prove to be.
    pub sni: String,
    /// What its certificate may end in; empty: the roots of the proxy's own system.
    pub roots: Vec<ObjectKey>,
}

impl EgressPolicy {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let selector = read_selector(&mut fields);
        let audit = fields.get("mode").and_then(|at| at.word(&[("Enforce", false), ("Audit", true)])).unwrap_or_default();
        let rules = fields.get("allow").map(|at| at.list(RULES_MAX)).unwrap_or_default();
        let allow = rules.iter().filter_map(EgressRule::read).collect();
        let at = fields.at().clone();
        fields.done();
        let read = Self { selector, audit, allow };
        if !at.refused() {
            // The roots are not known here.
            let policies = vec![read.sent(at.key(), |_| Ok(Vec::new()))];
            if let Err(wrong) = taken(names::EGRESS, &Egress { policies }) {
                at.error(format!("proxies would not take it: {wrong}"), "correct it, or make two of it");
            }
        }
        Some(read)
    }

    /// As proxies are told, with its roots as `roots` has them: PEM. A rule whose roots cannot be had is left out, so it allows nothing.
    pub fn sent(&self, key: &ObjectKey, roots: impl Fn(&Originate) -> Result<Vec<u8>, String>) -> Sent {
        let allow = self.allow.iter().filter_map(|rule| rule.sent(&roots).ok()).collect();
        Sent { name: key.path(), audit: self.audit, allow }
    }

    /// What it takes of what a proxy has room for.
    pub fn sum(&self) -> EgressSum {
        let items = self.allow.iter().map(|rule| rule.hosts.len() + rule.cidrs.len() + rule.ports.len());
        EgressSum { policies: 1, rules: self.allow.len(), items: items.sum() }
    }
}

impl EgressRule {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let hosts = fields.get("hosts").map(|at| at.list(ITEMS_MAX)).unwrap_or_default();
        let cidrs = fields.get("cidrs").map(|at| at.list(ITEMS_MAX)).unwrap_or_default();
        let ports = fields.get("ports").map(|at| at.list(ITEMS_MAX)).unwrap_or_default();
        let tls = fields.get("tls");
        fields.done();
        let listed = (hosts.len(), cidrs.len(), ports.len());
        if listed == (0, 0, 0) {
            at.error("it allows nothing in particular", "name `hosts`, `cidrs` or `ports`; remove the rule to allow nothing");
        }
        let mut read = Self {
            hosts: hosts.iter().filter_map(host).collect(),
            cidrs: cidrs.iter().filter_map(range).collect(),
            ports: ports.iter().filter_map(Cursor::port).collect(),
            originate: None,
        };
        read.originate = tls.and_then(|at| originate(&at, &read));
        // An item that was refused must not make a list of others that was meant to be narrower than none.
        let whole = (read.hosts.len(), read.cidrs.len(), read.ports.len()) == listed;
        whole.then_some(read)
    }

    fn sent(&self, roots: impl Fn(&Originate) -> Result<Vec<u8>, String>) -> Result<SentRule, String> {
        let originate = |said: &Originate| Ok::<_, String>(SentOriginate { sni: said.sni.clone(), ca_pem: roots(said)?.into() });
        Ok(SentRule {
            hosts: self.hosts.clone(),
            cidrs: self.cidrs.iter().map(ToString::to_string).collect(),
            ports: self.ports.iter().copied().map(u32::from).collect(),
            originate: self.originate.as_ref().map(originate).transpose()?,
        })
    }
}

fn host(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?.to_ascii_lowercase();
    let name = text.strip_suffix('.').unwrap_or(&text);
    if name.parse::<std::net::IpAddr>().is_ok() {
        at.error(format!("`{name}` is an address and no name"), "list it below `cidrs`");
        return None;
    }
    if is_outside_host(name) {
        return Some(name.to_owned());
    }
    at.error(format!("`{text}` is no name"), "write it as www.example.com, `*.example.com` (for all names below it) or `*`");
    None
}

fn range(at: &Cursor<'_>) -> Option<IpNet> {
    let text = at.text()?;
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
    if parsed.is_none() {
        at.error(format!("`{text}` is no range of addresses"), "write it as 192.0.2.0/24 or 2001:db8::/32");
    }
    parsed.map(canonical)
}

fn originate(at: &Cursor<'_>, rule: &EgressRule) -> Option<Originate> {
    let mut fields = at.fields();
    let originate = fields.need("originate");
    fields.done();
    let mut fields = originate?.fields();
    let sni = fields.get("sni").and_then(|at| Some((at.text()?, at)));
    let refs = fields.get("caCertificateRefs").map(|at| at.list(ROOTS_MAX)).unwrap_or_default();
    let roots = refs.iter().filter_map(root).collect();
    let place = fields.at().clone();
    fields.done();
    if rule.hosts.is_empty() {
        place.error("it is for no host", "name the `hosts` whose requests leave by TLS");
    }
    let sni = match (sni, rule.hosts.as_slice()) {
        (Some((text, at)), _) => {
            let text = text.to_ascii_lowercase();
            if !is_server_name(&text) {
                at.error(format!("`{text}` is no server's name"), "write it as api.example.com");
            }
            text
        }
        (None, [only]) if !only.contains('*') => only.clone(),
        (None, _) => {
            place.error("it says no name for TLS", "write `sni`; it can only be left out where the rule has one host without `*`");
            return None;
        }
    };
    Some(Originate { sni, roots })
}

/// A ConfigMap or Secret of the policy's own namespace.
fn root(at: &Cursor<'_>) -> Option<ObjectKey> {
    let mut fields = at.fields();
    let group = fields.get("group").and_then(|at| Some((at.text()?, at)));
    let kind = match fields.get("kind") {
        Some(at) => at.word(&[("ConfigMap", Kind::ConfigMap), ("Secret", Kind::Secret)]),
        None => Some(Kind::ConfigMap),
    };
    let name = fields.need("name").and_then(|at| at.text());
    fields.done();
    if let Some((group, at)) = group
        && !group.is_empty()
    {
        at.error(format!("`{group}` has no ConfigMap or Secret"), "leave it out");
    }
    Some(ObjectKey::new(kind?, &at.key().namespace, name?))
}

#[cfg(test)]
mod tests {
    use crate::source::parse;
    use crate::world::Spec;

    use super::*;

    fn read(spec: &str) -> Result<EgressPolicy, String> {
        let text =
            format!("apiVersion: meshwright.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: out, namespace: shop}}\nspec: {spec}\n");
        let parsed = parse("out.yaml", &text);
        let candidate = parsed.candidates.into_iter().next().unwrap();
        match candidate.object.as_ref().map(|object| &object.spec) {
            Some(Spec::EgressPolicy(policy)) => Ok(EgressPolicy::clone(policy)),
            _ => Err(candidate.problems.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn every_field_is_read() {
        // Aim: the example of kinds.md, with names in the form in which they are compared and ranges without host bits.
        let policy = read(
            "{selector: {matchLabels: {app: a}}, mode: Audit, allow: [{hosts: [\"*.Example.com.\"], ports: [443]}, {cidrs: [192.0.2.9/24, \
             2001:db8::1], ports: [5432]}, {hosts: [api.example.com], ports: [80], tls: {originate: {caCertificateRefs: [{name: roots}, \
             {kind: Secret, group: \"\", name: s}]}}}]}",
        )
        .unwrap();
        assert!(policy.audit && policy.selector.unwrap()["app"] == "a");
        assert_eq!((policy.allow[0].hosts[0].as_str(), policy.allow[0].ports[0]), ("*.example.com", 443));
        assert_eq!(policy.allow[1].cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.0/24", "2001:db8::1/128"]);
        let originate = policy.allow[2].originate.as_ref().unwrap();
        assert_eq!(originate.sni, "api.example.com");
        assert_eq!(originate.roots.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ConfigMap shop/roots", "Secret shop/s"]);
        assert_eq!(read("{}").unwrap(), EgressPolicy::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_remedy() {
        // Aim: each mistake is told at its field; a policy with one is refused whole, never taken in part.
        for (spec, word) in [
            ("{allow: [{}]}", "name `hosts`"),
            ("{allow: [{hosts: [192.0.2.1]}]}", "below `cidrs`"),
            ("{allow: [{hosts: [\"a*.example\"]}]}", "is no name"),
            ("{allow: [{hosts: [\"http://a.example\"]}]}", "is no name"),
            ("{allow: [{cidrs: [a.example]}]}", "no range"),
            ("{allow: [{ports: [0]}]}", "spec.allow[0].ports[0]"),
            ("{allow: [{host: [a.example]}]}", "did you mean `hosts`"),
            ("{mode: Enforced}", "Enforce"),
            ("{allow: [{ports: [80], tls: {originate: {sni: a.example}}}]}", "for no host"),
            ("{allow: [{hosts: [\"*.a.example\"], tls: {originate: {}}}]}", "write `sni`"),
            ("{allow: [{hosts: [a.example], tls: {originate: {sni: \"*.a\"}}}]}", "no server's name"),
            ("{allow: [{hosts: [a.example], tls: {originate: {sni: \"a.example:443\"}}}]}", "no server's name"),
            ("{allow: [{hosts: [a.example], tls: {originate: {sni: a.example.}}}]}", "no server's name"),
            ("{allow: [{hosts: [a.example], tls: {originate: {sni: \"https://a.example\"}}}]}", "no server's name"),
            ("{allow: [{hosts: [-a.example]}]}", "is no name"),
            ("{allow: [{hosts: [a.example], tls: {}}]}", "originate"),
            ("{allow: [{hosts: [a.example], tls: {originate: {caCertificateRefs: [{kind: Service, name: a}]}}}]}", "ConfigMap"),
        ] {
            let told = read(spec).unwrap_err();
            assert!(told.contains(word), "{spec}: {told}");
        }
    }

    #[test]
    fn ranges_of_mapped_addresses_are_those_of_ipv4() {
        // Aim: calls are judged by the IPv4 address, so a range that is written as IPv6 means the same one.
        let read = read("{allow: [{cidrs: [\"::ffff:192.0.2.7/120\", \"::ffff:192.0.2.9\", 10.0.0.1/8, \"2001:db8::1/32\"]}]}").unwrap();
        let cidrs: Vec<String> = read.allow[0].cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["192.0.2.0/24", "192.0.2.9/32", "10.0.0.0/8", "2001:db8::/32"]);
    }

    #[test]
    fn one_policy_holds_no_more_than_a_proxy_takes() {
        // Aim: what is too much by itself is refused at the door.
        let hosts: Vec<String> = (0..256).map(|number| format!("h{number}.example")).collect();
        let rules = |count: usize| format!("{{allow: [{}]}}", vec![format!("{{hosts: [{}]}}", hosts.join(", ")); count].join(", "));
        assert_eq!(read(&rules(64)).unwrap().sum().items, 64 * 256);
        let told = read(&rules(65)).err().unwrap_or_default();
        assert!(told.contains("proxies would not take it") && told.contains("hosts, ranges and ports"), "{told}");
    }
}
