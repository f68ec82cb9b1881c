//! Answering requests: one road, whichever door their connection came in by.

mod asked;
mod caller;
mod gates;
mod stood;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::authorize::Judgement;
use engine::claims::Claims;
use engine::client::ClientFound;
use engine::decide::{self, Decision, Facts, Plan, RequestHead, TurnedAway, Version, admit, decide};
use engine::failure::{Failure, LocalReply, Reason};
use engine::filter::guard::Counted;
use engine::filter::{Answered, Passage, Resume};
use engine::model::{ClientRules, Cluster, Protocol, RouteTable, SessionHome, Snapshot};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderValue, Method, Response, StatusCode, request};
use tokio::time::{Instant, sleep};

use crate::ground::body::{Body, Received};
use crate::http::{self as rules, Caller, CutOff, OfHop, Raw, Upgrade, clean_request, judge_request};
use crate::io::{Rewound, Stream};
use crate::observe::trace::Forms;
use crate::observe::{Account, Direction, Downstream};
use crate::pool::To;
use crate::road::journey::{Journey, Leg};
use crate::road::reply::{failed, malformed, refused, reply, too_late};
use crate::road::shared::Shared;
use crate::road::standing::{AskedOutside, Rejudge, Stand};
use crate::tls::Bond;

/// What sets one way in apart from the others. All else that happens to a request is the same for all.
pub trait Door: Sized + 'static {
    /// Whose calls come in here.
    const DIRECTION: Direction;
    /// Whether they come from outside the mesh.
    const OUTSIDE: bool = false;
    /// What an epoch says of one of its connections.
    type Listener;

    /// How far the other end is trusted.
    fn caller(&self, downstream: &Downstream) -> Caller;

    /// A request has come.
    fn used(&self, _shared: &Shared) {}

    /// What a newer epoch says of a connection; `before` is what the last one did.
    fn look(&self, shared: &Rc<Shared>, live: &Snapshot, before: &Self::Listener) -> Look<Self::Listener>;

    /// What a connection goes by from here on, of what was found and what it went by before. `received` is the request that comes first under it.
    fn take_up(&self, found: Self::Listener, _before: &Self::Listener, _received: &Received) -> Self::Listener {
        found
    }

    /// As the decision wants to know it.
    fn terms<'v>(&self, snapshot: &'v Snapshot, listener: &'v Self::Listener) -> decide::Terms<'v>;

    /// The table that a request goes by in place of the one that its terms name, where its head decides that.
    ///
    /// # Errors
    /// It is turned away.
    fn table<'v>(
        &self,
        _shared: &Shared,
        _snapshot: &'v Snapshot,
        _parts: &request::Parts,
        _account: &mut Account,
    ) -> Result<Option<&'v Arc<RouteTable>>, TurnedAway> {
        Ok(None)
    }

    /// Notes what was meant, beside the destination.
    fn note(&self, _listener: &Self::Listener, _account: &mut Account) {}

    /// Who asks, where that is not who has connected; what stands in the way of telling is taken off. `None`: whoever has connected.
    fn find(&self, _listener: &Self::Listener, _parts: &mut request::Parts) -> Option<ClientFound> {
        None
    }

    /// What holds for clients from outside.
    fn rules<'v>(&self, _listener: &'v Self::Listener) -> Option<&'v Arc<ClientRules>> {
        None
    }

    /// Who has connected to us in the end, whoever has said for whom.
    fn peer(&self, downstream: &Downstream) -> IpAddr {
        downstream.address.ip()
    }

    /// Says what only this proxy may say of the caller, and unsays what the caller said of it.
    fn mark(&self, at: (&InForce<Self::Listener>, &Downstream), parts: &mut request::Parts, found: (Option<&ClientFound>, OfHop));

    /// Whether the caller may say who called at the mesh's edge.
    fn believes(&self, _snapshot: &Snapshot, _downstream: &Downstream) -> bool {
        false
    }

    /// Whether policies look at the host of requests.
    fn judges_hosts(&self, _snapshot: &Snapshot) -> bool {
        false
    }

    /// What policies say of a request with a verified token, or without one. `None`: nothing.
    fn judge<'s>(
        &self,
        _snapshot: &'s Snapshot,
        (_downstream, _client): (&Downstream, IpAddr),
        _request: (&RequestHead<'_>, Option<&Claims>),
    ) -> Option<Judgement<'s>> {
        None
    }

    /// A place for what this request may become, where policies are to be asked of it again.
    fn stand(
        &self,
        _shared: &Shared,
        _snapshot: &Snapshot,
        _downstream: &Downstream,
        _request: (&request::Parts, Option<&Arc<Claims>>),
    ) -> Option<Box<Stand>> {
        None
    }

    /// What asks again whether what became of a request from outside, by this client, may stay open.
    fn rejudge(&self, _from: (&Downstream, IpAddr), _asked: AskedOutside) -> Option<Rejudge> {
        None
    }

    /// Where a request to a cluster goes if there is no choice, and what is spoken there.
    fn aim(&self, snapshot: &Snapshot, listener: &Self::Listener, cluster: &Cluster) -> (Option<To>, Protocol);
}

