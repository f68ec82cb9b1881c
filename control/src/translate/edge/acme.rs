//! Certificates that are ordered: for which listeners, by whose word, and what status says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::annotations::ACME;
use proto::xds::tls::{GenericSecret, Secret, TlsCertificate, secret};

use super::client;
use super::ladder::{Climb, Spot, places};
use super::webhook::{self, AcmeWebhook};
use crate::translate::attach::{covers, narrowness};
use crate::translate::authorities;
use crate::translate::edge_listeners::{self, Family, Judged};
use crate::translate::wire::inline;
use crate::world::acme::{ACME_NAMES_MAX, AcmeOrder, AcmeShown, AcmeStanding, ordered};
use crate::world::certificate::Certificate;
use crate::world::edge::{AcmeChallenge, AcmeTerms, ClientPolicy};
use crate::world::traffic::Place;
use crate::world::{Index, Name, Object, ObjectKey, Severity, World};

/// Hosts that are named in one sentence.
const HOSTS_TOLD_MAX: usize = 5;

/// What is ordered for one listener.
pub(in crate::translate) struct Ordered<'a> {
    /// Where the certificate is, or will be.
    pub secret: ObjectKey,
    /// For which name.
    pub host: &'a str,
    /// From whom, and how.
    pub terms: AcmeTerms,
}

/// `None`: the listener names its certificates, or nobody says from whom one is ordered.
pub(in crate::translate) fn at_listener<'a>(index: &Index, gateway: &Name, judged: &Judged<'a>) -> Option<Ordered<'a>> {
    let (secret, host) = ordered(&judged.owner.key, judged.listener)?;
    let terms = client::at_listener(index, gateway, judged).acme?;
    Some(Ordered { secret, host, terms })
}

/// A wildcard's name is proved by DNS alone (RFC 8555, section 7.1.3).
pub(in crate::translate) fn wildcard(ordered: &Ordered<'_>) -> Option<String> {
    (ordered.host.starts_with("*.") && ordered.terms.challenge != AcmeChallenge::Dns01).then(|| {
        let host = ordered.host;
        format!("no certificate is ordered for {host}: a wildcard needs the challenge Dns01; name who writes DNS in acme.dns01, or a Secret in tls.certificateRefs")
    })
}

/// Whose a name is already. All TLS ports of a Gateway, and all its HTTP ports, prove whatever is pending; and the key of a certificate is in the
/// namespace of the listener that has it ordered. So a name that a listener of another namespace has, which comes before it, is not ordered: it
/// would be a stranger's. The same port's narrower listener has the name itself, and whoever serves any name at all has those of its certificates.
fn taken(world: &World, listeners: &[Judged<'_>], ordered: &Ordered<'_>) -> Option<String> {
    let index = world.index();
    let serves = |judged: &&Judged<'_>| judged.refused.is_none();
    let wants = |judged: &Judged<'_>| crate::world::acme::ordered(&judged.owner.key, judged.listener).map(|(secret, _)| secret);
    let own = listeners.iter().position(|judged| serves(&judged) && wants(judged).as_ref() == Some(&ordered.secret))?;
    let (host, mine) = (ordered.host, |judged: &Judged<'_>| judged.owner.key.namespace == ordered.secret.namespace);
    let of_port = |other: &Judged<'_>| {
        let beside = listeners.iter().filter(serves).filter(|judged| mine(judged) && judged.listener.port == other.listener.port);
        let narrower = |judged: &Judged<'_>| covers(judged.host(), host) && narrowness(judged.host()) > narrowness(other.host());
        beside.filter(|judged| Family::of(&judged.listener.protocol) == Some(Family::Tls)).any(narrower)
    };
    let has = |other: &&Judged<'_>| match Family::of(&other.listener.protocol) {
        Some(Family::Http) => other.listener.hostname.as_deref().is_some_and(|name| name == host || covers(host, name)),
        Some(Family::Tls) if other.listener.hostname.is_none() => {
            let refs = other.listener.tls.iter().flat_map(|tls| &tls.certificates);
            let secrets = refs.filter_map(|to| to.object(&other.owner.key.namespace));
            let mut shown = secrets.filter(|secret| authorities::granted(index, &other.owner.key, secret).is_ok());
            shown.any(|secret| world.credential(&secret).is_ok_and(|(good, _)| good.covers(host))) && !of_port(other)
        }
        Some(Family::Tls) => covers(host, other.host()) || covers(other.host(), host) && !of_port(other),
        _ => false,
    };
    let other = listeners[..own].iter().filter(serves).filter(|judged| !mine(judged)).find(has)?;
    Some(format!(
        "no certificate is ordered for {host}: it is a name of listener {} of {}, in another namespace, which comes first; name a Secret in tls.certificateRefs",
        other.listener.name, other.owner.key
    ))
}

