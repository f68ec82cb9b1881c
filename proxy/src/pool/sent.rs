//! What becomes of a request that was sent.

use engine::failure::{Failure, Reason};
use http::{Request, Response};

use crate::ground::body::{Body, Cut, Received};

/// What became of a request that was handed to a connection.
pub enum Sent {
    /// Answered.
    Answered(Response<Received>),
    /// Nothing was written, or what was written was not processed: here it is again.
    NeverWritten(Box<Request<Body>>, Failure),
    /// Something may have arrived.
    Failed(Failure),
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
