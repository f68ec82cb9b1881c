//! What names are answered from: the world's Services, instances and namespaces. The names themselves are `engine`'s.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

use engine::dns::{Directory, NamedEndpoint, NamedPort, NamedService};
use proto::mesh::{DnsRecord, DnsService};
use proto::xds::core::HealthStatus;

use super::cluster::{ClusterEndpoint, targets};
use super::subject::Subject;
use crate::world::core::{self, PortRef, ServicePort};
use crate::world::{Address, Index, Name, ServiceView};

/// Destinations told ahead with one name; the listeners of the others come at the first connection.
pub(super) const CALLS_AHEAD_MAX: usize = 64;
/// Records in the answer for one name: more do not fit into a DNS message (RFC 1035, section 4.2.2).
const RECORDS_MAX: usize = 4_096;

/// The resource, and the destinations that will be called next, for a name as a workload of namespace `client` sees it; `None`: no such
/// name.
pub(super) fn record(index: &Index, client: &str, host: &str) -> Option<(DnsRecord, Vec<SocketAddr>)> {
    traced(index, client, host, &mut Vec::new())
}

/// The same, with everything that was looked at on the way, found or not.
pub(super) fn traced(index: &Index, client: &str, host: &str, seen: &mut Vec<Subject>) -> Option<(DnsRecord, Vec<SocketAddr>)> {
    let directory = WorldDirectory { index, seen: RefCell::default() };
    let answer = engine::dns::answer(&directory, client, host);
    seen.extend(directory.seen.into_inner());
    let answer = answer?;
    let service = |(port, target): (u16, String)| DnsService { port: port.into(), target };
    let record = DnsRecord {
        addresses: answer.addresses.iter().take(RECORDS_MAX).map(ToString::to_string).collect(),
        ttl_secs: engine::dns::TTL_SECS,
        services: answer.services.into_iter().take(RECORDS_MAX).map(service).collect(),
        pointers: answer.pointers.into_iter().take(RECORDS_MAX).collect(),
    };
    Some((record, answer.calls.into_iter().take(CALLS_AHEAD_MAX).collect()))
}

struct WorldDirectory<'a> {
    index: &'a Index,
    seen: RefCell<Vec<Subject>>,
}

impl WorldDirectory<'_> {
    fn named(&self, name: &Name) -> Option<Cow<'_, NamedService>> {
        self.seen.borrow_mut().push(Subject::service(name));
        let view = self.index.services.get(name)?;
        if view.service().is_some_and(|service| service.headless) {
            self.seen.borrow_mut().push(Subject::endpoints(name));
        }
        service(self.index, view).map(Cow::Owned)
    }
}

impl Directory for WorldDirectory<'_> {
    fn service(&self, namespace: &str, name: &str) -> Option<Cow<'_, NamedService>> {
        self.named(&(namespace.to_owned(), name.to_owned()))
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.index.namespaces.contains_key(namespace)
    }

    fn services_at(&self, address: IpAddr) -> Vec<Cow<'_, NamedService>> {
        let (index, mut names) = (self.index, Vec::new());
        self.seen.borrow_mut().push(Subject::address(address));
        match index.addresses.get(&address) {
            Some(Address::Service(name)) => names.push(name.clone()),
            Some(Address::Instance(name)) => {
                self.seen.borrow_mut().push(Subject::instance(name));
                names.extend(index.fronts.get(name).into_iter().flatten().cloned());
            }
            Some(Address::Gateway(_)) | None => {}
        }
        for (name, _) in index.listed.get(&address).into_iter().flatten() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names.iter().filter_map(|name| self.named(name)).collect()
    }

    fn instance_at(&self, address: IpAddr) -> Option<&str> {
        self.seen.borrow_mut().push(Subject::address(address));
        match self.index.addresses.get(&address)? {
            Address::Instance(name) => Some(&name.0),
            Address::Service(_) | Address::Gateway(_) => None,
        }
    }
}

/// A Service as names see it; endpoints only of a headless one. `None`: it has no names.
pub(super) fn service(index: &Index, view: &ServiceView) -> Option<NamedService> {
    let content = view.service().filter(|service| !service.external_name)?;
    let (namespace, name) = view.name();
    let mut found = NamedService {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        addresses: view.addresses.clone(),
        ports: content.ports.iter().map(|port| NamedPort { name: port.name.clone(), number: port.port, endpoints: Vec::new() }).collect(),
        endpoints: Vec::new(),
    };
    if !content.headless {
        return Some(found);
    }
    for (port, told) in content.ports.iter().zip(&mut found.ports) {
        for target in ready(index, view, port) {
            let addresses = addresses(index, content, &target);
            told.endpoints.extend(addresses.iter().map(|address| SocketAddr::new(*address, target.address.port())));
            add(&mut found.endpoints, &target, addresses);
        }
    }
    if content.ports.is_empty() {
        // A headless Service may have no port at all.
        let portless = ServicePort { name: String::new(), port: 1, target: PortRef::Number(1), app_protocol: None };
        for target in ready(index, view, &portless) {
            add(&mut found.endpoints, &target, addresses(index, content, &target));
        }
    }
    found.endpoints.sort_by(|a, b| (a.address, &a.hostname).cmp(&(b.address, &b.hostname)));
    found.endpoints.dedup();
    Some(found)
}

