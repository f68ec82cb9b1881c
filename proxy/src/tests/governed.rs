//! Requests under a policy: retried, hedged, mirrored, bounded, delayed and cut, as their route says.

use proto::mesh::{
    self, Abort, ActiveCheck, BackendPolicy, ClusterPolicy, Delay, Fault, Filters, Hedge, LimitKey, Limits, Mirror, Priority, RateLimit,
    Retry, RetryBudget, RoutePolicy, RouteTelemetry, Session, Tracing, abort, limit_key,
};

use super::resources::{Told, told};
use super::*;
use crate::ground::limits::MIRRORS_MAX;

pub(super) const ONE: &str = "10.77.9.1:80";
pub(super) const TWO: &str = "10.77.9.2:80";
pub(super) const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
pub(super) const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

pub(super) fn millis(millis: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: millis / 1000, nanos: (millis % 1000 * 1_000_000) as i32 })
}

pub(super) fn retry(attempts: u32) -> Option<Retry> {
    Some(Retry {
        attempts,
        connect_failure: true,
        reset: true,
        refused_stream: true,
        attempt_timeout: true,
        statuses: vec![503],
        grpc_statuses: vec![14],
        backoff_base: millis(25),
        backoff_max: millis(250),
        body_buffer_bytes: 1000,
    })
}

/// Plays the next connection that is dialled: reads a head and a body of `body` bytes, and answers.
pub(super) async fn play(world: &mut World, body: usize, answer: &str) -> (SocketAddr, String, Socket) {
    let (address, mut application) = world.applications.recv().await.expect("a connection");
    let mut text = head(&mut application).await;
    text.push_str(&exactly(&mut application, body).await);
    write(&mut application, answer).await;
    (address, text, application)
}

pub(super) async fn answered(client: &mut Socket, status: &str) -> String {
    let answer = head(client).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    answer
}

