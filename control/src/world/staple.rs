//! OCSP responses beside certificates (RFC 6960), judged before a proxy staples one: a client that is shown garbage, or what was true last month,
//! refuses the connection, while one that is shown none asks elsewhere or goes on. Its signature is verified where the certificate's chain has the
//! issuer, and that one's algorithm is known here; what cannot be judged is for clients to judge.

use std::fmt;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::asn1_rs::{Any, BitString, Class, FromDer, GeneralizedTime, Tag};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::verify::verify_signature;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::content::KeptBytes;

/// `id-pkix-ocsp-basic`, 1.3.6.1.5.5.7.48.1.1: the one kind of response that anybody gives.
const BASIC: [u8; 9] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];

/// Certificates of responders that are looked at; there is one, usually.
const RESPONDERS_MAX: usize = 4;

/// From when, and until when where it says so, milliseconds since 1970.
type Span = (i64, Option<i64>);

/// An OCSP response that lies beside a certificate, and whether it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staple {
    /// The entry that holds it.
    entry: &'static str,
    der: KeptBytes,
    /// When it holds, by what it says of the certificate.
    said: Result<Span, StapleFault>,
    /// Why it is not shown, as of the moment that was told last.
    fault: Option<StapleFault>,
}

/// Why an OCSP response is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum StapleFault {
    /// It does not parse.
    Unreadable,
    /// It is an error instead of an answer.
    NoAnswer,
    /// It says nothing of this certificate.
    Foreign,
    /// Nobody who may has signed it.
    Unsigned,
    /// The certificate is revoked.
    Revoked,
    /// Whoever answered does not know the certificate.
    Unknown,
    /// Not yet: from when, milliseconds since 1970.
    Early(i64),
    /// No more: since when, milliseconds since 1970.
    Ended(i64),
}

impl fmt::Display for StapleFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = |ms: i64| {
            let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok();
            at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
        };
        match self {
            Self::Unreadable => f.write_str("is no OCSP response (DER)"),
            Self::NoAnswer => f.write_str("is an error of its authority, not an answer"),
            Self::Foreign => f.write_str("is for another certificate"),
            Self::Unsigned => f.write_str("is signed neither by the certificate's issuer nor by whom that one lets answer"),
            Self::Revoked => f.write_str("says that the certificate is revoked"),
            Self::Unknown => f.write_str("says that its authority does not know the certificate"),
            Self::Early(from) => write!(f, "holds from {}", moment(*from)),
            Self::Ended(until) => write!(f, "held until {}", moment(*until)),
        }
    }
}

impl Staple {
    /// Reads the response for the certificate of that serial number (the bytes of its INTEGER), of that issuer if it is known. Its dates are
    /// not looked at yet.
    pub(super) fn read(entry: &'static str, der: &KeptBytes, (serial, issuer): (&[u8], Option<&X509Certificate<'_>>)) -> Self {
        let forged = || issuer.is_some_and(|issuer| is_signed(der, issuer) == Some(false));
        let said = said_of(der, serial).and_then(|said| if forged() { Err(StapleFault::Unsigned) } else { Ok(said) });
        let fault = said.as_ref().err().cloned();
        Self { entry, der: der.clone(), said, fault }
    }

    /// The same at that moment (0: nobody has told the time), where that makes it another. `slack_ms`: what begins within that has begun.
    pub(super) fn at(&self, now_ms: i64, slack_ms: i64) -> Option<Self> {
        let fault = match &self.said {
            Err(fault) => Some(fault.clone()),
            Ok(_) if now_ms == 0 => None,
            Ok((from, _)) if now_ms.saturating_add(slack_ms) < *from => Some(StapleFault::Early(*from)),
            Ok((_, until)) => until.filter(|until| now_ms > *until).map(StapleFault::Ended),
        };
        (fault != self.fault).then(|| Self { fault, ..self.clone() })
    }

    /// What may be stapled.
    pub fn shown(&self) -> Option<&KeptBytes> {
        self.fault.is_none().then_some(&self.der)
    }

    /// Why nothing is.
    pub fn refused(&self) -> Option<String> {
        self.fault.as_ref().map(|fault| format!("its entry `{}` {fault}; the certificate is shown without", self.entry))
    }
}

/// The values of one level, one after the other.
struct Level<'a>(&'a [u8]);

