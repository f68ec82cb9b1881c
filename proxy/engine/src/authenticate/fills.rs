//! Headers that say who calls: which of them may be filled.

use http::{HeaderName, header};

/// Headers that claims may not fill: they frame the message, or say what the mesh itself says.
const NEVER_FILLED: [HeaderName; 12] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    header::COOKIE,
    header::CONTENT_TYPE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
/// The same, by their first bytes.
const NEVER_FILLED_BELOW: [&str; 6] = ["x-meshwright-", "x-forwarded-", "grpc-", "x-b3-", "traceparent", "tracestate"];

/// Whether claims may fill a header of that name, in lower case: not what frames the message or says what the mesh itself says.
pub fn claim_header(name: &str) -> bool {
    !NEVER_FILLED.iter().any(|never| name == never.as_str()) && !NEVER_FILLED_BELOW.iter().any(|prefix| name.starts_with(prefix))
}
