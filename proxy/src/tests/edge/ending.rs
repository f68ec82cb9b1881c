//! The end of an edge as its clients, and a balancer in front of it, see it.

use engine::model::{ClientPolicy, ClientRules, Ending, Http2Rules};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, sleep};

use super::client_policy::under;
use super::*;
use crate::ground::drain::DrainStage;
use crate::status::lifecycle::Lifecycle;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// A client whose request is under way, and the application that has it.
async fn asking(world: &mut World) -> (Socket, Socket) {
    let mut client = world.knock();
    write(&mut client, GET).await;
    let mut application = world.application().await;
    head(&mut application).await;
    (client, application)
}

#[test]
fn an_end_goes_in_order() {
    // Aim: readiness goes at once; for five seconds clients are let in and served as before; then doors close and answers say so; twenty seconds later the
    // drain is over, and what is left is the worker's to cut. Nobody's answer is lost before.
    run(|| async {
        let mut world = World::new(Setup::default());
        let ending = Ending { readiness_grace: Duration::from_secs(5), go_away_grace: Some(Duration::from_secs(20)) };
        under(&world, ClientPolicy { ending, ..ClientPolicy::default() });
        let snapshots = world.client_means.snapshots.clone();
        let lifecycle = Lifecycle::new(snapshots, Arc::clone(&world.credentials), Arc::clone(&world.trust[0]));
        lifecycle.bound();
        assert_eq!(lifecycle.ready(), Ok(()));
        let (mut endless, mut its_application) = asking(&mut world).await;
        let (shared, life) = (Rc::clone(&world.client), lifecycle.clone());
        let drain = async move |bound| worker::drain(&shared, bound).await;
        let ended = tokio::task::spawn_local(async move { life.end_in_order(Duration::from_secs(3600), drain).await });
        lifecycle.leave();
        let began = Instant::now();
        let stage = |world: &World, stage| world.client.drain.outbound.reached(stage);
        for second in 0..5 {
            sleep(Duration::from_millis(990)).await;
            assert_eq!((lifecycle.ready(), stage(&world, DrainStage::Told)), (Err("draining"), false), "{second}");
            let (mut client, mut application) = asking(&mut world).await;
            write(&mut application, OK).await;
            assert!(!head(&mut client).await.contains("connection: close"), "{second}");
        }
        let (mut late, mut application) = asking(&mut world).await;
        sleep(Duration::from_millis(200)).await;
        assert!(stage(&world, DrainStage::Shut) && lifecycle.closing.is_cancelled());
        write(&mut application, OK).await;
        assert!(head(&mut late).await.contains("connection: close\r\n"));
        assert!(!ended.is_finished());
        ended.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 25);
        assert_eq!(world.client.guests.outbound.open(), 1);
        write(&mut its_application, OK).await;
        assert!(head(&mut endless).await.contains("connection: close\r\n"));
    });
}

#[test]
fn an_end_without_a_policy_is_the_proxys_own() {
    // Aim: where no ClientPolicy says anything doors close at once, and the proxy's own bound holds.
    run(|| async {
        let mut world = World::new(Setup::default());
        let snapshots = world.client_means.snapshots.clone();
        let lifecycle = Lifecycle::new(snapshots, Arc::clone(&world.credentials), Arc::clone(&world.trust[0]));
        let _under_way = asking(&mut world).await;
        let began = Instant::now();
        lifecycle.leave();
        let shared = Rc::clone(&world.client);
        lifecycle.end_in_order(Duration::from_secs(7), async move |bound| worker::drain(&shared, bound).await).await;
        assert_eq!(began.elapsed().as_secs(), 7);
    });
}

fn pinging() -> ClientPolicy {
    let http2 = Http2Rules { ping_every: Some(Duration::from_secs(5)), ..Http2Rules::default() };
    ClientPolicy::of_all(ClientRules { http2, ..ClientRules::default() })
}

#[test]
fn a_client_that_vanished_is_found_out() {
    // Aim: a client that answers no PING is closed ten seconds after it was asked; without the policy it is never asked.
    run(|| async {
        for (policy, wanted) in [(pinging(), true), (ClientPolicy::default(), false)] {
            let world = World::new(Setup::default());
            under(&world, policy);
            let mut client = world.knock();
            let began = Instant::now();
            write(&mut client, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
            let mut heard = Vec::new();
            let all = tokio::time::timeout(Duration::from_secs(60), client.read_to_end(&mut heard)).await;
            assert_eq!(all.is_ok(), wanted);
            // Length 8, kind PING, no flags, stream 0.
            let ping = heard.windows(9).any(|frame| frame == [0, 0, 8, 6, 0, 0, 0, 0, 0]);
            assert_eq!(ping, wanted);
            assert!(!wanted || began.elapsed().as_secs() == 15, "{:?}", began.elapsed());
        }
    });
}

#[test]
fn a_client_that_answers_stays() {
    // Aim: who answers is asked again and again, and served after a minute as at first.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http2, ..Setup::default() });
        under(&world, pinging());
        let mut sender = http2::client(world.knock()).await;
        for _ in 0..2 {
            let calling = tokio::task::spawn_local(sender.send_request(http2::call("/a", "hello")));
            // The one of a minute ago was not kept for so long.
            let application = world.application().await;
            tokio::task::spawn_local(http2::application(application));
            assert_eq!(calling.await.unwrap().unwrap().status(), 200);
            sleep(Duration::from_secs(60)).await;
        }
    });
}
