//! A whole mesh in a few lines: a folder of manifests, a control plane, sidecars and applications on one [`Wire`].

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use proxy::io::Clock;
use tempfile::TempDir;

use crate::application;
use crate::look::write_private;
use crate::plane::{Desk, Plane};
use crate::sidecar::{Log, Sidecar, Spec};
use crate::wire::{Medium, Wire};

/// Port that applications listen on.
pub const APPLICATION_PORT: u16 = 8080;

/// What all hosts of one mesh share. Its folders live as long as it does.
#[derive(Debug)]
pub struct Mesh {
    /// The network.
    pub wire: Wire,
    /// The control plane.
    pub plane: Plane,
    /// Access log of all sidecars.
    pub log: Log,
    /// Wall time at the start.
    pub wall: SystemTime,
    /// Feeds all chance.
    pub seed: u64,
    folder: TempDir,
}

impl Mesh {
    /// A mesh of these manifests; nothing runs yet.
    ///
    /// # Errors
    /// No temporary folder can be made.
    pub fn new(medium: Medium, control: IpAddr, manifests: &str, seed: u64) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (config, data) = (folder.path().join("manifests"), folder.path().join("data"));
        fs::create_dir(&config)?;
        fs::write(config.join("mesh.yaml"), manifests)?;
        let plane = Plane::new(&config, &data, control);
        Ok(Self { wire: Wire::new(medium), plane, log: Log::default(), wall: SystemTime::now(), seed, folder })
    }

    /// The way in for commands.
    pub fn desk(&self) -> Desk {
        self.plane.desk()
    }

    /// A clock whose wall time is that of the mesh, `elapsed` after its start.
    pub fn clock(&self, elapsed: Duration) -> Clock {
        Clock::simulated(self.wall + elapsed)
    }

    fn token_file(&self, spec: &Spec) -> PathBuf {
        self.folder.path().join(format!("{}.{}.token", spec.namespace, spec.workload))
    }

    /// Starts a sidecar with a fresh token, waits until it is ready, and starts its application (one that says its workload's name).
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn join(&self, spec: Spec, clock: Clock) -> anyhow::Result<Sidecar> {
        let sidecar = self.sidecar(spec, clock).await?;
        let address = SocketAddr::new(spec.ip, APPLICATION_PORT);
        tokio::task::spawn_local(application::serve(self.wire.application(spec.ip), address, spec.workload));
        sidecar.ready().await?;
        Ok(sidecar)
    }

    /// Starts a sidecar with a fresh token, without an application, and does not wait for it.
    ///
    /// # Errors
    /// There is no such workload.
    pub async fn sidecar(&self, spec: Spec, clock: Clock) -> anyhow::Result<Sidecar> {
        let token = self.desk().token(&format!("{}/{}", spec.namespace, spec.workload)).await?;
        self.sidecar_by(spec, clock, (&token, &self.bundle()?)).await
    }

    /// The trust bundle that is handed out now.
    ///
    /// # Errors
    /// The control plane has not written it.
    pub fn bundle(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.plane.data.join("ca.pem"))?)
    }

    /// Starts a sidecar with this token and this bundle, whenever they were handed out.
    ///
    /// # Errors
    /// They cannot be written, or not read.
    pub async fn sidecar_by(&self, spec: Spec, clock: Clock, (token, bundle): (&str, &str)) -> anyhow::Result<Sidecar> {
        let (file, roots, seed) = self.papers(&spec, (token, bundle))?;
        let place = (self.plane.address(), &*roots, &*file);
        Sidecar::start(spec, place, &self.wire, (clock, seed), &self.log).await
    }

    /// Starts a Gateway's proxy, open at these ports of its host, and does not wait for it.
    ///
    /// # Errors
    /// There is no such Gateway.
    pub async fn edge(&self, spec: Spec, ports: &[u16], clock: Clock) -> anyhow::Result<Sidecar> {
        let token = self.desk().token(&format!("{}/{}", spec.namespace, spec.workload)).await?;
        let (file, roots, seed) = self.papers(&spec, (&token, &self.bundle()?))?;
        let place = (self.plane.address(), &*roots, &*file);
        Sidecar::edge(spec, ports, place, &self.wire, (clock, seed), &self.log).await
    }

    /// Writes a proxy's token and bundle; and what its chance is fed by.
    fn papers(&self, spec: &Spec, (token, bundle): (&str, &str)) -> anyhow::Result<(PathBuf, PathBuf, u64)> {
        let file = self.token_file(spec);
        let roots = file.with_extension("pem");
        write_private(&file, token)?;
        fs::write(&roots, bundle)?;
        let IpAddr::V4(ip) = spec.ip else { anyhow::bail!("hosts of a mesh have IPv4 addresses") };
        Ok((file, roots, self.seed ^ u64::from(ip.to_bits())))
    }
}
