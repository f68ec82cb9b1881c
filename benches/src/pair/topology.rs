//! A topology that runs: its namespaces, files and processes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pair::account;
use crate::pair::lab::{self, Lab};
use crate::pair::probe;
use crate::pair::spec::{Process, Role, Side, Spec, substitute};

/// How long a topology may take until it answers, unless its spec says.
const READY_SECS: f64 = 30.0;
/// Pause between questions whether it is up.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How much of a log goes into an error.
const LOG_BYTES_MAX: usize = 1500;

/// A topology of the run. It runs between `start` and `stop`; dropping it stops it.
pub(super) struct Topology<'a> {
    /// What it is.
    pub(super) spec: Spec,
    lab: &'a Lab,
    number: usize,
    folder: PathBuf,
    vars: BTreeMap<String, String>,
    running: Vec<(usize, Child)>,
    /// Whether its control plane was given more than the spec has.
    grown: bool,
    /// Since when it has been up and untouched; none once load was sent.
    fresh_since: Option<Instant>,
}

impl<'a> Topology<'a> {
    /// A topology with its place in the lab; `vars` are those of the environment, the command line and the run, strongest last.
    ///
    /// # Errors
    /// A `${NAME}` of the spec that nobody set, or a program that is not there: named with its remedy.
    pub(super) fn new(spec: Spec, lab: &'a Lab, number: usize, vars: &Vars) -> anyhow::Result<Self> {
        let folder = lab.folder().join(format!("{number}-{}", spec.name.replace('/', "-")));
        let mut all = vars.environment.clone();
        all.extend(spec.vars.clone());
        all.extend(vars.given.clone());
        let own = [
            ("RUN", folder.display().to_string()),
            ("IP_C", lab.address(number, Side::Client)),
            ("IP_S", lab.address(number, Side::Server)),
            ("NS_C", lab.namespace(number, Side::Client)),
            ("NS_S", lab.namespace(number, Side::Server)),
        ];
        all.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let topology = Self { spec, lab, number, folder, vars: all, running: Vec::new(), grown: false, fresh_since: None };
        topology.check().with_context(|| format!("topology `{}` cannot run", topology.spec.name))?;
        Ok(topology)
    }

    /// Everything that can be known before anything starts.
    fn check(&self) -> anyhow::Result<()> {
        for need in &self.spec.needs {
            let program = substitute(&need.program, &self.vars).ok().and_then(|program| lab::which(&program));
            if program.is_none() {
                let name = need.program.trim_start_matches("${").trim_end_matches('}');
                bail!("`{name}` is not there: {}", need.remedy);
            }
        }
        for text in self.spec.files.values() {
            self.fill(&text.content())?;
        }
        let commands =
            self.spec.setup.iter().map(|step| step.parts().1).chain(self.spec.procs.iter().map(|process| process.cmd.as_slice()));
        for cmd in commands {
            let words = self.fill_all(cmd)?;
            let Some(program) = words.first() else { bail!("a command of it is empty") };
            if lab::which(program).is_none() {
                bail!("the program `{program}` is not there: install it, or correct the spec");
            }
        }
        for (name, value) in self.targets() {
            probe::parts(&self.fill(value)?).with_context(|| format!("target {name}"))?;
        }
        Ok(())
    }

    fn targets(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let target = &self.spec.target;
        [("h1", &target.h1), ("h2", &target.h2), ("grpc", &target.grpc), ("tcp", &target.tcp)]
            .into_iter()
            .filter_map(|(name, value)| value.as_ref().map(|value| (name, value)))
    }

    /// A text of the spec with the topology's variables.
    ///
    /// # Errors
    /// A name that nobody set.
    pub(super) fn fill(&self, text: &str) -> anyhow::Result<String> {
        substitute(text, &self.vars)
    }

    fn fill_all(&self, words: &[String]) -> anyhow::Result<Vec<String>> {
        words.iter().map(|word| self.fill(word)).collect()
    }

    /// A command on a side of the topology.
    pub(super) fn command(&self, side: Option<Side>, cmd: &[String]) -> Command {
        self.lab.command(self.number, side, cmd)
    }

    /// Starts it, with `manifests` (file name, text) added to what its control plane reads; returns when it answers.
    ///
    /// # Errors
    /// A step fails, a process ends, or nothing answers in time: with the end of its logs. It is stopped then.
    pub(super) async fn start(&mut self, manifests: Option<(&str, &str)>) -> anyhow::Result<()> {
        self.stop();
        let started = self.bring_up(manifests).await;
        if started.is_err() {
            self.stop();
        }
        started.with_context(|| format!("topology `{}` does not start", self.spec.name))
    }

