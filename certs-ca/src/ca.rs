//! The authority itself: keys, policy, tokens and book joined. Blocking: the store writes to disk; `serve` calls it off the runtime.

mod issue;
mod mint;
mod open;
mod renew;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::annotations::ROOT_NAMESPACE;
use proto::identity::{CONTROL_ACCOUNT, Identity};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

pub use self::issue::Application;
use self::issue::Desk;
pub(crate) use self::issue::Fault;
use crate::attest::{self, Attestation, Grant, LIFE_DEFAULT, LIFE_MAX, Limited, SECRET_BYTES, ServiceAccountError, Token, TokenError};
use crate::audit::Issuance;
use crate::authority::{self, Bearer, Issuing, Leaf, SERIAL_BYTES, SignError};
use crate::book::{IssuedLeaf, Register};
use crate::csr::{Csr, CsrError, is_name};
use crate::external::{External, ExternalError};
use crate::minting::AudienceError;
use crate::own::{ISSUING_ROTATE_PERCENT, OwnRoots, RootsError};
use crate::policy::{EXPIRED_GRACE, NoRandomness, Policy, random};
use crate::roots::{RootSet, sha256};
use crate::store::{Store, StoreError};

/// Where the time comes from; a value, so that tests and simulation own it.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// Life of the control plane's own leaf.
pub(crate) const SERVER_LIFE: Duration = Duration::from_secs(24 * 3600);

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

/// A step of a rotation of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the next root, which is believed from now on.
    Trust,
    /// The next root issues.
    Issue,
    /// The former root is believed no more.
    Drop,
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
    /// It is an application's.
    #[error("the client certificate is an application's, which renews nothing; its proxy does, by a certificate of its own")]
    Application,
    /// A pod of that name is there, and it is another one; or there is none any more.
    #[error("the client certificate was issued to an earlier pod of the name `{0}`; join with the token of the one that runs now")]
    AnotherPod(String),
    /// The client certificate is not one of ours.
    #[error("the client certificate is not a workload leaf: {0}")]
    Leaf(&'static str),
    /// The client certificate's chain ends in a root of ours, and it is in no book.
    #[error("the client certificate is none that this authority has issued; join again with a token")]
    NotIssued,
    /// The one identity that is nobody else's.
    #[error("{0} is the control plane's own identity, which no workload gets; give it another service account")]
    Control(Identity),
    /// A name that is none.
    #[error("`{0}` is not a name of the form {1}")]
    Name(String, &'static str),
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The files of an external authority cannot be used.
    #[error(transparent)]
    External(#[from] ExternalError),
    /// The root is not ours to rotate.
    #[error(
        "the root is an external authority's (--ca-root), which is rotated by its files: add the new root to --ca-root and wait until that is live, then exchange --ca-cert and --ca-key, then drop the former root from --ca-root"
    )]
    NotOurRoot,
    /// No randomness.
    #[error("the system gives no random bytes")]
    Random,
}

impl From<NoRandomness> for CaError {
    fn from(_: NoRandomness) -> Self {
        Self::Random
    }
}

impl From<RootsError> for CaError {
    fn from(error: RootsError) -> Self {
        match error {
            RootsError::Sign(error) => Self::Sign(error),
            RootsError::Store(error) => Self::Store(error),
            RootsError::Random(error) => error.into(),
        }
    }
}

/// Where roots and the issuing certificate come from.
enum Keys {
    Own(OwnRoots),
    External(External),
}

struct State {
    keys: Keys,
    issuing: Arc<Issuing>,
    issuer: String,
    /// Lower-case hex SHA-256 of the issuing root.
    root: String,
    policy: Policy,
    book: Register,
}

/// The certificate authority of one mesh.
pub struct Ca {
    store: Store,
    clock: Clock,
    state: Mutex<State>,
    desk: Desk,
}

impl Ca {
    /// Takes over what the `Mesh` object says now. Lives of root and issuing certificate count from their next renewal.
    pub fn set_policy(&self, policy: Policy) {
        self.lock().policy = policy;
    }

    /// The roots of now.
    pub fn roots(&self) -> RootSet {
        self.lock().roots((self.clock)())
    }

    /// When the root that issues ends, and when the certificate that signs leaves does.
    pub fn ends(&self) -> Option<(OffsetDateTime, OffsetDateTime)> {
        let issuing = self.lock().issuing.clone();
        Some((crate::own::dates(&issuing.root_der)?.1, issuing.not_after))
    }

    /// The trust bundle, PEM.
    pub fn bundle_pem(&self) -> String {
        self.roots().pem()
    }

