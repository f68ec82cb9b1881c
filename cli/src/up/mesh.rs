//! What every part of a running `up` shares. One thread: plain cells.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::mesh::{GatewayState, InstanceState, TokenRequest, VirtualService};
use proxy::intercept::{EXEMPT_MARK, EXEMPT_UID};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep};

use super::book::{InstanceRecord, InstancesFile};
use super::process::{Backoff, Process, last_line};
use super::relay::authority;
use super::rights::Rights;
use super::screen::{News, Screen};
use super::{UpSettings, tidy};
use crate::client;
use crate::netns::fabric::Fabric;
use crate::state::CONTROL_SOCKET;

/// Longest path that the kernel takes for a socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Port of the control plane's xDS and certificate service.
pub(crate) const CONTROL_PORT: u16 = 15012;
/// Life of a join token: the proxy uses it within a second, or gets another one.
const TOKEN_LIFE_SECS: i64 = 300;
/// Parts that start at the same time; more would only slow one another down.
const STARTS_MAX: usize = 8;
/// Proxies are told where spans go by the control plane: the host's own value would mean something else in their namespace.
pub(crate) const OTLP_ENV: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// First and longest wait before a part is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What a part should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Go on.
    Run,
    /// End in order: it is no longer declared, or starts anew with another shape. The rest of the mesh goes on.
    Drain,
    /// End soon: the whole mesh does.
    Stop,
}

/// Namespace and name.
pub(crate) type Key = (String, String);

