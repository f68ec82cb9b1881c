//! Rotates the root of the mesh's own authority: look, decide, take a step, tell everybody, and wait for those who have to follow before
//! the next one. What was taken is the authority's to remember, so a process that ends anywhere is followed by one that goes on.

mod absence;
mod bundle;
mod decide;
mod look;
mod plan;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::absence::Absences;
pub use self::bundle::write_bundle;
use self::decide::{Facts, Next, decide};
use self::look::Leaves;
pub use self::plan::plan;
use crate::publish::board::{Board, Errand};
use crate::publish::trust::{Phase, Roots};
use crate::serve::authority::{SharedAuthority, Step};
use crate::serve::tls::{ClientRoots, Seating};

/// A proxy that is away is waited for this long: proxies come back within seconds, also after a restart of the control plane.
pub const AWAY_GRACE: Duration = Duration::from_secs(30);
/// Asks that wait to be taken up.
const ASKS_MAX: usize = 16;
/// Where somebody follows the bundles only, which it does without saying so, a step lasts at least this long: a few looks of the authority.
pub const LISTENED: Duration = Duration::from_secs(3);
/// Acknowledgements come in crowds: one look for those of this long.
const CROWD: Duration = Duration::from_millis(20);
/// Look again at least this often while somebody is waited for: time passes without a sign.
const LOOK: Duration = Duration::from_secs(1);
/// While nothing is under way, look this often whether the authority was changed from outside or forgot a retired root.
const REST: Duration = Duration::from_secs(10);

/// Where a rotation stands, for those who follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Course {
    /// None is under way.
    Resting,
    /// A step was taken, and these have to follow.
    Waiting {
        /// The step.
        step: Step,
        /// By key. Empty: whoever does not say that it follows gets a moment for it.
        waiting: Vec<String>,
    },
    /// It goes no further until that is mended.
    Stopped(String),
}

/// What is told of rotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// How many came to their end since the control plane started.
    pub ended: u64,
    /// The one under way.
    pub course: Course,
}

/// The answer to an ask.
#[derive(Clone, Debug)]
pub struct Begun {
    /// One was under way already.
    pub joined: bool,
    /// [`Told::ended`] is higher once this one is over.
    pub ended: u64,
    /// SHA-256 of the root that goes.
    pub old: String,
    /// Of the one that comes.
    pub new: String,
}

type Ask = oneshot::Sender<Result<Begun, String>>;

/// The way in, for commands.
#[derive(Clone)]
pub struct Rotation {
    asks: mpsc::Sender<Ask>,
    told: watch::Receiver<Told>,
}

impl Rotation {
    /// Begins a rotation, or joins the one under way.
    ///
    /// # Errors
    /// The root is not ours, the first step failed, or the control plane is stopping; as text.
    pub async fn begin(&self) -> Result<Begun, String> {
        let (reply, answer) = oneshot::channel();
        let stopping = |()| "the control plane is stopping; ask again".to_owned();
        self.asks.send(reply).await.map_err(|_| stopping(()))?;
        answer.await.map_err(|_| stopping(()))?
    }

    /// Follows what is told.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.clone()
    }
}

/// What follows the roots within the control plane.
pub struct Followers {
    /// Whose leaves the TLS door lets in.
    pub clients: Arc<ClientRoots>,
    /// The control plane's own leaf.
    pub seating: Arc<Seating>,
    /// Files that hold the bundle for those who start.
    pub files: Vec<PathBuf>,
}

/// The task.
pub struct Driver {
    board: Arc<Board>,
    authority: SharedAuthority,
    followers: Followers,
    asks: mpsc::Receiver<Ask>,
    told: watch::Sender<Told>,
    /// The roots that everything follows, and the epoch that they were told in.
    published: Option<(Arc<Roots>, u64)>,
    /// Below which root our own leaf is.
    seated: [u8; 32],
    /// The former root was dropped, and not everybody has said so.
    ending: bool,
    absences: Absences,
    /// When the last step was taken.
    taken: Instant,
    /// Before then nobody knows who is there: the book of leaves is another replica's.
    newcomer_until: Option<Instant>,
    /// The last fault that was written to the log.
    said: String,
}

