//! Redirection as the kernel does it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use proxy::intercept::{self, EXEMPT_MARK, Families, Interception, Missing};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::{Beyond, fresh, run};

const WAIT: Duration = Duration::from_secs(5);

/// Those of a `resolv.conf`.
const RESOLVERS: [&str; 4] = ["127.0.0.53", "10.77.0.1", "::1", "fd00:6d77:77::1"];

fn plan() -> Interception {
    let resolvers = RESOLVERS.iter().map(|text| text.parse().unwrap()).collect();
    Interception { exempt_uid: Some(1337), exempt_mark: Some(EXEMPT_MARK), resolvers, ..Interception::default() }
}

/// A namespace with one interface that has a route to addresses nobody has.
fn with_interface() {
    run("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "peer0"]);
    run("ip", &["link", "set", "peer0", "up"]);
    run("ip", &["addr", "add", "10.77.0.2/16", "dev", "eth0"]);
    run("ip", &["addr", "add", "fd00:6d77:77::2/64", "dev", "eth0", "nodad"]);
    run("ip", &["link", "set", "eth0", "up"]);
    run("ip", &["route", "add", "10.96.0.0/12", "via", "10.77.0.1"]);
    run("ip", &["route", "add", "fd00:6d77::/108", "via", "fd00:6d77:77::1"]);
}

/// Listens on every address of one family and answers each connection with the original destination.
fn tell_destination(address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap();
    let accepted = listener.try_clone().unwrap();
    thread::spawn(move || {
        for stream in accepted.incoming().flatten() {
            let destination: SocketAddr = if address.is_ipv4() {
                let raw = getsockopt(&stream, sockopt::OriginalDst).unwrap();
                SocketAddr::new(IpAddr::V4(Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr))), u16::from_be(raw.sin_port))
            } else {
                let raw = getsockopt(&stream, sockopt::Ip6tOriginalDst).unwrap();
                SocketAddr::new(IpAddr::V6(Ipv6Addr::from(raw.sin6_addr.s6_addr)), u16::from_be(raw.sin6_port))
            };
            let mut stream = stream;
            stream.write_all(destination.to_string().as_bytes()).unwrap();
        }
    });
    listener
}

fn ask(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), WAIT).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn ask_marked(address: &str) -> std::io::Result<()> {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(EXEMPT_MARK)?;
    socket.connect_timeout(&address.into(), Duration::from_millis(300))
}

/// Aim: a real connection of either family reaches the outbound port, which can read where it wanted to go; loopback, excluded ports and
/// ranges and marked sockets are left alone.
#[test]
fn outbound_connections_are_redirected() {
    fresh(|| {
        with_interface();
        let mut plan = plan();
        plan.exclude_outbound_ports.insert(9000);
        plan.exclude_outbound_cidrs.push("10.96.200.0/24".parse().unwrap());
        intercept::install(&plan).unwrap();
        let _v4 = tell_destination("0.0.0.0:15001".parse().unwrap());
        let _v6 = tell_destination("[::1]:15001".parse().unwrap());

        assert_eq!(ask("10.96.0.1:80").as_deref(), Some("10.96.0.1:80"));
        assert_eq!(ask("[fd00:6d77::1]:80").as_deref(), Some("[fd00:6d77::1]:80"));
        // The instance's own address is mesh traffic like any other.
        assert_eq!(ask("10.77.0.2:8080").as_deref(), Some("10.77.0.2:8080"));
        // Loopback is the program's own affair.
        assert_eq!(ask("127.0.0.1:8080"), None);
        assert_eq!(ask("[::1]:8080"), None);
        for untouched in ["10.77.0.2:9000", "10.96.200.1:80"] {
            assert!(ask_short(untouched).is_err(), "{untouched} was redirected");
        }
        assert!(ask_marked("10.77.0.2:8080").is_err(), "a marked socket was redirected");
    });
}

fn ask_short(address: &str) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(300))
}

