//! A request that is to be sent, and the attempts it makes: once or more often, one after the other or two at a time, as its route says.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use engine::Moment;
use engine::failure::{Failure, REASON_HEADER, Reason, Retry};
use engine::health::Outcome;
use engine::model::{Cluster, Endpoint, Forward, Policy};
use engine::retry::{self, Ended, Next, Situation};
use http::{Request, Response, StatusCode};
use tokio::time::{Instant, sleep};

use crate::ground::body::{Body, Received};
use crate::ground::line::Line;
use crate::ground::patience::Overdue;
use crate::ground::replay::Replay;
use crate::http::{Neighbour, Patient, tell_patience, unpack};
use crate::observe::Account;
use crate::pool::{Lease, Outgoing, Resend};
use crate::road::admission::Admission;
use crate::road::attempt::{Hand, Manner, Spare, Tries, begin, make, make_within, outcome};
use crate::road::discard::discard;
use crate::road::hedging::{Hedging, MadeBeside};
use crate::road::reply::too_late;
use crate::road::shared::Shared;
use crate::tls::Carries;

/// See the module.
pub struct Call {
    cluster: Arc<Cluster>,
    forward: Arc<Forward>,
    carries: Carries,
    tries: Tries,
    hand: Hand,
    /// Where it may be sent again after it was written.
    spare: Option<Box<Spare>>,
    /// It may arrive twice without harm: a safe method (RFC 9110, section 9.2.1), no body, and it stays HTTP.
    safe: bool,
    /// It becomes something other than HTTP.
    upgrades: bool,
    grpc: bool,
    /// A layer before this one retries.
    layered: bool,
    /// What bounds its time is its route, not its caller.
    own_time: bool,
    /// An attempt is under way whose end its endpoint was not told of.
    under_way: bool,
    /// What is told to the next hop of how long the caller waits; the time by `until`.
    patient: Patient,
    until: Option<Instant>,
    /// Its place among those that are under way to its cluster.
    admission: Admission,
}

/// What a call is made of beside its request.
pub struct Terms {
    /// Where it goes.
    pub cluster: Arc<Cluster>,
    /// As its rule says.
    pub forward: Arc<Forward>,
    /// What its connection carries.
    pub carries: Carries,
    /// Which endpoints.
    pub tries: Tries,
    /// It becomes something other than HTTP, and is sent once.
    pub upgrades: bool,
    /// It is a call of gRPC.
    pub grpc: bool,
    /// What its caller said.
    pub patient: Patient,
    /// When its time is over.
    pub until: Option<Instant>,
    /// Its class where the cluster is full; 0 is the highest.
    pub class: u8,
}

/// What an attempt comes to.
enum Judged {
    /// Nothing more is tried; the answer is in hand, if there is one.
    Settled(Result<(), Failure>),
    /// Another attempt, after that wait.
    Again(Duration),
}

/// What ends a wait for attempts.
enum Wins {
    First(Result<(), Failure>),
    /// What the first came to, if it had failed before.
    Second(Box<MadeBeside>, Option<Failure>),
}

impl Call {
    /// The rule that it goes by.
    pub fn forward(&self) -> &Forward {
        &self.forward
    }

    /// A call that has made no attempt. In place, because it is large to be handed on.
    #[inline(always)]
    pub fn new(request: Request<Body>, terms: Terms, shared: &Shared) -> Self {
        let Terms { cluster, forward, carries, tries, upgrades, grpc, patient, until, class } = terms;
        let empty = http_body::Body::is_end_stream(request.body());
        let safe = !upgrades && empty && request.method().is_safe();
        let policy = &forward.policy;
        let layered = patient.layered;
        let own_time = patient.left.is_none_or(|left| policy.request_timeout.is_some_and(|own| own <= left));
        let patient = Patient { left: None, layered: layered || policy.retry.retries() };
        let (spare, hand) = if upgrades || !doubles(policy) {
            (None, Hand::of(Outgoing::Fresh(request)))
        } else {
            let (head, body) = request.into_parts();
            let keep = |body| Replay::new(body, policy.retry.body_buffer_bytes as usize, &shared.replays);
            let body = (!empty).then(|| keep(body));
            (Some(Box::new(Spare { head, body })), Hand::default())
        };
        let admission = Admission::of(class);
        Self {
            cluster,
            forward,
            carries,
            tries,
            hand,
            spare,
            safe,
            upgrades,
            grpc,
            layered,
            own_time,
            under_way: false,
            patient,
            until,
            admission,
        }
    }

