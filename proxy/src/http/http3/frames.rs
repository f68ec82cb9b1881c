//! The frames of what a client sends (RFC 9114, section 7), followed before the library reads them.
//!
//! The library gathers a frame other than DATA whole, however long it says it is; takes an empty DATA frame for the end of a body; and takes
//! for whole what ends within a frame. So frames that are too long and ends that are none are told here, and what means nothing (empty frames of
//! DATA, types that nobody knows) does not reach it.

use bytes::{Buf as _, Bytes};

use crate::ground::limits::{HEAD_BYTES_READ_MAX, QUIC_CONTROL_FRAME_BYTES_MAX};

const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
/// Types that are known, or forbidden because they were HTTP/2's: the library knows what to do about them.
const OTHERS: [u64; 9] = [0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0xd];
/// The type of a control stream (section 6.2.1).
const CONTROL: u64 = 0x0;
/// Bytes of two integers (RFC 9000, section 16).
const HEAD_BYTES: usize = 16;

/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadFrames {
    /// A frame is longer than one may be.
    TooLong,
    /// It ends within a frame.
    Truncated,
}

/// See the module. Of one stream.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    head: [u8; HEAD_BYTES],
    /// How much of `head` there is.
    filled: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The type of a stream comes, which a client has opened for itself.
    Type,
    /// Type and length of a frame come.
    Head,
    /// So much of a frame goes on.
    Pass(u64),
    /// So much of a frame is forgotten.
    Skip(u64),
    /// These are no frames: the client's instructions for fields, which the library never reads.
    Raw,
}

/// An integer of variable length (RFC 9000, section 16), and its bytes; `None`: it is not whole.
fn integer(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let whole = bytes.get(..length)?;
    let value = whole[1..].iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, length))
}

impl Frames {
    /// Of a request.
    pub(super) const fn of_request() -> Self {
        Self { state: State::Head, head: [0; HEAD_BYTES], filled: 0 }
    }

    /// Of a stream in one direction, whose type comes first.
    pub(super) const fn of_client() -> Self {
        Self { state: State::Type, head: [0; HEAD_BYTES], filled: 0 }
    }