/// What can be learnt of a listener. What waits is a variant of its own.
pub enum Look<L> {
    /// It is known.
    Known(L),
    /// It has to be asked for. `None`: it cannot be had, and what was known stays in force.
    Ask(Pin<Box<dyn Future<Output = Option<L>>>>),
}

/// A downstream HTTP connection, whatever its door.
pub trait Answers {
    /// How far the other end is trusted.
    fn caller(&self) -> Caller;

    /// Its requests' direction.
    fn direction(&self) -> Direction;

    /// What holds for clients from outside.
    fn rules(&self) -> Option<Arc<ClientRules>> {
        None
    }

    /// Answers one request.
    fn answer(self: Rc<Self>, head: request::Parts, received: Received) -> Answering;

    /// The client's bytes were no HTTP, and were answered with this status already.
    fn malformed(&self, status: StatusCode);
}

/// A connection on which requests come. Boxed on its way from hand to hand: futures hold what they hand on for as long as they live.
pub struct HttpConnection {
    /// Its bytes.
    pub stream: Rewound<Stream>,
    /// Its peer's, where that proved itself.
    pub bond: Option<Bond>,
    /// What it speaks.
    pub version: Version,
    /// Who answers.
    pub connection: Rc<dyn Answers>,
}

/// Serves a connection to its end. Dropping the future cuts it.
pub async fn serve(served: Box<HttpConnection>, shared: &Rc<Shared>) {
    let HttpConnection { stream, version, connection, .. } = *served;
    let answer = |head, received| Rc::clone(&connection).answer(head, received).answer();
    let drain = shared.drain.of(connection.direction());
    if let Some(status) = rules::serve(stream, (version, connection.caller()), (&shared.serving, connection.rules()), drain, answer).await {
        connection.malformed(status);
    }
}

/// A request that is being answered. Everything that needs no waiting is done before the future starts.
pub enum Answering {
    /// Answered already.
    Ready(Box<Response<Body>>),
    /// On its way to where it was decided to go.
    Forward(Box<Journey>),
    /// Something has to be waited for first: configuration, or a delay on purpose.
    Later(Pin<Box<dyn Future<Output = Self>>>),
    /// Cut off without an answer.
    Cut,
}

impl Answering {
    /// The answer. Dropped before it is done, the exchange is recorded as the client's leaving.
    ///
    /// # Errors
    /// There is none on purpose: the connection or stream is to be cut. Any failure is an answer.
    pub fn answer(self) -> impl Future<Output = Result<Response<Body>, CutOff>> {
        let mut answering = self;
        // Captured and used in place: an argument of an `async fn` would be held twice.
        async move {
            loop {
                match answering {
                    Self::Ready(response) => return Ok(*response),
                    Self::Forward(mut journey) => {
                        let sent = journey.go().await;
                        return Ok(journey.end(sent));
                    }
                    Self::Later(later) => answering = later.await,
                    Self::Cut => return Err(CutOff),
                }
            }
        }
    }
}

/// One downstream connection whose requests are decided on.
pub struct Connection<D: Door> {
    shared: Rc<Shared>,
    door: D,
    downstream: Downstream,
    view: RefCell<InForce<D::Listener>>,
    /// Requests that have come from outside.
    asked: Cell<u32>,
    /// When it came.
    since: Instant,
}

