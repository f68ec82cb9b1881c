//! The smallest real mesh: a control plane, two sidecars and their applications in two network namespaces joined by a wire, all of it
//! processes of the release binary and traffic redirected as it is in production.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use tempfile::TempDir;
use tests::look::{until, write_private};

use crate::backend::{self, Spans};
use crate::caller::{Caller, Road};

/// From nothing to the first answer; valgrind makes a proxy fifty times slower.
const READY_MAX: Duration = Duration::from_secs(240);
/// Calls of which some are traced, nearly always, and how long until their spans have been sent.
const SPANNED: usize = 500;
const EXPORTED: Duration = Duration::from_secs(6);
/// What the mark of both sidecars exempts from redirection; they stay root, so that vgdb may talk to them.
const MARK: &str = "0x6d77";
const CLIENT_IP: &str = "10.231.0.1";
pub(crate) const SERVER_IP: &str = "10.231.0.2";
/// The Service's address, which nobody has.
pub(crate) const SERVICE_IP: &str = "10.96.1.1";

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: bench, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: bench}
spec:
  clusterIP: 10.96.1.1
  selector: {app: web}
  ports:
    - {name: http, port: 80, targetPort: 8080, appProtocol: http}
    - {name: h2, port: 81, targetPort: 8081, appProtocol: kubernetes.io/h2c}
    - {name: governed, port: 82, targetPort: 8080, appProtocol: http}
---
apiVersion: meshwright.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: governed, namespace: bench}
spec:
  targetRefs: [{group: "", kind: Service, name: web, sectionName: governed}]
  retry: {attempts: 2}
  health: {outlier: {successRateMinPercent: 50, latencyFactor: 3}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: bench, labels: {app: web}}
spec: {addresses: ["10.231.0.2"], ports: [{name: http, port: 8080}, {name: h2, port: 8081}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: load, namespace: bench, labels: {app: load}}
spec: {addresses: ["10.231.0.1"]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Telemetry
metadata: {name: default, namespace: meshwright-system}
spec: {accessLog: {enabled: false}, tracing: {otlp: {endpoint: "http://10.231.0.2:4317", protocol: Grpc}, samplePercent: 1}}
"#;

/// Rules of [`Pair::guard`], and which of them the client's calls meet.
const RULES: usize = 100;
const MET: usize = 97;

/// The machine is small: one pair at a time.
static ALONE: Mutex<()> = Mutex::new(());

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, held by a thread that works in it.
pub(crate) struct Namespace {
    jobs: mpsc::Sender<Job>,
    thread: Pid,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own needs root: run the budgets as root");
            tell.send(gettid()).unwrap();
            work.into_iter().for_each(|job| job());
        });
        Self { jobs, thread: told.recv().unwrap() }
    }

    /// Does `job` in the namespace: what it opens and starts belongs there.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let job = move || {
            let _ = tell.send(job());
        };
        self.jobs.send(Box::new(job)).unwrap();
        told.recv().expect("the job failed; its panic is above")
    }

    fn command(&self, program: &Path, args: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(args);
        let name = format!("{command:?}");
        let output = self.run(move || command.output()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Which proxy: one of the two sidecars, or an edge in front of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hop {
    Client,
    Server,
    Edge,
}

impl Hop {
    pub(crate) const BOTH: [Self; 2] = [Self::Client, Self::Server];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Edge => "edge",
        }
    }

    fn workload(self) -> &'static str {
        match self {
            Self::Client => "load",
            Self::Server => "web",
            Self::Edge => "edge",
        }
    }
}

