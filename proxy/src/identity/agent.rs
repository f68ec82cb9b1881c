//! The task that keeps the proxy's leaf fresh.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use engine::model::Trust;
use proto::identity::{DEFAULT_TRUST_DOMAIN, Identity, NotAnIdentity};
use proto::mesh::certificates_client::CertificatesClient;
use proto::mesh::{SignRequest, SignResponse};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{Instrument as _, debug, field, info, info_span, warn};
use zeroize::Zeroizing;

use super::rotation::{Effect, Event, Rotation};
use super::token::{Bearer, Token, TokenFile};
use crate::io::{Clock, Draw};
use crate::snapshots::Snapshots;
use crate::tls::dial::{DialError, Dialer};
use crate::tls::{Credential, CredentialCell, CredentialError, TrustCell, TrustError, verify_chain};

/// Longest an attempt may take, connection included.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// A leaf that ended less than this ago may still renew itself once (kinds.md, "What `up` does").
const EXPIRED_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Look this often whether a leaf is due: the machine may have slept, or its clock been set.
const LOOK: Duration = Duration::from_secs(15);
/// How far into the future a leaf may begin: the authority's clock may be a little ahead.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A moment to wake at: by the wall clock or after as long as it was away when it was set, whatever comes first. So a clock that is set
/// forward makes no leaf end unnoticed, and one that is set back puts nothing off.
#[derive(Clone, Copy, Debug)]
struct Alarm {
    wall: SystemTime,
    steady: Instant,
}

impl Alarm {
    fn at(wall: SystemTime, clock: &Clock) -> Self {
        Self { wall, steady: clock.now() + wall.duration_since(clock.wall()).unwrap_or_default() }
    }

