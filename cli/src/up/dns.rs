//! Cluster DNS on the bridge: for instances outside the mesh, and the resolver behind every sidecar's own.
//!
//! It answers the names of Services for everybody; other names only with `--nat`, by the host's resolvers, for nothing else could be
//! reached anyway. It is the sidecar's resolver with names of its own: those that the control plane's orders bring.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, ready};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use engine::dns::{Directory, NamedEndpoint, NamedPort, NamedService, Place, TTL_SECS, ZONES, answer, place};
use engine::model::DnsAnswer;
use proto::mesh::VirtualService;
use proxy::dns::{Names, RESOLV_CONF, Resolver, Upstream, nameservers};
use proxy::io::Network;
use proxy::snapshots::NameLookup;

/// The domain of Services' full names.
const DOMAIN: &str = "svc.cluster.local";

/// The cluster's resolver.
pub(crate) type Dns = Resolver<LiveZone>;

/// A server that forwards to the host's resolvers if `nat`. Its sockets live in the fabric; those towards the host's resolvers are opened
/// in the namespace of the thread that runs it.
pub(crate) fn dns(nat: bool) -> Arc<Dns> {
    let text = if nat { std::fs::read_to_string(RESOLV_CONF).unwrap_or_default() } else { String::new() };
    Resolver::new(LiveZone::default(), Upstream::new(Network::Kernel { mark: None }, nameservers(&text)))
}

/// What the server answers from.
#[derive(Debug, Default)]
pub(crate) struct LiveZone(RwLock<Records>);

#[derive(Debug, Default)]
struct Records {
    /// By namespace and name.
    services: BTreeMap<(String, String), NamedService>,
    /// Services by virtual address, and headless ones by endpoint.
    at: BTreeMap<IpAddr, Vec<(String, String)>>,
    /// Namespace of each instance's address: what a bare name means depends on who asks.
    askers: BTreeMap<IpAddr, String>,
    namespaces: BTreeSet<String>,
}

impl LiveZone {
    /// Takes the Services, and who lives where.
    pub(crate) fn take(&self, services: &[VirtualService], askers: BTreeMap<IpAddr, String>) {
        let mut records = Records { namespaces: askers.values().cloned().collect(), askers, ..Records::default() };
        for service in services.iter().map(read) {
            let name = (service.namespace.clone(), service.name.clone());
            records.namespaces.insert(service.namespace.clone());
            for address in service.addresses.iter().copied().chain(service.endpoints.iter().map(|endpoint| endpoint.address)) {
                records.at.entry(address).or_default().push(name.clone());
            }
            records.services.insert(name, service);
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = records;
    }
}

/// An address that does not parse is passed over: the control plane writes none.
fn read(service: &VirtualService) -> NamedService {
    let parse = |text: &String| text.parse::<IpAddr>().ok();
    let headless = service.addresses.is_empty();
    let port = |port: &proto::mesh::VirtualPort| NamedPort {
        name: port.name.to_ascii_lowercase(),
        number: u16::try_from(port.port).unwrap_or_default(),
        endpoints: port.endpoints.iter().filter(|_| headless).filter_map(|text| text.parse::<SocketAddr>().ok()).collect(),
    };
    let endpoint = |endpoint: &proto::mesh::NamedAddress| {
        let hostname = (!endpoint.hostname.is_empty()).then(|| endpoint.hostname.to_ascii_lowercase());
        Some(NamedEndpoint { hostname, address: parse(&endpoint.address)? })
    };
    NamedService {
        namespace: service.namespace.to_ascii_lowercase(),
        name: service.name.to_ascii_lowercase(),
        addresses: service.addresses.iter().filter_map(parse).collect(),
        ports: service.ports.iter().map(port).collect(),
        endpoints: service.endpoints.iter().filter_map(endpoint).collect(),
    }
}

impl Directory for Records {
    fn service(&self, namespace: &str, name: &str) -> Option<Cow<'_, NamedService>> {
        self.services.get(&(namespace.to_owned(), name.to_owned())).map(Cow::Borrowed)
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    fn services_at(&self, address: IpAddr) -> Vec<Cow<'_, NamedService>> {
        self.at.get(&address).into_iter().flatten().filter_map(|name| self.services.get(name).map(Cow::Borrowed)).collect()
    }

    fn instance_at(&self, address: IpAddr) -> Option<&str> {
        self.askers.get(&address).map(String::as_str)
    }
}

impl Names for LiveZone {
    fn place(&self, host: &str) -> Place {
        // To look costs nothing here, and where nobody else is asked, nobody else has the name.
        if place(host, &ZONES, |_| false) == Place::Mesh { Place::Mesh } else { Place::Perhaps }
    }

