//! The mesh's own answers to pages of other origins.

use proto::mesh::{Abort, Cors, Delay, Fault, Filters, RateLimit, RoutePolicy, abort};

use super::resources::{Told, told};
use super::*;

const ENDPOINT: &str = "10.77.9.1:80";

fn secs(secs: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: secs, nanos: 0 })
}

/// Lets one origin in, with this besides.
fn shared(policy: RoutePolicy) -> RoutePolicy {
    let cors =
        Cors { allow_origins: vec!["https://a.example".into()], expose_headers: vec!["x-meshwright-reason".into()], ..Cors::default() };
    RoutePolicy { filters: Some(Filters { cors: Some(cors), ..Filters::default() }), ..policy }
}

fn faulty(delay: Option<Delay>, abort: Option<Abort>) -> RoutePolicy {
    shared(RoutePolicy { faults: vec![Fault { per_million: 1_000_000, delay, abort, ..Fault::default() }], ..RoutePolicy::default() })
}

#[test]
fn a_page_of_another_origin_sees_why_it_was_not_served() {
    // Aim: whatever the mesh answers by a rule with CORS says who may see it, as an upstream's answer does: limits, faults and failures.
    run(|| async {
        let limit = RateLimit { name: "l".into(), requests: 1, per: secs(3600), ..RateLimit::default() };
        let limited = shared(RoutePolicy { rate_limits: vec![limit], ..RoutePolicy::default() });
        let delay = Delay { min: secs(5), max: secs(5) };
        let aborted = faulty(None, Some(Abort { kind: Some(abort::Kind::HttpStatus(503)) }));
        for (policy, endpoints, status, reason) in [
            (limited, vec![], "429", "rate_limited"),
            (aborted, vec![ENDPOINT], "503", "fault"),
            (faulty(Some(delay), None), vec![ENDPOINT], "504", "request_timeout"),
            (shared(RoutePolicy::default()), vec![ENDPOINT], "504", "request_timeout"),
            (shared(RoutePolicy::default()), vec![], "503", "no_endpoints"),
        ] {
            let timeout = Some(Duration::from_secs(1));
            let (world, _) = told(&Told { policy, timeout, ..Told::to(endpoints) });
            let mut client = world.dial(SERVICE);
            if status == "429" {
                write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                assert!(head(&mut client).await.starts_with("HTTP/1.1 503 "));
                exactly(&mut client, "no_endpoints".len()).await;
            }
            for (origin, sees) in [("https://a.example", true), ("https://b.example", false)] {
                write(&mut client, &format!("GET / HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\n\r\n")).await;
                let answer = head(&mut client).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("vary: Origin\r\n"), "{answer}");
                assert_eq!(answer.contains(&format!("access-control-allow-origin: {origin}\r\n")), sees, "{answer}");
                assert_eq!(answer.contains("access-control-expose-headers: x-meshwright-reason\r\n"), sees, "{answer}");
                assert_eq!(exactly(&mut client, reason.len()).await, reason);
            }
        }
    });
}

#[test]
fn a_preflight_is_answered_as_ever() {
    // Aim: its answer is the whole of what is allowed, and no later step alters it.
    run(|| async {
        let (world, _) = told(&Told { policy: shared(RoutePolicy::default()), ..Told::to(vec![ENDPOINT]) });
        let mut client = world.dial(SERVICE);
        let ask = "OPTIONS / HTTP/1.1\r\nhost: a\r\norigin: https://a.example\r\naccess-control-request-method: PUT\r\n\r\n";
        write(&mut client, ask).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 204 ") && answer.contains("access-control-allow-origin: https://a.example\r\n"), "{answer}");
        assert!(answer.contains("access-control-max-age: ") && answer.matches("expose").count() == 1, "{answer}");
    });
}
