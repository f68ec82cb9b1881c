//! The authority itself: keys, policy, tokens and book joined. Blocking: the store writes to disk; `serve` calls it off the runtime.

mod issue;
mod mint;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::annotations::ROOT_NAMESPACE;
use proto::defaults::{INTERMEDIATE_LIFE, LEAF_LIFE, ROOT_LIFE};
use proto::identity::{DEFAULT_TRUST_DOMAIN, Identity};
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

pub use self::issue::Application;
use self::issue::Desk;
use crate::attest::{self, Attestation, Grant, LIFE_DEFAULT, LIFE_MAX, Limited, SECRET_BYTES, ServiceAccountError, Token, TokenError};
use crate::audit::Issuance;
use crate::authority::{self, Issuing, Leaf, SERIAL_BYTES, SignError};
use crate::book::{IssuedLeaf, Register};
use crate::csr::{Csr, CsrError, is_name};
use crate::minting::AudienceError;
use crate::roots::RootSet;
use crate::store::{Pair, Seal, Store, StoreError};

/// Where the time comes from; a value, so that tests and simulation own it.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// Life of the control plane's own leaf.
pub(crate) const SERVER_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A leaf that ended less than this ago may be renewed, once: a machine that slept finds its way back (`kinds.md`).
pub const EXPIRED_GRACE: Duration = Duration::from_secs(24 * 3600);
/// An issuing certificate is replaced once this share of its life is over.
const ISSUING_ROTATE_PERCENT: i32 = 66;

/// The parts of the `Mesh` object that concern the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Identities outside it are not signed.
    pub trust_domain: String,
    /// Longest and default life of a leaf.
    pub leaf_life: Duration,
    /// Of the next issuing certificate.
    pub intermediate_life: Duration,
    /// Of the root, at its creation.
    pub root_life: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            trust_domain: DEFAULT_TRUST_DOMAIN.to_owned(),
            leaf_life: LEAF_LIFE,
            intermediate_life: INTERMEDIATE_LIFE,
            root_life: ROOT_LIFE,
        }
    }
}

/// A token to be made. The caller has looked up the identity of the workload.
#[derive(Clone, Debug)]
pub struct TokenOrder {
    /// `NS/NAME`.
    pub workload: String,
    /// Whose leaf the bearer gets.
    pub identity: Identity,
    /// Only this instance may use it.
    pub instance: Option<String>,
    /// [`LIFE_DEFAULT`] if absent, at most [`LIFE_MAX`].
    pub life: Option<Duration>,
}

/// Names of the control plane's own leaf, beside its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// The control plane's own leaf and its key.
pub struct Seat {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 DER.
    pub key: Zeroizing<Vec<u8>>,
    /// Fetch the next one after this time.
    pub lasts: Duration,
}

