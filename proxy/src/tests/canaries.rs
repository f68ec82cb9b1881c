//! What is counted of versions of canaries.

use std::time::Duration;

use proto::mesh::{Abort, BackendPolicy, CanaryTraffic, CanaryVersion, Fault, Filters, Mirror, RoutePolicy, abort};

use super::governed::{GET, OK, ONE, answered, play};
use super::resources::{Told, told};
use super::*;

const COPIED: &str = "10.77.9.8:80";
const FAILED: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno";

fn version(candidate: bool) -> Option<CanaryVersion> {
    Some(CanaryVersion { canary: "shop/catalog".into(), run: "r".into(), candidate })
}

/// Everything to a stable version that is counted, copies to the candidate, by that rule.
fn canary(policy: RoutePolicy, copies: u32) -> Told {
    let copy = Mirror { cluster: "shop/m:80".into(), per_million: copies, canary: version(true) };
    let filters = Some(Filters { mirrors: vec![copy], ..Filters::default() });
    let stable = BackendPolicy { filters, canary: version(false) };
    let backends = vec![("shop/a:80", 1, stable, vec![ONE]), ("shop/m:80", 0, BackendPolicy::default(), vec![COPIED])];
    Told { policy, backends, ..Told::default() }
}

fn rows(world: &World) -> Vec<CanaryTraffic> {
    world.client_means.snapshots.load().canaries.rows()
}

/// Requests, failures, and how many have a time, of the stable version.
fn counted(world: &World) -> (u64, u64, u64) {
    let row = rows(world).into_iter().find(|row| !row.candidate).unwrap();
    (row.requests, row.failures, row.duration_buckets.iter().sum())
}

#[test]
fn versions_are_counted_as_their_callers_saw_them() {
    // Aim: an answer counts with its time, a bad one as a failure; what a policy does on the way, and a caller that goes, are nobody's failure; an epoch
    // that leads there again goes on counting, and without one the count is gone.
    run(|| async {
        let (mut world, mut parts) = told(&canary(RoutePolicy::default(), 0));
        let mut client = world.dial(SERVICE);
        for (number, answer) in [OK, FAILED, OK].into_iter().enumerate() {
            write(&mut client, GET).await;
            let (_, _, _kept) = play(&mut world, 0, answer).await;
            answered(&mut client, if answer == FAILED { "503" } else { "200" }).await;
            exactly(&mut client, 2).await;
            drop(_kept);
            assert_eq!(counted(&world).0, number as u64 + 1);
        }
        assert_eq!(counted(&world), (3, 1, 3));
        let live = world.client_means.snapshots.reader().load();
        let abort = Fault { per_million: 1_000_000, abort: Some(Abort { kind: Some(abort::Kind::HttpStatus(503)) }), ..Fault::default() };
        let broken = canary(RoutePolicy { faults: vec![abort], ..RoutePolicy::default() }, 0);
        world.client_means.snapshots.publish(broken.snapshot(&mut parts, &live));
        let mut other = world.dial(SERVICE);
        write(&mut other, GET).await;
        answered(&mut other, "503").await;
        assert_eq!(counted(&world), (3, 1, 3), "a fault is a policy's");
    });
}

#[test]
fn copies_are_counted_without_a_time() {
    // Aim: what becomes of a copy is counted as the candidate's, good or bad, and the request itself as the stable version's.
    run(|| async {
        let (mut world, _) = told(&canary(RoutePolicy::default(), 1_000_000));
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let mut kept = Vec::new();
        for _ in 0..2 {
            let (address, mut application) = world.applications.recv().await.unwrap();
            head(&mut application).await;
            write(&mut application, if address.to_string() == ONE { OK } else { FAILED }).await;
            kept.push(application);
        }
        answered(&mut client, "200").await;
        exactly(&mut client, 2).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let copied = rows(&world).into_iter().find(|row| row.candidate).unwrap();
        assert_eq!((copied.requests, copied.failures, copied.duration_buckets.iter().sum::<u64>()), (1, 1, 0));
        assert_eq!(counted(&world), (1, 0, 1));
    });
}
