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
const LEVELS: [(u8, &[&str]); 5] = [
    (0, &["ground"]),
    (1, &["io"]),
    (
        2,
        &[
            "observe",
            "tls",
            "identity",
            "leases",
            "stores",
            "xds",
            "snapshots",
            "reports",
            "pool",
            "http",
            "tcp",
            "dns",
            "intercept",
            "status",
            "callout",
            "workload_api",
        ],
    ),
    (3, &["road"]),
    (4, &["shell", "main", "lib"]),
];

/// The same for the control plane: translation knows no stream, streams know no command.
const CONTROL_LEVELS: [(u8, &[&str]); 8] = [
    (0, &["clock"]),
    (1, &["world"]),
    (2, &["source", "crds"]),
    (3, &["translate"]),
    (4, &["publish"]),
    (5, &["serve", "store", "rotation", "acme", "traces", "canary"]),
    (6, &["api", "node", "status"]),
    (7, &["settings", "app", "lib"]),
];

/// The same for the pure half of the proxy: policy knows no cluster, the model no decision.
const ENGINE_LEVELS: [(u8, &[&str]); 7] = [
    (0, &["moment", "rejected", "raw", "failure", "sniff", "dns", "sketch", "claims", "callout", "versions", "seeded"]),
    (1, &["limit", "spread", "budget", "gate", "health", "matching", "consumers"]),
    (2, &["filter", "retry", "authenticate", "authorize", "client", "login"]),
    (3, &["model"]),
    (4, &["decide", "balance"]),
    (5, &["explain"]),
    (6, &["fixture", "lib"]),
];

/// The only words that a crate has for two types, which are one concept at two places: (crate, word, why).
const ONE_CONCEPT: [(&str, &str, &str); 5] = [
    ("proxy", "Effect", "what a state machine asks of the task around it, whichever machine it is"),
    ("proxy/engine", "Inbound", STAGED),
    ("proxy/engine", "InboundPort", STAGED),
    ("proxy/engine", "RouteTable", STAGED),
    ("proxy/engine", "Policy", "what happens to a rule's requests, and the part of it that is about trying again"),
];
const STAGED: &str = "`model::build` has it with names of what it leads to, before `link` makes it the model's";

/// What never may be, whatever the level: (importer, imported).
const NEVER: [(&str, &str); 3] = [("tls", "identity"), ("tls", "xds"), ("io", "observe")];

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

/// A source without its tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Names that code imports right below a path (`crate::`, `super::`), alone or in a list, whatever stands within.
fn imports<'a>(code: &'a str, path: &str) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(path) {
        // `super::super::x` is none of `super::`'s, nor is `supercrate::x` of `crate::`'s.
        if code[..at].ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == ':') {
            continue;
        }
        let rest = &code[at + path.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.insert(first_word(rest));
            continue;
        };
        let (mut depth, mut begin) = (0, 0);
        for (place, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' | ',' if depth == 0 => {
                    names.insert(first_word(list[begin..place].trim_start()));
                    begin = place + 1;
                    if letter == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    names.remove("");
    names
}

/// Whether a source is for tests only.
fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/") || path.contains("/testing")
}

fn first_word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn level(levels: &[(u8, &[&str])], module: &str) -> Option<u8> {
    levels.iter().find(|(_, modules)| modules.contains(&module)).map(|(level, _)| *level)
}

