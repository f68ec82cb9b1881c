//! HTTP/2 in quantities: frames that cost their sender nothing and a server something.

use std::pin::pin;

use super::frames::*;
use super::*;

/// Frames of one flood; what is not ended by then is not ended at all.
const FRAMES: u32 = 100_000;
/// Bytes between two looks at what the server says.
const BATCH_BYTES: usize = 8 << 10;

/// What is sent, again and again.
struct Flood {
    what: &'static str,
    /// Once, behind the preface.
    first: Vec<u8>,
    again: fn(u32) -> Vec<u8>,
    /// Whether the hostile one reads what it is answered.
    reads: bool,
    bytes_max: i64,
}

/// Answers at once whatever ends in an empty line.
fn answer_at_once(world: &mut World) {
    let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
    tokio::task::spawn_local(async move {
        while let Some((_, mut socket)) = applications.recv().await {
            tokio::task::spawn_local(async move {
                let mut bytes = Vec::new();
                while let Ok(1..) = socket.read_buf(&mut bytes).await {
                    while let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                        bytes.drain(..at + 4);
                        if socket.write_all(DONE.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

/// Another client, which asks once for each batch of the flood. Its answers are counted.
struct Another {
    turn: Rc<tokio::sync::Notify>,
    answers: Rc<std::cell::Cell<u32>>,
}

impl Another {
    async fn begin(door: Door, world: &World) -> Self {
        let another = Self { turn: Rc::default(), answers: Rc::default() };
        let (turn, answers, mut client) = (Rc::clone(&another.turn), Rc::clone(&another.answers), door.dial(world));
        tokio::task::spawn_local(async move {
            loop {
                write(&mut client, "GET /other HTTP/1.1\r\nhost: a\r\n\r\n").await;
                if !head(&mut client).await.starts_with("HTTP/1.1 200 ") {
                    return;
                }
                answers.set(answers.get() + 1);
                turn.notified().await;
            }
        });
        while another.answers.get() == 0 {
            tokio::time::sleep(QUIET / 10).await;
        }
        another
    }
}

/// What the server says, of which only its goodbye is kept.
#[derive(Default)]
struct Said {
    bytes: Vec<u8>,
    away: Option<u32>,
}

impl Said {
    /// Reads some; whether there was any.
    async fn read(&mut self, from: &mut (impl AsyncReadExt + Unpin)) -> bool {
        let read = matches!(from.read_buf(&mut self.bytes).await, Ok(1..));
        let mut at = 0;
        for frame in frames(&self.bytes) {
            at += 9 + frame.payload.len();
            self.away = frame.code().filter(|_| frame.kind == GOAWAY).or(self.away);
        }
        self.bytes.drain(..at);
        read
    }
}

/// Sends it until the server has enough; how many frames that took, and how it ended.
async fn sent(client: Socket, flood: &Flood, another: &Another) -> (u32, End) {
    let (mut from, mut to) = tokio::io::split(client);
    let (mut said, mut number) = (Said::default(), 0);
    let mut ended = to.write_all(&flood.first).await.is_err();
    while number < FRAMES && !ended {
        let mut batch = Vec::new();
        while batch.len() < BATCH_BYTES && number < FRAMES {
            batch.extend((flood.again)(number));
            number += 1;
        }
        another.turn.notify_one();
        let mut writing = pin!(to.write_all(&batch));
        if flood.reads {
            loop {
                tokio::select! {
                    biased;
                    read = said.read(&mut from) => if !read {
                        ended = true;
                        break;
                    },
                    written = &mut writing => {
                        ended = written.is_err();
                        break;
                    }
                }
            }
            tokio::task::yield_now().await;
        } else if !matches!(tokio::time::timeout(QUIET, writing).await, Ok(Ok(()))) {
            // Nobody takes it any more: that is a bound, too.
            ended = true;
        }
    }
    while matches!(tokio::time::timeout(QUIET, said.read(&mut from)).await, Ok(true)) {}
    let closed = !matches!(tokio::time::timeout(QUIET, to.write_all(&frame(PING, 0, 0, &[0; 8]))).await, Ok(Ok(())));
    (number, said.away.map_or(if closed || ended { End::Closed } else { End::Lives }, End::Away))
}

async fn endured(door: Door, flood: &Flood) {
    let what = format!("{} ({door:?}{})", flood.what, if flood.reads { "" } else { ", unread" });
    let mut world = door.world(Protocol::Http1);
    answer_at_once(&mut world);
    let another = Another::begin(door, &world).await;
    let client = begun(door, &world).await;
    let (before, meter) = (another.answers.get(), Meter::begin());
    let (frames, end) = sent(client, flood, &another).await;
    let cost = meter.read();
    println!("| {what} | {frames} frames, then {end:?} | {} KiB | {:?} |", cost.bytes >> 10, cost.cpu);
    assert_ne!(end, End::Lives, "{what}: {frames} frames ended nothing");
    assert!(cost.bytes <= flood.bytes_max, "{what}: {} KiB", cost.bytes >> 10);
    let meanwhile = another.answers.get() > before;
    assert!(meanwhile || frames < 5_000, "{what}: others were not served meanwhile");
    tokio::time::sleep(QUIET).await;
    assert!(another.answers.get() > before, "{what}: others are not served any more");
}

fn endure(floods: &[Flood]) {
    for door in Door::ALL {
        for flood in floods {
            run(|| endured(door, flood));
        }
    }
}

/// What HTTP/2 connections may cost while they are flooded.
const USUAL: i64 = 1 << 20;

fn flood(what: &'static str, again: fn(u32) -> Vec<u8>) -> Flood {
    Flood { what, first: Vec::new(), again, reads: true, bytes_max: USUAL }
}

fn unread(what: &'static str, again: fn(u32) -> Vec<u8>) -> Flood {
    Flood { reads: false, ..flood(what, again) }
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

#[test]
fn frames_that_ask_for_nothing_have_a_bound() {
    // Aim: PING, SETTINGS, PRIORITY, unknown frames, tiny windows and empty DATA, read or not: the connection ends, others do not notice.
    let open = || frame(HEADERS, END_HEADERS, 1, &block(&[(":method", "POST"), PLAIN[1], PLAIN[2], PLAIN[3]]));
    endure(&[
        flood("PING", |_| frame(PING, 0, 0, &[7; 8])),
        unread("PING", |_| frame(PING, 0, 0, &[7; 8])),
        flood("PING answers that nobody asked for", |_| frame(PING, 1, 0, &[7; 8])),
        flood("SETTINGS", |number| setting(4, 65_535 + number % 2)),
        unread("SETTINGS", |number| setting(4, 65_535 + number % 2)),
        flood("empty SETTINGS", |_| frame(SETTINGS, 0, 0, &[])),
        flood("SETTINGS of the table's size", |number| setting(1, number % 4096)),
        flood("PRIORITY", |number| frame(PRIORITY, 0, 2 * number + 3, &[0, 0, 0, 0, 9])),
        flood("frames of unknown type", |_| frame(0xbe, 0, 0, &[])),
        flood("tiny windows for the connection", |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        Flood { first: open(), ..flood("tiny windows for a stream", |_| frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())) },
        Flood { first: open(), ..flood("empty DATA", |_| frame(DATA, 0, 1, &[])) },
        Flood { first: open(), ..flood("DATA of padding", |_| frame(DATA, 8, 1, &[3, 0, 0, 0])) },
        flood("GOAWAY", |_| frame(GOAWAY, 0, 0, &[0; 8])),
    ]);
}

#[test]
fn requests_that_are_taken_back_have_a_bound() {
    // Aim: rapid reset, at once and one by one, and resets that the server is made to say (MadeYouReset): the connection ends.
    let made = |number: u32| [request(2 * number + 1), frame(WINDOW_UPDATE, 0, 2 * number + 1, &0_u32.to_be_bytes())].concat();
    let depends = |number: u32| {
        let stream = 2 * number + 1;
        [request(stream), frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[0]].concat())].concat()
    };
    let late = |number: u32| {
        let stream = 2 * number + 1;
        [request(stream), frame(DATA, 0, stream, b"late")].concat()
    };
    let overflow = |number: u32| {
        let stream = 2 * number + 1;
        [request(stream), frame(WINDOW_UPDATE, 0, stream, &(i32::MAX as u32).to_be_bytes())].concat()
    };
    let broken = |number: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &block(&[("X", "y")]));
    endure(&[
        flood("rapid reset", |number| [request(2 * number + 1), frame(RST_STREAM, 0, 2 * number + 1, &8_u32.to_be_bytes())].concat()),
        Flood { bytes_max: 24 << 20, ..flood("MadeYouReset by a window of nothing", made) },
        Flood { bytes_max: 24 << 20, ..flood("MadeYouReset by a dependency", depends) },
        Flood { bytes_max: 24 << 20, ..flood("MadeYouReset by DATA behind the end", late) },
        Flood { bytes_max: 24 << 20, ..flood("MadeYouReset by a window too wide", overflow) },
        Flood { bytes_max: 24 << 20, ..flood("MadeYouReset by heads that are none", broken) },
    ]);
}

#[test]
fn rapid_reset_one_by_one_has_a_bound() {
    // Aim: a stranger whose requests are each begun before it takes them back is sent away as well, and others do not notice.
    run(|| async {
        let mut world = Door::Inbound.world(Protocol::Http1);
        answer_at_once(&mut world);
        let mut client = begun(Door::Inbound, &world).await;
        let meter = Meter::begin();
        let (mut number, mut ended) = (0, false);
        while number < 5_000 && !ended {
            let stream = 2 * number + 1;
            ended = client.write_all(&request(stream)).await.is_err();
            tokio::task::yield_now().await;
            ended |= client.write_all(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await.is_err();
            tokio::task::yield_now().await;
            number += 1;
        }
        let (frames, closed) = heard(&mut client).await;
        let away = frames.iter().rfind(|frame| frame.kind == GOAWAY).and_then(Frame::code);
        println!("{number} requests, then {away:?}");
        meter.judge("rapid reset, one by one", 8 << 20);
        assert!(closed && away == Some(CALM), "{number} requests, then {away:?}");
        let floods = world.server_means.telemetry.render();
        assert!(floods.contains("meshwright_http2_floods_total 1\n"), "it is counted");
        let mut other = Door::Inbound.dial(&world);
        write(&mut other, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(hear(&mut other).await.text.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn small_pieces_that_nobody_reads_have_a_bound() {
    // Aim: a body in DATA of a byte each, within its window, that its application does not read: a stranger is sent away long before the room of
    // the pieces is many times that of their bytes.
    run(|| async {
        let mut world = Door::Inbound.world(Protocol::Http1);
        let mut client = begun(Door::Inbound, &world).await;
        let begin = block(&[(":method", "POST"), PLAIN[1], PLAIN[2], PLAIN[3]]);
        client.write_all(&frame(HEADERS, END_HEADERS, 1, &begin)).await.unwrap();
        let _reads_nothing = world.application().await;
        let meter = Meter::begin();
        let (mut number, mut ended) = (0, false);
        while number < 4 * FRAMES && !ended {
            let pieces = frame(DATA, 0, 1, b"x").repeat(500);
            ended = !matches!(tokio::time::timeout(QUIET, client.write_all(&pieces)).await, Ok(Ok(())));
            tokio::task::yield_now().await;
            number += 500;
        }
        let (frames, closed) = heard(&mut client).await;
        let away = frames.iter().rfind(|frame| frame.kind == GOAWAY).and_then(Frame::code);
        println!("{number} pieces, then {away:?}");
        meter.judge("pieces of a byte", 16 << 20);
        assert!(closed && away == Some(CALM), "{number} pieces, then {away:?}");
    });
}

#[test]
fn a_server_that_floods_is_left() {
    // Aim: the same bound holds for who is called: its connection ends, and it is counted.
    run(|| async {
        let mut world = Door::Inbound.world(Protocol::Http2);
        let mut client = Door::Inbound.dial(&world);
        write(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let (mut from, mut to) = tokio::io::split(world.application().await);
        to.write_all(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])].concat()).await.unwrap();
        tokio::task::spawn_local(async move {
            let mut room = [0; 4096];
            while let Ok(1..) = from.read(&mut room).await {}
        });
        let mut sent = 0;
        while sent < FRAMES && to.write_all(&frame(PING, 0, 0, &[7; 8]).repeat(100)).await.is_ok() {
            sent += 100;
            tokio::task::yield_now().await;
        }
        assert!(sent < FRAMES, "nobody minds {sent} frames");
        assert!(world.server_means.telemetry.render().contains("meshwright_http2_floods_total 1\n"), "it is counted");
    });
}

const CALM: u32 = 11;

#[test]
fn header_blocks_have_a_bound() {
    // Aim: CONTINUATION without end, empty or not, bombs of references: refused within the bound on a head.
    let begin = || frame(HEADERS, END_STREAM, 1, &block(&PLAIN));
    // One field of 4000 bytes enters the table; each reference to it costs a byte.
    let field = [&[0x40][..], &text("x"), &text(&"a".repeat(4000))].concat();
    let bomb = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&block(&PLAIN)[..], &field].concat());
    endure(&[
        Flood { first: begin(), ..flood("empty CONTINUATION", |_| frame(CONTINUATION, 0, 1, &[])) },
        Flood { first: begin(), ..flood("CONTINUATION of a byte", |_| frame(CONTINUATION, 0, 1, &[0])) },
        Flood {
            first: begin(),
            bytes_max: 2 << 20,
            ..flood("CONTINUATION of 16 KiB", |_| frame(CONTINUATION, 0, 1, &block(&[("x", &"a".repeat((16 << 10) - 10))])))
        },
        Flood {
            first: bomb,
            bytes_max: 24 << 20,
            ..flood("a bomb of references", |number| {
                frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 3, &[&block(&PLAIN)[..], &[0xbe; 12_000]].concat())
            })
        },
    ]);
}

#[test]
fn windows_that_never_open_hold_little() {
    // Aim: answers that are asked for with windows of nothing hold what their ways hold, and no more: less than 2 MiB for each, in two proxies,
    // their connections and the test's own pipes.
    const NUMBER: u32 = 200;
    for door in [Door::Edge, Door::Inbound] {
        run(|| async move {
            let mut world = door.world(Protocol::Http1);
            let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
            tokio::task::spawn_local(async move {
                while let Some((_, mut socket)) = applications.recv().await {
                    tokio::task::spawn_local(async move {
                        while head(&mut socket).await.starts_with("GET ") {
                            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n\r\n").await;
                            for _ in 0..64 {
                                let _ = socket.write_all(&[b'x'; 16 << 10]).await;
                            }
                        }
                    });
                }
            });
            let mut client = begun_with(door, &world, &[0, 4, 0, 0, 0, 0]).await;
            let meter = Meter::begin();
            for number in 0..NUMBER {
                client.write_all(&request(2 * number + 1)).await.unwrap();
            }
            heard(&mut client).await;
            meter.judge(&format!("{NUMBER} answers into windows of nothing, {door:?}"), i64::from(NUMBER) * (2 << 20));
            drop(client);
        });
    }
}
