//! What gRPC's C core (Python, C++, Ruby) says as `:authority` over a Unix socket: the socket's path, percent-encoded. That is a registered
//! name (RFC 3986, section 3.2.2), but the crate `http` takes no percent signs in one, so `h2` resets such a call before anybody can judge
//! it (`findings/grpc-unix-authority.sh`). Nothing here goes by the authority, so the signs are replaced as the bytes come in, length for
//! length: what HPACK remembers of them stays in step.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::io::LocalStream;

/// The connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: u32 = 24;
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// A literal name as the C core writes it: its length, then its text, neither Huffman-coded (RFC 7541, section 5.2).
const NAME: &[u8] = b"\x0a:authority";
/// Lengths from here on have further bytes (RFC 7541, section 5.1).
const LENGTH_PREFIX: u8 = 0x7f;
const HUFFMAN: u8 = 0x80;

/// Where in an HTTP/2 stream of bytes we are.
#[derive(Debug)]
enum Place {
    Preface { left: u32 },
    FrameHead { head: [u8; FRAME_HEAD_BYTES], have: usize },
    Payload { left: u32, fields: bool },
}

/// Where in a header block.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// So many bytes of [`NAME`] have been seen.
    Name(usize),
    /// The name is over: the value's length comes.
    Length,
    /// So much is known of a long length.
    LongLength { so_far: u32, shift: u32 },
    /// So many bytes of the value are left.
    Value(u32),
}

/// Replaces the percent signs of authorities in what a client sends.
#[derive(Debug)]
struct Mender {
    place: Place,
    field: Field,
}

impl Default for Mender {
    fn default() -> Self {
        Self { place: Place::Preface { left: PREFACE_BYTES }, field: Field::Name(0) }
    }
}

impl Mender {
    fn mend(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.step(byte);
        }
    }

    fn step(&mut self, byte: &mut u8) {
        match &mut self.place {
            Place::Preface { left } => {
                *left -= 1;
                if *left == 0 {
                    self.place = Place::FrameHead { head: [0; FRAME_HEAD_BYTES], have: 0 };
                }
            }
            Place::FrameHead { head, have } => {
                head[*have] = *byte;
                *have += 1;
                if *have == FRAME_HEAD_BYTES {
                    let left = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                    self.place = Self::after_head(left, matches!(head[3], HEADERS | CONTINUATION));
                }
            }
            Place::Payload { left, fields } => {
                let (rest, fields) = (*left - 1, *fields);
                if fields {
                    self.field = self.field.step(byte);
                }
                self.place = Self::after_head(rest, fields);
            }
        }
    }

    fn after_head(left: u32, fields: bool) -> Place {
        if left == 0 { Place::FrameHead { head: [0; FRAME_HEAD_BYTES], have: 0 } } else { Place::Payload { left, fields } }
    }
}

impl Field {
    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Name(seen) if *byte == NAME[seen] && seen + 1 == NAME.len() => Self::Length,
            Self::Name(seen) if *byte == NAME[seen] => Self::Name(seen + 1),
            Self::Name(_) => Self::Name(usize::from(*byte == NAME[0])),
            Self::Length if *byte & HUFFMAN != 0 => Self::Name(0),
            Self::Length if *byte == LENGTH_PREFIX => Self::LongLength { so_far: LENGTH_PREFIX.into(), shift: 0 },
            Self::Length => Self::value(u32::from(*byte)),
            Self::LongLength { so_far, shift } => {
                let part = u32::from(*byte & 0x7f).checked_shl(shift).unwrap_or(u32::MAX);
                let so_far = so_far.saturating_add(part);
                if *byte & 0x80 == 0 { Self::value(so_far) } else { Self::LongLength { so_far, shift: shift + 7 } }
            }
            Self::Value(left) => {
                if *byte == b'%' {
                    *byte = b'-';
                }
                Self::value(left - 1)
            }
        }
    }

    fn value(left: u32) -> Self {
        if left == 0 { Self::Name(0) } else { Self::Value(left) }
    }
}

/// A connection whose authorities `h2` can read.
#[derive(Debug)]
pub(super) struct Mended {
    stream: LocalStream,
    mender: Mender,
}

impl Mended {
    pub(super) fn new(stream: LocalStream) -> Self {
        Self { stream, mender: Mender::default() }
    }
}

impl Connected for Mended {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Mended {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.mender.mend(&mut buf.filled_mut()[before..]);
        polled
    }
}

impl AsyncWrite for Mended {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    /// Aim: as the C core sends it, in whatever pieces it arrives, the authority's signs are replaced and nothing else is touched.
    #[test]
    fn only_the_authority_is_mended() {
        let long = "a%2F".repeat(40);
        // 160 bytes: 0x7f, and 33 beyond it.
        let fields =
            [&b"@\x05:path\x04/%2f@\x0a:authority\x0btmp%2Fx%2Fs@\x0a:authority\x7f\x21"[..], long.as_bytes(), b"@\x01a\x01%"].concat();
        let sent = [
            PREFACE,
            &frame(4, &[]),
            &frame(HEADERS, &fields),
            &frame(0, b"\x0a:authority\x03%%%"),
            &frame(HEADERS, b"@\x0a:authority\x83%%%"),
        ]
        .concat();
        let wanted = String::from_utf8_lossy(&sent).replace("tmp%2Fx%2Fs", "tmp-2Fx-2Fs").replace(&long, &long.replace('%', "-"));
        for piece in [1, 2, 7, sent.len()] {
            let (mut mender, mut bytes) = (Mender::default(), sent.clone());
            bytes.chunks_mut(piece).for_each(|piece| mender.mend(piece));
            assert_eq!(String::from_utf8_lossy(&bytes), wanted, "in pieces of {piece}");
        }
    }

    /// Aim: a value that goes on in the next frame is mended to its end.
    #[test]
    fn a_value_over_two_frames_is_mended() {
        let mut bytes = [PREFACE, &frame(HEADERS, b"@\x0a:authority\x06a%"), &frame(CONTINUATION, b"b%c%d%")].concat();
        Mender::default().mend(&mut bytes);
        let mended = String::from_utf8_lossy(&bytes).into_owned();
        assert!(mended.contains("a-") && mended.ends_with("b-c-d%"), "{mended:?}");
    }

    proptest::proptest! {
        /// Aim: no bytes make it panic, and it never changes how many there are or what is no percent sign.
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let sent = [PREFACE, &bytes].concat();
            let mut mended = sent.clone();
            Mender::default().mend(&mut mended);
            proptest::prop_assert!(sent.iter().zip(&mended).all(|(before, after)| before == after || (*before == b'%' && *after == b'-')));
        }
    }
}