/// Aim: the modules of proxy, engine and control plane know only what lies below them, so that the road can be read downward.
#[test]
fn modules_import_downward() {
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        // At the top, wiring, anything may meet.
        let crates =
            [("proxy/src/", &LEVELS[..], 4), ("control/src/", &CONTROL_LEVELS[..], 7), ("proxy/engine/src/", &ENGINE_LEVELS[..], 6)];
        let found =
            crates.into_iter().find_map(|(crate_path, levels, top)| path.strip_prefix(crate_path).map(|below| (levels, below, top)));
        let Some((levels, below, top)) = found else { continue };
        if is_test(&path) || below.starts_with("tests") {
            continue;
        }
        let module = below.split(['/', '.']).next().unwrap_or(below);
        let Some(own) = level(levels, module) else {
            wrong.push(format!("{path}: module `{module}` has no level; give it one here and in docs/architecture.md"));
            continue;
        };
        for name in imports(&code(&text), "crate::") {
            // Macros and items of lib.rs itself have no level.
            let Some(other) = level(levels, name) else { continue };
            if name != module && (other > own || NEVER.contains(&(module, name)) || name == "app") && own < top {
                wrong.push(format!("{path}: `{module}` (level {own}) imports `{name}` (level {other})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Siblings that a module imports, by folder and module: from anywhere below it by `crate::…`, from its own file by `super::`.
fn siblings(crate_name: &str, texts: &BTreeMap<String, String>) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut folders: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let root = format!("{crate_name}/src");
    for (path, text) in texts {
        let Some(below) = path.strip_prefix(&format!("{root}/")).filter(|below| !is_test(path) && !below.starts_with("tests")) else {
            continue;
        };
        let code = code(text);
        let parts: Vec<&str> = below.trim_end_matches(".rs").split('/').collect();
        for depth in 0..parts.len() {
            let (folder, module) = (&parts[..depth], parts[depth]);
            if matches!(module, "mod" | "lib" | "main") {
                continue;
            }
            let place = folder.iter().fold("crate::".to_owned(), |place, part| format!("{place}{part}::"));
            let mut names = imports(&code, &place);
            if parts.len() == depth + 1 || (parts.len() == depth + 2 && parts[depth + 1] == "mod") {
                names.extend(imports(&code, "super::"));
            }
            let known = folders.entry(format!("{root}/{}", folder.join("/"))).or_default().entry(module.to_owned()).or_default();
            known.extend(names.into_iter().filter(|name| *name != module).map(str::to_owned));
        }
    }
    folders
}

/// Those that stand in a circle, or import one: what is left when whoever imports nobody that is left has gone.
fn circle(mut modules: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let names: BTreeSet<String> = modules.keys().cloned().collect();
        modules.values_mut().for_each(|imported| imported.retain(|name| names.contains(name)));
        let before = modules.len();
        modules.retain(|_, imported| !imported.is_empty());
        if modules.len() == before {
            return modules;
        }
    }
}

/// Words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Aim: every limit of the data path is in the table of limits, with what happens at it; and each test that the table names is there.
#[test]
fn limits_are_told_and_shown() {
    let texts = texts();
    let page = fs::read_to_string(root().join("docs/limits.md")).expect("the page of limits");
    let told: BTreeSet<&str> = quoted(&page).collect();
    let source = &texts["proxy/src/ground/limits.rs"];
    let limits = source.lines().filter_map(|line| line.strip_prefix("pub const ")).map(first_word);
    let missing: Vec<&str> = limits.filter(|limit| !told.contains(limit)).collect();
    assert!(missing.is_empty(), "docs/limits.md has no row for {missing:?}");
    let known = |test: &str| texts.values().any(|text| text.contains(&format!("fn {test}(")));
    let rows = page.lines().filter(|line| line.starts_with("| `") || line.starts_with("| "));
    let shown = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next()).flat_map(quoted);
    let unknown: Vec<&str> = shown.filter(|test| !known(test)).collect();
    assert!(unknown.is_empty(), "docs/limits.md names tests that are not there: {unknown:?}");
}

/// Aim: of two files in one folder one is read first: none imports the other in a circle.
#[test]
fn siblings_import_in_no_circle() {
    let texts = texts();
    let mut wrong = Vec::new();
    for name in CRATES {
        for (folder, modules) in siblings(name, &texts) {
            let circle = circle(modules);
            if !circle.is_empty() {
                wrong.push(format!("{folder}: {circle:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Aim: the check sees a circle through lists and nesting, and no circle where there is none.
#[test]
fn circles_are_seen() {
    let source = |texts: &[(&str, &str)]| {
        let texts = texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        siblings("x", &texts).into_values().map(circle).filter(|circle| !circle.is_empty()).count()
    };
    let a = ("x/src/a.rs", "use super::{\n    b::{C, D},\n    E,\n};");
    assert_eq!(source(&[a, ("x/src/b/mod.rs", "use crate::e::F;"), ("x/src/b/c.rs", "//! use crate::a;\nuse crate::{e, a};")]), 1);
    assert_eq!(source(&[a, ("x/src/b/mod.rs", "use crate::e::F;\n#[cfg(test)]\nmod tests { use crate::a; }"), ("x/src/e.rs", "")]), 0);
    assert_eq!(imports("use super::super::x; use super::{y, z::{a, b}, c}; super::d()", "super::"), ["c", "d", "super", "y", "z"].into());
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

/// Name of a type that is declared at the start of a line and seen outside of its file.
fn seen_type(line: &str) -> Option<&str> {
    let declared = ["pub ", "pub(crate) ", "pub(super) "].iter().find_map(|sight| line.strip_prefix(sight))?;
    ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| declared.strip_prefix(kind)).map(first_word)
}

/// Aim: one word per thing: who meets a type's name in a crate need not ask which of two is meant.
#[test]
fn one_word_per_thing() {
    let texts = texts();
    let mut files: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in texts.iter().filter(|(path, _)| !is_test(path)) {
        // `benches` is several programs that share no word.
        let Some((name, _)) = path.split_once("/src/").filter(|(name, _)| *name != "benches") else { continue };
        for word in text.lines().filter_map(seen_type) {
            files.entry((name, word)).or_default().insert(path);
        }
    }
    files.retain(|_, files| files.len() > 1);
    // What recurs no longer leaves the list, so that it stays as short as it can be.
    let gone: Vec<_> = ONE_CONCEPT.iter().filter(|(name, word, _)| files.remove(&(*name, *word)).is_none()).collect();
    assert!(files.is_empty() && gone.is_empty(), "one word for several things: {files:#?}; allowed for nothing: {gone:?}");
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
