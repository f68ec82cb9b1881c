//! Schema and door are two readers of the same objects: these tests give both the same, good and spoilt in every way, and compare.

mod checker;
mod spoil;

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::source::parse;
use crate::world::Candidate;
use checker::{Checker, defaulted, field};
use spoil::{Spoilt, spoilt};

const EXAMPLES: &str = include_str!("examples.yaml");

/// Where the schema takes what the door refuses: kind, field (list places as `[]`, `*` at the end for any), and the door's words. Everything
/// else is refused by both or by neither. Left to the door, and to the webhook that asks it, is what no schema sees or can afford: where an
/// object stands, other fields of long lists, texts with a grammar of their own, and what a proxy can hold.
const WEAKER: &[(&str, &str, &str)] = &[
    ("ApiKeyAuth", "spec.forward.headers[].cel", "the expression"),
    ("ApiKeyAuth", "spec.locked", "can be locked"),
    ("AuthorizationPolicy", "spec", "judged at Gateways only"),
    ("AuthorizationPolicy", "spec", "proxies would not take it"),
    ("AuthorizationPolicy", "spec.rules[]", "stands twice"),
    ("AuthorizationPolicy", "spec.rules[].from[].ipBlocks[]", "is no range of addresses"),
    ("AuthorizationPolicy", "spec.rules[].from[].jwt.claims.*", "is no claim"),
    ("AuthorizationPolicy", "spec.rules[].from[].peerIpBlocks[]", "is no range of addresses"),
    ("AuthorizationPolicy", "spec.rules[].not.from[].ipBlocks[]", "is no range of addresses"),
    ("AuthorizationPolicy", "spec.rules[].not.from[].jwt.claims.*", "is no claim"),
    ("AuthorizationPolicy", "spec.rules[].not.from[].peerIpBlocks[]", "is no range of addresses"),
    ("AuthorizationPolicy", "spec.rules[].not.to[].headers[].value", "is no regular expression"),
    ("AuthorizationPolicy", "spec.rules[].not.to[].paths[].value", ""),
    ("AuthorizationPolicy", "spec.rules[].to[].paths[].value", ""),
    ("AuthorizationPolicy", "spec.rules[].when", "the condition"),
    ("BasicAuth", "spec.forward.headers[].cel", "the expression"),
    ("ClientPolicy", "spec", "only limits.bodyBytes"),
    ("ClientPolicy", "spec.acme.dns01.resolvers[]", "is no address of a resolver"),
    ("ClientPolicy", "spec.clientAddress.trustedCidrs[]", "is no range of addresses"),
    ("ClientPolicy", "spec.locked", "can be locked"),
    ("ClientPolicy", "spec.proxyProtocol.trustedCidrs[]", "is no range of addresses"),
    ("ExternalAuth", "spec.cache.key[].cel", "the expression"),
    ("ExternalAuth", "spec.locked", "can be locked"),
    ("ExternalAuth", "spec.when", "the condition"),
    ("OidcLogin", "spec.locked", "can be locked"),
    ("EgressPolicy", "spec.allow[].cidrs[]", "is no range of addresses"),
    ("EgressPolicy", "spec.allow[].hosts[]", "is an address and no name"),
    ("EgressPolicy", "spec.allow[].hosts[]", "is no name"),
    ("EgressPolicy", "spec.allow[].tls.originate.sni", "is no server's name"),
    ("Mesh", "", "there is one Mesh object only"),
    ("RateLimit", "spec.bandwidth[].key[].claim", "before authentication"),
    ("RateLimit", "spec.bandwidth[].key[].consumer", "before authentication"),
    ("RateLimit", "spec.concurrency[].key[].claim", "before authentication"),
    ("RateLimit", "spec.concurrency[].key[].consumer", "before authentication"),
    ("RateLimit", "spec.bandwidth[].key[].cel", "the expression"),
    ("RateLimit", "spec.concurrency[].key[].cel", "the expression"),
    ("RateLimit", "spec.limits[].cost", "the expression"),
    ("RateLimit", "spec.limits[].key[].cel", "the expression"),
    ("RateLimit", "spec.limits[].per", "no such period"),
    ("RateLimit", "spec.limits[].quota.timeZone", "is no time zone"),
    ("RateLimit", "spec.limits[].when", "the condition"),
    ("RateLimit", "spec.locked", "can be locked"),
    ("RateLimit", "spec.store.rls.descriptors[].entries[].from.cel", "the expression"),
    ("RateLimit", "spec.store.rls.descriptors[].entries[].from.claim", "before authentication"),
    ("RateLimit", "spec.store.rls.descriptors[].entries[].from.consumer", "before authentication"),
    ("RequestAuthentication", "spec.jwtRules[].jwks", "no key set"),
    ("Revocation", "spec", "in its root namespace only"),
    ("Telemetry", "spec.accessLog.fields", "is named twice"),
    ("Telemetry", "spec.accessLog.fields[]", "is no field of the access log"),
    ("Telemetry", "spec.accessLog.filter", "the filter"),
    ("Telemetry", "spec.accessLog.sinks[]", "one and the same"),
    ("Telemetry", "spec.accessLog.sinks[].als.backendRef", "alone"),
    ("TrafficPolicy", "spec.faults[].match.paths[].value", "is no path"),
    ("TrafficPolicy", "spec.faults[].match.paths[].value", "is no regular expression"),
    ("Workload", "spec.addresses[]", "no IP address"),
    ("Workload", "spec.readinessProbe.httpGet.port", "no port is named"),
    ("Workload", "spec.readinessProbe.tcpSocket.port", "no port is named"),
];

