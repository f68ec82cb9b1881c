//! What is really built, as cargo resolves it; the lock file alone also names what no target reaches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Crates that must not be built: a second TLS stack, a second HTTP client. `.deny.toml` has the same list for the desk.
const BANNED: [&str; 6] = ["ring", "openssl", "openssl-sys", "native-tls", "reqwest", "hyper-tls"];
/// Crates of which one version must do for all.
const SINGLE: [&str; 17] = [
    "aws-lc-rs",
    "bytes",
    "h2",
    "http",
    "http-body",
    "hyper",
    "hyper-util",
    "opentelemetry",
    "prost",
    "rcgen",
    "rustls",
    "rustls-webpki",
    "socket2",
    "tokio",
    "tonic",
    "tower",
    "x509-parser",
];

/// Name and versions of each line of `cargo tree --prefix none --format {p}`.
fn versions(output: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut crates: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            crates.entry(name).or_default().insert(version);
        }
    }
    crates
}

fn complaints(crates: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<String> {
    let banned = BANNED.iter().filter(|name| crates.contains_key(**name)).map(|name| format!("`{name}` is built"));
    let several = SINGLE.iter().filter_map(|name| {
        let versions = crates.get(name).filter(|versions| versions.len() > 1)?;
        Some(format!("`{name}` is built in several versions: {versions:?}"))
    });
    banned.chain(several).collect()
}

/// What `cargo tree` says of the whole workspace, the lock file as it is.
fn tree(more: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--offline", "--workspace", "--edges", "normal,build,dev", "--prefix", "none"])
        .args(more)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Aim: one TLS stack and one of each important crate in what is built, for tests too.
#[test]
fn the_build_has_one_of_each() {
    let text = tree(&["--format", "{p}"]);
    let crates = versions(&text);
    assert!(crates.contains_key("tokio"), "cargo tree was not understood:\n{text}");
    assert_eq!(complaints(&crates), Vec::<String>::new());
}

/// Aim: where a crate has every event written to `log` too (kube's does), a release leaves out at compile time what h2 would say of each frame.
#[test]
fn releases_leave_out_what_they_never_show() {
    let text = tree(&["--invert", "log", "--depth", "0", "--format", "{p} {f}"]);
    assert!(text.contains("release_max_level_info"), "{text}");
}

/// Aim: what the desk's check bans, this one bans, and the other way round.
#[test]
fn both_lists_of_bans_are_one() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deny.toml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("deny = ")).unwrap();
    let listed: BTreeSet<&str> = line.split('"').skip(1).step_by(2).collect();
    assert_eq!(listed, BANNED.into());
}

/// Aim: the check itself sees a banned crate and a doubled one.
#[test]
fn the_check_has_teeth() {
    assert_eq!(complaints(&versions("ring v0.17.14\nh2 v0.4.1\nh2 v0.3.9 (*)\nserde v1.0.0\n")).len(), 2);
}

/// Aim: what the quick build spares, the build that ships does not inherit.
#[test]
fn what_ships_is_optimised() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("Cargo.toml")).unwrap();
    let levels = |profile: &str| -> BTreeMap<String, String> {
        let section = manifest.split(&format!("[profile.{profile}.package]\n")).nth(1).unwrap_or_default();
        let lines = section.lines().take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once(".opt-level = "));
        lines.map(|(name, level)| (name.to_owned(), level.to_owned())).collect()
    };
    let (quick, ships) = (levels("release"), levels("dist"));
    assert!(quick.len() > 10, "{quick:?}");
    let spared: Vec<&String> =
        quick.iter().filter(|(name, level)| *level != "3" && ships.get(*name).is_none_or(|own| own != "3")).map(|(name, _)| name).collect();
    assert!(spared.is_empty(), "[profile.dist.package] in Cargo.toml must set opt-level = 3 for {spared:?}");
}

/// Modules and versions that a go.mod asks for.
fn requires(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('\t'));
    lines.filter_map(|line| line.trim_end_matches(" // indirect").split_once(' ')).collect()
}

/// Aim: what the two Go programs of the tests' cluster share is one version in both, so that a build of both compiles it once.
#[test]
fn the_cluster_of_the_tests_is_compiled_once() {
    let text = |module: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(module).join("go.mod")).unwrap();
    let (api, node) = (text("kube-api"), text("kube-node"));
    let (api, node) = (requires(&api), requires(&node));
    assert!(api.len() > 50 && node.len() > 30, "go.mod was not understood");
    let differ: Vec<_> = node.iter().filter(|(name, version)| api.get(*name).is_some_and(|other| other != *version)).collect();
    assert!(differ.is_empty(), "tests/kube-node/go.mod must have the versions of tests/kube-api/go.mod: {differ:?}");
}
