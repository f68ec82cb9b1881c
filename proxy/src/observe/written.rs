//! How a finished exchange is written to the access log: in the form of the configuration that it was served by. In the forms of plain text no
//! value of a client's can end a line or a quoted field: quotes, backslashes and whatever is not printable ASCII are written `\xHH`.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use engine::failure::{Blame, Reason};
use engine::model::{LogField, LogFormat, LogPiece, LogTemplate};
use http::Version;
use time::OffsetDateTime;

use super::batch::{Batch, Record};
use super::labels::{CODE_NONE, GRPC_NONE, Wire};
use super::line::{Lines, bare_address, millis, number};
use super::record::Word;
use super::secrets::without_user;
use super::shape::{Party, Shape};
use super::trace::{hex_of_u64, hex_of_u128};

/// What stands for a value that is not there, as in Apache's and nginx's logs.
const NONE: &[u8] = b"-";
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Adds a record's line.
pub(super) fn push(lines: &mut Lines, batch: &Batch, record: &Record) {
    let shape = batch.shape(record);
    match shape.settings.as_deref().map(|settings| &settings.log_format) {
        Some(LogFormat::Json) | None => lines.push(batch, record),
        Some(LogFormat::Combined) => lines.add(|lines| Line { lines, batch, record, shape }.combined()),
        Some(LogFormat::Text(template)) => lines.add(|lines| Line { lines, batch, record, shape }.by(template)),
    }
}

/// One line in the making.
struct Line<'a> {
    lines: &'a mut Lines,
    batch: &'a Batch,
    record: &'a Record,
    shape: &'a Shape,
}

impl<'a> Line<'a> {
    fn by(&mut self, template: &LogTemplate) {
        for piece in template.pieces() {
            match piece {
                LogPiece::Literal(text) => self.lines.out().extend_from_slice(text.as_bytes()),
                LogPiece::Field(field) => self.field(*field),
            }
        }
    }

    /// `HOST - USER [TIME] "REQUEST" STATUS BYTES "REFERER" "AGENT"`. What is no request has `-` there, and `000` for a status, as nginx writes it.
    fn combined(&mut self) {
        self.field(LogField::ClientAddress);
        self.raw(b" - ");
        self.field(LogField::Consumer);
        self.raw(b" [");
        self.field(LogField::LocalTime);
        self.raw(b"] \"");
        if self.record.version.is_some() {
            self.field(LogField::Method);
            self.raw(b" ");
            self.field(LogField::Path);
            self.raw(b" ");
            self.protocol(true);
        } else {
            self.raw(NONE);
        }
        self.raw(b"\" ");
        match self.record.code {
            CODE_NONE => self.raw(b"000"),
            code => number(self.lines.out(), u64::from(code)),
        }
        self.raw(b" ");
        self.field(LogField::ResponseBytes);
        self.raw(b" \"");
        self.field(LogField::Referer);
        self.raw(b"\" \"");
        self.field(LogField::UserAgent);
        self.raw(b"\"");
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.lines.out().extend_from_slice(bytes);
    }

    fn text(&mut self, text: Option<&str>) {
        let out = self.lines.out();
        match text {
            Some(text) if !text.is_empty() => escaped(out, text),
            _ => out.extend_from_slice(NONE),
        }
    }

    fn number(&mut self, value: Option<u64>) {
        match value {
            Some(value) => number(self.lines.out(), value),
            None => self.raw(NONE),
        }
    }

    fn word(&mut self, word: Word) {
        let text = self.batch.word(self.record, word);
        self.text(text);
    }

    fn millis(&mut self, time: Option<Duration>) {
        match time {
            Some(time) => millis(self.lines.out(), time),
            None => self.raw(NONE),
        }
    }

    fn field(&mut self, field: LogField) {
        let (record, shape, batch) = (self.record, self.shape, self.batch);
        match field {
            LogField::Time => self.lines.time(record.started_nanos),
            LogField::LocalTime => {
                let _ = write!(Formatted(self.lines.out()), "{}", LocalTime(record.started_nanos));
            }
            LogField::Direction => self.text(Some(shape.direction.text())),
            LogField::Epoch => self.number(Some(record.epoch)),
            LogField::TraceId => match record.context {
                Some(context) => self.raw(&hex_of_u128(context.trace_id)),
                None => self.raw(NONE),
            },
            LogField::SpanId => match record.context.filter(|context| context.sampled || record.kept.is_some()) {
                Some(context) => self.raw(&hex_of_u64(context.span_id)),
                None => self.raw(NONE),
            },
            LogField::Method => self.word(Word::Method),
            LogField::Scheme => self.text(record.version.map(|_| if record.https { "https" } else { "http" })),
            LogField::Host => self.text(batch.word(record, Word::Host).map(without_user)),
            LogField::Path => self.target(Word::Path),
            LogField::Referer => self.target(Word::Referer),
            LogField::Protocol => self.protocol(false),
            LogField::Status => self.number(Some(u64::from(record.code)).filter(|_| record.code != CODE_NONE)),
            LogField::GrpcStatus => {
                self.number(Some(u64::from(record.grpc)).filter(|_| record.grpc != GRPC_NONE && record.wire == Wire::Grpc));
            }
            LogField::Reason => self.text(record.reason.map(Reason::text)),
            LogField::Blame => self.text(record.blame.map(Blame::text)),
            LogField::Route => self.text(shape.rule.as_ref().map(|rule| &*rule.source.label)),
            LogField::Rule => self.text(shape.rule.as_ref().map(|rule| &*rule.source.rule)),
            LogField::RequestBytes => self.number(Some(record.request_bytes)),
            LogField::ResponseBytes => self.number(Some(record.response_bytes)),
            LogField::DurationMs => self.millis(Some(record.duration)),
            LogField::UpstreamMs => self.millis(record.upstream),
            LogField::Attempts => self.number(Some(u64::from(record.attempts))),
            LogField::TlsVersion => self.text(shape.tls.as_ref().map(|tls| tls.version)),
            LogField::TlsCipher => self.text(shape.tls.as_ref().map(|tls| tls.cipher)),
            LogField::TlsGroup => self.text(shape.tls.as_ref().map(|tls| tls.group)),
            LogField::ClientAddress => {
                let address: IpAddr = record.client.unwrap_or_else(|| record.downstream.ip());
                let _ = write!(Formatted(self.lines.out()), "{address}");
            }
            LogField::SourceAddress => bare_address(self.lines.out(), record.downstream),
            LogField::DestinationAddress => {
                bare_address(self.lines.out(), shape.destination().address.unwrap_or(record.local));
            }
            _ => self.said(field),
        }
    }

