//! Giving up what is not needed any more. Everything here acts on the calling thread or the whole process and is called before any
//! other thread exists.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt as _;

use anyhow::{Context, bail};
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, execve, geteuid, getppid, setgroups, setresgid, setresuid};
use tracing::warn;

use crate::shell::settings::Exempt;

/// Names the process that this one must not outlive; set by `meshwright up`.
const PARENT_ENV: &str = "MESHWRIGHT_PARENT_PID";

/// How much address space the allocator takes at a time, in KiB. Its bookkeeping for 32 MiB instead of a gigabyte is 150 KiB smaller.
const ARENA_ENV: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "32768");

/// Whether this process is root (of its user namespace).
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Dies with the parent that asked for it, if one did. A change of uid resets it, so it is asked for again afterwards.
///
/// # Errors
/// The kernel's; the parent is gone already.
pub fn die_with_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var_os(PARENT_ENV).and_then(|text| text.to_str()?.parse::<i32>().ok()) else { return Ok(()) };
    prctl::set_pdeathsig(Signal::SIGKILL).context("the parent-death signal cannot be set")?;
    // From another pid namespace the parent shows as 0.
    let now = getppid().as_raw();
    if now != parent && now != 0 {
        bail!("the process that started this proxy (pid {parent}) is gone");
    }
    Ok(())
}

/// Keeps the kernel from backing a few kilobytes with huge pages of two megabytes each: a sidecar is one of many. The allocator has
/// touched some before `main`, so the program begins anew, once, with huge pages off; the setting survives that, and the allocator
/// learns that it serves a small process.
pub fn stay_small() {
    if prctl::get_thp_disable().unwrap_or(true) || prctl::set_thp_disable(true).is_err() {
        return;
    }
    let text = |text: OsString| CString::new(text.into_vec()).ok();
    let (Ok(program), Some(arguments)) = (std::env::current_exe(), std::env::args_os().map(text).collect::<Option<Vec<_>>>()) else {
        return;
    };
    // Where the program cannot begin anew (its file is gone), it goes on as it is, only larger.
    if let Some(program) = text(program.into_os_string()) {
        let _ = execve(&program, &arguments, &environment(text));
    }
}

/// This process's environment, and [`ARENA_ENV`] unless somebody has set it.
fn environment(text: impl Fn(OsString) -> Option<CString>) -> Vec<CString> {
    let mut pairs: Vec<CString> = std::env::vars_os()
        .filter_map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(name)
        })
        .collect();
    if std::env::var_os(ARENA_ENV.0).is_none() {
        pairs.extend(text(format!("{}={}", ARENA_ENV.0, ARENA_ENV.1).into()));
    }
    pairs
}

/// Allows as many descriptors as the machine does: each connection takes one or two.
pub fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!(soft, hard, "the limit on descriptors stays as it is: {error}");
    }
}

/// Descriptors that this process may have.
pub fn descriptors() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// Keeps this process's memory, where its keys are, to itself: no core file, and (`alone`) no look by other processes of the same user. Under a
/// rootless `meshwright up` they may look, because `meshwright down` finds what is left of a mesh by their environment. A change of uid
/// resets it.
pub fn keep_memory_private(alone: bool) {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        warn!("a crash may leave a core file with keys in it: {error}");
    }
    if alone && let Err(error) = prctl::set_dumpable(false) {
        warn!("other processes of this user may read the keys of this one: {error}");
    }
}

/// Whether nobody started this process who looks after it by its environment.
pub fn is_alone() -> bool {
    std::env::var_os(PARENT_ENV).is_none()
}

/// Drops to the exempt uid, or (where that is not ours to choose) keeps the one right that marks need. `low_ports`: listeners below
/// 1024 may still have to be opened.
///
/// # Errors
/// What is missing, and which flag helps.
pub fn drop_rights(exempt: Exempt, low_ports: bool) -> anyhow::Result<()> {
    let mut kept = CapsHashSet::new();
    if low_ports {
        kept.insert(Capability::CAP_NET_BIND_SERVICE);
    }
    bound_programs();
    match exempt {
        Exempt::Uid(uid) if is_root() => become_uid(uid)?,
        Exempt::Uid(uid) if geteuid().as_raw() != uid => {
            let own = geteuid();
            bail!(
                "--exempt-uid {uid}: this process is uid {own} and cannot change; start it as root, or give --exempt-mark or --exempt-uid 0"
            );
        }
        Exempt::Mark(mark) => {
            kept.insert(Capability::CAP_NET_ADMIN);
            marks_work(mark)?;
        }
        Exempt::Uid(_) | Exempt::None => {}
    }
    keep_only(&kept)?;
    prctl::set_no_new_privs().context("new privileges cannot be ruled out")
}

/// No program that this process might be made to start gets a right by its file. Who may not say so has no rights to hand on, and
/// `no_new_privs` rules the same out.
fn bound_programs() {
    if let Err(error) = caps::clear(None, CapSet::Bounding) {
        tracing::debug!("the bounding set stays as it is: {error}");
    }
}

fn become_uid(uid: u32) -> anyhow::Result<()> {
    prctl::set_keepcaps(true).context("capabilities cannot be kept over the change of uid")?;
    match setgroups(&[]) {
        // A user namespace may forbid it; then there are no groups of others to be in.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error).context("supplementary groups cannot be dropped"),
    }
    let remedy = || format!("--exempt-uid: cannot become uid {uid}; in a user namespace without it give --exempt-mark");
    let (gid, uid) = (Gid::from_raw(uid), Uid::from_raw(uid));
    setresgid(gid, gid, gid).with_context(remedy)?;
    setresuid(uid, uid, uid).with_context(remedy)
}

/// Root loses nothing by a change of uid that keeps capabilities, so what is not wanted is taken off by name.
fn keep_only(wanted: &CapsHashSet) -> anyhow::Result<()> {
    let held = caps::read(None, CapSet::Permitted).context("capabilities cannot be read")?;
    let kept: CapsHashSet = held.intersection(wanted).copied().collect();
    caps::clear(None, CapSet::Ambient)
        .or_else(|error| if held.is_empty() { Ok(()) } else { Err(error) })
        .context("ambient capabilities")?;
    caps::set(None, CapSet::Effective, &kept).context("effective capabilities cannot be dropped")?;
    caps::set(None, CapSet::Permitted, &kept).context("permitted capabilities cannot be dropped")?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).context("inheritable capabilities cannot be dropped")
}

fn marks_work(mark: u32) -> anyhow::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).context("no socket can be opened")?;
    socket.set_mark(mark).with_context(|| {
        format!("--exempt-mark {mark}: sockets cannot be marked; that takes CAP_NET_ADMIN in the network's user namespace")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a wish that cannot be had is refused with the flag that can.
    #[test]
    fn an_impossible_uid_is_refused() {
        if is_root() {
            return;
        }
        let error = drop_rights(Exempt::Uid(1), false).unwrap_err().to_string();
        assert!(error.contains("--exempt-mark"), "{error}");
    }
}
