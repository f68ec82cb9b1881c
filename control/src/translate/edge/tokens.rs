//! RequestAuthentication at an edge, as proxies are told.

use engine::authenticate::KeysUri;
use proto::mesh::{self, EdgeTokens, TokenRule};

use super::api_key::chosen;
use super::basic::file_name;
use super::ladder::{Held, Rung};
use crate::translate::{dns, external_backend};
use crate::world::edge::{ConsumerChoice, CredentialPlace, Namespaces};
use crate::world::security::authentication::{Introspection, JwtKeys, JwtRule, RequestAuthentication};
use crate::world::{Index, Kind, Object, Spec};

/// Most places where opaque tokens are looked for.
const PLACES_MAX: usize = 16;

impl Rung for RequestAuthentication {
    const KIND: Kind = Kind::RequestAuthentication;

    fn of(object: &Object) -> Option<&Self> {
        if let Spec::RequestAuthentication(spec) = &object.spec { Some(spec) } else { None }
    }

    fn fields(&self) -> Vec<&'static str> {
        let set =
            [("mode", self.optional.is_some()), ("jwtRules", !self.rules.is_empty()), ("introspection", self.introspection.is_some())];
        set.into_iter().filter(|(_, set)| *set).map(|(field, _)| field).collect()
    }

    fn take(&mut self, other: &Self, field: &'static str) {
        match field {
            "mode" => self.optional = other.optional,
            "introspection" => self.introspection.clone_from(&other.introspection),
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
    let owner = |field: &str| held.fields.iter().find(|(known, _)| *known == field).map(|(_, object)| *object);
    let rules: Vec<TokenRule> = owner("jwtRules").map(|object| held.says.sent(&object.key)).unwrap_or_default();
    let asked = owner("introspection").zip(held.says.introspection.as_ref());
    EdgeTokens {
        policy: held.by.first().map(|object| object.key.path()).unwrap_or_default(),
        optional: held.says.optional.unwrap_or(true),
        introspection: asked.map(|(object, said)| introspection(index, object, said, &held.says.rules)),
        rules,
        consumers: owner("jwtRules").map(|object| chosen(index, object, &choice())),
    }
}

/// An opaque token stands where the rules' tokens stand, and goes the same way.
fn introspection(index: &Index, object: &Object, said: &Introspection, rules: &[JwtRule]) -> mesh::Introspection {
    let Introspection { url, client_id, secret, cache, timeout, allow_without, line: _ } = said;
    let header = |name: &String, prefix: &String| CredentialPlace::Header { name: name.clone(), prefix: prefix.clone() };
    let mut from: Vec<CredentialPlace> = Vec::new();
    for rule in rules {
        let listed = rule.headers.iter().map(|(name, prefix)| header(name, prefix));
        let listed = listed.chain(rule.query.iter().cloned().map(CredentialPlace::Query));
        for place in listed.chain(rule.cookies.iter().cloned().map(CredentialPlace::Cookie)) {
            if !from.contains(&place) && from.len() < PLACES_MAX {
                from.push(place);
            }
        }
    }
    if from.is_empty() {
        from.push(header(&"authorization".to_owned(), &"Bearer ".to_owned()));
    }
    mesh::Introspection {
        policy: object.key.path(),
        url: url.uri().to_string(),
        client_id: client_id.clone(),
        secret: secret.as_ref().map(file_name).unwrap_or_default(),
        remembered: prost_types::Duration::try_from(*cache).ok().filter(|_| !cache.is_zero()),
        timeout: prost_types::Duration::try_from(*timeout).ok(),
        allow_without: *allow_without,
        from: from.iter().map(CredentialPlace::sent).collect(),
        keep: rules.iter().any(|rule| rule.forward),
        barred: barred(index, object, url).unwrap_or_default(),
        consumers: Some(chosen(index, object, &choice())),
    }
}

/// Whether the mesh has a host's name, as a namespace says it.
pub(super) fn is_of_mesh(index: &Index, namespace: &str, url: &KeysUri) -> bool {
    dns::record(index, namespace, url.host()).is_some_and(|(record, _)| !record.addresses.is_empty())
}

/// Why an authorization server may not be asked: what lies outside the mesh is for EgressPolicies to allow, those for all of the object's
/// namespace and of the mesh.
pub(in crate::translate) fn barred(index: &Index, object: &Object, url: &KeysUri) -> Option<String> {
    let namespace = &object.key.namespace;
    if url.is_loopback() {
        return near(index, url.host());
    }
    if is_of_mesh(index, namespace, url) {
        return None;
    }
    external_backend::barred(index, namespace, (url.host(), url.port()))
}

/// Why nobody is led to a host that is this machine: in a cluster its objects are many people's, and what else runs beside an edge is not theirs.
pub(super) fn near(index: &Index, host: &str) -> Option<String> {
    let why =
        || format!("{host} is the machine of each of the Gateway's proxies itself, where objects of a cluster lead nobody: name a Service");
    index.in_cluster.then(why)
}

/// The same of keys, which are asked for wherever they are said to be.
pub(super) fn keys_barred(index: &Index, spec: &RequestAuthentication) -> Option<String> {
    let fetched = spec.rules.iter().filter_map(|rule| if let JwtKeys::Fetched(url) = &rule.keys { Some(url) } else { None });
    fetched.filter(|url| url.is_loopback()).find_map(|url| near(index, url.host()))
}
