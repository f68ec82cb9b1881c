//! What real HTTP stacks do, row by row of what was found by running them: each test is named after its row.

use engine::model::Protocol;
use http::Version;
use http_body::Body as _;
use http_body_util::BodyExt;

use super::*;
use crate::ground::limits::{IDLE_PLAIN, TICK};

#[test]
fn an_answer_of_our_own_to_grpc_is_one_header_block() {
    // Aim: `application/grpc`, `grpc-status`, no body, status 200: with anything else grpc-go or grpcio says UNKNOWN or maps the status.
    run(|| async {
        for (endpoints, path, code) in [(vec![], "/a", "14"), (vec![SERVER], "/nowhere", "12")] {
            let world = World::new(Setup { endpoints, ..Setup::default() });
            for socket in [world.dial(SERVICE), world.knock()] {
                let mut sender = http2::client(socket).await;
                let answer = sender.send_request(http2::call(path, "")).await.unwrap();
                assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
                assert_eq!(answer.headers()["content-type"], "application/grpc");
                assert_eq!(answer.headers()["grpc-status"], code);
                assert!(answer.body().is_end_stream(), "one block: it ends the stream");
                assert!(answer.into_body().collect().await.unwrap().trailers().is_none());
            }
        }
    });
}

#[test]
fn an_answer_to_the_preface_that_is_not_http2_is_no_success() {
    // Aim: Python's http.server answers HTTP/2's preface with bare HTML, uvicorn with `200 OK` in HTTP/1.1: 502 for the caller, in his version.
    run(|| async {
        for said in
            ["<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 4.01//EN\">\n<html></html>\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]
        {
            let mut world = World::new(Setup { protocol: Protocol::Http2, application: Protocol::Http2, ..Setup::default() });
            let mut client = world.dial(SERVICE);
            write(&mut client, "GET /a HTTP/1.1\r\nhost: catalog\r\n\r\n").await;
            let mut application = world.application().await;
            exactly(&mut application, 24).await;
            write(&mut application, said).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("x-meshwright-reason: upstream_protocol\r\n"), "{answer}");
        }
    });
}

#[test]
fn kept_connections_go_before_uvicorn_and_node_close_them() {
    // Aim: uvicorn closes after 5.0 s, Node after 6.0 (it says 5): ours are gone before, whoever the application is.
    assert!(IDLE_PLAIN + 2 * TICK < Duration::from_secs(5));
}

#[test]
fn a_server_that_closes_each_time_costs_no_call() {
    // Aim: http.server answers in HTTP/1.0 and closes, gunicorn's default worker closes each time: every call is answered, on a connection
    // of its own.
    run(|| async {
        for answer in
            ["HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"]
        {
            let mut world = World::new(Setup::default());
            let mut client = world.dial(SERVICE);
            for round in 0..20 {
                write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                let mut application = world.application().await;
                head(&mut application).await;
                write(&mut application, answer).await;
                drop(application);
                assert!(head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"), "round {round}");
                assert_eq!(exactly(&mut client, 2).await, "ok");
            }
        }
    });
}
