//! A whole cluster on this machine: the API server, and `tests/kube-node` beside it, whose pods are processes. Both live in a network
//! namespace of the test's own, which goes with them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::build::Program;
use super::crds::gateway_module;
use super::{Rig, end, tail};
use crate::look;

/// Longest run of one command: on a quiet machine the longest takes a tenth.
const COMMAND_SECS: u32 = 120;
/// Longest wait of [`Cluster::until`].
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two of its looks: each may be a program of its own.
const LOOK: Duration = Duration::from_millis(200);
/// Of each log, what a failure shows.
const LOG_LINES_SHOWN: u32 = 8;

/// One cluster at a time: each keeps a small machine busy, and what tests wait for has its bounds.
static TURN: Mutex<()> = Mutex::new(());

/// A command's end.
#[derive(Clone, Debug)]
pub struct Said {
    /// Whether it was 0.
    pub ok: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// A running cluster with one node, which plays Kubernetes' own controllers, too.
#[derive(Debug)]
pub struct Cluster {
    node: Child,
    api: Rig,
    bin: PathBuf,
    gateway: PathBuf,
}

impl Cluster {
    /// Runs a test with a cluster of its own, and ends it. Where the test fails, the ends of the logs are shown.
    ///
    /// # Panics
    /// The test fails, the cluster does not start, or its end leaves something behind.
    pub fn with(test: impl FnOnce(&Self) -> anyhow::Result<()> + Send + 'static) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // Builds fetch modules, which needs the machine's own network.
        let programs = [Program::Api, Program::Node, Program::Kubectl].map(|program| program.built().map(drop));
        let outcome = match programs.into_iter().collect::<Result<(), _>>().and_then(|()| gateway_module()) {
            Ok(gateway) => thread::spawn(move || Self::here(gateway, test)).join(),
            Err(error) => Ok(Err(error)),
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{error:?}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// In this thread, which is moved to a network of its own for good.
    fn here(gateway: PathBuf, test: impl FnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace of our own needs root")?;
        if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
            bail!("ip link set lo up fails");
        }
        let cluster = Self::start(gateway)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&cluster)));
        if !matches!(outcome, Ok(Ok(()))) {
            eprintln!("{}", cluster.logs());
        }
        drop(cluster);
        match outcome {
            Ok(Ok(())) => leftovers(),
            Ok(failure) => failure,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn start(gateway: PathBuf) -> anyhow::Result<Self> {
        let api = Rig::start_blocking(&["--rbac".to_owned()])?;
        let folder = api.folder();
        let (bin, images) = (folder.join("bin"), folder.join("images.json"));
        fs::create_dir(&bin)?;
        fs::create_dir(folder.join("work"))?;
        symlink(Program::Kubectl.built()?, bin.join("kubectl"))?;
        symlink(look::program(), bin.join("meshwright"))?;
        fs::write(&images, table().to_string())?;
        let (log, said) = (folder.join("node.log"), folder.join("node.out"));
        let mut node = Command::new(Program::Node.built()?);
        node.args(["--controllers", "--node", "one", "--backoff", "1s", "--refresh", "1s", "--kubeconfig"])
            .args([api.kubeconfig(), Path::new("--images"), images.as_path()])
            .stdin(Stdio::piped())
            .stdout(File::create(&said)?)
            .stderr(File::create(&log)?);
        let cluster = Self { node: node.spawn().context("cannot start kube-node")?, api, bin, gateway };
        let ready = || fs::read_to_string(&said).is_ok_and(|text| text.contains("\"node ready\""));
        let waited = look::until(PATIENCE, || if ready() { Ok(()) } else { Err("kube-node did not become ready".to_owned()) });
        waited.map_err(|why| anyhow::anyhow!("{why}; its log ends with:\n{}", tail(&log)))?;
        Ok(cluster)
    }

    /// Its folder, where a test may keep its own files.
    pub fn folder(&self) -> &Path {
        self.api.folder()
    }

    /// Runs a line of shell as a user's: `kubectl` and `meshwright` are there and know the cluster, the folder is one of this cluster's own.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn shell(&self, line: &str) -> anyhow::Result<Said> {
        let path = std::env::var("PATH").unwrap_or_default();
        let home = self.api.folder();
        let output = Command::new("timeout")
            .args(["-k", "5", &COMMAND_SECS.to_string(), "bash", "-o", "pipefail", "-c", line])
            .env("PATH", format!("{}:{path}", self.bin.display()))
            .env("KUBECONFIG", self.api.kubeconfig())
            .env("HOME", home)
            .current_dir(home.join("work"))
            .stdin(Stdio::null())
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { ok: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
    }

    /// The same for a line that must succeed; gives its standard output.
    ///
    /// # Errors
    /// It fails, or takes too long; the error has the line and what it said.
    pub fn run(&self, line: &str) -> anyhow::Result<String> {
        let said = self.shell(line)?;
        if !said.ok {
            bail!("`{line}` fails:\n{}{}", said.out, said.err);
        }
        Ok(said.out)
    }

    /// Applies manifests, YAML.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        let file = self.api.folder().join("work/applied.yaml");
        fs::write(file, manifests)?;
        self.run("kubectl apply --server-side -f applied.yaml").map(drop)
    }