    /// Zero: it is time.
    fn left(self, clock: &Clock) -> Duration {
        let by_wall = self.wall.duration_since(clock.wall()).unwrap_or_default();
        by_wall.min(self.steady.saturating_duration_since(clock.now()))
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Namespace of the workload.
    pub namespace: String,
    /// Workload.
    pub workload: String,
    /// Instance.
    pub instance: String,
    /// Service account asked for; the authority has the last word.
    pub service_account: String,
}

/// Why no leaf was had.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0}")]
    Token(String),
    #[error("the authority refused: {} ({:?})", .0.message(), .0.code())]
    Refused(#[from] Status),
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Identity(#[from] NotAnIdentity),
    #[error("the authority answered with {0}")]
    Answer(#[from] BadAnswer),
    #[error("no answer within {} s", ATTEMPT_MAX.as_secs())]
    Timeout,
}

/// What may be wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum BadAnswer {
    /// Chain or key.
    #[error("a certificate that cannot be used: {0}")]
    Credential(#[from] CredentialError),
    /// Someone else's identity.
    #[error("a certificate for {found}, not one for the namespace `{namespace}` of the trust domain `{trust_domain}`")]
    Identity {
        /// What it names.
        found: Arc<Identity>,
        /// Our namespace.
        namespace: String,
        /// Our trust domain.
        trust_domain: String,
    },
    /// Another workload's name.
    #[error("a certificate for the workload `{found}`, not `{expected}`")]
    Workload {
        /// What it names.
        found: Arc<str>,
        /// Our own.
        expected: String,
    },
    /// Ended, or not begun.
    #[error("a certificate that is not valid now; compare the clocks of both machines")]
    Dates,
    /// The chain.
    #[error("a chain that does not end in the trust bundle: {0}")]
    Chain(rustls::Error),
    /// The bundle.
    #[error("an unusable bundle: {0}")]
    Bundle(#[from] TrustError),
    /// The bundle holds none of the roots this proxy was told to trust, nor one that the control plane proves itself by.
    #[error("a bundle that holds none of the roots of --control-ca, and none that the control plane proves itself by")]
    StrangeBundle,
}

/// A leaf with its key in the open: for files and for applications, never a proxy's own.
pub struct Exposed {
    /// The leaf.
    pub credential: Arc<Credential>,
    /// PKCS#8 DER; wiped when dropped.
    pub key_pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Exposed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exposed").field("credential", &self.credential).finish_non_exhaustive()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Agent {
    /// Way to the control plane; as a client it shows the leaf of `bearer`.
    pub dialer: Dialer,
    /// The leaf that speaks for us: our own, or for an application's leaf the proxy's.
    pub bearer: Arc<CredentialCell>,
    /// Where leaves go with their keys, if they are for somebody else.
    pub exposed: Option<watch::Sender<Option<Arc<Exposed>>>>,
    /// Asks for a leaf at once.
    pub hurry: Arc<Notify>,
    /// Where leaves are published.
    pub credentials: Arc<CredentialCell>,
    /// Where the first bundle is published; later ones come by ADS.
    pub trust: Arc<TrustCell>,
    /// Leaf life and renewal point.
    pub snapshots: Snapshots,
    /// Wall time.
    pub clock: Clock,
    /// Who we are.
    pub subject: Subject,
    /// Where a token may lie.
    pub token: Option<TokenFile>,
}

impl Agent {
    /// Runs until `stop`. Dropping it mid-way loses nothing: what is published stays.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        let mut rotation = Rotation::default();
        let mut changes = self.snapshots.changes();
        let mut outcast = self.trust.outcast();
        let mut wake = Alarm::at(self.clock.wall(), &self.clock);
        let mut failures = 0_u32;
        loop {
            let pause = wake.left(&self.clock).min(LOOK);
            let events = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(pause) => if wake.left(&self.clock).is_zero() || self.is_early() { vec![Event::Due] } else { continue },
                // A revoked certificate is not renewed but replaced, where there is a token.
                Ok(()) = outcast.changed() => match *outcast.borrow_and_update() {
                    Some(_) => vec![Event::Due],
                    None => continue,
                },
                () = self.hurry.notified() => vec![Event::Due],
                Ok(()) = changes.changed() => self.noticed(),
            };
            let mut effects: Vec<Effect> =
                events.into_iter().flat_map(|event| rotation.on(event, self.clock.wall(), chance(&draw))).collect();
            if effects == [Effect::Request] {
                let outcome = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    outcome = self.attempt(failures) => outcome,
                };
                failures = if outcome == Event::Failed { failures.saturating_add(1) } else { 0 };
                effects = rotation.on(outcome, self.clock.wall(), chance(&draw));
            }
            for effect in effects {
                match effect {
                    Effect::WakeAt(at) => wake = Alarm::at(at, &self.clock),
                    Effect::Warn { left } => warn!(left_secs = left.as_secs(), "the certificate ends soon and could not be renewed yet"),
                    Effect::Request => wake = Alarm::at(self.clock.wall(), &self.clock),
                }
            }
        }
    }

    /// Whether the leaf in use is of a time that has not come: it was made before the clock was set back.
    fn is_early(&self) -> bool {
        self.credentials.current().is_some_and(|leaf| leaf.not_before > self.clock.wall() + CLOCK_SKEW)
    }

    /// What a new configuration says of leaves.
    fn noticed(&self) -> Vec<Event> {
        let snapshot = self.snapshots.load();
        let Some(settings) = snapshot.settings.as_deref() else { return Vec::new() };
        let mut events = vec![Event::Mesh { percent: settings.rotate_at_percent, life: settings.leaf_life }];
        if let (Some(trust), Some(leaf)) = (&snapshot.trust, self.credentials.current())
            && !is_below(&leaf, trust)
        {
            // An application's leaf goes first, without a spread: the rotation waits for the proxy's own.
            events.push(if self.for_application() { Event::Due } else { Event::Displaced });
        }
        events
    }

    /// One attempt, and what became of it.
    async fn attempt(&self, failures: u32) -> Event {
        let span = info_span!("certificate", failures, serial = field::Empty, otel.status_code = field::Empty);
        let renewed = match tokio::time::timeout(ATTEMPT_MAX, self.renew(failures)).instrument(span.clone()).await {
            Ok(renewed) => renewed,
            Err(_) => Err(Failed::Timeout),
        };
        let _within = span.enter();
        match renewed {
            Ok((credential, key_pkcs8)) => {
                span.record("serial", credential.serial.as_str());
                let (not_before, not_after) = (credential.not_before, credential.not_after);
                info!(identity = %credential.identity, workload = %credential.workload, serial = credential.serial, "certificate issued");
                // The authority's clock may be a little ahead; until then the present leaf is the better one.
                let early = not_before.duration_since(self.clock.wall()).unwrap_or_default();
                if self.credentials.current().is_some_and(|present| present.not_after > not_before) {
                    sleep(early).await;
                }
                let credential = Arc::new(credential);
                self.credentials.publish(Arc::clone(&credential));
                if let Some(exposed) = &self.exposed {
                    exposed.send_replace(Some(Arc::new(Exposed { credential, key_pkcs8 })));
                }
                Event::Issued { not_before, not_after }
            }
            Err(error) => {
                span.record("otel.status_code", "ERROR");
                let first = failures < 3 || failures.is_multiple_of(20);
                if first {
                    warn!("no certificate from the control plane at {}: {error}", self.dialer.target());
                } else {
                    debug!("no certificate from the control plane at {}: {error}", self.dialer.target());
                }
                Event::Failed
            }
        }
    }

    /// Whether the leaf is for the application beside a proxy that speaks for it.
    fn for_application(&self) -> bool {
        !Arc::ptr_eq(&self.bearer, &self.credentials)
    }

    async fn renew(&self, failures: u32) -> Result<(Credential, Zeroizing<Vec<u8>>), Failed> {
        let now = self.clock.wall();
        let current = self.bearer.current();
        let left = current.as_ref().map(|credential| credential.not_after.duration_since(now));
        // A service account's token is good at any time, and any replica of the control plane knows it; whether a leaf is one of its own, only
        // the one that issued it.
        if let Ok(account @ Bearer::Account(_)) = self.token() {
            return match self.ask(Some(account)).await {
                Err(error) if matches!(left, Some(Ok(_))) => self.ask(None).await.map_err(|_| error),
                outcome => outcome,
            };
        }
        match left {
            // Valid: it speaks for itself. Refused (revoked, forgotten), a token may help.
            Some(Ok(_)) => match self.ask(None).await {
                Err(Failed::Refused(status)) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
                    let Ok(token) = self.token() else { return Err(status.into()) };
                    self.ask(Some(token)).await
                }
                outcome => outcome,
            },
            // Ended a while ago: by token and by the old leaf in turn.
            Some(Err(since)) if since.duration() < EXPIRED_GRACE && !self.for_application() => match self.token() {
                Ok(token) if failures.is_multiple_of(2) => self.ask(Some(token)).await,
                _ => self.ask(None).await,
            },
            _ => self.ask(Some(self.token().map_err(Failed::Token)?)).await,
        }
    }

