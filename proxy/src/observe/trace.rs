//! Trace context in headers: W3C `traceparent`/`tracestate` and B3 in both forms, read and rewritten in place. Pure.
//!
//! W3C Trace Context (Recommendation 2021-11-23), section 3.2; B3 propagation (openzipkin/b3-propagation). Where several forms are
//! present, W3C wins over B3 single, B3 single over B3 multi. What does not parse counts as absent.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Longest `traceparent` that is looked at; later versions may append fields.
const TRACEPARENT_BYTES_MAX: usize = 256;
/// Length of a version 00 `traceparent`.
const TRACEPARENT_BYTES: usize = 55;

/// The caller's span, as the headers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// 16 bytes, never zero.
    pub trace_id: u128,
    /// 8 bytes, never zero.
    pub span_id: u64,
}

/// What the headers of a request said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The caller's span, if any form named one.
    pub remote: Option<Remote>,
    /// The caller's sampling decision, if it made one.
    pub sampled: Option<bool>,
    /// A valid `traceparent` was there.
    pub w3c: bool,
    /// A `b3` header was there, in any state.
    pub b3_single: bool,
    /// `x-b3-traceid`, `x-b3-sampled` or `x-b3-flags` was there, in any state.
    pub b3_multi: bool,
    /// A `tracestate` was there.
    pub tracestate: bool,
    /// The single `b3` header asked for debugging (`d`), which is more than sampled.
    pub debug: bool,
}

/// A span of ours, for the headers of the request that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace_id: u128,
    /// Our span.
    pub span_id: u64,
    /// The caller's span, where there is one.
    pub parent: Option<u64>,
    /// The decision that travels on.
    pub sampled: bool,
}

/// Reads what the headers say, of which `there` are there. Bounded work; allocates nothing.
pub fn read(headers: &HeaderMap, there: Forms) -> Found {
    let mut found = Found { b3_single: there.b3_single, b3_multi: there.b3_multi, tracestate: there.tracestate, ..Found::default() };
    if there.traceparent
        && let Some((remote, sampled)) = single_traceparent(headers)
    {
        return Found { remote: Some(remote), sampled: Some(sampled), w3c: true, ..found };
    }
    if there.b3_single
        && let Some((remote, sampled)) = headers.get(&B3).and_then(|value| parse_b3(value.as_bytes()))
    {
        return Found { remote, sampled, debug: asks_for_debugging(headers), ..found };
    }
    if found.b3_multi {
        found.sampled = parse_b3_sampled(headers);
        found.remote = headers
            .get(&B3_TRACE_ID)
            .and_then(|id| parse_b3_trace_id(id.as_bytes()))
            .zip(headers.get(&B3_SPAN_ID).and_then(|id| parse_b3_span_id(id.as_bytes())))
            .map(|(trace_id, span_id)| Remote { trace_id, span_id });
    }
    found
}

/// Whether a single `b3` that parses has the state `d`: it stands alone, or third.
fn asks_for_debugging(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(&B3) else { return false };
    let mut parts = value.as_bytes().split(|byte| *byte == b'-');
    let (first, state) = (parts.next(), parts.nth(1));
    state.or(first) == Some(b"d")
}

/// Which forms are there: one walk instead of a lookup for each.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each is the name of a form")]
pub struct Forms {
    pub traceparent: bool,
    pub tracestate: bool,
    pub b3_single: bool,
    pub b3_multi: bool,
}

impl Forms {
    /// Looks for them.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut there = Self::default();
        for name in headers.keys() {
            let name = name.as_str();
            match name.len() {
                2 => there.b3_single |= name == "b3",
                10 if name == "tracestate" => there.tracestate = true,
                10 => there.b3_multi |= name == "x-b3-flags",
                11 => there.traceparent |= name == "traceparent",
                12 => there.b3_multi |= name == "x-b3-sampled" || name == "x-b3-traceid",
                _ => {}
            }
        }
        there
    }
}

