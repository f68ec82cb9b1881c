//! What a verified token says of its bearer.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

/// The one claim that is a list in disguise: its words are parted by spaces (RFC 8693, section 4.2).
const SCOPE: &str = "scope";

/// A verified token's claims: from whoever verified it to whoever judges by it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    /// Who issued it.
    pub issuer: Arc<str>,
    /// All claims as they were signed, `iss` among them.
    pub content: Map<String, Value>,
}

impl Claims {
    /// What the claim at `path` says, item by item. A name that holds dots itself is found first, else each dot leads one object deeper.
    /// A text, number or truth is one item, a list its items, `scope` its words; an object and what is absent say nothing.
    pub fn texts<'c>(&'c self, path: &str) -> impl Iterator<Item = Cow<'c, str>> + use<'c> {
        let value = self.value(path);
        let words = value.and_then(Value::as_str).filter(|_| path == SCOPE);
        let items = match value {
            Some(Value::Array(items)) => items.as_slice(),
            Some(_) if words.is_some() => &[],
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        words.unwrap_or_default().split_ascii_whitespace().map(Cow::Borrowed).chain(items.iter().filter_map(text))
    }

    /// Whether the claim at `path` is a list.
    pub(crate) fn is_list(&self, path: &str) -> bool {
        self.value(path).is_some_and(Value::is_array)
    }

    /// The claim at `path`, as it was signed.
    pub(crate) fn value(&self, path: &str) -> Option<&Value> {
        if let Some(value) = self.content.get(path) {
            return Some(value);
        }
        let (first, rest) = path.split_once('.')?;
        let first = self.content.get(first)?;
        rest.split('.').try_fold(first, |value, element| value.as_object()?.get(element))
    }
}

fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(true) => Some(Cow::Borrowed("true")),
        Value::Bool(false) => Some(Cow::Borrowed("false")),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_read_item_by_item() {
        // Aim: every shape that a claim has in the wild yields the texts that a policy compares, and no other.
        let content = json!({
            "sub": "ada", "groups": ["staff", 7, true, null, {"a": 1}, ["deep"]], "level": 3, "admin": false, "scope": " read  write ",
            "realm_access": {"roles": ["a", "b"], "scope": "x y"}, "https://id.example/team": "blue", "name": "Ada Love", "none": null,
        });
        let Value::Object(content) = content else { unreachable!() };
        let claims = Claims { issuer: "https://id.example".into(), content };
        let rows: [(&str, &[&str]); 12] = [
            ("sub", &["ada"]),
            ("groups", &["staff", "7", "true"]),
            ("level", &["3"]),
            ("admin", &["false"]),
            ("scope", &["read", "write"]),
            ("realm_access.roles", &["a", "b"]),
            ("realm_access.scope", &["x y"]),
            ("realm_access", &[]),
            ("https://id.example/team", &["blue"]),
            ("name", &["Ada Love"]),
            ("none", &[]),
            ("sub.more", &[]),
        ];
        for (path, wanted) in rows {
            assert_eq!(claims.texts(path).collect::<Vec<_>>(), wanted, "{path}");
        }
    }
}
