//! The header operations that both header filters share, compiled from Envoy's `HeaderValueOption`.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use proto::xds::core::header_value_option::HeaderAppendAction;
use proto::xds::core::{HeaderValue as RawValue, HeaderValueOption};

use crate::rejected::{Wrong, refuse};

/// Most operations in one filter.
pub const HEADER_OPS_MAX: usize = 64;
/// Longest header value that a filter may write, in bytes.
pub const HEADER_VALUE_BYTES_MAX: usize = 16 << 10;

/// Which message the operations are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Request,
    Response,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderOp {
    /// Deletes every value.
    Remove(HeaderName),
    /// Replaces every value, or adds.
    Set(HeaderName, HeaderValue),
    /// Adds beside what is there.
    Add(HeaderName, HeaderValue),
    /// Adds where there is none.
    AddIfAbsent(HeaderName, HeaderValue),
    /// Replaces where there is one.
    OverwriteIfPresent(HeaderName, HeaderValue),
}

impl HeaderOp {
    /// Carries it out.
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Remove(name) => {
                headers.remove(name);
            }
            Self::Set(name, value) => {
                headers.insert(name.clone(), value.clone());
            }
            Self::Add(name, value) => {
                headers.append(name.clone(), value.clone());
            }
            Self::AddIfAbsent(name, value) => {
                headers.entry(name.clone()).or_insert_with(|| value.clone());
            }
            Self::OverwriteIfPresent(name, value) => {
                if headers.contains_key(name) {
                    headers.insert(name.clone(), value.clone());
                }
            }
        }
    }
}

/// Operations in the order they are applied: removals first, as Envoy does, then the others as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderOps(Vec<HeaderOp>);

impl HeaderOps {
    pub(super) fn compile(add: &[HeaderValueOption], remove: &[String], side: Message) -> Result<Option<Self>, Wrong> {
        let prefix = if side == Message::Request { "request_headers" } else { "response_headers" };
        if add.len() + remove.len() > HEADER_OPS_MAX {
            return Err(Wrong::new(format!("{prefix}_to_add"), format!("more than {HEADER_OPS_MAX} header operations")));
        }
        let mut ops = Vec::with_capacity(add.len() + remove.len());
        for (index, text) in remove.iter().enumerate() {
            let at = |wrong: Wrong| wrong.within(format!("{prefix}_to_remove[{index}]"));
            let name = name(text).map_err(at)?;
            if name == header::HOST {
                return Err(at(Wrong::new("", "`host` cannot be removed")));
            }
            ops.push(HeaderOp::Remove(name));
        }
        for (index, option) in add.iter().enumerate() {
            ops.push(op(option, side).map_err(|wrong| wrong.within(format!("{prefix}_to_add[{index}]")))?);
        }
        Ok(if ops.is_empty() { None } else { Some(Self(ops)) })
    }

    /// Carries the operations out.
    pub fn apply(&self, headers: &mut HeaderMap) {
        self.0.iter().for_each(|op| op.apply(headers));
    }

    /// In order.
    pub fn ops(&self) -> &[HeaderOp] {
        &self.0
    }

    pub(super) fn story(&self) -> String {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|op| match op {
                HeaderOp::Remove(name) => format!("removes {name}"),
                HeaderOp::Set(name, value) => format!("sets {name} to {value:?}"),
                HeaderOp::Add(name, value) => format!("adds {value:?} to {name}"),
                HeaderOp::AddIfAbsent(name, value) => format!("sets {name} to {value:?} where it is absent"),
                HeaderOp::OverwriteIfPresent(name, value) => format!("sets {name} to {value:?} where it is present"),
            })
            .collect();
        words.join(", ")
    }
}

fn op(option: &HeaderValueOption, side: Message) -> Result<HeaderOp, Wrong> {
    let HeaderValueOption { header, append, append_action, keep_empty_value } = option;
    refuse(append.is_some(), "append")?;
    let Some(RawValue { key, value: text }) = header else {
        return Err(Wrong::new("header", "is missing"));
    };
    let name = name(key).map_err(|wrong| wrong.within("header.key"))?;
    let value = value(text, *keep_empty_value).map_err(|wrong| wrong.within("header.value"))?;
    let action =
        HeaderAppendAction::try_from(*append_action).map_err(|_| Wrong::new("append_action", format!("unknown value {append_action}")))?;
    if name == header::HOST && (side == Message::Response || action != HeaderAppendAction::OverwriteIfExistsOrAdd) {
        return Err(Wrong::new("header.key", "`host` can only be set, and only on requests"));
    }
    Ok(match action {
        HeaderAppendAction::AppendIfExistsOrAdd => HeaderOp::Add(name, value),
        HeaderAppendAction::AddIfAbsent => HeaderOp::AddIfAbsent(name, value),
        HeaderAppendAction::OverwriteIfExistsOrAdd => HeaderOp::Set(name, value),
        HeaderAppendAction::OverwriteIfExists => HeaderOp::OverwriteIfPresent(name, value),
    })
}

