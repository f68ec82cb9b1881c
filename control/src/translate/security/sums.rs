//! What a proxy has room for is bounded over all objects of a kind that select its workload. Where they are more, the oldest are in force,
//! each as a whole. What is left out never opens anything: its kind says what stands in its place.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::authenticate::TOKEN_RULES_MAX;
use engine::authorize::PolicySum;
use engine::model::build::EgressSum;

use crate::world::own::Selector;
use crate::world::{Object, ObjectKey, World};

/// Whether an object with that selector is meant.
pub(super) type Meant<'m> = &'m dyn Fn(&Object, &Selector) -> bool;

/// An object, and what it takes of the room for its kind.
pub(super) struct Portion<'a, C, S> {
    pub(super) object: &'a Arc<Object>,
    pub(super) content: &'a C,
    pub(super) sum: S,
    /// It decides nothing, so it is the first to be left out.
    pub(super) tells: bool,
}

/// What is bounded.
pub(super) trait Sum: Copy + Default {
    /// Both together.
    fn plus(self, other: Self) -> Self;
    /// Whether a proxy takes so much.
    fn fits(&self) -> bool;
}

impl Sum for PolicySum {
    fn plus(self, other: Self) -> Self {
        self.and(other)
    }

    fn fits(&self) -> bool {
        self.beyond().is_none()
    }
}

impl Sum for EgressSum {
    fn plus(self, other: Self) -> Self {
        self.and(other)
    }

    fn fits(&self) -> bool {
        self.beyond().is_none()
    }
}

/// Rules for tokens.
impl Sum for usize {
    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn fits(&self) -> bool {
        *self <= TOKEN_RULES_MAX
    }
}

/// The objects that a proxy has no room for beside the older ones and what takes the place of such.
pub(super) fn beyond<'a, C, S: Sum>(world: &World, all: &[Portion<'a, C, S>], stand_in: S) -> BTreeSet<&'a ObjectKey> {
    if all.iter().map(|portion| portion.sum).fold(S::default(), S::plus).fits() {
        return BTreeSet::new();
    }
    let mut by_age: Vec<&Portion<'a, C, S>> = all.iter().collect();
    by_age.sort_by_cached_key(|portion| (portion.tells, world.created_ms(portion.object), portion.object.key.path()));
    let mut taken = stand_in;
    let mut left_out = BTreeSet::new();
    for portion in by_age {
        let more = taken.plus(portion.sum);
        if more.fits() {
            taken = more;
        } else {
            left_out.insert(&portion.object.key);
        }
    }
    left_out
}