/// The facts that the control plane and `exec` are told.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// Instances by namespace and name.
    pub(crate) instances: BTreeMap<Key, InstanceState>,
    /// Gateways by namespace and name.
    pub(crate) gateways: BTreeMap<Key, GatewayState>,
    /// Both, as the book shows them.
    pub(crate) entries: BTreeMap<Key, InstanceRecord>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// From the command line.
    pub(crate) settings: UpSettings,
    /// The state directory.
    pub(crate) state: PathBuf,
    /// With root or without.
    pub(crate) rights: Rights,
    /// Where everything hangs.
    pub(crate) fabric: RefCell<Fabric>,
    /// Where events go.
    pub(crate) screen: Screen,
    /// What instances outside the mesh see.
    pub(crate) services: watch::Sender<Arc<Vec<VirtualService>>>,
    /// What runs.
    pub(crate) roster: RefCell<Roster>,
    /// Wakes whoever tells others about the roster.
    pub(crate) report: Notify,
    /// Wakes whoever writes the book.
    pub(crate) rewrite: Notify,
    /// Bounds simultaneous starts.
    pub(crate) starts: Arc<Semaphore>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` where that is the host's loopback.
    pub(crate) otlp: Option<String>,
    /// Port on the bridge of each relay to the host, by target.
    pub(crate) relays: RefCell<BTreeMap<String, u16>>,
}

impl Mesh {
    /// A mesh in which nothing runs yet.
    pub(crate) fn new(settings: UpSettings, state: PathBuf, rights: Rights, fabric: Fabric, screen: Screen, otlp: Option<String>) -> Self {
        Self {
            settings,
            state,
            rights,
            fabric: RefCell::new(fabric),
            screen,
            services: watch::Sender::new(Arc::default()),
            roster: RefCell::default(),
            report: Notify::new(),
            rewrite: Notify::new(),
            starts: Arc::new(Semaphore::new(STARTS_MAX)),
            otlp,
            relays: RefCell::default(),
        }
    }

    /// Tells both listeners that the roster changed.
    pub(crate) fn changed(&self) {
        self.report.notify_one();
        self.rewrite.notify_one();
    }

    /// Shows how a part stands: an instance by namespace, workload and its own name, or a Gateway, which is all three at once.
    pub(crate) fn tell(&self, (namespace, workload, instance): (&str, &str, &str), state: &'static str, pid: Option<u32>, message: &str) {
        self.screen.tell(&News::Instance {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            instance: instance.to_owned(),
            state,
            pid,
            message: message.to_owned(),
        });
    }

    /// Takes a part that has ended off the roster; `state` takes its state off.
    pub(crate) fn forget(&self, key: &Key, state: impl FnOnce(&mut Roster)) {
        let mut roster = self.roster.borrow_mut();
        state(&mut roster);
        roster.entries.remove(key);
        drop(roster);
        self.changed();
    }

    /// The control plane's address on the bridge.
    pub(crate) fn control_address(&self) -> SocketAddr {
        let [v4, _] = self.settings.ranges.bridge();
        SocketAddr::new(v4.addr(), CONTROL_PORT)
    }

    /// The resolver on the bridge.
    pub(crate) fn resolver(&self) -> IpAddr {
        let [v4, _] = self.settings.ranges.bridge();
        v4.addr()
    }

    /// A log's path.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.state.join(tidy::LOGS).join(format!("{name}.log"))
    }

    /// Puts a fresh one-time join token into an instance's token file.
    ///
    /// # Errors
    /// The control plane does not answer or does not know the workload, or the file cannot be written.
    pub(crate) async fn refill_token(&self, namespace: &str, workload: &str, instance: &str) -> anyhow::Result<()> {
        let path = self.token_file(namespace, instance);
        let mut control = client::connect_to(&self.state.join(CONTROL_SOCKET)).await.context("the control plane does not answer")?;
        let request = TokenRequest {
            workload: format!("{namespace}/{workload}"),
            life: Some(prost_types::Duration { seconds: TOKEN_LIFE_SECS, nanos: 0 }),
            instance: instance.to_owned(),
        };
        let answer = control.create_token(request).await.map_err(|status| client::refused(&status))?;
        write_in_place(&path, answer.into_inner().token.as_bytes())
    }

    /// An instance's token file.
    pub(crate) fn token_file(&self, namespace: &str, instance: &str) -> PathBuf {
        self.state.join(tidy::TOKENS).join(format!("{namespace}.{instance}"))
    }

    /// The socket on which an instance's application gets its identity. One whose path would be too long for a socket has none.
    pub(crate) fn spiffe_socket(&self, namespace: &str, instance: &str) -> Option<PathBuf> {
        let path = self.state.join(tidy::SPIFFE).join(format!("{namespace}.{instance}"));
        (path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX).then_some(path)
    }

    /// The command line of a proxy: what a user would type.
    pub(crate) fn proxy_command(&self, namespace: &str, workload: &str, instance: &str) -> Vec<OsString> {
        let text = |text: &str| OsString::from(text);
        // Without root there is no uid to drop to: a mark on its sockets exempts the proxy.
        let exempt = if self.rights.rootless {
            [text("--exempt-mark"), text(&EXEMPT_MARK.to_string())]
        } else {
            [text("--exempt-uid"), text(&EXEMPT_UID.to_string())]
        };
        let command = vec![
            text("meshwright"),
            text("proxy"),
            text("--control"),
            text(&self.control_address().to_string()),
            text("--control-ca"),
            self.state.join(tidy::CA_FILE).into(),
            text("--token-file"),
            self.token_file(namespace, instance).into(),
            text("--workload"),
            text(&format!("{namespace}/{workload}")),
            text("--instance"),
            text(instance),
        ];
        command.into_iter().chain(exempt).collect()
    }

    /// Environment that workloads see instead of the host's: the relay where an endpoint on the host's loopback is meant.
    pub(crate) fn workload_env(&self) -> Vec<(OsString, OsString)> {
        let [bridge, _] = self.settings.ranges.bridge();
        let relayed = |endpoint: &String| {
            let target = authority(endpoint);
            let port = *self.relays.borrow().get(target)?;
            Some((OTLP_ENV.into(), endpoint.replacen(target, &format!("{}:{port}", bridge.addr()), 1).into()))
        };
        self.otlp.as_ref().and_then(relayed).into_iter().collect()
    }

    /// The book as it stands.
    pub(crate) fn book(&self) -> InstancesFile {
        let userns = self.rights.rootless.then(|| PathBuf::from(format!("/proc/{}/ns/user", std::process::id())));
        let fabric = self.fabric.borrow().namespace.path();
        InstancesFile { up: std::process::id(), userns, fabric, instances: self.roster.borrow().entries.values().cloned().collect() }
    }

    /// Keeps a part running until `stop` says with how much grace it ends. `start` starts it, `on` hears each change: its pid, or why
    /// there is none, with the last words in its log.
    pub(crate) async fn keep(
        &self,
        part: &str,
        log: &Path,
        mut start: impl AsyncFnMut() -> anyhow::Result<Process>,
        on: impl Fn(Result<u32, String>),
        stop: impl Future<Output = Duration>,
    ) {
        let mut stop = pin!(stop);
        let mut backoff = Backoff::new(RESTART.0, RESTART.1, Instant::now());
        loop {
            let started = tokio::select! {
                biased;
                _ = &mut stop => return,
                started = start() => started,
            };
            let wait = match started {
                Ok(mut process) => {
                    backoff.started(Instant::now());
                    on(Ok(process.pid));
                    let reason = tokio::select! {
                        biased;
                        grace = &mut stop => return process.stop(grace).await,
                        reason = process.ended() => last_words(reason, log),
                    };
                    on(Err(reason.clone()));
                    let wait = (!self.settings.no_restart).then(|| backoff.wait(Instant::now()));
                    let restart_in_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                    self.screen.tell(&News::Died { part: part.to_owned(), pid: process.pid, reason, restart_in_ms });
                    // What it left of its group does not live on beside its successor.
                    process.stop(Duration::ZERO).await;
                    wait
                }
                Err(error) => {
                    on(Err(format!("{error:#}")));
                    Some(backoff.wait(Instant::now()))
                }
            };
            let Some(wait) = wait else {
                stop.await;
                return;
            };
            tokio::select! {
                biased;
                _ = &mut stop => return,
                () = sleep(wait) => {}
            }
        }
    }
}

/// A program that gave up by itself mostly says why.
fn last_words(reason: String, log: &Path) -> String {
    match last_line(log) {
        Some(line) if reason.contains("status") => format!("{reason} ({line})"),
        _ => reason,
    }
}

/// Replaces a file's content without replacing the file: a proxy that gave up its rights may hold it open.
fn write_in_place(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let write = || {
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        file.write_all_at(content, 0)?;
        file.set_len(content.len() as u64)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Resolves when the phase is no longer [`Phase::Run`], with that phase. A sender that has gone means the end.
pub(crate) async fn left_running(phase: &mut watch::Receiver<Phase>) -> Phase {
    match phase.wait_for(|phase| *phase != Phase::Run).await {
        Ok(phase) => *phase,
        Err(_) => Phase::Stop,
    }
}
