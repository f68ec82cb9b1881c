//! What stands open to the application and is no more asked by request: opaque connections, and tunnels that were requests once. Where the
//! policies change, or what ports demand of callers, each is judged again as when it began, and closed if it may not be any more.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::authorize::{Authorization, CallVerdict, Judgement, Ruling};
use engine::claims::Claims;
use engine::consumers::{Book, CONSUMER_HEADER, Identified};
use engine::decide::{self, Caller, RequestHead};
use engine::failure::Reason;
use engine::filter::guard::KeptHead;
use engine::model::{Edge, Inbound, MtlsMode, Port, Snapshot};
use http::{HeaderMap, Method, Uri, request};
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep};

use crate::observe::Downstream;
use crate::snapshots::Snapshots;
use crate::tls::Peer;

/// So many are judged before others of this worker get their turn.
const AT_ONCE: usize = 128;

/// One worker's.
#[derive(Debug, Default)]
pub struct Standing {
    all: RefCell<Vec<Option<Rc<Stood>>>>,
    free: RefCell<Vec<u32>>,
}

/// What one of them was judged by.
struct Stood {
    peer: Option<Arc<Peer>>,
    source: SocketAddr,
    port: u16,
    /// Of what was a request.
    head: Option<Head>,
    /// Of a caller from outside the mesh: asks all that it was let in by.
    rejudge: Option<Rejudge>,
    /// It may not be any more.
    denial: OnceCell<Denial>,
    waker: RefCell<Option<Waker>>,
}

/// Asks again whether something may stay open: why not.
pub type Rejudge = Box<dyn Fn(&Snapshot) -> Option<Denial>>;

/// What a caller from outside the mesh asked for, and who that is.
pub struct AskedOutside {
    /// As policies were asked about it.
    pub head: Box<KeptHead>,
    /// Who, where that was asked.
    pub who: Option<Box<Identified>>,
}

impl fmt::Debug for Stood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stood").field("source", &self.source).field("port", &self.port).finish_non_exhaustive()
    }
}

struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// Of its token.
    claims: Option<Arc<Claims>>,
}

/// Why something that stood open is closed.
#[derive(Clone, Debug)]
pub struct Denial {
    /// What is told.
    pub reason: Reason,
    /// The rule, where one denies.
    pub ruling: Option<Arc<Ruling>>,
}

/// One place among them; dropping it leaves.
#[derive(Debug)]
pub struct Stand {
    standing: Rc<Standing>,
    stood: Rc<Stood>,
    place: u32,
    /// When what the caller showed holds no more.
    ends: Option<Pin<Box<Sleep>>>,
}

impl Denial {
    /// Of a judgement, if it refuses.
    pub fn of(judgement: &Judgement<'_>) -> Option<Self> {
        let reason = judgement.refusal()?;
        let ruling = if let CallVerdict::Denied(ruling) = judgement.verdict { Some(Arc::clone(ruling)) } else { None };
        Some(Self { reason, ruling })
    }
}

/// What policies judge of a connection.
pub fn caller(downstream: &Downstream) -> Caller<'_> {
    caller_of(downstream.peer.as_deref(), downstream.address, downstream.local.port())
}

/// The same of one that is not called anything yet.
pub fn caller_of(peer: Option<&Peer>, source: SocketAddr, port: u16) -> Caller<'_> {
    Caller { peer: peer.map(|peer| &*peer.identity), workload: peer.map_or("", |peer| &peer.workload), source, port }
}

/// Whether somebody came in plaintext whose port is Strict.
pub fn lacks_proof(live: &Snapshot, caller: &Caller<'_>) -> bool {
    caller.peer.is_none() && live.inbound.as_ref().is_some_and(|inbound| inbound.port(caller.port).mode == MtlsMode::Strict)
}

impl Standing {
    /// Something stands open from now on that a snapshot allowed. If another is live by now, it is judged at once. `request`: what it is
    /// still, with what its token says.
    pub fn enter(
        self: &Rc<Self>,
        downstream: &Downstream,
        request: Option<(&request::Parts, Option<&Arc<Claims>>)>,
        allowed: &Snapshot,
        live: &Snapshot,
    ) -> Stand {
        let head = request.map(|(parts, claims)| Head {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            claims: claims.cloned(),
        });
        let stood = Rc::new(Stood {
            peer: downstream.peer.clone(),
            source: downstream.address,
            port: downstream.local.port(),
            head,
            rejudge: None,
            denial: OnceCell::new(),
            waker: RefCell::new(None),
        });
        if !Terms::of(allowed).are_of(live) {
            stood.ask(live);
        }
        self.stand(stood, None)
    }

    /// The same of a caller from outside the mesh: it may stay as long as what it showed holds, which is so long at most, and whatever let it in
    /// still does.
    pub fn enter_outside(self: &Rc<Self>, downstream: &Downstream, rejudge: Rejudge, holds: Option<Duration>, live: &Snapshot) -> Stand {
        let stood = Rc::new(Stood {
            peer: None,
            source: downstream.address,
            port: downstream.local.port(),
            head: None,
            rejudge: Some(rejudge),
            denial: OnceCell::new(),
            waker: RefCell::new(None),
        });
        // It may have been revoked since it was looked up.
        stood.ask(live);
        self.stand(stood, holds)
    }

