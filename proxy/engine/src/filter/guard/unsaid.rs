//! Headers in which the edge alone speaks.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::callout::CalloutKind;

/// Says to the backend that a request went on without the word of a service that did not answer; its value is what was not asked.
pub const UNCHECKED_HEADER: HeaderName = HeaderName::from_static("x-meshwright-unchecked");

/// Says to the backend that nobody has checked a request.
pub(super) fn unchecked(headers: &mut HeaderMap, kind: CalloutKind) {
    headers.append(UNCHECKED_HEADER, HeaderValue::from_static(kind.text()));
}

/// Takes off what a caller says in headers that are the edge's to fill; names with `_` for `-` are the same to many applications.
pub(super) fn unsay(headers: &mut HeaderMap, filled: &[HeaderName]) {
    // Most callers say nothing there, and to see that takes less than to look each name up.
    let (mut said, mut underscored) = (false, false);
    for name in headers.keys() {
        said |= filled.contains(name);
        underscored |= name.as_str().bytes().any(|byte| byte == b'_');
    }
    if said {
        filled.iter().for_each(|name| _ = headers.remove(name));
    }
    if !underscored {
        return;
    }
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let alike = |a: &HeaderName, b: &HeaderName| a.as_str().bytes().map(plain).eq(b.as_str().bytes().map(plain));
    let twins: Vec<HeaderName> = headers.keys().filter(|name| filled.iter().any(|filled| alike(filled, name))).cloned().collect();
    for twin in twins {
        headers.remove(twin);
    }
}
