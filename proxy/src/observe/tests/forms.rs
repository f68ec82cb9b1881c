//! The access log in the forms that people choose.

use engine::model::{LogFormat, LogTemplate};

use super::*;

/// The line of one request in a form, and what a collector would be told of its query.
fn line(format: LogFormat, request: Request<()>, more: impl FnOnce(&mut Account)) -> String {
    let world = world();
    let snapshot = snapshot(Settings { log_format: format, ..settings(true, None, 0) });
    let caller = world.caller(Direction::Outbound, &snapshot, false);
    let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut request.into_parts().0, &caller);
    account.routed(&rule(), &cluster());
    account.attempted(&endpoint());
    account.response(StatusCode::OK, &HeaderMap::new());
    account.add_response_bytes(2000);
    more(&mut account);
    drop(account);
    let mut lines = world.lines.lock();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

fn text(template: &str) -> LogFormat {
    LogFormat::Text(Arc::new(LogTemplate::parse(template).unwrap()))
}

fn request(target: &str, agent: &str) -> Request<()> {
    let request = Request::get(target).header("host", "catalog.shop").header("user-agent", agent).header("x-request-id", "r1");
    request.header("referer", "https://search.example/?q=a&token=x").body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_line_is_of_the_form_that_was_chosen() {
    // Aim: combined is what readers of Apache's and nginx's logs expect, a template says what it names, and JSON stays JSON; what is not there is `-`.
    let get = || request("/v1/item?id=1", "curl/8");
    let combined = line(LogFormat::Combined, get(), |account| account.came_for("203.0.113.9".parse().unwrap()));
    let wanted = r#"203.0.113.9 - - [15/Jan/2027:08:00:00 +0000] "GET /v1/item?id=1 HTTP/1.1" 200 2000 "https://search.example/?q=a&token=***" "curl/8""#;
    assert_eq!(combined, wanted);
    let template = "{time} {client_address} {consumer} {method} {host} {status} {reason} {route} {destination.workload} {destination.address} {{{request_id}}}";
    let wanted = "2027-01-15T08:00:00.000000Z 10.77.0.2 - GET catalog.shop 200 - shop/catalog catalog-v1 10.77.0.3:8080 {r1}";
    assert_eq!(line(text(template), get(), |_| {}), wanted);
    assert_eq!(line(text("{limit} {status}"), get(), |account| account.limited("shop/api/all")), "shop/api/all 200");
    let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, get(), |_| {})).unwrap();
    assert_eq!((&json["path"], &json["status"]), (&"/v1/item?id=1".into(), &200.into()));
    let mut all = String::new();
    for (name, _) in engine::model::LogField::ALL {
        all.push_str(&format!("{name}={{{name}}} "));
    }
    let all = line(text(&all), get(), |_| {});
    assert!(all.contains("protocol=HTTP/1.1 ") && all.contains("source.workload=frontend ") && all.contains("attempts=1 "), "{all}");
}

#[tokio::test(start_paused = true)]
async fn no_client_forges_a_line_or_has_a_secret_written() {
    // Aim: quotes of a client's stay within its field; keys and tokens of queries are in no form, of any spelling.
    let agent = "x\" 200 0 \"-\" \"";
    let combined = line(LogFormat::Combined, request("/a?api_key=1234&b=2", agent), |_| {});
    assert!(combined.ends_with(r#""x\x22 200 0 \x22-\x22 \x22""#) && combined.contains("/a?api_key=***&b=2 HTTP"), "{combined}");
    for format in [LogFormat::Json, LogFormat::Combined, text("{path} {referer}")] {
        let line = line(format, request("/a?Access%5fToken=secret-1&b=2", "curl/8"), |_| {});
        assert!(!line.contains("secret-1") && line.contains("Access%5fToken=***&b=2"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_a_line_too() {
    // Aim: what is no request has a line that readers of combined logs take.
    let world = world();
    let snapshot = snapshot(Settings { log_format: LogFormat::Combined, ..settings(true, None, 0) });
    let caller = world.caller(Direction::Outbound, &snapshot, false);
    let mut account = world.observer.begin_tcp(Direction::Outbound, &snapshot, &caller);
    account.add_response_bytes(7);
    drop(account);
    assert_eq!(world.lines.lock()[0], r#"10.77.0.2 - - [15/Jan/2027:08:00:00 +0000] "-" 000 7 "-" "-""#);
}

/// Aim: log lines have exactly the fields of kinds.md, in that order, for HTTP, a denial over gRPC, and opaque TCP.
#[tokio::test(start_paused = true)]
async fn log_lines_read_as_kinds_says() {
    let world = world();
    some_traffic(&world, &snapshot(settings(true, Some("http://127.0.0.1:4317"), 0))).await;
    let lines: String = world.lines.lock().iter().map(|line| format!("{line}\n")).collect();
    if std::env::var_os("MESHWRIGHT_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/observe/golden/access.jsonl"), &lines).unwrap();
    }
    assert_eq!(lines, include_str!("../golden/access.jsonl"));
}