/// One epoch, and what it says of a connection.
pub struct InForce<L> {
    /// The epoch.
    pub snapshot: Arc<Snapshot>,
    /// Its word on the connection.
    pub listener: L,
}

/// Why no stage of a request runs.
enum Short<'s> {
    Refused(TurnedAway),
    Denied(Reason),
    Decided(&'s LocalReply),
}

/// A request that was decided, on its way through the stages.
struct Passing<'v> {
    plan: Plan<'v>,
    leg: Leg,
    /// Where its client's session is, instead of where the draw fell.
    home: Option<SessionHome>,
}

impl<D: Door> Connection<D> {
    /// A connection that has come in by `door`, under the epoch that it was recognised by.
    pub fn new(shared: &Rc<Shared>, door: D, downstream: Downstream, view: InForce<D::Listener>) -> Rc<Self> {
        let (asked, since) = (Cell::new(0), Instant::now());
        Rc::new(Self { shared: Rc::clone(shared), door, downstream, view: RefCell::new(view), asked, since })
    }

    /// Takes up an epoch.
    fn take_up(&self, snapshot: Arc<Snapshot>, found: Option<D::Listener>, received: &Received) {
        let mut view = self.view.borrow_mut();
        if let Some(found) = found {
            view.listener = self.door.take_up(found, &view.listener, received);
        }
        view.snapshot = snapshot;
    }

    /// One request, which had to wait so long: one epoch for the whole of it.
    fn answer_now(self: &Rc<Self>, mut parts: request::Parts, received: Received, waited: Duration) -> Answering {
        let view = self.view.borrow();
        let found = self.door.find(&view.listener, &mut parts);
        let (raw, there) = Raw::of(&parts.headers, &received, self.hop());
        let forms = Forms { traceparent: there.traceparent, tracestate: there.tracestate, b3_single: there.b3, b3_multi: there.x_b3 };
        let mut account = self.shared.observer.begin_walked(D::DIRECTION, &view.snapshot, (&mut parts, forms), &self.downstream);
        self.door.note(&view.listener, &mut account);
        if D::OUTSIDE {
            account.came_from_outside(rules::takes_json(&parts.headers));
            self.outside(&view.listener, (&received, found.as_ref()), &mut account);
            if view.snapshot.challenges.are_pending()
                && let Some(answer) = proof(&view.snapshot, &parts)
            {
                return Answering::Ready(Box::new(reply(&self.shared, &answer, parts.version, account)));
            }
        }
        let version = parts.version;
        match self.decided(&view, &mut parts, (raw, waited, found.as_ref()), &mut account) {
            Ok(passing) if passing.plan.forward.is_bare() => self.straight((parts, received), passing, account),
            Ok(passing) => self.pass((parts, received), passing, Resume::START, account),
            Err(short) => Answering::Ready(Box::new(match short {
                Short::Refused(refusal) => refused(&self.shared, refusal, version, account),
                Short::Denied(reason) => reply(&self.shared, &reason.into(), version, account),
                Short::Decided(answer) => reply(&self.shared, answer, version, account),
            })),
        }
    }

