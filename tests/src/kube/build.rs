//! Builds the Go programs of the rig once, and again when their sources are newer than they are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, bail};

/// Where Go's own archive is unpacked, as its page says.
const GO_FOLDER: &str = "/usr/local/go/bin";

/// A program in Go that tests start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The API server, `tests/kube-api`.
    Api,
    /// The node and its controllers, `tests/kube-node`.
    Node,
    /// Kubernetes' own client, `tests/kube-api/kubectl`.
    Kubectl,
}

impl Program {
    /// As its file is called.
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "kube-api",
            Self::Node => "kube-node",
            Self::Kubectl => "kubectl",
        }
    }

    /// The module that it is of.
    fn module(self) -> PathBuf {
        let module = if self == Self::Node { "kube-node" } else { "kube-api" };
        Path::new(env!("CARGO_MANIFEST_DIR")).join(module)
    }

    /// The program, built from the sources as they are now. Tests of several programs may ask at the same time: one builds, the others wait.
    ///
    /// # Errors
    /// Go is missing, or the build fails; the error holds what the build said.
    pub fn built(self) -> anyhow::Result<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = std::path::absolute(target.join("kube"))?;
        fs::create_dir_all(&folder)?;
        let program = folder.join(self.name());
        let lock = File::create(folder.join(format!("{}.lock", self.name())))?;
        lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;
        if self.is_fresh(&program)? {
            return Ok(program);
        }
        let mut build = go_command(self.module(), self.module().join("build"));
        build.arg(&program);
        if self == Self::Kubectl {
            build.arg("kubectl");
        }
        let output = build.output().context("cannot run the build of a Go program")?;
        if !output.status.success() {
            bail!("{} cannot be built:\n{}", self.name(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(program)
    }

    /// Whether the program is there and as new as what it is built from.
    fn is_fresh(self, program: &Path) -> anyhow::Result<bool> {
        let Ok(built) = fs::metadata(program).and_then(|about| about.modified()) else { return Ok(false) };
        let module = self.module();
        let newest = match self {
            Self::Api => newest(&module, false)?,
            Self::Node => newest(&module, true)?,
            Self::Kubectl => {
                let sum = fs::metadata(module.join("go.sum"))?.modified()?;
                sum.max(newest(&module.join("kubectl"), false)?)
            }
        };
        Ok(newest <= built)
    }
}

/// When the youngest source of a folder was changed.
fn newest(folder: &Path, deep: bool) -> anyhow::Result<SystemTime> {
    let mut youngest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, about) = (entry.path(), entry.metadata()?);
        let name = entry.file_name().to_string_lossy().into_owned();
        if about.is_dir() && deep {
            youngest = youngest.max(newest(&path, deep)?);
        }
        let is_source = path.extension().is_some_and(|end| end == "go" || end == "mod" || end == "sum") || name == "build";
        if about.is_file() && is_source && !name.ends_with("_test.go") {
            youngest = youngest.max(about.modified()?);
        }
    }
    Ok(youngest)
}

/// A command with Go on its PATH, in a module's folder.
pub(super) fn go_command(module: impl AsRef<Path>, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{GO_FOLDER}")).current_dir(module);
    command
}

/// The module of the API server.
pub(super) fn api_module() -> PathBuf {
    Program::Api.module()
}
