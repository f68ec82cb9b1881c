//! Where a workload may call outside the mesh, out of its one resource.

use std::sync::Arc;

use ipnet::IpNet;
use proto::mesh::{Egress as RawEgress, EgressPolicy as RawPolicy, EgressRule as RawRule, Originate};

use super::route::next_id;
use super::{CONNECT_TIMEOUT_DEFAULT, own, pem, stamp};
use crate::model::{
    Action, Cluster, ClusterKind, Domains, Egress, EgressMode, EgressRule, Forward, Match, Named, Protocol, Roots, RouteTable, Rule,
    RuleSource, Target,
};
use crate::raw::{is_host, is_name};
use crate::rejected::Wrong;

/// Most EgressPolicies of one workload.
pub const EGRESS_POLICIES_MAX: usize = 256;
/// Most rules of all of them.
pub const EGRESS_RULES_MAX: usize = 1024;
/// Most hosts, ranges and ports of all rules: each may be looked at once per connection.
pub const EGRESS_ITEMS_MAX: usize = 16_384;

/// What EgressPolicies come to together, as far as that is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EgressSum {
    /// How many they are; at most [`EGRESS_POLICIES_MAX`].
    pub policies: usize,
    /// Their rules; at most [`EGRESS_RULES_MAX`].
    pub rules: usize,
    /// Hosts, ranges and ports of their rules; at most [`EGRESS_ITEMS_MAX`].
    pub items: usize,
}

impl EgressSum {
    /// What one policy comes to.
    pub fn of(policy: &RawPolicy) -> Self {
        let items = policy.allow.iter().map(|rule| rule.hosts.len() + rule.cidrs.len() + rule.ports.len());
        Self { policies: 1, rules: policy.allow.len(), items: items.sum() }
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { policies: self.policies + other.policies, rules: self.rules + other.rules, items: self.items + other.items }
    }

    /// The first that is more than a proxy takes: what, how many there are, and how many may be.
    pub fn beyond(&self) -> Option<(&'static str, usize, usize)> {
        let bounds = [
            ("policies", self.policies, EGRESS_POLICIES_MAX),
            ("rules", self.rules, EGRESS_RULES_MAX),
            ("hosts, ranges and ports", self.items, EGRESS_ITEMS_MAX),
        ];
        bounds.into_iter().find(|(_, count, most)| count > most)
    }
}

impl Default for Egress {
    /// No policy selects the workload.
    fn default() -> Self {
        Self { mode: EgressMode::Unsaid, policies: Vec::new(), rules: Vec::new(), plain: table(("", ""), outside()) }
    }
}

impl Egress {
    /// What holds while the only word on it cannot be understood: nothing is allowed.
    pub(super) fn closed() -> Self {
        Self { mode: EgressMode::Enforce, ..Self::default() }
    }
}

/// Compiles the resource. Where one policy enforces, those that only audit say nothing: they neither allow nor cut.
pub(in crate::model) fn compile(name: &str, raw: &RawEgress) -> Result<Egress, Wrong> {
    if name != proto::names::EGRESS {
        return Err(Wrong::new("", format!("the only resource of this type is `{}`", proto::names::EGRESS)));
    }
    let RawEgress { policies } = raw;
    let sum = policies.iter().map(EgressSum::of).fold(EgressSum::default(), EgressSum::and);
    if let Some((what, count, max)) = sum.beyond() {
        return Err(Wrong::new("policies", format!("holds {count} {what}, and a proxy takes {max}")));
    }
    let mode = match policies.as_slice() {
        [] => EgressMode::Unsaid,
        all if all.iter().all(|policy| policy.audit) => EgressMode::Audit,
        _ => EgressMode::Enforce,
    };
    let mut egress = Egress { mode, ..Egress::default() };
    for (place, RawPolicy { name, audit, allow }) in policies.iter().enumerate() {
        let within = |wrong: Wrong| wrong.within(format!("policies[{place}]"));
        let policy: Arc<str> = name.as_str().into();
        let mut rules = Vec::with_capacity(allow.len());
        for (number, raw) in allow.iter().enumerate() {
            rules.push(rule(&policy, number, raw).map_err(|wrong| within(wrong.within(format!("allow[{number}]"))))?);
        }
        if !*audit || mode == EgressMode::Audit {
            egress.policies.push(policy);
            egress.rules.extend(rules);
        }
    }
    egress.rules.sort_by_key(|rule| rule.originate.is_none());
    Ok(egress)
}

