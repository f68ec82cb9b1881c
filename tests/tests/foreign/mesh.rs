//! A mesh for one test, and what is needed to look at it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// One mesh at a time: they are measured, and this may be a small machine.
static TURN: Mutex<()> = Mutex::new(());
/// Time for a mesh to come up; development builds are slow.
const START: &str = "120s";
/// Time that `up` promises for leaving.
const LEAVE: Duration = Duration::from_secs(10);

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The binary under test: `MESHWRIGHT_BIN`, else the one beside this test.
pub(crate) fn meshwright() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("meshwright");
    let path = std::env::var_os("MESHWRIGHT_BIN").map_or_else(beside, PathBuf::from);
    assert!(path.is_file(), "{} is not there; `cargo build -p cli` makes it", path.display());
    path
}

/// The Python that has the packages of `tests/requirements.txt`.
pub(crate) fn python() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("venv/bin/python");
    assert!(path.exists(), "{} is not there; `tests/run-all` makes it", path.display());
    path
}

/// A program of `tests/clients`.
pub(crate) fn client(name: &str) -> String {
    root().join("tests/clients").join(name).display().to_string()
}

/// A Go program of `tests/clients`, built; where it is kept.
pub(crate) fn go_program(name: &str) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target.join(name);
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(client(name))
        .output()
        .expect("go is there; tests/run-all says which");
    assert!(built.status.success(), "{}", said(&built));
    program.display().to_string()
}

/// A running mesh; gone when dropped, or the test fails.
pub(crate) struct Mesh {
    up: Child,
    state: TempDir,
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Mesh {
    /// Starts `up` on manifests given as `(file name, text)` and waits until all is live.
    pub(crate) fn start(manifests: &[(&str, &str)]) -> Self {
        Self::start_with(manifests, &[])
    }

    /// The same with further flags of `up`.
    pub(crate) fn start_with(manifests: &[(&str, &str)], flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), manifests, flags, &[])
    }

    /// The same in a given folder, with further variables of the environment.
    pub(crate) fn start_in(folder: TempDir, manifests: &[(&str, &str)], flags: &[&str], env: &[(&str, &str)]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let state = tempfile::tempdir().unwrap();
        for (name, text) in manifests {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let log = fs::File::create(state.path().join("up.log")).unwrap();
        let up = Command::new(meshwright())
            .arg("up")
            .arg(folder.path())
            .args(flags)
            .envs(env.iter().copied())
            .env("MESHWRIGHT_STATE_DIR", state.path().join("state"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mesh = Self { up, state, folder, _turn: turn };
        let wait = mesh.command(&["wait", "--timeout", START]).output().unwrap();
        assert!(wait.status.success(), "the mesh did not come up: {}\n{}", text(&wait.stderr), mesh.log());
        mesh
    }

    /// Where the manifests are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// What `up` has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.state.path().join("up.log")).unwrap_or_default()
    }

    /// A command of ours that finds this mesh.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(meshwright());
        command.args(args).env("MESHWRIGHT_STATE_DIR", self.state.path().join("state")).stdin(Stdio::null());
        command
    }

    /// Runs a command of ours, which must succeed.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "meshwright {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The JSON of a command that prints it.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{args:?}: {error} in {output}"))
    }

    /// A program inside a workload's namespace.
    pub(crate) fn exec(&self, workload: &str, program: &[&str]) -> Command {
        let (namespace, name) = workload.split_once('/').unwrap();
        self.command(&[&["exec", "-n", namespace, name, "--"], program].concat())
    }

    /// Runs a program inside, which must succeed; its standard output.
    pub(crate) fn inside(&self, workload: &str, program: &[&str]) -> String {
        let output = self.exec(workload, program).output().unwrap();
        assert!(output.status.success(), "{program:?} in {workload}: {}{}\n{}", text(&output.stdout), text(&output.stderr), self.log());
        text(&output.stdout)
    }

    /// Runs curl inside; status code, value of `x-meshwright-reason`, body.
    pub(crate) fn curl(&self, workload: &str, url: &str) -> [String; 3] {
        let format = "\n%{http_code} %header{x-meshwright-reason}";
        let output = self.exec(workload, &["curl", "-s", "--max-time", "20", "-w", format, url]).output().unwrap();
        let all = text(&output.stdout);
        let (body, last) = all.rsplit_once('\n').unwrap_or(("", &all));
        let (status, reason) = last.split_once(' ').unwrap_or((last, ""));
        [status, reason, body].map(str::to_owned)
    }

    /// Writes a file of the folder.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Writes manifests elsewhere and applies them.
    pub(crate) fn apply(&self, manifest: &str) -> Value {
        let file = self.state.path().join("applied.yaml");
        fs::write(&file, manifest).unwrap();
        self.json(&["apply", "-f", file.to_str().unwrap(), "--wait"])
    }

    /// Pids of processes of this mesh whose command line has that word.
    pub(crate) fn pids(&self, word: &str) -> Vec<i32> {
        let state = self.state.path().join("state").display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let ours = [&command, &environment].into_iter().any(|bytes| String::from_utf8_lossy(bytes).contains(&state));
            if ours && command.split(|byte| *byte == 0).nth(1) == Some(word.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// Ends `up` as Ctrl-C does, within the time it promises.
    pub(crate) fn leave(mut self) {
        let status = self.interrupt();
        assert!(status.is_some_and(|status| status.success()), "up ended with {status:?}\n{}", self.log());
    }

    fn interrupt(&mut self) -> Option<ExitStatus> {
        let _ = kill(Pid::from_raw(self.up.id().cast_signed()), Signal::SIGINT);
        let deadline = Instant::now() + LEAVE;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.up.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(50));
        }
        None
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- up said:\n{}", self.log());
        }
        if matches!(self.up.try_wait(), Ok(None)) && self.interrupt().is_none() {
            let _ = self.up.kill();
            let _ = self.up.wait();
        }
        let _ = self.command(&["down"]).output();
    }
}

/// Tries until it holds; a mesh converges, it does not stand still.
pub(crate) fn eventually<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Load that runs beside a test: wrk inside a workload.
pub(crate) struct Load(Child);

impl Load {
    /// Starts wrk on a URL for so many seconds.
    pub(crate) fn start(mesh: &Mesh, workload: &str, url: &str, seconds: u32) -> Self {
        let duration = format!("{seconds}s");
        let child = mesh
            .exec(workload, &["wrk", "-t", "1", "-c", "8", "-d", &duration, "--timeout", "10s", url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits for its end: all answers were 2xx or 3xx, no socket failed, and there were some.
    pub(crate) fn finish_without_failure(self) {
        let output = self.0.wait_with_output().unwrap();
        let report = text(&output.stdout);
        assert!(output.status.success(), "{report}{}", text(&output.stderr));
        assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "requests failed:\n{report}");
        let requests: u64 = report.lines().find_map(|line| line.split(" requests in").next()?.trim().parse().ok()).unwrap_or(0);
        assert!(requests > 100, "hardly any load:\n{report}");
        eprintln!("{requests} requests without a failure");
    }
}

/// Output as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a failed command said.
pub(crate) fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
