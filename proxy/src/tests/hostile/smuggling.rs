//! Requests that two readers could frame in two ways.

use super::*;

/// What becomes of them.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Answered with this status and its reason, and the connection is closed; nothing reaches an application.
    Refused(u16),
    /// So many requests reach the application, each in a form that everybody reads alike.
    Passes(usize),
    /// The same, and the connection is closed behind them.
    Last(usize),
}
use Outcome::{Last, Passes, Refused};

/// The request that must never be one.
const EVIL: &str = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n";

async fn tried(door: Door, (world, seen): (&World, &Seen), sent: &[u8], outcome: Outcome) -> Judged {
    let mut client = door.dial(world);
    // A first one, so that what it needs is there.
    write(&mut client, "GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await;
    hear(&mut client).await;
    strictly(seen)?;
    let meter = Meter::begin();
    // It may have enough before all is said.
    let _ = client.write_all(sent).await;
    let heard = hear(&mut client).await;
    let cost = meter.read();
    let read = strictly(seen)?;
    let what = || format!("{heard:?} {read:?} {cost:?}");
    check(cost.bytes < 1 << 20 && cost.cpu < Duration::from_secs(2), what)?;
    check(read.iter().all(|message| message.target() != "/evil"), what)?;
    let (passed, refused, closed) = match outcome {
        Refused(status) => (0, Some(status), true),
        Passes(count) => (count, None, false),
        Last(count) => (count, None, true),
    };
    check(read.len() == passed && heard.closed == closed, what)?;
    match refused {
        Some(status) => {
            let reason = if status == 431 { "too_large" } else { "bad_request" };
            check(heard.text.starts_with(&format!("HTTP/1.1 {status} ")) && heard.text.matches("HTTP/1.").count() == 1, what)?;
            check(heard.text.contains(&format!("x-meshwright-reason: {reason}\r\n")), what)
        }
        None => check(heard.text.matches(" 200 OK\r\n").count() == passed && heard.text.matches("HTTP/1.").count() == passed, what),
    }
}

fn all(cases: &[(&str, Outcome)]) {
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http);
            let seen = record(&mut world, DONE);
            let mut verdicts = Verdicts::default();
            for (sent, outcome) in cases {
                let sent = sent.replace("EVIL", EVIL);
                let judged = tried(door, (&world, &seen), sent.as_bytes(), *outcome).await;
                verdicts.add(judged.map_err(|wrong| format!("{door:?} {:?} {outcome:?}: {wrong}", &sent[..sent.floor_char_boundary(200)])));
            }
        });
    }
}