impl<'a> Level<'a> {
    /// The content of the next value, if it is of that kind; else it stays.
    fn take(&mut self, class: Class, tag: Tag) -> Option<&'a [u8]> {
        let (rest, value) = Any::from_der(self.0).ok()?;
        if value.class() != class || value.tag() != tag {
            return None;
        }
        self.0 = rest;
        Some(value.data)
    }

    fn universal(&mut self, tag: Tag) -> Option<&'a [u8]> {
        self.take(Class::Universal, tag)
    }

    fn tagged(&mut self, number: u32) -> Option<&'a [u8]> {
        self.take(Class::ContextSpecific, Tag(number))
    }

    fn sequence(&mut self) -> Option<Self> {
        self.universal(Tag::Sequence).map(Self)
    }

    fn moment_ms(&mut self) -> Option<i64> {
        let at = GeneralizedTime::from_bytes(self.universal(Tag::GeneralizedTime)?).ok()?.utc_datetime().ok()?;
        Some(at.unix_timestamp().saturating_mul(1000))
    }
}

fn said_of(der: &[u8], serial: &[u8]) -> Result<Span, StapleFault> {
    let mut singles = responses(der)?;
    while !singles.0.is_empty() {
        let (known, said) = singles.sequence().and_then(single).ok_or(StapleFault::Unreadable)?;
        // An authority gives a number once, and two authorities' numbers do not meet: they are random (CA/Browser Forum, 7.1).
        if known == serial {
            return said;
        }
    }
    Err(StapleFault::Foreign)
}

/// The `BasicOCSPResponse` of a whole `OCSPResponse` (RFC 6960, section 4.2.1).
fn basic(der: &[u8]) -> Result<Level<'_>, StapleFault> {
    let mut whole = Level(der);
    let mut response = whole.sequence().filter(|_| whole.0.is_empty()).ok_or(StapleFault::Unreadable)?;
    if response.universal(Tag::Enumerated).ok_or(StapleFault::Unreadable)? != [0] {
        return Err(StapleFault::NoAnswer);
    }
    let mut inner = || {
        let mut bytes = Level(response.tagged(0)?).sequence()?;
        bytes.universal(Tag::Oid).filter(|kind| *kind == BASIC)?;
        Level(bytes.universal(Tag::OctetString)?).sequence()
    };
    inner().ok_or(StapleFault::Unreadable)
}

/// Whether the issuer has signed a response, or somebody whom it lets answer by a certificate for that (section 4.2.2.2). `None`: that cannot
/// be judged here.
fn is_signed(der: &[u8], issuer: &X509Certificate<'_>) -> Option<bool> {
    let basic = basic(der).ok()?;
    let (rest, _) = Any::from_der(basic.0).ok()?;
    let said = basic.0.get(..basic.0.len() - rest.len())?;
    let (rest, algorithm) = AlgorithmIdentifier::from_der(rest).ok()?;
    let (rest, signature) = BitString::from_der(rest).ok()?;
    let by = |key: &SubjectPublicKeyInfo<'_>| match verify_signature(key, &algorithm, &signature, said) {
        Ok(()) => Some(true),
        Err(X509Error::SignatureUnsupportedAlgorithm) => None,
        Err(_) => Some(false),
    };
    if by(issuer.public_key())? {
        return Some(true);
    }
    let mut behind = Level(rest);
    let mut listed = behind.tagged(0).and_then(|listed| Level(listed).sequence()).unwrap_or(Level(&[]));
    for _ in 0..RESPONDERS_MAX {
        let Ok((rest, responder)) = X509Certificate::from_der(listed.0) else { break };
        listed = Level(rest);
        let may = responder.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.ocsp_signing);
        if may && responder.verify_signature(Some(issuer.public_key())).is_ok() && by(responder.public_key())? {
            return Some(true);
        }
    }
    Some(false)
}

/// The `responses` of a whole `OCSPResponse`.
fn responses(der: &[u8]) -> Result<Level<'_>, StapleFault> {
    let mut basic = basic(der)?;
    let mut inner = || {
        let mut answer = basic.sequence()?;
        // The version, where it is not the first.
        let _ = answer.tagged(0);
        answer.tagged(1).or_else(|| answer.tagged(2))?;
        answer.moment_ms()?;
        answer.sequence()
    };
    inner().ok_or(StapleFault::Unreadable)
}

/// Of a `SingleResponse` the serial number that it is for, and what it says.
fn single(mut single: Level<'_>) -> Option<(&[u8], Result<Span, StapleFault>)> {
    let mut certificate = single.sequence()?;
    certificate.sequence()?;
    certificate.universal(Tag::OctetString)?;
    certificate.universal(Tag::OctetString)?;
    let serial = certificate.universal(Tag::Integer)?;
    let status = if single.tagged(0).is_some() {
        Ok(())
    } else if single.tagged(1).is_some() {
        Err(StapleFault::Revoked)
    } else {
        single.tagged(2)?;
        Err(StapleFault::Unknown)
    };
    let from = single.moment_ms()?;
    let until = match single.tagged(0) {
        Some(until) => Some(Level(until).moment_ms()?),
        None => None,
    };
    Some((serial, status.map(|()| (from, until))))
}

#[cfg(test)]
#[path = "staple_tests.rs"]
pub(super) mod tests;
