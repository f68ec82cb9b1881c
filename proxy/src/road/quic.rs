//! HTTP/3 at a Gateway's port: clients by UDP, whose connections join the Gateway's road where their TLS is ended.
//!
//! A port of it is served by one worker: a client that moves to another address (RFC 9000, section 9) is known by its connection's id, which only the
//! worker knows that has the connection, while the kernel divides datagrams by address.

#![allow(clippy::disallowed_types, reason = "a door: clients come by UDP")]

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::client::Admitted;
use engine::decide;
use engine::failure::{Failure, Reason};
use engine::model::{ClientPolicy, ClientRules, Serves, Snapshot};
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime, TransportConfig, TransportErrorCode,
    VarInt,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ground::drain::DrainStage;
use crate::ground::limits::{
    QUIC_CLIENT_STREAMS_MAX, QUIC_INCOMING_BYTES, QUIC_INCOMING_MAX, QUIC_SEND_BYTES_MAX, QUIC_STREAM_WINDOW_BYTES,
};
use crate::http::http3::{self, QuicTerms};
use crate::observe::{Direction, Downstream, EdgeReadings, client_tls};
use crate::road::gateway;
use crate::road::guests::{Guest, Guests, Reserved};
use crate::road::shared::Shared;
use crate::tls::{Alert, QuicDoor, QuicMet, QuicUnproved, Shown};

/// The only version of QUIC that is spoken: RFC 9000.
const VERSION: u32 = 1;
/// TLS's code for a name that nobody has (RFC 8446, section 6.2).
const UNRECOGNIZED_NAME: u8 = 112;

/// Serves a port's clients of HTTP/3 for as long as `wanted` says so; then those who are there end in order, and so does this. It goes on if it is wanted
/// again meanwhile. Whoever comes then, or once a drain has shut the doors, is refused. Dropping the future cuts all of them. `unproved_max`: handshakes
/// under way at which further clients have to prove their address first.
pub async fn serve(socket: UdpSocket, (port, unproved_max): (u16, usize), shared: Rc<Shared>, mut wanted: watch::Receiver<bool>) {
    let hall = match Hall::open(socket, (port, unproved_max), &shared) {
        Ok(hall) => hall,
        Err(why) => return tracing::error!(port, why, "HTTP/3 cannot be served"),
    };
    let guests = Rc::clone(&shared.guests.outbound);
    let mut doorway = Some(guests.door());
    let mut member = shared.drain.outbound.join();
    loop {
        let open = *wanted.borrow_and_update();
        if !open {
            hall.close();
            if hall.endpoint.open_connections() == 0 {
                return;
            }
        }
        tokio::select! {
            biased;
            () = member.stage(DrainStage::Shut), if doorway.is_some() => doorway = None,
            changed = wanted.changed() => match changed {
                Ok(()) if *wanted.borrow() && doorway.is_some() => hall.reopen(),
                Ok(()) => {}
                // Its worker ends.
                Err(_) => return hall.endpoint.wait_idle().await,
            },
            () = hall.endpoint.wait_idle(), if !open => return,
            (place, incoming) = next(&guests, &hall.endpoint), if open && doorway.is_some() => {
                let Some(incoming) = incoming else { return };
                hall.admit(incoming, || place.taken());
            }
            // Who is not answered would try on for half a minute before it asks over TCP.
            incoming = hall.endpoint.accept(), if !open || doorway.is_none() => match incoming {
                Some(incoming) => incoming.refuse(),
                None => return,
            },
        }
    }
}

/// The next client, and a place for it. Cancel-safe.
async fn next(guests: &Rc<Guests>, endpoint: &Endpoint) -> (Reserved, Option<Incoming>) {
    let place = guests.place().await;
    (place, endpoint.accept().await)
}

/// A port and its clients.
struct Hall {
    endpoint: Endpoint,
    port: u16,
    /// By the terms that the port had last.
    config: RefCell<(Arc<ClientPolicy>, Arc<ServerConfig>)>,
    /// Without terms.
    usual: ServerConfig,
    /// Ends those that are there.
    closing: RefCell<CancellationToken>,
    handshakes: Cell<usize>,
    unproved_max: usize,
    local: SocketAddr,
    shared: Rc<Shared>,
}

/// A handshake that is under way.
struct Shaking(Rc<Hall>);

impl Drop for Shaking {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get() - 1);
    }
}