    /// The token, if there is one for us that trusts a root we trust.
    fn token(&self) -> Result<Bearer, String> {
        let Some(file) = &self.token else {
            if self.for_application() {
                return Err("the proxy has no valid certificate of its own".to_owned());
            }
            return Err("there is no certificate to renew and no --token-file: make a token with `meshwright token create`".to_owned());
        };
        let token = match file.read().map_err(|error| error.to_string())? {
            Bearer::Join(token) => token,
            account @ Bearer::Account(_) => return Ok(account),
        };
        let expected = format!("{}/{}", self.subject.namespace, self.subject.workload);
        if token.workload != expected {
            return Err(format!(
                "the token in {} is for {}, but this proxy is of {expected} (--workload)",
                file.path().display(),
                token.workload
            ));
        }
        Ok(Bearer::Join(token))
    }

    /// A channel to the control plane, which has proved itself; by a token, as the one that the token is for.
    async fn connect(&self, bearer: Option<&Bearer>) -> Result<Channel, Failed> {
        let channel = self.dialer.connect(bearer.is_none()).await;
        let Some(token) = join(bearer).filter(|token| !self.dialer.tls().pinned(&token.ca, unix(self.clock.wall()))) else {
            return Ok(channel?);
        };
        let path = self.token.as_ref().map(|file| file.path().display().to_string()).unwrap_or_default();
        let pin = format!("the token in {path} pins root {}, which --control-ca does not hold", token.ca);
        Err(Failed::Token(match channel {
            Ok(_) => format!("{pin}, and the control plane does not prove itself by it: one of them is of another mesh"),
            Err(error) => format!("{error}; also, {pin}: one of them may be of another mesh"),
        }))
    }

