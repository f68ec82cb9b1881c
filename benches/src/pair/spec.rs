//! A topology as a file: what to write, what to start in which namespace, whom to account, where load goes. Pure.
//!
//! The format is shared with other rigs: `extends`, `backend`, `name`, `about`, `vars`, `files`, `setup`, `procs`, `ready`, `target`,
//! `verify`. Ours beside them, which others may ignore: `needs` (programs and their remedy), `manifests` (the folder a Meshwright
//! control plane reads, so that the rig can add objects), `parent` (of its routes), `target.grpc` and `target.tcp`, `procs[].memory`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Longest chain of `extends` and `backend`.
const EXTENDS_MAX: usize = 8;
/// The file name that means "the backend of whichever rig runs this": all topologies of a run must share one.
pub(super) const BACKEND: &str = "backend.json";

/// One topology, with `extends` and `backend` merged in.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Spec {
    /// How tables call it.
    pub(super) name: String,
    /// What it is, one sentence.
    #[serde(default)]
    pub(super) about: String,
    /// Values of `${NAME}`; the environment and the command line know more.
    #[serde(default)]
    pub(super) vars: BTreeMap<String, String>,
    /// Files of the topology's own folder `${RUN}`, by name.
    #[serde(default)]
    pub(super) files: BTreeMap<String, Text>,
    /// Commands run to their end before anything starts.
    #[serde(default)]
    pub(super) setup: Vec<Step>,
    /// What runs while we measure, in order of start.
    #[serde(default)]
    pub(super) procs: Vec<Process>,
    /// What must answer 200 before load is sent; default: `/1k` at the HTTP/1.1 target.
    pub(super) ready: Option<Ready>,
    /// Where load goes.
    pub(super) target: Target,
    /// Commands whose output proves that the topology does the work it claims.
    #[serde(default)]
    pub(super) verify: Vec<Proof>,
    /// Programs without which it cannot run.
    #[serde(default)]
    pub(super) needs: Vec<Need>,
    /// The folder of manifests a Meshwright control plane reads, if there is one.
    pub(super) manifests: Option<String>,
    /// What routes of the rig's own belong to.
    #[serde(default)]
    pub(super) parent: Parent,
}

/// What routes that the rig adds belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) enum Parent {
    /// The service in use.
    #[default]
    Service,
    /// The Gateway `bench/edge`.
    Gateway,
}

/// A file's content: a text, or its lines.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Text {
    /// As it is.
    Whole(String),
    /// Joined by newlines, with one at the end.
    Lines(Vec<String>),
}

impl Text {
    /// The content.
    pub(super) fn content(&self) -> String {
        match self {
            Self::Whole(text) => text.clone(),
            Self::Lines(lines) => lines.join("\n") + "\n",
        }
    }
}

/// A command of `setup`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Step {
    /// In the host's own namespace.
    Plain(Vec<String>),
    /// In a namespace of the topology.
    Placed {
        /// Where; none: the host's.
        netns: Option<Side>,
        /// Program and arguments.
        cmd: Vec<String>,
    },
}

impl Step {
    /// Where it runs, and what.
    pub(super) fn parts(&self) -> (Option<Side>, &[String]) {
        match self {
            Self::Plain(cmd) => (None, cmd),
            Self::Placed { netns, cmd } => (*netns, cmd),
        }
    }
}

/// A namespace of the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    /// Load generator and client proxy.
    Client,
    /// Server proxy and backend.
    Server,
}

/// Whose account a process goes to; anything but these three is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The client's proxy.
    Client,
    /// The server's proxy.
    Server,
    /// The application.
    Backend,
}

