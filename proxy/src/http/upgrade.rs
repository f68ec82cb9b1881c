//! Connections that stop being HTTP: WebSocket and everything else that upgrades, and CONNECT.

use std::rc::Rc;
use std::time::Duration;

use engine::failure::{Failure, Reason};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::idle::Patience;
use crate::observe::Exchange;
use crate::tcp::{self, Buffers};

/// Both halves of an agreed upgrade.
pub struct Tunnel {
    /// Becomes the client's bytes once the answer is written.
    pub downstream: OnUpgrade,
    /// Becomes the server's bytes.
    pub upstream: OnUpgrade,
    /// Recorded when the tunnel ends.
    pub exchange: Exchange,
    /// Silence that ends it.
    pub idle: Option<Duration>,
}

/// Carries bytes both ways until both sides have ended, one breaks off, or nothing moves for too long.
/// `held` lives as long as the tunnel.
pub async fn tunnel<H>(tunnel: Tunnel, held: H, patience: Rc<Patience>, buffers: Rc<Buffers>) {
    let Tunnel { downstream, upstream, mut exchange, idle } = tunnel;
    let (downstream, upstream) = match tokio::join!(downstream, upstream) {
        (Ok(downstream), Ok(upstream)) => (TokioIo::new(downstream), TokioIo::new(upstream)),
        (Err(error), _) => return exchange.failed(&Failure::new(Reason::ClientGone, format!("the upgrade was not completed: {error}"))),
        (_, Err(error)) => return exchange.failed(&Failure::new(Reason::UpstreamReset, format!("the upgrade was not completed: {error}"))),
    };
    let wait = patience.wait(idle);
    tcp::carry(downstream, upstream, &mut exchange, &wait, &buffers).await;
    drop(held);
}
