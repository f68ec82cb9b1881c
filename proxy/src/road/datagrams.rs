//! Datagrams at an edge. Each client (address and port) has a session: a socket of its own towards one endpoint, which is chosen once.
//!
//! Nothing is sent to a client but what its endpoint has answered. Mesh TLS carries no datagrams: they go in plaintext, whoever the endpoint
//! is (contract, section 4), and where that is a peer of the mesh it is said.

#![allow(clippy::disallowed_types, reason = "a door: clients' datagrams come and go by UDP")]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::ptr;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::sync::{self, Arc};
use std::time::Duration;

use engine::decide::{choose, door};
use engine::failure::{Failure, Reason};
use engine::model::{Cluster, ClusterKind, Endpoint, EndpointSet, InFlight, Snapshot, Target};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::ground::drain::DrainStage;
use crate::ground::limits::{DATAGRAM_BYTES_MAX, DATAGRAMS_PER_TURN};
use crate::io::send_datagram;
use crate::observe::EdgeReadings;
use crate::road::attempt::Tries;
use crate::road::shared::Shared;
use crate::road::standing;

/// Serves a port's datagrams until it is dropped, which ends all sessions. Once a drain has shut the doors no further ones begin.
pub async fn serve(socket: UdpSocket, port: u16, shared: Rc<Shared>) {
    let hall = Rc::new(Hall {
        socket,
        port,
        sessions: RefCell::default(),
        unanswered: RefCell::default(),
        tasks: RefCell::default(),
        count: Cell::new(0),
        shut: Cell::new(false),
        told: RefCell::default(),
        room: RefCell::new(vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice()),
        shared,
    });
    let mut member = hall.shared.drain.outbound.join();
    let mut room = vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice();
    loop {
        tokio::select! {
            biased;
            () = member.stage(DrainStage::Shut), if !hall.shut.get() => hall.shut.set(true),
            ready = hall.socket.readable() => {
                if ready.is_err() {
                    return;
                }
                hall.turn(&mut room);
            }
        }
        let mut tasks = hall.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
    }
}

/// The sessions of one port and worker.
struct Hall {
    socket: UdpSocket,
    port: u16,
    sessions: RefCell<HashMap<SocketAddr, Rc<Session>>>,
    /// Those that nobody has answered yet, the oldest first: who forges addresses begins many. One that is over is passed by.
    unanswered: RefCell<VecDeque<(SocketAddr, u64)>>,
    /// Dropped with it, which ends them.
    tasks: RefCell<JoinSet<()>>,
    count: Cell<u64>,
    shut: Cell<bool>,
    /// The cluster of which it was last said that its peers are met in plaintext.
    told: RefCell<Option<Arc<str>>>,
    /// For what comes back.
    room: RefCell<Box<[u8]>>,
    shared: Rc<Shared>,
}

/// One client's.
struct Session {
    number: u64,
    upstream: UdpSocket,
    idle: Duration,
    last: Cell<Instant>,
    answered: Cell<bool>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    /// Under which it was looked at last: see [`Hall::goes_on`].
    seen: RefCell<(sync::Weak<Snapshot>, sync::Weak<EndpointSet>)>,
    /// Given back when it ends, whoever still holds it.
    place: Cell<Option<(Place, InFlight)>>,
    task: RefCell<Option<AbortHandle>>,
}

/// One of the sessions that a worker may have.
struct Place(Rc<Shared>);