impl Hall {
    fn open(socket: UdpSocket, (port, unproved_max): (u16, usize), shared: &Rc<Shared>) -> Result<Rc<Self>, String> {
        let told = |error: std::io::Error| error.to_string();
        let local = socket.local_addr().map_err(told)?;
        let snapshots = shared.snapshots.clone();
        let naming = move |name: Option<&str>| {
            let live = snapshots.load();
            let chain = decide::chain(&live, port, name).filter(|chain| matches!(chain.serves, Serves::Http(_)));
            chain.cloned().ok_or(Alert::UnrecognizedName)
        };
        let door = QuicDoor::new(Arc::clone(&shared.tls), Box::new(naming))?;
        let mut usual = ServerConfig::with_crypto(door);
        usual.max_incoming(QUIC_INCOMING_MAX).incoming_buffer_size(QUIC_INCOMING_BYTES);
        usual.incoming_buffer_size_total(QUIC_INCOMING_BYTES * QUIC_INCOMING_MAX as u64);
        let mut config = EndpointConfig::default();
        config.supported_versions(vec![VERSION]);
        let endpoint = Endpoint::new(config, Some(usual.clone()), socket, Arc::new(TokioRuntime)).map_err(told)?;
        let config = RefCell::new((Arc::default(), Arc::new(usual.clone())));
        let (closing, handshakes, shared) = (RefCell::default(), Cell::new(0), Rc::clone(shared));
        Ok(Rc::new(Self { endpoint, port, config, usual, closing, handshakes, unproved_max, local, shared }))
    }

    fn readings(&self) -> &EdgeReadings {
        self.shared.observer.edge()
    }

    /// Tells those who are there.
    fn close(&self) {
        self.closing.borrow().cancel();
    }

    fn reopen(&self) {
        *self.closing.borrow_mut() = CancellationToken::new();
    }

    /// How connections are carried by the terms of a port, made once for each.
    fn config(&self, clients: &Arc<ClientPolicy>) -> Arc<ServerConfig> {
        let mut made = self.config.borrow_mut();
        if !Arc::ptr_eq(&made.0, clients) {
            let mut config = self.usual.clone();
            config.transport_config(Arc::new(transport(clients.only())));
            *made = (Arc::clone(clients), Arc::new(config));
        }
        Arc::clone(&made.1)
    }

    /// Takes a client in, or sends it away. Whoever may be somebody else has to answer first where many come.
    fn admit(self: &Rc<Self>, incoming: Incoming, taken: impl FnOnce() -> Guest) {
        let snapshot = self.shared.reader.load();
        let Some(edge) = snapshot.edges.get(&self.port).filter(|edge| edge.clients.http3) else { return incoming.refuse() };
        if !incoming.remote_address_validated() && self.handshakes.get() >= self.unproved_max {
            self.readings().http3_retries.fetch_add(1, Ordering::Relaxed);
            // It may always be sent one that has proved nothing.
            let _ = incoming.retry();
            return;
        }
        let (clients, guest) = (Arc::clone(&edge.clients), taken());
        self.handshakes.set(self.handshakes.get() + 1);
        let (hall, shaking) = (Rc::clone(self), Shaking(Rc::clone(self)));
        tokio::task::spawn_local(async move {
            Box::pin(hall.meet(incoming, (snapshot, clients), shaking)).await;
            drop(guest);
            hall.shared.patience.stir();
        });
    }

