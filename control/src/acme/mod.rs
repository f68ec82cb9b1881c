//! AcmeOrders certificates for listeners (RFC 8555): look which names want one, decide what is next for each, and do that, a few at a time. One driver
//! runs in the control plane that serves; every replica of a Gateway answers what the authority asks, and what comes is a Secret like any other.
//! An order that fails touches nothing that is in force.

mod accounts;
pub(crate) mod calls;
mod counts;
mod decide;
mod dns;
mod order;
mod proving;
mod shelf;
mod trouble;
mod webhook;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::accounts::{AccountSecret, Accounts};
use self::calls::ComeAgain;
pub use self::counts::AcmeCounts;
use self::counts::OrderEnd;
use self::decide::{Lifetime, ToDo, Track, next};
use self::order::{NewCertificate, Proofs, identifier, obtain};
use self::proving::Proof;
pub use self::proving::Proving;
use self::shelf::{KeptAcme, Shelf};
use self::trouble::{Trouble, told};
use crate::publish::board::{Board, Errand};
use crate::publish::edition::Edition;
use crate::store::Store;
use crate::translate::{AcmeName, acme_names};
use crate::world::acme::{ACME_NAMES_MAX, AcmeBook, AcmeOrder};
use crate::world::certificate::Certificate;
use crate::world::{Change, ObjectKey, Spec, World};

/// AcmeOrders and questions under way at once; the most urgent first, the others wait.
const ORDERS_MAX: usize = 4;
/// One order, with all that is waited for in it.
const ORDER_MAX: Duration = Duration::from_secs(600);
/// Editions come in crowds: one look for those of this long.
const CROWD: Duration = Duration::from_millis(500);
/// Look again at least this often: the driver goes by wall time, which may jump.
const LOOK: Duration = Duration::from_secs(30);
/// So long after the start what was ordered before is believed to be about to be read.
const READING: Duration = Duration::from_secs(30);
/// Proofs that wait to be told.
const PROOFS_MAX: usize = 16;
/// Names of which something is remembered, those that nobody wants any more among them; of more, those go first whose pause is over first.
const TRACKS_MAX: usize = 4 * ACME_NAMES_MAX;

/// What became of a task.
enum CameOf {
    /// A certificate is in force, for so long.
    Obtained { serial: String, life_ms: i64, renewed: bool },
    /// There is none; or there is one that could not be written, and is not to be ordered again for that.
    Failed { why: String, retry_after: Option<Duration>, unwritten: Option<Box<NewCertificate>> },
    /// When the authority wants it renewed, and when to ask again.
    Answered { serial: String, window: (i64, i64), again: Duration },
    /// It says nothing of that.
    Unanswered { serial: String },
}

/// A task under way.
struct UnderWay {
    ordering: bool,
    abort: AbortHandle,
}

/// The task. See the module.
pub struct AcmeOrders {
    shelf: Arc<Shelf>,
    accounts: Arc<Accounts>,
    tracks: BTreeMap<ObjectKey, Track>,
    book: AcmeBook,
    /// The one that was told last.
    told: AcmeBook,
    tasks: JoinSet<(ObjectKey, CameOf)>,
    under_way: BTreeMap<ObjectKey, UnderWay>,
    /// Certificates that came and could not be written.
    unwritten: BTreeMap<ObjectKey, Box<NewCertificate>>,
    proving: Proving,
    proofs: mpsc::Receiver<Proof>,
    counts: AcmeCounts,
    began: Instant,
    /// What is remembered has changed.
    unkept: bool,
}

