//! The access log's lines: one of JSON per exchange, with the fields of kinds.md in that order, written directly into one buffer.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::failure::{Blame, Reason};
use http::Version;
use time::OffsetDateTime;

use super::batch::{Batch, Record};
use super::labels::{CODE_NONE, GRPC_NONE, Wire};
use super::record::Word;
use super::secrets::{Secret, without_user};
use super::shape::{LineParts, Party, Shape};
use super::trace::{hex_of_u64, hex_of_u128};

/// Room for a line without its texts.
const LINE_BYTES: usize = 1024;
const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Lines that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Lines {
    out: Vec<u8>,
    /// The second whose text is in `moment`.
    second: Option<u64>,
    moment: Vec<u8>,
}

impl Lines {
    /// Adds a record's line.
    pub(super) fn push(&mut self, batch: &Batch, record: &Record) {
        let shape = batch.shape(record);
        let parts = shape.line.get_or_init(|| LineParts::of(shape));
        let secret = shape.secret_parameters();
        self.out.reserve(LINE_BYTES);
        self.out.extend_from_slice(b"{\"time\":\"");
        self.time(record.started_nanos);
        self.out.extend_from_slice(parts.part(0));
        let out = &mut self.out;
        number(out, record.epoch);
        trace(out, record);
        head(out, batch, record, secret);
        outcome(out, record);
        out.extend_from_slice(parts.part(1));
        address(out, record.downstream);
        out.extend_from_slice(parts.part(2));
        if !parts.destination_known {
            address(out, record.local);
        }
        out.extend_from_slice(parts.part(3));
        end(out, batch, record);
    }

