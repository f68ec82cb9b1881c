//! HTTP/3 at a Gateway's port: clients by UDP, whose connections join the Gateway's road where their TLS is ended.
//!
//! A port has one socket, which one worker reads, and all workers serve its clients: whoever is first to take a client in carries it, as with TCP's.
//! One socket for each worker would not do: a client that moves to another address (RFC 9000, section 9) is known by its connection's id alone, while
//! the kernel divides datagrams by address.

#![allow(clippy::disallowed_types, reason = "a door: clients come by UDP")]

use std::cell::RefCell;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::client::Admitted;
use engine::decide;
use engine::failure::{Failure, Reason};
use engine::model::{ClientPolicy, ClientRules, Edge, Port, Serves, Snapshot};
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime, TransportConfig, TransportErrorCode,
    VarInt,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ground::drain::DrainStage;
use crate::ground::limits::{
    HANDSHAKE_WAIT, PING_WAIT, QUIC_CLIENT_STREAMS_MAX, QUIC_INCOMING_BYTES, QUIC_INCOMING_MAX, QUIC_SEND_BYTES_MAX,
    QUIC_STREAM_WINDOW_BYTES,
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

/// A port: its socket, and what is the same for all workers that serve its clients.
pub struct QuicPort {
    endpoint: Endpoint,
    port: u16,
    local: SocketAddr,
    /// Without terms.
    usual: ServerConfig,
    handshakes: AtomicUsize,
    unproved_max: usize,
}

impl QuicPort {
    /// Reads a socket on the current worker. `unproved_max`: handshakes under way at which further clients have to prove their address first.
    ///
    /// # Errors
    /// The kernel does not let it be read, or the crypto library knows nothing of QUIC.
    pub fn open(socket: UdpSocket, (port, unproved_max): (u16, usize), shared: &Shared) -> std::io::Result<Arc<Self>> {
        let local = socket.local_addr()?;
        let snapshots = shared.snapshots.clone();
        let naming = move |name: Option<&str>| {
            let live = snapshots.load();
            let chain = decide::chain(&live, port, name).filter(|chain| matches!(chain.serves, Serves::Http(_)));
            chain.cloned().ok_or(Alert::UnrecognizedName)
        };
        let door = QuicDoor::new(Arc::clone(&shared.tls), Box::new(naming)).map_err(std::io::Error::other)?;
        let mut usual = ServerConfig::with_crypto(door);
        usual.max_incoming(QUIC_INCOMING_MAX).incoming_buffer_size(QUIC_INCOMING_BYTES);
        usual.incoming_buffer_size_total(QUIC_INCOMING_BYTES * QUIC_INCOMING_MAX as u64);
        let mut config = EndpointConfig::default();
        config.supported_versions(vec![VERSION]);
        let endpoint = Endpoint::new(config, Some(usual.clone()), socket, Arc::new(TokioRuntime))?;
        Ok(Arc::new(Self { endpoint, port, local, usual, handshakes: AtomicUsize::new(0), unproved_max }))
    }
}

/// Serves a port's clients of HTTP/3 on the current worker, beside others, for as long as `wanted` says so; then those who are there end in order, and
/// so does this. It goes on if it is wanted again meanwhile. Whoever comes then, or once a drain has shut the doors, is refused. Dropping the future
/// cuts all of them.
pub async fn serve(port: Arc<QuicPort>, shared: Rc<Shared>, mut wanted: watch::Receiver<bool>) {
    let endpoint = port.endpoint.clone();
    let hall = Rc::new(Hall { port, config: RefCell::default(), closing: RefCell::default(), shared: Rc::clone(&shared) });
    let guests = Rc::clone(&shared.guests.outbound);
    let mut doorway = Some(guests.door());
    let (mut member, mut end) = (shared.drain.outbound.join(), shared.drain.outbound.join());
    loop {
        let open = *wanted.borrow_and_update();
        if !open {
            hall.close();
            if endpoint.open_connections() == 0 {
                return;
            }
        }
        tokio::select! {
            biased;
            () = end.stage(DrainStage::Cut) => return hall.cut().await,
            () = member.stage(DrainStage::Shut), if doorway.is_some() => doorway = None,
            changed = wanted.changed() => match changed {
                Ok(()) if *wanted.borrow() && doorway.is_some() => hall.reopen(),
                Ok(()) => {}
                // Its worker ends.
                Err(_) => return endpoint.wait_idle().await,
            },
            () = endpoint.wait_idle(), if !open => return,
            (place, incoming) = next(&guests, &endpoint), if open && doorway.is_some() => {
                let Some(incoming) = incoming else { return };
                hall.admit(incoming, || place.taken());
            }
            // Who is not answered would try on for half a minute before it asks over TCP.
            incoming = endpoint.accept(), if !open || doorway.is_none() => match incoming {
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

/// Terms, what one body had then, and what was made of both.
type MadeConfig = ((Arc<Edge>, u32), Arc<ServerConfig>);

/// A port's clients on one worker.
struct Hall {
    port: Arc<QuicPort>,
    /// By the terms that the port had last, and what one body had then.
    config: RefCell<Option<MadeConfig>>,
    /// Ends those that are there.
    closing: RefCell<CancellationToken>,
    shared: Rc<Shared>,
}

/// A handshake that is under way.
struct Shaking(Arc<QuicPort>);

impl Shaking {
    fn begin(port: &Arc<QuicPort>) -> Self {
        port.handshakes.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(port))
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hall {
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

    /// Tells clients that they are cut: of a connection whose process has gone nothing would be heard until they lose patience.
    async fn cut(&self) {
        self.port.endpoint.close(VarInt::from_u32(INTERNAL), b"the proxy ends");
        self.port.endpoint.wait_idle().await;
    }

    /// How connections are carried by the terms of a port, made once for each.
    fn config(&self, edge: &Arc<Edge>) -> Arc<ServerConfig> {
        let one = self.shared.serving.bodies().one();
        let mut made = self.config.borrow_mut();
        if let Some(((of, window), config)) = &*made
            && Arc::ptr_eq(of, edge)
            && *window == one
        {
            return Arc::clone(config);
        }
        let mut config = self.port.usual.clone();
        config.transport_config(Arc::new(transport(&all_rules(edge), one)));
        let config = Arc::new(config);
        *made = Some(((Arc::clone(edge), one), Arc::clone(&config)));
        config
    }

    /// Takes a client in, or sends it away. Whoever may be somebody else has to answer first where many come.
    fn admit(self: &Rc<Self>, incoming: Incoming, taken: impl FnOnce() -> Guest) {
        let snapshot = self.shared.reader.load();
        let wanted = snapshot.edges.get(&self.port.port).filter(|edge| edge.clients.http3.is_some());
        let Some(edge) = wanted.cloned() else { return incoming.refuse() };
        if !incoming.remote_address_validated() && self.port.handshakes.load(Ordering::Relaxed) >= self.port.unproved_max {
            self.readings().http3_retries.fetch_add(1, Ordering::Relaxed);
            // It may always be sent one that has proved nothing.
            let _ = incoming.retry();
            return;
        }
        let (hall, guest, shaking) = (Rc::clone(self), taken(), Shaking::begin(&self.port));
        tokio::task::spawn_local(async move {
            Box::pin(hall.meet(incoming, (snapshot, edge), shaking)).await;
            drop(guest);
            hall.shared.patience.stir();
        });
    }

    /// One client, to its end.
    async fn meet(&self, incoming: Incoming, (snapshot, edge): (Arc<Snapshot>, Arc<Edge>), shaking: Shaking) {
        let clients = &edge.clients;
        let peer = incoming.remote_address();
        let local = SocketAddr::new(incoming.local_ip().unwrap_or(self.port.local.ip()), self.port.port);
        // Before the handshake only an address counts that has answered; of others nobody knows whose it is.
        let mut place = None;
        if incoming.remote_address_validated() {
            match self.enter(clients, peer) {
                Ok(entered) => place = entered,
                Err(()) => return incoming.refuse(),
            }
        }
        let proved = place.is_some();
        let shaken = self.shake(incoming, &edge).await;
        drop(shaking);
        let (connection, met) = match shaken {
            Ok(shaken) => shaken,
            Err(failure) => {
                self.readings().http3_handshakes_failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%peer, port = self.port.port, %failure, "a client's handshake over QUIC failed");
                let downstream = self.downstream(&snapshot, (peer, local));
                return self.shared.observer.begin_tcp(Direction::Outbound, &snapshot, &downstream).failed(&failure);
            }
        };
        if !proved {
            match self.enter(clients, peer) {
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
            tracing::debug!(%peer, port = self.port.port, bound = why.text(), "a client of an edge is not let in");
        })
    }

    async fn shake(&self, incoming: Incoming, edge: &Arc<Edge>) -> Result<(quinn::Connection, QuicMet), Failure> {
        let failed = |why: String| Failure::new(Reason::TlsFailed, format!("QUIC from the client: {why}"));
        let ended = |error: ConnectionError| {
            if is_unnamed(&error) {
                self.readings().unnamed.fetch_add(1, Ordering::Relaxed);
            }
            failed(error.to_string())
        };
        let connecting = incoming.accept_with(self.config(edge)).map_err(ended)?;
        let full = || _ = self.readings().handshakes_full.fetch_add(1, Ordering::Relaxed);
        let handshake = self.shared.handshakes.run(full, connecting);
        // Whose terms are a client's is known only within its handshake.
        let patience = all_rules(edge).iter().map(|rules| rules.timeouts.tls_handshake).max().unwrap_or(HANDSHAKE_WAIT);
        let shaken = match Box::pin(timeout(patience, handshake)).await {
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
        let connection = gateway::over_quic(&self.shared, (self.port.port, snapshot), met, downstream);
        let rules = connection.rules().unwrap_or_default();
        let terms = QuicTerms::of(&rules);
        quic.set_max_concurrent_bi_streams(terms.streams.into());
        let readings = self.readings();
        readings.http3_connections.fetch_add(1, Ordering::Relaxed);
        readings.http3_open.fetch_add(1, Ordering::Relaxed);
        let closing = self.closing.borrow().clone();
        let answer = move |head, received| Rc::clone(&connection).answer(head, received).answer();
        let flooded = http3::serve(
            (quic, ends.0.ip()),
            (self.shared.serving.bodies(), &self.shared.patience, terms),
            (&self.shared.drain.outbound, closing),
            answer,
        )
        .await;
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

/// H3_INTERNAL_ERROR, of what is cut.
const INTERNAL: u32 = 0x102;

/// What holds for each of a port's chains.
fn all_rules(edge: &Edge) -> Vec<&ClientRules> {
    match &edge.port {
        Port::Tls(chains) => chains.all().map(|chain| &**edge.clients.on(&chain.name)).collect(),
        Port::Http(_) | Port::Bytes(_) => Vec::new(),
    }
}

/// Windows, streams and silence of connections. QUIC wants to know them before it knows a name: what a chain says otherwise is done once its name is
/// known, and what cannot be is as the most patient of a port's chains says. `one`: bytes of one body.
fn transport(rules: &[&ClientRules], one: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let streams = rules.iter().map(|rules| rules.http2.max_streams).min().unwrap_or(1);
    let stream = rules.iter().map(|rules| rules.http2.windows.map_or(QUIC_STREAM_WINDOW_BYTES, |(stream, _)| stream)).max();
    // Without an exchange a connection is told to go; this is for those that have gone, and say nothing when they are asked.
    let idle = rules.iter().map(|rules| rules.lives.idle).max().unwrap_or_default().saturating_add(SILENCE_MORE);
    let asked = rules.iter().filter_map(|rules| rules.http2.ping_every).min();
    let silence = asked.map_or(idle, |every| every.saturating_add(PING_WAIT));
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(QUIC_CLIENT_STREAMS_MAX.into())
        .stream_receive_window(stream.unwrap_or(QUIC_STREAM_WINDOW_BYTES).into())
        .receive_window(one.into())
        .send_window(QUIC_SEND_BYTES_MAX)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(asked.unwrap_or(silence / QUESTIONS)))
        .max_idle_timeout(IdleTimeout::try_from(silence).ok());
    transport
}

/// How much longer than without an exchange a connection may be silent.
const SILENCE_MORE: Duration = Duration::from_secs(5);
/// How often a client that is silent for so long is asked whether it lives.
const QUESTIONS: u32 = 3;
