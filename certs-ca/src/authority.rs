//! Signing, pure: keys, time and serial numbers come in as values.

use std::sync::Arc;
use std::time::Duration;

use proto::identity::{APPLICATION_UNIT, Identity, POD_ATTRIBUTE};
use rcgen::string::PrintableString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::csr::Csr;

/// Clocks differ: a certificate is valid from this long before it was made, or a tenth of a short life, so that "two thirds of its
/// life" stays what it says.
pub const BACKDATE: Duration = Duration::from_secs(60);
/// No leaf is shorter: a proxy must have time to fetch the next one.
pub const LEAF_LIFE_MIN: Duration = Duration::from_secs(10);
/// No leaf is longer, whatever `Mesh` says.
pub const LEAF_LIFE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// Former roots that are remembered, with the way to each; a rotation beyond it forgets the oldest.
pub const FORMER_MAX: usize = 3;
const ROOT_NAME: &str = "Meshwright root";
/// Certificates of authorities below a root: its own intermediate, and as many cross certificates as are remembered.
const ROOT_PATH_LENGTH: u8 = 1 + FORMER_MAX as u8;
/// Bytes of a serial number; RFC 5280 section 4.1.2.2 allows 20.
pub const SERIAL_BYTES: usize = 16;

/// What a signature needs beside the request.
#[derive(Clone)]
pub struct Issuing {
    /// The root that everybody trusts.
    pub root_der: CertificateDer<'static>,
    /// The intermediate that signs leaves.
    pub certificate_der: CertificateDer<'static>,
    /// What goes out with each leaf beside it: further intermediates, or the way to a former root.
    pub above: Vec<CertificateDer<'static>>,
    /// Its end; no leaf outlives it.
    pub not_after: OffsetDateTime,
    /// Its start.
    pub not_before: OffsetDateTime,
    pub(crate) issuer: Arc<Issuer<'static, KeyPair>>,
}

/// A signed leaf.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Leaf first, then the intermediate, then what is above that.
    pub chain: Vec<CertificateDer<'static>>,
    /// Start, backdated (see [`BACKDATE`]).
    pub not_before: OffsetDateTime,
    /// End.
    pub not_after: OffsetDateTime,
    /// Lower-case hex.
    pub serial: String,
}

/// Signing failed; only a library fault or an expired issuer can cause it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The issuer has too little life left for a leaf.
    #[error("the issuing certificate ends at {0}, which is too soon for a leaf; run `meshwright ca rotate-root`")]
    IssuerExpired(OffsetDateTime),
    /// From the signing library.
    #[error("signing failed: {0}")]
    Library(String),
}

impl From<rcgen::Error> for SignError {
    fn from(error: rcgen::Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// A self-signed root for `key`.
///
/// # Errors
/// [`SignError::Library`].
pub fn root(key: &KeyPair, now: OffsetDateTime, life: Duration, serial: [u8; SERIAL_BYTES]) -> Result<CertificateDer<'static>, SignError> {
    let mut params = authority_params(ROOT_NAME, now, now + life, serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(ROOT_PATH_LENGTH));
    Ok(params.self_signed(key)?.der().clone())
}

/// What a cross certificate stands for: the next root's key, the serial number that its name is made of, and its end.
pub type NextRoot<'k> = (&'k KeyPair, [u8; SERIAL_BYTES], OffsetDateTime);

/// A cross certificate begins so much before the former root. That one may have been made by a clock that was ahead, which counts for no
/// verifier that takes roots as they are; of a certificate below it every verifier looks at the dates.
const CROSS_BACKDATE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The next root's subject and key, signed by the root before it: who knows only that one finds its way to the new one. It begins a year
/// before the former one, so that no clock counts, and ends with the first of the two.
///
/// # Errors
/// [`SignError::Library`].
pub fn cross(
    next: NextRoot<'_>,
    former: (&CertificateDer<'static>, KeyPair, (OffsetDateTime, OffsetDateTime)),
    serial: [u8; SERIAL_BYTES],
) -> Result<CertificateDer<'static>, SignError> {
    let ((next_key, next_serial, next_end), (former_der, former_key, (former_begin, former_end))) = (next, former);
    let issuer = Issuer::from_ca_cert_der(former_der, former_key)?;
    let mut params = authority_params(ROOT_NAME, former_begin, next_end.min(former_end), next_serial);
    params.not_before = former_begin - CROSS_BACKDATE;
    params.serial_number = Some(SerialNumber::from_slice(&positive(serial)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(ROOT_PATH_LENGTH));
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(next_key, &issuer)?.der().clone())
}

