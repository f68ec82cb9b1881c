//! What cuts a body short.

use std::error::Error as _;
use std::io;

use engine::failure::Reason;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// The sender broke off or broke the rules.
    #[error("the sender broke off: {0}")]
    Sender(#[from] hyper::Error),
    /// The same on a stream of HTTP/2.
    #[error("the sender broke off: {0}")]
    Stream(#[from] h2::Error),
    /// It took too long, or is none of what its head says.
    #[error("{}", .0.text())]
    Overdue(Reason),
    /// The answer came before anybody asked for it.
    #[error("the answer came before the body was asked for")]
    Unwanted,
}

impl Cut {
    /// Whether the sender broke the rules, and did not merely go.
    pub fn breaks_rules(&self) -> bool {
        match self {
            Self::Sender(error) => breaks_coding(error),
            Self::Overdue(reason) => *reason == Reason::BadRequest,
            Self::Stream(_) | Self::Unwanted => false,
        }
    }
}

/// Whether a body ended because its chunks are none (RFC 9112, section 7.1). hyper tells that as an I/O error.
pub(crate) fn breaks_coding(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}