    fn find(&self, host: &str, asker: IpAddr) -> impl Future<Output = NameLookup> + Send {
        let records = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let client = records.askers.get(&asker).map_or("", String::as_str);
        let found = answer(&*records, client, host).map_or(NameLookup::Absent, |answer| {
            let (addresses, services, pointers) = (answer.addresses, answer.services, answer.pointers);
            NameLookup::Found(Arc::new(DnsAnswer { addresses, services, pointers, ttl_secs: TTL_SECS }))
        });
        ready(found)
    }
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
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    use proto::mesh::{NamedAddress, VirtualPort};
    use proxy::dns::Transport;

    use super::*;

    fn server() -> Arc<Dns> {
        let dns = dns(false);
        let services = [
            VirtualService {
                namespace: "shop".to_owned(),
                name: "catalog".to_owned(),
                addresses: vec!["10.96.0.7".to_owned(), "fd00:6d77::7".to_owned()],
                ports: vec![VirtualPort { port: 80, endpoints: vec!["10.77.0.8:8080".to_owned()], name: "http".to_owned() }],
                ..VirtualService::default()
            },
            VirtualService {
                namespace: "shop".to_owned(),
                name: "db".to_owned(),
                ports: vec![VirtualPort { port: 1, endpoints: vec!["10.77.0.9:3306".to_owned()], name: "mysql".to_owned() }],
                endpoints: vec![NamedAddress { hostname: "db-0".to_owned(), address: "10.77.0.9".to_owned() }],
                ..VirtualService::default()
            },
        ];
        let askers = [("10.77.0.3", "shop"), ("10.77.0.4", "other")];
        dns.names().take(&services, askers.map(|(address, namespace)| (address.parse().unwrap(), namespace.to_owned())).into());
        dns
    }

    async fn ask(name: &str, kind: RecordType) -> (ResponseCode, String, usize) {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let answer = server().answer(&question.to_vec().unwrap(), "::ffff:10.77.0.3".parse().unwrap(), Transport::Udp).await;
        let answer = Message::from_vec(&answer.unwrap()).unwrap();
        let records: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        (answer.metadata.response_code, records.join(" "), answer.authorities.len())
    }

    /// Aim: Services, headless ones with their instances and ports, addresses, namespaces; bare names by who asks; what does not exist,
    /// and what is others', is denied with its SOA while nobody else can be asked.
    #[tokio::test]
    async fn names_of_the_mesh() {
        let fine = ResponseCode::NoError;
        for (name, kind, code, records, authorities) in [
            ("catalog", RecordType::A, fine, "10.96.0.7", 0),
            ("Catalog.shop.svc.", RecordType::A, fine, "10.96.0.7", 0),
            ("catalog.shop.svc.cluster.local.", RecordType::AAAA, fine, "fd00:6d77::7", 0),
            ("_http._tcp.catalog.shop.svc.cluster.local.", RecordType::SRV, fine, "0 100 80 catalog.shop.svc.cluster.local.", 0),
            ("db-0.db.shop.svc.cluster.local", RecordType::A, fine, "10.77.0.9", 0),
            ("_mysql._tcp.db.shop.svc.cluster.local.", RecordType::SRV, fine, "0 100 3306 db-0.db.shop.svc.cluster.local.", 0),
            ("db.shop", RecordType::AAAA, fine, "", 1),
            ("shop.svc.cluster.local", RecordType::A, fine, "", 1),
            ("other.svc.cluster.local", RecordType::A, fine, "", 1),
            ("7.0.96.10.in-addr.arpa", RecordType::PTR, fine, "catalog.shop.svc.cluster.local.", 0),
            ("9.0.77.10.in-addr.arpa", RecordType::PTR, fine, "db-0.db.shop.svc.cluster.local.", 0),
            ("4.0.77.10.in-addr.arpa", RecordType::PTR, fine, "10-77-0-4.other.pod.cluster.local.", 0),
            ("5.0.77.10.in-addr.arpa", RecordType::PTR, ResponseCode::NXDomain, "", 1),
            ("nobody.shop.svc.cluster.local", RecordType::A, ResponseCode::NXDomain, "", 1),
            ("example.com", RecordType::A, ResponseCode::NXDomain, "", 1),
            ("www.a.b.example.com", RecordType::A, ResponseCode::NXDomain, "", 1),
        ] {
            assert_eq!(ask(name, kind).await, (code, records.to_owned(), authorities), "{name} {kind}");
        }
    }

    /// Aim: resolver files are written as the C library reads them.
    #[test]
    fn files() {
        let text = resolv_conf("10.77.0.1".parse().unwrap(), "shop");
        assert!(text.starts_with("nameserver 10.77.0.1\nsearch shop.svc.cluster.local "));
        assert_eq!(nameservers(&text), ["10.77.0.1:53".parse().unwrap()]);
        assert_eq!(nsswitch("passwd: files\nhosts: resolve [!UNAVAIL=return] files\n"), "passwd: files\nhosts: files dns\n");
    }
}
