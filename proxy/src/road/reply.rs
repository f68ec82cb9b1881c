//! The mesh's own answers, told and recorded.

use std::sync::Arc;

use engine::decide::TurnedAway;
use engine::failure::{Blame, Failure, LocalReply, Reason};
use engine::model::Snapshot;
use engine::versions::has_streams;
use http::header::{CONNECTION, CONTENT_TYPE, DATE};
use http::{HeaderValue, Request, Response, StatusCode, Version};

use crate::ground::body::Body;
use crate::http::{grpc_status, local_reply, problem};
use crate::observe::{Account, Direction, Downstream, FromOutside};
use crate::road::shared::Shared;

/// Answers with the mesh's own words.
pub fn reply(shared: &Shared, reply: &LocalReply, version: Version, mut account: Account) -> Response<Body> {
    let (grpc, draining) = (account.is_grpc(), shared.draining(account.direction()));
    account.replied(reply);
    if grpc {
        account.grpc_status(u32::from(grpc_status(reply)));
    }
    let mut response = local_reply(reply, grpc);
    if let Some(date) = shared.date.at(shared.wall_secs()) {
        response.headers_mut().entry(DATE).or_insert(date);
    }
    if let Some(reason) = reply.reason.filter(|_| !grpc && reply.body.is_empty()) {
        match account.outside() {
            None => {}
            Some(FromOutside::Json) => problem(&mut response, reason, account.request_id()),
            Some(FromOutside::Text) => {
                drop(response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")))
            }
        }
    }
    account.tell_strictly(response.headers_mut(), version);
    if draining && !has_streams(version) {
        close_after(&mut response);
    }
    response
}

/// Answers a failure.
#[cold]
pub fn failed(shared: &Shared, failure: &Failure, version: Version, mut account: Account) -> Response<Body> {
    tracing::debug!(%failure, "a request failed");
    account.failed(failure);
    let mut answer = LocalReply::of(failure.reason);
    if failure.reason == Reason::TooLarge && failure.blame != Blame::Client {
        // An answer's head, which is not the caller's doing.
        answer.status = StatusCode::BAD_GATEWAY;
    }
    reply(shared, &answer, version, account)
}

/// The same, with a status of its own.
#[cold]
pub fn failed_as(shared: &Shared, (failure, status): (&Failure, StatusCode), version: Version, mut account: Account) -> Response<Body> {
    tracing::debug!(%failure, %status, "a request failed");
    account.failed(failure);
    reply(shared, &LocalReply { status, ..LocalReply::of(failure.reason) }, version, account)
}

/// Answers a request that no rule is asked about; where the connection may not go on, this is the end of it.
#[cold]
pub fn refused(shared: &Shared, refusal: TurnedAway, version: Version, mut account: Account) -> Response<Body> {
    if let Some(why) = refusal.why {
        tracing::debug!(status = %refusal.status, why, "a request was refused");
        account.failed(&Failure::new(refusal.reason, why));
    }
    let mut response = reply(shared, &refusal.reply(), version, account);
    if refusal.last && !has_streams(version) {
        close_after(&mut response);
    }
    response
}

/// Records that a client's bytes were no HTTP, which hyper has answered with `status` by itself.
#[cold]
pub fn malformed(shared: &Shared, direction: Direction, snapshot: &Arc<Snapshot>, downstream: &Downstream, status: StatusCode) {
    let mut parts = Request::new(()).into_parts().0;
    let mut account = shared.observer.begin_http(direction, snapshot, &mut parts, downstream);
    let too_large = matches!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG);
    account.replied(&LocalReply { status, ..LocalReply::of(if too_large { Reason::TooLarge } else { Reason::BadRequest }) });
}

/// A time that was over.
#[cold]
pub fn too_late(reason: Reason) -> Failure {
    Failure::new(
        reason,
        match reason {
            Reason::RequestTimeout => "the whole request, or its answer, took longer than its timeout",
            _ => "nothing was sent by either side for too long",
        },
    )
}

/// The connection ends with this answer (HTTP/1).
pub fn close_after<B>(response: &mut Response<B>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}
