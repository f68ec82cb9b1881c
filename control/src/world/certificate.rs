//! Certificates that an edge shows: what a Secret holds, judged. Pure: bytes in, a certificate or a fault out. What is not judged good here
//! is never sent to a proxy.

use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::content::{Contents, KeptBytes};
use super::staple::Staple;

/// Entries of a Secret, as `kubernetes.io/tls` names them.
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
/// An OCSP response, DER, where whoever fills the Secret adds one.
const STAPLES: [&str; 2] = ["tls.ocsp-staple", "tls.ocsp"];
/// Certificates of one chain, at most: no client follows more.
const CHAIN_MAX: usize = 16;
/// Bytes of a key, of an OCSP response, at most: proxies take no more.
const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Certificates of authorities for one thing, at most: proxies take no more.
pub const CAS_MAX: usize = 1024;
/// The world is told the time once in so long (`app::dates`): what begins within that has begun. Many certificates begin when they are made.
const CLOCK_STEP_MS: i64 = 60 * 1000;
/// So long before its end it is worth a word.
pub const ENDING_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// A certificate with its key, found good.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The chain as found, PEM.
    pub chain: KeptBytes,
    /// The private key as found, PEM.
    pub key: KeptBytes,
    /// The OCSP response beside it.
    pub staple: Option<Staple>,
    /// DNS names and addresses that it is for.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Serial number, hex.
    pub serial: String,
    /// First moment, milliseconds since 1970.
    pub begins_ms: i64,
    /// Last moment, milliseconds since 1970.
    pub ends_ms: i64,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate {} for {:?}", self.serial, self.names)
    }
}

/// How a certificate stands by its dates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Not yet.
    Early,
    /// Good.
    Good,
    /// Good for less than [`ENDING_MS`].
    Ending,
    /// No more.
    Ended,
}

/// Why a Secret holds no certificate that can be shown. Says nothing of what it holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// There is no such Secret.
    #[error("there is no such Secret")]
    NoSecret,
    /// An entry is missing.
    #[error("it has no entry `{0}`")]
    NoEntry(&'static str),
    /// An entry is no PEM of what it should be.
    #[error("its entry `{0}` holds no {1} as PEM")]
    NoPem(&'static str, &'static str),
    /// The chain is longer than anybody follows.
    #[error("its entry `tls.crt` holds more than {CHAIN_MAX} certificates")]
    TooLong,
    /// An entry is larger than any of its kind.
    #[error("its entry `{0}` has more than {ENTRY_BYTES_MAX} bytes")]
    TooLarge(&'static str),
    /// A certificate does not parse.
    #[error("certificate {0} of its entry `tls.crt` is none")]
    NoCertificate(usize),
    /// A key that TLS cannot sign with.
    #[error("its key is of a kind or size that this version cannot use: RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) or Ed25519")]
    Key,
    /// They do not belong together.
    #[error("its key is not that of its certificate")]
    Mismatch,
}

/// Judges what a Secret holds.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn judge(contents: &Contents) -> Result<Certificate, CertificateFault> {
    let entry = |name: &'static str| contents.entry(name).ok_or(CertificateFault::NoEntry(name));
    let (chain, key) = (entry(CHAIN)?, entry(KEY)?);
    let staple = STAPLES.iter().find_map(|name| Some((*name, contents.entry(name)?)));
    for (name, bytes) in staple.into_iter().chain([(KEY, key)]) {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(CertificateFault::TooLarge(name));
        }
    }
    // Between its certificates may stand what somebody says of them, which is text.
    std::str::from_utf8(chain).map_err(|_| CertificateFault::NoPem(CHAIN, "certificate"))?;
    let no_chain = |_: pem::Error| CertificateFault::NoPem(CHAIN, "certificate");
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain).take(CHAIN_MAX + 1).collect::<Result<_, _>>().map_err(no_chain)?;
    if certificates.len() > CHAIN_MAX {
        return Err(CertificateFault::TooLong);
    }
    let parsed = certificates.iter().enumerate().map(|(place, der)| {
        let parsed = X509Certificate::from_der(der);
        parsed.ok().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed).ok_or(CertificateFault::NoCertificate(place + 1))
    });
    let parsed: Vec<X509Certificate<'_>> = parsed.collect::<Result<_, _>>()?;
    let leaf = parsed.first().ok_or(CertificateFault::NoPem(CHAIN, "certificate"))?;
    let private = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateFault::NoPem(KEY, "private key"))?;
    let private = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).map_err(|_| CertificateFault::Key)?;
    CertifiedKey::new(certificates.clone(), Arc::clone(&private)).keys_match().map_err(|_| CertificateFault::Mismatch)?;
    let moment = |time: &x509_parser::time::ASN1Time| time.timestamp().saturating_mul(1000);
    let issuer = parsed.get(1).filter(|issuer| issuer.subject() == leaf.issuer());
    Ok(Certificate {
        chain: chain.clone(),
        key: key.clone(),
        staple: staple.map(|(entry, bytes)| Staple::read(entry, bytes, (leaf.raw_serial(), issuer))),
        names: names(leaf),
        issuer: leaf.issuer().to_string(),
        serial: leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        begins_ms: moment(&leaf.validity().not_before),
        ends_ms: moment(&leaf.validity().not_after),
    })
}

fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_lowercase()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

impl Certificate {
    /// The same at that moment, where its OCSP response begins or ends by then.
    pub(super) fn at(&self, now_ms: i64) -> Option<Self> {
        let staple = self.staple.as_ref()?.at(now_ms, CLOCK_STEP_MS)?;
        Some(Self { staple: Some(staple), ..self.clone() })
    }

    /// The OCSP response that is stapled.
    pub fn stapled(&self) -> Option<&KeptBytes> {
        self.staple.as_ref()?.shown()
    }

    /// Why the OCSP response beside it is not.
    pub fn staple_refused(&self) -> Option<String> {
        self.staple.as_ref()?.refused()
    }

    /// How it stands.
    pub fn validity(&self, now_ms: i64) -> Validity {
        if now_ms.saturating_add(CLOCK_STEP_MS) < self.begins_ms {
            Validity::Early
        } else if now_ms > self.ends_ms {
            Validity::Ended
        } else if self.ends_ms - now_ms < ENDING_MS {
            Validity::Ending
        } else {
            Validity::Good
        }
    }

    /// Whether it is for every host of a listener, as clients see it: a wildcard stands for one label (RFC 9525, section 6.3).
    pub fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| name == host || name.strip_prefix('*').is_some_and(|suffix| one_label(host, suffix)))
    }

    /// Whether some host is one of both's.
    pub fn meets(&self, other: &Self) -> bool {
        self.names.iter().any(|name| other.covers(name)) || other.names.iter().any(|name| self.covers(name))
    }
}

fn one_label(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix).is_some_and(|label| !label.is_empty() && !label.contains('.'))
}

/// How many certificates stand in a CA bundle; `None`: something in it is none, or nothing is.
pub fn cas(bundle: &[u8]) -> Option<usize> {
    std::str::from_utf8(bundle).ok()?;
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bundle).collect::<Result<_, _>>().ok()?;
    let good = |der: &CertificateDer<'_>| X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty());
    (!found.is_empty() && found.iter().all(good)).then_some(found.len())
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