    /// Adds a line of another form: what `write` appends, in which no line may end.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Self)) {
        self.out.reserve(LINE_BYTES);
        write(self);
        self.out.push(b'\n');
    }

    /// What is being written.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// All lines, each with its line feed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// Forgets them; room beyond `keep` bytes is freed.
    pub(super) fn clear(&mut self, keep: usize) {
        self.out.clear();
        self.out.shrink_to(keep);
    }

    /// As [`Rfc3339`]; what is the same for all of a second is written once a second.
    pub(super) fn time(&mut self, nanos: u64) {
        let second = nanos / NANOS_PER_SEC;
        if self.second != Some(second) {
            self.moment.clear();
            let _ = write!(self.moment, "{}", Rfc3339(UNIX_EPOCH + Duration::from_secs(second)));
            self.moment.truncate(self.moment.len() - "000000Z".len());
            self.second = Some(second);
        }
        self.out.extend_from_slice(&self.moment);
        let micros = (nanos % NANOS_PER_SEC / 1000) as u32;
        let mut digits = *b"000000Z";
        let mut rest = micros;
        for place in (0..6).rev() {
            digits[place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.out.extend_from_slice(&digits);
    }
}

impl LineParts {
    fn of(shape: &Shape) -> Self {
        let (source, destination) = (shape.source(), shape.destination());
        let mut text = Vec::with_capacity(LINE_BYTES);
        text.extend_from_slice(b"\",\"direction\":");
        string(&mut text, shape.direction.text());
        text.extend_from_slice(b",\"epoch\":");
        let before_epoch = text.len();
        let rule = shape.rule.as_ref().map(|rule| &rule.source);
        text.extend_from_slice(b",\"route\":");
        optional(&mut text, rule.map(|rule| &*rule.label).filter(|label| !label.is_empty()));
        text.extend_from_slice(b",\"rule\":");
        optional(&mut text, rule.map(|rule| &*rule.rule));
        text.extend_from_slice(b",\"source\":{\"namespace\":");
        optional(&mut text, source.namespace);
        party(&mut text, &source);
        let before_source = text.len();
        text.extend_from_slice(b"},\"destination\":{\"namespace\":");
        optional(&mut text, destination.namespace);
        text.extend_from_slice(b",\"service\":");
        optional(&mut text, destination.service);
        party(&mut text, &destination);
        let before_destination = text.len();
        if let Some(known) = destination.address {
            address(&mut text, known);
        }
        let ends = [before_epoch, before_source, before_destination];
        text.extend_from_slice(b"},\"mtls\":");
        match &shape.tls {
            None => text.extend_from_slice(b"null"),
            Some(tls) => {
                for (key, value) in [("{\"version\":", tls.version), (",\"cipher\":", tls.cipher), (",\"group\":", tls.group)] {
                    text.extend_from_slice(key.as_bytes());
                    string(&mut text, value);
                }
                text.push(b'}');
            }
        }
        text.extend_from_slice(b",\"request_bytes\":");
        Self { text, ends, destination_known: destination.address.is_some() }
    }

    fn part(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = self.ends.get(number).copied().unwrap_or(self.text.len());
        &self.text[start..end]
    }
}

/// Workload and identity of a party, up to its address.
fn party(out: &mut Vec<u8>, party: &Party<'_>) {
    out.extend_from_slice(b",\"workload\":");
    optional(out, party.workload);
    out.extend_from_slice(b",\"identity\":");
    optional(out, party.identity.map(|identity| identity.to_string()).as_deref());
    out.extend_from_slice(b",\"address\":");
}

fn trace(out: &mut Vec<u8>, record: &Record) {
    out.extend_from_slice(b",\"trace_id\":");
    match record.context {
        None => out.extend_from_slice(b"null,\"span_id\":null"),
        Some(context) => {
            out.push(b'"');
            out.extend_from_slice(&hex_of_u128(context.trace_id));
            if context.sampled || record.kept.is_some() {
                out.extend_from_slice(b"\",\"span_id\":\"");
                out.extend_from_slice(&hex_of_u64(context.span_id));
                out.push(b'"');
            } else {
                out.extend_from_slice(b"\",\"span_id\":null");
            }
        }
    }
}

fn head(out: &mut Vec<u8>, batch: &Batch, record: &Record, secret: Secret<'_>) {
    let word = |word| batch.word(record, word);
    out.extend_from_slice(b",\"method\":");
    optional(out, word(Word::Method));
    out.extend_from_slice(match (record.version, record.https) {
        (None, _) => b",\"scheme\":null,\"host\":",
        (_, false) => b",\"scheme\":\"http\",\"host\":",
        (_, true) => b",\"scheme\":\"https\",\"host\":",
    });
    optional(out, word(Word::Host).map(without_user));
    out.extend_from_slice(b",\"path\":");
    optional(out, word(Word::Path).map(|path| secret.redact(path)).as_deref());
    out.extend_from_slice(match record.version {
        None => b",\"protocol\":\"TCP\"",
        Some(Version::HTTP_10) => b",\"protocol\":\"HTTP/1.0\"",
        Some(Version::HTTP_2) => b",\"protocol\":\"HTTP/2\"",
        Some(Version::HTTP_3) => b",\"protocol\":\"HTTP/3\"",
        Some(_) => b",\"protocol\":\"HTTP/1.1\"",
    });
}

fn outcome(out: &mut Vec<u8>, record: &Record) {
    out.extend_from_slice(b",\"status\":");
    optional_number(out, Some(u64::from(record.code)).filter(|_| record.code != CODE_NONE));
    out.extend_from_slice(b",\"grpc_status\":");
    optional_number(out, Some(u64::from(record.grpc)).filter(|_| record.grpc != GRPC_NONE && record.wire == Wire::Grpc));
    out.extend_from_slice(b",\"reason\":");
    optional(out, record.reason.map(Reason::text));
    out.extend_from_slice(b",\"blame\":");
    optional(out, record.blame.map(Blame::text));
}

fn end(out: &mut Vec<u8>, batch: &Batch, record: &Record) {
    number(out, record.request_bytes);
    out.extend_from_slice(b",\"response_bytes\":");
    number(out, record.response_bytes);
    out.extend_from_slice(b",\"duration_ms\":");
    millis(out, record.duration);
    out.extend_from_slice(b",\"upstream_ms\":");
    match record.upstream {
        Some(upstream) => millis(out, upstream),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"attempts\":");
    number(out, u64::from(record.attempts));
    out.extend_from_slice(b",\"retries\":");
    retries(out, batch.retries(record));
    out.extend_from_slice(b",\"fault\":");
    optional(out, batch.word(record, Word::Fault));
    if let Some(client) = record.client {
        // An address needs no escapes.
        let _ = write!(out, ",\"client_address\":\"{client}\"");
    }
    // Only where there are policies: most exchanges have none to tell of.
    let policies: [(&[u8], Word); 8] = [
        (b",\"consumer\":", Word::Consumer),
        (b",\"auth_method\":", Word::AuthMethod),
        (b",\"credential\":", Word::Credential),
        (b",\"policy\":", Word::Policy),
        (b",\"would_deny\":", Word::WouldDeny),
        (b",\"audited\":", Word::Audited),
        (b",\"limit\":", Word::Limit),
        (b",\"partial\":", Word::Partial),
    ];
    for (key, word) in policies {
        if let Some(text) = batch.word(record, word) {
            out.extend_from_slice(key);
            string(out, text);
        }
    }
    if let Some(json) = batch.word(record, Word::ClientTls) {
        out.extend_from_slice(b",\"client_tls\":");
        out.extend_from_slice(json.as_bytes());
    }
    out.extend_from_slice(b",\"user_agent\":");
    optional(out, batch.word(record, Word::UserAgent));
    out.extend_from_slice(b",\"request_id\":");
    optional(out, batch.word(record, Word::RequestId));
    out.extend_from_slice(b"}\n");
}

/// Attempts that were made again, as a JSON list.
pub(super) fn retries(out: &mut Vec<u8>, retries: &[(SocketAddr, Reason)]) {
    out.push(b'[');
    for (n, (failed, reason)) in retries.iter().enumerate() {
        out.extend_from_slice(if n == 0 { b"{\"address\":" } else { b",{\"address\":" });
        address(out, *failed);
        out.extend_from_slice(b",\"reason\":");
        string(out, reason.text());
        out.push(b'}');
    }
    out.push(b']');
}

fn optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// A JSON string. Nearly all need no escapes, which one pass without branches finds out.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    let plain = text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
    if plain {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // Writing into memory fails for no text.
        let _ = serde_json::to_writer(out, text);
    }
}

