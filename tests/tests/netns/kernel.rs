//! What the kernel does where memory is wrong (facts, "Kernel"): each row that the proxy meets.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use proxy::intercept::{self, EXEMPT_MARK, Interception};
use socket2::SockRef;

use crate::namespace::{Beyond, fresh, run};

fn plan() -> Interception {
    let resolvers = ["10.77.0.3", "fd00:6d77:77::3"].map(|text| text.parse().unwrap()).to_vec();
    Interception {
        exempt_uid: Some(1337),
        exempt_mark: Some(EXEMPT_MARK),
        exclude_inbound_ports: [9001].into(),
        resolvers,
        ..Interception::default()
    }
}

/// Aim: redirected UDP is answered from the address the socket is bound to: one bound to loopback answers as who was asked, one bound to every
/// address answers as itself, and its answer is nobody's.
#[test]
fn redirected_udp_is_answered_from_the_address_the_socket_is_bound_to() {
    fresh(|| {
        let _peer = Beyond::join();
        run("ip", &["route", "add", "default", "via", "10.77.0.3"]);
        intercept::install(&plan()).unwrap();
        for (bound, asked, heard) in [
            ("127.0.0.1:15053", "10.77.0.3:53", true),
            ("[::1]:15053", "[fd00:6d77:77::3]:53", true),
            ("0.0.0.0:15053", "10.77.0.3:53", false),
        ] {
            let server = UdpSocket::bind(bound).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let asked: SocketAddr = asked.parse().unwrap();
            let client = UdpSocket::bind(if asked.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            client.connect(asked).unwrap();
            client.set_read_timeout(Some(Duration::from_millis(if heard { 5000 } else { 300 }))).unwrap();
            client.send(b"ask").unwrap();
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"answer", from).unwrap();
            assert_eq!(client.recv(&mut buffer).is_ok(), heard, "bound to {bound}, asked at {asked}");
        }
    });
}

/// Aim: a reset for a closed port and the reset of a live socket that lingers for no time both reach who connected, past the redirection, and
/// what was said before the latter is read.
#[test]
fn a_reset_of_a_closed_port_and_of_a_live_socket_arrive() {
    fresh(|| {
        let peer = Beyond::join();
        intercept::install(&plan()).unwrap();
        let inbound = TcpListener::bind("0.0.0.0:15006").unwrap();
        let cutting = thread::spawn(move || {
            let mut stream = inbound.accept().unwrap().0;
            stream.write_all(b"word\n").unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        });
        let script = "exec 3<>/dev/tcp/10.77.0.2/8080; cat <&3 2>&1";
        let heard = peer.run("bash", &["-c", &format!("{script} || true")]);
        assert!(heard.starts_with("word\n") && heard.contains("reset by peer"), "{heard}");
        cutting.join().unwrap();
        let refused = peer.run("bash", &["-c", "(exec 3<>/dev/tcp/10.77.0.2/9001) 2>&1 || true"]);
        assert!(refused.contains("refused"), "{refused}");
    });
}
