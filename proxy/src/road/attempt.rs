//! Pick, lease, send; and again elsewhere while nothing was written.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::balance;
use engine::failure::{Failure, Reason};
use engine::model::{Cluster, InFlight};
use engine::retry::{self, Left, Next};
use http::{Request, Response};
use smallvec::SmallVec;

use crate::ground::body::{Body, Received};
use crate::ground::line::Line;
use crate::http::unpack;
use crate::io::{Rewound, Stream};
use crate::observe::Account;
use crate::pool::{Freshness, Lease, Sent, To};
use crate::road::shared::Shared;
use crate::tls::{Carries, TlsFacts};

/// Endpoints that an exchange has tried in vain.
type Tried = SmallVec<[SocketAddr; 2]>;

/// The attempts of one exchange: where the next one goes.
struct Attempts<'a> {
    cluster: Option<&'a Arc<Cluster>>,
    only: Option<&'a To>,
    tried: Tried,
    made: u32,
}

impl<'a> Attempts<'a> {
    const fn new(aim: Aim<'a>) -> Self {
        Self { cluster: aim.cluster, only: aim.only, tried: Tried::new_const(), made: 0 }
    }

    fn next(&mut self, shared: &Shared) -> Result<To, Failure> {
        self.made += 1;
        if let Some(to) = self.only {
            return Ok(to.clone());
        }
        let Some(cluster) = self.cluster else {
            return Err(Failure::new(Reason::NoEndpoints, "there is nowhere to go"));
        };
        let set = cluster.endpoints.0.load();
        let Some(endpoint) = balance::pick(&set, shared.draw.next(), &self.tried) else {
            return Err(Failure::new(Reason::NoEndpoints, format!("cluster {} has no endpoint that is ready", cluster.name)));
        };
        Ok(To { endpoint: Arc::clone(endpoint), local: None, timeout: cluster.connect_timeout })
    }

    /// Goes on after an attempt at `at` failed, or hands the failure back when it is final. `kept`: only a connection that was there before
    /// has failed, so that a new one to the same place is worth trying, if there is no other.
    #[cold]
    fn failed(&mut self, at: SocketAddr, kept: bool, failure: Failure) -> Result<Reason, Failure> {
        self.tried.push(at);
        let left = match (self.another(), kept) {
            (true, _) => Left::Another,
            (false, true) => Left::AnewToTheSame,
            (false, false) => Left::Nowhere,
        };
        match retry::next(self.made, &failure, left) {
            Next::Stop => Err(failure),
            Next::Again => {
                tracing::debug!(%failure, "an attempt failed and is made again");
                Ok(failure.reason)
            }
        }
    }

    /// Whether there is an endpoint that was not tried.
    fn another(&self) -> bool {
        let Some(cluster) = self.cluster.filter(|_| self.only.is_none()) else { return false };
        cluster.endpoints.0.load().ready.iter().any(|endpoint| !self.tried.contains(&endpoint.address))
    }
}

/// Where attempts may go: to the one place given, else to the cluster's endpoints.
#[derive(Clone, Copy)]
pub struct Aim<'a> {
    /// A set of endpoints to pick from.
    pub cluster: Option<&'a Arc<Cluster>>,
    /// The only place: the application beside us, or the original destination.
    pub only: Option<&'a To>,
}

/// Sends a request to where it may go. Replays what was never written on an endpoint that was not tried, within the engine's bound; where
/// there is only one place it is dialled once, and again only if a kept connection to it proved dead. `place` takes the
/// connection that answered; interim answers go to `downstream`. Dropping the future gives up the exchange.
///
/// # Errors
/// The last attempt's failure.
pub async fn send(
    shared: &Shared,
    request: &mut Option<Request<Body>>,
    aim: Aim<'_>,
    carries: Carries,
    (account, downstream): (&mut Account, Option<&Arc<Line>>),
    place: &mut Option<Lease>,
) -> Result<Response<Received>, Failure> {
    let mut attempts = Attempts::new(aim);
    let mut freshness = Freshness::Any;
    loop {
        let to = attempts.next(shared)?;
        let at = to.endpoint.address;
        begin(&to, account);
        let lease = match shared.pool.lease(&to, carries, freshness, request).await {
            Ok(lease) => place.insert(lease),
            Err(failure) => {
                account.retried(at, attempts.failed(at, false, failure)?);
                continue;
            }
        };
        account.secured(lease.tls());
        match lease.send(request, downstream).await {
            Sent::Answered(response) => return Ok(response),
            Sent::Failed(failure) => return Err(Failure { cause: format!("{at}: {}", failure.cause), ..failure }),
            Sent::NeverWritten(mut again, failure) => {
                account.retried(at, attempts.failed(at, lease.was_kept(), failure)?);
                // The next endpoint may be none of the mesh.
                unpack(again.headers_mut());
                *request = Some(*again);
                *place = None;
                freshness = Freshness::New;
            }
        }
    }
}

/// Tells that an attempt begins.
fn begin(to: &To, account: &mut Account) {
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
    cluster: Option<Arc<Cluster>>,
    to: To,
    tls: Option<TlsFacts>,
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

/// Opens an opaque connection to where it may go; tries other endpoints while none answers. Dropping the future gives it up.
///
/// # Errors
/// The last attempt's failure.
pub async fn open(shared: &Shared, aim: Aim<'_>) -> Result<OpenedTcp, Failure> {
    let mut attempts = Attempts::new(aim);
    let mut retries = SmallVec::new();
    loop {
        let to = attempts.next(shared)?;
        let at = to.endpoint.address;
        let in_flight = to.endpoint.live.enter();
        match shared.pool.connector().open(&to, Carries::Tcp).await {
            Ok((stream, tls)) => {
                let stream = Rewound::new(bytes::Bytes::new(), stream);
                return Ok(OpenedTcp { stream, in_flight, cluster: aim.cluster.cloned(), to, tls, retries });
            }
            Err(failure) => {
                retries.push((at, attempts.failed(at, false, failure)?));
            }
        }
    }
}
