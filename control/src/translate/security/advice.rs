//! AuthorizationPolicies that are in force and let in others than their author may think: lines for `analyze`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proto::annotations::EXCLUDE_INBOUND_PORTS;
use proto::mesh::{AuthorizationRule, CallSource, CallTarget};
use proto::words::{MtlsMode, Protocol};

use super::authorization::selected;
use super::content;
use crate::translate::advice::Finding;
use crate::translate::mtls::Modes;
use crate::translate::protocol::of_server;
use crate::world::security::authorization::{Action, AuthorizationPolicy, WrittenRule};
use crate::world::{Index, Instance, Object, Severity, World};

/// Everything that is to be said of a policy, each once.
pub(in crate::translate) fn findings(world: &World, object: &Object) -> Vec<Finding> {
    let Some(policy) = content(object) else { return Vec::new() };
    let mut view = PolicyView { index: world.index(), world, object, policy, found: BTreeSet::new() };
    if !policy.inbound() {
        return Vec::new();
    }
    view.whole();
    for (number, rule) in policy.rules.iter().enumerate() {
        view.rule(number, rule);
    }
    view.found.into_iter().collect()
}

/// A policy among everything else.
struct PolicyView<'a> {
    world: &'a World,
    index: &'a Index,
    object: &'a Object,
    policy: &'a AuthorizationPolicy,
    found: BTreeSet<Finding>,
}