    /// Of the two sides, and of what policies say.
    fn said(&mut self, field: LogField) {
        let shape = self.shape;
        let word = match field {
            LogField::SourceNamespace => return self.text(shape.source().namespace),
            LogField::SourceWorkload => return self.text(shape.source().workload),
            LogField::SourceIdentity => return self.identity(&shape.source()),
            LogField::DestinationNamespace => return self.text(shape.destination().namespace),
            LogField::DestinationService => return self.text(shape.destination().service),
            LogField::DestinationWorkload => return self.text(shape.destination().workload),
            LogField::DestinationIdentity => return self.identity(&shape.destination()),
            LogField::Fault => Word::Fault,
            LogField::Consumer => Word::Consumer,
            LogField::AuthMethod => Word::AuthMethod,
            LogField::Credential => Word::Credential,
            LogField::Policy => Word::Policy,
            LogField::WouldDeny => Word::WouldDeny,
            LogField::Audited => Word::Audited,
            LogField::Limit => Word::Limit,
            LogField::Partial => Word::Partial,
            LogField::UserAgent => Word::UserAgent,
            _ => Word::RequestId,
        };
        self.word(word);
    }

    /// A path or an address, without the secrets in it.
    fn target(&mut self, word: Word) {
        let secret = self.shape.secret_parameters();
        let text = self.batch.word(self.record, word).map(|text| secret.redact(text));
        self.text(text.as_deref());
    }

    fn identity(&mut self, party: &Party<'_>) {
        let identity = party.identity.map(|identity| identity.to_string());
        self.text(identity.as_deref());
    }

    /// `dotted`: as those servers write it, `HTTP/2.0`.
    fn protocol(&mut self, dotted: bool) {
        self.raw(match self.record.version {
            None => b"TCP",
            Some(Version::HTTP_10) => b"HTTP/1.0",
            Some(Version::HTTP_2) if dotted => b"HTTP/2.0",
            Some(Version::HTTP_2) => b"HTTP/2",
            Some(Version::HTTP_3) if dotted => b"HTTP/3.0",
            Some(Version::HTTP_3) => b"HTTP/3",
            Some(_) => b"HTTP/1.1",
        });
    }
}

/// Printable ASCII but quotes and backslashes stays as it is.
fn escaped(out: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..b' ' | 0x7f.. => {
                out.extend_from_slice(b"\\x");
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
            plain => out.push(plain),
        }
    }
}

/// Formats into bytes.
struct Formatted<'a>(&'a mut Vec<u8>);

impl fmt::Write for Formatted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Nanoseconds since 1970 as Apache's `%t` in UTC, without brackets.
struct LocalTime(u64);

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from(UNIX_EPOCH + Duration::from_nanos(self.0));
        let month = MONTHS[usize::from(u8::from(at.month()) - 1) % MONTHS.len()];
        write!(f, "{:02}/{month}/{:04}:{:02}:{:02}:{:02} +0000", at.day(), at.year(), at.hour(), at.minute(), at.second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: whatever a client says, it ends no line and no quoted field; printable text stays as it is.
    #[test]
    fn no_value_ends_a_line_or_a_field() {
        let mut out = Vec::new();
        escaped(&mut out, "curl/8 \"x\" \\ a\nb\r\u{7f}é\t");
        assert_eq!(String::from_utf8(out).unwrap(), "curl/8 \\x22x\\x22 \\x5C a\\x0Ab\\x0D\\x7F\\xC3\\xA9\\x09");
        assert_eq!(LocalTime(1_796_119_200_000_000_000).to_string(), "01/Dec/2026:10:00:00 +0000");
    }

    proptest::proptest! {
        /// Aim: the same of any text.
        #[test]
        fn any_text_is_one_field(text: String) {
            let mut out = Vec::new();
            escaped(&mut out, &text);
            proptest::prop_assert!(out.iter().all(|byte| (b' '..0x7f).contains(byte) && *byte != b'"'));
        }
    }
}
