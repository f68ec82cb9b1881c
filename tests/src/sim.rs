//! The whole mesh in simulation: control plane, authority and sidecars as turmoil hosts, in virtual time, from one seed.
//!
//! A run is checked at every step: epochs only grow, no proxy's leaf is past its end, nothing travels in plaintext between meshed
//! hosts. A run that fails prints its seed; `MESHWRIGHT_SIM_SEED=… cargo sim` replays it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use engine::model::Trust;
use proxy::io::{Draw, Network};
use proxy::snapshots::{FETCH_WAIT, NameLookup, Snapshots};
use proxy::tls::CredentialCell;
use tokio::time::timeout;
use turmoil::Sim;

use crate::application::Client;
use crate::mesh::{APPLICATION_PORT, Mesh};
use crate::plane::Desk;
use crate::play::{Home, Shot};
use crate::sidecar::{Sidecar, Spec, resolve};
use crate::wire::Medium;

/// Time between two steps of the simulation, and so the grain of all its time.
const TICK: Duration = Duration::from_millis(5);
/// Longest simulation.
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// Latency between two hosts, least and most.
const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// Steps between two looks of the checkers.
const CHECK_EVERY: u32 = 10;
/// Requests of a load between two new connections.
const REQUESTS_PER_CONNECTION: usize = 10;
/// Host of the control plane.
const CONTROL: &str = "control";

/// What the outside of the simulation sees of its hosts.
#[derive(Default)]
struct Seen {
    proxies: BTreeMap<&'static str, (Snapshots, Arc<CredentialCell>)>,
    epochs: BTreeMap<&'static str, u64>,
    leaves: BTreeMap<&'static str, u64>,
    shots: Vec<Shot>,
    released: bool,
}

/// See the module.
pub struct Simulation {
    sim: Sim<'static>,
    mesh: Arc<Mesh>,
    seen: Arc<Mutex<Seen>>,
    steps: u32,
    commands: u32,
    seed: u64,
    /// Hosts that cannot reach the control plane: their leaves may end.
    cut: BTreeSet<String>,
    /// Those that could not, until they have a fresh leaf.
    late: BTreeSet<String>,
}

