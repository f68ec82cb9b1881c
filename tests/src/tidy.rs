//! The house rules that a program can check: who may know whom, how long a file may be, which words and crates are banned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file; ideally they stay below 400 lines.
const LINES_MAX: usize = 600;
/// Words that say nothing (house style, habit 3), as ends of type names.
const EMPTY_WORDS: [&str; 5] = ["Manager", "Helper", "Util", "Utils", "Handler"];
/// Crates with sources of ours.
const CRATES: [&str; 9] = ["proto", "proxy", "proxy/engine", "control", "certs-ca", "injector", "cli", "tests", "benches"];

/// A module of the proxy imports its own level or lower ones only (docs/architecture.md).
const LEVELS: [(u8, &[&str]); 4] = [
    (0, &["io", "body", "limits", "drain", "wakes", "line"]),
    (
        2,
        &[
            "observe",
            "tls",
            "dial",
            "identity",
            "xds",
            "snapshots",
            "reports",
            "guests",
            "pool",
            "http",
            "tcp",
            "dns",
            "intercept",
            "inspect",
            "lifecycle",
            "logs",
        ],
    ),
    (3, &["chain", "attempt", "inbound", "outbound", "gateway", "road", "arrival", "forward", "shared", "watch"]),
    (4, &["listener", "admin", "settings", "worker", "rights", "ports", "doors", "app", "main", "lib"]),
];

/// What never may be, whatever the level: (importer, imported).
const NEVER: [(&str, &str); 3] = [("tls", "identity"), ("tls", "xds"), ("io", "observe")];

/// Crates that must not be in the tree at all, and their reason.
const BANNED_CRATES: [(&str, &str); 4] = [
    ("openssl-sys", "one TLS stack: rustls on aws-lc-rs"),
    ("native-tls", "one TLS stack: rustls on aws-lc-rs"),
    ("reqwest", "OTLP goes over tonic; nothing else needs an HTTP client of its own"),
    ("openssl", "one TLS stack: rustls on aws-lc-rs"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file of ours with its text, by path below the workspace.
fn texts() -> BTreeMap<String, String> {
    let root = root();
    let mut paths = Vec::new();
    for name in CRATES {
        for part in ["src", "tests", "benches"] {
            sources(&root.join(name).join(part), &mut paths);
        }
    }
    let text = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("below the root").display().to_string();
        (name, fs::read_to_string(&path).expect("a source is text"))
    };
    paths.into_iter().map(text).collect()
}

/// Names a source imports with `crate::NAME`, tests left out.
fn imports(text: &str) -> BTreeSet<&str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    let lines = code.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    lines
        .flat_map(|line| line.split("crate::").skip(1))
        .flat_map(|rest| {
            let list = rest.strip_prefix('{').and_then(|list| list.split('}').next());
            list.map_or_else(|| vec![first_word(rest)], |list| list.split(',').map(|item| first_word(item.trim())).collect())
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn first_word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn level(module: &str) -> Option<u8> {
    LEVELS.iter().find(|(_, modules)| modules.contains(&module)).map(|(level, _)| *level)
}

/// Aim: the proxy's modules know only what lies below them, so that the road can be read downward.
#[test]
fn modules_import_downward() {
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        let Some(below) = path.strip_prefix("proxy/src/") else { continue };
        if below.contains("tests") || below.contains("testing") {
            continue;
        }
        let module = below.split(['/', '.']).next().unwrap_or(below);
        let Some(own) = level(module) else {
            wrong.push(format!("{path}: module `{module}` has no level; give it one here and in docs/architecture.md"));
            continue;
        };
        for name in imports(&text) {
            // Macros and items of lib.rs itself have no level.
            let Some(other) = level(name) else { continue };
            if name != module && (other > own || NEVER.contains(&(module, name)) || name == "app") && own < 4 {
                wrong.push(format!("{path}: `{module}` (level {own}) imports `{name}` (level {other})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Aim: a file can be read in one sitting.
#[test]
fn files_stay_short() {
    let long: Vec<_> = texts().into_iter().filter(|(_, text)| text.lines().count() > LINES_MAX).map(|(path, _)| path).collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines: {long:?}");
}

/// Aim: types are named after what they are.
#[test]
fn names_say_something() {
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        for line in text.lines().map(str::trim_start) {
            let declared =
                ["pub struct ", "struct ", "pub enum ", "enum ", "pub trait ", "trait "].iter().find_map(|k| line.strip_prefix(k));
            if let Some(name) = declared.map(first_word)
                && EMPTY_WORDS.iter().any(|word| name.ends_with(word))
            {
                wrong.push(format!("{path}: {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Aim: every test says what it is for, in its first line or right above it.
#[test]
fn tests_say_their_aim() {
    let mut silent = Vec::new();
    for (path, text) in texts() {
        let lines: Vec<_> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let attribute = line.trim();
            if !(attribute == "#[test]" || attribute.starts_with("#[tokio::test")) {
                continue;
            }
            let around = &lines[n.saturating_sub(4)..lines.len().min(n + 5)];
            if !around.iter().any(|line| line.contains("Aim:")) {
                silent.push(format!("{path}:{}", n + 1));
            }
        }
    }
    assert!(silent.is_empty(), "tests without an aim:\n{}", silent.join("\n"));
}

/// Aim: one TLS stack, one version of what must be one, judged by the lock file.
#[test]
fn the_lock_file_keeps_the_bans() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        let value = |prefix: &str| line.strip_prefix(prefix).map(|value| value.trim_matches('"'));
        if let Some(value) = value("name = ") {
            name = value;
        } else if let Some(version) = value("version = ") {
            versions.entry(name).or_default().insert(version);
        }
    }
    for (name, why) in BANNED_CRATES {
        assert!(!versions.contains_key(name), "Cargo.lock holds {name}: {why}");
    }
    for one in
        ["tokio", "hyper", "hyper-util", "http", "http-body", "h2", "tonic", "prost", "rustls", "aws-lc-rs", "rcgen", "opentelemetry"]
    {
        assert!(versions.get(one).is_none_or(|found| found.len() == 1), "several versions of {one}: {:?}", versions[one]);
    }
}

/// Aim: unsafe code stays where its safety can be argued.
#[test]
fn unsafe_code_stays_in_its_places() {
    let allowed = |path: &str| {
        path.starts_with("proxy/src/io/") || path.starts_with("cli/src/netns/") || path.ends_with("tests.rs") || path.contains("/tests/")
    };
    let wrong: Vec<_> = texts()
        .into_iter()
        .filter(|(path, text)| !allowed(path) && !path.ends_with("tidy.rs") && text.contains("allow(unsafe_code"))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "unsafe code outside io and netns: {wrong:?}");
}
