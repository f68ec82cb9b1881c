//! HTTP/2 written by hand: well-behaved libraries cannot misbehave.

use super::*;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame (RFC 9113, section 4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block without compression: each field literal and not indexed.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [&[0][..], &text(name), &text(value)].concat()).collect()
}

/// A string literal (RFC 7541, section 5.2).
pub(super) fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if text.len() < 127 {
        bytes.push(text.len() as u8);
    } else {
        bytes.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            bytes.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        bytes.push(rest as u8);
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The fields of a plain request.
pub(super) const PLAIN: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

/// A whole request without a body.
pub(super) fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&PLAIN))
}

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The code of a reset or of a GOAWAY.
    pub(super) fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().unwrap()))
    }

    /// The status that an answer's header block begins with.
    pub(super) fn status(&self) -> Option<u16> {
        let (first, rest) = self.payload.split_first().filter(|_| self.kind == HEADERS)?;
        match first {
            0x88..=0x8e => Some([200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)]),
            0x08 | 0x18 | 0x48 => Some(digits(rest)),
            _ => None,
        }
    }
}

/// Three digits, perhaps in Huffman's code (RFC 7541, appendix B).
fn digits(bytes: &[u8]) -> u16 {
    if bytes[0] & 0x80 == 0 {
        return std::str::from_utf8(&bytes[1..4]).unwrap().parse().unwrap();
    }
    let bits: String = bytes[1..=usize::from(bytes[0] & 0x7f)].iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut number, mut at) = (0, 0);
    for _ in 0..3 {
        let five = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
        if five <= 2 {
            (number, at) = (number * 10 + five, at + 5);
        } else {
            number = number * 10 + u16::from_str_radix(&bits[at..at + 6], 2).unwrap() - 0x19 + 3;
            at += 6;
        }
    }
    number
}

/// The frames in bytes; a last one that is not whole is left out.
pub(super) fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut all = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        if bytes.len() < 9 + length {
            break;
        }
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        all.push(Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..9 + length].to_vec() });
        bytes = &bytes[9 + length..];
    }
    all
}

/// A connection that has begun as it should; SETTINGS are acknowledged.
pub(super) async fn begun(door: Door, world: &World) -> Socket {
    begun_with(door, world, &[]).await
}

/// The same with SETTINGS of its own.
pub(super) async fn begun_with(door: Door, world: &World, settings: &[u8]) -> Socket {
    let mut socket = door.dial(world);
    socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings), &frame(SETTINGS, 1, 0, &[])].concat()).await.unwrap();
    heard(&mut socket).await;
    socket
}

/// What the server says until it says nothing more, and whether it has closed.
pub(super) async fn heard(socket: &mut Socket) -> (Vec<Frame>, bool) {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(QUIET, socket.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            ended => return (frames(&bytes), ended.is_ok()),
        }
    }
}

/// How a server has ended something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The connection, with this code in a GOAWAY.
    Away(u32),
    /// The connection, without a word.
    Closed,
    /// The stream, with this code.
    Reset(u32),
    /// Not at all: it was answered so.
    Status(u16),
    /// Not at all.
    Lives,
}

/// How it has ended stream 1 or the connection.
pub(super) fn end(frames: &[Frame], closed: bool) -> End {
    let away = frames.iter().filter(|frame| frame.kind == GOAWAY).filter_map(Frame::code).next_back();
    if let Some(code) = away.filter(|code| *code != 0) {
        return End::Away(code);
    }
    let own = || frames.iter().filter(|frame| frame.stream == 1);
    if let Some(status) = own().find_map(Frame::status) {
        return End::Status(status);
    }
    if let Some(code) = own().filter(|frame| frame.kind == RST_STREAM).find_map(Frame::code) {
        return End::Reset(code);
    }
    if closed { End::Closed } else { End::Lives }
}