    async fn ask(&self, bearer: Option<Bearer>) -> Result<(Credential, Zeroizing<Vec<u8>>), Failed> {
        // Connected first: the control plane's own certificate says the trust domain.
        let channel = self.connect(bearer.as_ref()).await?;
        let trust_domain = self.dialer.tls().trust_domain().unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned());
        // The token knows best, then the leaf that is renewed, then the flag.
        let admitted = join(bearer.as_ref()).and_then(|token| token.identity.clone());
        let asked = match (admitted, self.bearer.current()) {
            (Some(identity), _) => identity,
            (None, Some(leaf)) => (*leaf.identity).clone(),
            (None, None) => Identity::new(&trust_domain, &self.subject.namespace, &self.subject.service_account)?,
        };
        let (key, csr_der) = certificate_request(&asked, &self.subject.workload)?;
        let life = self.snapshots.load().settings.as_deref().map(|settings| settings.leaf_life);
        let (token, account) = match bearer {
            None => (String::new(), String::new()),
            Some(Bearer::Join(token)) => (token.text, String::new()),
            Some(Bearer::Account(text)) => (String::new(), text.to_string()),
        };
        let request = SignRequest {
            csr_der: csr_der.into(),
            token,
            instance: self.subject.instance.clone(),
            life: life.and_then(|life| life.try_into().ok()),
            service_account_token: account,
            for_application: self.for_application(),
        };
        let answer = CertificatesClient::new(channel).sign(request).await?.into_inner();
        let now = self.clock.wall();
        let tls = self.dialer.tls();
        let proved =
            |bundle: &[CertificateDer<'static>]| bundle.iter().any(|root| tls.roots().contains(root)) || tls.ends_in(bundle, unix(now));
        let (credential, bundle) = judge(answer, &key, &self.subject, &trust_domain, proved, &self.trust, now)?;
        if let Some(bundle) = bundle {
            self.trust.publish(bundle).map_err(BadAnswer::from)?;
        }
        Ok((credential, Zeroizing::new(key.serialize_der())))
    }
}

fn join(bearer: Option<&Bearer>) -> Option<&Token> {
    match bearer {
        Some(Bearer::Join(token)) => Some(token),
        _ => None,
    }
}

/// Whether a leaf is below the root that issues now.
fn is_below(leaf: &Credential, trust: &Trust) -> bool {
    // When it is asked is not the question: within its own dates.
    let at = unix(leaf.not_before + leaf.life() / 2);
    verify_chain(leaf.chain(), std::slice::from_ref(trust.issuing()), at).is_ok()
}

fn unix(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn chance(draw: &Draw) -> f64 {
    f64::from((draw.next() >> 32) as u32) / f64::from(u32::MAX)
}

/// A fresh P-256 key and the request (PKCS#10, DER) for an identity.
///
/// # Errors
/// The crypto library's.
pub fn certificate_request(identity: &Identity, workload: &str) -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, workload);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let request = params.serialize_request(&key)?;
    Ok((key, request.der().to_vec()))
}

