//! What can happen to a world, and what it came to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::acme::AcmeBook;
use super::canary::CanaryBook;
use super::instance::{GatewayState, InstanceState};
use super::key::{Kind, ObjectKey};
use super::login_keys::LoginSeeds;
use super::object::Candidate;
use super::origin::Origin;
use super::problem::Problem;
use super::tickets::Seeds;

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Change {
    /// Somebody handed us a version of an object, good or refused.
    Put {
        /// Who.
        origin: Origin,
        /// The version.
        candidate: Candidate,
        /// Now, milliseconds since 1970: the object's age, unless it says so itself.
        now_ms: i64,
    },
    /// Somebody took an object back.
    Remove {
        /// Who.
        origin: Origin,
        /// Which.
        key: ObjectKey,
    },
    /// An origin was looked at anew, and these are all its objects of one kind: what it had beside them is gone. Their new versions come
    /// before this, in the same step, so that nothing is ever missing in between.
    Relisted {
        /// Who.
        origin: Origin,
        /// Of which kind.
        kind: Kind,
        /// All that are there.
        keys: BTreeSet<ObjectKey>,
    },
    /// An origin has been read once, to its end.
    Synced(Origin),
    /// An applied object comes back from the store.
    Restore {
        /// The version.
        candidate: Candidate,
        /// Digest of the folder's version that it lies over, from [`super::Held::over`].
        over: Option<String>,
    },
    /// All problems of a file that belong to no object; replaces those before.
    File {
        /// The file.
        file: String,
        /// Its problems now.
        problems: Vec<Problem>,
    },
    /// The age of an object comes back from the store.
    Age {
        /// Which object.
        key: ObjectKey,
        /// Milliseconds since 1970.
        created_ms: i64,
    },
    /// All that the node agent runs; replaces what it said before.
    Node {
        /// Instances by (namespace, instance).
        instances: BTreeMap<(String, String), InstanceState>,
        /// Gateways by (namespace, name).
        gateways: BTreeMap<(String, String), GatewayState>,
    },
    /// Time has gone on: certificates have dates.
    Clock {
        /// Now, milliseconds since 1970.
        now_ms: i64,
    },
    /// What session tickets are made with from now on.
    Tickets(Seeds),
    /// How orders of certificates stand from now on.
    Acme(Arc<AcmeBook>),
    /// How canaries stand from now on.
    Canaries(Arc<CanaryBook>),
    /// What sessions of logins are sealed with from now on.
    LoginSeeds(LoginSeeds),
    /// A proxy says that it is leaving, or is back.
    Draining {
        /// Its (namespace, instance).
        instance: (String, String),
        /// Leaving.
        draining: bool,
    },
}

/// What a `Put` or `Remove` came to, as `apply -o json` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none.
    Created,
    /// Another version is in force now.
    Changed,
    /// Nothing changed.
    Unchanged,
    /// It is gone, or the version below is back.
    Deleted,
    /// The version is refused; the last good one, if any, stays in force.
    Refused,
}

/// What [`super::World::apply`] came to.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Objects whose version in force changed, without what a cluster says of what runs.
    pub changed: BTreeSet<ObjectKey>,
    /// One row per `Put`, `Restore` and `Remove`, in order.
    pub outcomes: Vec<(ObjectKey, Outcome)>,
    /// What is wrong with what came.
    pub problems: Vec<Problem>,
    /// Whether what runs changed: states of instances or Gateways, and what a cluster says of its pods, nodes and endpoints.
    pub runtime: bool,
    /// Whether [`super::World::allocations`] or [`super::World::ages`] changed and should be stored.
    pub book: bool,
    /// Whether anything else that is shown may have changed: a refused version, a file's problems. Always, but for what a cluster says.
    pub shown: bool,
}