impl PolicyView<'_> {
    /// `line` 0: the object's own.
    fn say(&mut self, severity: Severity, (path, line): (String, u32), message: impl Into<String>, remedy: impl Into<String>) {
        let path = if path.is_empty() { "spec".to_owned() } else { format!("spec.{path}") };
        self.found.insert(Finding { severity, field: (path, line), message: message.into(), remedy: remedy.into() });
    }

    fn warn(&mut self, field: (String, u32), message: impl Into<String>, remedy: impl Into<String>) {
        self.say(Severity::Warning, field, message, remedy);
    }

    /// Whether calls are let in by it alone.
    fn allows(&self) -> bool {
        self.policy.action == Action::Allow
    }

    fn whole(&mut self) {
        let all: Vec<&Instance> = selected(self.index, self.object, self.policy).collect();
        let field = if self.policy.selector.is_some() { "selector" } else { "" };
        if all.is_empty() {
            self.warn((field.to_owned(), 0), "it selects no workload", "correct the labels or the namespace");
        } else if all.iter().all(|instance| !instance.meshed) {
            let message = "none of the workloads it selects has a sidecar: nothing is enforced";
            self.warn((field.to_owned(), 0), message, "label the namespace meshwright.dev/inject: enabled");
        }
        if self.policy.rules.is_empty() {
            let message = match self.policy.action {
                Action::Allow => "an Allow without rules: whatever no other policy allows is denied",
                Action::Deny | Action::Audit => "without rules it matches nothing",
            };
            self.say(Severity::Info, ("rules".to_owned(), 0), message, "add rules, or `rules: [{}]` for every call");
        }
        self.excluded();
        let dry = self.policy.dry_run || self.index.mesh.authorization_dry_run;
        if dry && self.policy.action != Action::Audit {
            let whose = if self.policy.dry_run { "the policy is" } else { "Mesh.authorization says that every policy is" };
            self.say(
                Severity::Info,
                ("dryRun".to_owned(), 0),
                format!("{whose} on trial: it denies nothing, logs and counts"),
                "set it to false to enforce it",
            );
        }
    }

    fn rule(&mut self, number: usize, written: &WrittenRule) {
        let (rule, line) = (&written.rule, written.line);
        for (part, sources) in [("from", &rule.from), ("not.from", &rule.not_from)] {
            for (place, source) in sources.iter().enumerate() {
                self.source((format!("rules[{number}].{part}[{place}]"), line), source);
            }
        }
        self.bytes(number, written);
        self.plaintext(number, written);
        self.nobody(number, written);
    }

    fn source(&mut self, (path, line): (String, u32), source: &CallSource) {
        for principal in &source.principals {
            let domain = principal.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map(|(domain, _)| domain);
            let own = self.index.mesh.trust_domain.as_str();
            let federated = |domain: &str| self.index.mesh.federation.iter().any(|other| other.trust_domain == domain);
            if let Some(domain) = domain.filter(|domain| *domain != own && !federated(domain)) {
                let message = format!("`{principal}` is of trust domain {domain}, and ours is {own}: nobody is believed to be that");
                let remedy = "correct it, or add the domain to federation in the Mesh object";
                self.warn((format!("{path}.principals"), line), message, remedy);
            } else if let Some((namespace, account)) = identity_of(principal, own)
                && !self.declared(namespace, account)
            {
                let message = format!("no workload or Gateway that is declared has the identity `{principal}`");
                self.say(Severity::Info, (format!("{path}.principals"), line), message, "correct it, or declare the workload");
            }
        }
        for namespace in
            source.namespaces.iter().filter(|namespace| !namespace.contains('*') && !self.index.namespaces.contains_key(*namespace))
        {
            let near = crate::world::problem::nearest(namespace, self.index.namespaces.keys().map(String::as_str));
            let remedy = near.map_or_else(|| "correct it, or add the namespace".to_owned(), |near| format!("did you mean `{near}`?"));
            self.warn((format!("{path}.namespaces"), line), format!("there is no namespace `{namespace}`"), remedy);
        }
        let ranges = &self.world.settings().ranges;
        let services = [ipnet::IpNet::from(ranges.services.0), ipnet::IpNet::from(ranges.services.1)];
        for block in source.ip_blocks.iter().filter_map(|block| block.parse::<ipnet::IpNet>().ok()) {
            if services.iter().any(|range| range.contains(&block)) {
                let message = format!("{block} are addresses of Services, from which nobody calls: servers see their callers' own");
                self.warn((format!("{path}.ipBlocks"), line), message, "name the callers by principals or namespaces");
            } else if let Some(gateway) = self.gateway_in(&block) {
                let message = format!(
                    "{block} holds the address of Gateway {gateway}: all that it passes on comes from there, whoever the client is"
                );
                self.say(Severity::Info, (format!("{path}.ipBlocks"), line), message, "name the Gateway by principals");
            }
        }
    }

    fn declared(&self, namespace: &str, account: &str) -> bool {
        let instances = self.index.instances.values().filter(|instance| instance.namespace == namespace);
        let gateway = (namespace.to_owned(), account.to_owned());
        instances.filter_map(Instance::workload).any(|workload| workload.service_account == account)
            || self.index.gateways.contains_key(&gateway)
    }

    fn gateway_in(&self, block: &ipnet::IpNet) -> Option<String> {
        let holds = |addresses: &Vec<IpAddr>| addresses.iter().any(|address| block.contains(address));
        let found = self.index.gateway_addresses.iter().find(|(_, addresses)| block.prefix_len() > 0 && holds(addresses));
        found.map(|((namespace, name), _)| format!("{namespace}/{name}"))
    }

    /// What is about requests, at ports that carry bytes: there an Allow never holds, and a Deny goes by the rest of the rule.
    fn bytes(&mut self, number: usize, written: &WrittenRule) {
        let rule = &written.rule;
        let fields = about_requests(rule);
        if fields.is_empty() || self.policy.action == Action::Audit {
            return;
        }
        let asked = ports_of(rule);
        let meant = |port: u16| asked.is_empty() || asked.contains(&u32::from(port));
        let opaque = selected(self.index, self.object, self.policy).find_map(|instance| {
            let ports = instance.workload().map_or(&[][..], |workload| &workload.ports).iter().map(|port| port.port);
            let port = ports.filter(|port| meant(*port)).find(|port| of_server(self.index, instance, *port) == Protocol::Tcp)?;
            Some((port, format!("{}/{}", instance.namespace, instance.workload)))
        });
        let Some((port, workload)) = opaque else { return };
        let fate = if self.allows() { "the rule never allows anything there" } else { "there it denies whatever the rest of it holds for" };
        let message =
            format!("port {port} of workload {workload} carries bytes, and this is about requests: {}; {fate}", fields.join(", "));
        let remedy = "declare the port as HTTP, or give its ports a rule of their own";
        self.warn((format!("rules[{number}]"), written.line), message, remedy);
    }

    /// What does not come to the sidecar is not judged.
    fn excluded(&mut self) {
        let asked: Vec<Vec<u32>> = self.policy.rules.iter().map(|written| ports_of(&written.rule)).collect();
        let meant = |port: u16| asked.iter().any(|ports| ports.is_empty() || ports.contains(&u32::from(port)));
        let mut instances = selected(self.index, self.object, self.policy).filter(|instance| instance.meshed);
        let excluded = instances.find_map(|instance| {
            let ports = instance.object.annotated_ports(EXCLUDE_INBOUND_PORTS);
            let declared = instance.workload().map_or(&[][..], |workload| &workload.ports).iter().map(|port| u32::from(port.port));
            let known: Vec<u32> = declared.chain(asked.iter().flatten().copied()).collect();
            let port = ports.into_iter().find(|port| meant(*port) && known.contains(&u32::from(*port)))?;
            Some((instance, port))
        });
        let Some((instance, port)) = excluded else { return };
        let (namespace, workload) = (&instance.namespace, &instance.workload);
        let message = format!("port {port} of workload {namespace}/{workload} does not come to its sidecar: nothing is enforced there");
        let remedy = format!("take it out of {EXCLUDE_INBOUND_PORTS}");
        self.warn(("rules".to_owned(), 0), message, remedy);
    }

    /// Somebody who is kept out by what he proves need not prove it: where a port takes plaintext, such a rule keeps nobody out.
    fn nobody(&mut self, number: usize, written: &WrittenRule) {
        let proved = |source: &CallSource| !source.principals.is_empty() || !source.namespaces.is_empty();
        let rule = &written.rule;
        let (part, sources) = match self.policy.action {
            Action::Deny => ("from", &rule.from),
            // Where nobody is let in who proves nothing, the exception needs no proof.
            Action::Allow if !rule.from.is_empty() && rule.from.iter().all(proved) => return,
            Action::Allow => ("not.from", &rule.not_from),
            Action::Audit => return,
        };
        if !sources.iter().any(proved) {
            return;
        }
        let asked = ports_of(rule);
        let mut instances = selected(self.index, self.object, self.policy).filter(|instance| instance.meshed);
        let open = instances.find_map(|instance| Some((instance, self.takes_plaintext(instance, &asked)?)));
        let Some((instance, port)) = open else { return };
        let (namespace, workload) = (&instance.namespace, &instance.workload);
        let message = format!(
            "port {port} of workload {namespace}/{workload} takes plaintext, in which nobody proves anything: whoever is meant calls without mTLS and is not kept out"
        );
        let remedy = "say Strict in a PeerAuthentication, or allow those who may by what they prove";
        self.warn((format!("rules[{number}].{part}"), written.line), message, remedy);
    }

    /// A port of these, or any where there are none, at which nothing has to be proved.
    fn takes_plaintext(&self, instance: &Instance, asked: &[u32]) -> Option<u16> {
        let modes = Modes::new(self.index, &instance.namespace, instance.labels());
        let ports = instance.workload().map_or(&[][..], |workload| &workload.ports).iter().map(|port| port.port);
        let meant = |port: &u16| asked.is_empty() || asked.contains(&u32::from(*port));
        ports.filter(meant).find(|port| modes.of(*port) != MtlsMode::Strict)
    }

    /// A caller without mTLS proves nothing: where its port takes plaintext, an Allow by identity denies it.
    fn plaintext(&mut self, number: usize, written: &WrittenRule) {
        let proved = |source: &CallSource| !source.principals.is_empty() || !source.namespaces.is_empty();
        if !self.allows() || written.rule.from.is_empty() || !written.rule.from.iter().all(proved) {
            return;
        }
        let mut instances = selected(self.index, self.object, self.policy).filter(|instance| instance.meshed);
        let open = instances.find_map(|instance| Some((instance, self.takes_plaintext(instance, &[])?)));
        let bare = self.index.instances.values().find(|other| !other.meshed);
        let (Some((instance, port)), Some(bare)) = (open, bare) else { return };
        let message = format!(
            "port {port} of workload {}/{} takes plaintext, and {}/{} has no sidecar: its calls prove no identity, and no rule that names one allows them",
            instance.namespace, instance.workload, bare.namespace, bare.workload
        );
        let remedy = "give it a sidecar; or say Strict, so that it is plain; or allow its addresses by ipBlocks";
        self.say(Severity::Info, (format!("rules[{number}].from"), written.line), message, remedy);
    }
}

