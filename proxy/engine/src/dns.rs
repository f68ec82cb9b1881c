//! Names of the mesh: what each form leads to, after Kubernetes' DNS specification 1.1, with its search domains already applied or not.
//!
//! One home for sidecars, which are told by the control plane, and for the cluster DNS of `up`; each brings a [`Directory`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Zones in which nobody else has names.
pub const ZONES: [&str; 2] = [CLUSTER, SVC];
/// How long an answer holds; short, as Kubernetes' own: endpoints come and go.
pub const TTL_SECS: u32 = 5;
/// Where reverse names of IPv4 addresses lie (RFC 1035, section 3.5).
pub const REVERSE_V4: &str = "in-addr.arpa";
/// Where those of IPv6 addresses lie (RFC 3596, section 2.5).
pub const REVERSE_V6: &str = "ip6.arpa";
/// The domain of everything in the cluster.
const CLUSTER: &str = "cluster.local";
/// The domain of Services, as names without the cluster's end.
const SVC: &str = "svc";
/// Labels of the longest short name, `instance.service.namespace`.
const SHORT_LABELS_MAX: usize = 3;
/// The only protocol whose ports are served.
const TCP: &str = "_tcp";

/// Who answers for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The mesh alone.
    Mesh,
    /// The mesh, if it has the name.
    Perhaps,
    /// Others.
    Elsewhere,
}

/// Where a name is at home: what denials of it are signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone(&'static str);

impl Zone {
    /// Its name; empty: the root.
    pub fn name(self) -> &'static str {
        self.0
    }
}

/// The zone of a name (lower case, no trailing dot).
pub fn zone(host: &str) -> Zone {
    Zone(ZONES.into_iter().chain([REVERSE_V4, REVERSE_V6]).find(|zone| within(host, zone)).unwrap_or_default())
}

/// Who answers for a name. `holds` says whether only the mesh can live at an address.
pub fn place(host: &str, zones: &[impl AsRef<str>], holds: impl Fn(IpAddr) -> bool) -> Place {
    if zones.iter().any(|zone| within(host, zone.as_ref())) {
        return Place::Mesh;
    }
    if let Some(address) = reversed(host) {
        return if holds(address) { Place::Mesh } else { Place::Perhaps };
    }
    let labels = host.split('.').filter(|label| !label.starts_with('_')).count();
    if host.is_empty() || within(host, "arpa") || labels > SHORT_LABELS_MAX { Place::Elsewhere } else { Place::Perhaps }
}

/// Whether a name is that zone, or below it.
pub fn within(host: &str, zone: &str) -> bool {
    host == zone || host.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'))
}

/// A Service as names see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its virtual addresses; none: headless.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<NamedPort>,
    /// Ready endpoints of a headless one, both families.
    pub endpoints: Vec<NamedEndpoint>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name; empty: it has no SRV record.
    pub name: String,
    /// What callers of the virtual address use.
    pub number: u16,
    /// Where the endpoints of a headless Service serve it.
    pub endpoints: Vec<SocketAddr>,
}

/// One address of a ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// Its name below the Service, where it has one; else it is named after its address.
    pub hostname: Option<String>,
    /// The address.
    pub address: IpAddr,
}

/// What a name leads to. Nothing at all: the name exists, and so may names below it (RFC 8020), but it has no records of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// A and AAAA.
    pub addresses: Vec<IpAddr>,
    /// SRV: port, and the full name that has the address.
    pub services: Vec<(u16, String)>,
    /// PTR: full names.
    pub pointers: Vec<String>,
    /// The destinations that will be called next.
    pub calls: BTreeSet<SocketAddr>,
}

/// What names are answered from.
pub trait Directory {
    /// A Service by namespace and name.
    fn service(&self, namespace: &str, name: &str) -> Option<Cow<'_, NamedService>>;

    /// Whether there is anything in that namespace.
    fn has_namespace(&self, namespace: &str) -> bool;

    /// The Services that have this virtual address, and the headless ones that have it as an endpoint's.
    fn services_at(&self, address: IpAddr) -> Vec<Cow<'_, NamedService>>;

    /// The namespace of the instance that has this address.
    fn instance_at(&self, address: IpAddr) -> Option<&str>;
}

