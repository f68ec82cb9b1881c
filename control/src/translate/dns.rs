//! Names: those of Services and of instances below headless ones, as in Kubernetes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proto::xds::core::HealthStatus;

use super::cluster::{Target, targets};
use crate::world::{Index, ServiceView};

/// How long an answer holds; short, as Kubernetes' own.
pub(super) const TTL_SECS: u32 = 5;
/// Zones in which nobody else has names.
pub(super) const ZONES: [&str; 2] = ["cluster.local", "svc"];
/// Most endpoints in the answer for a headless name.
const ANSWERS_MAX: usize = 64;

/// What a name leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The destinations that will be called next.
    pub destinations: BTreeSet<SocketAddr>,
}

/// The answer for a name as a workload of namespace `client` sees it; `None`: no such name.
pub(super) fn answer(index: &Index, client: &str, host: &str) -> Option<Answer> {
    let labels: Vec<&str> = host.split('.').collect();
    match labels.as_slice() {
        [service] => of_service(index, client, service, None),
        [service, namespace] | [service, namespace, "svc"] | [service, namespace, "svc", "cluster", "local"] => {
            let found = of_service(index, namespace, service, None);
            // `instance.service`, within the namespace, has the form of `service.namespace`.
            if labels.len() == 2 { found.or_else(|| of_service(index, client, namespace, Some(service))) } else { found }
        }
        [instance, service, namespace]
        | [instance, service, namespace, "svc"]
        | [instance, service, namespace, "svc", "cluster", "local"] => of_service(index, namespace, service, Some(instance)),
        [dashed, namespace, "pod", "cluster", "local"] => of_pod(index, namespace, dashed),
        _ => None,
    }
}

fn of_service(index: &Index, namespace: &str, service: &str, instance: Option<&str>) -> Option<Answer> {
    let view = index.services.get(&(namespace.to_owned(), service.to_owned()))?;
    let service = view.service().filter(|service| !service.external_name)?;
    if service.headless {
        return of_headless(index, view, instance);
    }
    if instance.is_some() {
        return None;
    }
    let calls = view.addresses.iter().flat_map(|address| service.ports.iter().map(|port| SocketAddr::new(*address, port.port)));
    Some(Answer { addresses: view.addresses.clone(), destinations: calls.collect() })
}

/// Ready endpoints, in both families where they have both; one of them where its name is given.
fn of_headless(index: &Index, view: &ServiceView, instance: Option<&str>) -> Option<Answer> {
    let mut answer = Answer::default();
    let mut found = false;
    let families = view.service().map(|service| service.families).unwrap_or_default();
    for target in headless_targets(index, view) {
        if instance.is_some_and(|name| target.1.hostname.as_deref() != Some(name)) {
            continue;
        }
        found = true;
        for address in both_families(index, &target.1).into_iter().filter(|address| families.has(address)) {
            if !answer.addresses.contains(&address) && answer.addresses.len() < ANSWERS_MAX {
                answer.addresses.push(address);
            }
            if answer.addresses.contains(&address) && target.0 {
                answer.destinations.insert(SocketAddr::new(address, target.1.address.port()));
            }
        }
    }
    // The Service's own name exists without endpoints; an instance's does not.
    (found || instance.is_none()).then_some(answer)
}

/// Ready endpoints of a headless Service with, for each, whether it has a port to be called at: a headless Service may have none.
pub(super) fn headless_targets(index: &Index, view: &ServiceView) -> Vec<(bool, Target)> {
    let Some(service) = view.service() else { return Vec::new() };
    let mut all = Vec::new();
    for port in &service.ports {
        all.extend(targets(index, view, port).into_iter().map(|target| (true, target)));
    }
    if service.ports.is_empty() {
        let portless = crate::world::core::ServicePort {
            name: String::new(),
            port: 1,
            target: crate::world::core::PortRef::Number(1),
            app_protocol: None,
        };
        all.extend(targets(index, view, &portless).into_iter().map(|target| (false, target)));
    }
    all.retain(|(_, target)| target.health == HealthStatus::Healthy);
    all
}

/// All addresses of the instance behind a target.
pub(super) fn both_families(index: &Index, target: &Target) -> Vec<IpAddr> {
    let instance = index.instances.get(&(target.namespace.clone(), target.instance.clone()));
    let instance = instance.filter(|instance| instance.addresses.contains(&target.address.ip()));
    instance.map_or_else(|| vec![target.address.ip()], |instance| instance.addresses.clone())
}

/// `10-77-0-5.NAMESPACE.pod.cluster.local`.
fn of_pod(index: &Index, namespace: &str, dashed: &str) -> Option<Answer> {
    let address: IpAddr = dashed.replace('-', ".").parse().or_else(|_| dashed.replace('-', ":").parse()).ok()?;
    match index.addresses.get(&address)? {
        crate::world::Address::Instance(name) if name.0 == namespace => {
            Some(Answer { addresses: vec![address], destinations: BTreeSet::new() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, World, WorldSettings};

    #[test]
    fn names_lead_where_kubernetes_says() {
        // Aim: every form of a name, from inside and outside its namespace, with headless Services and instances below them.
        let text = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}, {port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 1, targetPort: 3306}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: db-a, namespace: shop, labels: {app: db}}
spec: {addresses: [10.1.0.1, 'fd01::1']}
";
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) };
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![change], 0));
        let both = "10.1.0.1 fd01::1";
        for (client, name, wanted) in [
            ("shop", "web", Some("10.96.0.1")),
            ("other", "web", None),
            ("other", "web.shop", Some("10.96.0.1")),
            ("other", "web.shop.svc", Some("10.96.0.1")),
            ("other", "web.shop.svc.cluster.local", Some("10.96.0.1")),
            ("other", "web.shop.svc.cluster.example", None),
            ("other", "nothing.shop.svc.cluster.local", None),
            ("other", "x.web.shop", None),
            ("shop", "db", Some(both)),
            ("other", "db.shop", Some(both)),
            ("other", "db-a.db.shop.svc.cluster.local", Some(both)),
            ("shop", "db-a.db", Some(both)),
            ("other", "db-b.db.shop", None),
            ("other", "10-1-0-1.shop.pod.cluster.local", Some("10.1.0.1")),
            ("other", "10-1-0-1.other.pod.cluster.local", None),
            ("shop", "", None),
        ] {
            let answer = answer(world.index(), client, name);
            let addresses = answer.map(|answer| answer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            assert_eq!(addresses.as_deref(), wanted, "{name} from {client}");
        }
        let calls = |name| answer(world.index(), "shop", name).unwrap().destinations.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(calls("web"), ["10.96.0.1:80", "10.96.0.1:81"]);
        assert_eq!(calls("db"), ["10.1.0.1:3306", "[fd01::1]:3306"]);
    }
}
