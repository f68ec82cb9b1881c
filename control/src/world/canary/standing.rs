//! How canaries stand, and what that makes of the rules that lead to their Services. Written by `crate::canary` alone.

use std::collections::BTreeMap;

use proto::xds::route::HeaderMatcher;
use serde::{Deserialize, Serialize};

use super::{Canary, CanaryShare};
use crate::world::{Name, Object, ObjectKey, Spec};

/// How all of them stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CanaryBook {
    /// By the object.
    pub standings: BTreeMap<ObjectKey, CanaryStanding>,
}

/// How one stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryStanding {
    /// [`Canary::pair`] of what it is about.
    pub pair: String,
    /// [`Canary::digest`] of what was decided by.
    pub digest: String,
    /// Names the run: counts of another one are none of this one's.
    pub run: String,
    /// Where it is.
    pub phase: CanaryPhase,
    /// At which of its steps, from 0; all of them: it is over.
    pub step: usize,
    /// The last decision in words, with its numbers.
    pub why: String,
}

/// Where a canary is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CanaryPhase {
    /// It goes from step to step.
    #[default]
    Progressing,
    /// It stays where it is until somebody says what.
    Paused,
    /// The candidate has everything.
    Promoted,
    /// The stable version has everything.
    RolledBack,
}

impl CanaryPhase {
    /// As status and JSON say it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Progressing => "Progressing",
            Self::Paused => "Paused",
            Self::Promoted => "Promoted",
            Self::RolledBack => "RolledBack",
        }
    }

    /// Whether nothing more is decided.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Promoted | Self::RolledBack)
    }
}

/// Who answers now.
#[derive(Clone, Debug, PartialEq)]
pub enum CanaryRoute {
    /// The stable version alone.
    Stable,
    /// The candidate those with all these headers.
    Match(Vec<HeaderMatcher>),
    /// The stable version; the candidate gets copies of so many in a million.
    Mirror(u32),
    /// The candidate so many in a hundred.
    Weight(u8),
}

impl CanaryStanding {
    /// Who answers now, by what the object says now. What it says newly counts from the next decision on.
    pub fn route(&self, spec: &Canary) -> CanaryRoute {
        if self.pair != spec.pair() {
            return CanaryRoute::Stable;
        }
        match self.phase {
            CanaryPhase::Promoted => CanaryRoute::Weight(100),
            CanaryPhase::RolledBack => CanaryRoute::Stable,
            CanaryPhase::Progressing | CanaryPhase::Paused if self.digest != spec.digest() => CanaryRoute::Stable,
            CanaryPhase::Progressing | CanaryPhase::Paused => match spec.steps.get(self.step).map(|step| &step.share) {
                Some(CanaryShare::Match(headers)) => CanaryRoute::Match(headers.clone()),
                Some(CanaryShare::Mirror(per_million)) => CanaryRoute::Mirror(*per_million),
                Some(CanaryShare::Weight(weight)) => CanaryRoute::Weight(*weight),
                None => CanaryRoute::Stable,
            },
        }
    }
}

impl CanaryRoute {
    /// The candidate's share of all requests, per cent; of a match nobody knows it.
    pub const fn weight(&self) -> u8 {
        if let Self::Weight(weight) = self { *weight } else { 0 }
    }
}

/// What one canary makes of the rules that lead to its Service's port.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryOverlay {
    /// The object.
    pub key: ObjectKey,
    /// [`CanaryStanding::run`].
    pub run: String,
    /// The Service of the stable version.
    pub stable: Name,
    /// The Service of the candidate.
    pub candidate: Name,
    /// The port of both.
    pub port: u16,
    /// Who answers.
    pub route: CanaryRoute,
}

/// A share of a backend's requests, and which version answers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitPart<'a> {
    /// The Service.
    pub service: &'a Name,
    /// Whether it is the candidate.
    pub candidate: bool,
    /// Of a hundred.
    pub weight: u32,
}

impl CanaryOverlay {
    /// Who answers the requests of a rule; `matched`: those that the step's headers match.
    pub fn parts(&self, matched: bool) -> Vec<SplitPart<'_>> {
        let weight = match &self.route {
            CanaryRoute::Match(_) if matched => 100,
            CanaryRoute::Stable | CanaryRoute::Match(_) | CanaryRoute::Mirror(_) => 0,
            CanaryRoute::Weight(weight) => u32::from(*weight),
        };
        let stable = SplitPart { service: &self.stable, candidate: false, weight: 100 - weight };
        let candidate = SplitPart { service: &self.candidate, candidate: true, weight };
        [stable, candidate].into_iter().filter(|part| part.weight > 0).collect()
    }

    /// Which headers lead to the candidate, at a step that goes by them.
    pub fn headers(&self) -> Option<&[HeaderMatcher]> {
        if let CanaryRoute::Match(headers) = &self.route { Some(headers) } else { None }
    }

    /// Of how many in a million the candidate gets copies.
    pub fn mirrored(&self) -> Option<u32> {
        if let CanaryRoute::Mirror(per_million) = self.route { Some(per_million) } else { None }
    }
}

/// What a Canary lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryLack {
    /// As many as may be are older.
    TooMany,
    /// An older one is about the same Service and port.
    Rival(ObjectKey),
    /// There is no such Service, or it has no such port: the one that is called.
    Called(String),
    /// The same, of one of its versions.
    Version(String),
}

/// What all of them come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CanaryIndex {
    /// By the Service and port that are called.
    pub overlays: BTreeMap<(Name, u16), CanaryOverlay>,
    /// What is missing.
    pub lacks: BTreeMap<ObjectKey, CanaryLack>,
}

impl CanaryIndex {
    /// Tells apart what calls meet; empty where nothing is split.
    pub fn digest(&self) -> String {
        if self.overlays.is_empty() {
            return String::new();
        }
        format!(" canaries {}", proto::epoch::version(format!("{:?}", self.overlays).as_bytes()))
    }
}

/// The content of a Canary.
pub fn content(object: &Object) -> Option<&Canary> {
    if let Spec::Canary(spec) = &object.spec { Some(spec) } else { None }
}
