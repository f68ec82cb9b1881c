//! Attempts: where one goes, and the making of one.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::Moment;
use engine::balance::{self, Choice};
use engine::failure::{Failure, Reason, Retry};
use engine::gate::Pass;
use engine::health::Outcome;
use engine::model::{Cluster, Endpoint, InFlight};
use engine::retry::{self, Ended, Left, Next, Situation};
use http::{Request, Response, request};
use smallvec::SmallVec;

use crate::ground::body::{Body, Received};
use crate::ground::line::Line;
use crate::ground::replay::Replay;
use crate::io::{Rewound, Stream};
use crate::observe::Account;
use crate::pool::{Freshness, Lease, Opened, Outgoing, Resend, To};
use crate::road::shared::Shared;
use crate::tls::{Bond, Carries, TlsFacts};

/// Endpoints that an exchange has tried in vain.
type Tried = SmallVec<[SocketAddr; 2]>;

/// The attempts of one exchange: where the next one goes.
pub struct Tries {
    /// The only place: the application beside us, or the original destination.
    only: Option<To>,
    /// For clusters balanced by hash.
    hash: Option<u64>,
    /// Where the client's session is; asked first.
    session: Option<Arc<Endpoint>>,
    tried: Tried,
    last: Option<Arc<Endpoint>>,
    /// The last one goes where the client's session is.
    at_home: bool,
    /// When the last one began, where there was a choice.
    began: Moment,
    made: u32,
    /// A kept connection has proved dead.
    stale: bool,
    /// They may show whether an endpoint that was thrown out is back.
    trials: bool,
}

impl Tries {
    /// None yet. They go to the one place given, else to a cluster's endpoints: the session's first.
    pub const fn new(only: Option<To>, hash: Option<u64>, session: Option<Arc<Endpoint>>) -> Self {
        let began = Moment::of_nanos(0);
        Self { only, hash, session, tried: Tried::new_const(), last: None, at_home: false, began, made: 0, stale: false, trials: true }
    }

    /// Those of a copy, by which nobody judges an endpoint.
    pub fn of_copy() -> Self {
        Self { trials: false, ..Self::new(None, None, None) }
    }

    /// Whether there is no choice.
    pub const fn is_fixed(&self) -> bool {
        self.only.is_some()
    }

    /// Where the next one goes: away from what was tried, while there is another.
    ///
    /// # Errors
    /// There is nowhere to go.
    pub fn next(&mut self, shared: &Shared, cluster: Option<&Arc<Cluster>>) -> Result<To, Failure> {
        self.made += 1;
        let bounded = cluster.filter(|cluster| cluster.policy.limits.bind_connections()).cloned();
        if let Some(to) = &self.only {
            return Ok(To { bounded, ..to.clone() });
        }
        let Some(cluster) = cluster else {
            return Err(Failure::new(Reason::NoEndpoints, "there is nowhere to go"));
        };
        self.began = shared.moment(shared.clock.now());
        let home = self.session.take();
        self.at_home = home.is_some();
        let endpoint = match home {
            Some(endpoint) => endpoint,
            None => {
                let set = cluster.endpoints.load();
                let choice = Choice { draw: shared.draw.next(), hash: self.hash, tried: &self.tried, now: self.began, trials: self.trials };
                let picked = balance::pick(cluster, &set, &choice).cloned();
                picked
                    .ok_or_else(|| Failure::new(Reason::NoEndpoints, format!("cluster {} has no endpoint that is ready", cluster.name)))?
            }
        };
        self.last = Some(Arc::clone(&endpoint));
        Ok(To { endpoint, named: cluster.tls.clone(), local: None, timeout: cluster.connect_timeout, bounded })
    }

    /// Whether the last one goes where the client's session is.
    pub const fn is_at_home(&self) -> bool {
        self.at_home
    }

    /// When the last one began.
    pub const fn began(&self) -> Moment {
        self.began
    }

    /// An earlier one, begun then, was faster than the last.
    pub const fn won_since(&mut self, began: Moment) {
        self.began = began;
    }

    /// Attempts made.
    pub const fn made(&self) -> u32 {
        self.made
    }

    /// How much the next one may rely on what is kept.
    pub const fn freshness(&self) -> Freshness {
        if self.stale { Freshness::New } else { Freshness::Any }
    }

    /// An attempt at `at` failed: what is left. `kept`: only a connection that was there before has failed, so that a new one to the same
    /// place is worth trying, if there is no other.
    pub fn failed(&mut self, at: SocketAddr, kept: bool, cluster: Option<&Cluster>) -> Left {
        self.avoid(at);
        self.stale |= kept;
        match (self.another(cluster), kept) {
            (true, _) => Left::Another,
            (false, true) => Left::AnewToTheSame,
            (false, false) => Left::Nowhere,
        }
    }

