//! The cases of h2spec, which nobody here wrote, against an edge: over TLS and in plaintext.

use std::process::Command;
use std::thread;

use serde_json::Value;
use tests::look::free_port;

use crate::edge::{Authority, NAME, gateway, http, https, route, shop};
use crate::mesh::{Mesh, go_program, said, text};

/// Cases that end otherwise than h2spec wants, and why that is right: of all of them, and only of them, `failed` is expected.
const OTHERWISE: [(&str, &str, &str); 1] = [(
    "plain",
    "http2/3.5/2",
    "in plaintext both versions are spoken at one port: what is no preface of HTTP/2 is HTTP/1, and its answer, 400 with `connection: close`, \
     comes before the end (RFC 9112, section 2.2; RFC 9113, section 3.3)",
)];
/// As many there are.
const CASES: usize = 146;

/// Runs all cases against a port.
fn cases(program: &str, port: u16, kind: &str) -> Vec<Value> {
    let output = Command::new(program).args(["127.0.0.1", &port.to_string(), "/", kind]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Aim: every case of h2spec, the strict ones too, passes over TLS and in plaintext, but for those that are named here with the reason.
#[test]
fn h2spec_finds_nothing_but_what_is_known() {
    let program = go_program("h2spec");
    let (plain, tls) = (free_port(), free_port());
    let authority = Authority::new();
    authority.issue("a", &format!("DNS:{NAME}"), false);
    let manifests = [
        shop(&[("echo", "[meshwright, echo, --http=8080]", 8080)]),
        authority.secret("a", ""),
        gateway("edge", &[http("http", plain), https("https", tls, "", "a")], ""),
        route("echo", &["edge"], "", "echo"),
    ];
    let mesh = Mesh::start(&[("mesh.yaml", &manifests.concat())]);
    let [over_tls, in_plain] = thread::scope(|scope| {
        let beside = scope.spawn(|| cases(&program, tls, "tls"));
        let plain = cases(&program, plain, "plain");
        [beside.join().unwrap(), plain]
    });
    for (kind, found) in [("tls", over_tls), ("plain", in_plain)] {
        assert_eq!(found.len(), CASES, "{kind}");
        let failed: Vec<&Value> = found.iter().filter(|case| case["verdict"] != "passed").collect();
        let names: Vec<&str> = failed.iter().filter_map(|case| case["case"].as_str()).collect();
        let known: Vec<&str> = OTHERWISE.iter().filter(|(own, ..)| *own == kind).map(|(_, name, _)| *name).collect();
        assert_eq!(names, known, "{kind}: {failed:#?}");
    }
    mesh.leave();
}
