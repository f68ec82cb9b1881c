//! What the machine must have.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};
use proxy::intercept::{self, Families, Interception};

use super::Finding;
use crate::state;

/// nf_tables has redirection for both families in one table since then.
const KERNEL_OLDEST: (u32, u32) = (5, 2);
/// The console's port, and the usual one of an edge.
const PORTS: [u16; 2] = [8080, 8088];
/// Less than this and the authority's store may fail to grow.
const FREE_MIB_MIN: u64 = 64;

/// Everything that can be said without a mesh.
pub(super) fn findings() -> Vec<Finding> {
    vec![kernel(), rights(), redirection(), state_directory(&state::find())]
}

/// Whether a new mesh gets the ports that it would like.
pub(super) fn ports() -> Vec<Finding> {
    PORTS.into_iter().map(port).collect()
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    match version(&release) {
        Some(version) if version >= KERNEL_OLDEST => Finding::ok("kernel", format!("Linux {release}")),
        Some(_) => Finding::failed("kernel", format!("Linux {release} is too old"), "use a kernel of version 5.2 or newer"),
        None => {
            Finding::warning("kernel", format!("cannot read the version `{release}`"), "meshwright needs Linux 5.2 or newer, with /proc")
        }
    }
}

/// The first two numbers of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn rights() -> Finding {
    if geteuid().is_root() {
        return Finding::ok("rights", "root");
    }
    match user_namespaces_off(&|path| fs::read_to_string(path).ok()) {
        None => Finding::ok("rights", "no root; a user namespace will do"),
        Some(setting) => Finding::failed(
            "rights",
            format!("no root, and user namespaces are switched off by {setting}"),
            format!("run as root, or change that setting with `sysctl`: {setting}"),
        ),
    }
}

/// The setting that forbids user namespaces to ordinary users, if one does.
fn user_namespaces_off(read: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
    let value = |path| read(path).map(|text| text.trim().to_owned());
    let settings = [
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces = 0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone = 0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns = 1"),
    ];
    settings.into_iter().find(|(path, off, _)| value(path).as_deref() == Some(off)).map(|(_, _, setting)| setting)
}

/// Tries the redirection where it harms nobody: in namespaces of a child of ours.
fn redirection() -> Finding {
    let tried = std::env::current_exe().and_then(|program| Command::new(program).args(["check", "--probe"]).output());
    let remedy =
        "load the kernel's modules nf_tables, nft_redir and nft_chain_nat (`modprobe nf_tables`), and allow namespaces in this container";
    match tried {
        Ok(output) if output.status.success() => Finding::ok("redirection", "nf_tables redirects IPv4 and IPv6 in a network namespace"),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.trim().trim_start_matches("error: ").to_owned();
            Finding::failed("redirection", why, remedy)
        }
        Err(error) => Finding::failed("redirection", format!("cannot start a process to try it: {error}"), remedy),
    }
}

/// The child's half of [`redirection`].
///
/// # Errors
/// What is missing, as a sentence.
pub(super) fn probe() -> anyhow::Result<()> {
    let (uid, gid) = (geteuid(), nix::unistd::getegid());
    if !uid.is_root() {
        unshare(CloneFlags::CLONE_NEWUSER).context("cannot make a user namespace")?;
        fs::write("/proc/self/setgroups", "deny").context("cannot set up a user namespace")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("cannot set up a user namespace")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("cannot set up a user namespace")?;
    }
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let plan = Interception {
        exempt_uid: None,
        exempt_mark: Some(intercept::EXEMPT_MARK),
        exclude_outbound_ports: [].into(),
        exclude_inbound_ports: [].into(),
        exclude_outbound_cidrs: Vec::new(),
        families: Families::Both,
        resolvers: vec![Ipv4Addr::LOCALHOST.into()],
    };
    intercept::install(&plan).context("cannot install rules")?;
    let missing = intercept::verify(&plan).context("cannot read rules")?;
    anyhow::ensure!(missing.is_empty(), "the kernel took the rules but lost {} of them", missing.len());
    Ok(())
}

fn port(port: u16) -> Finding {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Finding::ok("port", format!("{port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::warning(
            "port",
            format!("{port} is taken"),
            format!("nothing need be done: `up` takes another port in place of {port} and prints it"),
        ),
        Err(error) => Finding::warning("port", format!("{port} cannot be opened: {error}"), "`up` takes another port and prints it"),
    }
}

fn state_directory(place: &Path) -> Finding {
    let shown = place.display();
    let remedy = || format!("set {} to a directory of your own", state::STATE_DIR_ENV);
    let Some(existing) = nearest(place) else { return Finding::failed("state", format!("{shown} has no parent"), remedy()) };
    if access(&existing, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        // Another place of the rules will be taken, unless this one was asked for.
        let asked_for = std::env::var_os(state::STATE_DIR_ENV).is_some();
        let message = format!("{} cannot be written", existing.display());
        return if asked_for {
            Finding::failed("state", message, remedy())
        } else {
            Finding::ok("state", format!("{message}; `up` takes the next place"))
        };
    }
    match statvfs(&existing) {
        Ok(facts) if (facts.blocks_available() * facts.fragment_size()) >> 20 < FREE_MIB_MIN => Finding::failed(
            "state",
            format!("less than {FREE_MIB_MIN} MiB are free for {shown}"),
            "free some space, the authority keeps its keys there",
        ),
        Ok(_) => Finding::ok("state", shown.to_string()),
        Err(error) => Finding::failed("state", format!("{shown}: {}", error.desc()), remedy()),
    }
}

/// The place itself or the nearest folder above it that exists.
fn nearest(place: &Path) -> Option<PathBuf> {
    place.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: kernel releases of distributions are read, and compared as numbers.
    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(version("4.19"), Some((4, 19)));
        assert_eq!(version("unknown"), None);
        assert!(version("5.10.0").unwrap() > KERNEL_OLDEST);
    }

    /// Aim: the setting that forbids user namespaces is named, of whichever distribution it is.
    #[test]
    fn the_forbidding_setting_is_named() {
        let with = |path: &'static str, value: &'static str| move |asked: &str| (asked == path).then(|| value.to_owned());
        assert_eq!(user_namespaces_off(&|_| None), None);
        assert_eq!(user_namespaces_off(&with("/proc/sys/user/max_user_namespaces", "0\n")), Some("user.max_user_namespaces = 0"));
        assert_eq!(user_namespaces_off(&with("/proc/sys/user/max_user_namespaces", "1000\n")), None);
        let debian = with("/proc/sys/kernel/unprivileged_userns_clone", "0\n");
        assert_eq!(user_namespaces_off(&debian), Some("kernel.unprivileged_userns_clone = 0"));
    }
}
