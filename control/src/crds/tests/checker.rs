//! What an API server says of an object by its structural schema: defaults, unknown fields, bounds, lists that are sets or maps, CEL.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cel::{Context, Env, Program};
use regex::Regex;
use serde_json::{Map, Value};

/// Schemas, with what they say compiled.
pub(super) struct Checker {
    language: Arc<Env>,
    programs: HashMap<String, Program>,
    patterns: HashMap<String, Regex>,
}

impl Checker {
    pub(super) fn new() -> Self {
        Self { language: Arc::new(Env::stdlib()), programs: HashMap::new(), patterns: HashMap::new() }
    }

    /// Why an object with its defaults is refused; nothing: it is taken.
    pub(super) fn refusals(&mut self, schema: &Value, object: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        self.check(schema, object, "", &mut wrong);
        if wrong.is_empty() {
            self.rules(schema, object, "", &mut wrong);
        }
        wrong
    }

    fn check(&mut self, schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
        let mut say = |what: &str| wrong.push(format!("{path}: {what}"));
        if let Some(words) = schema.get("enum").and_then(Value::as_array)
            && !words.contains(value)
        {
            say("no such word");
        }
        if schema["x-kubernetes-int-or-string"] == true {
            if !value.is_i64() && !value.is_string() {
                say("neither number nor text");
            }
            return;
        }
        match (schema["type"].as_str().unwrap_or_default(), value) {
            ("boolean", Value::Bool(_)) => {}
            ("integer", Value::Number(said)) if said.is_f64() => say("no whole number"),
            ("integer" | "number", Value::Number(said)) => {
                if !within(schema, said.as_f64().unwrap()) {
                    say("out of range");
                }
            }
            ("string", Value::String(text)) => {
                if let Some(what) = self.text(schema, text) {
                    say(what);
                }
            }
            ("array", Value::Array(items)) => {
                if !counted(schema, "minItems", "maxItems", items.len()) {
                    say("too few or many");
                }
                if twice(schema, items) {
                    say("twice the same");
                }
                for (index, item) in items.iter().enumerate() {
                    self.check(&schema["items"], item, &format!("{path}[{index}]"), wrong);
                }
            }
            ("object", Value::Object(fields)) => {
                if !counted(schema, "minProperties", "maxProperties", fields.len()) {
                    say("too few or many");
                }
                for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if !fields.contains_key(name) {
                        say(&format!("{name} is missing"));
                    }
                }
                for (name, inner) in fields {
                    match field(schema, name) {
                        Some(schema) => self.check(schema, inner, &format!("{path}.{name}"), wrong),
                        None if path == ".metadata" => {}
                        None => wrong.push(format!("{path}.{name}: unknown")),
                    }
                }
            }
            (wanted, _) => say(&format!("no {wanted}")),
        }
    }

    fn text(&mut self, schema: &Value, text: &str) -> Option<&'static str> {
        if !counted(schema, "minLength", "maxLength", text.chars().count()) {
            return Some("too short or long");
        }
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
            let pattern = self.patterns.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).unwrap());
            if !pattern.is_match(text) {
                return Some("not of that form");
            }
        }
        let rfc3339 = &time::format_description::well_known::Rfc3339;
        (schema["format"] == "date-time" && time::OffsetDateTime::parse(text, rfc3339).is_err()).then_some("no time")
    }

    fn rules(&mut self, schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let text = rule["rule"].as_str().unwrap();
            let compiled = self.programs.entry(text.to_owned()).or_insert_with(|| self.language.compile(text).unwrap());
            let mut context = Context::with_env(Arc::clone(&self.language));
            // Milliseconds are compared as durations are.
            context.add_function("duration", |text: Arc<String>| millis(&text)).unwrap();
            context.add_function("timestamp", |text: Arc<String>| moment(&text)).unwrap();
            context.add_variable_from_value("self", as_cel(schema, value));
            match compiled.execute(&context) {
                Ok(cel::Value::Bool(true)) => {}
                Ok(cel::Value::Bool(false)) => wrong.push(format!("{path}: {}", rule["message"])),
                other => panic!("{path}: {text} comes to {other:?} of {value}"),
            }
        }
        match value {
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, item)| self.rules(&schema["items"], item, &format!("{path}[{index}]"), wrong));
            }
            Value::Object(fields) => {
                for (name, inner) in fields {
                    if let Some(schema) = field(schema, name) {
                        self.rules(schema, inner, &format!("{path}.{name}"), wrong);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A time that the schema's form has been asked for before, in seconds since 1970.
fn moment(text: &str) -> i64 {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).map_or(0, time::OffsetDateTime::unix_timestamp)
}

fn within(schema: &Value, said: f64) -> bool {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let above = bound("minimum").is_none_or(|min| said > min || said == min && schema["exclusiveMinimum"] != true);
    above && bound("maximum").is_none_or(|max| said < max || said == max && schema["exclusiveMaximum"] != true)
}

fn counted(schema: &Value, least: &str, most: &str, count: usize) -> bool {
    let bound = |name: &str| schema.get(name).and_then(Value::as_u64).map(|bound| usize::try_from(bound).unwrap());
    (bound(least).unwrap_or(0)..=bound(most).unwrap_or(usize::MAX)).contains(&count)
}

fn twice(schema: &Value, items: &[Value]) -> bool {
    let keys: Vec<String> = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => items.iter().map(Value::to_string).collect(),
        Some("map") => items.iter().map(|item| keys(schema, item)).collect(),
        _ => return false,
    };
    keys.iter().collect::<BTreeSet<_>>().len() < keys.len()
}

/// The schema of a field.
pub(super) fn field<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    schema["properties"].get(name).or_else(|| schema.get("additionalProperties"))
}

fn keys(schema: &Value, item: &Value) -> String {
    schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().map(|key| item[key.as_str().unwrap()].to_string()).collect()
}

/// Numbers with units, added up.
fn millis(mut text: &str) -> i64 {
    let mut total = 0;
    while !text.is_empty() {
        let digits = text.find(|byte: char| !byte.is_ascii_digit()).unwrap();
        let number: i64 = text[..digits].parse().unwrap();
        let end = text[digits..].find(|byte: char| byte.is_ascii_digit()).map_or(text.len(), |next| digits + next);
        total += number
            * [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)].iter().find(|(unit, _)| *unit == &text[digits..end]).unwrap().1;
        text = &text[end..];
    }
    total
}

/// What CEL sees: numbers by the schema's type, as in an API server.
fn as_cel(schema: &Value, value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(flag) => cel::Value::Bool(*flag),
        Value::Number(number) if schema["type"] == "number" => cel::Value::Float(number.as_f64().unwrap()),
        Value::Number(number) => cel::Value::Int(number.as_i64().unwrap()),
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(|item| as_cel(&schema["items"], item)).collect())),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, inner)| (name.clone(), as_cel(field(schema, name).unwrap_or(&Value::Null), inner)));
            fields.collect::<HashMap<_, _>>().into()
        }
    }
}

/// The object with what the schema fills in.
pub(super) fn defaulted(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| defaulted(&schema["items"], item)).collect(),
        Value::Object(fields) => {
            let mut filled = Map::new();
            for (name, inner) in fields {
                filled.insert(name.clone(), field(schema, name).map_or_else(|| inner.clone(), |schema| defaulted(schema, inner)));
            }
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = schema.get("default").filter(|_| !fields.contains_key(name)) {
                    filled.insert(name.clone(), default.clone());
                }
            }
            Value::Object(filled)
        }
        other => other.clone(),
    }
}
