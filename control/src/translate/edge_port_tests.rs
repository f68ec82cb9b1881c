use std::collections::BTreeMap;
use std::fmt::Write as _;

use proto::xds::cluster::Cluster;
use proto::xds::core::{TransportSocket, transport_socket};
use proto::xds::listener::filter::ConfigType;
use proto::xds::route::RouteConfiguration;
use proto::xds::route::route::Action;
use proto::xds::tcp_proxy::TcpProxy;
use proto::xds::tcp_proxy::tcp_proxy::ClusterSpecifier;
use proto::xds::tls::{DownstreamTlsContext, Secret, UpstreamTlsContext, secret};
use proto::xds::{self, unpack};

use super::*;
use crate::source::{FileChange, Folder};
use crate::translate::{Affected, Subject, View, audiences, statuses, touched, view};
use crate::world::{Allocations, Change, Kind, ObjectKey, Origin, WorldSettings};

#[path = "outside_tests.rs"]
mod outside;

/// Manifests of a file, put into a world.
struct Mesh {
    world: World,
    folder: Folder,
}

impl Mesh {
    fn of(text: &str) -> Self {
        let mut world = World::new(WorldSettings { assume_ready: true, ..WorldSettings::default() }, Allocations::default());
        world.apply(vec![Change::Clock { now_ms: NOW_MS }]);
        let mut mesh = Self { world, folder: Folder::default() };
        mesh.put("main", Some(text));
        mesh.world.apply(vec![Change::Synced(Origin::Folder)]);
        mesh
    }

    /// What is touched by it.
    fn put(&mut self, file: &str, text: Option<&str>) -> Affected {
        let before = self.world.clone();
        let change = FileChange { file: file.to_owned(), text: text.map(|text| Ok(text.to_owned())) };
        let applied = self.world.apply(self.folder.update(vec![change], 0));
        let wrong: Vec<_> = applied.problems.iter().filter(|problem| problem.severity == crate::world::Severity::Error).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        touched(&before, &self.world)
    }

    fn view(&self, gateway: &str) -> View {
        let audience = audiences(&self.world).into_iter().find(|one| one.node.instance == gateway && one.node.mode == names::Mode::Edge);
        view(&self.world, &audience.unwrap(), &BTreeSet::new())
    }

    /// Conditions of an object and of its listeners: those that say more than that all is well.
    fn told(&self, kind: Kind, name: &str) -> String {
        let status = &statuses(&self.world)[&ObjectKey::new(kind, "shop", name)];
        let mut told = Vec::new();
        let ancestors = status.ancestors.iter().flat_map(|ancestor| &ancestor.conditions);
        for condition in status.conditions.iter().chain(ancestors) {
            told.push(format!("{}={}/{}", condition.kind, condition.status, condition.reason));
        }
        for listener in &status.listeners {
            let noteworthy = listener.conditions.iter().filter(|said| said.status != "True" || said.reason != said.kind);
            let said: Vec<_> = noteworthy.map(|said| format!("{}={}/{}", said.kind, said.status, said.reason)).collect();
            told.push(format!("{}({}): {}", listener.name, listener.attached_routes, said.join(" ")));
        }
        told.join("; ")
    }
}

/// 1 June 2026.
const NOW_MS: i64 = 1_780_272_000_000;

fn pair(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn document(version: &str, kind: &str, name: &str, namespace: &str, body: &str) -> String {
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{body}\n")
}

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

fn secret(name: &str, namespace: &str, host: &str) -> String {
    let (chain, key) = pair(host);
    let entries = serde_json::json!({"tls.crt": chain, "tls.key": key});
    document("v1", "Secret", name, namespace, &format!("type: kubernetes.io/tls\nstringData: {entries}"))
}

fn cas(name: &str, namespace: &str) -> String {
    document("v1", "ConfigMap", name, namespace, &format!("data: {}", serde_json::json!({"ca.crt": pair("ca").0})))
}

fn gateway(name: &str, spec: &str) -> String {
    document(GATEWAY_API, "Gateway", name, "shop", &format!("spec: {{gatewayClassName: meshwright, {spec}}}"))
}

fn route(kind: &str, name: &str, hostnames: &str, section: &str) -> String {
    let hostnames = if hostnames.is_empty() { String::new() } else { format!("hostnames: [{hostnames}], ") };
    let spec = format!(
        "spec: {{{hostnames}parentRefs: [{{name: edge, sectionName: {section}}}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}"
    );
    document(GATEWAY_API, kind, name, "shop", &spec)
}

const WEB: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                   spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: dns, port: 80, protocol: UDP, targetPort: 5353}]}\n\
                   ---\napiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n\
                   spec: {addresses: [10.1.0.1], ports: [{port: 80}]}\n";