    /// Judges the head and asks the rules, in this order.
    fn decided<'v>(
        &self,
        view: &'v InForce<D::Listener>,
        parts: &mut request::Parts,
        (raw, waited, found): (Raw, Duration, Option<&ClientFound>),
        account: &mut Account,
    ) -> Result<Passing<'v>, Short<'v>> {
        let fields = raw.fields();
        let judged = judge_request(parts, raw);
        let facts = Facts { proved: self.downstream.peer.is_some(), fault: judged.as_ref().err().copied() };
        let table = admit(self.door.terms(&view.snapshot, &view.listener), facts).map_err(Short::Refused)?;
        let other = self.door.table(&self.shared, &view.snapshot, parts, account).map_err(Short::Refused)?;
        let table = other.map_or(table, |other| &**other);
        // Without a fault there is a judgement.
        let of_hop = judged.unwrap_or_default();
        if D::DIRECTION == Direction::Inbound {
            account.asks(&self.downstream, parts);
        }
        // First of all, so that what is judged is what is sent on, and no `connection` takes off what is said here.
        let upgrade = clean_request(parts, of_hop);
        let client = self.introduce(view, (parts, fields), (found, of_hop))?;
        let patient = self.patience(&mut parts.headers, of_hop, waited);
        let token = self.authenticated(view, parts)?;
        let head = match table.domains.nameless() && !self.door.judges_hosts(&view.snapshot) {
            true => RequestHead::nameless(&parts.method, &parts.uri, &parts.headers),
            false => RequestHead::new(&parts.method, &parts.uri, &parts.headers),
        };
        self.authorized(view, (&head, client), token.as_deref(), account)?;
        let draw = self.shared.draw.next();
        let plan = planned(table, (&head, draw), account)?;
        if let Some(says) = &plan.forward.policy.telemetry {
            account.governed(says, parts, (&self.downstream, found.map(|found| found.address)));
        }
        let mut aim = (None, Protocol::Auto);
        let web = self.web(plan.rule, parts);
        let (sticky, home) = self.session(view, &plan, &parts.headers);
        if let Some(cluster) = home.as_ref().map(|home| &home.cluster).or(plan.target.ok()) {
            account.to_cluster(cluster);
            aim = self.door.aim(&view.snapshot, &view.listener, cluster);
        }
        let version = parts.version;
        let claims = token.as_ref().map(|token| &token.claims);
        let (found, stand) = self.upgrading((view, client), (&*parts, claims), (upgrade, plan.forward.is_bare()));
        let (mut answered, mut hash) = (Answered::default(), None);
        if !plan.forward.is_bare() {
            let exchange = self.exchange((&mut *parts, client), draw, account);
            (answered, hash) = (plan.forward.answered(&exchange), plan.forward.policy.hash(&exchange));
        }
        let leg = Leg {
            only: aim.0,
            destination: self.downstream.local,
            speaks: if web.is_some() { Protocol::Http2 } else { aim.1 },
            expects: of_hop.expect,
            upgrade,
            version,
            at: self.hop(),
            caller: self.downstream.peer.as_ref().filter(|_| upgrade == Upgrade::Asked).cloned(),
            answered,
            patient,
            waited,
            hash,
            sticky,
            stand,
            found,
            counted: Counted::default(),
            draw,
            client,
            timeouts: self.door.rules(&view.listener).map(|rules| rules.timeouts),
            web,
            place: self.downstream.place.as_ref().filter(|_| upgrade == Upgrade::Asked).cloned(),
        };
        Ok(Passing { plan, leg, home })
    }

    /// Past all stages, or there are none. In place, because a request is large to be handed on.
    #[inline(always)]
    fn straight(&self, (parts, received): (request::Parts, Received), passing: Passing<'_>, account: Account) -> Answering {
        let Passing { plan, leg, home } = passing;
        let (place, target) = home.as_ref().map_or((plan.place, plan.target), |home| (Some(home.place), Ok(&home.cluster)));
        match target {
            Ok(cluster) => {
                Answering::Forward(Journey::begin(&self.shared, (parts, received), (plan.forward, place, cluster), leg, account))
            }
            Err(answer) => shown(&plan, &leg, reply(&self.shared, answer, leg.version, account)),
        }
    }

    /// Runs the stages from a place on. What waits goes on here.
    fn pass(
        self: &Rc<Self>,
        (mut parts, received): (request::Parts, Received),
        passing: Passing<'_>,
        from: Resume,
        mut account: Account,
    ) -> Answering {
        let Passing { mut plan, mut leg, home } = passing;
        if let Some(home) = &home {
            (plan.place, plan.target) = (Some(home.place), Ok(&home.cluster));
        }
        let passage = self.gates(&mut parts, (plan.forward, plan.place), (from, &mut leg), &mut account);
        if matches!(passage, Passage::Through) && leg.upgrade == Upgrade::Asked && leg.stand.is_none() {
            leg.stand = self.stands_outside(&mut leg.found, leg.client);
        }
        match (passage, plan.target) {
            (Passage::Through, _) => self.straight((parts, received), Passing { plan, leg, home: None }, account),
            (Passage::Answered(answer), _) => shown(&plan, &leg, reply(&self.shared, &answer, leg.version, account)),
            (Passage::Aborted { reply: answer, policy }, _) => {
                account.faulted(format_args!("abort {}", answer.status.as_u16()), policy);
                shown(&plan, &leg, reply(&self.shared, &answer, leg.version, account))
            }
            (Passage::Cut { policy }, _) => {
                account.faulted(format_args!("reset"), policy);
                account.failed(&Failure::new(Reason::Fault, "a fault on purpose cuts the exchange"));
                Answering::Cut
            }
            (Passage::Ask { question, next }, _) => {
                self.find_out((parts, received), Passing { plan, leg, home: None }, (*question, next), account)
            }
            (Passage::Wait { delay, policy, next }, target) => {
                account.faulted(format_args!("delay {delay:?}"), policy);
                let (rule, forward, place) = (Arc::clone(plan.rule), Arc::clone(plan.forward), plan.place);
                let (target, own, mut leg) = (target.cloned().map_err(LocalReply::clone), Rc::clone(self), leg);
                Answering::Later(Box::pin(async move {
                    let (wait, began) = (leg.left(&forward.policy).map_or(delay, |left| left.min(delay)), Instant::now());
                    sleep(wait).await;
                    leg.waited += began.elapsed();
                    let plan = Plan { rule: &rule, forward: &forward, place, target: target.as_ref() };
                    if wait < delay {
                        return shown(&plan, &leg, failed(&own.shared, &too_late(Reason::RequestTimeout), leg.version, account));
                    }
                    own.pass((parts, received), Passing { plan, leg, home: None }, next, account)
                }))
            }
        }
    }
}

