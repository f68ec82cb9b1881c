//! The resource `trust`. A fault in it refuses the whole of it: half a trust would be another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost_types::Timestamp;
use proto::identity::Identity;
use proto::mesh;
use rustls_pki_types::CertificateDer;

use crate::model::{Revocation, Revoked, Trust, sha256};
use crate::rejected::Wrong;

/// Most roots: a rotation needs two, a move to another authority a few more.
const ROOTS_MAX: usize = 64;
/// Largest root certificate, in bytes of DER.
const ROOT_BYTES_MAX: usize = 64 << 10;
/// Most other trust domains.
const FEDERATED_MAX: usize = 64;
/// Most identities, and serial numbers, that are revoked.
const REVOKED_MAX: usize = 10_000;
/// Digits of a serial number; RFC 5280, section 4.1.2.2.
const SERIAL_DIGITS_MAX: usize = 40;

pub(super) fn compile(name: &str, raw: &mesh::Trust) -> Result<Trust, Wrong> {
    if name != proto::names::TRUST {
        return Err(Wrong::new("", format!("the only resource of this type is `{}`", proto::names::TRUST)));
    }
    let mesh::Trust { roots, issuing_root, federated, identities, serials } = raw;
    let federated = others(federated)?;
    let revoked = Arc::new(Revoked { identities: revoked_identities(identities)?, serials: revoked_serials(serials)? });
    let roots = anchors(roots, "roots")?;
    if roots.is_empty() {
        return Err(Wrong::new("roots", "is empty: without a root nobody could be believed"));
    }
    let issuing_root = issuing_root.as_ref().try_into().map_err(|_| Wrong::new("issuing_root", "is not a SHA-256 of 32 bytes"))?;
    let issuing_at = roots.iter().position(|root| sha256(root) == issuing_root);
    let issuing_at = issuing_at.ok_or_else(|| Wrong::new("issuing_root", "is none of the roots"))?;
    Ok(Trust { roots, issuing_root, issuing_at, federated, revoked })
}

/// Bundles of other trust domains.
fn others(raw: &[mesh::FederatedBundle]) -> Result<BTreeMap<String, Vec<CertificateDer<'static>>>, Wrong> {
    bounded(raw.len(), FEDERATED_MAX, "federated")?;
    let mut others = BTreeMap::new();
    for (index, mesh::FederatedBundle { trust_domain, roots }) in raw.iter().enumerate() {
        let at = || format!("federated[{index}]");
        Identity::new(trust_domain, "a", "a").map_err(|error| Wrong::new("trust_domain", error.why).within(at()))?;
        let roots = anchors(roots, "roots").map_err(|wrong| wrong.within(at()))?;
        if roots.is_empty() {
            return Err(Wrong::new("roots", "is empty: a trust domain that nobody believes is left out").within(at()));
        }
        if others.insert(trust_domain.clone(), roots).is_some() {
            return Err(Wrong::new("trust_domain", format!("`{trust_domain}` stands twice")).within(at()));
        }
    }
    Ok(others)
}

fn revoked_identities(raw: &[mesh::RevokedIdentity]) -> Result<BTreeMap<Identity, Revocation>, Wrong> {
    bounded(raw.len(), REVOKED_MAX, "identities")?;
    let read = |(index, revoked): (usize, &mesh::RevokedIdentity)| {
        let mesh::RevokedIdentity { identity, until, revocation } = revoked;
        let identity: Identity =
            identity.parse().map_err(|error| Wrong::new(format!("identities[{index}].identity"), format!("{error}")))?;
        Ok((identity, sentence(until.as_ref(), revocation)))
    };
    raw.iter().enumerate().map(read).collect()
}

fn revoked_serials(raw: &[mesh::RevokedSerial]) -> Result<BTreeMap<String, Revocation>, Wrong> {
    bounded(raw.len(), REVOKED_MAX, "serials")?;
    let read = |(index, revoked): (usize, &mesh::RevokedSerial)| {
        let mesh::RevokedSerial { serial, until, revocation } = revoked;
        let digits = serial.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !digits || serial.len() > SERIAL_DIGITS_MAX || serial != proto::identity::serial(serial) {
            return Err(Wrong::new(format!("serials[{index}].serial"), "is not lower-case hex without leading zeros"));
        }
        Ok((serial.clone(), sentence(until.as_ref(), revocation)))
    };
    raw.iter().enumerate().map(read).collect()
}

/// Until the end of the second in which it ends.
fn sentence(until: Option<&Timestamp>, object: &str) -> Revocation {
    let secs = |until: &Timestamp| u64::try_from(until.seconds.saturating_add(i64::from(until.nanos > 0))).unwrap_or(0);
    Revocation { until_secs: until.map(secs), object: object.into() }
}

fn bounded(count: usize, max: usize, field: &str) -> Result<(), Wrong> {
    if count > max { Err(Wrong::new(field, format!("holds {count} entries, at most {max} are taken"))) } else { Ok(()) }
}