fn socket<M: prost::Message + prost::Name + Default>(socket: Option<&TransportSocket>) -> Option<M> {
    match socket?.config_type.as_ref()? {
        transport_socket::ConfigType::TypedConfig(any) => unpack(any).ok(),
    }
}

/// Listeners, tables and secrets of a view, a line each.
fn shown(view: &View) -> Vec<String> {
    let mut lines = Vec::new();
    for item in view.resources.values() {
        if let Ok(listener) = unpack::<Listener>(&item.any) {
            let filters: Vec<&str> = listener.listener_filters.iter().map(|filter| filter.name.rsplit('.').next().unwrap()).collect();
            lines.push(format!("{} [{}]", listener.name, filters.join(" ")));
            lines.extend(listener.filter_chains.iter().map(chain_line));
        } else if let Ok(table) = unpack::<RouteConfiguration>(&item.any) {
            let hosts = table.virtual_hosts.iter().map(|host| {
                let fixed = |action: &Option<Action>| match action {
                    Some(Action::DirectResponse(answer)) => answer.status.to_string(),
                    _ => "route".to_owned(),
                };
                let rules: Vec<String> = host.routes.iter().map(|route| fixed(&route.action)).collect();
                format!("{} ({})", host.name, rules.join(" "))
            });
            lines.push(format!("table {}: {}", table.name, hosts.collect::<Vec<_>>().join(", ")));
        } else if let Ok(Secret { name, r#type: Some(kind) }) = unpack::<Secret>(&item.any) {
            let what = match kind {
                secret::Type::TlsCertificate(_) => "certificate",
                secret::Type::ValidationContext(_) => "cas",
                secret::Type::SessionTicketKeys(_) => "tickets",
                secret::Type::GenericSecret(_) => "text",
            };
            lines.push(format!("secret {name}: {what}"));
        }
    }
    lines
}

fn chain_line(chain: &FilterChain) -> String {
    let matched = chain.filter_chain_match.clone().unwrap_or_default();
    let mut line = format!("  {}", chain.name);
    if matched.transport_protocol == "tls" {
        _ = write!(line, " sni {}", if matched.server_names.is_empty() { "*".to_owned() } else { matched.server_names.join(" ") });
    }
    if let Some(context) = socket::<DownstreamTlsContext>(chain.transport_socket.as_ref()) {
        let common = context.common_tls_context.unwrap();
        let shows: Vec<&str> = common.tls_certificate_sds_secret_configs.iter().map(|sds| sds.name.as_str()).collect();
        _ = write!(line, " shows {} alpn {}", shows.join(" "), common.alpn_protocols.join(" "));
        if let Some(required) = context.require_client_certificate {
            _ = write!(line, " clients {}", if required { "must" } else { "may" });
        }
    }
    let config = |filter: &Filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config.clone(),
        _ => panic!("a filter"),
    };
    let (last, before) = chain.filters.split_last().unwrap();
    for asked in before.iter().map(|filter| unpack::<proto::mesh::Authorization>(&config(filter)).unwrap()) {
        _ = write!(line, " asks {}", asked.policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>().join(" "));
    }
    match unpack::<TcpProxy>(&config(last)) {
        Ok(TcpProxy { cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)), .. }) => {
            _ = write!(line, " -> {cluster}");
        }
        Ok(_) => line.push_str(" -> several"),
        Err(_) => line.push_str(" http"),
    }
    line
}

