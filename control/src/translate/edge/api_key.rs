//! ApiKeyAuth as proxies are told.

use proto::mesh::{self, ApiKeys};

use super::ladder::{Held, Rung};
use crate::world::edge::{ApiKeyAuth, ConsumerChoice, CredentialPlace, FilledHeader, Namespaces};
use crate::world::key::OWN;
use crate::world::{Index, Kind, Object, ObjectKey, Spec};

impl Rung for ApiKeyAuth {
    const KIND: Kind = Kind::ApiKeyAuth;

    fn of(object: &Object) -> Option<&Self> {
        if let Spec::ApiKeyAuth(spec) = &object.spec { Some(spec) } else { None }
    }

    fn fields(&self) -> Vec<&'static str> {
        let Self { attachment: _, optional, from, consumers, scopes, forward } = self;
        let set = [
            ("mode", optional.is_some()),
            ("from", from.is_some()),
            ("consumers", consumers.is_some()),
            ("scopes", scopes.is_some()),
            ("forward.credential", forward.keep.is_some()),
            ("forward.headers", forward.headers.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(field, _)| field).collect()
    }

    fn take(&mut self, other: &Self, field: &'static str) {
        match field {
            "mode" => self.optional = other.optional,
            "from" => self.from.clone_from(&other.from),
            "consumers" => self.consumers.clone_from(&other.consumers),
            "scopes" => self.scopes.clone_from(&other.scopes),
            "forward.credential" => self.forward.keep = other.forward.keep,
            _ => self.forward.headers.clone_from(&other.forward.headers),
        }
    }
}

/// What holds, defaults filled in.
pub(super) fn sent(index: &Index, held: &Held<'_, ApiKeyAuth>) -> ApiKeys {
    let ApiKeyAuth { attachment: _, optional, from, consumers, scopes, forward } = &held.says;
    let place = |name: &str, prefix: &str| CredentialPlace::Header { name: name.to_owned(), prefix: prefix.to_owned() };
    let usual = || vec![place("x-api-key", ""), place("authorization", "Bearer ")];
    ApiKeys {
        policy: held.by.first().map(|object| object.key.path()).unwrap_or_default(),
        optional: optional.unwrap_or_default(),
        from: from.clone().unwrap_or_else(usual).iter().map(CredentialPlace::sent).collect(),
        consumers: Some(choice_of(index, held, consumers.as_ref())),
        scopes: scopes.clone().unwrap_or_default(),
        keep: forward.keep.unwrap_or_default(),
        headers: forward.headers.iter().flatten().map(FilledHeader::sent).collect(),
    }
}

/// Whose credentials count: `Same` is the namespace of the object that says so, else of the narrowest that holds.
pub(super) fn choice_of<T>(index: &Index, held: &Held<'_, T>, said: Option<&ConsumerChoice>) -> mesh::ConsumerChoice {
    let by = held.fields.iter().find(|(field, _)| *field == "consumers").map(|(_, object)| *object);
    let object = by.or(held.by.first().copied());
    let said = said.cloned().unwrap_or_default();
    object.map(|object| chosen(index, object, &said)).unwrap_or_default()
}

/// The same of one object's own word.
pub(in crate::translate) fn chosen(index: &Index, object: &Object, said: &ConsumerChoice) -> mesh::ConsumerChoice {
    let ObjectKey { kind, namespace, .. } = &object.key;
    chosen_by(index, (OWN, kind.text(), namespace), said)
}

/// The same of an object of that group, kind and namespace.
pub(super) fn chosen_by(index: &Index, from: (&str, &str, &str), said: &ConsumerChoice) -> mesh::ConsumerChoice {
    let own = from.2;
    let mut choice = mesh::ConsumerChoice { namespaces: vec![own.to_owned()], names: Vec::new(), labels: said.labels.clone() };
    if said.namespaces == Namespaces::All {
        for (namespace, grants) in index.grants.iter().filter(|(namespace, _)| *namespace != own) {
            if index.granted_all(from, namespace, (OWN, "Consumer")) {
                choice.namespaces.push(namespace.clone());
                continue;
            }
            for object in grants {
                let Spec::ReferenceGrant(grant) = &object.spec else { continue };
                let of = grant.from.iter().any(|(group, kind, namespace)| (group.as_str(), kind.as_str(), namespace.as_str()) == from);
                let named = grant.to.iter().filter(|(group, kind, _)| of && group == OWN && kind == "Consumer");
                choice.names.extend(named.filter_map(|(.., name)| Some(format!("{namespace}/{}", name.as_ref()?))));
            }
        }
        choice.names.sort_unstable();
        choice.names.dedup();
    }
    choice
}
