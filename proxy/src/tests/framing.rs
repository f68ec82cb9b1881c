//! Where messages begin and end: nothing a client or an application writes makes the other side see another message than the proxy saw.

use super::*;

const DONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// What became of bytes that a client sent: what the application got within a second, and what the client got.
async fn told(sent: &str) -> (String, String) {
    let mut world = World::new(Setup::default());
    let mut client = world.dial(SERVICE);
    write(&mut client, sent).await;
    let mut seen = Vec::new();
    if let Ok(Some((_, mut application))) = tokio::time::timeout(Duration::from_secs(1), world.applications.recv()).await {
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(1), application.read_buf(&mut seen)).await {}
        // It may have been given up by then.
        let _ = application.write_all(DONE.as_bytes()).await;
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(1), application.read_buf(&mut seen)).await {
            let _ = application.write_all(DONE.as_bytes()).await;
        }
    }
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(1), client.read_buf(&mut answer)).await {}
    (String::from_utf8_lossy(&seen).into_owned(), String::from_utf8_lossy(&answer).into_owned())
}

/// Without the headers that proxies add.
fn plain(seen: &str) -> String {
    let own = ["traceparent", "x-forwarded-client-cert"];
    let kept: Vec<&str> = seen.split("\r\n").filter(|line| !own.iter().any(|name| line.starts_with(name))).collect();
    kept.join("|")
}

