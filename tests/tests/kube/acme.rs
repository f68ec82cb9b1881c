//! Certificates that are ordered in a cluster: by the holder of the lease, as Secrets, with the rights that the chart and the docs give and no others.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cli::plane::replica;
use control::app::{InTurn, run_replica};
use control::settings::{ControlArgs, ExternalArgs};
use proto::annotations::ROOT_NAMESPACE;
use proxy::io::Clock;
use serde_json::{Value, json};
use tests::authority::{AcmeServer, Asks};
use tests::kube::{Rig, ask, gateway_api, install};
use tokio::runtime::Runtime;

use crate::namespace;

/// Where Secrets are.
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica of the control plane with a runtime of its own, so that it is as good as killed when it is dropped.
pub(crate) struct Replica {
    runtime: Option<Runtime>,
    pub(crate) folder: tempfile::TempDir,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Replica {
    pub(crate) fn start(client: kube::Client, me: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let inside = runtime.enter();
        let nothing: InTurn = Arc::new(|stop| Box::pin(async move { stop.cancelled().await }));
        let replica = replica(&args, client, ROOT_NAMESPACE, me, Clock::System, nothing);
        runtime.spawn(run_replica(args, replica));
        drop(inside);
        Self { runtime: Some(runtime), folder }
    }
}

pub(crate) fn args(folder: &Path) -> ControlArgs {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    ControlArgs {
        config: None,
        kubernetes: true,
        kubeconfig: None,
        data_dir: folder.to_owned(),
        listen: anywhere,
        plaintext_xds: None,
        api_socket: None,
        metrics_listen: anywhere,
        service_cidr: Vec::new(),
        instance_cidr: Vec::new(),
        bridge_address: None,
        names: Vec::new(),
        ca_file: None,
        external: ExternalArgs::default(),
        otlp_endpoint: None,
        otlp_protocol: control::world::telemetry::OtlpProtocol::Grpc,
        log_level: "info".to_owned(),
    }
}

pub(crate) fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// Makes what stands in a text.
pub(crate) async fn apply(client: &kube::Client, text: &str) {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    for object in objects {
        let (group, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let base = if group == "v1" { "/api/v1".to_owned() } else { format!("/apis/{group}") };
        let plural = match kind {
            "Canary" => "canaries".to_owned(),
            "ClientPolicy" => "clientpolicies".to_owned(),
            "GatewayClass" => "gatewayclasses".to_owned(),
            other => format!("{}s", other.to_ascii_lowercase()),
        };
        let place = object["metadata"]["namespace"].as_str().map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
        let path = format!("{base}{place}/{plural}/{}?force=true", object["metadata"]["name"].as_str().unwrap());
        ask(client, "APPLY", &path, object).await.unwrap();
    }
}

/// The Role and its binding that the docs tell people to make.
fn documented() -> String {
    let page = file("docs/edge-acme.md");
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains("kind: RoleBinding")).collect()
}

fn edge(namespace: &str, directory: &str, hosts: &[&str]) -> String {
    let listeners: Vec<Value> = hosts
        .iter()
        .map(|host| json!({"name": host.split('.').next(), "port": 443, "protocol": "HTTPS", "hostname": host, "tls": {"options": {"meshwright.dev/acme": "on"}}}))
        .collect();
    let class = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "meshwright"}, "spec": {"controllerName": "meshwright.dev/controller"}});
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge", "namespace": namespace},
        "spec": {"gatewayClassName": "meshwright", "listeners": listeners},
    });
    let policy = json!({
        "apiVersion": "meshwright.dev/v1alpha1", "kind": "ClientPolicy", "metadata": {"name": "acme", "namespace": namespace},
        "spec": {"targetRefs": [{"kind": "Gateway", "name": "edge"}], "acme": {"directory": directory}},
    });
    format!("{class}\n---\n{gateway}\n---\n{policy}\n")
}

/// What the listener's `Programmed` says, at that Gateway.
fn programmed(answer: &Value, listener: &str) -> String {
    let listeners = answer["status"]["listeners"].as_array().into_iter().flatten();
    let conditions = listeners.filter(|one| one["name"] == listener).flat_map(|one| one["conditions"].as_array().cloned()).flatten();
    conditions.filter(|condition| condition["type"] == "Programmed").map(|condition| condition.to_string()).collect()
}

