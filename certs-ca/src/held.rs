//! A leaf that a caller shows, as far as the authority asks for it. That its chain and its key hold is for TLS to say.

use proto::identity::{APPLICATION_UNIT, Identity};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::authority::hex;
use crate::roots::sha256;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its only alternative name.
    pub identity: Identity,
    /// Its common name.
    pub workload: String,
    /// Lower-case hex.
    pub serial: String,
    /// Start.
    pub not_before: OffsetDateTime,
    /// End.
    pub not_after: OffsetDateTime,
    /// It is for the application beside a proxy.
    pub for_application: bool,
    /// Of the whole certificate, lower-case hex.
    pub sha256: String,
}

impl Held {
    /// Reads a leaf.
    ///
    /// # Errors
    /// Why it is no workload's.
    pub fn read(leaf: &CertificateDer<'_>) -> Result<Self, &'static str> {
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| "it does not parse")?;
        let names = parsed.subject_alternative_name().ok().flatten().map(|names| names.value.general_names.as_slice());
        let Some([GeneralName::URI(identity)]) = names else { return Err("it names more or less than one URI") };
        let workload = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            identity: identity.parse().map_err(|_| "its name is no identity of ours")?,
            workload: workload.ok_or("it names no workload")?.to_owned(),
            serial: hex(parsed.raw_serial()),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            for_application: parsed.subject().iter_organizational_unit().any(|unit| unit.as_str().ok() == Some(APPLICATION_UNIT)),
            sha256: sha256(leaf),
        })
    }
}
