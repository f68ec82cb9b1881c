//! `meshwright up` as a user runs it: a folder, real processes, programs nobody here wrote, and nothing left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::look::program;

use crate::running::{LIVE_MAX, MANIFESTS, Up, remains};

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: PORT, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edge, namespace: shop}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}
"#;

const STRICT: &str = r#"
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: Strict}}
"#;

/// What the host's own network looks like, to see that it stays so.
fn host_network() -> String {
    ["addr", "route", "-6 route"]
        .map(|what| {
            let args: Vec<&str> = what.split(' ').collect();
            let text = crate::namespace::run("ip", &[&["-o"], &args[..]].concat());
            // Lifetimes of addresses count down by themselves.
            text.lines().map(|line| line.split(" valid_lft").next().unwrap_or_default().to_owned() + "\n").collect::<String>()
        })
        .concat()
}

/// Aim: a folder becomes a mesh in which a stock client reaches a stock server by name, seen from a meshed and from an un-meshed namespace;
/// between the namespaces travels nothing but TLS; `exec` keeps status and streams; the host's network is untouched; and the end is clean.
#[test]
fn a_folder_becomes_a_mesh_and_goes_without_a_trace() {
    let before = host_network();
    let up = Up::start(&[MANIFESTS], &[]);
    up.wait_for("live", LIVE_MAX);

    let fabric = up.book()["fabric"].as_str().unwrap().to_owned();
    let capture = up.folder.path().join("mesh.pcap");
    let mut tcpdump = Command::new(program())
        .args(["enter", "--netns", &fabric, "--", "tcpdump", "-U", "--immediate-mode", "-i", "mw0", "-w"])
        .arg(&capture)
        .args(["tcp", "port", "8080"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(tcpdump.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("listening on")), "tcpdump did not start");
    assert_eq!(up.curl("shop/client", "http://web/"), "200");
    assert_eq!(up.curl("shop/client", "http://web.shop.svc.cluster.local/"), "200");
    // What the Service does not declare leads nowhere, and says so at once.
    assert_eq!(up.curl("shop/client", "http://web:81/"), "404");
    thread::sleep(Duration::from_millis(500));
    kill(Pid::from_raw(tcpdump.id().cast_signed()), Signal::SIGINT).unwrap();
    tcpdump.wait().unwrap();
    let bytes = fs::read(&capture).unwrap();
    assert!(bytes.len() > 1_000, "only {} bytes were captured", bytes.len());
    for secret in ["GET /", "HTTP/1.", "Directory listing", "python"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "`{secret}` travelled in the clear");
    }
    // TLS application data records, version 1.2 on the wire as TLS 1.3 has it.
    assert!(bytes.windows(3).any(|window| window == [0x17, 0x03, 0x03]));

    // An un-meshed client has the same names, and virtual addresses that lead to ready endpoints.
    assert_eq!(up.curl("outside/stranger", "http://web.shop/"), "200");
    // No route leaves the mesh.
    assert!(!up.exec("outside/stranger", &["curl", "-sS", "-m", "2", "http://192.0.2.1/"]).status.success());

    let output = up.exec("shop/client", &["sh", "-c", "pwd; echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    let here = std::env::current_dir().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\nout\n", here.display()));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(up.exec("shop/client", &["no-such-program"]).status.code(), Some(127));
    let missing = up.exec("shop/nobody", &["true"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("shop/client"), "it does not say who there is");

    let second = up.meshwright(&["up", "--exit-after", "1s"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains(&format!("pid {}", up.child.id())), "{said}");

    // Who has met the control plane's address keeps reaching it, whatever instances come and go.
    let bridge = Command::new(program()).args(["enter", "--netns", &fabric, "--", "ip", "-o", "link", "show", "mw0"]).output().unwrap();
    let bridge = String::from_utf8_lossy(&bridge.stdout).into_owned();
    assert!(bridge.contains("link/ether 02:6d:77:00:00:01 "), "{bridge}");

    assert_eq!(host_network(), before);
    up.end();
    assert_eq!(host_network(), before);
}

/// Aim: a Gateway is reached on the host, on another port where its own is taken; and goes on when its proxy is killed.
#[test]
fn the_edge_is_reached_from_the_host() {
    // Not from the ephemeral range: 8000 above it there must be room.
    let taken = (20_000..30_000).find_map(|port| TcpListener::bind(("0.0.0.0", port)).ok()).unwrap();
    let port = taken.local_addr().unwrap().port();
    let up = Up::start(&[MANIFESTS, &GATEWAY.replace("PORT", &port.to_string())], &[]);
    let edge = up.wait_for("edge", LIVE_MAX);
    assert_eq!(edge["port"], port);
    assert_ne!(edge["host_port"], port);
    let url = edge["url"].as_str().unwrap().to_owned();
    up.wait_for("live", LIVE_MAX);
    let fetch = || {
        let output = Command::new("curl").args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", &url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(fetch(), "200");

    let find = |up: &Up| up.book()["instances"].as_array().unwrap().iter().find(|one| one["edge"] == true).unwrap()["proxy_pid"].as_i64();
    let pid = find(&up).unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let died = up.wait_for("died", Duration::from_secs(5));
    assert_eq!(died["pid"], pid);
    up.wait_until(Duration::from_secs(30), "edge ready again", |event| event["event"] == "edge");
    assert_eq!(fetch(), "200");
    up.end();
}

/// Aim: a listener that comes and one that goes leave the Gateway's proxy and its connections alone: the same process, the same connection
/// before and after; the port that came serves, and refuses when it went.
#[test]
fn ports_of_the_edge_come_and_go_while_it_runs() {
    let free: Vec<TcpListener> = (30_000..32_000).filter_map(|port| TcpListener::bind(("0.0.0.0", port)).ok()).take(2).collect();
    let [first, second] = [0, 1].map(|at: usize| free[at].local_addr().unwrap().port());
    drop(free);
    let up = Up::start(&[MANIFESTS, &GATEWAY.replace("PORT", &first.to_string())], &[]);
    up.wait_for("live", LIVE_MAX);
    let pid = |up: &Up| {
        let book = up.book();
        book["instances"].as_array().unwrap().iter().find(|one| one["edge"] == true).unwrap()["proxy_pid"].as_i64()
    };
    let before = pid(&up);
    let mut kept = TcpStream::connect(("127.0.0.1", first)).unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut ask = || {
        kept.write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            kept.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    };
    ask();
    let listeners = "listeners: [{name: http, port: PORT, protocol: HTTP}]";
    let both = format!("listeners: [{{name: http, port: {first}, protocol: HTTP}}, {{name: more, port: {second}, protocol: HTTP}}]");
    let file = up.folder.path().join("1.yaml");
    fs::write(&file, GATEWAY.replace(listeners, &both)).unwrap();
    up.wait_until(Duration::from_secs(20), "the second port", |event| event["event"] == "edge" && event["port"] == second);
    let waited = up.meshwright(&["wait", "--timeout", "20s"]);
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    let url = format!("http://127.0.0.1:{second}/");
    let fetched = Command::new("curl").args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", &url]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&fetched.stdout), "200", "{}", String::from_utf8_lossy(&fetched.stderr));
    ask();
    fs::write(&file, GATEWAY.replace("PORT", &first.to_string())).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", second)).is_ok() {
        assert!(Instant::now() < until, "the second port is still open");
        thread::sleep(Duration::from_millis(20));
    }
    ask();
    assert_eq!(pid(&up), before);
    up.end();
}

/// Aim: a stranger's plaintext into a Strict port gets no byte.
#[test]
fn strict_means_no_byte_for_strangers() {
    let up = Up::start(&[MANIFESTS, STRICT], &[]);
    up.wait_for("live", LIVE_MAX);
    assert_eq!(up.curl("shop/client", "http://web/"), "200");
    let output = up.exec("outside/stranger", &["curl", "-sS", "-m", "5", "http://web.shop/"]);
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    up.end();
}

/// Aim: everything also works without root's rights, in a user namespace of our own.
#[test]
fn rootless_is_a_mesh_too() {
    let up = Up::start(&[MANIFESTS], &["--rootless"]);
    up.wait_for("live", LIVE_MAX);
    assert_eq!(up.curl("shop/client", "http://web/"), "200");
    assert_eq!(up.curl("outside/stranger", "http://web.shop/"), "200");
    up.end();
}

/// Aim: after `kill -9` no part lives on, `down` removes what is left and may be repeated, and the next `up` starts as if nothing had been.
#[test]
fn nothing_outlives_a_kill() {
    let mut up = Up::start(&[MANIFESTS], &[]);
    up.wait_for("live", LIVE_MAX);
    // A grandchild that no death signal reaches.
    let started = up.exec("shop/client", &["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo started"]);
    assert_eq!(String::from_utf8_lossy(&started.stdout), "started\n");
    assert!(remains(up.state.path()).len() > 5);
    up.signal(Signal::SIGKILL);
    up.child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    while remains(up.state.path()).len() > 1 && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(remains(up.state.path()).len(), 1, "only the stray that left its parents behind may be there");

    let down = up.meshwright(&["down"]);
    assert!(down.status.success() && String::from_utf8_lossy(&down.stdout).contains("ended 1 process"), "{down:?}");
    assert_eq!(remains(up.state.path()), Vec::<i32>::new());
    assert!(up.meshwright(&["down"]).status.success());

    let again = up.meshwright(&["up", "--exit-after", "100ms", up.folder.path().to_str().unwrap()]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

/// Aim: a workload that leaves the mesh by its label starts anew without a sidecar, and comes back with one.
#[test]
fn a_label_moves_a_workload_in_and_out() {
    let up = Up::start(&[MANIFESTS], &[]);
    up.wait_for("live", LIVE_MAX);
    let sidecar = |up: &Up| {
        let book = up.book();
        let client = book["instances"].as_array().unwrap().iter().find(|one| one["instance"] == "client").cloned();
        client.map(|one| (one["meshed"].as_bool().unwrap(), one["proxy_pid"].is_u64()))
    };
    assert_eq!(sidecar(&up), Some((true, true)));
    let file = up.folder.path().join("0.yaml");
    let label = "labels: {app: client}";
    for (labels, meshed) in [("labels: {app: client, meshwright.dev/inject: disabled}", false), (label, true)] {
        fs::write(&file, MANIFESTS.replace(label, labels)).unwrap();
        up.wait_until(Duration::from_secs(40), "client ready again", |event| {
            event["event"] == "instance" && event["instance"] == "client" && event["state"] == "ready"
        });
        thread::sleep(Duration::from_millis(200));
        assert_eq!(sidecar(&up), Some((meshed, meshed)));
        assert_eq!(up.curl("shop/client", "http://web.shop/"), "200");
    }
    up.end();
}
