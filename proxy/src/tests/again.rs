//! Requests that are sent again: by themselves where nothing can go wrong, else as their route says.

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Exchanges one request on a new connection, so that all hops keep one.
async fn warmed(world: &mut World) -> (Socket, Socket) {
    let mut client = world.dial(SERVICE);
    write(&mut client, "GET /first HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut application = world.application().await;
    head(&mut application).await;
    write(&mut application, OK).await;
    head(&mut client).await;
    (client, application)
}

#[test]
fn a_safe_request_on_a_dying_connection_is_sent_once_more() {
    // Aim: an application that closes a kept connection as a request comes is no error of anybody's; what is sent again is the same head,
    // name by name; and once is enough.
    run(|| async {
        let mut world = World::new(Setup::default());
        let (mut client, mut application) = warmed(&mut world).await;
        write(&mut client, "GET /second?q HTTP/1.1\r\nHost: a\r\nX-MixedCase: Yes\r\n\r\n").await;
        let first = head(&mut application).await;
        drop(application);
        let mut again = world.application().await;
        assert_eq!(head(&mut again).await, first);
        assert!(first.contains("X-MixedCase: Yes\r\n") && first.starts_with("GET /second?q HTTP/1.1\r\n"), "{first}");
        write(&mut again, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(exactly(&mut client, 2).await, "ok");
        write(&mut client, "HEAD /third HTTP/1.1\r\nhost: a\r\n\r\n").await;
        head(&mut again).await;
        drop(again);
        let mut third = world.application().await;
        head(&mut third).await;
        drop(third);
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("upstream_reset"), "{answer}");
    });
}

#[test]
fn what_may_have_happened_does_not_happen_twice() {
    // Aim: no unsafe method, nothing with a body, nothing whose answer began, and nothing on a connection that was opened for it is sent again.
    run(|| async {
        for (ask, answer) in [
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", ""),
            ("DELETE /x HTTP/1.1\r\nhost: a\r\n\r\n", ""),
            ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok", ""),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 2"),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"),
        ] {
            let mut world = World::new(Setup::default());
            let (mut client, mut application) = warmed(&mut world).await;
            write(&mut client, ask).await;
            head(&mut application).await;
            write(&mut application, answer).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(application);
            let mut answer = head(&mut client).await;
            if answer.starts_with("HTTP/1.1 103 ") {
                answer = head(&mut client).await;
            }
            assert!(answer.starts_with("HTTP/1.1 50"), "{ask}: {answer}");
            assert!(world.applications.try_recv().is_err(), "{ask}");
        }
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        drop(application);
        assert!(head(&mut client).await.starts_with("HTTP/1.1 503 "));
        assert!(world.applications.try_recv().is_err(), "the one place there is has just failed");
    });
}

#[test]
fn a_safe_request_goes_to_another_endpoint() {
    // Aim: a caller's proxy whose server breaks off asks another one.
    run(|| async {
        let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.9.1:80", "10.77.9.2:80"], ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let (first, mut application) = world.applications.recv().await.unwrap();
        head(&mut application).await;
        drop(application);
        let (second, mut application) = world.applications.recv().await.unwrap();
        assert_ne!(first, second);
        head(&mut application).await;
        write(&mut application, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
    });
}
