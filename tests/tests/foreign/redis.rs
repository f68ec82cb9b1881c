//! Limits that three Gateways share by a Redis server: how much they let through, and what becomes of them while it is away.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::mesh::{Mesh, eventually, python, text};

/// Ports of the Gateways on this machine.
const PORTS: [u16; 3] = [28_471, 28_472, 28_473];
/// What all of them together may let through.
const WHOLE: u64 = 1_500;

/// The server runs while there is a file `on`, says what is no answer while there is a file `garbage`, and is gone otherwise.
fn manifests(folder: &Path) -> String {
    let folder = folder.display();
    let server = "redis-server --port 6379 --save '' --appendonly no --protected-mode no --enable-debug-command yes --requirepass s3cret";
    let python = python();
    let garbage = format!("timeout 4 {} -m http.server 6379", python.display());
    let turns = format!(
        "while sleep 0.1; do if [ -e {folder}/on ]; then {server}; elif [ -e {folder}/garbage ]; then {garbage}; fi; done >/dev/null 2>&1"
    );
    let command = json!(["sh", "-c", turns]);
    let (gateways, objects) = (gateways(), objects());
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{meshwright.dev/inject: enabled}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: data}}
---
apiVersion: v1
kind: Secret
metadata: {{name: redis, namespace: shop}}
stringData: {{password: s3cret}}
---
apiVersion: v1
kind: Service
metadata: {{name: redis, namespace: data}}
spec: {{selector: {{app: redis}}, ports: [{{name: tcp-redis, port: 6379}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: redis, namespace: data, labels: {{app: redis}}}}
spec: {{command: {command}, ports: [{{name: tcp-redis, port: 6379}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: store, namespace: shop}}
spec: {{selector: {{app: store}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: store, namespace: shop, labels: {{app: store}}}}
spec:
  command: [meshwright, echo, --http=8080]
  ports: [{{name: http, port: 8080, appProtocol: http}}]
{gateways}{objects}
"
    )
}

/// Three Gateways.
fn gateways() -> String {
    PORTS
        .iter()
        .map(|port| {
            format!(
                "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge-{port}, namespace: shop}}
spec: {{gatewayClassName: meshwright, listeners: [{{name: http, port: {port}, protocol: HTTP}}]}}"
            )
        })
        .collect()
}

/// A route of four rules, each with a limit of its own.
fn objects() -> String {
    let parents: Vec<_> = PORTS.iter().map(|port| json!({"name": format!("edge-{port}")})).collect();
    let rules: Vec<_> = ["shared", "local", "allow", "deny"]
        .iter()
        .map(|name| {
            json!({"name": name, "matches": [{"path": {"type": "PathPrefix", "value": format!("/{name}")}}], "backendRefs": [{"name": "store", "port": 80}]})
        })
        .collect();
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "store", "namespace": "shop"},
        "spec": {"parentRefs": parents, "rules": rules},
    });
    let limit = |name: &str, requests: u64, on_error: &str| {
        json!({
            "apiVersion": "meshwright.dev/v1alpha1", "kind": "RateLimit", "metadata": {"name": name, "namespace": "shop"},
            "spec": {
                "targetRefs": [{"kind": "HTTPRoute", "name": "store", "sectionName": name}],
                "limits": [{"name": "all", "requests": requests, "per": "24h"}],
                "store": {"redis": {"addresses": ["redis.data:6379"], "timeout": "1s", "authRef": {"name": "redis", "key": "password"}}},
                "onError": on_error,
            },
        })
    };
    let objects =
        [route, limit("shared", WHOLE, "Local"), limit("local", 6, "Local"), limit("allow", 1, "Allow"), limit("deny", 1_000, "Deny")];
    objects.iter().map(|object| format!("\n---\n{object}")).collect()
}

