//! Secrets, from Envoy's: certificates, authorities, ticket keys. What comes is live at once; what is taken away leaves with the swap, for
//! a listener of the epoch before may speak of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use proto::xds::core::DataSource;
use proto::xds::core::data_source::Specifier;
use proto::xds::tls::{CertificateValidationContext, Secret as Raw, TlsCertificate, TlsSessionTicketKeys, secret};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::interned::Interned;
use super::{pem, same_name, stamp};
use crate::model::{Named, OwnCertificate, Secret, SecretCell, TICKET_KEY_BYTES, TlsTerms};
use crate::rejected::{Wrong, refuse};

/// Most certificates that vouch for clients of one listener.
const AUTHORITIES_MAX: usize = 1024;
/// Most certificates of one chain.
const CHAIN_MAX: usize = 16;
/// Largest private key, in bytes of PEM.
const KEY_BYTES_MAX: usize = 64 << 10;
/// Largest answer of an authority that is stapled, in bytes.
const OCSP_BYTES_MAX: usize = 64 << 10;
/// Most keys of session tickets that are read.
const TICKET_KEYS_MAX: usize = 16;

/// The cells of all names that are held or spoken of, and what is compiled of what speaks of them.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    /// With the version that each came as.
    staged: BTreeMap<String, (String, Arc<SecretCell>)>,
    cells: BTreeMap<String, Weak<SecretCell>>,
    pub(super) terms: Interned<TlsTerms>,
    pub(super) named: Interned<Named>,
}

impl Secrets {
    /// The cell of a name, whether it holds anything yet or not.
    pub(super) fn cell(&mut self, name: &str) -> Arc<SecretCell> {
        if let Some(known) = self.cells.get(name).and_then(Weak::upgrade) {
            return known;
        }
        self.cells.retain(|_, cell| cell.strong_count() > 0);
        let cell = Arc::new(SecretCell::new(name));
        self.cells.insert(name.to_owned(), Arc::downgrade(&cell));
        cell
    }

    pub(super) fn put(&mut self, name: &str, version: String, raw: &Raw) -> Result<(), Wrong> {
        let secret = compile(name, raw)?;
        let cell = self.cell(name);
        cell.put(stamp(), Some(secret));
        self.staged.insert(name.to_owned(), (version, cell));
        Ok(())
    }

    /// It is held until [`Secrets::forget`].
    pub(super) fn remove(&mut self, name: &str) {
        self.staged.remove(name);
    }

    /// Empties the cells of what was taken away.
    pub(super) fn forget(&self) {
        for cell in self.cells.iter().filter(|(name, _)| !self.staged.contains_key(*name)).filter_map(|(_, cell)| cell.upgrade()) {
            if cell.load().secret.is_some() {
                cell.put(stamp(), None);
            }
        }
    }

    pub(super) fn version(&self, name: &str) -> Option<&str> {
        self.staged.get(name).map(|(version, _)| version.as_str())
    }

    pub(super) fn len(&self) -> usize {
        self.staged.len()
    }
}

fn compile(name: &str, raw: &Raw) -> Result<Secret, Wrong> {
    let Raw { name: inner, r#type } = raw;
    same_name(name, inner, "name")?;
    match r#type {
        Some(secret::Type::TlsCertificate(raw)) => {
            certificate(raw).map(Secret::Certificate).map_err(|wrong| wrong.within("tls_certificate"))
        }
        Some(secret::Type::ValidationContext(raw)) => {
            let all = authorities(raw, AUTHORITIES_MAX).map_err(|wrong| wrong.within("validation_context"))?;
            Ok(Secret::Authorities(all.into_iter().map(CertificateDer::from).collect()))
        }
        Some(secret::Type::SessionTicketKeys(raw)) => {
            ticket_keys(raw).map(Secret::TicketKeys).map_err(|wrong| wrong.within("session_ticket_keys"))
        }
        None => Err(Wrong::new("type", "is missing: tls_certificate, validation_context or session_ticket_keys")),
    }
}

fn certificate(raw: &TlsCertificate) -> Result<OwnCertificate, Wrong> {
    let TlsCertificate { certificate_chain, private_key, ocsp_staple } = raw;
    let pem = inline(certificate_chain.as_ref(), "certificate_chain")?;
    let chain = pem::certificates(pem, CHAIN_MAX).map_err(|wrong| wrong.within("certificate_chain"))?;
    let pem = inline(private_key.as_ref(), "private_key")?;
    if pem.len() > KEY_BYTES_MAX {
        return Err(Wrong::new("private_key", format!("has {} bytes, at most {KEY_BYTES_MAX} are taken", pem.len())));
    }
    // Nothing of a key is repeated in an error.
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| Wrong::new("private_key", "holds no private key in PEM that can be read"))?;
    let ocsp = match ocsp_staple {
        Some(staple) => inline(Some(staple), "ocsp_staple")?.to_vec(),
        None => Vec::new(),
    };
    if ocsp.len() > OCSP_BYTES_MAX {
        return Err(Wrong::new("ocsp_staple", format!("has {} bytes, at most {OCSP_BYTES_MAX} are taken", ocsp.len())));
    }
    Ok(OwnCertificate { chain: chain.into_iter().map(CertificateDer::from).collect(), key, ocsp })
}

/// The roots of a context that says nothing else, DER.
pub(super) fn authorities(raw: &CertificateValidationContext, most: usize) -> Result<Vec<Vec<u8>>, Wrong> {
    let CertificateValidationContext {
        trusted_ca,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        trust_chain_verification,
        system_root_certs,
    } = raw;
    refuse(*trust_chain_verification != 0, "trust_chain_verification")?;
    refuse(system_root_certs.is_some(), "system_root_certs")?;
    refuse(!match_typed_subject_alt_names.is_empty(), "match_typed_subject_alt_names")?;
    refuse(!match_subject_alt_names.is_empty(), "match_subject_alt_names")?;
    let pem = inline(trusted_ca.as_ref(), "trusted_ca")?;
    pem::certificates(pem, most).map_err(|wrong| wrong.within("trusted_ca"))
}

fn ticket_keys(TlsSessionTicketKeys { keys }: &TlsSessionTicketKeys) -> Result<Vec<[u8; TICKET_KEY_BYTES]>, Wrong> {
    if keys.is_empty() || keys.len() > TICKET_KEYS_MAX {
        return Err(Wrong::new("keys", format!("are {}, not 1 to {TICKET_KEYS_MAX}", keys.len())));
    }
    let one = |(index, raw): (usize, &DataSource)| {
        let field = format!("keys[{index}]");
        let bytes = inline(Some(raw), &field)?;
        bytes.try_into().map_err(|_| Wrong::new(field, format!("has {} bytes, not {TICKET_KEY_BYTES}", bytes.len())))
    };
    keys.iter().enumerate().map(one).collect()
}

/// What stands in the resource itself.
pub(super) fn inline<'r>(raw: Option<&'r DataSource>, field: &str) -> Result<&'r [u8], Wrong> {
    match raw.and_then(|DataSource { specifier }| specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.as_ref()),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes()),
        Some(Specifier::Filename(_)) => Err(Wrong::unsupported(format!("{field}.filename"))),
        None => Err(Wrong::new(field, "is missing")),
    }
}
