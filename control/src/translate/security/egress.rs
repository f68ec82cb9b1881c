//! EgressPolicies of one workload, as its proxy enforces them. Where they are too many, one without rules stands for those that are left out,
//! so what they would allow is cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::model::build::{EgressSum, certificates};
use proto::mesh::{Egress, EgressPolicy as RawPolicy};

use super::sums::{Meant, Portion, beyond};
use crate::translate::mtls::applies;
use crate::world::content::ContentRef;
use crate::world::problem::Severity;
use crate::world::security::egress::{EgressPolicy, EgressRule, Originate, ROOTS_KEY};
use crate::world::{Index, Object, Spec, World};

/// The content of an EgressPolicy.
pub(in crate::translate) fn content(object: &Object) -> Option<&EgressPolicy> {
    if let Spec::EgressPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// Of a policy without rules.
pub(super) const STAND_IN: EgressSum = EgressSum { policies: 1, rules: 0, items: 0 };

/// The policies that are meant, by name.
pub(super) fn portions<'a>(index: &'a Index, meant: Meant<'_>) -> Vec<Portion<'a, EgressPolicy, EgressSum>> {
    let portion = |object: &'a Arc<Object>| {
        let content = content(object).filter(|policy| meant(object, &policy.selector))?;
        Some(Portion { object, content, sum: content.sum(), tells: content.audit })
    };
    index.egress.iter().filter_map(portion).collect()
}

/// What selects a workload, by name; `None`: nothing does.
pub(in crate::translate) fn egress(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Egress> {
    let about = portions(world.index(), &|object, selector| applies(object, selector, namespace, labels));
    let left_out = beyond(world, &about, STAND_IN);
    let (out, taken): (Vec<_>, Vec<_>) = about.iter().partition(|portion| left_out.contains(&portion.object.key));
    let sent = |portion: &&Portion<'_, EgressPolicy, _>| portion.content.sent(&portion.object.key, |said| roots(world, said));
    let mut policies: Vec<RawPolicy> = taken.iter().map(sent).collect();
    policies.extend(out.first().map(|first| {
        let audit = out.iter().all(|portion| portion.content.audit);
        RawPolicy { name: first.object.key.path(), audit, allow: Vec::new() }
    }));
    (!policies.is_empty()).then_some(Egress { policies })
}

/// The roots that it refers to, as the proxy will read them.
fn roots(world: &World, said: &Originate) -> Result<Vec<u8>, String> {
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
    Ok(ca_pem)
}

/// What a policy refers to and cannot be had: place in the list of rules, and why.
pub(in crate::translate) fn unresolved(world: &World, policy: &EgressPolicy) -> Vec<(usize, String)> {
    let wrong = |rule: &EgressRule| rule.originate.as_ref().and_then(|said| roots(world, said).err());
    policy.allow.iter().enumerate().filter_map(|(number, rule)| Some((number, wrong(rule)?))).collect()
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
            if engine::dns::ZONES.iter().any(|zone| engine::dns::within(host, zone)) {
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
