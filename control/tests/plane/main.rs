//! The whole control plane in one process, through its own doors: TLS, the Unix socket, and the folder.

// Helpers may unwrap as tests do.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test may use the machine's own clock and sockets")]

mod belief;
mod desk;
mod door;
mod hostile;
mod replicas;
mod rotation;
mod taps;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control::clock::Clock;
use desk::{Plane, Reporter, Sidecar, TestAuthority};
use proto::mesh::control_client::ControlClient;
use proto::mesh::{
    Answer, ApplyRequest, BoundPort, Call, Calls, Draining, GatewayState, GetRequest, InstanceState, NodeOrder, NodeReport, TokenRequest,
    report,
};
use proto::{refusal, xds};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};

const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: frontend, namespace: shop, labels: {app: frontend}}
spec: {serviceAccount: frontend, command: [sleep, '1'], ports: [{name: http, port: 8080}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: catalog, namespace: shop, labels: {app: catalog}}
spec: {serviceAccount: catalog, command: [sleep, '1'], ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, clusterIP: 10.96.7.7, ports: [{name: http, port: 80, targetPort: 8080}]}
";

const ROUTE: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog}]
  rules: [{backendRefs: [{name: catalog, port: 80}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: 'VALUE'}]}}]}]
";

struct Folders {
    manifests: tempfile::TempDir,
    data: tempfile::TempDir,
    authority: Arc<TestAuthority>,
}

impl Folders {
    fn new() -> Self {
        let folders =
            Self { manifests: tempfile::tempdir().unwrap(), data: tempfile::tempdir().unwrap(), authority: Arc::new(TestAuthority::new()) };
        fs::write(folders.manifests.path().join("shop.yaml"), SHOP).unwrap();
        folders
    }

    async fn start(&self) -> Plane {
        Plane::start(self.manifests.path(), self.data.path(), &self.authority).await
    }
}

fn route(value: &str) -> String {
    ROUTE.replace("VALUE", value)
}

/// All that an order wants runs as it wants it.
fn all_ready(order: &NodeOrder) -> NodeReport {
    let instance = |order: &proto::mesh::InstanceOrder| InstanceState {
        namespace: order.namespace.clone(),
        instance: order.instance.clone(),
        started: true,
        ready: true,
        fingerprint: order.fingerprint.clone(),
        ..Default::default()
    };
    let gateway = |order: &proto::mesh::GatewayOrder| GatewayState {
        namespace: order.namespace.clone(),
        name: order.name.clone(),
        ready: true,
        bound: order.ports.iter().map(|port| BoundPort { listener_port: *port, host_port: *port, udp: false }).collect(),
        ..Default::default()
    };
    NodeReport { instances: order.instances.iter().map(instance).collect(), gateways: order.gateways.iter().map(gateway).collect() }
}

