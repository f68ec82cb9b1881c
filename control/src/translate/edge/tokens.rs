//! RequestAuthentication at an edge, as proxies are told.

use proto::mesh::{EdgeTokens, TokenRule};

use super::api_key::chosen;
use super::ladder::{Held, Rung};
use crate::world::edge::{ConsumerChoice, Namespaces};
use crate::world::security::authentication::RequestAuthentication;
use crate::world::{Index, Kind, Object, Spec};

impl Rung for RequestAuthentication {
    const KIND: Kind = Kind::RequestAuthentication;

    fn of(object: &Object) -> Option<&Self> {
        if let Spec::RequestAuthentication(spec) = &object.spec { Some(spec) } else { None }
    }

    fn fields(&self) -> Vec<&'static str> {
        let mode = self.optional.is_some().then_some("mode");
        mode.into_iter().chain((!self.rules.is_empty()).then_some("jwtRules")).collect()
    }

    fn take(&mut self, other: &Self, field: &'static str) {
        match field {
            "mode" => self.optional = other.optional,
            _ => self.rules.clone_from(&other.rules),
        }
    }
}

/// A token may be of consumers of the object's own namespace, and of those that a grant lets it refer to: nobody else's Consumer can claim it.
pub(super) fn choice() -> ConsumerChoice {
    ConsumerChoice { namespaces: Namespaces::All, ..ConsumerChoice::default() }
}

/// What holds; without a mode a request without a token goes on, as users of Istio know it.
pub(super) fn sent(index: &Index, held: &Held<'_, RequestAuthentication>) -> EdgeTokens {
    let owner = held.fields.iter().find(|(field, _)| *field == "jwtRules").map(|(_, object)| *object);
    let rules: Vec<TokenRule> = owner.map(|object| held.says.sent(&object.key)).unwrap_or_default();
    EdgeTokens {
        policy: held.by.first().map(|object| object.key.path()).unwrap_or_default(),
        optional: held.says.optional.unwrap_or(true),
        rules,
        consumers: owner.map(|object| chosen(index, object, &choice())),
    }
}
