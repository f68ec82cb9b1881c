//! Per-route policy as data: a closed enum of pure filters, run as stages of the road (house style, section 3).
//!
//! Adding a filter: one file (typed configuration, its way in from the proto, hooks, tests), one variant, and the arms the
//! compiler asks for.

mod headers;
mod request_headers;
mod response_headers;

use http::HeaderMap;

pub use headers::{HEADER_OPS_MAX, HEADER_VALUE_BYTES_MAX, HeaderOp, HeaderOps};
pub use request_headers::RequestHeaders;
pub use response_headers::ResponseHeaders;

/// One step of a route's policy.
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

impl Filter {
    /// Sees the request before it is sent on.
    pub fn on_request(&self, headers: &mut HeaderMap) {
        match self {
            Self::RequestHeaders(filter) => filter.on_request(headers),
            Self::ResponseHeaders(_) => {}
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
    pub fn on_request(&self, headers: &mut HeaderMap) {
        match self {
            Self::Local(filter) => filter.on_request(headers),
        }
    }

    /// Sees the answer before it goes back.
    pub fn on_response(&self, headers: &mut HeaderMap) {
        match self {
            Self::Local(filter) => filter.on_response(headers),
        }
    }
}