    /// Where the answer came from.
    pub const fn lease(&self) -> Option<&Lease> {
        self.hand.lease.as_ref()
    }

    /// The same, to be given back.
    pub const fn lease_mut(&mut self) -> Option<&mut Lease> {
        self.hand.lease.as_mut()
    }

    /// Takes out what it holds upstream: its connection, and its place among those under way.
    pub const fn take_held(&mut self) -> (Option<Lease>, Admission) {
        (self.hand.lease.take(), std::mem::replace(&mut self.admission, Admission::of(0)))
    }

    /// Where it goes.
    pub const fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The endpoint of the attempt that counts, where there was a choice.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.hand.to.as_ref().filter(|_| !self.tries.is_fixed()).map(|to| &to.endpoint)
    }

    /// The head of the answer that counts, once.
    pub const fn take_response(&mut self) -> Option<Response<Received>> {
        self.hand.response.take()
    }

    /// Sends it, as often as its route and its luck ask for, and waits until the head of the answer that counts is there. Dropping the future
    /// gives it up.
    ///
    /// # Errors
    /// The last attempt's failure, or there was none: no endpoint, no room, no time.
    pub async fn make(
        &mut self,
        shared: &Rc<Shared>,
        (account, overdue): (&mut Account, &mut Overdue),
        downstream: Option<&Arc<Line>>,
    ) -> Result<(), Failure> {
        if self.cluster.policy.limits.requests.is_some() {
            Box::pin(self.admission.enter(&self.cluster, overdue)).await?;
        }
        if !self.tries.is_fixed() {
            self.cluster.live.budget.deposit();
        }
        loop {
            self.load(shared, account)?;
            // Boxed because most requests need no room for two attempts, nor for the time of one.
            let made = match self.forward.policy.attempt_timeout.is_some() || self.forward.policy.hedge.is_some() {
                true => Box::pin(self.raced(shared, (account, overdue), downstream)).await,
                false => self.plain(shared, overdue, downstream).await,
            };
            let made = made.inspect_err(|failure| self.timed_out(shared, failure.reason, (account, overdue)))?;
            let wait = match self.judge(shared, made, account) {
                Judged::Settled(result) => return result,
                Judged::Again(wait) => wait,
            };
            if !wait.is_zero() {
                Box::pin(rest(wait, overdue)).await?;
            }
        }
    }

    /// One attempt, within the time of the whole request.
    #[allow(clippy::manual_async_fn, reason = "arguments of an async fn are held twice")]
    fn plain<'a>(
        &'a mut self,
        shared: &'a Shared,
        overdue: &'a mut Overdue,
        downstream: Option<&'a Arc<Line>>,
    ) -> impl Future<Output = Result<Result<(), Failure>, Failure>> + 'a {
        async move {
            let manner = Manner { carries: self.carries, freshness: self.tries.freshness(), downstream, again: self.again() };
            let mut making = pin!(make(shared, manner, &mut self.hand));
            poll_fn(|cx| match making.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(Ok(result)),
                Poll::Pending => overdue.poll(cx).map(|reason| Err(too_late(reason))),
            })
            .await
        }
    }

    /// The same within a time of its own, or two attempts, where the first takes longer than usual and the route allows it.
    async fn raced(
        &mut self,
        shared: &Rc<Shared>,
        (account, overdue): (&mut Account, &mut Overdue),
        downstream: Option<&Arc<Line>>,
    ) -> Result<Result<(), Failure>, Failure> {
        let began = self.tries.began();
        let (carries, freshness, again) = (self.carries, self.tries.freshness(), self.again());
        let policy = &self.forward.policy;
        let Self { hand, cluster, tries, spare, .. } = self;
        let wins = {
            let mut hedging = Hedging::of(policy, cluster, tries, spare.as_deref());
            let mut first = pin!(make_within(shared, Manner { carries, freshness, downstream, again }, hand, policy.attempt_timeout));
            let mut lost = None;
            poll_fn(|cx| {
                if lost.is_none()
                    && let Poll::Ready(result) = first.as_mut().poll(cx)
                {
                    match result {
                        Err(failure) if hedging.waits() => lost = Some(failure),
                        result => return Poll::Ready(Ok(Wins::First(result))),
                    }
                }
                if hedging.is_due(cx) {
                    hedging.start(shared, tries, carries, account);
                }
                if let Poll::Ready(second) = hedging.poll(cx) {
                    if second.result.is_ok() {
                        return Poll::Ready(Ok(Wins::Second(second, lost.take())));
                    }
                    hedging.failed(shared, tries, &second, account);
                    // Of two failures the first is told.
                    if let Some(lost) = lost.take() {
                        return Poll::Ready(Ok(Wins::First(Err(lost))));
                    }
                }
                overdue.poll(cx).map(|reason| Err(too_late(reason)))
            })
            .await
        };
        match wins {
            Ok(Wins::Second(second, lost)) => Ok(self.overtaken(shared, *second, lost, account)),
            Ok(Wins::First(result)) => {
                self.tries.won_since(began);
                Ok(result)
            }
            Err(failure) => {
                self.tries.won_since(began);
                Err(failure)
            }
        }
    }

    /// A second attempt was faster, or the first has failed.
    fn overtaken(&mut self, shared: &Shared, second: MadeBeside, lost: Option<Failure>, account: &mut Account) -> Result<(), Failure> {
        let MadeBeside { hand, began, result } = second;
        let first = std::mem::replace(&mut self.hand, hand);
        if let Some(to) = &first.to {
            let kept = first.lease.as_ref().is_some_and(Lease::was_kept);
            let outcome = lost.map_or(Outcome::Cancelled, |failure| outcome(&failure, kept));
            self.told((&to.endpoint, shared.moment(shared.clock.now())), outcome, account);
        }
        if let Some(to) = &self.hand.to {
            account.overtaken(&to.endpoint, began);
        }
        result
    }

    /// What an attempt that was made comes to.
    fn judge(&mut self, shared: &Rc<Shared>, result: Result<(), Failure>, account: &mut Account) -> Judged {
        self.under_way = false;
        let Some(endpoint) = self.hand.to.as_ref().map(|to| Arc::clone(&to.endpoint)) else {
            return Judged::Settled(result);
        };
        if let Some(lease) = &self.hand.lease {
            account.secured(lease.tls());
        }
        if let Err(failure) = result {
            return self.failed(shared, &endpoint, failure, account);
        }
        let Some(response) = &self.hand.response else {
            return self.failed(shared, &endpoint, Failure::new(Reason::UpstreamReset, "there is no answer"), account);
        };
        let grpc = self.grpc.then(|| grpc_status(response)).flatten();
        let status = response.status();
        if !self.tries.is_fixed() {
            let now = shared.moment(shared.clock.now());
            let took = now.since(self.tries.began());
            self.told((&endpoint, now), Outcome::Answered { status: as_http(status, grpc), took }, account);
        }
        if !self.forward.policy.retry.retries() || !self.forward.policy.retry.wants_again(status, grpc) {
            self.settle();
            return Judged::Settled(Ok(()));
        }
        let ended = Ended::Answered { status, grpc, retry_after: retry_after(response) };
        let reason = told_reason(response);
        let left = self.tries.failed(endpoint.address, false, Some(&self.cluster));
        match self.next(shared, ended, left) {
            Next::Again(wait) => {
                tracing::debug!(%status, "an answer is not taken, and asked for again");
                account.retried(endpoint.address, reason);
                // A connection over which the rest of the request will not come is not kept.
                let sent = self.spare.as_deref().is_none_or(Spare::recall);
                let lease = self.hand.lease.take().filter(|_| sent);
                if let Some(response) = self.hand.response.take() {
                    discard(response, lease);
                }
                self.unload();
                Judged::Again(wait)
            }
            Next::Stop(stop) => {
                if let Some(why) = stop.text() {
                    account.remarked(why);
                }
                self.settle();
                Judged::Settled(Ok(()))
            }
        }
    }

    /// Goes on after a failed attempt, or hands the failure back when it is final.
    #[cold]
    fn failed(&mut self, shared: &Rc<Shared>, endpoint: &Arc<Endpoint>, mut failure: Failure, account: &mut Account) -> Judged {
        let lease = self.hand.lease.take();
        let kept = lease.as_ref().is_some_and(Lease::was_kept);
        self.told((endpoint, shared.moment(shared.clock.now())), outcome(&failure, kept), account);
        if lease.is_some() && failure.retry != Retry::NeverWritten {
            failure.cause = format!("{}: {}", endpoint.address, failure.cause);
        }
        drop(lease);
        self.unload();
        let left = self.tries.failed(endpoint.address, kept, Some(&self.cluster));
        match self.next(shared, Ended::Failed(&failure), left) {
            Next::Again(wait) => {
                tracing::debug!(%failure, "an attempt failed and is made again");
                account.retried(endpoint.address, failure.reason);
                Judged::Again(wait)
            }
            Next::Stop(stop) => Judged::Settled(Err(match stop.text() {
                Some(why) => Failure { cause: format!("{}; {why}", failure.cause), ..failure },
                None => failure,
            })),
        }
    }

    fn next(&self, shared: &Shared, ended: Ended<'_>, left: retry::Left) -> Next {
        let policy = &self.forward.policy.retry;
        let time = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        let (at_hand, safe, layered) = (self.at_hand(), self.safe, self.layered);
        let situation = Situation { attempts: self.tries.made(), left, time, at_hand, safe, layered };
        let (live, bounds) = (&self.cluster.live, &self.cluster.policy);
        let spend = || live.budget.spend(&bounds.budget, shared.moment(shared.clock.now()));
        retry::next(policy, ended, situation, shared.draw.next(), spend)
    }

    fn told(&self, (endpoint, now): (&Arc<Endpoint>, Moment), outcome: Outcome, account: &mut Account) {
        if self.tries.is_fixed() {
            return;
        }
        if let Some(ejected) = self.cluster.told(endpoint, outcome, now) {
            account.ejected(endpoint, ejected);
        }
    }

    /// The request's time was over while an attempt was under way. Its endpoint is to blame if it was asked, had the whole request, and had most
    /// of a time that is the route's own: neither for a caller without patience, nor for one that uploads slowly.
    #[cold]
    fn timed_out(&mut self, shared: &Shared, reason: Reason, (account, overdue): (&mut Account, &Overdue)) {
        let route = self.forward.policy.request_timeout.filter(|_| self.own_time && reason == Reason::RequestTimeout);
        let (Some(whole), Some(to), true) = (route, &self.hand.to, self.under_way) else { return };
        // Without a lease it may wait for a place only where those are bounded; else it is being connected.
        let asked = self.hand.lease.is_some() || to.bounded.is_none();
        let sent = overdue.wait.is_uploaded() || self.spare.as_deref().is_some_and(Spare::is_complete);
        let now = shared.moment(shared.clock.now());
        if asked && sent && now.since(self.tries.began()) * 2 >= whole {
            self.under_way = false;
            self.told((&to.endpoint, now), Outcome::TimedOut, account);
        }
    }

    /// When it may be sent again after it was written.
    const fn again(&self) -> Resend {
        match (self.safe, self.upgrades) {
            (true, _) => Resend::Unanswered,
            (false, false) => Resend::Unreached,
            (false, true) => Resend::Never,
        }
    }

    /// Whether it can be sent once more as it was.
    fn at_hand(&self) -> bool {
        self.hand.outgoing.is_some() || self.spare.as_deref().is_some_and(Spare::is_whole)
    }

    /// Puts into an attempt's hand where it goes, what it sends, and what the next hop is told.
    fn load(&mut self, shared: &Shared, account: &mut Account) -> Result<(), Failure> {
        let to = self.tries.next(shared, Some(&self.cluster))?;
        if self.hand.outgoing.is_none()
            && self.at_hand()
            && let Some(spare) = &self.spare
        {
            self.hand.outgoing = Some(spare.outgoing());
        }
        if let Some(Outgoing::Fresh(request)) = &mut self.hand.outgoing
            && !(self.patient.is_silent() && self.until.is_none())
        {
            let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
            let patient = Patient { left, ..self.patient };
            let next = match (&to.local, &to.endpoint.identity) {
                (Some(_), _) => Neighbour::Application,
                (None, Some(_)) if to.named.is_none() => Neighbour::Peer,
                (None, _) => Neighbour::Outside,
            };
            tell_patience(request.headers_mut(), patient, self.grpc, next, || shared.unix_ms());
        }
        begin(&to, account);
        self.hand.to = Some(to);
        self.under_way = !self.tries.is_fixed();
        if self.hand.outgoing.is_none() {
            return Err(Failure::new(Reason::UpstreamReset, "the exchange is over"));
        }
        Ok(())
    }

    /// Looks after what a failed attempt has still in hand.
    #[cold]
    fn unload(&mut self) {
        if let Some(spare) = self.spare.as_deref().filter(|spare| spare.is_whole()) {
            spare.recall();
            self.hand.outgoing = None;
        } else if let Some(Outgoing::Fresh(request)) = &mut self.hand.outgoing {
            // The next endpoint may be none of the mesh.
            unpack(request.headers_mut());
        }
    }

    /// Its answer is the one that counts: nothing more is kept.
    fn settle(&mut self) {
        if let Some(Spare { body: Some(body), .. }) = self.spare.take().as_deref() {
            body.forget();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Nobody waits for it any more, which says nothing of its endpoint; but if it was the one request that tries it, the next one may.
        if let Some(to) = self.hand.to.as_ref().filter(|_| self.under_way) {
            self.cluster.told(&to.endpoint, Outcome::Cancelled, self.tries.began());
        }
    }
}

