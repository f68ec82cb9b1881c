//! Paths that a router, a judge and an application could read in different ways: all three see the same one.

use engine::model::{Action, Edge, Match, PathMatch, Port, RouteTable, Rule, RuleSource};
use proto::mesh::authorization_policy::Action as Does;

use super::*;
use crate::tests::authorized::{below, policy, staged};

/// What becomes of a path.
enum Becomes {
    /// Matched, judged and sent on as this.
    Path(&'static str),
    /// 400, and nobody sees it.
    Refused,
    /// The same in HTTP/1.1; over HTTP/2 the library cuts it to this before anybody sees it.
    Cut(&'static str),
}
use Becomes::{Cut, Path, Refused};

const CASES: [(&str, Becomes); 45] = [
    ("/open", Path("/open")),
    ("/secret", Path("/secret")),
    ("/open/../secret", Path("/secret")),
    ("/open/..", Path("/")),
    ("/open/./../secret/.", Path("/secret/")),
    ("/open/%2e%2e/secret", Path("/secret")),
    ("/open/%2E%2e/secret", Path("/secret")),
    ("/open/.%2e/secret", Path("/secret")),
    ("/open/%2e./secret", Path("/secret")),
    ("/%2e/secret", Path("/secret")),
    ("/secret/../open", Path("/open")),
    ("/secret/%2e%2e/open", Path("/open")),
    ("/..", Refused),
    ("/../secret", Refused),
    ("/%2e%2e/secret", Refused),
    ("/open/../../secret", Refused),
    ("/open/%2e%2e/%2e%2e/secret", Refused),
    // Encoded twice: what is decoded once has no dots, and nobody here decodes.
    ("/open/%252e%252e/secret", Path("/open/%252e%252e/secret")),
    ("/secret/%252e%252e/open", Path("/secret/%252e%252e/open")),
    ("//secret", Path("//secret")),
    ("/open//../secret", Path("/open/secret")),
    ("/open//..//secret", Path("/open//secret")),
    ("///secret", Path("///secret")),
    ("/%2fsecret", Path("/%2fsecret")),
    ("/%2Fsecret", Path("/%2Fsecret")),
    ("/open/..%2fsecret", Path("/open/..%2fsecret")),
    ("/open%2f..%2fsecret", Path("/open%2f..%2fsecret")),
    ("/open%2f../secret", Path("/open%2f../secret")),
    ("/open/..%5csecret", Path("/open/..%5csecret")),
    ("/open%5c..%5csecret", Path("/open%5c..%5csecret")),
    ("/open/..\\secret", Path("/open/..\\secret")),
    ("\\secret", Refused),
    ("/secret;a=b", Path("/secret;a=b")),
    ("/open/..;/secret", Path("/open/..;/secret")),
    ("/open/..;a=b/secret", Path("/open/..;a=b/secret")),
    ("/open/%c0%ae%c0%ae/secret", Path("/open/%c0%ae%c0%ae/secret")),
    ("/%c0%afsecret", Path("/%c0%afsecret")),
    ("/SECRET", Path("/SECRET")),
    ("/%73ecret", Path("/%73ecret")),
    ("/secret%00", Path("/secret%00")),
    ("/secret%20", Path("/secret%20")),
    ("/open#/../secret", Cut("/open")),
    ("/open\0/secret", Refused),
    ("/open /secret", Refused),
    ("/open?/../secret", Path("/open?/../secret")),
];

/// What a strict reader of the path that arrives takes for the secret.
fn is_secret(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or(target);
    path == "/secret" || path.starts_with("/secret/")
}

/// Two rules, whose names the metrics tell.
fn table(before: &RouteTable) -> Arc<RouteTable> {
    let Action::Forward(forward) = &before.hosts[0].rules[0].action else { panic!("a rule that forwards") };
    let rule = |id, name: &str, path| {
        let source = RuleSource {
            kind: "HTTPRoute".into(),
            namespace: "shop".into(),
            name: name.into(),
            rule: "0".into(),
            label: format!("shop/{name}").into(),
        };
        let matches = Arc::new(Match { path, ..Match::default() });
        Arc::new(Rule { id, source, matches, action: Action::Forward(Arc::clone(forward)) })
    };
    let rules = vec![rule(11, "secret", PathMatch::Prefix("/secret".into())), rule(12, "open", PathMatch::Any)];
    Arc::new(RouteTable::everywhere("shop/catalog:80", rules, 99))
}

/// The world with that table wherever a request is decided on.
fn decided(door: Door) -> World {
    let world = door.world(Protocol::Http1);
    let mut client = client_snapshot(&world.setup, 2);
    let outbound = Arc::clone(&client.outbound[&SERVICE.parse().unwrap()]);
    let http = outbound.http.as_deref().map(table);
    let outbound = Arc::new(Outbound { name: "out".into(), protocol: outbound.protocol, http, tcp: None, tls: None, content: 99 });
    if let Some(table) = &outbound.http {
        let edge = Edge { name: "edge/80".into(), port: Port::Http(Arc::clone(table)), clients: Arc::default(), content: 99 };
        client.edges.insert(80, Arc::new(edge));
    }
    client.outbound.insert(SERVICE.parse().unwrap(), outbound);
    world.client_means.snapshots.publish(Arc::new(client));
    let mut server = server_snapshot(&world.setup, 2);
    let inbound = server.inbound.clone().unwrap();
    let port = |port: &InboundPort| {
        let (service_namespace, service) = ("shop".into(), "catalog".into());
        let InboundPort { mode, protocol, idle_timeout, .. } = *port;
        Arc::new(InboundPort { mode, protocol, http: table(&port.http), service_namespace, service, idle_timeout })
    };
    let ports = inbound.ports.iter().map(|(number, at)| (*number, port(at))).collect();
    server.inbound = Some(Arc::new(Inbound { ports, other: port(&inbound.other), content: 2 }));
    // It decides nothing and tells what it holds for.
    server.authorization = staged(vec![policy("secret", Does::Audit, vec![below("/secret")])]);
    world.server_means.snapshots.publish(Arc::new(server));
    world
}

/// How often each of the two rules has matched, by the metrics of one proxy.
fn matched(metrics: &str) -> [u32; 2] {
    ["secret", "open"].map(|name| {
        let label = format!("route=\"shop/{name}\"");
        let lines = metrics.lines().filter(|line| line.starts_with("meshwright_requests_total") && line.contains(&label));
        lines.filter_map(|line| line.split('}').nth(1)?.split_whitespace().next()?.parse::<u32>().ok()).sum()
    })
}

/// How often the policy for the secret has held.
fn audited(metrics: &str) -> u32 {
    let lines = metrics.lines().filter(|line| line.starts_with("meshwright_policy_rulings_total") && line.contains("shop/secret"));
    lines.filter_map(|line| line.split('}').nth(1)?.split_whitespace().next()?.parse::<u32>().ok()).sum()
}

/// Sends a request for a path, in HTTP/1.1 or by hand in HTTP/2.
async fn ask(client: &mut Socket, path: &str, http2: bool) -> bool {
    if http2 {
        use super::frames::*;
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)];
        let start = [
            PREFACE,
            &frame(SETTINGS, 0, 0, &[]),
            &frame(SETTINGS, 1, 0, &[]),
            &frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields)),
        ];
        client.write_all(&start.concat()).await.unwrap();
        let (frames, closed) = heard(client).await;
        return end(&frames, closed) == End::Status(200);
    }
    write(client, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    hear(client).await.text.starts_with("HTTP/1.1 200 ")
}

