//! Identities for programs nobody here wrote: stock SPIFFE libraries on the Workload API, nginx and openssl with identity files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::mesh::{Mesh, client, eventually, go_program, meshwright, python, said, text};

const MESH: &str = "
apiVersion: meshwright.dev/v1alpha1
kind: Mesh
metadata: {name: default, namespace: meshwright-system}
spec:
  certificates: {leafLife: 1m}
---
apiVersion: v1
kind: Namespace
metadata: {name: r, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: app, namespace: r}
spec: {serviceAccount: app, command: [sleep, infinity]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: legacy, namespace: r}
spec: {serviceAccount: legacy, addresses: [192.0.2.10], ports: [{name: https, port: 8443}]}
";

const APP: &str = "spiffe://cluster.local/ns/r/sa/app";

fn steps(child: Child) -> Vec<Value> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Aim: the SPIFFE libraries of Python and Go find the socket by themselves, get an identity, speak mutual TLS with it, have tokens that
/// PyJWT and go-spiffe accept and reject as they should, and are pushed the next certificate; the audit log names both kinds of leaves.
#[test]
fn stock_spiffe_clients_have_an_identity() {
    let go = go_program("spiffe_go");
    let mesh = Mesh::start(&[("mesh.yaml", MESH)]);
    let spawn = |program: &[&str]| mesh.exec("r/app", program).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let clients = [spawn(&[python().to_str().unwrap(), &client("spiffe_client.py")]), spawn(&[&go])];
    for steps in clients.map(steps) {
        let names: Vec<_> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
        assert_eq!(names, ["x509", "jwt", "rotated"]);
        assert!(steps.iter().all(|step| step["id"] == APP), "{steps:?}");
        assert_ne!(steps[0]["serial"], steps[2]["serial"]);
    }
    let log = mesh.json(&["ca", "audit", "-n", "r", "--workload", "app", "--since", "1h"]);
    let rows = log.as_array().unwrap();
    let told = |holder: &str, attestation: &str| rows.iter().any(|row| row["holder"] == holder && row["attestation"] == attestation);
    assert!(told("Proxy", "Token") && told("Application", "Certificate"), "{log}");
    assert!(rows.iter().all(|row| row["identity"] == APP && row["not_after"].as_str().unwrap().ends_with('Z')), "{log}");
    mesh.leave();
}

/// An nginx that ends with the test.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nginx_configuration(folder: &Path, identity: &Path) -> String {
    let (folder, identity) = (folder.display(), identity.display());
    format!(
        "daemon off; master_process on; pid {folder}/nginx.pid; error_log {folder}/error.log;
         events {{}}
         http {{
           access_log off;
           server {{
             listen 127.0.0.1:8443 ssl;
             ssl_certificate {identity}/cert.pem;
             ssl_certificate_key {identity}/key.pem;
             ssl_client_certificate {identity}/bundle.pem;
             ssl_verify_client on;
             ssl_verify_depth 3;
             location / {{ return 200 \"$ssl_client_verify $ssl_client_serial\\n\"; }}
           }}
         }}"
    )
}

/// Aim: `identity --watch` keeps files fresh that nginx serves with and openssl verifies against the bundle, both ends of mutual TLS; after
/// a renewal and a reload the next certificate is served; who has no certificate gets nothing, and a used token is told.
#[test]
fn nginx_serves_with_identity_files() {
    let mesh = Mesh::start(&[("mesh.yaml", MESH)]);
    let folder = tempfile::tempdir().unwrap();
    let (token, identity) = (folder.path().join("token"), folder.path().join("identity"));
    fs::write(&token, mesh.run(&["token", "create", "--workload", "r/legacy"])).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let ca = mesh.state().join("ca.pem");
    let flags = |dir: &Path| {
        let path = |path: &Path| path.display().to_string();
        let mut line: Vec<String> = [meshwright().to_str().unwrap(), "identity", "--control", "10.77.0.1:15012"].map(str::to_owned).into();
        line.extend(["--control-ca".into(), path(&ca), "--token-file".into(), path(&token), "--dir".into(), path(dir)]);
        line
    };
    let inside = |line: &[String]| mesh.exec("r/app", &line.iter().map(String::as_str).collect::<Vec<_>>());
    let keeper = inside(&[flags(&identity), vec!["--watch".into()]].concat()).stderr(Stdio::null()).spawn().unwrap();
    let _keeper = Nginx(keeper);
    eventually("the first files", Duration::from_secs(30), || identity.join("bundle.pem").exists().then_some(()));
    let elsewhere = inside(&[flags(&folder.path().join("x")), vec!["--timeout".into(), "3s".into()]].concat()).output().unwrap();
    assert!(!elsewhere.status.success() && said(&elsewhere).contains("used before"), "{}", said(&elsewhere));

    let configuration = folder.path().join("nginx.conf");
    fs::write(&configuration, nginx_configuration(folder.path(), &identity)).unwrap();
    let nginx = |more: &[&str]| mesh.exec("r/app", &[&["nginx", "-c", configuration.to_str().unwrap()], more].concat());
    let _nginx = Nginx(nginx(&[]).spawn().unwrap());
    let file = |name: &str| identity.join(name).display().to_string();
    let (bundle, certificate, key) = (file("bundle.pem"), file("cert.pem"), file("key.pem"));
    let call = |own: &[&str]| {
        let tls = ["openssl", "s_client", "-quiet", "-verify_return_error", "-connect", "127.0.0.1:8443", "-CAfile"];
        let line = [&tls[..], &[bundle.as_str()], own].concat();
        let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 10 {}", line.join(" "));
        text(&mesh.exec("r/app", &["sh", "-c", &script]).output().unwrap().stdout)
    };
    let own = ["-cert", &certificate, "-key", &key, "-cert_chain", &certificate];
    let first = eventually("nginx with the first certificate", Duration::from_secs(20), || {
        Some(call(&own)).filter(|answer| answer.contains("SUCCESS"))
    });
    assert!(!call(&[]).contains("SUCCESS"));
    let generation = fs::read_link(identity.join("..data")).unwrap();
    eventually("a renewal", Duration::from_secs(60), || (fs::read_link(identity.join("..data")).unwrap() != generation).then_some(()));
    assert!(nginx(&["-s", "reload"]).status().unwrap().success());
    // The client shows its own file, so another serial is another generation; nginx verifies it against the bundle.
    eventually("nginx with the next certificate", Duration::from_secs(20), || {
        Some(call(&own)).filter(|answer| answer.contains("SUCCESS") && *answer != first)
    });
    let log = mesh.json(&["ca", "audit", "-n", "r", "--workload", "legacy"]);
    assert_eq!(log.as_array().unwrap().last().unwrap()["attestation"], "Token");
    assert!(log[0]["attestation"] == "Certificate" && log[0]["identity"] == "spiffe://cluster.local/ns/r/sa/legacy", "{log}");
    let refused = mesh.json(&["ca", "audit", "--refused", "--workload", "legacy"]);
    assert!(refused[0]["reason"].as_str().unwrap().contains("used before"), "{refused}");
    mesh.leave();
}
