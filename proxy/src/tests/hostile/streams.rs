//! HTTP/2 that breaks its own rules: stream by stream and frame by frame.

use super::frames::*;
use super::*;

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const COMPRESSION: u32 = 9;

/// What may become of a thing, in the order of preference.
type Ends = &'static [End];

async fn tried(door: Door, (world, seen): (&World, &Seen), sent: &[u8], ends: Ends) -> Judged {
    let mut client = begun(door, world).await;
    let meter = Meter::begin();
    let _ = client.write_all(sent).await;
    let (frames, closed) = heard(&mut client).await;
    let cost = meter.read();
    let (ended, read) = (end(&frames, closed), strictly(seen)?);
    let what = || format!("{ended:?} is none of {ends:?}, or not as it should be: {frames:?} {read:?} {cost:?}");
    check(cost.bytes < 1 << 20 && cost.cpu < Duration::from_secs(2) && ends.contains(&ended), what)?;
    check(read.len() == usize::from(ended == End::Status(200)), what)?;
    // The connection goes on unless it was ended.
    if !closed && !matches!(ended, End::Away(_)) {
        let _ = client.write_all(&request(99)).await;
        let (frames, _) = heard(&mut client).await;
        let answered = frames.iter().find_map(|frame| frame.status().filter(|_| frame.stream == 99));
        check(answered == Some(200), || format!("{ended:?}, and the next: {frames:?}"))?;
    }
    // Others are served.
    let mut other = door.dial(world);
    write(&mut other, "GET /other HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let heard = hear(&mut other).await;
    strictly(seen)?;
    check(heard.text.starts_with("HTTP/1.1 200 "), || format!("others are not served: {heard:?}"))
}

fn all(cases: &[(&str, Vec<u8>, Ends)]) {
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http1);
            let seen = record(&mut world, DONE);
            let mut verdicts = Verdicts::default();
            for (what, sent, ends) in cases {
                let judged = tried(door, (&world, &seen), sent, ends).await;
                verdicts.add(judged.map_err(|wrong| format!("{door:?} {what}: {wrong}")));
            }
        });
    }
}

/// A request of just these fields.
fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields))
}

/// The plain request with one more field.
fn plain_with(name: &str, value: &str) -> Vec<u8> {
    head(&[&PLAIN[..], &[(name, value)]].concat())
}

/// The plain request with a pseudo-header of another value.
fn plain_but(name: &str, value: &str) -> Vec<u8> {
    head(&PLAIN.map(|(field, plain)| (field, if field == name { value } else { plain })))
}

/// A cookie in crumbs of a byte, 13 KiB in all.
fn crumbs() -> Vec<u8> {
    let crumbs = [&[0][..], &text("cookie"), &text("a")].concat().repeat(1500);
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&block(&PLAIN)[..], &crumbs].concat())
}

/// What the library takes for broken as a whole ends the connection, which RFC 9113, section 5.4 allows for any error.
const MALFORMED: Ends = &[End::Reset(PROTOCOL), End::Status(400), End::Away(PROTOCOL)];