#[test]
fn ambiguous_requests_are_refused() {
    // Aim: what two readers could frame in two ways never reaches an application.
    run(|| async {
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        for sent in [
            format!("{head}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
            format!("{head}Content-Length: 5, 6\r\n\r\nhello!"),
            format!("{head}Content-Length: +5\r\n\r\nhello"),
            format!("{head}Content-Length: 0x5\r\n\r\nhello"),
            format!("{head}Content-Length: -1\r\n\r\n"),
            format!("{head}Content-Length: 99999999999999999999999\r\n\r\n"),
            format!("{head}Content-Length:\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding:\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding: identity\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
            format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
            format!("{head} Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            format!("{head}X: a\r\n b\r\n\r\n"),
            format!("{head}X: a\rb\r\n\r\n"),
            format!("{head}X: a\0b\r\n\r\n"),
            format!("{head}X y: a\r\n\r\n"),
            format!("{head}Host: b\r\n\r\n"),
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "POST /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n".to_owned(),
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(),
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nHost: u@a\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nHost: a, b c\r\n\r\n".to_owned(),
            "DELETE products HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET ?a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET #a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET http://a/#b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET *a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET http:// HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "CONNECT http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        ] {
            let (seen, answer) = told(&sent).await;
            assert_eq!(seen, "", "{sent:?} went through");
            assert!(answer.starts_with("HTTP/1.1 400 "), "{sent:?}: {answer:?}");
            assert!(answer.contains("x-meshwright-reason: bad_request\r\n"), "{sent:?}: {answer:?}");
        }
    });
}

#[test]
fn ambiguous_answers_are_refused() {
    // Aim: an answer that two readers could frame in two ways reaches nobody: 502 for the caller, and the connection is not used again.
    run(|| async {
        for framing in [
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: , chunked",
            "Transfer-Encoding: xchunked",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: +5",
        ] {
            let mut world = World::new(Setup::default());
            let mut client = world.dial(SERVICE);
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, &format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{framing}: {answer}");
            assert!(answer.contains("x-meshwright-reason: upstream_protocol\r\n"), "{framing}: {answer}");
            assert_eq!(rest(&mut application).await, "", "{framing}: closed");
        }
    });
}

#[test]
fn a_fragment_is_refused_in_every_head_and_only_there() {
    // Aim: hyper cuts it off in silence; a later head is looked through too, bodies and headers are not.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut application = None;
        for _ in 0..3 {
            let mut client = world.dial(SERVICE);
            write(&mut client, "POST /a HTTP/1.1\r\nhost: a\r\nx: a #b\r\ncontent-length: 10\r\n\r\n").await;
            if application.is_none() {
                application = Some(world.application().await);
            }
            let application = application.as_mut().unwrap();
            head(application).await;
            // Answered before the body has come.
            write(application, DONE).await;
            assert_eq!(head(&mut client).await, DONE);
            write(&mut client, "GET /a#b \n").await;
            assert_eq!(exactly(application, 10).await, "GET /a#b \n");
            write(&mut client, "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("bad_request"), "{answer}");
            assert_eq!(rest(&mut client).await, "bad_request", "it is the last");
        }
    });
}

#[test]
fn requests_are_framed_once() {
    // Aim: what has one meaning goes on with just that meaning, whatever `connection` names and however the length was told.
    run(|| async {
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        for (sent, wanted) in [
            (format!("{head}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "Transfer-Encoding: chunked||0||"),
            (format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n"), "Transfer-Encoding: chunked||0||"),
            (format!("{head}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), "Content-Length: 5||hello"),
            (format!("{head}Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0;c\r\n\r\n"), "Transfer-Encoding: chunked||5|hello|0||"),
            (format!("{head}Connection: content-length\r\nContent-Length: 5\r\n\r\nhello"), "content-length: 5||hello"),
            (
                format!("{head}Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
                "transfer-encoding: chunked||5|hello|0||",
            ),
            ("POST http://a/ HTTP/1.1\r\nHost: evil\r\nContent-Length: 5\r\n\r\nhello".to_owned(), "Content-Length: 5||hello"),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello".to_owned(), "Content-Length: 5||hello"),
        ] {
            let (seen, answer) = told(&sent).await;
            assert_eq!(plain(&seen).to_lowercase(), format!("POST / HTTP/1.1|Host: a|{wanted}").to_lowercase(), "{sent:?}");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{sent:?}: {answer:?}");
        }
    });
}

#[test]
fn broken_chunks_end_both_connections() {
    // Aim: a body that breaks its coding is never completed towards the application.
    run(|| async {
        for body in [
            "5;a\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "fffffffffffffffff\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "-1\r\n",
        ] {
            let (seen, answer) = told(&format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
            assert!(!seen.ends_with("0\r\n\r\n"), "{body:?}: {seen:?}");
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("x-meshwright-reason: bad_request\r\n"), "{body:?}: {answer:?}");
        }
    });
}

#[test]
fn a_broken_chunk_of_an_answer_is_told_as_what_it_is() {
    // Aim: the client sees a cut, and whose fault it was stands in the metrics: the application broke the protocol, nobody went away.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n").await;
        head(&mut client).await;
        let got = rest(&mut client).await;
        assert!(got.starts_with("5\r\nhello") && !got.contains("0\r\n\r\n"), "{got}");
        let metrics = world.server_means.telemetry.render();
        assert!(metrics.contains("reason=\"upstream_protocol\"") && !metrics.contains("client_gone"), "{metrics}");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    // Aim: one after the other, each with its own answer.
    run(|| async {
        let (seen, answer) = told("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(seen.starts_with("GET /1 ") && seen.contains("\r\n\r\nGET /2 "), "{seen}");
        assert_eq!(answer, DONE.repeat(2));
    });
}

#[test]
fn answers_without_a_body_have_none() {
    // Aim: bytes after an answer that cannot have a body are not taken for the next answer.
    run(|| async {
        for (method, answer) in [
            ("GET", "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n"),
            ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
            ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
            ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ] {
            let mut world = World::new(Setup::default());
            let mut client = world.dial(SERVICE);
            write(&mut client, &format!("{method} /1 HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, &format!("{answer}HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-evil: 1\r\n\r\nevil")).await;
            let first = head(&mut client).await;
            assert!(first.starts_with(&answer[..12]) && !first.contains("evil"), "{first}");
            write(&mut client, "GET /2 HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut again = world.application().await;
            assert!(head(&mut again).await.starts_with("GET /2 "));
            write(&mut again, DONE).await;
            assert_eq!(head(&mut client).await, DONE, "{answer:?}");
        }
    });
}

#[test]
fn an_early_answer_arrives() {
    // Aim: an application that answers before it has read the request, and closes, is heard.
    run(|| async {
        for size in [1_000, 1_000_000] {
            let mut world = World::new(Setup::default());
            let client = world.dial(SERVICE);
            let (mut from, mut to) = tokio::io::split(client);
            let sending = tokio::task::spawn_local(async move {
                let _ = to.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n").as_bytes()).await;
                let _ = to.write_all(&vec![b'x'; size]).await;
                to
            });
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig").await;
            drop(application);
            let mut answer = vec![0; 15];
            from.read_exact(&mut answer).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 413 Co", "{size} bytes");
            sending.abort();
        }
    });
}

#[test]
fn odd_targets_reach_no_one_else() {
    // Aim: a target in another form is decided by what it names, and never loops or panics.
    run(|| async {
        for (sent, wanted) in [
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404"),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 4"),
            ("GET //a HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200"),
            ("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200"),
            ("PRI / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200"),
            ("GET / HTTP/1.1\r\nHost: \r\n\r\n", "HTTP/1.1 "),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
            ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
            ("GET http://a/ HTTP/1.1\r\n\r\n", "HTTP/1.1 200"),
        ] {
            let (seen, answer) = told(sent).await;
            assert!(answer.starts_with(wanted), "{sent:?}: {answer:?}, application: {seen:?}");
        }
    });
}
