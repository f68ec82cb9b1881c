//! Where a cluster's Gateways are reached. What serves one says so by Gateway API's own label (`GATEWAY_NAME`): a Service in front of its
//! proxy, or the proxy's pods themselves where there is none.

use proto::annotations::GATEWAY_NAME;

use crate::world::core::Ingress;
use crate::world::{Index, Instance, Name, ServiceView};

/// Most addresses that the schema of a Gateway's status takes.
const PLACES_MAX: usize = 16;

/// Where a Gateway is reached: what load balancers gave its Services, else their external addresses, else the virtual ones; without
/// Services that have any, the addresses of its ready pods. Each once, in the order of the Services' and pods' names.
pub(super) fn places(index: &Index, gateway: &Name) -> Vec<Ingress> {
    let first = (gateway.0.clone(), String::new());
    let services = index.services.from(&first).take_while(|(name, _)| name.0 == gateway.0).map(|(_, view)| view);
    let services: Vec<&ServiceView> = services.filter(|view| view.object.label(GATEWAY_NAME) == Some(gateway.1.as_str())).collect();
    let outside = services.iter().filter_map(|view| view.service()).flat_map(|service| service.outside.iter().cloned());
    let mut places: Vec<Ingress> = outside.collect();
    if places.is_empty() {
        places = services.iter().flat_map(|view| &view.addresses).copied().map(Ingress::Address).collect();
    }
    if places.is_empty() {
        let pods = index.instances.from(&first).take_while(|(name, _)| name.0 == gateway.0).map(|(_, instance)| instance);
        places = pods
            .filter(|instance| serves(instance, &gateway.1))
            .flat_map(|pod| pod.addresses.iter().copied())
            .map(Ingress::Address)
            .collect();
    }
    let mut known = Vec::new();
    places.retain(|place| {
        let new = !known.contains(place);
        known.extend(new.then(|| place.clone()));
        new
    });
    places.truncate(PLACES_MAX);
    places
}

fn serves(instance: &Instance, gateway: &str) -> bool {
    instance.pod().is_some()
        && instance.ready
        && !instance.draining
        && instance.labels().get(GATEWAY_NAME).is_some_and(|name| name == gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, World, WorldSettings};

    fn service(name: &str, gateway: &str, spec: &str, status: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: {gateway}}}}}\n\
             spec: {{{spec}, ports: [{{port: 80}}]}}\nstatus: {{loadBalancer: {{{status}}}}}\n"
        )
    }

    fn pod(name: &str, gateway: &str, address: &str, ready: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: {gateway}}}}}\n\
             spec: {{}}\nstatus: {{podIP: {address}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
        )
    }

    #[test]
    fn a_gateway_is_where_its_services_are_or_its_pods() {
        // Aim: load balancers before external before virtual addresses, of all Services with the label; ready pods where no Service has any;
        // nothing of another Gateway's or another namespace's.
        let pods =
            [pod("p1", "public", "10.0.0.2", "True"), pod("p2", "public", "10.0.0.3", "False"), pod("p3", "other", "10.0.0.4", "True")]
                .concat();
        for (services, wanted) in [
            (String::new(), "10.0.0.2"),
            (service("s", "public", "clusterIP: None", ""), "10.0.0.2"),
            (service("s", "other", "clusterIP: 10.96.0.1", ""), "10.0.0.2"),
            (
                service("s", "public", "clusterIP: 10.96.0.1", "") + &service("t", "public", "clusterIP: 10.96.0.2", ""),
                "10.96.0.1 10.96.0.2",
            ),
            (service("s", "public", "clusterIP: 10.96.0.1, externalIPs: [192.0.2.1, 192.0.2.1]", ""), "192.0.2.1"),
            (
                service(
                    "s",
                    "public",
                    "clusterIP: 10.96.0.1, externalIPs: [192.0.2.1]",
                    "ingress: [{ip: 192.0.2.9}, {hostname: lb.example}]",
                ),
                "192.0.2.9 lb.example",
            ),
        ] {
            let mut world = World::new(WorldSettings { in_cluster: true, ..WorldSettings::default() }, Allocations::default());
            let text = format!("{pods}{services}");
            world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
            let told = |place: &Ingress| match place {
                Ingress::Address(address) => address.to_string(),
                Ingress::Name(name) => name.clone(),
            };
            let places = |namespace: &str| places(world.index(), &(namespace.to_owned(), "public".to_owned()));
            assert_eq!(places("a").iter().map(told).collect::<Vec<_>>().join(" "), wanted, "{services}");
            assert!(places("b").is_empty());
        }
    }
}
