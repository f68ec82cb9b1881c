//! Good objects made bad, systematically.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Value, json};

use super::checker::field;

/// An object, and what was done to it.
pub(super) struct Spoilt {
    pub(super) what: String,
    pub(super) object: Value,
}

/// Longer than any text may be that has a bound.
const LONG: usize = 5_000;
/// Longer lists are not made: what they hold takes the door too long.
const ITEMS_MAX: usize = 300;

/// Every change of every place of an object's spec, one at a time.
pub(super) fn spoilt(schema: &Value, object: &Value, examples: &[(String, Value)], seen: &mut BTreeSet<String>) -> Vec<Spoilt> {
    let mut all = Vec::new();
    if let Some(spec) = object.get("spec") {
        let kind = object["kind"].as_str().unwrap();
        let siblings: Vec<&Value> = examples.iter().filter(|(of, _)| of == kind).map(|(_, object)| object).collect();
        visit(&schema["properties"]["spec"], spec, "/spec", object, &siblings, seen, &mut all);
    }
    for (pointer, value) in [("/metadata/name", json!("other")), ("/metadata/namespace", json!("other"))] {
        all.push(set(object, pointer, value));
    }
    all
}

fn visit(
    schema: &Value,
    value: &Value,
    pointer: &str,
    object: &Value,
    siblings: &[&Value],
    seen: &mut BTreeSet<String>,
    all: &mut Vec<Spoilt>,
) {
    all.push(Spoilt { what: format!("without {pointer}"), object: without(object, pointer) });
    // A leaf is spoilt in the first example that has it, of each type that stands beside it.
    let leaf = !value.is_object() && !value.is_array();
    let beside = pointer.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent)).map(|parent| parent["type"].to_string());
    if leaf && !seen.insert(format!("{} {} {beside:?}", object["kind"], general(&dotted(pointer)))) {
        return;
    }
    for other in replacements(schema).into_iter().filter(|other| other != value) {
        all.push(set(object, pointer, other));
    }
    match value {
        Value::Object(fields) => {
            all.push(set(object, &format!("{pointer}/stranger"), json!(1)));
            for (name, inner) in fields {
                visit(field(schema, name).unwrap(), inner, &format!("{pointer}/{}", escaped(name)), object, siblings, seen, all);
            }
            // What stands at that place in other examples of the kind.
            let place = general(&dotted(pointer));
            for name in
                schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name).filter(|name| !fields.contains_key(*name))
            {
                let mut found = BTreeSet::new();
                for sibling in siblings {
                    found_at(sibling, "", &format!("{place}.{name}"), &mut found);
                }
                all.extend(found.iter().map(|text| set(object, &format!("{pointer}/{name}"), serde_json::from_str(text).unwrap())));
            }
            if schema.get("additionalProperties").is_some() {
                for key in ["", "0", "65536", "a.b", "a..b", "080"] {
                    let inner = fields.values().next().cloned().unwrap_or_else(|| json!("x"));
                    all.push(set(object, &format!("{pointer}/{key}"), inner));
                }
            }
        }
        Value::Array(items) => {
            // None, one twice, and what lies around the bound.
            let bound = schema["maxItems"].as_u64().map_or(ITEMS_MAX, |bound| usize::try_from(bound).unwrap());
            for length in [0, 1, 2, bound, bound + 1].into_iter().filter(|length| *length <= ITEMS_MAX) {
                if let Some(first) = items.first() {
                    all.push(set(object, pointer, Value::Array(vec![first.clone(); length])));
                }
            }
            for (index, inner) in items.iter().enumerate() {
                visit(&schema["items"], inner, &format!("{pointer}/{index}"), object, siblings, seen, all);
            }
        }
        _ => {}
    }
}

