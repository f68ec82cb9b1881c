//! The resource `trust`. A fault in it refuses the whole of it: half a trust would be another one.

use bytes::Bytes;
use proto::mesh;
use rustls_pki_types::CertificateDer;

use crate::model::{Trust, sha256};
use crate::rejected::{Wrong, refuse};

/// Most roots: a rotation needs two, a move to another authority a few more.
const ROOTS_MAX: usize = 64;
/// Largest root certificate, in bytes of DER.
const ROOT_BYTES_MAX: usize = 64 << 10;

pub(super) fn compile(name: &str, raw: &mesh::Trust) -> Result<Trust, Wrong> {
    if name != proto::names::TRUST {
        return Err(Wrong::new("", format!("the only resource of this type is `{}`", proto::names::TRUST)));
    }
    let mesh::Trust { roots, issuing_root, federated, identities, serials } = raw;
    refuse(!federated.is_empty(), "federated")?;
    refuse(!identities.is_empty(), "identities")?;
    refuse(!serials.is_empty(), "serials")?;
    let roots = anchors(roots, "roots")?;
    if roots.is_empty() {
        return Err(Wrong::new("roots", "is empty: without a root nobody could be believed"));
    }
    let issuing_root = issuing_root.as_ref().try_into().map_err(|_| Wrong::new("issuing_root", "is not a SHA-256 of 32 bytes"))?;
    let issuing_at = roots.iter().position(|root| sha256(root) == issuing_root);
    let issuing_at = issuing_at.ok_or_else(|| Wrong::new("issuing_root", "is none of the roots"))?;
    Ok(Trust { roots, issuing_root, issuing_at })
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
        let federated = vec![mesh::FederatedBundle::default()];
        for (name, bad, why) in [
            ("trust", mesh::Trust { roots: Vec::new(), ..good.clone() }, "roots: is empty"),
            ("trust", mesh::Trust { roots: many, ..good.clone() }, "at most 64"),
            ("trust", mesh::Trust { roots: no_der, ..good.clone() }, "roots[1]: is no certificate"),
            ("trust", mesh::Trust { roots: long, ..good.clone() }, "roots[1]: has 65537 bytes"),
            ("trust", mesh::Trust { issuing_root: Bytes::from_static(b"x"), ..good.clone() }, "32 bytes"),
            ("trust", mesh::Trust { issuing_root: Bytes::from(vec![7; 32]), ..good.clone() }, "none of the roots"),
            ("trust", mesh::Trust { federated, ..good.clone() }, "federated"),
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
}
