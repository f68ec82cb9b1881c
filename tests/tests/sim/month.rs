//! A month of certificates: the shipping control plane, its authority, and the shipping core of four proxies, in one runtime whose time
//! is paused and moved on by leaps. A seed makes up what happens: rotations, lives of leaves from a minute to a day, proxies that are
//! away for seconds or days, control planes that die between any two writes, clocks that are set forward and back, revocations. After
//! every step [`check`] holds against it what docs/certificates.md and docs/identity.md promise.

#[path = "month/check.rs"]
mod check;
#[path = "month/happenings.rs"]
mod happenings;
#[path = "month/member.rs"]
mod member;
#[path = "month/watched.rs"]
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use certs_ca::authority::FORMER_MAX;
use control::publish::trust::{Phase, Roots};
use control::serve::authority::{AuditQuery, SharedAuthority};
use proxy::io::{Clock, Draw};
use proxy::tls::testing::Authority as Stranger;
use proxy::tls::{Credential, verify_chain};
use rustls_pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;
use tests::look::write_private;
use tests::plane::Plane;
use tests::sim::{extent, seeds};
use tests::wire::{Medium, Wire};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep};

use self::happenings::Later;
use self::member::{Member, Tether};
use self::watched::{HEARD, Scene, SharedScene, Sight, Watched, lock};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// What CI has time for, of each seed.
const DAYS: Duration = Duration::from_secs(2 * 24 * 3600);
/// Wall time at the start, since 1970.
const START: Duration = Duration::from_secs(1_900_000_000);
/// Whatever is under way without a wait has come to rest after that.
const SETTLE: Duration = Duration::from_millis(400);
/// A proxy tries to reach its control plane every five seconds at least, and renews within five where its root goes.
const STIR: Duration = Duration::from_secs(14);
/// Longer pauses are leapt over; timers in between go off once.
const LEAP_MIN: Duration = Duration::from_secs(20);
/// A rotation ends, and everybody has a leaf of the issuing root, so soon after all are back with the right time: 30 s for those who are
/// away, a minute for the longest pause of a proxy between two attempts, half of one for that of its stream, twice.
const CALM_MAX: Duration = Duration::from_secs(240);
/// The proxies; each is workload, instance and account.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Their hosts, and the control plane's.
const NETWORK: [u8; 3] = [10, 9, 0];

fn host(number: usize) -> IpAddr {
    let [a, b, c] = NETWORK;
    IpAddr::from([a, b, c, u8::try_from(number).unwrap_or(u8::MAX)])
}

fn manifests() -> String {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {meshwright.dev/inject: enabled}}\n";
    let workload = |(index, name): (usize, &&str)| {
        format!(
            "---\napiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{serviceAccount: {name}, addresses: [{}], ports: [{{name: http, port: 8080}}]}}\n",
            host(index + 2)
        )
    };
    namespace.to_owned() + &NAMES.iter().enumerate().map(workload).collect::<String>()
}

fn unix(clock: &Clock) -> UnixTime {
    UnixTime::since_unix_epoch(clock.unix())
}

fn secs(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The middle of a leaf's life, at which its chain is asked for what it ends in.
fn middle(leaf: &Credential) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(secs(leaf.not_before + leaf.life() / 2)))
}

fn verified(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'static>], at: UnixTime) -> bool {
    verify_chain(chain, roots, at).is_ok()
}

/// A leaf of another mesh, by which somebody says that it is one of ours.
fn strange(name: &str) -> Arc<Credential> {
    let begin = SystemTime::UNIX_EPOCH + START - DAY;
    Stranger::new("another mesh").issue_for(&format!("spiffe://cluster.local/ns/shop/sa/{name}"), name, begin, begin + 2 * MONTH)
}

/// A clock that can be set.
fn clock() -> (Clock, &'static AtomicI64) {
    let by_ms: &'static AtomicI64 = Box::leak(Box::default());
    (Clock::Stepped { wall: SystemTime::UNIX_EPOCH + START, started: Instant::now(), by_ms }, by_ms)
}

/// A running control plane.
struct Running {
    task: JoinHandle<anyhow::Result<()>>,
    authority: SharedAuthority,
    /// Rows of the audit log when it started.
    rows: usize,
}

/// What somebody said of an identity, or of one certificate.
struct Verdict {
    object: String,
    member: usize,
    /// `None`: of the identity.
    serial: Option<String>,
    /// Seconds since 1970.
    until: Option<u64>,
    /// It is in force for whoever runs at least the first and less than the second.
    epochs: (u64, u64),
    /// There was a look since it was given.
    seen: bool,
    /// When it was taken back.
    pardoned: Option<Instant>,
}

