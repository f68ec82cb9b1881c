use std::io;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use rcgen::SanType;
use rustls::server::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::io::{Socket, VirtualListening, VirtualNetwork, pipe};
use crate::tls::provider;
use crate::tls::testing::{Authority, party};

/// A network with one HTTPS server that always gives the same answer, and cuts the connection after it; without an answer it says nothing.
struct Host {
    tls: Arc<ServerConfig>,
    answer: Option<Vec<u8>>,
}

#[async_trait]
impl VirtualNetwork for Host {
    async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        if address.port() != 443 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = pipe();
        let (tls, answer) = (Arc::clone(&self.tls), self.answer.clone());
        tokio::spawn(async move {
            let Ok(mut stream) = TlsAcceptor::from(tls).accept(far).await else { return };
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            match answer {
                Some(answer) => {
                    // Who has read enough goes away.
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                }
                None => std::future::pending().await,
            }
        });
        Ok(near)
    }

    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

async fn get(uri: &str, answer: Option<&[u8]>) -> Result<(HeaderMap, Bytes), Away> {
    let (public, mesh) = (Authority::new("public"), Authority::new("mesh"));
    let now = std::time::SystemTime::now();
    let names = [SanType::IpAddress([192, 0, 2, 1].into())];
    let (chain, key) = public.leaf(&names, "id", now - Duration::from_secs(60), now + Duration::from_secs(3600));
    let tls = ServerConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions().unwrap();
    let tls = Arc::new(tls.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let network = Network::Virtual(Arc::new(Host { tls, answer: answer.map(<[u8]>::to_vec) }));
    let own = party(&mesh, "spiffe://cluster.local/ns/shop/sa/store", "store");
    let roots = Roots::Given(public.roots().iter().map(|root| root.to_vec()).collect());
    Callout::new(network, own.tls, Snapshots::default(), roots).get(&KeysUri::read(uri).unwrap(), 100, 0).await
}

/// Aim: an answer within the bounds is given, framed in any way; every other end of a call is told apart.
#[tokio::test(start_paused = true)]
async fn a_call_ends_in_an_answer_or_says_why_not() {
    const AT: &str = "https://192.0.2.1/keys";
    let (headers, body) = get(AT, Some(b"HTTP/1.1 200 OK\r\ncache-control: max-age=9\r\ncontent-length: 2\r\n\r\n{}")).await.unwrap();
    assert_eq!((&headers["cache-control"], &*body), (&HeaderValue::from_static("max-age=9"), &b"{}"[..]));
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n";
    assert_eq!(&*get(AT, Some(chunked)).await.unwrap().1, b"{}");
    let long = [&b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n"[..], &[b'a'; 101]].concat();
    let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b'a'; 5000]].concat();
    let head = [&b"HTTP/1.1 200 OK\r\na: "[..], &[b'a'; 40 << 10], b"\r\n\r\n"].concat();
    for (at, answer, word) in [
        (AT, Some(&b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"[..]), "404"),
        (AT, Some(b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n"), "302"),
        (AT, Some(&long), "more than 100 bytes"),
        (AT, Some(&endless), "more than 100 bytes"),
        (AT, Some(&head), "cannot be read"),
        (AT, Some(b"SSH-2.0-x\r\n"), "cannot be read"),
        (AT, Some(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"), "cannot be read"),
        (AT, Some(b""), "cannot be read"),
        (AT, None, "no answer within 10 s"),
        ("https://192.0.2.1:444/keys", None, "refused"),
        ("https://192.0.2.2/keys", Some(b""), "192.0.2.2"),
        ("https://nobody.invalid/keys", None, "nobody.invalid"),
    ] {
        let away = get(at, answer).await.unwrap_err().to_string();
        assert!(away.contains(word), "{at}: {away}");
    }
}

/// Aim: this machine is met by its own address and by `localhost` alone, in no other spelling, and where the control plane bars it by nothing; a name
/// of the host's files or of somebody's DNS that has such an address leads nowhere.
#[tokio::test]
async fn to_this_machine_leads_its_own_address_or_nothing() {
    for (at, open) in [
        ("http://127.0.0.1:9/keys", 1),
        ("http://127.8.8.8:9/keys", 1),
        ("http://[::1]:9/keys", 1),
        ("http://0.0.0.0:9/keys", 0),
        ("http://[::]:9/keys", 0),
        ("https://[::ffff:127.0.0.1]:9/keys", 0),
        ("http://192.0.2.1:9/keys", 1),
    ] {
        let at = KeysUri::read(at).unwrap();
        for barred in [false, true] {
            let snapshots = Snapshots::default();
            let settings = engine::model::Settings { loopback_barred: barred, ..crate::snapshots::testing::settings() };
            snapshots
                .publish(Arc::new(engine::model::Snapshot { settings: Some(Arc::new(settings)), ..engine::model::Snapshot::default() }));
            let wanted = if barred && at.is_loopback() { 0 } else { open };
            assert_eq!(places(&snapshots, &at, 0).await.len(), wanted, "{} {barred}", at.uri());
        }
    }
    let (local, other) = (KeysUri::read("http://localhost:9/keys").unwrap(), KeysUri::read("https://rebound.example:9/keys").unwrap());
    let machine: Vec<IpAddr> = ["127.0.0.1", "::1", "0.0.0.0", "::ffff:127.0.0.1"].map(|ip| ip.parse().unwrap()).to_vec();
    assert_eq!(whither::led(machine.clone(), &local, false).len(), 4);
    assert!(whither::led(machine.clone(), &local, true).is_empty());
    let mixed = [machine, vec!["192.0.2.7".parse().unwrap()]].concat();
    assert_eq!(whither::led(mixed, &other, false), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
}