impl AcmeOrders {
    /// A task that has not begun, and what it counts. `cluster`: where Secrets are written, if not to the book.
    pub fn new(board: Arc<Board>, store: Arc<Store>, cluster: Option<kube::Client>) -> (Self, AcmeCounts) {
        let (sender, proofs) = mpsc::channel(PROOFS_MAX);
        let counts = AcmeCounts::new(board.clock.clone());
        let proving = Proving { board: board.clone(), proofs: sender };
        let orders = Self {
            shelf: Arc::new(Shelf { board, store, cluster }),
            accounts: Arc::default(),
            tracks: BTreeMap::new(),
            book: AcmeBook::default(),
            told: AcmeBook::default(),
            tasks: JoinSet::new(),
            under_way: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            proving,
            proofs,
            counts: counts.clone(),
            began: Instant::now(),
            unkept: false,
        };
        (orders, counts)
    }

    /// Runs until `stop`. An order under way is given up then; whoever comes next begins it anew.
    pub async fn run(mut self, stop: CancellationToken) {
        let kept = self.shelf.read().await;
        self.accounts = Arc::new(Accounts::new(kept.accounts));
        self.tracks = kept.tracks.into_iter().collect();
        let mut editions = self.shelf.board.editions();
        let mut stale = true;
        let (mut looked, mut due) = (Instant::now(), Instant::now());
        loop {
            let at = if stale { due.min(looked + CROWD) } else { due };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.tasks.shutdown().await,
                Some(proof) = self.proofs.recv() => {
                    self.book.proofs.insert(proof.secret, proof.proof);
                    self.tell().await;
                    // An account that has been made for it is not made again by whoever comes next.
                    self.keep().await;
                    // Whoever waited may have been given up.
                    let _ = proof.told.send(());
                }
                Some(ended) = self.tasks.join_next() => {
                    self.ended(ended);
                    (stale, due) = (true, Instant::now());
                }
                changed = editions.changed(), if !stale => {
                    if changed.is_err() {
                        return;
                    }
                    stale = true;
                }
                () = sleep_until(at) => {
                    editions.mark_unchanged();
                    let edition = self.shelf.board.edition();
                    let pause = edition.map_or(LOOK, |edition| self.look(&edition));
                    self.tell().await;
                    self.keep().await;
                    (stale, looked) = (false, Instant::now());
                    due = looked + pause;
                }
            }
        }
    }

    fn now_ms(&self) -> i64 {
        self.shelf.board.clock.age_ms()
    }

    /// Looks at every name, and begins what is due; how long nothing else is, at most.
    fn look(&mut self, edition: &Edition) -> Duration {
        let (names, now_ms) = (acme_names(&edition.world), self.now_ms());
        self.forget(&names, now_ms);
        let known = self.began.elapsed() >= READING;
        let (mut due, mut rest_ms) = (Vec::new(), now_ms + i64::try_from(LOOK.as_millis()).unwrap_or(i64::MAX));
        let mut ends_ms = BTreeMap::new();
        for name in &names {
            let life = name.certificate.as_deref().map(life);
            let track = self.tracks.entry(name.secret.clone()).or_default();
            let percent = name.terms.renew_at_percent;
            let step = next(life.as_ref(), percent, track, known, now_ms);
            let under_way = self.under_way.get(&name.secret);
            let ordering = under_way.is_some_and(|task| task.ordering);
            let mut standing = track.standing(life.as_ref(), percent, ordering, step, now_ms);
            if let Some(why) = &name.barred {
                (standing.order, standing.problem, standing.next_try_ms) = (AcmeOrder::Failing, Some(why.clone()), 0);
            }
            self.book.orders.insert(name.secret.clone(), standing);
            if let Some(life) = &life {
                // Of several namespaces' certificates for one host the first to end is told.
                let ends = ends_ms.entry(name.host.clone()).or_insert(life.ends_ms);
                *ends = life.ends_ms.min(*ends);
            }
            if under_way.is_some() || name.barred.is_some() {
                continue;
            }
            match step {
                ToDo::Rest(at) => rest_ms = rest_ms.min(at),
                ToDo::Order(since) => due.push((since, name, step)),
                ToDo::Ask => due.push((now_ms, name, step)),
            }
        }
        self.counts.there(ends_ms, names.iter().filter(|name| name.barred.is_some()).count());
        while self.under_way.len() < ORDERS_MAX {
            let Some(first) = first(&due, |namespace| self.under_way.keys().filter(|secret| secret.namespace == namespace).count()) else {
                break;
            };
            let (_, name, step) = due.swap_remove(first);
            self.begin(&edition.world, name, step);
        }
        Duration::from_millis(u64::try_from(rest_ms - now_ms).unwrap_or_default().max(1))
    }

    /// What nobody wants any more is given up. What is remembered of it stays for as long as nothing was to be ordered: a name that comes and goes is
    /// not ordered each time.
    fn forget(&mut self, names: &[AcmeName], now_ms: i64) {
        let wanted: BTreeSet<&ObjectKey> = names.iter().map(|name| &name.secret).collect();
        for (secret, task) in &self.under_way {
            if !wanted.contains(secret) {
                task.abort.abort();
            }
        }
        let before = self.tracks.len();
        self.tracks.retain(|secret, track| wanted.contains(secret) || self.under_way.contains_key(secret) || track.lasts(now_ms));
        while self.tracks.len() > TRACKS_MAX {
            let idle = self.tracks.iter().filter(|(secret, _)| !wanted.contains(secret)).min_by_key(|(_, track)| track.not_before_ms);
            let Some(idle) = idle.map(|(secret, _)| secret.clone()) else { break };
            self.tracks.remove(&idle);
        }
        self.unwritten.retain(|secret, _| wanted.contains(secret));
        self.unkept |= self.tracks.len() != before;
        self.book.orders.retain(|secret, _| wanted.contains(secret));
        self.book.proofs.retain(|secret, _| wanted.contains(secret));
    }

    fn begin(&mut self, world: &World, name: &AcmeName, step: ToDo) {
        let (secret, ordering) = (name.secret.clone(), step != ToDo::Ask);
        let task = Task {
            accounts: self.accounts.clone(),
            proving: self.proving.clone(),
            shelf: self.shelf.clone(),
            secret: account_secret(world, name),
            name: name.clone(),
            unwritten: self.unwritten.get(&secret).filter(|_| ordering).cloned(),
        };
        if ordering {
            // It is written down that one is under way.
            self.unkept = true;
            tracing::info!(host = name.host, directory = name.terms.directory, "ordering a certificate");
            if let Some(standing) = self.book.orders.get_mut(&secret) {
                (standing.order, standing.next_try_ms) = (AcmeOrder::Ordering, 0);
            }
        }
        let key = secret.clone();
        let abort = self.tasks.spawn(async move { (key, if ordering { task.order().await } else { task.ask().await }) });
        self.under_way.insert(secret, UnderWay { ordering, abort });
    }

    /// A task has come to its end, or was given up.
    fn ended(&mut self, ended: Result<(ObjectKey, CameOf), JoinError>) {
        let (secret, ended) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let task = self.under_way.iter().find(|(_, task)| task.abort.id() == error.id());
                let Some((secret, ordering)) = task.map(|(secret, task)| (secret.clone(), task.ordering)) else { return };
                let why = "it was given up, or ended unexpectedly".to_owned();
                let ended = if ordering {
                    CameOf::Failed { why, retry_after: None, unwritten: None }
                } else {
                    let asked_of = self.tracks.get(&secret).map(|track| track.asked_of.clone());
                    CameOf::Unanswered { serial: asked_of.unwrap_or_default() }
                };
                (secret, ended)
            }
        };
        self.under_way.remove(&secret);
        self.book.proofs.remove(&secret);
        let now_ms = self.now_ms();
        let Some(track) = self.tracks.get_mut(&secret) else { return };
        self.unkept = true;
        match ended {
            CameOf::Obtained { serial, life_ms, renewed } => {
                self.unwritten.remove(&secret);
                self.counts.ended(if renewed { OrderEnd::Renewed } else { OrderEnd::Issued });
                tracing::info!(%secret, serial, renewed, "a certificate came");
                track.obtained(&serial, life_ms, draw(), now_ms);
            }
            CameOf::Failed { why, retry_after, unwritten } => {
                match unwritten {
                    Some(unwritten) => _ = self.unwritten.insert(secret.clone(), unwritten),
                    None => _ = self.unwritten.remove(&secret),
                }
                self.counts.ended(OrderEnd::Failed);
                track.failed(&why, retry_after, draw(), now_ms);
                tracing::warn!(%secret, why, failures = track.failures, "no certificate came; what is in force stays, and it is tried again");
            }
            CameOf::Answered { serial, window, again } => track.answered(&serial, window, again, draw(), now_ms),
            CameOf::Unanswered { serial } => track.unanswered(&serial, now_ms),
        }
    }

    /// Tells the world how orders stand, if they stand otherwise.
    async fn tell(&mut self) {
        if self.book == self.told {
            return;
        }
        self.told.clone_from(&self.book);
        // An end of the writer is the end of all.
        self.shelf.board.send(Errand::Runtime(Change::Acme(Arc::new(self.book.clone())))).await;
    }

    async fn keep(&mut self) {
        let fresh = self.accounts.are_fresh();
        if std::mem::take(&mut self.unkept) || fresh {
            let now_ms = self.now_ms();
            let ordering = |secret: &ObjectKey| self.under_way.get(secret).is_some_and(|task| task.ordering);
            let track = |(secret, track): (&ObjectKey, &Track)| {
                (secret.clone(), if ordering(secret) { track.cut_short(draw(), now_ms) } else { track.clone() })
            };
            let tracks = self.tracks.iter().map(track).collect();
            self.shelf.write(&KeptAcme { accounts: self.accounts.all(), tracks }).await;
        }
    }
}