/// A node agent that says everything is ready.
async fn agent(plane: &Plane) -> (NodeOrder, mpsc::Sender<NodeReport>) {
    let (sender, receiver) = mpsc::channel(4);
    let mut orders = plane.node().await.attach(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let order = orders.message().await.unwrap().unwrap();
    sender.send(all_ready(&order)).await.unwrap();
    tokio::spawn(async move { while let Ok(Some(_)) = orders.message().await {} });
    (order, sender)
}

#[tokio::test]
async fn a_change_is_live_when_every_proxy_concerned_has_answered() {
    // Aim: `apply --wait` counts concerned and unaffected proxies right, and returns after the last ACK.
    let folders = Folders::new();
    let plane = folders.start().await;
    let mut frontend = plane.sidecar("frontend", "frontend").await;
    let mut catalog = plane.sidecar("catalog", "catalog").await;
    assert_eq!((frontend.take_epoch(None).await, catalog.take_epoch(None).await), (1, 1));
    frontend.subscribe(xds::LISTENER, "out/10.96.7.7:80").await;
    assert_eq!(frontend.take_epoch(None).await, 1);
    assert!(frontend.seen.iter().any(|response| response.resources.iter().any(|resource| resource.name == "out/10.96.7.7:80")));
    let proxy = tokio::spawn(async move {
        assert_eq!(frontend.take_epoch(None).await, 2);
        frontend
    });
    let (result, ok) = plane.apply(&route("1"), false, true).await;
    assert!(ok, "{result}");
    assert_eq!(result["epoch"], 2);
    assert_eq!(result["objects"][0]["result"], "created");
    assert_eq!((&result["proxies"]["concerned"], &result["proxies"]["unaffected"]), (&1.into(), &1.into()), "{result}");
    let _frontend = proxy.await.unwrap();
    let proxies = plane.get("proxies").await.unwrap();
    assert_eq!((proxies[0]["epoch"].as_u64(), proxies[1]["epoch"].as_u64()), (Some(2), Some(2)), "{proxies}");
    assert_eq!(proxies[0]["identity"], "spiffe://cluster.local/ns/shop/sa/catalog");
    plane.stop().await;
}

#[tokio::test]
async fn a_refusal_ends_the_wait_and_names_proxy_object_and_reason() {
    // Aim: a NACK is not a timeout, and one that names two resources is two refusals.
    let folders = Folders::new();
    let plane = folders.start().await;
    let mut frontend = plane.sidecar("frontend", "frontend").await;
    let mut catalog = plane.sidecar("catalog", "catalog").await;
    frontend.take_epoch(None).await;
    catalog.take_epoch(None).await;
    frontend.subscribe(xds::LISTENER, "out/10.96.7.7:80").await;
    frontend.take_epoch(None).await;
    let proxy = tokio::spawn(async move {
        frontend.take_epoch(Some(&refusal::write(["RouteConfiguration shop/catalog:80: too; strange", "Cluster x: no"]))).await;
        frontend
    });
    let (result, ok) = plane.apply(&route("1"), false, true).await;
    assert!(!ok && result["live"] == false, "{result}");
    let refused = &result["refused"][0];
    assert_eq!((&refused["proxy"], &refused["object"]), (&"shop/frontend".into(), &"RouteConfiguration shop/catalog:80".into()));
    assert_eq!((&refused["reason"], &result["refused"][1]["object"]), (&"too; strange".into(), &"Cluster x".into()));
    let _frontend = proxy.await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn live_means_started_ready_and_acknowledged() {
    // Aim: `wait` names each laggard with its reason, and returns when the last one is there.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (result, ok) = plane.wait(1).await;
    assert!(!ok);
    let waiting = result["proxies"]["waiting"].to_string();
    assert!(waiting.contains("shop/catalog (not started)") && waiting.contains("shop/frontend (not started)"), "{waiting}");
    assert_eq!(result["down"], serde_json::json!(["shop/catalog (not started)", "shop/frontend (not started)"]));
    let (order, _agent) = agent(&plane).await;
    assert!(order.synced);
    assert_eq!(order.instances.iter().map(|instance| instance.instance.as_str()).collect::<Vec<_>>(), ["catalog", "frontend"]);
    let mut frontend = plane.sidecar("frontend", "frontend").await;
    let mut catalog = plane.sidecar("catalog", "catalog").await;
    frontend.take_epoch(None).await;
    catalog.take_epoch(None).await;
    let (result, ok) = plane.wait(5).await;
    assert!(ok, "{result}");
    plane.stop().await;
}

#[tokio::test]
async fn apply_waits_for_what_it_declares() {
    // Aim: a new Workload, and one that still runs as it was before the change, hold `apply --wait` up by name until the agent says that
    // they are ready as declared now; a Gateway until its ports are open; what the change does not declare holds nothing up.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (sender, receiver) = mpsc::channel(4);
    let mut orders = plane.node().await.attach(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let first = orders.message().await.unwrap().unwrap();
    // The folder's Workloads are not what the change declares: they need not be ready, but their proxies are waited for.
    let (mut frontend, mut catalog) = (plane.sidecar("frontend", "frontend").await, plane.sidecar("catalog", "catalog").await);
    frontend.take_epoch(None).await;
    catalog.take_epoch(None).await;
    let tool = |command: &str| {
        format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: tool, namespace: out}}\nspec: {{command: [{command}], ports: [{{port: 80}}]}}\n"
        )
    };
    let late = |result: &serde_json::Value| (result["live"].clone(), result["down"].clone(), result["proxies"]["waiting"].to_string());
    for command in ["one", "two"] {
        let (result, ok) = plane.apply_within(&tool(command), 1).await;
        let (live, down, waiting) = late(&result);
        assert!(!ok && live == false && result["live_ms"].is_null(), "{command}: {result}");
        assert!(down[0].as_str().unwrap().starts_with("out/tool (not started"), "{command}: {result}");
        assert!(waiting.contains("out/tool (not started"), "{command}: {result}");
        let report = loop {
            let order = orders.message().await.unwrap().unwrap();
            if order.instances.iter().any(|instance| instance.command == [command]) {
                break all_ready(&order);
            }
        };
        sender.send(report).await.unwrap();
        let (result, ok) = plane.apply_within(&tool(command), 5).await;
        assert!(ok && result["live"] == true && result["down"] == serde_json::json!([]), "{command}: {result}");
    }
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: public, namespace: out}\nspec: {gatewayClassName: meshwright, listeners: [{name: http, port: 8080, protocol: HTTP}]}\n";
    let (result, ok) = plane.apply_within(gateway, 1).await;
    assert!(!ok && result["down"] == serde_json::json!(["out/public (Gateway not ready)"]), "{result}");
    assert_eq!(first.instances.len(), 2);
    let (result, _) = plane.apply(gateway, true, true).await;
    assert_eq!(result["down"], serde_json::json!([]), "what is taken back has nothing to start: {result}");
    plane.stop().await;
}