#[test]
fn pseudo_headers_are_what_they_should_be() {
    // Aim: missing, double, late, unknown, malformed and oversized ones are a reset or a 400 and reach nobody (RFC 9113, section 8.3).
    let [method, scheme, authority, path] = PLAIN;
    all(&[
        ("a plain one", head(&PLAIN), &[End::Status(200)]),
        ("a thousand and more crumbs", crumbs(), &[End::Status(431)]),
        (
            "a table that grows and shrinks",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&[0x20, 0x3f, 0xe1, 0x1f][..], &block(&PLAIN)].concat()),
            &[End::Status(200)],
        ),
        ("no :method", head(&[scheme, authority, path]), MALFORMED),
        ("no :path", head(&[method, scheme, authority]), MALFORMED),
        ("no :scheme", head(&[method, authority, path]), MALFORMED),
        ("two :method", head(&[method, method, scheme, authority, path]), MALFORMED),
        ("two :path", head(&[method, scheme, authority, path, (":path", "/evil")]), MALFORMED),
        ("two :authority", head(&[method, scheme, authority, authority, path]), MALFORMED),
        ("a late :path", head(&[method, scheme, authority, ("x", "y"), path]), MALFORMED),
        ("a late second :path", head(&[method, scheme, authority, path, ("x", "y"), (":path", "/evil")]), MALFORMED),
        ("an unknown one", plain_with(":evil", "1"), MALFORMED),
        (":status", plain_with(":status", "200"), MALFORMED),
        (":protocol without CONNECT", plain_with(":protocol", "websocket"), MALFORMED),
        ("an empty name", plain_with("", "1"), MALFORMED),
        (":", plain_with(":", "1"), MALFORMED),
        ("an empty :path", plain_but(":path", ""), MALFORMED),
        (":path without a slash", plain_but(":path", "evil"), MALFORMED),
        (":path *", plain_but(":path", "*"), MALFORMED),
        (":path in absolute form", plain_but(":path", "http://b/evil"), MALFORMED),
        (":path with a space", plain_but(":path", "/a HTTP/1.1"), MALFORMED),
        (":path with CRLF", plain_but(":path", "/ HTTP/1.1\r\nHost: b\r\n\r\nGET /evil"), MALFORMED),
        (":path with NUL", plain_but(":path", "/a\0b"), MALFORMED),
        (":path with a tab", plain_but(":path", "/a\tb"), MALFORMED),
        ("a :path of 100 KiB", plain_but(":path", &format!("/{}", "a".repeat(15 << 10))), &[End::Status(200)]),
        (":method with a space", plain_but(":method", "GET /evil HTTP/1.1"), MALFORMED),
        (":method with CRLF", plain_but(":method", "GET / HTTP/1.1\r\n"), MALFORMED),
        ("an empty :method", plain_but(":method", ""), MALFORMED),
        (":authority with CRLF", plain_but(":authority", "a\r\nx: y"), MALFORMED),
        (":authority with a user", plain_but(":authority", "b@a"), MALFORMED),
        (":authority with a path", plain_but(":authority", "a/evil"), MALFORMED),
        (":authority with a space", plain_but(":authority", "a b"), MALFORMED),
        (":scheme with CRLF", plain_but(":scheme", "http\r\nx: y"), MALFORMED),
        (":scheme ftp", plain_but(":scheme", "ftp"), MALFORMED),
        (":scheme with a path", plain_but(":scheme", "http://b/evil?"), MALFORMED),
        ("another host", plain_with("host", "b"), MALFORMED),
        ("two hosts", head(&[&PLAIN[..], &[("host", "a"), ("host", "a")]].concat()), MALFORMED),
        ("the same host", plain_with("host", "a"), &[End::Status(200)]),
        ("a host with CRLF", head(&[method, scheme, path, ("host", "a\r\nx: y")]), MALFORMED),
        ("CONNECT with a path", plain_but(":method", "CONNECT"), MALFORMED),
    ]);
}

