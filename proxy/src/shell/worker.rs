//! Workers: one thread, one runtime and one set of everything each; nothing is shared between them but what is published whole.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
#[cfg(feature = "http3")]
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use engine::authenticate::Remembered;
use engine::consumers::Verified;
use engine::model::{Endpoint, MtlsMode};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ground::drain::DrainStage;
use crate::ground::limits::{
    DATAGRAM_SESSIONS_MAX, GIVE_BACK_TICKS, HANDSHAKES_MAX, IDLE_GRACE, PARTING_HUSHED, PARTING_TOLD, REST_MAX, TICK,
};
#[cfg(feature = "http3")]
use crate::ground::limits::{QUIC_FAREWELL, QUIC_UNPROVED_MAX};
use crate::ground::patience::Patience;
use crate::ground::windows::Bodies;
use crate::http::{Serving, WrittenDate};
use crate::io::{Draw, Free, Listening, Network, Pressure, adopt_datagrams, give_back_heap, pipe};
use crate::observe::{Direction, Observer, Telemetry};
use crate::pool::{Connector, Hairpin, Pool};
use crate::road;
use crate::road::arrival::Arrival;
use crate::road::checks;
use crate::road::guests::Both;
use crate::road::handshakes::Handshakes;
use crate::road::hashing::Hashing;
use crate::road::inbound;
#[cfg(feature = "http3")]
use crate::road::quic::QuicPort;
use crate::road::shared::Shared;
use crate::road::standing;
use crate::shell::listener::{Purpose, listen};
use crate::snapshots::Snapshots;
use crate::tls::{Bonds, Tls};

/// Commands that wait for a worker; each is taken at once.
const COMMANDS_MAX: usize = 64;
/// Parts in four of a drain's time that calls to the application may take before the application's own calls end too.
const INBOUND_QUARTERS: u32 = 3;

/// What the workers of one process have in common.
#[derive(Clone)]
pub struct Means {
    /// The live configuration.
    pub snapshots: Snapshots,
    /// Both ends of mesh TLS.
    pub tls: Arc<Tls>,
    /// Metrics, access log and spans.
    pub telemetry: Arc<Telemetry>,
    /// How to connect.
    pub network: Network,
    /// Verifies passwords.
    pub hashing: Arc<Hashing>,
    /// Downstream connections of one worker and direction, where fewer than the usual bounds.
    pub connections_max: usize,
}

/// A key that nobody outside knows.
fn secret(draw: &Draw) -> [u8; 32] {
    let mut key = [0; 32];
    // Draws are not for secrets: whoever has seen one knows those that follow. They are better than none.
    if aws_lc_rs::rand::fill(&mut key).is_err() {
        key.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&draw.next().to_le_bytes()));
    }
    key
}