    async fn bring_up(&mut self, manifests: Option<(&str, &str)>) -> anyhow::Result<()> {
        // A certificate authority, tokens, sockets of an earlier start would be in the way.
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
        self.lab.join(self.number)?;
        for (name, text) in &self.spec.files {
            let path = self.folder.join(name);
            fs::write(&path, self.fill(&text.content())?).with_context(|| format!("cannot write {}", path.display()))?;
        }
        for step in &self.spec.setup {
            let (side, cmd) = step.parts();
            let mut command = self.command(side, &self.fill_all(cmd)?);
            command.current_dir(&self.folder);
            lab::run(command)?;
        }
        if let (Some((name, text)), Some(folder)) = (manifests, &self.spec.manifests) {
            let path = PathBuf::from(self.fill(folder)?).join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        for index in 0..self.spec.procs.len() {
            self.spawn(index)?;
            let wait = self.spec.procs[index].wait;
            if wait > 0.0 {
                tokio::time::sleep(Duration::from_secs_f64(wait)).await;
            }
        }
        self.until_ready().await?;
        self.grown = manifests.is_some();
        self.fresh_since = Some(Instant::now());
        Ok(())
    }

    fn spawn(&mut self, index: usize) -> anyhow::Result<()> {
        let process = &self.spec.procs[index];
        let path = self.log_path(process);
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = self.command(process.netns, &self.fill_all(&process.cmd)?);
        for (name, value) in &process.env {
            command.env(name, self.fill(value)?);
        }
        command.current_dir(&self.folder).stdout(log.try_clone().context("cannot share a log")?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {}", process.name))?;
        self.running.push((index, child));
        Ok(())
    }

    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let asked = self.spec.ready.clone();
        let url = match (&asked, &self.spec.target.h1) {
            (Some(ready), _) => ready.url.clone(),
            (None, Some(target)) => format!("{target}/1k"),
            (None, None) => bail!("neither `ready` nor `target.h1` says when it is up"),
        };
        let (address, path) = probe::parts(&self.fill(&url)?)?;
        let side = asked.as_ref().and_then(|ready| ready.netns).unwrap_or(Side::Client);
        let limit = Duration::from_secs_f64(asked.and_then(|ready| ready.timeout).unwrap_or(READY_SECS));
        let since = Instant::now();
        loop {
            let answer = probe::status(Some(self.lab.namespace(self.number, side)), address, path.clone()).await;
            if matches!(answer, Ok(200)) {
                return Ok(());
            }
            if let Some((name, status)) = self.ended() {
                bail!("{name} ended ({status}){}", self.logs());
            }
            if since.elapsed() > limit {
                let got = answer.map_or_else(|error| format!("{error:#}"), |status| format!("status {status}"));
                bail!("not ready within {} s: {got}{}", limit.as_secs(), self.logs());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// A process that is over although it should run.
    fn ended(&mut self) -> Option<(String, String)> {
        self.running.iter_mut().find_map(|(index, child)| {
            let status = child.try_wait().ok().flatten()?;
            Some((self.spec.procs[*index].name.clone(), status.to_string()))
        })
    }

    fn log_path(&self, process: &Process) -> PathBuf {
        self.folder.join(format!("{}.log", process.name))
    }

    fn logs(&self) -> String {
        let tail = |process: &Process| {
            let text = fs::read(self.log_path(process)).unwrap_or_default();
            let end = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_BYTES_MAX)..]).trim().to_owned();
            (!end.is_empty()).then(|| format!("\n--- {}\n{end}", process.name))
        };
        self.spec.procs.iter().filter_map(tail).collect()
    }

    /// Processes of an account with all that descend from them; `sidecars_only` leaves out those that are a second process of their
    /// side.
    pub(super) fn pids(&self, role: Role, sidecars_only: bool) -> Vec<u32> {
        let counts = |process: &Process| process.account() == Some(role) && (process.memory || !sidecars_only);
        self.running
            .iter()
            .filter(|(index, _)| counts(&self.spec.procs[*index]))
            .flat_map(|(_, child)| account::family(child.id()))
            .collect()
    }

    /// How long it has been up without any load; none if it is not, or had load.
    pub(super) fn fresh_for(&self) -> Option<Duration> {
        self.fresh_since.map(|since| since.elapsed())
    }

    /// Whether it was started and not stopped.
    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether it was started with more manifests than its spec has.
    pub(super) fn is_grown(&self) -> bool {
        self.grown
    }

    /// Load is sent to it from now on.
    pub(super) fn touch(&mut self) {
        self.fresh_since = None;
    }

    /// Runs the spec's proofs; yields the claims that do not hold, with what was seen.
    ///
    /// # Errors
    /// An expectation is no regular expression.
    pub(super) fn unproven(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        for proof in &self.spec.verify {
            let expect = regex::Regex::new(&proof.expect).with_context(|| format!("`expect` of topology {}", self.spec.name))?;
            let cmd = self.fill_all(&proof.cmd)?;
            if cmd.first().is_none_or(|program| lab::which(program).is_none()) {
                wrong.push(format!("{}: `{}` is not there to prove it", self.spec.name, cmd.join(" ")));
                continue;
            }
            let output = self.command(proof.netns, &cmd).output().with_context(|| format!("cannot start `{}`", cmd.join(" ")))?;
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            if !expect.is_match(&said) {
                let claim = proof.what.clone().unwrap_or_else(|| cmd.join(" "));
                wrong.push(format!("{}: not true: {claim} (got {:?})", self.spec.name, said.trim()));
            }
        }
        Ok(wrong)
    }

    /// Stops it and removes its namespaces. There is nothing worth a graceful end.
    pub(super) fn stop(&mut self) {
        for (_, child) in self.running.iter().rev() {
            for pid in account::family(child.id()) {
                // Gone already is as good.
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
        for (_, child) in &mut self.running {
            let _ = child.wait();
        }
        self.running.clear();
        self.fresh_since = None;
        self.lab.part(self.number);
    }
}

impl Drop for Topology<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Variables that are not a topology's own.
#[derive(Debug, Clone, Default)]
pub(super) struct Vars {
    /// The environment: the weakest.
    pub(super) environment: BTreeMap<String, String>,
    /// The command line's and the run's own: stronger than the spec's.
    pub(super) given: BTreeMap<String, String>,
}