/// Status code and reason of a request to one Gateway.
fn call(port: u16, name: &str) -> String {
    let url = format!("http://127.0.0.1:{port}/{name}");
    let mut curl = Command::new("curl");
    curl.args(["-s", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code} %header{x-meshwright-reason}", &url]);
    // Without a reason a blank stands at the end.
    text(&curl.output().unwrap().stdout)
}

/// The condition `Degraded` of an object, if it has one.
fn degraded(mesh: &Mesh, name: &str) -> Option<String> {
    let objects = mesh.json(&["get", "objects", name, "-n", "shop"]);
    let all = objects.to_string();
    all.contains("\"Degraded\"").then_some(all)
}

/// What of wrk's requests got through.
fn through(report: &str) -> u64 {
    let number = |line: &str| line.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    let all = report.lines().find(|line| line.contains(" requests in ")).and_then(number).unwrap_or(0);
    let refused = report.lines().find(|line| line.contains("Non-2xx")).and_then(number).unwrap_or(0);
    assert!(!report.contains("Socket errors") && all > 0, "{report}");
    all - refused
}

/// What each Gateway lets through while all of them are loaded.
fn loaded() -> Vec<u64> {
    let loads: Vec<_> = PORTS
        .iter()
        .map(|port| {
            let url = format!("http://127.0.0.1:{port}/shared");
            let mut load = Command::new("wrk");
            load.args(["-t", "1", "-c", "4", "-d", "8s", &url]).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    loads.into_iter().map(|load| through(&text(&load.wait_with_output().unwrap().stdout))).collect()
}

/// Aim: three Gateways at a real server let through what one would, within 2 %; while the server is killed, hangs or answers garbage each
/// limit goes by its onError, status and metrics say so, and when it is back it counts on.
#[test]
fn three_gateways_share_by_a_real_server_that_may_go_away() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let switch = tempfile::tempdir().unwrap();
    fs::set_permissions(switch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (on, garbage) = (switch.path().join("on"), switch.path().join("garbage"));
    fs::write(&on, "").unwrap();
    let mesh = Mesh::start_in(folder, &[("mesh.yaml", &manifests(switch.path()))], &[], &[]);
    for port in PORTS {
        eventually("the server is met", Duration::from_secs(30), || (call(port, "deny") == "200 ").then_some(()));
    }

    let each = loaded();
    let all: u64 = each.iter().sum();
    eprintln!("let through: {each:?}, together {all} of {WHOLE}");
    assert!((WHOLE * 98 / 100..=WHOLE * 102 / 100).contains(&all), "{each:?}");
    assert!(each.iter().all(|own| *own > 0), "one Gateway had nothing: {each:?}");

    let [first, second, third] = PORTS;
    assert_eq!(call(first, "allow"), "200 ");
    assert_eq!(call(second, "allow"), "429 rate_limited", "another Gateway has used it up");
    assert_eq!(call(first, "local"), "200 ");
    assert_eq!(degraded(&mesh, "deny"), None);

    let cli = ["redis-cli", "-h", "redis.data", "-a", "s3cret", "--no-auth-warning"];
    let away = |what: &str| {
        eventually(what, Duration::from_secs(20), || (call(third, "deny") == "503 policy_unavailable").then_some(()));
        eventually("every Gateway knows", Duration::from_secs(10), || (call(first, "deny") == "503 policy_unavailable").then_some(()));
        assert_eq!(call(first, "allow"), "200 ", "{what}");
    };
    let back = || {
        for port in PORTS {
            eventually("the server counts again", Duration::from_secs(30), || (call(port, "deny") == "200 ").then_some(()));
        }
        assert_eq!(call(first, "allow"), "429 rate_limited", "what was used up before is used up");
    };

    // Killed: it forgets, and is told what proxies know.
    fs::remove_file(&on).unwrap();
    let _ = mesh.exec("shop/store", &[&cli[..], &["shutdown", "nosave"]].concat()).output();
    away("killed");
    let said = eventually("status says so", Duration::from_secs(20), || degraded(&mesh, "deny"));
    assert!(said.contains("redis/redis.data:6379 is away from"), "{said}");
    let answers: Vec<String> = (0..7).map(|_| call(first, "local")).collect();
    let passed = answers.iter().take_while(|answer| *answer == "200 ").count();
    assert!((4..=5).contains(&passed) && answers[6] == "429 rate_limited", "its share of what was left: {answers:?}");
    let limits = mesh.json(&["get", "limits", "local", "-n", "shop"]);
    assert_eq!((&limits[0]["store"], &limits[0]["degraded"]), (&json!("redis"), &json!(true)), "{limits}");
    fs::write(&on, "").unwrap();
    for port in PORTS {
        eventually("the server counts again", Duration::from_secs(30), || (call(port, "deny") == "200 ").then_some(()));
    }
    eventually("status says no more", Duration::from_secs(20), || degraded(&mesh, "deny").is_none().then_some(()));
    assert_eq!(call(first, "local"), "429 rate_limited", "what was let through meanwhile was told");
    assert_eq!(call(first, "allow"), "429 rate_limited", "a proxy that knew it refuses by itself");

    // Hangs: a request waits for the store's timeout, and once it is known, for nothing.
    let mut hang = mesh.exec("shop/store", &[&cli[..], &["debug", "sleep", "6"]].concat()).stdout(Stdio::null()).spawn().unwrap();
    away("hanging");
    hang.wait().unwrap();
    back();

    // Answers what nobody understands.
    fs::remove_file(&on).unwrap();
    fs::write(&garbage, "").unwrap();
    let _ = mesh.exec("shop/store", &[&cli[..], &["shutdown", "nosave"]].concat()).output();
    away("garbage");
    let said = eventually("status says why", Duration::from_secs(20), || degraded(&mesh, "deny"));
    // This server may take its time to say that it understands nothing.
    let words = ["no answer of a Redis server", "closed the connection", "refused", "no answer within"];
    assert!(words.iter().any(|word| said.contains(word)), "{said}");
    fs::remove_file(&garbage).unwrap();
    fs::write(&on, "").unwrap();
    for port in PORTS {
        eventually("the server counts again", Duration::from_secs(30), || (call(port, "deny") == "200 ").then_some(()));
    }
    mesh.leave();
}
