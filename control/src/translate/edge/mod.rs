//! Edge kinds on their way to a Gateway's proxy (`edge-kinds.md`): what holds for the requests of one rule, per kind and field (`ladder`), as
//! the proxy is told it, and where each object stands with each Gateway (`judge`).

pub(super) mod acme;
mod api_key;
pub(super) mod authorization;
mod basic;
pub(super) mod client;
pub(crate) mod consumers;
pub(super) mod counted;
pub(super) mod external;
mod http3;
mod judge;
pub(super) mod ladder;
pub(super) mod limits;
pub(super) mod login;
mod loosened;
#[cfg(test)]
mod loosened_tests;
mod secret;
mod spots;
mod together;
pub(super) mod tokens;
pub(super) mod webhook;

use std::collections::BTreeSet;

use proto::mesh::EdgePolicy;

pub(super) use external::OwnCheck;
pub(super) use judge::{EdgeAncestor, judge};
use ladder::{Climb, Spot, places};

use super::attach::Backend;
use crate::world::edge::{ApiKeyAuth, BasicAuth, ClientPolicy};
use crate::world::problem::Severity;
use crate::world::security::authentication::RequestAuthentication;
use crate::world::traffic::Place;
use crate::world::{Index, Object, ObjectKey, Spec};

/// What holds for the requests of one rule at a Gateway, its own filter's word with it; `None`: nothing. Adds who is asked. `verifies`: clients
/// show certificates at its listener.
pub(super) fn policy(
    index: &Index,
    spot: &Spot<'_>,
    (own, verifies): (Option<OwnCheck<'_>>, bool),
    backends: &mut BTreeSet<Backend>,
) -> Option<EdgePolicy> {
    if index.edge.is_empty() && own.is_none() && !verifies {
        return None;
    }
    let mut told = at(index, &places(spot), own, backends);
    if verifies && told.unavailable.is_empty() {
        told.certificates = Some(consumers::of_certificates(index, spot.gateway));
    }
    (told != EdgePolicy::default()).then_some(told)
}

/// The same, of the places that a rule belongs to, the narrowest first. One object that never was good closes them all, whatever else holds.
fn at(index: &Index, places: &[Place], own: Option<OwnCheck<'_>>, backends: &mut BTreeSet<Backend>) -> EdgePolicy {
    if let Some(broken) = ladder::broken(index, places) {
        return unavailable(broken);
    }
    let external = match external::sent(index, places, own, backends) {
        Ok(external) => external,
        Err(incomplete) => return unavailable(incomplete),
    };
    let login = match login::sent(index, places) {
        Ok(login) => login,
        Err(incomplete) => return unavailable(incomplete),
    };
    EdgePolicy {
        unavailable: String::new(),
        api_keys: Climb::<ApiKeyAuth>::of(index, places).held().map(|held| api_key::sent(index, &held)),
        basic: Climb::<BasicAuth>::of(index, places).held().map(|held| basic::sent(index, &held)),
        tokens: Climb::<RequestAuthentication>::of(index, places).held().map(|held| tokens::sent(index, &held)),
        authorization: authorization::sent(index, places),
        limits: limits::sent(index, places, backends),
        body_bytes_max: Climb::<ClientPolicy>::of(index, places).held().and_then(|held| held.says.body_bytes).unwrap_or_default(),
        external,
        certificates: None,
        login,
        login_paths: Vec::new(),
        strip_logins: index.has_logins(),
    }
}

/// What is worth to be told about an object, beside where it stands: severity, field, message, remedy.
pub(super) fn findings(index: &Index, object: &Object) -> Vec<(Severity, String, String, String)> {
    match &object.spec {
        Spec::ExternalAuth(spec) => external::findings(spec),
        Spec::OidcLogin(spec) => login::findings(spec, login::is_plain(index, object)),
        _ => Vec::new(),
    }
}

fn unavailable(broken: &ObjectKey) -> EdgePolicy {
    EdgePolicy { unavailable: broken.to_string(), ..EdgePolicy::default() }
}

#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod login_tests;
#[cfg(test)]
mod tests;
