//! A mesh that `meshwright up` runs for one test.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
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
pub(crate) const LIVE_MAX: Duration = Duration::from_secs(90);

/// A meshed server and client, and a client outside the mesh.
pub(crate) const MANIFESTS: &str = r#"
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

/// A running `up` with a state directory and a folder of its own. Dropped, it is killed and what it left is removed.
pub(crate) struct Up {
    pub(crate) child: Child,
    events: mpsc::Receiver<Value>,
    pub(crate) state: tempfile::TempDir,
    pub(crate) folder: tempfile::TempDir,
}

impl Up {
    pub(crate) fn start(manifests: &[&str], flags: &[&str]) -> Self {
        Self::start_within(&[], manifests, flags)
    }

    /// The same, started by another program that becomes it.
    pub(crate) fn start_within(first: &[&str], manifests: &[&str], flags: &[&str]) -> Self {
        let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (at, text) in manifests.iter().enumerate() {
            fs::write(folder.path().join(format!("{at}.yaml")), text).unwrap();
        }
        let own = program();
        let (name, rest) = first.split_first().map_or((OsStr::new(&own), None), |(name, rest)| (OsStr::new(name), Some(rest)));
        let mut child = Command::new(name)
            .args(rest.into_iter().flatten())
            .args(rest.map(|_| &own))
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
    pub(crate) fn wait_for(&self, kind: &str, limit: Duration) -> Value {
        self.wait_until(limit, kind, |event| event["event"] == kind)
    }

    pub(crate) fn wait_until(&self, limit: Duration, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
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

    pub(crate) fn meshwright(&self, args: &[&str]) -> Output {
        Command::new(program()).args(args).env("MESHWRIGHT_STATE_DIR", self.state.path()).output().unwrap()
    }

    pub(crate) fn exec(&self, workload: &str, command: &[&str]) -> Output {
        let (namespace, name) = workload.split_once('/').unwrap();
        let head = ["exec", "-n", namespace, name, "--"];
        self.meshwright(&[&head[..], command].concat())
    }

    pub(crate) fn curl(&self, workload: &str, url: &str) -> String {
        let output = self.exec(workload, &["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", url]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { text } else { format!("{text}: {}", String::from_utf8_lossy(&output.stderr).trim()) }
    }

    pub(crate) fn book(&self) -> Value {
        serde_json::from_slice(&fs::read(self.state.path().join("instances.json")).unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Ends by SIGTERM within the promise, and leaves nothing.
    pub(crate) fn end(mut self) {
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
pub(crate) fn remains(state: &Path) -> Vec<i32> {
    let mark = format!("MESHWRIGHT_PART_OF={}", fs::canonicalize(state).unwrap().display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()))
        })
        .collect()
}
