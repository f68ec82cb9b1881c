use std::sync::Arc;
use std::time::Duration;

use engine::model::{Outbound, Protocol, Settings, Snapshot};
use tokio::time::Instant;

use super::*;

fn settings(denied: bool) -> Arc<Settings> {
    Arc::new(Settings { outside_mesh_denied: denied, ..testing::settings() })
}

fn with(addresses: &[&str], denied: bool) -> Arc<Snapshot> {
    let outbound = addresses.iter().map(|address| {
        let outbound = Outbound { name: (*address).into(), protocol: Protocol::Tcp, http: None, tcp: None, tls: None, content: 0 };
        (address.parse().unwrap(), Arc::new(outbound))
    });
    Arc::new(Snapshot { settings: Some(settings(denied)), outbound: outbound.collect(), ..Snapshot::default() })
}

/// Aim: a first use asks once, waits for the swap and is answered by it; a later one waits for nothing.
#[tokio::test(start_paused = true)]
async fn a_first_use_is_fetched() {
    let snapshots = Snapshots::default();
    snapshots.publish(with(&[], false));
    snapshots.wanted().connected(true);
    let address = "10.96.0.1:80".parse().unwrap();
    let asking = tokio::spawn({
        let snapshots = snapshots.clone();
        async move { snapshots.outbound(address).await }
    });
    snapshots.wanted().changed().await;
    assert_eq!(snapshots.wanted().take().subscribe, [Want::Outbound(address)]);
    snapshots.publish(with(&["10.96.0.1:80"], false));
    assert!(matches!(asking.await.unwrap(), Lookup::Found(_)));
    assert!(matches!(snapshots.outbound(address).await, Lookup::Found(_)));
    assert_eq!(snapshots.wanted().take(), WantedChange::default());
}

/// Aim: what an unknown address means, by its range, the mesh's policy and whether the control plane answers.
#[tokio::test(start_paused = true)]
async fn unknown_addresses_are_judged() {
    for (address, denied, connected, absent, expected, waits) in [
        ("192.0.2.1:80", false, true, true, "Outside", false),
        ("192.0.2.1:80", true, true, true, "Denied", false),
        ("10.96.9.9:80", false, true, true, "Pending", false),
        ("192.0.2.1:80", false, false, false, "Outside", false),
        ("10.96.9.9:80", false, false, false, "Pending", true),
        ("192.0.2.1:80", false, true, false, "Outside", true),
        ("10.96.9.9:80", false, false, true, "Pending", false),
    ] {
        let snapshots = Snapshots::default();
        snapshots.publish(with(&[], denied));
        snapshots.wanted().connected(connected);
        let address = address.parse().unwrap();
        if absent {
            snapshots.wanted().ask(&Want::Outbound(address), Instant::now());
            snapshots.wanted().answered(&Want::Outbound(address), false);
        }
        let began = Instant::now();
        let lookup = snapshots.outbound(address).await;
        assert!(format!("{lookup:?}").starts_with(expected), "{address} {lookup:?}, expected {expected}");
        assert_eq!(began.elapsed() >= FETCH_WAIT, waits, "{address} {expected}");
    }
}

