//! A rotation of the root as proxies and commands meet it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use control::clock::Clock;
use control::publish::trust::Phase;
use control::rotation::{AWAY_GRACE, LISTENED};
use control::serve::authority::{Authority as _, SharedAuthority};
use control::serve::tls;
use proto::mesh::{Certificate, report};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::desk::{Plane, Reporter, SEAT_LIFE, Sidecar, TestAuthority};
use crate::{Folders, route};

const CATALOG: (&str, &str) = ("spiffe://cluster.local/ns/shop/sa/catalog", "catalog");

/// Changes the catalog's inbound side.
const STRICT: &str = "
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: Strict}}
";

/// Says which leaf is in use.
async fn uses(reporter: &Reporter, serial: &str) {
    let certificate = Certificate { serial: serial.into(), ..Default::default() };
    reporter.say(report::Kind::Certificate(certificate)).await;
}

/// That much later, at once.
async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

/// Until no proxy has a stream.
async fn deserted(plane: &Plane) {
    let gone = async {
        while plane.get("proxies").await.unwrap() != serde_json::json!([]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
}

/// A sidecar of the catalog with its reports, its leaf in the book, and the first epoch taken.
async fn catalog(folders: &Folders, plane: &Plane) -> (Sidecar, Reporter) {
    folders.authority.note("catalog", "1");
    let mut sidecar = plane.sidecar("catalog", "catalog").await;
    sidecar.take_epoch(None).await;
    let reporter = Reporter::open(plane.tls(Some(CATALOG)).await, "sidecar/shop/catalog", "catalog").await;
    uses(&reporter, "1").await;
    (sidecar, reporter)
}

#[tokio::test]
async fn each_step_waits_for_the_proxies_that_are_there() {
    // Aim: a refused Trust stops the rotation with the proxy and its reason, for whoever follows it; once a later epoch is taken whole it
    // goes on, waits for a leaf below the new root, and is over when the last step is acknowledged. A second ask joins.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (mut sidecar, reporter) = catalog(&folders, &plane).await;
    let (begun, ok) = plane.rotate(false).await;
    assert!(ok && begun["joined"] == false && begun["rotated"] == false, "{begun}");
    let number = sidecar.take_epoch(Some("Trust trust: roots[1]: is no certificate")).await;
    plane.shows(|shown| shown["stopped"].is_string()).await;
    let (stopped, ok) = plane.rotate(true).await;
    let reason = stopped["stopped"].as_str().unwrap();
    assert!(!ok && reason.contains("Trust") && reason.contains("shop/catalog") && reason.contains("roots[1]"), "{stopped}");
    assert_eq!(folders.authority.roots().phase, Phase::Trusting, "it has gone no further");

    let plane = Arc::new(plane);
    // An epoch that changes nothing for the proxy takes nothing back.
    plane.apply(&route("1"), false, false).await;
    assert_eq!(folders.authority.roots().phase, Phase::Trusting);
    plane.apply(STRICT, false, false).await;
    assert_eq!(sidecar.take_epoch(None).await, number + 2);
    let following = tokio::spawn({
        let plane = plane.clone();
        async move { plane.rotate(true).await }
    });
    sidecar.take_epoch(None).await;
    let shown = plane.shows(|shown| shown["step"] == "Issue" && shown["waiting"] == serde_json::json!(["shop/catalog"])).await;
    assert_eq!((&shown["roots"][0]["state"], &shown["roots"][1]["state"]), (&"Issuing".into(), &"Former".into()), "{shown}");
    folders.authority.note("catalog", "2");
    uses(&reporter, "2").await;
    sidecar.take_epoch(None).await;
    let (result, ok) = following.await.unwrap();
    assert!(ok && result["joined"] == true && result["rotated"] == true, "{result}");
    let epochs = plane.get("epochs").await.unwrap();
    let steps: Vec<_> = epochs.as_array().unwrap().iter().filter(|epoch| epoch["objects"][0]["kind"] == "Root").collect();
    let results: Vec<_> = steps.iter().map(|epoch| epoch["objects"][0]["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["deleted", "changed", "created"], "{epochs}");
    Arc::into_inner(plane).unwrap().stop().await;
}

#[tokio::test]
async fn a_leaf_that_another_replica_issued_counts_by_its_root() {
    // Aim: after a change of the holder in the middle of a rotation, a proxy that comes back with the former holder's leaf below the next
    // root is not waited for until it renews, hours later: no book of ours has it, its chain tells. One below the former root is waited for.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (mut sidecar, reporter) = catalog(&folders, &plane).await;
    plane.rotate(false).await;
    sidecar.take_epoch(None).await;
    let waits = |shown: &serde_json::Value| shown["step"] == "Issue" && shown["waiting"] == serde_json::json!(["shop/catalog"]);
    plane.shows(waits).await;
    drop((sidecar, reporter));
    deserted(&plane).await;
    let mut former = plane.sidecar("catalog", "catalog").await;
    former.take_epoch(None).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(waits(&plane.shows(|_| true).await));
    drop(former);
    deserted(&plane).await;
    let channel = plane.tls_with(Some(folders.authority.next_leaf(CATALOG.0, CATALOG.1))).await.unwrap();
    let mut sidecar = Sidecar::open(channel, "shop", "catalog", "catalog").await.unwrap();
    sidecar.take_epoch(None).await;
    plane.shows(|shown| shown["phase"] == "Steady").await;
    sidecar.take_epoch(None).await;
    plane.shows(|shown| shown["step"].is_null()).await;
    plane.stop().await;
}

#[tokio::test]
async fn whoever_is_away_when_it_begins_is_waited_for() {
    // Aim: a sidecar whose stream is broken at that moment holds the first step up, however long the control plane has been up before, and
    // follows when it is back; whoever is away for long is given up.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (sidecar, reporter) = catalog(&folders, &plane).await;
    // The first look may have begun before the sidecar came.
    for _ in 0..2 {
        let before = folders.authority.looks.load(Ordering::SeqCst);
        later(AWAY_GRACE).await;
        while folders.authority.looks.load(Ordering::SeqCst) == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop((sidecar, reporter));
    deserted(&plane).await;
    plane.rotate(false).await;
    plane.shows(|shown| shown["step"] == "Trust" && shown["waiting"] == serde_json::json!(["shop/catalog"])).await;
    let mut sidecar = plane.sidecar("catalog", "catalog").await;
    sidecar.take_epoch(None).await;
    plane.shows(|shown| shown["step"] == "Issue").await;
    drop(sidecar);
    deserted(&plane).await;
    // It is given up that long after the look that missed it, not after it went.
    let mut over = false;
    for _ in 0..50 {
        later(AWAY_GRACE).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let shown = plane.shows(|_| true).await;
        over = shown["phase"] == "Steady" && shown["step"].is_null();
        if over {
            break;
        }
    }
    assert!(over);
    plane.stop().await;
}

#[tokio::test]
async fn a_step_lasts_a_moment_where_somebody_follows_the_bundles_only() {
    // Aim: whoever has no stream of configuration has heard of each step before the next one is taken.
    let folders = Folders::new();
    let plane = folders.start().await;
    folders.authority.listeners.store(1, Ordering::SeqCst);
    for (step, next) in [("Trust", "Issue"), ("Issue", "Drop")] {
        if step == "Trust" {
            plane.rotate(false).await;
        }
        let there = |shown: &serde_json::Value| shown["step"] == step && shown["waiting"] == serde_json::json!([]);
        plane.shows(there).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(there(&plane.shows(|_| true).await));
        later(LISTENED).await;
        plane.shows(|shown| shown["step"] == next || shown["phase"] == "Steady").await;
    }
    plane.stop().await;
}

/// A Gateway and a Workload of one name and one account.
const PUBLIC: &str = "
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: public, namespace: shop}
spec: {serviceAccount: public, command: [sleep, '1'], ports: [{name: http, port: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: 8081, protocol: HTTP}]}
";

#[tokio::test]
async fn a_gateway_and_an_instance_of_one_name_are_two() {
    // Aim: both keep their reports, an epoch waits for both, and each of them is named.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (applied, ok) = plane.apply(PUBLIC, false, false).await;
    assert!(ok, "{applied}");
    let leaf = Some(("spiffe://cluster.local/ns/shop/sa/public", "public"));
    let mut sidecar = plane.sidecar("public", "public").await;
    let mut edge = Sidecar::open_as(plane.tls(leaf).await, "proxy", "edge/shop/public", "shop/public").await.unwrap();
    let reporters = [
        Reporter::open(plane.tls(leaf).await, "sidecar/shop/public", "public").await,
        Reporter::open(plane.tls(leaf).await, "edge/shop/public", "public").await,
    ];
    let waiting = async || {
        let epochs = plane.get("epochs").await.unwrap();
        let waiting = epochs[0]["proxies"]["waiting"].as_array().unwrap().clone();
        waiting.into_iter().filter(|name| name.as_str().unwrap().ends_with("/public")).collect::<Vec<_>>()
    };
    assert_eq!(waiting().await, ["edge/shop/public", "shop/public"]);
    sidecar.take_epoch(None).await;
    let told = async |wanted: &[&str]| {
        while waiting().await != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told(&["edge/shop/public"])).await.unwrap();
    edge.take_epoch(None).await;
    tokio::time::timeout(Duration::from_secs(10), told(&[])).await.unwrap();
    for mut reporter in reporters {
        let ended = tokio::time::timeout(Duration::from_millis(50), reporter.commands.message()).await;
        assert!(ended.is_err(), "{ended:?}");
    }
    plane.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_own_leaf_is_renewed_by_the_wall_clock() {
    // Aim: a machine that slept, or whose clock was set, has a control plane with a leaf that holds within a minute, whatever the
    // monotonic clock says; nothing is renewed that needs no renewal, and a clock that goes back a little is no reason.
    let ahead_secs = Arc::new(AtomicI64::new(0));
    let (by, start) = (ahead_secs.clone(), tokio::time::Instant::now());
    let clock = Clock::new(move || {
        let now = UNIX_EPOCH + Duration::from_secs(1_900_000_000) + start.elapsed();
        let by = by.load(Ordering::SeqCst);
        let set = Duration::from_secs(by.unsigned_abs());
        if by < 0 { now - set } else { now + set }
    });
    let authority = Arc::new(TestAuthority::new());
    *authority.clock.lock().unwrap() = Some(clock.clone());
    let shared: SharedAuthority = authority.clone();
    let (_, seating, lasts) = tls::config(&shared, tls::CertificateNames::default(), &clock).unwrap();
    let stop = CancellationToken::new();
    let keep = tokio::spawn(seating.keep(lasts, stop.clone()));
    let minute = Duration::from_secs(60);
    for (by_secs, sleep, renewals, case) in [
        (0, minute, 0, "nothing has happened"),
        (17 * 3600, minute, 1, "a sleep past the renewal point"),
        (17 * 3600, minute, 0, "and once is enough"),
        (47 * 3600, minute, 1, "a sleep past the end"),
        (47 * 3600 - 90, minute, 0, "a clock that was corrected a little"),
        (45 * 3600, minute, 1, "one that went back: the leaf of now has not begun"),
        (45 * 3600, SEAT_LIFE * 2 / 3, 1, "and no step at all"),
        (45 * 3600 + 13 * 3600 + 1800, SEAT_LIFE * 2 / 3, 1, "one that was set forward by less than is left"),
    ] {
        let before = authority.seats.load(Ordering::SeqCst);
        ahead_secs.store(by_secs, Ordering::SeqCst);
        tokio::time::sleep(sleep).await;
        assert_eq!(authority.seats.load(Ordering::SeqCst) - before, renewals, "{case}");
    }
    stop.cancel();
    keep.await.unwrap();
}

#[tokio::test]
async fn a_leaf_below_a_retired_root_opens_the_certificate_call_only() {
    // Aim: whoever was away comes through the door with its old leaf, and is told to renew it first; one below the root of now is served.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (result, ok) = plane.rotate(true).await;
    assert!(ok && result["rotated"] == true, "nobody has to be waited for: {result}");
    let channel = plane.tls(Some(CATALOG)).await;
    let refused = Sidecar::open(channel, "shop", "catalog", "catalog").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("retired"), "{refused}");
    let fresh = plane.tls_with(Some(folders.authority.next_leaf(CATALOG.0, CATALOG.1))).await.unwrap();
    Sidecar::open(fresh, "shop", "catalog", "catalog").await.unwrap().take_epoch(None).await;
    plane.stop().await;
}
