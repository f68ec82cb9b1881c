//! An authority of the user's own, by files: an intermediate with its key, below a root that Meshwright never has the key of. Everything
//! is judged when it is read, so that no proxy is handed what it could not use.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::authority::{self, Issuing, LEAF_LIFE_MIN};
use crate::own::dates;
use crate::roots::{Phase, RootSet};

/// A larger file is none of certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most certificates in one file.
const CERTIFICATES_MAX: usize = 16;
/// Context tag of a URI among general names; x509-parser gives one that is not UTF-8 as invalid, without an error.
const URI_TAG: x509_parser::der_parser::asn1_rs::Tag = x509_parser::der_parser::asn1_rs::Tag(6);

/// Where the authority's certificate, its key and the roots lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalFiles {
    /// PEM: the certificate that signs, then those above it, without the root.
    pub certificate: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
    /// PEM: the root that it ends in, and any others that are to be believed.
    pub roots: PathBuf,
}

/// Why files are no authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExternalError {
    /// A file cannot be read.
    #[error("cannot read {flag} {path}: {cause}")]
    File {
        /// Which one.
        flag: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Of the system.
        cause: String,
    },
    /// Others may read the key.
    #[error("--ca-key {path} has mode {mode:04o}, others may read it; check who did, then `chmod 600 {path}`")]
    Rights {
        /// The key's file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// What a file holds is of no use.
    #[error("{flag} {path}: {why}")]
    Content {
        /// Which one.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// New files that the mesh could not follow.
    #[error("{0}")]
    Leap(&'static str),
}

/// An authority that was read from files.
pub(crate) struct External {
    files: ExternalFiles,
    /// Of all three files' content: whether they have changed.
    content: Vec<u8>,
    roots: RootSet,
}

/// What the three files hold.
struct Texts {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    roots: Vec<u8>,
}

impl External {
    /// Reads and judges the files.
    ///
    /// # Errors
    /// Names the file and the remedy.
    pub(crate) fn load(files: &ExternalFiles, now: OffsetDateTime) -> Result<(Self, Issuing), ExternalError> {
        let texts = read_all(files)?;
        let content = texts.digest();
        let (issuing, roots) = judge(files, &texts, now)?;
        Ok((Self { files: files.clone(), content, roots }, issuing))
    }

    /// The roots as they were read.
    pub(crate) fn set(&self) -> RootSet {
        self.roots.clone()
    }

    /// Reads the files again. `None`: they are as they were.
    ///
    /// # Errors
    /// As [`External::load`], and where the mesh could not follow: then nothing changes.
    pub(crate) fn reload(&self, now: OffsetDateTime) -> Result<Option<(Self, Issuing)>, ExternalError> {
        let texts = read_all(&self.files)?;
        let content = texts.digest();
        if content == self.content {
            return Ok(None);
        }
        let (issuing, roots) = judge(&self.files, &texts, now)?;
        follows(&self.roots, &roots)?;
        Ok(Some((Self { files: self.files.clone(), content, roots }, issuing)))
    }
}

impl Texts {
    fn digest(&self) -> Vec<u8> {
        let parts = [&self.certificate, &*self.key, &self.roots].map(|text| digest(&SHA256, text));
        parts.iter().flat_map(|part| part.as_ref().to_vec()).collect()
    }
}

/// A root is believed before it issues, and issues no more before it is dropped.
fn follows(before: &RootSet, after: &RootSet) -> Result<(), ExternalError> {
    if !before.der().contains(after.issuing()) {
        return Err(ExternalError::Leap(
            "--ca-cert ends in a root that the mesh does not believe yet: put that root beside the former one in --ca-root first, wait until its epoch is live (`meshwright wait`), then exchange certificate and key",
        ));
    }
    if !after.der().contains(before.issuing()) {
        return Err(ExternalError::Leap(
            "--ca-root no longer holds the root that leaves were issued below until now: exchange certificate and key first, wait until every proxy has a leaf below the new root (`meshwright ca show`), then drop the former one",
        ));
    }
    Ok(())
}

/// How a kubelet mounts a Secret for a pod that is not root: the pod's own group reads it, nobody writes it.
const MOUNTED: u32 = 0o440;

fn read_all(files: &ExternalFiles) -> Result<Texts, ExternalError> {
    let (certificate, _) = read("--ca-cert", &files.certificate)?;
    let (key, mode) = read("--ca-key", &files.key)?;
    let key = Zeroizing::new(key);
    if mode & 0o077 != 0 && mode & 0o777 != MOUNTED {
        return Err(ExternalError::Rights { path: files.key.clone(), mode: mode & 0o7777 });
    }
    let (roots, _) = read("--ca-root", &files.roots)?;
    Ok(Texts { certificate, key, roots })
}

/// Content and mode of a file.
fn read(flag: &'static str, path: &Path) -> Result<(Vec<u8>, u32), ExternalError> {
    let failed = |error: std::io::Error| ExternalError::File { flag, path: path.to_owned(), cause: error.to_string() };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    Ok((text, mode))
}

fn judge(files: &ExternalFiles, texts: &Texts, now: OffsetDateTime) -> Result<(Issuing, RootSet), ExternalError> {
    let wrong = |flag, path: &Path, why: String| ExternalError::Content { flag, path: path.to_owned(), why };
    let of_certificate = |why| wrong("--ca-cert", &files.certificate, why);
    let chain = certificates(&texts.certificate).map_err(of_certificate)?;
    for certificate in &chain {
        authority_of(certificate, now).map_err(of_certificate)?;
    }
    let of_roots = |why| wrong("--ca-root", &files.roots, why);
    let roots = certificates(&texts.roots).map_err(of_roots)?;
    for root in &roots {
        authority_of(root, now).and_then(|()| self_consistent(root)).map_err(of_roots)?;
    }
    let key = key_of(&texts.key, &chain[0]).map_err(|why| wrong("--ca-key", &files.key, why))?;
    let issuer = Issuer::from_ca_cert_der(&chain[0], key).map_err(|error| of_certificate(format!("it signs nothing: {error}")))?;
    let root = ends_in(&chain, &issuer, &roots, now).map_err(of_certificate)?;
    let all = chain.iter().chain([root]).filter_map(dates);
    let (not_before, not_after) = all.fold((OffsetDateTime::UNIX_EPOCH, None), |(begin, end): (_, Option<OffsetDateTime>), (from, to)| {
        (from.max(begin), Some(end.map_or(to, |end| end.min(to))))
    });
    let mut chain = chain.into_iter();
    let (Some(certificate_der), Some(not_after)) = (chain.next(), not_after) else {
        return Err(wrong("--ca-cert", &files.certificate, "it holds no certificate with dates".to_owned()));
    };
    let set = RootSet::new(root.clone(), roots.iter().filter(|other| *other != root).cloned().collect(), Vec::new(), Phase::Steady);
    Ok((Issuing { root_der: root.clone(), certificate_der, above: chain.collect(), not_after, not_before, issuer: Arc::new(issuer) }, set))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        found.push(certificate.map_err(|error| format!("it is not PEM: {error}"))?);
        if found.len() > CERTIFICATES_MAX {
            return Err(format!("it holds more than {CERTIFICATES_MAX} certificates"));
        }
    }
    if found.is_empty() { Err("it holds no certificate in PEM".to_owned()) } else { Ok(found) }
}

/// Whether a certificate is an authority's that proxies can believe, now.
fn authority_of(der: &CertificateDer<'_>, now: OffsetDateTime) -> Result<(), String> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|error| format!("a certificate does not parse: {error}"))?;
    let subject = parsed.subject().to_string();
    if !parsed.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca) {
        return Err(format!(
            "`{subject}` is no certificate authority (CA:TRUE is missing); have an intermediate signed that may sign leaves"
        ));
    }
    if parsed.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(format!("`{subject}` may not sign certificates (its key usage has no keyCertSign)"));
    }
    let constraints = parsed.name_constraints().map_err(|error| format!("the name constraints of `{subject}` do not parse: {error}"))?;
    if let Some(constraints) = constraints {
        let subtrees = constraints.value.permitted_subtrees.iter().chain(&constraints.value.excluded_subtrees).flatten();
        let about_uris = |base: &GeneralName<'_>| match base {
            GeneralName::URI(_) => true,
            GeneralName::Invalid(tag, _) => *tag == URI_TAG,
            _ => false,
        };
        if subtrees.into_iter().any(|subtree| about_uris(&subtree.base)) {
            return Err(format!(
                "`{subject}` has name constraints on URIs, and proxies refuse every workload's certificate below such an authority, whatever the constraints permit (rustls-webpki does not evaluate them); have it signed without URI name constraints"
            ));
        }
    }
    let (begin, end) = (parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime());
    if end < now + LEAF_LIFE_MIN {
        return Err(format!("`{subject}` ended at {end}; renew it"));
    }
    if begin > now {
        return Err(format!("`{subject}` begins at {begin} only; compare the clocks, or wait"));
    }
    Ok(())
}