/// A header that a route may touch: pseudo headers and what frames the message on one hop belong to the proxy (RFC 9110, 7.6.1).
fn name(text: &str) -> Result<HeaderName, Wrong> {
    if text.starts_with(':') {
        return Err(Wrong::new("", format!("pseudo header `{text}` cannot be changed")));
    }
    let name: HeaderName = text.parse().map_err(|_| Wrong::new("", format!("`{}` is not a header name", text.escape_debug())))?;
    let framing = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    if framing.contains(&name) {
        return Err(Wrong::new("", format!("`{name}` belongs to one hop and cannot be changed")));
    }
    Ok(name)
}

/// Envoy writes `%%` for a percent sign; its `%COMMAND%` substitutions are not ours.
fn value(text: &str, keep_empty: bool) -> Result<HeaderValue, Wrong> {
    if text.is_empty() && !keep_empty {
        return Err(Wrong::new("", "is empty and keep_empty_value is not set"));
    }
    if text.len() > HEADER_VALUE_BYTES_MAX {
        return Err(Wrong::new("", format!("longer than {HEADER_VALUE_BYTES_MAX} bytes")));
    }
    let literal = text.replace("%%", "");
    let command = literal.split_once('%').and_then(|(_, rest)| rest.split_once('%'));
    if command.is_some_and(|(word, _)| word.starts_with(|c: char| c.is_ascii_uppercase())) {
        return Err(Wrong::new("", format!("the substitution in `{}` is not supported", text.escape_debug())));
    }
    HeaderValue::from_str(&text.replace("%%", "%")).map_err(|_| Wrong::new("", "holds characters that a header value cannot have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(key: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
        HeaderValueOption {
            append: None,
            header: Some(RawValue { key: key.into(), value: value.into() }),
            append_action: action.into(),
            ..Default::default()
        }
    }

    #[test]
    fn operations_do_what_envoy_does() {
        // Aim: set, add, the two conditional forms and remove, in Envoy's order (removals first).
        use HeaderAppendAction as A;
        let add = [
            option("x-set", "new", A::OverwriteIfExistsOrAdd),
            option("X-Add", "b", A::AppendIfExistsOrAdd),
            option("x-absent", "one", A::AddIfAbsent),
            option("x-set", "two", A::AddIfAbsent),
            option("x-none", "x", A::OverwriteIfExists),
            option("x-gone", "50%%", A::AppendIfExistsOrAdd),
        ];
        let ops = HeaderOps::compile(&add, &["x-gone".into()], Message::Request).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-set", "old"), ("x-add", "a"), ("x-gone", "old")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        ops.apply(&mut headers);
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(all("x-set"), ["new"]);
        assert_eq!(all("x-add"), ["a", "b"]);
        assert_eq!(all("x-absent"), ["one"]);
        assert!(all("x-none").is_empty());
        assert_eq!(all("x-gone"), ["50%"]);
    }

    #[test]
    fn what_belongs_to_the_proxy_is_refused_by_name() {
        // Aim: pseudo, framing and malformed headers, and substitutions, never get past the door.
        use HeaderAppendAction as A;
        let bad = [
            (option(":path", "/", A::OverwriteIfExistsOrAdd), "pseudo"),
            (option("content-length", "1", A::OverwriteIfExistsOrAdd), "hop"),
            (option("a b", "1", A::OverwriteIfExistsOrAdd), "not a header name"),
            (option("a", "x\ny", A::OverwriteIfExistsOrAdd), "characters"),
            (option("a", "", A::OverwriteIfExistsOrAdd), "empty"),
            (option("a", "%REQ(:path)%", A::OverwriteIfExistsOrAdd), "substitution"),
            (option("host", "x", A::AppendIfExistsOrAdd), "only be set"),
        ];
        for (raw, part) in bad {
            let wrong = HeaderOps::compile(std::slice::from_ref(&raw), &[], Message::Request).unwrap_err();
            let text = wrong.of("T", "n").to_string();
            assert!(text.contains(part) && text.contains("request_headers_to_add[0]"), "{raw:?}: {text}");
        }
        assert!(HeaderOps::compile(&[], &["host".into()], Message::Request).is_err());
        assert!(HeaderOps::compile(&[option("host", "x", A::OverwriteIfExistsOrAdd)], &[], Message::Request).is_ok());
        assert!(HeaderOps::compile(&[option("a", "100% sure", A::AppendIfExistsOrAdd)], &[], Message::Response).is_ok());
    }
}
