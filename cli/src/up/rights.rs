//! With root, or without: the rights that `up` needs, taken before any thread starts.

use std::fs;

use anyhow::Context;
use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{getegid, geteuid};

/// What `up` may do, and how its sidecars exempt themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// In a user namespace of our own: one uid, no uid to drop to.
    pub(crate) rootless: bool,
}

/// Takes the rights; must run while the process has one thread.
///
/// # Errors
/// User namespaces are switched off, with the setting that does it.
pub(crate) fn take(ask_rootless: bool) -> anyhow::Result<Rights> {
    let able = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
        && caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false);
    let rootless = ask_rootless || !(able && geteuid().is_root());
    if rootless {
        own_user_namespace()?;
    }
    Ok(Rights { rootless })
}

fn own_user_namespace() -> anyhow::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "cannot make a user namespace, which `up` needs without root. Run as root, or allow them: \
         sysctl user.max_user_namespaces > 0, kernel.unprivileged_userns_clone = 1 (Debian), \
         kernel.apparmor_restrict_unprivileged_userns = 0 (Ubuntu)",
    )?;
    let write = |file: &str, text: String| fs::write(file, text).with_context(|| format!("cannot write {file}"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    // Children are found through our /proc files, and they keep our rights across exec only as ambient ones.
    prctl::set_dumpable(true).context("cannot stay visible to children")?;
    let ours = caps::read(None, CapSet::Permitted).context("cannot read capabilities")?;
    caps::set(None, CapSet::Inheritable, &ours).context("cannot make capabilities inheritable")?;
    caps::set(None, CapSet::Ambient, &ours).context("cannot make capabilities ambient")
}