/// See the module.
struct Month {
    draw: Draw,
    scene: SharedScene,
    plane: Plane,
    wire: Wire,
    clock: (Clock, &'static AtomicI64),
    running: Option<Running>,
    members: Vec<Member>,
    later: Vec<(Instant, Later)>,
    life: Duration,
    verdicts: Vec<Verdict>,
    /// Tokens that were made some time ago, by member.
    kept: BTreeMap<usize, String>,
    refilled: BTreeMap<usize, Instant>,
    /// Since when each member has all it needs for a leaf.
    fair_since: Vec<Option<Instant>>,
    /// Serial numbers in the audit log.
    serials: BTreeSet<String>,
    /// Roots by which something was issued, in order.
    issued_below: Vec<String>,
    /// Leaves of another mesh in the members' names.
    strangers: Vec<Arc<Credential>>,
    folder: TempDir,
}

impl Month {
    async fn begin(seed: u64) -> anyhow::Result<Self> {
        // The store asks the disk to have written at each step; a month has thousands.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let (config, data) = (folder.path().join("manifests"), folder.path().join("data"));
        fs::create_dir(&config)?;
        fs::write(config.join("mesh.yaml"), manifests())?;
        let (clock, wire) = (clock(), Wire::new(Medium::Memory));
        let scene: SharedScene = Arc::new(std::sync::Mutex::new(Scene::new(clock.0)));
        let mut month = Self {
            draw: Draw::seeded(seed),
            scene,
            plane: Plane::new(&config, &data, host(1)),
            wire,
            clock,
            running: None,
            members: Vec::new(),
            later: Vec::new(),
            life: DAY,
            verdicts: Vec::new(),
            kept: BTreeMap::new(),
            refilled: BTreeMap::new(),
            fair_since: vec![None; NAMES.len()],
            serials: BTreeSet::new(),
            issued_below: Vec::new(),
            strangers: NAMES.map(strange).into(),
            folder,
        };
        month.start_control().await?;
        for (index, name) in NAMES.into_iter().enumerate() {
            month.join(index, name).await?;
        }
        month.set_life(DAY).await;
        month.calm().await?;
        Ok(month)
    }

    fn tell(&self, line: impl AsRef<str>) {
        lock(&self.scene).tell(line.as_ref());
    }

    fn below(&self, bound: u64) -> u64 {
        self.draw.next() % bound
    }

    fn between(&self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64((self.draw.next() >> 11) as f64 / (1_u64 << 53) as f64)
    }

    async fn join(&mut self, index: usize, name: &'static str) -> anyhow::Result<()> {
        let (clock, by_ms) = clock();
        let address = host(index + 2);
        let mut member = Member {
            name,
            address,
            clock,
            by_ms,
            tether: Tether::new(self.wire.exempt(address)),
            token: self.folder.path().join(format!("{name}.token")),
            process: None,
            forsworn: BTreeSet::new(),
            believed: BTreeSet::new(),
            serial: String::new(),
            leaf_seen: None,
        };
        write_private(&member.token, self.plane.desk().token(&format!("shop/{name}")).await?)?;
        let bundle = fs::read_to_string(self.plane.data.join("ca.pem"))?;
        member.start(&bundle, self.plane.address(), self.draw.next())?;
        self.members.push(member);
        self.seen(index);
        Ok(())
    }

    /// Tells the watch of a member's process.
    fn seen(&self, index: usize) {
        let member = &self.members[index];
        let Some(process) = &member.process else { return };
        let (credentials, trust) = (Arc::clone(&process.credentials), Arc::clone(&process.trust));
        let mut scene = lock(&self.scene);
        let before = scene.sights.get(index).map(|sight| (sight.open_since, sight.shut, sight.revoked));
        let (open_since, shut, revoked) = before.unwrap_or((Some(Instant::now()), None, false));
        // A fresh process has heard of nothing yet; it is waited for once its way has been open long enough.
        let open_since = open_since.map(|_| Instant::now());
        let sight =
            Sight { name: member.name, credentials, trust, clock: member.clock, open_since, shut, left_behind: false, missed: 0, revoked };
        match scene.sights.get_mut(index) {
            Some(held) => *held = sight,
            None => scene.sights.push(sight),
        }
    }