/// What is put in place of a value.
fn replacements(schema: &Value) -> Vec<Value> {
    let texts = [
        "",
        "x",
        "-",
        "Other Word",
        "0s",
        "1ms",
        "20ms",
        "1h",
        "99999h",
        "1m1m1m1m1m",
        "é",
        "a..b",
        "/",
        "//",
        "/a b",
        "80",
        "1.2.3.4",
        "999.0.0.1",
        "*",
        "UPPER",
        "a_b",
        ".",
        "http://h:1/",
        "https://h/k",
        "a,b",
        "é/sa/x",
    ];
    let numbers = [
        json!(-1),
        json!(0),
        json!(1),
        json!(7),
        json!(100),
        json!(101),
        json!(599),
        json!(600),
        json!(65_536),
        json!(1_000_001),
        json!(20_000_000),
        json!(3_000_000_000_u64),
        json!(0.5),
        json!(99.5),
        json!(100.5),
    ];
    let others = [json!(true), json!(false), json!([]), json!({}), json!(["x"]), json!({"x": 1}), json!([1])];
    let long = Value::from("a".repeat(LONG));
    // Of another type one of each sort is enough.
    let textual = schema["type"] == "string" || schema["x-kubernetes-int-or-string"] == true;
    let texts = texts.iter().map(|text| json!(text)).take(if textual { usize::MAX } else { 2 });
    let numbers = numbers.into_iter().rev().take(if textual { 2 } else { usize::MAX });
    texts.chain(numbers).chain(others).chain([long].into_iter().filter(|_| textual)).collect()
}

fn found_at(value: &Value, path: &str, wanted: &str, found: &mut BTreeSet<String>) {
    if path == wanted {
        found.insert(value.to_string());
    }
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                found_at(inner, &path, wanted, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| found_at(item, &format!("{path}[]"), wanted, found)),
        _ => {}
    }
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn set(object: &Value, pointer: &str, value: Value) -> Spoilt {
    let mut object = object.clone();
    let shown: String = value.to_string().chars().take(60).collect();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let name = name.replace("~1", "/").replace("~0", "~");
    match object.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.insert(name, value)),
        Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
        _ => {}
    }
    Spoilt { what: format!("{pointer} = {shown}"), object }
}

fn without(object: &Value, pointer: &str) -> Value {
    let mut object = object.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.remove(&name.replace("~1", "/").replace("~0", "~"))),
        Value::Array(items) => drop(items.remove(name.parse().unwrap())),
        _ => {}
    }
    object
}

/// `/spec/a/0/b` as `spec.a[0].b`.
pub(super) fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        match part.parse::<usize>() {
            Ok(index) if !path.ends_with("portLevelMtls") => path += &format!("[{index}]"),
            _ if path.is_empty() => path += part,
            _ => path += &format!(".{}", part.replace("~1", "/")),
        }
    }
    path
}

/// A path without the numbers of places in lists.
pub(super) fn general(path: &str) -> String {
    let mut general = String::new();
    let mut inside = false;
    for letter in path.chars() {
        inside = letter == '[' || inside && letter != ']';
        if !inside || letter == '[' {
            general.push(letter);
        }
    }
    general
}

/// Pointers to all mappings with named fields.
pub(super) fn mappings(schema: &Value, value: &Value, pointer: &str) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let own = schema.get("additionalProperties").is_none().then(|| pointer.to_owned());
            let below = fields
                .iter()
                .flat_map(|(name, inner)| mappings(field(schema, name).unwrap(), inner, &format!("{pointer}/{}", escaped(name))));
            own.into_iter().chain(below).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, inner)| mappings(&schema["items"], inner, &format!("{pointer}/{index}"))).collect()
        }
        _ => Vec::new(),
    }
}

/// The schema of what a pointer leads to.
pub(super) fn schema_at<'s>(schema: &'s Value, pointer: &str) -> &'s Value {
    pointer.split('/').skip(1).fold(schema, |schema, part| match schema.get("items") {
        Some(items) => items,
        None => field(schema, part).unwrap(),
    })
}

/// Every text in the door's sources that could be a field's name.
pub(super) fn words_of_the_door() -> BTreeSet<String> {
    let word = Regex::new(r#""([a-z][A-Za-z]+)""#).unwrap();
    let mut words = BTreeSet::new();
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/world")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(path).unwrap();
                words.extend(word.captures_iter(&text).map(|found| found[1].to_owned()));
            }
        }
    }
    words
}