impl Driver {
    /// A task that has not begun, and the way to it. Our own leaf is below the issuing root of now.
    pub fn new(board: Arc<Board>, authority: SharedAuthority, followers: Followers) -> (Self, Rotation) {
        let (asks, given) = mpsc::channel(ASKS_MAX);
        let (told, heard) = watch::channel(Told { ended: 0, course: Course::Resting });
        let seated = authority.roots().issuing.sha256;
        let (published, absences, taken) = (None, Absences::new(Instant::now()), Instant::now());
        let (ending, said) = (false, String::new());
        let newcomer_until = None;
        let driver =
            Self { board, authority, followers, asks: given, told, published, seated, ending, absences, taken, newcomer_until, said };
        (driver, Rotation { asks, told: heard })
    }

    /// The same, for who takes over from another replica: no step is taken until everybody had the time to come back.
    #[must_use]
    pub fn taking_over(self) -> Self {
        Self { newcomer_until: Some(Instant::now() + AWAY_GRACE), ..self }
    }

    /// Runs until `stop`. A rotation under way is gone on with by the next process.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut turns = self.board.turns();
        let mut editions = self.board.editions();
        loop {
            turns.mark_unchanged();
            let pause = if self.board.edition().is_some() { self.go_on().await } else { REST };
            let busy = !matches!(self.told.borrow().course, Course::Resting);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ask) = self.asks.recv() => {
                    let answer = self.asked().await;
                    // Whoever asked may have given up.
                    let _ = ask.send(answer);
                }
                Ok(()) = editions.changed(), if self.published.is_none() => {}
                Ok(()) = turns.changed(), if busy => sleep(CROWD).await,
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes the first step, if none is under way.
    async fn asked(&mut self) -> Result<Begun, String> {
        if self.board.edition().is_none() {
            return Err("the manifests have not been read yet; try again in a moment".to_owned());
        }
        let ended = self.told.borrow().ended;
        let before = self.roots().await?;
        let joined = before.phase != Phase::Steady || self.ending;
        if !joined {
            self.take(Step::Trust).await?;
            self.tell(Course::Waiting { step: Step::Trust, waiting: Vec::new() });
        }
        let (old, new) = ends(&*self.roots().await?);
        Ok(Begun { joined, ended, old, new })
    }

    /// Everything that can be done now; returns how long to wait for more.
    async fn go_on(&mut self) -> Duration {
        match self.step().await {
            Ok(pause) => pause,
            Err(fault) => {
                if self.said != fault {
                    tracing::error!(reason = fault, "the mesh's roots cannot be followed at the moment");
                    self.said.clone_from(&fault);
                }
                if !matches!(self.told.borrow().course, Course::Resting) {
                    self.tell(Course::Stopped(fault));
                }
                LOOK
            }
        }
    }

    async fn step(&mut self) -> Result<Duration, String> {
        loop {
            let epoch = self.follow().await?;
            let Some(facts) = self.facts(epoch).await? else {
                let authority = self.authority.clone();
                if self.blocking(move || authority.refresh()).await?? {
                    tracing::info!("the authority was changed from outside");
                    continue;
                }
                self.said.clear();
                return Ok(REST);
            };
            self.said.clear();
            match decide(&facts) {
                Next::Rest => {
                    self.tell(Course::Resting);
                    return Ok(REST);
                }
                Next::Take(step) => self.take(step).await?,
                Next::Wait(step, waiting) => {
                    self.tell(Course::Waiting { step, waiting });
                    return Ok(LOOK);
                }
                Next::Stop(step, reason) => {
                    let told = format!("the rotation of the root stopped at {}: {reason}", step.text());
                    if self.told.borrow().course != Course::Stopped(told.clone()) {
                        tracing::error!("{told}");
                    }
                    self.tell(Course::Stopped(told));
                    return Ok(LOOK);
                }
                Next::End => {
                    tracing::info!("the rotation of the root is over: every proxy believes the new root only");
                    self.ending = false;
                    self.told.send_modify(|told| *told = Told { ended: told.ended + 1, course: Course::Resting });
                }
            }
        }
    }