/// Whether a route may send a request again after it was written.
fn doubles(policy: &Policy) -> bool {
    policy.retry.retries() || policy.hedge.is_some()
}

/// Waits before the next attempt, within the time of the whole request.
async fn rest(wait: Duration, overdue: &mut Overdue) -> Result<(), Failure> {
    let mut resting = pin!(sleep(wait));
    poll_fn(|cx| match resting.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(Ok(())),
        Poll::Pending => overdue.poll(cx).map(|reason| Err(too_late(reason))),
    })
    .await
}

/// A code of gRPC in an answer's head (trailers only).
fn grpc_status(response: &Response<Received>) -> Option<u32> {
    response.headers().get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// What an answer says of its server's health, in the words of HTTP (gRPC, "Status codes": UNAVAILABLE, INTERNAL, UNKNOWN and DATA_LOSS are
/// the server's).
fn as_http(status: StatusCode, grpc: Option<u32>) -> u16 {
    match grpc {
        Some(14) => StatusCode::SERVICE_UNAVAILABLE.as_u16(),
        Some(2 | 13 | 15) => StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
        Some(4) => StatusCode::GATEWAY_TIMEOUT.as_u16(),
        _ => status.as_u16(),
    }
}

/// Why a server's own proxy answered, else that the application did.
fn told_reason(response: &Response<Received>) -> Reason {
    let told = response.headers().get(REASON_HEADER).and_then(|value| Reason::parse(value.to_str().ok()?));
    told.unwrap_or(Reason::UpstreamProtocol)
}

/// Seconds that a server asks for; a date is as good as none, for clocks differ.
fn retry_after(response: &Response<Received>) -> Option<Duration> {
    let secs = response.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(secs))
}
