//! How a finished exchange is written to the access log: in the form of the configuration that it was served by. In the forms of plain text no
//! value of a client's can end a line or a quoted field: quotes, backslashes and whatever is not printable ASCII are written `\xHH`.

use std::fmt::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use engine::model::{LogField, LogFields, LogFormat, LogPiece, LogTemplate};
use http::Version;
use time::OffsetDateTime;

use super::batch::{Batch, Record};
use super::finished::{Finished, LogValue};
use super::labels::CODE_NONE;
use super::line::{Lines, address, bare_address, millis, number, retries, string};
use super::trace::{hex_of_u64, hex_of_u128};

/// What stands for a value that is not there, as in Apache's and nginx's logs.
const NONE: &[u8] = b"-";
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Adds a record's line.
pub(super) fn push(lines: &mut Lines, batch: &Batch, record: &Record) {
    let finished = Finished::of(batch, record);
    match finished.shape.settings.as_deref().map(|settings| &settings.log_format) {
        Some(LogFormat::Json) | None => lines.push(batch, record),
        Some(LogFormat::Fields(fields)) => lines.add(|lines| Line { lines, finished }.with(fields)),
        Some(LogFormat::Combined) => lines.add(|lines| Line { lines, finished }.combined()),
        Some(LogFormat::Text(template)) => lines.add(|lines| Line { lines, finished }.by(template)),
    }
}

/// One line in the making.
struct Line<'a> {
    lines: &'a mut Lines,
    finished: Finished<'a>,
}

impl Line<'_> {
    fn by(&mut self, template: &LogTemplate) {
        for piece in template.pieces() {
            match piece {
                LogPiece::Literal(text) => self.raw(text.as_bytes()),
                LogPiece::Field(field) => self.field(*field),
            }
        }
    }

    fn with(&mut self, fields: &LogFields) {
        for piece in fields.pieces() {
            match piece {
                LogPiece::Literal(text) => self.raw(text.as_bytes()),
                LogPiece::Field(field) => self.json(*field),
            }
        }
    }

    /// `HOST - USER [TIME] "REQUEST" STATUS BYTES "REFERER" "AGENT"`. What is no request has `-` there, and `000` for a status, as nginx writes it.
    fn combined(&mut self) {
        let record = self.finished.record;
        self.field(LogField::ClientAddress);
        self.raw(b" - ");
        self.field(LogField::Consumer);
        self.raw(b" [");
        self.field(LogField::LocalTime);
        self.raw(b"] \"");
        if let Some(version) = record.version {
            self.field(LogField::Method);
            self.raw(b" ");
            self.field(LogField::Path);
            self.raw(b" ");
            self.raw(match version {
                Version::HTTP_2 => b"HTTP/2.0",
                Version::HTTP_3 => b"HTTP/3.0",
                _ => self.finished.protocol().as_bytes(),
            });
        } else {
            self.raw(NONE);
        }
        self.raw(b"\" ");
        match record.code {
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

    fn field(&mut self, field: LogField) {
        match self.finished.said(field) {
            LogValue::Text(text) if !text.is_empty() => escaped(self.lines.out(), &text),
            LogValue::Text(_) | LogValue::Nothing => self.raw(NONE),
            LogValue::Whole(whole) => number(self.lines.out(), whole),
            LogValue::Time(time) => millis(self.lines.out(), time),
            LogValue::Address(address) => bare_address(self.lines.out(), address),
            LogValue::Client(address) => _ = write!(Formatted(self.lines.out()), "{address}"),
            LogValue::Moment(nanos) => self.lines.time(nanos),
            LogValue::LocalMoment(nanos) => _ = write!(Formatted(self.lines.out()), "{}", LocalTime(nanos)),
            LogValue::TraceId(id) => self.raw(&hex_of_u128(id)),
            LogValue::SpanId(id) => self.raw(&hex_of_u64(id)),
            LogValue::Retries([]) => self.raw(NONE),
            said @ (LogValue::Retries(_) | LogValue::Json(_)) => escaped(self.lines.out(), &said.into_text()),
        }
    }

    fn json(&mut self, field: LogField) {
        match self.finished.said(field) {
            LogValue::Nothing => self.raw(b"null"),
            LogValue::Text(text) => string(self.lines.out(), &text),
            LogValue::Whole(whole) => number(self.lines.out(), whole),
            LogValue::Time(time) => millis(self.lines.out(), time),
            LogValue::Address(one) => address(self.lines.out(), one),
            LogValue::Retries(list) => retries(self.lines.out(), list),
            LogValue::Json(json) => self.raw(json.as_bytes()),
            LogValue::Client(_) | LogValue::Moment(_) | LogValue::LocalMoment(_) | LogValue::TraceId(_) | LogValue::SpanId(_) => {
                // None of these holds anything to be escaped.
                self.raw(b"\"");
                self.field(field);
                self.raw(b"\"");
            }
        }
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