#[test]
fn an_answer_that_is_asked_again_for_never_reaches_the_caller() {
    // Aim: another endpoint each time, after a wait, with the same body; then the last answer as it is.
    run(|| async {
        let policy = RoutePolicy { retry: retry(2), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let mut client = world.dial(SERVICE);
        write(&mut client, "POST /pay HTTP/1.1\r\nhost: a\r\nX-Kept: 1\r\ncontent-length: 5\r\n\r\nhello").await;
        let began = tokio::time::Instant::now();
        let (first, text, _one) = play(&mut world, 5, UNAVAILABLE).await;
        let (second, again, _two) = play(&mut world, 5, OK).await;
        assert_ne!(first, second);
        assert!(text.ends_with("\r\n\r\nhello") && text == again && text.contains("X-Kept: 1\r\n"), "{text} {again}");
        assert!(began.elapsed() >= Duration::from_millis(12));
        answered(&mut client, "200").await;
        assert_eq!(exactly(&mut client, 2).await, "ok");
    });
}

#[test]
fn when_all_fails_the_last_answer_is_told_as_it_is() {
    // Aim: exhausted attempts give the last answer unchanged, a lost one 503, a slow one 504.
    run(|| async {
        let policy = RoutePolicy { retry: retry(1), attempt_timeout: millis(500), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let _one = play(&mut world, 0, UNAVAILABLE).await;
        let _two = play(&mut world, 0, "HTTP/1.1 503 Really\r\nx-own: 1\r\ncontent-length: 0\r\n\r\n").await;
        let answer = answered(&mut client, "503").await;
        assert!(answer.contains("x-own: 1\r\n") && !answer.contains("x-meshwright-reason"), "{answer}");
        drop((_one, _two));

        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        drop(play(&mut world, 0, "").await);
        drop(play(&mut world, 0, "").await);
        assert!(answered(&mut client, "503").await.contains("upstream_reset"));

        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let _one = play(&mut world, 0, "").await;
        let _two = play(&mut world, 0, "").await;
        assert!(answered(&mut client, "504").await.contains("attempt_timeout"));
    });
}

#[test]
fn a_body_that_is_too_large_is_sent_once() {
    // Aim: beyond the buffer nothing is kept, and the request is not sent again.
    run(|| async {
        let policy = RoutePolicy { retry: retry(2), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let mut client = world.dial(SERVICE);
        let body = "x".repeat(1001);
        write(&mut client, &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n{body}")).await;
        let _one = play(&mut world, 1001, UNAVAILABLE).await;
        answered(&mut client, "503").await;
        assert!(world.applications.try_recv().is_err());
        assert_eq!(world.client.replays.used(), 0);
    });
}

#[test]
fn the_budget_bounds_what_all_requests_add() {
    // Aim: with every answer bad, retries are no more than the budget's share of requests and its floor.
    run(|| async {
        let policy = RoutePolicy { retry: retry(3), ..RoutePolicy::default() };
        let cluster = ClusterPolicy { budget: Some(RetryBudget { percent: 20.0, min_per_second: 0 }), ..ClusterPolicy::default() };
        let (mut world, _) = told(&Told { policy, cluster, ..Told::to(vec![ONE, TWO]) });
        let (counted, mut attempts) = (mpsc::unbounded_channel::<()>(), 0);
        let (count, mut counting) = counted;
        let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
        tokio::task::spawn_local(async move {
            while let Some((_, mut application)) = applications.recv().await {
                let count = count.clone();
                tokio::task::spawn_local(async move {
                    let mut byte = [0; 1024];
                    while let Ok(1..) = application.read(&mut byte).await {
                        let _ = count.send(());
                        write(&mut application, UNAVAILABLE).await;
                    }
                });
            }
        });
        let mut client = world.dial(SERVICE);
        for _ in 0..200 {
            write(&mut client, GET).await;
            answered(&mut client, "503").await;
        }
        while counting.try_recv().is_ok() {
            attempts += 1;
        }
        assert!((220..=240).contains(&attempts), "{attempts} attempts of 200 requests");
    });
}

#[test]
fn one_layer_retries() {
    // Aim: a request that a layer before this one retries is not retried here, and who retries says so to peers and to its application only.
    run(|| async {
        let policy = RoutePolicy { retry: retry(2), ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\ntracestate: a=1,mw=r\r\nx-meshwright-retry: 1\r\n\r\n").await;
        let (_, text, _one) = play(&mut world, 0, UNAVAILABLE).await;
        assert!(text.contains("tracestate: a=1\r\n") && !text.contains("x-meshwright"), "strangers are told nothing: {text}");
        answered(&mut client, "503").await;
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn the_time_that_is_left_goes_on_to_the_next_hop() {
    // Aim: a route's timeout reaches the application beside the server's proxy, through mesh TLS; what is over is not forwarded.
    run(|| async {
        let mut world = World::new(Setup { request_timeout: Some(Duration::from_secs(5)), ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let mut application = world.application().await;
        let text = head(&mut application).await;
        let left = text.lines().find_map(|line| line.strip_prefix("x-meshwright-deadline-ms: ")).unwrap().parse::<u64>().unwrap();
        assert!((1..=5000).contains(&left) && text.contains("tracestate: mw=d"), "{text}");
        write(&mut application, OK).await;
        answered(&mut client, "200").await;
        exactly(&mut client, 2).await;
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\ntracestate: mw=d1\r\n\r\n").await;
        assert!(answered(&mut client, "504").await.contains("request_timeout"));
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn a_slow_answer_is_raced() {
    // Aim: once latencies are known, a request that takes longer is asked for elsewhere too, and the faster answer is the caller's.
    run(|| async {
        let hedge = Some(Hedge { at_quantile: 95.0, max_percent: 50.0, methods: vec!["GET".into()] });
        let policy = RoutePolicy { hedge, ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, ..Told::to(vec![ONE, TWO]) });
        let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
        let slow: Rc<std::cell::Cell<Option<SocketAddr>>> = Rc::default();
        let own = Rc::clone(&slow);
        tokio::task::spawn_local(async move {
            while let Some((address, mut application)) = applications.recv().await {
                let slow = Rc::clone(&own);
                tokio::task::spawn_local(async move {
                    let mut bytes = [0; 1024];
                    while let Ok(1..) = application.read(&mut bytes).await {
                        let wait = if slow.get() == Some(address) { 10_000 } else { 5 };
                        tokio::time::sleep(Duration::from_millis(wait)).await;
                        write(&mut application, &OK.replace("ok", if address.to_string() == ONE { "o1" } else { "o2" })).await;
                    }
                });
            }
        });
        let mut client = world.dial(SERVICE);
        for _ in 0..200 {
            write(&mut client, GET).await;
            answered(&mut client, "200").await;
            exactly(&mut client, 2).await;
        }
        slow.set(Some(ONE.parse().unwrap()));
        let began = tokio::time::Instant::now();
        for _ in 0..20 {
            write(&mut client, GET).await;
            answered(&mut client, "200").await;
            exactly(&mut client, 2).await;
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    });
}

#[test]
fn mirrors_get_a_copy_and_delay_nobody() {
    // Aim: head and body are copied; a mirror that never answers or refuses is nobody's business.
    run(|| async {
        let mirror = |cluster: &str| Mirror { cluster: cluster.into(), per_million: 1_000_000, canary: None };
        let filters = Some(Filters { mirrors: vec![mirror("shop/m:80"), mirror("shop/n:80")], ..Filters::default() });
        let mut config = Told::to(vec![ONE]);
        config.policy = RoutePolicy { filters, ..RoutePolicy::default() };
        config.backends.push(("shop/m:80", 0, BackendPolicy::default(), vec!["10.77.9.8:80"]));
        config.backends.push(("shop/n:80", 0, BackendPolicy::default(), vec!["10.77.9.9:80"]));
        let (mut world, _) = told(&config);
        world.client_wires.refused.lock().insert("10.77.9.9:80".parse().unwrap());
        let mut client = world.dial(SERVICE);
        write(&mut client, "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (address, mut application) = world.applications.recv().await.unwrap();
            let text = head(&mut application).await + &exactly(&mut application, 5).await;
            assert!(text.starts_with("POST /x ") && text.ends_with("hello"), "{text}");
            if address.to_string() == ONE {
                write(&mut application, OK).await;
            }
            seen.push((address.to_string(), application));
        }
        answered(&mut client, "200").await;
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!([seen[0].0.as_str(), seen[1].0.as_str()], [ONE, "10.77.9.8:80"]);
    });
}

#[test]
fn copies_beyond_their_bound_are_not_made() {
    // Aim: at the bound a request goes on without its copy, which is counted; below it copies are made again.
    run(|| async {
        let filters = Some(Filters {
            mirrors: vec![Mirror { cluster: "shop/m:80".into(), per_million: 1_000_000, canary: None }],
            ..Filters::default()
        });
        let mut config = Told::to(vec![ONE]);
        config.policy = RoutePolicy { filters, ..RoutePolicy::default() };
        config.backends.push(("shop/m:80", 0, BackendPolicy::default(), vec!["10.77.9.8:80"]));
        let (mut world, _) = told(&config);
        let dropped = |world: &World| world.client_means.telemetry.readings.mirrors_dropped.load(std::sync::atomic::Ordering::Relaxed);
        world.client.mirrors.set(MIRRORS_MAX);
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let (address, mut application) = world.applications.recv().await.unwrap();
        assert_eq!(address.to_string(), ONE);
        head(&mut application).await;
        write(&mut application, OK).await;
        answered(&mut client, "200").await;
        exactly(&mut client, 2).await;
        assert!(world.applications.try_recv().is_err());
        assert_eq!((dropped(&world), world.client.mirrors.get()), (1, MIRRORS_MAX));
        world.client.mirrors.set(MIRRORS_MAX - 1);
        write(&mut client, GET).await;
        assert_eq!(world.applications.recv().await.unwrap().0.to_string(), "10.77.9.8:80");
        assert_eq!(dropped(&world), 1);
    });
}

#[test]
fn faults_hold_back_answer_and_cut() {
    // Aim: a delay is waited before the request goes on, an abort answers, a reset cuts without a byte; each visible as what it is.
    run(|| async {
        let fault = |delay, abort| Fault { per_million: 1_000_000, delay, abort, policy: "shop/chaos".into(), ..Fault::default() };
        let governed = |faults| Told { policy: RoutePolicy { faults, ..RoutePolicy::default() }, ..Told::to(vec![ONE]) };
        let (mut world, _) = told(&governed(vec![fault(Some(Delay { min: millis(2000), max: millis(2000) }), None)]));
        let mut client = world.dial(SERVICE);
        let began = tokio::time::Instant::now();
        write(&mut client, GET).await;
        let _one = play(&mut world, 0, OK).await;
        answered(&mut client, "200").await;
        assert!(began.elapsed() >= Duration::from_secs(2));

        let abort = Some(Abort { kind: Some(abort::Kind::HttpStatus(418)) });
        let (world, _) = told(&governed(vec![fault(None, abort)]));
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        assert!(answered(&mut client, "418").await.contains("x-meshwright-reason: fault"));

        let (world, _) = told(&governed(vec![fault(None, Some(Abort { kind: Some(abort::Kind::Reset(true)) }))]));
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        assert_eq!(rest(&mut client).await, "");
    });
}

#[test]
fn a_rate_is_kept_across_pushes() {
    // Aim: burst and rate, 429 with a reason; and a push refills nothing.
    run(|| async {
        let limit = RateLimit {
            name: "l".into(),
            requests: 1,
            per: millis(10_000),
            burst: 2,
            key: vec![LimitKey { kind: Some(limit_key::Kind::Header("x-tenant".into())) }],
            policy: "shop/limits".into(),
        };
        let config = Told { policy: RoutePolicy { rate_limits: vec![limit], ..RoutePolicy::default() }, ..Told::to(vec![ONE]) };
        let (mut world, mut parts) = told(&config);
        let mut client = world.dial(SERVICE);
        let mut connection = None;
        for (round, wanted) in [(0, "200"), (1, "200"), (2, "200"), (3, "429"), (4, "429")] {
            if round == 4 {
                let live = world.client_means.snapshots.reader().load();
                let again = Told { timeout: Some(Duration::from_secs(9)), policy: config.policy.clone(), ..Told::to(vec![ONE]) };
                world.client_means.snapshots.publish(again.snapshot(&mut parts, &live));
            }
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nx-tenant: t\r\n\r\n").await;
            if wanted == "200" {
                match &mut connection {
                    None => connection = Some(play(&mut world, 0, OK).await.2),
                    Some(kept) => {
                        head(kept).await;
                        write(kept, OK).await;
                    }
                }
            }
            let answer = answered(&mut client, wanted).await;
            match wanted {
                "200" => drop(exactly(&mut client, 2).await),
                _ => {
                    assert!(answer.contains("x-meshwright-reason: rate_limited"), "{answer}");
                    exactly(&mut client, "rate_limited".len()).await;
                }
            }
        }
    });
}

#[test]
fn a_full_destination_lets_the_important_wait() {
    // Aim: no more under way than the limit; a high class takes a low one's place in the queue; a wait has its bound.
    run(|| async {
        let limits = Some(Limits { requests: 1, pending: 1, pending_timeout: millis(1000), ..Limits::default() });
        let priority = Some(Priority { header: "x-class".into(), classes: vec!["high".into(), "low".into()], default_class: 1 });
        let policy = RoutePolicy { priority, ..RoutePolicy::default() };
        let (mut world, _) = told(&Told { policy, cluster: ClusterPolicy { limits, ..ClusterPolicy::default() }, ..Told::to(vec![ONE]) });
        let mut clients = Vec::new();
        for class in ["low", "low", "high"] {
            let mut client = world.dial(SERVICE);
            write(&mut client, &format!("GET /{class} HTTP/1.1\r\nhost: a\r\nx-class: {class}\r\n\r\n")).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            clients.push(client);
        }
        assert!(answered(&mut clients[1], "503").await.contains("overflow"), "the low one makes room");
        let (_, _, mut application) = play(&mut world, 0, OK).await;
        answered(&mut clients[0], "200").await;
        exactly(&mut clients[0], 2).await;
        assert!(head(&mut application).await.starts_with("GET /high "));
        let mut late = world.dial(SERVICE);
        write(&mut late, GET).await;
        let began = tokio::time::Instant::now();
        assert!(answered(&mut late, "503").await.contains("overflow"));
        assert!(began.elapsed() >= Duration::from_millis(1000));
    });
}

#[test]
fn a_session_goes_back_to_its_endpoint() {
    // Aim: the first answer tells, later requests stay, whatever the balancer would choose, also when the weights have changed.
    run(|| async {
        let session = Some(Session { name: "mw-session".into(), path: "/".into(), ..Session::default() });
        let cluster = ClusterPolicy { sessions: true, ..ClusterPolicy::default() };
        let governed = |weights: [u32; 2]| Told {
            policy: RoutePolicy { session: session.clone(), ..RoutePolicy::default() },
            cluster: cluster.clone(),
            backends: vec![
                ("shop/a:80", weights[0], BackendPolicy::default(), vec![ONE]),
                ("shop/b:80", weights[1], BackendPolicy::default(), vec![TWO]),
            ],
            ..Told::default()
        };
        let (mut world, mut parts) = told(&governed([1, 0]));
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let (first, _, _kept) = play(&mut world, 0, OK).await;
        let answer = answered(&mut client, "200").await;
        let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap().split(';').next().unwrap().to_owned();
        drop(client);
        drop(_kept);
        let live = world.client_means.snapshots.reader().load();
        world.client_means.snapshots.publish(governed([0, 1]).snapshot(&mut parts, &live));
        let mut client = world.dial(SERVICE);
        write(&mut client, &format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n")).await;
        let (second, _, _kept) = play(&mut world, 0, OK).await;
        let answer = answered(&mut client, "200").await;
        assert!(first == second && !answer.contains("set-cookie"), "{answer}");
        let mut other = world.dial(SERVICE);
        write(&mut other, GET).await;
        assert_eq!(play(&mut world, 0, OK).await.0.to_string(), TWO);
    });
}

#[test]
fn an_endpoint_that_fails_again_and_again_is_left_alone() {
    // Aim: after so many bad answers in a row the others get everything, and the last one is never thrown out.
    run(|| async {
        let outlier = Some(mesh::Outlier {
            consecutive_errors: 3,
            interval: millis(10_000),
            eject_for: millis(30_000),
            max_ejected_percent: 100.0,
            ..mesh::Outlier::default()
        });
        let cluster = ClusterPolicy { outlier, check: None::<ActiveCheck>, ..ClusterPolicy::default() };
        let (mut world, _) = told(&Told { cluster, ..Told::to(vec![ONE, TWO]) });
        let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
        tokio::task::spawn_local(async move {
            while let Some((address, mut application)) = applications.recv().await {
                tokio::task::spawn_local(async move {
                    let mut bytes = [0; 1024];
                    while let Ok(1..) = application.read(&mut bytes).await {
                        write(&mut application, if address.to_string() == ONE { UNAVAILABLE } else { OK }).await;
                    }
                });
            }
        });
        let mut client = world.dial(SERVICE);
        let mut bad = 0;
        for _ in 0..100 {
            write(&mut client, GET).await;
            let answer = head(&mut client).await;
            if answer.starts_with("HTTP/1.1 200 ") {
                exactly(&mut client, 2).await;
            } else {
                bad += 1;
            }
        }
        assert_eq!(bad, 3, "three in a row and no more");
    });
}

#[test]
fn a_rule_decides_which_of_its_requests_are_sampled() {
    // Aim: what reaches the server says what the rule's own share says, where nobody decided before; the caller's word and its baggage pass.
    run(|| async {
        let off = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";
        for (proxy, rule, sent, flag) in
            [(0.0, Some(100.0), "", "-01"), (100.0, Some(0.0), "", "-00"), (100.0, None, "", "-01"), (0.0, Some(100.0), off, "-00")]
        {
            let telemetry = rule.map(|percent| RouteTelemetry { sample_percent: Some(percent), ..RouteTelemetry::default() });
            let policy = RoutePolicy { telemetry, ..RoutePolicy::default() };
            let tracing = Tracing { otlp_endpoint: "http://127.0.0.1:4317".into(), sample_percent: proxy, ..Tracing::default() };
            let (mut world, _) = told(&Told { policy, tracing: Some(tracing), ..Told::to(vec![ONE]) });
            let mut client = world.dial(SERVICE);
            write(&mut client, &format!("GET / HTTP/1.1\r\nhost: a\r\nbaggage: user=7\r\n{sent}\r\n")).await;
            let (_, text, _one) = play(&mut world, 0, OK).await;
            answered(&mut client, "200").await;
            let trace = text.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap_or_default();
            assert!(trace.ends_with(flag) && text.contains("baggage: user=7\r\n"), "{proxy} {rule:?} {sent}: {text}");
            assert_eq!(off.contains(trace), !sent.is_empty(), "{text}");
        }
    });
}
