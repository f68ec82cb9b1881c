//! Datagrams at an edge. Each client (address and port) has a session: a socket of its own towards one endpoint, which is chosen once.
//!
//! Nothing is sent to a client but what its endpoint has answered. Mesh TLS carries no datagrams: they go in plaintext, whoever the endpoint
//! is (contract, section 4), and where that is a peer of the mesh it is said.

#![allow(clippy::disallowed_types, reason = "a door: clients' datagrams come and go by UDP")]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::decide::{choose, door};
use engine::failure::{Failure, Reason};
use engine::model::{Cluster, ClusterKind, InFlight, Target};
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

    /// Begins a session. At the bound the oldest that nobody has answered makes room.
    fn begin(self: &Rc<Self>, client: SocketAddr) -> Option<Rc<Session>> {
        if self.shut.get() {
            return None;
        }
        let place = Place::take(&self.shared).or_else(|| {
            self.forget_unanswered();
            Place::take(&self.shared)
        });
        let Some(place) = place else {
            if self.readings().sessions_full.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(port = self.port, "no more sessions of datagrams are begun until some end");
            }
            return None;
        };
        match self.open(client, place) {
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

    fn open(&self, client: SocketAddr, place: Place) -> Result<Session, Failure> {
        let shared = &self.shared;
        let snapshot = shared.reader.load();
        let judged = door(&snapshot, self.port, (standing::caller_of(None, client, self.port), client.ip()), None);
        if judged.is_some_and(|judgement| !judgement.allows()) {
            return Err(Failure::new(Reason::Denied, "its address may not"));
        }
        let served = snapshot.datagrams.get(&self.port);
        let served = served.ok_or_else(|| Failure::new(Reason::NoRoute, "nothing takes datagrams at this port any more"))?;
        let drawn = choose(&served.forward, shared.draw.next());
        let cluster = match drawn.map(|backend| &backend.target) {
            Some(Target::Cluster(cluster)) => cluster,
            Some(Target::Reply(reply)) => return Err(Failure::new(reason(reply.reason), "its backend does not exist")),
            None => return Err(Failure::new(Reason::NoRoute, "it has no backend")),
        };
        self.fit(cluster)?;
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
            place: Cell::new(Some((place, to.endpoint.live.enter()))),
            task: RefCell::default(),
        })
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
