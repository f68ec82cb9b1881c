//! For whom rules are made: what differs between callers, and between Services and Gateways.

use super::attach::Backend;
use super::backend_tls;
use super::edge_listeners::Judged;
use crate::world::traffic::Caller;
use crate::world::{Index, Name};

/// What is called, and by whom.
pub(super) struct Frontend<'a> {
    /// What there is.
    pub index: &'a Index,
    /// The Service port that is called; `None`: a Gateway's listener.
    pub called: Option<&'a Backend>,
    /// Who calls: their proxies carry the rule out.
    pub caller: &'a Caller,
    /// The Gateway and its listener, at an edge.
    pub listener: Option<(&'a Name, &'a Judged<'a>)>,
}

impl Frontend<'_> {
    /// Whether a backend may be in any namespace: a mesh route needs no grant.
    pub(super) fn granted(&self) -> bool {
        self.called.is_some()
    }

    /// Whether calls to a backend are refused: an edge's BackendTLSPolicy cannot be carried out.
    pub(super) fn refuses(&self, backend: &Backend) -> bool {
        self.called.is_none() && backend_tls::broken(self.index, backend)
    }
}