/// Builds one worker's means on the current thread. Must be called inside a local task set or runtime, where it also starts the tick.
/// `seed` feeds all chance of this worker.
pub fn shared(means: &Means, seed: u64) -> Rc<Shared> {
    let (patience, pressure) = (Rc::new(Patience::default()), Pressure::default());
    let bodies = Bodies::new(Arc::clone(&means.telemetry.readings.http2_bodies), means.telemetry.readings.http2_floods.clone());
    let draw = Draw::seeded(seed);
    let (clock, begun) = means.telemetry.times();
    let shared = Rc::new_cyclic(|own: &Weak<Shared>| {
        let bonds = Bonds::new(Arc::clone(&means.tls));
        let connector = Connector::new(means.network.clone(), Rc::clone(&bonds), Some(hairpin(own.clone())), pressure.clone());
        Shared {
            snapshots: means.snapshots.clone(),
            reader: means.snapshots.reader(),
            tls: Arc::clone(&means.tls),
            bonds,
            pool: Pool::new(connector, Rc::clone(&patience), Rc::clone(&bodies), means.connections_max),
            observer: Observer::new(Arc::clone(&means.telemetry), Draw::seeded(draw.next())),
            patience: Rc::clone(&patience),
            buffers: Rc::default(),
            replays: Rc::default(),
            mirrors: Cell::new(0),
            guests: Both::new(&means.telemetry, means.connections_max, (&pressure, &patience)),
            standing: Rc::default(),
            drain: Both { inbound: Rc::default(), outbound: Rc::default() },
            date: WrittenDate::default(),
            tokens: RefCell::new(Remembered::new(seed)),
            verified: RefCell::new(Verified::new(secret(&draw))),
            hashing: Arc::clone(&means.hashing),
            serving: Serving::new(Rc::clone(&bodies), Rc::clone(&patience), pressure.clone()),
            handshakes: Handshakes::new(HANDSHAKES_MAX),
            datagram_sessions: Cell::new(DATAGRAM_SESSIONS_MAX.min(means.connections_max)),
            callout_hosts: RefCell::default(),
            draw,
            clock,
            begun,
        }
    });
    tokio::task::spawn_local(tick(Rc::downgrade(&shared)));
    tokio::task::spawn_local(review(Rc::downgrade(&shared.bonds), means.tls.beliefs()));
    tokio::task::spawn_local(standing::watch(Rc::downgrade(&shared.standing), means.snapshots.clone()));
    shared
}

/// Cuts connections whose peers are no longer believed, as soon as what is believed changes.
async fn review(bonds: Weak<Bonds>, mut beliefs: watch::Receiver<u64>) {
    while beliefs.changed().await.is_ok() {
        let Some(bonds) = bonds.upgrade() else { return };
        let count = bonds.review();
        if count > 0 {
            tracing::warn!(connections = count, "cut the connections of peers that are no longer believed");
        }
    }
}

/// A call to one of the instance's own addresses stays inside: one end of a memory pipe goes down the inbound road, so that policy and
/// mTLS hold there as everywhere and the kernel's redirection cannot loop. Not where the control plane says plaintext of a port that would refuse
/// it: such a port arrives untouched by the inbound side (the sidecar's own pages, excluded ports), from others and so from oneself.
fn hairpin(own: Weak<Shared>) -> Hairpin {
    Rc::new(move |endpoint: &Endpoint| {
        let shared = own.upgrade()?;
        let address = endpoint.address;
        let plaintext = endpoint.identity.is_none() && !endpoint.instance.is_empty();
        let here = shared.reader.with(|live| {
            let (settings, inbound) = (live.settings.as_deref()?, live.inbound.as_ref()?);
            let untouched = plaintext && inbound.port(address.port()).mode == MtlsMode::Strict;
            (!untouched && settings.own_addresses.contains(&address.ip())).then_some(())
        });
        here?;
        let (near, far) = pipe();
        let arrival = Arrival { socket: far, peer: SocketAddr::new(address.ip(), 0), destination: address };
        tokio::task::spawn_local(inbound::serve_connection(arrival, shared));
        Some(near)
    })
}

/// Coarse time: idle timeouts, idle connections, and memory that is free. Rests while nothing is under way: for good while no connection
/// is kept either, on either side, else until one is due.
async fn tick(shared: Weak<Shared>) {
    let mut timer = tokio::time::interval(TICK);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due = timer.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let counts = shared.pool.counts();
        shared.observer.ticked(due.elapsed(), counts.open.get(), counts.waiting.get());
        shared.patience.advance();
        shared.pool.sweep();
        shared.pool.bodies().show();
        let wanting = shared.guests.outbound.are_wanting();
        if wanting {
            shared.patience.make_room();
        }
        let under_way = shared.patience.waiting() > 0 || wanting;
        let calm = shared.patience.calm();
        let kept = || shared.patience.due().map(|ticks| TICK * ticks);
        let (rest, free) = if !under_way && shared.pool.is_empty() {
            shared.buffers.forget();
            (kept(), Free::Now)
        } else if !under_way && calm {
            let due = shared.pool.due().map_or(REST_MAX, |ticks| TICK * ticks);
            (Some(due.min(kept().unwrap_or(REST_MAX)).min(REST_MAX)), Free::ForAWhile)
        } else {
            if shared.patience.tick().is_multiple_of(GIVE_BACK_TICKS) {
                give_back_heap(Free::ForAWhile);
            }
            continue;
        };
        let patience = Rc::clone(&shared.patience);
        drop(shared);
        give_back_heap(free);
        patience.rest(rest).await;
        timer.reset();
    }
}

