//! The access log in places that nobody here wrote: a service of Envoy's published types, an OTLP collector of OpenTelemetry's, a file.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::mesh::{Mesh, client, eventually, go_program, python, text};

/// The Gateway's port on this machine, and the collector's.
const PORT: u16 = 28_491;
const COLLECTOR: u16 = 28_492;

fn manifests(folder: &Path, als: &str) -> String {
    let (folder, at) = (folder.display(), format!("http://127.0.0.1:{COLLECTOR}"));
    let service = json!(["sh", "-c", format!("exec {als} 0.0.0.0:9000 >{folder}/als")]);
    let log = json!({
        "apiVersion": "meshwright.dev/v1alpha1", "kind": "Telemetry", "metadata": {"name": "log", "namespace": "meshwright-system"},
        "spec": {"accessLog": {
            "fields": ["time", "direction", "source", "destination.workload", "path", "status", "reason"],
            "filter": "request.path.startsWith('/told')",
            "sinks": [
                {"stdout": {}},
                {"file": {"path": format!("{folder}/{{workload}}.log"), "maxBytes": 65536, "keep": 2}},
                {"otlp": {"endpoint": at}},
                {"als": {"backendRef": {"name": "als", "namespace": "obs", "port": 9000}}},
            ],
        }},
    });
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{meshwright.dev/inject: enabled}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: obs, labels: {{meshwright.dev/inject: enabled}}}}
---
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {{name: strict, namespace: obs}}
spec: {{mtls: {{mode: Strict}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: als, namespace: obs}}
spec: {{selector: {{app: als}}, ports: [{{name: grpc, port: 9000}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: als, namespace: obs, labels: {{app: als}}}}
spec: {{command: {service}, ports: [{{name: grpc, port: 9000}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: store, namespace: shop}}
spec: {{selector: {{app: store}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: store, namespace: shop, labels: {{app: store}}}}
spec: {{command: [meshwright, echo, --http=8080], ports: [{{name: http, port: 8080, appProtocol: http}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec: {{gatewayClassName: meshwright, listeners: [{{name: http, port: {PORT}, protocol: HTTP}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: store, namespace: shop}}
spec: {{parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{{name: store, port: 80}}]}}]}}
---
{log}
"
    )
}

/// A collector; gone when dropped.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes records at the loopback of this machine; its lines go into a file.
fn collector(to: &Path) -> Beside {
    let mut collector = Command::new(python());
    let child = collector.args([client("log_collector.py"), COLLECTOR.to_string()]).stdout(Stdio::piped()).spawn();
    let mut child = Beside(child.unwrap());
    let mut said = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let to = to.to_owned();
    std::thread::spawn(move || std::io::copy(&mut said, &mut fs::File::create(to).unwrap()));
    child
}

fn call(path: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", "authorization: Bearer SECRET-1"]);
    text(&curl.arg(format!("http://127.0.0.1:{PORT}{path}")).output().unwrap().stdout)
}

/// The JSON lines of a file.
fn lines(at: &Path) -> Vec<Value> {
    let text = fs::read_to_string(at).unwrap_or_default();
    // The last one may be half of one.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Aim: of each request that the filter wants, at the edge and at the server's sidecar, a service of Envoy's own types is told through mesh TLS with
/// messages that its own rules take, a collector of OpenTelemetry's by OTLP, and a file that is put aside as it grows; nobody is told a secret.
#[test]
fn the_access_log_goes_where_it_is_told() {
    let program = go_program("als");
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let told = tempfile::tempdir().unwrap();
    fs::set_permissions(told.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let at = |name: &str| told.path().join(name);
    let _collector = collector(&at("otlp"));
    let mesh = Mesh::start_in(folder, &[("mesh.yaml", &manifests(told.path(), &program))], &[], &[]);
    eventually("the edge serves", Duration::from_secs(40), || (call("/warm") == "200").then_some(()));
    assert_eq!((call("/told?token=SECRET-2").as_str(), call("/silent").as_str()), ("200", "200"));

    // Two lines in each file: one of the edge, one of the store's sidecar.
    let come =
        |name: &str| eventually("lines have come", Duration::from_secs(40), || (!lines(&at(name)).is_empty()).then(|| lines(&at(name))));
    let (edge, store) = (come("edge.log"), come("store.log"));
    assert_eq!((edge.len(), store.len()), (1, 1), "{edge:?} {store:?}");
    assert_eq!((&edge[0]["path"], &edge[0]["status"], &edge[0]["direction"]), (&json!("/told?token=***"), &json!(200), &json!("outbound")));
    assert_eq!(store[0]["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/edge");
    assert_eq!(edge[0].as_object().unwrap().keys().count(), 7);

    let both =
        |name: &str| eventually("both have told", Duration::from_secs(40), || (lines(&at(name)).len() >= 2).then(|| lines(&at(name))));
    let records = both("otlp");
    let mut services: Vec<&str> = records.iter().filter_map(|record| record["service"].as_str()).collect();
    services.sort_unstable();
    assert_eq!(services, ["edge", "store"], "{records:?}");
    assert_eq!((&records[0]["event"], &records[0]["severity"]), (&json!("meshwright.access"), &json!("INFO")));
    assert_eq!(records[0]["attributes"]["http.response.status_code"], 200);
    let messages = both("als");
    assert!(messages.iter().all(|message| message.get("invalid").is_none()), "{messages:?}");
    let mut nodes: Vec<&str> = messages.iter().filter_map(|message| message["identifier"]["node"]["id"].as_str()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes.len(), 2, "{messages:?}");
    assert!(nodes[0] == "edge/shop/edge" && nodes[1].starts_with("sidecar/shop/store"), "{nodes:?}");
    let entry = &messages[0]["http_logs"]["log_entry"][0];
    assert_eq!((&entry["request"]["path"], &entry["response"]["response_code"]), (&json!("/told?token=***"), &json!(200)));

    let everything: String = ["edge.log", "store.log", "otlp", "als"].iter().map(|name| fs::read_to_string(at(name)).unwrap()).collect();
    assert!(!everything.contains("SECRET-"), "{everything}");
    assert!(mesh.run(&["logs", "-n", "shop", "store", "--proxy"]).contains("/told?token=***"));

    // Enough for some files of 64 KiB.
    for _ in 0..30 {
        let mut wrk = Command::new("curl");
        wrk.args(["-s", "-o", "/dev/null", &format!("http://127.0.0.1:{PORT}/told/[1-100]")]);
        assert!(wrk.output().unwrap().status.success());
    }
    eventually("a file is put aside", Duration::from_secs(20), || at("store.log.1").exists().then_some(()));
    assert!(fs::metadata(at("store.log.1")).unwrap().len() <= 65536);
    let metrics = mesh.inside("shop/store", &["curl", "-s", "http://127.0.0.1:15020/metrics"]);
    let dropped: Vec<&str> = metrics.lines().filter(|line| line.starts_with("meshwright_access_log_dropped_total{")).collect();
    assert!(dropped.len() == 5 && dropped.iter().all(|line| line.ends_with(" 0")), "{dropped:?}");
    mesh.leave();
}
