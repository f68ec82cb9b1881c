//! What the frames of an HTTP/2 peer ask for, against what they cost.
//!
//! PING, SETTINGS, PRIORITY, RST_STREAM, empty DATA and what nobody knows cost their sender a few bytes and bring no request on its way. Honest peers
//! send few of them, or have them paid for by what they are answered: a window follows data, a cancellation now and then a request that
//! was answered. Who sends nothing else for long is sent away (RFC 9113, section 10.5). The library bounds some of these by itself, not all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::limits::{IDLE_FRAME_BYTES, IDLE_FRAMES_MAX, IDLE_FRAMES_PER_SEC, RESET_FRAME_BYTES, WINDOW_FRAME_BYTES};

/// Bytes of the preface that a client's frames come behind (RFC 9113, section 3.4).
const PREFACE_BYTES: u32 = 24;
/// Bytes of a frame before its payload.
const HEAD_BYTES: usize = 9;
/// Padded DATA this short may be padding alone.
const PADDED_BYTES_MAX: u32 = 256;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// How many connections were ended for their frames, of all workers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Floods(Arc<AtomicU64>);

impl Floods {
    /// So many.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who the frames are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A client that nobody vouches for: what it takes back, too, it has to pay for.
    Stranger,
    /// The application beside us.
    Application,
    /// A peer of the mesh, which takes back what was taken back from it.
    Peer,
    /// Who is called.
    Server,
}

/// One connection's account. Costs a look at nine bytes of each frame.
#[derive(Debug)]
pub struct Tally {
    head: [u8; HEAD_BYTES],
    /// Bytes of a head that are there.
    have: usize,
    /// Bytes until the next head.
    skip: u32,
    sender: Sender,
    /// Bytes that the peer has not paid for.
    owed_bytes: u64,
    since: Instant,
    flooded: bool,
    floods: Floods,
    /// How many requests may be taken back in a minute, and those that still may.
    resets: Option<(u32, f64, Instant)>,
}

impl Tally {
    /// Of a connection that begins.
    pub fn new(sender: Sender, floods: &Floods) -> Self {
        let skip = if sender == Sender::Server { 0 } else { PREFACE_BYTES };
        let (since, floods) = (Instant::now(), floods.clone());
        Self { head: [0; HEAD_BYTES], have: 0, skip, sender, owed_bytes: 0, since, flooded: false, floods, resets: None }
    }

    /// The same of a peer that may take back so many requests in a minute, and as many at once.
    pub fn resets(mut self, per_minute: Option<u32>) -> Self {
        self.resets = per_minute.map(|per_minute| (per_minute, f64::from(per_minute), self.since));
        self
    }

    /// Whether it was too much.
    #[inline]
    pub const fn is_flooded(&self) -> bool {
        self.flooded
    }