/// Why no order can come to a good end, as far as configuration shows.
fn barred(world: &World, gateway: &Name, listeners: &[Judged<'_>], ordered: &Ordered<'_>) -> Option<String> {
    let by_dns = || ordered.terms.dns.as_ref().and_then(|dns| webhook::resolve(world, dns).err());
    if let Some(why) = wildcard(ordered).or_else(|| taken(world, listeners, ordered)).or_else(by_dns) {
        return Some(why);
    }
    let plain = |judged: &Judged<'_>| judged.refused.is_none() && judged.listener.protocol == "HTTP";
    (ordered.terms.challenge == AcmeChallenge::Http01 && !listeners.iter().any(plain)).then(|| {
        format!(
            "the challenge Http01 is answered at an HTTP listener (port 80), and Gateway {}/{} has none: add one, or use TlsAlpn01",
            gateway.0, gateway.1
        )
    })
}

/// A name for which a certificate is ordered.
#[derive(Clone, Debug)]
pub struct AcmeName {
    /// Where the certificate is, or will be.
    pub secret: ObjectKey,
    /// The name.
    pub host: String,
    /// From whom, and how. Where several Gateways want it, the first one's.
    pub terms: AcmeTerms,
    /// Gateways that want it.
    pub gateways: Vec<Name>,
    /// Why it cannot be ordered.
    pub barred: Option<String>,
    /// Who writes DNS for it, of the challenge Dns01 alone.
    pub webhook: Option<AcmeWebhook>,
    /// The one in force, which is for that name; `None` too where its Secret is gone, or spoilt, and it is on its way out.
    pub certificate: Option<Arc<Certificate>>,
}

/// Every name for which certificates are ordered, by their Secrets. A Secret of such a name that somebody else has written is his to renew.
pub fn acme_names(world: &World) -> Vec<AcmeName> {
    let index = world.index();
    let mut all: BTreeMap<ObjectKey, AcmeName> = BTreeMap::new();
    if index.edge.is_empty() {
        return Vec::new();
    }
    for gateway in index.gateways.keys() {
        let listeners = edge_listeners::listeners(index, gateway);
        for judged in listeners.iter().filter(|judged| judged.refused.is_none()) {
            let Some(ordered) = at_listener(index, gateway, judged) else { continue };
            if !is_ours(world, &ordered.secret) {
                continue;
            }
            let barred = barred(world, gateway, &listeners, &ordered);
            // Where it cannot be ordered nothing proves it either.
            if let Some(known) = all.get_mut(&ordered.secret).filter(|known| barred.is_some() || known.barred.is_none()) {
                if barred.is_none() && !known.gateways.contains(gateway) {
                    known.gateways.push(gateway.clone());
                }
                continue;
            }
            let found = world.credential(&ordered.secret).ok().filter(|(_, fault)| fault.is_none()).map(|(good, _)| Arc::clone(good));
            let name = AcmeName {
                secret: ordered.secret.clone(),
                host: ordered.host.to_owned(),
                webhook: ordered.terms.dns.as_ref().and_then(|dns| webhook::resolve(world, dns).ok()),
                terms: ordered.terms,
                gateways: vec![gateway.clone()],
                barred,
                certificate: found.filter(|good| good.covers(ordered.host)),
            };
            all.insert(ordered.secret, name);
        }
    }
    let mut all: Vec<AcmeName> = all.into_values().collect();
    bound(&mut all);
    all
}

/// Names that have a certificate keep their place: who comes later takes nobody's renewal away.
fn bound(names: &mut [AcmeName]) {
    let mut open: Vec<&mut AcmeName> = names.iter_mut().filter(|name| name.barred.is_none()).collect();
    open.sort_by_key(|name| name.certificate.is_none());
    for late in open.into_iter().skip(ACME_NAMES_MAX) {
        late.barred = Some(format!("certificates of {ACME_NAMES_MAX} other names are ordered already"));
    }
}

/// Whether a Secret is there for us to write, or not there.
fn is_ours(world: &World, secret: &ObjectKey) -> bool {
    world.get(secret).is_none_or(|object| object.metadata.labels.contains_key(ACME))
}

/// Why a listener has no certificate yet.
pub(in crate::translate) fn pending(world: &World, gateway: &Name, ordered: &Ordered<'_>) -> (Severity, String) {
    let listeners = edge_listeners::listeners(world.index(), gateway);
    if let Some(why) = barred(world, gateway, &listeners, ordered) {
        return (Severity::Error, why);
    }
    if !is_ours(world, &ordered.secret) {
        let why = format!("{} holds no certificate that can be used, and is not one that the control plane wrote", ordered.secret);
        return (Severity::Error, why);
    }
    let begun = format!("the first certificate for {} is ordered from {}", ordered.host, ordered.terms.directory);
    match world.acme().orders.get(&ordered.secret) {
        Some(AcmeStanding { problem: Some(problem), .. }) => (Severity::Warning, format!("{begun}; the last try failed: {problem}")),
        _ => (Severity::Info, begun),
    }
}

/// A condition of a kind's own.
#[derive(Debug)]
pub(in crate::translate) struct OwnCondition {
    pub kind: &'static str,
    pub holds: bool,
    pub reason: &'static str,
    pub message: String,
}

/// How certificates stand that are ordered by the word of a ClientPolicy at one Gateway.
pub(super) fn conditions(world: &World, object: &Object, gateway: &Name, spots: &BTreeSet<Vec<Place>>) -> Vec<OwnCondition> {
    let index = world.index();
    let says = <ClientPolicy as super::ladder::Rung>::of(object).and_then(|spec| spec.acme.as_ref());
    if says.is_none() {
        return Vec::new();
    }
    let (mut ready, mut waiting, mut expiring) = (0, Vec::new(), Vec::new());
    let mut told: BTreeSet<ObjectKey> = BTreeSet::new();
    for judged in edge_listeners::listeners(index, gateway).iter().filter(|judged| judged.refused.is_none()) {
        let here = places(&Spot { gateway, owner: &judged.owner.key, listener: &judged.listener.name, route: None });
        let owns = || {
            let held = Climb::<ClientPolicy>::of(index, &here).held()?;
            held.fields.iter().find(|(field, _)| *field == "acme").map(|(_, by)| by.key == object.key)
        };
        if !spots.contains(&here) || owns() != Some(true) {
            continue;
        }
        let Some(ordered) = at_listener(index, gateway, judged).filter(|ordered| told.insert(ordered.secret.clone())) else { continue };
        let standing = world.acme().orders.get(&ordered.secret);
        match world.credential(&ordered.secret) {
            Ok(_) => ready += 1,
            Err(_) => waiting.push(pending(world, gateway, &ordered).1),
        }
        if standing.is_some_and(|standing| standing.expiring) {
            let problem = standing.and_then(|standing| standing.problem.clone()).map(|why| format!(" ({why})")).unwrap_or_default();
            expiring.push(format!("{}{problem}", ordered.host));
        }
    }
    let count = ready + waiting.len();
    waiting.truncate(HOSTS_TOLD_MAX);
    let all = match (count, waiting.is_empty()) {
        (0, _) => OwnCondition {
            kind: "CertificatesReady",
            holds: true,
            reason: "CertificatesReady",
            message: "no listener for HTTPS with a hostname and without certificateRefs goes by it".to_owned(),
        },
        (_, true) => {
            OwnCondition { kind: "CertificatesReady", holds: true, reason: "CertificatesReady", message: format!("{ready} of {count}") }
        }
        (_, false) => OwnCondition {
            kind: "CertificatesReady",
            holds: false,
            reason: "CertificatePending",
            message: format!("{ready} of {count}; {}", waiting.join("; ")),
        },
    };
    let late = !expiring.is_empty();
    expiring.truncate(HOSTS_TOLD_MAX);
    let (reason, message) = match late {
        true => ("RenewalFailing", format!("should have been renewed long ago: {}", expiring.join(", "))),
        false => ("NotExpiring", String::new()),
    };
    vec![all, OwnCondition { kind: "Expiring", holds: late, reason, message }]
}

/// What a Gateway's proxies show authorities just now.
pub(in crate::translate) fn proofs<'w>(world: &'w World, gateway: &Name) -> impl Iterator<Item = Secret> + 'w {
    let gateway = gateway.clone();
    let here = world.acme().proofs.values().filter(move |proof| proof.gateways.contains(&gateway));
    here.map(|proof| {
        let shown = match &proof.shown {
            AcmeShown::Answer(text) => secret::Type::GenericSecret(GenericSecret { secret: inline(text.as_bytes()) }),
            AcmeShown::Certificate(chain, key) => secret::Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(chain.as_bytes()),
                private_key: inline(key.as_bytes()),
                ocsp_staple: None,
            }),
        };
        Secret { name: proof.name.clone(), r#type: Some(shown) }
    })
}

