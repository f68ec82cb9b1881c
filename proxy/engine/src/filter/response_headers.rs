//! Header operations on the way back.

use http::HeaderMap;
use proto::xds::core::HeaderValueOption;

use super::headers::{HeaderOps, Message};
use crate::rejected::Wrong;

/// Sets, adds and removes response headers.
#[derive(Clone, Debug)]
pub struct ResponseHeaders(HeaderOps);

impl ResponseHeaders {
    /// `None` when there is nothing to do.
    pub(crate) fn compile(add: &[HeaderValueOption], remove: &[String]) -> Result<Option<Self>, Wrong> {
        Ok(HeaderOps::compile(add, remove, Message::Response)?.map(Self))
    }

    /// Changes the headers in place; no allocation but the map's own.
    pub fn on_response(&self, headers: &mut HeaderMap) {
        self.0.apply(headers);
    }

    /// What it does.
    pub const fn ops(&self) -> &HeaderOps {
        &self.0
    }
}