    /// Nothing more goes there while there is another.
    pub fn avoid(&mut self, at: SocketAddr) {
        if !self.tried.contains(&at) {
            self.tried.push(at);
        }
    }

    /// Counts the last endpoint as tried, if there is another; whether there is.
    pub fn leave(&mut self, cluster: Option<&Cluster>) -> bool {
        let before = self.tried.len();
        if let Some(last) = &self.last {
            self.tried.push(last.address);
        }
        let another = self.another(cluster);
        if !another {
            self.tried.truncate(before);
        }
        another
    }

    /// Whether there is an endpoint that was not tried.
    fn another(&self, cluster: Option<&Cluster>) -> bool {
        let Some(cluster) = cluster.filter(|_| self.only.is_none()) else { return false };
        cluster.endpoints.load().ready.iter().any(|endpoint| !self.tried.contains(&endpoint.address))
    }
}

/// What one sending of a request has in hand. Two of one exchange can be under way at once, each with its own.
#[derive(Default)]
pub struct Hand {
    /// Where it goes.
    pub to: Option<To>,
    /// What is to be sent, and what comes back of it if it may be sent again.
    pub outgoing: Option<Outgoing>,
    /// Its connection, once there is one.
    pub lease: Option<Lease>,
    /// The answer's head, once it has come.
    pub response: Option<Response<Received>>,
}

impl Hand {
    /// With that to send.
    pub const fn of(outgoing: Outgoing) -> Self {
        Self { to: None, outgoing: Some(outgoing), lease: None, response: None }
    }
}

/// What further attempts of a request are made of.
pub struct Spare {
    /// Its head.
    pub head: request::Parts,
    /// Its body, if it has one.
    pub body: Option<Replay>,
}

impl Spare {
    /// The request once more.
    pub fn outgoing(&self) -> Outgoing {
        let body = self.body.as_ref().map_or(Body::Empty, Replay::send);
        Outgoing::Fresh(Request::from_parts(self.head.clone(), body))
    }

    /// Whether it can be sent as it was.
    pub fn is_whole(&self) -> bool {
        self.body.as_ref().is_none_or(Replay::is_whole)
    }

    /// Whether it can be sent twice at the same time.
    pub fn is_complete(&self) -> bool {
        self.body.as_ref().is_none_or(Replay::is_complete)
    }

    /// Nothing more of it is sent as it is sent now, unless that takes nothing from the next time: see [`Replay::recall`].
    pub fn recall(&self) -> bool {
        self.body.as_ref().is_none_or(Replay::recall)
    }
}

/// How an attempt is made.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// What its connection carries.
    pub carries: Carries,
    /// Whether a kept connection will do.
    pub freshness: Freshness,
    /// Where interim answers go.
    pub downstream: Option<&'a Arc<Line>>,
    /// When it may be sent again although it was written.
    pub again: Resend,
}

/// Makes one attempt: leases a connection, sends what is in hand, and waits until the head of the answer is in hand. Nothing large is handed
/// from future to future, and nothing is held twice, as an argument of an `async fn` would be. Dropping it gives the attempt up.
///
/// # Errors
/// The attempt's failure; what may be sent again is in hand then.
#[allow(clippy::manual_async_fn, reason = "arguments of an async fn are held twice")]
pub fn make<'a>(shared: &'a Shared, manner: Manner<'a>, hand: &'a mut Hand) -> impl Future<Output = Result<(), Failure>> + 'a {
    async move {
        let Some(to) = &hand.to else {
            return Err(Failure::new(Reason::NoEndpoints, "there is nowhere to go"));
        };
        let lease = shared.pool.lease(to, manner.carries, manner.freshness, &mut hand.outgoing).await?;
        hand.response = Some(hand.lease.insert(lease).send(&mut hand.outgoing, manner.downstream, manner.again).await?);
        Ok(())
    }
}

/// The same; with a `limit`, the answer's head has to come that soon after there is a connection. Who waits for one has other bounds: to
/// connect, and to wait for a place.
///
/// # Errors
/// As [`make`], and [`Reason::AttemptTimeout`].
pub async fn make_within(shared: &Shared, manner: Manner<'_>, hand: &mut Hand, limit: Option<Duration>) -> Result<(), Failure> {
    let (Some(limit), Some(to)) = (limit, &hand.to) else { return make(shared, manner, hand).await };
    let lease = shared.pool.lease(to, manner.carries, manner.freshness, &mut hand.outgoing).await?;
    let sending = hand.lease.insert(lease).send(&mut hand.outgoing, manner.downstream, manner.again);
    let answered = tokio::time::timeout(limit, sending).await;
    hand.response = Some(answered.map_err(|_| Failure::new(Reason::AttemptTimeout, "the attempt took longer than its timeout"))??);
    Ok(())
}