    async fn take(&mut self, step: Step) -> Result<(), String> {
        let (authority, before) = (self.authority.clone(), self.roots().await?.phase);
        self.blocking(move || authority.rotate(step)).await??;
        if self.roots().await?.phase == before {
            return Err(format!("the authority did not take the step {} of the rotation", step.text()));
        }
        self.ending = step == Step::Drop;
        self.taken = Instant::now();
        tracing::info!(step = step.text(), "took a step in the rotation of the root");
        Ok(())
    }

    /// Everything within the control plane goes by the roots of now, and an epoch tells them to the proxies; returns its number.
    async fn follow(&mut self) -> Result<u64, String> {
        let roots = self.roots().await?;
        if let Some((known, epoch)) = &self.published
            && *known == roots
        {
            return Ok(*epoch);
        }
        self.followers.clients.follow(&roots).map_err(|error| error.to_string())?;
        if self.seated != roots.issuing.sha256 {
            let seating = self.followers.seating.clone();
            self.blocking(move || seating.renew().map_err(|error| error.to_string())).await??;
            self.seated = roots.issuing.sha256;
        }
        let (files, pem) = (self.followers.files.clone(), roots.pem.clone());
        self.blocking(move || write_bundle(&files, &pem).map_err(|error| format!("{error:#}"))).await??;
        let stopping = || "the control plane is stopping".to_owned();
        let (reply, answer) = oneshot::channel();
        if !self.board.send(Errand::Roots { roots: roots.clone(), reply }).await {
            return Err(stopping());
        }
        let epoch = answer.await.map_err(|_| stopping())?;
        self.published = Some((roots, epoch));
        Ok(epoch)
    }

    /// What a decision needs; `None`: nothing is under way, so nobody has to be looked at.
    async fn facts(&mut self, epoch: u64) -> Result<Option<Facts>, String> {
        let roots = self.roots().await?;
        let (now, present) = (Instant::now(), look::present(&self.board));
        self.absences.look(present.clone(), now);
        if roots.phase == Phase::Steady && !self.ending {
            self.tell(Course::Resting);
            self.absences.rest();
            return Ok(None);
        }
        let Some(edition) = self.board.edition() else { return Ok(None) };
        let (authority, board, phase) = (self.authority.clone(), self.board.clone(), roots.phase);
        let read = move || (Leaves::read(&*authority, &board, &edition, &roots.issuing), authority.listeners());
        let (leaves, listeners) = self.blocking(read).await?;
        self.absences.heard(&leaves.held, now);
        let proxies = look::proxies(&self.board, &present, &leaves, epoch, |key| self.absences.is_away(key, now));
        let heard = listeners > 0 && now.saturating_duration_since(self.taken) < LISTENED;
        let heard = heard || self.newcomer_until.is_some_and(|until| now < until);
        Ok(Some(Facts { phase, ending: self.ending, heard, fault: look::own_fault(&self.board), proxies }))
    }

    async fn roots(&self) -> Result<Arc<Roots>, String> {
        let authority = self.authority.clone();
        self.blocking(move || authority.roots()).await
    }

    /// Off the runtime: the authority may block on a disk.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        spawn_blocking(work).await.map_err(|_| "a call to the authority ended unexpectedly".to_owned())
    }

    fn tell(&self, course: Course) {
        self.told.send_if_modified(|told| {
            let fresh = told.course != course;
            told.course = course;
            fresh
        });
    }
}

/// SHA-256 of the root that goes and of the one that comes; one that is not known is empty.
fn ends(roots: &Roots) -> (String, String) {
    let other = roots.others.first().map(|other| other.fingerprint()).unwrap_or_default();
    match roots.phase {
        Phase::Steady | Phase::Trusting => (roots.issuing.fingerprint(), other),
        Phase::Issuing => (other, roots.issuing.fingerprint()),
    }
}
