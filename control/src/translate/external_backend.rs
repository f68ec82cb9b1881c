//! Backends outside the mesh (XBackend): which a reference leads to, what they speak, and whether EgressPolicies let Gateways call there.
//! A backend of this kind is a Service's in all else: by a name that no Service has.

use std::net::IpAddr;
use std::sync::Arc;

use proto::annotations::ROOT_NAMESPACE;
use proto::words::Protocol;

use super::refusal::WhyNot;
use crate::world::external_backend::{BackendProtocol, ExternalBackend};
use crate::world::route::Reference;
use crate::world::security::egress::{EgressPolicy, EgressRule};
use crate::world::{Index, Kind, Name, Object, Spec};

/// What names of such backends begin with.
const PREFIX: &str = "external/";

/// The content of an XBackend.
pub(super) fn content(object: &Object) -> Option<&ExternalBackend> {
    if let Spec::ExternalBackend(spec) = &object.spec { Some(spec) } else { None }
}

/// As which Service an XBackend is known, whether or not it is there.
pub(super) fn known_as((namespace, name): (&str, &str)) -> Name {
    (namespace.to_owned(), format!("{PREFIX}{name}"))
}

/// The XBackend that is known as that Service.
pub(super) fn of<'a>(index: &'a Index, service: &Name) -> Option<(&'a Arc<Object>, &'a ExternalBackend)> {
    let name = service.1.strip_prefix(PREFIX)?;
    let object = index.externals.get(&(service.0.clone(), name.to_owned()))?;
    Some((object, content(object)?))
}

/// Whether a reference means one.
pub(super) fn is_meant(reference: &Reference) -> bool {
    Kind::find(&reference.group, &reference.kind) == Some(Kind::XBackend)
}

/// Where a Gateway's route leads by a reference; `granted`: it is a Service's route, whose calls outside are EgressPolicies' to say.
///
/// # Errors
/// Nowhere.
pub(super) fn resolve(index: &Index, route: &Object, reference: &Reference, granted: bool) -> Result<(Name, u16), WhyNot> {
    let kind = route.key.kind;
    if granted || !matches!(kind, Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute) {
        let message = format!("an XBackend is for routes of Gateways, by HTTP, TLS and TCP; this {kind} leads to none");
        return Err(WhyNot::new("InvalidKind", message));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(&route.key.namespace);
    let from = (kind.group(), kind.text(), route.key.namespace.as_str());
    let to = (Kind::XBackend.group(), Kind::XBackend.text(), reference.name.as_str());
    // Before existence, so that a stranger cannot ask what exists.
    if namespace != route.key.namespace && !index.granted(from, namespace, to) {
        let message = format!("no ReferenceGrant in {namespace} lets {kind} of {} refer to XBackend {}", from.2, reference.name);
        return Err(WhyNot::new("RefNotPermitted", message));
    }
    let service = known_as((namespace, &reference.name));
    let Some((_, spec)) = of(index, &service) else {
        return Err(WhyNot::new("BackendNotFound", format!("there is no XBackend {namespace}/{}", reference.name)));
    };
    if let Some(port) = reference.port.filter(|port| *port != spec.port) {
        return Err(WhyNot::new("BackendNotFound", format!("XBackend {namespace}/{} has no port {port}", reference.name)));
    }
    let fits = match (kind, spec.protocol) {
        (_, None) => true,
        (Kind::HTTPRoute, Some(protocol)) => protocol != BackendProtocol::Tcp,
        (Kind::GRPCRoute, Some(protocol)) => matches!(protocol, BackendProtocol::Http | BackendProtocol::Http2),
        // Bytes are bytes, whatever they say.
        _ => true,
    };
    if !fits {
        let message = format!("XBackend {namespace}/{} speaks what no {kind} can lead to", reference.name);
        return Err(WhyNot::new("UnsupportedProtocol", message));
    }
    if let Some(why) = barred(index, namespace, (&spec.hostname, spec.port)) {
        return Err(WhyNot::new("RefNotPermitted", why));
    }
    Ok((service, spec.port))
}

/// What it speaks.
pub(super) fn protocol(spec: &ExternalBackend) -> Protocol {
    match spec.protocol {
        Some(BackendProtocol::Tcp) => Protocol::Tcp,
        Some(BackendProtocol::Http1) => Protocol::Http1,
        Some(BackendProtocol::Http2) => Protocol::Http2,
        Some(BackendProtocol::Http) | None => Protocol::Auto,
    }
}

/// Why a host outside the mesh may not be called for an object of a namespace: it is for EgressPolicies to allow, those for all of the
/// namespace and of the mesh.
pub(super) fn barred(index: &Index, namespace: &str, (host, port): (&str, u16)) -> Option<String> {
    let meant = |policy: &&EgressPolicy| policy.selector.is_none() && !policy.audit;
    let there = index.egress.iter().filter(|other| other.key.namespace == *namespace || other.key.namespace == ROOT_NAMESPACE);
    let mut policies = there.filter_map(|object| egress(object)).filter(meant).peekable();
    if policies.peek().is_none() {
        return index.mesh.outside_denied.then(|| format!("Mesh outsideMesh is Deny, and no EgressPolicy of {namespace} allows {host}"));
    }
    let allows = policies.any(|policy| policy.allow.iter().any(|rule| rule_allows(rule, (host, port))));
    (!allows).then(|| format!("no EgressPolicy of {namespace} allows {host}:{port}"))
}

fn egress(object: &Object) -> Option<&EgressPolicy> {
    if let Spec::EgressPolicy(policy) = &object.spec { Some(policy) } else { None }
}

fn rule_allows(rule: &EgressRule, (host, port): (&str, u16)) -> bool {
    let named = |known: &String| match known.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
        None => known == host,
    };
    let address = || host.parse::<IpAddr>().ok();
    let hosts = rule.hosts.is_empty() || rule.hosts.iter().any(named);
    let cidrs = rule.cidrs.is_empty() || address().is_some_and(|address| rule.cidrs.iter().any(|range| range.contains(&address)));
    // TLS that the proxy would begin by itself is for calls of applications.
    hosts && cidrs && (rule.ports.is_empty() || rule.ports.contains(&port)) && rule.originate.is_none()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::mesh::BackendPolicy;
    use proto::names::{Mode, POLICY};
    use proto::xds::cluster::Cluster;
    use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType};
    use proto::xds::core::address::Address;
    use proto::xds::endpoint::lb_endpoint::HostIdentifier;
    use proto::xds::route::RouteConfiguration;
    use proto::xds::route::route::Action;
    use proto::xds::route::route_action::ClusterSpecifier;
    use proto::xds::{self, unpack};

    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::translate::{Affected, Status, Subject, View, audiences, audit, statuses, touched, view};
    use crate::world::{Allocations, Change, ObjectKey, Origin, World, WorldSettings};

    const EDGE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{group: gateway.networking.x-k8s.io, kind: XBackend, name: api}]}]