/// Ends the worker's work in order; resolves when no connection is left, or after `bound`. Every peer is told at once. The doors to the
/// application are shut first, and only when its callers have gone those of its own calls: an answer may depend on some.
pub async fn drain(shared: &Shared, bound: Duration) {
    shared.drain.inbound.reach(DrainStage::Told);
    shared.drain.outbound.reach(DrainStage::Told);
    let in_order = async {
        let _ = tokio::time::timeout(bound * INBOUND_QUARTERS / 4, end(shared, Direction::Inbound)).await;
        end(shared, Direction::Outbound).await;
        shared.guests.inbound.gone().await;
    };
    if tokio::time::timeout(bound, in_order).await.is_err() {
        let (inbound, outbound) = (shared.guests.inbound.open(), shared.guests.outbound.open());
        tracing::warn!(inbound, outbound, "the drain's time is over; the connections that are left are cut");
        farewell(shared).await;
    }
}

/// Lets those know that they are cut who would not hear of it by the end of the process: clients of HTTP/3.
#[cfg(feature = "http3")]
async fn farewell(shared: &Shared) {
    if shared.observer.edge().http3_open.load(Ordering::Relaxed) > 0 {
        shared.drain.outbound.reach(DrainStage::Cut);
        tokio::time::sleep(QUIC_FAREWELL).await;
    }
}

/// Of a build without them.
#[cfg(not(feature = "http3"))]
#[allow(clippy::unused_async, reason = "as where there is HTTP/3")]
async fn farewell(_: &Shared) {}

/// Tells callers of the application, without shutting a door, that its end is near: their next answer ends their connection, and those that have
/// asked nothing since are closed. First others hear that nobody should be called here: who comes back at once is to meet another instance.
pub async fn part(shared: &Shared) {
    tokio::time::sleep(PARTING_TOLD).await;
    shared.drain.inbound.reach(DrainStage::Told);
    tokio::time::sleep(PARTING_HUSHED).await;
    shared.drain.inbound.hush();
}

/// Shuts a direction's doors and waits until its connections have gone.
async fn end(shared: &Shared, direction: Direction) {
    let (drain, guests) = (shared.drain.of(direction), shared.guests.of(direction));
    drain.reach(DrainStage::Shut);
    if tokio::time::timeout(IDLE_GRACE, guests.gone()).await.is_err() {
        drain.reach(DrainStage::Closing);
        guests.gone().await;
    }
}

enum Instruction {
    Open(Purpose, std::net::TcpListener),
    Close(Purpose),
    /// An edge's port of datagrams.
    OpenDatagrams(u16, std::net::UdpSocket),
    CloseDatagrams(u16),
    /// An edge's port of HTTP/3.
    #[cfg(feature = "http3")]
    OpenHttp3(u16, std::net::UdpSocket, oneshot::Sender<io::Result<Vec<Arc<QuicPort>>>>),
    /// One that another worker reads.
    #[cfg(feature = "http3")]
    JoinHttp3(u16, Arc<QuicPort>),
    #[cfg(feature = "http3")]
    CloseHttp3(u16),
    Check,
    Part,
    Drain(Duration, oneshot::Sender<()>),
}

