use engine::model::Snapshot;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, VARY};
use http_body_util::BodyExt;

use super::*;
use crate::io::{Clock, Network, bind};
use crate::observe::TelemetryOptions;
use crate::snapshots::testing::settings;
use crate::tls::testing::Authority;

fn admin() -> Admin {
    let (snapshots, credentials) = (Snapshots::default(), Arc::new(CredentialCell::default()));
    let (telemetry, _) = crate::observe::start(TelemetryOptions::default(), Clock::System);
    let lifecycle = Lifecycle::new(snapshots.clone(), Arc::clone(&credentials), Arc::default());
    let node = "sidecar/shop/frontend".parse().unwrap();
    Admin { snapshots, telemetry, credentials, trust: Arc::default(), lifecycle, logs: LogFilter::default(), node }
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

/// Aim: ready comes with certificate and configuration and goes with the drain; `quitquitquit` ends.
#[tokio::test(start_paused = true)]
async fn readiness_and_drain() {
    let admin = admin();
    admin.lifecycle.bound();
    admin.credentials.publish(Authority::new("root").issue("spiffe://cluster.local/ns/shop/sa/a", "a"));
    admin.snapshots.publish(Arc::new(Snapshot { settings: Some(Arc::new(settings())), ..Snapshot::default() }));
    assert_eq!(get(&admin, Pages::Health, "GET", "/healthz/ready").await.0, 200);
    assert!(get(&admin, Pages::Admin, "GET", "/config_dump").await.1.contains("spiffe://cluster.local/ns/shop/sa/a"));
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