#[test]
fn https_has_a_chain_and_a_table_of_its_own_for_each_listener() {
    // Aim: chains by name with their certificates, and tables in which the hosts of other listeners are misdirected, a narrower one's routes
    // left out; a listener whose certificate is not there is there all the same and shows none.
    let listener = |name: &str, host: &str, secret: &str| {
        let hostname = if host.is_empty() { String::new() } else { format!("hostname: '{host}', ") };
        format!("{{name: {name}, port: 443, protocol: HTTPS, {hostname}tls: {{certificateRefs: [{{name: {secret}}}]}}}}")
    };
    let all = [listener("any", "", "one"), listener("wild", "*.a.example", "one"), listener("exact", "x.a.example", "gone")].join(", ");
    let text = [
        gateway("edge", &format!("listeners: [{all}]")),
        secret("one", "shop", "*.a.example"),
        route("HTTPRoute", "wide", "", "wild"),
        route("HTTPRoute", "both", "'x.a.example', 'y.a.example'", "wild"),
        route("HTTPRoute", "narrow", "", "exact"),
        WEB.to_owned(),
    ]
    .concat();
    let mesh = Mesh::of(&text);
    assert_eq!(
        shown(&mesh.view("edge")),
        [
            "edge/443 [tls_inspector]",
            "  any sni * shows tls/shop/one alpn h2 http/1.1 http",
            "  wild sni *.a.example shows tls/shop/one alpn h2 http/1.1 http",
            "  exact sni x.a.example shows tls/shop/gone alpn h2 http/1.1 http",
            "table edge/443/any: * (), *.a.example (421), x.a.example (421)",
            "table edge/443/exact: * (421), *.a.example (421), x.a.example (route)",
            "table edge/443/wild: * (421), *.a.example (route), x.a.example (421), y.a.example (route route)",
            "secret tls/shop/one: certificate",
        ]
    );
    assert_eq!(
        mesh.told(Kind::Gateway, "edge"),
        "Accepted=True/Accepted; Programmed=True/Programmed; any(0): OverlappingTLSConfig=True/OverlappingCertificates; wild(2): \
         OverlappingTLSConfig=True/OverlappingCertificates; exact(1): ResolvedRefs=False/InvalidCertificateRef \
         Programmed=False/Invalid OverlappingTLSConfig=True/OverlappingHostnames"
    );
}

#[test]
fn tls_goes_by_name_and_bytes_by_age() {
    // Aim: passed through and ended TLS, a chain per name, what no route is for is closed where a wider listener would have caught it; the
    // oldest TCPRoute and UDPRoute serve, and a listener without any refuses.
    let listeners = "{name: pass, port: 443, protocol: TLS, hostname: '*.p.example', tls: {mode: Passthrough}}, \
                     {name: end, port: 443, protocol: TLS, hostname: e.example, tls: {certificateRefs: [{name: one}]}}, \
                     {name: shut, port: 443, protocol: TLS, hostname: s.example, tls: {mode: Passthrough}}, \
                     {name: all, port: 443, protocol: TLS, tls: {mode: Passthrough}}, \
                     {name: tcp, port: 90, protocol: TCP}, {name: none, port: 91, protocol: TCP}, {name: udp, port: 90, protocol: UDP}";
    let text = [
        gateway("edge", &format!("listeners: [{listeners}]")),
        secret("one", "shop", "e.example"),
        route("TLSRoute", "pass", "a.p.example, b.p.example, c.other", "pass"),
        route("TLSRoute", "end", "e.example", "end"),
        route("TLSRoute", "rest", "'*.example', s.example", "all"),
        route("TCPRoute", "tcp", "", "tcp"),
        route("TCPRoute", "tcp-younger", "", "tcp"),
        route("UDPRoute", "udp", "", "udp"),
        WEB.to_owned(),
    ]
    .concat();
    let mesh = Mesh::of(&text);
    let view = mesh.view("edge");
    assert_eq!(
        shown(&view),
        [
            "edge/443 [tls_inspector]",
            "  pass/a.p.example sni a.p.example -> shop/web:80",
            "  pass/b.p.example sni b.p.example -> shop/web:80",
            "  pass/*.p.example sni *.p.example -> bad_backend",
            "  end sni e.example shows tls/shop/one alpn  -> shop/web:80",
            "  shut/s.example sni s.example -> bad_backend",
            "  all/*.example sni *.example -> shop/web:80",
            "edge/90 []",
            "  tcp -> shop/web:80",
            "edge/90/udp [udp_proxy]",
            "edge/91 []",
            "  none -> bad_backend",
            "secret tls/shop/one: certificate",
        ]
    );
    let clusters: Vec<&str> = view.resources.keys().filter(|(url, _)| *url == xds::CLUSTER).map(|(_, name)| name.as_str()).collect();
    assert_eq!(clusters, ["shop/web:80", "shop/web:80/udp"]);
    let told = mesh.told(Kind::Gateway, "edge");
    assert!(told.contains("tcp(2): ") && told.contains("udp(1): ") && told.contains("none(0): "), "{told}");
}