/// What a failed attempt says of its endpoint. `kept`: its connection was there before.
pub fn outcome(failure: &Failure, kept: bool) -> Outcome {
    match failure.reason {
        Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed | Reason::IdentityMismatch => Outcome::ConnectFailed,
        Reason::AttemptTimeout => Outcome::TimedOut,
        // A kept connection that the other side closed meanwhile says nothing of the endpoint.
        Reason::UpstreamReset if kept && failure.retry != Retry::No => Outcome::Cancelled,
        Reason::UpstreamReset | Reason::UpstreamProtocol => Outcome::Reset,
        _ => Outcome::Cancelled,
    }
}

/// Tells that an attempt begins.
pub fn begin(to: &To, account: &mut Account) {
    if to.local.is_some() {
        account.attempted_locally();
    } else {
        account.attempted(&to.endpoint);
    }
}

/// An open opaque connection upstream, and how it came to be. The exchange is told later, by [`OpenedTcp::tell`]: a connection that was
/// opened on suspicion may turn out not to be wanted.
pub struct OpenedTcp {
    /// Its bytes.
    pub stream: Rewound<Stream>,
    /// Counts at the endpoint while it lives.
    pub in_flight: InFlight,
    /// Its place among the connections of its cluster, where those are bounded.
    pub pass: Option<Pass>,
    cluster: Option<Arc<Cluster>>,
    to: To,
    tls: Option<TlsFacts>,
    /// The peer's, where it proved itself.
    pub bond: Option<Bond>,
    retries: SmallVec<[(SocketAddr, Reason); 2]>,
}

impl OpenedTcp {
    /// The cluster it leads to.
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.clone()
    }

    /// Tells where it leads and what was tried before.
    pub fn tell(&self, account: &mut Account) {
        for (address, reason) in &self.retries {
            account.retried(*address, *reason);
        }
        begin(&self.to, account);
        account.secured(self.tls.as_ref());
    }
}

/// Opens an opaque connection to the one place given, else to an endpoint of the cluster; tries other endpoints while none answers. Dropping
/// the future gives it up.
///
/// # Errors
/// The last attempt's failure.
pub async fn open(shared: &Shared, cluster: Option<&Arc<Cluster>>, only: Option<To>) -> Result<OpenedTcp, Failure> {
    let mut tries = Tries::new(only, None, None);
    let choice = |tries: &Tries| cluster.filter(|_| !tries.is_fixed());
    if let Some(cluster) = choice(&tries) {
        cluster.live.budget.deposit();
    }
    let mut retries = SmallVec::new();
    loop {
        let to = tries.next(shared, cluster)?;
        let at = to.endpoint.address;
        let in_flight = to.endpoint.live.enter();
        let pass = shared.pool.place_now(&to).await?;
        match shared.pool.connector().open(&to, Carries::Tcp).await {
            Ok(Opened { stream, tls, bond }) => {
                told(shared, choice(&tries), &to.endpoint, Outcome::Connected);
                let stream = Rewound::new(bytes::Bytes::new(), stream);
                return Ok(OpenedTcp { stream, in_flight, pass, cluster: cluster.cloned(), to, tls, bond, retries });
            }
            Err(failure) => {
                told(shared, choice(&tries), &to.endpoint, Outcome::ConnectFailed);
                let left = tries.failed(at, false, cluster.map(Arc::as_ref));
                let situation = Situation { attempts: tries.made(), left, time: None, at_hand: true, safe: false, layered: true };
                match retry::next(&retry::Policy::default(), Ended::Failed(&failure), situation, 0, || false) {
                    Next::Again(_) => retries.push((at, failure.reason)),
                    Next::Stop(_) => return Err(failure),
                }
            }
        }
    }
}

/// Books how an attempt ended that has no account, at the cluster that it chose from.
pub fn told(shared: &Shared, cluster: Option<&Arc<Cluster>>, endpoint: &Arc<Endpoint>, outcome: Outcome) {
    if let Some(cluster) = cluster
        && let Some(ejected) = cluster.told(endpoint, outcome, shared.moment(shared.clock.now()))
    {
        shared.observer.ejected(endpoint, ejected);
    }
}
