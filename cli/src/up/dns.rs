//! Cluster DNS on the bridge: for instances outside the mesh, and the resolver behind every sidecar's own.
//!
//! It answers the names of Services for everybody; other names only with `--nat`, by the host's resolvers, for nothing else could be
//! reached anyway.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use proto::mesh::VirtualService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::timeout;

/// The domain of Services' full names.
const DOMAIN: &str = "svc.cluster.local";
/// How long an answer of ours may be kept: endpoints of headless Services change.
const TTL_SECS: u32 = 5;
/// Largest answer over UDP without EDNS (RFC 1035).
const UDP_BYTES: usize = 512;
/// Largest message at all.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// How long the host's resolver may take.
const FORWARD_MAX: Duration = Duration::from_secs(3);
/// Most questions that wait for the host's resolver, and most TCP clients, at once.
const WAITING_MAX: usize = 256;
/// How long a TCP client may stay silent.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// What the server answers from.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    names: BTreeMap<String, Vec<IpAddr>>,
    /// Namespace of each instance's address: what a bare name means depends on who asks.
    askers: BTreeMap<IpAddr, String>,
}

impl Zone {
    /// Takes the Services' names: `name.namespace`, and `host.name.namespace` for instances with a name of their own.
    pub(crate) fn services(&mut self, services: &[VirtualService]) {
        self.names.clear();
        for service in services {
            let name = format!("{}.{}", service.name, service.namespace).to_ascii_lowercase();
            let parse = |text: &String| text.parse::<IpAddr>().ok();
            let ready = || service.endpoints.iter().filter_map(|endpoint| parse(&endpoint.address));
            let addresses: Vec<IpAddr> =
                if service.addresses.is_empty() { ready().collect() } else { service.addresses.iter().filter_map(parse).collect() };
            for endpoint in service.endpoints.iter().filter(|endpoint| !endpoint.hostname.is_empty()) {
                let host = format!("{}.{name}", endpoint.hostname.to_ascii_lowercase());
                self.names.entry(host).or_default().extend(parse(&endpoint.address));
            }
            self.names.insert(name, addresses);
        }
    }

    /// Takes who lives where.
    pub(crate) fn askers(&mut self, askers: BTreeMap<IpAddr, String>) {
        self.askers = askers;
    }

    /// The addresses of a name, `None` for a name that is not the mesh's. Bare names and names with only the namespace are taken too.
    fn lookup(&self, name: &str, asker: IpAddr) -> Option<&[IpAddr]> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let short = [DOMAIN, "svc"].iter().find_map(|suffix| name.strip_suffix(suffix)?.strip_suffix('.'));
        let key = match short {
            Some(short) => short.to_owned(),
            None if name.contains('.') => name,
            None => format!("{name}.{}", self.askers.get(&asker.to_canonical())?),
        };
        self.names.get(&key).map(Vec::as_slice)
    }

    /// Answers, or `None` where the question must go further. Pure.
    fn answer(&self, question: &Message, asker: IpAddr) -> Option<Message> {
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        let [query] = question.queries.as_slice() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Some(answer);
        };
        answer.add_query(query.clone());
        let name = query.name().to_ascii();
        let Some(addresses) = self.lookup(&name, asker) else {
            let ours = name.trim_end_matches('.').to_ascii_lowercase().ends_with("cluster.local");
            answer.metadata.response_code = ResponseCode::NXDomain;
            return ours.then_some(answer);
        };
        answer.metadata.authoritative = true;
        for address in addresses {
            let data = match (query.query_type(), address) {
                (RecordType::A, IpAddr::V4(v4)) => RData::A((*v4).into()),
                (RecordType::AAAA, IpAddr::V6(v6)) => RData::AAAA((*v6).into()),
                _ => continue,
            };
            answer.add_answer(Record::from_rdata(query.name().clone(), TTL_SECS, data));
        }
        Some(answer)
    }
}

/// The server. Its sockets live in the fabric, the way to the host's resolvers in the host's namespace.
#[derive(Debug)]
pub(crate) struct Dns {
    /// What it answers from.
    pub(crate) zone: Rc<RefCell<Zone>>,
    /// The host's resolvers; none without `--nat`.
    resolvers: Vec<SocketAddr>,
    waiting: Arc<Semaphore>,
}

