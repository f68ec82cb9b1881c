//! Where attempts go, and how often.

use tokio::time::Instant;

use super::*;
use crate::ground::limits::TICK;

const ASK: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn one_place_is_dialled_once() {
    // Aim: who dials into a black hole is held for one connect timeout per place there is, bytes and requests, inside the mesh and outside.
    run(|| async {
        for (endpoints, places) in [(vec![SERVER], 1), (vec![SERVER, TWIN], 2)] {
            let world = World::new(Setup { endpoints: endpoints.clone(), ..Setup::default() });
            world.client_wires.silent.lock().extend(endpoints.iter().map(|address| address.parse::<SocketAddr>().unwrap()));
            let mut client = world.dial(SERVICE);
            let began = Instant::now();
            write(&mut client, ASK).await;
            assert!(head(&mut client).await.contains("x-meshwright-reason: connect_timeout\r\n"));
            assert!(began.elapsed() < Duration::from_secs(places) + TICK, "{:?}", began.elapsed());
        }
        let world = World::new(Setup::default());
        let outside = "192.0.2.1:443";
        world.client_wires.silent.lock().insert(outside.parse().unwrap());
        let began = Instant::now();
        assert_eq!(rest(&mut world.dial(outside)).await, "");
        // One connect timeout of 5 s, and what the control plane is asked before.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
}

#[test]
fn a_kept_connection_that_proved_dead_sends_its_request_elsewhere() {
    // Aim: the replay of what was never written avoids where that happened while there is another place, and dials it anew where there is none.
    run(|| async {
        let (here, there) = ("10.77.0.2:9000", "10.77.0.3:9000");
        for endpoints in [vec![here, there], vec![here]] {
            let others = endpoints.len() > 1;
            let mut world = World::new(Setup { endpoints, meshed: false, ..Setup::default() });
            let mut client = world.dial(SERVICE);
            let mut last = None;
            write(&mut client, ASK).await;
            for _ in 0..30 {
                let (address, mut application) = world.applications.recv().await.unwrap();
                assert!(!others || last != Some(address), "sent to {address} again");
                head(&mut application).await;
                write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
                last = Some(address);
                // The next request is on its way before this is seen.
                write(&mut client, ASK).await;
                drop(application);
            }
        }
    });
}
