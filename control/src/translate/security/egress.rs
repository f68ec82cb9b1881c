//! EgressPolicies of one workload, as its proxy enforces them.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::model::build::certificates;
use proto::mesh::{Egress, EgressPolicy as RawPolicy, EgressRule as RawRule, Originate as RawOriginate};

use crate::translate::mtls::applies;
use crate::world::content::ContentRef;
use crate::world::problem::Severity;
use crate::world::security::egress::{EgressPolicy, EgressRule, Originate, ROOTS_KEY};
use crate::world::{Object, Spec, World};

/// The content of an EgressPolicy.
pub(in crate::translate) fn content(object: &Object) -> Option<&EgressPolicy> {
    if let Spec::EgressPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// What selects a workload, by name; `None`: nothing does.
pub(in crate::translate) fn egress(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Egress> {
    let selected = world.index().egress.iter().filter_map(|object| Some((object, content(object)?)));
    let selected = selected.filter(|(object, policy)| applies(object, &policy.selector, namespace, labels));
    let policies: Vec<RawPolicy> = selected.map(|(object, policy)| raw(world, object, policy)).collect();
    (!policies.is_empty()).then_some(Egress { policies })
}

/// A rule whose roots cannot be had is left out, so it allows nothing.
fn raw(world: &World, object: &Arc<Object>, policy: &EgressPolicy) -> RawPolicy {
    let allow = policy.allow.iter().filter_map(|one| rule(world, one).ok()).collect();
    RawPolicy { name: object.key.path(), audit: policy.audit, allow }
}

fn rule(world: &World, rule: &EgressRule) -> Result<RawRule, String> {
    let originate = rule.originate.as_ref().map(|raw| originate(world, raw)).transpose()?;
    Ok(RawRule {
        hosts: rule.hosts.clone(),
        cidrs: rule.cidrs.iter().map(ToString::to_string).collect(),
        ports: rule.ports.iter().copied().map(u32::from).collect(),
        originate,
    })
}

/// With the roots that it refers to, as the proxy will read them.
fn originate(world: &World, said: &Originate) -> Result<RawOriginate, String> {
    let mut ca_pem = Vec::new();
    for object in &said.roots {
        let place = ContentRef { object: object.clone(), key: ROOTS_KEY.to_owned() };
        let content = world.content(&place).map_err(|error| error.to_string())?;
        certificates(&content).map_err(|why| format!("{place}: {why}"))?;
        ca_pem.extend_from_slice(&content);
        ca_pem.push(b'\n');
    }
    if !said.roots.is_empty() {
        certificates(&ca_pem)?;
    }
    Ok(RawOriginate { sni: said.sni.clone(), ca_pem: ca_pem.into() })
}

/// What a policy refers to and cannot be had: place in the list of rules, and why.
pub(in crate::translate) fn unresolved(world: &World, policy: &EgressPolicy) -> Vec<(usize, String)> {
    policy.allow.iter().enumerate().filter_map(|(number, one)| Some((number, rule(world, one).err()?))).collect()
}

/// What is worth to be told about a policy: severity, field, message, remedy.
pub(in crate::translate) fn findings(world: &World, object: &Object, policy: &EgressPolicy) -> Vec<(Severity, String, String, String)> {
    let mut found = Vec::new();
    let mut say = |severity, field: String, message: String, remedy: &str| found.push((severity, field, message, remedy.to_owned()));
    if policy.allow.is_empty() && !policy.audit {
        let message = "it allows nothing: every call of these workloads past the mesh is cut".to_owned();
        say(Severity::Info, "spec.allow".to_owned(), message, "add rules, unless that is what is meant");
    }
    for (number, rule) in policy.allow.iter().enumerate() {
        let field = |name: &str| format!("spec.allow[{number}].{name}");
        if !rule.hosts.is_empty() && rule.ports.is_empty() {
            let message = "without ports only HTTP and TLS pass by name".to_owned();
            say(Severity::Info, field("hosts"), message, "list `ports` where other protocols are meant");
        }
        for host in &rule.hosts {
            if engine::dns::ZONES.iter().any(|zone| host.ends_with(zone)) {
                let message = format!("`{host}` is a name of the mesh itself, which no EgressPolicy is about");
                say(Severity::Warning, field("hosts"), message, "say who may call a Service in an AuthorizationPolicy");
            }
        }
    }
    for (number, why) in unresolved(world, policy) {
        let remedy = "put the roots there, PEM, as `ca.crt`; until then the rule allows nothing";
        say(Severity::Error, format!("spec.allow[{number}].tls.originate.caCertificateRefs"), why, remedy);
    }
    let index = world.index();
    let rivals = index.egress.iter().filter(|other| other.key != object.key);
    let enforced = rivals.filter(|other| content(other).is_some_and(|other| !other.audit)).find(|other| {
        let both = |namespace: &str, labels: &BTreeMap<String, String>| {
            let theirs = content(other).is_some_and(|theirs| applies(other, &theirs.selector, namespace, labels));
            theirs && applies(object, &policy.selector, namespace, labels)
        };
        index.instances.values().any(|instance| both(&instance.namespace, instance.labels()))
    });
    if let Some(other) = enforced.filter(|_| policy.audit) {
        let message = format!("{} enforces for some of these workloads: there this audit says nothing", other.key);
        say(Severity::Warning, "spec.mode".to_owned(), message, "write what is to be allowed into one that enforces");
    }
    found
}
