//! Which exchanges the access log tells of, and what of each.

use engine::model::{LogFields, LogFilter, LogFormat, Policy, RuleTelemetry};

use super::*;

/// The lines of requests that were answered so, with the trace of each, if it had one.
fn lines(settings: Settings, answers: &[(u16, Option<u128>)]) -> (Vec<serde_json::Value>, World) {
    let world = world();
    let snapshot = snapshot(settings);
    let caller = world.caller(Direction::Outbound, &snapshot, false);
    for (number, (code, trace)) in answers.iter().enumerate() {
        let trace = trace.map(|trace| format!("00-{trace:032x}-00f067aa0ba902b7-00"));
        let mut parts = parts(&[("x-request-id", &number.to_string())]);
        parts.headers.extend(trace.map(|trace| (http::HeaderName::from_static("traceparent"), trace.parse().unwrap())));
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &caller);
        account.routed(&rule(), &cluster());
        account.attempted(&endpoint());
        account.response(StatusCode::from_u16(*code).unwrap(), &HeaderMap::new());
    }
    let lines = world.lines.lock().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, world)
}

fn filter(text: &str) -> Option<Arc<LogFilter>> {
    Some(Arc::new(LogFilter::compile(text).unwrap()))
}

/// Aim: a line of chosen fields has these, in that order, with the values that a whole line has; what is not there is null.
#[tokio::test(start_paused = true)]
async fn a_line_has_the_fields_that_were_chosen() {
    let names = ["status", "source.workload", "path", "destination", "reason", "retries", "client_address", "time", "mtls"];
    let format = LogFormat::Fields(Arc::new(LogFields::parse(names).unwrap()));
    let world = world();
    let snapshot = snapshot(Settings { log_format: format, ..settings(true, None, 0) });
    let caller = world.caller(Direction::Outbound, &snapshot, false);
    let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &caller);
    account.routed(&rule(), &cluster());
    account.attempted(&endpoint());
    account.retried(endpoint().address, Reason::ConnectFailed);
    account.response(StatusCode::OK, &HeaderMap::new());
    drop(account);
    let wanted = concat!(
        r#"{"status":200,"source":{"workload":"frontend"},"path":"/v1/item?id=1","#,
        r#""destination":{"namespace":"shop","service":"catalog","workload":"catalog-v1","identity":"spiffe://cluster.local/ns/shop/sa/catalog","#,
        r#""address":"10.77.0.3:8080"},"reason":null,"retries":[{"address":"10.77.0.3:8080","reason":"connect_failed"}],"#,
        r#""client_address":"10.77.0.2","time":"2027-01-15T08:00:00.000000Z","mtls":{"version":null,"cipher":null,"group":null}}"#,
    );
    assert_eq!(world.lines.lock()[0], wanted);
    // All of them are JSON, whatever they hold.
    let all = LogFields::parse(engine::model::LogField::ALL.iter().map(|(name, _)| *name)).unwrap();
    let (lines, _) = lines(Settings { log_format: LogFormat::Fields(Arc::new(all)), ..settings(true, None, 0) }, &[(200, Some(7))]);
    assert_eq!((&lines[0]["direction"], &lines[0]["source"]["namespace"]), (&"outbound".into(), &"shop".into()));
}

/// Aim: only what the filter holds for is written; a filter that comes to nothing costs no line and is counted.
#[tokio::test(start_paused = true)]
async fn only_what_the_filter_holds_for_is_written() {
    let answers = [(200, None), (404, None), (503, None)];
    let told = |text: &str| {
        let (lines, world) = lines(Settings { log_filter: filter(text), ..settings(true, None, 0) }, &answers);
        let codes: Vec<u64> = lines.iter().map(|line| line["status"].as_u64().unwrap()).collect();
        (codes, world.telemetry.render())
    };
    for (text, wanted) in [
        ("response.code >= 400", &[404, 503][..]),
        ("response.code / 100 == 2", &[200]),
        ("request.path == '/v1/item' && destination.workload == 'catalog-v1' && mtls", &[200, 404, 503]),
        ("source.workload == 'frontend' && route == 'shop/catalog' && request.user_agent.startsWith('curl/')", &[200, 404, 503]),
        ("destination.address == '10.77.0.3' && destination.port == 8080 && request.host == 'catalog.shop'", &[200, 404, 503]),
        ("reason != ''", &[]),
        ("direction == 'inbound' || request.id == '1'", &[404]),
    ] {
        let (codes, text_of_all) = told(text);
        assert_eq!(codes, wanted, "{text}");
        assert!(text_of_all.contains("meshwright_access_log_filter_failed_total 0\n"), "{text}");
    }
    let (codes, text) = told("response.code / (response.code - 404) >= 0");
    assert_eq!(codes, [200, 404, 503]);
    assert!(text.contains("meshwright_access_log_filter_failed_total 1\n"), "{text}");
}