/// Sends a path and compares what everybody saw.
async fn same(door: Door, (world, seen): (&World, &Seen), (path, becomes): (&str, &Becomes), http2: bool) -> Judged {
    let counts = || [world.server_means.telemetry.render(), world.client_means.telemetry.render()].map(|metrics| matched(&metrics));
    let judged = || audited(&world.server_means.telemetry.render());
    let (before, judged_before) = (counts(), judged());
    let passed = ask(&mut door.dial(world), path, http2).await;
    let read = strictly(seen)?;
    let targets: Vec<&str> = read.iter().map(Message::target).collect();
    let after = counts();
    let [inbound, outbound] = [0, 1].map(|proxy| [0, 1].map(|rule| after[proxy][rule] - before[proxy][rule]));
    let holds = judged() - judged_before;
    let what = || format!("passed {passed}, reached {targets:?}, rules {inbound:?} {outbound:?}, policy {holds}");
    let wanted = match becomes {
        Path(wanted) => wanted,
        Cut(wanted) if http2 => wanted,
        Refused | Cut(_) => return check(!passed && targets.is_empty(), what),
    };
    check(passed && targets == [*wanted], what)?;
    let rule = if is_secret(wanted) { [1, 0] } else { [0, 1] };
    check(inbound == rule && (door == Door::Inbound || outbound == rule), what)?;
    check(holds == rule[0], what)
}

#[test]
fn everybody_sees_the_same_path() {
    // Aim: contract §4: routing on both proxies, the policies and the application see one path, whatever was written; what has none is refused.
    for door in Door::ALL {
        run(|| async move {
            let mut world = decided(door);
            let seen = record(&mut world, DONE);
            let mut verdicts = Verdicts::default();
            for (path, becomes) in &CASES {
                for http2 in [false, true] {
                    let judged = same(door, (&world, &seen), (path, becomes), http2).await;
                    verdicts.add(judged.map_err(|wrong| format!("{door:?} {path:?}, HTTP/{}: {wrong}", 1 + u8::from(http2))));
                }
            }
            // The absolute form is no way around.
            let absolute = same(door, (&world, &seen), ("http://a/open/%2e%2e/secret", &Path("/secret")), false).await;
            verdicts.add(absolute.map_err(|wrong| format!("{door:?} absolute: {wrong}")));
        });
    }
}
