//! Builds `tests/kube-api` once, and again when its sources are newer than the program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, bail};

/// Where Go's own archive is unpacked, as its page says.
const GO_FOLDER: &str = "/usr/local/go/bin";

/// The sources.
pub(super) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kube-api")
}

/// A command with Go on its PATH.
pub(super) fn go_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{GO_FOLDER}")).current_dir(sources());
    command
}

/// The program, built from the sources as they are now. Tests of several programs may ask at the same time: one builds, the others wait.
///
/// # Errors
/// Go is missing, or the build fails; the error holds what the build said.
pub fn program() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = target.join("kube");
    fs::create_dir_all(&folder)?;
    let program = folder.join("kube-api");
    let lock = File::create(folder.join("kube-api.lock"))?;
    lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;
    if is_fresh(&program)? {
        return Ok(program);
    }
    let output = go_command(sources().join("build")).arg(&program).output().context("cannot run tests/kube-api/build")?;
    if !output.status.success() {
        bail!("tests/kube-api/build fails:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(program)
}

/// Whether the program is there and as new as what it is built from.
fn is_fresh(program: &Path) -> anyhow::Result<bool> {
    let Ok(built) = fs::metadata(program).and_then(|about| about.modified()) else { return Ok(false) };
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(sources())? {
        let entry = entry?;
        let name = entry.file_name();
        if Path::new(&name).extension().is_some_and(|end| end == "go" || end == "mod" || end == "sum") || name == "build" {
            newest = newest.max(entry.metadata()?.modified()?);
        }
    }
    Ok(newest <= built)
}
