//! What a sidecar weighs, as the kernel counts it: real processes of the binary beside this test.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real processes run by the machine's own clock and sockets")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::look::{free_port, program, until, write_private};

/// From nothing to a proxy at rest, development build, busy machine.
const REST_MAX: Duration = Duration::from_secs(90);
/// Resident, fresh. A development build has several times the code.
const FRESH_KIB_MAX: u64 = if cfg!(debug_assertions) { 48 << 10 } else { 15 << 10 };
/// What is this process's alone, fresh. Of a development build more than 4 MiB are addresses that the loader writes down at the start.
const OWN_KIB_MAX: u64 = if cfg!(debug_assertions) { 7 << 10 } else { 3 << 10 };
/// Services that nobody calls.
const UNUSED: usize = 1000;
/// What they may add: nothing, as exactly as pages can be counted.
const UNUSED_KIB_MAX: u64 = 64;
/// Connections of one application, each used once.
const CONNECTIONS: u64 = 400;
/// What each may take while it is idle, a little above what hyper's own buffers take.
const CONNECTION_KIB_MAX: u64 = 24;
/// What stays when they are gone, per connection.
const REMEMBERED_KIB_MAX: u64 = 4;

/// A control plane and one sidecar, which nothing redirects to: its explicit listener stands for the Service `web`.
struct Sidecar {
    control: Child,
    proxy: Child,
    log: mpsc::Receiver<String>,
    port: u16,
    _directory: TempDir,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        for child in [&mut self.proxy, &mut self.control] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn manifests(unused: usize) -> String {
    let mut text = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.1.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {addresses: [127.0.0.9]}
"#
    .to_owned();
    for number in 0..unused {
        let (high, low) = (number / 250, number % 250 + 1);
        text.push_str(&format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: s{number}, namespace: shop}}
spec: {{clusterIP: 10.97.{high}.{low}, selector: {{app: a{number}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: w{number}, namespace: shop, labels: {{app: a{number}}}}}
spec: {{addresses: [10.98.{high}.{low}], ports: [{{name: http, port: 8080}}]}}
"
        ));
    }
    text
}

impl Sidecar {
    /// Starts both; returns when the sidecar has given back what its start used.
    fn start(unused: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("manifests")).unwrap();
        fs::write(path("manifests/mesh.yaml"), manifests(unused)).unwrap();
        let (socket, address) = (path("control.sock"), format!("127.0.0.1:{}", free_port()));
        let control = Command::new(program())
            .args(["control", "--listen", &address, "--metrics-listen", &format!("127.0.0.1:{}", free_port())])
            .args([
                Path::new("--config"),
                &path("manifests"),
                Path::new("--data-dir"),
                &path("control"),
                Path::new("--api-socket"),
                &socket,
            ])
            .stdout(Stdio::null())
            .stderr(File::create(path("control.log")).unwrap())
            .spawn()
            .unwrap();
        let token = token(directory.path());
        write_private(&path("token"), token).unwrap();
        let port = free_port();
        let map = format!("127.0.0.1:{port}=web.shop:80");
        let mut command = Command::new(program());
        command.args(["proxy", "--workload", "shop/client", "--control", &address, "--map", &map, "--exempt-uid", "0"]);
        command.args([Path::new("--control-ca"), &path("control/ca.pem"), Path::new("--token-file"), &path("token")]);
        for closed in ["outbound", "inbound", "dns", "admin", "metrics", "health"] {
            command.args([&format!("--{closed}-port"), "0"]);
        }
        command.args(["--log-level", "info,proxy::shell::app=debug"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut proxy = command.spawn().unwrap();
        let log = lines(proxy.stderr.take().unwrap());
        let sidecar = Self { control, proxy, log, port, _directory: directory };
        sidecar.rests();
        sidecar
    }

    /// Waits until it has given back once more.
    fn rests(&self) {
        let end = Instant::now() + REST_MAX;
        while !self.log.recv_timeout(end.saturating_duration_since(Instant::now())).unwrap().contains("pages were given back") {}
    }

    /// A connection that has carried one request. There is no endpoint, so the mesh answers by itself.
    fn call(&self) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.shop\r\n\r\n").unwrap();
        let mut answer = [0; 1024];
        let count = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        stream
    }

    fn resident_kib(&self) -> u64 {
        self.kib("Rss:")
    }

    fn own_kib(&self) -> u64 {
        self.kib("Private_Dirty:")
    }

    fn kib(&self, what: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.proxy.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// A join token for the client, as soon as the control plane gives one.
fn token(state: &Path) -> Vec<u8> {
    let created = || {
        let mut command = Command::new(program());
        let output = command.args(["token", "create", "--workload", "shop/client"]).env("MESHWRIGHT_STATE_DIR", state).output().unwrap();
        output.status.success().then_some(output.stdout).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let told = || fs::read_to_string(state.join("control.log")).unwrap_or_default();
    until(REST_MAX, created).unwrap_or_else(|last| panic!("{last}\ncontrol: {}", told()))
}

fn lines(stderr: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    told
}

#[test]
fn a_fresh_sidecar_is_small_and_unused_services_add_nothing() {
    // Aim: the goals of 15 MiB resident and of no growth with services that nobody calls; one of 1,001 in use is fetched alone.
    let small = Sidecar::start(0);
    let (resident, own) = (small.resident_kib(), small.own_kib());
    assert!(resident <= FRESH_KIB_MAX, "{resident} KiB resident");
    assert!(own <= OWN_KIB_MAX, "{own} KiB of its own");
    let large = Sidecar::start(UNUSED);
    let beside = large.own_kib();
    assert!(beside <= own + UNUSED_KIB_MAX, "{own} KiB alone, {beside} KiB beside {UNUSED} services that it does not use");
    drop((small.call(), large.call()));
    let (used, used_beside) = (small.own_kib(), large.own_kib());
    assert!(used_beside <= used + UNUSED_KIB_MAX, "{used} KiB with one service in use, {used_beside} KiB where {UNUSED} others exist");
}

#[test]
fn connections_take_little_and_leave_nothing() {
    // Aim: an idle connection takes what its HTTP state needs, and when connections are gone, so is their memory.
    let sidecar = Sidecar::start(0);
    drop(sidecar.call());
    let before = sidecar.own_kib();
    let connections: Vec<TcpStream> = (0..CONNECTIONS).map(|_| sidecar.call()).collect();
    let held = sidecar.own_kib().saturating_sub(before);
    assert!(held <= CONNECTIONS * CONNECTION_KIB_MAX, "{held} KiB for {CONNECTIONS} connections");
    drop(connections);
    let fell = || {
        let own = sidecar.own_kib();
        if own > before + CONNECTIONS * REMEMBERED_KIB_MAX { Err(own) } else { Ok(()) }
    };
    let stays = until(REST_MAX, || fell().map_err(|own| format!("{own} KiB stay of {held}, {before} before")));
    assert_eq!(stays, Ok(()));
}
