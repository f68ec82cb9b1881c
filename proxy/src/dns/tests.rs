use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use engine::model::{DnsAnswer, Snapshot};
use hickory_proto::op::{Edns, Message, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::io::{Network, bind};
use crate::snapshots::testing::settings;

const SERVICES: &str = "_http._tcp.catalog.shop.svc.cluster.local";
const ASKER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn snapshots(count: usize) -> Snapshots {
    let answer = |addresses: Vec<IpAddr>| Arc::new(DnsAnswer { addresses, ttl_secs: 30, ..DnsAnswer::default() });
    let both = answer(vec!["10.96.0.1".parse().unwrap(), "fd00:6d77::1".parse().unwrap()]);
    let one = answer(vec!["10.96.0.2".parse().unwrap()]);
    let many = answer((0..count).map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0a4d_0000 + u32::try_from(n).unwrap()))).collect());
    let mut names = HashMap::new();
    for name in ["catalog", "catalog.shop", "catalog.shop.svc", "catalog.shop.svc.cluster.local"] {
        names.insert(name.to_owned(), Arc::clone(&both));
    }
    names.insert("store".to_owned(), one);
    names.insert("shop.svc.cluster.local".to_owned(), answer(Vec::new()));
    let services = vec![(80, "catalog.shop.svc.cluster.local".to_owned()), (81, "store.shop.svc.cluster.local".to_owned())];
    names.insert(SERVICES.to_owned(), Arc::new(DnsAnswer { services, ttl_secs: 30, ..DnsAnswer::default() }));
    let pointers = vec!["catalog.shop.svc.cluster.local".to_owned()];
    names.insert("1.0.96.10.in-addr.arpa".to_owned(), Arc::new(DnsAnswer { pointers, ttl_secs: 30, ..DnsAnswer::default() }));
    names.insert("many".to_owned(), many);
    let snapshots = Snapshots::default();
    let mut settings = settings();
    settings.dns_zones = engine::dns::ZONES.map(str::to_owned).to_vec();
    snapshots.publish(Arc::new(Snapshot { settings: Some(Arc::new(settings)), names, ..Snapshot::default() }));
    snapshots.wanted().connected(true);
    snapshots
}

/// Says that what is asked for and not in the snapshot does not exist.
fn deny_the_rest(snapshots: &Snapshots) {
    let snapshots = snapshots.clone();
    tokio::spawn(async move {
        loop {
            snapshots.wanted().changed().await;
            for want in snapshots.wanted().take().subscribe {
                snapshots.wanted().answered(&want, false);
            }
            snapshots.wake();
        }
    });
}

fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, hickory_proto::op::MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(bytes) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(bytes);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// Both transports on one port. A port that is free for UDP may be taken for TCP, also by a connection that has ended, so several are tried.
async fn on_one_port() -> (UdpSocket, Listening) {
    for _ in 0..100 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = bind(udp.local_addr().unwrap()) {
            return (udp, Listening::adopt(tcp).unwrap());
        }
    }
    panic!("100 ports were free for UDP and taken for TCP");
}

/// A resolver of the outside world that knows every name as 192.0.2.7, by UDP and TCP on one port.
async fn outside() -> SocketAddr {
    let (udp, mut tcp) = on_one_port().await;
    let address = udp.local_addr().unwrap();
    let answer = |bytes: &[u8]| {
        let mut message = Message::from_vec(bytes).unwrap().into_response();
        let name = message.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, 60, RData::A(A("192.0.2.7".parse().unwrap()))));
        message.to_vec().unwrap()
    };
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
            // A forged answer first: it must be passed over.
            udp.send_to(&[0xff; 20], client).await.unwrap();
            udp.send_to(&answer(&buffer[..length]), client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let mut socket = tcp.accept().await.unwrap().socket;
            let question = read_message(&mut socket).await.unwrap();
            write_message(&mut socket, &answer(&question)).await.unwrap();
        }
    });
    address
}

