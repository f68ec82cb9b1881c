//! Values, credentials' places and parts of keys, as several edge kinds write them.

use super::Cursor;
use crate::world::traffic::header;

/// Longest text of a value, a prefix or a name, in bytes.
const TEXT_BYTES_MAX: usize = 2048;

/// A value that is written down, or that an expression makes of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgeValue {
    /// As it stands.
    Literal(String),
    /// CEL.
    Cel(String),
}

impl EdgeValue {
    /// As proxies are told.
    pub fn sent(&self) -> proto::mesh::filled_header::Value {
        match self {
            Self::Literal(text) => proto::mesh::filled_header::Value::Literal(text.clone()),
            Self::Cel(text) => proto::mesh::filled_header::Value::Cel(text.clone()),
        }
    }
}

/// A header that is filled, whatever the caller says there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilledHeader {
    /// Its name, in lower case.
    pub name: String,
    /// What it says.
    pub value: EdgeValue,
}

impl FilledHeader {
    /// Reads `{name, value}` or `{name, cel}`.
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let name = fields.need("name").and_then(|at| {
            let name = short_header(&at)?;
            if !engine::model::build::claim_header(&name) {
                at.error(format!("`{name}` is not a policy's to fill"), "choose a header of your own, such as x-consumer");
                return None;
            }
            Some(name)
        });
        let (value, cel) = (fields.get("value"), fields.get("cel"));
        fields.done();
        let value = match (value, cel) {
            (Some(at), None) => at.text().and_then(|text| {
                if http::HeaderValue::from_str(&text).is_err() || text.len() > TEXT_BYTES_MAX {
                    at.error("it is no header's value", format!("use at most {TEXT_BYTES_MAX} visible characters"));
                    return None;
                }
                Some(EdgeValue::Literal(text))
            }),
            (None, Some(at)) => cel_value(&at).map(EdgeValue::Cel),
            _ => {
                at.error("it says not what stands in the header", "write either `value` or `cel`");
                None
            }
        };
        Some(Self { name: name?, value: value? })
    }

    /// As proxies are told.
    pub fn sent(&self) -> proto::mesh::FilledHeader {
        proto::mesh::FilledHeader { name: self.name.clone(), value: Some(self.value.sent()) }
    }
}

/// An expression whose outcome is a text, as the proxy's own engine takes it.
pub(super) fn cel_value(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if let Err(wrong) = engine::authorize::check_value(&text) {
        at.error(format!("the expression {wrong}"), "see docs/edge-auth.md for what it may say");
        return None;
    }
    Some(text)
}

/// Where a credential may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialPlace {
    /// Behind these first bytes of a header.
    Header {
        /// Its name, in lower case.
        name: String,
        /// What stands before the credential.
        prefix: String,
    },
    /// A parameter of the query.
    Query(String),
    /// A cookie.
    Cookie(String),
}

impl CredentialPlace {
    /// Reads one of `{header, prefix}`, `{query}` and `{cookie}`.
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let header = fields.get("header");
        let prefix = fields.get("prefix");
        let (query, cookie) = (fields.get("query"), fields.get("cookie"));
        fields.done();
        if header.is_none()
            && let Some(prefix) = &prefix
        {
            prefix.error("a prefix belongs to a header", "name the header, or remove it");
        }
        match (header, query, cookie) {
            (Some(at), None, None) => {
                let prefix = match prefix {
                    Some(at) => {
                        let text = at.text()?;
                        if text.len() > TEXT_BYTES_MAX {
                            at.error(format!("{} bytes", text.len()), format!("use at most {TEXT_BYTES_MAX}"));
                            return None;
                        }
                        text
                    }
                    None => String::new(),
                };
                let name = short_header(&at)?;
                if matches!(name.as_str(), "host" | "cookie") {
                    at.error(format!("`{name}` holds no credential"), "name a header of its own, or `cookie: NAME`");
                    return None;
                }
                Some(Self::Header { name, prefix })
            }
            (None, Some(at), None) => name(&at).map(Self::Query),
            (None, None, Some(at)) => cookie_name(&at).map(Self::Cookie),
            _ => {
                at.error("it names not one place", "write one of `header`, `query` and `cookie`");
                None
            }
        }
    }

    /// As proxies are told.
    pub fn sent(&self) -> proto::mesh::CredentialPlace {
        use proto::mesh::credential_place::Kind;
        let kind = match self {
            Self::Header { name, prefix } => Kind::Header(proto::mesh::CredentialHeader { name: name.clone(), prefix: prefix.clone() }),
            Self::Query(name) => Kind::Query(name.clone()),
            Self::Cookie(name) => Kind::Cookie(name.clone()),
        };
        proto::mesh::CredentialPlace { kind: Some(kind) }
    }
}

/// A header's name of at most 2048 bytes.
fn short_header(at: &Cursor<'_>) -> Option<String> {
    let name = header(at)?;
    if name.len() > TEXT_BYTES_MAX {
        at.error(format!("{} bytes", name.len()), format!("use at most {TEXT_BYTES_MAX}"));
        return None;
    }
    Some(name)
}

/// A name of 1 to 2048 bytes.
pub(super) fn name(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        at.error(format!("{} bytes", text.len()), format!("use 1 to {TEXT_BYTES_MAX}"));
        return None;
    }
    Some(text)
}

/// A token (RFC 6265, section 4.1.1), as a header's name is.
fn cookie_name(at: &Cursor<'_>) -> Option<String> {
    let name = name(at)?;
    if http::HeaderName::try_from(name.as_str()).is_err() {
        at.error(format!("`{}` is no cookie's name", name.escape_debug()), "use letters, digits and `-`");
        return None;
    }
    Some(name)
}