    async fn start_control(&mut self) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "it runs already");
        let mut means = self.means().await?;
        let authority = Arc::clone(&means.authority);
        let rows = authority.audit(&AuditQuery::default(), usize::MAX).map_err(anyhow::Error::msg)?.len();
        means.authority = Arc::new(Watched { inner: Arc::clone(&authority), scene: Arc::clone(&self.scene) });
        let (plane, network) = (self.plane.clone(), self.wire.exempt(self.plane.ip));
        let task = tokio::spawn(async move { plane.run_with(network, means).await });
        self.running = Some(Running { task, authority, rows });
        lock(&self.scene).dead = false;
        self.tell("a control plane starts");
        sleep(SETTLE).await;
        self.refresh();
        Ok(())
    }

    /// The authority of the data folder; a process that ended a moment ago may have it open still.
    async fn means(&self) -> anyhow::Result<control::app::Means> {
        for _ in 0..100 {
            match self.plane.means(self.clock.0) {
                Ok(means) => return Ok(means),
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
        self.plane.means(self.clock.0)
    }

    /// Ends the control plane where it stands. What it had in memory is what the next one reads.
    async fn kill_control(&mut self) -> anyhow::Result<()> {
        let Some(Running { task, authority, rows }) = self.running.take() else { return Ok(()) };
        self.tell("the control plane is gone");
        let ended = task.is_finished();
        task.abort();
        self.members.iter().for_each(|member| member.tether.snap());
        let failed = task.await;
        ensure!(!ended || lock(&self.scene).dead, "it ended by itself: {failed:?}");
        sleep(SETTLE).await;
        let before = State::of(&authority)?;
        let issued: u64 = authority.counts().issued.iter().map(|(_, count)| count).sum();
        let kept = before.audit.len() - rows;
        ensure!(usize::try_from(issued)? == kept, "{issued} certificates were given out, the log has {kept} of them");
        drop(authority);
        let after = State::of(&self.means().await?.authority)?;
        ensure!(before == after, "what is read back is not what was in memory: {before:?}, {after:?}");
        lock(&self.scene).dead = false;
        self.refresh();
        Ok(())
    }

    /// Who has what it needs, and since when.
    fn refresh(&mut self) {
        let now = Instant::now();
        let right = self.clock.1.load(Ordering::Relaxed) == 0;
        let mut scene = lock(&self.scene);
        let up = self.running.is_some() && !scene.dead;
        let steady = self.running.as_ref().is_some_and(|running| running.authority.roots().phase == Phase::Steady);
        scene.under_way &= !steady || scene.stepped.is_some_and(|at| at.elapsed() < MINUTE);
        scene.up_since = (up && right).then(|| scene.up_since.unwrap_or(now));
        for (index, since) in self.fair_since.iter_mut().enumerate() {
            let (Some(sight), Some(member)) = (scene.sights.get_mut(index), self.members.get(index)) else { continue };
            let mine = |verdict: &Verdict| verdict.member == index && verdict.pardoned.is_none_or(|at| now - at < HEARD);
            sight.revoked = self.verdicts.iter().any(mine);
            let agree = member.clock.unix().abs_diff(self.clock.0.unix()) <= Duration::from_secs(30);
            let fair = up && agree && sight.open_since.is_some() && !sight.revoked && sight.missed < FORMER_MAX;
            *since = fair.then(|| since.unwrap_or(now));
        }
    }

    /// When the next leaf is due at the earliest, or time after which a look is worth it.
    fn next_look(&self) -> Instant {
        let now = Instant::now();
        let look = |member: &Member| {
            let leaf = member.process.as_ref()?.credentials.current()?;
            let left = leaf.not_after.duration_since(member.clock.wall()).ok()?;
            let life = leaf.life().min(self.life);
            let due = member.leaf_seen? + life.mul_f64(0.6);
            Some(if due > now { due.min(now + left) } else { now + (life / 30).max(Duration::from_secs(5)) })
        };
        self.members.iter().filter_map(look).min().unwrap_or(now + DAY)
    }

    /// Time passes, and what was put off comes when it is due.
    async fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        let mut stirred = Instant::now();
        while Instant::now() < end {
            let now = Instant::now();
            let mut to = self.later.iter().map(|(at, _)| *at).min().unwrap_or(end).min(end);
            // A leap has all timers go off at once: what has just happened, and a rotation, take their time.
            let patience = if lock(&self.scene).under_way { 3 * STIR } else { STIR };
            if now < stirred + patience {
                sleep(to.min(now + STIR).saturating_duration_since(now)).await;
            } else {
                to = to.min(self.next_look());
                let pause = to.saturating_duration_since(now);
                if pause < LEAP_MIN {
                    sleep(pause).await
                } else {
                    advance(pause).await
                }
                sleep(SETTLE).await;
            }
            self.look().await?;
            while let Some(place) = self.later.iter().position(|(at, _)| *at <= Instant::now()) {
                let (_, later) = self.later.swap_remove(place);
                self.come(later).await?;
                sleep(SETTLE).await;
                self.look().await?;
                stirred = Instant::now();
            }
        }
        Ok(())
    }

    /// One look at everything: the dead are buried, those without a leaf get a token, and all is checked.
    async fn look(&mut self) -> anyhow::Result<()> {
        if lock(&self.scene).dead {
            self.kill_control().await?;
            let down = self.between(Duration::from_secs(1), 2 * MINUTE);
            self.later.push((Instant::now() + down, Later::Control));
        }
        self.refresh();
        self.refill().await?;
        self.check().await?;
        self.verdicts.iter_mut().for_each(|verdict| verdict.seen = true);
        Ok(())
    }

    /// As `up` does: who has no leaf finds a fresh token in its file.
    async fn refill(&mut self) -> anyhow::Result<()> {
        if self.running.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        for index in 0..self.members.len() {
            let member = &self.members[index];
            let Some(process) = &member.process else { continue };
            let lives = process.credentials.current().is_some_and(|leaf| leaf.not_after > member.clock.wall());
            let well = lives && process.trust.outcast().borrow().is_none();
            if well || self.refilled.get(&index).is_some_and(|at| now - *at < MINUTE) {
                continue;
            }
            let token = match self.kept.remove(&index) {
                Some(kept) => kept,
                None => self.plane.desk().token(&format!("shop/{}", member.name)).await?,
            };
            write_private(&self.members[index].token, token)?;
            self.refilled.insert(index, now);
        }
        Ok(())
    }

    /// What else is known of what went wrong.
    fn confess(&self) {
        let Some(running) = &self.running else { return };
        for row in running.authority.refusals(&AuditQuery::default()).iter().take(6) {
            self.tell(format!("refused at {}: {} by {}: {}", row.time, row.instance, row.attestation, row.reason));
        }
    }

    /// Everything is put right, and then it has to be right soon.
    async fn calm(&mut self) -> anyhow::Result<()> {
        self.tell("all is put right");
        self.put_right().await?;
        let end = Instant::now() + CALM_MAX;
        loop {
            sleep(Duration::from_secs(2)).await;
            self.look().await?;
            match self.wrong().await {
                Ok(()) => break,
                Err(wrong) if Instant::now() >= end => bail!("{} s after all is put right: {wrong:#}", CALM_MAX.as_secs()),
                Err(_) => {}
            }
        }
        self.tell("all is well");
        for client in 0..self.members.len() {
            for server in (0..self.members.len()).filter(|server| *server != client) {
                self.handshake(client, server).await.context("after all was put right")?;
            }
        }
        Ok(())
    }
}

