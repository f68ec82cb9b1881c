//! What clients are told of their limits: `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), or the older
//! `X-RateLimit-*` that many know.

use std::fmt::Write as _;

use http::{HeaderName, HeaderValue, header};
use smallvec::SmallVec;

use super::numbers::KeyStanding;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEGACY_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const LEGACY_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const LEGACY_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// How a client is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadersTold {
    /// By the draft's fields.
    pub draft: bool,
    /// By the older ones.
    pub legacy: bool,
}

/// All that is told here: an application's own word on them is not the client's business.
pub(crate) const OWN_HEADERS: [HeaderName; 5] = [RATE_LIMIT, RATE_LIMIT_POLICY, LEGACY_LIMIT, LEGACY_REMAINING, LEGACY_RESET];

/// Whether it is one of [`OWN_HEADERS`], or named like one.
pub(crate) fn is_own_header(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.strip_prefix("x-").unwrap_or(name).starts_with("ratelimit")
}

impl HeadersTold {
    /// Says how the tightest limit stands: its name, what is there at once, and how much is left of it. `policies` are those that apply.
    /// One value is allocated.
    pub(crate) fn tell(
        self,
        say: &mut impl FnMut(HeaderName, HeaderValue),
        (name, whole): (&str, u64),
        standing: &KeyStanding,
        policies: &[HeaderValue],
    ) {
        let (remaining, reset) = (standing.remaining, secs(standing.reset));
        if self.draft {
            let mut line = Line::default();
            // A line takes all that is written.
            let _ = item(&mut line, name);
            line.number(b";r=", remaining);
            line.number(b";t=", reset);
            if let Ok(value) = HeaderValue::from_bytes(&line.0) {
                say(RATE_LIMIT, value);
            }
            policies.iter().for_each(|policy| say(RATE_LIMIT_POLICY, policy.clone()));
        }
        if self.legacy {
            say(LEGACY_LIMIT, whole.into());
            say(LEGACY_REMAINING, remaining.into());
            say(LEGACY_RESET, reset.into());
        }
    }
}

/// After how many seconds to come again, which is told in any case.
pub(crate) fn retry_after(standing: &KeyStanding) -> (HeaderName, HeaderValue) {
    (header::RETRY_AFTER, HeaderValue::from(secs(standing.retry).max(1)))
}

/// A text in place.
#[derive(Default)]
struct Line(SmallVec<[u8; 96]>);

impl Line {
    /// A decimal number behind some text. The library's formatting takes ten times as long.
    fn number(&mut self, text: &[u8], number: u64) {
        let (mut digits, mut at, mut rest) = ([0; 20], 20, number);
        loop {
            at -= 1;
            if let Some(digit) = digits.get_mut(at) {
                // Less than ten.
                *digit = b'0' + (rest % 10) as u8;
            }
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.0.extend_from_slice(text);
        self.0.extend_from_slice(digits.get(at..).unwrap_or_default());
    }
}

impl std::fmt::Write for Line {
    fn write_char(&mut self, character: char) -> std::fmt::Result {
        match u8::try_from(character) {
            Ok(byte) if byte.is_ascii() => self.0.push(byte),
            _ => self.0.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        Ok(())
    }

    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// One policy of `RateLimit-Policy`: `"NAME";q=QUOTA;w=SECONDS`.
pub(crate) fn policy_item(name: &str, quota: u64, window_secs: u64) -> String {
    let mut text = String::with_capacity(name.len() + 32);
    // A text takes all that is written.
    let _ = item(&mut text, name).and_then(|()| write!(text, ";q={quota};w={window_secs}"));
    text
}

/// A String of RFC 9651. Names are those of limits, which hold neither quotes nor anything beyond ASCII; what is not printable is left out.
fn item(to: &mut impl std::fmt::Write, name: &str) -> std::fmt::Result {
    to.write_char('"')?;
    for byte in name.bytes().filter(|byte| (0x20..0x7f).contains(byte)) {
        if matches!(byte, b'"' | b'\\') {
            to.write_char('\\')?;
        }
        to.write_char(char::from(byte))?;
    }
    to.write_char('"')
}

/// Whole seconds, rounded up: who comes then is not too early.
fn secs(time: std::time::Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
