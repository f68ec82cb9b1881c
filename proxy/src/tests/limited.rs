//! Requests under limits of an edge: counted, told, refused; with a store that counts for all proxies, and without.

use engine::limit::{LimitBook, Now, ShareAsk};
use proto::mesh::{
    BandwidthLimit, ClientAddressKey, ConcurrencyLimit, EdgeKey, EdgeLimit, EdgeLimits, EdgePolicy, KeyMissing, LeaseStore, LimitRate,
    LimitStore, RoutePolicy, WithoutStore, edge_key, edge_limit, limit_store,
};

use super::governed::{GET, OK, ONE, answered, play};
use super::resources::{Told, told};
use super::*;

fn rate(name: &str, requests: u32, shared: bool) -> EdgeLimit {
    let per = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let key = vec![EdgeKey { kind: Some(edge_key::Kind::ClientAddress(ClientAddressKey { ipv6_prefix: 64 })) }];
    let numbers = Some(edge_limit::Numbers::Rate(LimitRate { requests, per, burst: requests }));
    EdgeLimit { name: name.into(), numbers, key, cost: 1, shared, ..EdgeLimit::default() }
}

fn object(limits: Vec<EdgeLimit>) -> EdgeLimits {
    EdgeLimits {
        policy: "shop/limits".into(),
        memory: "shop/limits".into(),
        limits,
        store: Some(LimitStore { kind: Some(limit_store::Kind::Leases(LeaseStore { ahead_percent: 0 })) }),
        draft_headers: true,
        ..EdgeLimits::default()
    }
}

fn under(limits: Vec<EdgeLimits>) -> (World, engine::model::build::Parts) {
    let policy = RoutePolicy { edge: Some(EdgePolicy { limits, ..EdgePolicy::default() }), ..RoutePolicy::default() };
    told(&Told { policy, ..Told::to(vec![ONE]) })
}

/// One exchange that gets through: its answer's head.
async fn through(world: &mut World) -> String {
    let mut client = world.dial(SERVICE);
    write(&mut client, GET).await;
    let _application = play(world, 0, OK).await;
    answered(&mut client, "200").await
}

/// One that does not.
async fn refused(world: &mut World, status: &str) -> String {
    let mut client = world.dial(SERVICE);
    write(&mut client, GET).await;
    let answer = answered(&mut client, status).await;
    assert!(world.applications.try_recv().is_err(), "the application was asked");
    answer
}

#[test]
fn a_client_is_told_how_it_stands_and_when_to_come_again() {
    // Aim: the tightest of two limits on every answer, 429 with retry-after when it is used up, and nothing taken of the other for that.
    run(|| async {
        let (mut world, _parts) = under(vec![object(vec![rate("small", 3, false), rate("large", 1000, false)])]);
        for left in [2, 1, 0] {
            let answer = through(&mut world).await;
            assert!(answer.contains(&format!("ratelimit: \"small\";r={left};t=")), "{answer}");
            assert!(answer.contains("ratelimit-policy: \"small\";q=3;w=60, \"large\";q=1000;w=60\r\n"), "{answer}");
        }
        let answer = refused(&mut world, "429").await;
        for wanted in ["x-meshwright-reason: rate_limited\r\n", "retry-after: 20\r\n", "ratelimit: \"small\";r=0;t=60\r\n"] {
            assert!(answer.contains(wanted), "{wanted}: {answer}");
        }
        let metrics = world.client_means.telemetry.render();
        for wanted in [
            "meshwright_limit_total{limit=\"shop/limits/small\",verdict=\"allowed\"} 3\n",
            "meshwright_limit_total{limit=\"shop/limits/small\",verdict=\"refused\"} 1\n",
            "meshwright_limit_total{limit=\"shop/limits/large\",verdict=\"allowed\"} 3\n",
        ] {
            assert!(metrics.contains(wanted), "{wanted}: {metrics}");
        }
        tokio::time::advance(Duration::from_secs(20)).await;
        through(&mut world).await;
    });
}