/// The seed of this run: `MESHWRIGHT_SIM_SEED`, else the given one.
pub fn seed(usual: u64) -> u64 {
    std::env::var("MESHWRIGHT_SIM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// The seeds of a test that has many: `MESHWRIGHT_SIM_SEED` alone, or `MESHWRIGHT_SIM_SEEDS` of them, else `count`, from `first` on.
pub fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("MESHWRIGHT_SIM_SEED") {
        Some(seed) => seed..seed.saturating_add(1),
        None => first..first.saturating_add(number("MESHWRIGHT_SIM_SEEDS").unwrap_or(count)),
    }
}

/// `whole` where `MESHWRIGHT_SIM_WHOLE` is set, as in `tests/run-all full`, else the usual share of it: unoptimised proxies carry some
/// hundred requests a second.
pub fn extent<T>(whole: T, usual: T) -> T {
    if std::env::var_os("MESHWRIGHT_SIM_WHOLE").is_some() { whole } else { usual }
}

impl Simulation {
    /// A simulation whose control plane serves these manifests. Hosts get the addresses 192.168.0.1 (the control plane), .2, .3 and so
    /// on, in the order in which they join.
    ///
    /// # Errors
    /// No temporary folder can be made.
    pub fn new(seed: u64, manifests: &str) -> anyhow::Result<Self> {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(DURATION_MAX)
            .min_message_latency(LATENCY.0)
            .max_message_latency(LATENCY.1)
            .tcp_capacity(4096)
            .build();
        let mesh = Arc::new(Mesh::new(Medium::Turmoil, sim.lookup(CONTROL), manifests, seed)?);
        let inside = Arc::clone(&mesh);
        sim.host(CONTROL, move || {
            let mesh = Arc::clone(&inside);
            async move {
                let clock = mesh.clock(turmoil::sim_elapsed().unwrap_or_default());
                Ok(mesh.plane.run(mesh.wire.exempt(mesh.plane.ip), clock).await?)
            }
        });
        Ok(Self { sim, mesh, seen: Arc::default(), steps: 0, commands: 0, seed, cut: BTreeSet::new(), late: BTreeSet::new() })
    }

    /// Gives these hosts the next addresses, though they join later.
    pub fn reserve(&mut self, workloads: &[&'static str]) {
        for workload in workloads {
            self.sim.lookup(*workload);
        }
    }

    /// Adds a host with a sidecar and an application that says its workload's name.
    pub fn join(&mut self, namespace: &'static str, workload: &'static str, service_account: &'static str) {
        let ip = self.sim.lookup(workload);
        let spec = Spec { namespace, workload, service_account, ip };
        let (mesh, seen) = (Arc::clone(&self.mesh), Arc::clone(&self.seen));
        self.sim.host(workload, move || {
            let (mesh, seen) = (Arc::clone(&mesh), Arc::clone(&seen));
            async move {
                let sidecar = mesh.join(spec, mesh.clock(turmoil::sim_elapsed().unwrap_or_default())).await?;
                let Sidecar { means, credentials, .. } = &sidecar;
                lock(&seen).proxies.insert(workload, (means.snapshots.clone(), Arc::clone(credentials)));
                std::future::pending::<()>().await;
                drop(sidecar);
                Ok(())
            }
        });
    }

    /// Adds a host whose sidecar joins by this token and this bundle, as they were handed out some time ago; it has no application.
    pub fn join_by(&mut self, (namespace, workload, account): (&'static str, &'static str, &'static str), token: String, bundle: String) {
        let ip = self.sim.lookup(workload);
        let spec = Spec { namespace, workload, service_account: account, ip };
        let (mesh, seen) = (Arc::clone(&self.mesh), Arc::clone(&self.seen));
        self.sim.host(workload, move || {
            let (mesh, seen, token, bundle) = (Arc::clone(&mesh), Arc::clone(&seen), token.clone(), bundle.clone());
            async move {
                let sidecar = mesh.sidecar_by(spec, mesh.clock(turmoil::sim_elapsed().unwrap_or_default()), (&token, &bundle)).await?;
                sidecar.ready().await?;
                lock(&seen).proxies.insert(workload, (sidecar.means.snapshots.clone(), Arc::clone(&sidecar.credentials)));
                std::future::pending::<()>().await;
                drop(sidecar);
                Ok(())
            }
        });
    }

    /// The trust bundle that is handed out now.
    ///
    /// # Errors
    /// The control plane has not written it.
    pub fn bundle(&self) -> anyhow::Result<String> {
        self.mesh.bundle()
    }

    /// As [`Simulation::join`], and its application calls `service` (`NAME.NAMESPACE`, port 80) every `pause`, once its proxy is ready.
    pub fn join_with_load(
        &mut self,
        (namespace, workload, account): (&'static str, &'static str, &'static str),
        service: &'static str,
        pause: Duration,
    ) {
        let ip = self.sim.lookup(workload);
        let spec = Spec { namespace, workload, service_account: account, ip };
        let (mesh, seen) = (Arc::clone(&self.mesh), Arc::clone(&self.seen));
        self.sim.host(workload, move || {
            let (mesh, seen) = (Arc::clone(&mesh), Arc::clone(&seen));
            async move {
                let sidecar = mesh.join(spec, mesh.clock(turmoil::sim_elapsed().unwrap_or_default())).await?;
                let snapshots = sidecar.means.snapshots.clone();
                lock(&seen).proxies.insert(workload, (snapshots.clone(), Arc::clone(&sidecar.credentials)));
                let address = SocketAddr::new(resolve(&snapshots, service).await?, 80);
                let mut client = Client::new(mesh.wire.application(ip), address, service);
                for number in 0.. {
                    if number % REQUESTS_PER_CONNECTION == 0 {
                        client.hang_up();
                    }
                    let sent = turmoil::sim_elapsed().unwrap_or_default();
                    let answer = match client.get("/").await {
                        Ok(answer) if answer.status == 200 => Ok(answer.served_by().to_owned()),
                        Ok(answer) => Err(format!("{} {}", answer.status, answer.header("x-meshwright-reason"))),
                        Err(error) => Err(format!("{error:#}")),
                    };
                    let took = turmoil::sim_elapsed().unwrap_or_default() - sent;
                    lock(&seen).shots.push(Shot { sent, took, load: service, answer });
                    tokio::time::sleep(pause).await;
                }
                drop(sidecar);
                Ok(())
            }
        });
    }

    /// The same, and its application, from [`Simulation::release`] on, uses each of `services` (`NAME.NAMESPACE`, port 80) for the first
    /// time, with little pause and often several at once: the name, then a request. A service called `missing-…` must be denied. Each use
    /// is a shot.
    pub fn join_with_first_uses(
        &mut self,
        (namespace, workload, account): (&'static str, &'static str, &'static str),
        services: &[String],
    ) {
        let ip = self.sim.lookup(workload);
        let spec = Spec { namespace, workload, service_account: account, ip };
        let (mesh, seen, services) = (Arc::clone(&self.mesh), Arc::clone(&self.seen), services.to_vec());
        self.sim.host(workload, move || {
            let (mesh, seen, services) = (Arc::clone(&mesh), Arc::clone(&seen), services.clone());
            async move {
                let sidecar = mesh.join(spec, mesh.clock(turmoil::sim_elapsed().unwrap_or_default())).await?;
                let snapshots = sidecar.means.snapshots.clone();
                lock(&seen).proxies.insert(workload, (snapshots.clone(), Arc::clone(&sidecar.credentials)));
                while !lock(&seen).released {
                    tokio::time::sleep(TICK).await;
                }
                let draw = Draw::seeded(mesh.seed ^ u64::from(workload.bytes().map(u32::from).sum::<u32>()));
                for service in services {
                    if draw.next().is_multiple_of(2) {
                        tokio::time::sleep(Duration::from_millis(draw.next() % 200)).await;
                    }
                    let (snapshots, network, seen) = (snapshots.clone(), mesh.wire.application(ip), Arc::clone(&seen));
                    tokio::task::spawn_local(async move {
                        let sent = turmoil::sim_elapsed().unwrap_or_default();
                        let answer = first_use(&snapshots, network, &service).await.map_err(|error| format!("{service}: {error:#}"));
                        let took = turmoil::sim_elapsed().unwrap_or_default() - sent;
                        lock(&seen).shots.push(Shot { sent, took, load: workload, answer });
                    });
                }
                std::future::pending::<()>().await;
                drop(sidecar);
                Ok(())
            }
        });
    }

    /// Adds a host with a sidecar whose application is what `play` does there; it begins before the proxy is ready.
    pub fn join_as<F>(
        &mut self,
        (namespace, workload, account): (&'static str, &'static str, &'static str),
        play: impl Fn(Home) -> F + Clone + 'static,
    ) where
        F: Future<Output = anyhow::Result<()>> + 'static,
    {
        let ip = self.sim.lookup(workload);
        let spec = Spec { namespace, workload, service_account: account, ip };
        let (mesh, seen) = (Arc::clone(&self.mesh), Arc::clone(&self.seen));
        self.sim.host(workload, move || {
            let (mesh, seen, play) = (Arc::clone(&mesh), Arc::clone(&seen), play.clone());
            async move {
                let sidecar = mesh.sidecar(spec, mesh.clock(turmoil::sim_elapsed().unwrap_or_default())).await?;
                let snapshots = sidecar.means.snapshots.clone();
                let network = mesh.wire.application(ip);
                let told = Arc::clone(&seen);
                let shoot = Arc::new(move |shot| lock(&told).shots.push(shot));
                let play =
                    tokio::task::spawn_local(play(Home { network, address: SocketAddr::new(ip, APPLICATION_PORT), snapshots, shoot }));
                sidecar.ready().await?;
                lock(&seen).proxies.insert(workload, (sidecar.means.snapshots.clone(), Arc::clone(&sidecar.credentials)));
                play.await??;
                std::future::pending::<()>().await;
                drop(sidecar);
                Ok(())
            }
        });
    }

    /// First uses begin, now and on whatever joins later.
    pub fn release(&mut self) {
        lock(&self.seen).released = true;
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Every request of the loads so far.
    pub fn shots(&self) -> Vec<Shot> {
        lock(&self.seen).shots.clone()
    }

    /// Forgets them, and so the time in which the mesh was still coming up.
    pub fn forget_shots(&mut self) {
        lock(&self.seen).shots.clear();
    }

    /// Requests that did not succeed.
    pub fn failures(&self) -> Vec<Shot> {
        self.shots().into_iter().filter(|shot| shot.answer.is_err()).collect()
    }

    /// How many leaves a proxy has had.
    pub fn leaves(&self, workload: &str) -> u64 {
        lock(&self.seen).leaves.get(workload).copied().unwrap_or_default()
    }

    /// The epoch that a proxy runs.
    pub fn epoch(&self, workload: &str) -> u64 {
        lock(&self.seen).epochs.get(workload).copied().unwrap_or_default()
    }

    /// Whom a proxy believes.
    pub fn trust(&self, workload: &str) -> Option<Arc<Trust>> {
        lock(&self.seen).proxies.get(workload).and_then(|(snapshots, _)| snapshots.load().trust.clone())
    }

    /// The control plane is gone, from one moment to the next; its disk stays.
    pub fn kill_control(&mut self) {
        self.sim.crash(CONTROL);
    }

    /// It is back.
    pub fn restart_control(&mut self) {
        self.sim.bounce(CONTROL);
    }

    /// A workload's host is gone, its application and its sidecar with it.
    pub fn kill(&mut self, workload: &'static str) {
        lock(&self.seen).proxies.remove(workload);
        self.sim.crash(workload);
    }

    /// It is back, with a fresh token.
    pub fn restart(&mut self, workload: &'static str) {
        self.sim.bounce(workload);
    }

    /// No packet passes between the control plane and this host, in either direction.
    pub fn cut_off(&mut self, workload: &str) {
        self.cut.insert(workload.to_owned());
        self.late.insert(workload.to_owned());
        self.sim.partition(CONTROL, workload);
    }

    /// Packets pass again.
    pub fn heal(&mut self, workload: &str) {
        self.cut.remove(workload);
        self.sim.repair(CONTROL, workload);
    }

    /// Runs for a while.
    ///
    /// # Errors
    /// A host fails or a checker objects.
    pub fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = self.elapsed() + time;
        while self.elapsed() < end {
            self.step()?;
        }
        Ok(())
    }

    /// Runs until something holds.
    ///
    /// # Errors
    /// A host fails, a checker objects, or `patience` ends first.
    pub fn run_until(&mut self, what: &str, patience: Duration, mut holds: impl FnMut(&Self) -> bool) -> anyhow::Result<()> {
        let end = self.elapsed() + patience;
        while !holds(self) {
            ensure!(self.elapsed() < end, "not within {patience:?}: {what}");
            self.step()?;
        }
        Ok(())
    }

    /// Runs a command of an operator to its end.
    ///
    /// # Errors
    /// The command's own, or as for [`Simulation::run_until`].
    pub fn command<T: Send + 'static, F>(&mut self, command: impl FnOnce(Desk) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>> + 'static,
    {
        let place: Arc<Mutex<Option<anyhow::Result<T>>>> = Arc::default();
        let (result, work) = (Arc::clone(&place), command(self.mesh.desk()));
        self.commands += 1;
        self.sim.client(format!("operator-{}", self.commands), async move {
            let outcome = work.await;
            *lock(&result) = Some(outcome);
            Ok(())
        });
        self.run_until("the operator's command ends", Duration::from_secs(120), |_| lock(&place).is_some())?;
        let outcome = lock(&place).take();
        outcome.context("the command has ended")?
    }

    fn step(&mut self) -> anyhow::Result<()> {
        self.sim.step().map_err(|error| anyhow::anyhow!("a host failed after {:?}: {error}", self.elapsed()))?;
        self.steps += 1;
        if self.steps.is_multiple_of(CHECK_EVERY) {
            self.check()?;
        }
        Ok(())
    }

    /// What must hold at any moment.
    fn check(&mut self) -> anyhow::Result<()> {
        let elapsed = self.elapsed();
        let wall = self.mesh.wall + elapsed;
        let mut seen = lock(&self.seen);
        let Seen { proxies, epochs, leaves, .. } = &mut *seen;
        for (workload, (snapshots, credentials)) in proxies {
            let (epoch, before) = (snapshots.load().epoch, epochs.get(workload).copied().unwrap_or_default());
            ensure!(epoch >= before, "{workload} went back from epoch {before} to {epoch}");
            epochs.insert(workload, epoch);
            let leaf = credentials.current().context("a proxy that joined has a leaf")?;
            if leaf.not_after > wall {
                if !self.cut.contains(*workload) {
                    self.late.remove(*workload);
                }
            } else {
                ensure!(self.late.contains(*workload), "{workload}'s leaf is past its end at {elapsed:?}");
            }
            leaves.insert(workload, credentials.generation());
        }
        let plain = self.mesh.wire.witness().plaintext_to(APPLICATION_PORT);
        ensure!(plain.is_empty(), "plaintext between meshed hosts: {:?}", plain.first());
        Ok(())
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation failed at {:?}; replay it with MESHWRIGHT_SIM_SEED={} cargo sim", self.elapsed(), self.seed);
        }
    }
}

/// One name and one request behind it, none of which may take as long as the longest wait for the control plane.
async fn first_use(snapshots: &Snapshots, network: Network, service: &str) -> anyhow::Result<String> {
    let host = format!("{service}.svc.cluster.local");
    let address = match timeout(FETCH_WAIT, snapshots.name(&host, false)).await.context("its name is waited for")? {
        NameLookup::Absent if service.starts_with("missing") => return Ok("absent".to_owned()),
        NameLookup::Found(answer) => *answer.addresses.first().context("no address")?,
        other => anyhow::bail!("its name is {other:?}"),
    };
    let mut client = Client::new(network, SocketAddr::new(address, 80), service);
    let answer = timeout(FETCH_WAIT, client.get("/")).await.context("its answer is waited for")??;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.header("x-meshwright-reason"));
    Ok(answer.served_by().to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
