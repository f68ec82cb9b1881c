//! Backends of a rule.

use super::Unsupported;
use super::filters::Filters;
use super::reference::Reference;
use crate::world::door::Cursor;
use crate::world::key::Kind;

/// A weighted reference to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRef {
    /// What it names.
    pub to: Reference,
    /// Its share of the sum of weights.
    pub weight: u32,
    /// What happens to this backend's requests alone.
    pub filters: Filters,
    /// Why its share of requests must fail.
    pub failing: Vec<Unsupported>,
}

impl BackendRef {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let to = Reference::read(&mut fields);
        let weight = fields.get("weight").map_or(Some(1), |at| at.int(0..=1_000_000));
        let mut failing = Vec::new();
        let mut filters = Filters::default();
        if matches!(at.key().kind, Kind::HTTPRoute | Kind::GRPCRoute)
            && let Some(at) = fields.get("filters")
        {
            filters = Filters::read(&at, &mut failing);
        }
        fields.done();
        let weight = u32::try_from(weight?).ok()?;
        Some(Self { to: to?, weight, filters, failing })
    }
}
