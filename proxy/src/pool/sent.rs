//! A request that is sent, and what its failures mean.

use bytes::Bytes;
use engine::failure::Reason;
use http::{Method, Request};

use crate::ground::body::{Body, Cut};

/// A request on its way out.
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, which a box would cost an allocation")]
pub enum Outgoing {
    /// As it was made.
    Fresh(Request<Body>),
    /// The head of a request without a body, as it was written to a connection of HTTP/1 before.
    Written(Method, Bytes),
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