    /// Takes a step of a rotation, which is on disk before this returns. One that has been taken, or whose turn it is not, changes nothing.
    ///
    /// # Errors
    /// The store, a library, or [`CaError::NotOurRoot`]; nothing has changed then.
    pub fn rotate(&self, step: Step) -> Result<RootSet, CaError> {
        let now = (self.clock)();
        let mut state = self.lock();
        let State { keys, policy, book, root, issuing, .. } = &mut *state;
        let Keys::Own(own) = keys else { return Err(CaError::NotOurRoot) };
        let fresh = match step {
            Step::Trust => {
                own.trust(&self.store, policy, now)?;
                None
            }
            Step::Issue => own.issue(&self.store, policy, now)?,
            Step::Drop => {
                let last_end = book.last_end_but(root).unwrap_or(0);
                let dropped = own.retire(&self.store, policy, last_end, now)?;
                // From now on leaves carry no way to the former root.
                dropped.then(|| Issuing { above: Vec::new(), ..Issuing::clone(issuing) })
            }
        };
        if let Some(fresh) = fresh {
            state.issue_by(fresh);
        }
        Ok(state.roots(now))
    }

    /// Reads the files of an external authority again; returns whether something changed. Others have none.
    ///
    /// # Errors
    /// They cannot be used, or the mesh could not follow: the former ones stay in force.
    pub fn refresh(&self) -> Result<bool, CaError> {
        let now = (self.clock)();
        let mut state = self.lock();
        let Keys::External(external) = &state.keys else { return Ok(false) };
        let Some((external, issuing)) = external.reload(now)? else { return Ok(false) };
        state.keys = Keys::External(external);
        state.issue_by(issuing);
        Ok(true)
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
        not_control(&order.identity)?;
        let now = (self.clock)();
        let secret = URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?);
        let token = Token { workload, ca: self.roots().pin(), secret, identity: order.identity.to_string() };
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

