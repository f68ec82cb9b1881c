//! What happens in a month, by seed.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use certs_ca::authority::FORMER_MAX;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::watched::lock;
use super::{DAY, HOUR, MINUTE, Month, SETTLE, Verdict};

/// Something that comes back later.
#[derive(Clone, Copy, Debug)]
pub(super) enum Later {
    /// A member's way is open again.
    Open(usize),
    /// What comes down to it is let through.
    Release(usize),
    /// A member's clock is right again.
    Clock(usize),
    /// The control plane's is.
    ControlClock,
    /// The control plane starts.
    Control,
    /// It ends again.
    Kill,
    /// Leaves live for a day again.
    Life,
    /// A verdict is taken back, by its place.
    Pardon(usize),
}

impl Month {
    /// All of that time.
    pub(super) async fn live(&mut self, time: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let gap = match self.below(8) {
                0..3 => self.between(Duration::from_secs(1), MINUTE),
                3..6 => self.between(MINUTE, HOUR),
                _ => self.between(HOUR, 9 * HOUR),
            };
            // Short leaves are renewed so often that hours of them say no more than minutes.
            self.pass(gap.min(self.life * 8)).await?;
            self.happen().await?;
            self.rotate_in_time().await;
            sleep(SETTLE).await;
            self.look().await?;
        }
        self.calm().await
    }

    async fn happen(&mut self) -> anyhow::Result<()> {
        let who = usize::try_from(self.below(self.members.len() as u64))?;
        match self.below(100) {
            0..16 => self.rotate().await,
            16..32 => self.cut(who),
            32..37 => self.restart(who)?,
            37..46 => self.lose().await?,
            46..56 => self.doom().await,
            56..64 => self.set_control_clock(),
            64..72 => self.set_clock(who),
            72..78 => self.shorten().await,
            78..85 => self.accuse(who).await,
            85..91 => self.hold(who),
            91..94 => self.keep_token(who).await,
            _ => self.calm().await?,
        }
        self.refresh();
        Ok(())
    }

    fn put_off(&mut self, pause: Duration, what: Later) {
        self.later.push((Instant::now() + pause, what));
    }

    /// What was put off comes.
    pub(super) async fn come(&mut self, later: Later) -> anyhow::Result<()> {
        match later {
            Later::Open(who) => self.open(who)?,
            Later::Release(who) => self.members[who].tether.hold(false),
            Later::Clock(who) => self.set_right(who),
            Later::ControlClock => {
                self.clock.1.store(0, Ordering::Relaxed);
                self.tell("the control plane's clock is right again");
            }
            Later::Control if self.running.is_none() => self.start_control().await?,
            Later::Control => {}
            Later::Kill => self.kill_control().await?,
            Later::Life => self.set_life(DAY).await,
            Later::Pardon(place) => self.pardon(place).await?,
        }
        self.refresh();
        Ok(())
    }

    pub(super) async fn put_right(&mut self) -> anyhow::Result<()> {
        self.later.clear();
        lock(&self.scene).doom = None;
        self.clock.1.store(0, Ordering::Relaxed);
        if self.running.is_none() {
            self.start_control().await?;
        }
        for who in 0..self.members.len() {
            self.set_right(who);
            self.members[who].tether.hold(false);
            self.open(who)?;
        }
        for place in 0..self.verdicts.len() {
            self.pardon(place).await?;
        }
        self.refresh();
        Ok(())
    }

    /// Roots live for ten days here. An operator sees to it that none ends.
    async fn rotate_in_time(&mut self) {
        let due = lock(&self.scene).stepped.is_none_or(|at| at.elapsed() > 5 * DAY);
        if due && self.running.is_some() {
            self.rotate().await;
        }
    }

    async fn rotate(&mut self) {
        let asked = self.plane.desk().rotate(false).await;
        self.tell(match &asked {
            Ok(result) => format!("a rotation is asked for, under way already: {}", result["joined"]),
            Err(error) => format!("a rotation is asked for in vain: {error:#}"),
        });
    }

    fn cut(&mut self, who: usize) {
        let time = match self.below(6) {
            0 | 1 => self.between(Duration::from_secs(1), Duration::from_secs(50)),
            2 => self.between(MINUTE, HOUR),
            3 | 4 => self.between(HOUR, 20 * HOUR),
            _ => self.between(DAY, 4 * DAY),
        };
        self.tell(format!("{} is away for {} s", self.members[who].name, time.as_secs()));
        self.members[who].tether.open(false);
        let now = Instant::now();
        let mut scene = lock(&self.scene);
        let sight = &mut scene.sights[who];
        if let Some(since) = sight.open_since.take() {
            sight.shut = Some((now, now - since));
        }
        drop(scene);
        self.put_off(time, Later::Open(who));
    }

    fn open(&mut self, who: usize) -> anyhow::Result<()> {
        self.members[who].tether.open(true);
        let mut scene = lock(&self.scene);
        if scene.sights[who].open_since.is_none() {
            scene.sights[who].open_since = Some(Instant::now());
            let name = self.members[who].name;
            scene.tell(&format!("{name} is back"));
        }
        let strange = scene.sights[who].missed >= FORMER_MAX;
        drop(scene);
        // After so many rotations it does not know the control plane any more: it needs the present bundle.
        if strange { self.restart(who) } else { Ok(()) }
    }

    /// The process ends, and the next one knows nothing but its files.
    fn restart(&mut self, who: usize) -> anyhow::Result<()> {
        let now = fs::read_to_string(self.plane.data.join("ca.pem"))?;
        let seed = self.draw.next();
        let control = self.plane.address();
        let member = &mut self.members[who];
        member.process = None;
        member.tether.snap();
        member.believed.clear();
        member.serial.clear();
        member.leaf_seen = None;
        member.start(&now, control, seed)?;
        self.tell(format!("{} starts anew", self.members[who].name));
        self.refilled.remove(&who);
        self.seen(who);
        Ok(())
    }

    /// The control plane is lost, or two in succession.
    async fn lose(&mut self) -> anyhow::Result<()> {
        self.kill_control().await?;
        let down = match self.below(4) {
            0 | 1 => self.between(Duration::from_millis(100), MINUTE),
            2 => self.between(MINUTE, 2 * HOUR),
            _ => self.between(HOUR, DAY),
        };
        self.put_off(down, Later::Control);
        if self.below(3) == 0 {
            let second = down + self.between(Duration::from_millis(10), Duration::from_secs(20));
            self.put_off(second, Later::Kill);
            self.put_off(second + self.between(Duration::from_secs(1), MINUTE), Later::Control);
        }
        Ok(())
    }

    /// The control plane dies at one of the next writes of a rotation.
    async fn doom(&mut self) {
        let (left, before) = (u32::try_from(self.below(6)).unwrap_or_default(), self.below(2) == 0);
        lock(&self.scene).doom = Some((left, before));
        self.tell(format!("the control plane dies at its write {left}"));
        if self.running.is_some() {
            self.rotate().await;
        }
    }

    fn step(&self) -> i64 {
        let by = match self.below(3) {
            0 => self.between(Duration::from_secs(1), MINUTE),
            1 => self.between(MINUTE, HOUR),
            _ => self.between(HOUR, 7 * HOUR),
        };
        let by = i64::try_from(by.as_millis()).unwrap_or_default();
        if self.below(2) == 0 { by } else { -by }
    }

    fn set_control_clock(&mut self) {
        let by = self.step();
        self.clock.1.store(by, Ordering::Relaxed);
        self.tell(format!("the control plane's clock is set by {} s", by / 1000));
        let time = self.between(MINUTE, 6 * HOUR);
        self.put_off(time, Later::ControlClock);
    }

    fn set_clock(&mut self, who: usize) {
        let by = self.step();
        self.members[who].by_ms.store(by, Ordering::Relaxed);
        self.tell(format!("the clock of {} is set by {} s", self.members[who].name, by / 1000));
        let time = self.between(MINUTE, 12 * HOUR);
        self.put_off(time, Later::Clock(who));
    }

    fn set_right(&mut self, who: usize) {
        if self.members[who].by_ms.swap(0, Ordering::Relaxed) != 0 {
            self.tell(format!("the clock of {} is right again", self.members[who].name));
        }
    }

    async fn shorten(&mut self) {
        let lives = [MINUTE, 10 * MINUTE, HOUR, 6 * HOUR];
        let life = lives[usize::try_from(self.below(4)).unwrap_or_default()];
        self.set_life(life).await;
        self.put_off(life * if life == MINUTE { 5 } else { 12 }, Later::Life);
    }

    pub(super) async fn set_life(&mut self, life: Duration) {
        let mesh = format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default, namespace: meshwright-system}}\n\
             spec: {{certificates: {{leafLife: {}s, intermediateLife: 36h, rootLife: 240h}}}}\n",
            life.as_secs()
        );
        match self.plane.desk().submit(&mesh).await {
            Ok(_) => {
                self.life = life;
                self.tell(format!("leaves live for {} s", life.as_secs()));
            }
            Err(_) => self.put_off(HOUR, Later::Life),
        }
    }

    /// An identity is revoked, or the certificate that it has.
    async fn accuse(&mut self, who: usize) {
        let member = &self.members[who];
        let serial = (self.below(2) == 0 && !member.serial.is_empty()).then(|| member.serial.clone());
        let until = (self.below(3) == 0).then(|| (self.clock.0.unix() + self.between(MINUTE, 3 * HOUR)).as_secs());
        let object = format!("r{}", self.verdicts.len());
        let what = match &serial {
            Some(serial) => format!("serials: ['{serial}']"),
            None => format!("identities: ['{}']", member.identity()),
        };
        let end = until.map(|secs| format!(", until: '{}'", rfc3339(secs))).unwrap_or_default();
        let text = revocation(&object, &format!("{what}{end}"));
        self.tell(format!("{object} revokes {what} of {}{end}", member.name));
        match self.plane.desk().submit(&text).await {
            Ok(told) => {
                let epochs = (epoch(&told), u64::MAX);
                self.verdicts.push(Verdict { object, member: who, serial, until, epochs, seen: false, pardoned: None });
                let place = self.verdicts.len() - 1;
                let time = self.between(MINUTE, 5 * HOUR);
                self.put_off(time, Later::Pardon(place));
            }
            Err(error) => self.tell(format!("in vain: {error:#}")),
        }
    }

    async fn pardon(&mut self, place: usize) -> anyhow::Result<()> {
        let verdict = &self.verdicts[place];
        if verdict.pardoned.is_some() {
            return Ok(());
        }
        let told = match self.plane.desk().withdraw(&revocation(&verdict.object, "serials: ['00']")).await {
            Ok(told) => told,
            Err(_) if self.running.is_none() || lock(&self.scene).dead => {
                self.put_off(HOUR, Later::Pardon(place));
                return Ok(());
            }
            Err(error) => return Err(error).context("a Revocation is not taken back"),
        };
        self.tell(format!("{} is taken back", self.verdicts[place].object));
        self.verdicts[place].epochs.1 = epoch(&told);
        self.verdicts[place].pardoned = Some(Instant::now());
        Ok(())
    }

    /// What is sent to a proxy reaches it late.
    fn hold(&mut self, who: usize) {
        let time = self.between(Duration::from_millis(100), Duration::from_secs(14));
        self.tell(format!("{} hears late by {} ms", self.members[who].name, time.as_millis()));
        self.members[who].tether.hold(true);
        self.put_off(time, Later::Release(who));
    }

    /// A token that is used some time later, perhaps after a rotation.
    async fn keep_token(&mut self, who: usize) {
        if self.running.is_some()
            && let Ok(token) = self.plane.desk().token(&format!("shop/{}", self.members[who].name)).await
        {
            self.kept.insert(who, token);
        }
    }
}

fn epoch(told: &Value) -> u64 {
    told["epoch"].as_u64().unwrap_or_default()
}

fn revocation(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: {name}, namespace: meshwright-system}}\nspec: {{{spec}}}\n"
    )
}

fn rfc3339(secs: u64) -> String {
    control::publish::epoch::moment(secs * 1000)
}
