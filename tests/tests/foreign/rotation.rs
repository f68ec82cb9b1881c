//! Certificates that live for a minute, and roots that are replaced, under load.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mesh::{Load, Mesh, eventually};

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

fn serials(mesh: &Mesh) -> Vec<String> {
    let certs = mesh.json(&["get", "certs"]);
    certs.as_array().unwrap().iter().map(|cert| cert["serial"].as_str().unwrap().to_owned()).collect()
}

fn issuing(mesh: &Mesh) -> String {
    mesh.json(&["ca", "show"])["roots"][0]["sha256"].as_str().unwrap().to_owned()
}

/// Aim: the root is replaced under load, strict, with leaves of a minute: the command returns when the old root is gone, and no request fails,
/// then, when the last leaf below the old root has ended, or when every leaf is renewed because its minute is over.
#[test]
fn a_new_root_cuts_nothing() {
    let mesh = Mesh::start(&[("mesh.yaml", MESH)]);
    mesh.inside("r/client", &["curl", "-sf", "http://server/"]);
    let old = issuing(&mesh);
    let load = Load::start(&mesh, "r/client", "http://server/", 85);
    let result = mesh.json(&["ca", "rotate-root"]);
    assert_eq!((&result["rotated"], &result["old"]), (&true.into(), &old.as_str().into()), "{result}");
    let shown = mesh.json(&["ca", "show"]);
    assert!(shown["roots"][0]["sha256"] != old.as_str() && shown["roots"][1]["state"] == "Retired", "{shown}");
    let before = serials(&mesh);
    assert_eq!(before.len(), 2);
    thread::sleep(Duration::from_secs(65));
    let after = serials(&mesh);
    assert!(after.iter().all(|serial| !before.contains(serial)), "{before:?} and then {after:?}");
    load.finish_without_failure();
    mesh.leave();
}

/// Aim: the same with the control plane killed in each of the three steps: it goes on by itself, and no request fails.
#[test]
fn a_new_root_outlives_the_control_plane() {
    let mesh = Mesh::start(&[("mesh.yaml", MESH)]);
    mesh.inside("r/client", &["curl", "-sf", "http://server/"]);
    let load = Load::start(&mesh, "r/client", "http://server/", 150);
    for step in ["Trust", "Issue", "Drop"] {
        let old = issuing(&mesh);
        mesh.json(&["ca", "rotate-root", "--no-wait"]);
        eventually(step, Duration::from_secs(30), || {
            let shown = mesh.json(&["ca", "show"]);
            let moved = shown["roots"][0]["sha256"] != old.as_str();
            // The first step is over in no time: there it is killed as soon as it was taken.
            (step == "Trust" || moved && (step == "Issue" || shown["phase"] == "Steady")).then_some(())
        });
        for pid in mesh.pids("control") {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
        eventually("the end", Duration::from_secs(60), || {
            let output = mesh.command(&["ca", "show", "-o", "json"]).output().unwrap();
            let shown: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let over = shown["phase"] == "Steady" && shown["roots"][0]["sha256"] != old.as_str() && shown["roots"][0]["proxies"] == 2;
            over.then_some(())
        });
    }
    load.finish_without_failure();
    mesh.leave();
}
