//! What parts of a running mesh may do, and what they leave where others could read it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::running::{LIVE_MAX, MANIFESTS, Up};

/// The uid that a proxy drops to (contract, section 3).
const PROXY_UID: &str = "1337";

/// A field of `/proc/PID/status`.
fn status(pid: u64, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} of {pid}")).trim().to_owned()
}

/// Every process below another one, and itself.
fn family(pid: u64) -> Vec<u64> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(family);
    [pid].into_iter().chain(children).collect()
}

fn command(pid: u64) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Processes of `up` whose command is `meshwright WORD …`.
fn parts(up: &Up, word: &str) -> Vec<u64> {
    let all = family(u64::from(up.child.id()));
    all.into_iter().filter(|pid| command(*pid).get(1).is_some_and(|first| first == word)).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() && !path.is_symlink() { files(&path) } else { vec![path] }).collect()
}

/// Whether bytes hold a private key: PEM of any kind, or PKCS#8 of a P-256 key, of which the mesh makes all (RFC 5958, RFC 5915).
fn holds_key(bytes: &[u8]) -> bool {
    const P256: &[u8] = &[0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20];
    [b"PRIVATE KEY".as_slice(), P256].iter().any(|sign| bytes.windows(sign.len()).any(|window| window == *sign))
}

/// Aim: a sidecar that runs has no capability left, in no set, not even one that a program it starts could gain; it is nobody's uid, leaves no
/// core file, and neither it nor the control plane lets others of its user look into its memory.
#[test]
fn what_runs_keeps_no_right_that_it_does_not_need() {
    let up = Up::start(&[MANIFESTS], &[]);
    up.wait_for("live", LIVE_MAX);
    let proxies = parts(&up, "proxy");
    assert!(!proxies.is_empty());
    for pid in proxies {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(pid, set), "0000000000000000", "{set} of {:?}", command(pid));
        }
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert!(status(pid, "Uid").split_whitespace().all(|uid| uid == PROXY_UID), "{}", status(pid, "Uid"));
        assert_eq!(status(pid, "Groups"), "");
    }
    let all = [parts(&up, "proxy"), parts(&up, "control")].concat();
    for pid in all {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
        // What is not dumpable belongs to root, whoever runs it.
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/environ")).unwrap());
        assert_eq!(owner, 0, "{:?}", command(pid));
    }
    up.end();
}

/// Aim: a mesh that runs leaves private keys on disk in one file, the authority's store, which is 0600 in a 0700 folder; leaf keys never.
#[test]
fn leaf_keys_are_never_on_disk() {
    let up = Up::start(&[MANIFESTS], &[]);
    up.wait_for("live", LIVE_MAX);
    let certificates: Vec<Value> = serde_json::from_slice(&up.meshwright(&["get", "certs", "-o", "json"]).stdout).unwrap();
    assert!(!certificates.is_empty(), "there are leaves");
    let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o777;
    let mut with_keys = Vec::new();
    for path in files(up.state.path()) {
        if holds_key(&fs::read(&path).unwrap_or_default()) {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            assert_eq!(mode(path.parent().unwrap()), 0o700, "{}", path.display());
            with_keys.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(with_keys, ["ca.redb"]);
    for token in ["api-read.token", "api-write.token"] {
        assert_eq!(mode(&up.state.path().join("control").join(token)), 0o600);
    }
    for path in files(&up.state.path().join("tokens")) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    up.end();
}
