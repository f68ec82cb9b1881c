//! What a cluster costs a control plane: `benches cluster`.
//!
//! A real API server (`server`) is filled with Services, EndpointSlices and pods (`objects`). A control plane, as a process of its own, reads
//! them; proxies of some pods connect over plaintext xDS, as in `benches plane`. Then pods are replaced (`churn`), and their proxies with
//! them. After each of these the control plane's CPU and memory are taken down.

mod churn;
mod objects;
mod reading;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::plane::process::{Process, Source};
use crate::plane::stream::{self, Told};
use crate::plane::{reach, rest};
use crate::sockets::raise_open_files;
use objects::{Pod, Size};
use reading::Reading;
use server::{Calls, Server};

/// Streams that connect at a time.
const CONNECTING_MAX: usize = 64;

/// Arguments of `benches cluster`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  \
    benches cluster --control target/dist/meshwright --kube-api target/kube/kube-api\n\n\
    A replaced pod is seven calls: it is made, runs, is ready; its Service has it, has it ready, and has the old one no more; that one ends.")]
pub struct Args {
    /// The `meshwright` whose control plane is measured
    #[arg(long, value_name = "FILE")]
    control: PathBuf,
    /// The API server (`tests/kube-api/build FILE` makes it)
    #[arg(long, value_name = "FILE")]
    kube_api: PathBuf,
    /// Services
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    services: u32,
    /// Pods, spread evenly; at most a hundred of a Service
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pods: u32,
    /// Pods whose proxies connect
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: u32,
    /// Services that each proxy calls
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    destinations: u32,
    /// Pods replaced per second; 0: as many as the API server takes
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// How long pods are replaced
    #[arg(long, value_name = "SECS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    churn: u32,
    /// Turns, each with a new cluster
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// One line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Measures; prints a table, or JSON.
///
/// # Errors
/// The API server or the control plane does not start or refuses something, or a proxy is not told what it waits for.
pub fn run(args: &Args) -> anyhow::Result<()> {
    raise_open_files();
    ensure!(args.destinations <= args.services && args.streams <= args.pods, "there are fewer Services or pods than are called or connect");
    ensure!(args.pods.div_ceil(args.services) <= 100, "more than a hundred pods of a Service; name more Services with --services");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut readings = Vec::new();
    for _ in 0..args.rounds {
        readings.push(runtime.block_on(turn(args))?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&readings)?);
    } else {
        println!("{}", reading::table(&readings));
    }
    Ok(())
}

async fn turn(args: &Args) -> anyhow::Result<Reading> {
    let size = Size { services: args.services, pods: args.pods };
    let server = Server::start(&args.kube_api)?;
    let calls = Calls::new(&server.kubeconfig, size).await?;
    calls.fill().await.context("filling the cluster")?;
    let begun = Instant::now();
    let process = Process::start(&args.control, Source::Cluster(&server.kubeconfig)).await?;
    let read_secs = begun.elapsed().as_secs_f64();
    rest(&process).await?;
    let mut reading = Reading { read_secs, read_cpu_secs: process.all_cpu_secs(), ..Reading::default() };
    (reading.read_mib, reading.read_peak_mib) = (process.resident_mib(), process.peak_mib());

    let (told, before) = (Arc::new(Told::new(args.streams as usize)), process.cpu_secs());
    let mut fleet = Fleet::new(args, size, Arc::clone(&told), &process);
    let all = u64::from(args.streams);
    reach(&mut fleet.tasks, || told.begun() == all).await.context("the first configuration of all proxies")?;
    rest(&process).await?;
    (reading.connect_cpu_secs, reading.connected_mib) = (process.cpu_secs() - before, process.resident_mib());

    let (before, answers, begun) = (process.cpu_secs(), told.answers(), Instant::now());
    reading.replaced = churn::replace(&calls, &mut fleet, args.rate, Duration::from_secs(args.churn.into())).await?;
    reading.churn_secs = begun.elapsed().as_secs_f64();
    fleet.check()?;
    rest(&process).await?;
    (reading.churn_cpu_secs, reading.pushes) = (process.cpu_secs() - before, told.answers() - answers);
    (reading.churned_mib, reading.churned_peak_mib) = (process.resident_mib(), process.peak_mib());
    fleet.check()?;
    Ok(reading)
}

/// The pods, and the proxies of those that have one connected.
struct Fleet {
    size: Size,
    destinations: u32,
    address: std::net::SocketAddr,
    told: Arc<Told>,
    door: Arc<Semaphore>,
    /// Behind each Service.
    pods: Vec<Vec<Pod>>,
    /// By the number of its proxy.
    running: Vec<AbortHandle>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Fleet {
    /// The first pods have proxies that connect.
    fn new(args: &Args, size: Size, told: Arc<Told>, process: &Process) -> Self {
        let mut pods = vec![Vec::new(); size.services as usize];
        size.pods().for_each(|pod| pods[pod.service as usize].push(pod));
        let (door, running) = (Arc::new(Semaphore::new(CONNECTING_MAX)), Vec::new());
        let mut fleet =
            Self { size, destinations: args.destinations, address: process.xds, told, door, pods, running, tasks: JoinSet::new() };
        for (number, pod) in size.pods().take(args.streams as usize).enumerate() {
            let task = fleet.spawn(number, pod);
            fleet.running.push(task);
        }
        fleet
    }

    fn services(&self) -> u32 {
        self.size.services
    }

    /// The pods behind a Service.
    fn behind(&self, service: u32) -> Vec<Pod> {
        self.pods[service as usize].clone()
    }

    /// The number of a pod's proxy, where it has one that connects.
    fn number(&self, pod: Pod) -> Option<usize> {
        let number = (pod.place * self.size.services + pod.service) as usize;
        (number < self.running.len()).then_some(number)
    }

    fn spawn(&mut self, number: usize, pod: Pod) -> AbortHandle {
        let proxy = self.size.proxy(number, pod, self.destinations);
        let (told, door, address) = (Arc::clone(&self.told), Arc::clone(&self.door), self.address);
        self.tasks.spawn(async move { stream::run(address, proxy, &door, &told).await })
    }

    /// A pod is replaced: its proxy ends.
    fn replace(&mut self, old: Pod) {
        if let Some(number) = self.number(old) {
            self.running[number].abort();
        }
        for pod in self.pods[old.service as usize].iter_mut().filter(|pod| **pod == old) {
            *pod = old.next();
        }
    }

    /// A pod has come: so does its proxy.
    fn connect(&mut self, new: Pod) {
        if let Some(number) = self.number(new) {
            self.running[number] = self.spawn(number, new);
        }
    }

    /// Whether all proxies are connected still but those that were to end.
    fn check(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Err(error) if error.is_cancelled() => {}
                ended => {
                    ended??;
                    bail!("the control plane ended a stream");
                }
            }
        }
        Ok(())
    }
}
