//! Worlds by chance, for tests: few names, so that everything meets, and changes one or two at a time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use crate::source::{FileChange, Folder};
use crate::world::canary::{CanaryBook, CanaryPhase, CanaryStanding, content};
use crate::world::{Allocations, Change, InstanceState, World, WorldSettings};

/// A world that changes.
pub(super) struct Random {
    seed: u64,
    folder: Folder,
    now_ms: i64,
    running: BTreeMap<(String, String), InstanceState>,
    pub(super) world: World,
    /// Every third world is mostly about who calls its edge: chance alone would rarely bring all together that this takes.
    about_callers: bool,
    /// What was changed last, for whoever reads a failure.
    pub(super) said: String,
}

const OWN: &str = "meshwright.dev/v1alpha1";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const NAMESPACES: [&str; 2] = ["a", "b"];
const SERVICES: [&str; 4] = ["s0", "s1", "s2", "s3"];
const WORKLOADS: [&str; 5] = ["x", "x-1", "x-1-0", "y", "z"];
pub(super) const ADDRESSES: [&str; 5] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"];
pub(super) const VIRTUAL: [&str; 4] = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4"];

/// Two certificates with their keys.
static PAIRS: LazyLock<[(String, String); 2]> = LazyLock::new(|| {
    ["a.example.com", "b.example.com"].map(|name| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
});

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut this = Self {
            seed,
            folder: Folder::default(),
            now_ms: 0,
            running: BTreeMap::new(),
            // Every other one is a cluster's.
            world: World::new(WorldSettings { in_cluster: seed.is_multiple_of(2), ..WorldSettings::default() }, Allocations::default()),
            about_callers: seed.is_multiple_of(3),
            said: String::new(),
        };
        // Something to begin with.
        for _ in 0..40 {
            this.change();
        }
        this
    }

    /// A number below another.
    pub(super) fn draw(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        usize::try_from(self.seed >> 11).unwrap_or(0) % below
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.draw(from.len())]
    }

    fn some(&mut self, text: &str) -> String {
        if self.draw(3) == 0 { text.to_owned() } else { String::new() }
    }

    /// One step: mostly one change of an object, now and then several, or of what runs.
    pub(super) fn change(&mut self) {
        self.now_ms += 1;
        self.said.clear();
        if self.draw(12) == 0 {
            let change = self.canaries();
            self.world.apply(vec![change]);
            return;
        }
        if self.draw(4) == 0 {
            let change = self.runtime();
            self.world.apply(vec![change]);
            return;
        }
        let count = 1 + self.draw(8) / 6;
        let changes: Vec<FileChange> = (0..count).map(|_| self.object()).collect();
        self.world.apply(self.folder.update(changes, self.now_ms));
    }

    fn runtime(&mut self) -> Change {
        let (namespace, name) = (self.pick(&NAMESPACES), self.pick(&["x", "x-0", "x-1", "x-2", "x-1-0", "x-1-1", "y", "y-0", "z-0", "z"]));
        let instance = (namespace.to_owned(), name.to_owned());
        if self.draw(3) == 0 {
            let draining = self.draw(2) == 0;
            _ = write!(self.said, "{instance:?} draining {draining}");
            return Change::Draining { instance, draining };
        }
        let ready = self.draw(3) > 0;
        _ = write!(self.said, "{instance:?} ready {ready}");
        self.running.insert(instance, InstanceState { started: true, ready, ..InstanceState::default() });
        Change::Node { instances: self.running.clone(), gateways: BTreeMap::new() }
    }

    /// Canaries are somewhere else by now.
    fn canaries(&mut self) -> Change {
        let mut standings = BTreeMap::new();
        let objects: Vec<_> = self.world.index().canaries.iter().cloned().collect();
        for object in objects {
            let Some(spec) = content(&object) else { continue };
            let phases = [CanaryPhase::Progressing, CanaryPhase::Paused, CanaryPhase::Promoted, CanaryPhase::RolledBack];
            let (phase, step, run) = (phases[self.draw(4)], self.draw(5), self.draw(3).to_string());
            let digest = if self.draw(4) == 0 { String::new() } else { spec.digest() };
            _ = write!(self.said, "{} {phase:?} {step}; ", object.key);
            let standing = CanaryStanding { pair: spec.pair(), digest, run, phase, step, why: String::new() };
            standings.insert(object.key.clone(), standing);
        }
        Change::Canaries(Arc::new(CanaryBook { standings }))
    }

    fn canary(&mut self) -> String {
        let step = self.pick(&["{mirrorPercent: 10}", "{match: {headers: [{name: x-beta, value: a}]}}", "{weight: 5}"]);
        let (called, stable, port) = (self.pick(&SERVICES), self.pick(&SERVICES), self.pick(&["80", "80", "81"]));
        let candidate = self.pick(&SERVICES);
        format!("serviceRef: {{name: {called}, port: {port}}}, stable: {stable}, candidate: {candidate}, steps: [{step}, {{weight: 50}}]")
    }

    fn object(&mut self) -> FileChange {
        let namespace = self.pick(&NAMESPACES);
        let (api, kind, names) = self.kind();
        let name = self.pick(names);
        let file = format!("{kind}-{namespace}-{name}");
        if self.draw(4) == 0 {
            _ = write!(self.said, "without {file}; ");
            return FileChange { file, text: None };
        }
        let annotations = self.some("meshwright.dev/opaque-ports: '80'");
        let labels = format!("app: {}, tier: {}", self.pick(&["x", "y", "z"]), self.pick(&["one", "two"]));
        let labelled = format!("labels: {{{labels}}}, annotations: {{{annotations}}}");
        let (metadata, body) = match kind {
            "Namespace" => {
                let meshed = if self.draw(5) > 0 { "meshwright.dev/inject: enabled" } else { "" };
                (format!("name: {namespace}, labels: {{{meshed}}}, annotations: {{{annotations}}}"), "spec: {}".to_owned())
            }
            "GatewayClass" => {
                let controller = self.pick(&["meshwright.dev/controller", "other.example/controller"]);
                ("name: meshwright".to_owned(), format!("spec: {{controllerName: {controller}}}"))
            }
            "Node" => {
                let zone = self.pick(&["one", "two"]);
                (format!("name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}"), "spec: {}".to_owned())
            }
            "ConfigMap" => {
                let text = if self.draw(2) == 0 { self.now_ms.to_string() } else { self.pair().0 };
                (format!("name: {name}, namespace: {namespace}"), format!("data: {}", serde_json::json!({"ca.crt": text})))
            }
            "Secret" => {
                let (chain, key) = self.pair();
                let (_, other) = self.pair();
                let key = if self.draw(4) == 0 { other } else { key };
                let secret = format!("a-key-of-more-than-twenty-bytes-{}", self.draw(2));
                let entries = serde_json::json!({"tls.crt": chain, "tls.key": key, "key": secret});
                (format!("name: {name}, namespace: {namespace}"), format!("stringData: {entries}"))
            }
            "EndpointSlice" => {
                let service = self.pick(&SERVICES);
                (format!("name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}"), self.slice())
            }
            "Service" | "Workload" | "Pod" => {
                let body = match kind {
                    "Service" => self.service(),
                    "Workload" => self.workload(),
                    _ => self.pod(),
                };
                (format!("name: {name}, namespace: {namespace}, {labelled}"), format!("spec: {{{body}}}"))
            }
            _ => self.policy((kind, name), namespace),
        };
        let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{{metadata}}}\n{body}\n");
        _ = write!(self.said, "{text}");
        FileChange { file, text: Some(Ok(text)) }
    }

    /// A kind, with its API and the names that its objects have.
    fn kind(&mut self) -> (&'static str, &'static str, &'static [&'static str]) {
        // Gateway, Secret, ApiKeyAuth, Consumer, GatewayClass.
        const OF_CALLERS: [usize; 12] = [25, 25, 48, 48, 57, 57, 61, 61, 61, 61, 70, 70];
        let drawn = if self.about_callers && self.draw(3) > 0 { OF_CALLERS[self.draw(OF_CALLERS.len())] } else { self.draw(76) };
        match drawn {
            0..8 => ("v1", "Service", &SERVICES),
            8..13 => ("discovery.k8s.io/v1", "EndpointSlice", &["e0", "e1", "e2"]),
            13..18 => (OWN, "Workload", &WORKLOADS),
            18..21 => (GATEWAY_API, "HTTPRoute", &["r0", "r1"]),
            21..23 => (GATEWAY_API, "GRPCRoute", &["r0", "r1"]),
            23 => (GATEWAY_API, "TCPRoute", &["r0"]),
            24 => (GATEWAY_API, "TLSRoute", &["r0"]),
            25..27 => (GATEWAY_API, "Gateway", &["g0"]),
            27..31 => (OWN, "TrafficPolicy", &["p0", "p1", "p2"]),
            31 => (OWN, "AuthorizationPolicy", &["p0", "p1"]),
            32..35 => (OWN, "PeerAuthentication", &["p0", "p1"]),
            35 => (OWN, "EgressPolicy", &["p0"]),
            36 => (OWN, "RequestAuthentication", &["p0"]),
            37 => ("v1", "Namespace", &[""]),
            38 => (GATEWAY_API, "ReferenceGrant", &["g0"]),
            39 => (OWN, "Telemetry", &["t0"]),
            40 => ("v1", "ConfigMap", &["roots"]),
            41..47 => ("v1", "Pod", &["x-7", "x-1", "y-pod"]),
            47 => ("v1", "Node", &["n0"]),
            48..51 => ("v1", "Secret", &["tls"]),
            51..53 => (GATEWAY_API, "ListenerSet", &["l0"]),
            53 if self.draw(2) == 0 => ("gateway.networking.x-k8s.io/v1alpha1", "XBackend", &["x0"]),
            53 => (GATEWAY_API, "BackendTLSPolicy", &["p0"]),
            54 => (GATEWAY_API, "UDPRoute", &["r0"]),
            55..57 => (GATEWAY_API, "ReferenceGrant", &["g0", "g1"]),
            57..60 => (OWN, "ApiKeyAuth", &["k0", "k1"]),
            60 => (OWN, self.pick(&["BasicAuth", "ExternalAuth", "OidcLogin"]), &["b0"]),
            61..65 => (OWN, "Consumer", &["c0", "c1", "c2"]),
            65..68 => (OWN, "AuthorizationPolicy", &["p0", "p1"]),
            68..70 => (OWN, "ClientPolicy", &["y0", "y1"]),
            72..76 => (OWN, "Canary", &["c0", "c1"]),
            _ => (GATEWAY_API, "GatewayClass", &[""]),
        }
    }

    fn service(&mut self) -> String {
        let ports = [
            "{name: http, port: 80, targetPort: 8080, appProtocol: http}",
            "{name: some, port: 80, targetPort: 8080}",
            "{name: some, port: 80, targetPort: web}",
            "{name: http, port: 80, targetPort: 80}, {name: other, port: 81, targetPort: 8081}",
            "{name: tcp, port: 80}",
            "{name: h2, port: 80, appProtocol: kubernetes.io/h2c}",
            "{name: http, port: 80}, {name: dns, port: 80, protocol: UDP, targetPort: 8081}",
        ];
        let (ports, address) = (self.pick(&ports), self.pick(&VIRTUAL));
        let selector = self.pick(&["app: x", "app: y", "app: x, tier: one", "tier: two", ""]);
        let more = match self.draw(6) {
            0 => "clusterIP: None, ".to_owned(),
            1..3 => format!("clusterIP: {address}, "),
            3 => "publishNotReadyAddresses: true, ".to_owned(),
            _ => String::new(),
        };
        format!("{more}selector: {{{selector}}}, ports: [{ports}]")
    }

    fn slice(&mut self) -> String {
        let mut endpoints = Vec::new();
        for _ in 0..=self.draw(3) {
            let (address, ready) = (self.pick(&ADDRESSES), self.draw(3) > 0);
            let more = self.some(", hostname: one") + &self.some(", targetRef: {kind: Pod, name: x}");
            endpoints.push(format!("{{addresses: [{address}], conditions: {{ready: {ready}}}{more}}}"));
        }
        let name = self.pick(&["http", "some"]);
        format!("addressType: IPv4\nports: [{{name: {name}, port: 8080}}]\nendpoints: [{}]", endpoints.join(", "))
    }

    fn workload(&mut self) -> String {
        let ports = self.pick(&["{name: web, port: 8080}", "{name: web, port: 8081}, {port: 8080, appProtocol: tcp}", "{port: 80}"]);
        let how = match self.draw(3) {
            0 => format!("addresses: [{}]", self.pick(&ADDRESSES)),
            _ => format!("command: [run], replicas: {}", 1 + self.draw(3)),
        };
        let account = self.pick(&["default", "special"]);
        format!("{how}, serviceAccount: {account}, ports: [{ports}]")
    }

    fn pod(&mut self) -> String {
        let (address, ready) = (self.pick(&ADDRESSES), self.pick(&["True", "False"]));
        let (phase, sidecar) = (self.pick(&["Running", "Running", "Running", "Failed"]), self.some(", {name: meshwright-proxy}"));
        let network = self.some("hostNetwork: true, ");
        format!(
            "{network}nodeName: n0, serviceAccountName: special, containers: [{{name: app, ports: [{{name: web, containerPort: 8080}}]}}{sidecar}]}}\n\
             status: {{phase: {phase}, podIP: {address}, podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: '{ready}'}}]"
        )
    }

    fn gateway(&mut self) -> String {
        let (class, from) = (self.pick(&["meshwright", "meshwright", "other"]), self.pick(&["Same", "All"]));
        let second = self.some(", {name: two, port: 81, protocol: HTTP, hostname: '*.example.com'}");
        let more = self.listeners();
        let tls = self.some(
            "tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}}}, \
             backend: {clientCertificateRef: {name: tls}}}, ",
        );
        let sets = self.pick(&["None", "All", "Same"]);
        format!(
            "gatewayClassName: {class}, {tls}allowedListeners: {{namespaces: {{from: {sets}}}}}, \
             listeners: [{{name: one, port: 80, protocol: HTTP, allowedRoutes: {{namespaces: {{from: {from}}}}}}}{second}{more}]"
        )
    }

    /// Listeners for TLS, bytes and datagrams.
    fn listeners(&mut self) -> String {
        let namespace = self.pick(&NAMESPACES);
        let all = "allowedRoutes: {namespaces: {from: All}}";
        let https = format!(
            ", {{name: https, port: 443, protocol: HTTPS, hostname: a.example.com, {all}, tls: {{certificateRefs: [{{name: tls, namespace: {namespace}}}]}}}}"
        );
        let others = format!(
            ", {{name: tls, port: 443, protocol: TLS, tls: {{mode: Passthrough}}, {all}}}, {{name: tcp, port: 90, protocol: TCP, {all}}}, \
             {{name: udp, port: 90, protocol: UDP, {all}}}"
        );
        let https = if self.draw(3) > 0 { https } else { String::new() };
        https + &self.some(&others)
    }

    /// A certificate and its key: one of two.
    fn pair(&mut self) -> (String, String) {
        PAIRS[self.draw(2)].clone()
    }

    fn route(&mut self, kind: &str) -> String {
        let http = kind == "HTTPRoute" || kind == "GRPCRoute";
        let mut parents = Vec::new();
        for _ in 0..=self.draw(2) {
            parents.push(match self.draw(4) {
                0 => format!("{{name: g0, namespace: {}}}", self.pick(&NAMESPACES)),
                1 if self.draw(2) == 0 => format!("{{kind: ListenerSet, name: l0, namespace: {}}}", self.pick(&NAMESPACES)),
                _ => format!("{{group: '', kind: Service, name: {}, namespace: {}}}", self.pick(&SERVICES), self.pick(&NAMESPACES)),
            });
        }
        let mut backends = Vec::new();
        for _ in 0..self.draw(3) {
            backends.push(format!(
                "{{name: {}, namespace: {}, port: 80, weight: {}}}",
                self.pick(&SERVICES),
                self.pick(&NAMESPACES),
                self.draw(3)
            ));
        }
        if self.draw(6) == 0 {
            let namespace = self.pick(&NAMESPACES);
            backends.push(format!("{{group: gateway.networking.x-k8s.io, kind: XBackend, name: x0, namespace: {namespace}}}"));
        }
        let mut rule = if backends.is_empty() { String::new() } else { format!("backendRefs: [{}]", backends.join(", ")) };
        if http {
            let (service, namespace) = (self.pick(&SERVICES), self.pick(&NAMESPACES));
            let mirror =
                format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: {service}, namespace: {namespace}, port: 80}}}}}}");
            let comma = if rule.is_empty() { "" } else { ", " };
            let (filters, session) = (self.some(&mirror), self.some(", sessionPersistence: {sessionName: mine}"));
            rule = format!("name: one, filters: [{filters}]{session}{comma}{rule}");
        }
        let hosts = if kind == "TLSRoute" { "hostnames: [one.example.com], " } else { "" };
        format!("{hosts}parentRefs: [{}], rules: [{{{rule}}}]", parents.join(", "))
    }

    fn traffic(&mut self) -> String {
        let target = match self.draw(8) {
            0..3 => format!("{{group: '', kind: Service, name: {}}}", self.pick(&SERVICES)),
            3 => format!("{{group: '', kind: Service, name: {}, sectionName: http}}", self.pick(&SERVICES)),
            4 => "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r0}".to_owned(),
            5 => "{group: gateway.networking.k8s.io, kind: Gateway, name: g0, sectionName: one}".to_owned(),
            6 => return format!("selector: {{matchLabels: {{app: x}}}}, rateLimits: [{{requests: {}, per: 1s}}]", 1 + self.draw(5)),
            _ => return format!("timeouts: {{request: {}s}}", 1 + self.draw(5)),
        };
        let number = 1 + self.draw(9);
        let said = match self.draw(6) {
            0 => format!("timeouts: {{request: {number}s}}"),
            1 if target.contains("Service") => format!("timeouts: {{idle: {number}s}}"),
            2 if target.contains("Service") => format!("upstreamProtocol: {}", self.pick(&["Tcp", "Http2", "Http1"])),
            3 => format!("faults: [{{from: [{{namespace: a, serviceAccount: special}}], delay: {{fixed: {number}ms}}}}]"),
            4 => format!("rateLimits: [{{requests: {number}, per: 1s}}]"),
            _ => "retries: {attempts: 2}".to_owned(),
        };
        format!("targetRefs: [{target}], {said}")
    }

    /// What something at an edge is about; empty: its namespace.
    fn edge(&mut self) -> &'static str {
        match self.draw(8) {
            0..2 => "{kind: Gateway, name: g0}",
            2 => "{kind: Gateway, name: g0, sectionName: one}",
            3 => "{kind: HTTPRoute, name: r0}",
            4 => "{kind: HTTPRoute, name: r1, sectionName: one}",
            5 => "{kind: ListenerSet, name: l0}",
            6 => "{kind: Gateway, name: g0, sectionName: tcp}",
            _ => "",
        }
    }

    /// The same as the beginning of a spec.
    fn edge_targets(&mut self) -> String {
        let target = self.edge();
        if target.is_empty() { String::new() } else { format!("targetRefs: [{target}], ") }
    }

    /// Who may call at an edge, by addresses: those of a list, or these.
    fn addresses(&mut self, target: &str) -> String {
        let (action, from) =
            (self.pick(&["Allow", "Deny"]), self.pick(&["ipListRefs: [{kind: ConfigMap, name: roots}]", "ipBlocks: [10.0.0.0/8]"]));
        format!("targetRefs: [{target}], action: {action}, rules: [{{from: [{{{from}}}]}}]")
    }

    fn guard(&mut self) -> String {
        let targets = self.edge_targets();
        let mode = self.pick(&["mode: Optional", "mode: Required", "mode: Wrong", "scopes: [a]", "consumers: {namespaces: All}"]);
        targets + mode
    }

    /// Spec of what edges alone look at.
    fn of_edge(&mut self, kind: &str) -> String {
        match kind {
            "XBackend" => {
                let tls = self.pick(&[
                    "",
                    ", tls: {mode: ServerOnly}",
                    ", tls: {mode: ClientAndServer, clientCertificateRef: {name: tls}}",
                    ", tls: {mode: ServerOnly, validation: {hostname: a.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}}",
                ]);
                let protocol = self.pick(&["HTTP", "HTTP11", "GRPC", "TCP"]);
                format!(
                    "type: ExternalHostname, port: {{port: 443}}, externalHostname: {{hostname: api.example}}, protocol: {protocol}{tls}"
                )
            }
            "ExternalAuth" => {
                let (targets, port) = (self.edge_targets(), self.pick(&["80", "81"]));
                let more = self.pick(&["timeout: 1s", "timeout: 0s", "protocol: Http", "dryRun: true"]);
                format!("{targets}backendRef: {{name: {}, port: {port}}}, {more}", self.pick(&SERVICES))
            }
            "OidcLogin" => {
                let more = self.pick(&[
                    "clientId: a",
                    "when: Never",
                    "session: {max: 1s}",
                    "clientSecretRef: {name: tls, key: key}",
                    "clientId: a, backChannelLogoutPath: /e, session: {store: Redis, redis: {addresses: ['r:1'], authRef: {name: tls, key: key}}}",
                ]);
                format!("{}issuer: 'https://id.example', {more}", self.edge_targets())
            }
            "ClientPolicy" => {
                let target =
                    self.pick(&["kind: Gateway, name: g0", "kind: ListenerSet, name: l0", "kind: Gateway, name: g1, sectionName: a"]);
                let said =
                    self.pick(&["limits: {headers: 9}", "tls: {minVersion: '1.3'}", "connections: {max: 5}", "http2: {enabled: false}"]);
                format!("targetRefs: [{{{target}}}], {said}")
            }
            _ => self.guard(),
        }
    }

    /// Metadata and spec of what is about others.
    fn policy(&mut self, (kind, name): (&str, &str), namespace: &str) -> (String, String) {
        let number = self.draw(9);
        let spec = match kind {
            "Gateway" => self.gateway(),
            "TrafficPolicy" => self.traffic(),
            "Canary" => self.canary(),
            "HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute" | "UDPRoute" => self.route(kind),
            "ListenerSet" => {
                let listeners = self.listeners();
                format!(
                    "parentRef: {{name: g0, namespace: {}}}, listeners: [{{name: set, port: 82, protocol: HTTP}}{listeners}]",
                    self.pick(&NAMESPACES)
                )
            }
            "BackendTLSPolicy" => {
                let trust =
                    self.pick(&["wellKnownCACertificates: System", "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]"]);
                let service = self.pick(&SERVICES);
                format!("targetRefs: [{{group: '', kind: Service, name: {service}}}], validation: {{hostname: a.example, {trust}}}")
            }
            "ReferenceGrant" if name == "g1" => {
                let (kind, from) = (self.pick(&["Gateway", "ListenerSet"]), if namespace == "a" { "b" } else { "a" });
                format!("from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}], to: [{{group: '', kind: Secret}}]")
            }
            "XBackend" | "ApiKeyAuth" | "BasicAuth" | "ExternalAuth" | "OidcLogin" | "ClientPolicy" => self.of_edge(kind),
            "Consumer" => {
                let digit = self.draw(4);
                let hash = format!("sha256: '{}'", digit.to_string().repeat(64));
                let key = if self.draw(2) == 0 { hash } else { "secretRef: {name: tls, key: key}".to_owned() };
                format!("disabled: {}, credentials: [{{name: k, apiKey: {{{key}}}}}]", number > 6)
            }
            "ReferenceGrant" => {
                let (kind, from) = (self.pick(&["HTTPRoute", "GRPCRoute"]), if namespace == "a" { "b" } else { "a" });
                format!("from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}], to: [{{group: '', kind: Service}}]")
            }
            "AuthorizationPolicy" if self.draw(2) == 0 => match self.edge() {
                "" => format!("action: Deny, rules: [{{to: [{{ports: [{}]}}]}}]", number + 1),
                target => self.addresses(target),
            },
            _ => {
                if kind == "Telemetry" && self.draw(2) == 0 {
                    let target = self.pick(&[
                        "kind: HTTPRoute, name: r0",
                        "kind: GRPCRoute, name: r1",
                        "kind: Service, name: x",
                        "kind: Gateway, name: g0",
                    ]);
                    let spec = format!("spec: {{targetRefs: [{{{target}}}], tracing: {{samplePercent: {number}}}}}");
                    return (format!("name: {name}, namespace: {namespace}"), spec);
                }
                let selector = self.some("selector: {matchLabels: {app: x}}, ");
                let said = match kind {
                    "AuthorizationPolicy" => format!("action: Deny, rules: [{{to: [{{paths: [{{type: Exact, value: /{number}}}]}}]}}]"),
                    "PeerAuthentication" => format!("mtls: {{mode: {}}}", self.pick(&["Strict", "Permissive", "Disabled"])),
                    "EgressPolicy" => format!("allow: [{{ports: [{}]}}]", number + 1),
                    "RequestAuthentication" => {
                        format!("jwtRules: [{{issuer: 'https://{number}.example', jwksUri: 'https://{number}.example/keys'}}]")
                    }
                    _ => format!("accessLog: {{enabled: {}}}", number > 4),
                };
                selector + &said
            }
        };
        let common = matches!(kind, "AuthorizationPolicy" | "PeerAuthentication" | "EgressPolicy" | "RequestAuthentication" | "Telemetry");
        let place = if common && self.draw(4) == 0 { "meshwright-system" } else { namespace };
        (format!("name: {name}, namespace: {place}"), format!("spec: {{{spec}}}"))
    }
}
