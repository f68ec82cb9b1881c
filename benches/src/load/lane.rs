//! A lane: one request at a time, whatever is spoken.

use std::rc::Rc;

use tokio::sync::Semaphore;

use super::args::Protocol;
use super::deadline::Deadline;
use super::fault::Fault;
use super::plan::Plan;
use super::schedule::Share;
use super::streams::{Call, Link, Stream};
use super::tally::Meter;
use super::wire::{self, Talk, Wire};

/// Connections that are being opened at once before the load starts.
const OPENING_MAX: usize = 64;

/// One of them.
pub(super) struct Lane {
    road: Road,
    deadline: Deadline,
}

enum Road {
    Wire(Wire),
    Stream(Stream),
}

impl Lane {
    /// One request and its whole answer, or the timeout.
    ///
    /// # Errors
    /// Why there is no right answer.
    pub(super) async fn exchange(&mut self) -> Result<(), Fault> {
        let outcome = match &mut self.road {
            Road::Wire(wire) => self.deadline.within(wire.exchange()).await,
            Road::Stream(stream) => self.deadline.within(stream.exchange()).await,
        };
        let outcome = outcome.unwrap_or(Err(Fault::Timeout));
        if let (Err(_), Road::Wire(wire)) = (&outcome, &mut self.road) {
            wire.close();
        }
        outcome
    }

    async fn open(&mut self) -> Result<(), Fault> {
        let opened = match &mut self.road {
            Road::Wire(wire) => self.deadline.within(async { wire.open().await.map_err(|error| Fault::of_connect(&error)) }).await,
            Road::Stream(stream) => self.deadline.within(stream.open()).await,
        };
        opened.unwrap_or(Err(Fault::Timeout))
    }
}

/// The lanes of one runtime, closed. Inside its runtime.
///
/// # Errors
/// The target makes no request.
pub(super) fn lanes(plan: &Plan, share: Share, meter: &Rc<Meter>) -> anyhow::Result<Vec<Lane>> {
    let connections = share.part(plan.connections);
    let lane = |road| Lane { road, deadline: Deadline::new(plan.timeout) };
    let wires = |talk: fn() -> Talk| {
        let request = wire::request(plan, &talk());
        let wire = |_| lane(Road::Wire(Wire::new(plan, talk(), Rc::clone(&request), Rc::clone(meter))));
        (0..connections).map(wire).collect()
    };
    Ok(match plan.protocol {
        Protocol::H1 => wires(|| Talk::Http),
        Protocol::Tcp => wires(|| Talk::Echo),
        Protocol::H2 | Protocol::Grpc => {
            let call = Rc::new(Call::new(plan)?);
            let links: Vec<_> = (0..connections).map(|_| Rc::new(Link::new(plan))).collect();
            // Round robin, so that lanes that take turns use all connections alike.
            let stream = |link: &Rc<Link>| lane(Road::Stream(Stream::new(Rc::clone(link), Rc::clone(&call), plan.fresh, Rc::clone(meter))));
            (0..plan.streams).flat_map(|_| &links).map(stream).collect()
        }
    })
}

/// Opens the connections of all lanes, a bounded number at once. Inside a `LocalSet`.
///
/// # Errors
/// One cannot be opened.
pub(super) async fn open(lanes: Vec<Lane>) -> Result<Vec<Lane>, Fault> {
    let permits = Rc::new(Semaphore::new(OPENING_MAX));
    let opening: Vec<_> = lanes
        .into_iter()
        .map(|mut lane| {
            let permits = Rc::clone(&permits);
            tokio::task::spawn_local(async move {
                // Never closed, so there is always a permit to come.
                let _permit = permits.acquire().await.ok();
                lane.open().await.map(|()| lane)
            })
        })
        .collect();
    let mut opened = Vec::with_capacity(opening.len());
    for lane in opening {
        opened.push(lane.await.unwrap_or(Err(Fault::ConnectFailed))?);
    }
    Ok(opened)
}
