//! One instance's life: namespace, rules, sidecar, workload, readiness; and its end in the other order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use proto::mesh::{InstanceOrder, InstanceState, probe::Kind};
use proxy::intercept::{self, EXEMPT_MARK, EXEMPT_UID, Interception};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep};

use super::book::{InstanceRecord, spiffe_variable};
use super::mesh::{Key, Mesh, OTLP_ENV, Phase, left_running};
use super::probe::{self, Check};
use super::process::{Backoff, Process, Start, last_line};
use super::{dns, tidy};
use crate::netns::fabric::Plug;
use crate::netns::{Namespace, services};

/// The sidecar's readiness.
const READY: (u16, &str) = (proto::ports::HEALTH, "/healthz/ready");
/// How often readiness is asked until it is there; afterwards the probe's own period counts.
const EAGER: Duration = Duration::from_millis(50);
/// Longest wait for one answer unless the probe says otherwise.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// So many answers in a row may be missing before a sidecar counts as not ready, as with a kubelet.
const SILENCES_MAX: u32 = 3;
/// A token that was not used within this time is replaced: it may have been refused, or the control plane began anew.
const REFILL: Duration = Duration::from_secs(3);
/// An instance that needs longer does not hold others up.
const START_MAX: Duration = Duration::from_secs(5);
/// Between "no longer ready" and SIGTERM, so that callers hear of it first.
const LEAVE: Duration = Duration::from_millis(300);
/// What a workload, then its sidecar, may take to end when it alone ends, and when the whole mesh ends.
const GRACE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(2500));
/// How soon `no such sidecar yet` is tried again.
const SETUP_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Facts of the workload, for programs that want to know who they are.
const NAMES: [&str; 4] = ["MESHWRIGHT_NAMESPACE", "MESHWRIGHT_WORKLOAD", "MESHWRIGHT_INSTANCE", "MESHWRIGHT_VERSION"];

/// What a sidecar must not take from the environment of `up`.
const HIDDEN: [&str; 5] = [NAMES[0], NAMES[1], NAMES[2], NAMES[3], OTLP_ENV];

struct InstanceLife {
    mesh: Rc<Mesh>,
    order: InstanceOrder,
    key: Key,
    addresses: Vec<IpAddr>,
    namespace: Namespace,
    mounts: Vec<(PathBuf, PathBuf)>,
    phase: watch::Receiver<Phase>,
    sidecar_ready: watch::Sender<bool>,
    workload_gone: watch::Sender<bool>,
    permit: RefCell<Option<OwnedSemaphorePermit>>,
}

/// Runs the instance until the phase is left, and removes it. Never returns early: what cannot be set up is tried again.
pub(crate) async fn live(mesh: Rc<Mesh>, order: InstanceOrder, mut phase: watch::Receiver<Phase>) {
    let key = (order.namespace.clone(), order.instance.clone());
    tell(&mesh, &order, "starting", None, "");
    let mut backoff = Backoff::new(SETUP_RETRY.0, SETUP_RETRY.1, Instant::now());
    let (port, mounts) = loop {
        match set_up(&mesh, &order) {
            Ok(done) => break done,
            Err(error) => {
                let message = format!("{error:#}");
                tell(&mesh, &order, "failed", None, &message);
                state(&mesh, &key, |state| state.message = message);
                tokio::select! {
                    _ = left_running(&mut phase) => return forget(&mesh, &key),
                    () = sleep(backoff.wait(Instant::now())) => {}
                }
            }
        }
    };
    let permit = tokio::select! {
        permit = std::sync::Arc::clone(&mesh.starts).acquire_owned() => permit.ok(),
        _ = left_running(&mut phase) => None,
    };
    let life = InstanceLife {
        mesh: Rc::clone(&mesh),
        addresses: parse_addresses(&order.addresses),
        order,
        key: key.clone(),
        namespace: port.namespace.clone(),
        mounts,
        phase,
        sidecar_ready: watch::Sender::new(false),
        workload_gone: watch::Sender::new(false),
        permit: RefCell::new(permit),
    };
    tokio::join!(life.sidecar(), life.workload(), life.readiness(), life.virtual_addresses());
    tell(&mesh, &life.order, "stopped", None, "");
    drop(life);
    if let Err(error) = mesh.fabric.borrow_mut().unplug(&port) {
        mesh.screen.notice(format!("{}/{}: {error:#}", key.0, key.1));
    }
    forget(&mesh, &key);
}

