//! How long a caller still waits, and whether it retries by itself: what travels from hop to hop (contract, section 4).
//!
//! Between hops it is a time that is left, for their clocks differ; through an application, which may take a while and forwards trace context
//! only, it is a time of this machine's clock in `tracestate`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::hop::OfHop;
use super::judge::Hop;

const X_MESHWRIGHT_DEADLINE_MS: HeaderName = HeaderName::from_static("x-meshwright-deadline-ms");
const X_MESHWRIGHT_RETRY: HeaderName = HeaderName::from_static("x-meshwright-retry");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Our member of `tracestate`.
const MEMBER: &str = "mw";
/// Members that a `tracestate` may have (W3C Trace Context, section 3.3.1.1).
const MEMBERS_MAX: usize = 32;
/// Longest time that gRPC can name: eight digits (gRPC over HTTP/2, "Timeout").
const GRPC_DIGITS_MAX: usize = 8;

/// What a request says of its caller's patience.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patient {
    /// Time left; zero: it is over.
    pub left: Option<Duration>,
    /// A layer before this one retries.
    pub layered: bool,
}

impl Patient {
    /// Whether there is nothing to say.
    pub const fn is_silent(self) -> bool {
        self.left.is_none() && !self.layered
    }

    fn sooner(self, left: Option<Duration>) -> Self {
        Self { left: self.left.into_iter().chain(left).min(), ..self }
    }
}

/// Reads what a head says; what is not believed is taken off, and what [`tell_patience`] tells anew stays to be overwritten, which costs less.
/// `x-meshwright-…` is believed of mesh peers only; `tracestate` of the application beside us (`own`), which got it from this proxy. `unix_ms`
/// is this machine's clock.
pub fn take_patience(headers: &mut HeaderMap, there: OfHop, (at, own): (Hop, bool), unix_ms: impl FnOnce() -> u64) -> Patient {
    let mut patient = Patient::default();
    if there.deadline {
        patient.left = headers.get(X_MESHWRIGHT_DEADLINE_MS).filter(|_| at == Hop::Inner).and_then(millis).map(Duration::from_millis);
        if patient.left.is_none() {
            headers.remove(X_MESHWRIGHT_DEADLINE_MS);
        }
    }
    if there.layered {
        patient.layered = at == Hop::Inner && headers.get(X_MESHWRIGHT_RETRY).is_some_and(|value| value == "1");
        if !patient.layered {
            headers.remove(X_MESHWRIGHT_RETRY);
        }
    }
    if there.tracestate
        && at == Hop::First
        && let Some(member) = take_member(headers)
        && own
    {
        let until = member.trim_start_matches('r').strip_prefix('d').and_then(|text| text.parse::<u64>().ok());
        patient = patient.sooner(until.map(|until| Duration::from_millis(until.saturating_sub(unix_ms()))));
        patient.layered |= member.starts_with('r');
    }
    if there.grpc_timeout {
        patient = patient.sooner(headers.get(GRPC_TIMEOUT).and_then(grpc_timeout));
    }
    patient
}

/// Says it to the next hop; to a peer of the mesh and to our own application in the mesh's words, to everybody in gRPC's.
pub fn tell_patience(headers: &mut HeaderMap, patient: Patient, grpc: bool, to: Neighbour, unix_ms: impl FnOnce() -> u64) {
    if let Some(left) = patient.left.filter(|_| grpc) {
        headers.insert(GRPC_TIMEOUT, as_grpc_timeout(left));
    }
    if to == Neighbour::Outside {
        headers.remove(X_MESHWRIGHT_DEADLINE_MS);
        headers.remove(X_MESHWRIGHT_RETRY);
        return;
    }
    if let Some(left) = patient.left {
        headers.insert(X_MESHWRIGHT_DEADLINE_MS, HeaderValue::from(whole_millis(left)));
    }
    if patient.layered {
        headers.insert(X_MESHWRIGHT_RETRY, HeaderValue::from_static("1"));
    }
    if to == Neighbour::Application {
        let retries = if patient.layered { "r" } else { "" };
        match patient.left {
            None => put_member(headers, HeaderValue::from_static("mw=r")),
            Some(left) => {
                let until = unix_ms().saturating_add(whole_millis(left));
                if let Ok(member) = HeaderValue::try_from(format!("{MEMBER}={retries}d{until}")) {
                    put_member(headers, member);
                }
            }
        }
    }
}

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Another proxy of the mesh.
    Peer,
    /// The application beside us.
    Application,
    /// Somebody who knows nothing of the mesh.
    Outside,
}

/// Rounded up: who has less than a millisecond left has not none.
fn whole_millis(left: Duration) -> u64 {
    u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn millis(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}

fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > GRPC_DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn as_grpc_timeout(left: Duration) -> HeaderValue {
    const LARGEST: u64 = 99_999_999;
    let millis = whole_millis(left);
    let text = if millis <= LARGEST { format!("{millis}m") } else { format!("{}S", left.as_secs().min(LARGEST)) };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("99999999H"))
}