/// The answer for a name (lower case, no trailing dot) as somebody in namespace `client` sees it; `None`: there is no such name, nor any
/// below it.
pub fn answer(directory: &impl Directory, client: &str, host: &str) -> Option<Answer> {
    if let Some(address) = reversed(host) {
        let pointers = pointers(directory, address);
        return (!pointers.is_empty()).then(|| Answer { pointers, ..Answer::default() });
    }
    let labels: Vec<&str> = host.split('.').collect();
    match labels.as_slice() {
        ["cluster", "local"] => Some(Answer::default()),
        [rest @ .., "pod", "cluster", "local"] => of_pod(directory, rest),
        [rest @ .., "svc", "cluster", "local"] => qualified(directory, rest),
        ["svc"] => short(directory, client, &labels).or_else(|| Some(Answer::default())),
        [rest @ .., "svc"] => qualified(directory, rest).or_else(|| short(directory, client, &labels)),
        labels => short(directory, client, labels),
    }
}

/// The address behind a whole reverse name; `None` for any other name.
pub fn reversed(host: &str) -> Option<IpAddr> {
    let below = |zone: &str| host.strip_suffix(zone)?.strip_suffix('.');
    if let Some(rest) = below(REVERSE_V4) {
        let octets: Vec<&str> = rest.split('.').rev().collect();
        return (octets.len() == 4).then(|| octets.join(".").parse::<Ipv4Addr>().ok())?.map(IpAddr::V4);
    }
    let nibbles: Vec<&str> = below(REVERSE_V6)?.split('.').collect();
    let whole = nibbles.len() == 32 && nibbles.iter().all(|nibble| nibble.len() == 1);
    let number = whole.then(|| nibbles.iter().rev().copied().collect::<String>())?;
    u128::from_str_radix(&number, 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// Below `svc.cluster.local`.
fn qualified(directory: &impl Directory, labels: &[&str]) -> Option<Answer> {
    match labels {
        [] => Some(Answer::default()),
        [namespace] => directory.has_namespace(namespace).then(Answer::default),
        [under @ .., service, namespace] => below_service(&*directory.service(namespace, service)?, under),
    }
}

/// Without the cluster's domain: `service`, `service.namespace`, and what lies below them.
fn short(directory: &impl Directory, client: &str, labels: &[&str]) -> Option<Answer> {
    let in_own = || {
        let [under @ .., service] = labels else { return None };
        below_service(&*directory.service(client, service)?, under)
    };
    let in_named = || {
        let [under @ .., service, namespace] = labels else { return None };
        below_service(&*directory.service(namespace, service)?, under)
    };
    // `service.namespace` goes before `instance.service`, within the namespace, which has the same form.
    in_named().or_else(in_own)
}

/// The Service itself, a named port of it, or an endpoint by its name.
fn below_service(service: &NamedService, under: &[&str]) -> Option<Answer> {
    match under {
        [] => Some(service.itself()),
        [protocol] if *protocol == TCP => service.ports.iter().any(|port| !port.name.is_empty()).then(Answer::default),
        [port, protocol] if *protocol == TCP => service.srv(port.strip_prefix('_')?),
        [instance] => service.instance(instance),
        _ => None,
    }
}

/// `10-77-0-5.NAMESPACE.pod.cluster.local`.
fn of_pod(directory: &impl Directory, labels: &[&str]) -> Option<Answer> {
    match labels {
        [] => Some(Answer::default()),
        [namespace] => directory.has_namespace(namespace).then(Answer::default),
        [dashed, namespace] => {
            let address: IpAddr = dashed.replace('-', ".").parse().or_else(|_| dashed.replace('-', ":").parse()).ok()?;
            let found = directory.instance_at(address) == Some(namespace);
            found.then(|| Answer { addresses: vec![address], ..Answer::default() })
        }
        _ => None,
    }
}

/// A Service's own name; an endpoint's name below a headless Service; else an instance's name as a pod. Each leads back to the address.
fn pointers(directory: &impl Directory, address: IpAddr) -> Vec<String> {
    let mut names = BTreeSet::new();
    for service in directory.services_at(address) {
        if service.addresses.contains(&address) {
            names.insert(service.full_name());
        }
        for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.address == address) {
            names.insert(service.name_of(endpoint));
        }
    }
    if names.is_empty() {
        let namespace = directory.instance_at(address);
        names.extend(namespace.map(|namespace| format!("{}.{namespace}.pod.{CLUSTER}", dashed(address))));
    }
    names.into_iter().collect()
}

fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

impl NamedService {
    fn headless(&self) -> bool {
        self.addresses.is_empty()
    }

    fn full_name(&self) -> String {
        format!("{}.{}.svc.{CLUSTER}", self.name, self.namespace)
    }

    fn name_of(&self, endpoint: &NamedEndpoint) -> String {
        let own = endpoint.hostname.clone().unwrap_or_else(|| dashed(endpoint.address));
        format!("{own}.{}", self.full_name())
    }

    fn itself(&self) -> Answer {
        if !self.headless() {
            let calls = self.addresses.iter().flat_map(|address| self.ports.iter().map(|port| SocketAddr::new(*address, port.number)));
            return Answer { addresses: self.addresses.clone(), calls: calls.collect(), ..Answer::default() };
        }
        self.of_endpoints(|_| true)
    }

    /// `None` where there is no such endpoint; the Service's own name exists without any.
    fn instance(&self, name: &str) -> Option<Answer> {
        let answer = self.of_endpoints(|endpoint| match &endpoint.hostname {
            Some(hostname) => hostname == name,
            None => dashed(endpoint.address) == name,
        });
        (!answer.addresses.is_empty()).then_some(answer)
    }

    fn of_endpoints(&self, wanted: impl Fn(&NamedEndpoint) -> bool) -> Answer {
        let (mut answer, mut seen) = (Answer::default(), BTreeSet::new());
        for endpoint in self.endpoints.iter().filter(|endpoint| wanted(endpoint)) {
            if seen.insert(endpoint.address) {
                answer.addresses.push(endpoint.address);
            }
        }
        let calls = self.ports.iter().flat_map(|port| &port.endpoints);
        answer.calls.extend(calls.filter(|call| seen.contains(&call.ip())));
        answer
    }

    /// One record for a virtual address; of a headless Service one for every ready endpoint, at the endpoint's own port.
    fn srv(&self, name: &str) -> Option<Answer> {
        let port = self.ports.iter().find(|port| !name.is_empty() && port.name == name)?;
        if !self.headless() {
            let calls = self.addresses.iter().map(|address| SocketAddr::new(*address, port.number)).collect();
            return Some(Answer { services: vec![(port.number, self.full_name())], calls, ..Answer::default() });
        }
        let at = |call: &SocketAddr| {
            let endpoints = self.endpoints.iter().filter(|endpoint| endpoint.address == call.ip());
            endpoints.map(|endpoint| (call.port(), self.name_of(endpoint))).collect::<Vec<_>>()
        };
        // An endpoint with two addresses and one name is one record.
        let services: BTreeSet<(u16, String)> = port.endpoints.iter().flat_map(at).collect();
        Some(Answer { services: services.into_iter().collect(), calls: port.endpoints.iter().copied().collect(), ..Answer::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shop(Vec<NamedService>);

    impl Directory for Shop {
        fn service(&self, namespace: &str, name: &str) -> Option<Cow<'_, NamedService>> {
            self.0.iter().find(|service| service.namespace == namespace && service.name == name).map(Cow::Borrowed)
        }

        fn has_namespace(&self, namespace: &str) -> bool {
            self.0.iter().any(|service| service.namespace == namespace)
        }

        fn services_at(&self, address: IpAddr) -> Vec<Cow<'_, NamedService>> {
            let at = |service: &&NamedService| {
                service.addresses.contains(&address) || service.endpoints.iter().any(|endpoint| endpoint.address == address)
            };
            self.0.iter().filter(at).map(Cow::Borrowed).collect()
        }

        fn instance_at(&self, address: IpAddr) -> Option<&str> {
            address.to_string().starts_with("10.77.").then_some("shop")
        }
    }

    fn port(name: &str, number: u16, endpoints: &[&str]) -> NamedPort {
        NamedPort { name: name.to_owned(), number, endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect() }
    }

    fn shop() -> Shop {
        let endpoint = |hostname: &str, address: &str| NamedEndpoint {
            hostname: (!hostname.is_empty()).then(|| hostname.to_owned()),
            address: address.parse().unwrap(),
        };
        Shop(vec![
            NamedService {
                namespace: "shop".into(),
                name: "web".into(),
                addresses: vec!["10.96.0.1".parse().unwrap(), "fd00:6d77::1".parse().unwrap()],
                ports: vec![port("http", 80, &[]), port("", 81, &[])],
                endpoints: vec![],
            },
            NamedService {
                namespace: "shop".into(),
                name: "db".into(),
                ports: vec![port("mysql", 1, &["10.77.0.5:3306", "[fd00::5]:3306", "192.0.2.9:3307"])],
                endpoints: vec![endpoint("db-0", "10.77.0.5"), endpoint("db-0", "fd00::5"), endpoint("", "192.0.2.9")],
                ..NamedService::default()
            },
            NamedService {
                namespace: "other".into(),
                name: "svc".into(),
                addresses: vec!["10.96.0.9".parse().unwrap()],
                ..NamedService::default()
            },
        ])
    }

    fn said(client: &str, host: &str) -> Option<String> {
        answer(&shop(), client, host).map(|answer| {
            let addresses = answer.addresses.iter().map(ToString::to_string);
            let services = answer.services.iter().map(|(port, target)| format!("{target}:{port}"));
            addresses.chain(services).chain(answer.pointers.clone()).collect::<Vec<_>>().join(" ")
        })
    }

    /// Aim: every form of the specification, full and short, from inside and outside its namespace; and what has only names below it
    /// exists, without records.
    #[test]
    fn names_lead_where_kubernetes_says() {
        let (both, db) = ("10.96.0.1 fd00:6d77::1", "10.77.0.5 fd00::5 192.0.2.9");
        for (client, host, expected) in [
            ("shop", "web", Some(both)),
            ("other", "web", None),
            ("other", "web.shop", Some(both)),
            ("other", "web.shop.svc", Some(both)),
            ("other", "web.shop.svc.cluster.local", Some(both)),
            ("other", "web.shop.svc.cluster.example", None),
            ("other", "x.web.shop", None),
            ("shop", "db", Some(db)),
            ("other", "db-0.db.shop.svc.cluster.local", Some("10.77.0.5 fd00::5")),
            ("other", "192-0-2-9.db.shop.svc.cluster.local", Some("192.0.2.9")),
            ("shop", "db-0.db", Some("10.77.0.5 fd00::5")),
            ("other", "db-1.db.shop", None),
            ("other", "_http._tcp.web.shop.svc.cluster.local", Some("web.shop.svc.cluster.local:80")),
            ("shop", "_http._tcp.web", Some("web.shop.svc.cluster.local:80")),
            ("other", "_http._udp.web.shop.svc.cluster.local", None),
            ("other", "_tcp.web.shop.svc.cluster.local", Some("")),
            ("other", "__tcp.web.shop.svc.cluster.local", None),
            ("other", "_._tcp.web.shop.svc.cluster.local", None),
            (
                "other",
                "_mysql._tcp.db.shop.svc.cluster.local",
                Some("db-0.db.shop.svc.cluster.local:3306 192-0-2-9.db.shop.svc.cluster.local:3307"),
            ),
            ("shop", "cluster.local", Some("")),
            ("shop", "svc.cluster.local", Some("")),
            ("shop", "shop.svc.cluster.local", Some("")),
            ("shop", "shop.svc", Some("")),
            ("shop", "nobody.svc.cluster.local", None),
            ("shop", "pod.cluster.local", Some("")),
            ("shop", "shop.pod.cluster.local", Some("")),
            ("shop", "10-77-0-5.shop.pod.cluster.local", Some("10.77.0.5")),
            ("shop", "10-77-0-5.other.pod.cluster.local", None),
            ("other", "svc", Some("10.96.0.9")),
            ("shop", "svc", Some("")),
            ("shop", "svc.other", Some("10.96.0.9")),
            ("shop", "local", None),
            ("shop", "", None),
        ] {
            assert_eq!(said(client, host).as_deref(), expected, "{host} from {client}");
        }
    }

    /// Aim: the mesh's own zones and addresses are its own, short names may be, and all else is others'; a denial is at home in its zone.
    #[test]
    fn every_name_has_its_place() {
        let holds = |address: IpAddr| address.to_string().starts_with("10.96.");
        for (host, expected, home) in [
            ("cluster.local", Place::Mesh, "cluster.local"),
            ("x.y.svc.cluster.local", Place::Mesh, "cluster.local"),
            ("web.shop.svc", Place::Mesh, "svc"),
            ("mysvc", Place::Perhaps, ""),
            ("a.b.example", Place::Perhaps, ""),
            ("_http._tcp.web.shop", Place::Perhaps, ""),
            ("www.a.example.com", Place::Elsewhere, ""),
            ("", Place::Elsewhere, ""),
            ("1.0.96.10.in-addr.arpa", Place::Mesh, "in-addr.arpa"),
            ("1.0.0.127.in-addr.arpa", Place::Perhaps, "in-addr.arpa"),
            ("10.in-addr.arpa", Place::Elsewhere, "in-addr.arpa"),
            ("home.arpa", Place::Elsewhere, ""),
        ] {
            assert_eq!((place(host, &ZONES, holds), zone(host).name()), (expected, home), "{host}");
        }
    }

    /// Aim: addresses of Services, of headless endpoints and of other instances have names that lead back to them; strangers have none.
    #[test]
    fn addresses_have_names() {
        let v6 = |host: &str| {
            let bits: Ipv6Addr = host.parse().unwrap();
            let nibbles: Vec<String> = format!("{:032x}", bits.to_bits()).chars().rev().map(String::from).collect();
            format!("{}.ip6.arpa", nibbles.join("."))
        };
        for (host, expected) in [
            ("1.0.96.10.in-addr.arpa".to_owned(), Some("web.shop.svc.cluster.local")),
            (v6("fd00:6d77::1"), Some("web.shop.svc.cluster.local")),
            ("5.0.77.10.in-addr.arpa".to_owned(), Some("db-0.db.shop.svc.cluster.local")),
            (v6("fd00::5"), Some("db-0.db.shop.svc.cluster.local")),
            ("9.2.0.192.in-addr.arpa".to_owned(), Some("192-0-2-9.db.shop.svc.cluster.local")),
            ("6.0.77.10.in-addr.arpa".to_owned(), Some("10-77-0-6.shop.pod.cluster.local")),
            ("1.2.0.192.in-addr.arpa".to_owned(), None),
            (v6("fd00::6"), None),
        ] {
            let name = said("other", &host);
            assert_eq!(name.as_deref(), expected, "{host}");
            if let Some(name) = name {
                let back = answer(&shop(), "other", &name).unwrap();
                assert!(back.addresses.contains(&reversed(&host).unwrap()), "{name} does not lead back");
            }
        }
        for no in ["96.10.in-addr.arpa", "01.0.96.10.in-addr.arpa", "256.0.96.10.in-addr.arpa", "in-addr.arpa", "f.ip6.arpa", "web"] {
            assert_eq!(reversed(no), None, "{no}");
        }
    }

    /// Aim: the destinations behind a name are those that will be called: virtual ones, or the endpoints' own ports.
    #[test]
    fn calls_follow_a_name() {
        let calls = |host: &str| answer(&shop(), "shop", host).unwrap().calls.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(calls("web"), ["10.96.0.1:80", "10.96.0.1:81", "[fd00:6d77::1]:80", "[fd00:6d77::1]:81"]);
        assert_eq!(calls("db-0.db"), ["10.77.0.5:3306", "[fd00::5]:3306"]);
        assert_eq!(calls("_mysql._tcp.db").len(), 3);
    }

    proptest::proptest! {
        /// Aim: no name makes it panic, and what exists below a name makes that name exist (RFC 8020).
        #[test]
        fn what_is_above_a_name_exists(labels in proptest::collection::vec("_?(tcp|http|web|db|db-0|shop|other|svc|pod|cluster|local|[a-z-]{0,3})", 0..8)) {
            let host = labels.join(".");
            if said("shop", &format!("{host}.svc.cluster.local")).is_some() {
                let mut above = host.as_str();
                while let Some((_, rest)) = above.split_once('.') {
                    proptest::prop_assert!(said("shop", &format!("{rest}.svc.cluster.local")).is_some(), "{host} exists, {rest} does not");
                    above = rest;
                }
            }
            said("shop", &host);
        }
    }
}