fn rule(policy: &Arc<str>, number: usize, raw: &RawRule) -> Result<EgressRule, Wrong> {
    let RawRule { hosts, cidrs, ports, originate } = raw;
    if hosts.is_empty() && cidrs.is_empty() && ports.is_empty() {
        return Err(Wrong::new("", "names no host, range or port"));
    }
    let wrong = |field: &str, place: usize, text: &str, wanted: &str| {
        Wrong::new(format!("{field}[{place}]"), format!("`{}` is not {wanted}", text.escape_debug()))
    };
    let mut domains = Domains::default();
    for (place, host) in hosts.iter().enumerate() {
        if !is_outside_host(host) {
            return Err(wrong("hosts", place, host, "a name in lower case, `*.SUFFIX` or `*`"));
        }
        domains.add(host, 0);
    }
    let range = |(place, text): (usize, &String)| text.parse::<IpNet>().map_err(|_| wrong("cidrs", place, text, "a range like 10.0.0.0/8"));
    let port = |(place, port): (usize, &u32)| {
        let number = u16::try_from(*port).ok().filter(|port| *port > 0);
        number.ok_or_else(|| wrong("ports", place, &port.to_string(), "from 1 to 65535"))
    };
    let cluster = outside();
    Ok(EgressRule {
        policy: Arc::clone(policy),
        hosts: (!hosts.is_empty()).then_some(domains),
        cidrs: cidrs.iter().enumerate().map(range).collect::<Result<_, _>>()?,
        ports: ports.iter().enumerate().map(port).collect::<Result<_, _>>()?,
        originate: originate.as_ref().map(|raw| named(raw, hosts)).transpose()?,
        table: table((policy, &number.to_string()), Arc::clone(&cluster)),
        cluster,
    })
}

fn named(raw: &Originate, hosts: &[String]) -> Result<Arc<Named>, Wrong> {
    let Originate { sni, ca_pem } = raw;
    if hosts.is_empty() {
        return Err(Wrong::new("originate", "is of a rule that names no host"));
    }
    let roots = if ca_pem.is_empty() {
        Roots::System
    } else {
        Roots::Given(pem::certificates(ca_pem, own::ROOTS_MAX).map_err(|wrong| wrong.within("originate.ca_pem"))?.into())
    };
    let named = Named::new(sni, roots).filter(|_| is_server_name(sni));
    named.map(Arc::new).ok_or_else(|| Wrong::new("originate.sni", format!("`{}` is no server's name", sni.escape_debug())))
}

/// Whether it is `NAME`, `*.SUFFIX` or `*`, as names past the mesh are compared: in lower case, without trailing dot, and no address.
pub fn is_outside_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    text == "*" || (is_name(name) && !name.bytes().any(|byte| byte.is_ascii_uppercase()))
}

/// Whether it can be asked for by TLS: a name, in any case, and no address.
pub fn is_server_name(text: &str) -> bool {
    is_host(text) && text.parse::<std::net::IpAddr>().is_err()
}

/// The original destination.
fn outside() -> Arc<Cluster> {
    Arc::new(Cluster {
        name: "outside".into(),
        namespace: "".into(),
        service: "".into(),
        protocol: Protocol::Http,
        connect_timeout: CONNECT_TIMEOUT_DEFAULT,
        kind: ClusterKind::OriginalDestination,
        tls: None,
        policy: Arc::default(),
        endpoints: Arc::default(),
        live: Arc::default(),
    })
}

