//! Files of a run, removed when it is over. What persists (CA, epochs, applied objects, logs of the last run) stays.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::book::InstancesFile;
use super::lock::PID_FILE;
use crate::state::CONTROL_SOCKET;

/// Folders of a run.
pub(crate) const TOKENS: &str = "tokens";
/// Resolver files of instances.
pub(crate) const RESOLV: &str = "resolv";
/// Sockets on which applications get their identity.
pub(crate) const SPIFFE: &str = "spiffe";
/// Output of the parts.
pub(crate) const LOGS: &str = "logs";
/// The control plane's data directory.
pub(crate) const CONTROL_DATA: &str = "control";
/// The root certificate.
pub(crate) const CA_FILE: &str = "ca.pem";

/// Removes what only a running mesh needs. What is not there is no error.
pub(crate) fn leftovers(state: &Path) {
    but_the_lock(state);
    let _ = fs::remove_file(state.join(PID_FILE));
}

/// The same for the holder of the lock, whose pid stays.
pub(crate) fn but_the_lock(state: &Path) {
    let _ = fs::remove_file(state.join(CONTROL_SOCKET));
    for folder in [TOKENS, RESOLV, SPIFFE] {
        let _ = fs::remove_dir_all(state.join(folder));
    }
    InstancesFile::remove(state);
}

/// Makes the folders of a run, with empty logs.
///
/// # Errors
/// The state directory cannot be written: a full or read-only disk.
pub(crate) fn prepare(state: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_dir_all(state.join(LOGS));
    for folder in [TOKENS, RESOLV, SPIFFE, LOGS] {
        let path = state.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    Ok(())
}

/// Forgets the mesh that was: CA, epochs, applied objects.
///
/// # Errors
/// The data directory cannot be removed.
pub(crate) fn forget(state: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_file(state.join(CA_FILE));
    let data = state.join(CONTROL_DATA);
    match fs::remove_dir_all(&data) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", data.display()))
        }
        _ => Ok(()),
    }
}