/// An intermediate for `key`, signed by the root, never outliving it.
///
/// # Errors
/// [`SignError::Library`].
pub fn intermediate(
    key: &KeyPair,
    root: (&CertificateDer<'static>, KeyPair, OffsetDateTime),
    now: OffsetDateTime,
    life: Duration,
    serial: [u8; SERIAL_BYTES],
) -> Result<CertificateDer<'static>, SignError> {
    let (root_der, root_key, root_end) = root;
    let issuer = Issuer::from_ca_cert_der(root_der, root_key)?;
    let mut params = authority_params("Meshwright issuing", now, root_end.min(now + life), serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, &issuer)?.der().clone())
}

fn authority_params(name: &str, now: OffsetDateTime, not_after: OffsetDateTime, serial: [u8; SERIAL_BYTES]) -> CertificateParams {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::OrganizationName, "Meshwright");
    distinguished_name.push(DnType::CommonName, format!("{name} {}", &hex(&serial)[..8]));
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name;
    params.not_before = now - BACKDATE;
    params.not_after = not_after;
    params.serial_number = Some(SerialNumber::from_slice(&positive(serial)));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// Who a leaf is for, beside its identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bearer<'a> {
    /// The application beside a proxy.
    pub for_application: bool,
    /// Unique id of its pod; empty: none is known.
    pub pod_uid: &'a str,
}

/// Signs a leaf for an identity that the caller has attested; `csr` gives key and common name only. One for the application beside a proxy
/// says so ([`APPLICATION_UNIT`]), and one for a pod says which ([`POD_ATTRIBUTE`]).
///
/// The leaf lives `life`, kept between [`LEAF_LIFE_MIN`] and [`LEAF_LIFE_MAX`] and never beyond the issuer.
///
/// # Errors
/// See [`SignError`].
pub fn sign(
    csr: &Csr,
    identity: &Identity,
    issuing: &Issuing,
    life: Duration,
    now: OffsetDateTime,
    serial: [u8; SERIAL_BYTES],
    bearer: Bearer<'_>,
) -> Result<Leaf, SignError> {
    let mut subject = named(&csr.workload);
    if bearer.for_application {
        subject.push(DnType::OrganizationalUnitName, APPLICATION_UNIT);
    }
    if !bearer.pod_uid.is_empty() {
        let uid = PrintableString::try_from(bearer.pod_uid)?;
        subject.push(DnType::CustomDnType(POD_ATTRIBUTE.to_vec()), DnValue::PrintableString(uid));
    }
    leaf(&csr.public_key_der, subject, vec![uri(&identity.to_string())?], issuing, life, now, serial)
}

/// Signs the control plane's own leaf: identity, DNS names and addresses.
///
/// # Errors
/// See [`SignError`].
pub fn sign_server(
    key: &KeyPair,
    names: Vec<SanType>,
    issuing: &Issuing,
    life: Duration,
    now: OffsetDateTime,
    serial: [u8; SERIAL_BYTES],
) -> Result<Leaf, SignError> {
    leaf(&rcgen::PublicKeyData::subject_public_key_info(key), named("control"), names, issuing, life, now, serial)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    subject
}

fn leaf(
    public_key_der: &[u8],
    subject: DistinguishedName,
    subject_alt_names: Vec<SanType>,
    issuing: &Issuing,
    life: Duration,
    now: OffsetDateTime,
    serial: [u8; SERIAL_BYTES],
) -> Result<Leaf, SignError> {
    let not_after = issuing.not_after.min(now + life.clamp(LEAF_LIFE_MIN, LEAF_LIFE_MAX));
    if not_after < now + LEAF_LIFE_MIN {
        return Err(SignError::IssuerExpired(issuing.not_after));
    }
    let not_before = now - BACKDATE.min(Duration::try_from(not_after - now).unwrap_or_default() / 10);
    let serial = positive(serial);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.subject_alt_names = subject_alt_names;
    params.not_before = not_before;
    params.not_after = not_after;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&SubjectPublicKeyInfo::from_der(public_key_der)?, &issuing.issuer)?;
    let chain = [certificate.der(), &issuing.certificate_der].into_iter().chain(&issuing.above).cloned().collect();
    Ok(Leaf { chain, not_before, not_after, serial: hex(&serial) })
}

