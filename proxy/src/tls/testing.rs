//! An authority in memory, for tests of this crate and of others. Not part of the proxy's interface.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "for tests only")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, UnixTime};
use rustls::time_provider::TimeProvider;

use super::{Credential, CredentialCell, Tls, TrustCell};

/// A clock that stands where it is put.
#[derive(Debug)]
pub struct FixedTime(pub std::sync::atomic::AtomicU64);

impl FixedTime {
    /// Stands at the machine's present second.
    pub fn now() -> Arc<Self> {
        Arc::new(Self(UnixTime::now().as_secs().into()))
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), std::sync::atomic::Ordering::SeqCst);
    }
}

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(std::sync::atomic::Ordering::SeqCst))))
    }
}

/// A certificate authority with one root.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What its leaves bring along.
    chain: Vec<CertificateDer<'static>>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, chain: Vec::new() }
    }

    /// An authority below this one, whose leaves bring its certificate and those above it along.
    pub fn below(&self, name: &str) -> Self {
        let issuer = CertifiedIssuer::signed_by(authority_params(name), KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let chain = [&[issuer.der().clone()], self.chain.as_slice()].concat();
        Self { issuer, chain }
    }

    /// The bundle that trusts this authority.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.issuer.der().clone()]
    }

    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn root_hash_hex(&self) -> String {
        super::peer::hex(&super::peer::sha256(self.issuer.der()))
    }

    /// A leaf good for an hour, begun a minute ago.
    pub fn issue(&self, identity: &str, workload: &str) -> Arc<Credential> {
        let now = SystemTime::now();
        self.issue_for(identity, workload, now - Duration::from_secs(60), now + Duration::from_secs(3600))
    }

    pub fn issue_for(&self, identity: &str, workload: &str, not_before: SystemTime, not_after: SystemTime) -> Arc<Credential> {
        let (chain, key) = self.leaf(&[SanType::URI(identity.try_into().unwrap())], workload, not_before, not_after);
        Arc::new(Credential::new(chain, key).unwrap())
    }

    /// Any leaf: chain and key.
    pub fn leaf(
        &self,
        names: &[SanType],
        workload: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        shape(&mut params, workload, not_before, not_after);
        params.subject_alt_names = names.to_vec();
        self.signed(&params)
    }

    /// A leaf whose alternative names are these URI names, byte for byte; good for an hour. Names of fewer than 120 bytes in all.
    pub fn leaf_with_uris(&self, uris: &[&[u8]]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let names: Vec<u8> = uris.iter().flat_map(|uri| [&[0x86, uri.len() as u8], *uri].concat()).collect();
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        shape(&mut params, "x", now - Duration::from_secs(60), now + Duration::from_secs(3600));
        let content = [&[0x30, names.len() as u8][..], &names].concat();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], content)];
        self.signed(&params)
    }

    fn signed(&self, params: &CertificateParams) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        ([&[leaf.der().clone()], self.chain.as_slice()].concat(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// A leaf for the identity, good for an hour, of any other shape.
    pub fn shaped(
        &self,
        identity: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        shape(&mut params, "x", now - Duration::from_secs(60), now + Duration::from_secs(3600));
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        change(&mut params);
        self.signed(&params)
    }

    /// Signs what a proxy asks for, as it asks for it.
    pub fn sign(&self, csr: &[u8], not_before: SystemTime, not_after: SystemTime) -> CertificateDer<'static> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr.to_vec())).unwrap();
        request.params.not_before = not_before.into();
        request.params.not_after = not_after.into();
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        request.signed_by(&self.issuer).unwrap().der().clone()
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn shape(params: &mut CertificateParams, workload: &str, not_before: SystemTime, not_after: SystemTime) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, workload);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.not_before = not_before.into();
    params.not_after = not_after.into();
}

/// One proxy's TLS with its cells.
pub struct Party {
    pub tls: Arc<Tls>,
    pub credentials: Arc<CredentialCell>,
    pub trust: Arc<TrustCell>,
    pub time: Arc<FixedTime>,
    pub identity: Arc<Identity>,
}

/// A proxy with a leaf of `authority` for `identity` and `workload`, trusting that authority.
pub fn party(authority: &Authority, identity: &str, workload: &str) -> Party {
    let credentials = Arc::new(CredentialCell::default());
    let trust = Arc::new(TrustCell::default());
    let time = FixedTime::now();
    trust.publish(authority.roots()).unwrap();
    credentials.publish(authority.issue(identity, workload));
    let tls = Arc::new(Tls::new(Arc::clone(&credentials), Arc::clone(&trust), Arc::clone(&time) as _).unwrap());
    Party { tls, credentials, trust, time, identity: Arc::new(identity.parse().unwrap()) }
}
