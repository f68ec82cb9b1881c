//! The bounds of the data path. Each has a unit in its name and a tested or documented behaviour when it is reached.

use std::time::Duration;

/// Downstream connections to the application beside one worker. At the bound its doors stop accepting: further ones wait in the kernel's
/// queue, and `meshwright_connections_full_total` counts it.
pub const INBOUND_CONNECTIONS_MAX: usize = 20_000;
/// The same for the application's own calls, and for the clients of an edge.
pub const OUTBOUND_CONNECTIONS_MAX: usize = 20_000;
/// Descriptors that are not for traffic: listeners, control plane, admin, logs, pollers.
pub const OWN_DESCRIPTORS: u64 = 64;
/// How often running out of descriptors is told while it lasts.
pub const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(10);
/// Connections that a door takes from its queue when it is shut; more than queue up.
pub const QUEUED_MAX: usize = 4096;
/// How long connections without work are kept once a drain has shut the doors: peers hear meanwhile that nobody should be called here.
pub const IDLE_GRACE: Duration = Duration::from_secs(1);
/// From the word that the instance ends soon until its callers are told; others take it out of their lists meanwhile.
pub const PARTING_TOLD: Duration = Duration::from_secs(1);
/// From then on until their connections that have asked nothing are closed. Together well below what an application is given before its end.
pub const PARTING_HUSHED: Duration = Duration::from_secs(3);
/// Upstream connections of one worker to others, idle ones included. At the bound a request that needs a new one is answered `overflow`.
pub const UPSTREAM_CONNECTIONS_MAX: usize = 20_000;
/// The same for those to the application beside it: what the application calls does not keep it from being called.
pub const APPLICATION_CONNECTIONS_MAX: usize = 20_000;
/// How long a peer may take nothing of what is written to it before its HTTP connection gives way, if the worker has no places left. A peer
/// that lives and is not in anybody's way may take as long as it likes.
pub const STALL_WAIT: Duration = Duration::from_secs(300);
/// How often such a peer's connection asks whether its place is wanted.
pub const PRESSURE_ASKED_EVERY: Duration = Duration::from_secs(10);
/// How long a client's connection may be kept without an exchange, for both versions of HTTP.
pub const KEPT_WAIT: Duration = Duration::from_secs(300);
/// How long a client of an edge may keep a connection without an exchange, if no place is left and somebody wants one: then it gives way.
pub const YIELD_AFTER: Duration = Duration::from_secs(10);
/// Connections that give way so in one [`TICK`], those first that have been kept for longest.
pub const YIELDING_AT_ONCE_MAX: usize = 256;
/// How long an HTTP/2 client may take to answer that its connection is over.
pub const FAREWELL_WAIT: Duration = Duration::from_secs(10);
/// How often a connection whose client has closed its side, and waits for an answer, asks whether it was reset since.
pub const RESET_ASKED_EVERY: Duration = Duration::from_secs(1);
/// How long a request waits for whoever counts a limit that proxies share; then the limit goes by what it says for that (`onError`).
pub const STORE_WAIT: Duration = Duration::from_millis(50);
/// How long a request waits for a place of a RateLimit's `concurrency`; then it is refused.
pub const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Idle HTTP/1 connections kept per destination; the oldest goes first.
pub const IDLE_PER_DESTINATION_MAX: usize = 256;
/// Idle HTTP/1 connections kept in all; beyond it a connection is closed instead of kept.
pub const IDLE_MAX: usize = 4096;
/// How long an unused connection to another sidecar is kept; the other side never closes it first.
pub const IDLE_MESH: Duration = Duration::from_secs(90);
/// How long an unused plaintext connection is kept: below the keep-alive of common servers (Node.js closes after 5 s).
pub const IDLE_PLAIN: Duration = Duration::from_secs(4);
/// Servers of which it is remembered when they close connections that rest, while none of theirs is kept.
pub const LESSONS_MAX: usize = 1024;
/// Requests at once on one HTTP/2 connection; further ones wait at the peer (downstream) or take another connection (upstream).
pub const STREAMS_PER_CONNECTION_MAX: u32 = 2048;
/// HTTP/2 flow-control window of a stream while there are few. 64 KiB costs half as much again per byte. See `windows`.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// HTTP/2 flow-control window of a connection: more than all its streams' together, so that none stops another. A peer that keeps to no
/// stream's window has this much held for it, and is cut after [`SETTINGS_WAIT`].
pub const CONNECTION_WINDOW_BYTES: u32 = 256 << 20;
/// Bodies that come in over HTTP/2 at once on one worker. At the bound a further request with a body is answered `overflow`.
pub const BODIES_PER_WORKER_MAX: usize = 65_536;
/// How long an HTTP/2 peer may take to acknowledge SETTINGS where further ones wait for it.
pub const SETTINGS_WAIT: Duration = Duration::from_secs(10);
/// Requests on an upstream HTTP/2 connection before its SETTINGS have come: they may allow a single one. Further ones wait for them as
/// long as a connection may take to open, and then take [`STREAMS_UNTOLD_MAX`] for granted.
pub const STREAMS_BEFORE_SETTINGS: usize = 1;
/// Requests at once on an upstream HTTP/2 connection that says nothing of how many it takes (RFC 9113, section 6.5.2: no less than 100).
pub const STREAMS_UNTOLD_MAX: usize = 100;
/// Window of a connection to an application as every HTTP/2 server has it at least, and many have no more (RFC 9113, section 6.9.2).
pub const UPLOAD_WINDOW_BYTES: u64 = 65_535;
/// Frames of a request's body that are looked at to see whether it has come to its end already.
pub const LOOK_AHEAD_PIECES_MAX: usize = 4;
/// Bytes of a request's body that are kept until its answer begins, so that it can be sent again if the server did not process it.
pub const REPLAY_BYTES_MAX: usize = 64 << 10;
/// The same over HTTP/1, of a body whose length was said: the answer of a peer's proxy is waited for, which may not reach its application.
pub const REPLAY_HTTP1_BYTES_MAX: u64 = 16 << 10;
/// The same, of all requests of a worker whose routes ask for more; beyond it a body is not kept, and its request not sent again.
pub const REPLAYS_BYTES_MAX: usize = 32 << 20;
/// How long the beginning of a body may take to come that a service is to be shown before the request goes on.
pub const BEGINNING_WAIT: Duration = Duration::from_secs(30);
/// Attempts of one question to a service: a kept connection may have died.
pub const CALLOUT_ATTEMPTS_MAX: u32 = 3;
/// Hosts of authorization servers that one worker knows how to meet; beyond it all are learned anew.
pub const CALLOUT_HOSTS_MAX: usize = 64;
/// Passwords that wait to be verified, of all workers; a request beyond them is answered 503.
pub const PASSWORDS_WAITING_MAX: usize = 100;
/// Active checks under way at once; further ones wait for one to end.
pub const CHECKS_MAX: usize = 64;
/// Bytes of the answer to a check by gRPC; a longer one is none.
pub const CHECK_ANSWER_BYTES_MAX: usize = 4096;
/// How long a checked connection through a peer of the mesh has to stay open.
pub const CHECK_LISTEN: Duration = Duration::from_millis(100);
/// Copies of requests that one worker has under way to mirrors.
pub const MIRRORS_MAX: usize = 1024;
/// How often a busy HTTP/2 connection between sidecars is asked whether the other side lives: a dead machine says nothing. Not asked of
/// applications: stock gRPC servers take such questions for an attack.
pub const PING_EVERY: Duration = Duration::from_secs(20);
/// How long the answer may take.
pub const PING_WAIT: Duration = Duration::from_secs(10);
/// Bytes of an HTTP/2 stream that wait to be sent before its writer waits: one full write.
pub const STREAM_SEND_BYTES_MAX: usize = 128 << 10;
/// Frames at once that an HTTP/2 peer may send without asking for anything (PING, SETTINGS, PRIORITY, cancellations, empty ones), beyond what its
/// answers pay for. Beyond it, it is sent away: GOAWAY, ENHANCE_YOUR_CALM, and `meshwright_http2_floods_total`.
pub const IDLE_FRAMES_MAX: u64 = 10_000;
/// The same for ever: so many of them a second are nobody's business.
pub const IDLE_FRAMES_PER_SEC: u64 = 1_000;
/// What such a frame costs, in bytes of answers: more than the longest answer to it.
pub const IDLE_FRAME_BYTES: u64 = 32;
/// What it costs a stranger to take a request back that was not answered: it was begun, and perhaps sent on.
pub const RESET_FRAME_BYTES: u64 = 320;
/// What a window costs: two of them are paid for by the shortest DATA that they can follow.
pub const WINDOW_FRAME_BYTES: u64 = 7;
/// Bytes of one message's head where it comes into the mesh. Beyond it: 431 `too_large`; an answer's: 502 `too_large`.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// What the mesh itself may add to a head: the bound between sidecars is higher by this.
pub const HEAD_BYTES_ADDED_MAX: usize = 8 << 10;
/// Bytes of a connection of HTTP/1 that are read at once, and about as many that wait to be written: what a client that takes nothing of its answer holds
/// is this twice and what its TLS has made.
pub const HTTP1_BUFFER_BYTES: usize = 128 << 10;
/// Fields of one message's head where it comes into the mesh, as [`HEAD_BYTES_MAX`].
pub const FIELDS_MAX: usize = 100;
/// What the mesh itself may add of them, as [`HEAD_BYTES_ADDED_MAX`].
pub const FIELDS_ADDED_MAX: usize = 16;
/// Interim answers of one exchange that wait to be written; what comes beyond is forgotten.
pub const INTERIM_ANSWERS_MAX: usize = 16;
/// How long a body that the client holds back (`Expect: 100-continue`) waits for the upstream's word: then it is taken as it comes, as
/// from clients that ask for no word.
pub const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// Time that a client's body is waited for before its average speed counts (ClientPolicy, `minBytesPerSecond`).
pub const UPLOAD_GRACE: Duration = Duration::from_secs(5);
/// How long the sender of a body that nobody wants any more may be silent until its connection is closed. Meanwhile the body is read and
/// forgotten, so that its sender gets to the answer.
pub const UNWANTED_SILENCE: Duration = Duration::from_secs(10);
/// How long such a body may take in all.
pub const UNWANTED_WAIT: Duration = Duration::from_secs(600);
/// What unread pieces of less than 256 bytes may be short of that, on one HTTP/2 connection of a stranger: each takes room beside its bytes, up to
/// three times as much. Beyond it, the stranger is sent away: GOAWAY, ENHANCE_YOUR_CALM. Others, whose connections many share, have half the
/// connection's window.
pub const SMALL_FRAMES_BYTES: usize = 4 << 20;
/// Bytes of a head that are read over HTTP/2 to be refused with a reason. Beyond it the library refuses by itself: a bare 431, and a reset.
pub const HEAD_BYTES_READ_MAX: u32 = 256 << 10;
/// How long a head may take at the edge and from plaintext clients, from its first byte on; and how long the first byte of all.
pub const HEAD_WAIT: Duration = Duration::from_secs(75);
/// How long a TLS handshake with a client may take, first byte included.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// TLS handshakes with clients from outside that one worker has under way. At the bound the one that has been under way longest makes room for a
/// further one, which waits for that within its own [`HANDSHAKE_WAIT`]; `meshwright_edge_handshakes_full_total` counts it.
pub const HANDSHAKES_MAX: usize = 2048;
/// Sessions of datagrams of one worker: a client's address and port each, and a descriptor. At the bound the oldest that nobody has answered
/// makes room, else one that has been silent for an eighth of what it may be; where there is none a further client's datagrams are dropped, and
/// `meshwright_udp_sessions_full_total` counts it.
pub const DATAGRAM_SESSIONS_MAX: usize = 4096;
/// Bytes of one datagram: what IP carries.
pub const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams that are taken from one socket before others have their turn.
pub const DATAGRAMS_PER_TURN: usize = 64;
/// Handshakes over QUIC of one port under way at once before further clients have to prove that they are where they say (Retry, RFC 9000, section
/// 8.1.2), which costs them a round trip and a forger everything; `meshwright_http3_retries_total` counts them.
pub const QUIC_UNPROVED_MAX: usize = 64;
/// Clients of QUIC whose first packets are kept until they are taken in, of one port, and bytes of each; further ones are refused.
pub const QUIC_INCOMING_MAX: usize = 1024;
/// See [`QUIC_INCOMING_MAX`].
pub const QUIC_INCOMING_BYTES: u64 = 16 << 10;
/// Bytes of a request's body over HTTP/3 that a client may send before they are read, where its ClientPolicy says nothing; less where a worker has many
/// bodies (`ground::windows`). A connection may have as much as all of its bodies: one that is not read stops no other.
pub const QUIC_STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Bytes of answers over one connection of QUIC that are kept until the client has them.
pub const QUIC_SEND_BYTES_MAX: u64 = 2 << 20;
/// Streams in one direction that a client may open over HTTP/3: three are needed (RFC 9114, section 6.2), others say what nobody knows.
pub const QUIC_CLIENT_STREAMS_MAX: u32 = 8;
/// Bytes of one frame over HTTP/3 that is neither a head nor data; beyond it the stream is reset.
pub const QUIC_CONTROL_FRAME_BYTES_MAX: u64 = 4 << 10;
/// Between the two words that a connection of HTTP/3 is over: what is under way meanwhile is still served.
pub const QUIC_GOAWAY_WAIT: Duration = Duration::from_secs(1);
/// Requests of one connection of HTTP/3 whose heads never came whole; then it ends in order.
pub const QUIC_HEADLESS_MAX: u32 = 1000;
/// How long the second word may take to arrive before the connection is closed.
pub const QUIC_LAST_WAIT: Duration = Duration::from_millis(250);
/// How long it may take to tell clients of HTTP/3 that they are cut, where a drain's time is over.
pub const QUIC_FAREWELL: Duration = Duration::from_millis(100);
/// How long both sides of a connection may be silent before the upstream is opened on suspicion of a server that speaks first.
pub const SPECULATE_AFTER: Duration = Duration::from_millis(10);
/// How long a client that began to speak may leave its protocol undecided; then its bytes are taken as opaque.
pub const SNIFF_WAIT: Duration = Duration::from_secs(5);
/// How long a connection whose destination is refused may take to say that it speaks HTTP, so that it gets an answer.
pub const REFUSAL_WAIT: Duration = Duration::from_secs(1);
/// Bytes of records that TLS makes before it writes: eight of the largest in one system call. Half of it leaves a small packet behind every
/// large one; more of it brought nothing (`docs/performance.md`).
pub const TLS_UNSENT_BYTES_MAX: usize = 128 << 10;
/// One buffer of an opaque connection; held only while bytes are under way.
pub const COPY_BUFFER_BYTES: usize = 128 << 10;
/// Copy buffers one worker keeps for reuse.
pub const COPY_BUFFERS_KEPT_MAX: usize = 16;
/// How long accepting pauses after the kernel ran out of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Granularity of idle timeouts: they fire up to two of it late, never early.
pub const TICK: Duration = Duration::from_millis(250);
/// Longest rest of the sweep while nothing is under way but connections are kept: a dead one, or one of an older credential, may stay that
/// long. One that is unused for too long ends the rest in time.
pub const REST_MAX: Duration = Duration::from_secs(5);
/// Ticks between two looks for memory that was free for a while: one second. A worker with nothing under way gives back all at once.
pub const GIVE_BACK_TICKS: u32 = 4;

/// Downstream connections of one worker and direction that `descriptors` suffice for, where `shares` workers and directions divide them
/// and each connection may need another one upstream. A proxy that takes in more than it can serve fails all of them.
pub fn affordable_connections(descriptors: u64, shares: usize) -> usize {
    let each = descriptors.saturating_sub(OWN_DESCRIPTORS) / 2 / shares.max(1) as u64;
    usize::try_from(each).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: on a usual machine the bounds are the documented ones; with few descriptors half of them are left for upstreams.
    #[test]
    fn connections_fit_the_descriptors() {
        assert!(affordable_connections(524_288, 2) >= INBOUND_CONNECTIONS_MAX);
        assert_eq!(affordable_connections(256, 2), 48);
        assert_eq!((affordable_connections(1024, 1), affordable_connections(0, 0)), (480, 1));
    }
}
