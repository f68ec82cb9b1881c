//! What pages and files tell their readers is true.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The repository: this crate lies one folder below.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files of the repository with one of the endings, as `(path from the root, text)`.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&root(), endings, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no file ends in {endings:?}");
    found
}

fn collect(folder: &Path, endings: &[&str], found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if !matches!(name.as_str(), ".git" | "target" | "__pycache__") {
                collect(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            let shown = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((shown, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Lines inside the fenced blocks of a Markdown text.
fn shell_lines(markdown: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    markdown.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        inside && !fence
    })
}

/// The commands of ours that a line runs, each as its plain leading words: `get proxies` of `sudo meshwright get proxies -o json | head`.
fn commands(line: &str) -> Vec<Vec<String>> {
    let parts = line.split(['|', ';']).flat_map(|part| part.split("&&"));
    let ours = parts.filter_map(|part| {
        let mut words = part.split_whitespace().skip_while(|word| matches!(*word, "$" | "sudo" | "time"));
        let program = words.next().unwrap_or_default();
        let plain = |word: &&str| !word.starts_with('-') && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let named = program == "meshwright" || program.ends_with("/meshwright") || program == "{meshwright}";
        named.then(|| words.take_while(plain).take(2).map(str::to_owned).collect())
    });
    ours.collect()
}

/// Every command of the binary, read from the list that clap is made of.
fn known_commands() -> BTreeSet<String> {
    let source = fs::read_to_string(root().join("cli/src/command/mod.rs")).unwrap();
    let variants = source.lines().filter_map(|line| line.trim().strip_suffix("Args),")?.split('(').next());
    let known: BTreeSet<String> = variants.map(str::to_ascii_lowercase).collect();
    assert!(known.contains("apply") && known.contains("completions"), "the list of commands was not understood: {known:?}");
    known
}

/// Aim: the README has its two set-up commands, and every command that a page tells people to run exists.
#[test]
fn documented_commands_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["cargo run --release -- up", "tests/run-all"] {
        assert!(readme.contains(command), "README.md does not tell `{command}`");
    }
    let known = known_commands();
    let mut unknown = Vec::new();
    for (path, text) in files(&[".md", "TRY.txt"]) {
        let lines: Vec<&str> = if path.ends_with(".md") { shell_lines(&text).collect() } else { text.lines().collect() };
        for words in lines.into_iter().flat_map(commands) {
            match words.first() {
                Some(name) if !known.contains(name) => unknown.push(format!("{path}: `meshwright {name}` does not exist")),
                _ => {}
            }
        }
    }
    assert_eq!(unknown, Vec::<String>::new());
}

/// Aim: links between pages lead somewhere.
#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    for (path, text) in files(&[".md"]) {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            if !root().join(&path).parent().unwrap().join(file).exists() {
                dead.push(format!("{path}: {target}"));
            }
        }
    }
    assert_eq!(dead, Vec::<String>::new());
}

/// Aim: nothing in the repository knows one machine's folders or names a package registry.
#[test]
fn nothing_knows_one_machine() {
    // In two parts, so that this file does not accuse itself.
    let banned = [["/ro", "ot/"], ["/wor", "k/"], ["/ho", "me/"], ["crates", ".io"], ["docker", ".io"], ["gh", "cr.io"], ["py", "pi.org"]];
    let mut found = Vec::new();
    for (path, text) in files(&[".rs", ".md", ".toml", ".yaml", ".proto", ".py", ".txt", ".svg", "run-all", "run"]) {
        for (number, line) in text.lines().enumerate() {
            let words = banned.map(|parts| parts.concat()).into_iter().filter(|word| line.contains(word.as_str()));
            found.extend(words.map(|word| format!("{path}:{}: `{word}`", number + 1)));
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Aim: the check sees commands through prompts, pipes and folders, and leaves prose alone.
#[test]
fn commands_are_found() {
    let text = "meshwright nonsense\n```sh\n$ meshwright get proxies\nsed x | meshwright apply -f - --wait\ntarget/release/meshwright up shop/\n```\n";
    let found: Vec<_> = shell_lines(text).flat_map(commands).map(|words| words.join(" ")).collect();
    assert_eq!(found, ["get proxies", "apply", "up"]);
}
