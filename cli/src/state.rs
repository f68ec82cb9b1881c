//! Where the state of a running `up` lives, and how every other command finds it.
//!
//! `$MESHWRIGHT_STATE_DIR`, else `$XDG_RUNTIME_DIR/meshwright`, else `/run/meshwright`, else a private directory below the
//! temporary one (kinds.md, "What `up` does, exactly").

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Names the state directory and goes before every other rule.
pub(crate) const STATE_DIR_ENV: &str = "MESHWRIGHT_STATE_DIR";
/// The control plane's Unix socket inside the state directory.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
/// Rights of the state directory: it holds tokens.
const DIRECTORY_MODE: u32 = 0o700;

/// What the choice depends on.
#[derive(Debug, Clone, Default)]
struct Surroundings {
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    temporary: PathBuf,
    uid: u32,
}

impl Surroundings {
    fn here() -> Self {
        let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            state_dir: path(STATE_DIR_ENV),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            temporary: env::temp_dir(),
            uid: nix::unistd::geteuid().as_raw(),
        }
    }

    /// The places in the order of the rules; an explicit choice stands alone.
    fn candidates(&self) -> Vec<PathBuf> {
        if let Some(explicit) = &self.state_dir {
            return vec![explicit.clone()];
        }
        let mut places = Vec::new();
        places.extend(self.runtime_dir.as_ref().map(|runtime| runtime.join("meshwright")));
        places.push(PathBuf::from("/run/meshwright"));
        places.push(self.temporary.join(format!("meshwright-{}", self.uid)));
        places
    }
}

/// The state directory of the mesh that runs, or else the one that a new mesh would use (not created).
///
/// A place that holds a control socket goes before one that does not, so that a shell with other environment finds the mesh.
pub(crate) fn find() -> PathBuf {
    let candidates = Surroundings::here().candidates();
    let live = candidates.iter().find(|place| place.join(CONTROL_SOCKET).exists()).cloned();
    live.or_else(|| candidates.iter().find(|place| place.is_dir()).cloned()).unwrap_or_else(|| candidates[0].clone())
}

/// The control plane's socket of the mesh that [`find`] names.
pub(crate) fn control_socket() -> PathBuf {
    find().join(CONTROL_SOCKET)
}

/// Makes (or takes) the first state directory of the rules that this user may write, with rights 0700.
///
/// # Errors
/// None can be made, or the place belongs to somebody else or is open to others: secrets would not be safe there.
pub(crate) fn create() -> anyhow::Result<PathBuf> {
    let surroundings = Surroundings::here();
    let candidates = surroundings.candidates();
    let mut last = None;
    for place in &candidates {
        match claim(place, surroundings.uid) {
            Ok(()) => return fs::canonicalize(place).with_context(|| format!("cannot resolve {}", place.display())),
            Err(error) => last = Some(error),
        }
    }
    Err(last
        .unwrap_or_else(|| anyhow::anyhow!("no place for a state directory"))
        .context(format!("no usable state directory; set {STATE_DIR_ENV} to a directory that you own")))
}

fn claim(place: &Path, uid: u32) -> anyhow::Result<()> {
    if !place.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(place)
            .with_context(|| format!("cannot create the state directory {}", place.display()))?;
    }
    let facts = fs::symlink_metadata(place).with_context(|| format!("cannot look at {}", place.display()))?;
    if !facts.is_dir() {
        bail!("{} is not a directory", place.display());
    }
    if facts.uid() != uid {
        bail!("{} belongs to user {}, not to you (user {uid})", place.display(), facts.uid());
    }
    if facts.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(place, fs::Permissions::from_mode(DIRECTORY_MODE))
            .with_context(|| format!("{} is open to others and its rights cannot be changed to 0700", place.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the order of the rules, and that an explicit choice admits no other place.
    #[test]
    fn places_follow_the_rules() {
        let plain = Surroundings { temporary: "/tmp".into(), uid: 7, ..Surroundings::default() };
        assert_eq!(plain.candidates(), [PathBuf::from("/run/meshwright"), PathBuf::from("/tmp/meshwright-7")]);
        let session = Surroundings { runtime_dir: Some("/run/user/7".into()), ..plain.clone() };
        assert_eq!(session.candidates()[0], PathBuf::from("/run/user/7/meshwright"));
        let explicit = Surroundings { state_dir: Some("/x".into()), ..session };
        assert_eq!(explicit.candidates(), [PathBuf::from("/x")]);
    }

    /// Aim: a state directory is private when it has been claimed, also where it was open before.
    #[test]
    fn claiming_makes_a_directory_private() {
        let root = tempfile::tempdir().unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let place = root.path().join("a/b");
        claim(&place, uid).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        claim(&place, uid).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(claim(&place, uid + 1).unwrap_err().to_string().contains("belongs to"));
    }
}
