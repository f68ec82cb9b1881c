//! Doors: accepting connections and sending each down its road.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::time::Instant;

use crate::ground::drain::DrainStage;
use crate::ground::limits::{ACCEPT_PAUSE, ACCEPT_TOLD_EVERY, QUEUED_MAX};
use crate::io::{Accepted, Listening};
use crate::observe::Direction;
use crate::road::arrival::Arrival;
use crate::road::guests::Guest;
use crate::road::shared::Shared;
use crate::{road::gateway, road::inbound, road::outbound};

/// What comes in at a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The application's redirected connections.
    Outbound,
    /// Redirected connections to the application.
    Inbound,
    /// A Gateway's listener on this port (the socket's own may differ).
    Edge {
        /// Port of the Gateway's listener.
        port: u16,
    },
    /// An explicit listener that stands for one destination, for programs that cannot be redirected.
    Fixed {
        /// The destination.
        destination: SocketAddr,
    },
}

impl Purpose {
    /// The direction whose bound counts and whose drain closes it.
    pub const fn direction(self) -> Direction {
        match self {
            Self::Inbound => Direction::Inbound,
            Self::Outbound | Self::Edge { .. } | Self::Fixed { .. } => Direction::Outbound,
        }
    }
}

/// Accepts until the direction's drain shuts the door, or until dropped; each connection runs in a task of its own on this thread. At
/// the direction's bound, connections wait in the kernel's queue. When the kernel has no descriptors left, accepting pauses. A door that
/// is shut takes what has queued up before it: those clients are connected already, and would see their connections reset.
pub async fn listen(mut listening: Listening, door: Purpose, shared: Rc<Shared>) {
    let guests = Rc::clone(shared.guests.of(door.direction()));
    let _doorway = guests.door();
    let mut told = None;
    let mut member = shared.drain.of(door.direction()).join();
    loop {
        let place = guests.place().await;
        let accepted = tokio::select! {
            biased;
            () = member.stage(DrainStage::Shut) => break,
            accepted = accept(&mut listening, door, &mut told) => accepted,
        };
        admit(accepted, door, &shared, place.taken());
    }
    let mut queued = listening.queued();
    for _ in 0..QUEUED_MAX {
        let place = guests.place().await;
        let Some(accepted) = queued.next() else { return };
        admit(accepted, door, &shared, place.taken());
    }
}

/// `told`: when it was last told that there is nothing to accept with.
async fn accept(listening: &mut Listening, door: Purpose, told: &mut Option<Instant>) -> Accepted {
    loop {
        match listening.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() >= ACCEPT_TOLD_EVERY) {
                    *told = Some(Instant::now());
                    tracing::warn!(?door, %error, "accepting pauses");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(accepted: Accepted, door: Purpose, shared: &Rc<Shared>, guest: Guest) {
    let shared = Rc::clone(shared);
    tokio::task::spawn_local(async move {
        enter(accepted, door, Rc::clone(&shared)).await;
        drop(guest);
        // What it held is free now.
        shared.patience.stir();
    });
}

/// Sends a connection down its road. One that nobody redirected, to a door that takes only redirected ones, is closed: it would come
/// back to us for ever.
async fn enter(accepted: Accepted, door: Purpose, shared: Rc<Shared>) {
    let Accepted { socket, peer, local, original } = accepted;
    let destination = match door {
        Purpose::Outbound | Purpose::Inbound => match original {
            Some(original) if original.port() != local.port() => original,
            _ => {
                tracing::debug!(%peer, %local, "closed: a connection that was not redirected");
                return;
            }
        },
        Purpose::Edge { .. } => local,
        Purpose::Fixed { destination } => destination,
    };
    let arrival = Arrival { socket, peer, destination };
    match door {
        Purpose::Outbound | Purpose::Fixed { .. } => outbound::serve_connection(arrival, shared).await,
        Purpose::Inbound => inbound::serve_connection(arrival, shared).await,
        Purpose::Edge { port } => gateway::serve_connection(arrival, port, shared).await,
    }
}