/// Puts our span into the headers: `traceparent` always, each B3 form only where the caller used it. `tracestate` travels on
/// unchanged within its own trace and is removed where a new trace starts (section 3.3.1.4).
pub fn write(headers: &mut HeaderMap, found: &Found, context: &Context) {
    headers.insert(TRACEPARENT, traceparent(context));
    if found.tracestate && !found.w3c {
        headers.remove(&TRACESTATE);
    }
    if found.b3_single {
        headers.insert(B3, b3_single(context, found.debug));
    }
    if found.b3_multi {
        headers.insert(B3_TRACE_ID, hex_value(&hex_of_u128(context.trace_id)));
        headers.insert(B3_SPAN_ID, hex_value(&hex_of_u64(context.span_id)));
        match context.parent {
            Some(parent) => headers.insert(B3_PARENT, hex_value(&hex_of_u64(parent))),
            None => headers.remove(&B3_PARENT),
        };
        // `x-b3-flags: 1` (debug) implies the decision; both would contradict the specification.
        if headers.get(&B3_FLAGS).is_none_or(|flags| flags.as_bytes() != b"1") {
            headers.insert(B3_SAMPLED, HeaderValue::from_static(if context.sampled { "1" } else { "0" }));
        }
    }
}

/// What [`write()`] left in the headers, to be written again. `None`: it wrote nothing.
#[cold]
pub fn written(headers: &HeaderMap) -> Option<(Found, Context)> {
    let found = read(headers, Forms::of(headers));
    let Remote { trace_id, span_id } = found.remote.filter(|_| found.w3c)?;
    let parent = match (found.b3_single, found.b3_multi) {
        (true, _) => headers.get(&B3).and_then(|value| parse_b3_span_id(value.as_bytes().splitn(4, |byte| *byte == b'-').nth(3)?)),
        (false, true) => headers.get(&B3_PARENT).and_then(|id| parse_b3_span_id(id.as_bytes())),
        (false, false) => None,
    };
    let debug = found.b3_single && asks_for_debugging(headers);
    Some((Found { debug, ..found }, Context { trace_id, span_id, parent, sampled: found.sampled == Some(true) }))
}

fn traceparent(context: &Context) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    text[3..35].copy_from_slice(&hex_of_u128(context.trace_id));
    text[36..52].copy_from_slice(&hex_of_u64(context.span_id));
    text[54] = if context.sampled { b'1' } else { b'0' };
    let mut value = hex_value(&text);
    // Never the same again: in HTTP/2's table of headers (RFC 7541, section 6.2.3) it would only push out what comes again.
    value.set_sensitive(true);
    value
}

fn b3_single(context: &Context, debug: bool) -> HeaderValue {
    let mut text = Vec::with_capacity(68);
    text.extend_from_slice(&hex_of_u128(context.trace_id));
    text.push(b'-');
    text.extend_from_slice(&hex_of_u64(context.span_id));
    text.extend_from_slice(match (context.sampled, debug) {
        (true, true) => b"-d",
        (true, false) => b"-1",
        (false, _) => b"-0",
    });
    if let Some(parent) = context.parent {
        text.push(b'-');
        text.extend_from_slice(&hex_of_u64(parent));
    }
    hex_value(&text)
}

fn hex_value(text: &[u8]) -> HeaderValue {
    // Hex digits and dashes only, so the fallback cannot be reached.
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Several `traceparent` headers are none (section 3.2.1: exactly one).
fn single_traceparent(headers: &HeaderMap) -> Option<(Remote, bool)> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return None;
    }
    parse_traceparent(first.as_bytes())
}

/// `version "-" trace-id "-" parent-id "-" flags`, lower-case hex; a later version may append `-…`.
pub fn parse_traceparent(text: &[u8]) -> Option<(Remote, bool)> {
    if text.len() < TRACEPARENT_BYTES || text.len() > TRACEPARENT_BYTES_MAX {
        return None;
    }
    if text[2] != b'-' || text[35] != b'-' || text[52] != b'-' {
        return None;
    }
    let version = hex_u8(&text[..2])?;
    let longer = text.len() > TRACEPARENT_BYTES;
    if version == 0xff || (version == 0 && longer) || (longer && text[TRACEPARENT_BYTES] != b'-') {
        return None;
    }
    let trace_id = hex_u128(&text[3..35]).filter(|id| *id != 0)?;
    let span_id = hex_u64(&text[36..52]).filter(|id| *id != 0)?;
    let flags = hex_u8(&text[53..55])?;
    Some((Remote { trace_id, span_id }, flags & 1 == 1))
}