/// All requests, untouched, to a cluster.
fn table((policy, rule): (&str, &str), cluster: Arc<Cluster>) -> Arc<RouteTable> {
    let (namespace, name) = policy.split_once('/').unwrap_or(("", policy));
    let kind = if policy.is_empty() { "" } else { "EgressPolicy" };
    let source = RuleSource { kind: kind.into(), namespace: namespace.into(), name: name.into(), rule: rule.into(), label: policy.into() };
    let forward = Forward::to(Arc::default(), Target::Cluster(cluster));
    let rule = Rule { id: next_id(), source, matches: Arc::new(Match::default()), action: Action::Forward(Arc::new(forward)) };
    Arc::new(RouteTable::everywhere("outside", vec![Arc::new(rule)], stamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(audit: bool, rule: RawRule) -> RawPolicy {
        RawPolicy { name: "shop/out".into(), audit, allow: vec![rule] }
    }

    fn hosts(hosts: &[&str]) -> RawRule {
        RawRule { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..RawRule::default() }
    }

    fn refused(rule: RawRule) -> String {
        let raw = RawEgress { policies: vec![raw(false, rule)] };
        compile("egress", &raw).unwrap_err().of("t", "egress").to_string()
    }

    #[test]
    fn audits_say_nothing_beside_who_enforces() {
        // Aim: without policies the mesh's switch, with audits only an audit, and with one that enforces only those that do.
        let compiled = |policies: Vec<RawPolicy>| compile("egress", &RawEgress { policies }).unwrap();
        let rule = || hosts(&["a.example"]);
        for (policies, mode, rules) in [
            (vec![], EgressMode::Unsaid, 0),
            (vec![raw(true, rule()), raw(true, rule())], EgressMode::Audit, 2),
            (vec![raw(true, rule()), raw(false, rule())], EgressMode::Enforce, 1),
        ] {
            let egress = compiled(policies);
            assert_eq!((egress.mode, egress.rules.len()), (mode, rules));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        // Aim: each field that cannot be carried out is named; nothing is guessed.
        for (rule, word) in [
            (RawRule::default(), "names no host"),
            (hosts(&["A.example"]), "allow[0].hosts[0]"),
            (hosts(&["a.example", "*x.example"]), "hosts[1]"),
            (hosts(&["a..b"]), "hosts[0]"),
            (hosts(&["a.example."]), "hosts[0]"),
            (hosts(&["192.0.2.1"]), "hosts[0]"),
            (RawRule { cidrs: vec!["10.0.0.0".into(), "x".into()], ..RawRule::default() }, "cidrs[0]"),
            (RawRule { ports: vec![70_000], ..RawRule::default() }, "ports[0]"),
            (RawRule { ports: vec![0], ..RawRule::default() }, "ports[0]"),
            (RawRule { ports: vec![80], originate: Some(Originate::default()), ..RawRule::default() }, "names no host"),
            (
                RawRule { originate: Some(Originate { sni: "192.0.2.1".into(), ..Originate::default() }), ..hosts(&["a.example"]) },
                "originate.sni",
            ),
            (RawRule { originate: Some(Originate { sni: "a.example".into(), ca_pem: "x".into() }), ..hosts(&["a.example"]) }, "ca_pem"),
            (RawRule { ports: vec![1; EGRESS_ITEMS_MAX + 1], ..RawRule::default() }, "a proxy takes 16384"),
        ] {
            let text = refused(rule);
            assert!(text.contains(word), "{text}");
        }
        let many = RawEgress { policies: vec![RawPolicy::default(); EGRESS_POLICIES_MAX + 1] };
        assert!(compile("egress", &many).is_err());
        assert!(compile("other", &RawEgress::default()).is_err());
    }
}