/// A worker thread. Dropping it stops accepting and cuts what is under way, without waiting; see [`Worker::drain`] and [`Worker::join`].
#[derive(Debug)]
pub struct Worker {
    commands: mpsc::Sender<Instruction>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a worker thread with its own runtime. `name` is the thread's, for `top -H` and CPU accounts.
    ///
    /// # Errors
    /// The kernel gives no thread, or the runtime no poller.
    pub fn spawn(name: String, means: Means, seed: u64) -> io::Result<Self> {
        let (commands, taken) = mpsc::channel(COMMANDS_MAX);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => {
                    let _ = ready.send(Ok(()));
                    runtime.block_on(obey(means, seed, taken));
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self { commands, thread })
    }

    /// Starts accepting at a door, on a socket that may be shared with other workers (`try_clone`).
    pub async fn open(&self, door: Purpose, listener: std::net::TcpListener) {
        let _ = self.commands.send(Instruction::Open(door, listener)).await;
    }

    /// Stops accepting at a door; its connections go on.
    pub async fn close(&self, door: Purpose) {
        let _ = self.commands.send(Instruction::Close(door)).await;
    }

    /// Starts taking datagrams of an edge's port, at a socket of its own.
    pub async fn open_datagrams(&self, port: u16, socket: std::net::UdpSocket) {
        let _ = self.commands.send(Instruction::OpenDatagrams(port, socket)).await;
    }

    /// Stops taking them; the sessions end.
    pub async fn close_datagrams(&self, port: u16) {
        let _ = self.commands.send(Instruction::CloseDatagrams(port)).await;
    }

    /// Starts taking clients of HTTP/3 at an edge's port, and reads its socket for others who join it. A port that was closed and still has clients
    /// goes on with the sockets that it has.
    ///
    /// # Errors
    /// The socket cannot be read, or the worker has ended.
    #[cfg(feature = "http3")]
    pub async fn open_http3(&self, port: u16, socket: std::net::UdpSocket) -> io::Result<Vec<Arc<QuicPort>>> {
        let (done, opened) = oneshot::channel();
        let _ = self.commands.send(Instruction::OpenHttp3(port, socket, done)).await;
        opened.await.map_err(io::Error::other)?
    }

    /// Takes clients of a port that another worker reads.
    #[cfg(feature = "http3")]
    pub async fn join_http3(&self, port: u16, opened: Arc<QuicPort>) {
        let _ = self.commands.send(Instruction::JoinHttp3(port, opened)).await;
    }

    /// Takes no further ones; those who are there end in order.
    #[cfg(feature = "http3")]
    pub async fn close_http3(&self, port: u16) {
        let _ = self.commands.send(Instruction::CloseHttp3(port)).await;
    }

    /// Lets it do the active checks of the whole proxy. Told to one worker, once.
    pub async fn check(&self) {
        let _ = self.commands.send(Instruction::Check).await;
    }

    /// Tells callers that the end is near; see [`part`].
    pub async fn part(&self) {
        let _ = self.commands.send(Instruction::Part).await;
    }

    /// Drains (see [`drain`]); resolves when no connection is left, or after `bound`.
    pub async fn drain(&self, bound: Duration) {
        let (done, drained) = oneshot::channel();
        if self.commands.send(Instruction::Drain(bound, done)).await.is_ok() {
            let _ = drained.await;
        }
    }