/// A process that runs while we measure.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Process {
    /// Names its log.
    pub(super) name: String,
    /// `client`, `server`, `backend`; others (a control plane) are not accounted.
    #[serde(default)]
    pub(super) role: String,
    /// Where it runs; none: the host's own namespace.
    pub(super) netns: Option<Side>,
    /// Program and arguments.
    pub(super) cmd: Vec<String>,
    /// Environment, added to ours.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    /// Seconds to wait after its start.
    #[serde(default)]
    pub(super) wait: f64,
    /// Whether its memory counts as a fresh sidecar's; false for a second process of a side, which stands for a road the first one lacks.
    #[serde(default = "yes")]
    pub(super) memory: bool,
}

fn yes() -> bool {
    true
}

impl Process {
    /// The account it goes to.
    pub(super) fn account(&self) -> Option<Role> {
        match self.role.as_str() {
            "client" => Some(Role::Client),
            "server" => Some(Role::Server),
            "backend" => Some(Role::Backend),
            _ => None,
        }
    }
}

/// What says that a topology is up.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Ready {
    /// `http://IP:PORT/PATH`; 200 is the good answer.
    pub(super) url: String,
    /// Where the question is asked; default: the client's namespace.
    pub(super) netns: Option<Side>,
    /// Seconds until we give up; default 30.
    pub(super) timeout: Option<f64>,
}

/// Where load goes, `http://IP:PORT` each. A topology is left out of phases it has no target for.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Target {
    /// HTTP/1.1.
    pub(super) h1: Option<String>,
    /// HTTP/2 without TLS (h2c).
    pub(super) h2: Option<String>,
    /// gRPC; default: the HTTP/2 target.
    pub(super) grpc: Option<String>,
    /// Bytes.
    pub(super) tcp: Option<String>,
}

/// A command that proves a claim.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Proof {
    /// The claim.
    pub(super) what: Option<String>,
    /// Where it runs.
    pub(super) netns: Option<Side>,
    /// Program and arguments.
    pub(super) cmd: Vec<String>,
    /// Regular expression that its output must match.
    pub(super) expect: String,
}

/// A program a topology cannot run without.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Need {
    /// Name on the PATH, or a path; may be a `${NAME}`.
    pub(super) program: String,
    /// How to get it.
    pub(super) remedy: String,
}