/// Members of all lines, ours excepted.
fn others(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(TRACESTATE).iter().filter_map(|line| line.to_str().ok());
    let members = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|member| !member.is_empty());
    members.filter(|member| ours(member).is_none()).map(str::to_owned).collect()
}

fn ours(member: &str) -> Option<&str> {
    member.strip_prefix(MEMBER)?.strip_prefix('=')
}

/// Our own member, which is taken off.
fn take_member(headers: &mut HeaderMap) -> Option<String> {
    let lines = headers.get_all(TRACESTATE).iter().filter_map(|line| line.to_str().ok());
    let found = lines.flat_map(|line| line.split(',')).find_map(|member| ours(member.trim()))?.to_owned();
    let others = others(headers);
    headers.remove(TRACESTATE);
    if let Ok(value) = HeaderValue::try_from(others.join(","))
        && !others.is_empty()
    {
        headers.insert(TRACESTATE, value);
    }
    Some(found)
}

/// Comes first, as the newest (W3C Trace Context, section 3.5).
fn put_member(headers: &mut HeaderMap, own: HeaderValue) {
    if !headers.contains_key(TRACESTATE) {
        headers.insert(TRACESTATE, own);
        return;
    }
    let mut members = vec![own.to_str().unwrap_or_default().to_owned()];
    members.extend(others(headers));
    members.truncate(MEMBERS_MAX);
    if let Ok(value) = HeaderValue::try_from(members.join(",")) {
        headers.insert(TRACESTATE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field =
            |(name, value): &(&str, &str)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        HeaderMap::from_iter(fields.iter().map(field))
    }

    fn taken(headers: &mut HeaderMap, at: Hop, own: bool) -> Patient {
        let there = OfHop::in_headers(headers);
        take_patience(headers, there, (at, own), || NOW_MS)
    }

    fn patient(left_ms: Option<u64>, layered: bool) -> Patient {
        Patient { left: left_ms.map(Duration::from_millis), layered }
    }

    #[test]
    fn only_peers_and_the_own_application_are_believed() {
        // Aim: headers of a peer, the trace state of the application beside us, gRPC's own of everybody; what is not believed is taken off.
        let said = [("x-meshwright-deadline-ms", "700"), ("x-meshwright-retry", "1")];
        assert_eq!(taken(&mut headers(&said), Hop::Inner, false), patient(Some(700), true));
        let mut strangers = headers(&said);
        assert_eq!((taken(&mut strangers, Hop::First, true), strangers.len()), (patient(None, false), 0));
        let state = [("tracestate", "a=1, mw=rd1800000000250 ,b=2")];
        let mut own = headers(&state);
        assert_eq!(taken(&mut own, Hop::First, true), patient(Some(250), true));
        assert_eq!(own["tracestate"], "a=1,b=2");
        let mut outside = headers(&state);
        assert_eq!(taken(&mut outside, Hop::First, false), patient(None, false));
        assert_eq!(outside["tracestate"], "a=1,b=2");
        assert_eq!(taken(&mut headers(&[("tracestate", "mw=d5")]), Hop::First, true), patient(Some(0), false), "long over");
        assert_eq!(taken(&mut headers(&[("grpc-timeout", "30m")]), Hop::First, false), patient(Some(30), false));
        let both = [("grpc-timeout", "2S"), ("x-meshwright-deadline-ms", "700")];
        assert_eq!(taken(&mut headers(&both), Hop::Inner, false), patient(Some(700), false), "the sooner one");
        for odd in ["", "1", "m", "+1m", "123456789m", "1x", "1 m"] {
            assert_eq!(
                taken(&mut headers(&[("grpc-timeout", odd), ("x-meshwright-deadline-ms", odd)]), Hop::First, true),
                patient(None, false)
            );
        }
    }

    #[test]
    fn what_is_told_is_what_is_understood() {
        // Aim: each hop reads what the one before wrote, through a peer and through an application; strangers get gRPC's words only.
        for wanted in [patient(Some(40), true), patient(Some(2_000_000_000), false), patient(None, true)] {
            let mut to_peer = headers(&[("tracestate", "a=1")]);
            tell_patience(&mut to_peer, wanted, true, Neighbour::Peer, || NOW_MS);
            assert_eq!(to_peer["tracestate"], "a=1");
            assert_eq!(taken(&mut to_peer, Hop::Inner, false), wanted);
            let mut to_application = headers(&[("tracestate", "a=1,mw=r")]);
            tell_patience(&mut to_application, wanted, false, Neighbour::Application, || NOW_MS);
            let mut forwarded = headers(&[("tracestate", to_application["tracestate"].to_str().unwrap())]);
            assert_eq!(taken(&mut forwarded, Hop::First, true), wanted);
            let mut outside = headers(&[("x-meshwright-retry", "1")]);
            tell_patience(&mut outside, wanted, true, Neighbour::Outside, || NOW_MS);
            assert_eq!(outside.keys().filter(|name| name.as_str() != "grpc-timeout").count(), 0);
        }
    }
}