impl Place {
    fn take(shared: &Rc<Shared>) -> Option<Self> {
        let free = shared.datagram_sessions.get();
        shared.datagram_sessions.set(free.checked_sub(1)?);
        shared.observer.edge().sessions.fetch_add(1, Ordering::Relaxed);
        Some(Self(Rc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.datagram_sessions.set(self.0.datagram_sessions.get() + 1);
        self.0.observer.edge().sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hall {
    fn readings(&self) -> &EdgeReadings {
        self.shared.observer.edge()
    }

    fn dropped(&self) {
        self.readings().datagrams_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what has come, a bounded part of it.
    fn turn(self: &Rc<Self>, room: &mut [u8]) {
        for _ in 0..DATAGRAMS_PER_TURN {
            match self.socket.try_recv_from(room) {
                Ok((length, client)) => self.pass(client, &room[..length]),
                // Of an earlier answer that did not reach its client, or there is nothing more.
                Err(_) => return,
            }
        }
    }

    /// Sends a client's datagram on. Where its endpoint has gone it is sent to another, once.
    fn pass(self: &Rc<Self>, client: SocketAddr, datagram: &[u8]) {
        for _ in 0..2 {
            let known = self.sessions.borrow().get(&client).cloned();
            let known = known.filter(|session| {
                let goes_on = self.goes_on(client, session);
                if !goes_on {
                    self.end(client, session.number);
                }
                goes_on
            });
            let Some(session) = known.or_else(|| self.begin(client)) else { return self.dropped() };
            match send_datagram(&session.upstream, datagram) {
                Ok(_) => {
                    session.last.set(Instant::now());
                    self.readings().datagrams_received.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.dropped(),
                Err(error) => {
                    tracing::debug!(%client, %error, "a session of datagrams is over");
                    self.end(client, session.number);
                }
            }
        }
        self.dropped();
    }

    /// Begins a session. At the bound the oldest that nobody has answered makes room, else one that has been silent for long.
    fn begin(self: &Rc<Self>, client: SocketAddr) -> Option<Rc<Session>> {
        // Who may not come makes nobody leave.
        if self.shut.get() || !self.lets_in(&self.shared.reader.load(), client) {
            return None;
        }
        let forgets: [fn(&Self); 2] = [Self::forget_unanswered, Self::forget_silent];
        let mut place = Place::take(&self.shared);
        for forget in forgets {
            place = place.or_else(|| {
                forget(self);
                Place::take(&self.shared)
            });
        }
        let Some(place) = place else {
            if self.readings().sessions_full.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(port = self.port, "no more sessions of datagrams are begun until some end");
            }
            return None;
        };
        match self.open(place) {
            Ok(session) => {
                let session = Rc::new(session);
                self.sessions.borrow_mut().insert(client, Rc::clone(&session));
                self.unanswered.borrow_mut().push_back((client, session.number));
                self.tidy();
                let task = self.tasks.borrow_mut().spawn_local(answers(Rc::downgrade(self), client, Rc::clone(&session)));
                *session.task.borrow_mut() = Some(task);
                Some(session)
            }
            Err(failure) => {
                tracing::debug!(%client, port = self.port, %failure, "a datagram is dropped");
                None
            }
        }
    }

    fn open(&self, place: Place) -> Result<Session, Failure> {
        let shared = &self.shared;
        let snapshot = shared.reader.load();
        let served = snapshot.datagrams.get(&self.port);
        let served = served.ok_or_else(|| Failure::new(Reason::NoRoute, "nothing takes datagrams at this port any more"))?;
        let drawn = choose(&served.forward, shared.draw.next());
        let cluster = match drawn.map(|backend| &backend.target) {
            Some(Target::Cluster(cluster)) => cluster,
            Some(Target::Reply(reply)) => return Err(Failure::new(reason(reply.reason), "its backend does not exist")),
            None => return Err(Failure::new(Reason::NoRoute, "it has no backend")),
        };
        self.fit(cluster)?;
        // Before one is picked: what changes meanwhile is looked at by the next datagram.
        let set = cluster.endpoints.load_full();
        let to = Tries::new(None, None, None).next(shared, Some(cluster))?;
        if to.endpoint.identity.is_some() && self.told.borrow().as_ref() != Some(&cluster.name) {
            tracing::info!(cluster = &*cluster.name, "datagrams go in plaintext to peers of the mesh: mesh TLS carries none");
            *self.told.borrow_mut() = Some(Arc::clone(&cluster.name));
        }
        let upstream = shared.pool.connector().datagrams_to(to.endpoint.address);
        let refused = |error: io::Error| Failure::new(Reason::ConnectFailed, format!("datagrams to {}: {error}", to.endpoint.address));
        self.count.set(self.count.get() + 1);
        Ok(Session {
            number: self.count.get(),
            upstream: upstream.map_err(refused)?,
            idle: served.forward.policy.idle_timeout.unwrap_or(IDLE),
            last: Cell::new(Instant::now()),
            answered: Cell::new(false),
            cluster: Arc::clone(cluster),
            seen: RefCell::new((Arc::downgrade(&snapshot), Arc::downgrade(&set))),
            place: Cell::new(Some((place, to.endpoint.live.enter()))),
            endpoint: to.endpoint,
            task: RefCell::default(),
        })
    }

    /// Whether a client's address may come.
    fn lets_in(&self, snapshot: &Snapshot, client: SocketAddr) -> bool {
        let caller = standing::caller_of(None, client, self.port);
        door(snapshot, self.port, (caller, client.ip()), None).is_none_or(|judgement| judgement.allows())
    }

    /// Whether a session may go on: its client is still let in, its port still leads to its cluster, and that still has its endpoint. Who never pauses
    /// would stay with an address that is somebody else's by now. It is looked at where the epoch or the endpoints are others than before.
    fn goes_on(&self, client: SocketAddr, session: &Session) -> bool {
        let set = session.cluster.endpoints.load();
        let same = {
            let seen = session.seen.borrow();
            let epoch = self.shared.reader.with(|live| ptr::eq(Arc::as_ptr(live), seen.0.as_ptr()));
            epoch && ptr::eq(Arc::as_ptr(&set), seen.1.as_ptr())
        };
        if same {
            return true;
        }
        let snapshot = self.shared.reader.load();
        let led = |target: &Target| match target {
            Target::Cluster(cluster) => Arc::ptr_eq(&cluster.endpoints, &session.cluster.endpoints) && self.fit(cluster).is_ok(),
            Target::Reply(_) => false,
        };
        let backends = snapshot.datagrams.get(&self.port).map_or(&[][..], |served| served.forward.backends.as_slice());
        let stays = self.lets_in(&snapshot, client)
            && backends.iter().any(|backend| backend.weight > 0 && led(&backend.target))
            && set.ready.iter().chain(&set.other).any(|one| Arc::ptr_eq(&one.live, &session.endpoint.live));
        if stays {
            *session.seen.borrow_mut() = (Arc::downgrade(&snapshot), Arc::downgrade(&set));
        }
        stays
    }

    /// What is to be met by TLS is not met in plaintext.
    fn fit(&self, cluster: &Cluster) -> Result<(), Failure> {
        if cluster.kind == ClusterKind::Endpoints && cluster.tls.is_none() {
            return Ok(());
        }
        Err(Failure::new(Reason::BadBackend, format!("cluster {} is to be met by TLS, which carries no datagrams", cluster.name)))
    }

    /// Forgets the queue's entries of sessions that are over, where they are most of it.
    fn tidy(&self) {
        let (mut queue, sessions) = (self.unanswered.borrow_mut(), self.sessions.borrow());
        if queue.len() > 2 * sessions.len() + 64 {
            let waits = |(client, number): &(SocketAddr, u64)| {
                sessions.get(client).is_some_and(|session| session.number == *number && !session.answered.get())
            };
            queue.retain(waits);
        }
    }

    fn forget_unanswered(&self) {
        loop {
            let Some((client, number)) = self.unanswered.borrow_mut().pop_front() else { return };
            let waits = self.sessions.borrow().get(&client).is_some_and(|session| session.number == number && !session.answered.get());
            if waits {
                return self.end(client, number);
            }
        }
    }

    /// Of some sessions ends the one that has been silent longest, if that is a good part of what it may be.
    fn forget_silent(&self) {
        let now = Instant::now();
        let silence = |session: &Session| now.saturating_duration_since(session.last.get());
        let longest = {
            let sessions = self.sessions.borrow();
            let some = sessions.iter().take(LOOKED_AT_MAX).filter(|(_, session)| silence(session) >= session.idle / SILENT_PART);
            some.max_by_key(|(_, session)| silence(session)).map(|(client, session)| (*client, session.number))
        };
        if let Some((client, number)) = longest {
            self.end(client, number);
        }
    }

    fn end(&self, client: SocketAddr, number: u64) {
        let mut sessions = self.sessions.borrow_mut();
        if sessions.get(&client).is_some_and(|session| session.number == number)
            && let Some(session) = sessions.remove(&client)
        {
            session.place.take();
            if let Some(task) = session.task.take() {
                task.abort();
            }
        }
    }
}

/// Sessions that are looked at for one that may end, where there is no room.
const LOOKED_AT_MAX: usize = 64;
/// What part of the silence that ends a session ends it where there is no room.
const SILENT_PART: u32 = 8;
/// Silence that ends a session whose listener says none.
const IDLE: Duration = Duration::from_secs(60);

fn reason(of: Option<Reason>) -> Reason {
    of.unwrap_or(Reason::BadBackend)
}

/// Passes an endpoint's datagrams back to its client, until neither has said anything for long enough, the endpoint has gone, or the session
/// was ended by others.
async fn answers(hall: Weak<Hall>, client: SocketAddr, session: Rc<Session>) {
    loop {
        let due = session.last.get() + session.idle;
        tokio::select! {
            biased;
            // What the network says of an endpoint (ICMP) makes nothing readable.
            ready = session.upstream.ready(Interest::READABLE | Interest::ERROR) => {
                let Some(hall) = hall.upgrade() else { return };
                let over = ready.map_or(true, |ready| ready.is_error());
                if !hall.answer(client, &session) || over {
                    return hall.end(client, session.number);
                }
            }
            () = sleep_until(due) => {
                let Some(hall) = hall.upgrade() else { return };
                if session.last.get() + session.idle <= Instant::now() {
                    return hall.end(client, session.number);
                }
            }
        }
    }
}

impl Hall {
    /// Passes on what has come, a bounded part of it; whether the session goes on.
    fn answer(&self, client: SocketAddr, session: &Session) -> bool {
        if !self.goes_on(client, session) {
            return false;
        }
        let mut room = self.room.borrow_mut();
        for _ in 0..DATAGRAMS_PER_TURN {
            match session.upstream.try_recv(&mut room) {
                Ok(length) => {
                    session.answered.set(true);
                    session.last.set(Instant::now());
                    match self.socket.try_send_to(&room[..length], client) {
                        Ok(_) => drop(self.readings().datagrams_sent.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => self.dropped(),
                    }
                }
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}