    /// The peer has said this; whether that is bearable.
    #[inline]
    pub fn read(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = bytes.len().min(self.skip as usize);
            self.skip -= skipped as u32;
            bytes = &bytes[skipped..];
            let wanted = HEAD_BYTES - self.have;
            if bytes.len() < wanted {
                self.head[self.have..self.have + bytes.len()].copy_from_slice(bytes);
                self.have += bytes.len();
                return !self.flooded;
            }
            self.head[self.have..].copy_from_slice(&bytes[..wanted]);
            (bytes, self.have) = (&bytes[wanted..], 0);
            let [high, middle, low, kind, flags, ..] = self.head;
            self.skip = u32::from_be_bytes([0, high, middle, low]);
            if kind == RST_STREAM && self.resets.is_some() {
                self.taken_back();
            }
            let cost = self.cost(kind, flags);
            if cost > 0 {
                self.charge(cost);
            }
        }
    }

    /// This was written to the peer, because of what it asked for.
    #[inline]
    pub const fn written(&mut self, bytes: usize) {
        self.owed_bytes = self.owed_bytes.saturating_sub(bytes as u64);
    }

    #[inline]
    const fn cost(&self, kind: u8, flags: u8) -> u64 {
        match kind {
            DATA if self.skip == 0 && flags & END_STREAM == 0 => IDLE_FRAME_BYTES,
            DATA if flags & (PADDED | END_STREAM) == PADDED && self.skip <= PADDED_BYTES_MAX => IDLE_FRAME_BYTES,
            DATA | HEADERS => 0,
            RST_STREAM if matches!(self.sender, Sender::Stranger) => RESET_FRAME_BYTES,
            RST_STREAM => 0,
            WINDOW_UPDATE => WINDOW_FRAME_BYTES,
            _ => IDLE_FRAME_BYTES,
        }
    }

    #[inline]
    fn charge(&mut self, cost: u64) {
        self.owed_bytes += cost;
        if self.owed_bytes > IDLE_FRAMES_MAX * IDLE_FRAME_BYTES && !self.flooded {
            self.remit();
        }
    }

    /// A request was taken back.
    #[cold]
    fn taken_back(&mut self) {
        let Some((per_minute, left, since)) = &mut self.resets else { return };
        let now = Instant::now();
        let most = f64::from(*per_minute);
        *left = (*left + now.duration_since(*since).as_secs_f64() * most / 60.0).min(most) - 1.0;
        *since = now;
        if *left < 0.0 && !self.flooded {
            self.flooded = true;
            self.floods.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Time pays, too.
    #[cold]
    fn remit(&mut self) {
        let now = Instant::now();
        let millis = u64::try_from(now.duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        let paid = (millis / 1000).saturating_mul(IDLE_FRAMES_PER_SEC) + millis % 1000 * IDLE_FRAMES_PER_SEC / 1000;
        if paid > 0 {
            self.since = now;
            self.owed_bytes = self.owed_bytes.saturating_sub(paid.saturating_mul(IDLE_FRAME_BYTES));
        }
        if self.owed_bytes > IDLE_FRAMES_MAX * IDLE_FRAME_BYTES {
            self.flooded = true;
            self.floods.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let size = (length as u32).to_be_bytes();
        [&size[1..], &[kind, flags, 0, 0, 0, 1], &vec![0; length][..]].concat()
    }

    /// How many frames a peer gets rid of.
    fn borne(sender: Sender, frame: &[u8], written: usize) -> u64 {
        let mut tally = Tally::new(sender, &Floods::default());
        if sender != Sender::Server {
            assert!(tally.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        }
        for number in 0..IDLE_FRAMES_MAX * 20 {
            if !tally.read(frame) {
                return number;
            }
            tally.written(written);
        }
        u64::MAX
    }

    #[tokio::test(start_paused = true)]
    async fn what_asks_for_nothing_has_its_bound() {
        // Aim: idle frames end a connection at the bound, whoever sends them; what asks for something never does.
        for sender in [Sender::Stranger, Sender::Application, Sender::Peer, Sender::Server] {
            for (kind, flags, length) in
                [(6, 0, 8), (4, 0, 6), (2, 0, 5), (DATA, 0, 0), (DATA, PADDED, 4), (0xbe, 0, 3), (9, 0, 1), (7, 0, 8)]
            {
                assert_eq!(borne(sender, &frame(kind, flags, length), 0), IDLE_FRAMES_MAX, "{kind} of {sender:?}");
            }
            for (kind, flags, length) in [(HEADERS, 5, 30), (DATA, 0, 1), (DATA, END_STREAM, 0), (DATA, 0, 16_384)] {
                assert_eq!(borne(sender, &frame(kind, flags, length), 0), u64::MAX, "{kind} of {sender:?}");
            }
        }
        assert_eq!(borne(Sender::Stranger, &frame(RST_STREAM, 0, 4), 0), IDLE_FRAMES_MAX / 10);
        assert_eq!(borne(Sender::Peer, &frame(RST_STREAM, 0, 4), 0), u64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_pay() {
        // Aim: windows that follow data, one for the stream and one for the connection with each ten bytes, and cancellations beside answers;
        // a PING's own answer does not pay for it.
        let windows = [frame(WINDOW_UPDATE, 0, 4), frame(WINDOW_UPDATE, 0, 4)].concat();
        assert_eq!(borne(Sender::Stranger, &windows, 19), u64::MAX);
        assert_eq!(borne(Sender::Stranger, &frame(RST_STREAM, 0, 4), 400), u64::MAX);
        assert!(borne(Sender::Stranger, &frame(6, 0, 8), 17) < IDLE_FRAMES_MAX * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn time_pays() {
        // Aim: at the rate that is allowed nothing ever ends; the bound is on how much faster it may be.
        let mut tally = Tally::new(Sender::Server, &Floods::default());
        for _ in 0..100 {
            for _ in 0..IDLE_FRAMES_PER_SEC {
                assert!(tally.read(&frame(6, 0, 8)));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_taken_back_at_a_rate() {
        // Aim: as many at once as in a minute, then one for each part of it; whoever has no such bound goes by the usual one.
        let reset = frame(RST_STREAM, 0, 4);
        let mut tally = Tally::new(Sender::Server, &Floods::default()).resets(Some(60));
        for _ in 0..60 {
            assert!(tally.read(&reset));
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(tally.read(&reset) && tally.read(&reset));
        assert!(!tally.read(&reset), "more than there was time for");
        assert_eq!(tally.floods.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_found_wherever_reads_end() {
        // Aim: the same account byte by byte as at once, whatever is in the payloads.
        let floods = Floods::default();
        let one = [frame(DATA, 0, 100), frame(6, 0, 8), frame(HEADERS, 4, 9), frame(4, 1, 0)].concat();
        let (mut whole, mut bytewise) = (Tally::new(Sender::Server, &floods), Tally::new(Sender::Server, &floods));
        for _ in 0..IDLE_FRAMES_MAX {
            whole.read(&one);
            one.iter().for_each(|byte| {
                bytewise.read(&[*byte]);
            });
            assert_eq!((whole.owed_bytes, whole.flooded), (bytewise.owed_bytes, bytewise.flooded));
        }
        assert_eq!((whole.flooded, floods.count()), (true, 2));
    }
}
