//! HTTP/3 of a stock library (aioquic) through the edge of a whole mesh.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::mesh::{Mesh, client, eventually, python, text};

/// The Gateway's port on this machine, by TCP and by UDP.
const PORT: u16 = 28_543;
const HOST: &str = "shop.example";

/// A certificate for the host, and who vouches for it.
fn certificates() -> (String, String, String) {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
    // One that is called like its authority would be taken for its own.
    leaf.distinguished_name = DistinguishedName::new();
    leaf.distinguished_name.push(DnType::CommonName, HOST);
    let leaf = leaf.signed_by(&key, &authority).unwrap();
    (authority.pem(), leaf.pem(), key.serialize_pem())
}

fn indented(pem: &str) -> String {
    pem.lines().map(|line| format!("    {line}\n")).collect()
}

fn manifests(leaf: &str, key: &str) -> String {
    let mirror = json!([python(), client("mirror.py"), "8080"]);
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{meshwright.dev/inject: enabled}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: shop-tls, namespace: shop}}
stringData:
  tls.crt: |
{leaf}  tls.key: |
{key}---
apiVersion: v1
kind: Service
metadata: {{name: store, namespace: shop}}
spec: {{selector: {{app: store}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http/1.1}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: store, namespace: shop, labels: {{app: store}}}}
spec:
  command: {mirror}
  ports: [{{name: http, port: 8080, appProtocol: http/1.1}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec:
  gatewayClassName: meshwright
  listeners:
  - {{name: https, port: {PORT}, protocol: HTTPS, hostname: {HOST}, tls: {{certificateRefs: [{{name: shop-tls}}]}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: store, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules: [{{backendRefs: [{{name: store, port: 80}}]}}]
---
{}",
        policy(true)
    )
}

fn policy(enabled: bool) -> String {
    format!(
        "
apiVersion: meshwright.dev/v1alpha1
kind: ClientPolicy
metadata: {{name: front, namespace: shop}}
spec:
  targetRefs: [{{kind: Gateway, name: edge}}]
  http3: {{enabled: {enabled}, altSvcMaxAge: 1h}}
"
    )
}

/// One order of the client's, begun.
fn begin(authority: &str, order: &[&str]) -> Child {
    let (address, program) = (format!("127.0.0.1:{PORT}"), client("http3.py"));
    let arguments = [&[program.as_str(), authority, &address, HOST][..], order].concat();
    Command::new(python()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(begun: Child) -> Result<Value, String> {
    let output = begun.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).map_err(|_| text(&output.stderr))
}

fn ask(authority: &str, order: &[&str]) -> Value {
    end(begin(authority, order)).unwrap_or_else(|error| panic!("{order:?}: {error}"))
}

/// The head of an answer over HTTP/2.
fn over_http2(authority: &str) -> String {
    let (resolve, url) = (format!("{HOST}:{PORT}:127.0.0.1"), format!("https://{HOST}:{PORT}/"));
    let arguments = ["-s", "-o", "/dev/null", "-D", "-", "--http2", "--cacert", authority, "--resolve", &resolve, &url];
    text(&Command::new("curl").args(arguments).output().unwrap().stdout)
}

/// Aim: what HTTP/2 says of HTTP/3 is so; requests, an upload of 10 MB and many streams at once come whole; the configuration changes under streams
/// without one failure; turned off, it is said no more and nobody is let in.
#[test]
fn a_stock_client_of_http3_is_served() {
    let (root, leaf, key) = certificates();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let authority = folder.path().join("root.pem").display().to_string();
    let mesh = Mesh::start_in(folder, &[("mesh.yaml", &manifests(&indented(&leaf), &indented(&key)))], &[], &[]);
    fs::write(&authority, root).unwrap();

    let head = eventually("the Gateway answers over HTTP/2", Duration::from_secs(30), || {
        Some(over_http2(&authority)).filter(|head| head.starts_with("HTTP/2 200"))
    });
    assert!(head.contains(&format!("alt-svc: h3=\":{PORT}\"; ma=3600")), "{head}");

    let answer = ask(&authority, &["get", "/"]);
    assert_eq!(answer["status"], 200, "{answer}");
    assert!(answer["headers"].get("alt-svc").is_none(), "{answer}");
    let seen: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
    assert_eq!((seen["x-forwarded-proto"].as_str(), seen["x-forwarded-for"].as_str()), (Some("https"), Some("127.0.0.1")), "{seen}");
    let upload = ask(&authority, &["post", "/", "10000000"]);
    assert_eq!(upload, json!({"status": 200, "bytes": 10_000_000, "same": true}));
    assert_eq!(ask(&authority, &["many", "/", "90"]), json!({"statuses": [200], "count": 90}));

    let load = begin(&authority, &["load", "/", "12"]);
    for round in 0..6 {
        let route = format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: store, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-round, value: \"{round}\"}}]}}}}]
    backendRefs: [{{name: store, port: 80}}]
"
        );
        mesh.apply(&route);
    }
    let load = end(load).unwrap();
    assert_eq!(load["failures"], json!([]), "{load}");
    assert!(load["answered"].as_u64().unwrap() > 50, "{load}");

    mesh.apply(&policy(false));
    eventually("HTTP/3 is not said any more", Duration::from_secs(20), || (!over_http2(&authority).contains("alt-svc")).then_some(()));
    assert!(end(begin(&authority, &["get", "/"])).is_err(), "nobody is let in");
    mesh.apply(&policy(true));
    eventually("HTTP/3 is served again", Duration::from_secs(20), || end(begin(&authority, &["get", "/"])).ok());
    mesh.leave();
}
