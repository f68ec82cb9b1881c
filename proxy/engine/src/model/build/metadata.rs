//! Our own facts in Envoy's `Metadata`: `filter_metadata["meshwright.dev"]`.

use prost_types::value::Kind;
use proto::xds::core::Metadata;

use crate::rejected::Wrong;

/// A string among our facts; `None` where absent.
pub(super) fn text<'m>(metadata: Option<&'m Metadata>, key: &str) -> Result<Option<&'m str>, Wrong> {
    let facts = metadata.and_then(|metadata| metadata.filter_metadata.get(proto::names::METADATA));
    let Some(value) = facts.and_then(|facts| facts.fields.get(key)) else {
        return Ok(None);
    };
    match &value.kind {
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        _ => Err(Wrong::new(format!("metadata[\"{}\"].{key}", proto::names::METADATA), "is not a string")),
    }
}

/// The same, empty where absent.
pub(super) fn text_or_empty<'m>(metadata: Option<&'m Metadata>, key: &str) -> Result<&'m str, Wrong> {
    Ok(text(metadata, key)?.unwrap_or_default())
}