/// How a caller proves who it is.
pub enum Proof<'a> {
    /// A join token.
    Token(&'a str),
    /// The leaf it holds; TLS has verified its chain and its key.
    Leaf(&'a CertificateDer<'a>),
    /// A Kubernetes service-account token.
    ServiceAccount(&'a str),
}

/// A refusal, or a fault of our own.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request itself is wrong.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The token is.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The service-account token is.
    #[error(transparent)]
    ServiceAccount(#[from] ServiceAccountError),
    /// Refused too often.
    #[error(transparent)]
    Limited(#[from] Limited),
    /// A token for nobody.
    #[error(transparent)]
    Audience(#[from] AudienceError),
    /// The identity is not of this mesh.
    #[error("{identity} is not of trust domain {trust_domain}, which this authority serves")]
    TrustDomain {
        /// Asked for.
        identity: String,
        /// Ours.
        trust_domain: String,
    },
    /// A renewal for somebody else.
    #[error("the client certificate is for {held}, the request is for {asked}")]
    NotYours {
        /// Identity and workload held.
        held: String,
        /// Identity and workload asked for.
        asked: String,
    },
    /// The client certificate is not one of ours.
    #[error("the client certificate is not a workload leaf: {0}")]
    Leaf(&'static str),
    /// A name that is none.
    #[error("`{0}` is not a name of the form {1}")]
    Name(String, &'static str),
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error("the system gives no random bytes")]
    Random,
}

struct State {
    issuing: Arc<Issuing>,
    issuer: String,
    policy: Policy,
    book: Register,
}

/// The certificate authority of one mesh.
pub struct Ca {
    store: Store,
    clock: Clock,
    roots: RootSet,
    root_key: Zeroizing<Vec<u8>>,
    root_end: OffsetDateTime,
    state: Mutex<State>,
    desk: Desk,
}

impl Ca {
    /// Opens the authority's store in `folder`; makes root and issuing key at the first start.
    ///
    /// # Errors
    /// The store cannot be opened or written, others may read it, or it is corrupt.
    pub fn open(folder: &Path, policy: Policy, clock: Clock) -> Result<Self, CaError> {
        let store = Store::open(folder)?;
        let now = clock();
        let root = if let Some(pair) = store.pair(Seal::Root)? {
            pair
        } else {
            let pair = new_root(&policy, now)?;
            store.put_pairs(&[(Seal::Root, &pair)])?;
            tracing::info!(store = %store.path().display(), "made the mesh's root certificate");
            pair
        };
        let root_der = CertificateDer::from(root.certificate);
        let (_, root_end) = dates(&root_der).ok_or_else(|| corrupt(&store, "root certificate"))?;
        let issuing = match store.pair(Seal::Issuing)? {
            Some(pair) => issuing_of(pair, root_der.clone()).map_err(|_| corrupt(&store, "issuing certificate"))?,
            None => renew_issuing(&store, &policy, &root_der, &root.key, root_end, now)?,
        };
        let mut book = Register::default();
        for entry in store.entries()? {
            book.add(entry, now.unix_timestamp());
        }
        let issuer = subject(&issuing.certificate_der);
        let state = Mutex::new(State { issuing: Arc::new(issuing), issuer, policy, book });
        let desk = Desk::open(&store)?;
        Ok(Self { store, clock, roots: RootSet::of(root_der), root_key: root.key, root_end, state, desk })
    }

    /// Takes over what the `Mesh` object says now. Lives of root and issuing certificate count from their next renewal.
    pub fn set_policy(&self, policy: Policy) {
        self.lock().policy = policy;
    }

    /// The roots to trust.
    pub fn roots(&self) -> &RootSet {
        &self.roots
    }

    /// The trust bundle, PEM.
    pub fn bundle_pem(&self) -> String {
        self.roots.pem()
    }

    /// Makes a join token and keeps its hash.
    ///
    /// # Errors
    /// A malformed name, or the store.
    pub fn issue_token(&self, order: &TokenOrder) -> Result<String, CaError> {
        let workload = order.workload.clone();
        let (namespace, _) = attest::split_workload(&workload).ok_or_else(|| CaError::Name(workload.clone(), "NAMESPACE/NAME"))?;
        if namespace != order.identity.namespace() {
            return Err(CaError::Name(workload, "NAMESPACE/NAME in the identity's namespace"));
        }
        let now = (self.clock)();
        let secret = URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?);
        let token = Token { workload, ca: self.roots.pin(), secret, identity: order.identity.to_string() };
        let grant = Grant {
            workload: token.workload.clone(),
            identity: order.identity.to_string(),
            instance: order.instance.clone().filter(|instance| !instance.is_empty()),
            expires: (now + order.life.unwrap_or(LIFE_DEFAULT).min(LIFE_MAX)).unix_timestamp(),
            used: None,
        };
        self.store.put_grant(&token.key(), &grant, now.unix_timestamp())?;
        Ok(token.encode())
    }

    /// Signs a leaf for the identity that `proof` proves, if the request asks for just that.
    ///
    /// A token is used up exactly when a leaf is returned. `life` is capped by the policy.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn sign(&self, csr: &Csr, proof: &Proof<'_>, instance: &str, life: Option<Duration>) -> Result<Leaf, CaError> {
        self.sign_for(&Application { csr, instance, life, from: None, for_application: false }, proof)
    }

    fn sign_for(&self, application: &Application<'_>, proof: &Proof<'_>) -> Result<Leaf, CaError> {
        let Application { csr, instance, life, .. } = *application;
        if !is_name(instance) {
            return Err(CaError::Name(instance.chars().take(300).collect(), "an instance's name"));
        }
        let now = (self.clock)();
        let (issuing, issuer, policy) = self.issuing(now)?;
        if csr.identity.trust_domain() != policy.trust_domain {
            return Err(CaError::TrustDomain { identity: csr.identity.to_string(), trust_domain: policy.trust_domain });
        }
        let life = life.filter(|life| !life.is_zero()).unwrap_or(policy.leaf_life).min(policy.leaf_life);
        let ended = if let Proof::Leaf(leaf) = proof { ended(leaf, csr, now)? } else { None };
        if let Proof::ServiceAccount(token) = proof {
            self.verify_service_account(token, csr, instance, &policy.trust_domain)?;
        }
        // Signed first and taken second: a failure to sign must not cost the bearer its token.
        let leaf = authority::sign(csr, &csr.identity, &issuing, life, now, random::<SERIAL_BYTES>()?)?;
        if let Proof::Token(text) = proof {
            self.take(text, csr, instance, now)?;
        }
        if let Some((serial, not_after)) = ended {
            let forget = (now - EXPIRED_GRACE).unix_timestamp();
            if !self.store.revive(&serial, not_after.unix_timestamp(), forget)? {
                return Err(CaError::Leaf("it has expired and was renewed once since; join again with a token"));
            }
        }
        self.note(application, proof.attestation(), &leaf, issuer, now);
        Ok(leaf)
    }

    fn take(&self, text: &str, csr: &Csr, instance: &str, now: OffsetDateTime) -> Result<Identity, CaError> {
        let token = Token::decode(text)?;
        let workload = token.workload.chars().take(300).collect();
        let verdict = self.store.take(&token.key(), now.unix_timestamp(), |grant| match grant {
            None => Err(TokenError::Unknown { workload }),
            Some(grant) => grant.covers(csr, instance, now),
        })?;
        Ok(verdict?)
    }

    /// Writes book and audit log. A disk that fails costs the row of the book at rest, not the leaf; the row of the log waits for the disk.
    fn note(&self, application: &Application<'_>, attestation: Attestation, leaf: &Leaf, issuer: String, now: OffsetDateTime) {
        let csr = application.csr;
        let entry = IssuedLeaf {
            serial: leaf.serial.clone(),
            identity: csr.identity.to_string(),
            namespace: csr.identity.namespace().to_owned(),
            workload: csr.workload.clone(),
            instance: application.instance.to_owned(),
            not_before: leaf.not_before.unix_timestamp(),
            not_after: leaf.not_after.unix_timestamp(),
            issuer,
            for_application: application.for_application,
        };
        let issuance = Issuance {
            time: now.unix_timestamp(),
            serial: entry.serial.clone(),
            identity: entry.identity.clone(),
            namespace: entry.namespace.clone(),
            workload: entry.workload.clone(),
            instance: entry.instance.clone(),
            attestation,
            issuer: entry.issuer.clone(),
            not_after: entry.not_after,
            peer: application.from,
            for_application: application.for_application,
        };
        let gone = self.lock().book.add(entry.clone(), now.unix_timestamp());
        let rows = self.desk.audit.issued(issuance);
        let failure = self.store.put_issued(&entry, &gone, &rows, now.unix_timestamp()).err();
        if let Some(error) = &failure {
            tracing::warn!(%error, serial = entry.serial, "an issued certificate is not in the book on disk");
        }
        self.desk.audit.written(rows, failure.map(|error| error.to_string()));
    }

    /// The control plane's own leaf, with a fresh key.
    ///
    /// # Errors
    /// See [`SignError`].
    pub fn seat(&self, names: &ServerNames) -> Result<Seat, CaError> {
        let now = (self.clock)();
        let (issuing, _, policy) = self.issuing(now)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::from)?;
        let mut sans = vec![authority::uri(&format!("spiffe://{}/ns/{ROOT_NAMESPACE}/sa/control", policy.trust_domain))?];
        for name in &names.dns {
            sans.push(SanType::DnsName(name.as_str().try_into().map_err(SignError::from)?));
        }
        sans.extend(names.addresses.iter().copied().map(SanType::IpAddress));
        let leaf = authority::sign_server(&key, sans, &issuing, SERVER_LIFE, now, random::<SERIAL_BYTES>()?)?;
        let lasts = (leaf.not_after - now) * ISSUING_ROTATE_PERCENT / 100;
        Ok(Seat {
            chain: leaf.chain,
            key: Zeroizing::new(key.serialize_der()),
            lasts: Duration::try_from(lasts).unwrap_or(Duration::from_secs(1)),
        })
    }

    /// The newest unexpired leaf of each instance.
    pub fn certs(&self) -> Vec<IssuedLeaf> {
        self.lock().book.current((self.clock)().unix_timestamp())
    }

    /// The issuing certificate of now; replaced here when it is due. One that cannot be written down is used all the same: every
    /// leaf carries its chain.
    fn issuing(&self, now: OffsetDateTime) -> Result<(Arc<Issuing>, String, Policy), CaError> {
        let mut state = self.lock();
        let whole = state.issuing.not_after - state.issuing.not_before;
        if now >= state.issuing.not_before + whole * ISSUING_ROTATE_PERCENT / 100 {
            let root_der = state.issuing.root_der.clone();
            let fresh = make_issuing(&state.policy, &root_der, &self.root_key, self.root_end, now)?;
            if let Err(error) = self.store.put_pairs(&[(Seal::Issuing, &fresh)]) {
                tracing::error!(%error, "the new issuing certificate is in memory only");
            }
            let fresh = issuing_of(fresh, root_der)?;
            state.issuer = subject(&fresh.certificate_der);
            state.issuing = Arc::new(fresh);
        }
        Ok((state.issuing.clone(), state.issuer.clone(), state.policy.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_root(policy: &Policy, now: OffsetDateTime) -> Result<Pair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::from)?;
    let certificate = authority::root(&key, now, policy.root_life, random::<SERIAL_BYTES>()?)?.to_vec();
    Ok(Pair { certificate, key: Zeroizing::new(key.serialize_der()) })
}

fn make_issuing(
    policy: &Policy,
    root_der: &CertificateDer<'static>,
    root_key: &[u8],
    root_end: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<Pair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::from)?;
    let root = (root_der, key_pair(root_key)?, root_end);
    let certificate = authority::intermediate(&key, root, now, policy.intermediate_life, random::<SERIAL_BYTES>()?)?.to_vec();
    Ok(Pair { certificate, key: Zeroizing::new(key.serialize_der()) })
}

fn renew_issuing(
    store: &Store,
    policy: &Policy,
    root_der: &CertificateDer<'static>,
    root_key: &[u8],
    root_end: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<Issuing, CaError> {
    let pair = make_issuing(policy, root_der, root_key, root_end, now)?;
    store.put_pairs(&[(Seal::Issuing, &pair)])?;
    Ok(issuing_of(pair, root_der.clone())?)
}

fn issuing_of(pair: Pair, root_der: CertificateDer<'static>) -> Result<Issuing, SignError> {
    let certificate_der = CertificateDer::from(pair.certificate);
    let (not_before, not_after) = dates(&certificate_der).ok_or_else(|| SignError::Library("no dates in it".to_owned()))?;
    let issuer = Issuer::from_ca_cert_der(&certificate_der, key_pair(&pair.key)?)?;
    Ok(Issuing { root_der, certificate_der, not_after, not_before, issuer })
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, SignError> {
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_ECDSA_P256_SHA256)?)
}

fn dates(der: &CertificateDer<'_>) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some((parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime()))
}

fn subject(der: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed.subject().to_string()).unwrap_or_default()
}

fn corrupt(store: &Store, what: &'static str) -> StoreError {
    StoreError::Corrupt { path: store.path().to_owned(), what }
}

/// A renewal may ask for what the caller holds: same identity, same workload. Returns serial and end of a leaf that has ended.
fn ended(leaf: &CertificateDer<'_>, csr: &Csr, now: OffsetDateTime) -> Result<Option<(String, OffsetDateTime)>, CaError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CaError::Leaf("it does not parse"))?;
    let identity = only_identity(&parsed)?;
    let workload = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if identity != csr.identity.to_string() || workload != csr.workload {
        let (held, asked) = (format!("{identity} ({workload})"), format!("{} ({})", csr.identity, csr.workload));
        return Err(CaError::NotYours { held, asked });
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if now <= not_after {
        return Ok(None);
    }
    if now >= not_after + EXPIRED_GRACE {
        return Err(CaError::Leaf("it expired more than a day ago; join again with a token"));
    }
    Ok(Some((authority::hex(parsed.raw_serial()), not_after)))
}

/// The one URI name of a leaf of ours.
fn only_identity<'c>(leaf: &'c X509Certificate<'_>) -> Result<&'c str, CaError> {
    let names = leaf.subject_alternative_name().ok().flatten().map(|names| names.value.general_names.as_slice());
    let Some([GeneralName::URI(identity)]) = names else {
        return Err(CaError::Leaf("it names more or less than one URI"));
    };
    Ok(identity)
}

fn random<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CaError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::csr::tests::request as request_der;

    const START: i64 = 1_800_000_000;
    const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

    fn request(uris: &[&str], workload: &str) -> Csr {
        Csr::parse(&request_der(uris, workload)).unwrap()
    }

    struct Desk {
        ca: Ca,
        time: Arc<AtomicI64>,
        folder: tempfile::TempDir,
    }

    fn open(folder: &Path, time: &Arc<AtomicI64>) -> Ca {
        let time = time.clone();
        let clock: Clock = Arc::new(move || OffsetDateTime::from_unix_timestamp(time.load(Ordering::Relaxed)).unwrap());
        Ca::open(folder, Policy::default(), clock).unwrap()
    }

    fn desk() -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let time = Arc::new(AtomicI64::new(START));
        Desk { ca: open(folder.path(), &time), time, folder }
    }

    fn join(ca: &Ca) -> String {
        let order = TokenOrder { workload: "shop/catalog".into(), identity: CATALOG.parse().unwrap(), instance: None, life: None };
        ca.issue_token(&order).unwrap()
    }

    #[test]
    fn a_token_gives_one_leaf_and_the_leaf_gives_the_next() {
        // Aim: first leaf by token, renewals by leaf, a second use refused; the book shows the newest.
        let desk = desk();
        let token = join(&desk.ca);
        let csr = request(&[CATALOG], "catalog");
        let first = desk.ca.sign(&csr, &Proof::Token(&token), "catalog-0", None).unwrap();
        let error = desk.ca.sign(&csr, &Proof::Token(&token), "catalog-0", None).unwrap_err().to_string();
        assert!(error.contains("used before"), "{error}");
        desk.time.store(START + 3600, Ordering::Relaxed);
        let second = desk.ca.sign(&csr, &Proof::Leaf(&first.chain[0]), "catalog-0", Some(Duration::from_secs(60))).unwrap();
        let certs = desk.ca.certs();
        assert_eq!(certs.iter().map(|entry| &entry.serial).collect::<Vec<_>>(), [&second.serial]);
        assert_eq!(certs[0].not_after, START + 3660);
        assert!(certs[0].issuer.contains("Meshwright issuing"));
    }

    #[test]
    fn nobody_gets_another_identity() {
        // Aim: token or leaf for one workload signs no other, and a refused try does not use the token up.
        let desk = desk();
        let token = join(&desk.ca);
        let leaf = desk.ca.sign(&request(&[CATALOG], "catalog"), &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
        for (identity, workload) in [
            ("spiffe://cluster.local/ns/shop/sa/store", "catalog"),
            (CATALOG, "store"),
            ("spiffe://elsewhere/ns/shop/sa/catalog", "catalog"),
        ] {
            let csr = request(&[identity], workload);
            for proof in [Proof::Token(token.as_str()), Proof::Leaf(&leaf.chain[0])] {
                let error = desk.ca.sign(&csr, &proof, "catalog-0", None).unwrap_err();
                assert!(
                    matches!(error, CaError::NotYours { .. } | CaError::TrustDomain { .. } | CaError::Token(TokenError::Other { .. })),
                    "{error}"
                );
            }
        }
        desk.ca.sign(&request(&[CATALOG], "catalog"), &Proof::Token(&token), "catalog-0", None).unwrap();
    }

    #[test]
    fn a_leaf_that_ended_within_a_day_comes_back_once() {
        // Aim: a machine that slept renews by its old leaf; a second time, or a day later, it needs a token.
        let desk = desk();
        let csr = request(&[CATALOG], "catalog");
        let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", Some(Duration::from_secs(60))).unwrap();
        let renew = || desk.ca.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-0", None);
        desk.time.store(START + 3600, Ordering::Relaxed);
        renew().unwrap();
        assert!(renew().unwrap_err().to_string().contains("renewed once"));
        let other = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-1", Some(Duration::from_secs(60))).unwrap();
        desk.time.store(START + 3600 + 60 + 24 * 3600, Ordering::Relaxed);
        let late = desk.ca.sign(&csr, &Proof::Leaf(&other.chain[0]), "catalog-1", None).unwrap_err();
        assert!(late.to_string().contains("more than a day"), "{late}");
    }

    #[test]
    fn keys_tokens_and_book_survive_a_restart() {
        // Aim: same root, token still good, book still there after the process is gone.
        let desk = desk();
        let (token, used) = (join(&desk.ca), join(&desk.ca));
        let csr = request(&[CATALOG], "catalog");
        desk.ca.sign(&csr, &Proof::Token(&used), "catalog-0", None).unwrap();
        let bundle = desk.ca.bundle_pem();
        let Desk { ca, time, folder } = desk;
        drop(ca);
        let ca = open(folder.path(), &time);
        assert_eq!(ca.bundle_pem(), bundle);
        assert_eq!(ca.certs().len(), 1);
        ca.sign(&csr, &Proof::Token(&token), "catalog-1", None).unwrap();
        assert!(ca.sign(&csr, &Proof::Token(&used), "catalog-1", None).is_err());
    }

    #[test]
    fn ten_years_of_issuing_never_hand_out_a_leaf_beyond_its_issuer() {
        // Aim: the issuing certificate renews itself in time, month after month, and ends with the root.
        let desk = desk();
        let day = 24 * 3600;
        let mut issuers = std::collections::BTreeSet::new();
        let csr = request(&[CATALOG], "catalog");
        for month in 1..121 {
            desk.time.store(START + month * 30 * day, Ordering::Relaxed);
            let leaf = desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None).unwrap();
            let (_, issuer_end) = dates(&leaf.chain[1]).unwrap();
            assert!(leaf.not_after <= issuer_end);
            issuers.insert(leaf.chain[1].to_vec());
        }
        assert!(issuers.len() > 40, "{}", issuers.len());
        desk.time.store(START + 3650 * day, Ordering::Relaxed);
        assert!(matches!(
            desk.ca.sign(&csr, &Proof::Token(&join(&desk.ca)), "catalog-0", None),
            Err(CaError::Sign(SignError::IssuerExpired(_)))
        ));
    }

    #[test]
    fn the_control_plane_has_a_seat_with_all_its_names() {
        // Aim: its leaf carries SPIFFE, DNS and IP names, and says when to fetch the next.
        let desk = desk();
        let names = ServerNames { dns: vec!["control.meshwright-system.svc".into()], addresses: vec!["10.77.0.1".parse().unwrap()] };
        let seat = desk.ca.seat(&names).unwrap();
        let (_, parsed) = X509Certificate::from_der(&seat.chain[0]).unwrap();
        let sans: Vec<_> =
            parsed.subject_alternative_name().unwrap().unwrap().value.general_names.iter().map(ToString::to_string).collect();
        assert_eq!(sans.len(), 3);
        assert!(sans[0].contains("spiffe://cluster.local/ns/meshwright-system/sa/control"), "{sans:?}");
        assert!(seat.lasts > SERVER_LIFE / 2 && seat.lasts < SERVER_LIFE);
    }
}