/// A running mesh of two. Dropped, everything of it ends.
pub(crate) struct Pair {
    client: Namespace,
    server: Namespace,
    children: Vec<(&'static str, Child)>,
    spans: Arc<Spans>,
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Pair {
    /// Starts everything and waits until calls of each road are answered. `wrap` gives the program and arguments to run a sidecar under.
    pub(crate) fn start(wrap: impl Fn(Hop, &Path) -> Vec<String>) -> Self {
        let mut pair = Self::ground(MANIFESTS);
        pair.redirect();
        for hop in Hop::BOTH {
            let command = pair.sidecar(hop, wrap(hop, pair.folder.path()));
            pair.spawn(hop.name(), hop, command);
        }
        pair.wait_ready();
        pair
    }

    /// Starts an edge instead of sidecars, beside the application that it is in front of. The caller waits for its ports.
    pub(crate) fn edge(manifests: &str, wrap: impl Fn(Hop, &Path) -> Vec<String>) -> Self {
        let mut pair = Self::ground(manifests);
        let mut command = pair.sidecar(Hop::Edge, wrap(Hop::Edge, pair.folder.path()));
        command.args(["--mode", "edge"]);
        pair.spawn(Hop::Edge.name(), Hop::Edge, command);
        pair
    }

    /// Two namespaces, the application, the collector and a control plane with these manifests.
    fn ground(manifests: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        steadily();
        let folder = tempfile::Builder::new().prefix("budget.").tempdir().unwrap();
        let (client, server) = (Namespace::new(), Namespace::new());
        let mut pair = Self { client, server, children: Vec::new(), spans: Arc::default(), folder, _alone: alone };
        pair.join();
        let spans = Arc::clone(&pair.spans);
        pair.server.run(|| backend::serve(SERVER_IP, spans));
        pair.control(manifests);
        pair
    }

    /// Waits until what happens once is over: first reports, and the connections to the collector, which open with the first span.
    pub(crate) fn settle(&self) {
        let end = Instant::now() + READY_MAX;
        let mut caller = self.caller(Road::Get).unwrap();
        // One call in a hundred is traced, so a round may, rarely, have had none.
        while !self.spans.heard(&[CLIENT_IP, SERVER_IP], EXPORTED) {
            assert!(Instant::now() < end, "no spans of both sidecars within {READY_MAX:?}\n{}", self.logs());
            caller.calls(SPANNED);
        }
    }

    /// Gives both workloads a policy of [`RULES`] allowing rules, by everything that tells rules apart, and waits until it is in force. A late
    /// one allows GETs of `/1k`; several others are for the same caller.
    pub(crate) fn guard(&mut self) {
        let rules: String = (0..RULES).map(rule).collect();
        let policy = format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: callers, namespace: bench}}\nspec:\n  rules:\n{rules}"
        );
        fs::write(self.folder.path().join("manifests/policies.yaml"), policy).unwrap();
        let denied = until(READY_MAX, || {
            self.check();
            // No rule is for POSTs of `/1k`.
            self.caller(Road::Post).err().filter(|error| error.contains(" 403 ")).map(drop).ok_or_else(|| "a POST is answered".to_owned())
        });
        denied.unwrap_or_else(|last| panic!("no policy within {READY_MAX:?}: {last}\n{}", self.logs()));
    }

    /// A tap of both sidecars, once they know of it; it ends when this is dropped.
    pub(crate) fn tap(&self, filter: &[&str]) -> Watching {
        let mut command = self.meshwright();
        command.args(["tap", "-n", "bench", "-o", "json"]).args(filter);
        let mut tap = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        let mut said = BufReader::new(tap.stderr.take().unwrap());
        said.read_line(&mut told).unwrap();
        assert!(told.starts_with("watching 2 proxies"), "{told}");
        // They are on their way to proxies that valgrind makes slow.
        thread::sleep(Duration::from_secs(2));
        Watching(tap, said)
    }

    pub(crate) fn namespace(&self, hop: Hop) -> &Namespace {
        match hop {
            Hop::Client => &self.client,
            Hop::Server | Hop::Edge => &self.server,
        }
    }

    /// Where the pair's files lie.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process that was started for a sidecar: its wrapper, or what the wrapper became.
    pub(crate) fn pid(&self, hop: Hop) -> u32 {
        self.children.iter().find(|(name, _)| *name == hop.name()).unwrap().1.id()
    }

    /// Opens a connection of the client's application and makes a first call on it.
    pub(crate) fn caller(&self, road: Road) -> Result<Caller, String> {
        let socket = self.client.run(move || road.connect()).map_err(|error| error.to_string())?;
        let mut caller = Caller::new(road, socket)?;
        caller.call()?;
        Ok(caller)
    }

    /// A wire between both namespaces.
    fn join(&self) {
        let ip = |namespace: &Namespace, line: &str| namespace.command(Path::new("ip"), &line.split(' ').collect::<Vec<_>>());
        ip(&self.client, &format!("link add v0 type veth peer name v0 netns {}", self.server.thread));
        for (namespace, address) in [(&self.client, CLIENT_IP), (&self.server, SERVER_IP)] {
            ip(namespace, "link set lo up");
            ip(namespace, &format!("addr add {address}/24 dev v0"));
            ip(namespace, "link set v0 up");
        }
        ip(&self.client, &format!("route add 10.96.0.0/12 via {SERVER_IP}"));
    }

    /// Traffic of both namespaces meets its sidecar.
    fn redirect(&self) {
        let install = ["intercept", "install", "--exempt-mark", MARK];
        self.client.command(&binary(), &install);
        self.server.command(&binary(), &[&install[..], &["--exclude-inbound-ports", "15012,4317"]].concat());
    }

    fn control(&mut self, text: &str) {
        let folder = self.folder.path();
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests).unwrap();
        fs::create_dir_all(folder.join("state")).unwrap();
        fs::write(manifests.join("mesh.yaml"), text).unwrap();
        let mut command = self.meshwright();
        command.arg("control").arg("--config").arg(manifests).arg("--data-dir").arg(folder.join("state/control"));
        command.args(["--listen", &format!("{SERVER_IP}:15012")]).arg("--api-socket").arg(folder.join("state/control.sock"));
        let (socket, roots) = (folder.join("state/control.sock"), folder.join("state/control/ca.pem"));
        self.spawn("control", Hop::Server, command);
        self.wait("a control plane that is ready", |_| {
            let there = socket.exists() && fs::metadata(&roots).is_ok_and(|file| file.len() > 0);
            there.then_some(()).ok_or_else(|| "no socket or no roots".to_owned())
        });
    }

    fn meshwright(&self) -> Command {
        let mut command = Command::new(binary());
        command.env("MESHWRIGHT_STATE_DIR", self.folder.path().join("state"));
        command
    }

    /// A join token, as soon as the control plane has loaded the manifests.
    fn token(&self, workload: &str) -> Vec<u8> {
        let created = || {
            let output = self.meshwright().args(["token", "create", "--workload", workload]).output().unwrap();
            output.status.success().then_some(output.stdout).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
        };
        until(READY_MAX, created).unwrap_or_else(|last| panic!("token create: {last}\n{}", self.logs()))
    }

    fn sidecar(&self, hop: Hop, wrap: Vec<String>) -> Command {
        let workload = format!("bench/{}", hop.workload());
        let token = self.folder.path().join(format!("token-{}", hop.name()));
        write_private(&token, self.token(&workload)).unwrap();
        let mut command = Command::new(&wrap[0]);
        command.args(&wrap[1..]).args(proxy()).args(["--control", &format!("{SERVER_IP}:15012"), "--control-ca"]);
        command.arg(self.folder.path().join("state/control/ca.pem")).arg("--token-file").arg(token);
        command.args(["--workload", &workload, "--exempt-uid", "0"]);
        if hop != Hop::Edge {
            command.args(["--exempt-mark", MARK]);
        }
        command
    }

    fn spawn(&mut self, name: &'static str, hop: Hop, mut command: Command) {
        let log = File::create(self.log(name)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let line = format!("{command:?}");
        let child = self.namespace(hop).run(move || command.spawn());
        self.children.push((name, child.unwrap_or_else(|error| panic!("{line}: {error}; tests/run-all installs what is needed"))));
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    fn wait_ready(&mut self) {
        for road in Road::ALL {
            let answered = until(READY_MAX, || {
                self.check();
                self.caller(road).map(drop)
            });
            answered.unwrap_or_else(|last| panic!("no answer to {} within {READY_MAX:?}: {last}\n{}", road.name(), self.logs()));
        }
    }

    /// Waits until `done`.
    ///
    /// # Panics
    /// It takes longer than [`READY_MAX`], or something has ended.
    pub(crate) fn wait(&mut self, what: &str, done: impl Fn(&Self) -> Result<(), String>) {
        let seen = until(READY_MAX, || {
            self.check();
            done(self)
        });
        seen.unwrap_or_else(|last| panic!("{what}, not within {READY_MAX:?}: {last}\n{}", self.logs()));
    }

    /// Everything still runs.
    fn check(&mut self) {
        let ended = self.children.iter_mut().find_map(|(name, child)| Some((*name, child.try_wait().unwrap()?)));
        if let Some((name, status)) = ended {
            panic!("{name} ended: {status}\n{}", self.logs());
        }
    }

    fn logs(&self) -> String {
        let tail = |name: &str| {
            let log = fs::read_to_string(self.log(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(12)..].join("\n"))
        };
        self.children.iter().map(|(name, _)| tail(name)).collect()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            // A tracer that is killed leaves what it traces behind, so that goes first.
            for pid in descendants(child.id()) {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One rule, as a line of a policy.
fn rule(n: usize) -> String {
    let caller = "spiffe://cluster.local/ns/bench/sa";
    let (from, to) = match n {
        MET => (format!("principals: [\"{caller}/default\"]"), "methods: [GET], paths: [{type: PathPrefix, value: /1k}]".to_owned()),
        _ if n.is_multiple_of(4) => {
            (format!("principals: [\"{caller}/default\"]"), format!("methods: [GET], paths: [{{type: PathPrefix, value: /area/{n}}}]"))
        }
        _ if n % 4 == 1 => {
            (format!("principals: [\"{caller}/caller-{n}\"]"), format!("methods: [POST], paths: [{{type: Exact, value: /orders/{n}}}]"))
        }
        _ if n % 4 == 2 => (format!("namespaces: [team-{n}]"), format!("hosts: [shop-{n}.example.com], methods: [GET, HEAD]")),
        _ => (format!("principals: [\"*/sa/caller-{n}\"]"), format!("paths: [{{type: Template, value: \"/users/{{id}}/{n}\"}}]")),
    };
    format!("    - {{name: rule-{n}, from: [{{{from}}}], to: [{{{to}}}]}}\n")
}

fn descendants(of: u32) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
    children.flat_map(|pid| descendants(pid).into_iter().chain([Pid::from_raw(pid.cast_signed())])).collect()
}

/// Puts the calling thread, and all that it starts from now on, on one processor where none interrupts another: what one writes in two
/// pieces the next reads as often in every run. (Batch scheduling: sched(7).)
fn steadily() {
    let allowed = sched_getaffinity(Pid::this()).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap()).unwrap();
    sched_setaffinity(gettid(), &one).unwrap();
    let set = Command::new("chrt").args(["--batch", "--pid", "0", &gettid().to_string()]).status();
    assert!(set.expect("chrt, of util-linux; tests/run-all installs it").success());
}

/// A tap that runs, and what it says.
pub(crate) struct Watching(Child, #[allow(dead_code, reason = "held so that it may say more")] BufReader<ChildStderr>);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

/// The folder of build artifacts.
pub(crate) fn artifacts() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(3).unwrap().to_owned()
}

/// The binary that ships: what another build costs says nothing.
pub(crate) fn binary() -> PathBuf {
    let binary = std::env::var_os("MESHWRIGHT_BIN").map_or_else(|| artifacts().join("dist/meshwright"), PathBuf::from);
    assert!(binary.is_file(), "{} is missing: build it with `cargo build --profile dist --locked -p cli`", binary.display());
    binary
}

/// How a sidecar is started: the binary's command, or the program of the sidecar's own image, which is built in a third of the time.
fn proxy() -> Vec<OsString> {
    let Some(alone) = std::env::var_os("MESHWRIGHT_PROXY") else { return vec![binary().into(), "proxy".into()] };
    assert!(Path::new(&alone).is_file(), "{} is missing: build it with `cargo build --profile dist --locked -p proxy`", alone.display());
    vec![alone]
}
