//! Edge kinds (`edge-kinds.md`): what holds at Gateways for requests that come from outside. Every field is honoured or refused here. What all
//! of them share is read here, what each says in a file of its own.

mod acme;
mod api_key;
mod basic;
mod client;
mod consumer;
mod counted_at;
mod external;
mod login;
mod rate_limit;
mod value;

pub use acme::{AcmeChallenge, AcmeDns, AcmeKeyType, AcmeTerms};
pub use api_key::{ApiKeyAuth, ConsumerChoice, Forward, Namespaces};
pub use basic::{BasicAuth, FailureLimit};
pub use client::{ClientPolicy, ClientReach};
pub(super) use consumer::entry;
pub use consumer::{CONSUMER_PAGES, CREDENTIALS_MAX, Claims, Consumer, Credential, CredentialKind, consumer_page, page_of};
pub use counted_at::{CountedAt, RateService, RedisServer};
pub use external::{BodyShown, ExternalAuth, VerdictsKept};
pub(super) use external::{on_error, timeout};
pub use login::{LoginPlaces, LoginProof, LoginSessions, LoginStore, LoginWhen, OidcLogin, SameSite};
pub use rate_limit::EdgeRateLimit;
pub use value::{CredentialPlace, EdgeValue, FilledHeader};

use super::door::{Cursor, Fields, Intake, Judge};
use super::key::{Kind, ObjectKey};
use super::traffic::{Place, PolicyTarget, TARGETS_MAX};
use super::tree::Node;

/// What edge kinds can be about.
const TARGETS: [(&str, Kind); 4] =
    [("Gateway", Kind::Gateway), ("ListenerSet", Kind::ListenerSet), ("HTTPRoute", Kind::HTTPRoute), ("GRPCRoute", Kind::GRPCRoute)];

/// Where an edge object holds: what `targetRefs` names, else all routes of its namespace, else, in the root namespace, the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EdgeAttachment {
    /// What it is about, by name.
    pub targets: Vec<PolicyTarget>,
    /// What it sets cannot be changed below.
    pub locked: bool,
}

impl EdgeAttachment {
    /// Reads `targetRefs` and `locked`.
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let targets = fields.get("targetRefs").map(|at| at.list(TARGETS_MAX)).unwrap_or_default();
        let targets: Vec<PolicyTarget> = targets.iter().filter_map(|at| PolicyTarget::read_of(at, &TARGETS)).collect();
        let locked = fields.get("locked").and_then(|at| at.flag().map(|locked| (locked, at)));
        if let Some((true, at)) = &locked {
            let narrow = targets.iter().any(|target| target.kind.routes_http());
            let namespace = targets.is_empty() && at.key().namespace != proto::annotations::ROOT_NAMESPACE;
            if narrow || namespace {
                at.error(
                    "only what holds for a Gateway, a listener or the mesh can be locked",
                    "remove it, or name a Gateway in targetRefs",
                );
            }
        }
        Self { targets, locked: locked.is_some_and(|(locked, _)| locked) }
    }

    /// The same of kinds that are for sidecars where nothing is named.
    pub(super) fn read_targets(fields: &mut Fields<'_>) -> Self {
        let targets = fields.get("targetRefs").map(|at| at.list(TARGETS_MAX)).unwrap_or_default();
        Self { targets: targets.iter().filter_map(|at| PolicyTarget::read_of(at, &TARGETS)).collect(), locked: false }
    }

    /// Where it holds, seen from the object.
    pub fn places(&self, key: &ObjectKey) -> Vec<Place> {
        if !self.targets.is_empty() {
            return self.targets.iter().map(|target| target.place(&key.namespace)).collect();
        }
        let root = key.namespace == proto::annotations::ROOT_NAMESPACE;
        vec![if root { Place::Mesh } else { Place::Namespace(key.namespace.clone()) }]
    }

    /// Where an object that cannot be taken wants to hold, as far as that can be read. `None`: nobody knows, or it is none of an edge.
    pub(super) fn of_refused(key: &ObjectKey, document: &Node) -> Option<Self> {
        if !key.kind.fails_closed_at_edges() {
            return None;
        }
        let named = document.get("spec").and_then(|spec| spec.get("targetRefs"));
        let Some(named) = named else {
            // Without targets these are for sidecars.
            let inner = matches!(key.kind, Kind::AuthorizationPolicy | Kind::RequestAuthentication);
            return (!inner).then(Self::default);
        };
        // What is wrong with it has been told.
        let door = Intake::new("", key.clone(), Judge::Nobody);
        let targets = Cursor::new(named, "spec.targetRefs", &door);
        if !targets.is_list() {
            return None;
        }
        let targets: Vec<_> = targets.list(TARGETS_MAX).iter().filter_map(|at| PolicyTarget::read_of(at, &TARGETS)).collect();
        (!targets.is_empty()).then_some(Self { targets, locked: false })
    }
}