#[test]
fn nobody_is_told_of_limits_that_others_have() {
    // Aim: of limits with `when`, and of those that skip who lacks a part of their key, a client hears where they count its request, let on or
    // refused, and nowhere else.
    run(|| async {
        let plan =
            |name: &str, requests| EdgeLimit { when: format!("request.headers[\"x-plan\"] == \"{name}\""), ..rate(name, requests, false) };
        let key = vec![EdgeKey { kind: Some(edge_key::Kind::Header("x-tenant".into())) }];
        let tenant = EdgeLimit { key, missing: KeyMissing::Skipped.into(), ..rate("tenant", 7, false) };
        let (mut world, _parts) = under(vec![object(vec![plan("gold", 900), plan("bronze", 1), rate("all", 50, false), tenant])]);
        for (header, status, wanted) in [
            ("x-plan: bronze", "200", &["\"all\";q=50;w=60", "\"bronze\";q=1;w=60"][..]),
            ("x-plan: bronze", "429", &["\"all\";q=50;w=60", "\"bronze\";q=1;w=60"]),
            ("x-plan: gold", "200", &["\"all\";q=50;w=60", "\"gold\";q=900;w=60"]),
            ("x-tenant: a", "200", &["\"all\";q=50;w=60", "\"tenant\";q=7;w=60"]),
            ("x-other: a", "200", &["\"all\";q=50;w=60"]),
        ] {
            let mut client = world.dial(SERVICE);
            write(&mut client, &GET.replacen("\r\n", &format!("\r\n{header}\r\n"), 1)).await;
            let _application = if status == "200" { Some(play(&mut world, 0, OK).await) } else { None };
            let answer = answered(&mut client, status).await;
            let said: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("ratelimit-policy: ")).collect();
            assert_eq!(said, wanted, "{header}: {answer}");
        }
    });
}

#[test]
fn what_the_application_says_of_limits_is_not_the_edges_word() {
    // Aim: its own RateLimit headers give way to ours, also the older ones.
    run(|| async {
        let both = EdgeLimits { legacy_headers: true, ..object(vec![rate("one", 10, false)]) };
        let (mut world, _parts) = under(vec![both]);
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let said = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nratelimit: \"mine\";r=1;t=1\r\nx-ratelimit-limit: 7\r\n\r\nok";
        let _application = play(&mut world, 0, said).await;
        let answer = answered(&mut client, "200").await;
        assert!(!answer.contains("mine") && answer.contains("x-ratelimit-limit: 10\r\n"), "{answer}");
        assert!(answer.contains("x-ratelimit-remaining: 9\r\n") && answer.contains("x-ratelimit-reset: 6\r\n"), "{answer}");
    });
}

#[test]
fn what_was_counted_stays_its_limits_after_an_edit() {
    // Aim: where a limit is put before another one, `get limits` shows each key at the limit that counted it.
    run(|| async {
        let (mut world, mut parts) = under(vec![object(vec![rate("small", 3, false)])]);
        through(&mut world).await;
        let limits = vec![object(vec![rate("large", 1000, false), rate("small", 3, false)])];
        let policy = RoutePolicy { edge: Some(EdgePolicy { limits, ..EdgePolicy::default() }), ..RoutePolicy::default() };
        let before = world.client_means.snapshots.load();
        let edited = Told { policy, ..Told::to(vec![ONE]) }.snapshot(&mut parts, &before);
        let now = Now { moment: world.client_means.telemetry.moment(), wall_secs: 1_800_000_000 };
        let rows: Vec<_> =
            engine::explain::limits::limits(&edited, now).into_iter().map(|row| (row.limit, row.used, row.limit_value)).collect();
        assert_eq!(rows, [("small".to_owned(), 1, 3)]);
    });
}

#[test]
fn a_limit_on_trial_counts_and_refuses_nobody() {
    // Aim: dryRun says nothing to clients, and its refusals are counted.
    run(|| async {
        let trial = EdgeLimit { dry_run: true, ..rate("trial", 1, false) };
        let (mut world, _parts) = under(vec![object(vec![trial])]);
        for _ in 0..3 {
            let answer = through(&mut world).await;
            assert!(!answer.contains("ratelimit"), "{answer}");
        }
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_limit_total{limit=\"shop/limits/trial\",verdict=\"would_refuse\"} 2\n"), "{metrics}");
    });
}

#[test]
fn while_the_store_is_away_each_limit_goes_by_its_word() {
    // Aim: Local lets this proxy's share through, Allow everybody, Deny nobody, with 503 policy_unavailable; a store that was never there is away.
    for (without, passes, then) in [(WithoutStore::Share, 2, "429"), (WithoutStore::Allow, 5, ""), (WithoutStore::Deny, 0, "503")] {
        run(|| async move {
            let limits = EdgeLimits { without_store: without.into(), ..object(vec![rate("all", 2, true)]) };
            let (mut world, _parts) = under(vec![limits]);
            for _ in 0..passes {
                through(&mut world).await;
            }
            if !then.is_empty() {
                let answer = refused(&mut world, then).await;
                assert_eq!(answer.contains("policy_unavailable"), then == "503", "{answer}");
            }
            let metrics = world.client_means.telemetry.render();
            assert!(metrics.contains("meshwright_degraded{kind=\"RateLimit\",name=\"leases\"} 1\n"), "{metrics}");
        });
    }
}