fn add(endpoints: &mut Vec<NamedEndpoint>, target: &ClusterEndpoint, addresses: Vec<IpAddr>) {
    endpoints.extend(addresses.into_iter().map(|address| NamedEndpoint { hostname: target.hostname.clone(), address }));
}

fn ready(index: &Index, view: &ServiceView, port: &ServicePort) -> impl Iterator<Item = ClusterEndpoint> {
    targets(index, view, port).into_iter().filter(|target| target.health == HealthStatus::Healthy)
}

/// Those of the Service's families.
fn addresses(index: &Index, service: &core::Service, target: &ClusterEndpoint) -> Vec<IpAddr> {
    both_families(index, target).into_iter().filter(|address| service.families.has(address)).collect()
}

/// All addresses of the instance behind a target.
pub(super) fn both_families(index: &Index, target: &ClusterEndpoint) -> Vec<IpAddr> {
    let instance = index.instances.get(&(target.namespace.clone(), target.instance.clone()));
    let instance = instance.filter(|instance| instance.addresses.contains(&target.address.ip()));
    instance.map_or_else(|| vec![target.address.ip()], |instance| instance.addresses.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, World, WorldSettings};

    fn world(text: &str) -> World {
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) };
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![change], 0));
        world
    }

    const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: mysql, port: 1, targetPort: 3306}]}
---
apiVersion: v1
kind: Service
metadata: {name: db4, namespace: shop}
spec: {clusterIP: None, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, selector: {app: db}, ports: [{name: mysql, port: 3306}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: db-a, namespace: shop, labels: {app: db}}
spec: {addresses: [10.1.0.1, 'fd01::1']}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: lone, namespace: shop}
spec: {addresses: [10.1.0.9]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-outside, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: mysql, port: 3307}]
endpoints: [{addresses: [192.0.2.9]}, {addresses: [192.0.2.8], conditions: {ready: false}}]
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
";

    #[test]
    fn the_world_is_what_names_are_answered_from() {
        // Aim: Services, headless ones with instances and slices (ready ones only) in their families, instances by name and address,
        // namespaces; and the calls that follow.
        let world = world(SHOP);
        let said = |host: &str| {
            record(world.index(), "shop", host).map(|(record, calls)| {
                let services = record.services.iter().map(|service| format!("{}:{}", service.target, service.port));
                let records = record.addresses.iter().cloned().chain(services).chain(record.pointers.iter().cloned());
                (records.collect::<Vec<_>>().join(" "), calls.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            })
        };
        for (host, expected) in [
            ("web", Some(("10.96.0.1", "10.96.0.1:80 10.96.0.1:81"))),
            ("_http._tcp.web.shop.svc.cluster.local", Some(("web.shop.svc.cluster.local:80", "10.96.0.1:80"))),
            ("db", Some(("10.1.0.1 192.0.2.9 fd01::1", "10.1.0.1:3306 192.0.2.9:3307 [fd01::1]:3306"))),
            ("db4", Some(("10.1.0.1", "10.1.0.1:3306"))),
            ("db-a.db.shop", Some(("10.1.0.1 fd01::1", "10.1.0.1:3306 [fd01::1]:3306"))),
            (
                "_mysql._tcp.db.shop.svc.cluster.local",
                Some((
                    "db-a.db.shop.svc.cluster.local:3306 192-0-2-9.db.shop.svc.cluster.local:3307",
                    "10.1.0.1:3306 192.0.2.9:3307 [fd01::1]:3306",
                )),
            ),
            ("1.0.96.10.in-addr.arpa", Some(("web.shop.svc.cluster.local", ""))),
            ("1.0.1.10.in-addr.arpa", Some(("db-a.db.shop.svc.cluster.local db-a.db4.shop.svc.cluster.local", ""))),
            ("9.2.0.192.in-addr.arpa", Some(("192-0-2-9.db.shop.svc.cluster.local", ""))),
            ("9.0.1.10.in-addr.arpa", Some(("10-1-0-9.shop.pod.cluster.local", ""))),
            ("8.2.0.192.in-addr.arpa", None),
            ("shop.svc.cluster.local", Some(("", ""))),
            ("away.shop", None),
        ] {
            let found = said(host);
            assert_eq!(found.as_ref().map(|(records, calls)| (records.as_str(), calls.as_str())), expected, "{host}");
        }
    }

    #[test]
    fn every_ready_endpoint_of_a_headless_service_has_its_record() {
        // Aim: a thousand endpoints are a thousand records, while only so many listeners are sent ahead.
        let endpoints: Vec<String> = (0..1000).map(|n| format!("{{addresses: [10.1.{}.{}]}}", n / 250, n % 250 + 1)).collect();
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: many, namespace: shop}}\nspec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: many-1, namespace: shop, labels: {{kubernetes.io/service-name: many}}}}\n\
             addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{}]\n",
            endpoints.join(", ")
        );
        let world = world(&text);
        let (record, calls) = record(world.index(), "shop", "many").unwrap();
        assert_eq!((record.addresses.len(), calls.len()), (1000, CALLS_AHEAD_MAX));
    }
}
