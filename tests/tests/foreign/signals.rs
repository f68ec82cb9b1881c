//! Signals as people meet them: `tap`, `stat` and `explain ID` on a mesh under load.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::mesh::{Load, Mesh, eventually, said, text};

/// A caller and what it calls, where a request that says so fails on purpose.
const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: t, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: t}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: t, labels: {app: web}}
spec:
  command: [meshwright, echo, --http=8080]
  ports: [{name: http, port: 8080, appProtocol: http}]
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: client, namespace: t}
spec: {command: [sleep, infinity]}
---
apiVersion: meshwright.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: chaos, namespace: t}
spec:
  targetRefs: [{group: \"\", kind: Service, name: web}]
  faults: [{match: {headers: [{name: x-chaos, value: \"on\"}]}, percent: 100, abort: {httpStatus: 503}}]
";

fn mesh() -> Mesh {
    Mesh::start(&[("mesh.yaml", MANIFESTS)])
}

/// Aim: one planted failure is shown, with its reason, while thousands of other requests run, and none of them fails for being watched; then
/// its id leads to it.
#[test]
fn a_planted_failure_is_seen_under_load() {
    let mesh = mesh();
    mesh.inside("t/client", &["curl", "-sf", "http://web/"]);
    let load = Load::start(&mesh, "t/client", "http://web/load", 6);
    let mut tap = mesh.command(&["tap", "-n", "t", "--status", "5xx", "--max", "1", "--for", "20s", "-o", "json"]);
    let mut tap = tap.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It says when proxies have heard of it.
    let mut told = BufReader::new(tap.stderr.take().unwrap()).lines();
    assert_eq!(told.next().unwrap().unwrap(), "watching 2 proxies; Ctrl-C ends it");
    thread::sleep(Duration::from_secs(1));
    mesh.exec("t/client", &["curl", "-s", "-H", "x-chaos: on", "-H", "x-request-id: planted", "http://web/planted?token=secret"])
        .output()
        .unwrap();
    let output = tap.wait_with_output().unwrap();
    let line: Value = serde_json::from_str(text(&output.stdout).trim()).unwrap();
    let facts = [&line["status"], &line["reason"], &line["path"], &line["direction"], &line["source"]["workload"]];
    assert_eq!(facts, [&503.into(), &Value::from("fault"), &"/planted?token=***".into(), &"outbound".into(), &"client".into()], "{line}");
    let summary = told.map_while(Result::ok).last().unwrap();
    assert!(summary.contains("1 shown, 1 of them failed"), "{summary}");
    load.finish_without_failure();

    let hops = mesh.json(&["explain", "planted"]);
    assert_eq!((hops.as_array().unwrap().len(), &hops[0]["reason"], &hops[0]["proxy"]), (1, &"fault".into(), &"t/client".into()), "{hops}");
    assert!(mesh.run(&["explain", "planted"]).contains("client side at t/client"));
    let unknown = mesh.command(&["explain", "nobody"]).output().unwrap();
    assert!(!unknown.status.success() && said(&unknown).contains("no proxy keeps"), "{}", said(&unknown));
    mesh.leave();
}

/// Aim: a busy proxy shows no more lines than are asked for, and says how many it did not show; a table in a pipe has plain lines.
#[test]
fn a_busy_tap_is_bounded_and_says_so() {
    let mesh = mesh();
    mesh.inside("t/client", &["curl", "-sf", "http://web/"]);
    let load = Load::start(&mesh, "t/client", "http://web/load", 6);
    let output = mesh.command(&["tap", "-n", "t", "client", "--service", "t/web", "--rate", "20", "--for", "3s"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let (lines, told) = (text(&output.stdout), text(&output.stderr));
    let rows: Vec<&str> = lines.lines().collect();
    assert!(rows[0].starts_with("TIME") && rows[0].contains("LATENCY"), "{lines}");
    // Three seconds' worth, and the second's that a tap begins with.
    assert!((20..=100).contains(&rows.len()), "{} rows: {told}", rows.len());
    assert!(rows[1].contains("t/client → t/web") && rows[1].contains("/load") && !lines.contains('\x1b'), "{lines}");
    assert!(told.contains("dropped (20 lines a second for each proxy: --rate)"), "{told}");
    load.finish_without_failure();
    mesh.leave();
}

/// Aim: what `stat` counts is what was sent: requests, failures and latency, within the window.
#[test]
fn stat_agrees_with_what_was_sent() {
    let mesh = mesh();
    mesh.inside("t/client", &["curl", "-sf", "http://web/"]);
    thread::sleep(Duration::from_secs(4));
    let fine = mesh.inside("t/client", &["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\n", "http://web/?delay=20ms&n=[1-90]"]);
    assert_eq!(fine.matches("200").count(), 90, "{fine}");
    let failed = mesh
        .exec("t/client", &["curl", "-s", "-H", "x-chaos: on", "-o", "/dev/null", "-w", "%{http_code}\n", "http://web/?n=[1-10]"])
        .output()
        .unwrap();
    assert_eq!(text(&failed.stdout).matches("503").count(), 10);
    let row = eventually("all requests are counted", Duration::from_secs(15), || {
        let rows = mesh.json(&["stat", "services", "web", "-n", "t", "--window", "60s", "--from", "t/client"]);
        // The first request is among them.
        Some(rows[0].clone()).filter(|row| row["requests"] == 101)
    });
    assert_eq!(row["failures"], 10, "{row}");
    let success = row["success"].as_f64().unwrap();
    assert!((success - 100.0 * 91.0 / 101.0).abs() < 0.001, "{row}");
    assert!((10.0..100.0).contains(&row["p50_ms"].as_f64().unwrap()), "{row}");
    let table = mesh.run(&["stat", "workloads", "--window", "60s"]);
    assert!(table.starts_with("WORKLOAD") && table.contains("t/web"), "{table}");
    mesh.leave();
}

/// Aim: over the network a token opens `tap` and `stat`, the one that looks suffices, and without one nothing is shown.
#[test]
fn watching_needs_a_token() {
    let mesh = mesh();
    let state = mesh.state();
    let address = mesh
        .log()
        .lines()
        .find_map(|line| line.strip_prefix("control plane ready on ")?.split(' ').next().map(str::to_owned))
        .expect("`up` says where the control plane is");
    let (ca, wrong) = (state.join("ca.pem").display().to_string(), state.join("wrong.token"));
    std::fs::write(&wrong, "x".repeat(43)).unwrap();
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let look = state.join("control/api-read.token").display().to_string();
    let asked = |command: &[&str], token: &str| {
        let program = crate::mesh::meshwright().display().to_string();
        let remote = ["--control", &address, "--control-ca", &ca, "--token-file", token];
        mesh.exec("t/client", &[&[program.as_str()], command, &remote].concat()).output().unwrap()
    };
    for command in [&["tap", "--for", "1s"][..], &["stat"]] {
        let refused = asked(command, &wrong.display().to_string());
        assert!(!refused.status.success() && said(&refused).contains("api-read.token"), "{command:?}: {}", said(&refused));
        let allowed = asked(command, &look);
        assert!(allowed.status.success(), "{command:?}: {}", said(&allowed));
    }
    mesh.leave();
}