/// A URI name.
///
/// # Errors
/// [`SignError::Library`] when it is not ASCII.
pub fn uri(text: &str) -> Result<SanType, SignError> {
    Ok(SanType::URI(text.try_into()?))
}

/// Serial numbers are positive (RFC 5280) and keep their length: first bit 0, next one 1.
fn positive(mut serial: [u8; SERIAL_BYTES]) -> [u8; SERIAL_BYTES] {
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ECDSA_P256_SHA256;
    use rustls_pki_types::UnixTime;
    use x509_parser::prelude::*;

    use super::*;
    use crate::csr::tests::request;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn issuing(now: OffsetDateTime, life: Duration) -> Issuing {
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let root_der = root(&root_key, now, DAY * 3650, [1; 16]).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate_der = intermediate(&key, (&root_der, root_key, now + DAY * 3650), now, life, [2; 16]).unwrap();
        let issuer = Arc::new(Issuer::from_ca_cert_der(&certificate_der, key).unwrap());
        Issuing { root_der, certificate_der, above: Vec::new(), not_after: now + life, not_before: now, issuer }
    }

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    #[test]
    fn a_leaf_verifies_up_to_the_root_for_its_whole_life_and_no_longer() {
        // Aim: the verifier every proxy uses accepts the chain, within its dates only, for both usages.
        let now = at(1_800_000_000);
        let issuing = issuing(now, DAY * 90);
        let csr = Csr::parse(&request(&["spiffe://cluster.local/ns/shop/sa/catalog"], "catalog")).unwrap();
        let leaf = sign(&csr, &csr.identity, &issuing, Duration::from_secs(60), now, [0xff; 16], Bearer::default()).unwrap();
        let anchor = webpki::anchor_from_trusted_cert(&issuing.root_der).unwrap();
        let end = webpki::EndEntityCert::try_from(&leaf.chain[0]).unwrap();
        let check = |second: i64, usage: webpki::KeyUsage| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(second).unwrap()));
            let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
            end.verify_for_usage(algorithms.all, std::slice::from_ref(&anchor), &leaf.chain[1..], time, usage, None, None).is_ok()
        };
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            assert!(check(1_800_000_000 - 5, usage));
            assert!(check(1_800_000_000 + 59, usage));
            assert!(!check(1_800_000_000 + 61, usage));
            assert!(!check(1_800_000_000 - 7, usage));
        }
    }

    #[test]
    fn a_leaf_says_who_and_which_workload_and_is_no_authority() {
        // Aim: one URI name, the workload as common name, a positive serial, CA:FALSE.
        let now = at(1_800_000_000);
        let issuing = issuing(now, DAY * 90);
        let csr = Csr::parse(&request(&["spiffe://cluster.local/ns/shop/sa/catalog"], "catalog-v2")).unwrap();
        let leaf = sign(&csr, &csr.identity, &issuing, DAY, now, [0xff; 16], Bearer::default()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&leaf.chain[0]).unwrap();
        assert_eq!(parsed.subject().iter_common_name().next().unwrap().as_str().unwrap(), "catalog-v2");
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.as_slice(), [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/catalog")]);
        assert!(!parsed.is_ca());
        assert_eq!(leaf.serial, hex(&[&[0x7f], &[0xff; 15][..]].concat()));
        assert_eq!(parsed.raw_serial(), [&[0x7f], &[0xff; 15][..]].concat());
    }

    #[test]
    fn no_leaf_outlives_its_issuer_or_the_caps() {
        // Aim: asked-for lives are held between the caps and the issuer's end; a dying issuer signs nothing.
        let now = at(1_800_000_000);
        let csr = Csr::parse(&request(&["spiffe://cluster.local/ns/shop/sa/catalog"], "catalog")).unwrap();
        for (issuer_life, asked, granted) in
            [(DAY * 90, DAY, DAY), (DAY, DAY * 30, DAY), (DAY * 900, DAY * 500, LEAF_LIFE_MAX), (DAY, Duration::ZERO, LEAF_LIFE_MIN)]
        {
            let leaf = sign(&csr, &csr.identity, &issuing(now, issuer_life), asked, now, [3; 16], Bearer::default()).unwrap();
            assert_eq!(leaf.not_after, now + granted);
        }
        let dying = issuing(now - DAY, DAY);
        assert!(matches!(sign(&csr, &csr.identity, &dying, DAY, now, [3; 16], Bearer::default()), Err(SignError::IssuerExpired(_))));
    }
}
