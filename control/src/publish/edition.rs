//! What is published: one state of everything.

use std::sync::Arc;

use super::trust::Roots;
use crate::translate::{Affected, touched};
use crate::world::World;

/// One state of everything, as all streams see it.
#[derive(Clone, Debug)]
pub struct Edition {
    /// The objects.
    pub world: World,
    /// The epoch they belong to.
    pub epoch: u64,
    /// Counts editions; endpoint changes have editions and no epochs.
    pub serial: u64,
    /// The roots that are believed.
    pub roots: Arc<Roots>,
}

impl Edition {
    /// What it has otherwise than the one before, as far as translation goes.
    pub fn touched(&self, before: Option<&Self>) -> Affected {
        before.map_or(Affected::All, |before| touched(&before.world, &self.world))
    }
}
