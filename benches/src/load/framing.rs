//! Where an HTTP/1.1 response ends (RFC 9112, section 6), found without keeping the body.

use super::fault::Fault;

/// Most header fields of a response.
const FIELDS_MAX: usize = 64;
/// Longest line in a chunked body that is not data.
const LINE_BYTES_MAX: u32 = 8 << 10;

/// A response's head.
#[derive(Debug)]
pub(super) struct Head {
    /// Its length.
    pub bytes: usize,
    /// Status code.
    pub status: u16,
    /// How the body ends.
    pub body: Body,
    /// Whether the connection may carry another request.
    pub keep: bool,
}

impl Head {
    /// Reads a head; `None` while it is not whole.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub(super) fn parse(text: &[u8]) -> Result<Option<Self>, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(bytes) = response.parse(text).map_err(|_| Fault::Malformed)? else { return Ok(None) };
        let status = response.code.ok_or(Fault::Malformed)?;
        let (mut length, mut chunked, mut keep) = (None, false, response.version == Some(1));
        for field in response.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                length = Some(number(field.value)?);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = field.value.eq_ignore_ascii_case(b"chunked");
            } else if field.name.eq_ignore_ascii_case("connection") {
                keep &= !field.value.eq_ignore_ascii_case(b"close");
            }
        }
        let body = match length {
            _ if chunked => Body::Chunked(Chunk::Size(None)),
            Some(length) => Body::Length(length),
            None if status == 204 || status == 304 => Body::Length(0),
            None => Body::Close,
        };
        keep &= !matches!(body, Body::Close);
        Ok(Some(Self { bytes, status, body, keep }))
    }
}

fn number(text: &[u8]) -> Result<u64, Fault> {
    std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()).ok_or(Fault::Malformed)
}

/// The rest of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// As many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// All until the peer closes.
    Close,
}

/// What is awaited inside a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// A chunk's size in hex; `None` before the first digit.
    Size(Option<u64>),
    /// The end of the size's line.
    SizeLine(u64),
    /// Data.
    Data(u64),
    /// The line end after data.
    DataLine,
    /// A line of the trailer, of which so many bytes were seen; an empty one ends the body.
    Trailer(u32),
    /// Nothing more.
    End,
}

impl Body {
    /// Takes bytes in; says how many of them were content.
    ///
    /// # Errors
    /// [`Fault::Malformed`]: the framing is broken, or there are bytes behind the end.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match self {
            Self::Close => Ok(bytes.len()),
            Self::Length(left) => {
                *left = left.checked_sub(bytes.len() as u64).ok_or(Fault::Malformed)?;
                Ok(bytes.len())
            }
            Self::Chunked(chunk) => chunk.feed(bytes),
        }
    }

    /// Whether the body is whole.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::End))
    }

    /// Whether the peer may close here.
    pub(super) fn may_close(&self) -> bool {
        *self == Self::Close
    }
}

impl Chunk {
    fn feed(&mut self, mut bytes: &[u8]) -> Result<usize, Fault> {
        let mut content = 0;
        while let Some((&first, rest)) = bytes.split_first() {
            if let Self::Data(left) = self {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                content += taken;
                bytes = &bytes[taken..];
                if *left == 0 {
                    *self = Self::DataLine;
                }
                continue;
            }
            *self = self.step(first)?;
            bytes = rest;
        }
        Ok(content)
    }

    fn step(self, byte: u8) -> Result<Self, Fault> {
        Ok(match (self, byte) {
            (Self::Size(Some(size)), b'\r' | b';' | b' ' | b'\t') => Self::SizeLine(size),
            (Self::Size(size), _) => {
                let digit = char::from(byte).to_digit(16).ok_or(Fault::Malformed)?;
                Self::Size(Some(size.unwrap_or(0).checked_mul(16).ok_or(Fault::Malformed)? | u64::from(digit)))
            }
            (Self::SizeLine(0), b'\n') => Self::Trailer(0),
            (Self::SizeLine(size), b'\n') => Self::Data(size),
            (Self::SizeLine(size), _) => Self::SizeLine(size),
            (Self::DataLine, b'\r') => Self::DataLine,
            (Self::DataLine, b'\n') => Self::Size(None),
            (Self::Trailer(0), b'\n') => Self::End,
            (Self::Trailer(_), b'\n') => Self::Trailer(0),
            (Self::Trailer(seen), b'\r') => Self::Trailer(seen),
            (Self::Trailer(seen), _) if seen < LINE_BYTES_MAX => Self::Trailer(seen + 1),
            (Self::DataLine | Self::Trailer(_) | Self::End | Self::Data(_), _) => return Err(Fault::Malformed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<Head>, Fault> {
        Head::parse(text.as_bytes())
    }

    #[test]
    fn heads_tell_where_bodies_end() {
        // Aim: length, chunks and closing, and whether the connection can be used again.
        let known = head("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").unwrap().unwrap();
        assert_eq!((known.status, known.body, known.keep, known.bytes), (200, Body::Length(3), true, 38));
        let chunked = head("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\nconnection: close\r\n\r\n").unwrap().unwrap();
        assert_eq!((chunked.body, chunked.keep), (Body::Chunked(Chunk::Size(None)), false));
        let closing = head("HTTP/1.1 200 OK\r\n\r\n").unwrap().unwrap();
        assert_eq!((closing.body, closing.keep), (Body::Close, false));
        assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap().body, Body::Length(0));
        assert!(head("HTTP/1.1 200 OK\r\nConte").unwrap().is_none());
        assert_eq!(head("SSH-2.0\r\n\r\n").unwrap_err(), Fault::Malformed);
        assert_eq!(head("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n").unwrap_err(), Fault::Malformed);
    }

    #[test]
    fn chunks_end_where_they_say_however_they_are_cut() {
        // Aim: a chunked body with an extension and a trailer, fed whole and byte by byte, has the same content and end.
        let text = b"5;name=x\r\nhello\r\nA\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n";
        let mut whole = Body::Chunked(Chunk::Size(None));
        assert_eq!(whole.feed(text), Ok(15));
        assert!(whole.is_whole());
        let mut cut = Body::Chunked(Chunk::Size(None));
        let mut content = 0;
        for byte in text {
            assert!(!cut.is_whole());
            content += cut.feed(std::slice::from_ref(byte)).unwrap();
        }
        assert_eq!((content, cut.is_whole()), (15, true));
        assert_eq!(cut.feed(b"x"), Err(Fault::Malformed));
    }

    #[test]
    fn broken_framing_is_refused() {
        // Aim: neither a bad size nor too many bytes pass for a body.
        for text in ["zz\r\n", "\r\n", "5\r\nhelloX", "fffffffffffffffff\r\n"] {
            assert_eq!(Body::Chunked(Chunk::Size(None)).feed(text.as_bytes()), Err(Fault::Malformed), "{text:?}");
        }
        assert_eq!(Body::Length(2).feed(b"abc"), Err(Fault::Malformed));
    }
}
