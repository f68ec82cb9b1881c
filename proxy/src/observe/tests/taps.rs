//! What taps show of whole exchanges.

use proto::mesh::{StatusRange, TapFilter};

use super::*;

/// Lines of a tap with this filter, of one of each kind of exchange, while the log is off; and how many it saw and dropped.
async fn shown(edit: impl FnOnce(&mut TapFilter), lines_per_sec: u32) -> (Vec<String>, (u64, u64)) {
    let world = world();
    let mut filter = TapFilter::default();
    edit(&mut filter);
    let mut feed = world.telemetry.tap(TapTerms::read(&filter).unwrap(), lines_per_sec).unwrap();
    some_traffic(&world, &snapshot(settings(false, None, 0))).await;
    let lines = std::iter::from_fn(|| feed.line_now()).collect();
    (lines, feed.counts())
}

/// Aim: a tap shows what the access log would say, word for word, where that is off; and nothing goes to the log for its sake.
#[tokio::test(start_paused = true)]
async fn a_tap_says_what_the_log_would() {
    let logged = world();
    some_traffic(&logged, &snapshot(settings(true, None, 0))).await;
    let (lines, counts) = shown(|_| {}, 100).await;
    assert_eq!(lines, *logged.lines.lock());
    assert_eq!(counts, (3, 0));

    let quiet = world();
    let feed = quiet.telemetry.tap(TapTerms::default(), 100).unwrap();
    some_traffic(&quiet, &snapshot(settings(false, None, 0))).await;
    assert_eq!((quiet.lines.lock().len(), feed.counts()), (0, (3, 0)));
}

/// Aim: each word about an exchange's end takes just what it says.
#[tokio::test(start_paused = true)]
async fn ends_are_judged() {
    let status = |from: u32, to: u32| vec![StatusRange { from, to }];
    let slower = |ms: i32| Some(prost_types::Duration { seconds: 0, nanos: ms * 1_000_000 });
    // An answer 200 after 4.5 ms, a gRPC call denied, a connection that was reset.
    type Says = Box<dyn FnOnce(&mut TapFilter)>;
    let table: [(&str, Says, &[&str]); 13] = [
        ("nothing", Box::new(|_| {}), &["r1", "r2", "tcp"]),
        ("route", Box::new(|f| f.route = "shop/catalog".into()), &["r1"]),
        ("route by name", Box::new(|f| f.route = "catalog".into()), &["r1"]),
        ("route elsewhere", Box::new(|f| f.route = "other/catalog".into()), &[]),
        ("service", Box::new(|f| f.service = "shop/catalog".into()), &["r1", "tcp"]),
        ("own service", Box::new(|f| f.service = "frontend".into()), &["r2"]),
        ("status", Box::new(move |f| f.statuses = status(200, 299)), &["r1"]),
        ("another", Box::new(move |f| f.statuses = status(500, 599)), &[]),
        ("reason", Box::new(|f| f.reason = "denied".into()), &["r2"]),
        ("failed", Box::new(|f| f.failed = true), &["tcp"]),
        ("slower", Box::new(move |f| f.slower = slower(4)), &["r1"]),
        ("too slow", Box::new(move |f| f.slower = slower(5)), &[]),
        ("both", Box::new(|f| (f.service, f.failed) = ("catalog".into(), true)), &["tcp"]),
    ];
    for (what, edit, wanted) in table {
        let (lines, (seen, dropped)) = shown(edit, 100).await;
        let name = |line: &String| ["r1", "r2"].into_iter().find(|id| line.contains(&format!(r#""request_id":"{id}""#))).unwrap_or("tcp");
        assert_eq!(lines.iter().map(name).collect::<Vec<_>>(), wanted, "{what}: {lines:?}");
        assert_eq!((seen, dropped), (wanted.len() as u64, 0), "{what}");
    }
}

/// Aim: beyond its rate a tap counts and shows nothing, and takes no notes either; what failed is kept by its id only where there are notes.
#[tokio::test(start_paused = true)]
async fn a_busy_tap_counts() {
    let (lines, counts) = shown(|_| {}, 1).await;
    assert_eq!((lines.len(), counts), (1, (3, 2)));

    let world = world();
    some_traffic(&world, &snapshot(settings(false, None, 0))).await;
    assert_eq!(world.telemetry.find("r2"), serde_json::json!([]));
    some_traffic(&world, &snapshot(settings(true, None, 0))).await;
    let found = world.telemetry.find("r2");
    assert_eq!((found.as_array().unwrap().len(), &found[0]["reason"]), (1, &"denied".into()), "{found}");
    assert_eq!(world.telemetry.find("r1"), serde_json::json!([]), "a retry that went well is no failure");
}

/// Aim: what was called is told per route, service and caller, once.
#[tokio::test(start_paused = true)]
async fn routes_are_told_once() {
    let world = world();
    let snapshot = snapshot(settings(false, None, 0));
    some_traffic(&world, &snapshot).await;
    let mut told = world.telemetry.routes_from_now();
    assert_eq!(world.telemetry.routes(&mut told), []);
    some_traffic(&world, &snapshot).await;
    let rows = world.telemetry.routes(&mut told);
    let facts: Vec<_> = rows.iter().map(|row| (&*row.direction, &*row.route, &*row.service, &*row.source_workload, row.requests)).collect();
    assert_eq!(facts, [("inbound", "", "frontend", "gate", 1), ("outbound", "shop/catalog", "catalog", "", 1)]);
    assert_eq!(world.telemetry.routes(&mut told), []);
}
