//! Taps and counts as proxies and watchers meet them at the doors.

use std::time::Duration;

use proto::mesh::control_client::ControlClient;
use proto::mesh::{Answer, Command, FindRequest, RouteTraffic, StatRequest, TapFilter, TapRequest, Tapped, Traffic, command, report};
use serde_json::Value;
use tonic::{Code, Status};

use super::Folders;
use crate::desk::{Plane, Reporter, Sidecar};

const CATALOG: (&str, &str) = ("spiffe://cluster.local/ns/shop/sa/catalog", "catalog");
const PATIENCE: Duration = Duration::from_secs(10);

/// Both streams of a proxy.
async fn catalog(plane: &Plane) -> (Sidecar, Reporter) {
    let sidecar = plane.sidecar("catalog", "catalog").await;
    let reporter = Reporter::open(plane.tls(Some(CATALOG)).await, "sidecar/shop/catalog", "catalog").await;
    (sidecar, reporter)
}

fn request() -> TapRequest {
    let filter = TapFilter { failed: true, ..TapFilter::default() };
    TapRequest { namespace: "shop".into(), workload: "catalog".into(), filter: Some(filter), lines_per_sec: 7 }
}

async fn next(reporter: &mut Reporter) -> Command {
    tokio::time::timeout(PATIENCE, reporter.commands.message()).await.expect("a command").unwrap().unwrap()
}

/// Whether a command goes on with a tap, and what it says.
fn tapping(command: &Command) -> (bool, TapFilter, u32) {
    let Some(command::Kind::Tap(tap)) = &command.kind else { panic!("{command:?}") };
    (tap.lease.is_some(), tap.filter.clone().unwrap_or_default(), tap.lines_per_sec)
}

async fn begun(plane: &Plane) -> Result<tonic::Streaming<proto::mesh::TapNews>, Status> {
    let begin = async {
        loop {
            match plane.api().await.tap(request()).await {
                // The proxy is on its way.
                Err(status) if status.code() == Code::FailedPrecondition => tokio::time::sleep(Duration::from_millis(10)).await,
                other => return other,
            }
        }
    };
    Ok(tokio::time::timeout(PATIENCE, begin).await.unwrap()?.into_inner())
}