fn optional_number(out: &mut Vec<u8>, value: Option<u64>) {
    match value {
        Some(value) => number(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

pub(super) fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// As a JSON string.
pub(super) fn address(out: &mut Vec<u8>, address: SocketAddr) {
    out.push(b'"');
    bare_address(out, address);
    out.push(b'"');
}

pub(super) fn bare_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            for (n, part) in v4.ip().octets().into_iter().enumerate() {
                if n > 0 {
                    out.push(b'.');
                }
                number(out, u64::from(part));
            }
            out.push(b':');
            number(out, u64::from(v4.port()));
        }
        SocketAddr::V6(_) => _ = write!(out, "{address}"),
    }
}

/// Milliseconds with one to three decimals.
pub(super) fn millis(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    number(out, micros / 1000);
    out.push(b'.');
    let rest = (micros % 1000) as u16;
    let digits = [rest / 100, rest / 10 % 10, rest % 10].map(|digit| b'0' + digit as u8);
    let length = if !rest.is_multiple_of(10) {
        3
    } else if !rest.is_multiple_of(100) {
        2
    } else {
        1
    };
    out.extend_from_slice(&digits[..length]);
}

/// A moment as RFC 3339 in UTC with microseconds.
pub(super) struct Rfc3339(pub(super) SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from(self.0);
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z", at.hour(), at.minute(), at.second(), at.microsecond())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// Aim: milliseconds read as the shortest number with a fraction, as a JSON library would write them.
    #[test]
    fn milliseconds_are_short() {
        for micros in [0, 1, 10, 12, 100, 120, 999, 1000, 4500, 10_010, 123_456_789, 1 << 52] {
            let wanted = serde_json::to_string(&(micros as f64 / 1000.0)).unwrap();
            assert_eq!(written(|out| millis(out, Duration::from_micros(micros))), wanted);
        }
    }

    /// Aim: the clock's text is right across seconds, in both orders.
    #[test]
    fn moments_are_written_as_one() {
        for nanos in [0, 999_999_999, 1_000_000_000, 1_800_000_000_004_005_006, 1_799_999_999_999_999_999, 4_102_444_800_000_001_000] {
            let mut lines = Lines { second: Some(1_800_000_000), moment: b"2027-01-15T08:00:00.".to_vec(), ..Lines::default() };
            lines.time(nanos);
            lines.time(nanos);
            let wanted = Rfc3339(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string();
            assert_eq!(String::from_utf8(lines.out).unwrap(), format!("{wanted}{wanted}"));
        }
    }

    proptest! {
        /// Aim: every text is the string a JSON library reads back, every address its usual text.
        #[test]
        fn strings_and_addresses_are_json(text: String, ip: std::net::IpAddr, port: u16) {
            prop_assert_eq!(serde_json::from_str::<String>(&written(|out| string(out, &text))).unwrap(), text);
            let socket = SocketAddr::new(ip, port);
            prop_assert_eq!(written(|out| address(out, socket)), format!("\"{socket}\""));
        }
    }
}
