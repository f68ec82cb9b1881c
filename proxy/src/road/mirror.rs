//! Copies of requests that go elsewhere, too; nobody waits for what comes of them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::failure::Blame;
use engine::model::{Cluster, Forward, VersionCounts};
use http::{Request, request};
use http_body::Body as _;

use crate::ground::body::Body;
use crate::ground::limits::MIRRORS_MAX;
use crate::ground::replay::Replay;
use crate::observe::is_server_error;
use crate::pool::{Outgoing, Resend};
use crate::road::attempt::{Hand, Manner, Tries, make};
use crate::road::discard::discard;
use crate::road::shared::Shared;
use crate::tls::Carries;

/// Longest life of a copy, from its beginning to the end of its answer's head.
const MIRROR_WAIT: Duration = Duration::from_secs(30);
/// Largest body of a request whose copies get it whole; a larger one ends them, not the request.
const MIRRORED_BYTES_MAX: usize = 1 << 20;

/// Sends copies of a request to the mirrors that its draw falls on. The request itself waits for none of them: its body is copied as it passes. Beyond
/// [`MIRRORS_MAX`] copies under way there are no further ones, which is counted.
pub fn mirror(shared: &Rc<Shared>, (forward, place, draw): (&Forward, Option<usize>, u64), request: &mut Request<Body>, carries: Carries) {
    let mut replay = None;
    for (cluster, counts) in forward.mirrors_for(place, draw) {
        if shared.mirrors.get() >= MIRRORS_MAX {
            shared.observer.mirror_dropped();
            continue;
        }
        let body = if request.body().is_end_stream() { Body::Empty } else { replay.get_or_insert_with(|| kept(shared, request)).copy() };
        let copy = Request::from_parts(head(request), body);
        let copied = CopyUnderWay::begin(shared);
        tokio::task::spawn_local(send(copied, (Arc::clone(cluster), counts.cloned()), copy, carries));
    }
}

/// Keeps what passes of the body.
fn kept(shared: &Shared, request: &mut Request<Body>) -> Replay {
    let replay = Replay::new(std::mem::take(request.body_mut()), MIRRORED_BYTES_MAX, &shared.replays);
    *request.body_mut() = replay.send();
    replay
}

/// The same head, whose extensions are the request's own.
fn head(request: &Request<Body>) -> request::Parts {
    let mut head = Request::new(()).into_parts().0;
    head.method = request.method().clone();
    head.uri = request.uri().clone();
    head.version = request.version();
    head.headers = request.headers().clone();
    head.headers.remove(http::header::EXPECT);
    head
}

/// Counts a copy from its making on, also where its task is dropped.
struct CopyUnderWay(Rc<Shared>);

impl CopyUnderWay {
    fn begin(shared: &Rc<Shared>) -> Self {
        shared.mirrors.set(shared.mirrors.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Drop for CopyUnderWay {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

async fn send(
    copied: CopyUnderWay,
    (cluster, counts): (Arc<Cluster>, Option<Arc<VersionCounts>>),
    request: Request<Body>,
    carries: Carries,
) {
    // A copy's time is not measured: nobody waits for its end.
    let count = |failed| counts.iter().for_each(|counts| counts.count(failed, None));
    let shared = &copied.0;
    let mut tries = Tries::of_copy();
    let to = match tries.next(shared, Some(&cluster)) {
        Ok(to) => to,
        Err(failure) => {
            tracing::debug!(%failure, cluster = %cluster.name, "a copy of a request goes nowhere");
            count(true);
            return;
        }
    };
    let sending = async {
        let mut hand = Hand { to: Some(to), ..Hand::of(Outgoing::Fresh(request)) };
        let manner = Manner { carries, freshness: tries.freshness(), downstream: None, again: Resend::Never };
        make(shared, manner, &mut hand).await?;
        if let Some(response) = hand.response.take() {
            let status = response.headers().get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
            count(response.status().is_server_error() || status.is_some_and(is_server_error));
            discard(response, hand.lease.take());
        }
        Ok::<_, engine::failure::Failure>(())
    };
    match tokio::time::timeout(MIRROR_WAIT, sending).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => {
            tracing::debug!(%failure, cluster = %cluster.name, "a copy of a request was not answered");
            count(failure.blame != Blame::Client);
        }
        Err(_) => {
            tracing::debug!(cluster = %cluster.name, "a copy of a request took too long");
            count(true);
        }
    }
}