#[test]
fn addresses_are_judged_where_no_request_comes() {
    // Aim: what a listener for bytes allows is asked at its port, whatever routes of others allow; what is said of one of several listeners for
    // TLS its own chains ask; where TCP and UDP have one port it cannot be asked for one alone, so that one leads nowhere and the policy's
    // status says so; the others go on, and a policy that never was good lets nobody in.
    let policy = |name: &str, target: &str, says: &str| {
        let spec = format!("spec: {{targetRefs: [{{{target}}}], {says}}}");
        document("meshwright.dev/v1alpha1", "AuthorizationPolicy", name, "shop", &spec)
    };
    let listener = |section: &str| format!("kind: Gateway, name: edge, sectionName: {section}");
    let blocks = "rules: [{from: [{ipBlocks: [192.0.2.0/24]}]}]";
    let listeners = "{name: pass, port: 443, protocol: TLS, hostname: a.example, tls: {mode: Passthrough}}, \
                     {name: other, port: 443, protocol: TLS, hostname: b.example, tls: {mode: Passthrough}}, \
                     {name: dns, port: 53, protocol: TCP}, {name: udp, port: 53, protocol: UDP}, \
                     {name: tcp, port: 90, protocol: TCP}, {name: web, port: 8080, protocol: HTTP}";
    let text = [
        gateway("edge", &format!("listeners: [{listeners}]")),
        route("TLSRoute", "pass", "a.example", "pass"),
        route("TLSRoute", "other", "b.example", "other"),
        route("TCPRoute", "dns", "", "dns"),
        route("UDPRoute", "udp", "", "udp"),
        route("TCPRoute", "tcp", "", "tcp"),
        route("HTTPRoute", "web", "", "web"),
        policy("office", &listener("tcp"), &format!("action: Allow, {blocks}")),
        policy("partners", "kind: HTTPRoute, name: web", "action: Allow, rules: [{from: [{consumers: ['partners/*']}]}]"),
        policy("one", &listener("pass"), &format!("action: Deny, {blocks}")),
        policy("names", &listener("dns"), &format!("action: Allow, {blocks}")),
        policy("trial", &listener("other"), &format!("action: Deny, dryRun: true, {blocks}")),
        WEB.to_owned(),
    ]
    .concat();
    let mut mesh = Mesh::of(&text);
    let view = mesh.view("edge");
    let asked = |view: &View| -> Vec<String> {
        let doors = view.resources.iter().filter(|((url, _), _)| *url == crate::translate::AUTHORIZATION);
        let told = doors.map(|((_, name), item)| {
            let asked: proto::mesh::Authorization = unpack(&item.any).unwrap();
            format!("{name}: {}", asked.policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>().join(" "))
        });
        told.collect()
    };
    assert_eq!(asked(&view), ["edge/90: shop/office"]);
    let lines = shown(&view);
    for (line, there) in [
        ("  pass/a.example sni a.example asks shop/one -> shop/web:80", true),
        ("  other/b.example sni b.example asks shop/trial -> shop/web:80", true),
        ("  dns -> bad_backend", true),
        ("  tcp -> shop/web:80", true),
    ] {
        assert_eq!(lines.iter().any(|known| known == line), there, "{line}: {lines:#?}");
    }
    for (name, partly) in [("names", true), ("one", false), ("office", false)] {
        let told = mesh.told(Kind::AuthorizationPolicy, name);
        assert_eq!(told.contains("PartiallyInvalid=True/UnsupportedValue"), partly, "{name}: {told}");
    }
    let broken = policy("broken", &listener("tcp"), "action: Alow");
    let change = FileChange { file: "broken".to_owned(), text: Some(Ok(broken)) };
    mesh.world.apply(mesh.folder.update(vec![change], 0));
    assert!(shown(&mesh.view("edge")).contains(&"  tcp -> bad_backend".to_owned()));
}

