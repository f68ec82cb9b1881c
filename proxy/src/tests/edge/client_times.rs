//! What a policy says of a client's pace and of its answers, over whole connections: writes that stall, requests at once, promises of TLS.

use engine::model::{ClientPolicy, ClientRules, ClientTimeouts, EarlyHeaders, Edge, Http2Rules};
use tokio::time::Instant;

use super::client_policy::under;
use super::tls::{cell, certificate, client, connect, get, https, table_of, terms};
use super::*;

const ENDLESS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";

/// Under rules that let a client take nothing for three seconds.
fn impatient(world: &World) {
    let timeouts = ClientTimeouts { write_stall: Duration::from_secs(3), ..ClientTimeouts::default() };
    under(world, ClientPolicy::of_all(ClientRules { timeouts, ..ClientRules::default() }));
}

/// Sends the application's answer for as long as somebody takes it; how long that was.
async fn pour(application: &mut Socket) -> Duration {
    let (began, chunk) = (Instant::now(), vec![0; 64 << 10]);
    while application.write_all(&chunk).await.is_ok() {}
    began.elapsed()
}

#[test]
fn who_takes_nothing_of_its_answer_is_cut_off() {
    // Aim: after the time of the policy, and not before it; the application hears of it.
    run(|| async {
        let mut world = World::new(Setup::default());
        impatient(&world);
        let mut client = world.knock();
        write(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, ENDLESS).await;
        let poured = pour(&mut application).await;
        assert!((3..8).contains(&poured.as_secs()), "{poured:?}");
        drop(client);
    });
}

#[test]
fn a_stream_that_stalls_is_reset_and_the_others_go_on() {
    // Aim: over HTTP/2 the stream whose answer is not read is reset; the connection serves the next request.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
        impatient(&world);
        let (mut sender, connection) = h2::client::handshake(world.knock()).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        let ask = || http::Request::get("http://a/").body(()).unwrap();
        let (stalled, _) = sender.send_request(ask(), true).unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, ENDLESS).await;
        let pouring = tokio::task::spawn_local(async move { pour(&mut application).await });
        let mut body = stalled.await.unwrap().into_body();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let mut sender = sender.ready().await.unwrap();
        let (next, _) = sender.send_request(ask(), true).unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(next.await.unwrap().status(), 200);
        let ended = loop {
            match body.data().await {
                Some(Ok(_)) => {}
                ended => break ended,
            }
        };
        assert!(ended.is_some_and(|ended| ended.is_err_and(|error| error.is_reset())), "the stream was not reset");
        let poured = pouring.await.unwrap();
        assert!((3..8).contains(&poured.as_secs()), "{poured:?}");
    });
}

#[test]
fn requests_at_once_are_as_many_as_the_policy_says() {
    // Aim: the client is told the bound, and what it sends beyond it waits for one of the others to end.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
        let http2 = Http2Rules { max_streams: 2, ..Http2Rules::default() };
        under(&world, ClientPolicy::of_all(ClientRules { http2, ..ClientRules::default() }));
        let (sender, connection) = h2::client::handshake(world.knock()).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        let mut sender = sender.ready().await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..2 {
            answers.push(sender.send_request(http::Request::get("http://a/").body(()).unwrap(), true).unwrap().0);
            sender = sender.ready().await.unwrap();
        }
        let mut applications = vec![world.application().await, world.application().await];
        assert_eq!(sender.current_max_send_streams(), 2);
        for application in &mut applications {
            head(application).await;
        }
        let (third, _) = sender.send_request(http::Request::get("http://a/third").body(()).unwrap(), true).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(world.applications.try_recv().is_err(), "a third request is under way");
        write(&mut applications[0], "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(head(&mut applications[0]).await.contains("/third"));
        write(&mut applications[0], "HTTP/1.1 204 No\r\n\r\n").await;
        assert_eq!(third.await.unwrap().status(), 204);
    });
}

#[test]
fn every_answer_over_tls_keeps_its_promise() {
    // Aim: `strict-transport-security` on an application's answer and on a refusal, in place of what the application says; in plaintext on none.
    run(|| async {
        let mut world = World::new(Setup::default());
        let authority = Authority::new("cluster.local");
        let table = table_of(&world);
        let chain = https("a", terms(&cell("a", Some(certificate(&authority, &["shop.example"])))), &table);
        let headers = EarlyHeaders { hsts: Some("max-age=60".parse().unwrap()), ..EarlyHeaders::default() };
        let clients = Arc::new(ClientPolicy::of_all(ClientRules { headers, ..ClientRules::default() }));
        let mut snapshot = client_snapshot(&world.setup, 2);
        let port = Port::Tls(Arc::new(engine::model::Chains::leading(vec![("shop.example", chain)])));
        snapshot.edges.insert(443, Arc::new(Edge { name: "edge/443".into(), port, clients: Arc::clone(&clients), content: 2 }));
        snapshot.edges.insert(80, Arc::new(Edge { name: "edge/80".into(), port: Port::Http(table), clients, content: 2 }));
        world.client_means.snapshots.publish(Arc::new(snapshot));
        let promise = "strict-transport-security: max-age=60\r\n";
        let mut stream = connect(&world.client, &Arc::new(client(&["http/1.1"])), "shop.example").await.unwrap();
        stream.write_all(b"GET /..%2f/../.. HTTP/1.1\r\nhost: shop.example\r\n\r\n").await.unwrap();
        let mut refused = Vec::new();
        while !refused.ends_with(b"\r\n\r\n") {
            refused.push(stream.read_u8().await.unwrap());
        }
        let refused = String::from_utf8(refused).unwrap();
        assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains(promise), "{refused}");
        // What breaks a rule of form ends its connection.
        let mut stream = connect(&world.client, &Arc::new(client(&["http/1.1"])), "shop.example").await.unwrap();
        let own = "HTTP/1.1 200 OK\r\nstrict-transport-security: max-age=1\r\ncontent-length: 0\r\n\r\n";
        let (answer, ()) = tokio::join!(get(&mut stream, "shop.example"), async {
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, own).await;
        });
        assert!(answer.contains(promise) && answer.matches("strict-transport").count() == 1, "{answer}");
        let mut plain = world.knock();
        write(&mut plain, "GET /.. HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = head(&mut plain).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("strict-transport"), "{answer}");
    });
}
