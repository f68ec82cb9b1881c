//! Questions to services that policies ask: sent over the pool as requests are, to a cluster's endpoint or to an address of a policy's own
//! choice, and bounded in number, time and bytes. Whoever asks goes by what its object says where there is no answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::authenticate::KeysUri;
use engine::callout::{ANSWER_BYTES_MAX, CalloutAnswer, CalloutAway, CalloutTold};
use engine::failure::{Failure, Retry};
use engine::filter::guard::IntrospectionAsk;
use engine::health::Outcome;
use engine::login::{LOGIN_ASK_TIMEOUT, LoginAsk, StoreAsk, StoreTold};
use engine::model::{Cluster, Named, Protocol, Roots};
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use tokio::time::{sleep, timeout};

use crate::callout::{Place, places};
use crate::ground::body::{Body, Received};
use crate::ground::limits::{CALLOUT_ATTEMPTS_MAX, CALLOUT_HOSTS_MAX};
use crate::http::{to_http1, to_http2};
use crate::pool::{Lease, Outgoing, Resend, To};
use crate::road::attempt::{Hand, Manner, Tries, make, outcome, told};
use crate::road::discard::Nobody;
use crate::road::shared::Shared;
use crate::tls::Carries;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Between attempts to keep a session that was refreshed: within the time that its turn is ours.
const PUT_PAUSES: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// Asks a cluster's endpoint. Dropping the future gives the question up.
///
/// # Errors
/// There is no answer within `within`.
pub async fn ask(
    shared: &Rc<Shared>,
    cluster: &Arc<Cluster>,
    (request, grpc): (Request<Bytes>, bool),
    within: Duration,
) -> Result<CalloutAnswer, CalloutAway> {
    let carries = if grpc || cluster.protocol == Protocol::Http2 { Carries::H2 } else { Carries::H1 };
    let asking = attempts(shared, Tries::new(None, None, None), Some(cluster), (request, carries));
    // Boxed because few requests wait for it, and all would keep room for it.
    let answered = Box::pin(timeout(within, asking)).await.unwrap_or(Err(CalloutAway::Silent));
    if let Err(away) = &answered {
        tracing::debug!(cluster = %cluster.name, ?away, "a service that a policy asks does not answer");
    }
    answered
}

/// Asks an authorization server about a token. Dropping the future gives the question up.
///
/// # Errors
/// As [`ask`].
pub async fn introspect(shared: &Rc<Shared>, ask: &IntrospectionAsk) -> Result<CalloutAnswer, CalloutAway> {
    let request = ask.request().map_err(|_| CalloutAway::Unreached)?;
    server(shared, &ask.at, request, ask.timeout()).await
}

/// Asks the provider of a login for tokens. Dropping the future gives the question up.
///
/// # Errors
/// As [`ask`], and where as many ask as may.
pub async fn login(shared: &Rc<Shared>, ask: &LoginAsk) -> Result<CalloutAnswer, CalloutAway> {
    let Some(_place) = ask.live().enter() else { return Err(CalloutAway::Full) };
    server(shared, ask.at(), ask.request(), LOGIN_ASK_TIMEOUT).await
}

/// Refreshes a session beside the road: what comes of it later requests see. Of one that a store keeps one replica does that.
pub fn refresh(shared: &Rc<Shared>, ask: Arc<LoginAsk>) {
    let shared = Rc::clone(shared);
    tokio::task::spawn_local(async move {
        if let Some(turn) = ask.turn() {
            let answers = kept(&shared, &turn).await;
            if let Err(told) = ask.has_turn(answers.as_deref(), shared.wall_secs().into()) {
                if let Some(told) = told {
                    kept(&shared, &told).await;
                }
                return;
            }
        }
        let told = login(&shared, &ask).await.map_or_else(CalloutTold::Away, CalloutTold::Answer);
        let Some(put) = ask.settle(&told, shared.wall_secs().into()) else { return };
        // What was shown to the provider may hold no more: what it gave is worth some patience.
        for pause in PUT_PAUSES {
            if kept(&shared, &put).await.is_some() {
                return;
            }
            sleep(pause).await;
        }
        tracing::warn!(store = put.store.place.name(), "a session that was refreshed is not kept: its user may have to log in again");
    });
}

/// What a store says to each command; `None`: it does not say so in time. Dropping the future gives the answers up, not the commands.
pub async fn kept(shared: &Rc<Shared>, ask: &StoreAsk) -> Option<Vec<StoreTold>> {
    let answers = shared.snapshots.limit_questions().command(ask)?;
    let all = async {
        let mut told = Vec::with_capacity(answers.len());
        for answer in answers {
            told.push(answer.await.ok()?);
        }
        Some(told)
    };
    timeout(ask.store.place.timeout(), all).await.ok().flatten()
}