#[test]
fn policies_that_look_at_requests_are_asked_of_connections() {
    // Aim: beside HTTPS a TLS listener asks for itself what its Gateway allows and denies, also where another Allow holds for a route; a Deny that
    // looks at requests is asked of bytes, too, and its status says what that comes to.
    let policy = |name: &str, target: &str, says: &str| {
        let spec = format!("spec: {{targetRefs: [{{{target}}}], {says}}}");
        document("meshwright.dev/v1alpha1", "AuthorizationPolicy", name, "shop", &spec)
    };
    let listeners = "{name: web, port: 443, protocol: HTTPS, hostname: w.example, tls: {certificateRefs: [{name: one}]}}, \
                     {name: pass, port: 443, protocol: TLS, hostname: p.example, tls: {mode: Passthrough}}, \
                     {name: tcp, port: 90, protocol: TCP}";
    let text = [
        gateway("edge", &format!("listeners: [{listeners}]")),
        route("TLSRoute", "pass", "p.example", "pass"),
        route("TCPRoute", "tcp", "", "tcp"),
        route("HTTPRoute", "web", "", "web"),
        policy("all", "kind: Gateway, name: edge", "action: Allow, rules: [{from: [{ipBlocks: [192.0.2.0/24]}]}]"),
        policy("admin", "kind: Gateway, name: edge", "action: Deny, rules: [{to: [{paths: [{type: PathPrefix, value: /admin}]}]}]"),
        policy("partners", "kind: HTTPRoute, name: web", "action: Allow, rules: [{from: [{consumers: ['partners/*']}]}]"),
        WEB.to_owned(),
    ]
    .concat();
    let mesh = Mesh::of(&text);
    let view = mesh.view("edge");
    let lines = shown(&view);
    let wanted = "  pass/p.example sni p.example asks shop/admin shop/all -> shop/web:80";
    assert!(lines.iter().any(|line| line == wanted), "{lines:#?}");
    let doors = view.resources.iter().filter(|((url, _), _)| *url == crate::translate::AUTHORIZATION);
    let doors: Vec<String> = doors
        .map(|((_, name), item)| {
            let asked: proto::mesh::Authorization = unpack(&item.any).unwrap();
            format!("{name}: {}", asked.policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>().join(" "))
        })
        .collect();
    assert_eq!(doors, ["edge/90: shop/admin shop/all"]);
    let told = mesh.told(Kind::AuthorizationPolicy, "admin");
    assert!(told.contains("PartiallyInvalid=True/UnsupportedValue"), "{told}");
    assert!(!mesh.told(Kind::AuthorizationPolicy, "all").contains("PartiallyInvalid"));
}

#[test]
fn clients_certificates_are_asked_for_as_said() {
    // Aim: the default and a port's own word, whom nobody checks, and what cannot be read: then the listener is not accepted and lets nobody
    // in; other Gateways' and namespaces' certificates are shown by leave alone.
    let https = |name: &str, port: u16, of: &str| {
        format!("{{name: {name}, port: {port}, protocol: HTTPS, tls: {{certificateRefs: [{{name: one{of}}}]}}}}")
    };
    let cas_ref = |name: &str| format!("caCertificateRefs: [{{group: '', kind: ConfigMap, name: {name}}}]");
    let spec = format!(
        "tls: {{frontend: {{default: {{validation: {{{}}}}}, perPort: [{{port: 444, tls: {{validation: {{{}, mode: AllowInsecureFallback}}}}}}, \
         {{port: 445, tls: {{validation: {{{}}}}}}}, {{port: 446, tls: {{}}}}]}}}}, listeners: [{}]",
        cas_ref("roots"),
        cas_ref("roots"),
        cas_ref("missing"),
        [https("a", 443, ""), https("b", 444, ""), https("c", 445, ""), https("d", 446, ", namespace: other")].join(", ")
    );
    let text =
        [gateway("edge", &spec), secret("one", "shop", "a.example"), secret("one", "other", "a.example"), cas("roots", "shop")].concat();
    let mut mesh = Mesh::of(&text);
    let lines = shown(&mesh.view("edge"));
    let chains: Vec<&String> = lines.iter().filter(|line| line.starts_with("  ")).collect();
    assert_eq!(
        chains,
        [
            "  a sni * shows tls/shop/one alpn h2 http/1.1 clients must http",
            "  b sni * shows tls/shop/one alpn h2 http/1.1 clients may http",
            "  c sni * shows tls/shop/one alpn h2 http/1.1 clients must http",
            "  d sni * shows tls/none alpn h2 http/1.1 http",
        ]
    );
    let secrets = |mesh: &Mesh| shown(&mesh.view("edge")).into_iter().filter(|line| line.starts_with("secret")).collect::<Vec<_>>();
    assert_eq!(
        secrets(&mesh),
        ["secret ca/frontend/shop/edge/0: cas", "secret ca/frontend/shop/edge/444: cas", "secret tls/shop/one: certificate"]
    );
    assert_eq!(
        mesh.told(Kind::Gateway, "edge"),
        "Accepted=True/ListenersNotValid; Programmed=True/Programmed; InsecureFrontendValidationMode=True/ConfigurationChanged; a(0): ; b(0): ; \
         c(0): Accepted=False/NoValidCACertificate ResolvedRefs=False/InvalidCACertificateRef Programmed=False/Invalid; \
         d(0): ResolvedRefs=False/RefNotPermitted Programmed=False/Invalid"
    );
    let grant = document(
        GATEWAY_API,
        "ReferenceGrant",
        "g",
        "other",
        "spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: '', kind: Secret}]}",
    );
    mesh.put("grant", Some(&grant));
    assert!(secrets(&mesh).contains(&"secret tls/other/one: certificate".to_owned()));
}