#[test]
fn a_store_that_says_nothing_holds_nobody_up_for_long() {
    // Aim: a request that asked waits 50 ms, and then its limit goes by its word.
    run(|| async {
        let limits = EdgeLimits { without_store: WithoutStore::Deny.into(), ..object(vec![rate("all", 2, true)]) };
        let (mut world, _parts) = under(vec![limits]);
        let snapshots = world.client_means.snapshots.clone();
        let _hanging = snapshots.limit_questions().take();
        snapshots.load().limits.leases().is_here();
        let began = tokio::time::Instant::now();
        let answer = refused(&mut world, "503").await;
        assert!(answer.contains("policy_unavailable"), "{answer}");
        assert_eq!(began.elapsed(), crate::ground::limits::STORE_WAIT);
    });
}

#[test]
fn a_full_queue_is_a_store_that_is_away() {
    // Aim: where as many questions wait as may, a request is not kept waiting for its own.
    run(|| async {
        let limits = EdgeLimits { without_store: WithoutStore::Deny.into(), ..object(vec![rate("all", 2, true)]) };
        let (mut world, _parts) = under(vec![limits.clone()]);
        let snapshots = world.client_means.snapshots.clone();
        snapshots.load().limits.leases().is_here();
        let own = Arc::new(engine::filter::guard::read(&limits, &engine::limit::LimitMemories::default()).unwrap());
        for key in 0..crate::snapshots::POSED_MAX as u128 {
            snapshots.limit_questions().aside(engine::filter::guard::LimitAsk { object: Arc::clone(&own), limit: 0, key, want: 1 });
        }
        let began = tokio::time::Instant::now();
        refused(&mut world, "503").await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    });
}

/// Answers what a proxy asks, as the control plane does.
fn store(means: &Means, book: Arc<LimitBook>) {
    let (snapshots, telemetry) = (&means.snapshots, means.telemetry.clone());
    let mut questions = snapshots.limit_questions().take().unwrap();
    let leases = Arc::clone(snapshots.load().limits.leases());
    leases.is_here();
    tokio::task::spawn_local(async move {
        while let Some(posed) = questions.recv().await {
            let (object, key) = (&posed.ask.object, posed.ask.key);
            let limit = &object.limits[posed.ask.limit];
            // A grant is noted by the proxy's own clock: one of the future would be empty until then.
            let now = Now { moment: telemetry.moment(), wall_secs: 1_700_000_000 };
            let (spent, known) = object.account(key, now.moment);
            let ask = ShareAsk { limit: Arc::clone(&limit.path), key, want: posed.ask.want, back: 0, spent, known };
            let grant = book.take(&ask, &limit.numbers, now).unwrap();
            object.granted(key, &grant, now.moment);
            let _ = posed.told.map(|told| told.send(()));
        }
    });
}

#[test]
fn proxies_that_count_together_let_through_what_one_would() {
    // Aim: two proxies before one store share five requests, exactly where each request asks.
    run(|| async {
        let book = Arc::new(LimitBook::new(4, 100));
        let limits = || vec![object(vec![rate("all", 5, true)])];
        let ((mut one, _one), (mut other, _other)) = (under(limits()), under(limits()));
        store(&one.client_means, Arc::clone(&book));
        store(&other.client_means, Arc::clone(&book));
        for _ in 0..2 {
            through(&mut one).await;
            through(&mut other).await;
        }
        through(&mut one).await;
        for world in [&mut one, &mut other] {
            let answer = refused(world, "429").await;
            assert!(answer.contains("ratelimit: \"all\";r=0;"), "{answer}");
        }
    });
}