#[tokio::test]
async fn numbers_and_applied_objects_outlive_a_restart_and_nothing_is_sent_twice() {
    // Aim: the same objects are the same epoch; a proxy that comes back with its versions gets only the barrier.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (result, ok) = plane.apply(&route("1"), false, false).await;
    assert!(ok && result["epoch"] == 2, "{result}");
    plane.stop().await;
    let plane = folders.start().await;
    assert_eq!(plane.get("epochs").await.unwrap()[0]["epoch"], 2);
    let objects = plane.get("objects").await.unwrap();
    let applied = objects.as_array().unwrap().iter().find(|object| object["kind"] == "HTTPRoute").unwrap();
    assert_eq!((&applied["source"], &applied["live"]), (&"Applied".into(), &true.into()));
    let (result, _) = plane.apply(&route("1"), false, false).await;
    assert_eq!((&result["epoch"], &result["objects"][0]["result"]), (&2.into(), &"unchanged".into()));
    let (result, ok) = plane.apply(&route("1"), true, false).await;
    assert!(ok && result["epoch"] == 3 && result["objects"][0]["result"] == "deleted", "{result}");
    plane.stop().await;
}

#[tokio::test]
async fn a_restart_never_goes_through_nothing_is_ready() {
    // Aim: until the agent reports again, what was ready before the restart is ready: callers keep their endpoints.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (_, _agent) = agent(&plane).await;
    while ready(&plane).await != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    plane.stop().await;
    let plane = folders.start().await;
    assert_eq!(ready(&plane).await, 1);
    plane.stop().await;
}

/// How many healthy endpoints a caller of catalog is told of.
async fn ready(plane: &Plane) -> usize {
    let mut frontend = plane.sidecar("frontend", "frontend").await;
    frontend.take_epoch(None).await;
    frontend.subscribe(xds::LISTENER, "out/10.96.7.7:80").await;
    frontend.take_epoch(None).await;
    let resources = frontend.seen.iter().filter(|response| response.type_url == xds::ENDPOINT).flat_map(|response| &response.resources);
    let mut resources = resources.filter(|resource| resource.name == "shop/catalog:80");
    let last = resources.next_back().unwrap();
    let assignment: xds::endpoint::ClusterLoadAssignment = xds::unpack(last.resource.as_ref().unwrap()).unwrap();
    let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    endpoints.filter(|endpoint| endpoint.health_status == xds::core::HealthStatus::Healthy as i32).count()
}

