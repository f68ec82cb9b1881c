//! What applications do in a simulation beyond answering: loads that do not wait for their answers, and services that call on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use proxy::io::Network;
use proxy::snapshots::Snapshots;
use tokio::time::{MissedTickBehavior, timeout};

use crate::application::{Answer, Answering, Client, serve_as};
use crate::sidecar::resolve;

/// Connections that wait for their next request.
const KEPT_MAX: usize = 256;

/// One request of a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shot {
    /// When it was sent, since the start of the simulation.
    pub sent: Duration,
    /// Until its answer was whole, or it had failed.
    pub took: Duration,
    /// The load it is of.
    pub load: &'static str,
    /// Who answered with 200, or what went wrong.
    pub answer: Result<String, String>,
}

/// What an application finds on its host.
#[derive(Clone)]
pub struct Home {
    /// Its network.
    pub network: Network,
    /// Where it listens.
    pub address: SocketAddr,
    /// What its proxy knows, for names.
    pub snapshots: Snapshots,
    /// Takes note of a request.
    pub shoot: Arc<dyn Fn(Shot)>,
}

/// A load: so many requests each second, whether answers come or not.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Its name in shots.
    pub name: &'static str,
    /// `NAME.NAMESPACE`; port 80.
    pub service: &'static str,
    /// What is asked for.
    pub path: &'static str,
    /// A header of each request.
    pub header: Option<(&'static str, &'static str)>,
    /// Requests a second.
    pub per_second: u32,
    /// Then the caller gives up.
    pub patience: Duration,
    /// A header whose values, in the request as the server saw it and in the answer, are noted behind the server's name.
    pub note: Option<&'static str>,
}

impl Load {
    /// A plain one.
    pub const fn of(service: &'static str, per_second: u32) -> Self {
        Self { name: service, service, path: "/", header: None, per_second, patience: Duration::from_secs(30), note: None }
    }
}

/// Callers of one service, each with a kept connection. Clones share them.
#[derive(Clone)]
pub struct Callers {
    network: Network,
    address: SocketAddr,
    service: &'static str,
    kept: Arc<Mutex<Vec<Client>>>,
}

impl Callers {
    /// One request.
    ///
    /// # Errors
    /// No connection, or no whole answer.
    pub async fn send(&self, request: http::request::Builder) -> anyhow::Result<Answer> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut client = kept.unwrap_or_else(|| Client::new(self.network.clone(), self.address, self.service));
        let answer = client.send(request).await?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(client);
        }
        Ok(answer)
    }
}

impl Home {
    /// Serves until dropped.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn serve(&self, answering: Answering, idle: Option<Duration>) -> anyhow::Result<()> {
        serve_as(self.network.clone(), self.address, answering, idle).await
    }

    /// Callers of `NAME.NAMESPACE`, port 80; waits until its name is known.
    ///
    /// # Errors
    /// The mesh does not know it.
    pub async fn callers(&self, service: &'static str) -> anyhow::Result<Callers> {
        let known = crate::plane::patiently(async || resolve(&self.snapshots, service).await);
        let address = SocketAddr::new(known.await.with_context(|| format!("{service} is called"))?, 80);
        Ok(Callers { network: self.network.clone(), address, service, kept: Arc::default() })
    }

    /// Sends a load for ever.
    ///
    /// # Errors
    /// The mesh does not know its service.
    pub async fn load(&self, load: Load) -> anyhow::Result<()> {
        let callers = self.callers(load.service).await?;
        let mut due = tokio::time::interval(Duration::from_secs(1) / load.per_second);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            due.tick().await;
            let (callers, shoot) = (callers.clone(), Arc::clone(&self.shoot));
            tokio::task::spawn_local(async move { shoot(one(&callers, load).await) });
        }
    }
}

async fn one(callers: &Callers, load: Load) -> Shot {
    let sent = turmoil::sim_elapsed().unwrap_or_default();
    let mut request = Request::get(load.path);
    if let Some((name, value)) = load.header {
        request = request.header(name, value);
    }
    let answer = match timeout(load.patience, callers.send(request)).await {
        Ok(Ok(answer)) if answer.status == 200 => {
            let [seen, got] =
                load.note.map_or([""; 2].map(str::to_owned), |name| [answer.seen(name), answer.header(name)].map(str::to_owned));
            Ok([answer.served_by(), &seen, &got].join(" ").trim_end().to_owned())
        }
        Ok(Ok(answer)) => Err(format!("{} {}", answer.status, answer.header("x-meshwright-reason"))),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err("the caller gave up".to_owned()),
    };
    let took = turmoil::sim_elapsed().unwrap_or_default() - sent;
    Shot { sent, took, load: load.name, answer }
}
