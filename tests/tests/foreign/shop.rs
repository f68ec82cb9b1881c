//! The shop of the examples, as its README promises it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::look::free_port;

use crate::mesh::{Load, Mesh, client, eventually, python, root, text};

/// Requests whose share is counted: enough for one per cent to be more than four standard deviations.
const COUNTED: usize = 20_000;

/// The shop with its edge on another port, all requests traced to another collector.
pub(crate) fn shop(edge: u16, otlp: u16) -> Mesh {
    let mut manifests = Vec::new();
    for entry in fs::read_dir(root().join("examples/shop")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.replace("port: 8080, protocol: HTTP", &format!("port: {edge}, protocol: HTTP"));
            let text = text.replace("127.0.0.1:4317", &format!("127.0.0.1:{otlp}")).replace("samplePercent: 10", "samplePercent: 100");
            manifests.push((path.file_name().unwrap().to_string_lossy().into_owned(), text));
        }
    }
    let borrowed: Vec<(&str, &str)> = manifests.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Mesh::start(&borrowed)
}

/// Share of version 2 among so many requests of the frontend, in per cent.
fn share_of_v2(mesh: &Mesh, requests: usize) -> f64 {
    let url = format!("http://catalog/items?n=[1-{requests}]");
    let answers = mesh.inside("shop/frontend", &["curl", "-sf", &url]);
    let count = |version: &str| answers.matches(&format!("\"version\":\"{version}\"")).count();
    assert_eq!(count("v1") + count("v2"), requests, "requests failed");
    count("v2") as f64 * 100.0 / requests as f64
}

/// Aim: the canary has its declared share, and moving it under load fails no request and is in force when `apply --wait` returns.
#[test]
fn the_canary_moves_without_a_failure() {
    let mesh = shop(free_port(), free_port());
    let share = share_of_v2(&mesh, COUNTED);
    assert!((9.0..=11.0).contains(&share), "v2 has {share} %");

    let load = Load::start(&mesh, "shop/frontend", "http://catalog/", 6);
    thread::sleep(Duration::from_secs(2));
    let route = fs::read_to_string(mesh.folder().join("catalog-route.yaml")).unwrap();
    let result = mesh.apply(&route.replace("weight: 90", "weight: 50").replace("weight: 10}", "weight: 50}"));
    let share = share_of_v2(&mesh, 2000);
    load.finish_without_failure();
    assert_eq!(result["live"], true, "{result}");
    assert!(result["proxies"]["concerned"].as_u64().unwrap() >= 1, "{result}");
    assert!((44.0..=56.0).contains(&share), "v2 has {share} % after {result}");
    eprintln!("live after {} ms", result["live_ms"]);
    mesh.leave();
}

