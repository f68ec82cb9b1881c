//! What a collector's answer means for what was sent (OTLP specification, "Failures", "OTLP/gRPC Throttling", "OTLP/HTTP Throttling"). Pure.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use prost::Message;
use tonic::{Code, Status};

/// Why something was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It may be sent again, after the pause that the collector asks for.
    Again {
        /// What happened.
        why: String,
        /// `None`: as one likes.
        after: Option<Duration>,
    },
    /// It is lost.
    Never(String),
}

impl Refusal {
    /// The connection failed, or was none.
    pub(super) fn broken(why: impl Into<String>) -> Self {
        Self::Again { why: why.into(), after: None }
    }

    /// What happened.
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Again { why, .. } | Self::Never(why) => why,
        }
    }

    /// What a call of gRPC came to.
    pub(super) fn of_grpc(status: &Status) -> Self {
        let why = format!("{:?}: {}", status.code(), status.message());
        let after = asked_pause(status);
        match status.code() {
            Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::OutOfRange | Code::Unavailable | Code::DataLoss => {
                Self::Again { why, after }
            }
            Code::ResourceExhausted if after.is_some() => Self::Again { why, after },
            _ => Self::Never(why),
        }
    }

    /// What an answer of HTTP says that is no success; redirects are not followed. `now_unix_secs`: for dates.
    pub(super) fn of_http(status: StatusCode, headers: &HeaderMap, now_unix_secs: u64) -> Self {
        let why = format!("it answers {status}");
        match status.as_u16() {
            429 | 502 | 503 | 504 => Self::Again { why, after: retry_after(headers, now_unix_secs) },
            _ => Self::Never(why),
        }
    }
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap, now_unix_secs: u64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(at.saturating_sub(Duration::from_secs(now_unix_secs)))
}

/// `google.rpc.Status` in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct Details {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The pause that a collector asks for.
fn asked_pause(status: &Status) -> Option<Duration> {
    let details = Details::decode(status.details()).ok()?.details;
    let told = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    RetryInfo::decode(&told.value[..]).ok()?.retry_delay.and_then(|delay| delay.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: RetryInfo is honoured; without it what is transient is sent again, and exhaustion is not.
    #[test]
    fn collectors_say_when_to_come_again() {
        let asked = RetryInfo { retry_delay: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }) };
        let any = prost_types::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: asked.encode_to_vec() };
        let details = bytes::Bytes::from(Details { details: vec![any] }.encode_to_vec());
        let (transient, never) = ([1, 4, 10, 11, 14, 15], [2, 3, 5, 6, 7, 9, 12, 13, 16]);
        for (code, with, again) in transient
            .map(|code| (code, false, true))
            .into_iter()
            .chain(never.map(|code| (code, true, false)))
            .chain([(8, false, false), (8, true, true), (14, true, true)])
        {
            let code = Code::from(code);
            let status = if with { Status::with_details(code, "later", details.clone()) } else { Status::new(code, "later") };
            let wanted = again.then_some(with.then_some(Duration::from_millis(1500)));
            let said = match Refusal::of_grpc(&status) {
                Refusal::Again { after, .. } => Some(after),
                Refusal::Never(_) => None,
            };
            assert_eq!(said, wanted, "{code:?} {with}");
        }
    }

    /// Aim: four statuses of HTTP may come again, when the collector says, in seconds or by date; a redirect is an error like any other.
    #[test]
    fn collectors_of_http_say_when_to_come_again() {
        let now = 784_111_777 - 10;
        for (status, header, wanted) in [
            (503, None, Some(None)),
            (429, Some("7"), Some(Some(7))),
            (502, Some("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Some(10))),
            (504, Some("Sun, 06 Nov 1983 08:49:37 GMT"), Some(Some(0))),
            (503, Some("soon"), Some(None)),
            (500, Some("7"), None),
            (400, None, None),
            (404, None, None),
            (413, None, None),
            (301, None, None),
            (308, Some("1"), None),
        ] {
            let headers = header.map(|value| (RETRY_AFTER, value.parse().unwrap())).into_iter().collect();
            let said = match Refusal::of_http(StatusCode::from_u16(status).unwrap(), &headers, now) {
                Refusal::Again { after, .. } => Some(after.map(|after| after.as_secs())),
                Refusal::Never(_) => None,
            };
            assert_eq!(said, wanted, "{status} {header:?}");
        }
    }
}