    /// One client, to its end.
    async fn meet(&self, incoming: Incoming, (snapshot, clients): (Arc<Snapshot>, Arc<ClientPolicy>), shaking: Shaking) {
        let peer = incoming.remote_address();
        let local = SocketAddr::new(incoming.local_ip().unwrap_or(self.local.ip()), self.port);
        // Before the handshake only an address counts that has answered; of others nobody knows whose it is.
        let mut place = None;
        if incoming.remote_address_validated() {
            match self.enter(&clients, peer) {
                Ok(entered) => place = entered,
                Err(()) => return incoming.refuse(),
            }
        }
        let proved = place.is_some();
        let shaken = self.shake(incoming, &clients).await;
        drop(shaking);
        let (connection, met) = match shaken {
            Ok(shaken) => shaken,
            Err(failure) => {
                self.readings().http3_handshakes_failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%peer, port = self.port, %failure, "a client's handshake over QUIC failed");
                let downstream = self.downstream(&snapshot, (peer, local));
                return self.shared.observer.begin_tcp(Direction::Outbound, &snapshot, &downstream).failed(&failure);
            }
        };
        if !proved {
            match self.enter(&clients, peer) {
                Ok(entered) => place = entered,
                Err(()) => return connection.close(VarInt::from_u32(REFUSED), b"as many clients are here as may be"),
            }
        }
        self.readings().handshake(&met.facts);
        self.carry(connection, met, (peer, local), place).await;
    }

    /// A place among the port's clients. `Err`: there is none.
    fn enter(&self, clients: &ClientPolicy, peer: SocketAddr) -> Result<Option<Arc<Admitted>>, ()> {
        let Some(admission) = &clients.admission else { return Ok(None) };
        admission.enter(peer.ip(), self.shared.moment(self.shared.clock.now())).map(|admitted| Some(Arc::new(admitted))).map_err(|why| {
            self.readings().not_admitted(why);
            tracing::debug!(%peer, port = self.port, bound = why.text(), "a client of an edge is not let in");
        })
    }

    async fn shake(&self, incoming: Incoming, clients: &Arc<ClientPolicy>) -> Result<(quinn::Connection, QuicMet), Failure> {
        let failed = |why: String| Failure::new(Reason::TlsFailed, format!("QUIC from the client: {why}"));
        let ended = |error: ConnectionError| {
            if is_unnamed(&error) {
                self.readings().unnamed.fetch_add(1, Ordering::Relaxed);
            }
            failed(error.to_string())
        };
        let connecting = incoming.accept_with(self.config(clients)).map_err(ended)?;
        let full = || _ = self.readings().handshakes_full.fetch_add(1, Ordering::Relaxed);
        let handshake = self.shared.handshakes.run(full, connecting);
        let shaken = match Box::pin(timeout(clients.only().timeouts.tls_handshake, handshake)).await {
            Ok(Some(shaken)) => shaken,
            Ok(None) => return Err(failed("the handshake was the slowest of as many as may be, and made room".to_owned())),
            Err(_) => return Err(failed("the handshake took too long".to_owned())),
        };
        let connection = shaken.map_err(ended)?;
        let met = connection.handshake_data().and_then(|met| met.downcast::<Result<QuicMet, QuicUnproved>>().ok());
        match met.map(|met| *met) {
            Some(Ok(met)) => Ok((connection, met)),
            Some(Err(QuicUnproved(why))) => {
                connection.close(VarInt::from_u32(REFUSED), b"the certificate is not believed");
                Err(failed(why))
            }
            None => Err(failed("the handshake says nothing of its end".to_owned())),
        }
    }

    fn downstream(&self, snapshot: &Arc<Snapshot>, ends: (SocketAddr, SocketAddr)) -> Downstream {
        self.shared.observer.downstream(Direction::Outbound, snapshot, ends, None, None)
    }

    /// Carries requests until the client has gone, has been told to go, or the worker drains.
    async fn carry(&self, quic: quinn::Connection, met: QuicMet, ends: (SocketAddr, SocketAddr), place: Option<Arc<Admitted>>) {
        // It may have taken long: what counts is what is in force now.
        let snapshot = self.shared.reader.load();
        let mut downstream = self.downstream(&snapshot, ends);
        let certificate = met.shown.as_ref().map(|shown| (&*shown.hash_hex, shown.believed));
        downstream.client_tls = Some(client_tls(&met.facts, met.name.as_deref(), certificate));
        downstream.tls = Some(met.facts);
        downstream.certificate = met.shown.as_ref().and_then(Shown::certificate).cloned();
        downstream.place.clone_from(&place);
        let connection = gateway::over_quic(&self.shared, (self.port, snapshot), met, downstream);
        let rules = connection.rules().unwrap_or_default();
        let terms = QuicTerms::of(&rules);
        quic.set_max_concurrent_bi_streams(terms.streams.into());
        let readings = self.readings();
        readings.http3_connections.fetch_add(1, Ordering::Relaxed);
        readings.http3_open.fetch_add(1, Ordering::Relaxed);
        let closing = self.closing.borrow().clone();
        let answer = move |head, received| Rc::clone(&connection).answer(head, received).answer();
        let flooded = http3::serve(quic, (self.shared.serving.bodies(), terms), (&self.shared.drain.outbound, closing), answer).await;
        if flooded {
            readings.http3_floods.fetch_add(1, Ordering::Relaxed);
        }
        readings.http3_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a client is told that is not let in once its handshake is over: H3_REQUEST_REJECTED (RFC 9114, section 8.1).
const REFUSED: u32 = 0x10b;

fn is_unnamed(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::TransportError(error) if error.code == TransportErrorCode::crypto(UNRECOGNIZED_NAME))
}

/// Windows, streams and silence of connections.
fn transport(rules: &ClientRules) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let streams = rules.http2.max_streams;
    let (stream, connection) = rules.http2.windows.unwrap_or((QUIC_STREAM_WINDOW_BYTES, QUIC_STREAM_WINDOW_BYTES.saturating_mul(streams)));
    // Without an exchange a connection is told to go; this is for those that have gone.
    let silence = rules.lives.idle.saturating_add(SILENCE_MORE);
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(QUIC_CLIENT_STREAMS_MAX.into())
        .stream_receive_window(stream.into())
        .receive_window(connection.into())
        .send_window(QUIC_SEND_BYTES_MAX)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(silence).ok());
    transport
}

/// How much longer than without an exchange a connection may be silent.
const SILENCE_MORE: Duration = Duration::from_secs(5);
