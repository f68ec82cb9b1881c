//! From the workers to those who write: bounds, order, and what it costs the worker.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;

use super::*;
use crate::observe::batch::RECORDS_MAX;

/// One logged and sampled exchange, as long as it takes.
fn account(world: &World, snapshot: &Arc<Snapshot>, app: &Downstream, path: &str, endpoint: &Arc<Endpoint>) {
    let mut parts = Request::get(path).header("x-request-id", "r").body(()).unwrap().into_parts().0;
    let mut account = world.observer.begin_http(Direction::Outbound, snapshot, &mut parts, app);
    account.attempted(endpoint);
    account.secured(Some(&TLS));
    account.response(StatusCode::OK, &HeaderMap::new());
}

/// Aim: with the log on and every request traced, a request allocates for the headers it gets and for nothing of log and span.
#[tokio::test(start_paused = true)]
async fn a_logged_request_allocates_for_its_headers_only() {
    let sink = LogLines::File(Arc::new(File::create("/dev/null").unwrap()));
    let world = world_with(sink);
    for (log, otlp, wanted) in [(true, None, 0), (false, Some("http://127.0.0.1:4317"), 1), (true, Some("http://127.0.0.1:4317"), 1)] {
        let snapshot = snapshot(settings(log, otlp, 100));
        let (rule, cluster, endpoint) = (rule(), cluster(), endpoint());
        let app = world.caller(Direction::Outbound, &snapshot, false);
        let headers = HeaderMap::new();
        let mut counted = u64::MAX;
        // The writer may take the batch at any time, and then another one is begun: what counts is a request between.
        for _ in 0..20 {
            let mut parts = parts(&[("x-request-id", "r1")]);
            parts.headers.reserve(8);
            let before = allocations();
            let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app);
            account.routed(&rule, &cluster);
            account.attempted(&endpoint);
            account.secured(Some(&TLS));
            account.response(StatusCode::OK, &headers);
            drop(account);
            counted = counted.min(allocations() - before);
        }
        assert_eq!(counted, wanted, "log {log}, traces {otlp:?}");
    }
}

/// Aim: what nobody fetches is bounded, and what does not fit is counted.
#[tokio::test(start_paused = true)]
async fn spans_beyond_the_bound_are_counted() {
    let world = world();
    let snapshot = snapshot(settings(false, Some("http://127.0.0.1:4317"), 100));
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let endpoint = endpoint();
    for _ in 0..RECORDS_MAX + 10 {
        account(&world, &snapshot, &app, "/", &endpoint);
    }
    let text = world.telemetry.render();
    assert!(text.contains("meshwright_spans_dropped_total{reason=\"queue_full\"} 10\n"), "{text}");
}

/// Aim: a log that nobody reads keeps no worker waiting; what is lost meanwhile is counted, and all else arrives whole, in order.
#[tokio::test]
async fn a_log_that_nobody_reads_loses_only_what_it_counts() {
    let (reader, writer): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
    let world = world_with(LogLines::File(Arc::new(File::from(writer))));
    let snapshot = snapshot(settings(true, None, 0));
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let endpoint = endpoint();
    let all = 3 * RECORDS_MAX;
    for n in 0..all {
        account(&world, &snapshot, &app, &format!("/{n}"), &endpoint);
    }
    let text = world.telemetry.render();
    let dropped = text.lines().find_map(|line| line.strip_prefix("meshwright_access_log_dropped_total{sink=\"all\"} ")).unwrap();
    let dropped: usize = dropped.parse().unwrap();
    assert!(dropped > 0 && dropped <= 2 * RECORDS_MAX, "{dropped}");
    let mut last = None;
    for line in BufReader::new(File::from(reader)).lines().take(all - dropped) {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let n: usize = line["path"].as_str().unwrap()[1..].parse().unwrap();
        assert!(last < Some(n), "{n} after {last:?}");
        last = Some(n);
    }
    world.telemetry.close_log();
}

/// Aim: lines that the device refuses are counted, all of them.
#[tokio::test]
async fn refused_lines_are_counted() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let world = world_with(LogLines::File(Arc::new(full)));
    let snapshot = snapshot(settings(true, None, 0));
    let app = world.caller(Direction::Outbound, &snapshot, false);
    for _ in 0..1000 {
        account(&world, &snapshot, &app, "/", &endpoint());
    }
    world.telemetry.close_log();
    let text = world.telemetry.render();
    assert!(text.contains("meshwright_access_log_dropped_total{sink=\"stdout\"} 1000\n"), "{text}");
}

/// Aim: more shapes than are known again at once, in any order and across epochs, and each line still names its own endpoint and rule.
#[tokio::test(start_paused = true)]
async fn lines_never_speak_of_another_shape() {
    let world = world();
    let endpoints: Vec<_> = (0..1000_u16)
        .map(|n| {
            let address = SocketAddr::new([10, 78, (n >> 8) as u8, n as u8].into(), 80);
            Arc::new(Endpoint { address, workload: format!("w{n}").into(), ..Arc::into_inner(endpoint()).unwrap() })
        })
        .collect();
    let draw = Draw::seeded(7);
    for epoch in 1..4 {
        let snapshot = Arc::new(Snapshot { epoch, settings: Some(Arc::new(settings(true, None, 0))), ..Snapshot::default() });
        let app = world.caller(Direction::Outbound, &snapshot, false);
        for _ in 0..3000 {
            let n = (draw.next() % 1000) as usize;
            account(&world, &snapshot, &app, &format!("/{n}?{epoch}"), &endpoints[n]);
        }
    }
    let lines = world.lines.lock();
    assert_eq!(lines.len(), 9000);
    for line in lines.iter() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let (n, epoch) = line["path"].as_str().unwrap()[1..].split_once('?').unwrap();
        assert_eq!(line["destination"]["workload"], format!("w{n}"));
        assert_eq!(line["epoch"].to_string(), epoch);
        let n: u16 = n.parse().unwrap();
        assert_eq!(line["destination"]["address"], format!("10.78.{}.{}:80", n >> 8, n & 255));
    }
}

/// Aim: spans of the proxy's own tasks join the queue while an endpoint is known; others, and those before, do not.
#[test]
fn own_tasks_leave_spans() {
    use tracing_subscriber::layer::SubscriberExt;

    let mut world = world();
    let subscriber = tracing_subscriber::registry().with(own_tasks_layer(&world.telemetry));
    tracing::subscriber::with_default(subscriber, || {
        drop(tracing::info_span!(target: "proxy::identity", "too early").entered());
        world.telemetry.configured(&Arc::new(settings(false, Some("http://127.0.0.1:4317"), 0)));
        drop(tracing::info_span!(target: "h2::codec", "of a stranger").entered());
        drop(tracing::info_span!(target: "proxy::identity::agent", "rotate").entered());
    });
    let exporter = world.exporter.as_mut().unwrap();
    assert_eq!(exporter.next_own().as_deref(), Some("rotate"));
    assert_eq!(exporter.next_own(), None);
}