#[test]
fn a_secret_wakes_those_alone_who_have_it() {
    // Aim: another certificate touches what its Gateway keeps secret, and nothing else; keys of tickets that of all Gateways; nobody else is
    // ever sent either.
    let https = |name: &str| format!("listeners: [{{name: a, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: {name}}}]}}}}]");
    let mut mesh = Mesh::of(&[gateway("edge", &https("one")), gateway("other", &https("two")), WEB.to_owned()].concat());
    let name = |gateway: &str| ("shop".to_owned(), gateway.to_owned());
    let only = |gateways: &[&str]| Affected::Some(gateways.iter().map(|gateway| Subject::secrets(&name(gateway))).collect());
    assert_eq!(mesh.put("one", Some(&secret("one", "shop", "a.example"))), only(&["edge"]));
    assert_eq!(mesh.put("one", Some(&secret("one", "shop", "b.example"))), only(&["edge"]));
    assert_eq!(mesh.put("unused", Some(&secret("unused", "shop", "b.example"))), only(&[]));
    let before = mesh.world.clone();
    let seeds = mesh.world.tickets().turned(NOW_MS, &BTreeSet::new(), |bytes| {
        bytes.fill(7);
        Ok::<_, ()>(())
    });
    mesh.world.apply(vec![Change::Tickets(seeds.unwrap().unwrap())]);
    assert_eq!(touched(&before, &mesh.world), only(&["edge", "other"]));
    let secrets =
        |mesh: &Mesh, gateway: &str| shown(&mesh.view(gateway)).into_iter().filter(|line| line.starts_with("secret")).collect::<Vec<_>>();
    assert_eq!(secrets(&mesh, "edge"), ["secret tickets/shop/edge: tickets", "secret tls/shop/one: certificate"]);
    assert_eq!(secrets(&mesh, "other"), ["secret tickets/shop/other: tickets"]);
    for audience in audiences(&mesh.world).into_iter().filter(|one| one.node.mode == names::Mode::Sidecar) {
        assert!(!view(&mesh.world, &audience, &BTreeSet::new()).resources.keys().any(|(url, _)| *url == xds::SECRET));
    }
    // Gone, it is shown for a day more, and its listener says so.
    assert_eq!(mesh.put("one", None), only(&["edge"]));
    assert!(secrets(&mesh, "edge").contains(&"secret tls/shop/one: certificate".to_owned()));
    assert!(mesh.told(Kind::Gateway, "edge").ends_with("a(0): ResolvedRefs=False/InvalidCertificateRef"));
    mesh.world.apply(vec![Change::Clock { now_ms: NOW_MS + crate::world::KEPT_MS }]);
    assert_eq!(secrets(&mesh, "edge"), ["secret tickets/shop/edge: tickets"]);
}

#[test]
fn a_secrets_content_is_nowhere_but_with_its_edge() {
    // Aim: neither objects as they are shown, nor status, nor what analyze says, nor debug output hold a private key.
    let text = secret("one", "shop", "a.example");
    let key = text.split("BEGIN PRIVATE KEY-----\\n").nth(1).unwrap()[..40].to_owned();
    let https = "listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: one}]}}]";
    let mesh = Mesh::of(&[gateway("edge", https), text].concat());
    let mut all = String::new();
    for (object, slot) in mesh.world.slots().iter() {
        _ = write!(all, "{object}{:?}{}", slot.live().map(|live| &live.object), slot.live().map_or("", |live| &live.raw));
    }
    _ = write!(all, "{:?}{:?}{:?}", statuses(&mesh.world), mesh.world.credentials(), mesh.world.tickets());
    all.extend(crate::translate::audit(&mesh.world).iter().map(ToString::to_string));
    assert!(!all.contains(&key) && !all.contains("PRIVATE KEY"));
    let sent = mesh.view("edge").resources.into_iter().filter(|((_, name), item)| {
        let holds = item.any.value.windows(key.len()).any(|window| window == key.as_bytes());
        assert!(!holds || name == "tls/shop/one");
        holds
    });
    assert_eq!(sent.count(), 1);
}