/// Aim: a name that the control plane has denied stays denied while it is away: resolvers that search through domains ask for such
/// names on their way to the right one, and some give up at anything else.
#[tokio::test(start_paused = true)]
async fn what_does_not_exist_is_remembered_without_the_control_plane() {
    let snapshots = Snapshots::default();
    snapshots.publish(with(&[], false));
    let host = "catalog.shop.shop.svc.cluster.local";
    snapshots.wanted().connected(true);
    snapshots.wanted().ask(&Want::Name(host.into()), Instant::now());
    snapshots.wanted().answered(&Want::Name(host.into()), false);
    snapshots.wanted().connected(false);
    let began = Instant::now();
    assert!(matches!(snapshots.name(host, false).await, NameLookup::Absent));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// Aim: a port that the mesh does not serve is found, and forgotten as soon as what does not exist; declared later it is held for long.
#[tokio::test(start_paused = true)]
async fn what_leads_nowhere_is_forgotten_soon() {
    let snapshots = Snapshots::default();
    snapshots.publish(with(&["10.96.0.1:81"], false));
    snapshots.wanted().connected(true);
    let want = Want::Outbound("10.96.0.1:81".parse().unwrap());
    snapshots.wanted().ask(&want, Instant::now());
    snapshots.wanted().answered(&want, true);
    assert!(matches!(snapshots.outbound("10.96.0.1:81".parse().unwrap()).await, Lookup::Found(found) if found.leads_nowhere()));
    snapshots.wanted().expire(Instant::now() + IDLE_ABSENT);
    assert_eq!(snapshots.wanted().take().unsubscribe, std::slice::from_ref(&want));
    snapshots.wanted().ask(&want, Instant::now());
    snapshots.wanted().answered(&want, false);
    snapshots.wanted().answered(&want, true);
    snapshots.wanted().expire(Instant::now() + IDLE_ABSENT);
    assert_eq!(snapshots.wanted().len(), 1);
}

/// Aim: a name that is asked for again just when it is being forgotten is subscribed anew, because what was said of it is forgotten;
/// the control plane must say it again.
#[tokio::test(start_paused = true)]
async fn what_is_forgotten_and_asked_for_at_once_is_asked_anew() {
    let wanted = Wanted::default();
    wanted.connected(true);
    let (want, now) = (Want::Name("gone".into()), Instant::now());
    wanted.ask(&want, now);
    wanted.answered(&want, false);
    wanted.take();
    wanted.expire(now + IDLE_ABSENT);
    assert_eq!(wanted.ask(&want, now + IDLE_ABSENT), WantState::Awaited);
    assert_eq!(wanted.take(), WantedChange { subscribe: vec![want.clone()], unsubscribe: vec![want] });
}

/// Aim: a listener that came along with a name outlives that name while it is in use, and only then.
#[tokio::test(start_paused = true)]
async fn a_listener_in_use_outlives_the_name_that_brought_it() {
    let snapshots = Snapshots::default();
    snapshots.publish(with(&["10.96.0.1:80", "10.96.0.1:81"], false));
    let wanted = snapshots.wanted();
    wanted.connected(true);
    let (name, begin) = (Want::Name("web".into()), Instant::now());
    wanted.ask(&name, begin);
    wanted.answered(&name, true);
    let used = Want::Outbound("10.96.0.1:80".parse().unwrap());
    assert!(matches!(snapshots.outbound("10.96.0.1:81".parse().unwrap()).await, Lookup::Found(_)));
    assert_eq!(wanted.all(), std::slice::from_ref(&name), "the name stands for what came with it");
    tokio::time::advance(IDLE / 2).await;
    wanted.used(&used, Instant::now());
    wanted.expire(begin + IDLE);
    assert_eq!(wanted.take(), WantedChange { subscribe: vec![used.clone()], unsubscribe: vec![name] });
    assert_eq!(wanted.all(), [used]);
}

/// Aim: before the first configuration nothing passes, even outside the mesh's ranges.
#[tokio::test(start_paused = true)]
async fn nothing_passes_before_the_first_configuration() {
    let snapshots = Snapshots::default();
    assert!(matches!(snapshots.outbound("192.0.2.1:80".parse().unwrap()).await, Lookup::Pending));
}

/// Aim: idle names are unsubscribed, absent ones sooner, used ones not; and the bound holds.
#[tokio::test(start_paused = true)]
async fn names_expire_and_are_bounded() {
    let wanted = Wanted::default();
    wanted.connected(true);
    let want = |port: usize| Want::Name(format!("name{port}").into());
    let now = Instant::now();
    wanted.ask(&want(1), now);
    wanted.ask(&want(2), now);
    wanted.answered(&want(2), false);
    assert_eq!(wanted.ask(&want(2), now), WantState::Absent);
    wanted.take();
    wanted.expire(now + IDLE_ABSENT);
    assert_eq!(wanted.take().unsubscribe, [want(2)]);
    wanted.used(&want(1), now + Duration::from_secs(1));
    wanted.expire(now + IDLE);
    assert_eq!(wanted.len(), 1);
    for port in 2..=NAMES_MAX {
        wanted.ask(&want(port), now);
    }
    assert_eq!(wanted.ask(&want(0), now), WantState::Refused);
    wanted.answered(&want(7), false);
    assert_eq!(wanted.ask(&want(0), now), WantState::Awaited);
    assert_eq!(wanted.len(), NAMES_MAX);
}