impl InstanceLife {
    fn name(&self) -> String {
        format!("{}/{}", self.key.0, self.key.1)
    }

    /// The sidecar runs until the workload has gone.
    async fn sidecar(&self) {
        if !self.order.meshed {
            self.sidecar_ready.send_replace(true);
            return;
        }
        let start = async || {
            self.refill().await?;
            self.start_sidecar()
        };
        let on = |change: Result<u32, String>| {
            self.change(|state| match change {
                Ok(pid) => state.proxy_pid = pid,
                Err(reason) => {
                    state.proxy_pid = 0;
                    state.ready = false;
                    state.message = format!("sidecar {reason}");
                }
            });
            self.sidecar_ready.send_replace(false);
        };
        let stop = async {
            let phase = left_running(&mut self.phase.clone()).await;
            // The workload's last words go through the sidecar.
            let _ = self.workload_gone.subscribe().wait_for(|gone| *gone).await;
            grace(phase)
        };
        self.mesh.keep(&format!("{}'s proxy", self.name()), &self.log(".proxy"), start, on, stop).await;
    }

    fn start_sidecar(&self) -> anyhow::Result<Process> {
        let mut command = self.mesh.proxy_command(&self.order.namespace, &self.order.workload, &self.order.instance);
        if !self.order.service_account.is_empty() {
            command.extend(["--service-account".into(), self.order.service_account.clone().into()]);
        }
        if let Some(socket) = self.spiffe_socket() {
            command.extend(["--spiffe-socket".into(), socket.into()]);
        }
        if !self.order.log_level.is_empty() {
            command.extend(["--log-level".into(), self.order.log_level.clone().into()]);
        }
        Start {
            state: &self.mesh.state,
            namespace: &self.namespace,
            mounts: &self.mounts,
            command,
            env: Vec::new(),
            env_removed: &HIDDEN,
            directory: None,
            log: &self.log(".proxy"),
            input: None,
            drop_rights: false,
        }
        .spawn()
    }

    /// The workload's command runs once the sidecar is ready, as a container does behind a native sidecar.
    async fn workload(&self) {
        let start = async || {
            // The sender lives as long as `self`.
            let _ = self.sidecar_ready.subscribe().wait_for(|ready| *ready).await;
            self.start_workload()
        };
        let on = |change: Result<u32, String>| {
            self.change(|state| match change {
                Ok(pid) => {
                    state.restarts += u32::from(state.started);
                    (state.started, state.pid) = (true, pid);
                }
                Err(reason) => (state.pid, state.ready, state.message) = (0, false, format!("command {reason}")),
            });
        };
        let stop = async {
            let phase = left_running(&mut self.phase.clone()).await;
            self.change(|state| state.ready = false);
            tell(&self.mesh, &self.order, "stopping", None, "");
            if phase == Phase::Drain {
                sleep(LEAVE).await;
            }
            grace(phase)
        };
        if self.order.command.is_empty() {
            stop.await;
        } else {
            self.mesh.keep(&self.name(), &self.log(""), start, on, stop).await;
        }
        self.workload_gone.send_replace(true);
    }

    fn start_workload(&self) -> anyhow::Result<Process> {
        let order = &self.order;
        let version = order.labels.get("version").cloned().unwrap_or_default();
        let names = NAMES.into_iter().zip([&order.namespace, &order.workload, &order.instance, &version]);
        let mut env: Vec<_> = names.map(|(name, value)| (name.into(), value.into())).collect();
        env.extend(self.mesh.workload_env());
        env.extend(self.spiffe_socket().as_deref().map(spiffe_variable));
        env.extend(order.env.iter().map(|variable| (variable.name.clone().into(), variable.value.clone().into())));
        let directory = (!order.working_dir.is_empty()).then(|| Path::new(&order.working_dir));
        Start {
            state: &self.mesh.state,
            namespace: &self.namespace,
            mounts: &self.mounts,
            command: order.command.iter().map(Into::into).collect(),
            env,
            env_removed: &[],
            directory,
            log: &self.log(""),
            input: None,
            drop_rights: self.mesh.rights.rootless,
        }
        .spawn()
    }