    /// Applies Gateway API's definitions, and waits until they are served.
    ///
    /// # Errors
    /// The module is missing, or the API server refuses one.
    pub fn gateway_api(&self) -> anyhow::Result<()> {
        self.run(&format!("kubectl apply --server-side -f {}/config/crd/standard", self.gateway.display()))?;
        self.run("kubectl wait --for=condition=Established crd --all --timeout=60s").map(drop)
    }

    /// What `kubectl get … -o json` gives for these words.
    ///
    /// # Errors
    /// There is no such object.
    pub fn get(&self, words: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.run(&format!("kubectl get {words} -o json"))?)?)
    }

    /// Runs a command in a pod (or `deploy/NAME`) and gives how it ended.
    ///
    /// # Errors
    /// `kubectl` cannot be started.
    pub fn exec(&self, namespace: &str, pod: &str, command: &str) -> anyhow::Result<Said> {
        self.shell(&format!("kubectl -n {namespace} exec {pod} -- {command}"))
    }

    /// Looks until a look finds what is waited for.
    ///
    /// # Errors
    /// It does not come in time; the error has the last look's.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            match look(self) {
                Err(error) if Instant::now() >= end => return Err(error.context(format!("{what} does not come"))),
                Err(_) => thread::sleep(LOOK),
                found => return found,
            }
        }
    }

    /// Kills the first process of every container of a pod whose command line has that word: nothing is told to anybody. Gives how many.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&self, pod: &str, word: &str) -> anyhow::Result<usize> {
        let mut killed = 0;
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let has = |bytes: &[u8], wanted: &str| bytes.split(|byte| *byte == 0).any(|part| part == wanted.as_bytes());
            if has(&read("environ"), &format!("HOSTNAME={pod}")) && has(&read("cmdline"), word) {
                kill(Pid::from_raw(pid), Signal::SIGKILL)?;
                killed += 1;
            }
        }
        Ok(killed)
    }

    /// What a failure shows: all pods, the ends of their containers' logs, and of the cluster's own.
    fn logs(&self) -> String {
        let pods = "kubectl get pods -A -o wide; kubectl get events -A | tail -5";
        let each = format!(
            "kubectl get pods -A --no-headers | while read space pod rest; do kubectl -n $space logs $pod --all-containers --prefix --tail={LOG_LINES_SHOWN} </dev/null; done"
        );
        let said = [pods, each.as_str()].map(|line| self.shell(line).map_or_else(|error| error.to_string(), |said| said.out + &said.err));
        let own = ["log", "node.log", "node.out"].map(|name| format!("{name} ends with:\n{}", tail(&self.api.folder().join(name))));
        [said.join("\n"), own.join("\n")].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        end(&mut self.node);
    }
}

/// What image names stand for.
fn table() -> Value {
    let program = look::program();
    let meshwright = json!({"entrypoint": ["/meshwright"], "files": {"/meshwright": program, "/usr/bin/meshwright": program}});
    json!({"meshwright": meshwright, "python": {"entrypoint": ["python3", "-u", "-c"]}, "tools": {"entrypoint": ["sh", "-c"]}})
}

/// A cluster that has ended leaves a network with nothing in it.
fn leftovers() -> anyhow::Result<()> {
    let said = |program: &str, args: &[&str]| anyhow::Ok(String::from_utf8(Command::new(program).args(args).output()?.stdout)?);
    let (links, rules) = (said("ip", &["-brief", "link"])?, said("nft", &["list", "tables"])?);
    if links.lines().count() > 1 || !rules.is_empty() {
        bail!("the cluster leaves behind:\n{links}{rules}");
    }
    Ok(())
}
