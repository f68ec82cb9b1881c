use engine::model::{AppProbe, Settings, Snapshot};
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, VARY};
use http_body_util::BodyExt;

use super::*;
use crate::io::{Clock, Network, bind, pipe};
use crate::observe::TelemetryOptions;
use crate::snapshots::testing::settings;
use crate::tls::testing::Authority;

fn admin() -> Admin {
    let (snapshots, credentials) = (Snapshots::default(), Arc::new(CredentialCell::default()));
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::System);
    let lifecycle = Lifecycle::new(snapshots.clone(), Arc::clone(&credentials), Arc::default());
    let node = "sidecar/shop/frontend".parse().unwrap();
    Admin {
        snapshots,
        telemetry,
        credentials,
        trust: Arc::default(),
        lifecycle,
        logs: LogFilter::default(),
        node,
        network: Network::Kernel { mark: None },
        probes: Arc::default(),
    }
}

async fn get(admin: &Admin, pages: Pages, method: &str, path: &str) -> (StatusCode, String) {
    let page = admin.page(pages, &Request::builder().method(method).uri(path).body(()).unwrap().into_parts().0).await;
    let status = page.status();
    (status, String::from_utf8(page.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// Aim: each port has its own pages, changes need POST, and what is wrong is said.
#[tokio::test(start_paused = true)]
async fn pages_are_where_they_belong() {
    let admin = admin();
    for (pages, method, path, status, word) in [
        (Pages::Metrics, "GET", "/metrics", 200, "# TYPE meshwright_config_epoch gauge"),
        (Pages::Metrics, "GET", "/config_dump", 404, "no such page"),
        (Pages::Health, "GET", "/healthz/live", 200, "ok"),
        (Pages::Health, "GET", "/healthz/ready", 503, "listeners"),
        (Pages::Health, "POST", "/healthz/ready", 404, ""),
        (Pages::Admin, "GET", "/", 200, "/config_dump"),
        (Pages::Admin, "GET", "/stats", 200, "meshwright_config_epoch"),
        (Pages::Admin, "GET", "/config_dump", 200, "sidecar/shop/frontend"),
        (Pages::Admin, "GET", "/drain", 405, "POST"),
        (Pages::Admin, "GET", "/explain", 400, "url="),
        (Pages::Admin, "GET", "/logging", 200, ""),
        (Pages::Admin, "POST", "/logging?level=info", 200, ""),
        (Pages::Admin, "POST", "/logging?level=proxy%3Dloudly", 400, "loudly"),
        (Pages::Admin, "PUT", "/logging", 405, "POST"),
    ] {
        let (found, body) = get(&admin, pages, method, path).await;
        assert_eq!(found, status, "{method} {path}: {body}");
        assert!(body.contains(word), "{method} {path}: {body}");
    }
}

/// Aim: a scraper gets the format that it accepts, under the content type of just that format; what is asked for by none is text.
#[tokio::test(start_paused = true)]
async fn metrics_come_in_the_format_that_is_accepted() {
    let admin = admin();
    for (accept, kind, counter, end) in [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", "# TYPE meshwright_config_rejected_total counter\n", false),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8", "meshwright_config_rejected_total 0\n", false),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# TYPE meshwright_config_rejected counter\n",
            true,
        ),
    ] {
        for (pages, path) in [(Pages::Metrics, "/metrics"), (Pages::Admin, "/stats")] {
            let head = Request::get(path).header(ACCEPT, accept).body(()).unwrap().into_parts().0;
            let page = admin.page(pages, &head).await;
            assert_eq!(page.headers()[CONTENT_TYPE], kind, "{accept}");
            assert_eq!(page.headers()[VARY], "accept");
            let text = String::from_utf8(page.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
            assert!(text.contains(counter) && text.ends_with("# EOF\n") == end, "{accept}: {text}");
        }
    }
}

/// Aim: ready comes with certificate and configuration and goes with the drain, not with the word that the end is near; `quitquitquit` ends.
#[tokio::test(start_paused = true)]
async fn readiness_and_drain() {
    let admin = admin();
    admin.lifecycle.bound();
    admin.credentials.publish(Authority::new("root").issue("spiffe://cluster.local/ns/shop/sa/a", "a"));
    admin.snapshots.publish(Arc::new(Snapshot { settings: Some(Arc::new(settings())), ..Snapshot::default() }));
    assert_eq!(get(&admin, Pages::Health, "GET", "/healthz/ready").await.0, 200);
    assert!(get(&admin, Pages::Admin, "GET", "/config_dump").await.1.contains("spiffe://cluster.local/ns/shop/sa/a"));
    assert_eq!(get(&admin, Pages::Admin, "GET", "/parting").await.0, 405);
    assert_eq!(get(&admin, Pages::Admin, "POST", "/parting").await.0, 200);
    assert_eq!(get(&admin, Pages::Health, "GET", "/healthz/ready").await.0, 200, "whoever comes is served");
    assert!(admin.lifecycle.parting.is_cancelled() && !admin.lifecycle.draining.is_cancelled());
    assert_eq!(get(&admin, Pages::Admin, "POST", "/drain").await.0, 200);
    assert_eq!(get(&admin, Pages::Health, "GET", "/healthz/ready").await, (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()));
    assert!(!admin.lifecycle.leaving.is_cancelled() && !admin.lifecycle.quit.is_cancelled());
    assert_eq!(get(&admin, Pages::Admin, "POST", "/quitquitquit").await.0, 200);
    assert!(admin.lifecycle.quit.is_cancelled());
}

/// Aim: the server itself answers over a socket and stops when told.
#[tokio::test]
async fn a_socket_is_served() {
    let listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let address = listening.local_address().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(admin().serve(listening, Pages::Health, stop.clone()));
    let mut socket = Network::Kernel { mark: None }.connect(address).await.unwrap();
    let request = b"GET /healthz/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut socket, request).await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut socket, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stop.cancel();
    serving.await.unwrap();
}

/// Aim: who asks without end and reads no answer, or says nothing, holds no place for longer than the bound; the scraper's and the kubelet's ports.
#[tokio::test(start_paused = true)]
async fn nobody_holds_an_open_port_for_ever() {
    let admin = Arc::new(admin());
    for pages in [Pages::Health, Pages::Metrics] {
        for asks in [20_000, 0] {
            let (mut near, far) = pipe();
            let asking = tokio::spawn(async move {
                for _ in 0..asks {
                    let request = b"GET /healthz/ready HTTP/1.1\r\nhost: a\r\n\r\n";
                    if tokio::io::AsyncWriteExt::write_all(&mut near, request).await.is_err() {
                        break;
                    }
                }
                near
            });
            let conversation = timeout(OPEN_LIFE * 2, Arc::clone(&admin).converse(far, pages));
            assert!(conversation.await.is_ok(), "{pages:?}, {asks} requests");
            asking.abort();
        }
    }
}

/// Aim: a web page that a browser shows can neither read nor move the proxy by way of loopback; metrics and health are for everybody.
#[tokio::test(start_paused = true)]
async fn other_sites_pages_are_kept_out() {
    let admin = admin();
    for (pages, method, path, status) in [
        (Pages::Admin, "POST", "/quitquitquit", 403),
        (Pages::Admin, "GET", "/config_dump", 403),
        (Pages::Metrics, "GET", "/metrics", 200),
        (Pages::Health, "GET", "/healthz/live", 200),
    ] {
        let head = Request::builder().method(method).uri(path).header("host", "rebound.example").body(()).unwrap().into_parts().0;
        assert_eq!(admin.page(pages, &head).await.status(), status, "{path}");
    }
    assert!(!admin.lifecycle.quit.is_cancelled());
}

/// An application that answers one connection with `answer`, or none; its port, and what it was asked.
async fn application(answer: Option<&'static str>) -> (u16, tokio::task::JoinHandle<String>) {
    let mut listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let port = listening.local_address().unwrap().port();
    let asked = tokio::spawn(async move {
        let mut socket = listening.accept().await.unwrap().socket;
        let (mut asked, mut buffer) = (Vec::new(), [0; 1024]);
        while !asked.ends_with(b"\r\n\r\n") {
            match tokio::io::AsyncReadExt::read(&mut socket, &mut buffer).await.unwrap() {
                0 => break,
                len => asked.extend_from_slice(&buffer[..len]),
            }
        }
        match answer {
            Some(answer) => tokio::io::AsyncWriteExt::write_all(&mut socket, answer.as_bytes()).await.unwrap(),
            None => std::future::pending().await,
        }
        String::from_utf8(asked).unwrap()
    });
    (port, asked)
}

/// An admin whose workload declares these probes at ::1, where nobody listens, and at 127.0.0.1.
fn probed(probes: Vec<AppProbe>) -> Admin {
    let admin = admin();
    let own_addresses = vec!["::1".parse().unwrap(), "127.0.0.1".parse().unwrap()];
    let settings = Settings { probes, own_addresses, ..settings() };
    admin.snapshots.publish(Arc::new(Snapshot { settings: Some(Arc::new(settings)), ..Snapshot::default() }));
    admin
}

/// Aim: a kubelet hears the status that the application gives to just its own question, and nobody hears anything else of it.
#[tokio::test]
async fn the_application_is_asked_for_a_kubelet() {
    let answer = "HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\nset-cookie: secret=1\r\ncontent-length: 6\r\n\r\nsecret";
    let (port, asked) = application(Some(answer)).await;
    let admin = probed(vec![AppProbe { port, path: Some("/healthz?full=1".to_owned()) }]);
    let request = Request::get(format!("/app-health/{port}/healthz?full=1"))
        .header("user-agent", "kube-probe/1.36")
        .header("authorization", "Bearer t")
        .header("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/a/sa/admin");
    let page = admin.page(Pages::Health, &request.body(()).unwrap().into_parts().0).await;
    assert_eq!((page.status().as_u16(), page.headers().len()), (302, 2));
    assert_eq!(page.into_body().collect().await.unwrap().to_bytes(), "");
    let wanted =
        format!("GET /healthz?full=1 HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nuser-agent: kube-probe/1.36\r\nconnection: close\r\n\r\n");
    assert_eq!(asked.await.unwrap(), wanted);
}

/// Aim: what the workload does not declare is not asked, whoever asks and however; nor is anything changed.
#[tokio::test]
async fn nothing_else_is_asked() {
    let (port, asked) = application(Some("HTTP/1.1 200 OK\r\n\r\n")).await;
    let admin = probed(vec![AppProbe { port, path: Some("/healthz".to_owned()) }]);
    for (method, path) in
        [("GET", "/admin"), ("GET", "/healthz?x"), ("GET", "/healthz/../admin"), ("POST", "/healthz"), ("PUT", "/healthz")]
    {
        assert_eq!(get(&admin, Pages::Health, method, &format!("/app-health/{port}{path}")).await.0, 404, "{method} {path}");
    }
    assert_eq!(get(&admin, Pages::Health, "GET", &format!("/app-health/tcp/{port}")).await.0, 404);
    assert_eq!(get(&admin, Pages::Metrics, "GET", &format!("/app-health/{port}/healthz")).await.0, 404);
    assert!(!asked.is_finished());
    assert_eq!(get(&self::admin(), Pages::Health, "GET", "/app-health/80/").await.0, 503);
}

/// Aim: an application that is not there, or takes too long, is not healthy, and the caller is told why within the bound.
#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_answer_is_not_healthy() {
    let (port, _asked) = application(None).await;
    let free = bind("127.0.0.1:0".parse().unwrap()).unwrap().local_addr().unwrap().port();
    let admin =
        probed(vec![AppProbe { port, path: Some("/".to_owned()) }, AppProbe { port, path: None }, AppProbe { port: free, path: None }]);
    let (status, why) = get(&admin, Pages::Health, "GET", &format!("/app-health/tcp/{free}")).await;
    assert!(status == 503 && why.contains("nothing answers at 127.0.0.1"), "{why}");
    assert_eq!(get(&admin, Pages::Health, "GET", &format!("/app-health/tcp/{port}")).await.0, 200);
    let (port, _asked) = application(None).await;
    let admin = probed(vec![AppProbe { port, path: Some("/".to_owned()) }]);
    let (status, why) = get(&admin, Pages::Health, "GET", &format!("/app-health/{port}")).await;
    assert!(status == 503 && why.contains("did not answer within 10s"), "{why}");
}

/// An admin that was told these probes by whoever started it, of an application at 127.0.0.1.
fn declared(probes: &str) -> Admin {
    Admin { probes: probes.parse::<crate::shell::probes::AppProbes>().unwrap().0.into(), ..probed(Vec::new()) }
}

/// Aim: what an injector declares is asked with its headers, and a host that the probe names is the application's to see.
#[tokio::test]
async fn declared_headers_reach_the_application() {
    let (port, asked) = application(Some("HTTP/1.1 204 No Content\r\n\r\n")).await;
    let admin = declared(&format!(
        r#"[{{"httpGet": {{"port": {port}, "path": "/h", "httpHeaders": [{{"name": "Host", "value": "shop"}}, {{"name": "X-Key", "value": "1"}}]}}}}]"#
    ));
    let path = format!("/app-health/{port}/h");
    assert_eq!(get(&admin, Pages::Health, "GET", &path).await.0, 404, "without its headers it is another question");
    let request = Request::get(&path).header("host", "shop").header("x-key", "1").header("x-other", "2").header("accept", "*/*");
    let page = admin.page(Pages::Health, &request.body(()).unwrap().into_parts().0).await;
    assert_eq!(page.status(), 204);
    assert_eq!(asked.await.unwrap(), "GET /h HTTP/1.1\r\naccept: */*\r\nhost: shop\r\nx-key: 1\r\nconnection: close\r\n\r\n");
}

/// Aim: a probe by HTTPS is asked by TLS, and like a kubelet nobody looks at the certificate.
#[tokio::test]
async fn probes_by_https_are_asked_by_tls() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["elsewhere.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(crate::tls::provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let mut listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let port = listening.local_address().unwrap().port();
    let serving = tokio::spawn(async move {
        let socket = listening.accept().await.unwrap().socket;
        let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(socket).await.unwrap();
        let mut first = [0; 14];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut first).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        first
    });
    let admin = declared(&format!(r#"[{{"httpGet": {{"port": {port}, "path": "/h", "scheme": "HTTPS"}}}}]"#));
    let (status, why) = get(&admin, Pages::Health, "GET", &format!("/app-health/{port}/h")).await;
    assert_eq!(status, 200, "{why}");
    assert_eq!(&serving.await.unwrap(), b"GET /h HTTP/1.");
}

/// Aim: a gRPC probe is the health protocol's question: 200 for a service that serves, 503 with the reason for one that does not.
#[tokio::test]
async fn grpc_probes_are_asked_by_the_health_protocol() {
    for (serving, wanted, word) in [(1_u8, 200, ""), (2, 503, "serving status is 2")] {
        let mut listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let port = listening.local_address().unwrap().port();
        let application = tokio::spawn(async move {
            let socket = listening.accept().await.unwrap().socket;
            let mut server = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, mut respond))) = server.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let head = http::Response::builder().header(CONTENT_TYPE, "application/grpc").body(()).unwrap();
                let mut body = respond.send_response(head, false).unwrap();
                body.send_data(bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, serving]), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                body.send_trailers(trailers).unwrap();
            }
        });
        let admin = declared(&format!(r#"[{{"grpc": {{"port": {port}, "service": "shop.Catalog"}}}}]"#));
        let (status, why) = get(&admin, Pages::Health, "GET", &format!("/app-health/grpc/{port}/shop.Catalog")).await;
        assert!(status == wanted && why.contains(word), "{status} {why}");
        application.abort();
    }
}
