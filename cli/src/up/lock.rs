//! One `up` per state directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::state::STATE_DIR_ENV;

/// File that holds the lock and the pid.
pub(crate) const PID_FILE: &str = "up.pid";

/// The lock; the kernel gives it back when this process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of this state directory and writes our pid.
    ///
    /// # Errors
    /// Another `up` holds it; its pid is named.
    pub(crate) fn take(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(PID_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id()).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(Self { _file: file, path })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let pid = read(file);
                bail!(
                    "a mesh is running already with the state directory {} (pid {pid}). Stop it with `meshwright down`, \
                     or give this one another directory (and address ranges): {STATE_DIR_ENV}=DIR meshwright up --instance-cidr …",
                    state.display()
                )
            }
            Err((_, errno)) => bail!("cannot lock {}: {errno}", path.display()),
        }
    }

    /// Removes the file, so that nobody takes the pid for a running mesh.
    pub(crate) fn release(self) {
        // Without the file the lock is as free as with it.
        let _ = fs::remove_file(&self.path);
    }
}

/// The pid of the `up` that runs with this state directory, if one does.
pub(crate) fn holder(state: &Path) -> Option<i32> {
    let file = File::open(state.join(PID_FILE)).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err((file, _)) => read(file).parse().ok(),
    }
}

fn read(mut file: File) -> String {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the second one is told who holds the lock, and the lock is free again after release.
    #[test]
    fn one_at_a_time() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(holder(state.path()), None);
        let lock = Lock::take(state.path()).unwrap();
        let pid = std::process::id();
        assert_eq!(holder(state.path()), Some(pid.cast_signed()));
        let said = Lock::take(state.path()).unwrap_err().to_string();
        assert!(said.contains(&format!("pid {pid}")) && said.contains("meshwright down"), "{said}");
        lock.release();
        assert_eq!(holder(state.path()), None);
        Lock::take(state.path()).unwrap();
    }
}
