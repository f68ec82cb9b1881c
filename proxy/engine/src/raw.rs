//! What resources of several kinds hold, read and refused alike everywhere.

use std::net::IpAddr;
use std::time::Duration;

use http::Method;

use crate::rejected::Wrong;

/// Longest duration that a resource may name: beyond it, sums of times could overflow.
const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A duration that may be absent; negative and absurd ones are refused.
pub(crate) fn duration(raw: Option<&prost_types::Duration>, field: &str) -> Result<Option<Duration>, Wrong> {
    let Some(raw) = raw else { return Ok(None) };
    let value = Duration::try_from(*raw).map_err(|_| Wrong::new(field, "is negative"))?;
    if value > DURATION_MAX {
        return Err(Wrong::new(field, "is longer than 100 years"));
    }
    Ok(Some(value))
}

/// Methods by name, at most so many.
pub(crate) fn methods(raw: &[String], most: usize) -> Result<Vec<Method>, Wrong> {
    if raw.len() > most {
        return Err(Wrong::new("methods", format!("holds more than {most}")));
    }
    let one = |(index, text): (usize, &String)| {
        let wrong = |_| Wrong::new(format!("methods[{index}]"), format!("`{}` is not a method", text.escape_debug()));
        Method::from_bytes(text.as_bytes()).map_err(wrong)
    };
    raw.iter().enumerate().map(one).collect()
}

/// Longest DNS name (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;
/// Longest label of one.
const LABEL_BYTES_MAX: usize = 63;

/// Whether it is a DNS name without trailing dot (any case), or an IP address.
pub(crate) fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_name(text)
}

/// Whether it is a DNS name without trailing dot (any case).
pub(crate) fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(known) && !label.starts_with('-') && !label.ends_with('-')
    };
    // All digits at the end is an IPv4 address gone wrong (RFC 1123, section 2.1).
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= NAME_BYTES_MAX && text.split('.').all(label) && !numeric
}