/// `{TraceId}-{SpanId}[-{SamplingState}[-{ParentSpanId}]]`, or the sampling state alone.
pub fn parse_b3(text: &[u8]) -> Option<(Option<Remote>, Option<bool>)> {
    if let Some(sampled) = b3_state(text) {
        return Some((None, Some(sampled)));
    }
    let mut parts = text.splitn(4, |byte| *byte == b'-');
    let trace_id = parse_b3_trace_id(parts.next()?)?;
    let span_id = parse_b3_span_id(parts.next()?)?;
    let sampled = match parts.next() {
        None => None,
        Some(state) => Some(b3_state(state)?),
    };
    if let Some(parent) = parts.next() {
        parse_b3_span_id(parent)?;
    }
    Some((Some(Remote { trace_id, span_id }), sampled))
}

fn b3_state(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

fn parse_b3_sampled(headers: &HeaderMap) -> Option<bool> {
    if headers.get(&B3_FLAGS).is_some_and(|flags| flags.as_bytes() == b"1") {
        return Some(true);
    }
    headers.get(&B3_SAMPLED).and_then(|state| b3_state(state.as_bytes()))
}

/// 64 bits are widened with zeroes, as the B3 specification says. Capital digits are taken too.
fn parse_b3_trace_id(text: &[u8]) -> Option<u128> {
    let mut digits = [b'0'; 32];
    match text.len() {
        16 => digits[16..].copy_from_slice(text),
        32 => digits.copy_from_slice(text),
        _ => return None,
    }
    digits.make_ascii_lowercase();
    hex_u128(&digits).filter(|id| *id != 0)
}

fn parse_b3_span_id(text: &[u8]) -> Option<u64> {
    let mut digits: [u8; 16] = text.try_into().ok()?;
    digits.make_ascii_lowercase();
    hex_u64(&digits).filter(|id| *id != 0)
}

/// Two lower-case digits.
fn hex_u8(text: &[u8]) -> Option<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let [high, low] = text.try_into().ok()?;
    Some(digit(high)? << 4 | digit(low)?)
}

/// Sixteen lower-case digits.
fn hex_u64(text: &[u8]) -> Option<u64> {
    let (high, low) = text.split_at_checked(8)?;
    Some(u64::from(hex_u32(high)?) << 32 | u64::from(hex_u32(low)?))
}

/// Thirty-two lower-case digits.
fn hex_u128(text: &[u8]) -> Option<u128> {
    let (high, low) = text.split_at_checked(16)?;
    Some(u128::from(hex_u64(high)?) << 64 | u128::from(hex_u64(low)?))
}

/// One in each byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;
/// The low half of each byte.
const LOW_HALVES: u64 = 0xf * ONES;

/// Eight lower-case digits, all at once: a byte's low half is the digit's value, and nine more where it is a letter. What is no digit
/// does not come out again when the value is written.
fn hex_u32(text: &[u8]) -> Option<u32> {
    let text: [u8; 8] = text.try_into().ok()?;
    let bytes = u64::from_be_bytes(text);
    let digits = (bytes & LOW_HALVES) + 9 * (bytes >> 6 & ONES);
    let pairs = (digits | digits >> 4) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    let value = (fours | fours >> 16) as u32;
    (hex_of_u32(value) == text).then_some(value)
}

/// Eight lower-case digits, all at once.
fn hex_of_u32(value: u32) -> [u8; 8] {
    let value = u64::from(value);
    let fours = (value | value << 16) & 0x0000_ffff_0000_ffff;
    let pairs = (fours | fours << 8) & 0x00ff_00ff_00ff_00ff;
    let digits = (pairs | pairs << 4) & LOW_HALVES;
    let letters = (digits + 6 * ONES) >> 4 & ONES;
    (digits + u64::from(b'0') * ONES + u64::from(b'a' - b'0' - 10) * letters).to_be_bytes()
}