/// Judges an answer before use: the key fits, the name is ours, the dates hold, the chain ends in the bundle that came by ADS. Before
/// that, and after an absence in which the root was rotated, the bundle in the answer counts, provided that the control plane is proved by
/// it as it is by what this proxy knew (`proved`); then it is returned, too, and to be believed from now on.
///
/// # Errors
/// What is wrong with it; nothing has been published then.
pub fn judge(
    answer: SignResponse,
    key: &KeyPair,
    subject: &Subject,
    trust_domain: &str,
    proved: impl Fn(&[CertificateDer<'static>]) -> bool,
    trust: &TrustCell,
    now: SystemTime,
) -> Result<(Credential, Option<Vec<CertificateDer<'static>>>), BadAnswer> {
    let der = |list: Vec<bytes::Bytes>| list.into_iter().map(|bytes| CertificateDer::from(bytes.to_vec())).collect::<Vec<_>>();
    let (chain, bundle) = (der(answer.chain_der), der(answer.bundle_der));
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|text| CredentialError::Key(rustls::Error::General(text.to_owned())))?;
    let credential = Credential::new(chain, key)?;
    let found = &credential.identity;
    if found.namespace() != subject.namespace || found.trust_domain() != trust_domain {
        let (namespace, trust_domain) = (subject.namespace.clone(), trust_domain.to_owned());
        return Err(BadAnswer::Identity { found: Arc::clone(found), namespace, trust_domain });
    }
    if *credential.workload != *subject.workload {
        return Err(BadAnswer::Workload { found: Arc::clone(&credential.workload), expected: subject.workload.clone() });
    }
    if credential.not_before > now + CLOCK_SKEW || credential.not_after <= now {
        return Err(BadAnswer::Dates);
    }
    let known = trust.roots();
    let at = unix(now.max(credential.not_before));
    if known.is_empty() {
        if !proved(&bundle) {
            return Err(BadAnswer::StrangeBundle);
        }
        verify_chain(credential.chain(), &bundle, at).map_err(BadAnswer::Chain)?;
        return Ok((credential, Some(bundle)));
    }
    let Err(error) = verify_chain(credential.chain(), &known, at) else { return Ok((credential, None)) };
    if proved(&bundle) && verify_chain(credential.chain(), &bundle, at).is_ok() {
        return Ok((credential, Some(bundle)));
    }
    Err(BadAnswer::Chain(error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::tls::testing::Authority;

    fn subject() -> Subject {
        Subject { namespace: "shop".into(), workload: "catalog".into(), instance: "catalog-0".into(), service_account: "catalog".into() }
    }

    /// Aim: an alarm goes off by either clock, whichever comes first: set forward, set back, or left alone.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_puts_no_alarm_off() {
        let by_ms: &'static AtomicI64 = Box::leak(Box::default());
        let clock =
            Clock::Stepped { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30), started: tokio::time::Instant::now(), by_ms };
        let hour = Duration::from_secs(3600);
        for (set_ms, left) in [(0, hour), (3_000_000, hour / 6), (4_000_000, Duration::ZERO), (-9_000_000, hour)] {
            by_ms.store(0, Ordering::Relaxed);
            let alarm = Alarm::at(clock.wall() + hour, &clock);
            by_ms.store(set_ms, Ordering::Relaxed);
            assert_eq!(alarm.left(&clock), left);
            tokio::time::advance(hour).await;
            assert_eq!(alarm.left(&clock), Duration::ZERO);
        }
    }

    /// Aim: a good answer is taken; one with a foreign key, name, workload, date, chain or bundle is refused, each by its reason.
    #[test]
    fn answers_are_judged() {
        let (authority, other) = (Authority::new("root"), Authority::new("other"));
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let ours: Identity = "spiffe://cluster.local/ns/shop/sa/catalog".parse().unwrap();
        let foreign: Identity = "spiffe://cluster.local/ns/bank/sa/catalog".parse().unwrap();
        let (key, csr) = certificate_request(&ours, "catalog").unwrap();
        let answer = |authority: &Authority, csr: &[u8], from, to, bundle: &Authority| SignResponse {
            chain_der: vec![authority.sign(csr, from, to).to_vec().into()],
            bundle_der: bundle.roots().into_iter().map(|root| root.to_vec().into()).collect(),
            ..Default::default()
        };
        let (_, csr_foreign_key) = certificate_request(&ours, "catalog").unwrap();
        // Only the name is judged, so the same key signs a request for another identity.
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(foreign.to_string().try_into().unwrap())];
        let csr_foreign = params.serialize_request(&key).unwrap().der().to_vec();
        params.subject_alt_names = vec![SanType::URI(ours.to_string().try_into().unwrap())];
        let csr_other_workload = params.serialize_request(&key).unwrap().der().to_vec();
        let judged = |answer, known: Option<&Authority>| {
            let trust = TrustCell::default();
            if let Some(known) = known {
                trust.publish(known.roots()).unwrap();
            }
            let proved = |bundle: &[CertificateDer<'static>]| bundle == authority.roots();
            judge(answer, &key, &subject(), "cluster.local", proved, &trust, now).map(|(credential, bundle)| (credential, bundle.is_some()))
        };
        let good = |bundle| answer(&authority, &csr, now - hour, now + hour, bundle);
        let (first, learnt) = judged(good(&authority), None).unwrap();
        assert_eq!((first.identity.to_string(), learnt), (ours.to_string(), true));
        assert!(!judged(good(&other), Some(&authority)).unwrap().1, "a bundle by ADS outranks the answer's");
        assert!(judged(good(&authority), Some(&other)).unwrap().1, "back after a rotation: the control plane is proved by the new bundle");
        for (case, answer, known, expected) in [
            ("empty", SignResponse::default(), None, "chain is empty"),
            ("foreign key", answer(&authority, &csr_foreign_key, now - hour, now + hour, &authority), None, "does not fit"),
            ("foreign name", answer(&authority, &csr_foreign, now - hour, now + hour, &authority), None, "ns/bank"),
            ("workload", answer(&authority, &csr_other_workload, now - hour, now + hour, &authority), None, "workload"),
            ("ended", answer(&authority, &csr, now - hour * 2, now - hour, &authority), None, "not valid now"),
            ("not begun", answer(&authority, &csr, now + hour, now + hour * 2, &authority), None, "not valid now"),
            ("strange bundle", good(&other), None, "none of the roots"),
            ("chain", answer(&other, &csr, now - hour, now + hour, &authority), None, "does not end"),
            ("outdated", good(&other), Some(&other), "does not end"),
            ("unproved", answer(&other, &csr, now - hour, now + hour, &other), Some(&authority), "does not end"),
        ] {
            let error = judged(answer, known).unwrap_err().to_string();
            assert!(error.contains(expected), "{case}: {error}");
        }
    }
}
