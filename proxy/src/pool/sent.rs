//! A request that is sent, and what its failures mean.

use bytes::Bytes;
use engine::failure::{Blame, Failure, REASON_HEADER, Reason};
use http::{Method, Request, Response, StatusCode};

use crate::ground::body::{Body, Cut};

/// A request on its way out.
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, which a box would cost an allocation")]
pub enum Outgoing {
    /// As it was made.
    Fresh(Request<Body>),
    /// The head of a request without a body, as it was written to a connection of HTTP/1 before.
    Written(Method, Bytes),
}

/// When a request may be sent again that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resend {
    /// Never.
    Never,
    /// Where a peer of the mesh answers that it has not reached its application.
    Unreached,
    /// The same, and as long as no byte of an answer has come. It has no body.
    Unanswered,
}

/// Why a peer of the mesh has not reached its application, if that is its answer: nobody has done anything with the request.
pub(super) fn unreached<B>(answer: &Response<B>, is_empty: impl FnOnce(&B) -> bool) -> Option<Reason> {
    // A caller of gRPC is answered by trailers alone.
    let by_mesh = match answer.status() {
        StatusCode::SERVICE_UNAVAILABLE => true,
        StatusCode::OK => is_empty(answer.body()),
        _ => false,
    };
    let told = by_mesh.then(|| answer.headers().get(REASON_HEADER)).flatten()?;
    Reason::parse(told.to_str().ok()?).filter(|reason| matches!(reason, Reason::ConnectFailed | Reason::ConnectTimeout))
}

/// The failure that such an answer is.
#[cold]
pub(super) fn not_reached(reason: Reason) -> Failure {
    let cause = "the proxy of the server could not connect to its application";
    Failure { blame: Blame::Application, ..Failure::never_written(reason, cause) }
}

/// Whose fault an exchange's end was.
pub(crate) fn reason(error: &hyper::Error) -> Reason {
    if error.is_user() {
        // The only thing of ours that can fail is the body, and that is the client's.
        return if cause::<Cut>(error).is_some_and(Cut::breaks_rules) { Reason::BadRequest } else { Reason::ClientGone };
    }
    if error.is_parse_too_large() {
        return Reason::TooLarge;
    }
    if crate::ground::body::breaks_coding(error) {
        return Reason::UpstreamProtocol;
    }
    if error.is_parse() || error.is_parse_status() { Reason::UpstreamProtocol } else { Reason::UpstreamReset }
}

/// The first cause of a kind.
fn cause<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        source = cause.source();
    }
    None
}

/// An error with its causes, which hyper's own text leaves out.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