#[test]
fn backends_are_met_as_their_policy_says_or_not_at_all() {
    // Aim: a port's own policy before one for the whole Service, of two alike the older; whoever cannot be believed is answered 500; the loser
    // and the broken say so at the Gateway. That endpoints are of the mesh changes nothing of what their applications prove, and where their
    // sidecars expect HTTP, `analyze` warns.
    let policy = |name: &str, section: &str, trust: &str| {
        let section = if section.is_empty() { String::new() } else { format!(", sectionName: {section}") };
        document(
            GATEWAY_API,
            "BackendTLSPolicy",
            name,
            "shop",
            &format!(
                "spec: {{targetRefs: [{{group: '', kind: Service, name: web{section}}}], validation: {{hostname: {name}.example, {trust}}}}}"
            ),
        )
    };
    let roots = "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]";
    let base = [
        gateway("edge", "listeners: [{name: http, port: 80, protocol: HTTP}], tls: {backend: {clientCertificateRef: {name: me}}}"),
        route("HTTPRoute", "web", "", "http"),
        secret("me", "shop", "edge.example"),
        cas("roots", "shop"),
        WEB.to_owned(),
    ]
    .concat();
    let met = |mesh: &Mesh| {
        let view = mesh.view("edge");
        let cluster = view.resources.get(&(xds::CLUSTER, "shop/web:80".to_owned()));
        let Some(cluster) = cluster else { return "500".to_owned() };
        let cluster: Cluster = unpack(&cluster.any).unwrap();
        let others = &cluster.transport_socket_matches[1];
        match socket::<UpstreamTlsContext>(others.transport_socket.as_ref()) {
            Some(tls) => {
                let shows = &tls.common_tls_context.as_ref().unwrap().tls_certificate_sds_secret_configs;
                format!("{} shows {}", tls.sni, shows[0].name)
            }
            None => others.name.clone(),
        }
    };
    let accepted = |mesh: &Mesh, name: &str| mesh.told(Kind::BackendTLSPolicy, name);
    let mut mesh = Mesh::of(&base);
    assert_eq!(met(&mesh), "plaintext");
    mesh.put("one", Some(&policy("one", "", "wellKnownCACertificates: System")));
    assert_eq!(met(&mesh), "one.example shows tls/shop/me");
    assert_eq!(accepted(&mesh, "one"), "Accepted=True/Accepted; ResolvedRefs=True/ResolvedRefs");
    mesh.put("two", Some(&policy("two", "", roots)));
    assert_eq!(met(&mesh), "one.example shows tls/shop/me");
    assert_eq!(accepted(&mesh, "two"), "Accepted=False/Conflicted; ResolvedRefs=True/ResolvedRefs");
    mesh.put("three", Some(&policy("three", "http", roots)));
    assert_eq!(met(&mesh), "three.example shows tls/shop/me");
    mesh.put("three", Some(&policy("three", "http", &roots.replace("roots", "none"))));
    assert_eq!(met(&mesh), "500");
    assert_eq!(accepted(&mesh, "three"), "Accepted=False/NoValidCACertificate; ResolvedRefs=False/InvalidCACertificateRef");
    mesh.put("three", Some(&policy("three", "http", &roots.replace("ConfigMap", "Service"))));
    assert_eq!((met(&mesh).as_str(), accepted(&mesh, "three").ends_with("ResolvedRefs=False/InvalidKind")), ("500", true));
    mesh.put("three", None);
    mesh.put("meshed", Some("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {meshwright.dev/inject: enabled}}\n"));
    assert_eq!(met(&mesh), "one.example shows tls/shop/me");
    assert_eq!(accepted(&mesh, "one"), "Accepted=True/Accepted; ResolvedRefs=True/ResolvedRefs");
    assert!(crate::translate::audit(&mesh.world).iter().any(|problem| problem.to_string().contains("takes HTTP at port")));
    let others: BTreeMap<_, _> = statuses(&mesh.world).into_iter().filter(|(key, _)| key.kind == Kind::Gateway).collect();
    assert!(others.values().next().unwrap().conditions.iter().any(|said| said.kind == "ResolvedRefs" && said.status == "True"));
}