    /// Asks sidecar and workload until the workload has gone.
    async fn readiness(&self) {
        let began = Instant::now();
        let mut refilled = Instant::now();
        let (mut failures, mut silences) = (0, 0);
        let mut gone = self.workload_gone.subscribe();
        while !*gone.borrow_and_update() {
            if self.order.meshed {
                // On a machine that has no time one answer may be late; a sidecar that died is known without asking.
                silences = if self.ask_sidecar().await { 0 } else { silences + 1 };
                let ready = silences == 0 || (silences < SILENCES_MAX && *self.sidecar_ready.borrow());
                self.sidecar_ready.send_if_modified(|before| std::mem::replace(before, ready) != ready);
                if !ready && refilled.elapsed() > REFILL {
                    refilled = Instant::now();
                    // Nothing to do about it here: the control plane may be away, and comes back.
                    let _ = self.refill().await;
                }
            }
            let outcome = self.ask_workload(began).await;
            failures = if outcome.is_ok() { 0 } else { failures + 1 };
            self.judge(outcome, failures);
            let ready = self.is_ready();
            if ready || began.elapsed() > START_MAX {
                self.permit.borrow_mut().take();
            }
            let period = self.order.readiness.as_ref().map_or(1, |probe| probe.period_secs.max(1));
            let pause =
                if ready { Duration::from_secs(period.into()) } else { EAGER.max(began.elapsed() / 50).min(Duration::from_secs(1)) };
            tokio::select! {
                _ = gone.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes an answer of the workload into account.
    fn judge(&self, outcome: anyhow::Result<()>, failures: u32) {
        let threshold = self.order.readiness.as_ref().map_or(3, |probe| probe.failure_threshold.max(1));
        let running = *self.phase.borrow() == Phase::Run;
        let before = self.is_ready();
        let ready = match &outcome {
            Ok(()) => running,
            Err(_) => running && before && failures < threshold && *self.sidecar_ready.borrow(),
        };
        if ready == before {
            return;
        }
        let message = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
        let mut pid = None;
        self.change(|state| {
            state.ready = ready;
            state.message.clone_from(&message);
            pid = Some(state.pid);
        });
        if running {
            tell(&self.mesh, &self.order, if ready { "ready" } else { "not_ready" }, pid, &message);
        }
    }

    fn is_ready(&self) -> bool {
        self.mesh.roster.borrow().instances.get(&self.key).is_some_and(|state| state.ready)
    }

    async fn ask_sidecar(&self) -> bool {
        let check = Check::Http { port: READY.0, path: READY.1.to_owned() };
        let addresses = self.addresses.clone();
        self.namespace.spawn(move || probe::ask(&check, &addresses, ANSWER_MAX)).await.is_ok()
    }

    async fn ask_workload(&self, began: Instant) -> anyhow::Result<()> {
        if self.order.meshed && !*self.sidecar_ready.borrow() {
            anyhow::bail!("the sidecar is not ready{}", self.last_words(".proxy"));
        }
        let pid = self.mesh.roster.borrow().instances.get(&self.key).map_or(0, |state| state.pid);
        if pid == 0 && !self.order.command.is_empty() {
            anyhow::bail!("the command does not run{}", self.last_words(""));
        }
        let wanted = self.order.readiness.clone().unwrap_or_default();
        if began.elapsed() < Duration::from_secs(wanted.initial_delay_secs.into()) {
            anyhow::bail!("initialDelaySeconds has not passed");
        }
        let limit = if wanted.timeout_secs == 0 { ANSWER_MAX } else { Duration::from_secs(wanted.timeout_secs.into()) };
        let port = |number: u32| u16::try_from(number).with_context(|| format!("{number} is not a port"));
        let check = match wanted.kind {
            Some(Kind::Http(http)) => Check::Http { port: port(http.port)?, path: http.path },
            Some(Kind::TcpPort(number)) => Check::Tcp(port(number)?),
            Some(Kind::Exec(exec)) => return self.ask_command(exec.command, limit).await,
            None => match self.order.ports.first() {
                Some(first) => Check::Tcp(port(*first)?),
                None => return Ok(()),
            },
        };
        let addresses = self.addresses.clone();
        self.namespace.spawn(move || probe::ask(&check, &addresses, limit)).await
    }

    async fn ask_command(&self, command: Vec<String>, limit: Duration) -> anyhow::Result<()> {
        let directory = (!self.order.working_dir.is_empty()).then(|| Path::new(&self.order.working_dir));
        let mut process = Start {
            state: &self.mesh.state,
            namespace: &self.namespace,
            mounts: &self.mounts,
            command: command.into_iter().map(Into::into).collect(),
            env: self.mesh.workload_env(),
            env_removed: &[],
            directory,
            log: &self.log(".probe"),
            input: None,
            drop_rights: self.mesh.rights.rootless,
        }
        .spawn()?;
        match tokio::time::timeout(limit, process.ended()).await {
            Ok(how) if how == "ended" => Ok(()),
            Ok(how) => anyhow::bail!("the probe's command {how}{}", self.last_words(".probe")),
            Err(_) => {
                process.stop(Duration::ZERO).await;
                anyhow::bail!("the probe's command took longer than {} s", limit.as_secs())
            }
        }
    }

    /// The kube-proxy role, for an instance without a sidecar.
    async fn virtual_addresses(&self) {
        if self.order.meshed {
            return;
        }
        let mut services = self.mesh.services.subscribe();
        services.mark_changed();
        let mut gone = self.workload_gone.subscribe();
        loop {
            tokio::select! {
                _ = gone.wait_for(|gone| *gone) => return,
                changed = services.changed() => if changed.is_err() { return },
            }
            let now = services.borrow_and_update().clone();
            if let Err(error) = self.namespace.spawn(move || services::install(&now)).await {
                self.mesh.screen.notice(format!("{}: virtual addresses: {error:#}", self.name()));
            }
        }
    }

    /// Where the application gets its identity: without a sidecar it has none.
    fn spiffe_socket(&self) -> Option<PathBuf> {
        self.mesh.spiffe_socket(&self.key.0, &self.key.1).filter(|_| self.order.meshed)
    }

    async fn refill(&self) -> anyhow::Result<()> {
        self.mesh.refill_token(&self.order.namespace, &self.order.workload, &self.order.instance).await
    }

    fn log(&self, suffix: &str) -> PathBuf {
        self.mesh.log(&format!("{}.{}{suffix}", self.key.0, self.key.1))
    }

    fn last_words(&self, suffix: &str) -> String {
        last_line(&self.log(suffix)).map(|line| format!(" (its log ends with: {line})")).unwrap_or_default()
    }

    fn change(&self, change: impl FnOnce(&mut InstanceState)) {
        state(&self.mesh, &self.key, change);
    }
}

fn grace(phase: Phase) -> Duration {
    if phase == Phase::Stop { GRACE.1 } else { GRACE.0 }
}

/// Namespace, addresses, rules and files; everything that is there before the first process.
fn set_up(mesh: &Mesh, order: &InstanceOrder) -> anyhow::Result<(Plug, Vec<(PathBuf, PathBuf)>)> {
    let addresses = parse_addresses(&order.addresses);
    anyhow::ensure!(!addresses.is_empty(), "the control plane gave it no address");
    let mounts = files(mesh, order)?;
    let port = mesh.fabric.borrow_mut().plug(&addresses)?;
    if order.meshed {
        let mut plan = plan(mesh.rights.rootless, mesh.resolver(), order);
        // What `up` itself serves there is not the mesh's: telemetry goes straight to its relay. Questions for names are caught before.
        plan.exclude_outbound_cidrs.extend(mesh.settings.ranges.bridge_here().into_iter().map(|bridge| IpNet::from(bridge.addr())));
        port.namespace.run(|| Ok(intercept::install(&plan)?))?;
    }
    let key = (order.namespace.clone(), order.instance.clone());
    let name = format!("{}.{}", order.namespace, order.instance);
    let entry = InstanceRecord {
        namespace: order.namespace.clone(),
        workload: order.workload.clone(),
        instance: order.instance.clone(),
        meshed: order.meshed,
        edge: false,
        addresses: order.addresses.clone(),
        netns: port.namespace.path(),
        mounts: mounts.clone(),
        spiffe_socket: mesh.spiffe_socket(&order.namespace, &order.instance).filter(|_| order.meshed),
        pid: None,
        proxy_pid: None,
        log: mesh.log(&name),
        proxy_log: mesh.log(&format!("{name}.proxy")),
    };
    mesh.roster.borrow_mut().entries.insert(key.clone(), entry);
    state(mesh, &key, |state| {
        state.fingerprint.clone_from(&order.fingerprint);
        state.message.clear();
    });
    Ok((port, mounts))
}

/// The rules of a meshed instance. The mark exempts probes, and without root the sidecar too.
fn plan(rootless: bool, resolver: IpAddr, order: &InstanceOrder) -> Interception {
    let ports = |list: &[u32]| list.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
    Interception {
        exempt_uid: (!rootless).then_some(EXEMPT_UID),
        exempt_mark: Some(EXEMPT_MARK),
        exclude_outbound_ports: ports(&order.exclude_outbound_ports),
        exclude_inbound_ports: ports(&order.exclude_inbound_ports),
        exclude_outbound_cidrs: order.exclude_outbound_cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok()).collect(),
        resolvers: vec![resolver],
        ..Interception::default()
    }
}

/// `resolv.conf` and, where the host has one, `nsswitch.conf`, as the instance sees them.
fn files(mesh: &Mesh, order: &InstanceOrder) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let folder = mesh.state.join(tidy::RESOLV);
    let resolv = folder.join(format!("{}.{}", order.namespace, order.instance));
    let write = |path: &Path, text: String| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, text)?;
        // Seen as a system file by programs of whatever user.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
    };
    write(&resolv, dns::resolv_conf(mesh.resolver(), &order.namespace)).with_context(|| format!("cannot write {}", resolv.display()))?;
    let mut mounts = vec![(resolv, PathBuf::from("/etc/resolv.conf"))];
    if let Ok(host) = std::fs::read_to_string("/etc/nsswitch.conf") {
        let path = folder.join("nsswitch.conf");
        write(&path, dns::nsswitch(&host)).with_context(|| format!("cannot write {}", path.display()))?;
        mounts.push((path, PathBuf::from("/etc/nsswitch.conf")));
    }
    Ok(mounts)
}