/// A root that names itself as its issuer is signed by itself.
fn self_consistent(root: &CertificateDer<'_>) -> Result<(), String> {
    let (_, parsed) = X509Certificate::from_der(root).map_err(|error| format!("a root does not parse: {error}"))?;
    if parsed.subject() == parsed.issuer() && parsed.verify_signature(None).is_err() {
        return Err(format!("`{}` names itself as its issuer and is not signed by its own key", parsed.subject()));
    }
    webpki::anchor_from_trusted_cert(root).map(|_| ()).map_err(|error| format!("`{}` is no root: {error}", parsed.subject()))
}

fn key_of(pem: &[u8], certificate: &CertificateDer<'_>) -> Result<KeyPair, String> {
    let text = std::str::from_utf8(pem).map_err(|_| "it is not PEM text".to_owned())?;
    let key = KeyPair::from_pem(text).map_err(|error| format!("it holds no private key that can be used: {error}"))?;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| format!("the certificate does not parse: {error}"))?;
    if *parsed.public_key().subject_public_key.data == *rcgen::PublicKeyData::der_bytes(&key) {
        return Ok(key);
    }
    Err("it is not the key of the first certificate in --ca-cert".to_owned())
}

/// The root that a leaf of this authority ends in, as every proxy will find it: by signing one and verifying it.
fn ends_in<'r>(
    chain: &[CertificateDer<'static>],
    issuer: &Issuer<'static, KeyPair>,
    roots: &'r [CertificateDer<'static>],
    now: OffsetDateTime,
) -> Result<&'r CertificateDer<'static>, String> {
    let sign = || -> Result<CertificateDer<'static>, authority::SignError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![authority::uri("spiffe://cluster.local/ns/a/sa/a")?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (now - Duration::from_secs(1), now + LEAF_LIFE_MIN);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(params.signed_by(&key, issuer)?.der().clone())
    };
    let leaf = sign().map_err(|error| error.to_string())?;
    let mut why = "there is no root".to_owned();
    for root in roots {
        match verify(&leaf, chain, root, now) {
            Ok(()) => return Ok(root),
            Err(error) => why = error.to_string(),
        }
    }
    Err(format!(
        "certificates signed by it verify against no root of --ca-root ({why}); give the intermediates between them in --ca-cert, too, or the right root"
    ))
}

/// As a proxy verifies.
pub(crate) fn verify(
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    now: OffsetDateTime,
) -> Result<(), webpki::Error> {
    let anchor = webpki::anchor_from_trusted_cert(root)?;
    let end = webpki::EndEntityCert::try_from(leaf)?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.unix_timestamp()).unwrap_or(0)));
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let usage = webpki::KeyUsage::server_auth();
    end.verify_for_usage(algorithms.all, std::slice::from_ref(&anchor), chain, at, usage, None, None).map(|_| ())
}

#[cfg(test)]
#[path = "external_tests.rs"]
mod tests;