    fn stand(self: &Rc<Self>, stood: Rc<Stood>, holds: Option<Duration>) -> Stand {
        let mut all = self.all.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            all.push(None);
            u32::try_from(all.len() - 1).unwrap_or(u32::MAX)
        });
        all[place as usize] = Some(Rc::clone(&stood));
        Stand { standing: Rc::clone(self), stood, place, ends: holds.map(|holds| Box::pin(sleep(holds))) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.borrow().len() - self.free.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Judges each again. Who comes meanwhile was judged by the same policies or newer ones.
    async fn ask_again(&self, live: &Snapshot) {
        let mut next = 0;
        loop {
            let some: Vec<Rc<Stood>> = {
                let all = self.all.borrow();
                let some = all.iter().skip(next).take(AT_ONCE);
                next += some.len();
                some.flatten().map(Rc::clone).collect()
            };
            some.iter().for_each(|stood| stood.ask(live));
            if next >= self.all.borrow().len() {
                return;
            }
            yield_now().await;
        }
    }
}

/// What of a snapshot is asked.
#[derive(Default)]
struct Terms {
    authorization: Option<Arc<Authorization>>,
    inbound: Option<Arc<Inbound>>,
    book: Arc<Book>,
    /// Of a Gateway: policies of addresses, and what is served, each by port.
    doors: BTreeMap<u16, Arc<Authorization>>,
    edges: BTreeMap<u16, Arc<Edge>>,
    /// Of whom is believed to vouch for its clients.
    stamp: u64,
}

impl Terms {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            authorization: snapshot.authorization.clone(),
            inbound: snapshot.inbound.clone(),
            book: snapshot.consumers.load(),
            doors: snapshot.doors.clone(),
            edges: snapshot.edges.clone(),
            stamp: stamp(snapshot),
        }
    }

    fn are_of(&self, snapshot: &Snapshot) -> bool {
        self.authorization.as_ref().map(Arc::as_ptr) == snapshot.authorization.as_ref().map(Arc::as_ptr)
            && self.inbound.as_ref().map(Arc::as_ptr) == snapshot.inbound.as_ref().map(Arc::as_ptr)
            && snapshot.consumers.is(&self.book)
            && same(&self.doors, &snapshot.doors)
            && same(&self.edges, &snapshot.edges)
            && self.stamp == stamp(snapshot)
    }
}

/// Whether two maps hold the very same things.
fn same<T>(these: &BTreeMap<u16, Arc<T>>, those: &BTreeMap<u16, Arc<T>>) -> bool {
    these.len() == those.len() && these.iter().zip(those).all(|((a, one), (b, other))| a == b && Arc::ptr_eq(one, other))
}

/// Changes whenever a secret does by which a Gateway's clients are let in: those come and go without an epoch.
fn stamp(snapshot: &Snapshot) -> u64 {
    let chains = snapshot.edges.values().filter_map(|edge| if let Port::Tls(chains) = &edge.port { Some(chains) } else { None });
    let terms = chains.flat_map(|chains| chains.all()).filter_map(|chain| chain.terms.as_ref()?.clients.as_ref());
    terms.map(|clients| clients.authorities.stamp()).max().unwrap_or(0)
}

/// Asks again whenever other terms go live, as long as the worker lives.
pub async fn watch(standing: Weak<Standing>, snapshots: Snapshots) {
    let mut changes = snapshots.changes();
    // Who came before the first look was judged by itself.
    let mut known = Terms::default();
    loop {
        {
            let Some(standing) = standing.upgrade() else { return };
            let live = snapshots.load();
            if !known.are_of(&live) {
                standing.ask_again(&live).await;
                known = Terms::of(&live);
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl Stood {
    fn ask(&self, live: &Snapshot) {
        if let Some(rejudge) = &self.rejudge {
            if let Some(denial) = rejudge(live) {
                self.deny(denial);
            }
            return;
        }
        let caller = caller_of(self.peer.as_deref(), self.source, self.port);
        let head = self.head.as_ref().map(|head| RequestHead::new(&head.method, &head.uri, &head.headers));
        let claims = self.head.as_ref().and_then(|head| head.claims.as_deref());
        let denial = if lacks_proof(live, &caller) {
            Some(Denial { reason: Reason::Denied, ruling: None })
        } else {
            let told = self.head.as_ref().and_then(|head| head.headers.get(CONSUMER_HEADER)).and_then(Identified::told);
            decide::judge(live, (caller, told.as_ref()), head.as_ref(), claims).as_ref().and_then(Denial::of)
        };
        if let Some(denial) = denial {
            self.deny(denial);
        }
    }

    fn deny(&self, denial: Denial) {
        tracing::info!(
            peer = %self.source,
            reason = denial.reason.text(),
            policy = denial.ruling.as_ref().map_or("", |ruling| &ruling.label),
            "an open connection is closed: the policies changed, its port became Strict, its credential holds no more, or nobody vouches for it"
        );
        // Once is enough: it is closed for the first reason.
        let _ = self.denial.set(denial);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Stand {
    /// Ready once it may not be any more.
    pub fn poll_denied(&mut self, cx: &mut Context<'_>) -> Poll<Denial> {
        if self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) {
            self.ends = None;
            self.stood.deny(Denial { reason: Reason::Unauthenticated, ruling: None });
        }
        if let Some(denial) = self.stood.denial.get() {
            return Poll::Ready(denial.clone());
        }
        let mut waker = self.stood.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.standing.all.borrow_mut()[self.place as usize] = None;
        self.standing.free.borrow_mut().push(self.place);
    }
}
