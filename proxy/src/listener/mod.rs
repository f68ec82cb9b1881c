//! Doors: accepting connections and sending each down its road.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::sync::Semaphore;

use crate::arrival::Arrival;
use crate::io::{Accepted, Listening};
use crate::limits::{ACCEPT_PAUSE, CONNECTIONS_MAX};
use crate::shared::Shared;
use crate::{gateway, inbound, outbound};

/// What comes in at a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
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

/// Downstream connections that one worker may hold, over all its doors.
#[derive(Debug)]
pub struct Permits(Rc<Semaphore>);

impl Default for Permits {
    fn default() -> Self {
        Self(Rc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

impl Clone for Permits {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// Accepts until dropped; each connection runs in a task of its own on this thread. At the bound, connections wait in the kernel's
/// queue. When the kernel has no descriptors left, accepting pauses.
pub async fn listen(mut listening: Listening, door: Door, shared: Rc<Shared>, permits: Permits) {
    let mut full = false;
    loop {
        // Told once per time that it fills up, not once per connection.
        let was_full = std::mem::replace(&mut full, permits.0.available_permits() == 0);
        if full && !was_full {
            tracing::warn!(?door, bound = CONNECTIONS_MAX, "no more connections are accepted until some end");
        }
        let Ok(permit) = permits.0.acquire().await else { return };
        permit.forget();
        let held = Held(permits.clone());
        let accepted = loop {
            match listening.accept().await {
                Ok(accepted) => break accepted,
                Err(error) => {
                    tracing::warn!(?door, %error, "accepting pauses");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let shared = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            enter(accepted, door, Rc::clone(&shared)).await;
            drop(held);
            // What it held is free now.
            shared.patience.stir();
        });
    }
}

/// One connection's permit.
struct Held(Permits);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.add_permits(1);
    }
}

/// Sends a connection down its road. One that nobody redirected, to a door that takes only redirected ones, is closed: it would come
/// back to us for ever.
async fn enter(accepted: Accepted, door: Door, shared: Rc<Shared>) {
    let Accepted { socket, peer, local, original } = accepted;
    let destination = match door {
        Door::Outbound | Door::Inbound => match original {
            Some(original) if original.port() != local.port() => original,
            _ => {
                tracing::debug!(%peer, %local, "closed: a connection that was not redirected");
                return;
            }
        },
        Door::Edge { .. } => local,
        Door::Fixed { destination } => destination,
    };
    let arrival = Arrival { socket, peer, destination };
    match door {
        Door::Outbound | Door::Fixed { .. } => outbound::serve_connection(arrival, shared).await,
        Door::Inbound => inbound::serve_connection(arrival, shared).await,
        Door::Edge { port } => gateway::serve_connection(arrival, port, shared).await,
    }
}
