//! One rule for what a pod has of ours already (by an earlier injection, or because its owner wants it otherwise): what is there stays, what
//! is not there is ours. So a second injection changes nothing, and a container that is named like ours overrides it field by field.

use serde_json::{Map, Value};

/// Lists whose items have a name of their own, by which they are told apart; the rest is replaced as a whole.
const NAMED_LISTS: [(&str, &str); 3] = [("env", "name"), ("volumeMounts", "mountPath"), ("ports", "name")];

/// Lays what is there over a container of ours.
pub(crate) fn container(ours: Value, there: &Map<String, Value>) -> Value {
    let Value::Object(mut merged) = ours else { return ours };
    for (field, value) in there {
        let key = NAMED_LISTS.iter().find(|(list, _)| list == field).map(|(_, key)| *key);
        match (key, merged.get_mut(field), value) {
            (Some(key), Some(Value::Array(ours)), Value::Array(theirs)) => named(ours, theirs, key),
            _ => drop(merged.insert(field.clone(), value.clone())),
        }
    }
    Value::Object(merged)
}

/// Each of theirs takes the place of ours of the same name, or comes after all of ours.
fn named(ours: &mut Vec<Value>, theirs: &[Value], key: &str) {
    for one in theirs {
        match ours.iter_mut().find(|own| own[key] == one[key]) {
            Some(own) => *own = one.clone(),
            None => ours.push(one.clone()),
        }
    }
}

/// Adds to a list of a container or pod what it does not have yet by that key.
pub(crate) fn missing(object: &mut Map<String, Value>, list: &str, key: &str, ours: &[Value]) {
    let there = object.entry(list.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
    if there.is_null() {
        *there = Value::Array(Vec::new());
    }
    let Some(there) = there.as_array_mut() else { return };
    for one in ours {
        if !there.iter().any(|own| own[key] == one[key]) {
            there.push(one.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: what is there stays, item by item where items have names; the rest is ours, and our order is kept.
    #[test]
    fn what_is_there_stays() {
        let ours =
            json!({"name": "p", "image": "ours", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["proxy"]});
        let there =
            json!({"name": "p", "resources": {"limits": {"cpu": "1"}}, "env": [{"name": "B", "value": "9"}, {"name": "C"}], "args": []});
        let merged = container(ours, there.as_object().unwrap());
        let wanted = json!({
            "name": "p", "image": "ours", "resources": {"limits": {"cpu": "1"}}, "args": [],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "9"}, {"name": "C"}],
        });
        assert_eq!(merged, wanted);
        assert_eq!(container(json!({"name": "p", "image": "new"}), merged.as_object().unwrap()), wanted, "a second time");
    }

    /// Aim: lists get what they lack, and are made where they are not.
    #[test]
    fn lists_are_completed() {
        for (there, wanted) in [
            (json!({}), json!([{"name": "a"}])),
            (json!({"l": null}), json!([{"name": "a"}])),
            (json!({"l": [{"name": "a", "x": 1}]}), json!([{"name": "a", "x": 1}])),
            (json!({"l": [{"name": "b"}]}), json!([{"name": "b"}, {"name": "a"}])),
            (json!({"l": "text"}), json!("text")),
        ] {
            let mut object = there.as_object().unwrap().clone();
            missing(&mut object, "l", "name", &[json!({"name": "a"})]);
            assert_eq!(object["l"], wanted);
        }
    }
}