/// Gateways whose proofs are not the same in two worlds.
pub(in crate::translate) fn proving_otherwise<'w>(was: &'w World, is: &'w World) -> BTreeSet<&'w Name> {
    let (was, is) = (was.acme(), is.acme());
    if Arc::ptr_eq(was, is) {
        return BTreeSet::new();
    }
    let apart = |secret: &ObjectKey| was.proofs.get(secret) != is.proofs.get(secret);
    let both = was.proofs.iter().chain(&is.proofs).filter(|(secret, _)| apart(secret));
    both.flat_map(|(_, proof)| &proof.gateways).collect()
}

/// One row of `get certs` more: what becomes of a certificate that is ordered.
pub fn acme_row(world: &World, name: &AcmeName, moment: impl Fn(i64) -> String) -> serde_json::Value {
    let standing = world.acme().orders.get(&name.secret).cloned().unwrap_or_default();
    let order = if name.barred.is_some() { AcmeOrder::Failing } else { standing.order };
    serde_json::json!({
        "order": order.text(),
        "challenge": name.terms.challenge.text(),
        "next_try": (standing.next_try_ms > 0 && name.barred.is_none()).then(|| moment(standing.next_try_ms)),
    })
}

#[cfg(test)]
#[path = "acme_tests.rs"]
mod tests;
