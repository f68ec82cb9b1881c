//! Fresh certificates for proxies that read them from files: a P-256 authority, one leaf per side.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

/// Sides that get a leaf; its DNS name is `SIDE.bench`.
const SIDES: [&str; 2] = ["client", "server"];
/// How long they hold, days before and after now.
const DAYS: i64 = 2;

/// Writes `ca.pem`, and per side `SIDE.pem`, `SIDE-key.pem` and `SIDE-both.pem`, into `folder`. Readable by all: proxies drop rights.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn write(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let ca = CertifiedIssuer::self_signed(authority(), KeyPair::generate().context("no key for the authority")?)?;
    put(folder, "ca.pem", &ca.pem())?;
    for side in SIDES {
        let key = KeyPair::generate().with_context(|| format!("no key for the {side}"))?;
        let leaf = leaf(side)?.signed_by(&key, &ca).with_context(|| format!("cannot sign the {side}'s certificate"))?;
        put(folder, &format!("{side}.pem"), &leaf.pem())?;
        put(folder, &format!("{side}-key.pem"), &key.serialize_pem())?;
        put(folder, &format!("{side}-both.pem"), &(leaf.pem() + &key.serialize_pem()))?;
    }
    Ok(())
}

fn put(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    let written = fs::write(&path, text).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn authority() -> CertificateParams {
    let mut params = dated();
    params.distinguished_name.push(DnType::CommonName, "bench authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(side: &str) -> anyhow::Result<CertificateParams> {
    let mut params = dated();
    params.distinguished_name.push(DnType::CommonName, side);
    params.subject_alt_names = CertificateParams::new(vec![format!("{side}.bench")])?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn dated() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(DAYS);
    params.not_after = now + time::Duration::days(DAYS);
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: each side's leaf carries its name and ends in the authority, and its key fits.
    #[test]
    fn leaves_end_in_the_authority() {
        use x509_parser::prelude::*;
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let der = |name: &str| parse_x509_pem(&fs::read(folder.path().join(name)).unwrap()).unwrap().1.contents;
        let (ca, leaf) = (der("ca.pem"), der("server.pem"));
        let (ca, leaf) = (parse_x509_certificate(&ca).unwrap().1, parse_x509_certificate(&leaf).unwrap().1);
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(format!("{:?}", names.value.general_names), "[DNSName(\"server.bench\")]");
        let both = fs::read_to_string(folder.path().join("client-both.pem")).unwrap();
        assert!(KeyPair::from_pem(&fs::read_to_string(folder.path().join("client-key.pem")).unwrap()).is_ok());
        assert!(both.contains("BEGIN CERTIFICATE") && both.contains("PRIVATE KEY"));
    }
}
