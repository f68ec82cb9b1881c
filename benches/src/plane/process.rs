//! One control plane as a process.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for its start.
const START: Duration = Duration::from_secs(120);

/// Where its objects come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// A folder of manifests.
    Folder(&'a Path),
    /// A cluster, by a kubeconfig.
    Cluster(&'a Path),
}

/// A running control plane; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Its port for xDS in plaintext.
    pub(crate) xds: SocketAddr,
    begun_secs: f64,
    _data: TempDir,
}

impl Process {
    /// Starts it, and waits until its port is open.
    ///
    /// # Errors
    /// It ends, or does not listen in time.
    pub(crate) async fn start(program: &Path, source: Source<'_>) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let ports = free_ports::<4>()?;
        let at = |port: u16| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port).to_string();
        let log = fs::File::create(data.path().join("log"))?;
        let mut command = Command::new(program);
        command.arg("control");
        match source {
            Source::Folder(folder) => command.arg("--config").arg(folder),
            Source::Cluster(file) => command.arg("--kubernetes").arg("--kubeconfig").arg(file).args(["--webhook-listen", &at(ports[3])]),
        };
        let child = command
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .arg("--api-socket")
            .arg(data.path().join("api"))
            .args(["--listen", &at(ports[0]), "--metrics-listen", &at(ports[1]), "--log-level", "warn"])
            .arg(format!("--plaintext-xds={}", at(ports[2])))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut this = Self { child, xds: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ports[2]), begun_secs: 0.0, _data: data };
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(this.xds).await.is_err() {
            if let Some(status) = this.child.try_wait()? {
                let said = fs::read_to_string(this._data.path().join("log")).unwrap_or_default();
                bail!("{} ended with {status}: {said}", program.display());
            }
            if begun.elapsed() > START {
                bail!("{} does not listen at {} within {} s", program.display(), this.xds, START.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        this.begun_secs = this.all_cpu_secs();
        Ok(this)
    }

    /// Seconds of CPU since its start, by the kernel's clock of the process: threads that have ended count.
    pub(crate) fn all_cpu_secs(&self) -> f64 {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let spent = clock_getcpuclockid(pid).and_then(|clock| clock.now());
        spent.map_or(0.0, |spent| Duration::from(spent).as_secs_f64())
    }

    /// Seconds of CPU since it listened.
    pub(crate) fn cpu_secs(&self) -> f64 {
        self.all_cpu_secs() - self.begun_secs
    }

    /// Memory that it holds.
    pub(crate) fn resident_mib(&self) -> f64 {
        self.memory_mib("VmRSS:")
    }

    /// Most that it ever held.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.memory_mib("VmHWM:")
    }

    fn memory_mib(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