#[test]
fn lengths_against_codings() {
    // Aim: CL.TE, TE.CL and two lengths: refused, or framed by the coding and closed behind it (RFC 9112, section 6.1).
    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\n";
    let with = |rest: &str| format!("{POST}{rest}");
    let cases = [
        (with("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nEVIL"), Last(1)),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nEVIL"), Last(1)),
        (with("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), Last(1)),
        (with("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!EVIL"), Refused(400)),
        (with("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), Passes(1)),
        (with("Content-Length: 5, 5\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: 5, 6\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: +5\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: -5\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: 0x5\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: 5_0\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: 5 5\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: 5.0\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: \r\n\r\nEVIL"), Refused(400)),
        (with("Content-Length: 18446744073709551616\r\n\r\n"), Refused(400)),
        (with("Content-Length: 18446744073709551615\r\n\r\n"), Refused(431)),
        (with("Content-Length: \x0b5\r\n\r\nhello"), Refused(400)),
        (with("Content-Length: ５\r\n\r\nhello"), Refused(400)),
        (with("Content-Length : 5\r\n\r\nhello"), Refused(400)),
        (with("Content-Length\t: 5\r\n\r\nhello"), Refused(400)),
        (with("Content_Length: 40\r\n\r\n"), Passes(1)),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_owned(), Passes(1)),
        ("HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_owned(), Passes(1)),
    ];
    all(&cases.each_ref().map(|(sent, outcome)| (sent.as_str(), *outcome)));
}

#[test]
fn codings_in_disguise() {
    // Aim: TE.TE: whatever is not exactly one final `chunked` is refused, however it is dressed up.
    let with = |rest: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{rest}\r\n\r\n0\r\n\r\nEVIL");
    let refused = [
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: cow: moo, chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;a=b",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
        "Transfer-Encoding: chunked\r\ntransfer-encoding: identity",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding:",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding: \x00chunked",
        "Transfer-Encoding: chunked\x00",
        "Transfer-Encoding\r\n: chunked",
        "Transfer-Encoding:\r\n chunked",
        "X: a\r\n\tTransfer-Encoding: chunked",
        " Transfer-Encoding: chunked",
        "X: a\rTransfer-Encoding: chunked",
        "\rTransfer-Encoding: chunked",
        "Transfer-Encoding: chun\u{212a}ed",
    ];
    let cases = refused.map(with);
    all(&cases.each_ref().map(|sent| (sent.as_str(), Refused(400))));
    let coded = with("Transfer-Encoding: gzip, chunked");
    all(&[(coded.as_str(), Refused(501))]);
    let passes = ["Transfer-Encoding: chunked", "transfer-encoding:chunked", "TRANSFER-ENCODING:\t CHUNKED \t"];
    let cases = passes.map(|te| format!("POST / HTTP/1.1\r\nHost: a\r\n{te}\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
    all(&cases.each_ref().map(|sent| (sent.as_str(), Passes(1))));
    // A name with an underscore is another name, and frames nothing.
    all(&[("POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n", Passes(1))]);
}

#[test]
fn lines_that_end_in_other_ways() {
    // Aim: a bare LF is taken or refused and never passed on; folded lines, bare CR and NUL are refused.
    all(&[
        ("GET / HTTP/1.1\nHost: a\n\n", Passes(1)),
        ("POST / HTTP/1.1\r\nHost: a\nContent-Length: 5\r\n\nhello", Passes(1)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tContent-Length: 50\r\n\r\nEVIL", Refused(400)),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\0: c\r\n\r\n", Refused(400)),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", Refused(400)),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Passes(1)),
    ]);
}

#[test]
fn chunks_that_lie() {
    // Aim: a chunk's size is plain and its extension goes no further; what breaks the coding ends both connections.
    let with = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let passes = [
        "5;a=b\r\nhello\r\n0;c\r\n\r\n".to_owned(),
        "5 ;a=\"b\"\r\nhello\r\n0\r\n\r\n".to_owned(),
        "00005\r\nhello\r\n000\r\n\r\n".to_owned(),
        "5\r\nhello\r\n0\r\nX: y\r\n\r\n".to_owned(),
        "5\r\nhello\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\nHost: b\r\n\r\n".to_owned(),
        format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(8 << 10)),
    ];
    all(&passes.each_ref().map(|body| with(body)).each_ref().map(|sent| (sent.as_str(), Passes(1))));
    let broken = &[
        "+5\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "-1\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "0x5\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "5_0\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "g\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        ";a\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "5;a\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "5;a\rb\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "5\nhello\n0\n\nEVIL".to_owned(),
        "5\rhello\r\n0\r\n\r\nEVIL".to_owned(),
        "5\r\nhelloEVIL0\r\n\r\n".to_owned(),
        "5\r\nhello\n0\r\n\r\nEVIL".to_owned(),
        "10000000000000005\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\nEVIL".to_owned(),
        "5\r\nhello\r\n0\r\nX : y\r\n\r\nEVIL".to_owned(),
        format!("5;{}\r\nhello\r\n0\r\n\r\nEVIL", "a".repeat(1 << 20)),
        format!("5\r\nhello\r\n0\r\n{}\r\n\r\nEVIL", "X: y\r\n".repeat(1 << 14)),
    ];
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http);
            let seen = record(&mut world, DONE);
            let mut verdicts = Verdicts::default();
            for body in broken {
                let sent = with(&body.replace("EVIL", EVIL));
                let judged = broken_off(door, (&world, &seen), &sent).await;
                verdicts.add(judged.map_err(|wrong| format!("{door:?} {:?}: {wrong}", &sent[..sent.len().min(200)])));
            }
        });
    }
}

/// The body of a request breaks: the application never sees its end, and the client hears a 400 or a cut.
async fn broken_off(door: Door, (world, seen): (&World, &Seen), sent: &str) -> Judged {
    let mut client = door.dial(world);
    let meter = Meter::begin();
    let _ = client.write_all(sent.as_bytes()).await;
    let heard = hear(&mut client).await;
    let cost = meter.read();
    let read = strictly(seen)?;
    let what = || format!("{heard:?} {read:?} {cost:?}");
    check(cost.bytes < 2 << 20 && read.is_empty() && heard.closed, what)?;
    let refused = heard.text.starts_with("HTTP/1.1 400 ") && heard.text.contains("x-meshwright-reason: bad_request\r\n");
    check(heard.text.is_empty() || refused, what)
}

#[test]
fn versions_and_forms_of_old() {
    // Aim: HTTP/0.9, codings in HTTP/1.0, unknown versions, and targets in the wrong form.
    all(&[
        ("GET /\r\n", Refused(400)),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nEVIL", Refused(400)),
        ("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nEVIL", Refused(400)),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", Last(1)),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1x\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\n\r\n", Refused(400)),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Passes(1)),
        ("GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ]);
}

#[test]
fn leftovers_are_no_requests() {
    // Aim: what follows a request is the next one exactly where everybody says so, and nothing follows one that was refused.
    all(&[
        ("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", Passes(2)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", Passes(2)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\nEVIL", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 31\r\n\r\nEVIL", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\nEVIL", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nEVIL", Last(1)),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\nEVIL", Last(1)),
    ]);
}

#[test]
fn expectations_and_switches_smuggle_nothing() {
    // Aim: what a client sends behind an expectation, or a switch that is answered 200, is the body or the next request, as it says itself.
    all(&[
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", Passes(1)),
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", Passes(1)),
    ]);
    let body = "GET /evil HTTP/1.1\r\nHost: abcd\r\n\r\n";
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http);
            let seen = record(&mut world, DONE);
            let mut verdicts = Verdicts::default();
            for sent in [
                format!("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                format!("POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x01\x02\x03EVIL".to_owned(),
            ] {
                let mut client = door.dial(&world);
                let _ = client.write_all(sent.as_bytes()).await;
                let heard = hear(&mut client).await;
                let read = strictly(&seen);
                let tame = read.as_ref().is_ok_and(|read| read.iter().all(|message| message.target() == "/"));
                verdicts.add(check(tame && heard.text.matches("HTTP/1.1 200 OK").count() == 1, || {
                    format!("{door:?} {sent:?}: {heard:?} {read:?}")
                }));
            }
        });
    }
}