#[tokio::test]
async fn a_tap_is_held_while_somebody_watches() {
    // Aim: the proxy concerned is asked with the filter and asked again, what it shows arrives, what it shows of a tap that is none does not,
    // and it is told when the watcher goes; one that joins later is asked as well.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (_sidecar, mut proxy) = catalog(&plane).await;
    let mut tap = begun(&plane).await.unwrap();
    let asked = next(&mut proxy).await;
    assert_eq!(tapping(&asked), (true, request().filter.unwrap(), 7));
    let told = tap.message().await.unwrap().unwrap();
    assert_eq!((told.proxies, told.note.as_str()), (1, "watching 1 proxy"));

    let shown = |tap: u64| report::Kind::Tapped(Tapped { tap, lines: vec!["{}".into()], seen: 3, dropped: 2, error: String::new() });
    proxy.say(shown(asked.id + 100)).await;
    proxy.say(shown(asked.id)).await;
    let news = tap.message().await.unwrap().unwrap();
    assert_eq!((news.lines, news.seen, news.dropped), (vec!["{}".to_owned()], 3, 2));
    let again = next(&mut proxy).await;
    assert_eq!((again.id, tapping(&again).0), (asked.id, true));

    drop(tap);
    loop {
        let command = next(&mut proxy).await;
        assert_eq!(command.id, asked.id);
        if !tapping(&command).0 {
            break;
        }
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_watcher_that_reads_nothing_holds_up_no_proxy() {
    // Aim: eight thousand lines for a watcher that takes none: the proxy's stream goes on and answers as before.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (_sidecar, mut proxy) = catalog(&plane).await;
    let tap = begun(&plane).await.unwrap();
    let id = next(&mut proxy).await.id;
    let line = "x".repeat(1000);
    for _ in 0..250 {
        let tapped = Tapped { tap: id, lines: vec![line.clone(); 32], seen: 32, dropped: 0, error: String::new() };
        let said = tokio::time::timeout(PATIENCE, proxy.say(report::Kind::Tapped(tapped))).await;
        said.expect("the stream takes it");
    }
    let mut api = plane.api().await;
    let (found, ()) = tokio::join!(api.find(FindRequest { id: "r1".into() }), async {
        loop {
            let command = next(&mut proxy).await;
            if let Some(command::Kind::Find(find)) = &command.kind {
                assert_eq!(find.id, "r1");
                let json = r#"[{"request_id":"r1","time":"2026"}]"#.to_owned();
                return proxy.say(report::Kind::Answer(Answer { id: command.id, json, error: String::new() })).await;
            }
        }
    });
    let hops: Value = serde_json::from_str(&found.unwrap().into_inner().json).unwrap();
    assert_eq!(hops[0]["proxy"], "shop/catalog", "{hops}");
    // A server ends when its connections do.
    drop(tap);
    plane.stop().await;
}

#[tokio::test]
async fn too_many_taps_are_refused_by_name() {
    // Aim: the thirty-third tap is refused and says why, and one that ends makes room.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (_sidecar, _proxy) = catalog(&plane).await;
    let mut taps = Vec::new();
    for _ in 0..control::publish::taps::TAPS_MAX {
        taps.push(begun(&plane).await.unwrap());
    }
    let refused = begun(&plane).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "32 taps are open already; end one first"));
    taps.pop();
    let again = async {
        while begun(&plane).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn counts_of_proxies_are_rates() {
    // Aim: what a proxy counted comes out as rate, success and latency, and a wrong question is refused by a sentence.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (_sidecar, proxy) = catalog(&plane).await;
    let row = RouteTraffic {
        direction: "inbound".into(),
        namespace: "shop".into(),
        service: "catalog".into(),
        source_namespace: "unknown".into(),
        source_workload: "unknown".into(),
        requests: 200,
        failures: 2,
        duration_buckets: vec![0, 200],
        ..RouteTraffic::default()
    };
    proxy.say(report::Kind::Traffic(Traffic { routes: vec![row], ..Traffic::default() })).await;
    let stat = async |view: &str, window: i64| {
        let window = Some(prost_types::Duration { seconds: window, nanos: 0 });
        let request = StatRequest { view: view.into(), window, ..StatRequest::default() };
        plane.api().await.stat(request).await.map(|answer| serde_json::from_str::<Value>(&answer.into_inner().json).unwrap())
    };
    let counted = async {
        loop {
            let rows = stat("services", 20).await.unwrap();
            if rows[0]["requests"] == 200 {
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let rows = tokio::time::timeout(PATIENCE, counted).await.unwrap();
    assert_eq!((&rows[0]["service"], &rows[0]["rps"], &rows[0]["success"]), (&"catalog".into(), &10.0.into(), &99.0.into()), "{rows}");
    assert_eq!(rows[0]["p50_ms"], 0.75, "{rows}");
    for (view, window) in [("pods", 10), ("services", 61), ("services", -1)] {
        assert_eq!(stat(view, window).await.unwrap_err().code(), Code::InvalidArgument, "{view} {window}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn watching_is_for_who_has_a_token() {
    // Aim: behind TLS nothing is shown without a token, a mesh certificate notwithstanding.
    let folders = Folders::new();
    let plane = folders.start().await;
    for leaf in [None, Some(CATALOG)] {
        let mut client = ControlClient::new(plane.tls(leaf).await);
        let refused = [
            client.tap(request()).await.err(),
            client.stat(StatRequest::default()).await.err(),
            client.find(FindRequest { id: "r1".into() }).await.err(),
        ];
        for status in refused {
            let status = status.expect("it is refused");
            assert!(status.code() == Code::Unauthenticated && status.message().contains("api-read.token"), "{status}");
        }
    }
    plane.stop().await;
}