#[test]
fn requests_under_way_have_their_places() {
    // Aim: two at once for one client; the third is told to come again, and finds a place when one of them has ended.
    run(|| async {
        let busy = EdgeLimits { concurrency: vec![ConcurrencyLimit { requests: 2, ..ConcurrencyLimit::default() }], ..object(Vec::new()) };
        let (mut world, _parts) = under(vec![busy]);
        let mut clients = [world.dial(SERVICE), world.dial(SERVICE)];
        for client in &mut clients {
            write(client, GET).await;
        }
        let (_, mut first) = world.applications.recv().await.unwrap();
        let (_, mut second) = world.applications.recv().await.unwrap();
        head(&mut first).await;
        head(&mut second).await;
        let answer = refused(&mut world, "429").await;
        assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
        for application in [&mut first, &mut second] {
            write(application, OK).await;
        }
        for client in &mut clients {
            answered(client, "200").await;
            assert_eq!(exactly(client, 2).await, "ok");
        }
        // What is kept would be used again, and nothing dialled.
        drop((first, second));
        through(&mut world).await;
    });
}

#[test]
fn who_finds_no_place_waits_for_its_turn() {
    // Aim: of five at once one is under way, two wait, two are refused; who leaves the queue gives its turn to the next; the next goes on the moment that the
    // place is free; who waits for ten seconds is refused. The metric has as many as wait.
    const LAST: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    run(|| async {
        let busy = EdgeLimits {
            concurrency: vec![ConcurrencyLimit { requests: 1, queue: 2, ..ConcurrencyLimit::default() }],
            ..object(Vec::new())
        };
        let (mut world, _parts) = under(vec![busy]);
        let mut first = world.dial(SERVICE);
        write(&mut first, GET).await;
        let (_, mut application) = world.applications.recv().await.unwrap();
        head(&mut application).await;
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let mut client = world.dial(SERVICE);
            write(&mut client, GET).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            waiting.push(client);
        }
        let counts = |world: &World| {
            let readings = world.client_means.telemetry.readings.limits.lock();
            let queued: u64 = readings.waiting().iter().map(|(_, waiting)| *waiting).sum();
            queued
        };
        assert_eq!(counts(&world), 2);
        for _ in 0..2 {
            let answer = refused(&mut world, "429").await;
            assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
        }
        // A client that only closes its side waits for its answer still.
        waiting.remove(0).abort();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(counts(&world), 1);
        write(&mut application, LAST).await;
        answered(&mut first, "200").await;
        assert_eq!(exactly(&mut first, 2).await, "ok");
        let (_, mut application) = world.applications.recv().await.unwrap();
        head(&mut application).await;
        let mut late = world.dial(SERVICE);
        write(&mut late, GET).await;
        let began = tokio::time::Instant::now();
        answered(&mut late, "429").await;
        assert_eq!(began.elapsed().as_secs(), 10);
        write(&mut application, LAST).await;
        answered(&mut waiting[0], "200").await;
        assert_eq!(counts(&world), 0);
    });
}

#[test]
fn an_answer_says_what_its_request_took() {
    // Aim: a request that took five of ten leaves five, and one whose answer says nothing one less.
    run(|| async {
        let settled = EdgeLimit { cost_header: "x-cost".into(), ..rate("units", 10, false) };
        let (mut world, _parts) = under(vec![object(vec![settled])]);
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let application = play(&mut world, 0, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-cost: 5\r\n\r\nok").await;
        answered(&mut client, "200").await;
        assert_eq!(exactly(&mut client, 2).await, "ok");
        // What is kept would be used again, and nothing dialled.
        drop(application);
        let answer = through(&mut world).await;
        assert!(answer.contains("ratelimit: \"units\";r=4;"), "{answer}");
        let answer = through(&mut world).await;
        assert!(answer.contains("ratelimit: \"units\";r=3;"), "{answer}");
    });
}

#[test]
fn answers_are_sent_at_their_pace() {
    // Aim: 20,000 bytes at 10,000 a second take two seconds, but for a tenth of one, however large the pieces in which they come; two answers to
    // one client share them.
    run(|| async {
        let wide =
            EdgeLimits { bandwidth: vec![BandwidthLimit { response_bytes_per_second: 10_000, key: Vec::new() }], ..object(Vec::new()) };
        let (mut world, _parts) = under(vec![wide]);
        let began = tokio::time::Instant::now();
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = world.dial(SERVICE);
            write(&mut client, GET).await;
            let (_, mut application) = world.applications.recv().await.unwrap();
            head(&mut application).await;
            clients.push((client, application));
        }
        let whole = "x".repeat(10_000);
        for (_, application) in &mut clients {
            write(application, &format!("HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n{whole}")).await;
        }
        for (client, _) in &mut clients {
            answered(client, "200").await;
            exactly(client, 10_000).await;
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(1900)..Duration::from_millis(2100)).contains(&took), "{took:?}");
    });
}
