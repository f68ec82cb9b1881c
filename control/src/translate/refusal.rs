//! Why not, and what objects hold.

use crate::world::gateway::Gateway;
use crate::world::route::Route;
use crate::world::{Object, Spec};

/// A word and a sentence: why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WhyNot {
    /// Reason of the condition.
    pub reason: &'static str,
    /// Message of the condition.
    pub message: String,
}

impl WhyNot {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The content of a route.
pub(super) fn content(route: &Object) -> Option<&Route> {
    if let Spec::Route(spec) = &route.spec { Some(spec) } else { None }
}

/// The content of a Gateway.
pub(super) fn gateway(object: &Object) -> Option<&Gateway> {
    if let Spec::Gateway(gateway) = &object.spec { Some(gateway) } else { None }
}
