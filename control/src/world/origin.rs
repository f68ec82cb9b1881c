//! Who says what an object is: the origins, what each of them holds of one object, and which of them is in force.

use std::sync::Arc;

use super::object::Candidate;

/// Who said it. In this order each lies over the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A Kubernetes API server.
    Cluster,
    /// The folder of manifests: what somebody wrote for this control plane alone is nearer than what stands in the cluster.
    Folder,
    /// `apply -f`.
    Applied,
}

impl Origin {
    /// Every origin, the one that lies over all others first.
    pub const PRECEDENCE: [Self; 3] = [Self::Applied, Self::Folder, Self::Cluster];

    /// The name as `get objects` prints it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Folder => "Folder",
            Self::Applied => "Applied",
        }
    }
}

/// One origin's versions of an object.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The last good one.
    pub good: Option<Arc<Candidate>>,
    /// A newer one that was refused.
    pub refused: Option<Arc<Candidate>>,
    /// Applied objects only: digest of the folder's version that this one lies over.
    pub over: Option<String>,
}

/// All versions of one object.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    cluster: Option<Held>,
    folder: Option<Held>,
    applied: Option<Held>,
    /// How many versions have been in force.
    pub(super) generation: i64,
}

impl Versions {
    /// What one origin says.
    pub fn held(&self, origin: Origin) -> Option<&Held> {
        match origin {
            Origin::Cluster => self.cluster.as_ref(),
            Origin::Folder => self.folder.as_ref(),
            Origin::Applied => self.applied.as_ref(),
        }
    }

    pub(super) fn held_mut(&mut self, origin: Origin) -> &mut Option<Held> {
        match origin {
            Origin::Cluster => &mut self.cluster,
            Origin::Folder => &mut self.folder,
            Origin::Applied => &mut self.applied,
        }
    }

    /// What the origins say, the one that lies over all others first.
    pub fn all(&self) -> impl Iterator<Item = (Origin, &Held)> {
        Origin::PRECEDENCE.into_iter().filter_map(|origin| Some((origin, self.held(origin)?)))
    }

    /// The version in force.
    pub fn live(&self) -> Option<&Arc<Candidate>> {
        self.all().find_map(|(_, held)| held.good.as_ref())
    }

    /// The version in force, else a refused one that something stands for.
    pub(crate) fn in_force(&self) -> Option<&Arc<Candidate>> {
        self.live().or_else(|| self.refused().filter(|refused| refused.stand_in.is_some()))
    }

    /// The object in force, or what stands for it.
    pub(crate) fn standing(&self) -> Option<&Arc<super::Object>> {
        let found = self.in_force()?;
        found.object.as_ref().or(found.stand_in.as_ref())
    }

    /// The origin of the version in force.
    pub fn origin(&self) -> Option<Origin> {
        self.all().find(|(_, held)| held.good.is_some()).map(|(origin, _)| origin)
    }

    /// A newer version that was refused, whoever's.
    pub fn refused(&self) -> Option<&Arc<Candidate>> {
        self.all().find_map(|(_, held)| held.refused.as_ref())
    }

    /// A newer version than the one in force, of the same origin, that was refused.
    pub fn refused_newer(&self) -> Option<&Arc<Candidate>> {
        self.held(self.origin()?)?.refused.as_ref()
    }

    /// The last good version of each origin.
    pub(super) fn good(&self) -> impl Iterator<Item = &Arc<Candidate>> {
        self.all().filter_map(|(_, held)| held.good.as_ref())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// What `observedGeneration` says: the API server's count, else ours.
    pub fn generation(&self) -> i64 {
        let told = self.live().and_then(|live| live.object.as_ref()).and_then(|object| object.metadata.generation);
        told.unwrap_or(self.generation.max(1))
    }

    pub(super) fn folder_digest(&self) -> Option<&String> {
        self.folder.as_ref().and_then(|held| held.good.as_ref()).map(|good| &good.digest)
    }
}