#[tokio::test]
async fn a_broken_file_or_apply_changes_nothing() {
    // Aim: the last good version stays, the error names the file, and the control plane lives.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (result, ok) = plane.apply("kind: HTTPRoute\nspec: [", false, false).await;
    assert!(!ok && result["errors"][0].as_str().unwrap().contains("given.yaml") && result.get("live").is_none(), "{result}");
    let (result, ok) = plane.apply("kind: HTTPRoute\nspec: [", false, true).await;
    assert!(!ok && result["live"] == false && result["proxies"]["waiting"].is_array() && result["refused"].is_array(), "{result}");
    fs::write(folders.manifests.path().join("shop.yaml"), SHOP.replace("command: [sleep, '1']", "comand: [sleep, '1']")).unwrap();
    let told = async {
        loop {
            let objects = plane.get("objects").await.unwrap();
            let catalog = objects.as_array().unwrap().iter().find(|object| object["kind"] == "Workload").unwrap().clone();
            if catalog["error"].is_string() {
                return catalog;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let catalog = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    assert_eq!(catalog["live"], true);
    assert!(catalog["error"].as_str().unwrap().contains("comand"), "{catalog}");
    assert_eq!(plane.get("epochs").await.unwrap()[0]["epoch"], 1);
    plane.stop().await;
}

#[tokio::test]
async fn nobody_is_served_as_somebody_else() {
    // Aim: no certificate, another's certificate, an undeclared instance: refused, each with its code.
    let folders = Folders::new();
    let plane = folders.start().await;
    let catalog = Some(("spiffe://cluster.local/ns/shop/sa/catalog", "catalog"));
    for (leaf, workload, instance, code) in [
        (None, "catalog", "catalog", Code::Unauthenticated),
        (catalog, "frontend", "frontend", Code::PermissionDenied),
        (catalog, "catalog", "frontend", Code::PermissionDenied),
        (catalog, "catalog", "catalog-7", Code::FailedPrecondition),
        (Some(("spiffe://cluster.local/ns/bank/sa/catalog", "catalog")), "catalog", "catalog", Code::PermissionDenied),
    ] {
        let channel = plane.tls(leaf).await;
        let ended = match Sidecar::open(channel, "shop", workload, instance).await {
            Err(status) => status,
            Ok(mut stream) => stream.next_epoch().await.unwrap_err(),
        };
        assert_eq!(ended.code(), code, "{workload} {instance}: {ended}");
    }
    assert_eq!(plane.get("proxies").await.unwrap(), serde_json::json!([]));
    plane.stop().await;
}

#[tokio::test]
async fn a_leaf_that_ended_opens_the_certificate_call_only() {
    // Aim: within a day of its end a leaf gets through TLS and no further than a renewal; after that not even through TLS.
    let folders = Folders::new();
    let plane = folders.start().await;
    let identity = "spiffe://cluster.local/ns/shop/sa/catalog";
    let ended = |hours: u64| {
        let end = time::OffsetDateTime::now_utc() - Duration::from_secs(hours * 3600);
        plane.authority.leaf_until(identity, "catalog", &[], end)
    };
    let channel = plane.tls_with(Some(ended(1))).await.unwrap();
    let refused = Sidecar::open(channel, "shop", "catalog", "catalog").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("expired"), "{refused}");
    // TLS 1.3 tells a client of its bad certificate after the handshake: the connection, or the first call, fails.
    if let Ok(channel) = plane.tls_with(Some(ended(25))).await {
        let refused = Sidecar::open(channel, "shop", "catalog", "catalog").await.err().unwrap();
        assert_ne!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_leaf_ends_by_the_clock_that_the_control_plane_was_given() {
    // Aim: whether a leaf has ended is judged by the clock from outside, in TLS and behind it.
    let folders = Folders::new();
    let ahead = |hours: u64| Clock::new(move || SystemTime::now() + Duration::from_secs(hours * 3600));
    let identity = "spiffe://cluster.local/ns/shop/sa/catalog";
    let leaf = || folders.authority.leaf_until(identity, "catalog", &[], time::OffsetDateTime::now_utc() + Duration::from_secs(3600));
    let plane = Plane::start_by(ahead(2), folders.manifests.path(), folders.data.path(), &folders.authority).await;
    let refused = Sidecar::open(plane.tls_with(Some(leaf())).await.unwrap(), "shop", "catalog", "catalog").await.err().unwrap();
    assert!(refused.code() == Code::Unauthenticated && refused.message().contains("expired"), "{refused}");
    plane.stop().await;
    let plane = Plane::start_by(ahead(26), folders.manifests.path(), folders.data.path(), &folders.authority).await;
    if let Ok(channel) = plane.tls_with(Some(leaf())).await {
        let refused = Sidecar::open(channel, "shop", "catalog", "catalog").await.err().unwrap();
        assert_ne!(refused.code(), Code::Unauthenticated, "TLS itself ends it: {refused}");
    }
    plane.stop().await;
}

/// The health of each endpoint that a caller of catalog is told of.
async fn health(plane: &Plane, account: &str) -> Vec<i32> {
    let mut frontend = Sidecar::open(plane.tls(Some((account, "frontend"))).await, "shop", "frontend", "frontend").await.unwrap();
    frontend.take_epoch(None).await;
    frontend.subscribe(xds::LISTENER, "out/10.96.7.7:80").await;
    frontend.take_epoch(None).await;
    let mut resources = frontend.seen.iter().filter(|response| response.type_url == xds::ENDPOINT).flat_map(|response| &response.resources);
    let last = resources.rfind(|resource| resource.name == "shop/catalog:80").unwrap();
    let assignment: xds::endpoint::ClusterLoadAssignment = xds::unpack(last.resource.as_ref().unwrap()).unwrap();
    assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints).map(|endpoint| endpoint.health_status).collect()
}

#[tokio::test]
async fn nobody_reports_as_somebody_else() {
    // Aim: of two sidecars with one namespace and one account, the lying one neither takes over the other's command stream nor declares
    // it draining; the honest one does both for itself.
    let folders = Folders::new();
    fs::write(folders.manifests.path().join("shop.yaml"), SHOP.replace("serviceAccount: frontend", "serviceAccount: catalog")).unwrap();
    let plane = folders.start().await;
    let (_, _agent) = agent(&plane).await;
    let account = "spiffe://cluster.local/ns/shop/sa/catalog";
    let mut honest = Reporter::open(plane.tls(Some((account, "catalog"))).await, "sidecar/shop/catalog", "catalog").await;
    for (leaf, node_id, workload, code) in [
        ((account, "frontend"), "sidecar/shop/catalog", "catalog", Code::PermissionDenied),
        ((account, "frontend"), "sidecar/shop/catalog", "frontend", Code::PermissionDenied),
        ((account, "frontend"), "sidecar/shop/nobody", "frontend", Code::FailedPrecondition),
        (("spiffe://cluster.local/ns/shop/sa/other", "catalog"), "sidecar/shop/catalog", "catalog", Code::PermissionDenied),
        (("spiffe://cluster.local/ns/bank/sa/catalog", "catalog"), "sidecar/shop/catalog", "catalog", Code::PermissionDenied),
    ] {
        let mut liar = Reporter::open(plane.tls(Some(leaf)).await, node_id, workload).await;
        let refused = liar.commands.message().await.unwrap_err();
        assert_eq!(refused.code(), code, "{leaf:?} as {node_id}: {refused}");
    }
    let (rows, ()) = tokio::join!(plane.get("routes"), async {
        let asked = honest.commands.message().await.unwrap().unwrap();
        honest.say(report::Kind::Answer(Answer { id: asked.id, json: r#"["mine"]"#.into(), error: String::new() })).await;
    });
    assert_eq!(rows.unwrap()["shop/catalog"], serde_json::json!(["mine"]), "the honest one is asked");
    let draining = xds::core::HealthStatus::Draining as i32;
    assert!(!health(&plane, account).await.contains(&draining));
    honest.say(report::Kind::Draining(Draining {})).await;
    let told = async {
        while !health(&plane, account).await.contains(&draining) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn what_sidecars_saw_is_suggested_as_policies() {
    // Aim: what a sidecar tells of its callers comes out as policies that can be applied, and is not lost with its stream.
    let folders = Folders::new();
    let plane = folders.start().await;
    let account = "spiffe://cluster.local/ns/shop/sa/catalog";
    let server = Reporter::open(plane.tls(Some((account, "catalog"))).await, "sidecar/shop/catalog", "catalog").await;
    let (identity, method) = ("spiffe://cluster.local/ns/shop/sa/frontend".to_owned(), "GET".to_owned());
    let call = Call { identity, port: 8080, method, path: "/items/{id}".to_owned(), count: 3 };
    server.say(report::Kind::Calls(Calls { calls: vec![call], uncounted: 2 })).await;
    let suggested = async {
        loop {
            let answer = plane.get("suggestions").await.unwrap();
            if let Some(policy) = answer["policies"].get(0) {
                return policy.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let policy = tokio::time::timeout(Duration::from_secs(10), suggested).await.unwrap();
    assert_eq!(policy["object"]["metadata"]["name"], "catalog-callers");
    assert!(policy["remarks"][0].as_str().unwrap().starts_with("2 calls were of too many kinds"), "{policy}");
    drop(server);
    let (applied, ok) = plane.apply(&policy["object"].to_string(), false, false).await;
    assert!(ok && applied["objects"][0]["result"] == "created", "{applied}");
    assert_eq!(plane.get("suggestions").await.unwrap()["policies"][0], policy);
    plane.stop().await;
}

#[tokio::test]
async fn tokens_are_for_declared_workloads_and_the_socket_for_its_owner() {
    // Aim: the identity of a token is the declared one; strangers and other instances get none; the socket has mode 0600.
    let folders = Folders::new();
    let plane = folders.start().await;
    let mode = fs::metadata(folders.data.path().join("control.sock")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let ask = |workload: &str, instance: &str| TokenRequest { workload: workload.into(), instance: instance.into(), life: None };
    let mut api = plane.api().await;
    let token = api.create_token(ask("shop/catalog", "catalog")).await.unwrap().into_inner().token;
    assert_eq!(token, "mw1.shop/catalog.spiffe://cluster.local/ns/shop/sa/catalog");
    for (workload, instance, code) in
        [("shop/nobody", "", Code::NotFound), ("shop/catalog", "other", Code::NotFound), ("shop", "", Code::InvalidArgument)]
    {
        assert_eq!(api.create_token(ask(workload, instance)).await.unwrap_err().code(), code);
    }
    plane.stop().await;
}

#[tokio::test]
async fn commands_come_in_over_the_network_by_token_only() {
    // Aim: behind TLS the API answers to the tokens of the data folder, one of which only looks; without one, or with another, not even to
    // a mesh certificate.
    let folders = Folders::new();
    let plane = folders.start().await;
    let token = |file: &str| fs::read_to_string(folders.data.path().join(file)).unwrap();
    let (look, change) = (token("api-read.token"), token("api-write.token"));
    let catalog = Some(("spiffe://cluster.local/ns/shop/sa/catalog", "catalog"));
    let (none, denied) = (Some(Code::Unauthenticated), Some(Code::PermissionDenied));
    for (leaf, shown, looks, changes) in [
        (None, Some(look.trim()), None, denied),
        (None, Some(change.trim()), None, None),
        (catalog, Some(look.trim()), None, denied),
        (None, None, none, none),
        (catalog, None, none, none),
        (None, Some("mwa1.another"), none, none),
    ] {
        let mut client = ControlClient::new(plane.tls(leaf).await);
        let bearer: Option<MetadataValue<Ascii>> = shown.map(|shown| format!("Bearer {shown}").parse().unwrap());
        let mut get = tonic::Request::new(GetRequest { kind: "epochs".into(), ..Default::default() });
        let mut apply = tonic::Request::new(ApplyRequest::default());
        if let Some(bearer) = bearer {
            get.metadata_mut().insert("authorization", bearer.clone());
            apply.metadata_mut().insert("authorization", bearer);
        }
        assert_eq!(client.get(get).await.err().map(|status| status.code()), looks, "{leaf:?} {shown:?}");
        let applied = client.apply(apply).await.err();
        assert_eq!(applied.map(|status| status.code()), changes, "{leaf:?} {shown:?}");
    }
    plane.stop().await;
}
