//! Bad input and dying parts: a clear message or a reason each time, and nothing else suffers.

use std::process::Command;
use std::time::Duration;

use crate::mesh::{Mesh, client, eventually, meshwright, said};

const NAMESPACE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: t, labels: {meshwright.dev/inject: enabled}}
";

/// A Service with one instance that runs a command, on port 80.
fn workload(name: &str, command: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: t}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: t, labels: {{app: {name}}}}}
spec:
  command: {command}
  ports: [{{name: http, port: 8080, appProtocol: http}}]
"
    )
}

fn route(name: &str, service: &str, backend: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: t}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: {service}}}]
  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]
"
    )
}

fn mesh() -> Mesh {
    let bad = format!("[python3, {}, \"8080\"]", client("bad_server.py"));
    Mesh::start(&[
        ("namespace.yaml", NAMESPACE),
        ("good.yaml", &workload("good", "[meshwright, echo, --http=8080]")),
        ("bad.yaml", &workload("bad", &bad)),
        ("files.yaml", &workload("files", "[python3, -m, http.server, \"8080\"]")),
    ])
}

/// Aim: broken files and objects are told by name and place, and the mesh goes on with the last good version.
#[test]
fn bad_manifests_harm_nobody() {
    let mesh = mesh();
    mesh.write("broken.yaml", "kind: Service\nmetadata: {name: x\n");
    eventually("the broken file is told on stderr", Duration::from_secs(10), || {
        let log = mesh.log() + &said(&mesh.command(&["logs", "control"]).output().unwrap());
        log.contains("broken.yaml").then_some(())
    });
    assert_eq!(mesh.curl("t/good", "http://good/")[0], "200");

    // A field that does not exist, in an object that did: the old version stays.
    mesh.write("good.yaml", &workload("good", "[meshwright, echo, --http=8080]\n  comand: [x]"));
    eventually("the unknown field is told with the right name", Duration::from_secs(10), || {
        let text = mesh.run(&["get", "objects", "-o", "json"]);
        (text.contains("comand") && text.contains("command")).then_some(())
    });
    assert_eq!(mesh.curl("t/bad", "http://good/")[0], "200");

    let refused = mesh.command(&["apply", "-f", mesh.folder().join("broken.yaml").to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && said(&refused).contains("broken.yaml"), "{}", said(&refused));
    let unknown = mesh.command(&["apply", "-f", "nowhere.yaml"]).output().unwrap();
    assert!(said(&unknown).starts_with("error: cannot open nowhere.yaml"), "{}", said(&unknown));
    mesh.leave();
}

/// Aim: routes that lead nowhere answer with their reason, conflicts name the winner, a Service without endpoints is 503.
#[test]
fn routes_to_nowhere_have_a_reason() {
    let mesh = mesh();
    mesh.apply(&route("nowhere", "good", "missing"));
    assert_eq!(mesh.curl("t/bad", "http://good/")[..2], ["500", "bad_backend"]);
    // The older of two routes that match alike wins, and `analyze` says so.
    mesh.apply(&route("second", "good", "files"));
    assert_eq!(mesh.curl("t/bad", "http://good/")[..2], ["500", "bad_backend"]);
    mesh.write("routes.yaml", &[route("nowhere", "good", "missing"), route("second", "good", "files")].join("---"));
    let found = mesh.run(&["analyze", mesh.folder().to_str().unwrap()]);
    assert!(found.contains("HTTPRoute t/second") && found.contains("HTTPRoute t/nowhere is the same and comes first"), "{found}");

    mesh.apply("{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: t}, spec: {selector: {app: none}, ports: [{name: http, port: 80, appProtocol: http}]}}");
    assert_eq!(mesh.curl("t/bad", "http://empty/")[..2], ["503", "no_endpoints"]);
    mesh.leave();
}

/// Aim: a backend that resets, hangs or talks nonsense gets its reason, and its next request is served.
#[test]
fn bad_backends_have_a_reason() {
    let mesh = mesh();
    assert_eq!(mesh.curl("t/good", "http://bad/")[2].trim(), "fine");
    assert_eq!(mesh.curl("t/good", "http://bad/reset")[..2], ["503", "upstream_reset"]);
    assert_eq!(mesh.curl("t/good", "http://bad/garbage")[..2], ["502", "upstream_protocol"]);
    mesh.apply(&route("timed", "bad", "bad").replace("port: 80}]}]", "port: 80}], timeouts: {request: 1s}}]"));
    assert_eq!(mesh.curl("t/good", "http://bad/hang")[..2], ["504", "request_timeout"]);
    assert_eq!(mesh.curl("t/good", "http://bad/")[2].trim(), "fine");
    // A server nobody here wrote: HTTP/1.0, closes each connection.
    assert_eq!(mesh.curl("t/good", "http://files/")[0], "200");
    mesh.leave();
}

/// Aim: a proxy that is killed comes back by itself, `up` says so, and traffic flows again.
#[test]
fn a_killed_proxy_comes_back() {
    let mesh = mesh();
    let proxies = mesh.json(&["get", "proxies"]);
    let good = proxies.as_array().unwrap().iter().find(|proxy| proxy["instance"] == "good").unwrap();
    let pid = i32::try_from(good["pid"].as_i64().expect("the pid is known under up")).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the proxy serves again", Duration::from_secs(20), || (mesh.curl("t/bad", "http://good/")[0] == "200").then_some(()));
    let said = format!("good's proxy (pid {pid}) was killed by SIGKILL; restarting");
    assert!(mesh.log().contains(&said), "up did not say {said}:\n{}", mesh.log());
    mesh.leave();
}

/// Aim: mistakes on the command line end in a sentence with a remedy and the right exit code.
#[test]
fn mistakes_are_told() {
    let empty = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Command::new(meshwright()).args(args).env("MESHWRIGHT_STATE_DIR", empty.path()).output().unwrap();
    for (args, code, words) in [
        (&["get", "proxies"][..], 1, "no mesh is running here"),
        (&["wait", "--timeout", "200ms"], 1, "no mesh answered"),
        (&["get", "nonsense"], 2, "possible values"),
        (&["apply"], 2, "--filename"),
        (&["explain", "--from", "x", "GET", "http://a/"], 2, "NAMESPACE/NAME"),
        (&["wait", "--timeout", "soon"], 2, "for example"),
        (&["nonsense"], 2, "unrecognized"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{args:?}: {}", said(&output));
    }
}