#[test]
fn a_port_inside_tls_is_opened_by_its_policy() {
    // Aim: an HTTPRoute may lead to a port that says HTTPS where a BackendTLSPolicy is about it, good or not, and nowhere else.
    let policy = |trust: &str| {
        document(
            GATEWAY_API,
            "BackendTLSPolicy",
            "p",
            "shop",
            &format!("spec: {{targetRefs: [{{group: '', kind: Service, name: web}}], validation: {{hostname: a.example, {trust}}}}}"),
        )
    };
    let web = WEB.replace("port: 80}, {", "port: 80, appProtocol: HTTPS}, {");
    let base =
        [gateway("edge", "listeners: [{name: http, port: 80, protocol: HTTP}]"), route("HTTPRoute", "web", "", "http"), web].concat();
    let mut mesh = Mesh::of(&base);
    let stands = |mesh: &Mesh| {
        let status = &statuses(&mesh.world)[&ObjectKey::new(Kind::HTTPRoute, "shop", "web")];
        let resolved = status.parents[0].conditions.iter().find(|said| said.kind == "ResolvedRefs").unwrap().reason.clone();
        (resolved, mesh.view("edge").resources.contains_key(&(xds::CLUSTER, "shop/web:80".to_owned())))
    };
    assert_eq!(stands(&mesh), ("UnsupportedProtocol".to_owned(), false));
    let affected = mesh.put("p", Some(&policy("wellKnownCACertificates: System")));
    assert!(matches!(affected, Affected::Some(subjects) if subjects.contains(&Subject::service(&("shop".to_owned(), "web".to_owned())))));
    assert_eq!(stands(&mesh), ("ResolvedRefs".to_owned(), true));
    mesh.put("p", Some(&policy("caCertificateRefs: [{group: '', kind: ConfigMap, name: none}]")));
    assert_eq!(stands(&mesh), ("ResolvedRefs".to_owned(), false), "what cannot be believed is answered 500");
    mesh.put("p", None);
    assert_eq!(stands(&mesh), ("UnsupportedProtocol".to_owned(), false));
}

#[test]
fn sets_bring_listeners_and_certificates_of_their_own() {
    // Aim: a set of another namespace has its own certificates by its own leave, routes that name it, and a status; the Gateway counts it.
    let spec = "allowedListeners: {namespaces: {from: All}}, listeners: [{name: http, port: 80, protocol: HTTP}]";
    let set = |of: &str| {
        let own = format!("name: own, port: 443, protocol: HTTPS, hostname: t.example, tls: {{certificateRefs: [{{name: one{of}}}]}}");
        document(GATEWAY_API, "ListenerSet", "team", "shop", &format!("spec: {{parentRef: {{name: edge}}, listeners: [{{{own}}}]}}"))
    };
    let route = route("HTTPRoute", "r", "", "own").replace("name: edge", "kind: ListenerSet, name: team");
    let base =
        [gateway("edge", spec), route, secret("one", "shop", "t.example"), secret("one", "other", "t.example"), WEB.to_owned()].concat();
    let mut mesh = Mesh::of(&base);
    let affected = mesh.put("set", Some(&set("")));
    assert!(matches!(affected, Affected::Some(subjects) if subjects.contains(&Subject::gateway(&("shop".to_owned(), "edge".to_owned())))));
    let lines = shown(&mesh.view("edge"));
    assert!(lines.contains(&"  shop/team/own sni t.example shows tls/shop/one alpn h2 http/1.1 http".to_owned()), "{lines:#?}");
    assert!(lines.contains(&"table edge/443/shop/team/own: t.example (route)".to_owned()), "{lines:#?}");
    assert_eq!(mesh.told(Kind::ListenerSet, "team"), "Accepted=True/Accepted; Programmed=True/Programmed; own(1): ");
    let attached = |mesh: &Mesh| statuses(&mesh.world)[&ObjectKey::new(Kind::Gateway, "shop", "edge")].attached_listener_sets;
    assert_eq!(attached(&mesh), Some(1));
    mesh.put("set", Some(&set(", namespace: other")));
    assert_eq!(
        mesh.told(Kind::ListenerSet, "team"),
        "Accepted=False/ListenersNotValid; Programmed=False/ListenersNotValid; own(1): ResolvedRefs=False/RefNotPermitted Programmed=False/Invalid"
    );
    assert_eq!(attached(&mesh), Some(0));
}
