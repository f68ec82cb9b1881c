//! Certificates that live for a minute, under load.

use std::thread;
use std::time::Duration;

use crate::mesh::{Load, Mesh};

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
kind: PeerAuthentication
metadata: {name: strict, namespace: r}
spec: {mtls: {mode: Strict}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: r}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: server, namespace: r, labels: {app: server}}
spec:
  command: [meshwright, echo, --http=8080]
  ports: [{name: http, port: 8080, appProtocol: http}]
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: client, namespace: r}
spec: {command: [sleep, infinity]}
";

/// Aim: a leaf life of one minute over more than one life, with load, strict: every leaf is renewed and no request fails.
#[test]
fn short_lives_cut_nothing() {
    let mesh = Mesh::start(&[("mesh.yaml", MESH)]);
    mesh.inside("r/client", &["curl", "-sf", "http://server/"]);
    let serials = |mesh: &Mesh| -> Vec<String> {
        let certs = mesh.json(&["get", "certs"]);
        certs.as_array().unwrap().iter().map(|cert| cert["serial"].as_str().unwrap().to_owned()).collect()
    };
    let before = serials(&mesh);
    assert_eq!(before.len(), 2);
    let load = Load::start(&mesh, "r/client", "http://server/", 75);
    thread::sleep(Duration::from_secs(70));
    let after = serials(&mesh);
    assert!(after.iter().all(|serial| !before.contains(serial)), "{before:?} and then {after:?}");
    load.finish_without_failure();
    mesh.leave();
}
