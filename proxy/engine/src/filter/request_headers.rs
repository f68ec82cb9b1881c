//! Header operations on the way to the upstream.

use proto::xds::core::HeaderValueOption;

use super::headers::{HeaderOps, Message};
use super::{Exchange, Verdict};
use crate::rejected::Wrong;

/// Sets, adds and removes request headers.
#[derive(Clone, Debug)]
pub struct RequestHeaders(HeaderOps);

impl RequestHeaders {
    /// `None` when there is nothing to do.
    pub(crate) fn compile(add: &[HeaderValueOption], remove: &[String]) -> Result<Option<Self>, Wrong> {
        Ok(HeaderOps::compile(add, remove, Message::Request)?.map(Self))
    }

    /// Changes the headers in place; no allocation but the map's own.
    pub fn on_request(&self, exchange: &mut Exchange<'_>) -> Verdict {
        self.0.apply(&mut exchange.request.headers);
        Verdict::Go
    }

    /// What it does.
    pub const fn ops(&self) -> &HeaderOps {
        &self.0
    }
}
