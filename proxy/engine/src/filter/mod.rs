//! Per-route policy as data: a closed enum of pure filters, run as stages of the road (house style, section 3).
//!
//! Adding a filter: one file (typed configuration, its way in from the proto, hooks, tests), one variant, and the arms the
//! compiler asks for.

mod headers;
mod request_headers;
mod response_headers;

use http::{HeaderMap, request};

pub use headers::{HEADER_OPS_MAX, HEADER_VALUE_BYTES_MAX, HeaderOp, HeaderOps};
pub use request_headers::RequestHeaders;
pub use response_headers::ResponseHeaders;

use crate::failure::LocalReply;

/// One step of a route's policy. What has to wait for others will be a variant of its own, so that the type says where a request may rest.
#[derive(Clone, Debug)]
pub enum Stage {
    /// Runs in place.
    Local(Filter),
}

/// One variant per file.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Changes the request's headers before it is sent on.
    RequestHeaders(RequestHeaders),
    /// Changes the headers of the upstream's answer.
    ResponseHeaders(ResponseHeaders),
}

/// What a stage sees of a request, and may change.
#[derive(Debug)]
pub struct Exchange<'e> {
    /// The request's head, as it was judged and decided by.
    pub request: &'e mut request::Parts,
}

/// What becomes of a request after a stage.
#[must_use]
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It goes on to the next stage.
    Go,
    /// It is answered here: no later stage sees it, and no upstream.
    Answer(Box<LocalReply>),
}

impl Filter {
    /// Sees the request before it is sent on.
    pub fn on_request(&self, exchange: &mut Exchange<'_>) -> Verdict {
        match self {
            Self::RequestHeaders(filter) => filter.on_request(exchange),
            Self::ResponseHeaders(_) => Verdict::Go,
        }
    }

    /// Sees the answer before it goes back.
    pub fn on_response(&self, headers: &mut HeaderMap) {
        match self {
            Self::RequestHeaders(_) => {}
            Self::ResponseHeaders(filter) => filter.on_response(headers),
        }
    }

    /// The name that `explain` prints.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RequestHeaders(_) => "request_headers",
            Self::ResponseHeaders(_) => "response_headers",
        }
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        match self {
            Self::RequestHeaders(filter) => filter.ops().story(),
            Self::ResponseHeaders(filter) => filter.ops().story(),
        }
    }
}

impl Stage {
    /// Sees the request before it is sent on.
    pub fn on_request(&self, exchange: &mut Exchange<'_>) -> Verdict {
        match self {
            Self::Local(filter) => filter.on_request(exchange),
        }
    }

    /// Sees the answer before it goes back.
    pub fn on_response(&self, headers: &mut HeaderMap) {
        match self {
            Self::Local(filter) => filter.on_response(headers),
        }
    }
}

/// Runs the request side of stages in their order, until one answers.
pub fn forth<'s>(stages: impl Iterator<Item = &'s Stage>, exchange: &mut Exchange<'_>) -> Verdict {
    for stage in stages {
        if let answer @ Verdict::Answer(_) = stage.on_request(exchange) {
            return answer;
        }
    }
    Verdict::Go
}

/// Runs the response side of stages in their order.
pub fn back<'s>(stages: impl Iterator<Item = &'s Stage>, headers: &mut HeaderMap) {
    stages.for_each(|stage| stage.on_response(headers));
}
