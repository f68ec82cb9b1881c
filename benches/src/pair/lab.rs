//! The place of a run: a folder, pairs of network namespaces joined by a veth pair, CPUs; all gone when the run is over.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pair::spec::Side;

/// Start of the names of our namespaces and folders; our process id follows.
const PREFIX: &str = "mwbench-";
/// The same of folders that the user wants to keep.
const KEPT: &str = "mwbench.kept-";
/// Where the kernel keeps named namespaces (iproute2's convention).
const NAMESPACES: &str = "/run/netns";
/// Priority of what is measured against everything else on the machine; among themselves nothing changes, they all have the same.
const NICE: i32 = -15;
/// Programs the lab itself needs, with the Debian package of each.
const PROGRAMS: [(&str, &str); 4] = [("ip", "iproute2"), ("taskset", "util-linux"), ("nice", "coreutils"), ("sysctl", "procps")];
/// What a namespace is told, so that a run of new connections does not run out of ports.
const SYSCTLS: [&str; 3] = ["net.ipv4.ip_local_port_range=10000 65000", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=4096"];

/// The place of a run. Dropping it removes everything it made.
#[derive(Debug)]
pub(super) struct Lab {
    folder: PathBuf,
    /// CPU of the client side and of the server side, as if they were two nodes; none on a machine of one CPU.
    cpus: Option<[usize; 2]>,
    /// Whether the folder stays.
    keep: bool,
}

impl Lab {
    /// Clears what a killed run left, and makes the folder. `pinned`: each side on a CPU of its own; `keep`: the folder outlives the run.
    ///
    /// # Errors
    /// Not root, a program is missing, or the folder cannot be made; each with its remedy.
    pub(super) fn open(pinned: bool, keep: bool) -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("`pair` makes network namespaces and needs root: run it with sudo");
        }
        for (program, package) in PROGRAMS {
            if which(program).is_none() {
                bail!("the program `{program}` is not on the PATH: install it (Debian: apt-get install {package})");
            }
        }
        clear_leftovers();
        // What is kept has a name that the next run does not clear.
        let prefix = if keep { KEPT } else { PREFIX };
        let folder = std::env::temp_dir().join(format!("{prefix}{}", std::process::id()));
        let made = fs::create_dir_all(&folder).and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)));
        made.with_context(|| format!("cannot make the run's folder {}", folder.display()))?;
        Ok(Self { folder, cpus: if pinned { two_cpus() } else { None }, keep })
    }

    /// The run's own folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Name of a namespace of the topology with that number.
    pub(super) fn namespace(&self, number: usize, side: Side) -> String {
        let letter = match side {
            Side::Client => 'c',
            Side::Server => 's',
        };
        format!("{PREFIX}{}-{number}{letter}", std::process::id())
    }

    /// Address of a side of the topology with that number.
    pub(super) fn address(&self, number: usize, side: Side) -> String {
        format!("10.231.{number}.{}", if side == Side::Client { 1 } else { 2 })
    }

    /// Makes both namespaces of a topology and joins them; both networks are up afterwards.
    ///
    /// # Errors
    /// `ip` says no.
    pub(super) fn join(&self, number: usize) -> anyhow::Result<()> {
        let [client, server] = [Side::Client, Side::Server].map(|side| self.namespace(number, side));
        for name in [&client, &server] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&["link", "add", "v0", "netns", &client, "type", "veth", "peer", "name", "v0", "netns", &server])?;
        for (name, side) in [(&client, Side::Client), (&server, Side::Server)] {
            ip(&["-n", name, "addr", "add", &format!("{}/24", self.address(number, side)), "dev", "v0"])?;
            ip(&["-n", name, "link", "set", "v0", "up"])?;
            let sysctl = ["netns", "exec", name, "sysctl", "-qw"].into_iter().chain(SYSCTLS);
            ip(&sysctl.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Removes both namespaces of a topology and whatever still runs in them.
    pub(super) fn part(&self, number: usize) {
        for side in [Side::Client, Side::Server] {
            remove_namespace(&self.namespace(number, side));
        }
    }

    /// `cmd` as it runs on a side: in its namespace, on its CPU, with the run's priority. The process id stays that of the program.
    pub(super) fn command(&self, number: usize, side: Option<Side>, cmd: &[String]) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(side) = side {
            if let Some(cpus) = self.cpus {
                words.extend(["taskset", "-c", &cpus[side as usize].to_string()].map(str::to_owned));
            }
            words.extend(["ip", "netns", "exec", &self.namespace(number, side), "nice", "-n", &NICE.to_string()].map(str::to_owned));
        }
        words.extend_from_slice(cmd);
        let mut command = Command::new(words.first().map_or("", String::as_str));
        command.args(words.iter().skip(1)).stdin(Stdio::null());
        command
    }

    /// Removes everything the lab made; a second time does nothing.
    pub(super) fn close(&self) {
        for name in namespaces().filter(|name| owner(name) == Some(std::process::id())) {
            remove_namespace(&name);
        }
        if !self.keep {
            // Left in place if it cannot be removed: the next run does.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.close();
    }
}

/// The first two CPUs we may use.
fn two_cpus() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some([usable.next()?, usable.next()?])
}

