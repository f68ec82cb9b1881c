//! Our own facts in Envoy's `Metadata`: `filter_metadata["meshwright.dev"]`.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::names::{METADATA, SOCKET_MATCH, TLS_MODE_MESH};
use proto::xds::core::Metadata;

use crate::rejected::Wrong;

/// Refuses what nobody here reads: facts other than `keys`, and the metadata of others.
pub(super) fn only(metadata: Option<&Metadata>, keys: &[&str]) -> Result<(), Wrong> {
    let Some(Metadata { filter_metadata }) = metadata else { return Ok(()) };
    for (whose, Struct { fields }) in filter_metadata {
        let at = |key: &str| format!("metadata[\"{}\"]{key}", whose.escape_debug());
        if whose != METADATA {
            return Err(Wrong::new(at(""), format!("is not read here; facts stand below \"{METADATA}\"")));
        }
        if let Some(key) = fields.keys().find(|key| !keys.contains(&key.as_str())) {
            let known = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
            return Err(Wrong::new(at(&format!(".{}", key.escape_debug())), format!("is not read here; known facts: {known}")));
        }
    }
    Ok(())
}

/// The same for an endpoint, which may also say to stock clients what its identity says to us. True where it does.
pub(super) fn only_of_endpoint(metadata: Option<&Metadata>, keys: &[&str]) -> Result<bool, Wrong> {
    let mut rest = metadata.cloned().unwrap_or_default();
    let Some(wanted) = rest.filter_metadata.remove(SOCKET_MATCH) else {
        return only(metadata, keys).map(|()| false);
    };
    only(Some(&rest), keys)?;
    if mesh_mode(&wanted) {
        return Ok(true);
    }
    let (key, value) = TLS_MODE_MESH;
    Err(Wrong::new(format!("metadata[\"{SOCKET_MATCH}\"]"), format!("is not {{{key}: {value}}}")))
}

/// Whether it says "mesh TLS" and nothing else.
pub(super) fn mesh_mode(Struct { fields }: &Struct) -> bool {
    let (key, value) = TLS_MODE_MESH;
    let text = |found: &Value| matches!(&found.kind, Some(Kind::StringValue(text)) if text == value);
    fields.len() == 1 && fields.get(key).is_some_and(text)
}

/// A string among our facts; `None` where absent.
pub(super) fn text<'m>(metadata: Option<&'m Metadata>, key: &str) -> Result<Option<&'m str>, Wrong> {
    let facts = metadata.and_then(|metadata| metadata.filter_metadata.get(METADATA));
    let Some(value) = facts.and_then(|facts| facts.fields.get(key)) else {
        return Ok(None);
    };
    match &value.kind {
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        _ => Err(Wrong::new(format!("metadata[\"{METADATA}\"].{key}"), "is not a string")),
    }
}

/// The same, empty where absent.
pub(super) fn text_or_empty<'m>(metadata: Option<&'m Metadata>, key: &str) -> Result<&'m str, Wrong> {
    Ok(text(metadata, key)?.unwrap_or_default())
}