    /// [`Ca::issue`], for a caller of whom nothing else is known.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn sign(&self, csr: &Csr, proof: &Proof<'_>, instance: &str, life: Option<Duration>) -> Result<Leaf, CaError> {
        self.issue(&Application { csr, instance, life, from: None, for_application: false, pod_uid: None }, proof)
    }

    /// Signs a leaf for the identity that `proof` proves, if the request asks for just that.
    ///
    /// A token is used up exactly when a leaf is returned. The policy caps the life that is asked for.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn issue(&self, application: &Application<'_>, proof: &Proof<'_>) -> Result<Leaf, CaError> {
        let span = tracing::info_span!(
            target: "meshwright::traces",
            "certificate",
            meshwright.identity = %application.csr.identity,
            meshwright.instance = application.instance.chars().take(300).collect::<String>(),
            meshwright.attestation = proof.attestation().text(),
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
        );
        let issued = span.in_scope(|| self.issued(application, proof));
        if let Err(error) = &issued {
            span.record("otel.status_code", "ERROR").record("otel.status_description", tracing::field::display(error));
        }
        issued
    }

    fn issued(&self, application: &Application<'_>, proof: &Proof<'_>) -> Result<Leaf, CaError> {
        let Application { csr, instance, life, .. } = *application;
        if !is_name(instance) {
            return Err(CaError::Name(instance.chars().take(300).collect(), "an instance's name"));
        }
        let now = (self.clock)();
        let (issuing, issued_by, policy) = self.issuing(now)?;
        if csr.identity.trust_domain() != policy.trust_domain {
            return Err(CaError::TrustDomain { identity: csr.identity.to_string(), trust_domain: policy.trust_domain });
        }
        not_control(&csr.identity)?;
        let life = life.filter(|life| !life.is_zero()).unwrap_or(policy.leaf_life).min(policy.leaf_life);
        let (ended, pod_uid) = match proof {
            Proof::Token(_) => (None, String::new()),
            Proof::Leaf(leaf) => self.renews(leaf, application, &policy, now)?,
            Proof::ServiceAccount(token) => {
                let pod_uid = self.verify_service_account(token, csr, instance, &policy.trust_domain)?;
                self.may_have(application, &policy)?;
                (None, pod_uid)
            }
        };
        // Signed first and taken second: a failure to sign must not cost the bearer its token.
        let serial = random::<SERIAL_BYTES>()?;
        let bearer = Bearer { for_application: application.for_application, pod_uid: &pod_uid };
        #[allow(clippy::disallowed_methods, reason = "how long it takes is told, and decides nothing")]
        let began = Instant::now();
        let leaf = authority::sign(csr, &csr.identity, &issuing, life, now, serial, bearer)?;
        self.desk.audit.signed(began.elapsed());
        if let Proof::Token(text) = proof {
            self.take(text, csr, instance, now)?;
        }
        if let Some(held) = ended {
            // Twice as long as it would do, for clocks that were ahead.
            let forget = (now - 2 * EXPIRED_GRACE).unix_timestamp();
            if !self.store.revive(&held.serial, held.not_after.unix_timestamp(), forget)? {
                return Err(CaError::Leaf("it has expired and was renewed once since; join again with a token"));
            }
        }
        self.note(application, (proof.attestation(), pod_uid), &leaf, issued_by, now);
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

    /// Writes book and audit log. A disk that fails costs nobody a leaf: the rows wait for the disk, in memory.
    fn note(
        &self,
        application: &Application<'_>,
        (attestation, pod_uid): (Attestation, String),
        leaf: &Leaf,
        (issuer, root): IssuedBy,
        now: OffsetDateTime,
    ) {
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
            root,
            for_application: application.for_application,
            leaf_sha256: leaf.chain.first().map(|leaf| sha256(leaf)).unwrap_or_default(),
            number: 0,
            pod_uid,
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
            leaf_sha256: entry.leaf_sha256.clone(),
            pod_uid: entry.pod_uid.clone(),
        };
        let (gone, entries) = {
            let book = &mut self.lock().book;
            let entry = IssuedLeaf { number: book.next_number(), ..entry };
            (book.add(entry, now.unix_timestamp()), book.to_write())
        };
        let rows = self.desk.audit.issued(issuance);
        let failure = self.store.put_issued(&entries, &gone, &rows, now.unix_timestamp()).err();
        if let Some(error) = &failure {
            tracing::warn!(%error, serial = leaf.serial, "an issued certificate is not in the book on disk");
            self.lock().book.not_written(&entries);
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
        let mut sans = vec![authority::uri(&format!("spiffe://{}/ns/{ROOT_NAMESPACE}/sa/{CONTROL_ACCOUNT}", policy.trust_domain))?];
        for name in &names.dns {
            sans.push(SanType::DnsName(name.as_str().try_into().map_err(SignError::from)?));
        }
        sans.extend(names.addresses.iter().copied().map(SanType::IpAddress));
        let leaf = authority::sign_server(&key, sans, &issuing, SERVER_LIFE, now, random::<SERIAL_BYTES>()?)?;
        let lasts = (leaf.not_after - now) * ISSUING_ROTATE_PERCENT / 100;
        let mut chain = leaf.chain;
        if let Keys::Own(own) = &self.lock().keys {
            // At the end of the chain: a verifier that knows the issuing root never looks so far.
            let shown: Vec<_> = own.shown(now).into_iter().filter(|certificate| !chain.contains(certificate)).collect();
            chain.extend(shown);
        }
        Ok(Seat { chain, key: Zeroizing::new(key.serialize_der()), lasts: Duration::try_from(lasts).unwrap_or(Duration::from_secs(1)) })
    }

    /// The newest unexpired leaf of each instance.
    pub fn certs(&self) -> Vec<IssuedLeaf> {
        self.lock().book.current((self.clock)().unix_timestamp())
    }

    /// SHA-256 (lower-case hex) of the root of each unexpired leaf, by serial number.
    pub fn roots_of_leaves(&self) -> BTreeMap<String, String> {
        self.lock().book.roots((self.clock)().unix_timestamp())
    }

    /// The issuing certificate of now, and how the book names it; replaced here when it is due, or was made when the clock was ahead.
    fn issuing(&self, now: OffsetDateTime) -> Result<(Arc<Issuing>, IssuedBy, Policy), CaError> {
        let mut state = self.lock();
        let whole = state.issuing.not_after - state.issuing.not_before;
        if let Keys::Own(own) = &state.keys
            && (now >= state.issuing.not_before + whole * ISSUING_ROTATE_PERCENT / 100 || now < state.issuing.not_before)
        {
            let fresh = own.renew_issuing(&self.store, &state.policy, now)?;
            state.issue_by(fresh);
        }
        Ok((state.issuing.clone(), (state.issuer.clone(), state.root.clone()), state.policy.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subject of the issuing certificate, and the hash of its root.
type IssuedBy = (String, String);

impl State {
    fn roots(&self, now: OffsetDateTime) -> RootSet {
        match &self.keys {
            Keys::Own(own) => own.set(now),
            Keys::External(external) => external.set(),
        }
    }

    fn issue_by(&mut self, issuing: Issuing) {
        (self.issuer, self.root) = (subject(&issuing.certificate_der), sha256(&issuing.root_der));
        self.issuing = Arc::new(issuing);
    }
}

fn subject(der: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed.subject().to_string()).unwrap_or_default()
}

fn not_control(identity: &Identity) -> Result<(), CaError> {
    if identity.is_control_plane() { Err(CaError::Control(identity.clone())) } else { Ok(()) }
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