#[test]
fn fields_bring_nothing_of_http1_along() {
    // Aim: names and values that HTTP/1.1 would read as lines, lengths or codings of its own never get there (RFC 9113, sections 8.2 and 8.1.1).
    let body = |fields: &[(&str, &str)], body: &[u8]| {
        let post = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
        [frame(HEADERS, END_HEADERS, 1, &block(&[&post[..], fields].concat())), frame(DATA, END_STREAM, 1, body)].concat()
    };
    all(&[
        ("CRLF in a value", plain_with("x", "a\r\nTransfer-Encoding: chunked"), MALFORMED),
        ("LF in a value", plain_with("x", "a\nb"), MALFORMED),
        ("CR in a value", plain_with("x", "a\rb"), MALFORMED),
        ("NUL in a value", plain_with("x", "a\0b"), MALFORMED),
        ("CRLF in a name", plain_with("x: y\r\ntransfer-encoding", "chunked"), MALFORMED),
        ("a colon in a name", plain_with("x:y", "z"), MALFORMED),
        ("a space in a name", plain_with("x y", "z"), MALFORMED),
        ("a space behind a name", plain_with("transfer-encoding ", "chunked"), MALFORMED),
        ("upper case in a name", plain_with("X-Upper", "1"), MALFORMED),
        ("NUL in a name", plain_with("x\0", "1"), MALFORMED),
        ("transfer-encoding", plain_with("transfer-encoding", "chunked"), MALFORMED),
        ("connection", plain_with("connection", "keep-alive, x"), MALFORMED),
        ("keep-alive", plain_with("keep-alive", "timeout=5"), MALFORMED),
        ("proxy-connection", plain_with("proxy-connection", "keep-alive"), MALFORMED),
        ("upgrade", plain_with("upgrade", "h2c"), MALFORMED),
        ("te: gzip", plain_with("te", "gzip"), MALFORMED),
        ("te: trailers", plain_with("te", "trailers"), &[End::Status(200)]),
        ("content-length without a body", plain_with("content-length", "5"), MALFORMED),
        ("content-length below the body", body(&[("content-length", "0")], b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"), MALFORMED),
        ("content-length beyond the body", body(&[("content-length", "50")], b"hello"), MALFORMED),
        ("two content-lengths", body(&[("content-length", "5"), ("content-length", "6")], b"hello"), MALFORMED),
        ("a signed content-length", body(&[("content-length", "+5")], b"hello"), MALFORMED),
        ("a list of content-lengths", body(&[("content-length", "5, 5")], b"hello"), MALFORMED),
        ("the content-length", body(&[("content-length", "5")], b"hello"), &[End::Status(200)]),
        ("no content-length", body(&[], b"hello"), &[End::Status(200)]),
    ]);
}

#[test]
fn trailers_bring_nothing_along() {
    // Aim: neither pseudo-headers nor fields that frame go any further.
    let with = |trailers: &[(&str, &str)]| {
        let post = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
        let parts = [
            frame(HEADERS, END_HEADERS, 1, &block(&post)),
            frame(DATA, 0, 1, b"hello"),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers)),
        ];
        parts.concat()
    };
    all(&[
        ("plain trailers", with(&[("x", "y")]), &[End::Status(200)]),
        (
            "trailers that frame",
            with(&[("content-length", "9"), ("host", "b")]),
            &[End::Status(200), End::Reset(PROTOCOL), End::Status(400)],
        ),
        // The library drops it.
        ("a pseudo-header", with(&[(":path", "/evil")]), &[End::Status(200)]),
    ]);
}