/// The ports that a rule asks for.
fn ports_of(rule: &AuthorizationRule) -> Vec<u32> {
    rule.to.iter().flat_map(|target| target.ports.iter().copied()).collect()
}

/// Namespace and account of an exact identity of our own trust domain.
fn identity_of<'p>(principal: &'p str, own: &str) -> Option<(&'p str, &'p str)> {
    let rest = principal.strip_prefix("spiffe://")?.strip_prefix(own)?.strip_prefix("/ns/")?;
    rest.split_once("/sa/").filter(|_| !principal.contains('*'))
}

/// What of a rule only requests have, by field.
fn about_requests(rule: &AuthorizationRule) -> Vec<&'static str> {
    let targets = || rule.to.iter().chain(&rule.not_to);
    let sources = || rule.from.iter().chain(&rule.not_from);
    let has = |get: fn(&CallTarget) -> bool| targets().any(get);
    [
        ("hosts", has(|to| !to.hosts.is_empty())),
        ("methods", has(|to| !to.methods.is_empty())),
        ("paths", has(|to| !to.paths.is_empty())),
        ("headers", has(|to| !to.headers.is_empty())),
        ("jwt", sources().any(|from| from.token.is_some())),
        ("when", rule.when.contains("request.") || rule.when.contains("token.")),
    ]
    .into_iter()
    .filter_map(|(name, said)| said.then_some(name))
    .collect()
}
