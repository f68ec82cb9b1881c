//! `instances.json`: what runs, for `exec` and `logs`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Names its socket to an application (SPIFFE Workload Endpoint, section 4).
const SPIFFE_ENV: &str = "SPIFFE_ENDPOINT_SOCKET";
/// File name in the state directory.
const FILE: &str = "instances.json";
/// The namespace of a name without one, as for kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// The whole file.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstancesFile {
    /// Pid of `up`.
    pub(crate) up: u32,
    /// The user namespace to join first, where the mesh runs without root.
    pub(crate) userns: Option<PathBuf>,
    /// The fabric's network namespace, where the control plane runs.
    pub(crate) fabric: PathBuf,
    /// Every instance with a namespace.
    pub(crate) instances: Vec<InstanceRecord>,
}

/// One instance (or edge proxy).
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) namespace: String,
    pub(crate) workload: String,
    pub(crate) instance: String,
    pub(crate) meshed: bool,
    pub(crate) edge: bool,
    pub(crate) addresses: Vec<String>,
    /// Network namespace.
    pub(crate) netns: PathBuf,
    /// (source, target) files that the instance sees in the place of the system's.
    pub(crate) mounts: Vec<(PathBuf, PathBuf)>,
    /// Where its application gets its identity.
    #[serde(default)]
    pub(crate) spiffe_socket: Option<PathBuf>,
    pub(crate) pid: Option<u32>,
    pub(crate) proxy_pid: Option<u32>,
    /// Log of the workload's command.
    pub(crate) log: PathBuf,
    /// Log of the proxy.
    pub(crate) proxy_log: PathBuf,
}

impl InstanceRecord {
    /// What SPIFFE libraries look for in the environment, and what it is here.
    pub(crate) fn spiffe_variable(&self) -> Option<(OsString, OsString)> {
        self.spiffe_socket.as_deref().map(spiffe_variable)
    }
}

/// The environment variable that names a socket to SPIFFE libraries.
pub(crate) fn spiffe_variable(socket: &Path) -> (OsString, OsString) {
    let mut address = OsString::from("unix://");
    address.push(socket);
    (SPIFFE_ENV.into(), address)
}

impl InstancesFile {
    /// Writes the file whole or not at all.
    pub(crate) fn write(&self, state: &Path) -> anyhow::Result<()> {
        let path = state.join(FILE);
        let fresh = state.join(format!(".{FILE}"));
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads it.
    ///
    /// # Errors
    /// No mesh runs with this state directory.
    pub(crate) fn read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(FILE);
        let Ok(text) = fs::read(&path) else {
            bail!("no mesh is running here (there is no {}); start one with `meshwright up`", path.display());
        };
        serde_json::from_slice(&text).with_context(|| format!("{} was written by another version; run `meshwright down`", path.display()))
    }

    /// Removes it.
    pub(crate) fn remove(state: &Path) {
        let _ = fs::remove_file(state.join(FILE));
    }

    /// The instance of that workload or instance name. Of a workload with replicas it is the first. Without a namespace it is looked for
    /// in `default`, then in all, where it must be the only one.
    ///
    /// # Errors
    /// There is none, with the names there are; or there are several, with their namespaces.
    pub(crate) fn find(&self, namespace: Option<&str>, name: &str) -> anyhow::Result<&InstanceRecord> {
        let inside = |namespace: &str| {
            let mut here = self.instances.iter().filter(|entry| entry.namespace == namespace);
            here.clone().find(|entry| entry.instance == name).or_else(|| here.find(|entry| entry.workload == name))
        };
        if let Some(found) = inside(namespace.unwrap_or(DEFAULT_NAMESPACE)) {
            return Ok(found);
        }
        let mut spaces: Vec<&str> = self.instances.iter().map(|entry| entry.namespace.as_str()).collect();
        spaces.dedup();
        let elsewhere: Vec<&str> = spaces.into_iter().filter(|space| inside(space).is_some()).collect();
        match (namespace, elsewhere.as_slice()) {
            (None, [one]) => inside(one).context("the namespace was just found"),
            (None, []) => bail!("no workload or instance is called {name}; there are: {}", self.names()),
            (None, several) => bail!("{name} is in the namespaces {}; say which one with -n", several.join(", ")),
            (Some(space), []) => bail!("no workload or instance of namespace {space} is called {name}; there are: {}", self.names()),
            (Some(space), others) => bail!("{name} is not in namespace {space}, but in {}", others.join(", ")),
        }
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.instances.iter().map(|entry| format!("{}/{}", entry.namespace, entry.instance)).collect();
        if names.is_empty() { "none yet".to_owned() } else { names.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> InstancesFile {
        let entry = |namespace: &str, workload: &str, instance: &str| InstanceRecord {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            instance: instance.to_owned(),
            ..InstanceRecord::default()
        };
        let instances = vec![entry("a", "web", "web"), entry("b", "web", "web-0"), entry("b", "web", "web-1"), entry("b", "db", "db")];
        InstancesFile { instances, ..InstancesFile::default() }
    }

    /// Aim: either form of the name is found, and what is not found is answered with where to look.
    #[test]
    fn names_are_found() {
        let book = book();
        assert_eq!(book.find(Some("b"), "web").unwrap().instance, "web-0");
        assert_eq!(book.find(Some("b"), "web-1").unwrap().instance, "web-1");
        assert_eq!(book.find(None, "db").unwrap().namespace, "b");
        for (namespace, name, part) in [
            (None, "web", "namespaces a, b; say which"),
            (Some("a"), "db", "but in b"),
            (Some("a"), "none", "there are: a/web, b/web-0"),
            (None, "none", "there are:"),
        ] {
            let said = book.find(namespace, name).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }

    /// Aim: what is written is what is read, and nothing running is said in words.
    #[test]
    fn the_file_round_trips() {
        let state = tempfile::tempdir().unwrap();
        assert!(InstancesFile::read(state.path()).unwrap_err().to_string().contains("meshwright up"));
        book().write(state.path()).unwrap();
        assert_eq!(InstancesFile::read(state.path()).unwrap(), book());
    }
}