#[test]
fn frames_are_where_they_may_be() {
    // Aim: wrong streams, sizes, orders and windows end the stream or the connection with the code that says why (RFC 9113, sections 4 to 6).
    const AWAY: Ends = &[End::Away(PROTOCOL)];
    let setting = |id: u16, value: u32| frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let window = |stream: u32, size: u32| frame(WINDOW_UPDATE, 0, stream, &size.to_be_bytes());
    let opened =
        |then: Vec<u8>| [frame(HEADERS, END_HEADERS, 1, &block(&[(":method", "POST"), PLAIN[1], PLAIN[2], PLAIN[3]])), then].concat();
    all(&[
        ("an even stream", request(2), AWAY),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS | END_STREAM, 0, &block(&PLAIN)), AWAY),
        ("DATA on stream 0", frame(DATA, 0, 0, b"a"), AWAY),
        ("DATA on an idle stream", frame(DATA, 0, 5, b"a"), AWAY),
        ("RST_STREAM of an idle stream", frame(RST_STREAM, 0, 5, &8_u32.to_be_bytes()), AWAY),
        ("RST_STREAM of stream 0", frame(RST_STREAM, 0, 0, &8_u32.to_be_bytes()), AWAY),
        ("a window for an idle stream", window(5, 1), AWAY),
        (
            "a stream that goes back",
            [request(3), request(1)].concat(),
            &[End::Away(PROTOCOL), End::Away(STREAM_CLOSED), End::Reset(STREAM_CLOSED)],
        ),
        ("PUSH_PROMISE", opened(frame(PUSH_PROMISE, END_HEADERS, 1, &[&2_u32.to_be_bytes()[..], &block(&PLAIN)].concat())), AWAY),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &block(&PLAIN)), AWAY),
        ("a frame within a header block", [frame(HEADERS, 0, 1, &block(&PLAIN)), frame(PING, 0, 0, &[0; 8])].concat(), AWAY),
        ("another stream's CONTINUATION", [frame(HEADERS, 0, 1, &block(&PLAIN)), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(), AWAY),
        ("a PING of seven", frame(PING, 0, 0, &[0; 7]), &[End::Away(FRAME_SIZE), End::Away(PROTOCOL)]),
        ("a PING of a stream", frame(PING, 0, 1, &[0; 8]), AWAY),
        ("SETTINGS of five", frame(SETTINGS, 0, 0, &[0; 5]), &[End::Away(FRAME_SIZE), End::Away(PROTOCOL)]),
        ("SETTINGS of a stream", frame(SETTINGS, 0, 1, &[]), AWAY),
        ("an ACK with a body", frame(SETTINGS, 1, 0, &[0; 6]), &[End::Away(FRAME_SIZE), End::Away(PROTOCOL)]),
        ("a window beyond 2^31", setting(4, 1 << 31), &[End::Away(FLOW_CONTROL), End::Away(PROTOCOL)]),
        ("frames of more than 2^24", setting(5, 1 << 24), AWAY),
        ("frames of less than 2^14", setting(5, 1), AWAY),
        ("ENABLE_PUSH 2", setting(2, 2), AWAY),
        ("a frame of 2^14 + 1", opened(frame(DATA, END_STREAM, 1, &[0; (1 << 14) + 1])), &[End::Away(FRAME_SIZE), End::Away(PROTOCOL)]),
        ("a window of nothing for the connection", window(0, 0), AWAY),
        (
            "a connection's window that overflows",
            [window(0, i32::MAX as u32), window(0, i32::MAX as u32)].concat(),
            &[End::Away(FLOW_CONTROL)],
        ),
        (
            "a stream's window that overflows",
            opened([window(1, i32::MAX as u32), window(1, i32::MAX as u32)].concat()),
            &[End::Reset(FLOW_CONTROL)],
        ),
        ("a window of nothing for a stream", opened(window(1, 0)), &[End::Reset(PROTOCOL), End::Away(PROTOCOL)]),
        ("more padding than frame", opened(frame(DATA, 8, 1, &[9, 0, 0])), AWAY),
        ("a stream that depends on itself", opened(frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0])), &[End::Reset(PROTOCOL), End::Away(PROTOCOL)]),
        ("a PRIORITY of four", frame(PRIORITY, 0, 1, &[0; 4]), &[End::Reset(FRAME_SIZE), End::Away(FRAME_SIZE), End::Away(PROTOCOL)]),
        ("an index of nothing", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80]), &[End::Away(COMPRESSION), End::Away(PROTOCOL)]),
        (
            "an index beyond the table",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0x7f]),
            &[End::Away(COMPRESSION), End::Away(PROTOCOL)],
        ),
        (
            "an integer without an end",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 60]),
            &[End::Away(COMPRESSION), End::Away(PROTOCOL)],
        ),
        (
            "a table of 1 GiB",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xe1, 0xff, 0xff, 0xff, 0x03]),
            &[End::Away(COMPRESSION), End::Away(PROTOCOL)],
        ),
    ]);
}
