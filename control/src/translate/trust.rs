//! Whom proxies believe beside the mesh's own roots, and whom no more.

use prost_types::Timestamp;
use proto::mesh::{FederatedBundle, RevokedIdentity, RevokedSerial, Trust};

use super::advice::Finding;
use crate::world::federation::WrongBundle;
use crate::world::own::Mesh;
use crate::world::revocation::Revocation;
use crate::world::{Instance, ObjectKey, Severity, World};

/// What the objects add to the trust in the mesh's own roots.
pub fn trust(world: &World) -> Trust {
    let revoked = &world.index().revoked;
    let federated = world.bundles().iter().filter(|(_, bundle)| !bundle.roots.is_empty()).map(|(domain, bundle)| FederatedBundle {
        trust_domain: domain.clone(),
        roots: bundle.roots.iter().map(|root| root.to_vec().into()).collect(),
    });
    let identities = revoked.identities.iter().map(|(identity, sentence)| RevokedIdentity {
        identity: identity.to_string(),
        until: sentence.until_secs.map(timestamp),
        revocation: sentence.object.path(),
    });
    let serials = revoked.serials.iter().map(|(serial, sentence)| RevokedSerial {
        serial: serial.clone(),
        until: sentence.until_secs.map(timestamp),
        revocation: sentence.object.path(),
    });
    Trust { federated: federated.collect(), identities: identities.collect(), serials: serials.collect(), ..Trust::default() }
}

fn timestamp(secs: u64) -> Timestamp {
    Timestamp { seconds: i64::try_from(secs).unwrap_or(i64::MAX), nanos: 0 }
}

/// Why not all that the Mesh federates with is in force as it stands: the first reason, for a condition, and all of them in words.
pub(super) fn unresolved(world: &World) -> Option<(&'static str, String)> {
    let wrong: Vec<(&String, &WrongBundle)> =
        world.bundles().iter().filter_map(|(domain, bundle)| Some((domain, bundle.wrong.as_ref()?))).collect();
    let sentence = |(domain, wrong): &(&String, &WrongBundle)| format!("{domain}: {}", wrong.message);
    let reason = wrong.first()?.1.reason;
    Some((reason, wrong.iter().map(sentence).collect::<Vec<_>>().join(". ")))
}

/// What `analyze` says of the Mesh's federation.
pub(super) fn federation_findings(world: &World, mesh: &Mesh) -> Vec<Finding> {
    let finding = |(place, federated): (usize, &crate::world::own::Federated)| {
        let bundle = world.bundles().get(&federated.trust_domain)?;
        let wrong = bundle.wrong.as_ref()?;
        let kept = bundle.roots.len();
        let remedy = match kept {
            0 => format!("until it is mended nobody of `{}` is believed", federated.trust_domain),
            _ => format!("its last good version ({kept} roots) stays in force; to believe it no more, remove it from `federation`"),
        };
        let field = (format!("spec.federation[{place}].bundle"), 0);
        Some(Finding { severity: Severity::Error, field, message: wrong.message.clone(), remedy })
    };
    mesh.federation.iter().enumerate().filter_map(finding).collect()
}

/// What `analyze` says of a Revocation: whom it meets, and whom nobody has declared.
pub(super) fn revocation_findings(world: &World, key: &ObjectKey, spec: &Revocation) -> Vec<Finding> {
    let index = world.index();
    let warn = |field: &str, message: String, remedy: &str| Finding {
        severity: Severity::Warning,
        field: (field.to_owned(), 0),
        message,
        remedy: remedy.to_owned(),
    };
    let mut findings = Vec::new();
    if index.revoked.excess.contains(key) {
        let message = "older Revocations revoke as much as may be; this one is not in force".to_owned();
        findings.push(Finding { severity: Severity::Error, ..warn("spec", message, "remove those whose `until` has passed") });
    }
    let domain = &index.mesh.trust_domain;
    for identity in &spec.identities {
        if identity.trust_domain() != domain {
            if !world.bundles().contains_key(identity.trust_domain()) {
                let message = format!("{identity} is of a trust domain that nobody believes anyway");
                findings.push(warn("spec.identities", message, "correct it, or remove it"));
            }
            continue;
        }
        let runs = |instance: &&Instance| {
            instance.namespace == identity.namespace()
                && instance.workload().is_some_and(|workload| workload.service_account == identity.service_account())
        };
        match index.instances.values().find(runs) {
            Some(instance) => {
                let message = format!("{identity} is in use by Workload {}/{}", instance.namespace, instance.workload);
                findings.push(warn("spec.identities", message, "its connections are cut and its calls refused; give it another account"));
            }
            None if edge(world, identity) => {
                let message = format!("{identity} is in use by a Gateway");
                findings.push(warn("spec.identities", message, "its connections are cut and its calls refused"));
            }
            None => {
                let message = format!("{identity} is the identity of nothing that is declared");
                let severity = Severity::Info;
                findings.push(Finding { severity, ..warn("spec.identities", message, "leftovers are refused all the same") });
            }
        }
    }
    findings
}

/// A Gateway's proxy has its name as its account.
fn edge(world: &World, identity: &proto::identity::Identity) -> bool {
    world.index().gateways.contains_key(&(identity.namespace().to_owned(), identity.service_account().to_owned()))
}