/// Waits for a Gateway or a Secret.
pub(crate) async fn patiently(client: &kube::Client, path: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let answer = ask(client, "GET", path, ()).await.unwrap_or_default();
        if fits(&answer) {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "{path}: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Aim: where nobody has given the right to write Secrets nothing is ordered, and the listener says which Role is wanted; with the Role of the docs and
/// the chart's own rights a certificate comes, ordered once, by the holder of the lease alone, as a Secret that it then serves; a Secret that somebody else has changed
/// is not overwritten, and no certificate is wasted on it; when the holder dies the other one neither orders what is there nor leaves what is not.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_secrets_that_the_holder_writes() {
    let rig = Rig::start(&["--rbac"]).await.unwrap();
    let admin = rig.client().await.unwrap();
    for name in [ROOT_NAMESPACE, "shop", "closed"] {
        namespace(&admin, name).await;
    }
    gateway_api(&admin, "standard").await.unwrap();
    install(&admin, &file("deploy/helm/meshwright/crds/crds.yaml")).await.unwrap();
    apply(&admin, &file("deploy/helm/meshwright/templates/rights.yaml")).await;
    let token = format!("/api/v1/namespaces/{ROOT_NAMESPACE}/serviceaccounts/control/token");
    let token = ask(&admin, "POST", &token, json!({"spec": {}})).await.unwrap()["status"]["token"].as_str().unwrap().to_owned();
    let authority = AcmeServer::start(Asks::Nothing).await.unwrap();
    let directory = authority.directory();
    apply(&admin, &documented()).await;
    apply(&admin, &edge("shop", &directory, &["a.shop.test"])).await;
    apply(&admin, &edge("closed", &directory, &["a.closed.test"])).await;
    let first = Replica::start(rig.client_with(&token).await.unwrap(), "first");
    let gateway = |namespace: &str| format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways/edge");
    let wanted = "may not write Secrets in namespace closed: bind the Role of docs/edge-acme.md there";
    patiently(&admin, &gateway("closed"), |answer| programmed(answer, "a").contains(wanted)).await;
    let gateway = gateway("shop");
    let secret = patiently(&admin, &format!("{SECRETS}/acme-a.shop.test"), |answer| answer["data"]["tls.crt"].is_string()).await;
    assert_eq!((&secret["type"], &secret["metadata"]["labels"]["meshwright.dev/acme"]), (&json!("kubernetes.io/tls"), &json!("on")));
    let chain = STANDARD.decode(secret["data"]["tls.crt"].as_str().unwrap()).unwrap();
    assert!(chain.starts_with(b"-----BEGIN CERTIFICATE-----"));
    patiently(&admin, &gateway, |answer| !programmed(answer, "a").contains("CertificatePending")).await;
    let _second = Replica::start(rig.client_with(&token).await.unwrap(), "second");

    // Somebody has made a Secret of such a name, labelled it as ours, and keeps it.
    let foreign = json!({
        "metadata": {"name": "acme-b.shop.test", "labels": {"meshwright.dev/acme": "on"}}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": STANDARD.encode("x"), "tls.key": STANDARD.encode("y")},
    });
    ask(&admin, "POST", SECRETS, foreign).await.unwrap();
    apply(&admin, &edge("shop", &directory, &["a.shop.test", "b.shop.test"])).await;
    patiently(&admin, &gateway, |answer| programmed(answer, "b").contains("somebody else's by now")).await;
    assert_eq!(authority.ordered(), ["a.shop.test"]);

    drop(first);
    apply(&admin, &edge("shop", &directory, &["a.shop.test", "c.shop.test"])).await;
    patiently(&admin, &format!("{SECRETS}/acme-c.shop.test"), |answer| answer["data"]["tls.key"].is_string()).await;
    assert_eq!(authority.ordered(), ["a.shop.test", "c.shop.test"]);
    let now = ask(&admin, "GET", &format!("{SECRETS}/acme-a.shop.test"), ()).await.unwrap();
    assert_eq!(now["data"], secret["data"]);
}