impl Dns {
    /// A server that forwards to the host's resolvers if `nat`.
    pub(crate) fn new(nat: bool) -> Rc<Self> {
        let text = if nat { std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default() } else { String::new() };
        Rc::new(Self { zone: Rc::default(), resolvers: resolvers(&text), waiting: Arc::new(Semaphore::new(WAITING_MAX)) })
    }

    /// Serves UDP until dropped.
    pub(crate) async fn serve_udp(self: Rc<Self>, socket: std::net::UdpSocket) -> anyhow::Result<()> {
        let socket = Rc::new(UdpSocket::from_std(socket).context("cannot serve DNS")?);
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
            let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else { continue };
            let question = buffer[..len].to_vec();
            let (dns, socket) = (Rc::clone(&self), Rc::clone(&socket));
            spawn_local(async move {
                let _permit = permit;
                if let Some(answer) = dns.reply(&question, from.ip(), false).await {
                    // A client that has gone asks again.
                    let _ = socket.send_to(&answer, from).await;
                }
            });
        }
    }

    /// Serves TCP until dropped.
    pub(crate) async fn serve_tcp(self: Rc<Self>, listener: std::net::TcpListener) -> anyhow::Result<()> {
        let listener = TcpListener::from_std(listener).context("cannot serve DNS")?;
        loop {
            let Ok((stream, from)) = listener.accept().await else { continue };
            let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else { continue };
            let dns = Rc::clone(&self);
            spawn_local(async move {
                let _permit = permit;
                // A broken client connection concerns nobody else.
                let _ = dns.converse(stream, from.ip()).await;
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, from: IpAddr) -> anyhow::Result<()> {
        loop {
            let len = timeout(IDLE_MAX, stream.read_u16()).await??;
            let mut question = vec![0; usize::from(len)];
            timeout(IDLE_MAX, stream.read_exact(&mut question)).await??;
            let answer = self.reply(&question, from, true).await.context("not a DNS message")?;
            stream.write_u16(u16::try_from(answer.len())?).await?;
            stream.write_all(&answer).await?;
        }
    }

    async fn reply(&self, question: &[u8], from: IpAddr, tcp: bool) -> Option<Vec<u8>> {
        let message = Message::from_vec(question).ok()?;
        let ours = self.zone.borrow().answer(&message, from);
        let answer = match ours {
            Some(answer) => answer,
            None => match self.forward(question, tcp).await {
                Some(answer) => return Some(answer),
                None => {
                    let code = if self.resolvers.is_empty() { ResponseCode::NXDomain } else { ResponseCode::ServFail };
                    let mut answer = Message::error_msg(message.metadata.id, message.metadata.op_code, code);
                    answer.add_queries(message.queries.clone());
                    answer
                }
            },
        };
        let bytes = answer.to_vec().ok()?;
        let room = if tcp { MESSAGE_BYTES_MAX } else { usize::from(message.max_payload()).max(UDP_BYTES) };
        if bytes.len() > room { answer.truncate().to_vec().ok() } else { Some(bytes) }
    }

    /// Asks the host's resolvers in turn.
    async fn forward(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        for resolver in &self.resolvers {
            let asked = async {
                if tcp {
                    let mut stream = TcpStream::connect(resolver).await?;
                    stream.write_u16(u16::try_from(question.len()).unwrap_or(u16::MAX)).await?;
                    stream.write_all(question).await?;
                    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
                    stream.read_exact(&mut answer).await?;
                    return std::io::Result::Ok(answer);
                }
                let any: SocketAddr = if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(resolver).await?;
                socket.send(question).await?;
                let mut answer = vec![0; MESSAGE_BYTES_MAX];
                let len = socket.recv(&mut answer).await?;
                answer.truncate(len);
                Ok(answer)
            };
            if let Ok(Ok(answer)) = timeout(FORWARD_MAX, asked).await {
                return Some(answer);
            }
        }
        None
    }
}

fn resolvers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// The resolver file of an instance: this server, and the search list of a pod.
pub(crate) fn resolv_conf(server: IpAddr, namespace: &str) -> String {
    format!("nameserver {server}\nsearch {namespace}.{DOMAIN} {DOMAIN} cluster.local\noptions ndots:5\n")
}

/// `nsswitch.conf` with host names from files and DNS alone: the host's other sources (a resolver daemon behind a Unix socket) know nothing
/// of a mesh.
pub(crate) fn nsswitch(host: &str) -> String {
    let mut lines: Vec<String> = host.lines().filter(|line| !line.trim_start().starts_with("hosts:")).map(str::to_owned).collect();
    lines.push("hosts: files dns".to_owned());
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::Name;
    use proto::mesh::NamedAddress;

    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::default();
        zone.services(&[
            VirtualService {
                namespace: "shop".to_owned(),
                name: "catalog".to_owned(),
                addresses: vec!["10.96.0.7".to_owned(), "fd00:6d77::7".to_owned()],
                ..VirtualService::default()
            },
            VirtualService {
                namespace: "shop".to_owned(),
                name: "db".to_owned(),
                endpoints: vec![NamedAddress { hostname: "db-0".to_owned(), address: "10.77.0.9".to_owned() }],
                ..VirtualService::default()
            },
        ]);
        zone.askers([("10.77.0.3".parse().unwrap(), "shop".to_owned())].into());
        zone
    }

    fn ask(name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let answer = zone().answer(&question, "::ffff:10.77.0.3".parse().unwrap())?;
        Some((answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect()))
    }

    /// Aim: every form of a Service's name is answered, headless ones with their instances, each family by itself.
    #[test]
    fn names_of_the_mesh() {
        for name in ["catalog", "catalog.shop", "Catalog.shop.svc.", "catalog.shop.svc.cluster.local."] {
            assert_eq!(ask(name, RecordType::A), Some((ResponseCode::NoError, vec!["10.96.0.7".to_owned()])), "{name}");
        }
        assert_eq!(ask("catalog.shop", RecordType::AAAA), Some((ResponseCode::NoError, vec!["fd00:6d77::7".to_owned()])));
        for name in ["db.shop", "db-0.db.shop.svc.cluster.local"] {
            assert_eq!(ask(name, RecordType::A), Some((ResponseCode::NoError, vec!["10.77.0.9".to_owned()])), "{name}");
        }
        assert_eq!(ask("db.shop", RecordType::AAAA), Some((ResponseCode::NoError, vec![])));
        assert_eq!(ask("nobody.shop.svc.cluster.local", RecordType::A), Some((ResponseCode::NXDomain, vec![])));
        assert_eq!(ask("example.com", RecordType::A), None);
    }

    /// Aim: a question with none or several queries is refused, not guessed at.
    #[test]
    fn odd_questions() {
        let question = Message::new(7, hickory_proto::op::MessageType::Query, OpCode::Query);
        let answer = zone().answer(&question, "10.77.0.3".parse().unwrap()).unwrap();
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (7, ResponseCode::FormErr));
    }

    /// Aim: resolver files are read and written as the C library does.
    #[test]
    fn files() {
        assert_eq!(resolvers("# x\nnameserver 127.0.0.53\nnameserver  fd00::1\nsearch a\n").len(), 2);
        let text = resolv_conf("10.77.0.1".parse().unwrap(), "shop");
        assert!(text.starts_with("nameserver 10.77.0.1\nsearch shop.svc.cluster.local "));
        assert_eq!(nsswitch("passwd: files\nhosts: resolve [!UNAVAIL=return] files\n"), "passwd: files\nhosts: files dns\n");
    }

    proptest::proptest! {
        /// Aim: no question and no resolver file makes it panic.
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100), text in "(?s)(nameserver )?\\PC{0,40}") {
            for bytes in [bytes.clone(), [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &bytes].concat()] {
                if let Ok(question) = Message::from_vec(&bytes) {
                    zone().answer(&question, "10.77.0.3".parse().unwrap());
                }
            }
            resolvers(&text);
            nsswitch(&text);
        }
    }
}