    /// Stops the worker and waits for its thread; blocks. What is still under way is cut.
    pub fn join(self) {
        drop(self.commands);
        if self.thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
}

/// A worker's life: until nobody is left to command it.
async fn obey(means: Means, seed: u64, mut commands: mpsc::Receiver<Instruction>) {
    let shared = shared(&means, seed);
    let mut doors: HashMap<Purpose, Vec<tokio::task::JoinHandle<()>>> = HashMap::new();
    let mut datagrams: HashMap<u16, Vec<tokio::task::JoinHandle<()>>> = HashMap::new();
    #[cfg(feature = "http3")]
    let mut halls = Halls::default();
    while let Some(command) = commands.recv().await {
        match command {
            Instruction::Open(door, listener) => match Listening::adopt(listener) {
                Ok(listening) => {
                    let accepting = tokio::task::spawn_local(listen(listening, door, Rc::clone(&shared)));
                    doors.entry(door).or_default().push(accepting);
                }
                Err(error) => tracing::error!(?door, %error, "a listening socket cannot be used"),
            },
            Instruction::OpenDatagrams(port, socket) => match adopt_datagrams(socket) {
                Ok(socket) => {
                    let serving = tokio::task::spawn_local(road::datagrams::serve(socket, port, Rc::clone(&shared)));
                    datagrams.entry(port).or_default().push(serving);
                }
                Err(error) => tracing::error!(port, %error, "a socket of datagrams cannot be used"),
            },
            Instruction::CloseDatagrams(port) => datagrams.remove(&port).into_iter().flatten().for_each(|serving| serving.abort()),
            #[cfg(feature = "http3")]
            Instruction::OpenHttp3(port, socket, done) => _ = done.send(halls.open(port, socket, &shared)),
            #[cfg(feature = "http3")]
            Instruction::JoinHttp3(port, opened) => halls.join(port, opened, &shared),
            #[cfg(feature = "http3")]
            Instruction::CloseHttp3(port) => halls.close(port),
            Instruction::Close(door) => doors.remove(&door).into_iter().flatten().for_each(|accepting| accepting.abort()),
            Instruction::Check => drop(tokio::task::spawn_local(checks::run(Rc::downgrade(&shared)))),
            Instruction::Part => {
                let shared = Rc::clone(&shared);
                tokio::task::spawn_local(async move { part(&shared).await });
            }
            Instruction::Drain(bound, done) => {
                let shared = Rc::clone(&shared);
                tokio::task::spawn_local(async move {
                    drain(&shared, bound).await;
                    let _ = done.send(());
                });
            }
        }
    }
}

/// Ports of HTTP/3; one that was closed is there until its clients have gone.
#[cfg(feature = "http3")]
#[derive(Default)]
struct Halls(HashMap<u16, Vec<HallDoor>>);

/// See [`Halls`].
#[cfg(feature = "http3")]
struct HallDoor {
    /// Kept by those who serve it alone: its socket is free again once they have gone.
    port: std::sync::Weak<QuicPort>,
    wanted: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
    /// It was opened again before its clients had gone.
    reopened: bool,
}

#[cfg(feature = "http3")]
impl Halls {
    /// What others may join.
    fn open(&mut self, port: u16, socket: std::net::UdpSocket, shared: &Rc<Shared>) -> io::Result<Vec<Arc<QuicPort>>> {
        let doors = self.0.entry(port).or_default();
        doors.retain(|door| !door.serving.is_finished());
        for door in doors.iter_mut() {
            door.reopened |= !door.wanted.send_replace(true);
        }
        // Beside a socket that still serves a former time's clients another would get some of their datagrams.
        if !doors.iter().any(|door| door.reopened) {
            let opened = QuicPort::open(socket, (port, QUIC_UNPROVED_MAX), shared)?;
            self.join(port, opened, shared);
        }
        Ok(self.0.get(&port).into_iter().flatten().filter_map(|door| door.port.upgrade()).collect())
    }

    fn join(&mut self, port: u16, opened: Arc<QuicPort>, shared: &Rc<Shared>) {
        let doors = self.0.entry(port).or_default();
        doors.retain(|door| !door.serving.is_finished());
        if let Some(door) = doors.iter().find(|door| std::ptr::eq(door.port.as_ptr(), Arc::as_ptr(&opened))) {
            door.wanted.send_replace(true);
            return;
        }
        let wanted = watch::Sender::new(true);
        let port = Arc::downgrade(&opened);
        let serving = tokio::task::spawn_local(road::quic::serve(opened, Rc::clone(shared), wanted.subscribe()));
        doors.push(HallDoor { port, wanted, serving, reopened: false });
    }

    fn close(&mut self, port: u16) {
        for door in self.0.get(&port).into_iter().flatten() {
            door.wanted.send_replace(false);
        }
    }
}
