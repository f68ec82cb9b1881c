//! What one caller asks of a server, as few targets of a rule.

use std::collections::{BTreeMap, BTreeSet};

use proto::identity::Identity;
use serde_json::{Value, json};

/// Most paths of one caller at one port that a rule lists; beyond it, it lists none.
const PATHS_MAX: usize = 64;
/// Most items of a list that is written.
pub(super) const LISTED_MAX: usize = 256;
/// So many different elements at one place of a path are names that somebody gives, and further ones will come.
const SIBLINGS_MAX: usize = 10;

type Methods = BTreeSet<String>;

/// What one caller asks for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    ports: BTreeMap<u16, PortAsked>,
}

#[derive(Debug, Default)]
struct PortAsked {
    /// Methods by path.
    paths: BTreeMap<String, Methods>,
    /// Connections without requests.
    opaque: bool,
}

impl Asked {
    pub(super) fn add(&mut self, port: u16, method: &str, path: &str) {
        let at = self.ports.entry(port).or_default();
        if method.is_empty() {
            at.opaque = true;
        } else {
            at.paths.entry(path.to_owned()).or_default().insert(method.to_owned());
        }
    }
}

/// The `to` of a rule.
pub(super) fn targets(asked: Asked, caller: &Identity, remarks: &mut Vec<String>) -> Value {
    let mut targets = Vec::new();
    for (port, PortAsked { paths, opaque }) in asked.ports {
        if opaque {
            targets.push(json!({"ports": [port]}));
            if !paths.is_empty() {
                remarks.push(format!("port {port} carried bytes as well as requests: {caller} may make any request there"));
            }
            continue;
        }
        let paths = together(paths);
        if paths.len() > PATHS_MAX {
            remarks.push(format!("{caller} asked port {port} for {} different paths: any path is allowed to it there", paths.len()));
            let methods: Methods = paths.into_values().flatten().collect();
            targets.push(json!({"ports": [port], "methods": methods}));
            continue;
        }
        // A path that has the same methods as others stands with them.
        let mut by_methods: BTreeMap<Methods, Vec<String>> = BTreeMap::new();
        for (path, methods) in paths {
            by_methods.entry(methods).or_default().push(path);
        }
        targets.extend(by_methods.into_iter().map(|(methods, paths)| target(port, &methods, &paths)));
    }
    Value::Array(targets)
}

fn target(port: u16, methods: &Methods, paths: &[String]) -> Value {
    let pattern = |path: &String| {
        let kind = if path.contains('{') { "Template" } else { "Exact" };
        json!({"type": kind, "value": path})
    };
    // What has no path, such as CONNECT, cannot be told apart by it.
    if paths.iter().any(String::is_empty) {
        return json!({"ports": [port], "methods": methods});
    }
    json!({"ports": [port], "methods": methods, "paths": paths.iter().map(pattern).collect::<Vec<_>>()})
}

/// Takes paths together that differ in one element only, where there are many of them.
fn together(mut paths: BTreeMap<String, Methods>) -> BTreeMap<String, Methods> {
    let depth = paths.keys().map(|path| path.split('/').count()).max().unwrap_or(0);
    for place in 1..depth {
        let mut alike: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for path in paths.keys() {
            let elements: Vec<&str> = path.split('/').collect();
            if elements.get(place).is_some_and(|element| !element.is_empty() && !element.contains('{')) {
                let around = (elements[..place].join("/"), elements[place + 1..].join("/"));
                alike.entry(around).or_default().push(path.clone());
            }
        }
        for ((before, after), same) in alike.into_iter().filter(|(_, same)| same.len() > SIBLINGS_MAX) {
            let methods: Methods = same.iter().filter_map(|path| paths.remove(path)).flatten().collect();
            let after = if same[0].split('/').count() > place + 1 { format!("/{after}") } else { String::new() };
            paths.entry(format!("{before}/{{name{place}}}{after}")).or_default().extend(methods);
        }
    }
    paths
}
