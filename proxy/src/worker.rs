//! Workers: one thread, one runtime and one set of everything each; nothing is shared between them but what is published whole.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};

use crate::arrival::Arrival;
use crate::drain::Drain;
use crate::http::Patience;
use crate::inbound;
use crate::io::{Draw, Free, Listening, Network, give_back_heap, pipe};
use crate::limits::{GIVE_BACK_TICKS, TICK};
use crate::listener::{Door, Permits, listen};
use crate::observe::{Observer, Telemetry};
use crate::pool::{Connector, Hairpin, Pool};
use crate::shared::Shared;
use crate::snapshots::Snapshots;
use crate::tls::Tls;

/// Commands that wait for a worker; each is taken at once.
const COMMANDS_MAX: usize = 64;
/// How long nothing must be under way for a drain to be over.
const QUIET: Duration = Duration::from_secs(1);

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
}

/// Builds one worker's means on the current thread. Must be called inside a local task set or runtime, where it also starts the tick.
/// `seed` feeds all chance of this worker.
pub fn shared(means: &Means, seed: u64) -> Rc<Shared> {
    let patience = Rc::new(Patience::default());
    let draw = Draw::seeded(seed);
    let shared = Rc::new_cyclic(|own: &Weak<Shared>| {
        let connector = Connector::new(means.network.clone(), Arc::clone(&means.tls), Some(hairpin(own.clone())));
        Shared {
            snapshots: means.snapshots.clone(),
            reader: means.snapshots.reader(),
            tls: Arc::clone(&means.tls),
            pool: Pool::new(connector, Rc::clone(&patience)),
            observer: Observer::new(Arc::clone(&means.telemetry), Draw::seeded(draw.next())),
            patience: Rc::clone(&patience),
            buffers: Rc::default(),
            drain: Rc::new(Drain::default()),
            serving: crate::http::Serving::default(),
            draw,
        }
    });
    tokio::task::spawn_local(tick(Rc::downgrade(&shared)));
    shared
}

/// A call to one of the instance's own addresses stays inside: one end of a memory pipe goes down the inbound road, so that policy and
/// mTLS hold there as everywhere and the kernel's redirection cannot loop.
fn hairpin(own: Weak<Shared>) -> Hairpin {
    Rc::new(move |address: SocketAddr| {
        let shared = own.upgrade()?;
        let here = shared.reader.with(|live| {
            let settings = live.settings.as_deref()?;
            (live.inbound.is_some() && settings.own_addresses.contains(&address.ip())).then_some(())
        });
        here?;
        let (near, far) = pipe();
        let arrival = Arrival { socket: far, peer: SocketAddr::new(address.ip(), 0), destination: address };
        tokio::task::spawn_local(inbound::serve_connection(arrival, shared));
        Some(near)
    })
}

/// Coarse time: idle timeouts, idle connections, and memory that is free. Sleeps for good while there is none of them.
async fn tick(shared: Weak<Shared>) {
    let mut timer = tokio::time::interval(TICK);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        shared.patience.advance();
        shared.pool.sweep();
        if shared.patience.waiting() == 0 && shared.pool.is_empty() {
            let woken = Rc::clone(&shared.patience);
            shared.buffers.forget();
            drop(shared);
            give_back_heap(Free::Now);
            woken.woken().await;
            timer.reset();
        } else if shared.patience.tick().is_multiple_of(GIVE_BACK_TICKS) {
            give_back_heap(Free::ForAWhile);
        }
    }
}

/// Begins a drain and resolves when nothing has been under way for a second, or after `bound`. Connections are still accepted.
pub async fn drain(shared: &Shared, bound: Duration) {
    shared.drain.begin();
    let quiet = async {
        let mut since = tokio::time::Instant::now();
        while since.elapsed() < QUIET {
            tokio::time::sleep(TICK).await;
            if shared.patience.waiting() > 0 {
                since = tokio::time::Instant::now();
            }
        }
    };
    if tokio::time::timeout(bound, quiet).await.is_err() {
        tracing::warn!(under_way = shared.patience.waiting(), "the drain's time is over; what is still under way is cut");
    }
}

enum Command {
    Open(Door, std::net::TcpListener),
    Close(Door),
    Drain(Duration, oneshot::Sender<()>),
}

/// A worker thread. Dropping it stops accepting and cuts what is under way, without waiting; see [`Worker::drain`] and [`Worker::join`].
#[derive(Debug)]
pub struct Worker {
    commands: mpsc::Sender<Command>,
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
    pub async fn open(&self, door: Door, listener: std::net::TcpListener) {
        let _ = self.commands.send(Command::Open(door, listener)).await;
    }

    /// Stops accepting at a door; its connections go on.
    pub async fn close(&self, door: Door) {
        let _ = self.commands.send(Command::Close(door)).await;
    }

    /// Drains; resolves when nothing is under way any more, or after `bound`.
    pub async fn drain(&self, bound: Duration) {
        let (done, drained) = oneshot::channel();
        if self.commands.send(Command::Drain(bound, done)).await.is_ok() {
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
async fn obey(means: Means, seed: u64, mut commands: mpsc::Receiver<Command>) {
    let shared = shared(&means, seed);
    let permits = Permits::default();
    let mut doors: HashMap<Door, Vec<tokio::task::JoinHandle<()>>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Open(door, listener) => match Listening::adopt(listener) {
                Ok(listening) => {
                    let accepting = tokio::task::spawn_local(listen(listening, door, Rc::clone(&shared), permits.clone()));
                    doors.entry(door).or_default().push(accepting);
                }
                Err(error) => tracing::error!(?door, %error, "a listening socket cannot be used"),
            },
            Command::Close(door) => doors.remove(&door).into_iter().flatten().for_each(|accepting| accepting.abort()),
            Command::Drain(bound, done) => {
                let shared = Rc::clone(&shared);
                tokio::task::spawn_local(async move {
                    drain(&shared, bound).await;
                    let _ = done.send(());
                });
            }
        }
    }
}