/// Aim: killing the control plane under load fails no request; new destinations and commands work again by themselves.
#[test]
fn killing_the_control_plane_harms_nobody() {
    let mesh = shop(free_port(), free_port());
    mesh.inside("shop/frontend", &["curl", "-sf", "http://catalog/"]);
    let load = Load::start(&mesh, "shop/frontend", "http://catalog/", 8);
    thread::sleep(Duration::from_secs(2));
    let before = mesh.pids("control");
    assert!(!before.is_empty(), "no control plane runs");
    for pid in &before {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    mesh.run(&["wait", "--timeout", "30s"]);
    load.finish_without_failure();
    assert!(mesh.pids("control").iter().all(|pid| !before.contains(pid)));
    mesh.inside("shop/frontend", &["curl", "-sf", "http://catalog-v2/"]);
    mesh.leave();
}

/// Aim: strangers get plaintext from a permissive workload and not one byte from a strict one, by whatever means.
#[test]
fn strict_is_strict() {
    let mesh = shop(free_port(), free_port());
    let answer: Value = serde_json::from_str(&mesh.inside("outside/legacy", &["curl", "-sf", "http://frontend.shop/"])).unwrap();
    assert_eq!(answer["identity"], Value::Null);
    for program in [
        &["curl", "-sm", "3", "telnet://store.vault:7000"][..],
        &["curl", "-sm", "3", "http://store.vault:7000/"],
        &["timeout", "5", "openssl", "s_client", "-quiet", "-verify_quiet", "-connect", "store.vault:7000"],
    ] {
        let output = mesh.exec("outside/legacy", program).output().unwrap();
        assert_eq!(text(&output.stdout), "", "{program:?} was answered");
        assert!(!output.status.success(), "{program:?}");
    }
    // The same program with an identity of the mesh is served.
    let greeting = mesh.inside("shop/checkout", &["python3", &client("server_first.py"), "store.vault", "7000", "1"]);
    assert!(greeting.contains("220 store ready"), "{greeting}");
    mesh.leave();
}

/// Aim: a greeting arrives through both sidecars within 50 ms though nothing was declared.
#[test]
fn servers_may_speak_first() {
    let mesh = shop(free_port(), free_port());
    let output = mesh.inside("shop/checkout", &["python3", &client("server_first.py"), "store.vault", "7000", "12"]);
    let times: Vec<f64> = output.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(output.matches("220 store ready").count(), 12, "{output}");
    // The first two also fetch configuration and certificates.
    assert!(times[2..].iter().all(|ms| *ms < 50.0), "{output}");
    mesh.leave();
}

/// Aim: streams of stock gRPC carry ten thousand messages in their order, end at both ends where they are cancelled, and stop their
/// sender while nobody reads.
#[test]
fn grpc_streams_are_streams() {
    let mesh = shop(free_port(), free_port());
    let python = python().display().to_string();
    let said = mesh.inside("shop/frontend", &[&python, &client("grpc_streams.py"), "catalog-v2:80"]);
    eprintln!("{said}");
    assert!(said.ends_with("grpc streams ok\n"), "{said}");
    let nothing_is_left = || {
        let answer = mesh.json(&["get", "endpoints", "frontend", "-n", "shop"]);
        let rows = answer["shop/frontend"].as_array().expect("the frontend's rows");
        let busy = rows.iter().filter_map(|row| row["in_flight"].as_u64()).sum::<u64>();
        (busy == 0).then_some(())
    };
    eventually("cancelled streams are gone from the proxy", Duration::from_secs(5), nothing_is_left);
    mesh.leave();
}

/// Aim: stock clients of every protocol pass through both sidecars unharmed.
#[test]
fn stock_clients_pass() {
    let mesh = shop(free_port(), free_port());
    let python = python().display().to_string();
    let grpc = mesh.inside("shop/frontend", &[&python, &client("grpc_call.py"), "checkout:9090"]);
    assert_eq!(grpc.trim(), "grpc ok");
    let websocket = mesh.inside("shop/frontend", &[&python, &client("websocket_echo.py"), "ws://catalog/"]);
    assert_eq!(websocket.trim(), "websocket ok");
    let h2load = mesh.inside("shop/frontend", &["h2load", "-n", "2000", "-c", "4", "-m", "10", "http://catalog/items"]);
    assert!(h2load.contains("2000 succeeded, 0 failed, 0 errored"), "{h2load}");
    let [status, _, body] = mesh.curl("shop/frontend", "http://catalog/?bytes=1000000");
    assert_eq!((status.as_str(), body.len()), ("200", 1_000_000));
    let upload = mesh.inside("shop/frontend", &["sh", "-c", "head -c 3000000 /dev/zero | curl -sf --data-binary @- http://catalog/upload"]);
    assert!(upload.contains("\"body_bytes\":3000000"), "{upload}");
    mesh.leave();
}

/// A collector that nobody here wrote the protocol of.
struct Collector {
    child: Child,
    spans: Receiver<Value>,
}

impl Collector {
    fn start(port: u16) -> Self {
        let mut child = Command::new(python()).args([client("collector.py"), port.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let (sender, spans) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, spans }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Aim: the spans of one request through the edge link edge, frontend and catalog by their parents; and a proxy tells when it takes up a
/// configuration.
#[test]
fn spans_link_the_whole_road() {
    let (edge, otlp) = (free_port(), free_port());
    let collector = Collector::start(otlp);
    let mesh = shop(edge, otlp);
    let page = eventually("the edge answers", Duration::from_secs(20), || {
        let output = Command::new("curl").args(["-sf", &format!("http://127.0.0.1:{edge}/")]).output().unwrap();
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    let traceparent = page["headers"]["traceparent"][0].as_str().expect("the edge started a trace").to_owned();
    let trace = traceparent.split('-').nth(1).unwrap().to_owned();
    let mut spans: Vec<Value> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    // Kinds: 2 is SERVER, 3 is CLIENT. At the edge one or both; then frontend's SERVER and CLIENT, and catalog's SERVER.
    let road = |spans: &[Value]| -> Option<usize> {
        let by_parent = |span: &Value| spans.iter().find(|other| other["span"] == span["parent"]);
        let servers: Vec<&Value> = spans.iter().filter(|span| span["kind"] == 2).collect();
        servers.into_iter().map(|last| std::iter::successors(Some(last), |span| by_parent(span)).count()).max()
    };
    let mut configured = false;
    while road(&spans).unwrap_or(0) < 4 || !configured {
        let left = deadline.saturating_duration_since(Instant::now());
        let span = collector.spans.recv_timeout(left).unwrap_or_else(|_| panic!("the spans of {trace} do not link: {spans:#?}"));
        configured |= span["name"] == "configuration" && span["attributes"]["epoch"].is_number();
        if span["trace"] == trace.as_str() {
            spans.push(span);
        }
    }
    mesh.leave();
}