/// What an authority has in memory, and the next one has to read.
#[derive(Debug, PartialEq)]
struct State {
    roots: Arc<Roots>,
    issued: String,
    audit: Vec<String>,
}

impl State {
    fn of(authority: &SharedAuthority) -> anyhow::Result<Self> {
        let audit = authority.audit(&AuditQuery::default(), usize::MAX).map_err(anyhow::Error::msg)?;
        let audit = audit.iter().map(|row| format!("{row:?}")).collect();
        Ok(Self { roots: authority.roots(), issued: format!("{:?}", authority.issued()), audit })
    }
}

/// Aim: whatever happens in a month (here in its first days), whoever should be believed is, nobody else ever is, and each rotation ends.
/// More seeds, and the whole of it: `MESHWRIGHT_SIM_WHOLE=1 MESHWRIGHT_SIM_SEEDS=100 cargo sim a_month`.
#[test]
fn a_month_of_certificates_keeps_its_promises() -> anyhow::Result<()> {
    for seed in seeds(2, 2) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
        runtime.block_on(async {
            let mut month = Month::begin(seed).await?;
            let run = month.live(extent(MONTH, DAYS)).await;
            if run.is_err() {
                month.confess();
            }
            let scene = lock(&month.scene);
            let story = Vec::from(scene.story.clone()).join("\n");
            println!("seed {seed}: {} steps of rotations, {} certificates", scene.steps, month.serials.len());
            run.with_context(|| format!("{story}\nreplay it with MESHWRIGHT_SIM_SEED={seed}"))
        })?;
    }
    Ok(())
}