    /// The next piece that goes on, taken off what has come; `None`: more has to come.
    ///
    /// # Errors
    /// What is wrong with it; nothing after that means anything.
    pub(super) fn next(&mut self, come: &mut Bytes) -> Result<Option<Bytes>, BadFrames> {
        while !come.is_empty() {
            match self.state {
                State::Raw => return Ok(Some(std::mem::take(come))),
                State::Pass(left) => {
                    let piece = come.split_to(come.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                    self.goes_on(left - piece.len() as u64, State::Pass);
                    return Ok(Some(piece));
                }
                State::Skip(left) => {
                    let skipped = come.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    come.advance(skipped);
                    self.goes_on(left - skipped as u64, State::Skip);
                }
                State::Type | State::Head => {
                    self.head[self.filled] = come.get_u8();
                    self.filled += 1;
                    if let Some(piece) = self.begun()? {
                        return Ok(Some(piece));
                    }
                }
            }
        }
        Ok(None)
    }

    fn goes_on(&mut self, left: u64, more: fn(u64) -> State) {
        self.state = if left == 0 { State::Head } else { more(left) };
    }

    /// Reads what has come of a head; what of it goes on.
    fn begun(&mut self) -> Result<Option<Bytes>, BadFrames> {
        let come = &self.head[..self.filled];
        let Some((kind, first)) = integer(come) else { return Ok(None) };
        if self.state == State::Type {
            self.state = if kind == CONTROL { State::Head } else { State::Raw };
            return Ok(Some(self.taken()));
        }
        let Some((length, _)) = integer(&come[first..]) else { return Ok(None) };
        let passes = match kind {
            DATA => length > 0,
            HEADERS if length > u64::from(HEAD_BYTES_READ_MAX) => return Err(BadFrames::TooLong),
            HEADERS => true,
            kind if OTHERS.contains(&kind) && length > QUIC_CONTROL_FRAME_BYTES_MAX => return Err(BadFrames::TooLong),
            kind => OTHERS.contains(&kind),
        };
        self.goes_on(length, if passes { State::Pass } else { State::Skip });
        let head = self.taken();
        Ok(passes.then_some(head))
    }

    fn taken(&mut self) -> Bytes {
        let taken = Bytes::copy_from_slice(&self.head[..self.filled]);
        self.filled = 0;
        taken
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// Within a frame.
    pub(super) const fn end(&self) -> Result<(), BadFrames> {
        match self.state {
            State::Head | State::Type if self.filled == 0 => Ok(()),
            State::Raw => Ok(()),
            _ => Err(BadFrames::Truncated),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What goes on of these bytes, however they come.
    fn passed(mut frames: Frames, bytes: &[u8], at_once: usize) -> (Vec<u8>, Result<(), BadFrames>) {
        let mut out = Vec::new();
        for chunk in bytes.chunks(at_once) {
            let mut chunk = Bytes::copy_from_slice(chunk);
            loop {
                match frames.next(&mut chunk) {
                    Ok(Some(piece)) => out.extend_from_slice(&piece),
                    Ok(None) => break,
                    Err(bad) => return (out, Err(bad)),
                }
            }
        }
        (out, frames.end())
    }

    #[test]
    fn only_what_means_something_goes_on() {
        // Aim: heads and data pass byte for byte in pieces of any size; empty data and unknown types are left out; an end within a frame or its
        // head is told, and so is a frame beyond its bound, before any of it is gathered.
        let grease = [0x40, 0x21, 3, 9, 9, 9];
        let come = [&[1, 2, 7, 7][..], &[0, 0], &grease, &[0, 3, 1, 2, 3], &[0x21, 0], &[1, 1, 8]].concat();
        let wanted = [1, 2, 7, 7, 0, 3, 1, 2, 3, 1, 1, 8];
        for at_once in [1, 2, 5, 100] {
            assert_eq!(passed(Frames::of_request(), &come, at_once), (wanted.to_vec(), Ok(())), "{at_once}");
        }
        for short in [&[0, 3, 1][..], &[1], &[0x40], &[0x21, 2, 1]] {
            assert_eq!(passed(Frames::of_request(), short, 1).1, Err(BadFrames::Truncated), "{short:?}");
        }
        let long = [1, 0x80, 4, 0, 1];
        assert_eq!(passed(Frames::of_request(), &long, 1), (Vec::new(), Err(BadFrames::TooLong)));
        assert_eq!(passed(Frames::of_request(), &[4, 0x80, 1, 0, 0], 1).1, Err(BadFrames::TooLong));
        assert_eq!(passed(Frames::of_request(), &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 3).1, Err(BadFrames::Truncated));
    }

    #[test]
    fn a_clients_own_streams_say_what_they_are() {
        // Aim: settings pass behind the type of a control stream and what is unknown beside them does not; of other types nothing is taken for a
        // frame.
        let settings = [4, 2, 6, 9];
        let control = [&[0][..], &[0x40, 0x99, 2, 0, 0], &settings].concat();
        assert_eq!(passed(Frames::of_client(), &control, 1), ([&[0][..], &settings].concat(), Ok(())));
        let instructions = [2, 0x3f, 0xe1, 0x1f];
        assert_eq!(passed(Frames::of_client(), &instructions, 1), (instructions.to_vec(), Ok(())));
    }
    proptest! {
        #[test]
        fn how_bytes_come_changes_nothing(bytes in proptest::collection::vec(0_u8..=16, 0..200), at_once in 1_usize..20) {
            // Aim: whatever is sent, in pieces of whatever size: the same goes on, and nothing breaks.
            for frames in [Frames::of_request, Frames::of_client] {
                let (whole, piecewise) = (passed(frames(), &bytes, 1000), passed(frames(), &bytes, at_once));
                prop_assert_eq!(&whole, &piecewise);
                prop_assert!(whole.0.len() <= bytes.len());
            }
        }
    }
}