/// Whether a place is that of an exception.
fn stands_at(place: &str, at: &str) -> bool {
    at.strip_suffix('*').map_or(place == at, |before| place.starts_with(before))
}

fn schema(kind: &str) -> Value {
    DEFINITIONS.iter().find(|definition| definition.kind.text() == kind).unwrap().schema()
}

fn door(object: &Value) -> Candidate {
    parse("f.yaml", &object.to_string()).candidates.remove(0)
}

fn errors(candidate: &Candidate) -> Vec<(String, String)> {
    let errors = candidate.problems.iter().filter(|problem| problem.severity == crate::world::Severity::Error);
    errors.map(|problem| (problem.field.clone(), problem.message.clone())).collect()
}

fn examples() -> Vec<(String, Value)> {
    let read = parse("examples.yaml", EXAMPLES);
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    crate::world::tree::documents(EXAMPLES)
        .into_iter()
        .map(|document| {
            let object = document.unwrap().json();
            (object["kind"].as_str().unwrap().to_owned(), object)
        })
        .collect()
}

#[test]
fn every_field_has_an_example_and_every_example_is_good() {
    // Aim: door and schema take all examples, defaults change nothing, and no field of a schema is without an example of it.
    let mut checker = Checker::new();
    let mut said = BTreeSet::new();
    for (kind, object) in examples() {
        let schema = schema(&kind);
        let whole = defaulted(&schema, &object);
        assert_eq!(checker.refusals(&schema, &whole), Vec::<String>::new(), "{object}");
        let (written, filled) = (door(&object), door(&whole));
        assert_eq!(errors(&written), [], "{object}");
        let spec = |candidate: &Candidate| candidate.object.as_ref().map(|object| object.spec.clone());
        assert_eq!(spec(&written), spec(&filled), "a default means something else: {object}");
        fields(&schema, &object, &kind, &mut said);
    }
    for definition in DEFINITIONS {
        let mut all = BTreeSet::new();
        places(&definition.schema()["properties"]["spec"], &format!("{}.spec", definition.kind), &mut all);
        let missing: Vec<_> = all.difference(&said).collect();
        assert!(missing.is_empty(), "without an example: {missing:?}");
    }
}

/// The places of an object that its schema names.
fn fields(schema: &Value, value: &Value, path: &str, said: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| fields(&schema["items"], item, path, said)),
        Value::Object(entries) => {
            for (name, inner) in entries {
                let path = format!("{path}.{name}");
                if let Some(schema) = field(schema, name) {
                    fields(schema, inner, &path, said);
                }
                said.insert(path);
            }
        }
        _ => {}
    }
}

/// The places that a schema names.
fn places(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        places(inner, &path, all);
        all.insert(path);
    }
    if let Some(items) = schema.get("items") {
        places(items, path, all);
    }
}