/// Aim: DNS questions to the resolvers, even one on loopback, reach the sidecar's DNS port over UDP and TCP, in both families; what goes to
/// port 53 of anything else is not the resolver's: TCP is a connection like any other, UDP stays untouched.
#[test]
fn questions_to_the_resolvers_are_redirected_and_nothing_else() {
    fresh(|| {
        with_interface();
        intercept::install(&plan()).unwrap();
        assert!(intercept::verify(&plan()).unwrap().is_empty());
        // While nobody listens on the resolver's port by TCP, whoever is answered came by another.
        let _v4 = tell_destination("0.0.0.0:15001".parse().unwrap());
        let _v6 = tell_destination("[::1]:15001".parse().unwrap());
        for service in ["10.96.0.53:53", "[fd00:6d77::53]:53"] {
            assert_eq!(ask(service).as_deref(), Some(service));
        }
        for own in ["10.77.0.2:53", "[fd00:6d77:77::2]:53"] {
            answers_udp(&UdpSocket::bind(own).unwrap(), own);
        }

        let v4 = UdpSocket::bind("127.0.0.1:15053").unwrap();
        let v6 = UdpSocket::bind("[::1]:15053").unwrap();
        let _tcp = tell_destination("127.0.0.1:15053".parse().unwrap());
        let _tcp = tell_destination("[::1]:15053".parse().unwrap());
        for resolver in RESOLVERS.map(|address| SocketAddr::new(address.parse().unwrap(), 53)) {
            answers_udp(if resolver.is_ipv4() { &v4 } else { &v6 }, &resolver.to_string());
        }
        // On loopback nothing is redirected but questions, so these reached the resolver.
        for resolver in ["127.0.0.53:53", "[::1]:53"] {
            assert_eq!(ask(resolver).as_deref(), Some(resolver));
        }
    });
}

/// A question to `target` reaches `server`, and its answer comes from the address that was asked, or `connect` would have dropped it.
fn answers_udp(server: &UdpSocket, target: &str) {
    let address: SocketAddr = target.parse().unwrap();
    let client = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    client.set_read_timeout(Some(WAIT)).unwrap();
    server.set_read_timeout(Some(WAIT)).unwrap();
    client.connect(address).unwrap();
    client.send(b"ask").unwrap();
    let mut buffer = [0; 16];
    let (len, from) = server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{target}: {error}"));
    assert_eq!(&buffer[..len], b"ask");
    server.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 6, "{target}");
}

/// Aim: what arrives from another namespace reaches the inbound port in both families; the sidecar's own ports do not.
#[test]
fn inbound_connections_are_redirected() {
    fresh(|| {
        let peer = Beyond::join();
        intercept::install(&plan()).unwrap();
        let _v4 = tell_destination("0.0.0.0:15006".parse().unwrap());
        let _v6 = tell_destination("[fd00:6d77:77::2]:15006".parse().unwrap());
        let from_peer = |address: &str| {
            let script = format!("exec 3<>/dev/tcp/{address}; cat <&3");
            peer.run("bash", &["-c", &script])
        };
        assert_eq!(from_peer("10.77.0.2/8080"), "10.77.0.2:8080");
        assert_eq!(from_peer("fd00:6d77:77::2/8080"), "[fd00:6d77:77::2]:8080");
    });
}

/// Aim: installing again changes nothing, verify names each loss, remove leaves nothing and may be repeated.
#[test]
fn install_is_idempotent_and_verify_is_exact() {
    fresh(|| {
        assert_eq!(intercept::verify(&plan()).unwrap(), [Missing::Table("meshwright".to_owned())]);
        intercept::remove().unwrap();
        intercept::install(&plan()).unwrap();
        let once = run("nft", &["list", "ruleset"]);
        intercept::install(&plan()).unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), once);
        assert_eq!(intercept::verify(&plan()).unwrap(), []);
        // Every rule as `nft` reads it is the text we show.
        for chain in plan().table().chains {
            for rule in chain.rules {
                assert!(once.contains(&rule.text), "{} is not in\n{once}", rule.text);
            }
        }

        run("nft", &["flush", "chain", "inet", "meshwright", "prerouting"]);
        let missing = intercept::verify(&plan()).unwrap();
        assert!(missing.len() == 5 && missing.iter().all(|one| matches!(one, Missing::Rule { chain: "prerouting", .. })), "{missing:?}");
        run("nft", &["insert", "rule", "inet", "meshwright", "output", "accept"]);
        assert!(intercept::verify(&plan()).unwrap().contains(&Missing::Extra { chain: "output", rules: 1 }));

        // Another family takes the place of the first, tables of others stay.
        run("nft", &["add", "table", "inet", "theirs"]);
        intercept::install(&Interception { families: Families::Ipv4, ..plan() }).unwrap();
        assert!(!run("nft", &["list", "tables"]).contains("inet meshwright"));
        intercept::remove().unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table inet theirs");
        intercept::remove().unwrap();
    });
}

/// Aim: a table that the kernel refuses leaves the one before in force: the transaction is whole or nothing.
#[test]
fn replacing_is_atomic() {
    fresh(|| {
        intercept::install(&plan()).unwrap();
        let mut broken = plan().table();
        // A second chain of the same name on another hook is refused.
        broken.chains[1].name = "output";
        intercept::nft::replace(&broken).unwrap_err();
        assert_eq!(intercept::verify(&plan()).unwrap(), []);
    });
}