fn life(certificate: &Certificate) -> Lifetime {
    Lifetime { serial: certificate.serial.clone(), begins_ms: certificate.begins_ms, ends_ms: certificate.ends_ms }
}

/// Which of these is begun next: of whichever namespace has fewest under way, what has been due longest. Whoever wants many, from an authority that
/// takes its time, does not keep others waiting.
fn first(due: &[(i64, &AcmeName, ToDo)], under_way: impl Fn(&str) -> usize) -> Option<usize> {
    let rank = |place: &usize| {
        let (since, name, _) = due[*place];
        (under_way(&name.secret.namespace), since, &name.secret)
    };
    (0..due.len()).min_by(|one, other| rank(one).cmp(&rank(other)))
}

/// By chance, 0 to 1.
fn draw() -> f64 {
    let mut bytes = [0; 4];
    // Without random bytes it is as good a moment as any.
    let _ = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// What the Secret says that a policy names for its account. `Err`: there is none.
fn account_secret(world: &World, name: &AcmeName) -> Result<AccountSecret, String> {
    let Some(at) = &name.terms.account else { return Ok(AccountSecret::default()) };
    match world.get(&at.object).map(|object| &object.spec) {
        Some(Spec::Secret(contents)) => Ok(AccountSecret::read(contents, &at.key, &at.object.namespace)),
        _ => Err(format!("there is no {} (accountSecretRef)", at.object)),
    }
}

/// One thing that is done for one name.
struct Task {
    accounts: Arc<Accounts>,
    proving: Proving,
    shelf: Arc<Shelf>,
    secret: Result<AccountSecret, String>,
    name: AcmeName,
    /// One that came and could not be written.
    unwritten: Option<Box<NewCertificate>>,
}

impl Task {
    /// AcmeOrders a certificate and puts it in force.
    async fn order(self) -> CameOf {
        let noted = ComeAgain::default();
        let failed = |why: String, unwritten| CameOf::Failed { why, retry_after: noted.take(), unwritten };
        let issued = match self.unwritten.clone().filter(|issued| issued.is_for(&self.name.host, self.shelf.board.clock.age_ms())) {
            Some(issued) => issued,
            None => match timeout(ORDER_MAX, self.by_an_account(&noted)).await {
                Ok(Ok(issued)) => Box::new(issued),
                Ok(Err(Trouble::Refused(error))) => return failed(told(&error), None),
                Ok(Err(Trouble::Failed(why))) => return failed(why, None),
                Err(_) => return failed(format!("the order came to no end within {} s", ORDER_MAX.as_secs()), None),
            },
        };
        let (serial, life_ms) = (issued.certificate.serial.clone(), issued.certificate.ends_ms - issued.certificate.begins_ms);
        match self.shelf.put(&self.name.secret, &issued.secret).await {
            Ok(()) => CameOf::Obtained { serial, life_ms, renewed: self.name.certificate.is_some() },
            Err(why) => failed(why, Some(issued)),
        }
    }

    /// An authority that has forgotten the account is met with another one at once.
    async fn by_an_account(&self, noted: &ComeAgain) -> Result<NewCertificate, Trouble> {
        match (self.go(noted).await, &self.secret) {
            (Err(trouble), Ok(secret)) if self.accounts.doubt(&self.name, secret, &trouble) => self.go(noted).await,
            (came, _) => came,
        }
    }

    async fn go(&self, noted: &ComeAgain) -> Result<NewCertificate, Trouble> {
        let secret = self.secret.as_ref().map_err(|why| Trouble::Failed(why.clone()))?;
        // A certificate that nobody may write is not ordered: authorities count them.
        self.shelf.may_put(&self.name.secret).await.map_err(Trouble::Failed)?;
        let account = self.accounts.open(&self.name, secret, noted).await?;
        let replaces = self.name.certificate.as_deref().and_then(identifier);
        let proofs = Proofs { proving: &self.proving, account: secret, clock: &self.shelf.board.clock };
        obtain(&account, &self.name, replaces, &proofs).await
    }

    /// Asks the authority when it wants the certificate renewed. An authority that is away is no failure of an order.
    async fn ask(self) -> CameOf {
        let serial = self.name.certificate.as_ref().map(|current| current.serial.clone()).unwrap_or_default();
        let asked = async {
            let (secret, current) = (self.secret.as_ref().ok()?, self.name.certificate.as_deref().and_then(identifier)?);
            let account = self.accounts.open(&self.name, secret, &ComeAgain::default()).await.ok()?;
            account.renewal_info(&current).await.ok()
        };
        let Ok(Some((info, again))) = timeout(ORDER_MAX, asked).await else { return CameOf::Unanswered { serial } };
        let ms = |at: time::OffsetDateTime| i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
        let window = (ms(info.suggested_window.start), ms(info.suggested_window.end));
        CameOf::Answered { serial, window, again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Kind;
    use crate::world::edge::{AcmeChallenge, AcmeKeyType, AcmeTerms};

    #[test]
    fn whoever_has_fewest_under_way_is_next() {
        // Aim: a namespace that wants many names of an authority that takes its time does not keep another one's renewal waiting; of one namespace the
        // name that has been due longest.
        let terms = AcmeTerms {
            directory: "https://a.example/d".to_owned(),
            email: None,
            challenge: AcmeChallenge::Http01,
            key_type: AcmeKeyType::P256,
            renew_at_percent: 66.0,
            account: None,
            dns: None,
        };
        let name = |namespace: &str, host: &str| AcmeName {
            secret: ObjectKey::new(Kind::Secret, namespace, host),
            host: host.to_owned(),
            terms: terms.clone(),
            gateways: Vec::new(),
            barred: None,
            webhook: None,
            certificate: None,
        };
        let names = [name("many", "a"), name("many", "b"), name("one", "c")];
        let due = [(0, &names[1], ToDo::Order(0)), (5, &names[0], ToDo::Order(5)), (9, &names[2], ToDo::Order(9))];
        assert_eq!(first(&due, |_| 0), Some(0));
        assert_eq!(first(&due, |namespace| usize::from(namespace == "many")), Some(2));
        assert_eq!(first(&[], |_| 0), None);
    }
}
