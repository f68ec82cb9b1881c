//! What of canaries outlives the process, or the turn of a replica.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::decide::CanaryRun;
use super::evidence::Sequential;
use crate::store::{Row, Store};
use crate::world::ObjectKey;
use crate::world::canary::CanaryBook;

/// Decisions of a run that are kept, the newest: in a cluster all canaries share one object.
const DECISIONS_KEPT: usize = 16;

/// One canary at rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptCanary {
    /// The object.
    pub key: ObjectKey,
    /// Its run.
    pub run: CanaryRun,
    /// What was observed of it.
    pub evidence: Sequential,
}

impl KeptCanary {
    /// As it is written.
    pub fn of(key: &ObjectKey, run: &CanaryRun, evidence: &Sequential) -> Self {
        let mut run = run.clone();
        let old = run.decisions.len().saturating_sub(DECISIONS_KEPT);
        run.decisions.drain(..old);
        Self { key: key.clone(), run, evidence: evidence.clone() }
    }

    /// All that were written. What does not read is told, and begun anew.
    pub fn load(store: &Store) -> Vec<Self> {
        match store.load(Row::Canaries) {
            Ok(kept) => kept.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "what is known of canaries cannot be read; they begin anew");
                Vec::new()
            }
        }
    }

    /// How they stand.
    pub fn book(kept: &[Self]) -> CanaryBook {
        let standings: BTreeMap<_, _> = kept.iter().map(|kept| (kept.key.clone(), kept.run.standing.clone())).collect();
        CanaryBook { standings }
    }
}