/// Aim: of what went well so large a share is written, by the trace, so that two hops write of the same; what went wrong always is.
#[tokio::test(start_paused = true)]
async fn of_what_went_well_a_share_is_written() {
    let draw = Draw::seeded(5);
    let answers: Vec<_> =
        (0..2000).map(|n| (if n % 100 == 0 { 500 } else { 200 }, Some(u128::from(draw.next()) << 64 | u128::from(draw.next())))).collect();
    let kept = |threshold: u64, answers: &[(u16, Option<u128>)]| -> Vec<String> {
        let (lines, _) = lines(Settings { log_success_threshold: threshold, ..settings(true, None, 0) }, answers);
        lines.iter().map(|line| line["request_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kept(0, &answers).len(), 20);
    assert_eq!(kept(1 << 32, &answers).len(), 2000);
    let (one, other) = (kept(1 << 30, &answers), kept(1 << 30, &answers));
    assert_eq!(one, other);
    assert!((450..580).contains(&one.len()), "{}", one.len());
    // Without a trace a draw decides.
    let alone: Vec<_> = answers.iter().map(|(code, _)| (*code, None)).collect();
    let some = kept(1 << 30, &alone).len();
    assert!((450..580).contains(&some), "{some}");
}

/// Aim: a rule's own word on its lines goes before the proxy's, in both directions: whether, which and how many; what no rule holds for is the proxy's.
#[tokio::test(start_paused = true)]
async fn a_rule_says_which_of_its_lines_are_written() {
    let told = |own: Settings, says: RuleTelemetry| {
        let world = world();
        let snapshot = snapshot(own);
        let caller = world.caller(Direction::Outbound, &snapshot, false);
        let policy = Policy { telemetry: Some(says.clone()), ..Policy::default() };
        let action = Action::Forward(Arc::new(Forward::new(Arc::new(policy), vec![], vec![])));
        let rule = Arc::new(Rule { action, ..Arc::into_inner(rule()).unwrap() });
        for code in [200, 404] {
            let mut parts = parts(&[]);
            parts.headers.insert("referer", "https://a.example/".parse().unwrap());
            let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &caller);
            account.matched(&rule);
            account.governed(&says, &mut parts, (&caller, Some("203.0.113.9".parse().unwrap())));
            // Who is logged has an id, and hands it on.
            assert_eq!(account.request_id().is_some(), says.log_enabled.unwrap_or(snapshot.settings.as_ref().unwrap().access_log));
            assert!(account.request_id().is_none() || parts.headers.contains_key("x-request-id"));
            account.response(StatusCode::from_u16(code).unwrap(), &HeaderMap::new());
        }
        // One without a rule.
        world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &caller).response(StatusCode::OK, &HeaderMap::new());
        world.lines.lock().clone()
    };
    let template = LogFormat::Text(Arc::new(engine::model::LogTemplate::parse("{status} {route} {client_address} {referer}").unwrap()));
    let own = |access_log: bool| Settings { access_log, log_format: template.clone(), ..settings(true, None, 0) };
    let (ok, absent, none) =
        ("200 shop/catalog 203.0.113.9 https://a.example/", "404 shop/catalog 203.0.113.9 https://a.example/", "200 - 10.77.0.2 -");
    let says = RuleTelemetry::default;
    assert_eq!(told(own(true), says()), [ok, absent, none]);
    assert_eq!(told(own(false), RuleTelemetry { log_enabled: Some(true), ..says() }), [ok, absent]);
    assert_eq!(told(own(true), RuleTelemetry { log_enabled: Some(false), ..says() }), [none]);
    assert_eq!(told(own(true), RuleTelemetry { log_filter: filter("response.code == 404"), ..says() }), [absent, none]);
    assert_eq!(told(own(true), RuleTelemetry { log_success_threshold: Some(0), ..says() }), [absent, none]);
    let none_of_mine = Settings { log_success_threshold: 0, log_filter: filter("false"), ..own(true) };
    let all = RuleTelemetry { log_success_threshold: Some(1 << 32), log_filter: filter("true"), ..says() };
    assert_eq!(told(none_of_mine, all), [ok, absent]);
}
