//! Becoming a command inside the namespaces of an instance: for `enter`, which `up` starts, and for `exec`. Single-threaded callers only.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use caps::CapSet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::strays::MARK_ENV;

/// Exit status of a shell for a command that is not there.
const NOT_FOUND: u8 = 127;
/// Exit status of a shell for a command that cannot be run.
const NOT_RUNNABLE: u8 = 126;

/// What orders call this program.
const OWN_NAME: &str = "meshwright";

/// What is joined and given up before the command starts.
#[derive(Debug, Default)]
pub(crate) struct Passage {
    /// User namespace, joined first: it gives the right to join the others.
    pub(crate) userns: Option<PathBuf>,
    /// Network namespace.
    pub(crate) netns: Option<PathBuf>,
    /// (source, target) bind mounts, seen by the command alone.
    pub(crate) mounts: Vec<(PathBuf, PathBuf)>,
    /// Die with this parent.
    pub(crate) parent: Option<i32>,
    /// Keep only what the user has of itself.
    pub(crate) drop_rights: bool,
    /// Further environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// The state directory to carry as a mark, where the environment does not have it yet.
    pub(crate) mark: Option<PathBuf>,
}

/// Joins, and replaces this process by the command. Returns only when that fails: 127 where there is no such command, 126 where it
/// cannot be run, as a shell does.
///
/// # Errors
/// A namespace cannot be joined, or a mount cannot be made.
pub(crate) fn become_command(entry: &Passage, command: &[OsString]) -> anyhow::Result<ExitCode> {
    join(entry)?;
    if entry.drop_rights {
        give_up_rights()?;
    }
    // Last: joining a user namespace and giving up rights both clear it.
    if let Some(parent) = entry.parent {
        prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask to die with `up`")?;
        if getppid() != Pid::from_raw(parent) {
            bail!("`up` (pid {parent}) has gone already");
        }
    }
    let Some((program, args)) = command.split_first() else { bail!("no command given") };
    let mut becoming = Command::new(file_of(program));
    becoming.arg0(program).args(args).env("PATH", search_path());
    becoming.envs(entry.env.iter().cloned());
    if let Some(state) = &entry.mark {
        becoming.env(MARK_ENV, state);
    }
    let error = becoming.exec();
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE };
    eprintln!("error: cannot run `{}`: {}", program.to_string_lossy(), reason(program, &error));
    Ok(ExitCode::from(code))
}

/// Where a command lies: this program is meant by its own name, whatever its file is called; anything else is found on PATH.
fn file_of(program: &OsStr) -> PathBuf {
    let own = (program == OWN_NAME).then(env::current_exe).and_then(Result::ok).filter(|file| file.exists());
    own.unwrap_or_else(|| program.into())
}

fn reason(program: &OsStr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("no such program on PATH, or the working directory is gone; write its full path if {program:?} lies elsewhere")
        }
        io::ErrorKind::PermissionDenied => "it is not executable for this user".to_owned(),
        _ => error.to_string(),
    }
}

fn join(entry: &Passage) -> anyhow::Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}; has the mesh ended?", path.display()));
    // Both are opened first: afterwards this process may be a stranger to the other one's /proc files.
    let userns = entry.userns.as_deref().map(open).transpose()?;
    let netns = entry.netns.as_deref().map(open).transpose()?;
    if let Some(file) = userns {
        setns(file, CloneFlags::CLONE_NEWUSER).context("cannot join the mesh's user namespace")?;
    }
    if let Some(file) = netns {
        setns(file, CloneFlags::CLONE_NEWNET).context("cannot join the instance's network namespace (CAP_SYS_ADMIN)")?;
    }
    if entry.mounts.is_empty() {
        return Ok(());
    }
    let working_dir = env::current_dir();
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing).context("cannot make the mounts private")?;
    for (source, target) in &entry.mounts {
        // A system without the file (no nsswitch.conf with musl) has nobody who reads it.
        if target.exists() {
            mount(Some(source), target, nothing, MsFlags::MS_BIND, nothing)
                .with_context(|| format!("cannot show {} as {}", source.display(), target.display()))?;
        }
    }
    if let Ok(directory) = working_dir {
        env::set_current_dir(&directory).with_context(|| format!("cannot return to {}", directory.display()))?;
    }
    Ok(())
}

/// Ambient and inheritable capabilities go, so that a command of an ordinary user starts with none; root's own are not touched.
fn give_up_rights() -> anyhow::Result<()> {
    caps::clear(None, CapSet::Ambient).context("cannot drop ambient capabilities")?;
    caps::clear(None, CapSet::Inheritable).context("cannot drop inheritable capabilities")
}

/// PATH with this binary's own folder in front.
pub(crate) fn search_path() -> OsString {
    let own = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let inherited = env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    let rest: Vec<PathBuf> = env::split_paths(&inherited).filter(|path| Some(path) != own.as_ref()).collect();
    env::join_paths(own.into_iter().chain(rest)).unwrap_or(inherited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_program_finds_itself() {
        // Aim: parts run from the file that `up` runs from, also one that is called `meshwright-linux-amd64`; other commands as the shell has them.
        assert_eq!(file_of(OsStr::new("meshwright")), env::current_exe().unwrap());
        assert_eq!(file_of(OsStr::new("sh")), Path::new("sh"));
    }
}