/// A number for whatever is decided by chance for a whole trace, the same wherever it is asked for.
pub fn chance(trace_id: u128) -> u64 {
    ((trace_id >> 64) as u64 ^ trace_id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// 32 lower-case digits.
pub fn hex_of_u128(value: u128) -> [u8; 32] {
    let mut text = [0; 32];
    text[..16].copy_from_slice(&hex_of_u64((value >> 64) as u64));
    text[16..].copy_from_slice(&hex_of_u64(value as u64));
    text
}

/// 16 lower-case digits.
pub fn hex_of_u64(value: u64) -> [u8; 16] {
    let mut text = [0; 16];
    text[..8].copy_from_slice(&hex_of_u32((value >> 32) as u32));
    text[8..].copy_from_slice(&hex_of_u32(value as u32));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
    const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    /// Aim: every form is read, the order of precedence holds, and the caller's decision is found.
    #[test]
    fn every_form_is_read() {
        let remote = Some(Remote { trace_id: TRACE, span_id: SPAN });
        let narrow = Some(Remote { trace_id: 0xa3ce_929d_0e0e_4736, span_id: SPAN });
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let b3_1 = format!("{id}-00f067aa0ba902b7-1-05e3ac9a4f6e3b90");
        let other = "00-00000000000000000000000000000001-0000000000000001-00";
        let one = Some(Remote { trace_id: 1, span_id: 1 });
        type Row<'a> = (Vec<(&'static str, &'a str)>, Option<Remote>, Option<bool>);
        let table: Vec<Row<'_>> = vec![
            (vec![], None, None),
            (vec![("traceparent", W3C)], remote, Some(true)),
            (vec![("b3", &b3_1)], remote, Some(true)),
            (vec![("b3", "a3ce929d0e0e4736-00f067aa0ba902b7")], narrow, None),
            (vec![("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-d")], narrow, Some(true)),
            (vec![("b3", "0")], None, Some(false)),
            (vec![("x-b3-traceid", id), ("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-sampled", "0")], remote, Some(false)),
            (vec![("x-b3-traceid", id), ("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-flags", "1")], remote, Some(true)),
            (vec![("x-b3-sampled", "true")], None, Some(true)),
            (vec![("traceparent", other), ("b3", &b3_1)], one, Some(false)),
            (vec![("traceparent", "nonsense"), ("b3", &b3_1)], remote, Some(true)),
            (vec![("traceparent", W3C), ("traceparent", other)], None, None),
        ];
        for (pairs, remote, sampled) in table {
            let found = {
                let map = headers(&pairs);
                read(&map, Forms::of(&map))
            };
            assert_eq!((found.remote, found.sampled), (remote, sampled), "{pairs:?}");
        }
    }

    /// Aim: a traceparent that breaks a rule of section 3.2.2 counts as absent; a later version is read for what we know.
    #[test]
    fn broken_traceparents_are_absent() {
        let with = |from: usize, text: &str| {
            let mut value = W3C.to_owned();
            value.replace_range(from..from + text.len(), text);
            value
        };
        let zero_trace = with(3, "00000000000000000000000000000000");
        let zero_span = with(36, "0000000000000000");
        for bad in ["", "00", &with(0, "ff"), &with(3, "4B"), &with(3, "zz"), &zero_trace, &zero_span, &with(52, "x"), &format!("{W3C}-x")]
        {
            assert_eq!(parse_traceparent(bad.as_bytes()), None, "{bad}");
        }
        assert!(parse_traceparent(format!("{}-what", with(0, "01")).as_bytes()).is_some());
        assert!(parse_traceparent(format!("{}.what", with(0, "01")).as_bytes()).is_none());
    }

    /// Aim: our span replaces the caller's in every form the caller used, and in W3C always.
    #[test]
    fn headers_are_rewritten_in_the_forms_the_caller_used() {
        let context = Context { trace_id: TRACE, span_id: 7, parent: Some(SPAN), sampled: true };
        let ours = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01";

        let mut map = headers(&[("traceparent", W3C), ("tracestate", "a=b")]);
        let found = read(&map, Forms::of(&map));
        write(&mut map, &found, &context);
        assert_eq!(map, headers(&[("traceparent", ours), ("tracestate", "a=b")]));

        let mut map = headers(&[("tracestate", "a=b"), ("b3", "1")]);
        let found = read(&map, Forms::of(&map));
        write(&mut map, &found, &Context { parent: None, ..context });
        assert_eq!(map, headers(&[("traceparent", ours), ("b3", "4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-1")]));

        let mut map = headers(&[("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"), ("x-b3-spanid", "00f067aa0ba902b7")]);
        let found = read(&map, Forms::of(&map));
        write(&mut map, &found, &context);
        assert_eq!(
            map,
            headers(&[
                ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
                ("x-b3-spanid", "0000000000000007"),
                ("x-b3-parentspanid", "00f067aa0ba902b7"),
                ("x-b3-sampled", "1"),
                ("traceparent", ours),
            ])
        );
    }

    /// Aim: the stock B3 propagator drops a bare state and takes ids without a state for undecided: ids and a decision always, and `d`, which
    /// is more than `1`, stays `d`.
    #[test]
    fn b3_always_has_ids_and_an_explicit_decision() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (before, sampled, state) in [
            ("d", true, "d"),
            (&format!("{id}-00f067aa0ba902b7-d"), true, "d"),
            (&format!("{id}-00f067aa0ba902b7-d-05e3ac9a4f6e3b90"), true, "d"),
            (&format!("{id}-00f067aa0ba902b7-1-0000000000000ddd"), true, "1"),
            (&format!("{id}-00f067aa0ba902b7"), true, "1"),
            ("0", false, "0"),
            ("1", true, "1"),
        ] {
            let mut map = headers(&[("b3", before)]);
            let found = read(&map, Forms::of(&map));
            write(&mut map, &found, &Context { trace_id: TRACE, span_id: 7, parent: None, sampled });
            assert_eq!(map["b3"], format!("{id}-0000000000000007-{state}"), "{before}");
        }
        for (name, value, sampled) in [("x-b3-flags", "1", None), ("x-b3-flags", "0", Some("1")), ("x-b3-sampled", "1", Some("1"))] {
            let mut map = headers(&[(name, value)]);
            let found = read(&map, Forms::of(&map));
            write(&mut map, &found, &Context { trace_id: TRACE, span_id: 7, parent: None, sampled: true });
            assert_eq!(map.get("x-b3-sampled").and_then(|value| value.to_str().ok()), sampled, "{name}: {value}");
            assert!(map.contains_key("x-b3-traceid") && map.contains_key("x-b3-spanid"));
        }
    }

    /// Aim: of all bytes, in every place, only the sixteen digits count.
    #[test]
    fn only_digits_are_digits() {
        for place in 0..8 {
            for byte in 0..=u8::MAX {
                let mut text = *b"0189abef";
                text[place] = byte;
                let told = std::str::from_utf8(&text).ok().filter(|_| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
                assert_eq!(hex_u32(&text), told.and_then(|text| u32::from_str_radix(text, 16).ok()), "{byte:#x} at {place}");
            }
        }
    }

    proptest! {
        /// Aim: no bytes make the parsers panic.
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_traceparent(&text);
            let _ = parse_b3(&text);
        }

        /// Aim: near-valid text is survived too, cut and bent at any place.
        #[test]
        fn bent_contexts_are_survived(at in 0usize..55, byte in any::<u8>(), cut in 0usize..80) {
            let mut text = format!("{W3C}-1-05e3ac9a4f6e3b90-----").into_bytes();
            text[at] = byte;
            text.truncate(cut);
            let _ = parse_traceparent(&text);
            let _ = parse_b3(&text);
            let _ = parse_b3(&text[text.len().min(3)..]);
        }

        /// Aim: what we write is what we read.
        #[test]
        fn contexts_round_trip(trace_id in 1u128.., span_id in 1u64.., parent in proptest::option::of(1u64..), sampled: bool) {
            let context = Context { trace_id, span_id, parent, sampled };
            let expected = (Remote { trace_id, span_id }, sampled);
            prop_assert_eq!(parse_traceparent(traceparent(&context).as_bytes()), Some(expected));
            for debug in [false, true] {
                prop_assert_eq!(parse_b3(b3_single(&context, debug).as_bytes()), Some((Some(expected.0), Some(sampled))));
            }
        }
    }
}
