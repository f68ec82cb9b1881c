//! Past the mesh, under EgressPolicies.

use std::time::SystemTime;

use engine::decide::Version;
use engine::explain::{self, Asked};
use engine::model::Egress;
use engine::model::build::Parts;
use proto::mesh::{Egress as RawEgress, EgressPolicy, EgressRule, Originate};
use rcgen::SanType;
use rustls::server::ServerConfig;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::http::Hop;
use crate::status::inspect::{self, Time};
use crate::tls::provider;

const ELSEWHERE: &str = "203.0.113.7:443";
const WEB: &str = "203.0.113.7:80";
const MAIL: &str = "203.0.113.7:25";
const RANGE: &str = "198.51.100.1:9000";

fn egress(audit: bool, hosts: &[&str]) -> Arc<Egress> {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let allow = vec![
        EgressRule { hosts, ports: vec![443, 80, 25], ..EgressRule::default() },
        EgressRule { cidrs: vec!["198.51.100.0/24".into()], ..EgressRule::default() },
    ];
    compiled(vec![EgressPolicy { name: "shop/out".into(), audit, allow }])
}

fn compiled(policies: Vec<EgressPolicy>) -> Arc<Egress> {
    let mut parts = Parts::default();
    let any = proto::xds::pack(&RawEgress { policies });
    parts.put(&any.type_url, "egress", "1", &any).unwrap();
    parts.assemble(1, &Snapshot::default()).egress
}

/// Makes the policies live, and has DNS answer two names with one address.
fn under(world: &World, egress: Arc<Egress>) {
    let live = world.client_means.snapshots.load();
    world.client_means.snapshots.publish(Arc::new(Snapshot { epoch: live.epoch + 1, egress, ..Snapshot::clone(&live) }));
    let learned = world.client_means.snapshots.learned();
    for name in ["api.example.com", "evil.example.org"] {
        learned.note(name, &[("203.0.113.7".parse().unwrap(), 60)], Instant::now());
    }
}

fn governed(audit: bool) -> World {
    let world = World::new(Setup::default());
    under(&world, egress(audit, &["*.example.com"]));
    world
}

