//! A real Kubernetes API server for tests: `tests/kube-api`, built when it is needed, started on a free port, ended with its user. And a
//! whole [`Cluster`], where pods run.

mod ask;
mod build;
mod cluster;
mod crds;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Weak};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::sync::Mutex;

pub use ask::{Refusal, ask, eventually};
pub use build::Program;
pub use cluster::{Cluster, Said};
pub use crds::{gateway_api, install};

/// Longest wait for an orderly end; then the process is killed.
const END_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a process that ends.
const LOOK: Duration = Duration::from_millis(10);
/// Of its log, what an error shows.
const LOG_BYTES_SHOWN: usize = 4_000;

static SHARED: LazyLock<Mutex<Weak<Rig>>> = LazyLock::new(Mutex::default);

/// A running API server with an empty store of its own. Dropping it ends the server and removes its folder; a server whose user died
/// without that ends by itself, because its standard input does.
#[derive(Debug)]
pub struct Rig {
    child: Child,
    folder: TempDir,
    about: About,
}

/// The line that says that it is ready.
#[derive(Debug, Deserialize)]
struct About {
    server: String,
    kubeconfig: PathBuf,
    ca: PathBuf,
    token: PathBuf,
}

impl Rig {
    /// One server for all tests of a program that run at the same time: each works in a namespace of its own. It ends with its last user.
    ///
    /// # Errors
    /// As [`Rig::start`].
    pub async fn shared() -> anyhow::Result<Arc<Self>> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return Ok(running);
        }
        let rig = Arc::new(Self::start(&[]).await?);
        *shared = Arc::downgrade(&rig);
        Ok(rig)
    }

    /// A server of one's own, with further flags of `kube-api` (its README lists them), such as `--rbac`.
    ///
    /// # Errors
    /// Go is missing, the build fails, or the server does not become ready; the error shows the end of its log.
    pub async fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        tokio::task::spawn_blocking(move || Self::start_blocking(&flags)).await?
    }

    fn start_blocking(flags: &[String]) -> anyhow::Result<Self> {
        let program = Program::Api.built()?;
        let folder = tempfile::Builder::new().prefix("kube-api-").tempdir()?;
        let log = folder.path().join("log");
        let mut child = Command::new(&program)
            .arg("--dir")
            .arg(folder.path())
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            // It gives up by itself when it is not ready in time, which ends this read.
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let Ok(about) = serde_json::from_str(&line) else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("kube-api did not become ready; its log ends with:\n{}", tail(&log));
        };
        Ok(Self { child, folder, about })
    }

    /// Where it answers: `https://127.0.0.1:PORT`.
    pub fn server(&self) -> &str {
        &self.about.server
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.about.kubeconfig
    }

    /// The authority of its certificate, PEM.
    pub fn ca(&self) -> &Path {
        &self.about.ca
    }

    /// The file with the administrator's token.
    pub fn token(&self) -> &Path {
        &self.about.token
    }

    /// Its folder, where a test may keep its own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A client with the administrator's rights.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        self.client_of(None).await
    }

    /// A client that shows this bearer token, such as a service account's.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub async fn client_with(&self, token: &str) -> anyhow::Result<kube::Client> {
        self.client_of(Some(token)).await
    }

    /// Stops the server where it is until what this gives is dropped: connections stay open, and nothing is answered.
    ///
    /// # Errors
    /// The process is gone.
    pub fn stall(&self) -> anyhow::Result<Stalled<'_>> {
        let pid = Pid::from_raw(self.child.id().try_into()?);
        kill(pid, Signal::SIGSTOP)?;
        // Its threads stop one by one; the parent is told when the last has. An end is seen too, and left for who waits for it.
        waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        Ok(Stalled { pid, _rig: PhantomData })
    }

    async fn client_of(&self, token: Option<&str>) -> anyhow::Result<kube::Client> {
        let text = Kubeconfig::read_from(self.kubeconfig())?;
        let mut config = kube::Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await?;
        // Otherwise the client tries 429, 503 and 504 again for minutes, and a test never sees the answer.
        config.default_retry = false;
        if let Some(token) = token {
            config.auth_info.token = Some(token.to_owned().into());
        }
        Ok(kube::Client::try_from(config)?)
    }
}

/// A server that hangs.
#[derive(Debug)]
pub struct Stalled<'a> {
    pid: Pid,
    _rig: PhantomData<&'a Rig>,
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGCONT);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a program that ends with its standard input, or kills it.
fn end(child: &mut Child) {
    drop(child.stdin.take());
    for _ in 0..END_WAIT.as_millis() / LOOK.as_millis() {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        thread::sleep(LOOK);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn tail(log: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(log) {
        let _ = file.read_to_string(&mut text);
    }
    let from = text.len().saturating_sub(LOG_BYTES_SHOWN);
    text.get(from..).unwrap_or(&text).to_owned()
}
