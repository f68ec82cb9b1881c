//! What bounds an exchange, repeats it and keeps it with one endpoint: `timeouts`, `retry` (GEP-1731), `sessionPersistence` (GEP-1619).

use std::time::Duration;

use engine::model::SESSION_TIMEOUT_MIN;
use engine::retry::RETRIES_MAX;

use super::filters::PROTECTED;
use super::{Unsupported, fault};
use crate::world::door::{Cursor, Fields};

/// Most attempts beyond the first, and most codes.
const ATTEMPTS_MAX: i64 = 100;
const CODES_MAX: usize = 200;
/// Longest name of a session's cookie or header.
const SESSION_NAME_BYTES_MAX: usize = 128;

/// `timeouts` of a rule; zero means that there is none, whatever a policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the request to the end of the response, all attempts together.
    pub request: Option<Duration>,
    /// Of one attempt.
    pub backend_request: Option<Duration>,
}

/// `retry` of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRetry {
    /// Statuses that are tried again, beside what failed without any.
    pub codes: Vec<u16>,
    /// Attempts beyond the first, as many as proxies make at most; `None`: not said.
    pub attempts: Option<u32>,
    /// Least wait before an attempt, zero too; `None`: not said.
    pub backoff: Option<Duration>,
}

/// `sessionPersistence` of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionPersistence {
    /// Name of the cookie or header; `None`: chosen by us.
    pub name: Option<String>,
    /// A header carries the session, not a cookie.
    pub header: bool,
    /// How long it lasts at most.
    pub absolute_timeout: Option<Duration>,
    /// How long it lasts without a request.
    pub idle_timeout: Option<Duration>,
    /// The cookie outlives the browser.
    pub permanent: bool,
}

/// A session's timeout as proxies count it: not below a second, and zero is none.
fn read_timeout(fields: &mut Fields<'_>, name: &'static str) -> Option<Duration> {
    let at = fields.get(name)?;
    at.duration().filter(|time| !time.is_zero()).map(|time| session_timeout(&at, time))
}

/// Sessions are counted in seconds: what is shorter is one.
pub(in crate::world) fn session_timeout(at: &Cursor<'_>, time: Duration) -> Duration {
    if time < SESSION_TIMEOUT_MIN {
        at.warn("sessions are counted in seconds: it is taken for 1s", "write at least 1s");
    }
    time.max(SESSION_TIMEOUT_MIN)
}

impl RouteTimeouts {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        let mut read = |name| fields.get(name).and_then(|at| at.duration());
        let (request, backend_request) = (read("request"), read("backendRequest"));
        fields.done();
        if let (Some(request), Some(backend_request)) = (request, backend_request)
            && !request.is_zero()
            && backend_request > request
        {
            at.error("backendRequest is longer than request", "make it shorter, or leave it out");
        }
        Self { request, backend_request }
    }
}

impl RouteRetry {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        let mut codes = Vec::new();
        for at in fields.get("codes").map(|at| at.list(CODES_MAX)).unwrap_or_default() {
            let Some(code) = at.int(400..=599).and_then(|code| u16::try_from(code).ok()) else { continue };
            if codes.contains(&code) {
                at.error(format!("{code} stands twice"), "name each code once");
            }
            codes.push(code);
        }
        let attempts = fields.get("attempts").and_then(|at| {
            let attempts = at.int(1..=ATTEMPTS_MAX).and_then(|attempts| u32::try_from(attempts).ok())?;
            if attempts > RETRIES_MAX {
                at.warn(format!("proxies try again {RETRIES_MAX} times at most: it is taken for that"), "write a smaller number");
            }
            Some(attempts.min(RETRIES_MAX))
        });
        let backoff = fields.get("backoff").and_then(|at| at.duration());
        fields.done();
        Self { codes, attempts, backoff }
    }
}

impl SessionPersistence {
    /// What cannot be carried out lands in `failing`.
    pub(in crate::world) fn read(at: &Cursor<'_>, failing: &mut Vec<Unsupported>) -> Option<Self> {
        let mut fields = at.fields();
        let kind = fields.get("type").map_or(Some("Cookie".to_owned()), |at| at.text());
        let name = fields.get("sessionName");
        let absolute_timeout = read_timeout(&mut fields, "absoluteTimeout");
        let idle_timeout = read_timeout(&mut fields, "idleTimeout");
        let cookie = fields.get("cookieConfig");
        let lifetime = cookie.as_ref().and_then(|at| {
            let mut fields = at.fields();
            let lifetime = fields.get("lifetimeType").and_then(|at| at.text());
            fields.done();
            lifetime
        });
        if let (Some(absolute), Some(idle)) = (absolute_timeout, idle_timeout)
            && idle > absolute
        {
            at.warn("idleTimeout is longer than absoluteTimeout, which ends the session before", "make it shorter, or leave it out");
        }
        fields.done();
        let kind = kind?;
        let header = kind == "Header";
        if !header && kind != "Cookie" {
            failing.push(fault(at, format!("unknown type of session persistence `{kind}`")));
        }
        let permanent = lifetime.as_deref() == Some("Permanent");
        match (&cookie, lifetime.as_deref()) {
            (Some(at), _) if header => at.error("cookieConfig belongs to the type Cookie", "remove it"),
            (Some(at), Some("Permanent")) if absolute_timeout.is_none() => {
                at.error("a Permanent cookie needs an absoluteTimeout", "add absoluteTimeout: how long it lasts");
            }
            (Some(at), Some(other)) if !matches!(other, "Permanent" | "Session") => {
                failing.push(fault(at, format!("unknown lifetimeType `{other}`")));
            }
            _ => {}
        }
        let name = name.and_then(|at| read_name(&at, header));
        Some(Self { name, header, absolute_timeout, idle_timeout, permanent })
    }
}

/// Both cookies and headers are named by a token (RFC 9110, section 5.6.2).
fn read_name(at: &Cursor<'_>, header: bool) -> Option<String> {
    let name = at.text().filter(|name| !name.is_empty())?;
    let lower = http::HeaderName::try_from(name.as_str()).ok();
    let protected = header && lower.as_ref().is_some_and(|lower| PROTECTED.contains(&lower.as_str()));
    match lower {
        Some(lower) if name.len() <= SESSION_NAME_BYTES_MAX && !protected => Some(if header { lower.as_str().to_owned() } else { name }),
        _ => {
            at.error(format!("`{name}` cannot name a session"), format!("a token of at most {SESSION_NAME_BYTES_MAX} bytes"));
            None
        }
    }
}