#[test]
fn door_and_schema_judge_alike() {
    // Aim: each field of each example missing, of another type, out of bounds, of another form, beside strangers: both refuse, or neither,
    // but for the named exceptions, each of which is needed.
    let mut checker = Checker::new();
    let mut used = BTreeSet::new();
    let mut differ = BTreeSet::new();
    let mut judged = 0;
    let (examples, mut seen) = (examples(), BTreeSet::new());
    for (kind, object) in &examples {
        let schema = schema(kind);
        for Spoilt { what, object } in spoilt(&schema, object, &examples, &mut seen) {
            judged += 1;
            let refusals = checker.refusals(&schema, &defaulted(&schema, &object));
            let errors = errors(&door(&object));
            match (refusals.first(), errors.first()) {
                (None, None) | (Some(_), Some(_)) => {}
                (Some(refusal), None) => {
                    differ.insert(format!("{kind} {what}: only the schema refuses: {refusal}"));
                }
                (None, Some(_)) => {
                    for (place, message) in errors {
                        let place = spoil::general(&place);
                        let excepted =
                            WEAKER.iter().position(|(of, at, word)| of == kind && stands_at(&place, at) && message.contains(word));
                        match excepted {
                            Some(index) => used.extend([index]),
                            None => drop(differ.insert(format!("{kind} {place}: only the door refuses {what}: {message}"))),
                        }
                    }
                }
            }
        }
    }
    let shown: Vec<_> = differ.iter().take(40).cloned().collect();
    assert!(differ.is_empty(), "{} of {judged} differ:\n{}", differ.len(), shown.join("\n"));
    let idle: Vec<_> = WEAKER.iter().enumerate().filter(|(index, _)| !used.contains(index)).map(|(_, row)| row).collect();
    assert!(idle.is_empty(), "not needed: {idle:?}");
    assert!(judged > 5_000, "{judged}");
}

#[test]
fn the_door_asks_for_no_field_that_the_schema_lacks() {
    // Aim: of every word that stands in the door's sources, none is a field that the door takes and the schema prunes.
    let words = spoil::words_of_the_door();
    assert!(words.len() > 200, "{}", words.len());
    let mut checked = 0;
    for (kind, object) in examples() {
        let schema = schema(&kind);
        for pointer in spoil::mappings(&schema["properties"]["spec"], &object["spec"], "/spec") {
            let mut object = object.clone();
            let place = object.pointer_mut(&pointer).unwrap().as_object_mut().unwrap();
            let known = spoil::schema_at(&schema, &pointer);
            let added: Vec<_> = words.iter().filter(|word| field(known, word).is_none()).collect();
            place.extend(added.iter().map(|word| ((*word).clone(), Value::from("?"))));
            let path = spoil::dotted(&pointer);
            let errors = errors(&door(&object));
            for word in added {
                let refused = errors.iter().any(|(at, message)| {
                    *at == format!("{path}.{word}") && (message.starts_with("unknown field") || message == "not supported by this version")
                });
                assert!(refused || elsewhere(&kind, word), "{kind} {path}.{word} is not in the schema");
                checked += 1;
            }
        }
    }
    assert!(checked > 20_000, "{checked}");
}

/// Fields that the door knows in order to say where they belong.
fn elsewhere(kind: &str, word: &str) -> bool {
    matches!(
        (kind, word),
        (
            "TrafficPolicy"
                | "AuthorizationPolicy"
                | "RequestAuthentication"
                | "ApiKeyAuth"
                | "BasicAuth"
                | "RateLimit"
                | "ExternalAuth"
                | "OidcLogin"
                | "ClientPolicy"
                | "Telemetry",
            "namespace"
        ) | ("Telemetry", "sectionName")
    )
}

#[test]
fn definitions_are_structural() {
    // Aim: what the rules of CustomResourceDefinitions say of schemas: each value one known type, nothing shared, nothing open.
    fn walk(schema: &Value, path: &str) {
        const KNOWN: [&str; 24] = [
            "type",
            "description",
            "properties",
            "items",
            "additionalProperties",
            "required",
            "enum",
            "pattern",
            "format",
            "default",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "x-kubernetes-validations",
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-int-or-string",
        ];
        let fields = schema.as_object().unwrap();
        fields.keys().for_each(|name| assert!(KNOWN.contains(&name.as_str()), "{path}: {name}"));
        let typed = matches!(schema["type"].as_str(), Some("object" | "array" | "string" | "integer" | "number" | "boolean"));
        assert!(typed != (schema["x-kubernetes-int-or-string"] == true), "{path}: {schema}");
        assert!(!(fields.contains_key("properties") && fields.contains_key("additionalProperties")), "{path}");
        assert_eq!(schema["type"] == "array", fields.contains_key("items"), "{path}");
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            assert!(inner["description"].is_string() || path.is_empty(), "{path}.{name} has no description");
            walk(inner, &format!("{path}.{name}"));
        }
        for inner in ["items", "additionalProperties"].iter().filter_map(|name| schema.get(name)) {
            walk(inner, path);
        }
    }
    for definition in DEFINITIONS {
        walk(&definition.schema(), "");
        assert_eq!(definition.resource().to_string(), definition.resource().to_string());
    }
    let named: BTreeSet<Kind> = DEFINITIONS.iter().map(|definition| definition.kind).collect();
    let ours: BTreeSet<Kind> = Kind::ALL.into_iter().filter(|kind| kind.own()).collect();
    assert_eq!(named, ours, "every kind of ours that has an effect has a definition");
}
