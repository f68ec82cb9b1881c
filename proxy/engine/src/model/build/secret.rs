//! Secrets, from Envoy's: certificates, authorities, ticket keys. What comes is live at once; what is taken away leaves with the swap, for
//! a listener of the epoch before may speak of it. Of what proves to a certificate authority whose a name is nothing speaks: it comes and goes at
//! once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use proto::names;
use proto::xds::core::DataSource;
use proto::xds::core::data_source::Specifier;
use proto::xds::tls::{CertificateValidationContext, GenericSecret, Secret as Raw, TlsCertificate, TlsSessionTicketKeys, secret};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::interned::Interned;
use super::{pem, same_name, stamp};
use crate::model::{
    ANSWER_BYTES_MAX, CHALLENGES_MAX, Challenge, Challenges, Named, OwnCertificate, Secret, SecretCell, TICKET_KEY_BYTES, TlsTerms,
};
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
#[derive(Default)]
pub(super) struct Secrets {
    /// With the version that each came as.
    staged: BTreeMap<String, (String, Arc<SecretCell>)>,
    cells: BTreeMap<String, Weak<SecretCell>>,
    /// With the version that each came as.
    proofs: BTreeMap<String, (String, Challenge)>,
    pub(super) challenges: Arc<Challenges>,
    pub(super) terms: Interned<TlsTerms>,
    pub(super) named: Interned<Named>,
}

/// Shows names alone.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("staged", &self.staged).field("challenges", &self.challenges).finish_non_exhaustive()
    }
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
        if name.starts_with(names::CHALLENGE) {
            return self.prove(name, version, raw);
        }
        let secret = compile(name, raw)?;
        let cell = self.cell(name);
        cell.put(stamp(), Some(secret));
        self.staged.insert(name.to_owned(), (version, cell));
        Ok(())
    }

    /// What an authority asks for is answered from now on.
    fn prove(&mut self, name: &str, version: String, raw: &Raw) -> Result<(), Wrong> {
        let proof = challenge(name, raw)?;
        if self.proofs.len() >= CHALLENGES_MAX && !self.proofs.contains_key(name) {
            return Err(Wrong::new("", format!("{CHALLENGES_MAX} challenges are pending already")));
        }
        self.proofs.insert(name.to_owned(), (version, proof));
        self.challenge();
        Ok(())
    }

    fn challenge(&self) {
        self.challenges.publish(self.proofs.iter().map(|(name, (_, proof))| (name.clone(), proof.clone())).collect());
    }

    /// It is held until [`Secrets::forget`], unless it is a proof.
    pub(super) fn remove(&mut self, name: &str) {
        self.staged.remove(name);
        if self.proofs.remove(name).is_some() {
            self.challenge();
        }
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
        let proof = || self.proofs.get(name).map(|(version, _)| version.as_str());
        self.staged.get(name).map(|(version, _)| version.as_str()).or_else(proof)
    }

    pub(super) fn len(&self) -> usize {
        self.staged.len() + self.proofs.len()
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
        Some(secret::Type::GenericSecret(GenericSecret { secret: _ })) => Err(Wrong::unsupported("generic_secret")),
        None => Err(Wrong::new("type", "is missing: tls_certificate, validation_context or session_ticket_keys")),
    }
}

/// What a challenge's name promises: an answer, or a certificate.
fn challenge(name: &str, raw: &Raw) -> Result<Challenge, Wrong> {
    let Raw { name: inner, r#type } = raw;
    same_name(name, inner, "name")?;
    let shown = name.starts_with(&names::challenge_certificate(""));
    match r#type {
        Some(secret::Type::TlsCertificate(raw)) if shown => {
            let own = certificate(raw).map_err(|wrong| wrong.within("tls_certificate"))?;
            Ok(Challenge::Certificate(Arc::new(own)))
        }
        Some(secret::Type::GenericSecret(GenericSecret { secret })) if !shown => {
            let answer = inline(secret.as_ref(), "generic_secret.secret")?;
            if answer.is_empty() || answer.len() > ANSWER_BYTES_MAX {
                return Err(Wrong::new("generic_secret.secret", format!("has {} bytes, not 1 to {ANSWER_BYTES_MAX}", answer.len())));
            }
            Ok(Challenge::Answer(Bytes::copy_from_slice(answer)))
        }
        _ if shown => Err(Wrong::new("type", "must be tls_certificate")),
        _ => Err(Wrong::new("type", "must be generic_secret")),
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
