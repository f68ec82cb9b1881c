//! From a type's JSON Schema to a structural one, as CustomResourceDefinitions demand it: everything inline, each field one type, nothing
//! nullable (an API server takes null for absent, as the world's door does), no formats but those it knows.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// Formats that an API server checks, or at least knows. Bounds of numbers are always written out.
const FORMATS: [&str; 1] = ["date-time"];

/// The structural schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structure(&mut schema);
    schema
}

fn structure(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for name in ["$schema", "title"] {
        fields.remove(name);
    }
    merge_alternatives(fields);
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(words)) = fields.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if let Some(word) = fields.remove("const") {
        fields.insert("enum".to_owned(), json!([word]));
    }
    if fields.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format)) {
        fields.remove("format");
    }
    for name in ["properties", "items", "additionalProperties"] {
        match fields.get_mut(name) {
            Some(Value::Object(properties)) if name == "properties" => properties.values_mut().for_each(structure),
            Some(inner) => structure(inner),
            None => {}
        }
    }
}

/// What schemars writes as alternatives is one type: of an optional field it or null, of an enum its words one by one, each described.
fn merge_alternatives(fields: &mut Map<String, Value>) {
    for name in ["anyOf", "oneOf"] {
        let Some(Value::Array(mut alternatives)) = fields.remove(name) else { continue };
        alternatives.retain(|alternative| alternative["type"] != "null");
        let words = |alternative: &Value| match (&alternative["const"], &alternative["enum"]) {
            (Value::Null, Value::Array(words)) => words.clone(),
            (word, _) => vec![word.clone()],
        };
        let merged = match alternatives.as_slice() {
            [only] => only.clone(),
            several => json!({"type": "string", "enum": several.iter().flat_map(words).collect::<Vec<_>>()}),
        };
        let Value::Object(merged) = merged else { continue };
        for (name, value) in merged {
            // What is said of the field goes before what is said of its type.
            fields.entry(name).or_insert(value);
        }
        // An optional enum is both.
        merge_alternatives(fields);
    }
}