#[test]
fn heads_that_are_too_large() {
    // Aim: 431 with the reason, at little cost, whether it is one field, many, or the target.
    let one = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(65 << 10));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101));
    let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(65 << 10));
    all(&[(&one, Refused(431)), (&many, Refused(431)), (&target, Refused(431))]);
}

/// A cheap generator, seeded: the same mutants on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

const SEEDS: [&str; 6] = [
    "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n",
    "PUT http://a/b?c HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: keep-alive, x\r\nX: y\r\n\r\nabc",
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
];

const PIECES: [&str; 26] = [
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "\0",
    "\t",
    " ",
    ":",
    ";",
    ",",
    "0",
    "5",
    "+",
    "x",
    "chunked",
    "identity",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "transfer-encoding",
    "\x0b",
    "\u{e9}",
    "HTTP/1.0",
    "Connection: close\r\n",
    "0\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
];

fn mutate(seed: &str, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = seed.as_bytes().to_vec();
    for _ in 0..=chance.below(3) {
        let at = chance.below(bytes.len() + 1);
        match chance.below(4) {
            0 => {
                let piece = PIECES[chance.below(PIECES.len())].bytes();
                bytes.splice(at..at, piece);
            }
            1 if at < bytes.len() => bytes[at] = chance.below(256) as u8,
            2 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let end = (at + chance.below(30)).min(bytes.len());
                let copied = bytes[at..end].to_vec();
                bytes.splice(at..at, copied);
            }
        }
    }
    bytes
}

#[test]
fn whatever_passes_is_read_alike_by_everybody() {
    // Aim: of thousands of broken requests each is refused or reaches the application in a form that the strictest reader takes, and every
    // whole request that it got was answered in its turn.
    run(|| async {
        let mut world = Door::Inbound.world(Protocol::Http);
        let seen = record(&mut world, DONE);
        let (mut chance, mut verdicts) = (Chance(0x9e37_79b9_7f4a_7c15), Verdicts::default());
        for number in 0..2000 {
            let sent = mutate(SEEDS[number % SEEDS.len()], &mut chance);
            let mut client = Door::Inbound.dial(&world);
            let _ = client.write_all(&sent).await;
            let heard = hear(&mut client).await;
            // An application may answer what has not come to its end.
            let begun = seen.borrow().iter().filter(|bytes| messages(bytes).is_ok_and(|(_, more)| more)).count();
            let read = strictly(&seen);
            let answered = heard.text.matches(" 200 OK\r\n").count();
            let fits = read.as_ref().is_ok_and(|read| answered <= read.len() + begun);
            verdicts.add(check(fits, || format!("{number} {:?}: {heard:?} {read:?}", String::from_utf8_lossy(&sent))));
        }
    });
}