fn parse_addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn state(mesh: &Mesh, key: &Key, change: impl FnOnce(&mut InstanceState)) {
    let mut roster = mesh.roster.borrow_mut();
    let fresh = || InstanceState { namespace: key.0.clone(), instance: key.1.clone(), ..InstanceState::default() };
    let state = roster.instances.entry(key.clone()).or_insert_with(fresh);
    change(state);
    let (pid, proxy_pid) = (Some(state.pid).filter(|pid| *pid > 0), Some(state.proxy_pid).filter(|pid| *pid > 0));
    if let Some(entry) = roster.entries.get_mut(key) {
        (entry.pid, entry.proxy_pid) = (pid, proxy_pid);
    }
    drop(roster);
    mesh.changed();
}

fn forget(mesh: &Mesh, key: &Key) {
    mesh.forget(key, |roster| drop(roster.instances.remove(key)));
}

fn tell(mesh: &Mesh, order: &InstanceOrder, state: &'static str, pid: Option<u32>, message: &str) {
    mesh.tell((&order.namespace, &order.workload, &order.instance), state, pid, message);
}

/// Who lives where, for the resolver.
pub(crate) fn askers(orders: &[InstanceOrder]) -> BTreeMap<IpAddr, String> {
    orders
        .iter()
        .flat_map(|order| parse_addresses(&order.addresses).into_iter().map(|address| (address, order.namespace.clone())))
        .collect()
}