/// What is answered to a certificate authority that asks whether a name is ours (RFC 8555, section 8.3), before any rule: of what is pending
/// alone.
#[cold]
fn proof(snapshot: &Snapshot, parts: &request::Parts) -> Option<LocalReply> {
    let asks = matches!(parts.method, Method::GET | Method::HEAD);
    let named = || parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = parts.uri.authority().map(Authority::as_str).or_else(named)?;
    let body = snapshot.challenges.answer(host, parts.uri.path()).filter(|_| asks)?;
    let headers =
        vec![(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Some(LocalReply { status: StatusCode::OK, reason: None, headers, body, grpc_status: None })
}

/// Asks the rules where a request goes.
#[inline]
fn planned<'v>(table: &'v RouteTable, (head, draw): (&RequestHead<'_>, u64), account: &mut Account) -> Result<Plan<'v>, Short<'v>> {
    match decide(table, head, draw) {
        Decision::Forward(plan) => {
            account.matched(plan.rule);
            Ok(plan)
        }
        Decision::Reply { reply, rule } => {
            if let Some(rule) = rule {
                account.matched(rule);
            }
            Err(Short::Decided(reply))
        }
    }
}

/// An answer of the mesh's own by a rule, which says who may see it.
fn shown(plan: &Plan<'_>, leg: &Leg, mut response: Response<Body>) -> Answering {
    plan.forward.show(plan.place, &leg.answered, response.headers_mut());
    Answering::Ready(Box::new(response))
}

impl<D: Door> Answers for Connection<D> {
    fn caller(&self) -> Caller {
        self.door.caller(&self.downstream)
    }

    fn direction(&self) -> Direction {
        D::DIRECTION
    }

    fn rules(&self) -> Option<Arc<ClientRules>> {
        self.door.rules(&self.view.borrow().listener).cloned()
    }

    fn answer(self: Rc<Self>, head: request::Parts, received: Received) -> Answering {
        self.door.used(&self.shared);
        if self.shared.reader.with(|live| Arc::ptr_eq(live, &self.view.borrow().snapshot)) {
            return self.answer_now(head, received, Duration::ZERO);
        }
        let live = self.shared.reader.load();
        let look = self.door.look(&self.shared, &live, &self.view.borrow().listener);
        match look {
            Look::Known(found) => {
                self.take_up(live, Some(found), &received);
                self.answer_now(head, received, Duration::ZERO)
            }
            Look::Ask(asked) => Answering::Later(Box::pin(async move {
                let began = Instant::now();
                let found = asked.await;
                self.take_up(self.shared.reader.load(), found, &received);
                self.answer_now(head, received, began.elapsed())
            })),
        }
    }

    fn malformed(&self, status: StatusCode) {
        malformed(&self.shared, D::DIRECTION, &self.view.borrow().snapshot, &self.downstream, status);
    }
}
