//! What spans there are, whose children they are, and what they say.

use engine::authorize::Ruling;
use engine::model::{Keep, PathMatch, RuleTelemetry};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;

use super::*;

const OTLP: Option<&str> = Some("http://127.0.0.1:4317");
const ON: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OFF: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const ERRORS: Keep = Keep { errors: true, slower: Duration::ZERO };

fn keeping(percent: u64, keep: Keep) -> Arc<Snapshot> {
    snapshot(Settings { keep, ..settings(false, OTLP, percent) })
}

fn says(percent: Option<u64>, keep_errors: Option<bool>) -> RuleTelemetry {
    RuleTelemetry { sample_threshold: percent.map(|percent| (percent << 32) / 100), keep_errors, ..RuleTelemetry::default() }
}

impl World {
    fn left(&mut self) -> Vec<Span> {
        self.exporter.as_mut().unwrap().left()
    }

    fn dropped(&self) -> u64 {
        let text = self.telemetry.render();
        let lines = text.lines().filter(|line| line.starts_with("meshwright_spans_dropped_total"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

/// What a span says under a name.
fn said(span: &Span, name: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?.value.as_ref()?;
    Some(match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// Its events with their times and what they say.
fn events(span: &Span) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let told = span.events.iter().map(|event| {
        let said: Vec<String> =
            event.attributes.iter().map(|attribute| text(attribute.value.as_ref().unwrap().value.as_ref().unwrap())).collect();
        format!("{}ms {} {}", (event.time_unix_nano - span.start_time_unix_nano) / 1_000_000, event.name, said.join(" "))
    });
    told.collect()
}

fn flag(parts: &Parts) -> Option<bool> {
    Some(parts.headers.get("traceparent")?.to_str().unwrap().ends_with("-01"))
}

/// Aim: a rule's own share decides where nobody has, in both directions, and what travels on says so in every form; a caller's decision holds.
#[tokio::test(start_paused = true)]
async fn a_rule_decides_where_nobody_has() {
    let b3 = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
    for (percent, of_rule, incoming, sampled) in [
        (0, 100, None, true),
        (100, 0, None, false),
        (0, 0, None, false),
        (100, 100, None, true),
        (0, 100, Some(("traceparent", OFF)), false),
        (100, 0, Some(("traceparent", ON)), true),
        (0, 100, Some(("b3", b3)), true),
        (100, 0, Some(("b3", b3)), false),
        (100, 0, Some(("b3", "1")), true),
        (0, 100, Some(("b3", "0")), false),
    ] {
        let mut world = world();
        let snapshot = keeping(percent, Keep::default());
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let mut parts = parts(&incoming.into_iter().collect::<Vec<_>>());
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app);
        account.governed(&says(Some(of_rule), None), &mut parts, (&app, None));
        account.response(StatusCode::OK, &HeaderMap::new());
        drop(account);
        let case = format!("{percent} {of_rule} {incoming:?}");
        let spans = world.left();
        assert_eq!(spans.len(), usize::from(sampled), "{case}");
        assert_eq!(flag(&parts), Some(sampled), "{case}");
        if let Some(single) = parts.headers.get("b3").map(|value| value.to_str().unwrap()) {
            let fields: Vec<&str> = single.split('-').collect();
            assert_eq!(fields[2], if sampled { "1" } else { "0" }, "{case}");
            if incoming == Some(("b3", b3)) {
                assert_eq!((fields[0], fields[3]), (&b3[..32], &b3[33..]), "{case}");
            }
            if let [span] = &spans[..] {
                assert_eq!(fields[1], hex(&span.span_id), "{case}");
            }
        }
        if let [span] = &spans[..] {
            assert_eq!((said(span, "http.response.status_code").as_deref(), &*span.name), (Some("200"), "GET"), "{case}");
        }
    }
}

/// Aim: of what was not sampled, servers' errors, the mesh's own and slow requests leave a span that says why, under ids that travelled on:
/// the caller's kept span is the parent of the callee's. Nothing else does.
#[tokio::test(start_paused = true)]
async fn errors_and_slow_requests_are_kept() {
    let keep = Keep { errors: true, slower: Duration::from_millis(50) };
    for (incoming, status, millis, kept) in [
        (None, 503, 1, Some("error")),
        (None, 200, 51, Some("slow")),
        (None, 200, 50, None),
        (None, 404, 1, None),
        (Some(OFF), 500, 1, Some("error")),
        (Some(OFF), 200, 1, None),
    ] {
        let mut world = world();
        let snapshot = keeping(0, keep);
        let (app, peer) = (world.caller(Direction::Outbound, &snapshot, false), world.caller(Direction::Inbound, &snapshot, true));
        let headers: Vec<_> = incoming.iter().map(|value| ("traceparent", *value)).collect();
        let mut parts = parts(&headers);
        let mut client = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app);
        let mut server = world.observer.begin_http(Direction::Inbound, &snapshot, &mut parts, &peer);
        tokio::time::advance(Duration::from_millis(millis)).await;
        for account in [&mut server, &mut client] {
            account.response(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
        }
        drop(server);
        drop(client);
        assert_eq!(flag(&parts), Some(false), "no later hop samples it");
        let spans = world.left();
        assert_eq!(spans.len(), if kept.is_some() { 2 } else { 0 }, "{incoming:?} {status} {millis}");
        let [server, client] = &spans[..] else { continue };
        assert_eq!((said(server, "meshwright.kept").as_deref(), said(client, "meshwright.kept").as_deref()), (kept, kept));
        assert_eq!((&server.parent_span_id, server.flags & 1, client.flags & 1), (&client.span_id, 0, 0));
        assert_eq!((hex(&client.parent_span_id) == "00f067aa0ba902b7", &server.trace_id), (incoming.is_some(), &client.trace_id));
    }
}

/// Aim: a rule alone may ask for it, or forbid it; its request's head is known all the same.
#[tokio::test(start_paused = true)]
async fn a_rule_keeps_by_itself() {
    for (proxy, rule, incoming, kept) in [
        (Keep::default(), Some(true), None, true),
        (Keep::default(), Some(true), Some(OFF), true),
        (ERRORS, Some(false), None, false),
        (ERRORS, None, None, true),
    ] {
        let mut world = world();
        let snapshot = keeping(0, proxy);
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let headers: Vec<_> = incoming.iter().map(|value| ("traceparent", *value)).collect();
        let mut parts = parts(&headers);
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app);
        account.governed(&says(None, rule), &mut parts, (&app, Some("203.0.113.9".parse().unwrap())));
        account.attempted(&endpoint());
        account.failed(&Failure::new(Reason::UpstreamReset, "cut"));
        account.replied(&Reason::UpstreamReset.into());
        drop(account);
        let spans = world.left();
        assert_eq!(spans.len(), usize::from(kept), "{proxy:?} {rule:?}");
        assert_eq!(flag(&parts), Some(false));
        let [span] = &spans[..] else { continue };
        assert_eq!(said(span, "url.path").as_deref(), Some("/v1/item"));
        assert_eq!(said(span, "client.address").as_deref(), Some("203.0.113.9"));
        assert_eq!(said(span, "error.type").as_deref(), Some("upstream_reset"));
        assert_eq!(&parts.headers["traceparent"].to_str().unwrap()[36..52], hex(&span.span_id));
        assert_eq!(span.events.len(), 1);
    }
}

/// Aim: an outage does not send more than its bound of kept spans in a second; the rest are counted as dropped, and the next second has its own.
#[tokio::test(start_paused = true)]
async fn kept_spans_are_bounded() {
    let mut world = world();
    let snapshot = keeping(0, ERRORS);
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let fails = |times: usize| {
        for _ in 0..times {
            let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
            account.response(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new());
        }
    };
    fails(300);
    tokio::time::advance(Duration::from_secs(1)).await;
    fails(10);
    assert_eq!((world.left().len(), world.dropped()), (256 + 10, 44));
}

/// Aim: what an application asks for without a word of a trace is a part of the only request that it is answering, and says that this is a
/// guess; where it answers several, or passes the trace on, or the guess is switched off, there is none.
#[tokio::test(start_paused = true)]
async fn an_only_request_is_the_guessed_parent() {
    for (others, forwards, infers, sampled, link) in [
        (0, false, true, true, Some("inferred")),
        (0, false, true, false, None),
        (1, false, true, true, None),
        (0, true, true, true, None),
        (0, false, false, true, None),
    ] {
        let mut world = world();
        let snapshot = snapshot(Settings { infer_links: infers, ..settings(false, OTLP, 100) });
        let (app, peer) = (world.caller(Direction::Outbound, &snapshot, false), world.caller(Direction::Inbound, &snapshot, true));
        let mut inbound = parts(&[("traceparent", if sampled { ON } else { OFF })]);
        let server = world.observer.begin_http(Direction::Inbound, &snapshot, &mut inbound, &peer);
        let more: Vec<_> = (0..others).map(|_| world.observer.begin_http(Direction::Inbound, &snapshot, &mut parts(&[]), &peer)).collect();
        let mut outbound = parts(&[]);
        if forwards {
            outbound.headers.insert("traceparent", inbound.headers["traceparent"].clone());
        }
        let client = world.observer.begin_http(Direction::Outbound, &snapshot, &mut outbound, &app);
        drop(client);
        let spans = world.left();
        let case = format!("{others} {forwards} {infers} {sampled}");
        let travels = outbound.headers["traceparent"].to_str().unwrap().to_owned();
        let same = travels[3..35] == ON[3..35];
        assert_eq!(same, link.is_some() || forwards || !sampled, "{case}");
        assert_eq!(flag(&outbound), Some(sampled), "{case}: the decision of what is answered holds");
        assert_eq!(spans.len(), usize::from(sampled), "{case}");
        if let [span] = &spans[..] {
            assert_eq!(said(span, "meshwright.link").as_deref(), link, "{case}");
            let candidates = (others > 0).then(|| (others + 1).to_string());
            assert_eq!(said(span, "meshwright.link_candidates"), candidates, "{case}");
            let parent = if same { &inbound.headers["traceparent"].to_str().unwrap()[36..52] } else { "" };
            assert_eq!(hex(&span.parent_span_id), parent, "{case}");
            assert_eq!(&travels[36..52], hex(&span.span_id), "{case}");
        }
        drop((server, more));
        // Nothing is answered any more: what comes now is nobody's.
        let mut alone = parts(&[]);
        drop(world.observer.begin_http(Direction::Outbound, &snapshot, &mut alone, &app));
        let last = world.left().pop().unwrap();
        assert_eq!((said(&last, "meshwright.link"), last.parent_span_id.len()), (None, 0), "{case}");
    }
}

/// Aim: a call of gRPC is named by its method and says what conventions for RPC say and nothing of HTTP's; a path that is none of gRPC's is
/// not a name.
#[tokio::test(start_paused = true)]
async fn calls_are_named_by_their_method() {
    let long = format!("/shop.{}/Pay", "x".repeat(300));
    for (path, name, original) in [
        ("/shop.Checkout/Pay", "shop.Checkout/Pay", None),
        ("/shop.Checkout/Pay/more", "grpc", Some("shop.Checkout/Pay/more")),
        (&*long, "grpc", Some(&long[1..257])),
    ] {
        let call = Request::post(path).version(Version::HTTP_2).header("content-type", "application/grpc");
        let call = call.header("host", "checkout.shop:9090").body(()).unwrap();
        let mut world = world();
        let snapshot = keeping(100, Keep::default());
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut call.into_parts().0, &app);
        account.routed(&rule(), &cluster());
        account.response(StatusCode::OK, &HeaderMap::new());
        account.grpc_status(5);
        drop(account);
        let [span] = &world.left()[..] else { panic!("{path}") };
        assert_eq!((&*span.name, span.status.as_ref().map(|status| status.code())), (name, Some(SpanStatus::Error)));
        let wanted = [
            ("rpc.system.name", Some("grpc")),
            ("rpc.method", Some(if original.is_some() { "_OTHER" } else { name })),
            ("rpc.method_original", original),
            ("rpc.response.status_code", Some("NOT_FOUND")),
            ("error.type", Some("NOT_FOUND")),
            ("server.address", Some("checkout.shop")),
            ("server.port", Some("9090")),
            ("http.request.method", None),
            ("http.response.status_code", None),
            ("url.path", None),
        ];
        for (attribute, value) in wanted {
            assert_eq!(said(span, attribute).as_deref(), value, "{path} {attribute}");
        }
    }
}

/// Aim: requests are named by method and by what the rule says of paths, never by the path; unknown methods are no names, and nothing empty
/// is said.
#[tokio::test(start_paused = true)]
async fn requests_are_named_by_their_rule() {
    let regex = PathMatch::Regex(r"\A(?:/v[0-9]+)\z".parse().unwrap());
    for (method, path, name, template) in [
        ("GET", PathMatch::Any, "GET catalog.shop", None),
        ("GET", PathMatch::Prefix(String::new()), "GET catalog.shop", None),
        ("GET", PathMatch::Prefix("/v1".into()), "GET /v1/*", Some("/v1/*")),
        ("PATCH", PathMatch::Exact("/v1/item".into()), "PATCH /v1/item", Some("/v1/item")),
        ("GET", regex, "GET /v[0-9]+", Some("/v[0-9]+")),
        ("BREW", PathMatch::Any, "HTTP catalog.shop", None),
    ] {
        let mut world = world();
        let snapshot = keeping(100, Keep::default());
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let rule = Arc::new(Rule { matches: Arc::new(Match { path, ..Match::default() }), ..Arc::into_inner(rule()).unwrap() });
        let mut head = Request::builder().method(method).uri("/v1/item?id=7").body(()).unwrap().into_parts().0;
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut head, &app);
        account.routed(&rule, &cluster());
        account.attempted(&endpoint());
        account.retried(endpoint().address, Reason::ConnectFailed);
        account.attempted(&endpoint());
        account.response(StatusCode::BAD_GATEWAY, &HeaderMap::new());
        drop(account);
        let [span] = &world.left()[..] else { panic!("{method}") };
        let known = method != "BREW";
        assert_eq!(span.name, name);
        let wanted = [
            ("http.request.method", Some(if known { method } else { "_OTHER" })),
            ("http.request.method_original", (!known).then_some(method)),
            ("url.template", template),
            ("url.query", Some("id=7")),
            ("http.request.resend_count", Some("1")),
            ("error.type", Some("502")),
        ];
        for (attribute, value) in wanted {
            assert_eq!(said(span, attribute).as_deref(), value, "{name} {attribute}");
        }
        assert!(span.attributes.iter().all(|attribute| said(span, &attribute.key).is_some_and(|value| !value.is_empty())));
    }
}

/// Aim: what happens on the way is told in order with its time: attempts by number and address, why they failed, hedges, faults each by
/// itself, and who denied it; beyond the bound it is counted.
#[tokio::test(start_paused = true)]
async fn what_happens_is_told_as_events() {
    let mut world = world();
    let snapshot = keeping(100, Keep::default());
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
    let pass = || tokio::time::advance(Duration::from_millis(1));
    account.faulted(format_args!("delay 1ms"), "shop/chaos");
    pass().await;
    account.faulted(format_args!("abort 503"), "shop/more");
    account.attempted(&endpoint());
    pass().await;
    account.retried(endpoint().address, Reason::ConnectTimeout);
    account.attempted(&endpoint());
    account.hedged(endpoint().address);
    pass().await;
    account.overtaken(&endpoint(), std::time::Instant::now());
    drop(account);
    let told = events(&world.left()[0]);
    let wanted = [
        "0ms meshwright.fault delay 1ms by shop/chaos",
        "1ms meshwright.fault abort 503 by shop/more",
        "1ms meshwright.attempt 1 10.77.0.3 8080",
        "2ms meshwright.retry 10.77.0.3 8080 connect_timeout",
        "2ms meshwright.attempt 2 10.77.0.3 8080",
        "2ms meshwright.hedge 10.77.0.3 8080",
        "3ms meshwright.overtaken 10.77.0.3 8080",
    ];
    assert_eq!(told, wanted);
    let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
    account.denied(Reason::Denied, Some(&Arc::new(Ruling { policy: "shop/no".into(), rule: "0".into(), label: "shop/no/0".into() })));
    account.limited("shop/many/each");
    drop(account);
    assert_eq!(events(&world.left()[0]), ["0ms meshwright.denied denied shop/no/0", "0ms meshwright.limited shop/many/each"]);
    let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts(&[]), &app);
    (0..60).for_each(|_| account.attempted(&endpoint()));
    drop(account);
    let [span] = &world.left()[..] else { panic!() };
    assert_eq!((span.events.len(), span.dropped_events_count), (48, 12));
}

/// Aim: baggage and what others say in `tracestate` pass as they came, whatever is decided.
#[tokio::test(start_paused = true)]
async fn baggage_passes_untouched() {
    for (percent, incoming) in [(0, ON), (100, OFF), (100, ON)] {
        let world = world();
        let snapshot = keeping(percent, ERRORS);
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let given = [("traceparent", incoming), ("baggage", "user=7;p=1, tenant=a%20b"), ("baggage", "x=y"), ("tracestate", "v=1,w=2")];
        let mut parts = parts(&given);
        let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app);
        account.governed(&says(Some(50), Some(true)), &mut parts, (&app, None));
        let all: Vec<_> = parts.headers.get_all("baggage").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(
            (all, parts.headers["tracestate"].to_str().unwrap()),
            (vec![given[1].1, given[2].1], given[3].1),
            "{percent} {incoming}"
        );
    }
}
