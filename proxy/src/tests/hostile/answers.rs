//! The other side: what an application says to make a client, or the next client, read another answer than it gave.

use super::*;

/// What the caller gets.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// 502, with this reason.
    Refused(&'static str),
    /// Just this status and body, in one form.
    Passes(u16, &'static str),
    /// A head, and then a cut: never an end that could be taken for one.
    Cut,
}
use Outcome::{Cut, Passes, Refused};

/// The answer that nobody asked for.
const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: 1\r\n\r\nevil";

async fn tried(door: Door, ask: &str, said: &str, outcome: Outcome) {
    let what = format!("{door:?} {:?}", &said[..said.len().min(200)]);
    let mut world = door.world(Protocol::Http);
    let mut client = door.dial(&world);
    write(&mut client, &format!("{ask} / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    let mut application = world.application().await;
    head(&mut application).await;
    let meter = Meter::begin();
    let _ = tokio::time::timeout(QUIET, application.write_all(said.as_bytes())).await;
    let heard = hear(&mut client).await;
    let cost = meter.read();
    assert!(cost.bytes < 2 << 20, "{what}: {cost:?}");
    assert!(!heard.text.to_lowercase().contains("x-evil"), "{what}: {heard:?}");
    match outcome {
        Refused(reason) => {
            assert!(heard.text.starts_with("HTTP/1.1 502 "), "{what}: {heard:?}");
            assert!(heard.text.contains(&format!("x-meshwright-reason: {reason}\r\n")), "{what}: {heard:?}");
        }
        Passes(status, body) => {
            assert!(heard.text.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {heard:?}");
            assert!(heard.text.ends_with(&format!("\r\n\r\n{body}")), "{what}: {heard:?}");
            let framed = heard.text.to_lowercase();
            assert!(!(framed.contains("content-length:") && framed.contains("transfer-encoding:")), "{what}: {heard:?}");
        }
        Cut => assert!(heard.closed && !heard.text.ends_with("0\r\n\r\n"), "{what}: {heard:?}"),
    }
    if heard.closed {
        return;
    }
    // The next exchange is answered by what answers it, whatever was left lying.
    drop(application);
    write(&mut client, "GET /next HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut again = world.application().await;
    assert!(head(&mut again).await.starts_with("GET /next "), "{what}");
    write(&mut again, "HTTP/1.1 204 No Content\r\nX-Next: 1\r\n\r\n").await;
    let next = hear(&mut client).await.text;
    assert!(next.starts_with("HTTP/1.1 204 "), "{what}: {next}");
}

fn all(ask: &str, cases: &[(&str, Outcome)]) {
    for door in Door::ALL {
        for (said, outcome) in cases {
            let said = said.replace("EVIL", EVIL);
            run(|| async move { tried(door, ask, &said, *outcome).await });
        }
    }
}

#[test]
fn answers_are_framed_once() {
    // Aim: CL.TE, two lengths, codings in disguise, lines that end in other ways: 502, or one form of it; nothing behind is an answer.
    const PROTOCOL: Outcome = Refused("upstream_protocol");
    all(
        "GET",
        &[
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                Passes(200, "2\r\nhi\r\n0\r\n\r\n"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n2\r\nhi\r\n0\r\n\r\nEVIL",
                Passes(200, "2\r\nhi\r\n0\r\n\r\n"),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 50\r\n\r\nhiEVIL", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nhi", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiEVIL", Passes(200, "hi")),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n2\r\nhi\r\n0\r\n\r\n", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 0\r\n\r\n", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nX: a\rX-Evil: 1\r\nContent-Length: 0\r\n\r\n", PROTOCOL),
            ("HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", Passes(200, "hi")),
            ("HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nhi", PROTOCOL),
            ("HTTP/1.1 99 Low\r\nContent-Length: 2\r\n\r\nhi", PROTOCOL),
            ("HTTP/1.1 1000 High\r\nContent-Length: 2\r\n\r\nhi", PROTOCOL),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nEVIL", PROTOCOL),
            ("<html>no HTTP</html>", PROTOCOL),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n+0\r\n\r\n", Cut),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nfffffffffffffffff\r\n", Cut),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nContent-Length: 9\r\nHost: b\r\n\r\n",
                Passes(200, "2\r\nhi\r\n0\r\n\r\n"),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n", Passes(200, "2\r\nhi\r\n0\r\n\r\n")),
            ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", Passes(204, "")),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 60\r\n\r\nEVIL", Passes(304, "")),
        ],
    );
    all(
        "HEAD",
        &[
            ("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nEVIL", Passes(200, "")),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nEVIL", Passes(200, "")),
        ],
    );
}

#[test]
fn heads_of_answers_have_their_bound() {
    // Aim: an answer's head that is too large, in bytes or fields, is 502 too_large; a head without an end costs no more than that.
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(80 << 10));
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X: y\r\n".repeat(120));
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(1 << 20));
    all("GET", &[(&long, Refused("too_large")), (&many, Refused("too_large")), (&endless, Refused("too_large"))]);
}

#[test]
fn a_flood_of_interim_answers_is_bounded() {
    // Aim: a hundred thousand interim answers cost a few of them in memory, and the final one arrives.
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http);
            let mut client = door.dial(&world);
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            let meter = Meter::begin();
            let saying = tokio::task::spawn_local(async move {
                for _ in 0..1000 {
                    let flood = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(100);
                    if application.write_all(flood.as_bytes()).await.is_err() {
                        return;
                    }
                }
                let _ = application.write_all(DONE.as_bytes()).await;
                std::future::pending::<()>().await;
            });
            let mut answer = head(&mut client).await;
            while answer.starts_with("HTTP/1.1 103 ") {
                answer = head(&mut client).await;
            }
            assert!(answer.starts_with("HTTP/1.1 200 "), "{door:?}: {answer}");
            meter.judge(&format!("100,000 interim answers, {door:?}"), 2 << 20);
            saying.abort();
        });
    }
}