/// Roots, each of them one that chains can end in.
fn anchors(raw: &[Bytes], field: &str) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    if raw.len() > ROOTS_MAX {
        return Err(Wrong::new(field, format!("holds {} roots, at most {ROOTS_MAX} are taken", raw.len())));
    }
    let anchor = |(index, der): (usize, &Bytes)| {
        let wrong = |why: String| Wrong::new(format!("{field}[{index}]"), why);
        if der.len() > ROOT_BYTES_MAX {
            return Err(wrong(format!("has {} bytes, at most {ROOT_BYTES_MAX} are taken", der.len())));
        }
        let root = CertificateDer::from(der.to_vec());
        webpki::anchor_from_trusted_cert(&root).map_err(|error| wrong(format!("is no certificate: {error}")))?;
        Ok(root)
    };
    raw.iter().enumerate().map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use prost::Name as _;

    use super::*;
    use crate::fixture;
    use crate::model::Snapshot;
    use crate::model::build::Parts;

    #[test]
    fn a_bad_trust_is_refused_alone_and_the_last_good_one_stays() {
        // Aim: bounds, malformed roots, an issuing root that is none of them and another name are each refused by field; what was staged
        // before goes live all the same.
        let good = fixture::trust();
        let mut parts = Parts::default();
        fixture::put(&mut parts, "trust", &good).unwrap();
        let many = vec![good.roots[0].clone(); ROOTS_MAX + 1];
        let no_der = vec![good.roots[0].clone(), Bytes::from_static(b"-----BEGIN CERTIFICATE-----")];
        let long = vec![good.roots[0].clone(), Bytes::from(vec![0x30; ROOT_BYTES_MAX + 1])];
        let partner = mesh::FederatedBundle { trust_domain: "partner.example".into(), roots: good.roots.clone() };
        let federated = |bundles: &[mesh::FederatedBundle]| mesh::Trust { federated: bundles.to_vec(), ..good.clone() };
        let no_domain = mesh::FederatedBundle { trust_domain: "Partner".into(), ..partner.clone() };
        let no_roots = mesh::FederatedBundle { roots: Vec::new(), ..partner.clone() };
        let identity = |text: &str| mesh::RevokedIdentity { identity: text.into(), ..Default::default() };
        let serial = |text: &str| mesh::RevokedSerial { serial: text.into(), ..Default::default() };
        let identities = |texts: &[&str]| mesh::Trust { identities: texts.iter().map(|text| identity(text)).collect(), ..good.clone() };
        let serials = |texts: &[&str]| mesh::Trust { serials: texts.iter().map(|text| serial(text)).collect(), ..good.clone() };
        for (name, bad, why) in [
            ("trust", mesh::Trust { roots: Vec::new(), ..good.clone() }, "roots: is empty"),
            ("trust", mesh::Trust { roots: many, ..good.clone() }, "at most 64"),
            ("trust", mesh::Trust { roots: no_der, ..good.clone() }, "roots[1]: is no certificate"),
            ("trust", mesh::Trust { roots: long, ..good.clone() }, "roots[1]: has 65537 bytes"),
            ("trust", mesh::Trust { issuing_root: Bytes::from_static(b"x"), ..good.clone() }, "32 bytes"),
            ("trust", mesh::Trust { issuing_root: Bytes::from(vec![7; 32]), ..good.clone() }, "none of the roots"),
            ("trust", federated(&[no_domain]), "federated[0].trust_domain"),
            ("trust", federated(&[partner.clone(), no_roots]), "federated[1].roots: is empty"),
            ("trust", federated(&[partner.clone(), partner.clone()]), "federated[1].trust_domain: `partner.example` stands twice"),
            ("trust", federated(&vec![partner.clone(); FEDERATED_MAX + 1]), "at most 64"),
            ("trust", identities(&["spiffe://cluster.local/ns/shop/sa/*"]), "identities[0].identity"),
            ("trust", identities(&vec!["spiffe://cluster.local/ns/shop/sa/a"; REVOKED_MAX + 1]), "at most 10000"),
            ("trust", serials(&["7d", "7D"]), "serials[1].serial: is not lower-case hex"),
            ("trust", serials(&["07d"]), "without leading zeros"),
            ("other", good.clone(), "the only resource"),
        ] {
            let error = fixture::put(&mut parts, name, &bad).unwrap_err().to_string();
            assert!(error.contains(why), "wanted `{why}` in `{error}`");
        }
        let live = parts.assemble(1, &Snapshot::default()).trust.unwrap();
        assert_eq!(live.roots.iter().map(|root| root.to_vec()).collect::<Vec<_>>(), good.roots);
        assert_eq!((live.issuing_root, live.issuing()), (sha256(&good.roots[0]), &live.roots[0]));
        let url = mesh::Trust::type_url();
        parts.remove(&url, "trust");
        assert!(parts.assemble(2, &Snapshot::default()).trust.is_none());
    }

    #[test]
    fn who_is_revoked_is_found_until_the_end() {
        // Aim: identities and serial numbers in any spelling, each until its own end, by the clock that asks.
        let until = Some(Timestamp { seconds: 99, nanos: 1 });
        let identity = mesh::RevokedIdentity { identity: "spiffe://cluster.local/ns/shop/sa/a".into(), until, revocation: "r/a".into() };
        let serial = mesh::RevokedSerial { serial: "7d".into(), until: None, revocation: "r/b".into() };
        let trust = compile("trust", &mesh::Trust { identities: vec![identity], serials: vec![serial], ..fixture::trust() }).unwrap();
        let find = |account: &str, serial: &str, now| {
            let identity = Identity::new("cluster.local", "shop", account).unwrap();
            trust.revoked.find(&identity, serial, now).map(|revocation| revocation.object.to_string())
        };
        assert_eq!((find("a", "1", 99).as_deref(), find("a", "1", 100), find("b", "1", 99)), (Some("r/a"), None, None));
        assert_eq!((find("b", "007d", u64::MAX).as_deref(), find("b", "7e", 0)), (Some("r/b"), None));
    }
}