/// A program's path: found on the PATH, or the path itself if it is one and there.
pub(super) fn which(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Path::new(program).is_file().then(|| PathBuf::from(program));
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Runs a command to its end; its output is the answer.
///
/// # Errors
/// It cannot be started, or ends with another code than 0: with its output.
pub(super) fn run(mut command: Command) -> anyhow::Result<String> {
    let words =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = command.output().with_context(|| format!("cannot start `{words}`"))?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{words}` failed ({}): {}", output.status, said.trim());
    }
    Ok(said.into_owned())
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("ip");
    command.args(args);
    run(command)
}

fn namespaces() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(PREFIX))
}

/// Process id in a name of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn remove_namespace(name: &str) {
    // What runs in a namespace of ours was started by us: it ends with it.
    for pid in ip(&["netns", "pids", name]).unwrap_or_default().split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    // Nothing is left to do if it is gone already; what cannot be removed the next run tries again.
    let _ = ip(&["netns", "del", name]);
}

/// Removes namespaces and folders of runs that no longer live.
fn clear_leftovers() {
    let dead = |name: &str| owner(name).is_some_and(|pid| !is_run(pid));
    for name in namespaces().filter(|name| dead(name)) {
        remove_namespace(&name);
    }
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(dead)) {
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Whether a process is a run of this program, so that its namespaces are in use. One that was killed and not yet mourned is none.
fn is_run(pid: u32) -> bool {
    let fact = |pid: &str, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let (pid, own) = (pid.to_string(), fact("self", "comm"));
    fact(&pid, "comm") == own && !is_ended(&fact(&pid, "stat"))
}

/// State of `/proc/PID/stat`, behind the command's name in parentheses: ended, but its parent has not asked yet.
fn is_ended(stat: &str) -> bool {
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: names tell which run they belong to, and others' namespaces are nobody's of ours.
    #[test]
    fn names_tell_their_run() {
        assert_eq!(owner("mwbench-12-3c"), Some(12));
        assert_eq!((owner("mwbench-x"), owner("other-12")), (None, None));
        assert!(is_run(std::process::id()));
        assert!(!is_run(u32::MAX));
        assert!(is_ended("7 (a) b) Z 1 7") && !is_ended("7 (Z) S 1 7") && !is_ended(""));
    }

    /// Aim: a program is found by name and by path, or not at all.
    #[test]
    fn programs_are_found() {
        assert!(which("sh").is_some() && which("/bin/sh").is_some());
        assert!(which("no-such-program").is_none() && which("/no/such").is_none());
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo why >&2; exit 3"]);
        assert!(run(fails).unwrap_err().to_string().contains("why"));
    }
}