/// Asks whoever is at an address of a policy's own choice.
async fn server(shared: &Rc<Shared>, at: &KeysUri, request: Request<Bytes>, within: Duration) -> Result<CalloutAnswer, CalloutAway> {
    let asking = async {
        let mut last = CalloutAway::Unreached;
        let found = places(&shared.snapshots, at, shared.draw.next()).await;
        for place in found.into_iter().take(ADDRESSES_MAX) {
            let Some(to) = met(shared, at, place) else { continue };
            match attempts(shared, Tries::new(Some(to), None, None), None, (request.clone(), Carries::H1)).await {
                Ok(answer) => return Ok(answer),
                Err(away) => last = away,
            }
        }
        Err(last)
    };
    let answered = Box::pin(timeout(within, asking)).await.unwrap_or(Err(CalloutAway::Silent));
    if let Err(away) = &answered {
        tracing::debug!(host = at.host(), ?away, "an authorization server does not answer");
    }
    answered
}

/// How a server at an address is met. A peer of the mesh proves its identity; inside that there is no second TLS.
fn met(shared: &Shared, at: &KeysUri, Place { address, identity }: Place) -> Option<To> {
    if identity.is_some() && at.is_secure() {
        tracing::debug!(host = at.host(), "it is a peer of the mesh, which is asked by http:// under mesh TLS");
        return None;
    }
    let named = if at.is_secure() { Some(named(shared, at.host())?) } else { None };
    Some(Shared::service(address, identity, named))
}

/// The pool keeps connections by this very value, so there is one per host.
fn named(shared: &Shared, host: &str) -> Option<Arc<Named>> {
    let mut hosts = shared.callout_hosts.borrow_mut();
    if let Some(known) = hosts.get(host) {
        return Some(Arc::clone(known));
    }
    if hosts.len() >= CALLOUT_HOSTS_MAX {
        hosts.clear();
    }
    let named = Arc::new(Named::new(host, Roots::System)?);
    hosts.insert(host.into(), Arc::clone(&named));
    Some(named)
}

/// Sends it until there is an answer, as long as the one before has not arrived.
async fn attempts(
    shared: &Rc<Shared>,
    mut tries: Tries,
    cluster: Option<&Arc<Cluster>>,
    (request, carries): (Request<Bytes>, Carries),
) -> Result<CalloutAnswer, CalloutAway> {
    let (head, body) = request.into_parts();
    loop {
        let to = tries.next(shared, cluster).map_err(|failure| unreached(&failure))?;
        let endpoint = Arc::clone(&to.endpoint);
        let mut own = head.clone();
        match carries {
            Carries::H2 => to_http2(&mut own, endpoint.address),
            Carries::H1 | Carries::Tcp => to_http1(&mut own, endpoint.address),
        }
        let content = if body.is_empty() { Body::Empty } else { Body::Bytes(body.clone()) };
        let mut hand = Hand { to: Some(to), ..Hand::of(Outgoing::Fresh(Request::from_parts(own, content))) };
        let manner = Manner { carries, freshness: tries.freshness(), downstream: None, again: Resend::Unreached };
        let failure = match make(shared, manner, &mut hand).await {
            Ok(()) => {
                let (Some(response), Some(lease)) = (hand.response.take(), hand.lease.take()) else { return Err(CalloutAway::Unreached) };
                let took = shared.moment(shared.clock.now()).since(tries.began());
                told(shared, cluster, &endpoint, Outcome::Answered { status: response.status().as_u16(), took });
                return read(response, lease).await;
            }
            Err(failure) => failure,
        };
        let kept = hand.lease.as_ref().is_some_and(Lease::was_kept);
        told(shared, cluster, &endpoint, outcome(&failure, kept));
        let left = tries.failed(endpoint.address, kept, cluster.map(Arc::as_ref));
        let again = failure.retry == Retry::NeverWritten || (kept && failure.retry == Retry::Unanswered);
        if !again || tries.made() >= CALLOUT_ATTEMPTS_MAX || left == engine::retry::Left::Nowhere {
            return Err(unreached(&failure));
        }
    }
}

fn unreached(failure: &Failure) -> CalloutAway {
    tracing::debug!(%failure, "a service that a policy asks is not reached");
    CalloutAway::Unreached
}

/// Reads an answer to its end.
async fn read(response: Response<Received>, mut lease: Lease) -> Result<CalloutAnswer, CalloutAway> {
    let (head, received) = response.into_parts();
    let mut body = Body::followed(received, Box::new(Nobody));
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map_err(|_| CalloutAway::Unreached)?.into_data() {
            Ok(data) if bytes.len() + data.len() > ANSWER_BYTES_MAX => return Err(CalloutAway::Garbled),
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    drop(body);
    lease.give_back();
    Ok(CalloutAnswer { status: head.status, headers: head.headers, body: bytes.freeze(), trailers })
}
