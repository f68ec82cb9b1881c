//! `meshwright up` as a user runs it: a folder, real processes, programs nobody here wrote, and nothing left behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::look::program;

/// What the promise of ten seconds leaves a slow machine.
const END_MAX: Duration = Duration::from_secs(10);
/// From nothing to live, development build, busy machine.
const LIVE_MAX: Duration = Duration::from_secs(90);

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {command: [python3, -m, http.server, "8080"], ports: [{name: http, port: 8080}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {command: [sleep, "100000"]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: stranger, namespace: outside, labels: {app: stranger}}
spec: {command: [sleep, "100000"]}
"#;

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

/// A running `up` with a state directory and a folder of its own. Dropped, it is killed and what it left is removed.
struct Up {
    child: Child,
    events: mpsc::Receiver<Value>,
    state: tempfile::TempDir,
    folder: tempfile::TempDir,
}

impl Up {
    fn start(manifests: &[&str], flags: &[&str]) -> Self {
        let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (at, text) in manifests.iter().enumerate() {
            fs::write(folder.path().join(format!("{at}.yaml")), text).unwrap();
        }
        let mut child = Command::new(program())
            .arg("up")
            .arg(folder.path())
            .args(["-o", "json"])
            .args(flags)
            .env("MESHWRIGHT_STATE_DIR", state.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, events) = mpsc::channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("up: {line}");
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is not an event: {error}"));
                if send.send(event).is_err() {
                    return;
                }
            }
        });
        Self { child, events, state, folder }
    }

    /// Waits for an event of that kind.
    fn wait_for(&self, kind: &str, limit: Duration) -> Value {
        self.wait_until(limit, kind, |event| event["event"] == kind)
    }

    fn wait_until(&self, limit: Duration, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + limit;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(event) if matches(&event) => return event,
                Ok(_) => {}
                Err(error) => panic!("no `{what}` within {limit:?}: {error}\n{}", self.logs()),
            }
        }
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.state.path().join("logs")).into_iter().flatten().flatten() {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(8).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            text += &format!("--- {}\n{}\n", entry.path().display(), tail.join("\n"));
        }
        text
    }

    fn meshwright(&self, args: &[&str]) -> Output {
        Command::new(program()).args(args).env("MESHWRIGHT_STATE_DIR", self.state.path()).output().unwrap()
    }

    fn exec(&self, workload: &str, command: &[&str]) -> Output {
        let (namespace, name) = workload.split_once('/').unwrap();
        let head = ["exec", "-n", namespace, name, "--"];
        self.meshwright(&[&head[..], command].concat())
    }

    fn curl(&self, workload: &str, url: &str) -> String {
        let output = self.exec(workload, &["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", url]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { text } else { format!("{text}: {}", String::from_utf8_lossy(&output.stderr).trim()) }
    }

    fn book(&self) -> Value {
        serde_json::from_slice(&fs::read(self.state.path().join("instances.json")).unwrap()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Ends by SIGTERM within the promise, and leaves nothing.
    fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let began = Instant::now();
        let status = self.child.wait().unwrap();
        assert!(began.elapsed() < END_MAX, "it took {:?}", began.elapsed());
        assert!(status.success(), "{status}");
        assert_eq!(remains(self.state.path()), Vec::<i32>::new());
        assert!(!self.state.path().join("control.sock").exists() && !self.state.path().join("instances.json").exists());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.meshwright(&["down"]);
    }
}

/// Processes that carry this state directory's mark.
fn remains(state: &Path) -> Vec<i32> {
    let mark = format!("MESHWRIGHT_PART_OF={}", fs::canonicalize(state).unwrap().display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()))
        })
        .collect()
}

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
