//! Interim answers: passed on exactly where they came, none of our own.

use engine::model::Protocol;
use http::{Request, Response};

use super::*;
use crate::ground::limits::CONTINUE_WAIT;

const DONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const ASK: &str = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";

/// What comes within a moment.
async fn soon(socket: &mut Socket) -> String {
    let mut bytes = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(100), socket.read_buf(&mut bytes)).await {}
    String::from_utf8(bytes).unwrap()
}

#[test]
fn interim_answers_pass_where_they_come_and_none_of_our_own() {
    // Aim: 102 and 103 arrive before the final answer, in order, each when it is said, through both sidecars and the edge.
    run(|| async {
        let mut world = World::new(Setup::default());
        for edge in [false, true] {
            let mut client = if edge { world.knock() } else { world.dial(SERVICE) };
            for round in 0..2 {
                write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                // Kept for the next round: the pool's.
                let mut application = world.application().await;
                head(&mut application).await;
                assert_eq!(soon(&mut client).await, "", "nothing of our own");
                write(&mut application, "HTTP/1.1 102 Processing\r\n\r\n").await;
                assert_eq!(soon(&mut client).await, "HTTP/1.1 102 Processing\r\n\r\n", "round {round}");
                write(&mut application, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-own\r\nX-Own: 1\r\n\r\n").await;
                assert_eq!(soon(&mut client).await, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
                write(&mut application, &format!("HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n{DONE}")).await;
                assert_eq!(soon(&mut client).await, format!("HTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\n{DONE}"));
                drop(application);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
}

#[test]
fn http_1_0_callers_get_no_interim_answers() {
    // Aim: HTTP/1.0 knows none (RFC 9110, section 15.2), and its expectation goes no further.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "POST / HTTP/1.0\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok").await;
        let mut application = world.application().await;
        let request = head(&mut application).await;
        assert!(!request.contains("expect"), "{request}");
        assert_eq!(exactly(&mut application, 2).await, "ok");
        write(&mut application, &format!("HTTP/1.1 103 Early Hints\r\n\r\n{DONE}")).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.0 200 OK\r\n"));
    });
}

#[test]
fn a_hundred_is_the_applications_to_say() {
    // Aim: the head travels at once with its expectation; no 100 before the application's, then just that one, then the body.
    run(|| async {
        let mut world = World::new(Setup::default());
        for edge in [false, true] {
            let mut client = if edge { world.knock() } else { world.dial(SERVICE) };
            write(&mut client, ASK).await;
            let mut application = world.application().await;
            assert!(head(&mut application).await.contains("expect: 100-continue\r\n"));
            assert_eq!(soon(&mut client).await, "");
            write(&mut application, "HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(soon(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
            write(&mut client, "ok").await;
            assert_eq!(exactly(&mut application, 2).await, "ok");
            write(&mut application, DONE).await;
            assert_eq!(soon(&mut client).await, DONE);
            write(&mut client, "GET /next HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert!(head(&mut application).await.starts_with("GET /next "), "both connections are kept");
            write(&mut application, DONE).await;
            assert_eq!(soon(&mut client).await, DONE);
            drop(application);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

#[test]
fn an_application_refuses_by_the_head() {
    // Aim: with an expectation no byte of the body travels where the application refuses, and nobody says 100.
    run(|| async {
        let mut world = World::new(Setup::default());
        for edge in [false, true] {
            let mut client = if edge { world.knock() } else { world.dial(SERVICE) };
            write(&mut client, ASK).await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno").await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 417 ") && answer.contains("connection: close\r\n"), "{answer}");
            assert_eq!(exactly(&mut client, 2).await, "no");
            drop(client);
            assert_eq!(rest(&mut application).await, "", "no byte of the body");
        }
    });
}

#[test]
fn an_application_that_ignores_expectations_gets_its_body() {
    // Aim: who sends after a while without a word is served as without a mesh; and nobody says 100 in the application's name.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        tokio::time::sleep(CONTINUE_WAIT).await;
        write(&mut client, "ok").await;
        assert_eq!(exactly(&mut application, 2).await, "ok");
        write(&mut application, DONE).await;
        assert_eq!(soon(&mut client).await, DONE);
    });
}

#[test]
fn unknown_expectations_are_refused() {
    // Aim: RFC 9110, section 10.1.1: 417, with the reason.
    run(|| async {
        let world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nexpect: magic\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 417 ") && answer.contains("x-meshwright-reason: bad_request\r\n"), "{answer}");
    });
}

#[test]
fn interim_answers_cross_versions() {
    // Aim: 100 and 103 of an application in HTTP/1 reach a caller in HTTP/2 as they come, and the other way round; the body waits for the 100.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
        let (mut sender, connection) = h2::client::handshake(world.dial(SERVICE)).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::post("http://catalog/a").header("expect", "100-continue").body(()).unwrap();
        let (mut answer, mut stream) = sender.send_request(request, false).unwrap();
        let mut application = world.application().await;
        assert!(head(&mut application).await.contains("expect: 100-continue\r\n"));
        for status in [100, 103] {
            write(&mut application, &format!("HTTP/1.1 {status} Interim\r\nLink: </a>\r\n\r\n")).await;
            let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (status, &"</a>".parse().unwrap()));
        }
        stream.send_data("ok".into(), true).unwrap();
        assert_eq!(exactly(&mut application, 12).await, "2\r\nok\r\n0\r\n\r\n");
        write(&mut application, DONE).await;
        assert_eq!(answer.await.unwrap().status(), 200);

        let mut world = World::new(Setup { application: Protocol::Http2, ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let socket = world.application().await;
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let (request, mut reply) = connection.accept().await.unwrap().unwrap();
            tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
            assert_eq!(request.headers()["expect"], "100-continue");
            for status in [100, 103] {
                reply.send_informational(Response::builder().status(status).body(()).unwrap()).unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            let mut body = request.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "ok");
            reply.send_response(Response::new(()), true).unwrap();
        });
        assert_eq!(soon(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
        write(&mut client, "ok").await;
        assert_eq!(head(&mut client).await, "HTTP/1.1 103 Early Hints\r\n\r\n");
        assert_eq!(head(&mut client).await, DONE);
    });
}
