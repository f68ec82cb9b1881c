//! What `explain` says is what happens.

use engine::decide::Version;
use engine::explain::{self, Explanation};
use engine::model::{MtlsMode, Protocol};
use http::{HeaderValue, Request};
use proptest::prelude::*;

use super::*;
use crate::http::Hop;
use crate::{road::gateway, status::inspect};

const OUTSIDE: &str = "192.0.2.1:80";
const UNKNOWN: &str = "10.96.0.9:80";

/// What a client meets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its request, or its bytes, reach an application.
    Reached,
    /// Somebody on the way answers: status, and the reason where it arrives.
    Answered(u16, Option<String>),
    /// The connection ends without a byte.
    Closed,
}

impl Outcome {
    /// The mesh's own answer, if it makes one.
    fn of(explanation: &Explanation) -> Option<Self> {
        let reply = explanation.reply.as_ref()?;
        let reason = reply.reason.map(str::to_owned);
        Some(if reply.status == 0 { Self::Closed } else { Self::Answered(reply.status, reason) })
    }
}

/// Which way a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the application beside a sidecar, to this address.
    Call(&'static str),
    /// To the server's sidecar, from outside the mesh.
    Server,
    /// To the Gateway's port.
    Edge(u16),
}

#[derive(Clone, Debug)]
struct Ask {
    path: &'static str,
    hosts: usize,
}

impl Ask {
    fn text(&self) -> String {
        format!("GET {} HTTP/1.1\r\n{}\r\n", self.path, "host: a\r\n".repeat(self.hosts))
    }

    fn explained(&self, at: Hop, explain: impl FnOnce(&explain::Asked<'_>) -> Explanation) -> Explanation {
        let mut parts = Request::get(self.path).body(()).unwrap().into_parts().0;
        parts.version = http::Version::HTTP_11;
        for _ in 0..self.hosts {
            parts.headers.append("host", HeaderValue::from_static("a"));
        }
        explain(&inspect::asked(Version::Http1, &mut parts, (at, self.hosts), engine::Moment::default()))
    }
}

/// What `explain` says will happen.
fn foretold(world: &World, way: Way, ask: &Ask) -> Outcome {
    let (client, server) = (world.client_means.snapshots.load(), world.server_means.snapshots.load());
    let hop = |peer: Option<&str>| if peer.is_some() { Hop::Inner } else { Hop::First };
    let at_server = |peer: Option<&str>| ask.explained(hop(peer), |asked| explain::inbound(&server, 8080, peer, asked));
    let caller = match way {
        Way::Server => return Outcome::of(&at_server(None)).unwrap_or(Outcome::Reached),
        Way::Call(destination) => ask.explained(Hop::First, |asked| explain::outbound(&client, destination.parse().unwrap(), asked)),
        Way::Edge(port) => ask.explained(Hop::First, |asked| explain::edge(&client, port, asked)),
    };
    if let Some(outcome) = Outcome::of(&caller) {
        return outcome;
    }
    let Some(endpoint) = caller.endpoints.first() else { return Outcome::Reached };
    let peer = endpoint.identity.as_ref().map(|_| FRONTEND);
    match Outcome::of(&at_server(peer)) {
        None => Outcome::Reached,
        // A request learns that its server hung up.
        Some(Outcome::Closed) if caller.route.is_some() => Outcome::Answered(503, Some("upstream_reset".into())),
        // Only a peer of the mesh is believed when it says why.
        Some(Outcome::Answered(status, _)) if peer.is_none() && caller.route.is_some() => Outcome::Answered(status, None),
        Some(outcome) => outcome,
    }
}

/// What happens.
async fn met(world: &mut World, way: Way, ask: &Ask) -> Outcome {
    let mut client = match way {
        Way::Call(destination) => world.dial(destination),
        Way::Server => world.dial_server(),
        Way::Edge(port) => {
            let (near, far) = pipe();
            let arrival = Arrival { socket: far, peer: CLIENT.parse().unwrap(), destination: SERVICE.parse().unwrap() };
            serve(&world.client, Direction::Outbound, gateway::serve_connection(arrival, port, Rc::clone(&world.client)));
            near
        }
    };
    write(&mut client, &ask.text()).await;
    let reached = async {
        loop {
            // An upstream that was opened on suspicion hears nothing.
            let (_, mut application) = world.applications.recv().await.expect("a connection");
            let mut byte = [0];
            if application.read(&mut byte).await.is_ok_and(|count| count == 1) {
                return application;
            }
        }
    };
    let mut byte = [0];
    tokio::select! {
        _ = reached => Outcome::Reached,
        count = client.read(&mut byte) => match count {
            Ok(1) => {
                let answer = head(&mut client).await;
                let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
                let reason = answer.lines().find_map(|line| line.strip_prefix("x-meshwright-reason: "));
                Outcome::Answered(status, reason.map(str::to_owned))
            }
            _ => Outcome::Closed,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]
    /// Aim: over any declaration, mode, way in and head, the road does what `explain` says of it.
    #[test]
    fn the_road_does_what_explain_says(
        mode in prop_oneof![Just(MtlsMode::Strict), Just(MtlsMode::Permissive), Just(MtlsMode::Disabled)],
        protocol in prop_oneof![
            Just(Protocol::Http), Just(Protocol::Http1), Just(Protocol::Tcp), Just(Protocol::Auto)
        ],
        (meshed, outside_denied, ready) in any::<(bool, bool, bool)>(),
        way in prop_oneof![
            4 => Just(Way::Call(SERVICE)),
            1 => Just(Way::Call(UNKNOWN)),
            1 => Just(Way::Call(OUTSIDE)),
            3 => Just(Way::Server),
            2 => Just(Way::Edge(80)),
            1 => Just(Way::Edge(81)),
        ],
        (path, hosts) in (prop_oneof![2 => Just("/"), 1 => Just("/nowhere")], prop_oneof![Just(0_usize), Just(1), Just(1), Just(2)]),
    ) {
        // The control plane tells nobody to speak mesh TLS to a port that does not end it.
        let meshed = meshed && mode != MtlsMode::Disabled;
        let endpoints = if ready { vec![SERVER] } else { Vec::new() };
        let setup = Setup { mode, protocol, meshed, outside_denied, endpoints, ..Setup::default() };
        let ask = Ask { path, hosts };
        run(|| async move {
            let mut world = World::new(setup);
            let foretold = foretold(&world, way, &ask);
            assert_eq!(met(&mut world, way, &ask).await, foretold, "{way:?} {ask:?}");
        });
    }
}