/// Reads a spec and what it builds upon. `read` yields the text of a file by name.
///
/// # Errors
/// A file is missing, is no JSON, or lacks a name or target; a chain longer than eight files.
pub(super) fn load(file: &str, read: &dyn Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Spec> {
    let whole = resolve(file, read, EXTENDS_MAX)?;
    serde_json::from_value(Value::Object(whole))
        .with_context(|| format!("{file} is not a topology: see \"Measure it yourself\" in the documentation"))
}

fn resolve(file: &str, read: &dyn Fn(&str) -> anyhow::Result<String>, left: usize) -> anyhow::Result<Map<String, Value>> {
    if left == 0 {
        bail!("{file}: more than {EXTENDS_MAX} files build upon each other (do two extend one another?)");
    }
    let text = read(file)?;
    let mut own: Map<String, Value> = serde_json::from_str(&text).with_context(|| format!("{file} is not a JSON object"))?;
    for key in ["extends", "backend"] {
        if let Some(Value::String(base)) = own.remove(key) {
            own = merge(resolve(&base, read, left - 1)?, own);
        }
    }
    Ok(own)
}

/// `over` upon `base`: files, vars and targets by key, processes by name, setup appended, everything else replaced.
fn merge(mut base: Map<String, Value>, over: Map<String, Value>) -> Map<String, Value> {
    for (key, value) in over {
        let merged = match (key.as_str(), base.remove(&key), value) {
            ("files" | "vars" | "target", Some(Value::Object(mut old)), Value::Object(new)) => {
                old.extend(new);
                Value::Object(old)
            }
            ("procs" | "setup", Some(Value::Array(old)), Value::Array(new)) => {
                let replaced = |item: &Value| item.get("name").is_some_and(|name| new.iter().any(|other| other.get("name") == Some(name)));
                let mut all: Vec<_> = old.into_iter().filter(|item| !replaced(item)).collect();
                all.extend(new);
                Value::Array(all)
            }
            (_, _, value) => value,
        };
        base.insert(key, merged);
    }
    base
}

/// `text` with every `${NAME}` replaced.
///
/// # Errors
/// A name that nobody set.
pub(super) fn substitute(text: &str, vars: &BTreeMap<String, String>) -> anyhow::Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let name = from[2..].split('}').next().unwrap_or_default();
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && from.len() > name.len() + 2;
        if is_name {
            let value =
                vars.get(name).with_context(|| format!("${{{name}}} is not set: set it in the environment or by --var {name}=VALUE"))?;
            out.push_str(value);
            rest = &from[name.len() + 3..];
        } else {
            out.push_str("${");
            rest = &from[2..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str) -> anyhow::Result<String> {
        let text = match file {
            "base.json" => {
                r#"{"name": "base", "backend": "backend.json", "vars": {"A": "1", "B": "2"}, "target": {"h1": "http://x"},
                    "files": {"f": ["a", "b"]}, "setup": [["true"]], "procs": [{"name": "p", "cmd": ["old"]}, {"name": "q", "cmd": ["q"]}]}"#
            }
            "backend.json" => {
                r#"{"procs": [{"name": "backend", "role": "backend", "netns": "server", "cmd": ["be"]}], "vars": {"A": "0"}}"#
            }
            "over.json" => {
                r#"{"extends": "base.json", "name": "over", "vars": {"B": "3"}, "target": {"h2": "http://y"},
                    "setup": [{"netns": "client", "cmd": ["x"]}], "procs": [{"name": "p", "role": "client", "cmd": ["new"], "memory": false}]}"#
            }
            "loop.json" => r#"{"extends": "loop.json", "name": "loop", "target": {}}"#,
            "bad.json" => "[]",
            _ => bail!("no file {file}"),
        };
        Ok(text.to_owned())
    }

    /// Aim: a spec builds upon others the way the shared format says: maps by key, processes by name, setup appended.
    #[test]
    fn specs_build_upon_others() {
        let spec = load("over.json", &read).unwrap();
        assert_eq!((spec.name.as_str(), spec.vars["A"].as_str(), spec.vars["B"].as_str()), ("over", "1", "3"));
        assert_eq!((spec.target.h1.as_deref(), spec.target.h2.as_deref()), (Some("http://x"), Some("http://y")));
        let procs: Vec<_> = spec.procs.iter().map(|p| (p.name.as_str(), p.cmd[0].as_str(), p.account(), p.memory)).collect();
        assert_eq!(procs, [("backend", "be", Some(Role::Backend), true), ("q", "q", None, true), ("p", "new", Some(Role::Client), false)]);
        assert_eq!(spec.setup.iter().map(|step| step.parts().0).collect::<Vec<_>>(), [None, Some(Side::Client)]);
        assert_eq!(spec.files["f"].content(), "a\nb\n");
    }

    /// Aim: what is no topology is refused with the file's name.
    #[test]
    fn what_is_no_topology_is_refused() {
        for (file, word) in
            [("loop.json", "more than 8"), ("bad.json", "bad.json"), ("none.json", "no file"), ("backend.json", "backend.json")]
        {
            let error = format!("{:#}", load(file, &read).unwrap_err());
            assert!(error.contains(word), "{file}: {error}");
        }
    }

    /// Aim: names in braces are replaced, what only looks like one is left to the shell, an unset one is named with its remedy.
    #[test]
    fn variables_are_replaced() {
        let vars = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B_2".to_owned(), "${A}".to_owned())]);
        for (text, expected) in
            [("x${A}y${B_2}z", "x1y${A}z"), ("$A $(seq 3) ${A:-2} ${ ${A", "$A $(seq 3) ${A:-2} ${ ${A"), ("", ""), ("${A}", "1")]
        {
            assert_eq!(substitute(text, &vars).unwrap(), expected);
        }
        assert!(substitute("${NO}", &vars).unwrap_err().to_string().contains("--var NO=VALUE"));
    }
}