async fn ask(resolver: &Resolver, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let reply = resolver.answer(&question(name, kind, None), ASKER, Transport::Udp).await.unwrap();
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.metadata.id, 7);
    (message.metadata.response_code, message.answers.iter().map(|record| record.data.to_string()).collect())
}

/// Aim: every form of a mesh name, both families, what is missing, and what is passed on.
#[tokio::test]
async fn names_are_answered_or_passed_on() {
    let snapshots = snapshots(1);
    deny_the_rest(&snapshots);
    let resolver = Resolver::new(snapshots, Upstream::new(Network::Kernel { mark: None }, vec![outside().await]));
    let fine = ResponseCode::NoError;
    for (name, kind, code, expected) in [
        ("catalog", RecordType::A, fine, Some("10.96.0.1")),
        ("catalog.shop.", RecordType::A, fine, Some("10.96.0.1")),
        ("Catalog.Shop.SVC.", RecordType::AAAA, fine, Some("fd00:6d77::1")),
        ("catalog.shop.svc.cluster.local.", RecordType::A, fine, Some("10.96.0.1")),
        ("store.", RecordType::AAAA, fine, None),
        ("store.", RecordType::MX, fine, None),
        ("gone.shop.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain, None),
        ("example.com.", RecordType::A, fine, Some("192.0.2.7")),
        ("a.b.example.com.", RecordType::A, fine, Some("192.0.2.7")),
    ] {
        let (found, answers) = ask(&resolver, name, kind).await;
        assert_eq!((found, answers.first().map(String::as_str)), (code, expected), "{name} {kind}");
    }
}

/// Aim: with no other resolver a short name does not exist and another one is a server failure; silent ones cost two seconds together.
#[tokio::test(start_paused = true)]
async fn without_a_resolver_the_mesh_is_all_there_is() {
    let snapshots = snapshots(1);
    deny_the_rest(&snapshots);
    let resolver = Resolver::new(snapshots.clone(), Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    assert_eq!(ask(&resolver, "nothing.", RecordType::A).await.0, ResponseCode::NXDomain);
    assert_eq!(ask(&resolver, "www.a.example.com.", RecordType::A).await.0, ResponseCode::ServFail);
    let [first, second] = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
    let silent = [&first, &second].map(|socket| socket.local_addr().unwrap()).to_vec();
    let resolver = Resolver::new(snapshots, Upstream::new(Network::Kernel { mark: None }, silent));
    let began = Instant::now();
    assert_eq!(ask(&resolver, "nothing.", RecordType::A).await.0, ResponseCode::ServFail);
    assert_eq!(began.elapsed().as_secs(), 2);
}

/// Aim: a question that is not answered in the mesh's own zone while the control plane is away is a failure, not a denial.
#[tokio::test(start_paused = true)]
async fn an_unreached_control_plane_is_no_denial() {
    let snapshots = snapshots(1);
    snapshots.wanted().connected(false);
    let resolver = Resolver::new(snapshots, Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    assert_eq!(ask(&resolver, "new.shop.svc.cluster.local.", RecordType::A).await.0, ResponseCode::ServFail);
}

/// Aim: what does not fit is left out by UDP, as the TC bit says, and the client's limit holds up to ours; by TCP every endpoint has its
/// record, as far as a message can hold them.
#[tokio::test]
async fn large_answers_are_truncated() {
    for (count, edns, transport, answers, bytes_max) in [
        (60, None, Transport::Udp, 0..60, 512),
        (60, Some(1232), Transport::Udp, 60..61, 1232),
        (60, Some(100), Transport::Udp, 0..60, 512),
        (100, Some(4096), Transport::Udp, 0..100, 1232),
        (60, None, Transport::Tcp, 60..61, 65_535),
        (1000, None, Transport::Tcp, 1000..1001, 65_535),
        (5000, Some(1232), Transport::Tcp, 4000..4096, 65_535),
    ] {
        let resolver = Resolver::new(snapshots(count), Upstream::new(Network::Kernel { mark: None }, Vec::new()));
        let reply = resolver.answer(&question("many.", RecordType::A, edns), ASKER, transport).await.unwrap();
        let message = Message::from_vec(&reply).unwrap();
        assert!(answers.contains(&message.answers.len()), "{} of {count} by {transport:?}, {edns:?}", message.answers.len());
        assert_eq!(message.metadata.truncation, message.answers.len() < count, "{count} {edns:?} {transport:?}");
        assert!(reply.len() <= bytes_max && !message.answers.is_empty());
        assert_eq!(message.edns.is_some(), edns.is_some());
    }
}

/// Aim: ports and addresses have their records; a name without the record that is asked for exists, one that is not there does not, and
/// both say by the SOA of their zone for how long that holds (RFC 2308).
#[tokio::test]
async fn every_record_and_every_denial() {
    let snapshots = snapshots(1);
    deny_the_rest(&snapshots);
    let resolver = Resolver::new(snapshots, Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    let (fine, none) = (ResponseCode::NoError, ResponseCode::NXDomain);
    let ports = "0 50 81 store.shop.svc.cluster.local. 0 50 80 catalog.shop.svc.cluster.local.";
    for (name, kind, code, records, zone) in [
        (SERVICES, RecordType::SRV, fine, ports, None),
        (SERVICES, RecordType::ANY, fine, ports, None),
        (SERVICES, RecordType::A, fine, "", Some("cluster.local.")),
        ("1.0.96.10.in-addr.arpa.", RecordType::PTR, fine, "catalog.shop.svc.cluster.local.", None),
        ("1.0.96.10.in-addr.arpa.", RecordType::A, fine, "", Some("in-addr.arpa.")),
        ("2.0.96.10.in-addr.arpa.", RecordType::PTR, none, "", Some("in-addr.arpa.")),
        ("2.0.0.127.in-addr.arpa.", RecordType::PTR, none, "", Some("in-addr.arpa.")),
        ("shop.svc.cluster.local.", RecordType::A, fine, "", Some("cluster.local.")),
        ("store.", RecordType::AAAA, fine, "", Some(".")),
        ("store.", RecordType::Unknown(65_280), fine, "", Some(".")),
        ("gone.shop.svc.cluster.local.", RecordType::A, none, "", Some("cluster.local.")),
        ("gone.shop.svc.", RecordType::A, none, "", Some("svc.")),
    ] {
        let reply = resolver.answer(&question(name, kind, None), ASKER, Transport::Udp).await.unwrap();
        let message = Message::from_vec(&reply).unwrap();
        let found: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
        let authority = message.authorities.first();
        let owner = authority.map(|record| record.name.to_string());
        assert_eq!((message.metadata.response_code, found.join(" ").as_str(), owner.as_deref()), (code, records, zone), "{name} {kind}");
        assert!(message.metadata.authoritative, "{name} {kind}");
        if let Some(RData::SOA(soa)) = authority.map(|record| &record.data) {
            assert!(soa.minimum <= 5 && authority.is_some_and(|record| record.ttl == soa.minimum), "{soa}");
        }
    }
}

/// Aim: the answer repeats the question's letters as they came, in the question and in every owner (0x20); what is asked for in another
/// case is the same name.
#[tokio::test]
async fn letters_stay_as_they_came() {
    let resolver = Resolver::new(snapshots(1), Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    let asked = "cAtALog.sHop.SVC.cluster.LOCAL.";
    let reply = resolver.answer(&question(asked, RecordType::A, None), ASKER, Transport::Udp).await.unwrap();
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.queries[0].name().to_ascii(), asked);
    assert_eq!(message.answers.iter().map(|record| record.name.to_ascii()).collect::<Vec<_>>(), [asked]);
}

/// Aim: several questions in one message, or an EDNS of the future, are refused with their codes (RFC 9619, RFC 6891).
#[tokio::test]
async fn odd_questions_are_refused() {
    let resolver = Resolver::new(snapshots(1), Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    let code = async |message: Message| {
        let reply = resolver.answer(&message.to_vec().unwrap(), ASKER, Transport::Udp).await.unwrap();
        u16::from(Message::from_vec(&reply).unwrap().metadata.response_code)
    };
    let mut two = Message::from_vec(&question("catalog.", RecordType::A, None)).unwrap();
    two.add_query(Query::query(Name::from_ascii("store.").unwrap(), RecordType::A));
    assert_eq!(code(two).await, u16::from(ResponseCode::FormErr));
    let mut future = Message::from_vec(&question("catalog.", RecordType::A, Some(1232))).unwrap();
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    assert_eq!(code(future).await, u16::from(ResponseCode::BADVERS));
}

/// Aim: while the control plane is away a name that others may know is passed on at once.
#[tokio::test(start_paused = true)]
async fn others_are_asked_at_once_while_the_control_plane_is_away() {
    let snapshots = snapshots(1);
    snapshots.wanted().connected(false);
    let resolver = Resolver::new(snapshots, Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    let began = Instant::now();
    assert_eq!(ask(&resolver, "example.com.", RecordType::A).await.0, ResponseCode::NXDomain);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// Aim: a question or an answer that is lost by UDP is asked for again, within the time that there is.
#[tokio::test]
async fn lost_packets_are_sent_again() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = Upstream::new(Network::Kernel { mark: None }, vec![server.local_addr().unwrap()]);
    let resolver = Resolver::new(snapshots(1), upstream);
    let asking = tokio::spawn(async move { ask(&resolver, "www.a.example.com.", RecordType::A).await });
    let mut buffer = [0; 512];
    server.recv_from(&mut buffer).await.unwrap();
    let (length, client) = server.recv_from(&mut buffer).await.unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap().into_response();
    server.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
    assert_eq!(asking.await.unwrap().0, ResponseCode::NoError);
}

/// Aim: no bytes bring the resolver down, and answers are never answered.
#[tokio::test]
async fn garbage_is_refused() {
    let resolver = Resolver::new(snapshots(1), Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    assert_eq!(resolver.answer(&[], ASKER, Transport::Udp).await, None);
    assert_eq!(resolver.answer(&[1], ASKER, Transport::Udp).await, None);
    let reply = resolver.answer(&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63], ASKER, Transport::Udp).await.unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::FormErr);
    let response = Message::from_vec(&question("catalog.", RecordType::A, None)).unwrap().into_response().to_vec().unwrap();
    assert_eq!(resolver.answer(&response, ASKER, Transport::Udp).await, None);
}

/// Aim: the same over real sockets, both transports, several questions on one connection.
#[tokio::test]
async fn both_transports_serve() {
    let resolver = Resolver::new(snapshots(1), Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    let stop = CancellationToken::new();
    let (udp, tcp) = on_one_port().await;
    let address = udp.local_addr().unwrap();
    let tasks = [
        tokio::spawn(Arc::clone(&resolver).serve_udp(udp, stop.clone())),
        tokio::spawn(Arc::clone(&resolver).serve_tcp(tcp, stop.clone())),
    ];
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(&question("catalog.", RecordType::A, None), address).await.unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);
    let mut stream = Network::Kernel { mark: None }.connect(address).await.unwrap();
    for _ in 0..2 {
        write_message(&mut stream, &question("catalog.", RecordType::AAAA, None)).await.unwrap();
        assert_eq!(Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap().answers.len(), 1);
    }
    stop.cancel();
    for task in tasks {
        task.await.unwrap();
    }
}

proptest::proptest! {
    /// Aim: whatever a packet holds, it is answered or not, never a panic; an answer carries its id and fits.
    #[test]
    fn any_bytes_are_survived(
        noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120),
        flips in proptest::collection::vec(proptest::prelude::any::<(u16, u8)>(), 0..4),
        cut in 0_usize..64,
    ) {
        let mut spoilt = question("catalog.shop", RecordType::A, Some(1400));
        for (at, bits) in flips {
            let at = usize::from(at) % spoilt.len();
            spoilt[at] ^= bits;
        }
        spoilt.truncate(spoilt.len().saturating_sub(cut.saturating_sub(32)));
        let found = DnsAnswer {
            addresses: vec!["10.96.0.1".parse().unwrap(); 200],
            services: vec![(80, ["x".repeat(63).as_str(); 3].join(".")); 400],
            pointers: vec!["a.b".to_owned(); 400],
            ttl_secs: 5,
        };
        for bytes in [noise, spoilt] {
            let Ok(asked) = answer::read(&bytes) else { continue };
            for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, usize::from(u16::MAX))] {
                for reply in [Reply::Found(&found), Reply::Denied, Reply::Code(ResponseCode::ServFail)] {
                    let Some(reply) = asked.reply(&reply, zone(asked.host()), transport) else { continue };
                    proptest::prop_assert_eq!(&reply[..2], &asked.id().to_be_bytes()[..]);
                    proptest::prop_assert!(reply.len() <= most, "{} bytes", reply.len());
                }
            }
        }
    }

    /// Aim: no resolver file makes it panic.
    #[test]
    fn any_resolver_file_is_survived(text in "(?s)(nameserver[ \t]*(\\PC{0,20}|[0-9a-f:.%]{0,20})\n?|\\PC{0,40}){0,6}") {
        proptest::prop_assert!(nameservers(&text).len() <= 3);
    }
}

/// Aim: what others answer is taken note of under the name that was asked for, through aliases in any order, in both families, before the
/// client hears of it; what belongs to other names in the same answer is not, nor what is no answer, and aliases in a circle end.
#[tokio::test]
async fn answers_of_others_are_taken_note_of() {
    let (snapshots, now) = (snapshots(1), Instant::now());
    deny_the_rest(&snapshots);
    let resolver = Resolver::new(snapshots.clone(), Upstream::new(Network::Kernel { mark: None }, vec![outside().await]));
    ask(&resolver, "API.example.com.", RecordType::A).await;
    let learned = snapshots.learned();
    assert_eq!(learned.names("192.0.2.7".parse().unwrap(), now), [Arc::from("api.example.com")]);
    ask(&resolver, "catalog.", RecordType::A).await;
    assert!(learned.addresses("catalog", now).is_empty(), "the mesh's own names are no others'");
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let alias = |from: &str, to: &str| Record::from_rdata(name(from), 20, RData::CNAME(CNAME(name(to))));
    let mut message = Message::from_vec(&question("a.example.", RecordType::A, None)).unwrap().into_response();
    for (owner, ip) in [("c.example.", "192.0.2.1"), ("other.example.", "192.0.2.2")] {
        message.add_answer(Record::from_rdata(name(owner), 60, RData::A(A(ip.parse().unwrap()))));
    }
    message.add_answer(alias("b.example.", "C.example."));
    message.add_answer(alias("a.example.", "b.example."));
    message.add_answer(Record::from_rdata(name("c.example."), 10, RData::AAAA(AAAA("2001:db8::1".parse().unwrap()))));
    let found = answer::found(&message.to_vec().unwrap(), "a.example");
    assert_eq!(found, [("192.0.2.1".parse().unwrap(), 20), ("2001:db8::1".parse().unwrap(), 10)]);
    assert_eq!(answer::found(&question("a.example.", RecordType::A, None), "a.example"), []);
    assert_eq!(answer::found(b"\0\x01\x80", "a.example"), []);
    message.answers.clear();
    message.add_answer(alias("a.example.", "b.example."));
    message.add_answer(alias("b.example.", "a.example."));
    assert_eq!(answer::found(&message.to_vec().unwrap(), "a.example"), []);
}