/// A ClientHello that asks for a name.
fn hello(sni: &str) -> Vec<u8> {
    let block = |content: &[u8]| [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat();
    let name = [&[0][..], &block(sni.as_bytes())].concat();
    let extensions = if sni.is_empty() { Vec::new() } else { [&[0, 0][..], &block(&block(&name))].concat() };
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(block(&extensions));
    let message = [&[1, 0][..], &block(&body)].concat();
    [&[22, 3, 1][..], &block(&message)].concat()
}

/// What was told of calls past the mesh: destination, whether it was cut, how often.
fn listed(world: &World) -> Vec<(String, bool, u64)> {
    let rows = world.client_means.telemetry.traffic().egress;
    rows.into_iter().map(|row| (row.destination, row.cut, row.count)).collect()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: api.example.com\r\n\r\n";
const EVIL: &str = "GET / HTTP/1.1\r\nhost: evil.example.org\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[test]
fn tls_goes_where_its_name_and_dns_agree() {
    // Aim: an allowed name that DNS answered passes byte for byte; another name at the same address, no name, and an address that no answer
    // gave are reset before a byte has left; what was cut is listed.
    run(|| async {
        let mut world = governed(false);
        let mut client = world.dial(ELSEWHERE);
        let bytes = hello("api.example.com");
        client.write_all(&bytes).await.unwrap();
        let (to, mut server) = world.applications.recv().await.unwrap();
        assert_eq!(to, ELSEWHERE.parse().unwrap());
        let mut seen = vec![0; bytes.len()];
        server.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, bytes);
        for (to, name) in [(ELSEWHERE, "evil.example.org"), (ELSEWHERE, ""), ("203.0.113.8:443", "api.example.com")] {
            let mut client = world.dial(to);
            client.write_all(&hello(name)).await.unwrap();
            assert!(rest(&mut client).await.is_empty(), "{to} {name}");
        }
        assert!(world.applications.try_recv().is_err(), "nothing was opened");
        let rows = [("203.0.113.7", true, 1), ("203.0.113.8", true, 1), ("evil.example.org", true, 1)];
        assert_eq!(listed(&world), rows.map(|(to, cut, count)| (to.to_owned(), cut, count)));
    });
}

#[test]
fn each_request_is_judged_for_itself() {
    // Aim: on one kept connection an allowed host passes and another one is 403 with the reason, and again; a request without a host, and one
    // that hides another host behind a user, too.
    run(|| async {
        let mut world = governed(false);
        let mut client = world.dial(WEB);
        write(&mut client, GET).await;
        let mut server = world.application().await;
        assert!(head(&mut server).await.to_lowercase().contains("host: api.example.com"));
        write(&mut server, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
        write(&mut client, EVIL).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("x-meshwright-reason: denied"), "{answer}");
        write(&mut client, GET).await;
        assert!(head(&mut server).await.contains("GET / HTTP/1.1"));
        for text in ["GET / HTTP/1.0\r\n\r\n", "GET http://api.example.com:x@evil.example.org/ HTTP/1.1\r\nhost: api.example.com\r\n\r\n"] {
            let mut client = world.dial(WEB);
            write(&mut client, text).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.0 403") || answer.contains(" 400 "), "{text}{answer}");
        }
    });
}

#[test]
fn a_kept_connection_needs_no_newer_answer() {
    // Aim: who keeps a connection asks DNS no more, so the answers of its beginning count as long as it lasts, whatever is published; a new
    // connection needs one that counts.
    run(|| async {
        let mut world = governed(false);
        let mut client = world.dial(WEB);
        for round in 0..4 {
            write(&mut client, GET).await;
            let mut server = world.application().await;
            head(&mut server).await;
            write(&mut server, OK).await;
            assert!(head(&mut client).await.contains(" 200 "), "round {round}");
            tokio::time::sleep(Duration::from_secs(240)).await;
            let live = world.client_means.snapshots.load();
            world.client_means.snapshots.publish(Arc::new(Snapshot { epoch: live.epoch + 1, ..Snapshot::clone(&live) }));
        }
        let mut late = world.dial(WEB);
        write(&mut late, GET).await;
        assert!(head(&mut late).await.contains(" 403 "));
        write(&mut client, EVIL).await;
        assert!(head(&mut client).await.contains(" 403 "));
    });
}

#[test]
fn an_audit_goes_by_what_is_answered_later_too() {
    // Aim: what Enforce would let pass by a name that was answered since the connection was made, an audit does not list.
    run(|| async {
        let mut world = World::new(Setup::default());
        under(&world, egress(true, &["api.example.com", "late.example.com"]));
        let mut client = world.dial(WEB);
        write(&mut client, GET).await;
        let mut server = world.application().await;
        for host in ["late.example.com", "late.example.com", "evil.example.org"] {
            head(&mut server).await;
            write(&mut server, OK).await;
            assert!(head(&mut client).await.contains(" 200 "));
            world.client_means.snapshots.learned().note("late.example.com", &[("203.0.113.7".parse().unwrap(), 60)], Instant::now());
            write(&mut client, &format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        }
        head(&mut server).await;
        assert_eq!(listed(&world), [("evil.example.org".to_owned(), false, 1)]);
    });
}

#[test]
fn a_name_that_is_answered_later_counts_and_so_does_a_new_policy() {
    // Aim: a kept connection's next request goes by what DNS has answered since, and by the policy that is live then.
    run(|| async {
        let mut world = World::new(Setup::default());
        under(&world, egress(false, &["api.example.com", "late.example.com"]));
        let mut client = world.dial(WEB);
        let late = "GET / HTTP/1.1\r\nhost: late.example.com\r\n\r\n";
        write(&mut client, late).await;
        assert!(head(&mut client).await.contains(" 403 "));
        world.client_means.snapshots.learned().note("late.example.com", &[("203.0.113.7".parse().unwrap(), 60)], Instant::now());
        write(&mut client, late).await;
        let mut server = world.application().await;
        head(&mut server).await;
        write(&mut server, OK).await;
        assert!(head(&mut client).await.contains(" 200 "));
        under(&world, egress(false, &["other.example.com"]));
        write(&mut client, late).await;
        assert!(head(&mut client).await.contains(" 403 "));
    });
}

#[test]
fn who_speaks_neither_http_nor_tls_is_judged_by_dns_alone() {
    // Aim: a server that speaks first and opaque bytes pass by name where the rule names the port, not at the web's ports, and what may still
    // become TLS does not pass as bytes, however slowly it comes.
    run(|| async {
        let mut world = governed(false);
        let mut client = world.dial(MAIL);
        let mut server = world.application().await;
        write(&mut server, "220 ready\r\n").await;
        assert_eq!(exactly(&mut client, 11).await, "220 ready\r\n");
        let mut client = world.dial(ELSEWHERE);
        write(&mut client, "\r\nGET / HTTP/1.1\r\nhost: evil.example.org\r\n\r\n").await;
        assert!(rest(&mut client).await.is_empty());
        for to in [ELSEWHERE, MAIL] {
            let mut client = world.dial(to);
            client.write_all(&hello("evil.example.org")[..9]).await.unwrap();
            assert!(rest(&mut client).await.is_empty(), "{to}");
        }
        while let Ok((_, mut opened)) = world.applications.try_recv() {
            assert_eq!(rest(&mut opened).await, "", "no byte has left");
        }
    });
}

#[test]
fn by_range_nothing_has_to_be_said() {
    // Aim: an address that is allowed by itself is carried at once and untouched; one that nothing allows is told so over HTTP, and closed
    // otherwise.
    run(|| async {
        let mut world = governed(false);
        let mut client = world.dial(RANGE);
        write(&mut client, "\0anything").await;
        let mut server = world.application().await;
        assert_eq!(exactly(&mut server, 9).await, "\0anything");
        let mut client = world.dial("192.0.2.1:80");
        write(&mut client, GET).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("x-meshwright-reason: denied"), "{answer}");
        let mut client = world.dial("192.0.2.1:22");
        write(&mut client, "SSH-2.0-x\r\n").await;
        assert!(rest(&mut client).await.is_empty());
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn an_audit_cuts_nothing_and_lists_what_would_be() {
    // Aim: under Audit everything passes, and what Enforce would have cut is listed, each with its count; what it would allow is not.
    run(|| async {
        let mut world = governed(true);
        for (to, bytes) in [
            (ELSEWHERE, hello("api.example.com")),
            (ELSEWHERE, hello("evil.example.org")),
            (ELSEWHERE, hello("evil.example.org")),
            ("192.0.2.1:22", b"SSH-2.0-x\r\n".to_vec()),
            (RANGE, b"x".to_vec()),
            (WEB, EVIL.into()),
            (WEB, GET.into()),
        ] {
            let mut client = world.dial(to);
            client.write_all(&bytes).await.unwrap();
            let (reached, mut server) = world.applications.recv().await.unwrap();
            assert_eq!(reached, to.parse().unwrap());
            assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 1, "{to}");
        }
        let rows = [("192.0.2.1", false, 1), ("evil.example.org", false, 1), ("evil.example.org", false, 2)];
        assert_eq!(listed(&world), rows.map(|(to, cut, count)| (to.to_owned(), cut, count)));
    });
}

/// A server outside the mesh that proves this name by a public authority.
fn secure_server(public: &Authority, name: &str) -> TlsAcceptor {
    let now = SystemTime::now();
    let names = [SanType::DnsName(name.try_into().unwrap())];
    let (chain, key) = public.leaf(&names, "api", now - Duration::from_secs(60), now + Duration::from_secs(3600));
    let builder = ServerConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions().unwrap();
    TlsAcceptor::from(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap()))
}

fn originating(roots: &Authority) -> Arc<Egress> {
    let originate = Some(Originate { sni: "api.example.com".into(), ca_pem: roots.root_pem().into() });
    let allow = vec![EgressRule { hosts: vec!["api.example.com".into()], ports: vec![80], originate, ..EgressRule::default() }];
    compiled(vec![EgressPolicy { name: "shop/out".into(), audit: false, allow }])
}

#[test]
fn plain_requests_leave_by_tls_of_our_own() {
    // Aim: a request in plaintext reaches the server at port 443 by TLS for the rule's name, as it was; a server that proves another name or
    // is nobody's hears none, and the caller is told why; TLS of the application's own is not wrapped in another one.
    run(|| async {
        let (public, other) = (Authority::new("public"), Authority::new("other"));
        for (believed, proven, status, reason) in [
            (&public, "api.example.com", "200", None),
            (&public, "www.example.com", "503", Some("identity_mismatch")),
            (&other, "api.example.com", "503", Some("tls_failed")),
        ] {
            let mut world = World::new(Setup::default());
            under(&world, originating(believed));
            let mut client = world.dial(WEB);
            write(&mut client, GET).await;
            let server = secure_server(&public, proven);
            let serving = async {
                loop {
                    let (to, socket) = world.applications.recv().await.unwrap();
                    assert_eq!(to, ELSEWHERE.parse().unwrap());
                    let Ok(mut stream) = server.accept(socket).await else { continue };
                    let mut text = Vec::new();
                    while !text.ends_with(b"\r\n\r\n") {
                        text.push(stream.read_u8().await.unwrap());
                    }
                    assert_eq!(String::from_utf8(text).unwrap().to_lowercase(), GET.to_lowercase());
                    stream.write_all(OK.as_bytes()).await.unwrap();
                }
            };
            let answer = tokio::select! {
                () = serving => unreachable!(),
                answer = head(&mut client) => answer,
            };
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{proven}: {answer}");
            assert!(reason.is_none_or(|reason| answer.contains(&format!("x-meshwright-reason: {reason}"))), "{answer}");
        }
        let world = World::new(Setup::default());
        under(&world, originating(&public));
        let mut client = world.dial(WEB);
        client.write_all(&hello("api.example.com")).await.unwrap();
        assert!(rest(&mut client).await.is_empty());
    });
}

#[test]
fn a_newer_policy_asks_open_connections_again() {
    // Aim: what was opened under no policy, by range or by name goes on under a policy that allows it, and is reset under one that does not; the
    // application learns of a cut and not of an end.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut open = Vec::new();
        for to in [RANGE, MAIL] {
            let mut client = world.dial(to);
            write(&mut client, "hello").await;
            let mut server = world.application().await;
            exactly(&mut server, 5).await;
            open.push((client, server));
        }
        under(&world, egress(false, &["api.example.com"]));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (client, server) = &mut open[0];
        write(client, "more").await;
        assert_eq!(exactly(server, 4).await, "more", "by range");
        // Opened before DNS was asked, so no answer gave it the address.
        let (client, server) = &mut open[1];
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut client = world.dial(ELSEWHERE);
        client.write_all(&hello("api.example.com")).await.unwrap();
        let mut server = world.application().await;
        server.read_exact(&mut [0; 40]).await.unwrap();
        under(&world, egress(false, &["*.example.com"]));
        tokio::time::sleep(Duration::from_secs(1)).await;
        write(&mut server, "answer").await;
        assert_eq!(exactly(&mut client, 6).await, "answer");
        under(&world, egress(false, &["other.example.com"]));
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn what_nobody_listened_to_is_cut_by_a_rule_by_name() {
    // Aim: bytes that passed under an audit that had nothing to ask them may have asked for any name, so a policy by name resets them;
    // TLS and HTTP.
    run(|| async {
        for (to, bytes) in [(ELSEWHERE, hello("evil.example.org")), (WEB, EVIL.into())] {
            let mut world = World::new(Setup::default());
            under(&world, egress(true, &["nowhere.example"]));
            let mut client = world.dial(to);
            client.write_all(&bytes).await.unwrap();
            let mut server = world.application().await;
            server.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
            under(&world, egress(false, &["*.example.com"]));
            let end = tokio::time::timeout(Duration::from_secs(1), client.read(&mut [0])).await;
            assert_eq!(end.expect("it is cut").unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{to}");
        }
    });
}

#[test]
fn an_audit_lists_what_was_open_before_it() {
    // Aim: what Enforce would reset of the connections that are open when an audit begins is listed, once, by a name that DNS gave; nothing is
    // cut, and what an audit heard and Enforce allows goes on, by names answered since, too.
    run(|| async {
        let mut world = World::new(Setup::default());
        let snapshots = world.client_means.snapshots.clone();
        let note = |name: &str| snapshots.learned().note(name, &[("203.0.113.7".parse().unwrap(), 60)], Instant::now());
        note("api.example.com");
        let mut before = world.dial(MAIL);
        write(&mut before, "hello").await;
        let mut at_before = world.application().await;
        exactly(&mut at_before, 5).await;
        for hosts in [&["other.example"][..], &["*.example.com"], &["api.example.com"]] {
            under(&world, egress(true, hosts));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(listed(&world), [("api.example.com".to_owned(), false, 1)]);
        write(&mut before, "more").await;
        assert_eq!(exactly(&mut at_before, 4).await, "more");
        let mut heard = world.dial(MAIL);
        write(&mut heard, "\0hello").await;
        let mut at_heard = world.application().await;
        exactly(&mut at_heard, 6).await;
        note("late.example.com");
        under(&world, egress(false, &["late.example.com"]));
        tokio::time::sleep(Duration::from_secs(1)).await;
        write(&mut heard, "more").await;
        assert_eq!(exactly(&mut at_heard, 4).await, "more");
        assert_eq!(before.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_list_says_names_where_they_are_known() {
    // Aim: a policy that allows nothing yet lists the names that DNS gave, so that a policy by name can be written from it.
    run(|| async {
        for audit in [true, false] {
            let mut world = World::new(Setup::default());
            world.client_means.snapshots.learned().note("evil.example.org", &[("203.0.113.7".parse().unwrap(), 60)], Instant::now());
            let policies = vec![EgressPolicy { name: "shop/out".into(), audit, allow: Vec::new() }];
            let live = world.client_means.snapshots.load();
            let egress = compiled(policies);
            world.client_means.snapshots.publish(Arc::new(Snapshot { epoch: 2, egress, ..Snapshot::clone(&live) }));
            for (to, bytes) in [(ELSEWHERE, hello("evil.example.org")), (WEB, EVIL.into())] {
                let mut client = world.dial(to);
                client.write_all(&bytes).await.unwrap();
                if audit {
                    world.application().await;
                } else {
                    let _ = client.read(&mut [0]).await;
                }
            }
            let rows = listed(&world);
            assert!(rows.len() == 2 && rows.iter().all(|(name, cut, _)| name == "evil.example.org" && *cut != audit), "{rows:?}");
        }
    });
}

/// What a client of an address past the mesh meets: its bytes arrive, a status, or an end without a word.
#[derive(Debug, PartialEq, Eq)]
enum Met {
    Reached,
    Answered(u16),
    Closed,
}

async fn met(world: &mut World, bytes: &[u8]) -> Met {
    let mut client = world.dial(ELSEWHERE);
    client.write_all(bytes).await.unwrap();
    let mut byte = [0];
    tokio::select! {
        reached = world.applications.recv() => {
            assert_eq!(reached.unwrap().1.read(&mut byte).await.unwrap(), 1);
            Met::Reached
        }
        count = client.read(&mut byte) => match count {
            Ok(1) => Met::Answered(head(&mut client).await.split(' ').nth(1).unwrap().parse().unwrap()),
            _ => Met::Closed,
        },
    }
}

#[test]
fn the_road_past_the_mesh_does_what_explain_says() {
    // Aim: over modes, rules, DNS answers, the mesh's switch and what is spoken, the road does what `explain` says of it.
    run(|| async {
        let rule = |hosts: &[&str], cidrs: &[&str]| EgressRule {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
            ..EgressRule::default()
        };
        let rules =
            [rule(&["a.example"], &[]), rule(&["b.example"], &[]), rule(&[], &["203.0.113.0/24"]), rule(&["*"], &["203.0.113.9/32"])];
        let spoken = [(false, "a.example"), (false, "b.example"), (true, "a.example"), (true, "b.example"), (true, "")];
        for case in 0..rules.len() * spoken.len() * 12 {
            let (rule, rest) = (&rules[case % rules.len()], case / rules.len());
            let ((tls, host), rest) = (spoken[rest % spoken.len()], rest / spoken.len());
            let (outside_denied, learned, mode) = (rest % 2 == 1, rest / 2 % 2 == 1, rest / 4);
            let mut world = World::new(Setup { outside_denied, ..Setup::default() });
            let policies = vec![EgressPolicy { name: "shop/out".into(), audit: mode == 1, allow: vec![rule.clone()] }];
            let egress = if mode == 2 { Arc::default() } else { compiled(policies) };
            let live = world.client_means.snapshots.load();
            world.client_means.snapshots.publish(Arc::new(Snapshot { epoch: 2, egress, ..Snapshot::clone(&live) }));
            if learned {
                let learned = world.client_means.snapshots.learned();
                learned.note("a.example", &[("203.0.113.7".parse().unwrap(), 60)], Instant::now());
            }
            let to: SocketAddr = ELSEWHERE.parse().unwrap();
            let names = world.client_means.snapshots.learned().names(to.ip(), Instant::now());
            let mut parts = http::Request::get("/").header("host", host).body(()).unwrap().into_parts().0;
            let asked = inspect::asked(Version::Http1, &mut parts, (Hop::First, 1), Time::default());
            let asked = Asked { tls, ..asked };
            let told = explain::outbound_named(&world.client_means.snapshots.load(), (to, &names), &asked);
            let foretold = match &told.reply {
                None => Met::Reached,
                Some(reply) if reply.status == 0 => Met::Closed,
                // Only HTTP gets an answer that says why.
                Some(_) if tls => Met::Closed,
                Some(reply) => Met::Answered(reply.status),
            };
            let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes();
            let bytes = if tls { hello(host) } else { request };
            assert_eq!(met(&mut world, &bytes).await, foretold, "{rule:?} {host} tls {tls} mode {mode} learned {learned}: {told:?}");
        }
    });
}