";

    fn backend(namespace: &str, more: &str) -> String {
        format!(
            "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackend\nmetadata: {{name: api, namespace: {namespace}}}\n\
             spec: {{type: ExternalHostname, port: {{port: 443}}, externalHostname: {{hostname: api.example}}{more}}}\n"
        )
    }

    struct Play {
        world: World,
        folder: Folder,
    }

    impl Play {
        fn new() -> Self {
            let world = World::new(WorldSettings { assume_ready: true, ..WorldSettings::default() }, Allocations::default());
            let mut play = Self { world, folder: Folder::default() };
            play.put("edge", Some(EDGE));
            play.world.apply(vec![Change::Synced(Origin::Folder)]);
            play
        }

        fn put(&mut self, file: &str, text: Option<&str>) -> Affected {
            let before = self.world.clone();
            let change = FileChange { file: file.to_owned(), text: text.map(|text| Ok(text.to_owned())) };
            self.world.apply(self.folder.update(vec![change], 0));
            touched(&before, &self.world)
        }

        fn view(&self) -> View {
            let audience = audiences(&self.world).into_iter().find(|one| one.node.mode == Mode::Edge).unwrap();
            view(&self.world, &audience, &BTreeSet::new())
        }

        fn cluster(&self) -> Option<Cluster> {
            self.view().resources.get(&(xds::CLUSTER, "shop/external/api:443".to_owned())).map(|item| unpack(&item.any).unwrap())
        }

        fn status(&self, kind: Kind, name: &str) -> Status {
            statuses(&self.world)[&ObjectKey::new(kind, "shop", name)].clone()
        }

        fn resolved(&self) -> String {
            let status = self.status(Kind::HTTPRoute, "r");
            status.parents[0].conditions.iter().find(|said| said.kind == "ResolvedRefs").unwrap().reason.clone()
        }

        fn said(&self) -> String {
            audit(&self.world).iter().map(|problem| format!("{problem}\n")).collect()
        }
    }

    #[test]
    fn a_route_leads_to_a_host_outside() {
        // Aim: by name, without an assignment, with its own name for `Host`; in TLS as it says; status says so at the Gateway, and an edit touches the
        // Gateway that leads there; one that is not there is a bad backend.
        let mut play = Play::new();
        assert_eq!((play.resolved().as_str(), play.cluster()), ("BackendNotFound", None));
        let affected = play.put("api", Some(&backend("shop", ", protocol: HTTP2, tls: {mode: ServerOnly}")));
        let subject = Subject::service(&known_as(("shop", "api")));
        assert!(matches!(affected, Affected::Some(subjects) if subjects.contains(&subject)));
        let cluster = play.cluster().unwrap();
        let discovery = ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into());
        assert!(cluster.cluster_discovery_type == Some(discovery) && cluster.respect_dns_ttl && cluster.eds_cluster_config.is_none());
        let named = cluster.load_assignment.unwrap();
        let Some(HostIdentifier::Endpoint(host)) = &named.endpoints[0].lb_endpoints[0].host_identifier else { panic!("{named:?}") };
        let Some(Address::SocketAddress(host)) = host.address.as_ref().and_then(|address| address.address.as_ref()) else {
            panic!("{host:?}")
        };
        assert_eq!(host.address, "api.example");
        assert_eq!(cluster.transport_socket_matches[1].name, "tls");
        let view = play.view();
        assert!(!view.resources.contains_key(&(xds::ENDPOINT, "shop/external/api:443".to_owned())));
        let table: RouteConfiguration = unpack(&view.resources[&(xds::ROUTE, "edge/80".to_owned())].any).unwrap();
        let Some(Action::Route(action)) = &table.virtual_hosts[0].routes[0].action else { panic!("{table:?}") };
        let Some(ClusterSpecifier::WeightedClusters(all)) = &action.cluster_specifier else { panic!("{action:?}") };
        let policy: BackendPolicy = unpack(&all.clusters[0].typed_per_filter_config[POLICY]).unwrap();
        let rewrite = policy.filters.unwrap().rewrite.unwrap();
        assert_eq!((all.clusters[0].name.as_str(), rewrite.hostname.as_str()), ("shop/external/api:443", "api.example"));
        assert_eq!(play.resolved(), "ResolvedRefs");
        let status = play.status(Kind::XBackend, "api");
        let said: Vec<_> = status.parents[0].conditions.iter().map(|said| format!("{}={}", said.kind, said.status)).collect();
        assert_eq!(
            (said.join(" ").as_str(), status.parents[0].parent_ref["name"].as_str()),
            ("Accepted=True ResolvedRefs=True", Some("edge"))
        );
        assert!(!play.said().contains("plaintext"));
        play.put("api", Some(&backend("shop", "")));
        assert_eq!(play.cluster().unwrap().transport_socket_matches[1].name, "plaintext");
        assert!(play.said().contains("it is met in plaintext, outside the mesh"));
        play.put("api", None);
        assert_eq!(play.cluster(), None);
    }

    #[test]
    fn what_may_not_be_called_is_a_bad_backend() {
        // Aim: bytes for HTTP, another namespace without leave, an EgressPolicy of the namespace or the mesh's word, and CAs that are not there: each
        // closes, and says why.
        let mut play = Play::new();
        play.put("api", Some(&backend("shop", ", protocol: TCP")));
        assert_eq!((play.resolved().as_str(), play.cluster()), ("UnsupportedProtocol", None));
        let tls =
            ", tls: {mode: ServerOnly, validation: {hostname: a.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: none}]}}";
        play.put("api", Some(&backend("shop", tls)));
        assert_eq!(play.cluster(), None);
        let status = play.status(Kind::XBackend, "api");
        assert_eq!(status.parents[0].conditions[0].reason, "NoValidCACertificate");
        play.put("api", Some(&backend("shop", "")));
        assert!(play.cluster().is_some());
        let policy = |host: &str| {
            format!(
                "apiVersion: meshwright.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: out, namespace: shop}}\n\
                 spec: {{mode: Enforce, allow: [{{hosts: ['{host}'], ports: [443]}}]}}\n"
            )
        };
        play.put("out", Some(&policy("other.example")));
        assert_eq!((play.resolved().as_str(), play.cluster()), ("RefNotPermitted", None));
        assert_eq!(play.status(Kind::XBackend, "api").parents[0].conditions[0].reason, "NotAllowed");
        assert!(play.said().contains("no EgressPolicy of shop allows api.example:443"));
        play.put("out", Some(&policy("*.example")));
        assert!(play.cluster().is_some());
        play.put("out", None);
        play.put("api", Some(&backend("other", "")));
        play.put("edge", Some(&EDGE.replace("name: api}", "name: api, namespace: other}")));
        assert_eq!(play.resolved(), "RefNotPermitted");
        let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\n\
                     spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: gateway.networking.x-k8s.io, kind: XBackend}]}\n";
        play.put("grant", Some(grant));
        assert_eq!(play.resolved(), "ResolvedRefs");
    }

    #[test]
    fn sidecars_are_led_to_none() {
        // Aim: a Service's route may not lead past the mesh, where EgressPolicies have the word.
        let mut play = Play::new();
        play.put("api", Some(&backend("shop", "")));
        let service =
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n---\n";
        let route = EDGE.split("---\n").nth(1).unwrap().replace("{name: edge}", "{group: '', kind: Service, name: web, port: 80}");
        play.put("edge", Some(&format!("{service}{route}")));
        assert_eq!(play.resolved(), "InvalidKind");
    }
}
